package jobspec

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// nginxTimes finds the variables of a log_format that hold the time.
var nginxTimes = regexp.MustCompile(`\$\{?(msec|time_iso8601|time_local)\b`)

// decimal is what an integer field can be read from.
var decimal = regexp.MustCompile(`^-?[0-9]{1,18}(\.[0-9]{1,18})?$`)

func (b *builder) sources() {
	topics := map[string]string{}
	b.root.get("sources").each(func(name string, v *value) {
		s := Source{Name: name, Topic: name, Pos: v.at, Shard: v.get("shard").string()}
		at, path := v.at, v.path
		if topic := v.get("topic"); topic != nil {
			s.Topic, at, path = topic.text, topic.pos, topic.path
		}
		if other, taken := topics[s.Topic]; taken {
			b.add(at, path, "a topic belongs to one source; tell its records apart with where and step.map",
				"the source %s reads the topic %s already", other, quote(s.Topic))
		}
		topics[s.Topic] = name
		s.Format = b.format(v)
		if v.get("each") != nil {
			s.Each = v.get("each").text
		}
		v.get("where").each(func(path string, allowed *value) {
			s.Where = append(s.Where, Condition{path, allowed.strings(), allowed.at})
		})
		s.Time = b.time(v, s.Format)
		s.Step = b.step(v.get("step"))
		s.Keys = b.keys(v)
		s.Fields = b.sourceFields(v)
		s.Dedupe = v.get("dedupe").strings()
		b.shard(v)
		s.Parquet = b.parquet(v.get("parquet"))
		b.spec.Sources = append(b.spec.Sources, s)
	})
	slices.SortFunc(b.spec.Sources, func(x, y Source) int { return cmp.Compare(x.Topic, y.Topic) })
}

// parquet reads how others wrote a source's history.
func (b *builder) parquet(v *value) *Parquet {
	if v == nil {
		return nil
	}
	p := &Parquet{Path: v.get("path").string(), Value: v.get("value").string(), Partition: v.get("partition").string(),
		Offset: v.get("offset").string(), Pos: v.at}
	if at := v.get("before"); at != nil {
		var err error
		if p.Before, err = time.Parse(time.RFC3339, at.text); err != nil {
			b.add(at.pos, at.path, "such as 2026-03-01T00:00:00Z", "there is no time %s", quote(at.text))
		}
	}
	v.get("columns").each(func(path string, column *value) {
		if p.Columns == nil {
			p.Columns = map[string]string{}
		}
		p.Columns[path] = column.string()
	})
	if p.Value != "" && p.Columns != nil {
		c := v.get("columns")
		b.add(c.at, c.path, "leave out one of them", "value holds whole records, so no columns fill their paths")
	}
	return p
}

// format reads a source's format, whose options stand beside it or in its mapping.
func (b *builder) format(source *value) Format {
	v := source.get("format")
	if v == nil {
		return Format{}
	}
	f := Format{Name: v.text, Pos: v.pos}
	if v.isObject() {
		f.Name = v.get("name").string()
	}
	options := map[string]*value{}
	for _, o := range formatOptions() {
		inside, beside := v.get(o.name), source.get(o.name)
		if inside != nil && beside != nil {
			b.add(beside.at, beside.path, "", "%q is given in the format too", o.name)
		}
		given := cmp.Or(inside, beside)
		options[o.name] = given
		belongs := slices.Contains(o.formats, f.Name)
		switch {
		case f.Name == "": // reported already
		case given != nil && !belongs:
			b.add(given.at, given.path, "it belongs to "+strings.Join(o.formats, ", "), "the format %s has no option %q", f.Name, o.name)
		case given == nil && belongs && o.needed && !v.broken(o.name) && !source.broken(o.name):
			b.add(v.pos, v.path, o.shape.doc, "the format %s needs the option %q", f.Name, o.name)
		}
	}
	f.LogFormat, f.Pattern = options["log_format"].string(), options["pattern"].string()
	f.Schema, f.Message = options["schema"].string(), options["message"].string()
	f.Confluent = options["confluent"].int() == 1
	f.Columns = options["columns"].strings()
	if f.Name == "csv" {
		f.Delimiter = ","
		if d := options["delimiter"]; d != nil {
			f.Delimiter = d.text
			if len(d.text) != 1 || strings.Contains("\"\r\n", d.text) {
				b.add(d.pos, d.path, "", "expected one byte other than a quote or a line break, got %s", quote(d.text))
			}
		}
	}
	return f
}

func (b *builder) time(source *value, f Format) Time {
	v := source.get("time")
	if v == nil {
		return b.defaultTime(source, f)
	}
	t := Time{Field: v.text, Pos: v.pos}
	if v.isObject() {
		t.Field, t.Layout, t.Zone = v.get("field").string(), v.get("layout").string(), v.get("zone").string()
	}
	layout := v.get("layout")
	switch {
	case layout != nil:
		if !isLayout(t.Layout) {
			names := []string{"unix_s", "unix_ms", "unix_us", "unix_ns", "rfc3339"}
			b.add(layout.pos, layout.path, nearestHint(t.Layout, names),
				"%s is neither a named layout nor a Go layout with a date, such as '2006-01-02 15:04:05'", quote(t.Layout))
		}
	case f.Name == "nginx" && nginxTimes.MatchString("$"+strings.TrimPrefix(t.Field, "$")):
	case isChangeData(f.Name) && t.Field == "ts":
	default:
		t.Layout = "rfc3339"
	}
	return t
}

// isChangeData tells whether records of a format are changes of rows, which carry a time of their own.
func isChangeData(format string) bool {
	return format == "canal" || format == "debezium" || format == "maxwell"
}

// defaultTime is the time of a source that names none: the finest of an nginx log_format, a change's own time.
func (b *builder) defaultTime(source *value, f Format) Time {
	if f.Name == "nginx" {
		var found []string
		for _, variable := range nginxTimes.FindAllStringSubmatch(f.LogFormat, -1) {
			found = append(found, variable[1])
		}
		for _, name := range []string{"msec", "time_iso8601", "time_local"} {
			if slices.Contains(found, name) {
				return Time{Field: name, Pos: f.Pos}
			}
		}
	}
	if isChangeData(f.Name) {
		return Time{Field: "ts", Pos: f.Pos}
	}
	if f.Name != "" && !source.broken("time") {
		hint := "expected a path, or {field, layout, zone}"
		if f.Name == "nginx" {
			hint = "log $msec, $time_iso8601 or $time_local"
		}
		b.add(source.at, source.path, hint, "the field \"time\" is missing")
	}
	return Time{}
}

// isLayout tells whether a layout is a named one, or a Go layout that carries a whole date.
func isLayout(layout string) bool {
	switch layout {
	case "unix_s", "unix_ms", "unix_us", "unix_ns", "rfc3339":
		return true
	}
	sample := time.Date(2021, time.November, 23, 17, 42, 58, 0, time.UTC)
	back, err := time.ParseInLocation(layout, sample.Format(layout), time.UTC)
	return err == nil && back.Year() == sample.Year() && back.YearDay() == sample.YearDay()
}

func (b *builder) step(v *value) Step {
	if v == nil {
		return Step{}
	}
	s := Step{Field: v.text, Pos: v.pos}
	if v.isObject() {
		s.Field, s.Value, s.Map = v.get("field").string(), v.get("value").string(), mappings(v.get("map"))
	}
	return s
}

func mappings(v *value) (all []Mapping) {
	v.each(func(from string, to *value) { all = append(all, Mapping{from, to.text}) })
	return all
}

func (b *builder) keys(source *value) (keys []Key) {
	source.get("keys").each(func(name string, v *value) {
		for _, path := range v.oneOrMore() {
			keys = append(keys, Key{b.kinds.number(name), path.text, path.pos})
		}
	})
	slices.SortStableFunc(keys, func(x, y Key) int { return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Path, y.Path)) })
	return keys
}

func (b *builder) sourceFields(source *value) (fields []Field) {
	source.get("fields").each(func(name string, v *value) {
		f := Field{Field: b.fields.number(name), Path: v.text, Pos: v.pos}
		if v.isObject() {
			f.Path, f.Value = v.get("path").string(), v.get("value").string()
			if path := v.get("path"); path != nil {
				f.Pos = path.pos
			}
			f.Scale, f.Map = int(v.get("scale").int()), mappings(v.get("map"))
		}
		if b.spec.Fields[f.Field].Type == IntField {
			b.integers(name, v)
		}
		fields = append(fields, f)
	})
	slices.SortFunc(fields, func(x, y Field) int { return cmp.Compare(x.Field, y.Field) })
	return fields
}

// integers checks that the constants of an integer field are integers, so that they do not reject every record.
func (b *builder) integers(name string, v *value) {
	if constant := v.get("value"); constant != nil {
		if _, err := strconv.ParseInt(constant.text, 10, 64); err != nil {
			b.add(constant.pos, constant.path, "", "the field %s is int, got %s", quote(name), quote(constant.text))
		}
	}
	v.get("map").each(func(_ string, to *value) {
		if !decimal.MatchString(to.text) {
			b.add(to.pos, to.path, "", "the field %s is int, got %s", quote(name), quote(to.text))
		}
	})
}

// shard checks that a source can tell the shard of its events.
func (b *builder) shard(source *value) {
	by, constant := b.root.get("shard_by"), source.get("shard")
	switch {
	case by == nil && constant != nil && !b.root.broken("shard_by"):
		b.add(constant.at, constant.path, "set shard_by too, or leave it out", "the job is not sharded")
	case by != nil && constant == nil && b.fields.has(by.text) && source.get("fields").get(by.text) == nil &&
		!source.broken("shard") && !source.broken("fields"):
		b.add(source.at, source.path, "add it to fields, or set shard to a constant", "the source does not fill the shard field %s", quote(by.text))
	}
}

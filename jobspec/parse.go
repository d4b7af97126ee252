package jobspec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Parse reads a spec: YAML, of which JSON is a part, of at most TextBytesMax bytes. The spec it returns is checked and
// has all defaults filled in, but its CEL expressions and the paths of its sources are not compiled. Every error is of
// type Problems and holds all problems, in order of the text, up to a hundred.
func Parse(text []byte) (*Spec, error) {
	root, problem := parseYAML(text)
	if problem != nil {
		return nil, Problems{problem}
	}
	c := &checker{lines: splitLines(text)}
	b := &builder{problemList: &c.problemList, spec: &Spec{Text: bytes.Clone(text)}}
	b.build(c.check(root, specShape(), "", Pos{root.Line, root.Column}))
	if problems := c.sorted(); len(problems) > 0 {
		return nil, problems
	}
	return b.spec, nil
}

// yamlLine finds the line in an error of the YAML library.
var yamlLine = regexp.MustCompile(`^(?:line ([0-9]+): )?((?s).*)$`)

// yamlLineShort finds the errors of the YAML library that count lines from 0.
var yamlLineShort = regexp.MustCompile(`^did not find expected (<document start>|'-' indicator|key|node content|',' or)`)

// yamlAnchor finds the name in the one error of the YAML library that comes without a line and is not of the first.
var yamlAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)

// parseYAML returns the root of the one document of a text.
func parseYAML(text []byte) (root *yaml.Node, problem *Problem) {
	start := Pos{1, 1}
	switch {
	case len(text) > TextBytesMax:
		return nil, &Problem{Pos: start, Message: fmt.Sprintf("a spec has at most %d bytes, got %d", TextBytesMax, len(text))}
	case !utf8.Valid(text):
		return nil, &Problem{Pos: start, Message: "a spec is UTF-8 text, got other bytes"}
	}
	// The library panics on some malformed texts by its own account ("please report"); a spec comes from strangers.
	defer func() {
		if recover() != nil {
			root, problem = nil, &Problem{Pos: start, Message: "the text is not valid YAML"}
		}
	}()
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var doc, next yaml.Node
	err := decoder.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return nil, &Problem{Pos: start, Message: "the spec is empty", Hint: "a spec starts with version: " + Version}
	}
	if err != nil {
		return nil, syntaxProblem(text, err)
	}
	switch err := decoder.Decode(&next); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, syntaxProblem(text, err)
	default:
		return nil, &Problem{Pos: Pos{max(next.Line, 1), max(next.Column, 1)}, Message: "a spec is one YAML document, got another one here"}
	}
	return doc.Content[0], nil
}

func syntaxProblem(text []byte, err error) *Problem {
	part := yamlLine.FindStringSubmatch(strings.TrimPrefix(err.Error(), "yaml: "))
	message := part[2]
	p := &Problem{Pos: Pos{1, 1}, Message: "not valid YAML: " + message}
	if strings.Contains(message, "cannot start any token") {
		p.Hint = "indent with spaces, and quote text that starts with a special character"
	}
	lines := splitLines(text)
	if anchor := yamlAnchor.FindStringSubmatch(message); anchor != nil {
		isLine := func(line string) bool { return strings.Contains(line, "*"+anchor[1]) }
		p.Pos.Line += max(slices.IndexFunc(lines, isLine), 0)
	} else if line, err := strconv.Atoi(part[1]); err == nil {
		if yamlLineShort.MatchString(message) {
			line++
		}
		p.Pos.Line = min(line, len(lines))
	}
	line := lines[p.Pos.Line-1]
	p.Pos.Column += utf8.RuneCountInString(line) - utf8.RuneCountInString(strings.TrimLeft(line, " \t"))
	return p
}

// builder fills a Spec from checked values and checks what relates distant places.
type builder struct {
	*problemList
	spec   *Spec
	root   *value
	kinds  declared
	fields declared
	summed map[string]bool // fields that reports sum
}

// declared is the names that sources have under "keys" or "fields".
type declared struct {
	names  []string // sorted
	unsure bool     // some could not be read, so that nothing can be called undeclared
}

func (d declared) has(name string) bool {
	_, found := slices.BinarySearch(d.names, name)
	return found
}

// number returns the number that stands for a name.
func (d declared) number(name string) int {
	n, _ := slices.BinarySearch(d.names, name)
	return n
}

func (b *builder) build(root *value) {
	if root == nil {
		return
	}
	b.root = root
	s := b.spec
	s.Version, s.Job = root.get("version").string(), root.get("job").string()
	b.collectNames()
	s.ShardBy = b.fieldName(root.get("shard_by"))
	s.User = b.fieldName(root.get("user"))
	b.session()
	w := root.get("watermark")
	s.Watermark = Watermark{w.get("delay").duration(), w.get("idle_after").duration(), w.get("max_ahead").duration()}
	s.Ignore = root.get("ignore").strings()
	b.scenarios()
	b.reports()
	b.fieldTypes()
	b.sources()
	b.sinks()
	s.RollbackWindow = root.get("rollback_window").duration()
	s.Approval = root.get("approval").string()
	b.freeze()
	b.canary()
	r := root.get("resources")
	s.Resources = Resources{MemoryBytes: r.get("memory").int()}
	if cpu := r.get("cpu"); cpu != nil {
		s.Resources.CPU = cpu.float
	}
	s.Expect = root.get("expect").strings()
	s.Limits.TimelineEvents = int(root.get("limits").get("timeline_events").int())
}

func (v *value) duration() time.Duration { return time.Duration(v.int()) }

// collectNames numbers the key kinds and fields of all sources.
func (b *builder) collectNames() {
	b.kinds = b.declaredIn("keys", KindsMax, "key kinds")
	b.fields = b.declaredIn("fields", FieldsMax, "fields")
	if sources := b.root.get("sources"); sources != nil && len(b.kinds.names) == 0 && !b.kinds.unsure {
		b.add(sources.at, sources.path, "give at least one source keys: {order: path}", "no source has keys, so nothing would link")
	}
}

// declaredIn returns the names that sources have under "keys" or "fields".
func (b *builder) declaredIn(part string, most int, what string) (d declared) {
	seen := map[string]bool{}
	sources := b.root.get("sources")
	d.unsure = sources == nil
	for _, sourceName := range sources.fieldNames() {
		source := sources.get(sourceName)
		d.unsure = d.unsure || source == nil || source.broken(part)
		for _, name := range source.get(part).fieldNames() {
			if seen[name] {
				continue
			}
			seen[name] = true
			if d.names = append(d.names, name); len(d.names) == most+1 {
				b.add(source.get(part).at, source.get(part).path, "", "a job has at most %d %s", most, what)
			}
		}
	}
	slices.Sort(d.names)
	return d
}

// fieldName returns the name of a declared field.
func (b *builder) fieldName(v *value) string {
	if v == nil {
		return ""
	}
	if !b.fields.unsure && !b.fields.has(v.text) {
		b.add(v.pos, v.path, nearestHint(v.text, b.fields.names), "no source declares the field %s", quote(v.text))
	}
	return v.text
}

func (b *builder) session() {
	v, s := b.root.get("session"), &b.spec.Session
	gap, gaps := v.get("gap").duration(), v.get("gaps")
	largest := gap
	for _, name := range b.kinds.names {
		kind := Kind{name, gap}
		if own := gaps.get(name); own != nil {
			kind.Gap = own.duration()
		}
		largest = max(largest, kind.Gap)
		b.spec.Kinds = append(b.spec.Kinds, kind)
	}
	gaps.each(func(name string, v *value) {
		if !b.kinds.unsure && !b.kinds.has(name) {
			b.add(v.at, v.path, nearestHint(name, b.kinds.names), "no source has keys of the kind %s", quote(name))
		}
	})
	*s = Session{Gap: gap, Settle: v.get("settle").duration(), MaxSpan: max(240*time.Hour, 2*largest),
		Retention: v.get("retention").duration()}
	if span := v.get("max_span"); span != nil {
		s.MaxSpan = span.duration()
		if s.MaxSpan < largest {
			b.add(span.pos, span.path, "leave it out for twice the largest gap", "max_span must be at least the largest gap, %s, got %s",
				FormatDuration(largest), quote(span.text))
		}
	}
}

func (b *builder) scenarios() {
	seen := map[string]bool{}
	for _, v := range b.root.get("scenarios").list() {
		s := Scenario{Name: v.get("name").string(), When: v.get("when").expr(), Severity: v.get("severity").string(), Pos: v.pos}
		if after := v.get("after"); after != nil {
			s.After = &After{From: after.get("from").expr(), Within: after.get("within").duration()}
		}
		if name := v.get("name"); name != nil && seen[name.text] {
			b.add(name.pos, name.path, "", "a scenario named %s exists already", quote(name.text))
		}
		seen[s.Name] = true
		b.spec.Scenarios = append(b.spec.Scenarios, s)
	}
}

func (v *value) expr() Expr {
	if v == nil {
		return Expr{}
	}
	return Expr{Text: v.text, Pos: v.pos}
}

func (b *builder) reports() {
	seen := map[string]bool{}
	b.summed = map[string]bool{}
	for _, v := range b.root.get("reports").list() {
		r := Report{Name: v.get("name").string(), Every: v.get("every").duration(), Pos: v.pos}
		if name := v.get("name"); name != nil && seen[name.text] {
			b.add(name.pos, name.path, "", "a report named %s exists already", quote(name.text))
		}
		seen[r.Name] = true
		by := v.get("by")
		for _, field := range by.list() {
			r.By = append(r.By, b.fields.number(b.fieldName(field)))
		}
		v.get("measures").each(func(name string, m *value) {
			if slices.Contains(by.strings(), name) {
				b.add(m.at, m.path, "", "%s is a field of `by` already; a measure needs a name of its own", quote(name))
			}
			r.Measures = append(r.Measures, b.measure(name, m))
		})
		b.spec.Reports = append(b.spec.Reports, r)
	}
}

func (b *builder) measure(name string, v *value) Measure {
	part := measureForm.re.FindStringSubmatch(v.text)
	op, arg := part[1], part[2]
	m := Measure{Name: name}
	declared := b.fields.has(arg)
	switch {
	case op == "count" && arg == "":
		m.Op = CountSessions
	case op == "count":
		m.Op = CountScenario
		m.Scenario = slices.IndexFunc(b.spec.Scenarios, func(s Scenario) bool { return s.Name == arg })
		if m.Scenario < 0 {
			var names []string
			for _, s := range b.spec.Scenarios {
				names = append(names, s.Name)
			}
			b.add(v.pos, v.path, nearestHint(arg, names), "unknown scenario %s", quote(arg))
		}
	case arg == "":
		b.add(v.pos, v.path, "count() counts sessions", "sum needs a field, duration or events")
	case (arg == "duration" || arg == "events") && declared:
		b.add(v.pos, v.path, "rename the field", "sum(%s) could mean the field %s or the session's own %s", arg, arg, arg)
	case arg == "duration":
		m.Op = SumDuration
	case arg == "events":
		m.Op = SumEvents
	case !declared && b.fields.unsure: // reported where the fields stand
	case !declared:
		b.add(v.pos, v.path, nearestHint(arg, append(slices.Clone(b.fields.names), "duration", "events")), "unknown field %s", quote(arg))
	default:
		m.Op, m.Field = SumField, b.fields.number(arg)
		b.summed[arg] = true
	}
	return m
}

// fieldTypes decides the type of every field: as declared, else int where a report sums it or a source scales it.
func (b *builder) fieldTypes() {
	for _, name := range b.fields.names {
		def := FieldDef{name, StringField}
		if b.summed[name] {
			def.Type = IntField
		}
		why := "a report sums it"
		declared := false
		var uses []*value
		b.root.get("sources").each(func(sourceName string, source *value) {
			use := source.get("fields").get(name)
			if !use.isObject() {
				return
			}
			uses = append(uses, use)
			switch given := FieldType(use.get("type").string()); {
			case given != "" && !declared:
				declared = true
				if def.Type != IntField {
					def.Type = given
					why = fmt.Sprintf("source %s says so", sourceName)
				}
			case given == "" && use.get("scale") != nil && def.Type != IntField && !declared:
				def.Type = IntField
				why = fmt.Sprintf("source %s scales it", sourceName)
			}
		})
		for _, use := range uses {
			given := use.get("type")
			switch {
			case given != nil && given.text != string(def.Type):
				b.add(given.pos, given.path, "", "the field %s is %s, because %s", quote(name), def.Type, why)
			case use.get("scale") != nil && def.Type == StringField:
				b.add(use.get("scale").pos, use.get("scale").path, "declare type: int", "only integers have a scale, and the field %s is %s, because %s",
					quote(name), def.Type, why)
			}
		}
		b.spec.Fields = append(b.spec.Fields, def)
	}
}

func (b *builder) sinks() {
	v := b.root.get("sinks")
	topic := v.get("topic")
	b.spec.Sinks = Sinks{Topic: topic.string(), Parquet: v.get("parquet").int() == 1}
	for i := range b.spec.Sources {
		if s := &b.spec.Sources[i]; topic != nil && s.Topic == topic.text {
			b.add(topic.pos, topic.path, "", "the source %s reads this topic; results need one of their own", s.Name)
		}
	}
}

func (b *builder) freeze() {
	for _, v := range b.root.get("freeze").list() {
		part := freezeForm.re.FindStringSubmatch(v.text)
		if from, to, _ := strings.Cut(strings.TrimSuffix(v.text, part[5]), "-"); from == to {
			b.add(v.pos, v.path, "", "a range from a moment to the same moment is empty")
		}
	}
	b.spec.Freeze = b.root.get("freeze").strings()
}

func (b *builder) canary() {
	v := b.root.get("canary")
	if v == nil {
		return
	}
	c := &Canary{By: b.fieldName(v.get("by")), WarmUp: v.get("warm_up").duration()}
	if by := v.get("by"); by != nil && b.fields.has(by.text) && by.text != b.spec.User && !b.root.broken("user") {
		b.add(by.pos, by.path, "leave it out, or make it the job's user field", "questions are about users: they cannot be divided by %s", c.By)
	}
	if v.get("by") == nil {
		if c.By = b.spec.User; c.By == "" && !b.root.broken("user") && !v.broken("by") {
			b.add(v.at, v.path, "set by, or the job's user field", "a canary needs a field to divide by")
		}
	}
	weight := 0
	for _, step := range v.get("steps").list() {
		s := CanaryStep{int(step.get("weight").int()), step.get("hold").duration()}
		if w := step.get("weight"); w != nil && s.Weight <= weight {
			b.add(w.pos, w.path, "", "weights must increase: expected more than %d, got %d", weight, s.Weight)
		}
		weight = max(weight, s.Weight)
		c.Steps = append(c.Steps, s)
	}
	v.get("gates").each(func(name string, gate *value) {
		if gate.shape.kind == exprShape && strings.ContainsAny(gate.text[:1], "<>=") {
			known := gatesOf(v).propNames()
			b.add(gate.at, gate.path, nearestHint(name, known), "unknown metric %s, and %s is no CEL expression", quote(name), quote(gate.text))
		}
		c.Gates = append(c.Gates, Gate{name, gate.text, gate.pos})
	})
	b.spec.Canary = c
}

// gatesOf returns the shape of a canary's gates.
func gatesOf(canary *value) *shape {
	p, _ := canary.shape.prop("gates")
	return p.shape
}

package registry

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weftdata/weft/jobspec"
)

// Effect says what a difference means for results.
type Effect string

// The effects, the farthest reaching first.
const (
	Links     Effect = "links"     // events link differently: sessions, and all that rests on them, change
	Decodes   Effect = "decodes"   // records are rejected, left out, dated or named differently
	Fields    Effect = "fields"    // sessions hold other values
	Late      Effect = "late"      // which events count as late, and when results are final
	Scenarios Effect = "scenarios" // only which scenarios sessions have
	Reports   Effect = "reports"   // only reports
	Operation Effect = "operation" // no result: how the job is run, tried and handed on
)

// Meaning returns a sentence for a person.
func (e Effect) Meaning() string {
	return map[Effect]string{
		Links:     "events link differently, so sessions change and all that rests on them",
		Decodes:   "records are rejected, left out, dated or named differently, so sessions may change",
		Fields:    "sessions hold other values; their events stay the same",
		Late:      "other events count as late, or results are final at another time",
		Scenarios: "only which scenarios sessions have",
		Reports:   "only reports",
		Operation: "no result changes",
	}[e]
}

// ChangeKind says what became of a part of a spec.
type ChangeKind string

// The kinds of changes.
const (
	Added   ChangeKind = "added"
	Removed ChangeKind = "removed"
	Changed ChangeKind = "changed"
)

// Difference is one part that two versions have differently.
type Difference struct {
	Path   string     `json:"path"` // such as sources.orders.keys.order
	Kind   ChangeKind `json:"kind"`
	Before string     `json:"before,omitempty"`
	After  string     `json:"after,omitempty"`
	Text   string     `json:"text"` // for a person
	Effect Effect     `json:"effect"`
}

// Diff returns what differs in the meaning of two versions, the farthest reaching first: order, comments and defaults that
// are written out are no differences.
func Diff(a, b Version) []Difference {
	before, errA := partsOf(&a)
	after, errB := partsOf(&b)
	for _, bad := range []struct {
		v   *Version
		err error
	}{{&a, errA}, {&b, errB}} {
		if bad.err != nil {
			return []Difference{{Kind: Changed, Effect: Links, Text: fmt.Sprintf("version %d cannot be compared: %v", bad.v.Number, bad.err)}}
		}
	}
	var list []Difference
	for path, x := range before {
		y, ok := after[path]
		switch {
		case !ok && !before.wholeIsGone(path, after):
			list = append(list, Difference{path, Removed, x.value, "", x.label + " is removed: it was " + x.value, x.effect})
		case ok && x.value != y.value:
			list = append(list, Difference{path, Changed, x.value, y.value, x.label + ": " + x.value + " becomes " + y.value, x.effect})
		}
	}
	for path, y := range after {
		if _, ok := before[path]; !ok && !after.wholeIsGone(path, before) {
			list = append(list, Difference{path, Added, "", y.value, y.label + " is added: " + y.value, y.effect})
		}
	}
	order := []Effect{Links, Decodes, Fields, Late, Scenarios, Reports, Operation}
	slices.SortFunc(list, func(x, y Difference) int {
		return cmp.Or(slices.Index(order, x.Effect)-slices.Index(order, y.Effect), strings.Compare(x.Path, y.Path))
	})
	return list
}

// part is one place of a spec that can differ.
type part struct {
	label, value string
	effect       Effect
	whole        string // path of the part that stands for this one where it is missing
}

type parts map[string]part

// wholeIsGone tells whether another spec lacks what the part belongs to: then that alone is told.
func (p parts) wholeIsGone(path string, other parts) bool {
	whole := p[path].whole
	if whole == "" {
		return false
	}
	_, ok := other[whole]
	return !ok
}

// add adds a part; an empty value is none.
func (p parts) add(effect Effect, whole, path, label, value string) {
	if value != "" {
		p[path] = part{label, value, effect, whole}
	}
}

func partsOf(v *Version) (parts, error) {
	spec, err := jobspec.Parse([]byte(v.Spec))
	if err != nil {
		return nil, err
	}
	p := parts{}
	for i := range spec.Sources {
		p.source(spec, &spec.Sources[i], v.Assets)
	}
	p.linking(spec)
	p.outcome(spec)
	p.operation(spec)
	return p, nil
}

func (p parts) source(spec *jobspec.Spec, s *jobspec.Source, assets map[string]AssetRef) {
	at, name := "sources."+s.Name, "source "+s.Name
	p.add(Links, "", at, name, "topic "+s.Topic)
	add := func(effect Effect, path, label, value string) { p.add(effect, at, at+"."+path, name+": "+label, value) }
	add(Decodes, "format", "format", formatText(&s.Format, assets))
	add(Decodes, "each", "elements", s.Each)
	for _, c := range s.Where {
		add(Decodes, "where."+c.Path, "only where "+c.Path+" is", strings.Join(c.Values, " or "))
	}
	add(Decodes, "time", "time", strings.TrimSpace(s.Time.Field+" "+s.Time.Layout+" "+s.Time.Zone))
	add(Decodes, "step", "step", stepText(&s.Step))
	for kind, paths := range gather(s.Keys, func(k jobspec.Key) (string, string) { return spec.Kinds[k.Kind].Name, k.Path }) {
		add(Links, "keys."+kind, "key "+kind, paths)
	}
	fields := gather(s.Fields, func(f jobspec.Field) (string, string) { return spec.Fields[f.Field].Name, fieldText(&f) })
	for field, text := range fields {
		effect := Fields
		if field == spec.ShardBy {
			effect = Links
		}
		add(effect, "fields."+field, "field "+field, text)
	}
	add(Decodes, "dedupe", "repeats are told by", strings.Join(s.Dedupe, ", "))
	add(Links, "shard", "shard", s.Shard)
}

// gather joins the texts of one name.
func gather[T any](list []T, of func(T) (name, text string)) map[string]string {
	all := map[string]string{}
	for _, x := range list {
		name, text := of(x)
		if all[name] != "" {
			text = all[name] + ", " + text
		}
		all[name] = text
	}
	return all
}

func formatText(f *jobspec.Format, assets map[string]AssetRef) string {
	text := f.Name
	add := func(name, value string) {
		if value != "" {
			text += " " + name + " " + value
		}
	}
	add("log_format", f.LogFormat)
	add("columns", strings.Join(f.Columns, ","))
	if f.Name == "csv" {
		add("delimiter", fmt.Sprintf("%q", f.Delimiter))
	}
	add("pattern", f.Pattern)
	add("schema", f.Schema)
	if ref, ok := assets[assetOf(f)]; ok {
		text += " with content " + ref.SHA256[:min(12, len(ref.SHA256))]
	}
	add("message", f.Message)
	if f.Confluent {
		text += " with a schema id"
	}
	return text
}

func mapText(list []jobspec.Mapping) string {
	text := ""
	for _, m := range list {
		text += fmt.Sprintf(" (%s is %s)", m.From, m.To)
	}
	return text
}

func stepText(s *jobspec.Step) string {
	if s.Field == "" {
		return fmt.Sprintf("always %q", s.Value)
	}
	return s.Field + mapText(s.Map)
}

func fieldText(f *jobspec.Field) string {
	text := f.Path
	if text == "" {
		text = fmt.Sprintf("always %q", f.Value)
	}
	if f.Scale > 0 {
		text += fmt.Sprintf(" with %d digits", f.Scale)
	}
	return text + mapText(f.Map)
}

// linking adds what decides which events make a session.
func (p parts) linking(s *jobspec.Spec) {
	p.add(Links, "", "shard_by", "shard field", s.ShardBy)
	for _, k := range s.Kinds {
		p.add(Links, "", "session.gaps."+k.Name, "gap of keys of kind "+k.Name, jobspec.FormatDuration(k.Gap))
	}
	p.add(Links, "", "session.max_span", "longest session", jobspec.FormatDuration(s.Session.MaxSpan))
	ignored := make([]string, len(s.Ignore))
	for i, value := range s.Ignore {
		ignored[i] = fmt.Sprintf("%q", value)
	}
	slices.Sort(ignored)
	p.add(Links, "", "ignore", "key values that never link", strings.Join(ignored, " "))
	for _, f := range s.Fields {
		p.add(Fields, "", "fields."+f.Name, "type of field "+f.Name, string(f.Type))
	}
	p.add(Fields, "", "user", "field of the user view", s.User)
	p.add(Fields, "", "limits.timeline_events", "events in a timeline", fmt.Sprint(s.Limits.TimelineEvents))
	p.add(Late, "", "session.retention", "retention", jobspec.FormatDuration(s.Session.Retention))
	p.add(Late, "", "watermark.delay", "watermark delay", jobspec.FormatDuration(s.Watermark.Delay))
	p.add(Late, "", "watermark.idle_after", "a partition is idle after", jobspec.FormatDuration(s.Watermark.IdleAfter))
	p.add(Late, "", "watermark.max_ahead", "a record moves time ahead by at most", jobspec.FormatDuration(s.Watermark.MaxAhead))
}

// outcome adds scenarios and reports.
func (p parts) outcome(s *jobspec.Spec) {
	p.add(Scenarios, "", "session.settle", "moment of decision after a session's end", jobspec.FormatDuration(s.Session.Settle))
	for _, x := range s.Scenarios {
		text := x.When.Text
		if x.After != nil {
			text += ", decided " + jobspec.FormatDuration(x.After.Within) + " after " + x.After.From.Text
		}
		at, name := "scenarios."+x.Name, "scenario "+x.Name
		p.add(Scenarios, "", at, name, text)
		p.add(Operation, at, at+".severity", name+": severity", x.Severity)
	}
	for _, r := range s.Reports {
		by := make([]string, len(r.By))
		for i, field := range r.By {
			by[i] = s.Fields[field].Name
		}
		at, name := "reports."+r.Name, "report "+r.Name
		p.add(Reports, "", at, name, strings.TrimSpace("every "+jobspec.FormatDuration(r.Every)+" "+strings.Join(by, ", ")))
		for _, m := range r.Measures {
			p.add(Reports, at, at+"."+m.Name, name+": "+m.Name, measureText(s, &m))
		}
	}
}

func measureText(s *jobspec.Spec, m *jobspec.Measure) string {
	switch m.Op {
	case jobspec.CountScenario:
		return "count(" + s.Scenarios[m.Scenario].Name + ")"
	case jobspec.SumField:
		return "sum(" + s.Fields[m.Field].Name + ")"
	case jobspec.SumDuration:
		return "sum(duration)"
	case jobspec.SumEvents:
		return "sum(events)"
	}
	return "count()"
}

// operation adds what changes no result.
func (p parts) operation(s *jobspec.Spec) {
	add := func(path, label, value string) { p.add(Operation, "", path, label, value) }
	add("sinks.topic", "topic of published sessions", s.Sinks.Topic)
	if s.Sinks.Parquet {
		add("sinks.parquet", "published Parquet files", "on")
	}
	add("rollback_window", "rollback window", jobspec.FormatDuration(s.RollbackWindow))
	add("approval", "approval", s.Approval)
	add("freeze", "no changes during", strings.Join(s.Freeze, ", "))
	add("resources.cpu", "processors", fmt.Sprint(s.Resources.CPU))
	add("resources.memory", "memory in bytes", fmt.Sprint(s.Resources.MemoryBytes))
	add("expect", "intended differences", strings.Join(slices.Sorted(slices.Values(s.Expect)), ", "))
	if s.Canary == nil {
		return
	}
	var steps []string
	for _, x := range s.Canary.Steps {
		steps = append(steps, fmt.Sprintf("%d%% for %s", x.Weight, jobspec.FormatDuration(x.Hold)))
	}
	warmUp := ""
	if s.Canary.WarmUp > 0 {
		warmUp = ", after a warm-up of at most " + jobspec.FormatDuration(s.Canary.WarmUp)
	}
	add("canary", "canary", "by "+s.Canary.By+": "+strings.Join(steps, ", ")+warmUp)
	gates := map[string]string{}
	for _, g := range s.Canary.Gates {
		gates[g.Name] = g.Text
	}
	for _, name := range slices.Sorted(maps.Keys(gates)) {
		p.add(Operation, "canary", "canary.gates."+name, "canary gate "+name, gates[name])
	}
}

// Package jobspec holds the job spec: what a correlation job reads, how records link, which scenarios and reports it
// computes. It parses YAML strictly and reports every problem at once, with line, column, what was expected and the
// nearest valid name.
package jobspec

import (
	"slices"
	"strings"
	"time"
)

// Version is the only version of the spec format so far.
const Version = "weft/v1"

// Pos is a place in the YAML text; lines and columns count from 1. The zero Pos is unknown.
type Pos struct{ Line, Column int }

// Expr is the text of a CEL expression and where it stands.
type Expr struct {
	Text string
	Pos  Pos
}

// Spec is a checked job spec with all defaults filled in.
//
// Sources are sorted by topic, Kinds and Fields by name, so that numbers stand for names and compare as they do.
type Spec struct {
	Version        string
	Job            string
	ShardBy        string // name of the field that shards the job; empty: one shard
	Sources        []Source
	Kinds          []Kind     // every key kind of every source, sorted by name
	Fields         []FieldDef // every field of every source, sorted by name
	Session        Session
	Watermark      Watermark
	User           string     // the field of the user view; empty: none
	Ignore         []string   // key values that never link; default "", "null", "0", "-"
	Scenarios      []Scenario // in the order of the text
	Reports        []Report   // in the order of the text
	Sinks          Sinks
	RollbackWindow time.Duration
	Approval       string   // "none" or "two_person"
	Freeze         []string // checked for form only
	Canary         *Canary
	Resources      Resources
	Expect         []string // intended differences from the version before: names of scenarios, or "sessions"
	Limits         Limits

	Text []byte // the YAML as given
}

// Source says how the records of one topic become events. A topic belongs to exactly one source.
type Source struct {
	Name   string
	Topic  string
	Pos    Pos
	Format Format
	Each   string      // path of an array whose elements are events; empty: the record is one event (json, avro, protobuf)
	Where  []Condition // all must hold, or the event is skipped (its index is still counted)
	Time   Time
	Step   Step
	Keys   []Key    // sorted by kind, then path
	Fields []Field  // sorted by name, then order of the text
	Dedupe []string // paths; events of this source that agree in all of them (and in step) count once
	Shard  string   // a constant in place of the shard field; empty: read the field
	// Parquet is the source's history that others wrote; nil: none, and files that are replayed have the paths as columns.
	Parquet *Parquet
}

// Parquet says how files that others wrote hold a source's records: a row each. Columns within columns have dots.
type Parquet struct {
	Path      string            // prefix of the files in the object store; empty: they are given to a replay only
	Value     string            // the column of whole records, in the source's format; empty: rows are records
	Columns   map[string]string // by path of the records; a path that is not here is a column of that name
	Partition string            // with Offset the columns of a record's place in the topic; empty: not known
	Offset    string
	Before    time.Time // events from here on are left out, since the topic's archive has them; zero: none
	Pos       Pos
}

// Paths lists the paths that the source reads, each once, in no order.
func (s *Source) Paths() (list []string) {
	add := func(path string) {
		if path != "" && !slices.Contains(list, path) {
			list = append(list, path)
		}
	}
	if s.Each != "" {
		add(s.Each) // with all that its elements have
		return append(list, s.rooted()...)
	}
	for _, path := range s.read() {
		add(path)
	}
	return list
}

// rooted lists the paths that count from the record although it has several events.
func (s *Source) rooted() (list []string) {
	for _, path := range s.read() {
		if strings.HasPrefix(path, "$") && !slices.Contains(list, path) {
			list = append(list, path)
		}
	}
	return list
}

func (s *Source) read() []string {
	list := append([]string{s.Time.Field, s.Step.Field}, s.Dedupe...)
	for _, c := range s.Where {
		list = append(list, c.Path)
	}
	for _, k := range s.Keys {
		list = append(list, k.Path)
	}
	for _, f := range s.Fields {
		list = append(list, f.Path)
	}
	return list
}

// Format names the format of a source's records and carries the options of that format.
type Format struct {
	Name string // json canal debezium maxwell nginx csv logfmt regex avro protobuf
	Pos  Pos

	LogFormat string   // nginx: the user's log_format string
	Columns   []string // csv: names of the columns, in order
	Delimiter string   // csv: one byte, default ","
	Pattern   string   // regex: RE2 with named groups
	Schema    string   // avro: the schema as JSON, or a file named relative to the spec; protobuf: file of a FileDescriptorSet
	Message   string   // protobuf: full name of the message
	Confluent bool     // avro, protobuf: records start with the Confluent wire header (magic 0, 4 byte schema id)
}

// Time says where an event's time stands.
type Time struct {
	Field  string
	Layout string // unix_s unix_ms unix_us unix_ns rfc3339, or a Go layout; empty: the format's own (nginx)
	Zone   string // IANA zone for layouts without one; default UTC
	Pos    Pos
}

// Step says which business step an event is: a constant, or a field's value, mapped where Map has it.
type Step struct {
	Field string
	Value string
	Map   []Mapping // in the order of the text
	Pos   Pos
}

// Mapping replaces one value by another.
type Mapping struct{ From, To string }

// Condition holds when the value at Path is one of Values.
type Condition struct {
	Path   string
	Values []string
	Pos    Pos
}

// Key takes the values at Path as link keys of the kind numbered Kind in Spec.Kinds.
type Key struct {
	Kind int
	Path string
	Pos  Pos
}

// Kind is one kind of link key and the gap within which its values link.
type Kind struct {
	Name string
	Gap  time.Duration
}

// FieldType is the type of a field's values.
type FieldType string

// The field types. Money is an integer of minor units.
const (
	StringField FieldType = "string"
	IntField    FieldType = "int"
)

// FieldDef is one field of the job; all sources that fill it agree on its type.
type FieldDef struct {
	Name string
	Type FieldType
}

// Field takes the value at Path (or the constant Value) for the field numbered Field in Spec.Fields.
type Field struct {
	Field int
	Path  string
	Value string // constant; used where Path is empty
	Scale int    // integer fields: decimal digits to shift, so that "6.00" with scale 2 is 600
	Map   []Mapping
	Pos   Pos
}

// Session bounds how far events link.
type Session struct {
	Gap       time.Duration
	Settle    time.Duration
	MaxSpan   time.Duration // at least the largest gap
	Retention time.Duration
}

// Watermark says how completeness of event time is estimated.
type Watermark struct {
	Delay     time.Duration
	IdleAfter time.Duration
	MaxAhead  time.Duration
}

// Scenario names a business situation.
type Scenario struct {
	Name     string
	When     Expr
	After    *After
	Severity string // info warning critical; default info
	Pos      Pos
}

// After is the moment at which a scenario is decided: From + Within. Later events do not count for it.
type After struct {
	From   Expr
	Within time.Duration
}

// Report counts sessions by window of their start and by fields.
type Report struct {
	Name     string
	Every    time.Duration
	By       []int // numbers of fields
	Measures []Measure
	Pos      Pos
}

// MeasureOp is what a measure computes.
type MeasureOp string

// The measures; all are exact under retraction.
const (
	CountSessions MeasureOp = "count"          // count()
	CountScenario MeasureOp = "count_scenario" // count(scenario)
	SumField      MeasureOp = "sum"            // sum(field), of an integer field
	SumDuration   MeasureOp = "sum_duration"   // sum(duration), in microseconds
	SumEvents     MeasureOp = "sum_events"     // sum(events)
)

// Measure is one column of a report.
type Measure struct {
	Name     string
	Op       MeasureOp
	Scenario int // CountScenario: number of the scenario
	Field    int // SumField: number of the field
}

// Sinks says where results go beside the store.
type Sinks struct {
	Topic   string
	Parquet bool
}

// Canary says how a candidate version is tried.
type Canary struct {
	By     string
	Steps  []CanaryStep
	Gates  []Gate
	WarmUp time.Duration // within which a candidate must have caught up; 0: as long as it gets nearer
}

// CanaryStep sends Weight percent of the queries to the candidate for at least Hold.
type CanaryStep struct {
	Weight int
	Hold   time.Duration
}

// Gate is one condition that a candidate must meet: a metric with a comparison such as ">= 0.999", or a CEL expression.
type Gate struct {
	Name string
	Text string
	Pos  Pos
}

// Resources bounds the process of one job version.
type Resources struct {
	CPU         float64
	MemoryBytes int64
}

// Limits bounds what one session may hold. None depends on the order of arrival.
type Limits struct {
	TimelineEvents int // least events by (time, identity) that a session's timeline lists; default 1000, at most 2048
}

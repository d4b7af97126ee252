// Package correlate is the operator core: it links events into sessions, classifies them and aggregates reports.
//
// It is pure. It does no I/O, reads no clock, starts no goroutine, takes no lock, writes no log and uses no randomness.
// A caller drives it:
//
//	c, err := correlate.New(config)          // or correlate.Restore(config, snapshot)
//	for each batch of decoded events {
//		c.Apply(batch, out)              // late events go out at once
//		c.Advance(watermark, out)        // what can no longer change goes out and is forgotten
//		c.Flush(out)                     // streaming: every session and report cell changed since the last Flush
//		snapshot = c.AppendSnapshot(snapshot[:0]) // when a checkpoint is due
//	}
//	c.Advance(event.MaxTime, out)            // the end of a bounded input
//
// The rows that are left after the last call are a function of the set of events alone: not of their order, nor of how
// they were cut into batches, nor of when snapshots were taken.
package correlate

import (
	"errors"
	"fmt"

	"github.com/weftdata/weft/event"
)

// Bounds of a Config. Numbers of kinds, fields, sources and reports fit 8 bits in the state.
const (
	KindsMax          = 250
	FieldsMax         = 250
	SourcesMax        = 250
	ReportsMax        = 250
	TimelineEventsMax = 2048
)

// Config is what a core computes. All numbers in events and rows refer to its slices.
type Config struct {
	Topics  []string // by source number; sorted, so that numbers compare as topics do
	Kinds   []Kind
	Fields  []Field
	Steps   []string // the steps that rules name; Facts.Steps is parallel to it
	Session Session
	// TimelineEvents bounds a timeline: a session lists its least events by (time, identity) and counts the rest.
	// 0 means 1000.
	TimelineEvents int
	Scenarios      []Scenario
	Reports        []Report
	Seed           uint64 // of the hash of key values; equal to the decoders'
	// Range is which sessions the core owns, by start; the zero value owns all. Others are linked but not handed out, and
	// events too far from the range to matter are passed over.
	Range Range
}

// Range is a half-open range of time, from From to before To. The zero Range is all of time.
type Range struct{ From, To event.Micros }

// all tells whether the range is unbounded.
func (r Range) all() bool { return r == Range{} }

// Contains tells whether t is in the range.
func (r Range) Contains(t event.Micros) bool { return r.all() || t >= r.From && t < r.To }

// Near returns the times of the events that can matter to the sessions of Range.
func (c *Config) Near() Range {
	if c.Range.all() {
		return Range{}
	}
	// Within a session's reach on either side every endless chain shows that it is one.
	reach := event.Micros(0)
	for _, k := range c.Kinds {
		reach = max(reach, k.Gap)
	}
	reach += c.Session.MaxSpan
	return Range{c.Range.From - reach, c.Range.To + reach}
}

// Kind is a kind of link key.
type Kind struct {
	Name string
	Gap  event.Micros // events that share a value link when their times differ by at most this
}

// Field is a group field.
type Field struct {
	Name string
	Int  bool
}

// Session holds the durations that bound sessions.
type Session struct {
	MaxSpan   event.Micros // a component that spans more is cut at multiples of it
	Settle    event.Micros // a scenario without a moment is decided this long after a session's end
	Retention event.Micros // events this far behind the watermark are late
}

// Op is what a measure computes.
type Op uint8

// The measures.
const (
	CountSessions Op = iota
	CountScenario    // Arg numbers the scenario
	SumField         // Arg numbers an integer field
	SumDuration      // microseconds
	SumEvents
)

// Measure is one integer of a report's cells.
type Measure struct {
	Name string
	Op   Op
	Arg  int
}

// Report counts sessions by the window of their start and by fields.
type Report struct {
	Name     string
	Every    event.Micros
	By       []int // numbers of fields
	Measures []Measure
}

// Validate reports everything wrong with the config.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Topics) == 0 || len(c.Topics) > SourcesMax {
		bad("%d sources: expected 1 to %d", len(c.Topics), SourcesMax)
	}
	for i := 1; i < len(c.Topics); i++ {
		if c.Topics[i-1] >= c.Topics[i] {
			bad("topics %q and %q are not in order", c.Topics[i-1], c.Topics[i])
		}
	}
	if len(c.Kinds) > KindsMax {
		bad("%d key kinds: at most %d", len(c.Kinds), KindsMax)
	}
	if len(c.Fields) > FieldsMax {
		bad("%d fields: at most %d", len(c.Fields), FieldsMax)
	}
	for _, k := range c.Kinds {
		if k.Gap < 0 || k.Gap > c.Session.MaxSpan {
			bad("key kind %s: gap %d is not between 0 and max_span %d", k.Name, k.Gap, c.Session.MaxSpan)
		}
	}
	if c.Session.MaxSpan <= 0 {
		bad("max_span %d is not positive", c.Session.MaxSpan)
	}
	if c.Session.Settle < 0 || c.Session.Retention < 0 {
		bad("settle and retention must not be negative")
	}
	if !c.Range.all() && c.Range.From >= c.Range.To {
		bad("range from %d to %d is empty", c.Range.From, c.Range.To)
	}
	if c.TimelineEvents < 0 || c.TimelineEvents > TimelineEventsMax {
		bad("timeline of %d events: expected 1 to %d", c.TimelineEvents, TimelineEventsMax)
	}
	if len(c.Reports) > ReportsMax {
		bad("%d reports: at most %d", len(c.Reports), ReportsMax)
	}
	for _, r := range c.Reports {
		if r.Every <= 0 {
			bad("report %s: window %d is not positive", r.Name, r.Every)
		}
		for _, f := range r.By {
			if f < 0 || f >= len(c.Fields) {
				bad("report %s: no field %d", r.Name, f)
			}
		}
		for _, m := range r.Measures {
			switch {
			case m.Op == CountScenario && (m.Arg < 0 || m.Arg >= len(c.Scenarios)):
				bad("report %s: measure %s: no scenario %d", r.Name, m.Name, m.Arg)
			case m.Op == SumField && (m.Arg < 0 || m.Arg >= len(c.Fields) || !c.Fields[m.Arg].Int):
				bad("report %s: measure %s: field %d is not an integer field", r.Name, m.Name, m.Arg)
			}
		}
	}
	return errors.Join(errs...)
}

// Output receives what the core decides. Rows and cells are valid only during the call. Sequence numbers increase by
// one with every change; of two changes to one session or cell the one with the higher number holds. An Output keeps
// its own errors: the core has none to handle.
type Output interface {
	Upsert(seq uint64, r *Row)
	Tombstone(seq uint64, id ID)
	Cell(seq uint64, c *Cell)
	Late(b *event.Batch, i int) // event i of the batch came later than Session.Retention behind the watermark
}

// Stats counts what a core holds and has seen.
type Stats struct {
	Events     int64 // accepted
	Duplicates int64 // dropped: their identity was known
	Folded     int64 // accepted, but equal to another event by their source's dedupe fields
	Late       int64
	Outside    int64 // passed over: too far from Config.Range

	OpenEvents   int64 // in live timelines
	OpenSessions int64
	OpenKeys     int64
	Cells        int64
	StateBytes   int64 // memory held for all of that
}

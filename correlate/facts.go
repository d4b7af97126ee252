package correlate

import "github.com/weftdata/weft/event"

// Facts is what a rule may know of a session: nothing of arrival, nothing of the clock. The core fills one Facts and
// reuses it, so a rule must not keep it.
//
// With a moment (Scenario.From), Start, End, Count, Steps and the methods describe the session as if events past Until
// did not exist.
type Facts struct {
	Start, End event.Micros
	Count      int64        // events of the session
	Steps      []StepFact   // by number in Config.Steps: the steps that rules name
	Until      event.Micros // event.MaxTime where the whole session counts
	Row        *Row         // the whole session; read through the methods below, which honour Until
}

// StepFact describes the events of one step. First and Last are 0 while Count is 0.
type StepFact struct {
	Count       int64
	First, Last event.Micros
}

// Has tells whether the session has a value for a field.
func (f *Facts) Has(field int) bool {
	v := &f.Row.Fields[field]
	return v.Present && v.First <= f.Until
}

// Text returns the value of a string field; nil where the session has none.
func (f *Facts) Text(field int) []byte {
	if v := &f.Row.Fields[field]; v.Present && v.First <= f.Until {
		return v.Text
	}
	return nil
}

// Int returns the value of an integer field; 0 where the session has none.
func (f *Facts) Int(field int) int64 {
	if v := &f.Row.Fields[field]; v.Present && v.First <= f.Until {
		return v.Int
	}
	return 0
}

// Keys calls yield for every value of a key kind, in order of value, until yield returns false.
func (f *Facts) Keys(kind int, yield func(value []byte) bool) {
	for i := range f.Row.Keys {
		if k := &f.Row.Keys[i]; k.Kind == kind && k.First <= f.Until && !yield(k.Value) {
			return
		}
	}
}

// KeyCount returns the number of distinct values of a key kind.
func (f *Facts) KeyCount(kind int) (n int64) {
	for i := range f.Row.Keys {
		if k := &f.Row.Keys[i]; k.Kind == kind && k.First <= f.Until {
			n++
		}
	}
	return n
}

// Events returns the timeline up to Until, in order.
func (f *Facts) Events() []RowEvent {
	n := len(f.Row.Events)
	for n > 0 && f.Row.Events[n-1].Time > f.Until {
		n--
	}
	return f.Row.Events[:n]
}

// Rule decides one thing about a session. It must be a pure function of the facts.
type Rule func(*Facts) bool

// Moment computes a time from a session; ok is false where the session has no such time (a step that did not happen).
type Moment func(*Facts) (at event.Micros, ok bool)

// Scenario is a compiled scenario.
type Scenario struct {
	Name string
	Text string // of the rule; equal texts mean equal rules
	When Rule
	// From and Within give the moment past which events do not count. A nil From means the whole session, decided
	// Config.Settle after its end. Scenarios with equal FromText and Within share one evaluation of the moment.
	From     Moment
	FromText string
	Within   event.Micros
}

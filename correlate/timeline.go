package correlate

import (
	"cmp"
	"maps"
	"slices"

	"github.com/weftdata/weft/event"
)

// overflow is what is kept of the events past a timeline's bound: enough that counts, and the folding of duplicates,
// stay exact whatever the order in which events arrived.
type overflow struct {
	steps []stepCount         // of events without dedupe fields, by step
	folds map[uint64]RowEvent // the least event of each value of the dedupe fields
}

type stepCount struct {
	step        uint32
	count       int64
	first, last event.Micros
}

func (o *overflow) add(e *RowEvent) {
	if e.fold != 0 {
		if o.folds == nil {
			o.folds = map[uint64]RowEvent{}
		}
		o.folds[e.fold] = *e
		return
	}
	o.count(stepCount{e.Step, 1, e.Time, e.Time})
}

func (o *overflow) count(c stepCount) {
	i, found := slices.BinarySearchFunc(o.steps, c.step, func(s stepCount, step uint32) int { return cmp.Compare(s.step, step) })
	if !found {
		o.steps = slices.Insert(o.steps, i, c)
		return
	}
	s := &o.steps[i]
	s.count += c.count
	s.first = min(s.first, c.first)
	s.last = max(s.last, c.last)
}

// each calls yield for every step of the overflow; a step may come more than once.
func (o *overflow) each(yield func(stepCount)) {
	if o == nil {
		return
	}
	for _, s := range o.steps {
		yield(s)
	}
	for _, e := range o.folds {
		yield(stepCount{e.Step, 1, e.Time, e.Time})
	}
}

// sortedFolds returns the folded events in order.
func (o *overflow) sortedFolds() []RowEvent {
	return slices.SortedFunc(maps.Values(o.folds), compareEvents)
}

func compareEvents(a, b RowEvent) int {
	switch {
	case a.less(&b):
		return -1
	case b.less(&a):
		return 1
	}
	return 0
}

// timeline is a sorted list of events with a bound, and what lies past the bound. It works on a copy or on a
// fragment's own block alike.
type timeline struct {
	events []RowEvent
	over   *overflow // nil while nothing was cut
	bound  int
}

// foldsInto tells whether e repeats an event of the timeline by its dedupe fields. If it does, the lesser of the two is to
// stay: either e is the one to drop, or the other was taken out and e is to be inserted.
func (t *timeline) foldsInto(e *RowEvent) (repeats, drop bool) {
	for i := range t.events {
		if x := &t.events[i]; x.fold == e.fold {
			if x.less(e) {
				return true, true
			}
			t.events = slices.Delete(t.events, i, i+1)
			return true, false
		}
	}
	if t.over != nil {
		if x, ok := t.over.folds[e.fold]; ok {
			if x.less(e) {
				return true, true
			}
			delete(t.over.folds, e.fold)
			return true, false
		}
	}
	return false, false
}

// insert puts an event in its place; past the bound the greatest goes to the overflow. events must have room for one
// more, or be at the bound.
func (t *timeline) insert(e *RowEvent) {
	n := len(t.events)
	// Below the bound nothing may lie in the overflow, except right after a fold took an event out: then e takes its place.
	if n == t.bound {
		last := &t.events[n-1]
		if !e.less(last) {
			t.cut(e)
			return
		}
		t.cut(last)
		n--
	} else {
		t.events = t.events[:n+1]
	}
	i := n
	for i > 0 && e.less(&t.events[i-1]) {
		i--
	}
	copy(t.events[i+1:], t.events[i:n])
	t.events[i] = *e
}

func (t *timeline) cut(e *RowEvent) {
	if t.over == nil {
		t.over = &overflow{}
	}
	t.over.add(e)
}

// merge takes in another timeline; it returns how many events were folded. events must have room for the union, or for
// the bound.
func (t *timeline) merge(from timeline) (folded int) {
	for i := range from.events {
		e := &from.events[i]
		if e.fold != 0 {
			repeats, drop := t.foldsInto(e)
			if repeats {
				folded++
			}
			if drop {
				continue
			}
		}
		t.insert(e)
	}
	if from.over == nil {
		return folded
	}
	// What the other cut is greater than all that it kept, so it stays past the bound here too.
	if t.over == nil {
		t.over = &overflow{}
	}
	for _, s := range from.over.steps {
		t.over.count(s)
	}
	for _, e := range from.over.sortedFolds() {
		repeats, drop := t.foldsInto(&e)
		if repeats {
			folded++
		}
		if !drop {
			t.over.add(&e)
		}
	}
	return folded
}

// count is the number of events that count.
func (t *timeline) count() int64 {
	n := int64(len(t.events))
	t.over.each(func(s stepCount) { n += s.count })
	return n
}

// end is the time of the last event that counts.
func (t *timeline) end() event.Micros {
	end := t.events[len(t.events)-1].Time
	t.over.each(func(s stepCount) { end = max(end, s.last) })
	return end
}

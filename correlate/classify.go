package correlate

import "github.com/weftdata/weft/event"

// evaluator decides scenarios. Those that share a moment share the facts up to it.
type evaluator struct {
	cfg     *Config
	whole   []int // scenarios over the whole session
	moments []moment
	facts   Facts // of the whole session
	part    Facts // up to a moment
	at      []event.Micros
	hit     []bool
}

type moment struct {
	from      Moment
	within    event.Micros
	scenarios []int
}

func (v *evaluator) init(cfg *Config) {
	v.cfg = cfg
	v.facts.Steps = make([]StepFact, len(cfg.Steps))
	v.part.Steps = make([]StepFact, len(cfg.Steps))
	v.at = make([]event.Micros, len(cfg.Scenarios))
	v.hit = make([]bool, len(cfg.Scenarios))
	type shared struct {
		text   string
		within event.Micros
	}
	byMoment := map[shared]int{}
	for i, s := range cfg.Scenarios {
		if s.From == nil {
			v.whole = append(v.whole, i)
			continue
		}
		key := shared{s.FromText, s.Within}
		m, ok := byMoment[key]
		if !ok {
			m = len(v.moments)
			byMoment[key] = m
			v.moments = append(v.moments, moment{from: s.From, within: s.Within})
		}
		v.moments[m].scenarios = append(v.moments[m].scenarios, i)
	}
}

// classify fills row.Hits. over holds the events past the timeline's bound.
func (v *evaluator) classify(row *Row, over *overflow) {
	row.Hits = row.Hits[:0]
	if len(v.hit) == 0 {
		return
	}
	f := &v.facts
	f.Row, f.Start, f.End, f.Count, f.Until = row, row.Start, row.End, row.Count, event.MaxTime
	clear(f.Steps)
	countSteps(f.Steps, row.Events)
	over.each(func(s stepCount) { addSteps(f.Steps, s) })
	clear(v.hit)
	for _, i := range v.whole {
		if v.cfg.Scenarios[i].When(f) {
			v.hit[i], v.at[i] = true, row.End+v.cfg.Session.Settle
		}
	}
	for k := range v.moments {
		m := &v.moments[k]
		at, ok := m.from(f)
		if !ok {
			continue
		}
		at += m.within
		seen := f
		if at < row.End {
			seen = v.until(row, over, at)
		}
		for _, i := range m.scenarios {
			if v.cfg.Scenarios[i].When(seen) {
				v.hit[i], v.at[i] = true, at
			}
		}
	}
	for i, hit := range v.hit {
		if hit {
			row.Hits = append(row.Hits, Hit{i, v.at[i]})
		}
	}
}

// until describes a session as of a moment. Of a step's events past the timeline's bound only the first, the last and
// the number are known: they all count if the last came in time, and one counts if only the first did. So whether a step
// happened is always exact, and how often is a lower bound in a session that was cut.
func (v *evaluator) until(row *Row, over *overflow, at event.Micros) *Facts {
	f := &v.part
	f.Row, f.Until = row, at
	events := f.Events()
	f.Start, f.End, f.Count = 0, 0, int64(len(events))
	if len(events) > 0 {
		f.Start, f.End = events[0].Time, events[len(events)-1].Time
	}
	clear(f.Steps)
	countSteps(f.Steps, events)
	over.each(func(s stepCount) {
		if s.first > at {
			return
		}
		if s.last > at {
			s.count, s.last = 1, s.first
		}
		f.Count += s.count
		f.End = max(f.End, s.last)
		addSteps(f.Steps, s)
	})
	return f
}

// addSteps adds the events of one step that lie past a timeline's bound, and so after what the timeline has.
func addSteps(steps []StepFact, s stepCount) {
	if int(s.step) >= len(steps) {
		return
	}
	n := &steps[s.step]
	if n.Count == 0 {
		n.First, n.Last = s.first, s.last
	}
	n.Count += s.count
	n.First = min(n.First, s.first)
	n.Last = max(n.Last, s.last)
}

// countSteps counts the steps that rules name; events come sorted by time.
func countSteps(steps []StepFact, events []RowEvent) {
	for i := range events {
		e := &events[i]
		if int(e.Step) >= len(steps) {
			continue
		}
		s := &steps[e.Step]
		if s.Count == 0 {
			s.First = e.Time
		}
		s.Count++
		s.Last = e.Time
	}
}

package correlate

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/weftdata/weft/event"
)

// emitted remembers a session that was handed out: what a later change must replace.
type emitted struct {
	id      ID
	next    uint32
	contrib uint32 // what it added to reports
}

// Flush hands out every session that changed since the last Flush and is not sealed yet, and every changed report cell.
func (c *Core) Flush(out Output) {
	for _, i := range c.dirty {
		p := c.comps.at(i)
		p.inDirty = false
		switch {
		case p.n == 0:
			c.releaseComp(i)
		case !p.over:
			c.touch(i, p)
			c.emit(out, false, c.fragsOf(p)...)
		default:
			c.touch(i, p)
			for k := p.frags; k != 0; k = c.frags.at(k).next {
				if c.frags.at(k).dirty {
					c.emit(out, false, k)
				}
			}
		}
	}
	c.dirty = c.dirty[:0]
	c.reports.flush(c, out)
}

// Pending returns about how many sessions and cells the next Flush hands out.
func (c *Core) Pending() int { return len(c.dirty) + len(c.reports.dirty) }

// emit hands out the session that fragments form, in place of what was handed out for them before. A final session
// leaves nothing behind to replace.
func (c *Core) emit(out Output, final bool, frags ...uint32) {
	row := &c.row
	over := c.fill(row, frags)
	owned := c.cfg.Range.Contains(row.Start)
	if owned {
		c.rules.classify(row, over)
	}
	number, contrib := uint32(0), c.contrib
	if owned {
		if !final {
			number, contrib = c.contribs.get()
		}
		c.reports.add(&c.cfg, row, contrib)
	}

	for _, k := range frags {
		f := c.frags.at(k)
		f.dirty = false
		for e := f.emitted; e != 0; {
			m := c.emitted.at(e)
			c.reports.retract(&c.cfg, c.contribs.at(m.contrib))
			if m.id != row.ID || !owned {
				c.seq++
				out.Tombstone(c.seq, m.id)
			}
			next := m.next
			c.contribs.put(m.contrib)
			c.emitted.put(e)
			e = next
		}
		f.emitted = 0
	}
	if !owned {
		return
	}
	if !final {
		owner := frags[0]
		for _, k := range frags[1:] {
			if c.startsBefore(k, owner) {
				owner = k
			}
		}
		e, m := c.emitted.get()
		*m = emitted{id: row.ID, contrib: number}
		c.frags.at(owner).emitted = e
	}
	c.seq++
	out.Upsert(c.seq, row)
}

func (c *Core) startsBefore(a, b uint32) bool {
	f, g := c.frags.at(a), c.frags.at(b)
	return c.blocks.at(f.class, f.block)[0].less(&c.blocks.at(g.class, g.block)[0])
}

// fill describes the session that fragments form, except for its scenarios, and returns its overflow.
func (c *Core) fill(row *Row, frags []uint32) *overflow {
	t := c.timeline(frags[0], c.frags.at(frags[0]))
	if len(frags) > 1 {
		t = c.joined(frags)
	}
	row.Events = t.events
	row.StepNames = c.steps.names
	row.ID = c.sessionID(&t.events[0])
	row.Start, row.End, row.Count = t.events[0].Time, t.events[len(t.events)-1].Time, int64(len(t.events))
	if t.over != nil {
		row.Count, row.End = t.count(), t.end()
	}

	row.Keys = row.Keys[:0]
	clear(row.Fields)
	for _, k := range frags {
		f := c.frags.at(k)
		for r := f.runs; r != 0; {
			run := c.keys.runs.at(r)
			if !run.dead {
				row.Keys = append(row.Keys, RowKey{int(run.kind), c.texts.get(run.text, int(run.len)), run.min})
			}
			r = run.fragNext
		}
		if f.fields == 0 {
			continue
		}
		fields := c.fieldBlock(f.fields)
		for i := range fields.n {
			if !fields.has(i) || row.Fields[i].Present && fields.time(i) > c.fieldBy[i].Time {
				continue
			}
			by := fields.by(i)
			if row.Fields[i].Present && !by.less(&c.fieldBy[i]) {
				continue
			}
			v := RowField{Present: true, First: by.Time}
			if c.cfg.Fields[i].Int {
				v.Int = int64(fields.value(i))
			} else {
				v.Text = c.fieldText(fields, i)
			}
			row.Fields[i] = v
			c.fieldBy[i] = by
		}
	}
	sortKeys(row)
	return t.over
}

// joined merges the timelines of several fragments into scratch memory.
func (c *Core) joined(frags []uint32) timeline {
	t := timeline{bound: c.cfg.TimelineEvents}
	n := 0
	for _, k := range frags {
		n += int(c.frags.at(k).n)
	}
	if n = min(n, t.bound); cap(c.merged) < n {
		c.merged = make([]RowEvent, 0, n)
	}
	t.events = c.merged[:0]
	for _, k := range frags {
		t.merge(c.timeline(k, c.frags.at(k)))
	}
	return t
}

// sortKeys sorts a row's keys by kind and value, each once with its least time.
func sortKeys(row *Row) {
	keys := row.Keys
	for i := 1; i < len(keys); i++ { // a session has a handful of keys
		if i > 32 {
			slices.SortFunc(keys, compareKeys)
			break
		}
		for j := i; j > 0 && compareKeys(keys[j], keys[j-1]) < 0; j-- {
			keys[j], keys[j-1] = keys[j-1], keys[j]
		}
	}
	row.Keys = slices.CompactFunc(keys, func(a, b RowKey) bool {
		return a.Kind == b.Kind && bytes.Equal(a.Value, b.Value)
	})
}

func compareKeys(a, b RowKey) int {
	if a.Kind != b.Kind {
		return a.Kind - b.Kind
	}
	if d := bytes.Compare(a.Value, b.Value); d != 0 {
		return d
	}
	switch {
	case a.First < b.First:
		return -1
	case a.First > b.First:
		return 1
	}
	return 0
}

// sessionID derives a session's id from its least event.
func (c *Core) sessionID(e *RowEvent) (id ID) {
	var b [34]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(e.Time))
	binary.LittleEndian.PutUint64(b[8:], c.topicHash[e.Source])
	binary.LittleEndian.PutUint64(b[16:], uint64(e.Offset))
	binary.LittleEndian.PutUint32(b[24:], uint32(e.Partition))
	binary.LittleEndian.PutUint16(b[28:], e.Index)
	h1, h2 := event.Hash(1, b[:]), event.Hash(2, b[:])
	binary.BigEndian.PutUint64(id[0:], uint64(e.Time/1000)<<16|h2&0xffff)
	binary.BigEndian.PutUint64(id[8:], h1)
	return id
}

// symbols numbers the names of steps. Names that rules mention come first and stay.
type symbols struct {
	names  []string
	byName map[string]uint32
	ruled  int // names that rules mention
	free   []uint32
}

func (s *symbols) init(ruled []string) {
	s.names = slices.Clone(ruled)
	s.ruled = len(ruled)
	s.byName = make(map[string]uint32, len(ruled))
	for i, n := range ruled {
		s.byName[n] = uint32(i)
	}
}

func (s *symbols) number(name []byte) uint32 {
	if n, ok := s.byName[string(name)]; ok {
		return n
	}
	var n uint32
	if k := len(s.free); k > 0 {
		n = s.free[k-1]
		s.free = s.free[:k-1]
		s.names[n] = string(name)
	} else {
		n = uint32(len(s.names))
		s.names = append(s.names, string(name))
	}
	s.byName[s.names[n]] = n
	return n
}

// forgetSteps drops the names that no live event has, when there are many: a step is a value from outside.
func (c *Core) forgetSteps() {
	s := &c.steps
	if len(s.byName) >= 2*s.ruled+4096 {
		c.dropSteps()
	}
}

func (c *Core) dropSteps() {
	s := &c.steps
	used := make([]bool, len(s.names))
	for i := range s.ruled {
		used[i] = true
	}
	c.eachFrag(func(i uint32, f *frag) {
		for _, e := range c.blocks.at(f.class, f.block)[:f.n] {
			used[e.Step] = true
		}
		if f.cut {
			c.over[i].each(func(n stepCount) { used[n.step] = true })
		}
	})
	for n, name := range s.names {
		if !used[n] && name != "" {
			delete(s.byName, name)
			s.names[n] = ""
			s.free = append(s.free, uint32(n))
		}
	}
}

// eachFrag calls yield for every live fragment in order of component.
func (c *Core) eachFrag(yield func(i uint32, f *frag)) {
	c.comps.each(func(_ uint32, p *comp) {
		for i := p.frags; p.n > 0 && i != 0; i = c.frags.at(i).next {
			yield(i, c.frags.at(i))
		}
	})
}

// Stats returns what the core holds and has seen.
func (c *Core) Stats() Stats {
	s := c.stats
	c.comps.each(func(_ uint32, p *comp) {
		if p.over {
			s.OpenSessions += int64(p.n)
		} else if p.n > 0 {
			s.OpenSessions++
		}
	})
	s.OpenKeys = c.keys.runs.live()
	s.Cells = int64(c.reports.n)
	s.StateBytes = c.StateBytes()
	return s
}

// StateBytes returns the memory that the state occupies, without the slack of Go maps.
func (c *Core) StateBytes() int64 {
	n := c.keys.bytes() + c.texts.bytes() + c.frags.bytes() + c.comps.bytes() + c.blocks.bytes() + c.fields.bytes() +
		c.emitted.bytes() + c.contribs.bytes() + c.seen.bytes() + c.reports.bytes() + int64(cap(c.dirty))*4
	for _, o := range c.over {
		n += int64(cap(o.steps))*32 + int64(len(o.folds))*72
	}
	return n
}

package correlate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/weftdata/weft/event"
)

// Spilling takes components that are settled but still linkable out of memory, and puts them back before anything can link
// to them. A caller keeps them somewhere and drives it:
//
//	for _, n := range c.Needs(batch, seed) { // before each Apply
//		Load every spilled component with a Reach that meets n
//	}
//	c.Apply(batch, out)
//	c.Spill(seed, bytes, Which{}, keep)      // when memory is short
//
// Then results are those of a core that never spilled. An event can only link to a component through a key value within
// reach of a run of it; so a component that is met by no need cannot tell that the event came, and the other way round.
// Loading one that is not needed does no harm. One whose Expiry is before Oldest may be forgotten.
//
// A component is spilled only when all it has to say was handed out. So its end hands out nothing, and needs nobody. Which.Unsaid
// takes others too. They have to be loaded once more before each Advance that takes Oldest past their Expiry, to be handed out.

// SpillBytesMax bounds a spilled component: one that takes more stays in memory, since it would be moved as a whole.
const SpillBytesMax = 4 << 20

// Spilled is a component on its way out of memory. It is reused: valid during the call that hands it over.
type Spilled struct {
	Bytes []byte  // what Load takes; docs/formats/spill.md describes it
	Reach []Reach // through which events can link to it
	IDs   []ID    // of the sessions that were handed out for it: Repair needs it loaded when one of them is asked for
	// Expiry is the last time at which an event could link to it, or, where that is earlier, to a session of it that was not
	// handed out.
	Expiry event.Micros
	Events int // in its timelines
}

// Reach is a key value, by its hash, and the times at which an event that has it links.
type Reach struct {
	Hash     uint64
	From, To event.Micros // both included
}

// Need is a key value of a batch, by its hash, and the least and the greatest time of the events that have it.
type Need struct {
	Hash     uint64
	From, To event.Micros
}

// Meets tells whether an event that is needed could link to a component.
func (r *Reach) Meets(n *Need) bool { return r.Hash == n.Hash && r.From <= n.To && n.From <= r.To }

// spillHash is stable: spilled components outlive the process that hashed, other than keyHash with the process's seed.
func spillHash(seed uint64, kind, group uint8, value []byte) uint64 {
	return keyHash(event.Hash(seed, value), kind, uint16(group))
}

// Oldest returns the least time of an event that is not late.
func (c *Core) Oldest() event.Micros {
	if c.watermark == event.MinTime {
		return event.MinTime
	}
	return c.watermark - c.retention
}

// needs collects the distinct key values of a batch.
type needs struct {
	list   []Need
	values []*event.Value // of list
	groups []uint8
	slots  []uint32 // open addressing: place in list, and 1
}

// Needs returns the distinct key values of the events of a batch that may be accepted. The slice is valid until the next
// call.
func (c *Core) Needs(b *event.Batch, seed uint64) []Need {
	s := &c.needs
	s.list, s.values, s.groups = s.list[:0], s.values[:0], s.groups[:0]
	if n := 2 * len(b.Values); n > len(s.slots) {
		size := 64
		for size < n {
			size *= 2
		}
		s.slots = make([]uint32, size)
	} else {
		clear(s.slots)
	}
	oldest, start := c.Oldest(), uint32(0)
	for i := range b.Events {
		e := &b.Events[i]
		values := b.Values[start:e.Vals]
		start = e.Vals
		if e.Time < oldest || !c.near.Contains(e.Time) {
			continue
		}
		for k := range values {
			if values[k].Kind == event.KeyValue {
				s.add(b, &values[k], e, seed)
			}
		}
	}
	return s.list
}

func (s *needs) add(b *event.Batch, v *event.Value, e *event.Event, seed uint64) {
	mask := uint64(len(s.slots) - 1)
	for i := keyHash(v.Bits, v.ID, e.Group) & mask; ; i = (i + 1) & mask {
		n := s.slots[i]
		if n == 0 {
			s.list = append(s.list, Need{spillHash(seed, v.ID, uint8(e.Group), b.Bytes(v)), e.Time, e.Time})
			s.values, s.groups = append(s.values, v), append(s.groups, uint8(e.Group))
			s.slots[i] = uint32(len(s.list))
			return
		}
		// Equal hashes do not make equal values: a need that is missed would be a link that is missed.
		if o := s.values[n-1]; o.Bits == v.Bits && o.ID == v.ID && s.groups[n-1] == uint8(e.Group) && bytes.Equal(b.Bytes(o), b.Bytes(v)) {
			need := &s.list[n-1]
			need.From, need.To = min(need.From, e.Time), max(need.To, e.Time)
			return
		}
	}
}

// hand is where in the wheel Spill goes on.
type hand struct {
	bucket int64  // number of the bucket
	prev   uint32 // the last component that it passed there; 0: none
	idle   event.Micros
}

// Which tells which components Spill takes.
type Which struct {
	Recent bool // those too whose last event is not long ago
	Unsaid bool // those too that changed since they were handed out, or never were
}

// Spill takes components out of the core until about so many bytes of memory are free again, and hands each to keep. It
// returns how many bytes became free.
func (c *Core) Spill(seed uint64, goal int64, which Which, keep func(*Spilled)) (freed int64) {
	before := c.UsedBytes()
	h, w := &c.hand, spiller{c: c, seed: seed, unsaid: which.Unsaid, keep: keep}
	for around := 0; around < 3; {
		at, found := slices.BinarySearchFunc(c.wheel.buckets, h.bucket, compareBucket)
		if at == len(c.wheel.buckets) {
			around++
			*h = hand{bucket: math.MinInt64, idle: c.idle(which.Unsaid)}
			continue
		}
		if !found {
			h.bucket, h.prev = c.wheel.buckets[at].number, 0
		}
		idle := h.idle
		if which.Recent {
			idle = event.MaxTime
		}
		if w.bucket(&c.wheel.buckets[at], h, idle, before-goal) {
			break
		}
	}
	if which.Unsaid {
		c.tidyDirty()
	}
	return before - c.UsedBytes()
}

// idle returns a time before which about a quarter of the components had their last event.
func (c *Core) idle(unsaid bool) event.Micros {
	const samples = 1024
	var times []event.Micros
	for i := uint32(1); i < c.comps.next; i += max(1, c.comps.next/samples) {
		if c.comps.chunks[i>>10] == nil {
			continue
		}
		if p := c.comps.at(i); p.n > 0 && (unsaid || !p.inDirty) {
			times = append(times, p.max)
		}
	}
	if len(times) == 0 {
		return event.MinTime
	}
	slices.Sort(times)
	return times[len(times)/4]
}

// spiller writes components and takes them out of the core.
type spiller struct {
	c      *Core
	seed   uint64
	unsaid bool
	keep   func(*Spilled)
	out    Spilled
}

// bucket goes on through a bucket of the wheel and spills what was idle since. It returns true once the core uses no more
// than so many bytes.
func (w *spiller) bucket(b *wheelBucket, h *hand, idle event.Micros, until int64) bool {
	c := w.c
	prev, at, spilled := h.prev, b.head, 0
	if prev != 0 {
		if p := c.comps.at(prev); p.inWheel && p.due == b.number {
			at = p.wheel
		} else {
			prev = 0
		}
	}
	for at != 0 {
		p := c.comps.at(at)
		next := p.wheel
		if p.n == 0 || p.max <= idle && (w.unsaid || !p.inDirty) && w.spill(p) {
			if prev == 0 {
				b.head = next
			} else {
				c.comps.at(prev).wheel = next
			}
			p.inWheel = false
			c.releaseComp(at)
			if spilled++; spilled%64 == 0 && c.UsedBytes() <= until {
				h.prev = prev
				return true
			}
		} else {
			prev = at
		}
		at = next
	}
	h.bucket, h.prev = b.number+1, 0
	return c.UsedBytes() <= until
}

// spill hands a component over and frees what it holds. It returns false where the component is too large, or about to be
// handed out.
func (w *spiller) spill(p *comp) bool {
	c, s := w.c, &w.out
	*s = Spilled{Bytes: s.Bytes[:0], Reach: s.Reach[:0], IDs: s.IDs[:0], Expiry: event.MinTime}
	due := event.MaxTime
	for i := p.frags; i != 0; i = c.frags.at(i).next {
		f := c.frags.at(i)
		end := c.expiry(f)
		s.Expiry = max(s.Expiry, end)
		if p.over && f.dirty { // each fragment is a session
			due = min(due, end)
		}
		s.Events += int(f.n)
		if s.Events > SpillBytesMax/eventBytesMin {
			return false
		}
		for r := f.runs; r != 0; {
			run := c.keys.runs.at(r)
			if gap := c.cfg.Kinds[run.kind].Gap; !run.dead {
				hash := spillHash(w.seed, run.kind, run.group, c.texts.get(run.text, int(run.len)))
				s.Reach = append(s.Reach, Reach{hash, run.min - gap, run.max + gap})
			}
			r = run.fragNext
		}
		for e := f.emitted; e != 0; e = c.emitted.at(e).next {
			s.IDs = append(s.IDs, c.emitted.at(e).id)
		}
	}
	s.Expiry = min(s.Expiry, due)
	if p.inDirty && s.Expiry < c.Oldest() {
		return false // it waits for the end of its bucket
	}
	w.write(p)
	if len(s.Bytes) > SpillBytesMax {
		return false
	}
	w.keep(s)
	for p.n > 0 {
		c.forgetFrag(p.frags, c.frags.at(p.frags))
	}
	return true
}

// write encodes a component by itself. Numbers of steps that rules do not name may mean another step when it comes back,
// so their names go with it. Report cells keep their numbers for as long as a session that counts in them can change.
func (w *spiller) write(p *comp) {
	c, s := w.c, &w.out
	for len(c.local) < len(c.steps.names) {
		c.local = append(c.local, 0)
	}
	var steps []uint32
	note := func(step uint32) {
		if int(step) >= c.steps.ruled && c.local[step] == 0 {
			steps = append(steps, step)
			c.local[step] = uint32(c.steps.ruled + len(steps)) // its number in the component, and 1
		}
	}
	for i := p.frags; i != 0; i = c.frags.at(i).next {
		f := c.frags.at(i)
		for _, e := range c.blocks.at(f.class, f.block)[:f.n] {
			note(e.Step)
		}
		if f.cut {
			o := c.over[i]
			for _, n := range o.steps {
				note(n.step)
			}
			for _, e := range o.sortedFolds() { // in order: numbers must not show the order of a map
				note(e.Step)
			}
		}
	}
	out := snapshotWriter{c: c, b: s.Bytes, local: c.local}
	out.int(int64(s.Expiry))
	out.uint(uint64(len(steps)))
	for _, n := range steps {
		out.text([]byte(c.steps.names[n]))
	}
	out.comp(p)
	for _, n := range steps {
		c.local[n] = 0
	}
	s.Bytes = out.b
}

// SpilledExpiry returns the Expiry of a spilled component from its bytes.
func SpilledExpiry(b []byte) (event.Micros, error) {
	v, n := binary.Varint(b)
	if n <= 0 {
		return 0, fmt.Errorf("%w: a spilled component is cut short", ErrSnapshotCorrupt)
	}
	return event.Micros(v), nil
}

// OwnsSpilled tells whether Owning would be true of a spilled component, by its bytes. It may be true where each fragment is
// a session and those in the range are gone.
func (c *Core) OwnsSpilled(b []byte) (bool, error) {
	r := snapshotReader{c: c, b: b, spilled: true}
	r.time(0)
	for range r.count(1) {
		r.text()
	}
	first := r.time(0)
	last := first + r.span()
	if r.err != nil {
		return false, r.err
	}
	return c.cfg.Range.all() || first < c.cfg.Range.To && last >= c.cfg.Range.From, nil
}

// Load puts a spilled component back and returns the number of events in its timelines. One that has expired meanwhile is
// passed over. After an error the core must not be used on.
func (c *Core) Load(b []byte) (events int, err error) {
	r := snapshotReader{c: c, b: b, spilled: true}
	oldest, before := c.Oldest(), c.stats.OpenEvents
	if expiry := r.time(0); r.err == nil && expiry < oldest {
		return 0, nil
	}
	for range r.count(1) {
		r.local = append(r.local, c.steps.number(r.text()))
	}
	if r.err != nil {
		return 0, r.err
	}
	i, p := c.comps.get()
	r.component(i, p)
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes are left over in a spilled component")
	}
	if r.err != nil {
		return 0, r.err
	}
	c.touch(i, p)
	// In memory these fragments would have been sealed one by one.
	for k := p.frags; p.over && k != 0; {
		f := c.frags.at(k)
		next := f.next
		if c.expiry(f) < oldest {
			c.forgetFrag(k, f)
		}
		k = next
	}
	return int(c.stats.OpenEvents - before), nil
}

// UsedBytes returns the memory of what is live. Unlike StateBytes it falls when something goes: what is free is used again
// before more is taken.
func (c *Core) UsedBytes() int64 {
	return c.keys.used() + c.texts.used() + c.frags.used() + c.comps.used() + c.blocks.used() + c.fields.used() +
		c.emitted.used() + c.contribs.used() + c.seen.bytes() + c.reports.used()
}

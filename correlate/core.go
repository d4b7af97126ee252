package correlate

import (
	"errors"

	"github.com/weftdata/weft/event"
)

// Core is the state of one shard. See the package comment for how to drive it. It is not safe for concurrent use.
//
// Events that are linked within one cell (the time between two multiples of max_span) form a fragment; fragments that
// are linked across cells form a component. Both only ever grow together. A component that spans at most max_span is one
// session; one that spans more is over, now and for ever, and each of its fragments is a session. So an endless chain
// is cut without undoing a link.
type Core struct {
	cfg       Config
	retention event.Micros
	gapMax    event.Micros
	near      Range // events that can matter to a session that starts in cfg.Range

	watermark event.Micros
	seq       uint64

	seen   seen
	keys   keyTable
	texts  texts
	frags  pool[frag]
	comps  pool[comp]
	blocks blocks
	fields strides[uint64]      // field blocks
	over   map[uint32]*overflow // by fragment
	steps  symbols
	wheel  wheel
	dirty  []uint32 // components with a changed fragment

	changed  changes
	emitted  pool[emitted]
	contribs strides[int64]
	reports  reports
	rules    evaluator

	stats Stats
	// scratch
	row       Row
	fieldBy   []RowEvent // the events that gave row.Fields
	merged    []RowEvent
	contrib   []int64
	list      []uint32
	heads     []uint32 // of the event being added: newest run per key value
	stepMap   []uint32 // of the batch being applied: number in steps by number in the batch
	topicHash []uint64
	forgot    event.Micros // up to where old identities and cells were dropped
	needs     needs
	hand      hand
	local     []uint32 // of the component being spilled: number in it by number in steps
}

// frag is a fragment: the events that are linked within one cell.
type frag struct {
	min, max   event.Micros // times of all events, folded ones included
	comp       uint32
	prev, next uint32 // in the component
	runs       uint32 // list of key runs
	block      uint32 // timeline
	fields     uint32
	emitted    uint32 // list of what was handed out for it
	n          uint16 // events in the timeline
	class      uint8  // of the block
	dirty      bool
	cut        bool // has an overflow
}

// comp is a component: fragments that are linked across cells.
type comp struct {
	min, max event.Micros
	frags    uint32 // list
	n        uint32 // fragments; 0: absorbed or gone, and free once neither list holds it
	due      int64  // number of the wheel's bucket
	wheel    uint32 // next in that bucket
	over     bool
	inWheel  bool
	inDirty  bool
	changed  bool // since the last snapshot
}

// fieldBlock holds a fragment's values of all fields: for each field the time of the least event that has it, then for
// each field the value, then what else identifies that event. Nearly always the time alone tells that an event is not
// the least, so the times stand together.
type fieldBlock struct {
	words []uint64
	n     int
}

// fieldWords is the number of words a field takes.
const fieldWords = 4

// noField is the time of a field without a value.
const noField = event.MaxTime

func (b fieldBlock) time(i int) event.Micros { return event.Micros(b.words[i]) }
func (b fieldBlock) has(i int) bool          { return b.time(i) != noField }

// value is the integer, or number<<16|length of a text.
func (b fieldBlock) value(i int) uint64 { return b.words[b.n+i] }

// by returns the event that gave the value, without its step.
func (b fieldBlock) by(i int) RowEvent {
	id := b.words[3*b.n+i]
	return RowEvent{Time: b.time(i), Offset: int64(b.words[2*b.n+i]), Partition: int32(id >> 32), Index: uint16(id >> 16), Source: uint16(id & 0xffff)}
}

func (b fieldBlock) set(i int, value uint64, e *RowEvent) {
	b.words[i] = uint64(e.Time)
	b.words[b.n+i] = value
	b.words[2*b.n+i] = uint64(e.Offset)
	b.words[3*b.n+i] = uint64(uint32(e.Partition))<<32 | uint64(e.Index)<<16 | uint64(e.Source)
}

// New returns an empty core.
func New(cfg Config) (*Core, error) {
	if cfg.TimelineEvents == 0 {
		cfg.TimelineEvents = 1000
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Core{
		cfg:       cfg,
		retention: cfg.Session.Retention,
		watermark: event.MinTime,
		forgot:    event.MinTime,
		seen:      newSeen(len(cfg.Topics)),
		over:      map[uint32]*overflow{},
	}
	for _, k := range cfg.Kinds {
		c.gapMax = max(c.gapMax, k.Gap)
	}
	c.near = cfg.Near()
	c.texts.init()
	c.fields.stride = max(1, fieldWords*len(cfg.Fields))
	c.steps.init(cfg.Steps)
	c.wheel.unit = max(c.gapMax/256, 1)
	c.reports.init(&c.cfg)
	c.contribs.stride = max(1, c.reports.stride)
	c.rules.init(&c.cfg)
	c.contrib = make([]int64, c.contribs.stride)
	c.row.Fields = make([]RowField, len(cfg.Fields))
	c.fieldBy = make([]RowEvent, len(cfg.Fields))
	for _, t := range cfg.Topics {
		c.topicHash = append(c.topicHash, event.Hash(0, []byte(t)))
	}
	return c, nil
}

// ErrFull says that a core holds as many events or keys as 32-bit numbers can name.
var ErrFull = errors.New("the state of one shard is full (4 billion items): use more shards")

// Watermark returns the watermark of the last Advance.
func (c *Core) Watermark() event.Micros { return c.watermark }

// Sequence returns the number of the last change handed out.
func (c *Core) Sequence() uint64 { return c.seq }

// Apply takes in the events of a batch. Late events go to out. After an error the core is unchanged.
func (c *Core) Apply(b *event.Batch, out Output) error {
	const full = 1<<32 - 1<<26 // a batch adds fewer than 2^26 of anything
	if uint64(c.keys.runs.next) > full || uint64(c.frags.next) > full || uint64(len(c.texts.chunks))*(textChunk/8) > full {
		return ErrFull
	}
	c.stepMap = c.stepMap[:0]
	for _, name := range b.Steps {
		c.stepMap = append(c.stepMap, c.steps.number(name))
	}
	oldest := event.MinTime
	if c.watermark != event.MinTime {
		oldest = c.watermark - c.retention
	}
	start := uint32(0)
	for i := range b.Events {
		e := &b.Events[i]
		values := b.Values[start:e.Vals]
		start = e.Vals
		if !c.near.Contains(e.Time) {
			c.stats.Outside++
			continue
		}
		if c.seen.has(e) {
			c.stats.Duplicates++
			continue
		}
		if e.Time < oldest {
			c.stats.Late++
			out.Late(b, i)
			continue
		}
		c.seen.add(e)
		c.stats.Events++
		c.add(b, e, values)
	}
	return nil
}

// add links one new event.
func (c *Core) add(b *event.Batch, e *event.Event, values []event.Value) {
	re := RowEvent{Time: e.Time, Offset: e.Offset, Partition: e.Partition, Index: e.Index, Source: e.Source, Step: c.stepMap[e.Step]}
	span := c.cfg.Session.MaxSpan
	cell := floor(e.Time, span)

	// Find the fragments of the runs in reach within the cell, and make them one.
	target, reach := uint32(0), event.Micros(0)
	c.heads = c.heads[:0]
	for i := range values {
		v := &values[i]
		if v.Kind != event.KeyValue {
			if v.Kind == event.DedupeValue {
				re.fold = event.Hash(uint64(e.Source)+1, b.Bytes(v)) | 1
			}
			continue
		}
		gap := c.cfg.Kinds[v.ID].Gap
		reach = max(reach, gap)
		head := c.keys.find(&c.texts, keyHash(v.Bits, v.ID, e.Group), v.ID, uint8(e.Group), b.Bytes(v))
		c.heads = append(c.heads, head)
		for r := head; r != 0; {
			run := c.keys.runs.at(r)
			if run.max+gap < e.Time {
				break
			}
			if run.min-gap <= e.Time && run.min >= cell && run.min-cell < span && run.frag != target {
				if target == 0 {
					target = run.frag
				} else {
					target = c.mergeFrags(target, run.frag)
				}
			}
			r = run.next
		}
	}
	if target == 0 {
		target = c.newFrag(e.Time, e.Time+reach)
	}
	f := c.frags.at(target)

	// Extend the runs or start new ones, and join the components of runs in reach in other cells.
	k := 0
	var fields fieldBlock
	for i := range values {
		v := &values[i]
		switch v.Kind {
		case event.KeyValue:
			c.addKey(target, c.heads[k], v, b.Bytes(v), e, cell)
			k++
		case event.StringValue, event.IntValue:
			if fields.words == nil {
				fields = c.fieldsOf(f)
			}
			c.setField(fields, v, b, &re)
		}
	}
	c.addEvent(target, f, &re)

	f.min = min(f.min, e.Time)
	f.max = max(f.max, e.Time)
	p := c.comps.at(f.comp)
	p.min = min(p.min, e.Time)
	p.max = max(p.max, e.Time)
	if !p.over && p.max-p.min > span {
		c.markOver(p)
	}
	c.markDirty(f)
}

// addKey gives an event in fragment to a key value whose newest run is head.
func (c *Core) addKey(fragment, head uint32, v *event.Value, value []byte, e *event.Event, cell event.Micros) {
	t := e.Time
	gap, span := c.cfg.Kinds[v.ID].Gap, c.cfg.Session.MaxSpan
	mine := uint32(0)
	for r := head; r != 0; {
		run := c.keys.runs.at(r)
		next := run.next
		if run.max+gap < t {
			break
		}
		if run.min-gap <= t {
			switch {
			case run.min < cell || run.min-cell >= span:
				c.union(c.frags.at(fragment).comp, c.frags.at(run.frag).comp)
			case mine == 0:
				mine = r
				run.min = min(run.min, t)
				run.max = max(run.max, t)
			default: // the event closes the gap between two runs: the older takes in the newer
				old := c.keys.runs.at(mine)
				c.keys.remove(&c.texts, mine)
				old.dead = true
				run.min = min(run.min, old.min)
				run.max = max(run.max, old.max)
				mine = r
			}
		}
		r = next
	}
	if mine != 0 {
		return
	}
	i, run := c.keys.runs.get()
	f := c.frags.at(fragment)
	*run = keyRun{
		hash: keyHash(v.Bits, v.ID, e.Group), kind: v.ID, group: uint8(e.Group), min: t, max: t,
		frag: fragment, fragNext: f.runs,
		text: c.texts.add(value), len: uint16(len(value)),
	}
	f.runs = i
	c.keys.add(&c.texts, head, i)
}

// fieldsOf returns the values of a fragment's fields, making room for them where it has none.
func (c *Core) fieldsOf(f *frag) fieldBlock {
	if f.fields != 0 {
		return c.fieldBlock(f.fields)
	}
	b := fieldBlock{n: len(c.cfg.Fields)}
	f.fields, b.words = c.fields.get()
	for i := range b.n {
		b.words[i] = uint64(noField)
	}
	return b
}

func (c *Core) fieldBlock(i uint32) fieldBlock { return fieldBlock{c.fields.at(i), len(c.cfg.Fields)} }

// setField takes over a field's value if e is the least event so far that has one.
func (c *Core) setField(fields fieldBlock, v *event.Value, b *event.Batch, e *RowEvent) {
	i := int(v.ID)
	if t := fields.time(i); e.Time >= t {
		if e.Time > t {
			return
		}
		if by := fields.by(i); !e.less(&by) {
			return
		}
	}
	c.dropField(fields, i)
	value := v.Bits
	if v.Kind == event.StringValue {
		text := b.Bytes(v)
		value = uint64(c.texts.add(text))<<16 | uint64(len(text))
	}
	fields.set(i, value, e)
}

// dropField frees the text of a field.
func (c *Core) dropField(fields fieldBlock, i int) {
	if fields.has(i) && !c.cfg.Fields[i].Int {
		c.texts.drop(uint32(fields.value(i)>>16), int(fields.value(i)&0xffff))
	}
}

// fieldText returns the text of a string field.
func (c *Core) fieldText(fields fieldBlock, i int) []byte {
	return c.texts.get(uint32(fields.value(i)>>16), int(fields.value(i)&0xffff))
}

// addEvent puts an event on a fragment's timeline.
func (c *Core) addEvent(fragment uint32, f *frag, e *RowEvent) {
	t := c.timeline(fragment, f)
	if e.fold != 0 {
		repeats, drop := t.foldsInto(e)
		if repeats {
			c.stats.Folded++
		}
		if drop {
			return
		}
	}
	if n := len(t.events); n == cap(t.events) && n < t.bound {
		c.grow(f, n+1)
		t.events = c.blocks.at(f.class, f.block)[:n]
	}
	before := int(f.n)
	t.insert(e)
	c.keep(fragment, f, &t, before)
}

// timeline returns a fragment's timeline; its events are the fragment's own block.
func (c *Core) timeline(fragment uint32, f *frag) timeline {
	t := timeline{bound: c.cfg.TimelineEvents}
	if f.n > 0 {
		t.events = c.blocks.at(f.class, f.block)[:f.n]
	}
	if f.cut {
		t.over = c.over[fragment]
	}
	return t
}

// keep stores what became of a timeline; before is the number of events the fragment had.
func (c *Core) keep(fragment uint32, f *frag, t *timeline, before int) {
	f.n = uint16(len(t.events))
	c.stats.OpenEvents += int64(len(t.events) - before)
	if t.over != nil && !f.cut {
		f.cut = true
		c.over[fragment] = t.over
	}
}

// grow moves a timeline to a block for n events.
func (c *Core) grow(f *frag, n int) {
	class := f.class
	for int(blockCaps[class]) < n {
		class++
	}
	if f.n > 0 && class == f.class {
		return
	}
	block := c.blocks.get(class)
	if f.n > 0 {
		copy(c.blocks.at(class, block), c.blocks.at(f.class, f.block)[:f.n])
	}
	if f.block != noBlock {
		c.blocks.put(f.class, f.block)
	}
	f.class, f.block = class, block
}

// noBlock marks a fragment without a timeline.
const noBlock = 1<<32 - 1

// newFrag makes a fragment, and a component around it, for an event at time t that can be linked to until expiry.
func (c *Core) newFrag(t, expiry event.Micros) uint32 {
	fi, f := c.frags.get()
	ci, p := c.comps.get()
	*f = frag{min: t, max: t, comp: ci, block: noBlock}
	*p = comp{min: t, max: t, frags: fi, n: 1}
	c.touch(ci, p)
	c.wheel.add(p, ci, expiry)
	return fi
}

// mergeFrags makes two fragments of one cell one, and returns the number of it.
func (c *Core) mergeFrags(a, b uint32) uint32 {
	c.union(c.frags.at(a).comp, c.frags.at(b).comp)
	if c.frags.at(a).n < c.frags.at(b).n {
		a, b = b, a
	}
	f, g := c.frags.at(a), c.frags.at(b)

	for r := g.runs; r != 0; {
		run := c.keys.runs.at(r)
		run.frag = a
		next := run.fragNext
		if next == 0 {
			run.fragNext, f.runs = f.runs, g.runs
		}
		r = next
	}

	if g.fields != 0 {
		if f.fields == 0 {
			f.fields = g.fields
		} else {
			mine, other := c.fieldBlock(f.fields), c.fieldBlock(g.fields)
			for i := range mine.n {
				if !other.has(i) {
					continue
				}
				if by, than := other.by(i), mine.by(i); by.less(&than) {
					c.dropField(mine, i)
					mine.set(i, other.value(i), &by)
				} else {
					c.dropField(other, i)
				}
			}
			c.fields.put(g.fields)
		}
	}

	before := int(f.n) + int(g.n)
	if n := min(before, c.cfg.TimelineEvents); n > int(f.n) {
		c.grow(f, n)
	}
	t := c.timeline(a, f)
	c.stats.Folded += int64(t.merge(c.timeline(b, g)))
	c.keep(a, f, &t, before)

	for i := g.emitted; i != 0; {
		m := c.emitted.at(i)
		next := m.next
		if next == 0 {
			m.next, f.emitted = f.emitted, g.emitted
		}
		i = next
	}
	f.min = min(f.min, g.min)
	f.max = max(f.max, g.max)
	g.emitted, g.runs, g.fields = 0, 0, 0
	c.freeFrag(b)
	c.markDirty(f)
	return a
}

// union makes two components one.
func (c *Core) union(a, b uint32) {
	if a == b {
		return
	}
	if c.comps.at(a).n < c.comps.at(b).n {
		a, b = b, a
	}
	p, q := c.comps.at(a), c.comps.at(b)
	lo, hi := min(p.min, q.min), max(p.max, q.max)
	if p.over || q.over || hi-lo > c.cfg.Session.MaxSpan {
		c.markOver(p)
		c.markOver(q)
		if q.due < p.due { // its first fragment must not wait for the other's
			a, b, p, q = b, a, q, p
		}
	}
	p.min, p.max = lo, hi
	for i := q.frags; i != 0; {
		f := c.frags.at(i)
		f.comp = a
		if f.dirty {
			c.markDirty(f)
		}
		next := f.next
		if next == 0 {
			f.next = p.frags
			c.frags.at(p.frags).prev = i
			p.frags = q.frags
		}
		i = next
	}
	p.n += q.n
	q.frags, q.n = 0, 0
	c.touch(b, q)
	c.releaseComp(b)
	if !p.over { // one session takes the place of two
		c.markDirty(c.frags.at(p.frags))
	}
}

// markOver turns every fragment of a component into a session of its own.
func (c *Core) markOver(p *comp) {
	if p.over {
		return
	}
	p.over = true
	for i := p.frags; i != 0; {
		f := c.frags.at(i)
		c.markDirty(f)
		i = f.next
	}
}

func (c *Core) markDirty(f *frag) {
	f.dirty = true
	p := c.comps.at(f.comp)
	c.touch(f.comp, p)
	if !p.inDirty {
		p.inDirty = true
		c.dirty = append(c.dirty, f.comp)
	}
}

// freeFrag takes a fragment out of its component and gives back its timeline.
func (c *Core) freeFrag(i uint32) {
	f := c.frags.at(i)
	p := c.comps.at(f.comp)
	if f.prev != 0 {
		c.frags.at(f.prev).next = f.next
	} else {
		p.frags = f.next
	}
	if f.next != 0 {
		c.frags.at(f.next).prev = f.prev
	}
	p.n--
	c.touch(f.comp, p)
	if f.block != noBlock {
		c.blocks.put(f.class, f.block)
	}
	if f.cut {
		delete(c.over, i)
	}
	c.frags.put(i)
}

// releaseComp frees the number of a component without fragments, once no list holds it.
func (c *Core) releaseComp(i uint32) {
	if p := c.comps.at(i); p.n == 0 && !p.inWheel && !p.inDirty {
		c.comps.put(i)
	}
}

// floor returns the greatest multiple of unit at or below t.
func floor(t, unit event.Micros) event.Micros {
	m := t % unit
	if m < 0 {
		m += unit
	}
	return t - m
}

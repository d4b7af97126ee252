package correlate

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/weftdata/weft/event"
)

// Restore returns the core that a chain describes: a snapshot and the parts after it, or parts alone, from Core.NeededPart
// on. What is in it from before that does no harm. The config must be that of the core that wrote them.
func Restore(cfg Config, chain ...[]byte) (*Core, error) {
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	bodies := make([][]byte, 0, len(chain))
	for i, s := range chain {
		body, err := c.open(s, i)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	needed := c.NeededPart()
	if needed == 0 {
		return nil, fmt.Errorf("%w: the %d of the chain do not hold all of the state", ErrSnapshotOrder, len(chain))
	}
	// A snapshot does not say what is gone, so nothing from before it may be looked at.
	unused := len(chain) - int(c.changed.number+1-needed)
	if err := c.restore(bodies[unused:]); err != nil {
		return nil, err
	}
	return c, nil
}

// open checks the frame of a snapshot or part at a place of the chain, and returns its body.
func (c *Core) open(s []byte, place int) ([]byte, error) {
	if len(s) < snapshotHeader+4 || string(s[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("%w: it does not start as a snapshot does", ErrSnapshotCorrupt)
	}
	body, sum := s[:len(s)-4], binary.LittleEndian.Uint32(s[len(s)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: its checksum does not match", ErrSnapshotCorrupt)
	}
	head := body[len(snapshotMagic):]
	if v := binary.LittleEndian.Uint32(head); v != snapshotVersion {
		return nil, fmt.Errorf("the snapshot has format version %d, this engine reads %d", v, snapshotVersion)
	}
	number, set := binary.LittleEndian.Uint64(head[4:]), binary.LittleEndian.Uint64(head[12:])
	if [sha256.Size]byte(head[20:]) != c.cfg.fingerprint() {
		return nil, ErrSnapshotConfig
	}
	switch {
	case number == 0:
		return nil, fmt.Errorf("%w: its number is 0", ErrSnapshotCorrupt)
	case place > 0 && number != c.changed.number+1:
		return nil, fmt.Errorf("%w: number %d after %d", ErrSnapshotOrder, number, c.changed.number)
	}
	c.changed.count(number, set)
	return body[snapshotHeader:], nil
}

// restore reads the bodies of a chain into an empty core. It trusts nothing: whatever the bytes, it ends with a
// consistent core or an error, in memory proportional to the bytes and to the greatest number.
func (c *Core) restore(bodies [][]byte) error {
	var chunks, cells, comps items
	for i, body := range bodies {
		r := snapshotReader{c: c, b: body}
		c.watermark = event.Micros(r.int())
		c.forgot = event.Micros(r.int())
		c.seq = r.uint()
		for _, n := range []*int64{&c.stats.Events, &c.stats.Duplicates, &c.stats.Folded, &c.stats.Late, &c.stats.Outside} {
			*n = r.int()
		}
		if i == len(bodies)-1 {
			r.symbols()
		} else {
			for range r.count(1) {
				r.text()
			}
		}
		r.items(&chunks)
		r.items(&cells)
		r.items(&comps)
		if r.err == nil && len(r.b) > 0 {
			r.fail("bytes are left over")
		}
		if r.err != nil {
			return r.err
		}
	}
	// Only now, when later items have taken the place of earlier ones, is it known what there is.
	if err := chunks.each(func(n uint32, r *snapshotReader) { r.chunk(n) }, c); err != nil {
		return err
	}
	if err := cells.each(func(n uint32, r *snapshotReader) { r.cell(n) }, c); err != nil {
		return err
	}
	c.reports.rebuild(max(64, len(c.reports.slots)))
	if err := comps.each(func(n uint32, r *snapshotReader) { r.comp(n) }, c); err != nil {
		return err
	}
	c.seen.numbers.gaps(func(chunk **seenChunk) bool { return *chunk == nil })
	c.reports.cells.gaps(func(cell *reportCell) bool { return cell.key == "" })
	c.comps.gaps(func(p *comp) bool { return p.n == 0 })
	c.changed.comps, c.reports.changed, c.seen.changed = nil, nil, nil
	return nil
}

// items holds numbered items in the order in which they were read; later ones take the place of earlier ones.
type items struct{ list []item }

type item struct {
	number uint32
	bytes  []byte // none: the item is gone
}

// each calls read for every item that is left, in order of number.
func (s *items) each(read func(n uint32, r *snapshotReader), c *Core) error {
	byNumber := func(a, b item) int { return cmp.Compare(a.number, b.number) }
	if !slices.IsSortedFunc(s.list, byNumber) { // a snapshot alone is
		slices.SortStableFunc(s.list, byNumber)
	}
	for i, it := range s.list {
		if len(it.bytes) == 0 || i+1 < len(s.list) && s.list[i+1].number == it.number {
			continue
		}
		r := snapshotReader{c: c, b: it.bytes}
		read(it.number, &r)
		if r.err == nil && len(r.b) > 0 {
			r.fail("bytes are left over in an item")
		}
		if r.err != nil {
			return r.err
		}
	}
	return nil
}

// items reads a list of items. Numbers may be high where there once were many items: the pools hold chunks only where
// there is something, so a number costs at most 8 bytes for each chunk below it.
func (r *snapshotReader) items(into *items) {
	for range r.listed() {
		n := r.uint()
		size := binary.LittleEndian.Uint32(r.bytes(4))
		if r.err == nil && (n == 0 || n > numberBound) {
			r.fail("the number of an item is out of range")
		}
		if r.err == nil && uint64(size) > uint64(len(r.b)) {
			r.fail("an item is cut short")
		}
		if r.err != nil {
			return
		}
		into.list = append(into.list, item{uint32(n), r.bytes(int(size))})
	}
}

// listed reads the number of items of a list; each takes at least 5 bytes.
func (r *snapshotReader) listed() uint32 {
	n := binary.LittleEndian.Uint32(r.bytes(4))
	if r.err == nil && uint64(n) > uint64(len(r.b)/5) {
		r.fail("more items than bytes")
		return 0
	}
	return n
}

const numberBound = 1<<32 - 1<<26

type snapshotReader struct {
	c   *Core
	b   []byte
	err error

	spilled bool     // b is a component that stands by itself
	local   []uint32 // its steps that rules do not name
	sealed  bool     // the fragment being read could not be linked to any more; its cells may be gone
}

func (r *snapshotReader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s, %d bytes before its end", ErrSnapshotCorrupt, what, len(r.b))
	}
	r.b = nil
}

func (r *snapshotReader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("a number is cut short")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *snapshotReader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("a number is cut short")
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads a number of items of at least size bytes each.
func (r *snapshotReader) count(size int) int {
	n := r.uint()
	if n > uint64(len(r.b)/size) {
		r.fail("more items than bytes")
		return 0
	}
	return int(n)
}

// below reads a number that must be below n.
func (r *snapshotReader) below(n int, what string) int {
	v := r.uint()
	if v >= uint64(n) {
		r.fail(what + " out of range")
		return 0
	}
	return int(v)
}

// Least sizes of items, which bound how many a snapshot can have.
const (
	eventBytesMin = 7
	fieldBytesMin = 7
)

const timeBound = event.Micros(1) << 60 // no sum of a few times overflows

func (r *snapshotReader) time(base event.Micros) event.Micros {
	v := event.Micros(r.int())
	if v < -timeBound || v > timeBound || base+v < -timeBound || base+v > timeBound {
		r.fail("a time out of range")
		return base
	}
	return base + v
}

func (r *snapshotReader) span() event.Micros {
	v := r.uint()
	if v > uint64(timeBound) {
		r.fail("a span out of range")
		return 0
	}
	return event.Micros(v)
}

func (r *snapshotReader) bytes(n int) []byte {
	if n > len(r.b) {
		r.fail("bytes are cut short")
		return make([]byte, min(n, 1024))
	}
	s := r.b[:n]
	r.b = r.b[n:]
	return s
}

func (r *snapshotReader) text() []byte {
	n := r.uint()
	if n > event.ValueBytesMax {
		r.fail("a text is too long")
		return nil
	}
	return r.bytes(int(n))
}

func (r *snapshotReader) flag() bool { return r.bytes(1)[0] == 1 }

func (r *snapshotReader) symbols() {
	s := &r.c.steps
	n := r.count(1)
	if n < s.ruled {
		r.fail("steps are missing")
		return
	}
	for i := range n {
		name := string(r.text())
		switch _, known := s.byName[name]; {
		case i < s.ruled:
			if s.names[i] != name {
				r.fail("steps differ")
				return
			}
		case name == "":
			s.names = append(s.names, "")
			s.free = append(s.free, uint32(i))
		case known:
			r.fail("a step comes twice")
			return
		default:
			s.names = append(s.names, name)
			s.byName[name] = uint32(i)
		}
	}
}

func (r *snapshotReader) chunk(n uint32) {
	k := seenKey{source: uint16(r.below(len(r.c.cfg.Topics), "a source")), partition: int32(r.int()), chunk: r.int()}
	chunk := &seenChunk{key: k, number: n, maxTime: event.Micros(r.int())}
	if r.flag() {
		for i := range chunk.first {
			chunk.first[i] = 1<<64 - 1
		}
	} else {
		for i := range chunk.first {
			chunk.first[i] = binary.LittleEndian.Uint64(r.bytes(8))
		}
	}
	v := uint32(0)
	for range r.count(1) {
		v += uint32(r.uint())
		if v&0xffff == 0 || chunk.find(v) < 0 {
			r.fail("an identity comes twice")
			return
		}
		chunk.insert(v)
	}
	if r.c.seen.chunks[k] != nil {
		r.fail("a chunk of identities comes twice")
	}
	if r.err != nil {
		return
	}
	r.c.seen.chunks[k] = chunk
	r.c.seen.more += int64(len(chunk.more))
	*r.c.seen.numbers.reserve(n) = chunk
}

func (r *snapshotReader) cell(n uint32) {
	p := &r.c.reports
	report := r.below(len(r.c.cfg.Reports), "a report")
	key := r.bytes(int(min(r.uint(), uint64(len(r.b)+1))))
	if r.err == nil && !validCell(key, len(r.c.cfg.Reports[report].By)) {
		r.fail("the key of a report cell is malformed")
	}
	if r.err != nil {
		return
	}
	hash := p.hash(report, key)
	if p.look(hash, report, key) != 0 {
		r.fail("a report cell comes twice")
		return
	}
	p.insertAt(n, hash, report, string(key))
	cell := p.cells.at(n)
	for k := range p.values(cell) {
		p.values(cell)[k] = r.int()
	}
	if r.flag() {
		p.touch(n, cell)
	}
	cell.changed = false
}

// validCell tells whether a key is a window in range and so many values.
func validCell(key []byte, values int) bool {
	if len(key) < 8 {
		return false
	}
	if w := event.Micros(binary.BigEndian.Uint64(key)); w < -timeBound || w > timeBound {
		return false
	}
	for rest := key[8:]; len(rest) > 0; values-- {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			return false
		}
		rest = rest[n+int(size):]
	}
	return values == 0
}

func (r *snapshotReader) comp(ci uint32) {
	p := r.c.comps.reserve(ci)
	r.component(ci, p)
	p.changed = false
}

func (r *snapshotReader) component(ci uint32, p *comp) {
	c := r.c
	p.min = r.time(0)
	p.max = p.min + r.span()
	p.over = r.flag()
	n := r.count(8)
	if n == 0 {
		r.fail("a component without fragments")
		return
	}
	tail := uint32(0)
	first := event.MaxTime
	for range n {
		fi, f := c.frags.get()
		*f = frag{comp: ci, block: noBlock, prev: tail}
		if tail == 0 {
			p.frags = fi
		} else {
			c.frags.at(tail).next = fi
		}
		tail = fi
		p.n++
		if r.frag(fi, f); r.err != nil {
			return
		}
		first = min(first, c.expiry(f))
	}
	c.wheel.add(p, ci, first)
}

func (r *snapshotReader) frag(i uint32, f *frag) {
	c := r.c
	f.min = r.time(0)
	f.max = f.min + r.span()
	if r.flag() {
		c.markDirty(f)
	}
	n := r.count(eventBytesMin)
	if n == 0 || n > c.cfg.TimelineEvents {
		r.fail("a timeline out of bounds")
		return
	}
	c.grow(f, n)
	events := c.blocks.at(f.class, f.block)[:n]
	last := RowEvent{Time: f.min}
	for k := range events {
		r.event(&events[k], &last)
		if k > 0 && !events[k-1].less(&events[k]) {
			r.fail("a timeline out of order")
			return
		}
	}
	f.n = uint16(n)
	c.stats.OpenEvents += int64(n)
	if o := r.overflow(); o != nil {
		f.cut = true
		c.over[i] = o
	}
	r.fields(f)
	r.runs(i, f)
	r.sealed = r.spilled && c.comps.at(f.comp).over && c.expiry(f) < c.Oldest()
	r.emitted(f)
}

func (r *snapshotReader) fields(f *frag) {
	c := r.c
	for range r.count(fieldBytesMin) {
		i := r.below(len(c.cfg.Fields), "a field")
		if r.err != nil {
			return
		}
		fields := c.fieldsOf(f)
		if fields.has(i) {
			r.fail("a field comes twice")
			return
		}
		by := RowEvent{Time: r.time(f.min), Source: uint16(r.bytes(1)[0]), Partition: int32(r.int()), Offset: r.int(), Index: uint16(r.uint())}
		value := uint64(0)
		if c.cfg.Fields[i].Int {
			value = uint64(r.int())
		} else {
			text := r.text()
			value = uint64(c.texts.add(text))<<16 | uint64(len(text))
		}
		fields.set(i, value, &by)
	}
}

func (r *snapshotReader) runs(i uint32, f *frag) {
	c := r.c
	n := r.count(5)
	tail := uint32(0)
	for range n {
		kind, group := r.bytes(1)[0], r.bytes(1)[0]
		if int(kind) >= len(c.cfg.Kinds) {
			r.fail("a key kind out of range")
		}
		lo := r.time(f.min)
		hi := lo + r.span()
		value := r.text()
		if len(value) == 0 {
			r.fail("an empty key")
		}
		if r.err != nil {
			return
		}
		hash := keyHash(event.Hash(c.cfg.Seed, value), kind, uint16(group))
		head := c.keys.find(&c.texts, hash, kind, group, value)
		ri, run := c.keys.runs.get()
		*run = keyRun{hash: hash, min: lo, max: hi, frag: i, text: c.texts.add(value), len: uint16(len(value)), kind: kind, group: group}
		c.keys.add(&c.texts, head, ri)
		if tail == 0 {
			f.runs = ri
		} else {
			c.keys.runs.at(tail).fragNext = ri
		}
		tail = ri
	}
}

func (r *snapshotReader) emitted(f *frag) {
	c := r.c
	tail := uint32(0)
	for range r.count(16) {
		ei, m := c.emitted.get()
		copy(m.id[:], r.bytes(16))
		var contrib []int64
		m.contrib, contrib = c.contribs.get()
		at := 0
		for k := range c.cfg.Reports {
			n := r.uint()
			if r.err == nil && !r.sealed && (n > numberBound || !c.reports.has(uint32(n), k)) {
				r.fail("no such report cell")
			}
			if r.err != nil {
				return
			}
			contrib[at] = int64(n)
			at++
			for range c.cfg.Reports[k].Measures {
				contrib[at] = r.int()
				at++
			}
		}
		if tail == 0 {
			f.emitted = ei
		} else {
			c.emitted.at(tail).next = ei
		}
		tail = ei
	}
}

func (r *snapshotReader) step() uint32 {
	if !r.spilled {
		return uint32(r.below(len(r.c.steps.names), "a step"))
	}
	ruled := r.c.steps.ruled
	n := r.below(ruled+len(r.local), "a step")
	if n < ruled || r.err != nil {
		return uint32(n)
	}
	return r.local[n-ruled]
}

func (r *snapshotReader) event(e, last *RowEvent) {
	e.Time = r.time(last.Time)
	e.Source = uint16(r.bytes(1)[0])
	e.Partition = int32(r.int())
	e.Offset = last.Offset + r.int()
	e.Index = uint16(r.uint())
	e.Step, e.fold = r.step(), 0
	if r.flag() {
		e.fold = binary.LittleEndian.Uint64(r.bytes(8))
	}
	if int(e.Source) >= len(r.c.cfg.Topics) {
		r.fail("a source out of range")
		e.Source = 0
	}
	*last = *e
}

func (r *snapshotReader) overflow() *overflow {
	if !r.flag() {
		return nil
	}
	o := &overflow{}
	for range r.count(4) {
		s := stepCount{step: r.step(), count: r.int()}
		s.first = r.time(0)
		s.last = r.time(0)
		o.count(s)
	}
	last := RowEvent{}
	for range r.count(eventBytesMin) {
		var e RowEvent
		r.event(&e, &last)
		if e.fold != 0 {
			o.add(&e)
		}
	}
	return o
}

package correlate

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/weftdata/weft/event"
)

// A snapshot is the whole state of a core; docs/formats/snapshot.md describes the bytes. Equal states that were reached
// by equal calls give equal bytes.

const (
	snapshotMagic   = "weftsnap"
	snapshotVersion = 1
	snapshotHeader  = len(snapshotMagic) + 4 + sha256.Size
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of Restore. ErrSnapshotConfig is the caller's mistake; ErrSnapshotCorrupt is damage.
var (
	ErrSnapshotConfig  = errors.New("the snapshot is of another job version: sources, keys, fields, steps, session bounds, scenarios or reports differ")
	ErrSnapshotCorrupt = errors.New("the snapshot is damaged")
)

// fingerprint covers everything that gives meaning to the numbers in a snapshot.
func (c *Config) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %v %v %q %+v %d %v\n", c.Topics, c.Kinds, c.Fields, c.Steps, c.Session, c.TimelineEvents, c.Reports)
	for _, s := range c.Scenarios {
		fmt.Fprintf(h, "%q %q %d\n", s.Name, s.FromText, s.Within)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// AppendSnapshot appends the state to dst.
func (c *Core) AppendSnapshot(dst []byte) []byte {
	start := len(dst)
	print := c.cfg.fingerprint()
	dst = append(dst, snapshotMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, snapshotVersion)
	dst = append(dst, print[:]...)

	w := snapshotWriter{c: c, b: dst}
	w.int(int64(c.watermark))
	w.int(int64(c.forgot))
	w.uint(c.seq)
	for _, n := range []int64{c.stats.Events, c.stats.Duplicates, c.stats.Folded, c.stats.Late} {
		w.int(n)
	}
	w.uint(uint64(len(c.steps.names)))
	for _, name := range c.steps.names {
		w.text([]byte(name))
	}
	w.seen()
	w.cells()
	live := 0
	for i := uint32(1); i < c.comps.next; i++ {
		if c.comps.at(i).n > 0 {
			live++
		}
	}
	w.uint(uint64(live))
	for i := uint32(1); i < c.comps.next; i++ {
		if p := c.comps.at(i); p.n > 0 {
			w.comp(p)
		}
	}
	return binary.LittleEndian.AppendUint32(w.b, crc32.Checksum(w.b[start:], castagnoli))
}

type snapshotWriter struct {
	c       *Core
	b       []byte
	cellNum map[uint32]uint64
}

func (w *snapshotWriter) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *snapshotWriter) int(v int64)   { w.b = binary.AppendVarint(w.b, v) }
func (w *snapshotWriter) text(s []byte) { w.b = appendText(w.b, s) }
func (w *snapshotWriter) flag(v bool) {
	if v {
		w.b = append(w.b, 1)
	} else {
		w.b = append(w.b, 0)
	}
}

func (w *snapshotWriter) seen() {
	keys := w.c.seen.keys()
	w.uint(uint64(len(keys)))
	for _, k := range keys {
		chunk := w.c.seen.chunks[k]
		w.uint(uint64(k.source))
		w.int(int64(k.partition))
		w.int(k.chunk)
		w.int(int64(chunk.maxTime))
		full := chunk.count() == seenSpan
		w.flag(full)
		if !full {
			for _, word := range chunk.first {
				w.b = binary.LittleEndian.AppendUint64(w.b, word)
			}
		}
		more := make([]uint32, 0, chunk.n)
		for _, v := range chunk.more {
			if v != 0 {
				more = append(more, v)
			}
		}
		slices.Sort(more)
		w.uint(uint64(len(more)))
		last := uint32(0)
		for _, v := range more {
			w.uint(uint64(v - last))
			last = v
		}
	}
}

func (w *snapshotWriter) cells() {
	r := &w.c.reports
	w.cellNum = make(map[uint32]uint64, r.n)
	w.uint(uint64(r.n))
	r.each(func(n uint32, cell *reportCell) {
		w.cellNum[n] = uint64(len(w.cellNum))
		w.uint(uint64(cell.report))
		w.text([]byte(cell.key))
		for _, m := range r.values(cell) {
			w.int(m)
		}
		w.flag(cell.dirty)
	})
}

func (w *snapshotWriter) comp(p *comp) {
	w.int(int64(p.min))
	w.uint(uint64(p.max - p.min))
	w.flag(p.over)
	w.uint(uint64(p.n))
	for i := p.frags; i != 0; i = w.c.frags.at(i).next {
		w.frag(i, w.c.frags.at(i))
	}
}

func (w *snapshotWriter) frag(i uint32, f *frag) {
	w.int(int64(f.min))
	w.uint(uint64(f.max - f.min))
	w.flag(f.dirty)
	w.uint(uint64(f.n))
	last := RowEvent{Time: f.min}
	for _, e := range w.c.blocks.at(f.class, f.block)[:f.n] {
		w.event(&e, &last)
	}
	w.overflow(w.c.over[i])

	w.fields(f)
	n := 0
	for r := f.runs; r != 0; r = w.c.keys.runs.at(r).fragNext {
		if !w.c.keys.runs.at(r).dead {
			n++
		}
	}
	w.uint(uint64(n))
	for r := f.runs; r != 0; {
		run := w.c.keys.runs.at(r)
		if !run.dead {
			w.uint(uint64(run.kind))
			w.int(int64(run.min - f.min))
			w.uint(uint64(run.max - run.min))
			w.text(w.c.texts.get(run.text, int(run.len)))
		}
		r = run.fragNext
	}

	n = 0
	for e := f.emitted; e != 0; e = w.c.emitted.at(e).next {
		n++
	}
	w.uint(uint64(n))
	for e := f.emitted; e != 0; {
		m := w.c.emitted.at(e)
		w.b = append(w.b, m.id[:]...)
		contrib := w.c.contribs.at(m.contrib)
		for at := 0; at < w.c.reports.stride; {
			number := uint32(contrib[at])
			w.uint(w.cellNum[number])
			at++
			for range w.c.cfg.Reports[w.c.reports.cells.at(number).report].Measures {
				w.int(contrib[at])
				at++
			}
		}
		e = m.next
	}
}

func (w *snapshotWriter) fields(f *frag) {
	if f.fields == 0 {
		w.uint(0)
		return
	}
	fields := w.c.fieldBlock(f.fields)
	n := uint64(0)
	for i := range fields.n {
		if fields.has(i) {
			n++
		}
	}
	w.uint(n)
	for i := range fields.n {
		if !fields.has(i) {
			continue
		}
		by := fields.by(i)
		w.uint(uint64(i))
		w.int(int64(by.Time - f.min))
		w.b = append(w.b, byte(by.Source))
		w.int(int64(by.Partition))
		w.int(by.Offset)
		w.uint(uint64(by.Index))
		if w.c.cfg.Fields[i].Int {
			w.int(int64(fields.value(i)))
		} else {
			w.text(w.c.fieldText(fields, i))
		}
	}
}

func (w *snapshotWriter) event(e, last *RowEvent) {
	w.int(int64(e.Time - last.Time))
	w.b = append(w.b, byte(e.Source))
	w.int(int64(e.Partition))
	w.int(e.Offset - last.Offset)
	w.uint(uint64(e.Index))
	w.uint(uint64(e.Step))
	w.flag(e.fold != 0)
	if e.fold != 0 {
		w.b = binary.LittleEndian.AppendUint64(w.b, e.fold)
	}
	*last = *e
}

func (w *snapshotWriter) overflow(o *overflow) {
	w.flag(o != nil)
	if o == nil {
		return
	}
	w.uint(uint64(len(o.steps)))
	for _, s := range o.steps {
		w.uint(uint64(s.step))
		w.int(s.count)
		w.int(int64(s.first))
		w.int(int64(s.last))
	}
	w.uint(uint64(len(o.folds)))
	last := RowEvent{}
	for _, e := range o.sortedFolds() {
		w.event(&e, &last)
	}
}

// Restore returns the core that AppendSnapshot described. The config must be that of the core that wrote it.
func Restore(cfg Config, snapshot []byte) (*Core, error) {
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	if len(snapshot) < snapshotHeader+4 || string(snapshot[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("%w: it does not start as a snapshot does", ErrSnapshotCorrupt)
	}
	body, sum := snapshot[:len(snapshot)-4], binary.LittleEndian.Uint32(snapshot[len(snapshot)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: its checksum does not match", ErrSnapshotCorrupt)
	}
	if v := binary.LittleEndian.Uint32(body[len(snapshotMagic):]); v != snapshotVersion {
		return nil, fmt.Errorf("the snapshot has format version %d, this engine reads %d", v, snapshotVersion)
	}
	if [sha256.Size]byte(body[len(snapshotMagic)+4:]) != c.cfg.fingerprint() {
		return nil, ErrSnapshotConfig
	}
	if err := c.restore(body[snapshotHeader:]); err != nil {
		return nil, err
	}
	return c, nil
}

// restore reads the body of a snapshot into an empty core. It trusts nothing: whatever the bytes, it ends with a
// consistent core or an error, in memory proportional to the bytes.
func (c *Core) restore(body []byte) error {
	r := snapshotReader{c: c, b: body}
	c.watermark = event.Micros(r.int())
	c.forgot = event.Micros(r.int())
	c.seq = r.uint()
	for _, n := range []*int64{&c.stats.Events, &c.stats.Duplicates, &c.stats.Folded, &c.stats.Late} {
		*n = r.int()
	}
	r.symbols()
	r.seen()
	r.cells()
	for range r.count(8) {
		if r.comp(); r.err != nil {
			break
		}
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes are left over")
	}
	return r.err
}

type snapshotReader struct {
	c   *Core
	b   []byte
	err error
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

func (r *snapshotReader) seen() {
	for range r.count(5) {
		k := seenKey{source: uint16(r.below(len(r.c.cfg.Topics), "a source"))}
		k.partition = int32(r.int())
		k.chunk = r.int()
		chunk := &seenChunk{maxTime: event.Micros(r.int())}
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
		r.c.seen.chunks[k] = chunk
	}
}

func (r *snapshotReader) cells() {
	p := &r.c.reports
	for range r.count(3) {
		report := r.below(len(r.c.cfg.Reports), "a report")
		key := r.bytes(int(min(r.uint(), uint64(len(r.b)+1))))
		if r.err == nil && !validCell(key, len(r.c.cfg.Reports[report].By)) {
			r.fail("the key of a report cell is malformed")
		}
		if r.err != nil {
			return
		}
		hash := event.Hash(uint64(report), key)
		if p.look(hash, report, key) != 0 {
			r.fail("a report cell comes twice")
			return
		}
		n := p.insert(hash, report, string(key))
		cell := p.cells.at(n)
		for k := range p.values(cell) {
			p.values(cell)[k] = r.int()
		}
		if r.flag() {
			p.touch(n, cell)
		}
	}
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

func (r *snapshotReader) comp() {
	c := r.c
	ci, p := c.comps.get()
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
	n := r.count(4)
	tail := uint32(0)
	for range n {
		kind := uint8(r.below(len(c.cfg.Kinds), "a key kind"))
		lo := r.time(f.min)
		hi := lo + r.span()
		value := r.text()
		if len(value) == 0 {
			r.fail("an empty key")
		}
		if r.err != nil {
			return
		}
		hash := keyHash(event.Hash(c.cfg.Seed, value), kind)
		head := c.keys.find(&c.texts, hash, kind, value)
		ri, run := c.keys.runs.get()
		*run = keyRun{hash: hash, min: lo, max: hi, frag: i, text: c.texts.add(value), len: uint16(len(value)), kind: kind}
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
			n := 1 + r.below(c.reports.n, "a report cell")
			if r.err == nil && int(c.reports.cells.at(uint32(n)).report) != k {
				r.fail("a cell of another report")
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

func (r *snapshotReader) event(e, last *RowEvent) {
	e.Time = r.time(last.Time)
	e.Source = uint16(r.bytes(1)[0])
	e.Partition = int32(r.int())
	e.Offset = last.Offset + r.int()
	e.Index = uint16(r.uint())
	e.Step = uint32(r.below(len(r.c.steps.names), "a step"))
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
		s := stepCount{step: uint32(r.below(len(r.c.steps.names), "a step")), count: r.int()}
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

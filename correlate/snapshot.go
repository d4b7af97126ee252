package correlate

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"
)

// A snapshot is the whole state of a core. A part is what changed since the snapshot or part before it, and one share of
// everything else, whether it changed or not: the shares rotate, so that after some parts everything older is superseded.
// No part holds the whole state of a core that is large, and the parts that a restore needs are few and together about
// twice the state. docs/formats/snapshot.md describes the bytes and why it holds. Equal states that were reached by equal
// calls give equal bytes.
//
// Both are made of items with numbers of their own: chunks of identities, report cells, components. A later item takes the
// place of an earlier one with its number, or says that it is gone, so that parts can be put together without knowing what
// is in an item.

const (
	snapshotMagic   = "weftsnap"
	snapshotVersion = 2
	snapshotHeader  = len(snapshotMagic) + 4 + 8 + 8 + sha256.Size
)

// Numbers of items are divided into shares: 64, so that a set of them is a word, by 16 neighbours, so that a chunk of a
// pool has a block of each.
const (
	shares     = 64
	shareBlock = chunkItems / shares
	allShares  = 1<<shares - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of Restore. ErrSnapshotConfig and ErrSnapshotOrder are the caller's mistake; ErrSnapshotCorrupt is damage.
var (
	ErrSnapshotConfig  = errors.New("the snapshot is of another job version: sources, keys, fields, steps, session bounds, scenarios or reports differ")
	ErrSnapshotOrder   = errors.New("the parts do not follow one another, or the first ones are missing")
	ErrSnapshotCorrupt = errors.New("the snapshot is damaged")
)

// fingerprint covers everything that gives meaning to the numbers in a snapshot.
func (c *Config) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %v %v %q %+v %d %v %v\n", c.Topics, c.Kinds, c.Fields, c.Steps, c.Session, c.TimelineEvents, c.Reports, c.Range)
	for _, s := range c.Scenarios {
		fmt.Fprintf(h, "%q %q %q %d\n", s.Name, s.Text, s.FromText, s.Within)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// changes lists the components that changed since the last snapshot or part. One may be listed twice; its own flag
// tells whether it still has to be written. Cells and identities keep such lists of their own.
type changes struct {
	comps  []uint32
	number uint64         // of the last snapshot or part; 0: none
	shares [shares]uint64 // number of the last one that holds all of a share
	// Average bytes of the components last written: of those that had changed, and of those of a share.
	hot, cold uint64
}

// AppendSnapshot appends the whole state to dst. The cost is that of all that is open.
func (c *Core) AppendSnapshot(dst []byte) []byte {
	return c.appendState(dst, allShares)
}

// AppendPart appends what changed since the last AppendSnapshot or AppendPart, and the shares that were last written
// longest ago. It writes at most about twice what changed, and a 64th of the state. The parts from NeededPart on restore
// the core.
func (c *Core) AppendPart(dst []byte) []byte {
	if c.changed.number == 0 {
		return c.appendState(dst, allShares) // nothing was written, so everything changed
	}
	// About as many bytes of unchanged components as of changed ones, which are often larger: then few parts go by until all
	// are written, if much changes, and all of those together are no more than the state, and the state once again.
	n := 1 + uint64(len(c.changed.comps))*shares*max(1, c.changed.hot)/(uint64(max(1, c.comps.live()))*max(1, c.changed.cold))
	var set uint64
	for range min(n, shares) {
		oldest := -1
		for k := range shares {
			if set&(1<<k) == 0 && (oldest < 0 || c.changed.shares[k] < c.changed.shares[oldest]) {
				oldest = k
			}
		}
		set |= 1 << oldest
	}
	return c.appendState(dst, set)
}

// PartNumber returns the number of the last snapshot or part that was written or restored, 0 where there is none.
func (c *Core) PartNumber() uint64 { return c.changed.number }

// NeededPart returns the number of the first snapshot or part that Restore needs; those after it are needed too.
func (c *Core) NeededPart() uint64 { return slices.Min(c.changed.shares[:]) }

// appendState appends what changed, and all items of a set of shares.
func (c *Core) appendState(dst []byte, set uint64) []byte {
	start := len(dst)
	c.changed.count(c.changed.number+1, set)
	print := c.cfg.fingerprint()
	dst = append(dst, snapshotMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, snapshotVersion)
	dst = binary.LittleEndian.AppendUint64(dst, c.changed.number)
	dst = binary.LittleEndian.AppendUint64(dst, set)
	dst = append(dst, print[:]...)

	w := snapshotWriter{c: c, b: dst}
	w.int(int64(c.watermark))
	w.int(int64(c.forgot))
	w.uint(c.seq)
	for _, n := range []int64{c.stats.Events, c.stats.Duplicates, c.stats.Folded, c.stats.Late, c.stats.Outside} {
		w.int(n)
	}
	w.uint(uint64(len(c.steps.names)))
	for _, name := range c.steps.names {
		w.text([]byte(name))
	}
	chunks, cells, comps := c.sharesOf(set)
	var changed []uint32
	if set != allShares { // where everything is written, nobody needs to be told what is gone
		chunks = append(chunks, c.seen.changed...)
		cells = append(cells, c.reports.changed...)
		changed = c.changed.comps
	}
	w.chunks(chunks)
	w.cells(cells)
	w.list(func() uint32 {
		begin := len(w.b)
		cold := w.comps(comps)
		middle := len(w.b)
		hot := w.comps(changed)
		if cold > 0 && hot > 0 {
			c.changed.cold, c.changed.hot = uint64(middle-begin)/uint64(cold), uint64(len(w.b)-middle)/uint64(hot)
		}
		return cold + hot
	})
	c.seen.changed, c.reports.changed, c.changed.comps = c.seen.changed[:0], c.reports.changed[:0], c.changed.comps[:0]
	return binary.LittleEndian.AppendUint32(w.b, crc32.Checksum(w.b[start:], castagnoli))
}

// count notes that a part with a number, and a set of shares, was written or read.
func (c *changes) count(number uint64, set uint64) {
	c.number = number
	for k := range c.shares {
		if set&(1<<k) != 0 {
			c.shares[k] = number
		}
	}
}

// sharesOf returns the numbers of all items of a set of shares, and marks them as changed so that they are written.
func (c *Core) sharesOf(set uint64) (chunks, cells, comps []uint32) {
	c.seen.numbers.eachOf(set, func(i uint32, place **seenChunk) {
		if *place != nil {
			(*place).changed = true
			chunks = append(chunks, i)
		}
	})
	c.reports.cells.eachOf(set, func(i uint32, cell *reportCell) {
		if cell.key != "" {
			cell.changed = true
			cells = append(cells, i)
		}
	})
	c.comps.eachOf(set, func(i uint32, p *comp) {
		if p.n > 0 {
			p.changed = true
			comps = append(comps, i)
		}
	})
	return chunks, cells, comps
}

// eachOf is each for the items of a set of shares.
func (p *pool[T]) eachOf(set uint64, yield func(i uint32, t *T)) {
	for k, chunk := range p.chunks {
		if chunk == nil {
			continue
		}
		for left := set; left != 0; left &= left - 1 {
			first := bits.TrailingZeros64(left) * shareBlock
			for j := range chunk[first : first+shareBlock] {
				if i := uint32(k*chunkItems + first + j); i > 0 && i < p.next {
					yield(i, &chunk[first+j])
				}
			}
		}
	}
}

// touch notes that a component changed.
func (c *Core) touch(i uint32, p *comp) {
	if !p.changed {
		p.changed = true
		c.changed.comps = append(c.changed.comps, i)
	}
}

type snapshotWriter struct {
	c     *Core
	b     []byte
	local []uint32 // numbers of steps, and 1, in a component that stands by itself; 0, or none, where a number stays
}

// item appends a number and what write appends, with its length before it. An item of length 0 is gone.
func (w *snapshotWriter) item(number uint32, write func()) {
	w.uint(uint64(number))
	at := len(w.b)
	w.b = append(w.b, 0, 0, 0, 0)
	if write != nil {
		write()
	}
	binary.LittleEndian.PutUint32(w.b[at:], uint32(len(w.b)-at-4))
}

// list appends the number of items that write appends, and them.
func (w *snapshotWriter) list(write func() (n uint32)) {
	at := len(w.b)
	w.b = append(w.b, 0, 0, 0, 0)
	n := write() // before w.b is looked at: it moves
	binary.LittleEndian.PutUint32(w.b[at:], n)
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

func (w *snapshotWriter) chunks(numbers []uint32) {
	w.list(func() (n uint32) {
		for _, i := range numbers {
			chunk := *w.c.seen.numbers.at(i)
			if chunk != nil && !chunk.changed {
				continue
			}
			n++
			if chunk == nil {
				w.item(i, nil)
				continue
			}
			chunk.changed = false
			w.item(i, func() { w.chunk(chunk) })
		}
		return n
	})
}

func (w *snapshotWriter) chunk(chunk *seenChunk) {
	w.uint(uint64(chunk.key.source))
	w.int(int64(chunk.key.partition))
	w.int(chunk.key.chunk)
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

func (w *snapshotWriter) cells(numbers []uint32) {
	r := &w.c.reports
	w.list(func() (n uint32) {
		for _, i := range numbers {
			cell := r.cells.at(i)
			if !cell.changed {
				continue
			}
			cell.changed = false
			n++
			if cell.key == "" {
				w.item(i, nil)
				continue
			}
			w.item(i, func() {
				w.uint(uint64(cell.report))
				w.text([]byte(cell.key))
				for _, m := range r.values(cell) {
					w.int(m)
				}
				w.flag(cell.dirty)
			})
		}
		return n
	})
}

// comps appends components that were not appended yet, and returns how many.
func (w *snapshotWriter) comps(numbers []uint32) (n uint32) {
	for _, i := range numbers {
		p := w.c.comps.at(i)
		if !p.changed {
			continue
		}
		p.changed = false
		n++
		if p.n == 0 {
			w.item(i, nil)
			continue
		}
		w.item(i, func() { w.comp(p) })
	}
	return n
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
			w.b = append(w.b, run.kind, run.group)
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
			w.uint(uint64(number))
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

func (w *snapshotWriter) step(n uint32) {
	if w.local != nil && w.local[n] != 0 {
		n = w.local[n] - 1
	}
	w.uint(uint64(n))
}

func (w *snapshotWriter) event(e, last *RowEvent) {
	w.int(int64(e.Time - last.Time))
	w.b = append(w.b, byte(e.Source))
	w.int(int64(e.Partition))
	w.int(e.Offset - last.Offset)
	w.uint(uint64(e.Index))
	w.step(e.Step)
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
		w.step(s.step)
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

package correlate

import (
	"encoding/binary"
	"strconv"

	"github.com/weftdata/weft/event"
)

// reports holds the live cells. A session's contribution is kept as (cell, measures) per report, so that a change takes
// back exactly what was added.
type reports struct {
	seed     uint64
	stride   int // int64s of a contribution: a cell and the measures, per report
	cells    pool[reportCell]
	measures []strides[int64] // by report
	slots    []uint64         // open addressing: upper half of the hash, number of the cell
	n        int              // cells
	keyBytes int64
	dirty    []uint32
	changed  []uint32
	key      []byte
	num      []byte
	cell     Cell
}

// reportCell is one cell. Its key is the window and the values of the report's fields, each with its length before it.
type reportCell struct {
	key      string
	hash     uint64
	measures uint32
	report   uint8
	dirty    bool // changed since it was handed out
	changed  bool // changed since the last snapshot
}

func (r *reports) init(cfg *Config) {
	r.seed = cfg.Seed
	for _, p := range cfg.Reports {
		r.stride += 1 + len(p.Measures)
		r.measures = append(r.measures, strides[int64]{stride: 1 + len(p.Measures)})
	}
}

// hash is seeded, since the values in a key come from outside.
func (r *reports) hash(report int, key []byte) uint64 {
	return event.Hash(r.seed+uint64(report), key)
}

// window returns the start of a cell's window.
func (c *reportCell) window() event.Micros {
	return event.Micros(binary.BigEndian.Uint64([]byte(c.key[:8])))
}

// values returns the number of a cell's sessions, then its measures.
func (r *reports) values(c *reportCell) []int64 { return r.measures[c.report].at(c.measures) }

// add counts a session in its cells and writes down what it added.
func (r *reports) add(cfg *Config, row *Row, contrib []int64) {
	at := 0
	for i := range cfg.Reports {
		p := &cfg.Reports[i]
		n := r.find(cfg, i, row)
		cell := r.cells.at(n)
		sums := r.values(cell)
		m := contrib[at+1 : at+1+len(p.Measures)]
		contrib[at] = int64(n)
		at += 1 + len(p.Measures)
		sums[0]++
		for k := range p.Measures {
			m[k] = measure(&p.Measures[k], row)
			sums[1+k] += m[k]
		}
		r.touch(n, cell)
	}
	clear(contrib[at:])
}

// retract takes back what a session added.
func (r *reports) retract(cfg *Config, contrib []int64) {
	at := 0
	for i := range cfg.Reports {
		n := uint32(contrib[at])
		at++
		cell := r.cells.at(n)
		sums := r.values(cell)
		sums[0]--
		for k := range cfg.Reports[i].Measures {
			sums[1+k] -= contrib[at]
			at++
		}
		r.touch(n, cell)
	}
}

func measure(m *Measure, row *Row) int64 {
	switch m.Op {
	case CountSessions:
		return 1
	case CountScenario:
		for _, h := range row.Hits {
			if h.Scenario == m.Arg {
				return 1
			}
		}
		return 0
	case SumField:
		return row.Fields[m.Arg].Int
	case SumDuration:
		return int64(row.End - row.Start)
	default:
		return row.Count
	}
}

// find returns the number of the cell that a session counts in.
func (r *reports) find(cfg *Config, report int, row *Row) uint32 {
	p := &cfg.Reports[report]
	r.key = binary.BigEndian.AppendUint64(r.key[:0], uint64(floor(row.Start, p.Every)))
	for _, f := range p.By {
		r.key = appendText(r.key, r.text(cfg, row, f))
	}
	hash := r.hash(report, r.key)
	if n := r.look(hash, report, r.key); n != 0 {
		return n
	}
	return r.insert(hash, report, string(r.key))
}

// look returns the number of a cell, or 0.
func (r *reports) look(hash uint64, report int, key []byte) uint32 {
	if len(r.slots) == 0 {
		return 0
	}
	mask := uint64(len(r.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		s := r.slots[i]
		if s == 0 {
			return 0
		}
		if s>>32 == hash>>32 {
			if c := r.cells.at(uint32(s)); int(c.report) == report && c.key == string(key) {
				return uint32(s)
			}
		}
	}
}

func (r *reports) insert(hash uint64, report int, key string) uint32 {
	if 4*(r.n+1) > 3*len(r.slots) {
		r.rebuild(max(64, 2*len(r.slots)))
	}
	n, c := r.cells.get()
	r.start(n, c, hash, report, key)
	return n
}

// insertAt is insert with a number that is free.
func (r *reports) insertAt(n uint32, hash uint64, report int, key string) {
	if 4*(r.n+1) > 3*len(r.slots) {
		r.rebuild(max(64, 2*len(r.slots)))
	}
	r.start(n, r.cells.reserve(n), hash, report, key)
}

func (r *reports) start(n uint32, c *reportCell, hash uint64, report int, key string) {
	m, _ := r.measures[report].get()
	*c = reportCell{key: key, hash: hash, measures: m, report: uint8(report)}
	r.put(n, hash)
	r.n++
	r.keyBytes += int64(len(key))
}

// has tells whether a number names a cell of a report.
func (r *reports) has(n uint32, report int) bool {
	if n == 0 || n >= r.cells.next || r.cells.chunks[n>>10] == nil {
		return false
	}
	c := r.cells.at(n)
	return c.key != "" && int(c.report) == report
}

// numbers returns the numbers of all cells, and marks them as changed so that they are written.
func (r *reports) numbers() (list []uint32) {
	r.each(func(n uint32, c *reportCell) {
		c.changed = true
		list = append(list, n)
	})
	return list
}

// change notes that a cell changed since the last snapshot.
func (r *reports) change(n uint32, c *reportCell) {
	if !c.changed {
		c.changed = true
		r.changed = append(r.changed, n)
	}
}

func (r *reports) put(n uint32, hash uint64) {
	mask := uint64(len(r.slots) - 1)
	i := hash & mask
	for r.slots[i] != 0 {
		i = (i + 1) & mask
	}
	r.slots[i] = hash>>32<<32 | uint64(n)
}

// rebuild fills a new table of slots with the live cells.
func (r *reports) rebuild(size int) {
	r.slots = make([]uint64, size)
	r.each(func(n uint32, c *reportCell) { r.put(n, c.hash) })
}

// each calls yield for every live cell, in order of number.
func (r *reports) each(yield func(n uint32, c *reportCell)) {
	r.cells.each(func(n uint32, c *reportCell) {
		if c.key != "" {
			yield(n, c)
		}
	})
}

func appendText(dst, s []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// text returns a field's value as a report shows it.
func (r *reports) text(cfg *Config, row *Row, field int) []byte {
	v := &row.Fields[field]
	if !v.Present || !cfg.Fields[field].Int {
		return v.Text
	}
	r.num = strconv.AppendInt(r.num[:0], v.Int, 10)
	return r.num
}

func (r *reports) touch(n uint32, c *reportCell) {
	r.change(n, c)
	if !c.dirty {
		c.dirty = true
		r.dirty = append(r.dirty, n)
	}
}

// flush hands out the changed cells, those that no session counts in any more too: readers drop them.
func (r *reports) flush(c *Core, out Output) {
	for _, n := range r.dirty {
		if cell := r.cells.at(n); cell.dirty {
			r.change(n, cell)
			r.hand(c, cell, out)
		}
	}
	r.dirty = r.dirty[:0]
}

func (r *reports) hand(c *Core, cell *reportCell, out Output) {
	cell.dirty = false
	key := append(r.key[:0], cell.key...)
	r.key = key
	by := r.cell.By[:0]
	for rest := key[8:]; len(rest) > 0; {
		size, n := binary.Uvarint(rest)
		rest = rest[n:]
		by = append(by, rest[:size])
		rest = rest[size:]
	}
	sums := r.values(cell)
	r.cell = Cell{int(cell.report), cell.window(), by, sums[1:], sums[0]}
	c.seq++
	out.Cell(c.seq, &r.cell)
}

// forget hands out and drops the cells of windows in which no live session can start any more.
func (r *reports) forget(c *Core, before event.Micros, out Output) {
	gone := false
	r.each(func(n uint32, cell *reportCell) {
		if cell.window()+c.cfg.Reports[cell.report].Every > before {
			return
		}
		if cell.dirty {
			r.hand(c, cell, out)
		}
		r.measures[cell.report].put(cell.measures)
		r.keyBytes -= int64(len(cell.key))
		r.change(n, cell)
		*cell = reportCell{changed: true}
		r.cells.put(n)
		r.n--
		gone = true
	})
	if gone {
		r.rebuild(len(r.slots))
	}
}

func (r *reports) used() int64 {
	n := r.cells.used() + int64(len(r.slots))*8 + r.keyBytes
	for i := range r.measures {
		n += r.measures[i].used()
	}
	return n
}

func (r *reports) bytes() int64 {
	n := r.cells.bytes() + int64(len(r.slots))*8 + r.keyBytes + int64(cap(r.dirty))*4
	for i := range r.measures {
		n += r.measures[i].bytes()
	}
	return n
}

package correlate

import (
	"encoding/binary"
	"strconv"

	"github.com/weftdata/weft/event"
)

// reports holds the live cells. A session's contribution is kept as (cell, measures) per report, so that a change takes
// back exactly what was added.
type reports struct {
	stride int // int64s of a contribution: a cell and the measures, per report
	byKey  map[string]uint32
	cells  []reportCell // number 0 is not used
	free   []uint32
	dirty  []uint32
	key    []byte
	num    []byte
	size   int64
	cell   Cell
}

type reportCell struct {
	key      string
	report   int
	window   event.Micros
	by       [][]byte
	measures []int64
	dirty    bool
}

func (r *reports) init(cfg *Config) {
	r.byKey = map[string]uint32{}
	r.cells = make([]reportCell, 1)
	for _, p := range cfg.Reports {
		r.stride += 1 + len(p.Measures)
	}
}

// add counts a session in its cells and writes down what it added.
func (r *reports) add(c *Core, row *Row, contrib []int64) {
	at := 0
	for i := range c.cfg.Reports {
		p := &c.cfg.Reports[i]
		window := floor(row.Start, p.Every)
		n := r.find(&c.cfg, i, window, row)
		m := contrib[at+1 : at+1+len(p.Measures)]
		contrib[at] = int64(n)
		at += 1 + len(p.Measures)
		cell := &r.cells[n]
		for k := range p.Measures {
			m[k] = measure(&p.Measures[k], row)
			cell.measures[k] += m[k]
		}
		r.touch(n)
	}
	clear(contrib[at:])
}

// retract takes back what a session added.
func (r *reports) retract(contrib []int64) {
	for at := 0; at < r.stride; {
		n := uint32(contrib[at])
		cell := &r.cells[n]
		for k := range cell.measures {
			cell.measures[k] -= contrib[at+1+k]
		}
		at += 1 + len(cell.measures)
		r.touch(n)
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
func (r *reports) find(cfg *Config, report int, window event.Micros, row *Row) uint32 {
	p := &cfg.Reports[report]
	k := append(r.key[:0], byte(report))
	k = binary.BigEndian.AppendUint64(k, uint64(window))
	for _, f := range p.By {
		k = appendText(k, r.text(cfg, row, f))
	}
	r.key = k
	if n, ok := r.byKey[string(k)]; ok {
		return n
	}
	cell := reportCell{key: string(k), report: report, window: window, measures: make([]int64, len(p.Measures))}
	for _, f := range p.By {
		cell.by = append(cell.by, append([]byte(nil), r.text(cfg, row, f)...))
	}
	return r.insert(cell)
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

func (r *reports) insert(cell reportCell) uint32 {
	var n uint32
	if k := len(r.free); k > 0 {
		n = r.free[k-1]
		r.free = r.free[:k-1]
		r.cells[n] = cell
	} else {
		n = uint32(len(r.cells))
		r.cells = append(r.cells, cell)
	}
	r.byKey[cell.key] = n
	r.size += cell.bytes()
	return n
}

func (c *reportCell) bytes() int64 {
	return int64(160 + 2*len(c.key) + 32*len(c.by) + 8*len(c.measures))
}

func (r *reports) touch(n uint32) {
	if cell := &r.cells[n]; !cell.dirty {
		cell.dirty = true
		r.dirty = append(r.dirty, n)
	}
}

// flush hands out the changed cells. A cell that no session counts in any more is handed out once with zeros, which
// tells readers to drop it.
func (r *reports) flush(c *Core, out Output) {
	for _, n := range r.dirty {
		cell := &r.cells[n]
		if cell.dirty {
			r.hand(c, cell, out)
		}
	}
	r.dirty = r.dirty[:0]
}

func (r *reports) hand(c *Core, cell *reportCell, out Output) {
	cell.dirty = false
	r.cell = Cell{cell.report, cell.window, cell.by, cell.measures}
	c.seq++
	out.Cell(c.seq, &r.cell)
}

// forget hands out and drops the cells of windows in which no live session can start any more.
func (r *reports) forget(c *Core, before event.Micros, out Output) {
	for n := 1; n < len(r.cells); n++ {
		cell := &r.cells[n]
		if cell.key == "" || cell.window+c.cfg.Reports[cell.report].Every > before {
			continue
		}
		if cell.dirty {
			r.hand(c, cell, out)
		}
		delete(r.byKey, cell.key)
		r.size -= cell.bytes()
		*cell = reportCell{}
		r.free = append(r.free, uint32(n))
	}
}

func (r *reports) bytes() int64 { return r.size + int64(cap(r.dirty)+cap(r.free))*4 }

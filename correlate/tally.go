package correlate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// Tally counts finished sessions in report cells: each row once, none is ever taken back. It gives for a set of rows the cells
// that a core gives which hands them out. It is not safe for concurrent use.
type Tally struct {
	cfg     *Config
	reports reports
	contrib []int64
}

// NewTally returns an empty tally for the reports of a config. Of a row it looks at Start, End, Count, Fields and Hits.
func NewTally(cfg *Config) *Tally {
	t := &Tally{cfg: cfg}
	t.reports.init(cfg)
	t.contrib = make([]int64, max(1, t.reports.stride))
	return t
}

// Add counts a session.
func (t *Tally) Add(row *Row) { t.reports.add(t.cfg, row, t.contrib) }

// Each calls yield for every cell in order of report, window and fields. A cell is valid only during the call.
func (t *Tally) Each(yield func(*Cell)) {
	type ref struct {
		report uint8
		key    string
		number uint32
	}
	var list []ref
	t.reports.each(func(n uint32, c *reportCell) { list = append(list, ref{c.report, c.key, n}) })
	slices.SortFunc(list, func(a, b ref) int {
		return cmp.Or(cmp.Compare(a.report, b.report), cmp.Compare(windowOf(a.key), windowOf(b.key)), cmp.Compare(a.key, b.key))
	})
	var by [][]byte
	for _, r := range list {
		cell := t.reports.cells.at(r.number)
		by = appendTexts(by[:0], []byte(r.key[8:]))
		sums := t.reports.values(cell)
		yield(&Cell{Report: int(r.report), Window: cell.window(), By: by, Measures: sums[1:], Sessions: sums[0]})
	}
}

// Cells is the number of cells.
func (t *Tally) Cells() int { return t.reports.n }

func windowOf(key string) int64 { return int64(binary.BigEndian.Uint64([]byte(key[:8]))) }

// appendTexts appends the texts of a cell's key.
func appendTexts(by [][]byte, rest []byte) [][]byte {
	for len(rest) > 0 {
		size, n := binary.Uvarint(rest)
		by = append(by, bytes.Clone(rest[n:n+int(size)]))
		rest = rest[n+int(size):]
	}
	return by
}

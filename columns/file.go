package columns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/weftdata/weft/archive/pqfile"
	"github.com/weftdata/weft/event"
)

// File is an open file. It is not safe for concurrent use.
type File struct {
	*pqfile.File
	mapping *Mapping
	name    string // for errors
	below   string // path below the folder that is read; it decides the identity
	record  *node  // the object of a row; nil: value has it

	value, partition, offset *leaf
	clock                    *leaf // the event time's column; nil: it is in a folder's name or within something
	leaves                   []*leaf
	rows                     []int64 // before each row group
	partitionOf              int32   // of rows that know no position
	first                    int64
}

// leaf is a column that is read.
type leaf struct {
	pqfile.Cursor
	index  int // in the file
	kind   parquet.Kind
	scalar scalar
	path   string
}

// Group describes a row group.
type Group struct {
	Rows  int64
	Bytes int64 // of its columns, compressed
	// Least and Greatest bound its event times; Known is false where the file does not tell.
	Least, Greatest event.Micros
	Known           bool
}

// Open opens a file of size bytes that is read through r; if r is an io.Closer, Close closes it. below is its path below the
// folder that is read, such as dt=2026-03-01/part-0.parquet. Columns that are found are noted in seen, which may be nil.
func Open(name, below string, r io.ReaderAt, size int64, m *Mapping, seen *Seen) (*File, error) {
	pq, err := pqfile.OpenAt(name, r, size)
	if err != nil {
		return nil, err
	}
	f := &File{File: pq, mapping: m, name: name, below: below}
	if seen == nil {
		seen = &Seen{}
	}
	if err := pqfile.Guard(func() error { return f.compile(seen) }); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", name, err), pq.Close())
	}
	return f, nil
}

// IsArchive tells whether a file has the columns of the archive's layout.
func IsArchive(f *pqfile.File) bool {
	for _, name := range []string{"topic", "partition", "offset", "value"} {
		if field(f.Root(), name) == nil {
			return false
		}
	}
	return true
}

func field(n *parquet.Column, name string) *parquet.Column {
	if n.Leaf() {
		return nil
	}
	return n.Column(name)
}

// compile finds the columns of the mapping.
func (f *File) compile(seen *Seen) error {
	m := f.mapping
	folders, err := foldersOf(f.below)
	if err != nil {
		return err
	}
	seen.top(f.Root(), folders)
	rows := int64(0)
	for _, g := range f.RowGroups() {
		f.rows = append(f.rows, rows)
		rows += g.NumRows()
	}
	if rows > 1<<rowBits-1 {
		return fmt.Errorf("it has %d rows: at most %d", rows, int64(1<<rowBits-1))
	}
	f.partitionOf, f.first = Position(f.below)
	for _, x := range []struct {
		to   **leaf
		name string
		kind []parquet.Kind
	}{
		{&f.value, m.value, []parquet.Kind{parquet.ByteArray}},
		{&f.partition, m.partition, []parquet.Kind{parquet.Int32, parquet.Int64}},
		{&f.offset, m.offset, []parquet.Kind{parquet.Int64, parquet.Int32}},
	} {
		if x.name == "" {
			continue
		}
		c, _ := find(f.Root(), split(x.name))
		if c == nil || !c.Leaf() || c.MaxRepetitionLevel() > 0 {
			return fmt.Errorf("it has no plain column %q, which the spec's parquet names", x.name)
		}
		if !slices.Contains(x.kind, c.Type().Kind()) {
			return fmt.Errorf("column %q has type %v; expected %v", x.name, c.Type(), x.kind[0])
		}
		*x.to = f.leaf(c)
	}
	if m.Whole() {
		return nil
	}
	f.record = &node{kind: objectNode}
	timed := false
	for _, p := range m.paths {
		c, rest := find(f.Root(), p.column)
		names := p.names
		if rest >= len(names) {
			return fmt.Errorf("column %q is a list or a map, and parquet.columns names something in it", strings.Join(c.Path(), "."))
		}
		names = names[:len(names)-rest] // a list or a map comes whole
		if f.record.at(names) != nil {
			continue
		}
		n := (*node)(nil)
		switch folder := folderOf(folders, p.column); {
		case c != nil:
			if n, err = f.tree(c, 0); err != nil {
				return err
			}
			if p.time && n.kind == leafNode {
				f.clock = n.leaf
				if n.leaf.scalar, err = f.timeScalar(c); err != nil {
					return err
				}
			}
		case folder != nil:
			n = &node{kind: constantNode, text: appendText(nil, []byte(*folder))}
		default:
			continue // no value: older files lack what newer ones have
		}
		timed = timed || p.time
		seen.note(strings.Join(p.column, "."))
		f.record.put(names, n)
	}
	if !timed {
		return fmt.Errorf("it has no column for the event time, %s; name it in parquet.columns", m.source.Time.Field)
	}
	return nil
}

func folderOf(list []folderColumn, column []string) *string {
	for i := range list {
		if len(column) == 1 && column[0] == list[i].name {
			return &list[i].value
		}
	}
	return nil
}

func (s *Seen) top(root *parquet.Column, folders []folderColumn) {
	if s.have == nil {
		s.have = map[string]bool{}
	}
	for _, c := range root.Columns() {
		s.have[c.Name()] = true
	}
	for _, x := range folders {
		s.have[x.name] = true
	}
}

// find follows names. At a list or a map it ends early, with how many names are left. nil: there is no such column.
func find(c *parquet.Column, names []string) (_ *parquet.Column, rest int) {
	if len(names) > 1 { // a column's own name may have dots
		if x := field(c, strings.Join(names, ".")); x != nil {
			return x, 0
		}
	}
	for i, name := range names {
		if c.Repeated() || isList(c) || isMap(c) {
			return c, len(names) - i
		}
		if c = field(c, name); c == nil {
			return nil, 0
		}
	}
	return c, 0
}

// leaf makes the cursor of a column. One that fills two places has two.
func (f *File) leaf(c *parquet.Column) *leaf {
	l := &leaf{index: c.Index(), kind: c.Type().Kind(), path: strings.Join(c.Path(), ".")}
	l.Max = byte(c.MaxDefinitionLevel())
	f.leaves = append(f.leaves, l)
	return l
}

// Groups describes the row groups, in order.
func (f *File) Groups() []Group {
	list := make([]Group, len(f.RowGroups()))
	for i, g := range f.Metadata().RowGroups {
		x := &list[i]
		x.Rows, x.Bytes = g.NumRows, g.TotalCompressedSize
		if x.Bytes <= 0 {
			for _, c := range g.Columns {
				x.Bytes += c.MetaData.TotalCompressedSize
			}
		}
		if f.clock != nil && f.clock.scalar.micros != nil && f.clock.index < len(g.Columns) {
			x.Least, x.Greatest, x.Known = f.clock.bounds(&g.Columns[f.clock.index].MetaData.Statistics)
		}
	}
	return list
}

// bounds reads the least and greatest time of a row group from its statistics.
func (l *leaf) bounds(s *format.Statistics) (least, greatest event.Micros, ok bool) {
	low, ok1 := l.bound(s.MinValue, s.Min)
	high, ok2 := l.bound(s.MaxValue, s.Max)
	return low, high, ok1 && ok2 && low <= high
}

func (l *leaf) bound(values ...[]byte) (event.Micros, bool) {
	for _, v := range values {
		switch {
		case l.kind == parquet.Int64 && len(v) == 8:
			return l.scalar.micros(int64(binary.LittleEndian.Uint64(v)))
		case l.kind == parquet.Int32 && len(v) == 4:
			return l.scalar.micros(int64(int32(binary.LittleEndian.Uint32(v))))
		}
	}
	return 0, false
}

// Extent returns the bytes of the file that reading a row group needs, for each column one range, in order.
func (f *File) Extent(group int) (ranges [][2]int64) {
	g := &f.Metadata().RowGroups[group]
	for _, l := range f.leaves {
		m := &g.Columns[l.index].MetaData
		at := m.DataPageOffset
		if m.DictionaryPageOffset != 0 {
			at = min(at, m.DictionaryPageOffset)
		}
		ranges = append(ranges, [2]int64{at, at + m.TotalCompressedSize})
	}
	slices.SortFunc(ranges, func(a, b [2]int64) int { return int(min(max(a[0]-b[0], math.MinInt32), math.MaxInt32)) })
	return ranges
}

// start begins to read a row group.
func (f *File) start(group int) error {
	for _, l := range f.leaves {
		pages, err := f.Pages(group, l.index)
		if err != nil {
			return err
		}
		l.Start(pages)
	}
	return nil
}

// stop gives the pages of a row group back.
func (f *File) stop() error {
	var errs []error
	for _, l := range f.leaves {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// Rows reads the rows of one row group of a file. The file reads one group at a time.
type Rows struct {
	file  *File
	group int
	row   int64 // within the group
	left  int64
	stamp event.Micros
	text  []byte
	ended bool
}

// Rows begins to read a row group. stamp becomes the timestamp of its records.
func (f *File) Rows(group int, stamp event.Micros) (*Rows, error) {
	r := &Rows{file: f, group: group, left: f.RowGroups()[group].NumRows(), stamp: stamp}
	err := pqfile.Guard(func() error { return f.start(group) })
	return r, r.problem(err)
}

func (r *Rows) problem(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read %s: row group %d: %w", r.file.name, r.group, err)
}

// Fill appends about maxBytes of records to the batch; more is false when the row group has ended.
func (r *Rows) Fill(b *event.Batch, maxBytes int) (more bool, err error) {
	if r.ended {
		return false, nil
	}
	end := len(b.Data) + max(maxBytes, 1)
	err = pqfile.Guard(func() error {
		for ; r.left > 0 && len(b.Data) < end; r.left-- {
			if err := r.take(b); err != nil {
				return fmt.Errorf("row %d: %w", r.row, err)
			}
			r.row++
		}
		return nil
	})
	if err == nil && r.left > 0 {
		return true, nil
	}
	r.ended = true
	return false, r.problem(errors.Join(err, pqfile.Guard(r.file.stop)))
}

// take makes a record of the next row.
func (r *Rows) take(b *event.Batch) error {
	f := r.file
	record := event.Record{Source: f.mapping.number, Partition: f.partitionOf, Offset: f.first + f.rows[r.group] + r.row, Timestamp: r.stamp}
	if f.partition != nil {
		partition, err := f.partition.number()
		if err != nil || partition != int64(int32(partition)) || partition < 0 {
			return fmt.Errorf("column %s: %d is no partition: %w", f.partition.path, partition, cmpError(err))
		}
		if record.Offset, err = f.offset.number(); err != nil || record.Offset < 0 {
			return fmt.Errorf("column %s: %d is no offset: %w", f.offset.path, record.Offset, cmpError(err))
		}
		record.Partition = int32(partition)
	}
	if f.value != nil {
		if err := f.value.Need(); err != nil {
			return err
		}
		if at := f.value.Take(); at >= 0 { // null: a deletion in a compacted topic, not an event
			value := f.value.Bytes(at)
			b.AddLogged(record, value, len(value), nil)
		}
		return nil
	}
	text, err := f.record.appendJSON(r.text[:0])
	if err != nil {
		return err
	}
	r.text = text
	b.AddLogged(record, text, len(text), nil)
	return nil
}

var errOutOfRange = errors.New("it is out of range")

func cmpError(err error) error {
	if err == nil {
		return errOutOfRange
	}
	return err
}

var errNull = errors.New("it is null")

// number steps over an integer that must be there.
func (l *leaf) number() (int64, error) {
	if err := l.Need(); err != nil {
		return 0, err
	}
	at := l.Take()
	if at < 0 {
		return 0, errNull
	}
	return l.Long(at), nil
}

// timeScalar is how the event time's column is written so that the source's layout reads it.
func (f *File) timeScalar(c *parquet.Column) (scalar, error) {
	s := scalarOf(c.Type())
	layout := f.mapping.source.Time.Layout
	if s.instant == nil {
		unit := map[string]int64{"unix_s": 1_000_000, "unix_ms": 1000, "unix_us": 1}[layout]
		if whole := c.Type().Kind() == parquet.Int64 || c.Type().Kind() == parquet.Int32; whole && s.plain && unit > 0 {
			s.micros = func(v int64) (event.Micros, bool) {
				return event.Micros(v * unit), v <= math.MaxInt64/unit && v >= math.MinInt64/unit
			}
		}
		return s, nil
	}
	zone := time.UTC
	if s.local {
		zone = f.mapping.zone
	}
	instant := s.instant
	s.append = func(b []byte, l *leaf, at int) []byte {
		t, ok := instant(l, at)
		if !ok {
			return append(b, "null"...)
		}
		if s.local && zone != time.UTC {
			t = time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), zone)
		}
		return appendTime(b, t, layout, f.mapping.zone)
	}
	if s.local && zone != time.UTC {
		s.micros = nil // a clock that is put back is no bound
	}
	return s, nil
}

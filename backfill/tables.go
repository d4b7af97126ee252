package backfill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/weftdata/weft/archive/pqfile"
	"github.com/weftdata/weft/columns"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
)

// Tables are Parquet files that others wrote: of a replay's input, files; of a backfill, objects below the source's
// parquet.path. Package columns reads them.

// tableRecords reads a source from files of others, in order of their names.
type tableRecords struct {
	mapping *columns.Mapping
	files   []tableFile
	until   map[int32]int64 // nil: read all
	size    int64
	read    atomic.Int64
	seen    columns.Seen

	file  *columns.File // nil: between two files
	rows  *columns.Rows // nil: between two row groups
	group int
}

type tableFile struct {
	path, below string
	size        int64
}

// isTable tells whether a Parquet file is one of others, and not of an archive.
func isTable(path string) (bool, error) {
	f, err := pqfile.Open(path)
	if err != nil {
		return false, err
	}
	return !columns.IsArchive(f), f.Close()
}

// tablesIn lists the data files of a folder, and of the folders in it.
func tablesIn(folder string) (list []tableFile, err error) {
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		below, err := filepath.Rel(folder, path)
		if err != nil || !columns.Wanted(filepath.ToSlash(below)) {
			return err
		}
		info, err := os.Stat(path) // through links
		if err == nil && !info.IsDir() {
			list = append(list, tableFile{path, filepath.ToSlash(below), info.Size()})
		}
		return err
	})
	slices.SortFunc(list, func(a, b tableFile) int { return strings.Compare(a.below, b.below) })
	return list, err
}

// tables returns the files of others at a path; table is false where they are an archive's. A folder is what its first file is.
func tables(path string) (files []tableFile, table bool, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, false, err
	}
	files = []tableFile{{path, filepath.Base(path), info.Size()}}
	if info.IsDir() {
		if files, err = tablesIn(path); err != nil {
			return nil, false, err
		}
		if len(files) == 0 {
			return nil, false, fmt.Errorf("read %s: it is a folder without .parquet files; name a file", path)
		}
	}
	table, err = isTable(files[0].path)
	return files, table, err
}

// openTables opens files of others. That the footers of all can be read, and have the columns that the spec names, is found out
// before any is replayed.
func (r *replay) openTables(s source, files []tableFile) (records, error) {
	m, err := columns.New(r.job.Spec, int(s.number))
	if err != nil {
		return nil, err
	}
	t := &tableRecords{mapping: m, files: files}
	if until, ok := r.cfg.Until[s.topic]; ok {
		if p := r.job.Spec.Sources[s.number].Parquet; p == nil || p.Partition == "" {
			return nil, fmt.Errorf("%s: rows have no offsets to end at; name their columns in parquet.partition and parquet.offset", s.Path)
		}
		t.until = until
	}
	for _, f := range files {
		x, err := t.open(f)
		if err != nil {
			return nil, err
		}
		t.size += f.size
		if err := x.Close(); err != nil {
			return nil, err
		}
	}
	return t, t.seen.Check(m)
}

func (t *tableRecords) open(f tableFile) (*columns.File, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	return columns.Open(f.path, f.below, file, f.size, t.mapping, &t.seen)
}

// Fill implements records.
func (t *tableRecords) Fill(b *event.Batch, maxBytes int) (more bool, err error) {
	for {
		if t.rows == nil {
			if more, err := t.next(); !more || err != nil {
				return false, err
			}
		}
		before := len(b.Records) + len(b.Rejects)
		more, err := t.rows.Fill(b, maxBytes)
		if err != nil {
			return false, err
		}
		if !more {
			t.rows = nil
			t.group++
		}
		if t.until != nil {
			b.Records = slices.DeleteFunc(b.Records, func(r event.Record) bool { end, ok := t.until[r.Partition]; return !ok || r.Offset >= end })
		}
		if len(b.Records)+len(b.Rejects) > before {
			return true, nil
		}
	}
}

// next begins the next row group; more is false at the end of all files.
func (t *tableRecords) next() (more bool, err error) {
	for {
		if t.file == nil {
			if len(t.files) == 0 {
				return false, nil
			}
			if t.file, err = t.open(t.files[0]); err != nil {
				return false, err
			}
			t.group = 0
		}
		if groups := t.file.Groups(); t.group < len(groups) {
			t.rows, err = t.file.Rows(t.group, stampOf(&groups[t.group]))
			return err == nil, err
		}
		t.read.Add(t.files[0].size)
		t.files = t.files[1:]
		f := t.file
		t.file = nil
		if err := f.Close(); err != nil {
			return false, err
		}
	}
}

// stampOf returns the timestamp of the records of a row group: it says in which slice of a backfill their rejects are staged.
func stampOf(g *columns.Group) event.Micros {
	if g.Known {
		return g.Least
	}
	return event.MinTime
}

// BytesRead implements records.
func (t *tableRecords) BytesRead() int64 { return t.read.Load() }

// Size implements records.
func (t *tableRecords) Size() int64 { return t.size }

// Close implements records.
func (t *tableRecords) Close() error {
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// parts reads parts of an object that were fetched.
type parts struct {
	list []part
	size int64
}

type part struct {
	from int64
	data []byte
}

// ReadAt implements io.ReaderAt. What was not fetched is an error.
func (p *parts) ReadAt(b []byte, at int64) (int, error) {
	for i := range p.list {
		x := &p.list[i]
		if at < x.from || at >= x.from+int64(len(x.data)) {
			continue
		}
		n := copy(b, x.data[at-x.from:])
		if n == len(b) {
			return n, nil
		}
		if at+int64(n) == p.size {
			return n, io.EOF
		}
		more, err := p.ReadAt(b[n:], at+int64(n))
		return n + more, err
	}
	if at >= p.size {
		return 0, io.EOF
	}
	return 0, fmt.Errorf("byte %d is needed and was not fetched: the file's footer contradicts its pages", at)
}

// tailBytes are fetched of an object first: the footer of most files.
const tailBytes = 64 << 10

// fetchFooter reads what tells the columns and row groups of an object.
func fetchFooter(ctx context.Context, objects ObjectStore, key string, size int64) (*parts, error) {
	p := &parts{size: size}
	for n := int64(tailBytes); ; {
		from := max(0, size-n)
		data, err := objects.GetRange(ctx, key, from, size-from)
		if err != nil {
			return nil, err
		}
		if int64(len(data)) != size-from {
			return nil, fmt.Errorf("read %s: it has %d bytes fewer than it was listed with", key, size-from-int64(len(data)))
		}
		p.list = []part{{from, data}}
		if from == 0 {
			return p, nil
		}
		length := int64(data[len(data)-8]) | int64(data[len(data)-7])<<8 | int64(data[len(data)-6])<<16 | int64(data[len(data)-5])<<24
		if need := length + 8; need <= int64(len(data)) || need > min(size, pqfile.FooterBytesMax+8) {
			break // all of it is here, or nonsense, which opening it says
		} else {
			n = need
		}
	}
	head, err := objects.GetRange(ctx, key, 0, 4) // which must say that it is Parquet
	if err != nil {
		return nil, err
	}
	p.list = append(p.list, part{0, head})
	return p, nil
}

// openTable opens an object as it was planned.
func openTable(ctx context.Context, objects ObjectStore, m *columns.Mapping, f *PlannedFile, seen *columns.Seen) (*columns.File, *parts, error) {
	p, err := fetchFooter(ctx, objects, f.Key, f.Table.Size)
	if err != nil {
		return nil, nil, err
	}
	t, err := columns.Open(f.Key, f.Table.Below, p, f.Table.Size, m, seen)
	return t, p, err
}

// loadTable fetches the columns of a row group, and checks that the object is still the one that was planned.
func loadTable(ctx context.Context, objects ObjectStore, m *columns.Mapping, f *PlannedFile) (*columns.File, error) {
	t, p, err := openTable(ctx, objects, m, f, nil)
	if err != nil {
		return nil, err
	}
	if f.Table.Group >= len(t.Groups()) {
		return nil, f.changed()
	}
	for _, r := range t.Extent(f.Table.Group) {
		if r[0] < 0 || r[1] < r[0] || r[1] > p.size || r[1]-r[0] > pqfile.PageBytesMax*4 {
			return nil, fmt.Errorf("read %s: row group %d: a column claims bytes %d to %d of %d", f.Key, f.Table.Group, r[0], r[1], p.size)
		}
		data, err := objects.GetRange(ctx, f.Key, r[0], r[1]-r[0])
		if err != nil {
			return nil, err
		}
		p.list = append(p.list, part{r[0], data})
	}
	info, err := objectInfo(ctx, objects, f.Key)
	if err != nil {
		return nil, err
	}
	if info.ETag != f.Table.ETag || info.Size != f.Table.Size {
		return nil, f.changed()
	}
	return t, nil
}

func (f *PlannedFile) changed() error {
	return fmt.Errorf("read %s: it is not the object that was planned with: somebody wrote it again; start the backfill anew", f.Key)
}

// objectInfo asks for the size and etag of an object.
func objectInfo(ctx context.Context, objects ObjectStore, key string) (info objstore.Info, err error) {
	for info, err := range objects.List(ctx, key, "") {
		if err != nil || info.Key == key {
			return info, err
		}
		break
	}
	return info, fmt.Errorf("read %s: %w", key, errors.Join(objstore.ErrNotFound, errors.New("it was there when the backfill was planned")))
}

// tables surveys the files of others that hold a source's history.
func (s *survey) tables(ctx context.Context, in *PlanInput, number int) (list []*archivedFile, err error) {
	source := &in.Job.Spec.Sources[number]
	m, err := columns.New(in.Job.Spec, number)
	if err != nil {
		return nil, err
	}
	var seen columns.Seen
	before := event.MaxTime
	if !source.Parquet.Before.IsZero() {
		before = event.Micros(source.Parquet.Before.UnixMicro())
	}
	files := int64(0)
	for info, err := range in.Objects.List(ctx, source.Parquet.Path, "") {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", source.Parquet.Path, err)
		}
		below := info.Key[len(source.Parquet.Path):]
		if !columns.Wanted(below) {
			continue
		}
		f := PlannedFile{Key: info.Key, Source: number, Least: always.From, Greatest: always.To, Rejects: true,
			Table: &PlannedTable{Below: below, Size: info.Size, ETag: info.ETag}}
		t, _, err := openTable(ctx, in.Objects, m, &f, &seen)
		if err != nil {
			return nil, err
		}
		for i, g := range t.Groups() {
			x := f
			x.Table = &PlannedTable{Below: below, Size: info.Size, ETag: info.ETag, Group: i}
			x.Bytes, x.Records = g.Bytes, g.Rows
			a := &archivedFile{PlannedFile: x}
			if g.Known {
				// Whether rows do not decode is not known. If so they are staged where the row group begins, which is read there anyway.
				a.Least, a.Greatest = g.Least, min(g.Greatest, before-1)
				a.stamp = &g.Least
			} else {
				a.timeless = true
			}
			if a.Least <= a.Greatest && g.Rows > 0 {
				list = append(list, a)
			}
		}
		files++
		if err := t.Close(); err != nil {
			return nil, err
		}
		in.Progress(PlanProgress{Manifests: s.totals.Manifests + files})
	}
	if len(list) > 0 {
		s.partitions = append(s.partitions, archivedPartition{topic: source.Topic, id: -1, greatest: event.MinTime, first: len(s.files)})
		s.files = append(s.files, list...)
	}
	s.totals.Manifests += files
	return list, seen.Check(m)
}

// PlannedTable says which part of which object a file of others is.
type PlannedTable struct {
	Below string `json:"below"` // its name below the source's parquet.path
	Size  int64  `json:"size"`  // of the object
	ETag  string `json:"etag"`
	Group int    `json:"group"` // row group
}

// mappings are those of a job's sources, made when they are needed.
type mappings struct {
	job  *operator.Job
	list map[int]*columns.Mapping
}

func (m *mappings) of(source int) (*columns.Mapping, error) {
	if x := m.list[source]; x != nil {
		return x, nil
	}
	x, err := columns.New(m.job.Spec, source)
	if err == nil {
		if m.list == nil {
			m.list = map[int]*columns.Mapping{}
		}
		m.list[source] = x
	}
	return x, err
}

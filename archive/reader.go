package archive

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/weftdata/weft/archive/pqfile"
	"github.com/weftdata/weft/event"
)

const (
	// OriginHeader names the header that holds a record's identity from before it was produced again or repartitioned.
	OriginHeader = event.OriginHeader
	// RejectBytes is how much of a value over event.RecordBytesMax is kept.
	RejectBytes = event.RejectBytes

	fillBytesMax = 1 << 30
)

// Reader reads the archived records of a file, or of all *.parquet files of a folder in order of name. It is not safe for
// concurrent use.
type Reader struct {
	paths []string
	until map[int32]int64 // nil: read all
	from  int64
	file  *file // nil: none is open
	read  int64 // bytes of the files that are done
	size  int64
	bytes atomic.Int64 // what BytesRead returns
	stats Stats
	err   error
}

// Stats counts what was read.
type Stats struct {
	Records     int64
	OtherTopics int64 // rows of topics that were not asked for
	Past        int64 // rows left out by Until
	Before      int64 // rows left out by From
	NullValues  int64 // rows whose value is null: a deletion in a compacted topic, not an event
}

// Open opens a file or a folder. A folder stands for its *.parquet files, and for those of the partitions within it: the folder of
// a topic in an archive has one for each, named by five digits. Other folders are not looked at. Without any file it is an error.
func Open(path string) (*Reader, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err // names the operation and the path
	}
	r := &Reader{paths: []string{path}, size: info.Size()}
	if info.IsDir() {
		if r.paths, r.size, err = list(path); err != nil {
			return nil, err
		}
	}
	if err := r.openNext(); err != nil {
		return nil, err
	}
	return r, nil
}

func list(folder string) (paths []string, size int64, err error) {
	paths, size, err = listFiles(folder, true)
	if err == nil && len(paths) == 0 {
		err = fmt.Errorf("read %s: the folder has no *.parquet files", folder)
	}
	return paths, size, err
}

func listFiles(folder string, partitions bool) (paths []string, size int64, err error) {
	entries, err := os.ReadDir(folder) // sorted by name
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		if e.IsDir() && partitions && isPartition(e.Name()) {
			more, bytes, err := listFiles(filepath.Join(folder, e.Name()), false)
			if err != nil {
				return nil, 0, err
			}
			paths, size = append(paths, more...), size+bytes
			continue
		}
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".parquet") {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, 0, err
		}
		paths = append(paths, filepath.Join(folder, e.Name()))
		size += info.Size()
	}
	return paths, size, nil
}

// isPartition tells whether a folder within that of a topic is one of its partitions.
func isPartition(name string) bool {
	return len(name) == partitionDigits && strings.Trim(name, "0123456789") == ""
}

// OpenAt opens a file of size bytes that is read through r; if r is an io.Closer, Close closes it. The name is for errors.
func OpenAt(name string, r io.ReaderAt, size int64) (*Reader, error) {
	p, err := pqfile.OpenAt(name, r, size)
	if err != nil {
		return nil, err
	}
	f, err := mapFile(name, p)
	if err != nil {
		return nil, err
	}
	return &Reader{file: f, size: size}, nil
}

// Until leaves out the rows of each partition from an offset on, and all rows of partitions that are not in the map. The
// offset is that of the row, whatever its weft-origin header says. nil reads all rows.
func (r *Reader) Until(offsets map[int32]int64) { r.until = offsets }

// From leaves out the rows before an offset, as Until does those behind one.
func (r *Reader) From(offset int64) { r.from = offset }

// openNext opens the first of the paths that are left.
func (r *Reader) openNext() error {
	f, err := openFile(r.paths[0])
	if err != nil {
		return err
	}
	r.file, r.paths = f, r.paths[1:]
	return nil
}

// Size returns the size of all files in bytes.
func (r *Reader) Size() int64 { return r.size }

// BytesRead returns how many bytes of Size were done at the end of the last Fill, in steps of row groups. It may be called
// while Fill runs.
func (r *Reader) BytesRead() int64 { return r.bytes.Load() }

// note lets BytesRead see how far the reader is.
func (r *Reader) note() {
	done := r.read
	if r.file != nil {
		done += r.file.done
	}
	r.bytes.Store(done)
}

// Stats returns what was counted so far.
func (r *Reader) Stats() Stats { return r.stats }

// Close closes the files.
func (r *Reader) Close() error {
	r.err = os.ErrClosed
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file = nil
	return f.close()
}

// Fill appends about maxBytes of values of a topic's records to the batch, as records of the given source. A record has the
// partition and offset of its weft-origin header where it has one. A malformed header, and a value longer than
// event.RecordBytesMax, make a reject.
//
// more is false when all files ended. On an error the batch still holds the records before it.
func (r *Reader) Fill(b *event.Batch, source uint16, topic string, maxBytes int) (more bool, err error) {
	defer r.note()
	if r.err != nil {
		return false, r.err
	}
	maxBytes = min(max(maxBytes, 1), fillBytesMax)
	if math.MaxUint32-len(b.Data) < maxBytes+event.RecordBytesMax {
		return false, fmt.Errorf("read archive: the batch is full: it holds %d bytes", len(b.Data))
	}
	return r.rows(&filler{room: maxBytes, source: source, topic: topic, take: func(at event.Record, value, origin []byte) {
		b.AddLogged(at, value, len(value), origin)
	}})
}

// Row is a row of the archive. Its bytes are valid during the call only.
type Row struct {
	Partition int32
	Offset    int64
	Timestamp event.Micros // event.MinTime: none
	Value     []byte
	Origin    []byte // value of the last header OriginHeader, empty where that is null; nil: there is none
}

// Rows hands out about maxBytes of values of a topic's records, as Fill does, but as they were logged.
func (r *Reader) Rows(topic string, maxBytes int, yield func(*Row)) (more bool, err error) {
	defer r.note()
	if r.err != nil {
		return false, r.err
	}
	var row Row
	return r.rows(&filler{room: max(maxBytes, 1), topic: topic, take: func(at event.Record, value, origin []byte) {
		row = Row{at.Partition, at.Offset, at.Timestamp, value, origin}
		yield(&row)
	}})
}

// rows reads rows of one file after another until there is enough.
func (r *Reader) rows(to *filler) (more bool, err error) {
	to.until, to.from, to.stats = r.until, r.from, &r.stats
	for r.file != nil {
		done, err := r.file.fill(to)
		if err != nil {
			r.err = err
			return false, err
		}
		if !done {
			return true, nil
		}
		if err := r.nextFile(); err != nil {
			r.err = err
			return false, err
		}
	}
	return false, nil
}

func (r *Reader) nextFile() error {
	r.read += r.file.Size()
	f := r.file
	r.file = nil
	if err := f.close(); err != nil || len(r.paths) == 0 {
		return err
	}
	return r.openNext()
}

// file is one open file.
type file struct {
	*pqfile.File
	path    string
	columns [headerValueColumn + 1]int // leaf numbers; -1: the file has no such column
	scale   timeScale
	group   int   // row group that is being read
	left    int64 // its rows
	done    int64 // bytes of row groups that are done
	open    bool
	cursors [headerValueColumn + 1]pqfile.Cursor

	originText []byte
}

// timeScale makes microseconds of a timestamp.
type timeScale struct{ times, by int64 }

func openFile(path string) (*file, error) {
	p, err := pqfile.Open(path)
	if err != nil {
		return nil, err
	}
	return mapFile(path, p)
}

func mapFile(path string, p *pqfile.File) (*file, error) {
	f := &file{File: p, path: path, scale: timeScale{1, 1}}
	err := pqfile.Guard(f.mapColumns)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", path, err), p.Close())
	}
	return f, nil
}

// mapColumns finds the columns of the layout by name. Files of other writers may order them otherwise, leave out key,
// timestamp and headers, and have headers as a map or a list.
func (f *file) mapColumns() error {
	for i := range f.columns {
		f.columns[i] = -1
	}
	schema := f.Schema()
	for _, path := range schema.Columns() {
		leaf, _ := schema.Lookup(path...)
		column, kinds := columnOf(path)
		if column < 0 {
			continue
		}
		if kind := leaf.Node.Type().Kind(); !slices.Contains(kinds, kind) {
			return fmt.Errorf("column %q has type %v; expected %v", strings.Join(path, "."), kind, kinds[0])
		}
		if repeated := column >= headerKeyColumn; repeated != (leaf.MaxRepetitionLevel == 1) || leaf.MaxRepetitionLevel > 1 {
			return fmt.Errorf("column %q is repeated %d-fold", strings.Join(path, "."), leaf.MaxRepetitionLevel)
		}
		f.columns[column] = leaf.ColumnIndex
		f.cursors[column].Max = byte(leaf.MaxDefinitionLevel)
		if column == timestampColumn {
			f.scale = scaleOf(leaf.Node.Type().LogicalType())
		}
	}
	for column, name := range []string{topicColumn: "topic", partitionColumn: "partition", offsetColumn: "offset", valueColumn: "value"} {
		if name != "" && f.columns[column] < 0 {
			return fmt.Errorf("it has no column %q; expected topic, partition, offset, timestamp, key, value, headers", name)
		}
	}
	if (f.columns[headerKeyColumn] < 0) != (f.columns[headerValueColumn] < 0) {
		return errors.New("its headers have no key or no value")
	}
	return nil
}

// columnOf tells which column of the layout a path is, and the types it may have; -1: none.
func columnOf(path []string) (int, []parquet.Kind) {
	text, long := []parquet.Kind{parquet.ByteArray}, []parquet.Kind{parquet.Int64, parquet.Int32}
	if len(path) == 1 {
		switch path[0] {
		case "topic":
			return topicColumn, text
		case "partition":
			return partitionColumn, long
		case "offset":
			return offsetColumn, long
		case "timestamp":
			return timestampColumn, long[:1]
		case "value":
			return valueColumn, text
		}
	}
	if path[0] == "headers" {
		switch path[len(path)-1] {
		case "key":
			return headerKeyColumn, text
		case "value":
			return headerValueColumn, text
		}
	}
	return -1, nil
}

func scaleOf(t *format.LogicalType) timeScale {
	if t != nil {
		if timestamp, ok := t.Value.(*format.TimestampType); ok {
			switch timestamp.Unit.Value.(type) {
			case *format.MilliSeconds:
				return timeScale{1000, 1}
			case *format.NanoSeconds:
				return timeScale{1, 1000}
			}
		}
	}
	return timeScale{1, 1}
}

func (f *file) close() error {
	return errors.Join(f.closeGroup(), f.File.Close())
}

func (f *file) closeGroup() error {
	var errs []error
	for i := range f.cursors {
		errs = append(errs, f.cursors[i].Close())
	}
	f.open = false
	return errors.Join(errs...)
}

func (f *file) openGroup() error {
	for i, column := range f.columns {
		if column < 0 {
			continue
		}
		pages, err := f.Pages(f.group, column)
		if err != nil {
			return err
		}
		f.cursors[i].Start(pages)
	}
	f.left = f.RowGroups()[f.group].NumRows()
	f.open = true
	return nil
}

// filler is where rows go.
type filler struct {
	take   func(at event.Record, value, origin []byte)
	room   int // bytes of values that are still wanted
	source uint16
	topic  string
	until  map[int32]int64
	from   int64
	stats  *Stats
}

// fill reads rows until there is enough; done tells that the file ended.
func (f *file) fill(to *filler) (done bool, err error) {
	err = pqfile.Guard(func() error {
		done, err = f.rows(to)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("read %s: row group %d: %w", f.path, f.group, err)
	}
	return done, nil
}

func (f *file) rows(to *filler) (done bool, err error) {
	for f.group < len(f.RowGroups()) {
		if !f.open {
			if err := f.openGroup(); err != nil {
				return false, err
			}
		}
		for ; f.left > 0; f.left-- {
			if to.room <= 0 {
				return false, nil
			}
			if err := f.row(to); err != nil {
				return false, err
			}
		}
		if err := f.closeGroup(); err != nil {
			return false, err
		}
		f.done += f.Metadata().RowGroups[f.group].TotalCompressedSize
		f.group++
	}
	return true, nil
}

// row takes one row: it steps over one entry of each column, and over all headers.
func (f *file) row(to *filler) error {
	var at [headerKeyColumn]int
	for i := range at {
		if f.columns[i] < 0 {
			at[i] = -1
			continue
		}
		c := &f.cursors[i]
		if err := c.Need(); err != nil {
			return err
		}
		at[i] = c.Take()
	}
	origin, err := f.origin()
	if err != nil {
		return err
	}
	if at[topicColumn] < 0 || string(f.cursors[topicColumn].Bytes(at[topicColumn])) != to.topic {
		to.stats.OtherTopics++
		return nil
	}
	if at[partitionColumn] < 0 || at[offsetColumn] < 0 {
		return errors.New("a row has no partition or no offset")
	}
	r := event.Record{Source: to.source, Offset: f.cursors[offsetColumn].Long(at[offsetColumn]), Timestamp: event.MinTime}
	partition := f.cursors[partitionColumn].Long(at[partitionColumn])
	if partition != int64(int32(partition)) {
		return fmt.Errorf("partition %d is out of range", partition)
	}
	r.Partition = int32(partition)
	if r.Offset < to.from {
		to.stats.Before++
		return nil
	}
	if end, ok := to.until[r.Partition]; to.until != nil && (!ok || r.Offset >= end) {
		to.stats.Past++
		return nil
	}
	if at[valueColumn] < 0 {
		to.stats.NullValues++
		return nil
	}
	if at[timestampColumn] >= 0 {
		r.Timestamp = f.scale.micros(f.cursors[timestampColumn].Long(at[timestampColumn]))
	}
	value := f.cursors[valueColumn].Bytes(at[valueColumn])
	to.stats.Records++
	if to.room -= len(value); len(value) > event.RecordBytesMax { // of which little is kept
		to.room += len(value) - RejectBytes
	}
	to.take(r, value, origin)
	return nil
}

func (s timeScale) micros(t int64) event.Micros {
	if t > math.MaxInt64/s.times || t < math.MinInt64/s.times {
		return event.MinTime // no such time
	}
	return event.Micros(t * s.times / s.by)
}

// origin steps over the headers of a row and returns the value of the last one named OriginHeader; nil: there is none.
func (f *file) origin() (origin []byte, err error) {
	if f.columns[headerKeyColumn] < 0 {
		return nil, nil
	}
	keys, values := &f.cursors[headerKeyColumn], &f.cursors[headerValueColumn]
	for first := true; ; first = false {
		more, err := keys.Next()
		if err != nil {
			return nil, err
		}
		if !more && first {
			return nil, pqfile.ErrEarly
		}
		if !more || !first && keys.Repetition() == 0 {
			return origin, nil
		}
		if err := values.Need(); err != nil {
			return nil, err
		}
		key, value := keys.Take(), values.Take()
		if key < 0 || string(keys.Bytes(key)) != OriginHeader {
			continue
		}
		if f.originText == nil { // a header without a value is there all the same
			f.originText = make([]byte, 0, 64)
		}
		f.originText = f.originText[:0] // a copy: the page may go before the row's headers end
		if value >= 0 {
			f.originText = append(f.originText, values.Bytes(value)...)
		}
		origin = f.originText
	}
}

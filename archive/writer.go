// Package archive writes and reads archived raw records as Parquet files; docs/formats/archive.md describes their layout.
package archive

import (
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/weftdata/weft/event"
)

// RowGroupBytes is the raw size at which a row group ends: what a reader must decode to reach one row is bounded by it.
const RowGroupBytes = 64 << 20

// pageBytes is the raw size at which a page ends.
const pageBytes = 1 << 20

// Record is one raw record as Kafka holds it.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	Timestamp event.Micros // the broker's; event.MinTime: none
	Key       []byte       // nil: null, unlike empty
	Value     []byte       // nil: null, unlike empty
	Headers   []Header     // in order; names may repeat
}

// Header is one header of a record.
type Header struct {
	Key   string
	Value []byte // nil: null
}

// layout declares the columns.
type layout struct {
	Topic     string   `parquet:"topic,dict"`
	Partition int32    `parquet:"partition,dict"`
	Offset    int64    `parquet:"offset,delta"`
	Timestamp int64    `parquet:"timestamp,optional,timestamp(microsecond),delta"`
	Key       []byte   `parquet:"key,optional"`
	Value     []byte   `parquet:"value,optional"`
	Headers   []header `parquet:"headers,list"`
}

type header struct {
	Key   string `parquet:"key,dict"`
	Value []byte `parquet:"value,optional"`
}

// The leaf columns in order.
const (
	topicColumn = iota
	partitionColumn
	offsetColumn
	timestampColumn
	keyColumn
	valueColumn
	headerKeyColumn
	headerValueColumn
)

// batchRows and batchBytes bound what is turned into columns at a time: few enough rows to stay in the processor's cache,
// few enough bytes for a page to end near its bound.
const (
	batchRows  = 512
	batchBytes = 256 << 10
)

// Writer writes one file of records, sorted by topic, partition and offset. Columns are filled a batch of rows at a time.
type Writer struct {
	w       *parquet.Writer
	rows    int64
	last    Record // the fields of its order
	size    int    // raw bytes of the row group
	columns [headerValueColumn + 1][]parquet.Value
	topic   []byte // the bytes of the last topic
}

// NewWriter starts a file.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: parquet.NewWriter(w, parquet.SchemaOf(new(layout)), parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.PageBufferSize(pageBytes), parquet.DataPageStatistics(false), parquet.CreatedBy("weft", "archive", "1"),
		// Bounds are whole values: of a column of large ones they would blow up the headers and help nobody.
		parquet.SkipPageBounds("key"), parquet.SkipPageBounds("value"), parquet.SkipPageBounds("headers", "list", "element", "value"),
		parquet.SortingWriterConfig(parquet.SortingColumns(parquet.Ascending("topic"), parquet.Ascending("partition"),
			parquet.Ascending("offset"))))}
}

// Write appends a record. Records must come in order of topic, partition and offset, each once. WriteAll is faster.
func (w *Writer) Write(r *Record) error { return w.WriteAll([]Record{*r}) }

// WriteAll appends records, in the order that Write wants. Their bytes are not used any more when it returns.
func (w *Writer) WriteAll(records []Record) error {
	for len(records) > 0 {
		n, err := w.batch(records)
		if err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
		records = records[n:]
	}
	return nil
}

// batch writes the first of the records, up to a row group's end, and returns how many.
func (w *Writer) batch(records []Record) (n int, err error) {
	for i := range w.columns {
		w.columns[i] = w.columns[i][:0]
	}
	bytes := 0
	for n < len(records) && n < batchRows && bytes < batchBytes && w.size < RowGroupBytes {
		r := &records[n]
		if w.rows > 0 && !before(&w.last, r) {
			return 0, fmt.Errorf("record %s/%d/%d comes after %s/%d/%d: expected order of topic, partition, offset",
				r.Topic, r.Partition, r.Offset, w.last.Topic, w.last.Partition, w.last.Offset)
		}
		w.last.Topic, w.last.Partition, w.last.Offset = r.Topic, r.Partition, r.Offset
		size := w.add(r)
		w.rows, w.size, bytes, n = w.rows+1, w.size+size, bytes+size, n+1
	}
	for i, column := range w.w.ColumnWriters() {
		if _, err := column.WriteRowValues(w.columns[i]); err != nil {
			return n, err
		}
		clear(w.columns[i]) // they point to the records' bytes
	}
	if w.size < RowGroupBytes {
		return n, nil
	}
	w.size = 0
	return n, w.w.Flush()
}

func before(a, b *Record) bool {
	if a.Topic != b.Topic {
		return a.Topic < b.Topic
	}
	if a.Partition != b.Partition {
		return a.Partition < b.Partition
	}
	return a.Offset < b.Offset
}

// add appends a record to the columns and returns its raw size.
func (w *Writer) add(r *Record) int {
	c := &w.columns
	if string(w.topic) != r.Topic {
		w.topic = []byte(r.Topic)
	}
	timestamp := parquet.NullValue().Level(0, 0, timestampColumn)
	if r.Timestamp != event.MinTime {
		timestamp = parquet.Int64Value(int64(r.Timestamp)).Level(0, 1, timestampColumn)
	}
	c[topicColumn] = append(c[topicColumn], parquet.ByteArrayValue(w.topic).Level(0, 0, topicColumn))
	c[partitionColumn] = append(c[partitionColumn], parquet.Int32Value(r.Partition).Level(0, 0, partitionColumn))
	c[offsetColumn] = append(c[offsetColumn], parquet.Int64Value(r.Offset).Level(0, 0, offsetColumn))
	c[timestampColumn] = append(c[timestampColumn], timestamp)
	c[keyColumn] = append(c[keyColumn], nullable(r.Key, 0, 0, keyColumn))
	c[valueColumn] = append(c[valueColumn], nullable(r.Value, 0, 0, valueColumn))
	if len(r.Headers) == 0 {
		c[headerKeyColumn] = append(c[headerKeyColumn], parquet.NullValue().Level(0, 0, headerKeyColumn))
		c[headerValueColumn] = append(c[headerValueColumn], parquet.NullValue().Level(0, 0, headerValueColumn))
	}
	size := len(r.Topic) + 8 + 8 + 4 + len(r.Key) + len(r.Value)
	for i, h := range r.Headers {
		c[headerKeyColumn] = append(c[headerKeyColumn], parquet.ByteArrayValue([]byte(h.Key)).Level(min(i, 1), 1, headerKeyColumn))
		c[headerValueColumn] = append(c[headerValueColumn], nullable(h.Value, min(i, 1), 1, headerValueColumn))
		size += len(h.Key) + len(h.Value)
	}
	return size
}

// nullable makes a value of an optional column; nullLevel is the definition level of null.
func nullable(v []byte, repetition, nullLevel, column int) parquet.Value {
	if v == nil {
		return parquet.NullValue().Level(repetition, nullLevel, column)
	}
	return parquet.ByteArrayValue(v).Level(repetition, nullLevel+1, column)
}

// Close writes the footer, without which the file cannot be read. It does not close the io.Writer.
func (w *Writer) Close() error {
	if err := w.w.Close(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

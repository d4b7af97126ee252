package results

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// Bounds of what a table holds in memory: a page of values as given and a row group of pages as compressed.
const (
	pageBytes      = 1 << 20
	rowGroupBytes  = 32 << 20
	rowGroupRows   = 1 << 20
	dictBytesMax   = 4 << 20 // of one dictionary whose size the data decides
	dictEntriesMax = 1 << 13 // of a text column; with more it goes on without a dictionary
	pageBytesMax   = 1 << 30 // the format counts the bytes of a page in 31 bits
)

// table writes a Parquet file. The columns are built as typed arrays and encoded a page at a time, all at the same rows;
// the repetition levels of a list are built once for all of its columns. That is what makes it several times as fast as a
// writer of rows.
type table struct {
	w        io.Writer
	what     string
	offset   int64
	schema   []format.SchemaElement
	columns  []*column
	levels   []*levels // of lists and of optional columns
	zstd     *zstd.Encoder
	rows     int64 // of the page
	size     int   // bytes of the page's values, roughly
	group    format.RowGroup
	pages    int // bytes of the row group's pages
	meta     format.FileMetaData
	protocol thrift.CompactProtocol
	scratch  []byte
	body     []byte
}

func newTable(w io.Writer, what string, fields int) *table {
	t := &table{w: w, what: what}
	t.zstd, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false)) // the options are valid: no error
	t.schema = []format.SchemaElement{{Name: what, NumChildren: thrift.New(int32(fields))}}
	return t
}

// shape is how a leaf is annotated in the schema.
type shape struct {
	physical  format.Type
	logical   format.LogicalTypeValue
	converted thrift.Null[deprecated.ConvertedType]
	optional  bool
	codec     format.CompressionCodec
}

func intShape() shape   { return shape{physical: format.Int32, codec: format.Zstd} }
func longShape() shape  { return shape{physical: format.Int64, codec: format.Zstd} }
func bytesShape() shape { return shape{physical: format.ByteArray, codec: format.Zstd} }

func textShape() shape {
	return shape{physical: format.ByteArray, logical: new(format.StringType), converted: thrift.New(deprecated.UTF8),
		codec: format.Zstd}
}

func timeShape() shape {
	return shape{physical: format.Int64, converted: thrift.New(deprecated.TimestampMicros),
		logical: &format.TimestampType{IsAdjustedToUTC: true, Unit: format.TimeUnit{Value: new(format.MicroSeconds)}},
		codec:   format.Zstd}
}

// packed leaves out the compression, which finds hardly anything in numbers that are delta encoded.
func (s shape) packed() shape {
	s.codec = format.Uncompressed
	return s
}

func (s shape) orNull() shape {
	s.optional = true
	return s
}

// add adds a leaf below the parent (nil: the root) that is filled through v. Leaves stand in the order of the schema.
func (t *table) add(parent *parent, name string, s shape, v values) *column {
	element := format.SchemaElement{Name: name, Type: thrift.New(s.physical), ConvertedType: s.converted,
		RepetitionType: thrift.New(format.Required), LogicalType: format.LogicalType{Value: s.logical}}
	c := &column{shape: s, values: v}
	if parent != nil {
		c.path = append(c.path, parent.path...)
		c.levels = parent.levels
	}
	c.path = append(c.path, name)
	if s.optional {
		element.RepetitionType = thrift.New(format.Optional)
		c.levels = &levels{}
		t.levels = append(t.levels, c.levels)
	}
	t.schema = append(t.schema, element)
	t.columns = append(t.columns, c)
	return c
}

// parent is a group of the schema. levels is nil for a plain group.
type parent struct {
	path   []string
	levels *levels
}

func (t *table) addGroup(name string, repetition format.FieldRepetitionType, children int, logical format.LogicalTypeValue,
	converted thrift.Null[deprecated.ConvertedType]) {
	t.schema = append(t.schema, format.SchemaElement{Name: name, NumChildren: thrift.New(int32(children)),
		RepetitionType: thrift.New(repetition), LogicalType: format.LogicalType{Value: logical}, ConvertedType: converted})
}

// addStruct adds a required group.
func (t *table) addStruct(name string, children int) *parent {
	t.addGroup(name, format.Required, children, nil, thrift.Null[deprecated.ConvertedType]{})
	return &parent{path: []string{name}}
}

// addList adds a required list of required groups.
func (t *table) addList(name string, children int) *parent {
	t.addGroup(name, format.Required, 1, new(format.ListType), thrift.New(deprecated.List))
	t.addGroup("list", format.Repeated, 1, nil, thrift.Null[deprecated.ConvertedType]{})
	t.addGroup("element", format.Required, children, nil, thrift.Null[deprecated.ConvertedType]{})
	return t.repeated(name, "list", "element")
}

// addMap adds a required map; its columns must be key and value.
func (t *table) addMap(name string) *parent {
	t.addGroup(name, format.Required, 1, new(format.MapType), thrift.New(deprecated.Map))
	t.addGroup("key_value", format.Repeated, 2, nil, thrift.Null[deprecated.ConvertedType]{})
	return t.repeated(name, "key_value")
}

func (t *table) repeated(path ...string) *parent {
	p := &parent{path: path, levels: &levels{repeated: true}}
	t.levels = append(t.levels, p.levels)
	return p
}

// setMeta adds a pair to the file's metadata.
func (t *table) setMeta(key, value string) {
	t.meta.KeyValueMetadata = append(t.meta.KeyValueMetadata, format.KeyValue{Key: key, Value: value})
}

// row ends a row whose values have about size bytes.
func (t *table) row(size int) error {
	t.rows++
	if t.size += size; t.size < pageBytes {
		return nil
	}
	return t.flushPage()
}

func (t *table) flushPage() error {
	if t.rows == 0 {
		return nil
	}
	full := t.group.NumRows+t.rows >= rowGroupRows
	for _, c := range t.columns {
		if c.like != nil {
			continue
		}
		if err := t.page(c); err != nil {
			return fmt.Errorf("write %s: column %v: %w", t.what, c.path, err)
		}
		full = full || c.values.dict() != nil && len(c.values.dict().data) > dictBytesMax
	}
	for _, l := range t.levels {
		l.reset()
	}
	t.group.NumRows += t.rows
	t.rows, t.size = 0, 0
	if full || t.pages >= rowGroupBytes {
		return t.flushGroup()
	}
	return nil
}

// page encodes the values of a column and appends a data page to its chunk.
func (t *table) page(c *column) error {
	n := c.values.count()
	nulls := 0
	t.body = t.body[:0]
	if c.levels != nil {
		n = c.levels.count()
		nulls = n - c.levels.def.ones
		if c.levels.repeated {
			t.body = c.levels.rep.appendTo(t.body)
		}
		t.body = c.levels.def.appendTo(t.body)
	}
	c.measure()
	values, encoding := c.values.encode(t.scratch[:0])
	t.scratch = values
	t.body = append(t.body, values...)
	if len(t.body) > pageBytesMax {
		return fmt.Errorf("a page has %d bytes; at most %d are possible", len(t.body), pageBytesMax)
	}
	c.count += int64(n)
	c.nulls += int64(nulls)
	c.encode(encoding)
	return t.appendPage(c, t.body, &format.PageHeader{
		Type: format.DataPage,
		DataPageHeader: thrift.New(format.DataPageHeader{NumValues: int32(n), Encoding: encoding,
			DefinitionLevelEncoding: format.RLE, RepetitionLevelEncoding: format.RLE,
			Statistics: format.Statistics{NullCount: int64(nulls)}}),
	}, &c.pages)
}

// appendPage appends a page to dst: its header and its body, compressed where the column is.
func (t *table) appendPage(c *column, body []byte, h *format.PageHeader, dst *[]byte) error {
	stored := body
	if c.shape.codec == format.Zstd {
		t.scratch = t.zstd.EncodeAll(body, t.scratch[:0])
		stored = t.scratch
	}
	h.UncompressedPageSize = int32(len(body))
	h.CompressedPageSize = int32(len(stored))
	header, err := thrift.Marshal(&t.protocol, h)
	if err != nil {
		return err
	}
	before := len(*dst)
	*dst = append(append(*dst, header...), stored...)
	t.pages += len(*dst) - before
	c.uncompressed += int64(len(header) + len(body))
	return nil
}

// flushGroup writes the row group.
func (t *table) flushGroup() error {
	if t.group.NumRows == 0 {
		return nil
	}
	if t.offset == 0 {
		if err := t.write([]byte("PAR1")); err != nil {
			return err
		}
	}
	t.group.FileOffset = t.offset
	t.group.Ordinal = int16(len(t.meta.RowGroups))
	t.group.Columns = make([]format.ColumnChunk, len(t.columns))
	for i, c := range t.columns {
		if err := t.writeChunk(c, &t.group.Columns[i].MetaData); err != nil {
			return err
		}
		t.group.TotalByteSize += t.group.Columns[i].MetaData.TotalUncompressedSize
	}
	for _, c := range t.columns {
		c.reset()
	}
	t.group.TotalCompressedSize = t.offset - t.group.FileOffset
	t.meta.NumRows += t.group.NumRows
	t.meta.RowGroups = append(t.meta.RowGroups, t.group)
	t.group, t.pages = format.RowGroup{}, 0
	return nil
}

// writeChunk writes the dictionary and the pages of a column.
func (t *table) writeChunk(c *column, m *format.ColumnMetaData) error {
	start := t.offset
	data := *c
	if c.like != nil {
		data = *c.like
		data.path = c.path
	}
	c = &data
	if d := c.values.dict(); d != nil && c.dictionary {
		var page []byte
		err := t.appendPage(c, d.data, &format.PageHeader{
			Type:                 format.DictionaryPage,
			DictionaryPageHeader: thrift.New(format.DictionaryPageHeader{NumValues: int32(d.len()), Encoding: format.Plain}),
		}, &page)
		if err != nil {
			return fmt.Errorf("write %s: %w", t.what, err)
		}
		m.DictionaryPageOffset = start
		if err := t.write(page); err != nil {
			return err
		}
	}
	m.DataPageOffset = t.offset
	if err := t.write(c.pages); err != nil {
		return err
	}
	m.Type = c.shape.physical
	m.Encoding = append([]format.Encoding{format.RLE}, c.encodings...)
	m.PathInSchema = c.path
	m.Codec = c.shape.codec
	m.NumValues = c.count
	m.TotalUncompressedSize = c.uncompressed
	m.TotalCompressedSize = t.offset - start
	m.Statistics = format.Statistics{NullCount: c.nulls, MinValue: c.least, MaxValue: c.greatest}
	return nil
}

func (t *table) write(p []byte) error {
	n, err := t.w.Write(p)
	t.offset += int64(n)
	if err != nil {
		return fmt.Errorf("write %s: %w", t.what, err)
	}
	return nil
}

// close writes what is left and the footer.
func (t *table) close() error {
	if err := t.flushPage(); err != nil {
		return err
	}
	if err := t.flushGroup(); err != nil {
		return err
	}
	if t.offset == 0 { // no rows
		if err := t.write([]byte("PAR1")); err != nil {
			return err
		}
	}
	t.meta.Version = 2
	t.meta.Schema = t.schema
	t.meta.CreatedBy = "weft"
	for range t.columns {
		t.meta.ColumnOrders = append(t.meta.ColumnOrders, format.ColumnOrder{Value: new(format.TypeDefinedOrder)})
	}
	footer, err := thrift.Marshal(&t.protocol, &t.meta)
	if err != nil {
		return fmt.Errorf("write %s: %w", t.what, err)
	}
	footer = binary.LittleEndian.AppendUint32(footer, uint32(len(footer)))
	return t.write(append(footer, "PAR1"...))
}

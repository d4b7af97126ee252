// Package pqfile opens Parquet files that may be damaged or hostile. The library that decodes them trusts sizes that stand
// in the file; here they are checked before it sees them, and its panics become errors.
package pqfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// Limits on what a file may ask for.
const (
	FooterBytesMax = 64 << 20
	PageBytesMax   = 256 << 20 // of a page, compressed or not
	PageValuesMax  = 1 << 24
	headerBytesMax = 64 << 20 // of a page's header: some writers put whole values into its statistics
	magic          = "PAR1"
)

// File is an open Parquet file.
type File struct {
	*parquet.File
	file io.ReaderAt
}

// Open opens a file. Errors name the file and what is wrong with it.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err // names the operation and the path
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("read %s: is a folder; expected a Parquet file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	p, err := OpenAt(path, f, info.Size())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

// OpenAt opens a file of size bytes that r reads. If r is an io.Closer, Close closes it. The name is for errors.
func OpenAt(name string, r io.ReaderAt, size int64) (*File, error) {
	f := &File{file: r}
	err := checkFooter(r, size)
	if err == nil {
		err = Guard(func() (err error) {
			f.File, err = parquet.OpenFile(r, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return f, nil
}

// Close closes the file.
func (f *File) Close() error {
	if c, ok := f.file.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Guard runs what calls the library on data of the file, and returns its panic as an error.
func Guard(run func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the file is damaged: the Parquet library gave up: %v", p)
		}
	}()
	return run()
}

// Pages returns the pages of a column of a row group, after a check of all their headers.
func (f *File) Pages(group, column int) (pages parquet.Pages, err error) {
	err = Guard(func() error {
		chunk := f.RowGroups()[group].ColumnChunks()[column]
		if err := f.checkChunk(&f.Metadata().RowGroups[group].Columns[column]); err != nil {
			return err
		}
		pages = chunk.Pages()
		return nil
	})
	return pages, err
}

// checkFooter checks the magic bytes and the sizes within the footer.
func checkFooter(r io.ReaderAt, size int64) error {
	const frame = 2*len(magic) + 4
	if size == 0 {
		return errors.New("is empty; expected a Parquet file")
	}
	head := make([]byte, len(magic))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return err
	}
	if string(head) != magic {
		return fmt.Errorf("is no Parquet file: it starts with %q", head)
	}
	if size < int64(frame) {
		return fmt.Errorf("is cut off: it has %d bytes", size)
	}
	tail := make([]byte, 4+len(magic))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil {
		return err
	}
	if string(tail[4:]) != magic {
		return errors.New("is cut off: the footer of a Parquet file is missing")
	}
	length := int64(binary.LittleEndian.Uint32(tail))
	if length > min(size-int64(frame), FooterBytesMax) {
		return fmt.Errorf("is damaged: its footer claims %d bytes of %d", length, size)
	}
	footer := make([]byte, length)
	if _, err := r.ReadAt(footer, size-int64(len(tail))-length); err != nil {
		return err
	}
	used, err := scan(footer)
	if err != nil {
		return fmt.Errorf("is damaged: footer: %w", err)
	}
	if used != len(footer) {
		return fmt.Errorf("is damaged: footer: it has %d bytes of %d", used, len(footer))
	}
	return nil
}

// checkChunk checks the header of each page of a column chunk.
func (f *File) checkChunk(c *format.ColumnChunk) error {
	m := &c.MetaData
	switch m.Codec {
	case format.Uncompressed, format.Snappy, format.Zstd:
	default:
		return fmt.Errorf("column %q is compressed with %v; expected zstd, snappy or none", m.PathInSchema, m.Codec)
	}
	at := m.DataPageOffset
	if m.DictionaryPageOffset != 0 {
		at = m.DictionaryPageOffset
	}
	end := at + m.TotalCompressedSize
	if at < 0 || m.TotalCompressedSize < 0 || end < at || end > f.Size() {
		return fmt.Errorf("is damaged: column %q claims bytes %d to %d of %d", m.PathInSchema, at, end, f.Size())
	}
	for at < end {
		next, err := f.checkPage(m.Codec, at, end)
		if err != nil {
			return fmt.Errorf("is damaged: column %q, page at byte %d: %w", m.PathInSchema, at, err)
		}
		at = next
	}
	return nil
}

// checkPage checks the page at a byte and returns where the next one starts.
func (f *File) checkPage(codec format.CompressionCodec, at, end int64) (int64, error) {
	h, length, err := f.readHeader(at, end)
	if err != nil {
		return 0, err
	}
	body := at + int64(length)
	next := body + int64(h.CompressedPageSize)
	switch {
	case h.CompressedPageSize < 0 || h.CompressedPageSize > PageBytesMax || next > end:
		return 0, fmt.Errorf("claims %d bytes", h.CompressedPageSize)
	case h.UncompressedPageSize < 0 || h.UncompressedPageSize > PageBytesMax:
		return 0, fmt.Errorf("claims %d bytes decompressed; at most %d are allowed", h.UncompressedPageSize, PageBytesMax)
	}
	values := max(h.DataPageHeader.V.NumValues, h.DataPageHeaderV2.V.NumValues, h.DictionaryPageHeader.V.NumValues)
	if values > PageValuesMax {
		return 0, fmt.Errorf("claims %d values; at most %d are allowed", values, PageValuesMax)
	}
	if v2, ok := h.DataPageHeaderV2.Get(); ok {
		levels := int64(v2.RepetitionLevelsByteLength) + int64(v2.DefinitionLevelsByteLength)
		if v2.RepetitionLevelsByteLength < 0 || v2.DefinitionLevelsByteLength < 0 || levels > int64(h.CompressedPageSize) {
			return 0, fmt.Errorf("claims %d bytes of levels", levels)
		}
		body += levels
		if v2.IsCompressed.Valid && !v2.IsCompressed.V {
			return next, nil
		}
	}
	decompressed, err := decompressedMax(io.NewSectionReader(f.file, body, next-body), codec)
	if err == nil && decompressed > PageBytesMax {
		err = fmt.Errorf("decompresses to up to %d bytes; at most %d are allowed", decompressed, PageBytesMax)
	}
	return next, err
}

// readHeader reads a page's header and its length in bytes.
func (f *File) readHeader(at, end int64) (h format.PageHeader, length int, err error) {
	for size := int64(1 << 10); ; size *= 16 {
		buf := make([]byte, min(size, end-at))
		if _, err := f.file.ReadAt(buf, at); err != nil {
			return h, 0, err
		}
		length, err = scan(buf)
		if errors.Is(err, errShort) && size < headerBytesMax && end-at > size {
			continue
		}
		if err != nil {
			return h, 0, err
		}
		var protocol thrift.CompactProtocol
		return h, length, thrift.Unmarshal(&protocol, buf[:length], &h)
	}
}

// decompressedMax returns a bound of what a page decompresses to, from the sizes that stand in the compressed data.
func decompressedMax(r *io.SectionReader, codec format.CompressionCodec) (int64, error) {
	switch {
	case codec == format.Snappy && r.Size() > 0:
		buf := make([]byte, min(binary.MaxVarintLen64, r.Size()))
		if _, err := r.ReadAt(buf, 0); err != nil {
			return 0, err
		}
		n, used := binary.Uvarint(buf)
		if used <= 0 || n > 1<<40 {
			return 0, errors.New("the length of the compressed data is damaged")
		}
		return int64(n), nil
	case codec == format.Zstd:
		return zstdMax(r)
	}
	return r.Size(), nil
}

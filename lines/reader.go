// Package lines reads files of records, one a line: plain, gzip or zstd, told apart by their first bytes. Whole blocks are
// read straight into the batch that is to be decoded; no line is copied.
package lines

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/weftdata/weft/event"
)

const (
	// FillBytesMax bounds what one Fill asks for, so that offsets within a batch keep well below 32 bits.
	FillBytesMax = 1 << 30
	// RejectBytes is how much of a line over event.RecordBytesMax is kept.
	RejectBytes = 1 << 10

	bufferBytes    = 64 << 10  // larger reads bypass the buffer
	skipBytes      = 256 << 10 // block in which the rest of an endless line is passed over
	windowBytesMax = 128 << 20 // of zstd: what `zstd --long=27` writes
	emptyReadsMax  = 100       // reads in a row that give neither bytes nor an error
)

// Reader reads the lines of one file. It is not safe for concurrent use, except for BytesRead.
//
//	for more := true; more; {
//		batch.Reset()
//		if more, err = r.Fill(batch, source, 1<<20); err != nil { … } // the batch holds the lines before the error
//		… decode batch.Records …
//	}
type Reader struct {
	name       string
	src        io.Reader
	raw        *countingReader
	compressed bool
	size       int64
	close      []func() error

	tail []byte // start of a line whose end the last Fill did not reach
	line int64  // lines that were taken, empty ones included
	err  error  // how the file ended; io.EOF or an error that every later Fill repeats
}

// countingReader counts bytes and keeps the error of the file itself, to tell it from a decompressor's.
type countingReader struct {
	r   io.Reader
	n   atomic.Int64
	err error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// Open opens a file of lines; "-" is standard input. An empty file is no error: it has no records.
func Open(path string) (*Reader, error) {
	if path == "-" {
		return NewReader(os.Stdin, "standard input")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err // names the operation and the path
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("open %s: is a folder; name a file of lines", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r, err := NewReader(f, path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r.close = append(r.close, f.Close)
	if info.Mode().IsRegular() {
		r.size = info.Size()
	}
	return r, nil
}

// NewReader reads lines from src; name stands for it in errors. Closing the Reader does not close src.
func NewReader(src io.Reader, name string) (*Reader, error) {
	raw := &countingReader{r: src}
	buffered := bufio.NewReaderSize(raw, bufferBytes)
	r := &Reader{name: name, src: buffered, raw: raw, size: -1}
	magic, err := buffered.Peek(4)
	if err != nil && err != io.EOF {
		return nil, r.explain(err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b, 8}):
		r.compressed = true
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, r.explain(err)
		}
		r.src = z
	case isZstd(magic):
		r.compressed = true
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(windowBytesMax))
		if err != nil {
			return nil, r.explain(err)
		}
		r.src = z
		r.close = append(r.close, func() error { z.Close(); return nil })
	}
	return r, nil
}

// isZstd tells whether a file starts with a frame of zstd, or with a skippable frame, as parallel compressors write.
func isZstd(magic []byte) bool {
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// Size returns the size of the file in bytes as stored; -1 where it is not known (a pipe).
func (r *Reader) Size() int64 { return r.size }

// BytesRead returns how many stored (compressed) bytes were read so far. It may be called while Fill runs.
func (r *Reader) BytesRead() int64 { return r.raw.n.Load() }

// Lines returns how many lines were taken so far, empty ones included.
func (r *Reader) Lines() int64 { return r.line }

// Close closes the file.
func (r *Reader) Close() error {
	r.err = fmt.Errorf("read %s: %w", r.name, os.ErrClosed)
	var errs []error
	for _, f := range r.close {
		errs = append(errs, f())
	}
	r.close = nil
	return errors.Join(errs...)
}

// Fill appends about maxBytes of whole lines to the batch: their bytes to Data, and to Records one record a line with the
// line's number from 0 as its offset. An empty line has a number and no record. A line longer than event.RecordBytesMax
// becomes a reject of its first RejectBytes and is never held whole.
//
// more is false when the file ended. On an error the batch still holds the whole lines before it.
func (r *Reader) Fill(b *event.Batch, source uint16, maxBytes int) (more bool, err error) {
	if r.err != nil {
		return false, r.failure()
	}
	maxBytes = min(max(maxBytes, 1), FillBytesMax)
	if math.MaxUint32-len(b.Data) < maxBytes+2*event.RecordBytesMax {
		return false, fmt.Errorf("read %s: the batch is full: it holds %d bytes", r.name, len(b.Data))
	}
	from := len(b.Data) // start of the line that is being read
	end := from + max(maxBytes, len(r.tail))
	b.Data = slices.Grow(b.Data, end-from)
	b.Data = append(b.Data, r.tail...)
	at := len(b.Data) // no line ends before it
	r.tail = r.tail[:0]
	for found := false; ; {
		r.readTo(b, end)
		next := r.split(b, source, from, at)
		found = found || next > from
		from, at = next, len(b.Data)
		switch {
		case len(b.Data)-from > event.RecordBytesMax+1: // the one is for a carriage return
			from = r.skip(b, source, from)
			found, at = true, from
		case r.err == io.EOF:
			if len(b.Data) > from {
				r.take(b, source, from, len(b.Data))
			}
			return false, nil
		case r.err != nil:
			b.Data = b.Data[:from]
			r.err = r.explain(r.err)
			return false, r.err
		case found:
			r.tail = append(r.tail, b.Data[from:]...)
			b.Data = b.Data[:from]
			return true, nil
		default: // one line alone is longer than maxBytes
			end = len(b.Data) + max(maxBytes, bufferBytes)
			b.Data = slices.Grow(b.Data, end-len(b.Data))
		}
	}
}

func (r *Reader) failure() error {
	if r.err == io.EOF {
		return nil
	}
	return r.err
}

// readTo reads until Data is end bytes long, or the file ends and r.err says how.
func (r *Reader) readTo(b *event.Batch, end int) {
	for empty := 0; len(b.Data) < end && r.err == nil; {
		var n int
		n, r.err = r.src.Read(b.Data[len(b.Data):end])
		b.Data = b.Data[:len(b.Data)+n]
		if n > 0 {
			empty = 0
		} else if empty++; empty == emptyReadsMax && r.err == nil {
			r.err = io.ErrNoProgress
		}
	}
}

// split takes the lines of Data[from:], none of which ends before at. It returns the start of the unfinished one.
func (r *Reader) split(b *event.Batch, source uint16, from, at int) int {
	for {
		i := bytes.IndexByte(b.Data[at:], '\n')
		if i < 0 {
			return from
		}
		r.take(b, source, from, at+i)
		from = at + i + 1
		at = from
	}
}

// take makes the line Data[from:to] a record.
func (r *Reader) take(b *event.Batch, source uint16, from, to int) {
	if to > from && b.Data[to-1] == '\r' {
		to--
	}
	switch {
	case to-from > event.RecordBytesMax:
		r.reject(b, source, from, int64(to-from))
	case to > from:
		b.Records = append(b.Records, r.record(source, from, to-from))
	}
	r.line++
}

func (r *Reader) record(source uint16, off, length int) event.Record {
	return event.Record{
		Source: source, Offset: r.line, Timestamp: event.MinTime, Off: uint32(off), Len: uint32(length),
	}
}

func (r *Reader) reject(b *event.Batch, source uint16, off int, length int64) {
	b.Rejects = append(b.Rejects, event.Reject{
		Record: r.record(source, off, RejectBytes),
		Reason: event.ReasonTooLong,
		Detail: fmt.Sprintf("the line has %d bytes; at most %d are allowed", length, event.RecordBytesMax),
	})
}

// skip rejects the unfinished line at Data[from:] and passes over the rest of it. What was read behind its end moves up
// to the kept bytes, where the next line starts: there skip returns.
func (r *Reader) skip(b *event.Batch, source uint16, from int) int {
	keep := from + RejectBytes
	length := int64(len(b.Data) - from)
	last := b.Data[len(b.Data)-1]
	ended := false
	for !ended && r.err == nil {
		b.Data = b.Data[:keep]
		r.readTo(b, keep+skipBytes)
		var line, rest []byte
		line, rest, ended = bytes.Cut(b.Data[keep:], []byte{'\n'})
		if len(line) > 0 {
			last = line[len(line)-1]
		}
		length += int64(len(line))
		if ended {
			b.Data = append(b.Data[:keep], rest...)
		}
	}
	if last == '\r' {
		length--
	}
	if !ended {
		b.Data = b.Data[:keep]
	}
	if ended || r.err == io.EOF {
		r.reject(b, source, from, length)
		r.line++
	}
	return keep
}

// explain says what went wrong with the file and how far it was read.
func (r *Reader) explain(err error) error {
	place := "before the first line ended"
	if r.line > 0 {
		place = fmt.Sprintf("after line %d", r.line)
	}
	var path *fs.PathError
	switch {
	case r.raw.err != nil:
		if err = r.raw.err; errors.As(err, &path) {
			err = path.Err // the name is said already
		}
		return fmt.Errorf("read %s: %s: %w", r.name, place, err)
	case r.compressed && (err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)):
		return fmt.Errorf("read %s: compressed data ends early %s: %w", r.name, place, io.ErrUnexpectedEOF)
	case r.compressed:
		return fmt.Errorf("read %s: cannot decompress %s: %w", r.name, place, err)
	default:
		return fmt.Errorf("read %s: %s: %w", r.name, place, err)
	}
}

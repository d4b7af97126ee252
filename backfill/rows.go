package backfill

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"

	"github.com/klauspost/compress/zstd"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// A file of staged rows holds sessions and rejects exactly as the core and the decoders gave them, where the Parquet files
// beside it are for people and hold text. docs/formats/staged.md describes it.
const (
	rowsMagic       = "weftrow1"
	sessionRow      = 1
	rejectRow       = 2
	rowBytesMax     = 256 << 20
	objectPartBytes = 8 << 20 // that are asked for at once
)

// stagedReject is a rejected record.
type stagedReject struct {
	event.Record
	Reason event.Reason
	Detail string
	Raw    []byte
}

// rowsWriter writes staged rows.
type rowsWriter struct {
	z   *zstd.Encoder
	buf []byte
}

func newRowsWriter(w io.Writer) (*rowsWriter, error) {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	_, err = z.Write([]byte(rowsMagic))
	return &rowsWriter{z: z}, err
}

func (w *rowsWriter) close() error { return w.z.Close() }

func appendRowText[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// session writes a session.
func (w *rowsWriter) session(r *correlate.Row) error { return w.put(w.appendSession(w.buf[:0], r)) }

func (w *rowsWriter) appendSession(b []byte, r *correlate.Row) []byte {
	b = append(b, sessionRow)
	b = append(b, r.ID[:]...)
	b = binary.AppendVarint(b, int64(r.Start))
	b = binary.AppendVarint(b, int64(r.End))
	b = binary.AppendVarint(b, r.Count)
	b = binary.AppendUvarint(b, uint64(len(r.Keys)))
	for i := range r.Keys {
		k := &r.Keys[i]
		b = binary.AppendUvarint(b, uint64(k.Kind))
		b = appendRowText(b, k.Value)
		b = binary.AppendVarint(b, int64(k.First-r.Start))
	}
	for i := range r.Fields {
		f := &r.Fields[i]
		if !f.Present {
			b = append(b, 0)
			continue
		}
		b = append(b, 1)
		b = appendRowText(b, f.Text)
		b = binary.AppendVarint(b, f.Int)
		b = binary.AppendVarint(b, int64(f.First-r.Start))
	}
	b = binary.AppendUvarint(b, uint64(len(r.Hits)))
	for _, h := range r.Hits {
		b = binary.AppendUvarint(b, uint64(h.Scenario))
		b = binary.AppendVarint(b, int64(h.DecidedAt-r.Start))
	}
	b = binary.AppendUvarint(b, uint64(len(r.Events)))
	last := r.Start
	for i := range r.Events {
		e := &r.Events[i]
		b = binary.AppendVarint(b, int64(e.Time-last))
		last = e.Time
		b = binary.AppendUvarint(b, uint64(e.Source))
		b = binary.AppendVarint(b, int64(e.Partition))
		b = binary.AppendVarint(b, e.Offset)
		b = binary.AppendUvarint(b, uint64(e.Index))
		b = appendRowText(b, r.StepNames[e.Step])
	}
	return b
}

// reject writes a rejected record.
func (w *rowsWriter) reject(raw []byte, r *event.Reject) error {
	b := append(w.buf[:0], rejectRow)
	b = binary.AppendUvarint(b, uint64(r.Record.Source))
	b = binary.AppendVarint(b, int64(r.Record.Partition))
	b = binary.AppendVarint(b, r.Record.Offset)
	b = binary.AppendVarint(b, int64(r.Record.Timestamp))
	b = appendRowText(b, string(r.Reason))
	b = appendRowText(b, r.Detail)
	b = appendRowText(b, raw)
	return w.put(b)
}

func (w *rowsWriter) put(b []byte) error {
	w.buf = b
	var head [4]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(b)))
	if _, err := w.z.Write(head[:]); err != nil {
		return err
	}
	_, err := w.z.Write(b)
	return err
}

// stagedRow is one row as it is read back: one of both is set. It is valid until the next.
type stagedRow struct {
	session *correlate.Row
	reject  *stagedReject
}

// readRows reads a file of staged rows. It trusts nothing, and after an error it ends. The file's SHA-256 is compared at the
// end: whoever acts on rows before must be able to take that back.
func readRows(ctx context.Context, objects ObjectStore, f FileRef, cfg *correlate.Config) iter.Seq2[stagedRow, error] {
	return func(yield func(stagedRow, error) bool) {
		fail := func(err error) { yield(stagedRow{}, fmt.Errorf("read %s: %w", f.Key, err)) }
		o := &objectReader{ctx: ctx, objects: objects, file: f}
		z, err := zstd.NewReader(o, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(rowBytesMax))
		if err != nil {
			fail(err)
			return
		}
		defer z.Close()
		r := bufio.NewReaderSize(z, 1<<18)
		magic := make([]byte, len(rowsMagic))
		if _, err := io.ReadFull(r, magic); err != nil || string(magic) != rowsMagic {
			fail(o.damaged(err))
			return
		}
		d := newRowDecoder(cfg)
		for {
			ok, err := d.next(r)
			if err != nil {
				fail(o.damaged(err))
				return
			}
			if !ok {
				break
			}
			row, err := d.row()
			if err != nil {
				fail(fmt.Errorf("%w: %w", ErrStaged, err))
				return
			}
			if !yield(row, nil) {
				return
			}
		}
		if err := o.check(); err != nil {
			fail(err)
		}
	}
}

// objectReader reads an object by parts and sums it up.
type objectReader struct {
	ctx     context.Context // of the read: io.Reader has none
	objects ObjectStore
	file    FileRef
	at      int64
	part    []byte
	sum     []byte
	err     error // of the store
	hash    interface {
		io.Writer
		Sum([]byte) []byte
	}
}

// Read implements io.Reader.
func (o *objectReader) Read(p []byte) (int, error) {
	if o.hash == nil {
		o.hash = sha256.New()
	}
	if len(o.part) == 0 {
		if o.at >= o.file.Bytes {
			return 0, io.EOF
		}
		data, err := o.objects.GetRange(o.ctx, o.file.Key, o.at, min(objectPartBytes, o.file.Bytes-o.at))
		if err != nil {
			o.err = err
			return 0, err
		}
		if len(data) == 0 {
			return 0, io.ErrUnexpectedEOF
		}
		o.hash.Write(data)
		o.part, o.at = data, o.at+int64(len(data))
	}
	n := copy(p, o.part)
	o.part = o.part[n:]
	return n, nil
}

// damaged tells an error of the store from a damaged file.
func (o *objectReader) damaged(err error) error {
	switch {
	case o.err != nil:
		return o.err
	case err == nil:
		err = errors.New("it does not start as a file of rows does")
	}
	return fmt.Errorf("%w: %w", ErrStaged, err)
}

// check compares the object with its manifest once it is read to its end.
func (o *objectReader) check() error {
	if _, err := io.Copy(io.Discard, o); err != nil {
		return o.damaged(err)
	}
	if hex.EncodeToString(o.hash.Sum(nil)) != o.file.SHA256 {
		return fmt.Errorf("%w: it has another SHA-256 than its manifest says", ErrStaged)
	}
	return nil
}

// rowDecoder decodes rows into memory of its own.
type rowDecoder struct {
	cfg    *correlate.Config
	buf    []byte
	b      []byte
	bad    bool
	out    correlate.Row
	reject stagedReject
	steps  map[string]uint32
}

func newRowDecoder(cfg *correlate.Config) *rowDecoder {
	return &rowDecoder{cfg: cfg, steps: map[string]uint32{}, out: correlate.Row{Fields: make([]correlate.RowField, len(cfg.Fields))}}
}

// next reads the bytes of a row; false at the end.
func (d *rowDecoder) next(r io.Reader) (bool, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err == io.EOF {
		return false, nil
	} else if err != nil {
		return false, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > rowBytesMax {
		return false, fmt.Errorf("a row claims %d bytes; at most %d are allowed", n, rowBytesMax)
	}
	if int(n) > cap(d.buf) {
		d.buf = make([]byte, 0, max(int(n), 4096))
	}
	d.buf = d.buf[:n]
	_, err := io.ReadFull(r, d.buf)
	return true, err
}

var errRow = errors.New("a row is damaged")

func (d *rowDecoder) row() (stagedRow, error) {
	d.b, d.bad = d.buf, false
	switch d.byte() {
	case sessionRow:
		d.session()
		if d.bad || len(d.b) > 0 {
			return stagedRow{}, errRow
		}
		return stagedRow{session: &d.out}, nil
	case rejectRow:
		d.reject = stagedReject{Record: event.Record{Source: uint16(d.below(len(d.cfg.Topics))), Partition: int32(d.int()), Offset: d.int(),
			Timestamp: event.Micros(d.int())}, Reason: event.Reason(d.text()), Detail: string(d.text()), Raw: d.text()}
		if d.bad || len(d.b) > 0 {
			return stagedRow{}, errRow
		}
		return stagedRow{reject: &d.reject}, nil
	}
	return stagedRow{}, errRow
}

func (d *rowDecoder) session() {
	r := &d.out
	copy(r.ID[:], d.bytes(uint64(len(r.ID))))
	r.Start, r.End, r.Count = event.Micros(d.int()), event.Micros(d.int()), d.int()
	r.Keys = r.Keys[:0]
	for range d.count() {
		r.Keys = append(r.Keys, correlate.RowKey{Kind: d.below(len(d.cfg.Kinds)), Value: d.text(), First: r.Start + event.Micros(d.int())})
	}
	clear(r.Fields)
	for i := range r.Fields {
		if d.byte() == 0 {
			continue
		}
		r.Fields[i] = correlate.RowField{Present: true, Text: d.text(), Int: d.int(), First: r.Start + event.Micros(d.int())}
	}
	r.Hits = r.Hits[:0]
	for range d.count() {
		r.Hits = append(r.Hits, correlate.Hit{Scenario: d.below(len(d.cfg.Scenarios)), DecidedAt: r.Start + event.Micros(d.int())})
	}
	if len(d.steps) > 4096 { // steps are values from outside
		clear(d.steps)
		r.StepNames = nil
	}
	r.Events = r.Events[:0]
	last := r.Start
	for range d.count() {
		last += event.Micros(d.int())
		e := correlate.RowEvent{Time: last, Source: uint16(d.below(len(d.cfg.Topics))), Partition: int32(d.int()), Offset: d.int()}
		index := d.uint()
		d.bad = d.bad || index > math.MaxUint16
		e.Index, e.Step = uint16(index), d.step(d.text())
		r.Events = append(r.Events, e)
	}
	d.bad = d.bad || len(r.Events) == 0 || r.Events[0].Time != r.Start
}

func (d *rowDecoder) step(name []byte) uint32 {
	n, ok := d.steps[string(name)]
	if !ok {
		n = uint32(len(d.out.StepNames))
		d.steps[string(name)] = n
		d.out.StepNames = append(d.out.StepNames, string(name))
	}
	return n
}

func (d *rowDecoder) byte() byte {
	if p := d.bytes(1); len(p) == 1 {
		return p[0]
	}
	return 0
}

func (d *rowDecoder) bytes(n uint64) []byte {
	if d.bad || n > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *rowDecoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if d.bad = d.bad || n <= 0; d.bad {
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *rowDecoder) int() int64 {
	v, n := binary.Varint(d.b)
	if d.bad = d.bad || n <= 0; d.bad {
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads how many of something follow, each of at least a byte.
func (d *rowDecoder) count() uint64 {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad = true
		return 0
	}
	return n
}

func (d *rowDecoder) below(n int) int {
	v := d.uint()
	if v >= uint64(n) {
		d.bad = true
		return 0
	}
	return int(v)
}

func (d *rowDecoder) text() []byte { return d.bytes(d.uint()) }

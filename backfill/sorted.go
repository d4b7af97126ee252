package backfill

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/spill"
)

// Input that does not fit in memory is sorted by event time on disk, in runs that are merged: then a session can be
// handed out as soon as time has passed it, and only what is open is held. Where the job is sharded a replay merges each part of
// the key groups by itself, so only a part of what is open is held at a time. What of it does not fit goes to disk too, and comes
// back before an event can link to it, or when its time has come.

const (
	sortParts        = 16      // of a sharded job
	mergeBatchEvents = 4096    // events linked between two moves of the watermark
	runBufferBytes   = 1 << 18 // read at a time from each run …
	runBufferLeast   = 1 << 12 // … and where there are so many that this would be more than what is sorted at a time
)

// onDisk sorts all events on disk, then links them in order of time.
func (r *replay) onDisk(ctx context.Context, sources []source) (*Summary, error) {
	for _, s := range sources {
		if s.archive != nil {
			continue
		}
		if info, err := os.Stat(s.Path); s.Path == "-" || err == nil && info.Mode()&os.ModeType != 0 && !info.IsDir() {
			return nil, fmt.Errorf("input %s: %s does not fit in %d bytes of memory, and cannot be read twice; write it to a file, or allow more with --memory",
				s.Source, pipeName(s.Path), r.cfg.MemoryBytes)
		}
	}
	p, err := r.pipeline(ctx, sources)
	if err != nil {
		return nil, err
	}
	defer p.close()
	out, err := r.newSink()
	if err != nil {
		return nil, err
	}
	defer out.abort()
	cfg := r.job.Config
	cfg.Range = r.cfg.Range
	cfg.Session.Retention = 0 // events come in order
	sorter := newSorter(r.cfg.TempDir, &cfg, r.cfg.MemoryBytes)
	defer sorter.remove()
	if r.job.Spec.ShardBy != "" {
		sorter.parts = sortParts
	}
	var phase atomic.Value
	phase.Store("sorting")
	stop := r.watch(func() Progress { return p.progress(phase.Load().(string)) })
	defer stop()
	err = p.run(ctx, func(b *pipelineBatch) error {
		if err := out.batch(b); err != nil {
			return err
		}
		return sorter.add(&b.Batch)
	})
	if err == nil {
		err = sorter.end()
	}
	if err != nil {
		return nil, err
	}
	phase.Store("linking")
	total := correlate.Stats{Outside: sorter.outside}
	for part := range sorter.parts {
		stats, err := r.linkSorted(ctx, sorter, part, cfg, out)
		if err != nil {
			return nil, err
		}
		total.Events += stats.Events
		total.Duplicates += stats.Duplicates
		total.Folded += stats.Folded
		total.Late += stats.Late
	}
	out.s.SpilledBytes = sorter.written
	return out.finish(p, total)
}

func pipeName(path string) string {
	if path == "-" {
		return "what comes from standard input"
	}
	return "what comes through " + path
}

// linkSorted links the events of one part in order of time.
func (r *replay) linkSorted(ctx context.Context, s *sorter, part int, cfg correlate.Config, out *sink) (correlate.Stats, error) {
	core, err := correlate.New(cfg)
	if err != nil {
		return correlate.Stats{}, err
	}
	spilled := newSpill(r.cfg.TempDir, r.cfg.MemoryBytes, "", 1)
	defer spilled.Close()
	n := 0
	err = s.link(ctx, part, core, spilled, out, func() error {
		if n++; n%64 == 1 {
			out.s.state(core)
		}
		return out.err
	})
	if errors.Is(err, errMemory) {
		err = fmt.Errorf("%w: allow more with --memory, or lower the gaps or max_span", err)
	}
	if err != nil {
		return correlate.Stats{}, err
	}
	out.s.state(core)
	if err := spilled.Advance(core, event.MaxTime, out); err != nil {
		return correlate.Stats{}, err
	}
	core.Flush(out)
	return core.Stats(), out.err
}

// newSpill returns a place for what is open and does not fit in memory. Equal seeds give equal files.
func newSpill(dir string, memory int64, prefix string, seed uint64) *spill.Store {
	return spill.New(spill.Config{Dir: dir, MemoryBytes: memory / 2, // of what is live; what was is free, but taken
		Prefix: prefix, Final: true, Seed: seed})
}

// link applies the events of a part in order of time, and moves time with them.
func (s *sorter) link(ctx context.Context, part int, core *correlate.Core, spilled *spill.Store, out correlate.Output, each func() error) error {
	return s.each(ctx, part, func(b *event.Batch) error {
		if err := spilled.Load(core, b); err != nil {
			return err
		}
		if err := core.Apply(b, out); err != nil {
			return err
		}
		if err := spilled.Advance(core, b.Events[len(b.Events)-1].Time, out); err != nil {
			return err
		}
		err := spilled.Relieve(ctx, core, nil)
		if errors.Is(err, spill.ErrMemory) {
			return fmt.Errorf("%w although what can be is on disk: %w", errMemory, err)
		}
		return cmp.Or(err, each())
	})
}

// each hands on the events of a part in order of time, some at a time.
func (s *sorter) each(ctx context.Context, part int, take func(*event.Batch) error) error {
	m, err := s.open(part)
	if err != nil {
		return err
	}
	var b event.Batch
	for {
		b.Reset()
		for len(b.Events) < s.batch && len(m.runs) > 0 {
			if err := m.next(&b); err != nil {
				return err
			}
		}
		if len(b.Events) == 0 {
			return nil
		}
		if err := take(&b); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// sorter writes sorted runs. A run is a file of events in order of (part, time); one part of it is a segment.
type sorter struct {
	dir   string
	near  correlate.Range
	parts int
	limit int // bytes that are sorted at a time
	batch int // events that are handed on at a time

	data    []byte // encoded events
	index   []sortRef
	runs    []sortRun
	written int64
	outside int64
}

type sortRef struct {
	time event.Micros
	off  uint32
	part uint16
}

type sortRun struct {
	f     *os.File // has no name any more, so that nothing is left of a process that dies
	start []int64  // of each part, and the end of the last
}

func newSorter(dir string, cfg *correlate.Config, memory int64) *sorter {
	return &sorter{dir: dir, near: cfg.Near(), parts: 1, limit: int(min(memory/4, 1<<30)), batch: mergeBatchEvents}
}

// remove frees the disk.
func (s *sorter) remove() {
	for _, run := range s.runs {
		run.f.Close()
	}
	s.runs = nil
}

func (s *sorter) add(b *event.Batch) error {
	start := uint32(0)
	for i := range b.Events {
		e := &b.Events[i]
		values := b.Values[start:e.Vals]
		start = e.Vals
		if !s.near.Contains(e.Time) {
			s.outside++
			continue
		}
		s.index = append(s.index, sortRef{e.Time, uint32(len(s.data)), uint16(int(e.Group) * s.parts / event.KeyGroups)})
		s.data = appendEvent(s.data, b, e, values)
	}
	if len(s.data)+16*len(s.index) >= s.limit {
		return s.flush()
	}
	return nil
}

// end writes what is left, and frees what sorting took.
func (s *sorter) end() error {
	err := s.flush()
	s.data, s.index = nil, nil
	return err
}

// flush writes what is held as a run.
func (s *sorter) flush() error {
	if len(s.index) == 0 {
		return nil
	}
	slices.SortFunc(s.index, func(a, b sortRef) int {
		return cmp.Or(cmp.Compare(a.part, b.part), cmp.Compare(a.time, b.time), cmp.Compare(a.off, b.off))
	})
	f, err := os.CreateTemp(s.dir, "weft-sort-")
	if err != nil {
		return fmt.Errorf("sort on disk: %w", err)
	}
	run := sortRun{f: f}
	s.runs = append(s.runs, run)
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("sort on disk: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	at := int64(0)
	for _, r := range s.index {
		for len(run.start) <= int(r.part) {
			run.start = append(run.start, at)
		}
		n := sortHeader + int(binary.LittleEndian.Uint32(s.data[r.off:]))
		w.Write(s.data[r.off : int(r.off)+n]) // bufio keeps the error for Flush
		at += int64(n)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("sort on disk: %w", err)
	}
	for len(run.start) <= s.parts {
		run.start = append(run.start, at)
	}
	s.runs[len(s.runs)-1] = run
	s.written += at
	s.data, s.index = s.data[:0], s.index[:0]
	return nil
}

// An encoded event: 4 bytes with the length of what follows, the fixed members, the step, then each value.
const (
	sortHeader = 4
	sortFixed  = 8 + 8 + 4 + 2 + 2 + 2 + 2 + 2
	sortValue  = 8 + 2 + 1 + 1
)

func appendEvent(dst []byte, b *event.Batch, e *event.Event, values []event.Value) []byte {
	le := binary.LittleEndian
	at := len(dst)
	step := b.Steps[e.Step]
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint64(dst, uint64(e.Time))
	dst = le.AppendUint64(dst, uint64(e.Offset))
	dst = le.AppendUint32(dst, uint32(e.Partition))
	dst = le.AppendUint16(dst, e.Index)
	dst = le.AppendUint16(dst, e.Source)
	dst = le.AppendUint16(dst, e.Group)
	dst = le.AppendUint16(dst, uint16(len(values)))
	dst = le.AppendUint16(dst, uint16(len(step)))
	dst = append(dst, step...)
	for i := range values {
		v := &values[i]
		dst = le.AppendUint64(dst, v.Bits)
		dst = le.AppendUint16(dst, v.Len)
		dst = append(dst, v.ID, byte(v.Kind))
		dst = append(dst, b.Bytes(v)...)
	}
	le.PutUint32(dst[at:], uint32(len(dst)-at-sortHeader))
	return dst
}

// decodeEvent appends an encoded event, without its header, to a batch.
func decodeEvent(b *event.Batch, p []byte) {
	le := binary.LittleEndian
	e := event.Event{
		Time: event.Micros(le.Uint64(p)), Offset: int64(le.Uint64(p[8:])), Partition: int32(le.Uint32(p[16:])),
		Index: le.Uint16(p[20:]), Source: le.Uint16(p[22:]), Group: le.Uint16(p[24:]),
	}
	n, step := int(le.Uint16(p[26:])), int(le.Uint16(p[28:]))
	p = p[sortFixed:]
	e.Step = b.Step(p[:step])
	p = p[step:]
	for range n {
		v := event.Value{Bits: le.Uint64(p), Len: le.Uint16(p[8:]), ID: p[10], Kind: event.ValueKind(p[11]), Off: uint32(len(b.Data))}
		b.Data = append(b.Data, p[sortValue:sortValue+int(v.Len)]...)
		b.Values = append(b.Values, v)
		p = p[sortValue+int(v.Len):]
	}
	e.Vals = uint32(len(b.Values))
	b.Events = append(b.Events, e)
}

// merger reads the segments of one part in order of time. runs is a heap; the first has the least time.
type merger struct{ runs []*runReader }

type runReader struct {
	r    *bufio.Reader
	buf  []byte // the next event
	time event.Micros
}

func (s *sorter) open(part int) (*merger, error) {
	m := &merger{}
	buffer := max(runBufferLeast, min(runBufferBytes, s.limit/max(1, len(s.runs))))
	for _, run := range s.runs {
		n := run.start[part+1] - run.start[part]
		if n == 0 {
			continue
		}
		rr := &runReader{r: bufio.NewReaderSize(io.NewSectionReader(run.f, run.start[part], n), buffer)}
		m.runs = append(m.runs, rr)
		if _, err := rr.read(); err != nil {
			return nil, err
		}
	}
	for i := len(m.runs)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return m, nil
}

// read loads the next event of a run; ok is false at its end.
func (r *runReader) read() (ok bool, err error) {
	var header [sortHeader]byte
	if _, err := io.ReadFull(r.r, header[:]); err == io.EOF {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("sort on disk: %w", err)
	}
	n := int(binary.LittleEndian.Uint32(header[:]))
	r.buf = slices.Grow(r.buf[:0], n)[:n]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		return false, fmt.Errorf("sort on disk: %w", err)
	}
	r.time = event.Micros(binary.LittleEndian.Uint64(r.buf))
	return true, nil
}

// next appends the earliest event to a batch.
func (m *merger) next(b *event.Batch) error {
	r := m.runs[0]
	decodeEvent(b, r.buf)
	ok, err := r.read()
	if err != nil {
		return err
	}
	if !ok {
		last := len(m.runs) - 1
		m.runs[0] = m.runs[last]
		m.runs = m.runs[:last]
	}
	m.down(0)
	return nil
}

func (m *merger) down(i int) {
	for {
		least := i
		for _, k := range []int{2*i + 1, 2*i + 2} {
			if k < len(m.runs) && m.runs[k].time < m.runs[least].time {
				least = k
			}
		}
		if least == i {
			return
		}
		m.runs[i], m.runs[least] = m.runs[least], m.runs[i]
		i = least
	}
}

package backfill

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc64"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/spill"
)

const (
	stateBytesMax = 256 << 20 // of one object of state
	progressEvery = 250 * time.Millisecond
)

// SliceInput says which slice to run. Job must be the compiled spec of the plan's version.
type SliceInput struct {
	Plan    PlanRef
	Chunk   int
	Slice   int // the one before it must be done
	Job     *operator.Job
	Objects ObjectStore

	MemoryBytes      int64  // bound of the state; default half of the machine's memory
	Decoders         int    // default one per processor
	RecordsPerSecond int    // 0: as fast as it goes
	TempDir          string // default os.TempDir

	spillEvery int // events after which all that is open goes to disk; 0: as memory demands. For tests
}

// SliceResult is what a slice did. It is small: workflows carry it.
type SliceResult struct {
	Chunk int       `json:"chunk"`
	Slice int       `json:"slice"`
	Range TimeRange `json:"range"`
	// Done tells that the chunk needs no further slice. Slices behind the one that is done do nothing.
	Done bool `json:"done"`
	// Existed tells that the slice was done before.
	Existed bool `json:"existed"`

	Records  int64            `json:"records"`  // read
	Bytes    int64            `json:"bytes"`    // of the files that were read
	Events   int64            `json:"events"`   // linked
	Sessions int64            `json:"sessions"` // staged
	Rejects  map[string]int64 `json:"rejects"`  // staged, by reason
	// StateBytes is what is open behind the slice, in memory; SpilledBytes what is on disk; StoredBytes what was written of both.
	StateBytes   int64 `json:"state_bytes"`
	SpilledBytes int64 `json:"spilled_bytes,omitempty"`
	StoredBytes  int64 `json:"stored_bytes"`
	// SortedBytes of events were sorted by time on local disk, 0 where all fitted in memory as it was read.
	SortedBytes int64   `json:"sorted_bytes,omitempty"`
	Seconds     float64 `json:"seconds"`
	Digest      string  `json:"digest"` // of its sessions
	Manifest    string  `json:"manifest"`
}

// SliceProgress is how far a slice is.
type SliceProgress struct {
	Phase      string `json:"phase"` // restoring, sorting, linking, storing
	Records    int64  `json:"records"`
	Bytes      int64  `json:"bytes"`
	BytesAll   int64  `json:"bytes_all"`
	StateBytes int64  `json:"state_bytes"`
}

// SliceManifest is the commit of a slice: what it read, and what it staged.
type SliceManifest struct {
	Format   int     `json:"format"`
	Plan     PlanRef `json:"plan"`
	Version  int     `json:"version"`
	Checksum string  `json:"checksum"`
	Nonce    string  `json:"nonce"`
	SliceResult

	Inputs []SliceFile `json:"inputs"`
	// Sums are the digest of the sessions as a number: those of slices add up.
	Sums     [4]uint64    `json:"digest_sum"`
	Least    event.Micros `json:"least_start_us"` // of the sessions
	Greatest event.Micros `json:"greatest_end_us"`

	Rows     FileRef `json:"rows"`     // sessions and rejects, exactly
	Sessions FileRef `json:"parquet"`  // the sessions as Parquet, for people
	Rejected FileRef `json:"rejected"` // the rejects as Parquet
	// State and Spilled are what the next slice starts from, in memory and on disk; empty where the chunk is done.
	State   []StatePart  `json:"state"`
	Spilled *spill.State `json:"spilled,omitempty"`
}

// SliceFile is a data file that a slice read.
type SliceFile struct {
	Key            string `json:"key"`
	SHA256         string `json:"sha256"`
	Records        int64  `json:"records"`
	LeastOffset    int64  `json:"least_offset"`
	GreatestOffset int64  `json:"greatest_offset"`

	Table *PlannedTable `json:"table,omitempty"` // of a row group of a file of others
}

// StatePart is one part of a core's snapshot.
type StatePart struct {
	Number uint64    `json:"number"`
	Pieces []FileRef `json:"pieces"`
}

func (m *SliceManifest) digest() correlate.Digest {
	return correlate.Digest{Sum: m.Sums, Count: m.SliceResult.Sessions}
}

// loadSliceManifest reads the manifest of a slice; nil where it is not done.
func loadSliceManifest(ctx context.Context, objects ObjectStore, ref PlanRef, chunk, slice int) (*SliceManifest, error) {
	m := new(SliceManifest)
	key := ref.sliceKey(chunk, slice)
	found, err := getJSON(ctx, objects, key, m)
	switch {
	case err != nil || !found:
		return nil, err
	case m.Format != sliceFormat || m.Plan != ref || m.Chunk != chunk || m.Slice != slice:
		return nil, fmt.Errorf("%w: %s is of slice %d of chunk %d of %s, format %d", ErrStaged, key, m.Slice, m.Chunk, m.Plan, m.Format)
	}
	return m, nil
}

// RunSlice computes one slice and stages its results: the sessions that seal in it and rejects. It may be repeated, and run
// twice at once: the first to put the manifest has done it, and any other returns what that one did. progress is called several
// times a second, from a goroutine of its own, until RunSlice returns; it may be nil.
//
// A slice that needs more than MemoryBytes splits itself. Its events are sorted by time on local disk, so that sessions are handed
// out while it goes on and only what is open is held; and of that, what does not fit is held on disk too. Its successors go on as it
// ended. It fails with ErrOpenState where not even the index of that fits.
func RunSlice(ctx context.Context, in SliceInput, progress func(SliceProgress)) (SliceResult, error) {
	if in.Job == nil || in.Objects == nil {
		return SliceResult{}, usage("a slice without a job or objects")
	}
	p, err := LoadPlan(ctx, in.Objects, in.Plan)
	if err != nil {
		return SliceResult{}, err
	}
	if in.MemoryBytes == 0 {
		in.MemoryBytes = memoryBytes() / 2
	}
	if in.Decoders <= 0 {
		in.Decoders = runtime.GOMAXPROCS(0)
	}
	s := &slicing{in: &in, plan: p, started: time.Now(), nonce: strings.ToLower(rand.Text())}
	result, err := s.run(ctx, progress)
	if err != nil {
		return result, fmt.Errorf("slice %d of chunk %d of %s: %w", in.Slice, in.Chunk, in.Plan, err)
	}
	return result, nil
}

// slicing is the run of one slice.
type slicing struct {
	in      *SliceInput
	plan    *Plan
	slice   *PlannedSlice
	before  *SliceManifest // nil: the slice is the first
	nonce   string
	started time.Time

	phase                         atomic.Value // text
	records, bytes, all, stateNow atomic.Int64
}

func (s *slicing) run(ctx context.Context, progress func(SliceProgress)) (r SliceResult, err error) {
	in := s.in
	if in.Chunk < 0 || in.Chunk >= len(s.plan.Chunks) {
		return r, fmt.Errorf("%w: the plan has %d chunks", ErrNotPlanned, len(s.plan.Chunks))
	}
	if done, err := s.earlier(ctx); err != nil || done != nil {
		if err != nil {
			return r, err
		}
		return *done, nil
	}
	if s.slice, err = LoadSlice(ctx, in.Objects, s.plan, in.Chunk, in.Slice); err != nil {
		return r, err
	}
	s.all.Store(s.slice.Bytes)
	s.phase.Store("restoring")
	defer s.watch(progress)()
	if in.spillEvery > 0 || s.before != nil && (s.before.SortedBytes > 0 || s.before.Spilled != nil) {
		return s.attempt(ctx, s.sorted)
	}
	r, err = s.attempt(ctx, s.link)
	if !errors.Is(err, errMemory) {
		return r, err
	}
	s.records.Store(0)
	s.bytes.Store(0)
	return s.attempt(ctx, s.sorted)
}

// earlier returns what there is to return of a slice that is done, or not needed.
func (s *slicing) earlier(ctx context.Context) (*SliceResult, error) {
	in := s.in
	m, err := loadSliceManifest(ctx, in.Objects, in.Plan, in.Chunk, in.Slice)
	if err != nil {
		return nil, err
	}
	if m != nil {
		r := m.SliceResult
		r.Existed = true
		return &r, nil
	}
	if in.Slice == 0 {
		return nil, nil
	}
	if s.before, err = loadSliceManifest(ctx, in.Objects, in.Plan, in.Chunk, in.Slice-1); err != nil {
		return nil, err
	}
	if s.before != nil && !s.before.Done {
		return nil, nil
	}
	if s.before == nil {
		// The chunk may have been done long before.
		last, err := lastSlice(ctx, in.Objects, s.plan, in.Chunk)
		if err != nil {
			return nil, err
		}
		if last == nil || !last.Done {
			return nil, fmt.Errorf("%w: run slice %d first", ErrOrder, in.Slice-1)
		}
		s.before = last
	}
	return &SliceResult{Chunk: in.Chunk, Slice: in.Slice, Done: true, Existed: true, Manifest: in.Plan.sliceKey(in.Chunk, s.before.Slice)}, nil
}

// lastSlice returns the last slice of a chunk that is done; nil where none is.
func lastSlice(ctx context.Context, objects ObjectStore, p *Plan, chunk int) (last *SliceManifest, err error) {
	low, high := 0, p.Chunks[chunk].Slices // slices are done in order
	for low < high {
		m, err := loadSliceManifest(ctx, objects, p.Ref, chunk, (low+high)/2)
		if err != nil {
			return nil, err
		}
		if m == nil {
			high = (low + high) / 2
		} else {
			low, last = (low+high)/2+1, m
		}
	}
	return last, nil
}

// watch reports progress until stop is called.
func (s *slicing) watch(progress func(SliceProgress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			progress(SliceProgress{s.phase.Load().(string), s.records.Load(), s.bytes.Load(), s.all.Load(), s.stateNow.Load()})
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// config is the core's: slices follow event time, so nothing is late in them. Reports are counted when results are published.
func (s *slicing) config() correlate.Config {
	cfg := s.in.Job.Config
	r := s.plan.Chunks[s.in.Chunk].Range
	cfg.Range = correlate.Range{From: r.From, To: r.To}
	cfg.Session.Retention = 0
	cfg.Reports = nil
	return cfg
}

// core returns a core that goes on where the slice before ended.
func (s *slicing) core(ctx context.Context) (*correlate.Core, error) {
	if s.before == nil {
		return correlate.New(s.config())
	}
	var chain [][]byte
	for _, part := range s.before.State {
		var all []byte
		for i := range part.Pieces {
			data, err := part.Pieces[i].get(ctx, s.in.Objects)
			if err != nil {
				return nil, err
			}
			if len(part.Pieces) == 1 {
				all = data
			} else {
				all = append(all, data...)
			}
		}
		chain = append(chain, all)
	}
	return correlate.Restore(s.config(), chain...)
}

// attempt computes the slice in one way, and commits it.
func (s *slicing) attempt(ctx context.Context, compute func(context.Context, *SliceManifest, *staging) error) (r SliceResult, err error) {
	out, err := s.newStaging()
	if err != nil {
		return r, err
	}
	defer out.remove()
	m := &SliceManifest{Format: sliceFormat, Plan: s.in.Plan, Version: s.plan.Version, Checksum: s.plan.Checksum, Nonce: s.nonce}
	m.Chunk, m.Slice, m.Range = s.in.Chunk, s.in.Slice, s.slice.Range
	if err := compute(ctx, m, out); err != nil {
		return r, err
	}
	return s.commit(ctx, m, out)
}

// link links the events as they are read.
func (s *slicing) link(ctx context.Context, m *SliceManifest, out *staging) error {
	s.phase.Store("restoring")
	core, err := s.core(ctx)
	if err != nil {
		return err
	}
	s.phase.Store("linking")
	before := core.Stats().Events
	err = s.read(ctx, out, func(b *event.Batch) error {
		if err := core.Apply(b, out); err != nil {
			return err
		}
		return s.fits(core)
	})
	if err != nil {
		return err
	}
	core.Advance(s.slice.Range.To, out)
	m.Events = core.Stats().Events - before
	if m.Done = s.isLast() || s.isBehind() && !core.Owning(); m.Done {
		core.Advance(event.MaxTime, out)
		return out.err
	}
	if out.err != nil {
		return out.err
	}
	return s.store(ctx, m, core, nil)
}

// isLast tells whether no slice of the chunk follows, and isBehind whether none has to.
func (s *slicing) isLast() bool { return s.in.Slice == s.plan.Chunks[s.in.Chunk].Slices-1 }
func (s *slicing) isBehind() bool {
	return s.slice.Range.To >= s.plan.Chunks[s.in.Chunk].Range.To
}

// fits tells whether the state is within its bound.
func (s *slicing) fits(core *correlate.Core) error {
	n := core.StateBytes()
	s.stateNow.Store(n)
	if n > s.in.MemoryBytes {
		return fmt.Errorf("%w of %d bytes: %d", errMemory, s.in.MemoryBytes, n)
	}
	return nil
}

// read reads and decodes what the slice reads, stages its rejects, and hands on the events of its time.
func (s *slicing) read(ctx context.Context, out *staging, take func(*event.Batch) error) error {
	var decoders []*operator.Decoder
	for range s.in.Decoders {
		d, err := s.in.Job.NewDecoder()
		if err != nil {
			return err
		}
		decoders = append(decoders, d)
	}
	r := newFileReader(ctx, s.in.Job, s.in.Objects, s.slice.Files)
	defer r.close()
	err := decodeFiles(ctx, r, decoders, s.in.RecordsPerSecond, func(b *event.Batch) error {
		s.records.Add(int64(len(b.Records)))
		s.bytes.Store(r.bytes.Load())
		out.rejects(b, s.slice.Rejects)
		b.Keep(func(e *event.Event) bool { return s.slice.Range.contains(e.Time) })
		if out.err != nil {
			return out.err
		}
		return take(b)
	})
	s.bytes.Store(r.bytes.Load())
	return err
}

// sorted sorts the events by time on local disk, and links them in that order. What is open and does not fit is on disk too.
func (s *slicing) sorted(ctx context.Context, m *SliceManifest, out *staging) error {
	s.phase.Store("sorting")
	s.stateNow.Store(0)
	cfg := s.config()
	sorter := newSorter(s.in.TempDir, &cfg, s.in.MemoryBytes)
	defer sorter.remove()
	if s.in.spillEvery > 0 {
		sorter.batch = s.in.spillEvery
	}
	if err := s.read(ctx, out, sorter.add); err != nil {
		return err
	}
	if err := sorter.end(); err != nil {
		return err
	}
	m.SortedBytes = sorter.written

	s.phase.Store("restoring")
	core, err := s.core(ctx)
	if err != nil {
		return err
	}
	spilled := newSpill(s.in.TempDir, s.in.MemoryBytes, s.objectName()+"-spill", crc64.Checksum([]byte(s.in.Plan.String()), crc64.MakeTable(crc64.ECMA)))
	defer spilled.Close()
	if s.before != nil {
		err := spilled.Restore(ctx, s.get, s.before.Spilled)
		if errors.Is(err, spill.ErrCorrupt) {
			err = fmt.Errorf("%w: %w", ErrStaged, err)
		}
		if err != nil {
			return err
		}
	}
	s.phase.Store("linking")
	before := core.Stats().Events
	err = sorter.link(ctx, 0, core, spilled, out, func() error {
		s.stateNow.Store(core.StateBytes() + spilled.Status().Bytes)
		if s.in.spillEvery > 0 {
			out.keep(spilled.Spill(ctx, core, math.MaxInt64/2))
		}
		return out.err
	})
	if errors.Is(err, errMemory) {
		return fmt.Errorf("slice from %s: %w; allow more memory (fewer slices at once in a process: GOMAXPROCS), or lower the gaps or max_span",
			timeText(s.slice.Range.From), err)
	}
	if err != nil {
		return err
	}
	if err := spilled.Advance(core, s.slice.Range.To, out); err != nil {
		return err
	}
	m.Events = core.Stats().Events - before
	if m.Done = s.isLast(); !m.Done && s.isBehind() {
		owning, err := spilled.Owning(core)
		if err != nil {
			return err
		}
		m.Done = !owning
	}
	if m.Done {
		return cmp.Or(spilled.Advance(core, event.MaxTime, out), out.err)
	}
	if out.err != nil {
		return out.err
	}
	return s.store(ctx, m, core, spilled)
}

// get reads an object.
func (s *slicing) get(ctx context.Context, key string) ([]byte, error) {
	data, _, err := s.in.Objects.Get(ctx, key)
	return data, err
}

// staging writes what a slice gives. It implements correlate.Output.
type staging struct {
	rowsFile, sessionsFile, rejectsFile *stagedFile

	rows     *rowsWriter
	sessions *results.Sessions
	rejected *results.Rejects
	digester *correlate.Digester
	counts   map[string]int64
	n        int64
	least    event.Micros
	greatest event.Micros
	err      error
}

func (s *slicing) newStaging() (*staging, error) {
	out := &staging{digester: correlate.NewDigester(&s.in.Job.Config), counts: map[string]int64{}, least: event.MaxTime, greatest: event.MinTime}
	dir := s.in.TempDir
	if dir == "" {
		dir = os.TempDir()
	}
	var errs [6]error
	for i, f := range []**stagedFile{&out.rowsFile, &out.sessionsFile, &out.rejectsFile} {
		if *f, errs[i] = newStagedFile(dir); errs[i] != nil {
			out.remove()
			return nil, errs[i]
		}
	}
	meta := results.MetaOf(s.in.Job.Spec)
	out.rows, errs[3] = newRowsWriter(out.rowsFile.w)
	out.sessions, errs[4] = results.NewSessions(out.sessionsFile.w, results.Parquet, meta)
	out.rejected, errs[5] = results.NewRejects(out.rejectsFile.w, results.Parquet, meta)
	if err := errors.Join(errs[:]...); err != nil {
		out.remove()
		return nil, err
	}
	return out, nil
}

func (o *staging) remove() {
	for _, f := range []*stagedFile{o.rowsFile, o.sessionsFile, o.rejectsFile} {
		if f != nil {
			f.remove()
		}
	}
}

func (o *staging) keep(err error) {
	if o.err == nil && err != nil {
		o.err = fmt.Errorf("stage results: %w", err)
	}
}

// Upsert stages a session, which is final.
func (o *staging) Upsert(_ uint64, row *correlate.Row) {
	o.n++
	o.least, o.greatest = min(o.least, row.Start), max(o.greatest, row.End)
	o.digester.Row(row)
	o.keep(o.rows.session(row))
	o.keep(o.sessions.Write(row))
}

// Tombstone cannot happen: nothing is handed out before it is final.
func (o *staging) Tombstone(_ uint64, id correlate.ID) {
	o.keep(fmt.Errorf("session %s was taken back after it was final: this is a defect of the engine", id))
}

// Cell cannot happen: the core counts no reports.
func (o *staging) Cell(_ uint64, c *correlate.Cell) {
	o.keep(fmt.Errorf("a cell of report %d: this is a defect of the engine", c.Report))
}

// Late cannot happen: slices follow event time.
func (o *staging) Late(b *event.Batch, i int) {
	o.keep(fmt.Errorf("event %d of record %d was late: this is a defect of the engine", b.Events[i].Index, b.Events[i].Offset))
}

// rejects stages the rejects of a batch whose timestamps are in a range.
func (o *staging) rejects(b *event.Batch, r TimeRange) {
	for i := range b.Rejects {
		x := &b.Rejects[i]
		if !r.contains(x.Record.Timestamp) {
			continue
		}
		o.counts[string(x.Reason)]++
		o.keep(o.rows.reject(b.Raw(x.Record), x))
		o.keep(o.rejected.Write(b, x))
	}
}

// commit stores what was staged, and puts the manifest.
func (s *slicing) commit(ctx context.Context, m *SliceManifest, out *staging) (r SliceResult, err error) {
	s.phase.Store("storing")
	in := s.in
	out.keep(out.rows.close())
	out.keep(out.sessions.Close())
	out.keep(out.rejected.Close())
	if out.err != nil {
		return r, out.err
	}
	name := s.objectName()
	var errs [3]error
	m.Rows, errs[0] = out.rowsFile.put(ctx, in.Objects, name+".rows")
	m.Sessions, errs[1] = out.sessionsFile.put(ctx, in.Objects, name+"-sessions.parquet")
	m.Rejected, errs[2] = out.rejectsFile.put(ctx, in.Objects, name+"-rejects.parquet")
	if err := errors.Join(errs[:]...); err != nil {
		return r, err
	}
	m.SliceResult.Sessions, m.Rejects, m.Least, m.Greatest = out.n, out.counts, out.least, out.greatest
	m.Sums, m.Digest = out.digester.Sessions.Sum, out.digester.Sessions.String()
	m.Records, m.Bytes, m.Seconds = s.records.Load(), s.bytes.Load(), time.Since(s.started).Seconds()
	m.Manifest = in.Plan.sliceKey(in.Chunk, in.Slice)
	for _, f := range s.slice.Files {
		m.Inputs = append(m.Inputs, SliceFile{f.Key, f.SHA256, f.Records, f.LeastOffset, f.GreatestOffset, f.Table})
	}
	mine, err := commit(ctx, in.Objects, m.Manifest, m, s.nonce)
	if err != nil {
		return r, err
	}
	if mine {
		return m.SliceResult, nil
	}
	// Another one was faster; what this one wrote is garbage, and Sweep finds what is left of it.
	for _, key := range m.files() {
		if strings.HasPrefix(key, s.objectName()) && in.Objects.Delete(ctx, key) != nil {
			break
		}
	}
	done, err := s.earlier(ctx)
	if err != nil || done == nil {
		return r, errors.Join(err, fmt.Errorf("%w: %s was there and is not", ErrStaged, m.Manifest))
	}
	return *done, nil
}

// objectName begins the names of the slice's objects.
func (s *slicing) objectName() string {
	return s.in.Plan.slicePrefix(s.in.Chunk, s.in.Slice) + "-" + s.nonce
}

// store writes what is open: what changed since the slice before, and a share of the rest. The parts that a restore needs are
// then about twice the state, and each slice writes little more than what it changed. What is on disk is written once.
func (s *slicing) store(ctx context.Context, m *SliceManifest, core *correlate.Core, spilled *spill.Store) error {
	s.phase.Store("storing")
	m.StateBytes = core.StateBytes()
	data := core.AppendPart(nil)
	m.StoredBytes = int64(len(data))
	part := StatePart{Number: core.PartNumber()}
	for n := 0; len(data) > 0; n++ {
		size := min(len(data), stateBytesMax)
		ref, err := putBytes(ctx, s.in.Objects, fmt.Sprintf("%s-%d.state", s.objectName(), n), data[:size])
		if err != nil {
			return err
		}
		part.Pieces, data = append(part.Pieces, ref), data[size:]
	}
	if s.before != nil {
		for _, p := range s.before.State {
			if p.Number >= core.NeededPart() {
				m.State = append(m.State, p)
			}
		}
	}
	m.State = append(m.State, part)

	save := spilled.Checkpoint(1)
	defer spilled.Saved()
	m.Spilled, m.SpilledBytes = save.State(), spilled.Status().Bytes
	return save.Upload(func(key string, data []byte) error {
		m.StoredBytes += int64(len(data))
		_, err := s.in.Objects.Put(ctx, key, bytes.NewReader(data), int64(len(data)))
		return err
	})
}

// files are the objects that a manifest lists, by their keys.
func (m *SliceManifest) files() (keys []string) {
	keys = []string{m.Rows.Key, m.Sessions.Key, m.Rejected.Key}
	for _, part := range m.State {
		for _, f := range part.Pieces {
			keys = append(keys, f.Key)
		}
	}
	return append(keys, m.Spilled.Keys()...)
}

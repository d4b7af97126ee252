package backfill

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
)

const (
	stateBytesMax = 256 << 20 // of one object of state
	piecesMax     = 64        // into which a slice is cut whose state outgrows the memory
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
	// StateBytes is what is open behind the slice, in memory; StoredBytes what was written of it.
	StateBytes  int64   `json:"state_bytes"`
	StoredBytes int64   `json:"stored_bytes"`
	Pieces      int     `json:"pieces"` // into which its time was cut, for memory
	Seconds     float64 `json:"seconds"`
	Digest      string  `json:"digest"` // of its sessions
	Manifest    string  `json:"manifest"`
}

// SliceProgress is how far a slice is.
type SliceProgress struct {
	Phase      string `json:"phase"` // restoring, linking, storing
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

	Rows     FileRef     `json:"rows"`     // sessions and rejects, exactly
	Sessions FileRef     `json:"parquet"`  // the sessions as Parquet, for people
	Rejected FileRef     `json:"rejected"` // the rejects as Parquet
	State    []StatePart `json:"state"`    // what the next slice starts from; empty where the chunk is done
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
	case m.Format != stageFormat || m.Plan != ref || m.Chunk != chunk || m.Slice != slice:
		return nil, fmt.Errorf("%w: %s is of slice %d of chunk %d of %s, format %d", ErrStaged, key, m.Slice, m.Chunk, m.Plan, m.Format)
	}
	return m, nil
}

// RunSlice computes one slice and stages its results: the sessions that seal in it and rejects. It may be repeated, and run
// twice at once: the first to put the manifest has done it, and any other returns what that one did. progress is called several
// times a second, from a goroutine of its own, until RunSlice returns; it may be nil.
//
// A slice that has too much open at once for MemoryBytes is cut in halves of time, again and again, and fails with ErrOpenState
// where that does not help.
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
	state, err := s.state(ctx)
	if err != nil {
		return r, err
	}
	for pieces := 1; ; pieces *= 2 {
		m, err := s.attempt(ctx, state, pieces)
		if !errors.Is(err, errMemory) {
			return m, err
		}
		if length := s.slice.Range.To - s.slice.Range.From; pieces >= piecesMax || length/event.Micros(2*pieces) < 1 {
			return r, err
		}
		s.records.Store(0)
		s.bytes.Store(0)
	}
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

// state reads what the slice before left open.
func (s *slicing) state(ctx context.Context) (chain [][]byte, err error) {
	if s.before == nil {
		return nil, nil
	}
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
	return chain, nil
}

// attempt computes the slice with its time cut into pieces, and commits it.
func (s *slicing) attempt(ctx context.Context, state [][]byte, pieces int) (r SliceResult, err error) {
	s.phase.Store("restoring")
	core, err := correlate.New(s.config())
	if s.before != nil {
		core, err = correlate.Restore(s.config(), state...)
	}
	if err != nil {
		return r, err
	}
	out, err := s.newStaging()
	if err != nil {
		return r, err
	}
	defer out.remove()
	s.phase.Store("linking")
	var decoders []*operator.Decoder
	for range s.in.Decoders {
		d, err := s.in.Job.NewDecoder()
		if err != nil {
			return r, err
		}
		decoders = append(decoders, d)
	}
	before := core.Stats().Events
	for i, piece := range halves(s.slice.Range, pieces) {
		if err := s.piece(ctx, core, decoders, out, piece, i == 0); err != nil {
			return r, err
		}
	}
	m := &SliceManifest{Format: stageFormat, Plan: s.in.Plan, Version: s.plan.Version, Checksum: s.plan.Checksum, Nonce: s.nonce}
	m.Chunk, m.Slice, m.Range, m.Pieces = s.in.Chunk, s.in.Slice, s.slice.Range, pieces
	chunk := s.plan.Chunks[s.in.Chunk]
	if m.Done = s.in.Slice == chunk.Slices-1 || s.slice.Range.To >= chunk.Range.To && !core.Owning(); m.Done {
		core.Advance(event.MaxTime, out)
	}
	if out.err != nil {
		return r, out.err
	}
	m.Events = core.Stats().Events - before
	s.phase.Store("storing")
	return s.commit(ctx, m, core, out)
}

// halves cuts a range into equal pieces.
func halves(r TimeRange, pieces int) (list []TimeRange) {
	for i := range pieces {
		at := func(i int) event.Micros { return r.From + (r.To-r.From)*event.Micros(i)/event.Micros(pieces) }
		list = append(list, TimeRange{at(i), at(i + 1)})
	}
	return list
}

// piece applies the events of a part of the slice's time, and moves time to its end.
func (s *slicing) piece(ctx context.Context, core *correlate.Core, decoders []*operator.Decoder, out *staging, piece TimeRange, first bool) error {
	var files []PlannedFile
	for _, f := range s.slice.Files {
		if f.Least < piece.To && f.Greatest >= piece.From || first && f.Rejects {
			files = append(files, f)
		}
	}
	r := newFileReader(ctx, s.in.Job, s.in.Objects, files)
	defer r.close()
	had := s.bytes.Load()
	err := decodeFiles(ctx, r, decoders, s.in.RecordsPerSecond, func(b *event.Batch) error {
		s.records.Add(int64(len(b.Records)))
		s.bytes.Store(had + r.bytes.Load())
		if first {
			out.rejects(b, s.slice.Rejects)
		}
		b.Keep(func(e *event.Event) bool { return piece.contains(e.Time) })
		if err := core.Apply(b, out); err != nil {
			return err
		}
		n := core.StateBytes()
		s.stateNow.Store(n)
		if n > s.in.MemoryBytes {
			return fmt.Errorf("%w of %d bytes: %d, in a part of %v from %s; allow more memory, lower the gaps or max_span, or shard the job",
				errMemory, s.in.MemoryBytes, n, duration(piece.To-piece.From), timeText(piece.From))
		}
		return out.err
	})
	if err != nil {
		return err
	}
	s.bytes.Store(had + r.bytes.Load())
	core.Advance(piece.To, out)
	return out.err
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

// commit stores what was staged and the state, and puts the manifest.
func (s *slicing) commit(ctx context.Context, m *SliceManifest, core *correlate.Core, out *staging) (r SliceResult, err error) {
	in := s.in
	out.keep(out.rows.close())
	out.keep(out.sessions.Close())
	out.keep(out.rejected.Close())
	if out.err != nil {
		return r, out.err
	}
	name := in.Plan.slicePrefix(in.Chunk, in.Slice) + "-" + s.nonce
	var errs [3]error
	m.Rows, errs[0] = out.rowsFile.put(ctx, in.Objects, name+".rows")
	m.Sessions, errs[1] = out.sessionsFile.put(ctx, in.Objects, name+"-sessions.parquet")
	m.Rejected, errs[2] = out.rejectsFile.put(ctx, in.Objects, name+"-rejects.parquet")
	if err := errors.Join(errs[:]...); err != nil {
		return r, err
	}
	if !m.Done {
		if err := s.store(ctx, m, core, name); err != nil {
			return r, err
		}
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
	for _, f := range m.files(true) {
		if in.Objects.Delete(ctx, f.Key) != nil {
			break
		}
	}
	done, err := s.earlier(ctx)
	if err != nil || done == nil {
		return r, errors.Join(err, fmt.Errorf("%w: %s was there and is not", ErrStaged, m.Manifest))
	}
	return *done, nil
}

// store writes what is open: what changed since the slice before, and a share of the rest. The parts that a restore needs are
// then about twice the state, and each slice writes little more than what it changed.
func (s *slicing) store(ctx context.Context, m *SliceManifest, core *correlate.Core, name string) error {
	m.StateBytes = core.StateBytes()
	data := core.AppendPart(nil)
	m.StoredBytes = int64(len(data))
	part := StatePart{Number: core.PartNumber()}
	for n := 0; len(data) > 0; n++ {
		size := min(len(data), stateBytesMax)
		ref, err := putBytes(ctx, s.in.Objects, fmt.Sprintf("%s-%d.state", name, n), data[:size])
		if err != nil {
			return err
		}
		part.Pieces, data = append(part.Pieces, ref), data[size:]
	}
	if s.before != nil {
		m.State = slices.DeleteFunc(slices.Clone(s.before.State), func(p StatePart) bool { return p.Number < core.NeededPart() })
	}
	m.State = append(m.State, part)
	return nil
}

// files are the objects that a manifest lists; own: only those that its slice wrote.
func (m *SliceManifest) files(own bool) (list []FileRef) {
	list = []FileRef{m.Rows, m.Sessions, m.Rejected}
	for i, part := range m.State {
		if !own || i == len(m.State)-1 {
			list = append(list, part.Pieces...)
		}
	}
	return list
}

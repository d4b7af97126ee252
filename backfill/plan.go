package backfill

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

// Limits of a plan.
const (
	SliceDefault  = event.Micros(3_600_000_000) // an hour
	SliceMin      = event.Micros(1_000_000)
	ChunksMax     = 1000
	slicesMax     = 200_000 // twenty years of hours
	partSlicesMax = 256     // of one part of a plan …
	partFilesMax  = 8192    // … so that what one slice reads of the plan stays small
	notesMax      = 100
	// A plan reads at most readNumerator/readDenominator of the bytes of its range, and one reach on either side.
	readNumerator, readDenominator = 3, 2
	// A slice length that was not asked for is doubled while files that stand in several slices make it read more than this.
	straddleNumerator, straddleDenominator = 5, 4
)

// Order says which chunks come first.
type Order string

// The orders.
const (
	OldestFirst Order = "oldest"
	NewestFirst Order = "newest"
)

// PlanInput says what to compute again. Job, Objects, Ref, Version, From and To are needed.
type PlanInput struct {
	Ref      PlanRef
	Job      *operator.Job
	Version  int    // of the job, in the registry
	Checksum string // of that version; may be empty
	Objects  ObjectStore

	From, To    event.Micros // the sessions that start from From to before To
	Slice       event.Micros // length of a slice; 0: SliceDefault, or longer where files are
	Parallelism int          // chunks that may run at once; 0: 1
	Order       Order        // default OldestFirst
	// Before and After widen what is staged beyond the range, for the closure that Publish needs: sessions that start so much
	// earlier or later. Before is at least max_span, which is enough where what is served was linked by the same rules. Publish
	// fails with an IncompleteError that says how much it needs.
	Before, After event.Micros

	Now event.Micros // the caller's clock: what is later is the future; 0: not checked
	// Sealed bounds what may be published over a live job: sessions that start before it cannot change any more. 0: no bound.
	// SealedText tells people how it comes about, and what to do; may be empty.
	Sealed     event.Micros
	SealedText string
	// Through are the ends of the log, by topic and partition. A partition whose archive has not come so far bounds the range
	// by what it has. nil: it is taken that the archive holds all.
	Through map[string]map[int32]int64
	// KeepUnmeasured leaves files without statistics for the job's sources as they are: then every slice reads all of them.
	// Otherwise the plan reads each of them once to find out.
	KeepUnmeasured bool

	Decoders int                // for files without statistics; default one per processor
	Progress func(PlanProgress) // called now and then, from one goroutine; may be nil
}

// PlanProgress is how far a plan is.
type PlanProgress struct {
	Manifests int64 `json:"manifests"` // read
	Measured  int64 `json:"measured"`  // files without statistics that were read
	Records   int64 `json:"records"`   // of them
}

// Plan is a plan without the files of its slices, which LoadSlice reads. Ranges are half-open; times are microseconds UTC.
//
// A chunk is a chain of slices that is computed one after another, and owns the sessions that start in its range. Its first
// slices warm up: they begin a reach (max_span and the largest gap) before it. Its last ones stand behind it, and are needed only
// until no session is open that the chunk owns: RunSlice tells when it is done. The chunks tile Owned, so each session is staged
// exactly once.
type Plan struct {
	Format   int     `json:"format"`
	Ref      PlanRef `json:"ref"`
	Version  int     `json:"version"`
	Checksum string  `json:"checksum"`

	Asked TimeRange `json:"asked"`
	Range TimeRange `json:"range"` // what is left of it once it is clipped
	Owned TimeRange `json:"owned"` // the starts of the sessions that are staged
	Known TimeRange `json:"known"` // Owned, without an end where the archive has nothing beyond
	// Rejects are the timestamps of the rejected records that are staged.
	Rejects TimeRange    `json:"rejects"`
	Span    event.Micros `json:"max_span_us"`
	Reach   event.Micros `json:"reach_us"`
	Slice   event.Micros `json:"slice_us"`
	Order   Order        `json:"order"`

	Chunks []Chunk    `json:"chunks"` // in order of time
	Parts  []PlanPart `json:"parts"`

	Totals   PlanTotals `json:"totals"`
	Clips    []string   `json:"clips,omitempty"`    // why Range is not what was asked for
	Notes    []string   `json:"notes,omitempty"`    // what was changed
	Warnings []string   `json:"warnings,omitempty"` // what may be missing
}

// TimeRange is a half-open range of time.
type TimeRange struct {
	From event.Micros `json:"from_us"`
	To   event.Micros `json:"to_us"`
}

func (r TimeRange) empty() bool                  { return r.From >= r.To }
func (r TimeRange) contains(t event.Micros) bool { return t >= r.From && t < r.To }

// String returns the range in RFC 3339.
func (r TimeRange) String() string { return timeText(r.From) + " to " + timeText(r.To) }

func timeText(t event.Micros) string {
	switch t {
	case event.MinTime:
		return "the beginning of time"
	case event.MaxTime:
		return "the end of time"
	}
	return time.UnixMicro(int64(t)).UTC().Format(time.RFC3339Nano)
}

// Chunk is a chain of slices.
type Chunk struct {
	Range  TimeRange `json:"range"`  // of the starts that it owns
	Slices int       `json:"slices"` // at most; fewer where it is done before
	Tail   int       `json:"tail"`   // of them stand behind the range
	Bytes  int64     `json:"bytes"`  // to read, at most
	Rows   int64     `json:"rows"`
}

// PlanPart is an object with some slices of a chunk.
type PlanPart struct {
	FileRef
	Chunk  int `json:"chunk"`
	First  int `json:"first"` // number of its first slice in the chunk
	Slices int `json:"slices"`
}

// PlanTotals are estimates: rows and bytes of data files as a whole.
type PlanTotals struct {
	Slices    int   `json:"slices"`
	Manifests int64 `json:"manifests"`
	Files     int64 `json:"files"` // that are read at all
	// ReadRows and ReadBytes count what all slices read, RangeBytes what holds events of Range, and WithinBytes the bound.
	ReadRows    int64 `json:"read_rows"`
	ReadBytes   int64 `json:"read_bytes"`
	RangeRows   int64 `json:"range_rows"`
	RangeBytes  int64 `json:"range_bytes"`
	WithinBytes int64 `json:"within_bytes"`
	// Unmeasured files have no statistics for the job's sources; Measured tells whether the plan read them to find out.
	Unmeasured int64 `json:"unmeasured_files"`
	Measured   bool  `json:"measured"`
	Lost       int64 `json:"lost_records"` // deleted before they were archived
}

// ChunkOrder returns the numbers of the chunks in the order in which to start them.
func (p *Plan) ChunkOrder() []int {
	list := make([]int, len(p.Chunks))
	for i := range list {
		list[i] = i
	}
	if p.Order == NewestFirst {
		slices.Reverse(list)
	}
	return list
}

func (in *PlanInput) validate() error {
	if err := in.Ref.check(); err != nil {
		return err
	}
	var errs []error
	bad := func(when bool, format string, args ...any) {
		if when {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(in.Job == nil || in.Objects == nil, "no job, or no objects")
	bad(in.Job != nil && in.Job.Spec.Job != in.Ref.Job, "the spec is of another job than the backfill of %s", in.Ref.Job)
	bad(in.Version <= 0, "version %d: versions are numbered from 1", in.Version)
	bad(in.From >= in.To, "the range %s is empty", TimeRange{in.From, in.To})
	bad(in.From < -farthest || in.To > farthest, "the range reaches beyond the year 5000: expected times in microseconds")
	if in.Slice == 0 {
		in.Slice = -SliceDefault // negative: it may be made longer
	}
	bad(in.Slice > 0 && in.Slice < SliceMin || in.Slice < -SliceDefault || in.Slice > farthest, "slices of %d µs: at least a second", in.Slice)
	if in.Parallelism == 0 {
		in.Parallelism = 1
	}
	bad(in.Parallelism < 1 || in.Parallelism > ChunksMax, "parallelism %d: expected 1 to %d", in.Parallelism, ChunksMax)
	if in.Order == "" {
		in.Order = OldestFirst
	}
	bad(in.Order != OldestFirst && in.Order != NewestFirst, "order %q: expected oldest or newest", in.Order)
	bad(in.Before < 0 || in.After < 0 || in.Before > farthest || in.After > farthest, "the margins %d and %d must not be negative", in.Before, in.After)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w%w", ErrUsage, err)
	}
	if in.Progress == nil {
		in.Progress = func(PlanProgress) {}
	}
	return nil
}

// farthest keeps sums of times and durations from overflowing.
const farthest event.Micros = 1 << 56

// MakePlan plans a backfill and stores the plan. A plan of this name that is there already is returned, if it answers the same
// question. The archive's manifests are read all, since a record may come at any time after its event.
func MakePlan(ctx context.Context, in PlanInput) (*Plan, error) {
	if err := in.validate(); err != nil {
		return nil, err
	}
	if old, err := LoadPlan(ctx, in.Objects, in.Ref); !errors.Is(err, ErrNotPlanned) {
		return in.same(old, err)
	}
	a, err := readArchive(ctx, &in)
	if err != nil {
		return nil, fmt.Errorf("plan a backfill of %s: %w", in.Ref.Job, err)
	}
	p := &Plan{Format: stageFormat, Ref: in.Ref, Version: in.Version, Checksum: in.Checksum, Asked: TimeRange{in.From, in.To}, Order: in.Order}
	d := drawing{in: &in, plan: p, archive: a}
	if err := d.clip(); err != nil {
		return nil, fmt.Errorf("plan a backfill of %s: %w", in.Ref.Job, err)
	}
	chunks, err := d.draw()
	if err != nil {
		return nil, fmt.Errorf("plan a backfill of %s: %w", in.Ref.Job, err)
	}
	d.warn()
	nonce := strings.ToLower(rand.Text())
	if err := d.store(ctx, nonce, chunks); err != nil {
		return nil, fmt.Errorf("plan a backfill of %s: %w", in.Ref.Job, err)
	}
	mine, err := commit(ctx, in.Objects, in.Ref.planKey(), p, nonce)
	if err == nil && !mine {
		return in.same(LoadPlan(ctx, in.Objects, in.Ref))
	}
	return p, err
}

// same returns a plan that is there if it answers the same question.
func (in *PlanInput) same(p *Plan, err error) (*Plan, error) {
	if err == nil && (p.Asked != TimeRange{in.From, in.To} || p.Version != in.Version || p.Checksum != in.Checksum) {
		err = usage("%s is another backfill: of version %d, from %s", in.Ref, p.Version, p.Asked)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// LoadPlan reads a plan; ErrNotPlanned where there is none.
func LoadPlan(ctx context.Context, objects ObjectStore, ref PlanRef) (*Plan, error) {
	if err := ref.check(); err != nil {
		return nil, err
	}
	p := new(Plan)
	found, err := getJSON(ctx, objects, ref.planKey(), p)
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, fmt.Errorf("%w: there is no %s", ErrNotPlanned, ref.planKey())
	case p.Format != stageFormat || p.Ref != ref:
		return nil, fmt.Errorf("%w: %s has format %d and is of %s", ErrStaged, ref.planKey(), p.Format, p.Ref)
	}
	return p, nil
}

// PlannedSlice is one slice with the files that it reads.
type PlannedSlice struct {
	Range   TimeRange     `json:"range"`
	Rejects TimeRange     `json:"rejects"` // timestamps of the rejected records that it stages; empty: none
	Files   []PlannedFile `json:"files"`
	Rows    int64         `json:"rows"` // of the files
	Bytes   int64         `json:"bytes"`
}

// PlannedFile is a data file of the archive, as its manifest lists it.
type PlannedFile struct {
	Key            string       `json:"key"`
	Manifest       string       `json:"manifest"`
	Source         int          `json:"source"` // number in the spec
	Bytes          int64        `json:"bytes"`
	SHA256         string       `json:"sha256"`
	Records        int64        `json:"records"`
	LeastOffset    int64        `json:"least_offset"`
	GreatestOffset int64        `json:"greatest_offset"`
	Least          event.Micros `json:"least_us"` // of its events; with Greatest it is all of time where that is not known
	Greatest       event.Micros `json:"greatest_us"`
	Rejects        bool         `json:"rejects,omitempty"` // it has records that do not decode, or may have
	// Table is set of a row group of a file of others; it has no manifest, hash and offsets, and its bytes are those of the row group.
	Table *PlannedTable `json:"table,omitempty"`
}

// planPart is the object of a part: each file once, and the numbers of the files of each slice.
type planPart struct {
	Files  []PlannedFile `json:"files"`
	Slices []partSlice   `json:"slices"`
}

type partSlice struct {
	Range   TimeRange `json:"range"`
	Rejects TimeRange `json:"rejects"`
	Files   []int32   `json:"files"`
}

// LoadSlice reads what one slice of a plan reads.
func LoadSlice(ctx context.Context, objects ObjectStore, p *Plan, chunk, slice int) (*PlannedSlice, error) {
	i := slices.IndexFunc(p.Parts, func(x PlanPart) bool { return x.Chunk == chunk && slice >= x.First && slice < x.First+x.Slices })
	if i < 0 {
		return nil, fmt.Errorf("%w: slice %d of chunk %d of %s", ErrNotPlanned, slice, chunk, p.Ref)
	}
	data, err := p.Parts[i].get(ctx, objects)
	if err != nil {
		return nil, err
	}
	var part planPart
	if err := decodeJSON(p.Parts[i].Key, data, &part); err != nil {
		return nil, err
	}
	if len(part.Slices) != p.Parts[i].Slices {
		return nil, fmt.Errorf("%w: %s has %d slices of %d", ErrStaged, p.Parts[i].Key, len(part.Slices), p.Parts[i].Slices)
	}
	one := part.Slices[slice-p.Parts[i].First]
	s := &PlannedSlice{Range: one.Range, Rejects: one.Rejects}
	for _, n := range one.Files {
		if n < 0 || int(n) >= len(part.Files) {
			return nil, fmt.Errorf("%w: %s names file %d of %d", ErrStaged, p.Parts[i].Key, n, len(part.Files))
		}
		f := part.Files[n]
		s.Files = append(s.Files, f)
		s.Rows, s.Bytes = s.Rows+f.Records, s.Bytes+f.Bytes
	}
	return s, nil
}

// store writes the parts of a plan.
func (d *drawing) store(ctx context.Context, nonce string, chunks [][]drawnSlice) error {
	for n, list := range chunks {
		for first := 0; first < len(list); {
			part, used := d.part(list[first:])
			data, err := encodeJSON(part)
			if err != nil {
				return err
			}
			ref, err := putBytes(ctx, d.in.Objects, d.in.Ref.partKey(nonce, len(d.plan.Parts)), data)
			if err != nil {
				return err
			}
			d.plan.Parts = append(d.plan.Parts, PlanPart{ref, n, first, used})
			first += used
		}
	}
	return nil
}

// part takes the first of the slices, each file once.
func (d *drawing) part(list []drawnSlice) (part planPart, used int) {
	place := map[int32]int32{}
	for _, s := range list {
		if used == partSlicesMax || used > 0 && len(part.Files) > partFilesMax {
			break
		}
		one := partSlice{Range: s.Range, Rejects: s.rejects, Files: []int32{}}
		for _, f := range s.files {
			n, ok := place[f]
			if !ok {
				n = int32(len(part.Files))
				place[f] = n
				part.Files = append(part.Files, d.archive.files[f].PlannedFile)
			}
			one.Files = append(one.Files, n)
		}
		part.Slices = append(part.Slices, one)
		used++
	}
	return part, used
}

// clip, note and warning keep the first of many.
func (p *Plan) clip(format string, args ...any) { p.Clips = addText(p.Clips, format, args...) }
func (p *Plan) note(format string, args ...any) { p.Notes = addText(p.Notes, format, args...) }
func (p *Plan) warning(format string, args ...any) {
	p.Warnings = addText(p.Warnings, format, args...)
}

func addText(list []string, format string, args ...any) []string {
	switch {
	case len(list) < notesMax:
		return append(list, fmt.Sprintf(format, args...))
	case len(list) == notesMax:
		return append(list, "there are more")
	}
	return list
}

// floorTo returns the greatest multiple of unit at or below t.
func floorTo(t, unit event.Micros) event.Micros {
	m := t % unit
	if m < 0 {
		m += unit
	}
	return t - m
}

func ceilTo(t, unit event.Micros) event.Micros {
	if f := floorTo(t, unit); f < t {
		return f + unit
	}
	return t
}

func compareSpans(a, b *archivedFile) int {
	return cmp.Or(cmp.Compare(a.Least, b.Least), cmp.Compare(a.Source, b.Source), strings.Compare(a.Key, b.Key))
}

// always is the span of a file of which nothing is known.
var always = TimeRange{math.MinInt64, math.MaxInt64}

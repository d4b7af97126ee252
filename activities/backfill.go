package activities

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
)

// BackfillQueue is the task queue of what reads archives: planning, slices, verifying, publishing, comparing.
const BackfillQueue = "weft-backfill"

// BackfillRef names one run of a backfill. What it stages is kept under its ID, which no other run has.
type BackfillRef struct {
	Job     string `json:"job"`
	Version int    `json:"version,omitempty"` // 0 before the plan has chosen one
	ID      string `json:"id"`
}

// Range is a half-open range of session starts.
type Range struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// PlanInput asks for a plan.
type PlanInput struct {
	Backfill BackfillRef `json:"backfill"` // version 0: the one that serves the end of the range, or else the latest
	Range
	// Publish says that the result is to be served, so that what a live shard can still change is clipped.
	Publish     bool   `json:"publish"`
	Parallelism int    `json:"parallelism"`       // slices that run at once
	Slice       string `json:"slice,omitempty"`   // length of a slice; empty: the engine's choice
	Margin      Margin `json:"margin,omitzero"`   // of what is staged beside the range
	Rebuild     bool   `json:"rebuild,omitempty"` // nothing that is sealed is no error
}

// Margin is how far beyond its range a backfill stages sessions, at least. What is served may be linked to them.
type Margin struct {
	Before time.Duration `json:"before"`
	After  time.Duration `json:"after"`
}

// Planned refers to a stored plan and says what it comes to.
type Planned struct {
	Version int    `json:"version"`
	Plan    string `json:"plan"` // key of the object
	Range          // what is left after clipping
	// Chunks has the number of slices of each chunk, in order of time. The slices of a chunk follow one another; those of
	// different chunks know nothing of each other.
	Chunks []int `json:"chunks"`
	Files  int   `json:"files"` // of the archive that are read
	Rows   int64 `json:"rows"`  // estimates, each counted as often as it is read
	Bytes  int64 `json:"bytes"`
	// Sealed says that no live shard can change the range any more: it can be published.
	Sealed   bool     `json:"sealed"`
	Changing bool     `json:"changing,omitempty"` // a live shard can still change the end of what was asked for; without chunks: all of it
	Clipped  string   `json:"clipped,omitempty"`  // why the range is not the one that was asked for
	Warnings []string `json:"warnings,omitempty"`
}

// Slices counts those of all chunks.
func (p *Planned) Slices() (n int) {
	for _, c := range p.Chunks {
		n += c
	}
	return n
}

// SliceInput names one slice of a plan.
type SliceInput struct {
	Backfill BackfillRef `json:"backfill"`
	Plan     string      `json:"plan"`
	Chunk    int         `json:"chunk"`
	Slice    int         `json:"slice"`
	Throttle int64       `json:"throttle,omitempty"` // records a second; 0: as fast as it goes
	Share    float64     `json:"share,omitempty"`    // of the machine that is left to others, from 0 to below 1
}

// SliceDone is what a slice that was done came to. Its truth is the slice's manifest in the object store.
type SliceDone struct {
	Range              // of event times
	Rows       int64   `json:"rows"`     // read from the archive
	Events     int64   `json:"events"`   // applied
	Sessions   int64   `json:"sessions"` // staged
	Rejects    int64   `json:"rejects,omitempty"`
	Bytes      int64   `json:"bytes"` // read from the archive
	StateBytes int64   `json:"state_bytes,omitempty"`
	Seconds    float64 `json:"seconds"`
	Digest     string  `json:"digest"` // of the staged sessions
	// Last says that the chunk is complete: the slices behind this one, which only wait for sessions to end, are not needed.
	Last    bool  `json:"last,omitempty"`
	Attempt int32 `json:"attempt"`
}

// VerifyInput has what the slices said, to be held against their manifests.
type VerifyInput struct {
	Backfill BackfillRef `json:"backfill"`
	Plan     string      `json:"plan"`
	Slices   int         `json:"slices"` // that were done
	Rows     int64       `json:"rows"`
	Sessions int64       `json:"sessions"`
}

// Verified is a backfill whose manifests hold what its slices said.
type Verified struct {
	Sessions int64             `json:"sessions"` // that start in the range; beside it more are staged, for publishing
	Digest   string            `json:"digest"`   // of these and their reports, as a replay says it
	Sums     map[string]string `json:"digests"`  // of sessions and of reports
}

// PublishBackfillInput asks that what is staged be served.
type PublishBackfillInput struct {
	Backfill  BackfillRef `json:"backfill"`
	Plan      string      `json:"plan"`
	RequestID string      `json:"request_id"`
	Actor     string      `json:"actor,omitempty"`
	Reason    string      `json:"reason,omitempty"`
}

// Published says what is served since a backfill was published.
type Published struct {
	// Needs says that nothing was published, since what is served is linked to sessions beyond what is staged: with this margin
	// it can be.
	Needs      *Margin  `json:"needs,omitempty"`
	Range               // of session starts that the new generation serves
	Generation int64    `json:"generation"`
	Epoch      uint64   `json:"epoch"`    // of the serving map
	Sessions   int64    `json:"sessions"` // new ones
	Copied     int64    `json:"copied"`   // served before, and still
	Digest     string   `json:"digest"`   // of all sessions of the generation
	Notes      []string `json:"notes,omitempty"`
}

// CompareBackfillInput asks how what is staged differs from what is served.
type CompareBackfillInput struct {
	Backfill BackfillRef `json:"backfill"`
	Plan     string      `json:"plan"`
	Report   string      `json:"report"` // key of the object that gets the whole comparison
}

// BackfillCompared is the beginning of a comparison.
type BackfillCompared struct {
	Report  string           `json:"report"` // key of the object that has more
	Same    int64            `json:"same"`
	Changed int64            `json:"changed"`
	Missing int64            `json:"missing"`          // staged, not served
	Extra   int64            `json:"extra"`            // served, not staged
	Causes  map[string]int64 `json:"causes,omitempty"` // late, reject, version or unknown: of how many sessions
	First   []Difference     `json:"first,omitempty"`  // some, for people
}

// Differences counts the sessions that differ.
func (c *BackfillCompared) Differences() int64 { return c.Changed + c.Missing + c.Extra }

// Difference is one session that differs, or several that were split or merged.
type Difference struct {
	Kind   string    `json:"kind"` // changed, missing or extra
	Start  time.Time `json:"start"`
	Staged []string  `json:"staged,omitempty"` // ids of sessions
	Served []string  `json:"served,omitempty"`
	Fields []string  `json:"fields,omitempty"` // that differ
	Causes []string  `json:"causes"`           // late, reject, version or unknown
}

// DropInput names a backfill whose staged objects are to go.
type DropInput struct {
	Backfill BackfillRef `json:"backfill"`
}

// Dropped says what is gone.
type Dropped struct {
	Objects int `json:"objects"`
	// Served says that the backfill's generation is served, and therefore stays.
	Served bool `json:"served"`
}

// Staging computes backfills. What it does may be repeated: what was done before is found, and returned as it was.
type Staging interface {
	Plan(ctx context.Context, in PlanInput, progress func(Beat)) (Planned, error)
	RunSlice(ctx context.Context, in SliceInput, progress func(Beat)) (SliceDone, error)
	Verify(ctx context.Context, in VerifyInput, progress func(Beat)) (Verified, error)
	Drop(ctx context.Context, in DropInput, progress func(Beat)) (Dropped, error)
}

// Serving brings what is staged together with what is served.
type Serving interface {
	Publish(ctx context.Context, in PublishBackfillInput, progress func(Beat)) (Published, error)
	Compare(ctx context.Context, in CompareBackfillInput, progress func(Beat)) (BackfillCompared, error)
}

// Backfills has the activities of BackfillQueue. They heartbeat while they get on, and end when they are told to, when
// their process ends, and when Temporal does not hear them.
type Backfills struct {
	Host    *Host
	Staging Staging
	Serving Serving
}

// BackfillTiming is that of a Host for backfills: a step may take a while between two signs of progress, as an upload does.
func BackfillTiming() Timing { return Timing{Stalled: time.Minute} }

// PlanBackfill plans a backfill.
func (b *Backfills) PlanBackfill(ctx context.Context, in PlanInput) (p Planned, err error) {
	err = b.once(ctx, "plan "+in.Backfill.ID, func(ctx context.Context, progress func(Beat)) (err error) {
		p, err = b.Staging.Plan(ctx, in, progress)
		return err
	})
	return p, err
}

// RunSlice computes one slice.
func (b *Backfills) RunSlice(ctx context.Context, in SliceInput) (d SliceDone, err error) {
	name := fmt.Sprintf("slice %s %d/%d", in.Backfill.ID, in.Chunk, in.Slice)
	err = b.once(ctx, name, func(run context.Context, progress func(Beat)) (err error) {
		d, err = b.Staging.RunSlice(run, in, progress)
		return err
	})
	d.Attempt = activity.GetInfo(ctx).Attempt
	return d, err
}

// VerifyBackfill holds what slices said against their manifests.
func (b *Backfills) VerifyBackfill(ctx context.Context, in VerifyInput) (v Verified, err error) {
	err = b.once(ctx, "verify "+in.Backfill.ID, func(ctx context.Context, progress func(Beat)) (err error) {
		v, err = b.Staging.Verify(ctx, in, progress)
		return err
	})
	return v, err
}

// DropBackfill removes what a backfill has staged, and its generation where that is not served.
func (b *Backfills) DropBackfill(ctx context.Context, in DropInput) (d Dropped, err error) {
	err = b.once(ctx, "drop "+in.Backfill.ID, func(ctx context.Context, progress func(Beat)) (err error) {
		d, err = b.Staging.Drop(ctx, in, progress)
		return err
	})
	return d, err
}

// PublishBackfill makes what is staged served.
func (b *Backfills) PublishBackfill(ctx context.Context, in PublishBackfillInput) (p Published, err error) {
	err = b.once(ctx, "publish "+in.Backfill.ID, func(ctx context.Context, progress func(Beat)) (err error) {
		p, err = b.Serving.Publish(ctx, in, progress)
		return err
	})
	return p, err
}

// CompareBackfill compares what is staged with what is served.
func (b *Backfills) CompareBackfill(ctx context.Context, in CompareBackfillInput) (c BackfillCompared, err error) {
	err = b.once(ctx, "compare "+in.Backfill.ID, func(ctx context.Context, progress func(Beat)) (err error) {
		c, err = b.Serving.Compare(ctx, in, progress)
		return err
	})
	return c, err
}

// once runs something that ends by itself.
func (b *Backfills) once(ctx context.Context, name string, do func(context.Context, func(Beat)) error) error {
	ended, err := b.Host.keep(ctx, name, func(ctx context.Context, progress func(Beat)) error {
		if err := do(ctx, progress); err != nil {
			if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				return nil // it ended because it was told to
			}
			return err
		}
		return errDone
	})
	switch {
	case err != nil || ended.Reason == done:
		return err
	case ended.Reason == Stopped:
		return temporal.NewCanceledError()
	}
	// The process ends: another one goes on at once.
	return temporal.NewApplicationErrorWithOptions("the process that ran it has ended", ended.Reason,
		temporal.ApplicationErrorOptions{NextRetryDelay: time.Millisecond})
}

// HoldInput asks for a range of a job, or to keep it.
type HoldInput struct {
	Job      string `json:"job"`
	Workflow string `json:"workflow"` // id of who asks
	Range
	For time.Duration `json:"for"` // how long it is held unless it is asked for again
}

// Held says whether a range is the asker's.
type Held struct {
	Granted bool      `json:"granted"`
	By      string    `json:"by,omitempty"` // the workflow that holds an overlapping range
	Theirs  Range     `json:"theirs"`       // which range that is
	Until   time.Time `json:"until"`        // of what is granted, or of theirs
}

// ReleaseInput gives all ranges of a workflow back.
type ReleaseInput struct {
	Job      string `json:"job"`
	Workflow string `json:"workflow"`
}

// Ranges keeps backfills of one job from publishing the same range at the same time.
type Ranges interface {
	Hold(ctx context.Context, in HoldInput) (Held, error)
	Release(ctx context.Context, in ReleaseInput) error
}

// Leases has short activities of Queue.
type Leases struct {
	Host   *Host
	Ranges Ranges
}

// HoldRange takes a range, or keeps it.
func (l *Leases) HoldRange(ctx context.Context, in HoldInput) (Held, error) {
	h, err := l.Ranges.Hold(ctx, in)
	if err != nil {
		return h, l.Host.failure(fmt.Errorf("hold a range of %s: %w", in.Job, err))
	}
	return h, nil
}

// ReleaseRange gives a range back.
func (l *Leases) ReleaseRange(ctx context.Context, in ReleaseInput) error {
	if err := l.Ranges.Release(ctx, in); err != nil {
		return l.Host.failure(fmt.Errorf("release the range of %s: %w", in.Workflow, err))
	}
	return nil
}

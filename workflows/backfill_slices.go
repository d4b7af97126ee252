package workflows

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

const (
	// slicesPerRun is after how many slices a backfill continues as new: each adds about six events to the history.
	slicesPerRun = 200
	// recentMax is of how many slices that were done the numbers are kept. Their manifests have those of all.
	recentMax = 100
	// failedMax is how many slices may fail before no other chunk is begun: something is wrong with all of them.
	failedMax = 100
	// sliceErrorText is how many bytes of a slice's error are kept.
	sliceErrorText = 500
	failuresShown  = 20 // by Progress, beside those of its page
	// pageSlices is how many slices a page of Progress has.
	pageSlices = 100
	// sliceTime bounds one slice.
	sliceTime = 12 * time.Hour
)

// SliceState is how one slice gets on. Numbers are there for slices that failed, and for the latest that were done.
type SliceState struct {
	Chunk    int     `json:"chunk"`
	Slice    int     `json:"slice"`
	State    string  `json:"state"` // waiting, running, done, failed or not_needed
	Attempts int32   `json:"attempts,omitempty"`
	From     string  `json:"from,omitempty"` // of its event times
	To       string  `json:"to,omitempty"`
	Rows     int64   `json:"rows,omitempty"`
	Sessions int64   `json:"sessions,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	Error    string  `json:"error,omitempty"`
}

// The states of slices.
const (
	SliceWaiting   = "waiting"
	SliceRunning   = "running"
	SliceDone      = "done"
	SliceFailed    = "failed"
	SliceNotNeeded = "not_needed" // all sessions of its chunk had ended before
)

// notNeeded marks a chunk in keptBackfill.Next that ended before its last slice; how early is the amount below zero.
const notNeeded = -1

// ProgressPage asks for one page of slices.
type ProgressPage struct {
	Page int `json:"page"` // from 0
}

// Progress is what the query "progress" answers for Backfill and Reconcile.
type Progress struct {
	State   string           `json:"state"`
	Since   time.Time        `json:"since"` // of the state
	Job     string           `json:"job"`
	Version int              `json:"version,omitempty"`
	Range   activities.Range `json:"range"` // clipped, once it is planned
	Clipped string           `json:"clipped,omitempty"`

	Total    int     `json:"total"` // slices
	Done     int     `json:"done"`
	Running  int     `json:"running"`
	Failed   int     `json:"failed"`
	Rows     int64   `json:"rows"` // read, by slices that were done; so are the next three
	Sessions int64   `json:"sessions"`
	Rejects  int64   `json:"rejects"`
	Bytes    int64   `json:"bytes"`
	Rate     float64 `json:"rate"`        // rows a second while slices ran
	ETA      float64 `json:"eta_seconds"` // until all slices are done; 0: unknown

	Files        int      `json:"files,omitempty"` // of the plan, as the next two are
	PlannedRows  int64    `json:"planned_rows,omitempty"`
	PlannedBytes int64    `json:"planned_bytes,omitempty"`
	Parallelism  int      `json:"parallelism"`
	Plan         string   `json:"plan,omitempty"` // key of the object
	Warnings     []string `json:"warnings,omitempty"`
	Error        *Problem `json:"error,omitempty"` // of the last step that failed

	Verified  *activities.Verified         `json:"verified,omitempty"`
	Published *activities.Published        `json:"published,omitempty"`
	Compared  *activities.BackfillCompared `json:"compared,omitempty"`
	Repair    string                       `json:"repair,omitempty"`
	Rebuild   string                       `json:"rebuild,omitempty"`

	Failures []SliceState `json:"failures,omitempty"` // slices that have failed, some of them
	Page     int          `json:"page"`               // that Slices is
	Pages    int          `json:"pages"`              // there are
	Slices   []SliceState `json:"slices"`
	Rejections
}

// running is a slice that runs.
type running struct {
	chunk, slice int
	result       workflow.Future
}

// window runs the slices of a plan: those of a chunk one after another, those of several chunks at the same time.
type window struct {
	running []running
	started int       // by this run of the workflow
	since   time.Time // when slices began to run without a break
}

// run runs slices until all are done. It returns errCancel or errContinue when none of them runs any more.
func (w *window) run(b *backfill, outer, ctx workflow.Context) error {
	slices, cancel := workflow.WithCancel(ctx)
	defer cancel()
	for {
		if err := w.take(b, ctx); err != nil {
			return err
		}
		b.inbox.drain(ctx)
		b.Cancel = b.Cancel || outer.Err() != nil
		if b.retry {
			b.retry, b.Failed = false, nil
		}
		full := w.started >= slicesPerRun || workflow.GetInfo(ctx).GetContinueAsNewSuggested()
		switch {
		case b.Cancel:
			cancel()
		case !full && !b.Paused:
			w.fill(b, slices)
		}
		if len(w.running) == 0 {
			switch {
			case b.Cancel:
				return errCancel
			case b.complete():
				return nil
			case full:
				return errContinue
			}
		}
		if err := b.enter(ctx, w.state(b)); err != nil {
			return err
		}
		canceled := b.Cancel
		err := workflow.Await(ctx, func() bool {
			return w.ready() || b.inbox.pending(ctx) || !canceled && outer.Err() != nil ||
				len(w.running) == 0 && workflow.GetInfo(ctx).GetContinueAsNewSuggested()
		})
		if err != nil {
			return err
		}
	}
}

// state is what people see while slices run, or should.
func (w *window) state(b *backfill) string {
	switch {
	case b.Cancel:
		return Canceling
	case b.Paused && len(w.running) > 0:
		return Pausing
	case b.Paused:
		return Paused
	case len(w.running) == 0: // those that are left have failed
		return NeedsAttention
	}
	return Running
}

func (w *window) ready() bool {
	return slices.ContainsFunc(w.running, func(r running) bool { return r.result.IsReady() })
}

// fill starts slices up to the width, those of the chunks that come first in the order.
func (w *window) fill(b *backfill, ctx workflow.Context) {
	for i := range b.Next {
		chunk := i
		if b.newest {
			chunk = len(b.Next) - 1 - i
		}
		if len(w.running) >= b.width() || w.started >= slicesPerRun || len(b.Failed) >= failedMax {
			return
		}
		busy := slices.ContainsFunc(w.running, func(r running) bool { return r.chunk == chunk })
		if busy || b.chunkDone(chunk) || b.failedOf(chunk) != nil {
			continue
		}
		if len(w.running) == 0 {
			w.since = workflow.Now(ctx)
		}
		w.running = append(w.running, running{chunk, b.Next[chunk], b.startSlice(ctx, chunk, b.Next[chunk])})
		w.started++
	}
}

// take notes what has ended.
func (w *window) take(b *backfill, ctx workflow.Context) error {
	before := len(w.running)
	var still []running
	for _, r := range w.running {
		if !r.result.IsReady() {
			still = append(still, r)
			continue
		}
		var d activities.SliceDone
		if err := r.result.Get(ctx, &d); err != nil {
			if !temporal.IsCanceledError(err) {
				b.sliceFailed(ctx, r, err)
			}
			continue
		}
		b.sliceDone(r, d)
	}
	w.running = still
	if before > 0 && len(still) == 0 {
		b.Active += workflow.Now(ctx).Sub(w.since).Seconds()
	}
	return nil
}

func (b *backfill) startSlice(ctx workflow.Context, chunk, slice int) workflow.Future {
	in := activities.SliceInput{Backfill: b.ref(), Plan: b.Plan.Plan, Chunk: chunk, Slice: slice, Share: b.work.Share}
	if b.work.Throttle > 0 {
		in.Throttle = max(1, b.work.Throttle/int64(b.concurrent()))
	}
	o := readOptions(sliceTime)
	o.ActivityID = SliceActivityID(chunk, slice)
	var a *activities.Backfills
	return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), a.RunSlice, in)
}

// SliceActivityID is the activity id of a slice while it runs, by which its heartbeats are found.
func SliceActivityID(chunk, slice int) string { return fmt.Sprintf("slice-%d-%d", chunk, slice) }

func (b *backfill) sliceDone(r running, d activities.SliceDone) {
	b.Totals.Slices++
	b.Totals.Rows += d.Rows
	b.Totals.Sessions += d.Sessions
	b.Totals.Rejects += d.Rejects
	b.Totals.Bytes += d.Bytes
	b.Totals.Busy += d.Seconds
	b.Next[r.chunk]++
	if d.Last && b.Next[r.chunk] < b.Plan.Chunks[r.chunk] {
		b.Next[r.chunk] = notNeeded - b.Next[r.chunk]
	}
	b.Recent = append(b.Recent, SliceState{
		Chunk: r.chunk, Slice: r.slice, State: SliceDone, Attempts: d.Attempt, From: d.From.UTC().Format(time.RFC3339),
		To: d.To.UTC().Format(time.RFC3339), Rows: d.Rows, Sessions: d.Sessions, Seconds: d.Seconds,
	})
	if len(b.Recent) > recentMax {
		b.Recent = slices.Delete(b.Recent, 0, len(b.Recent)-recentMax)
	}
}

func (b *backfill) sliceFailed(ctx workflow.Context, r running, err error) {
	s := SliceState{Chunk: r.chunk, Slice: r.slice, State: SliceFailed, Attempts: sliceAttemptsMax, Error: clipTo(problemOf(ctx, err).Message, sliceErrorText)}
	var app *temporal.ApplicationError
	if errors.As(err, &app) && app.NonRetryable() {
		s.Attempts = 1 // of those that might have passed before nobody tells
	}
	b.Failed = append(b.Failed, s)
	workflow.GetLogger(ctx).Warn("a slice failed", "chunk", r.chunk, "slice", r.slice, "error", err)
}

func (b *backfill) failedOf(chunk int) *SliceState {
	for i := range b.Failed {
		if b.Failed[i].Chunk == chunk {
			return &b.Failed[i]
		}
	}
	return nil
}

// done returns how many slices of a chunk were done.
func (b *backfill) done(chunk int) int {
	if n := b.Next[chunk]; n >= 0 {
		return n
	}
	return notNeeded - b.Next[chunk]
}

func (b *backfill) chunkDone(chunk int) bool {
	return b.Next[chunk] < 0 || b.Next[chunk] >= b.Plan.Chunks[chunk]
}

func (b *backfill) complete() bool { return b.chunksLeft() == 0 }

func (b *backfill) chunksLeft() (n int) {
	for chunk := range b.Next {
		if !b.chunkDone(chunk) {
			n++
		}
	}
	return n
}

// concurrent is how many slices can run at once: a chunk runs one at a time.
func (b *backfill) concurrent() int { return max(1, min(b.width(), b.chunksLeft())) }

// progress answers the query. It is called while the workflow waits, and changes nothing.
func (b *backfill) progress(ctx workflow.Context, raw converter.RawValue) (Progress, error) {
	var page ProgressPage
	if raw.Payload() != nil {
		if err := decode(raw, &page); err != nil {
			return Progress{}, fmt.Errorf(`input of the query: %w; it looks like {"page":0}`, err)
		}
	}
	if page.Page < 0 {
		return Progress{}, fmt.Errorf("page %d: expected 0 or more", page.Page)
	}
	p := Progress{
		State: b.State, Since: b.Since, Job: b.job, Version: b.ref().Version, Range: b.Range,
		Running: len(b.window.running), Failed: len(b.Failed),
		Rows: b.Totals.Rows, Sessions: b.Totals.Sessions, Rejects: b.Totals.Rejects, Bytes: b.Totals.Bytes,
		Parallelism: b.width(), Warnings: b.Warnings, Error: b.Error,
		Verified: b.Verified, Published: b.Published, Compared: b.Compared, Repair: b.Repair, Rebuild: b.Rebuild,
		Failures: b.Failed[:min(len(b.Failed), failuresShown)], Page: page.Page, Slices: []SliceState{}, Rejections: b.Rejections,
	}
	if b.Plan == nil {
		return p, nil
	}
	p.Range, p.Clipped, p.Plan = b.Plan.Range, b.Plan.Clipped, b.Plan.Plan
	p.Files, p.PlannedRows, p.PlannedBytes = b.Plan.Files, b.Plan.Rows, b.Plan.Bytes
	for chunk, n := range b.Plan.Chunks {
		if b.Next[chunk] < 0 {
			n = b.done(chunk)
		}
		p.Total += n
		p.Done += b.done(chunk)
	}
	active := b.Active
	if len(b.window.running) > 0 {
		active += workflow.Now(ctx).Sub(b.window.since).Seconds()
	}
	if active > 0 {
		p.Rate = float64(p.Rows) / active
	}
	if b.Totals.Slices > 0 {
		p.ETA = float64(p.Total-p.Done) * b.Totals.Busy / float64(b.Totals.Slices) / float64(b.concurrent())
	}
	planned := b.Plan.Slices()
	p.Pages = (planned + pageSlices - 1) / pageSlices
	p.Slices = b.page(page.Page*pageSlices, (page.Page+1)*pageSlices)
	return p, nil
}

// page returns the slices from one number to before another, counted through all chunks in their order.
func (b *backfill) page(from, to int) []SliceState {
	list := []SliceState{}
	first := 0
	for chunk, n := range b.Plan.Chunks {
		for slice := max(0, from-first); slice < min(n, to-first); slice++ {
			list = append(list, b.sliceState(chunk, slice))
		}
		first += n
	}
	return list
}

func (b *backfill) sliceState(chunk, slice int) SliceState {
	if f := b.failedOf(chunk); f != nil && f.Slice == slice {
		return *f
	}
	s := SliceState{Chunk: chunk, Slice: slice, State: SliceWaiting}
	switch {
	case slice < b.done(chunk):
		s.State = SliceDone
		for _, r := range b.Recent {
			if r.Chunk == chunk && r.Slice == slice {
				return r
			}
		}
	case b.Next[chunk] < 0:
		s.State = SliceNotNeeded
	case slices.ContainsFunc(b.window.running, func(r running) bool { return r.chunk == chunk && r.slice == slice }):
		s.State = SliceRunning
	}
	return s
}

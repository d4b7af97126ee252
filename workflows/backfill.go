package workflows

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// BackfillType is the type of the workflow Backfill.
const BackfillType = "Backfill"

// compactTime is how times stand in workflow ids; they are UTC.
const compactTime = "20060102T150405Z"

// BackfillID is the usual workflow id of a backfill: backfill/payments/20261101T000000Z_20261102T000000Z.
func BackfillID(job string, from, to time.Time) string {
	return fmt.Sprintf("backfill/%s/%s_%s", job, from.UTC().Format(compactTime), to.UTC().Format(compactTime))
}

// QueryProgress asks Backfill and Reconcile for their Progress. Its input is a ProgressPage, or nothing.
const QueryProgress = "progress"

// Signals of Backfill and Reconcile, beside SignalPause and SignalResume. Each carries an Order or nothing, but for
// SignalParallelism, which carries a ParallelismOrder.
const (
	SignalCancel      = "cancel"          // end it; what is served stays as it is
	SignalParallelism = "set_parallelism" // run so many slices at once from now on
	SignalRetryFailed = "retry_failed"    // try what failed again
)

// States of Backfill and Reconcile, beside Running and Paused.
const (
	Planning       = "planning"
	Pausing        = "pausing" // slices that run end first
	NeedsAttention = "needs_attention"
	Verifying      = "verifying"
	Comparing      = "comparing"
	Publishing     = "publishing"
	Canceling      = "canceling" // slices that run are ending
	Cleaning       = "cleaning"  // removing what was staged
)

// Outcomes of Backfill and Reconcile, which are their last states.
const (
	Published = "published"
	Compared  = "compared"
	Checked   = "checked" // a dry run worked
	Canceled  = "canceled"
	Refused   = "refused" // another workflow holds an overlapping range
	// Rebuilding says that a live shard can still change all of the range, so that the job was asked to compute its version anew.
	Rebuilding = "rebuilding"
	// Failed is one too: what was asked for cannot be done.
)

// Modes of a backfill.
const (
	ModePublish = "publish" // serve the result
	ModeDryRun  = "dry_run" // compute it, and serve nothing
	ModeCompare = "compare" // compute it, and tell how it differs from what is served
)

const (
	parallelismDefault = 4
	parallelismMax     = 1000
	sliceMin           = time.Minute
	sliceMax           = 7 * 24 * time.Hour
	// leaseFor is how long a range stays held after the last renewal, and leaseRenewal is how often that is done.
	leaseFor, leaseRenewal = time.Hour, 15 * time.Minute
)

// Work is what the inputs of Backfill and Reconcile have in common. The zero value means the defaults.
type Work struct {
	Version     int     `json:"version,omitempty"`     // 0: the one that serves the end of the range, or else the latest
	Parallelism int     `json:"parallelism,omitempty"` // slices that run at once; default 4
	Slice       string  `json:"slice,omitempty"`       // length of a slice, such as 1h
	Throttle    int64   `json:"throttle,omitempty"`    // records a second of the whole backfill; 0: as fast as it goes
	Share       float64 `json:"share,omitempty"`       // of parallelism and of each machine that is left to live jobs; 0 to below 1
	Rebuild     bool    `json:"rebuild,omitempty"`     // where a live shard can still change the end of the range, have the job compute its version anew
	RequestID   string  `json:"request_id,omitempty"`  // of publishing; default derived from the run
	Actor       string  `json:"actor,omitempty"`
	Reason      string  `json:"reason,omitempty"`
}

func (w *Work) check() error {
	if w.Parallelism == 0 {
		w.Parallelism = parallelismDefault
	}
	switch {
	case w.Version < 0:
		return fmt.Errorf("version %d: expected 1 or more, or none for the served one", w.Version)
	case w.Parallelism < 1 || w.Parallelism > parallelismMax:
		return fmt.Errorf("parallelism %d: expected 1 to %d", w.Parallelism, parallelismMax)
	case w.Throttle < 0:
		return fmt.Errorf("throttle %d: expected records a second, or 0 for none", w.Throttle)
	case w.Share < 0 || w.Share >= 1:
		return fmt.Errorf("share %v: expected 0 to below 1", w.Share)
	}
	for _, x := range [][2]string{{"request_id", w.RequestID}, {"actor", w.Actor}, {"reason", w.Reason}} {
		if len(x[1]) > textMax {
			return fmt.Errorf("%s has %d bytes: expected at most %d", x[0], len(x[1]), textMax)
		}
	}
	if w.Slice != "" {
		if d, err := time.ParseDuration(w.Slice); err != nil || d < sliceMin || d > sliceMax {
			return fmt.Errorf("slice %q: expected a duration from %s to %s, such as 1h", clip(w.Slice), sliceMin, sliceMax)
		}
	}
	return nil
}

// textMax bounds what people say about a request, in bytes.
const textMax = 200

// Window is a range of session starts: either from and to, as RFC 3339 times, or a window that ended a lag ago.
type Window struct {
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`
	Window string `json:"window,omitempty"` // such as 24h
	Lag    string `json:"lag,omitempty"`    // such as 2h
}

// relative tells whether the range depends on when the workflow was to start.
func (w Window) relative() bool { return w.Window != "" || w.Lag != "" }

// resolve returns the range; now is when the workflow was to start. Ranges are whole seconds.
func (w Window) resolve(now time.Time) (r activities.Range, err error) {
	if w.relative() {
		if w.From != "" || w.To != "" {
			return r, errors.New("from and to exclude window and lag: give either")
		}
		length, err := time.ParseDuration(w.Window)
		if err != nil || length < time.Second {
			return r, fmt.Errorf("window %q: expected a duration such as 24h", clip(w.Window))
		}
		var lag time.Duration
		if w.Lag != "" {
			if lag, err = time.ParseDuration(w.Lag); err != nil || lag < 0 {
				return r, fmt.Errorf("lag %q: expected a duration such as 2h", clip(w.Lag))
			}
		}
		r.To = now.UTC().Add(-lag).Truncate(time.Second)
		r.From = r.To.Add(-length).Truncate(time.Second)
		return r, nil
	}
	if r.From, err = parseTime("from", w.From); err != nil {
		return r, err
	}
	if r.To, err = parseTime("to", w.To); err != nil {
		return r, err
	}
	if !r.From.Before(r.To) {
		return r, fmt.Errorf("the range from %s to %s is empty", w.From, w.To)
	}
	return r, nil
}

func parseTime(name, text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.Nanosecond() != 0 {
		return t, fmt.Errorf("%s is %q: expected a time in whole seconds, such as 2026-11-01T00:00:00Z", name, clip(text))
	}
	return t.UTC(), nil
}

// BackfillInput is the input of Backfill.
type BackfillInput struct {
	Job string `json:"job"`
	Window
	Mode  string `json:"mode,omitempty"`  // publish (default), dry_run or compare
	Order string `json:"order,omitempty"` // of chunks: oldest first (default) or newest
	Work
	State *keptBackfill `json:"state,omitempty"` // of the run before, by continue-as-new
}

const backfillExample = `{"job":"payments","from":"2026-11-01T00:00:00Z","to":"2026-11-02T00:00:00Z"} or {"job":"payments","window":"24h","lag":"2h"}`

// Check fills in defaults, and returns the range that is meant; now is when the workflow is to start.
func (in *BackfillInput) Check(now time.Time) (r activities.Range, err error) {
	switch {
	case in.Job == "":
		return r, errors.New("job is missing")
	case in.Mode != "" && in.Mode != ModePublish && in.Mode != ModeDryRun && in.Mode != ModeCompare:
		return r, fmt.Errorf("mode %q: expected %s, %s or %s", clip(in.Mode), ModePublish, ModeDryRun, ModeCompare)
	case in.Order != "" && in.Order != "oldest" && in.Order != "newest":
		return r, fmt.Errorf("order %q: expected oldest or newest", clip(in.Order))
	}
	if in.Mode == "" {
		in.Mode = ModePublish
	}
	if in.Rebuild && in.Mode != ModePublish {
		return r, fmt.Errorf("rebuild changes what is served, and mode %s does not", in.Mode)
	}
	if err := in.Work.check(); err != nil {
		return r, err
	}
	return in.Window.resolve(now)
}

// Backfill computes a range of the past anew from the archive and publishes it; its id is BackfillID. Query QueryProgress
// returns a Progress. Its result is a BackfillResult.
func Backfill(ctx workflow.Context, raw converter.RawValue) (BackfillResult, error) {
	var in BackfillInput
	var asked activities.Range
	err := decode(raw, &in)
	if err == nil {
		asked, err = in.Check(scheduledFor(ctx))
	}
	if err != nil {
		return BackfillResult{}, badInput(BackfillType, backfillExample, err)
	}
	b := newBackfill(ctx, BackfillType, in.Job, asked, in.Work, in.State)
	b.newest = in.Order == "newest"
	b.publish, b.compare = in.Mode == ModePublish, in.Mode == ModeCompare
	result, err := b.main(ctx)
	if errors.Is(err, errContinue) {
		in.Work.Parallelism = b.work.Parallelism
		in.State = &b.keptBackfill
		return result, workflow.NewContinueAsNewError(ctx, BackfillType, in)
	}
	return result, err
}

// scheduledFor returns when a workflow was to start: a schedule says that in a search attribute, since its actions may wait.
func scheduledFor(ctx workflow.Context) time.Time {
	key := temporal.NewSearchAttributeKeyTime("TemporalScheduledStartTime")
	if t, ok := workflow.GetTypedSearchAttributes(ctx).GetTime(key); ok {
		return t
	}
	return workflow.GetInfo(ctx).WorkflowStartTime
}

// ParallelismOrder is what SignalParallelism carries.
type ParallelismOrder struct {
	Parallelism int `json:"parallelism"`
	Order
}

// BackfillResult is what Backfill and Reconcile return. The last state of the query progress says more.
type BackfillResult struct {
	Outcome string           `json:"outcome"` // Published, Compared, Checked or Canceled
	Job     string           `json:"job"`
	Version int              `json:"version,omitempty"`
	Range   activities.Range `json:"range"` // that was computed
	Clipped string           `json:"clipped,omitempty"`
	Totals
	Verified  *activities.Verified         `json:"verified,omitempty"`
	Published *activities.Published        `json:"published,omitempty"`
	Compared  *activities.BackfillCompared `json:"compared,omitempty"`
	Repair    string                       `json:"repair,omitempty"`  // of Reconcile: what became of the repair that was asked for
	Rebuild   string                       `json:"rebuild,omitempty"` // what became of the rebuild that was asked for
	Warnings  []string                     `json:"warnings,omitempty"`
}

// Totals are sums over slices.
type Totals struct {
	Slices   int     `json:"slices"` // that were done
	Rows     int64   `json:"rows"`   // read from the archive
	Sessions int64   `json:"sessions"`
	Rejects  int64   `json:"rejects"`
	Bytes    int64   `json:"bytes"`
	Busy     float64 `json:"busy_seconds"` // of all slices together
}

// keptBackfill is what a backfill carries over when it continues as new: references and counters, and no data.
type keptBackfill struct {
	activities.Range
	ID    string              `json:"id"`    // of the first run: what is staged is under it
	State string              `json:"state"` // as people see it
	Since time.Time           `json:"since"`
	Phase string              `json:"phase"` // what it is at, whether or not it waits
	Plan  *activities.Planned `json:"plan,omitempty"`
	// Round counts the plans before this one that turned out to be too narrow, and Margin is what they were short of.
	Round  int               `json:"round,omitempty"`
	Margin activities.Margin `json:"margin,omitzero"`
	// Next has the next slice of each chunk; a chunk that is complete has the number of its slices, or -1 where it needed
	// fewer.
	Next   []int        `json:"next,omitempty"`
	Failed []SliceState `json:"failed,omitempty"`
	Recent []SliceState `json:"recent,omitempty"` // the latest that were done
	Totals Totals       `json:"totals"`
	Active float64      `json:"active_seconds"` // during which slices ran
	Paused bool         `json:"paused,omitempty"`
	Cancel bool         `json:"cancel,omitempty"`
	Error  *Problem     `json:"error,omitempty"` // of the last step that failed

	Outcome   string                       `json:"outcome,omitempty"` // once it is decided
	Verified  *activities.Verified         `json:"verified,omitempty"`
	Published *activities.Published        `json:"published,omitempty"`
	Compared  *activities.BackfillCompared `json:"compared,omitempty"`
	Repair    string                       `json:"repair,omitempty"`
	Rebuild   string                       `json:"rebuild,omitempty"`
	Warnings  []string                     `json:"warnings,omitempty"`
	Ledger    ledger                       `json:"ledger,omitzero"`
	Rejections
}

// UnmarshalJSON passes over keys that it does not know: a newer engine may have written them before a rollback.
func (k *keptBackfill) UnmarshalJSON(data []byte) error {
	type plain keptBackfill
	return json.Unmarshal(data, (*plain)(k))
}

// backfill is a run of the workflow Backfill or Reconcile.
type backfill struct {
	kind     string // of the workflow, as the audit log has it
	workflow string // its id
	audits   bool
	job      string
	work     Work
	newest   bool
	// publish serves the result; compare stores a report of how it differs from what is served, and repair serves it after
	// that where it does.
	publish, compare, repair bool
	keptBackfill
	inbox inbox

	retry   bool
	window  window
	holding workflow.Context // while the range is held: renews the lease until it is canceled
	release workflow.CancelFunc
}

// newBackfill returns a backfill that goes on where carried ended, or begins. Only the first run decides which range is meant.
func newBackfill(ctx workflow.Context, kind, job string, asked activities.Range, work Work, carried *keptBackfill) *backfill {
	b := &backfill{kind: strings.ToLower(kind), workflow: workflow.GetInfo(ctx).WorkflowExecution.ID, job: job, work: work}
	b.audits = workflow.GetVersion(ctx, "audit", workflow.DefaultVersion, 1) == 1
	if carried != nil {
		b.keptBackfill = *carried
	} else {
		b.Range = asked
		b.ID = workflow.GetInfo(ctx).FirstRunID
		b.Phase = Planning
	}
	if b.work.RequestID == "" {
		b.work.RequestID = "backfill-" + b.ID
	}
	b.inbox.Rejections = &b.Rejections
	b.inbox.handlers = []handler{
		{SignalParallelism, b.setParallelism},
		b.order(SignalRetryFailed, func() error {
			if b.State != NeedsAttention && len(b.Failed) == 0 {
				return fmt.Errorf("nothing has failed: the state is %s", b.State)
			}
			b.retry = true
			return nil
		}),
		b.order(SignalResume, func() error { b.Paused = false; return nil }),
		b.order(SignalPause, func() error { b.Paused = true; return nil }),
		b.order(SignalCancel, func() error {
			if b.Outcome != "" {
				return fmt.Errorf("it is too late: the outcome is %s", b.Outcome)
			}
			b.Cancel = true
			return nil
		}),
	}
	return b
}

// order returns a handler of a signal that is noted in the ledger.
func (b *backfill) order(signal string, do func() error) handler {
	return order(signal, func(o Order) error {
		err := do()
		if err != nil {
			b.note(signal+".rejected", o, audited{Text: err.Error()})
		} else {
			b.note(signal, o, audited{})
		}
		return err
	})
}

func (b *backfill) setParallelism(raw converter.RawValue) error {
	var o ParallelismOrder
	if err := decode(raw, &o); err != nil {
		return err
	}
	if o.Parallelism < 1 || o.Parallelism > parallelismMax {
		return fmt.Errorf("parallelism %d: expected 1 to %d", o.Parallelism, parallelismMax)
	}
	b.work.Parallelism = o.Parallelism
	b.note(SignalParallelism, o.Order, audited{Text: fmt.Sprintf("%d slices at once", o.Parallelism)})
	return nil
}

// width is how many slices run at once.
func (b *backfill) width() int {
	return max(1, int(math.Floor(float64(b.work.Parallelism)*(1-b.work.Share)+1e-9)))
}

// ref names what this round stages.
func (b *backfill) ref() activities.BackfillRef {
	ref := activities.BackfillRef{Job: b.job, Version: b.work.Version, ID: b.roundID(b.Round)}
	if b.Plan != nil {
		ref.Version = b.Plan.Version
	}
	return ref
}

func (b *backfill) roundID(round int) string {
	if round == 0 {
		return b.ID
	}
	return fmt.Sprintf("%s-%d", b.ID, round)
}

// enter notes a new state.
func (b *backfill) enter(ctx workflow.Context, state string) error {
	if b.State == state {
		return nil
	}
	b.State, b.Since = state, workflow.Now(ctx)
	version := ""
	if v := b.ref().Version; v > 0 {
		version = fmt.Sprint(v)
	}
	return mark(ctx, b.job, version, state)
}

// errCancel says that the backfill is to be canceled.
var errCancel = errors.New("canceled")

// main goes through the phases. A cancellation of the workflow does what SignalCancel does.
func (b *backfill) main(outer workflow.Context) (BackfillResult, error) {
	ctx, cancel := workflow.NewDisconnectedContext(outer)
	defer cancel()
	err := workflow.SetQueryHandler(ctx, QueryProgress, func(raw converter.RawValue) (Progress, error) { return b.progress(ctx, raw) })
	if err != nil {
		return BackfillResult{}, err
	}
	b.record(ctx)
	if b.State == "" {
		mode := ModeDryRun
		switch {
		case b.repair:
			mode = "repair"
		case b.compare:
			mode = ModeCompare
		case b.publish:
			mode = ModePublish
		}
		b.note("started", Order{Reason: b.work.Reason, Actor: b.work.Actor}, audited{Range: &b.Range, Mode: mode, Version: b.work.Version})
	}
	// Nobody else can take the range while a run continues as new; all the same it is renewed before long.
	if b.Plan != nil && b.publish {
		b.keep(ctx)
	}
	for b.Phase != "" {
		var err error
		switch b.Phase {
		case Planning:
			err = b.planning(outer, ctx)
		case Running:
			err = b.window.run(b, outer, ctx)
			b.Phase = next(err, Verifying, b.Phase)
		case Verifying:
			err = b.verifying(outer, ctx)
		case Comparing:
			err = b.comparing(outer, ctx)
		case Publishing:
			err = b.publishing(outer, ctx)
		case Cleaning:
			err = b.cleaning(ctx)
		}
		switch {
		case errors.Is(err, errCancel):
			b.Outcome, b.Phase = Canceled, Cleaning
		case err != nil:
			return BackfillResult{}, err
		}
	}
	return b.end(outer, ctx)
}

// next returns the phase after one that ended with err.
func next(err error, then, now string) string {
	if err != nil {
		return now
	}
	return then
}

func (b *backfill) planning(outer, ctx workflow.Context) error {
	if b.publish {
		if held, err := b.hold(outer, ctx, Planning); err != nil || !held {
			return err
		}
		b.keep(ctx)
	}
	in := activities.PlanInput{
		Backfill: b.ref(), Range: b.Range, Publish: b.publish, Parallelism: b.width(), Slice: b.work.Slice, Margin: b.Margin,
		Rebuild: b.work.Rebuild,
	}
	var p activities.Planned
	var a *activities.Backfills
	err := b.step(outer, ctx, Planning, &p, func(ctx workflow.Context) workflow.Future {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, readOptions(time.Hour)), a.PlanBackfill, in)
	})
	if b.Outcome != "" || err != nil {
		return err
	}
	if b.Plan = &p; len(p.Chunks) == 0 && p.Changing {
		b.decide(ctx, Rebuilding, "", "")
		return nil
	}
	b.Warnings, b.Phase = p.Warnings, Running
	b.Next = make([]int, len(p.Chunks))
	return nil
}

// hold takes the range, or keeps it. Where another workflow has it, that is the outcome.
func (b *backfill) hold(outer, ctx workflow.Context, state string) (bool, error) {
	var h activities.Held
	err := b.step(outer, ctx, state, &h, b.asking)
	if b.Outcome != "" || err != nil {
		return false, err
	}
	if h.Granted {
		return true, nil
	}
	b.decide(ctx, Refused, Refused, fmt.Sprintf("%s holds %s to %s of %s until %s, which overlaps; wait for it, or cancel it",
		h.By, h.Theirs.From.Format(time.RFC3339), h.Theirs.To.Format(time.RFC3339), b.job, h.Until.Format(time.RFC3339)))
	return false, nil
}

// asking asks for the range.
func (b *backfill) asking(ctx workflow.Context) workflow.Future {
	var l *activities.Leases
	return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, leaseOptions()), l.HoldRange, activities.HoldInput{
		Job: b.job, Workflow: workflow.GetInfo(ctx).WorkflowExecution.ID, Range: b.Range, For: leaseFor,
	})
}

// keep renews the lease until let go. What comes of it is seen before publishing, which asks once more.
func (b *backfill) keep(ctx workflow.Context) {
	if b.holding != nil {
		return
	}
	b.holding, b.release = workflow.WithCancel(ctx)
	holding := b.holding
	workflow.Go(holding, func(ctx workflow.Context) {
		for workflow.Sleep(ctx, leaseRenewal) == nil {
			if err := b.asking(ctx).Get(ctx, nil); err != nil && ctx.Err() == nil {
				workflow.GetLogger(ctx).Warn("the range could not be held; asking again", "error", err)
			}
		}
	})
}

func (b *backfill) verifying(outer, ctx workflow.Context) error {
	var a *activities.Backfills
	var v activities.Verified
	err := b.step(outer, ctx, Verifying, &v, func(ctx workflow.Context) workflow.Future {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, readOptions(time.Hour)), a.VerifyBackfill, activities.VerifyInput{
			Backfill: b.ref(), Plan: b.Plan.Plan, Slices: b.Totals.Slices, Rows: b.Totals.Rows, Sessions: b.Totals.Sessions,
		})
	})
	if b.Outcome != "" || err != nil {
		return err
	}
	b.Verified = &v
	switch {
	case b.compare:
		b.Phase = Comparing
	case b.publish:
		b.Phase = Publishing
	default:
		b.decide(ctx, Checked, "", "")
	}
	return nil
}

func (b *backfill) comparing(outer, ctx workflow.Context) error {
	var a *activities.Backfills
	var c activities.BackfillCompared
	err := b.step(outer, ctx, Comparing, &c, func(ctx workflow.Context) workflow.Future {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, readOptions(writeTime)), a.CompareBackfill, activities.CompareBackfillInput{
			Backfill: b.ref(), Plan: b.Plan.Plan, Report: b.report(),
		})
	})
	if b.Outcome != "" || err != nil {
		return err
	}
	b.Compared = &c
	switch {
	case !b.repair:
	case c.Differences() == 0:
		b.Repair = "not needed: there are no differences"
	case !b.Plan.Sealed:
		b.Repair = "not done: a live shard can still change the range; try again once it is sealed"
		if b.work.Rebuild {
			b.Repair = "by a rebuild: a live shard can still change the range"
		}
	default:
		b.Phase = Publishing
		return nil
	}
	b.decide(ctx, Compared, "", "")
	return nil
}

// report is the key of the comparison. It stays when the backfill is gone.
func (b *backfill) report() string {
	return fmt.Sprintf("reconcile/%s/%s_%s-%s.json", b.job, b.From.Format(compactTime), b.To.Format(compactTime), b.ID)
}

func (b *backfill) publishing(outer, ctx workflow.Context) error {
	// Where workers were away for long the lease may have run out.
	if held, err := b.hold(outer, ctx, Publishing); err != nil || !held {
		if b.Outcome == Refused && b.repair {
			b.Repair, b.Outcome, b.Error = "not done: "+b.Error.Message, Compared, nil
		}
		return err
	}
	var a *activities.Backfills
	var p activities.Published
	err := b.step(outer, ctx, Publishing, &p, func(ctx workflow.Context) workflow.Future {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, readOptions(writeTime)), a.PublishBackfill, activities.PublishBackfillInput{
			Backfill: b.ref(), Plan: b.Plan.Plan, RequestID: b.work.RequestID, Actor: b.work.Actor, Reason: b.work.Reason,
		})
	})
	if b.Outcome != "" || err != nil {
		return err
	}
	if p.Needs != nil {
		return b.widen(ctx, *p.Needs)
	}
	b.Published = &p
	if b.repair {
		b.Repair = Published
	}
	b.decide(ctx, Published, "", "")
	return nil
}

// roundsMax is how often a plan may be widened. Each time it is by what was found to be missing, so twice is rare.
const roundsMax = 5

// widen plans anew where what is served is linked to sessions beyond what was staged. What was staged is removed in the end.
func (b *backfill) widen(ctx workflow.Context, margin activities.Margin) error {
	if b.Round == roundsMax {
		b.decide(ctx, Failed, activities.User, fmt.Sprintf(
			"what is served is linked to sessions %s before and %s behind the range, and so on after %d plans: choose a wider range", margin.Before, margin.After, roundsMax+1))
		return nil
	}
	b.work.Version = b.Plan.Version // another one may be served by now
	b.Round++
	b.Margin, b.Phase, b.Plan = margin, Planning, nil
	b.Next, b.Failed, b.Recent, b.Totals, b.Active, b.Verified = nil, nil, nil, Totals{}, 0, nil
	return nil
}

// decide notes the outcome, and why where that is a failure, and goes on to clean up.
func (b *backfill) decide(ctx workflow.Context, outcome, kind, message string) {
	b.Outcome, b.Phase = outcome, Cleaning
	if message != "" {
		b.Error = &Problem{Type: kind, Message: message, At: workflow.Now(ctx)}
	}
}

// cleaning removes what was staged, and gives the range back. It is tried until it works, so that nothing is left behind.
func (b *backfill) cleaning(ctx workflow.Context) error {
	if err := b.enter(ctx, Cleaning); err != nil {
		return err
	}
	options := readOptions(time.Hour)
	options.RetryPolicy.MaximumAttempts = 0
	for round := range b.Round + 1 {
		if b.Outcome == Refused && b.Plan == nil && b.Round == 0 { // otherwise a plan may be stored, also by an activity that failed
			break
		}
		var a *activities.Backfills
		var d activities.Dropped
		in := activities.DropInput{Backfill: b.ref()}
		in.Backfill.ID = b.roundID(round)
		err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, options), a.DropBackfill, in).Get(ctx, &d)
		if err != nil {
			b.Warnings = append(b.Warnings, "what was staged could not be removed: "+clip(problemOf(ctx, err).Message))
		}
		if d.Served && b.Outcome == Canceled {
			b.Outcome = Published
			b.Warnings = append(b.Warnings, "it was canceled when it had been published already")
		}
	}
	if b.release != nil {
		b.release()
	}
	if b.publish || b.repair {
		var l *activities.Leases
		err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, leaseOptions()), l.ReleaseRange,
			activities.ReleaseInput{Job: b.job, Workflow: workflow.GetInfo(ctx).WorkflowExecution.ID}).Get(ctx, nil)
		if err != nil { // it ends by itself
			b.Warnings = append(b.Warnings, "the range could not be released: "+clip(problemOf(ctx, err).Message))
		}
	}
	b.Phase = ""
	return nil
}

// end returns the result.
func (b *backfill) end(outer, ctx workflow.Context) (BackfillResult, error) {
	b.inbox.drain(ctx)
	if err := b.enter(ctx, b.Outcome); err != nil {
		return BackfillResult{}, err
	}
	if err := b.rebuild(ctx); err != nil {
		return BackfillResult{}, err
	}
	done := audited{Range: &b.Range, Version: b.ref().Version, Sessions: b.Totals.Sessions, Text: b.Repair}
	if b.Plan != nil {
		done.Range = &b.Plan.Range
	}
	if b.Error != nil {
		done.Text = b.Error.Message
	}
	b.note(b.Outcome, Order{Actor: b.work.Actor}, done)
	if err := b.settle(ctx); err != nil {
		return BackfillResult{}, err
	}
	if b.Outcome == Refused || b.Outcome == Failed {
		return BackfillResult{}, temporal.NewNonRetryableApplicationError(b.Error.Message, b.Error.Type, nil)
	}
	r := BackfillResult{
		Outcome: b.Outcome, Job: b.job, Version: b.ref().Version, Range: b.Range, Totals: b.Totals, Verified: b.Verified,
		Published: b.Published, Compared: b.Compared, Repair: b.Repair, Rebuild: b.Rebuild, Warnings: b.Warnings,
	}
	if b.Plan != nil {
		r.Range, r.Clipped = b.Plan.Range, b.Plan.Clipped
	}
	if b.Outcome == Canceled && outer.Err() != nil {
		return r, outer.Err()
	}
	return r, nil
}

// rebuild asks the job to compute its version anew where that was wanted and a live shard can still change the end of the range.
func (b *backfill) rebuild(ctx workflow.Context) error {
	if !b.work.Rebuild || b.Plan == nil || !b.Plan.Changing {
		return nil
	}
	switch {
	case b.Outcome == Published || b.Outcome == Rebuilding:
	case b.Outcome == Compared && b.repair && b.Compared.Differences() > 0:
	default:
		return nil
	}
	var l *activities.Lifecycle
	ask := Request{Reason: b.work.Reason, RequestID: "rebuild/" + b.ID, Actor: b.work.Actor}
	if ask.Reason == "" {
		ask.Reason = "asked for by " + workflow.GetInfo(ctx).WorkflowExecution.ID
	}
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, shortOptions()), l.Launch, activities.LaunchInput{
		ID: JobID(b.job), Type: JobType, Job: b.job, Input: inputOf(JobInput{Job: b.job}), Signal: SignalRebuild, Arg: inputOf(ask),
	}).Get(ctx, nil)
	if temporal.IsCanceledError(err) {
		return err
	}
	b.Rebuild = fmt.Sprintf("asked of %s as request %s", JobID(b.job), ask.RequestID)
	if err != nil {
		b.Rebuild = "could not be asked for: " + problemOf(ctx, err).Message
	}
	return nil
}

// step runs one activity to its end, and again on request where it failed. A plan that asks for what cannot be done is the
// outcome; what fails later waits for a person, since hours of work stand behind it.
func (b *backfill) step(outer, ctx workflow.Context, state string, result any, start func(workflow.Context) workflow.Future) error {
	for {
		if err := b.wait(outer, ctx, Paused, func() bool { return !b.Paused }); err != nil {
			return err
		}
		if err := b.enter(ctx, state); err != nil {
			return err
		}
		running, cancel := workflow.WithCancel(ctx)
		f := start(running)
		err := b.await(outer, ctx, f.IsReady)
		if errors.Is(err, errCancel) {
			if err := b.enter(ctx, Canceling); err != nil {
				return err
			}
			cancel()
			if f.Get(ctx, result) != nil {
				return errCancel
			}
			return nil // it was faster
		}
		if err == nil {
			err = f.Get(ctx, result)
			if err == nil {
				b.Error = nil
			}
		}
		cancel()
		if err == nil {
			return nil
		}
		problem := problemOf(ctx, err)
		problem.Message = clipTo(problem.Message, sliceErrorText)
		if b.Phase == Planning && problem.Type == activities.User {
			b.decide(ctx, Failed, problem.Type, problemOf(ctx, err).Message)
			return nil
		}
		b.Error, b.retry = &problem, false
		if err := b.wait(outer, ctx, NeedsAttention, func() bool { return b.retry }); err != nil {
			return err
		}
	}
}

// wait stays in a state until done; errCancel where the backfill is canceled.
func (b *backfill) wait(outer, ctx workflow.Context, state string, done func() bool) error {
	b.inbox.drain(ctx)
	if done() && !b.Cancel {
		return nil
	}
	if err := b.enter(ctx, state); err != nil {
		return err
	}
	err := b.await(outer, ctx, func() bool { return done() || workflow.GetInfo(ctx).GetContinueAsNewSuggested() })
	if err == nil && !done() {
		return errContinue
	}
	return err
}

// await takes in signals until done; errCancel where the backfill is canceled first.
func (b *backfill) await(outer, ctx workflow.Context, done func() bool) error {
	for {
		b.inbox.drain(ctx)
		b.Cancel = b.Cancel || outer.Err() != nil
		if done() {
			return nil
		}
		if b.Cancel {
			return errCancel
		}
		err := workflow.Await(ctx, func() bool { return done() || b.inbox.pending(ctx) || outer.Err() != nil })
		if err != nil {
			return err
		}
	}
}

// writeTime bounds what reads all that is staged, and writes what is served.
const writeTime = 12 * time.Hour

// readOptions are those of activities that read archives. After their attempts a person is asked.
func readOptions(limit time.Duration) workflow.ActivityOptions {
	return workflow.ActivityOptions{
		TaskQueue:           activities.BackfillQueue,
		StartToCloseTimeout: limit,
		HeartbeatTimeout:    activities.HeartbeatTimeout,
		WaitForCancellation: true, // so that nothing is written behind a clean-up
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 2 * time.Second,
			MaximumAttempts: sliceAttemptsMax,
		},
	}
}

// sliceAttemptsMax is how often a slice is tried before a person is asked.
const sliceAttemptsMax = 5

// leaseOptions are those of holding and releasing a range.
func leaseOptions() workflow.ActivityOptions {
	o := shortOptions()
	o.RetryPolicy.MaximumAttempts = 20 // three minutes
	return o
}

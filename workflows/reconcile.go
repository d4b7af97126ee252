package workflows

import (
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// ReconcileType is the type of the workflow Reconcile.
const ReconcileType = "Reconcile"

// dayLayout is how days are written. A day is one of UTC.
const dayLayout = "2006-01-02"

// ReconcileID is the usual workflow id of the audit of a day: reconcile/payments/2026-11-01.
func ReconcileID(job, day string) string { return fmt.Sprintf("reconcile/%s/%s", job, day) }

// ReconcileInput is the input of Reconcile.
type ReconcileInput struct {
	Job string `json:"job"`
	Day string `json:"day,omitempty"` // of UTC, such as 2026-11-01; or a range, as Backfill takes it
	Window
	// Repair publishes what was computed where it differs from what is served, and the range is sealed.
	Repair bool `json:"repair,omitempty"`
	Work
	State *keptBackfill `json:"state,omitempty"` // of the run before, by continue-as-new
}

const reconcileExample = `{"job":"payments","day":"2026-11-01","repair":true} or {"job":"payments","window":"24h","lag":"6h"}`

// Check fills in defaults, and returns the range that is meant; now is when the workflow is to start.
func (in *ReconcileInput) Check(now time.Time) (r activities.Range, err error) {
	if in.Job == "" {
		return r, errors.New("job is missing")
	}
	if err := in.Work.check(); err != nil {
		return r, err
	}
	if in.Rebuild && !in.Repair {
		return r, errors.New("rebuild is a repair: set repair too")
	}
	if in.Day == "" {
		return in.Window.resolve(now)
	}
	if in.Window != (Window{}) {
		return r, errors.New("day excludes from, to, window and lag: give either")
	}
	if r.From, err = time.Parse(dayLayout, in.Day); err != nil {
		return r, fmt.Errorf("day %q: expected one such as 2026-11-01", clip(in.Day))
	}
	r.To = r.From.AddDate(0, 0, 1)
	return r, nil
}

// Reconcile audits a range: it computes it anew from the archive, stores a report of how that differs from what is served,
// and repairs on request. Its id is ReconcileID. It has the query, the signals and the result of Backfill.
func Reconcile(ctx workflow.Context, raw converter.RawValue) (BackfillResult, error) {
	var in ReconcileInput
	var asked activities.Range
	err := decode(raw, &in)
	if err == nil {
		asked, err = in.Check(scheduledFor(ctx))
	}
	if err != nil {
		return BackfillResult{}, badInput(ReconcileType, reconcileExample, err)
	}
	b := newBackfill(ctx, ReconcileType, in.Job, asked, in.Work, in.State)
	b.compare, b.repair = true, in.Repair
	result, err := b.main(ctx)
	if errors.Is(err, errContinue) {
		in.Work.Parallelism = b.work.Parallelism
		in.State = &b.keptBackfill
		return result, workflow.NewContinueAsNewError(ctx, ReconcileType, in)
	}
	return result, err
}

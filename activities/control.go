package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
)

// PrepareInput names a job version that is to run. Shards 0 leaves their number to the spec.
type PrepareInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"`
	Shards  int    `json:"shards,omitempty"`
}

// Prepared is what a version needs to run.
type Prepared struct {
	Shards     int      `json:"shards"`
	Topics     []string `json:"topics"`     // of its sources
	Generation int64    `json:"generation"` // of the serving store, that it writes to
	Served     bool     `json:"served"`     // some range of time is read from it
	Sinks      bool     `json:"sinks"`      // the job wants a publisher
}

// Preparer makes ready what a version needs. Doing it again changes nothing.
type Preparer interface {
	Prepare(ctx context.Context, in PrepareInput) (Prepared, error)
}

// Describer tells about workflows; a client of Temporal does.
type Describer interface {
	DescribeWorkflowExecution(ctx context.Context, id, run string) (*workflowservice.DescribeWorkflowExecutionResponse, error)
}

// Control has the short activities of Queue.
type Control struct {
	Host      *Host
	Preparer  Preparer
	Describer Describer
}

// Prepare checks a version against its servers, and creates the place for its results. Where the job serves nothing yet it
// is served from then on.
func (c *Control) Prepare(ctx context.Context, in PrepareInput) (Prepared, error) {
	p, err := c.Preparer.Prepare(ctx, in)
	if err != nil {
		return Prepared{}, c.Host.failure(fmt.Errorf("prepare %s version %d: %w", in.Job, in.Version, err))
	}
	return p, nil
}

// DescribeInput names workflows by their ids.
type DescribeInput struct {
	IDs []string `json:"ids"`
}

// Described tells of each workflow, in the order of the input, whether its latest run is running.
type Described struct {
	Running []bool `json:"running"`
	// Waiting tells of each whether an activity of it waits for a worker that does not come. Engines before told nothing.
	Waiting []bool `json:"waiting,omitempty"`
}

// waitingAfter is how long an activity waits before nobody seems to come for it. A worker that has room takes one within
// milliseconds; one that was stopped to be started again is back by then.
const waitingAfter = 10 * time.Second

// waits tells whether nobody comes for an activity. One that is tried again is scheduled for when that is due.
func waits(a *workflow.PendingActivityInfo) bool {
	return a.GetState() == enums.PENDING_ACTIVITY_STATE_SCHEDULED && time.Since(a.GetScheduledTime().AsTime()) > waitingAfter
}

// Describe tells which workflows run, and which of them wait for a worker.
func (c *Control) Describe(ctx context.Context, in DescribeInput) (Described, error) {
	var d Described
	for _, id := range in.IDs {
		r, err := c.Describer.DescribeWorkflowExecution(ctx, id, "")
		var none *serviceerror.NotFound
		if err != nil && !errors.As(err, &none) {
			return Described{}, fmt.Errorf("describe the workflow %s: %w", id, err)
		}
		running := err == nil && r.GetWorkflowExecutionInfo().GetStatus() == enums.WORKFLOW_EXECUTION_STATUS_RUNNING
		d.Running, d.Waiting = append(d.Running, running), append(d.Waiting, running && slices.ContainsFunc(r.GetPendingActivities(), waits))
	}
	return d, nil
}

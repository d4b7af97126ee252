package activities

import (
	"context"
	"errors"
	"fmt"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
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
}

// Describe tells which workflows run.
func (c *Control) Describe(ctx context.Context, in DescribeInput) (Described, error) {
	var d Described
	for _, id := range in.IDs {
		r, err := c.Describer.DescribeWorkflowExecution(ctx, id, "")
		var none *serviceerror.NotFound
		if err != nil && !errors.As(err, &none) {
			return Described{}, fmt.Errorf("describe the workflow %s: %w", id, err)
		}
		d.Running = append(d.Running, err == nil && r.GetWorkflowExecutionInfo().GetStatus() == enums.WORKFLOW_EXECUTION_STATUS_RUNNING)
	}
	return d, nil
}

package activities

import (
	"context"
	"slices"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// described are workflows with the activities that they wait for.
type described map[string]*workflow.PendingActivityInfo

func (d described) DescribeWorkflowExecution(_ context.Context, id, _ string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	a, ok := d[id]
	if !ok {
		return nil, serviceerror.NewNotFound("none")
	}
	r := &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflow.WorkflowExecutionInfo{Status: enums.WORKFLOW_EXECUTION_STATUS_RUNNING}}
	if id == "ended" {
		r.WorkflowExecutionInfo.Status = enums.WORKFLOW_EXECUTION_STATUS_COMPLETED
	}
	if a != nil {
		r.PendingActivities = append(r.PendingActivities, a)
	}
	return r, nil
}

func TestDescribeTellsForWhatNobodyComes(t *testing.T) {
	activity := func(state enums.PendingActivityState, ago time.Duration) *workflow.PendingActivityInfo {
		return &workflow.PendingActivityInfo{State: state, ScheduledTime: timestamppb.New(time.Now().Add(-ago))}
	}
	c := Control{Describer: described{
		"idle": nil, "ended": activity(enums.PENDING_ACTIVITY_STATE_SCHEDULED, time.Minute),
		"runs": activity(enums.PENDING_ACTIVITY_STATE_STARTED, time.Hour), "fresh": activity(enums.PENDING_ACTIVITY_STATE_SCHEDULED, time.Second),
		"backs off": activity(enums.PENDING_ACTIVITY_STATE_SCHEDULED, -time.Second), "waits": activity(enums.PENDING_ACTIVITY_STATE_SCHEDULED, time.Minute),
	}}
	got, err := c.Describe(t.Context(), DescribeInput{IDs: []string{"none", "ended", "idle", "runs", "fresh", "backs off", "waits"}})
	if err != nil || !slices.Equal(got.Running, []bool{false, false, true, true, true, true, true}) || !slices.Equal(got.Waiting, []bool{false, false, false, false, false, false, true}) {
		t.Errorf("%+v, %v", got, err)
	}
}

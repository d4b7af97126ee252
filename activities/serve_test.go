package activities

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
)

// starter stands for a client of Temporal.
type starter struct {
	Starter
	status    enums.WorkflowExecutionStatus // of the workflow that is described; 0: there is none
	phase     any
	err       error
	did       string
	signalled any
	options   client.StartWorkflowOptions
}

func (s *starter) DescribeWorkflowExecution(context.Context, string, string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	if s.status == 0 {
		return nil, serviceerror.NewNotFound("none")
	}
	info := &workflow.WorkflowExecutionInfo{Status: s.status}
	if s.phase != nil {
		p, err := converter.GetDefaultDataConverter().ToPayload(s.phase)
		if err != nil {
			return nil, err
		}
		info.SearchAttributes = &commonpb.SearchAttributes{IndexedFields: map[string]*commonpb.Payload{"WeftPhase": p}}
	}
	return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: info}, s.err
}

func (s *starter) ExecuteWorkflow(_ context.Context, o client.StartWorkflowOptions, kind any, _ ...any) (client.WorkflowRun, error) {
	s.did, s.options = "start "+o.ID+" "+kind.(string), o
	return nil, s.err
}

func (s *starter) SignalWithStartWorkflow(_ context.Context, id, signal string, arg any, o client.StartWorkflowOptions, kind any, _ ...any) (client.WorkflowRun, error) {
	s.did, s.signalled, s.options = "signal "+id+" "+signal+" "+kind.(string), arg, o
	return nil, s.err
}

// places is a Stage that knows one standing.
type places struct {
	Stage
	err error
}

func (p places) Standing(context.Context, StandingInput) (Standing, error) {
	return Standing{Behind: 3}, p.err
}

func TestStandingHasThePhaseOfTheVersion(t *testing.T) {
	const running, ended = enums.WORKFLOW_EXECUTION_STATUS_RUNNING, enums.WORKFLOW_EXECUTION_STATUS_COMPLETED
	for _, c := range []struct {
		s    starter
		want string
	}{
		{starter{}, ""},
		{starter{status: running}, ""},
		{starter{status: running, phase: 7}, ""},
		{starter{status: running, phase: "crash_looping"}, "crash_looping"},
		{starter{status: ended, phase: "running"}, Stopped},
	} {
		l := Lifecycle{Host: &Host{}, Stage: places{}, Starter: &c.s}
		if got, err := l.CompareStanding(t.Context(), StandingInput{Job: "payments", Version: 2}); err != nil || got.Phase != c.want || got.Behind != 3 {
			t.Errorf("%+v: %+v, %v; want %q", c.s, got, err, c.want)
		}
	}
	l := Lifecycle{Host: &Host{}, Stage: places{err: errors.New("away")}, Starter: &starter{}}
	_, err := l.CompareStanding(t.Context(), StandingInput{})
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.NonRetryable() || app.Type() != Internal {
		t.Errorf("an error of the store becomes %v", err)
	}
	l = Lifecycle{Host: &Host{}, Stage: places{}, Starter: &starter{status: running, err: errors.New("away")}}
	if _, err := l.CompareStanding(t.Context(), StandingInput{}); err == nil {
		t.Error("an error of Temporal is lost")
	}
}

func TestLaunchStartsOrSignals(t *testing.T) {
	s := &starter{}
	l := Lifecycle{Host: &Host{}, Starter: s}
	in := LaunchInput{ID: "job/payments", Type: "Job", Input: json.RawMessage(`{}`), Job: "payments", Version: 2}
	if err := l.Launch(t.Context(), in); err != nil || s.did != "start job/payments Job" {
		t.Errorf("%s, %v", s.did, err)
	}
	if s.options.TaskQueue != Queue || s.options.WorkflowIDConflictPolicy != enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING || s.options.TypedSearchAttributes.Size() != 2 {
		t.Errorf("options %+v", s.options)
	}
	in.Signal, in.Arg = "deploy", json.RawMessage(`{"version":2}`)
	if err := l.Launch(t.Context(), in); err != nil || s.did != "signal job/payments deploy Job" {
		t.Errorf("%s, %v", s.did, err)
	}
	// What is given goes out as it is, as one JSON object.
	p, err := converter.GetDefaultDataConverter().ToPayload(s.signalled)
	if err != nil || string(p.GetData()) != `{"version":2}` || string(p.GetMetadata()["encoding"]) != "json/plain" {
		t.Errorf("the signal carries %s, %v", p, err)
	}
	if s.err = errors.New("away"); l.Launch(t.Context(), in) == nil {
		t.Error("an error is lost")
	}
}

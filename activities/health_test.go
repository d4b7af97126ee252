package activities

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	taskqueuepb "go.temporal.io/api/taskqueue/v1"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// patient is a version whose workflow answers.
type patient struct {
	starter
	status  string // its answer; empty: none
	pending *workflow.PendingActivityInfo
	polled  time.Duration // since the last poll of its queue; 0: nobody ever did
}

type reply string

func (r reply) HasValue() bool     { return true }
func (r reply) Get(into any) error { return json.Unmarshal([]byte(r), into) }

func (p *patient) QueryWorkflow(context.Context, string, string, string, ...any) (converter.EncodedValue, error) {
	if p.status == "" {
		return nil, errors.New("nobody answers")
	}
	return reply(p.status), nil
}

func (p *patient) DescribeWorkflowExecution(ctx context.Context, id, run string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	r, err := p.starter.DescribeWorkflowExecution(ctx, id, run)
	if err == nil && p.pending != nil && !strings.HasPrefix(id, "version/") {
		r.PendingActivities = []*workflow.PendingActivityInfo{p.pending}
	}
	return r, err
}

func (p *patient) DescribeTaskQueue(_ context.Context, queue string, _ enums.TaskQueueType) (*workflowservice.DescribeTaskQueueResponse, error) {
	r := &workflowservice.DescribeTaskQueueResponse{}
	if queue == "weft/payments/2" && p.polled > 0 {
		r.Pollers = []*taskqueuepb.PollerInfo{{LastAccessTime: timestamppb.New(time.Now().Add(-p.polled))}}
	}
	return r, nil
}

// stood is a Stage with one standing.
type stood struct {
	Stage
	s Standing
}

func (s stood) Standing(context.Context, StandingInput) (Standing, error) { return s.s, nil }

func TestStandingSaysWhyAVersionDoesNotRunWell(t *testing.T) {
	crash := func(kind string) *workflow.PendingActivityInfo {
		f := &failurepb.Failure{Message: "killed at its memory limit", FailureInfo: &failurepb.Failure_ApplicationFailureInfo{
			ApplicationFailureInfo: &failurepb.ApplicationFailureInfo{Type: kind}}}
		if kind == "" {
			f = &failurepb.Failure{FailureInfo: &failurepb.Failure_TimeoutFailureInfo{TimeoutFailureInfo: &failurepb.TimeoutFailureInfo{}}}
		}
		return &workflow.PendingActivityInfo{Attempt: 4, LastFailure: f}
	}
	const one = `{"state":"running","shards":[{"shard":0,"state":"running"}],"later":"key"}`
	for _, c := range []struct {
		name    string
		status  string
		pending *workflow.PendingActivityInfo
		polled  time.Duration
		missing int
		want    Standing
	}{
		{name: "runs", status: one, want: Standing{Phase: "running"}},
		{name: "no answer", want: Standing{Phase: "running"}},
		{name: "no version", status: `{"state":"failed","error":{"type":"user","message":"no such topic"}}`, want: Standing{Phase: "running", Error: "no such topic", ErrorType: User}},
		{name: "a shard crashes", status: `{"shards":[{"state":"running"},{"state":"crash_looping","error":{"type":"internal","message":"panic: 7"}}]}`,
			want: Standing{Phase: "crash_looping", Error: "shard 1: panic: 7", ErrorType: Internal}},
		{name: "a process knows better", status: `{"shards":[{"state":"crash_looping","error":{"type":"external","message":"no answer"}}],` +
			`"processes":[{"state":"crash_looping","error":{"type":"internal","message":"killed"}}]}`, want: Standing{Phase: "crash_looping", Error: "process 0: killed", ErrorType: Internal}},
		{name: "failed is worse", status: `{"shards":[{"state":"crash_looping","error":{"message":"a"}},{"state":"failed","error":{"type":"user","message":"b"}}]}`,
			want: Standing{Phase: "failed", Error: "shard 1: b", ErrorType: User}},
		{name: "dies and comes back", status: one, pending: crash(Internal), want: Standing{Phase: "running", Deaths: 3, Error: "shard 0: killed at its memory limit", ErrorType: Internal}},
		{name: "dies between two rounds", status: `{"processes":[{"state":"crash_looping","attempts":10,"error":{"type":"internal","message":"killed"}}]}`,
			want: Standing{Phase: "crash_looping", Deaths: 10, Error: "process 0: killed", ErrorType: Internal}},
		{name: "dies in a second round", status: `{"processes":[{"state":"crash_looping","attempts":10,"error":{"type":"internal","message":"killed"}}]}`, pending: crash(Internal),
			want: Standing{Phase: "crash_looping", Deaths: 13, Error: "process 0: killed", ErrorType: Internal}},
		{name: "servers are away for long", status: `{"shards":[{"state":"crash_looping","attempts":20,"error":{"type":"external","message":"no answer"}}]}`, pending: crash(External),
			want: Standing{Phase: "crash_looping", Error: "shard 0: no answer", ErrorType: External}},
		{name: "its machine dies", status: one, pending: crash(""), want: Standing{Phase: "running", Deaths: 3, Error: "shard 0: its process did not answer: it died, or its machine did"}},
		{name: "a server is away", status: one, pending: crash(External), want: Standing{Phase: "running"}},
		{name: "nobody polls", status: one, missing: 1, want: Standing{Phase: "running", Missing: 1, Unmanned: true,
			Waits: "no process takes its shards: nobody polls the task queue weft/payments/2 (weft worker --job payments --version 2)"}},
		{name: "nobody polls any more", status: one, missing: 1, polled: 2 * time.Minute, want: Standing{Phase: "running", Missing: 1, Unmanned: true,
			Waits: "no process takes its shards: nobody polls the task queue weft/payments/2 (weft worker --job payments --version 2)"}},
		{name: "somebody polls", status: one, missing: 1, polled: time.Minute, want: Standing{Phase: "running", Missing: 1}},
		{name: "no agent", status: `{"shards":[{"state":"running"}],"processes":[{"state":"running"},{"state":"waiting_for_agent"}]}`, missing: 1, want: Standing{Phase: "running", Missing: 1,
			Unmanned: true, Waits: "process 1 waits for an agent that has room: start one on some machine (weft agent)"}},
	} {
		p := &patient{starter: starter{status: enums.WORKFLOW_EXECUTION_STATUS_RUNNING, phase: "running"}, status: c.status, pending: c.pending, polled: c.polled}
		l := Lifecycle{Host: &Host{}, Stage: stood{s: Standing{Missing: c.missing}}, Starter: p}
		got, err := l.CompareStanding(t.Context(), StandingInput{Job: "payments", Version: 2, Health: true})
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
}

package workers

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/workflows"
)

// promotionTest runs the workflow Job over the real stage. Of its switches, those that promote version 3 never answer: the test
// says when they take place.
type promotionTest struct {
	*testing.T
	*testsuite.TestWorkflowEnvironment
	stage *Stage
	run   string // of the rollout at hand
	now   time.Duration

	mu        sync.Mutex
	late      *activities.SwitchInput // the promotion without an answer
	meanwhile func()                  // called beside the next switch that answers
}

func newPromotionTest(t *testing.T) *promotionTest {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	p := &promotionTest{T: t, TestWorkflowEnvironment: suite.NewTestWorkflowEnvironment(),
		stage: newStage(t, stageSpec, stageSpec+"approval: none\n", stageSpec+"rollback_window: 1h\n")}
	p.stage.must(t, activities.SwitchInput{Version: 1, From: int64(event.MinTime), RequestID: "first"}, activities.Switched{Epoch: 1})
	p.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: workflows.JobID("payments"), TaskQueue: activities.Queue})
	p.RegisterWorkflowWithOptions(workflows.Job, workflow.RegisterOptions{Name: workflows.JobType})
	p.RegisterWorkflowWithOptions(func(ctx workflow.Context, _ converter.RawValue) error {
		p.run = workflow.GetInfo(ctx).WorkflowExecution.RunID
		return workflow.Sleep(ctx, 100*time.Hour)
	}, workflow.RegisterOptions{Name: workflows.RolloutType})
	l := &activities.Lifecycle{Host: &activities.Host{Classify: Classify}, Stage: p.stage}
	for name, f := range map[string]any{"Survey": l.Survey, "RecordDecisions": l.RecordDecisions, "SwitchVersion": l.SwitchVersion,
		"CompareStanding": l.CompareStanding, "Describe": (&activities.Control{}).Describe} {
		p.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	p.OnActivity("SwitchVersion", mock.Anything, mock.Anything).Return(func(ctx context.Context, in activities.SwitchInput) (activities.Switched, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if in.Version == 3 {
			p.late = &in
			return activities.Switched{}, activity.ErrResultPending
		}
		var both sync.WaitGroup
		if beside := p.meanwhile; beside != nil {
			p.meanwhile = nil
			both.Go(beside)
		}
		defer both.Wait()
		return l.SwitchVersion(ctx, in)
	})
	p.OnActivity("CompareStanding", mock.Anything, mock.Anything).Return(activities.Standing{Phase: workflows.Running}, nil).Maybe()
	p.OnActivity("Describe", mock.Anything, mock.Anything).Return(activities.Described{Running: []bool{true}}, nil).Maybe()
	p.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, mock.Anything, mock.Anything).Return(nil).Maybe()
	return p
}

func (p *promotionTest) then(f func()) {
	p.now += 10 * time.Second
	p.RegisterDelayedCallback(f, p.now)
}

// ready deploys a version, whose rollout is ready at once.
func (p *promotionTest) ready(version int) {
	p.then(func() { p.SignalWorkflow(workflows.SignalDeploy, workflows.DeployRequest{Version: version}) })
	p.then(func() {
		p.SignalWorkflow(workflows.SignalRollout, workflows.RolloutReport{Version: version, Run: p.run, Phase: workflows.Ready, Planned: true,
			From: int64(event.MinTime), WindowMS: time.Hour.Milliseconds()})
	})
}

// commit lets the promotion take place, as an attempt that its worker held up does. An error is as good as none.
func (p *promotionTest) commit(in activities.SwitchInput) {
	if _, err := p.stage.Switch(p.Context(), in); err != nil {
		p.Errorf("the late promotion: %v", err)
	}
}

// A promotion that got no answer loses against what was asked for after it, whenever it takes place: before the request was
// decided, at the same time, or long after its time was over.
func TestPromotionThatCommitsLateLoses(t *testing.T) {
	for _, request := range []struct {
		signal string
		to     int
		served string
	}{
		{workflows.SignalRollback, 1, "-:1"}, {workflows.SignalRollback, 2, "-:2"}, {workflows.SignalAbort, 0, "-:2"}, {workflows.SignalStop, 0, "-:2"},
	} {
		for _, when := range []string{"before", "at the same time", "after"} {
			t.Run(request.signal+" "+request.served+" "+when, func(t *testing.T) {
				p := newPromotionTest(t)
				p.ready(2)
				p.then(func() {
					if got := p.stage.serves(t); got != "-:2" {
						t.Fatalf("it serves %s", got)
					}
				})
				p.ready(3)
				p.then(func() {
					p.mu.Lock()
					defer p.mu.Unlock()
					if p.late == nil {
						t.Fatal("no promotion was asked for")
					}
					late := *p.late
					switch when {
					case "before":
						p.commit(late)
						if got := p.stage.serves(t); got != "-:3" {
							t.Fatalf("it serves %s", got)
						}
					case "at the same time":
						p.meanwhile = func() { p.commit(late) }
					}
					p.SignalWorkflow(request.signal, workflows.Request{To: request.to})
				})
				p.then(func() {
					if got := p.stage.serves(t); got != request.served {
						t.Errorf("it serves %s, want %s", got, request.served)
					}
					p.commit(*p.late) // it is late, or one more attempt
					if got := p.stage.serves(t); got != request.served {
						t.Errorf("after the late promotion it serves %s, want %s", got, request.served)
					}
				})
				p.then(p.CancelWorkflow)
				p.ExecuteWorkflow(workflows.JobType, workflows.JobInput{Job: "payments"})
				if err := p.GetWorkflowError(); !temporal.IsCanceledError(err) {
					t.Errorf("the workflow ended with %v", err)
				}
				if p.meanwhile != nil || strings.Contains(p.stage.serves(t), "3") {
					t.Errorf("in the end it serves %s", p.stage.serves(t))
				}
			})
		}
	}
}

package workflows

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// stage is a store whose serving map is one version, with the rules of the real one: a switch needs the epoch, and a request
// that was done is answered again.
type stage struct {
	mu       sync.Mutex // activities have goroutines of their own
	epoch    uint64
	served   int
	maps     map[uint64]int
	done     map[string]activities.Switched
	entries  map[string]activities.Entry
	switches []activities.SwitchInput
	frozen   *time.Time
	hang     string // requests with this in their id get no answer
	refuse   bool   // every switch
	plan     activities.Plan
	running  bool // what Describe says
	standing activities.Standing
	trials   []activities.Trial // answers of CompareVersions, the last for ever
	compared int
	canaries []activities.CanaryInput
	launched []activities.LaunchInput
	rebuilt  []activities.RegisterInput // versions 9, 10 …
	dropped  []activities.DropVersionInput
	kept     string // why DropVersion drops nothing
}

func newStage(served int) *stage {
	return &stage{epoch: 1, served: served, maps: map[uint64]int{1: served}, done: map[string]activities.Switched{}, entries: map[string]activities.Entry{},
		running: true, standing: activities.Standing{Phase: Running, CaughtUp: true, From: 7},
		plan: activities.Plan{WindowMS: time.Hour.Milliseconds(), LagMaxMS: 30000}}
}

func (s *stage) change(in activities.SwitchInput) activities.Switched {
	s.mu.Lock()
	defer s.mu.Unlock()
	if got, ok := s.done[in.RequestID]; ok {
		return got
	}
	s.switches = append(s.switches, in)
	if in.Epoch != s.epoch {
		return activities.Switched{Epoch: s.epoch, Stale: true}
	}
	s.epoch++
	if s.served = in.Version; in.Back > 0 {
		s.served = s.maps[in.Back]
	}
	s.maps[s.epoch] = s.served
	s.done[in.RequestID] = activities.Switched{Epoch: s.epoch}
	return s.done[in.RequestID]
}

func (s *stage) is() (version int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served
}

// mount makes a stage the one of an environment, whose workflow has an id.
func (s *stage) mount(t *testing.T, env *testsuite.TestWorkflowEnvironment, id string) {
	t.Helper()
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: id, TaskQueue: activities.Queue})
	for name, f := range map[string]any{JobType: Job, DeployType: Deploy} {
		env.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	var l activities.Lifecycle
	for name, f := range map[string]any{"RegisterVersion": l.RegisterVersion, "Survey": l.Survey, "SwitchVersion": l.SwitchVersion,
		"CompareStanding": l.CompareStanding, "CompareVersions": l.CompareVersions, "SetCanary": l.SetCanary, "RecordDecisions": l.RecordDecisions, "Launch": l.Launch,
		"DropVersion": l.DropVersion} {
		env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	env.OnActivity("DropVersion", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.DropVersionInput) (activities.DroppedVersion, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.dropped = append(s.dropped, in)
		return activities.DroppedVersion{Kept: s.kept}, nil
	}).Maybe()
	env.OnActivity("Survey", mock.Anything, mock.Anything).Return(func(context.Context, activities.SurveyInput) (activities.Surveyed, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return activities.Surveyed{Epoch: s.epoch, Current: s.served, From: 5}, nil
	}).Maybe()
	env.OnActivity("SwitchVersion", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.SwitchInput) (activities.Switched, error) {
		s.mu.Lock()
		frozen, hang, refuse := s.frozen, s.hang, s.refuse
		s.mu.Unlock()
		switch {
		case hang != "" && strings.Contains(in.RequestID, hang):
			return activities.Switched{}, activity.ErrResultPending
		case refuse:
			return activities.Switched{}, temporal.NewNonRetryableApplicationError("the generation is gone", activities.User, nil)
		case frozen != nil && len(in.Freeze) > 0:
			return activities.Switched{Epoch: in.Epoch, Frozen: frozen}, nil
		}
		return s.change(in), nil
	}).Maybe()
	env.OnActivity("RecordDecisions", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.RecordInput) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range in.Entries {
			if _, twice := s.entries[e.ID]; twice {
				t.Errorf("entry %s is written twice", e.ID)
			}
			s.entries[e.ID] = e
		}
		return nil
	}).Maybe()
	env.OnActivity("Describe", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.DescribeInput) (d activities.Described, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for range in.IDs {
			d.Running = append(d.Running, s.running)
		}
		return d, nil
	}).Maybe()
	env.OnActivity("CompareStanding", mock.Anything, mock.Anything).Return(func(context.Context, activities.StandingInput) (activities.Standing, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.standing, nil
	}).Maybe()
	env.OnActivity("CompareVersions", mock.Anything, mock.Anything).Return(func(context.Context, activities.TrialInput) (activities.Trial, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.compared++
		return s.trials[min(s.compared, len(s.trials))-1], nil
	}).Maybe()
	env.OnActivity("SetCanary", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.CanaryInput) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.canaries); n > 0 && in.At < s.canaries[n-1].At {
			t.Errorf("the canary %+v comes after %+v", in, s.canaries[n-1])
		}
		s.canaries = append(s.canaries, in)
		return nil
	}).Maybe()
	env.OnActivity("RegisterVersion", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.RegisterInput) (activities.Plan, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if in.Version > 50 {
			return activities.Plan{}, temporal.NewNonRetryableApplicationError(fmt.Sprintf("read version %d: there is none in the registry", in.Version), activities.User, nil)
		}
		p := s.plan
		if in.Rebuild {
			s.rebuilt = append(s.rebuilt, in)
			p.Version = 8 + len(s.rebuilt)
		}
		return p, nil
	}).Maybe()
	env.OnActivity("Launch", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.LaunchInput) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.launched = append(s.launched, in)
		return nil
	}).Maybe()
}

// jobTest is a Job over a stage, with rollouts that a test reports for.
type jobTest struct {
	*testing.T
	*testsuite.TestWorkflowEnvironment
	*stage
	runs map[int]string // by version: the run of its rollout
	sent []string       // "id signal", to others
	news []DeployNews
	now  time.Duration
}

func newJobTest(t *testing.T, served int) *jobTest {
	t.Helper()
	j := &jobTest{T: t, TestWorkflowEnvironment: environment(t), stage: newStage(served), runs: map[int]string{}}
	j.mount(t, j.TestWorkflowEnvironment, JobID("payments"))
	// A rollout lives until it is told what came of it.
	j.RegisterWorkflowWithOptions(func(ctx workflow.Context, raw converter.RawValue) error {
		var in RolloutInput
		if err := decode(raw, &in); err != nil {
			return err
		}
		j.runs[in.Version] = workflow.GetInfo(ctx).WorkflowExecution.RunID
		var told string
		box := inbox{Rejections: &Rejections{}}
		for _, signal := range []string{SignalAbort, SignalPromote, SignalPause, SignalResume, SignalSettle} {
			box.handlers = append(box.handlers, handler{signal, func(converter.RawValue) error { told = signal; return nil }})
		}
		for told != SignalAbort && told != SignalSettle {
			if ok, err := workflow.AwaitWithTimeout(ctx, 100*time.Hour, func() bool { return box.pending(ctx) }); err != nil || !ok {
				return err
			}
			box.drain(ctx)
			j.sent = append(j.sent, RolloutID("payments", in.Version)+" "+told)
		}
		return nil
	}, workflow.RegisterOptions{Name: RolloutType})
	j.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, mock.Anything, mock.Anything).Return(func(_, id, _, signal string, arg any) error {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.sent = append(j.sent, id+" "+signal)
		if n, ok := arg.(DeployNews); ok {
			j.news = append(j.news, n)
		}
		return nil
	}).Maybe()
	return j
}

// then does something some virtual seconds after what was to be done before.
func (j *jobTest) then(f func()) { j.after(10*time.Second, f) }

func (j *jobTest) after(d time.Duration, f func()) {
	j.now += d
	later(j.T, j.TestWorkflowEnvironment, f, j.now)
}

func (j *jobTest) status() (s JobStatus) {
	j.Helper()
	v, err := j.QueryWorkflow(QueryStatus)
	if err == nil {
		err = v.Get(&s)
	}
	if err != nil {
		j.Fatal(err)
	}
	return s
}

func (j *jobTest) log() (list []Decision) {
	j.Helper()
	v, err := j.QueryWorkflow(QueryHistory)
	if err == nil {
		err = v.Get(&list)
	}
	if err != nil {
		j.Fatal(err)
	}
	return list
}

func (j *jobTest) deploy(version int) {
	j.SignalWorkflow(SignalDeploy, DeployRequest{Version: version, Deploy: "deploy-1", Actor: "ann", RequestID: fmt.Sprintf("d%d", version)})
}

// report is what the rollout of a version tells.
func (j *jobTest) report(version int, phase string, change func(*RolloutReport)) {
	r := RolloutReport{Version: version, Run: j.runs[version], Phase: phase, Planned: true, WindowMS: time.Hour.Milliseconds(), From: 7, Final: phase == Ended}
	if change != nil {
		change(&r)
	}
	j.SignalWorkflow(SignalRollout, r)
}

// end runs the workflow as long as the test has something to do, and then cancels it.
func (j *jobTest) run() {
	j.Helper()
	j.then(j.CancelWorkflow)
	j.ExecuteWorkflow(JobType, JobInput{Job: "payments"})
	if err := j.GetWorkflowError(); !temporal.IsCanceledError(err) {
		j.Errorf("the workflow ended with %v", err)
	}
}

// expect fails the test unless the job is in a phase and serves a version, in its own view and in the store's.
func (j *jobTest) expect(phase string, version int) JobStatus {
	j.Helper()
	s := j.status()
	current := 0
	if s.Current != nil {
		current = s.Current.Version
	}
	if s.Phase != phase || current != version || j.is() != version {
		j.Errorf("it is %s and serves %d, the store %d; expected %s, %d", s.Phase, current, j.is(), phase, version)
	}
	return s
}

// last fails the test unless the last decision of a kind has a result and a text.
func (j *jobTest) last(kind, result, text string) {
	j.Helper()
	for _, d := range slices.Backward(j.log()) {
		if d.Kind == kind {
			if d.Result != result || !strings.Contains(d.Text, text) {
				j.Errorf("decided %+v; expected %s with %q", d, result, text)
			}
			return
		}
	}
	j.Errorf("nothing was decided about %s", kind)
}

func TestFirstVersionIsServedAtOnce(t *testing.T) {
	j := newJobTest(t, 0)
	j.then(func() { j.expect(Empty, 0); j.deploy(1) })
	j.then(func() {
		if s := j.status(); s.Phase != RollingOut || s.Candidate.Version != 1 {
			t.Errorf("%+v", s)
		}
		j.mu.Lock()
		j.served, j.epoch = 1, 9 // preparing it does so
		j.mu.Unlock()
		j.report(1, Ready, nil)
	})
	j.then(func() {
		if s := j.expect(Serving, 1); s.Epoch != 9 || s.RollbackReady || s.Previous != nil {
			t.Errorf("%+v", s)
		}
		j.SignalWorkflow(SignalRollback, Request{To: 1})
	})
	j.then(func() { j.last(SignalRollback, RejectedWhat, "served already") })
	j.run()
	if len(j.switches) != 0 {
		t.Errorf("switches: %+v", j.switches)
	}
}

func TestPromotionAndRollbackWithinTheWindow(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() { j.expect(Serving, 1); j.deploy(2) })
	j.then(func() { j.report(2, Ready, nil) })
	j.then(func() {
		if s := j.expect(Serving, 2); !s.RollbackReady || s.Previous.Version != 1 || s.RollbackLagMS != 0 {
			t.Errorf("%+v", s)
		}
		j.SignalWorkflow(SignalRollback, Request{To: 1, RequestID: "r", Reason: "bad", Actor: "bob"})
	})
	j.then(func() {
		if s := j.expect(Serving, 1); !s.RollbackReady || s.Previous.Version != 2 {
			t.Errorf("%+v", s)
		}
		j.last(SignalRollback, Done, "version 1 is served again")
		j.SignalWorkflow(SignalRollback, Request{To: 2, RequestID: "again"}) // it was a mistake
	})
	j.then(func() { j.expect(Serving, 2); j.SignalWorkflow(SignalRollback, Request{To: 1, RequestID: "r"}) })
	j.then(func() { j.expect(Serving, 2); j.last(SignalRollback, RejectedWhat, "decided already") })
	j.after(2*time.Hour, func() {
		if s := j.expect(Serving, 2); s.RollbackReady || s.Previous != nil || len(s.Retiring) != 1 {
			t.Errorf("after the window: %+v", s)
		}
		if slices.Contains(j.sent, VersionID("payments", 1)+" "+SignalStop) {
			t.Error("version 1 was stopped although what it serves can change")
		}
		j.mu.Lock()
		j.standing.Settled = true
		j.mu.Unlock()
	})
	j.after(2*time.Minute, func() {
		j.expect(Serving, 2)
		if s := j.status(); len(s.Retiring) != 0 || !slices.Contains(j.sent, VersionID("payments", 1)+" "+SignalStop) {
			t.Errorf("version 1 was not stopped: %+v, %q", s, j.sent)
		}
	})
	j.run()
	if len(j.news) != 2 || !j.news[1].Final || j.news[1].Outcome != OutcomePromoted {
		t.Errorf("Deploy was told %+v", j.news)
	}
	if back := j.switches[1]; back.From != 7 || back.Back != 1 || back.Epoch != 2 || back.Actor != "bob" {
		t.Errorf("the rollback was %+v", back)
	}
}

// A promotion whose answer does not come must not take place after a rollback, or be undone by it where it did.
func TestRollbackPreemptsAPromotion(t *testing.T) {
	for _, committed := range []bool{false, true} {
		for _, signal := range []string{SignalRollback, SignalAbort, SignalStop} {
			t.Run(fmt.Sprintf("%s, committed %t", signal, committed), func(t *testing.T) {
				j := newJobTest(t, 1)
				j.hang = "/promote/"
				j.then(func() { j.deploy(2) })
				j.then(func() { j.report(2, Ready, nil) })
				promotion := activities.SwitchInput{Version: 2, From: 7, Epoch: 1, RequestID: "d2/promote/0"}
				j.then(func() {
					if j.expect(Promoting, 1); committed {
						j.change(promotion)
					}
					r := Request{RequestID: "now"}
					if signal == SignalRollback {
						r.To = 1
					}
					j.SignalWorkflow(signal, r)
				})
				j.then(func() {
					if got := j.is(); got != 1 {
						t.Errorf("version %d is served", got)
					}
					if got := j.change(promotion); !committed && !got.Stale {
						t.Errorf("the late promotion took place: %+v", got)
					}
					if got := j.is(); got != 1 {
						t.Errorf("after the late promotion version %d is served", got)
					}
					if !slices.Contains(j.sent, RolloutID("payments", 2)+" "+SignalAbort) {
						t.Errorf("the rollout was not told: %q", j.sent)
					}
					j.report(2, Ended, func(r *RolloutReport) { r.Outcome = OutcomeAborted })
				})
				j.then(func() {
					if s := j.status(); s.Candidate != nil || s.Failed == nil || s.Current.Version != 1 {
						t.Errorf("%+v", s)
					}
				})
				j.run()
			})
		}
	}
}

func TestPromotionSurvivesAnotherSwitch(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() {
		j.change(activities.SwitchInput{Version: 1, Epoch: 1, RequestID: "a backfill"})
		j.deploy(2)
	})
	j.then(func() { j.report(2, Ready, nil) })
	j.then(func() { j.expect(Serving, 2); j.SignalWorkflow(SignalRollback, Request{To: 1}) })
	j.then(func() { j.expect(Serving, 1) })
	j.run()
	if n := len(j.switches); n != 4 || j.switches[n-1].Back != 2 {
		t.Errorf("switches %+v", j.switches)
	}
}

func TestFailedCandidateIsKeptWithItsReasons(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() { j.deploy(2) })
	j.then(func() {
		j.report(2, Ended, func(r *RolloutReport) { r.Outcome, r.Reasons = OutcomeFailed, []string{"match_rate is 0.2"} })
	})
	j.then(func() {
		if s := j.expect(Serving, 1); s.Failed == nil || s.Failed.Version != 2 || s.Failed.Rollout.Reasons[0] != "match_rate is 0.2" {
			t.Errorf("%+v", s)
		}
		j.deploy(3)
	})
	j.then(func() {
		j.expect(RollingOut, 1)
		j.report(2, Ready, nil) // of a rollout that is over
		j.mu.Lock()
		j.running = false
		j.mu.Unlock()
	})
	j.after(2*time.Minute, func() {
		if s := j.expect(Serving, 1); s.Failed.Version != 3 || !strings.Contains(s.Failed.Rollout.Reasons[0], "from outside") {
			t.Errorf("after its workflow was ended: %+v", s)
		}
	})
	j.run()
}

func TestSwitchThatIsRefused(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() { j.deploy(2) })
	j.then(func() { j.report(2, Ready, nil) })
	j.then(func() {
		j.expect(Serving, 2)
		j.mu.Lock()
		j.refuse = true
		j.mu.Unlock()
		j.SignalWorkflow(SignalRollback, Request{To: 1})
	})
	j.then(func() {
		j.expect(Serving, 2)
		j.last(SignalRollback, RejectedWhat, "the generation is gone")
		j.deploy(3)
	})
	j.then(func() { j.report(3, Ready, nil) })
	j.then(func() {
		j.expect(Aborting, 2)
		j.report(3, Ended, nil)
	})
	j.then(func() { j.expect(Serving, 2); j.last(OutcomeFailed, Done, "the generation is gone") })
	j.run()
}

func TestFreezeWindowHoldsBack(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() {
		until := j.Now().Add(5 * time.Minute)
		j.frozen = &until
		j.deploy(2)
	})
	j.then(func() { j.report(2, Ready, nil) })
	j.then(func() {
		if s := j.expect(Frozen, 1); s.FrozenUntil == nil {
			t.Errorf("%+v", s)
		}
		j.SignalWorkflow(SignalPromote, Request{Actor: "bob"})
	})
	j.then(func() {
		j.expect(Frozen, 1)
		j.last(SignalPromote, RejectedWhat, "freeze window")
		j.mu.Lock()
		j.frozen = nil
		j.mu.Unlock()
	})
	j.after(5*time.Minute, func() { j.expect(Serving, 2) })
	j.run()
}

func TestTwoPersonsMustAgree(t *testing.T) {
	two := func(r *RolloutReport) { r.TwoMust = true }
	j := newJobTest(t, 1)
	j.then(func() { j.deploy(2) })
	j.then(func() { j.SignalWorkflow(SignalPromote, Request{Actor: "bob"}) })
	j.then(func() { j.last(SignalPromote, RejectedWhat, "still being planned"); j.report(2, Ready, two) })
	j.then(func() { j.expect(Awaiting, 1); j.SignalWorkflow(SignalPromote, Request{Actor: "ann"}) })
	j.then(func() {
		j.expect(Awaiting, 1)
		j.last(SignalPromote, RejectedWhat, "somebody else")
		j.SignalWorkflow(SignalPromote, Request{})
	})
	j.then(func() {
		j.expect(Awaiting, 1)
		j.last(SignalPromote, RejectedWhat, "names no actor")
		j.SignalWorkflow(SignalPromote, Request{Actor: "bob"})
	})
	j.then(func() {
		if s := j.expect(Serving, 2); s.Approval != "bob" {
			t.Errorf("%+v", s)
		}
	})
	j.run()
}

func TestDeploymentsThatAreRefused(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() { j.deploy(1) })
	j.then(func() { j.last(SignalDeploy, RejectedWhat, "served already"); j.deploy(2) })
	j.then(func() { j.deploy(3) })
	j.then(func() { j.last(SignalDeploy, RejectedWhat, "version 2 is being rolled out"); j.report(2, Ready, nil) })
	j.then(func() { j.SignalWorkflow(SignalDeploy, DeployRequest{Version: 1, RequestID: "x"}) })
	j.then(func() { j.last(SignalDeploy, RejectedWhat, "roll back to it"); j.SignalWorkflow(SignalStop, Request{}) })
	j.then(func() { j.deploy(4) })
	j.then(func() {
		j.expect(Stopped, 2)
		j.last(SignalDeploy, RejectedWhat, "stopped")
		j.SignalWorkflow(SignalResume, Request{})
	})
	j.then(func() { j.expect(Serving, 2); j.last(SignalResume, Done, "runs again") })
	j.run()
	refused := 0
	for _, n := range j.news {
		if n.Outcome == Refused {
			refused++
		}
	}
	if refused != 3 { // the fourth came from no Deploy
		t.Errorf("Deploy was told %+v", j.news)
	}
	if !slices.Contains(j.sent, VersionID("payments", 2)+" "+SignalStop) || !slices.Contains(j.sent, VersionID("payments", 1)+" "+SignalStop) {
		t.Errorf("sent %q", j.sent)
	}
}

// jobPhases lists how a job that serves version 1 gets into each phase.
func jobPhases() map[string]func(j *jobTest) {
	return map[string]func(j *jobTest){
		Empty:      func(j *jobTest) {},
		Serving:    func(j *jobTest) {},
		RollingOut: func(j *jobTest) { j.then(func() { j.deploy(2) }) },
		Awaiting: func(j *jobTest) {
			j.then(func() { j.deploy(2) })
			j.then(func() { j.report(2, Ready, func(r *RolloutReport) { r.TwoMust = true }) })
		},
		Frozen: func(j *jobTest) {
			j.then(func() { until := j.Now().Add(time.Hour); j.frozen = &until; j.deploy(2) })
			j.then(func() { j.report(2, Ready, nil) })
		},
		Promoting: func(j *jobTest) {
			j.hang = "/promote/"
			j.then(func() { j.deploy(2) })
			j.then(func() { j.report(2, Ready, nil) })
		},
		Aborting: func(j *jobTest) {
			j.then(func() { j.deploy(2) })
			j.then(func() { j.SignalWorkflow(SignalAbort, Request{}) })
		},
		"ready for a rollback": func(j *jobTest) {
			j.then(func() { j.deploy(2) })
			j.then(func() { j.report(2, Ready, nil) })
		},
		Paused:  func(j *jobTest) { j.then(func() { j.SignalWorkflow(SignalPause, Request{}) }) },
		Stopped: func(j *jobTest) { j.then(func() { j.SignalWorkflow(SignalStop, Request{}) }) },
	}
}

// In every phase, whatever arrives, the workflow lives, what it says is served is served, and each request is decided.
func TestEveryPhaseTakesEverySignal(t *testing.T) {
	phases := jobPhases()
	signals := []struct {
		name string
		arg  any
	}{
		{SignalRollback, Request{To: 1}}, {SignalRollback, Request{To: 2}}, {SignalRollback, Request{To: 99}}, {SignalRollback, Request{}},
		{SignalRollback, nil}, {SignalRollback, "x"}, {SignalRollback, 7}, {SignalRollback, map[string]any{"to": 1, "too": 2}},
		{SignalPromote, Request{}}, {SignalPromote, Request{Version: 9}}, {SignalAbort, Request{}}, {SignalAbort, []int{1}}, {SignalAbort, nil}, {SignalPause, Request{}},
		{SignalResume, Request{}}, {SignalStop, Request{}}, {SignalScale, Request{Shards: 4}}, {SignalDeploy, DeployRequest{Version: 5}}, {SignalDeploy, nil}, {SignalRollout, nil},
		{SignalRollout, RolloutReport{Version: 2, Phase: Ready}}, {SignalUnmanned, nil}, {SignalUnmanned, UnmannedReport{}}, {"nonsense", 1}, {"rollbak", Request{To: 1}},
	}
	for phase, reach := range phases {
		for _, signal := range signals {
			t.Run(fmt.Sprintf("%s/%s %v", phase, signal.name, signal.arg), func(t *testing.T) {
				t.Parallel()
				served := 1
				if phase == Empty {
					served = 0
				}
				j := newJobTest(t, served)
				reach(j)
				before := 0
				j.then(func() {
					if s := j.status(); s.Phase != phase && phase != "ready for a rollback" {
						t.Errorf("it is %s, not %s", s.Phase, phase)
					}
					before = len(j.log())
					j.SignalWorkflow(signal.name, signal.arg)
				})
				j.then(func() {
					s, current := j.status(), 0
					if s.Current != nil {
						current = s.Current.Version
					}
					if current != j.is() {
						t.Errorf("it says that it serves %d, and serves %d", current, j.is())
					}
					if s.Waiting > 0 && s.Phase != Promoting {
						t.Errorf("%d requests wait in %s", s.Waiting, s.Phase)
					}
					if len(j.log()) == before && s.Phase != Promoting {
						t.Errorf("nothing was decided: %+v", j.log())
					}
				})
				j.run()
			})
		}
	}
}

func TestJobContinuesAsNewWithAllItHas(t *testing.T) {
	for name, reach := range map[string]func(j *jobTest){
		"rolling out": func(j *jobTest) {},
		"ready for a rollback": func(j *jobTest) {
			j.then(func() { j.report(2, Ready, nil) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJobTest(t, 1)
			j.then(func() { j.deploy(2) })
			reach(j)
			j.then(func() { j.SignalWorkflow(SignalRollback, Request{To: 77, RequestID: "seen"}) })
			j.then(func() {
				if name == "rolling out" {
					j.SetContinueAsNewSuggested(true)
				} else {
					j.SetCurrentHistoryLength(eventsMax)
				}
				j.SignalWorkflow("wake", nil)
			})
			j.ExecuteWorkflow(JobType, JobInput{Job: "payments"})
			var again *workflow.ContinueAsNewError
			if err := j.GetWorkflowError(); !errors.As(err, &again) {
				t.Fatalf("it ended with %v", err)
			}
			want := j.status()
			next := newJobTest(t, 0)
			next.stage.epoch, next.stage.served, next.stage.maps, next.runs = j.epoch, j.served, j.maps, j.runs
			next.then(func() {
				if got := next.status(); got.Phase != want.Phase || got.Current.Version != want.Current.Version || got.RollbackReady != want.RollbackReady || got.Count != want.Count {
					t.Errorf("it was %+v, and is %+v", want, got)
				}
				next.SignalWorkflow(SignalRollback, Request{To: 1, RequestID: "seen"})
			})
			next.then(func() {
				next.last(SignalRollback, RejectedWhat, "decided already")
				next.SignalWorkflow(SignalRollback, Request{To: 1, RequestID: "new"})
			})
			next.then(func() {
				if name == "rolling out" {
					next.expect(Aborting, 1)
				} else {
					next.expect(Serving, 1)
				}
			})
			next.then(next.CancelWorkflow)
			next.ExecuteWorkflow(JobType, converter.NewRawValue(again.Input.GetPayloads()[0]))
			if err := next.GetWorkflowError(); !temporal.IsCanceledError(err) {
				t.Errorf("the next run ended with %v", err)
			}
		})
	}
}

// A version that does not run any more comes back when it has caught up; what was rolled back from is served until then.
func TestRollbackOutsideTheWindow(t *testing.T) {
	j := newJobTest(t, 2)
	frozen := time.Now().Add(1000 * time.Hour)
	j.frozen, j.plan.Shards = &frozen, 3
	j.then(func() { j.deploy(3) })
	j.then(func() { j.SignalWorkflow(SignalRollback, Request{To: 77, RequestID: "unknown"}) })
	j.then(func() {
		j.expect(RollingOut, 2)
		j.last(SignalRollback, RejectedWhat, "none in the registry")
		j.SignalWorkflow(SignalRollback, Request{To: 1, RequestID: "back", Reason: "bad", Actor: "ann"})
	})
	j.then(func() {
		if s := j.expect(Aborting, 2); !s.Degraded || !strings.Contains(s.Why, "until version 1") || s.Candidate.Version != 3 {
			t.Errorf("%+v", s)
		}
		j.report(3, Ended, func(r *RolloutReport) { r.Outcome = OutcomeAborted })
	})
	j.then(func() {
		if s := j.expect(RollingBack, 2); !s.Degraded || s.Candidate.Version != 1 || s.Candidate.Shards != 3 || s.Failed.Version != 3 {
			t.Errorf("%+v", s)
		}
		j.last(SignalRollback, Accepted, "rollout/payments/1")
		j.SignalWorkflow(SignalRollback, Request{To: 1, RequestID: "back"}) // once more
		j.SignalWorkflow(SignalPromote, Request{Actor: "bob"})
	})
	j.then(func() {
		j.last(SignalRollback, RejectedWhat, "decided already")
		j.report(1, Ready, func(r *RolloutReport) { r.TwoMust = true })
	})
	j.then(func() {
		if s := j.expect(Serving, 1); s.Degraded || s.Why != "" || s.Previous.Version != 2 || !s.RollbackReady {
			t.Errorf("%+v", s)
		}
	})
	j.run()
}

// A rollback that waits is given up by one that needs no waiting, and by the end of what was to come back.
func TestRollbackOutsideTheWindowGivenUp(t *testing.T) {
	j := newJobTest(t, 2)
	j.then(func() { j.deploy(3) })
	j.then(func() { j.SignalWorkflow(SignalRollback, Request{To: 1, RequestID: "back"}) })
	j.then(func() { j.SignalWorkflow(SignalRollback, Request{To: 2, RequestID: "stay"}) })
	j.then(func() { j.report(3, Ended, func(r *RolloutReport) { r.Outcome = OutcomeAborted }) })
	j.then(func() {
		if s := j.expect(Serving, 2); s.Degraded || s.Candidate != nil {
			t.Errorf("%+v", s)
		}
		j.SignalWorkflow(SignalRollback, Request{To: 1, RequestID: "again"})
	})
	j.then(func() {
		j.expect(RollingBack, 2)
		j.report(1, Ended, func(r *RolloutReport) { r.Outcome = OutcomeFailed })
	})
	j.then(func() {
		if s := j.expect(Serving, 2); s.Degraded || s.Failed.Version != 1 {
			t.Errorf("%+v", s)
		}
	})
	j.run()
}

// The served version is computed anew as another one, with as many shards or with others.
func TestScaleAndRebuild(t *testing.T) {
	j := newJobTest(t, 2)
	j.plan.Shards = 3
	refused := func(signal string, r Request, text string) {
		j.then(func() { j.SignalWorkflow(signal, r) })
		j.then(func() { j.expect(Serving, 2); j.last(signal, RejectedWhat, text) })
	}
	refused(SignalScale, Request{}, "shards is not 1 to 256")
	refused(SignalScale, Request{Shards: 300}, "shards is not 1 to 256")
	refused(SignalScale, Request{Shards: 3}, "3 shards already")
	refused(SignalScale, Request{Shards: 4}, "shard_by")
	j.then(func() {
		j.mu.Lock()
		j.plan.Divisible, j.plan.Refused = true, []string{"200 shards are asked for"}
		j.mu.Unlock()
	})
	refused(SignalScale, Request{Shards: 200}, "200 shards are asked for")
	j.then(func() {
		j.mu.Lock()
		j.plan.Refused, j.rebuilt = nil, nil
		j.mu.Unlock()
		j.SignalWorkflow(SignalScale, Request{Shards: 4, RequestID: "s", Actor: "ann", Reason: "slow"})
	})
	j.then(func() {
		if s := j.expect(RollingOut, 2); s.Candidate.Version != 9 || s.Candidate.Shards != 4 {
			t.Errorf("%+v", s.Candidate)
		}
		want := activities.RegisterInput{Job: "payments", Version: 2, Rebuild: true, Message: "slow", Author: "ann", RequestID: "s", Limit: true, Shards: 4}
		if !slices.Equal(j.rebuilt, []activities.RegisterInput{want}) {
			t.Errorf("%+v", j.rebuilt)
		}
		j.SignalWorkflow(SignalRebuild, Request{})
	})
	j.then(func() {
		j.last(SignalRebuild, RejectedWhat, "is being rolled out")
		j.report(9, Ended, func(r *RolloutReport) { r.Outcome = OutcomeFailed })
	})
	j.then(func() { j.SignalWorkflow(SignalRebuild, Request{RequestID: "r"}) })
	j.then(func() {
		if s := j.expect(RollingOut, 2); s.Candidate.Shards != 3 {
			t.Errorf("%+v", s.Candidate)
		}
		j.report(10, Ready, nil)
	})
	j.then(func() { j.expect(Serving, 10) })
	j.run()
}

func TestDecisionsAreAudited(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() {
		for i := range 300 {
			j.SignalWorkflow("garbage", i)
		}
		j.SignalWorkflow(SignalRollback, Request{To: 1, Actor: "ann", Reason: "why not"})
	})
	j.then(func() {
		if s := j.expect(Serving, 1); s.Count != 300 || len(s.Rejected) != rejectedMax {
			t.Errorf("%d rejected", s.Count)
		}
	})
	j.run()
	found := false
	for _, e := range j.entries {
		found = found || e.Action == "job.rollback.rejected" && e.Actor == "ann" && e.Reason == "why not" && strings.Contains(e.Detail, "served already")
	}
	if !found || len(j.entries) != 302 { // the survey, the garbage, the rollback
		t.Errorf("%d entries", len(j.entries))
	}
}

// What a promotion without an answer may have taken is part of what a rollback gives back.
func TestRollbackTakesBackWhatTheCandidateMayHave(t *testing.T) {
	j := newJobTest(t, 1)
	j.then(func() { j.deploy(2) })
	j.then(func() { j.report(2, Ready, nil) })
	j.then(func() { j.expect(Serving, 2); j.hang = "/promote/"; j.deploy(3) })
	j.then(func() { j.report(3, Ready, func(r *RolloutReport) { r.From = 3 }) })
	j.then(func() { j.expect(Promoting, 2); j.SignalWorkflow(SignalRollback, Request{To: 1}) })
	j.then(func() {
		if s := j.expect(Aborting, 1); s.Previous.Version != 2 {
			t.Errorf("%+v", s)
		}
	})
	j.run()
	if back := j.switches[len(j.switches)-1]; back.From != 3 || back.Back != 1 {
		t.Errorf("the rollback was %+v", back)
	}
}

package workflows

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// rolloutTest is a Rollout of version 2 over a stage.
type rolloutTest struct {
	*testing.T
	*testsuite.TestWorkflowEnvironment
	*stage
	reports []RolloutReport
	sent    []string
	now     time.Duration
}

func newRolloutTest(t *testing.T, verdicts ...string) *rolloutTest {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	r := &rolloutTest{T: t, TestWorkflowEnvironment: suite.NewTestWorkflowEnvironment(), stage: newStage(1)}
	var c activities.Control
	r.RegisterActivityWithOptions(c.Describe, activity.RegisterOptions{Name: "Describe"})
	r.RegisterWorkflowWithOptions(func(ctx workflow.Context, _ converter.RawValue) error {
		for _, signal := range []string{SignalAgents, SignalStop} { // they are told once each
			if told, _ := workflow.GetSignalChannel(ctx, signal).ReceiveWithTimeout(ctx, 100*time.Hour, nil); told {
				r.sent = append(r.sent, VersionID("payments", 2)+" "+signal)
			}
		}
		return nil
	}, workflow.RegisterOptions{Name: VersionType})
	r.plan.Steps = []activities.Step{{Weight: 5, HoldMS: (10 * time.Minute).Milliseconds()}, {Weight: 50, HoldMS: (30 * time.Minute).Milliseconds()}}
	for _, v := range verdicts {
		r.trials = append(r.trials, activities.Trial{Verdict: v, Gates: []activities.GateResult{{Gate: "match_rate", Want: ">= 0.9", Got: "0.5", Verdict: v}}})
	}
	r.RegisterWorkflowWithOptions(Rollout, workflow.RegisterOptions{Name: RolloutType})
	r.mount(t, r.TestWorkflowEnvironment, RolloutID("payments", 2))
	r.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, mock.Anything, mock.Anything).Return(func(_, id, _, signal string, arg any) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.sent = append(r.sent, id+" "+signal)
		if report, ok := arg.(RolloutReport); ok {
			r.reports = append(r.reports, report)
		}
		return nil
	}).Maybe()
	return r
}

func (r *rolloutTest) at(d time.Duration, f func()) { later(r.T, r.TestWorkflowEnvironment, f, d) }

func (r *rolloutTest) status() (s RolloutStatus) {
	r.Helper()
	v, err := r.QueryWorkflow(QueryStatus)
	if err == nil {
		err = v.Get(&s)
	}
	if err != nil {
		r.Fatal(err)
	}
	return s
}

func (r *rolloutTest) expect(phase string, step int) RolloutStatus {
	r.Helper()
	s := r.status()
	if s.Phase != phase || s.Step != step {
		r.Errorf("it is %s, step %d; expected %s, %d: %+v", s.Phase, s.Step, phase, step, s)
	}
	return s
}

// run runs it to its end, which has an outcome and reasons.
func (r *rolloutTest) run(in RolloutInput, outcome, reason string) {
	r.Helper()
	r.ExecuteWorkflow(RolloutType, in)
	var got RolloutReport
	if err := r.GetWorkflowResult(&got); err != nil {
		r.Fatal(err)
	}
	if got.Outcome != outcome || !got.Final || !strings.Contains(strings.Join(got.Reasons, "; "), reason) {
		r.Errorf("it ended with %+v", got)
	}
	if !slices.Contains(r.sent, VersionID("payments", 2)+" "+SignalAgents) {
		r.Error("the version was not told that agents are to run it")
	}
	stopped := slices.Contains(r.sent, VersionID("payments", 2)+" "+SignalStop)
	if stopped == (outcome == OutcomePromoted) {
		r.Errorf("promoted, and the version stopped: %t, %q", stopped, r.sent)
	}
	if n := len(r.canaries); n > 0 && (r.canaries[n-1].Weight == 0) == (outcome == OutcomePromoted) {
		r.Errorf("%s, and the last canary is %+v", outcome, r.canaries[n-1])
	}
	if told := len(r.reports) > 0 && r.reports[len(r.reports)-1].Final; told == (outcome == OutcomePromoted) {
		r.Errorf("Job was told the end: %t", told)
	}
}

func rolloutInput() RolloutInput { return RolloutInput{Job: "payments", Version: 2, Current: 1} }

func TestRolloutPassesItsSteps(t *testing.T) {
	r := newRolloutTest(t, activities.GatesInconclusive, activities.GatesPass)
	r.at(5*time.Minute, func() {
		if s := r.expect(Canary, 1); s.Weight != 5 || s.From != 7 || s.Trial == nil {
			t.Errorf("%+v", s)
		}
		for _, garbage := range []any{"x", nil, 7, map[string]int{"y": 1}} {
			r.SignalWorkflow(SignalAbort, garbage)
		}
		r.SignalWorkflow(SignalSettle, Settlement{Outcome: OutcomePromoted}) // it is not ready
		r.SignalWorkflow("nonsense", 1)
	})
	r.at(20*time.Minute, func() {
		if s := r.expect(Canary, 2); s.Count != 6 {
			t.Errorf("%d were rejected", s.Count)
		}
	})
	r.at(39*time.Minute, func() { r.expect(Canary, 2) })
	r.at(41*time.Minute, func() { r.expect(Ready, 0); r.SignalWorkflow(SignalSettle, Settlement{Outcome: OutcomePromoted}) })
	r.run(rolloutInput(), OutcomePromoted, "")
	if r.compared != 8 {
		t.Errorf("%d comparisons", r.compared)
	}
	weights := map[int]bool{}
	for _, c := range r.canaries {
		weights[c.Weight] = true
		if c.Version != 2 || c.Current != 1 || c.From != 7 {
			t.Errorf("%+v", c)
		}
	}
	if !maps.Equal(weights, map[int]bool{5: true, 50: true}) {
		t.Errorf("weights %v", weights)
	}
}

func TestRolloutWaitsUntilItHasCaughtUp(t *testing.T) {
	r := newRolloutTest(t, activities.GatesPass)
	r.standing = activities.Standing{Phase: Running, Behind: 500, LagMS: -1, Waits: "500 records"}
	r.at(10*time.Minute, func() {
		if s := r.expect(WarmingUp, 0); s.Behind != 500 || s.Waits != "500 records" {
			t.Errorf("%+v", s)
		}
		r.mu.Lock()
		r.standing = activities.Standing{Phase: Failed}
		r.mu.Unlock()
	})
	r.run(rolloutInput(), OutcomeFailed, "version 2 is failed")
}

func TestGateThatFailsEndsTheRolloutAtOnce(t *testing.T) {
	r := newRolloutTest(t, activities.GatesFail)
	r.at(2*time.Minute, func() { r.expect(Canary, 1) })
	r.run(rolloutInput(), OutcomeFailed, "match_rate is 0.5, wanted >= 0.9")
	if r.compared != 1 || len(r.canaries) != 2 {
		t.Errorf("%d comparisons, canaries %+v", r.compared, r.canaries)
	}
}

func TestInconclusivePausesAndNeverPasses(t *testing.T) {
	r := newRolloutTest(t, activities.GatesInconclusive)
	r.at(10*time.Hour, func() {
		if s := r.expect(Paused, 1); !strings.Contains(s.Waits, "match_rate is 0.5") {
			t.Errorf("%+v", s)
		}
		r.SignalWorkflow(SignalResume, Order{})
	})
	r.at(11*time.Hour, func() {
		r.expect(Paused, 1)
		r.mu.Lock()
		r.trials = []activities.Trial{{Verdict: activities.GatesPass}}
		r.mu.Unlock()
		r.SignalWorkflow(SignalResume, Order{})
	})
	r.at(11*time.Hour+10*time.Minute, func() { r.expect(Canary, 2) })
	r.at(12*time.Hour, func() { r.expect(Ready, 0); r.SignalWorkflow(SignalSettle, Settlement{Outcome: OutcomePromoted}) })
	r.run(rolloutInput(), OutcomePromoted, "")
}

func TestPauseHoldsTheStep(t *testing.T) {
	r := newRolloutTest(t, activities.GatesPass)
	r.at(5*time.Minute, func() { r.SignalWorkflow(SignalPause, Order{}) })
	r.at(5*time.Hour, func() { r.expect(Paused, 1); r.SignalWorkflow(SignalResume, Order{}) })
	r.at(5*time.Hour+4*time.Minute, func() { r.expect(Canary, 1) })
	r.at(5*time.Hour+6*time.Minute, func() { r.expect(Canary, 2); r.SignalWorkflow(SignalPause, Order{}) })
	r.at(6*time.Hour, func() { r.expect(Paused, 2); r.SignalWorkflow(SignalAbort, Order{Reason: "enough"}) })
	r.run(rolloutInput(), OutcomeAborted, "enough")
}

func TestPromoteLeavesOutTheRest(t *testing.T) {
	for name, phase := range map[string]func(r *rolloutTest){
		"in a step":   func(*rolloutTest) {},
		"paused":      func(r *rolloutTest) { r.at(30*time.Second, func() { r.SignalWorkflow(SignalPause, Order{}) }) },
		"warming up":  func(r *rolloutTest) { r.standing.CaughtUp = false },
		"comparing":   func(r *rolloutTest) { r.trials[0].Verdict = activities.GatesInconclusive },
		"before that": func(r *rolloutTest) { r.at(time.Millisecond, func() { r.SignalWorkflow(SignalPromote, Order{}) }) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRolloutTest(t, activities.GatesPass)
			phase(r)
			r.at(time.Minute, func() { r.SignalWorkflow(SignalPromote, Order{}) })
			r.at(2*time.Minute, func() {
				if name == "warming up" { // it must have caught up all the same
					r.expect(WarmingUp, 0)
				} else {
					r.expect(Ready, r.status().Step)
				}
				r.mu.Lock()
				r.standing.CaughtUp = true
				r.mu.Unlock()
			})
			r.at(3*time.Minute, func() { r.SignalWorkflow(SignalSettle, Settlement{Outcome: OutcomePromoted}) })
			r.run(rolloutInput(), OutcomePromoted, "")
		})
	}
}

func TestRolloutWithoutCanary(t *testing.T) {
	for name, in := range map[string]RolloutInput{
		"skipped": {Job: "payments", Version: 2, Current: 1, SkipCanary: true},
		"first":   {Job: "payments", Version: 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRolloutTest(t, activities.GatesFail)
			r.at(time.Minute, func() { r.expect(Ready, 0); r.SignalWorkflow(SignalSettle, Settlement{Outcome: OutcomePromoted}) })
			r.run(in, OutcomePromoted, "")
			if r.compared != 0 {
				t.Errorf("%d comparisons", r.compared)
			}
		})
	}
}

func TestCanceledRolloutGivesUp(t *testing.T) {
	r := newRolloutTest(t, activities.GatesPass)
	r.at(5*time.Minute, r.CancelWorkflow)
	r.run(rolloutInput(), OutcomeAborted, "canceled")
}

func TestRolloutContinuesAsNew(t *testing.T) {
	r := newRolloutTest(t, activities.GatesPass)
	r.at(13*time.Minute, func() { r.SignalWorkflow("garbage", nil) })
	r.at(14*time.Minute, func() { r.SetContinueAsNewSuggested(true); r.SignalWorkflow("wake", nil) })
	r.ExecuteWorkflow(RolloutType, rolloutInput())
	var again *workflow.ContinueAsNewError
	if err := r.GetWorkflowError(); !errors.As(err, &again) {
		t.Fatalf("it ended with %v", err)
	}
	next := newRolloutTest(t, activities.GatesPass)
	next.at(25*time.Minute, func() { // 4 of the 30 minutes of step 2 were over
		if s := next.expect(Canary, 2); s.From != 7 || s.Count != 1 {
			t.Errorf("%+v", s)
		}
	})
	next.at(27*time.Minute, func() { next.expect(Ready, 0); next.SignalWorkflow(SignalSettle, Settlement{Outcome: OutcomePromoted}) })
	next.ExecuteWorkflow(RolloutType, converter.NewRawValue(again.Input.GetPayloads()[0]))
	done(t, next.TestWorkflowEnvironment)
}

func TestDeployTellsTheOutcome(t *testing.T) {
	start := func(t *testing.T) (*testsuite.TestWorkflowEnvironment, *stage, *[]activities.LaunchInput) {
		env, s := environment(t), newStage(1)
		env.RegisterWorkflowWithOptions(Rollout, workflow.RegisterOptions{Name: RolloutType})
		s.plan.Job, s.plan.Version = "payments", 2
		s.mount(t, env, "deploy-1")
		return env, s, &s.launched
	}
	result := func(t *testing.T, env *testsuite.TestWorkflowEnvironment) (r DeployResult) {
		if err := env.GetWorkflowResult(&r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	t.Run("promoted", func(t *testing.T) {
		env, _, launched := start(t)
		later(t, env, func() {
			env.SignalWorkflow(SignalNews, DeployNews{Version: 1, Final: true}) // of another
			env.SignalWorkflow(SignalNews, "x")
			env.SignalWorkflow(SignalNews, DeployNews{Version: 2})
		}, time.Minute)
		later(t, env, func() {
			env.SignalWorkflow(SignalNews, DeployNews{Version: 2, Final: true, Outcome: OutcomePromoted})
		}, time.Hour)
		env.ExecuteWorkflow(DeployType, DeployInput{SpecText: "x", Author: "ann", Message: "m"})
		if r := result(t, env); r.Outcome != OutcomePromoted || r.Version != 2 {
			t.Errorf("%+v", r)
		}
		if l := *launched; len(l) != 1 || l[0].ID != "job/payments" || l[0].Signal != SignalDeploy || !strings.Contains(string(l[0].Arg), `"deploy":"deploy-1"`) {
			t.Errorf("launched %+v", l)
		}
	})
	t.Run("dry run", func(t *testing.T) {
		env, _, launched := start(t)
		env.ExecuteWorkflow(DeployType, DeployInput{Job: "payments", Version: 2, DryRun: true})
		if r := result(t, env); r.Outcome != OutcomePlanned || len(*launched) != 0 {
			t.Errorf("%+v, launched %+v", r, *launched)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for _, dry := range []bool{false, true} {
			env, s, launched := start(t)
			s.plan.Refused = []string{"resources.cpu is 4, and the control workers allow 2"}
			env.ExecuteWorkflow(DeployType, DeployInput{SpecText: "x", Author: "ann", Message: "m", RequestID: "r", DryRun: dry})
			if r := result(t, env); r.Outcome != Refused || len(r.Reasons) != 1 || len(*launched) != 0 {
				t.Errorf("%+v, launched %+v", r, *launched)
			}
			e, audited := s.entries["r/refused"]
			if audited == dry || !dry && (e.Action != "job.deploy.rejected" || e.Actor != "ann" || !strings.Contains(e.Detail, "resources.cpu is 4")) {
				t.Errorf("dry %t: %+v", dry, s.entries)
			}
		}
	})
	t.Run("its job is ended", func(t *testing.T) {
		env, s, _ := start(t)
		s.running = false
		env.ExecuteWorkflow(DeployType, DeployInput{Job: "payments", Version: 2})
		if err := env.GetWorkflowError(); err == nil || !strings.Contains(err.Error(), "job/payments has ended") {
			t.Errorf("it ended with %v", err)
		}
	})
	for _, bad := range []any{nil, "x", DeployInput{}, DeployInput{Version: 2}, DeployInput{SpecText: "x", Version: 1, Job: "y"}, map[string]any{"spec": "yaml"}, map[string]any{"specc": 1}} {
		env, _, _ := start(t)
		env.ExecuteWorkflow(DeployType, bad)
		var app *temporal.ApplicationError
		if err := env.GetWorkflowError(); !errors.As(err, &app) || !app.NonRetryable() || !strings.Contains(err.Error(), "it looks like") {
			t.Errorf("input %v ends with %v", bad, err)
		}
	}
}

package workflows

import (
	"encoding/json"
	"errors"
	"maps"
	"testing"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// carried returns the input of the run after one that continued as new.
func carried(t *testing.T, env *testsuite.TestWorkflowEnvironment) converter.RawValue {
	t.Helper()
	var again *workflow.ContinueAsNewError
	if err := env.GetWorkflowError(); !errors.As(err, &again) {
		t.Fatalf("it ended with %v", err)
	}
	return converter.NewRawValue(again.Input.GetPayloads()[0])
}

// same fails the test unless two values are the same as JSON.
func same(t *testing.T, what string, want, got any) {
	t.Helper()
	a, errA := json.Marshal(want)
	b, errB := json.Marshal(got)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		t.Errorf("%s: it was\n%s\nand is\n%s", what, a, b)
	}
}

// A job continues as new in each of its phases with all that it has: what it says, what it decided, the requests that it
// knows, and what is to come of it.
func TestJobContinuesAsNewInEachPhase(t *testing.T) {
	phases := maps.Clone(jobPhases())
	phases[RollingBack] = func(j *jobTest) {
		j.then(func() { j.SignalWorkflow(SignalRollback, Request{To: 3, RequestID: "back"}) })
	}
	phases[Stopping] = func(j *jobTest) {
		j.then(func() { j.deploy(2) })
		j.then(func() { j.SignalWorkflow(SignalStop, Request{}) })
	}
	phases["retiring"] = func(j *jobTest) {
		j.then(func() { j.deploy(2) })
		j.then(func() { j.report(2, Ready, nil) })
		j.after(2*time.Hour, func() {})
	}
	phases["discarding"] = func(j *jobTest) {
		j.kept = "it still runs"
		for _, version := range []int{2, 3} {
			j.then(func() { j.deploy(version) })
			j.then(func() { j.report(version, Ended, func(r *RolloutReport) { r.Outcome = OutcomeFailed }) })
		}
	}
	// What happens next, and where that leads.
	next := map[string]struct {
		do     func(j *jobTest)
		phase  string
		served int
	}{
		Empty:                  {func(j *jobTest) { j.deploy(1) }, RollingOut, 0},
		Serving:                {func(j *jobTest) { j.deploy(2) }, RollingOut, 1},
		RollingOut:             {func(j *jobTest) { j.report(2, Ready, nil) }, Serving, 2},
		Awaiting:               {func(j *jobTest) { j.SignalWorkflow(SignalPromote, Request{Actor: "bob"}) }, Serving, 2},
		Frozen:                 {func(j *jobTest) { j.SignalWorkflow(SignalAbort, Request{}) }, Aborting, 1},
		Promoting:              {func(j *jobTest) { j.report(2, Ended, nil) }, Serving, 1},
		Aborting:               {func(j *jobTest) { j.report(2, Ended, nil) }, Serving, 1},
		RollingBack:            {func(j *jobTest) { j.report(3, Ready, nil) }, Serving, 3},
		"ready for a rollback": {func(j *jobTest) { j.SignalWorkflow(SignalRollback, Request{To: 1}) }, Serving, 1},
		"retiring":             {func(j *jobTest) { j.SignalWorkflow(SignalRollback, Request{To: 1}) }, RollingBack, 2},
		"discarding":           {func(j *jobTest) { j.deploy(4) }, RollingOut, 1},
		Paused:                 {func(j *jobTest) { j.SignalWorkflow(SignalResume, Request{}) }, Serving, 1},
		Stopped:                {func(j *jobTest) { j.SignalWorkflow(SignalResume, Request{}) }, Serving, 1},
		Stopping:               {func(j *jobTest) { j.report(2, Ended, nil) }, Stopped, 1},
	}
	for phase, reach := range phases {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			served := 1
			if phase == Empty {
				served = 0
			}
			j := newJobTest(t, served)
			reach(j)
			j.then(func() {
				j.SignalWorkflow(SignalAbort, Request{Version: 99, RequestID: "seen"})
				j.SignalWorkflow("garbage", 1)
			})
			j.then(func() {
				if s := j.status(); s.Phase != phase && phase != "ready for a rollback" && phase != "retiring" && phase != "discarding" {
					t.Errorf("it is %s", s.Phase)
				}
				j.SetContinueAsNewSuggested(true)
				if phase == Promoting { // a switch whose answer is open is fenced first
					j.SignalWorkflow(SignalAbort, Request{RequestID: "now"})
				} else {
					j.SignalWorkflow("wake", nil)
				}
			})
			j.ExecuteWorkflow(JobType, JobInput{Job: "payments"})
			in := carried(t, j.TestWorkflowEnvironment)
			want, log := j.status(), j.log()
			wantSerial := len(log)
			again := newJobTest(t, served)
			again.epoch, again.served, again.maps, again.done, again.runs, again.frozen = j.epoch, j.served, j.maps, j.done, j.runs, j.frozen
			again.plan = j.plan
			later(t, again.TestWorkflowEnvironment, func() {
				got := again.status()
				if phase == Promoting { // the promotion was given up
					want.Phase, want.Since = Aborting, got.Since
				}
				same(t, "status", want, got)
				same(t, "history", log, again.log())
			}, time.Second)
			again.then(func() { again.SignalWorkflow(SignalAbort, Request{Version: 99, RequestID: "seen"}) })
			again.then(func() {
				again.last(SignalAbort, RejectedWhat, "decided already")
				if n := len(again.log()); n <= wantSerial {
					t.Errorf("it has decided %d times, before it was %d", n, wantSerial)
				}
				next[phase].do(again)
			})
			again.then(func() { again.expect(next[phase].phase, next[phase].served) })
			again.then(again.CancelWorkflow)
			again.ExecuteWorkflow(JobType, in)
			if err := again.GetWorkflowError(); !temporal.IsCanceledError(err) {
				t.Errorf("the next run ended with %v", err)
			}
		})
	}
}

// A rollout continues as new in each of its phases, goes on where it was, and ends as it would have.
func TestRolloutContinuesAsNewInEachPhase(t *testing.T) {
	for _, c := range []struct {
		name  string
		at    time.Duration // when it is to continue
		reach func(r *rolloutTest)
		phase string
		step  int
		do    func(r *rolloutTest) // in the next run
		ready time.Duration        // within which that is ready
	}{
		{name: Preparing, phase: WarmingUp, ready: 41 * time.Minute, reach: func(r *rolloutTest) { r.SetContinueAsNewSuggested(true); r.standing.CaughtUp = false }},
		{name: WarmingUp, at: 10 * time.Minute, phase: WarmingUp, ready: 41 * time.Minute,
			reach: func(r *rolloutTest) {
				r.standing.CaughtUp, r.standing.Behind, r.standing.Waits = false, 500, "records"
			}},
		{name: "a step", at: 5 * time.Minute, phase: Canary, step: 1, ready: 36 * time.Minute},
		{name: "a later step", at: 20 * time.Minute, phase: Canary, step: 2, ready: 21 * time.Minute},
		{name: "inconclusive", at: 10*time.Minute + 50*time.Second, phase: Canary, step: 1, ready: 33 * time.Minute,
			reach: func(r *rolloutTest) { r.trials[0].Verdict = activities.GatesInconclusive }},
		{name: Paused, at: 6 * time.Minute, phase: Paused, step: 1, ready: 37 * time.Minute,
			reach: func(r *rolloutTest) { r.at(5*time.Minute, func() { r.SignalWorkflow(SignalPause, Order{}) }) },
			do:    func(r *rolloutTest) { r.at(time.Second, func() { r.SignalWorkflow(SignalResume, Order{}) }) }},
		{name: "paused by what is inconclusive", at: 20 * time.Minute, phase: Paused, step: 1, ready: 3 * time.Second,
			reach: func(r *rolloutTest) { r.trials[0].Verdict = activities.GatesInconclusive },
			do:    func(r *rolloutTest) { r.at(time.Second, func() { r.SignalWorkflow(SignalPromote, Order{}) }) }},
		{name: "promoted while it warms up", at: 10 * time.Minute, phase: WarmingUp, ready: time.Minute,
			reach: func(r *rolloutTest) {
				r.standing.CaughtUp = false
				r.at(5*time.Minute, func() { r.SignalWorkflow(SignalPromote, Order{}) })
			}},
		{name: Ready, at: 50 * time.Minute, phase: Ready, ready: 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRolloutTest(t, activities.GatesPass)
			if c.reach != nil {
				c.reach(r)
			}
			if c.at > 0 {
				r.at(c.at-time.Second, func() { r.SignalWorkflow("garbage", 1) })
				r.at(c.at, func() { r.SetContinueAsNewSuggested(true); r.SignalWorkflow("wake", nil) })
			}
			r.ExecuteWorkflow(RolloutType, rolloutInput())
			in := carried(t, r.TestWorkflowEnvironment)
			want := r.expect(c.phase, c.step)
			again := newRolloutTest(t, activities.GatesPass)
			again.standing, again.trials = r.standing, r.trials // until it has gone on where it was
			again.at(2*time.Second, func() {
				again.stands(func(s *activities.Standing) { *s = activities.Standing{Phase: Running, CaughtUp: true, From: 7} })
				again.mu.Lock()
				again.trials = []activities.Trial{{Verdict: activities.GatesPass}}
				again.mu.Unlock()
			})
			again.at(500*time.Millisecond, func() {
				got := again.status()
				got.Waits, want.Waits = "", "" // are looked at anew
				if c.phase == WarmingUp {
					got.Behind, got.LagMS, got.From = want.Behind, want.LagMS, want.From
				}
				if want.Until != nil && got.Until != nil { // counted anew from what is left
					got.Until = want.Until
				}
				same(t, "status", want, got)
			})
			if c.do != nil {
				c.do(again)
			}
			again.at(c.ready, func() {
				again.expect(Ready, again.status().Step)
				again.SignalWorkflow(SignalSettle, Settlement{Outcome: OutcomePromoted})
			})
			again.ExecuteWorkflow(RolloutType, in)
			done(t, again.TestWorkflowEnvironment)
			if at := again.reports[0].Since; c.phase != WarmingUp && !at.Equal(want.Since) {
				t.Errorf("its phase began at %s, and now says %s", want.Since, at)
			}
		})
	}
}

// What a rollout has seen of its candidate counts in the next run: one that has crashed for a while has no more time there.
func TestRolloutCarriesWhatItHasSeen(t *testing.T) {
	r := newRolloutTest(t, activities.GatesPass)
	r.standing = activities.Standing{Phase: Running, Behind: 500, LagMS: -1, Waits: "500 records"}
	r.at(14*time.Minute, func() { r.SetContinueAsNewSuggested(true); r.SignalWorkflow("wake", nil) })
	r.ExecuteWorkflow(RolloutType, rolloutInput())
	in := carried(t, r.TestWorkflowEnvironment)
	again := newRolloutTest(t, activities.GatesPass)
	again.standing = r.standing
	again.SetStartTime(r.Now())
	again.ExecuteWorkflow(RolloutType, in)
	var got RolloutReport
	if err := again.GetWorkflowResult(&got); err != nil {
		t.Fatal(err)
	}
	if took := again.Now().Sub(r.Now()); got.Outcome != OutcomeFailed || took > 3*time.Minute {
		t.Errorf("after %s it is %+v", took, got)
	}
}

// A deployment that waits for long continues as new, asks nobody again, and tells the outcome.
func TestDeployContinuesAsNewWhileItWaits(t *testing.T) {
	for name, news := range map[string]*DeployNews{"asked": nil, "rolling out": {Version: 2}} {
		t.Run(name, func(t *testing.T) {
			start := func() (*testsuite.TestWorkflowEnvironment, *stage) {
				env, s := environment(t), newStage(1)
				s.plan.Job, s.plan.Version = "payments", 2
				s.mount(t, env, "deploy-1")
				return env, s
			}
			status := func(env *testsuite.TestWorkflowEnvironment) (s DeployStatus) {
				v, err := env.QueryWorkflow(QueryStatus)
				if err == nil {
					err = v.Get(&s)
				}
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			env, s := start()
			if news != nil {
				later(t, env, func() { env.SignalWorkflow(SignalNews, *news) }, time.Minute)
			}
			later(t, env, func() { env.SignalWorkflow("garbage", 1) }, 2*time.Minute)
			later(t, env, func() { env.SetContinueAsNewSuggested(true); env.SignalWorkflow("wake", nil) }, time.Hour)
			env.ExecuteWorkflow(DeployType, DeployInput{SpecText: "x", Author: "ann"})
			in := carried(t, env)
			want := status(env)
			if len(s.launched) != 1 || want.Count == 0 {
				t.Fatalf("launched %+v, %+v", s.launched, want)
			}
			again, s2 := start()
			later(t, again, func() { same(t, "status", want, status(again)) }, time.Minute)
			later(t, again, func() {
				again.SignalWorkflow(SignalNews, DeployNews{Version: 2, Final: true, Outcome: OutcomeFailed, Reasons: []string{"because"}})
			}, time.Hour)
			again.ExecuteWorkflow(DeployType, in)
			var r DeployResult
			if err := again.GetWorkflowResult(&r); err != nil || r.Outcome != OutcomeFailed || r.Version != 2 || r.Plan == nil || len(r.Reasons) != 1 {
				t.Errorf("%+v, %v", r, err)
			}
			if len(s2.launched) != 0 {
				t.Errorf("it asked again: %+v", s2.launched)
			}
		})
	}
}

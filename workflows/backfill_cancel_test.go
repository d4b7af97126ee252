package workflows

import (
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
)

// TestCancelAtEveryStep cancels by signal, and by Temporal's own cancellation, while each step runs, while it waits for a
// person, and while it is paused.
func TestCancelAtEveryStep(t *testing.T) {
	for _, step := range []string{"hold", "plan", "slice 0/1", "verify", "compare", "publish"} {
		for _, by := range []string{"signal", "temporal"} {
			for _, how := range []string{"running", "failed", "paused"} {
				t.Run(step+" "+by+" "+how, func(t *testing.T) { cancelAt(t, step, by, how) })
			}
		}
	}
}

func cancelAt(t *testing.T, step, by, how string) {
	w := newWorld(t, 3, 2)
	cancel := func(env *testsuite.TestWorkflowEnvironment) {
		if by == "signal" {
			env.SignalWorkflow(SignalCancel, Order{Actor: "ann", Reason: "wrong day"})
		} else {
			env.CancelWorkflow()
		}
	}
	var env *testsuite.TestWorkflowEnvironment
	switch how {
	case "running":
		w.hang[step] = true
	case "failed":
		w.fail = func(call string, _ int) error {
			if call == step {
				return broken(false)
			}
			return nil
		}
	case "paused": // from before the step on
		w.fail = func(call string, n int) error {
			if call == step && n == 1 {
				return broken(false)
			}
			return nil
		}
	}
	in := dayInput()
	if step == "compare" {
		in.Mode = ModeCompare
	}
	r, p, err := w.run(BackfillType, in, func(e *testsuite.TestWorkflowEnvironment) {
		env = e
		if how == "paused" {
			later(t, env, func() {
				w.expect(env, NeedsAttention)
				env.SignalWorkflow(SignalPause, Order{})
				env.SignalWorkflow(SignalRetryFailed, Order{})
			}, 5*time.Minute)
			later(t, env, func() { w.expect(env, Paused) }, 6*time.Minute)
		}
		later(t, env, func() { cancel(env) }, 10*time.Minute)
	})
	if w.served {
		t.Error("it is served")
	}
	if p.State != Canceled || how == "running" && p.Failed > 0 {
		t.Errorf("in the end it is %+v", p)
	}
	if by == "temporal" {
		if !temporal.IsCanceledError(err) {
			t.Errorf("it ended with %v", err)
		}
	} else if err != nil || r.Outcome != Canceled {
		t.Errorf("result %+v, %v", r, err)
	}
}

// TestCanceledWhilePublishingMayBeServed: the cancellation came when the switch was made and its answer was lost.
func TestCanceledWhilePublishingMayBeServed(t *testing.T) {
	w := newWorld(t, 1)
	w.hang["publish"] = true
	r, p, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
		later(t, env, func() { w.served = true; env.SignalWorkflow(SignalCancel, Order{}) }, time.Minute)
	})
	if err != nil || r.Outcome != Published || p.State != Published || len(r.Warnings) != 1 {
		t.Errorf("result %+v, %v", r, err)
	}
}

// TestCancelWhileItCleansUp comes too late, whatever the outcome is, and leaves nothing behind.
func TestCancelWhileItCleansUp(t *testing.T) {
	for _, outcome := range []string{Published, Canceled} {
		for _, by := range []string{"signal", "temporal"} {
			t.Run(outcome+" "+by, func(t *testing.T) {
				w := newWorld(t, 2)
				w.hang["slice 0/1"] = outcome == Canceled
				w.fail = func(call string, n int) error {
					if call == "drop" && n < 8 {
						return broken(true)
					}
					return nil
				}
				r, p, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
					begins := time.Second
					if outcome == Canceled {
						begins += 10 * time.Second
						later(t, env, func() { env.SignalWorkflow(SignalCancel, Order{}) }, 10*time.Second)
					}
					later(t, env, func() {
						w.expect(env, Cleaning)
						if by == "signal" {
							env.SignalWorkflow(SignalCancel, Order{})
						} else {
							env.CancelWorkflow()
						}
					}, begins)
				})
				if p.State != outcome || w.served != (outcome == Published) || w.calls["drop"] != 8 {
					t.Errorf("in the end it is %+v, served %v, %v", p, w.served, w.calls)
				}
				if by == "signal" && (p.Count != 1 || !strings.Contains(p.Rejected[0].Reason, "too late")) {
					t.Errorf("the cancellation is answered with %+v", p.Rejected)
				}
				if outcome == Canceled && by == "temporal" {
					if !temporal.IsCanceledError(err) {
						t.Errorf("it ended with %v", err)
					}
				} else if err != nil || r.Outcome != outcome {
					t.Errorf("result %+v, %v", r, err)
				}
			})
		}
	}
}

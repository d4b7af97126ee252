package workflows

import (
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
)

// stands sets how the candidate stands from now on.
func (r *rolloutTest) stands(change func(*activities.Standing)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.standing)
	for i := range r.trials {
		r.trials[i].LagMS = r.standing.LagMS
	}
}

// A candidate that does not run well ends its rollout by itself, whatever phase that is in, and says why.
func TestCandidateThatDoesNotRunWellIsGivenUp(t *testing.T) {
	crash := func(kind, text string) func(*activities.Standing) {
		return func(s *activities.Standing) { s.Phase, s.Error, s.ErrorType = CrashLooping, text, kind }
	}
	for _, c := range []struct {
		name    string
		from    time.Duration // since when it stands so
		stands  func(*activities.Standing)
		alive   time.Duration // it is not given up yet
		within  time.Duration
		reasons []string
	}{
		{"crashes while it catches up", 0, func(s *activities.Standing) {
			s.CaughtUp = false
			crash(activities.Internal, "shard 0: panic: nil map")(s)
		}, time.Minute, 3 * time.Minute,
			[]string{"version 2 crashes again and again, for 2m0s now: shard 0: panic: nil map"}},
		{"crashes in the canary", 3 * time.Minute, crash(activities.Internal, "process 0: killed at its memory limit 1 GiB"), 4 * time.Minute, 8 * time.Minute,
			[]string{"killed at its memory limit 1 GiB"}},
		{"servers are away", 3 * time.Minute, crash(activities.External, "shard 0: Kafka is away"), 12 * time.Minute, 15 * time.Minute, []string{"for 10m0s now: shard 0: Kafka is away"}},
		{"dies over and over, but runs in between", 3 * time.Minute, func(s *activities.Standing) { s.Deaths, s.Error = deathsMax+1, "process 0: killed at its memory limit" },
			0, 5 * time.Minute, []string{"has died 9 times", "process 0: killed at its memory limit"}},
		{"fails in the canary", 3 * time.Minute, func(s *activities.Standing) {
			s.Phase, s.Error = Failed, "shard 0: its topic was deleted and made again"
		}, 0, 5 * time.Minute,
			[]string{"version 2 is failed, shard 0: its topic was deleted"}},
		{"gets no nearer", 0, func(s *activities.Standing) {
			s.CaughtUp, s.Behind, s.LagMS, s.Waits = false, 500, -1, "it is 500 records from where version 1 was"
		},
			14 * time.Minute, 17 * time.Minute, []string{"version 2 does not catch up: it is 500 records from where version 1 was, and was no nearer for 15m0s"}},
		{"lags for ever", 0, func(s *activities.Standing) {
			s.CaughtUp, s.LagMS, s.Waits = false, 90_000, "it is 1m30s behind version 1"
		},
			14 * time.Minute, 17 * time.Minute, []string{"does not catch up: it is 1m30s behind version 1"}},
		{"nobody runs it", 0, func(s *activities.Standing) {
			s.CaughtUp, s.Behind, s.LagMS, s.Missing, s.Unmanned, s.Waits = false, -1, -1, 1, true, "process 0 waits for an agent that has room"
		}, 14 * time.Minute, 17 * time.Minute, []string{"version 2 does not run: process 0 waits for an agent that has room; nobody came for 15m0s"}},
		{"falls behind in the canary", 3 * time.Minute, func(s *activities.Standing) { s.LagMS = 45_000 }, 7 * time.Minute, 11 * time.Minute,
			[]string{"version 2 falls behind: it is 45s behind version 1, wanted is at most 30s, and was further behind than that for 5m0s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRolloutTest(t, activities.GatesPass)
			if c.from == 0 {
				c.stands(&r.standing)
			} else {
				r.at(c.from, func() { r.stands(c.stands) })
			}
			if c.alive > 0 {
				r.at(c.alive, func() {
					if s := r.status(); s.Final {
						t.Errorf("it has ended: %+v", s)
					}
				})
			}
			r.run(rolloutInput(), OutcomeFailed, c.reasons[0])
			for _, text := range c.reasons {
				if got := strings.Join(r.reports[len(r.reports)-1].Reasons, "; "); !strings.Contains(got, text) {
					t.Errorf("%q does not say %q", got, text)
				}
			}
			if took := r.reports[len(r.reports)-1].Since.Sub(r.reports[0].Since); took > c.within {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// What passes by itself ends nothing: a slow catch-up that gets on, a crash, a moment of lag, a pause of hours, and a time in
// which no control worker looked.
func TestCandidateThatRecoversGoesOn(t *testing.T) {
	r := newRolloutTest(t, activities.GatesPass)
	r.standing = activities.Standing{Phase: Running, Behind: 1000, LagMS: -1, Waits: "records", Missing: 1}
	for i := range 20 { // over five hours
		r.at(time.Duration(i+1)*14*time.Minute, func() { r.stands(func(s *activities.Standing) { s.Behind -= 10; s.Missing = 0 }) })
	}
	r.at(290*time.Minute, func() { r.SignalWorkflow(SignalPause, Order{}) })
	r.at(350*time.Minute, func() { r.expect(WarmingUp, 0); r.SignalWorkflow(SignalResume, Order{}) })
	r.at(351*time.Minute, func() {
		r.stands(func(s *activities.Standing) { *s = activities.Standing{Phase: CrashLooping, Error: "x"} })
	})
	r.at(352*time.Minute, func() {
		r.stands(func(s *activities.Standing) { *s = activities.Standing{Phase: Running, CaughtUp: true} })
	})
	r.at(354*time.Minute, func() { r.expect(Canary, 1); r.stands(func(s *activities.Standing) { s.LagMS = 60_000 }) })
	r.at(357*time.Minute, func() { r.stands(func(s *activities.Standing) { s.LagMS = 0 }) })
	r.at(359*time.Minute, func() { r.stands(func(s *activities.Standing) { s.Phase, s.Error = CrashLooping, "y" }) })
	r.at(360*time.Minute+30*time.Second, func() {
		if s := r.status(); !strings.Contains(s.Waits, "it crashes again and again: y") {
			t.Errorf("%+v", s)
		}
		r.stands(func(s *activities.Standing) { s.Phase = Running })
	})
	r.at(395*time.Minute, func() { r.expect(Ready, 0); r.SignalWorkflow(SignalSettle, Settlement{Outcome: OutcomePromoted}) })
	r.run(rolloutInput(), OutcomePromoted, "")
}

// Of a spec with canary.warm_up the warm-up ends then, although it gets on.
func TestWarmUpHasADeadline(t *testing.T) {
	r := newRolloutTest(t, activities.GatesPass)
	r.plan.WarmUpMS = time.Hour.Milliseconds()
	r.standing = activities.Standing{Phase: Running, Behind: 1000, LagMS: -1}
	for i := range 5 {
		r.at(time.Duration(i+1)*10*time.Minute, func() {
			r.stands(func(s *activities.Standing) { s.Behind -= 10; s.Waits = "it is some records from where version 1 was" })
		})
	}
	r.at(59*time.Minute, func() { r.expect(WarmingUp, 0) })
	r.run(rolloutInput(), OutcomeFailed, "has not caught up within 1h0m0s, as the spec's canary.warm_up demands: it is some records from")
}

func TestTimeInWhichNobodyLookedDoesNotCount(t *testing.T) {
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	w := watch{LookedAt: at, CrashingAt: new(time.Time), BeganAt: at.Add(-time.Hour), NearerAt: at.Add(-10 * time.Minute)}
	*w.CrashingAt = at.Add(-time.Minute)
	w.tick(at.Add(watchEvery))
	if *w.CrashingAt != at.Add(-time.Minute) || w.NearerAt != at.Add(-10*time.Minute) {
		t.Errorf("a look in time moves %+v", w)
	}
	now := at.Add(watchEvery + 5*time.Hour)
	w.tick(now)
	for what, d := range map[string]time.Duration{"crashing": now.Sub(*w.CrashingAt) - time.Minute, "nearer": now.Sub(w.NearerAt) - 10*time.Minute, "began": now.Sub(w.BeganAt) - time.Hour} {
		if d > 3*time.Minute {
			t.Errorf("%s: %s in which nobody looked count", what, d)
		}
	}
}

// What is inconclusive for its lag is not left to a person: it is given up.
func TestLagAtTheEndOfAStep(t *testing.T) {
	r := newRolloutTest(t, activities.GatesInconclusive)
	r.trials[0].LagMS = 40_000
	r.run(rolloutInput(), OutcomeFailed, "falls behind: it is 40s behind version 1")
}

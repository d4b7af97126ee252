package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// A candidate that does not run well is given up by itself: it crashes, gets no nearer to the served version, or falls behind it.
// All of it is measured in time in which somebody looked: while no control worker runs, nothing counts.

const (
	watchEvery = time.Minute // between two looks at a candidate during a step
	// crashWait is how long a candidate may crash again and again that did so before its rollout, so that its deaths are not
	// counted at first.
	crashWait = 2 * time.Minute
	// crashWaitServers is how long where servers do not answer, which counts as no death: that may pass, and a run counts as
	// steady after five minutes.
	crashWaitServers = 10 * time.Minute
	// deathsMax is how often one process or shard may die during a rollout: it would do the same to the users. One that leaks dies
	// seldom enough to count as steady.
	deathsMax = 8
	// stallWait is how long a warm-up may get no further. Checkpoints are made every few seconds, so that this is hundreds.
	stallWait = 15 * time.Minute
	// lagFor is how long a candidate may be further behind than its gate allows before that is no hiccup.
	lagFor = 5 * time.Minute
	// lookLate is how much later than planned a look may come and still count in full.
	lookLate = 30 * time.Second
)

// watch is what Rollout remembers of how the candidate runs.
type watch struct {
	LookedAt   time.Time  `json:"looked_at"`
	CrashingAt *time.Time `json:"crashing_at,omitempty"` // since when it crashes again and again; nil: it does not
	LagAt      *time.Time `json:"lag_at,omitempty"`      // since when it is too far behind, during the canary
	Deaths     int        `json:"deaths,omitempty"`      // before the rollout
	BeganAt    time.Time  `json:"began_at"`              // of the warm-up
	NearerAt   time.Time  `json:"nearer_at"`             // when it was last nearer to its goal than ever before
	Missing    int        `json:"missing"`               // the least of each
	Behind     int64      `json:"behind"`
	LagMS      int64      `json:"lag_ms"`
}

// givenUp is the error of a candidate that failed.
func givenUp(format string, args ...any) error {
	return temporal.NewNonRetryableApplicationError(fmt.Sprintf(format, args...), activities.User, nil)
}

// tick moves what is measured from by the time in which nobody looked.
func (w *watch) tick(now time.Time) {
	if lost := now.Sub(w.LookedAt) - watchEvery - lookLate; !w.LookedAt.IsZero() && lost > 0 {
		for _, at := range []*time.Time{w.CrashingAt, w.LagAt, &w.BeganAt, &w.NearerAt} {
			if at != nil && !at.IsZero() {
				*at = at.Add(lost)
			}
		}
	}
	w.LookedAt = now
}

// examine looks whether the candidate runs and gets on. It fails where the rollout is to end.
func (r *rollout) examine(ctx workflow.Context, s *activities.Standing, caughtUp bool) error {
	if s.Phase == Failed || s.Phase == Stopped {
		text := ""
		if s.Error != "" {
			text = ", " + s.Error
		}
		return givenUp("version %d is %s%s: see `weft job status %s`, or query %s", r.in.Version, s.Phase, text, r.in.Job, VersionID(r.in.Job, r.in.Version))
	}
	now, w := workflow.Now(ctx), &r.Watch
	if w.LookedAt.IsZero() {
		w.Deaths = s.Deaths
	}
	if w.tick(now); s.Phase == CrashLooping {
		r.Waits = "it crashes again and again: " + orElse(s.Error, "see weft job status "+r.in.Job)
	}
	if !r.watches {
		return nil
	}
	w.Deaths = min(w.Deaths, s.Deaths) // they are counted from 0 where a run begins anew
	if n := s.Deaths - w.Deaths; n >= deathsMax {
		return givenUp("version %d has died %d times since its rollout began; the last time: %s", r.in.Version, n, orElse(s.Error, "nobody knows why"))
	}
	if err := r.crashing(now, s); err != nil || r.Phase != "" && r.Phase != Preparing && r.Phase != WarmingUp {
		return err
	}
	return r.nearing(now, s, caughtUp)
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// crashing gives a candidate up that does nothing but crash.
func (r *rollout) crashing(now time.Time, s *activities.Standing) error {
	w := &r.Watch
	if s.Phase != CrashLooping {
		w.CrashingAt = nil
		return nil
	}
	if w.CrashingAt == nil {
		w.CrashingAt = &now
	}
	limit := crashWait
	if s.ErrorType == activities.External {
		limit = crashWaitServers
	}
	if now.Sub(*w.CrashingAt) < limit {
		return nil
	}
	return givenUp("version %d crashes again and again, for %s now: %s", r.in.Version, limit, orElse(s.Error, "see `weft job status "+r.in.Job+"`"))
}

// nearing gives a candidate up that does not catch up.
func (r *rollout) nearing(now time.Time, s *activities.Standing, caughtUp bool) error {
	w := &r.Watch
	if w.BeganAt.IsZero() {
		w.BeganAt, w.Behind, w.LagMS, w.Missing = now, -1, -1, s.Missing
	}
	less := func(least *int64, is int64) bool {
		if is < 0 || *least >= 0 && is >= *least {
			return false
		}
		*least = is
		return true
	}
	nearer := w.NearerAt.IsZero() || r.Paused || caughtUp || s.Missing < w.Missing
	w.Missing = min(w.Missing, s.Missing)
	nearer = less(&w.Behind, s.Behind) || nearer
	if s.Behind == 0 {
		nearer = less(&w.LagMS, s.LagMS) || nearer
	}
	if nearer {
		w.NearerAt = now
	}
	waits := orElse(r.Waits, "nobody knows for what it waits")
	switch limit := time.Duration(r.Plan.WarmUpMS) * time.Millisecond; {
	case caughtUp:
	case now.Sub(w.NearerAt) >= stallWait && s.Unmanned:
		return givenUp("version %d does not run: %s; nobody came for %s", r.in.Version, waits, stallWait)
	case now.Sub(w.NearerAt) >= stallWait:
		return givenUp("version %d does not catch up: %s, and was no nearer for %s", r.in.Version, waits, stallWait)
	case limit > 0 && !r.in.SkipCanary && now.Sub(w.BeganAt) >= limit:
		return givenUp("version %d has not caught up within %s, as the spec's canary.warm_up demands: %s", r.in.Version, limit, waits)
	}
	return nil
}

// lagging gives a candidate up that has fallen behind the served version, and stays there.
func (r *rollout) lagging(ctx workflow.Context, lagMS int64) error {
	if !r.watches {
		return nil
	}
	now, w, most := workflow.Now(ctx), &r.Watch, time.Duration(r.Plan.LagMaxMS)*time.Millisecond
	w.tick(now)
	if lagMS >= 0 && lagMS <= r.Plan.LagMaxMS {
		w.LagAt = nil
		return nil
	}
	if w.LagAt == nil {
		w.LagAt = &now
	}
	if now.Sub(*w.LagAt) < lagFor {
		return nil
	}
	behind := "has seen no event time yet"
	if lagMS >= 0 {
		behind = fmt.Sprintf("is %s behind version %d", time.Duration(lagMS)*time.Millisecond, r.in.Current)
	}
	return givenUp("version %d falls behind: it %s, wanted is at most %s, and was further behind than that for %s", r.in.Version, behind, most, lagFor)
}

// nap lets a part of a step pass, and looks after the candidate meanwhile.
func (r *rollout) nap(outer, ctx workflow.Context, d time.Duration) error {
	over := func() bool { return r.Paused || r.Forced }
	if !r.watches {
		return r.sleep(outer, ctx, d, over)
	}
	var l *activities.Lifecycle
	in := r.standing()
	in.Key = "" // where it was to catch up with is behind it
	for until := workflow.Now(ctx).Add(d); ; {
		left := until.Sub(workflow.Now(ctx))
		if err := r.sleep(outer, ctx, max(0, min(left, watchEvery)), over); err != nil || over() {
			return err
		}
		var s activities.Standing
		if err := r.ask(outer, ctx, shortOptions(), l.CompareStanding, in, &s); err != nil {
			return err
		}
		told := r.Waits
		r.LagMS, r.Waits = s.LagMS, ""
		if err := r.examine(ctx, &s, true); err != nil {
			return err
		}
		if err := r.lagging(ctx, s.LagMS); err != nil || left <= watchEvery {
			return err
		}
		if r.Waits != told {
			if err := r.enter(ctx, r.Phase); err != nil {
				return err
			}
		}
	}
}

package workflows

import (
	"slices"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
)

func (j *jobTest) drops() []activities.DropVersionInput {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.dropped)
}

// fail rolls a version out that fails.
func (j *jobTest) fail(version int) {
	j.then(func() { j.deploy(version) })
	j.then(func() { j.report(version, Ended, func(r *RolloutReport) { r.Outcome = OutcomeFailed }) })
}

// The last candidate that failed is kept until the next one fails; what is dropped is told.
func TestTheLastFailedCandidateIsKept(t *testing.T) {
	j := newJobTest(t, 1)
	j.fail(2)
	j.after(48*time.Hour, func() {
		if s := j.status(); len(j.drops()) != 0 || s.Failed.Version != 2 {
			t.Errorf("%+v, dropped %+v", s, j.drops())
		}
	})
	j.fail(3)
	j.then(func() {
		if d := j.drops(); !slices.Equal(d, []activities.DropVersionInput{{Job: "payments", Version: 2}}) {
			t.Errorf("dropped %+v", d)
		}
		j.last("dropped", Done, "version 3 is the last candidate that was given up")
		if s := j.status(); len(s.Discards) != 0 || s.Failed.Version != 3 {
			t.Errorf("%+v", s)
		}
		j.mu.Lock()
		j.kept = "it still runs" // its last checkpoint takes a while
		j.mu.Unlock()
	})
	j.fail(4)
	j.then(func() {
		if s := j.status(); len(j.drops()) != 2 || len(s.Discards) != 1 || s.Discards[0].Version != 3 {
			t.Errorf("%+v, dropped %+v", s.Discards, j.drops())
		}
		j.mu.Lock()
		j.kept = ""
		j.mu.Unlock()
	})
	j.after(keepRetired, func() {
		if s := j.status(); len(j.drops()) != 3 || len(s.Discards) != 0 {
			t.Errorf("%+v, dropped %+v", s.Discards, j.drops())
		}
	})
	j.run()
}

// A version that has retired is dropped a day later, unless it has come back; what a rollback needs is named.
func TestRetiredVersionIsDroppedADayLater(t *testing.T) {
	for _, back := range []bool{false, true} {
		j := newJobTest(t, 1)
		j.then(func() { j.deploy(2) })
		j.then(func() { j.report(2, Ready, nil) })
		j.then(func() { j.expect(Serving, 2); j.standing.Settled = true })
		j.after(2*time.Hour, func() {
			if s := j.status(); len(s.Discards) != 1 || s.Discards[0].Version != 1 || len(j.drops()) != 0 {
				t.Errorf("%+v, dropped %+v", s, j.drops())
			}
			j.last("retired", Done, "for a day")
			if back {
				j.SignalWorkflow(SignalRollback, Request{To: 1})
			} else {
				j.deploy(3)
			}
		})
		if back {
			j.then(func() { j.report(1, Ready, nil) })
		} else {
			j.then(func() { j.report(3, Ready, nil) })
		}
		j.after(23*time.Hour+55*time.Minute, func() {
			var list []int
			for _, d := range j.drops() {
				list = append(list, d.Version)
			}
			switch {
			case back && slices.Contains(list, 1):
				t.Errorf("version 1 came back, and is dropped: %+v", j.drops())
			case !back && !slices.Equal(list, []int{1}):
				t.Errorf("dropped %+v", j.drops())
			}
		})
		j.run()
	}
}

// A version that failed once and is served by now is not dropped.
func TestFailedVersionThatCameBackIsNotDropped(t *testing.T) {
	j := newJobTest(t, 1)
	j.fail(2)
	j.after(101*time.Hour, func() {}) // until its rollout has ended
	j.then(func() { j.SignalWorkflow(SignalDeploy, DeployRequest{Version: 2, RequestID: "again"}) })
	j.then(func() { j.report(2, Ready, nil) })
	j.then(func() { j.expect(Serving, 2) })
	j.fail(3)
	j.then(func() {
		if s := j.status(); len(j.drops()) != 0 || len(s.Discards) != 0 {
			t.Errorf("%+v, dropped %+v", s.Discards, j.drops())
		}
	})
	j.run()
}

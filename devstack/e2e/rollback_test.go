package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/workflows"
)

// TestRollbackThroughFaults rolls back with a control worker killed right before the signal, with all workers gone at that
// moment, while a candidate crashes again and again, and in the middle of a canary. WEFT_ROLLBACK_KILLS chooses how many control
// workers are killed, and WEFT_ROLLBACKS how many rollbacks on a quiet system they are compared with.
func TestRollbackThroughFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute and a half")
	}
	kills, quiet := fromEnv(t, "WEFT_ROLLBACK_KILLS", 5), fromEnv(t, "WEFT_ROLLBACKS", 20)
	r := &releaseTest{lifecycleTest: &lifecycleTest{chaos: newChaos(t, 1, 14*time.Minute)}}
	r.prepare(1000)
	quick := steps("1s", "1s")
	v1 := r.spec("v1.yaml", quick...)
	r.begin(v1, r.inputs[2:], 2, "")
	a := newAsker(t, r.ctx, r.store, nil)
	before := r.digest()
	r.release(r.spec("v2.yaml", append(another("two"), quick...)...), "--skip-canary")
	r.until("version 2 is served", func(s workflows.JobStatus) bool { return at(s, workflows.Serving, 2) })
	stop := a.start(r.ctx)

	r.killControls(kills, quiet)
	r.allGone()
	r.crashLoop()
	r.halfway()

	if got := r.digest(); got != before {
		t.Errorf("served is %s, it was %s", got, before)
	}
	stop()
	r.finish()
}

// other is the version that a rollback leads to.
func (r *releaseTest) other() int {
	r.Helper()
	s := r.until("a rollback is ready", func(s workflows.JobStatus) bool {
		return s.RollbackReady && s.Previous != nil && r.generation(s.Current.Version) == r.serving().Ranges[0].Generation // else it is about to note a switch
	})
	return s.Previous.Version
}

// killControls measures rollbacks without a fault, and those right before which the control worker is killed that has the job in
// its memory, while another one lives.
func (r *releaseTest) killControls(kills, quiet int) {
	r.Helper()
	for _, p := range r.controls {
		r.working(p)
	}
	var calm, killed spread
	for range quiet {
		to := r.other()
		r.holder()
		calm = append(calm, r.back(to, nil))
	}
	for range kills {
		to := r.other()
		holder := r.holder()
		began := time.Now()
		killed = append(killed, r.back(to, holder.kill))
		if last := killed[len(killed)-1]; last > 500*time.Millisecond {
			r.Logf("it took %s: %s", last, r.story(began))
		}
		i := slices.Index(r.controls, holder)
		r.controls[i] = r.startControl()
		r.working(r.controls[i])
	}
	extra := killed.quantile(0.5) - calm.quantile(0.5)
	r.Logf("from a signal until the version was served: %s", calm)
	r.Logf("with the control worker killed right before it: %s; %s more in the middle", killed, extra.Round(time.Millisecond))
	if n := calm.beyond(time.Second); n > max(1, quiet/100) {
		r.Errorf("%d of %d rollbacks took more than a second: %v", n, quiet, calm)
	}
	if extra > 500*time.Millisecond {
		r.Errorf("a control worker that is killed costs %s: %v, and without %v", extra, killed, calm)
	}
}

// allGone signals a rollback while no worker lives: it takes effect when one is back.
func (r *releaseTest) allGone() {
	r.Helper()
	to := r.other()
	generation, epoch := r.generation(to), r.serving().Epoch
	all := append(slices.Clone(r.controls), r.versions[1], r.versions[2])
	for _, p := range all {
		p.kill()
	}
	r.signal(workflows.SignalRollback, `{"to":`+itoa(to)+`,"reason":"nobody is there","request_id":"all-gone","actor":"ann"}`)
	if m := r.serving(); m.Epoch != epoch {
		r.Errorf("without a worker the map changed to %+v", m)
	}
	began := time.Now()
	r.controls[0] = r.startControl()
	took := r.switched(began, epoch, generation)
	r.Logf("signaled without any worker: served %s after a control worker was started", took.Round(time.Millisecond))
	r.controls[1] = r.startControl()
	for _, version := range []int{1, 2} {
		r.runVersion(version)
	}
}

// crashLoop rolls back while a candidate crashes again and again. What it would be promoted for goes on to be served.
func (r *releaseTest) crashLoop() {
	r.Helper()
	r.last++
	r.runVersion(r.last, "WEFT_KAFKA=127.0.0.1:1") // nobody listens there
	r.ask(r.spec("crash.yaml", append(another("crash"), steps("1s", "1s")...)...))
	r.until("the candidate crashes again and again", func(s workflows.JobStatus) bool {
		return s.Candidate != nil && s.Candidate.Rollout != nil && strings.Contains(s.Candidate.Rollout.Waits, "crashes again and again")
	})
	took := r.back(r.other(), nil)
	r.Logf("while a candidate crashes again and again: served after %s", took.Round(time.Millisecond))
	r.expectGivenUp(r.last)
	r.versions[r.last].kill()
}

// halfway rolls back in the middle of a canary, to the version that was served before.
func (r *releaseTest) halfway() {
	r.Helper()
	r.release(r.spec("halfway.yaml", append(another("halfway"), steps("10m", "30m")...)...))
	r.await("the candidate answers for some users", func() bool { return r.serving().Canary != nil })
	took := r.back(r.other(), nil) // it expects no canary any more
	r.Logf("in the middle of a canary: served after %s", took.Round(time.Millisecond))
	r.expectGivenUp(r.last)
	if m := r.serving(); m.Canary != nil {
		r.Errorf("users are still led to generation %d", m.Canary.Generation)
	}
	if to := r.other(); to != 1 {
		return
	}
	r.back(1, nil)
}

// expectGivenUp waits until a candidate is given up.
func (r *releaseTest) expectGivenUp(version int) {
	r.Helper()
	s := r.until("the candidate is given up", func(s workflows.JobStatus) bool { return s.Phase == workflows.Serving && s.Candidate == nil })
	if s.Failed == nil || s.Failed.Version != version || s.Failed.Rollout.Outcome != workflows.OutcomeAborted {
		r.Errorf("after the rollback: %+v", s)
	}
}

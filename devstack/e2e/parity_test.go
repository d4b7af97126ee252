package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workflows"
)

// TestRolloutsDuringAStream deploys, aborts, promotes and rolls back while records come in, and asks all the time. In the end
// both versions have the sessions of a replay of the files, which knows nothing of all that; every answer had what it must
// have; and each rollback was served within a second.
//
// The rate is low so that the stream outlasts everything on a slow machine too. WEFT_STREAM_ORDERS, WEFT_STREAM_RATE and
// WEFT_STREAM_ROLLBACKS choose more; `make rollbacks` does.
func TestRolloutsDuringAStream(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute and a half")
	}
	orders, rate, rollbacks := fromEnv(t, "WEFT_STREAM_ORDERS", 8000), fromEnv(t, "WEFT_STREAM_RATE", 250), fromEnv(t, "WEFT_STREAM_ROLLBACKS", 40)
	r := &releaseTest{lifecycleTest: &lifecycleTest{chaos: newChaos(t, 1, 14*time.Minute)}}
	r.prepare(orders)
	v1 := r.spec("v1.yaml", steps("1s", "1s")...)
	v2 := r.spec("v2.yaml", append(another("longer"), steps("10m", "30m")...)...)
	v3 := r.spec("v3.yaml", append(another("long"), steps("1s", "1s")...)...)
	halves := r.halve()
	want := map[int]string{1: r.replay(v1, "one", r.inputs[2:]), 3: r.replay(v3, "three", r.inputs[2:])}
	r.begin(v1, halves, 1, "archive,publish")

	a := newAsker(t, r.ctx, r.store, staying(t, filepath.Join(r.dir, "one")))
	stop := a.start(r.ctx)
	rest := append([]string{"produce", "-q", "--partitions", "2"}, r.with(v1, r.inputs[2:])...)
	stream := r.launch("stream", r.env, r.weft, append(rest, "--rate", itoa(rate))...)
	began := time.Now()
	step := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }

	// A candidate answers for some users, and is given up.
	r.release(v2)
	r.await("a candidate answers", func() bool { return a.led(5) })
	step("version 2 answers for 5 % of the users")
	r.command("job", "abort", "payments", "--reason", "to see")
	s := r.until("version 2 is given up", func(s workflows.JobStatus) bool { return at(s, workflows.Serving, 1) && s.Candidate == nil })
	if s.Failed == nil || s.Failed.Version != 2 || s.Failed.Rollout.Outcome != workflows.OutcomeAborted || r.serving().Canary != nil {
		t.Errorf("after the abort: %+v", s)
	}
	step("version 2 is given up")
	r.versions[2].kill()

	r.release(v3)
	told := ""
	s = r.until("version 3 is served or given up", func(s workflows.JobStatus) bool {
		if s.Candidate != nil && s.Candidate.Rollout != nil && s.Candidate.Rollout.Waits != told {
			told = s.Candidate.Rollout.Waits
			step("version 3 waits for: " + told)
		}
		return s.Candidate == nil
	})
	if !at(s, workflows.Serving, 3) {
		t.Fatalf("version 3 was not promoted: %+v", s.Failed.Rollout)
	}
	step("version 3 is served")
	if !a.led(50) {
		t.Error("version 3 has answered for no half of the users")
	}
	if stream.ended() {
		t.Errorf("the stream has ended before the rollbacks: raise WEFT_STREAM_ORDERS, or lower WEFT_STREAM_RATE: %s", stream.tail())
	}

	var took spread
	for n := range rollbacks {
		to := 1 + 2*(n%2)
		took = append(took, r.back(to, nil))
		r.until("the rollback is noted", func(s workflows.JobStatus) bool { return at(s, workflows.Serving, to) })
	}
	streaming := !stream.ended()
	step("rolled back and forth")
	t.Logf("from a signal until the version was served, stream running %t: %s", streaming, took)
	if n := took.beyond(time.Second); n > max(1, rollbacks/100) {
		t.Errorf("%d of %d rollbacks took more than a second: %v", n, rollbacks, took)
	}

	// The rest of the records, as fast as they go; those that were played already are known by their identity.
	stream.kill()
	r.command(rest...)
	for version, digest := range want {
		scope := store.Scope{Job: "payments", Generation: r.generation(version)}
		r.await("version "+itoa(version)+" has the sessions of a replay", func() bool {
			d, err := r.store.Digest(r.ctx, scope, 0, 0)
			r.must(err)
			return d.String() == digest
		})
	}
	r.back(1, nil)
	if got := r.digest(); got != want[1] {
		t.Errorf("served is %s, a replay has %s", got, want[1])
	}
	step("all records are there")
	stop()
	r.finish()
}

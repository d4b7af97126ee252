package e2e

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftdata/weft/workflows"
)

// TestKillAtEveryPhase kills a process at the moment at which the status of the job first shows a phase of a rollout, and starts
// it again a bit later. The rollout goes on to its promotion or ends in a clean abort, and users who ask all the time get all
// their sessions from one version in every answer.
//
// It takes a few of all pairs of phase and process; WEFT_PHASES=all takes each once (`make chaos-rollout`), WEFT_PHASES_SEED
// repeats a run.
func TestKillAtEveryPhase(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	seed := uint64(fromEnv(t, "WEFT_PHASES_SEED", int(time.Now().UnixNano()&0xffff_ffff)))
	t.Logf("seed %d: repeat with WEFT_PHASES_SEED=%d", seed, seed)
	phases := []string{"preparing", "warming up", "first step", "second step", "promoting", "promoted", "rolling back"}
	victims := []string{"the control worker", "the candidate's process", "the served version's process", "the servers", "the agent"}
	var pairs [][2]string
	for _, phase := range phases {
		for _, victim := range victims {
			pairs = append(pairs, [2]string{phase, victim})
		}
	}
	limit := 8 * time.Minute
	if os.Getenv("WEFT_PHASES") == "all" {
		limit = 40 * time.Minute
	}
	r := &releaseTest{lifecycleTest: &lifecycleTest{chaos: newChaos(t, seed, limit)}, agents: true}
	r.r = rand.New(rand.NewPCG(seed, 7))
	r.r.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	if os.Getenv("WEFT_PHASES") != "all" {
		pairs = pairs[:fromEnv(t, "WEFT_PHASES", 2)]
	}
	r.prepare(1000)
	r.begin(r.spec("v1.yaml", steps("1s", "1s")...), r.inputs[2:], 1, "")
	a := newAsker(t, r.ctx, r.store, nil)
	stop := a.start(r.ctx)
	outcomes := map[string]int{}
	for _, p := range pairs {
		outcomes[r.killAt(p[0], p[1])]++
	}
	stop()
	t.Logf("%d kills: %v", len(pairs), outcomes)
	if outcomes[workflows.OutcomePromoted] == 0 {
		t.Error("no rollout went on")
	}
	r.finish()
}

// killAt rolls a version out, kills a process in a phase of that, and returns what came of the rollout.
func (r *releaseTest) killAt(phase, victim string) (outcome string) {
	r.Helper()
	began := time.Now()
	s := r.until("the job is at rest", func(s workflows.JobStatus) bool { return s.Phase == workflows.Serving && s.Candidate == nil })
	served, candidate := s.Current.Version, r.last+1
	// One scenario, which all of them intend to change.
	changes := append(append(another("phase"), `duration("1m")`, `duration("`+itoa(60+candidate)+`s")`), steps("1s", "1s")...)
	if phase == "promoting" {
		changes = append(changes, "approval: none", "approval: two_person")
	}
	spec := r.spec("phase-"+itoa(candidate)+".yaml", changes...)
	r.release(spec)
	in := func(s workflows.JobStatus, phase string, step int) bool {
		return s.Candidate != nil && s.Candidate.Rollout != nil && s.Candidate.Rollout.Phase == phase && s.Candidate.Rollout.Step == step
	}
	r.until(phase, func(s workflows.JobStatus) bool {
		if s.Failed != nil && s.Failed.Version == candidate {
			r.Fatalf("version %d is given up before %s: %v", candidate, phase, s.Failed.Rollout.Reasons)
		}
		switch phase {
		case "preparing":
			return s.Candidate != nil && (s.Candidate.Rollout == nil || !s.Candidate.Rollout.Final)
		case "warming up":
			return in(s, workflows.WarmingUp, 0)
		case "first step":
			return in(s, workflows.Canary, 1)
		case "second step":
			return in(s, workflows.Canary, 2)
		case "promoting":
			return s.Phase == workflows.Awaiting
		}
		return at(s, workflows.Serving, candidate)
	})
	switch phase {
	case "promoting":
		r.signal(workflows.SignalPromote, `{"actor":"bob","reason":"looked at it"}`)
	case "rolling back":
		r.signal(workflows.SignalRollback, `{"to":`+itoa(served)+`,"reason":"to see","actor":"ann"}`)
	}
	r.killFor(victim, served, candidate)

	want := candidate
	if phase == "rolling back" {
		want = served
	}
	s = r.until("it ends", func(s workflows.JobStatus) bool {
		return s.Phase == workflows.Serving && s.Candidate == nil && (phase != "rolling back" || at(s, workflows.Serving, served))
	})
	m := r.serving()
	if len(m.Ranges) != 1 || m.Ranges[0].Generation != r.generation(s.Current.Version) || m.Canary != nil {
		r.Errorf("%s, %s: served is %+v, the job says version %d", phase, victim, m, s.Current.Version)
	}
	outcome = workflows.OutcomePromoted
	if s.Current.Version != want {
		if s.Current.Version != served || s.Failed == nil || s.Failed.Version != candidate {
			r.Fatalf("%s, %s: neither promoted nor given up: %+v", phase, victim, s)
		}
		outcome = s.Failed.Rollout.Outcome + ": " + strings.Join(s.Failed.Rollout.Reasons, "; ")
	}
	r.Logf("%s, killed %s: %s after %s", phase, victim, outcome, time.Since(began).Round(100*time.Millisecond))
	for version, p := range r.versions {
		if version != s.Current.Version && (s.Previous == nil || version != s.Previous.Version) {
			p.kill()
			delete(r.versions, version)
		}
	}
	return outcome
}

// killFor kills a process and starts it again within two seconds.
func (r *releaseTest) killFor(victim string, served, candidate int) {
	r.Helper()
	away := func(p *process) {
		p.kill()
		select {
		case <-time.After(time.Duration(r.r.Int64N(int64(2 * time.Second)))): // the outage itself
		case <-r.ctx.Done():
			r.Fatal("out of time")
		}
	}
	switch victim {
	case "the servers":
		away(r.stack)
		r.startServers()
	case "the control worker":
		i := slices.IndexFunc(r.controls, func(p *process) bool { return !p.ended() })
		away(r.controls[i])
		r.controls[i] = r.startControl()
	case "the candidate's process", "the served version's process":
		version := served
		if victim == "the candidate's process" {
			version = candidate
		}
		// Where the version has none yet, or no more, nothing is killed.
		if p := r.process(version); p.PID != 0 {
			_ = syscall.Kill(p.PID, syscall.SIGKILL) // it may have ended
		}
	case "the agent":
		away(r.machine)
		r.machine = r.agent("machine")
	}
}

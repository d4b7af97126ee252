package workflows

import (
	"encoding/json"
	"testing"
)

// TestJobOwnsItsVersions has what it serves, or may have to serve, run by agents, however it was started, and shows where nobody
// runs it.
func TestJobOwnsItsVersions(t *testing.T) {
	j := newJobTest(t, 1)
	j.plan.Shards = 3
	owned := func(version, times int) {
		j.Helper()
		j.mu.Lock()
		defer j.mu.Unlock()
		n := 0
		for _, s := range j.sent {
			if s == VersionID("payments", version)+" "+SignalAgents {
				n++
			}
		}
		if n != times {
			t.Errorf("version %d was told %d times that it is owned, expected %d: %q", version, n, times, j.sent)
		}
	}
	const why = "process 0: no agent has room for it"
	j.then(func() { owned(1, 1); j.deploy(2) }) // it was found when the job began
	j.then(func() { j.report(2, Ready, nil) })
	j.then(func() {
		owned(1, 1) // once is enough
		j.SignalWorkflow(SignalUnmanned, UnmannedReport{1, why})
		j.SignalWorkflow(SignalUnmanned, UnmannedReport{7, why})
		j.SignalWorkflow(SignalUnmanned, nil)
	})
	j.then(func() {
		if s := j.expect(Serving, 2); s.Previous.Unmanned != why || s.Current.Unmanned != "" || s.Count != 1 {
			t.Errorf("the job says %+v, %+v", s.Current, s.Previous)
		}
		j.SignalWorkflow(SignalRollback, Request{To: 1})
	})
	j.then(func() {
		owned(1, 1)
		owned(2, 1) // it may have to come back
		if s := j.expect(Serving, 1); s.Current.Unmanned != why {
			t.Errorf("the job says %+v", s.Current)
		}
		j.SignalWorkflow(SignalUnmanned, UnmannedReport{Version: 1})
		j.SignalWorkflow(SignalPause, Request{})
	})
	j.then(func() { owned(1, 1); j.SignalWorkflow(SignalResume, Request{}) })
	j.then(func() {
		owned(1, 2)
		if s := j.expect(Serving, 1); s.Current.Unmanned != "" {
			t.Errorf("the job says %+v", s.Current)
		}
		j.SignalWorkflow(SignalStop, Request{})
	})
	j.then(func() { j.SignalWorkflow(SignalResume, Request{}) })
	j.then(func() {
		j.expect(Serving, 1)
		j.mu.Lock()
		defer j.mu.Unlock()
		var in VersionInput
		if len(j.launched) != 1 || j.launched[0].Signal != SignalAgents || json.Unmarshal(j.launched[0].Input, &in) != nil || !in.Agents || in.Shards != 3 {
			t.Errorf("launched %+v with %+v", j.launched, in)
		}
	})
	j.run()
}

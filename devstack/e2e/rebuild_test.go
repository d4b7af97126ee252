package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

// TestRebuild lets all deliveries come days late, so that the live version loses those that are too old, archives everything
// and deletes most of it from Kafka. A rebuild, with three shards, has the result of a replay of all files. Then the job goes
// back to its first version, whose rollback window is over and which has missed records since, and to the second. A backfill of time that is
// not sealed asks for another rebuild.
func TestRebuild(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	t.Parallel() // most of it is waiting
	l := &lifecycleTest{chaos: newChaos(t, 1, 6*time.Minute)}
	l.prepare(1000)
	text, err := os.ReadFile(l.inputs[1])
	l.must(err)
	spec := string(text)
	for from, to := range map[string]string{
		"rollback_window: 24h":                          "rollback_window: 2s",
		"freeze: ['Fri 18:00-Mon 08:00 Asia/Shanghai']": "freeze: []",
	} {
		if !strings.Contains(spec, from) {
			t.Fatalf("the spec of the environment has no %q any more", from)
		}
		spec = strings.Replace(spec, from, to, 1)
	}
	l.v1 = filepath.Join(l.dir, "pay", "v1.yaml")
	l.must(os.WriteFile(l.v1, []byte(spec), 0o644))
	var want struct{ Digests map[string]string }
	l.must(json.Unmarshal(run(t, l.dir, l.weft, append([]string{"replay", "--out", "result", "--json"}, l.with(l.v1, l.inputs[2:])...)...), &want))

	l.startServers()
	l.env = []string{"WEFT_STACK_FILE=" + l.file()}
	at := withKeys(t, l.at)
	var early, late []string
	for i := 2; i < len(l.inputs); i += 2 {
		if strings.HasPrefix(l.inputs[i+1], "delivery=") {
			late = append(late, l.inputs[i:i+2]...)
		} else {
			early = append(early, l.inputs[i:i+2]...)
		}
	}
	l.command(append([]string{"produce", "-q", "--partitions", "2"}, l.with(l.v1, early)...)...)
	l.command("produce", "-q", "--partitions", "2", "--spec", l.v1, "--input", "delivery="+os.DevNull) // the topic is there
	l.store, err = store.Open(l.ctx, l.at.Store, store.Options{})
	l.must(err)
	t.Cleanup(func() { _ = l.store.Close() }) // only read
	l.launch("control", l.env, l.weft, "worker", "--only", "control,publish,backfill", "--log-format", "json")
	l.worker("1")
	if r := l.deploy(l.v1, 0); r.Outcome != workflows.OutcomePromoted {
		t.Fatalf("the first version: %+v", r)
	}
	l.await("version 1 has read all but the deliveries", func() bool { return l.checkpointed("1") })
	l.command(append([]string{"produce", "-q", "--partitions", "2"}, l.with(l.v1, late)...)...)
	l.await("some deliveries are too late", func() bool { return l.lateEvents("1") > 100 && l.checkpointed("1") })
	live := l.digest()
	if live == want.Digests["sessions"] {
		t.Fatal("no session lacks a late event")
	}

	parsed, err := jobspec.Parse([]byte(spec))
	l.must(err)
	env, err := workers.OpenEnv(l.ctx, at, stack.Kafka, stack.S3)
	l.must(err)
	defer env.Close()
	archiveAllOf(t, l.ctx, env, parsed, 1<<20, false, 2)
	for _, source := range parsed.Sources {
		for p := range int32(2) {
			deleteMost(t, l.ctx, l.at, env.Kafka, source.Topic, p, 10)
		}
	}

	l.worker("2")
	l.command("job", "scale", "payments", "--shards", "3", "--reason", "with what came too late")
	l.await("version 2 is served", func() bool { return l.serves(2) })
	l.await("version 2 has the digest of a replay", func() bool { return l.digest() == want.Digests["sessions"] })
	if n := l.lateEvents("2"); n > 0 {
		t.Errorf("%d events were late for the rebuild", n)
	}

	l.await("version 1 is stopped", func() bool { return len(l.show().Retiring) == 0 && l.show().Previous == nil })
	l.command("job", "rollback", "payments", "--to", "1", "--reason", "to see")
	if s := l.show(); !s.Degraded || s.Current.Version != 2 || s.Phase != workflows.RollingBack {
		t.Errorf("while version 1 catches up: %+v", s)
	}
	l.await("version 1 is served again", func() bool { return l.serves(1) })
	if got := l.digest(); got != live {
		t.Errorf("version 1 came back with %s, it had %s", got, live)
	}
	l.command("job", "rollback", "payments", "--to", "2")
	l.await("version 2 is served again", func() bool { return l.serves(2) })
	if got := l.digest(); got != want.Digests["sessions"] {
		t.Errorf("version 2 came back with %s", got)
	}

	// The live job can still change all of the range, so a backfill that may ask for a rebuild does nothing else.
	l.worker("3")
	var r workflows.Progress
	lines := bytes.Split(bytes.TrimSpace(l.command("backfill", "start", "payments", "--from", "2026-03-01", "--to", "2026-03-05", "--rebuild", "--watch", "--json")), []byte("\n"))
	l.must(json.Unmarshal(lines[len(lines)-1], &r))
	if r.State != workflows.Rebuilding || !strings.Contains(r.Rebuild, "asked of job/payments") {
		t.Errorf("the backfill ended with %+v", r)
	}
	l.await("version 3 is served", func() bool { return l.serves(3) })
	if got := l.digest(); got != want.Digests["sessions"] {
		t.Errorf("the rebuild has %s", got)
	}
	l.command("job", "stop", "payments")
}

func (l *lifecycleTest) show() (s workflows.JobStatus) {
	l.Helper()
	l.must(json.Unmarshal(l.command("job", "show", "payments", "--json"), &s))
	return s
}

// serves tells whether a version is served and nothing is being decided.
func (l *lifecycleTest) serves(version int) bool {
	l.Helper()
	s := l.show()
	if s.Failed != nil {
		l.Fatalf("version %d was not promoted: %v", s.Failed.Version, s.Failed.Rollout.Reasons)
	}
	return s.Current != nil && s.Current.Version == version && s.Phase == workflows.Serving && !s.Degraded
}

// lateEvents counts those of a version.
func (l *lifecycleTest) lateEvents(version string) (n int64) {
	l.Helper()
	list, err := l.store.Generations(l.ctx, "payments")
	l.must(err)
	for _, g := range list {
		if g.Version != version || g.Kind != "live" {
			continue
		}
		counts, err := l.store.CountExceptions(l.ctx, "payments", g.ID, store.Late)
		l.must(err)
		for _, c := range counts {
			n += c.Count
		}
	}
	return n
}

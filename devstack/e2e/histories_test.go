package e2e

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

// TestHistories records histories of the workflows of deployments for workflows/testdata: WEFT_HISTORIES names the folder that
// it writes them to. It goes through what the other tests of deployments do not: a second person, a freeze window, another
// number of shards, a rollback outside its window and one that is given up, a candidate that nobody runs, and a dry run.
func TestHistories(t *testing.T) {
	out := os.Getenv("WEFT_HISTORIES")
	if out == "" {
		t.Skip("it records: WEFT_HISTORIES names the folder")
	}
	l := &lifecycleTest{chaos: newChaos(t, 1, 8*time.Minute)}
	l.prepare(300)
	text, err := os.ReadFile(l.inputs[1])
	l.must(err)
	spec := func(name string, changes ...string) string {
		s := string(text)
		for i := 0; i < len(changes); i += 2 {
			if !strings.Contains(s, changes[i]) {
				t.Fatalf("the spec of the environment has no %q any more", changes[i])
			}
			s = strings.Replace(s, changes[i], changes[i+1], 1)
		}
		file := filepath.Join(l.dir, "pay", name)
		l.must(os.WriteFile(file, []byte(s), 0o644))
		return file
	}
	quick := []string{
		"freeze: ['Fri 18:00-Mon 08:00 Asia/Shanghai']", "",
		"rollback_window: 24h", "rollback_window: 20s",
		"[{weight: 5, hold: 10m}, {weight: 50, hold: 30m}]", "[{weight: 5, hold: 1s}, {weight: 50, hold: 20s}]",
		`match_rate: ">= 0.999", reject_rate: "<= 0.01", lag: "<= 30s", min_sessions: 1000`, `match_rate: ">= 0.9", min_sessions: 1`,
	}
	two := append(quick, "approval: none", "approval: two_person")
	frozen := append(quick[2:], "freeze: ['Fri 18:00-Mon 08:00 Asia/Shanghai']", "freeze: ['Mon 00:00-Sat 00:00', 'Sat 00:00-Mon 00:00']")
	l.startServers()
	l.env = []string{"WEFT_STACK_FILE=" + l.file()}
	l.command(append([]string{"produce", "-q", "--partitions", "2"}, l.with(spec("v1.yaml", quick...), l.inputs[2:])...)...)
	l.launch("control", l.env, l.weft, "worker", "--log-format", "json")
	c, err := workers.DialTemporal(l.ctx, l.at, "test", slog.New(slog.DiscardHandler))
	l.must(err)
	t.Cleanup(c.Close)
	t.Cleanup(func() { saveHistories(t, context.Background(), c, out) }) // of a run that failed, too
	phase := func(want string, version int) {
		t.Helper()
		l.await(want, func() bool {
			var s workflows.JobStatus
			v, err := queryWorkflow(l.ctx, c, workflows.JobID("payments"), workflows.QueryStatus)
			if err != nil || v.Get(&s) != nil { // it may be busy
				return false
			}
			return s.Phase == want && s.Current != nil && s.Current.Version == version
		})
	}
	ask := func(args ...string) { l.command(append([]string{"job"}, args...)...) }
	l.worker("1")
	l.deploy(filepath.Join(l.dir, "pay", "v1.yaml"), 0)
	l.worker("2")
	l.command("deploy", "--spec", spec("v2.yaml", two...), "--dry-run")
	l.command("deploy", "--spec", filepath.Join(l.dir, "pay", "v2.yaml"))
	phase(workflows.Awaiting, 1)
	ask("promote", "payments", "--actor", "bob", "--reason", "looked at it")
	phase(workflows.Serving, 2)
	ask("rollback", "payments", "--to", "1", "--reason", "bad")
	ask("rollback", "payments", "--to", "2", "--reason", "it was not")
	l.worker("3")
	ask("scale", "payments", "--shards", "3", "--actor", "ann", "--reason", "lag")
	phase(workflows.Awaiting, 2)
	ask("promote", "payments", "--actor", "bob")
	phase(workflows.Serving, 3)
	l.await("version 1 is stopped", func() bool { s := l.show(); return s.Previous == nil && len(s.Retiring) == 0 })
	ask("rollback", "payments", "--to", "1", "--reason", "it is old")
	phase(workflows.Serving, 1)
	l.worker("4")
	l.command("deploy", "--spec", spec("v4.yaml", frozen...))
	phase(workflows.Frozen, 1)
	ask("abort", "payments", "--reason", "not this week")
	phase(workflows.Serving, 1)
	ask("rebuild", "payments", "--reason", "nobody runs it")
	phase(workflows.RollingOut, 1)
	ask("pause", "payments")
	ask("resume", "payments")
	l.await("a rollout says that nobody runs its version", func() bool {
		s := l.show()
		return s.Candidate != nil && s.Candidate.Rollout != nil && (strings.Contains(s.Candidate.Rollout.Waits, "nobody polls") || strings.Contains(s.Candidate.Rollout.Waits, "waits for an agent"))
	})
	ask("stop", "payments", "--reason", "the end")
	phase(workflows.Stopped, 1)
	ask("resume", "payments")
	phase(workflows.Serving, 1)
	ask("stop", "payments")
}

// saveHistories writes the history of each workflow of deployments.
func saveHistories(t *testing.T, ctx context.Context, c client.Client, dir string) {
	t.Helper()
	r, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: "WorkflowType IN ('Job', 'Deploy', 'Rollout', 'Version')"})
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.GetExecutions() {
		id, run := e.GetExecution().GetWorkflowId(), e.GetExecution().GetRunId()
		var h historypb.History
		for iter := c.GetWorkflowHistory(ctx, id, run, false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); iter.HasNext(); {
			event, err := iter.Next()
			if err != nil {
				t.Fatal(err)
			}
			h.Events = append(h.Events, event)
		}
		data, err := temporalproto.CustomJSONMarshalOptions{}.Marshal(&h)
		if err != nil || !json.Valid(data) {
			t.Fatalf("%s: %v", id, err)
		}
		name := strings.ReplaceAll(id, "/", "_") + "-" + run[:4] + ".json"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(string(data), "@"+host+":", "@host:")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

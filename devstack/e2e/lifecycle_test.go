package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

// TestDeployments serves a first version, started by hand with a process that then ends, stops one that misclassifies at its gate,
// promotes one that only adds a scenario, and rolls it back by a signal. Then the rest of the records comes: the version that was
// rolled back to has the result of a replay, since an agent runs it now. WEFT_HISTORIES names a folder for the histories of all that.
func TestDeployments(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute and a half")
	}
	t.Parallel() // most of it is waiting
	l, want := newLifecycle(t, 1200, 6*time.Minute)
	l.command("job", "run", "--spec", l.v1, "--detach")
	hand := l.worker("1")
	before := l.replay(l.v1, "result-half", l.halves)
	l.await("version 1 has the digest of a replay of one half", func() bool { return l.digest() == before })
	l.must(hand.signal(syscall.SIGTERM))
	<-hand.done
	l.agent("agent")

	if r := l.deploy(l.v2, 1); r.Outcome != workflows.OutcomeFailed || !strings.Contains(strings.Join(r.Reasons, " "), "match_rate") || r.Rollout.Trial.Differences == "" {
		t.Errorf("the version that misclassifies: %+v", r)
	}
	if got := l.digest(); got != before {
		t.Errorf("a candidate changed what is served: %s, it was %s", got, before)
	}

	watched := l.watchUsers()
	r := l.deploy(l.v3, 0)
	watched()
	if r.Outcome != workflows.OutcomePromoted || r.Rollout.Trial.Sessions < 200 || r.Rollout.Trial.MatchRate != 1 {
		t.Fatalf("the version that adds a scenario: %+v", r)
	}
	if got := l.digest(); got == before {
		t.Error("after the promotion nothing else is served")
	}
	took := l.rollback()
	t.Logf("from the signal until version 1 was served: %s", took.Round(time.Millisecond))
	if took > 5*time.Second { // beside another test; TestRollbackThroughFaults measures it
		t.Errorf("the rollback took %s", took)
	}
	if got := l.digest(); got != before {
		t.Errorf("after the rollback %s is served, before the promotion it was %s", got, before)
	}
	l.await("an agent runs version 1", func() bool { p := l.process(1); return p.State == workflows.Running && p.Agent == "agent" })
	var s workflows.JobStatus
	l.must(json.Unmarshal(l.command("job", "show", "payments", "--json"), &s))
	if s.Phase != workflows.Serving || s.Current.Version != 1 || s.Previous.Version != 3 || !s.RollbackReady || s.Failed.Version != 2 {
		t.Errorf("the job says %+v", s)
	}

	l.command(append([]string{"produce", "-q", "--partitions", "2"}, l.with(l.v1, l.inputs[2:])...)...)
	l.await("version 1 has the digest of a replay", func() bool { return l.digest() == want })
	l.command("job", "stop", "payments", "--reason", "the test is over")
	if out := os.Getenv("WEFT_HISTORIES"); out != "" {
		saveHistories(t, l.ctx, l.client(), out)
	}
	l.audited()
	l.runDocument()
}

type lifecycleTest struct {
	*chaos
	temporal   client.Client // see client
	store      *store.Store
	v1, v2, v3 string // files of specs
	halves     []string
}

// newLifecycle starts the servers with the first half of the records of some purchases, and a control worker. It returns the
// digest of the sessions that a replay of all records gives.
func newLifecycle(t *testing.T, orders int, limit time.Duration) (l *lifecycleTest, digest string) {
	t.Helper()
	l = &lifecycleTest{chaos: newChaos(t, 1, limit)}
	l.prepare(orders)
	l.specs()
	l.halves = l.halve()
	digest = l.replay(l.v1, "result", l.inputs[2:])
	l.startServers()
	l.env = []string{"WEFT_STACK_FILE=" + l.file()}
	l.command(append([]string{"produce", "-q", "--partitions", "2"}, l.with(l.v1, l.halves)...)...)
	st, err := store.Open(l.ctx, l.at.Store, store.Options{})
	l.must(err)
	t.Cleanup(func() { _ = st.Close() }) // only read
	l.store = st
	l.launch("control", l.env, l.weft, "worker", "--log-format", "json")
	return l, digest
}

// replay replays inputs into a folder and returns the digest of the sessions.
func (l *lifecycleTest) replay(spec, folder string, inputs []string) string {
	l.Helper()
	var got struct{ Digests map[string]string }
	out := run(l.T, l.dir, l.weft, append([]string{"replay", "--out", folder, "--format", "jsonl", "--json"}, l.with(spec, inputs)...)...)
	l.must(json.Unmarshal(out, &got))
	return got.Digests["sessions"]
}

// specs writes three versions: one with quick gates, one that calls every paid purchase undelivered, and one with a scenario
// more, which it says.
func (l *lifecycleTest) specs() {
	text, err := os.ReadFile(l.inputs[1])
	l.must(err)
	write := func(name string, changes ...string) (file string) {
		s := string(text)
		for i := 0; i < len(changes); i += 2 {
			if !strings.Contains(s, changes[i]) {
				l.Fatalf("the spec of the environment has no %q any more", changes[i])
			}
			s = strings.Replace(s, changes[i], changes[i+1], 1)
		}
		file = filepath.Join(l.dir, "pay", name)
		l.must(os.WriteFile(file, []byte(s), 0o644))
		return file
	}
	quick := []string{
		"freeze: ['Fri 18:00-Mon 08:00 Asia/Shanghai']", "",
		"[{weight: 5, hold: 10m}, {weight: 50, hold: 30m}]", "[{weight: 5, hold: 1s}, {weight: 50, hold: 1s}]",
		`reject_rate: "<= 0.01", lag: "<= 30s", min_sessions: 1000`, `reject_rate: "<= 0.2", lag: "<= 30s", min_sessions: 200, own: matched > 100`,
	}
	l.v1 = write("v1.yaml", quick...)
	l.v2 = write("v2.yaml", append(quick, `when: step("paid").count > 0 && step("delivered").count == 0`, `when: step("paid").count > 0`)...)
	l.v3 = write("v3.yaml", append(quick, "scenarios:\n", "expect: [long]\nscenarios:\n  - name: long\n    when: duration > duration(\"1m\")\n")...)
}

// halve writes the first half of each file and returns the flags that name them.
func (l *lifecycleTest) halve() (flags []string) {
	l.must(os.Mkdir(filepath.Join(l.dir, "half"), 0o755))
	for _, s := range paygen.Sources() {
		text, err := os.ReadFile(filepath.Join(l.dir, "pay", s[1]))
		l.must(err)
		lines := strings.SplitAfter(string(text), "\n")
		file := filepath.Join(l.dir, "half", s[1])
		l.must(os.WriteFile(file, []byte(strings.Join(lines[:len(lines)/2], "")), 0o644))
		flags = append(flags, "--input", s[0]+"="+file)
	}
	return flags
}

func (l *lifecycleTest) with(spec string, inputs []string) []string {
	return append([]string{"--spec", spec}, inputs...)
}

// agent starts the agent of a machine, which runs the versions' processes. At the end of the test it ends them.
func (l *lifecycleTest) agent(name string) *process {
	p := l.launch(name, l.env, l.weft, "agent", "--name", name, "--work", filepath.Join(l.dir, name))
	l.Cleanup(func() {
		_ = p.signal(syscall.SIGINT) // it may have ended
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			l.Errorf("the agent does not end its processes: %s", p.tail())
		}
	})
	return p
}

func (l *lifecycleTest) worker(version string) *process {
	return l.launch("worker-"+version, l.env, l.weft, "worker", "--job", "payments", "--version", version)
}

// deploy deploys a spec and returns the outcome. The command has an exit code.
func (l *lifecycleTest) deploy(spec string, code int) (r workflows.DeployResult) {
	l.Helper()
	cmd := exec.CommandContext(l.ctx, l.weft, "deploy", "--spec", spec, "--message", filepath.Base(spec), "--watch", "--json")
	cmd.Env = append(os.Environ(), l.env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	began := time.Now()
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == code {
		err = nil
	}
	if err != nil || json.Unmarshal(out, &r) != nil {
		l.Fatalf("deploy %s: %v\n%s%s", spec, err, out, stderr.String())
	}
	l.Logf("%s: %s after %s", filepath.Base(spec), r.Outcome, time.Since(began).Round(100*time.Millisecond))
	return r
}

// watchUsers asks for some users again and again, until the function that it returns is called. Each must have all sessions at
// all times, from one version, and a part of them must have met the candidate before everybody did.
func (l *lifecycleTest) watchUsers() (done func()) {
	l.Helper()
	page, err := l.store.Sessions(l.ctx, store.SessionQuery{Scope: store.Scope{Job: "payments"}, Page: store.Page{Limit: 400}})
	l.must(err)
	sessions := map[string]int{} // of a user
	for _, row := range page.Items {
		var body struct{ User string }
		l.must(json.Unmarshal(row.Body, &body))
		if body.User != "" && len(sessions) < 60 {
			sessions[body.User] = 0
		}
	}
	ask := func(user string) store.Result[store.Row] {
		r, err := l.store.Sessions(l.ctx, store.SessionQuery{Scope: store.Scope{Job: "payments"}, User: []byte(user), Page: store.Page{Limit: store.PageRowsMax}})
		if err != nil {
			l.Error(err)
		}
		return r
	}
	for user := range sessions {
		sessions[user] = len(ask(user).Items)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	rounds, most, weights := 0, 0, map[int]bool{}
	go func() {
		defer close(ended)
		for {
			led := 0
			for user, n := range sessions {
				r := ask(user)
				from := map[int64]bool{}
				for _, row := range r.Items {
					from[row.Generation] = true
				}
				if len(r.Items) != n || len(from) != 1 {
					l.Errorf("%s has %d sessions of %d versions, and had %d", user, len(r.Items), len(from), n)
				}
				if r.Canary != nil {
					led++
					weights[r.Canary.Weight] = true
				}
			}
			rounds, most = rounds+1, max(most, led)
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	return func() {
		l.Helper()
		close(stop)
		<-ended
		l.Logf("%d users were asked for %d times; at most %d were led to the candidate, at weights %v", len(sessions), rounds, most, weights)
		if !weights[50] || most < len(sessions)/5 || most > len(sessions)*4/5 {
			l.Errorf("of %d users %d were led to the candidate, at weights %v; the last step is 50 %%", len(sessions), most, weights)
		}
	}
}

// digest is that of the sessions that are served.
func (l *lifecycleTest) digest() string {
	l.Helper()
	d, err := l.store.Digest(l.ctx, store.Scope{Job: "payments"}, 0, 0)
	l.must(err)
	return d.String()
}

// checkpointed tells whether a version has read all there is, and its digest stays: what is read is written soon.
func (l *lifecycleTest) checkpointed(version string) bool {
	l.Helper()
	for line := range strings.Lines(string(l.command("job", "status", "payments", "--json"))) {
		var s struct {
			Workflow string
			Runs     []shardState
		}
		l.must(json.Unmarshal([]byte(line), &s))
		if s.Workflow == "version/payments/"+version && len(s.Runs) == 1 && s.Runs[0].Beat.Records > 0 && s.Runs[0].Beat.Lag == 0 {
			return true
		}
	}
	return false
}

// await waits until something is so.
func (l *lifecycleTest) await(what string, so func() bool) {
	l.Helper()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(90 * time.Second); !so(); {
		select {
		case <-tick.C:
		case <-limit:
			l.Fatalf("after 90 s not yet: %s; %s", what, l.command("job", "status", "payments", "--json"))
		}
	}
}

// queryWorkflow queries a workflow. A worker that has to rebuild it for that may meet a history that has got further meanwhile, which it
// takes for a damaged one (the SDK's issue 755); asked again it answers.
func queryWorkflow(ctx context.Context, t client.Client, id, query string, args ...any) (v converter.EncodedValue, err error) {
	for range 5 {
		if v, err = t.QueryWorkflow(ctx, id, "", query, args...); err == nil || !strings.Contains(err.Error(), "[TMPRL1100]") {
			break
		}
	}
	return v, err
}

// client returns the test's connection to Temporal.
func (l *lifecycleTest) client() client.Client {
	l.Helper()
	if l.temporal == nil {
		var err error
		l.temporal, err = workers.DialTemporal(l.ctx, l.at, "test", slog.New(slog.DiscardHandler))
		l.must(err)
		l.Cleanup(l.temporal.Close)
	}
	return l.temporal
}

// rollback signals the job and returns how long it took until the first version was served.
func (l *lifecycleTest) rollback() time.Duration {
	l.Helper()
	t := l.client()
	m, err := l.store.ServingMap(l.ctx, "payments")
	l.must(err)
	before, began := m.Epoch, time.Now()
	signal := func(t client.Client, arg any) {
		l.must(t.SignalWorkflow(l.ctx, workflows.JobID("payments"), "", workflows.SignalRollback, arg))
	}
	signal(t, map[string]any{"to": 1, "reason": "it was a test", "request_id": "back", "actor": "ann"})
	for m.Epoch == before {
		m, err = l.store.ServingMap(l.ctx, "payments")
		l.must(err)
	}
	took := time.Since(began)
	// The same again, and what nobody understands, change nothing.
	signal(t, map[string]any{"to": 1, "request_id": "back"})
	signal(t, "x")
	signal(t, map[string]any{"to": 2, "request_id": "never"})
	return took
}

// runDocument gives the commands of docs/lifecycle.md to a job that runs: their JSON through Temporal's API, and where
// WEFT_TEST_TCTL names a tctl, as they stand. Whatever is decided about each, none is misunderstood.
func (l *lifecycleTest) runDocument() {
	l.Helper()
	commands := documented(l.T, "../../docs/lifecycle.md", "tctl")
	if len(commands) < 14 {
		l.Fatalf("the document has %d commands", len(commands))
	}
	by := map[string]func(args []string){"api": l.callAPI}
	if tctl := os.Getenv("WEFT_TEST_TCTL"); tctl != "" {
		by["tctl"] = func(args []string) {
			out, err := exec.CommandContext(l.ctx, tctl, append([]string{"--address", l.at.Temporal}, args...)...).CombinedOutput()
			if err != nil {
				l.Errorf("tctl %q: %v\n%s", args, err, out)
			}
		}
	}
	status := func() (s workflows.JobStatus) {
		l.must(json.Unmarshal(l.command("job", "show", "payments", "--json"), &s))
		return s
	}
	for name, call := range by {
		l.command("job", "resume", "payments")
		l.await("the job runs again", func() bool { return status().Phase == workflows.Serving })
		before, signals := status().Count, 0
		for _, args := range commands {
			if args[1] == "signal" {
				signals++
			}
			if args[1] != "observe" { // it would wait for the end
				call(args)
			}
		}
		l.await("everything is decided", func() bool { return status().Waiting == 0 })
		if s := status(); s.Count != before || signals < 7 {
			l.Errorf("%s: of %d signals of the document %d were not understood: %+v", name, signals, s.Count-before, s.Rejected)
		}
		l.await("nothing is rolled out any more", func() bool { return status().Candidate == nil })
		l.command("job", "stop", "payments")
		l.await("the job is stopped", func() bool { return status().Phase == workflows.Stopped })
	}
}

// callAPI does what a command of tctl does.
func (l *lifecycleTest) callAPI(args []string) {
	l.Helper()
	flags := flagsOf(args)
	t := l.client()
	switch args[1] {
	case "start":
		_, err := t.ExecuteWorkflow(l.ctx, client.StartWorkflowOptions{ID: flags["--workflow_id"], TaskQueue: flags["--taskqueue"]}, flags["--workflow_type"],
			json.RawMessage(flags["--input"]))
		l.must(err)
	case "signal":
		l.must(t.SignalWorkflow(l.ctx, flags["-w"], "", flags["-n"], json.RawMessage(flags["-i"])))
	case "query":
		var input []any
		if text := flags["-i"]; text != "" {
			input = append(input, json.RawMessage(text))
		}
		_, err := queryWorkflow(l.ctx, t, flags["-w"], flags["-qt"], input...)
		l.must(err)
	case "list":
		_, err := t.ListWorkflow(l.ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: flags["-q"]})
		l.must(err)
	default:
		l.Errorf("the test does not know %q", args)
	}
}

// audited expects every decision in the store's audit log, the rejected ones included.
func (l *lifecycleTest) audited() {
	l.Helper()
	want := map[string]int{"job.survey.done": 1, "job.deploy.accepted": 2, "job.promoted.done": 1, "job.failed.done": 1, "job.rollback.done": 1, "job.rollback.rejected": 3, "job.stop.done": 1}
	l.await("all decisions are in the audit log", func() bool {
		log, err := l.store.AuditLog(l.ctx, "payments", store.Page{Limit: store.PageRowsMax})
		l.must(err)
		got := map[string]int{}
		for _, e := range log.Items {
			got[e.Action]++
		}
		for action, n := range want {
			if got[action] != n {
				return false
			}
		}
		return true
	})
}

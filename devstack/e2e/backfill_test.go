package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/devstack"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

// backfillTest is a job whose stream has been read and archived to its end, with a worker for backfills.
type backfillTest struct {
	*chaos
	st       *stream
	temporal client.Client
	worker   *process
	want     map[string]string // digests of a replay
	first    time.Time         // day of the first record
}

// sessionLine is replaced by rules that link within hours, so that most of ten days is sealed.
var sessionLine = regexp.MustCompile(`(?m)^session: .*$`)

const shortSessions = "session: {gap: 30m, gaps: {order: 2h, txn: 2h, receipt: 1h, delivery: 1h}, settle: 10m, max_span: 10h, retention: 96h}"

func newBackfillTest(t *testing.T) *backfillTest {
	b := &backfillTest{chaos: newChaos(t, 7, 9*time.Minute), first: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
	b.prepare(3000)
	spec, err := os.ReadFile(b.inputs[1])
	b.must(err)
	spec = sessionLine.ReplaceAll(spec, []byte(shortSessions))
	b.must(os.WriteFile(b.inputs[1], spec, 0o600))
	var replay struct{ Digests map[string]string }
	b.must(json.Unmarshal(run(t, b.dir, b.weft, append([]string{"replay", "--out", "result", "--json"}, b.inputs...)...), &replay))
	b.want = replay.Digests

	b.startStack()
	run(t, b.dir, b.weft, append([]string{"produce", "--kafka", b.at.Kafka, "--partitions", "3", "-q"}, b.inputs...)...)
	b.command("job", "run", "--spec", b.inputs[1], "--detach")
	control := b.launch("control", b.env, b.weft, "worker", "--only", "control", "--log-format", "json")
	shard := b.startWorker()
	b.archive(spec, 256<<10)
	b.st = openStream(t, b.ctx, b.at, b.inputs[1])
	t.Cleanup(func() { _ = b.st.store.Close() }) // only read
	b.await("the shard has read all", func() bool { return b.digest(b.st.generation) == b.want["sessions"]+" "+b.want["reports"] })
	b.must(shard.signal(15))
	<-shard.done
	if control.ended() {
		t.Fatal(control.tail())
	}
	b.dial()
	return b
}

func (b *backfillTest) dial() {
	b.Helper()
	var err error
	b.temporal, err = workers.DialTemporal(b.ctx, b.at, "test", slog.New(slog.DiscardHandler))
	b.must(err)
	b.Cleanup(b.temporal.Close)
}

// startBackfills starts a process for backfills.
func (b *backfillTest) startBackfills() {
	b.worker = b.launch("backfills", b.env, b.weft, "worker", "--only", "backfill", "--log-format", "json", "--work", b.dir)
}

// archive archives all topics in files of so many bytes.
func (b *backfillTest) archive(text []byte, fileBytes int64) {
	b.Helper()
	env, err := workers.OpenEnv(b.ctx, withKeys(b.T, b.at), stack.Kafka, stack.S3)
	b.must(err)
	defer env.Close()
	spec, err := jobspec.Parse(text)
	b.must(err)
	archiveAll(b.T, b.ctx, env, spec, fileBytes, false)
}

// digest returns the digests of sessions and reports of a generation, or of what is served (0).
func (b *backfillTest) digest(generation int64) string {
	b.Helper()
	scope := store.Scope{Job: "payments", Generation: generation}
	sessions, err := b.st.store.Digest(b.ctx, scope, 0, 0)
	b.must(err)
	reports, err := b.st.store.ReportDigest(b.ctx, scope, store.NewEncoder(&b.st.job.Config, b.st.meta), 0, 0)
	b.must(err)
	return sessions.String() + " " + reports.String()
}

// await waits until something is so.
func (b *backfillTest) await(what string, so func() bool) {
	b.Helper()
	began := time.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(90 * time.Second); !so(); {
		select {
		case <-tick.C:
		case <-limit:
			b.Fatalf("after 90 s not yet: %s", what)
		}
	}
	b.Logf("%s after %s", what, time.Since(began).Round(100*time.Millisecond))
}

// start starts a workflow with the JSON that a person would type.
func (b *backfillTest) start(kind, id, input string) client.WorkflowRun {
	b.Helper()
	r, err := b.temporal.ExecuteWorkflow(b.ctx, client.StartWorkflowOptions{
		ID: id, TaskQueue: activities.Queue, WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL, WorkflowExecutionErrorWhenAlreadyStarted: true,
	}, kind, json.RawMessage(input))
	b.must(err)
	return r
}

func (b *backfillTest) result(r client.WorkflowRun) (out workflows.BackfillResult) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	if err := r.Get(ctx, &out); err != nil {
		b.Fatalf("%s: %v\n%+v\n%s", r.GetID(), err, b.progress(r.GetID()), b.worker.tail())
	}
	return out
}

func (b *backfillTest) progress(id string) (p workflows.Progress) {
	b.Helper()
	v, err := queryWorkflow(b.ctx, b.temporal, id, workflows.QueryProgress)
	b.must(err)
	b.must(v.Get(&p))
	return p
}

func (b *backfillTest) signal(id, signal, input string) {
	b.Helper()
	b.must(b.temporal.SignalWorkflow(b.ctx, id, "", signal, json.RawMessage(input)))
}

// keys lists objects.
func (b *backfillTest) keys(prefix string) (list []string) {
	b.Helper()
	for info, err := range b.st.objects.List(b.ctx, prefix, "") {
		b.must(err)
		list = append(list, info.Key)
	}
	return list
}

// expectClean checks that nothing staged is left, and no range held.
func (b *backfillTest) expectClean() {
	b.Helper()
	if left := b.keys("backfill/"); len(left) > 0 {
		b.Errorf("left behind: %v", left)
	}
	if len(b.keys("leases/")) > 0 {
		data, _, err := b.st.objects.Get(b.ctx, "leases/payments.json")
		b.must(err)
		if strings.TrimSpace(string(data)) != "[]" {
			b.Errorf("held: %s", data)
		}
	}
}

// TestBackfill computes ten days anew while its worker is killed, compares and publishes them over what the stream made, and
// expects the result of a replay, whatever is served from where.
func TestBackfill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	b := newBackfillTest(t)
	b.startBackfills()
	all := `"job":"payments","from":"2026-02-28T00:00:00Z","to":"2026-03-20T00:00:00Z","slice":"12h"`

	// Dry run, with kills.
	id := "backfill/payments/20260228T000000Z_20260320T000000Z"
	run := b.start(workflows.BackfillType, id, "{"+all+`,"mode":"dry_run","parallelism":3,"throttle":20000}`)
	for kill := range 3 {
		b.await(fmt.Sprintf("slices after kill %d", kill), func() bool { return b.progress(id).Done >= 2*(kill+1) })
		b.worker.kill()
		b.startBackfills()
	}
	dry := b.result(run)
	t.Logf("dry run: %+v", dry)
	if dry.Outcome != workflows.Checked || dry.Verified.Sums["sessions"] != b.want["sessions"] || dry.Verified.Sums["reports"] != b.want["reports"] {
		t.Errorf("result %+v %+v, want %v", dry, dry.Verified, b.want)
	}
	b.expectClean()
	if got := b.digest(0); got != b.want["sessions"]+" "+b.want["reports"] {
		t.Errorf("after a dry run the digest served is %s", got)
	}

	// Compare: nothing differs.
	compared := b.result(b.start(workflows.ReconcileType, "reconcile/payments/2026-03-02", `{"job":"payments","day":"2026-03-02","repair":true}`))
	if c := compared.Compared; compared.Outcome != workflows.Compared || c.Differences() != 0 || c.Same == 0 || len(b.keys(c.Report)) != 1 {
		t.Errorf("compared %+v, %+v", compared, c)
	}

	// Publish over the live output. What the shard can still change is clipped.
	id = "backfill/payments/20260228T000000Z_20260321T000000Z"
	published := b.result(b.start(workflows.BackfillType, id, `{"job":"payments","from":"2026-02-28T00:00:00Z","to":"2026-03-21T00:00:00Z","slice":"12h","actor":"ann","reason":"late records","request_id":"r1"}`))
	t.Logf("published: %+v, %+v", published, published.Published)
	if published.Outcome != workflows.Published || published.Clipped == "" || published.Published.Sessions == 0 {
		t.Errorf("published %+v, %+v", published, published.Published)
	}
	if got := b.digest(0); got != b.want["sessions"]+" "+b.want["reports"] {
		t.Errorf("after publishing the digest served is %s, want %v", got, b.want)
	}
	m, err := b.st.store.ServingMap(b.ctx, "payments")
	b.must(err)
	if len(m.Ranges) < 2 {
		t.Errorf("served from %+v", m)
	}
	b.expectClean()

	b.cancelWhileItRuns()
	b.runSchedule()
	b.runDocument()
	b.runTemporalCLI()
}

// cancelWhileItRuns steers a backfill with slices that run, and cancels it: nothing that is served changes, and nothing is
// left behind.
func (b *backfillTest) cancelWhileItRuns() {
	before := b.digest(0)
	id := "backfill/payments/20260301T000000Z_20260305T000000Z"
	run := b.start(workflows.BackfillType, id, `{"job":"payments","from":"2026-03-01T00:00:00Z","to":"2026-03-05T00:00:00Z","slice":"6h","parallelism":1,"throttle":4000}`)
	b.await("a slice is done", func() bool { return b.progress(id).Done > 0 })

	other := b.start(workflows.BackfillType, "backfill/payments/overlapping", `{"job":"payments","from":"2026-03-04T23:00:00Z","to":"2026-03-06T00:00:00Z"}`)
	var app *temporal.ApplicationError
	if err := other.Get(b.ctx, nil); !errors.As(err, &app) || app.Type() != workflows.Refused || !strings.Contains(err.Error(), id) {
		b.Errorf("an overlapping one ended with %v", err)
	}

	b.signal(id, workflows.SignalPause, `{}`)
	b.await("it is paused", func() bool { p := b.progress(id); return p.State == workflows.Paused && p.Running == 0 })
	for _, garbage := range []string{`"x"`, `null`, `{"parallelism":0}`, `{"parallelism":2,"speed":3}`} {
		b.signal(id, workflows.SignalParallelism, garbage)
	}
	b.signal(id, workflows.SignalParallelism, `{"parallelism":2}`)
	b.signal(id, workflows.SignalResume, `{}`)
	done := b.progress(id).Done
	b.await("it goes on", func() bool { p := b.progress(id); return p.Done > done && p.Parallelism == 2 && p.Count == 4 })
	b.await("a slice runs", func() bool { return b.progress(id).Running > 0 })
	began := time.Now()
	b.signal(id, workflows.SignalCancel, `{"actor":"ann","reason":"wrong days"}`)
	if r := b.result(run); r.Outcome != workflows.Canceled {
		b.Errorf("it ended as %+v", r)
	}
	b.Logf("canceled in %s", time.Since(began).Round(100*time.Millisecond))
	if after := b.digest(0); after != before {
		b.Errorf("what is served changed from %s to %s", before, after)
	}
	b.expectClean()
}

// runSchedule makes a schedule by its command, lets it act, and expects the window to be counted from when that was due.
func (b *backfillTest) runSchedule() {
	const day = 24 * time.Hour
	lag := time.Now().Truncate(day).Sub(b.first.Add(2 * day)) // so that the window is about the second day
	b.command("schedule", "create", "payments", "--every", "24h", "--window", "24h", "--lag", lag.String(), "--reason", "audit")
	var listed struct {
		Schedule, Job, Workflow string
		Next                    []time.Time
	}
	b.must(json.Unmarshal(b.command("schedule", "list", "--json"), &listed))
	if listed.Schedule != "reconcile/payments" || listed.Job != "payments" || listed.Workflow != "Reconcile" || len(listed.Next) == 0 {
		b.Errorf("listed %+v", listed)
	}
	h := b.temporal.ScheduleClient().GetHandle(b.ctx, listed.Schedule)
	d, err := h.Describe(b.ctx)
	b.must(err)
	if d.Schedule.Policy.Overlap != enums.SCHEDULE_OVERLAP_POLICY_BUFFER_ALL || d.Schedule.Policy.CatchupWindow != 30*day {
		b.Errorf("its policy is %+v", d.Schedule.Policy)
	}
	due := time.Now().UTC().Truncate(day)
	b.must(h.Backfill(b.ctx, client.ScheduleBackfillOptions{Backfill: []client.ScheduleBackfill{
		{Start: due.Add(-day - time.Minute), End: due.Add(time.Minute), Overlap: enums.SCHEDULE_OVERLAP_POLICY_BUFFER_ALL},
	}}))
	for n := range 2 {
		at := due.Add(time.Duration(n-1) * day)
		id := "reconcile/payments/scheduled-" + at.Format(time.RFC3339)
		b.await(id+" has started", func() bool {
			_, err := b.temporal.DescribeWorkflowExecution(b.ctx, id, "")
			return err == nil
		})
		r := b.result(b.temporal.GetWorkflow(b.ctx, id, ""))
		want := activities.Range{From: at.Add(-lag - day).UTC(), To: at.Add(-lag).UTC()}
		if r.Outcome != workflows.Compared || r.Range.To != want.To || n == 1 && r.Range != want || r.Compared.Differences() != 0 {
			b.Errorf("%s: %+v, %+v, want %v", id, r, r.Compared, want)
		}
	}
	b.command("schedule", "delete", listed.Schedule)
}

// documented finds the commands of a document: the lines of its code that start with the name of a program.
func documented(t *testing.T, file, program string) (commands [][]string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`)
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		if rest, ok := strings.CutPrefix(line, program+" "); ok {
			var args []string
			for _, w := range word.FindAllString(rest, -1) {
				if w[0] == '\'' || w[0] == '"' {
					w = w[1 : len(w)-1]
				}
				args = append(args, w)
			}
			commands = append(commands, args)
		}
	}
	return commands
}

// runDocument gives the commands of docs/backfill.md, in their order: their JSON through Temporal's API, and where
// WEFT_TEST_TCTL names a tctl, as they stand.
func (b *backfillTest) runDocument() {
	commands := documented(b.T, "../../docs/backfill.md", "tctl")
	if len(commands) < 10 {
		b.Fatalf("the document has %d commands", len(commands))
	}
	by := map[string]func(args []string){"api": b.callAPI}
	if tctl := os.Getenv("WEFT_TEST_TCTL"); tctl != "" {
		by["tctl"] = func(args []string) {
			out, err := exec.CommandContext(b.ctx, tctl, append([]string{"--address", b.at.Temporal}, args...)...).CombinedOutput()
			if err != nil {
				b.Fatalf("tctl %q: %v\n%s", args, err, out)
			}
		}
	}
	for name, call := range by {
		b.worker.kill() // so that the backfill waits for it, whatever it is told
		var ids []string
		for _, args := range commands {
			call(args)
			if flags := flagsOf(args); args[1] == "start" {
				ids = append(ids, flags["--workflow_id"])
			}
		}
		if p := b.progress(ids[0]); p.Parallelism != 4 || p.Count != 1 || p.State != workflows.Canceling && p.State != workflows.Cleaning {
			b.Errorf("%s: after all of them it is %+v", name, p) // retry_failed was rejected, as nothing had failed; half is left to live jobs
		}
		b.startBackfills()
		for i, want := range []string{workflows.Canceled, workflows.Compared, ""} {
			var r workflows.BackfillResult
			err := b.temporal.GetWorkflow(b.ctx, ids[i], "").Get(b.ctx, &r)
			if want == "" { // the last day is beyond the archive
				var app *temporal.ApplicationError
				if !errors.As(err, &app) || app.Type() != activities.User {
					b.Errorf("%s: %s ended with %v", name, ids[i], err)
				}
			} else if err != nil || r.Outcome != want {
				b.Errorf("%s: %s ended as %+v, %v", name, ids[i], r, err)
			}
		}
		b.expectClean()
	}
}

// runTemporalCLI gives the commands for the temporal CLI as they stand, where WEFT_TEST_TEMPORAL names one.
func (b *backfillTest) runTemporalCLI() {
	cli := os.Getenv("WEFT_TEST_TEMPORAL")
	commands := documented(b.T, "../../docs/backfill.md", "temporal")
	if len(commands) < 4 {
		b.Fatalf("the document has %d commands", len(commands))
	}
	if cli == "" {
		return
	}
	b.worker.kill()
	id := ""
	for _, args := range commands {
		if i := slices.Index(args, "--workflow-id"); args[1] == "start" && i > 0 {
			id = args[i+1]
		}
		out, err := exec.CommandContext(b.ctx, cli, append(args, "--address", b.at.Temporal)...).CombinedOutput()
		if err != nil {
			b.Fatalf("temporal %q: %v\n%s", args, err, out)
		}
	}
	if p := b.progress(id); p.State != workflows.Paused && p.State != workflows.Pausing && p.State != workflows.Planning {
		b.Errorf("after all of them it is %+v", p)
	}
	b.must(b.temporal.ScheduleClient().GetHandle(b.ctx, "reconcile/payments").Delete(b.ctx))
	b.signal(id, workflows.SignalCancel, "{}")
	b.startBackfills()
	if r := b.result(b.temporal.GetWorkflow(b.ctx, id, "")); r.Outcome != workflows.Canceled {
		b.Errorf("it ended as %+v", r)
	}
}

func flagsOf(args []string) map[string]string {
	flags := map[string]string{}
	for i := 2; i+1 < len(args); i += 2 {
		flags[args[i]] = args[i+1]
	}
	return flags
}

// callAPI does what a command of tctl does.
func (b *backfillTest) callAPI(args []string) {
	b.Helper()
	flags := flagsOf(args)
	id := flags["-w"]
	schedules := b.temporal.ScheduleClient()
	switch args[1] {
	case "create":
		window, err := time.ParseDuration(flags["--catchup_window"])
		b.must(err)
		policy, err := enums.ScheduleOverlapPolicyFromString(flags["--overlap_policy"])
		b.must(err)
		_, err = schedules.Create(b.ctx, client.ScheduleOptions{
			ID: flags["--schedule_id"], Spec: client.ScheduleSpec{CronExpressions: []string{flags["--cron"]}}, Overlap: policy, CatchupWindow: window,
			Action: &client.ScheduleWorkflowAction{ID: flags["--workflow_id"], Workflow: flags["--workflow_type"], TaskQueue: flags["--taskqueue"],
				Args: []any{json.RawMessage(flags["--input"])}},
		})
		b.must(err)
	case "describe":
		if args[0] == "schedule" {
			d, err := schedules.GetHandle(b.ctx, flags["--schedule_id"]).Describe(b.ctx)
			b.must(err)
			if d.Schedule.Policy.Overlap != enums.SCHEDULE_OVERLAP_POLICY_BUFFER_ALL || len(d.Info.NextActionTimes) == 0 {
				b.Errorf("the schedule is %+v, %+v", d.Schedule.Policy, d.Info)
			}
		}
	case "delete":
		b.must(schedules.GetHandle(b.ctx, flags["--schedule_id"]).Delete(b.ctx))
	case "start":
		if flags["--taskqueue"] != activities.Queue {
			b.Errorf("%q has another queue", args)
		}
		b.start(flags["--workflow_type"], flags["--workflow_id"], flags["--input"])
	case "signal":
		b.signal(id, flags["-n"], cmp.Or(flags["--input"], "{}")) // the SDK cannot leave it out
	case "query":
		var input []any
		if text := flags["--input"]; text != "" {
			input = append(input, json.RawMessage(text))
		}
		_, err := queryWorkflow(b.ctx, b.temporal, id, flags["-qt"], input...)
		b.must(err)
	}
}

// yearOfSlices has the activities of a backfill of a year, which do nothing.
type yearOfSlices struct{ ran atomic.Int64 }

func (y *yearOfSlices) PlanBackfill(_ context.Context, in activities.PlanInput) (activities.Planned, error) {
	return activities.Planned{Version: 1, Plan: "backfill/payments/" + in.Backfill.ID + "/plan.json", Range: in.Range, Chunks: slices.Repeat([]int{365}, 24)}, nil
}

func (y *yearOfSlices) RunSlice(_ context.Context, in activities.SliceInput) (activities.SliceDone, error) {
	from := time.Date(2026, 1, 1, in.Chunk*365+in.Slice, 0, 0, 0, time.UTC)
	return activities.SliceDone{
		Range: activities.Range{From: from, To: from.Add(time.Hour)}, Rows: 1e9, Sessions: y.ran.Add(1), Bytes: 1e10, Seconds: 1,
		Digest: strings.Repeat("d", 64), Attempt: 1,
	}, nil
}

func (y *yearOfSlices) VerifyBackfill(context.Context, activities.VerifyInput) (activities.Verified, error) {
	return activities.Verified{}, nil
}

func (y *yearOfSlices) RecordDecisions(context.Context, activities.RecordInput) error { return nil }

func (y *yearOfSlices) DropBackfill(context.Context, activities.DropInput) (activities.Dropped, error) {
	return activities.Dropped{}, nil
}

// TestYearOfBackfill runs 8,760 slices that do nothing through a real server, and looks at the histories.
func TestYearOfBackfill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := devstack.Start(ctx, devstack.Config{Data: t.TempDir()})
	must(err)
	defer s.Stop(context.WithoutCancel(ctx))
	c, err := workers.DialTemporal(ctx, s.Addresses(), "test", slog.New(slog.DiscardHandler))
	must(err)
	defer c.Close()
	var y yearOfSlices
	control := worker.New(c, activities.Queue, worker.Options{})
	control.RegisterWorkflowWithOptions(workflows.Backfill, workflow.RegisterOptions{Name: workflows.BackfillType})
	control.RegisterActivityWithOptions(y.RecordDecisions, activity.RegisterOptions{Name: "RecordDecisions"})
	must(control.Start())
	defer control.Stop()
	reads := worker.New(c, activities.BackfillQueue, worker.Options{DisableWorkflowWorker: true})
	for name, f := range map[string]any{"PlanBackfill": y.PlanBackfill, "RunSlice": y.RunSlice, "VerifyBackfill": y.VerifyBackfill, "DropBackfill": y.DropBackfill} {
		reads.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	must(reads.Start())
	defer reads.Stop()

	began := time.Now()
	run, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "backfill/payments/year", TaskQueue: activities.Queue}, workflows.BackfillType,
		json.RawMessage(`{"job":"payments","from":"2026-01-01T00:00:00Z","to":"2027-01-01T00:00:00Z","mode":"dry_run","parallelism":24}`))
	must(err)
	first := run.GetRunID()
	var r workflows.BackfillResult
	must(run.Get(ctx, &r))
	took := time.Since(began)
	if r.Slices != 8760 || y.ran.Load() != 8760 || r.Rows != 8760e9 {
		t.Errorf("result %+v, %d slices ran", r, y.ran.Load())
	}
	runs, events, bytes, carried := 0, int64(0), int64(0), 0
	for id := first; id != ""; runs++ {
		d, err := c.DescribeWorkflowExecution(ctx, run.GetID(), id)
		must(err)
		events = max(events, d.GetWorkflowExecutionInfo().GetHistoryLength())
		bytes = max(bytes, d.GetWorkflowExecutionInfo().GetHistorySizeBytes())
		id = ""
		for h := c.GetWorkflowHistory(ctx, run.GetID(), d.GetWorkflowExecutionInfo().GetExecution().GetRunId(), false, enums.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT); h.HasNext(); {
			e, err := h.Next()
			must(err)
			if again := e.GetWorkflowExecutionContinuedAsNewEventAttributes(); again != nil {
				id = again.GetNewExecutionRunId()
				carried = max(carried, again.GetInput().Size())
			}
		}
	}
	t.Logf("%d runs in %s; at most %d events and %d bytes of history, %d bytes carried over", runs, took.Round(time.Second), events, bytes, carried)
	if runs < 40 || runs > 60 || events > 3000 || bytes > 1<<20 || carried > 64<<10 {
		t.Error("the histories grow")
	}
}

package e2e

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workflows"
)

// garbage are inputs that no signal and no workflow understands, by what they are.
func garbage() map[string]*common.Payload {
	payload := func(encoding, data string) *common.Payload {
		return &common.Payload{Metadata: map[string][]byte{converter.MetadataEncoding: []byte(encoding)}, Data: []byte(data)}
	}
	list := map[string]*common.Payload{
		"null of the SDK": payload(converter.MetadataEncodingNil, ""), "bytes": payload(converter.MetadataEncodingBinary, "\x00\xff{}"),
		"another encoding": payload("json/protobuf", "{}"), "no encoding": {Data: []byte("{}")},
		"large": payload(converter.MetadataEncodingJSON, `"`+strings.Repeat("x", 100_000)+`"`),
	}
	for _, text := range []string{`"x"`, `null`, `7`, `[]`, `[{"to":1}]`, `true`, `{`, `{} {}`, `{"to":"1"}`, `{"nonsense":1}`, `{"job":7}`, "\xff\xfe", ``} {
		list[text] = payload(converter.MetadataEncodingJSON, text)
	}
	return list
}

// TestGarbage sends what nobody understands to a workflow of every type, through the server: each of them lives on as it was
// and has it in its rejections, the job also in the audit log. What is started with garbage ends with an error that shows an
// input; what does not exist is not created by a signal.
func TestGarbage(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel() // most of it is waiting
	r := &releaseTest{lifecycleTest: &lifecycleTest{chaos: newChaos(t, 1, 4*time.Minute)}}
	r.prepare(100)
	spec := r.spec("v1.yaml")
	r.connect(spec, r.inputs[2:])
	r.controls = append(r.controls, r.startControl())

	// Nobody runs shards or backfills, so all of these wait.
	r.last = 1
	r.ask(spec, "--request-id", "one")
	r.until("version 1 is served", func(s workflows.JobStatus) bool { return at(s, workflows.Serving, 1) })
	r.last = 2
	r.ask(r.spec("v2.yaml", another("two")...), "--request-id", "two")
	_, err := r.temporal.ExecuteWorkflow(r.ctx, client.StartWorkflowOptions{ID: "backfill/payments/x", TaskQueue: activities.Queue}, workflows.BackfillType,
		json.RawMessage(`{"job":"payments","from":"2026-03-01T00:00:00Z","to":"2026-03-02T00:00:00Z"}`))
	r.must(err)
	r.until("version 2 waits for a process", func(s workflows.JobStatus) bool {
		return s.Candidate != nil && s.Candidate.Rollout != nil && s.Candidate.Rollout.Waits != ""
	})
	orders := []string{workflows.SignalStop, workflows.SignalPause, workflows.SignalResume, workflows.SignalRetry}
	all := map[string][]string{
		workflows.JobID("payments"): {workflows.SignalRollback, workflows.SignalPromote, workflows.SignalAbort, workflows.SignalPause, workflows.SignalResume,
			workflows.SignalStop, workflows.SignalScale, workflows.SignalRebuild, workflows.SignalDeploy, workflows.SignalRollout, workflows.SignalUnmanned},
		workflows.RolloutID("payments", 2):  {workflows.SignalPause, workflows.SignalResume, workflows.SignalPromote, workflows.SignalAbort, workflows.SignalSettle},
		workflows.VersionID("payments", 1):  append(orders, workflows.SignalShard, workflows.SignalProcess, workflows.SignalAgents),
		workflows.ShardID("payments", 1, 0): orders,
		"deploy/two":                        {workflows.SignalNews},
		"backfill/payments/x":               {workflows.SignalPause, workflows.SignalResume, workflows.SignalCancel, workflows.SignalParallelism, workflows.SignalRetryFailed},
	}
	before := map[string]waiting{}
	for id := range all {
		r.await(id+" runs", func() bool { before[id] = r.waiting(id); return before[id].running })
	}
	sent := map[string]int{}
	for id, signals := range all {
		for _, signal := range append(signals, "nonsense", "rollbak", strings.Repeat("long", 200)) {
			for name, p := range garbage() {
				err := r.temporal.SignalWorkflow(r.ctx, id, "", signal, converter.NewRawValue(p))
				if err != nil {
					t.Fatalf("%s to %s: %v", name, id, err)
				}
				sent[id]++
			}
		}
	}
	for id, n := range sent {
		var now waiting
		r.await(id+" has rejected all of them", func() bool { now = r.waiting(id); return now.Count >= n })
		if now.Count != n || !now.running || now.State != before[id].State || now.Phase != before[id].Phase || len(now.Rejected) == 0 {
			t.Errorf("%s was sent %d and is %+v, it was %+v", id, n, now, before[id])
		}
	}
	r.auditedGarbage(sent[workflows.JobID("payments")])
	r.startWithGarbage()
	r.nobody()

	// It still does what it is told.
	r.command("job", "abort", "payments", "--reason", "the test is over")
	r.until("version 2 is given up", func(s workflows.JobStatus) bool { return at(s, workflows.Serving, 1) && s.Candidate == nil })
	var result workflows.DeployResult
	r.must(r.temporal.GetWorkflow(r.ctx, "deploy/two", "").Get(r.ctx, &result))
	if result.Outcome != workflows.OutcomeAborted {
		t.Errorf("the deployment ended as %+v", result)
	}
	r.finish()
}

// waiting is what statuses of all types have in common.
type waiting struct {
	State, Phase string
	workflows.Rejections
	running bool
}

func (r *releaseTest) waiting(id string) (w waiting) {
	r.Helper()
	query := workflows.QueryStatus
	if strings.HasPrefix(id, "backfill/") {
		query = workflows.QueryProgress
	}
	d, err := r.temporal.DescribeWorkflowExecution(r.ctx, id, "")
	if err != nil {
		return w
	}
	w.running = d.GetWorkflowExecutionInfo().GetStatus() == enums.WORKFLOW_EXECUTION_STATUS_RUNNING
	v, err := queryWorkflow(r.ctx, r.temporal, id, query)
	if err == nil {
		err = v.Get(&w)
	}
	if err != nil {
		r.Logf("%s: %v", id, err)
		w.running = false
	}
	return w
}

// auditedGarbage expects every signal that was rejected in the audit log: what could not be told one by one is counted.
func (r *releaseTest) auditedGarbage(n int) {
	r.Helper()
	r.await("the audit log has what was rejected", func() bool {
		found := 0
		for page := (store.Page{Limit: store.PageRowsMax}); ; {
			log, err := r.store.AuditLog(r.ctx, "payments", page)
			r.must(err)
			for _, e := range log.Items {
				var d struct{ Text string }
				if e.Action == "job.signals.rejected" {
					r.must(json.Unmarshal([]byte(e.Detail), &d))
					var more int
					r.must(json.Unmarshal([]byte(strings.Fields(d.Text)[0]), &more))
					found += more
				} else if strings.HasSuffix(e.Action, ".rejected") {
					found++
				}
			}
			if page.After = log.Next; page.After == "" {
				break
			}
		}
		return found == n
	})
}

// startWithGarbage starts workflows with inputs that they cannot read.
func (r *releaseTest) startWithGarbage() {
	r.Helper()
	for _, kind := range []string{workflows.JobType, workflows.DeployType, workflows.RolloutType, workflows.VersionType, workflows.ShardType, workflows.BackfillType,
		workflows.ReconcileType, workflows.ArchiveType, workflows.PublisherType} {
		runs := map[string]client.WorkflowRun{}
		for name, p := range garbage() {
			run, err := r.temporal.ExecuteWorkflow(r.ctx, client.StartWorkflowOptions{TaskQueue: activities.Queue}, kind, converter.NewRawValue(p))
			r.must(err)
			runs[name] = run
		}
		var err error
		runs["nothing"], err = r.temporal.ExecuteWorkflow(r.ctx, client.StartWorkflowOptions{TaskQueue: activities.Queue}, kind)
		r.must(err)
		for name, run := range runs {
			var app *temporal.ApplicationError
			err := run.Get(r.ctx, nil)
			if !errors.As(err, &app) || app.Type() != activities.User || !strings.Contains(app.Message(), "looks like {") {
				r.Errorf("%s started with %s ended with %v", kind, name, err)
			}
		}
	}
}

// nobody signals jobs that do not exist.
func (r *releaseTest) nobody() {
	r.Helper()
	for _, id := range []string{workflows.JobID("nobody"), workflows.RolloutID("payments", 7), workflows.VersionID("nobody", 1)} {
		err := r.temporal.SignalWorkflow(r.ctx, id, "", workflows.SignalRollback, json.RawMessage(`{"to":1}`))
		var none *serviceerror.NotFound
		if !errors.As(err, &none) {
			r.Errorf("a signal to %s: %v", id, err)
		}
		if _, err := r.temporal.DescribeWorkflowExecution(r.ctx, id, ""); !errors.As(err, &none) {
			r.Errorf("after a signal %s is there: %v", id, err)
		}
	}
	cmd := exec.CommandContext(r.ctx, r.weft, "job", "rollback", "nobody", "--to", "1")
	cmd.Env = append(cmd.Environ(), r.env...)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "nobody") {
		r.Errorf("a rollback of a job that does not exist: %v, %s", err, out)
	}
}

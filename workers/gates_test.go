package workers

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/examples"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workflows"
)

// edit is one replacement in the text of a spec, which must be there once.
type edit struct{ old, new string }

// supportSource adds a source to a spec.
var supportSource = edit{"sources:\n", "sources:\n  support:\n    topic: pay.support\n    format: json\n    time: {field: ts, layout: unix_ms}\n" +
	"    step: {value: ticket}\n    keys: {order: order}\n    fields: {game: game}\n"}

// paySpec is the example with the settings of this test, and some edits.
func paySpec(t *testing.T, edits ...edit) string {
	t.Helper()
	text := examples.Payments()
	for _, e := range append([]edit{
		{"steps: [{weight: 5, hold: 10m}, {weight: 50, hold: 30m}]", "steps: [{weight: 50, hold: 15s}]"},
		{"freeze: ['Fri 18:00-Mon 08:00 Asia/Shanghai']\n", ""},
		{`reject_rate: "<= 0.01"`, `reject_rate: "<= 0.02"`},
	}, edits...) {
		if strings.Count(text, e.old) != 1 {
			t.Fatalf("the spec has %q %d times", e.old, strings.Count(text, e.old))
		}
		text = strings.Replace(text, e.old, e.new, 1)
	}
	return text
}

// payStart is when the records of payTopics begin, and payTail when those begin that let time pass.
func payStart() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) }

func payTail() time.Time { return payStart().Add(time.Hour) }

// payTopics are some minutes of a payment environment, with what follows an hour later, so that all sessions before it are decided.
func payTopics(t *testing.T, records int) *topics {
	t.Helper()
	x := newTopics()
	spec := examples.Payments()
	for part, n := range []int{records, records / 20} {
		live, err := paygen.NewLive(paygen.LiveConfig{Rate: 100, Start: []time.Time{payStart(), payTail()}[part], Seed: 1, First: int64(part) * 1_000_000})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			r := live.Next()
			name := paygen.Sources()[r.Source][0]
			if !strings.Contains(spec, "topic: pay."+name+"\n") {
				t.Fatalf("no topic of source %s", name)
			}
			x.add(of("pay."+name, 0), streaming.Raw{Timestamp: event.Micros(r.Arrival), Value: r.Text})
			if i%200 == 0 { // somebody's heartbeats stand between the orders
				x.add(of("pay.orders", 0), streaming.Raw{Timestamp: event.Micros(r.Arrival), Value: []byte(`{"event":"HEARTBEAT","host":"orders-7"}`)})
			}
		}
	}
	// Refunds are too rare to come by themselves, and a partition that is silent would hold the watermark.
	for _, r := range slices.Clone(x.parts[of("pay.refunds", 0)]) {
		text := regexp.MustCompile(`"ts":[0-9]+`).ReplaceAll(r.Value, fmt.Appendf(nil, `"ts":%d`, payTail().Unix()+5))
		x.add(of("pay.refunds", 0), streaming.Raw{Timestamp: event.Micros(payTail().UnixMicro()), Value: text})
	}
	// A topic that version 1 does not read: tickets about some of the orders.
	for i, r := range x.parts[of("pay.orders", 0)] {
		m := regexp.MustCompile(`"ts":([0-9]+),.*"app":"(\w+)","order":\{"id":"(\d+)"`).FindSubmatch(r.Value)
		if i%7 == 0 && m != nil {
			x.add(of("pay.support", 0), streaming.Raw{Timestamp: r.Timestamp, Value: fmt.Appendf(nil, `{"ts":%s,"game":"%s","order":"%s"}`, m[1], m[2], m[3])})
		}
	}
	x.add(of("pay.support", 0), streaming.Raw{Timestamp: event.Micros(payTail().UnixMicro()), Value: fmt.Appendf(nil, `{"ts":%d,"game":"g","order":"1"}`, payTail().UnixMilli()+5000)})
	return x
}

// versionOf stands for Temporal: it knows the workflow of one version and what is pending of its parts.
type versionOf struct {
	activities.Starter
	status  any // answer of its query
	phase   string
	pending map[string]*workflowpb.PendingActivityInfo // by workflow
}

func (v *versionOf) DescribeWorkflowExecution(_ context.Context, id, _ string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	p, err := converter.GetDefaultDataConverter().ToPayload(v.phase)
	if err != nil {
		return nil, err
	}
	r := &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{
		Status:           enums.WORKFLOW_EXECUTION_STATUS_RUNNING,
		SearchAttributes: &commonpb.SearchAttributes{IndexedFields: map[string]*commonpb.Payload{"WeftPhase": p}},
	}}
	if a := v.pending[id]; a != nil {
		r.PendingActivities = append(r.PendingActivities, a)
	}
	return r, nil
}

func (v *versionOf) QueryWorkflow(context.Context, string, string, string, ...any) (converter.EncodedValue, error) {
	return answer{v.status}, nil
}

func (v *versionOf) ExecuteWorkflow(context.Context, client.StartWorkflowOptions, any, ...any) (client.WorkflowRun, error) {
	return nil, nil
}

func (v *versionOf) SignalWithStartWorkflow(context.Context, string, string, any, client.StartWorkflowOptions, any, ...any) (client.WorkflowRun, error) {
	return nil, nil
}

func (v *versionOf) DescribeTaskQueue(context.Context, string, enums.TaskQueueType) (*workflowservice.DescribeTaskQueueResponse, error) {
	return &workflowservice.DescribeTaskQueueResponse{}, nil // nobody polls
}

// answer is the answer of a query.
type answer struct{ value any }

func (a answer) HasValue() bool { return true }

func (a answer) Get(into any) error {
	p, err := converter.GetDefaultDataConverter().ToPayload(a.value)
	if err != nil {
		return err
	}
	return converter.GetDefaultDataConverter().FromPayload(p, into)
}

// withRun gives the objects of rollouts the run that the test environment has not.
type withRun struct {
	*Stage
	run string
}

func (w withRun) Standing(ctx context.Context, in activities.StandingInput) (activities.Standing, error) {
	in.Key = strings.Replace(in.Key, "//", "/"+w.run+"/", 1)
	return w.Stage.Standing(ctx, in)
}

func (w withRun) Compare(ctx context.Context, in activities.TrialInput, progress func()) (activities.Trial, error) {
	in.Key = strings.Replace(in.Key, "//", "/"+w.run+"/", 1)
	return w.Stage.Compare(ctx, in, progress)
}

// tried is a candidate in its rollout.
type tried struct {
	*Stage
	*versionOf
	env     *testsuite.TestWorkflowEnvironment
	topics  *topics
	version int
}

// roll runs the rollout of a version against version 1, which is served.
func (s *Stage) roll(t *testing.T, x *topics, version int, run string, prepare func(*tried)) workflows.RolloutReport {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	c := &tried{Stage: s, env: suite.NewTestWorkflowEnvironment(), topics: x, version: version,
		versionOf: &versionOf{phase: workflows.Running, status: workflows.VersionStatus{State: workflows.Running, VersionHealth: activities.VersionHealth{Shards: make([]workflows.ShardReport, 1)}}}}
	c.env.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: workflows.RolloutID("payments", version), TaskQueue: activities.Queue})
	c.env.SetTestTimeout(time.Minute)
	l := &activities.Lifecycle{Host: &activities.Host{Classify: Classify}, Stage: withRun{s, run}, Starter: c.versionOf}
	for name, f := range map[string]any{"RegisterVersion": l.RegisterVersion, "SetCanary": l.SetCanary, "CompareStanding": l.CompareStanding,
		"CompareVersions": l.CompareVersions, "Launch": l.Launch} {
		c.env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	c.env.RegisterWorkflowWithOptions(workflows.Rollout, workflow.RegisterOptions{Name: workflows.RolloutType})
	c.env.RegisterWorkflowWithOptions(func(ctx workflow.Context, _ converter.RawValue) error {
		workflow.GetSignalChannel(ctx, workflows.SignalStop).ReceiveWithTimeout(ctx, 100*time.Hour, nil)
		return nil
	}, workflow.RegisterOptions{Name: workflows.VersionType})
	c.env.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, mock.Anything, mock.Anything).Return(nil).Maybe()
	for at := time.Minute; at < 4*time.Hour; at += time.Minute { // Job promotes it when it is ready
		c.env.RegisterDelayedCallback(func() {
			var s workflows.RolloutStatus
			v, err := c.env.QueryWorkflow(workflows.QueryStatus)
			if err == nil {
				err = v.Get(&s)
			}
			if err != nil {
				t.Error(err)
			}
			if s.Phase == workflows.Ready {
				c.env.SignalWorkflow(workflows.SignalSettle, workflows.Settlement{Outcome: workflows.OutcomePromoted})
			}
		}, at)
	}
	if prepare != nil {
		prepare(c)
	}
	c.env.ExecuteWorkflow(workflows.RolloutType, workflows.RolloutInput{Job: "payments", Version: version, Current: 1})
	var r workflows.RolloutReport
	if err := c.env.GetWorkflowResult(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

// stream lets time go on in the served version only, from a moment of the rollout on: what a candidate that cannot keep pace sees.
func (c *tried) stream(t *testing.T, from, until time.Duration) {
	generation, err := c.Versions.generation(t.Context(), "payments", 1)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Versions.Env.Store.Progress(t.Context(), store.Scope{Job: "payments", Generation: generation})
	if err != nil {
		t.Fatal(err)
	}
	mark := p.Watermark
	const key = "checkpoints/payments/1/0/manifest.json"
	before, _, err := c.Versions.Env.Objects.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // for the cases after it
		if err := c.Versions.Env.Objects.Delete(context.Background(), key); err != nil {
			t.Error(err)
		}
		if _, err := c.Versions.Env.Objects.PutIfAbsent(context.Background(), key, before, "before"); err != nil {
			t.Error(err)
		}
	})
	for at := from; at < until; at += time.Minute {
		c.env.RegisterDelayedCallback(func() {
			mark += event.Micros(time.Minute.Microseconds())
			c.ahead(t, mark)
		}, at)
	}
}

// ahead lets the served version be further than any candidate.
func (c *tried) ahead(t *testing.T, watermark event.Micros) {
	c.Stage.seen(t, 1, watermark)
	c.Stage.checkpoint(t, 1, 0, 1<<40, 1<<40, 0)
}

// crashes makes the version one whose process or shard has an end that repeats itself.
func crashes(part, kind, message string) func(*tried) {
	return func(c *tried) {
		c.env.RegisterDelayedCallback(func() {
			problem := workflows.Problem{Type: kind, Message: message, At: c.env.Now()}
			report := map[string]any{"state": workflows.CrashLooping, "attempts": 10, "error": problem}
			c.phase = workflows.CrashLooping
			c.status = map[string]any{"state": workflows.CrashLooping, part: []any{report}}
		}, 3*time.Minute)
	}
}

// dies makes the process of the version one that dies after it has run for a while, over and over.
func dies(message string) func(*tried) {
	return func(c *tried) {
		c.status = map[string]any{"state": workflows.Running, "shards": []any{map[string]any{"state": workflows.Running}},
			"processes": []any{map[string]any{"state": workflows.Running}}}
		a := &workflowpb.PendingActivityInfo{Attempt: 1}
		c.pending = map[string]*workflowpb.PendingActivityInfo{fmt.Sprintf("process/payments/%d/0", c.version): a}
		for i := range 9 {
			c.env.RegisterDelayedCallback(func() {
				a.Attempt++
				a.LastFailure = &failurepb.Failure{Message: message, FailureInfo: &failurepb.Failure_ApplicationFailureInfo{
					ApplicationFailureInfo: &failurepb.ApplicationFailureInfo{Type: activities.Internal}}}
			}, time.Duration(i+1)*4*time.Minute)
		}
	}
}

type candidate struct {
	name    string
	edits   []edit
	shards  int          // 0: one
	part    int          // percent of the topics that it has read; 0: all
	prepare func(*tried) // before its rollout
	streams bool         // the served version gets on during the canary, and it does not
	keeps   string       // the part in which the sessions differ that were kept
	reasons []string     // none: it is promoted
	check   func(activities.Trial) string
}

func badCandidates() []candidate {
	return []candidate{
		{name: "links wrongly", edits: []edit{{"keys: {order: order, delivery: delivery}", "keys: {delivery: delivery}"}},
			reasons: []string{"match_rate is 0.", "wanted >= 0.999", "only in the candidate", "in their events", "weft job compare payments --version"}},
		{name: "misclassifies one in a hundred", edits: []edit{{`when: step("paid").count > 0 && step("delivered").count > 0` + "\n",
			`when: step("paid").count > 0 && step("delivered").count > 0 && !(has(fields.user) && (fields.user.endsWith("07") || fields.user.endsWith("53")))` + "\n"}},
			keeps:   "scenarios",
			reasons: []string{"match_rate is 0.99", "wanted >= 0.999", "in their scenarios", "delivered holds for"},
			check: func(r activities.Trial) string {
				if r.MatchRate < 0.98 || r.OnlyCandidate+r.OnlyCurrent != 0 {
					return "it is not one in a hundred"
				}
				return ""
			}},
		{name: "rejects more", edits: []edit{{"score=(?P<score>[0-9]+)", "score=(?P<score>[0-9])"}},
			reasons: []string{"reject_rate is 0.", "wanted <= 0.02", "records are rejected, most of them of source risk (syntax)"}},
		{name: "another source, which is not declared", edits: []edit{supportSource}, reasons: []string{"match_rate is 0.", "in their events"}},
		{name: "falls behind", edits: []edit{{"{weight: 50, hold: 15s}", "{weight: 50, hold: 1h}"}}, streams: true,
			reasons: []string{"falls behind: it is", "behind version 1, wanted is at most 30s, and was further behind than that for 5m0s"}},
		{name: "leaks memory", prepare: dies("the process was killed at its memory limit of 1 GiB"),
			reasons: []string{"has died 8 times since its rollout began", "process 0: the process was killed at its memory limit of 1 GiB"}},
		{name: "does not fit its memory", prepare: crashes("processes", activities.Internal, "the process was killed at its memory limit of 1 GiB"),
			reasons: []string{"has died 10 times since its rollout began; the last time: process 0: the process was killed at its memory limit of 1 GiB"}},
		{name: "panics", prepare: crashes("shards", activities.Internal, "panic: index out of range [7] with length 3"),
			reasons: []string{"has died 10 times since its rollout began; the last time: shard 0: panic: index out of range [7] with length 3"}},
		{name: "never catches up", part: 60,
			reasons: []string{"does not catch up: it is", "records from where version 1 was when the rollout began, and was no nearer for 15m0s"}},
	}
}

func goodCandidates() []candidate {
	return []candidate{
		{name: "another comment and other spaces", edits: []edit{{"# Money and goods.", "# What happened to money and goods."}, {"rollback_window: 24h", "rollback_window:   24h"}}},
		{name: "another severity", edits: []edit{{"  - name: client_crash\n    when: step(\"client_crash\").count > 0\n", "  - name: client_crash\n    when: step(\"client_crash\").count > 0\n    severity: warning\n"}}},
		{name: "the same rule in other words", edits: []edit{{`when: step("refunded").count > 0` + "\n", `when: "!(step('refunded').count < 1)"` + "\n"}}},
		{name: "another scenario, which is declared", edits: []edit{{"scenarios:\n", "scenarios:\n  - {name: paid, when: step(\"paid\").count > 0}\n"}, {"approval: none\n", "approval: none\nexpect: [paid]\n"}}},
		{name: "another report", edits: []edit{{"reports:\n", "reports:\n  - {name: users, every: 1h, by: [user], measures: {sessions: count()}}\n"}}},
		{name: "another field", edits: []edit{{"      order_currency: order.currency\n", "      order_currency: order.currency\n      order_item: order.item\n"}}},
		{name: "sources in another order", edits: []edit{{"sources:\n", "sources:\n" + gatewaySource + "\n"}, {"\n" + gatewaySource + "\n  delivery:", "\n  delivery:"}}},
		{name: "a longer retention", edits: []edit{{"retention: 24h", "retention: 72h"}}},
		{name: "more shards", shards: 3},
		{name: "a watermark that follows closer", edits: []edit{{"watermark: {delay: 30s", "watermark: {delay: 5s"}}},
		{name: "stricter gates, more steps", edits: []edit{{"{weight: 50, hold: 15s}", "{weight: 50, hold: 30s}, {weight: 100, hold: 15s}"}, {`match_rate: ">= 0.999"`, `match_rate: ">= 1", scenario_shift: "<= 0"`}}},
		{name: "another source, which is declared", edits: []edit{supportSource, {"approval: none\n", "approval: none\nexpect: [sessions]\n"}}},
		{name: "a fix that rejects less", edits: []edit{{"    topic: pay.orders\n    format: json\n", "    topic: pay.orders\n    format: json\n    where: {event: [ORDER_CREATED, ORDER_CANCELLED, ORDER_EXPIRED, ORDER_COMPLETED]}\n"}},
			check: func(r activities.Trial) string {
				if r.Rejects == 0 || r.Matched != r.Sessions {
					return "it should reject less and lose nothing"
				}
				return ""
			}},
	}
}

const gatewaySource = `  gateway:                      # the identifiers stand in the arguments of the request
    topic: pay.gateway
    format: nginx
    log_format: '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_user_agent" rt=$request_time rid=$request_id'
    where: {request_path: [/pay/create, /iap/verify]}
    time: time_local
    step: {field: status, map: {'200': gateway_ok, '502': gateway_5xx}}
    keys: {order: arg_order, receipt: arg_receipt}
    fields: {game: arg_app, user: arg_uid}
    dedupe: [request_id]
`

// Every kind of bad candidate is stopped with a reason that says what is wrong, and every kind that is as good or better is
// promoted. The versions are run by real shards over the same records, and compared where their results stand.
func TestGates(t *testing.T) {
	x := payTopics(t, 10_500)
	s := newStage(t, paySpec(t))
	s.Topics = func() Topics { return x }
	past := event.Micros(payTail().Add(-time.Minute).UnixMicro())
	s.run(t, x, 1, 1, past)
	s.must(t, activities.SwitchInput{Version: 1, From: int64(event.MinTime), RequestID: "first"}, activities.Switched{Epoch: 1})
	version := 0 // where a case says nothing of its spec, it has that of the case before
	for i, c := range append(goodCandidates(), badCandidates()...) {
		t.Run(c.name, func(t *testing.T) {
			if c.edits != nil || c.shards > 0 || c.part > 0 {
				p, err := s.Register(t.Context(), activities.RegisterInput{Spec: paySpec(t, c.edits...) + "# " + c.name + "\n", Author: "ann"})
				if err != nil {
					t.Fatal(err)
				}
				if version = p.Version; c.part > 0 {
					x.ends = map[streaming.Partition]int64{}
					for part, list := range x.parts {
						x.ends[part] = int64(len(list) * c.part / 100)
					}
					s.run(t, x, version, 1, 0)
					x.ends = nil
				} else {
					s.run(t, x, version, max(c.shards, 1), past)
				}
			}
			r := s.roll(t, x, version, fmt.Sprintf("run-%d", i), func(tr *tried) {
				if c.prepare != nil {
					c.prepare(tr)
				}
				if c.streams {
					tr.stream(t, 3*time.Minute, time.Hour)
				}
			})
			c.judge(t, &r)
			if c.keeps != "" {
				s.keptAs(t, version, &r, c.keeps)
			}
		})
	}
}

// keptAs fails the test unless the differences of a version were kept, as sessions of both that differ in one part.
func (s *Stage) keptAs(t *testing.T, version int, r *workflows.RolloutReport, part string) {
	t.Helper()
	key, err := FindDifferences(t.Context(), s.Versions.Env.Objects, "payments", version)
	if err != nil || key != r.Trial.Differences {
		t.Fatalf("found %q, %v; the rollout says %q", key, err, r.Trial.Differences)
	}
	d, err := ReadDifferences(t.Context(), s.Versions.Env.Objects, key)
	if err != nil || d.Current != 1 || d.Candidate != version || int64(len(d.Sessions)) != r.Trial.Sessions-r.Trial.Matched || d.Result.Summary != r.Trial.Summary {
		t.Fatalf("%+v, %v", d, err)
	}
	for _, x := range d.Sessions {
		var both [2]map[string]json.RawMessage
		for i, body := range []json.RawMessage{x.CurrentSession, x.CandidateSession} {
			if err := json.Unmarshal(body, &both[i]); err != nil {
				t.Fatalf("session %s: %v", x.ID, err)
			}
			if string(both[i]["id"]) != strconv.Quote(x.ID) {
				t.Errorf("session %s is kept as %s", x.ID, both[i]["id"])
			}
		}
		if !slices.Equal(x.What, []string{part}) || string(both[0][part]) == string(both[1][part]) || string(both[0]["events"]) != string(both[1]["events"]) {
			t.Errorf("session %s differs in %q: %s and %s", x.ID, x.What, x.CurrentSession, x.CandidateSession)
		}
	}
}

func (c *candidate) judge(t *testing.T, r *workflows.RolloutReport) {
	t.Helper()
	trial := activities.Trial{}
	if r.Trial != nil {
		trial = *r.Trial
	}
	text, err := json.Marshal(trial)
	if err != nil {
		t.Fatal(err)
	}
	reasons := strings.Join(r.Reasons, "; ")
	switch {
	case len(c.reasons) == 0 && (r.Outcome != workflows.OutcomePromoted || trial.Sessions < 1000):
		t.Errorf("it is %s for %q; %s", r.Outcome, reasons, text)
	case len(c.reasons) > 0 && r.Outcome != workflows.OutcomeFailed:
		t.Errorf("it is %s; %s", r.Outcome, text)
	}
	for _, want := range c.reasons {
		if !strings.Contains(reasons, want) {
			t.Errorf("%q does not say %q", reasons, want)
		}
	}
	if c.check != nil {
		if wrong := c.check(trial); wrong != "" {
			t.Errorf("%s: %s", wrong, text)
		}
	}
	t.Logf("%s %q", r.Outcome, reasons)
}

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

// releaseTest rolls versions of a job out and back while things are measured or killed. It runs control workers that do nothing
// else, and a process for each version.
type releaseTest struct {
	*lifecycleTest
	temporal client.Client
	controls []*process
	versions map[int]*process
	requests int
	last     int           // version that was deployed
	rested   map[int]int64 // by version: its last checkpoint when it was first seen to have read all
	agents   bool          // an agent runs the versions; otherwise runVersion does
	machine  *process      // the agent
}

// begin starts the servers with the records of some inputs, and serves version 1 of a spec, which has read them.
func (r *releaseTest) begin(spec string, inputs []string, controls int, roles string) {
	r.Helper()
	r.connect(spec, inputs)
	for range controls {
		r.controls = append(r.controls, r.startControl())
	}
	if roles != "" {
		r.launch(roles, r.env, r.weft, "worker", "--only", roles)
	}
	if got := r.release(spec, "--skip-canary"); got != 1 {
		r.Fatalf("the first version has the number %d", got)
	}
	r.until("version 1 is served", func(s workflows.JobStatus) bool { return at(s, workflows.Serving, 1) })
	r.await("version 1 has a checkpoint of all there is", func() bool { return r.caughtUp(1) })
}

// connect starts the servers with the records of some inputs.
func (r *releaseTest) connect(spec string, inputs []string) {
	r.Helper()
	r.startServers()
	r.env = []string{"WEFT_STACK_FILE=" + r.file()}
	r.command(append([]string{"produce", "-q", "--partitions", "2"}, r.with(spec, inputs)...)...)
	st, err := store.Open(r.ctx, r.at.Store, store.Options{})
	r.must(err)
	r.Cleanup(func() { _ = st.Close() }) // only read
	r.store = st
	r.temporal, err = workers.DialTemporal(r.ctx, r.at, "test", slog.New(slog.DiscardHandler))
	r.must(err)
	r.Cleanup(r.temporal.Close)
	r.versions, r.rested = map[int]*process{}, map[int]int64{}
	if r.agents {
		r.machine = r.agent("machine")
	}
}

// finish stops the job and its processes while its servers still run, and looks back at what it decided.
func (r *releaseTest) finish() {
	r.Helper()
	r.command("job", "stop", "payments")
	r.expectSameDecisions()
	if r.machine != nil {
		r.must(r.machine.signal(syscall.SIGINT))
		<-r.machine.done
	}
}

// expectSameDecisions fails the test where a control worker found the job to decide otherwise than its history says.
func (r *releaseTest) expectSameDecisions() {
	for h := r.temporal.GetWorkflowHistory(r.ctx, workflows.JobID("payments"), "", false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); h.HasNext(); {
		e, err := h.Next()
		if err != nil {
			r.Errorf("read the job's history: %v", err)
			return
		}
		if failed := e.GetWorkflowTaskFailedEventAttributes(); failed != nil {
			r.Errorf("a step of the job failed: %s, %s", failed.GetCause(), failed.GetFailure().GetMessage())
		}
	}
}

// at tells whether a job is in a phase and serves a version.
func at(s workflows.JobStatus, phase string, version int) bool {
	return s.Phase == phase && s.Current != nil && s.Current.Version == version
}

func (r *releaseTest) startControl() *process {
	return r.launch("control", r.env, r.weft, "worker", "--only", "control", "--log-format", "json")
}

// working waits until a worker works.
func (r *releaseTest) working(p *process) {
	r.Helper()
	r.await(p.name+" works", func() bool {
		text, err := os.ReadFile(p.log)
		r.must(err)
		if p.ended() {
			r.Fatalf("%s has ended: %s", p.name, text)
		}
		return strings.Contains(string(text), `"msg":"working"`)
	})
}

// runVersion starts the process of a version; more are variables of its environment.
func (r *releaseTest) runVersion(version int, more ...string) {
	if r.machine != nil { // its agent does
		return
	}
	r.versions[version] = r.launch("worker-"+strconv.Itoa(version), append(slices.Clone(r.env), more...), r.weft, "worker", "--log-format", "json",
		"--job", "payments", "--version", strconv.Itoa(version))
}

// spec writes the spec of the environment with quick gates and some changes, each an old and a new text.
func (r *releaseTest) spec(name string, changes ...string) (file string) {
	r.Helper()
	text, err := os.ReadFile(r.inputs[1])
	r.must(err)
	s := string(text)
	changes = append([]string{
		"freeze: ['Fri 18:00-Mon 08:00 Asia/Shanghai']", "", "idle_after: 1m", "idle_after: 5s", // an hour of events passes in a second
		`reject_rate: "<= 0.01", lag: "<= 30s", min_sessions: 1000`, `reject_rate: "<= 0.2", lag: "<= 48h", min_sessions: 200`,
	}, changes...)
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(s, changes[i]) {
			r.Fatalf("the spec of the environment has no %q any more", changes[i])
		}
		s = strings.Replace(s, changes[i], changes[i+1], 1)
	}
	file = filepath.Join(r.dir, "pay", name)
	r.must(os.WriteFile(file, []byte(s), 0o644))
	return file
}

// steps is a change of a spec: how long the steps of its canary are held.
func steps(first, second string) []string {
	return []string{"[{weight: 5, hold: 10m}, {weight: 50, hold: 30m}]", fmt.Sprintf("[{weight: 5, hold: %s}, {weight: 50, hold: %s}]", first, second)}
}

// another is a change of a spec that makes it another version: a scenario, which it says.
func another(name string) []string {
	return []string{"scenarios:\n", "expect: [" + name + "]\nscenarios:\n  - name: " + name + "\n    when: duration > duration(\"1m\")\n"}
}

// release asks for a deployment, starts the process of the version and returns its number.
func (r *releaseTest) release(spec string, more ...string) int {
	r.Helper()
	r.last++
	r.runVersion(r.last)
	r.ask(spec, more...)
	return r.last
}

// ask asks for a deployment and waits until it was decided.
func (r *releaseTest) ask(spec string, more ...string) {
	r.Helper()
	r.command(append([]string{"deploy", "--spec", spec, "--message", filepath.Base(spec)}, more...)...)
	r.until("a deployment is decided", func(s workflows.JobStatus) bool {
		return s.Candidate != nil && s.Candidate.Version == r.last || s.Current != nil && s.Current.Version == r.last
	})
}

// state asks the job for its status; an error is one of a server or worker that is away.
func (r *releaseTest) state() (s workflows.JobStatus, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, 2*time.Second)
	defer cancel()
	v, err := queryWorkflow(ctx, r.temporal, workflows.JobID("payments"), workflows.QueryStatus)
	if err == nil {
		err = v.Get(&s)
	}
	return s, err
}

// until asks for the status as often as it can until something is so.
func (r *releaseTest) until(what string, so func(workflows.JobStatus) bool) workflows.JobStatus {
	r.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(4 * time.Minute); ; {
		s, err := r.state()
		if err == nil && so(s) {
			return s
		}
		select {
		case <-tick.C:
		case <-limit:
			log, _ := json.MarshalIndent(s, "", " ")
			r.Fatalf("after 4 minutes not yet: %s; the job is %s, %v", what, log, err)
		}
	}
}

// caughtUp tells whether a checkpoint of a version holds all records of its topics.
func (r *releaseTest) caughtUp(version int) bool {
	r.Helper()
	for line := range strings.Lines(string(r.command("job", "status", "payments", "--json"))) {
		var s struct {
			Workflow string
			Runs     []struct {
				State string
				Beat  struct{ Records, Lag, Checkpoint int64 }
			}
		}
		r.must(json.Unmarshal([]byte(line), &s))
		if s.Workflow != workflows.VersionID("payments", version) || len(s.Runs) != 1 {
			continue
		}
		b := s.Runs[0].Beat
		if b.Records == 0 || b.Lag != 0 {
			return false
		}
		before, ok := r.rested[version]
		if !ok {
			r.rested[version] = b.Checkpoint
			return false
		}
		return b.Checkpoint > before
	}
	return false
}

// generation is that of a version.
func (r *releaseTest) generation(version int) int64 {
	r.Helper()
	list, err := r.store.Generations(r.ctx, "payments")
	r.must(err)
	for _, g := range list {
		if g.Version == strconv.Itoa(version) && g.Kind == "live" {
			return g.ID
		}
	}
	r.Fatalf("version %d has no generation", version)
	return 0
}

// serving returns the serving map.
func (r *releaseTest) serving() store.Map {
	r.Helper()
	m, err := r.store.ServingMap(r.ctx, "payments")
	r.must(err)
	return m
}

// signal sends a signal to the job in the form that tctl gives it.
func (r *releaseTest) signal(name, input string) {
	r.Helper()
	r.must(r.temporal.SignalWorkflow(r.ctx, workflows.JobID("payments"), "", name, json.RawMessage(input)))
}

// back signals a rollback and returns how long it took from the call until the serving map had the version.
func (r *releaseTest) back(to int, before func()) time.Duration {
	r.Helper()
	generation, epoch := r.generation(to), r.serving().Epoch
	r.requests++
	input := fmt.Sprintf(`{"to":%d,"reason":"to see","request_id":"back-%d","actor":"ann"}`, to, r.requests)
	if before != nil {
		before()
	}
	began := time.Now()
	r.signal(workflows.SignalRollback, input)
	return r.switched(began, epoch, generation)
}

// switched waits until the serving map is another one than that of an epoch, and expects a generation to serve all.
func (r *releaseTest) switched(began time.Time, epoch uint64, generation int64) time.Duration {
	r.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.After(2 * time.Minute); ; {
		m := r.serving()
		if took := time.Since(began); m.Epoch != epoch {
			if len(m.Ranges) != 1 || m.Ranges[0].Generation != generation || m.Canary != nil {
				r.Fatalf("switched to %+v, expected generation %d", m, generation)
			}
			return took
		}
		select {
		case <-tick.C:
		case <-limit:
			s, err := r.state()
			r.Fatalf("after 2 minutes generation %d is not served; the job is %+v, %v", generation, s, err)
		}
	}
}

// holder returns the control worker that has the job in its memory: the one that did its last step. Nothing of the job is under
// way then.
func (r *releaseTest) holder() *process {
	r.Helper()
	id, pid := workflows.JobID("payments"), ""
	r.await("the job is at rest", func() bool {
		d, err := r.temporal.DescribeWorkflowExecution(r.ctx, id, "")
		r.must(err)
		if len(d.GetPendingActivities()) > 0 || d.GetPendingWorkflowTask() != nil {
			return false
		}
		h, err := r.temporal.WorkflowService().GetWorkflowExecutionHistoryReverse(r.ctx, &workflowservice.GetWorkflowExecutionHistoryReverseRequest{
			Namespace: r.at.Namespace, Execution: d.GetWorkflowExecutionInfo().GetExecution(), MaximumPageSize: 20})
		r.must(err)
		for _, e := range h.GetHistory().GetEvents() {
			if a := e.GetWorkflowTaskCompletedEventAttributes(); a != nil {
				pid = a.GetIdentity()[strings.LastIndexByte(a.GetIdentity(), ':')+1:]
				return true
			}
		}
		return false
	})
	for _, p := range r.controls {
		if strconv.Itoa(p.cmd.Process.Pid) == pid && !p.ended() {
			return p
		}
	}
	r.Fatalf("no control worker has the process id %s", pid)
	return nil
}

// story tells what has happened to the job since a moment.
func (r *releaseTest) story(since time.Time) (text string) {
	r.Helper()
	for h := r.temporal.GetWorkflowHistory(r.ctx, workflows.JobID("payments"), "", false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); h.HasNext(); {
		e, err := h.Next()
		r.must(err)
		if at := e.GetEventTime().AsTime().Sub(since); at > 0 {
			text += fmt.Sprintf("%s %s %s%s\n", at.Round(time.Millisecond), e.GetEventType(), e.GetWorkflowTaskStartedEventAttributes().GetIdentity(),
				e.GetActivityTaskScheduledEventAttributes().GetActivityType().GetName())
		}
	}
	return text
}

// spread describes durations.
type spread []time.Duration

func (s spread) quantile(share float64) time.Duration {
	return slices.Sorted(slices.Values(s))[max(int(math.Ceil(share*float64(len(s))))-1, 0)]
}

func (s spread) String() string {
	ms := func(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }
	return fmt.Sprintf("%d times: p50 %s, p90 %s, p99 %s, most %s", len(s), ms(s.quantile(0.5)), ms(s.quantile(0.9)), ms(s.quantile(0.99)), ms(slices.Max(s)))
}

// beyond counts those that are longer.
func (s spread) beyond(limit time.Duration) (n int) {
	for _, d := range s {
		if d > limit {
			n++
		}
	}
	return n
}

func itoa(n int) string { return strconv.Itoa(n) }

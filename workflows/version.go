package workflows

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

const (
	checkEvery = time.Minute // between two looks at the shards, for what their reports do not tell
	checkSoon  = time.Second // while shards are being stopped
	shardsMax  = 256         // there are as many key groups

	prepareEvery = 15 * time.Second // between two tries to prepare where something is missing
)

// VersionInput is the input of Version. Shards 0 leaves their number to the spec: one where nothing says how to divide it.
type VersionInput struct {
	Job     string       `json:"job"`
	Version int          `json:"version"`
	Shards  int          `json:"shards,omitempty"`
	Agents  bool         `json:"agents,omitempty"` // agents start its processes; otherwise somebody does by hand, until a Job owns it
	State   *keptVersion `json:"state,omitempty"`  // of the run before, by continue-as-new
}

const versionExample = `{"job":"payments","version":1,"shards":1}`

// VersionStatus is what the query "status" answers for Version.
type VersionStatus struct {
	Job      string               `json:"job"`
	Version  int                  `json:"version"`
	State    string               `json:"state"` // its own while it has no shards or stops; otherwise the worst of its shards
	Since    time.Time            `json:"since"`
	Prepared *activities.Prepared `json:"prepared,omitempty"`
	activities.VersionHealth
	// Managed says that a Job owns it: agents run its shards where nobody else does.
	Managed bool `json:"managed,omitempty"`
	// Unmanned says why nobody runs it, and what to do, as Job was told; empty: somebody does.
	Unmanned string `json:"unmanned,omitempty"`
	Rejections
}

// keptVersion is what Version carries over when it continues as new.
type keptVersion struct {
	VersionStatus
	Paused bool     `json:"paused,omitempty"`
	Stop   bool     `json:"stop,omitempty"`
	Told   []string `json:"told,omitempty"`   // by shard: the order that it has
	Ending []bool   `json:"ending,omitempty"` // by process: whether it was told to stop
}

// UnmarshalJSON passes over keys that it does not know: a newer engine may have written them before a rollback.
func (k *keptVersion) UnmarshalJSON(data []byte) error {
	type plain keptVersion
	return json.Unmarshal(data, (*plain)(k))
}

// version is a run of the workflow Version.
type version struct {
	in VersionInput
	keptVersion
	inbox inbox

	retry   bool
	ordered string // the order that was last passed on

	managed bool            // Job has just said that it owns the version
	looked  bool            // at its shards, once at least
	waiting bool            // some shard waits for a process, as of the last look
	telling workflow.Future // what Job was told last
}

// Version prepares a job version and keeps its shards running: one workflow Shard each, which outlives a Version that
// continues as new. Its id is VersionID. Query QueryStatus returns a VersionStatus; signals are SignalStop, SignalPause,
// SignalResume and SignalRetry, which it passes on, and SignalAgents.
func Version(ctx workflow.Context, raw converter.RawValue) error {
	var in VersionInput
	err := decode(raw, &in)
	if err == nil && (in.Job == "" || in.Version < 1 || in.Shards < 0 || in.Shards > shardsMax) {
		err = fmt.Errorf("job or version is missing, or shards is not 1 to %d", shardsMax)
	}
	if err != nil {
		return badInput(VersionType, versionExample, err)
	}
	v := &version{in: in}
	v.Job, v.Version = in.Job, in.Version
	if in.State != nil {
		v.keptVersion = *in.State
	}
	v.inbox.Rejections = &v.Rejections
	v.inbox.handlers = []handler{
		{SignalShard, v.shardReported},
		{SignalProcess, v.processReported},
		order(SignalAgents, func(Order) error { v.Managed, v.managed, v.Unmanned = true, true, ""; return nil }),
		order(SignalRetry, func(Order) error { v.retry = true; return nil }),
		order(SignalResume, func(Order) error { v.Paused = false; return nil }),
		order(SignalPause, func(Order) error { v.Paused = true; return nil }),
		order(SignalStop, func(Order) error { v.Stop = true; return nil }),
	}
	if err := workflow.SetQueryHandler(ctx, QueryStatus, func() (VersionStatus, error) { return v.VersionStatus, nil }); err != nil {
		return err
	}
	err = v.run(ctx)
	if v.telling != nil { // signals of a run that has ended may not be sent; where Job is gone there is nobody to tell
		_ = v.telling.Get(ctx, nil)
	}
	if errors.Is(err, errContinue) {
		v.in.State = &v.keptVersion
		return workflow.NewContinueAsNewError(ctx, VersionType, v.in)
	}
	return err
}

func (v *version) shardReported(raw converter.RawValue) error {
	var r ShardReport
	if err := decode(raw, &r); err != nil {
		return err
	}
	if r.Shard < 0 || r.Shard >= len(v.Shards) {
		return fmt.Errorf("there is no shard %d", r.Shard)
	}
	if !slices.Contains(badness(), r.State) {
		return fmt.Errorf("there is no state %q; there are %q", clip(r.State), badness())
	}
	v.Shards[r.Shard] = r
	return nil
}

func (v *version) processReported(raw converter.RawValue) error {
	var r ProcessReport
	if err := decode(raw, &r); err != nil {
		return err
	}
	if r.Process < 0 || r.Process >= len(v.Processes) {
		return fmt.Errorf("there is no process %d", r.Process)
	}
	if r.State != Waiting && !slices.Contains(badness(), r.State) {
		return fmt.Errorf("there is no state %q; there are %q", clip(r.State), append(badness(), Waiting))
	}
	v.Processes[r.Process] = r
	return nil
}

// badness lists the states of shards, the worst first: what a version's state is made of.
func badness() []string {
	return []string{Failed, CrashLooping, Stopping, Preparing, Paused, Running, Stopped}
}

// processFails tells whether some process is in a state in which none of its shards runs: failed or crash looping.
func (v *version) processFails(state string) bool {
	return (state == Failed || state == CrashLooping) && slices.ContainsFunc(v.Processes, func(r ProcessReport) bool { return r.State == state })
}

// settle sets the state to what the shards are in.
func (v *version) settle(ctx workflow.Context) error {
	for _, state := range badness() {
		if v.processFails(state) || slices.ContainsFunc(v.Shards, func(r ShardReport) bool { return r.State == state }) {
			if v.Stop && state != Failed {
				state = Stopping
			}
			return v.enter(ctx, state)
		}
	}
	return nil
}

func (v *version) enter(ctx workflow.Context, state string) error {
	if v.State == state {
		return nil
	}
	v.State, v.Since = state, workflow.Now(ctx)
	return mark(ctx, v.Job, strconv.Itoa(v.Version), state)
}

func (v *version) run(outer workflow.Context) error {
	ctx, cancel := workflow.NewDisconnectedContext(outer)
	defer cancel()
	if v.Prepared == nil {
		if err := v.prepare(outer, ctx); err != nil || v.Prepared == nil {
			return err
		}
	}
	check, pace := checkEvery, checkSoon
	for next := time.Duration(0); ; next = check { // at once the first time: it starts the shards
		if err := v.await(outer, ctx, next); err != nil {
			return err
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			return errContinue
		}
		running, err := v.look(ctx)
		if err != nil {
			return err
		}
		if v.Managed && v.waiting && !v.Stop && len(v.Processes) == 0 {
			v.addProcesses(ctx)
		}
		processes, err := v.lookAtProcesses(ctx, slices.Contains(running, true))
		if err != nil {
			return err
		}
		if v.Stop && !slices.Contains(running, true) && !slices.Contains(processes, true) {
			for i := range v.Shards {
				v.Shards[i].State = Stopped
			}
			for i := range v.Processes {
				v.Processes[i].State = Stopped
			}
			v.inbox.drain(ctx)
			v.tellJob(ctx)
			return errors.Join(v.enter(ctx, Stopped), outer.Err())
		}
		retry := v.retry
		deaf := v.tell(ctx, running)
		if retry {
			v.tellProcesses(ctx, SignalRetry)
		}
		if err := v.settle(ctx); err != nil {
			return err
		}
		if check = pace; v.Stop || deaf {
			pace = min(2*pace, checkEvery)
		} else {
			check, pace = checkEvery, checkSoon
		}
	}
}

// await takes in signals until a time is over or an order came. A cancellation of the workflow is an order to stop.
func (v *version) await(outer, ctx workflow.Context, limit time.Duration) error {
	timing, cancel := workflow.WithCancel(ctx)
	defer cancel()
	timer := workflow.NewTimer(timing, limit)
	for {
		v.inbox.drain(ctx)
		v.Stop = v.Stop || outer.Err() != nil
		if err := v.settle(ctx); err != nil {
			return err
		}
		v.tellJob(ctx)
		if timer.IsReady() || v.wants() {
			return nil
		}
		err := workflow.Await(ctx, func() bool {
			return timer.IsReady() || v.inbox.pending(ctx) || !v.Stop && outer.Err() != nil
		})
		if err != nil {
			return err
		}
	}
}

// wants tells whether there is an order that was not passed on.
func (v *version) wants() bool {
	return v.retry || v.managed || v.ordered != "" && v.ordered != v.order()
}

// tellJob tells the Job that owns the version when nobody runs it, and when somebody does again.
func (v *version) tellJob(ctx workflow.Context) {
	if !v.Managed || !v.looked {
		return
	}
	why := ""
	for i, p := range v.Processes { // while a process by hand runs the shards nobody needs an agent
		if p.State == Waiting && p.Error != nil && v.waiting && !v.Stop {
			why = fmt.Sprintf("process %d: %s", i, p.Error.Message)
			break
		}
	}
	if why != v.Unmanned {
		v.Unmanned = why
		v.telling = workflow.SignalExternalWorkflow(ctx, JobID(v.Job), "", SignalUnmanned, UnmannedReport{v.Version, why})
	}
}

// order is the signal that makes shards what they should be.
func (v *version) order() string {
	switch {
	case v.Stop:
		return SignalStop
	case v.Paused:
		return SignalPause
	}
	return SignalResume
}

// prepare runs the activity Prepare until it works; v.Prepared stays nil where the version is stopped before.
func (v *version) prepare(outer, ctx workflow.Context) error {
	for !v.Stop {
		if err := v.enter(ctx, Preparing); err != nil {
			return err
		}
		var a *activities.Control
		running, cancel := workflow.WithCancel(workflow.WithActivityOptions(ctx, shortOptions()))
		result := workflow.ExecuteActivity(running, a.Prepare, activities.PrepareInput{Job: v.Job, Version: v.Version, Shards: v.in.Shards})
		err := v.awaitUntil(outer, ctx, result.IsReady)
		if err == nil && v.Stop {
			cancel()
			break
		}
		var p activities.Prepared
		if err = errors.Join(err, result.Get(ctx, &p)); err == nil {
			cancel()
			v.Prepared, v.Error = &p, nil
			for i := range p.Shards {
				v.Shards = append(v.Shards, ShardReport{Shard: i, State: Preparing, Since: workflow.Now(ctx)})
				v.Told = append(v.Told, "")
			}
			if v.in.Agents {
				v.addProcesses(ctx)
			}
			return nil
		}
		cancel()
		problem := problemOf(ctx, err)
		v.Error = &problem
		if err := v.enter(ctx, Failed); err != nil {
			return err
		}
		// A topic may be created, a right granted: asking again costs nothing.
		timing, cancel := workflow.WithCancel(ctx)
		again := workflow.NewTimer(timing, prepareEvery)
		err = v.awaitUntil(outer, ctx, func() bool { return v.retry || again.IsReady() })
		cancel()
		if err != nil {
			return err
		}
		if v.retry = false; workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			return errContinue
		}
	}
	return errors.Join(v.enter(ctx, Stopped), outer.Err())
}

// addProcesses decides that agents start the version's processes.
func (v *version) addProcesses(ctx workflow.Context) {
	for i := range (len(v.Shards) + processSlots - 1) / processSlots {
		v.Processes = append(v.Processes, ProcessReport{Process: i, State: Preparing, Since: workflow.Now(ctx)})
	}
	v.Ending = make([]bool, len(v.Processes))
}

// awaitUntil takes in signals until done or an order to stop.
func (v *version) awaitUntil(outer, ctx workflow.Context, done func() bool) error {
	for {
		v.inbox.drain(ctx)
		v.Stop = v.Stop || outer.Err() != nil
		if done() || v.Stop {
			return nil
		}
		err := workflow.Await(ctx, func() bool { return done() || v.inbox.pending(ctx) || outer.Err() != nil })
		if err != nil {
			return err
		}
	}
}

// describe asks which workflows run; what says what they are.
func describe(ctx workflow.Context, in activities.DescribeInput, what string) (d activities.Described, err error) {
	var a *activities.Control
	err = workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, shortOptions()), a.Describe, in).Get(ctx, &d)
	if err == nil && len(d.Running) != len(in.IDs) {
		err = temporal.NewNonRetryableApplicationError("Describe left "+what+" out", activities.Internal, nil)
	}
	return d, err
}

// begun waits until a child has started; one that runs already is as good.
func begun(ctx workflow.Context, f workflow.ChildWorkflowFuture) error {
	var exists *temporal.ChildWorkflowExecutionAlreadyStartedError
	if err := f.GetChildWorkflowExecution().Get(ctx, nil); err != nil && !errors.As(err, &exists) {
		return err
	}
	return nil
}

// look asks which shards run, and starts those that do not and should.
func (v *version) look(ctx workflow.Context) (running []bool, err error) {
	var in activities.DescribeInput
	for i := range v.Shards {
		in.IDs = append(in.IDs, ShardID(v.Job, v.Version, i))
	}
	v.managed = false
	d, err := describe(ctx, in, "shards")
	if err != nil {
		return nil, err
	}
	v.looked, v.waiting = true, slices.Contains(d.Waiting, true)
	if v.inbox.drain(ctx); v.Stop {
		return d.Running, nil
	}
	started := map[int]workflow.ChildWorkflowFuture{}
	for i, is := range d.Running {
		if !is {
			started[i] = v.startShard(ctx, i)
		}
	}
	for i := range v.Shards {
		if f, ok := started[i]; ok {
			if err := begun(ctx, f); err != nil {
				return nil, fmt.Errorf("start shard %d: %w", i, err)
			}
			d.Running[i] = true
			v.Told[i] = SignalResume // what it is when it starts
		}
	}
	return d.Running, nil
}

// lookAtProcesses asks which processes run, starts those that do not and should, and ends them once no shard runs any more: until
// then these save their last checkpoints.
func (v *version) lookAtProcesses(ctx workflow.Context, shards bool) (running []bool, err error) {
	if len(v.Processes) == 0 {
		return nil, nil
	}
	var in activities.DescribeInput
	for i := range v.Processes {
		in.IDs = append(in.IDs, ProcessID(v.Job, v.Version, i))
	}
	d, err := describe(ctx, in, "processes")
	if err != nil {
		return nil, err
	}
	for i, is := range d.Running {
		switch {
		case !is && !v.Stop:
			f := v.startProcess(ctx, i)
			if err := begun(ctx, f); err != nil {
				return nil, fmt.Errorf("start process %d: %w", i, err)
			}
			d.Running[i], v.Ending[i] = true, false
		case is && v.Stop && !shards && !v.Ending[i]:
			// One that has ended meanwhile cannot be told, and the next look finds that.
			v.Ending[i] = workflow.SignalExternalWorkflow(ctx, ProcessID(v.Job, v.Version, i), "", SignalStop, Order{}).Get(ctx, nil) == nil
		}
	}
	return d.Running, nil
}

// tellProcesses signals all processes; those that have ended cannot be told.
func (v *version) tellProcesses(ctx workflow.Context, signal string) {
	for i := range v.Processes {
		_ = workflow.SignalExternalWorkflow(ctx, ProcessID(v.Job, v.Version, i), "", signal, Order{}).Get(ctx, nil)
	}
}

// startProcess starts the workflow of a process, which is abandoned as those of shards are.
func (v *version) startProcess(ctx workflow.Context, process int) workflow.ChildWorkflowFuture {
	slots := min(processSlots, len(v.Shards)-process*processSlots)
	return workflow.ExecuteChildWorkflow(v.child(ctx, ProcessID(v.Job, v.Version, process)), ProcessType,
		ProcessInput{Job: v.Job, Version: v.Version, Process: process, Slots: slots})
}

// startShard starts the workflow of a shard. It is abandoned: a child of any other policy ends when its parent continues
// as new.
func (v *version) startShard(ctx workflow.Context, shard int) workflow.ChildWorkflowFuture {
	return workflow.ExecuteChildWorkflow(v.child(ctx, ShardID(v.Job, v.Version, shard)), ShardType,
		ShardInput{Job: v.Job, Version: v.Version, Shard: shard, Shards: len(v.Shards)})
}

// child returns the options of a child of the version.
func (v *version) child(ctx workflow.Context, id string) workflow.Context {
	return workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:            id,
		WorkflowIDReusePolicy: enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		ParentClosePolicy:     enums.PARENT_CLOSE_POLICY_ABANDON,
		TypedSearchAttributes: temporal.NewSearchAttributes(attribute("WeftJob").ValueSet(v.Job), attribute("WeftVersion").ValueSet(strconv.Itoa(v.Version))),
	})
}

// tell gives the shards the order that they do not have yet. deaf says that some could not be told: if they have ended,
// the next look finds that.
func (v *version) tell(ctx workflow.Context, running []bool) (deaf bool) {
	v.ordered = v.order()
	sent := make([]workflow.Future, len(v.Shards))
	for i := range v.Shards {
		signal := ""
		switch {
		case running[i] && v.Told[i] != v.ordered:
			signal = v.ordered
		case running[i] && v.retry:
			signal = SignalRetry
		}
		if signal != "" {
			sent[i] = workflow.SignalExternalWorkflow(ctx, ShardID(v.Job, v.Version, i), "", signal, Order{})
		}
	}
	v.retry = false
	for i, f := range sent {
		if f == nil {
			continue
		}
		if err := f.Get(ctx, nil); err != nil {
			workflow.GetLogger(ctx).Warn("a shard could not be told", "shard", i, "order", v.ordered, "error", err)
			deaf = true
			continue
		}
		v.Told[i] = v.ordered
	}
	return deaf
}

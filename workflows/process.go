package workflows

import (
	"errors"
	"strconv"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// ProcessType is the type of the workflow of a process.
const ProcessType = "Process"

// SignalProcess tells Version the state of one of its processes.
const SignalProcess = "process"

const (
	// processSlots is how many shards one process runs: few enough that its death moves little, and enough that many shards
	// do not take a process each.
	processSlots = 4
	// claimWithin is how long an agent may take to start a process before the workflow says that there is none.
	claimWithin = time.Minute
	// processLife bounds the activity of a process; when it is over the process is started anew.
	processLife = 30 * 24 * time.Hour
)

// ProcessInput is the input of Process.
type ProcessInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"`
	Process int    `json:"process"`
	Slots   int    `json:"slots"`
	State   *kept  `json:"state,omitempty"` // of the run before, by continue-as-new
}

// ProcessStatus is what the query "status" answers for Process.
type ProcessStatus struct {
	Status
	Agent string `json:"agent,omitempty"`
	PID   int    `json:"pid,omitempty"`
}

const processExample = `{"job":"payments","version":1,"process":0,"slots":4}`

// Process keeps one process of a job version running on the machine of some agent; its id is ProcessID. Query QueryStatus
// returns a ProcessStatus; signals are SignalStop, SignalPause, SignalResume and SignalRetry.
func Process(ctx workflow.Context, raw converter.RawValue) error {
	var in ProcessInput
	err := decode(raw, &in)
	if err == nil && (in.Job == "" || in.Version < 1 || in.Process < 0 || in.Slots < 1) {
		err = errors.New("job, version, process or slots is missing or out of range")
	}
	if err != nil {
		return badInput(ProcessType, processExample, err)
	}
	var where activities.Started
	var k *keeper
	k = newKeeper(in.Job, strconv.Itoa(in.Version), in.State, handler{activities.SignalStarted, func(raw converter.RawValue) error {
		if err := decode(raw, &where); err != nil {
			return err
		}
		k.taken = true
		return nil
	}})
	k.claimed = true
	k.start = func(ctx workflow.Context) workflow.Future {
		var a *activities.Processes
		o := longOptions(activities.AgentQueue)
		o.StartToCloseTimeout, o.ScheduleToStartTimeout = processLife, claimWithin
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), a.RunProcess,
			activities.ProcessInput{Job: in.Job, Version: in.Version, Process: in.Process, Slots: in.Slots})
	}
	k.report = func(ctx workflow.Context) {
		// Nobody waits for it: without a version there is nobody to tell, and the version looks after its processes besides.
		workflow.SignalExternalWorkflow(ctx, VersionID(in.Job, in.Version), "", SignalProcess,
			ProcessReport{Process: in.Process, State: k.State, Since: k.Since, Attempts: k.Attempts, Error: k.Error, Agent: where.Agent, PID: where.PID})
	}
	return k.keep(ctx, ProcessType, func() any { return ProcessStatus{k.Status, where.Agent, where.PID} }, func(s *kept) any { in.State = s; return in })
}

package workflows

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// reports are those of a process. They are sent in goroutines of their own, so they have no order.
type reports struct {
	mu   sync.Mutex
	list []ProcessReport
}

func (r *reports) any(is func(ProcessReport) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.list, is)
}

func processEnvironment(t *testing.T) (*testsuite.TestWorkflowEnvironment, *reports) {
	t.Helper()
	env := environment(t)
	env.RegisterWorkflowWithOptions(Process, workflow.RegisterOptions{Name: ProcessType})
	var p activities.Processes
	env.RegisterActivityWithOptions(p.RunProcess, activity.RegisterOptions{Name: "RunProcess"})
	var told reports
	env.OnSignalExternalWorkflow(mock.Anything, VersionID("payments", 3), mock.Anything, SignalProcess, mock.Anything).
		Return(func(_, _, _, _ string, arg any) error {
			told.mu.Lock()
			defer told.mu.Unlock()
			told.list = append(told.list, arg.(ProcessReport))
			return nil
		})
	return env, &told
}

func processStatus(t *testing.T, env *testsuite.TestWorkflowEnvironment) (s ProcessStatus) {
	t.Helper()
	v, err := env.QueryWorkflow(QueryStatus)
	if err == nil {
		err = v.Get(&s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func processInput() ProcessInput { return ProcessInput{Job: "payments", Version: 3, Slots: 2} }

// TestProcessWaitsForAnAgent says so until one takes it.
func TestProcessWaitsForAnAgent(t *testing.T) {
	env, told := processEnvironment(t)
	n := 0
	env.OnActivity("RunProcess", mock.Anything, mock.Anything).Return(func(context.Context, activities.ProcessInput) (activities.Ended, error) {
		if n++; n < 3 {
			return activities.Ended{}, temporal.NewTimeoutError(enums.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)
		}
		return activities.Ended{}, activity.ErrResultPending
	})
	at(t, env, 10*time.Second, func() {
		if s := processStatus(t, env); s.State != Waiting || s.Error == nil || !strings.Contains(s.Error.Message, "weft agent") || s.Attempts != 0 {
			t.Errorf("without an agent: %+v", s)
		}
		env.SignalWorkflow(activities.SignalStarted, activities.Started{Agent: "a7", PID: 12})
	})
	at(t, env, 20*time.Second, func() {
		if s := processStatus(t, env); s.State != Running || s.Error != nil || s.Agent != "a7" || s.PID != 12 {
			t.Errorf("with an agent: %+v", s)
		}
		for _, state := range []string{Waiting, Running} {
			if !told.any(func(r ProcessReport) bool { return r.State == state }) {
				t.Errorf("it did not report %s", state)
			}
		}
		env.SignalWorkflow(SignalStop, Order{})
	})
	env.ExecuteWorkflow(ProcessType, processInput())
	done(t, env)
}

// TestProcessCrashLoops waits longer after each round of attempts, and its version knows why.
func TestProcessCrashLoops(t *testing.T) {
	env, told := processEnvironment(t)
	env.OnActivity("RunProcess", mock.Anything, mock.Anything).Return(func(context.Context, activities.ProcessInput) (activities.Ended, error) {
		return activities.Ended{}, activities.Crash("process 0 of version 3 of payments died: panic: boom")
	})
	at(t, env, 2*time.Minute, func() {
		if s := processStatus(t, env); s.State != CrashLooping || s.Attempts < 20 {
			t.Errorf("it is %+v", s)
		}
		env.SignalWorkflow(SignalStop, Order{})
	})
	env.ExecuteWorkflow(ProcessType, processInput())
	done(t, env)
	if !told.any(func(r ProcessReport) bool {
		return r.State == CrashLooping && r.Error != nil && strings.Contains(r.Error.Message, "panic: boom")
	}) {
		t.Errorf("it reported %+v", told.list)
	}
}

// TestVersionStartsProcesses starts one for every four shards, ends them after the shards, and counts what fails as its own.
func TestVersionStartsProcesses(t *testing.T) {
	env, s := versionEnvironment(t, 6)
	slots := map[int]int{}
	env.RegisterWorkflowWithOptions(func(ctx workflow.Context, in ProcessInput) error {
		slots[in.Process] = in.Slots
		id := ProcessID(in.Job, in.Version, in.Process)
		s.set(id, true)
		workflow.GetSignalChannel(ctx, SignalStop).Receive(ctx, nil)
		for shard := range 6 {
			if s.runs(ShardID("payments", 1, shard)) {
				t.Errorf("process %d is ended while shard %d runs", in.Process, shard)
			}
		}
		s.set(id, false)
		return nil
	}, workflow.RegisterOptions{Name: ProcessType})
	at(t, env, 10*time.Second, func() {
		env.SignalWorkflow(SignalProcess, ProcessReport{Process: 1, State: CrashLooping, Error: &Problem{Message: "panic: boom"}})
		env.SignalWorkflow(SignalProcess, ProcessReport{Process: 2, State: Running})
		env.SignalWorkflow(SignalProcess, ProcessReport{Process: 0, State: "gone"})
	})
	at(t, env, 90*time.Second, func() {
		v := versionStatus(t, env)
		if v.State != CrashLooping || len(v.Processes) != 2 || v.Processes[1].Error.Message != "panic: boom" || v.Count != 2 {
			t.Errorf("status %+v", v)
		}
		if slots[0] != 4 || slots[1] != 2 {
			t.Errorf("the processes have slots %v", slots)
		}
		env.SignalWorkflow(SignalStop, Order{})
	})
	env.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1, Shards: 6, Agents: true})
	done(t, env)
	if v := versionStatus(t, env); v.State != Stopped || v.Processes[0].State != Stopped || s.runs(ProcessID("payments", 1, 0)) {
		t.Errorf("status %+v", v)
	}
}

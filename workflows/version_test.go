package workflows

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// shards stands for the workflows of a version's shards: they record what they are told, and end when told to stop.
type shards struct {
	mu      sync.Mutex // activities and replaced signals have goroutines of their own
	running map[string]bool
	waiting bool // they wait for a process that does not come
	starts  int
	signals []string // "id signal"
}

func (s *shards) wait(is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = is
}

func (s *shards) set(id string, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[id] = running
}

func (s *shards) runs(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[id]
}

func (s *shards) run(ctx workflow.Context, raw converter.RawValue) error {
	var in ShardInput
	if err := decode(raw, &in); err != nil {
		return err
	}
	id := ShardID(in.Job, in.Version, in.Shard)
	s.set(id, true)
	s.starts++
	var box inbox
	box.Rejections = &Rejections{}
	for _, signal := range []string{SignalRetry, SignalResume, SignalPause, SignalStop, "vanish"} {
		box.handlers = append(box.handlers, order(signal, func(Order) error {
			s.signals = append(s.signals, id+" "+signal)
			if signal == SignalStop || signal == "vanish" {
				s.set(id, false)
			}
			return nil
		}))
	}
	for s.runs(id) {
		if err := workflow.Await(ctx, func() bool { return box.pending(ctx) }); err != nil {
			return err
		}
		box.drain(ctx)
	}
	return nil
}

// versionEnvironment is one whose version has shards that obey.
func versionEnvironment(t *testing.T, n int) (*testsuite.TestWorkflowEnvironment, *shards) {
	t.Helper()
	s := &shards{running: map[string]bool{}}
	env := environmentWith(t, s.run)
	env.OnActivity("Prepare", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.PrepareInput) (activities.Prepared, error) {
		return activities.Prepared{Shards: max(in.Shards, n), Generation: 5}, nil
	}).Maybe()
	env.OnActivity("Describe", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.DescribeInput) (d activities.Described, err error) {
		for _, id := range in.IDs {
			running := s.runs(id)
			s.mu.Lock()
			d.Running, d.Waiting = append(d.Running, running), append(d.Waiting, running && s.waiting)
			s.mu.Unlock()
		}
		return d, nil
	}).Maybe()
	return env, s
}

func versionStatus(t *testing.T, env *testsuite.TestWorkflowEnvironment) (s VersionStatus) {
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

// at is later with the time first.
func at(t *testing.T, env *testsuite.TestWorkflowEnvironment, after time.Duration, f func()) {
	t.Helper()
	later(t, env, f, after)
}

func report(shard int, state string) ShardReport { return ShardReport{Shard: shard, State: state} }

func TestVersionStartsItsShards(t *testing.T) {
	env, s := versionEnvironment(t, 3)
	at(t, env, 90*time.Second, func() {
		if s.starts != 3 || len(s.running) != 3 {
			t.Errorf("%d starts: %v", s.starts, s.running)
		}
		if v := versionStatus(t, env); v.Prepared == nil || v.Prepared.Generation != 5 || len(v.Shards) != 3 {
			t.Errorf("status %+v", v)
		}
		env.SignalWorkflow(SignalStop, Order{})
	})
	env.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1, Shards: 3})
	done(t, env)
	if v := versionStatus(t, env); v.State != Stopped || v.Shards[2].State != Stopped {
		t.Errorf("in the end it is %+v", v)
	}
}

func TestVersionShowsTheWorstOfItsShards(t *testing.T) {
	env, _ := versionEnvironment(t, 2)
	for i, c := range []struct {
		reports []any
		want    string
	}{
		{[]any{report(0, Running)}, Preparing},
		{[]any{report(1, Running)}, Running},
		{[]any{report(1, CrashLooping)}, CrashLooping},
		{[]any{report(0, Failed)}, Failed},
		{[]any{report(0, Running), report(1, Paused)}, Paused},
		{[]any{report(2, Failed), report(-1, Failed), report(0, "happy"), "x", nil, 7}, Paused}, // not understood
		{[]any{report(1, Running)}, Running},
	} {
		at(t, env, time.Duration(i+1)*time.Minute, func() {
			for _, r := range c.reports {
				env.SignalWorkflow(SignalShard, r)
			}
		})
		at(t, env, time.Duration(i+1)*time.Minute+time.Second, func() {
			if v := versionStatus(t, env); v.State != c.want {
				t.Errorf("after %v it is %s, want %s", c.reports, v.State, c.want)
			}
		})
	}
	at(t, env, time.Hour, func() {
		if v := versionStatus(t, env); v.Count != 6 {
			t.Errorf("%d were rejected: %+v", v.Count, v.Rejected)
		}
		env.SignalWorkflow(SignalStop, Order{})
	})
	env.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1})
	done(t, env)
}

func TestVersionPassesOrdersOnOnce(t *testing.T) {
	env, s := versionEnvironment(t, 2)
	for i, signal := range []string{SignalPause, SignalPause, SignalResume, SignalRetry, "rollback"} {
		at(t, env, time.Duration(i+1)*10*time.Second, func() { env.SignalWorkflow(signal, Order{}) })
	}
	at(t, env, time.Hour, func() { env.SignalWorkflow(SignalStop, Order{}) })
	env.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1})
	done(t, env)
	slices.Sort(s.signals)
	var want []string
	for i := range 2 {
		for _, signal := range []string{SignalPause, SignalResume, SignalRetry, SignalStop} {
			want = append(want, fmt.Sprintf("%s %s", ShardID("payments", 1, i), signal))
		}
	}
	if !slices.Equal(s.signals, want) {
		t.Errorf("the shards were told %q", s.signals)
	}
}

func TestShardThatVanishesIsStartedAgain(t *testing.T) {
	env, s := versionEnvironment(t, 2)
	at(t, env, 5*time.Minute, func() {
		if err := env.SignalWorkflowByID(ShardID("payments", 1, 1), "vanish", Order{}); err != nil {
			t.Error(err)
		}
	})
	at(t, env, 5*time.Minute+10*time.Second, func() { env.SignalWorkflow(SignalPause, Order{}) })
	at(t, env, 10*time.Minute, func() {
		if s.starts != 3 {
			t.Errorf("%d starts", s.starts)
		}
		last := s.signals[len(s.signals)-1]
		if last != ShardID("payments", 1, 1)+" "+SignalPause {
			t.Errorf("the new shard was not told to pause: %q", s.signals)
		}
		env.SignalWorkflow(SignalStop, Order{})
	})
	env.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1})
	done(t, env)
}

func TestPrepareThatCannotIsSeenAndTriedAgain(t *testing.T) {
	env := environment(t)
	tries := 0
	env.OnActivity("Prepare", mock.Anything, mock.Anything).Return(func(context.Context, activities.PrepareInput) (activities.Prepared, error) {
		tries++
		switch {
		case tries <= 3:
			return activities.Prepared{}, temporal.NewApplicationError("away", activities.External)
		case tries <= 5:
			return activities.Prepared{}, temporal.NewNonRetryableApplicationError("no topic", activities.User, nil)
		}
		return activities.Prepared{}, activity.ErrResultPending
	})
	look := func(state string, want int) func() {
		return func() {
			if v := versionStatus(t, env); v.State != state || tries != want || state == Failed && v.Error.Message != "no topic" {
				t.Errorf("after %d tries, of %d: %+v", tries, want, v)
			}
		}
	}
	at(t, env, 10*time.Second, look(Failed, 4)) // the first three take 7 s
	at(t, env, 11*time.Second, func() { env.SignalWorkflow(SignalRetry, Order{}) })
	at(t, env, 12*time.Second, look(Failed, 5))
	at(t, env, 30*time.Second, look(Preparing, 6))
	at(t, env, time.Hour, look(Preparing, 6))
	at(t, env, 2*time.Hour, func() { env.SignalWorkflow(SignalStop, Order{}) })
	env.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1})
	done(t, env)
}

func TestVersionContinuesAsNew(t *testing.T) {
	env, s := versionEnvironment(t, 2)
	at(t, env, time.Minute, func() {
		env.SignalWorkflow(SignalShard, report(0, Running))
		env.SignalWorkflow(SignalShard, report(1, Running))
	})
	at(t, env, time.Hour, func() { env.SetContinueAsNewSuggested(true) })
	env.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1})
	var again *workflow.ContinueAsNewError
	if err := env.GetWorkflowError(); !errors.As(err, &again) {
		t.Fatalf("it ended with %v", err)
	}
	if len(s.running) != 2 {
		t.Errorf("its shards: %v", s.running)
	}
	next, s2 := versionEnvironment(t, 2)
	for id := range s.running {
		s2.set(id, true)
	}
	var stopped atomic.Int64
	next.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, SignalStop, mock.Anything).Return(func(_, id, _, _ string, _ any) error {
		s2.set(id, false)
		stopped.Add(1)
		return nil
	})
	at(t, next, time.Hour, func() {
		if v := versionStatus(t, next); v.State != Running || s2.starts != 0 || len(s2.signals) != 0 {
			t.Errorf("the next run: %+v, %d starts, signals %q", v, s2.starts, s2.signals)
		}
		next.SignalWorkflow(SignalStop, Order{})
	})
	next.ExecuteWorkflow(VersionType, converter.NewRawValue(again.Input.GetPayloads()[0]))
	done(t, next)
	if stopped.Load() != 2 {
		t.Errorf("%d shards were stopped", stopped.Load())
	}
}

func TestCanceledVersionStopsItsShards(t *testing.T) {
	env, s := versionEnvironment(t, 2)
	at(t, env, time.Minute, env.CancelWorkflow)
	env.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1})
	if err := env.GetWorkflowError(); !temporal.IsCanceledError(err) {
		t.Errorf("it ended with %v", err)
	}
	for id, running := range s.running {
		if running {
			t.Errorf("%s runs on", id)
		}
	}
}

// mannedTest is a version without agents, whose processes a test reports for.
type mannedTest struct {
	*testsuite.TestWorkflowEnvironment
	*shards
	hired int              // processes that were started
	told  []UnmannedReport // to Job
}

func newMannedTest(t *testing.T) *mannedTest {
	t.Helper()
	env, s := versionEnvironment(t, 6)
	m := &mannedTest{TestWorkflowEnvironment: env, shards: s}
	m.RegisterWorkflowWithOptions(func(ctx workflow.Context, in ProcessInput) error {
		m.hired++
		id := ProcessID(in.Job, in.Version, in.Process)
		s.set(id, true)
		workflow.GetSignalChannel(ctx, SignalStop).Receive(ctx, nil)
		s.set(id, false)
		return nil
	}, workflow.RegisterOptions{Name: ProcessType})
	m.OnSignalExternalWorkflow(mock.Anything, JobID("payments"), mock.Anything, SignalUnmanned, mock.Anything).Return(func(_, _, _, _ string, arg any) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.told = append(m.told, arg.(UnmannedReport))
		return nil
	}).Maybe()
	// What goes to shards and processes reaches them.
	m.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, mock.Anything, mock.Anything).Return(func(_, id, _, signal string, arg any) error {
		go func() { _ = m.SignalWorkflowByID(id, signal, arg) }()
		return nil
	}).Maybe()
	return m
}

// TestVersionGetsProcesses gives a version that was started for processes by hand those of agents, once a Job owns it and nobody
// runs its shards; and tells Job while no agent comes.
func TestVersionGetsProcesses(t *testing.T) {
	m := newMannedTest(t)
	expect := func(after time.Duration, hired int, told ...UnmannedReport) {
		t.Helper()
		at(t, m.TestWorkflowEnvironment, after, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.hired != hired || !slices.Equal(m.told, told) {
				t.Errorf("after %s %d processes were started, and Job was told %+v; want %d, %+v", after, m.hired, m.told, hired, told)
			}
		})
	}
	signal := func(after time.Duration, name string, arg any) {
		at(t, m.TestWorkflowEnvironment, after, func() { m.SignalWorkflow(name, arg) })
	}
	waiting := ProcessReport{Process: 1, State: Waiting, Error: &Problem{Message: "no agent has room for it"}}
	none, some := UnmannedReport{1, "process 1: no agent has room for it"}, UnmannedReport{1, ""}

	at(t, m.TestWorkflowEnvironment, 90*time.Second, func() { m.wait(true) })
	expect(5*time.Minute, 0) // nobody wants it
	at(t, m.TestWorkflowEnvironment, 6*time.Minute, func() { m.wait(false) })
	signal(7*time.Minute, SignalAgents, Order{})
	expect(10*time.Minute, 0) // a process by hand runs it
	at(t, m.TestWorkflowEnvironment, 11*time.Minute, func() { m.wait(true) })
	expect(13*time.Minute, 2) // that died
	signal(14*time.Minute, SignalAgents, Order{})
	signal(15*time.Minute, SignalProcess, ProcessReport{Process: 1, State: Waiting})
	expect(16*time.Minute, 2) // an agent has a minute
	signal(17*time.Minute, SignalProcess, waiting)
	expect(17*time.Minute+time.Second, 2, none)
	signal(18*time.Minute, SignalProcess, waiting)
	signal(19*time.Minute, SignalAgents, Order{}) // Job may have forgotten it
	expect(20*time.Minute, 2, none, none)
	at(t, m.TestWorkflowEnvironment, 21*time.Minute, func() {
		if v := versionStatus(t, m.TestWorkflowEnvironment); !v.Managed || v.Unmanned != none.Why {
			t.Errorf("its status is %+v", v)
		}
		m.wait(false) // somebody runs it by hand
	})
	expect(23*time.Minute, 2, none, none, some)
	at(t, m.TestWorkflowEnvironment, 24*time.Minute, func() { m.wait(true) })
	expect(26*time.Minute, 2, none, none, some, none)
	signal(27*time.Minute, SignalStop, Order{})
	m.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1})
	done(t, m.TestWorkflowEnvironment)
	if v := versionStatus(t, m.TestWorkflowEnvironment); v.State != Stopped || v.Unmanned != "" || m.runs(ProcessID("payments", 1, 0)) || m.told[len(m.told)-1] != some {
		t.Errorf("in the end it is %+v, and Job was told %+v", v, m.told)
	}
}

// TestVersionGetsProcessesAtOnce does so when Job says that it owns the version, and remembers both over continue-as-new.
func TestVersionGetsProcessesAtOnce(t *testing.T) {
	m := newMannedTest(t)
	m.SetDetachedChildWait(false) // they run on
	m.wait(true)
	at(t, m.TestWorkflowEnvironment, 10*time.Second, func() { m.SignalWorkflow(SignalAgents, Order{}) })
	at(t, m.TestWorkflowEnvironment, 11*time.Second, func() {
		if m.hired != 2 {
			t.Errorf("%d processes were started", m.hired)
		}
		m.SignalWorkflow(SignalProcess, ProcessReport{Process: 0, State: Waiting, Error: &Problem{Message: "no agent has room for it"}})
		m.SetContinueAsNewSuggested(true)
	})
	m.ExecuteWorkflow(VersionType, VersionInput{Job: "payments", Version: 1})
	var again *workflow.ContinueAsNewError
	if err := m.GetWorkflowError(); !errors.As(err, &again) {
		t.Fatalf("it ended with %v", err)
	}
	next := newMannedTest(t)
	next.wait(true)
	for i := range 6 {
		next.set(ShardID("payments", 1, i), true)
	}
	for i := range 2 {
		next.set(ProcessID("payments", 1, i), true)
	}
	at(t, next.TestWorkflowEnvironment, 2*time.Minute, func() {
		if v := versionStatus(t, next.TestWorkflowEnvironment); !v.Managed || len(v.Processes) != 2 || next.hired != 0 || next.starts != 0 || len(next.told) != 0 {
			t.Errorf("the next run: %+v; started %d and %d, told %+v", v, next.hired, next.starts, next.told)
		}
		next.set(ProcessID("payments", 1, 1), false)
	})
	at(t, next.TestWorkflowEnvironment, 4*time.Minute, func() {
		if next.hired != 1 {
			t.Errorf("%d processes were started", next.hired)
		}
		next.CancelWorkflow()
	})
	at(t, next.TestWorkflowEnvironment, 4*time.Minute+10*time.Second, func() {
		for i := range 6 {
			next.set(ShardID("payments", 1, i), false)
		}
		next.set(ProcessID("payments", 1, 0), false)
	})
	next.ExecuteWorkflow(VersionType, converter.NewRawValue(again.Input.GetPayloads()[0]))
	if err := next.GetWorkflowError(); !temporal.IsCanceledError(err) {
		t.Errorf("it ended with %v", err)
	}
}

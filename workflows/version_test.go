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
	starts  int
	signals []string // "id signal"
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
			d.Running = append(d.Running, s.runs(id))
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

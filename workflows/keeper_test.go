package workflows

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// environment is a Temporal of virtual time with all workflows, and activities that a test replaces.
func environment(t *testing.T) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	return environmentWith(t, Shard)
}

// environmentWith is one with another workflow in place of Shard.
func environmentWith(t *testing.T, shard any) *testsuite.TestWorkflowEnvironment {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.NewTextHandler(io.Discard, nil))))
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(20 * time.Second)
	for name, f := range map[string]any{VersionType: Version, ShardType: shard, ArchiveType: Archive, PublisherType: Publisher} {
		env.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	var s activities.Shards
	var c activities.Control
	var a activities.Archives
	var p activities.Publishers
	for name, f := range map[string]any{"RunShard": s.RunShard, "Prepare": c.Prepare, "Describe": c.Describe, "RunArchiver": a.RunArchiver, "RunPublisher": p.RunPublisher} {
		env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	return env
}

// shardEnvironment is one whose shards report to nobody.
func shardEnvironment(t *testing.T) *testsuite.TestWorkflowEnvironment {
	env := environment(t)
	env.OnSignalExternalWorkflow(mock.Anything, mock.Anything, mock.Anything, SignalShard, mock.Anything).Return(nil)
	return env
}

func shardInput() ShardInput { return ShardInput{Job: "payments", Version: 3, Shard: 0, Shards: 1} }

// runs makes RunShard answer by attempt, from 1 on; nil lets it run on.
func runs(env *testsuite.TestWorkflowEnvironment, answer func(n int) error) *int {
	n := 0
	env.OnActivity("RunShard", mock.Anything, mock.Anything).Return(func(context.Context, activities.ShardInput) (activities.Ended, error) {
		n++
		if err := answer(n); err != nil {
			return activities.Ended{}, err
		}
		return activities.Ended{}, activity.ErrResultPending
	})
	return &n
}

func statusOf(t *testing.T, env *testsuite.TestWorkflowEnvironment) (s Status) {
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

// expectState fails the test unless the workflow is in a state.
func expectState(t *testing.T, env *testsuite.TestWorkflowEnvironment, want string) Status {
	t.Helper()
	s := statusOf(t, env)
	if s.State != want {
		t.Errorf("the state is %s, want %s: %+v", s.State, want, s)
	}
	return s
}

// done fails the test unless the workflow has ended well.
func done(t *testing.T, env *testsuite.TestWorkflowEnvironment) {
	t.Helper()
	if !env.IsWorkflowCompleted() {
		t.Error("the workflow has not ended")
	} else if err := env.GetWorkflowError(); err != nil {
		t.Errorf("the workflow ended with %v", err)
	}
}

// later calls f after a time, and fails the test if the workflow has ended by then.
func later(t *testing.T, env *testsuite.TestWorkflowEnvironment, f func(), after time.Duration) {
	t.Helper()
	called := false
	env.RegisterDelayedCallback(func() { called = true; f() }, after)
	t.Cleanup(func() {
		if !called {
			t.Errorf("the workflow had ended before %s", after)
		}
	})
}

func broken(retryable bool) error {
	return temporal.NewApplicationErrorWithOptions("no room in the bucket", activities.External, temporal.ApplicationErrorOptions{NonRetryable: !retryable})
}

func TestShardRunsUntilItIsStopped(t *testing.T) {
	env := shardEnvironment(t)
	n := runs(env, func(int) error { return nil })
	later(t, env, func() { expectState(t, env, Running) }, time.Hour)
	later(t, env, func() { env.SignalWorkflow(SignalStop, Order{Reason: "over"}) }, 2*time.Hour)
	env.ExecuteWorkflow(ShardType, shardInput())
	done(t, env)
	expectState(t, env, Stopped)
	if *n != 1 {
		t.Errorf("it ran %d times", *n)
	}
}

func TestRunThatEndsWellStartsAgain(t *testing.T) {
	env := shardEnvironment(t)
	n := 0
	env.OnActivity("RunShard", mock.Anything, mock.Anything).Return(func(context.Context, activities.ShardInput) (activities.Ended, error) {
		if n++; n < 4 {
			return activities.Ended{Reason: activities.Rotated, Last: activities.Beat{Checkpoint: uint64(n)}}, nil
		}
		return activities.Ended{}, activity.ErrResultPending
	})
	later(t, env, func() {
		if s := expectState(t, env, Running); s.Last == nil || s.Last.Last.Checkpoint != 3 || s.Attempts != 0 {
			t.Errorf("status %+v", s)
		}
		env.SignalWorkflow(SignalStop, nil)
		env.CancelWorkflow()
	}, time.Minute)
	env.ExecuteWorkflow(ShardType, shardInput())
	if n != 4 {
		t.Errorf("it ran %d times", n)
	}
}

func TestCrashLoopIsSeenAndGoesOn(t *testing.T) {
	env := shardEnvironment(t)
	n := runs(env, func(n int) error {
		if n <= 20 { // two rounds of ten attempts
			return broken(true)
		}
		return nil
	})
	crashed := 0
	for _, at := range []time.Duration{20 * time.Second, 25 * time.Second, 45 * time.Second} {
		later(t, env, func() {
			s := expectState(t, env, CrashLooping)
			if s.Error == nil || s.Error.Type != activities.External || !strings.Contains(s.Error.Message, "no room") || s.Attempts%10 != 0 || s.Attempts == 0 {
				t.Errorf("status %+v, error %+v", s, s.Error)
			}
			crashed++
		}, at)
	}
	later(t, env, func() {
		if s := expectState(t, env, Running); s.Attempts != 0 || s.Error == nil {
			t.Errorf("after it ran for a while: %+v", s)
		}
		env.SignalWorkflow(SignalStop, Order{})
	}, 10*time.Minute)
	env.ExecuteWorkflow(ShardType, shardInput())
	done(t, env)
	if *n != 21 || crashed != 3 {
		t.Errorf("it ran %d times; %d looks while it crashed", *n, crashed)
	}
}

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	env := shardEnvironment(t)
	n := runs(env, func(int) error { return broken(true) })
	later(t, env, func() { env.SignalWorkflow(SignalStop, Order{}) }, 2*time.Hour)
	env.ExecuteWorkflow(ShardType, shardInput())
	done(t, env)
	// Ten attempts take 13 s and their pauses 10, 20, … 300 s: 26 or 27 rounds.
	if rounds := *n / 10; rounds < 20 || rounds > 35 {
		t.Errorf("%d rounds in two hours", rounds)
	}
}

func TestRetryEndsTheBackoff(t *testing.T) {
	env := shardEnvironment(t)
	n := runs(env, func(n int) error {
		if n <= 60 {
			return broken(true)
		}
		return nil
	})
	for i := range 10 { // without these, six rounds take eight minutes
		later(t, env, func() { env.SignalWorkflow(SignalRetry, Order{}) }, time.Duration(i)*20*time.Second)
	}
	later(t, env, func() {
		if *n != 61 {
			t.Errorf("it ran %d times", *n)
		}
		env.SignalWorkflow(SignalStop, Order{})
	}, 4*time.Minute)
	env.ExecuteWorkflow(ShardType, shardInput())
	done(t, env)
}

func TestUselessRetriesWaitForAPerson(t *testing.T) {
	env := shardEnvironment(t)
	n := runs(env, func(n int) error {
		if n == 1 {
			return temporal.NewNonRetryableApplicationError("records are gone", activities.OffsetGone, nil)
		}
		return nil
	})
	later(t, env, func() {
		if s := expectState(t, env, Failed); s.Error.Type != activities.OffsetGone || *n != 1 {
			t.Errorf("it ran %d times: %+v", *n, s)
		}
		env.SignalWorkflow(SignalPause, Order{})
	}, 30*time.Hour)
	later(t, env, func() { expectState(t, env, Paused); env.SignalWorkflow(SignalResume, Order{}) }, 31*time.Hour)
	later(t, env, func() { expectState(t, env, Failed); env.SignalWorkflow(SignalRetry, Order{}) }, 32*time.Hour)
	later(t, env, func() { expectState(t, env, CrashLooping) }, 32*time.Hour+time.Minute)
	later(t, env, func() { expectState(t, env, Running); env.SignalWorkflow(SignalStop, Order{}) }, 33*time.Hour)
	env.ExecuteWorkflow(ShardType, shardInput())
	done(t, env)
	if *n != 2 {
		t.Errorf("it ran %d times", *n)
	}
}

func TestPauseAndResume(t *testing.T) {
	env := shardEnvironment(t)
	n := runs(env, func(int) error { return nil })
	later(t, env, func() { env.SignalWorkflow(SignalPause, Order{}) }, time.Hour)
	later(t, env, func() { expectState(t, env, Paused); env.SignalWorkflow(SignalResume, Order{}) }, 2*time.Hour)
	later(t, env, func() { expectState(t, env, Running); env.SignalWorkflow(SignalPause, Order{}) }, 3*time.Hour)
	later(t, env, func() { env.SignalWorkflow(SignalStop, Order{}) }, 4*time.Hour)
	env.ExecuteWorkflow(ShardType, shardInput())
	done(t, env)
	if *n != 2 {
		t.Errorf("it ran %d times", *n)
	}
}

func TestCancellationStops(t *testing.T) {
	env := shardEnvironment(t)
	runs(env, func(int) error { return nil })
	later(t, env, env.CancelWorkflow, time.Hour)
	env.ExecuteWorkflow(ShardType, shardInput())
	if err := env.GetWorkflowError(); !temporal.IsCanceledError(err) {
		t.Errorf("it ended with %v", err)
	}
	expectState(t, env, Stopped)
}

// payload is what reaches a workflow from somewhere else.
func payload(encoding, data string) converter.RawValue {
	return converter.NewRawValue(&commonpb.Payload{Metadata: map[string][]byte{converter.MetadataEncoding: []byte(encoding)}, Data: []byte(data)})
}

// garbage are inputs that no signal of ours has.
func garbage() map[string]converter.RawValue {
	return map[string]converter.RawValue{
		"a text":           payload("json/plain", `"x"`),
		"null":             payload("json/plain", `null`),
		"no value":         payload("binary/null", ``),
		"a number":         payload("json/plain", `7`),
		"a list":           payload("json/plain", `[{}]`),
		"an unknown key":   payload("json/plain", `{"reasons":"typo"}`),
		"a wrong type":     payload("json/plain", `{"reason":7,"job":7,"shard":"x"}`),
		"two objects":      payload("json/plain", `{} {}`),
		"half an object":   payload("json/plain", `{"reason":`),
		"nothing":          payload("json/plain", ``),
		"raw bytes":        payload("binary/plain", "\xff\xfe{}"),
		"invalid UTF-8":    payload("json/plain", "\xff\xfe"),
		"too much of it":   payload("json/plain", strings.Repeat("[", 100_000)),
		"an odd encoding":  payload("json/"+strings.Repeat("x", 1000), `{}`),
		"without encoding": converter.NewRawValue(&commonpb.Payload{Data: []byte(`{}`)}),
	}
}

func TestGarbageChangesNothing(t *testing.T) {
	for name, raw := range garbage() {
		t.Run(name, func(t *testing.T) {
			env := shardEnvironment(t)
			n := runs(env, func(int) error { return nil })
			signals := []string{SignalStop, SignalPause, SignalResume, SignalRetry, "rollback", "__nobody"}
			later(t, env, func() {
				for _, s := range signals {
					env.SignalWorkflow(s, raw)
				}
			}, time.Minute)
			later(t, env, func() {
				s := expectState(t, env, Running)
				if s.Count != len(signals) || len(s.Rejected) != min(len(signals), rejectedMax) || *n != 1 {
					t.Errorf("%d of %d rejected, %d runs: %+v", s.Count, len(signals), *n, s.Rejected)
				}
				for _, r := range s.Rejected {
					if r.Reason == "" || len(r.Input) > rejectedText+len("…") {
						t.Errorf("recorded %q for %.40q", r.Reason, r.Input)
					}
				}
				env.SignalWorkflow(SignalStop, Order{})
			}, time.Hour)
			env.ExecuteWorkflow(ShardType, shardInput())
			done(t, env)
		})
	}
}

func TestManyRejectedAreCounted(t *testing.T) {
	env := shardEnvironment(t)
	runs(env, func(int) error { return nil })
	later(t, env, func() {
		for range 100 {
			env.SignalWorkflow(SignalStop, "x")
		}
	}, time.Minute)
	later(t, env, func() {
		if s := expectState(t, env, Running); s.Count != 100 || len(s.Rejected) != rejectedMax {
			t.Errorf("%d counted, %d shown", s.Count, len(s.Rejected))
		}
		env.SignalWorkflow(SignalStop, Order{})
	}, time.Hour)
	env.ExecuteWorkflow(ShardType, shardInput())
	done(t, env)
}

func TestInputsAreStrict(t *testing.T) {
	inputs := garbage()
	inputs["nothing known"] = payload("json/plain", `{}`)
	for _, kind := range []string{ShardType, VersionType, ArchiveType, PublisherType} {
		for name, raw := range inputs {
			env := shardEnvironment(t)
			env.ExecuteWorkflow(kind, raw)
			var app *temporal.ApplicationError
			if err := env.GetWorkflowError(); !errors.As(err, &app) || app.Type() != "user" || !app.NonRetryable() || !strings.Contains(app.Message(), "it looks like {") {
				t.Errorf("%s with %s ended with %v", kind, name, err)
			}
		}
	}
}

func TestContinueAsNewCarriesEverything(t *testing.T) {
	env := shardEnvironment(t)
	runs(env, func(n int) error {
		if n <= 10 {
			return broken(true)
		}
		return nil
	})
	later(t, env, func() {
		env.SignalWorkflow(SignalStop, "x")
		env.SignalWorkflow("rollback", "y")
		env.SignalWorkflow(SignalPause, Order{})
	}, time.Hour)
	later(t, env, func() { env.SetContinueAsNewSuggested(true); env.SignalWorkflow(SignalPause, Order{}) }, 2*time.Hour)
	env.ExecuteWorkflow(ShardType, shardInput())
	var again *workflow.ContinueAsNewError
	if err := env.GetWorkflowError(); !errors.As(err, &again) || again.WorkflowType.Name != ShardType {
		t.Fatalf("it ended with %v", err)
	}
	var in ShardInput
	if err := decode(converter.NewRawValue(again.Input.GetPayloads()[0]), &in); err != nil {
		t.Fatal(err)
	}
	k := in.State
	if in.Job != "payments" || k == nil || !k.Paused || k.State != Paused || k.Count != 2 || len(k.Rejected) != 2 || k.Error == nil {
		t.Fatalf("it carries %+v", k)
	}

	next := shardEnvironment(t)
	n := runs(next, func(int) error { return nil })
	later(t, next, func() {
		if s := expectState(t, next, Paused); s.Count != 2 || *n != 0 {
			t.Errorf("the next run began with %+v, and ran %d times", s, *n)
		}
		next.SignalWorkflow(SignalStop, Order{})
	}, time.Hour)
	next.ExecuteWorkflow(ShardType, converter.NewRawValue(again.Input.GetPayloads()[0]))
	done(t, next)
}

func TestStateOfANewerEngineIsRead(t *testing.T) {
	var in ShardInput
	raw := payload("json/plain", `{"job":"payments","version":3,"shard":0,"shards":1,"state":{"paused":true,"invented_later":1}}`)
	if err := decode(raw, &in); err != nil || !in.State.Paused {
		t.Errorf("%+v, %v", in.State, err)
	}
}

func TestArchiveTakesMoreReaders(t *testing.T) {
	env := environment(t)
	var got [][]JobVersion
	env.OnActivity("RunArchiver", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.ArchiveInput) (activities.Ended, error) {
		got = append(got, in.Jobs)
		return activities.Ended{}, activity.ErrResultPending
	})
	second := JobVersion{Job: "audit", Version: 1}
	for i, signal := range []any{second, second, "x", JobVersion{}, JobVersion{Job: "audit"}} {
		later(t, env, func() { env.SignalWorkflow(SignalJobs, signal) }, time.Duration(i+1)*time.Minute)
	}
	later(t, env, func() {
		if s := expectState(t, env, Running); len(s.Jobs) != 2 || s.Count != 3 {
			t.Errorf("status %+v", s)
		}
		env.SignalWorkflow(SignalStop, Order{})
	}, time.Hour)
	env.ExecuteWorkflow(ArchiveType, ArchiveInput{Topic: "pay.orders", Jobs: []JobVersion{{Job: "payments", Version: 3}}})
	done(t, env)
	if len(got) != 2 || len(got[0]) != 1 || len(got[1]) != 2 || got[1][1] != second {
		t.Errorf("it ran for %v", got)
	}
}

func TestPublisherRuns(t *testing.T) {
	env := environment(t)
	env.OnActivity("RunPublisher", mock.Anything, activities.PublishInput{Job: "payments"}).Return(func(context.Context, activities.PublishInput) (activities.Ended, error) {
		return activities.Ended{}, activity.ErrResultPending
	}).Once()
	later(t, env, func() { expectState(t, env, Running); env.SignalWorkflow(SignalStop, Order{}) }, time.Hour)
	env.ExecuteWorkflow(PublisherType, PublisherInput{Job: "payments"})
	done(t, env)
	env.AssertExpectations(t)
}

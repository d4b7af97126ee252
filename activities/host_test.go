package activities

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"github.com/weftdata/weft/streaming"
)

// beats is a Temporal that hears heartbeats and answers as it is told. Within a bubble of synctest its times are virtual.
type beats struct {
	mu     sync.Mutex
	got    []Beat
	at     []time.Time
	answer func(n int, b Beat) error // n counts from 1
}

func (s *beats) RecordActivityHeartbeat(_ context.Context, _ []byte, details ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got, s.at = append(s.got, details[0].(Beat)), append(s.at, time.Now())
	if s.answer == nil {
		return nil
	}
	return s.answer(len(s.got), s.got[len(s.got)-1])
}

// runner is a shard that does what a test wants.
type runner func(ctx context.Context, progress func(streaming.Status)) error

func (r runner) RunShard(ctx context.Context, _ ShardInput, progress func(streaming.Status)) error {
	return r(ctx, progress)
}

// steady gets on every 100 ms, and saves a last checkpoint, which takes a second.
func steady(ctx context.Context, progress func(streaming.Status)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := int64(1); ; n++ {
		progress(streaming.Status{Epoch: 1, Records: n, Lag: 7, Checkpoint: uint64(n / 100)})
		select {
		case <-tick.C:
		case <-ctx.Done():
			time.Sleep(time.Second)
			if cause := context.Cause(ctx); cause != ctx.Err() {
				return cause // which looks like an error of something that the run depends on
			}
			return nil
		}
	}
}

// runShard runs the activity as a worker would. It must be called within a bubble.
func runShard(t *testing.T, h *Host, r runner, options ...func(*testsuite.TestActivityEnvironment)) (Ended, error) {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	for _, o := range options {
		o(env)
	}
	s := &Shards{Host: h, Runner: r}
	env.RegisterActivityWithOptions(s.RunShard, activity.RegisterOptions{Name: "RunShard"})
	v, err := env.ExecuteActivity("RunShard", ShardInput{Job: "payments", Version: 3, Shard: 0, Shards: 1})
	var e Ended
	if err == nil {
		err = v.Get(&e)
	}
	return e, err
}

// expectSilence checks that an attempt ended that Temporal has given up: nobody is told.
func expectSilence(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, activity.ErrResultPending) {
		t.Errorf("Temporal is told %v", err)
	}
}

// expectFailure checks the type of a failure and whether it is tried again.
func expectFailure(t *testing.T, err error, kind string, retryable bool) {
	t.Helper()
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.Type() != kind || app.NonRetryable() == retryable {
		t.Errorf("got %v, want type %s, retryable %v", err, kind, retryable)
	}
}

func TestStopSavesACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beats{answer: func(n int, _ Beat) error {
			if n >= 3 {
				return temporal.NewCanceledError()
			}
			return nil
		}}
		began := time.Now()
		e, err := runShard(t, &Host{Beats: s, Process: "p"}, steady)
		if err != nil || e.Reason != Stopped || e.Last.Records == 0 || e.Last.State != "stopping" || e.Last.Process != "p" {
			t.Fatalf("ended %+v, %v", e, err)
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("it took %s, although the third heartbeat, after 6 s, asked to stop", took)
		}
		if b := s.got[1]; b.State != "running" || b.Lag != 7 || b.Epoch != 1 {
			t.Errorf("a heartbeat said %+v", b)
		}
	})
}

func TestRunEndsWithoutContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ended := time.Time{}
		s := &beats{answer: func(n int, _ Beat) error {
			if n > 5 { // the server goes away after 10 s
				return serviceerror.NewUnavailable("away")
			}
			return nil
		}}
		_, err := runShard(t, &Host{Beats: s}, func(ctx context.Context, progress func(streaming.Status)) error {
			err := steady(ctx, progress)
			ended = time.Now()
			return err
		})
		expectSilence(t, err)
		if after := ended.Sub(began); after < 20*time.Second || after > 23*time.Second {
			t.Errorf("the run ended after %s; its last heartbeat arrived after 10 s, and the timeout is %s", after, HeartbeatTimeout)
		}
	})
}

func TestShortOutageEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beats{answer: func(n int, _ Beat) error {
			switch {
			case n%5 != 0:
				return serviceerror.NewUnavailable("away")
			case n == 50:
				return temporal.NewCanceledError()
			}
			return nil
		}}
		h := &Host{Beats: s, Timing: Timing{Beat: 1900 * time.Millisecond}} // four of them lost: 9.5 s
		if e, err := runShard(t, h, steady); err != nil || e.Reason != Stopped {
			t.Errorf("ended %+v, %v", e, err)
		}
	})
}

func TestHeartbeatThatHangsIsNoContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		h := &Host{Beats: hanging{}}
		_, err := runShard(t, h, steady)
		expectSilence(t, err)
		if took := time.Since(began); took > 14*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// hanging is a server that takes a call and never answers.
type hanging struct{}

func (hanging) RecordActivityHeartbeat(ctx context.Context, _ []byte, _ ...any) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestLoopThatStandsStillIsNotKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beats{}
		began := time.Now()
		_, err := runShard(t, &Host{Beats: s}, func(ctx context.Context, progress func(streaming.Status)) error {
			progress(streaming.Status{})
			<-ctx.Done()
			return nil
		})
		expectFailure(t, err, Internal, true)
		if !strings.Contains(err.Error(), "stood still") {
			t.Errorf("the error does not say why: %v", err)
		}
		last := time.Time{}
		for i, b := range s.got {
			if b.State != "stopping" {
				last = s.at[i]
			}
		}
		if alive := last.Sub(began); alive > 10*time.Second {
			t.Errorf("heartbeats went on for %s after the last progress", alive)
		}
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("it was given up after %s", took)
		}
	})
}

func TestSlowStartIsKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := time.Now().Add(6 * time.Minute)
		s := &beats{answer: func(int, Beat) error {
			if time.Now().After(stop) {
				return temporal.NewCanceledError()
			}
			return nil
		}}
		e, err := runShard(t, &Host{Beats: s}, func(ctx context.Context, progress func(streaming.Status)) error {
			time.Sleep(5 * time.Minute) // restores a large state
			return steady(ctx, progress)
		})
		if err != nil || e.Reason != Stopped || s.got[0].State != "starting" {
			t.Errorf("ended %+v, %v; began with %+v", e, err, s.got[0])
		}
		for i := 1; i < len(s.at); i++ {
			if gap := s.at[i].Sub(s.at[i-1]); gap > 3*time.Second {
				t.Fatalf("no heartbeat for %s", gap)
			}
		}
	})
}

func TestStartThatNeverEndsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		h := &Host{Beats: &beats{}, Timing: Timing{Start: 2 * time.Minute}} // the environment allows activities 10 minutes
		_, err := runShard(t, h, func(ctx context.Context, _ func(streaming.Status)) error {
			<-ctx.Done()
			return nil
		})
		expectFailure(t, err, Internal, true)
		if took := time.Since(began); took < 2*time.Minute || took > 3*time.Minute {
			t.Errorf("it took %s", took)
		}
	})
}

func TestAttemptThatIsNotCurrentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beats{answer: func(int, Beat) error { return serviceerror.NewNotFound("no such attempt") }}
		began := time.Now()
		_, err := runShard(t, &Host{Beats: s}, steady)
		expectSilence(t, err)
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestNewAttemptFirstEndsItsPredecessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Host{Beats: &beats{}}
		var mu sync.Mutex
		running, most := 0, 0
		body := func(ctx context.Context, progress func(streaming.Status)) error {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			err := steady(ctx, progress)
			mu.Lock()
			running--
			mu.Unlock()
			return err
		}
		errs := make([]error, 3)
		var group sync.WaitGroup
		for i := range errs {
			group.Go(func() {
				stop := make(chan struct{})
				if i == 2 {
					time.AfterFunc(10*time.Second, func() { close(stop) })
				}
				_, errs[i] = runShard(t, h, body, func(e *testsuite.TestActivityEnvironment) { e.SetWorkerStopChannel(stop) })
			})
			time.Sleep(3 * time.Second)
		}
		group.Wait()
		if most != 1 {
			t.Errorf("%d attempts ran at once", most)
		}
		expectSilence(t, errs[0])
		expectSilence(t, errs[1])
		if errs[2] != nil {
			t.Errorf("the last one ended with %v", errs[2])
		}
		synctest.Wait() // a run leaves the list after its activity has returned
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.runs) != 0 {
			t.Errorf("%d runs are still listed", len(h.runs))
		}
	})
}

func TestPredecessorThatHangsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Host{Beats: &beats{}}
		release := make(chan struct{})
		first := make(chan error, 1)
		go func() {
			_, err := runShard(t, h, func(context.Context, func(streaming.Status)) error {
				<-release
				return nil
			})
			first <- err
		}()
		time.Sleep(time.Second)
		stop := make(chan struct{})
		time.AfterFunc(time.Minute, func() { close(stop) })
		e, err := runShard(t, h, steady, func(env *testsuite.TestActivityEnvironment) { env.SetWorkerStopChannel(stop) })
		if err != nil || e.Reason != WorkerStopped || e.Last.Records < 100 {
			t.Errorf("the attempt after it ended %+v, %v", e, err)
		}
		select {
		case err := <-first:
			expectSilence(t, err)
		default:
			t.Error("the slot of the attempt that hangs is not free")
		}
		close(release)
	})
}

func TestRunIsRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		e, err := runShard(t, &Host{Beats: &beats{}, Timing: Timing{Rotation: 5 * time.Minute}}, steady)
		if took := time.Since(began); err != nil || e.Reason != Rotated || took < 5*time.Minute || took > 6*time.Minute {
			t.Errorf("after %s: %+v, %v", took, e, err)
		}
	})
}

func TestPanicIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := runShard(t, &Host{Beats: &beats{}}, func(context.Context, func(streaming.Status)) error { panic("broken") })
		expectFailure(t, err, Internal, true)
		if !strings.Contains(err.Error(), "broken") || !strings.Contains(err.Error(), "host_test.go") {
			t.Errorf("the failure does not say where: %v", err)
		}
	})
}

func TestRunThatEndsByItselfIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := runShard(t, &Host{Beats: &beats{}}, func(context.Context, func(streaming.Status)) error { return nil })
		expectFailure(t, err, Internal, true)
	})
}

func TestFailedLastCheckpointIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beats{answer: func(int, Beat) error { return temporal.NewCanceledError() }}
		_, err := runShard(t, &Host{Beats: s}, func(ctx context.Context, _ func(streaming.Status)) error {
			<-ctx.Done()
			return errors.New("no room")
		})
		if err == nil || !strings.Contains(err.Error(), "no room") || !strings.Contains(err.Error(), errStop.Error()) {
			t.Errorf("got %v", err)
		}
	})
}

func TestFailures(t *testing.T) {
	adapters := func(err error) Failure {
		if strings.Contains(err.Error(), "password") {
			return Failure{User, false}
		}
		return Failure{External, true}
	}
	for _, c := range []struct {
		err       error
		kind      string
		retryable bool
	}{
		{fmt.Errorf("read: %w", streaming.ErrOffsetGone), OffsetGone, false},
		{fmt.Errorf("read: %w", streaming.ErrRecreated), Recreated, false},
		{fmt.Errorf("write: %w", streaming.ErrFenced), Fenced, true},
		{errors.New("wrong password"), User, false},
		{errors.New("connection refused"), External, true},
	} {
		expectFailure(t, (&Host{Classify: adapters}).failure(c.err), c.kind, c.retryable)
	}
	expectFailure(t, (&Host{}).failure(errors.New("what is this")), Internal, true)

	long := (&Host{}).failure(errors.New(strings.Repeat("é", 4000)))
	var app *temporal.ApplicationError
	if !errors.As(long, &app) || len(app.Message()) > 4096 || !utf8.ValidString(app.Message()) {
		t.Errorf("a long message is told with %d bytes", len(app.Message()))
	}
}

package activities

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
)

// slicer is a Staging whose slices do what a test wants.
type slicer struct {
	Staging
	run func(ctx context.Context, progress func(Beat)) (SliceDone, error)
}

func (s slicer) RunSlice(ctx context.Context, _ SliceInput, progress func(Beat)) (SliceDone, error) {
	return s.run(ctx, progress)
}

// runSlice runs the activity as a worker would. It must be called within a bubble.
func runSlice(t *testing.T, h *Host, run func(context.Context, func(Beat)) (SliceDone, error), options ...func(*testsuite.TestActivityEnvironment)) (SliceDone, error) {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	for _, o := range options {
		o(env)
	}
	b := &Backfills{Host: h, Staging: slicer{run: run}}
	env.RegisterActivityWithOptions(b.RunSlice, activity.RegisterOptions{Name: "RunSlice"})
	v, err := env.ExecuteActivity("RunSlice", SliceInput{Backfill: BackfillRef{Job: "payments", Version: 3, ID: "b1"}})
	var d SliceDone
	if err == nil {
		err = v.Get(&d)
	}
	return d, err
}

// long is a slice of five minutes that ends when it is told to.
func long(ctx context.Context, progress func(Beat)) (SliceDone, error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	end := time.After(5 * time.Minute)
	for n := int64(1); ; n++ {
		progress(Beat{Records: n})
		select {
		case <-tick.C:
		case <-end:
			return SliceDone{Rows: n}, nil
		case <-ctx.Done():
			return SliceDone{}, fmt.Errorf("read the archive: %w", ctx.Err())
		}
	}
}

func TestSliceRunsToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beats{}
		d, err := runSlice(t, &Host{Beats: s, Timing: BackfillTiming(), Process: "p"}, long)
		if err != nil || d.Rows < 1400 || d.Attempt != 1 {
			t.Errorf("it came to %+v, %v", d, err)
		}
		if n := len(s.got); n < 140 || s.got[n-1].Process != "p" || s.got[n-1].Records == 0 {
			t.Errorf("%d heartbeats", n)
		}
	})
}

func TestSliceIsCanceledByItsHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beats{answer: func(n int, _ Beat) error {
			if n >= 3 {
				return temporal.NewCanceledError()
			}
			return nil
		}}
		began := time.Now()
		_, err := runSlice(t, &Host{Beats: s, Timing: BackfillTiming()}, long)
		if !temporal.IsCanceledError(err) || time.Since(began) > 7*time.Second {
			t.Errorf("it ended with %v after %s", err, time.Since(began))
		}
	})
}

// TestSliceMovesWhenItsProcessEnds: another process tries at once, and it is not the fault of the slice.
func TestSliceMovesWhenItsProcessEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		time.AfterFunc(time.Minute, func() { close(stop) })
		_, err := runSlice(t, &Host{Beats: &beats{}, Timing: BackfillTiming()}, long, func(env *testsuite.TestActivityEnvironment) { env.SetWorkerStopChannel(stop) })
		expectFailure(t, err, WorkerStopped, true)
		var app *temporal.ApplicationError
		if errors.As(err, &app) && app.NextRetryDelay() > time.Second {
			t.Errorf("the next attempt waits %s", app.NextRetryDelay())
		}
	})
}

// TestSliceThatIsNotHeardEnds: Temporal has started another attempt by then, so this one is silent.
func TestSliceThatIsNotHeardEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ended := false
		_, err := runSlice(t, &Host{Beats: &beats{answer: func(int, Beat) error { return errors.New("unavailable") }}, Timing: BackfillTiming()},
			func(ctx context.Context, progress func(Beat)) (SliceDone, error) {
				defer func() { ended = true }()
				return long(ctx, progress)
			})
		expectSilence(t, err)
		if took := time.Since(began); !ended || took > 15*time.Second {
			t.Errorf("after %s it has ended: %v", took, ended)
		}
	})
}

func TestSliceFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		classes := func(err error) Failure {
			return Failure{Type: External, Retryable: strings.Contains(err.Error(), "away")}
		}
		for text, retryable := range map[string]bool{"the store is away": true, "no such bucket": false} {
			_, err := runSlice(t, &Host{Beats: &beats{}, Classify: classes}, func(context.Context, func(Beat)) (SliceDone, error) {
				return SliceDone{}, errors.New(text)
			})
			expectFailure(t, err, External, retryable)
			if !strings.Contains(err.Error(), text) {
				t.Errorf("it says %v", err)
			}
		}
		// An upload takes up to a minute between two signs of progress.
		_, err := runSlice(t, &Host{Beats: &beats{}, Timing: BackfillTiming()}, func(_ context.Context, progress func(Beat)) (SliceDone, error) {
			progress(Beat{Records: 1})
			time.Sleep(50 * time.Second)
			return SliceDone{}, nil
		})
		if err != nil {
			t.Errorf("a slow one ended with %v", err)
		}
		_, err = runSlice(t, &Host{Beats: &beats{}, Timing: BackfillTiming()}, func(ctx context.Context, progress func(Beat)) (SliceDone, error) {
			progress(Beat{Records: 1})
			<-ctx.Done()
			return SliceDone{}, ctx.Err()
		})
		if err == nil || !strings.Contains(err.Error(), "stood still") {
			t.Errorf("one that stands still ended with %v", err)
		}
	})
}

package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
)

// Beats sends heartbeats; a client of Temporal does. The SDK's own way tells an activity neither that a heartbeat arrived
// nor that it did not, and holds beats back for 80 % of the timeout, so that a stop takes as long to arrive.
type Beats interface {
	RecordActivityHeartbeat(ctx context.Context, taskToken []byte, details ...any) error
}

// Timing says how long things may take. The zero value has the defaults.
type Timing struct {
	Beat     time.Duration // between two heartbeats; default 2 s. A stop takes as long to arrive
	Lost     time.Duration // without a heartbeat that arrived, after which a run ends itself; default HeartbeatTimeout
	Stalled  time.Duration // without progress, after which no heartbeat is sent; after twice that the run is given up. Default 10 s
	Start    time.Duration // until the first progress: a large state takes long to restore; default 10 min
	Stop     time.Duration // for the last checkpoint, after which a run is given up; default 25 s, below the worker's 30 s
	Rotation time.Duration // after which a run ends by itself, up to an hour later; default 20 h
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		of    *time.Duration
		value time.Duration
	}{
		{&t.Beat, 2 * time.Second}, {&t.Lost, HeartbeatTimeout}, {&t.Stalled, 10 * time.Second},
		{&t.Start, 10 * time.Minute}, {&t.Stop, 25 * time.Second}, {&t.Rotation, 20 * time.Hour},
	} {
		if *d.of == 0 {
			*d.of = d.value
		}
	}
	return t
}

// Host keeps the long runs of one process.
//
// A run heartbeats only while its loop gets on, so that one that hangs is started elsewhere. What it hears in return ends it:
// a stop, or that it is not the current attempt any more. If it hears nothing for Timing.Lost it ends itself, since Temporal
// starts another then. And a new attempt in the same process first ends the one before.
type Host struct {
	Beats    Beats
	Classify func(error) Failure // of what the classes of this package do not cover; nil: internal, retryable
	Process  string              // name of this process, for people
	Log      *slog.Logger        // nil: discards
	Timing   Timing
	Tokens   Tokens // of the runs of this process; nil: nobody wants to know

	mu   sync.Mutex
	runs map[string]*attempt
}

// Tokens keeps the task tokens of the runs of a process, for whoever tells Temporal when it has died.
type Tokens interface {
	RunStarted(run string, token []byte) error
	RunEnded(run string) error
}

// The causes for which a run is ended.
var (
	errStop       = errors.New("asked to stop")
	errRotate     = errors.New("ran for long")
	errWorker     = errors.New("the process ends")
	errLost       = errors.New("Temporal did not answer for the heartbeat timeout, so another attempt may run")
	errSuperseded = errors.New("another attempt has started")
	errStalled    = errors.New("the loop stood still")
	errEnded      = errors.New("the run ended although nobody asked for it")
	errDone       = errors.New("done") // what a run returns that ends by itself
)

// attempt is one run of an activity.
type attempt struct {
	host   *Host
	name   string
	timing Timing
	log    *slog.Logger
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the run has ended, after its activity where that gave up

	mu       sync.Mutex
	beat     Beat
	progress time.Time // the last; zero before the first
}

// enter makes an attempt the current one of its name in this process and returns the one before, which it cancels.
func (h *Host) enter(a *attempt) (before *attempt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.runs == nil {
		h.runs = map[string]*attempt{}
	}
	if before = h.runs[a.name]; before != nil {
		before.cancel(errSuperseded)
	}
	h.runs[a.name] = a
	return before
}

func (h *Host) leave(a *attempt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(a.done)
	if h.runs[a.name] == a {
		delete(h.runs, a.name)
	}
}

// keep runs body as one attempt of the activity that ctx is of.
func (h *Host) keep(ctx context.Context, name string, body func(context.Context, func(Beat)) error) (Ended, error) {
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	log := h.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &attempt{
		host: h, name: name, timing: h.Timing.withDefaults(), log: log.With("run", name, "attempt", activity.GetInfo(ctx).Attempt),
		cancel: cancel, done: make(chan struct{}), beat: Beat{State: "starting", Process: h.Process},
	}
	before := h.enter(a)
	if h.Tokens != nil { // without a token Temporal notices by itself, only later
		if err := h.Tokens.RunStarted(name, activity.GetInfo(ctx).TaskToken); err != nil {
			a.log.Warn("the token of a run was not kept", "error", err)
		}
		defer func() {
			if err := h.Tokens.RunEnded(name); err != nil {
				a.log.Warn("the token of a run stays", "error", err)
			}
		}()
	}
	ended := make(chan error, 1)
	// A run is told that it should end, not why: a cause would look like an error of something that it depends on.
	plain, end := context.WithCancel(context.WithoutCancel(ctx))
	defer context.AfterFunc(run, end)()
	go func() {
		defer end()
		defer h.leave(a)
		defer func() {
			if p := recover(); p != nil {
				ended <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		if before != nil {
			a.awaitEnd(run, before)
		}
		if run.Err() != nil { // stopped before it began: it has changed nothing
			ended <- nil
			return
		}
		ended <- body(plain, a.note)
	}()
	err := a.watch(ctx, run, ended)
	cause := context.Cause(run)
	a.mu.Lock()
	last := a.beat
	a.mu.Unlock()
	if errors.Is(err, errDone) {
		return Ended{done, last}, nil
	}
	if err == nil {
		for reason, end := range map[string]error{Stopped: errStop, Rotated: errRotate, WorkerStopped: errWorker} {
			if errors.Is(cause, end) {
				a.log.Info("ended", "reason", reason)
				return Ended{reason, last}, nil
			}
		}
		if err = cause; err == nil {
			err = errEnded
		}
	} else if cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w (while it was ending: %v)", err, cause)
	}
	a.log.Warn("failed", "error", err)
	if errors.Is(cause, errLost) || errors.Is(cause, errSuperseded) {
		// Temporal counts on this attempt no more: its heartbeat timeout began before ours. To tell it all the same would keep
		// the slot from the next attempt, by 10 s where the server is away.
		return Ended{}, activity.ErrResultPending
	}
	if errors.Is(err, activity.ErrActivityPaused) || errors.Is(err, activity.ErrActivityReset) {
		return Ended{}, err // the SDK tells Temporal what these mean
	}
	return Ended{}, h.failure(err)
}

// awaitEnd waits for the run before this one, but not for ever: it cannot write any more once this one has its epoch.
func (a *attempt) awaitEnd(ctx context.Context, before *attempt) {
	a.log.Info("ending the attempt before")
	limit := time.NewTimer(a.timing.Stop)
	defer limit.Stop()
	select {
	case <-before.done:
	case <-limit.C:
		a.log.Warn("the attempt before does not end; going on without waiting", "waited", a.timing.Stop)
	case <-ctx.Done():
	}
}

// note is called by the run whenever it got on.
func (a *attempt) note(b Beat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b.State, b.Process = "running", a.beat.Process
	if a.beat.State == "stopping" {
		b.State = a.beat.State
	}
	a.beat, a.progress = b, time.Now()
}

// stop ends the run, which then saves its last checkpoint.
func (a *attempt) stop(cause error) {
	a.mu.Lock()
	a.beat.State = "stopping"
	a.mu.Unlock()
	a.cancel(cause)
}

// standing returns for how long nothing got on beyond what is allowed for that.
func (a *attempt) standing(began, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.progress.IsZero() {
		return now.Sub(began) - a.timing.Start + a.timing.Stalled
	}
	return now.Sub(a.progress)
}

// watch sends heartbeats until the run has ended, and ends it when it must. It gives up on a run that does not end, so that
// the slot is free for another attempt.
func (a *attempt) watch(ctx, run context.Context, ended chan error) error {
	token := activity.GetInfo(ctx).TaskToken
	began := time.Now()
	arrived := began // the start of the attempt counts as a heartbeat
	tick := time.NewTicker(a.timing.Beat)
	defer tick.Stop()
	rotation := time.NewTimer(a.timing.Rotation + time.Duration(rand.Int64N(int64(a.timing.Rotation/20))))
	defer rotation.Stop()
	// Heartbeats go on while the activity is being stopped, and no longer than it.
	beating, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	sent := make(chan error, 1)
	sending := false
	var giveUp <-chan time.Time
	stopping, worker := run.Done(), activity.GetWorkerStopChannel(ctx)
	for {
		select {
		case err := <-ended:
			return err
		case <-giveUp:
			return fmt.Errorf("%w, and does not end: its goroutine is left behind", context.Cause(run))
		case <-stopping:
			stopping = nil
			a.stop(context.Cause(run))
			limit := time.NewTimer(a.timing.Stop)
			defer limit.Stop()
			giveUp = limit.C
		case <-rotation.C:
			a.stop(errRotate)
		case <-worker:
			worker = nil
			a.stop(errWorker)
		case now := <-tick.C:
			standing := a.standing(began, now)
			hold := run.Err() == nil && standing >= a.timing.Stalled
			switch {
			case hold && standing >= 2*a.timing.Stalled:
				a.stop(fmt.Errorf("%w for %s", errStalled, standing.Round(time.Second)))
			case !hold && now.Sub(arrived) >= a.timing.Lost:
				a.stop(errLost)
			}
			if sending || hold {
				continue
			}
			sending = true
			go func() { sent <- a.send(beating, token) }()
		case err := <-sent:
			sending = false
			if err == nil {
				arrived = time.Now()
				continue
			}
			a.heard(err)
		}
	}
}

// send sends one heartbeat.
func (a *attempt) send(ctx context.Context, token []byte) error {
	a.mu.Lock()
	b := a.beat
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, a.timing.Lost)
	defer cancel()
	return a.host.Beats.RecordActivityHeartbeat(ctx, token, b)
}

// heard acts on what came in place of an acknowledgement. Errors that may pass end the run only when they last.
func (a *attempt) heard(err error) {
	var gone *serviceerror.NotFound
	switch {
	case temporal.IsCanceledError(err):
		a.stop(errStop)
	case errors.As(err, &gone):
		a.stop(errSuperseded)
	case errors.Is(err, activity.ErrActivityPaused), errors.Is(err, activity.ErrActivityReset):
		a.stop(err)
	default:
		a.log.Warn("a heartbeat did not arrive", "error", err)
	}
}

package workflows

import (
	"encoding/json"
	"errors"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

const (
	backoffMin = 10 * time.Second // after all attempts have failed; doubles
	backoffMax = 5 * time.Minute
	// steadyAfter is how long a run must last to count as running again after it crashed: attempts that fail for a server
	// that is away last a minute each.
	steadyAfter = 5 * time.Minute
)

// Status is what the query "status" answers for Shard, Archive and Publisher.
type Status struct {
	State string    `json:"state"`
	Since time.Time `json:"since"` // of the state
	// Attempts counts those that failed since it last ran steadily. Temporal's own count of the activity at hand comes on
	// top of it.
	Attempts int               `json:"attempts"`
	Error    *Problem          `json:"error,omitempty"` // the last
	Last     *activities.Ended `json:"last,omitempty"`  // the last run that ended well
	Jobs     []JobVersion      `json:"jobs,omitempty"`  // of Archive
	Rejections
}

// kept is what a keeper carries over when it continues as new.
type kept struct {
	Status
	Paused bool `json:"paused,omitempty"`
	Failed bool `json:"failed,omitempty"` // trying again is useless
	Rounds int  `json:"rounds,omitempty"` // of attempts that failed, since it last ran steadily
}

// UnmarshalJSON passes over keys that it does not know: a newer engine may have written them before a rollback.
func (k *kept) UnmarshalJSON(data []byte) error {
	type plain kept
	return json.Unmarshal(data, (*plain)(k))
}

// keeper keeps one long activity running: it starts it again whenever it ends, shows crash loops, waits where trying again
// is useless, and obeys signals.
type keeper struct {
	job, version string // for search
	kept
	inbox inbox

	stop, retry bool
	again       bool // the run is to be ended and started anew, with another input
	// claimed says that somebody has to take the run before it counts as running; taken, that somebody has.
	claimed, taken bool

	start  func(ctx workflow.Context) workflow.Future
	report func(ctx workflow.Context) // tells a parent of a new state; may be nil
}

// newKeeper returns a keeper that goes on where carried ended, or begins. More handlers come after its own: of signals that
// arrive at once stop has the last word.
func newKeeper(job, version string, carried *kept, more ...handler) *keeper {
	k := &keeper{job: job, version: version}
	if carried != nil {
		k.kept = *carried
	}
	k.inbox.Rejections = &k.Rejections
	k.inbox.handlers = append(more,
		order(SignalRetry, func(Order) error { k.retry = true; return nil }),
		order(SignalResume, func(Order) error { k.Paused = false; return nil }),
		order(SignalPause, func(Order) error { k.Paused = true; return nil }),
		order(SignalStop, func(Order) error { k.stop = true; return nil }),
	)
	return k
}

// enter notes a new state and tells whoever wants to know.
func (k *keeper) enter(ctx workflow.Context, state string) error {
	if k.State == state {
		return nil
	}
	k.State, k.Since = state, workflow.Now(ctx)
	if err := mark(ctx, k.job, k.version, state); err != nil {
		return err
	}
	if k.report != nil {
		k.report(ctx)
	}
	return nil
}

// errContinue says that the workflow should continue as new.
var errContinue = errors.New("continue as new")

// keep answers the query "status", and keeps the activity running until the workflow of a kind ends or continues as new, with the
// input that again makes of what is carried over.
func (k *keeper) keep(ctx workflow.Context, kind string, status func() any, again func(*kept) any) error {
	if err := workflow.SetQueryHandler(ctx, QueryStatus, func() (any, error) { return status(), nil }); err != nil {
		return err
	}
	err := k.run(ctx)
	if errors.Is(err, errContinue) {
		return workflow.NewContinueAsNewError(ctx, kind, again(&k.kept))
	}
	return err
}

// run keeps the activity running until stop, which it returns nil for, a cancellation, or errContinue.
func (k *keeper) run(outer workflow.Context) error {
	// What is left to do after a cancellation is done all the same.
	ctx, cancel := workflow.NewDisconnectedContext(outer)
	defer cancel()
	for {
		k.inbox.drain(ctx)
		canceled := outer.Err() != nil
		switch {
		case k.stop || canceled:
			if err := k.enter(ctx, Stopped); err != nil {
				return err
			}
			k.inbox.drain(ctx)
			return outer.Err()
		case workflow.GetInfo(ctx).GetContinueAsNewSuggested():
			return errContinue
		case k.Paused:
			if err := k.wait(outer, ctx, Paused, 0, func() bool { return !k.Paused }); err != nil {
				return err
			}
		case k.Failed && !k.retry:
			if err := k.wait(outer, ctx, Failed, 0, func() bool { return k.retry }); err != nil {
				return err
			}
		case k.Rounds > 0 && !k.retry:
			if err := k.wait(outer, ctx, CrashLooping, k.backoff(), func() bool { return k.retry }); err != nil {
				return err
			}
			k.retry = true // the wait is over, however it ended: stop and pause are looked at first
		default:
			if err := k.once(outer, ctx); err != nil {
				return err
			}
		}
	}
}

func (k *keeper) backoff() time.Duration {
	d := backoffMin
	for range k.Rounds - 1 {
		if d *= 2; d >= backoffMax {
			return backoffMax
		}
	}
	return d
}

// wait stays in a state until done, a time (if it is not 0), stop, pause or a cancellation.
func (k *keeper) wait(outer, ctx workflow.Context, state string, limit time.Duration, done func() bool) error {
	if err := k.enter(ctx, state); err != nil {
		return err
	}
	timing, cancel := workflow.WithCancel(ctx)
	defer cancel()
	var timer workflow.Future
	if limit > 0 {
		timer = workflow.NewTimer(timing, limit)
	}
	paused := k.Paused
	for !done() && !k.stop && k.Paused == paused {
		over := func() bool {
			return timer != nil && timer.IsReady() || outer.Err() != nil || workflow.GetInfo(ctx).GetContinueAsNewSuggested()
		}
		if err := workflow.Await(ctx, func() bool { return over() || k.inbox.pending(ctx) }); err != nil {
			return err
		}
		k.inbox.drain(ctx)
		if over() {
			return nil
		}
	}
	return nil
}

// once runs the activity once, to its end.
func (k *keeper) once(outer, ctx workflow.Context) error {
	crashed := k.Attempts > 0
	k.retry, k.again, k.Failed, k.taken = false, false, false, false
	state := Running
	switch {
	case crashed:
		state = CrashLooping // until it has run for a while
	case k.claimed:
		state = Waiting
	}
	if err := k.enter(ctx, state); err != nil {
		return err
	}
	running, cancel := workflow.WithCancel(ctx)
	defer cancel()
	result := k.start(running)
	var steady workflow.Future
	if crashed {
		steady = workflow.NewTimer(running, steadyAfter)
	}
	ending := false
	for !result.IsReady() {
		settled := func() bool { return steady != nil && steady.IsReady() }
		must := func() bool {
			return k.stop || k.Paused || k.again || outer.Err() != nil || workflow.GetInfo(ctx).GetContinueAsNewSuggested()
		}
		err := workflow.Await(ctx, func() bool {
			return result.IsReady() || settled() || k.inbox.pending(ctx) || must() && !ending
		})
		if err != nil {
			return err
		}
		k.inbox.drain(ctx)
		if k.taken && !ending {
			if err := k.claim(ctx); err != nil {
				return err
			}
		}
		if settled() && !ending {
			steady, k.Attempts, k.Rounds = nil, 0, 0
			if err := k.enter(ctx, Running); err != nil {
				return err
			}
		}
		if must() && !ending && !result.IsReady() {
			ending, steady = true, nil
			if err := k.enter(ctx, Stopping); err != nil {
				return err
			}
			cancel()
		}
	}
	return k.ended(ctx, result, ending)
}

// claim notes that somebody has taken the run; it may be another one than before.
func (k *keeper) claim(ctx workflow.Context) error {
	k.taken = false
	if k.State == Waiting {
		k.Error = nil
		return k.enter(ctx, Running)
	}
	k.report(ctx)
	return nil
}

// ended notes how a run of the activity ended.
func (k *keeper) ended(ctx workflow.Context, result workflow.Future, asked bool) error {
	var last activities.Ended
	err := result.Get(ctx, &last)
	switch {
	case err == nil:
		k.Last, k.Attempts, k.Rounds = &last, 0, 0
		return nil
	case temporal.IsCanceledError(err) && asked:
		return nil // it had not begun
	}
	var timeout *temporal.TimeoutError
	if k.claimed && !asked && errors.As(err, &timeout) && timeout.TimeoutType() == enums.TIMEOUT_TYPE_SCHEDULE_TO_START {
		k.Error = &Problem{Type: activities.External, Message: "no agent has room for it: start one on some machine (weft agent)", At: workflow.Now(ctx)}
		if err := k.enter(ctx, Waiting); err != nil {
			return err
		}
		k.report(ctx)
		return nil
	}
	problem := problemOf(ctx, err)
	k.Error = &problem
	if asked { // its last checkpoint failed; the next run goes on from the one before
		return nil
	}
	var app *temporal.ApplicationError
	if errors.As(err, &app) && app.NonRetryable() {
		k.Attempts++
		k.Failed = true
		return nil
	}
	k.Attempts += attemptsMax
	k.Rounds++
	return nil
}

// problemOf describes an error of an activity.
func problemOf(ctx workflow.Context, err error) Problem {
	p := Problem{Type: activities.Internal, Message: err.Error(), At: workflow.Now(ctx)}
	var app *temporal.ApplicationError
	var timeout *temporal.TimeoutError
	switch {
	case errors.As(err, &app):
		p.Type, p.Message = app.Type(), app.Message()
	case errors.As(err, &timeout):
		p.Type, p.Message = activities.External, "the worker did not answer: "+timeout.Error()
	}
	return p
}

package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
)

// AgentQueue is the task queue that the agent of every machine polls: whichever has room takes a process.
const AgentQueue = "weft-agents"

// SignalStarted tells the workflow of a process that an agent has started it; it carries a Started.
const SignalStarted = "started"

// ProcessInput names one process of a job version.
type ProcessInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"`
	Process int    `json:"process"` // from 0
	Slots   int    `json:"slots"`   // shards that it runs at once
}

// Started says where a process was started.
type Started struct {
	Agent string `json:"agent"`
	PID   int    `json:"pid"`
}

// Launcher starts processes. The process keeps the activity that the token is of alive, and whoever started it, or follows
// him on the same machine, tells Temporal how it ended.
type Launcher interface {
	Launch(ctx context.Context, in ProcessInput, token []byte) (Started, error)
}

// Signaler sends signals to workflows; a client of Temporal does.
type Signaler interface {
	SignalWorkflow(ctx context.Context, id, run, signal string, arg any) error
}

// Processes has the activity of AgentQueue.
type Processes struct {
	Host     *Host
	Launcher Launcher
	Signals  Signaler
}

// RunProcess starts a process of a job version. It ends with the process, whatever becomes of the agent.
func (p *Processes) RunProcess(ctx context.Context, in ProcessInput) (Ended, error) {
	info := activity.GetInfo(ctx)
	started, err := p.Launcher.Launch(ctx, in, info.TaskToken)
	if err != nil {
		return Ended{}, p.Host.failure(fmt.Errorf("start process %d of version %d of %s: %w", in.Process, in.Version, in.Job, err))
	}
	if err := p.Signals.SignalWorkflow(ctx, info.WorkflowExecution.ID, info.WorkflowExecution.RunID, SignalStarted, started); err != nil {
		p.Host.Log.Warn("a workflow does not know that its process has started", "workflow", info.WorkflowExecution.ID, "error", err)
	}
	return Ended{}, activity.ErrResultPending
}

// Lease is what a process holds on the activity that it is.
type Lease struct {
	Beats  Beats
	Token  []byte
	Timing Timing      // Beat and Lost
	Beat   func() Beat // what a heartbeat carries
	Log    *slog.Logger
}

// The reasons for which a process ends that loses its lease.
const (
	Superseded = "superseded" // another process has started in its place
	Lost       = "lost"       // Temporal did not answer for the heartbeat timeout
)

// Keep sends heartbeats until it hears that the process should end, and says why: Stopped, Superseded or Lost. It returns ""
// where ctx is done first.
func (l *Lease) Keep(ctx context.Context) (reason string) {
	timing := l.Timing.withDefaults()
	tick := time.NewTicker(timing.Beat)
	defer tick.Stop()
	for arrived := time.Now(); ; {
		sending, cancel := context.WithTimeout(ctx, timing.Lost)
		err := l.Beats.RecordActivityHeartbeat(sending, l.Token, l.Beat())
		cancel()
		var gone *serviceerror.NotFound
		switch {
		case ctx.Err() != nil:
			return ""
		case err == nil:
			arrived = time.Now()
		case temporal.IsCanceledError(err):
			return Stopped
		case errors.As(err, &gone):
			return Superseded
		case errors.Is(err, activity.ErrActivityPaused), errors.Is(err, activity.ErrActivityReset):
			return Stopped
		default:
			l.Log.Warn("a heartbeat of the process did not arrive", "error", err)
			if time.Since(arrived) >= timing.Lost {
				return Lost
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ""
		}
	}
}

// Crash is the failure of an activity whose process has died; it is tried again.
func Crash(what string) error { return temporal.NewApplicationError(shorten(what), Internal) }

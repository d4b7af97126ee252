package workers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/workflows"
)

const (
	// stopTimeout is how long runs have for their last checkpoint when the process ends; the SDK's default is none.
	stopTimeout = 30 * time.Second
	// stickyTimeout is how long a workflow waits for the worker that has it in memory, before another one takes it up; the SDK's
	// default is 5 s. Workflows of the type Job do not wait at all, see toAnyWorker.
	stickyTimeout = 200 * time.Millisecond
	// deadlockTimeout is for machines that are busy with other things: the SDK's second is too short for them.
	deadlockTimeout = 5 * time.Second
)

// Roles of a control worker: the task queues that it serves.
const (
	ControlRole = "control"
	ArchiveRole = "archive"
	PublishRole = "publish"

	BackfillRole = "backfill"
)

// Roles returns all of them.
func Roles() []string { return []string{ControlRole, ArchiveRole, PublishRole, BackfillRole} }

// Config says what a process of workers does: some roles of control, shards of one job version, or both.
type Config struct {
	Env      *Env
	Temporal client.Client
	Identity string // of the process
	Log      *slog.Logger

	Roles   []string // of Roles
	Job     string   // empty: no shards
	Version int
	Slots   int // shards that run at once; default 4

	// Engine is the file of the binary that versions run on which this worker registers; empty: any.
	Engine string

	Limits     Limits // of what versions may ask for, for ControlRole
	Versions   *Versions
	Archiver   activities.Archiver  // for ArchiveRole
	Publisher  activities.Publisher // for PublishRole
	HostTiming activities.Timing
	Tokens     activities.Tokens // of the shards' runs; may be nil
}

const slotsDefault = 4

// Validate fills in defaults and reports everything wrong at once.
func (c *Config) Validate() error {
	var errs []error
	for _, r := range c.Roles {
		if !slices.Contains(Roles(), r) {
			errs = append(errs, fmt.Errorf("role %q: expected one of %s", r, strings.Join(Roles(), ", ")))
		}
	}
	if c.Slots == 0 {
		c.Slots = slotsDefault
	}
	if c.Slots < 0 {
		errs = append(errs, fmt.Errorf("%d shard slots: expected 1 or more", c.Slots))
	}
	if c.Job != "" && c.Version < 1 {
		errs = append(errs, fmt.Errorf("version %d of %s: expected 1 or more", c.Version, c.Job))
	}
	if err := c.Limits.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.Job == "" && len(c.Roles) == 0 {
		errs = append(errs, errors.New("neither a role nor a job version to work for"))
	}
	return errors.Join(errs...)
}

// Run works until ctx is done, and then ends the runs with their last checkpoints.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	host := &activities.Host{Beats: cfg.Temporal, Classify: Classify, Process: cfg.Identity, Log: cfg.Log, Timing: cfg.HostTiming, Tokens: cfg.Tokens}
	fatal := make(chan error, len(cfg.Roles)+1)
	var all []worker.Worker
	for _, role := range cfg.Roles {
		all = append(all, cfg.control(role, host, fatal))
	}
	if cfg.Job != "" {
		all = append(all, cfg.shards(host, fatal))
	}
	for i, w := range all {
		if err := w.Start(); err != nil {
			stopAll(all[:i])
			return fmt.Errorf("start a worker: %w", err)
		}
	}
	cfg.Log.Info("working", "roles", strings.Join(cfg.Roles, ","), "job", cfg.Job, "version", cfg.Version, "identity", cfg.Identity)
	var err error
	select {
	case <-ctx.Done():
	case err = <-fatal:
		err = fmt.Errorf("a worker cannot go on: %w", err)
	}
	stopAll(all)
	return err
}

// stopAll stops workers at the same time: each may take as long as its last checkpoints.
func stopAll(all []worker.Worker) {
	done := make(chan struct{})
	for _, w := range all {
		go func() { w.Stop(); done <- struct{}{} }()
	}
	for range all {
		<-done
	}
}

func (c *Config) options(fatal chan error) worker.Options {
	return worker.Options{
		Identity: c.Identity, WorkerStopTimeout: stopTimeout, StickyScheduleToStartTimeout: stickyTimeout,
		DeadlockDetectionTimeout: deadlockTimeout, DisableRegistrationAliasing: true,
		OnFatalError: func(err error) {
			select {
			case fatal <- err:
			default: // the first one ends the process
			}
		},
	}
}

func (c *Config) control(role string, host *activities.Host, fatal chan error) worker.Worker {
	o := c.options(fatal)
	switch role {
	case ArchiveRole:
		o.DisableWorkflowWorker = true
		w := worker.New(c.Temporal, activities.ArchiveQueue, o)
		w.RegisterActivityWithOptions((&activities.Archives{Host: host, Runner: c.Archiver}).RunArchiver, named("RunArchiver"))
		return w
	case PublishRole:
		o.DisableWorkflowWorker = true
		w := worker.New(c.Temporal, activities.PublishQueue, o)
		w.RegisterActivityWithOptions((&activities.Publishers{Host: host, Runner: c.Publisher}).RunPublisher, named("RunPublisher"))
		return w
	case BackfillRole:
		return c.backfills(o)
	}
	o.Interceptors, o.MaxHeartbeatThrottleInterval = []interceptor.WorkerInterceptor{&alive{}}, aliveEvery
	w := worker.New(c.Temporal, activities.Queue, o)
	c.registerBackfill(w, host)
	control := &activities.Control{Host: host, Preparer: c.Versions, Describer: c.Temporal}
	w.RegisterActivityWithOptions(control.Prepare, named("Prepare"))
	w.RegisterActivityWithOptions(control.Describe, named("Describe"))
	c.registerLifecycle(w, host)
	for name, f := range map[string]any{
		workflows.VersionType: workflows.Version, workflows.ShardType: workflows.Shard, workflows.ProcessType: workflows.Process,
		workflows.ArchiveType: workflows.Archive, workflows.PublisherType: workflows.Publisher,
	} {
		w.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	return w
}

// shards returns the worker of a version. It takes no more than its slots, so that the others of many shards find another
// process.
func (c *Config) shards(host *activities.Host, fatal chan error) worker.Worker {
	o := c.options(fatal)
	o.DisableWorkflowWorker = true
	o.MaxConcurrentActivityExecutionSize = c.Slots
	w := worker.New(c.Temporal, activities.VersionQueue(c.Job, c.Version), o)
	w.RegisterActivityWithOptions((&activities.Shards{Host: host, Runner: c.Versions}).RunShard, named("RunShard"))
	return w
}

func named(name string) activity.RegisterOptions { return activity.RegisterOptions{Name: name} }

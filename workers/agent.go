package workers

import (
	"context"
	"fmt"
	"log/slog"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"github.com/weftdata/weft/activities"
)

// AgentConfig says what starts processes when Temporal asks for them.
type AgentConfig struct {
	Temporal client.Client
	Launcher activities.Launcher
	Slots    worker.SlotSupplier // of processes
	Identity string
	Log      *slog.Logger
}

// RunAgent takes processes until ctx is done. They run on.
func RunAgent(ctx context.Context, cfg AgentConfig) error {
	fatal := make(chan error, 1)
	o := (&Config{Identity: cfg.Identity}).options(fatal)
	o.DisableWorkflowWorker = true
	o.MaxConcurrentActivityTaskPollers = 1 // each holds a slot while it waits
	var err error
	if o.Tuner, err = agentTuner(cfg.Slots); err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	w := worker.New(cfg.Temporal, activities.AgentQueue, o)
	host := &activities.Host{Beats: cfg.Temporal, Classify: Classify, Process: cfg.Identity, Log: cfg.Log}
	p := &activities.Processes{Host: host, Launcher: cfg.Launcher, Signals: cfg.Temporal}
	w.RegisterActivityWithOptions(p.RunProcess, named("RunProcess"))
	if err := w.Start(); err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	cfg.Log.Info("taking processes", "identity", cfg.Identity)
	select {
	case <-ctx.Done():
	case err = <-fatal:
		err = fmt.Errorf("a worker cannot go on: %w", err)
	}
	w.Stop()
	return err
}

// agentTuner has slots for processes; of the rest an agent needs nothing.
func agentTuner(slots worker.SlotSupplier) (worker.WorkerTuner, error) {
	one, err := worker.NewFixedSizeSlotSupplier(1)
	if err != nil {
		return nil, err
	}
	return worker.NewCompositeTuner(worker.CompositeTunerOptions{
		WorkflowSlotSupplier: one, ActivitySlotSupplier: slots, LocalActivitySlotSupplier: one, NexusSlotSupplier: one, SessionActivitySlotSupplier: one,
	})
}

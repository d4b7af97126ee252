package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/agent"
	"github.com/weftdata/weft/workers"
)

// The log of a process is rotated: so much of it stays on its machine, beside what the agent passes on.
const (
	logMegabytes = 10
	logFiles     = 5
)

// runProcess runs a worker in the folder in which an agent started it: until its lease is over, or until it is told to end.
func (f *workerFlags) runProcess(c *cobra.Command, cfg workers.Config, level slog.Level) error {
	p, err := agent.Attach(f.process)
	if err != nil {
		return err
	}
	log := &lumberjack.Logger{Filename: p.WorkerLog(), MaxSize: logMegabytes, MaxBackups: logFiles}
	defer func() { _ = log.Close() }() // what matters was said
	logger, err := workers.NewLogger(log, "json", level)
	if err != nil {
		return err
	}
	identity := workers.Identity(fmt.Sprintf("%s/%d", f.job, f.version))
	s, err := connect(c.Context(), f.at, f.work, identity, logger)
	if err != nil {
		logger.Error("cannot start", "error", err)
		return err
	}
	beat := func() activities.Beat {
		return activities.Beat{State: "running", Process: identity, Memory: agent.MemoryOf(os.Getpid())}
	}
	lease := &activities.Lease{Beats: s.temporal, Token: p.Token, Beat: beat, Log: logger}
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	lost := make(chan string, 1)
	go func() {
		lost <- lease.Keep(ctx)
		cancel()
	}()
	cfg.Tokens = p
	err = errors.Join(s.serveMetrics(ctx, f.metrics), s.work(ctx, cfg))
	cancel()
	reason := <-lost
	if reason == "" {
		reason = activities.WorkerStopped
	}
	if err = errors.Join(err, s.close()); err != nil {
		logger.Error("ends", "error", err)
		return err
	}
	logger.Info("ends", "reason", reason)
	return p.End(reason, beat())
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/agent"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

type agentFlags struct {
	name, dir string
	cgroups   []string
	processes int
	log       logFlags
	at        stack.Addresses
}

func newAgentCommand() *cobra.Command {
	var f agentFlags
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run the processes of job versions on this machine",
		Long: "Run the processes of job versions on this machine: one for every four shards of a version that is deployed, each with its\n" +
			"own folder, log, environment and limits, and on the binary that its version was registered with. Every machine has one\n" +
			"agent; whichever has room takes a process, and where a machine vanishes its processes start on another.\n\n" +
			"SIGTERM ends the agent and leaves its processes running: the next agent in the same folder looks after them, so an\n" +
			"upgrade stops nothing. Ctrl-C (SIGINT) ends them too, with a last checkpoint each.",
		Example: "  weft agent\n  weft agent --work /var/lib/weft --processes 8 --log-format json\n  weft agent --cgroup /sys/fs/cgroup/weft\n  weft agent --cgroup /sys/fs/cgroup/memory/weft --cgroup /sys/fs/cgroup/cpu/weft",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	usual := os.TempDir()
	if cache, err := os.UserCacheDir(); err == nil {
		usual = cache
	}
	c.Flags().StringVar(&f.dir, "work", filepath.Join(usual, "weft", "agent"), "folder of the agent and its processes")
	c.Flags().StringVar(&f.name, "name", "", "name of the agent (default the machine's)")
	c.Flags().IntVar(&f.processes, "processes", 16, "processes that run at once")
	c.Flags().StringArrayVar(&f.cgroups, "cgroup", nil, "folder of a cgroup that this user may change and no other agent does, for exact bounds of memory and\n"+
		"processors; twice with cgroups of version 1, for the controllers memory and cpu")
	f.log.add(c)
	serverFlags(c, &f.at)
	return c
}

func (f *agentFlags) run(c *cobra.Command) error {
	level, err := f.log.parse()
	if f.processes < 1 {
		err = errors.Join(err, fmt.Errorf("--processes %d: expected 1 or more", f.processes))
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	logger, err := workers.NewLogger(c.ErrOrStderr(), f.log.format, level)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		return err
	}
	engine, err := os.Executable()
	if err != nil {
		return err
	}
	// Which signal it was decides what becomes of the processes; the command's own context is done with either.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	defer signal.Stop(interrupted)
	ctx := c.Context()
	at, err := stack.Find(f.at, stack.Temporal, stack.S3)
	if err != nil {
		return err
	}
	t, err := workers.DialTemporal(ctx, at, workers.Identity("agent"), logger)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := workers.CheckSetUp(ctx, t, at.Namespace); err != nil {
		return err
	}
	env, err := workers.OpenEnv(ctx, at, stack.S3)
	if err != nil {
		return err
	}
	defer func() { _ = env.Close() }() // what was written is acknowledged
	a, err := agent.Open(agent.Config{
		Name: f.name, Dir: dir, Processes: f.processes, Engine: engine, Env: append(environment(), f.at.Variables()...), CGroups: f.cgroups,
		Versions: registry.New(env.Objects), Temporal: t, Logs: env.Objects, Log: logger,
	})
	if err != nil {
		return err
	}
	err = workers.RunAgent(ctx, workers.AgentConfig{Temporal: t, Launcher: a, Slots: a.Slots(), Identity: workers.Identity("agent"), Log: logger})
	select {
	case <-interrupted:
		logger.Info("ending all processes", "processes", a.Running())
		ending, cancel := signal.NotifyContext(context.WithoutCancel(ctx), os.Interrupt, syscall.SIGTERM)
		err = errors.Join(err, a.EndAll(ending))
		cancel()
	default:
		logger.Info("leaving the processes to the next agent", "processes", a.Running())
	}
	return errors.Join(err, a.Close())
}

// environment returns the variables of this process that those of job versions get: where servers are, and what a program
// needs to find its way. Nothing else reaches them.
func environment() (list []string) {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "PATH", "HOME", "XDG_CACHE_HOME", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR":
		default:
			if !strings.HasPrefix(name, "WEFT_") {
				continue
			}
		}
		list = append(list, v)
	}
	return list
}

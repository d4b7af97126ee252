package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/metrics"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

// namespaceRetentionMin is the least that Temporal takes.
const namespaceRetentionMin = 24 * time.Hour

// serverFlags adds the flags that name servers. What they do not say comes from variables or a running stack.
func serverFlags(c *cobra.Command, at *stack.Addresses) {
	f := c.Flags()
	f.StringVar(&at.Temporal, "temporal", "", "host:port of Temporal (default $WEFT_TEMPORAL, or the running stack's; so are the others)")
	f.StringVar(&at.Namespace, "namespace", "", "namespace of Temporal")
	addKafkaFlags(f, at)
	f.StringVar(&at.S3, "s3", "", "object store, as http://host:port")
	f.StringVar(&at.Store, "store", "", "serving store, as sqlite:PATH or postgres://…")
}

// logFlags are the flags of commands that log.
type logFlags struct{ format, level string }

func (f *logFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.format, "log-format", "text", "text or json")
	c.Flags().StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	_ = errors.Join( // they exist
		c.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions(workers.LogFormats(), cobra.ShellCompDirectiveNoFileComp)),
		c.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)))
}

func (f *logFlags) parse() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return level, fmt.Errorf("--log-level %q: expected debug, info, warn or error", f.level)
	}
	return level, nil
}

func newWorkerCommand() *cobra.Command {
	var f workerFlags
	c := &cobra.Command{
		Use:   "worker [--only ROLE,...] | worker --job JOB --version N",
		Short: "Run a process that does the work of workflows",
		Long: "Run a process that does the work of workflows, until SIGINT or SIGTERM, which ends its runs with a last checkpoint\n" +
			"within 30 seconds.\n\n" +
			"Without --job it is a control worker: it decides what runs (control), archives topics (archive), publishes results\n" +
			"(publish) and computes backfills (backfill); --only picks some of these. With --job and --version it runs shards of that version, as many at once as it\n" +
			"has slots; the shards of a version spread over all processes that are started for it.",
		Example: "  weft worker\n" +
			"  weft worker --only archive --log-format json\n" +
			"  weft worker --job payments --version 3 --slots 2",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	c.Flags().StringSliceVar(&f.only, "only", nil, "roles of a control worker: "+strings.Join(workers.Roles(), ", "))
	c.Flags().StringVar(&f.job, "job", "", "run shards of this job")
	c.Flags().IntVar(&f.version, "version", 0, "and this version")
	c.Flags().IntVar(&f.slots, "slots", 4, "shards that run at once")
	c.Flags().Float64Var(&f.limits.CPU, "max-cpu", 0, "refuse deployments whose spec asks for more processors in resources.cpu (default any number; control)")
	c.Flags().StringVar(&f.maxMemory, "max-memory", "", "refuse deployments whose spec asks for more in resources.memory, as 4GiB (control)")
	c.Flags().IntVar(&f.limits.Shards, "max-shards", 0, "refuse deployments, and scale, with more shards (default any number; control)")
	c.Flags().StringVar(&f.process, "process", "", "folder in which an agent started this process")
	_ = c.Flags().MarkHidden("process") // it exists; only agents use it
	workFlag(c, &f.work)
	f.log.add(c)
	addMetricsFlag(c, &f.metrics)
	serverFlags(c, &f.at)
	_ = c.RegisterFlagCompletionFunc("only", cobra.FixedCompletions(workers.Roles(), cobra.ShellCompDirectiveNoFileComp)) // it exists
	return c
}

type workerFlags struct {
	limits         workers.Limits
	maxMemory      string
	only           []string
	job            string
	version, slots int
	work, process  string
	log            logFlags
	metrics        string
	at             stack.Addresses
}

// workFlag adds the flag that names the folder for state that does not fit the memory.
func workFlag(c *cobra.Command, dir *string) {
	usual := os.TempDir()
	if cache, err := os.UserCacheDir(); err == nil {
		usual = cache
	}
	c.Flags().StringVar(dir, "work", filepath.Join(usual, "weft", "work"), "folder for state that does not fit the memory; it may be lost")
}

func (f *workerFlags) run(c *cobra.Command) error {
	cfg := workers.Config{Roles: f.only, Job: f.job, Version: f.version, Slots: f.slots}
	if len(f.only) == 0 && f.job == "" {
		cfg.Roles = workers.Roles()
	}
	level, err := f.log.parse()
	if f.maxMemory != "" {
		bytes, wrong := jobspec.ParseSize(f.maxMemory)
		if wrong != nil {
			err = errors.Join(err, fmt.Errorf("--max-memory %q: %w", f.maxMemory, wrong))
		}
		f.limits.MemoryBytes = bytes
	}
	if cfg.Limits = f.limits; f.limits != (workers.Limits{}) && (f.job != "" || len(f.only) > 0 && !slices.Contains(f.only, workers.ControlRole)) {
		err = errors.Join(err, errors.New("--max-cpu, --max-memory and --max-shards are for control workers, which decide about deployments"))
	}
	if f.job == "" && f.version != 0 {
		err = errors.Join(err, errors.New("--version is one of a job: name it with --job"))
	}
	if f.job != "" && len(f.only) > 0 {
		err = errors.Join(err, errors.New("--only and --job exclude each other: start two processes"))
	}
	if f.slots < 1 {
		err = errors.Join(err, fmt.Errorf("--slots %d: expected 1 or more", f.slots))
	}
	if err = errors.Join(err, cfg.Validate()); err != nil {
		return &exitError{exitUsage, err}
	}
	if f.process != "" {
		return f.runProcess(c, cfg, level)
	}
	logger, err := workers.NewLogger(c.ErrOrStderr(), f.log.format, level)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	role := "control"
	if f.job != "" {
		role = fmt.Sprintf("%s/%d", f.job, f.version)
	}
	s, err := connect(c.Context(), f.at, f.work, workers.Identity(role), logger)
	if err != nil {
		return err
	}
	if f.job == "" {
		cfg.Engine, err = os.Executable()
	}
	if err == nil {
		err = s.serveMetrics(c.Context(), f.metrics)
	}
	if err == nil {
		err = s.work(c.Context(), cfg)
	}
	return errors.Join(err, s.close())
}

// servers are the connections of a command that works.
type servers struct {
	env      *workers.Env
	temporal client.Client
	identity string
	log      *slog.Logger
	versions *workers.Versions
	metrics  *metrics.Metrics // nil: not served
}

// connect connects to all servers, and refuses a Temporal that is not set up.
func connect(ctx context.Context, flags stack.Addresses, work, identity string, logger *slog.Logger) (s *servers, err error) {
	at, err := stack.Find(flags)
	if err != nil {
		return nil, err
	}
	s = &servers{identity: identity, log: logger}
	if s.temporal, err = workers.DialTemporal(ctx, at, identity, logger); err != nil {
		return nil, err
	}
	if err = workers.CheckSetUp(ctx, s.temporal, at.Namespace); err == nil {
		s.env, err = workers.OpenEnv(ctx, at, stack.Kafka, stack.S3, stack.Store)
	}
	if err != nil {
		s.temporal.Close()
		return nil, err
	}
	s.versions = &workers.Versions{Env: s.env, Log: logger, Work: work}
	return s, nil
}

func (s *servers) close() error {
	s.temporal.Close()
	return s.env.Close()
}

// work runs workers until ctx is done.
func (s *servers) work(ctx context.Context, cfg workers.Config) error {
	cfg.Env, cfg.Temporal, cfg.Identity, cfg.Log, cfg.Versions = s.env, s.temporal, s.identity, s.log, s.versions
	cfg.Archiver = &workers.Archives{Env: s.env, Log: s.log, Observe: s.metrics.SetArchiver}
	cfg.Publisher = &workers.Publications{Env: s.env, Log: s.log, Observe: s.metrics.SetPublisher}
	s.versions.Slots = cfg.Slots
	return workers.Run(ctx, cfg)
}

func newSetupCommand() *cobra.Command {
	var at stack.Addresses
	var create bool
	var retention, wait time.Duration
	c := &cobra.Command{
		Use:   "setup",
		Short: "Register at Temporal what Weft's workflows need",
		Long: "Register the search attributes WeftJob, WeftPhase and WeftVersion in the namespace. Doing it again changes nothing.\n" +
			"An embedded stack (weft-dev) has them already.",
		Example: "  weft setup --temporal temporal.internal:7233 --namespace payments\n  weft setup --create-namespace",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if retention < namespaceRetentionMin {
				return &exitError{exitUsage, fmt.Errorf("--retention %s: Temporal wants %s at least", retention, namespaceRetentionMin)}
			}
			ctx := c.Context()
			found, err := stack.Find(at, stack.Temporal)
			if err != nil {
				return err
			}
			t, err := workers.AwaitTemporal(ctx, found, workers.Identity("cli"), slog.New(slog.DiscardHandler), wait)
			if err != nil {
				return err
			}
			defer t.Close()
			text, err := setUp(ctx, t, found.Namespace, create, retention)
			if err == nil {
				_, err = fmt.Fprintln(c.OutOrStdout(), text)
			}
			return err
		},
	}
	c.Flags().BoolVar(&create, "create-namespace", false, "make the namespace where there is none")
	c.Flags().DurationVar(&retention, "retention", 7*24*time.Hour, "how long a namespace that is made keeps finished workflows")
	c.Flags().DurationVar(&wait, "wait", 0, "how long to wait for a Temporal that is starting")
	temporalFlags(c, &at)
	return c
}

// setUp makes what is missing and says what that was.
func setUp(ctx context.Context, t client.Client, namespace string, create bool, retention time.Duration) (text string, err error) {
	text = "namespace " + namespace + ": "
	if create {
		created, err := workers.CreateNamespace(ctx, t, namespace, retention)
		if err != nil {
			return "", err
		}
		if created {
			text += "made, "
		}
	}
	added, err := workers.SetUp(ctx, t, namespace)
	if err != nil {
		return "", err
	}
	if len(added) == 0 {
		return text + "everything is there already", nil
	}
	return text + "registered " + strings.Join(added, ", "), nil
}

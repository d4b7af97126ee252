package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"golang.org/x/term"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

func newJobCommand() *cobra.Command {
	return newGroup("job", "Run jobs live and look after them",
		"  weft job run --spec payments.yaml\n  weft job status payments",
		newJobRunCommand(), newJobListCommand(), newJobStatusCommand(), newJobShowCommand(), newJobHistoryCommand(), newJobDiffCommand(), newJobCompareCommand(), newJobLogsCommand(), newJobVersionsCommand(),
		newJobRequestCommand(workflows.SignalPromote, "Serve the candidate of a job without the rest of its canary",
			"Where the spec wants two persons to agree, this is how the second one does."),
		newJobRequestCommand(workflows.SignalAbort, "Give the candidate of a job up",
			"It is stopped; its results and the reasons are kept."),
		newJobRequestCommand(workflows.SignalRollback, "Serve the version again that a job served before",
			"It takes one switch while the rollback window of the spec lasts, and gives up what is being rolled out. Any other\n"+
				"version is started again first, and served once it has caught up: weft job show says degraded until then."),
		newJobRequestCommand(workflows.SignalRebuild, "Compute the served version of a job anew, and serve that",
			"It is rolled out as another version of the same spec, without a canary. What came too late is in time then."),
		newJobRequestCommand(workflows.SignalScale, "Run a job with another number of shards",
			"The number is fixed when a version starts, so the served one is computed anew as another version, and served once it\n"+
				"has caught up. More than one shard needs shard_by in the spec."),
		newJobOrderCommand(workflows.SignalStop, "End a job: its shards save a last checkpoint, and its publisher ends",
			"The results stay and can be read. Archivers go on, since a topic may have other readers;\n"+
				"`tctl workflow signal -w archive/TOPIC -n stop` ends one."),
		newJobOrderCommand(workflows.SignalPause, "Let a job's shards save a last checkpoint and wait", ""),
		newJobOrderCommand(workflows.SignalResume, "Let a paused job go on", ""),
		newJobOrderCommand(workflows.SignalRetry, "Let what failed or waits after a crash try again at once", ""),
	)
}

func newJobRunCommand() *cobra.Command {
	var f jobRunFlags
	c := &cobra.Command{
		Use:   "run --spec FILE",
		Short: "Register a version of a job, and run it",
		Long: "Check a spec, register it as the next version of its job (the same spec as the latest is that version again), and\n" +
			"start its workflows: the version with its shards, the archiver of each topic, and the publisher if the job has sinks.\n" +
			"Topics must exist, or be made with --create-topics.\n\n" +
			"The command then does their work in this process until Ctrl-C, which saves a last checkpoint. The job stays deployed:\n" +
			"the same command, or `weft worker`, goes on. With --detach it leaves the work to workers that run elsewhere.",
		Example: "  weft job run --spec payments.yaml\n" +
			"  weft job run --spec payments.yaml --shards 4 --message 'refunds link for a week' --detach\n\n" +
			"  # the same by hand, for a version that is registered:\n" +
			"  tctl workflow start --taskqueue weft --workflow_type Version --workflow_id version/payments/1 \\\n" +
			"    --input '{\"job\":\"payments\",\"version\":1,\"shards\":1}'",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	c.Flags().StringVar(&f.spec, "spec", "", "job spec, or - for standard input")
	c.Flags().IntVar(&f.shards, "shards", 0, "shards of the version (default 1); more need shard_by in the spec")
	c.Flags().Int32Var(&f.createTopics, "create-topics", 0, "make the sources' topics that do not exist, with so many partitions")
	c.Flags().StringVar(&f.message, "message", "", "why there is a new version")
	c.Flags().BoolVar(&f.detach, "detach", false, "start the workflows and return")
	c.Flags().BoolVar(&f.json, "json", false, "print what was started as one line of JSON")
	workFlag(c, &f.work)
	f.log.add(c)
	addMetricsFlag(c, &f.metrics)
	serverFlags(c, &f.at)
	_ = c.MarkFlagRequired("spec") // it exists
	return c
}

type jobRunFlags struct {
	spec, message string
	shards        int
	createTopics  int32
	detach, json  bool
	work          string
	log           logFlags
	metrics       string
	at            stack.Addresses
}

// started is what `job run` started; its keys are a contract.
type started struct {
	Job       string   `json:"job"`
	Version   int      `json:"version"`
	Existed   bool     `json:"existed"` // the version was registered before
	Workflows []string `json:"workflows"`
}

func (f *jobRunFlags) run(c *cobra.Command) error {
	level, err := f.log.parse()
	if f.shards < 0 {
		err = errors.Join(err, fmt.Errorf("--shards %d: expected 1 or more", f.shards))
	}
	if f.createTopics < 0 {
		err = errors.Join(err, fmt.Errorf("--create-topics %d: expected a number of partitions", f.createTopics))
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	checked := checkFile(f.spec, c.InOrStdin())
	if !checked.Valid {
		return errors.Join(showText(c, []checkResult{checked}), &exitError{code: exitUsage})
	}
	if f.shards > 1 && checked.spec.ShardBy == "" {
		return &exitError{exitUsage, fmt.Errorf("--shards %d: the spec has no shard_by to divide records by; name a field there, or run one shard", f.shards)}
	}
	line := newStatusLine(c.ErrOrStderr())
	logger, err := workers.NewLogger(line, f.log.format, level)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ctx := c.Context()
	s, err := connect(ctx, f.at, f.work, workers.Identity("job-run"), logger)
	if err != nil {
		return err
	}
	defer func() { _ = s.close() }() // what was written is acknowledged
	did, err := f.start(ctx, s, checked)
	if err != nil {
		return err
	}
	if err := f.show(c.OutOrStdout(), did); err != nil || f.detach {
		return err
	}
	watch := &runWatch{line: line, shards: map[int]streaming.Status{}}
	if err := s.serveMetrics(ctx, f.metrics); err != nil {
		return err
	}
	s.versions.Observe = alsoObserve(s.versions.Observe, watch.observe)
	shown, stopShowing := context.WithCancel(ctx)
	var showing sync.WaitGroup
	showing.Go(func() { watch.show(shown) })
	err = s.work(ctx, workers.Config{Roles: workers.Roles(), Job: did.Job, Version: did.Version, Slots: max(f.shards, 1)})
	stopShowing()
	showing.Wait()
	if err == nil && !f.json {
		_, err = fmt.Fprintf(c.OutOrStdout(), "stopped. The job stays deployed: the same command goes on, `weft job stop %s` ends it.\n", did.Job)
	}
	return err
}

// checkTopics finds topics that do not exist before anything is started, and makes them where that was asked for.
func (f *jobRunFlags) checkTopics(ctx context.Context, k *kafka.Client, spec *jobspec.Spec) error {
	var missing []string
	for _, source := range spec.Sources {
		_, err := k.Topic(ctx, source.Topic)
		if errors.Is(err, kafka.ErrNoTopic) && f.createTopics > 0 {
			_, _, err = k.CreateTopic(ctx, source.Topic, f.createTopics, nil)
		}
		switch {
		case errors.Is(err, kafka.ErrNoTopic):
			missing = append(missing, source.Topic)
		case err != nil:
			return fmt.Errorf("source %s: %w", source.Name, err)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("these topics do not exist: %s; create them, correct their names in the spec, or let --create-topics 4 make them",
			strings.Join(missing, ", "))
	}
	return nil
}

// start registers the version and starts its workflows. Those that run already and wait after a failure try again.
func (f *jobRunFlags) start(ctx context.Context, s *servers, checked checkResult) (did started, err error) {
	if err := f.checkTopics(ctx, s.env.Kafka, checked.spec); err != nil {
		return did, err
	}
	v, err := register(ctx, s.env, f.spec, checked, registry.NewVersion{Message: f.message, Author: author()})
	if err != nil {
		return did, err
	}
	did = started{Job: v.Job, Version: v.Number, Existed: v.Existed}
	begin := func(id, kind string, version int, input any) error {
		_, err := s.temporal.ExecuteWorkflow(ctx, startOptions(id, v.Job, version), kind, input)
		if err != nil {
			return fmt.Errorf("start the workflow %s: %w", id, err)
		}
		did.Workflows = append(did.Workflows, id)
		return nil
	}
	reader := activities.JobVersion{Job: v.Job, Version: v.Number}
	for _, source := range checked.spec.Sources {
		// An archiver that runs already is told of another reader.
		id := workflows.ArchiveID(source.Topic)
		_, err := s.temporal.SignalWithStartWorkflow(ctx, id, workflows.SignalJobs, reader, startOptions(id, "", 0), workflows.ArchiveType,
			workflows.ArchiveInput{Topic: source.Topic, Jobs: []activities.JobVersion{reader}})
		if err != nil {
			return did, fmt.Errorf("start the workflow %s: %w", id, err)
		}
		did.Workflows = append(did.Workflows, id)
	}
	err = begin(workflows.VersionID(v.Job, v.Number), workflows.VersionType, v.Number,
		workflows.VersionInput{Job: v.Job, Version: v.Number, Shards: f.shards})
	if sinks := checked.spec.Sinks; err == nil && (sinks.Topic != "" || sinks.Parquet) {
		err = begin(workflows.PublisherID(v.Job), workflows.PublisherType, 0, workflows.PublisherInput{Job: v.Job})
	}
	for _, id := range did.Workflows {
		if err == nil {
			err = s.temporal.SignalWorkflow(ctx, id, "", workflows.SignalRetry, workflows.Order{Actor: author()})
		}
	}
	return did, err
}

// startOptions are those of a workflow that may be running already, which is as good. It is found by job and version even
// before a worker has looked at it; an empty job or a version of 0 is left out.
func startOptions(id, job string, version int) client.StartWorkflowOptions {
	o := client.StartWorkflowOptions{
		ID: id, TaskQueue: activities.Queue, WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
	}
	var known []temporal.SearchAttributeUpdate
	if job != "" {
		known = append(known, temporal.NewSearchAttributeKeyKeyword("WeftJob").ValueSet(job))
	}
	if version > 0 {
		known = append(known, temporal.NewSearchAttributeKeyKeyword("WeftVersion").ValueSet(strconv.Itoa(version)))
	}
	o.TypedSearchAttributes = temporal.NewSearchAttributes(known...)
	return o
}

// register registers the spec of a file, with the files that it names. as has the rest of what is to be known of the version.
func register(ctx context.Context, env *workers.Env, file string, checked checkResult, as registry.NewVersion) (v registry.Version, err error) {
	as.Job, as.Spec = checked.spec.Job, checked.text
	if as.Assets, err = readAssets(file, checked.spec); err != nil {
		return v, err
	}
	return registry.New(env.Objects).Add(ctx, as)
}

// readAssets reads the files that a spec names.
func readAssets(file string, spec *jobspec.Spec) (map[string][]byte, error) {
	assets := map[string][]byte{}
	read := assetsBeside(file)
	for _, name := range registry.AssetNames(spec) {
		data, err := read(name)
		if err != nil {
			return nil, err
		}
		assets[name] = data
	}
	return assets, nil
}

// author names who runs the command, for the list of versions.
func author() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

func (f *jobRunFlags) show(w io.Writer, did started) error {
	if f.json {
		return json.NewEncoder(w).Encode(did)
	}
	how := "registered"
	if did.Existed {
		how = "registered before, with the same spec"
	}
	_, err := fmt.Fprintf(w, "%s: version %d (%s)\nrunning: %s\n", did.Job, did.Version, how, strings.Join(did.Workflows, ", "))
	return err
}

// statusLine writes whole lines, and on a terminal keeps a line below them that changes.
type statusLine struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	text     string
}

func newStatusLine(w io.Writer) *statusLine {
	f, ok := w.(*os.File)
	return &statusLine{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

const clearLine = "\r\x1b[K"

// Write writes above the status.
func (l *statusLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text == "" {
		return l.w.Write(p)
	}
	if _, err := io.WriteString(l.w, clearLine); err != nil {
		return 0, err
	}
	n, err := l.w.Write(p)
	if err == nil {
		_, err = io.WriteString(l.w, l.text)
	}
	return n, err
}

// set replaces the status; empty takes it away.
func (l *statusLine) set(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.terminal {
		l.text = text
		fmt.Fprint(l.w, clearLine+text)
	}
}

// runWatch shows how the shards of this process get on.
type runWatch struct {
	line *statusLine

	mu     sync.Mutex
	shards map[int]streaming.Status
}

func (r *runWatch) observe(in activities.ShardInput, _ *operator.Job, s streaming.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shards[in.Shard] = s
}

// show shows the status every second until ctx is done.
func (r *runWatch) show(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var before int64
	for {
		select {
		case <-ctx.Done():
			r.line.set("")
			return
		case <-tick.C:
			text, records := r.text(before)
			r.line.set(text)
			before = records
		}
	}
}

func (r *runWatch) text(before int64) (text string, records int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.shards) == 0 {
		return "waiting for a shard", 0
	}
	var lag int64
	var checkpoint uint64
	var watermark int64
	first := true
	for _, s := range r.shards {
		records += s.Records
		lag += s.Lag
		checkpoint = max(checkpoint, s.Checkpoint)
		if first || int64(s.Watermark) < watermark {
			watermark, first = int64(s.Watermark), false
		}
	}
	mark := "none yet"
	if watermark > 0 {
		mark = time.UnixMicro(watermark).UTC().Format("2006-01-02 15:04:05")
	}
	return fmt.Sprintf("%s: %s records, %s/s, lag %s, watermark %s, checkpoint %d", count(len(r.shards), "shard"), thousands(records),
		thousands(max(0, records-before)), thousands(lag), mark, checkpoint), records
}

// asTemporal runs f with a connection to Temporal alone.
func asTemporal(c *cobra.Command, flags stack.Addresses, f func(ctx context.Context, t client.Client, at stack.Addresses) error) error {
	at, err := stack.Find(flags, stack.Temporal)
	if err != nil {
		return err
	}
	t, err := workers.DialTemporal(c.Context(), at, workers.Identity("cli"), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer t.Close()
	return f(c.Context(), t, at)
}

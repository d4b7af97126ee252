package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

func newDeployCommand() *cobra.Command {
	var f deployFlags
	c := &cobra.Command{
		Use:   "deploy --spec FILE | deploy --job JOB --version N",
		Short: "Roll a version of a job out: try it in the shadow, then serve it",
		Long: "Check a spec, register it as the next version of its job, and roll it out: it is started in the shadow of the version\n" +
			"that is served, catches up, is compared with it through the steps and gates of the spec's canary, and is then served.\n" +
			"The first version of a job is served at once. Control workers do that (`weft worker`); the shards of the version need a\n" +
			"process of their own (`weft worker --job JOB --version N`).\n\n" +
			"The command returns when the deployment was asked for; --watch waits for its outcome. The exit code is 0 where the version\n" +
			"is promoted (with --watch) or the deployment was asked for, 1 where it is not promoted, 2 where the spec is not valid.",
		Example: "  weft deploy --spec payments.yaml --message 'refunds link for a week' --watch\n" +
			"  weft deploy --spec payments.yaml --dry-run\n" +
			"  weft deploy --job payments --version 3 --skip-canary\n" +
			"  weft deploy --job payments --rebuild --message 'with what came too late last week'\n\n" +
			"  # the same by hand, for a version that is registered:\n" +
			"  tctl workflow start --taskqueue weft --workflow_type Deploy --workflow_id deploy-payments-3 \\\n" +
			"    --input '{\"job\":\"payments\",\"version\":3}'",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	c.Flags().StringVar(&f.spec, "spec", "", "job spec, or - for standard input")
	c.Flags().StringVar(&f.job, "job", "", "job of --version")
	c.Flags().IntVar(&f.version, "version", 0, "a version that is registered, in place of --spec")
	c.Flags().StringVar(&f.message, "message", "", "why there is a new version")
	c.Flags().IntVar(&f.shards, "shards", 0, "shards of the version (default 1); more need shard_by in the spec")
	c.Flags().BoolVar(&f.skip, "skip-canary", false, "promote as soon as it has caught up, without steps and gates")
	c.Flags().BoolVar(&f.rebuild, "rebuild", false, "compute the served version of --job, or its --version, anew as another one, without a canary")
	c.Flags().BoolVar(&f.dry, "dry-run", false, "say what would happen, and register nothing")
	c.Flags().BoolVar(&f.watch, "watch", false, "wait for the outcome")
	c.Flags().StringVar(&f.request, "request-id", "", "the same request again is the same deployment")
	c.Flags().BoolVar(&f.json, "json", false, "print the result as one line of JSON")
	serverFlags(c, &f.at)
	return c
}

type deployFlags struct {
	spec, job, message, request string
	version, shards             int
	skip, rebuild               bool
	dry, watch, json            bool
	at                          stack.Addresses
}

func (f *deployFlags) run(c *cobra.Command) error {
	var err error
	switch {
	case f.rebuild && (f.spec != "" || f.job == ""):
		err = errors.New("--rebuild needs the name of a --job, and takes no --spec")
	case (f.spec == "") == (f.version == 0 && !f.rebuild):
		err = errors.New("expected --spec, or --job with --version or --rebuild")
	case f.spec == "" && (f.version < 0 || !jobName.MatchString(f.job)):
		err = errors.New("--version is 1 or more, and needs the name of its --job")
	case f.spec != "" && f.job != "":
		err = errors.New("--job belongs to --version: a spec names its job")
	case f.shards < 0:
		err = fmt.Errorf("--shards %d: expected 1 or more", f.shards)
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	in := workflows.DeployInput{Job: f.job, Version: f.version, Message: f.message, Author: author(), RequestID: f.request, DryRun: f.dry,
		SkipCanary: f.skip, Rebuild: f.rebuild, Shards: f.shards}
	need := []stack.Server{stack.Temporal}
	var checked checkResult
	if f.spec != "" {
		checked = checkFile(f.spec, c.InOrStdin())
		if !checked.Valid {
			return errors.Join(showText(c, []checkResult{checked}), &exitError{code: exitUsage})
		}
		if len(registry.AssetNames(checked.spec)) == 0 {
			in.SpecText = string(checked.text)
		} else if f.dry {
			return &exitError{exitUsage, errors.New("--dry-run of a spec that names files: register it first, with weft job run or without --dry-run")}
		} else { // its files go to the registry from here
			need = append(need, stack.S3)
		}
	}
	at, err := stack.Find(f.at, need...)
	if err != nil {
		return err
	}
	ctx := c.Context()
	if f.spec != "" && in.SpecText == "" {
		if in.Job, in.Version, err = f.register(ctx, at, checked, in); err != nil {
			return err
		}
	}
	t, err := workers.DialTemporal(ctx, at, workers.Identity("cli"), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer t.Close()
	return f.deploy(ctx, c, t, in)
}

// register registers a spec with its files.
func (f *deployFlags) register(ctx context.Context, at stack.Addresses, checked checkResult, in workflows.DeployInput) (job string, version int, err error) {
	env, err := workers.OpenEnv(ctx, at, stack.S3)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = env.Close() }() // what was written is acknowledged
	v, err := register(ctx, env, f.spec, checked, registry.NewVersion{Message: in.Message, Author: in.Author, RequestID: in.RequestID})
	return v.Job, v.Number, err
}

// deploy starts the workflow Deploy and tells how it goes.
func (f *deployFlags) deploy(ctx context.Context, c *cobra.Command, t client.Client, in workflows.DeployInput) error {
	id := "deploy/" + strconv.FormatInt(time.Now().UnixNano(), 36)
	if f.request != "" {
		id = "deploy/" + f.request
	}
	run, err := t.ExecuteWorkflow(ctx, startOptions(id, in.Job, in.Version), workflows.DeployType, in)
	if err != nil {
		return fmt.Errorf("start the workflow %s: %w", id, err)
	}
	out := c.OutOrStdout()
	if !f.watch && !f.dry {
		if f.json {
			return json.NewEncoder(out).Encode(map[string]string{"workflow": id})
		}
		_, err := fmt.Fprintf(out, "asked for by the workflow %s; `weft jobs` shows how it goes\n", id)
		return err
	}
	var result workflows.DeployResult
	told := ""
	for waiting := true; waiting; {
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		err = run.Get(limited, &result)
		var ended *temporal.WorkflowExecutionError
		waiting = err != nil && !errors.As(err, &ended) && ctx.Err() == nil // else nobody could be asked, or it goes on
		<-sinceAsked(limited, err)
		cancel()
		if waiting && !f.json {
			if now := progressOf(ctx, t, id); now != "" && now != told {
				told = now
				fmt.Fprintln(c.ErrOrStderr(), now)
			}
		}
	}
	var app *temporal.ApplicationError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no longer waiting; the deployment goes on in the workflow %s", id)
	case errors.As(err, &app):
		return fmt.Errorf("deploy: %s", app.Message())
	case err != nil:
		return fmt.Errorf("the workflow %s: %w", id, err)
	}
	if f.json {
		err = json.NewEncoder(out).Encode(result)
	} else {
		err = printDeployed(out, &result)
	}
	if err == nil && result.Outcome != workflows.OutcomePromoted && result.Outcome != workflows.OutcomePlanned {
		return &exitError{code: exitFailed}
	}
	return err
}

// sinceAsked is closed at once where an answer came, and otherwise when the time for one is over.
func sinceAsked(ctx context.Context, err error) <-chan struct{} {
	if err != nil {
		return ctx.Done()
	}
	done := make(chan struct{})
	close(done)
	return done
}

// progressOf says in a line how a deployment goes; empty where nobody answers.
func progressOf(ctx context.Context, t client.Client, id string) string {
	var d workflows.DeployStatus
	if query(ctx, t, id, workflows.QueryStatus, &d) != nil || d.Plan == nil {
		return "waiting for a control worker (weft worker)"
	}
	var j workflows.JobStatus
	if query(ctx, t, workflows.JobID(d.Plan.Job), workflows.QueryStatus, &j) != nil || j.Candidate == nil || j.Candidate.Version != d.Plan.Version {
		return ""
	}
	return fmt.Sprintf("version %d: %s", j.Candidate.Version, rolloutLine(&j))
}

// rolloutLine tells where the candidate of a job is.
func rolloutLine(j *workflows.JobStatus) string {
	r := j.Candidate.Rollout
	if r == nil {
		return j.Phase
	}
	text := r.Phase
	switch {
	case j.Phase != workflows.RollingOut:
		text = j.Phase
	case r.Phase == workflows.Canary:
		text = fmt.Sprintf("canary step %d of %d", r.Step, r.Steps)
		if r.Until != nil {
			text += " until " + r.Until.UTC().Format(time.TimeOnly)
		}
	}
	if r.Trial != nil {
		text += fmt.Sprintf(", %s compared, match rate %.6g, %s", count(int(r.Trial.Sessions), "session"), r.Trial.MatchRate, r.Trial.Verdict)
	}
	if j.FrozenUntil != nil {
		text += ", frozen until " + j.FrozenUntil.UTC().Format(time.DateTime)
	}
	if r.Waits != "" {
		text += ": " + r.Waits
	}
	return text
}

// queryTries is how often a question is asked that the worker could not answer for the moment.
const queryTries = 5

// querier asks workflows; a client of Temporal does.
type querier interface {
	QueryWorkflow(ctx context.Context, id, run, query string, args ...any) (converter.EncodedValue, error)
}

// query asks a workflow and decodes its answer. A worker that has to rebuild the workflow for a query may meet a history that has
// got further meanwhile, which it takes for a damaged one (the SDK's issue 755); asked again it answers.
func query(ctx context.Context, t querier, id, name string, into any, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	for try := 1; ; try++ {
		v, err := t.QueryWorkflow(ctx, id, "", name, args...)
		if err == nil {
			return v.Get(into)
		}
		var failed *serviceerror.QueryFailed
		if !errors.As(err, &failed) || !strings.Contains(err.Error(), "[TMPRL1100]") || try == queryTries {
			return err
		}
	}
}

func printDeployed(w io.Writer, r *workflows.DeployResult) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s version %d: %s\n", r.Job, r.Version, r.Outcome)
	if r.Outcome == workflows.OutcomePlanned {
		printPlan(&b, r.Plan)
	}
	for _, text := range r.Reasons {
		fmt.Fprintf(&b, "  %s\n", strings.Map(printable, text))
	}
	if r.Rollout != nil && r.Rollout.Trial != nil {
		printTrial(&b, r.Rollout.Trial)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printPlan(b *strings.Builder, p *activities.Plan) {
	fmt.Fprintf(b, "\nwhat differs from version %d:\n", p.Current)
	if p.Current == 0 {
		b.Reset()
		fmt.Fprintf(b, "%s version %d: planned\n", p.Job, p.Version)
	} else if len(p.Changes) == 0 {
		b.WriteString("  nothing\n")
	}
	for _, c := range p.Changes {
		fmt.Fprintf(b, "  %s: %s (%s)\n", c.Effect, strings.Map(printable, c.Text), c.Means)
	}
	b.WriteString("\nwhat would happen:\n")
	for i, text := range p.Phases {
		fmt.Fprintf(b, "  %d. %s\n", i+1, text)
	}
	for _, g := range p.Gates {
		fmt.Fprintf(b, "     gate %s: %s\n", g.Name, strings.Map(printable, g.Text))
	}
}

func printTrial(b *strings.Builder, t *activities.Trial) {
	fmt.Fprintf(b, "  compared %s sessions: %s match, %s only in the current version, %s only in the candidate; %s of %s records rejected\n",
		thousands(t.Sessions), thousands(t.Matched), thousands(t.OnlyCurrent), thousands(t.OnlyCandidate), thousands(t.Rejects), thousands(t.Records))
	for _, g := range t.Gates {
		fmt.Fprintf(b, "  gate %-16s %-12s got %s, wanted %s\n", g.Gate, g.Verdict, g.Got, g.Want)
	}
	if t.Differences != "" {
		fmt.Fprintf(b, "  sessions that differ: object %s\n", t.Differences)
	}
}

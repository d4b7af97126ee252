package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

func newJobsCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     "jobs",
		Short:   "List the jobs that are deployed, with what each serves and rolls out",
		Example: "  weft jobs\n  weft jobs --json | jq 'select(.candidate)'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				list, err := jobStatuses(ctx, t)
				if err != nil {
					return err
				}
				if asJSON {
					return printLines(c.OutOrStdout(), list)
				}
				if len(list) == 0 {
					_, err := fmt.Fprintln(c.OutOrStdout(), "no job is deployed (weft deploy --spec FILE)")
					return err
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "JOB\tPHASE\tSERVES\tCANDIDATE\tROLLBACK TO")
				for _, s := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Job, s.Phase, versionText(s.Current), versionText(s.Candidate), rollbackText(s))
				}
				return w.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	temporalFlags(c, &at)
	return c
}

func versionText(p *workflows.Placed) string {
	if p == nil {
		return "-"
	}
	return strconv.Itoa(p.Version)
}

func rollbackText(s *workflows.JobStatus) string {
	if !s.RollbackReady || s.Previous == nil || s.RollbackUntil == nil {
		return "-"
	}
	return fmt.Sprintf("%d until %s", s.Previous.Version, s.RollbackUntil.UTC().Format(time.DateTime))
}

// jobStatuses asks every workflow Job that runs.
func jobStatuses(ctx context.Context, t client.Client) (list []*workflows.JobStatus, err error) {
	var next []byte
	for {
		r, err := t.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query: `WorkflowType = 'Job' AND ExecutionStatus = 'Running'`, NextPageToken: next})
		if err != nil {
			return nil, fmt.Errorf("list jobs: %w", err)
		}
		for _, e := range r.GetExecutions() {
			s := &workflows.JobStatus{}
			if query(ctx, t, e.GetExecution().GetWorkflowId(), workflows.QueryStatus, s) != nil {
				known := stateOf(e)
				s = &workflows.JobStatus{Job: known.Job, Phase: "(no control worker)"}
			}
			list = append(list, s)
		}
		if next = r.GetNextPageToken(); len(next) == 0 {
			break
		}
	}
	slices.SortFunc(list, func(a, b *workflows.JobStatus) int { return strings.Compare(a.Job, b.Job) })
	return list, nil
}

// jobAnswer asks the workflow of a job; its errors say what to do.
func jobAnswer(ctx context.Context, t client.Client, job, name string, into any) error {
	err := query(ctx, t, workflows.JobID(job), name, into)
	var none *serviceerror.NotFound
	switch {
	case errors.As(err, &none):
		return fmt.Errorf("no workflow %s: the job was not deployed with `weft deploy` (weft jobs lists those that were)", workflows.JobID(job))
	case err != nil:
		return fmt.Errorf("ask %s: %w; is a control worker running? (weft worker)", workflows.JobID(job), err)
	}
	return nil
}

func newJobShowCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     "show JOB",
		Short:   "Show what a job serves, what is rolled out, and whether a rollback is ready",
		Example: "  weft job show payments\n  weft job show payments --json | jq .rollback_ready",
		Args:    jobArgument,
		RunE: func(c *cobra.Command, args []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				var s workflows.JobStatus
				if err := jobAnswer(ctx, t, args[0], workflows.QueryStatus, &s); err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(c.OutOrStdout()).Encode(s)
				}
				return printJob(c.OutOrStdout(), &s)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	temporalFlags(c, &at)
	return c
}

func printJob(w io.Writer, s *workflows.JobStatus) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s since %s\n", s.Job, s.Phase, s.Since.UTC().Format(time.DateTime))
	place := func(what string, p *workflows.Placed) {
		if p != nil {
			fmt.Fprintf(&b, "%-10s version %d since %s", what, p.Version, p.Since.UTC().Format(time.DateTime))
			if p.By != "" {
				fmt.Fprintf(&b, ", deployed by %s", strings.Map(printable, p.By))
			}
			b.WriteString("\n")
			if p.Unmanned != "" {
				fmt.Fprintf(&b, "  nobody runs it: %s\n", strings.Map(printable, p.Unmanned))
			}
		}
	}
	if place("serves", s.Current); s.Degraded {
		fmt.Fprintf(&b, "  degraded: %s\n", s.Why)
	}
	if place("candidate", s.Candidate); s.Candidate != nil {
		fmt.Fprintf(&b, "  %s\n", rolloutLine(s))
		if r := s.Candidate.Rollout; r != nil && r.Trial != nil {
			printTrial(&b, r.Trial)
		}
	}
	if place("previous", s.Previous); s.Previous != nil && s.RollbackReady {
		fmt.Fprintf(&b, "  ready for a rollback until %s", s.RollbackUntil.UTC().Format(time.DateTime))
		if s.RollbackLagMS >= 0 {
			fmt.Fprintf(&b, ", %s behind", time.Duration(s.RollbackLagMS)*time.Millisecond)
		}
		if s.RollbackNote != "" {
			b.WriteString("; " + s.RollbackNote)
		}
		b.WriteString("\n")
	}
	for i := range s.Retiring {
		place("retiring", &s.Retiring[i])
	}
	if place("failed", s.Failed); s.Failed != nil && s.Failed.Rollout != nil {
		for _, text := range s.Failed.Rollout.Reasons {
			fmt.Fprintf(&b, "  %s\n", strings.Map(printable, text))
		}
	}
	for _, d := range s.Discards {
		fmt.Fprintf(&b, "%-10s what is left of version %d, at %s: %s\n", "drops", d.Version, d.Due.UTC().Format(time.DateTime), strings.Map(printable, d.Why))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func newJobHistoryCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     "history JOB",
		Short:   "List what was decided about a job, rejected requests included",
		Long:    "List what was decided about a job, rejected requests included: the last hundred decisions. The store's audit log has all.",
		Example: "  weft job history payments\n  weft job history payments --json | jq 'select(.result==\"rejected\")'",
		Args:    jobArgument,
		RunE: func(c *cobra.Command, args []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				var list []workflows.Decision
				if err := jobAnswer(ctx, t, args[0], workflows.QueryHistory, &list); err != nil {
					return err
				}
				if asJSON {
					return printLines(c.OutOrStdout(), list)
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "AT\tWHAT\tVERSION\tRESULT\tBY\tTEXT")
				for _, d := range list {
					text := d.Text
					if d.Reason != "" {
						text += " (" + d.Reason + ")"
					}
					fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", d.At.UTC().Format(time.DateTime), strings.Map(printable, d.Kind), d.Version, d.Result,
						strings.Map(printable, d.Actor), strings.Map(printable, text))
				}
				return w.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	temporalFlags(c, &at)
	return c
}

func newJobDiffCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     "diff JOB FROM TO",
		Short:   "Show how the meaning of two versions of a job differs",
		Example: "  weft job diff payments 1 2\n  weft job diff payments 1 2 --json",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 3 {
				return errors.New("expected the name of a job and the numbers of two versions")
			}
			for _, text := range args[1:] {
				if n, err := strconv.Atoi(text); err != nil || n < 1 {
					return fmt.Errorf("%q is no number of a version", text)
				}
			}
			return jobArgument(c, args[:1])
		},
		RunE: func(c *cobra.Command, args []string) error {
			env, err := openObjects(c.Context(), at)
			if err != nil {
				return err
			}
			defer func() { _ = env.Close() }() // only read
			var both [2]registry.Version
			for i, text := range args[1:] {
				n, err := strconv.Atoi(text)
				if err != nil {
					return err
				}
				if both[i], err = registry.New(env.Objects).Get(c.Context(), args[0], n); err != nil {
					return err
				}
			}
			list := registry.Diff(both[0], both[1])
			if asJSON {
				return printLines(c.OutOrStdout(), list)
			}
			if len(list) == 0 {
				_, err := fmt.Fprintln(c.OutOrStdout(), "the versions mean the same")
				return err
			}
			for _, d := range list {
				if _, err := fmt.Fprintf(c.OutOrStdout(), "%s: %s (%s)\n", d.Effect, strings.Map(printable, d.Text), d.Effect.Meaning()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	c.Flags().StringVar(&at.S3, "s3", "", "object store, as http://host:port (default $WEFT_S3, or the running stack's)")
	return c
}

// decisionWait is how long a command waits for the decision of a job, and decisionPoll between two looks.
const (
	decisionWait = 30 * time.Second
	decisionPoll = 200 * time.Millisecond
)

// newJobRequestCommand returns a command that asks the workflow of a job for something and waits for its decision.
func newJobRequestCommand(signal, short, long string) *cobra.Command {
	var r workflows.Request
	var asJSON, dry bool
	var at stack.Addresses
	use, example := signal+" JOB", fmt.Sprintf("  weft job %s payments", signal)
	body := `{"reason":"…","request_id":"…","actor":"…"}`
	if signal == workflows.SignalRollback {
		use, example = use+" --to N", example+" --to 1 --reason 'refunds are counted twice'\n"+example+" --to 1 --dry-run"
		body = `{"to":1,"reason":"…","request_id":"…","actor":"…"}`
	}
	if signal == workflows.SignalScale {
		use, example = use+" --shards N", example+" --shards 4 --reason 'a week of lag'"
		body = `{"shards":4,"reason":"…","request_id":"…","actor":"…"}`
	}
	c := &cobra.Command{
		Use:     use,
		Short:   short,
		Long:    short + ".\n\n" + long + "\nThe exit code is 1 where the request is rejected.",
		Example: example + fmt.Sprintf("\n  tctl workflow signal -w job/payments -n %s -i '%s'", signal, body),
		Args:    jobArgument,
		RunE: func(c *cobra.Command, args []string) error {
			if signal == workflows.SignalRollback && r.To < 1 {
				return &exitError{exitUsage, errors.New("--to names the version to serve: 1 or more")}
			}
			if signal == workflows.SignalScale && r.Shards < 1 {
				return &exitError{exitUsage, errors.New("--shards is the number of shards: 1 or more")}
			}
			if dry {
				return asTemporal(c, at, func(ctx context.Context, t client.Client, at stack.Addresses) error {
					return planRollback(ctx, c.OutOrStdout(), t, args[0], r.To, asJSON)
				})
			}
			if r.RequestID == "" {
				r.RequestID = signal + "/" + strconv.FormatInt(time.Now().UnixNano(), 36)
			}
			if r.Actor == "" {
				r.Actor = author()
			}
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				err := t.SignalWorkflow(ctx, workflows.JobID(args[0]), "", signal, r)
				var none *serviceerror.NotFound
				if errors.As(err, &none) {
					return fmt.Errorf("no workflow %s runs: the job was not deployed with `weft deploy`", workflows.JobID(args[0]))
				}
				if err != nil {
					return fmt.Errorf("signal %s: %w", workflows.JobID(args[0]), err)
				}
				d, err := awaitDecision(ctx, t, args[0], signal, r.RequestID)
				if err != nil {
					return err
				}
				if asJSON {
					err = json.NewEncoder(c.OutOrStdout()).Encode(d)
				} else {
					_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", d.Result, strings.Map(printable, d.Text))
				}
				if err == nil && d.Result == workflows.RejectedWhat {
					return &exitError{code: exitFailed}
				}
				return err
			})
		},
	}
	if signal == workflows.SignalRollback {
		c.Flags().IntVar(&r.To, "to", 0, "version to serve")
		c.Flags().BoolVar(&dry, "dry-run", false, "say what would happen, and change nothing")
	}
	if signal == workflows.SignalScale {
		c.Flags().IntVar(&r.Shards, "shards", 0, "number of shards")
	}
	c.Flags().StringVar(&r.Reason, "reason", "", "why, for the history")
	c.Flags().StringVar(&r.RequestID, "request-id", "", "the same request again is decided once (default a new id)")
	c.Flags().StringVar(&r.Actor, "actor", "", "who asks (default who runs the command)")
	c.Flags().BoolVar(&asJSON, "json", false, "print the decision as one line of JSON")
	temporalFlags(c, &at)
	return c
}

// planRollback says what a rollback would do. Where the version does not run, the stores say how far it is.
func planRollback(ctx context.Context, w io.Writer, t client.Client, job string, to int, asJSON bool) error {
	var p workflows.RollbackPlan
	err := query(ctx, t, workflows.JobID(job), workflows.QueryRollbackPlan, &p, workflows.Request{To: to})
	if err != nil {
		return fmt.Errorf("ask %s: %w; is a control worker running? (weft worker)", workflows.JobID(job), err)
	}
	if p.Way == workflows.ByCatchUp {
		if err := lookBack(ctx, job, &p); err != nil {
			return err
		}
	}
	if asJSON {
		err = json.NewEncoder(w).Encode(p)
	} else {
		_, err = io.WriteString(w, rollbackPlanText(job, &p))
	}
	if err == nil && p.Way == "" {
		return &exitError{code: exitFailed}
	}
	return err
}

func rollbackPlanText(job string, p *workflows.RollbackPlan) string {
	var b strings.Builder
	if p.Way == "" {
		fmt.Fprintf(&b, "%s: a rollback to version %d would be rejected: %s\n", job, p.To, p.Refused)
		return b.String()
	}
	fmt.Fprintf(&b, "%s: a rollback from version %d to version %d would\n", job, p.Current, p.To)
	for i, text := range p.Steps {
		fmt.Fprintf(&b, "  %d. %s\n", i+1, text)
	}
	if p.LagMS >= 0 {
		fmt.Fprintf(&b, "version %d is %s behind version %d\n", p.To, time.Duration(p.LagMS)*time.Millisecond, p.Current)
	}
	if p.Until != nil {
		fmt.Fprintf(&b, "it is ready until %s\n", p.Until.UTC().Format(time.DateTime))
	}
	if p.Note != "" {
		fmt.Fprintf(&b, "%s\n", strings.Map(printable, p.Note))
	}
	return b.String()
}

// lookBack adds how far a version is that does not run, and whether it was ever served.
func lookBack(ctx context.Context, job string, p *workflows.RollbackPlan) error {
	at, err := stack.Find(stack.Addresses{}, stack.Kafka, stack.S3, stack.Store)
	if err != nil {
		p.Note = "how far it is, and whether it was ever served, is not known here: " + err.Error()
		return nil
	}
	env, err := workers.OpenEnv(ctx, at, stack.Kafka, stack.S3, stack.Store)
	if err != nil {
		return err
	}
	defer func() { _ = env.Close() }() // only read
	stage := &workers.Stage{Versions: &workers.Versions{Env: env}}
	way, err := stage.WayBack(ctx, job, p.To, p.Current)
	switch {
	case err != nil:
		return err
	case way.Refused != "":
		p.Way, p.Refused, p.Steps = "", way.Refused, []string{}
	default:
		p.LagMS, p.Note = way.LagMS, way.Note
	}
	return nil
}

// askJob asks the workflow of a job, if there is one, and waits for its decision.
func askJob(ctx context.Context, t client.Client, job, signal, reason string) (managed bool, err error) {
	r := workflows.Request{Reason: reason, Actor: author(), RequestID: signal + "/" + strconv.FormatInt(time.Now().UnixNano(), 36)}
	err = t.SignalWorkflow(ctx, workflows.JobID(job), "", signal, r)
	var none *serviceerror.NotFound
	if errors.As(err, &none) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("signal %s: %w", workflows.JobID(job), err)
	}
	d, err := awaitDecision(ctx, t, job, signal, r.RequestID)
	if err == nil && d.Result == workflows.RejectedWhat {
		err = errors.New(d.Text)
	}
	return true, err
}

// awaitDecision waits until a job has decided a request.
func awaitDecision(ctx context.Context, t client.Client, job, kind, request string) (d workflows.Decision, err error) {
	limited, cancel := context.WithTimeout(ctx, decisionWait)
	defer cancel()
	tick := time.NewTicker(decisionPoll)
	defer tick.Stop()
	for {
		var list []workflows.Decision
		if err := jobAnswer(limited, t, job, workflows.QueryHistory, &list); err != nil && limited.Err() == nil {
			return d, err
		}
		for _, d := range slices.Backward(list) {
			if d.Kind == kind && d.RequestID == request {
				return d, nil
			}
		}
		select {
		case <-tick.C:
		case <-limited.Done():
			return d, fmt.Errorf("%s has not decided after %s; is a control worker running? (weft worker) The request stays: weft job history %s",
				workflows.JobID(job), decisionWait, job)
		}
	}
}

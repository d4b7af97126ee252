package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workflows"
)

func newBackfillCommand() *cobra.Command {
	return newGroup("backfill", "Compute the past anew from the archive, and publish, compare or repair it",
		"  weft backfill start payments --from 2026-11-01 --to 2026-11-02 --watch\n"+
			"  weft backfill reconcile payments --day 2026-11-01 --repair\n"+
			"  weft backfill show payments/20261101T000000Z_20261102T000000Z",
		newBackfillStartCommand(), newReconcileCommand(), newBackfillListCommand(), newBackfillShowCommand(), newBackfillWatchCommand(),
		newBackfillOrderCommand("pause", workflows.SignalPause, "Let the slices that run end, and start no more"),
		newBackfillOrderCommand("resume", workflows.SignalResume, "Go on after a pause"),
		newBackfillOrderCommand("cancel", workflows.SignalCancel, "End a backfill: what is served stays as it is, what was computed is removed"),
		newBackfillOrderCommand("retry", workflows.SignalRetryFailed, "Try what has failed again, and nothing else"),
		newParallelismCommand(),
	)
}

// windowFlags name a range of session starts.
type windowFlags struct{ workflows.Window }

func (f *windowFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.Window.Window, "window", "", "length of the range, such as 24h; it ends --lag ago")
	c.Flags().StringVar(&f.Lag, "lag", "", "how long ago the range ends, such as 2h")
}

func (f *windowFlags) addFixed(c *cobra.Command) {
	c.Flags().StringVar(&f.From, "from", "", "first start of sessions: a day, or a time such as 2026-11-01T00:00:00Z")
	c.Flags().StringVar(&f.To, "to", "", "end of the range, which is not in it")
}

// whole makes days into times.
func (f *windowFlags) whole() {
	for _, t := range []*string{&f.From, &f.To} {
		if d, err := time.Parse(time.DateOnly, *t); err == nil {
			*t = d.Format(time.RFC3339)
		}
	}
}

// workFlags are what backfills and reconciliations have in common.
type workFlags struct{ workflows.Work }

func (f *workFlags) add(c *cobra.Command) {
	c.Flags().IntVar(&f.Version, "version", 0, "version of the job (default the one that serves the end of the range, or the latest)")
	c.Flags().IntVar(&f.Parallelism, "parallelism", 4, "slices that run at once")
	c.Flags().StringVar(&f.Slice, "slice", "", "length of a slice (default 1h, or longer where files of the archive are)")
	c.Flags().Int64Var(&f.Throttle, "throttle", 0, "records a second of the whole backfill (default as fast as it goes)")
	c.Flags().Float64Var(&f.Share, "share", 0, "what is left to live jobs, of the parallelism and of each machine: 0.5 is half")
	c.Flags().BoolVar(&f.Rebuild, "rebuild", false, "where the live job can still change the end of the range, have it compute its version anew")
	c.Flags().StringVar(&f.Reason, "reason", "", "why, for the audit log")
	c.Flags().StringVar(&f.RequestID, "request-id", "", "id of the request to publish (default derived from the run)")
}

func newBackfillStartCommand() *cobra.Command {
	var f backfillStartFlags
	c := &cobra.Command{
		Use:   "start JOB --from TIME --to TIME",
		Short: "Start a backfill",
		Long: "Compute the sessions that start in a range anew from the archive, slice by slice, and publish them in one step when all\n" +
			"are there. Until then, and if it fails or is canceled, what is served does not change.\n\n" +
			"Over a live job only sealed time is published: its watermark less retention, max_span and the largest gap. A range that\n" +
			"ends later is shortened; of one that begins later nothing is left. --mode compare and --mode dry_run compute any range,\n" +
			"and --rebuild has the job compute its version anew, with all that was archived.\n\n" +
			"Slices run on workers (`weft worker`, or `weft worker --only backfill`). Ranges that overlap one that is being published\n" +
			"are refused. The exit code is 1 where it does not start or, with --watch, does not end well.",
		Example: "  weft backfill start payments --from 2026-11-01 --to 2026-11-08 --parallelism 8 --watch\n" +
			"  weft backfill start payments --window 24h --lag 2h --mode compare --watch\n" +
			"  weft backfill start payments --window 720h --rebuild --reason 'refunds of channel 7 came late'\n" +
			"  weft backfill start payments --from 2026-11-01 --to 2026-11-02 --share 0.5 --reason 'late records of channel 7'\n\n" +
			"  # the same by hand:\n" +
			"  tctl workflow start --taskqueue weft --workflow_type Backfill \\\n" +
			"    --workflow_id backfill/payments/20261101T000000Z_20261102T000000Z \\\n" +
			"    --input '{\"job\":\"payments\",\"from\":\"2026-11-01T00:00:00Z\",\"to\":\"2026-11-02T00:00:00Z\"}'",
		Args: jobArgument,
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	f.window.add(c)
	f.window.addFixed(c)
	f.work.add(c)
	c.Flags().StringVar(&f.mode, "mode", workflows.ModePublish, "publish, dry_run or compare")
	c.Flags().StringVar(&f.order, "order", "oldest", "which part comes first: oldest or newest")
	f.begin.add(c)
	_ = errors.Join( // they exist
		c.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{workflows.ModePublish, workflows.ModeDryRun, workflows.ModeCompare}, cobra.ShellCompDirectiveNoFileComp)),
		c.RegisterFlagCompletionFunc("order", cobra.FixedCompletions([]string{"oldest", "newest"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

type backfillStartFlags struct {
	window      windowFlags
	work        workFlags
	mode, order string
	begin       beginFlags
}

func (f *backfillStartFlags) run(c *cobra.Command, job string) error {
	f.window.whole()
	in := workflows.BackfillInput{Job: job, Window: f.window.Window, Mode: f.mode, Order: f.order, Work: f.work.Work}
	r, err := in.Check(time.Now())
	if err != nil {
		return &exitError{exitUsage, err}
	}
	in.Actor = author()
	in.Window = workflows.Window{From: r.From.Format(time.RFC3339), To: r.To.Format(time.RFC3339)} // as it stands in the id
	return f.begin.run(c, workflows.BackfillID(job, r.From, r.To), workflows.BackfillType, job, in)
}

func newReconcileCommand() *cobra.Command {
	var window windowFlags
	var work workFlags
	var day string
	var repair bool
	var begin beginFlags
	c := &cobra.Command{
		Use:   "reconcile JOB --day DAY",
		Short: "Audit a day: compare what is served with what the archive gives, and repair it",
		Long: "Compute a range anew from the archive, compare it with what is served, session by session, and store a report with\n" +
			"counts, differences and their causes. With --repair the result is published where there are differences and no live\n" +
			"shard can change the range any more.",
		Example: "  weft backfill reconcile payments --day 2026-11-01 --watch\n" +
			"  weft backfill reconcile payments --day 2026-11-01 --repair --reason 'daily audit'\n\n" +
			"  # the same by hand:\n" +
			"  tctl workflow start --taskqueue weft --workflow_type Reconcile --workflow_id reconcile/payments/2026-11-01 \\\n" +
			"    --input '{\"job\":\"payments\",\"day\":\"2026-11-01\",\"repair\":true}'",
		Args: jobArgument,
		RunE: func(c *cobra.Command, args []string) error {
			window.whole()
			in := workflows.ReconcileInput{Job: args[0], Day: day, Window: window.Window, Repair: repair, Work: work.Work}
			r, err := in.Check(time.Now())
			if err != nil {
				return &exitError{exitUsage, err}
			}
			in.Actor = author()
			id := workflows.ReconcileID(args[0], day)
			if day == "" {
				in.Window = workflows.Window{From: r.From.Format(time.RFC3339), To: r.To.Format(time.RFC3339)}
				id = strings.Replace(workflows.BackfillID(args[0], r.From, r.To), "backfill/", "reconcile/", 1)
			}
			return begin.run(c, id, workflows.ReconcileType, args[0], in)
		},
	}
	c.Flags().StringVar(&day, "day", "", "day of UTC, such as 2026-11-01")
	c.Flags().BoolVar(&repair, "repair", false, "publish what was computed where it differs")
	window.add(c)
	window.addFixed(c)
	work.add(c)
	begin.add(c)
	return c
}

// beginFlags are those of commands that start a workflow.
type beginFlags struct {
	watch, json bool
	at          stack.Addresses
}

func (f *beginFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.watch, "watch", false, "show how it gets on until it has ended")
	c.Flags().BoolVar(&f.json, "json", false, "print JSON: what was started, and with --watch how it ended")
	temporalFlags(c, &f.at)
}

// run starts a workflow, of which none with its id may run.
func (f *beginFlags) run(c *cobra.Command, id, kind, job string, input any) error {
	return asTemporal(c, f.at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
		o := startOptions(id, job, 0)
		o.WorkflowIDConflictPolicy = enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL
		o.WorkflowExecutionErrorWhenAlreadyStarted = true
		r, err := t.ExecuteWorkflow(ctx, o, kind, input)
		var runs *serviceerror.WorkflowExecutionAlreadyStarted
		if errors.As(err, &runs) {
			return fmt.Errorf("%s runs already (weft backfill show %s)", id, strings.TrimPrefix(id, "backfill/"))
		}
		if err != nil {
			return fmt.Errorf("start %s: %w", id, err)
		}
		if f.json {
			err = json.NewEncoder(c.OutOrStdout()).Encode(map[string]string{"workflow": id, "run": r.GetRunID()})
		} else {
			_, err = fmt.Fprintln(c.OutOrStdout(), "started", id)
		}
		if err == nil && !f.watch && !f.json {
			_, err = fmt.Fprintf(c.OutOrStdout(), "weft backfill watch %s shows how it gets on\n", strings.TrimPrefix(id, "backfill/"))
		}
		if err != nil || !f.watch {
			return err
		}
		return watchBackfill(ctx, t, c.OutOrStdout(), id, f.json)
	})
}

// backfillState is a workflow as a list shows it; its keys are a contract.
type backfillState struct {
	Workflow string    `json:"workflow"`
	Type     string    `json:"type"`
	Job      string    `json:"job"`
	Version  int       `json:"version,omitempty"`
	Phase    string    `json:"phase"`
	Status   string    `json:"status"` // Temporal's: Running, Completed, Failed, …
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended,omitzero"`
}

// listedMax bounds a list of backfills: Temporal keeps those that ended for as long as its namespace says.
const listedMax = 1000

func listBackfills(ctx context.Context, t client.Client, job string, running bool) (list []backfillState, err error) {
	query := `WorkflowType IN ('Backfill', 'Reconcile')`
	if job != "" {
		query += ` AND WeftJob = '` + job + `'`
	}
	if running {
		query += ` AND ExecutionStatus = 'Running'`
	}
	var next []byte
	for len(list) < listedMax {
		r, err := t.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: query, NextPageToken: next})
		if err != nil {
			return nil, fmt.Errorf("list backfills: %w", err)
		}
		for _, e := range r.GetExecutions() {
			if e.GetStatus() == enums.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW { // its next run is listed too
				continue
			}
			s := stateOf(e)
			b := backfillState{s.Workflow, e.GetType().GetName(), s.Job, s.Version, s.Phase, e.GetStatus().String(), s.Started, time.Time{}}
			if e.GetCloseTime() != nil {
				b.Ended = e.GetCloseTime().AsTime()
			}
			list = append(list, b)
		}
		if next = r.GetNextPageToken(); len(next) == 0 {
			break
		}
	}
	return list, nil
}

func newBackfillListCommand() *cobra.Command {
	var job string
	var running, asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     "list",
		Short:   "List backfills and reconciliations, the latest first",
		Long:    "List backfills and reconciliations, the latest first: those that run, and those that ended for as long as Temporal\nkeeps them.",
		Example: "  weft backfill list\n  weft backfill list --job payments --running --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if job != "" && !jobName.MatchString(job) {
				return &exitError{exitUsage, fmt.Errorf("--job %q is no name of a job: expected lower-case letters, digits and -", job)}
			}
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				list, err := listBackfills(ctx, t, job, running)
				if err != nil {
					return err
				}
				if asJSON {
					return printLines(c.OutOrStdout(), list)
				}
				return printBackfills(c.OutOrStdout(), list)
			})
		},
	}
	c.Flags().StringVar(&job, "job", "", "only of this job")
	c.Flags().BoolVar(&running, "running", false, "only those that run")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	temporalFlags(c, &at)
	return c
}

func printBackfills(w io.Writer, list []backfillState) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "there are none (weft backfill start JOB --from TIME --to TIME)")
		return err
	}
	s := newScreen(w)
	t := table{columns: []column{{name: "WORKFLOW"}, {name: "PHASE"}, {name: "VERSION", right: true, drop: 2}, {name: "STARTED", drop: 1}, {name: "TOOK", right: true, drop: 3}}}
	for _, b := range list {
		took := "-"
		if !b.Ended.IsZero() {
			took = b.Ended.Sub(b.Started).Round(time.Second).String()
		}
		version := "-"
		if b.Version > 0 {
			version = strconv.Itoa(b.Version)
		}
		phase := cmp.Or(b.Phase, "-")
		if !b.Ended.IsZero() && b.Phase != workflows.Failed && b.Phase != workflows.Refused && b.Status != enums.WORKFLOW_EXECUTION_STATUS_COMPLETED.String() {
			phase = strings.ToLower(b.Status) // it was terminated, or given an input that it could not read
		}
		t.add(cell{text: b.Workflow}, cell{phase, phaseStyle(phase)}, cell{text: version}, cell{text: b.Started.UTC().Format(time.DateTime)}, cell{text: took})
	}
	t.draw(s, 0)
	_, err := io.WriteString(w, s.String())
	return err
}

func phaseStyle(phase string) style {
	switch phase {
	case workflows.Published, workflows.Compared, workflows.Checked:
		return green
	case workflows.NeedsAttention, workflows.Failed, workflows.Refused, "terminated", "timedout":
		return red
	case workflows.Paused, workflows.Pausing, workflows.Canceling, workflows.Canceled:
		return amber
	}
	return plain
}

// backfillArgument takes the id of a workflow, which may lack its first part.
func backfillArgument(_ *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return errors.New("expected the id of one backfill, such as payments/20261101T000000Z_20261102T000000Z (weft backfill list)")
	}
	return nil
}

func backfillID(text string) string {
	if strings.HasPrefix(text, "backfill/") || strings.HasPrefix(text, "reconcile/") {
		return text
	}
	_, last, _ := strings.Cut(text, "/")
	if _, err := time.Parse(time.DateOnly, last); err == nil {
		return "reconcile/" + text
	}
	return "backfill/" + text
}

func newBackfillShowCommand() *cobra.Command {
	var page int
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show how a backfill gets on, with a page of its slices",
		Long: "Show how a backfill gets on, with a page of its slices, in order of time. A control worker answers that, also for one\n" +
			"that has ended. It keeps the numbers of the latest slices; the object store has those of all, in their manifests.",
		Example: "  weft backfill show payments/20261101T000000Z_20261102T000000Z\n" +
			"  weft backfill show payments/20261101T000000Z_20261102T000000Z --json | jq '.done, .total'\n\n" +
			"  # the same by hand:\n" +
			"  tctl workflow query -w backfill/payments/20261101T000000Z_20261102T000000Z -qt progress",
		Args: backfillArgument,
		RunE: func(c *cobra.Command, args []string) error {
			if page < 0 {
				return &exitError{exitUsage, fmt.Errorf("--page %d: expected 0 or more", page)}
			}
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				v, err := lookAtBackfill(ctx, t, backfillID(args[0]), page)
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(c.OutOrStdout()).Encode(v)
				}
				s := newScreen(c.OutOrStdout())
				v.draw(s)
				v.drawSlices(s)
				_, err = io.WriteString(c.OutOrStdout(), s.String())
				return err
			})
		},
	}
	c.Flags().IntVar(&page, "page", 0, "page of slices, from 0")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	temporalFlags(c, &at)
	return c
}

func newBackfillWatchCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:   "watch ID",
		Short: "Watch a backfill until it has ended",
		Long: "Watch a backfill, with the slices that run, until it has ended or Ctrl-C, which does not end it. The exit code is 0 where\n" +
			"it ended well: published, compared or checked.",
		Example: "  weft backfill watch payments/20261101T000000Z_20261102T000000Z",
		Args:    backfillArgument,
		RunE: func(c *cobra.Command, args []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				return watchBackfill(ctx, t, c.OutOrStdout(), backfillID(args[0]), asJSON)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print how it ended as one JSON object")
	temporalFlags(c, &at)
	return c
}

// newBackfillOrderCommand returns the command that sends a signal to a backfill.
func newBackfillOrderCommand(name, signal, short string) *cobra.Command {
	var reason string
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:   name + " ID",
		Short: short,
		Long:  short + ". The command returns when the order has been sent; `weft backfill show` tells what became of it.",
		Example: fmt.Sprintf("  weft backfill %s payments/20261101T000000Z_20261102T000000Z\n\n  # the same by hand:\n"+
			"  tctl workflow signal -w backfill/payments/20261101T000000Z_20261102T000000Z -n %s", name, signal),
		Args: backfillArgument,
		RunE: func(c *cobra.Command, args []string) error {
			return orderBackfill(c, at, args[0], signal, asJSON, workflows.Order{Reason: reason, Actor: author()})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the history")
	c.Flags().BoolVar(&asJSON, "json", false, "print what was sent as one JSON object")
	temporalFlags(c, &at)
	return c
}

func newParallelismCommand() *cobra.Command {
	var reason string
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:   "set-parallelism ID N",
		Short: "Change how many slices run at once",
		Long: "Change how many slices run at once. Slices that run are not ended: with a lower number fewer follow them.\n" +
			"The plan was drawn for the parallelism at the start: more than it has chunks do not help.",
		Example: "  weft backfill set-parallelism payments/20261101T000000Z_20261102T000000Z 8\n\n  # the same by hand:\n" +
			"  tctl workflow signal -w backfill/payments/20261101T000000Z_20261102T000000Z -n set_parallelism --input '{\"parallelism\":8}'",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("expected the id of a backfill and a number")
			}
			if n, err := strconv.Atoi(args[1]); err != nil || n < 1 {
				return fmt.Errorf("%q: expected a number from 1 on", args[1])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[1])
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return orderBackfill(c, at, args[0], workflows.SignalParallelism, asJSON,
				workflows.ParallelismOrder{Parallelism: n, Order: workflows.Order{Reason: reason, Actor: author()}})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the history")
	c.Flags().BoolVar(&asJSON, "json", false, "print what was sent as one JSON object")
	temporalFlags(c, &at)
	return c
}

func orderBackfill(c *cobra.Command, at stack.Addresses, id, signal string, asJSON bool, order any) error {
	return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
		id := backfillID(id)
		err := t.SignalWorkflow(ctx, id, "", signal, order)
		var none *serviceerror.NotFound
		if errors.As(err, &none) {
			return fmt.Errorf("%s does not run (weft backfill list)", id)
		}
		if err != nil {
			return fmt.Errorf("signal %s: %w", id, err)
		}
		if asJSON {
			return json.NewEncoder(c.OutOrStdout()).Encode(map[string]any{"workflow": id, "signal": signal, "input": order})
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", id, signal)
		return err
	})
}

// sliceRun is a slice that Temporal knows to run, or to wait.
type sliceRun struct {
	Activity string           `json:"activity"` // slice-<chunk>-<slice>, or a number for other steps
	State    string           `json:"state"`    // running, waiting_for_worker, backing_off or canceling
	Attempt  int32            `json:"attempt"`
	Worker   string           `json:"worker,omitempty"`
	Beat     *activities.Beat `json:"beat,omitempty"` // its last heartbeat
	Failure  string           `json:"failure,omitempty"`
}

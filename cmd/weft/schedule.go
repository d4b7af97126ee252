package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workflows"
)

func newScheduleCommand() *cobra.Command {
	return newGroup("schedule", "Run backfills and reconciliations on a schedule",
		"  weft schedule create payments --cron '0 2 * * *' --window 24h --lag 2h --repair\n  weft schedule list",
		newScheduleCreateCommand(), newScheduleListCommand(), newScheduleDeleteCommand())
}

type scheduleFlags struct {
	id, kind   string
	cron       []string
	every      time.Duration
	offset     time.Duration
	zone       string
	window     windowFlags
	work       workFlags
	mode       string
	repair     bool
	paused     bool
	asJSON     bool
	at         stack.Addresses
	modeIsSaid bool
}

// catchUp is how long after its time an action is still taken, where Temporal was away: a day's audit is as good a month later.
const catchUp = 30 * 24 * time.Hour

func newScheduleCreateCommand() *cobra.Command {
	var f scheduleFlags
	c := &cobra.Command{
		Use:   "create JOB --cron SPEC --window DURATION",
		Short: "Create a schedule of a backfill or a reconciliation",
		Long: "Create a schedule. Each of its actions starts a workflow over a window that is counted from the time at which the action\n" +
			"was due, not from when it began: runs that had to wait for one another leave nothing out. They wait and are never\n" +
			"skipped (overlap policy BufferAll), also those that were due while Temporal was away, up to 30 days.",
		Example: "  weft schedule create payments --cron '0 2 * * *' --window 24h --lag 2h --repair\n" +
			"  weft schedule create payments --kind backfill --every 1h --window 1h --lag 30m --id payments-hourly\n\n" +
			"  # the same by hand, with Temporal's own command line:\n" +
			"  temporal schedule create --schedule-id reconcile/payments --cron '0 2 * * *' --overlap-policy BufferAll \\\n" +
			"    --task-queue weft --type Reconcile --workflow-id reconcile/payments/scheduled \\\n" +
			"    --input '{\"job\":\"payments\",\"window\":\"24h\",\"lag\":\"2h\",\"repair\":true}'",
		Args: jobArgument,
		RunE: func(c *cobra.Command, args []string) error {
			f.modeIsSaid = c.Flags().Changed("mode")
			return f.create(c, args[0])
		},
	}
	c.Flags().StringVar(&f.kind, "kind", "reconcile", "what is started: reconcile or backfill")
	c.Flags().StringVar(&f.id, "id", "", "id of the schedule (default KIND/JOB)")
	c.Flags().StringArrayVar(&f.cron, "cron", nil, "when, as '0 2 * * *'; may be repeated")
	c.Flags().DurationVar(&f.every, "every", 0, "or how often, such as 24h, counted from 1970")
	c.Flags().DurationVar(&f.offset, "offset", 0, "how much later than --every says")
	c.Flags().StringVar(&f.zone, "zone", "UTC", "time zone of --cron, such as Asia/Shanghai")
	f.window.add(c)
	f.work.add(c)
	c.Flags().StringVar(&f.mode, "mode", workflows.ModePublish, "of a backfill: publish, dry_run or compare")
	c.Flags().BoolVar(&f.repair, "repair", false, "of a reconciliation: publish what was computed where it differs")
	c.Flags().BoolVar(&f.paused, "paused", false, "create it paused")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print one JSON object")
	temporalFlags(c, &f.at)
	_ = errors.Join( // they exist
		c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"reconcile", "backfill"}, cobra.ShellCompDirectiveNoFileComp)),
		c.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{workflows.ModePublish, workflows.ModeDryRun, workflows.ModeCompare}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

// action is the workflow that a schedule starts.
func (f *scheduleFlags) action(job string) (*client.ScheduleWorkflowAction, error) {
	f.work.Actor = "schedule " + f.id
	a := &client.ScheduleWorkflowAction{
		ID: f.kind + "/" + job + "/scheduled", TaskQueue: activities.Queue,
		TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword("WeftJob").ValueSet(job)),
	}
	var err error
	switch f.kind {
	case "backfill":
		in := workflows.BackfillInput{Job: job, Window: f.window.Window, Mode: f.mode, Work: f.work.Work}
		_, err = in.Check(time.Now())
		a.Workflow, a.Args = workflows.BackfillType, []any{in}
		if f.repair {
			err = errors.Join(err, errors.New("--repair is for --kind reconcile; a backfill publishes whatever it finds"))
		}
	case "reconcile":
		in := workflows.ReconcileInput{Job: job, Window: f.window.Window, Repair: f.repair, Work: f.work.Work}
		_, err = in.Check(time.Now())
		a.Workflow, a.Args = workflows.ReconcileType, []any{in}
		if f.modeIsSaid {
			err = errors.Join(err, errors.New("--mode is for --kind backfill; a reconciliation compares, and publishes with --repair"))
		}
	default:
		err = fmt.Errorf("--kind %q: expected reconcile or backfill", f.kind)
	}
	return a, err
}

func (f *scheduleFlags) create(c *cobra.Command, job string) error {
	if f.id == "" {
		f.id = f.kind + "/" + job
	}
	action, err := f.action(job)
	if f.window.Window.Window == "" {
		err = errors.New("--window is missing: the length of the range, such as 24h")
	}
	if f.work.RequestID != "" {
		err = errors.Join(err, errors.New("--request-id cannot be that of every run: leave it out"))
	}
	if (len(f.cron) > 0) == (f.every > 0) {
		err = errors.Join(err, errors.New("expected either --cron or --every"))
	}
	if f.every < 0 || f.offset < 0 || f.offset > 0 && f.offset >= f.every {
		err = errors.Join(err, fmt.Errorf("--every %s with --offset %s: expected a time above 0, and less than it", f.every, f.offset))
	}
	if _, zone := time.LoadLocation(f.zone); zone != nil {
		err = errors.Join(err, fmt.Errorf("--zone %q: expected one such as UTC or Asia/Shanghai", f.zone))
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	spec := client.ScheduleSpec{CronExpressions: f.cron, TimeZoneName: f.zone}
	if f.every > 0 {
		spec.Intervals = []client.ScheduleIntervalSpec{{Every: f.every, Offset: f.offset}}
	}
	return asTemporal(c, f.at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
		h, err := t.ScheduleClient().Create(ctx, client.ScheduleOptions{
			ID: f.id, Spec: spec, Action: action, Overlap: enums.SCHEDULE_OVERLAP_POLICY_BUFFER_ALL, CatchupWindow: catchUp, Paused: f.paused,
			Note: f.work.Reason, TypedSearchAttributes: action.TypedSearchAttributes,
		})
		if errors.Is(err, temporal.ErrScheduleAlreadyRunning) {
			return fmt.Errorf("there is a schedule %s already: delete it first, or name another with --id", f.id)
		}
		var refused *serviceerror.InvalidArgument
		if errors.As(err, &refused) {
			return &exitError{exitUsage, fmt.Errorf("create the schedule %s: %w", f.id, err)}
		}
		if err != nil {
			return fmt.Errorf("create the schedule %s: %w", f.id, err)
		}
		d, err := h.Describe(ctx)
		if err != nil {
			return fmt.Errorf("describe the schedule %s: %w", f.id, err)
		}
		s := scheduleState{Schedule: f.id, Job: job, Workflow: action.Workflow.(string), Paused: f.paused, Next: d.Info.NextActionTimes}
		if f.asJSON {
			return printLines(c.OutOrStdout(), []scheduleState{s})
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "created %s: next %s\n", s.Schedule, s.next())
		return err
	})
}

// scheduleState is a schedule as a list shows it; its keys are a contract.
type scheduleState struct {
	Schedule string      `json:"schedule"`
	Job      string      `json:"job,omitempty"`
	Workflow string      `json:"workflow"` // Backfill or Reconcile
	Paused   bool        `json:"paused"`
	Note     string      `json:"note,omitempty"`
	Next     []time.Time `json:"next"`           // times at which it is due
	Last     []string    `json:"last,omitempty"` // workflows that it started, the latest first
}

func (s *scheduleState) next() string {
	switch {
	case s.Paused:
		return "paused"
	case len(s.Next) == 0:
		return "never"
	}
	return s.Next[0].UTC().Format(time.DateTime)
}

func newScheduleListCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     "list",
		Short:   "List schedules of backfills and reconciliations",
		Example: "  weft schedule list\n  weft schedule list --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				list, err := listSchedules(ctx, t)
				if err != nil {
					return err
				}
				if asJSON {
					return printLines(c.OutOrStdout(), list)
				}
				return printSchedules(c.OutOrStdout(), list)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	temporalFlags(c, &at)
	return c
}

func listSchedules(ctx context.Context, t client.Client) (list []scheduleState, err error) {
	all, err := t.ScheduleClient().List(ctx, client.ScheduleListOptions{PageSize: 100})
	for err == nil && all.HasNext() {
		var e *client.ScheduleListEntry
		if e, err = all.Next(); err != nil {
			break
		}
		if e.WorkflowType.Name != workflows.BackfillType && e.WorkflowType.Name != workflows.ReconcileType {
			continue
		}
		s := scheduleState{Schedule: e.ID, Workflow: e.WorkflowType.Name, Paused: e.Paused, Note: e.Note, Next: e.NextActionTimes}
		// Others may have made it without.
		_ = converter.GetDefaultDataConverter().FromPayload(e.SearchAttributes.GetIndexedFields()["WeftJob"], &s.Job)
		for _, a := range slices.Backward(e.RecentActions) {
			if a.StartWorkflowResult != nil {
				s.Last = append(s.Last, a.StartWorkflowResult.WorkflowID)
			}
		}
		list = append(list, s)
	}
	if err != nil {
		return nil, fmt.Errorf("list schedules: %w", err)
	}
	slices.SortFunc(list, func(a, b scheduleState) int { return strings.Compare(a.Schedule, b.Schedule) })
	return list, nil
}

func printSchedules(w io.Writer, list []scheduleState) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "there are none (weft schedule create JOB --cron SPEC --window DURATION)")
		return err
	}
	s := newScreen(w)
	t := table{columns: []column{{name: "SCHEDULE", least: 12}, {name: "WORKFLOW", drop: 2}, {name: "NEXT"}, {name: "LAST", least: 12, drop: 1}}}
	for _, x := range list {
		last := "-"
		if len(x.Last) > 0 {
			last = x.Last[0]
		}
		how := plain
		if x.Paused {
			how = amber
		}
		t.add(cell{text: x.Schedule}, cell{text: x.Workflow}, cell{x.next(), how}, cell{text: last})
	}
	t.draw(s, 0)
	_, err := io.WriteString(w, s.String())
	return err
}

func newScheduleDeleteCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     "delete SCHEDULE",
		Short:   "Delete a schedule; what it has started runs on",
		Example: "  weft schedule delete reconcile/payments",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("expected the id of one schedule (weft schedule list)")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				err := t.ScheduleClient().GetHandle(ctx, args[0]).Delete(ctx)
				var none *serviceerror.NotFound
				if errors.As(err, &none) {
					return fmt.Errorf("there is no schedule %s (weft schedule list)", args[0])
				}
				if err != nil {
					return fmt.Errorf("delete the schedule %s: %w", args[0], err)
				}
				if asJSON {
					_, err = fmt.Fprintf(c.OutOrStdout(), "{\"deleted\":%q}\n", args[0])
				} else {
					_, err = fmt.Fprintln(c.OutOrStdout(), "deleted", args[0])
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	temporalFlags(c, &at)
	return c
}

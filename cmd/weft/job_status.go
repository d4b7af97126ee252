package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workflows"
)

// jobState is a running workflow of a job; its keys are a contract.
type jobState struct {
	Workflow string     `json:"workflow"`
	Job      string     `json:"job"`
	Version  int        `json:"version,omitempty"`
	Phase    string     `json:"phase"` // empty until a control worker has looked at it
	Started  time.Time  `json:"started"`
	Runs     []runState `json:"runs,omitempty"` // of `job status`: its shards, or itself
	// Processes are those that agents run for it; of `job status`.
	Processes []runState `json:"processes,omitempty"`

	Problem *workflows.Problem `json:"problem,omitempty"` // of `job status`: why it failed
}

// runState is an activity that runs for long.
type runState struct {
	Workflow string           `json:"workflow"`
	State    string           `json:"state"` // running, waiting_for_worker, backing_off, canceling, idle or ended
	Attempt  int32            `json:"attempt,omitempty"`
	Worker   string           `json:"worker,omitempty"`
	Beat     *activities.Beat `json:"beat,omitempty"` // its last heartbeat
	Failure  string           `json:"failure,omitempty"`
}

// waitingForWorker is the state of an activity that nobody has taken.
const waitingForWorker = "waiting_for_worker"

// jobName is what may stand in a query for a job: its names have no quote.
var jobName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// listJobs returns the running workflows of versions and publishers, of one job or of all (empty).
func listJobs(ctx context.Context, t client.Client, job string) (list []jobState, err error) {
	query := `WorkflowType IN ('Version', 'Publisher') AND ExecutionStatus = 'Running'`
	if job != "" {
		query += ` AND WeftJob = '` + job + `'`
	}
	var next []byte
	for {
		r, err := t.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: query, NextPageToken: next})
		if err != nil {
			return nil, fmt.Errorf("list workflows: %w", err)
		}
		for _, e := range r.GetExecutions() {
			list = append(list, stateOf(e))
		}
		if next = r.GetNextPageToken(); len(next) == 0 {
			break
		}
	}
	slices.SortFunc(list, func(a, b jobState) int {
		return cmp.Or(strings.Compare(a.Job, b.Job), cmp.Compare(a.Version, b.Version))
	})
	return list, nil
}

func stateOf(e *workflow.WorkflowExecutionInfo) jobState {
	attribute := func(name string) (text string) {
		// What cannot be read was set by nobody of ours.
		_ = converter.GetDefaultDataConverter().FromPayload(e.GetSearchAttributes().GetIndexedFields()[name], &text)
		return text
	}
	s := jobState{Workflow: e.GetExecution().GetWorkflowId(), Job: attribute("WeftJob"), Phase: attribute("WeftPhase"), Started: e.GetStartTime().AsTime()}
	s.Version, _ = strconv.Atoi(attribute("WeftVersion")) // a publisher has none
	return s
}

// describeRun tells about the activity of a workflow, as Temporal knows it.
func describeRun(ctx context.Context, t client.Client, id string) runState {
	s := runState{Workflow: id}
	r, err := t.DescribeWorkflowExecution(ctx, id, "")
	switch {
	case err != nil:
		s.State, s.Failure = "ended", err.Error()
		return s
	case r.GetWorkflowExecutionInfo().GetStatus() != enums.WORKFLOW_EXECUTION_STATUS_RUNNING:
		s.State = "ended"
		return s
	}
	s.State = "idle"
	for _, a := range r.GetPendingActivities() {
		s.Attempt, s.Failure = a.GetAttempt(), a.GetLastFailure().GetMessage()
		s.State, s.Worker, s.Beat = pendingState(a)
	}
	return s
}

// pendingState tells what an activity that has not ended does, and where, with its last heartbeat; nil: it has sent none.
func pendingState(a *workflow.PendingActivityInfo) (state, worker string, beat *activities.Beat) {
	state, worker = waitingForWorker, ""
	switch a.GetState() {
	case enums.PENDING_ACTIVITY_STATE_STARTED:
		state, worker = "running", a.GetLastWorkerIdentity()
	case enums.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED:
		state, worker = "canceling", a.GetLastWorkerIdentity()
	default:
		if a.GetAttempt() > 1 && a.GetScheduledTime().AsTime().After(time.Now()) {
			state = "backing_off"
		}
	}
	var b activities.Beat
	if p := a.GetHeartbeatDetails().GetPayloads(); len(p) > 0 && converter.GetDefaultDataConverter().FromPayload(p[0], &b) == nil {
		beat = &b
	}
	return state, worker, beat
}

func newJobListCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the jobs that are deployed",
		Example: "  weft job list\n  weft job list --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				list, err := listJobs(ctx, t, "")
				if err != nil {
					return err
				}
				if asJSON {
					return printLines(c.OutOrStdout(), list)
				}
				if len(list) == 0 {
					_, err := fmt.Fprintln(c.OutOrStdout(), "no job is deployed (weft job run --spec FILE)")
					return err
				}
				return printJobs(c.OutOrStdout(), list)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	temporalFlags(c, &at)
	return c
}

func temporalFlags(c *cobra.Command, at *stack.Addresses) {
	c.Flags().StringVar(&at.Temporal, "temporal", "", "host:port of Temporal (default $WEFT_TEMPORAL, or the running stack's)")
	c.Flags().StringVar(&at.Namespace, "namespace", "", "namespace of Temporal")
}

func newJobStatusCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:   "status JOB",
		Short: "Show the versions of a job, and how their shards get on",
		Long: "Show the versions of a job, and how their shards get on, as their heartbeats told Temporal. It needs no worker to\n" +
			"answer. The exit code is 1 where the job is not deployed.",
		Example: "  weft job status payments\n  weft job status payments --json | jq '.runs[].beat.lag'",
		Args:    jobArgument,
		RunE: func(c *cobra.Command, args []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				list, err := listJobs(ctx, t, args[0])
				if err != nil {
					return err
				}
				if len(list) == 0 {
					return notDeployed(args[0])
				}
				for i := range list {
					list[i].Runs = describeRuns(ctx, t, list[i])
					for _, id := range runIDs(ctx, t, list[i], workflows.ProcessType) {
						list[i].Processes = append(list[i].Processes, describeRun(ctx, t, id))
					}
					list[i].Problem = problemOf(ctx, t, list[i])
				}
				if asJSON {
					return printLines(c.OutOrStdout(), list)
				}
				return printStatus(c.OutOrStdout(), list)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line, one for each workflow")
	temporalFlags(c, &at)
	return c
}

func jobArgument(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errors.New("expected the name of one job")
	}
	if !jobName.MatchString(args[0]) {
		return fmt.Errorf("%q is no name of a job: expected lower-case letters, digits and -", args[0])
	}
	return nil
}

func notDeployed(job string) error {
	return fmt.Errorf("job %s is not deployed; `weft job list` lists what is, `weft job run --spec FILE` deploys", job)
}

// describeRuns describes the shards of a version, until the first that never was, or a publisher.
func describeRuns(ctx context.Context, t client.Client, s jobState) (runs []runState) {
	if s.Version == 0 {
		return []runState{describeRun(ctx, t, s.Workflow)}
	}
	for _, id := range runIDs(ctx, t, s, workflows.ShardType) {
		runs = append(runs, describeRun(ctx, t, id))
	}
	return runs
}

// queryTimeout bounds a query, which needs a control worker to answer.
const queryTimeout = 3 * time.Second

// problemOf asks a workflow that failed why; nil where it did not, or where nobody answers.
func problemOf(ctx context.Context, t client.Client, s jobState) *workflows.Problem {
	if s.Phase != workflows.Failed && s.Phase != workflows.CrashLooping {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	v, err := t.QueryWorkflow(ctx, s.Workflow, "", workflows.QueryStatus)
	if err != nil {
		return nil
	}
	var status activities.VersionHealth
	if v.Get(&status) != nil {
		return nil
	}
	for _, p := range status.Processes {
		if status.Error == nil {
			status.Error = p.Error
		}
	}
	for _, shard := range status.Shards {
		if status.Error == nil {
			status.Error = shard.Error
		}
	}
	return status.Error
}

// runIDs lists the shards or the processes of a version that run.
func runIDs(ctx context.Context, t client.Client, s jobState, kind string) (ids []string) {
	if s.Version == 0 {
		return nil
	}
	query := fmt.Sprintf(`WorkflowType = '`+kind+`' AND ExecutionStatus = 'Running' AND WeftJob = '%s' AND WeftVersion = '%d'`, s.Job, s.Version)
	r, err := t.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: query, PageSize: 1000})
	if err != nil {
		return nil
	}
	for _, e := range r.GetExecutions() {
		ids = append(ids, e.GetExecution().GetWorkflowId())
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) })
	return ids
}

func printLines[T any](w io.Writer, list []T) error {
	e := json.NewEncoder(w)
	for i := range list {
		if err := e.Encode(list[i]); err != nil {
			return err
		}
	}
	return nil
}

func printJobs(w io.Writer, list []jobState) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "JOB\tVERSION\tPHASE\tSINCE\tWORKFLOW")
	for _, s := range list {
		version := "-"
		if s.Version > 0 {
			version = strconv.Itoa(s.Version)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", s.Job, version, cmp.Or(s.Phase, "(no control worker)"), s.Started.UTC().Format(time.DateTime), s.Workflow)
	}
	return t.Flush()
}

func printStatus(w io.Writer, list []jobState) error {
	if err := printJobs(w, list); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RUN\tSTATE\tATTEMPT\tRECORDS\tLAG\tWATERMARK\tCHECKPOINT\tWORKER")
	var failures []string
	for _, s := range list {
		if p := s.Problem; p != nil {
			failures = append(failures, fmt.Sprintf("%s: %s (%s, %s)", s.Workflow, p.Message, p.Type, p.At.UTC().Format(time.DateTime)))
		}
		if text := s.unmanned(); text != "" {
			failures = append(failures, fmt.Sprintf("%s: %s", s.Workflow, text))
		}
		for _, r := range s.Runs {
			b, mark := activities.Beat{}, "-"
			if r.Beat != nil {
				b = *r.Beat
			}
			if b.Watermark > 0 {
				mark = time.UnixMicro(b.Watermark).UTC().Format(time.DateTime)
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%d\t%s\n", r.Workflow, r.State, r.Attempt, thousands(b.Records), thousands(b.Lag), mark,
				b.Checkpoint, cmp.Or(r.Worker, "-"))
			if r.Failure != "" {
				failures = append(failures, fmt.Sprintf("%s failed before: %s", r.Workflow, r.Failure))
			}
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	more, err := printProcesses(w, list)
	if err != nil {
		return err
	}
	for _, f := range append(failures, more...) {
		if _, err := fmt.Fprintf(w, "%s\n", strings.Map(printable, f)); err != nil {
			return err
		}
	}
	return nil
}

// unmanned says what to do where some shard of a version waits for a process; empty where none does.
func (s *jobState) unmanned() string {
	waits := func(r runState) bool { return r.State == waitingForWorker }
	switch {
	case s.Version == 0 || !slices.ContainsFunc(s.Runs, waits):
		return ""
	case slices.ContainsFunc(s.Processes, waits):
		return "no process takes its shards: it waits for an agent that has room, start one on some machine (weft agent)"
	case len(s.Processes) == 0:
		return fmt.Sprintf("no process takes its shards: start one (weft worker --job %s --version %d), or deploy it, so that agents do (weft deploy)", s.Job, s.Version)
	}
	return "" // one is being started
}

// printProcesses prints what agents run, where they run anything, and returns what failed.
func printProcesses(w io.Writer, list []jobState) (failures []string, err error) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := "\nPROCESS\tSTATE\tATTEMPT\tMEMORY\tRUNS AS\n"
	for _, s := range list {
		for _, r := range s.Processes {
			memory, process := "-", "-"
			if r.Beat != nil {
				memory, process = fmt.Sprintf("%d MiB", r.Beat.Memory>>20), r.Beat.Process
			}
			if r.State == waitingForWorker {
				r.State = workflows.Waiting
			}
			fmt.Fprintf(t, "%s%s\t%s\t%d\t%s\t%s\n", head, r.Workflow, r.State, r.Attempt, memory, process)
			head = ""
			if r.Failure != "" {
				failures = append(failures, fmt.Sprintf("%s failed before: %s", r.Workflow, r.Failure))
			}
		}
	}
	return failures, t.Flush()
}

// printable keeps what a message quotes from steering a terminal.
func printable(r rune) rune {
	if r != '\n' && !strconv.IsPrint(r) {
		return '?'
	}
	return r
}

// stopWait is how long `job stop` waits for the last checkpoints.
const stopWait = time.Minute

// newJobOrderCommand returns the command that sends a signal to the workflows of a job.
func newJobOrderCommand(signal, short, long string) *cobra.Command {
	var version int
	var reason string
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:     signal + " JOB",
		Short:   short,
		Long:    strings.TrimSpace(short + ".\n\n" + long),
		Example: fmt.Sprintf("  weft job %s payments\n  tctl workflow signal -w version/payments/1 -n %s", signal, signal),
		Args:    jobArgument,
		RunE: func(c *cobra.Command, args []string) error {
			return asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
				list, err := listJobs(ctx, t, args[0])
				if err != nil {
					return err
				}
				if version != 0 {
					list = slices.DeleteFunc(list, func(s jobState) bool { return s.Version != version })
				}
				managed := false // by a workflow Job, which tells its versions
				if version == 0 && signal != workflows.SignalRetry {
					if managed, err = askJob(ctx, t, args[0], signal, reason); err != nil {
						return err
					}
				}
				if len(list) == 0 && !managed {
					return notDeployed(args[0])
				}
				for _, s := range list {
					if managed {
						break
					}
					err := t.SignalWorkflow(ctx, s.Workflow, "", signal, workflows.Order{Reason: reason, Actor: author()})
					if err != nil {
						return fmt.Errorf("signal %s: %w", s.Workflow, err)
					}
				}
				if signal == workflows.SignalStop {
					if err := awaitEnds(ctx, t, list); err != nil {
						return err
					}
				}
				if asJSON {
					return printLines(c.OutOrStdout(), list)
				}
				for _, s := range list {
					if _, err := fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", s.Workflow, signal); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	c.Flags().IntVar(&version, "version", 0, "only this version (default all that run, and the publisher)")
	c.Flags().StringVar(&reason, "reason", "", "why, for the history")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line, as they were before")
	temporalFlags(c, &at)
	return c
}

// awaitEnds waits until workflows have ended.
func awaitEnds(ctx context.Context, t client.Client, list []jobState) error {
	limited, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	for _, s := range list {
		err := t.GetWorkflow(limited, s.Workflow, "").Get(limited, nil)
		if limited.Err() != nil {
			return fmt.Errorf("%s has been told to stop and has not ended after %s; is a worker running? (weft job status %s)", s.Workflow, stopWait, s.Job)
		}
		if err != nil {
			return fmt.Errorf("%s ended: %w", s.Workflow, err)
		}
	}
	return nil
}

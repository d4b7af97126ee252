package workflows

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// SignalNews tells Deploy what came of it; it carries DeployNews, from Job.
const SignalNews = "news"

// Outcomes of Deploy, beside those of a rollout and Refused.
const OutcomePlanned = "planned" // a dry run

// DeployInput is the input of Deploy: exactly one of Spec, SpecText, SpecObject and Version; or Rebuild, of Version or of the
// version that is served.
type DeployInput struct {
	Spec       json.RawMessage `json:"spec,omitempty"`        // the spec as a JSON object
	SpecText   string          `json:"spec_text,omitempty"`   // or as YAML
	SpecObject string          `json:"spec_object,omitempty"` // or a key of the object store
	Version    int             `json:"version,omitempty"`     // or a registered version of Job
	Job        string          `json:"job,omitempty"`         // needed with Version
	Message    string          `json:"message,omitempty"`
	Author     string          `json:"author,omitempty"`
	RequestID  string          `json:"request_id,omitempty"` // the same request again is the same deployment
	DryRun     bool            `json:"dry_run,omitempty"`    // only say what would happen
	SkipCanary bool            `json:"skip_canary,omitempty"`
	Rebuild    bool            `json:"rebuild,omitempty"` // register a version again and compute it anew
	Shards     int             `json:"shards,omitempty"`
	State      *keptDeploy     `json:"state,omitempty"` // of the run before, by continue-as-new
}

// keptDeploy is what Deploy carries over when it continues as new: it has asked Job, and waits.
type keptDeploy struct {
	DeployStatus
}

// UnmarshalJSON passes over keys that it does not know: a newer engine may have written them before a rollback.
func (k *keptDeploy) UnmarshalJSON(data []byte) error {
	type plain keptDeploy
	return json.Unmarshal(data, (*plain)(k))
}

const deployExample = `{"spec":{"version":"weft/v1","job":"payments",…},"message":"…","author":"…"}, {"spec_text":"version: weft/v1\n…"} {"job":"payments","version":2} or {"job":"payments","rebuild":true}`

func (in *DeployInput) check() error {
	given := 0
	for _, is := range []bool{len(in.Spec) > 0, in.SpecText != "", in.SpecObject != "", in.Version != 0} {
		if is {
			given++
		}
	}
	switch {
	case in.Rebuild && (in.Job == "" || given > 1 || given == 1 && in.Version == 0):
		return errors.New("rebuild: expected a job, and a version of it unless the served one is meant")
	case given != 1 && !in.Rebuild:
		return errors.New("expected exactly one of spec, spec_text, spec_object and version, or rebuild")
	case len(in.Spec) > 0 && in.Spec[0] != '{':
		return errors.New("spec: expected a JSON object; YAML belongs into spec_text")
	case in.Version < 0 || in.Shards < 0 || in.Shards > shardsMax:
		return fmt.Errorf("version is negative, or shards is not 1 to %d", shardsMax)
	case in.Version > 0 && in.Job == "":
		return errors.New("version needs its job")
	}
	return nil
}

// DeployResult is the result of Deploy.
type DeployResult struct {
	Job     string           `json:"job"`
	Version int              `json:"version"`
	Outcome string           `json:"outcome"` // promoted, failed, aborted, refused or planned
	Reasons []string         `json:"reasons,omitempty"`
	Plan    *activities.Plan `json:"plan,omitempty"`
	Rollout *RolloutReport   `json:"rollout,omitempty"` // as it ended
}

// DeployNews is what Job tells Deploy: that a rollout began, or its outcome.
type DeployNews struct {
	Version int            `json:"version"`
	Final   bool           `json:"final"`
	Outcome string         `json:"outcome,omitempty"`
	Reasons []string       `json:"reasons,omitempty"`
	Rollout *RolloutReport `json:"rollout,omitempty"`
}

// DeployStatus is what the query "status" answers for Deploy.
type DeployStatus struct {
	State   string           `json:"state"` // preparing, asked, rolling_out or ended
	Plan    *activities.Plan `json:"plan,omitempty"`
	Outcome string           `json:"outcome,omitempty"`
	Rejections
}

// asked is the state of a Deploy whose Job has not answered yet.
const asked = "asked"

// Deploy registers a version of a job, asks Job to roll it out, and waits for what comes of it. Its id is free. Query
// QueryStatus returns a DeployStatus. To end it ends nothing else.
func Deploy(ctx workflow.Context, raw converter.RawValue) (result DeployResult, err error) {
	var in DeployInput
	err = decode(raw, &in)
	if err == nil {
		err = in.check()
	}
	if err != nil {
		return result, badInput(DeployType, deployExample, err)
	}
	status := DeployStatus{State: Preparing}
	if in.State != nil && in.State.Plan != nil {
		status = in.State.DeployStatus
		result = DeployResult{Job: status.Plan.Job, Version: status.Plan.Version, Plan: status.Plan}
	}
	var news *DeployNews
	box := inbox{Rejections: &status.Rejections, handlers: []handler{{SignalNews, func(raw converter.RawValue) error {
		var n DeployNews
		if err := decode(raw, &n); err != nil {
			return err
		}
		if status.State == Preparing || n.Version != result.Version {
			return errors.New("nobody was asked about that version")
		}
		status.State = RollingOut
		if n.Final {
			news = &n
		}
		return nil
	}}}}
	if err := workflow.SetQueryHandler(ctx, QueryStatus, func() (DeployStatus, error) { return status, nil }); err != nil {
		return result, err
	}
	if status.Plan == nil {
		plan, err := in.ask(ctx, &status)
		if err != nil {
			return result, err
		}
		result = DeployResult{Job: plan.Job, Version: plan.Version, Plan: plan, Outcome: OutcomePlanned}
		if len(plan.Refused) > 0 {
			return in.refused(ctx, result)
		}
		if in.DryRun {
			return result, nil
		}
	}
	plan := status.Plan
	if err := awaitNews(ctx, &box, plan.Job, func() bool { return news != nil }); err != nil {
		if errors.Is(err, errContinue) {
			in.State = &keptDeploy{status}
			err = workflow.NewContinueAsNewError(ctx, DeployType, in)
		}
		return result, err
	}
	status.State, status.Outcome = Ended, news.Outcome
	result.Outcome, result.Reasons, result.Rollout = news.Outcome, news.Reasons, news.Rollout
	return result, mark(ctx, plan.Job, fmt.Sprint(plan.Version), news.Outcome)
}

// refused ends a deployment that asks for more than may be had; Job is not asked. It is in the audit log unless it is a dry run.
func (in *DeployInput) refused(ctx workflow.Context, result DeployResult) (DeployResult, error) {
	result.Outcome, result.Reasons = Refused, result.Plan.Refused
	if in.DryRun {
		return result, nil
	}
	d := Decision{At: workflow.Now(ctx), Kind: SignalDeploy, Version: result.Version, Result: RejectedWhat, Text: strings.Join(result.Reasons, "; "),
		Reason: in.Message, Actor: in.Author, RequestID: in.RequestID}
	entry := activities.Entry{ID: in.RequestID + "/refused", Actor: d.Actor, Action: "job." + d.Kind + "." + d.Result, Reason: d.Reason, Detail: string(inputOf(d))}
	var l *activities.Lifecycle
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, shortOptions()), l.RecordDecisions,
		activities.RecordInput{Job: result.Job, Entries: []activities.Entry{entry}}).Get(ctx, nil)
	return result, errors.Join(err, mark(ctx, result.Job, "", Refused))
}

// ask registers the version, and asks Job to roll it out unless it is a dry run.
func (in *DeployInput) ask(ctx workflow.Context, status *DeployStatus) (*activities.Plan, error) {
	info := workflow.GetInfo(ctx)
	if in.RequestID == "" {
		in.RequestID = "deploy/" + info.WorkflowExecution.RunID
	}
	register := activities.RegisterInput{Job: in.Job, Version: in.Version, Spec: in.SpecText, Object: in.SpecObject, Message: in.Message,
		Author: in.Author, RequestID: in.RequestID, DryRun: in.DryRun, Rebuild: in.Rebuild, Limit: true, Shards: in.Shards}
	if len(in.Spec) > 0 {
		register.Spec = string(in.Spec)
	}
	var l *activities.Lifecycle
	short := workflow.WithActivityOptions(ctx, shortOptions())
	var plan activities.Plan
	if err := workflow.ExecuteActivity(short, l.RegisterVersion, register).Get(ctx, &plan); err != nil {
		return nil, err
	}
	status.Plan = &plan
	if in.DryRun || len(plan.Refused) > 0 {
		return &plan, nil
	}
	if err := mark(ctx, plan.Job, fmt.Sprint(plan.Version), RollingOut); err != nil {
		return nil, err
	}
	status.State = asked
	shards := in.Shards
	if in.Rebuild && shards == 0 {
		shards = plan.Shards
	}
	request := DeployRequest{Version: plan.Version, Shards: shards, SkipCanary: in.SkipCanary || in.Rebuild, Reason: in.Message, RequestID: in.RequestID,
		Actor: in.Author, Deploy: info.WorkflowExecution.ID}
	launch := activities.LaunchInput{ID: JobID(plan.Job), Type: JobType, Job: plan.Job, Input: inputOf(JobInput{Job: plan.Job}),
		Signal: SignalDeploy, Arg: inputOf(request)}
	return &plan, workflow.ExecuteActivity(short, l.Launch, launch).Get(ctx, nil)
}

// awaitNews waits until Job has told the outcome, or is no more. It fails with errContinue where the history has become long.
func awaitNews(ctx workflow.Context, box *inbox, job string, told func() bool) error {
	var control *activities.Control
	short := workflow.WithActivityOptions(ctx, shortOptions())
	carries := workflow.GetVersion(ctx, "carry", workflow.DefaultVersion, 1) != workflow.DefaultVersion
	long := func() bool { return carries && workflow.GetInfo(ctx).GetContinueAsNewSuggested() }
	for {
		timing, cancel := workflow.WithCancel(ctx)
		timer := workflow.NewTimer(timing, 10*time.Minute)
		err := workflow.Await(ctx, func() bool { return box.pending(ctx) || timer.IsReady() || long() })
		cancel()
		if box.drain(ctx); err != nil || told() {
			return err
		}
		if long() {
			return errContinue
		}
		if !timer.IsReady() {
			continue
		}
		var d activities.Described
		if err := workflow.ExecuteActivity(short, control.Describe, activities.DescribeInput{IDs: []string{JobID(job)}}).Get(ctx, &d); err != nil {
			return err
		}
		if box.drain(ctx); !told() && !slices.Contains(d.Running, true) {
			return temporal.NewNonRetryableApplicationError(fmt.Sprintf("the workflow %s has ended, so nobody decides about this deployment: deploy again", JobID(job)), activities.User, nil)
		}
	}
}

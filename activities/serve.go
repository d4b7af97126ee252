package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
)

// RegisterInput says what is to be deployed: a registered version, a spec as text (YAML, of which JSON is a subset), or one in
// the object store.
type RegisterInput struct {
	Job       string `json:"job,omitempty"` // the spec's where empty
	Version   int    `json:"version,omitempty"`
	Spec      string `json:"spec,omitempty"`
	Object    string `json:"object,omitempty"`
	Message   string `json:"message,omitempty"`
	Author    string `json:"author,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	DryRun    bool   `json:"dry_run,omitempty"` // registers nothing
	// Rebuild registers the version of that number again, or the served one where it is 0.
	Rebuild bool `json:"rebuild,omitempty"`
	// Limit refuses a version that asks for more than may be had, before it is registered; Shards is how many are asked for.
	Limit  bool `json:"limit,omitempty"`
	Shards int  `json:"shards,omitempty"`
	// Served refuses a version that never served the newest sessions: a rollback asks nobody to agree, and judges by no gate.
	Served bool `json:"served,omitempty"`
}

// Plan is what the deployment of a version does.
type Plan struct {
	Job      string   `json:"job"`
	Version  int      `json:"version"` // of a dry run, the number that it would get
	Existed  bool     `json:"existed"` // it was registered before
	Current  int      `json:"current"` // that serves the newest sessions; 0: none
	Changes  []Change `json:"changes"` // from the current version
	Phases   []string `json:"phases"`  // for a person
	Steps    []Step   `json:"steps"`
	Gates    []Gate   `json:"gates"`
	Expect   []string `json:"expect"`               // intended differences
	LagMaxMS int64    `json:"lag_max_ms"`           // within which it counts as caught up
	WarmUpMS int64    `json:"warm_up_ms,omitempty"` // within which it must have caught up; 0: as long as it gets nearer
	WindowMS int64    `json:"window_ms"`            // for which the previous version runs on after a promotion
	TwoMust  bool     `json:"two_person"`           // somebody else than who deployed must agree
	Freeze   []string `json:"freeze"`
	Topics   []string `json:"topics"`
	Sinks    bool     `json:"sinks"` // the job wants a publisher
	// Shards is how many have saved a checkpoint of this version, or of the one that it rebuilds; 0: it never ran.
	Shards    int  `json:"shards,omitempty"`
	Divisible bool `json:"divisible,omitempty"` // it can have more than one
	// Refused says what it asks for beyond what may be had; then nothing was registered.
	Refused []string `json:"refused,omitempty"`
}

// Change is a difference in the meaning of two specs.
type Change struct {
	Path   string `json:"path"`
	Kind   string `json:"kind"` // added, removed or changed
	Text   string `json:"text"`
	Effect string `json:"effect"`
	Means  string `json:"means"`
}

// Step is a part of a canary.
type Step struct {
	Weight int   `json:"weight"`
	HoldMS int64 `json:"hold_ms"`
}

// Gate is a condition on a candidate.
type Gate struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Surveyed is what a job serves.
type Surveyed struct {
	Epoch   uint64 `json:"epoch"`            // of the serving map
	Current int    `json:"current"`          // version that serves the newest sessions; 0: none
	From    int64  `json:"from_us"`          // the earliest start from which it serves all, in microseconds
	Shards  int    `json:"shards,omitempty"` // of that version, that have saved a checkpoint; 0: none has
}

// SurveyInput names a job.
type SurveyInput struct {
	Job string `json:"job"`
}

// SwitchInput asks for a version to be served.
type SwitchInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"`
	From    int64  `json:"from_us"` // session starts from here on; earlier ones stay with what serves them
	// Back is the epoch of a serving map that is to hold again from From on; 0: the version gets all of that.
	Back      uint64 `json:"back,omitempty"`
	Epoch     uint64 `json:"epoch"` // of the map that the decision rests on
	RequestID string `json:"request_id"`
	Actor     string `json:"actor,omitempty"`
	Reason    string `json:"reason,omitempty"`
	// Freeze names versions whose freeze windows count; none: they do not.
	Freeze []int `json:"freeze,omitempty"`
}

// Switched is what came of it.
type Switched struct {
	Epoch uint64 `json:"epoch"` // of the map that holds now
	Stale bool   `json:"stale"` // nothing changed: the map is another one, of that epoch
	// Frozen is when the freeze window ends that forbade it; nil: none did.
	Frozen *time.Time `json:"frozen,omitempty"`
}

// CanaryInput asks that a share of the users is led to a candidate.
type CanaryInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"` // the candidate
	Current int    `json:"current"` // beside which it stands
	From    int64  `json:"from_us"` // it has all sessions that start from here on
	Weight  int    `json:"weight"`  // percent of the users; 0 ends it
	At      int64  `json:"at_us"`   // orders requests: an earlier one than the last changes nothing
	Actor   string `json:"actor,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// StandingInput asks how a candidate stands to the version that is served.
type StandingInput struct {
	Job      string `json:"job"`
	Version  int    `json:"version"`
	Current  int    `json:"current"` // 0: nothing is served
	Shards   int    `json:"shards"`
	LagMaxMS int64  `json:"lag_max_ms"`
	Key      string `json:"key"`              // of an object that keeps where the current version was when first asked; empty: does not matter
	Health   bool   `json:"health,omitempty"` // also why it does not run well
}

// Standing is how a version stands.
type Standing struct {
	Phase string `json:"phase"` // of its workflow; empty: it has none
	// Error is the last problem of its shards and processes, in words, and ErrorType its class; empty: none is known.
	Error     string `json:"error,omitempty"`
	ErrorType string `json:"error_type,omitempty"`
	Deaths    int    `json:"deaths,omitempty"`   // how often that process or shard has died that did most often, as far as is known
	Missing   int    `json:"missing,omitempty"`  // shards that have saved no checkpoint yet
	Unmanned  bool   `json:"unmanned,omitempty"` // no process takes its shards
	Behind    int64  `json:"behind"`             // records until where the current version was when first asked; -1: not known
	LagMS     int64  `json:"lag_ms"`             // behind the current version in event time; -1: not known yet
	CaughtUp  bool   `json:"caught_up"`
	From      int64  `json:"from_us"`             // with CaughtUp: it has all sessions that start from here on
	Waits     string `json:"waits_for,omitempty"` // for a person: what is missing
	Settled   bool   `json:"settled"`             // nothing that it serves can change any more, or it serves nothing
}

// Stage registers versions, and changes and reads what a job serves.
type Stage interface {
	Register(ctx context.Context, in RegisterInput) (Plan, error)
	Survey(ctx context.Context, job string) (Surveyed, error)
	// Switch may be repeated: what was done is not done again.
	Switch(ctx context.Context, in SwitchInput) (Switched, error)
	Canary(ctx context.Context, in CanaryInput) error
	Standing(ctx context.Context, in StandingInput) (Standing, error)
	Compare(ctx context.Context, in TrialInput, progress func()) (Trial, error)
	Record(ctx context.Context, job string, entries []Entry) error
	// DropVersion removes what a version that does not run has left, unless that is served or a rollback needs it.
	DropVersion(ctx context.Context, in DropVersionInput) (DroppedVersion, error)
}

// Starter starts, signals and describes workflows; a client of Temporal does.
type Starter interface {
	Describer
	ExecuteWorkflow(ctx context.Context, o client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error)
	SignalWithStartWorkflow(ctx context.Context, id, signal string, arg any, o client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error)
	QueryWorkflow(ctx context.Context, id, run, query string, args ...any) (converter.EncodedValue, error)
	DescribeTaskQueue(ctx context.Context, queue string, kind enums.TaskQueueType) (*workflowservice.DescribeTaskQueueResponse, error)
}

// Lifecycle has the short activities of deployments.
type Lifecycle struct {
	Host    *Host
	Stage   Stage
	Starter Starter
}

// RegisterVersion registers a version, or finds it, and says what its deployment does.
func (l *Lifecycle) RegisterVersion(ctx context.Context, in RegisterInput) (Plan, error) {
	p, err := l.Stage.Register(ctx, in)
	if err != nil {
		return Plan{}, l.Host.failure(fmt.Errorf("register a version: %w", err))
	}
	return p, nil
}

// Survey tells what a job serves.
func (l *Lifecycle) Survey(ctx context.Context, in SurveyInput) (Surveyed, error) {
	s, err := l.Stage.Survey(ctx, in.Job)
	if err != nil {
		return Surveyed{}, l.Host.failure(fmt.Errorf("read what %s serves: %w", in.Job, err))
	}
	return s, nil
}

// SwitchVersion makes a job serve a version.
func (l *Lifecycle) SwitchVersion(ctx context.Context, in SwitchInput) (Switched, error) {
	s, err := l.Stage.Switch(ctx, in)
	if err != nil {
		return Switched{}, l.Host.failure(fmt.Errorf("serve version %d of %s: %w", in.Version, in.Job, err))
	}
	return s, nil
}

// SetCanary leads a share of the users to a candidate.
func (l *Lifecycle) SetCanary(ctx context.Context, in CanaryInput) error {
	if err := l.Stage.Canary(ctx, in); err != nil {
		return l.Host.failure(fmt.Errorf("lead %d%% of the users of %s to version %d: %w", in.Weight, in.Job, in.Version, err))
	}
	return nil
}

// CompareStanding tells how far a version is, beside the one that is served.
func (l *Lifecycle) CompareStanding(ctx context.Context, in StandingInput) (Standing, error) {
	s, err := l.Stage.Standing(ctx, in)
	if err != nil {
		return Standing{}, l.Host.failure(fmt.Errorf("look how far version %d of %s is: %w", in.Version, in.Job, err))
	}
	r, err := l.Starter.DescribeWorkflowExecution(ctx, VersionID(in.Job, in.Version), "")
	var none *serviceerror.NotFound
	if err != nil && !errors.As(err, &none) {
		return Standing{}, fmt.Errorf("describe version %d of %s: %w", in.Version, in.Job, err)
	}
	if err == nil {
		s.Phase = phaseOf(r)
	}
	if in.Health && err == nil && s.Phase != Stopped {
		l.examine(ctx, in, &s)
	}
	return s, nil
}

// phaseOf reads the state that a workflow shows; stopped where it has ended.
func phaseOf(r *workflowservice.DescribeWorkflowExecutionResponse) (phase string) {
	info := r.GetWorkflowExecutionInfo()
	if info.GetStatus() != enums.WORKFLOW_EXECUTION_STATUS_RUNNING {
		return Stopped
	}
	p := info.GetSearchAttributes().GetIndexedFields()["WeftPhase"]
	if p == nil || converter.GetDefaultDataConverter().FromPayload(p, &phase) != nil {
		return "" // it has not run yet
	}
	return phase
}

// Entry is a decision for the audit log.
type Entry struct {
	ID     string `json:"id"` // of the entry: one that is there is not written again
	Actor  string `json:"actor,omitempty"`
	Action string `json:"action"`
	Reason string `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"` // JSON
}

// RecordInput has decisions about a job.
type RecordInput struct {
	Job     string  `json:"job"`
	Entries []Entry `json:"entries"`
}

// RecordDecisions writes decisions to the audit log.
func (l *Lifecycle) RecordDecisions(ctx context.Context, in RecordInput) error {
	if err := l.Stage.Record(ctx, in.Job, in.Entries); err != nil {
		return l.Host.failure(fmt.Errorf("record decisions about %s: %w", in.Job, err))
	}
	return nil
}

// DropVersionInput names a version whose results and state are to be dropped.
type DropVersionInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"`
	// Back is the epoch of a serving map to which a rollback may go, so that what it names is kept; 0: there is none.
	Back uint64 `json:"back,omitempty"`
}

// DroppedVersion says what came of it.
type DroppedVersion struct {
	Kept    string `json:"kept,omitempty"` // why nothing was dropped
	Objects int    `json:"objects"`        // deleted
}

// DropVersion drops what a version has left that is over.
func (l *Lifecycle) DropVersion(ctx context.Context, in DropVersionInput) (DroppedVersion, error) {
	r, err := l.Starter.DescribeWorkflowExecution(ctx, VersionID(in.Job, in.Version), "")
	var none *serviceerror.NotFound
	if err != nil && !errors.As(err, &none) {
		return DroppedVersion{}, fmt.Errorf("describe version %d of %s: %w", in.Version, in.Job, err)
	}
	if err == nil && phaseOf(r) != Stopped {
		return DroppedVersion{Kept: "it still runs"}, nil
	}
	d, err := l.Stage.DropVersion(ctx, in)
	if err != nil {
		return DroppedVersion{}, l.Host.failure(fmt.Errorf("drop version %d of %s: %w", in.Version, in.Job, err))
	}
	return d, nil
}

// LaunchInput names a workflow that is to run.
type LaunchInput struct {
	ID      string          `json:"id"`
	Type    string          `json:"type"`
	Input   json.RawMessage `json:"input"`
	Signal  string          `json:"signal,omitempty"` // that it gets, running already or not; empty: none
	Arg     json.RawMessage `json:"arg,omitempty"`    // of the signal
	Job     string          `json:"job,omitempty"`    // for search
	Version int             `json:"version,omitempty"`
}

// Launch starts a workflow, or finds it running, and signals it where there is a signal.
func (l *Lifecycle) Launch(ctx context.Context, in LaunchInput) error {
	o := client.StartWorkflowOptions{ID: in.ID, TaskQueue: Queue, WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING}
	var known []temporal.SearchAttributeUpdate
	if in.Job != "" {
		known = append(known, temporal.NewSearchAttributeKeyKeyword("WeftJob").ValueSet(in.Job))
	}
	if in.Version > 0 {
		known = append(known, temporal.NewSearchAttributeKeyKeyword("WeftVersion").ValueSet(strconv.Itoa(in.Version)))
	}
	o.TypedSearchAttributes = temporal.NewSearchAttributes(known...)
	var err error
	if in.Signal == "" {
		_, err = l.Starter.ExecuteWorkflow(ctx, o, in.Type, in.Input)
	} else {
		_, err = l.Starter.SignalWithStartWorkflow(ctx, in.ID, in.Signal, in.Arg, o, in.Type, in.Input)
	}
	if err != nil {
		return fmt.Errorf("start the workflow %s: %w", in.ID, err)
	}
	return nil
}

// CompareVersions compares a candidate with the served version and judges it by its gates.
func (l *Lifecycle) CompareVersions(ctx context.Context, in TrialInput) (Trial, error) {
	c, err := l.Stage.Compare(ctx, in, func() { activity.RecordHeartbeat(ctx) })
	if err != nil {
		return Trial{}, l.Host.failure(fmt.Errorf("compare versions %d and %d of %s: %w", in.Current, in.Version, in.Job, err))
	}
	return c, nil
}

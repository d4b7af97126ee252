package workflows

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// RolloutID is the workflow id of the rollout of a job version.
func RolloutID(job string, version int) string { return fmt.Sprintf("rollout/%s/%d", job, version) }

// SignalSettle tells Rollout what came of it; it carries a Settlement.
const SignalSettle = "settle"

// Phases of a rollout, beside Failed and Paused.
const (
	WarmingUp = "warming_up" // the candidate reads what is in its topics
	Canary    = "canary"     // it is held beside the served version and compared with it
	Ready     = "ready"      // it has passed: Job promotes it
	Ended     = "ended"
)

// Outcomes of deployments and rollouts.
const (
	OutcomePromoted = "promoted"
	OutcomeFailed   = "failed"  // its gates, or its shards
	OutcomeAborted  = "aborted" // by request, or by a rollback
)

const (
	warmFirst = time.Second // between two looks at a candidate that catches up; doubles
	warmLast  = 15 * time.Second
	compareBy = 4 // comparisons during a step, beside the one at its end; those that fail end the rollout early
	// compareGap is the least time between two comparisons.
	compareGap = 15 * time.Second
	// moreWait is how long the end of a step waits for more sessions before it waits for a person.
	moreWait = 2 * time.Minute
)

// RolloutInput is the input of Rollout.
type RolloutInput struct {
	Job        string       `json:"job"`
	Version    int          `json:"version"`
	Current    int          `json:"current,omitempty"` // that it is compared with; 0: nothing is served
	Shards     int          `json:"shards,omitempty"`
	SkipCanary bool         `json:"skip_canary,omitempty"`
	State      *keptRollout `json:"state,omitempty"` // of the run before, by continue-as-new
}

const rolloutExample = `{"job":"payments","version":2,"current":1}`

// RolloutReport is what Rollout signals to Job, and answers to the query "status".
type RolloutReport struct {
	Version  int               `json:"version"`
	Run      string            `json:"run"`
	Phase    string            `json:"phase"`
	Since    time.Time         `json:"since"`
	Planned  bool              `json:"planned"`
	Step     int               `json:"step,omitempty"` // of the canary, from 1
	Steps    int               `json:"steps"`
	Weight   int               `json:"weight,omitempty"` // percent of the users whose questions the candidate answers
	Until    *time.Time        `json:"until,omitempty"`  // the end of the step
	Behind   int64             `json:"behind"`           // records until where the served version was when the rollout began
	LagMS    int64             `json:"lag_ms"`
	Waits    string            `json:"waits_for,omitempty"`
	From     int64             `json:"from_us"` // it has all sessions that start from here on
	Trial    *activities.Trial `json:"trial,omitempty"`
	TwoMust  bool              `json:"two_person"`
	WindowMS int64             `json:"window_ms"`
	Final    bool              `json:"final"`
	Outcome  string            `json:"outcome,omitempty"`
	Reasons  []string          `json:"reasons,omitempty"`
}

// RolloutStatus is what the query "status" answers for Rollout.
type RolloutStatus struct {
	RolloutReport
	Rejections
}

// Settlement says what came of a rollout.
type Settlement struct {
	Outcome string `json:"outcome"`
}

// keptRollout is what Rollout carries over when it continues as new.
type keptRollout struct {
	RolloutReport
	Rejections Rejections       `json:"rejections"`
	Plan       *activities.Plan `json:"plan,omitempty"`
	Paused     bool             `json:"paused,omitempty"`
	Forced     bool             `json:"forced,omitempty"` // a person wants it promoted without the rest of the canary
	LeftMS     int64            `json:"left_ms"`          // of the step
	Looks      int              `json:"looks,omitempty"`  // comparisons so far
	Leads      bool             `json:"leads,omitempty"`  // users may be led to the candidate
	Watch      watch            `json:"watch"`
}

// UnmarshalJSON passes over keys that it does not know: a newer engine may have written them before a rollback.
func (k *keptRollout) UnmarshalJSON(data []byte) error {
	type plain keptRollout
	return json.Unmarshal(data, (*plain)(k))
}

// rollout is a run of the workflow Rollout.
type rollout struct {
	in RolloutInput
	keptRollout
	inbox   inbox
	watches bool   // a candidate that does not run well is given up
	aborted string // why; empty: it is not
	settled string // outcome that Job told
	sent    []workflow.Future
}

// Rollout tries a version beside the one that is served: it catches up, is held and compared step by step, and is reported to
// Job, which promotes it. Its id is RolloutID. Query QueryStatus returns a RolloutStatus; signals are SignalPause,
// SignalResume, SignalPromote, which leaves out the rest of the canary, and SignalAbort. A cancellation aborts it.
func Rollout(ctx workflow.Context, raw converter.RawValue) (RolloutReport, error) {
	var in RolloutInput
	err := decode(raw, &in)
	if err == nil && (in.Job == "" || in.Version < 1 || in.Current < 0 || in.Current == in.Version) {
		err = errors.New("job or version is missing, or current is the version itself")
	}
	if err != nil {
		return RolloutReport{}, badInput(RolloutType, rolloutExample, err)
	}
	r := &rollout{in: in}
	r.LagMS, r.Behind = -1, -1
	if in.State != nil {
		r.keptRollout = *in.State
	}
	r.Version, r.Run = in.Version, workflow.GetInfo(ctx).FirstRunID
	r.inbox.Rejections = &r.Rejections
	r.inbox.handlers = []handler{
		order(SignalResume, func(Order) error { r.Paused = false; return nil }),
		order(SignalPause, func(Order) error { r.Paused = true; return nil }),
		order(SignalPromote, func(Order) error { r.Forced, r.Paused = true, false; return nil }),
		order(SignalAbort, func(o Order) error { r.aborted = "aborted: " + o.Reason; return nil }),
		{SignalSettle, func(raw converter.RawValue) error {
			var s Settlement
			if err := decode(raw, &s); err != nil {
				return err
			}
			if r.Phase != Ready || s.Outcome != OutcomePromoted {
				return fmt.Errorf("a rollout that is %s cannot be %q", r.Phase, clip(s.Outcome))
			}
			r.settled = s.Outcome
			return nil
		}},
	}
	err = workflow.SetQueryHandler(ctx, QueryStatus, func() (RolloutStatus, error) { return RolloutStatus{r.RolloutReport, r.Rejections}, nil })
	if err != nil {
		return RolloutReport{}, err
	}
	inner, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	err = r.run(ctx, inner)
	if errors.Is(err, errContinue) {
		r.in.State = &r.keptRollout
		return RolloutReport{}, workflow.NewContinueAsNewError(inner, RolloutType, r.in)
	}
	return r.RolloutReport, err
}

// errGivenUp says that a rollout is to end; rollout.aborted says why.
var errGivenUp = errors.New("given up")

func (r *rollout) run(outer, ctx workflow.Context) error {
	err := r.try(outer, ctx)
	var app *temporal.ApplicationError
	switch {
	case errors.Is(err, errContinue):
		for _, f := range r.sent { // signals of a run that has ended may not be sent
			if err := f.Get(ctx, nil); temporal.IsCanceledError(err) {
				return err
			}
		}
		return err
	case errors.Is(err, errGivenUp):
		r.Outcome = OutcomeAborted
		r.Reasons = append(r.Reasons, r.aborted)
	case errors.As(err, &app):
		r.Outcome = OutcomeFailed
		r.Reasons = append(r.Reasons, app.Message())
	case err != nil:
		return err
	case r.settled != "":
		r.Outcome = r.settled
	default:
		r.Outcome = OutcomeFailed
	}
	r.inbox.drain(ctx)
	if r.settled != "" { // it was promoted while it was given up: Job has the last word
		r.Outcome = r.settled
	}
	return r.end(ctx)
}

// end stops a candidate that was not promoted, and tells Job. Its results and the reasons are kept.
func (r *rollout) end(ctx workflow.Context) error {
	if r.Leads && r.Outcome != OutcomePromoted {
		var l *activities.Lifecycle
		if err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, leaseOptions()), l.SetCanary, r.canary(ctx, 0)).Get(ctx, nil); err != nil {
			r.Reasons = append(r.Reasons, "users may still be led to it until the next switch: "+problemOf(ctx, err).Message)
		}
		r.Weight, r.Leads = 0, false
	}
	if r.Outcome != OutcomePromoted && r.in.Current != r.in.Version {
		// It may not have been started, or have ended.
		_ = workflow.SignalExternalWorkflow(ctx, VersionID(r.in.Job, r.in.Version), "", SignalStop, Order{Reason: "it was not promoted"}).Get(ctx, nil)
	}
	r.Final, r.Until, r.Waits = true, nil, ""
	if err := r.enter(ctx, Ended); err != nil {
		return err
	}
	for _, f := range r.sent { // where Job is gone there is nobody to tell
		_ = f.Get(ctx, nil)
	}
	return nil
}

// enter notes a phase and tells Job, which knows of a promotion.
func (r *rollout) enter(ctx workflow.Context, phase string) error {
	if r.Phase != phase {
		r.Phase, r.Since = phase, workflow.Now(ctx)
		if err := mark(ctx, r.in.Job, strconv.Itoa(r.in.Version), phase); err != nil {
			return err
		}
	}
	if r.Outcome == OutcomePromoted {
		return nil
	}
	r.sent = append(r.sent[max(0, len(r.sent)-10):], workflow.SignalExternalWorkflow(ctx, JobID(r.in.Job), "", SignalRollout, r.RolloutReport))
	return nil
}

// await waits until done, or fails with errGivenUp or errContinue. While the rollout is paused it is not done.
func (r *rollout) await(outer, ctx workflow.Context, done func() bool) error {
	for {
		r.inbox.drain(ctx)
		if outer.Err() != nil && r.aborted == "" {
			r.aborted = "aborted: its workflow was canceled"
		}
		switch {
		case r.aborted != "":
			return errGivenUp
		case done():
			return nil
		case workflow.GetInfo(ctx).GetContinueAsNewSuggested():
			return errContinue
		}
		err := workflow.Await(ctx, func() bool {
			return done() || r.inbox.pending(ctx) || outer.Err() != nil || workflow.GetInfo(ctx).GetContinueAsNewSuggested()
		})
		if err != nil {
			return err
		}
	}
}

// ask runs a short activity, unless the rollout is given up meanwhile.
func (r *rollout) ask(outer, ctx workflow.Context, options workflow.ActivityOptions, activity, in, out any) error {
	running, cancel := workflow.WithCancel(workflow.WithActivityOptions(ctx, options))
	defer cancel()
	f := workflow.ExecuteActivity(running, activity, in)
	for !f.IsReady() {
		err := r.await(outer, ctx, f.IsReady)
		if errors.Is(err, errContinue) { // first the answer
			err = workflow.Await(ctx, func() bool { return f.IsReady() || outer.Err() != nil })
		}
		if err != nil {
			return err
		}
	}
	return f.Get(ctx, out)
}

// sleep waits for a time, or until something is so.
func (r *rollout) sleep(outer, ctx workflow.Context, d time.Duration, until func() bool) error {
	timing, cancel := workflow.WithCancel(ctx)
	defer cancel()
	timer := workflow.NewTimer(timing, d)
	return r.await(outer, ctx, func() bool { return timer.IsReady() || until() })
}

func (r *rollout) try(outer, ctx workflow.Context) error {
	var l *activities.Lifecycle
	r.watches = workflow.GetVersion(ctx, "watch", workflow.DefaultVersion, 1) != workflow.DefaultVersion
	if r.Plan == nil {
		if err := r.enter(ctx, Preparing); err != nil {
			return err
		}
		var plan activities.Plan
		if err := r.ask(outer, ctx, shortOptions(), l.RegisterVersion, activities.RegisterInput{Job: r.in.Job, Version: r.in.Version}, &plan); err != nil {
			return err
		}
		r.Plan = &plan
		r.Planned, r.TwoMust, r.WindowMS, r.Steps = true, plan.TwoMust, plan.WindowMS, len(plan.Steps)
		plan.Changes, plan.Phases = nil, nil // are not needed again
	}
	if err := r.launch(outer, ctx); err != nil {
		return err
	}
	if r.Phase == Preparing || r.Phase == WarmingUp {
		if err := r.warmUp(outer, ctx); err != nil {
			return err
		}
		if r.Step == 0 && !r.canarySkipped() {
			r.step(1)
		}
	}
	for r.Step > 0 && r.Phase != Ready && !r.Forced {
		if err := r.hold(outer, ctx); err != nil {
			return err
		}
	}
	r.Until, r.Waits = nil, ""
	if err := r.enter(ctx, Ready); err != nil {
		return err
	}
	return r.await(outer, ctx, func() bool { return r.settled != "" })
}

func (r *rollout) canarySkipped() bool {
	return r.in.Current == 0 || r.in.SkipCanary || len(r.Plan.Steps) == 0
}

// launch starts what the version needs: the archivers of its topics, the publisher of the job, and the version itself.
func (r *rollout) launch(outer, ctx workflow.Context) error {
	var l *activities.Lifecycle
	reader := JobVersion{Job: r.in.Job, Version: r.in.Version}
	var list []activities.LaunchInput
	for _, topic := range r.Plan.Topics {
		list = append(list, activities.LaunchInput{ID: ArchiveID(topic), Type: ArchiveType, Input: inputOf(ArchiveInput{Topic: topic, Jobs: []JobVersion{reader}}),
			Signal: SignalJobs, Arg: inputOf(reader)})
	}
	if r.Plan.Sinks {
		list = append(list, activities.LaunchInput{ID: PublisherID(r.in.Job), Type: PublisherType, Job: r.in.Job, Input: inputOf(PublisherInput{Job: r.in.Job})})
	}
	for _, in := range list {
		if err := r.ask(outer, ctx, shortOptions(), l.Launch, in, nil); err != nil {
			return err
		}
	}
	child := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:            VersionID(r.in.Job, r.in.Version),
		WorkflowIDReusePolicy: enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		ParentClosePolicy:     enums.PARENT_CLOSE_POLICY_ABANDON,
		TypedSearchAttributes: temporal.NewSearchAttributes(attribute("WeftJob").ValueSet(r.in.Job), attribute("WeftVersion").ValueSet(strconv.Itoa(r.in.Version))),
	})
	f := workflow.ExecuteChildWorkflow(child, VersionType, VersionInput{Job: r.in.Job, Version: r.in.Version, Shards: r.in.Shards, Agents: true})
	if err := begun(ctx, f); err != nil {
		return fmt.Errorf("start %s: %w", VersionID(r.in.Job, r.in.Version), err)
	}
	// One that runs already may have been started for processes by hand, which are gone.
	if workflow.GetVersion(ctx, "agents", workflow.DefaultVersion, 1) > workflow.DefaultVersion {
		r.sent = append(r.sent, workflow.SignalExternalWorkflow(ctx, VersionID(r.in.Job, r.in.Version), "", SignalAgents, Order{}))
	}
	return nil
}

// key names an object of this rollout.
func (r *rollout) key(name string) string {
	return fmt.Sprintf("rollouts/%s/%d/%s/%s.json", r.in.Job, r.in.Version, r.Run, name)
}

// warmUp waits until the candidate has caught up with the version that is served.
func (r *rollout) warmUp(outer, ctx workflow.Context) error {
	var l *activities.Lifecycle
	for wait := warmFirst; ; wait = min(2*wait, warmLast) {
		var s activities.Standing
		if err := r.ask(outer, ctx, shortOptions(), l.CompareStanding, r.standing(), &s); err != nil {
			return err
		}
		r.Behind, r.LagMS, r.Waits, r.From = s.Behind, s.LagMS, s.Waits, s.From
		caughtUp := s.CaughtUp && (r.in.Current > 0 || s.Phase != "" && s.Phase != Preparing) // preparing it serves the first one
		if err := r.examine(ctx, &s, caughtUp); err != nil {
			return err
		}
		if caughtUp && !r.Paused {
			r.Waits = ""
			return nil
		}
		if err := r.enter(ctx, WarmingUp); err != nil {
			return err
		}
		was := r.Paused
		if err := r.sleep(outer, ctx, wait, func() bool { return r.Paused != was }); err != nil {
			return err
		}
	}
}

// standing asks how the candidate stands.
func (r *rollout) standing() activities.StandingInput {
	return activities.StandingInput{Job: r.in.Job, Version: r.in.Version, Current: r.in.Current, Shards: r.in.Shards, LagMaxMS: r.Plan.LagMaxMS, Key: r.key("start"),
		Health: true}
}

// step begins a step of the canary.
func (r *rollout) step(n int) {
	s := r.Plan.Steps[n-1]
	r.Step, r.Weight, r.LeftMS = n, s.Weight, s.HoldMS
}

// hold holds a step for what is left of its time, compares in between, and decides at its end.
func (r *rollout) hold(outer, ctx workflow.Context) error {
	total := r.Plan.Steps[r.Step-1].HoldMS
	part := max(time.Duration(total)*time.Millisecond/compareBy, compareGap)
	for {
		if err := r.unpaused(outer, ctx); err != nil || r.Forced {
			return err
		}
		left := time.Duration(r.LeftMS) * time.Millisecond
		began := workflow.Now(ctx)
		until := began.Add(left)
		if r.Until = &until; r.Watch.CrashingAt == nil {
			r.Waits = ""
		}
		if err := r.enter(ctx, Canary); err != nil {
			return err
		}
		if err := r.lead(outer, ctx); err != nil {
			return err
		}
		nap := min(part, left)
		err := r.nap(outer, ctx, nap)
		r.LeftMS = max(0, r.LeftMS-workflow.Now(ctx).Sub(began).Milliseconds())
		if err != nil || r.Forced {
			return err
		}
		if r.Paused {
			continue
		}
		if err := r.compare(outer, ctx); err != nil {
			return err
		}
		if r.LeftMS > 0 {
			continue
		}
		if r.Trial.Verdict == activities.GatesPass {
			break
		}
		// Too few sessions, or too far behind: it does not pass, and does not fail.
		if err := r.inconclusive(outer, ctx); err != nil || r.Forced {
			return err
		}
		if r.Trial.Verdict == activities.GatesPass {
			break
		}
	}
	if r.Step == len(r.Plan.Steps) {
		r.Step = 0
		return nil
	}
	r.step(r.Step + 1)
	return nil
}

// lead leads users to the candidate as the step says, again where a switch has ended that: a backfill may publish meanwhile.
func (r *rollout) lead(outer, ctx workflow.Context) error {
	if workflow.GetVersion(ctx, "canary", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return nil
	}
	r.Leads = true
	var l *activities.Lifecycle
	return r.ask(outer, ctx, shortOptions(), l.SetCanary, r.canary(ctx, r.Weight), nil)
}

func (r *rollout) canary(ctx workflow.Context, weight int) activities.CanaryInput {
	return activities.CanaryInput{Job: r.in.Job, Version: r.in.Version, Current: r.in.Current, From: r.From, Weight: weight,
		At: workflow.Now(ctx).UnixMicro(), Actor: "weft", Reason: RolloutID(r.in.Job, r.in.Version)}
}

// inconclusive compares again for a while, and then waits for a person. A lag that stays too large ends the rollout meanwhile.
func (r *rollout) inconclusive(outer, ctx workflow.Context) error {
	for deadline := workflow.Now(ctx).Add(moreWait); ; {
		if err := r.sleep(outer, ctx, compareGap, func() bool { return r.Paused || r.Forced }); err != nil || r.Forced {
			return err
		}
		if err := r.compare(outer, ctx); err != nil || r.Trial.Verdict == activities.GatesPass {
			return err
		}
		if r.Paused || !workflow.Now(ctx).Before(deadline) && r.Watch.LagAt == nil {
			break
		}
	}
	r.Paused, r.Waits = true, "the comparison is inconclusive: "+inWords(r.Trial, activities.GatesInconclusive)+"; resume compares again, promote goes on without, abort gives up"
	return r.unpaused(outer, ctx)
}

// unpaused waits while the rollout is paused.
func (r *rollout) unpaused(outer, ctx workflow.Context) error {
	if !r.Paused {
		return nil
	}
	r.Until = nil
	if err := r.enter(ctx, Paused); err != nil {
		return err
	}
	return r.await(outer, ctx, func() bool { return !r.Paused })
}

// compare compares the candidate, and fails the rollout where a gate does.
func (r *rollout) compare(outer, ctx workflow.Context) error {
	var l *activities.Lifecycle
	r.Looks++
	o := shortOptions()
	o.StartToCloseTimeout, o.HeartbeatTimeout = 15*time.Minute, time.Minute
	var t activities.Trial
	err := r.ask(outer, ctx, o, l.CompareVersions, activities.TrialInput{Job: r.in.Job, Version: r.in.Version, Current: r.in.Current, From: r.From,
		Key: r.key(fmt.Sprintf("differences-%d", r.Looks))}, &t)
	if err != nil {
		return err
	}
	r.Trial, r.LagMS = &t, t.LagMS
	if t.Verdict == activities.GatesFail {
		text := fmt.Sprintf("gates failed: %s", inWords(&t, activities.GatesFail))
		if t.Summary != "" {
			text += "; " + t.Summary
		}
		if t.Differences != "" {
			text += fmt.Sprintf("; look at them with `weft job compare %s --version %d` (object %s)", r.in.Job, r.in.Version, t.Differences)
		}
		return givenUp("%s", text)
	}
	return r.lagging(ctx, t.LagMS)
}

// inWords lists the gates of a verdict.
func inWords(t *activities.Trial, verdict string) (text string) {
	for _, g := range t.Gates {
		if g.Verdict == verdict {
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("%s is %s, wanted %s", g.Gate, g.Got, g.Want)
		}
	}
	return text
}

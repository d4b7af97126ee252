package workflows

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// Every change of what a job serves is one compare-and-set on the epoch of its serving map. Whatever else is on its way then
// rests on an epoch that is over, and changes nothing.

// switchOptions are those of a switch: a person waits for it.
func switchOptions() workflow.ActivityOptions {
	o := shortOptions()
	o.StartToCloseTimeout, o.HeartbeatTimeout = 10*time.Second, 3*time.Second
	o.RetryPolicy = &temporal.RetryPolicy{InitialInterval: 100 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 2 * time.Second}
	return o
}

// promote makes the job serve the candidate. Where something urgent comes in between, it leaves the answer open.
func (j *job) promote(ctx workflow.Context) error {
	c, t := j.Candidate, j.Trial
	j.FrozenUntil = nil
	if err := j.enter(ctx, Promoting); err != nil {
		return err
	}
	if t.AskedAt.IsZero() {
		t.AskedAt = workflow.Now(ctx)
	}
	var l *activities.Lifecycle
	switching, cancel := workflow.WithCancel(workflow.WithActivityOptions(ctx, switchOptions()))
	defer cancel()
	if j.Current == nil {
		// The first version was served when it was prepared.
		var s activities.Surveyed
		done, err := j.perform(ctx, workflow.ExecuteActivity(switching, l.Survey, activities.SurveyInput{Job: j.Job}), &s, false)
		if err != nil || !done {
			return j.cannotSwitch(ctx, err)
		}
		if j.Epoch = s.Epoch; s.Current == c.Version {
			c.From = s.From
			j.promoted(ctx, s.Epoch)
			return nil
		}
	}
	in := activities.SwitchInput{Job: j.Job, Version: c.Version, From: c.From, Epoch: j.Epoch, RequestID: fmt.Sprintf("%s/promote/%d", t.RequestID, t.Switches),
		Actor: c.By, Reason: t.Reason, Freeze: []int{c.Version}}
	switch {
	case t.Returns:
		in.Freeze = nil
	case j.Current != nil:
		in.Freeze = append(in.Freeze, j.Current.Version)
	}
	var got activities.Switched
	t.Unsure = true
	done, err := j.perform(ctx, workflow.ExecuteActivity(switching, l.SwitchVersion, in), &got, false)
	switch {
	case err != nil:
		return j.cannotSwitch(ctx, err)
	case !done:
		return nil
	}
	t.Unsure = false
	switch {
	case got.Frozen != nil:
		j.FrozenUntil = got.Frozen
		j.note(ctx, Decision{Kind: "promote", Version: c.Version, Result: Accepted, Text: "a freeze window holds it back until " + got.Frozen.Format(time.RFC3339)})
	case got.Stale:
		j.Epoch = got.Epoch
		if t.Switches++; t.Switches >= switchMax {
			j.abort(ctx, OutcomeFailed, fmt.Sprintf("the serving map changed %d times while it was promoted", switchMax))
		}
	default:
		j.Back = &back{Epoch: in.Epoch, From: c.From}
		j.promoted(ctx, got.Epoch)
	}
	return nil
}

// cannotSwitch gives a candidate up that cannot be promoted; nil is no error.
func (j *job) cannotSwitch(ctx workflow.Context, err error) error {
	if err == nil || temporal.IsCanceledError(err) {
		return err
	}
	j.Trial.Unsure = false // it was refused
	j.abort(ctx, OutcomeFailed, "it cannot be served: "+problemOf(ctx, err).Message)
	return nil
}

// promoted notes that the candidate is served.
func (j *job) promoted(ctx workflow.Context, epoch uint64) {
	now, c, t := workflow.Now(ctx), j.Candidate, j.Trial
	j.Epoch = epoch
	j.WindowMS = c.Rollout.WindowMS
	j.shift(ctx, j.Current)
	c.Since = now
	j.Current, j.Candidate, j.Trial = c, nil, nil
	j.Degraded, j.Why = false, ""
	text := fmt.Sprintf("version %d is served", c.Version)
	if j.Previous != nil {
		text += fmt.Sprintf(" in place of version %d", j.Previous.Version)
	}
	j.note(ctx, Decision{Kind: "promoted", Version: c.Version, Result: Done, Text: text, Reason: t.Reason, Actor: c.By, RequestID: t.RequestID,
		TookMS: now.Sub(t.AskedAt).Milliseconds()})
	j.send(ctx, RolloutID(j.Job, c.Version), SignalSettle, Settlement{Outcome: OutcomePromoted})
	j.tell(ctx, t.Deploy, DeployNews{Version: c.Version, Final: true, Outcome: OutcomePromoted, Rollout: c.Rollout})
}

// shift makes a version the previous one, to which a rollback is ready. The one before that retires.
func (j *job) shift(ctx workflow.Context, p *Placed) {
	if j.Previous != nil && (p == nil || j.Previous.Version != p.Version) {
		j.Retiring = append(j.Retiring, *j.Previous)
	}
	j.Previous, j.RollbackReady, j.RollbackUntil, j.RollbackLagMS, j.RollbackNote = p, p != nil, nil, -1, ""
	if p == nil {
		return
	}
	until := workflow.Now(ctx).Add(time.Duration(j.WindowMS) * time.Millisecond)
	p.Since, j.RollbackUntil = workflow.Now(ctx), &until
	j.own(ctx, p)
	j.NextLook = workflow.Now(ctx) // at once: how a rollback would do is to be known
}

// rollback serves the previous version again, and gives up what is being rolled out.
func (j *job) rollback(ctx workflow.Context, a ask) error {
	refuse := func(format string, args ...any) error {
		j.settle(ctx, a, a.To, RejectedWhat, fmt.Sprintf(format, args...))
		return nil
	}
	switch way, refused := j.wayBack(a.To); way {
	case "":
		return refuse("%s", refused)
	case ByStaying:
		j.stay()
		if err := j.fence(ctx, a); err != nil {
			return err
		}
		_, text := j.abort(ctx, OutcomeAborted, "rolled back"+because(a.Request))
		j.settle(ctx, a, a.To, Done, fmt.Sprintf("version %d is served; %s", a.To, text))
		return nil
	case ByCatchUp:
		return j.bringBack(ctx, a)
	}
	if err := j.enter(ctx, RollingBack); err != nil {
		return err
	}
	j.stay()
	in := activities.SwitchInput{Job: j.Job, Version: a.To, From: j.Back.From, Back: j.Back.Epoch}
	if j.Candidate != nil && j.Trial.Unsure {
		in.From = min(in.From, j.Candidate.From)
	}
	before, err := j.force(ctx, a, in)
	if err != nil {
		if temporal.IsCanceledError(err) {
			return err
		}
		return refuse("%s", problemOf(ctx, err).Message)
	}
	bad := j.Current
	j.Back = &back{Epoch: before, From: in.From}
	j.Current, j.Previous = j.Previous, nil
	j.Current.Since, j.Paused = workflow.Now(ctx), false
	j.own(ctx, j.Current)
	j.shift(ctx, bad)
	if j.Candidate != nil {
		j.Trial.Unsure = false
		j.abort(ctx, OutcomeAborted, "rolled back"+because(a.Request))
	}
	j.note(ctx, Decision{Kind: a.Kind, Version: a.To, Result: Done, Text: fmt.Sprintf("version %d is served again in place of version %d", a.To, bad.Version),
		Reason: a.Reason, Actor: a.Actor, RequestID: a.RequestID, TookMS: workflow.Now(ctx).Sub(a.At).Milliseconds()})
	return nil
}

// bringBack begins the rollback to a version that does not run any more: it goes on where its checkpoints are, and is served
// when it has caught up. Until then what was rolled back from is served.
func (j *job) bringBack(ctx workflow.Context, a ask) error {
	if workflow.GetVersion(ctx, "bring back", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		j.settle(ctx, a, a.To, RejectedWhat, fmt.Sprintf("version %d does not run any more", a.To))
		return nil
	}
	var l *activities.Lifecycle
	var plan activities.Plan
	f := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, shortOptions()), l.RegisterVersion, activities.RegisterInput{Job: j.Job, Version: a.To, Served: true})
	if _, err := j.perform(ctx, f, &plan, true); err != nil {
		if !temporal.IsCanceledError(err) {
			j.settle(ctx, a, a.To, RejectedWhat, problemOf(ctx, err).Message)
			return nil
		}
		return err
	}
	if err := j.fence(ctx, a); err != nil {
		return err
	}
	a.Version, a.Shards, a.SkipCanary = a.To, plan.Shards, true
	j.Return, j.Degraded = &a, true
	j.Why = fmt.Sprintf("version %d is served until version %d, which does not run any more, has caught up", j.Current.Version, a.To)
	if j.Candidate != nil {
		_, text := j.abort(ctx, OutcomeAborted, "rolled back"+because(a.Request))
		j.settle(ctx, a, a.To, Accepted, fmt.Sprintf("%s; then version %d is started", text, a.To))
	}
	return nil
}

// stay gives up a rollback to a version that does not run, before it began.
func (j *job) stay() {
	if j.Return != nil {
		j.Return, j.Degraded, j.Why = nil, false, ""
	}
}

// returns rolls a version out that a rollback brings back.
func (j *job) returns(ctx workflow.Context, a ask) {
	result, text := j.deploy(ctx, a)
	j.settle(ctx, a, a.To, result, text)
	if result == RejectedWhat {
		j.Degraded, j.Why = false, ""
		return
	}
	j.Trial.Returns = true
}

// force makes a switch whatever the serving map is, and returns the epoch that it had before.
func (j *job) force(ctx workflow.Context, a ask, in activities.SwitchInput) (before uint64, err error) {
	var l *activities.Lifecycle
	in.Actor, in.Reason = a.Actor, a.Reason
	for n := range switchMax {
		in.Epoch, in.RequestID = j.Epoch, a.RequestID
		if n > 0 { // what was refused is another request
			in.RequestID = fmt.Sprintf("%s/%d", a.RequestID, n)
		}
		var got activities.Switched
		f := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, switchOptions()), l.SwitchVersion, in)
		if _, err := j.perform(ctx, f, &got, true); err != nil {
			return 0, err
		}
		before, j.Epoch = j.Epoch, got.Epoch
		if !got.Stale {
			return before, nil
		}
	}
	return 0, fmt.Errorf("the serving map changed %d times meanwhile: try again", switchMax)
}

// fence makes sure that a promotion whose answer is open takes place no more, and undoes it where it did.
func (j *job) fence(ctx workflow.Context, a ask) error {
	if j.Candidate == nil || !j.Trial.Unsure || j.Current == nil {
		return nil
	}
	_, err := j.force(ctx, a, activities.SwitchInput{Job: j.Job, Version: j.Current.Version, From: j.Candidate.From, Back: j.Epoch})
	if err != nil && !temporal.IsCanceledError(err) {
		j.settle(ctx, a, j.Candidate.Version, RejectedWhat, "the promotion may still take place: "+problemOf(ctx, err).Message)
		return nil
	}
	j.Trial.Unsure = false
	return err
}

// lose takes note that a candidate was given up.
func (j *job) lose(ctx workflow.Context) {
	c, t := j.Candidate, j.Trial
	outcome, reasons := c.Rollout.Outcome, c.Rollout.Reasons
	if t.Aborting {
		outcome, reasons = t.Outcome, []string{t.Why}
	}
	c.Rollout.Outcome, c.Rollout.Reasons, c.Since, c.Unmanned = outcome, reasons, workflow.Now(ctx), ""
	if f := j.Failed; f != nil && f.Version != c.Version {
		j.discard(ctx, f.Version, 0, fmt.Sprintf("version %d is the last candidate that was given up", c.Version))
	}
	j.Failed, j.Candidate, j.Trial, j.FrozenUntil, j.Approval = c, nil, nil, nil, ""
	if t.Retiring { // it is stopped now; look starts it again
		j.Retiring = append(j.Retiring, *c)
	}
	if t.Returns {
		j.Degraded, j.Why = false, ""
	}
	text := fmt.Sprintf("version %d was not promoted", c.Version)
	for _, r := range reasons {
		text += "; " + r
	}
	j.note(ctx, Decision{Kind: outcome, Version: c.Version, Result: Done, Text: text, Reason: t.Reason, Actor: c.By, RequestID: t.RequestID})
	j.tell(ctx, t.Deploy, DeployNews{Version: c.Version, Final: true, Outcome: outcome, Reasons: reasons, Rollout: c.Rollout})
}

// look looks after what runs beside the served version: a rollout that was ended from outside, how a rollback would do, and
// versions that nobody needs any more.
func (j *job) look(ctx workflow.Context) error {
	short := workflow.WithActivityOptions(ctx, shortOptions())
	if c := j.Candidate; c != nil {
		var control *activities.Control
		var d activities.Described
		f := workflow.ExecuteActivity(short, control.Describe, activities.DescribeInput{IDs: []string{RolloutID(j.Job, c.Version)}})
		done, err := j.perform(ctx, f, &d, false)
		if err != nil || !done {
			return err
		}
		// The report of one that has just ended may be on its way: it is there after the activity.
		if r := c.Rollout; !slices.Contains(d.Running, true) && j.Candidate == c && (r == nil || !r.Final) {
			if r == nil {
				r = &RolloutReport{Version: c.Version, Run: j.Trial.Run}
			}
			r.Final, r.Phase, r.Outcome, r.Reasons = true, Failed, OutcomeFailed, []string{"its workflow was ended from outside"}
			c.Rollout = r
			if r.Weight > 0 {
				var l *activities.Lifecycle
				in := activities.CanaryInput{Job: j.Job, Version: c.Version, At: workflow.Now(ctx).UnixMicro(), Actor: "weft", Reason: r.Reasons[0]}
				if _, err := j.perform(ctx, workflow.ExecuteActivity(short, l.SetCanary, in), nil, true); err != nil && temporal.IsCanceledError(err) {
					return err
				}
			}
			j.send(ctx, VersionID(j.Job, c.Version), SignalStop, Order{Reason: r.Reasons[0]})
		}
	}
	if p := j.Previous; p != nil && j.Current != nil {
		s, done, err := j.standing(short, p)
		if err != nil || !done {
			return err
		}
		j.RollbackLagMS, j.RollbackNote = s.LagMS, ""
		if s.Phase != Running {
			j.RollbackNote = fmt.Sprintf("version %d is %s, so it lacks what came since", p.Version, s.Phase)
		}
		if j.RollbackUntil != nil && !workflow.Now(ctx).Before(*j.RollbackUntil) {
			j.RollbackReady, j.RollbackUntil, j.Previous, j.Back = false, nil, nil, nil
			j.Retiring = append(j.Retiring, *p)
		}
	}
	for _, p := range slices.Clone(j.Retiring) {
		s, done, err := j.standing(short, &p)
		if err != nil || !done {
			return err
		}
		if !s.Settled && s.Phase == Stopped {
			var l *activities.Lifecycle
			launch := workflow.ExecuteActivity(short, l.Launch, launchOf(j.Job, p.Version, p.Shards))
			if done, err := j.perform(ctx, launch, nil, false); err != nil || !done {
				return err
			}
		}
		if s.Settled {
			j.Retiring = slices.DeleteFunc(j.Retiring, func(x Placed) bool { return x.Version == p.Version })
			j.send(ctx, VersionID(j.Job, p.Version), SignalStop, Order{Reason: "its rollback window is over"})
			j.note(ctx, Decision{Kind: "retired", Version: p.Version, Result: Done, Text: "its rollback window is over, and nothing that it serves can change: it is stopped, its results stay for a day"})
			j.discard(ctx, p.Version, keepRetired, "its rollback window is over")
		}
	}
	return nil
}

// standing asks how a version stands to the current one.
func (j *job) standing(ctx workflow.Context, p *Placed) (s activities.Standing, done bool, err error) {
	var l *activities.Lifecycle
	f := workflow.ExecuteActivity(ctx, l.CompareStanding, activities.StandingInput{Job: j.Job, Version: p.Version, Current: j.Current.Version, Shards: p.Shards})
	done, err = j.perform(ctx, f, &s, false)
	var app *temporal.ApplicationError
	if errors.As(err, &app) { // it cannot be known; the version runs on
		return activities.Standing{LagMS: -1, Phase: "unknown"}, true, nil
	}
	return s, done, err
}

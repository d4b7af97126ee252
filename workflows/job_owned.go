package workflows

import (
	"errors"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// A version may have been started for processes that somebody starts by hand (weft job run). Once a Job owns it that must not
// decide whether it runs: the version that is served, or may have to be served again, gets its processes from agents where nobody
// else takes its shards. Version finds that out, since it looks after its shards anyway.

// UnmannedReport is what Version signals to Job when nobody runs it, and when somebody does again.
type UnmannedReport struct {
	Version int    `json:"version"`
	Why     string `json:"why"` // and what to do; empty: somebody does
}

// unmanned takes in what Version tells; of one that has no part in the job any more nobody needs to know.
func (j *job) unmanned(raw converter.RawValue) error {
	var r UnmannedReport
	if err := decode(raw, &r); err != nil {
		return err
	}
	if r.Version < 1 {
		return errors.New(`version is missing: expected {"version":1,"why":"…"}`)
	}
	for _, p := range []*Placed{j.Current, j.Previous, j.Candidate} {
		if p != nil && p.Version == r.Version {
			p.Unmanned = clip(r.Why)
		}
	}
	for i := range j.Retiring {
		if j.Retiring[i].Version == r.Version {
			j.Retiring[i].Unmanned = clip(r.Why)
		}
	}
	return nil
}

// own makes sure that a version runs where there is an agent, however it was started, and that the job is told where it does not.
// Version remembers it, and looks by itself: once is enough, and a rollback has not to wait for what it sets off.
func (j *job) own(ctx workflow.Context, p *Placed) {
	if p != nil && !p.Owned && workflow.GetVersion(ctx, "agents", workflow.DefaultVersion, 1) > workflow.DefaultVersion {
		p.Owned = true
		j.send(ctx, VersionID(j.Job, p.Version), SignalAgents, Order{})
	}
}

// restart starts the current version after a stop, and the publisher of a job that has one.
func (j *job) restart(ctx workflow.Context) error {
	var l *activities.Lifecycle
	ctx = workflow.WithActivityOptions(ctx, shortOptions())
	var plan activities.Plan
	err := workflow.ExecuteActivity(ctx, l.RegisterVersion, activities.RegisterInput{Job: j.Job, Version: j.Current.Version}).Get(ctx, &plan)
	if err != nil {
		return err
	}
	list := []activities.LaunchInput{launchOf(j.Job, j.Current.Version, max(j.Current.Shards, plan.Shards))}
	if plan.Sinks {
		list = append(list, activities.LaunchInput{ID: PublisherID(j.Job), Type: PublisherType, Job: j.Job, Input: inputOf(PublisherInput{Job: j.Job})})
	}
	for _, in := range list {
		if err := workflow.ExecuteActivity(ctx, l.Launch, in).Get(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// launchOf starts a version, which agents run: one that runs already is told so.
func launchOf(job string, version, shards int) activities.LaunchInput {
	return activities.LaunchInput{ID: VersionID(job, version), Type: VersionType, Job: job, Version: version,
		Input: inputOf(VersionInput{Job: job, Version: version, Shards: shards, Agents: true}), Signal: SignalAgents, Arg: inputOf(Order{})}
}

package workflows

import (
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

const (
	// keepRetired is how long what a version has left is kept when it has retired: until then a rollback outside the window goes
	// on at its last checkpoint, and after that it reads everything again.
	keepRetired = 24 * time.Hour
	// discardsMax bounds the versions that wait to be dropped. A version more makes the oldest be forgotten, which then stays.
	discardsMax = 100
)

// Discard is a version that is over, and of which something is left.
type Discard struct {
	Version int       `json:"version"`
	Due     time.Time `json:"due"` // when that is dropped
	Why     string    `json:"why"`
}

// maybe returns a list of one version, or of none.
func maybe(p *Placed) []Placed {
	if p == nil {
		return nil
	}
	return []Placed{*p}
}

// discard remembers that what a version has left is to be dropped after a time.
func (j *job) discard(ctx workflow.Context, version int, after time.Duration, why string) {
	if workflow.GetVersion(ctx, "drop", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return
	}
	j.Discards = slices.DeleteFunc(j.Discards, func(d Discard) bool { return d.Version == version })
	j.Discards = append(j.Discards, Discard{version, workflow.Now(ctx).Add(after), why})
	if len(j.Discards) > discardsMax {
		workflow.GetLogger(ctx).Warn("what a version has left is kept for good: too many wait to be dropped", "version", j.Discards[0].Version)
		j.Discards = slices.Delete(j.Discards, 0, 1)
	}
}

// has tells whether a version has a part in the job.
func (j *job) has(version int) bool {
	for _, p := range slices.Concat(maybe(j.Current), maybe(j.Previous), maybe(j.Candidate), j.Retiring) {
		if p.Version == version {
			return true
		}
	}
	return j.Return != nil && j.Return.To == version
}

// drop drops what is due to be dropped, one version at a time.
func (j *job) drop(ctx workflow.Context) error {
	i := slices.IndexFunc(j.Discards, func(d Discard) bool { return !workflow.Now(ctx).Before(d.Due) })
	if i < 0 {
		return nil
	}
	d := j.Discards[i]
	later := func() {
		for i := range j.Discards {
			if j.Discards[i].Version == d.Version {
				j.Discards[i].Due = workflow.Now(ctx).Add(keepRetired)
			}
		}
	}
	if j.has(d.Version) { // it came back, and is discarded again when it has gone
		j.Discards = slices.Delete(j.Discards, i, i+1)
		return nil
	}
	in := activities.DropVersionInput{Job: j.Job, Version: d.Version}
	if j.Back != nil {
		in.Back = j.Back.Epoch
	}
	var l *activities.Lifecycle
	var got activities.DroppedVersion
	o := shortOptions()
	o.StartToCloseTimeout = 10 * time.Minute // a large generation takes a while
	done, err := j.perform(ctx, workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), l.DropVersion, in), &got, false)
	switch {
	case err != nil && temporal.IsCanceledError(err):
		return err
	case err != nil:
		j.note(ctx, Decision{Kind: "drop", Version: d.Version, Result: RejectedWhat, Text: problemOf(ctx, err).Message})
		later()
	case !done: // something urgent came; it is asked for again
	case got.Kept != "":
		workflow.GetLogger(ctx).Info("what a version has left is kept", "version", d.Version, "why", got.Kept)
		later()
	default:
		j.Discards = slices.DeleteFunc(j.Discards, func(x Discard) bool { return x.Version == d.Version })
		j.note(ctx, Decision{Kind: "dropped", Version: d.Version, Result: Done, Text: "its results, checkpoints and comparisons are deleted: " + d.Why})
	}
	return nil
}

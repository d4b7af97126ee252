package workflows

import (
	"errors"
	"slices"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// ArchiveInput is the input of Archive.
type ArchiveInput struct {
	Topic string       `json:"topic"`
	Jobs  []JobVersion `json:"jobs"`                   // that read the topic: their specs tell the times of records
	Skip  bool         `json:"skip_deleted,omitempty"` // go on where records were deleted before they were archived
	State *kept        `json:"state,omitempty"`        // of the run before, by continue-as-new
}

const archiveExample = `{"topic":"pay.orders","jobs":[{"job":"payments","version":1}]}`

// Archive keeps the archiver of a topic running; its id is ArchiveID. Query QueryStatus returns a Status; signals are
// SignalStop, SignalPause, SignalResume, SignalRetry, and SignalJobs with a JobVersion that reads the topic too.
func Archive(ctx workflow.Context, raw converter.RawValue) error {
	var in ArchiveInput
	err := decode(raw, &in)
	if err == nil && in.Topic == "" {
		err = errors.New("topic is missing")
	}
	for _, j := range in.Jobs {
		if err == nil {
			err = checkReader(j)
		}
	}
	if err != nil {
		return badInput(ArchiveType, archiveExample, err)
	}
	var k *keeper
	k = newKeeper("", "", in.State, handler{SignalJobs, func(raw converter.RawValue) error {
		var j JobVersion
		if err := decode(raw, &j); err != nil {
			return err
		}
		if err := checkReader(j); err != nil {
			return err
		}
		if !slices.Contains(in.Jobs, j) {
			in.Jobs = append(in.Jobs, j)
			k.again = true
		}
		return nil
	}})
	k.start = func(ctx workflow.Context) workflow.Future {
		var a *activities.Archives
		ctx = workflow.WithActivityOptions(ctx, longOptions(activities.ArchiveQueue))
		return workflow.ExecuteActivity(ctx, a.RunArchiver, activities.ArchiveInput{Topic: in.Topic, Jobs: in.Jobs, SkipDeleted: in.Skip})
	}
	status := func() any {
		s := k.Status
		s.Jobs = in.Jobs
		return s
	}
	return k.keep(ctx, ArchiveType, status, func(s *kept) any { in.State = s; return in })
}

func checkReader(j JobVersion) error {
	if j.Job == "" || j.Version < 1 {
		return errors.New(`a job or its version is missing: expected {"job":"payments","version":1}`)
	}
	return nil
}

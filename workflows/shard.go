package workflows

import (
	"errors"
	"strconv"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// ShardInput is the input of Shard.
type ShardInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"`
	Shard   int    `json:"shard"`
	Shards  int    `json:"shards"`
	State   *kept  `json:"state,omitempty"` // of the run before, by continue-as-new
}

const shardExample = `{"job":"payments","version":1,"shard":0,"shards":1}`

// Shard keeps one shard of a job version running; its id is ShardID. Query QueryStatus returns a Status; signals are
// SignalStop, SignalPause, SignalResume and SignalRetry.
func Shard(ctx workflow.Context, raw converter.RawValue) error {
	var in ShardInput
	err := decode(raw, &in)
	if err == nil && (in.Job == "" || in.Version < 1 || in.Shards < 1 || in.Shard < 0 || in.Shard >= in.Shards) {
		err = errors.New("job, version, shard or shards is missing or out of range")
	}
	if err != nil {
		return badInput(ShardType, shardExample, err)
	}
	k := newKeeper(in.Job, strconv.Itoa(in.Version), in.State)
	k.start = func(ctx workflow.Context) workflow.Future {
		var a *activities.Shards
		ctx = workflow.WithActivityOptions(ctx, longOptions(activities.VersionQueue(in.Job, in.Version)))
		return workflow.ExecuteActivity(ctx, a.RunShard, activities.ShardInput{Job: in.Job, Version: in.Version, Shard: in.Shard, Shards: in.Shards})
	}
	k.report = func(ctx workflow.Context) {
		// Nobody waits for it: without a version there is nobody to tell, and the version looks after its shards besides.
		workflow.SignalExternalWorkflow(ctx, VersionID(in.Job, in.Version), "", SignalShard,
			ShardReport{Shard: in.Shard, State: k.State, Since: k.Since, Attempts: k.Attempts, Error: k.Error})
	}
	return k.keep(ctx, ShardType, func() any { return k.Status }, func(s *kept) any { in.State = s; return in })
}

// Package activities is what workflows ask of the world: to keep the shards of a job version, the archiver of a topic and
// the publisher of a job running, and short questions around that. It decides how such a run lives and dies under Temporal
// (heartbeats, the end of a predecessor, the class of an error); what a run does enters as an interface.
package activities

import (
	"context"
	"fmt"
	"time"

	"github.com/weftdata/weft/streaming"
)

// Task queues. Queue runs workflows and short control activities; the shards of a version have a queue of their own.
const (
	Queue        = "weft"
	ArchiveQueue = "weft-archive"
	PublishQueue = "weft-publish"
)

// VersionQueue is the task queue of the shards of a job version.
func VersionQueue(job string, version int) string { return fmt.Sprintf("weft/%s/%d", job, version) }

// HeartbeatTimeout is how long Temporal waits for a heartbeat before it starts another attempt; a worker whose heartbeats
// do not arrive for as long ends the run itself.
const HeartbeatTimeout = 10 * time.Second

// ShardInput names one shard of a job version.
type ShardInput struct {
	Job     string `json:"job"`
	Version int    `json:"version"`
	Shard   int    `json:"shard"`
	Shards  int    `json:"shards"` // of the version
}

// JobVersion names a version of a job.
type JobVersion struct {
	Job     string `json:"job"`
	Version int    `json:"version"`
}

// ArchiveInput names a topic and the job versions that read it, whose specs tell the times of its records.
type ArchiveInput struct {
	Topic string       `json:"topic"`
	Jobs  []JobVersion `json:"jobs"`
	// SkipDeleted goes on where retention has deleted records that were not archived yet, and notes the gap.
	SkipDeleted bool `json:"skip_deleted,omitempty"`
}

// PublishInput names a job.
type PublishInput struct {
	Job string `json:"job"`
}

// Beat is what a heartbeat carries: a hint of how far a run is. The truth is in its checkpoints.
type Beat struct {
	State      string `json:"state"` // starting, running or stopping
	Epoch      uint64 `json:"epoch,omitempty"`
	Checkpoint uint64 `json:"checkpoint,omitempty"` // number of the last one that is safe
	Records    int64  `json:"records"`              // since the run started
	Lag        int64  `json:"lag"`                  // records that are not read yet
	Watermark  int64  `json:"watermark_us,omitempty"`
	Process    string `json:"process,omitempty"`      // that runs it
	Memory     int64  `json:"memory_bytes,omitempty"` // of a process: what it holds for itself
}

// The reasons for which a run ends well.
const (
	Stopped       = "stopped"        // the workflow asked for it
	Rotated       = "rotated"        // it ran for long: the next attempt starts with fresh time limits
	WorkerStopped = "worker_stopped" // its process ends

	done = "done" // it was all there was to do
)

// Ended says why a run ended and how far it was. It left a checkpoint behind.
type Ended struct {
	Reason string `json:"reason"`
	Last   Beat   `json:"last"`
}

// ShardRunner runs one shard until ctx is done, which it ends with a last checkpoint and nil.
type ShardRunner interface {
	RunShard(ctx context.Context, in ShardInput, progress func(streaming.Status)) error
}

// Archiver archives a topic until ctx is done.
type Archiver interface {
	RunArchiver(ctx context.Context, in ArchiveInput, progress func(Beat)) error
}

// Publisher publishes what a job serves until ctx is done.
type Publisher interface {
	RunPublisher(ctx context.Context, in PublishInput, progress func(Beat)) error
}

// Shards has the activity of a version's queue.
type Shards struct {
	Host   *Host
	Runner ShardRunner
}

// RunShard runs a shard until it is told to stop.
func (s *Shards) RunShard(ctx context.Context, in ShardInput) (Ended, error) {
	return s.Host.keep(ctx, ShardID(in.Job, in.Version, in.Shard), func(ctx context.Context, progress func(Beat)) error {
		return s.Runner.RunShard(ctx, in, func(st streaming.Status) { progress(beatOf(st)) })
	})
}

func beatOf(st streaming.Status) Beat {
	b := Beat{Epoch: st.Epoch, Checkpoint: st.Checkpoint, Records: st.Records, Lag: st.Lag}
	if st.Watermark > 0 { // before the first event it is the least number there is
		b.Watermark = int64(st.Watermark)
	}
	return b
}

// Archives has the activity of the archivers' queue.
type Archives struct {
	Host   *Host
	Runner Archiver
}

// RunArchiver archives a topic until it is told to stop.
func (a *Archives) RunArchiver(ctx context.Context, in ArchiveInput) (Ended, error) {
	return a.Host.keep(ctx, ArchiveID(in.Topic), func(ctx context.Context, progress func(Beat)) error {
		return a.Runner.RunArchiver(ctx, in, progress)
	})
}

// Publishers has the activity of the publishers' queue.
type Publishers struct {
	Host   *Host
	Runner Publisher
}

// RunPublisher publishes what a job serves until it is told to stop.
func (p *Publishers) RunPublisher(ctx context.Context, in PublishInput) (Ended, error) {
	return p.Host.keep(ctx, PublisherID(in.Job), func(ctx context.Context, progress func(Beat)) error {
		return p.Runner.RunPublisher(ctx, in, progress)
	})
}

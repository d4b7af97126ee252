// Package streaming drives the operator core from a log of records: it reads partitions at explicit offsets, applies what
// it reads, writes what changed to a sink, and saves state and offsets together, so that whatever dies, the run after it
// goes on as if nothing had happened.
package streaming

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/spill"
)

// Partition is one partition of a source's topic.
type Partition struct {
	Source int // number of the source in the job's spec
	Topic  string
	ID     int32
}

// String returns "topic/partition".
func (p Partition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.ID) }

// Log is where records come from.
type Log interface {
	// Identity returns what tells a topic from another of the same name that was made after it was deleted; empty where
	// the log cannot tell.
	Identity(ctx context.Context, topic string) (string, error)
	// Bounds returns the first offset of a partition that is still there, and the one after its last record.
	Bounds(ctx context.Context, p Partition) (first, end int64, err error)
	// Fetch appends the records from offset next on, about maxBytes of them, to the batch, and returns the offset to go on
	// at and the end of the partition as it was then. Where there are none it waits up to wait. It fails where next is no
	// longer there; it never passes over a record silently.
	Fetch(ctx context.Context, p Partition, next int64, b *event.Batch, maxBytes int, wait time.Duration) (after, end int64, err error)
}

// Sink is where results go. Its rows are ordered by (epoch, sequence): of two changes of one row the higher holds.
type Sink interface {
	// TakeEpoch starts a new epoch: from then on the sink takes changes of no earlier one.
	TakeEpoch(ctx context.Context) (epoch uint64, err error)
	// Write stores changes and the watermark, the latter also where there are no changes. Writing them again changes nothing.
	// It fails with ErrFenced where a later epoch has started. Writes come one after another, but from another goroutine than
	// the other calls.
	Write(ctx context.Context, epoch uint64, c *Changes) error
	// After returns the sessions, tombstones included, and the report cells whose last change is later than at, and
	// forgets late events that were written later. It fails with ErrFenced where a later epoch than epoch has started:
	// a run that is slow to start must not forget what the one after it wrote.
	After(ctx context.Context, epoch uint64, at Point) ([]correlate.ID, []correlate.Cell, error)
}

// Point is a place in the order of a sink's changes.
type Point struct{ Epoch, Sequence uint64 }

// Objects is where checkpoints are kept. An etag names the content of an object.
type Objects interface {
	Get(ctx context.Context, key string) (data []byte, etag string, err error) // ErrNoObject where there is none
	// Put writes an object that must not be there (match empty) or must have the etag match; ErrChanged where it is not so.
	Put(ctx context.Context, key string, data []byte, match string) (etag string, err error)
	Delete(ctx context.Context, key string) error // of what is not there is no error
	List(ctx context.Context, prefix string) ([]string, error)
}

// Errors that the interfaces return and Run passes on.
var (
	ErrFenced     = errors.New("a later run of this shard has started")
	ErrNoObject   = errors.New("no such object")
	ErrChanged    = errors.New("the object is not what it was")
	ErrOffsetGone = errors.New("records that were not read yet are gone")
	ErrRecreated  = errors.New("the topic was deleted and made again")
)

// Config says what a shard does. Durations and sizes have defaults.
type Config struct {
	Job        *operator.Job
	Name       string // of the shard, such as "payments/v3/0"; checkpoints stand below it
	Partitions []Partition
	Log        Log
	Sink       Sink
	Objects    Objects
	Past       Past    // nil: nothing is known of what was there before
	Groups     *Groups // one of several shards; Partitions are those of all sources then, the same for all. nil: the only shard

	FlushEvery      time.Duration // between two writes of changes; default 100 ms
	CheckpointEvery time.Duration // default 10 s
	FetchBytes      int           // default 256 KiB
	FetchWait       time.Duration // default 500 ms
	RetryFor        time.Duration // how long an error that may pass is tried again; default 1 min
	StopWithin      time.Duration // for the last checkpoint; default 20 s
	// MemoryBytes bounds the state in memory: past it, what is settled goes to files below SpillDir, and comes back when an event
	// could link to it. The bound holds within a half; a process needs about as much again. 0: no bound. SpillDir is needed
	// also without a bound where the last checkpoint has such files; a run deletes what it left there, and what runs before it
	// did.
	MemoryBytes int64
	SpillDir    string

	PendingMax int // changes that wait for the sink before input waits too; default 131,072

	Retryable func(error) bool // tells errors that may pass; default: none
	Progress  func(Status)     // called whenever the loop got on; may be nil
	Logger    *slog.Logger     // default: discards
}

// Validate fills in defaults and reports everything wrong at once.
func (c *Config) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(c.Job != nil, "no job")
	need(c.Name != "", "no name of the shard")
	need(len(c.Partitions) > 0, "no partitions to read")
	need(c.Log != nil && c.Sink != nil && c.Objects != nil, "no log, sink or objects")
	seen := map[Partition]bool{}
	for _, p := range c.Partitions {
		need(!seen[p], fmt.Sprintf("partition %s comes twice", p))
		need(c.Job == nil || p.Source >= 0 && p.Source < len(c.Job.Spec.Sources), fmt.Sprintf("partition %s: no source %d", p, p.Source))
		seen[p] = true
	}
	if c.Groups != nil {
		errs = append(errs, c.Groups.validate(c))
	}
	fill := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
		need(*d > 0, "a duration is negative")
	}
	fill(&c.FlushEvery, 100*time.Millisecond)
	fill(&c.CheckpointEvery, 10*time.Second)
	fill(&c.FetchWait, 500*time.Millisecond)
	fill(&c.RetryFor, time.Minute)
	fill(&c.StopWithin, 20*time.Second)
	if c.FetchBytes == 0 {
		c.FetchBytes = 256 << 10
	}
	need(c.FetchBytes > 0, "the bytes of a fetch are negative")
	if c.PendingMax == 0 {
		c.PendingMax = 1 << 17
	}
	need(c.MemoryBytes >= 0, "the bound of memory is negative")
	need(c.MemoryBytes == 0 || c.SpillDir != "", "no folder for what does not fit the memory")
	need(c.PendingMax > 0, "the bound of pending changes is negative")
	if c.Retryable == nil {
		c.Retryable = func(error) bool { return false }
	}
	if c.Progress == nil {
		c.Progress = func(Status) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(errs...)
}

// Status is how far a shard is. Who gets one may keep it.
type Status struct {
	Epoch      uint64
	Sequence   uint64 // of the last change that is in the sink
	Checkpoint uint64 // number of the last one that is safe
	Watermark  event.Micros
	Records    int64 // of all sources, since the run started; so are all counts
	Rejects    int64
	Lag        int64 // records between what was read and the ends of the partitions
	Core       correlate.Stats

	Sources    []SourceStatus // by number in the spec
	Partitions []PartitionStatus
	Saved      CheckpointStatus
	Spill      spill.Status
	Latency    Histogram // from a record's timestamp until its results can be read in the sink, by record
}

// SourceStatus counts what was read of one source.
type SourceStatus struct {
	Records, Bytes, Events, Skipped, Late int64
	Rejects                               map[event.Reason]int64 // nil: none
}

// PartitionStatus is how far the reading of a partition is.
type PartitionStatus struct {
	Partition
	Next, End int64 // offset to go on at; end of the partition when it was last read. One of the groups topic has source -1
}

// CheckpointStatus describes the checkpoints of a run.
type CheckpointStatus struct {
	Count   int64
	Bytes   int64         // of state, that the last one wrote
	Stall   time.Duration // for which the last one held up input
	Seconds float64       // that the last one took, with its upload
}

// Histogram counts durations in buckets: Counts[i] of at most Bounds[i], and not in the bucket before it. The last count,
// beyond the bounds, has none.
type Histogram struct {
	Counts [len(latencyBounds) + 1]int64
	Sum    time.Duration
}

// latencyBounds are the upper bounds of a Histogram's buckets.
var latencyBounds = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
	30 * time.Second, time.Minute, 5 * time.Minute,
}

// LatencyBounds returns the upper bounds of a Histogram's buckets.
func LatencyBounds() []time.Duration { return latencyBounds[:] }

// Add counts n durations.
func (h *Histogram) Add(d time.Duration, n int64) {
	i, _ := slices.BinarySearch(latencyBounds[:], d)
	h.Counts[i] += n
	h.Sum += d * time.Duration(n)
}

// Package archiver copies every record of a topic to Parquet files in an object store, by partition and in order of offset,
// for as long as it runs. Whatever dies, the run after it goes on where the last manifest ended: every offset is archived
// exactly once. docs/formats/archive.md describes what it writes.
//
// A run keeps nothing but the object store's manifests. Putting the manifest with the next number, if it is absent, is at
// once the commit and what keeps two archivers apart: of two that try, one stops with ErrFenced.
package archiver

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/operator"
)

// Log is where records come from.
type Log interface {
	// Topic returns the partitions of a topic, and what tells it from another of the same name that was made after it was
	// deleted; empty where the log cannot tell.
	Topic(ctx context.Context, topic string) (identity string, partitions []int32, err error)
	// Bounds returns the first offset of a partition that is still there, and the one after its last record.
	Bounds(ctx context.Context, topic string, partition int32) (first, end int64, err error)
	// Fetch yields the records from offset next on, in order, about maxBytes of them, and returns the offset to go on at and
	// the end of the partition as it was then. Where there are none it waits up to wait. A record is valid until yield
	// returns. When Fetch fails it has yielded nothing; it fails with ErrOffsetGone where next is no longer there, and never
	// passes over a record silently.
	Fetch(ctx context.Context, topic string, partition int32, next int64, maxBytes int, wait time.Duration,
		yield func(*archive.Record)) (after, end int64, err error)
}

// Object is an object of a listing.
type Object struct {
	Key      string
	Modified time.Time
}

// Objects is where the archive is kept.
type Objects interface {
	Get(ctx context.Context, key string) ([]byte, error) // ErrNoObject where there is none
	Put(ctx context.Context, key string, data []byte) error
	// PutIfAbsent writes an object that must not be there: ErrExists where it is. The nonce tells a repeated call from
	// another writer's.
	PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) error
	Delete(ctx context.Context, key string) error // of what is not there is no error
	// List yields the objects whose keys start with the prefix and are greater than after, in order.
	List(ctx context.Context, prefix, after string) iter.Seq2[Object, error]
}

// Errors that the interfaces return and Run passes on.
var (
	// ErrFenced: another archiver has written the manifest that this run was about to. Starting again is safe; if it comes
	// again and again, two archivers of one topic are meant to run.
	ErrFenced     = errors.New("another archiver of this partition has gone on")
	ErrNoObject   = errors.New("no such object")
	ErrExists     = errors.New("the object is there already")
	ErrOffsetGone = errors.New("records were deleted before they were archived")
	ErrRecreated  = errors.New("the topic was deleted and made again")
)

// Config says what to archive. Durations and sizes have defaults.
type Config struct {
	Topic   string
	Jobs    []*operator.Job // that read the topic: their event times are noted for plans; may be empty
	Log     Log
	Objects Objects

	FileBytes   int64         // raw bytes at which a file is closed; default 64 MiB
	FileAge     time.Duration // of a file's first record, at which it is closed; default 1 min
	MemoryBytes int64         // of all records that wait for their file; default 256 MiB
	Commits     int           // partitions that write their files at once; default 4
	FetchBytes  int           // default 256 KiB
	FetchWait   time.Duration // default 500 ms

	// SkipDeleted goes on where records were deleted before they were archived, and notes the gap.
	SkipDeleted bool
	// FarApart is how far event times must lie apart for a file to be cut between them; default 1 h.
	FarApart time.Duration

	RetryFor     time.Duration // how long an error that may pass is tried again; default 1 min
	StopWithin   time.Duration // for the last files; default 20 s
	RefreshEvery time.Duration // between two looks at the topic's partitions; default 1 min
	SweepEvery   time.Duration // between two sweeps of what crashed runs left; default 6 h
	SweepAge     time.Duration // of an object that no manifest lists, before it is deleted; default 24 h
	StallAfter   time.Duration // without a step of some partition, Progress is not called any more; default 2 min

	Retryable func(error) bool // tells errors that may pass; default: none
	Progress  func(Status)     // called once a second while every partition gets on; may be nil
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
	need(c.Topic != "" && !strings.ContainsRune(c.Topic, '/') && !strings.HasPrefix(c.Topic, "."),
		fmt.Sprintf("topic %q: the archive's objects are named after it, so it must not be empty, start with a dot or have a slash", c.Topic))
	need(c.Log != nil && c.Objects != nil, "no log or objects")
	for _, j := range c.Jobs {
		need(j != nil && len(sourcesOf(j, c.Topic)) > 0, fmt.Sprintf("a job does not read topic %s", c.Topic))
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		or    time.Duration
	}{
		{"FileAge", &c.FileAge, time.Minute}, {"FetchWait", &c.FetchWait, 500 * time.Millisecond}, {"FarApart", &c.FarApart, time.Hour},
		{"RetryFor", &c.RetryFor, time.Minute}, {"StopWithin", &c.StopWithin, 20 * time.Second},
		{"RefreshEvery", &c.RefreshEvery, time.Minute}, {"SweepEvery", &c.SweepEvery, 6 * time.Hour},
		{"SweepAge", &c.SweepAge, 24 * time.Hour}, {"StallAfter", &c.StallAfter, 2 * time.Minute},
	} {
		if *d.value == 0 {
			*d.value = d.or
		}
		need(*d.value > 0, d.name+" is negative")
	}
	for _, n := range []struct {
		name  string
		value *int64
		or    int64
	}{{"FileBytes", &c.FileBytes, 64 << 20}, {"MemoryBytes", &c.MemoryBytes, 256 << 20}} {
		if *n.value == 0 {
			*n.value = n.or
		}
		need(*n.value > 0, n.name+" is negative")
	}
	need(c.FileBytes <= fileBytesMax, fmt.Sprintf("FileBytes is %d; at most %d are allowed", c.FileBytes, int64(fileBytesMax)))
	if c.Commits == 0 {
		c.Commits = 4
	}
	if c.FetchBytes == 0 {
		c.FetchBytes = 256 << 10
	}
	need(c.Commits > 0 && c.FetchBytes > 0, "Commits or FetchBytes is negative")
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

// fileBytesMax leaves a data file that does not compress well below what a reader takes.
const fileBytesMax = archive.FileBytesMax / 2

// Status is how far the archive of a topic is. Who gets one may keep it.
type Status struct {
	Topic      string
	Identity   string
	Partitions []PartitionStatus // by number
}

// Lag is how many offsets of the topic are not archived yet.
func (s *Status) Lag() (n int64) {
	for _, p := range s.Partitions {
		n += max(0, p.End-p.Next)
	}
	return n
}

// PartitionStatus is how far a partition is. Counts are since the run started.
type PartitionStatus struct {
	ID        int32
	Next      int64     // every offset before it is in the archive
	Read      int64     // offset to be read next
	End       int64     // of the partition, when it was last read
	Sequence  int64     // of the next manifest
	Manifests int64     // that were written
	Files     int64     // data files
	Records   int64     // in them
	Bytes     int64     // of them
	Deleted   int64     // offsets that were gone before they were archived
	Waiting   int64     // bytes of records that wait for their file
	Committed time.Time // when the last manifest was; zero: none was
	Turned    time.Time // when the partition made its last step
}

package workers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/archiver"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/registry"
)

// Archives runs the archivers of topics on the servers of an Env: Kafka and the object store.
type Archives struct {
	Env *Env
	Log *slog.Logger
	// Observe is given every status of an archiver, for metrics and displays; may be nil. It must not block.
	Observe func(s archiver.Status)
	// Configure may set the sizes and durations of an archiver; may be nil.
	Configure func(c *archiver.Config)
}

// RunArchiver archives a topic until ctx is done. Job versions only add to what the archive knows of times, so one that is
// gone, does not compile or does not read the topic is passed over: no record waits for it.
func (a *Archives) RunArchiver(ctx context.Context, in activities.ArchiveInput, progress func(activities.Beat)) (err error) {
	records := &archiveLog{client: a.Env.Kafka, fetchers: map[int32]*fetcher{}}
	defer func() { err = errors.Join(err, records.close()) }()
	jobs, err := a.compile(ctx, in)
	if err != nil {
		return err
	}
	cfg := archiver.Config{
		Topic: in.Topic, Jobs: jobs, Log: records, Objects: ArchiveObjects{a.Env.Objects}, SkipDeleted: in.SkipDeleted,
		Retryable: Retryable, Logger: a.Log,
		Progress: func(s archiver.Status) {
			beat := activities.Beat{Lag: s.Lag()}
			for _, p := range s.Partitions {
				beat.Records += p.Records
			}
			progress(beat)
			if a.Observe != nil {
				a.Observe(s)
			}
		},
	}
	if a.Configure != nil {
		a.Configure(&cfg)
	}
	return archiver.Run(ctx, cfg)
}

// compile returns the job versions that read the topic.
func (a *Archives) compile(ctx context.Context, in activities.ArchiveInput) (jobs []*operator.Job, err error) {
	versions := &Versions{Env: a.Env, Log: a.Log}
	for _, v := range in.Jobs {
		job, err := versions.compile(ctx, v.Job, v.Version)
		var problems jobspec.Problems
		var refused *registry.Error
		switch {
		case errors.As(err, &problems), errors.As(err, &refused) && refused.Class == registry.User:
			a.Log.Warn("the archive will not know the event times of a version", "topic", in.Topic, "job", v.Job, "version", v.Version, "error", err)
		case err != nil:
			return nil, err
		case !reads(job, in.Topic):
			a.Log.Warn("the version does not read the topic", "topic", in.Topic, "job", v.Job, "version", v.Version)
		default:
			jobs = append(jobs, job)
		}
	}
	return jobs, nil
}

func reads(job *operator.Job, topic string) bool {
	for _, s := range job.Spec.Sources {
		if s.Topic == topic {
			return true
		}
	}
	return false
}

// archiveLog reads the partitions of one topic with all that Kafka keeps of a record. Partitions may be read at the same
// time, each by one goroutine.
type archiveLog struct {
	client *kafka.Client

	mu       sync.Mutex
	topic    kafka.Topic // as it was first found: fetches hold on to that one if another gets its name
	fetchers map[int32]*fetcher
}

func (l *archiveLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, f := range l.fetchers {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Topic implements archiver.Log.
func (l *archiveLog) Topic(ctx context.Context, name string) (identity string, partitions []int32, err error) {
	t, err := l.client.Topic(ctx, name)
	if err != nil {
		return "", nil, err
	}
	l.mu.Lock()
	if l.topic.Name == "" {
		l.topic = t
	}
	l.mu.Unlock()
	if t.ID != (kafka.TopicID{}) { // brokers that are old have none
		identity = t.ID.String()
	}
	for id := range t.Partitions {
		partitions = append(partitions, id)
	}
	return identity, partitions, nil
}

func (l *archiveLog) found() kafka.Topic {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.topic
}

// Bounds implements archiver.Log.
func (l *archiveLog) Bounds(ctx context.Context, _ string, partition int32) (first, end int64, err error) {
	return l.client.Offsets(ctx, l.found(), partition)
}

// Fetch implements archiver.Log. How long it waits at the end is the client's MaxWait.
func (l *archiveLog) Fetch(ctx context.Context, topic string, partition int32, next int64, maxBytes int, _ time.Duration,
	yield func(*archive.Record)) (after, end int64, err error) {
	f := l.fetcher(partition, next)
	to := archive.Record{Topic: topic, Partition: partition}
	return f.read(archiver.ErrOffsetGone, archiver.ErrRecreated, func(f *kafka.Fetcher) (kafka.Fetched, error) {
		return f.Records(ctx, maxBytes, func(r *kafka.Record) {
			to.Offset, to.Timestamp, to.Key, to.Value, to.Headers = r.Offset, r.Timestamp, r.Key, r.Value, to.Headers[:0]
			for _, h := range r.Headers {
				to.Headers = append(to.Headers, archive.Header{Key: string(h.Key), Value: h.Value})
			}
			yield(&to)
		})
	})
}

// fetcher returns the fetcher of a partition, at an offset.
func (l *archiveLog) fetcher(partition int32, next int64) *fetcher {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.fetchers[partition].at(next, func() *kafka.Fetcher { return l.client.Fetcher(l.topic, partition, next) })
	l.fetchers[partition] = f
	return f
}

// ArchiveObjects keeps archives in an object store, and reads them back: it implements archiver.Objects and
// archive.Objects.
type ArchiveObjects struct{ Store objstore.Store }

// Get returns an object, or archiver.ErrNoObject.
func (o ArchiveObjects) Get(ctx context.Context, key string) ([]byte, error) {
	data, _, err := o.Store.Get(ctx, key)
	if errors.Is(err, objstore.ErrNotFound) {
		err = fmt.Errorf("%w: %w", archiver.ErrNoObject, err)
	}
	return data, err
}

// GetRange returns a part of an object.
func (o ArchiveObjects) GetRange(ctx context.Context, key string, from, n int64) ([]byte, error) {
	return o.Store.GetRange(ctx, key, from, n)
}

// Put writes an object.
func (o ArchiveObjects) Put(ctx context.Context, key string, data []byte) error {
	_, err := o.Store.Put(ctx, key, bytes.NewReader(data), int64(len(data)))
	return err
}

// PutIfAbsent writes an object that is not there yet, or returns archiver.ErrExists.
func (o ArchiveObjects) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) error {
	_, err := o.Store.PutIfAbsent(ctx, key, data, nonce)
	if errors.Is(err, objstore.ErrPrecondition) {
		err = fmt.Errorf("%w: %w", archiver.ErrExists, err)
	}
	return err
}

// Delete removes an object.
func (o ArchiveObjects) Delete(ctx context.Context, key string) error {
	return o.Store.Delete(ctx, key)
}

// List yields objects in order of their keys.
func (o ArchiveObjects) List(ctx context.Context, prefix, after string) iter.Seq2[archiver.Object, error] {
	return func(yield func(archiver.Object, error) bool) {
		for info, err := range o.Store.List(ctx, prefix, after) {
			if !yield(archiver.Object{Key: info.Key, Modified: info.Modified}, err) {
				return
			}
		}
	}
}

// Keys yields keys in order.
func (o ArchiveObjects) Keys(ctx context.Context, prefix, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for info, err := range o.Store.List(ctx, prefix, after) {
			if !yield(info.Key, err) {
				return
			}
		}
	}
}

var (
	_ activities.Archiver = (*Archives)(nil)
	_ archiver.Objects    = ArchiveObjects{}
	_ backfill.Objects    = ArchiveObjects{}
)

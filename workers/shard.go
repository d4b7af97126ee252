// Package workers wires the adapters — Kafka, the object store, the serving store — to what streaming needs of them.
package workers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
)

// Log reads partitions of a Kafka cluster. Partitions may be read at the same time, each by one goroutine.
type Log struct {
	client  *kafka.Client
	history *History // nil: what Kafka does not have any more is gone

	mu       sync.Mutex
	topics   map[string]kafka.Topic
	fetchers map[streaming.Partition]*fetcher
}

// fetcher remembers where the next fetch of a partition goes on by itself.
type fetcher struct {
	*kafka.Fetcher
	next int64
}

// at returns a fetcher that goes on at an offset: f, which may be nil, or a new one in its place.
func (f *fetcher) at(next int64, open func() *kafka.Fetcher) *fetcher {
	if f != nil && f.next == next {
		return f
	}
	if f != nil {
		f.Close() // its position is not the caller's
	}
	return &fetcher{open(), next}
}

// read reads once and returns the offset to go on at and the end of the partition. What says that offsets are gone, or that
// the topic was made again, is gone or recreated too.
func (f *fetcher) read(gone, recreated error, fetch func(*kafka.Fetcher) (kafka.Fetched, error)) (after, end int64, err error) {
	next := f.next
	got, err := fetch(f.Fetcher)
	if err != nil && got.Records == 0 {
		f.next = -1 // so that the next try starts anew where the caller is
		switch {
		case errors.Is(err, kafka.ErrOffsetGone):
			err = fmt.Errorf("%w: %w", gone, err)
		case errors.Is(err, kafka.ErrTopicRecreated):
			err = fmt.Errorf("%w: %w", recreated, err)
		}
		return next, next, err
	}
	// What was read before an error is whole; the error comes again.
	f.next = got.Next
	end = max(got.HighWater, got.Next)
	if got.Next == next && !got.AtEnd { // nothing came, but nobody said that nothing is there
		end = max(end, next+1)
	}
	return got.Next, end, nil
}

// NewLog returns a log over a client, which the caller closes after it.
func NewLog(client *kafka.Client) *Log {
	return &Log{client: client, topics: map[string]kafka.Topic{}, fetchers: map[streaming.Partition]*fetcher{}}
}

// Close closes the connections of all partitions.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, f := range l.fetchers {
		errs = append(errs, f.Close())
	}
	if l.history != nil {
		errs = append(errs, l.history.close())
	}
	return errors.Join(errs...)
}

func (l *Log) topic(ctx context.Context, name string) (kafka.Topic, error) {
	l.mu.Lock()
	t, ok := l.topics[name]
	l.mu.Unlock()
	if ok {
		return t, nil
	}
	t, err := l.client.Topic(ctx, name)
	if err != nil {
		return t, err
	}
	l.mu.Lock()
	l.topics[name] = t
	l.mu.Unlock()
	return t, nil
}

// Partitions lists the partitions of all topics of a job.
func (l *Log) Partitions(ctx context.Context, job *operator.Job) ([]streaming.Partition, error) {
	var list []streaming.Partition
	var errs []error
	for i, s := range job.Spec.Sources {
		t, err := l.topic(ctx, s.Topic)
		if err != nil {
			errs = append(errs, fmt.Errorf("source %s: %w", s.Name, err))
			continue
		}
		for id := range t.Partitions {
			list = append(list, streaming.Partition{Source: i, Topic: s.Topic, ID: id})
		}
	}
	return list, errors.Join(errs...)
}

// Identity returns the topic's id.
func (l *Log) Identity(ctx context.Context, topic string) (string, error) {
	t, err := l.topic(ctx, topic)
	if err != nil {
		return "", err
	}
	if t.ID == (kafka.TopicID{}) { // of a broker that has none
		return "", nil
	}
	return t.ID.String(), nil
}

// Bounds returns the first offset of a partition and its high-water mark.
func (l *Log) Bounds(ctx context.Context, p streaming.Partition) (first, end int64, err error) {
	t, err := l.topic(ctx, p.Topic)
	if err != nil {
		return 0, 0, err
	}
	return l.client.Offsets(ctx, t, p.ID)
}

// Delete deletes a topic. One that is not there is no error.
func (l *Log) Delete(ctx context.Context, topic string) error {
	l.mu.Lock()
	delete(l.topics, topic)
	l.mu.Unlock()
	return l.client.DeleteTopic(ctx, topic)
}

// Fetch reads from an offset on. How long it waits at the end is the client's MaxWait.
func (l *Log) Fetch(ctx context.Context, p streaming.Partition, next int64, b *event.Batch, maxBytes int, _ time.Duration) (after, end int64, err error) {
	return l.read(ctx, p, next, maxBytes,
		func(f *kafka.Fetcher) (kafka.Fetched, error) { return f.Fetch(ctx, b, uint16(p.Source), maxBytes) },
		func(r *archive.Row) {
			at := event.Record{Source: uint16(p.Source), Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp}
			b.AddLogged(at, r.Value, len(r.Value), r.Origin)
		})
}

// read reads once from an offset on: from Kafka, or from the archive what Kafka has not got any more.
func (l *Log) read(ctx context.Context, p streaming.Partition, next int64, maxBytes int,
	fetch func(*kafka.Fetcher) (kafka.Fetched, error), yield func(*archive.Row)) (after, end int64, err error) {
	if l.history == nil {
		return l.readKafka(ctx, p, next, fetch)
	}
	after, end, ok, err := l.history.read(ctx, p, next, maxBytes, false, yield)
	if ok || err != nil {
		return after, end, err
	}
	after, end, gone := l.readKafka(ctx, p, next, fetch)
	if !errors.Is(gone, streaming.ErrOffsetGone) {
		return after, end, gone
	}
	after, end, ok, err = l.history.read(ctx, p, next, maxBytes, true, yield)
	if !ok && err == nil {
		err = gone
	}
	return after, end, err
}

func (l *Log) readKafka(ctx context.Context, p streaming.Partition, next int64, fetch func(*kafka.Fetcher) (kafka.Fetched, error)) (after, end int64, err error) {
	t, err := l.topic(ctx, p.Topic)
	if err != nil {
		return next, next, err
	}
	l.mu.Lock()
	f := l.fetchers[p].at(next, func() *kafka.Fetcher { return l.client.Fetcher(t, p.ID, next) })
	l.fetchers[p] = f
	l.mu.Unlock()
	return f.read(streaming.ErrOffsetGone, streaming.ErrRecreated, fetch)
}

// Objects keeps checkpoints in an object store.
type Objects struct{ Store objstore.Store }

// Get returns an object and its etag.
func (o Objects) Get(ctx context.Context, key string) ([]byte, string, error) {
	data, info, err := o.Store.Get(ctx, key)
	if errors.Is(err, objstore.ErrNotFound) {
		err = fmt.Errorf("%w: %w", streaming.ErrNoObject, err)
	}
	return data, info.ETag, err
}

// Put writes an object on a condition. The hash of the data tells a write that is tried again from another's.
func (o Objects) Put(ctx context.Context, key string, data []byte, match string) (etag string, err error) {
	sum := sha256.Sum256(data)
	nonce := hex.EncodeToString(sum[:])
	var info objstore.Info
	if match == "" {
		info, err = o.Store.PutIfAbsent(ctx, key, data, nonce)
	} else {
		info, err = o.Store.PutIfMatch(ctx, key, data, match, nonce)
	}
	if errors.Is(err, objstore.ErrPrecondition) {
		err = fmt.Errorf("%w: %w", streaming.ErrChanged, err)
	}
	return info.ETag, err
}

// Delete removes an object.
func (o Objects) Delete(ctx context.Context, key string) error { return o.Store.Delete(ctx, key) }

// List returns the keys that start with a prefix.
func (o Objects) List(ctx context.Context, prefix string) (keys []string, err error) {
	for info, err := range o.Store.List(ctx, prefix, "") {
		if err != nil {
			return nil, err
		}
		keys = append(keys, info.Key)
	}
	return keys, nil
}

// Sink writes one shard of a generation to the serving store.
type Sink struct {
	store      *store.Store
	job        *operator.Job
	generation int64
	shard      int
	encoder    *store.Encoder
	batch      store.Batch
}

// NewSink returns the sink of a shard.
func NewSink(s *store.Store, job *operator.Job, generation int64, shard int) *Sink {
	return &Sink{store: s, job: job, generation: generation, shard: shard, encoder: store.NewEncoder(&job.Config, results.MetaOf(job.Spec))}
}

// TakeEpoch fences every earlier owner of the shard.
func (s *Sink) TakeEpoch(ctx context.Context) (uint64, error) {
	return s.store.TakeEpoch(ctx, s.job.Spec.Job, s.generation, s.shard)
}

func (s *Sink) owner(epoch uint64) store.Owner {
	return store.Owner{Generation: s.generation, Shard: s.shard, Epoch: epoch}
}

// Write writes changes. More rows than a transaction takes go in several: each is as good as none when it is repeated.
func (s *Sink) Write(ctx context.Context, epoch uint64, c *streaming.Changes) error {
	s.batch.Reset()
	room := func() error {
		if s.batch.Rows() < store.BatchRowsMax {
			return nil
		}
		return s.put(ctx, epoch)
	}
	for i := range c.Sessions {
		if err := room(); err != nil {
			return err
		}
		s.encoder.Upsert(&s.batch, c.Sessions[i].Seq, &c.Sessions[i].Row)
	}
	for _, t := range c.Gone {
		if err := room(); err != nil {
			return err
		}
		s.encoder.Tombstone(&s.batch, t.Seq, t.ID)
	}
	for i := range c.Cells {
		if err := room(); err != nil {
			return err
		}
		s.encoder.Cell(&s.batch, c.Cells[i].Seq, &c.Cells[i].Cell)
	}
	for kind, list := range map[store.ExceptionKind][]streaming.Exception{store.Late: c.LateEvents, store.Rejected: c.Rejects} {
		for _, x := range list {
			if err := room(); err != nil {
				return err
			}
			e := s.encoder.Exception(c.Last, kind, x.Source)
			e.Partition, e.Offset, e.Index, e.Time = x.Partition, x.Offset, int(x.Index), x.Time
			e.Reason, e.Detail, e.Raw = string(x.Reason), []byte(x.Detail), x.Raw
			s.batch.Exceptions = append(s.batch.Exceptions, e)
		}
	}
	if c.More { // only with its last part has the shard got so far
		return s.put(ctx, epoch)
	}
	session := &s.job.Config.Session
	s.batch.Progress = &store.Mark{Seq: c.Last, Watermark: c.Watermark, Settle: session.Settle, MaxSpan: session.MaxSpan}
	return s.put(ctx, epoch)
}

func (s *Sink) put(ctx context.Context, epoch uint64) error {
	err := s.store.Write(ctx, s.owner(epoch), &s.batch)
	s.batch.Reset()
	return fenced(err)
}

func fenced(err error) error {
	if errors.Is(err, store.ErrFenced) {
		return fmt.Errorf("%w: %w", streaming.ErrFenced, err)
	}
	return err
}

// After returns what the store has from later than a checkpoint.
func (s *Sink) After(ctx context.Context, epoch uint64, at streaming.Point) (ids []correlate.ID, cells []correlate.Cell, err error) {
	owner, after := s.owner(epoch), store.Position{Epoch: at.Epoch, Seq: at.Sequence}
	for id, err := range s.store.Repair(ctx, owner, after) {
		if err != nil {
			return nil, nil, fenced(err)
		}
		ids = append(ids, id)
	}
	for c, err := range s.store.RepairCells(ctx, owner, after) {
		if err != nil {
			return nil, nil, fenced(err)
		}
		if cell, ok := s.encoder.CellOf(c); ok {
			cells = append(cells, cell)
		}
	}
	_, err = s.store.RepairExceptions(ctx, owner, after)
	return ids, cells, fenced(err)
}

// Retryable tells errors of the adapters that may pass.
func Retryable(err error) bool {
	var (
		k *kafka.Error
		o *objstore.Error
		s *store.Error
	)
	switch {
	case errors.Is(err, streaming.ErrFenced), errors.Is(err, streaming.ErrOffsetGone), errors.Is(err, streaming.ErrRecreated):
		return false
	case errors.As(err, &k):
		return k.Retryable()
	case errors.As(err, &o):
		return o.Retryable()
	case errors.As(err, &s):
		return s.Retryable
	}
	return false
}

package workers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/publisher"
	"github.com/weftdata/weft/registry"
)

const (
	outputPartitions = 6
	// outputRecordMax is what the output topic takes in one record: a session with a full timeline has some 200 KiB, and
	// brokers refuse more than 1 MiB unless told otherwise.
	outputRecordMax = 16 << 20
	// outputRetryFor is short: the publisher itself tries again, and tells meanwhile that it lives.
	outputRetryFor = 5 * time.Second
	// sinksEvery is how often a look is taken whether the version that is served wants other sinks.
	sinksEvery = 2 * time.Second
)

// Publications runs the publishers of jobs on the servers of an Env: Kafka, the object store and the serving store.
type Publications struct {
	Env *Env
	Log *slog.Logger
	// Observe is given every status of each outlet, for metrics and displays; may be nil. It must not block.
	Observe func(job string, s publisher.Status)
	// Configure may set the sizes and durations of an outlet; may be nil.
	Configure func(c *publisher.Config)
}

// RunPublisher publishes what a job serves until ctx is done. Where to is said by the spec of the version that serves the
// newest sessions; it waits while nothing is served or nothing is wanted, and follows when that changes.
func (p *Publications) RunPublisher(ctx context.Context, in activities.PublishInput, progress func(activities.Beat)) error {
	for {
		spec, err := p.servedSpec(ctx, in.Job)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case spec != nil && spec.Sinks != (jobspec.Sinks{}):
			if err := p.publish(ctx, spec, progress); err != nil || ctx.Err() != nil {
				return err
			}
		default:
			progress(activities.Beat{})
			if wait(ctx, sinksEvery) != nil {
				return nil
			}
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// servedSpec returns the spec of the version whose live output serves the newest sessions; nil where none does.
func (p *Publications) servedSpec(ctx context.Context, job string) (*jobspec.Spec, error) {
	m, err := p.Env.Store.ServingMap(ctx, job)
	if err != nil {
		return nil, err
	}
	list, err := p.Env.Store.Generations(ctx, job)
	if err != nil {
		return nil, err
	}
	for i := len(m.Ranges) - 1; i >= 0; i-- {
		for _, g := range list {
			if g.ID != m.Ranges[i].Generation || g.Kind != "live" {
				continue
			}
			number, err := strconv.Atoi(g.Version)
			if err != nil {
				return nil, fmt.Errorf("generation %d of %s is of version %q, which is no number", g.ID, job, g.Version)
			}
			v, err := registry.New(p.Env.Objects).Get(ctx, job, number)
			if err != nil {
				return nil, err
			}
			return v.Parse()
		}
	}
	return nil, nil
}

// publish feeds the outlets that a spec wants until ctx is done, one of them fails, or the spec that is served wants others.
func (p *Publications) publish(ctx context.Context, spec *jobspec.Spec, progress func(activities.Beat)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tell := p.teller(progress)
	var (
		work sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	run := func(do func() error) {
		work.Go(func() {
			err := do()
			cancel() // without one the others end, too
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	for _, open := range p.outlets(spec) {
		cfg := publisher.Config{Job: spec.Job, Source: p.Env.Store, Objects: p.Env.Objects, OpenTopic: open, Retryable: Retryable,
			Logger: p.Log, Progress: func(s publisher.Status) { tell(spec.Job, s) }}
		if p.Configure != nil {
			p.Configure(&cfg)
		}
		run(func() error { return publisher.Run(ctx, cfg) })
	}
	run(func() error { return p.awaitOtherSinks(ctx, spec) })
	work.Wait()
	return errors.Join(errs...)
}

// outlets returns how to open the topic of each outlet; nil stands for files.
func (p *Publications) outlets(spec *jobspec.Spec) (list []func(context.Context) (publisher.Topic, error)) {
	if spec.Sinks.Topic != "" {
		list = append(list, func(ctx context.Context) (publisher.Topic, error) { return p.openTopic(ctx, spec) })
	}
	if spec.Sinks.Parquet {
		list = append(list, nil)
	}
	return list
}

// awaitOtherSinks returns nil when the spec that is served wants other sinks, or ctx is done.
func (p *Publications) awaitOtherSinks(ctx context.Context, spec *jobspec.Spec) error {
	for wait(ctx, sinksEvery) == nil {
		now, err := p.servedSpec(ctx, spec.Job)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !Retryable(err):
			return err
		case err == nil && now != nil && now.Sinks != spec.Sinks:
			return nil
		}
	}
	return nil
}

// teller makes one beat of the statuses of both outlets.
func (p *Publications) teller(progress func(activities.Beat)) func(string, publisher.Status) {
	var mu sync.Mutex
	last := map[publisher.Outlet]publisher.Status{}
	return func(job string, s publisher.Status) {
		mu.Lock()
		defer mu.Unlock()
		last[s.Outlet] = s
		beat := activities.Beat{Epoch: s.Epoch, Checkpoint: s.Checkpoint}
		for _, one := range last {
			beat.Records += one.Published
		}
		progress(beat)
		if p.Observe != nil {
			p.Observe(job, s)
		}
	}
}

// openTopic opens the output topic for writing, and makes it if it is missing.
func (p *Publications) openTopic(ctx context.Context, spec *jobspec.Spec) (publisher.Topic, error) {
	name := spec.Sinks.Topic // none of the sources': the parser of specs sees to that
	t, created, err := p.Env.Kafka.CreateTopic(ctx, name, outputPartitions, map[string]string{
		"cleanup.policy": "compact", "max.message.bytes": strconv.Itoa(outputRecordMax)})
	if err != nil {
		return nil, err
	}
	if created && p.Log != nil {
		p.Log.Info("made the output topic", "job", spec.Job, "topic", name, "partitions", t.Partitions)
	}
	w, err := p.Env.Kafka.Producer(t, kafka.ProducerConfig{RetryFor: outputRetryFor})
	if err != nil {
		return nil, err
	}
	return NewOutputTopic(p.Env.Kafka, t, w), nil
}

// OutputTopic is a topic that a publisher feeds.
type OutputTopic struct {
	client *kafka.Client
	topic  kafka.Topic
	out    *kafka.Producer
}

// NewOutputTopic returns a topic with the producer that it closes; nil: it is only read.
func NewOutputTopic(client *kafka.Client, topic kafka.Topic, out *kafka.Producer) *OutputTopic {
	return &OutputTopic{client, topic, out}
}

// Identity returns the topic's name and id.
func (o *OutputTopic) Identity() string { return o.topic.Name + "/" + o.topic.ID.String() }

// Partitions returns their number.
func (o *OutputTopic) Partitions() int32 { return o.topic.Partitions }

// Bounds returns the first offset of a partition and its high-water mark.
func (o *OutputTopic) Bounds(ctx context.Context, partition int32) (first, end int64, err error) {
	return o.client.Offsets(ctx, o.topic, partition)
}

// Read yields the records of a range of offsets. Those that compaction removed are missing.
func (o *OutputTopic) Read(ctx context.Context, partition int32, next, end int64, yield func(*publisher.Record) error) (err error) {
	if next >= end {
		return nil
	}
	f := o.client.Fetcher(o.topic, partition, next)
	defer func() { err = errors.Join(err, f.Close()) }()
	for f.Next() < end && err == nil {
		var got kafka.Fetched
		var failed error
		got, err = f.Records(ctx, 1<<20, func(r *kafka.Record) {
			if r.Offset < end && failed == nil {
				failed = yield(recordOf(r))
			}
		})
		if failed != nil {
			return failed
		}
		if got.AtEnd {
			break
		}
	}
	return err
}

func recordOf(r *kafka.Record) *publisher.Record {
	out := &publisher.Record{Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, publisher.Header{Name: string(h.Key), Value: h.Value})
	}
	return out
}

// Add queues a record.
func (o *OutputTopic) Add(ctx context.Context, partition int32, r *publisher.Record) error {
	out := kafka.Record{Timestamp: event.Micros(time.Now().UnixMicro()), Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, kafka.Header{Key: []byte(h.Name), Value: h.Value})
	}
	return o.out.Add(ctx, partition, &out)
}

// Flush waits until everything added is acknowledged.
func (o *OutputTopic) Flush(ctx context.Context) error { return o.out.Flush(ctx) }

// Acked returns the offset behind the last acknowledged record of a partition.
func (o *OutputTopic) Acked(partition int32) int64 { return o.out.Acked(partition) }

// Close ends the producer. What was not flushed is lost.
func (o *OutputTopic) Close() error {
	if o.out == nil {
		return nil
	}
	return o.out.Close()
}

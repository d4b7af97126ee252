package workers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/streaming"
)

// Part is one shard of a job version, and what it needs of Kafka.
type Part struct {
	Client        *kafka.Client
	Version       int             // of the job
	Shard, Shards int             // this one, from 0, of so many; a version keeps their number
	Archive       archive.Objects // of what Kafka has not got any more; nil: none
	KeepFor       time.Duration   // how long the groups topic keeps records that a shard has not read; default 72 h
}

// GroupsTopic returns the name of the topic between the shards of a job version.
func GroupsTopic(job string, version int) string {
	return fmt.Sprintf("weft.%s.%d.groups", job, version)
}

// RunShard runs a shard with its part in repartitioning, until ctx is done, which ends it with a last checkpoint and nil, or
// until something fails. It fills in cfg's Log, Partitions and Groups; the rest is the caller's:
//
//	err := workers.RunShard(ctx, workers.Part{Client: env.Kafka, Version: 3, Shard: n, Shards: shards}, streaming.Config{
//		Job: job, Name: fmt.Sprintf("checkpoints/%s/%d/%d", job.Spec.Job, 3, n),
//		Sink: workers.NewSink(env.Store, job, generation, n), Objects: workers.Objects{Store: env.Objects},
//		Retryable: workers.Retryable, Progress: heartbeat,
//	})
//
// All shards of a version must run: each reads some of the sources for all others, and none gets ahead of a source
// partition that nobody reads. The first one creates the groups topic. Where partitions were added to a source, the shards
// end with an error as soon as one of them has started again, and find them when they are started again too.
func RunShard(ctx context.Context, part Part, cfg streaming.Config) (err error) {
	log := NewLog(part.Client)
	defer func() { err = errors.Join(err, log.Close()) }()
	cfg.Log = log
	if part.Archive != nil {
		cfg.Past = log.GoBack(cfg.Job, part.Archive, cfg.SpillDir, cfg.Logger)
	}
	if cfg.Partitions, err = log.Partitions(ctx, cfg.Job); err != nil {
		return err
	}
	if part.Shards == 1 {
		return streaming.Run(ctx, cfg)
	}
	topic, err := part.topic(ctx, cfg.Job.Spec.Job)
	if err != nil {
		return err
	}
	producer, err := part.Client.Producer(topic, kafka.ProducerConfig{BatchBytes: part.batchBytes()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, producer.Close()) }()
	cfg.Groups = &streaming.Groups{Shard: part.Shard, Shards: part.Shards, Topic: topic.Name, Log: log, Out: &outlet{producer: producer}}
	return streaming.Run(ctx, cfg)
}

// laneBytes bounds what a shard holds of records on their way to the groups topic: a batch that is under way and one that
// fills, for each partition.
const laneBytes = 64 << 20

func (p Part) batchBytes() int { return min(512<<10, laneBytes/(2*max(1, p.Shards))) }

// topic returns the groups topic, and creates it where it is not there. One that was deleted comes back empty, with another
// identity, which the checkpoints refuse.
func (p Part) topic(ctx context.Context, job string) (kafka.Topic, error) {
	name := GroupsTopic(job, p.Version)
	if p.Shards < 1 || p.Shards > event.KeyGroups || p.Shard < 0 || p.Shard >= p.Shards {
		return kafka.Topic{}, fmt.Errorf("shard %d of %d: expected at most %d shards, numbered from 0", p.Shard, p.Shards, event.KeyGroups)
	}
	keep := p.KeepFor
	if keep == 0 {
		keep = 72 * time.Hour
	}
	topic, _, err := p.Client.CreateTopic(ctx, name, int32(p.Shards), map[string]string{
		"cleanup.policy": "delete",
		"retention.ms":   strconv.FormatInt(keep.Milliseconds(), 10),
		// Nobody reads it twice: what is old goes soon after it may.
		"segment.ms":    strconv.FormatInt(min(keep, time.Hour).Milliseconds(), 10),
		"segment.bytes": strconv.Itoa(256 << 20),
		// A batch may be nearly full when the largest record comes; headers and framing are some more.
		"max.message.bytes": strconv.Itoa(event.RecordBytesMax + p.batchBytes() + 1<<20),
	})
	if err != nil {
		return topic, err
	}
	if topic.Partitions != int32(p.Shards) {
		return topic, fmt.Errorf("topic %s has %d partitions and the job version %d shards: it must have one for each; delete it and run the job as a new version",
			name, topic.Partitions, p.Shards)
	}
	return topic, nil
}

// Records reads records as Kafka holds them; those from the archive have no header but their origin. How long it waits at the end is the client's MaxWait.
func (l *Log) Records(ctx context.Context, p streaming.Partition, next int64, maxBytes int, _ time.Duration, yield func(*streaming.Raw)) (after, end int64, err error) {
	var raw streaming.Raw
	return l.read(ctx, p, next, maxBytes, func(f *kafka.Fetcher) (kafka.Fetched, error) {
		return f.Records(ctx, maxBytes, func(r *kafka.Record) {
			raw.Offset, raw.Timestamp, raw.Value, raw.Headers = r.Offset, r.Timestamp, r.Value, raw.Headers[:0]
			for _, h := range r.Headers {
				raw.Headers = append(raw.Headers, streaming.Header(h))
			}
			yield(&raw)
		})
	}, func(r *archive.Row) {
		raw.Offset, raw.Timestamp, raw.Value, raw.Headers = r.Offset, r.Timestamp, r.Value, raw.Headers[:0]
		if r.Origin != nil {
			raw.Headers = append(raw.Headers, streaming.Header{Key: []byte(archive.OriginHeader), Value: r.Origin})
		}
		yield(&raw)
	})
}

// outlet writes to the groups topic.
type outlet struct {
	producer *kafka.Producer
	record   kafka.Record // scratch
}

// Add queues a record.
func (o *outlet) Add(ctx context.Context, partition int32, r *streaming.Raw) error {
	o.record.Timestamp, o.record.Value, o.record.Headers = r.Timestamp, r.Value, o.record.Headers[:0]
	for _, h := range r.Headers {
		o.record.Headers = append(o.record.Headers, kafka.Header(h))
	}
	return o.producer.Add(ctx, partition, &o.record)
}

// Flush waits for the acknowledgements.
func (o *outlet) Flush(ctx context.Context) error { return o.producer.Flush(ctx) }

package workers

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/streaming"
)

// topics are topics in memory, for shards that are run as in production but for the broker.
type topics struct {
	mu    sync.Mutex
	parts map[streaming.Partition][]streaming.Raw // of source 0
	ends  map[streaming.Partition]int64           // what a reader may see; nil: all
	grown chan struct{}                           // closed when something is added
}

func newTopics() *topics {
	return &topics{parts: map[streaming.Partition][]streaming.Raw{}, grown: make(chan struct{})}
}

func of(topic string, id int32) streaming.Partition { return streaming.Partition{Topic: topic, ID: id} }

func (x *topics) add(p streaming.Partition, r streaming.Raw) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r.Offset, r.Value = int64(len(x.parts[p])), slices.Clone(r.Value)
	headers := r.Headers
	r.Headers = nil
	for _, h := range headers {
		r.Headers = append(r.Headers, streaming.Header{Key: slices.Clone(h.Key), Value: slices.Clone(h.Value)})
	}
	x.parts[p] = append(x.parts[p], r)
	close(x.grown)
	x.grown = make(chan struct{})
}

func (x *topics) Partitions(_ context.Context, job *operator.Job) (list []streaming.Partition, err error) {
	for i, s := range job.Spec.Sources {
		list = append(list, streaming.Partition{Source: i, Topic: s.Topic})
	}
	return list, nil
}

func (x *topics) Delete(_ context.Context, topic string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	maps.DeleteFunc(x.parts, func(p streaming.Partition, _ []streaming.Raw) bool { return p.Topic == topic })
	return nil
}

func (x *topics) Close() error { return nil }

func (x *topics) Identity(context.Context, string) (string, error) { return "", nil }

func (x *topics) end(p streaming.Partition) int64 {
	end := int64(len(x.parts[p]))
	if most, ok := x.ends[p]; ok {
		end = min(end, most)
	}
	return end
}

func (x *topics) Bounds(_ context.Context, p streaming.Partition) (first, end int64, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return 0, x.end(of(p.Topic, p.ID)), nil
}

func (x *topics) Records(ctx context.Context, p streaming.Partition, next int64, maxBytes int, wait time.Duration, yield func(*streaming.Raw)) (after, end int64, err error) {
	p.Source = 0
	for deadline := time.After(wait); ; {
		x.mu.Lock()
		after, end = next, x.end(p)
		for bytes := 0; after < end && bytes < maxBytes; after++ {
			r := x.parts[p][after]
			bytes += len(r.Value)
			yield(&r)
		}
		grown := x.grown
		x.mu.Unlock()
		if after > next {
			return after, end, nil
		}
		select {
		case <-grown:
		case <-deadline:
			return after, end, nil
		case <-ctx.Done():
			return after, end, nil
		}
	}
}

func (x *topics) Fetch(ctx context.Context, p streaming.Partition, next int64, b *event.Batch, maxBytes int, wait time.Duration) (after, end int64, err error) {
	return x.Records(ctx, p, next, maxBytes, wait, func(r *streaming.Raw) {
		b.Add(event.Record{Source: uint16(p.Source), Partition: p.ID, Offset: r.Offset, Timestamp: r.Timestamp}, r.Value)
	})
}

// groups is the topic between the shards of a version.
type groups struct {
	*topics
	topic string
}

func (g groups) Add(_ context.Context, partition int32, r *streaming.Raw) error {
	g.add(of(g.topic, partition), *r)
	return nil
}

func (g groups) Flush(context.Context) error { return nil }

// run runs the shards of a version until they have read all that they can see, and have seen time pass a moment.
func (s *Stage) run(t *testing.T, x *topics, version, shards int, past event.Micros) {
	t.Helper()
	job, err := s.Versions.compile(t.Context(), "payments", version)
	if err != nil {
		t.Fatal(err)
	}
	generation, err := s.Versions.generation(t.Context(), "payments", version)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	x.mu.Lock()
	for _, source := range job.Spec.Sources {
		total += x.end(of(source.Topic, 0))
	}
	x.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var running sync.WaitGroup
	read, errs := make(chan struct{}, shards), make(chan error, shards)
	var mu sync.Mutex
	reached := make([]int64, shards) // of each shard, which reads some of the partitions
	for shard := range shards {
		cfg := streaming.Config{Job: job, Name: fmt.Sprintf("checkpoints/payments/%d/%d", version, shard), Log: x,
			Sink: NewSink(s.Versions.Env.Store, job, generation, shard), Objects: Objects{Store: s.Versions.Env.Objects}, FetchWait: 10 * time.Millisecond}
		if cfg.Partitions, err = x.Partitions(ctx, job); err != nil {
			t.Fatal(err)
		}
		if shards > 1 {
			between := groups{x, GroupsTopic("payments", version)}
			cfg.Groups = &streaming.Groups{Shard: shard, Shards: shards, Topic: between.topic, Log: between, Out: between, MarkEvery: 20 * time.Millisecond}
		}
		var once sync.Once
		cfg.Progress = func(st streaming.Status) {
			at := int64(0)
			for _, p := range st.Partitions {
				if p.Source >= 0 {
					at += p.Next
				}
			}
			mu.Lock()
			reached[shard] = at
			at = 0
			for _, n := range reached {
				at += n
			}
			mu.Unlock()
			if at == total && st.Lag == 0 && st.Watermark >= past {
				once.Do(func() { read <- struct{}{} })
			}
		}
		running.Go(func() { errs <- streaming.Run(ctx, cfg) })
	}
	for range shards {
		select {
		case <-read:
		case err := <-errs:
			t.Fatalf("version %d: %v", version, err)
		}
	}
	cancel()
	running.Wait()
	for range shards {
		if err := <-errs; err != nil {
			t.Fatalf("version %d: %v", version, err)
		}
	}
}

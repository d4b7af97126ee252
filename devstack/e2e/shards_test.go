package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workers"
)

// TestShardsEqualReplay streams a payment environment by three shards, whose records pass through the groups topic, and
// which end abruptly and start again one by one. What the store holds of all of them has the digest of a replay.
func TestShardsEqualReplay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	at, spec, want := playEnvironment(t, ctx, 1500, 12, "24h", 3)
	st := openStream(t, ctx, at, spec)
	defer st.store.Close()

	st.runShards(t, ctx, 3, 12)
	st.expectReplay(t, ctx, want)
}

// runShards runs shards that crash three times each, until they have all there is.
func (st *stream) runShards(t *testing.T, ctx context.Context, shards int, seed uint64) {
	t.Helper()
	all, abandon := context.WithCancel(ctx)
	last, stop := context.WithCancel(all)
	var running sync.WaitGroup
	defer running.Wait() // whatever happens, none outlives the test
	defer stop()
	defer abandon()
	for n := range shards {
		running.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(n)))
			for range 3 { // runs that end in the middle, without a last checkpoint
				st.runShard(t, all, r, n, shards, 100+r.Int64N(2000))
			}
			st.runShard(t, last, r, n, shards, 0)
		})
	}
	st.awaitEnds(t, ctx, shards)
	stop()
	running.Wait()
}

// expectReplay holds what the store has of the generation against a replay.
func (st *stream) expectReplay(t *testing.T, ctx context.Context, want backfill.Summary) {
	t.Helper()
	scope := store.Scope{Job: "payments", Generation: st.generation}
	sessions, err := st.store.Digest(ctx, scope, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	reports, err := st.store.ReportDigest(ctx, scope, store.NewEncoder(&st.job.Config, st.meta), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if sessions.String() != want.Parts["sessions"] || reports.String() != want.Parts["reports"] {
		t.Errorf("digests: the shards' are %s and %s, the replay's %v", sessions, reports, want.Parts)
	}
	late, err := st.store.CountExceptions(ctx, "payments", st.generation, store.Late)
	if err != nil {
		t.Fatal(err)
	}
	if len(late) > 0 {
		t.Errorf("events were late: %v; the environment's lateness is within the retention", late)
	}
	rejects, err := st.store.CountExceptions(ctx, "payments", st.generation, store.Rejected)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, c := range rejects {
		got[c.Reason] += c.Count
	}
	if fmt.Sprint(got) != fmt.Sprint(want.Rejects) || len(got) == 0 {
		t.Errorf("rejects %v, the replay has %v", got, want.Rejects)
	}
}

func (st *stream) shardName(n int) string {
	return fmt.Sprintf("checkpoints/payments/%d/%d", st.version, n)
}

// runShard runs a shard until ctx is done or, where a number of events is given, until it has had them: then it crashes,
// which lets nothing more be written and leaves no last checkpoint.
func (st *stream) runShard(t *testing.T, ctx context.Context, r *rand.Rand, n, shards int, events int64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var crashed atomic.Bool
	sink := &abruptSink{workers.NewSink(st.store, st.job, st.generation, n), &crashed}
	var had int64
	var end streaming.Status
	err := workers.RunShard(ctx, workers.Part{Client: st.client, Version: st.version, Shard: n, Shards: shards, Archive: st.archive}, streaming.Config{
		Job: st.job, Name: st.shardName(n), Sink: sink, Objects: &abruptObjects{workers.Objects{Store: st.objects}, &crashed},
		FlushEvery:      time.Duration(5+r.IntN(15)) * time.Millisecond,
		CheckpointEvery: time.Duration(20+r.IntN(60)) * time.Millisecond,
		FetchBytes:      1<<10 + r.IntN(8<<10),
		Retryable:       workers.Retryable,
		Progress: func(s streaming.Status) {
			end, had = s, 0
			for _, of := range s.Sources {
				had += of.Events
			}
			if events > 0 && had >= events {
				crashed.Store(true)
				cancel()
			}
		},
	})
	t.Logf("shard %d, epoch %d: checkpoint %d, %d events, %d source records, lag %d: %v", n, end.Epoch, end.Checkpoint, had, end.Records, end.Lag, err)
	if err != nil && (events == 0 || !errors.Is(err, errCrash)) {
		t.Errorf("shard %d: %v", n, err)
	}
}

// awaitEnds waits until the checkpoints of all shards hold all there is of every source partition.
func (st *stream) awaitEnds(t *testing.T, ctx context.Context, shards int) {
	t.Helper()
	log := workers.NewLog(st.client)
	defer log.Close()
	partitions, err := log.Partitions(ctx, st.job)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{}
	for _, p := range partitions {
		if _, want[p.String()], err = log.Bounds(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; n < shards; {
		missing, err := st.missing(ctx, n, want)
		if err != nil {
			t.Fatal(err)
		}
		if len(missing) == 0 {
			n++
			continue
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("shard %d never got to the end of %v", n, missing)
		}
	}
}

// missing lists the source partitions of which a shard's checkpoint does not hold all.
func (st *stream) missing(ctx context.Context, n int, want map[string]int64) (list []string, err error) {
	data, _, err := workers.Objects{Store: st.objects}.Get(ctx, st.shardName(n)+"/manifest.json")
	if errors.Is(err, streaming.ErrNoObject) {
		return []string{"all"}, nil
	}
	if err != nil {
		return nil, err
	}
	var m struct {
		Number     int
		Partitions []struct {
			Topic     string
			Partition int32
			Next      int64
		}
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	for _, p := range m.Partitions {
		if name := fmt.Sprintf("%s/%d", p.Topic, p.Partition); p.Next < want[name] {
			list = append(list, fmt.Sprintf("%s (%d of %d)", name, p.Next, want[name]))
		}
	}
	return list, nil
}

// abruptSink and abruptObjects fail every write once the run has crashed.
type abruptSink struct {
	*workers.Sink
	crashed *atomic.Bool
}

func (c *abruptSink) Write(ctx context.Context, epoch uint64, changes *streaming.Changes) error {
	if c.crashed.Load() {
		return errCrash
	}
	return c.Sink.Write(ctx, epoch, changes)
}

type abruptObjects struct {
	workers.Objects
	crashed *atomic.Bool
}

func (c *abruptObjects) Put(ctx context.Context, key string, data []byte, match string) (string, error) {
	if c.crashed.Load() {
		return "", errCrash
	}
	return c.Objects.Put(ctx, key, data, match)
}

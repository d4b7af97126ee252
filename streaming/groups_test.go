package streaming

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

const gamesSpec = `version: weft/v1
job: payments
shard_by: game
sources:
  orders: {topic: orders, format: json, each: events, where: {s: [paid, delivered, seen]}, time: {field: t, layout: unix_ms}, step: s, keys: {order: o, txn: x}, fields: {game: g, user: u, amount: {path: a, type: int}}}
  wallet: {topic: wallet, format: logfmt, where: {s: [paid, delivered, seen]}, time: {field: t, layout: unix_ms}, step: s, keys: {txn: x}, fields: {game: g, user: u}, dedupe: [x, n]}
session: {gap: 60s, max_span: 5m, retention: 30s, settle: 10s}
watermark: {delay: 5s, idle_after: 20s, max_ahead: 1m}
user: user
scenarios:
  - {name: done, when: 'step("paid").count > 0 && step("delivered").count > 0'}
  - {name: stuck, when: 'step("paid").count > 0 && step("delivered").count == 0', after: {from: step("paid").first, within: 20s}}
reports:
  - {name: funnel, every: 1m, by: [user], measures: {n: count(), stuck: count(stuck), sum: sum(amount)}}
`

func gamesJob(t testing.TB) *operator.Job { return compiled(t, gamesSpec) }

// cluster is a world that several shards share: one log, and a sink and objects for each shard. The groups topic
// is as Kafka would keep it.
type cluster struct {
	*world // the log; at the end, all shards' results
	shards []*world

	groups [][]Raw // by partition
	firsts []int64
	bare   map[Partition][]Raw // in place of what topics holds
	deaf   string              // a source partition that cannot be read now
	held   bool                // the groups topic acknowledges nothing
	repeat bool                // every batch is there twice at once, and again much later
}

func newCluster(t *testing.T, shards int) *cluster {
	c := &cluster{world: newWorld(t), groups: make([][]Raw, shards), firsts: make([]int64, shards)}
	for range shards {
		c.shards = append(c.shards, newWorld(t))
	}
	return c
}

const groupsTopic = "weft.payments.1.groups"

// gamePartitions are of two sources; wallet/1 stays empty.
func gamePartitions() []Partition {
	return []Partition{{0, "orders", 0}, {0, "orders", 1}, {0, "orders", 2}, {1, "wallet", 0}, {1, "wallet", 1}}
}

// member is what one run of a shard holds of the cluster.
type member struct {
	*handle // of the shard's own sink
	c       *cluster
	stalled time.Duration // of a sink that does not answer

	lanes []*testLane
	rand  *rand.Rand
}

func (c *cluster) member(shard int, seed uint64) *member {
	m := &member{handle: &handle{w: c.shards[shard]}, c: c, rand: rand.New(rand.NewPCG(seed, uint64(shard)))}
	for i := range c.groups {
		l := &testLane{m: m, partition: i}
		l.changed.L = &l.mu
		m.lanes = append(m.lanes, l)
	}
	return m
}

// do runs a call on the shared log, with the log's faults.
func (m *member) do(ctx context.Context, call func() error) error {
	m.handle.w.mu.Lock()
	shared := &handle{w: m.c.world, dead: m.handle.dead}
	m.handle.w.mu.Unlock()
	return shared.do(ctx, call)
}

func (m *member) Identity(ctx context.Context, topic string) (id string, err error) {
	err = m.do(ctx, func() error { id = m.c.made[topic]; return nil })
	return id, err
}

func (m *member) Bounds(ctx context.Context, p Partition) (first, end int64, err error) {
	err = m.do(ctx, func() error {
		if p.Topic == groupsTopic {
			first, end = m.c.firsts[p.ID], int64(len(m.c.groups[p.ID]))
			return nil
		}
		p.Source = 0
		first, end = m.c.world.firsts[p], m.c.length(p)
		return nil
	})
	return first, end, err
}

func (m *member) Write(ctx context.Context, epoch uint64, c *Changes) error {
	wait(ctx, m.stalled)
	return m.handle.Write(ctx, epoch, c)
}

// Records reads a source partition or one of the groups topic. It may break off in the middle with an error.
func (m *member) Records(ctx context.Context, p Partition, next int64, maxBytes int, wait time.Duration, yield func(*Raw)) (after, end int64, err error) {
	for deadline := time.Now().Add(wait); ; {
		err = m.do(ctx, func() error {
			if p.Topic == groupsTopic {
				end = int64(len(m.c.groups[p.ID]))
				if next < m.c.firsts[p.ID] {
					return fmt.Errorf("%w: offset %d", ErrOffsetGone, next)
				}
			} else if end = m.c.length(p); m.c.deaf == p.String() {
				return errFault
			}
			size := 0
			for after = next; after < end && size < maxBytes; after++ {
				var r Raw
				if p.Topic == groupsTopic {
					r = m.c.groups[p.ID][after]
				} else if list := m.c.bare[Partition{0, p.Topic, p.ID}]; list != nil {
					r = list[after]
				} else {
					r = raw(p, after, m.c.topics[Partition{0, p.Topic, p.ID}][after])
				}
				r.Offset = after
				size += len(r.Value) + 10
				yield(&r)
			}
			return nil
		})
		if err != nil {
			return next, end, err
		}
		if after > next || !time.Now().Before(deadline) {
			return after, end, nil
		}
		select {
		case <-time.After(wait / 10):
		case <-ctx.Done():
		}
	}
}

// length returns the end of a source partition.
func (c *cluster) length(p Partition) int64 {
	p.Source = 0
	return int64(len(c.topics[p]) + len(c.bare[p]))
}

// raw is a record of a source as the log holds it: with its identity in a header where that is not its place.
func raw(p Partition, offset int64, rec logRecord) Raw {
	r := Raw{Timestamp: rec.record.Timestamp, Value: rec.value, Headers: []Header{{[]byte("trace"), []byte("x")}}}
	if rec.record.Offset != offset || rec.record.Partition != p.ID {
		r.Headers = append(r.Headers, Header{[]byte(event.OriginHeader), event.AppendOrigin(nil, "elsewhere", rec.record.Partition, rec.record.Offset)})
	}
	return r
}

// testLane writes one partition of the groups topic for one run: a batch at a time, each until it is acknowledged. Now and
// then a batch is there twice, or again much later.
type testLane struct {
	m         *member
	partition int
	mu        sync.Mutex
	changed   sync.Cond
	open      []Raw
	busy      bool
	running   bool
	err       error
}

func cloneRaw(r *Raw) Raw {
	c := Raw{Timestamp: r.Timestamp, Value: bytes.Clone(r.Value)}
	for _, h := range r.Headers {
		c.Headers = append(c.Headers, Header{bytes.Clone(h.Key), bytes.Clone(h.Value)})
	}
	return c
}

const laneRecords = 16

func (m *member) Add(ctx context.Context, partition int32, r *Raw) error {
	l := m.lanes[partition]
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.wait(ctx, func() bool { return len(l.open) < laneRecords }); err != nil {
		return err
	}
	l.open = append(l.open, cloneRaw(r))
	if !l.running {
		l.running = true
		go l.run()
	}
	return nil
}

func (m *member) Flush(ctx context.Context) error {
	for _, l := range m.lanes {
		l.mu.Lock()
		err := l.wait(ctx, func() bool { return len(l.open) == 0 && !l.busy })
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *testLane) wait(ctx context.Context, ready func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})
	defer stop()
	for l.err == nil && ctx.Err() == nil && !ready() {
		l.changed.Wait()
	}
	return errors.Join(l.err, ctx.Err())
}

// run ends when there is nothing more to write.
func (l *testLane) run() {
	for {
		l.mu.Lock()
		batch := l.open
		l.open, l.busy, l.running = nil, len(batch) > 0, len(batch) > 0
		l.changed.Broadcast()
		l.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for {
			time.Sleep(l.dice(50))
			err := l.m.do(context.Background(), func() error {
				if l.m.c.held {
					return errFault
				}
				l.m.c.groups[l.partition] = append(l.m.c.groups[l.partition], batch...)
				return nil
			})
			if errors.Is(err, errDead) {
				l.mu.Lock()
				l.err = errDead
				l.changed.Broadcast()
				l.mu.Unlock()
				return
			}
			if err == nil {
				break
			}
		}
		if l.m.c.repeat {
			l.again(batch)
		}
		if l.m.c.repeat || l.m.c.faults != nil && l.dice(30) == 0 { // a request of an earlier attempt that was on its way all the time
			go func() {
				time.Sleep(100 * l.dice(50))
				l.again(batch)
			}()
		}
	}
}

// groupOf tells whether a shard reads a source partition.
func (c *cluster) groupOf(p Partition, shard int) bool {
	g := Groups{Shard: shard, Shards: len(c.shards)}
	return g.repartitions(p)
}

func (l *testLane) again(batch []Raw) {
	l.m.c.mu.Lock()
	defer l.m.c.mu.Unlock()
	l.m.c.groups[l.partition] = append(l.m.c.groups[l.partition], batch...)
}

// dice returns 0 to n-1 ms.
func (l *testLane) dice(n int) time.Duration {
	l.m.c.mu.Lock()
	defer l.m.c.mu.Unlock()
	return time.Duration(l.m.rand.IntN(n)) * time.Millisecond
}

func (c *cluster) config(m *member, job *operator.Job, shard int, partitions []Partition) Config {
	return Config{
		Job: job, Name: fmt.Sprintf("checkpoints/payments/1/%d", shard), Partitions: partitions, Log: m, Sink: m, Objects: m,
		Groups:     &Groups{Shard: shard, Shards: len(c.groups), Topic: groupsTopic, Log: m, Out: m, SaveEvery: 3 * time.Second},
		FlushEvery: 50 * time.Millisecond, CheckpointEvery: 2 * time.Second, FetchBytes: 400, FetchWait: 100 * time.Millisecond,
		Retryable: func(err error) bool { return errors.Is(err, errFault) },
	}
}

// produceGames plays records into the log over virtual time: some hold events of several games, some are filtered out,
// broken, without a game, or repeated under the identity they had.
func (c *cluster) produceGames(r *rand.Rand, partitions []Partition, n int, over time.Duration) {
	start := time.Now()
	steps := []string{"paid", "delivered", "seen", "noise"}
	var sent []logRecord
	var sentTo []Partition
	for range n {
		time.Sleep(over / time.Duration(n))
		p := partitions[r.IntN(len(partitions))]
		if p.Topic == "wallet" && p.ID == 1 || p.ID == 2 && time.Since(start) > over/2 {
			continue // one partition stays empty, one falls silent
		}
		source := p.Source
		p.Source = 0
		now := event.Micros(time.Now().UnixMicro())
		rec := logRecord{record: event.Record{Partition: p.ID, Timestamp: now}}
		if len(sent) > 0 && r.IntN(12) == 0 {
			i := r.IntN(len(sent))
			p, rec = sentTo[i], sent[i]
			rec.record.Timestamp = now
		} else {
			var events []string
			for range 1 + r.IntN(4) {
				at := time.Now().Add(-time.Duration(r.IntN(8000)) * time.Millisecond)
				switch r.IntN(40) {
				case 0:
					at = at.Add(-time.Duration(r.IntN(300)) * time.Second)
				case 1:
					at = at.Add(80 * 365 * 24 * time.Hour)
				}
				key := int(time.Since(start)/(20*time.Second))*5 + r.IntN(8)
				game := fmt.Sprintf("g%d", r.IntN(9))
				step, user := steps[r.IntN(4)], r.IntN(3)
				if source == 0 {
					one := fmt.Sprintf(`"t":%d,"s":%q,"x":"x%d","u":"u%d","o":"o%d","a":%d`, at.UnixMilli(), step, key, user, key+r.IntN(3), r.IntN(500))
					if r.IntN(60) > 0 { // without a game the whole record is rejected
						one += fmt.Sprintf(`,"g":%q`, game)
					}
					events = append(events, "{"+one+"}")
				} else {
					events = []string{fmt.Sprintf("t=%d s=%s x=x%d u=u%d n=%d g=%s", at.UnixMilli(), step, key, user, r.IntN(3), game)}
				}
			}
			value := events[0]
			if source == 0 {
				value = `{"events":[` + strings.Join(events, ",") + "]}"
			}
			if r.IntN(25) == 0 {
				value = "s=paid broken=\""
			}
			rec.value = []byte(value)
			c.mu.Lock()
			rec.record.Offset = int64(len(c.topics[p]))
			c.mu.Unlock()
			sent, sentTo = append(sent, rec), append(sentTo, p)
		}
		c.mu.Lock()
		c.topics[p] = append(c.topics[p], rec)
		c.mu.Unlock()
	}
}

// gather puts the shards' results together: report cells add up, sessions and exceptions are of one shard each.
func (c *cluster) gather() {
	c.t.Helper()
	for i, one := range c.shards {
		for id, r := range one.rows {
			if was, ok := c.rows[id]; ok && !r.gone && !was.gone {
				c.t.Fatalf("session %s is of two shards, one of them %d", id, i)
			}
			if !r.gone || c.rows[id].epoch == 0 {
				c.rows[id] = r
			}
		}
		for k, cell := range one.cells {
			sum := c.cells[k]
			cell.cell = cloneCell(cell.cell)
			for j := range sum.cell.Measures {
				cell.cell.Measures[j] += sum.cell.Measures[j]
			}
			cell.cell.Sessions += sum.cell.Sessions
			c.cells[k] = cell
		}
		for k, l := range one.late {
			c.late[k] = l
		}
		for k, x := range one.bad {
			if _, ok := c.bad[k]; ok {
				c.t.Fatalf("reject %s is of two shards", k)
			}
			c.bad[k] = x
		}
	}
}

// expectedRejects lists what a decoder rejects of the whole log.
func (c *cluster) expectedRejects(job *operator.Job, partitions []Partition) map[string]event.Reason {
	d, err := job.NewDecoder()
	if err != nil {
		c.t.Fatal(err)
	}
	list := map[string]event.Reason{}
	for _, p := range partitions {
		var b event.Batch
		for _, rec := range c.topics[Partition{0, p.Topic, p.ID}] {
			rec.record.Source = uint16(p.Source)
			b.Add(rec.record, rec.value)
		}
		d.Decode(&b)
		for _, r := range b.Rejects {
			list[fmt.Sprintf("%d/%d/%d", r.Record.Source, r.Record.Partition, r.Record.Offset)] = r.Reason
		}
	}
	return list
}

// check holds all shards' results against what one core gives that gets all records at once.
func (c *cluster) check(job *operator.Job, partitions []Partition) {
	c.t.Helper()
	c.gather()
	c.compare(job, partitions)
	want := c.expectedRejects(job, partitions)
	for k, reason := range want {
		if x, ok := c.bad[k]; !ok || x.Reason != reason {
			c.t.Errorf("reject %s: got %q, want %q", k, x.Reason, reason)
		}
	}
	if len(c.bad) != len(want) {
		c.t.Errorf("%d rejects, want %d", len(c.bad), len(want))
	}
}

// TestGroupsChaos runs shards that are killed one by one, or paused so that they go on beside their successors, while calls
// fail before or after they took place, and batches come twice and late. The results of all shards together are those of one.
func TestGroupsChaos(t *testing.T) {
	type run struct {
		shards int
		seed   uint64
	}
	runs := []run{{1, 1}, {2, 2}, {3, 3}, {7, 5}, {3, uint64(time.Now().UnixNano())}}
	if *seedFlag != 0 {
		runs = []run{{3, *seedFlag}, {7, *seedFlag}}
	}
	for _, r := range runs {
		t.Run(fmt.Sprintf("shards=%d/seed=%d", r.shards, r.seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { groupsChaos(t, r.shards, r.seed) })
		})
	}
}

func groupsChaos(t *testing.T, shards int, seed uint64) {
	job, partitions := gamesJob(t), gamePartitions()
	c := newCluster(t, shards)
	c.faults, c.until = rand.New(rand.NewPCG(seed, 3)), time.Now().Add(9*time.Minute)
	for i, one := range c.shards {
		one.faults, one.until = rand.New(rand.NewPCG(seed, uint64(100+i))), c.until
	}
	go c.produceGames(rand.New(rand.NewPCG(seed, 4)), partitions, 1500, 8*time.Minute)

	var running sync.WaitGroup
	kills := make([]int, shards)
	for shard := range shards {
		running.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(200+shard)))
			for begin := time.Now(); time.Since(begin) < 10*time.Minute; {
				m := c.member(shard, r.Uint64())
				cfg := c.config(m, job, shard, partitions)
				cfg.FetchBytes = 50 + r.IntN(2000)
				cfg.FlushEvery = time.Duration(10+r.IntN(500)) * time.Millisecond
				cfg.CheckpointEvery = time.Duration(200+r.IntN(8000)) * time.Millisecond
				cfg.Groups.SaveEvery = time.Duration(200+r.IntN(8000)) * time.Millisecond
				cfg.Groups.MarkEvery = time.Duration(20+r.IntN(1000)) * time.Millisecond
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				if r.IntN(4) == 0 {
					m.stalled = time.Duration(r.IntN(20)) * time.Second
				}
				go func() { ended <- Run(ctx, cfg) }()
				time.Sleep(time.Duration(r.IntN(40_000)) * time.Millisecond)
				switch r.IntN(4) {
				case 0: // stopped as asked
					cancel()
					if err := <-ended; err != nil && !errors.Is(err, errFault) && !errors.Is(err, context.Canceled) &&
						!errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrFenced) {
						t.Errorf("shard %d stopped: %v", shard, err)
					}
				case 1: // paused: it goes on beside the run after it
					go func() { <-ended; cancel() }()
				default:
					m.kill()
					kills[shard]++
					<-ended
					cancel()
				}
			}
		})
	}
	running.Wait()
	c.finish(job, partitions)
	t.Logf("kills %v, epochs of shard 0 %d, %d rows, %d late, %d rejects, %d records in the groups topic for %d",
		kills, c.shards[0].epoch, len(c.rows), len(c.late), len(c.bad), c.written(), c.produced())
	if len(c.late) == 0 || len(c.bad) == 0 {
		t.Error("no late events or no rejects: the test does not test them")
	}
}

func (c *cluster) written() (n int) {
	for _, p := range c.groups {
		n += len(p)
	}
	return n
}

func (c *cluster) produced() (n int) {
	for _, p := range c.topics {
		n += len(p)
	}
	return n
}

// finish lets all shards take in the rest, without faults, and checks the result. It returns their last status.
func (c *cluster) finish(job *operator.Job, partitions []Partition) []Status {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	last := make([]Status, len(c.shards))
	var running sync.WaitGroup
	for shard := range c.shards {
		running.Go(func() {
			cfg := c.config(c.member(shard, 1), job, shard, partitions)
			cfg.Progress = func(s Status) { last[shard] = s }
			if err := Run(ctx, cfg); err != nil {
				c.t.Errorf("the last run of shard %d: %v", shard, err)
			}
		})
	}
	time.Sleep(2 * time.Minute)
	cancel()
	running.Wait()
	time.Sleep(10 * time.Second) // for batches that are still on their way
	synctest.Wait()
	c.check(job, partitions)
	for shard, one := range c.shards {
		saved := checkpoints{objects: &handle{w: one}, prefix: fmt.Sprintf("checkpoints/payments/1/%d/", shard)}
		if _, err := saved.read(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
		for _, p := range partitions {
			if state := saved.current.partition(p); state.Next != c.length(p) {
				c.t.Errorf("the last checkpoint of shard %d is at offset %d of %s, which ends at %d", shard, state.Next, p, c.length(p))
			}
		}
	}
	return last
}

// TestGroupsCounts compares what the shards count with the log.
func TestGroupsCounts(t *testing.T) {
	for _, test := range []struct {
		shards int
		repeat bool
	}{{1, false}, {4, false}, {4, true}} {
		synctest.Test(t, func(t *testing.T) {
			job, partitions := gamesJob(t), gamePartitions()
			c := newCluster(t, test.shards)
			c.repeat = test.repeat
			c.produceGames(rand.New(rand.NewPCG(1, 4)), partitions, 1200, time.Minute)
			last := c.finish(job, partitions)

			d, err := job.NewDecoder()
			if err != nil {
				t.Fatal(err)
			}
			want := make([]SourceStatus, 2)
			for _, p := range partitions {
				var b event.Batch
				for _, rec := range c.topics[Partition{0, p.Topic, p.ID}] {
					rec.record.Source = uint16(p.Source)
					b.Add(rec.record, rec.value)
				}
				of := &want[p.Source]
				of.Bytes += int64(len(b.Data))
				d.Decode(&b)
				of.Records += int64(len(b.Records))
				of.Events += int64(len(b.Events))
				of.Skipped += b.Skipped
				of.Rejects = map[event.Reason]int64{"": of.Rejects[""] + int64(len(b.Rejects))}
			}
			got := make([]SourceStatus, 2)
			seen := map[string]int{}
			for _, s := range last {
				if s.Lag != 0 {
					t.Errorf("lag %d at the end", s.Lag)
				}
				for i, of := range s.Sources {
					got[i].Records += of.Records
					got[i].Bytes += of.Bytes
					got[i].Events += of.Events
					got[i].Skipped += of.Skipped
					if got[i].Rejects == nil {
						got[i].Rejects = map[event.Reason]int64{}
					}
					for _, n := range of.Rejects {
						got[i].Rejects[""] += n
					}
				}
				for _, p := range s.Partitions {
					seen[p.String()]++
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%+v: counts\n got %+v\nwant %+v", test, got, want)
			}
			for _, p := range partitions {
				if seen[p.String()] != 1 {
					t.Errorf("partition %s is of %d shards", p, seen[p.String()])
				}
			}
			if want[0].Skipped == 0 || want[0].Rejects[""] == 0 {
				t.Error("nothing is skipped or rejected: the test does not test that")
			}
		})
	}
}

func TestGroupsBounds(t *testing.T) {
	for shards := 1; shards <= event.KeyGroups; shards++ {
		next := uint16(0)
		var owner [event.KeyGroups]uint8
		for n := range shards {
			g := Groups{Shard: n, Shards: shards}
			owner = g.owners()
			first, end := g.bounds()
			if first != next || end <= first {
				t.Fatalf("shard %d of %d has groups %d to %d, want them from %d on", n, shards, first, end, next)
			}
			for group := first; group < end; group++ {
				if int(owner[group]) != n {
					t.Fatalf("group %d is of shard %d, want %d of %d", group, owner[group], n, shards)
				}
			}
			next = end
		}
		if next != event.KeyGroups {
			t.Fatalf("%d shards: groups from %d on are of none", shards, next)
		}
	}
}

func TestShardSet(t *testing.T) {
	var s shardSet
	want := []int32{0, 1, 63, 64, 200, 255}
	for _, n := range want {
		s.add(uint8(n))
	}
	var got []int32
	stop := errors.New("stop")
	err := s.each(func(n int32) error {
		got = append(got, n)
		if n == 200 {
			return stop
		}
		return nil
	})
	if err != stop || !slices.Equal(got, want[:5]) {
		t.Errorf("got %v, %v; want %v", got, err, want[:5])
	}
}

func TestGroupHeaders(t *testing.T) {
	p := Partition{3, "pay.orders", 7}
	for _, m := range []groupMark{{0, event.MinTime, 3}, {1 << 40, 1_700_000_000_000_000, 1}, {5, 0, 2}} {
		text := appendMark(nil, p, m)
		topic, id, got, ok := parseMark(text)
		if !ok || string(topic) != p.Topic || id != p.ID || got != m {
			t.Errorf("%s reads as %s/%d %+v, %v", text, topic, id, got, ok)
		}
	}
	for _, timestamp := range []event.Micros{event.MinTime, 0, -5, 1_700_000_000_000_000} {
		text := appendFrom(nil, p, 42, timestamp)
		topic, id, offset, got, ok := parseFrom(text)
		if !ok || string(topic) != p.Topic || id != p.ID || offset != 42 || got != timestamp {
			t.Errorf("%s reads as %s/%d/%d %d, %v", text, topic, id, offset, got, ok)
		}
	}
	for _, text := range []string{"", "/", "a/1/2", "a/1/2/x", "a/-1/2/3", "a/1/2/3/4", "/1/2/3", "a/1/2/", "a/99999999999/2/3"} {
		if _, _, _, _, ok := parseFrom([]byte(text)); ok {
			t.Errorf("%q passes as a place", text)
		}
	}
	for _, text := range []string{"", "a/1/2/3", "a/1/2/3/unseen", "a/1/2/3/4", "a/1/2//active", "a/1/-2/3/active", "b/a/1/2/3/active"} {
		if _, _, _, ok := parseMark([]byte(text)); ok {
			t.Errorf("%q passes as a mark", text)
		}
	}
}

func FuzzGroupHeaders(f *testing.F) {
	f.Add([]byte("pay.orders/7/42/1700000000000000"))
	f.Add([]byte("pay.orders/7/42/-/empty"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if topic, id, offset, timestamp, ok := parseFrom(text); ok {
			again := appendFrom(nil, Partition{0, string(topic), id}, offset, timestamp)
			topic2, id2, offset2, timestamp2, ok2 := parseFrom(again)
			if !ok2 || string(topic2) != string(topic) || id2 != id || offset2 != offset || timestamp2 != timestamp {
				t.Errorf("%q reads as %s", text, again)
			}
		}
		if topic, id, m, ok := parseMark(text); ok {
			again := appendMark(nil, Partition{0, string(topic), id}, m)
			if _, _, m2, ok2 := parseMark(again); !ok2 || m2 != m {
				t.Errorf("%q reads as %s", text, again)
			}
		}
	})
}

// TestKeepGroups drops events of a batch as another shard would keep them: values stay with their events.
func TestKeepGroups(t *testing.T) {
	var b event.Batch
	add := func(group uint16, values ...uint64) {
		for _, v := range values {
			b.Values = append(b.Values, event.Value{Bits: v})
		}
		b.Events = append(b.Events, event.Event{Group: group, Index: uint16(len(b.Events)), Vals: uint32(len(b.Values))})
	}
	add(200, 1, 2) // of a record before: not looked at
	add(3, 3)
	add(5, 4, 5, 6)
	add(4)
	add(9, 7)
	add(4, 8, 9)
	keepGroups(&b, 1, 4, 6)
	text := ""
	for i, e := range b.Events {
		text += fmt.Sprintf("%d:", e.Index)
		for _, v := range b.ValuesOf(i) {
			text += fmt.Sprint(v.Bits, ",")
		}
		text += " "
	}
	if want := "0:1,2, 2:4,5,6, 3: 5:8,9, "; text != want || len(b.Values) != 7 {
		t.Errorf("got %s with %d values, want %s", text, len(b.Values), want)
	}
}

var (
	_ Log     = (*member)(nil)
	_ RawLog  = (*member)(nil)
	_ Outlet  = (*member)(nil)
	_ Sink    = (*member)(nil)
	_ Objects = (*member)(nil)
)

package streaming

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftdata/weft/event"
)

// groupsStage is some shards over a cluster that a test writes to by hand, in virtual time.
type groupsStage struct {
	t      *testing.T
	c      *cluster
	parts  []Partition
	status []Status
	cancel []context.CancelFunc
	ended  []chan error
}

func newGroupsStage(t *testing.T, shards int) *groupsStage {
	return &groupsStage{
		t: t, c: newCluster(t, shards), parts: gamePartitions(), status: make([]Status, shards),
		cancel: make([]context.CancelFunc, shards), ended: make([]chan error, shards),
	}
}

// run starts a shard.
func (s *groupsStage) run(shard int, change ...func(*Config)) {
	cfg := s.c.config(s.c.member(shard, 1), gamesJob(s.t), shard, s.parts)
	cfg.Progress = func(st Status) { s.status[shard] = st }
	for _, f := range change {
		f(&cfg)
	}
	var ctx context.Context
	ctx, s.cancel[shard] = context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	s.ended[shard] = ended
	go func() { ended <- Run(ctx, cfg) }()
}

func (s *groupsStage) runAll() {
	for shard := range s.c.shards {
		s.run(shard)
	}
}

// stop ends a shard as asked, and expects that to work.
func (s *groupsStage) stop(shard int) {
	s.t.Helper()
	s.cancel[shard]()
	if err := <-s.ended[shard]; err != nil {
		s.t.Errorf("stop shard %d: %v", shard, err)
	}
}

func (s *groupsStage) stopAll() {
	s.t.Helper()
	for shard := range s.c.shards {
		s.stop(shard)
	}
}

// put writes a record of the source wallet or orders now, with an event time so far from now.
func (s *groupsStage) put(p Partition, after time.Duration, game string) {
	now := time.Now()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	at := Partition{0, p.Topic, p.ID}
	value := fmt.Sprintf("t=%d s=paid x=%d u=a n=1 g=%s", now.Add(after).UnixMilli(), len(s.c.topics[at]), game)
	if p.Topic == "orders" {
		value = fmt.Sprintf(`{"events":[{"t":%d,"s":"paid","x":"%d","g":%q}]}`, now.Add(after).UnixMilli(), len(s.c.topics[at]), game)
	}
	rec := event.Record{Offset: int64(len(s.c.topics[at])), Partition: p.ID, Timestamp: event.Micros(now.UnixMicro())}
	s.c.topics[at] = append(s.c.topics[at], logRecord{rec, []byte(value)})
}

// expect waits, and then expects the watermark of all shards so far behind now; 0 means that there is none.
func (s *groupsStage) expect(wait, behind time.Duration, what string) {
	s.t.Helper()
	time.Sleep(wait)
	synctest.Wait()
	for shard := range s.status {
		got := s.status[shard].Watermark
		want := event.Micros(time.Now().Add(-behind).UnixMicro())
		if behind == 0 {
			want = event.MinTime
		}
		// Times of records are whole milliseconds.
		if d := got - want; got != want && (behind == 0 || d > 1000 || d < -1000) {
			s.t.Errorf("%s: the watermark of shard %d is %v behind now, want %v", what, shard, time.Since(time.UnixMicro(int64(got))), behind)
		}
	}
}

// TestGroupsWatermark writes events of one game, which are of one shard: the watermark of all follows the sources.
func TestGroupsWatermark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 3)
		live := s.parts[:4] // wallet/1 stays empty
		for _, p := range live {
			s.put(p, -time.Hour, "g1")
		}
		for _, p := range live[1:] {
			s.put(p, 0, "g1")
		}
		s.run(0)
		s.run(1)
		time.Sleep(5 * time.Second)
		s.run(2)
		s.expect(time.Second, time.Hour+6*time.Second+5*time.Second, "one source partition is an hour behind, less the delay of 5 s")
		s.put(live[0], 0, "g1")
		s.expect(time.Second, 7*time.Second+5*time.Second, "the other three are from 7 s ago")

		s.put(live[1], 80*365*24*time.Hour, "g1")
		for _, p := range []int{0, 2, 3} {
			s.put(live[p], 0, "g1")
		}
		s.expect(time.Second, 6*time.Second, "a record from 2099 is no further ahead than its broker's time and 1 min")

		for range 5 { // 1, 2 and 3 fall silent; idle_after is 20 s
			time.Sleep(5 * time.Second)
			s.put(live[0], 0, "g1")
		}
		s.expect(time.Second, 6*time.Second, "a silent source partition does not hold the watermark for longer than idle_after")
		last := s.status[0].Watermark
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		for shard, st := range s.status {
			if st.Watermark != last {
				t.Errorf("all source partitions are silent: the watermark of shard %d moved by %d", shard, st.Watermark-last)
			}
		}
		before := s.c.written()
		time.Sleep(10 * time.Minute)
		if n, most := s.c.written()-before, 3*3*int(10*time.Minute/idleAgain+1); n > most { // three shards remind three of what is idle
			t.Errorf("nothing happens, and %d records were written to the groups topic, want at most %d", n, most)
		}

		// A shard that is down holds the watermark of the others where its source partitions are.
		for _, p := range live {
			s.put(p, 0, "g1")
		}
		s.expect(time.Second, 6*time.Second, "all go on")
		owner := (live[0].Source + int(live[0].ID)) % 3
		s.stop(owner)
		time.Sleep(time.Minute) // so long that nothing comes in the groups topic either
		for _, p := range live {
			s.put(p, 0, "g1")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for shard, st := range s.status {
			if held := event.Micros(time.Now().Add(-67 * time.Second).UnixMicro()); shard != owner && (st.Watermark > held+1000 || st.Watermark < held-1000) {
				t.Errorf("nobody reads %s, and the watermark of shard %d is %v behind", live[0], shard, time.Since(time.UnixMicro(int64(st.Watermark))))
			}
		}
		s.run(owner)
		s.expect(time.Second, 7*time.Second, "it is read again")
		s.stopAll()
		s.c.check(gamesJob(t), s.parts)
	})
}

// TestGroupsIdleAgain lets a source partition that is idle get records while the shard that reads it is down: the others
// do not move the watermark past them.
func TestGroupsIdleAgain(t *testing.T) {
	for _, pause := range []time.Duration{0, time.Hour} { // only shard 0 is down, or both are and shard 1 comes back first
		synctest.Test(t, func(t *testing.T) {
			s := newGroupsStage(t, 2)
			live := s.parts[:4]
			for _, p := range live {
				s.put(p, 0, "g1")
			}
			s.runAll()
			for range 6 {
				time.Sleep(5 * time.Second)
				s.put(live[1], 0, "g1")
			}
			s.expect(time.Second, 6*time.Second, "one is active")
			if !s.c.groupOf(live[0], 0) || !s.c.groupOf(live[1], 1) {
				t.Fatal("shard 0 should read the silent partition and shard 1 the other")
			}
			s.stop(0)
			if pause > 0 {
				s.stop(1)
				time.Sleep(pause)
				s.run(1)
			}
			time.Sleep(idleFor)
			for range 10 {
				time.Sleep(10 * time.Second)
				for game := range 8 { // of both shards
					s.put(live[0], 0, fmt.Sprintf("g%d", game))
					s.put(live[1], 0, fmt.Sprintf("g%d", game))
				}
			}
			s.c.mu.Lock()
			s.c.deaf = live[0].String()
			s.c.mu.Unlock()
			s.run(0) // it runs, but cannot read yet
			time.Sleep(20 * time.Second)
			s.put(live[1], 0, "g1")
			time.Sleep(5 * time.Second)
			s.c.mu.Lock()
			s.c.deaf = ""
			s.c.mu.Unlock()
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := len(s.c.shards[0].late) + len(s.c.shards[1].late); n > 0 {
				t.Errorf("pause %v: %d events are late: the watermark went on while their partition was not read", pause, n)
			}
			s.stopAll()
			s.c.check(gamesJob(t), s.parts)
		})
	}
}

// TestGroupsSilent lets nothing come in the groups topic for long: that says nothing of the sources.
func TestGroupsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 1)
		for i, p := range s.parts {
			s.put(p, time.Duration(i-len(s.parts))*time.Second, "g1")
		}
		s.runAll()
		s.expect(time.Second, 11*time.Second, "the first source partition is 6 s behind")
		s.c.mu.Lock()
		s.c.held = true
		s.c.mu.Unlock()
		for _, p := range s.parts {
			s.put(p, 0, "g1")
		}
		s.expect(idleFor+time.Minute, idleFor+time.Minute+11*time.Second, "what was written does not arrive")
		s.c.mu.Lock()
		s.c.held = false
		s.c.mu.Unlock()
		s.expect(2*time.Second, idleFor+time.Minute+7*time.Second, "it arrives, and is not idle again yet")
		s.stopAll()
	})
}

// TestGroupsStaleMark lets a mark come late that says that a source partition is idle, of which records came since.
func TestGroupsStaleMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 1)
		for _, p := range s.parts {
			s.put(p, 0, "g1")
		}
		s.put(s.parts[0], -time.Second, "g1")
		s.runAll()
		time.Sleep(2 * time.Second)
		for _, p := range s.parts[1:] {
			s.put(p, 0, "g1")
		}
		s.expect(time.Second, 8*time.Second, "the first source partition is 3 s behind")
		for _, position := range []int64{0, 1} {
			mark := appendMark(nil, s.parts[0], groupMark{position, event.Micros(time.Now().UnixMicro()), markIdle})
			s.c.mu.Lock()
			s.c.groups[0] = append(s.c.groups[0], Raw{Headers: []Header{{[]byte(MarkHeader), mark}}})
			s.c.mu.Unlock()
		}
		s.expect(2*time.Second, 10*time.Second, "what the mark says was true before the last record")
		s.stopAll()
	})
}

// TestGroupsEmpty lets one source partition have records and the others none.
func TestGroupsEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 2)
		s.put(s.parts[0], 0, "g1")
		s.runAll()
		s.expect(time.Second, 6*time.Second, "source partitions that are empty hold nothing back")
		s.stopAll()
	})
}

// TestGroupsGoOn restarts a shard that was stopped as asked: it writes nothing again.
func TestGroupsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 2)
		for i := range 40 {
			for _, p := range s.parts {
				s.put(p, 0, fmt.Sprintf("g%d", i))
			}
		}
		records := func() (n int) {
			for _, p := range s.c.groups {
				for _, r := range p {
					if r.header(FromHeader) != nil {
						n++
					}
				}
			}
			return n
		}
		s.runAll()
		time.Sleep(time.Minute)
		s.stopAll()
		if n := records(); n != 200 {
			t.Errorf("%d records in the groups topic, want 200", n)
		}
		for i := range s.c.groups { // what an earlier run had on its way
			s.c.groups[i] = append(s.c.groups[i], s.c.groups[i]...)
		}
		s.runAll()
		time.Sleep(time.Minute)
		s.stopAll()
		if n := records(); n != 400 {
			t.Errorf("%d records in the groups topic after a restart, want no more than 400", n)
		}
		for shard, st := range s.status {
			for i, of := range st.Sources {
				if of.Events != 0 || of.Records != 0 {
					t.Errorf("shard %d took %d events of source %d again, from %d records", shard, of.Events, i, of.Records)
				}
			}
		}
		s.c.check(gamesJob(t), s.parts)
	})
}

// TestGroupsOvertaken lets another run take over the repartitioning.
func TestGroupsOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 2)
		s.run(0)
		time.Sleep(time.Second)
		saved := checkpoints{objects: &handle{w: s.c.shards[0]}, prefix: "checkpoints/payments/1/0/sources/"}
		if found, err := saved.read(t.Context()); !found || err != nil {
			t.Fatalf("found %v, %v", found, err)
		}
		m := saved.current
		m.Epoch, m.Nonce = m.Epoch+1, newNonce()
		if err := saved.put(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if err := <-s.ended[0]; !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "repartition: ") {
			t.Errorf("ended with %v, want ErrFenced", err)
		}
		s.run(0) // with epoch 2, as the other has
		time.Sleep(10 * time.Second)
		s.stop(0)
		m.Epoch = 9
		if _, err := saved.read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := saved.put(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		s.run(0)
		if err := <-s.ended[0]; !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "start to repartition: ") {
			t.Errorf("a run that was slow to start ended with %v, want ErrFenced", err)
		}
		s.cancel[0]()
	})
}

// TestGroupsUnacknowledged lets the groups topic acknowledge nothing: no offset is saved, not at the end either.
func TestGroupsUnacknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 1)
		s.c.mu.Lock()
		s.c.held = true
		s.c.mu.Unlock()
		for _, p := range s.parts {
			s.put(p, 0, "g1")
		}
		next := func() (list []int64) {
			saved := checkpoints{objects: &handle{w: s.c.shards[0]}, prefix: "checkpoints/payments/1/0/sources/"}
			if _, err := saved.read(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, p := range s.parts {
				list = append(list, saved.current.partition(p).Next)
			}
			return list
		}
		s.runAll()
		time.Sleep(time.Minute)
		if got := fmt.Sprint(next()); got != "[0 0 0 0 0]" {
			t.Errorf("offsets %s are saved, and nothing is acknowledged", got)
		}
		s.stopAll()
		if got := fmt.Sprint(next()); got != "[0 0 0 0 0]" {
			t.Errorf("offsets %s are saved at the end, and nothing is acknowledged", got)
		}
		s.c.mu.Lock()
		s.c.held = false
		s.c.mu.Unlock()
		s.runAll()
		time.Sleep(time.Minute)
		if got := fmt.Sprint(next()); got != "[1 1 1 1 1]" {
			t.Errorf("offsets %s are saved, and all is acknowledged", got)
		}
		s.stopAll()
		s.c.check(gamesJob(t), s.parts)
	})
}

// TestGroupsAddedPartition adds a partition to a source. A shard that does not know it ends, and takes it in afterwards.
func TestGroupsAddedPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 2)
		all := s.parts
		s.parts = []Partition{all[0], all[1], all[3], all[4]} // without orders/2, which shard 0 reads
		s.put(all[0], 0, "g1")
		s.runAll()
		time.Sleep(time.Second)
		s.stop(0)
		s.parts = all
		for i := range 20 {
			s.put(all[2], 0, fmt.Sprintf("g%d", i))
		}
		s.run(0)
		if err := <-s.ended[1]; err == nil || !strings.Contains(err.Error(), "orders/2 is not one that the run knows: partitions were added") {
			t.Errorf("shard 1 ended with %v", err)
		}
		s.run(1)
		time.Sleep(time.Minute)
		s.stopAll()
		s.c.check(gamesJob(t), s.parts)
	})
}

func TestGroupsStartErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(s *groupsStage) func(*Config)
		want   error
		text   string
	}{
		{"groups topic made again", func(s *groupsStage) func(*Config) { s.c.made[groupsTopic] = "second"; return nil },
			ErrRecreated, `what was written to it is lost`},
		{"groups topic lost records", func(s *groupsStage) func(*Config) { s.c.firsts[0] = 1000; return nil },
			ErrOffsetGone, "weft.payments.1.groups/0: records that were not read yet are gone"},
		{"groups topic is shorter", func(s *groupsStage) func(*Config) { s.c.groups[0] = nil; return nil },
			ErrRecreated, "the partition ends at 0"},
		{"source made again", func(s *groupsStage) func(*Config) { s.c.made["orders"] = "second"; return nil },
			ErrRecreated, `start to repartition: orders/0: the topic was deleted and made again (it was "" and is "second")`},
		{"source lost records", func(s *groupsStage) func(*Config) { s.c.world.firsts[Partition{0, "orders", 0}] = 5; return nil },
			ErrOffsetGone, "start to repartition: orders/0: records that were not read yet are gone: offsets 3 to 4"},
		{"other number of shards", func(s *groupsStage) func(*Config) { return func(c *Config) { c.Groups.Shards = 1 } },
			nil, "the checkpoint is of shard 0 of 2"},
		{"only shard", func(s *groupsStage) func(*Config) { return func(c *Config) { c.Groups = nil } },
			nil, "the checkpoint is of shard 0 of 2 and the run is the only shard"},
		{"partition gone", func(s *groupsStage) func(*Config) { return func(c *Config) { c.Partitions = c.Partitions[1:] } },
			nil, "partition orders/0 is in the checkpoint and not in the job"},
		{"checkpoint of the only shard", func(s *groupsStage) func(*Config) {
			return func(c *Config) {
				c.Name = "checkpoints/payments/2/0"
				m := manifest{Version: manifestVersion, Shard: c.Name}
				cp := checkpoints{objects: c.Objects, prefix: c.Name + "/"}
				if err := cp.put(s.t.Context(), m); err != nil {
					s.t.Fatal(err)
				}
			}
		}, nil, "the checkpoint is of the only shard of the job"},
		{"first run, and records are gone", func(s *groupsStage) func(*Config) {
			s.c.firsts[0] = 1
			return func(c *Config) { c.Name = "checkpoints/payments/2/0" }
		}, ErrOffsetGone, "offsets 0 to 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newGroupsStage(t, 2)
				for range 3 {
					for _, p := range s.parts {
						s.put(p, 0, "g1")
					}
				}
				s.runAll()
				time.Sleep(time.Second)
				s.stopAll()
				for range 5 {
					for _, p := range s.parts {
						s.put(p, 0, "g1")
					}
				}
				change := test.change(s)
				if change == nil {
					change = func(*Config) {}
				}
				s.run(0, change)
				err := <-s.ended[0]
				s.cancel[0]()
				if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
					t.Errorf("error %v; want one with %q", err, test.text)
				}
			})
		})
	}
}

// TestGroupsStrangers puts what is not of the shards into the groups topic.
func TestGroupsStrangers(t *testing.T) {
	for _, test := range []struct {
		raw  Raw
		want string
	}{
		{Raw{Value: []byte("hello")}, `the header weft-from is ""`},
		{Raw{Headers: []Header{{[]byte(FromHeader), []byte("orders/0")}}}, `the header weft-from is "orders/0"`},
		{Raw{Headers: []Header{{[]byte(MarkHeader), []byte("orders/0/1/x/idle")}}}, `the header weft-mark is "orders/0/1/x/idle"`},
		{Raw{Headers: []Header{{[]byte(FromHeader), []byte("orders/9/0/-")}}}, "source partition orders/9 is not one that the run knows"},
		{Raw{Headers: []Header{{[]byte(FromHeader), []byte("orders/0/0/-")}, {[]byte(SizeHeader), []byte("big")}}}, "the header weft-size"},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newGroupsStage(t, 1)
			s.c.groups[0] = append(s.c.groups[0], test.raw)
			s.run(0)
			if err := <-s.ended[0]; err == nil || !strings.Contains(err.Error(), "record 0: ") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
			s.cancel[0]()
		})
	}
}

// TestGroupsRejects passes on records that are rejected before they are decoded: their reasons and identities stay.
func TestGroupsRejects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newGroupsStage(t, 2)
		at := Partition{0, "orders", 0}
		now := event.Micros(time.Now().UnixMicro())
		s.c.bare = map[Partition][]Raw{at: {
			{Timestamp: now, Value: []byte("a"), Headers: []Header{{[]byte(event.OriginHeader), []byte("nonsense")}}},
			{Timestamp: now, Value: []byte("b"), Headers: []Header{{[]byte(event.OriginHeader), nil}}},
			{Timestamp: now, Value: make([]byte, event.RecordBytesMax+1)},
			{Timestamp: now, Value: nil},
			{Timestamp: event.MinTime, Value: []byte{}},
			{Timestamp: now, Value: []byte("c"), Headers: []Header{{[]byte(event.OriginHeader), []byte("x/7/9")}}},
		}}
		s.runAll()
		time.Sleep(5 * time.Second)
		s.stopAll()
		s.c.gather()
		want := map[string]string{
			"0/0/0": `syntax header weft-origin is "nonsense"; expected topic/partition/offset`,
			"0/0/1": `syntax header weft-origin is ""; expected topic/partition/offset`,
			"0/0/2": "too_long the value has 16777217 bytes; at most 16777216 are allowed",
			"0/0/4": "syntax",
			"0/7/9": "syntax",
		}
		sizes, times := map[string]int{"0/0/2": 1024, "0/0/4": 0}, map[string]event.Micros{"0/0/4": event.MinTime}
		for id, x := range s.c.bad {
			size, time := 1, now
			if n, ok := sizes[id]; ok {
				size = n
			}
			if at, ok := times[id]; ok {
				time = at
			}
			if got := fmt.Sprint(x.Reason, " ", x.Detail); want[id] == "" || !strings.HasPrefix(got, want[id]) || len(x.Raw) != size || x.Time != time {
				t.Errorf("reject %s: %s, %d bytes, time %d; want %s, %d bytes, time %d", id, got, len(x.Raw), x.Time, want[id], size, time)
			}
		}
		if len(s.c.bad) != len(want) {
			t.Errorf("%d rejects, want %d", len(s.c.bad), len(want))
		}
	})
}

package streaming

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftdata/weft/event"
)

const forever = 10 * time.Minute

// hang makes the sink take so long for every write, from now on.
func (s *stage) hang(d time.Duration) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.slow = func() time.Duration { return d }
}

// marks returns how many writes were of a watermark alone, and mark the watermark of the last write.
func (s *stage) marks() int {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.marks
}

func (s *stage) mark() event.Micros {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.mark
}

// TestManifestWaits kills a run that has taken its state, and uploaded it, while the sink has not got the changes that the
// state says were handed out. Were the manifest there already, they would be lost.
func TestManifestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for _, p := range s.parts {
			s.put(p, 0, "x=1 u=a")
		}
		s.run()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		saved := s.told().Saved.Count
		s.hang(30 * time.Second)
		s.put(s.parts[0], 0, "x=2 u=b")
		s.put(s.parts[0], -time.Hour, "x=3 u=c") // late
		s.put(s.parts[0], 0, "x=4 broken=\"")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s.told().Saved.Count != saved {
			t.Error("a checkpoint was saved although the sink does not have its changes")
		}
		if s.told().Records != 6 {
			t.Errorf("%d records were taken in while the sink was writing, want all 6", s.told().Records)
		}
		s.kill()
		s.hang(0)
		s.run()
		time.Sleep(5 * time.Second)
		s.stop()
		if len(s.w.late) != 1 || len(s.w.bad) != 1 {
			t.Errorf("%d late events and %d rejects, want one of each", len(s.w.late), len(s.w.bad))
		}
		s.w.compare(testJob(t), s.parts)
	})
}

// TestExceptionsAreSaved stops a shard while a write is under way: what its checkpoint knows nothing of is written first.
func TestExceptionsAreSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for _, p := range s.parts {
			s.put(p, 0, "x=1 u=a")
		}
		s.run()
		time.Sleep(3900 * time.Millisecond) // the next checkpoint comes after 4 s
		s.hang(500 * time.Millisecond)
		s.put(s.parts[0], 0, "x=2 u=b")
		time.Sleep(80 * time.Millisecond)
		s.put(s.parts[0], 0, "x=4 broken=\"")
		s.put(s.parts[0], -time.Hour, "x=3 u=c")
		for s.told().Saved.Count < 2 {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		s.kill()
		s.run()
		time.Sleep(5 * time.Second)
		s.stop()
		if len(s.w.late) != 1 || len(s.w.bad) != 1 {
			t.Errorf("%d late events and %d rejects, want one of each", len(s.w.late), len(s.w.bad))
		}
		s.w.compare(testJob(t), s.parts)
	})
}

// TestPressure lets the sink hang. What waits for it is bounded, and goes on when it is back, in few writes.
func TestPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.set = func(c *Config) { c.PendingMax, c.FetchBytes = 20, 100 }
		s.run()
		time.Sleep(time.Second)
		s.hang(20 * time.Second)
		for i := range 300 {
			s.put(s.parts[i%3], 0, fmt.Sprintf("x=%d u=a", i))
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if n := s.told().Records; n == 0 || n > 100 {
			t.Errorf("%d records were taken in although 20 changes fill the shard", n)
		}
		s.hang(0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if s.told().Records != 300 {
			t.Errorf("%d records were taken in, want all 300", s.told().Records)
		}
		s.stop()
		s.w.compare(testJob(t), s.parts)
	})
}

// TestLongChain starts from a checkpoint of as many parts as there can be while a tenth of all calls fail. Each part is read
// until it is there; all of them at once never would be.
func TestLongChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.set = func(c *Config) { c.CheckpointEvery = 100 * time.Millisecond }
		for _, p := range s.parts {
			s.put(p, 0, "x=1 u=a")
		}
		s.run()
		time.Sleep(20 * time.Second)
		s.stop()
		if n := len(s.w.objects); n != 65 {
			t.Fatalf("%d objects, want a manifest and 64 parts", n)
		}
		s.put(s.parts[0], 0, "x=2 u=a")
		s.w.faults, s.w.until = rand.New(rand.NewPCG(1, 1)), time.Now().Add(time.Hour)
		s.run()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if s.told().Epoch != 2 || s.told().Records != 1 {
			t.Errorf("after 30 s the run has taken %d records", s.told().Records)
		}
		s.w.mu.Lock()
		s.w.faults = nil
		s.w.mu.Unlock()
		s.stop()
	})
}

// TestStopForAReason stops a shard with a cause, as a worker that shuts down does: it is asked to end all the same.
func TestStopForAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Run(ctx, w.config(&handle{w: w}, testJob(t), testPartitions())) }()
		time.Sleep(time.Second)
		cancel(errors.New("the worker shuts down"))
		if err := <-ended; err != nil || len(w.objects) != 2 {
			t.Errorf("the run ended with %v and %d objects, want a manifest and a part", err, len(w.objects))
		}
	})
}

// TestNextWrite lets a write take longer than the time between two. What came meanwhile is written as soon as it ends.
func TestNextWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.set = func(c *Config) { c.FlushEvery, c.CheckpointEvery = 10*time.Second, time.Hour }
		for _, p := range s.parts {
			s.put(p, 0, "x=1 u=a")
		}
		s.run()
		time.Sleep(time.Second)
		s.hang(6 * time.Second) // before it writes, and then before it answers
		time.Sleep(14 * time.Second)
		s.put(s.parts[0], 0, "x=2 u=a")
		time.Sleep(14 * time.Second) // the first write took from 10 s to 22 s, the second has written at 28 s
		synctest.Wait()
		if len(s.w.rows) != 2 {
			t.Errorf("%d rows are in the sink, want 2", len(s.w.rows))
		}
		s.hang(0)
		s.stop()
	})
}

// TestMarks moves the watermark without a change to any session: the sink learns of it all the same, about once a second.
func TestMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for _, p := range s.parts {
			s.put(p, 80*365*24*time.Hour, "x=1 u=a") // the watermark is as far as the timestamp allows
		}
		s.run()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		before := s.marks()
		for range 100 {
			for _, p := range s.parts {
				s.again(p)
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if s.mark() < s.told().Watermark-1_200_000 || s.mark() > s.told().Watermark {
			t.Errorf("the sink has watermark %d, the shard %d", s.mark(), s.told().Watermark)
		}
		if n := s.marks() - before; n < 9 || n > 11 {
			t.Errorf("%d writes of a watermark alone in 10 s, want one a second", n)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s.mark() != s.told().Watermark {
			t.Errorf("the sink has watermark %d, the shard %d", s.mark(), s.told().Watermark)
		}
		at := s.marks()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s.marks() != at {
			t.Error("a watermark that does not move was written again")
		}
		s.stop()
	})
}

// TestHungSink lets the sink never answer: the run ends, and does so within what it may take.
func TestHungSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.put(s.parts[0], 0, "x=1 u=a")
		s.run()
		time.Sleep(3 * time.Second)
		s.hang(forever)
		s.put(s.parts[0], 0, "x=1 u=a")
		begin := time.Now()
		if err := <-s.ended; err == nil || time.Since(begin) > 3*time.Minute {
			t.Errorf("the run ended with %v after %v", err, time.Since(begin))
		}
		s.cancel()

		s.hang(0)
		s.run()
		time.Sleep(3 * time.Second)
		s.hang(forever)
		s.put(s.parts[0], 0, "x=1 u=a")
		time.Sleep(time.Second)
		begin = time.Now()
		s.cancel()
		if err := <-s.ended; err == nil || time.Since(begin) > 21*time.Second {
			t.Errorf("asked to stop while the sink hangs, the run ended with %v after %v", err, time.Since(begin))
		}
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for range 4 {
			s.put(s.parts[0], 0, "x=1 u=a")
		}
		s.put(s.parts[1], 0, "x=1 o=")
		s.put(s.parts[2], 0, "x=1")
		s.put(s.parts[2], 0, "x=1 broken=\"")
		s.w.topics[Partition{0, "orders", 1}][0].record.Timestamp = event.MinTime // of a broker that has none
		time.Sleep(3 * time.Second)
		s.run()
		time.Sleep(time.Second)
		synctest.Wait()
		early := s.told()
		rejects := maps.Clone(early.Sources[1].Rejects)
		s.put(s.parts[2], -time.Hour, "x=1")
		s.put(s.parts[0], -time.Hour, "x=1")
		s.put(s.parts[2], 0, "x=2 broken=\"")
		s.put(s.parts[2], 0, "x=3")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		got := s.told()
		s.stop()

		if !maps.Equal(early.Sources[1].Rejects, rejects) || early.Sources[0].Records != 5 || early.Partitions[0].Next != 4 {
			t.Errorf("a status changed after it was told: %+v", early)
		}
		o, w := got.Sources[0], got.Sources[1]
		if o.Records != 6 || o.Events != 6 || o.Late != 1 || len(o.Rejects) != 0 {
			t.Errorf("orders: %+v", o)
		}
		if w.Records != 5 || w.Events != 3 || w.Late != 1 || w.Rejects[event.ReasonSyntax] != 2 {
			t.Errorf("wallet: %+v", w)
		}
		bytes := int64(0)
		for _, list := range s.w.topics {
			for _, r := range list {
				bytes += int64(len(r.value))
			}
		}
		if o.Bytes+w.Bytes != bytes {
			t.Errorf("%d and %d bytes, want %d in all", o.Bytes, w.Bytes, bytes)
		}
		if p := got.Partitions[2]; p.Partition != s.parts[2] || p.Next != 5 || p.End != 5 {
			t.Errorf("partition 2: %+v", p)
		}
		if v := got.Saved; v.Count == 0 || v.Bytes == 0 {
			t.Errorf("checkpoints: %+v", v)
		}
		// Six waited for the run to start, 3 s and a flush; four came later; one has no timestamp.
		n := int64(0)
		for _, k := range got.Latency.Counts {
			n += k
		}
		if slow := got.Latency.Counts[9]; n != 10 || slow != 6 || got.Latency.Sum < 18*time.Second || got.Latency.Sum > 20*time.Second {
			t.Errorf("latency: %+v", got.Latency)
		}
	})
}

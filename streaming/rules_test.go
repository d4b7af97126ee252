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

// stage is a shard over a world that a test writes to by hand, in virtual time.
type stage struct {
	t      *testing.T
	w      *world
	parts  []Partition
	status Status
	set    func(*Config) // changes how the shard runs; may be nil
	handle *handle
	cancel context.CancelFunc
	ended  chan error
}

func newStage(t *testing.T) *stage {
	return &stage{t: t, w: newWorld(t), parts: testPartitions()}
}

// run starts the shard.
func (s *stage) run() {
	s.handle = &handle{w: s.w}
	cfg := s.w.config(s.handle, testJob(s.t), s.parts)
	if s.set != nil {
		s.set(&cfg)
	}
	cfg.Progress = func(st Status) {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		s.status = st
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	s.ended = ended
	go func() { ended <- Run(ctx, cfg) }()
}

// stop ends the shard as asked, and expects that to work.
func (s *stage) stop() {
	s.t.Helper()
	s.cancel()
	if err := <-s.ended; err != nil {
		s.t.Fatalf("stop: %v", err)
	}
}

// told returns the last status.
func (s *stage) told() Status {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.status
}

// kill ends the shard so that it can write nothing more.
func (s *stage) kill() {
	s.handle.kill()
	s.cancel()
	<-s.ended
}

// again repeats the last record of a partition: the same identity at a new offset.
func (s *stage) again(p Partition) {
	p.Source = 0
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	list := s.w.topics[p]
	r := list[len(list)-1]
	r.record.Timestamp = event.Micros(time.Now().UnixMicro())
	s.w.topics[p] = append(list, r)
}

// put writes a record now, with an event time so far from now.
func (s *stage) put(p Partition, after time.Duration, rest string) {
	now := time.Now()
	source := p.Source
	p.Source = 0
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	rec := event.Record{Offset: int64(len(s.w.topics[p])), Partition: p.ID, Timestamp: event.Micros(now.UnixMicro()), Source: uint16(source)}
	value := fmt.Sprintf("t=%d s=paid %s", now.Add(after).UnixMilli(), rest)
	s.w.topics[p] = append(s.w.topics[p], logRecord{rec, []byte(value)})
}

// expect waits, and then expects the watermark so far behind now; 0 means that there is none.
func (s *stage) expect(wait, behind time.Duration, what string) {
	s.t.Helper()
	time.Sleep(wait)
	synctest.Wait()
	got := s.status.Watermark
	want := event.Micros(time.Now().Add(-behind).UnixMicro())
	if behind == 0 {
		want = event.MinTime
	}
	// Times of records are whole milliseconds.
	if d := got - want; got != want && (behind == 0 || d > 1000 || d < -1000) {
		s.t.Errorf("%s: the watermark is %v behind now, want %v", what, time.Since(time.UnixMicro(int64(got))), behind)
	}
}

func TestWatermarkRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for _, p := range s.parts {
			s.put(p, -time.Hour, "x=old")
		}
		for _, p := range s.parts[1:] { // partition 0 has records that were deleted: it is seen when it is read
			s.put(p, 0, "x=1")
		}
		s.run()
		s.expect(time.Second, time.Hour+time.Second+5*time.Second, "partition 0 is an hour behind, less the delay of 5 s")
		s.put(s.parts[0], 0, "x=1")
		s.expect(time.Second, 5*time.Second+2*time.Second, "partitions 1 and 2 are from 2 s ago")

		s.put(s.parts[1], 80*365*24*time.Hour, "x=2099")
		s.put(s.parts[0], 0, "x=2")
		s.put(s.parts[2], 0, "x=2")
		s.expect(time.Second, 6*time.Second, "a record from 2099 is no further ahead than its broker's time and 1 min")

		for range 5 { // partition 2 falls silent; idle_after is 20 s
			time.Sleep(5 * time.Second)
			s.put(s.parts[0], 0, "x=3")
		}
		s.expect(time.Second, 6*time.Second, "a silent partition does not hold the watermark for longer than idle_after")
		last := s.status.Watermark
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s.status.Watermark != last {
			t.Errorf("all partitions are silent: the watermark moved by %d", s.status.Watermark-last)
		}
		s.stop()
	})
}

func TestEmptyPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.put(s.parts[0], 0, "x=1")
		s.run()
		s.expect(time.Second, 6*time.Second, "partitions that are empty hold nothing back")
		s.stop()
	})
}

func TestStartErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(w *world)
		want   error
		text   string
	}{
		{"retention", func(w *world) { w.firsts[Partition{0, "orders", 0}] = 5 }, ErrOffsetGone, "orders/0: records that were not read yet are gone: offsets 3 to 4"},
		{"made again", func(w *world) { w.made["orders"] = "second" }, ErrRecreated, `it was "" and is "second"`},
		{"shorter", func(w *world) { delete(w.topics, Partition{0, "wallet", 0}) }, ErrRecreated, "the checkpoint is at offset 3 and the partition ends at 0"},
		{"state is damaged", func(w *world) {
			for k, o := range w.objects {
				if strings.Contains(k, "state-") {
					o.data[len(o.data)/2] ^= 1
				}
			}
		}, nil, "is damaged"},
		{"state is gone", func(w *world) {
			for k := range w.objects {
				if strings.Contains(k, "state-") {
					delete(w.objects, k)
				}
			}
		}, ErrNoObject, "read the state payments/v1/0/state-"},
		{"other partitions", nil, nil, "partition orders/1 is in the checkpoint and not in the shard"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				for range 3 {
					for _, p := range s.parts {
						s.put(p, 0, "x=1")
					}
				}
				s.run()
				time.Sleep(time.Second)
				s.stop()
				for range 5 {
					for _, p := range s.parts {
						s.put(p, 0, "x=1")
					}
				}
				if test.change == nil {
					s.parts = []Partition{s.parts[0], s.parts[2]}
				} else {
					test.change(s.w)
				}
				s.run()
				err := <-s.ended
				s.cancel()
				if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
					t.Errorf("error %v; want one with %q", err, test.text)
				}
			})
		})
	}
}

// TestZombie pauses a run for good while another takes over. Nothing that it tries is written.
func TestZombie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.put(s.parts[0], 0, "x=1 u=a")
		s.run()
		time.Sleep(time.Second)
		first, cancel := s.ended, s.cancel
		defer cancel()
		s.run()
		time.Sleep(time.Second)
		s.put(s.parts[0], 0, "x=1 u=a")
		if err := <-first; !errors.Is(err, ErrFenced) {
			t.Errorf("the first run ended with %v, want ErrFenced", err)
		}
		time.Sleep(time.Second)
		s.stop()
		for id, r := range s.w.rows {
			if r.epoch != s.w.epoch && r.row.Count > 1 {
				t.Errorf("row %s is of epoch %d", id, r.epoch)
			}
		}
		s.w.compare(testJob(t), s.parts)
	})
}

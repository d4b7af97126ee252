package streaming

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/spill"
)

// spillTotals adds up what the runs of a simulation did.
type spillTotals struct {
	mu    sync.Mutex
	last  map[uint64]spill.Status // by epoch
	least map[uint64]spill.Status // at the start: what was restored
}

func (s *spillTotals) watch(st Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.last[st.Epoch]; !ok {
		s.least[st.Epoch] = st.Spill
	}
	s.last[st.Epoch] = st.Spill
}

func (s *spillTotals) sum() (spills, loads, merges, restored int64) {
	for _, st := range s.last {
		spills, loads, merges = spills+st.Spills, loads+st.Loads, merges+st.Merges
	}
	for _, st := range s.least {
		restored += st.Components
	}
	return spills, loads, merges, restored
}

// TestChaosSpill is TestChaos with hardly any memory: runs are killed, paused and stopped while most of their state is on
// disk and in the object store. Runs with memory alternate with runs without.
func TestChaosSpill(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6, uint64(time.Now().UnixNano())}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) { chaosSpill(t, seed, dir) })
			left, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil || len(left) > 0 {
				t.Errorf("files are left: %v %v", left, err)
			}
		})
	}
}

func chaosSpill(t *testing.T, seed uint64, dir string) {
	r := rand.New(rand.NewPCG(seed, 2))
	job := testJob(t)
	w := newWorld(t)
	w.faults, w.until = rand.New(rand.NewPCG(seed, 3)), time.Now().Add(9*time.Minute)
	partitions := testPartitions()
	go w.produce(rand.New(rand.NewPCG(seed, 4)), partitions, 1500, 8*time.Minute)

	totals := &spillTotals{last: map[uint64]spill.Status{}, least: map[uint64]spill.Status{}}
	config := func(h *handle) Config {
		cfg := w.config(h, job, partitions)
		cfg.FetchBytes = 50 + r.IntN(2000)
		cfg.FlushEvery = time.Duration(10+r.IntN(500)) * time.Millisecond
		cfg.CheckpointEvery = time.Duration(200+r.IntN(8000)) * time.Millisecond
		cfg.PendingMax = 1 + r.IntN(200)
		cfg.SpillDir, cfg.MemoryBytes = dir, int64(14<<10+r.IntN(12<<10))
		if r.IntN(4) == 0 {
			cfg.MemoryBytes = 0 // what was spilled before stays where it is
		}
		cfg.Progress = totals.watch
		return cfg
	}
	for begin := time.Now(); time.Since(begin) < 10*time.Minute; {
		h := &handle{w: w}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		cfg := config(h)
		go func() { ended <- Run(ctx, cfg) }()
		time.Sleep(time.Duration(r.IntN(40_000)) * time.Millisecond)
		end := func(err error) {
			// The run after it deleted its folder, or objects that it was to restore; or its few bytes did not hold what cannot be
			// spilled.
			for _, expected := range []error{nil, errDead, errFault, ErrFenced, context.Canceled, os.ErrNotExist, ErrNoObject, spill.ErrMemory} {
				if errors.Is(err, expected) {
					return
				}
			}
			t.Errorf("a run ended: %v", err)
		}
		switch r.IntN(4) {
		case 0:
			cancel()
			end(<-ended)
		case 1: // paused: it goes on beside the run after it
			go func() { end(<-ended); cancel() }()
		default:
			h.kill()
			end(<-ended)
			cancel()
		}
	}
	h := &handle{w: w}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	cfg := config(h)
	if cfg.MemoryBytes > 0 {
		cfg.MemoryBytes += 32 << 10
	}
	go func() { ended <- Run(ctx, cfg) }()
	time.Sleep(2 * time.Minute)
	cancel()
	if err := <-ended; err != nil {
		t.Fatalf("the last run: %v", err)
	}
	synctest.Wait()
	spills, loads, merges, restored := totals.sum()
	t.Logf("seed %d: %d epochs, %d components spilled, %d loaded, %d merges, %d restored, %d objects", seed, w.epoch, spills, loads, merges, restored, len(w.objects))
	if spills < 50 || loads < 20 || merges == 0 || restored < 10 {
		t.Error("the test does not test spilling")
	}
	w.compare(job, partitions)
	named := 0
	for key := range w.objects {
		if strings.Contains(key, "/spill-") {
			named++
		}
	}
	if named > 100 {
		t.Errorf("%d objects of spilled state are left", named)
	}
}

// TestSpillRepair kills a run that changed sessions which the checkpoint before has on disk. Right after the next run has set
// the sink right, before it reads anything, they are as they were.
func TestSpillRepair(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		job, w := testJob(t), newWorld(t)
		partitions := testPartitions()
		const sessions = 200
		produce := func(step string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			p := Partition{Topic: "orders"}
			for i := range sessions {
				now := time.Now()
				w.topics[p] = append(w.topics[p], logRecord{
					event.Record{Offset: int64(len(w.topics[p])), Timestamp: event.Micros(now.UnixMicro())},
					fmt.Appendf(nil, "t=%d s=%s x=x%d u=u n=1 o=o%d a=1", now.UnixMilli(), step, i, i),
				})
			}
		}
		run := func(kill bool) (st Status) {
			h := &handle{w: w}
			cfg := w.config(h, job, partitions)
			cfg.CheckpointEvery, cfg.SpillDir, cfg.MemoryBytes = time.Hour, dir, 40<<10
			cfg.Progress = func(s Status) { st = s }
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- Run(ctx, cfg) }()
			time.Sleep(10 * time.Second)
			if kill {
				h.kill()
			}
			cancel()
			if err := <-ended; !kill && err != nil {
				t.Fatal(err)
			}
			return st
		}
		counts := func() map[int64]int {
			n := map[int64]int{}
			for _, r := range w.rows {
				if !r.gone {
					n[r.row.Count]++
				}
			}
			return n
		}
		produce("paid")
		if st := run(false); st.Spill.Components < sessions/4 {
			t.Fatalf("%d components on disk", st.Spill.Components)
		}
		produce("delivered")
		if run(true); counts()[2] != sessions {
			t.Fatalf("sessions by events: %v, want all with 2", counts())
		}
		s := &shard{
			cfg: w.config(&handle{w: w}, job, partitions), log: discardLog{}, empty: make([]bool, 3), next: make([]int64, 3), ends: make([]int64, 3),
			past: make([]*past, 3), topics: map[string]string{}, changes: &Changes{},
		}
		s.cfg.SpillDir = dir
		if err := s.cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		s.saved = checkpoints{objects: s.cfg.Objects, prefix: s.cfg.Name + "/"}
		if err := s.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.spill.Close()
		if counts()[1] != sessions {
			t.Errorf("sessions by events: %v, want all with 1", counts())
		}
	})
}

// TestDiskFull holds the input up while the disk is full, and gives up after a while.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shard{cfg: Config{RetryFor: time.Minute}, log: discardLog{}}
		full := fmt.Errorf("write: %w", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
		passes := func(err error) bool { return errors.Is(err, syscall.ENOSPC) }
		start, tries := time.Now(), 0
		if err := s.retryIf(t.Context(), "spill", passes, func() error {
			if tries++; tries < 4 {
				return full
			}
			return nil
		}); err != nil || tries != 4 {
			t.Errorf("after %d tries: %v", tries, err)
		}
		if time.Since(start) < 100*time.Millisecond {
			t.Error("it did not wait")
		}
		if err := s.retryIf(t.Context(), "spill", passes, func() error { return full }); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a disk that stays full: %v", err)
		}
	})
}

type discardLog struct{}

func (discardLog) Info(string, ...any) {}
func (discardLog) Warn(string, ...any) {}

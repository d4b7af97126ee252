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
	"testing"
	"testing/synctest"
	"time"
)

// spillTotals adds up what the runs of a simulation did.
type spillTotals struct {
	mu    sync.Mutex
	last  map[uint64]SpillStatus // by epoch
	least map[uint64]SpillStatus // at the start: what was restored
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
			left, err := filepath.Glob(filepath.Join(dir, "*", "*"))
			if err != nil || len(left) > 0 {
				t.Errorf("folders are left: %v %v", left, err)
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

	totals := &spillTotals{last: map[uint64]SpillStatus{}, least: map[uint64]SpillStatus{}}
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
			for _, expected := range []error{nil, errDead, errFault, ErrFenced, context.Canceled, os.ErrNotExist} { // the run after it deleted its folder
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
	if named > 2*spillFilesMax {
		t.Errorf("%d objects of spilled state are left", named)
	}
}

// TestSpillFolders finds that a run deletes what runs before it left, and nothing else.
func TestSpillFolders(t *testing.T) {
	dir := t.TempDir()
	old, later := filepath.Join(dir, "payments-v1-0", fmt.Sprintf("%016x", 1)), filepath.Join(dir, "payments-v1-0", fmt.Sprintf("%016x", 9))
	other := filepath.Join(dir, "payments-v1-1", fmt.Sprintf("%016x", 1))
	for _, d := range []string{old, later, other} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p, err := newSpill(&shard{cfg: Config{Name: "payments/v1/0", SpillDir: dir}, epoch: 3})
	if err != nil {
		t.Fatal(err)
	}
	for d, want := range map[string]bool{old: false, later: true, other: true, p.dir: true} {
		if _, err := os.Stat(d); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", d, err, want)
		}
	}
	p.close()
	if _, err := os.Stat(p.dir); err == nil {
		t.Error("the run's folder is left after its end")
	}
}

package backfill

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/results"
)

// TestMemoryBound replays an input several times as large as the memory that it may take.
func TestMemoryBound(t *testing.T) {
	e := generate(t, 5, 40_000, 30*24*time.Hour)
	bytes := int64(0)
	for _, in := range e.inputs {
		info, err := os.Stat(in.Path)
		if err != nil {
			t.Fatal(err)
		}
		bytes += info.Size()
	}
	const bound = MemoryBytesMin
	if bytes < 5*bound {
		t.Fatalf("the input has %d bytes: too few to prove anything", bytes)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // so that the heap shows what is held, not what was

	progress := func(p Progress) {
		if p.BytesAll != bytes || p.BytesRead < 0 || p.BytesRead > bytes || !slices.Contains([]string{"reading", "sorting", "linking", "writing"}, p.Phase) {
			t.Errorf("progress is %+v of %d bytes", p, bytes)
		}
	}
	peak := watchHeap()
	s, _ := e.replay(t, func(c *ReplayConfig) { c.MemoryBytes, c.Format, c.Progress = bound, results.Parquet, progress })
	heap := peak()
	t.Logf("input %d MiB, bound %d MiB: state at most %.1f MiB, heap at most %.1f MiB, %d MiB sorted on disk, %d sessions",
		bytes>>20, bound>>20, float64(s.StateBytes)/(1<<20), float64(heap)/(1<<20), s.SpilledBytes>>20, s.Sessions)
	if s.StateBytes <= 0 || s.StateBytes > bound {
		t.Errorf("the state had %d bytes, more than %d", s.StateBytes, bound)
	}
	if s.SpilledBytes == 0 {
		t.Error("nothing was sorted on disk")
	}
	// Beside the state there are the batches, the buffers of the sort and of the results, and the report cells.
	if heap > 7*bound {
		t.Errorf("the heap grew to %d bytes with a bound of %d", heap, bound)
	}
}

// watchHeap samples the bytes of live and not yet collected objects until the returned function is called: that tells how
// much the most was, above what there was at the start.
func watchHeap() (peak func() int64) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() int64 {
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	debug.FreeOSMemory()
	start, most := read(), int64(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				most = max(most, read())
			case <-stop:
				return
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return most - start
	}
}

// TestOpenSessionsOutgrowMemory replays more open sessions than fit: a clear error, and no results.
func TestOpenSessionsOutgrowMemory(t *testing.T) {
	e := generate(t, 6, spilledOrders, 24*time.Hour).unsharded(t)
	out, temp := filepath.Join(t.TempDir(), "out"), t.TempDir()
	_, err := Replay(t.Context(), ReplayConfig{Job: e.job, Inputs: e.inputs, Out: out, TempDir: temp, MemoryBytes: MemoryBytesMin})
	if err == nil || !strings.Contains(err.Error(), "the open sessions outgrew the memory bound of 16777216 bytes although only open sessions are held") ||
		!strings.Contains(err.Error(), "allow more with --memory, lower the gaps or max_span, or shard the job (shard_by)") {
		t.Errorf("error is %v", err)
	}
	if left := append(names(t, out), names(t, temp)...); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

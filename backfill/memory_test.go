package backfill

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
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

// TestOpenSessionsOutgrowMemory replays more open sessions than fit, of a job without shards: results are those of a replay that has
// all the memory it wants, and nothing is left on disk.
func TestOpenSessionsOutgrowMemory(t *testing.T) {
	e := generate(t, 6, spilledOrders, 24*time.Hour).unsharded(t)
	temp := t.TempDir()
	want, _ := e.replay(t, nil)
	got, _ := e.replay(t, func(c *ReplayConfig) { c.TempDir, c.MemoryBytes = temp, MemoryBytesMin })
	t.Logf("state of %d MiB in %d MiB", want.StateBytes>>20, got.StateBytes>>20)
	if want.StateBytes < MemoryBytesMin*5/4 || got.StateBytes > MemoryBytesMin || got.SpilledBytes == 0 {
		t.Errorf("state of %d bytes, with the bound %d: that proves little", want.StateBytes, got.StateBytes)
	}
	if got.Digest != want.Digest || got.Sessions != want.Sessions {
		t.Errorf("%d sessions, digest %s; want %d, %s", got.Sessions, got.Digest, want.Sessions, want.Digest)
	}
	if left := names(t, temp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

var (
	sliceEvents = flag.Int("slice-events", 100_000, "events of TestSliceOutgrowsMemory")
	sliceBound  = flag.Int64("slice-bound", 3<<20, "memory of TestSliceOutgrowsMemory, in bytes")
)

// TestSliceOutgrowsMemory computes slices with many times as much open as they may hold, of a job without shards: they hold it on disk,
// give what one gives that has all the memory it wants, and the heap stays near the bound.
func TestSliceOutgrowsMemory(t *testing.T) {
	events, bound := *sliceEvents, *sliceBound
	const (
		slices = 5
		// Beside the state there are what it is restored from and stored as, the batches, and the buffers of what is staged.
		buffers = 28 << 20
		file    = 5_000
	)
	job := compile(t, `version: weft/v1
job: shop
sources:
  orders:
    topic: pay.orders
    format: json
    time: {field: t, layout: unix_s}
    step: {value: ordered}
    keys: {order: order}
session: {gap: 30m, gaps: {order: 168h}, max_span: 240h}
`)
	objects, err := objstore.Folder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < events; at += file {
		var records []archive.Record
		for i := at; i < at+file; i++ { // half of the orders come again in another slice
			records = append(records, archive.Record{Topic: "pay.orders", Offset: int64(i), Timestamp: event.MinTime,
				Value: fmt.Appendf(nil, `{"t":%d,"order":"o%d"}`, firstTime+i, i%(events*3/4))})
		}
		m := newMemory() // what it holds must not count
		putArchive(t, m, "pay.orders", 0, int64(at/file), records, func(r []archive.Record) []archive.Times { return timesOf(t, job, r) })
		for key, data := range m.objects {
			if _, err := objects.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))); err != nil {
				t.Fatal(err)
			}
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // so that the heap shows what is held, not what was
	run := func(id string, memory int64) (digest string, state, spilled, heap int64) {
		in := PlanInput{Ref: PlanRef{"shop", id}, Job: job, Version: 1, Objects: objects, From: event.Micros(firstTime) * 1e6,
			To: event.Micros(firstTime+events) * 1e6, Slice: event.Micros(events/slices) * 1e6}
		p, err := MakePlan(t.Context(), in)
		if err != nil || len(p.Chunks) != 1 || p.Totals.Slices < slices {
			t.Fatalf("%v, %v", p, err)
		}
		peak := watchHeap()
		for slice := range p.Chunks[0].Slices {
			r, err := RunSlice(t.Context(), SliceInput{Plan: p.Ref, Slice: slice, Job: job, Objects: objects, MemoryBytes: memory, Decoders: 1, TempDir: t.TempDir()}, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s, slice %d: state %.1f MiB in memory, %.1f on disk, %.1f MiB stored, %.1f sorted, %d sessions, %.1f s", id, slice,
				float64(r.StateBytes)/(1<<20), float64(r.SpilledBytes)/(1<<20), float64(r.StoredBytes)/(1<<20), float64(r.SortedBytes)/(1<<20), r.Sessions, r.Seconds)
			state, spilled = max(state, r.StateBytes), max(spilled, r.SpilledBytes)
		}
		heap = peak()
		total, err := Total(t.Context(), objects, p.Ref, job, TimeRange{})
		if err != nil {
			t.Fatal(err)
		}
		return total.Digest, state, spilled, heap
	}
	want, state, spilled, all := run("whole", 1<<32)
	if spilled > 0 || state < 5*bound {
		t.Fatalf("the state has %d bytes, and %d on disk: that proves little", state, spilled)
	}
	got, inMemory, spilled, heap := run("split", bound)
	t.Logf("bound %d MiB, open %.1f MiB at once: the heap grew by %.1f MiB, and by %.1f MiB without the bound", bound>>20, float64(state)/(1<<20),
		float64(heap)/(1<<20), float64(all)/(1<<20))
	if got != want || spilled < bound/2 || inMemory > 2*bound {
		t.Errorf("with %d bytes in memory and %d on disk the digest is %s, want %s", inMemory, spilled, got, want)
	}
	if heap > 3*bound+buffers {
		t.Errorf("the heap grew to %d bytes with a bound of %d", heap, bound)
	}
}

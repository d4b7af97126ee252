package streaming

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
)

var seedFlag = flag.Uint64("seed", 0, "run the simulations with this one seed")

const testSpec = `version: weft/v1
job: payments
sources:
  orders: {topic: orders, format: logfmt, time: {field: t, layout: unix_ms}, step: s, keys: {order: o, txn: x}, fields: {user: u, amount: {path: a, type: int}}}
  wallet: {topic: wallet, format: logfmt, time: {field: t, layout: unix_ms}, step: s, keys: {txn: x}, fields: {user: u}, dedupe: [x, n]}
session: {gap: 60s, max_span: 5m, retention: 30s, settle: 10s}
watermark: {delay: 5s, idle_after: 20s, max_ahead: 1m}
user: user
scenarios:
  - {name: done, when: 'step("paid").count > 0 && step("delivered").count > 0'}
  - {name: stuck, when: 'step("paid").count > 0 && step("delivered").count == 0', after: {from: step("paid").first, within: 20s}}
reports:
  - {name: funnel, every: 1m, by: [user], measures: {n: count(), stuck: count(stuck), sum: sum(amount)}}
`

func testJob(t testing.TB) *operator.Job { return compiled(t, testSpec) }

func compiled(t testing.TB, text string) *operator.Job {
	t.Helper()
	spec, err := jobspec.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	job, err := operator.Compile(spec, 7, nil)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// produce plays records into the log over virtual time: out of order, repeated, sometimes very late or broken.
func (w *world) produce(r *rand.Rand, partitions []Partition, n int, over time.Duration) {
	start := time.Now()
	steps := []string{"paid", "delivered", "seen"}
	next := map[Partition]int64{}
	w.mu.Lock()
	for p, list := range w.topics {
		next[p] = int64(len(list))
	}
	w.mu.Unlock()
	var sent []struct {
		p Partition
		r logRecord
	}
	for i := range n {
		time.Sleep(over / time.Duration(n))
		p := partitions[r.IntN(len(partitions))]
		source := p.Source
		p.Source = 0
		now := event.Micros(time.Now().UnixMicro())
		var rec logRecord
		if len(sent) > 0 && r.IntN(12) == 0 { // a retry: the same identity at a new offset
			old := sent[r.IntN(len(sent))]
			p, rec = old.p, old.r
			rec.record.Timestamp = now
		} else {
			at := time.Now().Add(-time.Duration(r.IntN(8000)) * time.Millisecond)
			switch r.IntN(30) {
			case 0:
				at = at.Add(-time.Duration(r.IntN(300)) * time.Second)
			case 1:
				at = at.Add(80 * 365 * 24 * time.Hour) // from the future
			}
			key := int(time.Since(start)/(20*time.Second))*5 + r.IntN(8)
			value := fmt.Sprintf("t=%d s=%s x=x%d u=u%d n=%d", at.UnixMilli(), steps[r.IntN(3)], key, r.IntN(3), r.IntN(3))
			if source == 0 {
				value += fmt.Sprintf(" o=o%d a=%d", key+r.IntN(3), r.IntN(500))
			}
			if r.IntN(25) == 0 {
				value = "s=paid broken=\""
			}
			rec = logRecord{event.Record{Offset: next[p], Partition: p.ID, Timestamp: now}, []byte(value)}
			next[p]++
			sent = append(sent, struct {
				p Partition
				r logRecord
			}{p, rec})
		}
		w.mu.Lock()
		w.topics[p] = append(w.topics[p], rec)
		w.mu.Unlock()
		_ = i
	}
}

// expect is what a core gives that gets all records at once, without those events that the runs called late.
func (w *world) expect(job *operator.Job, partitions []Partition) (rows map[correlate.ID]string, cells map[string]string) {
	w.t.Helper()
	core, err := correlate.New(job.Config)
	if err != nil {
		w.t.Fatal(err)
	}
	d, err := job.NewDecoder()
	if err != nil {
		w.t.Fatal(err)
	}
	accepted := w.accepted()
	out := &Changes{}
	for _, p := range partitions {
		source := p.Source
		p.Source = 0
		var b event.Batch
		for _, rec := range w.topics[p] {
			rec.record.Source = uint16(source)
			b.Add(rec.record, rec.value)
		}
		d.Decode(&b)
		var kept event.Batch // all but the late events, with their values
		kept.Data, kept.Steps = b.Data, b.Steps
		for i, e := range b.Events {
			id := fmt.Sprintf("%d/%d/%d/%d", e.Source, e.Partition, e.Offset, e.Index)
			if _, late := w.late[id]; late && !accepted[id] {
				continue
			}
			kept.Values = append(kept.Values, b.ValuesOf(i)...)
			e.Vals = uint32(len(kept.Values))
			kept.Events = append(kept.Events, e)
		}
		if err := core.Apply(&kept, out); err != nil {
			w.t.Fatal(err)
		}
	}
	core.Flush(out)
	rows, cells = map[correlate.ID]string{}, map[string]string{}
	for _, s := range out.Sessions {
		rows[s.Row.ID] = rowText(&s.Row)
	}
	for _, c := range out.Cells {
		cells[cellKey(&c.Cell)] = fmt.Sprint(c.Cell.Sessions, c.Cell.Measures)
	}
	return rows, cells
}

// accepted lists the events that are in a session.
func (w *world) accepted() map[string]bool {
	list := map[string]bool{}
	for _, r := range w.rows {
		for _, e := range r.row.Events {
			list[fmt.Sprintf("%d/%d/%d/%d", e.Source, e.Partition, e.Offset, e.Index)] = true
		}
	}
	return list
}

func rowText(r *correlate.Row) string {
	var b strings.Builder
	fmt.Fprint(&b, r.Start, r.End, r.Count, r.Hits)
	for _, k := range r.Keys {
		fmt.Fprintf(&b, " %d=%s@%d", k.Kind, k.Value, k.First)
	}
	for _, f := range r.Fields {
		fmt.Fprintf(&b, " %v:%s:%d", f.Present, f.Text, f.Int)
	}
	for _, e := range r.Events {
		fmt.Fprintf(&b, " %d/%d/%d/%d@%d:%s", e.Source, e.Partition, e.Offset, e.Index, e.Time, r.StepNames[e.Step])
	}
	return b.String()
}

// compare holds the sink against what is expected: whole tables, so that an orphan shows.
func (w *world) compare(job *operator.Job, partitions []Partition) {
	w.t.Helper()
	rows, cells := w.expect(job, partitions)
	got := map[correlate.ID]string{}
	for id, r := range w.rows {
		if !r.gone {
			got[id] = rowText(&r.row)
		}
	}
	if len(rows) == 0 {
		w.t.Fatal("nothing is expected, so nothing is tested")
	}
	for id, want := range rows {
		if got[id] != want {
			w.t.Fatalf("session %s:\n got %s\nwant %s", id, got[id], want)
		}
	}
	for id, row := range got {
		if _, ok := rows[id]; !ok {
			w.t.Fatalf("session %s should not be there: %s", id, row)
		}
	}
	gotCells := map[string]string{}
	for k, c := range w.cells {
		if c.cell.Sessions > 0 {
			gotCells[k] = fmt.Sprint(c.cell.Sessions, c.cell.Measures)
		}
	}
	if !maps.Equal(gotCells, cells) {
		w.t.Fatalf("report cells:\n got %v\nwant %v", gotCells, cells)
	}
}

func (w *world) config(h *handle, job *operator.Job, partitions []Partition) Config {
	return Config{
		Job: job, Name: "payments/v1/0", Partitions: partitions, Log: h, Sink: h, Objects: h,
		FlushEvery: 50 * time.Millisecond, CheckpointEvery: 2 * time.Second, FetchBytes: 400, FetchWait: 100 * time.Millisecond,
		Retryable: func(err error) bool { return errors.Is(err, errFault) },
	}
}

func testPartitions() []Partition {
	return []Partition{{0, "orders", 0}, {0, "orders", 1}, {1, "wallet", 0}}
}

// TestChaos kills runs at random moments, pauses some so that they come back as zombies, and lets calls fail before or
// after they took place. The sink answers at once, slowly, or so slowly that it is always the one to wait for. Every run has
// other sizes of batches. The tables at the end are as if nothing had happened.
func TestChaos(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6, 7, 8, uint64(time.Now().UnixNano())}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, seed) })
		})
	}
}

func chaos(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	job := testJob(t)
	w := newWorld(t)
	w.faults, w.until = rand.New(rand.NewPCG(seed, 3)), time.Now().Add(9*time.Minute)
	partitions := testPartitions()
	if most := []int{0, 100, 3000}[seed%3]; most > 0 {
		pace := rand.New(rand.NewPCG(seed, 5))
		w.slow = func() time.Duration {
			w.mu.Lock()
			defer w.mu.Unlock()
			return time.Duration(pace.IntN(most)) * time.Millisecond
		}
	}
	producer := rand.New(rand.NewPCG(seed, 4))
	go w.produce(producer, partitions, 1500, 8*time.Minute)

	kills, within := 0, 0 // of them while a write was under way
	for begin := time.Now(); time.Since(begin) < 10*time.Minute; {
		h := &handle{w: w}
		cfg := w.config(h, job, partitions)
		cfg.FetchBytes = 50 + r.IntN(2000)
		cfg.FlushEvery = time.Duration(10+r.IntN(500)) * time.Millisecond
		cfg.CheckpointEvery = time.Duration(200+r.IntN(8000)) * time.Millisecond
		cfg.PendingMax = 1 + r.IntN(200)
		busy := func() int { w.mu.Lock(); defer w.mu.Unlock(); return w.busy }
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Run(ctx, cfg) }()
		time.Sleep(time.Duration(r.IntN(40_000)) * time.Millisecond)
		switch r.IntN(4) {
		case 0: // stopped as asked
			cancel()
			// A run that was paused before it took its epoch may have taken a later one since.
			if err := <-ended; err != nil && !errors.Is(err, errFault) && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrFenced) {
				t.Errorf("stopped: %v", err)
			}
		case 1: // paused: it goes on beside the run after it, and must be fenced
			go func() { <-ended; cancel() }()
		default:
			for range r.IntN(2) * 1000 { // half of the kills come while a write is under way
				if busy() > 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if busy() > 0 {
				within++
			}
			h.kill()
			kills++
			<-ended
			cancel()
		}
	}
	// A last run without faults takes in the rest.
	h := &handle{w: w}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, w.config(h, job, partitions)) }()
	time.Sleep(2 * time.Minute)
	cancel()
	if err := <-ended; err != nil {
		t.Fatalf("the last run: %v", err)
	}
	synctest.Wait()
	t.Logf("seed %d: %d kills, %d within a write, %d epochs, %d rows, %d late, %d rejects, %d objects, %d writes of a watermark alone",
		seed, kills, within, w.epoch, len(w.rows), len(w.late), len(w.bad), len(w.objects), w.marks)
	w.compare(job, partitions)
	if len(w.late) == 0 || len(w.bad) == 0 {
		t.Error("no late events or no rejects: the test does not test them")
	}
	if seed%3 == 2 && within == 0 { // the sink is always busy
		t.Error("no run was killed within a write")
	}
	if len(w.objects) > 66 { // a manifest, 64 parts, and one that a run left before it was killed
		t.Errorf("%d objects are left", len(w.objects))
	}
}

package correlate

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/weftdata/weft/event"
)

// chains makes a batch of n purchases of ten events each, tied by two kinds of keys, nearly in order of time.
func chains(r *rand.Rand, n int) *event.Batch {
	steps := []string{"seen", "ordered", "other", "paid", "seen", "other", "delivered", "other", "seen", "done"}
	var events []refEvent
	for i := range n {
		start := event.Micros(i * 20)
		for k, step := range steps {
			e := refEvent{time: start + event.Micros(3*k) + event.Micros(r.IntN(3)), source: k % 3, step: step, keys: map[int][]string{}}
			if k < 6 {
				e.keys[0] = []string{fmt.Sprintf("2603010000%010d", i)}
			}
			if k >= 4 {
				e.keys[1] = []string{fmt.Sprintf("txn-%016x", i)}
			}
			if k%4 == 0 {
				e.user, e.amount = fmt.Sprintf("u%09d", i%5000), fmt.Sprint(600+i%7)
			}
			events = append(events, e)
		}
	}
	for i := range events { // neighbours change places, as records of several sources do
		j := min(len(events)-1, i+r.IntN(40))
		events[i], events[j] = events[j], events[i]
	}
	offsets := [3]int64{}
	for i := range events {
		events[i].offset = offsets[events[i].source]
		offsets[events[i].source]++
	}
	return batchOf(events)
}

// BenchmarkCore measures linking, and classifying and handing out, per event; decoding and writing are not in it.
func BenchmarkCore(b *testing.B) {
	cfg := testConfig(100_000, 1000, 10)
	batch := chains(rand.New(rand.NewPCG(1, 1)), 100_000)
	n := float64(len(batch.Events))
	for b.Loop() {
		c, err := New(*cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Apply(batch, discard{}); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(c.StateBytes())/n, "state-B/event")
		c.Advance(event.MaxTime, discard{})
		c.Flush(discard{})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/event")
}

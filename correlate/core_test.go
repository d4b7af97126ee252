package correlate

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
)

var seedFlag = flag.Uint64("seed", 0, "run the random tests with this one seed")

// eachSeed runs a property over many seeds; a failure names the seed that repeats it.
func eachSeed(t *testing.T, n int, f func(t *testing.T, r *rand.Rand)) {
	t.Helper()
	first, last := uint64(1), uint64(n)
	if *seedFlag != 0 {
		first, last = *seedFlag, *seedFlag
	} else {
		extra := uint64(time.Now().UnixNano())
		t.Run(fmt.Sprintf("seed=%d", extra), func(t *testing.T) { f(t, rand.New(rand.NewPCG(extra, 1))) })
	}
	for s := first; s <= last; s++ {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) { f(t, rand.New(rand.NewPCG(s, 1))) })
	}
}

func randomConfig(r *rand.Rand, retention event.Micros) *Config {
	spans := []event.Micros{40, 60, 100, 333, 100_000}
	bounds := []int{1, 2, 3, 8, 1000}
	return testConfig(spans[r.IntN(len(spans))], bounds[r.IntN(len(bounds))], retention)
}

// feed applies events in random batches, handing out changes now and then.
func feed(r *rand.Rand, c *Core, events []refEvent, out Output) {
	for len(events) > 0 {
		n := min(len(events), 1+r.IntN(1+r.IntN(60)))
		if err := c.Apply(batchOf(events[:n]), out); err != nil {
			panic(err)
		}
		events = events[n:]
		if r.IntN(3) == 0 {
			c.Flush(out)
		}
	}
}

// TestReference compares the core with the definition, for unordered input with repeated events.
func TestReference(t *testing.T) {
	eachSeed(t, 600, func(t *testing.T, r *rand.Rand) {
		cfg := randomConfig(r, 0)
		events := randomEvents(r, 10+r.IntN(250), event.Micros(200+r.IntN(3000)))
		want := reference(cfg, events)

		again := slices.Clone(events)
		for range r.IntN(50) {
			again = append(again, events[r.IntN(len(events))])
		}
		r.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
		c, err := New(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		out := newTable(t, cfg)
		feed(r, c, again, out)
		c.Flush(out)
		out.compare(want, "before the end")
		c.Advance(event.MaxTime, out)
		c.Flush(out)
		out.compare(want, "at the end")
	})
}

// TestStream drives the core as a stream does: nearly in order, with a watermark that leaves some events late, sealing
// sessions on the way. What is left equals the definition over the events that were not late.
func TestStream(t *testing.T) {
	eachSeed(t, 600, func(t *testing.T, r *rand.Rand) {
		retention := event.Micros(r.IntN(80))
		cfg := randomConfig(r, retention)
		events := randomEvents(r, 10+r.IntN(300), event.Micros(300+r.IntN(1+r.IntN(6000))))
		jitter := 1 + r.IntN(1+r.IntN(400))
		arrival := map[string]event.Micros{}
		for i := range events {
			arrival[events[i].identity()] = events[i].time + event.Micros(r.IntN(jitter))
		}
		slices.SortFunc(events, func(a, b refEvent) int { return int(arrival[a.identity()] - arrival[b.identity()]) })

		c, err := New(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		out := newTable(t, cfg)
		delay := event.Micros(r.IntN(100))
		flush := r.IntN(3) > 0
		newest := event.MinTime
		var saved chain
		for left := events; len(left) > 0; {
			n := min(len(left), 1+r.IntN(20))
			for _, e := range left[:n] {
				newest = max(newest, e.time)
			}
			if err := c.Apply(batchOf(left[:n]), out); err != nil {
				t.Fatal(err)
			}
			if r.IntN(4) == 0 { // an event that comes again changes nothing; it may be told as late once it is forgotten
				again := newTable(t, cfg)
				if err := c.Apply(batchOf(events[:1+r.IntN(len(events)-len(left)+n)]), again); err != nil {
					t.Fatal(err)
				}
			}
			left = left[n:]
			if r.IntN(3) == 0 {
				c = saved.next(t, r, cfg, c)
			}
			c.Advance(newest-delay, out)
			if flush && r.IntN(2) == 0 {
				c.Flush(out)
			}
		}
		c.Advance(event.MaxTime, out)
		c.Flush(out)
		kept := slices.DeleteFunc(slices.Clone(events), func(e refEvent) bool { return out.late[e.identity()] })
		out.compare(reference(cfg, kept), "stream")
	})
}

// chain holds snapshots and parts, as a caller keeps them.
type chain [][]byte

// next saves a core, as a part or, rarely, as a snapshot, and drops what is needed no more. Now and then it returns the
// core that the chain restores, which must write the same snapshot as the core itself, and goes on with the chain.
func (s *chain) next(t *testing.T, r *rand.Rand, cfg *Config, c *Core) *Core {
	t.Helper()
	if r.IntN(40) == 0 {
		*s = append(*s, c.AppendSnapshot(nil))
	} else {
		*s = append(*s, c.AppendPart(nil))
	}
	first := c.PartNumber() + 1 - uint64(len(*s))
	if needed := c.NeededPart(); r.IntN(4) > 0 {
		*s = (*s)[needed-first:]
	}
	if r.IntN(3) > 0 {
		return c
	}
	again, err := Restore(*cfg, *s...)
	if err != nil {
		t.Fatal(err)
	}
	if again.PartNumber() != c.PartNumber() || again.NeededPart() != c.NeededPart() {
		t.Fatalf("restored parts %d to %d, want %d to %d", again.NeededPart(), again.PartNumber(), c.NeededPart(), c.PartNumber())
	}
	if n := again.seen.numbers.live(); n != int64(len(again.seen.chunks)) {
		t.Fatalf("%d chunks of identities have numbers, there are %d", n, len(again.seen.chunks))
	}
	twin, err := Restore(*cfg, *s...)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := twin.AppendSnapshot(nil), c.whole(); !bytes.Equal(a, b) {
		t.Fatalf("a restored core writes another snapshot, after %d parts", len(*s))
	}
	return again
}

// whole is AppendSnapshot without a trace in the core.
func (c *Core) whole() []byte {
	changed := c.changed
	changed.comps = slices.Clone(changed.comps)
	cells, chunks := slices.Clone(c.reports.changed), slices.Clone(c.seen.changed)
	marks := map[*bool]bool{}
	c.comps.each(func(_ uint32, p *comp) { marks[&p.changed] = p.changed })
	c.reports.cells.each(func(_ uint32, p *reportCell) { marks[&p.changed] = p.changed })
	for _, p := range c.seen.chunks {
		marks[&p.changed] = p.changed
	}
	s := c.AppendSnapshot(nil)
	for p, was := range marks {
		*p = was
	}
	c.changed, c.reports.changed, c.seen.changed = changed, cells, chunks
	return s
}

// TestRestart crashes at random points and goes on from an earlier snapshot with other batches, over a sink that kept all
// that it got. Repair and what follows leave it as if nothing had happened.
func TestRestart(t *testing.T) {
	eachSeed(t, 400, func(t *testing.T, r *rand.Rand) {
		cfg := randomConfig(r, 1000)
		events := randomEvents(r, 10+r.IntN(200), event.Micros(200+r.IntN(2000)))
		want := reference(cfg, events)
		c, err := New(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		out := newTable(t, cfg)
		for at := 0; at < len(events); {
			snapshot, sequence := c.AppendSnapshot(nil), c.Sequence()
			n := 1 + r.IntN(len(events)-at)
			feed(r, c, events[at:at+n], out)
			if r.IntN(2) == 0 {
				at += n // it got as far as the next snapshot
				continue
			}
			if c, err = Restore(*cfg, snapshot); err != nil {
				t.Fatal(err)
			}
			ids, cells := out.after(sequence)
			out.seq = sequence
			c.Repair(ids, out)
			c.RepairCells(cells, out)
			if r.IntN(2) == 0 {
				c.Flush(out)
				out.compare(reference(cfg, events[:at]), "right after a repair")
			}
		}
		c.Advance(event.MaxTime, out)
		c.Flush(out)
		out.compare(want, "after the restarts")
	})
}

// TestRange computes the sessions that start in a range from the events within their reach alone. They equal those of the
// whole input, endless chains included.
func TestRange(t *testing.T) {
	eachSeed(t, 400, func(t *testing.T, r *rand.Rand) {
		cfg := randomConfig(r, 0)
		if cfg.Session.MaxSpan > 1000 {
			cfg.Session.MaxSpan = 200
		}
		horizon := event.Micros(1000 + r.IntN(4000))
		events := randomEvents(r, 50+r.IntN(400), horizon)
		from := event.Micros(r.Int64N(int64(horizon)))
		to := from + event.Micros(r.Int64N(int64(horizon)))
		want := reference(cfg, events)
		cfg.Range = Range{from, to + 1}
		c, err := New(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		out := newTable(t, cfg)
		feed(r, c, events, out)
		c.Advance(event.MaxTime, out)
		c.Flush(out)
		got := map[string]string{}
		for id, row := range out.rows {
			got[out.first[id]] = row
		}
		for k := range want.rows {
			if s := want.start[k]; s < from || s > to {
				delete(want.rows, k)
			}
		}
		compareMaps(t, "sessions that start in the range", got, want.rows)
	})
}

// TestShards splits the input by key group: the shards' rows together are those of one shard.
func TestShards(t *testing.T) {
	eachSeed(t, 200, func(t *testing.T, r *rand.Rand) {
		cfg := randomConfig(r, 0)
		events := randomEvents(r, 20+r.IntN(200), event.Micros(200+r.IntN(3000)))
		for i := range events {
			events[i].group = r.IntN(4)
		}
		want := reference(cfg, events)
		whole := newTable(t, cfg)
		cells := map[string][]int64{}
		for shard := range 4 {
			c, err := New(*cfg)
			if err != nil {
				t.Fatal(err)
			}
			out := newTable(t, cfg)
			feed(r, c, slices.DeleteFunc(slices.Clone(events), func(e refEvent) bool { return e.group != shard }), out)
			c.Advance(event.MaxTime, out)
			c.Flush(out)
			maps.Copy(whole.rows, out.rows)
			maps.Copy(whole.first, out.first)
			for k, v := range out.cells {
				var a, b, s int64
				fmt.Sscanf(v, "[%d %d %d]", &a, &b, &s)
				if cells[k] == nil {
					cells[k] = make([]int64, 3)
				}
				cells[k][0] += a
				cells[k][1] += b
				cells[k][2] += s
			}
		}
		for k, v := range cells {
			whole.cells[k] = fmt.Sprint(v)
		}
		whole.compare(want, "four shards")

		c, err := New(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		one := newTable(t, cfg)
		feed(r, c, events, one)
		c.Advance(event.MaxTime, one)
		c.Flush(one)
		one.compare(want, "one shard")
	})
}

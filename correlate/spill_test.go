package correlate

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weftdata/weft/event"
)

// shelf keeps spilled components as a driver does, without disk or index.
type shelf struct {
	t      *testing.T
	seed   uint64
	spare  int // one in so many is loaded although nothing needs it
	list   []Spilled
	loads  int
	needed int
}

// keep puts a component on the shelf.
func (s *shelf) keep(p *Spilled) {
	s.list = append(s.list, Spilled{slices.Clone(p.Bytes), slices.Clone(p.Reach), slices.Clone(p.IDs), p.Expiry, p.Events})
	if expiry, err := SpilledExpiry(p.Bytes); err != nil || expiry != p.Expiry {
		s.t.Fatalf("expiry %d in the bytes (%v), %d beside them", expiry, err, p.Expiry)
	}
}

// take loads the components that match, and, where one has expired, may drop it without a look.
func (s *shelf) take(r *rand.Rand, c *Core, match func(*Spilled) bool) {
	s.list = slices.DeleteFunc(s.list, func(p Spilled) bool {
		if p.Expiry < c.Oldest() && r.IntN(2) == 0 {
			return true
		}
		if !match(&p) {
			return false
		}
		events, err := c.Load(p.Bytes)
		if err != nil {
			s.t.Fatalf("load: %v", err)
		}
		if events == 0 && p.Expiry >= c.Oldest() {
			s.t.Fatal("loaded nothing of a component that has not expired")
		}
		s.loads++
		return true
	})
}

// before loads what a batch needs, and now and then what it does not.
func (s *shelf) before(r *rand.Rand, c *Core, b *event.Batch) {
	needs := c.Needs(b, s.seed)
	s.take(r, c, func(p *Spilled) bool {
		for i := range p.Reach {
			for k := range needs {
				if p.Reach[i].Meets(&needs[k]) {
					s.needed++
					return true
				}
			}
		}
		return r.IntN(s.spare) == 0
	})
}

// after spills something, or all there is.
func (s *shelf) after(r *rand.Rand, c *Core) {
	switch r.IntN(4) {
	case 0:
		c.Spill(s.seed, 1<<40, Which{Recent: true}, s.keep)
	case 1:
		c.Spill(s.seed, 1<<40, Which{}, s.keep)
	case 2:
		c.Spill(s.seed, int64(r.IntN(2000)), Which{Recent: r.IntN(2) == 0}, s.keep)
	}
}

// feedSpilling is feed with components that come and go.
func (s *shelf) feed(r *rand.Rand, c *Core, events []refEvent, out Output) {
	for len(events) > 0 {
		n := min(len(events), 1+r.IntN(1+r.IntN(60)))
		b := batchOf(events[:n])
		s.before(r, c, b)
		if err := c.Apply(b, out); err != nil {
			panic(err)
		}
		events = events[n:]
		if r.IntN(3) == 0 {
			c.Flush(out)
		}
		s.after(r, c)
	}
}

// TestSpillReference compares a core that spills with the definition, for unordered input with repeated events.
func TestSpillReference(t *testing.T) {
	loads := 0
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
		s := &shelf{t: t, seed: r.Uint64(), spare: 3 + r.IntN(200)}
		s.feed(r, c, again, out)
		c.Flush(out)
		out.compare(want, "before the end")
		c.Advance(event.MaxTime, out)
		c.Flush(out)
		out.compare(want, "at the end")
		loads += s.needed
	})
	if loads < 1000 {
		t.Errorf("%d components were needed again: the test tests nothing", loads)
	}
}

// TestSpillStream spills under a watermark, with late events, sealing, snapshots, parts and restores.
func TestSpillStream(t *testing.T) {
	needed := 0
	eachSeed(t, 600, func(t *testing.T, r *rand.Rand) {
		retention := event.Micros(r.IntN(80))
		cfg := randomConfig(r, retention)
		events := randomEvents(r, 10+r.IntN(300), event.Micros(300+r.IntN(1+r.IntN(6000))))
		for i := range events { // more steps than are kept for ever
			if r.IntN(4) == 0 {
				events[i].step = fmt.Sprint("step ", i)
			}
		}
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
		s := &shelf{t: t, seed: r.Uint64(), spare: 3 + r.IntN(200)}
		delay := event.Micros(r.IntN(100))
		newest := event.MinTime
		var saved chain
		for left := events; len(left) > 0; {
			n := min(len(left), 1+r.IntN(20))
			for _, e := range left[:n] {
				newest = max(newest, e.time)
			}
			b := batchOf(left[:n])
			s.before(r, c, b)
			if err := c.Apply(b, out); err != nil {
				t.Fatal(err)
			}
			left = left[n:]
			if r.IntN(3) == 0 {
				c = saved.next(t, r, cfg, c)
			}
			if r.IntN(3) == 0 {
				s.after(r, c)
			}
			if r.IntN(3) > 0 {
				c.Advance(newest-delay, out)
			}
			if r.IntN(2) == 0 {
				c.Flush(out)
			}
			if r.IntN(4) == 0 { // names that nobody has any more are given away
				c.dropSteps()
			}
			s.after(r, c)
		}
		c.Advance(event.MaxTime, out)
		c.Flush(out)
		kept := slices.DeleteFunc(slices.Clone(events), func(e refEvent) bool { return out.late[e.identity()] })
		out.compare(reference(cfg, kept), "stream")
		needed += s.needed
	})
	if needed < 1000 {
		t.Errorf("%d components were needed again: the test tests nothing", needed)
	}
}

// TestSpillRestart crashes and goes on from an earlier snapshot and what was spilled then.
func TestSpillRestart(t *testing.T) {
	eachSeed(t, 300, func(t *testing.T, r *rand.Rand) {
		cfg := randomConfig(r, 1000)
		events := randomEvents(r, 10+r.IntN(200), event.Micros(200+r.IntN(2000)))
		c, err := New(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		out := newTable(t, cfg)
		s := &shelf{t: t, seed: r.Uint64(), spare: 3 + r.IntN(200)}
		for at := 0; at < len(events); {
			snapshot, sequence, spilled := c.AppendSnapshot(nil), c.Sequence(), slices.Clone(s.list)
			n := 1 + r.IntN(len(events)-at)
			s.feed(r, c, events[at:at+n], out)
			if r.IntN(2) == 0 {
				at += n
				continue
			}
			if c, err = Restore(*cfg, snapshot); err != nil {
				t.Fatal(err)
			}
			s.list = spilled
			ids, cells := out.after(sequence)
			out.seq = sequence
			s.take(r, c, func(p *Spilled) bool {
				return slices.ContainsFunc(p.IDs, func(id ID) bool { return slices.Contains(ids, id) })
			})
			c.Repair(ids, out)
			c.RepairCells(cells, out)
			if r.IntN(2) == 0 {
				c.Flush(out)
				out.compare(reference(cfg, events[:at]), "right after a repair")
			}
		}
		c.Advance(event.MaxTime, out)
		c.Flush(out)
		out.compare(reference(cfg, events), "after the restarts")
	})
}

// TestSpillRange computes the sessions of a range with spilling.
func TestSpillRange(t *testing.T) {
	eachSeed(t, 200, func(t *testing.T, r *rand.Rand) {
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
		s := &shelf{t: t, seed: r.Uint64(), spare: 3 + r.IntN(200)}
		s.feed(r, c, events, out)
		c.Advance(event.MaxTime, out)
		c.Flush(out)
		got := map[string]string{}
		for id, row := range out.rows {
			got[out.first[id]] = row
		}
		maps.DeleteFunc(want.rows, func(k, _ string) bool { return want.start[k] < from || want.start[k] > to })
		compareMaps(t, "sessions that start in the range", got, want.rows)
	})
}

// TestSpillUnsaid hands out hardly anything before it is final, and spills it all the same. What is due is loaded before time passes
// it, and every row is handed out.
func TestSpillUnsaid(t *testing.T) {
	needed, owned := 0, 0
	eachSeed(t, 600, func(t *testing.T, r *rand.Rand) {
		cfg := randomConfig(r, event.Micros(r.IntN(2)*r.IntN(80)))
		horizon := event.Micros(300 + r.IntN(1+r.IntN(6000)))
		events := randomEvents(r, 10+r.IntN(300), horizon)
		want := reference(cfg, events)
		from, to := event.MinTime, event.MaxTime
		if r.IntN(2) == 0 && cfg.Session.MaxSpan < event.MaxTime/2 {
			from = event.Micros(r.Int64N(int64(horizon)))
			to = from + event.Micros(r.Int64N(int64(horizon)))
			cfg.Range, cfg.Reports = Range{from, to + 1}, nil
		}
		slices.SortFunc(events, func(a, b refEvent) int { return cmp.Compare(a.time, b.time) })
		c, err := New(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		out := newTable(t, cfg)
		s := &shelf{t: t, seed: r.Uint64(), spare: 3 + r.IntN(200)}
		flushes := r.IntN(2) * 10
		var saved chain
		advance := func(watermark event.Micros) {
			due := watermark - cfg.Session.Retention
			if watermark == event.MaxTime {
				due = watermark
			}
			s.take(r, c, func(p *Spilled) bool { return p.Expiry < due })
			c.Advance(watermark, out)
			for i := range s.list {
				if s.list[i].Expiry < c.Oldest() {
					t.Fatalf("a component that is due at %d is on the shelf at %d", s.list[i].Expiry, c.Oldest())
				}
			}
		}
		for left := events; len(left) > 0; {
			n := min(len(left), 1+r.IntN(20))
			b := batchOf(left[:n])
			s.before(r, c, b)
			if err := c.Apply(b, out); err != nil {
				t.Fatal(err)
			}
			if r.IntN(3) > 0 {
				c.Spill(s.seed, int64(r.IntN(1<<r.IntN(20))), Which{Recent: r.IntN(2) == 0, Unsaid: true}, s.keep)
			}
			if r.IntN(3) > 0 {
				advance(left[n-1].time)
			}
			left = left[n:]
			if flushes > 0 && r.IntN(flushes) == 0 {
				c.Flush(out)
			}
			if r.IntN(5) == 0 {
				c = saved.next(t, r, cfg, c)
			}
			c.Spill(s.seed, int64(r.IntN(1<<r.IntN(20))), Which{Recent: r.IntN(2) == 0, Unsaid: true}, s.keep)
		}
		all := c.Owning()
		for i := range s.list {
			owns, err := c.OwnsSpilled(s.list[i].Bytes)
			if err != nil {
				t.Fatal(err)
			}
			all = all || owns
		}
		before := len(out.rows)
		advance(event.MaxTime)
		c.Flush(out)
		if len(out.rows) > before {
			owned++
			if !all {
				t.Errorf("%d sessions of the range came although none was open", len(out.rows)-before)
			}
		}
		got := map[string]string{}
		for id, row := range out.rows {
			got[out.first[id]] = row
		}
		maps.DeleteFunc(want.rows, func(k, _ string) bool { return want.start[k] < from || want.start[k] > to })
		compareMaps(t, "rows", got, want.rows)
		needed += s.needed
	})
	if needed < 1000 || owned < 50 {
		t.Errorf("%d components were needed again, %d times sessions were open at the end: the test tests nothing", needed, owned)
	}
}

// TestSpillFrees spills everything and finds memory as empty as it was.
func TestSpillFrees(t *testing.T) {
	cfg := testConfig(100_000, 1000, 10)
	c, err := New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	fixed := c.UsedBytes()
	if err := c.Apply(chains(rand.New(rand.NewPCG(1, 1)), 5000), discard{}); err != nil {
		t.Fatal(err)
	}
	if n := c.Spill(1, 1<<40, Which{Recent: true}, func(*Spilled) {}); n != 0 {
		t.Errorf("spilled %d bytes of what was not handed out yet", n)
	}
	c.Flush(discard{})
	s := &shelf{t: t, seed: 1}
	full := c.UsedBytes()
	goal := full / 4
	if n := c.Spill(1, goal, Which{}, s.keep); n < goal || n > goal*3/2 {
		t.Errorf("%d bytes became free, want about %d", n, goal)
	}
	c.Spill(1, 1<<40, Which{Recent: true}, s.keep)
	if st := c.Stats(); st.OpenEvents != 0 || st.OpenSessions != 0 || st.OpenKeys != 0 {
		t.Errorf("%d events, %d sessions, %d keys are left in memory", st.OpenEvents, st.OpenSessions, st.OpenKeys)
	}
	tables := c.keys.bytes() - c.keys.runs.bytes() + c.seen.bytes() + c.reports.bytes()
	if n := c.UsedBytes() - tables; n > fixed+64<<10 {
		t.Errorf("%d bytes are in use beside tables, %d in an empty core", n, fixed)
	}
	state := c.StateBytes()
	s.take(rand.New(rand.NewPCG(1, 1)), c, func(*Spilled) bool { return true })
	if n := c.UsedBytes(); n > full*11/10 {
		t.Errorf("all is back and uses %d bytes, %d before", n, full)
	}
	if n := c.StateBytes(); n > state*11/10 {
		t.Errorf("memory grew from %d to %d although all of it was free", state, n)
	}
}

// TestSpillPrefersIdle spills a part, and keeps what had an event last.
func TestSpillPrefersIdle(t *testing.T) {
	cfg := testConfig(100_000, 1000, 10)
	c, err := New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	var events []refEvent
	for i := range 4000 {
		events = append(events, refEvent{time: event.Micros(i), offset: int64(i), step: "paid", keys: map[int][]string{0: {fmt.Sprint("k", (i*7919)%2000)}}})
	}
	if err := c.Apply(batchOf(events), discard{}); err != nil {
		t.Fatal(err)
	}
	c.Flush(discard{})
	newest := event.MinTime
	goal := c.UsedBytes() / 10
	c.Spill(1, goal, Which{}, func(s *Spilled) {
		for _, r := range s.Reach {
			newest = max(newest, r.To-40)
		}
	})
	if newest > 1500 {
		t.Errorf("spilled a component with an event at %d of 0 to 3999", newest)
	}
}

func TestLoadErrors(t *testing.T) {
	cfg := testConfig(100, 8, 10)
	c, err := New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(batchOf(randomEvents(rand.New(rand.NewPCG(3, 1)), 100, 2000)), discard{}); err != nil {
		t.Fatal(err)
	}
	c.Flush(discard{})
	s := &shelf{t: t}
	c.Spill(0, 1<<40, Which{Recent: true}, s.keep)
	if len(s.list) < 5 {
		t.Fatalf("%d components", len(s.list))
	}
	for _, p := range s.list {
		for n := range len(p.Bytes) {
			if _, err := c.Load(p.Bytes[:n]); !errors.Is(err, ErrSnapshotCorrupt) {
				t.Fatalf("%d of %d bytes: %v", n, len(p.Bytes), err)
			}
		}
		if _, err := c.Load(append(slices.Clone(p.Bytes), 0)); !errors.Is(err, ErrSnapshotCorrupt) {
			t.Fatalf("with a byte too many: %v", err)
		}
	}
}

// FuzzLoad loads damaged components. Whatever is accepted must work.
func FuzzLoad(f *testing.F) {
	cfg := testConfig(100, 8, 10)
	fresh := func() *Core {
		c, err := New(*cfg)
		if err != nil {
			f.Fatal(err)
		}
		if err := c.Apply(batchOf(randomEvents(rand.New(rand.NewPCG(1, 1)), 60, 2000)), discard{}); err != nil {
			f.Fatal(err)
		}
		c.Flush(discard{})
		return c
	}
	fresh().Spill(0, 1<<40, Which{Recent: true}, func(s *Spilled) { f.Add(slices.Clone(s.Bytes)) })
	f.Fuzz(func(t *testing.T, b []byte) {
		c := fresh()
		if _, err := c.Load(b); err != nil {
			if !errors.Is(err, ErrSnapshotCorrupt) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		if err := c.Apply(batchOf(randomEvents(rand.New(rand.NewPCG(2, 1)), 50, 2000)), discard{}); err != nil {
			t.Fatal(err)
		}
		c.Flush(discard{})
		c.Advance(1500, discard{})
		c.Spill(0, 1<<40, Which{Recent: true}, func(*Spilled) {})
		c.AppendSnapshot(nil)
		c.Advance(event.MaxTime, discard{})
		c.Flush(discard{})
	})
}

// BenchmarkSpill measures taking out, needs, and putting back, of 100,000 purchases of ten events.
func BenchmarkSpill(b *testing.B) {
	cfg := testConfig(100_000, 1000, 10)
	c, err := New(*cfg)
	if err != nil {
		b.Fatal(err)
	}
	batch := chains(rand.New(rand.NewPCG(1, 1)), 10_000)
	if err := c.Apply(batch, discard{}); err != nil {
		b.Fatal(err)
	}
	c.Flush(discard{})
	var bytes []byte
	var ends []int
	b.Run("out-and-in", func(b *testing.B) {
		for b.Loop() {
			bytes, ends = bytes[:0], ends[:0]
			c.Spill(1, 1<<40, Which{Recent: true}, func(s *Spilled) { bytes = append(bytes, s.Bytes...); ends = append(ends, len(bytes)) })
			start := 0
			for _, end := range ends {
				if _, err := c.Load(bytes[start:end]); err != nil {
					b.Fatal(err)
				}
				start = end
			}
		}
		b.ReportMetric(float64(len(bytes))/1e5, "B/event")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1e5, "ns/event")
	})
	b.Run("needs", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n = len(c.Needs(batch, 1))
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(batch.Events)), "ns/event")
		b.ReportMetric(float64(n)/float64(len(batch.Events)), "needs/event")
	})
}

// TestSpillParts loads a few of many components: the next part of the state must have them, though no event came.
func TestSpillParts(t *testing.T) {
	cfg := testConfig(100_000, 1000, 10)
	c, err := New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(chains(rand.New(rand.NewPCG(1, 1)), 3000), discard{}); err != nil {
		t.Fatal(err)
	}
	c.Flush(discard{})
	saved := chain{c.AppendPart(nil)}
	s := &shelf{t: t, seed: 1}
	c.Spill(s.seed, c.UsedBytes()/2, Which{Recent: true}, s.keep)
	saved = append(saved, c.AppendPart(nil))
	left := 5
	s.take(rand.New(rand.NewPCG(1, 1)), c, func(*Spilled) bool { left--; return left >= 0 })
	saved = append(saved, c.AppendPart(nil))
	again, err := Restore(*cfg, saved...)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.whole(), c.whole()) {
		t.Error("the parts restore another state")
	}
	if len(saved[2]) > len(saved[0])/8 {
		t.Errorf("a part with 5 components has %d bytes, the state %d", len(saved[2]), len(saved[0]))
	}
}

package spill

import (
	"context"
	"flag"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

var (
	long       = flag.Bool("long", false, "run the tests that take minutes")
	longEvents = flag.Int("long-events", 20_000_000, "settled events of TestSpillLong")
	longMemory = flag.Int64("long-memory", 384<<20, "bound of the state in memory of TestSpillLong; 0: none")
	longLimit  = flag.Int64("long-limit", 960<<20, "GOMEMLIMIT of TestSpillLong, which must then stay below 1 GiB; 0: none")
)

// TestSpillLong holds many settled events that can still be linked to, lets new traffic stream past that hits some of them,
// saves all of it and restores it, within a bound of memory. It prints what docs/benchmarks.md quotes:
//
//	go test ./spill -run TestSpillLong -long -v -timeout 30m
func TestSpillLong(t *testing.T) {
	if !*long {
		t.Skip("takes minutes: -long runs it")
	}
	if *longLimit > 0 {
		debug.SetMemoryLimit(*longLimit)
	}
	cfg := purchaseConfig()
	core, err := correlate.New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := Config{Dir: dir, MemoryBytes: *longMemory, Prefix: "payments/v1/0/spill-1", Log: slog.New(slog.DiscardHandler)}
	var s *Store
	if *longMemory > 0 {
		s = New(config)
		defer func() { s.Close() }()
	}
	g := newPurchases(cfg)
	phase := func(name string, events int, hits float64) {
		before, lookups, loads, misled := g.made, s.Status().Lookups, s.Status().Loads, s.Status().Misled
		start, cpu := time.Now(), cpuSeconds()
		var slowest time.Duration
		for g.made-before < events {
			b := g.batch(hits)
			at := time.Now()
			if err := s.Load(core, b); err != nil {
				t.Fatal(err)
			}
			if err := core.Apply(b, nothing{}); err != nil {
				t.Fatal(err)
			}
			if g.batches%32 == 0 {
				core.Advance(g.now-event.Micros(30e6), nothing{})
				core.Flush(nothing{})
			}
			if err := s.Relieve(t.Context(), core, func() { core.Flush(nothing{}) }); err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(at))
		}
		took, st := time.Since(start), s.Status()
		t.Logf("%s: %d events in %.1f s, %.0f/s, %.2f µs of CPU each, slowest batch %v; %d look-ups, %d loads, %d reads for nothing; core uses %d MiB, RSS %d MiB, peak %d MiB",
			name, g.made-before, took.Seconds(), float64(g.made-before)/took.Seconds(), (cpuSeconds()-cpu)*1e6/float64(g.made-before), slowest.Round(time.Millisecond),
			st.Lookups-lookups, st.Loads-loads, st.Misled-misled, core.UsedBytes()>>20, residentMiB("VmRSS"), residentMiB("VmHWM"))
		t.Logf("    on disk: %d files, %d events of %d sessions, %d MiB, %.1f bytes an event; index in memory %d MiB, %.2f bytes an event; %d merges",
			st.Files, st.Events, st.Components, st.Bytes>>20, float64(st.Bytes)/float64(max(1, st.Events)), st.MemoryBytes>>20, float64(st.MemoryBytes)/float64(max(1, st.Events)), st.Merges)
	}
	phase("fill", *longEvents, 0)
	phase("no hits", 2_000_000, 0)
	phase("1 % hits", 2_000_000, 0.01)
	phase("5 % hits", 2_000_000, 0.05)

	if s == nil { // what it costs without a bound
		return
	}
	objects := &folder{dir: filepath.Join(dir, "objects")}
	var parts [][]byte
	var state *State
	for n, name := range []string{"first checkpoint", "checkpoint after 100,000 events"} {
		start := time.Now()
		parts = append(parts, core.AppendPart(nil))
		save := s.Checkpoint(uint64(n + 1))
		stall := time.Since(start)
		objects.bytes = 0
		if err := save.Upload(objects.put); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: state %d MiB, spilled files %d MiB, stall %v, in all %v; RSS %d MiB, peak %d MiB", name, len(parts[n])>>20, objects.bytes>>20,
			stall.Round(time.Millisecond), time.Since(start).Round(time.Millisecond), residentMiB("VmRSS"), residentMiB("VmHWM"))
		state = save.State()
		s.Saved()
		if n == 0 {
			phase("between", 100_000, 0.01)
		}
	}
	want := s.Status()
	s.Close()
	core, s = nil, nil
	runtime.GC()

	start := time.Now()
	again, err := correlate.Restore(*cfg, parts...)
	if err != nil {
		t.Fatal(err)
	}
	restored := time.Since(start)
	s = New(config)
	if err := s.Restore(t.Context(), objects.get, state); err != nil {
		t.Fatal(err)
	}
	got := s.Status()
	t.Logf("restore: core %v, all %v; RSS %d MiB, peak %d MiB", restored.Round(time.Millisecond), time.Since(start).Round(time.Millisecond), residentMiB("VmRSS"), residentMiB("VmHWM"))
	if got.Components != want.Components || got.Events != want.Events {
		t.Errorf("restored %d sessions of %d events, want %d of %d", got.Components, got.Events, want.Components, want.Events)
	}
	core = again
	phase("after the restore", 500_000, 0.01)
	if *longLimit > 0 && residentMiB("VmHWM") > 1024 {
		t.Errorf("the process took %d MiB, want at most 1024", residentMiB("VmHWM"))
	}
}

// purchaseConfig is of payments whose orders can be linked to for a week.
func purchaseConfig() *correlate.Config {
	const second, hour = event.Micros(1e6), event.Micros(3600e6)
	return &correlate.Config{
		Topics:  []string{"channel", "game", "orders"},
		Kinds:   []correlate.Kind{{Name: "order", Gap: 168 * hour}, {Name: "txn", Gap: 168 * hour}, {Name: "receipt", Gap: 168 * hour}},
		Fields:  []correlate.Field{{Name: "amount", Int: true}, {Name: "user"}},
		Steps:   []string{"delivered", "paid"},
		Session: correlate.Session{MaxSpan: 240 * hour, Settle: 600 * second, Retention: 24 * hour},
		Scenarios: []correlate.Scenario{
			{Name: "done", When: func(f *correlate.Facts) bool { return f.Steps[1].Count > 0 && f.Steps[0].Count > 0 }},
		},
		Reports: []correlate.Report{{Name: "funnel", Every: 60 * second, Measures: []correlate.Measure{
			{Name: "sessions"}, {Name: "revenue", Op: correlate.SumField},
		}}},
	}
}

type nothing struct{}

func (nothing) Upsert(uint64, *correlate.Row)  {}
func (nothing) Tombstone(uint64, correlate.ID) {}
func (nothing) Cell(uint64, *correlate.Cell)   {}
func (nothing) Late(*event.Batch, int)         {}

// purchases makes purchases of six events with three keys: an order for a minute, a transaction, a receipt. Within a purchase
// events are apart by other purchases' events, as in a log.
type purchases struct {
	r       *rand.Rand
	seed    uint64
	b       event.Batch
	now     event.Micros
	tick    int
	made    int
	batches int
	offsets [3]int64
}

const (
	purchaseEvents = 6
	purchaseApart  = 500 // purchases between two events of one
	batchEvents    = 1024
)

func newPurchases(cfg *correlate.Config) *purchases {
	return &purchases{r: rand.New(rand.NewPCG(1, 1)), seed: cfg.Seed}
}

// batch makes the next batch. hits is the share of events that come days late, with the order of an old purchase.
func (p *purchases) batch(hits float64) *event.Batch {
	p.b.Reset()
	for len(p.b.Events) < batchEvents {
		p.tick++
		p.now = event.Micros(1_790_000_000_000_000 + p.tick*130_000) // 3.3 million purchases are five days
		for k := range purchaseEvents {
			if n := p.tick - k*purchaseApart; n > 0 {
				p.event(n, k)
			}
			if p.r.Float64() < hits {
				p.event(1+p.r.IntN(max(1, p.tick-20*purchaseApart)), -1)
			}
		}
	}
	p.made += len(p.b.Events)
	p.batches++
	return &p.b
}

// event adds event k of purchase n; k -1 is one that comes later.
func (p *purchases) event(n, k int) {
	b := &p.b
	value := func(kind event.ValueKind, id uint8, prefix string) {
		v := event.Value{Off: uint32(len(b.Data)), ID: id, Kind: kind}
		b.Data = append(b.Data, prefix...)
		b.Data = strconv.AppendInt(b.Data, int64(n)*7919+1_000_000_000_000, 10)
		v.Len = uint16(len(b.Data) - int(v.Off))
		v.Bits = event.Hash(p.seed, b.Bytes(&v))
		b.Values = append(b.Values, v)
	}
	if k < 3 {
		value(event.KeyValue, 0, "2609")
	}
	if k >= 1 && k < 5 {
		value(event.KeyValue, 1, "txn-")
	}
	if k >= 3 {
		value(event.KeyValue, 2, "rcpt-")
	}
	if k <= 0 {
		b.Values = append(b.Values, event.Value{Bits: 600, Kind: event.IntValue})
		value(event.StringValue, 1, "u")
	}
	source := max(0, k) % 3
	b.Events = append(b.Events, event.Event{
		Time: p.now, Offset: p.offsets[source], Source: uint16(source),
		Step: b.Step([]byte([]string{"refund", "ordered", "paid", "callback", "delivered", "seen", "done"}[k+1])), Vals: uint32(len(b.Values)),
	})
	p.offsets[source]++
}

// folder keeps objects as files.
type folder struct {
	dir   string
	bytes int64
}

func (f *folder) path(key string) string {
	return filepath.Join(f.dir, strings.ReplaceAll(key, "/", "_"))
}

func (f *folder) get(_ context.Context, key string) ([]byte, error) { return os.ReadFile(f.path(key)) }

func (f *folder) put(key string, data []byte) error {
	f.bytes += int64(len(data))
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(f.path(key), data, 0o600)
}

// residentMiB reads a line of the process's memory, 0 where the system does not tell.
func residentMiB(name string) int {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err == nil {
				return n >> 10
			}
		}
	}
	return 0
}

// cpuSeconds is what the process has used, 0 where the system does not tell.
func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

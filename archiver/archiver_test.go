package archiver

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
)

var seedFlag = flag.Uint64("seed", 0, "run TestAnything with this seed only")

func readParquet[T any](r io.ReaderAt, size int64) ([]T, error) { return parquet.Read[T](r, size) }

const day = event.Micros(24 * time.Hour / time.Microsecond)

// noon is the time of the first records.
const noon = event.Micros(1_767_225_600_000_000)

// config is of an archiver that writes many small files.
func config(h *handle) Config {
	return Config{
		Topic: topic, Log: h, Objects: h, FileBytes: 600, FileAge: 10 * time.Second, FetchBytes: 200, FetchWait: time.Second,
		RetryFor: time.Hour, Retryable: func(err error) bool { return errors.Is(err, errFault) },
	}
}

// until runs an archiver until it has archived what is there, or fails.
func until(t *testing.T, w *world, cfg Config) error {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	cfg.Progress = func(s Status) {
		w.mu.Lock()
		defer w.mu.Unlock()
		done := len(s.Partitions) == len(w.logs)
		for _, p := range s.Partitions {
			done = done && p.Next == int64(len(w.logs[p.ID]))
		}
		if done {
			stop()
		}
	}
	return Run(ctx, cfg)
}

func none(int64) bool { return false }

// simulate runs a test where time is virtual, and what it returns where it is not: decompression shares goroutines.
func simulate(t *testing.T, run func(t *testing.T) (check func(t *testing.T))) {
	t.Helper()
	var check func(t *testing.T)
	synctest.Test(t, func(t *testing.T) { check = run(t) })
	check(t)
}

// TestKillAtEveryStep kills a run at every write, before it took place and after, and lets another go on.
func TestKillAtEveryStep(t *testing.T) {
	fill := func() *world {
		w := newWorld()
		for i := range 60 {
			if i%11 == 5 || i == 59 {
				w.addNothing(0)
				continue
			}
			at := noon + event.Micros(i)*1_000_000
			if i%20 == 7 {
				at -= 3 * day
			}
			w.add(0, at)
		}
		return w
	}
	jobs := []*operator.Job{compile(t, ordersJob)}
	calls := 0
	simulate(t, func(t *testing.T) func(*testing.T) {
		w := fill()
		h := w.open()
		cfg := config(h)
		cfg.Jobs = jobs
		if err := until(t, w, cfg); err != nil {
			t.Fatal(err)
		}
		calls = h.calls
		if n := len(w.manifests(t, 0)); n < 4 || calls < 2*n+2 {
			t.Fatalf("%d manifests in %d writes prove little", n, calls)
		}
		return func(t *testing.T) { w.check(t, 0, none) }
	})
	for killAt := 1; killAt <= calls; killAt++ {
		for _, after := range []bool{false, true} {
			for _, fileBytes := range []int64{600, 150, 1 << 20} { // of the second run
				name := fmt.Sprintf("write %d, after it %v, then files of %d", killAt, after, fileBytes)
				simulate(t, func(t *testing.T) func(*testing.T) {
					w := fill()
					h := w.open()
					h.killAt, h.after = killAt, after
					cfg := config(h)
					cfg.Jobs = jobs
					if err := until(t, w, cfg); err != nil && !errors.Is(err, errDead) {
						t.Fatalf("%s: first run: %v", name, err)
					}
					cfg = config(w.open())
					cfg.Jobs, cfg.FileBytes = jobs, fileBytes
					if err := until(t, w, cfg); err != nil {
						t.Fatalf("%s: second run: %v", name, err)
					}
					return func(t *testing.T) {
						if w.check(t, 0, none); t.Failed() {
							t.Fatal(name)
						}
					}
				})
			}
		}
	}
}

// TestAnything lets archivers of all sizes run, die, stall and race, with a network that fails, while records come.
func TestAnything(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, rand.Uint64()}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	job := compile(t, ordersJob)
	fenced := 0
	for _, seed := range seeds {
		simulate(t, func(t *testing.T) func(*testing.T) {
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			w := newWorld()
			w.logs = map[int32][]*archive.Record{0: nil, 1: nil}
			w.faults = rand.New(rand.NewPCG(seed, 1))
			produce := func(n int) {
				for range n {
					partition := int32(r.IntN(len(w.logs)))
					switch r.IntN(10) {
					case 0:
						w.addNothing(partition)
					case 1:
						w.add(partition, noon-3*day)
					default:
						w.add(partition, noon+event.Micros(r.IntN(1_000_000_000)))
					}
				}
			}
			var runs sync.WaitGroup
			var stops []func()
			var mu sync.Mutex
			for round := range 8 {
				produce(r.IntN(60))
				if round == 4 {
					w.mu.Lock()
					w.logs[2] = nil // a partition is added
					w.mu.Unlock()
				}
				h := w.open()
				cfg := config(h)
				cfg.FileBytes, cfg.FetchBytes = int64(50<<r.IntN(8)), 20<<r.IntN(8)
				cfg.MemoryBytes, cfg.Commits = int64(1000<<r.IntN(10)), 1+r.IntN(3)
				if r.IntN(2) == 0 {
					cfg.Jobs = []*operator.Job{job}
				}
				ctx, stop := context.WithCancel(t.Context())
				stops = append(stops, stop)
				runs.Go(func() {
					defer stop()
					err := Run(ctx, cfg)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case errors.Is(err, ErrFenced):
						fenced++
					case err != nil && !errors.Is(err, errDead):
						t.Errorf("seed %d: %v", seed, err)
					}
				})
				time.Sleep(time.Duration(r.IntN(40_000)) * time.Millisecond)
				switch r.IntN(3) {
				case 0:
					stop()
				case 1:
					w.mu.Lock()
					h.dead = true
					w.mu.Unlock()
				default: // it goes on beside the next
				}
			}
			produce(10)
			w.mu.Lock()
			w.faults = nil
			w.mu.Unlock()
			for range 20 {
				err := until(t, w, config(w.open()))
				if err == nil {
					break
				}
				if !errors.Is(err, ErrFenced) {
					t.Fatalf("seed %d: the last run: %v", seed, err)
				}
			}
			for _, stop := range stops {
				stop()
			}
			runs.Wait()
			return func(t *testing.T) {
				for id := range w.logs {
					w.check(t, id, none)
				}
				if t.Failed() {
					t.Fatalf("go test ./archiver -run TestAnything -seed %d", seed)
				}
			}
		})
	}
	if *seedFlag == 0 && fenced == 0 {
		t.Error("no archiver was ever fenced, so this proves little")
	}
}

// TestZombie holds two archivers to one partition: of two that write a number one stops, and takes its files away.
func TestZombie(t *testing.T) {
	simulate(t, func(t *testing.T) func(*testing.T) {
		w := newWorld()
		w.logs[0] = nil
		slow := w.open()
		done := make(chan error, 1)
		go func() { done <- Run(t.Context(), config(slow)) }()
		time.Sleep(2 * time.Second)
		w.add(0, noon)
		time.Sleep(2 * time.Second) // it has read the record and waits for more
		cfg := config(w.open())
		cfg.FileBytes = 1
		if err := until(t, w, cfg); err != nil {
			t.Fatal(err)
		}
		err := <-done
		if !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "0000000000.json has offsets [0, 1) of another run") {
			t.Errorf("got %v, want ErrFenced", err)
		}
		if left := w.garbage(t); len(left) > 0 {
			t.Errorf("the loser left %v", left)
		}
		return func(t *testing.T) { w.check(t, 0, none) }
	})
}

// A manifest that was written and whose answer was lost must not be taken for another's, and its files must stay.
func TestLostReply(t *testing.T) {
	for _, store := range []string{"knows nonces", "does not"} {
		simulate(t, func(t *testing.T) func(*testing.T) {
			w := newWorld()
			w.add(0, noon)
			h := &lossy{handle: w.open(), knows: store == "knows nonces"}
			cfg := config(h.handle)
			cfg.Objects = h
			if err := until(t, w, cfg); err != nil {
				t.Fatal(err)
			}
			if h.lost != 1 {
				t.Errorf("%d answers were lost", h.lost)
			}
			return func(t *testing.T) { w.check(t, 0, none) }
		})
	}
}

// lossy loses the answer to the first conditional write.
type lossy struct {
	*handle
	knows bool
	lost  int
}

func (l *lossy) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) error {
	if l.knows && l.w.objects[key].nonce == nonce {
		return nil
	}
	err := l.handle.PutIfAbsent(ctx, key, data, nonce)
	if err == nil && l.lost == 0 {
		l.lost++
		return errFault
	}
	return err
}

// What retention deletes before it is archived is an error that names the offsets, and what was read before is kept. With
// SkipDeleted it is a gap.
func TestDeleted(t *testing.T) {
	for _, running := range []bool{true, false} { // when it happens
		for _, skip := range []bool{false, true} {
			simulate(t, func(t *testing.T) func(*testing.T) {
				w := newWorld()
				for range 5 {
					w.add(0, noon)
				}
				cfg := config(w.open())
				cfg.FileBytes, cfg.SkipDeleted = 1<<20, skip
				if !running {
					if err := until(t, w, cfg); err != nil {
						t.Fatal(err)
					}
				}
				lose := func() {
					for range 10 {
						w.add(0, noon)
					}
					w.retain(0, 9)
				}
				done := make(chan error, 1)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				if running {
					go func() { done <- Run(ctx, cfg) }()
					time.Sleep(1500 * time.Millisecond) // it has read five records, which wait
					if n := len(w.manifests(t, 0)); n != 0 {
						t.Fatalf("%d manifests already", n)
					}
					lose()
				} else {
					lose()
					go func() { done <- Run(ctx, cfg) }()
				}
				time.Sleep(time.Minute)
				stop()
				err := <-done
				list := w.manifests(t, 0)
				if !skip {
					if want := "4 of them, offsets 5 to 8"; !errors.Is(err, ErrOffsetGone) || !strings.Contains(err.Error(), want) {
						t.Errorf("got %v, want %q", err, want)
					}
					if to := list[len(list)-1].To; to != 5 {
						t.Errorf("what was read was archived up to %d, want 5", to)
					}
					return func(*testing.T) {}
				}
				if err != nil {
					t.Fatal(err)
				}
				lost := int64(0)
				for _, m := range list {
					lost += m.Lost()
				}
				if lost != 4 {
					t.Errorf("the manifests say that %d are lost, want 4", lost)
				}
				return func(t *testing.T) { w.check(t, 0, func(offset int64) bool { return offset >= 5 && offset < 9 }) }
			})
		}
	}
}

func TestRecreated(t *testing.T) {
	for name, change := range map[string]func(*world){
		"other identity": func(w *world) { w.identity = "id-2" },
		"shorter":        func(w *world) { w.logs[0] = w.logs[0][:2] },
	} {
		for _, running := range []bool{false, true} {
			simulate(t, func(t *testing.T) func(*testing.T) {
				w := newWorld()
				for range 5 {
					w.add(0, noon)
				}
				if err := until(t, w, config(w.open())); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				if running {
					go func() { done <- Run(t.Context(), config(w.open())) }()
					time.Sleep(time.Minute)
				}
				w.mu.Lock()
				change(w)
				w.mu.Unlock()
				if !running {
					go func() { done <- Run(t.Context(), config(w.open())) }()
				}
				if err := <-done; !errors.Is(err, ErrRecreated) {
					t.Errorf("%s: got %v, want ErrRecreated", name, err)
				}
				return func(*testing.T) {}
			})
		}
	}
}

// A file closes by age, so that the archive follows; markers of transactions alone are followed too; and a topic that is
// quiet writes nothing.
func TestFollows(t *testing.T) {
	simulate(t, func(t *testing.T) func(*testing.T) {
		w := newWorld()
		w.logs[0] = nil
		ctx, stop := context.WithCancel(t.Context())
		var status Status
		cfg := config(w.open())
		cfg.FileBytes, cfg.Progress = 1<<20, func(s Status) { status = s }
		done := make(chan error, 1)
		go func() { done <- Run(ctx, cfg) }()
		ends := []int64{}
		for range 3 {
			w.add(0, noon)
			w.addNothing(0)
			time.Sleep(15 * time.Second)
			list := w.manifests(t, 0)
			ends = append(ends, list[len(list)-1].To)
		}
		w.addNothing(0)
		time.Sleep(10 * time.Minute)
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		list := w.manifests(t, 0)
		if fmt.Sprint(ends) != "[2 4 6]" || len(list) != 4 || list[3].Records != 0 || list[3].To != 7 {
			t.Errorf("after 15 s each the archive ended at %v; it has %d manifests: %+v", ends, len(list), list[len(list)-1])
		}
		p := status.Partitions[0]
		if p.Next != 7 || p.End != 7 || p.Records != 3 || p.Manifests != 4 || p.Files != 3 || status.Lag() != 0 || p.Waiting != 0 {
			t.Errorf("status is %+v", p)
		}
		return func(t *testing.T) { w.check(t, 0, none) }
	})
}

// Partitions share the memory: with little of it they write smaller files, and never hold much more.
func TestMemory(t *testing.T) {
	simulate(t, func(t *testing.T) func(*testing.T) {
		w := newWorld()
		for id := range int32(5) {
			for range 300 {
				w.add(id, noon)
			}
		}
		cfg := config(w.open())
		cfg.FileBytes, cfg.MemoryBytes = 1<<20, 100<<10
		ctx, stop := context.WithCancel(t.Context())
		most := int64(0)
		done := make(chan error, 1)
		cfg.Progress = func(s Status) {
			n := int64(0)
			for _, p := range s.Partitions {
				n += p.Waiting
			}
			most = max(most, n)
			if s.Lag() == 0 {
				stop()
			}
		}
		cfg.FileAge = 3 * time.Second
		go func() { done <- Run(ctx, cfg) }()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		// All is read before the first second is over, and no file is old enough before the third.
		if most < cfg.MemoryBytes/2 || most > 2*cfg.MemoryBytes {
			t.Errorf("%d bytes waited, with %d allowed", most, cfg.MemoryBytes)
		}
		// Only who holds the most writes: files stay as large as they can be.
		manifests := 0
		for id := range w.logs {
			manifests += len(w.manifests(t, id))
		}
		if manifests > 12 {
			t.Errorf("%d manifests were written", manifests)
		}
		return func(t *testing.T) {
			for id := range w.logs {
				w.check(t, id, none)
			}
		}
	})
}

// A run that is killed leaves files that no manifest lists. They are swept when they are old and nobody can list them.
func TestSweep(t *testing.T) {
	simulate(t, func(t *testing.T) func(*testing.T) {
		w := newWorld()
		for range 20 {
			w.add(0, noon)
		}
		for _, killAt := range []int{2, 4} { // at a manifest, after its data file
			h := w.open()
			h.killAt = killAt
			if err := until(t, w, config(h)); !errors.Is(err, errDead) {
				t.Fatal(err)
			}
		}
		before := w.garbage(t)
		if len(before) != 2 {
			t.Fatalf("left behind: %v, want two files", before)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		cfg := config(w.open())
		cfg.SweepEvery = time.Hour
		go func() { done <- Run(ctx, cfg) }()
		time.Sleep(23*time.Hour + 30*time.Minute)
		if got := w.garbage(t); len(got) != 2 {
			t.Errorf("before a day has gone %v are left, want two files", got)
		}
		// A file of a number that is not committed yet may be somebody's who is about to.
		coming := archive.DataKey(topic, 0, int64(len(w.manifests(t, 0))), "zombie", 0)
		w.mu.Lock()
		w.objects[coming] = stored{modified: time.Now().Add(-48 * time.Hour)}
		w.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if got := w.garbage(t); len(got) != 1 || got[0] != coming {
			t.Errorf("after a day %v are left, want %s", got, coming)
		}
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return func(t *testing.T) { w.check(t, 0, none) }
	})
}

// The last manifest is found by few listings.
func TestLastManifest(t *testing.T) {
	for _, first := range []int64{0, 5} { // the head of an archive may be gone
		for n := range int64(40) {
			w := newWorld()
			for s := first; s < first+n; s++ {
				m := &archive.Manifest{Topic: topic, Sequence: s, Nonce: "n", From: s, To: s + 1,
					Gaps: []archive.Gap{{From: s, To: s + 1, Missing: 1, Reason: archive.Absent}}}
				text, err := m.Encode()
				if err != nil {
					t.Fatal(err)
				}
				w.objects[archive.ManifestKey(topic, 0, s)] = stored{data: text}
				w.objects[archive.DataKey(topic, 0, s, "x", 0)] = stored{}
			}
			w.objects[archive.DataKey(topic, 0, first+n, "x", 0)] = stored{} // of a run that crashed
			h := w.open()
			a := &archiver{cfg: config(h)}
			m, err := a.lastManifest(t.Context(), 0)
			switch {
			case err != nil:
				t.Fatal(err)
			case n == 0 && m != nil, n > 0 && (m == nil || m.Sequence != first+n-1):
				t.Errorf("of %d from %d on got %+v", n, first, m)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	err := Run(t.Context(), Config{Topic: "a/b", FileAge: -1, FileBytes: 1 << 40})
	for _, want := range []string{`topic "a/b"`, "no log or objects", "FileAge is negative", "FileBytes is 1099511627776; at most"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

const ordersJob = `version: weft/v1
job: payments
sources:
  orders:
    topic: pay.orders
    format: json
    time: {field: ts, layout: unix_ms}
    step: event
    keys: {order: order}
session: {gap: 30m}
`

func compile(t testing.TB, text string) *operator.Job {
	t.Helper()
	spec, err := jobspec.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	j, err := operator.Compile(spec, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

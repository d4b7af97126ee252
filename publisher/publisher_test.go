package publisher

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/weftdata/weft/store"
)

var seeds = flag.Int("seeds", 8, "number of random worlds")

func living() *faults { return &faults{at: -1} }

// play changes a world in steps, between which publishers run.
func play(w *world) []func() {
	var a, a1, b store.Owner
	return []func(){
		func() { // nothing is served: a shadow publishes nothing
			a = w.shard("1", 0)
			w.write(a, "first", 1, 2, 3, 4, 5, 6)
		},
		func() { w.serve(a.Generation, 0) },
		func() {
			a1 = w.shard("1", 1)
			w.write(a1, "second shard", 20, 21, 22)
			w.write(a, "changed", 2, -3, 7, 8)
		},
		func() { // the shard crashed: a later epoch writes again what came after its checkpoint
			a = w.shard("1", 0)
			w.write(a, "repaired", 2, 9, -8, -10)
		},
		func() { // version 2 finds other sessions, and some that are the same
			b = w.shard("2", 0)
			w.write(b, "first", 1, 4)
			w.write(b, "version 2", 2, 5, 11, 12, 21)
			w.write(b, "gone", -22, 6)
			w.write(b, "", -6)
			w.serve(b.Generation, 0)
			w.write(a, "shadow now", 5, 13) // is not served any more
			w.write(a1, "", -20)            // was published, and is gone before the switch is seen
		},
		func() { w.write(b, "later", 12, 14, -11) },
		func() { // back, but only for what starts from session 5 on
			w.write(a, "rollback", 6)
			w.serve(a.Generation, 5)
			w.write(b, "still served", 2, 3)
			w.write(b, "not served", 15)
		},
		func() { w.write(a, "end", 14, -5) },
	}
}

func TestPublish(t *testing.T) {
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		t.Run(string(outlet), func(t *testing.T) {
			w := newWorld(t)
			for i, step := range play(w) {
				step()
				if _, err := w.publish(outlet, living()); err != nil {
					t.Fatal(err)
				}
				w.check(fmt.Sprint("step ", i), outlet)
			}
			if n := len(w.served()); n != 11 {
				t.Errorf("%d sessions are served in the end: the play has lost its point", n)
			}
		})
	}
}

// TestKilledAnywhere kills a run at each of its calls, before or after the call took effect, at every step of the play; what
// it had under way arrives late. Another run goes on, and in the end consumers have what is served.
func TestKilledAnywhere(t *testing.T) {
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/after=%t", outlet, after), func(t *testing.T) {
				t.Parallel() // most of the time is spent waiting
				deaths := 0
				for kill := 0; ; kill += 1 + kill/2 {
					w := newWorld(t)
					died := false
					for i, step := range play(w) {
						step()
						f := &faults{at: kill, after: after}
						_, err := w.publish(outlet, f)
						if err != nil && !errors.Is(err, errKilled) {
							t.Fatal(err)
						}
						if err != nil {
							died = true
							deaths++
							if kill%2 == 0 { // before the next run reads the topic, or while it writes
								w.log.arrive()
							}
							second := &faults{at: kill / 2, after: !after}
							if _, err := w.publish(outlet, second); err != nil && !errors.Is(err, errKilled) {
								t.Fatal(err)
							}
							w.log.arrive()
						}
						if _, err := w.publish(outlet, living()); err != nil {
							t.Fatal(err)
						}
						w.check(fmt.Sprintf("killed at call %d, step %d", kill, i), outlet)
					}
					if t.Failed() || !died {
						break
					}
				}
				t.Logf("%d runs died", deaths)
				if deaths < 30 {
					t.Errorf("only %d runs died", deaths)
				}
			})
		}
	}
}

// TestRandomWorlds changes the world while runs look at it: shards write, crash and are repaired, maps switch to and fro, runs
// die at any call, and what they had under way arrives late. In the end consumers have what is served.
func TestRandomWorlds(t *testing.T) {
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		for seed := range uint64(*seeds) {
			t.Run(fmt.Sprintf("%s/seed=%d", outlet, seed), func(t *testing.T) {
				t.Parallel()
				randomWorld(t, outlet, rand.New(rand.NewPCG(seed, 5)))
			})
		}
	}
}

func randomWorld(t *testing.T, outlet Outlet, r *rand.Rand) {
	w := newWorld(t)
	const sessions = 24
	versions := []string{"1", "2", "3"}
	owners := map[string][]store.Owner{}
	for _, v := range versions {
		owners[v] = []store.Owner{w.shard(v, 0), w.shard(v, 1)}
	}
	change := func() {
		v := versions[r.IntN(len(versions))]
		shard := r.IntN(2)
		switch n := r.IntN(12); {
		case n == 0: // a shard starts again, and writes some again
			owners[v][shard] = w.shard(v, shard)
		case n == 1:
			w.serve(owners[v][0].Generation, r.IntN(sessions)*r.IntN(2))
		default: // sessions have odd numbers in one shard and even ones in the other
			var list []int
			for range 1 + r.IntN(4) {
				list = append(list, (1+2*r.IntN(sessions/2)+shard)*[]int{1, 1, 1, -1}[r.IntN(4)])
			}
			w.write(owners[v][shard], []string{"x", "y", "z " + v}[r.IntN(3)], list...)
		}
	}
	for range 10 {
		change()
	}
	busy := 400 // calls during which the world changes
	w.during = func() {
		if busy--; busy > 0 && r.IntN(3) == 0 {
			change()
		}
		if r.IntN(20) == 0 {
			w.log.arrive()
		}
	}
	for range 12 {
		_, err := w.publish(outlet, &faults{at: r.IntN(150), after: r.IntN(2) == 0})
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		if r.IntN(2) == 0 {
			w.log.arrive()
		}
	}
	busy = 0
	if r.IntN(2) == 0 {
		w.log.arrive()
	}
	w.during = w.log.arrive
	last, err := w.publish(outlet, living())
	if err != nil {
		t.Fatal(err)
	}
	w.check(fmt.Sprintf("after %d switches, %+v", w.maps, last), outlet)
}

// TestLateWrites lets an old row of a session arrive behind the newer one, so that compaction would keep the wrong one:
// before a run starts, and while it runs and has nothing to publish.
func TestLateWrites(t *testing.T) {
	for _, c := range []struct {
		name     string
		last     int // number of the session's last change: below 0 it is gone
		idle     bool
		switchTo bool
	}{{"changed", 1, false, false}, {"gone", -1, false, false}, {"changed", 1, true, false}, {"gone", -1, true, false},
		{"switched", 1, false, true}, {"switched", -1, true, true}} {
		t.Run(fmt.Sprintf("%s/idle=%t", c.name, c.idle), func(t *testing.T) {
			w := newWorld(t)
			run := func() Status {
				t.Helper()
				last, err := w.publish(TopicOutlet, living())
				w.must(err)
				return last
			}
			a := w.shard("1", 0)
			w.serve(a.Generation, 0)
			w.write(a, "old", 1, 2)
			run()
			p := partitionOf([]byte(idOf(1).String()), len(w.log.partitions))
			var late []Record
			for _, r := range w.log.partitions[p] {
				if string(r.Key) == idOf(1).String() {
					late = append(late, r)
				}
			}
			if c.switchTo {
				a = w.shard("2", 0)
				w.serve(a.Generation, 0)
			}
			w.write(a, "new", c.last)
			run()
			arrive := func() {
				w.log.append(p, late)
				late = nil
			}
			if c.idle {
				w.during = arrive
			} else {
				arrive()
			}
			if last := run(); last.Mended == 0 {
				t.Errorf("nothing was mended: %+v", last)
			}
			w.check(c.name, TopicOutlet)
			w.during = nil
			if last := run(); last.Mended > 0 && last.Published > last.Mended {
				t.Errorf("mending does not end: %+v", last)
			}
		})
	}
}

// TestRepeats counts what a run writes again after one that died before its checkpoint.
func TestRepeats(t *testing.T) {
	w := newWorld(t)
	a := w.shard("1", 0)
	w.serve(a.Generation, 0)
	w.write(a, "x", 1, 2, 3)
	_, err := w.publish(TopicOutlet, living())
	w.must(err)
	w.write(a, "y", 1, 2, -3)
	records := func() (n int) {
		for _, p := range w.log.partitions {
			n += len(p)
		}
		return n
	}
	before := records()
	key := stateKey(job, TopicOutlet)
	saved := w.objects.objects[key].data
	_, err = w.publish(TopicOutlet, living())
	w.must(err)
	wrote := records()
	// As if the run had died after it wrote, and before its checkpoint.
	now := w.objects.objects[key]
	now.data = saved
	w.objects.objects[key] = now
	last, err := w.publish(TopicOutlet, living())
	w.must(err)
	if again := records() - wrote; wrote-before < 3 || again != 0 || last.Repeats != 3 || last.Published != 0 {
		t.Errorf("%d records, then %d again: %+v", wrote-before, again, last)
	}
	w.check("after repeats", TopicOutlet)
}

// TestFenced starts a run while another one is at work, and while another one has nothing to do.
func TestFenced(t *testing.T) {
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		for _, idle := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/idle=%t", outlet, idle), func(t *testing.T) {
				w := newWorld(t)
				a := w.shard("1", 0)
				w.serve(a.Generation, 0)
				w.write(a, "x", 1, 2, 3)
				first := make(chan error)
				started := make(chan struct{})
				var once sync.Once
				go func() {
					c := w.config(outlet, living())
					c.Progress = func(s Status) {
						if !s.CaughtUp.IsZero() {
							once.Do(func() { close(started) })
						}
					}
					first <- Run(t.Context(), c)
				}()
				<-started
				if !idle {
					w.write(a, "y", 1, 2, 4)
				}
				_, err := w.publish(outlet, living())
				w.must(err)
				if err := <-first; !errors.Is(err, ErrFenced) {
					t.Errorf("the first run ends with %v", err)
				}
				w.write(a, "z", 1, -2, 5)
				_, err = w.publish(outlet, living())
				w.must(err)
				w.check("after two", outlet)
			})
		}
	}
}

// TestUnknown starts without the checkpoint of what was published, and after a generation was dropped that was being served
// when the publisher last ran.
func TestUnknown(t *testing.T) {
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		for _, dropped := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/dropped=%t", outlet, dropped), func(t *testing.T) {
				w := newWorld(t)
				a := w.shard("1", 0)
				w.serve(a.Generation, 0)
				w.write(a, "x", 1, 2, 3, 4)
				_, err := w.publish(outlet, living())
				w.must(err)
				if dropped {
					b := w.shard("2", 0)
					w.write(b, "x", 1, 2)
					w.write(b, "z", 3, 5)
					w.serve(b.Generation, 0)
					w.must(w.store.DropGeneration(t.Context(), job, a.Generation))
				} else {
					delete(w.objects.objects, stateKey(job, outlet))
					w.write(a, "y", 1, -2, 5)
				}
				last, err := w.publish(outlet, living())
				w.must(err)
				if last.Published-last.Mended != 3 { // the difference, not everything
					t.Errorf("%d rows were published: %+v", last.Published, last)
				}
				w.check("unknown", outlet)
			})
		}
	}
}

// TestSameAtSwitch changes a session in both generations in the same way before the publisher sees the switch.
func TestSameAtSwitch(t *testing.T) {
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		w := newWorld(t)
		a, b := w.shard("1", 0), w.shard("2", 0)
		w.serve(a.Generation, 0)
		w.write(a, "old", 1, 2)
		_, err := w.publish(outlet, living())
		w.must(err)
		w.write(a, "new", 1)
		w.write(b, "new", 1)
		w.write(b, "old", 2)
		w.serve(b.Generation, 0)
		last, err := w.publish(outlet, living())
		w.must(err)
		if last.Published-last.Mended != 1 {
			t.Errorf("%s: %+v", outlet, last)
		}
		w.check("same at switch", outlet)
	}
}

// TestLateFile lists a file of old rows again behind newer ones, as an earlier publisher that was paused may.
func TestLateFile(t *testing.T) {
	w := newWorld(t)
	a := w.shard("1", 0)
	w.serve(a.Generation, 0)
	w.write(a, "x", 1, 2, 3)
	_, err := w.publish(ParquetOutlet, living())
	w.must(err)
	list, err := ReadManifests(t.Context(), w.objects, job, 0)
	w.must(err)
	w.write(a, "y", 1, -2)
	_, err = w.publish(ParquetOutlet, living())
	w.must(err)
	newer, err := ReadManifests(t.Context(), w.objects, job, int64(len(list)))
	w.must(err)
	for i, old := range list {
		old.Sequence = int64(len(list) + len(newer) + i)
		data, err := json.Marshal(old)
		w.must(err)
		_, err = w.objects.PutIfAbsent(t.Context(), manifestKey(job, old.Sequence), data, "late")
		w.must(err)
	}
	w.check("late file", ParquetOutlet)
	w.write(a, "z", 3, 4)
	_, err = w.publish(ParquetOutlet, living())
	w.must(err)
	w.check("behind a late file", ParquetOutlet)
}

// TestFiles looks at what is in a file: of each session the last row, sorted, and columns that other tools read.
func TestFiles(t *testing.T) {
	objects := &memory{objects: map[string]memoryObject{}}
	cfg := Config{Job: job, Objects: objects, FileBytes: 500}
	f := newFiles(&cfg, nil)
	s := state{Epoch: 3}
	if known, err := f.open(t.Context(), &s); err != nil || !known {
		t.Fatal(known, err)
	}
	at := func(seq uint64) Position { return Position{Map: 1, Generation: 7, Shard: 2, Epoch: 5, Seq: seq} }
	for i, text := range []string{"first", "second"} {
		body := fmt.Sprintf(`{"user":"Zoë","scenarios":["a","b"],"text":%q}`, text)
		if err := f.put(t.Context(), &Row{ID: idOf(9), At: at(uint64(i)), Start: 10, End: 20, Body: []byte(body)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.put(t.Context(), &Row{ID: idOf(4), At: at(2), Start: 5, Deleted: true}); err != nil || f.full() {
		t.Fatal(err, f.full())
	}
	if _, _, err := f.flush(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	m, err := ReadManifests(t.Context(), objects, job, 0)
	if err != nil || len(m) != 1 || m[0].Rows != 2 || m[0].Deleted != 1 || m[0].StartMin != 5 || m[0].StartMax != 10 || m[0].Publisher != 3 {
		t.Fatalf("%+v %v", m, err)
	}
	rows, err := decodeFile(objects.objects[m[0].File].data)
	if err != nil || len(rows) != 2 {
		t.Fatal(rows, err)
	}
	if r := rows[0]; r.ID != idOf(4).String() || !r.Deleted || r.Body != nil || r.End != nil || r.Seq != 2 || r.Start != 5 {
		t.Errorf("the first row is %+v", r)
	}
	r := rows[1]
	if r.ID != idOf(9).String() || r.Deleted || *r.User != "Zoë" || fmt.Sprint(r.Scenarios) != "[a b]" || *r.End != 20 ||
		r.Generation != 7 || r.Shard != 2 || r.Epoch != 5 || r.Seq != 1 || r.MapEpoch != 1 || !strings.Contains(*r.Body, "second") {
		t.Errorf("the second row is %+v", r)
	}
	for _, damage := range []func(){
		func() { delete(objects.objects, m[0].File) },
		func() { objects.objects[m[0].File] = memoryObject{data: []byte("PAR1")} },
		func() { objects.objects[manifestKey(job, 0)] = memoryObject{data: []byte("{}")} },
		func() {
			delete(objects.objects, manifestKey(job, 0))
			objects.objects[manifestKey(job, 1)] = memoryObject{data: []byte("{}")}
		},
	} {
		damage()
		if err := ReadFiles(t.Context(), objects, job, func(*Row) error { return nil }); err == nil {
			t.Error("damage is read as nothing")
		}
	}
}

// TestRecords reads what is written, and refuses what no publisher wrote.
func TestRecords(t *testing.T) {
	row := Row{ID: idOf(3), At: Position{2, 7, 1, 5, 9}, Start: -5, Body: []byte(`{}`)}
	r := recordOf(job, 4, &row)
	got, _, publisher, err := ParseRecord(&r)
	if err != nil || publisher != 4 || fmt.Sprint(*got) != fmt.Sprint(row) {
		t.Errorf("%+v became %+v: %v", row, got, err)
	}
	for _, bad := range []Record{
		{}, {Key: r.Key}, {Key: r.Key, Headers: r.Headers[:2]}, {Key: []byte("x"), Headers: r.Headers}, {Key: []byte(SwitchKey), Headers: r.Headers},
		{Key: r.Key, Headers: []Header{{PublisherHeader, []byte("4")}, {PositionHeader, []byte("1/2/3/4/5")}}},
		{Key: r.Key, Headers: []Header{{PublisherHeader, []byte("4")}, {PositionHeader, []byte("1/2/3/4/5/6/7")}}},
	} {
		if row, _, _, err := ParseRecord(&bad); !errors.Is(err, ErrForeign) || row != nil {
			t.Errorf("%q was read as %+v: %v", bad.Key, row, err)
		}
	}
	w := newWorld(t)
	w.log.append(0, []Record{{Key: []byte("somebody's"), Value: []byte("own")}})
	a := w.shard("1", 0)
	w.serve(a.Generation, 0)
	w.write(a, "x", 1, 2)
	last, err := w.publish(TopicOutlet, living())
	if err != nil || last.Foreign == 0 || last.Published-last.Mended != 2 {
		t.Errorf("beside another's records: %+v %v", last, err)
	}
}

// TestNewTopic makes the output topic anew, and publishes everything to it.
func TestNewTopic(t *testing.T) {
	w := newWorld(t)
	a := w.shard("1", 0)
	w.serve(a.Generation, 0)
	w.write(a, "x", 1, 2, 3)
	_, err := w.publish(TopicOutlet, living())
	w.must(err)
	w.log = newLog(2)
	w.log.id = "2"
	last, err := w.publish(TopicOutlet, living())
	w.must(err)
	if last.Published-last.Mended != 3 {
		t.Errorf("%+v", last)
	}
	w.check("new topic", TopicOutlet)
}

// TestReplacedStore publishes from a store that was made anew to where another one's sessions are.
func TestReplacedStore(t *testing.T) {
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		for _, lost := range []bool{true, false} { // the checkpoint, too
			w := newWorld(t)
			a := w.shard("1", 0)
			w.write(a, "x", 1)
			for range 2 {
				w.serve(a.Generation, 0)
				w.serve(0, 0)
			}
			w.serve(a.Generation, 0)
			_, err := w.publish(outlet, living())
			w.must(err)
			other := newWorld(t)
			other.serve(other.shard("1", 0).Generation, 0)
			other.objects, other.log = w.objects, w.log
			if lost {
				delete(w.objects.objects, stateKey(job, outlet))
			}
			_, err = other.publish(outlet, living())
			if err == nil || !strings.Contains(err.Error(), "follows serving map 5, and the store serves map 1") {
				t.Errorf("%s, lost=%t: %v", outlet, lost, err)
			}
		}
	}
}

// TestNeeds tells what must stay in the store: between the switch and its end both generations.
func TestNeeds(t *testing.T) {
	w := newWorld(t)
	a := w.shard("1", 0)
	w.serve(a.Generation, 0)
	w.write(a, "x", 1, 2, 3)
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		_, err := w.publish(outlet, living())
		w.must(err)
	}
	b := w.shard("2", 0)
	w.write(b, "x", 1)
	w.serve(b.Generation, 0)
	_, err := w.publish(TopicOutlet, living()) // the files still follow the first one
	w.must(err)
	n, err := ReadNeeds(t.Context(), w.objects, job)
	w.must(err)
	want := Needs{Cursors: []Cursor{{b.Generation, 0, 1, 1}, {a.Generation, 0, 1, 3}}, Generations: []int64{a.Generation, b.Generation}}
	if fmt.Sprint(n) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", n, want)
	}
	if n, err := ReadNeeds(t.Context(), w.objects, "other"); err != nil || len(n.Cursors)+len(n.Generations) > 0 {
		t.Errorf("a job without publishers needs %+v: %v", n, err)
	}
}

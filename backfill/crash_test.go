package backfill

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// crashWorld is a small world with a plan of a few slices.
func crashWorld(t *testing.T) (*world, *Plan) {
	w := newWorld(t, 3)
	w.new = compile(t, strings.Replace(string(w.new.Spec.Text), "job: shop\n", "job: shop\nshard_by: game\n", 1))
	p, err := w.plan(func(in *PlanInput) { in.Slice = 120_000_000 })
	if err != nil {
		t.Fatal(err)
	}
	if p.Totals.Slices < 4 {
		t.Fatalf("%d slices prove little", p.Totals.Slices)
	}
	return w, p
}

// TestSliceDiesAnywhere lets a process die at every call to the object store, before and after the call took effect. Whoever
// comes next ends with the same results, whatever memory it has, and nothing is gone that a manifest names.
func TestSliceDiesAnywhere(t *testing.T) {
	w, p := crashWorld(t)
	if err := w.runAll(p, nil); err != nil {
		t.Fatal(err)
	}
	want, err := Total(t.Context(), w.objects, p.Ref, w.new, TimeRange{})
	if err != nil {
		t.Fatal(err)
	}
	deaths := 0
	for _, c := range []struct {
		after bool
		spill int // events
		every int // calls
	}{{false, 0, 1}, {true, 0, 1}, {false, 20, 3}, {true, 20, 3}} {
		after := c.after
		for at := 1; ; at += c.every {
			w, p := crashWorld(t)
			died := false
			for slice := range p.Chunks[0].Slices {
				in := SliceInput{Plan: p.Ref, Slice: slice, Job: w.new, Objects: w.objects, Decoders: 1, TempDir: t.TempDir()}
				if slice == 1 {
					in.spillEvery = c.spill
					w.objects.revive(at, after)
				}
				r, err := RunSlice(t.Context(), in, nil)
				if slice == 1 {
					died = w.objects.dead
					w.objects.revive(0, false)
				}
				if err != nil {
					if !errors.Is(err, errDied) {
						t.Fatal(err)
					}
					in.spillEvery = 0 // whoever comes next has more memory
					if r, err = RunSlice(t.Context(), in, nil); err != nil {
						t.Fatalf("call %d: %v", at, err)
					}
				}
				if again, err := RunSlice(t.Context(), in, nil); err != nil || !again.Existed || again.Digest != r.Digest || again.Done != r.Done {
					t.Fatalf("call %d: again %+v, %v; first %+v", at, again, err, r)
				}
				if r.Done {
					break
				}
			}
			got, err := Total(t.Context(), w.objects, p.Ref, w.new, TimeRange{})
			if err != nil || got.Digest != want.Digest || got.Sessions != want.Sessions {
				t.Fatalf("call %d, after %v: %+v, %v; want %+v", at, after, got, err, want)
			}
			nothingGone(t, w, p)
			if !died {
				break
			}
			deaths++
		}
	}
	if deaths < 15 {
		t.Errorf("%d deaths prove little", deaths)
	}
}

// nothingGone checks that everything that the manifests name is there.
func nothingGone(t *testing.T, w *world, p *Plan) {
	t.Helper()
	named := map[string]bool{}
	for chunk := range p.Chunks {
		last, err := lastSlice(t.Context(), w.objects, p, chunk)
		if err != nil || last == nil {
			t.Fatal(last, err)
		}
		for slice := range last.Slice + 1 {
			m, err := loadSliceManifest(t.Context(), w.objects, p.Ref, chunk, slice)
			if err != nil {
				t.Fatal(err)
			}
			named[p.Ref.sliceKey(chunk, slice)] = true
			for _, f := range []FileRef{m.Rows, m.Sessions, m.Rejected} {
				named[f.Key] = true
			}
		}
		for _, key := range last.files() {
			named[key] = true
		}
	}
	for _, key := range w.objects.keys(p.Ref.String() + "/slices/") {
		delete(named, key) // the rest goes with the backfill
	}
	if len(named) > 0 {
		t.Errorf("%v are gone", named)
	}
}

// Two that run one slice at once both return what the faster one staged.
func TestTwoRunOneSlice(t *testing.T) {
	w, p := crashWorld(t)
	in := SliceInput{Plan: p.Ref, Job: w.new, Objects: w.objects, Decoders: 1, TempDir: t.TempDir()}
	type out struct {
		r   SliceResult
		err error
	}
	results := make(chan out)
	for range 2 {
		go func() {
			r, err := RunSlice(t.Context(), in, nil)
			results <- out{r, err}
		}()
	}
	a, b := <-results, <-results
	if a.err != nil || b.err != nil || a.r.Digest != b.r.Digest || a.r.Manifest != b.r.Manifest {
		t.Errorf("%+v\n%+v", a, b)
	}
	nothingGone(t, w, p)
}

// A slice whose predecessor is not done is refused; one behind the end of its chunk does nothing.
func TestOrderOfSlices(t *testing.T) {
	w, p := crashWorld(t)
	run := func(chunk, slice int) (SliceResult, error) {
		return RunSlice(t.Context(), SliceInput{Plan: p.Ref, Chunk: chunk, Slice: slice, Job: w.new, Objects: w.objects, TempDir: t.TempDir()}, nil)
	}
	if _, err := run(0, 2); !errors.Is(err, ErrOrder) {
		t.Errorf("slice 2 first: %v", err)
	}
	for _, at := range [][2]int{{1, 0}, {-1, 0}, {0, p.Chunks[0].Slices}} {
		if _, err := run(at[0], at[1]); !errors.Is(err, ErrNotPlanned) && !errors.Is(err, ErrOrder) {
			t.Errorf("%v: %v", at, err)
		}
	}
	if _, err := RunSlice(t.Context(), SliceInput{Plan: PlanRef{"shop", "other"}, Job: w.new, Objects: w.objects}, nil); !errors.Is(err, ErrNotPlanned) {
		t.Errorf("no plan: %v", err)
	}
	if err := w.runAll(p, nil); err != nil {
		t.Fatal(err)
	}
	last, err := lastSlice(t.Context(), w.objects, p, 0)
	if err != nil || !last.Done {
		t.Fatal(last, err)
	}
	if last.Slice+1 < p.Chunks[0].Slices {
		if r, err := run(0, p.Chunks[0].Slices-1); err != nil || !r.Done || !r.Existed || r.Sessions != 0 {
			t.Errorf("behind the end: %+v, %v", r, err)
		}
	}
}

// silent is an object store that never answers when data files are asked for.
type silent struct{ *memory }

func (s silent) GetRange(ctx context.Context, key string, from, n int64) ([]byte, error) {
	if !strings.HasSuffix(key, ".parquet") {
		return s.memory.GetRange(ctx, key, from, n)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// A store that has gone silent fails a slice after a while, and does not hold it for ever. One that is told to end does so at once.
func TestSilentObjectStore(t *testing.T) {
	w, p := crashWorld(t)
	synctest.Test(t, func(t *testing.T) {
		in := SliceInput{Plan: p.Ref, Job: w.new, Objects: Timed(silent{w.objects}), Decoders: 1, TempDir: t.TempDir()}
		began := time.Now()
		_, err := RunSlice(t.Context(), in, nil)
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "the object store has not answered within 2m0s") ||
			!errors.Is(err, context.DeadlineExceeded) || took < callTime || took > 2*callTime {
			t.Errorf("after %s: %v", took, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if _, err := RunSlice(ctx, in, nil); err == nil || time.Since(began) > 2*time.Second {
			t.Errorf("told to end it did so after %s: %v", time.Since(began), err)
		}
	})
}

// A process that dies leaves no files: what is staged and sorted has no name on disk.
func TestSliceLeavesNoFiles(t *testing.T) {
	w, p := crashWorld(t)
	dir := t.TempDir()
	seen := 0
	in := SliceInput{Plan: p.Ref, Job: w.new, Objects: w.objects, Decoders: 1, TempDir: dir, spillEvery: 20}
	w.objects.called = func() {
		seen++
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("a process that dies would leave %v", left)
		}
	}
	if _, err := RunSlice(t.Context(), in, nil); err != nil || seen < 20 {
		t.Errorf("%d calls, %v", seen, err)
	}
}

// Objects that are not what a manifest says are noticed, by whoever needs them.
func TestDamagedStaging(t *testing.T) {
	for name, damage := range map[string]func(w *world, m *SliceManifest){
		"missing rows":  func(w *world, m *SliceManifest) { delete(w.objects.objects, m.Rows.Key) },
		"cut rows":      func(w *world, m *SliceManifest) { w.objects.objects[m.Rows.Key] = w.objects.objects[m.Rows.Key][:20] },
		"changed rows":  func(w *world, m *SliceManifest) { w.objects.objects[m.Rows.Key][m.Rows.Bytes/2] ^= 1 },
		"missing state": func(w *world, m *SliceManifest) { delete(w.objects.objects, m.State[0].Pieces[0].Key) },
		"changed state": func(w *world, m *SliceManifest) { w.objects.objects[m.State[0].Pieces[0].Key][9] ^= 1 },
		"missing spill": func(w *world, m *SliceManifest) { delete(w.objects.objects, m.Spilled.Keys()[0]) },
		"changed spill": func(w *world, m *SliceManifest) { w.objects.objects[m.Spilled.Keys()[0]][9] ^= 1 },
		"other rows": func(w *world, m *SliceManifest) {
			m.Sums[0]++
			text, _ := encodeJSON(m)
			w.objects.objects[m.Manifest] = text
		},
	} {
		w, p := crashWorld(t)
		s := newStore(t)
		in := SliceInput{Plan: p.Ref, Job: w.new, Objects: w.objects, TempDir: t.TempDir()}
		if strings.HasSuffix(name, " spill") {
			in.spillEvery = 20
		}
		_, err := RunSlice(t.Context(), in, nil)
		m, err2 := loadSliceManifest(t.Context(), w.objects, p.Ref, 0, 0)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		damage(w, m)
		err = w.runAll(p, nil)
		if err == nil {
			_, err = Publish(t.Context(), PublishInput{Plan: p.Ref, Job: w.new, Objects: w.objects, Store: s, RequestID: "r"})
		}
		if !errors.Is(err, ErrStaged) && !strings.Contains(fmt.Sprint(err), "no such object") {
			t.Errorf("%s: %v", name, err)
		}
		if m, _ := s.ServingMap(t.Context(), "shop"); m.Epoch != 0 {
			t.Errorf("%s: something is served", name)
		}
	}
}

// dying is a Serving that dies at a call, before or after it took effect.
type dying struct {
	Serving
	memory // its counter
}

func dies[T any](d *dying, do func() (T, error)) (out T, err error) {
	died := d.call(func() (e error) { out, err = do(); return nil })
	if died != nil {
		return out, died
	}
	return out, err
}

func (d *dying) ServingMap(ctx context.Context, job string) (store.Map, error) {
	return dies(d, func() (store.Map, error) { return d.Serving.ServingMap(ctx, job) })
}
func (d *dying) Switch(ctx context.Context, r store.SwitchRequest) (store.Map, error) {
	return dies(d, func() (store.Map, error) { return d.Serving.Switch(ctx, r) })
}
func (d *dying) Generations(ctx context.Context, job string) ([]store.Generation, error) {
	return dies(d, func() ([]store.Generation, error) { return d.Serving.Generations(ctx, job) })
}
func (d *dying) CreateGeneration(ctx context.Context, job, version, kind string) (store.Generation, error) {
	return dies(d, func() (store.Generation, error) { return d.Serving.CreateGeneration(ctx, job, version, kind) })
}
func (d *dying) DropGeneration(ctx context.Context, job string, g int64) error {
	_, err := dies(d, func() (int, error) { return 0, d.Serving.DropGeneration(ctx, job, g) })
	return err
}
func (d *dying) TakeEpoch(ctx context.Context, job string, g int64, shard int) (uint64, error) {
	return dies(d, func() (uint64, error) { return d.Serving.TakeEpoch(ctx, job, g, shard) })
}
func (d *dying) Write(ctx context.Context, o store.Owner, b *store.Batch) error {
	_, err := dies(d, func() (int, error) { return 0, d.Serving.Write(ctx, o, b) })
	return err
}

// TestPublishDiesAnywhere lets publishing die at every call to either store. What is served is then all of the old or all of the
// new, and trying again gives the new.
func TestPublishDiesAnywhere(t *testing.T) {
	var w *world
	var served *result
	var out PublishResult
	var old, fresh view
	for seed := uint64(5); out.Copied == 0 || out.EdgeServed == 0 || len(old.sessions) == len(fresh.sessions); seed++ {
		w = newWorld(t, seed)
		served = w.live()
		s := newStore(t)
		serve(t, s, served)
		old = viewOf(t, s)
		var err error
		if out, _, err = w.backfill(s, TimeRange{second(150), second(420)}, nil); err != nil {
			t.Fatal(err)
		}
		fresh = viewOf(t, s)
	}
	staged := w.objects.keys("backfill/shop/")
	ref := refOf(t, w)
	deaths, before := 0, 0
	for _, which := range []string{"store", "objects"} {
		for _, after := range []bool{false, true} {
			for at := 1; ; at++ {
				s := newStore(t)
				served.batch.Progress = nil
				serve(t, s, served)
				for _, key := range w.objects.keys("backfill/shop/") {
					if !slices.Contains(staged, key) || strings.Contains(key, "/publish/") {
						delete(w.objects.objects, key)
					}
				}
				d := &dying{Serving: s}
				if which == "store" {
					d.revive(at, after)
				} else {
					w.objects.revive(at, after)
				}
				in := PublishInput{Plan: ref, Job: w.new, Objects: w.objects, Store: d, RequestID: "r"}
				_, err := Publish(t.Context(), in)
				dead := d.dead || w.objects.dead
				d.revive(0, false)
				w.objects.revive(0, false)
				if dead != (err != nil) {
					t.Fatalf("%s call %d: dead %v, %v", which, at, dead, err)
				}
				if m, _ := s.ServingMap(t.Context(), "shop"); m.Epoch == 1 {
					before++
					viewOf(t, s).compare(t, fmt.Sprint(which, " before ", at), old)
				} else {
					viewOf(t, s).compare(t, fmt.Sprint(which, " after ", at), fresh)
				}
				for range 2 {
					again, err := Publish(t.Context(), in)
					if err != nil || again.Digest != out.Digest || again.Reports != out.Reports {
						t.Fatalf("%s call %d: %+v, %v", which, at, again, err)
					}
					viewOf(t, s).compare(t, fmt.Sprint(which, " again ", at), fresh)
				}
				if m, _ := s.ServingMap(t.Context(), "shop"); m.Epoch != 2 {
					t.Fatalf("%s call %d: the map was switched %d times", which, at, m.Epoch-1)
				}
				if !dead || t.Failed() {
					break
				}
				deaths++
			}
		}
	}
	if deaths < 30 || before < 15 {
		t.Errorf("%d deaths, %d before the switch prove little", deaths, before)
	}
}

// TestDropAfterAnyDeath cancels a publication that died at any call, with a clean-up that dies at any call too: what is served is all of
// the old or all of the new, and nothing is left of the backfill beside what is served.
func TestDropAfterAnyDeath(t *testing.T) {
	w := newWorld(t, 5)
	served := w.live()
	s := newStore(t)
	serve(t, s, served)
	old := viewOf(t, s)
	if _, _, err := w.backfill(s, TimeRange{second(150), second(420)}, nil); err != nil {
		t.Fatal(err)
	}
	fresh := viewOf(t, s)
	ref := refOf(t, w)
	staged := map[string][]byte{}
	for _, key := range w.objects.keys("backfill/shop/") {
		if !strings.Contains(key, "/publish/") {
			staged[key] = w.objects.objects[key]
		}
	}
	const every = 4 // calls of publishing, of which the clean-up dies at another each time
	died, dropsDied, switched := 0, 0, 0
	for _, which := range []string{"store", "objects"} {
		for _, after := range []bool{false, true} {
			for at := 1; ; at += every {
				s := newStore(t)
				served.batch.Progress = nil
				serve(t, s, served)
				maps.DeleteFunc(w.objects.objects, func(key string, _ []byte) bool { return strings.HasPrefix(key, "backfill/shop/") })
				maps.Copy(w.objects.objects, staged)
				d := &dying{Serving: s}
				kill := func(at int) {
					if which == "store" {
						d.revive(at, after)
					} else {
						w.objects.revive(at, after)
					}
				}
				kill(at)
				_, err := Publish(t.Context(), PublishInput{Plan: ref, Job: w.new, Objects: w.objects, Store: d, RequestID: "r"})
				dead := err != nil
				drop := DropInput{Plan: ref, Objects: w.objects, Store: d, KeepServed: true}
				d.revive(0, false)
				w.objects.revive(0, false)
				kill(1 + at/every)
				if Drop(t.Context(), drop) != nil {
					dropsDied++
				}
				d.revive(0, false)
				w.objects.revive(0, false)
				if err := Drop(t.Context(), drop); err != nil {
					t.Fatalf("%s call %d: %v", which, at, err)
				}
				if left := w.objects.keys(ref.String() + "/"); len(left) > 0 {
					t.Errorf("%s call %d: %v are left", which, at, left)
				}
				m, err := s.ServingMap(t.Context(), "shop")
				if err != nil {
					t.Fatal(err)
				}
				want, generations := old, 1
				if m.Epoch > 1 {
					want, generations, switched = fresh, 2, switched+1
				}
				viewOf(t, s).compare(t, fmt.Sprint(which, " ", at), want)
				if list, _ := s.Generations(t.Context(), "shop"); len(list) != generations {
					t.Errorf("%s call %d: generations %v", which, at, list)
				}
				if !dead || t.Failed() {
					break
				}
				died++
			}
		}
	}
	if died < 8 || dropsDied < 8 || switched < 3 {
		t.Errorf("%d deaths, %d of clean-ups, %d behind the switch prove little", died, dropsDied, switched)
	}
}

// refOf finds the last plan of a world.
func refOf(t *testing.T, w *world) PlanRef {
	t.Helper()
	var last string
	for _, key := range w.objects.keys("backfill/shop/") {
		if strings.HasSuffix(key, "/plan.json") {
			last = strings.Split(key, "/")[2]
		}
	}
	return PlanRef{"shop", last}
}

// A switch of others that comes between makes a publication decide anew: it serves nothing that it took from what was served before.
func TestPublishOverAnotherSwitch(t *testing.T) {
	w := newWorld(t, 6)
	fresh, served := compute(t, w.new, w.records), w.live()
	s := newStore(t)
	serve(t, s, served)
	between := &switching{Store: s, times: 3}
	out, _, err := w.backfill(between, TimeRange{second(157), second(433)}, nil)
	if err != nil || out.Attempt < 2 || between.times != 0 {
		t.Fatalf("%+v, %v, %d", out, err, between.times)
	}
	viewOf(t, s).compare(t, "after other switches", wanted(w, fresh, compute(t, w.old, nil), out.Range, out.Served))
	list, err := s.Generations(t.Context(), "shop")
	if err != nil || len(list) != 2 || between.copied == 0 {
		t.Errorf("generations %v, %v: those of other attempts are left; %d sessions were copied first", list, err, between.copied)
	}
}

// switching lets another switch, to nothing, come between preparing and switching.
type switching struct {
	*store.Store
	times  int
	copied int // sessions that the first attempt took over
}

func (s *switching) Copies(ctx context.Context, q store.CopyQuery) (store.CopyPage, error) {
	page, err := s.Store.Copies(ctx, q)
	if q.EndFrom == 0 && s.times > 0 {
		s.copied += len(page.Items)
	}
	return page, err
}

func (s *switching) Write(ctx context.Context, o store.Owner, b *store.Batch) error {
	if s.times > 0 && b.Progress != nil {
		s.times--
		m, err := s.ServingMap(ctx, "shop")
		if err != nil {
			return err
		}
		_, err = s.Store.Switch(ctx, store.SwitchRequest{Job: "shop", RequestID: fmt.Sprint("other", s.times), ExpectedEpoch: m.Epoch,
			Assignments: []store.Assignment{{From: event.MinTime, To: event.MaxTime}}}) // to none
		if err != nil {
			return err
		}
	}
	return s.Store.Write(ctx, o, b)
}

// Drop leaves nothing of a backfill, except what is served and may stay.
func TestDrop(t *testing.T) {
	w := newWorld(t, 5)
	s := newStore(t)
	serve(t, s, w.live())
	if _, _, err := w.backfill(s, TimeRange{second(150), second(420)}, nil); err != nil {
		t.Fatal(err)
	}
	ref := refOf(t, w)
	in := DropInput{Plan: ref, Objects: w.objects, Store: s}
	if err := Drop(t.Context(), in); !errors.Is(err, store.ErrServed) || len(w.objects.keys(ref.String()+"/")) == 0 {
		t.Errorf("a served backfill: %v", err)
	}
	in.KeepServed = true
	for range 2 {
		if err := Drop(t.Context(), in); err != nil {
			t.Error(err)
		}
	}
	if left := w.objects.keys(ref.String() + "/"); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	if list, _ := s.Generations(t.Context(), "shop"); len(list) != 2 {
		t.Errorf("generations %v", list)
	}
}

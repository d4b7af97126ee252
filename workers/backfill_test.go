package workers

import (
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/store"
)

const smallSpec = `version: weft/v1
job: small
sources:
  orders:
    topic: small.orders
    format: json
    time: {field: ts, layout: unix_ms}
    step: event
    keys: {order: id}
session: {gap: 30m, gaps: {order: 2h}, max_span: 5h, retention: 1h}
reports:
  - {name: funnel, every: 10m, measures: {sessions: count()}}
`

// newBackfills returns backfills over a store and objects of their own, with two versions of a job, and a clock.
func newBackfills(t *testing.T) (*Backfills, *time.Time) {
	t.Helper()
	objects, err := objstore.Folder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 3, 0, 0, 0, 0, time.UTC)
	s, err := store.Open(t.Context(), "sqlite:"+t.TempDir(), store.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for _, spec := range []string{smallSpec, strings.Replace(smallSpec, "2h", "3h", 1)} {
		if _, err := registry.New(objects).Add(t.Context(), registry.NewVersion{Job: "small", Spec: []byte(spec)}); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	return &Backfills{Versions: &Versions{Env: &Env{Store: s, Objects: objects}, Log: log}, Log: log, Now: func() time.Time { return now }}, &now
}

func (b *Backfills) generation(t *testing.T, version, kind string) int64 {
	t.Helper()
	g, err := b.env().Store.CreateGeneration(t.Context(), "small", version, kind)
	if err != nil {
		t.Fatal(err)
	}
	return g.ID
}

// serve puts a generation into the serving map.
func (b *Backfills) serve(t *testing.T, from, to event.Micros, generation int64) {
	t.Helper()
	m, err := b.env().Store.ServingMap(t.Context(), "small")
	if err == nil {
		_, err = b.env().Store.Switch(t.Context(), store.SwitchRequest{
			Job: "small", RequestID: time.Duration(m.Epoch).String(), ExpectedEpoch: m.Epoch,
			Assignments: []store.Assignment{{From: from, To: to, Generation: generation}},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (b *Backfills) mark(t *testing.T, generation int64, shard int, watermark event.Micros) {
	t.Helper()
	epoch, err := b.env().Store.TakeEpoch(t.Context(), "small", generation, shard)
	if err == nil {
		err = b.env().Store.Write(t.Context(), store.Owner{Generation: generation, Shard: shard, Epoch: epoch},
			&store.Batch{Progress: &store.Mark{Seq: 1, Watermark: watermark}})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSealedIsWhatNoLiveShardCanChange(t *testing.T) {
	b, _ := newBackfills(t)
	expect := func(why string, want event.Micros) {
		t.Helper()
		s, err := b.sealed(t.Context(), "small")
		if err != nil || s.before != want {
			t.Errorf("%s: sealed before %v, %v; want %v", why, s.before, err, want)
		}
	}
	const hour = event.Micros(3_600_000_000)
	day := event.Micros(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).UnixMicro())
	expect("nothing is served", 0)
	one := b.generation(t, "1", liveKind)
	b.serve(t, event.MinTime, event.MaxTime, one)
	expect("no shard has ever started", 0)
	b.mark(t, one, 0, event.MinTime)
	expect("the shard has seen nothing", 1)
	b.mark(t, one, 0, day)
	expect("retention, span and the largest gap", day-(1+5+2)*hour)
	if s, err := b.sealed(t.Context(), "small"); err != nil ||
		!strings.HasPrefix(s.text, " (its watermark 2026-11-01T00:00:00Z less retention 1h, max_span 5h and the largest gap 2h)") || !strings.Contains(s.text, "rebuild") {
		t.Errorf("it says %q, %v", s.text, err)
	}
	b.mark(t, one, 1, day-hour)
	expect("the shard that is behind", day-(2+5+2)*hour)
	two := b.generation(t, "2", liveKind)
	b.serve(t, day, event.MaxTime, two)
	b.mark(t, two, 0, day-hour)
	expect("the version with the larger gap", day-(2+5+3)*hour)
	b.mark(t, two, 0, day+10*hour)
	expect("the version that is behind", day-(2+5+2)*hour)
	s, err := b.sealed(t.Context(), "small")
	if err != nil || len(s.windows) != 2 || s.windows[0] != hour/6 {
		t.Errorf("windows %v, %v", s.windows, err)
	}
	past := b.generation(t, "1", "backfill:x/1")
	b.serve(t, event.MinTime, event.MaxTime, past)
	b.mark(t, past, 0, day)
	expect("only a backfill is served", 0)
}

func TestVersionIsTheServedOneOrTheLatest(t *testing.T) {
	b, _ := newBackfills(t)
	at := func(hour int) activities.PlanInput {
		return activities.PlanInput{Backfill: activities.BackfillRef{Job: "small"}, Range: activities.Range{To: time.Date(2026, 11, 1, hour, 0, 0, 0, time.UTC)}}
	}
	expect := func(in activities.PlanInput, want int) {
		t.Helper()
		if v, err := b.version(t.Context(), in); err != nil || v.Number != want {
			t.Errorf("version %d, %v; want %d", v.Number, err, want)
		}
	}
	expect(at(1), 2) // nothing is served
	b.serve(t, event.MinTime, micros(at(12).To), b.generation(t, "1", liveKind))
	expect(at(12), 1) // its end is not in the range
	expect(at(13), 2)
	in := at(12)
	in.Backfill.Version = 2
	expect(in, 2)
	in.Backfill.Job = "other"
	in.Backfill.Version = 0
	if _, err := b.version(t.Context(), in); err == nil || Classify(err).Type != activities.User {
		t.Errorf("of a job that is not there: %v", err)
	}
}

func TestSupersededGenerationsAreDropped(t *testing.T) {
	b, now := newBackfills(t)
	live := b.generation(t, "1", liveKind)
	b.serve(t, event.MinTime, event.MaxTime, live)
	served, superseded := b.generation(t, "1", "backfill:a/1"), b.generation(t, "1", "backfill:b/1")
	running := b.generation(t, "1", "backfill:c/1")
	b.serve(t, 1000, 2000, served)
	if _, err := b.env().Objects.PutIfAbsent(t.Context(), "backfill/small/c/plan.json", []byte(`{"format":1,"ref":{"job":"small","id":"c"}}`), "n"); err != nil {
		t.Fatal(err)
	}
	expect := func(want ...int64) {
		t.Helper()
		if err := b.dropSuperseded(t.Context(), "small"); err != nil {
			t.Fatal(err)
		}
		list, err := b.env().Store.Generations(t.Context(), "small")
		if err != nil || len(list) != len(want) {
			t.Fatalf("left are %+v, %v; want %v", list, err, want)
		}
		for i, g := range list {
			if g.ID != want[i] {
				t.Errorf("left are %+v, want %v", list, want)
			}
		}
	}
	expect(live, served, superseded, running) // one may still want it back
	*now = now.Add(supersededFor + time.Hour)
	expect(live, served, running)
}

// TestWhatIsLeftIsRemoved: objects without a plan, once they are old.
func TestWhatIsLeftIsRemoved(t *testing.T) {
	b, now := newBackfills(t)
	*now = time.Now()
	for _, key := range []string{"a/plan.json", "a/slices/1", "b/slices/00001/000001.json", "b/slices/00002-x.rows", "b-1/plan/n-1.json", "c/plan.json"} {
		id, _, _ := strings.Cut(key, "/")
		text := `{"format":1,"ref":{"job":"small","id":"` + id + `"}}`
		if _, err := b.env().Objects.PutIfAbsent(t.Context(), "backfill/small/"+key, []byte(text), "n"); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want ...string) {
		t.Helper()
		if err := b.dropLeft(t.Context(), "small"); err != nil {
			t.Fatal(err)
		}
		var left []string
		for info, err := range b.env().Objects.List(t.Context(), "backfill/", "") {
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, strings.TrimPrefix(info.Key, "backfill/small/"))
		}
		if strings.Join(left, " ") != strings.Join(want, " ") {
			t.Errorf("left are %v, want %v", left, want)
		}
	}
	expect("a/plan.json", "a/slices/1", "b-1/plan/n-1.json", "b/slices/00001/000001.json", "b/slices/00002-x.rows", "c/plan.json")
	*now = now.Add(leftFor + time.Hour)
	expect("a/plan.json", "a/slices/1", "c/plan.json")
}

func TestSlicesShareTheirMachine(t *testing.T) {
	b := &Backfills{}
	if all := b.decoders(0); b.decoders(0.5) > max(1, all/2) || b.decoders(0.99) != 1 {
		t.Errorf("%d decoders, with half left to others %d, with nearly all %d", all, b.decoders(0.5), b.decoders(0.99))
	}
	b.Slots = 1000
	if n := b.decoders(0); n != 1 {
		t.Errorf("of many slots each has %d decoders", n)
	}
}

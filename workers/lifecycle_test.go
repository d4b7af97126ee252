package workers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/store"
)

const stageSpec = `version: weft/v1
job: payments
sources:
  orders: {topic: pay.orders, format: json, time: ts, step: {value: paid}, keys: {order: id}, fields: {user: user}}
session: {gap: 30m}
user: user
scenarios:
  - {name: paid, when: step("paid").count > 0}
`

// newStage is one over a store and an object store in folders, with registered versions.
func newStage(t *testing.T, specs ...string) *Stage {
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(t.Context(), "sqlite:"+filepath.Join(dir, "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(filepath.Join(dir, "objects"), 0o755); err != nil {
		t.Fatal(err)
	}
	objects, err := objstore.Folder(filepath.Join(dir, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	s := &Stage{Versions: &Versions{Env: &Env{Store: st, Objects: objects}}}
	for i, spec := range specs {
		p, err := s.Register(t.Context(), activities.RegisterInput{Spec: spec, Author: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		if p.Version != i+1 {
			t.Fatalf("version %d has the number %d", i+1, p.Version)
		}
	}
	return s
}

func (s *Stage) serves(t *testing.T) string {
	t.Helper()
	m, err := s.Versions.Env.Store.ServingMap(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, a := range m.Ranges {
		text += fmt.Sprintf("%d:%d ", a.From, a.Generation)
	}
	return strings.ReplaceAll(strings.TrimSpace(text), fmt.Sprint(int64(event.MinTime)), "-")
}

func (s *Stage) must(t *testing.T, in activities.SwitchInput, want activities.Switched) {
	t.Helper()
	in.Job = "payments"
	got, err := s.Switch(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if got.Epoch != want.Epoch || got.Stale != want.Stale || (got.Frozen == nil) != (want.Frozen == nil) {
		t.Errorf("switch %+v gave %+v, want %+v", in, got, want)
	}
}

// Generations are numbered in the order in which versions are first served.
func TestLatePromotionLosesAgainstARollback(t *testing.T) {
	s := newStage(t, stageSpec, stageSpec+"approval: none\n")
	start := int64(event.MinTime)
	s.must(t, activities.SwitchInput{Version: 1, From: start, RequestID: "first"}, activities.Switched{Epoch: 1})
	promotion := activities.SwitchInput{Version: 2, From: start, Epoch: 1, RequestID: "promote"}
	s.must(t, activities.SwitchInput{Version: 1, From: start, Back: 1, Epoch: 1, RequestID: "rollback"}, activities.Switched{Epoch: 2})
	s.must(t, promotion, activities.Switched{Epoch: 2, Stale: true})
	if got := s.serves(t); got != "-:1" {
		t.Errorf("it serves %s", got)
	}
	// The other way round the rollback is told, and wins with the epoch that it was told.
	promotion.Epoch, promotion.RequestID = 2, "promote again"
	s.must(t, promotion, activities.Switched{Epoch: 3})
	s.must(t, activities.SwitchInput{Version: 1, From: start, Back: 2, Epoch: 2, RequestID: "rollback 2"}, activities.Switched{Epoch: 3, Stale: true})
	s.must(t, activities.SwitchInput{Version: 1, From: start, Back: 2, Epoch: 3, RequestID: "rollback 2/1"}, activities.Switched{Epoch: 4})
	s.must(t, promotion, activities.Switched{Epoch: 3}) // a retry is told what it did, and does nothing
	if got := s.serves(t); got != "-:1" {
		t.Errorf("it serves %s", got)
	}
}

func TestRollbackBringsAllRangesBack(t *testing.T) {
	s := newStage(t, stageSpec, stageSpec+"approval: none\n")
	start, ctx := int64(event.MinTime), t.Context()
	s.must(t, activities.SwitchInput{Version: 1, From: start, RequestID: "first"}, activities.Switched{Epoch: 1})
	slice, err := s.Versions.Env.Store.CreateGeneration(ctx, "payments", "1", "slice:a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Versions.Env.Store.Switch(ctx, store.SwitchRequest{Job: "payments", RequestID: "backfill", ExpectedEpoch: 1,
		Assignments: []store.Assignment{{From: 100, To: 200, Generation: slice.ID}, {From: 200, To: 250}}})
	if err != nil {
		t.Fatal(err)
	}
	before := s.serves(t)
	s.must(t, activities.SwitchInput{Version: 2, From: 150, Epoch: 2, RequestID: "promote"}, activities.Switched{Epoch: 3})
	if got := s.serves(t); got != "-:1 100:2 150:3" {
		t.Errorf("promoted from 150 on it serves %s", got)
	}
	s.checkpoint(t, 2, 0, 1, 8, 19)
	s.checkpoint(t, 2, 1, 1, 8, 19)
	if got, err := s.Survey(ctx, "payments"); err != nil || got.Current != 2 || got.From != 150 || got.Epoch != 3 || got.Shards != 2 {
		t.Errorf("survey %+v, %v", got, err)
	}
	s.must(t, activities.SwitchInput{Version: 1, From: 150, Back: 2, Epoch: 3, RequestID: "rollback"}, activities.Switched{Epoch: 4})
	if got := s.serves(t); got != before {
		t.Errorf("rolled back it serves %s, before it was %s", got, before)
	}
	if _, err := s.Switch(ctx, activities.SwitchInput{Job: "payments", Version: 1, Back: 77, Epoch: 4, RequestID: "unknown"}); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("to a map that was not kept: %v", err)
	}
}

func TestFreezeForbidsASwitch(t *testing.T) {
	s := newStage(t, stageSpec, stageSpec+"freeze: ['Fri 18:00-Mon 08:00 Asia/Shanghai']\n")
	s.Now = func() time.Time { return time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC) } // a Saturday
	until := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	in := activities.SwitchInput{Job: "payments", Version: 1, From: int64(event.MinTime), RequestID: "first", Freeze: []int{1, 2}}
	s.must(t, in, activities.Switched{Frozen: &until})
	if got, err := s.Switch(t.Context(), in); err != nil || !got.Frozen.Equal(until) {
		t.Errorf("%+v, %v", got, err)
	}
	in.Freeze = []int{1}
	s.must(t, in, activities.Switched{Epoch: 1})
}

func TestFreezeWindows(t *testing.T) {
	const weekend = "Fri 18:00-Mon 08:00 Asia/Shanghai"
	for _, c := range []struct {
		windows []string
		now     string
		until   string // empty: not frozen
	}{
		{nil, "2026-11-21T12:00:00Z", ""},
		{[]string{weekend}, "2026-11-20T09:59:59Z", ""},
		{[]string{weekend}, "2026-11-20T10:00:00Z", "2026-11-23T00:00:00Z"},
		{[]string{weekend}, "2026-11-22T23:59:59Z", "2026-11-23T00:00:00Z"},
		{[]string{weekend}, "2026-11-23T00:00:00Z", ""},
		{[]string{"Mon 00:00-Mon 01:00", weekend}, "2026-11-22T12:00:00Z", "2026-11-23T01:00:00Z"}, // one leads into the other
		{[]string{"Sat 10:00-Sat 11:00"}, "2026-11-21T10:30:00Z", "2026-11-21T11:00:00Z"},
		{[]string{"Sat 11:00-Sat 10:00"}, "2026-11-21T10:30:00Z", ""},
		{[]string{"Sat 11:00-Sat 10:00"}, "2026-11-21T11:30:00Z", "2026-11-28T10:00:00Z"},
		{[]string{"Sat 00:00-Mon 00:00 Europe/Berlin"}, "2026-10-24T12:00:00Z", "2026-10-25T23:00:00Z"}, // an hour longer that night
	} {
		now, err := time.Parse(time.RFC3339, c.now)
		if err != nil {
			t.Fatal(err)
		}
		until, frozen, err := frozenUntil(c.windows, now)
		if err != nil || frozen != (c.until != "") || frozen && until.UTC().Format(time.RFC3339) != c.until {
			t.Errorf("%q at %s: %s %t %v, want %s", c.windows, c.now, until.UTC(), frozen, err, c.until)
		}
	}
	for _, bad := range []string{"", "Fri", "Fri 18:00-Mon 08:00 Nowhere/Town", "Fri 18:00 Mon 08:00", "Fry 18:00-Mon 08:00"} {
		if _, _, err := frozenUntil([]string{bad}, time.Now()); err == nil {
			t.Errorf("%q is taken for a window", bad)
		}
	}
	// Never shorter than it should be: at the end of a freeze none goes on.
	all := []string{weekend, "Mon 07:00-Mon 09:00 Asia/Shanghai", "Wed 00:00-Thu 00:00", "Thu 00:00-Thu 00:01 America/New_York"}
	for m := range 7 * 24 * 60 {
		now := time.Date(2026, 11, 1, 0, m, 30, 0, time.UTC)
		if until, frozen, _ := frozenUntil(all, now); frozen {
			if _, again, _ := frozenUntil(all, until); again {
				t.Fatalf("frozen at %s until %s, and still then", now, until)
			}
		}
	}
}

func TestDryRunRegistersNothing(t *testing.T) {
	s := newStage(t, stageSpec)
	s.must(t, activities.SwitchInput{Version: 1, From: int64(event.MinTime), RequestID: "first"}, activities.Switched{Epoch: 1})
	changed := strings.Replace(stageSpec, "count > 0", "count > 1", 1) + "approval: two_person\ncanary: {steps: [{weight: 5, hold: 10m}], gates: {match_rate: '>= 0.9', lag: '<= 7s', own: sessions > 3}}\n"
	for range 2 {
		p, err := s.Register(t.Context(), activities.RegisterInput{Spec: changed, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		if p.Version != 2 || p.Current != 1 || p.Existed || !p.TwoMust || p.LagMaxMS != 7000 || len(p.Steps) != 1 || p.Steps[0].HoldMS != 600000 || len(p.Gates) != 3 {
			t.Errorf("%+v", p)
		}
		if len(p.Changes) == 0 || p.Changes[0].Effect != "scenarios" || len(p.Phases) != 5 {
			t.Errorf("changes %+v, phases %q", p.Changes, p.Phases)
		}
	}
	for spec, want := range map[string]string{
		"job: x":             "version",
		changed + "  x: y\n": "",
		strings.Replace(changed, "sessions > 3", "sesions > 3", 1):                                            "undefined name 'sesions'",
		strings.Replace(stageSpec, "format: json", "format: {name: protobuf, schema: x.pb, message: a.B}", 1): "weft deploy --spec",
	} {
		_, err := s.Register(t.Context(), activities.RegisterInput{Spec: spec})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a spec is refused with %v; want %q", err, want)
		}
		if f := Classify(err); f.Type != activities.User || f.Retryable {
			t.Errorf("%v is %+v", err, f)
		}
	}
}

func TestWindowsOfReportsBeginWhereAVersionDoes(t *testing.T) {
	spec := func(every ...time.Duration) *jobspec.Spec {
		s := &jobspec.Spec{}
		for _, e := range every {
			s.Reports = append(s.Reports, jobspec.Report{Every: e})
		}
		return s
	}
	const us = 1_000_000
	for _, c := range []struct {
		at, want event.Micros
		specs    []*jobspec.Spec
	}{
		{59 * us, 59*us + 1, []*jobspec.Spec{spec()}},
		{59 * us, 60 * us, []*jobspec.Spec{spec(time.Minute)}},
		{60 * us, 120 * us, []*jobspec.Spec{spec(time.Minute)}},
		{61 * us, 3600 * us, []*jobspec.Spec{spec(time.Minute), spec(time.Hour)}},
		{1 * us, 210 * us, []*jobspec.Spec{spec(7*time.Second, 30*time.Second)}},
	} {
		if got := windowAfter(c.at, c.specs...); got != c.want {
			t.Errorf("after %d: %d, want %d", c.at, got, c.want)
		}
	}
}

// body is a session as the store has it.
func body(id byte, scenarios, keys string) []byte {
	return []byte(fmt.Sprintf(`{"id":"%d","keys":{%s},"scenarios":[%s],"decided":{}}`, id, keys, scenarios))
}

func TestComparison(t *testing.T) {
	row := func(id byte, end event.Micros, scenarios, keys string) store.Row {
		return store.Row{ID: store.ID{id}, Start: 1000 - event.Micros(id), End: end, Settle: 10, Body: body(id, scenarios, keys)}
	}
	current := []store.Row{
		row(1, 500, `"paid"`, `"order":["1"]`),
		row(2, 500, `"paid"`, ``),
		row(3, 500, `"paid","odd"`, ``),
		row(4, 500, ``, `"order":["1"]`),
		row(5, 500, ``, ``),
		row(7, 991, ``, ``), // open in both
		row(8, 600, ``, ``), // decided in the served version only
	}
	candidate := []store.Row{
		row(1, 500, `"paid"`, `"order":["1"]`),
		row(2, 500, `"paid","new"`, ``),
		row(3, 500, `"paid"`, ``),
		row(4, 500, ``, `"order":["2"]`),
		row(6, 500, ``, ``),
		row(7, 991, `"paid"`, ``),
	}
	run := func(limit int, expect ...string) (activities.Trial, []Difference) {
		c := comparison{expect: expect, limit: limit, counts: map[string]*[2]int64{}}
		a := &side{page: slices.Clone(current), end: true, watermark: 1000}
		b := &side{page: slices.Clone(candidate), end: true, watermark: 605}
		if err := c.run(a, b); err != nil {
			t.Fatal(err)
		}
		return c.result(), c.differences
	}
	r, list := run(100)
	if r.Sessions != 6 || r.Matched != 1 || r.OnlyCurrent != 1 || r.OnlyCandidate != 1 || r.Clipped {
		t.Errorf("%+v", r)
	}
	if fmt.Sprint(list[0].What, list[1].What, list[2].What, list[3].What, list[4].What) != "[scenarios] [scenarios] [keys] [only_current] [only_candidate]" {
		t.Errorf("%+v", list)
	}
	if r.Shifted != "new" || r.ScenarioShift != 0.2 {
		t.Errorf("%+v", r)
	}
	if r, _ := run(100, "new", "odd"); r.Matched != 3 || r.ScenarioShift != 0 {
		t.Errorf("with intended scenarios: %+v", r)
	}
	if r, _ := run(100, "sessions"); r.Matched != 4 { // only what sessions are named counts
		t.Errorf("with intended sessions: %+v", r)
	}
	if r, _ := run(3); !r.Clipped || r.Sessions != 3 {
		t.Errorf("with a limit: %+v", r)
	}
}

// checkpoint writes what the manifest of a shard says of two partitions.
func (s *Stage) checkpoint(t *testing.T, version, shard int, number uint64, zero, one int64) {
	t.Helper()
	key := fmt.Sprintf("checkpoints/payments/%d/%d/manifest.json", version, shard)
	data := fmt.Appendf(nil, `{"number":%d,"partitions":[{"topic":"pay.orders","partition":0,"next":%d},{"topic":"pay.orders","partition":1,"next":%d}]}`, number, zero, one)
	if err := s.Versions.Env.Objects.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Versions.Env.Objects.PutIfAbsent(t.Context(), key, data, "n"); err != nil {
		t.Fatal(err)
	}
}

// seen writes how far a shard of a version has seen time.
func (s *Stage) seen(t *testing.T, version int, watermark event.Micros) {
	t.Helper()
	g, err := s.Versions.generation(t.Context(), "payments", version)
	if err != nil {
		t.Fatal(err)
	}
	epoch, err := s.Versions.Env.Store.TakeEpoch(t.Context(), "payments", g, 0)
	if err == nil {
		err = s.Versions.Env.Store.Write(t.Context(), store.Owner{Generation: g, Epoch: epoch}, &store.Batch{Progress: &store.Mark{Seq: 1, Watermark: watermark}})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestLagIsInEventTimeUnlessAllIsRead(t *testing.T) {
	delayed := strings.Replace(stageSpec, "user: user\nscen", "user: user\nwatermark: {delay: 2m}\nscen", 1)
	s := newStage(t, stageSpec, delayed)
	spec, err := jobspec.Parse([]byte(delayed))
	if err != nil {
		t.Fatal(err)
	}
	lag := func(want int64) {
		t.Helper()
		if got, err := s.lag(t.Context(), "payments", 2, 1, spec); err != nil || got != want {
			t.Errorf("the lag is %d ms, %v; want %d", got, err, want)
		}
	}
	const second event.Micros = 1e6
	lag(0) // nothing is known of the served version either
	s.seen(t, 1, 1000*second)
	lag(-1)
	s.seen(t, 2, 700*second)
	lag(210_000) // 90 s of the 300 are the difference of the delays
	s.checkpoint(t, 1, 0, 3, 10, 20)
	s.checkpoint(t, 1, 1, 3, 8, 25)
	s.checkpoint(t, 2, 0, 1, 8, 19)
	lag(210_000)
	s.checkpoint(t, 2, 0, 2, 8, 20) // as far as the slower shard of each partition
	lag(0)
	s.checkpoint(t, 2, 1, 0, 0, 0) // one that has saved nothing does not count
	if _, shards, err := s.heads(t.Context(), "payments", 2); err != nil || shards != 1 {
		t.Errorf("%d shards, %v", shards, err)
	}
}

func TestVersionRunsOnWhileWhatItServesCanChange(t *testing.T) {
	s := newStage(t, stageSpec, stageSpec+"approval: none\n")
	settled := func(version int, want bool) {
		t.Helper()
		if got, err := s.settled(t.Context(), "payments", version); err != nil || got != want {
			t.Errorf("version %d is settled: %t, %v", version, got, err)
		}
	}
	s.must(t, activities.SwitchInput{Version: 1, From: int64(event.MinTime), RequestID: "first"}, activities.Switched{Epoch: 1})
	settled(1, false)
	settled(2, true) // it serves nothing
	const hour event.Micros = 3600e6
	s.must(t, activities.SwitchInput{Version: 2, From: int64(1000 * hour), Epoch: 1, RequestID: "promote"}, activities.Switched{Epoch: 2})
	settled(1, false)
	s.seen(t, 1, 1000*hour+264*hour) // the longest session, and the retention
	settled(1, false)
	s.seen(t, 1, 1000*hour+265*hour)
	settled(1, true)
	settled(2, false)
}

func TestWayBackToAVersionThatDoesNotRun(t *testing.T) {
	s := newStage(t, stageSpec, stageSpec+"approval: none\n", stageSpec+"approval: two_person\n")
	start := int64(event.MinTime)
	s.must(t, activities.SwitchInput{Version: 1, From: start, RequestID: "first"}, activities.Switched{Epoch: 1})
	s.must(t, activities.SwitchInput{Version: 2, From: start, Epoch: 1, RequestID: "promote"}, activities.Switched{Epoch: 2})
	s.checkpoint(t, 1, 0, 3, 10, 20)
	s.checkpoint(t, 2, 0, 3, 1010, 1020)
	way := func(version int, want WayBack) {
		t.Helper()
		if got, err := s.WayBack(t.Context(), "payments", version, 2); err != nil || got.LagMS != want.LagMS || !strings.Contains(got.Note, want.Note) || !strings.Contains(got.Refused, want.Refused) {
			t.Errorf("the way to version %d is %+v, %v; want %+v", version, got, err, want)
		}
	}
	s.seen(t, 1, 1000e6)
	s.seen(t, 2, 1090e6)
	way(1, WayBack{LagMS: 90_000, Note: "it has 2,000 records to read"})
	way(3, WayBack{LagMS: -1, Refused: "version 3 of payments was never served"})
	way(9, WayBack{LagMS: -1, Refused: "version 9"})
	// What it had is gone: it was served all the same.
	generation, err := s.Versions.generation(t.Context(), "payments", 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Versions.Env.Store.DropGeneration(t.Context(), "payments", generation); err != nil {
		t.Fatal(err)
	}
	if err := s.Versions.Env.Objects.Delete(t.Context(), "checkpoints/payments/1/0/manifest.json"); err != nil {
		t.Fatal(err)
	}
	way(1, WayBack{LagMS: -1, Note: "it has 2,030 records to read before it is served: it has no checkpoint any more, so it reads from the first one"})
	if list, err := s.Versions.Env.Store.Generations(t.Context(), "payments"); err != nil || len(list) != 1 {
		t.Errorf("a look made a generation: %+v, %v", list, err)
	}
}

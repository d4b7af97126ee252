package backfill

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// view is what readers see: the digest of each session, and the lines of reports.
type view struct {
	sessions map[store.ID]correlate.Digest
	cells    map[string]string
}

func viewOf(t *testing.T, s *store.Store) (v view) {
	t.Helper()
	m, err := s.ServingMap(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	v = view{map[store.ID]correlate.Digest{}, map[string]string{}}
	for x, err := range copiesOf(t.Context(), s, "shop", TimeRange{event.MinTime, event.MaxTime}, 0, m.Epoch) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := v.sessions[x.ID]; ok {
			t.Errorf("session %s is served twice", x.ID)
		}
		v.sessions[x.ID] = x.Digest
	}
	for _, report := range []string{"funnel", "total"} {
		q := store.CellQuery{Scope: store.Scope{Job: "shop"}, Page: store.Page{Limit: store.PageRowsMax}, Report: report}
		page, err := s.Cells(t.Context(), q)
		if err != nil || page.Next != "" {
			t.Fatal(err, page.Next)
		}
		for _, c := range page.Items {
			v.cells[cellName(c.Report, c.Window, c.By)] = fmt.Sprint(c.Measures)
		}
	}
	return v
}

func cellName(report string, window event.Micros, by []store.Dimension) string {
	return fmt.Sprintf("%s %d %s", report, window, by)
}

// wanted works out by definition what a publication of a range must leave served.
func wanted(w *world, fresh, served *result, r, swapped TimeRange) view {
	intersects := func(x *result, id store.ID) bool { return x.rows[id].End >= r.From && x.rows[id].Start < r.To }
	inNew, inOld := map[store.ID]bool{}, map[store.ID]bool{}
	for id := range fresh.rows {
		inNew[id] = intersects(fresh, id)
	}
	for id, row := range served.rows {
		inOld[id] = row.Start >= r.From && row.End < r.To
	}
	share := func(a, b map[identity]bool) bool {
		for e := range a {
			if b[e] {
				return true
			}
		}
		return false
	}
	for grown := true; grown; {
		grown = false
		for a, events := range fresh.events {
			for b, others := range served.events {
				if inNew[a] != inOld[b] && share(events, others) {
					inNew[a], inOld[b], grown = true, true, true
				}
			}
		}
	}
	v := view{map[store.ID]correlate.Digest{}, map[string]string{}}
	tally := correlate.NewTally(&w.new.Config)
	old := correlate.NewTally(&w.old.Config)
	for _, x := range fresh.batch.Sessions {
		if inNew[x.ID] {
			v.sessions[x.ID] = x.Digest
			tally.Add(fresh.rows[x.ID])
		}
	}
	for _, x := range served.batch.Sessions {
		if !inOld[x.ID] {
			v.sessions[x.ID] = x.Digest
			if swapped.contains(x.Start) {
				tally.Add(served.rows[x.ID])
			}
		}
		if !swapped.contains(x.Start) {
			old.Add(served.rows[x.ID])
		}
	}
	encode := func(x *result, t *correlate.Tally) {
		t.Each(func(c *correlate.Cell) {
			var b store.Batch
			x.enc.Cell(&b, 1, c)
			v.cells[cellName(b.Cells[0].Report, c.Window, b.Cells[0].By)] = fmt.Sprint(b.Cells[0].Measures)
		})
	}
	encode(fresh, tally)
	encode(served, old)
	return v
}

func (v view) compare(t *testing.T, what string, want view) {
	t.Helper()
	if !maps.Equal(v.sessions, want.sessions) {
		extra, missing := 0, 0
		for id := range v.sessions {
			if _, ok := want.sessions[id]; !ok {
				extra++
			}
		}
		for id := range want.sessions {
			if _, ok := v.sessions[id]; !ok {
				missing++
			}
		}
		t.Errorf("%s: %d sessions are served, want %d: %d too many, %d missing", what, len(v.sessions), len(want.sessions), extra, missing)
	}
	if !maps.Equal(v.cells, want.cells) {
		for k, n := range want.cells {
			if v.cells[k] != n {
				t.Errorf("%s: cell %s is %s, want %s", what, k, v.cells[k], n)
			}
		}
		for k, n := range v.cells {
			if _, ok := want.cells[k]; !ok {
				t.Errorf("%s: cell %s is %s, want none", what, k, n)
			}
		}
	}
}

// live is what a live job of the old version served: it lost late records.
func (w *world) live() *result {
	kept := slices.Clone(w.records)
	if n := w.r.IntN(3); n > 0 {
		kept = slices.DeleteFunc(kept, func(archive.Record) bool { return w.r.IntN(10*n) == 0 })
	}
	return compute(w.t, w.old, kept)
}

// backfill plans, runs and publishes a range, with wider margins where the closure needs them.
func (w *world) backfill(s Serving, r TimeRange, change func(*PublishInput)) (PublishResult, int, error) {
	before, after := event.Micros(0), event.Micros(0)
	for tries := 1; ; tries++ {
		p, err := w.plan(func(in *PlanInput) {
			in.Ref.ID = fmt.Sprint("b", r.From, "-", tries)
			in.From, in.To, in.Before, in.After = r.From, r.To, before, after
			in.Slice, in.Parallelism = event.Micros(10+w.r.IntN(60))*1_000_000, 1+w.r.IntN(3)
		})
		if err != nil {
			return PublishResult{}, tries, err
		}
		if err := w.runAll(p, nil); err != nil {
			return PublishResult{}, tries, err
		}
		in := PublishInput{Plan: p.Ref, Job: w.new, Objects: w.objects, Store: s, RequestID: "r" + p.Ref.ID}
		if change != nil {
			change(&in)
		}
		out, err := Publish(w.t.Context(), in)
		var need *IncompleteError
		if !errors.As(err, &need) || tries > 20 {
			return out, tries, err
		}
		if need.Before <= before && need.After <= after {
			return out, tries, fmt.Errorf("margins %d and %d are asked for again: %w", need.Before, need.After, err)
		}
		before, after = max(before, need.Before), max(after, need.After)
	}
}

// TestPublishReplacesTheClosure publishes random ranges over what another version served. What is served then is, session by
// session, what the definition of the closure says, and no event is in two sessions.
func TestPublishReplacesTheClosure(t *testing.T) {
	again, edges, copied := 0, int64(0), int64(0)
	for _, seed := range rounds(12) {
		w := newWorld(t, seed)
		fresh, served := compute(t, w.new, w.records), w.live()
		s := newStore(t)
		serve(t, s, served)
		from := w.r.Int64N(w.span - 50)
		r := TimeRange{second(from), second(from + 20 + w.r.Int64N(w.span/2))}
		out, tries, err := w.backfill(s, r, nil)
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
			continue
		}
		again, edges, copied = again+tries-1, edges+out.EdgeServed+out.EdgeStaged, copied+out.Copied
		viewOf(t, s).compare(t, fmt.Sprint("seed ", seed), wanted(w, fresh, served, out.Range, out.Served))
		if t.Failed() {
			break
		}
	}
	if edges < 30 || copied < 30 || again == 0 {
		t.Errorf("%d sessions at edges, %d copied, %d plans with wider margins prove little", edges, copied, again)
	}
}

// TestPublishOfCutTimelines publishes sessions whose timelines do not list all events. Each event is then still in one session that
// is served at most, none is lost, and what intersects the range is new.
func TestPublishOfCutTimelines(t *testing.T) {
	cut := 0
	for _, seed := range rounds(6) {
		w := newWorld(t, seed)
		// What the sessions truly hold is seen by jobs that list all events.
		truly, servedTruly := compute(t, w.new, w.records), compute(t, w.old, w.records)
		short := func(job string) string { return strings.Replace(job, "timeline_events: 1000", "timeline_events: 2", 1) }
		w.new, w.old = compile(t, short(string(w.new.Spec.Text))), compile(t, short(string(w.old.Spec.Text)))
		fresh, served := compute(t, w.new, w.records), compute(t, w.old, w.records)
		s := newStore(t)
		serve(t, s, served)
		out, _, err := w.backfill(s, TimeRange{second(200), second(300)}, nil)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		v := viewOf(t, s)
		for _, x := range fresh.batch.Sessions {
			if int(x.Events) > len(fresh.events[x.ID]) {
				cut++
			}
			if x.End >= out.Range.From && x.Start < out.Range.To && v.sessions[x.ID] != x.Digest {
				t.Errorf("seed %d: session %s of the range is not served", seed, x.ID)
			}
		}
		times := map[identity]int{}
		for id, digest := range v.sessions {
			events := servedTruly.events[id]
			for _, x := range fresh.batch.Sessions {
				if x.ID == id && x.Digest == digest {
					events = truly.events[id]
				}
			}
			for e := range events {
				times[e]++
			}
		}
		for id := range truly.events {
			for e := range truly.events[id] {
				if times[e] != 1 {
					t.Fatalf("seed %d: an event of session %s is in %d sessions", seed, id, times[e])
				}
			}
		}
	}
	if cut < 40 {
		t.Errorf("%d timelines that are cut prove little", cut)
	}
}

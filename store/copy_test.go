package store

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/weftdata/weft/event"
)

// TestCopies copies sessions from what two generations serve to a third, page by page: what is read from there is equal.
func TestCopies(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		other, err := f.CreateGeneration(t.Context(), job, "2", "live")
		if err != nil {
			t.Fatal(err)
		}
		owners := []Owner{f.owner, f.own(other.ID, 3)}
		long := bytes.Repeat([]byte("x"), 3*indexedBytesMax)
		for n := range 40 {
			x := session(n, uint64(n+1))
			x.Start, x.End = event.Micros(n/2), event.Micros(n/2+n%5)
			x.Keys = []Key{{"order", fmt.Append(nil, n)}, {"txn", append(fmt.Append(nil, n), long...)}, {"empty", nil}}
			x.Hits = []Hit{{"stuck", event.Micros(n)}, {"a", 7}}
			if n%3 == 0 {
				x.User = nil
			} else {
				x.User = append(fmt.Append(nil, "u", n), long...)
			}
			x.Body = fmt.Appendf(nil, `{"n":%d}`, n)
			f.write(owners[0], Batch{Sessions: []Session{x}})
			x.Body = fmt.Appendf(nil, `{"other":%d}`, n)
			f.write(owners[1], Batch{Sessions: []Session{x}})
		}
		f.write(owners[0], Batch{Tombstones: []Tombstone{{Seq: 100, ID: id(4)}}})
		m, err := f.Switch(t.Context(), SwitchRequest{Job: job, RequestID: "r", Assignments: []Assignment{{-100, 9, owners[0].Generation}, {9, 100, other.ID}}})
		if err != nil {
			t.Fatal(err)
		}
		copyTo, err := f.CreateGeneration(t.Context(), job, "3", "copy")
		if err != nil {
			t.Fatal(err)
		}
		to := f.own(copyTo.ID, 0)
		read := func(q CopyQuery) (list []Session) {
			q.Job = job
			for {
				page, err := f.Copies(t.Context(), q)
				if err != nil || page.MapEpoch != m.Epoch || len(page.Items) > max(q.Limit, PageRowsDefault) {
					t.Fatalf("%d sessions, epoch %d, %v", len(page.Items), page.MapEpoch, err)
				}
				list = append(list, page.Items...)
				if q.After = page.Next; q.After == "" {
					return list
				}
			}
		}
		all := read(CopyQuery{})
		if len(all) != 39 || !bytes.Contains(all[0].Body, []byte(`"n"`)) || !bytes.Contains(all[38].Body, []byte("other")) {
			t.Fatalf("%d sessions: %s … %s", len(all), all[0].Body, all[len(all)-1].Body)
		}
		for _, limit := range []int{1, 7} {
			equal(t, fmt.Sprint(read(CopyQuery{Page: Page{Limit: limit}})), fmt.Sprint(all))
		}
		part := read(CopyQuery{From: 3, To: 12, EndFrom: 12})
		want := 0
		for _, x := range all {
			if x.Start >= 3 && x.Start < 12 && x.End >= 12 {
				want++
			}
		}
		if len(part) != want || want == 0 {
			t.Errorf("%d sessions that end from 12 on, want %d", len(part), want)
		}
		for i := range all {
			all[i].Seq = uint64(i + 1)
		}
		f.write(to, Batch{Sessions: all})
		again := read(CopyQuery{Scope: Scope{Generation: copyTo.ID}})
		for i := range all {
			all[i].Seq = 0
		}
		equal(t, fmt.Sprint(again), fmt.Sprint(all))
		r, err := f.Sessions(t.Context(), SessionQuery{Scope: Scope{job, copyTo.ID}, Key: &Key{"txn", append([]byte("17"), long...)},
			User: append([]byte("u17"), long...), Scenario: "stuck"})
		if err != nil || len(r.Items) != 1 || r.Items[0].ID != id(17) {
			t.Errorf("the copy by key, user and scenario: %+v, %v", r.Items, err)
		}
	})
}

// TestStraddling finds the sessions around a time, with and without a bound of how long one can be.
func TestStraddling(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		for _, span := range []event.Micros{0, 30} {
			f := newFixture(t, dsn)
			f.owner = f.own(get(f.CreateGeneration(t.Context(), job, fmt.Sprint("span ", span), "live"))(t).ID, 0)
			for n, x := range [][2]event.Micros{{0, 5}, {10, 40}, {20, 45}, {38, 39}, {40, 60}, {55, 55}} {
				s := session(n, uint64(n+1))
				s.Start, s.End = x[0], x[1]
				f.write(f.owner, Batch{Sessions: []Session{s}, Progress: &Mark{Seq: uint64(n + 1), Watermark: 100, MaxSpan: span}})
			}
			for at, want := range map[event.Micros][2]event.Micros{5: {0, 5}, 6: {6, 6}, 40: {10, 45}, 41: {20, 60}, 55: {40, 60}, 0: {0, 0}, 61: {61, 61}, event.MinTime: {event.MinTime, event.MinTime}} {
				least, greatest, err := f.Straddling(t.Context(), f.scope(), at)
				if err != nil || [2]event.Micros{least, greatest} != want {
					t.Errorf("span %d: around %d: %d to %d, %v; want %v", span, at, least, greatest, err, want)
				}
			}
		}
	})
}

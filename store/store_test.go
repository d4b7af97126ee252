package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/weftdata/weft/event"
)

const job = "payments"

// fixture is a store with one generation whose shard 0 is owned.
type fixture struct {
	*Store
	t     *testing.T
	dsn   string
	owner Owner
}

func newFixture(t *testing.T, dsn string) *fixture {
	f := &fixture{Store: open(t, dsn), t: t, dsn: dsn}
	g := get(f.CreateGeneration(t.Context(), job, "1", "live"))(t)
	f.owner = f.own(g.ID, 0)
	return f
}

func (f *fixture) own(generation int64, shard int) Owner {
	f.t.Helper()
	return Owner{generation, shard, get(f.TakeEpoch(f.t.Context(), job, generation, shard))(f.t)}
}

func (f *fixture) write(o Owner, b Batch) {
	f.t.Helper()
	must(f.t, f.Write(f.t.Context(), o, &b))
}

// serve gives all of time to a generation.
func (f *fixture) serve(generation int64) Map {
	f.t.Helper()
	m := get(f.ServingMap(f.t.Context(), job))(f.t)
	return get(f.Switch(f.t.Context(), SwitchRequest{Job: job, RequestID: fmt.Sprint("serve ", m.Epoch), ExpectedEpoch: m.Epoch,
		Assignments: []Assignment{{event.MinTime, event.MaxTime, generation}}}))(f.t)
}

func (f *fixture) scope() Scope { return Scope{job, f.owner.Generation} }

func id(n int) (id ID) {
	binary.BigEndian.PutUint64(id[:], uint64(n))
	return id
}

// session makes a session whose columns differ with n and seq.
func session(n int, seq uint64) Session {
	s := Session{Seq: seq, ID: id(n), Start: event.Micros(n), End: event.Micros(n) + 10, Events: int64(seq), User: fmt.Appendf(nil, "u%d", n%3),
		Keys: []Key{{"order", fmt.Appendf(nil, "o%d", n)}, {"txn", fmt.Appendf(nil, "t%d", n)}},
		Body: fmt.Appendf(nil, `{"n":%d,"seq":%d}`, n, seq)}
	s.Digest = Digest{Sum: [4]uint64{uint64(n)*1000 + seq}, Count: 1}
	return s
}

func ids(rows []Row) (list []int) {
	for _, r := range rows {
		list = append(list, int(binary.BigEndian.Uint64(r.ID[:])))
	}
	return list
}

func (f *fixture) sessions(q SessionQuery) []int {
	f.t.Helper()
	if q.Job == "" {
		q.Scope = f.scope()
	}
	return ids(get(f.Sessions(f.t.Context(), q))(f.t).Items)
}

func equal[T any](t testing.TB, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func TestSessions(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		var b Batch
		for n := 1; n <= 10; n++ {
			x := session(n, uint64(n))
			if n%2 == 0 {
				x.Hits = []Hit{{"stuck", event.Micros(n * 100)}, {"other", 0}}
			}
			b.Sessions = append(b.Sessions, x)
		}
		f.write(f.owner, b)

		row := get(f.Session(t.Context(), f.scope(), id(7)))(t)
		equal(t, row, Row{id(7), f.owner.Generation, 0, Position{f.owner.Epoch, 7}, 7, 17, 7, []byte(`{"n":7,"seq":7}`), event.MinTime, 0})
		_, err := f.Session(t.Context(), f.scope(), id(77))
		fails(t, err, ErrNotFound, User)

		equal(t, f.sessions(SessionQuery{}), []int{10, 9, 8, 7, 6, 5, 4, 3, 2, 1})
		equal(t, f.sessions(SessionQuery{From: 3, To: 6}), []int{5, 4, 3})
		equal(t, f.sessions(SessionQuery{User: []byte("u1")}), []int{10, 7, 4, 1})
		equal(t, f.sessions(SessionQuery{Key: &Key{"txn", []byte("t4")}}), []int{4})
		equal(t, f.sessions(SessionQuery{Key: &Key{"order", []byte("t4")}}), nil)
		equal(t, f.sessions(SessionQuery{Scenario: "stuck", From: 3}), nil) // from 3 to 0
		equal(t, f.sessions(SessionQuery{Scenario: "stuck"}), []int{10, 8, 6, 4, 2})
		equal(t, f.sessions(SessionQuery{Scenario: "stuck", Decision: Decided, Watermark: 600}), []int{6, 4, 2})
		equal(t, f.sessions(SessionQuery{Scenario: "stuck", Decision: Pending, Watermark: 600}), []int{10, 8})
		equal(t, f.sessions(SessionQuery{Scenario: "stuck", User: []byte("u1")}), []int{10, 4})
		equal(t, f.sessions(SessionQuery{Scenario: "stuck", Decision: Pending, Watermark: 600, User: []byte("u1")}), []int{10})
		equal(t, f.sessions(SessionQuery{User: []byte("u1"), Key: &Key{"txn", []byte("t4")}, Scenario: "other"}), []int{4})
		equal(t, f.sessions(SessionQuery{User: []byte("u2"), Key: &Key{"txn", []byte("t4")}}), nil)
		equal(t, f.sessions(SessionQuery{Scenario: "other", Key: &Key{"txn", []byte("t3")}}), nil)
		equal(t, f.sessions(SessionQuery{Open: true, Watermark: 18}), []int{10, 9})

		// A change replaces keys, hits and user; a tombstone takes all away.
		x := session(4, 11)
		x.Keys, x.User = []Key{{"txn", []byte("t4")}, {"txn", []byte("new")}}, nil
		f.write(f.owner, Batch{Sessions: []Session{x}, Tombstones: []Tombstone{{12, id(6)}}})
		equal(t, f.sessions(SessionQuery{Key: &Key{"order", []byte("o4")}}), nil)
		equal(t, f.sessions(SessionQuery{Key: &Key{"txn", []byte("new")}}), []int{4})
		equal(t, f.sessions(SessionQuery{Key: &Key{"txn", []byte("t6")}}), nil)
		equal(t, f.sessions(SessionQuery{Scenario: "stuck"}), []int{10, 8, 2})
		equal(t, f.sessions(SessionQuery{User: []byte("u1")}), []int{10, 7, 1})
		equal(t, get(f.Digest(t.Context(), f.scope(), 0, 0))(t), Digest{Sum: [4]uint64{49*1000 + 49 + 7}, Count: 9})
		equal(t, get(f.Digest(t.Context(), f.scope(), 1, 3))(t), Digest{Sum: [4]uint64{3003}, Count: 2})
	})
}

func TestPaging(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		other := get(f.CreateGeneration(t.Context(), job, "2", "live"))(t)
		var b Batch
		for n := 1; n <= 25; n++ {
			x := session(n, uint64(n))
			x.Start = event.Micros(n / 3) // several start together
			x.Hits = []Hit{{"stuck", 5}}
			b.Sessions = append(b.Sessions, x)
		}
		f.write(f.owner, b)
		f.write(f.own(other.ID, 0), b)
		must(t, second(f.Switch(t.Context(), SwitchRequest{Job: job, RequestID: "r", Assignments: []Assignment{
			{event.MinTime, 4, f.owner.Generation}, {4, event.MaxTime, other.ID}}})))
		for _, q := range []SessionQuery{{}, {Scenario: "stuck"}} {
			q.Scope, q.Limit = Scope{Job: job}, 4
			var got []int
			for {
				r := get(f.Sessions(t.Context(), q))(t)
				got = append(got, ids(r.Items)...)
				for _, row := range r.Items {
					if (row.Start < 4) != (row.Generation == f.owner.Generation) {
						t.Fatalf("session %x of generation %d starts at %d", row.ID, row.Generation, row.Start)
					}
				}
				if q.After = r.Next; q.After == "" {
					break
				}
			}
			want := make([]int, 25)
			for i := range want {
				want[i] = 25 - i
			}
			equal(t, got, want)
		}
		for _, q := range []SessionQuery{{Page: Page{Limit: PageRowsMax + 1}}, {Page: Page{Limit: -1}}, {Page: Page{After: "x"}}} {
			q.Scope = f.scope()
			fails(t, second(f.Sessions(t.Context(), q)), nil, User)
		}
	})
}

func second[T any](_ T, err error) error { return err }

// TestLargePage ends a page by its bytes.
func TestLargePage(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		for n := range 3 {
			x := session(n, uint64(n))
			x.Body = bytes.Repeat([]byte("x"), PageBytesMax/2-1)
			f.write(f.owner, Batch{Sessions: []Session{x}})
		}
		r := get(f.Sessions(t.Context(), SessionQuery{Scope: f.scope()}))(t)
		equal(t, ids(r.Items), []int{2, 1})
		r = get(f.Sessions(t.Context(), SessionQuery{Scope: f.scope(), Page: Page{After: r.Next}}))(t)
		equal(t, ids(r.Items), []int{0})
		equal(t, r.Next, "")
	})
}

func TestAnyBytes(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		odd := []byte("\x00\xff\xfe'\"\\\u00e9")
		long := append(bytes.Repeat([]byte("k"), 4096), 1)
		longer := append(bytes.Repeat([]byte("k"), 4096), 2)
		x, y := session(1, 1), session(2, 2)
		x.User, x.Keys, x.Body = odd, []Key{{"order", odd}, {"order", long}, {"order", []byte{}}}, odd
		y.User, y.Keys = long, []Key{{"order", longer}}
		e := Exception{Seq: 3, Kind: Rejected, Source: "s", Topic: "t", Time: 1, Reason: string(odd), Detail: odd, Raw: odd}
		c := Cell{Seq: 4, Report: "r", By: []Dimension{{"game", odd}, {"channel", long}}, Measures: []Measure{{"n", 1}}}
		f.write(f.owner, Batch{Sessions: []Session{x, y}, Exceptions: []Exception{e}, Cells: []Cell{c}})
		equal(t, f.sessions(SessionQuery{User: odd}), []int{1})
		equal(t, f.sessions(SessionQuery{User: long}), []int{2})
		for i, value := range [][]byte{odd, long, {}, longer} {
			equal(t, f.sessions(SessionQuery{Key: &Key{"order", value}}), []int{1 + i/3})
		}
		equal(t, get(f.Session(t.Context(), f.scope(), id(1)))(t).Body, odd)
		got := get(f.Exceptions(t.Context(), ExceptionQuery{Scope: f.scope(), Kind: Rejected}))(t).Items[0]
		if !bytes.Equal(got.Raw, odd) || !bytes.Equal(got.Detail, odd) {
			t.Errorf("got detail %q and raw %q, want %q", got.Detail, got.Raw, odd)
		}
		r := get(f.Cells(t.Context(), CellQuery{Scope: f.scope(), Report: "r", Where: []Dimension{{"game", odd}}}))(t)
		equal(t, r.Items[0].By, c.By)
		fails(t, second(f.Sessions(t.Context(), SessionQuery{Scope: f.scope(), Scenario: "\xff"})), nil, User)
		fails(t, second(f.CreateGeneration(t.Context(), "a\x00b", "1", "live")), nil, User)
		must(t, f.Audit(t.Context(), AuditEntry{Actor: string(odd), Action: "try"}))
	})
}

func TestOrderOfChanges(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		f.write(f.owner, Batch{}) // nothing is fine
		body := func() string { return string(get(f.Session(t.Context(), f.scope(), id(1)))(t).Body) }
		f.write(f.owner, Batch{Sessions: []Session{session(1, 5), session(1, 7), session(1, 6)}})
		equal(t, body(), `{"n":1,"seq":7}`)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 6)}, Tombstones: []Tombstone{{4, id(1)}}})
		equal(t, body(), `{"n":1,"seq":7}`)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 9)}, Tombstones: []Tombstone{{8, id(1)}}})
		equal(t, body(), `{"n":1,"seq":9}`)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 10)}, Tombstones: []Tombstone{{11, id(1)}}})
		fails(t, second(f.Session(t.Context(), f.scope(), id(1))), ErrNotFound, User)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 10)}}) // again, after its tombstone
		fails(t, second(f.Session(t.Context(), f.scope(), id(1))), ErrNotFound, User)

		// A later epoch starts its sequence anew and wins, in another shard too.
		next := f.own(f.owner.Generation, 1)
		f.write(next, Batch{Sessions: []Session{session(1, 1)}})
		equal(t, body(), `{"n":1,"seq":1}`)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 99)}})
		equal(t, body(), `{"n":1,"seq":1}`)
	})
}

func TestCompact(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 1), session(2, 2), session(3, 3)},
			Cells: []Cell{{Seq: 4, Report: "r", Empty: true}}})
		f.write(f.owner, Batch{Tombstones: []Tombstone{{5, id(1)}, {6, id(2)}}})
		equal(t, get(f.Compact(t.Context(), f.owner, Position{f.owner.Epoch, 6}))(t), 2)
		c := get(f.Changes(t.Context(), f.scope(), 0, Position{}, 0))(t)
		equal(t, len(c.Items), 2) // session 3, and the tombstone of 2
		next := f.own(f.owner.Generation, 0)
		fails(t, second(f.Compact(t.Context(), f.owner, Position{f.owner.Epoch, 9})), ErrFenced, External)
		equal(t, get(f.Compact(t.Context(), next, Position{next.Epoch, 0}))(t), 1)
	})
}

func TestReports(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		cell := func(seq uint64, window event.Micros, game string, n int64) Cell {
			return Cell{Seq: seq, Report: "funnel", Window: window, By: []Dimension{{"game", []byte(game)}, {"channel", nil}},
				Measures: []Measure{{"sessions", n}, {"revenue", -n * 10}}}
		}
		f.write(f.owner, Batch{Cells: []Cell{cell(1, 60, "a", 1), cell(2, 60, "b", 2), cell(3, 0, "a", 4), cell(4, 120, "a", 9)}})
		two := f.own(f.owner.Generation, 1)
		f.write(two, Batch{Cells: []Cell{cell(1, 60, "a", 100), {Seq: 2, Report: "other", Window: 60}}})
		gone := cell(5, 120, "a", 0)
		gone.Empty = true
		f.write(f.owner, Batch{Cells: []Cell{gone, cell(6, 0, "a", 5)}})
		list := func(q CellQuery) (out []string) {
			q.Scope, q.Report = f.scope(), "funnel"
			for {
				r := get(f.Cells(t.Context(), q))(t)
				for _, c := range r.Items {
					out = append(out, fmt.Sprintf("%d %s %d %d", c.Window, c.By[0].Value, c.Measures[0].Value, c.Measures[1].Value))
				}
				if q.After = r.Next; q.After == "" {
					return out
				}
			}
		}
		want := []string{"0 a 5 -50", "60 a 101 -1010", "60 b 2 -20"}
		equal(t, list(CellQuery{}), want)
		equal(t, list(CellQuery{Page: Page{Limit: 1}}), want)
		equal(t, list(CellQuery{From: 60, To: 120}), want[1:])
		equal(t, list(CellQuery{Where: []Dimension{{"game", []byte("b")}}}), want[2:])
		equal(t, list(CellQuery{Where: []Dimension{{"game", []byte("a")}, {"channel", nil}}}), want[:2])
		equal(t, list(CellQuery{Where: []Dimension{{"channel", []byte("a")}}}), nil)

		span := func(report string) []event.Micros {
			first, last, ok, err := f.ReportSpan(t.Context(), f.scope(), report)
			must(t, err)
			if !ok {
				return nil
			}
			return []event.Micros{first, last}
		}
		equal(t, span("funnel"), []event.Micros{0, 60})
		equal(t, span("none"), nil)

		// Each range shows the windows that start in it.
		other := get(f.CreateGeneration(t.Context(), job, "2", "live"))(t)
		f.write(f.own(other.ID, 0), Batch{Cells: []Cell{cell(1, 0, "z", 7), cell(2, 60, "z", 8)}})
		must(t, second(f.Switch(t.Context(), SwitchRequest{Job: job, RequestID: "r", Assignments: []Assignment{
			{event.MinTime, 60, f.owner.Generation}, {60, event.MaxTime, other.ID}}})))
		r := get(f.Cells(t.Context(), CellQuery{Scope: Scope{Job: job}, Report: "funnel"}))(t)
		equal(t, len(r.Items), 2)
		equal(t, string(r.Items[1].By[0].Value), "z")
	})
}

func TestExceptions(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		late := func(seq uint64, offset int64, time event.Micros) Exception {
			return Exception{Seq: seq, Kind: Late, Source: "orders", Topic: "pay.orders", Partition: 3, Offset: offset, Time: time, Detail: []byte("paid")}
		}
		reject := late(9, 1, event.MinTime)
		reject.Kind, reject.Reason, reject.Raw = Rejected, "syntax", []byte("{")
		b := Batch{Exceptions: []Exception{late(1, 1, 10), late(2, 2, 20), late(3, 3, 30), late(4, 3, 30), reject}}
		f.write(f.owner, b)
		f.write(f.own(f.owner.Generation, 0), b) // a replay tells the same ones again
		f.serve(f.owner.Generation)
		list := func(q ExceptionQuery) (offsets []int64) {
			q.Scope.Job = job
			for {
				r := get(f.Exceptions(t.Context(), q))(t)
				for _, e := range r.Items {
					offsets = append(offsets, e.Offset)
				}
				if q.After = r.Next; q.After == "" {
					return offsets
				}
			}
		}
		equal(t, list(ExceptionQuery{Kind: Late, Page: Page{Limit: 1}}), []int64{3, 2, 1})
		equal(t, list(ExceptionQuery{Kind: Late, From: 15, To: 25}), []int64{2})
		equal(t, list(ExceptionQuery{Kind: Rejected, Reason: "syntax", Source: "orders"}), []int64{1})
		equal(t, list(ExceptionQuery{Kind: Rejected, Reason: "no_time"}), nil)
		equal(t, get(f.CountExceptions(t.Context(), job, f.owner.Generation, Late))(t), []ExceptionCount{{"orders", "", 3}})

		// Without a time it belongs to the newest range, and to no other.
		other := get(f.CreateGeneration(t.Context(), job, "2", "live"))(t)
		must(t, second(f.Switch(t.Context(), SwitchRequest{Job: job, RequestID: "r", ExpectedEpoch: 1, Assignments: []Assignment{{20, event.MaxTime, other.ID}}})))
		equal(t, list(ExceptionQuery{Kind: Rejected}), nil)
		equal(t, get(f.CountExceptions(t.Context(), job, 0, Rejected))(t), []ExceptionCount{})
		equal(t, get(f.CountExceptions(t.Context(), job, 0, Late))(t), []ExceptionCount{{"orders", "", 1}})
		equal(t, get(f.CountExceptions(t.Context(), job, f.owner.Generation, Rejected))(t), []ExceptionCount{{"orders", "syntax", 1}})
		equal(t, list(ExceptionQuery{Kind: Late}), []int64{1})
	})
}

func TestZombies(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		const starts, writes = 4, 6
		epochs := make([]uint64, starts)
		var wg sync.WaitGroup
		for i := range starts {
			s := open(t, dsn) // a process of its own
			wg.Go(func() {
				epoch, err := s.TakeEpoch(context.Background(), job, f.owner.Generation, 0)
				if err != nil {
					t.Error(err)
					return
				}
				epochs[i] = epoch
				o := Owner{f.owner.Generation, 0, epoch}
				for n := range writes {
					x := session(n, uint64(n))
					x.Body = fmt.Append(nil, epoch)
					if err := s.Write(context.Background(), o, &Batch{Sessions: []Session{x}}); errors.Is(err, ErrFenced) {
						return
					} else if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		slices.Sort(epochs)
		equal(t, epochs, []uint64{2, 3, 4, 5})
		// The last one wrote everything after it had started, and nobody after it.
		r := get(f.Sessions(t.Context(), SessionQuery{Scope: f.scope()}))(t)
		equal(t, len(r.Items), writes)
		for _, row := range r.Items {
			equal(t, string(row.Body), "5")
		}
		fails(t, f.Write(t.Context(), f.owner, &Batch{Sessions: []Session{session(99, 99)}}), ErrFenced, External)
		fails(t, second(f.Session(t.Context(), f.scope(), id(99))), ErrNotFound, User)
		fails(t, f.Write(t.Context(), Owner{f.owner.Generation, -1, 5}, &Batch{}), ErrFenced, External)
		fails(t, second(f.TakeEpoch(t.Context(), "another job", f.owner.Generation, 0)), ErrNoGeneration, User)
	})
}

func TestRepair(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		cell := func(seq uint64, window event.Micros) Cell {
			return Cell{Seq: seq, Report: "r", Window: window, By: []Dimension{{"game", []byte("g")}}, Measures: []Measure{{"n", int64(seq)}}}
		}
		var b Batch
		for n := 1; n <= repairRows+10; n++ {
			b.Sessions = append(b.Sessions, session(n, uint64(n)))
		}
		b.Cells = []Cell{cell(2, 1), cell(6, 2)}
		b.Exceptions = []Exception{{Seq: 3, Kind: Late, Source: "s", Topic: "t", Offset: 1}, {Seq: 8, Kind: Late, Source: "s", Topic: "t", Offset: 2}}
		f.write(f.owner, b)
		f.write(f.own(f.owner.Generation, 1), Batch{Sessions: []Session{session(5000, 9999)}}) // another shard is left alone
		f.write(f.owner, Batch{Tombstones: []Tombstone{{9000, id(1)}}})

		after := Position{f.owner.Epoch, 5}
		next := f.own(f.owner.Generation, 0)
		for range f.Repair(t.Context(), f.owner, after) {
			break
		}
		var changed []ID
		for id, err := range f.Repair(t.Context(), next, after) {
			must(t, err)
			changed = append(changed, id)
			// Writing meanwhile neither blocks nor comes back.
			f.write(next, Batch{Tombstones: []Tombstone{{uint64(len(changed)), id}}})
			if len(changed) > 20 && len(changed) < repairRows {
				break
			}
		}
		for id, err := range f.Repair(t.Context(), next, after) {
			must(t, err)
			changed = append(changed, id)
		}
		want := []ID{}
		for n := 6; n <= repairRows+10; n++ {
			want = append(want, id(n))
		}
		equal(t, changed, append(want, id(1)))

		for c, err := range f.RepairCells(t.Context(), next, after) {
			must(t, err)
			equal(t, c, Cell{Report: "r", Window: 2, By: []Dimension{{"game", []byte("g")}}})
		}
		equal(t, get(f.RepairExceptions(t.Context(), next, after))(t), 1)
		equal(t, get(f.CountExceptions(t.Context(), job, f.owner.Generation, Late))(t), []ExceptionCount{{"s", "", 1}})
		for _, err := range f.Repair(t.Context(), f.owner, after) {
			fails(t, err, ErrFenced, External)
		}
		fails(t, second(f.RepairExceptions(t.Context(), f.owner, after)), ErrFenced, External)
	})
}

func TestChanges(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 1), session(2, 2), session(3, 3)}})
		f.write(f.owner, Batch{Sessions: []Session{session(1, 4)}, Tombstones: []Tombstone{{5, id(2)}, {6, id(9)}}})
		must(t, second(f.Switch(t.Context(), SwitchRequest{Job: job, RequestID: "r", Assignments: []Assignment{{2, 9, f.owner.Generation}}})))
		var got []string
		var at Position
		for {
			c := get(f.Changes(t.Context(), f.scope(), 0, at, 2))(t)
			equal(t, c.MapEpoch, 1)
			if len(c.Items) == 0 {
				break
			}
			for _, x := range c.Items {
				at = x.Position
				got = append(got, fmt.Sprint(ids([]Row{x.Row})[0], x.Position.Seq, x.Start, x.Deleted, x.Served))
			}
		}
		equal(t, got, []string{"3 3 3 false true", "1 4 1 false false", "2 5 2 true true", "9 6 0 true false"})
	})
}

func TestAudit(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		for _, request := range []string{"", "", "r1", "r1", "r2"} {
			must(t, f.Audit(t.Context(), AuditEntry{Actor: "ann", Job: job, Action: "pause", Reason: "test", RequestID: request}))
		}
		must(t, f.Audit(t.Context(), AuditEntry{Actor: "bob", Action: "login"}))
		m := f.serve(f.owner.Generation)
		var got []string
		q := Page{Limit: 2}
		for {
			r := get(f.AuditLog(t.Context(), job, q))(t)
			for _, e := range r.Items {
				got = append(got, fmt.Sprintf("%d %s %s %s", e.At, e.Actor, e.Action, e.RequestID))
			}
			if q.After = r.Next; q.After == "" {
				break
			}
		}
		equal(t, got, []string{"42  switch serve 0", "42 ann pause r2", "42 ann pause r1", "42 ann pause ", "42 ann pause "})
		equal(t, len(get(f.AuditLog(t.Context(), "", Page{}))(t).Items), 6)
		equal(t, m.Epoch, 1)
		for _, statement := range []string{`UPDATE audit SET actor = 'eve'`, `DELETE FROM audit`} {
			if err := f.db.catalog(t.Context(), execute(t.Context(), statement)); err == nil {
				t.Errorf("%s was let through", statement)
			}
		}
	})
}

func TestCancel(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		fails(t, f.Write(ctx, f.owner, &Batch{Sessions: []Session{session(1, 1)}}), context.Canceled, External)
		fails(t, second(f.Sessions(ctx, SessionQuery{Scope: f.scope()})), context.Canceled, External)
		fails(t, second(f.Digest(ctx, f.scope(), 0, 0)), context.Canceled, External)
		equal(t, f.sessions(SessionQuery{}), nil)
	})
}

func TestBatchLimits(t *testing.T) {
	for name, b := range map[string]Batch{
		"rows":     {Tombstones: make([]Tombstone, BatchRowsMax+1)},
		"seq":      {Sessions: []Session{session(1, 1<<63)}},
		"body":     {Sessions: []Session{{Body: make([]byte, BodyBytesMax+1)}}},
		"kind":     {Sessions: []Session{{Keys: []Key{{"\xff", nil}}}}},
		"scenario": {Sessions: []Session{{Hits: []Hit{{"", 0}}}}},
		"twice":    {Sessions: []Session{{Hits: []Hit{{"a", 0}, {"a", 1}}}}},
		"report":   {Cells: []Cell{{}}},
		"topic":    {Exceptions: []Exception{{Source: "s"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := stage(&b); err == nil {
				t.Error("it was let through")
			}
		})
	}
}

package store

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
)

func (f *fixture) mark(o Owner, m Mark) { f.t.Helper(); f.write(o, Batch{Progress: &m}) }

func (f *fixture) progress(scope Scope) (list []string) {
	f.t.Helper()
	p := get(f.Progress(f.t.Context(), scope))(f.t)
	for _, x := range p.Shards {
		list = append(list, fmt.Sprintf("%d: %d.%d at %s", x.Shard, x.Position.Epoch, x.Position.Seq, micros(x.Watermark)))
	}
	return append(list, "least "+micros(p.Watermark))
}

func micros(t event.Micros) string {
	switch t {
	case event.MinTime:
		return "none"
	case event.MaxTime:
		return "end"
	}
	return fmt.Sprint(int64(t))
}

func TestProgress(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		fails(t, second(f.Progress(t.Context(), Scope{Job: job})), ErrNotFound, User)
		f.serve(f.owner.Generation)
		equal(t, f.progress(Scope{Job: job}), []string{"0: 0.0 at none", "least none"})
		f.mark(f.owner, Mark{Seq: 5, Watermark: 100})
		two := f.own(f.owner.Generation, 1)
		equal(t, f.progress(f.scope()), []string{"0: 1.5 at 100", "1: 0.0 at none", "least 100"})
		f.mark(two, Mark{Seq: 1, Watermark: event.MinTime})
		equal(t, f.progress(f.scope()), []string{"0: 1.5 at 100", "1: 2.1 at none", "least 100"})
		f.mark(two, Mark{Seq: 1, Watermark: 40})
		f.mark(f.owner, Mark{Seq: 4, Watermark: 900}) // an older batch again
		f.mark(f.owner, Mark{Seq: 5, Watermark: 90})
		equal(t, f.progress(f.scope()), []string{"0: 1.5 at 100", "1: 2.1 at 40", "least 40"})

		// A run that goes on from a checkpoint has seen less again.
		next := f.own(f.owner.Generation, 0)
		f.mark(next, Mark{Seq: 2, Watermark: 70})
		b := Batch{Progress: &Mark{Seq: 9, Watermark: 500}}
		fails(t, f.Write(t.Context(), f.owner, &b), ErrFenced, External)
		f.mark(two, Mark{Seq: 2, Watermark: event.MaxTime})
		equal(t, f.progress(Scope{Job: job}), []string{"0: 3.2 at 70", "1: 2.2 at end", "least 70"})

		b = Batch{Progress: &Mark{Seq: 1, Settle: -1}}
		fails(t, f.Write(t.Context(), next, &b), nil, Internal)
		if p := get(f.Progress(t.Context(), f.scope()))(t); p.Shards[0].Written != 42 {
			t.Errorf("written at %d, want the writer's clock", p.Shards[0].Written)
		}

		// Another generation of the same store has its own.
		other := get(f.CreateGeneration(t.Context(), job, "2", "live"))(t)
		f.mark(f.own(other.ID, 0), Mark{Seq: 1, Watermark: 7})
		equal(t, f.progress(Scope{job, other.ID}), []string{"0: 1.1 at 7", "least 7"})
		must(t, f.DropGeneration(t.Context(), job, other.ID))
		fails(t, second(f.Progress(t.Context(), Scope{job, other.ID})), ErrNoGeneration, User)
		if p, ok := f.db.(*postgresStore); ok {
			left := -1
			must(t, p.db.QueryRowContext(t.Context(), `SELECT count(*) FROM shard_progress WHERE generation = $1`, other.ID).Scan(&left))
			equal(t, left, 0)
		}
	})
}

// TestDecidedByOwnShard decides each session by the watermark of the shard that holds it.
func TestDecidedByOwnShard(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		owners := []Owner{f.owner, f.own(f.owner.Generation, 1), f.own(f.owner.Generation, 2)}
		for n := 1; n <= 9; n++ { // sessions 3, 6 and 9 are of shard 0, and so on
			x := session(n, 1)
			x.Hits = []Hit{{"stuck", event.Micros(100 * n)}}
			f.write(owners[n%3], Batch{Sessions: []Session{x}})
		}
		f.mark(owners[0], Mark{Seq: 2, Watermark: 600})
		f.mark(owners[1], Mark{Seq: 2, Watermark: 15, Settle: 1, MaxSpan: 10})
		decided := SessionQuery{Scenario: "stuck", Decision: Decided}
		pending := SessionQuery{Scenario: "stuck", Decision: Pending}
		equal(t, f.sessions(decided), []int{6, 3})
		equal(t, f.sessions(pending), []int{9, 8, 7, 5, 4, 2, 1})

		// Of shard 1, session 4 ends at 14 and settles at 15; shard 2 says nothing, so that all of it is open.
		open := SessionQuery{Open: true}
		equal(t, f.sessions(open), []int{8, 7, 5, 2})
		f.mark(owners[2], Mark{Seq: 2, Watermark: 30, Settle: 13, MaxSpan: 10})
		equal(t, f.sessions(open), []int{8, 7})
		open.From, open.To = 1, 8
		equal(t, f.sessions(open), []int{7})

		row := get(f.Session(t.Context(), f.scope(), id(7)))(t)
		if row.Watermark != 15 || row.Settle != 1 || !row.Open() {
			t.Errorf("session 7 is %+v, want it open at 15", row)
		}
		row = get(f.Session(t.Context(), f.scope(), id(8)))(t)
		if row.Watermark != 30 || !row.Open() { // it has ended at 18 and settles at 31
			t.Errorf("session 8 is %+v, want it open at 30", row)
		}
		row = get(f.Session(t.Context(), f.scope(), id(9)))(t)
		if row.Watermark != 600 || row.Open() {
			t.Errorf("session 9 is %+v, want it closed at 600", row)
		}
		f.mark(owners[2], Mark{Seq: 3, Watermark: event.MaxTime})
		equal(t, f.sessions(decided), []int{8, 6, 5, 3, 2})
	})
}

func TestNames(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		get(f.CreateGeneration(t.Context(), "another", "1", "live"))(t)
		equal(t, get(f.Jobs(t.Context()))(t), []string{"another", job})
		equal(t, get(f.Scenarios(t.Context(), Scope{Job: job}))(t), nil) // nothing is served
		var b Batch
		for n := range 50 {
			x := session(n, uint64(n))
			x.Hits = []Hit{{fmt.Sprint("s", n%3), 0}}
			b.Sessions = append(b.Sessions, x)
			b.Cells = append(b.Cells, Cell{Seq: uint64(n), Report: fmt.Sprint("r", n%2), Window: event.Micros(n)})
		}
		f.write(f.owner, b)
		f.serve(f.owner.Generation)
		equal(t, get(f.Scenarios(t.Context(), Scope{Job: job}))(t), []string{"s0", "s1", "s2"})
		equal(t, get(f.Reports(t.Context(), f.scope()))(t), []string{"r0", "r1"})
	})
}

// TestUpgrade opens a store as earlier releases left it: without progress, and without canaries.
func TestUpgrade(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 1)}})
		must(t, f.Close())
		undo := func(driver, address string, migrations int, tables ...string) {
			db := get(sql.Open(driver, address))(t)
			prefix := map[string]string{"pgx": "weft.", "sqlite": ""}[driver]
			for _, table := range tables {
				must(t, second(db.ExecContext(t.Context(), "DROP TABLE "+prefix+table)))
			}
			must(t, second(db.ExecContext(t.Context(), fmt.Sprintf("DELETE FROM "+prefix+"goose_db_version WHERE version_id > %d", migrations))))
			must(t, db.Close())
		}
		if dir, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
			undo("sqlite", filepath.Join(dir, "generations", fmt.Sprint(f.owner.Generation)+".db"), 1, "shard_progress")
			undo("sqlite", filepath.Join(dir, "catalog.db"), 1, "serving_canary")
		} else {
			undo("pgx", dsn, 2, "shard_progress", "serving_canary")
		}

		f.Store = open(t, dsn)
		equal(t, f.sessions(SessionQuery{Open: true}), []int{1})
		f.serve(f.owner.Generation)
		equal(t, len(get(f.Sessions(t.Context(), SessionQuery{Scope: Scope{Job: job}, User: []byte("u1")}))(t).Items), 1)
		f.mark(f.owner, Mark{Seq: 2, Watermark: 50})
		equal(t, f.sessions(SessionQuery{Open: true}), nil)
	})
}

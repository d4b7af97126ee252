package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
)

// execute returns a function that runs a statement in a transaction.
func execute(ctx context.Context, statement string) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, statement)
		return err
	}
}

func TestGenerations(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		g := f.owner.Generation
		same := get(f.CreateGeneration(t.Context(), job, "1", "live"))(t)
		equal(t, same, Generation{g, job, "1", "live", Ready, 42})
		other := get(f.CreateGeneration(t.Context(), job, "1", "slice:a"))(t)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 1)}})
		equal(t, f.sessions(SessionQuery{Scope: Scope{job, other.ID}}), nil)

		f.serve(g)
		fails(t, f.DropGeneration(t.Context(), job, g), ErrServed, User)
		f.serve(other.ID)
		fails(t, f.DropGeneration(t.Context(), "another job", g), ErrNoGeneration, User)
		for range 2 {
			must(t, f.DropGeneration(t.Context(), job, g))
		}
		fails(t, f.Write(t.Context(), f.owner, &Batch{Sessions: []Session{session(2, 2)}}), ErrNoGeneration, User)
		fails(t, second(f.Sessions(t.Context(), SessionQuery{Scope: f.scope()})), ErrNoGeneration, User)
		fails(t, second(f.TakeEpoch(t.Context(), job, g, 0)), ErrNoGeneration, User)
		fails(t, second(f.Switch(t.Context(), SwitchRequest{Job: job, RequestID: "late", ExpectedEpoch: 2,
			Assignments: []Assignment{{event.MinTime, event.MaxTime, g}}})), ErrNoGeneration, User)
		again := get(f.CreateGeneration(t.Context(), job, "1", "live"))(t)
		if again.ID <= other.ID {
			t.Errorf("the number %d came back", again.ID)
		}
		list := get(f.Generations(t.Context(), job))(t)
		equal(t, len(list), 2)
	})
}

// TestInterruptedCreateAndDrop takes up what a crash left.
func TestInterruptedCreateAndDrop(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		g := f.owner.Generation
		state := func(from, to State) {
			must(t, f.db.catalog(t.Context(), func(tx *sql.Tx) error { return f.move(t.Context(), tx, g, from, to) }))
		}
		state(Ready, Creating)
		equal(t, get(f.CreateGeneration(t.Context(), job, "1", "live"))(t).State, Ready)
		state(Ready, Dropping)
		fails(t, second(f.CreateGeneration(t.Context(), job, "1", "live")), nil, User)
		must(t, f.db.drop(t.Context(), g))
		must(t, f.DropGeneration(t.Context(), job, g))
		equal(t, len(get(f.Generations(t.Context(), job))(t)), 0)
	})
}

func TestConcurrentOpenAndCreate(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		numbers := map[int64]bool{}
		for range 4 {
			wg.Go(func() {
				s, err := Open(context.Background(), dsn, Options{})
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				g, err := s.CreateGeneration(context.Background(), job, "1", "live")
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				numbers[g.ID] = true
			})
		}
		wg.Wait()
		equal(t, len(numbers), 1)
	})
}

// TestDropWhileReading switches to and fro, and drops what is not served any more, while readers see every session
// exactly once at any moment.
func TestDropWhileReading(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		const sessions, rounds = 20, 8
		fill := func(o Owner) {
			var b Batch
			for n := range sessions {
				b.Sessions = append(b.Sessions, session(n, 1))
			}
			f.write(o, b)
		}
		fill(f.owner)
		f.serve(f.owner.Generation)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		reads := make([]int, 3)
		for i := range reads {
			wg.Go(func() {
				for ctx.Err() == nil {
					r, err := f.Sessions(ctx, SessionQuery{Scope: Scope{Job: job}})
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
						return
					}
					if err == nil && len(r.Items) != sessions {
						t.Errorf("read %d sessions, want %d", len(r.Items), sessions)
						return
					}
					reads[i]++
				}
			})
		}
		old := f.owner.Generation
		for round := range rounds {
			g := get(f.CreateGeneration(t.Context(), job, fmt.Sprint(round+2), "live"))(t)
			fill(f.own(g.ID, 0))
			f.serve(g.ID)
			must(t, f.DropGeneration(t.Context(), job, old))
			old = g.ID
		}
		cancel()
		wg.Wait()
		if reads[0]+reads[1]+reads[2] < rounds {
			t.Errorf("the readers came through %v times in %d rounds", reads, rounds)
		}
	})
}

func TestSwitch(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		a, b := f.owner.Generation, get(f.CreateGeneration(t.Context(), job, "2", "live"))(t).ID
		fails(t, second(f.CreateGeneration(t.Context(), "", "2", "live")), nil, User)
		all := []Assignment{{event.MinTime, event.MaxTime, a}}
		first := SwitchRequest{Job: job, RequestID: "first", Assignments: all, Actor: "ann", Reason: "start"}
		m1 := get(f.Switch(t.Context(), first))(t)
		equal(t, m1, Map{Epoch: 1, Ranges: all})
		promote := SwitchRequest{Job: job, RequestID: "promote", ExpectedEpoch: 1, Assignments: []Assignment{{100, event.MaxTime, b}}}
		m2 := get(f.Switch(t.Context(), promote))(t)
		equal(t, m2, Map{Epoch: 2, Ranges: []Assignment{{event.MinTime, 100, a}, {100, event.MaxTime, b}}})
		stale := SwitchRequest{Job: job, RequestID: "stale", ExpectedEpoch: 1, Assignments: all}
		fails(t, second(f.Switch(t.Context(), stale)), ErrStale, User)
		back := get(f.Switch(t.Context(), SwitchRequest{Job: job, RequestID: "back", ExpectedEpoch: 2, Assignments: all}))(t)
		equal(t, back, Map{Epoch: 3, Ranges: all})

		// The promote was answered too late for its caller: the retry gets its answer and undoes nothing.
		equal(t, get(f.Switch(t.Context(), promote))(t), m2)
		equal(t, get(f.ServingMap(t.Context(), job))(t), back)
		promote.Assignments = all
		fails(t, second(f.Switch(t.Context(), promote)), errTaken, User)
		for _, bad := range [][]Assignment{nil, {{5, 5, a}}, {{0, 10, a}, {9, 20, b}}, {{0, 10, 999}}} {
			fails(t, second(f.Switch(t.Context(), SwitchRequest{Job: job, RequestID: "bad", ExpectedEpoch: 3, Assignments: bad})), nil, User)
		}
		equal(t, get(f.ServingMap(t.Context(), "none"))(t), Map{})
	})
}

func TestSwitchRace(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		const racers = 6
		results := make([]error, racers)
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				_, results[i] = f.Switch(context.Background(), SwitchRequest{Job: job, RequestID: fmt.Sprint("r", i/2),
					Assignments: []Assignment{{event.Micros(i / 2), event.MaxTime, f.owner.Generation}}})
			})
		}
		wg.Wait()
		done := 0
		for _, err := range results {
			if err == nil {
				done++
			} else {
				fails(t, err, ErrStale, User)
			}
		}
		equal(t, done, 2) // one request, sent twice
		equal(t, get(f.ServingMap(t.Context(), job))(t).Epoch, 1)
	})
}

func TestOverlay(t *testing.T) {
	a := func(from, to event.Micros, generation int64) Assignment { return Assignment{from, to, generation} }
	for _, c := range []struct{ under, over, want []Assignment }{
		{nil, []Assignment{a(0, 9, 1)}, []Assignment{a(0, 9, 1)}},
		{[]Assignment{a(0, 9, 1)}, []Assignment{a(3, 5, 2)}, []Assignment{a(0, 3, 1), a(3, 5, 2), a(5, 9, 1)}},
		{[]Assignment{a(0, 9, 1)}, []Assignment{a(3, 5, 1)}, []Assignment{a(0, 9, 1)}},
		{[]Assignment{a(0, 9, 1)}, []Assignment{a(3, 5, 0)}, []Assignment{a(0, 3, 1), a(5, 9, 1)}},
		{[]Assignment{a(0, 5, 1), a(5, 9, 2)}, []Assignment{a(4, 6, 3)}, []Assignment{a(0, 4, 1), a(4, 6, 3), a(6, 9, 2)}},
		{[]Assignment{a(0, 9, 1)}, []Assignment{a(1, 2, 2), a(3, 4, 3), a(8, 12, 4)},
			[]Assignment{a(0, 1, 1), a(1, 2, 2), a(2, 3, 1), a(3, 4, 3), a(4, 8, 1), a(8, 12, 4)}},
	} {
		equal(t, overlay(c.under, c.over), c.want)
	}
}

// childDSN tells the test's own binary to write to that store, and stop in the middle of the transaction.
const childDSN = "STORE_TEST_CHILD"

func writeAndHang() int {
	ctx := context.Background()
	s, err := Open(ctx, os.Getenv(childDSN), Options{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	g, err := s.CreateGeneration(ctx, job, "1", "live")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	epoch, err := s.TakeEpoch(ctx, job, g.ID, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	o := Owner{g.ID, 0, epoch}
	rows, err := stage(&Batch{Sessions: []Session{session(1, 1), session(2, 2)}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	err = s.db.change(ctx, g.ID, func(c *changeTx) error {
		if err := s.apply(ctx, c, o, rows); err != nil {
			return err
		}
		fmt.Println("written")
		_, err := os.Stdin.Read(make([]byte, 1)) // until the parent ends it
		return err
	})
	fmt.Println(err)
	return 1
}

// TestKilledWriter kills a process in the middle of its transaction: nothing of it is there, and nobody waits for it.
func TestKilledWriter(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		f.write(f.owner, Batch{Sessions: []Session{session(1, 1)}})
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childDSN+"="+dsn)
		in := get(child.StdinPipe())(t)
		defer in.Close()
		out := get(child.StdoutPipe())(t)
		must(t, child.Start())
		defer child.Process.Kill()
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "written\n" {
			t.Fatalf("the child said %q: %v", line, err)
		}
		equal(t, f.sessions(SessionQuery{}), []int{1}) // readers do not wait for a writer
		must(t, child.Process.Kill())
		child.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		epoch := get(f.TakeEpoch(ctx, job, f.owner.Generation, 0))(t)
		equal(t, epoch, 3)
		row := get(f.Session(ctx, f.scope(), id(1)))(t)
		equal(t, row.Position.Epoch, 1)
		equal(t, f.sessions(SessionQuery{}), []int{1})
		must(t, f.Write(ctx, Owner{f.owner.Generation, 0, epoch}, &Batch{Sessions: []Session{session(2, 1)}}))
	})
}

// TestLostConnection ends the server's side of a transaction.
func TestLostConnection(t *testing.T) {
	f := newFixture(t, server.database(t))
	rows := get(stage(&Batch{Sessions: []Session{session(1, 1)}}))(t)
	err := f.db.change(t.Context(), f.owner.Generation, func(c *changeTx) error {
		if err := f.apply(t.Context(), c, f.owner, rows); err != nil {
			return err
		}
		var pid int
		if err := c.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			return err
		}
		server.exec(t, server.dsn("postgres"), fmt.Sprintf(`SELECT pg_terminate_backend(%d, 10000)`, pid))
		return nil
	})
	err = failed("write", err)
	var e *Error
	if !errors.As(err, &e) || e.Class != External || !e.Retryable {
		t.Fatalf("got %v, want an error that may be retried", err)
	}
	equal(t, f.sessions(SessionQuery{}), nil)
	f.write(f.owner, Batch{Sessions: []Session{session(1, 1)}}) // the next connection is a good one
	equal(t, f.sessions(SessionQuery{}), []int{1})
}

// TestInterruptedDetach cuts a drop short while somebody reads all generations at once, and takes it up again.
func TestInterruptedDetach(t *testing.T) {
	f := newFixture(t, server.database(t))
	g := f.owner.Generation
	db := f.db.(*postgresStore).db
	reader := get(db.BeginTx(t.Context(), nil))(t)
	defer reader.Rollback()
	must(t, second(reader.ExecContext(t.Context(), `SELECT count(*) FROM session`)))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	fails(t, f.DropGeneration(ctx, job, g), context.DeadlineExceeded, External)
	var pending bool
	must(t, db.QueryRowContext(t.Context(), `SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass($1)`,
		"session"+suffix(g)).Scan(&pending))
	equal(t, pending, true)
	must(t, reader.Rollback())
	must(t, f.DropGeneration(t.Context(), job, g))
	equal(t, len(get(f.Generations(t.Context(), job))(t)), 0)
}

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// asker asks what is served all the time, as users do: for one user, for all sessions of a range of time, for one session. It
// knows sessions that every answer must have, whatever is deployed, promoted or rolled back meanwhile: each of them once, and
// all of one answer from one generation.
type asker struct {
	t     *testing.T
	store *store.Store
	users map[string][]store.ID
	names []string // of users
	ids   []store.ID
	from  event.Micros // of the range
	to    event.Micros

	mu      sync.Mutex
	asked   int
	wrong   int
	slowest time.Duration
	weights map[int]int   // answers of candidates, by the weight of the canary
	by      map[int64]int // answers by generation
}

const (
	askedSessions = 500 // at most, in the range; others may begin in it, and one page has a thousand
	askPause      = 5 * time.Millisecond
	wrongMax      = 10 // answers that are told
)

// newAsker returns one that expects the newest of the sessions that are served now and are among those that stay; nil: all do.
func newAsker(t *testing.T, ctx context.Context, st *store.Store, stay map[string]bool) *asker {
	t.Helper()
	a := &asker{t: t, store: st, users: map[string][]store.ID{}, weights: map[int]int{}, by: map[int64]int{}}
	page, err := st.Sessions(ctx, store.SessionQuery{Scope: store.Scope{Job: "payments"}, Page: store.Page{Limit: store.PageRowsMax}})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range page.Items {
		var body struct{ ID, User string }
		if err := json.Unmarshal(row.Body, &body); err != nil {
			t.Fatal(err)
		}
		if len(a.ids) == askedSessions || stay != nil && !stay[body.ID] {
			continue
		}
		a.ids = append(a.ids, row.ID)
		a.from = row.Start
		a.to = max(a.to, row.Start+1)
		if body.User != "" {
			a.users[body.User] = append(a.users[body.User], row.ID)
		}
	}
	for user := range a.users {
		a.names = append(a.names, user)
	}
	slices.Sort(a.names)
	if len(a.ids) < 100 || len(a.names) < 50 {
		t.Fatalf("there are %d sessions of %d users to ask for", len(a.ids), len(a.names))
	}
	return a
}

// staying reads the ids of the sessions of a replay.
func staying(t *testing.T, dir string) map[string]bool {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "sessions.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ids := map[string]bool{}
	lines := bufio.NewReader(f)
	for decoder := json.NewDecoder(lines); decoder.More(); {
		var s struct{ ID string }
		if err := decoder.Decode(&s); err != nil {
			t.Fatal(err)
		}
		ids[s.ID] = true
	}
	return ids
}

// start asks until the function that it returns is called, which fails the test where hardly anything was asked.
func (a *asker) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pause := time.NewTicker(askPause)
		defer pause.Stop()
		for n := 0; ctx.Err() == nil && a.wrong < wrongMax; n++ {
			a.round(ctx, n)
			<-pause.C
		}
	}()
	return func() {
		a.t.Helper()
		cancel()
		<-done
		a.t.Logf("asked %d times for %d sessions of %d users; the slowest answer took %s; by generation %v, of candidates by weight %v",
			a.asked, len(a.ids), len(a.names), a.slowest.Round(time.Millisecond), a.by, a.weights)
		if a.asked < 100 {
			a.t.Errorf("only %d questions were asked", a.asked)
		}
	}
}

// round asks for a few users and a session, and at times for all.
func (a *asker) round(ctx context.Context, n int) {
	for i := range 3 {
		user := a.names[(3*n+i)%len(a.names)]
		r := a.ask(ctx, store.SessionQuery{User: []byte(user)})
		a.check(ctx, "user "+user, r, a.users[user])
	}
	if n%10 == 0 {
		a.check(ctx, "everybody", a.ask(ctx, store.SessionQuery{From: a.from, To: a.to}), a.ids)
	}
	id := a.ids[n%len(a.ids)]
	began := time.Now()
	_, err := a.store.Session(ctx, store.Scope{Job: "payments"}, id)
	a.told(ctx, began)
	if err != nil && ctx.Err() == nil {
		a.fail("session %x: %v", id, err)
	}
}

func (a *asker) ask(ctx context.Context, q store.SessionQuery) (r store.Result[store.Row]) {
	q.Job, q.Limit = "payments", store.PageRowsMax
	began := time.Now()
	r, err := a.store.Sessions(ctx, q)
	a.told(ctx, began)
	if err != nil && ctx.Err() == nil {
		a.fail("%q from %d: %v", q.User, q.From, err)
	}
	return r
}

func (a *asker) told(ctx context.Context, began time.Time) {
	if ctx.Err() == nil {
		a.asked++
		a.slowest = max(a.slowest, time.Since(began))
	}
}

func (a *asker) check(ctx context.Context, who string, r store.Result[store.Row], want []store.ID) {
	if ctx.Err() != nil {
		return
	}
	got, generations := map[store.ID]int{}, map[int64]bool{}
	for _, row := range r.Items {
		got[row.ID]++
		generations[row.Generation] = true
	}
	for id, n := range got {
		if n > 1 {
			a.fail("%s: session %x is there %d times", who, id, n)
		}
	}
	missing := 0
	for _, id := range want {
		if got[id] == 0 {
			missing++
		}
	}
	if missing > 0 || len(generations) > 1 {
		a.fail("%s: %d of %d sessions are missing among %d of the generations %v", who, missing, len(want), len(r.Items), generations)
	}
	for g := range generations {
		a.by[g]++
	}
	if r.Canary != nil {
		a.mu.Lock()
		a.weights[r.Canary.Weight]++
		a.mu.Unlock()
	}
}

// led tells whether a candidate has answered at a weight.
func (a *asker) led(weight int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.weights[weight] > 0
}

func (a *asker) fail(format string, args ...any) {
	a.wrong++
	a.t.Errorf(time.Now().Format("15:04:05.000 ")+format, args...)
}

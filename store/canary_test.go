package store

import (
	"fmt"
	"testing"

	"github.com/weftdata/weft/event"
)

// TestCanary leads a part of the users to a candidate: each user is answered by one version, and a user who is led stays so
// while the weight grows.
func TestCanary(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		candidate := f.own(get(f.CreateGeneration(t.Context(), job, "2", "live"))(t).ID, 0)
		const users, from = 200, 1000
		user := func(n int) []byte { return fmt.Appendf(nil, "user %d", n) }
		for _, o := range []Owner{f.owner, candidate} {
			var b Batch
			for n := range users {
				early, late := session(n, uint64(o.Generation)), session(from+n, uint64(o.Generation))
				early.User, late.User = user(n), user(n)
				b.Sessions = append(b.Sessions, early, late)
			}
			f.write(o, b)
		}
		m := f.serve(f.owner.Generation)
		led := map[int]bool{}
		// check reads all users, and expects the candidate's sessions for those of the slices below the weight.
		check := func(weight int) {
			t.Helper()
			for n := range users {
				r := get(f.Sessions(t.Context(), SessionQuery{Scope: Scope{Job: job}, User: user(n)}))(t)
				want, leads := f.owner.Generation, CanarySlice(job, user(n)) < weight
				if leads {
					want = candidate.Generation
				}
				if len(r.Items) != 2 || r.Items[0].Generation != want || r.Items[1].Generation != f.owner.Generation || (r.Canary != nil) != leads {
					t.Fatalf("weight %d, user %d: %+v", weight, n, r)
				}
				if led[n] && !leads && weight > 0 {
					t.Errorf("user %d was led to the candidate and is not any more at weight %d", n, weight)
				}
				led[n] = leads
			}
			all := 0
			for page := (Page{}); ; {
				r := get(f.Sessions(t.Context(), SessionQuery{Scope: Scope{Job: job}, Page: page}))(t)
				for _, x := range r.Items {
					if x.Generation != f.owner.Generation {
						t.Fatalf("a question about no user is answered by generation %d", x.Generation)
					}
				}
				all += len(r.Items)
				if page.After = r.Next; r.Next == "" {
					break
				}
			}
			equal(t, all, 2*users)
		}
		set := func(epoch uint64, weight, at int) error {
			return f.SetCanary(t.Context(), CanaryRequest{Job: job, ExpectedEpoch: epoch, Canary: Canary{candidate.Generation, from, weight},
				At: event.Micros(at), Actor: "weft", Reason: "step"})
		}
		must(t, set(m.Epoch, 0, 2)) // there is none to end yet
		fails(t, set(m.Epoch, 100, 1), ErrStale, User)
		check(0)
		for at, weight := range []int{5, 50, 100} {
			must(t, set(m.Epoch, weight, 10+at))
			check(weight)
		}
		must(t, set(m.Epoch, 70, 12)) // the same request again
		check(100)
		fails(t, set(m.Epoch, 70, 11), ErrStale, User)
		fails(t, set(m.Epoch+1, 70, 20), ErrStale, User)
		fails(t, set(m.Epoch, 101, 20), nil, User)
		check(100)
		equal(t, get(f.ServingMap(t.Context(), job))(t).Canary, &Canary{candidate.Generation, from, 100})

		m = f.serve(f.owner.Generation) // any switch ends it
		check(0)
		must(t, set(m.Epoch, 30, 20))
		check(30)
		must(t, set(0, 0, 21)) // an end needs no epoch
		check(0)
		fails(t, set(m.Epoch, 30, 20), ErrStale, User) // a request that comes after its end
		check(0)

		must(t, set(m.Epoch, 100, 30))
		must(t, f.DropGeneration(t.Context(), job, candidate.Generation))
		check(0)
		fails(t, set(m.Epoch, 100, 31), nil, User)
	})
}

// The slices of users are even, and those of two jobs are not the same.
func TestCanarySlices(t *testing.T) {
	var counts [100]int
	same := 0
	for n := range 100_000 {
		user := fmt.Appendf(nil, "u%d", n)
		s := CanarySlice("payments", user)
		counts[s]++
		if s == CanarySlice("refunds", user) {
			same++
		}
	}
	for s, n := range counts {
		if n < 850 || n > 1150 {
			t.Errorf("slice %d has %d users of 100,000", s, n)
		}
	}
	if same > 1200 {
		t.Errorf("%d users have the same slice in both jobs", same)
	}
}

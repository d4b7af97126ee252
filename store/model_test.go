package store

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
)

var seed = flag.Uint64("seed", 0, "seed of the random test; 0 takes one from the clock")

// model is what the store must hold, in memory and without thought of speed.
type model struct {
	sessions map[ID]modelRow
	cells    map[string]modelCell // by window, name and shard
}

type modelRow struct {
	Position
	session *Session // nil: ended
}

type modelCell struct {
	Position
	cell Cell
}

func (m *model) apply(o Owner, b *Batch) {
	row := func(id ID, seq uint64, x *Session) {
		at := Position{o.Epoch, seq}
		if old, ok := m.sessions[id]; !ok || old.Less(at) {
			m.sessions[id] = modelRow{at, x}
		}
	}
	for i := range b.Sessions {
		row(b.Sessions[i].ID, b.Sessions[i].Seq, &b.Sessions[i])
	}
	for _, x := range b.Tombstones {
		row(x.ID, x.Seq, nil)
	}
	for _, c := range b.Cells {
		at, key := Position{o.Epoch, c.Seq}, fmt.Sprintf("%d %s %d", c.Window, c.By[0].Value, o.Shard)
		if old, ok := m.cells[key]; !ok || old.Less(at) {
			m.cells[key] = modelCell{at, c}
		}
	}
}

// select returns the sessions that match, newest first.
func (m *model) list(match func(*Session) bool) (list []string) {
	var found []*Session
	for _, r := range m.sessions {
		if r.session != nil && match(r.session) {
			found = append(found, r.session)
		}
	}
	slices.SortFunc(found, func(a, b *Session) int {
		if a.Start != b.Start {
			return int(b.Start - a.Start)
		}
		return bytes.Compare(b.ID[:], a.ID[:])
	})
	for _, x := range found {
		list = append(list, string(x.Body))
	}
	return list
}

func (m *model) digest() (d Digest) {
	for _, r := range m.sessions {
		if r.session != nil {
			d.Add(r.session.Digest)
		}
	}
	return d
}

func (m *model) sums() map[string]int64 {
	sums := map[string]int64{}
	for _, c := range m.cells {
		if !c.cell.Empty {
			sums[fmt.Sprintf("%d %s", c.cell.Window, c.cell.By[0].Value)] += c.cell.Measures[0].Value
		}
	}
	return sums
}

// writer is a start of a shard, perhaps one that has a successor.
type writer struct {
	Owner
	seq  uint64
	sent []Batch
}

// random is a run of random operations.
type random struct {
	*fixture
	*rand.Rand
	m       model
	current [2]*writer
	zombies []*writer
}

func (r *random) batch(w *writer) (b Batch) {
	next := func() uint64 {
		w.seq++
		return w.seq
	}
	for range r.IntN(6) {
		n := 2*r.IntN(15) + w.Shard // a session is one shard's
		if r.IntN(4) == 0 {
			b.Tombstones = append(b.Tombstones, Tombstone{next(), id(n)})
			continue
		}
		x := session(n, next())
		x.Body = fmt.Appendf(nil, "%d at %d.%d", n, w.Epoch, x.Seq)
		x.Digest.Sum[3] = r.Uint64()
		x.Start, x.User, x.Keys = event.Micros(n/4), fmt.Append(nil, r.IntN(3)), nil
		for range r.IntN(4) {
			x.Keys = append(x.Keys, Key{"order", fmt.Append(nil, r.IntN(5))})
		}
		if r.IntN(2) == 0 {
			x.Hits = []Hit{{"stuck", event.Micros(r.IntN(100))}}
		}
		b.Sessions = append(b.Sessions, x)
	}
	for range r.IntN(3) {
		b.Cells = append(b.Cells, Cell{Seq: next(), Report: "r", Window: event.Micros(r.IntN(3)), By: []Dimension{{"g", fmt.Append(nil, r.IntN(2))}},
			Measures: []Measure{{"n", r.Int64N(1000)}}, Empty: r.IntN(4) == 0})
	}
	return b
}

func (r *random) step() {
	w := r.current[r.IntN(2)]
	switch n := r.IntN(10); {
	case n < 5:
		b := r.batch(w)
		r.write(w.Owner, b)
		r.m.apply(w.Owner, &b)
		w.sent = append(w.sent, b)
	case n < 7 && len(w.sent) > 0: // an old batch comes again
		r.write(w.Owner, w.sent[r.IntN(len(w.sent))])
	case n < 8: // a new start
		r.zombies = append(r.zombies, w)
		r.current[w.Shard] = &writer{Owner: r.own(w.Generation, w.Shard)}
	case n < 9 && len(r.zombies) > 0:
		z := r.zombies[r.IntN(len(r.zombies))]
		b := r.batch(z)
		fails(r.t, r.Write(r.t.Context(), z.Owner, &b), ErrFenced, External)
	default: // what can come again is not before here
		must(r.t, second(r.Compact(r.t.Context(), w.Owner, Position{Epoch: w.Epoch})))
	}
}

func (r *random) check() {
	list := func(q SessionQuery) (list []string) {
		q.Scope, q.Limit = r.scope(), 1+r.IntN(8)
		for {
			p := get(r.Sessions(r.t.Context(), q))(r.t)
			for _, row := range p.Items {
				list = append(list, string(row.Body))
			}
			if q.After = p.Next; q.After == "" {
				return list
			}
		}
	}
	value := fmt.Append(nil, r.IntN(3))
	watermark := event.Micros(1 + r.IntN(100))
	equal(r.t, list(SessionQuery{}), r.m.list(func(*Session) bool { return true }))
	equal(r.t, list(SessionQuery{From: 2, To: 5}), r.m.list(func(x *Session) bool { return x.Start >= 2 && x.Start < 5 }))
	equal(r.t, list(SessionQuery{User: value}), r.m.list(func(x *Session) bool { return bytes.Equal(x.User, value) }))
	equal(r.t, list(SessionQuery{Key: &Key{"order", value}}), r.m.list(func(x *Session) bool {
		return slices.ContainsFunc(x.Keys, func(k Key) bool { return bytes.Equal(k.Value, value) })
	}))
	equal(r.t, list(SessionQuery{Scenario: "stuck", Decision: Pending, Watermark: watermark}), r.m.list(func(x *Session) bool {
		return len(x.Hits) > 0 && x.Hits[0].DecidedAt > watermark
	}))
	equal(r.t, get(r.Digest(r.t.Context(), r.scope(), 0, 0))(r.t), r.m.digest())
	sums := map[string]int64{}
	for _, c := range get(r.Cells(r.t.Context(), CellQuery{Scope: r.scope(), Report: "r"}))(r.t).Items {
		sums[fmt.Sprintf("%d %s", c.Window, c.By[0].Value)] = c.Measures[0].Value
	}
	equal(r.t, sums, r.m.sums())
}

// TestRandom compares the store with a model under random writes, retries, restarts and zombies.
func TestRandom(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", s)
	backends(t, func(t *testing.T, dsn string) {
		f := newFixture(t, dsn)
		r := &random{fixture: f, Rand: rand.New(rand.NewPCG(s, 0)), m: model{map[ID]modelRow{}, map[string]modelCell{}}}
		r.current = [2]*writer{{Owner: f.owner}, {Owner: f.own(f.owner.Generation, 1)}}
		for range 25 {
			for range 8 {
				r.step()
			}
			r.check()
		}
	})
}

package publisher

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// A switch is published in three parts, each of which may be repeated after a crash:
//
//  1. Where the new generations stand is noted, so that following them from there misses nothing.
//  2. What the old and the new generation hold is compared, the newest sessions first, in every range that changed hands.
//     What differs is published; what the new one lacks is gone.
//  3. What changed in the old generation behind its cursors was published as it was before, so that the comparison saw
//     something else, or nothing: those sessions are published as they are now.

// knownMax bounds what is kept in memory of an outlet whose content is unknown.
const knownMax = 5_000_000

// begin starts a switch to what is served now. unknown says that what was published is to be learnt from the outlet.
func (r *run) begin(ctx context.Context, unknown bool) error {
	to, generations, err := r.served(ctx)
	if err != nil {
		return err
	}
	if to.Epoch == r.state.Map.Epoch && r.state.Switch == nil && !unknown {
		return nil // the rows were of an older snapshot
	}
	if to.Epoch < r.state.Map.Epoch {
		return errStoreReplaced(r.state.Map.Epoch, to.Epoch)
	}
	s := &switching{To: to, Below: event.MaxTime, Unknown: unknown || !areThere(&r.state.Map, generations)}
	for _, g := range generations {
		if !serves(&to, g.ID) {
			continue
		}
		heads, err := r.Source.Shards(ctx, store.Scope{Job: r.Job, Generation: g.ID})
		if err != nil {
			return err
		}
		for _, h := range heads {
			c := r.state.cursor(g.ID, h.Shard)
			if !serves(&r.state.Map, g.ID) || s.Unknown { // one that was followed goes on where it is
				c.Epoch, c.Seq = h.Last.Epoch, h.Last.Seq
			}
		}
	}
	r.Logger.Info("the serving map has changed", "job", r.Job, "outlet", r.status.Outlet, "from", r.state.Map.Epoch, "to", to.Epoch, "unknown", s.Unknown)
	r.state.Switch, r.dirty = s, true
	return r.checkpoint(ctx)
}

// errStoreReplaced is for a store that was made anew or restored: rows of its maps would count less than those published.
func errStoreReplaced(published, served uint64) error {
	return fmt.Errorf("what was published follows serving map %d, and the store serves map %d: it was replaced by another one (publish to a new topic, or move the files of published away with their checkpoint)", published, served)
}

// servedTries is how often the map may change between reading it and reading the list of generations.
const servedTries = 4

// served returns the serving map and the generations, among which are all that it names.
func (r *run) served(ctx context.Context) (m store.Map, list []store.Generation, err error) {
	for range servedTries {
		if m, err = r.Source.ServingMap(ctx, r.Job); err != nil {
			return m, nil, err
		}
		if list, err = r.Source.Generations(ctx, r.Job); err != nil {
			return m, nil, err
		}
		if areThere(&m, list) {
			return m, list, nil
		}
	}
	return m, nil, fmt.Errorf("%w: one of those that map %d of %s serves", store.ErrNoGeneration, m.Epoch, r.Job)
}

func areThere(m *store.Map, list []store.Generation) bool {
	return !slices.ContainsFunc(m.Ranges, func(a store.Assignment) bool {
		return !slices.ContainsFunc(list, func(g store.Generation) bool { return g.ID == a.Generation && g.State == store.Ready })
	})
}

// change publishes a switch. It returns early, to be called again, where the outlet is to be flushed.
func (r *run) change(ctx context.Context) error {
	s := r.state.Switch
	known, err := r.known(ctx)
	if err != nil {
		return err
	}
	err = r.compare(ctx, known)
	if err == nil && !s.Unknown {
		err = r.catchUp(ctx)
	}
	if errors.Is(err, store.ErrNoGeneration) { // dropped meanwhile: the map has moved on
		return r.begin(ctx, true)
	}
	if err != nil {
		return err
	}
	return r.finish(ctx)
}

// finish ends a switch.
func (r *run) finish(ctx context.Context) error {
	s := r.state.Switch
	if err := r.out.switched(ctx, switchedOf(r.Job, s.To)); err != nil {
		return err
	}
	r.state.Map, r.state.Switch, r.dirty = s.To, nil, true
	r.state.Cursors = slices.DeleteFunc(r.state.Cursors, func(c Cursor) bool { return !serves(&s.To, c.Generation) })
	if err := r.checkpoint(ctx); err != nil {
		return err
	}
	return r.findTails(ctx)
}

// segment is a range of starts that changed hands.
type segment struct {
	from, to event.Micros
	old, new int64 // generations; 0: none
}

// segments returns what two maps serve differently, or all of time where what was served is unknown; the newest first.
func segments(from, to *store.Map, unknown bool) (list []segment) {
	edges := []event.Micros{event.MinTime, event.MaxTime}
	for _, m := range []*store.Map{from, to} {
		for _, a := range m.Ranges {
			edges = append(edges, a.From, a.To)
		}
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	for i := len(edges) - 1; i > 0; i-- {
		s := segment{edges[i-1], edges[i], generationAt(from, edges[i-1]), generationAt(to, edges[i-1])}
		if s.old != s.new || unknown {
			list = append(list, s)
		}
	}
	return list
}

// seen is what one side of a comparison holds of a session.
type seen struct {
	id    correlate.ID
	start event.Micros
	row   *store.Row // nil: it was published at that position, with a body of that hash
	at    Position
	hash  [8]byte
}

func hashOf(body []byte) (h [8]byte) {
	sum := sha256.Sum256(body)
	copy(h[:], sum[:])
	return h
}

// newestFirst orders sessions as store.Sessions does.
func newestFirst(a, b *seen) int {
	return cmp.Or(cmp.Compare(b.start, a.start), bytes.Compare(b.id[:], a.id[:]))
}

// known returns what the outlet holds where that is not known from the store, the newest first.
func (r *run) known(ctx context.Context) ([]seen, error) {
	if !r.state.Switch.Unknown {
		return nil, nil
	}
	type held struct {
		at      Position
		start   event.Micros
		hash    [8]byte
		deleted bool
	}
	rows := map[correlate.ID]held{}
	err := r.out.view(ctx, func(row *Row) error {
		if old, ok := rows[row.ID]; ok && row.At.Less(old.at) {
			return nil
		}
		if to := r.state.Switch.To.Epoch; row.At.Map > to {
			return errStoreReplaced(row.At.Map, to)
		}
		rows[row.ID] = held{row.At, row.Start, hashOf(row.Body), row.Deleted}
		if len(rows)%1000 == 0 {
			r.progress()
		}
		if len(rows) > knownMax {
			return fmt.Errorf("more than %d sessions were published and the checkpoint does not account for them (publish to an empty topic, or move the published files away)", knownMax)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what was published: %w", err)
	}
	var list []seen
	for id, h := range rows {
		if !h.deleted {
			list = append(list, seen{id: id, start: h.start, at: h.at, hash: h.hash})
		}
	}
	slices.SortFunc(list, func(a, b seen) int { return newestFirst(&a, &b) })
	return list, nil
}

// compare publishes what two maps serve differently.
func (r *run) compare(ctx context.Context, known []seen) error {
	s := r.state.Switch
	for _, g := range segments(&r.state.Map, &s.To, s.Unknown) {
		to := min(g.to, s.Below)
		if g.from >= to {
			continue
		}
		old := r.sessions(g.old, g.from, to)
		if s.Unknown {
			old = cut(known, g.from, to)
		}
		if err := r.merge(ctx, g.new, old, r.sessions(g.new, g.from, to)); err != nil {
			return err
		}
		s.Below = g.from
		if err := r.pace(ctx); err != nil {
			return err
		}
	}
	return nil
}

// side returns the sessions of one side one by one, the newest first; nil at the end.
type side func(context.Context) (*seen, error)

// sessions reads a range of a generation.
func (r *run) sessions(generation int64, from, to event.Micros) side {
	if generation == 0 {
		return func(context.Context) (*seen, error) { return nil, nil }
	}
	q := store.SessionQuery{Scope: store.Scope{Job: r.Job, Generation: generation}, Page: store.Page{Limit: store.PageRowsMax}, From: from, To: to}
	var page []store.Row
	last := false
	return func(ctx context.Context) (*seen, error) {
		for len(page) == 0 {
			if last {
				return nil, nil
			}
			got, err := r.Source.Sessions(ctx, q)
			if err != nil {
				return nil, err
			}
			page, q.After, last = got.Items, got.Next, got.Next == ""
		}
		row := &page[0]
		page = page[1:]
		return &seen{id: row.ID, start: row.Start, row: row}, nil
	}
}

// cut returns the part of a list in a range.
func cut(list []seen, from, to event.Micros) side {
	i, _ := slices.BinarySearchFunc(list, to, func(s seen, t event.Micros) int {
		if s.start >= t {
			return -1
		}
		return 1
	})
	return func(context.Context) (*seen, error) {
		if i == len(list) || list[i].start < from {
			return nil, nil
		}
		i++
		return &list[i-1], nil
	}
}

// merge walks both sides of a range together.
func (r *run) merge(ctx context.Context, generation int64, oldSide, newSide side) error {
	s := r.state.Switch
	old, err := oldSide(ctx)
	if err != nil {
		return err
	}
	now, err := newSide(ctx)
	for err == nil && (old != nil || now != nil) {
		order := 0
		switch {
		case old == nil:
			order = 1
		case now == nil:
			order = -1
		default:
			order = newestFirst(old, now)
		}
		row := Row{At: Position{Map: s.To.Epoch, Generation: generation}, Deleted: true}
		if order < 0 { // only the old side has it
			row.ID, row.Start = old.id, old.start
			if row.At.Less(old.at) { // published under this very map, and gone since
				row.At = old.at
			}
		} else {
			row = rowOf(s.To.Epoch, now.row, false)
		}
		if order != 0 || !same(old, now) {
			err = r.put(ctx, &row)
		}
		if err == nil {
			s.Below = row.Start + 1 // others may start at the same moment
			err = r.pace(ctx)
		}
		if err == nil && order <= 0 {
			old, err = oldSide(ctx)
		}
		if err == nil && order >= 0 {
			now, err = newSide(ctx)
		}
	}
	return err
}

// same tells whether two sides hold the same. What the old side changed behind its cursors was not published yet; catchUp
// publishes that in any case.
func same(old, now *seen) bool {
	if old.row == nil {
		return old.hash == hashOf(now.row.Body)
	}
	return bytes.Equal(old.row.Body, now.row.Body)
}

// pace tells how far a long walk is, and makes its checkpoints.
func (r *run) pace(ctx context.Context) error {
	if r.rows++; r.rows >= store.PageRowsMax {
		r.rows = 0
		r.progress()
	}
	if r.out.full() || r.due() {
		return r.checkpoint(ctx)
	}
	return ctx.Err()
}

// catchUp publishes as it is now whatever changed in the old generations behind their cursors.
func (r *run) catchUp(ctx context.Context) error {
	done := map[int64]bool{0: true}
	for _, moved := range segments(&r.state.Map, &r.state.Switch.To, false) {
		if done[moved.old] {
			continue
		}
		done[moved.old] = true
		heads, err := r.Source.Shards(ctx, store.Scope{Job: r.Job, Generation: moved.old})
		if err != nil {
			return err
		}
		for _, h := range heads {
			if err := r.catchUpShard(ctx, moved.old, h); err != nil {
				return err
			}
		}
	}
	return nil
}

// catchUpShard goes up to where the shard stands: what changes later was not published.
func (r *run) catchUpShard(ctx context.Context, generation int64, head store.ShardHead) error {
	to := &r.state.Switch.To
	at := r.state.published(generation, head.Shard)
	for at.Less(head.Last) {
		page, err := r.Source.Changes(ctx, store.Scope{Job: r.Job, Generation: generation}, head.Shard, at, store.PageRowsMax)
		if err != nil {
			return err
		}
		if len(page.Items) == 0 { // what was last has changed shards
			return nil
		}
		for i := range page.Items {
			x := &page.Items[i]
			at = x.Position
			now := generationAt(to, x.Start)
			if generationAt(&r.state.Map, x.Start) != generation || now == generation {
				continue
			}
			if err := r.publishNow(ctx, to, x.ID, x.Start, Position{Map: to.Epoch, Generation: now}); err != nil {
				return err
			}
			if err := r.pace(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

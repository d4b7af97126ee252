package publisher

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/weftdata/weft/store"
)

// shardsEvery is how often a look is taken for shards that were not there before, and for the map where nothing else is read.
const shardsEvery = time.Second

// tail reads the changes of one shard.
type tail struct {
	generation int64
	shard      int
	live       bool
	wait       time.Duration // of a shard that is not live
	due        time.Time
}

// findTails lists the shards of the generations that are followed. Those of what is not live do not become more.
func (r *run) findTails(ctx context.Context) error {
	generations, err := r.Source.Generations(ctx, r.Job)
	if err != nil {
		return err
	}
	old := map[int64][]*tail{}
	for _, t := range r.tails {
		old[t.generation] = append(old[t.generation], t)
	}
	followed := map[int64]bool{}
	for _, a := range r.state.Map.Ranges {
		followed[a.Generation] = true
	}
	r.tails = nil
	for _, g := range generations {
		live := g.Kind == "live"
		if !followed[g.ID] {
			continue
		}
		if !live && len(old[g.ID]) > 0 {
			r.tails = append(r.tails, old[g.ID]...)
			continue
		}
		heads, err := r.Source.Shards(ctx, store.Scope{Job: r.Job, Generation: g.ID})
		if errors.Is(err, store.ErrNoGeneration) {
			continue // dropped since: the map is another one, too, which shows soon
		}
		if err != nil {
			return err
		}
		for _, h := range heads {
			r.tails = append(r.tails, &tail{generation: g.ID, shard: h.Shard, live: live, wait: r.Poll})
		}
	}
	r.shards = time.Now()
	return nil
}

// serves tells whether a map names a generation.
func serves(m *store.Map, generation int64) bool {
	return slices.ContainsFunc(m.Ranges, func(a store.Assignment) bool { return a.Generation == generation })
}

// follow publishes a page of each shard's changes. more is false where there are no others for now.
func (r *run) follow(ctx context.Context) (more bool, err error) {
	if time.Since(r.shards) >= shardsEvery {
		m, err := r.Source.ServingMap(ctx, r.Job)
		if err != nil {
			return false, err
		}
		if m.Epoch != r.state.Map.Epoch {
			return true, r.begin(ctx, false)
		}
		if err := r.findTails(ctx); err != nil {
			return false, err
		}
	}
	now := time.Now()
	for _, t := range r.tails {
		if now.Before(t.due) {
			continue
		}
		full, switched, err := r.page(ctx, t)
		if switched {
			return true, r.begin(ctx, false)
		}
		if err != nil {
			return false, err
		}
		more = more || full
	}
	return more, nil
}

// page publishes a page of changes. switched tells that the map is another one now; nothing was published then.
func (r *run) page(ctx context.Context, t *tail) (full, switched bool, err error) {
	cursor := r.state.cursor(t.generation, t.shard)
	page, err := r.Source.Changes(ctx, store.Scope{Job: r.Job, Generation: t.generation}, t.shard, cursor.position(), store.PageRowsMax)
	if errors.Is(err, store.ErrNoGeneration) { // dropped, so it is not served any more
		return false, true, nil
	}
	if err != nil {
		return false, false, err
	}
	if page.MapEpoch != r.state.Map.Epoch {
		return false, true, nil
	}
	for i := range page.Items {
		c := &page.Items[i]
		if c.Served {
			row := rowOf(page.MapEpoch, &c.Row, c.Deleted)
			if err := r.put(ctx, &row); err != nil {
				return false, false, err
			}
		}
		cursor.Epoch, cursor.Seq = c.Position.Epoch, c.Position.Seq
		r.dirty = true
	}
	// A page may end before its limit, so only an empty one says that there is no more.
	if full = len(page.Items) > 0; full || t.live {
		t.wait = r.Poll
		return full, false, nil
	}
	t.due = time.Now().Add(t.wait)
	t.wait = min(2*t.wait, r.IdlePoll)
	return false, false, nil
}

package streaming

import (
	"context"
	"fmt"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// Past tells of the records that were there when a shard first ran, where event times are known without reading them.
type Past interface {
	// First returns the first offset of a partition that the log can still read. The one that Log.Bounds told is after it, if
	// older records are kept somewhere else.
	First(ctx context.Context, p Partition, first int64) (int64, error)
	// End returns the offset before which that is so in a partition; 0: nowhere.
	End(ctx context.Context, p Partition) (int64, error)
	// Floors says how early the events can be that are still to come of the records from offset next to before end. Both
	// offsets and times ascend.
	Floors(ctx context.Context, p Partition, next, end int64) ([]Floor, error)
}

// Floor is a bound of event times: while the records before an offset are still to come, no event of the past is earlier.
type Floor struct {
	Before int64
	Time   event.Micros
}

// past holds the watermark of a partition back while its past is read: at the earliest event that is still to come. So what
// came too late when it happened is in time now, and a version that starts today has the results of a backfill. It is held
// back by no more than a session reaches, so that one wrong clock does not keep all state open: an event that is older still
// lies where no live shard can change anything, and a backfill publishes it.
type past struct {
	end    int64 // offset
	floors []Floor
	most   event.Micros // to where the events read so far would move the watermark
	reach  event.Micros
}

// pastState is what a manifest says of a past that is being read.
type pastState struct {
	End  int64 `json:"end"`
	Most int64 `json:"most"`
}

// bounds returns the first offset of a partition that can be read, and its end. Where it goes on in what is still in the log,
// as most runs do, nobody has to look further back.
func (c *Config) bounds(ctx context.Context, p Partition, state *partitionState) (first, end int64, err error) {
	first, end, err = c.Log.Bounds(ctx, p)
	if err == nil && c.Past != nil && first > 0 && (state == nil || state.Next < first) {
		first, err = c.Past.First(ctx, p, first)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look up the offsets of %s: %w", p, err)
	}
	return first, end, nil
}

// openPast returns what holds a partition back that was left in a state and goes on at an offset; nil: nothing does.
func (c *Config) openPast(ctx context.Context, p Partition, state *partitionState, next int64) (*past, error) {
	if c.Past == nil || state != nil && state.Past == nil {
		return nil, nil
	}
	cfg := c.Job.Config
	cfg.Range = correlate.Range{From: 0, To: 1}
	h := &past{most: event.MinTime, reach: -cfg.Near().From}
	var err error
	if state != nil {
		h.end, h.most = state.Past.End, event.Micros(state.Past.Most)
	} else if h.end, err = c.Past.End(ctx, p); err != nil {
		return nil, fmt.Errorf("look up the past of %s: %w", p, err)
	}
	if next >= h.end {
		return nil, nil
	}
	if h.floors, err = c.Past.Floors(ctx, p, next, h.end); err != nil {
		return nil, fmt.Errorf("look up the past of %s: %w", p, err)
	}
	return h, nil
}

// hold returns to where events move the watermark of the partition whose next offset is next; newest is to where they would
// without a past. event.MinTime is nowhere.
func (h *past) hold(next int64, newest event.Micros) event.Micros {
	if h == nil {
		return newest
	}
	h.most = max(h.most, newest)
	for len(h.floors) > 0 && h.floors[0].Before <= next {
		h.floors = h.floors[1:]
	}
	if len(h.floors) == 0 || h.most == event.MinTime {
		return h.most
	}
	return min(h.most, max(h.floors[0].Time, h.most-h.reach))
}

// state returns what a manifest is to say; nil: the past is over.
func (h *past) state(next int64) *pastState {
	if h == nil || next >= h.end {
		return nil
	}
	return &pastState{h.end, int64(h.most)}
}

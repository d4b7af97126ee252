package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/weftdata/weft/event"
)

// Change is the last change of a session: what it is now, or that it is no more.
type Change struct {
	Row
	Deleted bool
	// Served tells whether the map of this snapshot serves the session's start from this generation.
	Served bool
}

// Changes are the changes of one shard in order, and the epoch of the serving map that they were read with.
type Changes struct {
	MapEpoch uint64
	Items    []Change
}

// Changes returns what changed in a shard after a position, in order of position. A session that changed several times is
// there once, as it is now. A shard's changes become visible in order: whoever goes on behind the last one misses none.
func (s *Store) Changes(ctx context.Context, scope Scope, shard int, after Position, limit int) (Changes, error) {
	r, err := s.changes(ctx, scope, shard, after, limit)
	return r, failed(fmt.Sprintf("read changes of generation %d shard %d", scope.Generation, shard), err)
}

func (s *Store) changes(ctx context.Context, scope Scope, shard int, after Position, limit int) (r Changes, err error) {
	if limit, err = (Page{Limit: limit}).limit(); err != nil {
		return r, err
	}
	if err := after.check(); err != nil {
		return r, err
	}
	if scope.Generation == 0 {
		return r, userError("", "changes are those of one generation: expected its number")
	}
	err = s.read(ctx, scope, func(v *view) error {
		m, err := readMap(ctx, v.catalog(), scope.Job)
		if err != nil {
			return err
		}
		t, err := v.generation(ctx, scope.Generation)
		if err != nil {
			return err
		}
		r = Changes{MapEpoch: m.Epoch}
		size := 0
		err = each(ctx, t.Tx, func(rows *sql.Rows) error {
			c, err := scanChange(rows, m)
			if err != nil {
				return err
			}
			if size += len(c.Body); len(r.Items) > 0 && size > PageBytesMax {
				return errStop
			}
			r.Items = append(r.Items, c)
			return nil
		}, t.text(`SELECT s.id, s.generation, s.shard, s.epoch, s.seq, s.start_us, s.end_us, s.events, s.body, s.deleted FROM session{g} s
			WHERE s.shard = $1 AND (s.epoch, s.seq) > ($2, $3) ORDER BY s.epoch, s.seq LIMIT $4`),
			shard, int64(after.Epoch), int64(after.Seq), limit)
		return stopped(err)
	})
	return r, err
}

func scanChange(rows *sql.Rows, m Map) (c Change, err error) {
	var id []byte
	var start, end, events sql.NullInt64
	err = rows.Scan(&id, &c.Generation, &c.Shard, &c.Position.Epoch, &c.Position.Seq, &start, &end, &events, &c.Body, &c.Deleted)
	copy(c.ID[:], id)
	c.Start, c.End, c.Events = event.Micros(start.Int64), event.Micros(end.Int64), events.Int64
	for _, a := range m.Ranges {
		c.Served = c.Served || start.Valid && a.Generation == c.Generation && a.From <= c.Start && c.Start < a.To
	}
	return c, err
}

// ShardHead is a shard of a generation and the position of its last change; the zero position where it has none.
type ShardHead struct {
	Shard int
	Last  Position
}

// Shards lists the shards of a generation that were ever started. Whoever reads sessions after that and then goes on with
// the Changes behind these positions misses none.
func (s *Store) Shards(ctx context.Context, scope Scope) (list []ShardHead, err error) {
	err = s.read(ctx, scope, func(v *view) error {
		t, err := v.generation(ctx, scope.Generation)
		if err != nil {
			return err
		}
		list = nil
		return each(ctx, t.Tx, func(rows *sql.Rows) error {
			var h ShardHead
			err := rows.Scan(&h.Shard, &h.Last.Epoch, &h.Last.Seq)
			list = append(list, h)
			return err
		}, t.text(`SELECT e.shard,
				coalesce((SELECT s.epoch FROM session{g} s WHERE s.shard = e.shard ORDER BY s.epoch DESC, s.seq DESC LIMIT 1), 0),
				coalesce((SELECT s.seq FROM session{g} s WHERE s.shard = e.shard ORDER BY s.epoch DESC, s.seq DESC LIMIT 1), 0)
			FROM shard_epoch e WHERE e.generation = $1 AND e.shard >= 0 ORDER BY e.shard`), scope.Generation)
	})
	return list, failed(fmt.Sprintf("list the shards of generation %d", scope.Generation), err)
}

package store

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
)

// repairRows is how many rows of a repair are read at once.
const repairRows = 1000

// Repair yields the ids of the sessions of the owner's shard, ended ones too, that an earlier epoch changed after a
// checkpoint. Who restores the checkpoint overwrites each: with what the restored state holds, or with a tombstone.
// It may write while it iterates. Nothing of an earlier epoch can be added meanwhile.
func (s *Store) Repair(ctx context.Context, o Owner, after Position) iter.Seq2[ID, error] {
	query := `SELECT epoch, seq, id FROM session{g} WHERE shard = $1 AND (epoch, seq) > ($2, $3) AND epoch < $4
		ORDER BY epoch, seq LIMIT $5`
	return repair(ctx, s, o, after, query, func(rows *sql.Rows, at *Position) (id ID, err error) {
		var b []byte
		err = rows.Scan(&at.Epoch, &at.Seq, &b)
		copy(id[:], b)
		return id, err
	})
}

// RepairCells does for report cells what Repair does for sessions. The cells have no measures: those of cells that the
// restored state does not hold are Empty.
func (s *Store) RepairCells(ctx context.Context, o Owner, after Position) iter.Seq2[Cell, error] {
	query := `SELECT epoch, seq, report, window_us, by_values FROM cell{g} WHERE shard = $1 AND (epoch, seq) > ($2, $3) AND epoch < $4
		ORDER BY epoch, seq LIMIT $5`
	return repair(ctx, s, o, after, query, func(rows *sql.Rows, at *Position) (c Cell, err error) {
		var by []byte
		if err = rows.Scan(&at.Epoch, &at.Seq, &c.Report, &c.Window, &by); err == nil {
			c.By, err = decodeBy(by)
		}
		return c, err
	})
}

func repair[T any](ctx context.Context, s *Store, o Owner, after Position, query string, scan func(*sql.Rows, *Position) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			var page []T
			next := after
			err := s.db.change(ctx, o.Generation, func(c *changeTx) error {
				page, next = nil, after
				if err := s.hold(ctx, c.tables, o); err != nil {
					return err
				}
				return each(ctx, c.Tx, func(rows *sql.Rows) error {
					item, err := scan(rows, &next)
					page = append(page, item)
					return err
				}, c.text(query), o.Shard, int64(after.Epoch), int64(after.Seq), int64(o.Epoch), repairRows)
			})
			if err != nil {
				var none T
				yield(none, failed(fmt.Sprintf("find what to repair in generation %d shard %d", o.Generation, o.Shard), err))
				return
			}
			for _, item := range page {
				if !yield(item, nil) {
					return
				}
			}
			if len(page) < repairRows {
				return
			}
			after = next
		}
	}
}

// RepairExceptions removes the exceptions that an earlier epoch of the owner's shard wrote after a checkpoint, and returns
// how many. The events after the checkpoint are read again, and what is late or rejected then is written then.
func (s *Store) RepairExceptions(ctx context.Context, o Owner, after Position) (n int64, err error) {
	err = s.db.change(ctx, o.Generation, func(c *changeTx) error {
		if err := s.hold(ctx, c.tables, o); err != nil {
			return err
		}
		result, err := c.ExecContext(ctx, c.text(`DELETE FROM exception{g} WHERE shard = $1 AND (epoch, seq) > ($2, $3) AND epoch < $4`),
			o.Shard, int64(after.Epoch), int64(after.Seq), int64(o.Epoch))
		if err == nil {
			n, err = result.RowsAffected()
		}
		return err
	})
	return n, failed(fmt.Sprintf("repair exceptions of generation %d shard %d", o.Generation, o.Shard), err)
}

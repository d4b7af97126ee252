package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
)

// Owner is who writes a shard of a generation: the epoch tells one start of it from the next.
type Owner struct {
	Generation int64
	Shard      int
	Epoch      uint64
}

// Position is the place of a change in the order of its generation: by epoch, then by sequence.
type Position struct{ Epoch, Seq uint64 }

// Less orders positions.
func (p Position) Less(o Position) bool {
	return p.Epoch < o.Epoch || p.Epoch == o.Epoch && p.Seq < o.Seq
}

func (p Position) check() error {
	if p.Epoch > math.MaxInt64 || p.Seq > math.MaxInt64 {
		return errors.New("an epoch or sequence exceeds 63 bits")
	}
	return nil
}

// TakeEpoch starts a new epoch of a shard and returns it. From then on writers with an earlier one get ErrFenced. The
// epoch is greater than that of every shard of the generation, so changes are ordered even where key groups have moved
// between shards. Who starts with fewer shards than before takes an epoch of those that are no more, too.
func (s *Store) TakeEpoch(ctx context.Context, job string, generation int64, shard int) (uint64, error) {
	epoch, err := s.takeEpoch(ctx, job, generation, shard)
	return epoch, failed(fmt.Sprintf("take the epoch of generation %d shard %d", generation, shard), err)
}

func (s *Store) takeEpoch(ctx context.Context, job string, generation int64, shard int) (epoch uint64, err error) {
	if shard < 0 || shard > math.MaxInt32 {
		return 0, userError("", "shard %d: expected a number from 0", shard)
	}
	if err := s.ready(ctx, job, generation); err != nil {
		return 0, err
	}
	err = s.db.change(ctx, generation, func(c *changeTx) error {
		// Row 0 of shard -1 counts for the whole generation; its lock puts starts in order.
		_, err := c.ExecContext(ctx, `INSERT INTO shard_epoch (generation, shard, epoch) VALUES ($1, -1, 0)
			ON CONFLICT (generation, shard) DO NOTHING`, generation)
		if err != nil {
			return err
		}
		err = c.QueryRowContext(ctx, `UPDATE shard_epoch SET epoch = epoch + 1 WHERE generation = $1 AND shard = -1 RETURNING epoch`,
			generation).Scan(&epoch)
		if err != nil {
			return err
		}
		_, err = c.ExecContext(ctx, `INSERT INTO shard_epoch (generation, shard, epoch) VALUES ($1, $2, $3)
			ON CONFLICT (generation, shard) DO UPDATE SET epoch = excluded.epoch`, generation, shard, int64(epoch))
		return err
	})
	return epoch, err
}

// ready checks that a generation is the job's and can be used.
func (s *Store) ready(ctx context.Context, job string, generation int64) error {
	snap, err := s.db.snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.close()
	return s.readyIn(ctx, snap.catalog(), job, generation)
}

func (s *Store) readyIn(ctx context.Context, tx *sql.Tx, job string, generation int64) error {
	g, err := s.generation(ctx, tx, job, generation)
	if err == nil && g.State != Ready {
		err = ErrNoGeneration
	}
	return err
}

// hold locks the row of the owner's epoch until the transaction ends, so that a successor waits for what is being
// written, and nothing is written after it has started.
func (s *Store) hold(ctx context.Context, tx tables, o Owner) error {
	var epoch uint64
	err := tx.QueryRowContext(ctx, `SELECT epoch FROM shard_epoch WHERE generation = $1 AND shard = $2`+s.db.forUpdate(),
		o.Generation, o.Shard).Scan(&epoch)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w with a shard %d: no epoch of it was taken", ErrNoGeneration, o.Shard)
	case err != nil:
		return err
	case epoch != o.Epoch || o.Shard < 0:
		return fmt.Errorf("%w: shard %d has epoch %d, the writer %d", ErrFenced, o.Shard, epoch, o.Epoch)
	}
	return nil
}

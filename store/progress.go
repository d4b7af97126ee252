package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"

	"github.com/weftdata/weft/event"
)

// Mark says how far a shard has seen time once its batch is written. Like a row it has a place in the order of changes: the
// highest (epoch, sequence) holds, and of one place the greatest watermark. Who writes a finished generation, or takes over a
// shard that is no more, writes event.MaxTime: nothing in it can change.
type Mark struct {
	Seq       uint64
	Watermark event.Micros // event.MinTime: none yet
	// Settle is how long after its last event a session is open; no session is longer than MaxSpan. Both are the spec's.
	Settle, MaxSpan event.Micros
}

func (m *Mark) check() error {
	if err := (Position{Seq: m.Seq}).check(); err != nil {
		return err
	}
	if m.Settle < 0 || m.MaxSpan < 0 || m.Settle > durationMax || m.MaxSpan > durationMax {
		return fmt.Errorf("a mark with settle %d and span %d: expected 0 to %d microseconds", m.Settle, m.MaxSpan, durationMax)
	}
	return nil
}

// durationMax is over a hundred years: sums of times and durations must not overflow.
const durationMax event.Micros = 1 << 52

// ShardProgress is how far one shard is.
type ShardProgress struct {
	Generation int64
	Shard      int
	Position   Position     // of the last write that had a mark; zero: there was none
	Watermark  event.Micros // event.MinTime: none yet
	Written    event.Micros // when that write was, by the writer's clock

	settle, span event.Micros
}

// Progress is how far what is read has seen time.
type Progress struct {
	Shards []ShardProgress // in order of number; each that ever started
	// Watermark is the least of those that have one: a shard that never had a record holds nothing up, and says nothing of the
	// sessions of others. event.MinTime: none has.
	Watermark event.Micros
}

// Progress returns how far a generation is; of what is served, the one that serves the newest range. Nothing served is
// ErrNotFound.
func (s *Store) Progress(ctx context.Context, scope Scope) (p Progress, err error) {
	err = s.read(ctx, scope, func(v *view) error {
		n := len(v.Ranges)
		if n == 0 {
			return ErrNotFound
		}
		p, err = v.progress(ctx, v.Ranges[n-1].Generation)
		return err
	})
	return p, failed("read the progress of "+scope.Job, err)
}

// progress reads how far the shards of a generation are, in the snapshot of its rows.
func (v *view) progress(ctx context.Context, generation int64) (p Progress, err error) {
	t, err := v.generation(ctx, generation)
	if err != nil {
		return p, err
	}
	p.Watermark = event.MinTime
	err = each(ctx, t.Tx, func(rows *sql.Rows) error {
		x := ShardProgress{Generation: generation}
		err := rows.Scan(&x.Shard, &x.Position.Epoch, &x.Position.Seq, &x.Watermark, &x.Written, &x.settle, &x.span)
		if x.Watermark != event.MinTime && (p.Watermark == event.MinTime || x.Watermark < p.Watermark) {
			p.Watermark = x.Watermark
		}
		p.Shards = append(p.Shards, x)
		return err
	}, `SELECT e.shard, coalesce(p.epoch, 0), coalesce(p.seq, 0), coalesce(p.watermark_us, $2), coalesce(p.written_us, $2),
		coalesce(p.settle_us, 0), coalesce(p.span_us, 0)
		FROM shard_epoch e LEFT JOIN shard_progress p ON p.generation = e.generation AND p.shard = e.shard
		WHERE e.generation = $1 AND e.shard >= 0 ORDER BY e.shard`, generation, event.MinTime)
	return p, err
}

// openFrom is the earliest start that an open session can have.
func (p *Progress) openFrom() event.Micros {
	from := event.MaxTime
	for _, x := range p.Shards {
		if x.Watermark < math.MinInt64+2*durationMax {
			return event.MinTime
		}
		from = min(from, x.Watermark-x.settle-x.span)
	}
	return from
}

// The watermark and the settle time of the shard that holds session s, as parts of a query; both NULL where it has none.
const (
	watermarkOf = `(SELECT p.watermark_us FROM shard_progress p WHERE p.generation = s.generation AND p.shard = s.shard)`
	settleOf    = `(SELECT p.settle_us FROM shard_progress p WHERE p.generation = s.generation AND p.shard = s.shard)`
)

// Jobs lists the jobs that have a generation, in order of name.
func (s *Store) Jobs(ctx context.Context) (list []string, err error) {
	snap, err := s.db.snapshot(ctx)
	if err == nil {
		defer snap.close()
		err = each(ctx, snap.catalog(), func(rows *sql.Rows) error {
			var name string
			err := rows.Scan(&name)
			list = append(list, name)
			return err
		}, `SELECT DISTINCT job FROM generation WHERE state <> 'dropped' ORDER BY job`)
	}
	return list, failed("list jobs", err)
}

// Scenarios lists the names of the scenarios that any session has or had, in order; of what is served, those of the newest
// range.
func (s *Store) Scenarios(ctx context.Context, scope Scope) ([]string, error) {
	list, err := s.names(ctx, scope, `SELECT min(scenario) FROM session_hit{g} WHERE scenario > $1`)
	return list, failed("list scenarios of "+scope.Job, err)
}

// Reports lists the names of the reports that have lines, as Scenarios does those of scenarios.
func (s *Store) Reports(ctx context.Context, scope Scope) ([]string, error) {
	list, err := s.names(ctx, scope, `SELECT min(report) FROM cell{g} WHERE report > $1`)
	return list, failed("list reports of "+scope.Job, err)
}

// names walks over the distinct values at the head of an index: each takes one look-up, however many rows have it.
func (s *Store) names(ctx context.Context, scope Scope, query string) (list []string, err error) {
	err = s.read(ctx, scope, func(v *view) error {
		list = nil
		n := len(v.Ranges)
		if n == 0 {
			return nil
		}
		t, err := v.generation(ctx, v.Ranges[n-1].Generation)
		if err != nil {
			return err
		}
		last := ""
		for {
			var next sql.NullString
			if err := t.QueryRowContext(ctx, t.text(query), last).Scan(&next); err != nil || !next.Valid {
				return err
			}
			last = next.String
			list = append(list, last)
		}
	})
	return list, err
}

package store

import (
	"cmp"
	"context"
	"database/sql"
	"slices"

	"github.com/weftdata/weft/event"
)

// ExceptionQuery asks for rejected records or late events.
type ExceptionQuery struct {
	Scope
	Page
	Kind           ExceptionKind
	From, To       event.Micros // by time; both 0: all, those without a time too
	Source, Reason string       // empty: all
}

// ExceptionRow is an exception as it is read.
type ExceptionRow struct {
	Exception
	Generation int64
	Shard      int
	id         []byte
}

// Exceptions returns rejected records or late events, newest first.
func (s *Store) Exceptions(ctx context.Context, q ExceptionQuery) (Result[ExceptionRow], error) {
	r, err := s.exceptions(ctx, q)
	return r, failed("read exceptions of "+q.Job, err)
}

// Those without a time come at the end, of the newest range: $8 tells it.
const exceptionsQuery = `SELECT id, generation, shard, seq, kind, source, topic, partition, record, idx, time_us, reason, detail, raw
	FROM exception{g} WHERE kind = $1 AND (time_us >= $2 AND time_us < $3 AND time_us <> $9 OR $8 = 1 AND time_us = $9)
	AND (time_us, id) < ($4, $5) AND ($6 = '' OR source = $6) AND ($7 = '' OR reason = $7)
	ORDER BY time_us DESC, id DESC LIMIT $10`

func (s *Store) exceptions(ctx context.Context, q ExceptionQuery) (r Result[ExceptionRow], err error) {
	limit, err := q.limit()
	if err != nil {
		return r, err
	}
	after, err := q.After.place()
	if err != nil {
		return r, err
	}
	if q.Kind != Rejected && q.Kind != Late {
		return r, userError("", "exceptions of kind %d: expected %d (rejected) or %d (late)", q.Kind, Rejected, Late)
	}
	from, to := span(q.From, q.To)
	err = s.read(ctx, q.Scope, func(v *view) error {
		r = Result[ExceptionRow]{}
		size := 0
		add := func(rows *sql.Rows) error {
			e, err := scanException(rows)
			if err != nil {
				return err
			}
			size += len(e.Raw)
			if n := len(r.Items); n == limit || n > 0 && size > PageBytesMax {
				r.Next = place{r.Items[n-1].Time, r.Items[n-1].id}.cursor()
				return errStop
			}
			r.Items = append(r.Items, e)
			return nil
		}
		part := func(a Assignment, timeless int) (bool, error) {
			t, err := v.generation(ctx, a.Generation)
			if err == nil {
				err = each(ctx, t.Tx, add, t.text(exceptionsQuery), int(q.Kind), a.From, a.To, after.time, after.id, text(q.Source),
					text(q.Reason), timeless, event.MinTime, limit+1-len(r.Items))
			}
			return true, err
		}
		err := v.newestFirst(from, to, func(a Assignment) (bool, error) { return part(a, 0) })
		if n := len(v.Ranges); err == nil && n > 0 && from == event.MinTime {
			_, err = part(Assignment{0, 0, v.Ranges[n-1].Generation}, 1)
		}
		return stopped(err)
	})
	return r, err
}

func scanException(rows *sql.Rows) (e ExceptionRow, err error) {
	err = rows.Scan(&e.id, &e.Generation, &e.Shard, &e.Seq, &e.Kind, &e.Source, &e.Topic, &e.Partition, &e.Offset, &e.Index, &e.Time,
		&e.Reason, &e.Detail, &e.Raw)
	return e, err
}

// ExceptionCount is how many exceptions of a kind there are, by source and reason.
type ExceptionCount struct {
	Source, Reason string
	Count          int64
}

// CountExceptions counts the exceptions of one generation; of generation 0 those that are served.
func (s *Store) CountExceptions(ctx context.Context, job string, generation int64, kind ExceptionKind) (list []ExceptionCount, err error) {
	err = s.read(ctx, Scope{job, generation}, func(v *view) error {
		counts := map[[2]string]int64{}
		part := func(a Assignment, timeless int) (bool, error) {
			t, err := v.generation(ctx, a.Generation)
			if err != nil {
				return false, err
			}
			return true, each(ctx, t.Tx, func(rows *sql.Rows) error {
				var c ExceptionCount
				err := rows.Scan(&c.Source, &c.Reason, &c.Count)
				counts[[2]string{c.Source, c.Reason}] += c.Count
				return err
			}, t.text(`SELECT source, reason, count(*) FROM exception{g} WHERE kind = $1
				AND (time_us >= $2 AND time_us < $3 AND time_us <> $5 OR $4 = 1 AND time_us = $5) GROUP BY source, reason`),
				int(kind), a.From, a.To, timeless, event.MinTime)
		}
		err := v.newestFirst(event.MinTime, event.MaxTime, func(a Assignment) (bool, error) { return part(a, 0) })
		if n := len(v.Ranges); err == nil && n > 0 {
			_, err = part(Assignment{0, 0, v.Ranges[n-1].Generation}, 1)
		}
		list = make([]ExceptionCount, 0, len(counts))
		for k, n := range counts {
			list = append(list, ExceptionCount{k[0], k[1], n})
		}
		slices.SortFunc(list, func(a, b ExceptionCount) int {
			return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Reason, b.Reason))
		})
		return err
	})
	return list, failed("count exceptions of "+job, err)
}

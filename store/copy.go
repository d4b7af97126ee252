package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"math"

	"github.com/weftdata/weft/event"
)

// CopyQuery asks for whole sessions, to write them to another generation.
type CopyQuery struct {
	Scope
	Page
	From, To event.Micros // the sessions that start from From to before To; both 0: all
	// EndFrom leaves out those that end before it; 0: none.
	EndFrom event.Micros
}

// CopyPage is a page of sessions in order of start and id, and the epoch of the serving map that it was read with: pages of
// one epoch fit together where nothing in their range changes any more.
type CopyPage struct {
	Result[Session]
	MapEpoch uint64
}

// Copies returns sessions with all that Write wants of them; their Seq is 0. Values of keys and of the user are as they are
// indexed, so long ones are folded, and stay what they are when they are written again.
func (s *Store) Copies(ctx context.Context, q CopyQuery) (CopyPage, error) {
	r, err := s.copies(ctx, q)
	return r, failed("read sessions of "+q.Job+" to copy", err)
}

func (s *Store) copies(ctx context.Context, q CopyQuery) (r CopyPage, err error) {
	limit, err := q.limit()
	if err != nil {
		return r, err
	}
	after, err := q.After.oldest()
	if err != nil {
		return r, err
	}
	from, to := span(q.From, q.To)
	endFrom := q.EndFrom
	if endFrom == 0 {
		endFrom = event.MinTime
	}
	err = s.read(ctx, q.Scope, func(v *view) error {
		c := &copies{limit: limit}
		for _, a := range v.Ranges {
			a.From, a.To = max(a.From, from), min(a.To, to)
			if a.From >= a.To || a.To <= after.time || c.full {
				continue
			}
			t, err := v.generation(ctx, a.Generation)
			if err != nil {
				return err
			}
			if err := c.read(ctx, t, a, after, endFrom); err != nil {
				return err
			}
		}
		r = CopyPage{c.Result, v.Epoch}
		return nil
	})
	return r, err
}

// oldest is the place in a list that shows the oldest first.
func (c Cursor) oldest() (place, error) {
	if c == "" {
		return place{event.MinTime, []byte{}}, nil
	}
	return c.place()
}

// copies collects a page.
type copies struct {
	Result[Session]
	limit, bytes int
	full         bool
}

// read takes the sessions of one generation behind a place.
func (c *copies) read(ctx context.Context, t tables, a Assignment, after place, endFrom event.Micros) error {
	first := len(c.Items)
	err := each(ctx, t.Tx, c.add, t.text(`SELECT id, start_us, end_us, events, user_key, digest, body FROM session{g}
		WHERE deleted = 0 AND start_us >= $1 AND start_us < $2 AND (start_us, id) > ($3, $4) AND end_us >= $5
		ORDER BY start_us, id LIMIT $6`), a.From, a.To, after.time, after.id, endFrom, c.limit+1-len(c.Items))
	if err = stopped(err); err != nil || len(c.Items) == first {
		return err
	}
	part := c.Items[first:]
	byID := make(map[ID]*Session, len(part))
	for i := range part {
		byID[part[i].ID] = &part[i]
	}
	last := part[len(part)-1]
	bind := []any{part[0].Start, part[0].ID[:], last.Start, last.ID[:]}
	const within = ` s WHERE s.deleted = 0 AND (s.start_us, s.id) >= ($1, $2) AND (s.start_us, s.id) <= ($3, $4)`
	err = each(ctx, t.Tx, func(rows *sql.Rows) error {
		var id []byte
		var k Key
		err := rows.Scan(&id, &k.Kind, &k.Value)
		if x := byID[ID(id)]; x != nil {
			k.Value = bytes.Clone(k.Value)
			x.Keys = append(x.Keys, k)
		}
		return err
	}, t.text(`SELECT s.id, k.kind, k.value_key FROM (SELECT id FROM session{g}`+within+`) s CROSS JOIN session_key{g} k
		WHERE k.id = s.id ORDER BY s.id, k.kind, k.value_key`), bind...)
	if err != nil {
		return err
	}
	return each(ctx, t.Tx, func(rows *sql.Rows) error {
		var id []byte
		var h Hit
		err := rows.Scan(&id, &h.Scenario, &h.DecidedAt)
		if x := byID[ID(id)]; x != nil {
			x.Hits = append(x.Hits, h)
		}
		return err
	}, t.text(`SELECT s.id, h.scenario, h.decided_us FROM (SELECT id FROM session{g}`+within+`) s CROSS JOIN session_hit{g} h
		WHERE h.id = s.id ORDER BY s.id, h.scenario`), bind...)
}

// add takes one session; it returns errStop when it belongs to the next page.
func (c *copies) add(rows *sql.Rows) error {
	var x Session
	var id, digest []byte
	if err := rows.Scan(&id, &x.Start, &x.End, &x.Events, &x.User, &digest, &x.Body); err != nil {
		return err
	}
	copy(x.ID[:], id)
	c.bytes += len(x.Body)
	if n := len(c.Items); n == c.limit || n > 0 && c.bytes > PageBytesMax {
		last := &c.Items[n-1]
		c.Next = place{last.Start, last.ID[:]}.cursor()
		c.full = true
		return errStop
	}
	x.Digest = Digest{Count: 1}
	for i := range x.Digest.Sum {
		x.Digest.Sum[i] = binary.LittleEndian.Uint64(digest[8*i:])
	}
	c.Items = append(c.Items, x)
	return nil
}

// Straddling returns the least start and the greatest end of the sessions that start before a time and end at it or later;
// the time itself twice where there are none.
func (s *Store) Straddling(ctx context.Context, scope Scope, at event.Micros) (least, greatest event.Micros, err error) {
	err = s.read(ctx, scope, func(v *view) error {
		least, greatest = at, at
		for _, a := range v.Ranges {
			a.To = min(a.To, at)
			if a.From >= a.To {
				continue
			}
			t, err := v.generation(ctx, a.Generation)
			if err != nil {
				return err
			}
			p, err := v.progress(ctx, a.Generation)
			if err != nil {
				return err
			}
			if span := p.spanMax(); span > 0 && at > event.MinTime+span {
				a.From = max(a.From, at-span)
			}
			var start, end sql.NullInt64
			err = t.QueryRowContext(ctx, t.text(`SELECT min(start_us), max(end_us) FROM session{g}
				WHERE deleted = 0 AND start_us >= $1 AND start_us < $2 AND end_us >= $3`), a.From, a.To, at).Scan(&start, &end)
			if err != nil {
				return err
			}
			if start.Valid {
				least, greatest = min(least, event.Micros(start.Int64)), max(greatest, event.Micros(end.Int64))
			}
		}
		return nil
	})
	return least, greatest, failed("read sessions of "+scope.Job+" around a time", err)
}

// spanMax is the longest that a session of the generation can be; 0: not known.
func (p *Progress) spanMax() (span event.Micros) {
	for _, x := range p.Shards {
		if x.span <= 0 || x.span >= math.MaxInt64/4 {
			return 0
		}
		span = max(span, x.span)
	}
	return span
}

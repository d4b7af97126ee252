package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weftdata/weft/event"
)

// Row is a session as it is read.
type Row struct {
	ID         ID
	Generation int64
	Shard      int
	Position   Position // of its last change
	Start, End event.Micros
	Events     int64
	Body       []byte
	// Watermark is how far the session's shard had seen time in the same snapshot: a scenario is decided where its moment is
	// not past it. event.MinTime: not known, so nothing is decided.
	Watermark event.Micros
	// Settle is how long after its last event the session is open.
	Settle event.Micros
}

// Open tells whether more may happen in the session; the same moment decides a scenario that names none.
func (r *Row) Open() bool { return r.End+r.Settle > r.Watermark }

const rowColumns = `s.id, s.generation, s.shard, s.epoch, s.seq, s.start_us, s.end_us, s.events, s.body, ` + watermarkOf + `, ` + settleOf

func scanRow(rows interface{ Scan(...any) error }) (r Row, err error) {
	var id []byte
	var watermark, settle sql.NullInt64
	err = rows.Scan(&id, &r.Generation, &r.Shard, &r.Position.Epoch, &r.Position.Seq, &r.Start, &r.End, &r.Events, &r.Body, &watermark, &settle)
	copy(r.ID[:], id)
	r.Watermark, r.Settle = event.MinTime, event.Micros(settle.Int64)
	if watermark.Valid {
		r.Watermark = event.Micros(watermark.Int64)
	}
	return r, err
}

// Session returns one session, or ErrNotFound.
func (s *Store) Session(ctx context.Context, scope Scope, id ID) (r Row, err error) {
	err = s.read(ctx, scope, func(v *view) error {
		found := false
		err := v.newestFirst(event.MinTime, event.MaxTime, func(a Assignment) (bool, error) {
			t, err := v.generation(ctx, a.Generation)
			if err != nil {
				return false, err
			}
			r, err = scanRow(t.QueryRowContext(ctx, t.text(`SELECT `+rowColumns+` FROM session{g} s
				WHERE s.id = $1 AND s.deleted = 0 AND s.start_us >= $2 AND s.start_us < $3`), id[:], a.From, a.To))
			if errors.Is(err, sql.ErrNoRows) {
				return true, nil
			}
			found = err == nil
			return false, err
		})
		if err == nil && !found {
			err = ErrNotFound
		}
		return err
	})
	return r, failed(fmt.Sprintf("read session %x of %s", id, scope.Job), err)
}

// Decision narrows sessions of a scenario by whether the moment that decides it has come.
type Decision int

// The decisions.
const (
	Whenever Decision = iota
	Decided           // the moment is at or before the watermark
	Pending           // the moment is yet to come: it may still turn out otherwise
)

// SessionQuery asks for sessions that have all that is asked for; without anything it is all.
type SessionQuery struct {
	Scope
	Page
	From, To event.Micros // the sessions that start from From to before To; both 0: all
	User     []byte       // nil: not asked for
	Key      *Key
	Scenario string
	Decision Decision // with Scenario
	Open     bool     // only those in which more may happen: see Row.Open
	// Watermark decides instead of the one that the shard of each session has reached; 0: it does not.
	Watermark event.Micros
}

// Sessions returns sessions, newest start first.
func (s *Store) Sessions(ctx context.Context, q SessionQuery) (Result[Row], error) {
	r, err := s.sessions(ctx, q)
	return r, failed("read sessions of "+q.Job, err)
}

func (s *Store) sessions(ctx context.Context, q SessionQuery) (r Result[Row], err error) {
	limit, err := q.limit()
	if err != nil {
		return r, err
	}
	after, err := q.After.place()
	if err != nil {
		return r, err
	}
	query, args, err := q.text()
	if err != nil {
		return r, err
	}
	from, to := span(q.From, q.To)
	err = s.read(ctx, q.Scope, func(v *view) error {
		list := &rowList{limit: limit}
		list.Canary = v.lead(&q)
		err := v.newestFirst(from, to, func(a Assignment) (bool, error) {
			if after.time < a.From {
				return true, nil // the pages before were there
			}
			t, err := v.generation(ctx, a.Generation)
			if err != nil {
				return false, err
			}
			if q.Open && q.Watermark == 0 {
				p, err := v.progress(ctx, a.Generation)
				if err != nil {
					return false, err
				}
				a.From = max(a.From, p.openFrom())
			}
			bind := append([]any{a.From, a.To, after.time, after.id, limit + 1 - len(list.Items)}, args...)
			err = each(ctx, t.Tx, list.add, t.text(query), bind...)
			return !list.full, err
		})
		r = list.Result
		return stopped(err)
	})
	return r, err
}

// text returns the query and its parameters from the sixth on. The rarest of what is asked for leads: a key, then a user,
// then a scenario.
func (q *SessionQuery) text() (query string, args []any, err error) {
	from, start, id, where := `session{g} s`, `s.start_us`, `s.id`, ``
	watermark, bound := `coalesce(`+watermarkOf+`, ?)`, event.MinTime
	if q.Watermark != 0 {
		watermark, bound = `?`, q.Watermark
	}
	add := func(text string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			text = strings.Replace(text, "?", fmt.Sprint("$", 5+len(args)), 1)
		}
		where += ` AND ` + text
	}
	if q.Key != nil {
		if err := checkName(q.Key.Kind); err != nil {
			return "", nil, err
		}
		from = `session_key{g} k JOIN session{g} s ON s.id = k.id`
		add(`k.value_key = ? AND k.kind = ?`, fold(q.Key.Value), q.Key.Kind)
	}
	if q.User != nil {
		add(`s.user_key = ?`, fold(q.User))
	}
	if q.Scenario != "" {
		if err := checkName(q.Scenario); err != nil {
			return "", nil, err
		}
		hit, values := `h.scenario = ?`, []any{q.Scenario}
		switch q.Decision {
		case Decided:
			hit, values = hit+` AND h.decided_us <= `+watermark, append(values, bound)
		case Pending:
			hit, values = hit+` AND h.decided_us > `+watermark, append(values, bound)
		}
		if q.Key == nil && q.User == nil {
			from, start, id = `session_hit{g} h JOIN session{g} s ON s.id = h.id`, `h.start_us`, `h.id`
		} else {
			hit = `EXISTS (SELECT 1 FROM session_hit{g} h WHERE h.id = s.id AND ` + hit + `)`
		}
		add(hit, values...)
	}
	if q.Open {
		add(`s.end_us + coalesce(`+settleOf+`, 0) > `+watermark, bound)
	}
	return strings.NewReplacer("{start}", start, "{id}", id).Replace(`SELECT ` + rowColumns + ` FROM ` + from + ` WHERE s.deleted = 0
		AND {start} >= $1 AND {start} < $2 AND ({start}, {id}) < ($3, $4)` + where + ` ORDER BY {start} DESC, {id} DESC LIMIT $5`), args, nil
}

// rowList collects a page.
type rowList struct {
	Result[Row]
	limit, bytes int
	full         bool
}

// add takes one row; it returns errStop when the row belongs to the next page.
func (l *rowList) add(rows *sql.Rows) error {
	row, err := scanRow(rows)
	if err != nil {
		return err
	}
	l.bytes += len(row.Body)
	if n := len(l.Items); n == l.limit || n > 0 && l.bytes > PageBytesMax {
		last := l.Items[n-1]
		l.Next = place{last.Start, slices.Clone(last.ID[:])}.cursor()
		l.full = true
		return errStop
	}
	l.Items = append(l.Items, row)
	return nil
}

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/weftdata/weft/event"
)

// assignmentsMax bounds a serving map: a decade of hourly slices.
const assignmentsMax = 100_000

// Assignment gives the sessions that start in a half-open range of time, from From to before To, to one generation. From
// event.MinTime to event.MaxTime is all of time.
// A report cell belongs where its window starts, so ranges should begin where windows do.
type Assignment struct {
	From       event.Micros `json:"from"`
	To         event.Micros `json:"to"`
	Generation int64        `json:"generation"` // 0: to none
}

// SwitchRequest asks for another serving map.
type SwitchRequest struct {
	Job       string
	RequestID string // the same request again has the same id
	// ExpectedEpoch is the epoch of the map on which the decision rests; a map never made has epoch 0.
	ExpectedEpoch uint64
	// Assignments replace what the map says of their ranges; it keeps the rest.
	Assignments   []Assignment
	Actor, Reason string
}

// Map is what a job serves: ranges in order of time that do not overlap.
type Map struct {
	Epoch  uint64       `json:"epoch"`
	Ranges []Assignment `json:"ranges"`
	Canary *Canary      `json:"canary,omitempty"` // nil: none
}

// Switch replaces a part of the serving map in one step. It fails with ErrStale, and changes nothing, where the map is not
// the expected one any more. A request that was done gets the map that it made then, whatever has come since.
func (s *Store) Switch(ctx context.Context, r SwitchRequest) (Map, error) {
	m, err := s.switchMap(ctx, r)
	return m, failed("switch what "+r.Job+" serves", err)
}

func (s *Store) switchMap(ctx context.Context, r SwitchRequest) (m Map, err error) {
	if err := r.check(); err != nil {
		return m, err
	}
	request, err := json.Marshal([]any{r.ExpectedEpoch, r.Assignments})
	if err != nil {
		return m, err
	}
	err = s.db.catalog(ctx, func(tx *sql.Tx) error {
		m = Map{}
		epoch, err := s.lockMap(ctx, tx, r.Job)
		if err != nil {
			return err
		}
		if done, err := earlier(ctx, tx, r, string(request), &m); err != nil || done {
			return err
		}
		if epoch != r.ExpectedEpoch {
			return fmt.Errorf("%w: it has epoch %d, expected was %d", ErrStale, epoch, r.ExpectedEpoch)
		}
		for _, a := range r.Assignments {
			if a.Generation == 0 {
				continue
			}
			if err := s.readyIn(ctx, tx, r.Job, a.Generation); err != nil {
				return fmt.Errorf("generation %d: %w", a.Generation, err)
			}
		}
		if m, err = s.overlay(ctx, tx, r, epoch+1); err != nil {
			return err
		}
		return s.record(ctx, tx, r, string(request), m)
	})
	return m, err
}

func (r *SwitchRequest) check() error {
	if err := checkNames(r.Job, r.RequestID); err != nil {
		return err
	}
	if len(r.Assignments) == 0 || len(r.Assignments) > assignmentsMax {
		return userError("", "%d assignments: expected 1 to %d", len(r.Assignments), assignmentsMax)
	}
	list := inOrder(r.Assignments)
	for i, a := range list {
		if a.From >= a.To {
			return userError("", "the range from %d to %d is empty", a.From, a.To)
		}
		if i > 0 && a.From < list[i-1].To {
			return userError("", "ranges from %d and from %d overlap", list[i-1].From, a.From)
		}
	}
	return nil
}

func inOrder(list []Assignment) []Assignment {
	return slices.SortedFunc(slices.Values(list), func(a, b Assignment) int {
		if a.From < b.From {
			return -1
		}
		return 1
	})
}

// lockMap locks a job's serving map until the transaction ends and returns its epoch.
func (s *Store) lockMap(ctx context.Context, tx *sql.Tx, job string) (epoch uint64, err error) {
	_, err = tx.ExecContext(ctx, `INSERT INTO serving_map (job, epoch) VALUES ($1, 0) ON CONFLICT (job) DO NOTHING`, job)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, `SELECT epoch FROM serving_map WHERE job = $1`+s.db.forUpdate(), job).Scan(&epoch)
	return epoch, err
}

// earlier finds the result of the same request.
func earlier(ctx context.Context, tx *sql.Tx, r SwitchRequest, request string, m *Map) (done bool, err error) {
	var asked, result string
	err = tx.QueryRowContext(ctx, `SELECT request, result FROM serving_switch WHERE job = $1 AND request_id = $2`,
		r.Job, r.RequestID).Scan(&asked, &result)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	case asked != request:
		return false, errTaken
	}
	return true, json.Unmarshal([]byte(result), m)
}

// overlay writes the map with the assignments in it.
func (s *Store) overlay(ctx context.Context, tx *sql.Tx, r SwitchRequest, epoch uint64) (Map, error) {
	before, err := readRanges(ctx, tx, r.Job)
	if err != nil {
		return Map{}, err
	}
	m := Map{Epoch: epoch, Ranges: overlay(before, inOrder(r.Assignments))}
	if len(m.Ranges) > assignmentsMax {
		return m, userError("", "the map would have %d ranges: at most %d", len(m.Ranges), assignmentsMax)
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM serving WHERE job = $1`, r.Job); err != nil {
		return m, err
	}
	for _, a := range m.Ranges {
		_, err := tx.ExecContext(ctx, `INSERT INTO serving (job, from_us, to_us, generation) VALUES ($1, $2, $3, $4)`,
			r.Job, a.From, a.To, a.Generation)
		if err != nil {
			return m, err
		}
	}
	_, err = tx.ExecContext(ctx, `UPDATE serving_map SET epoch = $2 WHERE job = $1`, r.Job, int64(epoch))
	return m, err
}

// overlay puts ranges over others, both in order, and joins neighbours of one generation.
func overlay(under, over []Assignment) (list []Assignment) {
	all := slices.Clone(over)
	for _, u := range under {
		for _, o := range over {
			if o.To <= u.From || o.From >= u.To {
				continue
			}
			if u.From < o.From {
				all = append(all, Assignment{u.From, o.From, u.Generation})
			}
			u.From = min(o.To, u.To)
		}
		if u.From < u.To {
			all = append(all, u)
		}
	}
	for _, a := range inOrder(all) {
		switch last := len(list) - 1; {
		case a.Generation == 0:
		case last >= 0 && list[last].To == a.From && list[last].Generation == a.Generation:
			list[last].To = a.To
		default:
			list = append(list, a)
		}
	}
	return list
}

func (s *Store) record(ctx context.Context, tx *sql.Tx, r SwitchRequest, request string, m Map) error {
	result, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO serving_switch (job, request_id, request, result) VALUES ($1, $2, $3, $4)`,
		r.Job, r.RequestID, request, string(result))
	if err != nil {
		return err
	}
	return s.audit(ctx, tx, AuditEntry{Actor: r.Actor, Job: r.Job, Action: "switch", Reason: r.Reason, RequestID: r.RequestID,
		Detail: string(result)})
}

func readRanges(ctx context.Context, tx *sql.Tx, job string) (list []Assignment, err error) {
	err = each(ctx, tx, func(rows *sql.Rows) error {
		var a Assignment
		err := rows.Scan(&a.From, &a.To, &a.Generation)
		list = append(list, a)
		return err
	}, `SELECT from_us, to_us, generation FROM serving WHERE job = $1 ORDER BY from_us`, job)
	return list, err
}

func readMap(ctx context.Context, tx *sql.Tx, job string) (m Map, err error) {
	err = tx.QueryRowContext(ctx, `SELECT epoch FROM serving_map WHERE job = $1`, job).Scan(&m.Epoch)
	if errors.Is(err, sql.ErrNoRows) {
		return m, nil
	}
	if err == nil {
		m.Ranges, err = readRanges(ctx, tx, job)
	}
	if err == nil {
		m.Canary, err = readCanary(ctx, tx, job, m.Epoch)
	}
	return m, err
}

// ServingMap returns what a job serves. It is for display and for Switch: reads of data find it themselves.
func (s *Store) ServingMap(ctx context.Context, job string) (m Map, err error) {
	snap, err := s.db.snapshot(ctx)
	if err == nil {
		defer snap.close()
		m, err = readMap(ctx, snap.catalog(), job)
	}
	return m, failed("read what "+job+" serves", err)
}

package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/weftdata/weft/event"
)

// Canary leads the questions about a share of the users to a candidate: SessionQuery with a User is answered by its generation
// for sessions that start from From on, and by the serving map before that. All other reads know nothing of it.
type Canary struct {
	Generation int64        `json:"generation"`
	From       event.Micros `json:"from"`
	Weight     int          `json:"weight"` // percent of the users: those whose CanarySlice is less
}

// CanarySlice places a user of a job among a hundred slices: the first eight bytes of the SHA-256 of the job's name, a zero byte and
// the user, big-endian, modulo 100. A user who is led to a candidate stays so while the weight grows.
func CanarySlice(job string, user []byte) int {
	h := sha256.New()
	h.Write([]byte(job))
	h.Write([]byte{0})
	h.Write(user)
	return int(binary.BigEndian.Uint64(h.Sum(nil)) % 100)
}

// CanaryRequest asks for a canary, or its end.
type CanaryRequest struct {
	Job string
	// ExpectedEpoch is the epoch of the serving map that the canary stands beside. The next switch ends it.
	ExpectedEpoch uint64
	Canary        // Weight 0 ends any canary, whatever the epoch is
	// At orders requests: one that is older than the last is stale. The same one again changes nothing.
	At            event.Micros
	Actor, Reason string
}

// SetCanary changes the canary of a job in one step. It fails with ErrStale, and changes nothing, where the map is not the
// expected one any more, or a later request was first.
func (s *Store) SetCanary(ctx context.Context, r CanaryRequest) error {
	return failed("set the canary of "+r.Job, s.setCanary(ctx, r))
}

func (s *Store) setCanary(ctx context.Context, r CanaryRequest) error {
	if err := checkName(r.Job); err != nil {
		return err
	}
	if r.Weight < 0 || r.Weight > 100 {
		return userError("", "a canary of %d percent: expected 0 to 100", r.Weight)
	}
	detail, err := json.Marshal(r.Canary)
	if err != nil {
		return err
	}
	return s.db.catalog(ctx, func(tx *sql.Tx) error {
		epoch, err := s.lockMap(ctx, tx, r.Job)
		if err != nil {
			return err
		}
		var last event.Micros
		err = tx.QueryRowContext(ctx, `SELECT at_us FROM serving_canary WHERE job = $1`, r.Job).Scan(&last)
		switch {
		case errors.Is(err, sql.ErrNoRows): // an end is kept all the same: the beginning that it ends may come later
		case err != nil:
			return err
		case r.At < last:
			return fmt.Errorf("%w: a later request was first", ErrStale)
		case r.At == last:
			return nil
		}
		if r.Weight > 0 {
			if epoch != r.ExpectedEpoch {
				return fmt.Errorf("%w: it has epoch %d, expected was %d", ErrStale, epoch, r.ExpectedEpoch)
			}
			if err := s.readyIn(ctx, tx, r.Job, r.Generation); err != nil {
				return fmt.Errorf("generation %d: %w", r.Generation, err)
			}
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO serving_canary (job, epoch, generation, from_us, weight, at_us) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (job) DO UPDATE SET epoch = excluded.epoch, generation = excluded.generation, from_us = excluded.from_us,
			weight = excluded.weight, at_us = excluded.at_us`, r.Job, int64(epoch), r.Generation, r.From, r.Weight, r.At)
		if err != nil {
			return err
		}
		return s.audit(ctx, tx, AuditEntry{Actor: r.Actor, Job: r.Job, Action: "canary", Reason: r.Reason, RequestID: fmt.Sprint(r.At), Detail: string(detail)})
	})
}

// readCanary returns the canary that stands beside a map; nil: none does.
func readCanary(ctx context.Context, tx *sql.Tx, job string, epoch uint64) (*Canary, error) {
	var c Canary
	err := tx.QueryRowContext(ctx, `SELECT generation, from_us, weight FROM serving_canary WHERE job = $1 AND epoch = $2 AND weight > 0`,
		job, int64(epoch)).Scan(&c.Generation, &c.From, &c.Weight)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &c, err
}

// lead lets the canary answer where it is for the user who is asked for. It tells whether it does.
func (v *view) lead(q *SessionQuery) *Canary {
	c := v.Canary
	if c == nil || q.User == nil || q.Generation != 0 || CanarySlice(q.Job, q.User) >= c.Weight {
		return nil
	}
	v.Ranges = overlay(v.Ranges, []Assignment{{c.From, event.MaxTime, c.Generation}})
	return c
}

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/weftdata/weft/event"
)

// Generation is the output of one job version, or of one slice of a backfill. Its number is never used again.
type Generation struct {
	ID      int64
	Job     string
	Version string
	Kind    string // such as "live", or "slice:" with a name: one of each per version
	State   State
	Created event.Micros
}

// State is where a generation is in its life.
type State string

// The states, in order.
const (
	Creating State = "creating" // recorded; its tables are being made
	Ready    State = "ready"
	Dropping State = "dropping" // not readable any more; its tables are being removed
	Dropped  State = "dropped"
)

// NameBytesMax bounds the names of jobs, versions, kinds, scenarios and reports.
const NameBytesMax = 256

func checkNames(names ...string) error {
	for _, name := range names {
		if err := checkName(name); err != nil {
			return err
		}
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) > NameBytesMax || !utf8.ValidString(name) {
		return userError("", "name %.40q: expected 1 to %d bytes of UTF-8", name, NameBytesMax)
	}
	for i := range len(name) {
		if name[i] == 0 {
			return userError("", "name %.40q holds a zero byte", name)
		}
	}
	return nil
}

const generationColumns = `id, job, version, kind, state, created_us`

func scanGeneration(row interface{ Scan(...any) error }) (g Generation, err error) {
	err = row.Scan(&g.ID, &g.Job, &g.Version, &g.Kind, &g.State, &g.Created)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNoGeneration
	}
	return g, err
}

// CreateGeneration makes the generation of a version and kind, or returns the one that is there.
func (s *Store) CreateGeneration(ctx context.Context, job, version, kind string) (Generation, error) {
	g, err := s.createGeneration(ctx, job, version, kind)
	return g, failed(fmt.Sprintf("create a generation of %s version %s", job, version), err)
}

func (s *Store) createGeneration(ctx context.Context, job, version, kind string) (g Generation, err error) {
	if err := checkNames(job, version, kind); err != nil {
		return g, err
	}
	err = s.db.catalog(ctx, func(tx *sql.Tx) error {
		number, err := s.next(ctx, tx, "generation")
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO generation (`+generationColumns+`) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (job, version, kind) WHERE state <> 'dropped' DO NOTHING`,
			number, job, version, kind, Creating, s.now().UnixMicro())
		if err != nil {
			return err
		}
		g, err = scanGeneration(tx.QueryRowContext(ctx, `SELECT `+generationColumns+` FROM generation
			WHERE job = $1 AND version = $2 AND kind = $3 AND state <> 'dropped'`, job, version, kind))
		return err
	})
	switch {
	case err != nil || g.State == Ready:
		return g, err
	case g.State == Dropping:
		return g, userError("drop it again to finish that", "generation %d is being dropped", g.ID)
	}
	if err := s.db.create(ctx, g.ID); err != nil {
		return g, err
	}
	g.State = Ready
	return g, s.db.catalog(ctx, func(tx *sql.Tx) error { return s.move(ctx, tx, g.ID, Creating, Ready) })
}

// next draws a number. A counter keeps its row locked until the transaction ends, so numbers have no gaps in order.
func (s *Store) next(ctx context.Context, tx *sql.Tx, counter string) (n int64, err error) {
	err = tx.QueryRowContext(ctx, `UPDATE counter SET value = value + 1 WHERE name = $1 RETURNING value`, counter).Scan(&n)
	return n, err
}

func (s *Store) move(ctx context.Context, tx *sql.Tx, generation int64, from, to State) error {
	_, err := tx.ExecContext(ctx, `UPDATE generation SET state = $3 WHERE id = $1 AND state = $2`, generation, from, to)
	return err
}

// DropGeneration removes a generation and all that is in it. One that the serving map names is refused with ErrServed.
// Repeating it is harmless, and finishes a drop that was cut short.
func (s *Store) DropGeneration(ctx context.Context, job string, generation int64) error {
	return failed(fmt.Sprintf("drop generation %d of %s", generation, job), s.dropGeneration(ctx, job, generation))
}

func (s *Store) dropGeneration(ctx context.Context, job string, generation int64) error {
	done := false
	err := s.db.catalog(ctx, func(tx *sql.Tx) error {
		// A switch takes the same lock, so that none can assign the generation meanwhile.
		if _, err := s.lockMap(ctx, tx, job); err != nil {
			return err
		}
		g, err := s.generation(ctx, tx, job, generation)
		if err != nil {
			return err
		}
		var served int
		err = tx.QueryRowContext(ctx, `SELECT count(*) FROM serving WHERE generation = $1`, generation).Scan(&served)
		if err != nil {
			return err
		}
		if served > 0 {
			return ErrServed
		}
		done = g.State == Dropped
		if _, err := tx.ExecContext(ctx, `UPDATE serving_canary SET weight = 0 WHERE generation = $1`, generation); err != nil {
			return err
		}
		return errors.Join(s.move(ctx, tx, generation, Creating, Dropping), s.move(ctx, tx, generation, Ready, Dropping))
	})
	if err != nil || done {
		return err
	}
	if err := s.db.drop(ctx, generation); err != nil {
		return err
	}
	return s.db.catalog(ctx, func(tx *sql.Tx) error { return s.move(ctx, tx, generation, Dropping, Dropped) })
}

func (s *Store) generation(ctx context.Context, tx *sql.Tx, job string, generation int64) (Generation, error) {
	return scanGeneration(tx.QueryRowContext(ctx,
		`SELECT `+generationColumns+` FROM generation WHERE id = $1 AND job = $2`, generation, job))
}

// Generations lists the generations of a job that are not dropped, oldest first.
func (s *Store) Generations(ctx context.Context, job string) ([]Generation, error) {
	return s.generations(ctx, job, ` AND state <> 'dropped'`)
}

// GenerationsEver lists the generations that a job has ever had, those that are dropped included, oldest first.
func (s *Store) GenerationsEver(ctx context.Context, job string) ([]Generation, error) {
	return s.generations(ctx, job, "")
}

func (s *Store) generations(ctx context.Context, job, which string) (list []Generation, err error) {
	snap, err := s.db.snapshot(ctx)
	if err == nil {
		defer snap.close()
		err = each(ctx, snap.catalog(), func(rows *sql.Rows) error {
			g, err := scanGeneration(rows)
			list = append(list, g)
			return err
		}, `SELECT `+generationColumns+` FROM generation WHERE job = $1`+which+` ORDER BY id`, job)
	}
	return list, failed("list generations of "+job, err)
}

// errStop ends a walk over rows early.
var errStop = errors.New("no more rows are wanted")

func stopped(err error) error {
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// each calls scan for every row of a query.
func each(ctx context.Context, tx *sql.Tx, scan func(*sql.Rows) error, query string, args ...any) error {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

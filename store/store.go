// Package store is the serving store: sessions with their timelines, report cells, rejected and late records, the map of
// what is served, epochs and the audit log. It runs on SQLite (a folder) and on PostgreSQL (version 14 or later).
//
// A writer owns one shard of one generation:
//
//	epoch, err := s.TakeEpoch(ctx, job, generation, shard)     // fences every earlier owner
//	for change := range s.Repair(ctx, owner, checkpoint) { … } // after a restore: overwrite what came later
//	err = s.Write(ctx, owner, &batch)                          // any number of times; the same batch again changes nothing
//
// A reader asks for a job and sees what the serving map serves, in one snapshot, or names a generation.
//
// Times are microseconds since 1970-01-01 UTC.
package store

import (
	"context"
	"database/sql"
	"strings"
	"time"
)

// Options are what Open needs beside the address. The zero value is usable.
type Options struct {
	Now         func() time.Time // stamps generations and switches; nil: time.Now
	Connections int              // most connections to PostgreSQL, or readers of one SQLite file; 0: 8
}

// Store is an open store. It is safe for concurrent use.
type Store struct {
	db  backend
	now func() time.Time
}

// backend is a database: where tables are, how transactions start and how a batch gets in.
type backend interface {
	// migrate brings the catalog up to date, one process at a time.
	migrate(ctx context.Context) error
	// catalog runs fn in a transaction that may change the catalog.
	catalog(ctx context.Context, fn func(*sql.Tx) error) error
	// snapshot starts a transaction that reads.
	snapshot(ctx context.Context) (snapshot, error)
	// create makes the tables of a generation; drop removes them. Both may be repeated.
	create(ctx context.Context, generation int64) error
	drop(ctx context.Context, generation int64) error
	// change runs fn in a transaction that may change a generation.
	change(ctx context.Context, generation int64, fn func(*changeTx) error) error
	// forUpdate is what a SELECT needs to lock the rows that it reads.
	forUpdate() string
	// indexOf is the expression for the place of one byte string in another, 0 where it is not.
	indexOf(text, part string) string
	close() error
}

// snapshot is a read transaction over the catalog and generations.
type snapshot interface {
	catalog() *sql.Tx
	// generation returns where the tables of a generation are. It fails with ErrNoGeneration.
	generation(ctx context.Context, generation int64) (tables, error)
	close()
}

// tables are the tables of one generation within a transaction.
type tables struct {
	*sql.Tx
	suffix string // of the names
}

// text fills in the names of tables.
func (t tables) text(query string) string { return strings.ReplaceAll(query, "{g}", t.suffix) }

// changeTx is a transaction that changes one generation.
type changeTx struct {
	tables
	// stage brings rows to a temporary table.
	stage func(ctx context.Context, table string, columns []string, rows [][]any) error
	// script runs several statements without parameters.
	script func(ctx context.Context, statements string) error
}

// Open opens a store and migrates it: "sqlite:/path/of/folder", which is made where it is not there, or
// "postgres://user:password@host:port/database", encrypted and verified unless sslmode says otherwise. Nothing of a
// PostgreSQL address but the port is guessed, and errors never hold it.
func Open(ctx context.Context, dsn string, o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Connections <= 0 {
		o.Connections = 8
	}
	db, err := openBackend(ctx, dsn, o)
	if err != nil {
		return nil, failed("open", err)
	}
	if err := db.migrate(ctx); err != nil {
		db.close()
		return nil, failed("migrate", err)
	}
	return &Store{db, o.Now}, nil
}

func openBackend(ctx context.Context, dsn string, o Options) (backend, error) {
	scheme, rest, _ := strings.Cut(dsn, ":")
	switch {
	case scheme == "sqlite" && rest != "":
		return openSQLite(ctx, rest, o)
	case scheme == "postgres" || scheme == "postgresql":
		return openPostgres(ctx, dsn, o)
	}
	return nil, userError("expected sqlite:/path/of/folder or postgres://user@host/database", "the address names no known database")
}

// Close closes all connections. Calls that are under way end first or fail.
func (s *Store) Close() error { return failed("close", s.db.close()) }

// inTx runs fn in a transaction and commits it.
func inTx(ctx context.Context, db interface {
	BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
}, fn func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

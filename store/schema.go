package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"strings"

	"github.com/pressly/goose/v3"
)

//go:embed schema
var schema embed.FS

// schemaText returns a file of the schema with its places filled in: pairs of a name and what stands for it.
func schemaText(name string, pairs ...string) string {
	text, err := schema.ReadFile("schema/" + name + ".sql")
	if err != nil {
		panic(err) // the file is part of the program
	}
	return strings.NewReplacer(pairs...).Replace(string(text))
}

// migrations are versions of a schema, in order; each is a text of SQL. A released one never changes.
func migrate(ctx context.Context, dialect goose.Dialect, db *sql.DB, texts []string, o ...goose.ProviderOption) error {
	var list []*goose.Migration
	for i, text := range texts {
		up := func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, text)
			return err
		}
		list = append(list, goose.NewGoMigration(int64(i+1), &goose.GoFunc{RunTx: up}, nil))
	}
	o = append(o, goose.WithGoMigrations(list...), goose.WithDisableGlobalRegistry(true))
	p, err := goose.NewProvider(dialect, db, nil, o...)
	if err != nil {
		return err
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if current > target {
		return userError("run the newer release, or restore an older copy",
			"the store has schema %d and this release knows up to %d", current, target)
	}
	_, err = p.Up(ctx)
	return err
}

// Schema returns the version of a store's schema and the one that this release knows; 0 where the store was never opened. Unlike
// Open it changes nothing, so it can be asked of a store that another release works on.
func Schema(ctx context.Context, dsn string) (version, known int, err error) {
	if dir, ok := strings.CutPrefix(dsn, "sqlite:"); ok && dir != "" {
		version, known, err = sqliteSchema(ctx, dir)
		return version, known, failed("read the schema's version", err)
	}
	db, err := openBackend(ctx, dsn, Options{Connections: 1})
	if err != nil {
		return 0, 0, failed("open", err)
	}
	if p, ok := db.(*postgresStore); ok {
		version, known, err = p.schema(ctx)
	}
	return version, known, failed("read the schema's version", errors.Join(err, db.close()))
}

// schemaVersion returns the last migration that was applied.
func schemaVersion(ctx context.Context, db *sql.DB) (version int, err error) {
	err = db.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version`).Scan(&version)
	return version, err
}

// suffix of the names of a generation's partitions.
func suffix(generation int64) string { return fmt.Sprintf("_g%d", generation) }

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

const (
	// postgresVersionMin can detach a partition without stopping its readers.
	postgresVersionMin = 14
	// postgresSchema holds all tables.
	postgresSchema = "weft"
	connectTimeout = 10 * time.Second
	// idleInTransaction ends the transaction of a process that was paused in it, with the locks that its successor needs.
	idleInTransaction = 15 * time.Second
	undefinedTable    = "42P01"
	// generationLock is the advisory lock under which partitions come and go: only one may be detached at a time.
	generationLock = 0x77656674_67656e
)

// partitioned are the tables that have a partition for each generation.
func partitioned() []string {
	return []string{"session", "session_key", "session_hit", "cell", "exception"}
}

// postgresStore is a schema of a PostgreSQL database. Reads and writes name the partition of their generation, so a
// partition that comes or goes never waits for those of other generations, nor makes them wait.
type postgresStore struct{ db *sql.DB }

// postgresConfig refuses whatever would be guessed from the environment or weaken the connection in silence. No error
// may hold the address: it has a password.
func postgresConfig(dsn string) (*pgx.ConnConfig, error) {
	const hint = "expected postgres://user:password@host:port/database?sslmode=verify-full"
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, userError(hint, "the PostgreSQL address is not a URL")
	}
	q := u.Query()
	switch {
	case u.Hostname() == "" && q.Get("host") == "":
		return nil, userError(hint, "the PostgreSQL address has no host")
	case u.User.Username() == "" && q.Get("user") == "":
		return nil, userError(hint, "the PostgreSQL address has no user")
	case strings.Trim(u.Path, "/") == "" && q.Get("dbname") == "" && q.Get("database") == "":
		return nil, userError(hint, "the PostgreSQL address has no database")
	}
	if !q.Has("sslmode") {
		q.Set("sslmode", "verify-full")
		u.RawQuery = q.Encode()
	}
	if mode := q.Get("sslmode"); !slices.Contains([]string{"disable", "require", "verify-ca", "verify-full"}, mode) {
		return nil, userError("expected verify-full, verify-ca, require or disable", "sslmode %.20q may fall back to plain text", mode)
	}
	c, err := pgx.ParseConfig(u.String())
	if err != nil {
		return nil, userError(hint, "the PostgreSQL address is not valid")
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	c.RuntimeParams["search_path"] = postgresSchema
	c.RuntimeParams["idle_in_transaction_session_timeout"] = fmt.Sprint(idleInTransaction.Milliseconds())
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "weft"
	}
	return c, nil
}

func openPostgres(ctx context.Context, dsn string, o Options) (backend, error) {
	c, err := postgresConfig(dsn)
	if err != nil {
		return nil, err
	}
	p := &postgresStore{stdlib.OpenDB(*c)}
	p.db.SetMaxOpenConns(o.Connections)
	p.db.SetMaxIdleConns(o.Connections)
	if err := p.check(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *postgresStore) check(ctx context.Context) error {
	var version int
	var encoding string
	err := p.db.QueryRowContext(ctx, `SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding')`).
		Scan(&version, &encoding)
	switch {
	case err != nil:
		return err
	case version < postgresVersionMin:
		return userError("", "PostgreSQL %d is too old: expected %d or later", version, postgresVersionMin)
	case encoding != "UTF8":
		return userError("create it with ENCODING 'UTF8'", "the database has encoding %s: expected UTF8", encoding)
	}
	return nil
}

func (p *postgresStore) migrate(ctx context.Context) error {
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	// IF NOT EXISTS alone would ask for the right to create where a narrower role finds the schema made for it.
	var there bool
	if err := p.db.QueryRowContext(ctx, `SELECT to_regnamespace($1) IS NOT NULL`, postgresSchema).Scan(&there); err != nil {
		return err
	}
	if !there {
		if _, err := p.db.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS `+postgresSchema); err != nil && !isCode(err, "23505") {
			return err // 23505: another process has just made it
		}
	}
	return migrate(ctx, goose.DialectPostgres, p.db, postgresMigrations(), goose.WithSessionLocker(locker))
}

func postgresMigrations() []string {
	return []string{schemaText("catalog") + schemaText("append_only_postgres"),
		schemaText("data", "{partition}", "PARTITION BY LIST (generation)"), schemaText("progress"), schemaText("canary")}
}

func (p *postgresStore) schema(ctx context.Context) (version, known int, err error) {
	version, err = schemaVersion(ctx, p.db)
	if isCode(err, undefinedTable) {
		err = nil
	}
	return version, len(postgresMigrations()), err
}

func (p *postgresStore) catalog(ctx context.Context, fn func(*sql.Tx) error) error {
	return inTx(ctx, p.db, fn)
}

func (p *postgresStore) create(ctx context.Context, generation int64) error {
	return inTx(ctx, p.db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(generationLock)); err != nil {
			return err
		}
		var there bool
		err := tx.QueryRowContext(ctx, `SELECT to_regclass($1) IS NOT NULL`, "session"+suffix(generation)).Scan(&there)
		if err != nil || there {
			return err
		}
		_, err = tx.ExecContext(ctx, schemaText("partition", "{g}", suffix(generation), "{generation}", fmt.Sprint(generation))+
			schemaText("index", "{g}", suffix(generation)))
		return err
	})
}

// drop detaches each partition without stopping readers of the others, then removes it. A drop that was cut short is
// taken up where it was.
func (p *postgresStore) drop(ctx context.Context, generation int64) (err error) {
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, int64(generationLock)); err != nil {
		return err
	}
	defer func() {
		_, e := conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, int64(generationLock))
		err = errors.Join(err, e)
	}()
	for _, table := range []string{"shard_epoch", "shard_progress"} {
		if _, err := conn.ExecContext(ctx, `DELETE FROM `+table+` WHERE generation = $1`, generation); err != nil {
			return err
		}
	}
	for _, table := range partitioned() {
		if err := dropPartition(ctx, conn, table, table+suffix(generation)); err != nil {
			return err
		}
	}
	return nil
}

func dropPartition(ctx context.Context, conn *sql.Conn, table, partition string) error {
	var pending bool
	err := conn.QueryRowContext(ctx, `SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass($1)`, partition).Scan(&pending)
	switch {
	case errors.Is(err, sql.ErrNoRows): // detached
	case err != nil:
		return err
	default:
		how := "CONCURRENTLY"
		if pending {
			how = "FINALIZE"
		}
		if _, err := conn.ExecContext(ctx, "ALTER TABLE "+table+" DETACH PARTITION "+partition+" "+how); err != nil {
			return err
		}
	}
	_, err = conn.ExecContext(ctx, "DROP TABLE IF EXISTS "+partition)
	return err
}

func (p *postgresStore) change(ctx context.Context, generation int64, fn func(*changeTx) error) error {
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw := func(fn func(*pgx.Conn) error) error {
		return conn.Raw(func(c any) error { return fn(c.(*stdlib.Conn).Conn()) })
	}
	err = inTx(ctx, conn, func(tx *sql.Tx) error {
		c := &changeTx{tables: tables{tx, suffix(generation)}}
		// Without parameters the statements are planned anew for the size that the tables have by now, and go in one trip.
		c.script = func(ctx context.Context, statements string) error {
			return raw(func(c *pgx.Conn) error {
				_, err := c.PgConn().Exec(ctx, statements).ReadAll()
				return err
			})
		}
		c.stage = func(ctx context.Context, table string, columns []string, rows [][]any) error {
			return raw(func(c *pgx.Conn) error {
				_, err := c.CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromRows(rows))
				return err
			})
		}
		if err := c.script(ctx, schemaText("stage", "{on_commit}", "ON COMMIT DELETE ROWS")); err != nil {
			return err
		}
		return fn(c)
	})
	return gone(err)
}

// gone says what a missing table means.
func gone(err error) error {
	if isCode(err, undefinedTable) {
		return ErrNoGeneration
	}
	return err
}

func isCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}

func (p *postgresStore) forUpdate() string { return " FOR UPDATE" }

func (p *postgresStore) indexOf(text, part string) string {
	return "position(" + part + " IN " + text + ")"
}

func (p *postgresStore) close() error { return p.db.Close() }

type postgresSnapshot struct{ tx *sql.Tx }

func (p *postgresStore) snapshot(ctx context.Context) (snapshot, error) {
	tx, err := p.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	return postgresSnapshot{tx}, nil
}

func (s postgresSnapshot) catalog() *sql.Tx { return s.tx }

func (s postgresSnapshot) generation(_ context.Context, generation int64) (tables, error) {
	return tables{s.tx, suffix(generation)}, nil
}

func (s postgresSnapshot) close() { s.tx.Rollback() } // nothing was changed

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver
)

// sqliteStore is a folder: catalog.db, and generations/<number>.db for each generation, so that writers of different
// generations do not wait for each other. Several processes of one machine may use it.
type sqliteStore struct {
	dir     string
	readers int
	main    *sqliteFile

	mu          sync.Mutex
	generations map[int64]*sqliteFile
}

// sqliteFile is one database. SQLite has one writer at a time.
type sqliteFile struct{ w, r *sql.DB }

const (
	busyTimeout = 10 * time.Second
	idleTimeout = time.Minute // files of retired slices need no connections
	// stageParameters is the number of parameters of one statement: enough to hide the cost of a call.
	stageParameters = 512
)

func openSQLite(_ context.Context, dir string, o Options) (backend, error) {
	if err := os.MkdirAll(filepath.Join(dir, "generations"), 0o700); err != nil {
		return nil, err
	}
	s := &sqliteStore{dir: dir, readers: o.Connections, generations: map[int64]*sqliteFile{}}
	var err error
	s.main, err = openFile(filepath.Join(dir, "catalog.db"), "rwc", o.Connections)
	return s, err
}

// openFile opens a database; mode "rw" does not create it.
func openFile(path, mode string, readers int) (*sqliteFile, error) {
	// The log lets readers go on beside the writer. Turning it on waits for nobody, so a file is made under a lock. What is
	// committed must outlive a power failure: checkpoints count on it.
	pragmas := []string{"journal_mode(wal)", "synchronous(full)", "temp_store(memory)", "cache_size(-32768)"}
	w, err := openSQL(path, mode, "immediate", 1, pragmas...)
	if err != nil {
		return nil, err
	}
	r, err := openSQL(path, mode, "deferred", readers, append(pragmas, "query_only(1)")...)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &sqliteFile{w, r}, nil
}

func openSQL(path, mode, lock string, connections int, pragmas ...string) (*sql.DB, error) {
	q := url.Values{"mode": {mode}, "_txlock": {lock}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())}}
	q["_pragma"] = append(q["_pragma"], pragmas...)
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	db.SetConnMaxIdleTime(idleTimeout)
	return db, nil
}

func (f *sqliteFile) close() error { return errors.Join(f.w.Close(), f.r.Close()) }

func (s *sqliteStore) migrate(ctx context.Context) error {
	return s.alone(ctx, func() error {
		return migrate(ctx, goose.DialectSQLite3, s.main.w, sqliteMigrations())
	})
}

func sqliteMigrations() []string {
	return []string{schemaText("catalog") + schemaText("append_only_sqlite"), schemaText("canary")}
}

// sqliteSchema reads the version of a store's schema without making its folder or a file in it.
func sqliteSchema(ctx context.Context, dir string) (version, known int, err error) {
	known = len(sqliteMigrations())
	path := filepath.Join(dir, "catalog.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return 0, known, nil
	} else if err != nil {
		return 0, known, err
	}
	db, err := openSQL(path, "ro", "deferred", 1)
	if err != nil {
		return 0, known, err
	}
	version, err = schemaVersion(ctx, db)
	return version, known, errors.Join(err, db.Close())
}

// alone runs fn in one process at a time. The lock is SQLite's own and ends with its process.
func (s *sqliteStore) alone(ctx context.Context, fn func() error) error {
	lock, err := openSQL(filepath.Join(s.dir, "schema.lock"), "rwc", "immediate", 1)
	if err != nil {
		return err
	}
	defer lock.Close()
	return inTx(ctx, lock, func(*sql.Tx) error { return fn() })
}

func (s *sqliteStore) catalog(ctx context.Context, fn func(*sql.Tx) error) error {
	return inTx(ctx, s.main.w, fn)
}

func (s *sqliteStore) path(generation int64) string {
	return filepath.Join(s.dir, "generations", fmt.Sprintf("%d.db", generation))
}

// create makes the file under another name: a generation's file is complete or not there.
func (s *sqliteStore) create(ctx context.Context, generation int64) error {
	return s.alone(ctx, func() error { return createFile(ctx, s.path(generation)) })
}

func createFile(ctx context.Context, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	part := path + ".part"
	if err := removeFile(part); err != nil {
		return err
	}
	f, err := openFile(part, "rwc", 1)
	if err != nil {
		return err
	}
	err = migrate(ctx, goose.DialectSQLite3, f.w, generationSchema())
	if err = errors.Join(err, f.close()); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// generationSchema are the migrations of a generation's file.
func generationSchema() []string {
	return []string{schemaText("data", "{partition}", "") + schemaText("index", "{g}", ""), schemaText("progress")}
}

// upgrade brings a file of an earlier release up to date.
func (s *sqliteStore) upgrade(ctx context.Context, f *sqliteFile) error {
	var version int
	err := f.r.QueryRowContext(ctx, `SELECT max(version_id) FROM goose_db_version WHERE is_applied = 1`).Scan(&version)
	if err != nil || version == len(generationSchema()) {
		return err
	}
	return s.alone(ctx, func() error { return migrate(ctx, goose.DialectSQLite3, f.w, generationSchema()) })
}

func removeFile(path string) error {
	var errs []error
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// drop removes the file. Who reads it keeps what was opened.
func (s *sqliteStore) drop(_ context.Context, generation int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := removeFile(s.path(generation))
	if f := s.generations[generation]; f != nil {
		delete(s.generations, generation)
		err = errors.Join(err, f.close())
	}
	return err
}

func (s *sqliteStore) file(ctx context.Context, generation int64) (*sqliteFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Another process may have dropped it since it was opened here.
	if _, err := os.Stat(s.path(generation)); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoGeneration
	} else if err != nil {
		return nil, err
	}
	f := s.generations[generation]
	if f == nil {
		var err error
		if f, err = openFile(s.path(generation), "rw", s.readers); err != nil {
			return nil, err
		}
		if err := s.upgrade(ctx, f); err != nil {
			return nil, errors.Join(err, f.close())
		}
		s.generations[generation] = f
	}
	return f, nil
}

func (s *sqliteStore) change(ctx context.Context, generation int64, fn func(*changeTx) error) error {
	f, err := s.file(ctx, generation)
	if err != nil {
		return err
	}
	err = inTx(ctx, f.w, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, schemaText("stage", "{on_commit}", "")); err != nil {
			return err
		}
		c := &changeTx{tables: tables{tx, ""}}
		c.script = func(ctx context.Context, statements string) error {
			_, err := tx.ExecContext(ctx, statements)
			return err
		}
		c.stage = func(ctx context.Context, table string, columns []string, rows [][]any) error {
			return stageSQLite(ctx, tx, table, columns, rows)
		}
		return fn(c)
	})
	return s.gone(generation, err)
}

// gone turns the error of a closed file into what it means where the generation was dropped meanwhile.
func (s *sqliteStore) gone(generation int64, err error) error {
	if err == nil {
		return nil
	}
	if _, e := os.Stat(s.path(generation)); errors.Is(e, fs.ErrNotExist) {
		return ErrNoGeneration
	}
	return err
}

func stageSQLite(ctx context.Context, tx *sql.Tx, table string, columns []string, rows [][]any) error {
	if _, err := tx.ExecContext(ctx, "DELETE FROM "+table); err != nil {
		return err
	}
	most := stageParameters / len(columns)
	var full *sql.Stmt
	args := make([]any, 0, stageParameters)
	for len(rows) > 0 {
		n := min(most, len(rows))
		args = args[:0]
		for _, row := range rows[:n] {
			args = append(args, row...)
		}
		rows = rows[n:]
		stmt := full
		if stmt == nil || n < most {
			one := "(" + strings.Repeat("?,", len(columns)-1) + "?)"
			text := "INSERT INTO " + table + " (" + strings.Join(columns, ",") + ") VALUES " + strings.Repeat(one+",", n-1) + one
			var err error
			if stmt, err = tx.PrepareContext(ctx, text); err != nil {
				return err
			}
			defer stmt.Close() // at most two
			if n == most {
				full = stmt
			}
		}
		if _, err := stmt.ExecContext(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (s *sqliteStore) forUpdate() string { return "" } // a transaction that writes is the only one

func (s *sqliteStore) indexOf(text, part string) string { return "instr(" + text + ", " + part + ")" }

func (s *sqliteStore) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.main.close()
	for _, f := range s.generations {
		err = errors.Join(err, f.close())
	}
	clear(s.generations)
	return err
}

// sqliteSnapshot opens generations when they are asked for. Each is seen at a moment after the map was read, which is
// what a snapshot promises: a generation that the map names is not changed by the switch that replaces it.
type sqliteSnapshot struct {
	s    *sqliteStore
	main *sql.Tx
	open map[int64]*sql.Tx
}

func (s *sqliteStore) snapshot(ctx context.Context) (snapshot, error) {
	tx, err := s.main.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	return &sqliteSnapshot{s, tx, map[int64]*sql.Tx{}}, nil
}

func (s *sqliteSnapshot) catalog() *sql.Tx { return s.main }

func (s *sqliteSnapshot) generation(ctx context.Context, generation int64) (tables, error) {
	tx := s.open[generation]
	if tx == nil {
		f, err := s.s.file(ctx, generation)
		if err != nil {
			return tables{}, err
		}
		if tx, err = f.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}); err != nil {
			return tables{}, s.s.gone(generation, err)
		}
		s.open[generation] = tx
	}
	return tables{tx, ""}, nil
}

func (s *sqliteSnapshot) close() {
	s.main.Rollback() // nothing was changed
	for _, tx := range s.open {
		tx.Rollback()
	}
}

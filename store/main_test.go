package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(childDSN) != "" {
		os.Exit(writeAndHang())
	}
	code := m.Run()
	server.stop()
	os.Exit(code)
}

// postgres is a private server, started when the first test needs it.
type postgres struct {
	once  sync.Once
	dir   string
	cmd   *exec.Cmd
	err   error
	count atomic.Int64
}

var server postgres

var errNoPostgres = errors.New("no PostgreSQL server binaries here: install PostgreSQL 14 or later to test against it")

// binaries finds the folder with initdb and postgres.
func binaries() (string, error) {
	list, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.Sort(list)
	if path, err := exec.LookPath("initdb"); err == nil {
		list = append(list, path)
	}
	if len(list) == 0 {
		return "", errNoPostgres
	}
	return filepath.Dir(list[len(list)-1]), nil
}

func (p *postgres) start() {
	bin, err := binaries()
	if err != nil {
		p.err = err
		return
	}
	if p.dir, p.err = os.MkdirTemp("", "weft-pg"); p.err != nil {
		return
	}
	attr := &syscall.SysProcAttr{}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		const nobody = 65534
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		if p.err = os.Chown(p.dir, nobody, nobody); p.err != nil {
			return
		}
	}
	data := filepath.Join(p.dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "weft", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = attr, p.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		p.err = fmt.Errorf("initdb: %w: %s", err, out)
		return
	}
	fsync := "off"
	if b := flag.Lookup("test.bench"); b != nil && b.Value.String() != "" {
		fsync = "on" // numbers are those of a durable server
	}
	p.cmd = exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", p.dir, "-c", "listen_addresses=", "-c", "fsync="+fsync,
		"-c", "max_connections=200")
	p.cmd.SysProcAttr, p.cmd.Dir = attr, p.dir
	if p.err = p.cmd.Start(); p.err != nil {
		return
	}
	p.err = p.wait()
}

// wait connects until the server answers.
func (p *postgres) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		c, err := pgx.Connect(ctx, p.dsn("postgres"))
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the PostgreSQL server does not answer: %w", err)
		case <-tick.C:
		}
	}
}

func (p *postgres) dsn(database string) string {
	return (&url.URL{Scheme: "postgres", User: url.User("weft"), Path: "/" + database,
		RawQuery: url.Values{"host": {p.dir}, "sslmode": {"disable"}}.Encode()}).String()
}

func (p *postgres) stop() {
	if p.cmd != nil && p.cmd.Process != nil {
		p.cmd.Process.Signal(syscall.SIGINT) // a fast shutdown: it does not wait for clients
		p.cmd.Wait()
	}
	if p.dir != "" {
		os.RemoveAll(p.dir)
	}
}

// database makes an empty database and returns its address.
func (p *postgres) database(t testing.TB) string {
	t.Helper()
	p.once.Do(p.start)
	if errors.Is(p.err, errNoPostgres) {
		t.Skip(p.err)
	}
	if p.err != nil {
		t.Fatal(p.err)
	}
	name := fmt.Sprintf("test%d", p.count.Add(1))
	p.exec(t, p.dsn("postgres"), "CREATE DATABASE "+name)
	return p.dsn(name)
}

func (p *postgres) exec(t testing.TB, dsn, statement string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if _, err := c.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// backends runs a test against an empty store of each kind.
func backends(t *testing.T, test func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, "sqlite:"+t.TempDir()) })
	t.Run("postgres", func(t *testing.T) { test(t, server.database(t)) })
}

// open opens a store with a clock that stands still.
func open(t testing.TB, dsn string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dsn, Options{Now: func() time.Time { return time.UnixMicro(42) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// get fails the test on an error and returns the value otherwise.
func get[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return value
	}
}

// fails checks an error's identity and class.
func fails(t testing.TB, err, want error, class Class) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got the error %v, want one of the store", err)
	}
	if want != nil && !errors.Is(err, want) || e.Class != class || e.Op == "" {
		t.Fatalf("got %q of class %q in %q, want %v of class %q", err, e.Class, e.Op, want, class)
	}
}

func TestOpenRefuses(t *testing.T) {
	const secret = "hunter2"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed := l.Addr().String()
	must(t, l.Close())
	for _, c := range []struct {
		dsn, want string
		class     Class
	}{
		{"", "no known database", User},
		{"mysql://a:" + secret + "@b/c", "no known database", User},
		{"sqlite:", "no known database", User},
		{"postgres://weft:" + secret + "@/db", "has no host", User},
		{"postgres://:" + secret + "@h/db", "has no user", User},
		{"postgres://weft:" + secret + "@h", "has no database", User},
		{"postgres://weft:" + secret + "@h:port/db", "is not a URL", User},
		{"postgres://weft:" + secret + "@h/db?sslmode=prefer", "plain text", User},
		{"postgres://weft:" + secret + "@h/db?sslmode=verify-full&connect_timeout=x", "is not valid", User},
		{"postgres://weft:" + secret + "@" + closed + "/db?sslmode=disable", "open", External},
	} {
		t.Run(c.dsn, func(t *testing.T) {
			s, err := Open(t.Context(), c.dsn, Options{})
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			fails(t, err, nil, c.class)
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secret) {
				t.Errorf("got %q, want one with %q and no password", err, c.want)
			}
		})
	}
}

func TestPostgresIsVerifiedByDefault(t *testing.T) {
	c, err := postgresConfig("postgres://weft@db.example/payments")
	must(t, err)
	if c.TLSConfig == nil || c.TLSConfig.InsecureSkipVerify || c.TLSConfig.ServerName != "db.example" || len(c.Fallbacks) > 0 {
		t.Errorf("got TLS %+v with %d fallbacks, want a verified connection and nothing else", c.TLSConfig, len(c.Fallbacks))
	}
}

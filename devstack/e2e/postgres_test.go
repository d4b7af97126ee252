package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
)

// postgresStore opens a store on PostgreSQL: on the empty database that WEFT_TEST_POSTGRES names, or on a private server.
func postgresStore(t *testing.T, ctx context.Context) *store.Store {
	t.Helper()
	dsn := os.Getenv("WEFT_TEST_POSTGRES")
	if dsn == "" {
		dsn = startPostgres(t)
	}
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		s, err := store.Open(ctx, dsn, store.Options{})
		if err == nil {
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			return s
		}
		var e *store.Error
		if wait.Err() != nil || errors.As(err, &e) && !e.Retryable { // it refuses connections until it is up
			t.Fatal(err)
		}
	}
}

// postgresBinaries returns the folder of PostgreSQL's programs.
func postgresBinaries(t *testing.T) string {
	t.Helper()
	list, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.Sort(list)
	if path, err := exec.LookPath("initdb"); err == nil {
		list = append(list, path)
	}
	if len(list) == 0 {
		t.Skip("no PostgreSQL server binaries here: install PostgreSQL 14 or later, or set WEFT_TEST_POSTGRES")
	}
	return filepath.Dir(list[len(list)-1])
}

// startPostgres starts a server that listens on a socket in a folder of its own, and returns its address.
func startPostgres(t *testing.T) string {
	t.Helper()
	bin := postgresBinaries(t)
	dir, err := os.MkdirTemp("", "weft-pg") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		const nobody = 65534
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "weft", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off")
	server.SysProcAttr, server.Dir = attr, dir
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGINT) // a fast shutdown: it does not wait for clients
		server.Wait()
	})
	return (&url.URL{Scheme: "postgres", User: url.User("weft"), Path: "/postgres",
		RawQuery: url.Values{"host": {dir}, "sslmode": {"disable"}}.Encode()}).String()
}

// TestStreamIntoPostgres streams an environment into PostgreSQL, from Kafka or from the fake, by runs that end abruptly. What
// the store holds in the end has the digests of a replay of the same files.
func TestStreamIntoPostgres(t *testing.T) {
	k := startKafka(t)
	var cancel context.CancelFunc
	k.ctx, cancel = context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	serving := postgresStore(t, k.ctx)
	dir := t.TempDir()
	weft := built(t, weftProgram)
	run(t, dir, weft, "gen", "--out", "pay", "--orders", "600", "--seed", "5", "--span", "12h")
	spec := ownTopics(k.T, filepath.Join(dir, "pay/job.yaml"))
	inputs := []string{"--spec", spec}
	for _, s := range paygen.Sources() {
		inputs = append(inputs, "--input", s[0]+"=pay/"+s[1])
	}
	var want struct{ Digests map[string]string }
	k.must(json.Unmarshal(run(t, dir, weft, append([]string{"replay", "--out", "result", "--json"}, inputs...)...), &want))
	run(t, dir, weft, append([]string{"produce", "--kafka", strings.Join(k.brokers, ","), "--partitions", "2", "-q"}, inputs...)...)

	text, err := os.ReadFile(spec)
	k.must(err)
	parsed, err := jobspec.Parse(text)
	k.must(err)
	job, err := operator.Compile(parsed, 99, nil)
	k.must(err)
	g, err := serving.CreateGeneration(k.ctx, parsed.Job, "1", "live")
	k.must(err)
	folder, err := objstore.Folder(filepath.Join(dir, "objects"))
	k.must(err)
	st := &stream{job: job, meta: results.MetaOf(parsed), store: serving, generation: g.ID, client: k.connect(kafka.Config{}), objects: folder}
	r := rand.New(rand.NewPCG(5, 1))
	for range 2 {
		st.run(t, k.ctx, r, func(s streaming.Status) bool {
			return s.Lag == 0 || s.Checkpoint > 0 && s.Records > int64(300+r.IntN(2000))
		}, true)
	}
	st.run(t, k.ctx, r, func(s streaming.Status) bool { return s.Lag == 0 }, false)

	scope := store.Scope{Job: parsed.Job, Generation: g.ID}
	sessions, err := serving.Digest(k.ctx, scope, 0, 0)
	k.must(err)
	reports, err := serving.ReportDigest(k.ctx, scope, store.NewEncoder(&job.Config, st.meta), 0, 0)
	k.must(err)
	if sessions.String() != want.Digests["sessions"] || reports.String() != want.Digests["reports"] {
		t.Errorf("%d sessions: digests %s and %s, the replay's are %s and %s", sessions.Count, sessions, reports, want.Digests["sessions"], want.Digests["reports"])
	}
}

package e2e

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workers"
)

// TestStreamEqualsReplay plays a payment environment into Kafka and streams it into the store, by runs that end abruptly
// and go on with other sizes of batches. What the store holds in the end has the digest of a replay of the same files.
func TestStreamEqualsReplay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	at, spec, want := playEnvironment(t, ctx, 1500, 11, "24h", 3)
	st := openStream(t, ctx, at, spec)
	defer st.store.Close()
	r := rand.New(rand.NewPCG(11, 1))
	for range 4 { // runs that end in the middle, without a last checkpoint
		st.run(t, ctx, r, func(s streaming.Status) bool { return s.Lag == 0 || s.Records > int64(500+r.IntN(6000)) }, true)
	}
	st.run(t, ctx, r, func(s streaming.Status) bool { return s.Lag == 0 }, false)

	scope := store.Scope{Job: "payments", Generation: st.generation}
	sessions, err := st.store.Digest(ctx, scope, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	reports, err := st.store.ReportDigest(ctx, scope, store.NewEncoder(&st.job.Config, st.meta), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	late, err := st.store.CountExceptions(ctx, "payments", st.generation, store.Late)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sessions, digest %s; late %v", sessions.Count, sessions, late)
	if len(late) > 0 {
		t.Error("events were late: the environment's lateness is within the retention")
	}
	if sessions.String() != want.Parts["sessions"] {
		t.Errorf("sessions: the stream's digest is %s, the replay's %s", sessions, want.Parts["sessions"])
	}
	if reports.String() != want.Parts["reports"] {
		t.Errorf("reports: the stream's digest is %s, the replay's %s", reports, want.Parts["reports"])
	}
	rejects, err := st.store.CountExceptions(ctx, "payments", st.generation, store.Rejected)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, c := range rejects {
		got[c.Reason] += c.Count
	}
	for reason, n := range want.Rejects {
		if got[reason] != n {
			t.Errorf("%d rejects for %s, the replay has %d", got[reason], reason, n)
		}
	}
}

// run runs a command and returns what it prints.
func run(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = dir
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// stream is a job over a stack.
type stream struct {
	version    int
	archive    archive.Objects // nil: what Kafka does not have any more is gone
	job        *operator.Job
	meta       results.Meta
	store      *store.Store
	generation int64
	client     *kafka.Client
	objects    objstore.Store
}

func openStream(t *testing.T, ctx context.Context, at stack.Addresses, specFile string) *stream {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(specFile)
	must(err)
	spec, err := jobspec.Parse(text)
	must(err)
	job, err := operator.Compile(spec, 99, nil)
	must(err)
	st := &stream{version: 1, job: job, meta: results.MetaOf(spec)}
	st.store, err = store.Open(ctx, at.Store, store.Options{})
	must(err)
	g, err := st.store.CreateGeneration(ctx, spec.Job, "1", "live")
	must(err)
	st.generation = g.ID
	st.client, err = kafka.New(kafka.Config{Brokers: kafka.ParseBrokers(at.Kafka), MaxWait: 100 * time.Millisecond})
	must(err)
	at = withKeys(t, at)
	st.objects, err = objstore.Open(objstore.Config{
		Endpoint: at.S3, Bucket: at.S3Bucket, AccessKey: at.S3AccessKey, SecretKey: objstore.Secret(at.S3SecretKey),
	})
	must(err)
	must(objstore.Probe(ctx, st.objects))
	t.Cleanup(func() { _ = st.objects.(*objstore.S3).Close() }) // a gateway waits half a minute for connections when it stops
	return st
}

var errCrash = errors.New("crash")

// run runs the shard until a condition holds. A crash lets nothing more be written, and leaves no last checkpoint.
func (st *stream) run(t *testing.T, ctx context.Context, r *rand.Rand, until func(streaming.Status) bool, crash bool) {
	t.Helper()
	log := workers.NewLog(st.client)
	defer log.Close()
	partitions, err := log.Partitions(ctx, st.job)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	crashed := false
	sink := &crashingSink{workers.NewSink(st.store, st.job, st.generation, 0), &crashed}
	objects := &crashingObjects{workers.Objects{Store: st.objects}, &crashed}
	var last streaming.Status
	err = streaming.Run(ctx, streaming.Config{
		Job: st.job, Name: "payments/1/0", Partitions: partitions,
		Log: log, Sink: sink, Objects: objects,
		FlushEvery:      time.Duration(5+r.IntN(15)) * time.Millisecond,
		CheckpointEvery: time.Duration(20+r.IntN(60)) * time.Millisecond,
		FetchBytes:      1<<10 + r.IntN(8<<10),
		Retryable:       workers.Retryable,
		Progress: func(s streaming.Status) {
			if last = s; crashed || !until(s) {
				return
			}
			crashed = crash
			cancel()
		},
	})
	t.Logf("epoch %d: checkpoint %d, sequence %d, %d records, lag %d: %v", last.Epoch, last.Checkpoint, last.Sequence, last.Records, last.Lag, err)
	if crash && err != nil && !errors.Is(err, errCrash) || !crash && err != nil {
		t.Fatal(err)
	}
}

// crashingSink and crashingObjects fail every write once the run has crashed.
type crashingSink struct {
	*workers.Sink
	crashed *bool
}

func (c *crashingSink) Write(ctx context.Context, epoch uint64, changes *streaming.Changes) error {
	if *c.crashed {
		return errCrash
	}
	return c.Sink.Write(ctx, epoch, changes)
}

type crashingObjects struct {
	workers.Objects
	crashed *bool
}

func (c *crashingObjects) Put(ctx context.Context, key string, data []byte, match string) (string, error) {
	if *c.crashed {
		return "", errCrash
	}
	return c.Objects.Put(ctx, key, data, match)
}

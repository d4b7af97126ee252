package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/examples"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workers"
)

// loadResult is what `weft load --json` prints.
type loadResult struct {
	Steps []struct {
		Rate             float64
		Records          int64
		RecordsPerSecond float64 `json:"records_per_second"`
		Samples, Missing int
		EndToEnd         struct{ P50, P99, Max float64 } `json:"end_to_end_seconds"`
		Queryable        struct{ P50, P99, Max float64 } `json:"queryable_seconds"`
		Sustained        bool
	}
	MaxRate float64 `json:"max_rate"`
}

// TestLoadMeasuresARunningJob runs the example job on live traffic. Load sees all that it watches, and says so where the job
// does not run.
func TestLoadMeasuresARunningJob(t *testing.T) {
	k := startKafka(t)
	dir := t.TempDir()
	weft := built(t, weftProgram)
	spec := filepath.Join(dir, "job.yaml")
	k.must(os.WriteFile(spec, []byte(examples.Payments()), 0o600))
	ownTopics(k.T, spec)
	dsn := "sqlite:" + filepath.Join(dir, "store")
	load := func(args ...string) (r loadResult, stderr string, err error) {
		t.Helper()
		c := exec.CommandContext(k.ctx, weft, append([]string{"load", "--spec", spec, "--kafka", strings.Join(k.brokers, ","), "--store", dsn,
			"--json", "-q", "--partitions", "2"}, args...)...)
		var errs strings.Builder
		c.Stderr = &errs
		out, err := c.Output()
		if len(out) > 0 {
			k.must(json.Unmarshal(out, &r))
		}
		return r, errs.String(), err
	}

	if _, stderr, err := load("--rate", "500", "--for", "1s"); err == nil || !strings.Contains(stderr, "start it first") {
		t.Errorf("without a job: %v, %s", err, stderr)
	}
	s, err := store.Open(k.ctx, dsn, store.Options{})
	k.must(err)
	defer s.Close()
	g, err := s.CreateGeneration(k.ctx, "payments", "1", "live")
	k.must(err)
	r, stderr, err := load("--rate", "500", "--for", "1s", "--settle", "100ms")
	if err == nil || !strings.Contains(stderr, "cannot be read") || r.Steps[0].Missing != r.Steps[0].Samples || r.Steps[0].Sustained {
		t.Errorf("with a job that does not run: %v, %s, %+v", err, stderr, r)
	}

	var status streaming.Status
	stop := runExample(k, spec, s, g.ID, filepath.Join(dir, "objects"), &status)
	r, stderr, err = load("--rate", "500/s", "--for", "4s", "--samples", "50")
	if err != nil {
		t.Fatal(err, stderr)
	}
	one := r.Steps[0]
	t.Logf("%+v", one)
	if one.Samples < 50 || one.Missing > 0 || !one.Sustained || one.RecordsPerSecond < 400 || one.RecordsPerSecond > 600 ||
		one.EndToEnd.P50 <= 0 || one.EndToEnd.Max < one.EndToEnd.P50 || one.EndToEnd.P50 < one.Queryable.P50 {
		t.Errorf("%+v", one)
	}
	// No rate is followed within a microsecond, so the search goes down and finds none.
	r, stderr, err = load("--max", "--rate", "400", "--step", "1s", "--max-lag", "1us", "--samples", "100")
	if err != nil || len(r.Steps) != 6 || r.MaxRate != 0 || r.Steps[1].Rate != 200 {
		t.Errorf("%v, %s, %+v", err, stderr, r)
	}
	stop()
	if status.Rejects == 0 || status.Records == 0 {
		t.Errorf("the traffic has no broken records: %+v", status)
	}
}

// runExample runs the one shard of a job until stop is called.
func runExample(k *kafkaTest, spec string, s *store.Store, generation int64, objects string, last *streaming.Status) (stop func()) {
	k.Helper()
	text, err := os.ReadFile(spec)
	k.must(err)
	parsed, err := jobspec.Parse(text)
	k.must(err)
	job, err := operator.Compile(parsed, 99, nil)
	k.must(err)
	client := k.connect(kafka.Config{})
	log := workers.NewLog(client)
	partitions, err := log.Partitions(k.ctx, job)
	k.must(err)
	folder, err := objstore.Folder(objects)
	k.must(err)
	ctx, cancel := context.WithCancel(k.ctx)
	done := make(chan error, 1)
	go func() {
		done <- streaming.Run(ctx, streaming.Config{
			Job: job, Name: "checkpoints/payments/1/0", Partitions: partitions, Log: log, Sink: workers.NewSink(s, job, generation, 0),
			Objects: workers.Objects{Store: folder}, FlushEvery: 20 * time.Millisecond, Retryable: workers.Retryable,
			Progress: func(s streaming.Status) { *last = s },
		})
	}()
	return func() {
		cancel()
		k.must(errors.Join(<-done, log.Close()))
	}
}

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/workflows"
)

// TestBackfillRates measures a backfill end to end with one worker process, with two and with three, of one processor each, against a replay of
// the same records on one processor and against reading the archive's files alone. WEFT_RATES_ORDERS says of how many purchases;
// without it there is nothing to do.
func TestBackfillRates(t *testing.T) {
	orders := fromEnv(t, "WEFT_RATES_ORDERS", 0)
	if orders == 0 {
		t.Skip("measures, if WEFT_RATES_ORDERS says of how many purchases")
	}
	b := &backfillTest{chaos: newChaos(t, 7, 30*time.Minute)}
	b.prepare(orders)
	spec, err := os.ReadFile(b.inputs[1])
	b.must(err)
	spec = sessionLine.ReplaceAll(spec, []byte(shortSessions))
	b.must(os.WriteFile(b.inputs[1], spec, 0o600))
	b.startStack()
	run(t, b.dir, b.weft, append([]string{"produce", "--kafka", b.at.Kafka, "--partitions", "3", "-q"}, b.inputs...)...)
	b.command("job", "run", "--spec", b.inputs[1], "--detach")
	b.archive(spec, 64<<10) // a few hours each, as an archive of a live job has them
	b.st = openStream(t, b.ctx, b.at, b.inputs[1])
	t.Cleanup(func() { _ = b.st.store.Close() }) // only read
	b.launch("control", b.env, b.weft, "worker", "--only", "control", "--log-format", "json")
	b.dial()

	one := append([]string{"GOMAXPROCS=1"}, b.env...)
	b.env = append(b.env, "GOMAXPROCS=1")
	for n := range 3 {
		began := time.Now()
		out := b.command(append([]string{"replay", "--json", "--out", fmt.Sprint(b.dir, "/replay", n)}, b.inputs...)...)
		t.Logf("replay of the text, one processor: %s %s", time.Since(began).Round(time.Millisecond), rates(out))
	}
	for range 3 {
		rows, size, took := b.readArchive()
		t.Logf("reading the archive alone, one goroutine: %d rows, %d bytes, %s: %.0f rows/s", rows, size, took.Round(time.Millisecond), float64(rows)/took.Seconds())
	}
	for n := range 9 {
		var workers []*process
		for range 1 + n%3 {
			workers = append(workers, b.launch("backfills", one, b.weft, "worker", "--only", "backfill", "--log-format", "json", "--work", t.TempDir()))
		}
		b.worker = workers[0]
		id := fmt.Sprint("backfill/payments/rates-", n)
		began := time.Now()
		r := b.result(b.start(workflows.BackfillType, id, `{"job":"payments","from":"2026-02-20T00:00:00Z","to":"2026-03-20T00:00:00Z","slice":"24h","mode":"dry_run","parallelism":3}`))
		p := b.progress(id)
		if r.Outcome != workflows.Checked {
			t.Fatalf("it ended as %+v", r)
		}
		t.Logf("%d workers: %d slices, %d rows read, %.0f rows/s while slices ran, busy %.1f s, all in all %s; %d sessions, %d bytes", len(workers), r.Slices, r.Rows, p.Rate, r.Busy,
			time.Since(began).Round(100*time.Millisecond), r.Verified.Sessions, r.Bytes)
		if n == 0 {
			for _, s := range p.Slices {
				t.Logf("chunk %d, slice %d, %s to %s: %d rows in %.2f s", s.Chunk, s.Slice, s.From, s.To, s.Rows, s.Seconds)
			}
		}
		for _, w := range workers {
			w.kill()
		}
	}
}

// rates finds the numbers of a replay's summary.
func rates(summary []byte) string {
	var list []string
	for line := range strings.Lines(string(summary)) {
		if strings.Contains(line, "records_per") || strings.Contains(line, "cpu_seconds") {
			list = append(list, strings.Trim(line, " ,\n"))
		}
	}
	return strings.Join(list, " ")
}

// readArchive reads all data files without decoding any record.
func (b *backfillTest) readArchive() (rows, size int64, took time.Duration) {
	b.Helper()
	var batch event.Batch
	for number, s := range b.st.job.Spec.Sources {
		for _, key := range b.keys(archive.TopicPrefix(s.Topic)) {
			if !strings.HasSuffix(key, ".parquet") {
				continue
			}
			data, _, err := b.st.objects.Get(b.ctx, key)
			b.must(err)
			began := time.Now()
			r, err := archive.OpenAt(key, bytes.NewReader(data), int64(len(data)))
			b.must(err)
			for more := true; more; {
				batch.Reset()
				more, err = r.Fill(&batch, uint16(number), s.Topic, 256<<10)
				b.must(err)
			}
			took += time.Since(began)
			rows, size = rows+r.Stats().Records, size+int64(len(data))
			b.must(r.Close())
		}
	}
	return rows, size, took
}

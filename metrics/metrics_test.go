package metrics

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weftdata/weft/archiver"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/publisher"
	"github.com/weftdata/weft/spill"
	"github.com/weftdata/weft/streaming"
)

func metricsJob(t *testing.T) *operator.Job {
	t.Helper()
	spec, err := jobspec.Parse([]byte("version: weft/v1\njob: pay\nsession: {gap: 1h}\nsources:\n" +
		"  orders: {topic: pay.orders, format: json, time: at, step: event, keys: {order: id}}\n" +
		"  wallet: {topic: pay.wallet, format: json, time: at, step: event, keys: {order: id}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	job, err := operator.Compile(spec, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func metricsStatus() streaming.Status {
	s := streaming.Status{
		Epoch: 3, Sequence: 99, Checkpoint: 7, Watermark: 1_700_000_000_500_000,
		Core: correlate.Stats{OpenSessions: 11, OpenEvents: 12, OpenKeys: 13, Cells: 14, StateBytes: 15, Duplicates: 16, Folded: 17},
		Sources: []streaming.SourceStatus{
			{Records: 20, Bytes: 2000, Events: 21, Skipped: 22, Late: 23, Rejects: map[event.Reason]int64{event.ReasonSyntax: 24}},
			{Records: 30},
		},
		Partitions: []streaming.PartitionStatus{
			{Partition: streaming.Partition{Source: 0, Topic: "pay.orders", ID: 2}, Next: 40, End: 45},
			{Partition: streaming.Partition{Source: 1, Topic: "pay.wallet", ID: 0}, Next: 50, End: 49}, // told before it was read
		},
		Spill: spill.Status{Events: 71, Bytes: 72, Loads: 73},
		Saved: streaming.CheckpointStatus{Count: 60, Bytes: 61, Stall: 62 * time.Millisecond, Seconds: 0.75},
	}
	s.Latency.Add(4*time.Millisecond, 5)
	s.Latency.Add(300*time.Millisecond, 2)
	s.Latency.Add(time.Hour, 1)
	return s
}

// scrape returns what Prometheus would get.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	server := httptest.NewServer(m.Handler(false))
	defer server.Close()
	return get(t, server.URL+"/metrics", http.StatusOK)
}

func get(t *testing.T, url string, want int) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		t.Fatalf("%s: %s, want %d: %v\n%s", url, res.Status, want, err, text)
	}
	return string(text)
}

func TestMetricsShowTheStatus(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	m := New(func() time.Time { return now })
	m.Set(metricsJob(t), 4, 0, metricsStatus())
	m.SetArchiver(archiver.Status{Topic: "pay.orders", Partitions: []archiver.PartitionStatus{{ID: 1, Next: 5, End: 9, Records: 31, Bytes: 32, Files: 33,
		Deleted: 34, Waiting: 35, Committed: now}, {ID: 2}}})
	m.SetPublisher("pay", publisher.Status{Outlet: publisher.TopicOutlet, Published: 41, Deleted: 42, Repeats: 43, Foreign: 44, MapEpoch: 45, CaughtUp: now})
	m.SetPublisher("pay", publisher.Status{Outlet: publisher.ParquetOutlet, Published: 51})
	now = now.Add(2 * time.Second)
	text := scrape(t, m)
	const shard = `{job="pay",shard="0",version="4"`
	for _, want := range []string{
		`weft_epoch` + shard + `} 3`,
		`weft_changes_total` + shard + `} 99`,
		`weft_checkpoint_number` + shard + `} 7`,
		`weft_checkpoint_total` + shard + `} 60`,
		`weft_checkpoint_bytes` + shard + `} 61`,
		`weft_checkpoint_stall_seconds` + shard + `} 0.062`,
		`weft_checkpoint_duration_seconds` + shard + `} 0.75`,
		`weft_watermark_seconds` + shard + `} 1.7000000005e+09`,
		`weft_watermark_lag_seconds` + shard + `} 1.5`,
		`weft_status_age_seconds` + shard + `} 2`,
		`weft_open_sessions` + shard + `} 11`,
		`weft_open_events` + shard + `} 12`,
		`weft_open_keys` + shard + `} 13`,
		`weft_report_cells` + shard + `} 14`,
		`weft_state_bytes` + shard + `} 15`,
		`weft_duplicate_events_total` + shard + `} 16`,
		`weft_folded_events_total` + shard + `} 17`,
		`weft_records_total{job="pay",shard="0",source="orders",version="4"} 20`,
		`weft_records_total{job="pay",shard="0",source="wallet",version="4"} 30`,
		`weft_record_bytes_total{job="pay",shard="0",source="orders",version="4"} 2000`,
		`weft_events_total{job="pay",shard="0",source="orders",version="4"} 21`,
		`weft_skipped_events_total{job="pay",shard="0",source="orders",version="4"} 22`,
		`weft_late_events_total{job="pay",shard="0",source="orders",version="4"} 23`,
		`weft_rejects_total{job="pay",reason="syntax",shard="0",source="orders",version="4"} 24`,
		`weft_consumer_lag_records{job="pay",partition="2",shard="0",topic="pay.orders",version="4"} 5`,
		`weft_consumer_lag_records{job="pay",partition="0",shard="0",topic="pay.wallet",version="4"} 0`,
		`weft_consumer_offset{job="pay",partition="2",shard="0",topic="pay.orders",version="4"} 40`,
		`weft_end_to_end_latency_seconds_bucket` + shard + `,le="0.005"} 5`,
		`weft_end_to_end_latency_seconds_bucket` + shard + `,le="0.25"} 5`,
		`weft_end_to_end_latency_seconds_bucket` + shard + `,le="0.5"} 7`,
		`weft_end_to_end_latency_seconds_bucket` + shard + `,le="300"} 7`,
		`weft_end_to_end_latency_seconds_bucket` + shard + `,le="+Inf"} 8`,
		`weft_end_to_end_latency_seconds_count` + shard + `} 8`,
		`weft_end_to_end_latency_seconds_sum` + shard + `} 3600.62`,
		`weft_spilled_events` + shard + `} 71`,
		`weft_spilled_bytes` + shard + `} 72`,
		`weft_spill_loads_total` + shard + `} 73`,
		`weft_archive_lag_records{partition="1",topic="pay.orders"} 4`,
		`weft_archive_records_total{partition="1",topic="pay.orders"} 31`,
		`weft_archive_bytes_total{partition="1",topic="pay.orders"} 32`,
		`weft_archive_files_total{partition="1",topic="pay.orders"} 33`,
		`weft_archive_deleted_records_total{partition="1",topic="pay.orders"} 34`,
		`weft_archive_waiting_bytes{partition="1",topic="pay.orders"} 35`,
		`weft_archive_commit_age_seconds{partition="1",topic="pay.orders"} 2`,
		`weft_published_rows_total{job="pay",outlet="topic"} 41`,
		`weft_published_deletions_total{job="pay",outlet="topic"} 42`,
		`weft_published_repeats_total{job="pay",outlet="topic"} 43`,
		`weft_publisher_foreign_records_total{job="pay",outlet="topic"} 44`,
		`weft_publisher_map_epoch{job="pay",outlet="topic"} 45`,
		`weft_publisher_lag_seconds{job="pay",outlet="topic"} 2`,
		`weft_published_rows_total{job="pay",outlet="parquet"} 51`,
		`weft_build_info{`, `go_goroutines`, `process_cpu_seconds_total`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, weftLines(text))
		}
	}
	for _, not := range []string{`weft_archive_commit_age_seconds{partition="2"`, `weft_publisher_lag_seconds{job="pay",outlet="parquet"`} {
		if strings.Contains(text, not) {
			t.Errorf("%s is shown, which is not known yet", not)
		}
	}
}

// weftLines leaves out what the libraries show.
func weftLines(text string) (out string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "weft_") {
			out += line
		}
	}
	return out
}

func TestMetricsAreWellNamed(t *testing.T) {
	m := New(nil)
	m.Set(metricsJob(t), 1, 0, metricsStatus())
	m.Set(metricsJob(t), 1, 1, metricsStatus()) // a second shard must not clash
	m.SetArchiver(archiver.Status{Topic: "pay.orders", Partitions: []archiver.PartitionStatus{{ID: 1}, {ID: 2}}})
	m.SetPublisher("pay", publisher.Status{Outlet: publisher.TopicOutlet})
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if n, err := testutil.GatherAndCount(m.registry, "weft_epoch", "weft_records_total"); err != nil || n != 2+4 {
		t.Errorf("%d series of two shards: %v", n, err)
	}
}

func TestMetricsBeforeAndAfterAShard(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	m := New(func() time.Time { return now })
	job := metricsJob(t)
	s := metricsStatus()
	s.Watermark = event.MinTime
	s.Sources = append(s.Sources, streaming.SourceStatus{Records: 1}) // of a spec with more sources
	m.Set(job, 1, 0, s)
	if text := scrape(t, m); strings.Contains(text, "weft_watermark") || !strings.Contains(text, "weft_open_sessions") {
		t.Errorf("without a watermark:\n%s", weftLines(text))
	}
	now = now.Add(forgetAfter)
	if text := weftLines(scrape(t, m)); !strings.Contains(text, "weft_epoch") || !strings.Contains(text, "weft_status_age_seconds{job=\"pay\",shard=\"0\",version=\"1\"} 600") {
		t.Errorf("a shard that is silent is not shown:\n%s", text)
	}
	now = now.Add(time.Second)
	if text := weftLines(scrape(t, m)); strings.Contains(text, "weft_epoch") {
		t.Errorf("a shard that is gone is shown:\n%s", text)
	}
	var none *Metrics
	none.Set(job, 1, 0, s) // of a process that serves none
	none.SetArchiver(archiver.Status{})
	none.SetPublisher("pay", publisher.Status{})
}

func TestServe(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for _, addr := range []string{"0", ":0", "127.0.0.1:0"} {
		m, err := Serve(ctx, addr)
		if err != nil {
			t.Fatal(err)
		}
		at := m.Addr()
		if !strings.HasPrefix(at, "127.0.0.1:") {
			t.Errorf("%q listens at %s", addr, at)
		}
		m.Set(metricsJob(t), 1, 0, metricsStatus())
		for path, want := range map[string]string{"/metrics": "weft_epoch", "/healthz": "ok, 1 shards", "/debug/pprof/goroutine?debug=1": "goroutine"} {
			if text := get(t, "http://"+at+path, http.StatusOK); !strings.Contains(text, want) {
				t.Errorf("%s has no %q: %s", path, want, text)
			}
		}
		get(t, "http://"+at+"/nothing", http.StatusNotFound)
		if _, err := Serve(ctx, at); err == nil || !strings.Contains(err.Error(), "--metrics") {
			t.Errorf("a port in use: %v", err)
		}
		if addr == "127.0.0.1:0" {
			stop()
			for _, err := http.Get("http://" + at + "/healthz"); err == nil; _, err = http.Get("http://" + at + "/healthz") {
			}
		}
	}
}

func TestProfilesStayOnThisMachine(t *testing.T) {
	server := httptest.NewServer(New(nil).Handler(false))
	defer server.Close()
	get(t, server.URL+"/healthz", http.StatusOK)
	get(t, server.URL+"/debug/pprof/", http.StatusNotFound)
}

func TestServeRefuses(t *testing.T) {
	for _, addr := range []string{"x", "localhost", "127.0.0.1:70000", ":", "a:b:c"} {
		if _, err := Serve(t.Context(), addr); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", addr)) {
			t.Errorf("%q: %v", addr, err)
		}
	}
	if m, err := Serve(t.Context(), ""); err != nil || m.Addr() != "" {
		t.Errorf("no address: %v, %v", m, err)
	}
}

// Package metrics shows Prometheus what runs in a process: the shards of jobs, archivers and publishers.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weftdata/weft/archiver"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/publisher"
	"github.com/weftdata/weft/streaming"
)

// Metrics is a Prometheus collector over the last status of everything that runs in a process. It counts nothing itself,
// so a number that it shows is a number that the shard has. A nil *Metrics takes statuses and drops them.
type Metrics struct {
	registry *prometheus.Registry
	now      func() time.Time
	addr     string

	mu         sync.Mutex
	shards     map[shardID]shardStatus
	archivers  map[string]told[archiver.Status] // by topic
	publishers map[publisherID]told[publisher.Status]
}

type shardID struct {
	job            string
	version, shard int
}

type shardStatus struct {
	told[streaming.Status]
	sources []string // names, by number in the spec
}

type publisherID struct {
	job    string
	outlet publisher.Outlet
}

// forgetAfter is how long what was told is shown. What runs tells its status many times a second; what has been silent for as
// long as this has ended here, and another process may run it now.
const forgetAfter = 10 * time.Minute

// told is a status and when it was told.
type told[T any] struct {
	status T
	at     time.Time
}

// New returns metrics of nothing but the process itself. now tells the time; nil: the clock.
func New(now func() time.Time) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), now: now, shards: map[shardID]shardStatus{},
		archivers: map[string]told[archiver.Status]{}, publishers: map[publisherID]told[publisher.Status]{}}
	if m.now == nil {
		m.now = time.Now
	}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(), statusCollector{m})
	return m
}

// Addr returns the address that the metrics are served at, with the port that was chosen for 0; empty: they are not.
func (m *Metrics) Addr() string { return m.addr }

// Set keeps the status of a shard of a job's version.
func (m *Metrics) Set(job *operator.Job, version, shard int, s streaming.Status) {
	if m == nil {
		return
	}
	one := shardStatus{told: told[streaming.Status]{s, m.now()}}
	for i := range job.Spec.Sources {
		one.sources = append(one.sources, job.Spec.Sources[i].Name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shards[shardID{job.Spec.Job, version, shard}] = one
}

// SetArchiver keeps the status of a topic's archiver.
func (m *Metrics) SetArchiver(s archiver.Status) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.archivers[s.Topic] = told[archiver.Status]{s, m.now()}
}

// SetPublisher keeps the status of a job's publisher to one outlet.
func (m *Metrics) SetPublisher(job string, s publisher.Status) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.publishers[publisherID{job, s.Outlet}] = told[publisher.Status]{s, m.now()}
}

// Handler serves /metrics and /healthz, and the profiles of the process where they are asked for.
func (m *Metrics) Handler(profiles bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		fmt.Fprintf(w, "ok, %d shards\n", len(m.shards)) // a client that went away needs no answer
	})
	if profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// Serve serves new metrics at an address until ctx is done: "127.0.0.1:9464", or ":9464" or "9464", which mean this
// machine alone, or with a host that other machines can reach. The profiles, which show memory, are served on the loopback
// interface only. An empty address serves nothing.
func Serve(ctx context.Context, addr string) (*Metrics, error) {
	m := New(nil)
	if addr == "" {
		return m, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		host, port = "", addr
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n > 65535 {
		return nil, fmt.Errorf("metrics address %q: expected HOST:PORT, or PORT for this machine alone", addr)
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port))
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w; another process may have the port: choose one with --metrics", err)
	}
	at := l.Addr().(*net.TCPAddr)
	m.addr = at.String()
	server := &http.Server{Handler: m.Handler(at.IP.IsLoopback()), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	context.AfterFunc(ctx, func() { server.Close() }) // a scrape that is cut off is repeated
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("metrics are not served any more", "address", m.addr, "error", err)
		}
	}()
	return m, nil
}

// buildInfo is one gauge of value 1 whose labels say what runs.
func buildInfo() prometheus.Collector {
	labels := prometheus.Labels{"version": "unknown", "revision": "unknown", "goversion": "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		labels["version"], labels["goversion"] = cmp.Or(info.Main.Version, "(devel)"), info.GoVersion
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				labels["revision"] = s.Value
			}
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_build_info", Help: "What runs; always 1.", ConstLabels: labels})
	g.Set(1)
	return g
}

// shardFamily is one metric of a shard: its name, help, type and how to read it from a status.
type shardFamily struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*streaming.Status) float64
}

// ofShard lists the metrics with one value a shard.
func ofShard() []shardFamily {
	return []shardFamily{
		{"weft_epoch", "Number of the shard's run; it grows with every start.", gauge, func(s *streaming.Status) float64 { return float64(s.Epoch) }},
		{"weft_changes_total", "Number of the last change that is in the store. It goes on across runs.", counter, func(s *streaming.Status) float64 { return float64(s.Sequence) }},
		{"weft_duplicate_events_total", "Events dropped because their identity was known.", counter, func(s *streaming.Status) float64 { return float64(s.Core.Duplicates) }},
		{"weft_folded_events_total", "Events that repeat another one by their source's dedupe fields.", counter, func(s *streaming.Status) float64 { return float64(s.Core.Folded) }},
		{"weft_open_sessions", "Sessions that can still change.", gauge, func(s *streaming.Status) float64 { return float64(s.Core.OpenSessions) }},
		{"weft_open_events", "Events of sessions that can still change.", gauge, func(s *streaming.Status) float64 { return float64(s.Core.OpenEvents) }},
		{"weft_open_keys", "Key values that can still link.", gauge, func(s *streaming.Status) float64 { return float64(s.Core.OpenKeys) }},
		{"weft_report_cells", "Report cells that can still change.", gauge, func(s *streaming.Status) float64 { return float64(s.Core.Cells) }},
		{"weft_state_bytes", "Memory that the state takes.", gauge, func(s *streaming.Status) float64 { return float64(s.Core.StateBytes) }},
		{"weft_spilled_events", "Events of sessions that are on local disk.", gauge, func(s *streaming.Status) float64 { return float64(s.Spill.Events) }},
		{"weft_spilled_bytes", "Local disk that spilled state takes.", gauge, func(s *streaming.Status) float64 { return float64(s.Spill.Bytes) }},
		{"weft_spill_loads_total", "Components of sessions that came back from local disk.", counter, func(s *streaming.Status) float64 { return float64(s.Spill.Loads) }},
		{"weft_checkpoint_number", "Number of the last checkpoint that is safe.", gauge, func(s *streaming.Status) float64 { return float64(s.Checkpoint) }},
		{"weft_checkpoint_total", "Checkpoints saved.", counter, func(s *streaming.Status) float64 { return float64(s.Saved.Count) }},
		{"weft_checkpoint_bytes", "State that the last checkpoint wrote.", gauge, func(s *streaming.Status) float64 { return float64(s.Saved.Bytes) }},
		{"weft_checkpoint_stall_seconds", "How long the last checkpoint held up input.", gauge, func(s *streaming.Status) float64 { return s.Saved.Stall.Seconds() }},
		{"weft_checkpoint_duration_seconds", "How long the last checkpoint took, with its upload.", gauge, func(s *streaming.Status) float64 { return s.Saved.Seconds }},
	}
}

// sourceFamily is one counter of a source.
type sourceFamily struct {
	name, help string
	value      func(*streaming.SourceStatus) int64
}

func ofSource() []sourceFamily {
	return []sourceFamily{
		{"weft_records_total", "Records read.", func(s *streaming.SourceStatus) int64 { return s.Records }},
		{"weft_record_bytes_total", "Bytes of the records read.", func(s *streaming.SourceStatus) int64 { return s.Bytes }},
		{"weft_events_total", "Events decoded.", func(s *streaming.SourceStatus) int64 { return s.Events }},
		{"weft_skipped_events_total", "Events left out by the source's where.", func(s *streaming.SourceStatus) int64 { return s.Skipped }},
		{"weft_late_events_total", "Events that came too late to be linked.", func(s *streaming.SourceStatus) int64 { return s.Late }},
	}
}

// statusCollector shows what Metrics was told.
type statusCollector struct{ *Metrics }

// Describe sends nothing: what there is depends on what runs.
func (statusCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the metrics of all that was told lately.
func (c statusCollector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	now := c.now()
	old := func(at time.Time) bool { return now.Sub(at) > forgetAfter }
	maps.DeleteFunc(c.shards, func(_ shardID, s shardStatus) bool { return old(s.at) })
	maps.DeleteFunc(c.archivers, func(_ string, s told[archiver.Status]) bool { return old(s.at) })
	maps.DeleteFunc(c.publishers, func(_ publisherID, s told[publisher.Status]) bool { return old(s.at) })
	shards, archivers, publishers := maps.Clone(c.shards), maps.Clone(c.archivers), maps.Clone(c.publishers)
	c.mu.Unlock()
	for id, s := range shards {
		w := metricWriter{out, []string{"job", "version", "shard"}, []string{id.job, strconv.Itoa(id.version), strconv.Itoa(id.shard)}}
		w.shard(&s, now)
	}
	for topic, s := range archivers {
		metricWriter{out, []string{"topic"}, []string{topic}}.archiver(&s.status, now)
	}
	for id, s := range publishers {
		metricWriter{out, []string{"job", "outlet"}, []string{id.job, string(id.outlet)}}.publisher(&s.status, now)
	}
}

// metricWriter sends metrics that share labels.
type metricWriter struct {
	out           chan<- prometheus.Metric
	names, values []string
}

// desc describes a metric with more labels than the shared ones, given as name, value, name, value.
func (w metricWriter) desc(name, help string, more []string) (*prometheus.Desc, []string) {
	names, values := slices.Clone(w.names), slices.Clone(w.values)
	for i := 0; i < len(more); i += 2 {
		names, values = append(names, more[i]), append(values, more[i+1])
	}
	return prometheus.NewDesc(name, help, names, nil), values
}

func (w metricWriter) send(name, help string, kind prometheus.ValueType, v float64, more ...string) {
	d, labels := w.desc(name, help, more)
	w.out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
}

const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue

func (w metricWriter) shard(told *shardStatus, now time.Time) {
	s := &told.status
	for _, f := range ofShard() {
		w.send(f.name, f.help, f.kind, f.value(s))
	}
	w.send("weft_status_age_seconds", "How long ago the shard last told how far it is.", gauge, now.Sub(told.at).Seconds())
	if s.Watermark != event.MinTime { // before there is one, no number would be true
		seen := time.UnixMicro(int64(s.Watermark))
		w.send("weft_watermark_seconds", "How far the shard has seen event time, in seconds since 1970.", gauge, float64(s.Watermark)/1e6)
		w.send("weft_watermark_lag_seconds", "How far the watermark is behind the clock.", gauge, now.Sub(seen).Seconds())
	}
	for i := range min(len(s.Sources), len(told.sources)) {
		for _, f := range ofSource() {
			w.send(f.name, f.help, counter, float64(f.value(&s.Sources[i])), "source", told.sources[i])
		}
		for reason, n := range s.Sources[i].Rejects {
			w.send("weft_rejects_total", "Records that could not be decoded.", counter, float64(n), "source", told.sources[i], "reason", string(reason))
		}
	}
	for _, p := range s.Partitions {
		id := strconv.Itoa(int(p.ID))
		w.send("weft_consumer_lag_records", "Records of a partition that were not read yet.", gauge, float64(max(0, p.End-p.Next)), "topic", p.Topic, "partition", id)
		w.send("weft_consumer_offset", "Offset of a partition that is read next.", gauge, float64(p.Next), "topic", p.Topic, "partition", id)
	}
	d, labels := w.desc("weft_end_to_end_latency_seconds", "From a record's timestamp until its results can be read in the store, by record.", nil)
	count, buckets := cumulative(&s.Latency)
	w.out <- prometheus.MustNewConstHistogram(d, count, s.Latency.Sum.Seconds(), buckets, labels...)
}

func (w metricWriter) archiver(s *archiver.Status, now time.Time) {
	for i := range s.Partitions {
		p := &s.Partitions[i]
		id := strconv.Itoa(int(p.ID))
		send := func(name, help string, kind prometheus.ValueType, v float64) {
			w.send(name, help, kind, v, "partition", id)
		}
		send("weft_archive_lag_records", "Records of a partition that are not in the archive yet.", gauge, float64(max(0, p.End-p.Next)))
		send("weft_archive_records_total", "Records archived.", counter, float64(p.Records))
		send("weft_archive_bytes_total", "Bytes of the files written.", counter, float64(p.Bytes))
		send("weft_archive_files_total", "Files written.", counter, float64(p.Files))
		send("weft_archive_deleted_records_total", "Offsets that were gone before they were archived: they are lost.", counter, float64(p.Deleted))
		send("weft_archive_waiting_bytes", "Bytes of records that wait for their file.", gauge, float64(p.Waiting))
		if !p.Committed.IsZero() {
			send("weft_archive_commit_age_seconds", "How long ago the last manifest was written.", gauge, now.Sub(p.Committed).Seconds())
		}
	}
}

func (w metricWriter) publisher(s *publisher.Status, now time.Time) {
	w.send("weft_published_rows_total", "Rows published.", counter, float64(s.Published))
	w.send("weft_published_deletions_total", "Of them, of sessions that are gone.", counter, float64(s.Deleted))
	w.send("weft_published_repeats_total", "Rows left out because the outlet had them from before a crash.", counter, float64(s.Repeats))
	w.send("weft_publisher_foreign_records_total", "Records in the topic that no publisher wrote.", counter, float64(s.Foreign))
	w.send("weft_publisher_map_epoch", "Epoch of the serving map that what is published follows.", gauge, float64(s.MapEpoch))
	if !s.CaughtUp.IsZero() {
		w.send("weft_publisher_lag_seconds", "How long ago nothing more was left to publish.", gauge, now.Sub(s.CaughtUp).Seconds())
	}
}

// cumulative returns a histogram as Prometheus has it: each bucket counts what is in those before it, too.
func cumulative(h *streaming.Histogram) (count uint64, buckets map[float64]uint64) {
	buckets = map[float64]uint64{}
	for i, n := range h.Counts {
		count += uint64(n)
		if bounds := streaming.LatencyBounds(); i < len(bounds) {
			buckets[bounds[i].Seconds()] = count
		}
	}
	return count, buckets
}

package streaming

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/paygen"
)

// memoryLog holds records in memory, in partitions.
type memoryLog struct {
	data    map[Partition][][]byte
	at      event.Micros // timestamp of all records
	records int64
}

func (l *memoryLog) Identity(context.Context, string) (string, error) { return "", nil }

func (l *memoryLog) Bounds(_ context.Context, p Partition) (first, end int64, err error) {
	return 0, int64(len(l.data[p])), nil
}

func (l *memoryLog) Fetch(ctx context.Context, p Partition, next int64, b *event.Batch, maxBytes int, wait time.Duration) (after, end int64, err error) {
	all := l.data[p]
	for end = int64(len(all)); next < end && len(b.Data) < maxBytes; next++ {
		b.Add(event.Record{Source: uint16(p.Source), Partition: p.ID, Offset: next, Timestamp: l.at}, all[next])
	}
	if len(b.Records) == 0 {
		<-ctx.Done()
	}
	return next, end, ctx.Err()
}

// counter is a sink that takes everything and keeps nothing.
type counter struct{ writes, rows, tombstones, cells int }

func (c *counter) TakeEpoch(context.Context) (uint64, error) { return 1, nil }

func (c *counter) Write(_ context.Context, _ uint64, changes *Changes) error {
	c.writes++
	c.rows += len(changes.Sessions)
	c.tombstones += len(changes.Gone)
	c.cells += len(changes.Cells)
	return nil
}

func (c *counter) After(context.Context, uint64, Point) ([]correlate.ID, []correlate.Cell, error) {
	return nil, nil, nil
}

// memoryObjects keeps objects in memory.
type memoryObjects struct {
	mu   sync.Mutex
	list map[string][]byte
}

func (o *memoryObjects) Get(_ context.Context, key string) ([]byte, string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if data, ok := o.list[key]; ok {
		return data, "1", nil
	}
	return nil, "", ErrNoObject
}

func (o *memoryObjects) Put(_ context.Context, key string, data []byte, _ string) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list[key] = bytes.Clone(data)
	return "1", nil
}

func (o *memoryObjects) Delete(_ context.Context, key string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.list, key)
	return nil
}

func (o *memoryObjects) List(_ context.Context, prefix string) (keys []string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k := range o.list {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// generated is a payment environment in memory: the records of each source over some partitions.
func generated(b *testing.B, orders, partitions int) (*operator.Job, []Partition, *memoryLog) {
	b.Helper()
	files := map[string]*bytes.Buffer{}
	_, err := paygen.Generate(paygen.Config{
		Orders: orders, Seed: 7, Start: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), Span: 240 * time.Hour,
	}, func(name string) (io.WriteCloser, error) {
		files[name] = &bytes.Buffer{}
		return nopCloser{files[name]}, nil
	})
	if err != nil {
		b.Fatal(err)
	}
	spec, err := jobspec.Parse([]byte(strings.Replace(files[paygen.JobFile].String(), "\nshard_by: game\n", "\n", 1)))
	if err != nil {
		b.Fatal(err)
	}
	job, err := operator.Compile(spec, 7, nil)
	if err != nil {
		b.Fatal(err)
	}
	log := &memoryLog{data: map[Partition][][]byte{}, at: event.Micros(time.Now().UnixMicro())}
	var list []Partition
	for i, s := range spec.Sources {
		for id := range int32(partitions) {
			list = append(list, Partition{i, s.Topic, id})
		}
		for _, f := range paygen.Sources() {
			if f[0] != s.Name {
				continue
			}
			for line := range bytes.Lines(files[f[1]].Bytes()) {
				p := Partition{i, s.Topic, int32(log.records) % int32(partitions)}
				log.data[p] = append(log.data[p], bytes.TrimSuffix(line, []byte{'\n'}))
				log.records++
			}
		}
	}
	return job, list, log
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkShard runs a shard over a generated payment environment that lies in memory, to a sink that keeps nothing, with
// all that a run does besides: decoding, scenarios, reports, copies of rows, checkpoints.
func BenchmarkShard(b *testing.B) {
	job, partitions, log := generated(b, 60_000, 2)
	for b.Loop() {
		sink, objects := &counter{}, &memoryObjects{list: map[string][]byte{}}
		ctx, cancel := context.WithCancel(b.Context())
		var last Status
		begin, from := cpu(b), time.Now()
		err := Run(ctx, Config{
			Job: job, Name: "bench/1/0", Partitions: partitions, Log: log, Sink: sink, Objects: objects, CheckpointEvery: 5 * time.Second,
			Progress: func(s Status) {
				if last = s; s.Records == log.records {
					cancel()
				}
			},
		})
		cancel()
		if err != nil {
			b.Fatal(err)
		}
		n := float64(log.records)
		b.ReportMetric(n/(cpu(b)-begin).Seconds(), "records/cpu-s")
		b.ReportMetric(n/time.Since(from).Seconds(), "records/s")
		b.ReportMetric(float64(sink.rows)/n, "rows/record")
		b.ReportMetric(float64(last.Saved.Stall.Milliseconds()), "stall-ms")
		b.ReportMetric(float64(last.Saved.Bytes)/1e6, "part-MB")
	}
}

package archiver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/paygen"
)

const (
	orders     = 3000
	partitions = 3
)

// environment is a generated payment environment: as files, and as topics of several partitions.
type environment struct {
	job    *operator.Job
	inputs []backfill.Input
	logs   map[string]map[int32][]*archive.Record // by topic and partition
}

func generate(t *testing.T) *environment {
	t.Helper()
	dir := t.TempDir()
	_, err := paygen.Generate(paygen.Config{
		Orders: orders, Seed: 7, Start: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), Span: 90 * 24 * time.Hour,
	}, func(name string) (io.WriteCloser, error) { return os.Create(filepath.Join(dir, name)) })
	if err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile(filepath.Join(dir, paygen.JobFile))
	if err != nil {
		t.Fatal(err)
	}
	e := &environment{job: compile(t, string(spec)), logs: map[string]map[int32][]*archive.Record{}}
	topics := map[string]string{}
	for _, s := range e.job.Spec.Sources {
		topics[s.Name] = s.Topic
	}
	for _, s := range paygen.Sources() {
		path := filepath.Join(dir, s[1])
		e.inputs = append(e.inputs, backfill.Input{Source: s[0], Path: path})
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		topic := topics[s[0]]
		log := map[int32][]*archive.Record{}
		for line, value := range bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n")) {
			id := int32(line % partitions)
			// The origin makes it the event that the file has.
			log[id] = append(log[id], &archive.Record{Topic: topic, Partition: id, Offset: int64(len(log[id])), Timestamp: event.Micros(line), Value: value,
				Headers: []archive.Header{{Key: event.OriginHeader, Value: fmt.Appendf(nil, "%s/0/%d", topic, line)}}})
		}
		e.logs[topic] = log
	}
	return e
}

// archived returns what the archivers of all topics wrote, in files of about a size.
func (e *environment) archived(t *testing.T, fileBytes int64) objects {
	t.Helper()
	all := objects{}
	var mu sync.Mutex
	var runs sync.WaitGroup
	for name, log := range e.logs {
		runs.Go(func() {
			w := newWorld()
			w.logs = log
			h := &renamed{w.open(), name}
			cfg := Config{Topic: name, Jobs: []*operator.Job{e.job}, Log: h, Objects: h, FileBytes: fileBytes, FileAge: time.Second,
				FetchBytes: int(min(fileBytes, 64<<10)), FetchWait: 100 * time.Millisecond}
			if err := until(t, w, cfg); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for key, o := range w.objects {
				all[key] = o.data
			}
		})
	}
	runs.Wait()
	return all
}

// renamed is a handle of a world whose topic has another name.
type renamed struct {
	*handle
	name string
}

func (r *renamed) Topic(ctx context.Context, topic string) (string, []int32, error) {
	if topic != r.name {
		return "", nil, fmt.Errorf("topic %s", topic)
	}
	return r.handle.Topic(ctx, topic)
}

// objects implements backfill.Objects.
type objects map[string][]byte

func (o objects) Get(_ context.Context, key string) ([]byte, error) {
	data, ok := o[key]
	if !ok {
		return nil, ErrNoObject
	}
	return data, nil
}

func (o objects) GetRange(_ context.Context, key string, from, n int64) ([]byte, error) {
	data, ok := o[key]
	if !ok {
		return nil, ErrNoObject
	}
	return data[min(from, int64(len(data))):min(from+n, int64(len(data)))], nil
}

func (o objects) Keys(_ context.Context, prefix, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, key := range slices.Sorted(maps.Keys(o)) {
			if strings.HasPrefix(key, prefix) && key > after && !yield(key, nil) {
				return
			}
		}
	}
}

func (e *environment) archives(o backfill.Objects) (list []backfill.ArchiveInput) {
	for _, in := range e.inputs {
		list = append(list, backfill.ArchiveInput{Source: in.Source, Objects: o, SkipRejects: true})
	}
	return list
}

func replay(t *testing.T, cfg backfill.ReplayConfig) *backfill.Summary {
	t.Helper()
	cfg.TempDir = t.TempDir()
	s, err := backfill.Replay(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// counting counts the data files that are read.
type counting struct {
	objects
	mu    sync.Mutex // files are read ahead
	files map[string]bool
}

func (c *counting) GetRange(ctx context.Context, key string, from, n int64) ([]byte, error) {
	if from == 0 {
		c.mu.Lock()
		c.files[key] = true
		c.mu.Unlock()
	}
	return c.objects.GetRange(ctx, key, from, n)
}

// TestReplay archives a generated environment and replays the archive: the result must be that of its files, whole, by
// days, and up to exact offsets.
func TestReplay(t *testing.T) {
	e := generate(t)
	want := replay(t, backfill.ReplayConfig{Job: e.job, Inputs: e.inputs})
	if want.Sessions < orders || len(want.Rejects) == 0 {
		t.Fatalf("%d sessions, rejects %v: this proves little", want.Sessions, want.Rejects)
	}
	small, large := e.archived(t, 20<<10), e.archived(t, 64<<20)
	if len(small) < 5*len(large) {
		t.Fatalf("%d small objects, %d large ones", len(small), len(large))
	}
	for name, o := range map[string]objects{"small files": small, "large files": large} {
		got := replay(t, backfill.ReplayConfig{Job: e.job, Archives: e.archives(o)})
		if got.Digest != want.Digest || got.Events != want.Events || fmt.Sprint(got.Rejects) != fmt.Sprint(want.Rejects) {
			t.Errorf("%s: %d events, rejects %v, digest %s; want %d, %v, %s", name, got.Events, got.Rejects, got.Digest, want.Events, want.Rejects, want.Digest)
		}
	}
	spilled := replay(t, backfill.ReplayConfig{Job: e.job, Archives: e.archives(small), MemoryBytes: backfill.MemoryBytesMin})
	if spilled.Digest != want.Digest {
		t.Error("sorted on disk the result is another one")
	}
	t.Run("ranges", func(t *testing.T) { e.replayRanges(t, small, want) })
	t.Run("until", func(t *testing.T) { e.replayUntil(t, small) })
}

// replayRanges replays ranges: what is left out of the archive must not matter, and something must be left out.
func (e *environment) replayRanges(t *testing.T, o objects, whole *backfill.Summary) {
	start := event.Micros(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixMicro())
	sessions, skipped := int64(0), false
	ranges := []correlate.Range{{From: start - 1000*day, To: start + 10*day}, {From: start + 10*day, To: start + 60*day}, {From: start + 60*day, To: start + 1000*day}}
	for _, r := range ranges {
		want := replay(t, backfill.ReplayConfig{Job: e.job, Inputs: e.inputs, Range: r})
		reader := &counting{objects: o, files: map[string]bool{}}
		got := replay(t, backfill.ReplayConfig{Job: e.job, Archives: e.archives(reader), Range: r, Decoders: 1})
		if got.Digest != want.Digest {
			t.Errorf("range %v: digest %s, want %s", r, got.Digest, want.Digest)
		}
		files := 0
		for key := range o {
			if strings.HasSuffix(key, ".parquet") {
				files++
			}
		}
		skipped = skipped || len(reader.files) < files
		sessions += got.Sessions
	}
	if sessions != whole.Sessions {
		t.Errorf("the ranges have %d sessions together, all of time has %d", sessions, whole.Sessions)
	}
	if !skipped {
		t.Error("no file was left out")
	}
}

// replayUntil stops at exact offsets: the result must be that of files which end there.
func (e *environment) replayUntil(t *testing.T, o objects) {
	until := map[string]map[int32]int64{}
	cfg := backfill.ReplayConfig{Job: e.job}
	dir := t.TempDir()
	for i, in := range e.inputs {
		var topic string
		for _, s := range e.job.Spec.Sources {
			if s.Name == in.Source {
				topic = s.Topic
			}
		}
		until[topic] = map[int32]int64{}
		var lines [][]byte
		for id, log := range e.logs[topic] {
			if id == 1 && i == 0 {
				continue // nothing of a partition that is not named
			}
			n := len(log) * (i + 1) / (len(e.inputs) + 1)
			until[topic][id] = int64(n)
			for _, r := range log[:n] {
				_, at, ok := event.ParseOrigin(r.Headers[0].Value)
				if !ok {
					t.Fatalf("origin %s", r.Headers[0].Value)
				}
				for int64(len(lines)) <= at {
					lines = append(lines, nil) // an empty line is no record
				}
				lines[at] = r.Value
			}
		}
		path := filepath.Join(dir, in.Source)
		if err := os.WriteFile(path, bytes.Join(lines, []byte("\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.Inputs = append(cfg.Inputs, backfill.Input{Source: in.Source, Path: path})
	}
	want := replay(t, cfg)
	got := replay(t, backfill.ReplayConfig{Job: e.job, Archives: e.archives(o), Until: until})
	if got.Digest != want.Digest || got.Records != want.Records {
		t.Errorf("%d records, digest %s; want %d, %s", got.Records, got.Digest, want.Records, want.Digest)
	}
}

package backfill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
)

const archivedJob = `version: weft/v1
job: shop
sources:
  orders:
    topic: pay.orders
    format: json
    time: {field: t, layout: unix_s}
    step: {value: ordered}
    keys: {order: order}
session: {gap: 1m, max_span: 1h}
`

// bucket implements Objects.
type bucket map[string][]byte

var errNotThere = errors.New("no such object")

func (o bucket) Get(_ context.Context, key string) ([]byte, error) {
	data, ok := o[key]
	if !ok {
		return nil, errNotThere
	}
	return data, nil
}

func (o bucket) GetRange(_ context.Context, key string, from, n int64) ([]byte, error) {
	data, ok := o[key]
	if !ok {
		return nil, errNotThere
	}
	return data[min(from, int64(len(data))):min(from+n, int64(len(data)))], nil
}

func (o bucket) Keys(_ context.Context, prefix, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, key := range slices.Sorted(maps.Keys(o)) {
			if strings.HasPrefix(key, prefix) && key > after && !yield(key, nil) {
				return
			}
		}
	}
}

const firstTime = 1_767_225_600 // seconds

// put archives records [from, to) of a partition, an hour apart and each a session of its own, as one manifest.
func (o bucket) put(t *testing.T, job *operator.Job, partition int32, sequence, from, to int64) *archive.Manifest {
	t.Helper()
	var b bytes.Buffer
	w := archive.NewWriter(&b)
	for i := from; i < to; i++ {
		r := archive.Record{Topic: "pay.orders", Partition: partition, Offset: i, Timestamp: event.MinTime,
			Value: fmt.Appendf(nil, `{"t":%d,"order":"%d-%d"}`, firstTime+3600*i, partition, i)}
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	m := &archive.Manifest{Topic: "pay.orders", Partition: partition, Sequence: sequence, Nonce: "n", From: from, To: to, Records: to - from,
		Files: []archive.DataFile{{Key: archive.DataKey("pay.orders", partition, sequence, "n", 0), Bytes: int64(b.Len()), SHA256: hex.EncodeToString(sum[:]),
			Records: to - from, LeastOffset: from, GreatestOffset: to - 1,
			Times: []archive.Times{{Job: "shop", Source: "orders", Fingerprint: job.Fingerprint(0), Events: to - from,
				Event: &archive.Span{Least: at(from), Greatest: at(to - 1)}}}}}}
	o[m.Files[0].Key] = slices.Clone(b.Bytes())
	o.write(t, m)
	return m
}

// at is the time of a record in put.
func at(record int64) event.Micros { return event.Micros(firstTime+3600*record) * 1_000_000 }

func (o bucket) write(t *testing.T, m *archive.Manifest) {
	t.Helper()
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	o[archive.ManifestKey(m.Topic, m.Partition, m.Sequence)] = text
}

// shop is an archive of two partitions with three manifests of ten records each, and something that no manifest lists.
func shop(t *testing.T, job *operator.Job) bucket {
	t.Helper()
	o := bucket{}
	for partition := range int32(2) {
		for s := range int64(3) {
			o.put(t, job, partition, s, 10*s, 10*s+10)
		}
		o[archive.DataKey("pay.orders", partition, 1, "loser", 0)] = []byte("garbage")
		o[archive.DataKey("pay.orders", partition, 3, "n", 0)] = []byte("not committed yet")
	}
	o["archive/pay.orders/notes.txt"], o["archive/pay.orders2/00000/0000000005.json"] = []byte("x"), []byte("x")
	return o
}

func replayShop(t *testing.T, job *operator.Job, o bucket, change func(*ReplayConfig)) (*Summary, error) {
	t.Helper()
	cfg := ReplayConfig{Job: job, Archives: []ArchiveInput{{Source: "orders", Objects: o}}, TempDir: t.TempDir()}
	if change != nil {
		change(&cfg)
	}
	return Replay(t.Context(), cfg)
}

func TestArchiveInput(t *testing.T) {
	job := compile(t, archivedJob)
	until := func(offsets map[int32]int64) func(*ReplayConfig) {
		return func(c *ReplayConfig) { c.Until = map[string]map[int32]int64{"pay.orders": offsets} }
	}
	for name, c := range map[string]struct {
		change func(*ReplayConfig)
		want   int64 // sessions
		read   int   // data files
	}{
		"all":                        {nil, 60, 6},
		"until":                      {until(map[int32]int64{0: 15, 1: 30}), 45, 5},
		"until the end of a file":    {until(map[int32]int64{0: 10, 1: 20}), 30, 3},
		"nothing of a partition":     {until(map[int32]int64{0: 15}), 15, 2},
		"nothing of one that is not": {until(map[int32]int64{0: 1, 9: 0}), 1, 1},
		"a range":                    {func(c *ReplayConfig) { c.Range = correlate.Range{From: at(25), To: at(27)} }, 4, 2},
		"before all":                 {func(c *ReplayConfig) { c.Range = correlate.Range{From: at(-5000), To: at(-4000)} }, 0, 0},
		"excluded": {func(c *ReplayConfig) {
			c.Exclude = func(source uint16, partition int32, offset int64, index uint16) bool {
				return source == 0 && partition == 1 && offset%10 == 3 && index == 0
			}
		}, 57, 6},
	} {
		reader := &reading{bucket: shop(t, job), read: map[string]bool{}}
		s, err := replayShop(t, job, nil, func(cfg *ReplayConfig) {
			cfg.Archives[0].Objects = reader
			cfg.Decoders, cfg.BatchBytes = 2, 50
			if c.change != nil {
				c.change(cfg)
			}
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Sessions != c.want || len(reader.read) != c.read || s.Excluded != 60-57 && name == "excluded" {
			t.Errorf("%s: %d sessions of %d files, %d excluded; want %d of %d", name, s.Sessions, len(reader.read), s.Excluded, c.want, c.read)
		}
	}
}

// reading notes which data files are read.
type reading struct {
	bucket
	read map[string]bool
}

func (r *reading) GetRange(ctx context.Context, key string, from, n int64) ([]byte, error) {
	r.read[key] = true
	return r.bucket.GetRange(ctx, key, from, n)
}

// Statistics of another spec say nothing, and a file with rejects is read unless they do not matter.
func TestArchiveStatistics(t *testing.T) {
	job := compile(t, archivedJob)
	early := func(c *ReplayConfig) { c.Range = correlate.Range{From: at(-5000), To: at(-4000)} }
	for name, c := range map[string]struct {
		job    *operator.Job
		times  func(*archive.Times)
		change func(*ReplayConfig)
		read   int
	}{
		"applies":            {job, func(*archive.Times) {}, early, 5},
		"another spec":       {compile(t, strings.Replace(archivedJob, "value: ordered", "value: bought", 1)), func(*archive.Times) {}, early, 6},
		"another job":        {job, func(x *archive.Times) { x.Job = "other" }, early, 6},
		"rejects":            {job, func(x *archive.Times) { x.Rejects = 1 }, early, 6},
		"rejects, passed by": {job, func(x *archive.Times) { x.Rejects = 1 }, func(c *ReplayConfig) { early(c); c.Archives[0].SkipRejects = true }, 5},
		"no events":          {job, func(x *archive.Times) { x.Events, x.Event = 0, nil }, early, 5},
	} {
		o := shop(t, job)
		m := o.put(t, job, 0, 0, 0, 10)
		c.times(&m.Files[0].Times[0])
		o.write(t, m)
		reader := &reading{bucket: o, read: map[string]bool{}}
		_, err := replayShop(t, c.job, nil, func(cfg *ReplayConfig) { cfg.Archives[0].Objects = reader; c.change(cfg) })
		want := c.read - 5 // of the one file that differs
		if name == "another spec" {
			want = 6
		}
		if err != nil || len(reader.read) != want {
			t.Errorf("%s: %v, %d files were read, want %d", name, err, len(reader.read), want)
		}
	}
}

// Whatever is not as the manifests say ends the replay, and says which object it is.
func TestArchiveDamage(t *testing.T) {
	job := compile(t, archivedJob)
	data, manifest := archive.DataKey("pay.orders", 1, 1, "n", 0), archive.ManifestKey("pay.orders", 1, 1)
	for name, c := range map[string]struct {
		damage func(o bucket)
		change func(*ReplayConfig)
		want   []string
	}{
		"missing file":     {func(o bucket) { delete(o, data) }, nil, []string{data, manifest, "no such object"}},
		"short file":       {func(o bucket) { o[data] = o[data][:100] }, nil, []string{data, manifest, "it ends at byte 100 of"}},
		"changed file":     {func(o bucket) { o[data][50] ^= 1 }, nil, []string{data, manifest, "SHA-256"}},
		"missing manifest": {func(o bucket) { delete(o, manifest) }, nil, []string{manifest + " is missing", "00000002.json is there"}},
		"changed manifest": {func(o bucket) { o[manifest] = o[manifest][:200] }, nil, []string{manifest, "damaged"}},
		"missing head":     {func(o bucket) { delete(o, archive.ManifestKey("pay.orders", 1, 0)) }, nil, []string{"0000000000.json is missing"}},
		"hole":             {func(o bucket) { o.put(t, job, 1, 2, 21, 30) }, nil, []string{"0000000002.json starts at offset 21"}},
		"other rows": {func(o bucket) {
			m := o.put(t, job, 1, 1, 10, 20)
			short := bucket{}.put(t, job, 1, 1, 10, 19)
			other := bucket{}
			other.put(t, job, 1, 1, 10, 19)
			m.Files[0].SHA256, m.Files[0].Bytes = short.Files[0].SHA256, short.Files[0].Bytes
			o.write(t, m)
			o[data] = other[data]
		}, nil, []string{data, manifest, "it has 9 rows", "the manifest says 10"}},
		"no archive": {func(o bucket) { clear(o) }, nil, []string{"no archive of topic pay.orders", "start its archiver"}},
		"not so far": {func(bucket) {}, func(c *ReplayConfig) { c.Until = map[string]map[int32]int64{"pay.orders": {0: 30, 1: 31}} },
			[]string{"pay.orders/1 ends at offset 30, and offsets up to 31", "wait for its archiver"}},
		"no such partition": {func(bucket) {}, func(c *ReplayConfig) { c.Until = map[string]map[int32]int64{"pay.orders": {7: 1}} },
			[]string{"nothing of pay.orders/7"}},
	} {
		o := shop(t, job)
		c.damage(o)
		_, err := replayShop(t, job, o, c.change)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", name, err, want)
			}
		}
	}
}

// Lost records are told in the summary.
func TestArchiveLost(t *testing.T) {
	job := compile(t, archivedJob)
	o := shop(t, job)
	o.write(t, &archive.Manifest{Topic: "pay.orders", Partition: 0, Sequence: 3, Nonce: "n", From: 30, To: 37,
		Gaps: []archive.Gap{{From: 30, To: 37, Missing: 7, Reason: archive.Deleted}}})
	s, err := replayShop(t, job, o, nil)
	if err != nil || s.Inputs["orders"].Lost != 7 || s.Sessions != 60 {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestArchiveConfig(t *testing.T) {
	job := compile(t, archivedJob)
	for want, change := range map[string]func(*ReplayConfig){
		`until: no input has topic "pay.refunds"`:     func(c *ReplayConfig) { c.Until = map[string]map[int32]int64{"pay.refunds": {}} },
		"until: partition -1 of pay.orders, offset 3": func(c *ReplayConfig) { c.Until = map[string]map[int32]int64{"pay.orders": {-1: 3}} },
		"until: partition 1 of pay.orders, offset -3": func(c *ReplayConfig) { c.Until = map[string]map[int32]int64{"pay.orders": {1: -3}} },
		"no objects":                   func(c *ReplayConfig) { c.Archives[0].Objects = nil },
		"source orders has two inputs": func(c *ReplayConfig) { c.Inputs = []Input{{"orders", "x"}} },
		`job shop has no source "order"; did you mean orders`: func(c *ReplayConfig) { c.Archives[0].Source = "order" },
		"and no folder for them":                              func(c *ReplayConfig) { c.Format = results.JSONL },
		"no input":                                            func(c *ReplayConfig) { c.Archives = nil },
	} {
		_, err := replayShop(t, job, shop(t, job), change)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// Events that are excluded go with their values; those behind them keep theirs.
func TestExclude(t *testing.T) {
	job := compile(t, strings.Replace(archivedJob, "{order: order}", "{order: order, txn: txn}", 1))
	d, err := job.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	var b event.Batch
	for i, keys := range []string{`"order":"a"`, `"order":"b","txn":"c"`, `"order":"d","txn":"e"`, `"order":"g"`} {
		b.Add(event.Record{Offset: int64(i)}, fmt.Appendf(nil, `{"t":%d,%s}`, firstTime, keys))
	}
	d.Decode(&b)
	n := exclude(&b, func(_ uint16, _ int32, offset int64, _ uint16) bool { return offset == 0 || offset == 2 })
	var got []string
	for i := range b.Events {
		text := fmt.Sprint(b.Events[i].Offset, ":")
		for _, v := range b.ValuesOf(i) {
			text += string(b.Bytes(&v))
		}
		got = append(got, text)
	}
	if n != 2 || fmt.Sprint(got) != "[1:bc 3:g]" {
		t.Errorf("%d are out, %v are left", n, got)
	}
}

// Text ends at a line, as an archive does at an offset.
func TestUntilText(t *testing.T) {
	job := compile(t, archivedJob)
	path := filepath.Join(t.TempDir(), "orders.jsonl")
	var text []byte
	for i := range 50 {
		text = fmt.Appendf(text, "{\"t\":%d,\"order\":\"%d\"}\n", firstTime+3600*i, i)
	}
	writeFile(t, path, text)
	for until, want := range map[int64]int64{0: 0, 1: 1, 37: 37, 50: 50, 99: 50} {
		s, err := Replay(t.Context(), ReplayConfig{Job: job, Inputs: []Input{{"orders", path}}, BatchBytes: 100, TempDir: t.TempDir(),
			Until: map[string]map[int32]int64{"pay.orders": {0: until}}})
		if err != nil || s.Sessions != want || s.Records != want {
			t.Errorf("until %d: %+v, %v; want %d sessions", until, s, err, want)
		}
	}
}

package backfill

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/results"
)

const orders = 20_000

// spilledOrders are enough that their state does not fit into MemoryBytesMin.
const spilledOrders = 15_000

// seeds returns the seeds to draw. Each run with -long draws others than the last.
func seeds() []uint64 {
	list := []uint64{1, 2}
	if *long {
		for range 10 {
			list = append(list, rand.Uint64())
		}
	}
	return list
}

// TestGeneratedTruth replays generated environments: every session must be exactly as the generator planned it, with its
// scenarios, and every broken record must be rejected for its own reason.
func TestGeneratedTruth(t *testing.T) {
	for _, seed := range seeds() {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			e := generate(t, seed, orders, 72*time.Hour)
			s, out := e.replay(t, nil)
			e.score(t, filepath.Join(out, "sessions.jsonl"))
			e.sameRejects(t, filepath.Join(out, "rejects.jsonl"), s)
			if s.Late != 0 || s.Duplicates != 0 || s.SpilledBytes != 0 {
				t.Errorf("late %d, duplicates %d, spilled %d: expected none", s.Late, s.Duplicates, s.SpilledBytes)
			}
			var stored Summary
			if err := json.Unmarshal(readFile(t, filepath.Join(out, "summary.json")), &stored); err != nil {
				t.Fatal(err)
			}
			if stored.Digest != s.Digest || stored.Sessions != s.Sessions || stored.Records != s.Records {
				t.Errorf("summary.json holds %+v, Replay returned %+v", stored, s)
			}
		})
	}
}

func (e *environment) score(t *testing.T, sessions string) {
	t.Helper()
	truth, err := os.Open(e.path(paygen.TruthFile))
	if err != nil {
		t.Fatal(err)
	}
	defer truth.Close()
	found, err := os.Open(sessions)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	scores, err := paygen.Score(truth, func(yield func(*paygen.Session) error) error { return paygen.ReadSessions(found, yield) })
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		what string
		paygen.Match
	}{{"chains", scores.Chains}, {"recognizable chains", scores.Recognizable}, {"sessions with scenarios", scores.Sessions}} {
		t.Logf("%s: %d planned, %d found, %d right, precision %.6f, recall %.6f", m.what, m.Truth, m.Found, m.Right, m.Precision(), m.Recall())
	}
	if scores.Sessions.Truth < orders/2 {
		t.Errorf("the truth has %d sessions, so it proves little", scores.Sessions.Truth)
	}
	if !scores.Exact() {
		t.Errorf("the sessions are not what they must be:\n%s", strings.Join(scores.Differences, "\n"))
	}
}

// sameRejects compares rejects with the generator's, and the counts of the summary with both.
func (e *environment) sameRejects(t *testing.T, path string, s *Summary) {
	t.Helper()
	var want, got []string
	for _, line := range sortedLines(t, e.path(paygen.RejectsFile)) {
		var r struct {
			Source string
			Offset int64
			Reason string
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprint(r.Source, " ", r.Offset, " ", r.Reason))
	}
	counts := map[string]int64{}
	for r, err := range results.ReadRejects(path) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(r.Source, " ", r.Offset, " ", r.Reason))
		counts[r.Reason]++
		if len(r.Raw) == 0 {
			t.Errorf("the reject %s/%d has no raw bytes", r.Source, r.Offset)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) == 0 {
		t.Error("the truth has no rejects, so it proves nothing")
	}
	sameLines(t, "rejects", got, want)
	if fmt.Sprint(counts) != fmt.Sprint(s.Rejects) {
		t.Errorf("the summary counts rejects %v, the file has %v", s.Rejects, counts)
	}
}

// TestSameDigest replays one set of records in every way there is. Nothing but the set of events may matter.
func TestSameDigest(t *testing.T) {
	e := generate(t, 3, spilledOrders, 90*24*time.Hour) // long, so that a small part of the sessions is open at once
	one := e.unsharded(t)                               // what has no shard is no reject there, so its sessions are others
	wantSharded, _ := e.replay(t, nil)
	wantOne, _ := one.replay(t, nil)
	spilled := func(c *ReplayConfig) { c.MemoryBytes = MemoryBytesMin }
	gzipped, zstded := e.compressed(t, "gz"), e.compressed(t, "zst")
	archived := e.archived(t, nil)
	shuffled := e.archived(t, rand.New(rand.NewPCG(3, 3)))

	for _, c := range []struct {
		name    string
		e       *environment
		spills  bool
		repeats bool
		change  func(*ReplayConfig)
	}{
		{name: "parquet results", change: func(c *ReplayConfig) { c.Format = results.Parquet }},
		{name: "batches of 4 KiB", change: func(c *ReplayConfig) { c.BatchBytes = 4 << 10 }},
		{name: "batches of 1 MiB", change: func(c *ReplayConfig) { c.BatchBytes = 1 << 20 }},
		{name: "one decoder", change: func(c *ReplayConfig) { c.Decoders = 1 }},
		{name: "four decoders", change: func(c *ReplayConfig) { c.Decoders, c.BatchBytes = 4, 16<<10 }},
		{name: "inputs in reverse", change: func(c *ReplayConfig) { c.Inputs = slices.Clone(c.Inputs); slices.Reverse(c.Inputs) }},
		{name: "sorted on disk", change: spilled, spills: true},
		{name: "sorted on disk, one shard", e: one, change: spilled, spills: true},
		{name: "gzip", e: gzipped},
		{name: "zstd", e: zstded},
		{name: "archive", e: archived},
		{name: "archive, sorted on disk", e: archived, change: spilled, spills: true},
		{name: "shuffled and repeated archive", e: shuffled, repeats: true},
		{name: "shuffled and repeated archive, sorted on disk", e: shuffled, change: spilled, spills: true, repeats: true},
		{name: "all of time as a range", change: func(c *ReplayConfig) { c.Range = correlate.Range{From: -1 << 60, To: 1 << 60} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			from, want := e, wantSharded
			if c.e != nil {
				from = c.e
			}
			if from == one {
				want = wantOne
			}
			got, out := from.replay(t, c.change)
			for _, part := range []string{"sessions", "reports"} {
				if got.Parts[part] != want.Parts[part] {
					t.Errorf("digest of %s is %s, want %s", part, got.Parts[part], want.Parts[part])
				}
			}
			if got.Digest != want.Digest {
				t.Errorf("digest is %s, want %s", got.Digest, want.Digest)
			}
			if (got.SpilledBytes > 0) != c.spills {
				t.Errorf("%d bytes were sorted on disk", got.SpilledBytes)
			}
			if (got.Duplicates > 0) != c.repeats {
				t.Errorf("%d events had a known identity", got.Duplicates)
			}
			if got.Events != want.Events || got.Sessions != want.Sessions || got.Cells != want.Cells {
				t.Errorf("%d events, %d sessions, %d cells; want %d, %d, %d", got.Events, got.Sessions, got.Cells,
					want.Events, want.Sessions, want.Cells)
			}
			n := int64(0)
			for _, err := range results.ReadSessions(filepath.Join(out, "sessions."+formatIn(t, out))) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			if n != want.Sessions {
				t.Errorf("the file holds %d sessions, want %d", n, want.Sessions)
			}
		})
	}
}

// formatIn returns the extension of the results in a folder.
func formatIn(t *testing.T, out string) string {
	t.Helper()
	for _, name := range names(t, out) {
		if format, ok := strings.CutPrefix(name, "sessions."); ok {
			return format
		}
	}
	t.Fatalf("no sessions in %s", out)
	return ""
}

// compressed is the same environment with compressed inputs.
func (e *environment) compressed(t *testing.T, extension string) *environment {
	t.Helper()
	c := &environment{dir: e.dir, job: e.job}
	for _, in := range e.inputs {
		var b bytes.Buffer
		var w io.WriteCloser = gzip.NewWriter(&b)
		if extension == "zst" {
			z, err := zstd.NewWriter(&b)
			if err != nil {
				t.Fatal(err)
			}
			w = z
		}
		if _, err := w.Write(readFile(t, in.Path)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		path := e.path(in.Source + "." + extension)
		writeFile(t, path, b.Bytes())
		c.inputs = append(c.inputs, Input{in.Source, path})
	}
	return c
}

// archived is the same environment as Parquet files. With a source of randomness the records stand in another order at
// new positions of several partitions, as after a repartition; some of them twice; their origin is in a header.
func (e *environment) archived(t *testing.T, r *rand.Rand) *environment {
	t.Helper()
	c := &environment{dir: e.dir, job: e.job}
	for _, in := range e.inputs {
		var topic string
		for _, s := range e.job.Spec.Sources {
			if s.Name == in.Source {
				topic = s.Topic
			}
		}
		var records []archive.Record
		for i, line := range bytes.Split(readFile(t, in.Path), []byte("\n")) {
			if len(line) > 0 {
				records = append(records, archive.Record{Topic: topic, Offset: int64(i), Timestamp: event.MinTime, Value: line})
			}
		}
		if r != nil {
			records = repartition(records, r)
		}
		dir := filepath.Join(t.TempDir(), in.Source)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		writeArchive(t, filepath.Join(dir, "1.parquet"), records[:len(records)/2])
		writeArchive(t, filepath.Join(dir, "2.parquet"), records[len(records)/2:])
		c.inputs = append(c.inputs, Input{in.Source, dir})
	}
	return c
}

func repartition(records []archive.Record, r *rand.Rand) []archive.Record {
	for _, rec := range records {
		if r.IntN(10) == 0 {
			records = append(records, rec)
		}
	}
	r.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	for i := range records {
		origin := fmt.Sprintf("%s/%d/%d", records[i].Topic, records[i].Partition, records[i].Offset)
		records[i].Headers = []archive.Header{{Key: "trace", Value: []byte("x")}, {Key: archive.OriginHeader, Value: []byte(origin)}}
		records[i].Partition, records[i].Offset = int32(i%7), int64(i/7)+1_000_000
	}
	slices.SortFunc(records, func(a, b archive.Record) int {
		if a.Partition != b.Partition {
			return int(a.Partition - b.Partition)
		}
		return int(a.Offset - b.Offset)
	})
	return records
}

func writeArchive(t *testing.T, path string, records []archive.Record) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := archive.NewWriter(f)
	for i := range records {
		if err := w.Write(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

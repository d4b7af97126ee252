package backfill

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

// archiveEnvironment archives the text files of an environment, as an archiver cuts them.
func archiveEnvironment(t *testing.T, e *environment, perFile int) *memory {
	t.Helper()
	m := newMemory()
	for _, in := range e.inputs {
		number := slices.IndexFunc(e.job.Config.Topics, func(topic string) bool { return sourceNamed(e.job, topic) == in.Source })
		topic := e.job.Config.Topics[number]
		f, err := os.Open(in.Path)
		if err != nil {
			t.Fatal(err)
		}
		var records []archive.Record
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<24)
		for lines.Scan() {
			records = append(records, archive.Record{Topic: topic, Offset: int64(len(records)), Timestamp: event.MinTime, Value: slices.Clone(lines.Bytes())})
		}
		f.Close()
		for at, sequence := 0, int64(0); at < len(records); sequence++ {
			to := min(len(records), at+perFile)
			putArchive(t, m, topic, 0, sequence, records[at:to], func(records []archive.Record) []archive.Times { return timesOf(t, e.job, records) })
			at = to
		}
	}
	return m
}

func sourceNamed(job *operator.Job, topic string) string {
	for _, s := range job.Spec.Sources {
		if s.Topic == topic {
			return s.Name
		}
	}
	return ""
}

// TestBackfillOfPaymentsIsAReplay computes a payment environment in one chunk and in several, and compares it with a replay and
// with what a store serves once it is published.
func TestBackfillOfPaymentsIsAReplay(t *testing.T) {
	e := generate(t, 21, 3000, 72*time.Hour)
	want, _ := e.replay(t, nil)
	objects := archiveEnvironment(t, e, 700)
	start := event.Micros(time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC).UnixMicro())
	w := &world{t: t, objects: objects, new: e.job}
	for chunks, cuts := range map[int][]event.Micros{1: {start + 1}, 3: {
		event.Micros(time.Date(2026, 3, 2, 5, 0, 0, 0, time.UTC).UnixMicro()), event.Micros(time.Date(2026, 3, 3, 0, 0, 0, 1000, time.UTC).UnixMicro())}} {
		ref := PlanRef{e.job.Spec.Job, fmt.Sprint("whole-", chunks)}
		p, err := w.plan(func(in *PlanInput) {
			in.Ref, in.From, in.To, in.Slice = ref, start, start+event.Micros(90*24)*SliceDefault, 6*SliceDefault
		}, cuts...)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Chunks) != chunks {
			t.Fatalf("%d chunks, want %d", len(p.Chunks), chunks)
		}
		for chunk := range p.Chunks {
			for slice := range p.Chunks[chunk].Slices {
				r, err := RunSlice(t.Context(), SliceInput{Plan: ref, Chunk: chunk, Slice: slice, Job: e.job, Objects: objects, TempDir: t.TempDir()}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if r.Done {
					break
				}
			}
		}
		got, err := Total(t.Context(), objects, ref, e.job, TimeRange{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Digest != want.Digest || got.Sessions != want.Sessions || fmt.Sprint(got.Rejects) != fmt.Sprint(want.Rejects) {
			t.Errorf("%d chunks: %+v, want %s of %d sessions, rejects %v", chunks, got, want.Digest, want.Sessions, want.Rejects)
		}
		s := newStore(t)
		out, err := Publish(t.Context(), PublishInput{Plan: ref, Job: e.job, Objects: objects, Store: s, RequestID: "r", Actor: "me"})
		if err != nil {
			t.Fatal(err)
		}
		if out.Digest != want.Parts["sessions"] || out.Reports != want.Parts["reports"] || out.Copied != 0 {
			t.Errorf("%d chunks: published %+v, want %v", chunks, out, want.Parts)
		}
		c, err := Compare(t.Context(), CompareInput{Plan: ref, Job: e.job, Objects: objects, Store: s})
		if err != nil || !c.Equal() || c.Same != want.Sessions {
			t.Errorf("%d chunks: compared %+v, %v", chunks, c, err)
		}
	}
}

// TestSliceSortsItsTime gives a slice less memory than its events need at once: it sorts them by time, with the same result; then
// less than what is open needs: it holds that on disk. It gives up where not even the index of that fits.
func TestSliceSortsItsTime(t *testing.T) {
	job := compile(t, archivedJob)
	const n = 60_000
	var records []archive.Record
	for i := range int64(n) {
		records = append(records, archive.Record{Topic: "pay.orders", Offset: i, Timestamp: event.MinTime,
			Value: fmt.Appendf(nil, `{"t":%d,"order":"o%d"}`, firstTime+i, i)})
	}
	objects := newMemory()
	for at := 0; at < n; at += 1000 {
		putArchive(t, objects, "pay.orders", 0, int64(at/1000), records[at:at+1000], func(r []archive.Record) []archive.Times { return timesOf(t, job, r) })
	}
	run := func(id string, bytes int64) (SliceResult, error) {
		in := PlanInput{Ref: PlanRef{"shop", id}, Job: job, Version: 1, Objects: objects, From: event.Micros(firstTime) * 1e6,
			To: event.Micros(firstTime+n) * 1e6, Slice: 24 * SliceDefault}
		p, err := MakePlan(t.Context(), in)
		if err != nil || p.Totals.Slices != 1 {
			t.Fatalf("%v, %v", p, err)
		}
		return RunSlice(t.Context(), SliceInput{Plan: in.Ref, Job: job, Objects: objects, MemoryBytes: bytes, TempDir: t.TempDir()}, nil)
	}
	whole, err := run("whole", 1<<30)
	if err != nil || whole.SortedBytes != 0 || whole.Sessions != n {
		t.Fatalf("%+v, %v", whole, err)
	}
	cut, err := run("cut", 5<<20)
	if err != nil || cut.SortedBytes == 0 || cut.Digest != whole.Digest || cut.Sessions != n || cut.Records != n || cut.Events != n {
		t.Errorf("%+v, %v; want %s", cut, err, whole.Digest)
	}
	disk, err := run("disk", 1<<18)
	if err != nil || disk.SortedBytes == 0 || disk.Digest != whole.Digest || disk.Sessions != n || disk.Events != n {
		t.Errorf("%+v, %v; want %s", disk, err, whole.Digest)
	}
	if _, err := run("little", 1<<10); !errors.Is(err, ErrOpenState) || !strings.Contains(err.Error(), "allow more memory") {
		t.Errorf("with too little memory: %v", err)
	}
}

// TestSlicesSpill computes random worlds by slices of which some hold on disk what is open, at random: together they give what linking
// everything at once gives.
func TestSlicesSpill(t *testing.T) {
	spilled, kept := 0, 0
	for _, seed := range rounds(12) {
		w := newWorld(t, seed)
		want := compute(t, w.new, w.records)
		p, err := w.plan(func(in *PlanInput) {
			in.From, in.To = second(-100), second(w.span+100)
			in.Slice = event.Micros(20+w.r.IntN(90)) * 1_000_000
		}, second(w.r.Int64N(w.span)))
		if err == nil {
			err = w.runAll(p, func(in *SliceInput) {
				if w.r.IntN(2) == 0 {
					in.spillEvery = 1 + w.r.IntN(100)
				}
			})
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		staged, err := stagedSlices(t.Context(), w.objects, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range staged {
			if m.Spilled == nil {
				continue
			}
			spilled++
			for _, key := range m.Spilled.Keys() { // what a slice before put there
				if !strings.HasPrefix(key, p.Ref.slicePrefix(m.Chunk, m.Slice)) {
					kept++
					break
				}
			}
		}
		got, err := Total(t.Context(), w.objects, p.Ref, w.new, TimeRange{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if digest, _ := digestOf(want.digest); got.Digest != digest || got.Sessions != int64(len(want.rows)) {
			t.Errorf("seed %d: %d sessions, want %d; %s\n%+v", seed, got.Sessions, len(want.rows), p, p.Chunks)
		}
	}
	if t.Logf("%d slices ended with state on disk, %d of them with some of a slice before", spilled, kept); spilled < 20 || kept < 2 {
		t.Error("that proves little")
	}
}

// TestStagedBytesAreEqual runs a backfill twice: what it stages is the same, byte by byte.
func TestStagedBytesAreEqual(t *testing.T) {
	var want []string
	for round := range 2 {
		w := newWorld(t, 8)
		p, err := w.plan(func(in *PlanInput) { in.Slice = 60_000_000 })
		if err == nil {
			err = w.runAll(p, func(in *SliceInput) {
				in.Decoders = 1 + 3*round
				if in.Slice > 1 {
					in.spillEvery = 20
				}
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		staged, err := stagedSlices(t.Context(), w.objects, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range staged {
			got = append(got, m.Rows.SHA256, m.Sessions.SHA256, m.Rejected.SHA256)
		}
		if want == nil {
			want = got
		}
		if !slices.Equal(got, want) || len(got) < 20 {
			t.Errorf("%d objects, not all as the first time", len(got))
		}
	}
}

// TestRowsRoundTrip writes rows with what is awkward and reads them back.
func TestRowsRoundTrip(t *testing.T) {
	w := newWorld(t, 1)
	cfg := &w.new.Config
	row := &correlate.Row{ID: correlate.ID{1, 2}, Start: -5, End: math.MaxInt64 / 4, Count: 1 << 40,
		Keys:   []correlate.RowKey{{Kind: 0, Value: []byte{0xff, 0}, First: -5}, {Kind: 1, Value: nil, First: 7}},
		Fields: make([]correlate.RowField, len(cfg.Fields)), Hits: []correlate.Hit{{Scenario: 1, DecidedAt: 9}},
		Events:    []correlate.RowEvent{{Time: -5, Offset: math.MaxInt64, Partition: math.MaxInt32, Index: math.MaxUint16, Source: 1, Step: 2}},
		StepNames: []string{"", "x", "paid\xfe"}}
	row.Fields[0] = correlate.RowField{Present: true, Text: []byte("\xff"), First: -5}
	row.Fields[1] = correlate.RowField{Present: true, Int: math.MinInt64, First: 3}
	reject := event.Reject{Record: event.Record{Source: 1, Partition: 3, Offset: 4, Timestamp: event.MinTime}, Reason: event.ReasonSyntax, Detail: "why"}
	f, err := newStagedFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	out, err := newRowsWriter(f.w)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{out.session(row), out.reject([]byte("raw"), &reject), out.session(row), out.close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ref, err := f.put(t.Context(), w.objects, "rows")
	if err != nil {
		t.Fatal(err)
	}
	d := correlate.NewDigester(cfg)
	want, sessions, rejects := d.RowDigest(row), 0, 0
	for got, err := range readRows(t.Context(), w.objects, ref, cfg) {
		switch {
		case err != nil:
			t.Fatal(err)
		case got.session != nil:
			sessions++
			if d.RowDigest(got.session) != want || got.session.Keys[1].First != 7 || got.session.Fields[1].First != 3 {
				t.Errorf("read %+v", got.session)
			}
		default:
			rejects++
			if x := got.reject; x.Record != reject.Record || x.Reason != reject.Reason || x.Detail != "why" || string(x.Raw) != "raw" {
				t.Errorf("read %+v", x)
			}
		}
	}
	if sessions != 2 || rejects != 1 {
		t.Errorf("%d sessions, %d rejects", sessions, rejects)
	}
}

// FuzzRow reads rows that may be anything: it ends with a row or an error, and a row that is written again reads the same.
func FuzzRow(f *testing.F) {
	cfg := &correlate.Config{Topics: []string{"a", "b"}, Kinds: []correlate.Kind{{Name: "k"}}, Fields: []correlate.Field{{Name: "f"}, {Name: "g", Int: true}},
		Scenarios: []correlate.Scenario{{Name: "s"}}}
	f.Add([]byte{sessionRow, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 2, 1, 0, 1, 'x', 0, 1, 1, 'y', 0, 0, 0, 1, 0, 2, 1, 0, 0, 0, 0, 0, 1, 'p'})
	f.Add([]byte{rejectRow, 1, 2, 4, 6, 1, 'r', 1, 'd', 1, 'x'})
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newRowDecoder(cfg)
		d.buf = data
		row, err := d.row()
		if err != nil || row.session == nil {
			return
		}
		one := correlate.NewDigester(cfg).RowDigest(row.session)
		w := &rowsWriter{}
		w.buf = w.appendSession(nil, row.session)
		again := newRowDecoder(cfg)
		again.buf = slices.Clone(w.buf)
		second, err := again.row()
		if err != nil || correlate.NewDigester(cfg).RowDigest(second.session) != one {
			t.Fatalf("%x reads otherwise when it is written again: %v", data, err)
		}
	})
}

package backfill

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
)

// lakeColumns say of each source of testdata/lake what its tables call the paths.
var lakeColumns = map[string]string{
	"client": `{partition: part, offset: line}`,
	"orders": `{partition: part, offset: line, columns: {ts: created_at, order.id: order_id, user.id: uid}}`,
	"wallet": `{partition: part, offset: line, columns: {notify_time: notified, trade_no: txn}}`,
}

// withTables gives sources of a spec their parquet, and leaves out all others.
func (e *environment) withTables(t *testing.T, parquet map[string]string) *environment {
	t.Helper()
	text := string(e.job.Spec.Text)
	for name, p := range parquet {
		before := text
		if text = strings.Replace(text, "\n    topic: pay."+name+"\n", "\n    topic: pay."+name+"\n    parquet: "+p+"\n", 1); text == before {
			t.Fatalf("the spec has no source %s", name)
		}
	}
	return &environment{e.dir, compile(t, text), e.inputs}
}

// TestLakeIsTheText replays typed tables that DuckDB wrote of JSON records: nested, in lists, in folders by a column, times of a zone and
// of none. Records know their places, so that all is the same but the lines that are no JSON.
func TestLakeIsTheText(t *testing.T) {
	e := generate(t, 3, 150, 12*time.Hour)
	var inputs []Input
	for _, in := range e.inputs {
		if lakeColumns[in.Source] != "" {
			inputs = append(inputs, in)
		}
	}
	want, _ := e.replay(t, func(c *ReplayConfig) { c.Inputs = inputs })
	lake := e.withTables(t, lakeColumns)
	for i := range inputs {
		inputs[i].Path = filepath.Join("testdata/lake", inputs[i].Source)
	}
	got, _ := lake.replay(t, func(c *ReplayConfig) { c.Inputs = inputs })
	if got.Digest != want.Digest || got.Sessions != want.Sessions || got.Sessions < 100 {
		t.Errorf("tables give %d sessions, %s; the text gives %d, %s", got.Sessions, got.Digest, want.Sessions, want.Digest)
	}
	t.Logf("%d rows, %d sessions", got.Records, got.Sessions)

	// Without places the identities are others, and so are the sessions' ids, but all else is the same.
	bare := map[string]string{}
	for name, p := range lakeColumns {
		if bare[name] = strings.Replace(p, "partition: part, offset: line", "", 1); bare[name] == "{}" {
			bare[name] = "{before: '2100-01-01T00:00:00Z'}"
		}
		bare[name] = strings.Replace(bare[name], "{, ", "{", 1)
	}
	other, _ := e.withTables(t, bare).replay(t, func(c *ReplayConfig) { c.Inputs = inputs })
	if other.Digest == want.Digest || other.Sessions != want.Sessions || fmt.Sprint(other.Scenarios) != fmt.Sprint(want.Scenarios) {
		t.Errorf("without places: %d sessions, %v; want %d, %v", other.Sessions, other.Scenarios, want.Sessions, want.Scenarios)
	}
}

// remove deletes the objects below a prefix.
func (m *memory) remove(prefix string) {
	for _, key := range m.keys(prefix) {
		delete(m.objects, key)
	}
}

// lakeObjects puts a folder into an object store.
func lakeObjects(t *testing.T, m *memory, folder, prefix string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(folder), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data := readFile(t, filepath.Join(folder, path))
		_, err = m.Put(t.Context(), prefix+path, bytes.NewReader(data), int64(len(data)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// compute runs a backfill of all time, and returns what is staged.
func computeAll(t *testing.T, e *environment, objects ObjectStore, id string, change func(*PlanInput)) (*Totals, *Plan, error) {
	t.Helper()
	start := event.Micros(time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC).UnixMicro())
	in := PlanInput{Ref: PlanRef{e.job.Spec.Job, id}, Job: e.job, Version: 1, Checksum: "c", Objects: objects, From: start, To: start + event.Micros(90*24)*SliceDefault,
		Slice: SliceDefault, Parallelism: 2}
	if change != nil {
		change(&in)
	}
	p, err := MakePlan(t.Context(), in)
	if err != nil {
		return nil, nil, err
	}
	for chunk := range p.Chunks {
		for slice := range p.Chunks[chunk].Slices {
			r, err := RunSlice(t.Context(), SliceInput{Plan: in.Ref, Chunk: chunk, Slice: slice, Job: e.job, Objects: objects, TempDir: t.TempDir()}, nil)
			if err != nil {
				return nil, p, err
			}
			if r.Done {
				break
			}
		}
	}
	got, err := Total(context.Background(), objects, in.Ref, e.job, TimeRange{})
	return got, p, err
}

// TestBackfillOfALake runs slices over tables in an object store, beside an archive that has the rest.
func TestBackfillOfALake(t *testing.T) {
	e := generate(t, 3, 150, 12*time.Hour)
	want, _ := e.replay(t, nil)
	paths := map[string]string{}
	for name, p := range lakeColumns {
		paths[name] = strings.Replace(p, "{", "{path: lake/"+name+"/, ", 1)
	}
	lake := e.withTables(t, paths)
	objects := archiveEnvironment(t, e, 50)
	for name := range lakeColumns {
		objects.remove("archive/pay." + name + "/")
		lakeObjects(t, objects, "testdata/lake/"+name, "lake/"+name+"/")
	}
	objects.objects["lake/orders/_SUCCESS"] = nil
	objects.objects["lake/orders/_temporary/0/x.parquet"] = []byte("half")
	got, p, err := computeAll(t, lake, objects, "lake", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != want.Digest || got.Sessions != want.Sessions {
		t.Errorf("%d sessions, %s; the text gives %d, %s", got.Sessions, got.Digest, want.Sessions, want.Digest)
	}
	if p.Totals.Slices < 10 {
		t.Errorf("only %d slices: %v", p.Totals.Slices, p.Notes)
	}
	// Orders tell their times in the footers; a list's members do not.
	files := 0
	for chunk := range p.Chunks {
		for slice := range p.Chunks[chunk].Slices {
			s, err := LoadSlice(t.Context(), objects, p, chunk, slice)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range s.Files {
				if f.Table != nil && strings.HasPrefix(f.Key, "lake/orders/") && !f.hasTimes() {
					t.Errorf("the times of %s are not known", f.Key)
				}
				files++
			}
		}
	}
	if files == 0 {
		t.Error("no files")
	}

	// An object that is written again meanwhile is noticed, and a damaged one is named.
	key := "lake/orders/app=inkblade/data_0.parquet"
	data := objects.objects[key]
	for what, with := range map[string][]byte{
		"somebody wrote it again": append(bytes.Clone(data[:len(data)-1]), data[len(data)-1]),
		"is cut off":              data[:len(data)-9],
		"damaged":                 append(append(bytes.Clone(data[:8]), bytes.Repeat([]byte{0xff}, 64)...), data[72:]...),
	} {
		objects.objects[key] = data
		planned := strings.HasPrefix(what, "somebody")
		if !planned {
			objects.objects[key] = with
		}
		_, _, err := computeAll(t, lake, &rewriting{objects, key, planned}, "again-"+what[:2], nil)
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", what, err)
		}
	}
	objects.objects[key] = data
}

func (f *PlannedFile) hasTimes() bool { return f.Least != always.From }

// rewriting is an object store in which an object changes once slices ask for it.
type rewriting struct {
	*memory
	key  string
	does bool
}

func (r *rewriting) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (objstore.Info, error) {
	if r.does && strings.HasSuffix(key, "/plan.json") {
		r.memory.objects[r.key] = append(bytes.Clone(r.memory.objects[r.key]), "PAR1"...)
	}
	return r.memory.PutIfAbsent(ctx, key, data, nonce)
}

// TestTablesOfWholeRecords backfills tables whose rows are the records of every format, with half of the time in the archive.
func TestTablesOfWholeRecords(t *testing.T) {
	e := generate(t, 8, 300, 24*time.Hour)
	want, _ := e.replay(t, nil)
	parquetOf := map[string]string{}
	objects := archiveEnvironment(t, e, 100)
	half := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	type row struct {
		Part int32  `parquet:"part"`
		Line int64  `parquet:"line"`
		Text []byte `parquet:"text,zstd"`
	}
	for _, in := range e.inputs {
		parquetOf[in.Source] = "{path: lake/" + in.Source + "/, value: text, partition: part, offset: line}"
		var file bytes.Buffer
		w := parquet.NewGenericWriter[row](&file, parquet.MaxRowsPerRowGroup(64))
		for i, line := range bytes.SplitAfter(bytes.TrimSuffix(readFile(t, in.Path), []byte("\n")), []byte("\n")) {
			if _, err := w.Write([]row{{0, int64(i), bytes.TrimSuffix(line, []byte("\n"))}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		objects.objects["lake/"+in.Source+"/year=2026/all.parquet"] = file.Bytes()
	}
	// The archive and the lake have the same records: each counts once.
	got, _, err := computeAll(t, e.withTables(t, parquetOf), objects, "both", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != want.Digest || got.Sessions != want.Sessions {
		t.Errorf("both: %d sessions, %s, %v; want %d, %s, %v", got.Sessions, got.Digest, got.Rejects, want.Sessions, want.Digest, want.Rejects)
	}
	for _, in := range e.inputs {
		objects.remove("archive/pay." + in.Source + "/")
	}
	got, _, err = computeAll(t, e.withTables(t, parquetOf), objects, "lake", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != want.Digest || fmt.Sprint(got.Rejects) != fmt.Sprint(want.Rejects) {
		t.Errorf("lake: %d sessions, %s, %v; want %d, %s, %v", got.Sessions, got.Digest, got.Rejects, want.Sessions, want.Digest, want.Rejects)
	}
	// Before a time only, which the replay of the text ends at too.
	for name, p := range parquetOf {
		parquetOf[name] = strings.Replace(p, "{", "{before: '"+half.Format(time.RFC3339)+"', ", 1)
	}
	first, _, err := computeAll(t, e.withTables(t, parquetOf), objects, "half", nil)
	if err != nil {
		t.Fatal(err)
	}
	if first.Sessions == 0 || first.Sessions >= want.Sessions*3/4 {
		t.Errorf("before %v: %d sessions of %d", half, first.Sessions, want.Sessions)
	}
}

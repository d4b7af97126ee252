package columns

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// everything is a source that reads all columns of the files in testdata.
const everything = `
version: weft/v1
job: lake
sources:
  orders:
    format: json
    time: {field: at, layout: LAYOUT}
    step: event
    keys: {order: order.id, receipt: receipt}
    fields:
      amount: amount
      price: {path: price, scale: 2}
      big: big
      ratio: ratio
      flag: flag
      day: day
      user: customer.id
      name: customer.name
      age: customer.age
      sku: "items[].sku"
      first: items.0.n
      attrs: attrs.k0
      more: attrs.k1
    parquet:
      columns: {at: created_at, order.id: order_id}
session: {gap: 1h}
`

func mapping(t testing.TB, text string) (*Mapping, *jobspec.Spec) {
	t.Helper()
	spec, err := jobspec.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(spec, 0)
	if err != nil {
		t.Fatal(err)
	}
	return m, spec
}

// read returns the records of a file below testdata.
func read(t testing.TB, m *Mapping, folder, below string, fill int) (records []string, b *event.Batch, groups []Group) {
	t.Helper()
	file, err := os.Open(filepath.Join("testdata", folder, below))
	if err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(below, below, file, info.Size(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	groups = f.Groups()
	b = new(event.Batch)
	for g := range groups {
		rows, err := f.Rows(g, 0)
		if err != nil {
			t.Fatal(err)
		}
		for more := true; more; {
			if more, err = rows.Fill(b, fill); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(b.Rejects) > 0 {
		t.Fatalf("%d rejects", len(b.Rejects))
	}
	for _, r := range b.Records {
		records = append(records, string(b.Raw(r)))
	}
	return records, b, groups
}

// wanted reads what the rows must become, in the names of the source's paths.
func wanted(t *testing.T) (list []map[string]any) {
	t.Helper()
	data, err := os.ReadFile("testdata/rows.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		r := parse(t, s.Text())
		r["order"] = map[string]any{"id": r["order_id"]}
		r["at"] = r["created_at"]
		delete(r, "order_id")
		delete(r, "created_at")
		for _, name := range []string{"price", "big"} { // exact numbers, which JSON of Python does not write
			if text, ok := r[name].(string); ok {
				r[name] = json.Number(text)
			}
		}
		list = append(list, r)
	}
	return list
}

func parse(t *testing.T, text string) (r map[string]any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

// tidy makes records comparable: numbers by value, and no difference between a member that is null and one that is not there.
func tidy(v any) any {
	switch x := v.(type) {
	case json.Number:
		f, _ := x.Float64()
		if text := fmt.Sprint(f); !strings.Contains(string(x), ".") || len(x) < 15 {
			return text
		}
		return string(x)
	case map[string]any:
		out := map[string]any{}
		for k, v := range x {
			if v != nil {
				out[k] = tidy(v)
			}
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i := range x {
			out[i] = tidy(x[i])
		}
		return out
	}
	return v
}

// TestFilesOfOthers reads the files that DuckDB, pyarrow and Spark wrote of the same rows.
func TestFilesOfOthers(t *testing.T) {
	want := wanted(t)
	m, _ := mapping(t, strings.Replace(everything, "LAYOUT", "unix_us", 1))
	for _, file := range []string{"pyarrow_snappy", "pyarrow_zstd_v2", "pyarrow_plain", "pyarrow_delta", "pyarrow_int96", "pyarrow_millis",
		"duckdb_snappy", "duckdb_zstd", "duckdb_v2", "spark_snappy/part-00000", "spark_zstd/part-00000", "spark_legacy/part-00000"} {
		for _, fill := range []int{1, 1000, 1 << 20} {
			got, _, _ := read(t, m, "", file+".parquet", fill)
			if len(got) != len(want) {
				t.Fatalf("%s: %d rows, want %d", file, len(got), len(want))
			}
			for i := range got {
				w := maps.Clone(want[i])
				if file == "pyarrow_millis" { // it has no more than that
					n, _ := w["at"].(json.Number).Int64()
					w["at"] = json.Number(fmt.Sprint(n / 1000 * 1000))
				}
				if g, w := tidy(parse(t, got[i])), tidy(w); !reflect.DeepEqual(g, w) {
					t.Fatalf("%s, row %d:\ngot  %v\nwant %v\ntext %s", file, i, g, w, got[i])
				}
			}
		}
	}
	if got, _, groups := read(t, m, "", "pyarrow_empty.parquet", 1); len(got) > 0 || len(groups) > 1 {
		t.Errorf("an empty file has %d rows", len(got))
	}
}

// TestGroupsKnowTheirTimes compares the statistics of row groups with their rows.
func TestGroupsKnowTheirTimes(t *testing.T) {
	for file, known := range map[string]bool{"pyarrow_snappy": true, "pyarrow_millis": true, "duckdb_zstd": true, "spark_zstd/part-00000": true,
		"spark_legacy/part-00000": false, "pyarrow_int96": false} {
		m, _ := mapping(t, strings.Replace(everything, "LAYOUT", "unix_us", 1))
		got, _, groups := read(t, m, "", file+".parquet", 1<<20)
		for i, g := range groups {
			if g.Known != known {
				t.Errorf("%s, group %d: known is %v", file, i, g.Known)
			}
			least, greatest := event.MaxTime, event.MinTime
			for _, text := range got[:g.Rows] {
				n, _ := parse(t, text)["at"].(json.Number).Int64()
				least, greatest = min(least, event.Micros(n)), max(greatest, event.Micros(n))
			}
			got = got[g.Rows:]
			if known && (g.Least != least || g.Greatest != greatest) {
				t.Errorf("%s, group %d: %d to %d, its rows are of %d to %d", file, i, g.Least, g.Greatest, least, greatest)
			}
			if g.Bytes <= 0 {
				t.Errorf("%s, group %d has %d bytes", file, i, g.Bytes)
			}
		}
		if len(got) > 0 {
			t.Errorf("%s: %d rows are in no group", file, len(got))
		}
	}
}

// TestFolders reads a column from the names of folders.
func TestFolders(t *testing.T) {
	m, _ := mapping(t, strings.Replace(everything, "LAYOUT", "unix_us", 1))
	n := 0
	places := map[[2]int64]bool{}
	err := fs.WalkDir(os.DirFS("testdata/duckdb_hive"), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !Wanted(path) {
			t.Errorf("%s is not wanted", path)
		}
		records, b, _ := read(t, m, "duckdb_hive", path, 1<<20)
		for i, text := range records {
			r := parse(t, text)
			amount, _ := r["amount"].(json.Number).Int64()
			if want := fmt.Sprintf("%s/%d", []string{"ordered", "paid", "delivered"}[(amount-600)%3], amount%2); r["event"] != want {
				t.Errorf("%s: event %v, want %s", path, r["event"], want)
			}
			place := [2]int64{int64(b.Records[i].Partition), b.Records[i].Offset}
			if places[place] || place[0] >= 0 || place[1] < 0 {
				t.Errorf("%s: partition %d, offset %d", path, place[0], place[1])
			}
			places[place] = true
			n++
		}
		return nil
	})
	if err != nil || n != 100 {
		t.Errorf("%d rows, %v", n, err)
	}
}

// TestWanted tells data from what writers keep beside it.
func TestWanted(t *testing.T) {
	for file, want := range map[string]bool{
		"part-0.parquet": true, "dt=2026-03-01/part-0.snappy.parquet": true, "a/b.parq": true, "_dt=1/x.pq": true,
		"_SUCCESS": false, ".part-0.parquet.crc": false, "_temporary/0/part-0.parquet": false, "_metadata": false, "_common.parquet": false, "x.csv": false, "a//b.parquet": false,
	} {
		if Wanted(file) != want {
			t.Errorf("%s: %v", file, !want)
		}
	}
}

// TestLayoutsOfTimes writes typed times as every layout of a spec reads them.
func TestLayoutsOfTimes(t *testing.T) {
	for layout, want := range map[string]string{
		"unix_s": `1772359201.000038`, "unix_ms": `1772359201000.038`, "unix_us": `1772359201000038`, "unix_ns": `1772359201000038000`,
		"rfc3339": `"2026-03-01T10:00:01.000038Z"`, "2006-01-02 15:04:05.000000": `"2026-03-01 10:00:01.000038"`,
	} {
		m, _ := mapping(t, strings.Replace(everything, "LAYOUT", "'"+layout+"'", 1))
		for _, file := range []string{"duckdb_v2.parquet", "spark_legacy/part-00000.parquet", "pyarrow_int96.parquet"} {
			got, _, _ := read(t, m, "", file, 1<<20)
			if !strings.Contains(got[1], `"at":`+want+`,`) {
				t.Errorf("%s, layout %s: want %s in %s", file, layout, want, got[1])
			}
		}
	}
	// A clock on a wall is in the source's zone.
	m, _ := mapping(t, strings.Replace(everything, "layout: LAYOUT", "layout: unix_us, zone: Asia/Shanghai", 1))
	local, _, _ := read(t, m, "", "duckdb_v2.parquet", 1<<20)
	utc, _, _ := read(t, m, "", "spark_snappy/part-00000.parquet", 1<<20)
	if want := `"at":1772330401000038,`; !strings.Contains(local[1], want) {
		t.Errorf("want %s in %s", want, local[1])
	}
	if want := `"at":1772359201000038,`; !strings.Contains(utc[1], want) {
		t.Errorf("want %s in %s", want, utc[1])
	}
}

// TestWholeRecords takes records and their places from columns.
func TestWholeRecords(t *testing.T) {
	text := `
version: weft/v1
job: lake
sources:
  orders:
    format: logfmt
    time: at
    step: event
    keys: {order: order}
    parquet: {value: order_id, partition: amount, offset: amount}
session: {gap: 1h}
`
	m, _ := mapping(t, text)
	got, b, _ := read(t, m, "", "duckdb_zstd.parquet", 1<<20)
	for i, text := range got {
		if r := b.Records[i]; text != fmt.Sprintf("A%04d", i) || r.Partition != int32(600+i) || r.Offset != int64(600+i) {
			t.Errorf("row %d: %q at %d/%d", i, text, r.Partition, r.Offset)
		}
	}
	if len(got) != 100 || !m.Whole() {
		t.Errorf("%d rows", len(got))
	}
}

// TestProblemsOfFiles names what is wrong, and where.
func TestProblemsOfFiles(t *testing.T) {
	open := func(text, below string) error {
		m, _ := mapping(t, text)
		data, err := os.ReadFile(filepath.Join("testdata", below))
		if err != nil {
			t.Fatal(err)
		}
		f, err := Open("lake/"+below, below, bytes.NewReader(data), int64(len(data)), m, nil)
		if err == nil {
			_, err = f.Rows(0, 0)
		}
		return err
	}
	unix := strings.Replace(everything, "LAYOUT", "unix_us", 1)
	for _, c := range []struct{ text, file, want string }{
		{unix, "pyarrow_gzip.parquet", "is compressed with GZIP; expected zstd, snappy or none"},
		{unix, "make.py", "read lake/make.py: is no Parquet file"},
		{strings.Replace(unix, "at: created_at", "at: created", 1), "duckdb_v2.parquet", "read lake/duckdb_v2.parquet: it has no column for the event time, at"},
		{strings.Replace(unix, "columns:", "partition: event\n      offset: amount\n      columns:", 1), "duckdb_v2.parquet", `column "event" has type STRING; expected INT32`},
		{strings.Replace(unix, "columns:", "partition: amount\n      offset: off\n      columns:", 1), "duckdb_v2.parquet", `it has no plain column "off"`},
	} {
		if err := open(c.text, c.file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\nwant %s", c.file, err, c.want)
		}
	}
	for text, want := range map[string]string{
		strings.Replace(unix, "order.id: order_id", "order.nr: order_id", 1):                      `parquet.columns names "order.nr", which the source has no use for`,
		strings.Replace(unix, "order.id: order_id", `items.0.n: others, "items[].sku": items`, 1): "name one column for all",
	} {
		spec, err := jobspec.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(spec, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

// TestColumnsThatNoFileHas are told with the nearest name.
func TestColumnsThatNoFileHas(t *testing.T) {
	m, _ := mapping(t, strings.NewReplacer("LAYOUT", "unix_us", "order_id", "order_i").Replace(everything))
	var seen Seen
	data, err := os.ReadFile("testdata/duckdb_v2.parquet")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open("x", "x", bytes.NewReader(data), int64(len(data)), m, &seen); err != nil {
		t.Fatal(err)
	}
	if err := seen.Check(m); err == nil || !strings.Contains(err.Error(), `"order_i", which no file has; did you mean order_id?`) {
		t.Error(err)
	}
	if m, _ = mapping(t, strings.Replace(everything, "LAYOUT", "unix_us", 1)); true {
		seen = Seen{}
		Open("x", "x", bytes.NewReader(data), int64(len(data)), m, &seen)
		if err := seen.Check(m); err != nil {
			t.Error(err)
		}
	}
}

// FuzzFile opens damaged files: they are read or refused, and never crash.
func FuzzFile(f *testing.F) {
	for _, name := range []string{"duckdb_v2.parquet", "pyarrow_plain.parquet", "spark_legacy/part-00000.parquet", "pyarrow_zstd_v2.parquet"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	m, _ := mapping(f, strings.Replace(everything, "LAYOUT", "unix_us", 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Open("x", "x", bytes.NewReader(data), int64(len(data)), m, nil)
		if err != nil {
			return
		}
		for g := range file.Groups() {
			rows, err := file.Rows(g, 0)
			if err != nil {
				return
			}
			var b event.Batch
			for more := true; more && err == nil && len(b.Data) < 1<<20; {
				more, err = rows.Fill(&b, 1<<10)
			}
			for _, r := range b.Records {
				if err == nil && !json.Valid(bytes.ToValidUTF8(b.Raw(r), nil)) && !slices.Contains(b.Raw(r), 0x7f) {
					t.Errorf("row is no JSON: %q", b.Raw(r))
				}
			}
		}
	})
}

func BenchmarkRows(b *testing.B) {
	m, _ := mapping(b, strings.Replace(everything, "LAYOUT", "unix_us", 1))
	data, err := os.ReadFile("testdata/pyarrow_snappy.parquet")
	if err != nil {
		b.Fatal(err)
	}
	rows := 0
	var batch event.Batch
	for b.Loop() {
		f, err := Open("x", "x", bytes.NewReader(data), int64(len(data)), m, nil)
		if err != nil {
			b.Fatal(err)
		}
		for g := range f.Groups() {
			r, err := f.Rows(g, 0)
			if err != nil {
				b.Fatal(err)
			}
			batch.Reset()
			if _, err := r.Fill(&batch, 1<<20); err != nil {
				b.Fatal(err)
			}
			rows += len(batch.Records)
		}
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}

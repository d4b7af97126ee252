package archive

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"

	"github.com/weftdata/weft/event"
)

// pack writes records to a file of a folder.
func pack(t testing.TB, path string, records ...Record) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := NewWriter(f)
	for i := range records {
		if err := w.Write(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// readAll returns the records as "partition/offset@timestamp:value" and the rejects as "partition/offset!reason!detail!raw".
func readAll(path, topic string, maxBytes int) (got []string, stats Stats, err error) {
	r, err := Open(path)
	if err != nil {
		return nil, Stats{}, err
	}
	defer r.Close()
	b := new(event.Batch)
	for more := true; more && err == nil; {
		b.Reset()
		more, err = r.Fill(b, 3, topic, maxBytes)
		for _, rec := range b.Records {
			if rec.Source != 3 {
				return nil, Stats{}, fmt.Errorf("record %+v", rec)
			}
			at := fmt.Sprint(int64(rec.Timestamp))
			if rec.Timestamp == event.MinTime {
				at = "none"
			}
			got = append(got, fmt.Sprintf("%d/%d@%s:%s", rec.Partition, rec.Offset, at, b.Raw(rec)))
		}
		for _, rej := range b.Rejects {
			got = append(got, fmt.Sprintf("%d/%d!%s!%s!%s", rej.Record.Partition, rej.Record.Offset, rej.Reason, rej.Detail, b.Raw(rej.Record)))
		}
	}
	return got, r.Stats(), err
}

func origin(text string) []Header {
	return []Header{{Key: "trace", Value: []byte("t")}, {Key: OriginHeader, Value: []byte(text)}, {Key: "nothing"}}
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.parquet")
	pack(t, path,
		Record{Topic: "other", Offset: 1, Timestamp: 5, Value: []byte("o")},
		Record{Topic: "pay", Partition: 1, Offset: 7, Timestamp: 1_000_001, Key: []byte("k"), Value: []byte("a")},
		Record{Topic: "pay", Partition: 1, Offset: 8, Timestamp: event.MinTime, Value: []byte("b"), Headers: []Header{{Key: "x", Value: []byte("y")}}},
		Record{Topic: "pay", Partition: 1, Offset: 9, Timestamp: -3, Value: []byte("c"), Headers: origin("pay/12/9000000000")},
		Record{Topic: "pay", Partition: 2, Offset: 1, Timestamp: 3},
		Record{Topic: "pay", Partition: 2, Offset: 2, Timestamp: 3, Value: []byte{}},
		Record{Topic: "pay", Partition: 2, Offset: 3, Timestamp: 4, Value: []byte("d"), Headers: origin("pay/1")},
		Record{Topic: "pay", Partition: 2, Offset: 4, Timestamp: 4, Value: []byte("e"), Headers: []Header{{Key: OriginHeader}}},
	)
	want := []string{"1/7@1000001:a", "1/8@none:b", "12/9000000000@-3:c", "2/2@3:",
		`2/3!syntax!header weft-origin is "pay/1"; expected topic/partition/offset!d`,
		`2/4!syntax!header weft-origin is ""; expected topic/partition/offset!e`}
	for _, maxBytes := range []int{1, 3, 1 << 20} {
		got, stats, err := readAll(path, "pay", maxBytes)
		slices.Sort(got)
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("by %d: got\n%s\n%v; want\n%s", maxBytes, strings.Join(got, "\n"), err, strings.Join(want, "\n"))
		}
		if want := (Stats{Records: 6, OtherTopics: 1, NullValues: 1}); stats != want {
			t.Errorf("by %d: got %+v, want %+v", maxBytes, stats, want)
		}
	}
}

// Many pages and row groups, headers on some rows only: every record must come once, in order, whatever is asked for.
func TestManyRowGroups(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.parquet")
	value := bytes.Repeat([]byte("x"), 10_000)
	var records []Record
	var want []string
	for i := range 15_000 {
		r := Record{Topic: "pay", Offset: int64(2 * i), Timestamp: event.Micros(i), Value: append(fmt.Appendf(nil, "%d:", i), value...)}
		offset := r.Offset
		for j := range i % 4 {
			r.Headers = append(r.Headers, Header{Key: "h", Value: fmt.Append(nil, j)})
		}
		if i%5 == 0 {
			r.Headers = append(r.Headers, Header{Key: OriginHeader, Value: fmt.Appendf(nil, "pay/0/%d", 1e6+i)})
			offset = 1e6 + int64(i)
		}
		records = append(records, r)
		want = append(want, fmt.Sprintf("0/%d@%d:%s", offset, i, r.Value))
	}
	pack(t, path, records...)
	got, _, err := readAll(path, "pay", 1<<20)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %d records, %v; want %d", len(got), err, len(want))
	}
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if groups := len(r.file.RowGroups()); groups != 3 {
		t.Errorf("150 MB make %d row groups, want 3", groups)
	}
}

func TestTooLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.parquet")
	pack(t, path, Record{Topic: "pay", Value: bytes.Repeat([]byte("x"), event.RecordBytesMax+1)}, Record{Topic: "pay", Offset: 1, Value: []byte("b")})
	got, _, err := readAll(path, "pay", 1<<20)
	want := "0/0!too_long!the value has 16777217 bytes; at most 16777216 are allowed!" + strings.Repeat("x", RejectBytes)
	if err != nil || len(got) != 2 || got[1] != want {
		t.Errorf("got %.200q, %v", got, err)
	}
}

// A header without a value is malformed, whatever the rows before it had.
func TestOriginWithoutValue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.parquet")
	pack(t, path, Record{Topic: "pay", Offset: 1, Value: []byte("a"), Headers: []Header{{Key: OriginHeader}}})
	got, _, err := readAll(path, "pay", 1<<20)
	if err != nil || len(got) != 1 || !strings.HasPrefix(got[0], "0/1!syntax!") {
		t.Errorf("got %q, %v; want one reject", got, err)
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	pack(t, filepath.Join(dir, "2.parquet"), Record{Topic: "pay", Offset: 2, Timestamp: 1, Value: []byte("b")})
	pack(t, filepath.Join(dir, "1.parquet"), Record{Topic: "pay", Offset: 1, Timestamp: 1, Value: []byte("a")})
	pack(t, filepath.Join(dir, "3.parquet"))
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("no parquet"), 0o600); err != nil {
		t.Fatal(err)
	}
	for folder, r := range map[string]Record{"00000": {Offset: 7, Value: []byte("c")}, "00001": {Partition: 1, Offset: 9, Value: []byte("d")},
		"other": {Value: []byte("not of a partition")}, "0000x": {Value: []byte("nor this")}} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
		r.Topic, r.Timestamp = "pay", 1
		pack(t, filepath.Join(dir, folder, "5.parquet"), r)
	}
	got, _, err := readAll(dir, "pay", 1<<20)
	if want := []string{"0/7@1:c", "1/9@1:d", "0/1@1:a", "0/2@1:b"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// Files of other writers: other order of columns, other units, no headers, headers as a map.
func TestOtherWriters(t *testing.T) {
	dir := t.TempDir()
	type row struct {
		Value     []byte            `parquet:"value,snappy"`
		Extra     float64           `parquet:"extra"`
		Offset    int64             `parquet:"offset,dict"`
		Timestamp int64             `parquet:"timestamp,timestamp(millisecond)"`
		Partition int64             `parquet:"partition"`
		Topic     string            `parquet:"topic"`
		Headers   map[string]string `parquet:"headers"`
	}
	path := filepath.Join(dir, "other.parquet")
	if err := parquet.WriteFile(path, []row{{Value: []byte("a"), Offset: 5, Timestamp: 7, Partition: 1, Topic: "pay"},
		{Value: []byte("b"), Offset: 6, Timestamp: 8, Topic: "pay", Headers: map[string]string{OriginHeader: "pay/3/4"}}}); err != nil {
		t.Fatal(err)
	}
	got, _, err := readAll(path, "pay", 1<<20)
	if want := []string{"1/5@7000:a", "3/4@8000:b"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestErrors(t *testing.T) {
	t.Chdir(t.TempDir())
	pack(t, "good.parquet", Record{Topic: "pay", Value: bytes.Repeat([]byte("payment"), 1000)})
	good, err := os.ReadFile("good.parquet")
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(good)
	for i := range 60 {
		damaged[4+i] = 0xff
	}
	footer := slices.Clone(good)
	footer[len(footer)-8]++
	huge := slices.Clone(good)
	huge[len(huge)-5] = 0x7f
	type noTopic struct {
		Offset int64 `parquet:"offset"`
	}
	type badType struct {
		Topic int64 `parquet:"topic"`
	}
	for name, err := range map[string]error{
		"damaged.parquet": os.WriteFile("damaged.parquet", damaged, 0o600),
		"footer.parquet":  os.WriteFile("footer.parquet", footer, 0o600),
		"huge.parquet":    os.WriteFile("huge.parquet", huge, 0o600),
		"cut.parquet":     os.WriteFile("cut.parquet", good[:len(good)-100], 0o600),
		"short.parquet":   os.WriteFile("short.parquet", []byte("PAR1"), 0o600),
		"empty.parquet":   os.WriteFile("empty.parquet", nil, 0o600),
		"text.parquet":    os.WriteFile("text.parquet", []byte(`{"order":1}`), 0o600),
		"columns.parquet": parquet.WriteFile("columns.parquet", []noTopic{{1}}),
		"types.parquet":   parquet.WriteFile("types.parquet", []badType{{1}}),
		"gzip.parquet":    parquet.WriteFile("gzip.parquet", []layout{{Topic: "pay"}}, parquet.Compression(&parquet.Gzip)),
		"folder":          os.Mkdir("folder", 0o700),
	} {
		if err != nil {
			t.Fatal(name, err)
		}
	}
	tests := []struct{ path, want string }{
		{"missing.parquet", "stat missing.parquet: no such file or directory"},
		{"folder", "read folder: the folder has no *.parquet files"},
		{"empty.parquet", "read empty.parquet: is empty; expected a Parquet file"},
		{"text.parquet", `read text.parquet: is no Parquet file: it starts with "{\"or"`},
		{"short.parquet", "read short.parquet: is cut off: it has 4 bytes"},
		{"cut.parquet", "read cut.parquet: is cut off: the footer of a Parquet file is missing"},
		{"huge.parquet", "read huge.parquet: is damaged: its footer claims"},
		{"footer.parquet", "read footer.parquet: is damaged: footer: "},
		{"columns.parquet", `read columns.parquet: it has no column "topic"; expected topic, partition, offset, timestamp, key, value, headers`},
		{"types.parquet", `read types.parquet: column "topic" has type INT64; expected BYTE_ARRAY`},
		{"gzip.parquet", `read gzip.parquet: row group 0: column ["topic"] is compressed with GZIP; expected zstd, snappy or none`},
		{"damaged.parquet", `read damaged.parquet: row group 0: is damaged: column ["topic"], page at byte 4: `},
	}
	for _, tt := range tests {
		_, _, err := readAll(tt.path, "pay", 1<<20)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", tt.path, err, tt.want)
		}
	}
}

func TestWriteOrder(t *testing.T) {
	w := NewWriter(new(bytes.Buffer))
	if err := w.Write(&Record{Topic: "pay", Partition: 1, Offset: 5}); err != nil {
		t.Fatal(err)
	}
	err := w.Write(&Record{Topic: "pay", Partition: 1, Offset: 5})
	if want := "write archive: record pay/1/5 comes after pay/1/5: expected order of topic, partition, offset"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed.parquet")
	pack(f, path, Record{Topic: "other", Value: []byte("o")}, Record{Topic: "pay", Timestamp: 1, Value: []byte("abcabcabc"), Headers: origin("pay/1/2")},
		Record{Topic: "pay", Offset: 1, Key: []byte("k"), Value: []byte("b")})
	seed, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "fuzz.parquet")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		readAll(path, "pay", 1<<16)
	})
}

func BenchmarkFill(b *testing.B) {
	path := filepath.Join(b.TempDir(), "a.parquet")
	var records []Record
	bytesTotal := 0
	for i := range 200_000 {
		value := fmt.Appendf(nil, `{"event":"paid","ts":%d,"order":{"id":"ORD%015d","amount":%d,"receipt":"%016x"},"user":{"id":"u%07d"},"app":"g%d","padding":%q}`,
			1_767_225_600_000+i, i*7919, i%97*100, i*104729, i%1_000_003, i%5, strings.Repeat("pad ", 35))
		bytesTotal += len(value)
		records = append(records, Record{Topic: "pay", Offset: int64(i), Timestamp: event.Micros(i * 1000), Value: value})
	}
	pack(b, path, records...)
	b.SetBytes(int64(bytesTotal))
	b.ReportAllocs()
	batch := new(event.Batch)
	for b.Loop() {
		r, err := Open(path)
		if err != nil {
			b.Fatal(err)
		}
		for more := true; more; {
			batch.Reset()
			if more, err = r.Fill(batch, 0, "pay", 1<<20); err != nil {
				b.Fatal(err)
			}
		}
		r.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(records)), "ns/record")
}

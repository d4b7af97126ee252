package lines

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/weftdata/weft/event"
)

func zipped(t testing.TB, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, text []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(text, nil)
}

// readAll returns the lines as "number:text" and the rejects as "number!length of what is kept!detail".
func readAll(r *Reader, maxBytes int) (got []string, err error) {
	b := new(event.Batch)
	for more := true; more; {
		b.Reset()
		more, err = r.Fill(b, 3, maxBytes)
		for _, rec := range b.Records {
			if rec.Source != 3 || rec.Partition != 0 || rec.Timestamp != event.MinTime {
				return nil, fmt.Errorf("record %+v", rec)
			}
			got = append(got, fmt.Sprintf("%d:%s", rec.Offset, b.Raw(rec)))
		}
		for _, rej := range b.Rejects {
			got = append(got, fmt.Sprintf("%d!%d!%s", rej.Record.Offset, len(b.Raw(rej.Record)), rej.Detail))
		}
	}
	return got, err
}

func TestLines(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"empty", "", nil},
		{"one", "a\n", []string{"0:a"}},
		{"no newline at the end", "a\nbc", []string{"0:a", "1:bc"}},
		{"carriage returns", "a\r\nb\r\nc\r", []string{"0:a", "1:b", "2:c"}},
		{"inner carriage return", "a\rb\n", []string{"0:a\rb"}},
		{"empty lines have numbers", "\n\na\n\r\nb\n\n", []string{"2:a", "4:b"}},
		{"binary", "\x00\xff\n\x80\x00", []string{"0:\x00\xff", "1:\x80\x00"}},
		{"short magic", "\x1f\x8b", []string{"0:\x1f\x8b"}},
		{"longer than a fill", strings.Repeat("x", 100) + "\n" + strings.Repeat("y", 200_000) + "\nz",
			[]string{"0:" + strings.Repeat("x", 100), "1:" + strings.Repeat("y", 200_000), "2:z"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			forms := map[string][]byte{"plain": []byte(tt.text), "gzip": zipped(t, []byte(tt.text)),
				"zstd": zstded(t, []byte(tt.text)), "two members": append(zipped(t, nil), zipped(t, []byte(tt.text))...)}
			for form, data := range forms {
				for _, maxBytes := range []int{1, 7, 1 << 20} {
					for _, slow := range []bool{false, true} {
						var src io.Reader = bytes.NewReader(data)
						if slow {
							src = iotest.OneByteReader(src)
						}
						r, err := NewReader(src, "test")
						if err != nil {
							t.Fatal(form, err)
						}
						got, err := readAll(r, maxBytes)
						if err != nil || !slices.Equal(got, tt.want) {
							t.Errorf("%s by %d, slow %v: got %.80q, %v", form, maxBytes, slow, got, err)
						}
						if r.BytesRead() != int64(len(data)) {
							t.Errorf("%s: read %d bytes of %d", form, r.BytesRead(), len(data))
						}
						if more, err := r.Fill(new(event.Batch), 0, 10); more || err != nil {
							t.Errorf("after the end: %v, %v", more, err)
						}
						r.Close()
					}
				}
			}
		})
	}
}

func TestTooLong(t *testing.T) {
	limit := event.RecordBytesMax
	line := func(n int) string { return strings.Repeat("x", n) }
	reject := func(line, n int) string {
		return fmt.Sprintf("%d!1024!the line has %d bytes; at most 16777216 are allowed", line, n)
	}
	tests := []struct {
		name, text string
		want       []string // sorted
	}{
		{"at the limit", line(limit) + "\r\nb\n", []string{"0:" + line(limit), "1:b"}},
		{"over by one", "a\n" + line(limit+1) + "\nb\n", []string{"0:a", reject(1, limit+1), "2:b"}},
		{"over by one at the end", line(limit + 1), []string{reject(0, limit+1)}},
		{"carriage return not counted", line(limit+7) + "\r\n" + "b", []string{reject(0, limit+7), "1:b"}},
		{"far over", line(3*limit) + "\n\nb\nc", []string{reject(0, 3*limit), "2:b", "3:c"}},
	}
	for _, tt := range tests {
		for _, maxBytes := range []int{1, 1 << 20, 64 << 20} {
			r, err := NewReader(strings.NewReader(tt.text), "test")
			if err != nil {
				t.Fatal(err)
			}
			got, err := readAll(r, maxBytes)
			slices.Sort(got)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%s by %d: got %.120q, %v", tt.name, maxBytes, got, err)
			}
		}
	}
}

// A gigabyte of one line in a few compressed bytes must neither be held nor hide the line after it.
func TestEndlessLineIsNotHeld(t *testing.T) {
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{'x'}, 1<<20)
	for range 1 << 8 {
		if _, err := z.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	z.Write([]byte("\nb"))
	z.Close()
	r, err := NewReader(&packed, "bomb")
	if err != nil {
		t.Fatal(err)
	}
	b := new(event.Batch)
	for more := true; more; {
		if more, err = r.Fill(b, 0, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.Rejects) != 1 || len(b.Records) != 1 || string(b.Raw(b.Records[0])) != "b" || b.Records[0].Offset != 1 {
		t.Errorf("%d rejects, records %+v", len(b.Rejects), b.Records)
	}
	if cap(b.Data) > 3*event.RecordBytesMax {
		t.Errorf("the batch grew to %d bytes", cap(b.Data))
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	var text bytes.Buffer
	for i := range 20_000 {
		fmt.Fprintf(&text, "%d-%x\n", i, i*i*7919)
	}
	gz, zst := zipped(t, text.Bytes()), zstded(t, text.Bytes())
	damaged := slices.Clone(gz)
	damaged[len(damaged)-6] ^= 1 // the checksum
	files := map[string][]byte{"early.gz": gz[:len(gz)/2], "early.zst": zst[:len(zst)/2], "damaged.gz": damaged,
		"header.gz": gz[:5], "header.zst": zst[:5], "empty.gz": {}}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ file, want string }{
		{"missing.jsonl", "open missing.jsonl: no such file or directory"},
		{".", "open .: is a folder; name a file of lines"},
		{"early.gz", "read early.gz: compressed data ends early after line N: unexpected EOF"},
		{"early.zst", "read early.zst: compressed data ends early after line N: unexpected EOF"},
		{"damaged.gz", "read damaged.gz: cannot decompress after line 20000: gzip: invalid checksum"},
		{"header.gz", "read header.gz: compressed data ends early before the first line ended: unexpected EOF"},
		{"header.zst", "read header.zst: compressed data ends early before the first line ended: unexpected EOF"},
		{"empty.gz", ""},
	}
	t.Chdir(dir)
	for _, tt := range tests {
		r, err := Open(tt.file)
		lines := 0
		if err == nil {
			var got []string
			got, err = readAll(r, 1000)
			lines = len(got)
			for i, line := range got {
				if want := fmt.Sprintf("%d:%d-%x", i, i, i*i*7919); line != want {
					t.Fatalf("%s: line %d is %q, want %q", tt.file, i, line, want)
				}
			}
			if _, again := r.Fill(new(event.Batch), 0, 1); !errors.Is(again, err) {
				t.Errorf("%s: the error is not repeated: %v", tt.file, again)
			}
			r.Close()
		}
		want := strings.Replace(tt.want, "line N", fmt.Sprintf("line %d", lines), 1)
		if got := fmt.Sprint(err); got != want && (err != nil || want != "") {
			t.Errorf("%s: got %q, want %q", tt.file, got, want)
		}
		if strings.Contains(tt.want, "line N") && lines == 0 {
			t.Errorf("%s: no lines before the end", tt.file)
		}
	}
}

func TestFileFails(t *testing.T) {
	src := io.MultiReader(strings.NewReader("a\nb\nc"), iotest.ErrReader(&os.PathError{Op: "read", Path: "x", Err: errors.New("disk on fire")}))
	r, err := NewReader(src, "orders.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	got, err := readAll(r, 1<<20)
	if fmt.Sprint(err) != "read orders.jsonl: after line 2: disk on fire" || !slices.Equal(got, []string{"0:a", "1:b"}) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestOpenKnowsSizeAndCloses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.jsonl")
	if err := os.WriteFile(name, []byte("a\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if r.Size() != 4 {
		t.Errorf("size %d", r.Size())
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.Fill(new(event.Batch), 0, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("fill after close: %v", err)
	}
}

// Lines must not depend on how they are compressed or how much is asked for.
func FuzzFill(f *testing.F) {
	f.Add([]byte("a\nb\r\n\nc"), 3)
	f.Add(zipped(f, []byte("a\nb\n")), 1)
	f.Add(zstded(f, []byte("a\nb\n")), 1)
	f.Fuzz(func(t *testing.T, data []byte, maxBytes int) {
		read := func(maxBytes int) ([]string, error) {
			r, err := NewReader(bytes.NewReader(data), "fuzz")
			if err != nil {
				return nil, err
			}
			defer r.Close()
			return readAll(r, maxBytes)
		}
		want, wantErr := read(1 << 20)
		got, err := read(maxBytes % 64)
		if !slices.Equal(got, want) || fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("by %d: %q, %v; by 1 MiB: %q, %v", maxBytes%64, got, err, want, wantErr)
		}
	})
}

func BenchmarkFill(b *testing.B) {
	line := append(bytes.Repeat([]byte{'x'}, 300), '\n')
	text := bytes.Repeat(line, 200_000)
	for _, form := range []struct {
		name string
		data []byte
	}{{"plain", text}, {"gzip", zipped(b, text)}, {"zstd", zstded(b, text)}} {
		b.Run(form.name, func(b *testing.B) {
			name := filepath.Join(b.TempDir(), "lines")
			if err := os.WriteFile(name, form.data, 0o600); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			batch := new(event.Batch)
			for b.Loop() {
				r, err := Open(name)
				if err != nil {
					b.Fatal(err)
				}
				for more := true; more; {
					batch.Reset()
					if more, err = r.Fill(batch, 0, 1<<20); err != nil {
						b.Fatal(err)
					}
				}
				r.Close()
			}
		})
	}
}

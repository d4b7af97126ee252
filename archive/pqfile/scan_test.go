package pqfile

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestScan(t *testing.T) {
	deep := strings.Repeat("\x1c", 100) // field 1, a struct, a hundred times
	tests := []struct {
		name, data, want string
		length           int
	}{
		{"no fields, then more", "\x00rest", "", 1},
		{"a boolean has no bytes", "\x11\x00", "", 2},
		{"a number and a text", "\x15\x96\x01\x18\x03abc\x00", "", 9},
		{"a list of structs", "\x19\x2c\x15\x02\x00\x00\x00", "", 7},
		{"nothing", "", "it ends early", 0},
		{"a text longer than the data", "\x18\xff\xff\xff\xff\x07abc", "it ends early", 0},
		{"a list longer than the data", "\x19\xfc\xff\xff\xff\xff\x07\x00", "it ends early", 0},
		{"deep nesting", deep, "it is nested deeper than 24", 0},
		{"many structs", "\x19\xfc\x80\x80\x20" + strings.Repeat("\x00", 1<<20), "it lists more than 262144 structures or 4194304 values", 0},
		{"a map", "\x1b\x01", "it has a map, which Parquet does not use", 0},
		{"an unknown type", "\x1f", "it has a value of unknown type 15", 0},
		{"a number without end", "\x16" + strings.Repeat("\xff", 12), "it has a number of more than 64 bits", 0},
	}
	for _, tt := range tests {
		length, err := scan([]byte(tt.data))
		if tt.want == "" && (err != nil || length != tt.length) || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%s: got %d, %v; want %d, %s", tt.name, length, err, tt.length, tt.want)
		}
	}
}

// What a page decompresses to must be known before it is decompressed, with and without a declared size.
func TestZstdMax(t *testing.T) {
	zeros := make([]byte, 8<<20)
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	declared := z.EncodeAll(zeros, nil)
	var streamed bytes.Buffer
	z.Reset(&streamed)
	if _, err := io.Copy(z, bytes.NewReader(zeros)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		data     []byte
		min, max int64
	}{
		{"declared", declared, 8 << 20, 8 << 20},
		{"streamed", streamed.Bytes(), 8 << 20, 9 << 20},
		{"two frames", append(bytes.Clone(declared), declared...), 16 << 20, 16 << 20},
		{"nothing", nil, 0, 0},
	}
	for _, tt := range tests {
		got, err := zstdMax(io.NewSectionReader(bytes.NewReader(tt.data), 0, int64(len(tt.data))))
		if err != nil || got < tt.min || got > tt.max {
			t.Errorf("%s: got %d, %v; want %d to %d", tt.name, got, err, tt.min, tt.max)
		}
	}
	cut := declared[:10] // within the header of the first block
	if got, err := zstdMax(io.NewSectionReader(bytes.NewReader(cut), 0, int64(len(cut)))); err == nil {
		t.Errorf("cut off: got %d", got)
	}
}

func TestGuard(t *testing.T) {
	err := Guard(func() error { panic("index out of range") })
	if want := "the file is damaged: the Parquet library gave up: index out of range"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

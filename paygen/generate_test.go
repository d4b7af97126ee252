package paygen

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// memory keeps files in memory.
type memory map[string]*bytes.Buffer

func (m memory) create(name string) (io.WriteCloser, error) {
	m[name] = &bytes.Buffer{}
	return nopCloser{m[name]}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func config(orders int, seed uint64) Config {
	return Config{Orders: orders, Seed: seed, Start: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), Span: 72 * time.Hour}
}

func generate(t testing.TB, cfg Config) (memory, Summary) {
	t.Helper()
	m := memory{}
	sum, err := Generate(cfg, m.create)
	if err != nil {
		t.Fatal(err)
	}
	return m, sum
}

func TestSameSeedSameBytes(t *testing.T) {
	digest := func(seed uint64) (sums map[string][32]byte) {
		m, _ := generate(t, config(3000, seed))
		sums = map[string][32]byte{}
		for name, b := range m {
			sums[name] = sha256.Sum256(b.Bytes())
		}
		return sums
	}
	one, again, two := digest(1), digest(1), digest(2)
	for name := range one {
		if one[name] != again[name] {
			t.Errorf("%s: seed 1 gives different bytes on a second run", name)
		}
		if one[name] == two[name] && name != JobFile {
			t.Errorf("%s: seeds 1 and 2 give the same bytes", name)
		}
	}
}

// discard is a Create that keeps nothing.
func discard(string) (io.WriteCloser, error) { return nopCloser{io.Discard}, nil }

// full fails after some bytes, as a full disk does.
type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("no space")
	}
	return len(p), nil
}

func (f *full) Close() error { return nil }

func TestFullDiskIsAnError(t *testing.T) {
	for _, name := range []string{"orders.jsonl", TruthFile, RejectsFile, JobFile, ReadmeFile} {
		_, err := Generate(config(2000, 1), func(file string) (io.WriteCloser, error) {
			if file == name {
				return &full{left: 100}, nil
			}
			return discard(file)
		})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package correlate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/weftdata/weft/event"
)

func someSnapshot(tb testing.TB, cfg *Config, seed uint64, n int) []byte {
	tb.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	c, err := New(*cfg)
	if err != nil {
		tb.Fatal(err)
	}
	out := discard{}
	if err := c.Apply(batchOf(randomEvents(r, n, 2000)), out); err != nil {
		tb.Fatal(err)
	}
	c.Flush(out)
	return c.AppendSnapshot(nil)
}

type discard struct{}

func (discard) Upsert(uint64, *Row)    {}
func (discard) Tombstone(uint64, ID)   {}
func (discard) Cell(uint64, *Cell)     {}
func (discard) Late(*event.Batch, int) {}

func TestSnapshotErrors(t *testing.T) {
	cfg := testConfig(100, 8, 10)
	good := someSnapshot(t, cfg, 1, 100)
	other := testConfig(101, 8, 10)
	flip := func(i int) []byte {
		b := append([]byte(nil), good...)
		b[i] ^= 0x40
		return b
	}
	for _, test := range []struct {
		name string
		cfg  *Config
		data []byte
		want error
	}{
		{"empty", cfg, nil, ErrSnapshotCorrupt},
		{"not a snapshot", cfg, []byte("hello, this is no snapshot of anything, however long it may be"), ErrSnapshotCorrupt},
		{"cut short", cfg, good[:len(good)-1], ErrSnapshotCorrupt},
		{"a flipped bit", cfg, flip(len(good) / 2), ErrSnapshotCorrupt},
		{"another config", other, good, ErrSnapshotConfig},
	} {
		if _, err := Restore(*test.cfg, test.data); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
	if _, err := Restore(*cfg, good); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestDeltaOrder(t *testing.T) {
	cfg := testConfig(100, 8, 10)
	c, err := New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	events := randomEvents(rand.New(rand.NewPCG(1, 1)), 90, 2000)
	var saved [][]byte
	for i := range 3 {
		if err := c.Apply(batchOf(events[30*i:30*i+30]), discard{}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			saved = append(saved, c.AppendSnapshot(nil))
		} else {
			saved = append(saved, c.AppendDelta(nil))
		}
	}
	for _, test := range []struct {
		name  string
		chain [][]byte
		want  error
	}{
		{"all", saved, nil},
		{"without the last", saved[:2], nil},
		{"one is missing", [][]byte{saved[0], saved[2]}, ErrSnapshotOrder},
		{"without the snapshot", saved[1:], ErrSnapshotOrder},
		{"two snapshots", [][]byte{saved[0], saved[0]}, ErrSnapshotOrder},
	} {
		if _, err := Restore(*cfg, test.chain[0], test.chain[1:]...); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
	if whole := len(c.AppendSnapshot(nil)); len(c.AppendDelta(nil)) > whole/4 {
		t.Errorf("a delta without changes is as large as a snapshot of %d bytes", whole)
	}
}

// FuzzSnapshot feeds damaged snapshots whose checksum is right. Whatever is accepted must work as a core.
func FuzzSnapshot(f *testing.F) {
	cfg := testConfig(100, 8, 10)
	for seed := range uint64(4) {
		s := someSnapshot(f, cfg, seed, 5+int(seed)*20)
		f.Add(s[snapshotHeader : len(s)-4])
	}
	empty := someSnapshot(f, cfg, 1, 0)
	header := empty[:snapshotHeader]
	f.Fuzz(func(t *testing.T, body []byte) {
		s := append(append([]byte(nil), header...), body...)
		s = binary.LittleEndian.AppendUint32(s, crc32.Checksum(s, castagnoli))
		c, err := Restore(*cfg, s)
		if err != nil {
			if !errors.Is(err, ErrSnapshotCorrupt) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		if n, most := c.StateBytes(), int64(8<<20+1000*len(body)); n > most {
			t.Fatalf("%d bytes of state from a snapshot of %d", n, len(body))
		}
		if err := c.Apply(batchOf(randomEvents(rand.New(rand.NewPCG(1, 1)), 50, 2000)), discard{}); err != nil {
			t.Fatal(err)
		}
		c.Flush(discard{})
		c.Advance(1500, discard{})
		c.AppendSnapshot(nil)
		c.Advance(event.MaxTime, discard{})
		c.Flush(discard{})
	})
}

// BenchmarkSnapshot measures writing and reading the state of 100,000 events.
func BenchmarkSnapshot(b *testing.B) {
	cfg := testConfig(100_000, 1000, 10)
	r := rand.New(rand.NewPCG(1, 1))
	c, err := New(*cfg)
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Apply(chains(r, 10_000), discard{}); err != nil {
		b.Fatal(err)
	}
	c.Flush(discard{})
	s := c.AppendSnapshot(nil)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(len(s)))
		for b.Loop() {
			s = c.AppendSnapshot(s[:0])
		}
		b.ReportMetric(float64(len(s))/float64(c.stats.OpenEvents), "B/event")
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(int64(len(s)))
		for b.Loop() {
			if _, err := Restore(*cfg, s); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestSnapshotAfterPeak restores a core that holds little now and held much before: what is left has high numbers.
func TestSnapshotAfterPeak(t *testing.T) {
	cfg := testConfig(100_000, 8, 10)
	c, err := New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	var events []refEvent
	const n = 200_000
	for i := range n {
		events = append(events, refEvent{time: 10, offset: int64(i), step: "paid", keys: map[int][]string{0: {fmt.Sprint("k", i)}}, user: fmt.Sprint("u", i)})
	}
	events[n-1].time = 1000
	if err := c.Apply(batchOf(events), discard{}); err != nil {
		t.Fatal(err)
	}
	c.Flush(discard{})
	c.Advance(900, discard{})
	if open := c.Stats().OpenSessions; open != 1 {
		t.Fatalf("%d sessions are open, want the last one", open)
	}
	snapshot := c.AppendSnapshot(nil)
	again, err := Restore(*cfg, snapshot)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.AppendSnapshot(nil), c.AppendSnapshot(nil)) {
		t.Error("the restored core writes another snapshot")
	}
	for i := range events { // the numbers that are free again are used again
		events[i].offset += n
		events[i].time = 2000
	}
	if err := again.Apply(batchOf(events), discard{}); err != nil {
		t.Fatal(err)
	}
	if open := again.Stats().OpenSessions; open != n+1 {
		t.Errorf("%d sessions are open, want %d", open, n+1)
	}
}

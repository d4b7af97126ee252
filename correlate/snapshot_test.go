package correlate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

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

func TestPartOrder(t *testing.T) {
	cfg := testConfig(100, 8, 10)
	c, err := New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	events := randomEvents(rand.New(rand.NewPCG(1, 1)), 90, 2000)
	var saved chain
	for i := range 3 {
		if err := c.Apply(batchOf(events[30*i:30*i+30]), discard{}); err != nil {
			t.Fatal(err)
		}
		saved = append(saved, c.AppendPart(nil))
	}
	// From here on nothing changes, and a part is only a share of the state.
	whole := c.whole()
	for c.NeededPart() == 1 {
		s := c.AppendPart(nil)
		if len(s) > len(whole)/4 {
			t.Fatalf("a part without changes has %d bytes, and a snapshot %d", len(s), len(whole))
		}
		saved = append(saved, s)
	}
	last := len(saved)
	for _, test := range []struct {
		name  string
		chain chain
		want  error
	}{
		{"all", saved, nil},
		{"from a snapshot on", saved[:3], nil},
		{"a snapshot alone", saved[:1], nil},
		{"without the first, which was superseded by the last", saved[1:], nil},
		{"without the first, which is needed", saved[1 : last-1], ErrSnapshotOrder},
		{"without the second, which is needed", saved[2:], ErrSnapshotOrder},
		{"one is missing", append(saved[:1:1], saved[2:]...), ErrSnapshotOrder},
		{"two snapshots", chain{saved[0], saved[0]}, ErrSnapshotOrder},
		{"nothing", nil, ErrSnapshotOrder},
	} {
		if _, err := Restore(*cfg, test.chain...); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
	if needed := int(c.NeededPart()); needed != 2 || last > shares+3 {
		t.Errorf("after %d parts those from %d on are needed", last, needed)
	}
}

// TestChainBound changes a share of a large state between parts. However large that share is, no part is much larger than
// twice what changed and a 64th, and what a restore reads is about twice the state.
func TestChainBound(t *testing.T) {
	cfg := testConfig(1<<40, 8, 1<<40)
	for _, perPart := range []int{0, 1, 30, 300, 2000} {
		c, err := New(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		const sessions = 2000
		offset := int64(0)
		apply := func(n int) {
			var events []refEvent
			for range n {
				events = append(events, refEvent{time: 10, offset: offset, step: "paid", keys: map[int][]string{0: {fmt.Sprint("k", offset*7919%sessions)}}})
				offset++
			}
			if err := c.Apply(batchOf(events), discard{}); err != nil {
				t.Fatal(err)
			}
		}
		apply(sessions)
		saved := chain{c.AppendPart(nil)}
		for range 2 * shares {
			apply(perPart)
			part := c.AppendPart(nil)
			whole := len(c.whole())
			if most := whole*perPart/sessions*5/2 + whole/16 + 4096; len(part) > most {
				t.Fatalf("%d sessions of %d changed: a part has %d bytes, the state %d; want at most %d", perPart, sessions, len(part), whole, most)
			}
			saved = append(saved, part)
			if needed := int(c.NeededPart() - (c.PartNumber() + 1 - uint64(len(saved)))); needed > 0 {
				saved = saved[needed:]
			}
		}
		sum := 0
		for _, s := range saved {
			sum += len(s)
		}
		whole := len(c.whole())
		t.Logf("%5d of %d sessions change: chain of %d parts, %d bytes; state %d", perPart, sessions, len(saved), sum, whole)
		if len(saved) > shares || sum > 3*whole {
			t.Errorf("%d sessions of %d change: a chain of %d parts and %d bytes for a state of %d", perPart, sessions, len(saved), sum, whole)
		}
		again, err := Restore(*cfg, saved...)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.whole(), c.whole()) {
			t.Error("the chain restores another state")
		}
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

// FuzzPart feeds a damaged part after a good snapshot.
func FuzzPart(f *testing.F) {
	cfg := testConfig(100, 8, 10)
	c, err := New(*cfg)
	if err != nil {
		f.Fatal(err)
	}
	events := randomEvents(rand.New(rand.NewPCG(1, 1)), 200, 2000)
	if err := c.Apply(batchOf(events[:100]), discard{}); err != nil {
		f.Fatal(err)
	}
	c.Flush(discard{})
	snapshot := c.AppendSnapshot(nil)
	var header []byte
	for i := range 5 {
		if err := c.Apply(batchOf(events[100+20*i:120+20*i]), discard{}); err != nil {
			f.Fatal(err)
		}
		c.Advance(event.Micros(400*i), discard{})
		part := c.AppendPart(nil)
		if i == 0 {
			header = part[:snapshotHeader]
		}
		f.Add(part[snapshotHeader : len(part)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		part := append(append([]byte(nil), header...), body...)
		part = binary.LittleEndian.AppendUint32(part, crc32.Checksum(part, castagnoli))
		c, err := Restore(*cfg, snapshot, part)
		if err != nil {
			if !errors.Is(err, ErrSnapshotCorrupt) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		if err := c.Apply(batchOf(events), discard{}); err != nil {
			t.Fatal(err)
		}
		c.Flush(discard{})
		c.Advance(1500, discard{})
		again, err := Restore(*cfg, c.AppendSnapshot(nil), c.AppendPart(nil))
		if err != nil {
			t.Fatal(err)
		}
		again.Advance(event.MaxTime, discard{})
		again.Flush(discard{})
	})
}

// BenchmarkPart measures how long a checkpoint holds up input, and a restore, with 100,000 open sessions of ten events, of
// which a thousandth, a hundredth and a tenth get another event between two checkpoints.
func BenchmarkPart(b *testing.B) {
	for _, every := range []int{1000, 100, 10} {
		b.Run(fmt.Sprint("changed=1:", every), func(b *testing.B) {
			cfg := testConfig(100_000, 1000, 10)
			c, err := New(*cfg)
			if err != nil {
				b.Fatal(err)
			}
			batch := chains(rand.New(rand.NewPCG(1, 1)), 100_000)
			if err := c.Apply(batch, discard{}); err != nil {
				b.Fatal(err)
			}
			c.Flush(discard{})
			saved, offset := chain{c.AppendPart(nil)}, int64(1_000_000_000)
			change := func() {
				var next event.Batch
				next.Data, next.Steps = batch.Data, batch.Steps
				for i := int(offset) % every; i < len(batch.Events); i += 10 * every {
					e := batch.Events[i]
					e.Offset = offset
					offset++
					next.Values = append(next.Values, batch.ValuesOf(i)...)
					e.Vals = uint32(len(next.Values))
					next.Events = append(next.Events, e)
				}
				if err := c.Apply(&next, discard{}); err != nil {
					b.Fatal(err)
				}
				c.Flush(discard{})
			}
			bytes, most := 0, time.Duration(0)
			part := make([]byte, 0, 64<<20)
			for b.Loop() {
				b.StopTimer()
				change()
				b.StartTimer()
				begin := time.Now()
				part = c.AppendPart(part[:0])
				most = max(most, time.Since(begin))
				b.StopTimer()
				saved = append(saved, slices.Clone(part))
				saved = saved[len(saved)-int(c.PartNumber()+1-c.NeededPart()):]
				bytes += len(part)
				b.StartTimer()
			}
			b.StopTimer()
			b.ReportMetric(float64(bytes)/float64(b.N)/1e6, "MB/part")
			b.ReportMetric(float64(most.Microseconds())/1000, "worst-ms")
			sum := 0
			for _, s := range saved {
				sum += len(s)
			}
			begin := time.Now()
			if _, err := Restore(*cfg, saved...); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(begin).Milliseconds()), "restore-ms")
			b.ReportMetric(float64(sum)/1e6, "chain-MB")
			b.ReportMetric(float64(len(saved)), "chain-parts")
			begin = time.Now()
			c.AppendSnapshot(part[:0])
			b.ReportMetric(float64(time.Since(begin).Microseconds())/1000, "snapshot-ms")
			b.ReportMetric(float64(len(c.whole()))/1e6, "state-MB")
		})
	}
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

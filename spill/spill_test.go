package spill

import (
	"errors"
	"slices"
	"testing"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// TestSpillTidy drops a file when all of it has expired or gone, but not while a checkpoint reads it.
func TestSpillTidy(t *testing.T) {
	p := New(Config{})
	open := func(f *file) bool { _, err := f.f.Stat(); return err == nil }
	expiring := func(at event.Micros) *file { return buildFile(t, []modelled{{bytes: "x", expiry: at}}) }
	p.files = []*file{expiring(100), expiring(200), expiring(300)}
	all := slices.Clone(p.files)
	p.Checkpoint(1)
	tidy := func(oldest event.Micros, files, onDisk int) {
		t.Helper()
		if err := p.tidy(t.Context(), oldest); err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, f := range all {
			if open(f) {
				left++
			}
		}
		if len(p.files) != files || left != onDisk {
			t.Errorf("at %d: %d files, %d on disk; want %d, %d", oldest, len(p.files), left, files, onDisk)
		}
	}
	tidy(100, 3, 3)
	tidy(101, 2, 3)
	p.Saved()
	tidy(101, 2, 2)
	p.files[1].gone.set(0)
	p.files[1].goneCount++
	tidy(101, 1, 1)
	tidy(201, 0, 0)
}

// TestSpillMemory has a bound that identities alone exceed: it must say so. With a larger one, what was not handed out yet is
// handed out and spilled.
func TestSpillMemory(t *testing.T) {
	for _, c := range []struct {
		bound int64
		fits  bool
	}{{512 << 10, true}, {16 << 10, false}} {
		g := newPurchases(purchaseConfig())
		core, err := correlate.New(*purchaseConfig())
		if err != nil {
			t.Fatal(err)
		}
		p := New(Config{Dir: t.TempDir(), MemoryBytes: c.bound})
		flushed := 0
		for range 20 {
			if err = core.Apply(g.batch(0), nothing{}); err == nil {
				err = p.Relieve(t.Context(), core, func() { flushed++; core.Flush(nothing{}) })
			}
			if err != nil {
				break
			}
		}
		if c.fits && (err != nil || p.memory(core) > c.bound*3/2 || flushed == 0) {
			t.Errorf("%d bytes in use, bound %d, handed out %d times: %v", p.memory(core), c.bound, flushed, err)
		}
		if !c.fits && !errors.Is(err, ErrMemory) {
			t.Errorf("bound %d: got %v, want that it does not fit", c.bound, err)
		}
		p.Close()
	}
}

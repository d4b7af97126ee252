package spill

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// modelled is a component as the tests know it. Its bytes start with its expiry, as those of the core do.
type modelled struct {
	bytes  string
	expiry event.Micros
	reach  []correlate.Reach
	ids    []correlate.ID
	gone   bool
}

func randomComponents(r *rand.Rand, n int) (list []modelled) {
	wide := event.Micros(1) << (10 + r.IntN(50))
	for i := range n {
		m := modelled{expiry: event.Micros(r.IntN(1000))}
		b := binary.AppendVarint(nil, int64(m.expiry))
		m.bytes = string(fmt.Appendf(b, "component %d %0*d", i, r.IntN(1+r.IntN(3000)), 7))
		for range r.IntN(5) {
			from := event.Micros(r.Int64N(int64(wide)))
			m.reach = append(m.reach, correlate.Reach{Hash: hashOf(r.IntN(n)), From: from, To: from + event.Micros(r.Int64N(1000))})
		}
		for range r.IntN(3) {
			var id correlate.ID
			binary.LittleEndian.PutUint64(id[:], r.Uint64())
			m.ids = append(m.ids, id)
		}
		list = append(list, m)
	}
	return list
}

// hashOf spreads few values, so that some are shared by many components.
func hashOf(n int) uint64 { return uint64(n%500+1) * 0x9e3779b97f4a7c15 }

func buildFile(t *testing.T, list []modelled) *file {
	t.Helper()
	var b builder
	for i := range list {
		m := &list[i]
		b.add(&correlate.Spilled{Bytes: []byte(m.bytes), Reach: m.reach, IDs: m.ids, Expiry: m.expiry, Events: 2})
	}
	f, err := b.build(t.TempDir(), 5, false)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// check asks a file for everything. What it finds may be more than what the model has, where times were rounded, and never less.
func check(t *testing.T, r *rand.Rand, f *file, list []modelled) {
	t.Helper()
	var blocks blockReader
	var page [pageBytes]byte
	exact := 0
	for n := range 600 {
		need := correlate.Need{Hash: hashOf(n), From: event.Micros(r.Int64N(1 << (10 + r.IntN(50))))}
		if n%3 == 0 && len(list) > 0 {
			if m := &list[r.IntN(len(list))]; len(m.reach) > 0 {
				need = correlate.Need{Hash: m.reach[0].Hash, From: m.reach[0].To}
			}
		}
		need.To = need.From + event.Micros(r.IntN(1000))
		got := map[string]bool{}
		if f.filter.has(need.Hash) {
			_, err := f.find(&need, &page, func(number uint32) {
				b, err := blocks.component(f, number)
				if err != nil {
					t.Fatal(err)
				}
				got[string(b)] = true
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		slack := event.Micros(2) << f.Shift
		for i := range list {
			m := &list[i]
			meets := slices.ContainsFunc(m.reach, func(x correlate.Reach) bool { return x.Meets(&need) })
			near := slices.ContainsFunc(m.reach, func(x correlate.Reach) bool {
				return x.Hash == need.Hash && x.From-slack <= need.To && need.From <= x.To+slack
			})
			switch {
			case m.gone && got[m.bytes]:
				t.Fatalf("found %.40q, which is gone", m.bytes)
			case !m.gone && meets && !got[m.bytes]:
				t.Fatalf("did not find %.40q for %+v: %+v", m.bytes, need, m.reach)
			case got[m.bytes] && !near:
				t.Fatalf("found %.40q for %+v, far from %+v", m.bytes, need, m.reach)
			case meets:
				exact++
			}
			delete(got, m.bytes)
		}
		if len(got) > 0 {
			t.Fatalf("found %d components that should not be there", len(got))
		}
	}
	if exact == 0 && len(list) > 100 {
		t.Fatal("nothing was to be found, so nothing was tested")
	}
	ids := map[uint64]string{}
	if err := f.ids(func(hash uint64, number uint32) {
		b, err := blocks.component(f, number)
		if err != nil {
			t.Fatal(err)
		}
		ids[hash] = string(b)
	}); err != nil {
		t.Fatal(err)
	}
	for i := range list {
		for k := range list[i].ids {
			if h := idHash(&list[i].ids[k]); ids[h] != list[i].bytes {
				t.Fatalf("an id of %.40q leads to %.40q", list[i].bytes, ids[h])
			}
		}
	}
}

// TestSpillFiles writes, opens and merges files with random components, some of which are gone, or go while files are merged.
func TestSpillFiles(t *testing.T) {
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		var all []modelled
		var inputs []*mergeInput
		oldest := event.Micros(r.IntN(3) * 300)
		for i := range 1 + r.IntN(4) {
			list := randomComponents(r, 1+r.IntN(1500))
			f := buildFile(t, list)
			check(t, r, f, list)
			opened, err := openFile(f.f)
			if err != nil {
				t.Fatal(err)
			}
			check(t, r, opened, list)
			for k := range list {
				if r.IntN(4) == 0 || i == 2 && k < 1000 { // whole blocks are gone in one
					list[k].gone = true
					opened.gone.set(uint32(k))
					opened.goneCount++
					opened.goneEvents += 2
				}
			}
			check(t, r, opened, list)
			inputs = append(inputs, newMergeInput(opened))
			all = append(all, list...)
		}
		merged, err := mergeFiles(dir, inputs, oldest)
		if err != nil {
			t.Fatal(err)
		}
		p := New(Config{})
		p.merging = inputs
		for _, in := range inputs {
			p.files = append(p.files, in.file)
		}
		at := 0
		for _, in := range inputs { // these go while the merge is under way
			for k := range in.file.Components {
				m := &all[at]
				at++
				if r.IntN(5) == 0 && !m.gone {
					m.gone = true
					in.file.gone.set(k)
					in.file.goneCount++
					in.file.goneEvents += 2
				}
			}
		}
		p.endMerge(mergeResult{file: merged})
		left := slices.DeleteFunc(slices.Clone(all), func(m modelled) bool { return m.gone || m.expiry < oldest })
		if len(left) == 0 && len(p.files) == 0 {
			continue
		}
		if len(p.files) != 1 || int(merged.live()) != len(left) {
			t.Fatalf("seed %d: %d files with %d components, want 1 with %d", seed, len(p.files), merged.live(), len(left))
		}
		for i := range all {
			if m := &all[i]; m.gone || m.expiry < oldest {
				m.gone, m.ids = true, nil // some are in the file and marked, others are not there at all
			}
		}
		check(t, r, merged, all)
		again, err := openFile(merged.f)
		if err != nil {
			t.Fatal(err)
		}
		copy(again.gone, merged.gone)
		check(t, r, again, all)
	}
}

// TestSpillFileDamaged flips bits and cuts: opening and reading everything must notice, and nothing may panic.
func TestSpillFileDamaged(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	dir := t.TempDir()
	f := buildFile(t, randomComponents(r, 300))
	good := make([]byte, f.bytes)
	if _, err := f.f.ReadAt(good, 0); err != nil {
		t.Fatal(err)
	}
	read := func(data []byte) error {
		path := filepath.Join(dir, "bad")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		f, err := openFile(file)
		if err != nil {
			return err
		}
		merged, err := mergeFiles(dir, []*mergeInput{newMergeInput(f)}, 500) // reads all of it
		if err == nil {
			merged.f.Close()
		}
		return err
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		at := len(magic) + r.IntN(len(good)-len(magic))
		bad := slices.Clone(good)
		bad[at] ^= 1 << r.IntN(8)
		if err := read(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d of %d: %v", at, len(good), err)
		}
		if err := read(good[:at]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d of %d: %v", at, len(good), err)
		}
	}
}

// TestFilter measures how often a filter is wrong: never where it has a key, and rarely where it has not.
func TestFilter(t *testing.T) {
	const n = 100_000
	f := newFilter(n)
	r := rand.New(rand.NewPCG(1, 1))
	var keys []uint64
	for range n {
		keys = append(keys, r.Uint64())
		f.add(keys[len(keys)-1])
	}
	for _, k := range keys {
		if !f.has(k) {
			t.Fatal("a key is missing")
		}
	}
	wrong := 0
	for range 1_000_000 {
		if f.has(r.Uint64()) {
			wrong++
		}
	}
	if wrong > 3000 {
		t.Errorf("wrong %d times of a million", wrong)
	}
}

// BenchmarkSpillSearch measures a look-up that misses, and one that finds its component and decompresses it.
func BenchmarkSpillSearch(b *testing.B) {
	dir := b.TempDir()
	r := rand.New(rand.NewPCG(1, 1))
	p := New(Config{})
	const files, components = 8, 50_000
	for i := range files {
		var build builder
		for k := range components {
			bytes := binary.AppendVarint(nil, 1)
			bytes = append(bytes, make([]byte, 200)...)
			s := correlate.Spilled{Bytes: bytes, Expiry: 1}
			for range 3 {
				s.Reach = append(s.Reach, correlate.Reach{Hash: event.Hash(uint64(i), binary.AppendVarint(nil, int64(3*k+len(s.Reach))))})
			}
			build.add(&s)
		}
		f, err := build.build(dir, 1, false)
		if err != nil {
			b.Fatal(err)
		}
		p.files = append(p.files, f)
	}
	needs := make([]correlate.Need, 1000)
	b.Run("miss", func(b *testing.B) {
		for b.Loop() {
			for i := range needs {
				needs[i].Hash = r.Uint64()
			}
			for place, f := range p.files {
				if err := p.search(place, f, needs); err != nil {
					b.Fatal(err)
				}
			}
			p.hits = p.hits[:0]
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(needs)), "ns/key")
	})
	b.Run("hit", func(b *testing.B) {
		for b.Loop() {
			f := p.files[r.IntN(files)]
			need := correlate.Need{Hash: event.Hash(uint64(slices.Index(p.files, f)), binary.AppendVarint(nil, int64(r.IntN(3*components))))}
			if err := p.search(0, f, []correlate.Need{need}); err != nil || len(p.hits) != 1 {
				b.Fatal(err, len(p.hits))
			}
			if _, err := p.blocks.component(f, p.hits[0].number); err != nil {
				b.Fatal(err)
			}
			p.hits = p.hits[:0]
		}
	})
}

package spill

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"os"
	"slices"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// builder collects components for a new file.
type builder struct {
	bytes  []byte
	parts  []builtPart
	keys   []keyReach
	events uint64
}

type builtPart struct {
	end    int // in bytes
	expiry event.Micros
	ids    []uint64
}

// add is what correlate.Core.Spill calls.
func (b *builder) add(s *correlate.Spilled) {
	number := uint32(len(b.parts))
	b.bytes = append(b.bytes, s.Bytes...)
	p := builtPart{end: len(b.bytes), expiry: s.Expiry}
	for i := range s.IDs {
		p.ids = append(p.ids, idHash(&s.IDs[i]))
	}
	b.parts = append(b.parts, p)
	for _, r := range s.Reach {
		b.keys = append(b.keys, keyReach{r.Hash, r.From, r.To, number})
	}
	b.events += uint64(s.Events)
}

func (b *builder) reset() {
	b.bytes, b.parts, b.keys, b.events = b.bytes[:0], b.parts[:0], b.keys[:0], 0
}

// build writes what was collected. It may be tried again.
func (b *builder) build(dir string, seed uint64, dues bool) (*file, error) {
	slices.SortFunc(b.keys, compareKeys)
	base, last := event.MaxTime, event.MinTime
	for _, k := range b.keys {
		base, last = min(base, k.from), max(last, k.to)
	}
	if len(b.keys) == 0 {
		base, last = 0, 0
	}
	return createFile(dir, func(f *os.File) (*file, error) {
		w := newWriter(f, seed, uint64(len(b.keys)), base, last)
		w.foot.Events = b.events
		start := 0
		for _, p := range b.parts {
			w.component(b.bytes[start:p.end], p.expiry)
			start = p.end
		}
		w.endBlock()
		for _, k := range b.keys {
			w.key(k)
		}
		for i, p := range b.parts {
			for _, id := range p.ids {
				w.id(id, uint32(i))
			}
		}
		s, err := w.finish(f)
		if err == nil && dues {
			for i, p := range b.parts {
				s.dues = append(s.dues, due{p.expiry, uint32(i)})
			}
			slices.SortFunc(s.dues, compareDues)
		}
		return s, err
	})
}

// createFile makes a file without a name.
func createFile(dir string, write func(*os.File) (*file, error)) (*file, error) {
	f, err := os.CreateTemp(dir, "weft-spill-")
	if err != nil {
		return nil, fmt.Errorf("write spilled state: %w", err)
	}
	var s *file
	if err = os.Remove(f.Name()); err == nil {
		s, err = write(f)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("spilled state: %w", err)
	}
	return s, nil
}

// mergeInput is a file that is merged. The merge runs beside the shard, so it has a gone of its own.
type mergeInput struct {
	file   *file
	gone   bitmap // as it was when the merge began
	events uint64 // that were gone then
	live   bitmap // what was taken over
	ranks  []uint32
	first  uint32 // number in the new file of the first that was taken over
}

func newMergeInput(s *file) *mergeInput {
	return &mergeInput{file: s, gone: slices.Clone(s.gone), events: s.goneEvents, live: newBitmap(s.Components)}
}

// number returns the number in the new file.
func (m *mergeInput) number(old uint32) uint32 {
	below := m.live[old/64] & (1<<(old%64) - 1)
	return m.first + m.ranks[old/64] + uint32(bits.OnesCount64(below))
}

// mergeFiles writes a file that holds what is still wanted of others: what has not gone back into memory and has not expired
// before oldest. Its memory does not depend on their size, apart from the filter and the tables of the new file.
func mergeFiles(dir string, inputs []*mergeInput, oldest event.Micros) (*file, error) {
	base, last := int64(event.MaxTime), int64(event.MinTime)
	var keys, events, components uint64
	for _, in := range inputs {
		s := in.file
		base, last = min(base, s.Base), max(last, s.Last)
		left := uint64(s.Components) - uint64(in.gone.count())
		keys += s.Keys * left / uint64(max(1, s.Components))
		components += left
		events += s.Events - in.events
	}
	return createFile(dir, func(f *os.File) (*file, error) {
		w := newWriter(f, inputs[0].file.Seed, keys, event.Micros(base), event.Micros(last))
		for _, in := range inputs {
			if err := in.copyComponents(w, oldest); err != nil {
				return nil, err
			}
		}
		w.endBlock()
		w.foot.Events = events * uint64(w.foot.Components) / max(1, components) // what expired had about as many as the rest
		if err := mergeKeys(w, inputs); err != nil {
			return nil, err
		}
		for _, in := range inputs {
			err := in.file.ids(func(hash uint64, number uint32) {
				if in.live.has(number) {
					w.id(hash, in.number(number))
				}
			})
			if err != nil {
				return nil, err
			}
		}
		s, err := w.finish(f)
		if err != nil {
			return nil, err
		}
		for _, in := range inputs {
			for _, d := range in.file.dues {
				if in.live.has(d.number) {
					s.dues = append(s.dues, due{d.expiry, in.number(d.number)})
				}
			}
		}
		slices.SortFunc(s.dues, compareDues)
		return s, nil
	})
}

// copyComponents takes over what is wanted. A block of which all is wanted is copied as it is.
func (m *mergeInput) copyComponents(w *writer, oldest event.Micros) error {
	s := m.file
	m.first = w.foot.Components
	var blocks blockReader
	for k := range s.blocks {
		from, to := s.blocks[k].First, s.blockEnd(k)
		whole := s.First >= int64(oldest)
		for i := from; i < to && whole; i++ {
			whole = !m.gone.has(i)
		}
		if whole {
			packed, err := blocks.readPacked(s, k)
			if err != nil {
				return err
			}
			w.copyBlock(packed, to-from, s.First, s.Late)
			for i := from; i < to; i++ {
				m.live.set(i)
			}
			continue
		}
		if err := blocks.read(s, k); err != nil {
			return err
		}
		rest := blocks.raw
		for i := from; i < to; i++ {
			b, after, err := cutComponent(s, rest)
			if err != nil {
				return err
			}
			rest = after
			expiry, err := correlate.SpilledExpiry(b)
			if err != nil {
				return err
			}
			if !m.gone.has(i) && expiry >= oldest {
				m.live.set(i)
				w.component(b, expiry)
			}
		}
	}
	sum := uint32(0)
	for _, word := range m.live {
		m.ranks = append(m.ranks, sum)
		sum += uint32(bits.OnesCount64(word))
	}
	return nil
}

// keyReader reads the keys of a file in order.
type keyReader struct {
	from *mergeInput
	in   *bufio.Reader
	left uint64
	page [pageBytes]byte
	rest []byte
	key  keyReach
}

// next moves to the next key that is wanted. ok is false at the end.
func (r *keyReader) next() (ok bool, err error) {
	s := r.from.file
	for {
		if len(r.rest) == 0 {
			if r.left == 0 {
				return false, nil
			}
			n := min(pageKeys, r.left)
			page := r.page[:n*keyBytes+4]
			if _, err := io.ReadFull(r.in, page); err != nil {
				return false, fmt.Errorf("read keys of spilled state: %w", err)
			}
			if r.rest, err = s.checked(page, "keys"); err != nil {
				return false, err
			}
			r.left -= n
		}
		number := binary.LittleEndian.Uint32(r.rest[8:])
		if number >= s.Components {
			return false, fmt.Errorf("%w: %s: a key is of component %d of %d", ErrCorrupt, s.f.Name(), number, s.Components)
		}
		wanted := r.from.live.has(number)
		if wanted {
			r.key = s.decodeKey(r.rest)
			r.key.number = r.from.number(number)
		}
		r.rest = r.rest[keyBytes:]
		if wanted {
			return true, nil
		}
	}
}

// mergeKeys writes the keys of all inputs in one order.
func mergeKeys(w *writer, inputs []*mergeInput) error {
	var readers []*keyReader
	for _, in := range inputs {
		s := in.file
		r := &keyReader{from: in, left: s.Keys, in: bufio.NewReaderSize(io.NewSectionReader(s.f, int64(s.KeysAt), int64(s.IDsAt-s.KeysAt)), 256<<10)}
		ok, err := r.next()
		if err != nil {
			return err
		}
		if ok {
			readers = append(readers, r)
		}
	}
	for len(readers) > 0 {
		least := slices.MinFunc(readers, func(a, b *keyReader) int {
			return cmp.Or(cmp.Compare(a.key.hash, b.key.hash), cmp.Compare(a.key.number, b.key.number))
		})
		w.key(least.key)
		ok, err := least.next()
		if err != nil {
			return err
		}
		if !ok {
			readers = slices.DeleteFunc(readers, func(r *keyReader) bool { return r == least })
		}
	}
	return nil
}

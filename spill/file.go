package spill

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"slices"
	"sort"

	"github.com/klauspost/compress/s2"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// A spill file holds components that left memory, and an index of the key values through which events can link to them.
// It is written once; which of its components have gone back into memory is kept beside it. docs/formats/spill.md
// describes the bytes.

const (
	magic         = "weftspil"
	formatVersion = 1
	blockBytes    = 16 << 10 // before compression: what reading one component costs, against how well many compress
	pageKeys      = 128      // keys that are read together; for each page the first hash is in memory
	keyBytes      = 20
	pageBytes     = pageKeys*keyBytes + 4
	filterKeyBits = 16 // a look-up that should miss reads a page in vain about once in 500 times
	idBytes       = 12
)

// ErrCorrupt says that what was read back is not what was written.
var ErrCorrupt = errors.New("a spill file is damaged")

// footer is the end of a file.
type footer struct {
	Seed       uint64
	Components uint32
	Blocks     uint32
	Keys, IDs  uint64
	Events     uint64
	// Reach of the keys: times are multiples of 2^Shift after Base.
	Base, Last  int64
	Shift       uint32
	IDsCRC      uint32
	First, Late int64 // least and greatest expiry of a component
	KeysAt      uint64
	IDsAt       uint64
	TablesAt    uint64 // block table, first hashes, filter
	TablesCRC   uint32
	Version     uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var footerBytes = binary.Size(footer{}) + 4 + len(magic)

// blockPlace is where a block of components starts.
type blockPlace struct {
	At    uint64
	First uint32 // number of its first component
	Bytes uint32 // compressed, with the checksum
}

// keyReach is an entry of the index.
type keyReach struct {
	hash     uint64
	from, to event.Micros
	number   uint32 // of the component
}

func compareKeys(a, b keyReach) int {
	return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.number, b.number), cmp.Compare(a.from, b.from))
}

// filter is a Bloom filter whose bits for one key lie within 32 bytes, so that asking costs one access to memory.
type filter [][8]uint32

func newFilter(keys uint64) filter { return make(filter, keys*filterKeyBits/256+1) }

// filterSalts are odd numbers with an even spread of bits, from the fractional digits of the cube roots of primes.
var filterSalts = [8]uint32{0x428a2f99, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a5, 0xab1c5ed5}

func (f filter) add(h uint64) {
	block, _ := bits.Mul64(h, uint64(len(f)))
	for i, salt := range filterSalts {
		f[block][i] |= 1 << (uint32(h) * salt >> 27)
	}
}

func (f filter) has(h uint64) bool {
	at, _ := bits.Mul64(h, uint64(len(f)))
	block, x := &f[at], uint32(h)
	// Two of five bits are set: a branch for each would be guessed wrong too often.
	missing := ^block[0] & (1 << (x * filterSalts[0] >> 27))
	missing |= ^block[1] & (1 << (x * filterSalts[1] >> 27))
	missing |= ^block[2] & (1 << (x * filterSalts[2] >> 27))
	missing |= ^block[3] & (1 << (x * filterSalts[3] >> 27))
	missing |= ^block[4] & (1 << (x * filterSalts[4] >> 27))
	missing |= ^block[5] & (1 << (x * filterSalts[5] >> 27))
	missing |= ^block[6] & (1 << (x * filterSalts[6] >> 27))
	missing |= ^block[7] & (1 << (x * filterSalts[7] >> 27))
	return missing == 0
}

// bitmap is a set of numbers of components.
type bitmap []uint64

func newBitmap(n uint32) bitmap    { return make(bitmap, (n+63)/64) }
func (b bitmap) has(i uint32) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitmap) set(i uint32)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) count() (n int)    { return b.rank(len(b)) }
func (b bitmap) rank(words int) (n int) {
	for _, w := range b[:words] {
		n += bits.OnesCount64(w)
	}
	return n
}

// writer writes a file: all components, then all keys in order, then all ids.
type writer struct {
	out    *bufio.Writer
	at     uint64
	crc    []uint32 // of each part of the file that becomes an object
	foot   footer
	blocks []blockPlace
	firsts []uint64
	filter filter
	block  []byte
	packed []byte
	page   []byte
}

// newWriter starts a file for about so many keys. Its reach lies between base and last.
func newWriter(out io.Writer, seed, keys uint64, base, last event.Micros) *writer {
	w := &writer{out: bufio.NewWriterSize(out, 256<<10), filter: newFilter(keys)}
	w.foot = footer{Seed: seed, Base: int64(base), Last: int64(last), First: int64(event.MaxTime), Late: int64(event.MinTime), Version: formatVersion}
	for uint64(last-base)>>w.foot.Shift >= 1<<31 { // what is rounded further still fits
		w.foot.Shift++
	}
	w.write([]byte(magic))
	return w
}

// write appends bytes; errors stick to the bufio.Writer.
func (w *writer) write(b []byte) {
	for len(b) > 0 {
		room := partBytes - w.at%partBytes
		if room == partBytes {
			w.crc = append(w.crc, 0)
		}
		n := min(uint64(len(b)), room)
		w.crc[len(w.crc)-1] = crc32.Update(w.crc[len(w.crc)-1], castagnoli, b[:n])
		w.out.Write(b[:n]) // finish returns the error
		w.at += n
		b = b[n:]
	}
}

// component appends a component; components are numbered from 0.
func (w *writer) component(b []byte, expiry event.Micros) {
	w.block = binary.LittleEndian.AppendUint32(w.block, uint32(len(b)))
	w.block = append(w.block, b...)
	w.count(1, int64(expiry), int64(expiry))
	if len(w.block) >= blockBytes {
		w.endBlock()
	}
}

func (w *writer) count(components uint32, first, late int64) {
	if len(w.blocks) == 0 || w.blocks[len(w.blocks)-1].Bytes != 0 {
		w.blocks = append(w.blocks, blockPlace{At: w.at, First: w.foot.Components})
	}
	w.foot.Components += components
	w.foot.First, w.foot.Late = min(w.foot.First, first), max(w.foot.Late, late)
}

func (w *writer) endBlock() {
	if len(w.block) == 0 {
		return
	}
	w.packed = s2.Encode(w.packed[:cap(w.packed)], w.block)
	w.packed = binary.LittleEndian.AppendUint32(w.packed, crc32.Checksum(w.packed, castagnoli))
	w.blocks[len(w.blocks)-1].Bytes = uint32(len(w.packed))
	w.write(w.packed)
	w.block = w.block[:0]
}

// copyBlock appends a block of another file as it is.
func (w *writer) copyBlock(packed []byte, components uint32, first, late int64) {
	w.endBlock()
	w.count(components, first, late)
	w.blocks[len(w.blocks)-1].Bytes = uint32(len(packed))
	w.write(packed)
}

// key appends a key; keys come sorted. What is rounded is rounded so that it reaches further.
func (w *writer) key(k keyReach) {
	if w.foot.Keys == 0 {
		w.endBlock()
		w.foot.KeysAt = w.at
	}
	if w.foot.Keys%pageKeys == 0 {
		w.firsts = append(w.firsts, k.hash)
	}
	w.foot.Keys++
	w.filter.add(k.hash)
	from := uint64(int64(k.from)-w.foot.Base) >> w.foot.Shift
	to := (uint64(int64(k.to)-w.foot.Base) + 1<<w.foot.Shift - 1) >> w.foot.Shift
	w.page = binary.LittleEndian.AppendUint64(w.page, k.hash)
	w.page = binary.LittleEndian.AppendUint32(w.page, k.number)
	w.page = binary.LittleEndian.AppendUint32(w.page, uint32(from))
	w.page = binary.LittleEndian.AppendUint32(w.page, uint32(to))
	if w.foot.Keys%pageKeys == 0 {
		w.endPage()
	}
}

func (w *writer) endPage() {
	if len(w.page) > 0 {
		w.page = binary.LittleEndian.AppendUint32(w.page, crc32.Checksum(w.page, castagnoli))
		w.write(w.page)
		w.page = w.page[:0]
	}
}

// id appends the hash of a session's id and the number of its component.
func (w *writer) id(hash uint64, number uint32) {
	w.startIDs()
	w.foot.IDs++
	var b [idBytes]byte
	binary.LittleEndian.PutUint64(b[:], hash)
	binary.LittleEndian.PutUint32(b[8:], number)
	w.foot.IDsCRC = crc32.Update(w.foot.IDsCRC, castagnoli, b[:])
	w.write(b[:])
}

func (w *writer) startIDs() {
	if w.foot.IDsAt == 0 {
		w.endBlock()
		w.endPage()
		w.foot.IDsAt = w.at
		if w.foot.Keys == 0 {
			w.foot.KeysAt = w.at
		}
	}
}

// finish ends the file. f is what the writer writes to.
func (w *writer) finish(f *os.File) (*file, error) {
	w.startIDs()
	w.foot.TablesAt, w.foot.Blocks = w.at, uint32(len(w.blocks))
	var tables bytes.Buffer
	for _, table := range []any{w.blocks, w.firsts, [][8]uint32(w.filter)} {
		if err := binary.Write(&tables, binary.LittleEndian, table); err != nil {
			return nil, err
		}
	}
	w.foot.TablesCRC = crc32.Checksum(tables.Bytes(), castagnoli)
	w.write(tables.Bytes())
	foot, err := binary.Append(nil, binary.LittleEndian, &w.foot)
	if err != nil {
		return nil, err
	}
	w.write(binary.LittleEndian.AppendUint32(foot, crc32.Checksum(foot, castagnoli)))
	w.write([]byte(magic))
	if err := w.out.Flush(); err != nil {
		return nil, err
	}
	return &file{
		f: f, bytes: int64(w.at), crc: w.crc, footer: w.foot, blocks: w.blocks, firsts: w.firsts, filter: w.filter,
		gone: newBitmap(w.foot.Components),
	}, nil
}

// file is a file that can be asked. The file itself never changes; one goroutine owns gone and what counts it.
type file struct {
	footer
	f      *os.File
	key    string // of its objects, without the number of the part
	bytes  int64
	crc    []uint32 // by part
	blocks []blockPlace
	firsts []uint64
	filter filter
	saved  bool // it lies in the object store

	gone       bitmap // components that are in memory again
	goneCount  uint32
	goneEvents uint64

	// Of a store whose core hands out what is final: by when each component has to be in memory again, in order. Those before due
	// are.
	dues []due
	due  int
}

type due struct {
	expiry event.Micros
	number uint32
}

func compareDues(a, b due) int {
	return cmp.Or(cmp.Compare(a.expiry, b.expiry), cmp.Compare(a.number, b.number))
}

// listDues reads from a file when its components are due.
func (s *file) listDues(r *blockReader) error {
	s.dues = make([]due, 0, s.Components)
	for n := range s.Components {
		b, err := r.component(s, n)
		if err != nil {
			return err
		}
		expiry, err := correlate.SpilledExpiry(b)
		if err != nil {
			return err
		}
		s.dues = append(s.dues, due{expiry, n})
	}
	slices.SortFunc(s.dues, compareDues)
	return nil
}

// openFile reads the tables of a file.
func openFile(f *os.File) (*file, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	s := &file{f: f, bytes: size}
	bad := func(what string) error { return fmt.Errorf("%w: %s: %s", ErrCorrupt, f.Name(), what) }
	if size < int64(footerBytes+len(magic)) {
		return nil, bad("it is too short")
	}
	b := make([]byte, footerBytes)
	if _, err := f.ReadAt(b, size-int64(len(b))); err != nil {
		return nil, err
	}
	foot, sum := b[:len(b)-len(magic)-4], b[len(b)-len(magic)-4:]
	if string(b[len(b)-len(magic):]) != magic || crc32.Checksum(foot, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return nil, bad("its end is not that of a spill file")
	}
	if _, err := binary.Decode(foot, binary.LittleEndian, &s.footer); err != nil {
		return nil, err
	}
	if s.Version != formatVersion {
		return nil, fmt.Errorf("spill file %s has format version %d, this engine reads %d", f.Name(), s.Version, formatVersion)
	}
	end := size - int64(footerBytes)
	pages := (s.Keys + pageKeys - 1) / pageKeys
	fixed := uint64(s.Blocks)*uint64(binary.Size(blockPlace{})) + pages*8
	if s.TablesAt > uint64(end) || fixed > uint64(end)-s.TablesAt || (uint64(end)-s.TablesAt-fixed)%32 != 0 ||
		s.KeysAt > s.IDsAt || s.IDsAt > s.TablesAt || s.IDsAt-s.KeysAt != s.Keys*keyBytes+pages*4 || s.TablesAt-s.IDsAt != s.IDs*idBytes {
		return nil, bad("its sections do not fit")
	}
	tables := make([]byte, uint64(end)-s.TablesAt)
	if _, err := f.ReadAt(tables, int64(s.TablesAt)); err != nil {
		return nil, err
	}
	if crc32.Checksum(tables, castagnoli) != s.TablesCRC {
		return nil, bad("the checksum of its tables does not match")
	}
	s.blocks, s.firsts = make([]blockPlace, s.Blocks), make([]uint64, pages)
	filter := make([][8]uint32, (uint64(len(tables))-fixed)/32)
	for _, table := range []any{s.blocks, s.firsts, filter} {
		n, err := binary.Decode(tables, binary.LittleEndian, table)
		if err != nil {
			return nil, err
		}
		tables = tables[n:]
	}
	s.filter, s.gone = filter, newBitmap(s.Components)
	return s, nil
}

// memory is what the file takes in memory.
func (s *file) memory() int64 {
	return int64(len(s.filter))*32 + int64(len(s.firsts))*8 + int64(len(s.blocks))*16 + int64(len(s.gone))*8 + int64(cap(s.dues))*16 + 256
}

// live is how many of its components are not in memory again.
func (s *file) live() uint32 { return s.Components - s.goneCount }

// liveBytes estimates what of its bytes are of those.
func (s *file) liveBytes() int64 {
	return s.bytes * int64(s.live()) / int64(max(1, s.Components))
}

// find calls yield for each component that an event that is needed could link to. It returns whether the filter was right.
func (s *file) find(n *correlate.Need, page *[pageBytes]byte, yield func(number uint32)) (found bool, err error) {
	// Keys of one hash may stand on several pages; the first may end the page before the first that starts with it.
	p := max(0, sort.Search(len(s.firsts), func(i int) bool { return s.firsts[i] >= n.Hash })-1)
	for ; p < len(s.firsts) && s.firsts[p] <= n.Hash; p++ {
		page, err := s.readPage(p, page)
		if err != nil {
			return false, err
		}
		for ; len(page) > 0; page = page[keyBytes:] {
			if binary.LittleEndian.Uint64(page) != n.Hash {
				continue
			}
			found = true
			k := s.decodeKey(page)
			if k.number >= s.Components {
				return false, fmt.Errorf("%w: %s: a key is of component %d of %d", ErrCorrupt, s.f.Name(), k.number, s.Components)
			}
			if k.from <= n.To && n.From <= k.to && !s.gone.has(k.number) {
				yield(k.number)
			}
		}
	}
	return found, nil
}

func (s *file) decodeKey(b []byte) keyReach {
	at := func(v uint32) event.Micros { return event.Micros(s.Base + int64(uint64(v)<<s.Shift)) }
	return keyReach{
		hash: binary.LittleEndian.Uint64(b), number: binary.LittleEndian.Uint32(b[8:]),
		from: at(binary.LittleEndian.Uint32(b[12:])), to: at(binary.LittleEndian.Uint32(b[16:])),
	}
}

// readPage reads a page of keys into memory of the caller.
func (s *file) readPage(p int, into *[pageBytes]byte) ([]byte, error) {
	n := min(pageKeys, s.Keys-uint64(p)*pageKeys)*keyBytes + 4
	page := into[:n]
	if _, err := s.f.ReadAt(page, int64(s.KeysAt)+int64(p)*pageBytes); err != nil {
		return nil, fmt.Errorf("read keys of spilled state: %w", err)
	}
	return s.checked(page, "keys")
}

// checked returns what stands before a checksum.
func (s *file) checked(b []byte, what string) ([]byte, error) {
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("%w: %s: the checksum of its %s does not match", ErrCorrupt, s.f.Name(), what)
	}
	return body, nil
}

// blockReader reads blocks of components and keeps the last one.
type blockReader struct {
	file   *file
	number int
	packed []byte
	raw    []byte
}

// read reads a block.
func (r *blockReader) read(s *file, number int) error {
	if r.file == s && r.number == number {
		return nil
	}
	packed, err := r.readPacked(s, number)
	if err != nil {
		return err
	}
	r.file = nil
	body, err := s.checked(packed, "components")
	if err != nil {
		return err
	}
	if r.raw, err = s2.Decode(r.raw[:cap(r.raw)], body); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, s.f.Name(), err)
	}
	r.file, r.number = s, number
	return nil
}

func (r *blockReader) readPacked(s *file, number int) ([]byte, error) {
	b := &s.blocks[number]
	if b.Bytes < 4 || b.At+uint64(b.Bytes) > uint64(s.bytes) {
		return nil, fmt.Errorf("%w: %s: a block is out of bounds", ErrCorrupt, s.f.Name())
	}
	r.packed = slices.Grow(r.packed[:0], int(b.Bytes))[:b.Bytes]
	if _, err := s.f.ReadAt(r.packed, int64(b.At)); err != nil {
		return nil, fmt.Errorf("read spilled state: %w", err)
	}
	return r.packed, nil
}

// component returns a component's bytes, valid until the next call.
func (r *blockReader) component(s *file, number uint32) ([]byte, error) {
	k := sort.Search(len(s.blocks), func(i int) bool { return s.blocks[i].First > number }) - 1
	if k < 0 {
		return nil, fmt.Errorf("%w: %s: it has no component %d", ErrCorrupt, s.f.Name(), number)
	}
	if err := r.read(s, k); err != nil {
		return nil, err
	}
	rest := r.raw
	for i := s.blocks[k].First; ; i++ {
		b, after, err := cutComponent(s, rest)
		if err != nil || i == number {
			return b, err
		}
		rest = after
	}
}

// cutComponent returns the first component of a block and what is behind it.
func cutComponent(s *file, raw []byte) (b, rest []byte, err error) {
	if len(raw) < 4 || uint64(binary.LittleEndian.Uint32(raw)) > uint64(len(raw)-4) {
		return nil, nil, fmt.Errorf("%w: %s: a component is cut short", ErrCorrupt, s.f.Name())
	}
	n := 4 + int(binary.LittleEndian.Uint32(raw))
	return raw[4:n], raw[n:], nil
}

// blockEnd returns the number after that of the last component of a block.
func (s *file) blockEnd(k int) uint32 {
	if k+1 < len(s.blocks) {
		return s.blocks[k+1].First
	}
	return s.Components
}

// ids calls yield for all ids, in order of component.
func (s *file) ids(yield func(hash uint64, number uint32)) error {
	in := bufio.NewReaderSize(io.NewSectionReader(s.f, int64(s.IDsAt), int64(s.IDs)*idBytes), 256<<10)
	crc := uint32(0)
	var b [idBytes]byte
	for range s.IDs {
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return fmt.Errorf("read ids of spilled state: %w", err)
		}
		crc = crc32.Update(crc, castagnoli, b[:])
		number := binary.LittleEndian.Uint32(b[8:])
		if number >= s.Components {
			return fmt.Errorf("%w: %s: an id is of component %d of %d", ErrCorrupt, s.f.Name(), number, s.Components)
		}
		yield(binary.LittleEndian.Uint64(b[:]), number)
	}
	if crc != s.IDsCRC {
		return fmt.Errorf("%w: %s: the checksum of its ids does not match", ErrCorrupt, s.f.Name())
	}
	return nil
}

// idHash shortens a session's id. Two of one hash cost a component that is loaded in vain.
func idHash(id *correlate.ID) uint64 { return event.Hash(0, id[:]) }

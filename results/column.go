package results

import (
	"encoding/binary"
	"slices"

	"github.com/parquet-go/parquet-go/encoding/delta"
	"github.com/parquet-go/parquet-go/encoding/rle"
	"github.com/parquet-go/parquet-go/format"

	"github.com/weftdata/weft/event"
)

// column is one leaf: the values of the page that is being built, and the pages of the row group so far.
type column struct {
	path   []string
	shape  shape
	levels *levels // nil: exactly one value a row
	values values
	bounds bool    // keep the least and greatest value of the row group
	like   *column // has the same values: its pages are written for this column too

	pages           []byte
	count, nulls    int64 // values of the row group, nulls included; nulls and empty lists
	uncompressed    int64
	dictionary      bool // a page uses the dictionary
	encodings       []format.Encoding
	least, greatest []byte // as the format stores them
}

// withBounds makes the column keep statistics.
func (c *column) withBounds() { c.bounds = true }

func (c *column) encode(e format.Encoding) {
	c.dictionary = c.dictionary || e == format.RLEDictionary
	if !slices.Contains(c.encodings, e) {
		c.encodings = append(c.encodings, e)
	}
}

func (c *column) measure() {
	if c.bounds {
		c.least, c.greatest = c.values.bounds(c.least, c.greatest)
	}
}

func (c *column) reset() {
	c.pages = c.pages[:0]
	c.count, c.nulls, c.uncompressed, c.dictionary = 0, 0, 0, false
	c.encodings, c.least, c.greatest = nil, nil, nil
	if c.values.dict() != nil {
		c.values.resetDict()
	}
}

// values is a page of values that are there (nulls are not).
type values interface {
	count() int
	// encode appends the values to dst and forgets them.
	encode(dst []byte) ([]byte, format.Encoding)
	// bounds widens the range of values, in the format's plain encoding; nil is empty.
	bounds(least, greatest []byte) ([]byte, []byte)
	// dict is nil where the column has no dictionary.
	dict() *dictionary
	resetDict()
}

// longs are integers or times, delta encoded.
type longs struct{ page []int64 }

func (v *longs) add(n int64) { v.page = append(v.page, n) }
func (v *longs) count() int  { return len(v.page) }

func (v *longs) encode(dst []byte) ([]byte, format.Encoding) {
	var e delta.BinaryPackedEncoding
	dst, _ = e.EncodeInt64(dst, v.page) // fails for no input
	v.page = v.page[:0]
	return dst, format.DeltaBinaryPacked
}

func (v *longs) bounds(least, greatest []byte) ([]byte, []byte) {
	if len(v.page) == 0 {
		return least, greatest
	}
	lo, hi := slices.Min(v.page), slices.Max(v.page)
	if least != nil {
		lo = min(lo, int64(binary.LittleEndian.Uint64(least)))
		hi = max(hi, int64(binary.LittleEndian.Uint64(greatest)))
	}
	return binary.LittleEndian.AppendUint64(nil, uint64(lo)), binary.LittleEndian.AppendUint64(nil, uint64(hi))
}

func (v *longs) dict() *dictionary { return nil }
func (v *longs) resetDict()        {}

// ints are small integers, delta encoded.
type ints struct{ page []int32 }

func (v *ints) add(n int32) { v.page = append(v.page, n) }
func (v *ints) count() int  { return len(v.page) }

func (v *ints) encode(dst []byte) ([]byte, format.Encoding) {
	var e delta.BinaryPackedEncoding
	dst, _ = e.EncodeInt32(dst, v.page) // fails for no input
	v.page = v.page[:0]
	return dst, format.DeltaBinaryPacked
}

func (v *ints) bounds(least, greatest []byte) ([]byte, []byte) { return least, greatest }
func (v *ints) dict() *dictionary                              { return nil }
func (v *ints) resetDict()                                     {}

// names are texts of a closed set, numbered by the caller.
type names struct {
	page  []int32
	words *dictionary
}

func newNames(list []string) *names {
	v := &names{words: new(dictionary)}
	for _, name := range list {
		v.words.append(appendValid(nil, name))
	}
	return v
}

func (v *names) add(n int32) { v.page = append(v.page, n) }
func (v *names) count() int  { return len(v.page) }

func (v *names) encode(dst []byte) ([]byte, format.Encoding) {
	var e rle.DictionaryEncoding
	dst, _ = e.EncodeInt32(dst, v.page) // fails for no input: the width is taken from the values
	v.page = v.page[:0]
	return dst, format.RLEDictionary
}

func (v *names) bounds(least, greatest []byte) ([]byte, []byte) { return least, greatest }
func (v *names) dict() *dictionary                              { return v.words }
func (v *names) resetDict()                                     {}

// steps are names of an open set that the rows number; the numbers are translated to those of the dictionary.
type steps struct {
	names
	seen []seenStep // by number in the rows
}

type seenStep struct {
	name string
	word int32 // number in the dictionary + 1; 0: not there yet
}

func newSteps() *steps { return &steps{names: names{words: new(dictionary)}} }

func (v *steps) add(n uint32, stepNames []string) {
	if int(n) >= len(v.seen) {
		v.seen = append(v.seen, make([]seenStep, len(stepNames)-len(v.seen))...)
	}
	s := &v.seen[n]
	if s.word == 0 || s.name != stepNames[n] {
		s.name = stepNames[n]
		s.word = v.words.number(appendValid(nil, s.name)) + 1
	}
	v.page = append(v.page, s.word-1)
}

func (v *steps) resetDict() {
	v.words.reset()
	clear(v.seen)
}

// texts are strings or bytes. While they repeat, a dictionary holds them.
type texts struct {
	words   *dictionary // nil: none, or given up
	numbers []int32     // with a dictionary: the page
	data    []byte      // without: the bytes of the page's values
	lengths []int32
	scratch []byte
	raw     bool // any bytes, not text
}

func newTexts() *texts     { return &texts{} }
func newDictTexts() *texts { return &texts{words: new(dictionary)} }

func (v *texts) add(value []byte) {
	if v.words != nil {
		v.scratch = appendValid(v.scratch[:0], value)
		v.numbers = append(v.numbers, v.words.number(v.scratch))
		return
	}
	at := len(v.data)
	if v.raw {
		v.data = append(v.data, value...)
	} else {
		v.data = appendValid(v.data, value)
	}
	v.lengths = append(v.lengths, int32(len(v.data)-at))
}

func (v *texts) count() int { return len(v.numbers) + len(v.lengths) }

func (v *texts) encode(dst []byte) ([]byte, format.Encoding) {
	if v.words != nil && v.words.len() <= dictEntriesMax {
		var e rle.DictionaryEncoding
		dst, _ = e.EncodeInt32(dst, v.numbers) // fails for no input: the width is taken from the values
		v.numbers = v.numbers[:0]
		return dst, format.RLEDictionary
	}
	for _, n := range v.numbers {
		word := v.words.word(n)
		v.data = append(v.data, word...)
		v.lengths = append(v.lengths, int32(len(word)))
	}
	v.numbers = v.numbers[:0]
	var e delta.BinaryPackedEncoding
	dst, _ = e.EncodeInt32(dst, v.lengths) // fails for no input
	dst = append(dst, v.data...)
	v.data, v.lengths = v.data[:0], v.lengths[:0]
	return dst, format.DeltaLengthByteArray
}

func (v *texts) bounds(least, greatest []byte) ([]byte, []byte) {
	at := 0
	for _, n := range v.lengths {
		value := v.data[at : at+int(n)]
		at += int(n)
		if least == nil || string(value) < string(least) {
			least = append(least[:0:0], value...)
		}
		if greatest == nil || string(value) > string(greatest) {
			greatest = append(greatest[:0:0], value...)
		}
	}
	return least, greatest
}

func (v *texts) dict() *dictionary { return v.words }

func (v *texts) resetDict() {
	if v.words.len() > dictEntriesMax {
		v.words = nil // its values hardly repeat: do without from now on
		return
	}
	v.words.reset()
}

// dictionary numbers distinct texts and holds them as the format's dictionary page does: a length of 4 bytes before each.
type dictionary struct {
	data  []byte
	ends  []uint32 // of the texts in data
	slots []uint32 // open addressing; number + 1
}

func (d *dictionary) len() int { return len(d.ends) }

func (d *dictionary) word(n int32) []byte {
	start := uint32(4)
	if n > 0 {
		start += d.ends[n-1]
	}
	return d.data[start:d.ends[n]]
}

func (d *dictionary) append(word []byte) {
	d.data = binary.LittleEndian.AppendUint32(d.data, uint32(len(word)))
	d.data = append(d.data, word...)
	d.ends = append(d.ends, uint32(len(d.data)))
}

// number returns the number of a text, adding it when it is new.
func (d *dictionary) number(word []byte) int32 {
	if 2*len(d.ends) >= len(d.slots) {
		d.grow()
	}
	mask := uint32(len(d.slots) - 1)
	for i := uint32(event.Hash(0, word)) & mask; ; i = (i + 1) & mask {
		n := d.slots[i]
		if n == 0 {
			d.append(word)
			d.slots[i] = uint32(len(d.ends))
			return int32(len(d.ends) - 1)
		}
		if string(d.word(int32(n-1))) == string(word) {
			return int32(n - 1)
		}
	}
}

func (d *dictionary) grow() {
	d.slots = make([]uint32, max(64, 2*len(d.slots)))
	mask := uint32(len(d.slots) - 1)
	for n := range d.ends {
		i := uint32(event.Hash(0, d.word(int32(n)))) & mask
		for d.slots[i] != 0 {
			i = (i + 1) & mask
		}
		d.slots[i] = uint32(n + 1)
	}
}

func (d *dictionary) reset() {
	d.data, d.ends = d.data[:0], d.ends[:0]
	clear(d.slots)
}

// levels are the repetition and definition levels of a list's columns, or the definition levels of an optional column.
// Either has but the values 0 and 1.
type levels struct {
	repeated bool
	rep, def bitRun
}

func (l *levels) count() int { return l.def.n }

// list adds a list of n elements.
func (l *levels) list(n int) {
	l.rep.add(0, 1)
	if n == 0 {
		l.def.add(0, 1)
		return
	}
	l.rep.add(1, n-1)
	l.def.add(1, n)
}

// optional adds a value that is there or null.
func (l *levels) optional(present bool) {
	if present {
		l.def.add(1, 1)
	} else {
		l.def.add(0, 1)
	}
}

func (l *levels) reset() {
	l.rep.reset()
	l.def.reset()
}

// bitRun is a sequence of bits, the first in the lowest bit.
type bitRun struct {
	words   []uint64
	n, ones int
}

// add appends a bit count times.
func (b *bitRun) add(bit uint64, count int) {
	for count > 0 {
		at := b.n & 63
		if at == 0 {
			b.words = append(b.words, 0)
		}
		k := min(count, 64-at)
		if bit != 0 {
			b.words[len(b.words)-1] |= (1<<k - 1) << at
			b.ones += k
		}
		b.n += k
		count -= k
	}
}

func (b *bitRun) reset() { b.words, b.n, b.ones = b.words[:0], 0, 0 }

// appendTo appends the bits in the format's hybrid encoding, with the length of 4 bytes that a data page wants: one run
// where all are the same, one bit-packed run otherwise.
func (b *bitRun) appendTo(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	switch b.ones {
	case 0:
		dst = append(binary.AppendUvarint(dst, uint64(b.n)<<1), 0)
	case b.n:
		dst = append(binary.AppendUvarint(dst, uint64(b.n)<<1), 1)
	default:
		groups := (b.n + 7) / 8
		dst = binary.AppendUvarint(dst, uint64(groups)<<1|1)
		for _, w := range b.words {
			dst = binary.LittleEndian.AppendUint64(dst, w)
		}
		dst = dst[:len(dst)-(8*len(b.words)-groups)]
	}
	binary.LittleEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

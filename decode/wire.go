package decode

import (
	"math"
	"strconv"

	"github.com/weftdata/weft/event"
)

// wire is what the two binary formats share: reading a record's bytes, and turning binary values into the text that
// the frame takes. A reading method returns the position after what it read, or -1 where it failed; fail says why.
type wire struct {
	*frame
	p      []byte // the record, without its header
	off    uint32 // where p starts in Batch.Data
	reason event.Reason
	detail string
	yes    constant
	no     constant
}

func newWire(f *frame) wire {
	return wire{frame: f, yes: constant{text: "true"}, no: constant{text: "false"}}
}

func (w *wire) start(b *event.Batch, r event.Record, header int) {
	w.p = b.Raw(r)[header:]
	w.off = r.Off + uint32(header)
	w.reason, w.detail = "", ""
}

// fail notes why the record cannot be read.
func (w *wire) fail(reason event.Reason, detail string) int {
	if w.reason == "" {
		w.reason, w.detail = reason, detail
	}
	return -1
}

func (w *wire) short() int { return w.fail(event.ReasonSyntax, "the record ends early") }

// uvarint reads a number of 7 bits a byte, least first.
func (w *wire) uvarint(at int) (v uint64, next int) {
	if at < len(w.p) && w.p[at] < 0x80 {
		return uint64(w.p[at]), at + 1
	}
	for shift := 0; at < len(w.p); shift += 7 {
		c := w.p[at]
		at++
		if shift == 63 && c > 1 {
			return 0, w.fail(event.ReasonSyntax, "a number of more than 64 bits")
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, at
		}
	}
	return 0, w.short()
}

// varint reads a zigzag number.
func (w *wire) varint(at int) (v int64, next int) {
	if at < len(w.p) && w.p[at] < 0x80 {
		return zigzag(uint64(w.p[at])), at + 1
	}
	u, next := w.uvarint(at)
	return zigzag(u), next
}

func zigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// advance returns the position n bytes further.
func (w *wire) advance(at int, n uint64) int {
	if n > uint64(len(w.p)-at) {
		return w.short()
	}
	return at + int(n)
}

// leaf is where a scalar goes.
type leaf struct {
	slots []int
	many  bool // the path runs through an array: all values count; else one
	last  bool // of several values the last counts, not the first
}

// give delivers b.Data[off:off+n] to the slots of a leaf.
func (w *wire) give(l *leaf, off, n uint32, k kind) {
	for _, slot := range l.slots {
		switch {
		case l.many:
			w.set(slot, off, n, k)
		case l.last || w.vals[slot].kind == kindAbsent:
			w.vals[slot] = ref{off, n, k}
		}
	}
}

// giveFrom delivers text that a decoder appended to b.Data from position at on.
func (w *wire) giveFrom(b *event.Batch, l *leaf, at int, k kind) {
	w.give(l, uint32(at), uint32(len(b.Data)-at), k)
}

func (w *wire) giveInt(b *event.Batch, l *leaf, v int64) {
	at := len(b.Data)
	b.Data = strconv.AppendInt(b.Data, v, 10)
	w.giveFrom(b, l, at, kindNumber)
}

func (w *wire) giveBool(b *event.Batch, l *leaf, v bool) {
	c := &w.no
	if v {
		c = &w.yes
	}
	text := c.in(b)
	w.give(l, text.off, text.n, kindBool)
}

// giveFloat delivers the shortest text that reads back as v, with an exponent where plain digits would be long.
func (w *wire) giveFloat(b *event.Batch, l *leaf, v float64, bits int) {
	format := byte('f')
	if abs := math.Abs(v); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	at := len(b.Data)
	b.Data = strconv.AppendFloat(b.Data, v, format, -1, bits)
	w.giveFrom(b, l, at, kindNumber)
}

// giveConstant delivers text from the schema.
func (w *wire) giveConstant(b *event.Batch, l *leaf, c *constant) {
	text := c.in(b)
	w.give(l, text.off, text.n, kindString)
}

// eachSlot stands for a slot in the want of the array of `each`.
const eachSlot = -1

// wanted sorts what a spec wants of a binary format's records.
type wanted struct {
	root []want    // from the record
	elem []want    // from each element of the array of `each`
	each []segment // path of that array
}

// wantedOf parses the paths of the frame's slots and of `each`.
func wantedOf(f *frame, each string, eachProblem func(message, hint string) error) (w wanted, err error) {
	if each != "" {
		if w.each, _, err = parsePath(each); err != nil {
			return w, eachProblem(err.Error(), "")
		}
		for _, s := range w.each {
			if s.every || s.index >= 0 {
				return w, eachProblem("the path of the array may hold names only", "such as data.items")
			}
		}
	}
	for slot := range f.slots {
		segs, root, err := parsePath(f.slots[slot].path)
		if err != nil {
			return w, f.badPath(slot, err.Error(), "")
		}
		if each == "" || root {
			w.root = append(w.root, want{segs, slot})
		} else {
			w.elem = append(w.elem, want{segs, slot})
		}
	}
	return w, nil
}

// misses collects, by slot, why a path leads nowhere in a schema. A path that is found in one branch of a union and
// not in another is found.
type misses struct {
	found []bool
	why   []miss
}

type miss struct{ message, hint string }

func newMisses(f *frame) misses {
	return misses{make([]bool, len(f.slots)), make([]miss, len(f.slots))}
}

func (m *misses) add(wants []want, message, hint string) {
	for _, w := range wants {
		if w.slot != eachSlot && m.why[w.slot].message == "" {
			m.why[w.slot] = miss{message, hint}
		}
	}
}

// problem returns the problem with the first path that was not found, or nil.
func (m *misses) problem(f *frame) error {
	for slot, found := range m.found {
		if !found {
			why := m.why[slot]
			if why.message == "" {
				why.message = "the schema has no value here"
			}
			return f.badPath(slot, why.message, why.hint)
		}
	}
	return nil
}

// ended returns the wants that end here, and those that lead further.
func ended(wants []want) (here, further []want) {
	for _, w := range wants {
		if len(w.path) == 0 {
			here = append(here, w)
		} else {
			further = append(further, w)
		}
	}
	return here, further
}

// leafOf makes the leaf of the wants that end at a scalar.
func (m *misses) leafOf(here []want, many bool) leaf {
	l := leaf{many: many}
	for _, w := range here {
		if w.slot != eachSlot {
			l.slots = append(l.slots, w.slot)
			m.found[w.slot] = true
		}
	}
	return l
}

package decode

import (
	"encoding/binary"
	"math"
	"strconv"

	avrolib "github.com/hamba/avro/v2"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// avro decodes records that are one Avro datum each, in binary and without the header of container files. The schema
// is compiled to a tree of nodes that say of each part of the datum what to do with it: pick it or step over it.
//
// All records are read with the one schema of the source, which must be the one that wrote them: Avro's bytes do not
// tell their schema. With `confluent: true` each record must start with a zero byte and a schema id of four bytes, which
// are dropped; without, nothing is dropped.
//
// Numbers become decimal text, enums their symbols, and a decimal its exact value with a point; a timestamp stays the
// number that it is, and gives the time its layout where the spec has none.
type avro struct {
	wire
	confluent bool
	root      *avroNode
	elem      *avroNode // of the elements of the source's `each`; nil: the record is one event
	eachAt    int       // of the current record: where that array starts; -1: it has none
}

const confluentHeader = 5 // bytes: zero, and the schema id

type avroOp uint8

const (
	avroNull avroOp = iota
	avroBoolean
	avroInt
	avroLong
	avroFloat
	avroDouble
	avroBytes // and strings
	avroDecimal
	avroFixed
	avroFixedDecimal
	avroEnum
	avroUnion
	avroRecord
	avroArray
	avroMap
)

// avroNode is what to do with one part of a datum.
type avroNode struct {
	op      avroOp
	size    int         // avroFixed: bytes
	scale   int         // decimals: digits after the point
	empty   bool        // the part has no bytes at all
	skip    bool        // nothing of the part is wanted
	each    bool        // the part is the array of `each`
	leaf    leaf        // where a scalar goes
	nodes   []*avroNode // record: by field; union: by branch; array, map: the one for elements without their own
	symbols []constant  // enum
	elems   []avroElem  // array: elements wanted by index; map: entries wanted by key
}

type avroElem struct {
	index int
	key   string
	node  *avroNode
}

func newAvro(src *jobspec.Source, f *frame, o Options) (Decoder, error) {
	schema, err := parseAvroSchema(src, o)
	if err != nil {
		return nil, f.problem(src.Format.Pos, "format.schema", err.Error(), "")
	}
	timeSlot := f.slot(src.Time.Field, src.Time.Pos, "time")
	w, err := wantedOf(f, src.Each, func(message, hint string) error { return f.problem(src.Pos, "each", message, hint) })
	if err != nil {
		return nil, err
	}
	d := &avro{wire: newWire(f), confluent: src.Format.Confluent}
	c := avroCompiler{misses: newMisses(f), layouts: make([]string, len(f.slots)), skips: map[avrolib.Schema]*avroNode{}, elem: w.elem}
	if src.Each != "" {
		w.root = append(w.root, want{w.each, eachSlot})
	}
	d.root = c.node(schema, w.root, false)
	d.elem = c.elemNode
	switch {
	case c.count > avroNodesMax:
		return nil, f.problem(src.Format.Pos, "format.schema", "the schema is too large for these paths", "")
	case src.Each != "" && d.elem == nil:
		return nil, f.problem(src.Pos, "each", "the schema has no array "+strconv.Quote(src.Each), "")
	case c.crossed:
		return nil, f.problem(src.Pos, "each", "a path from the record's root leads through the array of each", "leave out its $.")
	}
	if err := c.misses.problem(f); err != nil {
		return nil, err
	}
	if !f.time.set && c.layouts[timeSlot] != "" {
		return d, f.setTime(src, src.Time.Field, c.layouts[timeSlot])
	}
	return d, nil
}

// Decode implements Decoder.
func (d *avro) Decode(b *event.Batch, r event.Record) {
	if !d.begin(b, r) {
		return
	}
	header := 0
	if d.confluent {
		header = confluentHeader
		if raw := b.Raw(r); len(raw) < header || raw[0] != 0 {
			d.reject(b, event.ReasonSchema, "the record has no Confluent header")
			return
		}
	}
	d.start(b, r, header)
	d.eachAt = -1
	end := d.value(b, d.root, 0, event.DepthMax)
	if end >= 0 && end < len(d.p) {
		end = d.fail(event.ReasonSyntax, strconv.Itoa(len(d.p)-end)+" bytes after the end of the datum")
	}
	if end < 0 {
		if !d.confluent && len(d.p) > 0 && d.p[0] == 0 {
			d.detail += "; if it starts with a schema id, set confluent: true"
		}
		d.reject(b, d.reason, d.detail)
		return
	}
	if d.elem == nil {
		d.emit(b, 0)
		return
	}
	d.events(b)
}

// value reads the part at a position and returns the position after it. Depth is how much deeper it may nest.
func (d *avro) value(b *event.Batch, n *avroNode, at, depth int) int {
	switch n.op {
	case avroNull:
		return at
	case avroRecord:
		if depth == 0 {
			return d.fail(event.ReasonTooDeep, "")
		}
		for _, field := range n.nodes {
			if at = d.value(b, field, at, depth-1); at < 0 {
				return -1
			}
		}
		return at
	case avroUnion:
		branch, at := d.varint(at)
		if at < 0 {
			return -1
		}
		if branch < 0 || branch >= int64(len(n.nodes)) {
			return d.fail(event.ReasonSyntax, "branch "+strconv.FormatInt(branch, 10)+" of a union of "+strconv.Itoa(len(n.nodes)))
		}
		return d.value(b, n.nodes[branch], at, depth)
	case avroArray, avroMap:
		if depth == 0 {
			return d.fail(event.ReasonTooDeep, "")
		}
		if n.each && d.eachAt < 0 {
			d.eachAt = at
		}
		return d.blocks(b, n, at, depth-1)
	case avroInt, avroLong, avroEnum:
		return d.number(b, n, at)
	case avroBytes, avroDecimal:
		size, at := d.varint(at)
		if at < 0 {
			return -1
		}
		return d.bytes(b, n, at, uint64(size)) // a negative size is larger than any record
	default:
		return d.bytes(b, n, at, uint64(n.size))
	}
}

// number reads a part that is written as a zigzag number.
func (d *avro) number(b *event.Batch, n *avroNode, at int) int {
	v, at := d.varint(at)
	if at < 0 {
		return -1
	}
	switch {
	case n.op == avroEnum && (v < 0 || v >= int64(len(n.symbols))):
		return d.fail(event.ReasonSyntax, "symbol "+strconv.FormatInt(v, 10)+" of an enum of "+strconv.Itoa(len(n.symbols)))
	case n.op == avroInt && int64(int32(v)) != v:
		return d.fail(event.ReasonSyntax, "an int of more than 32 bits")
	case n.skip:
	case n.op == avroEnum:
		d.giveConstant(b, &n.leaf, &n.symbols[v])
	default:
		d.giveInt(b, &n.leaf, v)
	}
	return at
}

// bytes reads a part of a known number of bytes.
func (d *avro) bytes(b *event.Batch, n *avroNode, at int, size uint64) int {
	end := d.advance(at, size)
	if end < 0 {
		return -1
	}
	if n.op == avroBoolean && d.p[at] > 1 {
		return d.fail(event.ReasonSyntax, "a boolean that is neither 0 nor 1")
	}
	if n.skip {
		return end
	}
	p := d.p[at:end]
	switch n.op {
	case avroBoolean:
		d.giveBool(b, &n.leaf, p[0] == 1)
	case avroFloat:
		d.giveFloat(b, &n.leaf, float64(math.Float32frombits(binary.LittleEndian.Uint32(p))), 32)
	case avroDouble:
		d.giveFloat(b, &n.leaf, math.Float64frombits(binary.LittleEndian.Uint64(p)), 64)
	case avroDecimal, avroFixedDecimal:
		if !d.decimal(b, n, p) {
			return d.fail(event.ReasonBadField, "a decimal of more than 64 bits")
		}
	default:
		d.give(&n.leaf, d.off+uint32(at), uint32(size), kindString)
	}
	return end
}

// decimal delivers an unscaled two's complement number, most significant byte first, as text with a point. It returns
// false where the number has more than 64 bits.
func (d *avro) decimal(b *event.Batch, n *avroNode, p []byte) bool {
	v := int64(0)
	if len(p) > 0 {
		v = int64(int8(p[0]))
	}
	for i := 1; i < len(p); i++ {
		if v < math.MinInt64>>8 || v > math.MaxInt64>>8 {
			return false
		}
		v = v<<8 | int64(p[i])
	}
	at := len(b.Data)
	magnitude := uint64(v)
	if v < 0 {
		b.Data = append(b.Data, '-')
		magnitude = -magnitude
	}
	var text [20]byte
	digits := strconv.AppendUint(text[:0], magnitude, 10)
	whole := len(digits) - n.scale // digits before the point
	if whole <= 0 {
		b.Data = append(b.Data, "0."...)
		for ; whole < 0; whole++ {
			b.Data = append(b.Data, '0')
		}
	} else if b.Data = append(b.Data, digits[:whole]...); n.scale > 0 {
		b.Data = append(b.Data, '.')
	}
	b.Data = append(b.Data, digits[whole:]...)
	d.giveFrom(b, &n.leaf, at, kindNumber)
	return true
}

// block reads the head of a block of an array or map: the number of its elements, 0 at the end, and the position after
// its last byte where the writer noted it, else -1.
func (d *avro) block(at int) (count uint64, end, next int) {
	v, at := d.varint(at)
	if at < 0 || v >= 0 {
		return uint64(v), -1, at
	}
	size, at := d.varint(at)
	if at < 0 {
		return 0, -1, -1
	}
	return -uint64(v), d.advance(at, uint64(size)), at
}

// blocks reads an array or a map.
func (d *avro) blocks(b *event.Batch, n *avroNode, at, depth int) int {
	index := 0
	for {
		count, end, next := d.block(at)
		if at = next; at < 0 || count == 0 {
			return at
		}
		if d.reason != "" { // the noted end is beyond the record
			return -1
		}
		switch {
		case n.skip && end >= 0:
			at = end
			continue
		case n.op == avroArray && n.nodes[0].empty:
			count = 0 // elements without bytes: any number of them says nothing
		case count > uint64(len(d.p)-at):
			return d.short()
		}
		for ; count > 0; count-- {
			item := n.nodes[0]
			if n.op == avroMap {
				if item, at = d.entry(n, at); at < 0 {
					return -1
				}
			} else if len(n.elems) > 0 {
				item = n.element(index)
				index++
			}
			if at = d.value(b, item, at, depth); at < 0 {
				return -1
			}
		}
		if end >= 0 && at != end {
			return d.fail(event.ReasonSyntax, "a block does not end where it says")
		}
	}
}

// entry reads a map's key and returns the node of its value.
func (d *avro) entry(n *avroNode, at int) (*avroNode, int) {
	size, at := d.varint(at)
	if at < 0 {
		return nil, -1
	}
	end := d.advance(at, uint64(size))
	if end < 0 {
		return nil, -1
	}
	for i := range n.elems {
		if string(d.p[at:end]) == n.elems[i].key {
			return n.elems[i].node, end
		}
	}
	return n.nodes[0], end
}

func (n *avroNode) element(index int) *avroNode {
	for i := range n.elems {
		if n.elems[i].index == index {
			return n.elems[i].node
		}
	}
	return n.nodes[0]
}

// events reads the array of `each` a second time, now that the values from outside it are known, one event an element.
func (d *avro) events(b *event.Batch) {
	if d.eachAt < 0 {
		d.skip(b)
		return
	}
	d.keep()
	index := 0
	for at := d.eachAt; ; {
		count, _, next := d.block(at)
		if count == 0 {
			break
		}
		for at = next; count > 0; count-- {
			d.next()
			if at = d.value(b, d.elem, at, event.DepthMax); at < 0 {
				d.reject(b, d.reason, d.detail)
				return
			}
			if !d.emit(b, index) {
				return
			}
			index++
		}
	}
	if index == 0 {
		d.skip(b)
	}
}

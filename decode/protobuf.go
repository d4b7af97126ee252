package decode

import (
	"encoding/binary"
	"math"
	"strconv"

	"github.com/weftdata/weft/event"
)

// protobuf decodes records that are one message each. The message's descriptor is compiled to a tree by field number
// over the wire format; fields that the tree does not have are stepped over without a look inside.
//
// Numbers become decimal text, enums their names (or the number of a value that the descriptor lacks), and a
// google.protobuf.Timestamp its microseconds since 1970. As the format demands, the last value of a field that is not
// repeated counts, and a number, boolean or enum without presence that is not in the record has its zero value.
//
// With `confluent: true` each record must start with a zero byte, a schema id of four bytes and the indexes of the
// message within its file, which must lead to the source's message.
type protobuf struct {
	wire
	confluent bool
	indexes   []int // of the message in its file, outermost first
	root      *protoMessage
	each      *protoMessage // the tree that leads to the array of `each` only; nil: the record is one event
	events    int           // of the current record: elements of that array so far
}

// protoOp says how to read a field.
type protoOp uint8

const (
	protoSubmessage protoOp = iota
	protoEach               // an element of the array of `each`
	protoMap
	protoTimestamp
	protoBytes // and strings; the ops up to here have a length on the wire
	protoBool
	protoEnum
	protoInt32
	protoInt64
	protoUint32
	protoUint64
	protoSint32
	protoSint64
	protoFixed32
	protoSfixed32
	protoFloat
	protoFixed64
	protoSfixed64
	protoDouble
)

// wireType returns the wire type of one value.
func (op protoOp) wireType() int {
	switch {
	case op <= protoBytes:
		return wireBytes
	case op <= protoSint64:
		return wireVarint
	case op <= protoFloat:
		return wire32
	}
	return wire64
}

// protoMessage is what to do with one message.
type protoMessage struct {
	small    [64]uint16 // by field number: index in fields plus one; 0: unwanted
	fields   []protoField
	defaults []protoDefault
	counters int // fields that count their elements
}

// protoField is what to do with one field of a message.
type protoField struct {
	number   uint64
	op       protoOp
	repeated bool
	leaf     leaf
	message  *protoMessage // of a message, and of the elements of a repeated one
	key      protoOp       // map: how to read the key
	names    []protoName   // enum: sorted by number
	elems    []protoElem   // repeated: elements wanted by index; map: entries wanted by key
	counter  int           // repeated, with elems: number of its counter
	seen     uint64        // the field's bit, where it has a default
}

// protoName is the name of an enum's value.
type protoName struct {
	number int32
	text   constant
}

// protoElem is what to do with one element of a repeated field, or one entry of a map.
type protoElem struct {
	index int
	key   string
	field protoField
	zero  protoDefault // of a map's value
}

// protoDefault is the zero value of a field without presence.
type protoDefault struct {
	seen uint64
	leaf *leaf
	text constant
	kind kind
}

const protoCountersMax = 8

// Decode implements Decoder.
func (d *protobuf) Decode(b *event.Batch, r event.Record) {
	if !d.begin(b, r) {
		return
	}
	d.start(b, r, 0)
	if d.confluent && !d.header() {
		d.reject(b, event.ReasonSchema, d.detail)
		return
	}
	if d.message(b, d.root, 0, len(d.p), event.DepthMax) < 0 {
		d.reject(b, d.reason, d.detail)
		return
	}
	if d.each == nil {
		d.emit(b, 0)
		return
	}
	d.keep()
	d.events = 0
	if d.message(b, d.each, 0, len(d.p), event.DepthMax) < 0 {
		if d.reason != "" { // else emit has rejected the record
			d.reject(b, d.reason, d.detail)
		}
		return
	}
	if d.events == 0 {
		d.skip(b)
	}
}

// header takes the Confluent header off the record.
func (d *protobuf) header() bool {
	if len(d.p) < confluentHeader || d.p[0] != 0 {
		d.fail(event.ReasonSchema, "the record has no Confluent header")
		return false
	}
	count, at := d.varint(confluentHeader)
	if at < 0 {
		return false
	}
	first := count == 0 // short for the file's first message
	if first {
		count = 1
	}
	ok := count == int64(len(d.indexes))
	for i := 0; ok && i < len(d.indexes); i++ {
		index := int64(0)
		if !first {
			if index, at = d.varint(at); at < 0 {
				return false
			}
		}
		ok = index == int64(d.indexes[i])
	}
	if !ok {
		d.fail(event.ReasonSchema, "the record is another message of the file")
		return false
	}
	d.p = d.p[at:]
	d.off += uint32(at)
	return true
}

// Wire types.
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wireStart  = 3 // of a group
	wireEnd    = 4
	wire32     = 5
)

// message reads d.p[at:end] and returns end. Depth is how much deeper it may nest.
func (d *protobuf) message(b *event.Batch, m *protoMessage, at, end, depth int) int {
	if depth == 0 {
		return d.fail(event.ReasonTooDeep, "")
	}
	seen := uint64(0)
	var counts [protoCountersMax]int
	for at < end {
		tag, next := uint64(d.p[at]), at+1 // most tags have one byte
		if tag >= 0x80 {
			tag, next = d.uvarint(at)
		}
		if at = next; at < 0 {
			return -1
		}
		number, typ := tag>>3, int(tag&7)
		if number == 0 || number > 1<<29-1 {
			return d.fail(event.ReasonSyntax, "field number "+strconv.FormatUint(number, 10))
		}
		f := m.field(number)
		if f == nil {
			at = d.step(number, typ, at, end, depth)
		} else {
			if typ == f.op.wireType() {
				seen |= f.seen
			}
			at = d.field(b, f, typ, at, end, depth, &counts)
		}
		if at < 0 {
			return -1
		}
		if at > end {
			return d.fail(event.ReasonSyntax, "a field ends after its message")
		}
	}
	for i := range m.defaults {
		if def := &m.defaults[i]; seen&def.seen == 0 {
			d.giveDefault(b, def)
		}
	}
	return at
}

func (m *protoMessage) field(number uint64) *protoField {
	if number < uint64(len(m.small)) {
		if i := m.small[number]; i > 0 {
			return &m.fields[i-1]
		}
		return nil
	}
	for i := range m.fields {
		if m.fields[i].number == number {
			return &m.fields[i]
		}
	}
	return nil
}

func (d *protobuf) giveDefault(b *event.Batch, def *protoDefault) {
	if !def.leaf.many && d.vals[def.leaf.slots[0]].kind != kindAbsent {
		return // the message comes in pieces, and another one has the field
	}
	text := def.text.in(b)
	d.give(def.leaf, text.off, text.n, def.kind)
}

// step steps over a field's value.
func (d *protobuf) step(number uint64, typ, at, end, depth int) int {
	switch typ {
	case wireVarint:
		_, at = d.uvarint(at)
		return at
	case wire64:
		return d.advance(at, 8)
	case wire32:
		return d.advance(at, 4)
	case wireBytes:
		n, at := d.uvarint(at)
		if at < 0 {
			return -1
		}
		return d.advance(at, n)
	case wireStart:
		return d.group(number, at, end, depth-1)
	}
	return d.fail(event.ReasonSyntax, "wire type "+strconv.Itoa(typ))
}

// group steps over a group, the old way to nest.
func (d *protobuf) group(number uint64, at, end, depth int) int {
	if depth <= 0 {
		return d.fail(event.ReasonTooDeep, "")
	}
	for at < end {
		tag, next := d.uvarint(at)
		if at = next; at < 0 {
			return -1
		}
		if tag&7 == wireEnd {
			if tag>>3 != number {
				return d.fail(event.ReasonSyntax, "a group ends as another")
			}
			return at
		}
		if at = d.step(tag>>3, int(tag&7), at, end, depth); at < 0 {
			return -1
		}
	}
	return d.short()
}

// field reads the value of a wanted field. A value of another wire type than the field's is stepped over.
func (d *protobuf) field(b *event.Batch, f *protoField, typ, at, end, depth int, counts *[protoCountersMax]int) int {
	if typ != wireBytes {
		if typ != f.op.wireType() {
			return d.step(f.number, typ, at, end, depth)
		}
		return d.number(b, f.element(counts), at)
	}
	n, at := d.uvarint(at)
	if at < 0 {
		return -1
	}
	stop := d.advance(at, n)
	if stop < 0 || stop > end {
		return d.short()
	}
	if f.op <= protoBytes {
		return d.bytes(b, f.element(counts), at, stop, depth)
	}
	if !f.repeated {
		return stop
	}
	for at < stop { // numbers packed into one array
		if at = d.number(b, f.element(counts), at); at < 0 {
			return -1
		}
	}
	if at > stop {
		return d.fail(event.ReasonSyntax, "a packed number ends after its array")
	}
	return at
}

// element returns what to do with the next element of a field.
func (f *protoField) element(counts *[protoCountersMax]int) *protoField {
	if len(f.elems) == 0 || f.op == protoMap {
		return f
	}
	index := counts[f.counter]
	counts[f.counter]++
	for i := range f.elems {
		if f.elems[i].index == index {
			return &f.elems[i].field
		}
	}
	return f
}

// bytes reads the value d.p[at:end] of a field that has a length on the wire.
func (d *protobuf) bytes(b *event.Batch, f *protoField, at, end, depth int) int {
	switch f.op {
	case protoSubmessage:
		return d.message(b, f.message, at, end, depth-1)
	case protoEach:
		d.next()
		if d.message(b, f.message, at, end, depth-1) < 0 || !d.emit(b, d.events) {
			return -1
		}
		d.events++
		return end
	case protoMap:
		return d.entry(b, f, at, end, depth-1)
	case protoTimestamp:
		return d.timestamp(b, f, at, end)
	}
	d.give(&f.leaf, d.off+uint32(at), uint32(end-at), kindString)
	return end
}

// number reads one value of a field that has none.
func (d *protobuf) number(b *event.Batch, f *protoField, at int) int {
	v, next := d.raw(f.op.wireType(), at)
	if next < 0 || len(f.leaf.slots) == 0 {
		return next
	}
	switch f.op {
	case protoBool:
		d.giveBool(b, &f.leaf, v != 0)
	case protoEnum:
		d.giveEnum(b, f, int32(v))
	case protoFloat:
		d.giveFloat(b, &f.leaf, float64(math.Float32frombits(uint32(v))), 32)
	case protoDouble:
		d.giveFloat(b, &f.leaf, math.Float64frombits(v), 64)
	default:
		text := len(b.Data)
		b.Data = appendInteger(b.Data, f.op, v)
		d.giveFrom(b, &f.leaf, text, kindNumber)
	}
	return next
}

// appendInteger appends the decimal text of an integer as it is on the wire.
func appendInteger(dst []byte, op protoOp, v uint64) []byte {
	switch op {
	case protoInt32, protoSfixed32:
		return strconv.AppendInt(dst, int64(int32(v)), 10)
	case protoInt64, protoSfixed64:
		return strconv.AppendInt(dst, int64(v), 10)
	case protoSint32:
		return strconv.AppendInt(dst, zigzag(v&math.MaxUint32), 10)
	case protoSint64:
		return strconv.AppendInt(dst, zigzag(v), 10)
	case protoUint32:
		return strconv.AppendUint(dst, v&math.MaxUint32, 10)
	}
	return strconv.AppendUint(dst, v, 10)
}

// raw reads a number as it is on the wire.
func (d *protobuf) raw(typ, at int) (v uint64, next int) {
	switch typ {
	case wireVarint:
		return d.uvarint(at)
	case wire32:
		if next = d.advance(at, 4); next >= 0 {
			v = uint64(binary.LittleEndian.Uint32(d.p[at:]))
		}
	default:
		if next = d.advance(at, 8); next >= 0 {
			v = binary.LittleEndian.Uint64(d.p[at:])
		}
	}
	return v, next
}

func (d *protobuf) giveEnum(b *event.Batch, f *protoField, v int32) {
	if i := int(v); i >= 0 && i < len(f.names) && f.names[i].number == v { // numbered from 0 without a gap, as most are
		d.giveConstant(b, &f.leaf, &f.names[i].text)
		return
	}
	for i := range f.names {
		if f.names[i].number == v {
			d.giveConstant(b, &f.leaf, &f.names[i].text)
			return
		}
	}
	d.giveInt(b, &f.leaf, int64(v))
}

// entry reads an entry of a map: a message with a key in field 1 and a value in field 2. Some writers leave out a key
// or value that is zero.
func (d *protobuf) entry(b *event.Batch, f *protoField, at, end, depth int) int {
	if depth <= 0 {
		return d.fail(event.ReasonTooDeep, "")
	}
	keyAt, valueAt, valueType := -1, -1, 0
	for at < end {
		tag, next := d.uvarint(at)
		if next < 0 {
			return -1
		}
		if at = d.step(tag>>3, int(tag&7), next, end, depth); at < 0 {
			return -1
		}
		if at > end {
			return d.fail(event.ReasonSyntax, "a field ends after its message")
		}
		switch {
		case tag>>3 == 1 && int(tag&7) == f.key.wireType():
			keyAt = next
		case tag>>3 == 2:
			valueAt, valueType = next, int(tag&7)
		}
	}
	var text [20]byte
	key := d.keyText(text[:0], f.key, keyAt)
	for i := range f.elems {
		e := &f.elems[i]
		if string(key) != e.key {
			continue
		}
		if valueAt < 0 {
			zero := e.zero.text.in(b)
			d.give(&e.field.leaf, zero.off, zero.n, e.zero.kind)
			break
		}
		var counts [protoCountersMax]int
		if d.field(b, &e.field, valueType, valueAt, end, depth, &counts) < 0 {
			return -1
		}
		break
	}
	return end
}

// keyText returns the text of a map's key, which has been stepped over once; a negative position stands for zero.
func (d *protobuf) keyText(text []byte, op protoOp, at int) []byte {
	v := uint64(0)
	switch {
	case op == protoBytes && at < 0:
		return nil
	case op == protoBytes:
		n, at := d.uvarint(at)
		return d.p[at : at+int(n)]
	case at >= 0:
		v, _ = d.raw(op.wireType(), at)
	}
	if op == protoBool {
		return strconv.AppendBool(text, v != 0)
	}
	return appendInteger(text, op, v)
}

// timestamp reads a google.protobuf.Timestamp, d.p[at:end], and delivers its microseconds.
func (d *protobuf) timestamp(b *event.Batch, f *protoField, at, end int) int {
	var seconds, nanos int64
	for at < end {
		tag, next := d.uvarint(at)
		if next < 0 {
			return -1
		}
		switch tag {
		case 1<<3 | wireVarint:
			v, _ := d.uvarint(next)
			seconds = int64(v)
		case 2<<3 | wireVarint:
			v, _ := d.uvarint(next)
			nanos = int64(int32(v))
		}
		if at = d.step(tag>>3, int(tag&7), next, end, 1); at < 0 {
			return -1
		}
		if at > end {
			return d.fail(event.ReasonSyntax, "a field ends after its message")
		}
	}
	const secondsMax = 253402300799 // the last of the year 9999
	if seconds < -62135596800 || seconds > secondsMax || nanos < 0 || nanos > 999999999 {
		return d.fail(event.ReasonSyntax, "a timestamp out of range")
	}
	d.giveInt(b, &f.leaf, seconds*1e6+nanos/1e3)
	return end
}

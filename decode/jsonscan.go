package decode

import (
	"encoding/binary"
	"math/bits"
	"strconv"
	"unicode/utf8"

	"github.com/weftdata/weft/event"
)

// scanner reads one JSON text in a single pass and delivers the scalars that a trie of nodes wants to the frame.
//
// The text is checked against the grammar everywhere, wanted or not, so whether a record is rejected does not depend on
// what the spec asks for. Two things are let through that the grammar forbids: raw control characters in strings, and
// bytes that are not UTF-8. Where an object repeats a member, the first wins.
//
// Its methods take the position of what they read and return the position after it, or -1 once fault is noted.
type scanner struct {
	f    *frame
	b    *event.Batch
	p    []byte
	base uint32 // offset of p in b.Data
	span [4]span
	each eachState

	fault   event.Reason // empty after -1: the frame has rejected the record
	faultAt int
	unquote []byte // scratch: a member's name without its escapes
}

// span is a range p[start:end] of the text; end is -1 while nothing was noted.
type span struct{ start, end int }

func (s span) set() bool { return s.end >= 0 }

// eachState runs the elements of an array as events.
type eachState struct {
	roots   []int // slots that hold for all elements
	early   bool  // all of roots take one value, so that the elements can be read as soon as roots are there
	pending int   // position of the first element of an array that must wait for roots; -1: none
	found   bool  // the array was there
}

// start begins the text p = b.Raw(r), which must be the frame's current record.
func (s *scanner) start(b *event.Batch, r event.Record) {
	s.b, s.p, s.base = b, b.Raw(r), r.Off
	for i := range s.span {
		s.span[i] = span{0, -1}
	}
	s.each.pending, s.each.found = -1, false
	s.fault = ""
}

// document reads the whole text with n as its root and rejects the record where it is not JSON.
func (s *scanner) document(n *node) bool {
	i := s.value(n, space(s.p, 0), event.DepthMax)
	if i >= 0 {
		if i = space(s.p, i); i == len(s.p) {
			return true
		}
		s.fail(i)
	}
	return s.reject()
}

// reject rejects the record for the fault that was noted; where the frame has rejected already, it does nothing.
func (s *scanner) reject() bool {
	switch s.fault {
	case "":
		return false
	case event.ReasonTooDeep:
		return s.f.reject(s.b, s.fault, "nested deeper than "+strconv.Itoa(event.DepthMax))
	}
	detail := "ends early"
	if s.faultAt < len(s.p) {
		detail = "byte " + strconv.Itoa(s.faultAt) + ": unexpected " + strconv.QuoteToASCII(string(s.p[s.faultAt:s.faultAt+1]))
	}
	return s.f.reject(s.b, s.fault, detail)
}

func (s *scanner) fail(at int) int {
	s.fault, s.faultAt = event.ReasonSyntax, at
	return -1
}

// space returns the position of the first byte from i on that is not white space.
func space(p []byte, i int) int {
	for i < len(p) && p[i] <= ' ' && (p[i] == ' ' || p[i] == '\n' || p[i] == '\t' || p[i] == '\r') {
		i++
	}
	return i
}

// value reads the value at p[i], which n (or nothing, if nil) is wanted of. depth is how many more levels it may nest.
func (s *scanner) value(n *node, i, depth int) int {
	start := i
	if i >= len(s.p) {
		return s.fail(i)
	}
	switch s.p[i] {
	case '"':
		end, escaped := stringEnd(s.p, i+1)
		if end < 0 {
			return s.fail(len(s.p))
		}
		if n != nil && len(n.slots) > 0 || escaped {
			if !s.text(n, i+1, end, escaped) {
				return -1
			}
		}
		i = end + 1
	case '{':
		i = s.object(n, i+1, depth-1)
	case '[':
		i = s.array(n, i+1, depth-1)
	case 't':
		i = s.word(n, i, "true", kindBool)
	case 'f':
		i = s.word(n, i, "false", kindBool)
	case 'n':
		i = s.word(n, i, "null", kindNull)
	default:
		end := numberEnd(s.p, i)
		if end < 0 {
			return s.fail(^end)
		}
		if n != nil {
			for _, slot := range n.slots {
				s.f.set(slot, s.base+uint32(i), uint32(end-i), kindNumber)
			}
		}
		i = end
	}
	if n != nil && n.span >= 0 && i >= 0 {
		s.span[n.span] = span{start, i}
	}
	return i
}

// text delivers the string p[i:end]; one with escapes goes to the end of the batch's data without them.
func (s *scanner) text(n *node, i, end int, escaped bool) bool {
	off, size := s.base+uint32(i), uint32(end-i)
	if escaped {
		if n == nil || len(n.slots) == 0 {
			bad := badEscape(s.p[:end], i)
			if bad >= 0 {
				s.fail(bad)
			}
			return bad < 0
		}
		off = uint32(len(s.b.Data))
		data, bad := unescape(s.b.Data, s.p[:end], i)
		if bad >= 0 {
			s.fail(bad)
			return false
		}
		s.b.Data = data
		size = uint32(len(data)) - off
	}
	for _, slot := range n.slots {
		s.f.set(slot, off, size, kindString)
	}
	return true
}

// word reads one of the literals.
func (s *scanner) word(n *node, i int, text string, k kind) int {
	end := i + len(text)
	if end > len(s.p) || string(s.p[i:end]) != text {
		return s.fail(i)
	}
	if n != nil {
		for _, slot := range n.slots {
			s.f.set(slot, s.base+uint32(i), uint32(len(text)), k)
		}
	}
	return end
}

// object reads members from p[i], just after the brace.
func (s *scanner) object(n *node, i, depth int) int {
	if depth < 0 {
		s.fault = event.ReasonTooDeep
		return -1
	}
	p := s.p
	var names []name
	if n != nil {
		names = n.names
	}
	var seen [namesMax / 64]uint64
	left := len(names) // members wanted and not seen
	i = space(p, i)
	if i < len(p) && p[i] == '}' {
		return i + 1
	}
	for {
		if i >= len(p) || p[i] != '"' {
			return s.fail(i)
		}
		i++
		start := i
		end, head, escaped := nameEnd(p, i)
		if end < 0 {
			return s.fail(len(p))
		}
		var child *node
		if left > 0 || escaped {
			k := -1
			if escaped {
				if k = s.findEscaped(names, start, end); s.fault != "" {
					return -1
				}
			} else {
				k = find(names, p[start:end], head)
			}
			if k >= 0 && seen[k>>6]>>(k&63)&1 == 0 {
				seen[k>>6] |= 1 << (k & 63)
				left--
				child = names[k].node
			}
		}
		i = end + 1
		if i >= len(p) || p[i] != ':' {
			if i = space(p, i); i >= len(p) || p[i] != ':' {
				return s.fail(i)
			}
		}
		i++
		if i < len(p) && p[i] <= ' ' {
			i = space(p, i)
		}
		if i = s.value(child, i, depth); i < 0 {
			return -1
		}
		if i < len(p) && p[i] <= ' ' {
			i = space(p, i)
		}
		if i >= len(p) {
			return s.fail(i)
		}
		switch p[i] {
		case ',':
			i++
			if i < len(p) && p[i] <= ' ' {
				i = space(p, i)
			}
		case '}':
			return i + 1
		default:
			return s.fail(i)
		}
	}
}

// nameEnd returns the position of the quote that ends the name p[i:], or -1, and the name's first eight bytes as a word.
func nameEnd(p []byte, i int) (end int, head uint64, escaped bool) {
	end = i
	if i+8 <= len(p) {
		head = binary.LittleEndian.Uint64(p[i:])
		stop := quoteOrEscape(head)
		end = i + bits.TrailingZeros64(stop)>>3
		if stop != 0 && p[end] == '"' { // most names end within eight bytes
			return end, head & ((stop&-stop)>>7 - 1), false
		}
	}
	if end, escaped = stringEnd(p, end); end >= 0 {
		head = headOf(p[i:end])
	}
	return end, head, escaped
}

// headOf returns up to eight bytes as a word, the first in the low bits.
func headOf(p []byte) (w uint64) {
	if len(p) >= 8 {
		return binary.LittleEndian.Uint64(p)
	}
	for i := len(p) - 1; i >= 0; i-- {
		w = w<<8 | uint64(p[i])
	}
	return w
}

// find returns the number of a wanted member, or -1.
func find(names []name, text []byte, head uint64) int {
	for k := range names {
		w := &names[k]
		if w.head == head && w.n == len(text) && (w.n <= 8 || string(text[8:]) == w.text[8:]) {
			return k
		}
	}
	return -1
}

// findEscaped is find for a name p[start:end] with escapes. It notes the fault where an escape is wrong.
func (s *scanner) findEscaped(names []name, start, end int) int {
	text, bad := unescape(s.unquote[:0], s.p[:end], start)
	if bad >= 0 {
		return s.fail(bad)
	}
	s.unquote = text
	return find(names, text, headOf(text))
}

// array reads elements from p[i], just after the bracket.
func (s *scanner) array(n *node, i, depth int) int {
	if depth < 0 {
		s.fault = event.ReasonTooDeep
		return -1
	}
	p := s.p
	i = space(p, i)
	if i < len(p) && p[i] == ']' {
		return i + 1
	}
	if n != nil && n.each != nil {
		return s.events(n.each, i, depth)
	}
	for index := 0; ; index++ {
		var child *node
		if n != nil {
			if len(n.elems) > 0 {
				child = n.element(index)
			} else {
				child = n.every
			}
			if n.tail >= 0 && index <= 1 {
				s.span[n.tail].start = i
			}
		}
		if i = s.value(child, i, depth); i < 0 {
			return -1
		}
		more := false
		if i, more = s.comma(i); i < 0 {
			return -1
		}
		if !more {
			if n != nil && n.tail >= 0 {
				s.span[n.tail].end = i - 1
				if index == 0 {
					s.span[n.tail].start = i - 1
				}
			}
			return i
		}
	}
}

// comma reads what follows an element: a comma (then more is true and i is the next element) or the closing bracket.
func (s *scanner) comma(i int) (after int, more bool) {
	if i = space(s.p, i); i < len(s.p) {
		switch s.p[i] {
		case ',':
			return space(s.p, i+1), true
		case ']':
			return i + 1, false
		}
	}
	return s.fail(i), false
}

// events reads the elements from p[i] on as one event each. Where values from the record's root are still missing, it
// notes the place for a second pass and skips.
func (s *scanner) events(n *node, i, depth int) int {
	s.each.found = true
	run := s.ready()
	if run {
		s.f.keep()
	} else {
		s.each.pending = i
	}
	for index := 0; ; index++ {
		child := n
		if run {
			s.f.next()
		} else {
			child = nil
		}
		if i = s.value(child, i, depth); i < 0 {
			return -1
		}
		if run && !s.f.emit(s.b, index) {
			return -1
		}
		more := false
		if i, more = s.comma(i); i < 0 || !more {
			return i
		}
	}
}

// ready tells whether all values from the record's root are known.
func (s *scanner) ready() bool {
	if s.each.pending >= 0 {
		return true // the second pass
	}
	for _, slot := range s.each.roots {
		if !s.each.early || s.f.vals[slot].kind == kindAbsent {
			return false
		}
	}
	return true
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// quoteOrEscape returns a word whose lowest set bit is the high bit of the first byte of w that is a quote or a
// backslash; zero where there is none.
func quoteOrEscape(w uint64) uint64 {
	q, e := w^0x22*ones, w^0x5c*ones
	return ((q-ones)&^q | (e-ones)&^e) & highs
}

// stringEnd returns the position of the quote that ends the string p[i:], or -1, and whether a backslash comes before.
func stringEnd(p []byte, i int) (end int, escaped bool) {
	for i+8 <= len(p) {
		m := quoteOrEscape(binary.LittleEndian.Uint64(p[i:]))
		if m == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(m) >> 3
		if p[i] == '"' {
			return i, escaped
		}
		escaped = true
		i += 2
	}
	for ; i < len(p); i++ {
		switch p[i] {
		case '"':
			return i, escaped
		case '\\':
			escaped = true
			i++
		}
	}
	return -1, escaped
}

// numberEnd returns the position after the number at p[i]; where there is none, the complement of the offending position.
func numberEnd(p []byte, i int) int {
	if i < len(p) && p[i] == '-' {
		i++
	}
	switch {
	case i >= len(p) || !isDigit(p[i]):
		return ^i
	case p[i] == '0':
		i++
	default:
		for i++; i < len(p) && isDigit(p[i]); i++ {
		}
	}
	if i >= len(p) || (p[i] != '.' && p[i]|0x20 != 'e') {
		return i
	}
	if p[i] == '.' {
		i++
		if i >= len(p) || !isDigit(p[i]) {
			return ^i
		}
		for i++; i < len(p) && isDigit(p[i]); i++ {
		}
	}
	if i < len(p) && p[i]|0x20 == 'e' {
		i++
		if i < len(p) && (p[i] == '+' || p[i] == '-') {
			i++
		}
		if i >= len(p) || !isDigit(p[i]) {
			return ^i
		}
		for i++; i < len(p) && isDigit(p[i]); i++ {
		}
	}
	return i
}

// unescape appends the string p[i:] to dst with its escapes resolved. bad is the position of a wrong escape, or -1.
// Half a surrogate pair becomes U+FFFD.
func unescape(dst, p []byte, i int) (out []byte, bad int) {
	for i < len(p) {
		c := p[i]
		if c != '\\' {
			dst = append(dst, c)
			i++
			continue
		}
		if i+1 >= len(p) {
			return dst, i
		}
		if p[i+1] != 'u' {
			c := plainEscape(p[i+1])
			if c == 0 {
				return dst, i + 1
			}
			dst = append(dst, c)
			i += 2
			continue
		}
		r, ok := hex4(p, i+2)
		if !ok {
			return dst, i + 1
		}
		i += 6
		if r >= 0xd800 && r < 0xdc00 && i+1 < len(p) && p[i] == '\\' && p[i+1] == 'u' {
			if low, ok := hex4(p, i+2); ok && low >= 0xdc00 && low < 0xe000 {
				r = 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
				i += 6
			}
		}
		dst = utf8.AppendRune(dst, r) // a lone surrogate is no rune and becomes U+FFFD
	}
	return dst, -1
}

// badEscape returns the position of the first wrong escape of the string p[i:], or -1.
func badEscape(p []byte, i int) int {
	for ; i < len(p); i++ {
		if p[i] != '\\' {
			continue
		}
		i++
		if i >= len(p) {
			return i - 1
		}
		if p[i] != 'u' {
			if plainEscape(p[i]) == 0 {
				return i
			}
			continue
		}
		if _, ok := hex4(p, i+1); !ok {
			return i
		}
		i += 4
	}
	return -1
}

// plainEscape returns what a backslash and c stand for, or 0.
func plainEscape(c byte) byte {
	switch c {
	case '"', '\\', '/':
		return c
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return 0
}

// hex4 parses the four hexadecimal digits p[i:i+4].
func hex4(p []byte, i int) (r rune, ok bool) {
	if i+4 > len(p) {
		return 0, false
	}
	for _, c := range p[i : i+4] {
		switch {
		case isDigit(c):
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

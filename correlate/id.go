package correlate

import (
	"encoding/binary"
	"fmt"
)

// IDTextBytes is the length of an ID as text.
const IDTextBytes = 26

// digits are Crockford's base 32: without the letters that are read as digits, in order of ASCII.
const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// String returns the ID as 26 characters of Crockford's base 32. Texts sort as IDs do.
func (id ID) String() string { return string(id.Append(make([]byte, 0, IDTextBytes))) }

// Append appends the ID's text to dst.
func (id ID) Append(dst []byte) []byte {
	hi, lo := binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(id[8:])
	var text [IDTextBytes]byte
	for i := IDTextBytes - 1; i >= 0; i-- {
		text[i] = digits[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return append(dst, text[:]...)
}

// ParseID reads an ID's text. As Crockford has it, lower case letters, O for 0 and I or L for 1 are accepted.
func ParseID(text string) (id ID, err error) {
	if len(text) != IDTextBytes {
		return ID{}, fmt.Errorf("session id %.40q: has %d characters; expected %d", text, len(text), IDTextBytes)
	}
	var hi, lo uint64
	for i := range len(text) {
		d := digit(text[i])
		if d > 31 || i == 0 && d > 7 { // 26 characters hold 130 bits
			return ID{}, fmt.Errorf("session id %q: %q at character %d is no digit of it", text, text[i], i+1)
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(d)
	}
	binary.BigEndian.PutUint64(id[:8], hi)
	binary.BigEndian.PutUint64(id[8:], lo)
	return id, nil
}

// digit returns the value of a digit; 255 where c is none.
func digit(c byte) byte {
	if 'a' <= c && c <= 'z' {
		c -= 'a' - 'A'
	}
	switch {
	case c == 'O':
		return 0
	case c == 'I' || c == 'L':
		return 1
	}
	for i := range len(digits) {
		if digits[i] == c {
			return byte(i)
		}
	}
	return 255
}

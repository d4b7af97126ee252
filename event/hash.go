package event

import (
	"encoding/binary"
	"math/bits"
)

// Odd constants with an even spread of bits, from the fractional digits of the square roots of 2, 3, 5 and 7.
const (
	m1 = 0x6a09e667f3bcc909
	m2 = 0xbb67ae8584caa73b
	m3 = 0x3c6ef372fe94f82b
	m4 = 0xa54ff53a5f1d36f1
)

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// Hash returns a 64-bit hash of the bytes, the same on every machine. It is fast and spreads well, but it is not
// secret: tables that use it compare the bytes too, so a collision costs time and never a wrong link.
func Hash(seed uint64, p []byte) uint64 {
	h := seed ^ m1
	n := len(p)
	for len(p) > 16 {
		h = mix(binary.LittleEndian.Uint64(p)^m2^h, binary.LittleEndian.Uint64(p[8:])^m3)
		p = p[16:]
	}
	var a, b uint64
	switch {
	case len(p) >= 8:
		a = binary.LittleEndian.Uint64(p)
		b = binary.LittleEndian.Uint64(p[len(p)-8:])
	case len(p) >= 4:
		a = uint64(binary.LittleEndian.Uint32(p))
		b = uint64(binary.LittleEndian.Uint32(p[len(p)-4:]))
	case len(p) > 0:
		a = uint64(p[0])<<16 | uint64(p[len(p)>>1])<<8 | uint64(p[len(p)-1])
	}
	return mix(mix(a^m2^h, b^m3)^uint64(n), m4)
}

// Group returns the key group of a shard field's value.
func Group(value []byte) uint16 { return uint16(Hash(0, value) >> 56) }

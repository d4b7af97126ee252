package decode

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
)

// scaleMax is the largest number of decimal digits by which an integer field may be shifted.
const scaleMax = 18

var pow10 = [20]uint64{
	1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19,
}

func isDigit(c byte) bool { return c-'0' <= 9 }

// digits reads the decimal digits that p starts with and returns their value and number. The value is right for up to
// 19 of them.
func digits(p []byte) (v uint64, n int) {
	const pairs = 0x000000ff000000ff
	for n+8 <= len(p) {
		w := binary.LittleEndian.Uint64(p[n:]) ^ 0x3030303030303030
		if (w|(w+0x0606060606060606))&0xf0f0f0f0f0f0f0f0 != 0 {
			break
		}
		// Pairs, then fours, then all eight digits, the first being the least byte.
		w = w*10 + w>>8
		w = (w&pairs*(100+1000000<<32) + w>>16&pairs*(1+10000<<32)) >> 32
		v = v*1e8 + w&0xffffffff
		n += 8
	}
	for n < len(p) && isDigit(p[n]) {
		v = v*10 + uint64(p[n]-'0')
		n++
	}
	return v, n
}

// decimal is ±mantissa·10^exp. The mantissa does not end in zero unless it is zero.
type decimal struct {
	mantissa uint64
	exp      int
	negative bool
}

// parseDecimal parses a decimal number exactly: "6", "-6.00", "6e2". ok is false where p is no number, or where it has
// more significant digits than 64 bits hold.
func parseDecimal(p []byte) (d decimal, ok bool) {
	if i := bytes.IndexAny(p, "eE"); i >= 0 {
		if d.exp, ok = parseExponent(p[i+1:]); !ok {
			return d, false
		}
		p = p[:i]
	}
	if len(p) > 0 && (p[0] == '-' || p[0] == '+') {
		d.negative = p[0] == '-'
		p = p[1:]
	}
	if len(p) == 0 || !isDigit(p[0]) || !isDigit(p[len(p)-1]) {
		return d, false
	}
	point, zeros := false, 0 // zeros: read and not yet in the mantissa, since they may end it
	for _, c := range p {
		if c == '.' && !point {
			point = true
			continue
		}
		if !isDigit(c) {
			return d, false
		}
		if point {
			d.exp--
		}
		if zeros++; c == '0' {
			continue
		}
		up, fits := shiftUp(d.mantissa, zeros)
		m, carry := bits.Add64(up, uint64(c-'0'), 0)
		if !fits || carry > 0 {
			return d, false
		}
		d.mantissa, zeros = m, 0
	}
	d.exp += zeros
	return d, true
}

// parseExponent parses what follows the e. Exponents that no 64-bit result can have are cut, not followed.
func parseExponent(p []byte) (int, bool) {
	negative := false
	if len(p) > 0 && (p[0] == '-' || p[0] == '+') {
		negative = p[0] == '-'
		p = p[1:]
	}
	v, n := digits(p)
	if n == 0 || n != len(p) {
		return 0, false
	}
	const cut = 1 << 40 // beyond the length of any record
	e := int(min(v, cut))
	if n > 18 {
		e = cut
	}
	if negative {
		e = -e
	}
	return e, true
}

// shiftUp returns m·10^n where 64 bits hold it.
func shiftUp(m uint64, n int) (uint64, bool) {
	if m == 0 {
		return 0, true
	}
	if n > 19 {
		return 0, false
	}
	hi, lo := bits.Mul64(m, pow10[n])
	return lo, hi == 0
}

// parseScaled parses a decimal number times 10^scale; ok is false where that is not an integer of 64 bits.
func parseScaled(p []byte, scale int) (int64, bool) {
	if v, ok := parsePlain(p, scale); ok {
		return v, true
	}
	d, ok := parseDecimal(p)
	if !ok {
		return 0, false
	}
	if d.mantissa == 0 {
		return 0, true
	}
	if d.exp+scale < 0 {
		return 0, false // the mantissa's last digit is not zero
	}
	v, ok := shiftUp(d.mantissa, d.exp+scale)
	if d.negative {
		return int64(-v), ok && v <= 1<<63
	}
	return int64(v), ok && v <= math.MaxInt64
}

// parsePlain is parseScaled for the usual case: at most 18 digits, none after the point beyond the scale.
func parsePlain(p []byte, scale int) (int64, bool) {
	v, n := digits(p)
	if n == 0 || n+scale > 18 {
		return 0, false
	}
	v *= pow10[scale]
	if n == len(p) {
		return int64(v), true
	}
	fraction, m := digits(p[n+1:])
	if p[n] != '.' || m == 0 || n+1+m != len(p) || m > scale {
		return 0, false
	}
	return int64(v + fraction*pow10[scale-m]), true
}

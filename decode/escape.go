package decode

import (
	"unicode/utf16"
	"unicode/utf8"
)

// appendUnescaped appends v with its backslash escapes resolved: \xHH (nginx, Apache), \uHHHH with surrogate pairs
// (JSON), \n \t \r \b \f \v and an escaped punctuation character. A backslash that begins none of these stays.
func appendUnescaped(dst, v []byte) []byte {
	for i := 0; i < len(v); i++ {
		c := v[i]
		if c != '\\' || i+1 == len(v) {
			dst = append(dst, c)
			continue
		}
		switch e := v[i+1]; e {
		case 'x':
			n, ok := hexNumber(v, i+2, 2)
			if !ok {
				dst = append(dst, c)
				continue
			}
			dst = append(dst, byte(n))
			i += 3
		case 'u':
			r, n := unicodeEscape(v[i:])
			if n == 0 {
				dst = append(dst, c)
				continue
			}
			dst = utf8.AppendRune(dst, r)
			i += n - 1
		case 'n', 't', 'r', 'b', 'f', 'v':
			dst = append(dst, controlEscape(e))
			i++
		case '"', '\'', '\\', '/':
			dst = append(dst, e)
			i++
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

func controlEscape(e byte) byte {
	switch e {
	case 'n':
		return '\n'
	case 't':
		return '\t'
	case 'r':
		return '\r'
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	default:
		return '\v'
	}
}

// unicodeEscape reads the \uHHHH, or the pair of them that makes one character, at the start of v. n is its length, 0
// where there is none; half a pair reads as U+FFFD.
func unicodeEscape(v []byte) (r rune, n int) {
	hi, ok := hexNumber(v, 2, 4)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(hi) {
		return hi, 6
	}
	if len(v) > 7 && v[6] == '\\' && v[7] == 'u' {
		if lo, ok := hexNumber(v, 8, 4); ok {
			if r := utf16.DecodeRune(hi, lo); r != utf8.RuneError {
				return r, 12
			}
		}
	}
	return utf8.RuneError, 6
}

// hexNumber reads the hexadecimal digits v[at:at+digits].
func hexNumber(v []byte, at, digits int) (n rune, ok bool) {
	if at+digits > len(v) {
		return 0, false
	}
	for _, c := range v[at : at+digits] {
		d := hexDigit(c)
		if d < 0 {
			return 0, false
		}
		n = n<<4 | d
	}
	return n, true
}

func hexDigit(c byte) rune {
	switch {
	case '0' <= c && c <= '9':
		return rune(c - '0')
	case 'a' <= c && c <= 'f':
		return rune(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return rune(c-'A') + 10
	}
	return -1
}

// appendPercentDecoded appends a query argument with %HH and + resolved; a % without two digits stays.
func appendPercentDecoded(dst, v []byte) []byte {
	for i := 0; i < len(v); i++ {
		c := v[i]
		switch c {
		case '+':
			c = ' '
		case '%':
			if n, ok := hexNumber(v, i+1, 2); ok {
				c = byte(n)
				i += 2
			}
		}
		dst = append(dst, c)
	}
	return dst
}

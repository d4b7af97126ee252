package results

import (
	"encoding/binary"
	"time"
	"unicode/utf8"

	"github.com/weftdata/weft/event"
)

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string with its quotes.
func appendString[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			if _, n := decodeRune(s[i:]); n > 1 {
				i += n
				continue
			}
		}
		dst = append(dst, s[from:i]...)
		switch {
		case c >= utf8.RuneSelf:
			dst = append(dst, "\uFFFD"...)
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, `\n`...)
		case c == '\r':
			dst = append(dst, `\r`...)
		case c == '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		from = i
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// appendValid appends s as valid UTF-8.
func appendValid[T string | []byte](dst []byte, s T) []byte {
	at := len(dst)
	dst = append(dst, s...)
	if valid(dst[at:]) {
		return dst
	}
	dst = dst[:at]
	for i := 0; i < len(s); {
		r, n := decodeRune(s[i:])
		dst = utf8.AppendRune(dst, r)
		i += n
	}
	return dst
}

// valid is utf8.Valid with a shorter way for short ASCII, which most values are.
func valid(p []byte) bool {
	q := p
	for ; len(q) >= 8; q = q[8:] {
		if binary.LittleEndian.Uint64(q)&0x8080808080808080 != 0 {
			return utf8.Valid(p)
		}
	}
	for _, c := range q {
		if c >= utf8.RuneSelf {
			return utf8.Valid(p)
		}
	}
	return true
}

func decodeRune[T string | []byte](s T) (rune, int) {
	return utf8.DecodeRuneInString(string(s[:min(len(s), utf8.UTFMax)]))
}

// The times that RFC 3339 can write, years 0 to 9999. What lies outside is written as the nearest of them.
const (
	timeMin event.Micros = -62167219200_000000
	timeMax event.Micros = 253402300799_999999
)

const minute = event.Micros(60_000_000)

// clock formats times. It keeps the text of the last minute: times that follow each other mostly share it.
type clock struct {
	minute event.Micros // number of minutes since 1970
	prefix []byte       // `"2006-01-02T15:04:`
}

// append appends the time with its quotes: RFC 3339 in UTC with six digits.
func (c *clock) append(dst []byte, t event.Micros) []byte {
	t = min(max(t, timeMin), timeMax)
	m, rest := t/minute, t%minute
	if rest < 0 {
		m, rest = m-1, rest+minute
	}
	if m != c.minute || c.prefix == nil {
		c.minute = m
		c.prefix = time.Unix(int64(m)*60, 0).UTC().AppendFormat(c.prefix[:0], `"2006-01-02T15:04:`)
	}
	dst = append(dst, c.prefix...)
	s, us := uint32(rest)/1_000_000, uint32(rest)%1_000_000
	hi, lo := us/1000, us%1000
	return append(dst, byte('0'+s/10), byte('0'+s%10), '.',
		byte('0'+hi/100), byte('0'+hi/10%10), byte('0'+hi%10),
		byte('0'+lo/100), byte('0'+lo/10%10), byte('0'+lo%10), 'Z', '"')
}

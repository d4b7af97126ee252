package columns

import (
	"encoding/hex"
	"math"
	"math/big"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/weftdata/weft/event"
)

// scalar is how the values of a column become JSON.
type scalar struct {
	append  func(b []byte, l *leaf, at int) []byte
	instant func(l *leaf, at int) (time.Time, bool) // of a column of times; nil: it is none
	local   bool                                    // its times are of a clock on a wall, in no zone
	plain   bool                                    // an integer without a meaning of its own
	// micros makes an event time of a number of the column; nil: that takes more than the number.
	micros func(int64) (event.Micros, bool)
}

// scalarOf chooses by the type of a column. Numbers stay numbers, exactly; times become RFC 3339, what has no place in JSON (NaN)
// null.
func scalarOf(t parquet.Type) scalar {
	var meaning any
	if l := t.LogicalType(); l != nil {
		meaning = l.Value
	}
	switch x := meaning.(type) {
	case *format.DecimalType:
		return scalar{append: decimal(t.Kind(), int(x.Scale))}
	case *format.TimestampType:
		return timestamp(perSecond(x.Unit), !x.IsAdjustedToUTC)
	case *format.DateType:
		s := instants(func(l *leaf, at int) (time.Time, bool) { return time.Unix(l.Long(at)*86400, 0).UTC(), true })
		s.local = true
		s.micros = func(v int64) (event.Micros, bool) { return event.Micros(v * 86400e6), true }
		s.append = func(b []byte, l *leaf, at int) []byte {
			return append(time.Unix(l.Long(at)*86400, 0).UTC().AppendFormat(append(b, '"'), time.DateOnly), '"')
		}
		return s
	case *format.TimeType:
		per := perSecond(x.Unit)
		return scalar{append: func(b []byte, l *leaf, at int) []byte {
			n := l.Long(at)
			return append(time.Unix(n/per, n%per*(1e9/per)).UTC().AppendFormat(append(b, '"'), "15:04:05.999999999"), '"')
		}}
	case *format.UUIDType:
		return scalar{append: func(b []byte, l *leaf, at int) []byte {
			v := l.Fixed(at)
			b = append(b, '"')
			for i, cut := range []int{4, 6, 8, 10, 16} {
				from := []int{0, 4, 6, 8, 10}[i]
				if i > 0 {
					b = append(b, '-')
				}
				b = hex.AppendEncode(b, v[from:cut])
			}
			return append(b, '"')
		}}
	case *format.IntType:
		if !x.IsSigned {
			return scalar{append: func(b []byte, l *leaf, at int) []byte {
				if l.kind == parquet.Int32 {
					return strconv.AppendUint(b, uint64(uint32(l.Long(at))), 10)
				}
				return strconv.AppendUint(b, uint64(l.Long(at)), 10)
			}}
		}
	}
	switch t.Kind() {
	case parquet.Boolean:
		return scalar{append: func(b []byte, l *leaf, at int) []byte { return strconv.AppendBool(b, l.Bool(at)) }}
	case parquet.Float:
		return scalar{append: func(b []byte, l *leaf, at int) []byte { return appendFloat(b, float64(l.Float(at)), 32) }}
	case parquet.Double:
		return scalar{append: func(b []byte, l *leaf, at int) []byte { return appendFloat(b, l.Double(at), 64) }}
	case parquet.Int96:
		return instants(int96)
	case parquet.ByteArray:
		return scalar{append: func(b []byte, l *leaf, at int) []byte { return appendText(b, l.Bytes(at)) }}
	case parquet.FixedLenByteArray:
		return scalar{append: func(b []byte, l *leaf, at int) []byte {
			return append(hex.AppendEncode(append(b, '"'), l.Fixed(at)), '"')
		}}
	}
	return scalar{plain: true, append: func(b []byte, l *leaf, at int) []byte { return strconv.AppendInt(b, l.Long(at), 10) }}
}

func perSecond(u format.TimeUnit) int64 {
	switch u.Value.(type) {
	case *format.MilliSeconds:
		return 1e3
	case *format.NanoSeconds:
		return 1e9
	}
	return 1e6
}

func timestamp(per int64, local bool) scalar {
	s := instants(func(l *leaf, at int) (time.Time, bool) {
		n := l.Long(at)
		return time.Unix(n/per, n%per*(1e9/per)).UTC(), true
	})
	s.local = local
	s.micros = func(v int64) (event.Micros, bool) {
		if per > 1e6 {
			return event.Micros(floor(v, per/1e6)), true
		}
		return event.Micros(v * (1e6 / per)), v <= math.MaxInt64/(1e6/per) && v >= math.MinInt64/(1e6/per)
	}
	return s
}

// floor divides and rounds down.
func floor(v, by int64) int64 {
	if q := v / by; q*by <= v {
		return q
	}
	return v/by - 1
}

// instants writes times as RFC 3339 in UTC.
func instants(instant func(l *leaf, at int) (time.Time, bool)) scalar {
	return scalar{instant: instant, append: func(b []byte, l *leaf, at int) []byte {
		t, ok := instant(l, at)
		if !ok {
			return append(b, "null"...)
		}
		return appendTime(b, t, "rfc3339", time.UTC)
	}}
}

// int96 is the time of old files: nanoseconds of a day, and the number of the day since noon of 24 November 4714 BC.
func int96(l *leaf, at int) (time.Time, bool) {
	const epoch = 2440588
	w := l.Int96(at)
	nanos, day := int64(w[1])<<32|int64(w[0]), int64(int32(w[2]))
	if nanos < 0 || nanos >= 86400e9 {
		return time.Time{}, false
	}
	return time.Unix((day-epoch)*86400, nanos).UTC(), true
}

// appendTime writes a time as a layout of a spec reads it, exactly where the layout can.
func appendTime(b []byte, t time.Time, layout string, zone *time.Location) []byte {
	fraction := func(digits int) []byte {
		whole, rest := t.Unix(), int64(t.Nanosecond())
		if whole < 0 { // no event time; it is rejected as any text of it is
			return strconv.AppendInt(b, whole, 10)
		}
		for range digits {
			whole, rest = whole*10+rest/1e8, rest%1e8*10
		}
		b = strconv.AppendInt(b, whole, 10)
		if rest == 0 {
			return b
		}
		b = append(b, '.')
		for ; rest > 0; rest = rest % 1e8 * 10 {
			b = append(b, byte('0'+rest/1e8))
		}
		return b
	}
	switch layout {
	case "unix_s":
		return fraction(0)
	case "unix_ms":
		return fraction(3)
	case "unix_us":
		return fraction(6)
	case "unix_ns":
		return fraction(9)
	case "", "rfc3339":
		return append(t.UTC().AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
	}
	return appendText(b, []byte(t.In(zone).Format(layout)))
}

// decimal writes an exact number of unscaled integers with a scale.
func decimal(kind parquet.Kind, scale int) func([]byte, *leaf, int) []byte {
	return func(b []byte, l *leaf, at int) []byte {
		var digits []byte
		negative := false
		switch kind {
		case parquet.Int32, parquet.Int64:
			digits = strconv.AppendInt(nil, l.Long(at), 10)
			if negative = digits[0] == '-'; negative {
				digits = digits[1:]
			}
		default:
			v := l.valueBytes(at)
			n := new(big.Int).SetBytes(v)
			if negative = len(v) > 0 && v[0]&0x80 != 0; negative {
				n.Sub(new(big.Int).Lsh(big.NewInt(1), uint(8*len(v))), n)
			}
			digits = n.Append(nil, 10)
		}
		if negative {
			b = append(b, '-')
		}
		for len(digits) <= scale {
			digits = append([]byte{'0'}, digits...)
		}
		b = append(b, digits[:len(digits)-scale]...)
		if scale > 0 {
			b = append(append(b, '.'), digits[len(digits)-scale:]...)
		}
		return b
	}
}

func (l *leaf) valueBytes(at int) []byte {
	if l.kind == parquet.ByteArray {
		return l.Bytes(at)
	}
	return l.Fixed(at)
}

func appendFloat(b []byte, v float64, bits int) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return append(b, "null"...)
	}
	form := byte('f')
	if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) {
		form = 'e'
	}
	return strconv.AppendFloat(b, v, form, -1, bits)
}

// appendText writes a JSON string. Bytes that are no UTF-8 stay as they are.
func appendText(b, text []byte) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for _, c := range text {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= ' ' || c >= utf8.RuneSelf:
			b = append(b, c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\t':
			b = append(b, '\\', 't')
		case c == '\r':
			b = append(b, '\\', 'r')
		default:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(b, '"')
}

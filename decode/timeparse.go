package decode

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/weftdata/weft/event"
)

// timeEnd is the first moment past the range of event times: they lie in the years 1970 to 2200.
const timeEnd = event.Micros(7289654400 * 1000000) // 2201-01-01 UTC

// layoutKind is the way a time is written.
type layoutKind uint8

const (
	layoutUnix    layoutKind = iota // a count since the epoch
	layoutRFC3339                   // with an offset; a blank may stand for the T
	layoutCivil                     // date and time without an offset: 2006-01-02 15:04:05
	layoutAccess                    // 02/Jan/2006:15:04:05 -0700, of access logs
	layoutGo                        // any layout of package time
)

// timeLayout parses the event times of one source. It remembers the last date that it parsed, since neighbours share it.
type timeLayout struct {
	kind   layoutKind
	unit   int // layoutUnix: decimal digits of the unit after the second: 0 for seconds, 9 for nanoseconds
	layout string
	zone   *time.Location

	last     [32]byte // text of the date, or of the whole second where a zone is involved
	lastN    int
	lastBase int64 // its seconds since the epoch
}

// newTimeLayout compiles a layout of the spec. An empty zone is UTC.
func newTimeLayout(layout, zone string) (timeLayout, error) {
	l := timeLayout{layout: layout, zone: time.UTC}
	if zone != "" {
		z, err := time.LoadLocation(zone)
		if err != nil {
			return l, fmt.Errorf("there is no time zone %q: expected an IANA name such as Asia/Shanghai", zone)
		}
		l.zone = z
	}
	switch layout {
	case "unix_s":
		l.unit = 0
	case "unix_ms":
		l.unit = 3
	case "unix_us":
		l.unit = 6
	case "unix_ns":
		l.unit = 9
	case "rfc3339", time.RFC3339, time.RFC3339Nano:
		l.kind = layoutRFC3339
	case "02/Jan/2006:15:04:05 -0700":
		l.kind = layoutAccess
	default:
		if seconds := strings.TrimRight(layout, "09"); strings.HasSuffix(seconds, ".") || strings.HasSuffix(seconds, ",") {
			layout = seconds[:len(seconds)-1] // a fraction is accepted after the seconds in any case
		}
		l.kind = layoutGo
		if layout == time.DateTime || layout == "2006-01-02T15:04:05" {
			l.kind = layoutCivil
		}
		return l, checkLayout(l.layout)
	}
	return l, nil
}

// checkLayout makes sure that a layout of package time tells one day and hour from another.
func checkLayout(layout string) error {
	if strings.Contains(layout, "MST") {
		return fmt.Errorf("layout %q reads a zone abbreviation, which names several zones: use -0700, or leave it out and set zone", layout)
	}
	from := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
	for part, other := range []time.Time{from.AddDate(1, 0, 0), from.AddDate(0, 1, 0), from.AddDate(0, 0, 7), from.Add(time.Hour)} {
		if from.Format(layout) == other.Format(layout) {
			return fmt.Errorf("layout %q lacks the %s: expected unix_s, unix_ms, unix_us, unix_ns, rfc3339, or a Go layout such as 2006-01-02 15:04:05",
				layout, [...]string{"year", "month", "day", "hour"}[part])
		}
	}
	return nil
}

// parse returns the time that p says, cut to microseconds; ok is false where p is not of the layout or out of range.
func (l *timeLayout) parse(p []byte) (at event.Micros, ok bool) {
	switch l.kind {
	case layoutUnix:
		at, ok = parseUnix(p, l.unit)
	case layoutRFC3339:
		at, ok = l.parseRFC3339(p)
	case layoutCivil:
		at, ok = l.parseCivil(p)
	case layoutAccess:
		at, ok = l.parseAccess(p)
	default:
		at, ok = l.parseGo(p)
	}
	return at, ok && at >= 0 && at < timeEnd
}

// parseUnix parses a count of units of 10^-unit seconds. Digits below the microsecond are cut.
func parseUnix(p []byte, unit int) (event.Micros, bool) {
	n, i := digits(p)
	if i == 0 || i > 19 {
		return 0, false
	}
	if i == len(p) && unit == 3 { // the usual case
		return event.Micros(n) * 1000, n < uint64(timeEnd)/1000
	}
	shift := 6 - unit // n·10^shift are microseconds
	if i < len(p) && p[i] == '.' {
		for i++; i < len(p) && isDigit(p[i]); i++ {
			if shift > 0 && n < 1<<59 {
				n = n*10 + uint64(p[i]-'0')
				shift--
			}
		}
		if p[i-1] == '.' {
			return 0, false
		}
	}
	if i < len(p) {
		return parseUnixExponent(p, unit)
	}
	for ; shift < 0; shift++ {
		n /= 10
	}
	if n > uint64(timeEnd)/pow10[shift] {
		return 0, false
	}
	return event.Micros(n * pow10[shift]), true
}

// parseUnixExponent parses a count such as 1.7900000000123e9, as some encoders write floating-point numbers.
func parseUnixExponent(p []byte, unit int) (event.Micros, bool) {
	d, ok := parseDecimal(p)
	shift := d.exp + 6 - unit
	if !ok || d.negative {
		return 0, false
	}
	for ; shift < 0 && d.mantissa > 0; shift++ {
		d.mantissa /= 10
	}
	n, ok := shiftUp(d.mantissa, max(shift, 0))
	return event.Micros(n), ok && n < uint64(timeEnd)
}

// parseRFC3339 parses 2006-01-02T15:04:05, an optional fraction, and Z, +08:00 or +0800.
func (l *timeLayout) parseRFC3339(p []byte) (event.Micros, bool) {
	secs, ok := l.dateTime(p)
	if !ok {
		return 0, false
	}
	micros, p, ok := fraction(p[19:])
	if !ok {
		return 0, false
	}
	offset, ok := zoneOffset(p)
	return event.Micros((secs-offset)*1e6 + micros), ok
}

// parseCivil parses 2006-01-02 15:04:05 with an optional fraction in the layout's zone.
func (l *timeLayout) parseCivil(p []byte) (event.Micros, bool) {
	if len(p) < 19 {
		return 0, false
	}
	micros, rest, ok := fraction(p[19:])
	if !ok || len(rest) > 0 {
		return 0, false
	}
	if l.zone == time.UTC {
		secs, ok := l.dateTime(p)
		return event.Micros(secs*1e6 + micros), ok
	}
	// Whether an offset holds is known for this very second only.
	if l.lastN != 19 || !bytes.Equal(l.last[:19], p[:19]) {
		y, mo, d, ok := date(p)
		clock, ok2 := clock(p[11:])
		if !ok || !ok2 || (p[10] != 'T' && p[10] != ' ') {
			return 0, false
		}
		l.lastBase = time.Date(y, time.Month(mo), d, 0, 0, int(clock), 0, l.zone).Unix()
		l.lastN = copy(l.last[:19], p)
	}
	return event.Micros(l.lastBase*1e6 + micros), true
}

// parseAccess parses 02/Jan/2006:15:04:05 -0700.
func (l *timeLayout) parseAccess(p []byte) (event.Micros, bool) {
	if len(p) != 26 || p[11] != ':' || p[20] != ' ' {
		return 0, false
	}
	if l.lastN != 11 || !bytes.Equal(l.last[:11], p[:11]) {
		d, ok := two(p)
		y1, ok1 := two(p[7:])
		y2, ok2 := two(p[9:])
		mo := month(p[3:6])
		y := y1*100 + y2
		if !ok || !ok1 || !ok2 || p[2] != '/' || p[6] != '/' || mo == 0 || d < 1 || d > daysIn(y, mo) {
			return 0, false
		}
		l.lastBase = days(y, mo, d) * 86400
		l.lastN = copy(l.last[:11], p)
	}
	secs, ok := clock(p[12:])
	offset, ok2 := zoneOffset(p[21:])
	return event.Micros((l.lastBase + secs - offset) * 1e6), ok && ok2
}

// parseGo parses with package time. Equal texts in a row are parsed once.
func (l *timeLayout) parseGo(p []byte) (event.Micros, bool) {
	const textMax = 64 // no layout needs more, and package time quotes what it cannot parse
	if len(p) > textMax {
		return 0, false
	}
	t, err := time.ParseInLocation(l.layout, string(p), l.zone)
	if err != nil || t.Year() < 1969 || t.Year() > 2201 {
		return 0, false
	}
	return event.Micros(t.UnixMicro()), true
}

// dateTime parses the first 19 bytes, 2006-01-02T15:04:05, to seconds as if in UTC.
func (l *timeLayout) dateTime(p []byte) (int64, bool) {
	if len(p) < 19 || (p[10] != 'T' && p[10] != ' ' && p[10] != 't') {
		return 0, false
	}
	if l.lastN != 10 ||
		binary.LittleEndian.Uint64(l.last[:8]) != binary.LittleEndian.Uint64(p) ||
		binary.LittleEndian.Uint16(l.last[8:10]) != binary.LittleEndian.Uint16(p[8:]) {
		y, mo, d, ok := date(p)
		if !ok {
			return 0, false
		}
		l.lastBase = days(y, mo, d) * 86400
		l.lastN = copy(l.last[:10], p)
	}
	secs, ok := clock(p[11:])
	return l.lastBase + secs, ok
}

// date parses 2006-01-02 and checks that the day exists.
func date(p []byte) (y, m, d int, ok bool) {
	y1, ok1 := two(p)
	y2, ok2 := two(p[2:])
	m, ok3 := two(p[5:])
	d, ok4 := two(p[8:])
	y = y1*100 + y2
	ok = ok1 && ok2 && ok3 && ok4 && p[4] == '-' && p[7] == '-' && m >= 1 && m <= 12 && d >= 1 && d <= daysIn(y, m)
	return y, m, d, ok
}

// clock parses 15:04:05 to seconds.
func clock(p []byte) (int64, bool) {
	_ = p[7]
	h, ok1 := two(p)
	m, ok2 := two(p[3:])
	s, ok3 := two(p[6:])
	return int64(h*3600 + m*60 + s), ok1 && ok2 && ok3 && p[2] == ':' && p[5] == ':' && h < 24 && m < 60 && s < 60
}

// fraction parses an optional fraction of a second to microseconds, cutting what is below, and returns what follows.
func fraction(p []byte) (micros int64, rest []byte, ok bool) {
	if len(p) == 0 || (p[0] != '.' && p[0] != ',') {
		return 0, p, true
	}
	i := 1
	for ; i < len(p) && isDigit(p[i]); i++ {
		if i <= 6 {
			micros = micros*10 + int64(p[i]-'0')
		}
	}
	if i == 1 {
		return 0, nil, false
	}
	return micros * int64(pow10[max(7-i, 0)]), p[i:], true
}

// zoneOffset parses Z, +08:00 or +0800 to seconds east of UTC.
func zoneOffset(p []byte) (int64, bool) {
	if len(p) == 1 {
		return 0, p[0]|0x20 == 'z'
	}
	if len(p) == 6 && p[3] == ':' {
		p = append(append(make([]byte, 0, 5), p[:3]...), p[4:]...)
	}
	if len(p) != 5 || (p[0] != '+' && p[0] != '-') {
		return 0, false
	}
	h, ok1 := two(p[1:])
	m, ok2 := two(p[3:])
	offset := int64(h*3600 + m*60)
	if p[0] == '-' {
		offset = -offset
	}
	return offset, ok1 && ok2 && h < 24 && m < 60
}

// two parses two digits.
func two(p []byte) (int, bool) {
	a, b := p[0]-'0', p[1]-'0'
	return int(a)*10 + int(b), a <= 9 && b <= 9
}

// month returns 1 to 12 for Jan to Dec, or 0.
func month(p []byte) int {
	const names = "JanFebMarAprMayJunJulAugSepOctNovDec"
	if i := strings.Index(names, string(p)); i%3 == 0 {
		return i/3 + 1
	}
	return 0
}

func leap(y int) bool { return y%4 == 0 && (y%100 != 0 || y%400 == 0) }

func daysIn(y, m int) int {
	if m == 2 && leap(y) {
		return 29
	}
	return [...]int{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}[m-1]
}

// days returns the days from 1970-01-01 to a date of the years 0 to 9999. The year is taken to start in March, so that
// the leap day is its last.
func days(y, m, d int) int64 {
	if m <= 2 {
		y--
		m += 12
	}
	era := (y + 400) / 400 // years 0 to 9999 less one are never below -1
	inEra := y + 400 - era*400
	inYear := (153*(m-3)+2)/5 + d - 1
	return int64((era-1)*146097+inEra*365+inEra/4-inEra/100+inYear) - 719468
}

package paygen

import (
	"strconv"
	"time"
)

// text builds one line by appending; it never fails and its memory is reused.
type text struct {
	b    []byte
	day  int64    // whose date is kept
	date [10]byte // yyyy-mm-dd
}

func (t *text) str(s string) *text {
	t.b = append(t.b, s...)
	return t
}

func (t *text) int(n int64) *text {
	t.b = strconv.AppendInt(t.b, n, 10)
	return t
}

// digits writes the last width decimal digits of n.
func (t *text) digits(n uint64, width int) *text {
	for range width {
		t.b = append(t.b, '0')
	}
	for i := len(t.b) - 1; width > 0; i, width = i-1, width-1 {
		t.b[i] = '0' + byte(n%10)
		n /= 10
	}
	return t
}

// hex writes the last width hexadecimal digits of n.
func (t *text) hex(n uint64, width int) *text {
	for shift := 4 * (width - 1); shift >= 0; shift -= 4 {
		t.b = append(t.b, "0123456789abcdef"[n>>shift&15])
	}
	return t
}

// opaque writes width characters that look like base64url; the first eleven determine n.
func (t *text) opaque(n uint64, width int) *text {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i, bits := 0, n; i < width; i, bits = i+1, bits>>6 {
		if i > 0 && i%11 == 0 {
			n = mix(n)
			bits = n
		}
		t.b = append(t.b, alphabet[bits&63])
	}
	return t
}

// dateOf writes yyyy-mm-dd.
func (t *text) dateOf(micros int64) *text {
	if d := micros / day; d != t.day {
		t.day = d
		time.UnixMicro(micros).UTC().AppendFormat(t.date[:0], time.DateOnly)
	}
	t.b = append(t.b, t.date[:]...)
	return t
}

// compactDate writes yyyymmdd.
func (t *text) compactDate(micros int64) *text {
	n := len(t.b)
	t.dateOf(micros)
	copy(t.b[n+4:], t.b[n+5:n+7])
	copy(t.b[n+6:], t.b[n+8:n+10])
	t.b = t.b[:n+8]
	return t
}

// clock writes hh:mm:ss.
func (t *text) clock(micros int64) *text {
	s := uint64(micros % day / second)
	return t.digits(s/3600, 2).str(":").digits(s/60%60, 2).str(":").digits(s%60, 2)
}

// clockMilli writes hh:mm:ss.mmm.
func (t *text) clockMilli(micros int64) *text {
	return t.clock(micros).str(".").digits(uint64(micros%second/millisecond), 3)
}

// stamp writes a time with milliseconds; between stands between date and clock.
func (t *text) stamp(micros int64, between string) *text {
	return t.dateOf(micros).str(between).clockMilli(micros)
}

// month writes the English abbreviation that web servers use.
func (t *text) month(micros int64) *text {
	n := len(t.b)
	t.dateOf(micros)
	m := int(t.b[n+5]-'0')*10 + int(t.b[n+6]-'0') - 1
	t.b = append(t.b[:n], "JanFebMarAprMayJunJulAugSepOctNovDec"[3*m:3*m+3]...)
	return t
}

// identifiers. Each embeds the chain's number one to one, so two chains never share one.

func (t *text) order(c *chain, n uint8) *text {
	const spread, digits = 618_033_988_749, 1_000_000_000_000 // coprime, so a permutation
	t.compactDate(c.start)
	t.b = append(t.b[:len(t.b)-8], t.b[len(t.b)-6:]...)
	return t.digits(mulmod(uint64(c.number)*4+uint64(n), spread, digits), 12)
}

func (t *text) txn(c *chain, n uint8) *text {
	id := uint64(c.number)*4 + uint64(n)
	const spread, digits = 6_180_339_887_498_949, 10_000_000_000_000_000
	id = mulmod(id, spread, digits)
	switch c.channel.id {
	case "google":
		return t.str("GPA.").digits(id/1e12, 4).str("-").digits(id/1e8, 4).str("-").digits(id/1e4, 4).str("-").digits(id, 4)
	case "wechatpay":
		return t.str("4200").digits(id, 16).compactDate(c.start)
	case "paypal", "card_eu", "card_us":
		return t.str("ch_").hex(mix(id), 16)
	}
	return t.compactDate(c.start).str("2200").digits(id, 16)
}

func (t *text) receipt(c *chain, n uint8) *text {
	return t.str("MIIT").opaque(mix(uint64(c.number)*4+uint64(n)), 44)
}

func (t *text) delivery(c *chain, n uint8) *text {
	return t.str("dlv-").hex(mix(^(uint64(c.number)*4 + uint64(n))), 16)
}

func (t *text) user(n int64) *text { return t.str("u").digits(uint64(n), 10) }

// deviceOf writes one of the devices of a user.
func (t *text) deviceOf(c *chain) *text { return t.hex(mix(uint64(c.user)<<8|uint64(c.device)), 12) }

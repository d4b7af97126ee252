package decode

import (
	"bytes"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// logfmt decodes lines of key=value pairs. A path is a key, taken whole (a dot in it has no meaning). A value in double
// quotes may hold spaces and the escapes of JSON; a value without quotes ends at white space. A key alone has the value
// "true". Of a key that repeats, the first value that is not empty counts, so that text appended to a line cannot
// replace what its writer put first.
type logfmt struct {
	*frame
	filter uint64   // bit keyBit(key) of every wanted key
	keys   []string // by slot
}

func newLogfmt(_ *jobspec.Source, f *frame, _ Options) (Decoder, error) {
	d := &logfmt{frame: f}
	for i := range f.slots {
		d.keys = append(d.keys, f.slots[i].path)
		d.filter |= 1 << keyBit([]byte(f.slots[i].path))
	}
	return d, nil
}

// keyBit spreads keys over 64 bits by length and first byte; it tells most unwanted keys at once.
func keyBit(key []byte) uint {
	if len(key) == 0 {
		return 0
	}
	return (uint(len(key))*11 + uint(key[0])) % 64
}

// Decode implements Decoder.
func (d *logfmt) Decode(b *event.Batch, r event.Record) {
	if !d.begin(b, r) {
		return
	}
	line := b.Raw(r)
	for at := 0; ; {
		for at < len(line) && line[at] <= ' ' {
			at++
		}
		if at == len(line) {
			break
		}
		start := at
		for at < len(line) && line[at] > ' ' && line[at] != '=' && line[at] != '"' {
			at++
		}
		key := line[start:at]
		switch {
		case len(key) == 0:
			d.reject(b, event.ReasonSyntax, "a value without a key")
			return
		case at == len(line) || line[at] <= ' ':
			d.setWord(b, d.find(key), "true")
			continue
		case line[at] == '"':
			d.reject(b, event.ReasonSyntax, "a quote in a key")
			return
		}
		at++ // the equals sign
		n, ok := d.value(b, d.find(key), r.Off+uint32(at), line[at:])
		if !ok {
			return
		}
		at += n
	}
	d.emit(b, 0)
}

// find returns the slot that wants a key, or -1: also where it has a value already.
func (d *logfmt) find(key []byte) int {
	if d.filter>>keyBit(key)&1 == 0 {
		return -1
	}
	for slot, k := range d.keys {
		if string(key) == k && d.vals[slot].kind == kindAbsent {
			return slot
		}
	}
	return -1
}

// value delivers the value that p, at offset off of b.Data, starts with, and returns its length in p.
func (d *logfmt) value(b *event.Batch, slot int, off uint32, p []byte) (n int, ok bool) {
	if len(p) == 0 || p[0] != '"' {
		for n < len(p) && p[n] > ' ' {
			n++
		}
		if slot >= 0 && n > 0 {
			d.set(slot, off, uint32(n), kindString)
		}
		return n, true
	}
	n = 1
	for {
		end := bytes.IndexByte(p[n:], '"')
		if end < 0 {
			return 0, d.reject(b, event.ReasonSyntax, "a quoted value has no end")
		}
		n += end + 1
		if !isEscaped(p[1 : n-1]) {
			break
		}
	}
	if n < len(p) && p[n] > ' ' {
		return 0, d.reject(b, event.ReasonSyntax, "no space after a quoted value")
	}
	if slot >= 0 && n > 2 {
		d.setEscaped(b, slot, off+1, uint32(n)-2)
	}
	return n, true
}

// setEscaped delivers b.Data[off:off+n] with its escapes resolved.
func (d *logfmt) setEscaped(b *event.Batch, slot int, off, n uint32) {
	text := b.Data[off : off+n]
	if bytes.IndexByte(text, '\\') < 0 {
		d.set(slot, off, n, kindString)
		return
	}
	at := len(b.Data)
	b.Data = appendUnescaped(b.Data, text)
	d.set(slot, uint32(at), uint32(len(b.Data)-at), kindString)
}

// setWord delivers text that is not in the record.
func (d *logfmt) setWord(b *event.Batch, slot int, text string) {
	if slot < 0 {
		return
	}
	at := len(b.Data)
	b.Data = append(b.Data, text...)
	d.set(slot, uint32(at), uint32(len(text)), kindBool)
}

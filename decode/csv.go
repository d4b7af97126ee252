package decode

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// csv decodes one line of RFC 4180 a record: a quoted value may hold the delimiter, line ends and doubled quotes; a
// quote elsewhere is an error. A path is the name of a column. An empty value is absent. A line that equals the header
// (the names of the columns, all quoted or none) makes neither an event nor a reject.
type csv struct {
	*frame
	delimiter byte
	columns   []int // by column its slot; -1 where the spec does not use it
	headers   [2]string
}

func newCSV(src *jobspec.Source, f *frame, _ Options) (Decoder, error) {
	format := &src.Format
	delimiter := format.Delimiter
	if delimiter == "" {
		delimiter = ","
	}
	if len(delimiter) != 1 || strings.ContainsAny(delimiter, "\"\r\n") {
		return nil, f.problem(format.Pos, "format.delimiter", fmt.Sprintf("%q is no delimiter", delimiter), "one byte, such as , or ; or a tab")
	}
	if len(format.Columns) == 0 {
		return nil, f.problem(format.Pos, "format.columns", "the format needs the names of the columns, in order", "")
	}
	d := &csv{frame: f, delimiter: delimiter[0], columns: make([]int, len(format.Columns))}
	for i := range d.columns {
		d.columns[i] = -1
	}
	for slot := range f.slots {
		column := columnOf(format.Columns, f.slots[slot].path)
		if column < 0 {
			return nil, f.badPath(slot, fmt.Sprintf("there is no column %q", f.slots[slot].path), "the columns are "+strings.Join(format.Columns, " "))
		}
		d.columns[column] = slot
	}
	quoted := make([]string, len(format.Columns))
	for i, c := range format.Columns {
		quoted[i] = `"` + strings.ReplaceAll(c, `"`, `""`) + `"`
	}
	d.headers = [2]string{strings.Join(format.Columns, delimiter), strings.Join(quoted, delimiter)}
	return d, nil
}

func columnOf(columns []string, name string) int {
	for i, c := range columns {
		if c == name {
			return i
		}
	}
	return -1
}

// Decode implements Decoder.
func (d *csv) Decode(b *event.Batch, r event.Record) {
	if !d.begin(b, r) {
		return
	}
	line := trimLineEnd(b.Raw(r))
	base := r.Off
	if bytes.HasPrefix(line, []byte("\xef\xbb\xbf")) {
		line = line[3:]
		base += 3
	}
	if string(line) == d.headers[0] || string(line) == d.headers[1] {
		return
	}
	// Most lines have neither quotes nor line ends, and their values need no second look.
	plain := bytes.IndexByte(line, '"') < 0 && bytes.IndexByte(line, '\n') < 0
	column, at := 0, 0
	for ; ; column++ {
		slot := -1
		if column < len(d.columns) {
			slot = d.columns[column]
		}
		if !plain && at < len(line) && line[at] == '"' {
			n := quotedLength(line[at:])
			if n < 0 || at+n < len(line) && line[at+n] != d.delimiter {
				d.rejectColumn(b, column, "a quoted value has no end")
				return
			}
			if slot >= 0 && n > 2 {
				d.setQuoted(b, slot, base+uint32(at)+1, uint32(n)-2)
			}
			at += n
		} else {
			n := bytes.IndexByte(line[at:], d.delimiter)
			if n < 0 {
				n = len(line) - at
			}
			if !plain && bytes.ContainsAny(line[at:at+n], "\"\n") {
				d.rejectColumn(b, column, "a quote or line end in a value without quotes")
				return
			}
			if slot >= 0 && n > 0 {
				d.set(slot, base+uint32(at), uint32(n), kindString)
			}
			at += n
		}
		if at == len(line) {
			break
		}
		at++ // the delimiter
	}
	if column+1 != len(d.columns) {
		d.reject(b, event.ReasonSyntax, strconv.Itoa(column+1)+" columns where the spec names "+strconv.Itoa(len(d.columns)))
		return
	}
	d.emit(b, 0)
}

func (d *csv) rejectColumn(b *event.Batch, column int, what string) {
	d.reject(b, event.ReasonSyntax, what+", column "+strconv.Itoa(column+1))
}

// quotedLength returns the length, with quotes, of the quoted value that p starts with, or -1 if it has no end.
func quotedLength(p []byte) int {
	for at := 1; ; at += 2 {
		n := bytes.IndexByte(p[at:], '"')
		if n < 0 {
			return -1
		}
		at += n
		if at+1 == len(p) || p[at+1] != '"' {
			return at + 1
		}
	}
}

// setQuoted delivers the text between the quotes, b.Data[off:off+n], with doubled quotes resolved.
func (d *csv) setQuoted(b *event.Batch, slot int, off, n uint32) {
	text := b.Data[off : off+n]
	if bytes.IndexByte(text, '"') < 0 {
		d.set(slot, off, n, kindString)
		return
	}
	at := len(b.Data)
	for len(text) > 0 {
		end := bytes.IndexByte(text, '"') + 1
		if end == 0 {
			b.Data = append(b.Data, text...)
			break
		}
		b.Data = append(b.Data, text[:end]...)
		text = text[end+1:] // the second quote
	}
	d.set(slot, uint32(at), uint32(len(b.Data)-at), kindString)
}

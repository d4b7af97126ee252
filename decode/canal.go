package decode

import (
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// canalDecoder decodes the flat messages of Canal: one JSON object with type, database, table, es (time of the change
// in milliseconds; ts is when Canal read it), data (an array of rows, one event each) and old (an array parallel to
// data: the columns that an update changed). See rowPlan for the paths; `ts` is es, or ts where there is no es.
type canalDecoder struct {
	f        *frame
	s        scanner
	p        *rowPlan
	root     *node
	rowSlots []int
	readAt   int // slot of the message's own ts
}

// Spans. The first row of data and old is read with the rest of the message, since most messages have just one; what
// follows is noted and read afterwards.
const (
	canalType = iota
	canalIsDDL
	canalData
	canalOld
)

func newCanal(src *jobspec.Source, f *frame, _ Options) (Decoder, error) {
	p, err := newRowPlan(src, f, "unix_ms")
	if err != nil {
		return nil, err
	}
	d := &canalDecoder{f: f, s: scanner{f: f}, p: p, root: newNode(), readAt: -1}
	d.rowSlots = append(append(d.rowSlots, p.rowSlots...), p.oldSlots...)
	if p.ts >= 0 {
		d.readAt = f.hidden()
	}
	d.root.at("type").span = canalType
	d.root.at("isDdl").span = canalIsDDL
	d.root.at("table").want(p.table)
	d.root.at("database").want(p.database)
	d.root.at("es").want(p.ts)
	d.root.at("ts").want(d.readAt)
	data, old := d.root.at("data"), d.root.at("old")
	data.elems, data.tail = []elem{{0, p.row}}, canalData
	old.elems, old.tail = []elem{{0, p.old}}, canalOld
	return d, nil
}

// Decode implements Decoder.
func (d *canalDecoder) Decode(b *event.Batch, r event.Record) {
	if !d.f.begin(b, r) {
		return
	}
	d.s.start(b, r)
	if !d.s.document(d.root) {
		return
	}
	var op *constant
	switch string(d.s.spanText(canalType)) {
	case `"INSERT"`:
		op = &d.p.insert
	case `"UPDATE"`:
		op = &d.p.update
	case `"DELETE"`:
		op = &d.p.delete
	case "":
		d.f.reject(b, event.ReasonSchema, "no type")
		return
	}
	if op == nil || d.s.spanIs(canalIsDDL, "true") || !d.s.span[canalData].set() {
		d.f.skip(b)
		return
	}
	d.p.setOperation(d.f, b, op)
	if d.p.ts >= 0 && d.f.vals[d.p.ts].kind == kindAbsent {
		d.f.vals[d.p.ts] = d.f.vals[d.readAt]
	}
	d.rows(b)
}

// rows emits the row that has been read and those that follow it in data and, beside them, in old.
func (d *canalDecoder) rows(b *event.Batch) {
	data, old := d.s.span[canalData], d.s.span[canalOld]
	for index := 0; ; index++ {
		if !d.f.emit(b, index) || data.start == data.end {
			return
		}
		for _, slot := range d.rowSlots {
			d.f.vals[slot] = ref{}
		}
		if !d.next(d.p.row, &data) || !d.next(d.p.old, &old) {
			return
		}
	}
}

// next reads the first element of the elements in rest, if there is one, and takes it from them. It returns false when
// the record is rejected.
func (d *canalDecoder) next(n *node, rest *span) bool {
	if rest.end <= rest.start {
		return true
	}
	i := d.s.value(n, rest.start, event.DepthMax)
	if i >= 0 {
		i, _ = d.s.comma(i)
	}
	if i < 0 {
		return d.s.reject()
	}
	rest.start = min(i, rest.end)
	return true
}

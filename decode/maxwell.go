package decode

import (
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// maxwellDecoder decodes the row changes of Maxwell: one JSON object with type, database, table, ts in seconds, data
// (the row) and old (the columns that an update changed). See rowPlan for the paths. A bootstrap-insert is a snapshot.
type maxwellDecoder struct {
	f    *frame
	s    scanner
	p    *rowPlan
	root *node
}

const maxwellType = 0 // span

func newMaxwell(src *jobspec.Source, f *frame, _ Options) (Decoder, error) {
	p, err := newRowPlan(src, f, "unix_s")
	if err != nil {
		return nil, err
	}
	d := &maxwellDecoder{f: f, s: scanner{f: f}, p: p, root: newNode()}
	d.root.at("type").span = maxwellType
	d.root.at("table").want(p.table)
	d.root.at("database").want(p.database)
	d.root.at("ts").want(p.ts)
	_ = d.root.add("data", p.row)
	_ = d.root.add("old", p.old)
	return d, nil
}

// Decode implements Decoder.
func (d *maxwellDecoder) Decode(b *event.Batch, r event.Record) {
	if !d.f.begin(b, r) {
		return
	}
	d.s.start(b, r)
	if !d.s.document(d.root) {
		return
	}
	var op *constant
	switch string(d.s.spanText(maxwellType)) {
	case `"insert"`:
		op = &d.p.insert
	case `"update"`:
		op = &d.p.update
	case `"delete"`:
		op = &d.p.delete
	case `"bootstrap-insert"`:
		op = &d.p.snapshot
	case "":
		d.f.reject(b, event.ReasonSchema, "no type")
		return
	default: // bootstrap-start, bootstrap-complete, table-alter and other changes without rows
		d.f.skip(b)
		return
	}
	d.p.setOperation(d.f, b, op)
	d.f.emit(b, 0)
}

package decode

import (
	"bytes"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// debeziumDecoder decodes the change events of Debezium, with or without the {"schema", "payload"} envelope: op (c u d
// r), before and after (whole rows), and source with db, table and ts_ms. See rowPlan for the paths; `ts` is source.ts_ms.
// Tombstones (an empty or null value) count as skipped.
type debeziumDecoder struct {
	f       *frame
	s       scanner
	p       *rowPlan
	root    *node
	compare []comparison
}

// comparison says which value of the new row an old value must differ from to count as changed.
type comparison struct{ old, row int }

// Spans.
const (
	debeziumOp = iota
	debeziumBefore
	debeziumPayload
)

func newDebezium(src *jobspec.Source, f *frame, _ Options) (Decoder, error) {
	for i := range f.slots { // before has whole rows: what changed shows only beside the new row
		if column, ok := bytes.CutPrefix([]byte(f.slots[i].path), []byte("old.")); ok {
			f.slot("row."+string(column), f.slots[i].pos, f.slots[i].at)
		}
	}
	p, err := newRowPlan(src, f, "unix_ms")
	if err != nil {
		return nil, err
	}
	d := &debeziumDecoder{f: f, s: scanner{f: f}, p: p}
	for _, old := range p.oldSlots {
		row := f.slot("row."+f.slots[old].path[len("old."):], f.slots[old].pos, f.slots[old].at)
		d.compare = append(d.compare, comparison{old, row})
	}
	payload := newNode()
	payload.at("op").span = debeziumOp
	payload.at("before").span = debeziumBefore
	payload.at("source", "table").want(p.table)
	payload.at("source", "db").want(p.database)
	payload.at("source", "ts_ms").want(p.ts)
	_ = payload.add("after", p.row)
	root := *payload
	payload.span = debeziumPayload
	d.root = &root
	return d, d.root.add("payload", payload)
}

// Decode implements Decoder.
func (d *debeziumDecoder) Decode(b *event.Batch, r event.Record) {
	if !d.f.begin(b, r) {
		return
	}
	if text := bytes.TrimSpace(b.Raw(r)); len(text) == 0 || string(text) == "null" {
		d.f.skip(b)
		return
	}
	d.s.start(b, r)
	if !d.s.document(d.root) {
		return
	}
	var op *constant
	switch string(d.s.spanText(debeziumOp)) {
	case `"c"`:
		op = &d.p.insert
	case `"u"`:
		op = &d.p.update
	case `"d"`:
		op = &d.p.delete
	case `"r"`:
		op = &d.p.snapshot
	case "":
		if !d.s.spanIs(debeziumPayload, "null") {
			d.f.reject(b, event.ReasonSchema, "no op")
			return
		}
	}
	if op == nil { // a tombstone, a truncate, a message of the log
		d.f.skip(b)
		return
	}
	if !d.before(op) {
		return
	}
	d.p.setOperation(d.f, b, op)
	d.f.emit(b, 0)
}

// before reads the row before the change where the operation needs it. It returns false when the record is rejected.
func (d *debeziumDecoder) before(op *constant) bool {
	at := d.s.span[debeziumBefore]
	switch {
	case op == &d.p.delete:
		for _, slot := range d.p.rowSlots {
			d.f.vals[slot] = ref{}
		}
		if at.set() && d.s.value(d.p.row, at.start, event.DepthMax) < 0 {
			return d.s.reject()
		}
	case op == &d.p.update && len(d.compare) > 0:
		if at.set() && d.s.value(d.p.old, at.start, event.DepthMax) < 0 {
			return d.s.reject()
		}
		for _, c := range d.compare {
			old, row := d.f.vals[c.old], d.f.vals[c.row]
			if old.kind == row.kind && bytes.Equal(old.text(d.s.b), row.text(d.s.b)) {
				d.f.vals[c.old] = ref{}
			}
		}
	}
	return true
}

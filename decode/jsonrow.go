package decode

import (
	"strconv"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// rowPlan is what a source wants of a row change, in any of the formats that carry row changes. Its paths are
//
//	row.COLUMN   the row after the change; the deleted row of a delete
//	old.COLUMN   the value before the change, where an update changed it
//	operation    insert, update, delete or snapshot
//	table, database
//	ts           the time of the change, as the source writes it
//
// Changes without rows (DDL, truncate, markers) are no events; they count as skipped.
type rowPlan struct {
	row, old           *node
	rowSlots, oldSlots []int
	operation          int // slot; -1: not wanted, as in what follows
	table, database    int
	ts                 int

	insert, update, delete, snapshot constant
}

// newRowPlan sorts the paths of the frame's slots. Time defaults to `ts` with the given layout.
func newRowPlan(src *jobspec.Source, f *frame, tsLayout string) (*rowPlan, error) {
	if !f.time.set && (src.Time.Field == "" || src.Time.Field == "ts") {
		if src.Time.Layout != "" {
			tsLayout = src.Time.Layout
		}
		if err := f.setTime(src, "ts", tsLayout); err != nil {
			return nil, err
		}
	}
	p := &rowPlan{
		operation: -1, table: -1, database: -1, ts: -1,
		insert: constant{text: "insert"}, update: constant{text: "update"},
		delete: constant{text: "delete"}, snapshot: constant{text: "snapshot"},
	}
	var row, old []want
	for i := range f.slots {
		segs, root, err := parsePath(f.slots[i].path)
		if err != nil {
			return nil, f.badPath(i, err.Error(), "")
		}
		head := ""
		if len(segs) > 0 && !root {
			head = segs[0].name
		}
		switch {
		case head == "row" && len(segs) > 1:
			row = append(row, want{segs[1:], i})
			p.rowSlots = append(p.rowSlots, i)
		case head == "old" && len(segs) > 1:
			old = append(old, want{segs[1:], i})
			p.oldSlots = append(p.oldSlots, i)
		case head == "operation" && len(segs) == 1:
			p.operation = i
		case head == "table" && len(segs) == 1:
			p.table = i
		case head == "database" && len(segs) == 1:
			p.database = i
		case head == "ts" && len(segs) == 1:
			p.ts = i
		default:
			return nil, f.badPath(i, "format "+src.Format.Name+" has no path "+strconv.Quote(f.slots[i].path),
				rowHint(f.slots[i].path))
		}
		if (head == "row" || head == "old") && hasEvery(segs) {
			return nil, f.badPath(i, "a column holds one value; [] cannot be used in "+strconv.Quote(f.slots[i].path), "")
		}
	}
	var err error
	if p.row, err = buildNode(row); err == nil {
		p.old, err = buildNode(old)
	}
	if err != nil {
		return nil, f.problem(src.Pos, "fields", err.Error(), "")
	}
	return p, nil
}

func rowHint(path string) string {
	return "a column is row." + path + " or old." + path + "; there are also operation, table, database and ts"
}

// want makes the scalar at n fill a slot, unless the slot is -1.
func (n *node) want(slot int) {
	if slot >= 0 {
		n.slots = append(n.slots, slot)
	}
}

// setOperation fills the slot of `operation`.
func (p *rowPlan) setOperation(f *frame, b *event.Batch, op *constant) {
	if p.operation >= 0 {
		v := op.in(b)
		f.set(p.operation, v.off, v.n, v.kind)
	}
}

// spanIs tells whether the value noted in a span is a text, quotes included where it is a string.
func (s *scanner) spanIs(span int, text string) bool { return string(s.spanText(span)) == text }

// spanText returns the value noted in a span as it is written; empty where there is none.
func (s *scanner) spanText(span int) []byte {
	if r := s.span[span]; r.set() {
		return s.p[r.start:r.end]
	}
	return nil
}

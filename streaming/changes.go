package streaming

import (
	"slices"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// Changes is what one write takes to a sink. It is reused: a sink must not keep it.
type Changes struct {
	Last       uint64       // sequence number of the last change
	Watermark  event.Micros // as it is once these changes are written
	Sessions   []Session
	Gone       []Tombstone
	Cells      []Cell
	LateEvents []Exception
	Rejects    []Exception

	steps []string
}

// Session is a session as it is now.
type Session struct {
	Seq uint64
	Row correlate.Row // a copy of its own
}

// Tombstone takes back a session that was handed out.
type Tombstone struct {
	Seq uint64
	ID  correlate.ID
}

// Cell is a report cell as it is now.
type Cell struct {
	Seq  uint64
	Cell correlate.Cell // a copy of its own
}

// Exception is a record that was rejected, or an event that came too late. Writing it again under its identity changes
// nothing.
type Exception struct {
	Source    uint16
	Partition int32
	Offset    int64
	Index     uint16       // of a late event
	Time      event.Micros // of a late event; the timestamp of a rejected record
	Reason    event.Reason // of a reject
	Detail    string
	Raw       []byte
}

func (c *Changes) empty() bool {
	return len(c.Sessions)+len(c.Gone)+len(c.Cells)+len(c.LateEvents)+len(c.Rejects) == 0
}

func (c *Changes) reset() {
	c.Sessions, c.Gone, c.Cells = c.Sessions[:0], c.Gone[:0], c.Cells[:0]
	c.LateEvents, c.Rejects = c.LateEvents[:0], c.Rejects[:0]
}

// Upsert implements correlate.Output, as the methods below do.
func (c *Changes) Upsert(seq uint64, r *correlate.Row) {
	row := *r
	row.Keys = slices.Clone(r.Keys)
	for i := range row.Keys {
		row.Keys[i].Value = slices.Clone(row.Keys[i].Value)
	}
	row.Fields = slices.Clone(r.Fields)
	for i := range row.Fields {
		row.Fields[i].Text = slices.Clone(row.Fields[i].Text)
	}
	row.Hits = slices.Clone(r.Hits)
	row.Events = slices.Clone(r.Events)
	if !slices.Equal(c.steps, r.StepNames) { // the core may give a number to another name later
		c.steps = slices.Clone(r.StepNames)
	}
	row.StepNames = c.steps
	c.Sessions = append(c.Sessions, Session{seq, row})
}

// Tombstone notes that a session is gone.
func (c *Changes) Tombstone(seq uint64, id correlate.ID) {
	c.Gone = append(c.Gone, Tombstone{seq, id})
}

// Cell notes a report cell.
func (c *Changes) Cell(seq uint64, r *correlate.Cell) {
	cell := *r
	cell.By = slices.Clone(r.By)
	for i := range cell.By {
		cell.By[i] = slices.Clone(cell.By[i])
	}
	cell.Measures = slices.Clone(r.Measures)
	c.Cells = append(c.Cells, Cell{seq, cell})
}

// Late notes an event that came too late to link, with the record that it is from.
func (c *Changes) Late(b *event.Batch, i int) {
	e := &b.Events[i]
	x := Exception{Source: e.Source, Partition: e.Partition, Offset: e.Offset, Index: e.Index, Time: e.Time}
	for _, r := range b.Records {
		if r.Source == e.Source && r.Partition == e.Partition && r.Offset == e.Offset {
			x.Raw = slices.Clone(b.Raw(r))
			break
		}
	}
	c.LateEvents = append(c.LateEvents, x)
}

// reject notes a record that could not be decoded.
func (c *Changes) reject(b *event.Batch, r *event.Reject) {
	c.Rejects = append(c.Rejects, Exception{
		Source: r.Record.Source, Partition: r.Record.Partition, Offset: r.Record.Offset,
		Time: r.Record.Timestamp, Reason: r.Reason, Detail: r.Detail, Raw: slices.Clone(b.Raw(r.Record)),
	})
}

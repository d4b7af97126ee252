package streaming

import (
	"iter"
	"slices"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// Changes is what one write takes to a sink. It is reused with all that it points to: a sink must not keep it.
type Changes struct {
	Last       uint64       // sequence number of the last change
	Watermark  event.Micros // as it is once these changes are written
	More       bool         // other parts of the same changes follow; Watermark holds with the last
	Sessions   []Session
	Gone       []Tombstone
	Cells      []Cell
	LateEvents []Exception
	Rejects    []Exception

	steps []string // the core's, as they are
	from  lateRecord
	ages  []age // of the records that these changes come from

	// What rows point to. A batch takes from these and gives back all at once.
	texts  arena[byte]
	lists  arena[[]byte]
	keys   arena[correlate.RowKey]
	fields arena[correlate.RowField]
	hits   arena[correlate.Hit]
	events arena[correlate.RowEvent]
	sums   arena[int64]
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
	Raw       []byte // events of one record share it
}

// age counts records of about one timestamp.
type age struct {
	at event.Micros
	n  int64
}

// lateRecord is where the search for the record of a late event goes on: events stand in the order of their records.
type lateRecord struct {
	at  int // in the batch
	id  event.Record
	raw []byte // a copy; nil before the first
}

// arena copies slices into memory that the next batch uses again.
type arena[T any] struct {
	block []T
	used  int // since the reset, in this block and those before it
}

const arenaBlock = 1 << 10 // items of the first block

func (a *arena[T]) copy(s []T) []T {
	if s == nil {
		return nil
	}
	if a.block == nil || cap(a.block)-len(a.block) < len(s) { // what was copied keeps the old block
		a.block = make([]T, 0, max(arenaBlock, 2*cap(a.block), len(s)))
	}
	at := len(a.block)
	a.block = append(a.block, s...)
	a.used += len(s)
	return a.block[at:len(a.block):len(a.block)]
}

func (a *arena[T]) reset() {
	a.block = emptied(a.block, a.used)
	a.used = 0
}

// emptied returns a list without its items. Memory of which hardly anything was used is given back: it is of a peak, such
// as the repair of a sink.
func emptied[T any](s []T, used int) []T {
	if cap(s) > 64*arenaBlock && used < cap(s)/8 {
		return nil
	}
	return s[:0]
}

func (c *Changes) empty() bool {
	return len(c.Sessions)+len(c.Gone)+len(c.Cells)+len(c.LateEvents)+len(c.Rejects) == 0
}

// parts yields the changes in parts of at most n, at least one; each stands for itself. Where More
// is true the watermark does not hold yet.
func (c *Changes) parts(n int) iter.Seq[*Changes] {
	return func(yield func(*Changes) bool) {
		rest := Changes{Sessions: c.Sessions, Gone: c.Gone, Cells: c.Cells, LateEvents: c.LateEvents, Rejects: c.Rejects}
		for {
			room := n
			part := Changes{
				Last: c.Last, Watermark: c.Watermark,
				Sessions: cut(&rest.Sessions, &room), Gone: cut(&rest.Gone, &room), Cells: cut(&rest.Cells, &room),
				LateEvents: cut(&rest.LateEvents, &room), Rejects: cut(&rest.Rejects, &room),
			}
			part.More = !rest.empty()
			if !yield(&part) || !part.More {
				return
			}
		}
	}
}

// cut takes as many of the list's first items as there is room for.
func cut[T any](list *[]T, room *int) []T {
	n := min(len(*list), *room)
	first := (*list)[:n]
	*list, *room = (*list)[n:], *room-n
	return first
}

func (c *Changes) reset() {
	c.Sessions, c.Gone, c.Cells = emptied(c.Sessions, len(c.Sessions)), emptied(c.Gone, len(c.Gone)), emptied(c.Cells, len(c.Cells))
	c.LateEvents, c.Rejects, c.ages = emptied(c.LateEvents, len(c.LateEvents)), emptied(c.Rejects, len(c.Rejects)), emptied(c.ages, len(c.ages))
	c.steps, c.from = nil, lateRecord{}
	c.texts.reset()
	c.lists.reset()
	c.keys.reset()
	c.fields.reset()
	c.hits.reset()
	c.events.reset()
	c.sums.reset()
}

// take collects what the core hands out. Within one of its calls the names of steps stay as they are; before the next it
// may give a number to another name.
func (c *Changes) take(hand func(correlate.Output)) {
	c.steps, c.from = nil, lateRecord{}
	hand(c)
}

// Upsert implements correlate.Output, as the methods below do.
func (c *Changes) Upsert(seq uint64, r *correlate.Row) {
	row := *r
	row.Keys = c.keys.copy(r.Keys)
	for i := range row.Keys {
		row.Keys[i].Value = c.texts.copy(row.Keys[i].Value)
	}
	row.Fields = c.fields.copy(r.Fields)
	for i := range row.Fields {
		row.Fields[i].Text = c.texts.copy(row.Fields[i].Text)
	}
	row.Hits = c.hits.copy(r.Hits)
	row.Events = c.events.copy(r.Events)
	if c.steps == nil {
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
	cell.By = c.lists.copy(r.By)
	for i := range cell.By {
		cell.By[i] = c.texts.copy(cell.By[i])
	}
	cell.Measures = c.sums.copy(r.Measures)
	c.Cells = append(c.Cells, Cell{seq, cell})
}

// Late notes an event that came too late to link, with the record that it is from.
func (c *Changes) Late(b *event.Batch, i int) {
	e := &b.Events[i]
	x := Exception{Source: e.Source, Partition: e.Partition, Offset: e.Offset, Index: e.Index, Time: e.Time,
		Detail: string(b.Steps[e.Step])}
	x.Raw = c.recordOf(b, event.Record{Source: e.Source, Partition: e.Partition, Offset: e.Offset})
	c.LateEvents = append(c.LateEvents, x)
}

// recordOf returns a copy of the bytes of the record with an identity, nil where the batch does not have it.
func (c *Changes) recordOf(b *event.Batch, id event.Record) []byte {
	if c.from.raw != nil && c.from.id == id {
		return c.from.raw
	}
	for range b.Records {
		if c.from.at >= len(b.Records) {
			c.from.at = 0
		}
		r := b.Records[c.from.at]
		if r.Source == id.Source && r.Partition == id.Partition && r.Offset == id.Offset {
			c.from.id, c.from.raw = id, c.texts.copy(b.Raw(r))
			return c.from.raw
		}
		c.from.at++
	}
	return nil
}

// reject notes a record that could not be decoded.
func (c *Changes) reject(b *event.Batch, r *event.Reject) {
	c.Rejects = append(c.Rejects, Exception{
		Source: r.Record.Source, Partition: r.Record.Partition, Offset: r.Record.Offset,
		Time: r.Record.Timestamp, Reason: r.Reason, Detail: r.Detail, Raw: c.texts.copy(b.Raw(r.Record)),
	})
}

// count adds the time from each record until at to a histogram, and forgets the records.
func (c *Changes) count(h *Histogram, at time.Time) {
	now := event.Micros(at.UnixMicro())
	for _, a := range c.ages {
		h.Add(time.Duration(max(0, now-a.at))*time.Microsecond, a.n)
	}
	c.ages = c.ages[:0]
}

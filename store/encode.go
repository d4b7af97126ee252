package store

import (
	"slices"
	"strconv"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/results"
)

// Encoder makes rows of the store from what a core hands out. It copies everything. It is not safe for concurrent use.
type Encoder struct {
	cfg      *correlate.Config
	meta     results.Meta
	text     *results.SessionText
	digester *correlate.Digester
}

// NewEncoder returns an encoder for cores with this config; meta has the names of the same spec.
func NewEncoder(cfg *correlate.Config, meta results.Meta) *Encoder {
	return &Encoder{cfg, meta, results.NewSessionText(meta), correlate.NewDigester(cfg)}
}

// Upsert adds a session to a batch.
func (e *Encoder) Upsert(b *Batch, seq uint64, r *correlate.Row) {
	x := Session{Seq: seq, ID: r.ID, Start: r.Start, End: r.End, Events: r.Count, Digest: e.digester.RowDigest(r), Body: e.text.Append(nil, r)}
	if u := e.meta.User; u >= 0 && r.Fields[u].Present {
		x.User = e.fieldText(u, &r.Fields[u])
	}
	for _, k := range r.Keys {
		x.Keys = append(x.Keys, Key{e.meta.Kinds[k.Kind], slices.Clone(k.Value)})
	}
	for _, h := range r.Hits {
		x.Hits = append(x.Hits, Hit{e.meta.Scenarios[h.Scenario], h.DecidedAt})
	}
	b.Sessions = append(b.Sessions, x)
}

func (e *Encoder) fieldText(field int, f *correlate.RowField) []byte {
	if e.cfg.Fields[field].Int {
		return strconv.AppendInt(nil, f.Int, 10)
	}
	return append([]byte{}, f.Text...)
}

// Tombstone adds the end of a session to a batch.
func (e *Encoder) Tombstone(b *Batch, seq uint64, id ID) {
	b.Tombstones = append(b.Tombstones, Tombstone{seq, id})
}

// Cell adds a report cell to a batch.
func (e *Encoder) Cell(b *Batch, seq uint64, c *correlate.Cell) {
	r := &e.meta.Reports[c.Report]
	x := Cell{Seq: seq, Report: r.Name, Window: c.Window, Empty: c.Sessions == 0}
	for i, value := range c.By {
		x.By = append(x.By, Dimension{r.By[i], slices.Clone(value)})
	}
	for i, value := range c.Measures {
		x.Measures = append(x.Measures, Measure{r.Measures[i], value})
	}
	b.Cells = append(b.Cells, x)
}

// CellOf returns a cell as the core has it, without Sessions, which the store does not keep. It is false for a cell of a
// report, or with dimensions, that the spec does not have.
func (e *Encoder) CellOf(c Cell) (cell correlate.Cell, ok bool) {
	number := slices.IndexFunc(e.meta.Reports, func(r results.Report) bool { return r.Name == c.Report })
	if number < 0 || len(c.By) != len(e.meta.Reports[number].By) {
		return cell, false
	}
	r := &e.meta.Reports[number]
	cell = correlate.Cell{Report: number, Window: c.Window, Measures: make([]int64, len(r.Measures))}
	for i, d := range c.By {
		if d.Name != r.By[i] {
			return cell, false
		}
		cell.By = append(cell.By, d.Value)
	}
	for _, m := range c.Measures {
		if i := slices.Index(r.Measures, m.Name); i >= 0 {
			cell.Measures[i] = m.Value
		}
	}
	return cell, true
}

// Late adds a late event to a batch. Its step is the Detail.
func (e *Encoder) Late(b *Batch, seq uint64, in *event.Batch, i int) {
	x := &in.Events[i]
	out := e.Exception(seq, Late, x.Source)
	out.Partition, out.Offset, out.Index, out.Time = x.Partition, x.Offset, int(x.Index), x.Time
	out.Detail = slices.Clone(in.Steps[x.Step])
	for _, r := range in.Records {
		if r.Source == x.Source && r.Partition == x.Partition && r.Offset == x.Offset {
			out.Raw = slices.Clone(in.Raw(r))
			break
		}
	}
	b.Exceptions = append(b.Exceptions, out)
}

// Reject adds a rejected record to a batch.
func (e *Encoder) Reject(b *Batch, seq uint64, in *event.Batch, r *event.Reject) {
	out := e.Exception(seq, Rejected, r.Record.Source)
	out.Partition, out.Offset, out.Time = r.Record.Partition, r.Record.Offset, r.Record.Timestamp
	out.Reason, out.Detail, out.Raw = string(r.Reason), []byte(r.Detail), slices.Clone(in.Raw(r.Record))
	b.Exceptions = append(b.Exceptions, out)
}

// Exception returns one with the names of its source, for a caller that has its parts and not its batch.
func (e *Encoder) Exception(seq uint64, kind ExceptionKind, source uint16) Exception {
	s := e.meta.Sources[source]
	return Exception{Seq: seq, Kind: kind, Source: s.Name, Topic: s.Topic}
}

package publisher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// Position is the place of a published row in the order of its session: of two rows of one session the one with the higher
// position holds, wherever they stand. A map epoch higher than another means that a switch lies between.
type Position struct {
	Map        uint64 // epoch of the serving map that was followed
	Generation int64  // that serves the session; 0: none any more
	Shard      int
	Epoch, Seq uint64 // of the change in its shard; both 0 where a switch made the session vanish
}

// Less orders the positions of one session.
func (p Position) Less(o Position) bool {
	if p.Map != o.Map {
		return p.Map < o.Map
	}
	return store.Position{Epoch: p.Epoch, Seq: p.Seq}.Less(store.Position{Epoch: o.Epoch, Seq: o.Seq})
}

// Row is what is published of a session.
type Row struct {
	ID         correlate.ID
	At         Position
	Start, End event.Micros // End is 0 where the session is gone
	Deleted    bool
	Body       []byte // the session as a line of sessions.jsonl; nil where it is gone
}

// rowOf makes a row of what the store has of a session.
func rowOf(mapEpoch uint64, r *store.Row, deleted bool) Row {
	row := Row{ID: r.ID, At: Position{mapEpoch, r.Generation, r.Shard, r.Position.Epoch, r.Position.Seq}, Start: r.Start, End: r.End, Deleted: deleted}
	if deleted {
		row.End = 0
		return row
	}
	row.Body = r.Body
	return row
}

// Names of the headers of a record, and the key of the record that tells of a switch.
const (
	JobHeader       = "weft-job"
	PositionHeader  = "weft-position"  // map epoch/generation/shard/epoch/sequence/start in microseconds
	PublisherHeader = "weft-publisher" // number of the start of the publisher that wrote the record
	SwitchKey       = "weft-switch"
)

// Switched is the value of a record with SwitchKey: what comes before it in its partition brought the topic to that map.
type Switched struct {
	Job      string             `json:"job"`
	MapEpoch uint64             `json:"map_epoch"`
	Ranges   []store.Assignment `json:"ranges"` // which generation serves the sessions that start when, in microseconds
	// Generation serves the newest sessions; 0: none.
	Generation int64 `json:"generation"`
}

func switchedOf(job string, m store.Map) Switched {
	s := Switched{Job: job, MapEpoch: m.Epoch, Ranges: m.Ranges}
	if n := len(m.Ranges); n > 0 {
		s.Generation = m.Ranges[n-1].Generation
	}
	return s
}

// Record is a record of the output topic.
type Record struct {
	Key     []byte
	Value   []byte // nil: the session is gone
	Headers []Header
}

// Header is a header of a record.
type Header struct {
	Name  string
	Value []byte
}

func (r *Record) header(name string) string {
	for _, h := range r.Headers {
		if h.Name == name {
			return string(h.Value)
		}
	}
	return ""
}

// recordOf writes a row.
func recordOf(job string, publisher uint64, r *Row) Record {
	position := fmt.Sprintf("%d/%d/%d/%d/%d/%d", r.At.Map, r.At.Generation, r.At.Shard, r.At.Epoch, r.At.Seq, r.Start)
	record := Record{Key: r.ID.Append(nil), Headers: headersOf(job, publisher)}
	record.Headers = append(record.Headers, Header{PositionHeader, []byte(position)})
	if !r.Deleted {
		record.Value = r.Body
	}
	return record
}

func headersOf(job string, publisher uint64) []Header {
	return []Header{{JobHeader, []byte(job)}, {PublisherHeader, fmt.Append(nil, publisher)}}
}

// ErrForeign is in errors about records that no publisher wrote.
var ErrForeign = errors.New("no publisher wrote this record")

// ParseRecord reads a record of the output topic: a row of a session, or the news of a switch, in which case row is nil. It
// also returns the number of the publisher's start. Its error is an ErrForeign.
func ParseRecord(r *Record) (row *Row, switched *Switched, publisher uint64, err error) {
	bad := func(err error) error { return fmt.Errorf("%w: key %.40q: %w", ErrForeign, r.Key, err) }
	if _, err := fmt.Sscanf(r.header(PublisherHeader), "%d", &publisher); err != nil {
		return nil, nil, 0, bad(fmt.Errorf("header %s: %w", PublisherHeader, err))
	}
	if string(r.Key) == SwitchKey {
		switched = &Switched{}
		if err := json.Unmarshal(r.Value, switched); err != nil {
			return nil, nil, 0, bad(err)
		}
		return nil, switched, publisher, nil
	}
	row = &Row{Deleted: r.Value == nil, Body: bytes.Clone(r.Value)}
	if row.ID, err = correlate.ParseID(string(r.Key)); err != nil {
		return nil, nil, 0, bad(err)
	}
	p, text := &row.At, r.header(PositionHeader)
	if n, err := fmt.Sscanf(text, "%d/%d/%d/%d/%d/%d", &p.Map, &p.Generation, &p.Shard, &p.Epoch, &p.Seq, &row.Start); err != nil || n != 6 || strings.Count(text, "/") != 5 {
		return nil, nil, 0, bad(fmt.Errorf("header %s is %.80q", PositionHeader, text))
	}
	return row, nil, publisher, nil
}

// Latest is what a consumer keeps: the row with the highest position of each session. Of equal ones the later read holds.
// It needs the rows of sessions that are gone, too: an older row that comes after must not bring them back.
type Latest struct{ rows map[correlate.ID]Row }

// Add takes a row in the order in which it was read. It is false where the row is older than what is known.
func (l *Latest) Add(r Row) bool {
	if old, ok := l.rows[r.ID]; ok && r.At.Less(old.At) {
		return false
	}
	if l.rows == nil {
		l.rows = map[correlate.ID]Row{}
	}
	l.rows[r.ID] = r
	return true
}

// Sessions calls yield for every session that is there, in no order.
func (l *Latest) Sessions(yield func(Row) bool) {
	for _, r := range l.rows {
		if !r.Deleted && !yield(r) {
			return
		}
	}
}

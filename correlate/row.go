package correlate

import "github.com/weftdata/weft/event"

// ID names a session: 48 bits of its least event's time in milliseconds, then 80 bits of a hash of that event's time
// and identity. IDs sort by start.
type ID [16]byte

// Row is one session as it is served. The core reuses the Row and everything that it points to: it is valid only
// during the call that hands it over.
type Row struct {
	ID         ID
	Start, End event.Micros // times of the first and the last event
	Count      int64        // number of events, the revision
	Keys       []RowKey     // sorted by kind, then value; each once
	Fields     []RowField   // by number in Config.Fields
	Hits       []Hit        // the scenarios that hold, in order of Config.Scenarios
	Events     []RowEvent   // the timeline: the least Config.TimelineEvents events, sorted by (time, identity)
	StepNames  []string     // by RowEvent.Step
}

// RowKey is one link key of a session.
type RowKey struct {
	Kind  int // number in Config.Kinds
	Value []byte
	First event.Micros // least time of an event of the session that has it
}

// RowField is a session's value of one field: that of its least event that has the field.
type RowField struct {
	Present bool
	Text    []byte       // of a string field
	Int     int64        // of an integer field
	First   event.Micros // time of the event that gave the value
}

// Hit is a scenario that holds for a session.
type Hit struct {
	Scenario  int // number in Config.Scenarios
	DecidedAt event.Micros
}

// RowEvent is one event of a timeline: its place in its source, its time and its step.
type RowEvent struct {
	Time      event.Micros
	Offset    int64
	Partition int32
	Index     uint16
	Source    uint16 // number of the source
	Step      uint32 // number in Row.StepNames
	fold      uint64 // hash of the source and its dedupe fields; 0 where the source has none
}

// less orders events by (time, identity).
func (a *RowEvent) less(b *RowEvent) bool {
	if a.Time != b.Time {
		return a.Time < b.Time
	}
	if a.Source != b.Source {
		return a.Source < b.Source
	}
	if a.Partition != b.Partition {
		return a.Partition < b.Partition
	}
	if a.Offset != b.Offset {
		return a.Offset < b.Offset
	}
	return a.Index < b.Index
}

// Cell is one line of a report: the sessions that start in one window and agree in the report's fields.
type Cell struct {
	Report   int          // number in Config.Reports
	Window   event.Micros // start of the window
	By       [][]byte     // text of the fields, in order of Report.By; empty where the session has none
	Measures []int64      // in order of Report.Measures; absolute, not a difference
	Sessions int64        // how many sessions count in it; a cell with none is no row, whatever its measures
}

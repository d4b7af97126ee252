// Package event holds the types that travel between decoding and correlation: a batch of raw records and the events
// decoded from them. It imports nothing, holds no pointers per event and copies no bytes: values are ranges of the
// batch's own buffer.
package event

import "math"

// Micros is an event time or a duration in microseconds; times count from 1970-01-01 UTC.
type Micros int64

// The ends of time. A watermark of MaxTime closes everything.
const (
	MinTime Micros = math.MinInt64
	MaxTime Micros = math.MaxInt64
)

// Limits that hold for every decoder. Each is a property of one record, so none depends on arrival order.
const (
	// RecordBytesMax bounds one raw record. It keeps offsets within a batch in 32 bits.
	RecordBytesMax = 16 << 20
	// RecordEventsMax bounds the events of one record: an event's index has 16 bits.
	RecordEventsMax = 1 << 16
	// ValueBytesMax bounds one key or field value; what is longer is no identifier.
	ValueBytesMax = 4096
	// StepBytesMax bounds the name of a step.
	StepBytesMax = 256
	// DepthMax bounds the nesting of JSON, Avro and Protocol Buffers that a decoder follows.
	DepthMax = 64
	// KeyGroups is the fixed number of groups into which the values of the shard field hash; shards divide them.
	KeyGroups = 256
)

// Record locates one raw record: its bytes are Batch.Data[Off:Off+Len], and (Source, Partition, Offset) is its identity.
type Record struct {
	Offset    int64  // Kafka offset, or line number from 0
	Timestamp Micros // the broker's timestamp; MinTime where there is none
	Off, Len  uint32 // range of Batch.Data
	Partition int32
	Source    uint16 // number of the source in the job's spec
}

// Event is one decoded occurrence. Its values are Batch.Values[start:Vals], where start is the Vals of the event before it.
type Event struct {
	Time      Micros
	Offset    int64
	Partition int32
	Index     uint16 // position within the record, counted before any filter
	Source    uint16 // number of the source; sources are numbered in order of topic, so numbers compare as topics do
	Step      uint32 // number within Batch.Steps
	Vals      uint32 // end of the event's values in Batch.Values
	Group     uint16 // key group, 0 to KeyGroups-1
}

// ValueKind says what a Value is.
type ValueKind uint8

// The kinds of Value.
const (
	KeyValue    ValueKind = iota // a link key; ID numbers its key kind, Bits is Hash of the bytes
	StringValue                  // a string field; ID numbers the field
	IntValue                     // an integer field; ID numbers the field, Bits is the int64, no bytes
	DedupeValue                  // the folded dedupe fields of the event; Bits is their hash, the bytes are their canonical form
)

// Value is one key or field of an event; its bytes are Batch.Data[Off:Off+Len].
type Value struct {
	Bits uint64
	Off  uint32
	Len  uint16
	ID   uint8
	Kind ValueKind
}

// Reason says why a record was rejected. The names are stored and shown; they are part of the public contract.
type Reason string

// The reasons for a reject.
const (
	ReasonSyntax        Reason = "syntax"          // the bytes are not of the source's format
	ReasonNoTime        Reason = "no_time"         // the time field is missing or empty
	ReasonBadTime       Reason = "bad_time"        // the time field does not parse with its layout, or is out of range
	ReasonNoStep        Reason = "no_step"         // the step field is missing or empty
	ReasonNoShard       Reason = "no_shard"        // the shard field is missing or empty
	ReasonBadField      Reason = "bad_field"       // a field that must be an integer is not
	ReasonTooLong       Reason = "too_long"        // a value, step or record exceeds its limit
	ReasonTooDeep       Reason = "too_deep"        // nested deeper than DepthMax
	ReasonTooManyEvents Reason = "too_many_events" // more than RecordEventsMax events in a record
	ReasonSchema        Reason = "schema"          // the record's schema id or shape is not the source's
)

// Reject is a record that could not be decoded. A reject takes the whole record: none of its events are kept.
type Reject struct {
	Record Record
	Reason Reason
	Detail string // for a person; may be empty. Never holds more than 200 bytes of the record.
}

// Batch holds raw records and what was decoded from them. It is reused: Reset keeps the memory.
type Batch struct {
	Data    []byte   // raw records, then text that decoders made (unescaped strings, joined values)
	Records []Record // in order of arrival
	Events  []Event
	Values  []Value
	Steps   [][]byte // distinct steps of this batch; Event.Step numbers them
	Rejects []Reject
	Skipped int64 // events left out by a source's `where`

	steps stepTable
}

// Reset empties the batch for reuse.
func (b *Batch) Reset() {
	b.Data = b.Data[:0]
	b.Records = b.Records[:0]
	b.ResetDecoded()
}

// ResetDecoded forgets what was decoded and keeps the records.
func (b *Batch) ResetDecoded() {
	b.Events = b.Events[:0]
	b.Values = b.Values[:0]
	b.Steps = b.Steps[:0]
	b.Rejects = b.Rejects[:0]
	b.Skipped = 0
	b.steps.reset()
}

// Keep leaves only the events that keep is true of.
func (b *Batch) Keep(keep func(*Event) bool) {
	kept, values, start := 0, uint32(0), uint32(0)
	for _, e := range b.Events {
		from, to := start, e.Vals
		start = to
		if !keep(&e) {
			continue
		}
		values += uint32(copy(b.Values[values:], b.Values[from:to]))
		e.Vals = values
		b.Events[kept] = e
		kept++
	}
	b.Events, b.Values = b.Events[:kept], b.Values[:values]
}

// Add appends a raw record to the batch; its bytes are copied into Data. r's range is set by Add.
func (b *Batch) Add(r Record, raw []byte) {
	r.Off, r.Len = uint32(len(b.Data)), uint32(len(raw))
	b.Data = append(b.Data, raw...)
	b.Records = append(b.Records, r)
}

// Raw returns the bytes of a record.
func (b *Batch) Raw(r Record) []byte { return b.Data[r.Off : r.Off+r.Len : r.Off+r.Len] }

// Bytes returns the bytes of a value.
func (b *Batch) Bytes(v *Value) []byte {
	return b.Data[v.Off : v.Off+uint32(v.Len) : v.Off+uint32(v.Len)]
}

// ValuesOf returns the values of event i.
func (b *Batch) ValuesOf(i int) []Value {
	start := uint32(0)
	if i > 0 {
		start = b.Events[i-1].Vals
	}
	return b.Values[start:b.Events[i].Vals]
}

// Step returns the number of a step within this batch, adding it when it is new. The name is copied.
func (b *Batch) Step(name []byte) uint32 {
	h := uint32(Hash(0, name))
	t := &b.steps
	if len(t.slots) == 0 || 2*len(b.Steps) >= len(t.slots) {
		t.grow(b.Steps)
	}
	mask := uint32(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		n := t.slots[i]
		if n == 0 {
			b.Steps = append(b.Steps, t.copy(name))
			t.slots[i] = uint32(len(b.Steps))
			return uint32(len(b.Steps) - 1)
		}
		if string(b.Steps[n-1]) == string(name) {
			return n - 1
		}
	}
}

// stepTable finds the number of a step by open addressing; a slot holds number+1.
type stepTable struct {
	slots []uint32
	text  []byte
}

func (t *stepTable) reset() {
	clear(t.slots)
	t.text = t.text[:0]
}

func (t *stepTable) copy(name []byte) []byte {
	at := len(t.text)
	t.text = append(t.text, name...) // earlier names keep the old array when this one moves
	return t.text[at:len(t.text):len(t.text)]
}

func (t *stepTable) grow(steps [][]byte) {
	n := max(64, 2*len(t.slots))
	t.slots = make([]uint32, n)
	mask := uint32(n - 1)
	for k, s := range steps {
		i := uint32(Hash(0, s)) & mask
		for t.slots[i] != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = uint32(k + 1)
	}
}

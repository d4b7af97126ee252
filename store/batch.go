package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// Limits of what is written. Each bounds memory or what an index can hold.
const (
	BatchRowsMax = 1 << 18
	BodyBytesMax = 64 << 20 // of a session, or of a record's raw bytes
	// indexedBytesMax bounds a value in an index: PostgreSQL holds 2704 bytes in all. Longer ones are folded.
	indexedBytesMax = 255
)

// ID names a session.
type ID = correlate.ID

// Batch is what a writer changes in one transaction. Of two changes to one thing the one with the higher sequence holds.
// The store keeps nothing of it.
type Batch struct {
	Sessions   []Session
	Tombstones []Tombstone
	Cells      []Cell
	Exceptions []Exception
	// Progress says how far the shard is once this is written; nil: nothing new. A writer that splits what belongs together
	// gives it with the last part.
	Progress *Mark
}

// Rows is the number of changes in the batch.
func (b *Batch) Rows() int {
	return len(b.Sessions) + len(b.Tombstones) + len(b.Cells) + len(b.Exceptions)
}

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	*b = Batch{b.Sessions[:0], b.Tombstones[:0], b.Cells[:0], b.Exceptions[:0], nil}
}

// Session is a session as it is from now on.
type Session struct {
	Seq        uint64
	ID         ID
	Start, End event.Micros
	Events     int64
	User       []byte // value of the field of the user view; nil: none
	Keys       []Key
	Hits       []Hit
	Digest     Digest // what the session adds to Store.Digest
	Body       []byte // one JSON object: what readers get
}

// Key is a link key of a session.
type Key struct {
	Kind  string
	Value []byte
}

// Hit is a scenario that holds for a session, from the moment when it is decided.
type Hit struct {
	Scenario  string
	DecidedAt event.Micros
}

// Tombstone says that a session is no more.
type Tombstone struct {
	Seq uint64
	ID  ID
}

// Cell is one line of a report as far as one shard counts it: absolute values, not differences.
type Cell struct {
	Seq      uint64
	Report   string
	Window   event.Micros // start of the window
	By       []Dimension
	Measures []Measure
	Empty    bool // no session counts in it any more: readers do not see it
}

// Dimension is a field of a report and its value; empty where the sessions have none.
type Dimension struct {
	Name  string
	Value []byte
}

// Measure is one number of a report.
type Measure struct {
	Name  string
	Value int64
}

// ExceptionKind says what became of a record.
type ExceptionKind int

// The kinds.
const (
	Rejected ExceptionKind = 1 // it could not be decoded
	Late     ExceptionKind = 2 // an event of it came after its time had been settled
)

// Exception is a rejected record or a late event. It is the same one again when kind and identity are. One without a
// time, which is event.MinTime, is served with the newest range.
type Exception struct {
	Seq       uint64
	Kind      ExceptionKind
	Source    string
	Topic     string
	Partition int32
	Offset    int64
	Index     int          // of a late event in its record
	Time      event.Micros // of the event, or the record's timestamp
	Reason    string       // of a reject; the step of a late event is its Detail
	Detail    []byte
	Raw       []byte // the record
}

func (e *Exception) id() []byte {
	b := append([]byte{byte(e.Kind)}, e.Topic...)
	b = binary.BigEndian.AppendUint32(append(b, 0), uint32(e.Partition))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Offset))
	b = binary.BigEndian.AppendUint32(b, uint32(e.Index))
	sum := sha256.Sum256(b)
	return sum[:16]
}

// fold shortens what is too long for an index. Equal values stay equal, and different ones different.
func fold(value []byte) []byte {
	if len(value) <= indexedBytesMax {
		return append([]byte{}, value...) // never nil: that would be no value
	}
	sum := sha256.Sum256(value)
	return append(slices.Clone(value[:indexedBytesMax-len(sum)]), sum[:]...)
}

func appendText[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func cutText(b []byte) (text, rest []byte, err error) {
	n, used := binary.Uvarint(b)
	if used <= 0 || n > uint64(len(b)-used) {
		return nil, nil, errors.New("a report cell is damaged")
	}
	b = b[used:]
	return b[:n:n], b[n:], nil
}

func appendDimension(b []byte, d Dimension) []byte { return appendText(appendText(b, d.Name), d.Value) }

func encodeBy(by []Dimension) (b []byte) {
	b = []byte{}
	for _, d := range by {
		b = appendDimension(b, d)
	}
	return b
}

func decodeBy(b []byte) (by []Dimension, err error) {
	for len(b) > 0 {
		var name, value []byte
		if name, b, err = cutText(b); err != nil {
			return nil, err
		}
		if value, b, err = cutText(b); err != nil {
			return nil, err
		}
		by = append(by, Dimension{string(name), value})
	}
	return by, nil
}

func encodeMeasures(list []Measure) (b []byte) {
	b = []byte{}
	for _, m := range list {
		b = binary.BigEndian.AppendUint64(appendText(b, m.Name), uint64(m.Value))
	}
	return b
}

func decodeMeasures(b []byte) (list []Measure, err error) {
	for len(b) > 0 {
		var name []byte
		if name, b, err = cutText(b); err != nil {
			return nil, err
		}
		if len(b) < 8 {
			return nil, errors.New("a report cell is damaged")
		}
		list = append(list, Measure{string(name), int64(binary.BigEndian.Uint64(b))})
		b = b[8:]
	}
	return list, nil
}

// staged is a batch as rows of the tables where it is staged. Every thing is in it once.
type staged struct {
	sessions, keys, hits, cells, exceptions [][]any
	mark                                    *Mark
}

func stage(b *Batch) (*staged, error) {
	if n := b.Rows(); n > BatchRowsMax {
		return nil, fmt.Errorf("a batch of %d rows: at most %d", n, BatchRowsMax)
	}
	s := &staged{mark: b.Progress}
	if s.mark != nil {
		if err := s.mark.check(); err != nil {
			return nil, err
		}
	}
	return s, errors.Join(s.addSessions(b), s.addCells(b.Cells), s.addExceptions(b.Exceptions))
}

// newest calls yield with the last change of each thing.
func newest[T any, K comparable](list []T, key func(*T) K, seq func(*T) uint64, yield func(*T) error) error {
	last := make(map[K]int, len(list))
	for i := range list {
		k := key(&list[i])
		if j, ok := last[k]; !ok || seq(&list[j]) < seq(&list[i]) {
			last[k] = i
		}
	}
	for i := range list {
		if last[key(&list[i])] != i {
			continue
		}
		if err := (Position{Seq: seq(&list[i])}).check(); err != nil {
			return err
		}
		if err := yield(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *staged) addSessions(b *Batch) error {
	ended := make(map[ID]uint64, len(b.Tombstones))
	for _, t := range b.Tombstones {
		ended[t.ID] = max(ended[t.ID], t.Seq)
	}
	err := newest(b.Sessions, func(x *Session) ID { return x.ID }, func(x *Session) uint64 { return x.Seq }, func(x *Session) error {
		if end, ok := ended[x.ID]; ok {
			if end > x.Seq {
				return nil
			}
			delete(ended, x.ID)
		}
		return s.addSession(x)
	})
	if err != nil {
		return err
	}
	return newest(b.Tombstones, func(x *Tombstone) ID { return x.ID }, func(x *Tombstone) uint64 { return x.Seq }, func(x *Tombstone) error {
		if _, ok := ended[x.ID]; ok {
			s.sessions = append(s.sessions, []any{x.ID[:], int64(x.Seq), int64(1), nil, nil, nil, nil, nil, nil})
		}
		return nil
	})
}

func (s *staged) addSession(x *Session) error {
	if len(x.Body) > BodyBytesMax {
		return fmt.Errorf("session %x has a body of %d bytes: at most %d", x.ID, len(x.Body), BodyBytesMax)
	}
	var user any
	if x.User != nil {
		user = fold(x.User)
	}
	s.sessions = append(s.sessions,
		[]any{x.ID[:], int64(x.Seq), int64(0), int64(x.Start), int64(x.End), x.Events, user, digestBytes(x.Digest), x.Body})
	for i, k := range x.Keys {
		if err := checkName(k.Kind); err != nil {
			return err
		}
		same := func(o Key) bool { return o.Kind == k.Kind && bytes.Equal(o.Value, k.Value) }
		if !slices.ContainsFunc(x.Keys[:i], same) {
			s.keys = append(s.keys, []any{x.ID[:], k.Kind, fold(k.Value)})
		}
	}
	for i, h := range x.Hits {
		if err := checkName(h.Scenario); err != nil {
			return err
		}
		if slices.ContainsFunc(x.Hits[:i], func(o Hit) bool { return o.Scenario == h.Scenario }) {
			return fmt.Errorf("session %x has scenario %s twice", x.ID, h.Scenario)
		}
		s.hits = append(s.hits, []any{x.ID[:], h.Scenario, int64(x.Start), int64(h.DecidedAt)})
	}
	return nil
}

func (s *staged) addCells(cells []Cell) error {
	type key struct {
		report string
		window event.Micros
		by     string
	}
	of := func(c *Cell) key { return key{c.Report, c.Window, string(encodeBy(c.By))} }
	return newest(cells, of, func(c *Cell) uint64 { return c.Seq }, func(c *Cell) error {
		if err := checkName(c.Report); err != nil {
			return err
		}
		by, deleted := encodeBy(c.By), int64(0)
		if c.Empty {
			deleted = 1
		}
		s.cells = append(s.cells, []any{c.Report, int64(c.Window), fold(by), int64(c.Seq), deleted, by, encodeMeasures(c.Measures)})
		return nil
	})
}

func (s *staged) addExceptions(list []Exception) error {
	of := func(e *Exception) string { return string(e.id()) }
	return newest(list, of, func(e *Exception) uint64 { return e.Seq }, func(e *Exception) error {
		if err := checkNames(e.Source, e.Topic); err != nil {
			return err
		}
		if len(e.Raw) > BodyBytesMax {
			return fmt.Errorf("a record of %d bytes: at most %d", len(e.Raw), BodyBytesMax)
		}
		s.exceptions = append(s.exceptions, []any{e.id(), int64(e.Kind), int64(e.Seq), int64(e.Time), e.Source, e.Topic, int64(e.Partition),
			e.Offset, int64(e.Index), text(e.Reason), notNil(e.Detail), notNil(e.Raw)})
		return nil
	})
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// text makes a string one that every database stores.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// sort puts rows in order of their first column, in which an index takes them faster.
func (s *staged) sort() {
	for _, rows := range [][][]any{s.sessions, s.keys} {
		slices.SortStableFunc(rows, func(a, b []any) int { return bytes.Compare(a[0].([]byte), b[0].([]byte)) })
	}
	slices.SortStableFunc(s.cells, func(a, b []any) int {
		return cmp.Or(cmp.Compare(a[0].(string), b[0].(string)), cmp.Compare(a[1].(int64), b[1].(int64)), bytes.Compare(a[2].([]byte), b[2].([]byte)))
	})
}

// IndexedValue returns a value of a key or a user as it is indexed, which Copies gives: a long one is folded.
func IndexedValue(value []byte) []byte { return fold(value) }

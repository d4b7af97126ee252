package results

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/weftdata/weft/archive/pqfile"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// lineBytesMax bounds a line of JSON that is read back.
const lineBytesMax = 256 << 20

// rowsAtOnce is how many rows of Parquet are decoded at once.
const rowsAtOnce = 64

// Session is one session as read back.
type Session struct {
	ID         correlate.ID
	Start, End event.Micros
	Revision   int64
	Keys       map[string][]string // by kind, sorted
	Fields     map[string]any      // int64 or string
	User       string
	Scenarios  []string                // in order of the spec
	Decided    map[string]event.Micros // by scenario
	Events     []Event
	Truncated  bool // the timeline lists fewer events than there are
}

// Event is one event of a timeline.
type Event struct {
	Source, Topic string
	Partition     int32
	Offset        int64
	Index         uint16
	Time          event.Micros
	Step          string
}

// Reject is one rejected record as read back.
type Reject struct {
	Source, Topic  string
	Partition      int32
	Offset         int64
	Reason, Detail string
	Raw            []byte
}

// Cell is one line of a report as read back.
type Cell struct {
	Report   string
	Window   event.Micros
	By       map[string]string
	Measures map[string]int64
}

// ReadSessions reads a file of sessions, JSON lines or Parquet. After an error it ends.
func ReadSessions(path string) iter.Seq2[*Session, error] {
	return read(path, decodeSession, sessionOf)
}

// ReadRejects reads a file of rejects as ReadSessions does.
func ReadRejects(path string) iter.Seq2[*Reject, error] { return read(path, decodeReject, rejectOf) }

// ReadReports reads a file of report cells as ReadSessions does.
func ReadReports(path string) iter.Seq2[*Cell, error] { return read(path, decodeCell, cellOf) }

// read tells the formats apart and reads items line by line or row by row.
func read[T any](path string, decode func(line []byte) (*T, error), of func(*row) (*T, error)) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield(nil, err)
			return
		}
		defer f.Close()
		magic := make([]byte, 4)
		if n, _ := io.ReadFull(f, magic); string(magic[:n]) == "PAR1" {
			readRows(path, of, yield)
			return
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			yield(nil, err)
			return
		}
		readLines(f, path, decode, yield)
	}
}

func readLines[T any](r io.Reader, path string, decode func([]byte) (*T, error), yield func(*T, error) bool) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, lineBytesMax)
	n := 0
	for lines.Scan() {
		n++
		item, err := decode(lines.Bytes())
		if err != nil {
			yield(nil, fmt.Errorf("read %s: line %d: %w", path, n, err))
			return
		}
		if !yield(item, nil) {
			return
		}
	}
	if err := lines.Err(); err != nil {
		yield(nil, fmt.Errorf("read %s: after line %d: %w", path, n, err))
	}
}

// stamp is a time in JSON.
type stamp event.Micros

func (s *stamp) UnmarshalJSON(text []byte) error {
	t, err := time.Parse(`"`+time.RFC3339+`"`, string(text))
	*s = stamp(t.UnixMicro())
	return err
}

func strict(line []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	d.UseNumber()
	return d.Decode(to)
}

func decodeSession(line []byte) (*Session, error) {
	var j struct {
		ID         string
		Start, End stamp
		Revision   int64
		Keys       map[string][]string
		Fields     map[string]any
		User       string
		Scenarios  []string
		Decided    map[string]stamp
		Events     []struct {
			Source, Topic string
			Partition     int32
			Offset        int64
			Index         uint16
			Time          stamp
			Step          string
		}
		Truncated bool
	}
	if err := strict(line, &j); err != nil {
		return nil, err
	}
	s := &Session{Start: event.Micros(j.Start), End: event.Micros(j.End), Revision: j.Revision, Keys: j.Keys, Fields: j.Fields,
		User: j.User, Scenarios: j.Scenarios, Decided: map[string]event.Micros{}, Truncated: j.Truncated}
	var err error
	if s.ID, err = correlate.ParseID(j.ID); err != nil {
		return nil, err
	}
	for name, value := range s.Fields {
		if n, ok := value.(json.Number); ok {
			if s.Fields[name], err = n.Int64(); err != nil {
				return nil, fmt.Errorf("field %q: %w", name, err)
			}
		}
	}
	for name, at := range j.Decided {
		s.Decided[name] = event.Micros(at)
	}
	for _, e := range j.Events {
		s.Events = append(s.Events, Event{e.Source, e.Topic, e.Partition, e.Offset, e.Index, event.Micros(e.Time), e.Step})
	}
	return s, nil
}

func decodeReject(line []byte) (*Reject, error) {
	var j struct {
		Source, Topic  string
		Partition      int32
		Offset         int64
		Reason, Detail string
		Raw            string
		Base64         string `json:"raw_base64"`
	}
	if err := strict(line, &j); err != nil {
		return nil, err
	}
	r := &Reject{j.Source, j.Topic, j.Partition, j.Offset, j.Reason, j.Detail, []byte(j.Raw)}
	if j.Base64 != "" {
		var err error
		if r.Raw, err = base64.StdEncoding.DecodeString(j.Base64); err != nil {
			return nil, fmt.Errorf("raw_base64: %w", err)
		}
	}
	return r, nil
}

func decodeCell(line []byte) (*Cell, error) {
	var j struct {
		Report   string
		Window   stamp
		By       map[string]string
		Measures map[string]int64
	}
	if err := strict(line, &j); err != nil {
		return nil, err
	}
	return &Cell{j.Report, event.Micros(j.Window), j.By, j.Measures}, nil
}

// row is one row of Parquet: the values that are no nulls by path of the column.
type row struct {
	file   *parquet.File
	paths  [][]string
	values map[string][]parquet.Value
}

func readRows[T any](path string, of func(*row) (*T, error), yield func(*T, error) bool) {
	f, err := pqfile.Open(path)
	if err != nil {
		yield(nil, err)
		return
	}
	defer f.Close()
	fail := func(err error) { yield(nil, fmt.Errorf("read %s: %w", path, err)) }
	r := &row{file: f.File, values: map[string][]parquet.Value{}}
	if err := pqfile.Guard(func() error { r.paths = f.Schema().Columns(); return nil }); err != nil {
		fail(err)
		return
	}
	for group := range f.RowGroups() {
		rows, err := openRows(f, group, len(r.paths))
		if err != nil {
			fail(err)
			return
		}
		more, err := readGroup(rows, r, of, yield)
		if err = errors.Join(err, rows.Close()); err != nil {
			fail(err)
			return
		}
		if !more {
			return
		}
	}
}

// openRows checks all columns of a row group and opens it.
func openRows(f *pqfile.File, group, columns int) (rows parquet.Rows, err error) {
	for column := range columns {
		pages, err := f.Pages(group, column)
		if err != nil {
			return nil, err
		}
		if err := pages.Close(); err != nil {
			return nil, err
		}
	}
	err = pqfile.Guard(func() error { rows = f.RowGroups()[group].Rows(); return nil })
	return rows, err
}

// readGroup yields the rows of a group; more is false when the caller wants no more.
func readGroup[T any](rows parquet.Rows, r *row, of func(*row) (*T, error), yield func(*T, error) bool) (more bool, err error) {
	buf := make([]parquet.Row, rowsAtOnce)
	for {
		var items []*T
		var end error
		err := pqfile.Guard(func() error {
			var n int
			n, end = rows.ReadRows(buf)
			for _, values := range buf[:n] {
				r.set(values)
				item, err := of(r)
				if err != nil {
					return err
				}
				items = append(items, item)
			}
			return nil
		})
		if err != nil {
			return false, err
		}
		for _, item := range items {
			if !yield(item, nil) {
				return false, nil
			}
		}
		if end == io.EOF {
			return true, nil
		}
		if end != nil {
			return false, end
		}
	}
}

func (r *row) set(values parquet.Row) {
	clear(r.values)
	values.Range(func(column int, values []parquet.Value) bool {
		path := strings.Join(r.paths[column], ".")
		for _, v := range values {
			if !v.IsNull() {
				r.values[path] = append(r.values[path], v)
			}
		}
		return true
	})
}

// need returns the single value of a column.
func (r *row) need(path string) (parquet.Value, error) {
	v := r.values[path]
	if len(v) != 1 {
		return parquet.Value{}, fmt.Errorf("column %q has %d values in a row; expected one", path, len(v))
	}
	return v[0], nil
}

// lists returns the values of columns of one list, which must be equally many.
func (r *row) lists(parent string, names ...string) ([][]parquet.Value, error) {
	list := make([][]parquet.Value, len(names))
	for i, name := range names {
		list[i] = r.values[parent+"."+name]
		if len(list[i]) != len(list[0]) {
			return nil, fmt.Errorf("column %s.%s has %d values in a row; expected %d", parent, name, len(list[i]), len(list[0]))
		}
	}
	return list, nil
}

func (r *row) topic(source string) string {
	topic, _ := r.file.Lookup(metaTopic + source)
	return topic
}

// singles returns the single values of columns.
func (r *row) singles(paths ...string) ([]parquet.Value, error) {
	list := make([]parquet.Value, len(paths))
	for i, path := range paths {
		var err error
		if list[i], err = r.need(path); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func sessionOf(r *row) (*Session, error) {
	v, err := r.singles("id", "start", "end", "revision")
	if err != nil {
		return nil, err
	}
	s := &Session{Start: event.Micros(v[1].Int64()), End: event.Micros(v[2].Int64()), Revision: v[3].Int64(),
		Keys: map[string][]string{}, Fields: map[string]any{}, Decided: map[string]event.Micros{}}
	if s.ID, err = correlate.ParseID(string(v[0].ByteArray())); err != nil {
		return nil, err
	}
	for _, user := range r.values["user"] {
		s.User = string(user.ByteArray())
	}
	keys, err := r.lists("keys.list.element", "kind", "value")
	if err != nil {
		return nil, err
	}
	for i, kind := range keys[0] {
		name := string(kind.ByteArray())
		s.Keys[name] = append(s.Keys[name], string(keys[1][i].ByteArray()))
	}
	for path, values := range r.values {
		name, ok := strings.CutPrefix(path, "fields.")
		if !ok || len(values) != 1 {
			continue
		}
		if values[0].Kind() == parquet.Int64 {
			s.Fields[name] = values[0].Int64()
		} else {
			s.Fields[name] = string(values[0].ByteArray())
		}
	}
	hits, err := r.lists("scenarios.list.element", "name", "decided_at")
	if err != nil {
		return nil, err
	}
	for i, hit := range hits[0] {
		name := string(hit.ByteArray())
		s.Scenarios = append(s.Scenarios, name)
		s.Decided[name] = event.Micros(hits[1][i].Int64())
	}
	s.Events, err = eventsOf(r)
	s.Truncated = s.Revision > int64(len(s.Events))
	return s, err
}

func eventsOf(r *row) (events []Event, err error) {
	v, err := r.lists("events.list.element", "source", "partition", "offset", "index", "time", "step")
	if err != nil {
		return nil, err
	}
	for i := range v[0] {
		source := string(v[0][i].ByteArray())
		events = append(events, Event{Source: source, Topic: r.topic(source), Partition: v[1][i].Int32(), Offset: v[2][i].Int64(),
			Index: uint16(v[3][i].Int32()), Time: event.Micros(v[4][i].Int64()), Step: string(v[5][i].ByteArray())})
	}
	return events, nil
}

func rejectOf(r *row) (*Reject, error) {
	v, err := r.singles("source", "topic", "partition", "offset", "reason", "detail", "raw")
	if err != nil {
		return nil, err
	}
	return &Reject{Source: string(v[0].ByteArray()), Topic: string(v[1].ByteArray()), Partition: v[2].Int32(), Offset: v[3].Int64(),
		Reason: string(v[4].ByteArray()), Detail: string(v[5].ByteArray()), Raw: bytes.Clone(v[6].ByteArray())}, nil
}

func cellOf(r *row) (*Cell, error) {
	v, err := r.singles("report", "window")
	if err != nil {
		return nil, err
	}
	by, err := r.lists("by.key_value", "key", "value")
	if err != nil {
		return nil, err
	}
	measures, err := r.lists("measures.key_value", "key", "value")
	if err != nil {
		return nil, err
	}
	c := &Cell{Report: string(v[0].ByteArray()), Window: event.Micros(v[1].Int64()), By: map[string]string{}, Measures: map[string]int64{}}
	for i, name := range by[0] {
		c.By[string(name.ByteArray())] = string(by[1][i].ByteArray())
	}
	for i, name := range measures[0] {
		c.Measures[string(name.ByteArray())] = measures[1][i].Int64()
	}
	return c, nil
}

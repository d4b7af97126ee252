package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// oddRows are sessions at the edges: empty lists, nulls, text that needs escapes, a cut timeline, far times.
func oddRows() []*correlate.Row {
	fields := func(set ...correlate.RowField) []correlate.RowField {
		return append(set, make([]correlate.RowField, 6-len(set))...)
	}
	return []*correlate.Row{
		{ID: correlate.ID{5: 1, 15: 2}, Start: 1_000_001, End: 61_000_000, Count: 3,
			Keys: []correlate.RowKey{{Kind: 0, Value: []byte("A1")}, {Kind: 0, Value: []byte("A2")}, {Kind: 2, Value: []byte("q\"\\\x01\n")}},
			Fields: append(fields(correlate.RowField{Present: true, Int: -600}, correlate.RowField{Present: true, Text: []byte("支付")})[:5],
				correlate.RowField{Present: true, Text: []byte("u7")}),
			Hits: []correlate.Hit{{Scenario: 1, DecidedAt: 661_000_000}, {Scenario: 0, DecidedAt: 301_000_000}},
			Events: []correlate.RowEvent{{Time: 1_000_001, Source: 3, Partition: 4, Offset: 1 << 40, Index: 65535, Step: 1},
				{Time: 61_000_000, Source: 0, Offset: 7, Step: 0}},
			StepNames: []string{"paid", "ordered"}},
		{ID: correlate.ID{0: 255}, Start: -1, End: -1, Count: 1, Fields: fields(),
			Events: []correlate.RowEvent{{Time: -1, Step: 0}}, StepNames: []string{"other"}},
	}
}

func TestSessionsGolden(t *testing.T) {
	var out bytes.Buffer
	s, err := NewSessions(&out, JSONL, testMeta())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range oddRows() {
		if err := s.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := `{"id":"00000000010000000000000002","start":"1970-01-01T00:00:01.000001Z","end":"1970-01-01T00:01:01.000000Z","revision":3,` +
		`"keys":{"order":["A1","A2"],"txn":["q\"\\\u0001\n"]},"fields":{"amount":-600,"channel":"支付","user":"u7"},"user":"u7",` +
		`"scenarios":["duplicate_callback","paid_not_delivered"],` +
		`"decided":{"duplicate_callback":"1970-01-01T00:11:01.000000Z","paid_not_delivered":"1970-01-01T00:05:01.000000Z"},` +
		`"events":[{"source":"orders","topic":"pay.orders","partition":4,"offset":1099511627776,"index":65535,"time":"1970-01-01T00:00:01.000001Z","step":"ordered"},` +
		`{"source":"billing","topic":"pay.billing","partition":0,"offset":7,"index":0,"time":"1970-01-01T00:01:01.000000Z","step":"paid"}],"truncated":true}` + "\n" +
		`{"id":"7Z000000000000000000000000","start":"1969-12-31T23:59:59.999999Z","end":"1969-12-31T23:59:59.999999Z","revision":1,` +
		`"keys":{},"fields":{},"scenarios":[],"decided":{},` +
		`"events":[{"source":"billing","topic":"pay.billing","partition":0,"offset":0,"index":0,"time":"1969-12-31T23:59:59.999999Z","step":"other"}]}` + "\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// The formats must read back as the same sessions.
func TestSessionsRoundTrip(t *testing.T) {
	tests := map[string]struct {
		meta Meta
		rows []*correlate.Row
	}{
		"none":               {testMeta(), nil},
		"odd":                {testMeta(), oddRows()},
		"typical":            {testMeta(), typicalRows(20_000)},
		"user is an integer": {func() Meta { m := testMeta(); m.User = 0; return m }(), append(oddRows(), typicalRows(10)...)},
		"bare": {Meta{Sources: []Source{{"s", "t"}}, User: -1},
			[]*correlate.Row{{Count: 1, Events: []correlate.RowEvent{{}}, StepNames: []string{"a"}}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var both [2][]*Session
			for i, format := range []Format{JSONL, Parquet} {
				path := filepath.Join(dir, "sessions."+string(format))
				writeFile(t, path, func(f *os.File) error {
					s, err := NewSessions(f, format, tt.meta)
					if err != nil {
						return err
					}
					for _, r := range tt.rows {
						if err := s.Write(r); err != nil {
							return err
						}
					}
					return s.Close()
				})
				both[i] = collect(t, ReadSessions(path))
			}
			if len(both[0]) != len(tt.rows) || len(both[1]) != len(tt.rows) {
				t.Fatalf("%d rows come back as %d and %d", len(tt.rows), len(both[0]), len(both[1]))
			}
			for i, r := range tt.rows {
				if want := expect(tt.meta, r); !reflect.DeepEqual(both[0][i], want) || !reflect.DeepEqual(both[1][i], want) {
					t.Fatalf("row %d: JSON\n%+v\nParquet\n%+v\nwant\n%+v", i, both[0][i], both[1][i], want)
				}
			}
		})
	}
}

// expect says how a row reads back.
func expect(m Meta, r *correlate.Row) *Session {
	s := &Session{ID: r.ID, Start: r.Start, End: r.End, Revision: r.Count, Keys: map[string][]string{}, Fields: map[string]any{},
		Decided: map[string]event.Micros{}, Truncated: r.Count > int64(len(r.Events))}
	for _, k := range r.Keys {
		s.Keys[m.Kinds[k.Kind]] = append(s.Keys[m.Kinds[k.Kind]], string(k.Value))
	}
	for i, f := range r.Fields {
		switch {
		case !f.Present:
		case m.Fields[i].Type == jobspec.IntField:
			s.Fields[m.Fields[i].Name] = f.Int
		default:
			s.Fields[m.Fields[i].Name] = string(f.Text)
		}
	}
	if m.User >= 0 && r.Fields[m.User].Present {
		s.User = fmt.Sprint(s.Fields[m.Fields[m.User].Name])
	}
	for _, h := range r.Hits {
		s.Scenarios = append(s.Scenarios, m.Scenarios[h.Scenario])
		s.Decided[m.Scenarios[h.Scenario]] = h.DecidedAt
	}
	for _, e := range r.Events {
		s.Events = append(s.Events, Event{m.Sources[e.Source].Name, m.Sources[e.Source].Topic, e.Partition, e.Offset, e.Index, e.Time, r.StepNames[e.Step]})
	}
	return s
}

func writeFile(t testing.TB, path string, write func(*os.File) error) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func collect[T any](t testing.TB, items iter.Seq2[*T, error]) (list []*T) {
	t.Helper()
	for item, err := range items {
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := any(item).(*Session); ok && len(s.Scenarios) == 0 {
			s.Scenarios = nil // an empty list of JSON and of Parquet are the same
		}
		list = append(list, item)
	}
	return list
}

// Steps, users and amounts without end: dictionaries are given up or row groups end, and nothing is lost.
func TestManyDistinctValues(t *testing.T) {
	m := Meta{Sources: []Source{{"s", "t"}}, Kinds: []string{"k"}, User: 0, Fields: []jobspec.FieldDef{{Name: "user", Type: jobspec.StringField}}}
	path := filepath.Join(t.TempDir(), "sessions.parquet")
	const rows = 60_000
	name := func(i int) string { return fmt.Sprintf("%d-%s", i, strings.Repeat("step", 50)) }
	var table *table
	writeFile(t, path, func(f *os.File) error {
		s := newParquetSessions(f, m)
		table = s.table
		for i := range rows {
			if err := s.write(&correlate.Row{Count: 1, StepNames: []string{name(i)}, Events: []correlate.RowEvent{{Offset: int64(i)}},
				Fields: []correlate.RowField{{Present: true, Text: []byte(name(i))}}}); err != nil {
				return err
			}
		}
		return s.close()
	})
	if len(table.meta.RowGroups) < 2 {
		t.Errorf("%d row groups: the dictionary of steps is not bounded", len(table.meta.RowGroups))
	}
	n := 0
	for s, err := range ReadSessions(path) {
		if err != nil {
			t.Fatal(err)
		}
		if s.Events[0].Step != name(n) || s.User != name(n) || s.Events[0].Offset != int64(n) {
			t.Fatalf("row %d is %+v", n, s)
		}
		n++
	}
	if n != rows {
		t.Errorf("%d rows come back as %d", rows, n)
	}
}

func TestTextIsValid(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "",
		"plain text, 20 bytes": "plain text, 20 bytes",
		"支付":                   "支付",
		"a\xff\xfeb":           "a\uFFFD\uFFFDb",
		"\xe6\x94":             "\uFFFD\uFFFD",
		"x\xed\xa0\x80":        "x\uFFFD\uFFFD\uFFFD",
		"\uFFFD":               "\uFFFD",
		"\x00\t\"\\\u2028\x7f": "\x00\t\"\\\u2028\x7f",
	} {
		if got := string(appendValid(nil, text)); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
		var back string
		if err := json.Unmarshal(appendString(nil, []byte(text)), &back); err != nil || back != want {
			t.Errorf("%q as JSON: got %q, %v; want %q", text, back, err, want)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\xff\"\\\n支")
	f.Fuzz(func(t *testing.T, text string) {
		plain := appendValid(nil, text)
		if !utf8.Valid(plain) || utf8.ValidString(text) && string(plain) != text {
			t.Errorf("%q becomes %q", text, plain)
		}
		var back string
		if err := json.Unmarshal(appendString(nil, text), &back); err != nil || back != string(plain) {
			t.Errorf("%q: JSON gives %q, %v; want %q", text, back, err, plain)
		}
	})
}

func TestTimes(t *testing.T) {
	var c clock
	for at, want := range map[event.Micros]string{
		0:                     `"1970-01-01T00:00:00.000000Z"`,
		59_999_999:            `"1970-01-01T00:00:59.999999Z"`,
		60_000_000:            `"1970-01-01T00:01:00.000000Z"`,
		-60_000_000:           `"1969-12-31T23:59:00.000000Z"`,
		-60_000_001:           `"1969-12-31T23:58:59.999999Z"`,
		1_767_225_600_123_456: `"2026-01-01T00:00:00.123456Z"`,
		event.MinTime:         `"0000-01-01T00:00:00.000000Z"`,
		event.MaxTime:         `"9999-12-31T23:59:59.999999Z"`,
	} {
		if got := string(c.append(nil, at)); got != want {
			t.Errorf("%d: got %s, want %s", at, got, want)
		}
	}
}

func TestRejects(t *testing.T) {
	b := new(event.Batch)
	b.Add(event.Record{Source: 1, Partition: 2, Offset: 7}, []byte(`{"broken`))
	b.Add(event.Record{Source: 3, Offset: 8}, []byte("a\xffb"))
	rejects := []event.Reject{{Record: b.Records[0], Reason: event.ReasonSyntax, Detail: "it ends early"},
		{Record: b.Records[1], Reason: event.ReasonNoTime}}
	dir := t.TempDir()
	for _, format := range []Format{JSONL, Parquet} {
		path := filepath.Join(dir, "rejects."+string(format))
		writeFile(t, path, func(f *os.File) error {
			w, err := NewRejects(f, format, testMeta())
			if err != nil {
				return err
			}
			return errors.Join(w.Write(b, &rejects[0]), w.Write(b, &rejects[1]), w.Close())
		})
		got := collect(t, ReadRejects(path))
		want := []*Reject{{"channel", "pay.channel", 2, 7, "syntax", "it ends early", []byte(`{"broken`)},
			{"orders", "pay.orders", 0, 8, "no_time", "", []byte("a\xffb")}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", format, got, want)
		}
	}
	golden(t, filepath.Join(dir, "rejects.jsonl"),
		`{"source":"channel","topic":"pay.channel","partition":2,"offset":7,"reason":"syntax","detail":"it ends early","raw":"{\"broken"}`,
		`{"source":"orders","topic":"pay.orders","partition":0,"offset":8,"reason":"no_time","detail":"","raw_base64":"Yf9i"}`)
}

func TestReports(t *testing.T) {
	cells := []*correlate.Cell{{Window: 60_000_000, By: [][]byte{[]byte("g1"), []byte("alipay")}, Measures: []int64{3, -1800}},
		{Window: 120_000_000, By: [][]byte{[]byte("g1"), nil}, Measures: []int64{1, 0}}}
	dir := t.TempDir()
	for _, format := range []Format{JSONL, Parquet} {
		path := filepath.Join(dir, "reports."+string(format))
		writeFile(t, path, func(f *os.File) error {
			w, err := NewReports(f, format, testMeta())
			if err != nil {
				return err
			}
			return errors.Join(w.Write(cells[0]), w.Write(cells[1]), w.Close())
		})
		got := collect(t, ReadReports(path))
		want := []*Cell{{"funnel", 60_000_000, map[string]string{"game": "g1", "channel": "alipay"}, map[string]int64{"sessions": 3, "revenue": -1800}},
			{"funnel", 120_000_000, map[string]string{"game": "g1", "channel": ""}, map[string]int64{"sessions": 1, "revenue": 0}}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", format, got, want)
		}
	}
	golden(t, filepath.Join(dir, "reports.jsonl"),
		`{"report":"funnel","window":"1970-01-01T00:01:00.000000Z","by":{"game":"g1","channel":"alipay"},"measures":{"sessions":3,"revenue":-1800}}`,
		`{"report":"funnel","window":"1970-01-01T00:02:00.000000Z","by":{"game":"g1","channel":""},"measures":{"sessions":1,"revenue":0}}`)
}

func golden(t *testing.T, path string, lines ...string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if want := strings.Join(lines, "\n") + "\n"; err != nil || string(got) != want {
		t.Errorf("got\n%s%v\nwant\n%s", got, err, want)
	}
}

func TestMetaOf(t *testing.T) {
	spec := &jobspec.Spec{Job: "j", Sources: []jobspec.Source{{Name: "s", Topic: "t"}}, Kinds: []jobspec.Kind{{Name: "k"}}, User: "b",
		Fields:    []jobspec.FieldDef{{Name: "a", Type: jobspec.IntField}, {Name: "b", Type: jobspec.StringField}},
		Scenarios: []jobspec.Scenario{{Name: "x"}},
		Reports:   []jobspec.Report{{Name: "r", By: []int{1}, Measures: []jobspec.Measure{{Name: "n"}}}}}
	want := Meta{Job: "j", Sources: []Source{{"s", "t"}}, Kinds: []string{"k"}, Fields: spec.Fields, User: 1,
		Scenarios: []string{"x"}, Reports: []Report{{"r", []string{"b"}, []string{"n"}}}}
	if got := MetaOf(spec); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if spec.User = ""; MetaOf(spec).User != -1 {
		t.Error("a user field although the spec has none")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestWriteErrors(t *testing.T) {
	for _, format := range []Format{JSONL, Parquet} {
		s, err := NewSessions(failing{}, format, testMeta())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Write(oddRows()[0]); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err == nil || err.Error() != "write sessions: disk full" {
			t.Errorf("%s: got %v", format, err)
		}
	}
	if _, err := NewSessions(failing{}, "csv", testMeta()); err == nil ||
		err.Error() != `results cannot be written as "csv": expected jsonl or parquet` {
		t.Errorf("got %v", err)
	}
}

func TestReadErrors(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{"bad.jsonl": "{}\n", "cut.jsonl": `{"id":`, "bad.parquet": "PAR1PAR1"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"missing":     "open missing: no such file or directory",
		"bad.jsonl":   `read bad.jsonl: line 1: session id "": has 0 characters; expected 26`,
		"cut.jsonl":   "read cut.jsonl: line 1: unexpected EOF",
		"bad.parquet": "read bad.parquet: is cut off: it has 8 bytes",
	} {
		var got error
		for _, err := range ReadSessions(name) {
			got = err
		}
		if got == nil || got.Error() != want {
			t.Errorf("%s: got %v, want %s", name, got, want)
		}
	}
}

func FuzzReadSessions(f *testing.F) {
	for _, format := range []Format{JSONL, Parquet} {
		var out bytes.Buffer
		s, err := NewSessions(&out, format, testMeta())
		if err != nil {
			f.Fatal(err)
		}
		for _, r := range oddRows() {
			if err := s.Write(r); err != nil {
				f.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(out.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "sessions")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for range ReadSessions(path) {
		}
	})
}

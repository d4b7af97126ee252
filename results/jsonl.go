package results

import (
	"encoding/base64"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// jsonBufferBytes is what JSON lines are gathered to before they are written.
const jsonBufferBytes = 256 << 10

// jsonFile gathers lines.
type jsonFile struct {
	w     io.Writer
	what  string
	buf   []byte
	clock clock
}

// end ends a line.
func (f *jsonFile) end(buf []byte) error {
	f.buf = append(buf, '}', '\n')
	if len(f.buf) < jsonBufferBytes {
		return nil
	}
	return f.close()
}

func (f *jsonFile) close() error {
	_, err := f.w.Write(f.buf)
	f.buf = f.buf[:0]
	if err != nil {
		return fmt.Errorf("write %s: %w", f.what, err)
	}
	return nil
}

// member returns the quoted name with its colon.
func member(name string) []byte { return append(appendString(nil, name), ':') }

func members(names []string) [][]byte {
	list := make([][]byte, len(names))
	for i, name := range names {
		list[i] = member(name)
	}
	return list
}

// closing puts the bracket of an object or array in place of the comma behind its last element.
func closing(buf []byte, bracket byte) []byte {
	if buf[len(buf)-1] == ',' {
		buf[len(buf)-1] = bracket
		return buf
	}
	return append(buf, bracket)
}

// jsonSessions writes sessions.jsonl. The constant parts of a line are made once.
type jsonSessions struct {
	jsonFile
	user    int
	kinds   [][]byte // `"order":`
	fields  [][]byte // `"amount":`
	ints    []bool   // by field: an integer
	names   [][]byte // of scenarios, quoted
	sources [][]byte // `{"source":"orders","topic":"pay.orders","partition":`
	steps   []jsonStep
}

// jsonStep keeps the text of a step, made when its name was first seen under its number.
type jsonStep struct {
	name string
	text []byte // `,"step":"paid"},`
}

func newJSONSessions(w io.Writer, m Meta) *jsonSessions {
	s := &jsonSessions{jsonFile: jsonFile{w: w, what: "sessions"}, user: m.User, kinds: members(m.Kinds)}
	for _, f := range m.Fields {
		s.fields = append(s.fields, member(f.Name))
		s.ints = append(s.ints, f.Type == jobspec.IntField)
	}
	for _, name := range m.Scenarios {
		s.names = append(s.names, appendString(nil, name))
	}
	s.sources = sourceMembers(m)
	return s
}

func sourceMembers(m Meta) (list [][]byte) {
	for _, source := range m.Sources {
		text := appendString([]byte(`{"source":`), source.Name)
		text = appendString(append(text, `,"topic":`...), source.Topic)
		list = append(list, append(text, `,"partition":`...))
	}
	return list
}

func (s *jsonSessions) write(r *correlate.Row) error { return s.end(s.appendOpen(s.buf, r)) }

// appendOpen appends a session without its last bracket.
func (s *jsonSessions) appendOpen(b []byte, r *correlate.Row) []byte {
	b = r.ID.Append(append(b, `{"id":"`...))
	b = s.clock.append(append(b, `","start":`...), r.Start)
	b = s.clock.append(append(b, `,"end":`...), r.End)
	b = strconv.AppendInt(append(b, `,"revision":`...), r.Count, 10)
	b = s.appendKeys(append(b, `,"keys":{`...), r.Keys)
	b = s.appendFields(append(b, `,"fields":{`...), r.Fields)
	if s.user >= 0 && r.Fields[s.user].Present {
		b = append(b, `,"user":`...)
		if s.ints[s.user] {
			b = append(strconv.AppendInt(append(b, '"'), r.Fields[s.user].Int, 10), '"')
		} else {
			b = appendString(b, r.Fields[s.user].Text)
		}
	}
	b = s.appendHits(b, r.Hits)
	b = s.appendEvents(append(b, `,"events":[`...), r)
	if r.Count > int64(len(r.Events)) {
		b = append(b, `,"truncated":true`...)
	}
	return b
}

func (s *jsonSessions) appendKeys(b []byte, keys []correlate.RowKey) []byte {
	for i := range keys {
		if i == 0 || keys[i].Kind != keys[i-1].Kind {
			if i > 0 {
				b = append(closing(b, ']'), ',')
			}
			b = append(append(b, s.kinds[keys[i].Kind]...), '[')
		}
		b = append(appendString(b, keys[i].Value), ',')
	}
	if len(keys) > 0 {
		b = closing(b, ']')
	}
	return append(b, '}')
}

func (s *jsonSessions) appendFields(b []byte, fields []correlate.RowField) []byte {
	for i := range fields {
		f := &fields[i]
		if !f.Present {
			continue
		}
		b = append(b, s.fields[i]...)
		if s.ints[i] {
			b = strconv.AppendInt(b, f.Int, 10)
		} else {
			b = appendString(b, f.Text)
		}
		b = append(b, ',')
	}
	return closing(b, '}')
}

func (s *jsonSessions) appendHits(b []byte, hits []correlate.Hit) []byte {
	b = append(b, `,"scenarios":[`...)
	for _, h := range hits {
		b = append(append(b, s.names[h.Scenario]...), ',')
	}
	b = append(closing(b, ']'), `,"decided":{`...)
	for _, h := range hits {
		b = append(append(b, s.names[h.Scenario]...), ':')
		b = append(s.clock.append(b, h.DecidedAt), ',')
	}
	return closing(b, '}')
}

func (s *jsonSessions) appendEvents(b []byte, r *correlate.Row) []byte {
	for i := range r.Events {
		e := &r.Events[i]
		b = append(b, s.sources[e.Source]...)
		b = strconv.AppendInt(b, int64(e.Partition), 10)
		b = strconv.AppendInt(append(b, `,"offset":`...), e.Offset, 10)
		b = strconv.AppendUint(append(b, `,"index":`...), uint64(e.Index), 10)
		b = s.clock.append(append(b, `,"time":`...), e.Time)
		b = append(b, s.step(e.Step, r.StepNames)...)
	}
	return closing(b, ']')
}

// step returns the end of an event: its step, the bracket and a comma.
func (s *jsonSessions) step(n uint32, names []string) []byte {
	if int(n) >= len(s.steps) {
		s.steps = append(s.steps, make([]jsonStep, len(names)-len(s.steps))...)
	}
	step := &s.steps[n]
	if step.name != names[n] || step.text == nil {
		step.name = names[n]
		step.text = appendString(append(step.text[:0], `,"step":`...), step.name)
		step.text = append(step.text, "},"...)
	}
	return step.text
}

// jsonRejects writes rejects.jsonl.
type jsonRejects struct {
	jsonFile
	sources [][]byte
}

func newJSONRejects(w io.Writer, m Meta) *jsonRejects {
	return &jsonRejects{jsonFile: jsonFile{w: w, what: "rejects"}, sources: sourceMembers(m)}
}

func (s *jsonRejects) write(raw []byte, r *event.Reject) error {
	b := append(s.buf, s.sources[r.Record.Source]...)
	b = strconv.AppendInt(b, int64(r.Record.Partition), 10)
	b = strconv.AppendInt(append(b, `,"offset":`...), r.Record.Offset, 10)
	b = appendString(append(b, `,"reason":`...), string(r.Reason))
	b = appendString(append(b, `,"detail":`...), r.Detail)
	if utf8.Valid(raw) {
		b = appendString(append(b, `,"raw":`...), raw)
	} else {
		b = base64.StdEncoding.AppendEncode(append(b, `,"raw_base64":"`...), raw)
		b = append(b, '"')
	}
	return s.end(b)
}

// jsonReports writes reports.jsonl.
type jsonReports struct {
	jsonFile
	reports []jsonReport
}

type jsonReport struct {
	start        []byte // `{"report":"funnel","window":`
	by, measures [][]byte
}

func newJSONReports(w io.Writer, m Meta) *jsonReports {
	s := &jsonReports{jsonFile: jsonFile{w: w, what: "reports"}}
	for _, r := range m.Reports {
		start := append(appendString([]byte(`{"report":`), r.Name), `,"window":`...)
		s.reports = append(s.reports, jsonReport{start, members(r.By), members(r.Measures)})
	}
	return s
}

func (s *jsonReports) write(c *correlate.Cell) error {
	r := &s.reports[c.Report]
	b := s.clock.append(append(s.buf, r.start...), c.Window)
	b = append(b, `,"by":{`...)
	for i, value := range c.By {
		b = append(appendString(append(b, r.by[i]...), value), ',')
	}
	b = append(closing(b, '}'), `,"measures":{`...)
	for i, value := range c.Measures {
		b = append(strconv.AppendInt(append(b, r.measures[i]...), value, 10), ',')
	}
	return s.end(closing(b, '}'))
}

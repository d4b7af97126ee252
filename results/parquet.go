package results

import (
	"io"
	"strconv"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// Keys of the files' metadata.
const (
	metaJob    = "weft.job"
	metaKind   = "weft.kind"         // sessions, rejects or reports
	metaTopic  = "weft.topic."       // + name of a source: its topic
	eventBytes = 8 + 8 + 4 + 4 + 4*2 // of an event's values in memory
)

// parquetSessions writes sessions.parquet.
type parquetSessions struct {
	*table
	id                   *texts
	start, end, revision *longs
	user                 userColumn
	keyLevels            *levels
	keyKind              *names
	keyValue             *texts
	fields               []parquetField
	hitLevels            *levels
	hitName              *names
	hitTime              *longs
	eventLevels          *levels
	source               *names
	partition, index     *ints
	offset, time         *longs
	step                 *steps
	scratch              []byte
}

// parquetField is the column of a field; one of texts and longs is set.
type parquetField struct {
	column *column
	texts  *texts
	longs  *longs
}

// userColumn is the user as text. A user that is a text field already is not encoded again.
type userColumn struct {
	field  int // -1: the job has none
	column *column
	texts  *texts // of an integer field
	text   []byte
}

func (u *userColumn) connect(c *column, fields []parquetField) {
	u.column = c
	if u.field >= 0 && fields[u.field].texts != nil {
		c.like = fields[u.field].column
	}
}

func newParquetSessions(w io.Writer, m Meta) *parquetSessions {
	columns := 9
	if len(m.Fields) == 0 {
		columns-- // the format has no group without columns
	}
	t := newTable(w, "sessions", columns)
	s := &parquetSessions{table: t, user: userColumn{field: m.User, texts: newDictTexts()},
		id: newTexts(), start: new(longs), end: new(longs), revision: new(longs),
		keyKind: newNames(m.Kinds), keyValue: newTexts(), hitName: newNames(m.Scenarios), hitTime: new(longs),
		source: newNames(sourceNames(m)), partition: new(ints), index: new(ints), offset: new(longs), time: new(longs),
		step: newSteps()}
	t.add(nil, "id", textShape(), s.id).withBounds()
	t.add(nil, "start", timeShape().packed(), s.start).withBounds()
	t.add(nil, "end", timeShape().packed(), s.end).withBounds()
	t.add(nil, "revision", longShape(), s.revision)
	user := t.add(nil, "user", textShape().orNull(), s.user.texts)
	keys := t.addList("keys", 2)
	s.keyLevels = keys.levels
	t.add(keys, "kind", textShape(), s.keyKind)
	t.add(keys, "value", textShape(), s.keyValue)
	s.addFields(m.Fields)
	s.user.connect(user, s.fields)
	hits := t.addList("scenarios", 2)
	s.hitLevels = hits.levels
	t.add(hits, "name", textShape(), s.hitName)
	t.add(hits, "decided_at", timeShape(), s.hitTime)
	events := t.addList("events", 6)
	s.eventLevels = events.levels
	t.add(events, "source", textShape(), s.source)
	t.add(events, "partition", intShape(), s.partition)
	t.add(events, "offset", longShape().packed(), s.offset)
	t.add(events, "index", intShape(), s.index)
	t.add(events, "time", timeShape().packed(), s.time)
	t.add(events, "step", textShape(), s.step)
	t.describe("sessions", m)
	return s
}

func (s *parquetSessions) addFields(fields []jobspec.FieldDef) {
	if len(fields) == 0 {
		return
	}
	group := s.addStruct("fields", len(fields))
	for _, def := range fields {
		var f parquetField
		if def.Type == jobspec.IntField {
			f.longs = new(longs)
			f.column = s.add(group, def.Name, longShape().orNull(), f.longs)
		} else {
			f.texts = newDictTexts()
			f.column = s.add(group, def.Name, textShape().orNull(), f.texts)
		}
		s.fields = append(s.fields, f)
	}
}

func (s *parquetSessions) write(r *correlate.Row) error {
	s.scratch = r.ID.Append(s.scratch[:0])
	s.id.add(s.scratch)
	s.start.add(int64(r.Start))
	s.end.add(int64(r.End))
	s.revision.add(r.Count)
	size := correlate.IDTextBytes + 3*8
	s.user.add(r)

	s.keyLevels.list(len(r.Keys))
	for i := range r.Keys {
		k := &r.Keys[i]
		s.keyKind.add(int32(k.Kind))
		s.keyValue.add(k.Value)
		size += len(k.Value) + 8
	}
	for i := range s.fields {
		size += s.fields[i].add(&r.Fields[i])
	}
	s.hitLevels.list(len(r.Hits))
	for _, h := range r.Hits {
		s.hitName.add(int32(h.Scenario))
		s.hitTime.add(int64(h.DecidedAt))
	}
	s.eventLevels.list(len(r.Events))
	for i := range r.Events {
		e := &r.Events[i]
		s.source.add(int32(e.Source))
		s.partition.add(e.Partition)
		s.offset.add(e.Offset)
		s.index.add(int32(e.Index))
		s.time.add(int64(e.Time))
		s.step.add(e.Step, r.StepNames)
	}
	return s.row(size + 12*len(r.Hits) + eventBytes*len(r.Events))
}

func (u *userColumn) add(r *correlate.Row) {
	if u.column.like != nil {
		return
	}
	present := u.field >= 0 && r.Fields[u.field].Present
	u.column.levels.optional(present)
	if present {
		u.text = strconv.AppendInt(u.text[:0], r.Fields[u.field].Int, 10)
		u.texts.add(u.text)
	}
}

func (p *parquetField) add(f *correlate.RowField) int {
	p.column.levels.optional(f.Present)
	switch {
	case !f.Present:
		return 0
	case p.longs != nil:
		p.longs.add(f.Int)
		return 8
	default:
		p.texts.add(f.Text)
		return len(f.Text) + 4
	}
}

// describe puts the job and the topics of its sources into the file's metadata.
func (t *table) describe(kind string, m Meta) {
	t.setMeta(metaJob, m.Job)
	t.setMeta(metaKind, kind)
	for _, s := range m.Sources {
		t.setMeta(metaTopic+s.Name, s.Topic)
	}
}

func sourceNames(m Meta) (list []string) {
	for _, s := range m.Sources {
		list = append(list, s.Name)
	}
	return list
}

// parquetRejects writes rejects.parquet.
type parquetRejects struct {
	*table
	source, topic *names
	partition     *ints
	offset        *longs
	reason        *texts
	detail, raw   *texts
}

func newParquetRejects(w io.Writer, m Meta) *parquetRejects {
	t := newTable(w, "rejects", 7)
	topics := make([]string, len(m.Sources))
	for i, s := range m.Sources {
		topics[i] = s.Topic
	}
	s := &parquetRejects{table: t, source: newNames(sourceNames(m)), topic: newNames(topics), partition: new(ints),
		offset: new(longs), reason: newDictTexts(), detail: newDictTexts(), raw: &texts{raw: true}}
	t.add(nil, "source", textShape(), s.source)
	t.add(nil, "topic", textShape(), s.topic)
	t.add(nil, "partition", intShape(), s.partition)
	t.add(nil, "offset", longShape(), s.offset)
	t.add(nil, "reason", textShape(), s.reason)
	t.add(nil, "detail", textShape(), s.detail)
	t.add(nil, "raw", bytesShape(), s.raw)
	t.describe("rejects", m)
	return s
}

func (s *parquetRejects) write(raw []byte, r *event.Reject) error {
	s.source.add(int32(r.Record.Source))
	s.topic.add(int32(r.Record.Source))
	s.partition.add(r.Record.Partition)
	s.offset.add(r.Record.Offset)
	s.reason.add([]byte(r.Reason))
	s.detail.add([]byte(r.Detail))
	s.raw.add(raw)
	return s.row(32 + len(r.Detail) + len(raw))
}

// parquetReports writes reports.parquet.
type parquetReports struct {
	*table
	meta          []Report
	report        *names
	window        *longs
	byLevels      *levels
	byName        *texts
	byValue       *texts
	measureLevels *levels
	measureName   *texts
	measureValue  *longs
}

func newParquetReports(w io.Writer, m Meta) *parquetReports {
	t := newTable(w, "reports", 4)
	list := make([]string, len(m.Reports))
	for i, r := range m.Reports {
		list[i] = r.Name
	}
	s := &parquetReports{table: t, meta: m.Reports, report: newNames(list), window: new(longs), byName: newDictTexts(),
		byValue: newDictTexts(), measureName: newDictTexts(), measureValue: new(longs)}
	t.add(nil, "report", textShape(), s.report)
	t.add(nil, "window", timeShape(), s.window).withBounds()
	by := t.addMap("by")
	s.byLevels = by.levels
	t.add(by, "key", textShape(), s.byName)
	t.add(by, "value", textShape(), s.byValue)
	measures := t.addMap("measures")
	s.measureLevels = measures.levels
	t.add(measures, "key", textShape(), s.measureName)
	t.add(measures, "value", longShape(), s.measureValue)
	t.describe("reports", m)
	return s
}

func (s *parquetReports) write(c *correlate.Cell) error {
	report := &s.meta[c.Report]
	size := 16
	s.report.add(int32(c.Report))
	s.window.add(int64(c.Window))
	s.byLevels.list(len(c.By))
	for i, value := range c.By {
		s.byName.add([]byte(report.By[i]))
		s.byValue.add(value)
		size += 8 + len(value)
	}
	s.measureLevels.list(len(c.Measures))
	for i, value := range c.Measures {
		s.measureName.add([]byte(report.Measures[i]))
		s.measureValue.add(value)
	}
	return s.row(size + 12*len(c.Measures))
}

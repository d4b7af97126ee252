package store

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/results"
)

func engineConfig() (*correlate.Config, results.Meta) {
	cfg := &correlate.Config{
		Topics:  []string{"a"},
		Kinds:   []correlate.Kind{{Name: "order", Gap: 40}},
		Fields:  []correlate.Field{{Name: "amount", Int: true}, {Name: "user"}},
		Steps:   []string{"paid"},
		Session: correlate.Session{MaxSpan: 500, Settle: 7},
		Scenarios: []correlate.Scenario{{Name: "unpaid", Text: "unpaid",
			When: func(f *correlate.Facts) bool { return f.Steps[0].Count == 0 }}},
		Reports: []correlate.Report{{Name: "r", Every: 100, By: []int{1}, Measures: []correlate.Measure{
			{Name: "sum", Op: correlate.SumField}, {Name: "unpaid", Op: correlate.CountScenario}}}},
	}
	meta := results.Meta{Job: job, Sources: []results.Source{{Name: "src", Topic: "a"}}, Kinds: []string{"order"}, User: 1,
		Fields:    []jobspec.FieldDef{{Name: "amount", Type: jobspec.IntField}, {Name: "user", Type: jobspec.StringField}},
		Scenarios: []string{"unpaid"}, Reports: []results.Report{{Name: "r", By: []string{"user"}, Measures: []string{"sum", "unpaid"}}}}
	return cfg, meta
}

// engineBatches makes events that link and merge, out of order.
func engineBatches(r *rand.Rand, batches, events int) (list []*event.Batch) {
	for i := range batches {
		b := &event.Batch{}
		value := func(kind event.ValueKind, id uint8, text string) {
			v := event.Value{ID: id, Kind: kind, Off: uint32(len(b.Data)), Len: uint16(len(text))}
			if b.Data = append(b.Data, text...); kind == event.KeyValue {
				v.Bits = event.Hash(0, []byte(text))
			}
			b.Values = append(b.Values, v)
		}
		for k := range events {
			offset := int64(i*events + k)
			b.Add(event.Record{Offset: offset}, []byte("raw"))
			e := event.Event{Time: event.Micros(r.IntN(2000)), Offset: offset, Step: b.Step([]byte([]string{"paid", "seen"}[r.IntN(2)]))}
			for range 1 + r.IntN(2) {
				value(event.KeyValue, 0, fmt.Sprint("o", r.IntN(200)))
			}
			if r.IntN(2) == 0 {
				value(event.StringValue, 1, fmt.Sprint("u\xff", r.IntN(5)))
				b.Values = append(b.Values, event.Value{Kind: event.IntValue, Bits: uint64(r.IntN(100))})
			}
			e.Vals = uint32(len(b.Values))
			b.Events = append(b.Events, e)
		}
		list = append(list, b)
	}
	return list
}

// sink is a correlate.Output that fills a batch.
type sink struct {
	*Encoder
	Batch
}

func (s *sink) Upsert(seq uint64, r *correlate.Row)   { s.Encoder.Upsert(&s.Batch, seq, r) }
func (s *sink) Tombstone(seq uint64, id correlate.ID) { s.Encoder.Tombstone(&s.Batch, seq, id) }
func (s *sink) Cell(seq uint64, c *correlate.Cell)    { s.Encoder.Cell(&s.Batch, seq, c) }
func (s *sink) Late(b *event.Batch, i int)            { s.Encoder.Late(&s.Batch, 1, b, i) }

// total is a correlate.Output that computes the digests of a replay, in which every session is handed out once.
type total struct{ *correlate.Digester }

func (d total) Upsert(_ uint64, r *correlate.Row) { d.Row(r) }
func (d total) Tombstone(uint64, correlate.ID)    {}
func (d total) Cell(_ uint64, c *correlate.Cell)  { d.Digester.Cell(c) }
func (d total) Late(*event.Batch, int)            {}

// TestStreamEqualsReplay feeds a core batch by batch, writes every change, and crashes now and then: what the store then
// serves has the digests of a replay.
func TestStreamEqualsReplay(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", s)
	cfg, meta := engineConfig()
	batches := engineBatches(rand.New(rand.NewPCG(s, 1)), 40, 20)
	replay := get(correlate.New(*cfg))(t)
	want := total{correlate.NewDigester(cfg)}
	for _, b := range batches {
		must(t, replay.Apply(b, want))
	}
	replay.Advance(event.MaxTime, want)
	replay.Flush(want)

	backends(t, func(t *testing.T, dsn string) {
		r := rand.New(rand.NewPCG(s, 2))
		f := newFixture(t, dsn)
		f.serve(f.owner.Generation)
		e := NewEncoder(cfg, meta)
		core, out := get(correlate.New(*cfg))(t), &sink{Encoder: e}
		write := func() {
			f.write(f.owner, out.Batch)
			out.Reset()
		}
		saved, next, at := core.AppendSnapshot(nil), 0, Position{f.owner.Epoch, 0}
		for i := 0; i < len(batches); i++ {
			must(t, core.Apply(batches[i], out))
			core.Flush(out)
			write()
			switch r.IntN(8) {
			case 0:
				saved, next, at = core.AppendSnapshot(saved[:0]), i+1, Position{f.owner.Epoch, core.Sequence()}
			case 1: // a crash
				f.owner = f.own(f.owner.Generation, 0)
				core, i = get(correlate.Restore(*cfg, saved))(t), next-1
				repairCore(t, f, core, out, at)
				write()
			}
		}
		core.Advance(event.MaxTime, out)
		core.Flush(out)
		write()
		scope := Scope{Job: job}
		equal(t, get(f.Digest(t.Context(), scope, 0, 0))(t), want.Sessions)
		equal(t, get(f.ReportDigest(t.Context(), scope, e, 0, 0))(t), want.Reports)

		rows := get(f.Sessions(t.Context(), SessionQuery{Scope: scope, User: []byte("u\xff1")}))(t)
		if len(rows.Items) == 0 {
			t.Fatal("no session of a user")
		}
		var body struct{ ID, User string }
		must(t, json.Unmarshal(rows.Items[0].Body, &body))
		equal(t, body.ID+body.User, rows.Items[0].ID.String()+"u\uFFFD1")
	})
}

// repairCore does what a driver does after a restore.
func repairCore(t *testing.T, f *fixture, core *correlate.Core, out *sink, at Position) {
	var ids []ID
	for id, err := range f.Repair(t.Context(), f.owner, at) {
		must(t, err)
		ids = append(ids, id)
	}
	var cells []correlate.Cell
	for c, err := range f.RepairCells(t.Context(), f.owner, at) {
		must(t, err)
		cell, ok := out.CellOf(c)
		if !ok {
			t.Fatalf("cell %+v is not of this spec", c)
		}
		cells = append(cells, cell)
	}
	core.Repair(ids, out)
	core.RepairCells(cells, out)
}

func TestEncodeExceptions(t *testing.T) {
	cfg, meta := engineConfig()
	e := NewEncoder(cfg, meta)
	in := engineBatches(rand.New(rand.NewPCG(1, 1)), 1, 3)[0]
	in.Events[2].Index, in.Events[2].Time = 7, 99
	var b Batch
	e.Late(&b, 5, in, 2)
	e.Reject(&b, 6, in, &event.Reject{Record: in.Records[1], Reason: event.ReasonNoTime, Detail: "d"})
	in.Data[in.Records[2].Off] = 'X' // the batch is reused
	want := []Exception{
		{Seq: 5, Kind: Late, Source: "src", Topic: "a", Offset: 2, Index: 7, Time: 99, Detail: slices.Clone(in.Steps[in.Events[2].Step]), Raw: []byte("raw")},
		{Seq: 6, Kind: Rejected, Source: "src", Topic: "a", Offset: 1, Reason: "no_time", Detail: []byte("d"), Raw: []byte("raw")},
	}
	equal(t, b.Exceptions, want)
}

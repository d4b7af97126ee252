package results

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

func testMeta() Meta {
	return Meta{
		Job:     "payments",
		Sources: []Source{{"billing", "pay.billing"}, {"channel", "pay.channel"}, {"game", "pay.game"}, {"orders", "pay.orders"}},
		Kinds:   []string{"order", "receipt", "txn"},
		Fields: []jobspec.FieldDef{{Name: "amount", Type: jobspec.IntField}, {Name: "channel", Type: jobspec.StringField},
			{Name: "device", Type: jobspec.StringField}, {Name: "game", Type: jobspec.StringField},
			{Name: "region", Type: jobspec.StringField}, {Name: "user", Type: jobspec.StringField}},
		User:      5,
		Scenarios: []string{"paid_not_delivered", "duplicate_callback"},
		Reports:   []Report{{"funnel", []string{"game", "channel"}, []string{"sessions", "revenue"}}},
	}
}

// typicalRows makes sessions of ten events, three keys and six fields as a payment job has them: offsets and times advance
// together, ids do not repeat.
func typicalRows(n int) []*correlate.Row {
	r := rand.New(rand.NewPCG(1, 2))
	steps := []string{"clicked", "ordered", "paid", "callback", "notified", "delivered", "acknowledged", "closed"}
	offsets := make([]int64, 64)
	rows := make([]*correlate.Row, n)
	now := event.Micros(1_767_225_600_000_000)
	for i := range rows {
		now += event.Micros(r.IntN(2000))
		row := &correlate.Row{Start: now, Count: 10, StepNames: steps}
		for j := range row.ID {
			row.ID[j] = byte(r.Uint32())
		}
		for k := range 6 {
			row.ID[k] = byte(now / 1000 >> (40 - 8*k))
		}
		at := now
		for k := range 10 {
			source, partition := r.IntN(4), r.IntN(16)
			offsets[source*16+partition] += int64(1 + r.IntN(3))
			row.Events = append(row.Events, correlate.RowEvent{Time: at, Source: uint16(source), Partition: int32(partition),
				Offset: 1_000_000*int64(partition+1) + offsets[source*16+partition], Step: uint32(min(k, 7))})
			row.End = at
			at += event.Micros(r.IntN(3_000_000))
		}
		row.Keys = []correlate.RowKey{
			{Kind: 0, Value: fmt.Appendf(nil, "ORD%015d", r.Int64N(1e15))},
			{Kind: 1, Value: fmt.Appendf(nil, "%016x", r.Uint64())},
			{Kind: 2, Value: fmt.Appendf(nil, "4200%020d", r.Int64N(1e18))}}
		row.Fields = []correlate.RowField{{Present: true, Int: int64(6+r.IntN(100)) * 100},
			text("alipay", "apple", "google", "wechat")[r.IntN(4)], {Present: true, Text: fmt.Appendf(nil, "dev-%08x", r.Uint32())},
			text("g1", "g2", "g3", "g4", "g5")[r.IntN(5)], text("cn", "eu", "us")[r.IntN(3)],
			{Present: true, Text: fmt.Appendf(nil, "u%07d", r.IntN(1_000_000))}}
		if i%10 == 0 {
			row.Hits = []correlate.Hit{{Scenario: i / 10 % 2, DecidedAt: row.End + 600_000_000}}
		}
		rows[i] = row
	}
	return rows
}

func text(values ...string) (list []correlate.RowField) {
	for _, v := range values {
		list = append(list, correlate.RowField{Present: true, Text: []byte(v)})
	}
	return list
}

// counter counts bytes.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

var _ io.Writer = (*counter)(nil)

func BenchmarkSessions(b *testing.B) {
	rows := typicalRows(50_000)
	for _, format := range []Format{JSONL, Parquet} {
		b.Run(string(format), func(b *testing.B) {
			out := new(counter)
			s, err := NewSessions(out, format, testMeta())
			if err != nil {
				b.Fatal(err)
			}
			events := 0
			b.ReportAllocs()
			for b.Loop() {
				row := rows[events/10%len(rows)]
				if err := s.Write(row); err != nil {
					b.Fatal(err)
				}
				events += len(row.Events)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
			b.ReportMetric(float64(out.n)/float64(events), "B/event")
		})
	}
}

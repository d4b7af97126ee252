package store

import (
	"fmt"
	"testing"

	"github.com/weftdata/weft/event"
)

// benchmarkBatch makes sessions as a payment job has them: three keys, a user and a body of 1.1 KB; one in ten has a hit.
func benchmarkBatch(from, rows int, seq uint64) Batch {
	var b Batch
	for n := from; n < from+rows; n++ {
		seq++
		x := session(n, seq)
		x.User = fmt.Appendf(nil, "u%07d", n*7919%1_000_000)
		// Key values come in no order.
		h := uint64(n) * 0x9e3779b97f4a7c15
		x.Keys = []Key{{"order", fmt.Appendf(nil, "ORD%020d", h)}, {"txn", fmt.Appendf(nil, "4200%020d", h^0xabcdef)}, {"receipt", fmt.Appendf(nil, "%016x", h)}}
		if n%10 == 0 {
			x.Hits = []Hit{{"stuck", event.Micros(n)}}
		}
		x.Body = fmt.Appendf(nil, `{"id":%d,"pad":"%01080d"}`, n, h)
		b.Sessions = append(b.Sessions, x)
	}
	return b
}

// BenchmarkWrite writes batches of sessions: new ones, those of the batch before again with a later sequence, or few.
func BenchmarkWrite(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		for _, what := range []string{"new", "changed", "few"} {
			b.Run(kind+"/"+what, func(b *testing.B) {
				rows := 5000
				if what == "few" {
					rows = 10
				}
				dsn := "sqlite:" + b.TempDir()
				if kind == "postgres" {
					dsn = server.database(b)
				}
				s := open(b, dsn)
				g := get(s.CreateGeneration(b.Context(), job, "1", "live"))(b)
				o := Owner{g.ID, 0, get(s.TakeEpoch(b.Context(), job, g.ID, 0))(b)}
				at, seq := 0, uint64(0)
				first := benchmarkBatch(at, rows, seq)
				must(b, s.Write(b.Context(), o, &first))
				for b.Loop() {
					b.StopTimer()
					if what != "changed" {
						at += rows
					}
					seq += uint64(rows)
					batch := benchmarkBatch(at, rows, seq)
					b.StartTimer()
					must(b, s.Write(b.Context(), o, &batch))
				}
				b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
			})
		}
	}
}

// BenchmarkRead answers the questions of the user interface over 50,000 sessions.
func BenchmarkRead(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		dsn := "sqlite:" + b.TempDir()
		if kind == "postgres" {
			dsn = server.database(b)
		}
		s := open(b, dsn)
		g := get(s.CreateGeneration(b.Context(), job, "1", "live"))(b)
		o := Owner{g.ID, 0, get(s.TakeEpoch(b.Context(), job, g.ID, 0))(b)}
		for at := 0; at < 50_000; at += 10_000 {
			batch := benchmarkBatch(at, 10_000, uint64(at))
			must(b, s.Write(b.Context(), o, &batch))
		}
		must(b, second(s.Switch(b.Context(), SwitchRequest{Job: job, RequestID: "r", Assignments: []Assignment{{event.MinTime, event.MaxTime, g.ID}}})))
		one := benchmarkBatch(31_000, 1, 0).Sessions[0]
		for name, q := range map[string]SessionQuery{
			"key":      {Key: &one.Keys[0]},
			"user":     {User: one.User},
			"scenario": {Scenario: "stuck", From: 1000, To: 40_000},
		} {
			q.Job = job
			b.Run(kind+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if r := get(s.Sessions(b.Context(), q))(b); len(r.Items) == 0 {
						b.Fatal("found nothing")
					}
				}
			})
		}
		b.Run(kind+"/digest", func(b *testing.B) {
			rows := int64(0)
			for b.Loop() {
				rows += get(s.Digest(b.Context(), Scope{Job: job}, 0, 0))(b).Count
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

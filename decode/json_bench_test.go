package decode

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/buger/jsonparser"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// benchRecord is a payment record of about 300 bytes, with wanted and unwanted members mixed. Like real ones, records
// differ in their values and in the length of some.
func benchRecord(i int) string {
	r := rand.New(rand.NewPCG(uint64(i), 0))
	return fmt.Sprintf(`{"v":3,"ts":%d,"event":"%s","trace":"%016x%016x","app":"game-%d",`+
		`"order":{"id":"P20260918%09d","receipt":"GPA.%04d-%04d-%04d-%05d","amount":"%d.%02d","currency":"CNY"},`+
		`"user":{"id":"u-%d","level":%d},"device":{"os":"android","model":"%s"},"ok":true,"node":"pay-%d"}`,
		1790000000000+i, []string{"created", "paid", "callback", "delivered"}[r.IntN(4)], r.Uint64(), r.Uint64(), r.IntN(30),
		r.IntN(1e9), r.IntN(1e4), r.IntN(1e4), r.IntN(1e4), r.IntN(1e5), r.IntN(700), r.IntN(100),
		r.IntN(1e9), r.IntN(120), []string{"Pixel 9", "SM-S921B", "iPhone17,2"}[r.IntN(3)], r.IntN(40))
}

func benchSpec() *jobspec.Spec {
	return &jobspec.Spec{
		Ignore: []string{"", "null", "0", "-"},
		Kinds:  []jobspec.Kind{{Name: "order"}, {Name: "receipt"}},
		Fields: []jobspec.FieldDef{
			{Name: "amount", Type: jobspec.IntField},
			{Name: "game", Type: jobspec.StringField},
			{Name: "user", Type: jobspec.StringField},
		},
		Sources: []jobspec.Source{{
			Name:   "orders",
			Format: jobspec.Format{Name: "json"},
			Time:   jobspec.Time{Field: "ts", Layout: "unix_ms"},
			Step:   jobspec.Step{Field: "event"},
			Keys:   []jobspec.Key{{Kind: 0, Path: "order.id"}, {Kind: 1, Path: "order.receipt"}},
			Fields: []jobspec.Field{{Field: 0, Path: "order.amount", Scale: 2}, {Field: 1, Path: "app"}, {Field: 2, Path: "user.id"}},
		}},
	}
}

func benchBatch() *event.Batch {
	var b event.Batch
	for i := range 1000 {
		b.Add(event.Record{Offset: int64(i)}, []byte(benchRecord(i)))
	}
	return &b
}

func BenchmarkJSON(b *testing.B) {
	d, err := New(benchSpec(), 0, Options{})
	if err != nil {
		b.Fatal(err)
	}
	batch := benchBatch()
	data := len(batch.Data)
	b.SetBytes(int64(data))
	b.ReportAllocs()
	for b.Loop() {
		batch.ResetDecoded()
		batch.Data = batch.Data[:data]
		for _, r := range batch.Records {
			d.Decode(batch, r)
		}
	}
	if len(batch.Events) == 0 || len(batch.Rejects) > 0 {
		b.Fatalf("%d events, %v", len(batch.Events), batch.Rejects)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(batch.Events)), "ns/event")
}

// BenchmarkJSONScan only checks the grammar.
func BenchmarkJSONScan(b *testing.B) {
	batch := benchBatch()
	s := scanner{f: &frame{}}
	b.SetBytes(int64(len(batch.Data)))
	b.ReportAllocs()
	for b.Loop() {
		for _, r := range batch.Records {
			s.start(batch, r)
			if !s.document(nil) {
				b.Fatal("rejected")
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(batch.Records)), "ns/event")
}

// BenchmarkJSONParser picks the same seven values and builds nothing.
func BenchmarkJSONParser(b *testing.B) {
	paths := [][]string{{"ts"}, {"event"}, {"app"}, {"order", "id"}, {"order", "receipt"}, {"order", "amount"}, {"user", "id"}}
	batch := benchBatch()
	b.SetBytes(int64(len(batch.Data)))
	b.ReportAllocs()
	found := 0
	for b.Loop() {
		found = 0
		for _, r := range batch.Records {
			jsonparser.EachKey(batch.Raw(r), func(int, []byte, jsonparser.ValueType, error) { found++ }, paths...)
		}
	}
	if found != len(paths)*len(batch.Records) {
		b.Fatal(found)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(batch.Records)), "ns/event")
}

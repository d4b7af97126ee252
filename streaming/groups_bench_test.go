package streaming

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
)

// benchLog holds one batch of records of one partition, and takes what is written.
type benchLog struct {
	records []Raw
	keep    func(*Raw)
}

func (l *benchLog) Records(_ context.Context, _ Partition, next int64, _ int, _ time.Duration, yield func(*Raw)) (after, end int64, err error) {
	for i := range l.records {
		r := &l.records[i]
		r.Offset = next + int64(i)
		yield(r)
	}
	return next + int64(len(l.records)), 1 << 62, nil
}

func (l *benchLog) Add(_ context.Context, _ int32, r *Raw) error {
	if l.keep != nil {
		l.keep(r)
	}
	return nil
}

func (*benchLog) Flush(context.Context) error { return nil }

// benchGroups returns what repartitions for 8 shards, and a batch of records of about 300 bytes with one event each.
func benchGroups(b *testing.B) (*shard, *benchLog) {
	l := &benchLog{}
	now := event.Micros(1_700_000_000_000_000)
	for i := range 800 {
		value := fmt.Sprintf(`{"trace":"%0140d","events":[{"t":1700000000%03d,"s":"paid","x":"x%d","u":"user-%d","o":"order-%d","g":"game-%d","a":%d}],"host":"gateway-7"}`,
			i, i%1000, i, i%97, i, i%23, i)
		l.records = append(l.records, Raw{Timestamp: now, Value: []byte(value)})
	}
	w := newWorld(&testing.T{})
	h := &handle{w: w}
	cfg := Config{
		Job: gamesJob(b), Name: "bench", Partitions: []Partition{{0, "orders", 0}}, Log: h, Sink: h, Objects: h,
		Groups: &Groups{Shard: 0, Shards: 8, Topic: groupsTopic, Log: l, Out: l},
	}
	if err := cfg.Validate(); err != nil {
		b.Fatal(err)
	}
	s := &shard{cfg: cfg, next: make([]int64, 1), past: make([]*past, 1)}
	s.inlet, s.repartition = newInlet(s), newRepartitioner(s)
	if err := s.repartition.place(b.Context()); err != nil {
		b.Fatal(err)
	}
	s.repartition.status = make([]PartitionStatus, 1)
	return s, l
}

// BenchmarkRepartition decodes source records to learn whose they are, and hands them to an outlet that does nothing.
func BenchmarkRepartition(b *testing.B) {
	s, l := benchGroups(b)
	d, err := s.cfg.Job.NewDecoder()
	if err != nil {
		b.Fatal(err)
	}
	p := s.repartition
	m := &message{routed: &routed{}, free: make(chan *message, 1)}
	bytes := 0
	for _, r := range l.records {
		bytes += len(r.Value)
	}
	b.SetBytes(int64(bytes))
	b.ReportAllocs()
	for b.Loop() {
		m.batch.Reset()
		if m.next, m.end, err = p.fetch(b.Context(), p.parts[0], p.next[0], m); err != nil {
			b.Fatal(err)
		}
		p.route(d, p.parts[0], m)
		if err := p.forward(b.Context(), m); err != nil {
			b.Fatal(err)
		}
		<-m.free
	}
	b.ReportMetric(float64(b.N*len(l.records))/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkInlet reads records of the groups topic and decodes them.
func BenchmarkInlet(b *testing.B) {
	s, l := benchGroups(b)
	d, err := s.cfg.Job.NewDecoder()
	if err != nil {
		b.Fatal(err)
	}
	var written []Raw
	l.keep = func(r *Raw) { written = append(written, cloneRaw(r)) }
	m := &message{routed: &routed{}, arrived: &arrived{}, free: make(chan *message, 1)}
	p, in := s.repartition, s.inlet
	if _, _, err := p.fetch(b.Context(), p.parts[0], 0, m); err != nil {
		b.Fatal(err)
	}
	p.route(d, p.parts[0], m)
	if err := p.forward(b.Context(), m); err != nil {
		b.Fatal(err)
	}
	bytes := 0
	for _, r := range written {
		bytes += len(r.Value)
	}
	l.records = written
	in.decoder, in.taken = d, make([]int64, 1)
	fetch := in.fetch(s, in.g.partition())
	b.SetBytes(int64(bytes))
	b.ReportAllocs()
	for b.Loop() {
		m.batch.Reset()
		if _, _, err := fetch(b.Context(), 0, m); err != nil {
			b.Fatal(err)
		}
		in.take(m)
		if len(m.batch.Records) != len(l.records) {
			b.Fatal("records are missing")
		}
		in.taken[0] = 0
	}
	b.ReportMetric(float64(b.N*len(l.records))/b.Elapsed().Seconds(), "records/s")
}

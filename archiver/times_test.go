package archiver

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

const hour = day / 24

func TestCuts(t *testing.T) {
	burst := func(at event.Micros, n int) (list []event.Micros) {
		for i := range n {
			list = append(list, at+event.Micros(i)*100_000)
		}
		return list
	}
	every := func(at event.Micros, minutes int) (list []event.Micros) {
		for i := range minutes {
			list = append(list, at+event.Micros(i)*hour/60)
		}
		return list
	}
	spread := make([]event.Micros, 100)
	for i := range spread {
		spread[i] = noon + event.Micros(i)*10*hour/6 // a hole of 100 minutes after each
	}
	for name, c := range map[string]struct {
		times, want []event.Micros
	}{
		"none":                {nil, nil},
		"one":                 {burst(noon, 1), nil},
		"a minute":            {burst(noon, 600), nil},
		"one is late":         {slices.Concat(burst(noon, 600), burst(noon-3*day, 1)), []event.Micros{noon}},
		"one is ahead":        {slices.Concat(burst(noon, 600), burst(noon+70*365*day, 1)), []event.Micros{noon + 70*365*day}},
		"a third is late":     {slices.Concat(burst(noon, 600), burst(noon-3*day, 300)), []event.Micros{noon}},
		"late and ahead":      {slices.Concat(burst(noon, 600), burst(noon-3*day, 2), burst(noon+9*day, 1)), []event.Micros{noon, noon + 9*day}},
		"one is an hour late": {slices.Concat(burst(noon, 600), burst(noon-hour+1, 1)), nil},
		"a small hole":        {slices.Concat(every(noon, 60), every(noon+4*hour, 600)), nil},
		"spread evenly":       {spread, []event.Micros{spread[50]}},
		"the ends of time":    {[]event.Micros{event.MinTime, 0, 1, 2, event.MaxTime}, []event.Micros{0, event.MaxTime}},
	} {
		slices.Sort(c.times)
		got := cuts(c.times, hour)
		if name == "spread evenly" && len(got) <= 2 { // there is nothing to choose: it is cut in even parts
			continue
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

const otherJob = `version: weft/v1
job: refunds
sources:
  orders:
    topic: pay.orders
    format: json
    time: {field: at, layout: unix_s}
    step: {value: x}
    keys: {order: order}
  other:
    topic: pay.other
    format: json
    time: {field: at, layout: unix_s}
    step: {value: x}
    keys: {order: order}
session: {gap: 30m}
`

// The statistics of a file hold for its rows: what each job's source would decode, rejects included.
func TestStatistics(t *testing.T) {
	jobs := []*operator.Job{compile(t, ordersJob), compile(t, otherJob), compile(t, strings.Replace(ordersJob, "gap: 30m", "gap: 40m", 1))}
	tracker, err := newTracker(jobs, topic)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(tracker.sources); n != 2 {
		t.Fatalf("%d sources are tracked, want 2: a version that differs in its gap finds the same times", n)
	}
	r := (&archiver{times: tracker}).newRows()
	add := func(value string, headers ...archive.Header) {
		rec := archive.Record{Topic: topic, Offset: int64(len(r.records)), Timestamp: noon + event.Micros(len(r.records)), Headers: headers}
		if value != "" {
			rec.Value = []byte(value)
		}
		r.add(&rec)
	}
	add(fmt.Sprintf(`{"event":"a","ts":%d,"order":"1","at":%d}`, noon/1000, (noon+3*hour)/1_000_000))
	add(fmt.Sprintf(`{"event":"a","ts":%d,"order":"1"}`, (noon+hour)/1000))            // refunds finds no time
	add("")                                                                            // a deletion
	add("garbage")                                                                     // rejected by both
	add(fmt.Sprintf(`{"event":"a","ts":%d,"order":"1"}`, (noon-3*day)/1000))           // late
	add("{}", archive.Header{Key: event.OriginHeader, Value: []byte("no such thing")}) // rejected by both
	tracker.note(r, 0)
	pieces := r.cut(hour)
	if len(pieces) != 2 || fmt.Sprint(pieces[0]) != "[4]" || fmt.Sprint(pieces[1]) != "[0 1 2 3 5]" {
		t.Fatalf("cut into %v", pieces)
	}
	show := func(piece []int32) string {
		var f archive.DataFile
		tracker.statistics(&f, r, piece)
		text := fmt.Sprintf("%d rows, %d to %d, +%d to +%d", f.Records, f.LeastOffset, f.GreatestOffset, f.Timestamps.Least-noon, f.Timestamps.Greatest-noon)
		for _, x := range f.Times {
			text += fmt.Sprintf("; %s/%s: %d events, %d rejects", x.Job, x.Source, x.Events, x.Rejects)
			if x.Event != nil {
				text += fmt.Sprintf(", %+d h to %+d h", (x.Event.Least-noon)/hour, (x.Event.Greatest-noon)/hour)
			}
		}
		return text
	}
	if got, want := show(pieces[0]), "1 rows, 4 to 4, +4 to +4; payments/orders: 1 events, 0 rejects, -72 h to -72 h; refunds/orders: 0 events, 1 rejects"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got, want := show(pieces[1]), "5 rows, 0 to 5, +0 to +5; payments/orders: 2 events, 2 rejects, +0 h to +1 h; refunds/orders: 1 events, 3 rejects, +3 h to +3 h"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// A source that decodes otherwise has another fingerprint; one that stands elsewhere in the text has not.
func TestFingerprint(t *testing.T) {
	base := compile(t, ordersJob).Fingerprint(0)
	for change, same := range map[[2]string]bool{
		{"session: {gap: 30m}", "session: {gap: 40m}"}:                        true,
		{"job: payments", "\n# moved\njob: payments"}:                         true,
		{"layout: unix_ms", "layout: unix_s"}:                                 false,
		{"field: ts", "field: tz"}:                                            false,
		{"step: event", "step: {value: x}"}:                                   false,
		{"keys: {order: order}", "keys: {order: id}"}:                         false,
		{"keys: {order: order}", "keys: {order: order}\n    where: {a: [b]}"}: false,
		{"keys: {order: order}", "keys: {order: order}\n    fields: {n: n}"}:  false,
	} {
		got := compile(t, strings.Replace(ordersJob, change[0], change[1], 1)).Fingerprint(0)
		if (got == base) != same {
			t.Errorf("%q instead of %q: the fingerprint is the same: %v", change[1], change[0], got == base)
		}
	}
}

// However many offsets are missing, a manifest lists few gaps, and they stay true.
func TestManyGaps(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var g gaps
	g.add(0, 7, archive.Deleted)
	missing, next := int64(7), int64(7)
	for range 100_000 {
		from := next + 1 + r.Int64N(1000)
		to := from + r.Int64N(3)
		g.add(from, to, archive.Absent)
		missing, next = missing+to-from, to
	}
	if len(g.list) > archive.GapsMax || len(g.list) < archive.GapsMax/16 {
		t.Errorf("%d gaps are listed", len(g.list))
	}
	sum := int64(0)
	for i, gap := range g.list {
		sum += gap.Missing
		if gap.Missing > gap.To-gap.From || i > 0 && gap.From < g.list[i-1].To {
			t.Fatalf("gap %+v", gap)
		}
	}
	if sum != missing || g.list[0] != (archive.Gap{From: 0, To: 7, Missing: 7, Reason: archive.Deleted}) {
		t.Errorf("%d are missing, want %d; the first gap is %+v", sum, missing, g.list[0])
	}
}

// BenchmarkArchive measures what an archiver does with records, without a network: it copies them, finds their times, cuts,
// encodes and hashes. GOMAXPROCS=1 gives the rate of one core.
func BenchmarkArchive(b *testing.B) {
	const n = 200_000
	rec := archive.Record{Topic: topic, Key: []byte("game-7")}
	var values [][]byte
	size := 0
	for i := range n {
		v := fmt.Appendf(nil, `{"event":"paid","ts":%d,"order":"ORD%015d","amount":%d,"receipt":"%016x","user":{"id":"u%07d"},"app":"g%d","padding":%q}`,
			int64(noon)/1000+int64(i), i*7919, i%97*100, i*104729, i%1_000_003, i%5, strings.Repeat("pad ", 35))
		values = append(values, v)
		size += len(v)
	}
	for name, jobs := range map[string][]*operator.Job{"no job": nil, "one job": {compile(b, ordersJob)}} {
		b.Run(name, func(b *testing.B) {
			tracker, err := newTracker(jobs, topic)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			for b.Loop() {
				a := &archiver{cfg: Config{Topic: topic}, times: tracker}
				p := &partition{a: a, rows: a.newRows(), next: n}
				for i := range n {
					before := len(p.rows.records)
					rec.Offset, rec.Timestamp, rec.Value = int64(i), noon+event.Micros(i), values[i]
					p.rows.add(&rec)
					if i%800 == 799 {
						tracker.note(p.rows, before-before%800)
					}
				}
				m, data, err := p.encode()
				if err != nil || m.Records != n || len(bytes.Join(data, nil)) == 0 {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

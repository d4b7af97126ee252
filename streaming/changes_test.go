package streaming

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// scribbler hands out rows and cells from memory that it then overwrites, as the core does.
type scribbler struct {
	row  correlate.Row
	cell correlate.Cell
	text []byte
}

func newScribbler(i int) *scribbler {
	s := &scribbler{text: []byte(strings.Repeat(fmt.Sprint("text ", i), 1+i%7))}
	s.row = correlate.Row{
		Start: event.Micros(i), Count: int64(i),
		Keys:      []correlate.RowKey{{Kind: i, Value: s.text}, {Kind: i + 1, Value: s.text[:3]}},
		Fields:    []correlate.RowField{{Present: true, Text: s.text[2:]}, {Int: int64(i)}, {Present: true, Text: []byte{}}},
		Hits:      []correlate.Hit{{Scenario: i}},
		Events:    []correlate.RowEvent{{Offset: int64(i)}, {Offset: int64(i + 1)}},
		StepNames: []string{fmt.Sprint("step ", i), "done"},
	}
	s.cell = correlate.Cell{Report: i, By: [][]byte{s.text, nil, s.text[1:2]}, Measures: []int64{int64(i), 7}, Sessions: int64(i)}
	return s
}

func (s *scribbler) overwrite() {
	for i := range s.text {
		s.text[i] = '#'
	}
	clear(s.row.Keys)
	clear(s.row.Fields)
	clear(s.row.Hits)
	clear(s.row.Events)
	clear(s.row.StepNames)
	clear(s.cell.By)
	clear(s.cell.Measures)
}

// TestChangesAreCopies fills one batch after another, and compares what it holds when all that it was made of is overwritten.
func TestChangesAreCopies(t *testing.T) {
	c := &Changes{}
	for round := range 4 {
		n := []int{1, 3000, 5, 200}[round]
		for i := range n {
			s := newScribbler(i)
			c.take(func(out correlate.Output) {
				out.Upsert(uint64(i), &s.row)
				out.Cell(uint64(i), &s.cell)
			})
			s.overwrite()
		}
		for i := range n {
			want := newScribbler(i)
			if got := c.Sessions[i]; !reflect.DeepEqual(got, Session{uint64(i), want.row}) {
				t.Fatalf("round %d: session %d is %+v, want %+v", round, i, got, want.row)
			}
			if got := c.Cells[i]; !reflect.DeepEqual(got, Cell{uint64(i), want.cell}) {
				t.Fatalf("round %d: cell %d is %+v, want %+v", round, i, got, want.cell)
			}
		}
		c.reset()
		if !c.empty() || c.texts.used != 0 {
			t.Fatal("not empty after a reset")
		}
	}
}

// TestChangesMemory uses the same memory again, and gives back that of a peak.
func TestChangesMemory(t *testing.T) {
	c, s := &Changes{}, newScribbler(3)
	fill := func(n int) {
		c.take(func(out correlate.Output) {
			for i := range n {
				out.Upsert(uint64(i), &s.row)
				out.Cell(uint64(i), &s.cell)
			}
		})
		c.reset()
	}
	fill(1000)
	fill(1000)
	if n := testing.AllocsPerRun(10, func() { fill(1000) }); n > 2 { // the names of steps
		t.Errorf("%v allocations for 1000 rows and cells", n)
	}
	fill(200_000)
	fill(1000)
	if held := cap(c.texts.block) + 100*cap(c.Sessions); held > 4<<20 {
		t.Errorf("%d bytes are held after a peak", held)
	}
}

// TestLateRecords looks up the records of late events, some of which share one, in a batch that is used again.
func TestLateRecords(t *testing.T) {
	c := &Changes{}
	var b event.Batch
	var want []string
	for round := range 3 {
		b.Reset()
		for i := range 500 {
			r := event.Record{Source: 1, Partition: int32(round), Offset: int64(i)}
			b.Add(r, fmt.Appendf(nil, "record %d of round %d", i, round))
			for k := range i % 4 {
				b.Events = append(b.Events, event.Event{Source: 1, Partition: int32(round), Offset: int64(i), Index: uint16(k),
					Step: b.Step(fmt.Appendf(nil, "step %d", i%7))})
			}
		}
		c.take(func(out correlate.Output) {
			for i := round; i < len(b.Events); i += 1 + i%3 {
				out.Late(&b, i)
				want = append(want, fmt.Sprintf("record %d of round %d", b.Events[i].Offset, round))
			}
		})
	}
	var got []string
	for _, x := range c.LateEvents {
		got = append(got, string(x.Raw))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the records of late events are not theirs")
	}
	for _, x := range c.LateEvents {
		if want := fmt.Sprintf("step %d", x.Offset%7); x.Detail != want {
			t.Fatalf("the late event of record %d is %q, want %q", x.Offset, x.Detail, want)
		}
	}
	b.Events = []event.Event{{Source: 1, Partition: 9, Offset: 1}}
	c.Late(&b, 0)
	if x := c.LateEvents[len(c.LateEvents)-1]; x.Raw != nil {
		t.Errorf("an event without a record got %q", x.Raw)
	}
}

// BenchmarkLate measures a batch of which everything is late.
func BenchmarkLate(b *testing.B) {
	c := &Changes{}
	var batch event.Batch
	for i := range 4000 {
		batch.Add(event.Record{Offset: int64(i)}, make([]byte, 300))
		batch.Events = append(batch.Events, event.Event{Offset: int64(i), Step: batch.Step([]byte("paid"))})
	}
	for b.Loop() {
		c.take(func(out correlate.Output) {
			for i := range batch.Events {
				out.Late(&batch, i)
			}
		})
		c.reset()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/4000, "ns/event")
}

// BenchmarkUpsert measures copying one row.
func BenchmarkUpsert(b *testing.B) {
	c, s := &Changes{}, newScribbler(3)
	b.ReportAllocs()
	for b.Loop() {
		c.Upsert(1, &s.row)
		if len(c.Sessions) == 10_000 {
			c.reset()
		}
	}
}

// TestParts cuts changes of every kind into parts, which together are what they were, each once.
func TestParts(t *testing.T) {
	c := Changes{Last: 9, Watermark: 7}
	for i := range uint64(5) {
		c.Sessions = append(c.Sessions, Session{Seq: i})
		c.Gone = append(c.Gone, Tombstone{Seq: 10 + i})
		c.Cells = append(c.Cells, Cell{Seq: 20 + i})
		c.Rejects = append(c.Rejects, Exception{Offset: int64(i)})
	}
	for _, n := range []int{1, 3, 5, 7, 20, 100} {
		var all Changes
		more := true
		for p := range c.parts(n) {
			if !more {
				t.Fatal("a part follows the last one")
			}
			if rows := len(p.Sessions) + len(p.Gone) + len(p.Cells) + len(p.LateEvents) + len(p.Rejects); rows > n || rows < n && p.More {
				t.Errorf("a part of %d rows, of at most %d", rows, n)
			}
			all.Sessions = append(all.Sessions, p.Sessions...)
			all.Gone = append(all.Gone, p.Gone...)
			all.Cells = append(all.Cells, p.Cells...)
			all.Rejects = append(all.Rejects, p.Rejects...)
			more = p.More
			if p.Last != 9 || p.Watermark != 7 {
				t.Errorf("a part says it is of %d at %d", p.Last, p.Watermark)
			}
		}
		if more || !reflect.DeepEqual(all.Sessions, c.Sessions) || !reflect.DeepEqual(all.Gone, c.Gone) ||
			!reflect.DeepEqual(all.Cells, c.Cells) || !reflect.DeepEqual(all.Rejects, c.Rejects) {
			t.Errorf("parts of %d: %+v", n, all)
		}
	}
	parts := 0
	for p := range (&Changes{Watermark: 3}).parts(10) {
		if parts++; p.Watermark != 3 || p.More {
			t.Errorf("the part of a watermark alone: %+v", p)
		}
	}
	if parts != 1 {
		t.Errorf("a watermark alone comes in %d parts", parts)
	}
}

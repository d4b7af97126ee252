package correlate

import (
	"fmt"
	"testing"

	"github.com/weftdata/weft/event"
)

// TestTally counts the rows that a core hands out: the cells are those of the core.
func TestTally(t *testing.T) {
	cfg := Config{Topics: []string{"t"}, Fields: []Field{{Name: "game"}, {Name: "amount", Int: true}}, Session: Session{MaxSpan: 100},
		Scenarios: []Scenario{{Name: "all", When: func(*Facts) bool { return true }}},
		Reports: []Report{
			{Name: "a", Every: 10, By: []int{0}, Measures: []Measure{{Name: "n"}, {Name: "sum", Op: SumField, Arg: 1}}},
			{Name: "b", Every: 7, By: []int{1, 0}, Measures: []Measure{{Name: "hits", Op: CountScenario}, {Name: "events", Op: SumEvents}}},
			{Name: "c", Every: 1000},
		}}
	core, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var b event.Batch
	step := b.Step([]byte("s"))
	for i := range 200 {
		e := event.Event{Time: event.Micros(i*3 - 50), Offset: int64(i), Step: step}
		if i%5 > 0 {
			at := len(b.Data)
			b.Data = append(b.Data, fmt.Sprint("g", i%3, "\xff")...)
			b.Values = append(b.Values, event.Value{Kind: event.StringValue, Off: uint32(at), Len: uint16(len(b.Data) - at)})
		}
		if i%2 > 0 {
			b.Values = append(b.Values, event.Value{Kind: event.IntValue, ID: 1, Bits: uint64(i % 4)})
		}
		e.Vals = uint32(len(b.Values))
		b.Events = append(b.Events, e)
	}
	out := &tallied{tally: NewTally(&cfg), want: NewDigester(&cfg)}
	if err := core.Apply(&b, out); err != nil {
		t.Fatal(err)
	}
	core.Advance(event.MaxTime, out)
	core.Flush(out)
	got := NewDigester(&cfg)
	last := ""
	out.tally.Each(func(c *Cell) {
		got.Cell(c)
		if at := fmt.Sprintf("%d %012d %q", c.Report, c.Window+1000, c.By); at <= last {
			t.Errorf("cell %s comes after %s", at, last)
		} else {
			last = at
		}
	})
	if got.Reports != out.want.Reports || out.tally.Cells() != int(got.Reports.Count) || got.Reports.Count < 100 {
		t.Errorf("%d cells %s; want %d cells %s", got.Reports.Count, got.Reports, out.want.Reports.Count, out.want.Reports)
	}
}

type tallied struct {
	tally *Tally
	want  *Digester
}

func (x *tallied) Upsert(_ uint64, r *Row) { x.tally.Add(r) }
func (x *tallied) Tombstone(uint64, ID)    {}
func (x *tallied) Cell(_ uint64, c *Cell)  { x.want.Cell(c) }
func (x *tallied) Late(*event.Batch, int)  {}

// TestOwning follows a session of the range, one that starts before it and one behind it.
func TestOwning(t *testing.T) {
	for _, c := range []struct {
		times  []event.Micros // of events of one key, in order
		owning bool
	}{
		{nil, false}, {[]event.Micros{100}, true}, {[]event.Micros{50}, false}, {[]event.Micros{200}, false}, {[]event.Micros{199}, true},
		{[]event.Micros{95, 103}, true}, // where it becomes endless, a part of it may start in the range
		{[]event.Micros{95, 105, 115, 125, 135, 145}, true},
	} {
		core, err := New(Config{Topics: []string{"t"}, Kinds: []Kind{{Name: "k", Gap: 10}}, Session: Session{MaxSpan: 30}, Range: Range{100, 200}})
		if err != nil {
			t.Fatal(err)
		}
		for i, at := range c.times {
			b := event.Batch{Data: []byte("v"), Values: []event.Value{{Len: 1}}}
			b.Events = []event.Event{{Time: at, Offset: int64(i), Vals: 1, Step: b.Step([]byte("s"))}}
			if err := core.Apply(&b, &tallied{}); err != nil {
				t.Fatal(err)
			}
		}
		if core.Owning() != c.owning {
			t.Errorf("events at %v: %v", c.times, core.Owning())
		}
		core.Advance(event.MaxTime, &tallied{tally: NewTally(&Config{})})
		if core.Owning() {
			t.Errorf("events at %v: it owns what is over", c.times)
		}
	}
}

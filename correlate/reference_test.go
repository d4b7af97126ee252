package correlate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
)

// The reference computes sessions from the definition alone: all pairs of events, a graph, its components. It shares
// no code and no idea with the core.

type refEvent struct {
	time         event.Micros
	source       int
	partition    int32
	offset       int64
	index        int
	step         string
	keys         map[int][]string
	user, amount string // fields; empty: none
	dedupe       string
	group        int // component that the generator meant, to make related values
}

func (a *refEvent) identity() string {
	return fmt.Sprintf("%02d/%05d/%010d/%05d", a.source, a.partition, a.offset, a.index)
}

func (a *refEvent) before(b *refEvent) bool {
	if a.time != b.time {
		return a.time < b.time
	}
	return a.identity() < b.identity()
}

type refResult struct {
	rows  map[string]string // by identity of the least event
	start map[string]event.Micros
	cells map[string]string
}

func reference(cfg *Config, input []refEvent) refResult {
	byIdentity := map[string]*refEvent{}
	for i := range input {
		byIdentity[input[i].identity()] = &input[i]
	}
	events := slices.Collect(maps.Values(byIdentity))
	sort.Slice(events, func(i, j int) bool { return events[i].before(events[j]) })

	linked := func(a, b *refEvent) bool {
		if a.group != b.group {
			return false
		}
		for kind, values := range a.keys {
			d := a.time - b.time
			if d < 0 {
				d = -d
			}
			if d > cfg.Kinds[kind].Gap {
				continue
			}
			for _, v := range values {
				if slices.Contains(b.keys[kind], v) {
					return true
				}
			}
		}
		return false
	}
	components := func(set []*refEvent, link func(a, b *refEvent) bool) (out [][]*refEvent) {
		left := slices.Clone(set)
		for len(left) > 0 {
			group := []*refEvent{left[0]}
			left = left[1:]
			for i := 0; i < len(group); i++ {
				var rest []*refEvent
				for _, e := range left {
					if link(group[i], e) {
						group = append(group, e)
					} else {
						rest = append(rest, e)
					}
				}
				left = rest
			}
			sort.Slice(group, func(i, j int) bool { return group[i].before(group[j]) })
			out = append(out, group)
		}
		return out
	}
	cell := func(t event.Micros) int64 {
		n := int64(t / cfg.Session.MaxSpan)
		if t%cfg.Session.MaxSpan < 0 {
			n--
		}
		return n
	}
	res := refResult{map[string]string{}, map[string]event.Micros{}, map[string]string{}}
	sums := map[string][]int64{}
	for _, group := range components(events, linked) {
		sessions := [][]*refEvent{group}
		if group[len(group)-1].time-group[0].time > cfg.Session.MaxSpan {
			sessions = components(group, func(a, b *refEvent) bool { return cell(a.time) == cell(b.time) && linked(a, b) })
		}
		for _, s := range sessions {
			refRow(cfg, s, res, sums)
		}
	}
	for k, v := range sums {
		res.cells[k] = fmt.Sprint(v)
	}
	return res
}

func refRow(cfg *Config, all []*refEvent, res refResult, sums map[string][]int64) {
	var s []*refEvent
	folded := map[string]bool{}
	for _, e := range all {
		if e.dedupe != "" {
			k := fmt.Sprint(e.source, e.dedupe)
			if folded[k] {
				continue
			}
			folded[k] = true
		}
		s = append(s, e)
	}
	first, last := s[0], s[len(s)-1]
	var user, amount string
	keys := map[string]bool{}
	for _, e := range all {
		if user == "" {
			user = e.user
		}
		if amount == "" {
			amount = e.amount
		}
		for kind, values := range e.keys {
			for _, v := range values {
				keys[fmt.Sprintf("%d=%s", kind, v)] = true
			}
		}
	}
	var hits []string
	paid, delivered, paidFirst := 0, 0, event.Micros(0)
	for _, e := range s {
		switch e.step {
		case "paid":
			if paid++; paid == 1 {
				paidFirst = e.time
			}
		case "delivered":
			delivered++
		}
	}
	if paid > 0 && delivered > 0 {
		hits = append(hits, fmt.Sprintf("0@%d", last.time+cfg.Session.Settle))
	}
	if paid > 0 {
		moment, n := paidFirst+cfg.Scenarios[1].Within, 0
		for _, e := range s {
			if e.step == "delivered" && e.time <= moment {
				n++
			}
		}
		if n == 0 {
			hits = append(hits, fmt.Sprintf("1@%d", moment))
		}
	}
	var line []string
	for _, e := range s[:min(len(s), cfg.TimelineEvents)] {
		line = append(line, fmt.Sprintf("%d:%s:%s", e.time, e.identity(), e.step))
	}
	res.rows[first.identity()] = fmt.Sprint(first.time, last.time, len(s), slices.Sorted(maps.Keys(keys)), user, amount, hits, line)

	res.start[first.identity()] = first.time
	every := cfg.Reports[0].Every
	window := first.time - (first.time%every+every)%every
	k := fmt.Sprintf("%d %s", window, user)
	if sums[k] == nil {
		sums[k] = make([]int64, 3)
	}
	sums[k][0]++
	for _, h := range hits {
		if strings.HasPrefix(h, "1@") {
			sums[k][1]++
		}
	}
	if amount != "" {
		var n int64
		fmt.Sscan(amount, &n)
		sums[k][2] += n
	}
}

// table is an Output that behaves as a store does: it keeps the newest change of each session and cell.
type table struct {
	t     *testing.T
	cfg   *Config
	seq   uint64
	rows  map[ID]string
	first map[ID]string
	start map[ID]event.Micros
	cells map[string]string
	late  map[string]bool

	wrote      map[ID]uint64 // sequence number of the last change, tombstones included
	wroteCells map[string]wroteCell
}

type wroteCell struct {
	cell Cell
	seq  uint64
}

func newTable(t *testing.T, cfg *Config) *table {
	return &table{t: t, cfg: cfg, rows: map[ID]string{}, first: map[ID]string{}, start: map[ID]event.Micros{}, cells: map[string]string{}, late: map[string]bool{},
		wrote: map[ID]uint64{}, wroteCells: map[string]wroteCell{}}
}

// after returns what was written after a sequence number, tombstones included.
func (o *table) after(seq uint64) (ids []ID, cells []Cell) {
	for id, s := range o.wrote {
		if s > seq {
			ids = append(ids, id)
		}
	}
	for _, c := range o.wroteCells {
		if c.seq > seq {
			cells = append(cells, c.cell)
		}
	}
	return ids, cells
}

func (o *table) next(seq uint64) {
	if seq != o.seq+1 {
		o.t.Fatalf("sequence %d follows %d", seq, o.seq)
	}
	o.seq = seq
}

func rowIdentity(e *RowEvent) string {
	return fmt.Sprintf("%02d/%05d/%010d/%05d", e.Source, e.Partition, e.Offset, e.Index)
}

func (o *table) Upsert(seq uint64, r *Row) {
	o.next(seq)
	var keys, hits, line []string
	for _, k := range r.Keys {
		keys = append(keys, fmt.Sprintf("%d=%s", k.Kind, k.Value))
	}
	for _, h := range r.Hits {
		hits = append(hits, fmt.Sprintf("%d@%d", h.Scenario, h.DecidedAt))
	}
	for i := range r.Events {
		e := &r.Events[i]
		line = append(line, fmt.Sprintf("%d:%s:%s", e.Time, rowIdentity(e), r.StepNames[e.Step]))
	}
	amount := ""
	if r.Fields[0].Present {
		amount = fmt.Sprint(r.Fields[0].Int)
	}
	sort.Strings(keys)
	o.rows[r.ID] = fmt.Sprint(r.Start, r.End, r.Count, keys, string(r.Fields[1].Text), amount, hits, line)
	o.wrote[r.ID] = seq
	o.first[r.ID] = rowIdentity(&r.Events[0])
	o.start[r.ID] = r.Start
}

func (o *table) Tombstone(seq uint64, id ID) {
	o.next(seq)
	if _, ok := o.wrote[id]; !ok {
		o.t.Fatalf("tombstone for %s, which was never handed out", id)
	}
	o.wrote[id] = seq
	delete(o.rows, id)
	delete(o.first, id)
}

func (o *table) Cell(seq uint64, c *Cell) {
	o.next(seq)
	k := fmt.Sprintf("%d %s", c.Window, c.By[0])
	o.wroteCells[k] = wroteCell{Cell{Report: c.Report, Window: c.Window, By: [][]byte{slices.Clone(c.By[0])}}, seq}
	if c.Sessions == 0 {
		delete(o.cells, k)
		return
	}
	o.cells[k] = fmt.Sprint(c.Measures)
}

func (o *table) Late(b *event.Batch, i int) {
	e := &b.Events[i]
	o.late[fmt.Sprintf("%02d/%05d/%010d/%05d", e.Source, e.Partition, e.Offset, e.Index)] = true
}

func (o *table) compare(want refResult, label string) {
	o.t.Helper()
	got := map[string]string{}
	for id, r := range o.rows {
		got[o.first[id]] = r
	}
	compareMaps(o.t, label+": sessions", got, want.rows)
	compareMaps(o.t, label+": cells", o.cells, want.cells)
}

func compareMaps(t *testing.T, label string, got, want map[string]string) {
	t.Helper()
	for k, w := range want {
		if g, ok := got[k]; !ok {
			t.Fatalf("%s: %s is missing:\nwant %s", label, k, w)
		} else if g != w {
			t.Fatalf("%s: %s differs:\n got %s\nwant %s", label, k, g, w)
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			t.Fatalf("%s: %s should not be there: %s", label, k, g)
		}
	}
}

// testConfig has two scenarios: 0 "paid and delivered", over the whole session; 1 "not delivered 50 after the first
// payment". Times are small numbers: gaps 40 and 25, cells of span.
func testConfig(span event.Micros, bound int, retention event.Micros) *Config {
	return &Config{
		Topics:         []string{"a", "b", "c"},
		Kinds:          []Kind{{"order", 40}, {"txn", 25}},
		Fields:         []Field{{"amount", true}, {"user", false}},
		Steps:          []string{"delivered", "paid"},
		Session:        Session{MaxSpan: span, Settle: 7, Retention: retention},
		TimelineEvents: bound,
		Scenarios: []Scenario{
			{Name: "done", When: func(f *Facts) bool { return f.Steps[1].Count > 0 && f.Steps[0].Count > 0 }},
			{
				Name: "stuck", FromText: "paid", Within: 50,
				When: func(f *Facts) bool { return f.Steps[1].Count > 0 && f.Steps[0].Count == 0 },
				From: func(f *Facts) (event.Micros, bool) { return f.Steps[1].First, f.Steps[1].Count > 0 },
			},
		},
		Reports: []Report{{Name: "r", Every: 100, By: []int{1}, Measures: []Measure{
			{"n", CountSessions, 0}, {"stuck", CountScenario, 1}, {"sum", SumField, 0},
		}}},
	}
}

// randomEvents makes events with few distinct key values, so that they link, bridge, merge and form endless chains.
func randomEvents(r *rand.Rand, n int, horizon event.Micros) []refEvent {
	steps := []string{"paid", "delivered", "seen", "other"}
	values := max(3, n/(3+r.IntN(30)))
	events := make([]refEvent, 0, n)
	grouped := r.IntN(3) == 0
	offsets := map[[2]int]int64{}
	for len(events) < n {
		source, part := r.IntN(3), r.IntN(2)
		off := offsets[[2]int{source, part}]
		offsets[[2]int{source, part}] += int64(1 + r.IntN(2)*r.IntN(5000))
		base := event.Micros(r.Int64N(int64(horizon)))
		rows := 1
		if r.IntN(5) == 0 {
			rows += r.IntN(4)
		}
		for index := range rows {
			e := refEvent{
				time: base + event.Micros(r.IntN(4)), source: source, partition: int32(part), offset: off, index: index * (1 + r.IntN(2)),
				step: steps[r.IntN(len(steps))], keys: map[int][]string{},
			}
			if rows > 1 {
				e.index = index
			}
			for kind := range 2 {
				for range r.IntN(3) - r.IntN(2) {
					if v := fmt.Sprintf("k%d", r.IntN(values)); !slices.Contains(e.keys[kind], v) {
						e.keys[kind] = append(e.keys[kind], v)
					}
				}
			}
			if r.IntN(3) == 0 {
				e.user = fmt.Sprintf("u%d", r.IntN(5))
			}
			if r.IntN(3) == 0 {
				e.amount = fmt.Sprint(r.IntN(1000) - 300)
			}
			if grouped {
				e.group = r.IntN(3)
			}
			if source == 2 {
				e.dedupe = fmt.Sprintf("%s-%d", e.step, r.IntN(4))
			}
			events = append(events, e)
		}
	}
	return events
}

// batchOf encodes events as a decoder would.
func batchOf(events []refEvent) *event.Batch {
	b := &event.Batch{}
	text := func(s string) (uint32, uint16) {
		off := uint32(len(b.Data))
		b.Data = append(b.Data, s...)
		return off, uint16(len(s))
	}
	for _, e := range events {
		for kind := range 2 {
			for _, v := range e.keys[kind] {
				off, n := text(v)
				b.Values = append(b.Values, event.Value{Bits: event.Hash(0, []byte(v)), Off: off, Len: n, ID: uint8(kind), Kind: event.KeyValue})
			}
		}
		if e.amount != "" {
			var n int64
			fmt.Sscan(e.amount, &n)
			b.Values = append(b.Values, event.Value{Bits: uint64(n), ID: 0, Kind: event.IntValue})
		}
		if e.user != "" {
			off, n := text(e.user)
			b.Values = append(b.Values, event.Value{Off: off, Len: n, ID: 1, Kind: event.StringValue})
		}
		if e.dedupe != "" {
			off, n := text(e.dedupe)
			b.Values = append(b.Values, event.Value{Off: off, Len: n, Kind: event.DedupeValue})
		}
		b.Events = append(b.Events, event.Event{
			Time: e.time, Offset: e.offset, Partition: e.partition, Index: uint16(e.index), Source: uint16(e.source),
			Step: b.Step([]byte(e.step)), Vals: uint32(len(b.Values)), Group: uint16(e.group),
		})
	}
	return b
}

package backfill

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// What publishing replaces is a closure: the staged sessions that intersect the range, the served ones that share events with
// them, the staged ones that share events with those, and so on until nothing is added. Then no event is in a session of the
// closure and in one that stays. Served sessions that lie wholly within the range are replaced in any case: this version says
// what is there.
//
// Only sessions near the edges need to be looked at one by one. A served session that is not wholly within the range has all its
// events before lowEnd or from highStart on, so a staged session that has none there shares none with it; it lies within the
// range, and so belongs to the closure.

// closureEventsMax bounds the events around the edges that are held at once, at about 60 bytes each.
const closureEventsMax = 20_000_000

// identity names an event: a hash of its topic, partition, offset and index.
type identity [2]uint64

func identityOf(topic uint64, partition int32, offset int64, index uint16) identity {
	var b [22]byte
	put := func(at, n int, v uint64) {
		for i := range n {
			b[at+i] = byte(v >> (8 * i))
		}
	}
	put(0, 8, topic)
	put(8, 4, uint64(uint32(partition)))
	put(12, 8, uint64(offset))
	put(20, 2, uint64(index))
	return identity{event.Hash(3, b[:]), event.Hash(4, b[:])}
}

func topicHash(topic string) uint64 { return event.Hash(0, []byte(topic)) }

// outline is a session as far as the closure looks at it.
type outline struct {
	id         correlate.ID
	start, end event.Micros
	// hidden is the time of the last event that is listed, where the timeline is cut; MaxTime where it is whole. Events behind it
	// are not known: such a session counts as sharing events with every session of the other side that has one of its keys and
	// reaches beyond that time.
	hidden event.Micros
	keys   []uint64
	events []outlineEvent
	served bool
	up     int32 // union-find
	in     bool  // of a root: the closure has it
}

type outlineEvent struct {
	id   identity
	time event.Micros
}

func (o *outline) isCut() bool { return o.hidden != event.MaxTime }

func keyHash(kind string, value []byte) uint64 { return event.Hash(event.Hash(5, []byte(kind)), value) }

// IncompleteError says that the closure reaches sessions that were not staged. A plan with these margins has them.
type IncompleteError struct{ Before, After event.Micros }

// Error says what to do.
func (e *IncompleteError) Error() string {
	return fmt.Sprintf("what is served links the edges of the range to sessions that were not computed: plan again with %v before and %v after the range, or deploy the version and switch to it as a whole",
		duration(e.Before), duration(e.After))
}

// closure finds what is replaced.
type closure struct {
	store  Serving
	job    string
	epoch  uint64
	cfg    *correlate.Config
	known  TimeRange // starts of which every session is staged
	span   event.Micros
	target TimeRange // what is published

	lowEnd, highStart event.Micros
	list              []outline
	events            int
	staged, serving   map[identity]int32 // the session that has an event
	stagedIDs         map[correlate.ID]int32
	servedIDs         map[correlate.ID]int32
	// served sessions with starts in these ranges are in the list
	low, high TimeRange
}

func newClosure(ctx context.Context, in *PublishInput, p *Plan, target TimeRange, epoch uint64) (*closure, error) {
	c := &closure{store: in.Store, job: in.Plan.Job, epoch: epoch, cfg: &in.Job.Config, known: p.Known, span: p.Span, target: target,
		staged: map[identity]int32{}, serving: map[identity]int32{}, stagedIDs: map[correlate.ID]int32{}, servedIDs: map[correlate.ID]int32{}}
	scope := store.Scope{Job: c.job}
	least, greatest, err := c.store.Straddling(ctx, scope, target.From)
	if err != nil {
		return nil, err
	}
	c.low = TimeRange{target.From, target.From}
	if least < target.From {
		c.lowEnd = greatest + 1
	} else {
		c.lowEnd = target.From
	}
	if least, _, err = c.store.Straddling(ctx, scope, target.To); err != nil {
		return nil, err
	}
	c.highStart = max(least, target.From)
	c.high = TimeRange{c.highStart, c.highStart}
	return c, nil
}

// isEdge tells whether events between two times can be those of a served session that is not wholly within the range.
func (c *closure) isEdge(start, end event.Micros) bool {
	return start < c.lowEnd || end >= c.highStart
}

// add takes in a session.
func (c *closure) add(o outline) error {
	if c.events += len(o.events); c.events > closureEventsMax {
		return usage("more than %d events around the edges of the range: publish a shorter range, or deploy the version and switch to it as a whole", closureEventsMax)
	}
	n := int32(len(c.list))
	o.up = n
	c.list = append(c.list, o)
	mine, other, ids := c.staged, c.serving, c.stagedIDs
	if o.served {
		mine, other, ids = c.serving, c.staged, c.servedIDs
	}
	ids[o.id] = n
	for _, e := range o.events {
		mine[e.id] = n
		if m, ok := other[e.id]; ok {
			c.union(n, m)
		}
	}
	return nil
}

func (c *closure) root(n int32) int32 {
	for c.list[n].up != n {
		c.list[n].up = c.list[c.list[n].up].up
		n = c.list[n].up
	}
	return n
}

func (c *closure) union(a, b int32) {
	if a, b = c.root(a), c.root(b); a != b {
		c.list[b].up = a
		c.list[a].in = c.list[a].in || c.list[b].in
	}
}

// addStaged takes in a staged session if it can share events with a served one that is not replaced in any case.
func (c *closure) addStaged(r *correlate.Row, topics []uint64) error {
	if !c.isEdge(r.Start, r.End) {
		return nil
	}
	o := outline{id: r.ID, start: r.Start, end: r.End, hidden: event.MaxTime}
	o.in = r.End >= c.target.From && r.Start < c.target.To
	if r.Count > int64(len(r.Events)) {
		o.hidden = r.Events[len(r.Events)-1].Time
	}
	for i := range r.Keys {
		o.keys = append(o.keys, keyHash(c.cfg.Kinds[r.Keys[i].Kind].Name, store.IndexedValue(r.Keys[i].Value)))
	}
	for i := range r.Events {
		e := &r.Events[i]
		o.events = append(o.events, outlineEvent{identityOf(topics[e.Source], e.Partition, e.Offset, e.Index), e.Time})
	}
	return c.add(o)
}

// grow loads served sessions and unites what shares events, until nothing is added.
func (c *closure) grow(ctx context.Context) error {
	for {
		lo, hi := c.target.From, c.target.To
		for i := range c.list {
			if o := &c.list[i]; c.list[c.root(int32(i))].in && !o.served {
				lo, hi = min(lo, o.start), max(hi, o.end+1)
			}
		}
		from, _, err := c.store.Straddling(ctx, store.Scope{Job: c.job}, lo)
		if err != nil {
			return err
		}
		from = min(from, lo)
		if from >= c.low.From && hi <= c.high.To {
			break
		}
		if from < c.low.From {
			if err := c.load(ctx, TimeRange{from, c.low.From}, 0); err != nil {
				return err
			}
			c.low.From = from
		}
		if hi > c.high.To {
			if err := c.load(ctx, TimeRange{c.high.To, hi}, c.target.To); err != nil {
				return err
			}
			c.high.To = hi
		}
		c.uniteCut()
	}
	return c.complete()
}

// load takes in the served sessions that start in a range, and end at endFrom or later.
func (c *closure) load(ctx context.Context, r TimeRange, endFrom event.Micros) error {
	for x, err := range copiesOf(ctx, c.store, c.job, r, endFrom, c.epoch) {
		if err != nil {
			return err
		}
		o, err := servedOutline(x)
		if err != nil {
			return err
		}
		if err := c.add(o); err != nil {
			return err
		}
	}
	return nil
}

// copiesOf yields the served sessions that start in a range, of one serving map.
func copiesOf(ctx context.Context, s Serving, job string, r TimeRange, endFrom event.Micros, epoch uint64) iter.Seq2[*store.Session, error] {
	return func(yield func(*store.Session, error) bool) {
		if r.empty() {
			return
		}
		q := store.CopyQuery{Scope: store.Scope{Job: job}, Page: store.Page{Limit: store.PageRowsMax}, From: r.From, To: r.To, EndFrom: endFrom}
		for {
			page, err := s.Copies(ctx, q)
			if err == nil && page.MapEpoch != epoch {
				err = fmt.Errorf("%w: it has epoch %d, expected was %d", store.ErrStale, page.MapEpoch, epoch)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Items {
				if !yield(&page.Items[i], nil) {
					return
				}
			}
			if q.After = page.Next; q.After == "" {
				return
			}
		}
	}
}

// servedBody is what a backfill wants of the text of a served session.
type servedBody struct {
	Fields    map[string]any
	Scenarios []string
	Keys      map[string][]string
	User      string
	Revision  int64
	Decided   map[string]stampText
	Truncated bool
	Events    []servedEvent
}

type servedEvent struct {
	Source, Topic string
	Partition     int32
	Offset        int64
	Index         uint16
	Time          stampText
	Step          string
}

// stampText is a time in the text of a session.
type stampText event.Micros

// UnmarshalJSON reads RFC 3339.
func (s *stampText) UnmarshalJSON(text []byte) error {
	t, err := time.Parse(`"`+time.RFC3339+`"`, string(text))
	*s = stampText(t.UnixMicro())
	return err
}

func parseBody(x *store.Session) (*servedBody, error) {
	b := new(servedBody)
	d := json.NewDecoder(bytes.NewReader(x.Body))
	d.UseNumber()
	if err := d.Decode(b); err != nil {
		return nil, fmt.Errorf("served session %s: %w", x.ID, err)
	}
	return b, nil
}

func servedOutline(x *store.Session) (o outline, err error) {
	b, err := parseBody(x)
	if err != nil {
		return o, err
	}
	o = outline{id: x.ID, start: x.Start, end: x.End, hidden: event.MaxTime, served: true}
	topics := map[string]uint64{}
	for _, e := range b.Events {
		h, ok := topics[e.Topic]
		if !ok {
			h = topicHash(e.Topic)
			topics[e.Topic] = h
		}
		o.events = append(o.events, outlineEvent{identityOf(h, e.Partition, e.Offset, e.Index), event.Micros(e.Time)})
	}
	if b.Truncated && len(o.events) > 0 {
		o.hidden = o.events[len(o.events)-1].time
	}
	for _, k := range x.Keys {
		o.keys = append(o.keys, keyHash(k.Kind, k.Value))
	}
	return o, nil
}

// uniteCut unites sessions whose timelines are cut with those that may have the events behind the cut.
func (c *closure) uniteCut() {
	byKey := map[uint64][]int32{}
	for i := range c.list {
		if o := &c.list[i]; o.isCut() {
			for _, k := range o.keys {
				byKey[k] = append(byKey[k], int32(i))
			}
		}
	}
	if len(byKey) == 0 {
		return
	}
	for i := range c.list {
		o := &c.list[i]
		for _, k := range o.keys {
			for _, n := range byKey[k] {
				x := &c.list[n]
				if x.served != o.served && o.end >= x.hidden && o.start <= x.end {
					c.union(int32(i), n)
				}
			}
		}
	}
}

// complete checks that every event of a served session that is replaced is in a staged one, if it is in any.
func (c *closure) complete() error {
	var need IncompleteError
	from := c.known.From
	if from > math.MinInt64+c.span {
		from += c.span // a session with an event of that time may start so much earlier
	}
	check := func(t event.Micros) {
		if t < from {
			need.Before = max(need.Before, c.target.From-t+c.span)
		}
		if t >= c.known.To {
			need.After = max(need.After, t+1-c.target.To)
		}
	}
	for i := range c.list {
		o := &c.list[i]
		if !o.served || !c.list[c.root(int32(i))].in {
			continue
		}
		for _, e := range o.events {
			if _, ok := c.staged[e.id]; !ok {
				check(e.time)
			}
		}
		if o.isCut() {
			check(o.end)
		}
	}
	if need != (IncompleteError{}) {
		return &need
	}
	return nil
}

// hasStaged tells whether a staged session is in the closure. One that is not at an edge lies within the range.
func (c *closure) hasStaged(id correlate.ID) bool {
	n, ok := c.stagedIDs[id]
	return !ok || c.list[c.root(n)].in
}

// replaces tells whether a served session is replaced.
func (c *closure) replaces(id correlate.ID, start, end event.Micros) bool {
	if start >= c.target.From && end < c.target.To {
		return true
	}
	n, ok := c.servedIDs[id]
	return ok && c.list[c.root(n)].in
}

// hasEvent tells whether an event is in a staged session of the closure, as far as edges go.
func (c *closure) hasEvent(e identity) bool {
	n, ok := c.staged[e]
	return ok && c.list[c.root(n)].in
}

// hull is the range of the starts of all that is replaced or comes in its place, the target included.
func (c *closure) hull() TimeRange {
	r := c.target
	for i := range c.list {
		if o := &c.list[i]; c.list[c.root(int32(i))].in {
			r.From, r.To = min(r.From, o.start), max(r.To, o.start+1)
		}
	}
	return r
}

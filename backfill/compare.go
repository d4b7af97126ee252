package backfill

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/store"
)

// Limits of a comparison.
const (
	FirstDefault    = 100
	reportMax       = 10_000     // differences in the report
	examinedMax     = 200_000    // sessions that differ and are looked at
	comparedMax     = 20_000_000 // served sessions, of each of which an id and a digest are held
	identitiesMax   = 5_000_000  // late events and rejects
	wholeRecord     = 1<<16 - 1  // index for a record as a whole
	differentEvents = "events"
)

// Kind says how a session differs.
type Kind string

// The kinds.
const (
	ChangedKind Kind = "changed"
	MissingKind Kind = "missing" // staged, not served
	ExtraKind   Kind = "extra"   // served, not staged
)

// Cause says why a session differs, as far as that is known.
type Cause string

// The causes.
const (
	LateCause    Cause = "late"    // events of it were late for the live job
	RejectCause  Cause = "reject"  // a record of it did not decode in one of both
	VersionCause Cause = "version" // another version is served
	UnknownCause Cause = "unknown"
)

// CompareInput says what to compare. Job must be the compiled spec of the plan's version.
type CompareInput struct {
	Plan    PlanRef
	Job     *operator.Job
	Objects ObjectStore
	Store   Serving
	First   int    // how many differences to return; 0: FirstDefault
	Report  string // key of an object that gets the comparison with more differences; empty: none
}

// Comparison is how what is staged differs from what is served, of the sessions that start in the plan's range.
//
// Sessions are matched by the events that they share. One that was split, or several that were merged, are one difference,
// which counts as many changed sessions as are staged of it.
type Comparison struct {
	Plan     PlanRef         `json:"plan"`
	Range    TimeRange       `json:"range"`
	MapEpoch uint64          `json:"map_epoch"` // of what is served
	Same     int64           `json:"same"`
	Changed  int64           `json:"changed"`
	Missing  int64           `json:"missing"`
	Extra    int64           `json:"extra"`
	Causes   map[Cause]int64 `json:"causes"` // of changed, missing and extra sessions; one may have several
	First    []Difference    `json:"first"`
	// Unexamined counts sessions that differ and were not looked at, because there are so many: they are matched by their ids alone.
	Unexamined int64 `json:"unexamined"`
}

// Equal tells whether nothing differs.
func (c *Comparison) Equal() bool { return c.Changed+c.Missing+c.Extra == 0 }

// Difference is one session that differs, or several that took the place of one another.
type Difference struct {
	Kind   Kind         `json:"kind"`
	Start  event.Micros `json:"start_us"`
	Staged []string     `json:"staged,omitempty"` // ids
	Served []string     `json:"served,omitempty"`
	// Fields are what differs: events, start, end, user, scenarios, keys.<kind>, fields.<name>.
	Fields []string `json:"fields,omitempty"`
	Causes []Cause  `json:"causes"`

	sessions int64 // of the range, that it counts for
}

// comparing is a comparison under way.
type comparing struct {
	in      *CompareInput
	plan    *Plan
	out     *Comparison
	served  map[correlate.ID]correlate.Digest // that no staged session equals, so far
	list    []comparedSession
	byEvent [2]map[identity]int32 // by side: staged, served
	late    map[identity]bool
	rejects [2]map[identity]bool // records: that the backfill rejects, that were rejected live
	version map[int64]string     // of generations
	serving store.Map
}

// comparedSession is a session that differs.
type comparedSession struct {
	*servedBody
	id         correlate.ID
	start, end event.Micros
	side       int  // 0: staged, 1: served
	own        bool // it starts in the range; others are there to be matched
	events     []identity
	records    []identity
	up         int32
}

// Compare compares what is staged with what is served.
func Compare(ctx context.Context, in CompareInput) (*Comparison, error) {
	if in.Job == nil || in.Objects == nil || in.Store == nil || in.First < 0 {
		return nil, usage("a comparison without a job, objects or a store")
	}
	if in.First == 0 {
		in.First = FirstDefault
	}
	p, err := LoadPlan(ctx, in.Objects, in.Plan)
	if err != nil {
		return nil, err
	}
	c := &comparing{in: &in, plan: p, served: map[correlate.ID]correlate.Digest{}, late: map[identity]bool{}, version: map[int64]string{},
		out: &Comparison{Plan: in.Plan, Range: p.Range, Causes: map[Cause]int64{}, First: []Difference{}}}
	for side := range 2 {
		c.byEvent[side], c.rejects[side] = map[identity]int32{}, map[identity]bool{}
	}
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("compare %s: %w", in.Plan, err)
	}
	return c.out, nil
}

func (c *comparing) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{c.learn, c.readServed, c.readStaged, c.examineServed} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	differences := c.differences()
	for i := range differences {
		d := &differences[i]
		for _, cause := range d.Causes {
			c.out.Causes[cause] += d.sessions
		}
	}
	c.out.First = differences[:min(len(differences), reportMax)]
	if c.in.Report != "" {
		text, err := encodeJSON(c.out)
		if err != nil {
			return err
		}
		if _, err := c.in.Objects.Put(ctx, c.in.Report, bytes.NewReader(text), int64(len(text))); err != nil {
			return fmt.Errorf("write %s: %w", c.in.Report, err)
		}
	}
	c.out.First = c.out.First[:min(len(c.out.First), c.in.First)]
	return nil
}

// learn reads what may explain differences.
func (c *comparing) learn(ctx context.Context) (err error) {
	job := c.in.Plan.Job
	if c.serving, err = c.in.Store.ServingMap(ctx, job); err != nil {
		return err
	}
	c.out.MapEpoch = c.serving.Epoch
	generations, err := c.in.Store.Generations(ctx, job)
	if err != nil {
		return err
	}
	for _, g := range generations {
		c.version[g.ID] = g.Version
	}
	around := TimeRange{c.plan.Owned.From, c.plan.Owned.To + c.plan.Span}
	for e, err := range exceptionsOf(ctx, c.in.Store, job, store.Late, around) {
		if err != nil {
			return err
		}
		if len(c.late) == identitiesMax {
			break
		}
		c.late[identityOf(topicHash(e.Topic), e.Partition, e.Offset, uint16(e.Index))] = true
	}
	for e, err := range exceptionsOf(ctx, c.in.Store, job, store.Rejected, TimeRange{event.MinTime, event.MaxTime}) {
		if err != nil {
			return err
		}
		if len(c.rejects[1]) == identitiesMax {
			break
		}
		c.rejects[1][identityOf(topicHash(e.Topic), e.Partition, e.Offset, wholeRecord)] = true
	}
	return nil
}

// readServed takes note of what is served.
func (c *comparing) readServed(ctx context.Context) error {
	for x, err := range copiesOf(ctx, c.in.Store, c.in.Plan.Job, c.plan.Range, 0, c.serving.Epoch) {
		if err != nil {
			return err
		}
		if len(c.served) == comparedMax {
			return usage("more than %d sessions are served: compare a shorter range", comparedMax)
		}
		c.served[x.ID] = x.Digest
	}
	return nil
}

// readStaged finds the staged sessions that differ.
func (c *comparing) readStaged(ctx context.Context) error {
	staged, err := stagedSlices(ctx, c.in.Objects, c.plan)
	if err != nil {
		return err
	}
	encoder := store.NewEncoder(&c.in.Job.Config, results.MetaOf(c.in.Job.Spec))
	for _, m := range staged {
		for row, err := range readRows(ctx, c.in.Objects, m.Rows, &c.in.Job.Config) {
			if err != nil {
				return err
			}
			if x := row.reject; x != nil {
				if topic := c.in.Job.Config.Topics[x.Source]; len(c.rejects[0]) < identitiesMax {
					c.rejects[0][identityOf(topicHash(topic), x.Partition, x.Offset, wholeRecord)] = true
				}
				continue
			}
			if err := c.staged(encoder, row.session); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparing) staged(encoder *store.Encoder, r *correlate.Row) error {
	own := c.plan.Range.contains(r.Start)
	if !own && (r.End < c.plan.Range.From || r.Start >= c.plan.Range.To) {
		return nil
	}
	var b store.Batch
	encoder.Upsert(&b, 0, r)
	x := &b.Sessions[0]
	if digest, ok := c.served[r.ID]; own && ok {
		if digest == x.Digest {
			c.out.Same++
			delete(c.served, r.ID)
			return nil
		}
	}
	if own && len(c.list) >= examinedMax {
		c.out.Unexamined++
		if _, ok := c.served[r.ID]; ok {
			c.out.Changed++
			delete(c.served, r.ID)
		} else {
			c.out.Missing++
		}
		return nil
	}
	return c.examine(x, 0, own)
}

// examine takes in a session that differs, or that may have what others lack.
func (c *comparing) examine(x *store.Session, side int, own bool) error {
	body, err := parseBody(x)
	if err != nil {
		return err
	}
	s := comparedSession{servedBody: body, id: x.ID, start: x.Start, end: x.End, side: side, own: own, up: int32(len(c.list))}
	for i := range body.Events {
		e := &body.Events[i]
		topic := topicHash(e.Topic)
		s.events = append(s.events, identityOf(topic, e.Partition, e.Offset, e.Index))
		s.records = append(s.records, identityOf(topic, e.Partition, e.Offset, wholeRecord))
	}
	n := s.up
	c.list = append(c.list, s)
	for _, e := range s.events {
		c.byEvent[side][e] = n
		if other, ok := c.byEvent[1-side][e]; ok {
			c.union(n, other)
		}
	}
	return nil
}

func (c *comparing) root(n int32) int32 {
	for c.list[n].up != n {
		c.list[n].up = c.list[c.list[n].up].up
		n = c.list[n].up
	}
	return n
}

func (c *comparing) union(a, b int32) { c.list[c.root(b)].up = c.root(a) }

// examineServed looks at the served sessions that no staged one equals, and at those around the range that may share events.
func (c *comparing) examineServed(ctx context.Context) error {
	r := c.plan.Range
	least, _, err := c.in.Store.Straddling(ctx, store.Scope{Job: c.in.Plan.Job}, r.From)
	if err != nil {
		return err
	}
	last := r.To
	for i := range c.list {
		last = max(last, c.list[i].end+1)
	}
	for _, part := range []struct {
		r       TimeRange
		endFrom event.Micros
	}{{TimeRange{least, r.From}, r.From}, {r, 0}, {TimeRange{r.To, last}, 0}} {
		for x, err := range copiesOf(ctx, c.in.Store, c.in.Plan.Job, part.r, part.endFrom, c.serving.Epoch) {
			if err != nil {
				return err
			}
			own := part.r == r
			if _, differs := c.served[x.ID]; own && !differs {
				continue
			}
			if own && len(c.list) >= 2*examinedMax {
				c.out.Unexamined++
				c.out.Extra++
				continue
			}
			if err := c.examine(x, 1, own); err != nil {
				return err
			}
		}
	}
	return nil
}

// differences puts together what shares events, and counts it.
func (c *comparing) differences() (list []Difference) {
	groups := map[int32][]int32{}
	for i := range c.list {
		root := c.root(int32(i))
		groups[root] = append(groups[root], int32(i))
	}
	for _, root := range slices.Sorted(maps.Keys(groups)) {
		if d, ok := c.difference(groups[root]); ok {
			list = append(list, d)
		}
	}
	slices.SortStableFunc(list, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(fmt.Sprint(a.Staged, a.Served), fmt.Sprint(b.Staged, b.Served)))
	})
	return list
}

func (c *comparing) difference(group []int32) (d Difference, ok bool) {
	var sides [2][]*comparedSession
	var own [2]int64
	d.Start = event.MaxTime
	for _, n := range group {
		s := &c.list[n]
		sides[s.side] = append(sides[s.side], s)
		if s.own {
			own[s.side]++
		}
		d.Start = min(d.Start, s.start)
	}
	if own[0]+own[1] == 0 {
		return d, false
	}
	for _, s := range sides[0] {
		d.Staged = append(d.Staged, s.id.String())
	}
	for _, s := range sides[1] {
		d.Served = append(d.Served, s.id.String())
	}
	d.sessions = cmp.Or(own[0], own[1])
	switch {
	case len(sides[1]) == 0:
		d.Kind = MissingKind
		c.out.Missing += d.sessions
	case len(sides[0]) == 0:
		d.Kind = ExtraKind
		c.out.Extra += d.sessions
	default:
		d.Kind = ChangedKind
		d.Fields = different(sides)
		if len(d.Fields) == 0 { // equal, and found only because it lies around the range
			c.out.Same += d.sessions
			return d, false
		}
		c.out.Changed += d.sessions
	}
	d.Causes = c.causes(sides)
	return d, true
}

// different names what differs between a staged and a served session; several on a side differ in their events.
func different(sides [2][]*comparedSession) (fields []string) {
	if len(sides[0]) > 1 || len(sides[1]) > 1 {
		return []string{differentEvents}
	}
	a, b := sides[0][0], sides[1][0]
	note := func(differs bool, name string) {
		if differs {
			fields = append(fields, name)
		}
	}
	note(!slices.Equal(a.events, b.events) || !slices.Equal(a.Events, b.Events), differentEvents)
	note(a.start != b.start, "start")
	note(a.end != b.end, "end")
	note(a.User != b.User, "user")
	note(!slices.Equal(a.Scenarios, b.Scenarios) || !maps.Equal(a.Decided, b.Decided), "scenarios")
	for _, kind := range sortedUnion(a.Keys, b.Keys) {
		note(!slices.Equal(a.Keys[kind], b.Keys[kind]), "keys."+kind)
	}
	for _, name := range sortedUnion(a.Fields, b.Fields) {
		note(a.Fields[name] != b.Fields[name], "fields."+name)
	}
	note(a.Revision != b.Revision, "revision")
	return fields
}

func sortedUnion[V any](a, b map[string]V) []string {
	list := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(list)
	return slices.Compact(list)
}

// causes explains a difference.
func (c *comparing) causes(sides [2][]*comparedSession) (list []Cause) {
	var has [2]map[identity]bool
	for side := range sides {
		has[side] = map[identity]bool{}
		for _, s := range sides[side] {
			for _, e := range s.events {
				has[side][e] = true
			}
		}
	}
	late, reject, version := false, false, false
	for side := range sides {
		for _, s := range sides[side] {
			for i, e := range s.events {
				if has[1-side][e] {
					continue
				}
				late = late || side == 0 && c.late[e]
				reject = reject || c.rejects[1-side][s.records[i]]
			}
			version = version || c.versionAt(s.start) != strconv.Itoa(c.plan.Version)
		}
	}
	for _, x := range []struct {
		holds bool
		cause Cause
	}{{late, LateCause}, {reject, RejectCause}, {version, VersionCause}} {
		if x.holds {
			list = append(list, x.cause)
		}
	}
	if len(list) == 0 {
		list = []Cause{UnknownCause}
	}
	return list
}

// versionAt is the version that serves sessions of a start; where none is served it is the plan's.
func (c *comparing) versionAt(start event.Micros) string {
	for _, a := range c.serving.Ranges {
		if start >= a.From && start < a.To {
			return c.version[a.Generation]
		}
	}
	return strconv.Itoa(c.plan.Version)
}

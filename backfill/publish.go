package backfill

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/store"
)

// Serving is what publishing needs of the serving store, as store.Store has it.
type Serving interface {
	ServingMap(ctx context.Context, job string) (store.Map, error)
	Switch(ctx context.Context, r store.SwitchRequest) (store.Map, error)
	Generations(ctx context.Context, job string) ([]store.Generation, error)
	CreateGeneration(ctx context.Context, job, version, kind string) (store.Generation, error)
	DropGeneration(ctx context.Context, job string, generation int64) error
	TakeEpoch(ctx context.Context, job string, generation int64, shard int) (uint64, error)
	Write(ctx context.Context, o store.Owner, b *store.Batch) error
	Copies(ctx context.Context, q store.CopyQuery) (store.CopyPage, error)
	Straddling(ctx context.Context, scope store.Scope, at event.Micros) (least, greatest event.Micros, err error)
	Exceptions(ctx context.Context, q store.ExceptionQuery) (store.Result[store.ExceptionRow], error)
}

const (
	publishRows     = 2000     // of one write …
	publishBytes    = 16 << 20 // … and bytes
	publishAttempts = 20       // with a serving map that changes meanwhile
	alignMax        = 400 * 24 * SliceDefault
	clipsMax        = 1000
	generationKind  = "backfill:"
)

// Errors of Publish.
var (
	// ErrUnfinished: some slices are not done.
	ErrUnfinished = errors.New("not all slices are done")
	// ErrUnsealed: nothing of the range is so old that the live job cannot change it any more.
	ErrUnsealed = errors.New("the live job can still change all of the range")
)

// PublishInput says what to publish. Job must be the compiled spec of the plan's version.
type PublishInput struct {
	Plan      PlanRef
	Job       *operator.Job
	Objects   ObjectStore
	Store     Serving
	RequestID string // the same request again is done once
	Actor     string
	Reason    string

	// Sealed bounds what may change: no served session that starts before it can change any more. Where a live shard runs that
	// is its watermark − retention − max_span − the largest gap, the least of all shards and versions that are served. 0: no bound.
	Sealed event.Micros
	// Windows are the lengths of the report windows of the versions that are served, so that none is served in two parts; those
	// of Job are added.
	Windows  []event.Micros
	Progress func(PublishProgress) // called with each write, from the calling goroutine; may be nil
}

// PublishProgress is how far publishing is.
type PublishProgress struct {
	Sessions int64 `json:"sessions"` // written
	Copied   int64 `json:"copied"`
}

// PublishResult is what was published.
type PublishResult struct {
	Generation int64     `json:"generation"`
	Attempt    int       `json:"attempt"`
	MapEpoch   uint64    `json:"map_epoch"` // of the serving map that serves it first
	Range      TimeRange `json:"range"`     // what is computed anew; shorter than the plan's where its end is not sealed
	Served     TimeRange `json:"served"`    // what the generation serves

	Sessions   int64  `json:"sessions"`    // that are new
	Copied     int64  `json:"copied"`      // that stay as they were
	EdgeStaged int64  `json:"edge_staged"` // of the new ones reach beyond the range
	EdgeServed int64  `json:"edge_served"` // that reach beyond the range were replaced
	Cells      int64  `json:"cells"`
	Exceptions int64  `json:"exceptions"`
	Digest     string `json:"digest"`         // of all sessions of the generation
	Reports    string `json:"reports_digest"` // of its cells

	Notes   []string `json:"notes,omitempty"`
	Existed bool     `json:"existed"` // the request was done before
}

// published is a switch that was decided: its generation is complete.
type published struct {
	Format        int    `json:"format"`
	RequestID     string `json:"request_id"`
	ExpectedEpoch uint64 `json:"expected_epoch"`
	PublishResult
}

// Publish puts the closure of a backfill into service, in one switch of the serving map: readers see what was served before
// or all of the new, and no event in two sessions. It may be repeated with its request id after whatever error; a switch of
// others that comes between makes it compute the closure again.
func Publish(ctx context.Context, in PublishInput) (PublishResult, error) {
	if in.Job == nil || in.Objects == nil || in.Store == nil || in.RequestID == "" {
		return PublishResult{}, usage("publishing without a job, objects, a store or a request id")
	}
	p, err := LoadPlan(ctx, in.Objects, in.Plan)
	if err != nil {
		return PublishResult{}, err
	}
	if in.Progress == nil {
		in.Progress = func(PublishProgress) {}
	}
	r := &publishing{in: &in, plan: p}
	result, err := r.run(ctx)
	if err != nil {
		return result, fmt.Errorf("publish %s: %w", in.Plan, err)
	}
	return result, nil
}

type publishing struct {
	in     *PublishInput
	plan   *Plan
	staged []*SliceManifest // nil until they are needed
}

// run tries until a switch succeeds. An attempt that was decided is tried before a new one is made: it may have been done.
func (r *publishing) run(ctx context.Context) (PublishResult, error) {
	for range publishAttempts {
		last, n, err := r.lastAttempt(ctx)
		if err != nil {
			return PublishResult{}, err
		}
		if last != nil {
			done, err := r.switchTo(ctx, last)
			if err == nil {
				return done, nil
			}
			if !errors.Is(err, store.ErrStale) && !errors.Is(err, store.ErrNoGeneration) {
				return PublishResult{}, err
			}
		}
		next, err := r.prepare(ctx, n+1)
		if errors.Is(err, store.ErrStale) || errors.Is(err, store.ErrServed) {
			continue
		}
		if err != nil {
			return PublishResult{}, err
		}
		mine, err := commit(ctx, r.in.Objects, r.in.Plan.attemptKey(r.in.RequestID, next.Attempt), next, strings.ToLower(rand.Text()))
		if err != nil {
			return PublishResult{}, err
		}
		if !mine {
			continue
		}
		done, err := r.switchTo(ctx, next)
		if err == nil {
			done.Existed = false
			return done, nil
		}
		if !errors.Is(err, store.ErrStale) && !errors.Is(err, store.ErrNoGeneration) {
			return PublishResult{}, err
		}
	}
	return PublishResult{}, fmt.Errorf("%w %d times while this was prepared: try again", store.ErrStale, publishAttempts)
}

// lastAttempt returns the last switch of this request that was decided; nil: none.
func (r *publishing) lastAttempt(ctx context.Context) (last *published, n int, err error) {
	prefix := r.in.Plan.requestPrefix(r.in.RequestID)
	key := ""
	for info, err := range r.in.Objects.List(ctx, prefix, "") {
		if err != nil {
			return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
		}
		key = info.Key
	}
	if key == "" {
		return nil, 0, nil
	}
	last = new(published)
	found, err := getJSON(ctx, r.in.Objects, key, last)
	if err == nil && (!found || last.Format != stageFormat || last.RequestID != r.in.RequestID) {
		err = fmt.Errorf("%w: %s is not of request %q", ErrStaged, key, r.in.RequestID)
	}
	if err != nil {
		return nil, 0, err
	}
	return last, last.Attempt, nil
}

// switchTo puts a prepared generation into service. Each attempt has a request id of its own at the store, and rests on an epoch
// of the map, so that of all attempts one at most is done.
func (r *publishing) switchTo(ctx context.Context, p *published) (PublishResult, error) {
	m, err := r.in.Store.Switch(ctx, store.SwitchRequest{
		Job: r.in.Plan.Job, RequestID: switchID(r.in.RequestID, p.Attempt), ExpectedEpoch: p.ExpectedEpoch,
		Assignments: []store.Assignment{{From: p.Served.From, To: p.Served.To, Generation: p.Generation}},
		Actor:       r.in.Actor, Reason: r.in.Reason})
	if err != nil {
		return PublishResult{}, err
	}
	result := p.PublishResult
	result.MapEpoch, result.Existed = m.Epoch, true
	return result, nil
}

// switchID names an attempt within the store's bound for names.
func switchID(request string, attempt int) string {
	const room = 8
	suffix := fmt.Sprintf("/%d", attempt)
	if len(request)+room > store.NameBytesMax {
		request = fmt.Sprintf("%s…%016x", strings.ToValidUTF8(request[:store.NameBytesMax-room-20], ""), event.Hash(0, []byte(request)))
	}
	return request + suffix
}

// kind names the generations of a request.
func (r *publishing) kind() string {
	return fmt.Sprintf("%s%s/%016x", generationKind, r.in.Plan.ID, event.Hash(0, []byte(r.in.RequestID)))
}

// prepare finds the closure and fills a generation.
func (r *publishing) prepare(ctx context.Context, attempt int) (*published, error) {
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	m, err := r.in.Store.ServingMap(ctx, r.in.Plan.Job)
	if err != nil {
		return nil, err
	}
	out := &published{Format: stageFormat, RequestID: r.in.RequestID, ExpectedEpoch: m.Epoch}
	out.Attempt = attempt
	c, err := r.closure(ctx, m.Epoch, &out.PublishResult)
	if err != nil {
		return nil, err
	}
	g, err := r.generation(ctx)
	if err != nil {
		return nil, err
	}
	epoch, err := r.in.Store.TakeEpoch(ctx, r.in.Plan.Job, g.ID, 0)
	if err != nil {
		return nil, err
	}
	out.Generation = g.ID
	w := r.newFilling(store.Owner{Generation: g.ID, Epoch: epoch}, c, &out.PublishResult)
	if err := w.fill(ctx, r.staged); err != nil {
		return nil, err
	}
	return out, nil
}

// load reads the manifests of all slices.
func (r *publishing) load(ctx context.Context) (err error) {
	if r.staged == nil {
		r.staged, err = stagedSlices(ctx, r.in.Objects, r.plan)
	}
	return err
}

// stagedSlices returns the manifests of all slices of a plan, all chunks of which must be done.
func stagedSlices(ctx context.Context, objects ObjectStore, p *Plan) (list []*SliceManifest, err error) {
	for chunk := range p.Chunks {
		for slice := 0; ; slice++ {
			m, err := loadSliceManifest(ctx, objects, p.Ref, chunk, slice)
			if err != nil {
				return nil, err
			}
			if m == nil {
				return nil, fmt.Errorf("%w: slice %d of chunk %d", ErrUnfinished, slice, chunk)
			}
			list = append(list, m)
			if m.Done {
				break
			}
		}
	}
	return list, nil
}

// generation returns an empty generation. What an earlier attempt left is dropped: one that was switched to is served, and the
// drop fails.
func (r *publishing) generation(ctx context.Context) (store.Generation, error) {
	version := strconv.Itoa(r.plan.Version)
	list, err := r.in.Store.Generations(ctx, r.in.Plan.Job)
	if err != nil {
		return store.Generation{}, err
	}
	for _, g := range list {
		if g.Kind != r.kind() || g.Version != version {
			continue
		}
		if err := r.in.Store.DropGeneration(ctx, r.in.Plan.Job, g.ID); err != nil {
			return g, err
		}
	}
	return r.in.Store.CreateGeneration(ctx, r.in.Plan.Job, version, r.kind())
}

// closure finds what is replaced, in as much of the range as cannot change any more.
func (r *publishing) closure(ctx context.Context, epoch uint64, out *PublishResult) (*closure, error) {
	unit, err := r.align()
	if err != nil {
		return nil, err
	}
	target, sealed := r.plan.Range, r.in.Sealed
	if sealed == 0 {
		sealed = event.MaxTime
	}
	for range clipsMax {
		if target.To = min(target.To, sealed); target.empty() {
			return nil, fmt.Errorf("%w: nothing is left of %s that is older than %s", ErrUnsealed, r.plan.Range, timeText(sealed))
		}
		c, err := r.closureOf(ctx, target, epoch)
		if err != nil {
			return nil, err
		}
		hull := c.hull()
		served := TimeRange{floorTo(hull.From, unit), ceilTo(hull.To, unit)}
		if served.To <= sealed {
			if target != r.plan.Range {
				out.Notes = append(out.Notes, fmt.Sprintf("the end is moved from %s to %s: later sessions can still change in the live job",
					timeText(r.plan.Range.To), timeText(target.To)))
			}
			out.Range, out.Served = target, served
			return c, nil
		}
		target.To = min(target.To-(served.To-sealed), floorTo(sealed, unit))
	}
	return nil, fmt.Errorf("%w: the sessions around its end reach ever further", ErrUnsealed)
}

// closureOf reads the staged sessions around the edges of a range, and finds what they replace.
func (r *publishing) closureOf(ctx context.Context, target TimeRange, epoch uint64) (*closure, error) {
	c, err := newClosure(ctx, r.in, r.plan, target, epoch)
	if err != nil {
		return nil, err
	}
	cfg := &r.in.Job.Config
	topics := make([]uint64, len(cfg.Topics))
	for i, t := range cfg.Topics {
		topics[i] = topicHash(t)
	}
	for _, m := range r.staged {
		if m.SliceResult.Sessions == 0 || !c.isEdge(m.Least, m.Greatest) {
			continue
		}
		for row, err := range readRows(ctx, r.in.Objects, m.Rows, cfg) {
			if err != nil {
				return nil, err
			}
			if row.session == nil {
				continue
			}
			if err := c.addStaged(row.session, topics); err != nil {
				return nil, err
			}
		}
	}
	return c, c.grow(ctx)
}

// align returns the unit at whose multiples all report windows begin.
func (r *publishing) align() (event.Micros, error) {
	unit := event.Micros(1)
	windows := r.in.Windows
	for _, report := range r.in.Job.Config.Reports {
		windows = append(windows[:len(windows):len(windows)], report.Every)
	}
	for _, w := range windows {
		if w <= 0 {
			return 0, usage("a report window of %d µs", w)
		}
		a, b := unit, w
		for b != 0 {
			a, b = b, a%b
		}
		if unit/a > alignMax/w {
			return 0, usage("the windows of the reports begin at one time only every %v: choose lengths that divide one another", duration(unit/a)*time.Duration(w))
		}
		unit = unit / a * w
	}
	return unit, nil
}

// filling writes a generation.
type filling struct {
	r       *publishing
	owner   store.Owner
	closure *closure
	out     *PublishResult
	encoder *store.Encoder
	tally   *correlate.Tally
	meta    results.Meta
	batch   store.Batch
	bytes   int
	seq     uint64
	span    event.Micros
	digest  correlate.Digest
}

func (r *publishing) newFilling(o store.Owner, c *closure, out *PublishResult) *filling {
	cfg, meta := &r.in.Job.Config, results.MetaOf(r.in.Job.Spec)
	return &filling{r: r, owner: o, closure: c, out: out, encoder: store.NewEncoder(cfg, meta), tally: correlate.NewTally(cfg), meta: meta,
		span: cfg.Session.MaxSpan}
}

// fill writes the new sessions of the closure, those that stay, the cells of all of them, and exceptions.
func (w *filling) fill(ctx context.Context, staged []*SliceManifest) error {
	for _, m := range staged {
		if err := w.slice(ctx, m); err != nil {
			return err
		}
	}
	served, target := w.out.Served, w.out.Range
	for _, part := range []struct {
		r       TimeRange
		endFrom event.Micros
	}{{TimeRange{served.From, target.From}, 0}, {target, target.To}, {TimeRange{target.To, served.To}, 0}} {
		if err := w.copies(ctx, part.r, part.endFrom); err != nil {
			return err
		}
	}
	for _, r := range []TimeRange{{served.From, target.From}, {target.To, served.To}} {
		if err := w.exceptions(ctx, r); err != nil {
			return err
		}
	}
	if err := w.cells(ctx); err != nil {
		return err
	}
	w.batch.Progress = &store.Mark{Seq: w.seq, Watermark: event.MaxTime, Settle: w.r.in.Job.Config.Session.Settle, MaxSpan: w.span}
	w.out.Digest = w.digest.String()
	return w.write(ctx)
}

// slice writes what a slice staged.
func (w *filling) slice(ctx context.Context, m *SliceManifest) error {
	digest := correlate.NewDigester(&w.r.in.Job.Config)
	for row, err := range readRows(ctx, w.r.in.Objects, m.Rows, &w.r.in.Job.Config) {
		if err != nil {
			return err
		}
		w.seq++
		if x := row.reject; x != nil {
			e := w.encoder.Exception(w.seq, store.Rejected, x.Source)
			e.Partition, e.Offset, e.Time = x.Partition, x.Offset, x.Timestamp
			e.Reason, e.Detail, e.Raw = string(x.Reason), []byte(x.Detail), append([]byte{}, x.Raw...)
			w.batch.Exceptions = append(w.batch.Exceptions, e)
			w.out.Exceptions++
			if err := w.more(ctx, len(e.Raw)); err != nil {
				return err
			}
			continue
		}
		x := row.session
		digest.Row(x)
		if !w.closure.hasStaged(x.ID) {
			continue
		}
		if x.Start < w.out.Range.From || x.End >= w.out.Range.To {
			w.out.EdgeStaged++
		}
		w.encoder.Upsert(&w.batch, w.seq, x)
		w.tally.Add(x)
		w.out.Sessions++
		last := &w.batch.Sessions[len(w.batch.Sessions)-1]
		w.digest.Add(last.Digest)
		if err := w.more(ctx, len(last.Body)); err != nil {
			return err
		}
	}
	if digest.Sessions != m.digest() {
		return fmt.Errorf("%w: %s has sessions with digest %s, its manifest says %s", ErrStaged, m.Rows.Key, digest.Sessions, m.Digest)
	}
	return nil
}

// copies writes the served sessions of a range that stay.
func (w *filling) copies(ctx context.Context, r TimeRange, endFrom event.Micros) error {
	for x, err := range copiesOf(ctx, w.r.in.Store, w.r.in.Plan.Job, r, endFrom, w.closure.epoch) {
		if err != nil {
			return err
		}
		if w.closure.replaces(x.ID, x.Start, x.End) {
			w.out.EdgeServed++
			continue
		}
		row, err := w.rowOf(x)
		if err != nil {
			return err
		}
		w.tally.Add(row)
		w.seq++
		x.Seq = w.seq
		w.batch.Sessions = append(w.batch.Sessions, *x)
		w.digest.Add(x.Digest)
		w.span = max(w.span, x.End-x.Start)
		w.out.Copied++
		if err := w.more(ctx, len(x.Body)); err != nil {
			return err
		}
	}
	return nil
}

// rowOf gives a served session as reports look at it. Fields and scenarios are found by their names; what this version does not
// have is left out.
func (w *filling) rowOf(x *store.Session) (*correlate.Row, error) {
	b, err := parseBody(x)
	if err != nil {
		return nil, err
	}
	row := &correlate.Row{ID: x.ID, Start: x.Start, End: x.End, Count: x.Events, Fields: make([]correlate.RowField, len(w.meta.Fields))}
	for i, def := range w.meta.Fields {
		value, ok := b.Fields[def.Name]
		if !ok {
			continue
		}
		text := fmt.Sprint(value)
		f := correlate.RowField{Present: true, Text: []byte(text)}
		if w.r.in.Job.Config.Fields[i].Int {
			n, err := strconv.ParseInt(text, 10, 64)
			f = correlate.RowField{Present: err == nil, Int: n}
		}
		row.Fields[i] = f
	}
	for i, name := range w.meta.Scenarios {
		for _, h := range x.Hits {
			if h.Scenario == name {
				row.Hits = append(row.Hits, correlate.Hit{Scenario: i, DecidedAt: h.DecidedAt})
			}
		}
	}
	return row, nil
}

// exceptions writes the served exceptions of a time that was not computed anew, without late events that are in a session now.
func (w *filling) exceptions(ctx context.Context, r TimeRange) error {
	if r.empty() {
		return nil
	}
	for _, kind := range []store.ExceptionKind{store.Rejected, store.Late} {
		for e, err := range exceptionsOf(ctx, w.r.in.Store, w.r.in.Plan.Job, kind, r) {
			if err != nil {
				return err
			}
			if kind == store.Late && w.closure.hasEvent(identityOf(topicHash(e.Topic), e.Partition, e.Offset, uint16(e.Index))) {
				continue
			}
			w.seq++
			e.Seq = w.seq
			w.batch.Exceptions = append(w.batch.Exceptions, *e)
			w.out.Exceptions++
			if err := w.more(ctx, len(e.Raw)); err != nil {
				return err
			}
		}
	}
	return nil
}

// cells writes the reports.
func (w *filling) cells(ctx context.Context) (err error) {
	digest := correlate.NewDigester(&w.r.in.Job.Config)
	w.tally.Each(func(c *correlate.Cell) {
		if err != nil {
			return
		}
		w.seq++
		digest.Cell(c)
		w.encoder.Cell(&w.batch, w.seq, c)
		w.out.Cells++
		err = w.more(ctx, 0)
	})
	w.out.Reports = digest.Reports.String()
	return err
}

// more counts a row, and writes when there are enough.
func (w *filling) more(ctx context.Context, bytes int) error {
	if w.bytes += bytes; w.batch.Rows() < publishRows && w.bytes < publishBytes {
		return nil
	}
	return w.write(ctx)
}

func (w *filling) write(ctx context.Context) error {
	if err := w.r.in.Store.Write(ctx, w.owner, &w.batch); err != nil {
		return err
	}
	w.batch, w.bytes = store.Batch{}, 0
	w.r.in.Progress(PublishProgress{w.out.Sessions, w.out.Copied})
	return nil
}

// DropInput says which backfill to remove.
type DropInput struct {
	Plan    PlanRef
	Objects ObjectStore
	Store   Serving // nil: only the objects
	// KeepServed leaves a generation that is served; otherwise that is an error that matches store.ErrServed, and nothing is
	// removed behind it.
	KeepServed bool
}

// Drop removes a backfill: generations that were prepared, and all objects. Nothing of it may run any more; where something
// did, dropping it again removes what that left.
func Drop(ctx context.Context, in DropInput) error {
	if err := in.Plan.check(); err != nil {
		return err
	}
	if in.Store != nil {
		if err := in.dropGenerations(ctx); err != nil {
			return fmt.Errorf("drop %s: %w", in.Plan, err)
		}
	}
	for info, err := range in.Objects.List(ctx, in.Plan.String()+"/", "") {
		if err == nil {
			err = in.Objects.Delete(ctx, info.Key)
		}
		if err != nil {
			return fmt.Errorf("drop %s: %w", in.Plan, err)
		}
	}
	return nil
}

func (in *DropInput) dropGenerations(ctx context.Context) error {
	list, err := in.Store.Generations(ctx, in.Plan.Job)
	if err != nil {
		return err
	}
	for _, g := range list {
		if !strings.HasPrefix(g.Kind, generationKind+in.Plan.ID+"/") {
			continue
		}
		err := in.Store.DropGeneration(ctx, in.Plan.Job, g.ID)
		if err != nil && !(in.KeepServed && errors.Is(err, store.ErrServed)) {
			return err
		}
	}
	return nil
}

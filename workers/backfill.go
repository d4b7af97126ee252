package workers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workflows"
)

// backfillKind starts the kinds of the generations that backfills publish; the id of the backfill follows.
const backfillKind = "backfill:"

// Backfills runs backfills on the servers of an Env: it is activities.Staging and activities.Serving.
type Backfills struct {
	Versions *Versions
	Log      *slog.Logger
	// Slots is how many slices share the memory and the processors of this process; 0 is 1.
	Slots int
	Now   func() time.Time // nil: time.Now
}

// registerBackfill adds the workflows of backfills, and their short activities, to a control worker.
func (c *Config) registerBackfill(w worker.Worker, host *activities.Host) {
	l := &activities.Leases{Host: host, Ranges: &Leases{Objects: c.Env.Objects, Describer: c.Temporal, Now: time.Now}}
	w.RegisterActivityWithOptions(l.HoldRange, named("HoldRange"))
	w.RegisterActivityWithOptions(l.ReleaseRange, named("ReleaseRange"))
	w.RegisterWorkflowWithOptions(workflows.Backfill, workflow.RegisterOptions{Name: workflows.BackfillType})
	w.RegisterWorkflowWithOptions(workflows.Reconcile, workflow.RegisterOptions{Name: workflows.ReconcileType})
}

// backfills returns the worker that reads archives. It runs as many slices at once as it has processors, which share its
// memory: one slice links on one of them.
func (c *Config) backfills(o worker.Options) worker.Worker {
	slots := runtime.GOMAXPROCS(0)
	o.DisableWorkflowWorker = true
	o.MaxConcurrentActivityExecutionSize = slots
	w := worker.New(c.Temporal, activities.BackfillQueue, o)
	host := &activities.Host{Beats: c.Temporal, Classify: Classify, Process: c.Identity, Log: c.Log, Timing: activities.BackfillTiming()}
	run := &Backfills{Versions: c.Versions, Log: c.Log, Slots: slots}
	a := &activities.Backfills{Host: host, Staging: run, Serving: run}
	for name, f := range map[string]any{
		"PlanBackfill": a.PlanBackfill, "RunSlice": a.RunSlice, "VerifyBackfill": a.VerifyBackfill,
		"PublishBackfill": a.PublishBackfill, "CompareBackfill": a.CompareBackfill, "DropBackfill": a.DropBackfill,
	} {
		w.RegisterActivityWithOptions(f, named(name))
	}
	return w
}

func (b *Backfills) env() *Env { return b.Versions.Env }

// objects is where the archive and what is staged are.
func (b *Backfills) objects() backfill.ObjectStore { return backfill.Timed(b.env().Objects) }

func (b *Backfills) slots() int { return max(1, b.Slots) }

func refOf(r activities.BackfillRef) backfill.PlanRef { return backfill.PlanRef{Job: r.Job, ID: r.ID} }

func micros(t time.Time) event.Micros { return event.Micros(t.UnixMicro()) }

func rangeOf(r backfill.TimeRange) activities.Range {
	return activities.Range{From: timeOf(r.From), To: timeOf(r.To)}
}

// timeOf keeps the ends of time within what JSON can say.
func timeOf(t event.Micros) time.Time {
	const farthest = 253402300799_000000 // the end of the year 9999
	return time.UnixMicro(int64(max(-farthest, min(t, farthest)))).UTC()
}

// Plan plans a backfill and stores the plan.
func (b *Backfills) Plan(ctx context.Context, in activities.PlanInput, progress func(activities.Beat)) (p activities.Planned, err error) {
	version, err := b.version(ctx, in)
	if err != nil {
		return p, err
	}
	job, err := b.Versions.compile(ctx, in.Backfill.Job, version.Number)
	if err != nil {
		return p, err
	}
	ask := backfill.PlanInput{
		Ref: refOf(in.Backfill), Job: job, Version: version.Number, Checksum: version.Checksum, Objects: b.objects(),
		From: micros(in.From), To: micros(in.To), Parallelism: in.Parallelism, Order: backfill.OldestFirst,
		Before: event.Micros(in.Margin.Before.Microseconds()), After: event.Micros(in.Margin.After.Microseconds()),
		Now: micros(b.now()), Decoders: b.decoders(0),
		Progress: func(p backfill.PlanProgress) { progress(activities.Beat{Records: p.Manifests + p.Records}) },
	}
	if in.Slice != "" {
		length, err := time.ParseDuration(in.Slice)
		if err != nil {
			return p, userError("slice %q: expected a duration such as 1h", in.Slice)
		}
		ask.Slice = event.Micros(length.Microseconds())
	}
	sealed, err := b.sealed(ctx, in.Backfill.Job)
	if err != nil {
		return p, err
	}
	if in.Publish {
		ask.Sealed, ask.SealedText = sealed.before, sealed.text
		if err := errors.Join(b.dropSuperseded(ctx, in.Backfill.Job), b.dropLeft(ctx, in.Backfill.Job)); err != nil {
			return p, err
		}
	}
	if ask.Through, err = b.ends(ctx, job); err != nil {
		return p, err
	}
	changing := sealed.before != 0 && sealed.before < min(micros(in.To), micros(b.now()))
	if in.Rebuild && in.Publish && changing && sealed.before <= micros(in.From) {
		return activities.Planned{Version: version.Number, Range: in.Range, Changing: true}, nil
	}
	plan, err := backfill.MakePlan(ctx, ask)
	if err != nil {
		return p, err
	}
	p = activities.Planned{
		Version: plan.Version, Plan: plan.Ref.String() + "/plan.json", Range: rangeOf(plan.Range),
		Files: int(plan.Totals.Files), Rows: plan.Totals.ReadRows, Bytes: plan.Totals.ReadBytes,
		Sealed: sealed.before == 0 || plan.Range.To <= sealed.before, Changing: changing,
		Warnings: brief(append(plan.Warnings, plan.Notes...)),
	}
	if plan.Range != plan.Asked {
		p.Clipped = fmt.Sprintf("%s was asked for, %s is left: %s", plan.Asked, plan.Range, strings.Join(plan.Clips, "; "))
	}
	for _, c := range plan.Chunks {
		p.Chunks = append(p.Chunks, c.Slices)
	}
	return p, nil
}

// supersededFor is how long a generation that a backfill published is kept at least, so that one can still switch back to it.
const supersededFor = 24 * time.Hour

// dropSuperseded drops the generations of backfills that are over and of which nothing is served any more, since later ones
// took their ranges. One that is not over has a plan.
func (b *Backfills) dropSuperseded(ctx context.Context, job string) error {
	m, err := b.env().Store.ServingMap(ctx, job)
	if err != nil {
		return err
	}
	list, err := b.env().Store.Generations(ctx, job)
	if err != nil {
		return err
	}
	for _, g := range list {
		name, ours := strings.CutPrefix(g.Kind, backfillKind)
		id, _, _ := strings.Cut(name, "/")
		if !ours || g.Created > micros(b.now().Add(-supersededFor)) ||
			slices.ContainsFunc(m.Ranges, func(a store.Assignment) bool { return a.Generation == g.ID }) {
			continue
		}
		_, err := backfill.LoadPlan(ctx, b.objects(), backfill.PlanRef{Job: job, ID: id})
		if err == nil {
			continue
		}
		if errors.Is(err, backfill.ErrNotPlanned) {
			err = b.env().Store.DropGeneration(ctx, job, g.ID)
		}
		if err != nil && !errors.Is(err, store.ErrServed) { // it may be served again by now
			return err
		}
		b.Log.Info("dropped a generation of which nothing is served", "job", job, "generation", g.ID, "kind", g.Kind)
	}
	return nil
}

// leftFor is how long what has no plan is left: one that is being planned has none yet.
const leftFor = 24 * time.Hour

// dropLeft removes what was written behind a clean-up: a process that was stopped for long may store the end of a slice when it
// goes on. What is of no plan is of no backfill that runs.
func (b *Backfills) dropLeft(ctx context.Context, job string) error {
	objects := b.objects()
	root := backfill.PlanRef{Job: job}.String() // backfill/<job>/
	for after := ""; ; {
		id := ""
		for info, err := range objects.List(ctx, root, after) {
			if err != nil {
				return fmt.Errorf("look for what backfills of %s have left: %w", job, err)
			}
			id, _, _ = strings.Cut(strings.TrimPrefix(info.Key, root), "/")
			break
		}
		if id == "" {
			return nil
		}
		ref := backfill.PlanRef{Job: job, ID: id}
		after = ref.String() + "0" // behind all that starts with the id and a slash
		if _, err := backfill.LoadPlan(ctx, objects, ref); !errors.Is(err, backfill.ErrNotPlanned) {
			continue // one that cannot be read is for people
		}
		latest := time.Time{}
		for info, err := range objects.List(ctx, ref.String()+"/", "") {
			if err != nil {
				return fmt.Errorf("look for what backfills of %s have left: %w", job, err)
			}
			if info.Modified.After(latest) {
				latest = info.Modified
			}
		}
		if latest.After(b.now().Add(-leftFor)) {
			continue
		}
		if err := backfill.Drop(ctx, backfill.DropInput{Plan: ref, Objects: objects}); err != nil {
			return err
		}
		b.Log.Info("removed what a backfill had left", "backfill", ref)
	}
}

const (
	briefMax   = 20  // texts that a workflow carries; the plan has all
	briefBytes = 300 // of one
)

func brief(list []string) []string {
	var out []string
	for i, text := range list {
		if i == briefMax {
			return append(out, fmt.Sprintf("%d more: see the plan", len(list)-briefMax))
		}
		if len(text) > briefBytes {
			text = text[:briefBytes] + "…"
		}
		out = append(out, text)
	}
	return out
}

func (b *Backfills) now() time.Time {
	if b.Now == nil {
		return time.Now()
	}
	return b.Now()
}

// version finds the version that is to be run: the one that was asked for, or that serves the end of the range, or the
// latest.
func (b *Backfills) version(ctx context.Context, in activities.PlanInput) (v registry.Version, err error) {
	r := registry.New(b.env().Objects)
	job := in.Backfill.Job
	if in.Backfill.Version > 0 {
		return r.Get(ctx, job, in.Backfill.Version)
	}
	served, err := b.served(ctx, job)
	if err != nil {
		return v, err
	}
	for _, g := range served {
		if at := micros(in.To) - 1; at >= g.from && at < g.to {
			return r.Get(ctx, job, g.version)
		}
	}
	list, err := r.List(ctx, job)
	if err != nil {
		return v, err
	}
	if len(list) == 0 {
		return v, userError("there is no version of %s: register one first (weft job run --spec FILE)", job)
	}
	return list[len(list)-1], nil
}

// servedRange is a range that is served, with the version that its generation is of.
type servedRange struct {
	from, to   event.Micros
	generation int64
	version    int
	live       bool
}

func (b *Backfills) served(ctx context.Context, job string) (list []servedRange, err error) {
	m, err := b.env().Store.ServingMap(ctx, job)
	if err != nil {
		return nil, err
	}
	generations, err := b.env().Store.Generations(ctx, job)
	if err != nil {
		return nil, err
	}
	for _, r := range m.Ranges {
		for _, g := range generations {
			if g.ID != r.Generation {
				continue
			}
			version, err := strconv.Atoi(g.Version)
			if err != nil { // the store's readers may have others
				continue
			}
			list = append(list, servedRange{r.From, r.To, g.ID, version, g.Kind == liveKind})
		}
	}
	return list, nil
}

// sealing says what the live shards of what is served can still change.
type sealing struct {
	before  event.Micros   // no session that starts before can change any more; 0: none can at all
	text    string         // how that comes about, for people
	windows []event.Micros // of the reports of all versions that are served
}

// sealed asks the store how far the live shards are. What a stopped job has not seen yet counts as what can change: it may
// go on.
func (b *Backfills) sealed(ctx context.Context, job string) (s sealing, err error) {
	served, err := b.served(ctx, job)
	if err != nil {
		return s, err
	}
	s.before = event.MaxTime
	looked := map[int64]bool{}
	for _, g := range served {
		if looked[g.generation] {
			continue
		}
		looked[g.generation] = true
		compiled, err := b.Versions.compile(ctx, job, g.version)
		if err != nil {
			return s, err
		}
		for _, r := range compiled.Config.Reports {
			s.windows = append(s.windows, r.Every)
		}
		if !g.live {
			continue
		}
		p, err := b.env().Store.Progress(ctx, store.Scope{Job: job, Generation: g.generation})
		if err != nil {
			return s, err
		}
		if len(p.Shards) == 0 { // none has ever started
			continue
		}
		before := event.Micros(1) // none has seen a record: all of time is to come
		text := "it has not seen any record yet"
		if p.Watermark > event.MinTime {
			cfg := compiled.Config
			cfg.Range = correlate.Range{From: 0, To: 1}
			reach := -cfg.Near().From
			before = max(before, p.Watermark-cfg.Session.Retention-reach)
			text = fmt.Sprintf("its watermark %s less retention %s, max_span %s and the largest gap %s", timeOf(p.Watermark).Format(time.RFC3339),
				short(cfg.Session.Retention), short(cfg.Session.MaxSpan), short(reach-cfg.Session.MaxSpan))
		}
		if p.Watermark == event.MaxTime {
			before = event.MaxTime
		}
		if before < s.before {
			s.before = before
			s.text = fmt.Sprintf(" (%s). It is sealed as the job gets on. Until then mode compare or dry_run computes it without publishing, "+
				"and rebuild has the job compute its version anew", text)
		}
	}
	if s.before == event.MaxTime {
		s.before = 0
	}
	return s, nil
}

// short writes a duration without parts that are zero at its end.
func short(d event.Micros) string {
	text := (time.Duration(d) * time.Microsecond).String()
	for _, end := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, end) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// ends asks Kafka for the ends of the topics of a job. A topic that is not there any more has only its archive.
func (b *Backfills) ends(ctx context.Context, job *operator.Job) (map[string]map[int32]int64, error) {
	log := NewLog(b.env().Kafka)
	defer log.Close()
	ends := map[string]map[int32]int64{}
	for i := range job.Spec.Sources {
		one := *job
		spec := *job.Spec
		spec.Sources = spec.Sources[i : i+1]
		one.Spec = &spec
		partitions, err := log.Partitions(ctx, &one)
		if gone(err) {
			b.Log.Warn("a topic is not there; its archive is taken to be complete", "topic", spec.Sources[0].Topic, "error", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, p := range partitions {
			_, end, err := log.Bounds(ctx, p)
			if err != nil {
				return nil, err
			}
			if ends[p.Topic] == nil {
				ends[p.Topic] = map[int32]int64{}
			}
			ends[p.Topic][p.ID] = end
		}
	}
	return ends, nil
}

// gone tells whether Kafka answered that it has no such topic.
func gone(err error) bool {
	var k *kafka.Error
	return errors.As(err, &k) && k.Class == kafka.User
}

// decoders is how many processors a slice may use: those that live jobs are not left, divided by the slots.
func (b *Backfills) decoders(share float64) int {
	return max(1, int(math.Floor(float64(runtime.GOMAXPROCS(0))*(1-share)/float64(b.slots())+1e-9)))
}

// RunSlice computes one slice.
func (b *Backfills) RunSlice(ctx context.Context, in activities.SliceInput, progress func(activities.Beat)) (d activities.SliceDone, err error) {
	job, err := b.Versions.compile(ctx, in.Backfill.Job, in.Backfill.Version)
	if err != nil {
		return d, err
	}
	r, err := backfill.RunSlice(ctx, backfill.SliceInput{
		Plan: refOf(in.Backfill), Chunk: in.Chunk, Slice: in.Slice, Job: job, Objects: b.objects(),
		MemoryBytes: max(backfill.MemoryBytesMin, backfill.MachineBytes()/2/int64(b.slots())), Decoders: b.decoders(in.Share),
		RecordsPerSecond: int(in.Throttle), TempDir: b.Versions.Work,
	}, func(p backfill.SliceProgress) { progress(activities.Beat{Records: p.Records}) })
	if err != nil {
		return d, err
	}
	d = activities.SliceDone{
		Range: rangeOf(r.Range), Rows: r.Records, Events: r.Events, Sessions: r.Sessions, Bytes: r.Bytes,
		StateBytes: r.StateBytes, Seconds: r.Seconds, Digest: r.Digest, Last: r.Done,
	}
	for _, n := range r.Rejects {
		d.Rejects += n
	}
	return d, nil
}

// Verify reads all that is staged, and holds its sums against what the slices said.
func (b *Backfills) Verify(ctx context.Context, in activities.VerifyInput, progress func(activities.Beat)) (v activities.Verified, err error) {
	defer beating(progress)()
	job, plan, err := b.plan(ctx, in.Backfill)
	if err != nil {
		return v, err
	}
	t, err := backfill.Total(ctx, b.objects(), plan.Ref, job, backfill.TimeRange{})
	if err != nil {
		return v, err
	}
	if t.Records != in.Rows || t.Sessions != in.Sessions {
		return v, fmt.Errorf("%s: its manifests have %d records and %d sessions, and its slices said %d and %d: something else wrote to it",
			plan.Ref, t.Records, t.Sessions, in.Rows, in.Sessions)
	}
	if plan.Range != plan.Owned {
		if t, err = backfill.Total(ctx, b.objects(), plan.Ref, job, plan.Range); err != nil {
			return v, err
		}
	}
	return activities.Verified{Sessions: t.Sessions, Digest: t.Digest, Sums: t.Parts}, nil
}

func (b *Backfills) plan(ctx context.Context, ref activities.BackfillRef) (*operator.Job, *backfill.Plan, error) {
	job, err := b.Versions.compile(ctx, ref.Job, ref.Version)
	if err != nil {
		return nil, nil, err
	}
	plan, err := backfill.LoadPlan(ctx, b.objects(), refOf(ref))
	return job, plan, err
}

// beating tells once a second that something gets on, until the function that it returns is called.
func beating(progress func(activities.Beat)) (stop func()) {
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			progress(activities.Beat{})
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() { close(done); running.Wait() }
}

// Publish makes what is staged served.
func (b *Backfills) Publish(ctx context.Context, in activities.PublishBackfillInput, progress func(activities.Beat)) (p activities.Published, err error) {
	defer beating(progress)()
	job, err := b.Versions.compile(ctx, in.Backfill.Job, in.Backfill.Version)
	if err != nil {
		return p, err
	}
	sealed, err := b.sealed(ctx, in.Backfill.Job)
	if err != nil {
		return p, err
	}
	r, err := backfill.Publish(ctx, backfill.PublishInput{
		Plan: refOf(in.Backfill), Job: job, Objects: b.objects(), Store: b.env().Store,
		RequestID: in.RequestID, Actor: in.Actor, Reason: in.Reason, Sealed: sealed.before, Windows: sealed.windows,
	})
	var narrow *backfill.IncompleteError
	if errors.As(err, &narrow) {
		return activities.Published{Needs: &activities.Margin{
			Before: time.Duration(narrow.Before) * time.Microsecond, After: time.Duration(narrow.After) * time.Microsecond,
		}}, nil
	}
	if err != nil {
		return p, err
	}
	return activities.Published{
		Range: rangeOf(r.Served), Generation: r.Generation, Epoch: r.MapEpoch, Sessions: r.Sessions, Copied: r.Copied,
		Digest: r.Digest, Notes: brief(r.Notes),
	}, nil
}

// Drop removes what a backfill has staged, and generations that were prepared and are not served.
func (b *Backfills) Drop(ctx context.Context, in activities.DropInput, progress func(activities.Beat)) (d activities.Dropped, err error) {
	defer beating(progress)()
	ref := refOf(in.Backfill)
	err = backfill.Drop(ctx, backfill.DropInput{Plan: ref, Objects: b.objects(), Store: b.env().Store, KeepServed: true})
	if err != nil {
		return d, err
	}
	generations, err := b.env().Store.Generations(ctx, in.Backfill.Job)
	if err != nil {
		return d, err
	}
	for _, g := range generations { // what is left of its own is served
		d.Served = d.Served || strings.HasPrefix(g.Kind, backfillKind+ref.ID+"/")
	}
	return d, nil
}

// firstDifferences is how many differences a workflow carries; the report has more.
const firstDifferences = 20

// Compare compares what is staged with what is served, and stores the report.
func (b *Backfills) Compare(ctx context.Context, in activities.CompareBackfillInput, progress func(activities.Beat)) (c activities.BackfillCompared, err error) {
	defer beating(progress)()
	job, err := b.Versions.compile(ctx, in.Backfill.Job, in.Backfill.Version)
	if err != nil {
		return c, err
	}
	r, err := backfill.Compare(ctx, backfill.CompareInput{
		Plan: refOf(in.Backfill), Job: job, Objects: b.objects(), Store: b.env().Store, First: firstDifferences, Report: in.Report,
	})
	if err != nil {
		return c, err
	}
	c = activities.BackfillCompared{
		Report: in.Report, Same: r.Same, Changed: r.Changed, Missing: r.Missing, Extra: r.Extra, Causes: map[string]int64{},
	}
	for cause, n := range r.Causes {
		c.Causes[string(cause)] = n
	}
	for _, d := range r.First {
		out := activities.Difference{
			Kind: string(d.Kind), Start: timeOf(d.Start), Staged: brief(d.Staged), Served: brief(d.Served), Fields: brief(d.Fields),
		}
		for _, cause := range d.Causes {
			out.Causes = append(out.Causes, string(cause))
		}
		c.First = append(c.First, out)
	}
	return c, nil
}

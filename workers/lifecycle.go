package workers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/rules"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workflows"
)

// Stage registers job versions, and changes and reads what jobs serve.
type Stage struct {
	Versions *Versions
	Now      func() time.Time // nil: time.Now
	Engine   string           // file of the binary that new versions run on; empty: any
	Limits   Limits           // of what versions may ask for
	// Topics opens what tells how long the topics of a job are; nil: Kafka of the Env.
	Topics func() Topics

	mu       sync.Mutex
	compiled map[versionKey]*operator.Job // versions never change; they are only read
}

// versionKey names a version of a job.
type versionKey struct {
	Job    string
	Number int
}

// compiledMax bounds the versions that a stage remembers: a rollout looks at two of them every few seconds.
const compiledMax = 32

// compile returns a version as it is compiled, which is to be read only.
func (s *Stage) compile(ctx context.Context, job string, number int) (*operator.Job, error) {
	key := versionKey{job, number}
	s.mu.Lock()
	known := s.compiled[key]
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	compiled, err := s.Versions.compile(ctx, job, number)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.compiled == nil || len(s.compiled) >= compiledMax {
		s.compiled = map[versionKey]*operator.Job{}
	}
	s.compiled[key] = compiled
	return compiled, nil
}

// Topics tells what is in topics. It is closed after use.
type Topics interface {
	Partitions(ctx context.Context, job *operator.Job) ([]streaming.Partition, error)
	// Bounds returns the first offset of a partition that is still there, and the one after its last record.
	Bounds(ctx context.Context, p streaming.Partition) (first, end int64, err error)
	// Fetch reads as streaming.Log does.
	Fetch(ctx context.Context, p streaming.Partition, next int64, b *event.Batch, maxBytes int, wait time.Duration) (after, end int64, err error)
	// Delete deletes a topic; one that is not there is no error.
	Delete(ctx context.Context, topic string) error
	Close() error
}

func (s *Stage) topics() Topics {
	if s.Topics == nil {
		return NewLog(s.Versions.Env.Kafka)
	}
	return s.Topics()
}

func (s *Stage) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// registerLifecycle adds the workflows and activities of deployments to a control worker.
func (c *Config) registerLifecycle(w worker.Worker, host *activities.Host) {
	l := &activities.Lifecycle{Host: host, Stage: &Stage{Versions: c.Versions, Engine: c.Engine, Limits: c.Limits}, Starter: c.Temporal}
	for name, f := range map[string]any{
		"RegisterVersion": l.RegisterVersion, "Survey": l.Survey, "SwitchVersion": l.SwitchVersion, "SetCanary": l.SetCanary, "CompareStanding": l.CompareStanding,
		"CompareVersions": l.CompareVersions, "RecordDecisions": l.RecordDecisions, "Launch": l.Launch, "DropVersion": l.DropVersion,
	} {
		w.RegisterActivityWithOptions(f, named(name))
	}
	for name, f := range map[string]any{workflows.JobType: workflows.Job, workflows.DeployType: workflows.Deploy, workflows.RolloutType: workflows.Rollout} {
		w.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
}

// Register registers a version, or finds it, and plans its deployment. One that asks for more than may be had is only planned.
func (s *Stage) Register(ctx context.Context, in activities.RegisterInput) (p activities.Plan, err error) {
	if in.Limit && in.Version == 0 || in.Limit && in.Rebuild {
		try := in
		try.DryRun = true
		if p, err = s.plan(ctx, try); err != nil || in.DryRun || len(p.Refused) > 0 {
			return p, err
		}
	}
	return s.plan(ctx, in)
}

func (s *Stage) plan(ctx context.Context, in activities.RegisterInput) (p activities.Plan, err error) {
	v, err := s.version(ctx, in)
	if err != nil {
		return p, err
	}
	if in.Served {
		if err := s.wasServed(ctx, in.Job, in.Version); err != nil {
			return p, err
		}
	}
	spec, err := v.Parse()
	if err != nil {
		return p, err
	}
	surveyed, err := s.Survey(ctx, v.Job)
	if err != nil {
		return p, err
	}
	var before *registry.Version
	if surveyed.Current > 0 {
		old, err := registry.New(s.Versions.Env.Objects).Get(ctx, v.Job, surveyed.Current)
		if err != nil && !errors.Is(err, registry.ErrNotFound) { // streamed without the registry: nothing to compare with
			return p, err
		}
		if err == nil {
			before = &old
		}
	}
	p, err = planOf(&v, spec, surveyed.Current, before, in.Rebuild)
	if err != nil {
		return p, err
	}
	of := v.Number
	if in.Rebuild {
		of = v.Repeats
	}
	if _, p.Shards, err = s.heads(ctx, v.Job, of); err != nil || !in.Limit {
		return p, err
	}
	shards := in.Shards
	if shards == 0 {
		shards = max(p.Shards, 1)
	}
	if p.Refused = s.Limits.Refuse(spec, shards); len(p.Refused) > 0 {
		p.Phases = []string{"nothing: it is refused"}
	}
	return p, nil
}

// version returns the version that is meant, registered unless it is a dry run.
func (s *Stage) version(ctx context.Context, in activities.RegisterInput) (v registry.Version, err error) {
	r := registry.New(s.Versions.Env.Objects)
	if in.Rebuild {
		return s.again(ctx, r, in)
	}
	if in.Version > 0 {
		v, err = r.Get(ctx, in.Job, in.Version)
		v.Existed = true
		return v, err
	}
	text := []byte(in.Spec)
	if in.Object != "" {
		if text, _, err = s.Versions.Env.Objects.Get(ctx, in.Object); err != nil {
			return v, fmt.Errorf("read the spec %s: %w", in.Object, err)
		}
	}
	spec, err := jobspec.Parse(text)
	if err != nil {
		return v, err
	}
	if in.Job != "" && in.Job != spec.Job {
		return v, userError("the spec is of the job %s, not of %s", spec.Job, in.Job)
	}
	// What cannot run is not registered.
	if _, err := operator.Compile(spec, 0, func(name string) ([]byte, error) {
		return nil, userError("the spec names the file %s: deploy it with `weft deploy --spec`, which sends files, or register it and deploy its number", name)
	}); err != nil {
		return v, err
	}
	if !in.DryRun {
		engine, err := KeepEngine(ctx, r, s.Engine)
		if err != nil {
			return v, err
		}
		return r.Add(ctx, registry.NewVersion{Job: spec.Job, Spec: text, Message: in.Message, Author: in.Author, RequestID: in.RequestID, Engine: engine})
	}
	all, err := r.List(ctx, spec.Job)
	if err != nil {
		return v, err
	}
	v = registry.Version{Job: spec.Job, Number: 1, Spec: string(text), Message: in.Message, Author: in.Author}
	if n := len(all); n > 0 {
		if last := all[n-1]; last.Spec == v.Spec {
			last.Existed = true
			return last, nil
		}
		v.Number = all[n-1].Number + 1
	}
	return v, nil
}

// KeepEngine puts a binary into the registry, and names it; an empty file name is none.
func KeepEngine(ctx context.Context, r *registry.Registry, file string) (*registry.Engine, error) {
	if file == "" {
		return nil, nil
	}
	e, data, err := registry.ReadEngine(file)
	if err == nil {
		err = r.PutEngine(ctx, e, data)
	}
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// again registers a version once more, to have it computed anew.
func (s *Stage) again(ctx context.Context, r *registry.Registry, in activities.RegisterInput) (v registry.Version, err error) {
	of := in.Version
	if of == 0 {
		surveyed, err := s.Survey(ctx, in.Job)
		if err != nil {
			return v, err
		}
		if of = surveyed.Current; of == 0 {
			return v, userError("%s serves no version that could be rebuilt: name one", in.Job)
		}
	}
	old, err := r.Get(ctx, in.Job, of)
	if err != nil {
		return v, err
	}
	message := fmt.Sprintf("rebuild of version %d", of)
	if in.Message != "" {
		message += ": " + in.Message
	}
	if !in.DryRun {
		engine := old.Engine
		if engine == nil {
			if engine, err = KeepEngine(ctx, r, s.Engine); err != nil {
				return v, err
			}
		}
		return r.Repeat(ctx, old, registry.NewVersion{Message: message, Author: in.Author, RequestID: in.RequestID, Engine: engine})
	}
	all, err := r.List(ctx, in.Job)
	if err != nil {
		return v, err
	}
	old.Number, old.Repeats, old.Message, old.Author = all[len(all)-1].Number+1, of, message, in.Author
	return old, nil
}

// planOf says what the deployment of a version does. A rebuild has no canary.
func planOf(v *registry.Version, spec *jobspec.Spec, current int, before *registry.Version, rebuild bool) (activities.Plan, error) {
	gates, err := rules.CompileGates(spec)
	if err != nil {
		return activities.Plan{}, err
	}
	p := activities.Plan{
		Job: v.Job, Version: v.Number, Existed: v.Existed, Current: current, LagMaxMS: gates.LagMax.Milliseconds(),
		WindowMS: spec.RollbackWindow.Milliseconds(), TwoMust: spec.Approval == "two_person", Expect: spec.Expect, Freeze: spec.Freeze,
		Sinks:   spec.Sinks.Topic != "" || spec.Sinks.Parquet,
		Changes: []activities.Change{}, Steps: []activities.Step{}, Gates: []activities.Gate{}, Divisible: spec.ShardBy != "",
	}
	for _, x := range spec.Sources {
		p.Topics = append(p.Topics, x.Topic)
	}
	if before != nil {
		for _, d := range registry.Diff(*before, *v) {
			p.Changes = append(p.Changes, activities.Change{Path: d.Path, Kind: string(d.Kind), Text: d.Text, Effect: string(d.Effect), Means: d.Effect.Meaning()})
		}
	}
	if spec.Canary != nil && !rebuild {
		for _, x := range spec.Canary.Steps {
			p.Steps = append(p.Steps, activities.Step{Weight: x.Weight, HoldMS: x.Hold.Milliseconds()})
		}
		p.WarmUpMS = spec.Canary.WarmUp.Milliseconds()
		for _, x := range spec.Canary.Gates {
			p.Gates = append(p.Gates, activities.Gate{Name: x.Name, Text: x.Text})
		}
	}
	p.Phases = phasesOf(&p, rebuild)
	return p, nil
}

// phasesOf tells a person what will happen.
func phasesOf(p *activities.Plan, rebuild bool) (list []string) {
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if !p.Existed {
		add("register version %d", p.Version)
	}
	switch {
	case p.Current == p.Version:
		add("nothing more: version %d is served already", p.Version)
		return list
	case p.Current == 0:
		add("start version %d and serve it at once: nothing is served yet, so there is nothing to compare it with", p.Version)
		return list
	}
	limit := ""
	if p.WarmUpMS > 0 {
		limit = fmt.Sprintf(", within %s", time.Duration(p.WarmUpMS)*time.Millisecond)
	}
	add("start version %d in the shadow of version %d; it reads its topics, and before them their archives, from the first record until it has caught up%s", p.Version, p.Current, limit)
	gates := "its gates"
	if len(p.Gates) == 0 {
		gates = "no gate: the spec has none"
	}
	for i, s := range p.Steps {
		add("step %d of %d (weight %d%%): hold for %s while it answers for that share of the users, compare what both versions decided, judge by %s", i+1, len(p.Steps), s.Weight,
			time.Duration(s.HoldMS)*time.Millisecond, gates)
	}
	if len(p.Steps) == 0 && rebuild {
		add("no canary: the spec is that of a version which was served")
	} else if len(p.Steps) == 0 {
		add("no canary: the spec has none")
	}
	if p.TwoMust {
		add("wait until somebody else than who deployed agrees (signal promote)")
	}
	if len(p.Freeze) > 0 {
		add("promote outside of %s", strings.Join(p.Freeze, ", "))
	}
	add("promote version %d; version %d runs on for %s, ready for a rollback", p.Version, p.Current, time.Duration(p.WindowMS)*time.Millisecond)
	return list
}

// Survey tells which version serves the newest sessions.
func (s *Stage) Survey(ctx context.Context, job string) (r activities.Surveyed, err error) {
	m, err := s.Versions.Env.Store.ServingMap(ctx, job)
	if err != nil || len(m.Ranges) == 0 {
		return activities.Surveyed{Epoch: m.Epoch}, err
	}
	last := m.Ranges[len(m.Ranges)-1]
	all, err := s.Versions.Env.Store.Generations(ctx, job)
	if err != nil {
		return r, err
	}
	r = activities.Surveyed{Epoch: m.Epoch, From: int64(last.From)}
	for _, g := range all {
		if g.ID == last.Generation && g.Kind == liveKind {
			if r.Current, err = strconv.Atoi(g.Version); err != nil {
				return r, userError("generation %d of %s serves the newest sessions and is of version %q, which has no number: it was not made by a registered version", g.ID, job, g.Version)
			}
			if _, r.Shards, err = s.heads(ctx, job, r.Current); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// mapKey is where a serving map is kept. The map of an epoch never changes.
func mapKey(job string, epoch uint64) string { return fmt.Sprintf("serving/%s/%010d.json", job, epoch) }

// Switch makes a job serve a version, or what it served before it did, from some start of sessions on.
func (s *Stage) Switch(ctx context.Context, in activities.SwitchInput) (r activities.Switched, err error) {
	st := s.Versions.Env.Store
	if until, frozen, err := s.frozen(ctx, in); err != nil || frozen {
		return activities.Switched{Epoch: in.Epoch, Frozen: &until}, err
	}
	m, err := st.ServingMap(ctx, in.Job)
	if err != nil {
		return r, err
	}
	if m.Epoch == in.Epoch { // kept first: a rollback needs it
		if err := s.keepMap(ctx, in.Job, m); err != nil {
			return r, err
		}
	}
	from := event.Micros(in.From)
	var list []store.Assignment
	if in.Back == 0 {
		generation, err := s.Versions.generation(ctx, in.Job, in.Version)
		if err != nil {
			return r, err
		}
		list = []store.Assignment{{From: from, To: event.MaxTime, Generation: generation}}
	} else {
		back := m
		if m.Epoch != in.Back {
			if back, err = s.keptMap(ctx, in.Job, in.Back); err != nil {
				return r, err
			}
		}
		list = clipped(back.Ranges, from)
	}
	m, err = st.Switch(ctx, store.SwitchRequest{Job: in.Job, RequestID: in.RequestID, ExpectedEpoch: in.Epoch, Assignments: list,
		Actor: in.Actor, Reason: in.Reason})
	if errors.Is(err, store.ErrStale) {
		if m, err = st.ServingMap(ctx, in.Job); err != nil {
			return r, err
		}
		return activities.Switched{Epoch: m.Epoch, Stale: true}, nil
	}
	return activities.Switched{Epoch: m.Epoch}, err
}

// frozen tells whether a freeze window of some version forbids a switch now.
func (s *Stage) frozen(ctx context.Context, in activities.SwitchInput) (until time.Time, frozen bool, err error) {
	var windows []string
	for _, number := range in.Freeze {
		v, err := registry.New(s.Versions.Env.Objects).Get(ctx, in.Job, number)
		if errors.Is(err, registry.ErrNotFound) {
			continue
		}
		if err != nil {
			return until, false, err
		}
		spec, err := v.Parse()
		if err != nil {
			return until, false, err
		}
		windows = append(windows, spec.Freeze...)
	}
	until, frozen, err = frozenUntil(windows, s.now())
	return until.UTC(), frozen, err
}

func (s *Stage) keepMap(ctx context.Context, job string, m store.Map) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = s.Versions.Env.Objects.PutIfAbsent(ctx, mapKey(job, m.Epoch), data, strconv.FormatUint(m.Epoch, 10))
	if errors.Is(err, objstore.ErrPrecondition) { // by another try
		return nil
	}
	return err
}

func (s *Stage) keptMap(ctx context.Context, job string, epoch uint64) (m store.Map, err error) {
	data, _, err := s.Versions.Env.Objects.Get(ctx, mapKey(job, epoch))
	if err != nil {
		return m, fmt.Errorf("read what %s served before: %w", job, err)
	}
	if err := json.Unmarshal(data, &m); err != nil || m.Epoch != epoch {
		return m, fmt.Errorf("read what %s served before: the object %s is damaged: %w", job, mapKey(job, epoch), err)
	}
	return m, nil
}

// wasServed looks for a version in the maps that were switched away from, the newest first. Its generation may be dropped.
func (s *Stage) wasServed(ctx context.Context, job string, version int) error {
	all, err := s.Versions.Env.Store.GenerationsEver(ctx, job)
	if err != nil {
		return err
	}
	own := map[int64]bool{}
	for _, g := range all {
		if g.Kind == liveKind && g.Version == strconv.Itoa(version) {
			own[g.ID] = true
		}
	}
	var keys []string
	for info, err := range s.Versions.Env.Objects.List(ctx, fmt.Sprintf("serving/%s/", job), "") {
		if err != nil {
			return err
		}
		keys = append(keys, info.Key)
	}
	for _, key := range slices.Backward(keys) {
		data, _, err := s.Versions.Env.Objects.Get(ctx, key)
		if err != nil {
			return err
		}
		var m store.Map
		if err := json.Unmarshal(data, &m); err != nil {
			return fmt.Errorf("read what %s served before: the object %s is damaged: %w", job, key, err)
		}
		if slices.ContainsFunc(m.Ranges, func(a store.Assignment) bool { return a.To == event.MaxTime && own[a.Generation] }) {
			return nil
		}
	}
	return userError("version %d of %s was never served, so there is no way back to it: deploy it", version, job)
}

// WayBack tells how far a version is that a rollback would bring back, or why there is no way back to it.
type WayBack struct {
	Refused string
	LagMS   int64  // behind the current version in event time; -1: not known
	Note    string // for a person
}

// WayBack looks how a rollback to a version that does not run would go. It changes nothing.
func (s *Stage) WayBack(ctx context.Context, job string, version, current int) (w WayBack, err error) {
	if _, err := s.Register(ctx, activities.RegisterInput{Job: job, Version: version, Served: true}); err != nil {
		if f := Classify(err); f.Type == activities.User {
			return WayBack{Refused: err.Error(), LagMS: -1}, nil
		}
		return w, err
	}
	have, shards, err := s.heads(ctx, job, version)
	if err != nil {
		return w, err
	}
	theirs, _, err := s.heads(ctx, job, current)
	if err != nil {
		return w, err
	}
	compiled, err := s.compile(ctx, job, version)
	if err != nil {
		return w, err
	}
	behind := int64(0)
	for name, next := range theirs {
		if readsTopic(compiled.Spec, name) {
			behind += max(0, next-have[name])
		}
	}
	w = WayBack{LagMS: -1, Note: fmt.Sprintf("it has %s records to read before it is served", grouped(behind))}
	if shards == 0 {
		w.Note += ": it has no checkpoint any more, so it reads from the first one"
		return w, nil
	}
	w.LagMS, err = s.lag(ctx, job, version, current, compiled.Spec)
	return w, err
}

// clipped returns what a map says from a start on, gaps included.
func clipped(ranges []store.Assignment, from event.Micros) (list []store.Assignment) {
	at := from
	for _, a := range ranges {
		a.From = max(a.From, from)
		if a.From >= a.To {
			continue
		}
		if at < a.From {
			list = append(list, store.Assignment{From: at, To: a.From})
		}
		list = append(list, a)
		at = a.To
	}
	if at < event.MaxTime {
		list = append(list, store.Assignment{From: at, To: event.MaxTime})
	}
	return slices.Clip(list)
}

// Record writes decisions to the audit log of the store.
func (s *Stage) Record(ctx context.Context, job string, entries []activities.Entry) error {
	for _, e := range entries {
		err := s.Versions.Env.Store.Audit(ctx, store.AuditEntry{Actor: e.Actor, Job: job, Action: e.Action, Reason: e.Reason, RequestID: e.ID, Detail: e.Detail})
		if err != nil {
			return err
		}
	}
	return nil
}

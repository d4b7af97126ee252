package workers

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/rules"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
)

const (
	// compareMax bounds the sessions that one comparison reads of each version, unless min_sessions asks for more: reading
	// and comparing 20,000 takes a second or two.
	compareMax = 20_000
	// differencesMax is how many sessions that differ are kept for inspection.
	differencesMax = 100
	// differencesBytesMax bounds the sessions in one object of differences: a long timeline has a hundred kilobytes.
	differencesBytesMax = 8 << 20
)

// offsets is how far partitions are read, by "topic/partition".
type offsets map[string]int64

// heads reads from the checkpoints of a version how far all its shards have read, and how many shards have one.
func (s *Stage) heads(ctx context.Context, job string, version int) (list offsets, shards int, err error) {
	list = offsets{}
	prefix := fmt.Sprintf("checkpoints/%s/%d/", job, version)
	for info, err := range s.Versions.Env.Objects.List(ctx, prefix, "") {
		if err != nil {
			return nil, 0, err
		}
		if !strings.HasSuffix(info.Key, "/manifest.json") {
			continue
		}
		data, _, err := s.Versions.Env.Objects.Get(ctx, info.Key)
		if err != nil {
			return nil, 0, err
		}
		var m struct {
			Number     uint64
			Partitions []struct {
				Topic     string
				Partition int32
				Next      int64
			}
		}
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, 0, fmt.Errorf("read the manifest %s: %w", info.Key, err)
		}
		if m.Number == 0 { // a run has claimed it and saved nothing yet
			continue
		}
		if rest := strings.TrimPrefix(info.Key, prefix); strings.Count(rest, "/") == 1 { // beside it stands that of its repartitioning
			shards++
		}
		for _, p := range m.Partitions {
			name := streaming.Partition{Topic: p.Topic, ID: p.Partition}.String()
			if next, ok := list[name]; !ok || p.Next < next {
				list[name] = p.Next
			}
		}
	}
	return list, shards, nil
}

// Standing tells how a version stands to the one that is served.
func (s *Stage) Standing(ctx context.Context, in activities.StandingInput) (r activities.Standing, err error) {
	r = activities.Standing{Behind: -1, LagMS: -1}
	job, err := s.compile(ctx, in.Job, in.Version)
	if err != nil {
		return r, err
	}
	log := s.topics()
	defer log.Close() // only read
	have, shards, err := s.heads(ctx, in.Job, in.Version)
	if err != nil {
		return r, err
	}
	if r.Settled, err = s.settled(ctx, in.Job, in.Version); err != nil {
		return r, err
	}
	if in.Current == 0 { // there is nothing to catch up with
		r.Behind, r.LagMS, r.CaughtUp, r.From = 0, 0, true, int64(event.MinTime)
		return r, nil
	}
	if r.Missing = max(in.Shards, 1) - shards; r.Missing > 0 {
		r.Waits = fmt.Sprintf("%d of %d shards have saved a checkpoint so far (an agent runs its processes: weft agent)",
			shards, max(in.Shards, 1))
		return r, nil
	}
	if in.Key != "" {
		goal, err := s.goal(ctx, in, job, log)
		if err != nil {
			return r, err
		}
		r.Behind = 0
		for name, next := range goal {
			if readsTopic(job.Spec, name) {
				r.Behind += max(0, next-have[name])
			}
		}
	}
	if r.LagMS, err = s.lag(ctx, in.Job, in.Version, in.Current, job.Spec); err != nil {
		return r, err
	}
	switch {
	case r.Behind > 0:
		r.Waits = fmt.Sprintf("it is %s records from where version %d was when the rollout began", grouped(r.Behind), in.Current)
	case r.LagMS < 0:
		r.Waits = "it has seen no event time yet"
	case r.LagMS > in.LagMaxMS:
		r.Waits = fmt.Sprintf("it is %s behind version %d", time.Duration(r.LagMS)*time.Millisecond, in.Current)
	default:
		if r.CaughtUp = true; in.Key == "" {
			break
		}
		from, err := s.coveredFrom(ctx, in, job, log)
		r.From = int64(from)
		return r, err
	}
	return r, nil
}

func readsTopic(spec *jobspec.Spec, partition string) bool {
	topic := partition[:strings.LastIndexByte(partition, '/')]
	return slices.ContainsFunc(spec.Sources, func(s jobspec.Source) bool { return s.Topic == topic })
}

// goal returns where the current version was when this was first asked: the offset of each partition that the candidate has to
// reach. Where no checkpoint tells, it is the end of the topics.
func (s *Stage) goal(ctx context.Context, in activities.StandingInput, job *operator.Job, log Topics) (goal offsets, err error) {
	objects := s.Versions.Env.Objects
	data, _, err := objects.Get(ctx, in.Key)
	if err == nil {
		if err = json.Unmarshal(data, &goal); err != nil {
			err = fmt.Errorf("read %s: %w", in.Key, err)
		}
		return goal, err
	}
	if !errors.Is(err, objstore.ErrNotFound) {
		return nil, err
	}
	goal, _, err = s.heads(ctx, in.Job, in.Current)
	if err != nil {
		return nil, err
	}
	if len(goal) == 0 {
		if _, goal, err = bounds(ctx, job, log); err != nil {
			return nil, err
		}
	}
	if data, err = json.Marshal(goal); err != nil {
		return nil, err
	}
	_, err = objects.PutIfAbsent(ctx, in.Key, data, rand.Text())
	if errors.Is(err, objstore.ErrPrecondition) { // another try was first
		return s.goal(ctx, in, job, log)
	}
	return goal, err
}

// bounds returns the first offset and the end of each source partition.
func bounds(ctx context.Context, job *operator.Job, log Topics) (first, end offsets, err error) {
	partitions, err := log.Partitions(ctx, job)
	first, end = offsets{}, offsets{}
	for _, p := range partitions {
		if err != nil {
			break
		}
		first[p.String()], end[p.String()], err = log.Bounds(ctx, p)
	}
	return first, end, err
}

// lag returns how far a version's watermark is behind another's in milliseconds, whatever delay each has; -1: not known. One
// that has read all that the other has is not behind: where topics are at rest, watermarks stop wherever the last partition
// to rest left them.
func (s *Stage) lag(ctx context.Context, job string, version, current int, spec *jobspec.Spec) (int64, error) {
	ahead, err := s.hasRead(ctx, job, version, current, spec)
	if err != nil || ahead {
		return 0, err
	}
	mine, err := s.watermark(ctx, job, version)
	if err != nil {
		return -1, err
	}
	theirs, err := s.watermark(ctx, job, current)
	if err != nil {
		return -1, err
	}
	switch {
	case theirs == event.MinTime:
		return 0, nil // it has seen nothing
	case mine == event.MinTime:
		return -1, nil
	}
	served, err := s.compile(ctx, job, current)
	if err != nil {
		return -1, err
	}
	behind := (int64(theirs) + served.Spec.Watermark.Delay.Microseconds()) - (int64(mine) + spec.Watermark.Delay.Microseconds())
	return max(0, behind) / 1000, nil
}

// hasRead tells whether the checkpoints of a version hold all that those of another do, of the topics that it reads.
func (s *Stage) hasRead(ctx context.Context, job string, version, current int, spec *jobspec.Spec) (bool, error) {
	mine, _, err := s.heads(ctx, job, version)
	if err != nil {
		return false, err
	}
	theirs, shards, err := s.heads(ctx, job, current)
	if err != nil || shards == 0 {
		return false, err
	}
	for name, next := range theirs {
		if readsTopic(spec, name) && mine[name] < next {
			return false, nil
		}
	}
	return true, nil
}

func (s *Stage) watermark(ctx context.Context, job string, version int) (event.Micros, error) {
	generation, err := s.Versions.generation(ctx, job, version)
	if err != nil {
		return 0, err
	}
	p, err := s.Versions.Env.Store.Progress(ctx, store.Scope{Job: job, Generation: generation})
	return p.Watermark, err
}

// reach is how far apart events of one session can be: beyond it nothing links.
func reach(spec *jobspec.Spec) event.Micros {
	gap := spec.Session.Gap
	for _, k := range spec.Kinds {
		gap = max(gap, k.Gap)
	}
	return event.Micros((gap + spec.Session.MaxSpan).Microseconds())
}

// settled tells whether nothing that a version serves can change any more.
func (s *Stage) settled(ctx context.Context, job string, version int) (bool, error) {
	generation, err := s.Versions.generation(ctx, job, version)
	if err != nil {
		return false, err
	}
	m, err := s.Versions.Env.Store.ServingMap(ctx, job)
	if err != nil {
		return false, err
	}
	last := event.MinTime
	for _, a := range m.Ranges {
		if a.Generation == generation {
			last = a.To
		}
	}
	if last == event.MinTime || last == event.MaxTime {
		return last == event.MinTime, nil
	}
	compiled, err := s.compile(ctx, job, version)
	if err != nil {
		return false, err
	}
	watermark, err := s.watermark(ctx, job, version)
	if err != nil || watermark == event.MinTime {
		return false, err
	}
	return last+reach(compiled.Spec)+event.Micros(compiled.Spec.Session.Retention.Microseconds()) < watermark, nil
}

// coveredFrom returns the start from which on a version that has read all that is still in its topics has every session
// whole. Where nothing was deleted that is the beginning of time. Otherwise it lies behind all that a deleted record could
// have been part of: its time is at most the broker's timestamp of the first record that is left, plus max_ahead; a session
// that crosses that moment reaches no further than the served version shows, plus the largest gap.
func (s *Stage) coveredFrom(ctx context.Context, in activities.StandingInput, job *operator.Job, log Topics) (event.Micros, error) {
	partitions, err := log.Partitions(ctx, job)
	if err != nil {
		return 0, err
	}
	archives := NewLog(s.Versions.Env.Kafka) // it is asked for what the archive has
	defer archives.Close()                   // only read
	lost, past := event.MinTime, archives.GoBack(job, ArchiveObjects{s.Versions.Env.Objects}, "", s.Versions.Log)
	for _, p := range partitions {
		first, end, err := log.Bounds(ctx, p)
		if err != nil {
			return 0, err
		}
		if first == 0 { // nothing was deleted
			continue
		}
		at, err := past.lostBefore(ctx, p, first)
		switch {
		case err != nil:
			return 0, err
		case at == event.MinTime:
			continue
		case at != event.MaxTime:
			lost = max(lost, at+event.Micros(job.Spec.Watermark.MaxAhead.Microseconds()))
			continue
		}
		at = event.Micros(s.now().UnixMicro())
		if first < end {
			var b event.Batch
			if _, _, err := log.Fetch(ctx, p, first, &b, 1, 0); err != nil {
				return 0, err
			}
			if len(b.Records) > 0 {
				at = b.Records[0].Timestamp
			}
		}
		lost = max(lost, at+event.Micros(job.Spec.Watermark.MaxAhead.Microseconds()))
	}
	if lost == event.MinTime {
		return lost, nil
	}
	served, err := s.compile(ctx, in.Job, in.Current)
	if err != nil {
		return 0, err
	}
	generation, err := s.Versions.generation(ctx, in.Job, in.Current)
	if err != nil {
		return 0, err
	}
	gap := event.Micros(max(largestGap(job.Spec), largestGap(served.Spec)).Microseconds())
	_, last, err := s.Versions.Env.Store.Straddling(ctx, store.Scope{Job: in.Job, Generation: generation}, lost)
	return windowAfter(last+gap, job.Spec, served.Spec), err
}

func largestGap(spec *jobspec.Spec) time.Duration {
	gap := spec.Session.Gap
	for _, k := range spec.Kinds {
		gap = max(gap, k.Gap)
	}
	return gap
}

// windowAfter returns the first time after at where the windows of all reports begin: a cell belongs to one generation.
func windowAfter(at event.Micros, specs ...*jobspec.Spec) event.Micros {
	every := int64(1)
	for _, spec := range specs {
		for _, r := range spec.Reports {
			n := r.Every.Microseconds()
			a, b := every, n
			for b != 0 {
				a, b = b, a%b
			}
			if every/a > math.MaxInt64/4/n || every/a*n > int64(week/time.Microsecond) {
				every = max(every, n) // no common window within a week: the longest must do
				continue
			}
			every = every / a * n
		}
	}
	return event.Micros((int64(at)/every + 1) * every)
}

// Compare compares two versions and judges the candidate by the gates of its spec.
func (s *Stage) Compare(ctx context.Context, in activities.TrialInput, progress func()) (r activities.Trial, err error) {
	job, err := s.compile(ctx, in.Job, in.Version)
	if err != nil {
		return r, err
	}
	gates, err := rules.CompileGates(job.Spec)
	if err != nil {
		return r, err
	}
	served, err := s.compile(ctx, in.Job, in.Current)
	if err != nil {
		return r, err
	}
	c := comparison{expect: job.Spec.Expect, added: addedFields(served.Spec, job.Spec), limit: int(min(max(compareMax, gates.MinSessions), 1<<30)), counts: map[string]*[2]int64{}}
	var sides [2]*side
	for i, version := range []int{in.Current, in.Version} {
		generation, err := s.Versions.generation(ctx, in.Job, version)
		if err != nil {
			return r, err
		}
		sides[i] = &side{ctx: ctx, store: s.Versions.Env.Store, progress: progress,
			query: store.SessionQuery{Scope: store.Scope{Job: in.Job, Generation: generation}, From: event.Micros(in.From), To: event.MaxTime,
				Page: store.Page{Limit: store.PageRowsMax}}}
		if sides[i].watermark, err = s.watermark(ctx, in.Job, version); err != nil {
			return r, err
		}
	}
	if err := c.run(sides[0], sides[1]); err != nil {
		return r, err
	}
	r = c.result()
	rejected, err := s.counts(ctx, in, job, &r)
	if err != nil {
		return r, err
	}
	if r.LagMS, err = s.lag(ctx, in.Job, in.Version, in.Current, job.Spec); err != nil {
		return r, err
	}
	m := rules.Metrics{Sessions: r.Sessions, Matched: r.Matched, MatchRate: r.MatchRate, ScenarioShift: r.ScenarioShift, Records: r.Records,
		Rejects: r.Rejects, RejectRate: r.RejectRate, Lag: time.Duration(r.LagMS) * time.Millisecond}
	if r.LagMS < 0 {
		m.Lag = math.MaxInt64 // not known is not small
	}
	judged, verdict := gates.Judge(m)
	r.Verdict, r.Gates = string(verdict), []activities.GateResult{}
	for _, j := range judged {
		r.Gates = append(r.Gates, activities.GateResult{Gate: j.Gate, Want: j.Want, Got: j.Got, Verdict: string(j.Verdict)})
	}
	r.Summary = c.summary(&r, rejected)
	if len(c.differences) > 0 {
		r.Differences = in.Key
		err = s.keepDifferences(ctx, in, &c, &r)
	}
	return r, err
}

// addedFields lists the fields that only the candidate has: there is nothing to compare them with.
func addedFields(served, candidate *jobspec.Spec) (list []string) {
	for _, f := range candidate.Fields {
		if !slices.ContainsFunc(served.Fields, func(g jobspec.FieldDef) bool { return g.Name == f.Name }) {
			list = append(list, f.Name)
		}
	}
	return list
}

// counts adds how many records the candidate has read and rejected, which it returns by source and reason.
func (s *Stage) counts(ctx context.Context, in activities.TrialInput, job *operator.Job, r *activities.Trial) (rejects []store.ExceptionCount, err error) {
	generation, err := s.Versions.generation(ctx, in.Job, in.Version)
	if err != nil {
		return nil, err
	}
	rejects, err = s.Versions.Env.Store.CountExceptions(ctx, in.Job, generation, store.Rejected)
	if err != nil {
		return nil, err
	}
	for _, x := range rejects {
		r.Rejects += x.Count
	}
	log := s.topics()
	defer log.Close() // only read
	first, _, err := bounds(ctx, job, log)
	if err != nil {
		return nil, err
	}
	have, _, err := s.heads(ctx, in.Job, in.Version)
	if err != nil {
		return nil, err
	}
	for name, next := range have {
		if readsTopic(job.Spec, name) {
			r.Records += max(0, next-first[name])
		}
	}
	r.Records = max(r.Records, r.Rejects) // of the last checkpoint; rejects are newer
	if r.Records > 0 {
		r.RejectRate = float64(r.Rejects) / float64(r.Records)
	}
	return rejects, nil
}

// side reads the sessions of one version, the newest first.
type side struct {
	ctx       context.Context
	store     *store.Store
	progress  func()
	query     store.SessionQuery
	watermark event.Micros
	page      []store.Row
	read      int
	end       bool
}

// next returns the next session without taking it; nil: there is none.
func (d *side) next() (*store.Row, error) {
	if len(d.page) == 0 && !d.end {
		r, err := d.store.Sessions(d.ctx, d.query)
		if err != nil {
			return nil, err
		}
		d.progress()
		d.page, d.query.After, d.end = r.Items, r.Next, r.Next == ""
	}
	if len(d.page) == 0 {
		return nil, nil
	}
	return &d.page[0], nil
}

func (d *side) take() {
	d.page = d.page[1:]
	d.read++
}

// decided tells whether a version has seen time past the moment at which a session is closed.
func (d *side) decided(r *store.Row) bool { return r.End+r.Settle <= d.watermark }

// comparison compares the sessions of two versions.
type comparison struct {
	expect      []string
	added       []string // fields that only the candidate has
	limit       int
	clipped     bool
	trial       activities.Trial
	counts      map[string]*[2]int64 // sessions by scenario: in the current version, in the candidate
	decided     [2]int64             // sessions of each that were counted
	parts       map[string]int64     // sessions by part that differs
	differences []Difference
	bytes       int // of the sessions in differences
}

// run walks over both, which come in the same order.
func (c *comparison) run(current, candidate *side) error {
	for current.read < c.limit && candidate.read < c.limit {
		a, err := current.next()
		if err != nil {
			return err
		}
		b, err := candidate.next()
		if err != nil {
			return err
		}
		order := 0
		switch {
		case a == nil && b == nil:
			return nil
		case a == nil:
			order = 1
		case b == nil:
			order = -1
		default:
			order = cmp.Or(cmp.Compare(b.Start, a.Start), bytes.Compare(b.ID[:], a.ID[:]))
		}
		if order <= 0 {
			current.take()
		} else {
			a = nil
		}
		if order >= 0 {
			candidate.take()
		} else {
			b = nil
		}
		if err := c.pair(current, candidate, a, b); err != nil {
			return err
		}
	}
	c.clipped = true
	return nil
}

// pair takes one session into account, as each version has it; nil: it has not.
func (c *comparison) pair(current, candidate *side, a, b *store.Row) (err error) {
	for _, r := range []*store.Row{a, b} {
		if r != nil && (!current.decided(r) || !candidate.decided(r)) {
			return nil
		}
	}
	var bodies [2]map[string]json.RawMessage
	var scenarios [2][]string
	var known *store.Row
	for i, r := range []*store.Row{a, b} {
		if r == nil {
			continue
		}
		known = r
		if err := json.Unmarshal(r.Body, &bodies[i]); err != nil {
			return fmt.Errorf("read session %x: %w", r.ID, err)
		}
		if err := json.Unmarshal(bodies[i]["scenarios"], &scenarios[i]); err != nil {
			return fmt.Errorf("read the scenarios of session %x: %w", r.ID, err)
		}
		c.decided[i]++
		scenarios[i] = slices.DeleteFunc(scenarios[i], func(name string) bool { return slices.Contains(c.expect, name) })
		for _, name := range scenarios[i] {
			if c.counts[name] == nil {
				c.counts[name] = &[2]int64{}
			}
			c.counts[name][i]++
		}
	}
	c.trial.Sessions++
	var what []string
	switch {
	case a == nil:
		c.trial.OnlyCandidate++
		what = []string{OnlyCandidate}
	case b == nil:
		c.trial.OnlyCurrent++
		what = []string{OnlyCurrent}
	case !bytes.Equal(a.Body, b.Body):
		if what, err = differing(bodies[0], bodies[1], scenarios, c.added); err != nil {
			return fmt.Errorf("read session %x: %w", a.ID, err)
		}
	}
	if slices.Contains(c.expect, "sessions") { // other sessions are intended; what they are named is not
		what = slices.DeleteFunc(what, func(part string) bool { return part != "scenarios" })
	}
	if len(what) == 0 {
		c.trial.Matched++
		return nil
	}
	for _, part := range what {
		if c.parts == nil {
			c.parts = map[string]int64{}
		}
		c.parts[part]++
	}
	if len(c.differences) < differencesMax {
		d := Difference{ID: known.ID.String(), Start: time.UnixMicro(int64(known.Start)).UTC().Format(time.RFC3339Nano),
			What: what, Current: scenarios[0], Candidate: scenarios[1]}
		for into, r := range map[*json.RawMessage]*store.Row{&d.CurrentSession: a, &d.CandidateSession: b} {
			if r != nil && c.bytes+len(r.Body) <= differencesBytesMax {
				*into, c.bytes = slices.Clone(r.Body), c.bytes+len(r.Body)
			}
		}
		c.differences = append(c.differences, d)
	}
	return nil
}

// summary says in words what does not agree: whoever reads why a version was given up has nothing else at first.
func (c *comparison) summary(r *activities.Trial, rejects []store.ExceptionCount) string {
	var parts []string
	if n := r.Sessions - r.Matched; n > 0 {
		text := fmt.Sprintf("%s of %s sessions that both versions have decided differ", grouped(n), grouped(r.Sessions))
		var list []string
		for _, name := range slices.SortedFunc(maps.Keys(c.parts), func(a, b string) int { return cmp.Or(cmp.Compare(c.parts[b], c.parts[a]), cmp.Compare(a, b)) }) {
			words := "in their " + name
			switch name {
			case "revision": // the number of events
				continue
			case OnlyCurrent:
				words = "only in the served version"
			case OnlyCandidate:
				words = "only in the candidate"
			}
			list = append(list, fmt.Sprintf("%s %s", grouped(c.parts[name]), words))
		}
		parts = append(parts, text+": "+strings.Join(list, ", "))
	}
	if n := c.counts[r.Shifted]; n != nil && r.ScenarioShift > 0 {
		parts = append(parts, fmt.Sprintf("%s holds for %s sessions instead of %s", r.Shifted, grouped(n[1]), grouped(n[0])))
	}
	judged := func(g activities.GateResult) bool { // a gate that rejects can have failed
		return g.Verdict == activities.GatesFail && g.Gate != "match_rate" && g.Gate != "scenario_shift"
	}
	if r.Rejects > 0 && slices.ContainsFunc(r.Gates, judged) {
		most := slices.MaxFunc(rejects, func(a, b store.ExceptionCount) int { return cmp.Compare(a.Count, b.Count) })
		parts = append(parts, fmt.Sprintf("%s of %s records are rejected, most of them of source %s (%s)", grouped(r.Rejects), grouped(r.Records), most.Source, most.Reason))
	}
	return strings.Join(parts, "; ")
}

// grouped writes a number with commas.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// differing lists the parts of a session that differ, beside intended differences in scenarios and fields that b alone can have.
func differing(a, b map[string]json.RawMessage, scenarios [2][]string, added []string) (what []string, err error) {
	names := slices.Sorted(maps.Keys(a))
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		switch name {
		case "decided": // moments of scenarios, which are compared by name
		case "scenarios":
			if !slices.Equal(slices.Sorted(slices.Values(scenarios[0])), slices.Sorted(slices.Values(scenarios[1]))) {
				what = append(what, name)
			}
		case "fields":
			same, err := sameFields(a[name], b[name], added)
			if err != nil {
				return nil, err
			}
			if !same {
				what = append(what, name)
			}
		default:
			if !bytes.Equal(a[name], b[name]) {
				what = append(what, name)
			}
		}
	}
	return what, nil
}

// sameFields compares the fields of a session, without those that were added.
func sameFields(a, b json.RawMessage, added []string) (bool, error) {
	if bytes.Equal(a, b) || len(added) == 0 {
		return bytes.Equal(a, b), nil
	}
	var both [2]map[string]json.RawMessage
	for i, text := range []json.RawMessage{a, b} {
		if len(text) == 0 {
			continue
		}
		if err := json.Unmarshal(text, &both[i]); err != nil {
			return false, err
		}
	}
	maps.DeleteFunc(both[1], func(name string, _ json.RawMessage) bool { return slices.Contains(added, name) })
	return maps.EqualFunc(both[0], both[1], func(x, y json.RawMessage) bool { return bytes.Equal(x, y) }), nil
}

// result sums up.
func (c *comparison) result() activities.Trial {
	r := c.trial
	r.Clipped = c.clipped
	if r.Sessions > 0 {
		r.MatchRate = float64(r.Matched) / float64(r.Sessions)
	}
	for _, name := range slices.Sorted(maps.Keys(c.counts)) {
		n := c.counts[name]
		share := func(i int) float64 { return float64(n[i]) / float64(max(c.decided[i], 1)) }
		if shift := math.Abs(share(0) - share(1)); shift > r.ScenarioShift {
			r.ScenarioShift, r.Shifted = shift, name
		}
	}
	return r
}

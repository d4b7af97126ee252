package streaming

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/spill"
)

// Run runs a shard until ctx is done, which ends it with a last checkpoint and nil, or until something fails. It starts
// where the last checkpoint ended, whoever wrote that.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	s := &shard{
		cfg:    cfg,
		log:    cfg.Logger.With("shard", cfg.Name),
		saved:  checkpoints{objects: cfg.Objects, prefix: cfg.Name + "/"},
		empty:  make([]bool, len(cfg.Partitions)),
		next:   make([]int64, len(cfg.Partitions)),
		ends:   make([]int64, len(cfg.Partitions)),
		past:   make([]*past, len(cfg.Partitions)),
		topics: map[string]string{},

		changes: &Changes{},
		sources: make([]SourceStatus, len(cfg.Job.Spec.Sources)),
	}
	s.saved.retry = s.retry
	if cfg.Groups != nil {
		s.inlet, s.repartition = newInlet(s), newRepartitioner(s)
	}
	defer func() { s.spill.Close() }()
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("start shard %s: %w", cfg.Name, err)
	}
	if err := s.loop(ctx); err != nil {
		return fmt.Errorf("shard %s: %w", cfg.Name, err)
	}
	return nil
}

// shard is one run of a shard. One goroutine owns it; partition readers, the writer to the sink and the upload of a
// checkpoint talk to it by channels.
type shard struct {
	cfg    Config
	log    logger
	core   *correlate.Core
	spill  *spill.Store // nil: all state is in memory
	mark   *correlate.Watermark
	saved  checkpoints
	epoch  uint64
	topics map[string]string // identities

	empty []bool  // by partition: it held nothing when the run started
	next  []int64 // by partition: offset to go on at
	ends  []int64 // by partition: end when it was last read
	past  []*past // by partition, of the only shard

	inlet       *inlet // of one of several shards, whose next offsets say what it took of the partitions; else nil
	repartition *repartitioner

	changes *Changes // to be written next
	writer  *writer
	due     bool         // it is time for a write
	pause   time.Time    // before which it is not
	marked  time.Time    // when the last write was begun
	told    event.Micros // watermark of that write

	status  Status
	sources []SourceStatus
	counted time.Time // when status.Core was

	state      []byte             // of the last checkpoint; its memory is used for the next
	saving     chan error         // result of the upload that is under way; nil: none is
	stopSaving context.CancelFunc // ends that upload
	manifestAt uint64             // number of writes after which its manifest may be put
	written    chan struct{}      // closed when they have taken place
	began      time.Time
}

// countEvery is how often the state is counted, which takes a look at every session.
const countEvery = 5 * time.Second

// markEvery is how often the sink is told the watermark where nothing else is to be told: readers compare the moments of
// scenarios, and the ends of sessions, with it.
const markEvery = time.Second

// pauses is how many times as long as handing out changes took, none are handed out again. Under load sessions are handed out
// less often, after more of their events, and most of the time is left for input.
const pauses = 3

// exceptionBytesMax bounds the raw bytes of rejects and late events that wait for the sink before input waits too.
const exceptionBytesMax = 64 << 20

type logger interface {
	Info(msg string, args ...any)
	Warn(msg string, args ...any)
}

// start takes over the shard: a new epoch, the last checkpoint, and the sink set right.
func (s *shard) start(ctx context.Context) (err error) {
	err = s.retry(ctx, "take an epoch", func() (err error) {
		s.epoch, err = s.cfg.Sink.TakeEpoch(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("take an epoch: %w", err)
	}
	var before manifest
	err = s.retry(ctx, "take over the last checkpoint", func() (err error) {
		before, err = s.claim(ctx)
		for errors.Is(err, ErrFenced) && s.saved.overtaken < s.epoch {
			before, err = s.claim(ctx) // an earlier run saved its last checkpoint just now: start from that one
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := s.retry(ctx, "sweep old state", func() error { return s.saved.sweep(ctx) }); err != nil {
		return err
	}
	if err := s.openSpill(ctx, before.Spill); err != nil {
		return err
	}
	if err := s.repair(ctx, before); err != nil {
		return err
	}
	s.log.Info("started", "epoch", s.epoch, "checkpoint", before.Number, "watermark", int64(s.core.Watermark()))
	return nil
}

// claim reads the last checkpoint, and makes the manifest this run's: from then on a run before it can save nothing.
func (s *shard) claim(ctx context.Context) (before manifest, err error) {
	core, found, err := s.saved.load(ctx, s.cfg.Job.Config)
	if err != nil {
		return before, err
	}
	if there := s.saved.current.Epoch; there > s.epoch { // this run was slow to start
		s.saved.overtaken = there
		return before, fmt.Errorf("%w: the manifest is of epoch %d, this run of %d", ErrFenced, there, s.epoch)
	}
	s.core = core
	w := s.cfg.Job.Spec.Watermark
	s.mark = correlate.NewWatermark(correlate.WatermarkConfig{
		Delay: event.Micros(w.Delay.Microseconds()), MaxAhead: event.Micros(w.MaxAhead.Microseconds()),
	}, len(s.cfg.Partitions))
	if found {
		if err := s.saved.current.restoreWatermark(s.mark, s.cfg.Partitions); err != nil {
			return before, err
		}
	}
	if err := s.place(ctx); err != nil {
		return before, err
	}
	before = s.saved.current
	claim := s.manifest()
	claim.Number, claim.Sequence, claim.StateEpoch, claim.Pending = before.Number, before.Sequence, before.StateEpoch, before.Pending
	claim.Files = before.Files
	claim.Spill = before.Spill
	return before, s.saved.put(ctx, claim)
}

// place sets the offsets to go on at, and makes sure that they still mean what they did.
func (s *shard) place(ctx context.Context) error {
	if s.inlet != nil {
		return s.placeGroups(ctx)
	}
	var errs []error
	if g := s.saved.current.Groups; g != nil {
		errs = append(errs, fmt.Errorf("the checkpoint is of shard %d of %d and the run is the only shard: run the job as a new version", g.Shard, g.Shards))
	}
	for i, p := range s.cfg.Partitions {
		identity, ok := s.topics[p.Topic]
		if !ok {
			var err error
			if identity, err = s.cfg.Log.Identity(ctx, p.Topic); err != nil {
				return fmt.Errorf("look up topic %s: %w", p.Topic, err)
			}
			s.topics[p.Topic] = identity
		}
		state := s.saved.current.partition(p)
		first, end, err := s.cfg.bounds(ctx, p, state)
		if err != nil {
			return err
		}
		if s.next[i], err = placed(p, state, identity, first, end); err != nil {
			errs = append(errs, err)
			continue
		}
		if s.past[i], err = s.cfg.openPast(ctx, p, state, s.next[i]); err != nil {
			return err
		}
		s.ends[i], s.empty[i] = end, first == end
	}
	for i := range s.saved.current.Partitions {
		if was := &s.saved.current.Partitions[i]; !has(s.cfg.Partitions, was) {
			errs = append(errs, fmt.Errorf("partition %s/%d is in the checkpoint and not in the shard: its records would be lost", was.Topic, was.ID))
		}
	}
	return errors.Join(errs...)
}

// placed returns where to go on in a partition that was left in a state, if its offsets still mean what they did.
func placed(p Partition, state *partitionState, identity string, first, end int64) (next int64, err error) {
	switch {
	case state == nil:
		return first, nil
	case state.Identity != identity:
		return 0, fmt.Errorf("%s: %w (it was %q and is %q): its offsets mean nothing to the checkpoint; run the job as a new version that starts from the archive", p, ErrRecreated, state.Identity, identity)
	case state.Next < first:
		return 0, fmt.Errorf("%s: %w: offsets %d to %d; raise the topic's retention, and rebuild the range from the archive", p, ErrOffsetGone, state.Next, first-1)
	case state.Next > end:
		return 0, fmt.Errorf("%s: the checkpoint is at offset %d and the partition ends at %d: %w", p, state.Next, end, ErrRecreated)
	}
	return state.Next, nil
}

func has(list []Partition, was *partitionState) bool {
	return slices.ContainsFunc(list, func(p Partition) bool { return p.Topic == was.Topic && p.ID == was.ID })
}

// repair sets the sink right: what was written after the checkpoint is overwritten from the state.
func (s *shard) repair(ctx context.Context, at manifest) error {
	var ids []correlate.ID
	var cells []correlate.Cell
	err := s.retry(ctx, "ask the sink what came after the checkpoint", func() (err error) {
		ids, cells, err = s.cfg.Sink.After(ctx, s.epoch, Point{at.StateEpoch, at.Sequence})
		return err
	})
	if err != nil {
		return fmt.Errorf("ask the sink what came after the checkpoint: %w", err)
	}
	if err := s.spill.LoadIDs(s.core, ids); err != nil {
		return err
	}
	s.core.Repair(ids, s.changes)
	s.core.RepairCells(cells, s.changes)
	if len(ids)+len(cells) > 0 {
		s.log.Info("repaired the sink", "sessions", len(ids), "cells", len(cells))
	}
	s.gather()
	if err := s.write(ctx, s.changes); err != nil {
		return err
	}
	s.status.Sequence = s.changes.Last
	s.changes.reset()
	return nil
}

// loop takes in what the readers bring until ctx is done.
func (s *shard) loop(outer context.Context) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	messages, done, err := s.read(ctx, cancel)
	if err != nil {
		return err
	}
	s.writer = newWriter(ctx, s.write)
	defer s.abandon()
	err = s.steer(ctx, messages)
	if err == nil && outer.Err() == nil {
		err = context.Cause(ctx) // a reader failed
	}
	cancel(err)
	<-done
	if err != nil {
		return err
	}
	// The run was asked to end.
	last, stop := context.WithTimeout(context.WithoutCancel(outer), s.cfg.StopWithin)
	defer stop()
	if err := s.settle(last); err != nil {
		return fmt.Errorf("save a checkpoint: %w", err)
	}
	s.checkpoint(last)
	if err := s.settle(last); err != nil {
		return fmt.Errorf("save the last checkpoint: %w", err)
	}
	s.log.Info("stopped", "checkpoint", s.saved.current.Number)
	return nil
}

// steer is the loop proper. It returns nil when ctx ends.
func (s *shard) steer(ctx context.Context, messages chan *message) error {
	flush := time.NewTicker(s.cfg.FlushEvery)
	defer flush.Stop()
	checkpoint := time.NewTicker(s.cfg.CheckpointEvery)
	defer checkpoint.Stop()
	for {
		in := messages
		if s.full() {
			in = nil // until the sink has taken what is under way
		}
		select {
		case m := <-in:
			if err := s.take(m); err != nil {
				return err
			}
			if err := s.relieve(ctx); err != nil {
				return err
			}
			s.flushIfDue()
		case <-flush.C:
			if err := s.expireIdle(time.Now()); err != nil {
				return err
			}
			// While a write is under way the core gathers changes: a sink that is slow gets fewer and larger batches, in
			// which a session that changed often is one row.
			s.due = true
			s.flushIfDue()
			s.report()
		case <-checkpoint.C:
			if s.saving == nil { // the one before may still be on its way
				s.checkpoint(ctx)
			}
		case a := <-s.writer.acks:
			if err := s.acknowledge(a); err != nil {
				return err
			}
			s.flushIfDue()
		case err := <-s.saving:
			if err := s.saveEnded(err); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// settle waits for all writes and for the checkpoint that are under way.
func (s *shard) settle(ctx context.Context) error {
	for s.writer.underWay() > 0 || s.saving != nil {
		var err error
		select {
		case a := <-s.writer.acks:
			err = s.acknowledge(a)
		case err = <-s.saving:
			err = s.saveEnded(err)
		case <-ctx.Done():
			err = fmt.Errorf("the sink or the object store took longer than %v: %w", s.cfg.StopWithin, ctx.Err())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// abandon gives up what is under way: nothing may go on behind a run that has ended.
func (s *shard) abandon() {
	if s.saving != nil {
		s.stopSaving()
		<-s.saving
	}
	s.writer.close()
}

// take applies what a reader brought, and lets it go on.
func (s *shard) take(m *message) error {
	defer func() { m.free <- m }()
	if m.idle {
		s.mark.Idle(m.partition)
		return nil
	}
	b := &m.batch
	if err := s.spill.Load(s.core, b); err != nil {
		return err
	}
	late := len(s.changes.LateEvents)
	var err error
	s.changes.take(func(out correlate.Output) { err = s.core.Apply(b, out) })
	if err != nil {
		return err
	}
	if m.arrived != nil {
		s.applied(m, late)
		return nil
	}
	if to := s.past[m.partition].hold(m.next, m.newest); to != event.MinTime {
		s.mark.Observe(m.partition, to, event.MinTime)
	}
	s.next[m.partition], s.ends[m.partition] = m.next, m.end
	s.changes.ages = append(s.changes.ages, m.ages...)

	s.status.Records += int64(len(b.Records))
	s.status.Rejects += int64(len(b.Rejects))
	of := &s.sources[s.cfg.Partitions[m.partition].Source]
	of.Records += int64(len(b.Records))
	of.Bytes += m.bytes
	of.Events += int64(len(b.Events))
	of.Skipped += b.Skipped
	of.Late += int64(len(s.changes.LateEvents) - late)
	for i := range b.Rejects {
		s.changes.reject(b, &b.Rejects[i])
		if of.Rejects == nil {
			of.Rejects = map[event.Reason]int64{}
		}
		of.Rejects[b.Rejects[i].Reason]++
	}
	return nil
}

// full tells whether so much waits for the sink that input has to wait too.
func (s *shard) full() bool {
	return s.core.Pending()+len(s.changes.Sessions) >= s.cfg.PendingMax || s.changes.texts.used >= exceptionBytesMax
}

// gather collects what changed.
func (s *shard) gather() {
	if w := s.mark.Value(); w != event.MinTime {
		s.changes.take(func(out correlate.Output) { s.core.Advance(w, out) })
	}
	s.changes.take(s.core.Flush)
	s.changes.Last, s.changes.Watermark = s.core.Sequence(), s.core.Watermark()
}

// flushIfDue begins to write what changed if it is time to, and no write is under way.
func (s *shard) flushIfDue() {
	if s.writer.underWay() == 0 && (s.full() || s.due && !time.Now().Before(s.pause)) {
		s.flush()
	}
}

// flush begins to write what changed. No write may be under way.
func (s *shard) flush() {
	s.due = false
	begin := time.Now()
	s.gather()
	now := time.Now()
	s.pause = now.Add(pauses * now.Sub(begin))
	if s.changes.empty() {
		s.changes.count(&s.status.Latency, now) // these records changed nothing
		if s.changes.Watermark <= s.told || now.Sub(s.marked) < markEvery {
			return
		}
	}
	s.hand(now)
}

// hand begins to write the changes that were collected.
func (s *shard) hand(now time.Time) {
	s.marked, s.told = now, s.changes.Watermark
	s.changes = s.writer.hand(s.changes)
}

// acknowledge notes that the sink has taken changes.
func (s *shard) acknowledge(a ack) error {
	if a.err != nil {
		return a.err
	}
	s.status.Sequence = a.changes.Last
	a.changes.count(&s.status.Latency, a.at)
	s.writer.take(a)
	if s.saving != nil && s.writer.acked == s.manifestAt {
		close(s.written)
	}
	return nil
}

// checkpoint takes the state and the offsets, and starts to save them. Only taking the state holds up the input; the upload
// does not. None may be under way.
func (s *shard) checkpoint(ctx context.Context) {
	s.began = time.Now()
	if s.writer.underWay() == 0 {
		s.flush()
	} else if !s.changes.empty() {
		// The state has what is left to hand out, but of rejects and late events it knows nothing.
		s.changes.Last, s.changes.Watermark = s.core.Sequence(), s.core.Watermark()
		s.hand(s.began)
	}
	m := s.manifest()
	m.Number = s.saved.current.Number + 1
	m.Sequence, m.StateEpoch, m.Pending = s.core.Sequence(), s.epoch, s.core.Pending()
	s.state = s.core.AppendPart(s.state[:0])
	m.Files = s.saved.files(s.core, &m, s.state)
	spilled := s.spill.Checkpoint(m.Number)
	m.Spill = spilled.State()
	s.status.Saved.Bytes = int64(len(s.state))

	s.manifestAt, s.written = s.writer.handed, make(chan struct{})
	if s.writer.underWay() == 0 {
		close(s.written)
	}
	done, state, written := make(chan error, 1), s.state, s.written
	s.saving = done
	// A run that is asked to stop ends what it has begun to save.
	ctx, s.stopSaving = context.WithCancel(context.WithoutCancel(ctx))
	go func() { done <- s.save(ctx, m, state, spilled, written) }()
	s.status.Saved.Stall = time.Since(s.began)
}

// save uploads state and then puts the manifest, in a goroutine of its own.
//
// The manifest waits until the sink has every change up to the state's. The state says that these were handed out; if the
// run died with the manifest in place and the changes not, the next run would not hand them out again, nor find them among
// what the sink has from later, and they would be lost.
func (s *shard) save(ctx context.Context, m manifest, state []byte, spilled *spill.Save, written <-chan struct{}) error {
	try := func(what string, f func(context.Context) error) error {
		return s.retry(ctx, what, func() error {
			ctx, cancel := context.WithTimeout(ctx, s.cfg.RetryFor)
			defer cancel()
			return f(ctx)
		})
	}
	if err := try("save a checkpoint's state", func(ctx context.Context) error { return s.saved.upload(ctx, m, state) }); err != nil {
		return err
	}
	if err := s.saveSpilled(spilled, try); err != nil {
		return err
	}
	select {
	case <-written:
	case <-ctx.Done():
		return ctx.Err()
	}
	superseded := s.saved.superseded(m)
	if err := try("save a checkpoint's manifest", func(ctx context.Context) error { return s.saved.put(ctx, m) }); err != nil {
		return err
	}
	if err := s.saved.delete(ctx, superseded); err != nil { // the next run sweeps it
		s.log.Warn("old state is left", "error", err)
	}
	return nil
}

// saveEnded takes in how saving a checkpoint went.
func (s *shard) saveEnded(err error) error {
	s.saving = nil
	s.stopSaving()
	s.spill.Saved()
	if err != nil {
		return fmt.Errorf("save a checkpoint: %w", err)
	}
	s.status.Checkpoint = s.saved.current.Number
	s.status.Saved.Count++
	s.status.Saved.Seconds = time.Since(s.began).Seconds()
	return nil
}

// manifest describes where the shard is, without state.
func (s *shard) manifest() manifest {
	value, marks := s.mark.State()
	m := manifest{Version: manifestVersion, Shard: s.cfg.Name, Epoch: s.epoch, Nonce: newNonce(), Watermark: int64(value)}
	for i, p := range s.cfg.Partitions {
		m.Partitions = append(m.Partitions, partitionState{
			Topic: p.Topic, ID: p.ID, Identity: s.topics[p.Topic], Next: s.next[i],
			MaxTime: int64(marks[i].Max), State: marks[i].State, Past: s.past[i].state(s.next[i]),
		})
	}
	if in := s.inlet; in != nil {
		m.Groups = in.g.state(in.identity, in.next)
	}
	return m
}

// retry tries again what fails for a reason that may pass.
func (s *shard) retry(ctx context.Context, what string, f func() error) error {
	return s.retryIf(ctx, what, s.cfg.Retryable, f)
}

func (s *shard) retryIf(ctx context.Context, what string, mayPass func(error) bool, f func() error) error {
	wait, until := 50*time.Millisecond, time.Now().Add(s.cfg.RetryFor)
	for {
		err := f()
		if err == nil || !mayPass(err) || time.Now().After(until) {
			return err
		}
		s.log.Warn("trying again", "what", what, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// report tells how far the shard is, in memory that nothing else uses.
func (s *shard) report() {
	s.status.Epoch, s.status.Watermark = s.epoch, s.core.Watermark()
	s.status.Lag = 0
	s.status.Partitions = make([]PartitionStatus, len(s.next))
	for i := range s.next {
		s.status.Lag += max(0, s.ends[i]-s.next[i])
		s.status.Partitions[i] = PartitionStatus{s.cfg.Partitions[i], s.next[i], s.ends[i]}
	}
	s.status.Sources = slices.Clone(s.sources)
	for i := range s.status.Sources {
		s.status.Sources[i].Rejects = maps.Clone(s.sources[i].Rejects)
	}
	if s.inlet != nil {
		s.reportGroups(&s.status)
	}
	s.status.Spill = s.spill.Status()
	if now := time.Now(); now.Sub(s.counted) >= countEvery {
		s.counted, s.status.Core = now, s.core.Stats()
	}
	s.cfg.Progress(s.status)
}

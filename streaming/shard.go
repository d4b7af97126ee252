package streaming

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
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
		topics: map[string]string{},
	}
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("start shard %s: %w", cfg.Name, err)
	}
	if err := s.loop(ctx); err != nil {
		return fmt.Errorf("shard %s: %w", cfg.Name, err)
	}
	return nil
}

// shard is one run of a shard. One goroutine owns it; partition readers and the upload of a checkpoint talk to it by
// channels.
type shard struct {
	cfg    Config
	log    logger
	core   *correlate.Core
	mark   *correlate.Watermark
	saved  checkpoints
	epoch  uint64
	topics map[string]string // identities

	empty   []bool  // by partition: it held nothing when the run started
	next    []int64 // by partition: offset to go on at
	ends    []int64 // by partition: end when it was last read
	changes Changes
	status  Status

	counted time.Time  // when status.Core was
	saving  chan error // result of the upload that is under way; nil: none is

	stopSaving func() // ends that upload
}

// countEvery is how often the state is counted, which takes a look at every session.
const countEvery = 5 * time.Second

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
	claim.Number, claim.Sequence, claim.StateEpoch, claim.Files = before.Number, before.Sequence, before.StateEpoch, before.Files
	return before, s.saved.put(ctx, claim)
}

// place sets the offsets to go on at, and makes sure that they still mean what they did.
func (s *shard) place(ctx context.Context) error {
	var errs []error
	for i, p := range s.cfg.Partitions {
		identity, ok := s.topics[p.Topic]
		if !ok {
			var err error
			if identity, err = s.cfg.Log.Identity(ctx, p.Topic); err != nil {
				return fmt.Errorf("look up topic %s: %w", p.Topic, err)
			}
			s.topics[p.Topic] = identity
		}
		first, end, err := s.cfg.Log.Bounds(ctx, p)
		if err != nil {
			return fmt.Errorf("look up the offsets of %s: %w", p, err)
		}
		state := s.saved.current.partition(p)
		switch {
		case state == nil:
			s.next[i] = first
		case state.Identity != identity:
			errs = append(errs, fmt.Errorf("%s: %w (it was %q and is %q): its offsets mean nothing to the checkpoint; run the job as a new version that starts from the archive", p, ErrRecreated, state.Identity, identity))
		case state.Next < first:
			errs = append(errs, fmt.Errorf("%s: %w: offsets %d to %d; raise the topic's retention, and rebuild the range from the archive", p, ErrOffsetGone, state.Next, first-1))
		case state.Next > end:
			errs = append(errs, fmt.Errorf("%s: the checkpoint is at offset %d and the partition ends at %d: %w", p, state.Next, end, ErrRecreated))
		default:
			s.next[i] = state.Next
		}
		s.ends[i], s.empty[i] = end, first == end
	}
	for i := range s.saved.current.Partitions {
		if was := &s.saved.current.Partitions[i]; !s.reads(was) {
			errs = append(errs, fmt.Errorf("partition %s/%d is in the checkpoint and not in the shard: its records would be lost", was.Topic, was.ID))
		}
	}
	return errors.Join(errs...)
}

func (s *shard) reads(was *partitionState) bool {
	for _, p := range s.cfg.Partitions {
		if p.Topic == was.Topic && p.ID == was.ID {
			return true
		}
	}
	return false
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
	s.core.Repair(ids, &s.changes)
	s.core.RepairCells(cells, &s.changes)
	if len(ids)+len(cells) > 0 {
		s.log.Info("repaired the sink", "sessions", len(ids), "cells", len(cells))
	}
	return s.flush(ctx)
}

// loop takes in what the readers bring until ctx is done.
func (s *shard) loop(outer context.Context) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	in, done, err := s.read(ctx, cancel)
	if err != nil {
		return err
	}
	flush := time.NewTicker(s.cfg.FlushEvery)
	defer flush.Stop()
	checkpoint := time.NewTicker(s.cfg.CheckpointEvery)
	defer checkpoint.Stop()
	for {
		select {
		case m := <-in:
			if err := s.take(m); err != nil {
				return err
			}
		case <-flush.C:
			if err := s.flush(ctx); err != nil {
				return s.ended(outer, done, cancel, err)
			}
			s.report()
		case <-checkpoint.C:
			if s.saving != nil {
				continue // the one before is still on its way
			}
			if err := s.checkpoint(ctx); err != nil {
				return s.ended(outer, done, cancel, err)
			}
		case err := <-s.saving:
			s.saving = nil
			s.stopSaving()
			if err != nil {
				return s.ended(outer, done, cancel, err)
			}
			s.status.Checkpoint = s.saved.current.Number
		case <-ctx.Done():
			return s.ended(outer, done, cancel, context.Cause(ctx))
		}
	}
}

// ended stops the readers. If the run was asked to end, it saves a last checkpoint.
func (s *shard) ended(outer context.Context, done chan struct{}, cancel func(error), err error) error {
	cancel(err)
	<-done
	if outer.Err() == nil {
		if s.saving != nil {
			s.stopSaving() // it must not go on behind a run that has ended
			<-s.saving
		}
		return err
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(outer), s.cfg.StopWithin)
	defer stop()
	if err := s.waitSaved(ctx); err != nil {
		return fmt.Errorf("save a checkpoint: %w", err)
	}
	if err := s.checkpoint(ctx); err != nil {
		return fmt.Errorf("save the last checkpoint: %w", err)
	}
	if err := s.waitSaved(ctx); err != nil {
		return fmt.Errorf("save the last checkpoint: %w", err)
	}
	s.log.Info("stopped", "checkpoint", s.saved.current.Number)
	return nil
}

// waitSaved waits for the upload that is under way.
func (s *shard) waitSaved(ctx context.Context) error {
	if s.saving == nil {
		return nil
	}
	defer context.AfterFunc(ctx, s.stopSaving)()
	err := <-s.saving
	s.saving = nil
	s.stopSaving()
	return err
}

// take applies what a reader brought, and lets it go on.
func (s *shard) take(m *message) error {
	defer func() { m.free <- m }()
	if m.idle {
		s.mark.Idle(m.partition)
		return nil
	}
	b := &m.batch
	if err := s.core.Apply(b, &s.changes); err != nil {
		return err
	}
	for i := range b.Rejects {
		s.changes.reject(b, &b.Rejects[i])
	}
	s.observe(m.partition, b)
	s.next[m.partition], s.ends[m.partition] = m.next, m.end
	s.status.Records += int64(len(b.Records))
	s.status.Rejects += int64(len(b.Rejects))
	return nil
}

// observe moves the watermark of a partition. Events stand in the order of their records.
func (s *shard) observe(partition int, b *event.Batch) {
	k := 0
	for i := range b.Events {
		e := &b.Events[i]
		for k < len(b.Records) && (b.Records[k].Offset != e.Offset || b.Records[k].Partition != e.Partition || b.Records[k].Source != e.Source) {
			k++
		}
		broker := event.MinTime
		if k < len(b.Records) {
			broker = b.Records[k].Timestamp
		}
		s.mark.Observe(partition, e.Time, broker)
	}
}

// flush hands out what changed and writes it.
func (s *shard) flush(ctx context.Context) error {
	if w := s.mark.Value(); w != event.MinTime {
		s.core.Advance(w, &s.changes)
	}
	s.core.Flush(&s.changes)
	if s.changes.empty() {
		return nil
	}
	s.changes.Last, s.changes.Watermark = s.core.Sequence(), s.core.Watermark()
	err := s.retry(ctx, "write changes", func() error { return s.cfg.Sink.Write(ctx, s.epoch, &s.changes) })
	if err != nil {
		return fmt.Errorf("write changes: %w", err)
	}
	s.changes.reset()
	return nil
}

// checkpoint writes what changed and starts to save state and offsets. Only taking the state holds up the input; the
// upload does not.
func (s *shard) checkpoint(ctx context.Context) error {
	if err := s.flush(ctx); err != nil {
		return err
	}
	m := s.manifest()
	m.Number = s.saved.current.Number + 1
	m.Sequence, m.StateEpoch = s.core.Sequence(), s.epoch
	var state []byte
	whole := s.saved.wholeIsDue()
	if whole {
		state = s.core.AppendSnapshot(nil)
	} else {
		state = s.core.AppendDelta(nil)
		m.Files = slices.Clone(s.saved.current.Files)
	}
	m.Files = append(m.Files, s.saved.file(&m, state))
	done := make(chan error, 1)
	s.saving = done
	// A run that is asked to stop ends what it has begun to save.
	ctx, s.stopSaving = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		err := s.retry(ctx, "save a checkpoint", func() error { return s.saved.save(ctx, m, state) })
		if err == nil && whole {
			if err := s.saved.sweep(ctx); err != nil { // what is left is swept another time
				s.log.Warn("old state is left", "error", err)
			}
		}
		done <- err
	}()
	return nil
}

// manifest describes where the shard is, without state.
func (s *shard) manifest() manifest {
	value, marks := s.mark.State()
	m := manifest{Version: manifestVersion, Shard: s.cfg.Name, Epoch: s.epoch, Nonce: newNonce(), Watermark: int64(value)}
	for i, p := range s.cfg.Partitions {
		m.Partitions = append(m.Partitions, partitionState{
			Topic: p.Topic, ID: p.ID, Identity: s.topics[p.Topic], Next: s.next[i],
			MaxTime: int64(marks[i].Max), State: marks[i].State,
		})
	}
	return m
}

// retry tries again what fails for a reason that may pass.
func (s *shard) retry(ctx context.Context, what string, f func() error) error {
	wait, until := 50*time.Millisecond, time.Now().Add(s.cfg.RetryFor)
	for {
		err := f()
		if err == nil || !s.cfg.Retryable(err) || time.Now().After(until) {
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

func (s *shard) report() {
	s.status.Epoch, s.status.Sequence, s.status.Watermark = s.epoch, s.core.Sequence(), s.core.Watermark()
	s.status.Lag = 0
	for i := range s.next {
		s.status.Lag += max(0, s.ends[i]-s.next[i])
	}
	if now := time.Now(); now.Sub(s.counted) >= countEvery {
		s.counted, s.status.Core = now, s.core.Stats()
	}
	s.cfg.Progress(s.status)
}

package archiver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Run archives a topic until ctx is done, which ends it with a last file of each partition and nil, or until something
// fails. What had not been archived then is read again by the next run.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configure the archiver: %w", err)
	}
	a := &archiver{
		cfg: cfg, log: cfg.Logger.With("topic", cfg.Topic),
		room:    newRoom(cfg.MemoryBytes),
		commits: make(chan struct{}, cfg.Commits),
		byID:    map[int32]*partition{},
	}
	var err error
	if a.times, err = newTracker(cfg.Jobs, cfg.Topic); err != nil {
		return fmt.Errorf("archive %s: %w", cfg.Topic, err)
	}
	if err := a.run(ctx); err != nil {
		return fmt.Errorf("archive %s: %w", cfg.Topic, err)
	}
	return nil
}

// archiver is one run. Each partition has a goroutine of its own; they share memory, slots for commits, and decoders.
type archiver struct {
	cfg      Config
	log      *slog.Logger
	times    *tracker
	room     *room
	commits  chan struct{} // holds one for each commit that is under way
	identity string

	mu   sync.Mutex // guards what follows, and the status of all partitions
	all  []*partition
	byID map[int32]*partition
}

func (a *archiver) run(outer context.Context) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	var running sync.WaitGroup
	fail := func(err error) {
		if err != nil {
			cancel(err)
		}
	}
	running.Go(func() { fail(a.look(ctx, &running, fail)) })
	running.Go(func() { a.sweepAll(ctx) })
	running.Go(func() { a.report(ctx) })
	running.Wait()
	if outer.Err() != nil && errors.Is(context.Cause(ctx), context.Cause(outer)) {
		return nil
	}
	return context.Cause(ctx)
}

// report tells how far the run is until ctx is done.
func (a *archiver) report(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			if status, stalled := a.status(now.Add(-a.cfg.StallAfter)); !stalled {
				a.cfg.Progress(status)
			}
		case <-ctx.Done():
			return
		}
	}
}

// look starts the partitions of the topic, and those that are added later, until ctx is done.
func (a *archiver) look(ctx context.Context, running *sync.WaitGroup, fail func(error)) error {
	tick := time.NewTicker(a.cfg.RefreshEvery)
	defer tick.Stop()
	for {
		if err := a.refresh(ctx, running, fail); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// refresh looks at the topic, and starts partitions that are not archived yet.
func (a *archiver) refresh(ctx context.Context, running *sync.WaitGroup, fail func(error)) error {
	var identity string
	var ids []int32
	err := a.retry(ctx, "look up the topic", func() (err error) {
		identity, ids, err = a.cfg.Log.Topic(ctx, a.cfg.Topic)
		return err
	})
	if err != nil {
		return fmt.Errorf("look up the topic: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.identity != "" && identity != "" && identity != a.identity {
		return fmt.Errorf("%w while it was archived (it was %s and is %s)", ErrRecreated, a.identity, identity)
	}
	a.identity = cmp.Or(identity, a.identity)
	slices.Sort(ids)
	for _, id := range ids {
		if a.byID[id] != nil {
			continue
		}
		p := &partition{a: a, id: id, identity: identity, rows: a.newRows(), status: PartitionStatus{ID: id, Turned: time.Now()}}
		a.byID[id] = p
		a.all = append(a.all, p)
		running.Go(func() {
			if err := p.run(ctx); err != nil {
				fail(fmt.Errorf("partition %d: %w", id, err))
			}
		})
	}
	return nil
}

// status returns how far all partitions are, and whether one has made no step since a moment.
func (a *archiver) status(since time.Time) (s Status, stalled bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s = Status{Topic: a.cfg.Topic, Identity: a.identity}
	for _, p := range a.all {
		s.Partitions = append(s.Partitions, p.status)
		stalled = stalled || p.status.Turned.Before(since)
	}
	return s, stalled
}

// retry tries again what fails for a reason that may pass.
func (a *archiver) retry(ctx context.Context, what string, f func() error) error {
	wait, until := 50*time.Millisecond, time.Now().Add(a.cfg.RetryFor)
	for {
		err := f()
		if err == nil || !a.cfg.Retryable(err) || time.Now().After(until) {
			return err
		}
		a.log.Warn("trying again", "what", what, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// room shares memory among the partitions.
type room struct {
	mu      sync.Mutex
	left    int64
	held    map[int32]int64
	changed chan struct{} // closed when something is given back
}

func newRoom(bytes int64) *room {
	return &room{left: bytes, held: map[int32]int64{}, changed: make(chan struct{})}
}

// take notes that a partition holds more.
func (r *room) take(id int32, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left -= bytes
	r.held[id] += bytes
}

// giveAll notes that a partition holds nothing any more.
func (r *room) giveAll(id int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left += r.held[id]
	delete(r.held, id)
	close(r.changed)
	r.changed = make(chan struct{})
}

// wait returns once there is room, or when the partition holds the most of all and so is the one to make some.
func (r *room) wait(ctx context.Context, id int32) (makeSome bool, err error) {
	for {
		r.mu.Lock()
		left, most, changed := r.left, r.held[id] > 0, r.changed
		for _, held := range r.held {
			most = most && held <= r.held[id]
		}
		r.mu.Unlock()
		if left > 0 || most {
			return left <= 0, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

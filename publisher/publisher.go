// Package publisher hands on what a job serves: to a Kafka topic keyed by session, and to Parquet files in an object store.
// It tails the change log of the generations that the serving map names, so it publishes what readers of the store see and
// nothing else: a shadow publishes nothing.
//
// Each outlet is fed by a Run of its own, with a checkpoint of its own. A run repeats:
//
//	rows after the cursors  ─►  outlet  ─►  everything is safe there  ─►  checkpoint: cursors, and where the outlet stands
//
// so that after any crash the next run repeats at most what came after the checkpoint. Every row has a Position. Whoever
// keeps the highest one of each session has exactly what is served, whatever was repeated or came late; Latest shows how.
//
// When the serving map changes, a run compares what was served with what is, newest sessions first, and publishes only the
// difference; then it tells the outlet that the switch is complete. docs/formats/published.md has what a consumer sees.
package publisher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// Outlet names where rows go. It is part of the key of the checkpoint.
type Outlet string

// The outlets.
const (
	TopicOutlet   Outlet = "topic"
	ParquetOutlet Outlet = "parquet"
)

// Source is what is read of the serving store, as store.Store has it.
type Source interface {
	ServingMap(ctx context.Context, job string) (store.Map, error)
	Generations(ctx context.Context, job string) ([]store.Generation, error)
	Shards(ctx context.Context, scope store.Scope) ([]store.ShardHead, error)
	Changes(ctx context.Context, scope store.Scope, shard int, after store.Position, limit int) (store.Changes, error)
	Sessions(ctx context.Context, q store.SessionQuery) (store.Result[store.Row], error)
	Session(ctx context.Context, scope store.Scope, id store.ID) (store.Row, error)
}

// Config says what is published and where. Durations have defaults.
type Config struct {
	Job     string
	Source  Source
	Objects Objects // checkpoints, and Parquet files

	// OpenTopic opens the output topic anew for every try; nil: Parquet files are written instead.
	OpenTopic func(ctx context.Context) (Topic, error)

	Poll            time.Duration // between two looks at the change log; default 200 ms
	IdlePoll        time.Duration // the longest wait for changes of what is not live, such as slices of a backfill; default 30 s
	CheckpointEvery time.Duration // default 5 s for a topic, 1 min for files, which end then
	FileBytes       int           // of bodies in a Parquet file; default 64 MiB
	RetryFor        time.Duration // how long errors that may pass are tried again; default 1 min
	StopWithin      time.Duration // for the last checkpoint; default 20 s

	Retryable func(error) bool // tells errors that may pass; default: none
	Progress  func(Status)     // called whenever the loop got on; may be nil
	Logger    *slog.Logger     // default: discards
}

// Validate fills in defaults and reports everything wrong at once.
func (c *Config) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(c.Job != "", "no job")
	need(c.Source != nil && c.Objects != nil, "no source or objects")
	every := 5 * time.Second
	if c.OpenTopic == nil {
		every = time.Minute
	}
	for _, d := range []struct {
		of *time.Duration
		or time.Duration
	}{{&c.Poll, 200 * time.Millisecond}, {&c.IdlePoll, 30 * time.Second}, {&c.CheckpointEvery, every}, {&c.RetryFor, time.Minute}, {&c.StopWithin, 20 * time.Second}} {
		if *d.of == 0 {
			*d.of = d.or
		}
		need(*d.of > 0, "a duration is negative")
	}
	if c.FileBytes == 0 {
		c.FileBytes = 64 << 20
	}
	need(c.FileBytes > 0, "the bytes of a file are negative")
	if c.Retryable == nil {
		c.Retryable = func(error) bool { return false }
	}
	if c.Progress == nil {
		c.Progress = func(Status) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(errs...)
}

// Status is how far a run is. Counts are those of the run, tries included.
type Status struct {
	Outlet     Outlet
	Epoch      uint64 // number of this start
	Checkpoint uint64 // number of the last one that is safe
	MapEpoch   uint64 // that what is published follows
	Switching  bool   // to a later map
	Published  int64  // rows
	Deleted    int64  // of them, of sessions that are gone
	Repeats    int64  // rows that were left out: the outlet had them from before a crash
	Mended     int64  // sessions published again, since a late write of an earlier publisher stood behind them
	Foreign    int64  // records in the topic that no publisher wrote
	// CaughtUp is when a look last found nothing more to publish; zero: not yet. What is published lags by the time since.
	CaughtUp time.Time
	Cursors  []Cursor // how far the changes of each shard were handed to the outlet
}

// outlet is where rows go. It is opened once, and after an error it is only closed.
type outlet interface {
	// open finds out what the outlet holds. It resets the state where that is not the checkpoint's: known is true then if
	// the outlet is empty, and false if it holds rows of which nothing is known.
	open(ctx context.Context, s *state) (known bool, err error)
	put(ctx context.Context, r *Row) error
	// full tells that it is time to flush.
	full() bool
	// flush returns when everything that was put is safe, with what open needs to find out what came later. strays are rows that must be published anew, as they are now.
	flush(ctx context.Context, s *state) (mark []byte, strays []Row, err error)
	// switched tells that a switch is complete.
	switched(ctx context.Context, m Switched) error
	// view yields every row that the outlet holds, in order.
	view(ctx context.Context, yield func(*Row) error) error
	close() error
}

// Run publishes to one outlet until ctx ends, and then returns nil after a last checkpoint. It returns an ErrFenced where
// another run of the same outlet has started.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configure a publisher: %w", err)
	}
	status := Status{Outlet: TopicOutlet}
	if cfg.OpenTopic == nil {
		status.Outlet = ParquetOutlet
	}
	wait := cfg.Poll
	failing := time.Time{}
	for {
		safe := status.Checkpoint
		err := try(ctx, &cfg, &status)
		if err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil
		}
		if status.Checkpoint > safe+1 { // beyond the one that claims
			failing, wait = time.Time{}, cfg.Poll
		}
		if failing.IsZero() {
			failing = time.Now()
		}
		if ctx.Err() != nil || errors.Is(err, ErrFenced) || !cfg.Retryable(err) || time.Since(failing) > cfg.RetryFor {
			return fmt.Errorf("publish %s to %s: %w", cfg.Job, status.Outlet, err)
		}
		cfg.Logger.Warn("publishing is tried again", "job", cfg.Job, "outlet", status.Outlet, "wait", wait, "error", err)
		if pause(ctx, wait) != nil {
			return nil // the checkpoint is as good as one made now
		}
		cfg.Progress(status)
		wait = min(2*wait, 5*time.Second)
	}
}

// pause waits, or until the context ends.
func pause(ctx context.Context, wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run is one try, from claiming the checkpoint to the first error.
type run struct {
	*Config
	status *Status
	out    outlet
	points checkpoints
	state  state
	dirty  bool // something was put since the last checkpoint
	saved  time.Time
	tails  []*tail
	shards time.Time // when the list of shards was read
	rows   int       // of a comparison, since the run told how far it is
}

func try(ctx context.Context, cfg *Config, status *Status) (err error) {
	r := &run{Config: cfg, status: status, points: checkpoints{objects: cfg.Objects, key: stateKey(cfg.Job, status.Outlet)}}
	if r.state, err = r.points.claim(ctx, cfg.Job, status.Outlet); err != nil {
		return err
	}
	status.Epoch, status.Checkpoint = r.state.Epoch, r.state.Number
	r.progress()
	if r.out, err = r.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.out.close()) }()
	r.saved = time.Now()
	known, err := r.out.open(ctx, &r.state)
	if err != nil {
		return err
	}
	if !known { // compare everything with what is there
		if err := r.begin(ctx, true); err != nil {
			return err
		}
	}
	if err := r.loop(ctx); err != nil {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.StopWithin)
	defer cancel()
	err = r.checkpoint(last)
	r.progress()
	return err
}

func (r *run) open(ctx context.Context) (outlet, error) {
	if r.OpenTopic == nil {
		return newFiles(r.Config, r.status), nil
	}
	t, err := r.OpenTopic(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the output topic: %w", err)
	}
	return newTopicOutlet(r.Config, r.status, t), nil
}

// loop publishes until the context ends, which is no error.
func (r *run) loop(ctx context.Context) error {
	for {
		more, err := r.step(ctx)
		if err == nil && (r.out.full() || r.due()) {
			err = r.checkpoint(ctx)
		}
		if err == nil && !more {
			r.status.CaughtUp = time.Now()
		}
		r.progress()
		if err == nil && !more {
			err = pause(ctx, r.Poll)
		}
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// due tells that it is time for a checkpoint.
func (r *run) due() bool { return time.Since(r.saved) >= r.CheckpointEvery }

// step publishes some rows. more is false where there are no others for now.
func (r *run) step(ctx context.Context) (more bool, err error) {
	if r.state.Switch != nil {
		return true, r.change(ctx)
	}
	return r.follow(ctx)
}

func (r *run) progress() {
	s := *r.status
	s.MapEpoch, s.Switching = r.state.Map.Epoch, r.state.Switch != nil
	s.Cursors = append([]Cursor(nil), r.state.Cursors...)
	r.Progress(s)
}

// put hands a row to the outlet.
func (r *run) put(ctx context.Context, row *Row) error {
	r.dirty = true
	repeats := r.status.Repeats
	if err := r.out.put(ctx, row); err != nil {
		return err
	}
	if r.status.Repeats > repeats {
		return nil
	}
	r.status.Published++
	if row.Deleted {
		r.status.Deleted++
	}
	return nil
}

// mendsMax bounds how often in a row a flush finds rows to publish anew before the checkpoint is put off.
const mendsMax = 10

// checkpoint makes what was put safe, then says so. Where nothing was put it only looks whether this run is still the one.
func (r *run) checkpoint(ctx context.Context) error {
	r.saved = time.Now()
	for range mendsMax {
		mark, strays, err := r.out.flush(ctx, &r.state)
		if err != nil {
			return err
		}
		if len(strays) == 0 {
			if !r.dirty {
				return r.points.own(ctx, r.state.Epoch)
			}
			r.state.Mark = mark
			if err := r.points.save(ctx, &r.state); err != nil {
				return err
			}
			r.dirty, r.status.Checkpoint = false, r.state.Number
			return nil
		}
		r.status.Mended += int64(len(strays))
		for i := range strays {
			if err := r.mend(ctx, &strays[i]); err != nil {
				return err
			}
		}
	}
	// Without a checkpoint nothing is lost: the next one mends on.
	r.Logger.Warn("late writes of an earlier publisher keep coming", "job", r.Job, "outlet", r.status.Outlet)
	return nil
}

// mend publishes a session as it is now, behind a row that came late.
func (r *run) mend(ctx context.Context, stray *Row) error {
	m := &r.state.Map
	if r.state.Switch != nil {
		m = &r.state.Switch.To
	}
	return r.publishNow(ctx, m, stray.ID, stray.Start, stray.At)
}

// publishNow publishes a session as a map serves it. gone is the position for one that is not there.
func (r *run) publishNow(ctx context.Context, m *store.Map, id store.ID, start event.Micros, gone Position) error {
	if g := generationAt(m, start); g != 0 {
		found, err := r.Source.Session(ctx, store.Scope{Job: r.Job, Generation: g}, id)
		if err == nil {
			row := rowOf(m.Epoch, &found, false)
			return r.put(ctx, &row)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return r.put(ctx, &Row{ID: id, At: gone, Start: start, Deleted: true})
}

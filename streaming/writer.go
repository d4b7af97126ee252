package streaming

import (
	"context"
	"fmt"
	"time"
)

// writesMax is how many writes can be under way: that of a tick, and that of a checkpoint, which does not wait for it.
const writesMax = 2

// writer gives changes to the sink, one after another, in a goroutine of its own, so that input goes on while the sink
// writes. All but its goroutine belongs to the loop.
type writer struct {
	queue  chan *Changes
	acks   chan ack
	spare  []*Changes
	handed uint64 // writes that were begun
	acked  uint64 // those that have taken place: the first so many
	stop   context.CancelFunc
	ended  chan struct{}
}

// ack says that the sink has changes for good, or why not.
type ack struct {
	changes *Changes
	at      time.Time
	err     error
}

// newWriter starts a writer, which lives until close, also past the end of ctx: a run that is asked to stop ends what it
// has begun.
func newWriter(ctx context.Context, write func(context.Context, *Changes) error) *writer {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	w := &writer{queue: make(chan *Changes, writesMax), acks: make(chan ack, writesMax), stop: stop, ended: make(chan struct{})}
	for range writesMax {
		w.spare = append(w.spare, &Changes{})
	}
	go func() {
		defer close(w.ended)
		for c := range w.queue {
			err := write(ctx, c)
			w.acks <- ack{c, time.Now(), err}
			if err != nil { // what comes after it must not be written without it
				return
			}
		}
	}()
	return w
}

// underWay tells how many writes were begun and have not taken place.
func (w *writer) underWay() int { return int(w.handed - w.acked) }

// hand begins to write changes, and returns empty ones to fill. Fewer than writesMax may be under way.
func (w *writer) hand(c *Changes) *Changes {
	w.handed++
	w.queue <- c
	next := w.spare[len(w.spare)-1]
	w.spare = w.spare[:len(w.spare)-1]
	return next
}

// take notes that a write has taken place, and keeps its memory for another.
func (w *writer) take(a ack) {
	w.acked++
	a.changes.reset()
	w.spare = append(w.spare, a.changes)
}

// close gives up what is under way, and waits until nothing of it goes on behind a run that has ended.
func (w *writer) close() {
	w.stop()
	close(w.queue)
	<-w.ended
}

// writeRows is how many rows go to the sink at a time. A shard that catches up changes hundreds of thousands at once; in one
// transaction they would hold up the other shards of the store, and time out where it is slow.
const writeRows = 4096

// write writes changes part by part, and tries each again where that may help.
func (s *shard) write(ctx context.Context, c *Changes) error {
	for part := range c.parts(writeRows) {
		err := s.retry(ctx, "write changes", func() error {
			ctx, cancel := context.WithTimeout(ctx, s.cfg.RetryFor) // a sink that does not answer ends the run
			defer cancel()
			return s.cfg.Sink.Write(ctx, s.epoch, part)
		})
		if err != nil {
			return fmt.Errorf("write changes: %w", err)
		}
	}
	return nil
}

package streaming

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

// message is what a reader brings: decoded records of one partition, or that there is nothing more to read for long.
type message struct {
	partition int
	batch     event.Batch
	next, end int64
	idle      bool
	free      chan *message // takes the message back
}

// batchesAhead is how many batches a partition's reader may be ahead. It bounds memory, and is the backpressure: a reader
// without a free message waits.
const batchesAhead = 2

// read starts a reader for every partition. Within a partition batches come in order. done is closed when all readers
// have ended; a reader's error cancels ctx.
func (s *shard) read(ctx context.Context, cancel func(error)) (in chan *message, done chan struct{}, err error) {
	in, done = make(chan *message), make(chan struct{})
	var readers sync.WaitGroup
	var decoders []*operator.Decoder
	for range s.cfg.Partitions {
		d, err := s.cfg.Job.NewDecoder()
		if err != nil {
			return nil, nil, err
		}
		decoders = append(decoders, d)
	}
	for i, p := range s.cfg.Partitions {
		r := &reader{s: s, number: i, p: p, next: s.next[i], empty: s.empty[i], decoder: decoders[i], out: in, free: make(chan *message, batchesAhead)}
		for range batchesAhead {
			r.free <- &message{partition: i, free: r.free}
		}
		readers.Go(func() {
			if err := r.run(ctx); err != nil {
				cancel(fmt.Errorf("read %s: %w", p, err))
			}
		})
	}
	go func() { readers.Wait(); close(done) }()
	return in, done, nil
}

// reader fetches and decodes one partition.
type reader struct {
	s       *shard
	number  int
	p       Partition
	next    int64
	empty   bool // the partition held nothing when the run started
	decoder *operator.Decoder
	out     chan *message
	free    chan *message
}

func (r *reader) run(ctx context.Context) error {
	var empty time.Time // since when fetches at the end found nothing
	told := false       // that it is idle
	fresh := r.empty    // nothing was ever there
	for {
		var m *message
		select {
		case m = <-r.free:
		case <-ctx.Done():
			return nil
		}
		m.batch.Reset()
		m.idle = false
		var after, end int64
		err := r.s.retry(ctx, "read "+r.p.String(), func() (err error) {
			m.batch.Reset()
			after, end, err = r.s.cfg.Log.Fetch(ctx, r.p, r.next, &m.batch, r.s.cfg.FetchBytes, r.s.cfg.FetchWait)
			return err
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		// Idle means that fetches at the end of the partition found nothing, for long enough. Being slow, or held up by
		// the shard, is not idle: then there is something to read. An empty partition is told at once.
		if after == r.next {
			now := time.Now()
			if empty.IsZero() {
				empty = now
			}
			idle := after >= end && (fresh || now.Sub(empty) >= r.s.cfg.Job.Spec.Watermark.IdleAfter)
			if !idle || told {
				r.free <- m
				continue
			}
			m.idle, told = true, true
		} else {
			empty, told, fresh = time.Time{}, false, false
			r.decoder.Decode(&m.batch)
			r.next, m.next, m.end = after, after, end
		}
		select {
		case r.out <- m:
		case <-ctx.Done():
			return nil
		}
	}
}

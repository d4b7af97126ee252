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
	newest    event.Micros // to where the events move the partition's watermark; MinTime: nowhere
	bytes     int64        // of the records
	ages      []age
	routed    *routed       // of a source partition that is repartitioned
	arrived   *arrived      // of the groups topic
	free      chan *message // takes the message back
}

// ageShift makes ages that differ by less than a 64th of an age, or a millisecond, one.
const ageShift = 6

// describe sums up what the loop needs to know of the records, so that it does not have to look at them.
func (m *message) describe(now time.Time, ahead event.Micros) {
	m.newest, m.bytes, m.ages = event.MinTime, 0, m.ages[:0]
	b := &m.batch
	var like event.Micros
	for i := range b.Records {
		r := &b.Records[i]
		m.bytes += int64(r.Len)
		if r.Timestamp <= 0 { // the broker gave none
			continue
		}
		if n := len(m.ages); n > 0 && r.Timestamp-m.ages[n-1].at < like && m.ages[n-1].at-r.Timestamp < like {
			m.ages[n-1].n++
			continue
		}
		like = max(1000, (event.Micros(now.UnixMicro())-r.Timestamp)>>ageShift)
		m.ages = append(m.ages, age{r.Timestamp, 1})
	}
	k := 0 // events stand in the order of their records
	for i := range b.Events {
		e := &b.Events[i]
		for k < len(b.Records) && (b.Records[k].Offset != e.Offset || b.Records[k].Partition != e.Partition || b.Records[k].Source != e.Source) {
			k++
		}
		at := e.Time
		if k < len(b.Records) && b.Records[k].Timestamp != event.MinTime {
			at = min(at, b.Records[k].Timestamp+ahead)
		}
		m.newest = max(m.newest, at)
	}
}

// batchesAhead is how many batches a partition's reader may be ahead. It bounds memory, and is the backpressure: a reader
// without a free message waits.
const batchesAhead = 2

// read starts a reader for every partition. Within a partition batches come in order. done is closed when all readers
// have ended; a reader's error cancels ctx.
func (s *shard) read(ctx context.Context, cancel func(error)) (in chan *message, done chan struct{}, err error) {
	if s.inlet != nil {
		return s.readGroups(ctx, cancel)
	}
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
		r := s.newReader(p, s.next[i], in, func(free chan *message) *message { return &message{partition: i, free: free} })
		r.empty = s.empty[i]
		r.fetch = func(ctx context.Context, next int64, m *message) (int64, int64, error) {
			return s.cfg.Log.Fetch(ctx, p, next, &m.batch, s.cfg.FetchBytes, s.cfg.FetchWait)
		}
		r.decode = func(m *message) { decoders[i].Decode(&m.batch) }
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
	s         *shard
	p         Partition
	next      int64
	empty     bool          // the partition held nothing when the run started
	idleAfter time.Duration // negative: never
	fetch     func(ctx context.Context, next int64, m *message) (after, end int64, err error)
	decode    func(m *message)
	out       chan *message
	free      chan *message
}

// newReader returns a reader that still needs its fetch and decode.
func (s *shard) newReader(p Partition, next int64, out chan *message, fresh func(free chan *message) *message) *reader {
	r := &reader{s: s, p: p, next: next, out: out, free: make(chan *message, batchesAhead), idleAfter: s.cfg.Job.Spec.Watermark.IdleAfter}
	for range batchesAhead {
		r.free <- fresh(r.free)
	}
	return r
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
			after, end, err = r.fetch(ctx, r.next, m)
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
			idle := after >= end && r.idleAfter >= 0 && (fresh || now.Sub(empty) >= r.idleAfter)
			if !idle || told {
				r.free <- m
				continue
			}
			m.idle, told = true, true
		} else {
			empty, told, fresh = time.Time{}, false, false
			r.decode(m)
			m.describe(time.Now(), event.Micros(r.s.cfg.Job.Spec.Watermark.MaxAhead.Microseconds()))
			r.next, m.next, m.end = after, after, end
		}
		select {
		case r.out <- m:
		case <-ctx.Done():
			return nil
		}
	}
}

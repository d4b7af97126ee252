package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
)

// load produces traffic and watches some of it.
type load struct {
	flags    *loadFlags
	seed     uint64
	routes   []route // by number of paygen's source
	by       bool    // records are partitioned by game
	probe    *probe
	progress io.Writer // nil: none
}

// route is where the records of a source go.
type route struct {
	source   string
	topic    kafka.Topic
	producer *kafka.Producer
	next     []int64 // by partition: offset of the next record's origin
	sent     int64
}

func openLoad(ctx context.Context, env *workers.Env, job *operator.Job, f *loadFlags) (l *load, err error) {
	l = &load{flags: f, seed: f.seed, by: job.Spec.ShardBy != "", probe: &probe{store: env.Store, in: make(chan sample, 16)}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	// Origins make a producer's retry the same event. They start at the clock, so that none of an earlier load comes again.
	first := time.Now().UnixMicro()
	for _, s := range paygen.Sources() {
		i := slices.IndexFunc(job.Spec.Sources, func(one jobspec.Source) bool { return one.Name == s[0] })
		r := route{source: s[0]}
		if r.topic, _, err = env.Kafka.CreateTopic(ctx, job.Spec.Sources[i].Topic, f.partitions, nil); err != nil {
			return l, err
		}
		if r.producer, err = env.Kafka.Producer(r.topic, kafka.ProducerConfig{}); err != nil {
			return l, err
		}
		r.next = slices.Repeat([]int64{first}, int(r.topic.Partitions))
		l.routes = append(l.routes, r)
	}
	return l, nil
}

func (l *load) close() error {
	var errs []error
	for _, r := range l.routes {
		if r.producer != nil {
			errs = append(errs, r.producer.Close())
		}
	}
	return errors.Join(errs...)
}

// step produces at a rate, and waits until what it watched can be read.
func (l *load) step(ctx context.Context, rate float64, length time.Duration) (s loadStep, err error) {
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	l.probe.reset()
	var probing sync.WaitGroup
	probing.Go(func() {
		if err := l.probe.run(watching); err != nil {
			stop(err)
		}
	})
	end := func(err error) (loadStep, error) {
		if cause := context.Cause(watching); ctx.Err() == nil && cause != nil {
			err = cause
		}
		stop(nil)
		probing.Wait()
		return s, err
	}

	// Time to draw the purchases that are under way when the first record comes.
	begin := time.Now().Add(200*time.Millisecond + time.Duration(rate*100)*time.Microsecond)
	l.seed++
	live, err := paygen.NewLive(paygen.LiveConfig{Rate: rate, Start: begin, Seed: l.seed, First: begin.UnixMilli() * 100})
	if err != nil {
		return end(err)
	}
	s.Rate = rate
	if err := l.play(watching, live, begin, length, &s); err != nil {
		return end(err)
	}
	if err := l.probe.drain(watching, l.flags.settle); err != nil {
		return end(err)
	}
	l.probe.fill(&s)
	if l.progress != nil {
		fmt.Fprintf(l.progress, clearLine+"%s records/s: p99 %s, lag up to %s\n", thousands(int64(s.RecordsPerSecond)), inSeconds(s.EndToEnd.P99), inSeconds(s.LagMax))
	}
	limit := l.flags.lag.Seconds()
	s.Sustained = s.Samples > 0 && s.Missing == 0 && s.LagMax <= limit && s.Behind <= limit
	return end(nil)
}

// play produces until the time is over.
func (l *load) play(ctx context.Context, live *paygen.Live, begin time.Time, length time.Duration, s *loadStep) error {
	end := begin.Add(length)
	every := time.Duration(float64(time.Second) / l.flags.samples)
	watch, shown := begin, begin
	var record kafka.Record
	var origin []byte
	now := time.Now()
	for {
		r := live.Next()
		due := time.UnixMicro(r.Arrival)
		now = time.Now()
		if wait := due.Sub(now); wait > time.Millisecond && due.Before(end) { // timers are not finer
			if err := sleep(ctx, wait); err != nil {
				return context.Cause(ctx)
			}
			now = time.Now()
		}
		if !due.Before(end) {
			break
		}
		if now.After(end) { // time is over, and what was due is not produced
			s.Behind = now.Sub(due).Seconds()
			break
		}
		to := &l.routes[r.Source]
		partition := l.partition(to, r)
		offset := to.next[partition]
		origin = event.AppendOrigin(origin[:0], to.topic.Name, partition, offset)
		record.Timestamp, record.Value = event.Micros(now.UnixMicro()), r.Text
		if record.Key = nil; l.by {
			record.Key = []byte(r.Game)
		}
		record.Headers = append(record.Headers[:0], kafka.Header{Key: originHeader, Value: origin})
		if err := to.producer.Add(ctx, partition, &record); err != nil {
			return err
		}
		to.next[partition]++
		to.sent++
		s.Records++
		s.Bytes += int64(len(r.Text))
		if len(r.Order) > 0 && !now.Before(watch) {
			watch = now.Add(every)
			l.watch(ctx, to, partition, sample{order: bytes.Clone(r.Order), source: to.source, partition: partition, offset: offset, sent: now})
		}
		if now.Sub(shown) > showEvery {
			shown = now
			l.show(s, now.Sub(begin))
		}
	}
	for i := range l.routes {
		if err := l.routes[i].producer.Flush(ctx); err != nil {
			return err
		}
	}
	s.Seconds = time.Since(begin).Seconds()
	s.RecordsPerSecond = float64(s.Records) / max(s.Seconds, 1e-6)
	return nil
}

func (l *load) partition(to *route, r *paygen.LiveRecord) int32 {
	n := int64(to.topic.Partitions)
	if !l.by {
		return int32(to.sent % n)
	}
	return int32(int64(event.Group([]byte(r.Game))) * n / event.KeyGroups)
}

// watch hands a record that was just added to the probe, once it is acknowledged.
func (l *load) watch(ctx context.Context, to *route, partition int32, s sample) {
	n := to.producer.Added(partition)
	l.probe.expect(s.sent)
	go func() {
		if to.producer.Wait(ctx, partition, n) != nil {
			return // Add and Flush return the same error
		}
		s.acked = time.Now()
		select {
		case l.probe.in <- s:
		case <-ctx.Done():
		}
	}()
}

func (l *load) show(s *loadStep, after time.Duration) {
	if l.progress == nil {
		return
	}
	fmt.Fprintf(l.progress, clearLine+"%5.0f s  %s records, %s records/s, lag %s", after.Seconds(), thousands(s.Records),
		thousands(int64(float64(s.Records)/after.Seconds())), inSeconds(l.probe.lag(time.Now()).Seconds()))
}

// sleep waits, or until the context ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sample is a record whose event is waited for.
type sample struct {
	order     []byte
	source    string
	partition int32
	offset    int64
	sent      time.Time // handed to the producer
	acked     time.Time
}

const (
	probeEvery = 5 * time.Millisecond // between two looks at what is waited for: how fine the measurement is
	probeAtMax = 50                   // samples that are asked for at each look, the oldest first: asking costs the store
	probeRows  = 10                   // sessions of one order
)

// probe asks the store for samples until it shows them.
type probe struct {
	store *store.Store
	scope store.Scope
	in    chan sample

	mu             sync.Mutex
	open           []time.Time // when the samples that are not shown yet were sent, in order
	acks, shows    []time.Duration
	ends           []time.Duration
	lagMax         time.Duration
	samples, shown int
	changed        chan struct{} // closed when all are shown; nil: nobody waits
}

func (p *probe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open, p.acks, p.shows, p.ends = nil, nil, nil, nil
	p.lagMax, p.samples, p.shown, p.changed = 0, 0, 0, nil
}

// expect notes that a sample is on its way.
func (p *probe) expect(sent time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = append(p.open, sent)
	p.samples++
}

// lag returns the age of the oldest sample that is not shown yet.
func (p *probe) lag(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lagLocked(now)
}

func (p *probe) lagLocked(now time.Time) time.Duration {
	if len(p.open) == 0 {
		return 0
	}
	lag := now.Sub(p.open[0])
	p.lagMax = max(p.lagMax, lag)
	return lag
}

// done notes that a sample is shown.
func (p *probe) done(s *sample, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lagLocked(now)
	if i := slices.IndexFunc(p.open, s.sent.Equal); i >= 0 {
		p.open = slices.Delete(p.open, i, i+1)
	}
	p.acks, p.shows, p.ends = append(p.acks, s.acked.Sub(s.sent)), append(p.shows, now.Sub(s.acked)), append(p.ends, now.Sub(s.sent))
	p.shown++
	if p.shown == p.samples && p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// drain waits until all samples are shown, or for a time.
func (p *probe) drain(ctx context.Context, settle time.Duration) error {
	p.mu.Lock()
	if p.shown == p.samples {
		p.mu.Unlock()
		return nil
	}
	changed := make(chan struct{})
	p.changed = changed
	p.mu.Unlock()
	over := time.NewTimer(settle)
	defer over.Stop()
	select {
	case <-changed:
	case <-over.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p.lag(time.Now())
	return nil
}

func (p *probe) fill(s *loadStep) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Samples, s.Missing, s.LagMax = p.samples, p.samples-p.shown, p.lagMax.Seconds()
	s.Ack, s.Queryable, s.EndToEnd = quantilesOf(p.acks), quantilesOf(p.shows), quantilesOf(p.ends)
}

// run asks until ctx ends.
func (p *probe) run(ctx context.Context) error {
	var waiting []sample
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case s := <-p.in:
			waiting = append(waiting, s)
			continue
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		kept := waiting[:0]
		for i := range waiting {
			s := &waiting[i]
			shown := false
			if i < probeAtMax {
				var err error
				if shown, err = p.ask(ctx, s); err != nil && ctx.Err() == nil {
					return err
				}
			}
			if shown {
				p.done(s, time.Now())
			} else {
				kept = append(kept, *s)
			}
		}
		waiting = kept
	}
}

// ask tells whether the store shows a sample's event in a session of its order.
func (p *probe) ask(ctx context.Context, s *sample) (bool, error) {
	found, err := p.store.Sessions(ctx, store.SessionQuery{Scope: p.scope, Page: store.Page{Limit: probeRows}, Key: &store.Key{Kind: "order", Value: s.order}})
	var e *store.Error
	if errors.As(err, &e) && e.Retryable {
		return false, nil // it is asked again soon, and the time counts
	}
	if err != nil {
		return false, err
	}
	for i := range found.Items {
		var session struct {
			Events []struct {
				Source    string
				Partition int32
				Offset    int64
			}
		}
		if err := json.Unmarshal(found.Items[i].Body, &session); err != nil {
			return false, fmt.Errorf("session of order %s: %w", s.order, err)
		}
		for _, e := range session.Events {
			if e.Source == s.source && e.Partition == s.partition && e.Offset == s.offset {
				return true, nil
			}
		}
	}
	return false, nil
}

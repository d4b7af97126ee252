package streaming

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

// annals knows the event times of a world's records up to some moment, by pieces of a few records.
type annals struct {
	ends   map[Partition]int64
	floors map[Partition][]Floor // of all pieces, each with the least time of its own
}

// annalsOf reads what is in a world's topics now.
func annalsOf(t *testing.T, w *world, job *operator.Job, partitions []Partition, piece int) *annals {
	t.Helper()
	d, err := job.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	a := &annals{map[Partition]int64{}, map[Partition][]Floor{}}
	for _, p := range partitions {
		key := p
		key.Source = 0
		list := w.topics[key]
		a.ends[p] = int64(len(list))
		for from := 0; from < len(list); from += piece {
			to := min(from+piece, len(list))
			var b event.Batch
			for _, r := range list[from:to] {
				r.record.Source = uint16(p.Source)
				b.Add(r.record, r.value)
			}
			d.Decode(&b)
			least := event.MaxTime
			for _, e := range b.Events {
				least = min(least, e.Time)
			}
			a.floors[p] = append(a.floors[p], Floor{int64(to), least})
		}
	}
	return a
}

func (a *annals) First(_ context.Context, _ Partition, first int64) (int64, error) { return first, nil }

func (a *annals) End(_ context.Context, p Partition) (int64, error) { return a.ends[p], nil }

func (a *annals) Floors(_ context.Context, p Partition, next, end int64) (list []Floor, err error) {
	least := event.MaxTime
	for i := len(a.floors[p]) - 1; i >= 0 && a.floors[p][i].Before > next; i-- {
		if f := a.floors[p][i]; f.Before <= end {
			least = min(least, f.Time)
			list = append([]Floor{{f.Before, least}}, list...)
		}
	}
	return list, nil
}

// TestPast plays records that come late by up to five minutes, and then starts a version that reads them as its past, killed
// now and then: no event of the past is late, and what comes after it is late as ever.
func TestPast(t *testing.T) {
	for seed := range uint64(4) {
		for _, known := range []bool{true, false}[:1+seed/3] {
			t.Run(fmt.Sprintf("seed=%d,known=%v", seed, known), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { playPast(t, seed, known) })
			})
		}
	}
}

func playPast(t *testing.T, seed uint64, known bool) {
	job := testJob(t)
	w, partitions := newWorld(t), testPartitions()
	w.produce(rand.New(rand.NewPCG(seed, 4)), partitions, 1500, 20*time.Minute)
	a := annalsOf(t, w, job, partitions, 7+int(seed)*5)

	r := rand.New(rand.NewPCG(seed, 1))
	run := func(kill bool, d time.Duration) Status {
		h := &handle{w: w}
		cfg := w.config(h, job, partitions)
		cfg.FetchBytes = 50 + r.IntN(500)
		cfg.CheckpointEvery = 100 * time.Millisecond
		if known {
			cfg.Past = a
		}
		var last Status
		cfg.Progress = func(s Status) { last = s }
		cfg.Log = slowLog{h}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Run(ctx, cfg) }()
		time.Sleep(d)
		if kill {
			h.kill()
		}
		cancel()
		if err := <-ended; err != nil && !kill {
			t.Fatal(err)
		}
		return last
	}
	for range 8 {
		run(r.IntN(2) == 0, time.Duration(1+r.IntN(10))*300*time.Millisecond)
	}
	s := run(false, 5*time.Minute)
	if s.Lag > 0 || len(w.rows) == 0 {
		t.Fatalf("the past was not read: %+v", s)
	}
	before := 0 // events of the past that were late; a repeat of one that is in a session is none
	accepted := w.accepted()
	for id := range w.late {
		if !accepted[id] {
			before++
		}
	}
	w.compare(job, partitions)
	switch {
	case known && before > 0:
		t.Errorf("%d events of the past are late", before)
	case !known && before == 0:
		t.Error("no event is late where nothing is known of the past either: the test does not test it")
	}
	var newest event.Micros
	for _, p := range partitions {
		m := w.newest(job, p)
		if newest == 0 || m < newest {
			newest = m
		}
	}
	if want := newest - 5_000_000; known && s.Watermark < want {
		t.Errorf("the watermark is %d behind that of who reads all at once", want-s.Watermark)
	}

	go w.produce(rand.New(rand.NewPCG(seed, 8)), partitions, 1500, 20*time.Minute)
	run(false, 25*time.Minute)
	w.compare(job, partitions)
}

// newest returns to where the records of a partition move its watermark.
func (w *world) newest(job *operator.Job, p Partition) (at event.Micros) {
	d, err := job.NewDecoder()
	if err != nil {
		w.t.Fatal(err)
	}
	source := p.Source
	p.Source = 0
	var m message
	for _, r := range w.topics[p] {
		r.record.Source = uint16(source)
		m.batch.Add(r.record, r.value)
	}
	d.Decode(&m.batch)
	m.describe(time.Now(), event.Micros(job.Spec.Watermark.MaxAhead.Microseconds()))
	return m.newest
}

// slowLog makes reading the past take its time, and some partitions more than others.
type slowLog struct{ *handle }

func (l slowLog) Fetch(ctx context.Context, p Partition, next int64, b *event.Batch, maxBytes int, d time.Duration) (after, end int64, err error) {
	wait(ctx, time.Duration(1+p.Source*3+int(p.ID)*2)*20*time.Millisecond)
	return l.handle.Fetch(ctx, p, next, b, maxBytes, d)
}

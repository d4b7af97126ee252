package e2e

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/publisher"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workers"
)

// TestPublished streams a payment environment into the store while publishers tail it, which are stopped, doubled and
// started again. The output topic and the Parquet files then have exactly what is served; and again after a switch to a
// version with other sessions, and after a switch back for the newer half.
func TestPublished(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	at, spec, _ := playEnvironment(t, ctx, 400, 5, "6h", 2)
	st := openStream(t, ctx, at, spec)
	defer st.store.Close()
	p := &published{T: t, ctx: ctx, stream: st, changed: make(chan struct{}, 1)}
	p.register(spec)

	stop := p.start()
	p.serve(st.generation, event.MinTime)
	r := rand.New(rand.NewPCG(5, 1))
	for i := range 3 { // shards that crash, and publishers that end or get a double
		st.run(t, ctx, r, func(s streaming.Status) bool { return s.Lag == 0 || s.Records > int64(200+r.IntN(1000)) }, true)
		if i == 1 {
			stop()
			stop = p.start()
		} else {
			again := p.start()
			stop() // fenced by then, or about to be
			stop = again
		}
	}
	st.run(t, ctx, r, func(s streaming.Status) bool { return s.Lag == 0 }, false)
	sessions := p.await("one generation")
	if sessions < 300 {
		t.Errorf("only %d sessions are served", sessions)
	}

	second, middle := p.second()
	p.serve(second, event.MinTime)
	if n := p.await("another generation"); n >= sessions {
		t.Errorf("%d sessions after the switch, %d before it", n, sessions)
	}
	p.serve(st.generation, middle)
	p.await("both generations")
	stop()
}

// published is a job that is published.
type published struct {
	*testing.T
	*stream
	ctx      context.Context
	switches int
	changed  chan struct{} // has one when a publisher got on
}

func (p *published) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// register adds the versions whose specs tell the sinks.
func (p *published) register(file string) {
	p.Helper()
	text, err := os.ReadFile(file)
	p.must(err)
	for _, gap := range []string{"gap: 30m", "gap: 20m"} {
		_, err = registry.New(p.objects).Add(p.ctx, registry.NewVersion{Spec: bytes.Replace(text, []byte("gap: 30m"), []byte(gap), 1)})
		p.must(err)
	}
}

// start starts a publisher; the function it returns ends it.
func (p *published) start() (stop func()) {
	ctx, cancel := context.WithCancel(p.ctx)
	runner := &workers.Publications{
		Env: &workers.Env{Store: p.store, Objects: p.objects, Kafka: p.client},
		Observe: func(string, publisher.Status) {
			select {
			case p.changed <- struct{}{}:
			default:
			}
		},
		Configure: func(c *publisher.Config) { c.Poll, c.CheckpointEvery = 20*time.Millisecond, 200*time.Millisecond },
	}
	var work sync.WaitGroup
	work.Go(func() {
		err := runner.RunPublisher(ctx, activities.PublishInput{Job: "payments"}, func(activities.Beat) {})
		if err != nil && !strings.Contains(err.Error(), publisher.ErrFenced.Error()) {
			p.Error(err)
		}
	})
	return func() {
		cancel()
		work.Wait()
	}
}

func (p *published) serve(generation int64, from event.Micros) {
	p.Helper()
	m, err := p.store.ServingMap(p.ctx, "payments")
	p.must(err)
	p.switches++
	_, err = p.store.Switch(p.ctx, store.SwitchRequest{Job: "payments", RequestID: strings.Repeat("x", p.switches), ExpectedEpoch: m.Epoch,
		Assignments: []store.Assignment{{From: from, To: event.MaxTime, Generation: generation}}, Actor: "test"})
	p.must(err)
}

// second makes a generation that differs: of its sessions some are gone, some changed. It also returns a start in the middle.
func (p *published) second() (generation int64, middle event.Micros) {
	p.Helper()
	g, err := p.store.CreateGeneration(p.ctx, "payments", "2", "live")
	p.must(err)
	epoch, err := p.store.TakeEpoch(p.ctx, "payments", g.ID, 0)
	p.must(err)
	var b store.Batch
	rows := p.served()
	for i, row := range rows {
		switch i % 4 {
		case 0:
			continue
		case 1:
			row.Body = bytes.Replace(row.Body, []byte(`"revision":`), []byte(`"revision":1`), 1)
		}
		b.Sessions = append(b.Sessions, store.Session{Seq: uint64(i + 1), ID: row.ID, Start: row.Start, End: row.End, Events: row.Events, Body: row.Body})
	}
	p.must(p.store.Write(p.ctx, store.Owner{Generation: g.ID, Epoch: epoch}, &b))
	return g.ID, rows[len(rows)/2].Start
}

// served returns what is served.
func (p *published) served() (list []store.Row) {
	p.Helper()
	q := store.SessionQuery{Scope: store.Scope{Job: "payments"}, Page: store.Page{Limit: store.PageRowsMax}}
	for {
		r, err := p.store.Sessions(p.ctx, q)
		p.must(err)
		list = append(list, r.Items...)
		if q.After = r.Next; r.Next == "" {
			return list
		}
	}
}

// await waits until consumers of the topic and of the files have what is served, and returns how many sessions.
func (p *published) await(what string) int {
	p.Helper()
	want := map[string]string{}
	for _, row := range p.served() {
		want[row.ID.String()] = string(row.Body)
	}
	for {
		topic, files := p.topicView(), p.filesView()
		if maps.Equal(topic, want) && maps.Equal(files, want) {
			p.Logf("%s: %d sessions in the store, the topic and the files", what, len(want))
			return len(want)
		}
		select {
		case <-p.changed:
		case <-p.ctx.Done():
			p.Fatalf("%s: %d sessions are served, the topic has %d, the files have %d", what, len(want), len(topic), len(files))
		}
	}
}

func (p *published) topicView() map[string]string {
	p.Helper()
	t, err := p.client.Topic(p.ctx, p.job.Spec.Sinks.Topic)
	if err != nil {
		return nil // nobody has made it yet
	}
	in := workers.NewOutputTopic(p.client, t, nil)
	var l publisher.Latest
	for i := range t.Partitions {
		first, end, err := in.Bounds(p.ctx, i)
		p.must(err)
		p.must(in.Read(p.ctx, i, first, end, func(r *publisher.Record) error {
			row, _, _, err := publisher.ParseRecord(r)
			if row != nil {
				l.Add(*row)
			}
			return err
		}))
	}
	return viewOf(&l)
}

func (p *published) filesView() map[string]string {
	p.Helper()
	var l publisher.Latest
	p.must(publisher.ReadFiles(p.ctx, p.objects, "payments", func(r *publisher.Row) error { l.Add(*r); return nil }))
	return viewOf(&l)
}

func viewOf(l *publisher.Latest) map[string]string {
	view := map[string]string{}
	for r := range l.Sessions {
		view[r.ID.String()] = string(r.Body)
	}
	return view
}

package publisher

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// BenchmarkFirst publishes a store from nothing: a comparison with an empty side. BenchmarkFollow follows it from the start
// of its change log. Sessions have bodies of 1,500 bytes.
func BenchmarkFirst(b *testing.B)  { benchmark(b, false) }
func BenchmarkFollow(b *testing.B) { benchmark(b, true) }

func benchmark(b *testing.B, follow bool) {
	const sessions = 20_000
	s, err := store.Open(b.Context(), "sqlite:"+b.TempDir(), store.Options{})
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	must(err)
	defer s.Close()
	g, err := s.CreateGeneration(b.Context(), job, "1", "live")
	must(err)
	epoch, err := s.TakeEpoch(b.Context(), job, g.ID, 0)
	must(err)
	var batch store.Batch
	for i := range sessions {
		body := fmt.Appendf(nil, `{"id":"%s","user":"u","scenarios":[],"pad":"%s"}`, idOf(i), strings.Repeat("x", 1400))
		batch.Sessions = append(batch.Sessions, store.Session{Seq: uint64(i + 1), ID: idOf(i), Start: startOf(i), Body: body})
	}
	must(s.Write(b.Context(), store.Owner{Generation: g.ID, Epoch: epoch}, &batch))
	_, err = s.Switch(b.Context(), store.SwitchRequest{Job: job, RequestID: "1", Actor: "x",
		Assignments: []store.Assignment{{From: event.MinTime, To: event.MaxTime, Generation: g.ID}}})
	must(err)
	m, err := s.ServingMap(b.Context(), job)
	must(err)
	for b.Loop() {
		log := newLog(3)
		objects := &memory{objects: map[string]memoryObject{}}
		if follow { // everything is still to come
			c := checkpoints{objects: objects, key: stateKey(job, TopicOutlet)}
			must(c.save(b.Context(), &state{Format: stateFormat, Map: m, Mark: []byte(`{"topic":"1","next":[0,0,0]}`)}))
		}
		ctx, cancel := context.WithCancel(b.Context())
		must(Run(ctx, Config{Job: job, Source: s, Objects: objects,
			OpenTopic: func(context.Context) (Topic, error) { return log.open(living(), 0), nil },
			Progress: func(s Status) {
				if s.Published == sessions {
					cancel()
				}
			}}))
		cancel()
	}
	b.ReportMetric(sessions*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

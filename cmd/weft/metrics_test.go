package main

import (
	"log/slog"
	"net/http"
	"slices"
	"testing"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workers"
)

func TestServeMetricsOfAProcess(t *testing.T) {
	s := &servers{log: slog.New(slog.DiscardHandler), versions: &workers.Versions{}}
	if err := s.serveMetrics(t.Context(), ""); err != nil || s.metrics != nil || s.versions.Observe != nil {
		t.Errorf("without an address: %v, %+v", err, s.metrics)
	}
	if err := s.serveMetrics(t.Context(), "nowhere"); err == nil || s.metrics != nil {
		t.Errorf("with a wrong one: %v", err)
	}
	if err := s.serveMetrics(t.Context(), "0"); err != nil || s.versions.Observe == nil {
		t.Fatal(err)
	}
	res, err := http.Get("http://" + s.metrics.Addr() + "/metrics")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%v, %+v", err, res)
	}
	if err == nil {
		res.Body.Close()
	}
}

func TestBothObserve(t *testing.T) {
	var calls []string
	note := func(name string) observer {
		return func(activities.ShardInput, *operator.Job, streaming.Status) { calls = append(calls, name) }
	}
	alsoObserve(note("a"), note("b"))(activities.ShardInput{}, nil, streaming.Status{})
	alsoObserve(nil, note("c"))(activities.ShardInput{}, nil, streaming.Status{})
	if !slices.Equal(calls, []string{"a", "b", "c"}) {
		t.Errorf("called %q", calls)
	}
}

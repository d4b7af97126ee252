package backfill

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A pipe must be read from its first byte: weft replay --input orders=<(zcat orders.gz).
func TestPipeAsInput(t *testing.T) {
	e := &environment{job: compile(t, `version: weft/v1
job: a
sources:
  orders: {format: logfmt, time: {field: at, layout: unix_s}, step: event, keys: {order: order}}
session: {gap: 1h}
`)}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("at=1 event=ordered order=7\nat=2 event=paid order=7\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	e.inputs = []Input{{"orders", fmt.Sprintf("/proc/self/fd/%d", r.Fd())}}
	s, _ := e.replay(t, nil)
	if s.Events != 2 || len(s.Rejects) > 0 {
		t.Errorf("%d events, rejects %v; want 2 events", s.Events, s.Rejects)
	}
}

// Two inputs cannot share standard input.
func TestStandardInputTwice(t *testing.T) {
	e := generate(t, 1, 10, time.Hour)
	_, err := Replay(t.Context(), ReplayConfig{Job: e.job, Inputs: []Input{{"orders", "-"}, {"wallet", "-"}}, Out: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "standard input") {
		t.Errorf("error is %v", err)
	}
}

// Progress of an archive; run it with -race.
func TestProgressOfArchive(t *testing.T) {
	e := generate(t, 9, 20_000, 72*time.Hour).archived(t, nil)
	e.replay(t, func(c *ReplayConfig) { c.Progress = func(Progress) {} })
}

// How many events were folded is a fact of the records, not of their order.
func TestFoldedDoesNotDependOnOrder(t *testing.T) {
	e := generate(t, 3, 3000, 72*time.Hour)
	one, _ := e.replay(t, func(c *ReplayConfig) { c.Decoders = 1 })
	for _, batch := range []int{4 << 10, 1 << 20} {
		s, _ := e.replay(t, func(c *ReplayConfig) { c.Decoders, c.BatchBytes = 4, batch })
		if s.Folded != one.Folded {
			t.Errorf("batches of %d bytes: folded %d, want %d", batch, s.Folded, one.Folded)
		}
	}
}

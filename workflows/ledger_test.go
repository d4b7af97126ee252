package workflows

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/testsuite"
)

// TestWhatIsDoneIsAudited finds who asked for a backfill, who steered it and what came of it in the audit log, each once, though the
// log is away for a while.
func TestWhatIsDoneIsAudited(t *testing.T) {
	w := newWorld(t, 2, 2)
	w.deaf = 3
	signals := func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(func() {
			env.SignalWorkflow(SignalPause, rawJSON(`{"actor":"bob","reason":"the peak"}`))
			env.SignalWorkflow(SignalParallelism, rawJSON(`{"parallelism":3,"actor":"bob"}`))
			env.SignalWorkflow(SignalRetryFailed, rawJSON(`{"actor":"eve"}`))
		}, 0)
		env.RegisterDelayedCallback(func() { env.SignalWorkflow(SignalResume, rawJSON(`{"actor":"bob"}`)) }, time.Minute)
	}
	in := rawJSON(`{"job":"payments","from":"2026-03-01T00:00:00Z","to":"2026-03-02T00:00:00Z","actor":"ann","reason":"late records"}`)
	if _, _, err := w.run(BackfillType, in, signals); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range w.audit {
		got = append(got, e.Action+" "+e.Actor+" "+e.Reason)
	}
	want := []string{"backfill.started ann late records", "backfill.set_parallelism bob ", "backfill.retry_failed.rejected eve ", "backfill.resume bob ",
		"backfill.pause bob the peak", "backfill.published ann "}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the log has\n%q, want\n%q", got, want)
	}
	if last := w.audit[len(w.audit)-1]; !strings.Contains(last.Detail, `"range":{"from":"2026-03-01T00:00:00Z","to":"2026-03-02T00:00:00Z"},"version":3,"sessions":40`) {
		t.Errorf("it says %+v", last)
	}
}

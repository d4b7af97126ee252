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

func TestNewestFirst(t *testing.T) {
	w := newWorld(t, 2, 2, 2)
	in := dayInput()
	in.Order, in.Parallelism = "newest", 1
	_, _, err := w.run(BackfillType, in)
	if want := []string{"slice 2/0", "slice 2/1", "slice 1/0"}; err != nil || !slices.Equal(w.order[2:5], want) {
		t.Errorf("the order is %v, %v", w.order, err)
	}
}

func TestModesThatServeNothing(t *testing.T) {
	for mode, outcome := range map[string]string{ModeDryRun: Checked, ModeCompare: Compared} {
		w := newWorld(t, 2)
		in := dayInput()
		in.Mode = mode
		r, _, err := w.run(BackfillType, in)
		if err != nil || r.Outcome != outcome || w.served || w.calls["hold"] != 0 || w.planIn.Publish || w.calls["drop"] != 1 {
			t.Errorf("%s: %+v, %v; calls %v", mode, r, err, w.calls)
		}
		if mode == ModeCompare && (r.Compared.Same != 90 || !strings.HasPrefix(r.Compared.Report, "reconcile/payments/20261101T000000Z_20261102T000000Z-")) {
			t.Errorf("compared %+v", r.Compared)
		}
	}
}

func TestReconcile(t *testing.T) {
	for _, c := range []struct {
		name   string
		differ int64
		sealed bool
		repair bool
		holder string
		served bool
		says   string
	}{
		{name: "equal", repair: true, sealed: true, says: "not needed"},
		{name: "report only", differ: 3, sealed: true},
		{name: "repaired", differ: 3, sealed: true, repair: true, served: true, says: Published},
		{name: "not sealed", differ: 3, repair: true, says: "sealed"},
		{name: "held by another", differ: 3, sealed: true, repair: true, holder: "backfill/payments/x", says: "backfill/payments/x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 2, 2)
			w.differ, w.planned.Sealed, w.holder = c.differ, c.sealed, c.holder
			r, p, err := w.run(ReconcileType, ReconcileInput{Job: "payments", Day: "2026-11-01", Repair: c.repair})
			want := Compared
			if c.served {
				want = Published
			}
			if err != nil || r.Outcome != want || p.State != want || w.served != c.served || r.Compared.Changed != c.differ || !strings.Contains(r.Repair, c.says) {
				t.Errorf("result %+v, %v, served %v", r, err, w.served)
			}
			if (r.Repair == "") != (c.says == "") {
				t.Errorf("of the repair it says %q", r.Repair)
			}
			day := activities.Range{From: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)}
			if w.planIn.Range != day {
				t.Errorf("planned %v", w.planIn.Range)
			}
		})
	}
}

func TestInputsThatAreRefused(t *testing.T) {
	for input, want := range map[string]string{
		`{}`:                 "job is missing",
		`{"job":"payments"}`: "from is",
		`{"job":"payments","from":"2026-11-01T00:00:00Z"}`:                               "to is",
		`{"job":"payments","from":"2026-11-01","to":"2026-11-02T00:00:00Z"}`:             "2026-11-01T00:00:00Z",
		`{"job":"payments","from":"2026-11-01T00:00:00.5Z","to":"2026-11-02T00:00:00Z"}`: "whole seconds",
		`{"job":"payments","from":"2026-11-02T00:00:00Z","to":"2026-11-02T00:00:00Z"}`:   "empty",
		`{"job":"payments","window":"24h","to":"2026-11-02T00:00:00Z"}`:                  "exclude",
		`{"job":"payments","window":"1 day"}`:                                            "window",
		`{"job":"payments","lag":"2h"}`:                                                  "window",
		`{"job":"payments","window":"24h","lag":"-2h"}`:                                  "lag",
		`{"job":"payments","window":"24h","mode":"serve"}`:                               "mode",
		`{"job":"payments","window":"24h","order":"random"}`:                             "order",
		`{"job":"payments","window":"24h","parallelism":-1}`:                             "parallelism",
		`{"job":"payments","window":"24h","parallelism":1001}`:                           "parallelism",
		`{"job":"payments","window":"24h","slice":"1s"}`:                                 "slice",
		`{"job":"payments","window":"24h","throttle":-1}`:                                "throttle",
		`{"job":"payments","window":"24h","share":1}`:                                    "share",
		`{"job":"payments","window":"24h","version":-1}`:                                 "version",
		`{"job":"payments","window":"24h","reason":"` + strings.Repeat("x", 300) + `"}`:  "reason",
		`{"job":"payments","window":"24h","windows":"24h"}`:                              "unknown field",
		`{"job":"payments","window":"24h"}{}`:                                            "more after",
		`"x"`:                                                                            "one JSON object", `null`: "one JSON object", `[]`: "one JSON object",
	} {
		w := newWorld(t, 1)
		env := w.environment()
		env.ExecuteWorkflow(BackfillType, rawJSON(input))
		expectUser(t, env.GetWorkflowError(), input, want)
		if len(w.order) > 0 {
			t.Errorf("%s: it did %v", input, w.order)
		}
	}
	for input, want := range map[string]string{
		`{"day":"2026-11-01"}`:                                   "job is missing",
		`{"job":"payments","day":"1 November"}`:                  "day",
		`{"job":"payments","day":"2026-11-01","window":"24h"}`:   "excludes",
		`{"job":"payments","day":"2026-11-01","mode":"publish"}`: "unknown field",
		`{"job":"payments","day":"2026-11-01","share":-0.1}`:     "share",
	} {
		env := newWorld(t, 1).environment()
		env.ExecuteWorkflow(ReconcileType, rawJSON(input))
		expectUser(t, env.GetWorkflowError(), input, want)
	}
}

func expectUser(t *testing.T, err error, input, want string) {
	t.Helper()
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.Type() != activities.User || !app.NonRetryable() || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "it looks like") {
		t.Errorf("%s: %v, want %q", input, err, want)
	}
}

package workflows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// world is what backfills work on: an archive, a store and leases, as their activities see them.
type world struct {
	t *testing.T

	chunks  []int // of the plan
	planned activities.Planned
	differ  int64         // sessions that differ
	needs   time.Duration // margin that publishing turns out to need
	forget  bool          // that it had it
	holder  string        // another workflow that holds the range

	// fail decides what an activity answers at its n-th call, from 1 on; nil or no error: it works.
	fail func(call string, n int) error
	hang map[string]bool // calls that do not end before they are canceled
	last map[int]int     // chunk: the slice that says that it is the last one

	mu      sync.Mutex // activities run at the same time
	calls   map[string]int
	order   []string
	ran     map[int]int // chunk: its next slice
	inputs  []activities.SliceInput
	held    bool
	staged  bool
	served  bool
	planIn  activities.PlanInput
	ended   activities.PublishBackfillInput
	verify  activities.VerifyInput
	renewed int
	audit   []activities.Entry
	deaf    int // calls of the audit log that fail

	launched []activities.LaunchInput
}

func newWorld(t *testing.T, chunks ...int) *world {
	return &world{t: t, chunks: chunks, calls: map[string]int{}, ran: map[int]int{}, hang: map[string]bool{}, last: map[int]int{}}
}

// call notes a call and says how it ends.
func (w *world) call(name string) error {
	w.calls[name]++
	w.order = append(w.order, name)
	if w.fail != nil {
		if err := w.fail(name, w.calls[name]); err != nil {
			return err
		}
	}
	if w.hang[name] {
		return activity.ErrResultPending
	}
	return nil
}

func (w *world) PlanBackfill(_ context.Context, in activities.PlanInput) (p activities.Planned, err error) {
	w.planIn = in
	if err := w.call("plan"); err != nil {
		return p, err
	}
	w.staged = true
	p = w.planned
	p.Version, p.Plan, p.Chunks, p.Range = max(in.Backfill.Version, 3), "backfill/payments/"+in.Backfill.ID+"/plan.json", w.chunks, in.Range
	return p, nil
}

func (w *world) RunSlice(ctx context.Context, in activities.SliceInput) (d activities.SliceDone, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inputs = append(w.inputs, in)
	if w.ran[in.Chunk] != in.Slice {
		w.t.Errorf("slice %d of chunk %d runs, expected was %d", in.Slice, in.Chunk, w.ran[in.Chunk])
	}
	if err := w.call(fmt.Sprintf("slice %d/%d", in.Chunk, in.Slice)); err != nil {
		return d, err
	}
	w.ran[in.Chunk]++
	d = activities.SliceDone{Rows: 100, Sessions: 10, Bytes: 1000, Seconds: 2, Attempt: activity.GetInfo(ctx).Attempt}
	last, ok := w.last[in.Chunk]
	d.Last = ok && last == in.Slice
	return d, nil
}

func (w *world) VerifyBackfill(_ context.Context, in activities.VerifyInput) (activities.Verified, error) {
	w.verify = in
	return activities.Verified{Digest: "d1"}, w.call("verify")
}

func (w *world) PublishBackfill(_ context.Context, in activities.PublishBackfillInput) (p activities.Published, err error) {
	w.ended = in
	if w.needs > w.planIn.Margin.Before || w.needs > 0 && w.forget {
		margin := activities.Margin{Before: w.needs}
		w.ran = map[int]int{} // under the next plan all run again
		return activities.Published{Needs: &margin}, w.call("too narrow")
	}
	err = w.call("publish")
	w.served = w.served || err == nil
	return activities.Published{Generation: 9, Epoch: 2}, err
}

func (w *world) CompareBackfill(_ context.Context, in activities.CompareBackfillInput) (activities.BackfillCompared, error) {
	return activities.BackfillCompared{Report: in.Report, Same: 90, Changed: w.differ}, w.call("compare")
}

func (w *world) DropBackfill(context.Context, activities.DropInput) (activities.Dropped, error) {
	err := w.call("drop")
	w.staged = w.staged && err != nil
	return activities.Dropped{Served: w.served}, err
}

func (w *world) HoldRange(_ context.Context, in activities.HoldInput) (activities.Held, error) {
	err := w.call("hold")
	if w.holder != "" {
		return activities.Held{By: w.holder, Theirs: in.Range}, err
	}
	w.held = w.held || err == nil
	return activities.Held{Granted: true}, err
}

func (w *world) ReleaseRange(context.Context, activities.ReleaseInput) error {
	err := w.call("release")
	w.held = w.held && err != nil
	return err
}

func (w *world) RecordDecisions(_ context.Context, in activities.RecordInput) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deaf > 0 {
		w.deaf--
		return errors.New("the store is away")
	}
	for _, e := range in.Entries {
		if !slices.ContainsFunc(w.audit, func(x activities.Entry) bool { return x.ID == e.ID }) {
			w.audit = append(w.audit, e)
		}
	}
	return nil
}

// environment returns a Temporal of virtual time over the world.
func (w *world) environment() *testsuite.TestWorkflowEnvironment {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.NewTextHandler(io.Discard, nil))))
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(20 * time.Second)
	for name, f := range map[string]any{BackfillType: Backfill, ReconcileType: Reconcile} {
		env.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	for _, f := range []any{w.PlanBackfill, w.RunSlice, w.VerifyBackfill, w.PublishBackfill, w.CompareBackfill, w.DropBackfill, w.HoldRange, w.ReleaseRange, w.RecordDecisions, w.Launch} {
		env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: methodName(f)})
	}
	return env
}

// run runs a backfill through all its runs, and returns the result and the last one's progress.
func (w *world) run(kind string, input any, prepare ...func(env *testsuite.TestWorkflowEnvironment)) (r BackfillResult, p Progress, err error) {
	w.t.Helper()
	for n := 0; ; n++ {
		env := w.environment()
		if n < len(prepare) && prepare[n] != nil {
			prepare[n](env)
		}
		env.ExecuteWorkflow(kind, input)
		if !env.IsWorkflowCompleted() {
			w.t.Fatal("the workflow has not ended")
		}
		err = env.GetWorkflowError()
		p = w.progress(env, nil)
		var again *workflow.ContinueAsNewError
		if !errors.As(err, &again) {
			if err == nil {
				err = env.GetWorkflowResult(&r)
			}
			if (err != nil || r.Outcome != "") && (w.held || w.staged) {
				w.t.Errorf("left behind: range held %v, staged %v", w.held, w.staged)
			}
			return r, p, err
		}
		input = converter.NewRawValue(again.Input.GetPayloads()[0])
		if size := again.Input.Size(); size > 64<<10 {
			w.t.Errorf("run %d carries over %d bytes", n, size)
		}
	}
}

func (w *world) progress(env *testsuite.TestWorkflowEnvironment, page any) (p Progress) {
	w.t.Helper()
	var args []any
	if page != nil {
		args = append(args, page)
	}
	v, err := env.QueryWorkflow(QueryProgress, args...)
	if err == nil {
		err = v.Get(&p)
	}
	if err != nil {
		w.t.Error(err)
	}
	return p
}

// expect checks the progress in the middle.
func (w *world) expect(env *testsuite.TestWorkflowEnvironment, state string) Progress {
	w.t.Helper()
	p := w.progress(env, nil)
	if p.State != state {
		w.t.Errorf("the state is %s, want %s: %+v", p.State, state, p)
	}
	return p
}

func (w *world) count(prefix string) (n int) {
	for name, k := range w.calls {
		if strings.HasPrefix(name, prefix) {
			n += k
		}
	}
	return n
}

func dayInput() BackfillInput {
	return BackfillInput{Job: "payments", Window: Window{From: "2026-11-01T00:00:00Z", To: "2026-11-02T00:00:00Z"}}
}

func TestBackfillPublishes(t *testing.T) {
	w := newWorld(t, 3, 4, 2)
	w.last[1] = 2
	w.planned = activities.Planned{Clipped: "to is sealed time", Warnings: []string{"hour 3 is missing"}, Files: 7}
	in := dayInput()
	in.Reason, in.Actor, in.RequestID = "late records", "ann", "r1"
	r, p, err := w.run(BackfillType, in)
	if err != nil {
		t.Fatal(err)
	}
	if r.Outcome != Published || r.Version != 3 || r.Slices != 8 || r.Rows != 800 || r.Sessions != 80 || r.Verified.Digest != "d1" || r.Published.Generation != 9 ||
		r.Clipped == "" || len(r.Warnings) != 1 {
		t.Errorf("result %+v", r)
	}
	if w.ended.RequestID != "r1" || w.ended.Actor != "ann" || w.ended.Reason != "late records" || w.ended.Backfill.Version != 3 {
		t.Errorf("published with %+v", w.ended)
	}
	if w.verify.Slices != 8 || w.verify.Rows != 800 || w.verify.Sessions != 80 || !w.planIn.Publish || w.planIn.Parallelism != 4 {
		t.Errorf("verified with %+v, planned with %+v", w.verify, w.planIn)
	}
	if p.State != Published || p.Total != 8 || p.Done != 8 || p.Running != 0 || p.Failed != 0 || p.Files != 7 || p.Pages != 1 || len(p.Slices) != 9 {
		t.Errorf("progress %+v", p)
	}
	if s := p.Slices[6]; s.Chunk != 1 || s.Slice != 3 || s.State != SliceNotNeeded {
		t.Errorf("the slice behind the last of its chunk is %+v", s)
	}
	if s := p.Slices[8]; s.State != SliceDone || s.Rows != 100 || s.Attempts != 1 || s.Seconds != 2 {
		t.Errorf("a slice is %+v", s)
	}
	if got := w.order[len(w.order)-5:]; !slices.Equal(got, []string{"verify", "hold", "publish", "drop", "release"}) {
		t.Errorf("in the end %v", got)
	}
}

// TestNarrowPlanIsWidened: what is served is linked to sessions beyond what was staged.
func TestNarrowPlanIsWidened(t *testing.T) {
	w := newWorld(t, 3, 2)
	w.needs = time.Hour
	r, p, err := w.run(BackfillType, dayInput())
	if err != nil || r.Outcome != Published || r.Slices != 5 || w.count("slice") != 10 || w.calls["plan"] != 2 || w.calls["drop"] != 2 || p.Done != 5 {
		t.Errorf("result %+v, %v, %v", r, err, w.calls)
	}
	if id := w.planIn.Backfill.ID; !strings.HasSuffix(id, "-1") || w.planIn.Margin.Before != time.Hour || w.planIn.Backfill.Version != 3 {
		t.Errorf("planned with %+v", w.planIn)
	}
	w = newWorld(t, 1)
	w.needs = 1000 * time.Hour
	w.forget = true // it says the same again and again
	_, p, err = w.run(BackfillType, dayInput())
	if err == nil || !strings.Contains(err.Error(), "choose a wider range") || p.State != Failed || w.calls["drop"] != roundsMax+1 {
		t.Errorf("it ended with %v, %v", err, w.calls)
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
		`{"job":"payments","window":"24h","mode":"dry_run","rebuild":true}`:              "rebuild",
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
		`{"job":"payments","day":"2026-11-01","rebuild":true}`:   "repair",
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

// rawJSON is an input as tctl sends it.
func rawJSON(text string) converter.RawValue {
	return converter.NewRawValue(&commonpb.Payload{
		Metadata: map[string][]byte{converter.MetadataEncoding: []byte(converter.MetadataEncodingJSON)}, Data: []byte(text),
	})
}

func TestWindowIsResolvedOnce(t *testing.T) {
	scheduled := time.Date(2026, 11, 2, 2, 0, 0, 0, time.UTC)
	w := newWorld(t, 250) // continues as new
	r, _, err := w.run(BackfillType, rawJSON(`{"job":"payments","window":"24h","lag":"2h"}`), func(env *testsuite.TestWorkflowEnvironment) {
		env.SetStartTime(scheduled.Add(50 * time.Minute)) // another one was running until then
		if err := env.SetTypedSearchAttributesOnStart(temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyTime("TemporalScheduledStartTime").ValueSet(scheduled))); err != nil {
			t.Fatal(err)
		}
	}, func(env *testsuite.TestWorkflowEnvironment) { env.SetStartTime(scheduled.Add(90 * time.Hour)) })
	want := activities.Range{From: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)}
	if err != nil || r.Range != want || w.planIn.Range != want || r.Slices != 250 {
		t.Errorf("result %+v, %v; planned %v", r, err, w.planIn.Range)
	}
	// Without a schedule it counts from the start.
	w = newWorld(t, 1)
	r, _, err = w.run(BackfillType, rawJSON(`{"job":"payments","window":"1h"}`), func(env *testsuite.TestWorkflowEnvironment) {
		env.SetStartTime(time.Date(2026, 11, 5, 7, 30, 10, 5000, time.UTC))
	})
	want = activities.Range{From: time.Date(2026, 11, 5, 6, 30, 10, 0, time.UTC), To: time.Date(2026, 11, 5, 7, 30, 10, 0, time.UTC)}
	if err != nil || r.Range != want {
		t.Errorf("result %+v, %v", r, err)
	}
}

func TestOverlapIsRefused(t *testing.T) {
	w := newWorld(t, 2)
	w.holder = "backfill/payments/other"
	_, p, err := w.run(BackfillType, dayInput())
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.Type() != Refused || !strings.Contains(err.Error(), "backfill/payments/other holds 2026-11-01T00:00:00Z to 2026-11-02T00:00:00Z of payments") {
		t.Errorf("got %v", err)
	}
	if p.State != Refused || w.calls["plan"] != 0 || w.calls["drop"] != 0 {
		t.Errorf("progress %+v, calls %v", p, w.calls)
	}
}

func TestPlanThatIsWrongEndsIt(t *testing.T) {
	w := newWorld(t, 2)
	w.fail = func(call string, _ int) error {
		if call == "plan" {
			return temporal.NewNonRetryableApplicationError("the range is in the future", activities.User, nil)
		}
		return nil
	}
	_, p, err := w.run(BackfillType, dayInput())
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.Type() != activities.User || !strings.Contains(err.Error(), "in the future") || p.State != Failed || w.calls["drop"] != 1 {
		t.Errorf("got %v, %+v, %v", err, p, w.calls)
	}
}

// TestFailedStepWaits fails each step for good; the backfill waits, and goes on when told to.
func TestFailedStepWaits(t *testing.T) {
	for _, step := range []string{"hold", "plan", "verify", "publish"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t, 2)
			broke := true
			w.fail = func(call string, n int) error {
				if call == step && broke {
					return broken(step != "hold")
				}
				return nil
			}
			r, _, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
				later(t, env, func() {
					if p := w.expect(env, NeedsAttention); p.Error == nil || !strings.Contains(p.Error.Message, "no room") || w.served {
						t.Errorf("progress %+v", p)
					}
					if n := w.calls[step]; step != "hold" && n != sliceAttemptsMax {
						t.Errorf("it was tried %d times", n)
					}
					env.SignalWorkflow(SignalRetryFailed, Order{}) // in vain
				}, 10*time.Minute)
				later(t, env, func() {
					w.expect(env, NeedsAttention)
					if n := w.calls[step]; step != "hold" && n != 2*sliceAttemptsMax {
						t.Errorf("it was tried %d times", n)
					}
					broke = false
					env.SignalWorkflow(SignalRetryFailed, Order{})
				}, 13*time.Minute)
			})
			if err != nil || r.Outcome != Published || !w.served {
				t.Errorf("result %+v, %v", r, err)
			}
		})
	}
}

// TestUserErrorBehindThePlanWaits: hours of work stand behind it.
func TestUserErrorBehindThePlanWaits(t *testing.T) {
	w := newWorld(t, 1)
	w.fail = func(call string, n int) error {
		if call == "publish" && n == 1 {
			return temporal.NewNonRetryableApplicationError("the live job can still change all of the range", activities.User, nil)
		}
		return nil
	}
	r, _, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
		later(t, env, func() {
			w.expect(env, NeedsAttention)
			env.SignalWorkflow(SignalRetryFailed, Order{})
		}, time.Minute)
	})
	if err != nil || r.Outcome != Published || w.count("slice") != 1 {
		t.Errorf("result %+v, %v, %v", r, err, w.calls)
	}
}

// TestParallelismIsCarriedOver over continue-as-new.
func TestParallelismIsCarriedOver(t *testing.T) {
	w := newWorld(t, slices.Repeat([]int{60}, 5)...)
	seen := 0
	_, _, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
		env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, _ converter.EncodedValues) {
			if info.ActivityType.Name == "PlanBackfill" {
				env.SignalWorkflow(SignalParallelism, ParallelismOrder{Parallelism: 5})
			}
		})
	}, func(env *testsuite.TestWorkflowEnvironment) {
		env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, _ converter.EncodedValues) {
			if info.ActivityType.Name == "VerifyBackfill" {
				seen = w.progress(env, nil).Parallelism
			}
		})
	})
	if err != nil || seen != 5 {
		t.Errorf("the second run has a parallelism of %d, %v", seen, err)
	}
}

func TestFailedSlicesWaitForAPerson(t *testing.T) {
	w := newWorld(t, 2, 4, 2)
	broke := true
	w.fail = func(call string, n int) error {
		if broke && call == "slice 1/2" {
			return broken(true)
		}
		if broke && call == "slice 2/0" {
			return temporal.NewNonRetryableApplicationError(strings.Repeat("too many open sessions; ", 50), activities.User, nil)
		}
		if call == "slice 0/1" && n < 3 { // passes by itself
			return broken(true)
		}
		return nil
	}
	r, p, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
		later(t, env, func() {
			p := w.expect(env, NeedsAttention)
			if p.Done != 4 || p.Failed != 2 || p.Total != 8 || p.Running != 0 || p.ETA == 0 || p.Rate == 0 {
				t.Errorf("progress %+v", p)
			}
			if s := p.Slices[4]; s.State != SliceFailed || s.Attempts != 5 || !strings.Contains(s.Error, "no room") {
				t.Errorf("the slice that failed is %+v", s)
			}
			if s := p.Slices[6]; s.State != SliceFailed || s.Attempts != 1 || len(s.Error) > sliceErrorText+10 {
				t.Errorf("the other slice that failed is %+v", s)
			}
			if s := p.Slices[1]; s.Attempts != 3 || s.State != SliceDone {
				t.Errorf("the slice that failed for a while is %+v", s)
			}
			if s := p.Slices[5]; s.State != SliceWaiting {
				t.Errorf("the slice behind it is %+v", s)
			}
			broke = false
			env.SignalWorkflow(SignalRetryFailed, Order{Reason: "there is room"})
		}, time.Hour)
	})
	if err != nil || r.Outcome != Published || r.Slices != 8 || p.Failed != 0 || r.Rows != 800 {
		t.Errorf("result %+v, %v", r, err)
	}
	if w.calls["slice 1/2"] != 6 || w.calls["slice 2/0"] != 2 || w.calls["slice 0/0"] != 1 {
		t.Errorf("calls %v", w.calls)
	}
}

// TestPauseLetsSlicesEnd pauses while slices run, and resumes.
func TestPauseLetsSlicesEnd(t *testing.T) {
	w := newWorld(t, 3, 3)
	var once sync.Once // slices start in goroutines of their own
	r, _, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
		env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, _ converter.EncodedValues) {
			if info.ActivityType.Name == "RunSlice" {
				once.Do(func() { env.SignalWorkflow(SignalPause, Order{}) })
			}
		})
		later(t, env, func() {
			if p := w.expect(env, Paused); p.Done == 0 || p.Done > 4 || p.Running != 0 {
				t.Errorf("progress %+v", p)
			}
			env.SignalWorkflow(SignalResume, Order{})
		}, time.Hour)
	})
	if err != nil || r.Outcome != Published || r.Slices != 6 {
		t.Errorf("result %+v, %v", r, err)
	}
}

// TestParallelismBoundsWhatRuns counts the slices that run at once, which hang until they are canceled.
func TestParallelismBoundsWhatRuns(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2)
	for chunk := range 10 {
		w.hang[fmt.Sprintf("slice %d/0", chunk)] = true
	}
	in := dayInput()
	in.Parallelism, in.Share, in.Throttle = 4, 0.5, 1000
	running := func(env *testsuite.TestWorkflowEnvironment, want int) {
		t.Helper()
		if p := w.expect(env, Running); p.Running != want || p.Parallelism != want || w.count("slice") != want {
			t.Errorf("%d slices run, %d have started, want %d", p.Running, w.count("slice"), want)
		}
	}
	r, _, err := w.run(BackfillType, in, func(env *testsuite.TestWorkflowEnvironment) {
		later(t, env, func() {
			running(env, 2)
			if s := w.inputs[0]; s.Throttle != 500 || s.Share != 0.5 {
				t.Errorf("a slice got %+v", s)
			}
			env.SignalWorkflow(SignalParallelism, ParallelismOrder{Parallelism: 12})
		}, time.Minute)
		later(t, env, func() {
			running(env, 6)
			if s := w.inputs[5]; s.Throttle != 166 {
				t.Errorf("a slice got %+v", s)
			}
			env.SignalWorkflow(SignalCancel, Order{})
		}, 2*time.Minute)
	})
	if err != nil || r.Outcome != Canceled {
		t.Errorf("result %+v, %v", r, err)
	}
}

func TestGarbageIsRecorded(t *testing.T) {
	w := newWorld(t, 2)
	w.hang["slice 0/0"] = true
	garbage := []struct {
		signal string
		input  any
	}{
		{SignalParallelism, nil}, {SignalParallelism, "x"}, {SignalParallelism, 4}, {SignalParallelism, map[string]any{"parallelism": 0}},
		{SignalParallelism, map[string]any{"parallelism": 4000}}, {SignalParallelism, map[string]any{"parallelism": "4"}},
		{SignalPause, "now"}, {SignalResume, 7}, {SignalCancel, "x"}, {SignalCancel, map[string]any{"why": "x"}},
		{SignalRetryFailed, nil}, // nothing has failed
		{"stop", nil}, {"pauze", Order{}},
	}
	_, p, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
		later(t, env, func() {
			for _, g := range garbage {
				env.SignalWorkflow(g.signal, g.input)
			}
		}, time.Minute)
		later(t, env, func() {
			p := w.expect(env, Running)
			if p.Count != len(garbage) || len(p.Rejected) != rejectedMax || p.Parallelism != 4 {
				t.Errorf("%d rejected: %+v", p.Count, p.Rejected)
			}
			env.SignalWorkflow(SignalCancel, Order{})
		}, 2*time.Minute)
	})
	if err != nil || p.State != Canceled {
		t.Errorf("in the end %+v, %v", p, err)
	}
	env := newWorld(t, 1).environment()
	env.ExecuteWorkflow(BackfillType, dayInput())
	for _, page := range []any{"x", map[string]any{"page": -1}, map[string]any{"side": 1}} {
		if _, err := env.QueryWorkflow(QueryProgress, page); err == nil {
			t.Errorf("the query takes %v", page)
		}
	}
}

// TestAYearOfHours runs 8,760 slices with their warm-ups, some of which fail, through all its runs.
func TestAYearOfHours(t *testing.T) {
	chunks := []int{}
	for range 24 {
		chunks = append(chunks, 365)
	}
	w := newWorld(t, chunks...)
	w.fail = func(call string, n int) error {
		if call == "slice 3/77" && n == 1 {
			return broken(true)
		}
		return nil
	}
	runs := 0
	var count []func(env *testsuite.TestWorkflowEnvironment)
	for range 60 {
		count = append(count, func(*testsuite.TestWorkflowEnvironment) { runs++ })
	}
	r, p, err := w.run(BackfillType, dayInput(), count...)
	if err != nil || r.Slices != 8760 || r.Rows != 876_000 || w.count("slice") != 8761 {
		t.Errorf("result %+v, %v, %d slices ran", r, err, w.count("slice"))
	}
	if want := (8760 + slicesPerRun - 1) / slicesPerRun; runs != want && runs != want+1 {
		t.Errorf("%d runs, want %d", runs, want)
	}
	if p.Total != 8760 || p.Done != 8760 || p.Pages != 88 || len(p.Slices) != pageSlices {
		t.Errorf("%d of %d, %d pages of %d", p.Done, p.Total, p.Pages, len(p.Slices))
	}
	if data, err := json.Marshal(p); err != nil || len(data) > 64<<10 {
		t.Errorf("the progress has %d bytes: %v", len(data), err)
	}
	if w.calls["plan"] != 1 || w.calls["publish"] != 1 {
		t.Errorf("it was planned %d times", w.calls["plan"])
	}
}

// TestManyFailuresStopTheRest: what fails everywhere is not tried everywhere.
func TestManyFailuresStopTheRest(t *testing.T) {
	w := newWorld(t, slices.Repeat([]int{1}, 300)...)
	w.fail = func(call string, _ int) error {
		if strings.HasPrefix(call, "slice") {
			return broken(false)
		}
		return nil
	}
	r, _, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
		later(t, env, func() {
			if p := w.expect(env, NeedsAttention); p.Failed < failedMax || p.Failed > failedMax+4 {
				t.Errorf("progress %+v", p)
			}
			env.SignalWorkflow(SignalCancel, Order{})
		}, time.Hour)
	})
	if err != nil || r.Outcome != Canceled {
		t.Errorf("result %+v, %v", r, err)
	}
}

// TestRangeIsHeldWhileItWaits: the lease is renewed, also through failures.
func TestRangeIsHeldWhileItWaits(t *testing.T) {
	w := newWorld(t, 1)
	_, _, err := w.run(BackfillType, dayInput(), func(env *testsuite.TestWorkflowEnvironment) {
		env.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, _ converter.EncodedValues) {
			if info.ActivityType.Name == "PlanBackfill" {
				env.SignalWorkflow(SignalPause, Order{})
			}
		})
		later(t, env, func() {
			w.expect(env, Paused)
			if n := w.calls["hold"]; n < 9 || n > 10 { // once at first, then every quarter of an hour
				t.Errorf("the range was asked for %d times", n)
			}
			w.holder = "backfill/payments/other" // it was lost
			env.SignalWorkflow(SignalResume, Order{})
		}, 2*time.Hour+time.Minute)
	})
	if err == nil || !strings.Contains(err.Error(), "backfill/payments/other holds") || w.served {
		t.Errorf("it ended with %v, served %v", err, w.served)
	}
}

func TestCleanUpIsTriedUntilItWorks(t *testing.T) {
	w := newWorld(t, 1)
	w.fail = func(call string, n int) error {
		if call == "drop" && n < 8 {
			return broken(true)
		}
		return nil
	}
	r, _, err := w.run(BackfillType, dayInput())
	if err != nil || r.Outcome != Published || len(r.Warnings) != 0 || w.calls["drop"] != 8 {
		t.Errorf("result %+v, %v, %v", r, err, w.calls)
	}
}

func methodName(f any) string {
	name := runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name()
	return strings.TrimSuffix(name[strings.LastIndexByte(name, '.')+1:], "-fm")
}

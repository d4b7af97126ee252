package workflows

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"go.temporal.io/sdk/temporal"

	"github.com/weftdata/weft/activities"
)

func (w *world) Launch(_ context.Context, in activities.LaunchInput) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.launched = append(w.launched, in)
	return w.call("launch")
}

// Where a live shard can still change what was asked for, the job is asked to compute its version anew, if that is wanted.
func TestRebuildOfWhatChanges(t *testing.T) {
	for _, c := range []struct {
		name     string
		changing bool
		chunks   []int
		input    any
		differ   int64
		outcome  string
		asked    bool
	}{
		{name: "clipped", changing: true, chunks: []int{2}, outcome: Published, asked: true},
		{name: "not clipped", chunks: []int{2}, outcome: Published},
		{name: "all can change", changing: true, outcome: Rebuilding, asked: true},
		{name: "not wanted", changing: true, chunks: []int{2}, outcome: Published,
			input: BackfillInput{Job: "payments", Window: dayInput().Window}},
		{name: "repair", changing: true, chunks: []int{2}, differ: 3, outcome: Compared, asked: true,
			input: ReconcileInput{Job: "payments", Day: "2026-11-01", Repair: true, Work: Work{Rebuild: true}}},
		{name: "nothing to repair", changing: true, chunks: []int{2}, outcome: Compared,
			input: ReconcileInput{Job: "payments", Day: "2026-11-01", Repair: true, Work: Work{Rebuild: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.chunks...)
			w.planned.Changing, w.differ = c.changing, c.differ
			kind := ReconcileType
			if _, is := c.input.(ReconcileInput); !is {
				kind = BackfillType
			}
			if c.input == nil {
				in := dayInput()
				in.Rebuild, in.Actor, in.Reason = true, "ann", "late records"
				c.input = in
			}
			r, p, err := w.run(kind, c.input)
			if err != nil || r.Outcome != c.outcome || p.Rebuild != r.Rebuild || (len(w.launched) == 1) != c.asked || strings.Contains(r.Rebuild, "asked of job/payments") != c.asked {
				t.Fatalf("%+v, %v; launched %+v", r, err, w.launched)
			}
			if !c.asked {
				return
			}
			var ask Request
			in := w.launched[0]
			if err := json.Unmarshal(in.Arg, &ask); err != nil || in.ID != "job/payments" || in.Signal != SignalRebuild || !strings.HasPrefix(ask.RequestID, "rebuild/") || ask.Reason == "" {
				t.Errorf("%+v with %+v, %v", in, ask, err)
			}
		})
	}
}

// What cannot be asked for is told, and is no failure of what was done.
func TestRebuildThatCannotBeAskedFor(t *testing.T) {
	w := newWorld(t, 1)
	w.planned.Changing = true
	w.fail = func(call string, _ int) error {
		if call == "launch" {
			return temporal.NewNonRetryableApplicationError("no such thing", activities.User, nil)
		}
		return nil
	}
	in := dayInput()
	in.Rebuild = true
	r, _, err := w.run(BackfillType, in)
	if err != nil || r.Outcome != Published || !strings.Contains(r.Rebuild, "could not be asked for: no such thing") {
		t.Errorf("%+v, %v", r, err)
	}
}

package workers

import (
	"strings"
	"testing"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/streaming"
)

// What is served, or would be after a rollback, is kept; the rest of a version goes, and nothing else does.
func TestDropVersion(t *testing.T) {
	s := newStage(t, stageSpec, stageSpec+"approval: none\n", stageSpec+"approval: two_person\n")
	x := newTopics()
	s.Topics = func() Topics { return x }
	ctx, start := t.Context(), int64(event.MinTime)
	for version := 1; version <= 3; version++ {
		s.seen(t, version, 1000e6)
		s.checkpoint(t, version, 0, 3, 10, 20)
		for _, key := range []string{"checkpoints/payments/%/0/state-1", "rollouts/payments/%/run/differences-1.json"} {
			if _, err := s.Versions.Env.Objects.PutIfAbsent(ctx, strings.ReplaceAll(key, "%", string(rune('0'+version))), []byte("x"), "x"); err != nil {
				t.Fatal(err)
			}
		}
		x.add(of(GroupsTopic("payments", version), 0), streaming.Raw{})
	}
	s.must(t, activities.SwitchInput{Version: 1, From: start, RequestID: "1"}, activities.Switched{Epoch: 1})
	s.must(t, activities.SwitchInput{Version: 2, From: start, Epoch: 1, RequestID: "2"}, activities.Switched{Epoch: 2})
	drop := func(version int, back uint64, kept string, objects int) {
		t.Helper()
		d, err := s.DropVersion(ctx, activities.DropVersionInput{Job: "payments", Version: version, Back: back})
		if err != nil || (d.Kept != "") != (kept != "") || !strings.Contains(d.Kept, kept) || d.Objects != objects {
			t.Errorf("version %d: %+v, %v; want %q and %d objects", version, d, err, kept, objects)
		}
	}
	left := func(want string) {
		t.Helper()
		got := ""
		list, err := s.Versions.Env.Store.Generations(ctx, "payments")
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range list {
			got += g.Version
		}
		got += " "
		for info, err := range s.Versions.Env.Objects.List(ctx, "", "") {
			if err != nil {
				t.Fatal(err)
			}
			if parts := strings.Split(info.Key, "/"); parts[0] == "checkpoints" || parts[0] == "rollouts" {
				got += parts[2]
			}
		}
		got += " "
		for _, version := range []int{1, 2, 3} {
			if len(x.parts[of(GroupsTopic("payments", version), 0)]) > 0 {
				got += string(rune('0' + version))
			}
		}
		if got != want {
			t.Errorf("left are %q, want %q", got, want)
		}
	}
	drop(2, 0, "it serves some sessions", 0)
	drop(1, 1, "epoch 1 of the serving map", 0)
	left("123 112233123 123")
	drop(3, 1, "", 3)
	left("12 112212 12")
	drop(3, 1, "", 0) // again
	drop(1, 0, "", 3)
	left("2 222 2")
}

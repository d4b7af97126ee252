package workers

import (
	"strings"
	"testing"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/registry"
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

// What asks for more than may be had is not registered; what is served already, or is brought back, is not asked.
func TestLimitsRefuse(t *testing.T) {
	s := newStage(t, stageSpec)
	s.Limits = Limits{CPU: 2, MemoryBytes: 1 << 30, Shards: 4}
	large := stageSpec + "resources: {cpu: 2.5, memory: 1.5GiB}\n"
	for _, c := range []struct {
		in     activities.RegisterInput
		refuse []string
	}{
		{activities.RegisterInput{Spec: large, Limit: true, Shards: 5}, []string{"resources.cpu is 2.5, and the control workers allow 2 (--max-cpu)",
			"resources.memory is 1536MiB, and the control workers allow 1GiB (--max-memory)", "5 shards are asked for, and the control workers allow 4 (--max-shards)"}},
		{activities.RegisterInput{Spec: large, Limit: true, DryRun: true}, []string{"resources.cpu", "resources.memory"}},
		{activities.RegisterInput{Job: "payments", Version: 1, Rebuild: true, Limit: true, Shards: 5}, []string{"5 shards"}},
		{activities.RegisterInput{Job: "payments", Version: 1, Limit: true, Shards: 4}, nil},
		{activities.RegisterInput{Job: "payments", Version: 1, Shards: 5}, nil},
	} {
		p, err := s.Register(t.Context(), c.in)
		if err != nil || len(p.Refused) != len(c.refuse) {
			t.Errorf("%+v: %q, %v", c.in, p.Refused, err)
			continue
		}
		for i, want := range c.refuse {
			if !strings.HasPrefix(p.Refused[i], want) {
				t.Errorf("%q, want %q", p.Refused[i], want)
			}
		}
	}
	all, err := registry.New(s.Versions.Env.Objects).List(t.Context(), "payments")
	if err != nil || len(all) != 1 {
		t.Errorf("registered are %d versions, %v", len(all), err)
	}
	if p, err := s.Register(t.Context(), activities.RegisterInput{Spec: stageSpec + "resources: {cpu: 2, memory: 1GiB}\n", Limit: true}); err != nil || len(p.Refused) > 0 || p.Version != 2 || p.Existed {
		t.Errorf("within the limits: %+v, %v", p, err)
	}
	bad := Limits{CPU: -1, MemoryBytes: -1, Shards: -1}
	if err := bad.Validate(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("%v", err)
	}
}

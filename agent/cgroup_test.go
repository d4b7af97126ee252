package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeGroup is a folder with the files that tell what a cgroup bounds.
func fakeGroup(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCGroupsOfBothVersions(t *testing.T) {
	second := func(controllers string) string {
		return fakeGroup(t, map[string]string{"cgroup.controllers": controllers})
	}
	memory := fakeGroup(t, map[string]string{"memory.limit_in_bytes": "9223372036854771712\n"})
	cpu := fakeGroup(t, map[string]string{"cpu.cfs_quota_us": "-1\n"})
	both := fakeGroup(t, map[string]string{"cpu.cfs_quota_us": "-1\n", "memory.limit_in_bytes": "1\n"})
	for _, c := range []struct {
		name string
		dirs []string
		want string // problem
	}{
		{"none", nil, ""},
		{"version 2", []string{second("cpuset cpu io memory pids\n")}, ""},
		{"version 1", []string{memory, cpu}, ""},
		{"version 1 in the other order", []string{cpu, memory}, ""},
		{"version 1, mounted together", []string{both}, ""},
		{"version 2 without processors", []string{second("io memory\n")}, "has no controller cpu, only [\"io\" \"memory\"]: have it delegated"},
		{"version 2 without memory", []string{second("cpu cpuset\n")}, "has no controller memory"},
		{"version 2 without anything", []string{second("\n")}, "has no controller memory"},
		{"version 1 without processors", []string{memory}, "does not bound cpu: name a folder in the tree of the controller cpu, too"},
		{"version 1 without memory", []string{cpu}, "does not bound memory"},
		{"memory twice", []string{memory, cpu, second("cpu memory\n")}, "both bound memory: name one of them"},
		{"a folder", []string{t.TempDir()}, "is no cgroup of version 2"},
		{"nothing", []string{"/does/not/exist"}, "is no cgroup of version 2"},
	} {
		_, err := openHierarchies(c.dirs)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, expected %q", c.name, err, c.want)
		}
	}
}

func TestCGroupSettings(t *testing.T) {
	all := []string{memoryController, cpuController}
	second := hierarchy{dir: "/cg", unified: true, controllers: all}
	memory, cpu := hierarchy{dir: "/m", controllers: all[:1]}, hierarchy{dir: "/c", controllers: all[1:]}
	r := &Record{Job: "payments", Version: 3, Process: 1, MemoryBytes: 64 << 20, CPU: 1.5}
	for _, c := range []struct {
		h    hierarchy
		r    *Record
		want string
	}{
		{second, r, "memory.max=67108864 memory.swap.max=0? cpu.max=150000 100000"},
		{memory, r, "memory.limit_in_bytes=67108864 memory.memsw.limit_in_bytes=67108864?"},
		{cpu, r, "cpu.cfs_period_us=100000 cpu.cfs_quota_us=150000"},
		{cpu, &Record{CPU: 0.001}, "cpu.cfs_period_us=100000 cpu.cfs_quota_us=1000"}, // the kernel takes no less
		{second, &Record{}, ""},
		{hierarchy{dir: "/cg", unified: true}, r, ""},
	} {
		var got []string
		for _, s := range c.h.settings(c.r) {
			text := s.file + "=" + s.value
			if s.may {
				text += "?"
			}
			got = append(got, text)
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %q, expected %q", c.h.dir, text, c.want)
		}
	}
	if got := second.group(r); got != "/cg/weft-payments-3-1" {
		t.Errorf("the group is %s", got)
	}
}

// TestCGroupIsMade makes groups where the kernel makes no files: what cannot be bounded is refused, and nothing is left.
func TestCGroupIsMade(t *testing.T) {
	dir := fakeGroup(t, map[string]string{"cgroup.controllers": "cpu memory\n", "cgroup.subtree_control": ""})
	a := &Agent{cfg: Config{}}
	var err error
	if a.hierarchies, err = openHierarchies([]string{dir}); err != nil {
		t.Fatal(err)
	}
	r := &Record{Job: "payments", Version: 1, CPU: 1}
	if err := a.makeGroups(r); err == nil || !strings.Contains(err.Error(), "limit a cgroup to 100000 100000: open "+dir) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without cpu.max: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); err != nil || string(text) != "+memory +cpu" {
		t.Errorf("controllers are passed on as %q, %v", text, err)
	}
	r.CPU = 0
	for range 2 { // the second time one is there
		if err := a.makeGroups(r); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "weft-*")); err != nil || !slices.Equal(left, []string{filepath.Join(dir, "weft-payments-1-0")}) {
		t.Errorf("there are %q, %v", left, err)
	}
	if err := removeGroups([]string{filepath.Join(dir, "weft-payments-1-0"), filepath.Join(dir, "weft-gone-1-0")}); err != nil {
		t.Error(err)
	}
}

func TestOutOfMemory(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  bool
	}{
		{map[string]string{"memory.events": "low 0\nhigh 0\nmax 31\noom 1\noom_kill 1\noom_group_kill 0\n"}, true},
		{map[string]string{"memory.events": "low 0\nhigh 0\nmax 31\noom 0\noom_kill 0\noom_group_kill 0\n"}, false},
		{map[string]string{"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}, true},
		{map[string]string{"memory.oom_control": "oom_kill_disable 1\nunder_oom 1\noom_kill 0\n"}, false},
		{nil, false},
	} {
		if got := outOfMemory([]string{t.TempDir(), fakeGroup(t, c.files)}); got != c.want {
			t.Errorf("%v: %t", c.files, got)
		}
	}
}

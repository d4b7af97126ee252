package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
)

// cgroupOf makes a cgroup below that of the test, in the tree of a controller of version 1, or of version 2 where controller is
// empty. It skips the test where that cannot be.
func cgroupOf(t *testing.T, controller string) (dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Skip(err)
	}
	var root, mount string
	for line := range strings.Lines(string(mounts)) { // 36 35 0:29 root mount options … - type source options
		left, right, _ := strings.Cut(line, " - ")
		where, what := strings.Fields(left), strings.Fields(right)
		if controller == "" && what[0] == "cgroup2" || controller != "" && what[0] == "cgroup" && slices.Contains(strings.Split(what[2], ","), controller) {
			root, mount = where[3], where[4]
		}
	}
	if mount == "" {
		t.Skipf("no cgroups of the controller %q are mounted", controller)
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) { // 4:memory:/path
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); slices.Contains(strings.Split(f[1], ","), controller) {
			dir = filepath.Join(mount, strings.TrimPrefix(f[2], root), "weft-test-"+strconv.Itoa(os.Getpid()))
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("this user may make no cgroups: %v", err)
	}
	t.Cleanup(func() {
		left, _ := filepath.Glob(filepath.Join(dir, "weft-*")) // of a test that failed
		if err := endGroups(append(left, dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// bounded makes cgroups that bound memory and processors, in a version of cgroups.
func bounded(t *testing.T, version int) (dirs []string) {
	t.Helper()
	if version == 2 {
		dirs = []string{cgroupOf(t, "")}
	} else {
		dirs = []string{cgroupOf(t, memoryController), cgroupOf(t, cpuController)}
	}
	if _, err := openHierarchies(dirs); err != nil {
		t.Skip(err)
	}
	return dirs
}

// groups returns what a process that has started said of its cgroups when it had done nothing else, and what they are now.
func (w *world) groups(pid int) (atFirst, now string) {
	w.Helper()
	text, err := os.ReadFile(Folder(filepath.Join(w.cfg.Dir, "processes/payments/1/0")).WorkerLog())
	if err != nil {
		w.Fatal(err)
	}
	_, atFirst, _ = strings.Cut(string(text), `"groups":`)
	if atFirst, err = strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(atFirst), "}")); err != nil {
		w.Fatalf("%v: %s", err, text)
	}
	proc, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		w.Fatal(err)
	}
	return atFirst, string(proc)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, os.ErrNotExist)
}

// TestOwnThread expects that a thread which was given away is used no more, and is never the first of the process.
func TestOwnThread(t *testing.T) {
	var threads []string
	for range 100 {
		err := onOwnThread(func() error {
			threads = append(threads, fmt.Sprintf("/proc/self/task/%d", syscall.Gettid()))
			return os.ErrExist
		})
		if !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	if first := fmt.Sprintf("/proc/self/task/%d", os.Getpid()); slices.Contains(threads, first) {
		t.Error("it was the first thread, which cannot end")
	}
	limit := time.After(10 * time.Second)
	for tick := time.NewTicker(time.Millisecond); slices.ContainsFunc(threads, exists); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("a thread goes on")
		}
	}
}

// TestCGroupLife puts processes into cgroups of both versions: each starts there, and alone. The group is gone with its process,
// also where the process died while no agent was there, and what an agent left behind is in nobody's way.
func TestCGroupLife(t *testing.T) {
	for version, controllers := range map[int][]string{1: {memoryController, cpuController}, 2: {""}} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			var list []hierarchy // bounds nothing: a cgroup can be made where controllers are elsewhere
			var groups []string
			for _, name := range controllers {
				list = append(list, hierarchy{dir: cgroupOf(t, name), unified: version == 2})
				groups = append(groups, filepath.Join(list[len(list)-1].dir, "weft-payments-1-0"))
			}
			w := newWorld(t, "wait")
			open := func() *Agent {
				a := w.open()
				a.hierarchies = list
				return a
			}
			gone := func() bool { return !slices.ContainsFunc(groups, exists) }
			for _, dir := range groups { // of an agent that died before it started something there
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			a := open()
			s := w.launch(a, "first")
			w.await("it is up", w.up)
			for i, dir := range groups {
				w.await(fmt.Sprintf("process %d is alone in %s", s.PID, dir), func() bool { // no thread of the agent is with it
					text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
					return err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(s.PID)
				})
				want := filepath.Base(list[i].dir) + "/weft-payments-1-0\n"
				if atFirst, now := w.groups(s.PID); strings.Count(atFirst, want) != len(groups) || atFirst != now {
					t.Errorf("the process began in %q, and is in %q; expected %s", atFirst, now, want)
				}
			}
			if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			w.await("its group is gone", gone)
			w.await("Temporal knows", func() bool { return len(w.told.all()) == 2 })
			if text := w.told.all()[1]; !strings.Contains(text, "it was killed from outside") || strings.Contains(text, "cgroup") {
				t.Errorf("Temporal was told %s", text)
			}
			w.await("it is settled", func() bool { return a.Running() == 0 })

			s = w.launch(a, "second")
			w.await("it is up", w.up)
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if gone() {
				t.Error("nobody is there, and the group is gone")
			}
			a = w.open() // without cgroups
			defer a.Close()
			w.await("the next agent removes the group", gone)
		})
	}
}

// TestCGroupOfNoProcess expects that a program which cannot be started leaves no group.
func TestCGroupOfNoProcess(t *testing.T) {
	for version, controllers := range map[int][]string{1: {memoryController, cpuController}, 2: {""}} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			w := newWorld(t, "wait")
			w.cfg.Engine = filepath.Join(t.TempDir(), "engine")
			if err := os.WriteFile(w.cfg.Engine, []byte("no program"), 0o600); err != nil {
				t.Fatal(err)
			}
			a := w.open()
			defer a.Close()
			for _, name := range controllers {
				a.hierarchies = append(a.hierarchies, hierarchy{dir: cgroupOf(t, name), unified: version == 2})
			}
			_, err := a.Launch(t.Context(), activities.ProcessInput{Job: "payments", Version: 1, Slots: 1}, []byte("token"))
			if !errors.Is(err, syscall.ENOEXEC) {
				t.Errorf("it was started: %v", err)
			}
			for _, h := range a.hierarchies {
				if left, _ := filepath.Glob(filepath.Join(h.dir, "weft-*")); len(left) > 0 {
					t.Errorf("%q are left", left)
				}
			}
		})
	}
}

// TestCGroupMemory lets a process eat more than its limit, which the agent does not look at: the kernel kills it, and the agent
// says why.
func TestCGroupMemory(t *testing.T) {
	for version := range 2 {
		t.Run(fmt.Sprintf("version %d", version+1), func(t *testing.T) {
			dirs := bounded(t, version+1)
			for _, later := range []bool{false, true} {
				w := newWorld(t, "eat")
				w.cfg.CGroups, w.cfg.Timing.Memory = dirs, time.Hour
				a := w.open()
				w.launch(a, "token")
				if later { // it may have died by then; either way this agent is not told how
					if err := a.Close(); err != nil {
						t.Fatal(err)
					}
					a = w.open()
				}
				w.await("Temporal knows of the process and its shard", func() bool { return len(w.told.all()) == 2 })
				for _, text := range w.told.all() {
					if !strings.Contains(text, "it was killed, since all memory of its cgroup was taken, and its limit is 64 MiB (resources.memory in the spec)") {
						t.Errorf("Temporal was told %s", text)
					}
				}
				w.await("it is settled", func() bool { return a.Running() == 0 })
				if left, _ := filepath.Glob(filepath.Join(dirs[0], "weft-*")); len(left) > 0 {
					t.Errorf("%q are left", left)
				}
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestCGroupProcessors lets a process take all processors that it gets: the kernel makes it wait.
func TestCGroupProcessors(t *testing.T) {
	for version := range 2 {
		t.Run(fmt.Sprintf("version %d", version+1), func(t *testing.T) {
			dirs := bounded(t, version+1)
			w := newWorldOf(t, "spin", "cpu: 0.1, memory: 256MiB")
			w.cfg.CGroups = dirs
			a := w.open()
			defer a.Close()
			s := w.launch(a, "token")
			dir := filepath.Join(dirs[len(dirs)-1], "weft-payments-1-0")
			w.await("it has waited for ten periods", func() bool {
				text, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(string(text)) {
					if name, n, _ := strings.Cut(strings.TrimSpace(line), " "); name == "nr_throttled" {
						periods, err := strconv.Atoi(n)
						return err == nil && periods >= 10
					}
				}
				return false
			})
			if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			w.await("its group is gone", func() bool { return !exists(dir) })
		})
	}
}

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// cpuPeriod is over what time the kernel bounds a group's processor time, in microseconds; its own default.
	cpuPeriod = 100_000
	// cpuQuotaMin is the least that it takes for a period.
	cpuQuotaMin = 1000
	// emptyWithin is how long a group may take to be empty when its process is gone: the kernel cleans up behind it.
	emptyWithin = 2 * time.Second
)

// The controllers that the agent bounds its processes by.
const (
	memoryController = "memory"
	cpuController    = "cpu"
)

// hierarchy is a cgroup in which the agent makes one more for each of its processes. In version 2 of cgroups a single one bounds
// memory and processors; in version 1 every controller has a tree of its own.
type hierarchy struct {
	dir         string
	unified     bool // version 2
	controllers []string
}

// openHierarchies finds out what the folders of --cgroup are. Together they have to bound both memory and processors.
func openHierarchies(dirs []string) (list []hierarchy, err error) {
	var errs []error
	bounded := map[string]string{}
	for _, dir := range dirs {
		h, err := openHierarchy(dir)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, name := range h.controllers {
			if other := bounded[name]; other != "" {
				errs = append(errs, fmt.Errorf("--cgroup %s and --cgroup %s both bound %s: name one of them", other, dir, name))
			}
			bounded[name] = dir
		}
		list = append(list, h)
	}
	for _, name := range []string{memoryController, cpuController} {
		if len(dirs) > 0 && len(errs) == 0 && bounded[name] == "" {
			errs = append(errs, fmt.Errorf("--cgroup %s does not bound %s: name a folder in the tree of the controller %[2]s, too", strings.Join(dirs, ", "), name))
		}
	}
	return list, errors.Join(errs...)
}

func openHierarchy(dir string) (h hierarchy, err error) {
	if h.dir, err = filepath.Abs(dir); err != nil {
		return h, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err == nil {
		h.unified = true
		has := strings.Fields(string(text))
		for _, name := range []string{memoryController, cpuController} {
			if !slices.Contains(has, name) {
				return h, fmt.Errorf("--cgroup %s has no controller %s, only %q: have it delegated (systemd: Delegate=yes)", dir, name, has)
			}
			h.controllers = append(h.controllers, name)
		}
		return h, nil
	}
	for name, file := range map[string]string{memoryController: "memory.limit_in_bytes", cpuController: "cpu.cfs_quota_us"} {
		if _, e := os.Stat(filepath.Join(dir, file)); e == nil {
			h.controllers = append(h.controllers, name)
		}
	}
	if len(h.controllers) == 0 {
		return h, fmt.Errorf("--cgroup %s is no cgroup of version 2 (%w), nor one of version 1 that bounds memory or processors", dir, err)
	}
	return h, nil
}

// group is where the cgroup of a process is.
func (h *hierarchy) group(r *Record) string {
	return filepath.Join(h.dir, fmt.Sprintf("weft-%s-%d-%d", r.Job, r.Version, r.Process))
}

// setting is a file of a cgroup with what is to be in it.
type setting struct {
	file, value string
	may         bool // not every kernel has it
}

// settings are the limits of a process, in the order in which the kernel takes them. Memory that is swapped out is not more
// memory.
func (h *hierarchy) settings(r *Record) (list []setting) {
	bytes, quota := strconv.FormatInt(r.MemoryBytes, 10), strconv.FormatInt(max(cpuQuotaMin, int64(r.CPU*cpuPeriod)), 10)
	period := strconv.Itoa(cpuPeriod)
	if r.MemoryBytes > 0 && slices.Contains(h.controllers, memoryController) {
		if h.unified {
			list = append(list, setting{"memory.max", bytes, false}, setting{"memory.swap.max", "0", true})
		} else {
			list = append(list, setting{"memory.limit_in_bytes", bytes, false}, setting{"memory.memsw.limit_in_bytes", bytes, true})
		}
	}
	if r.CPU > 0 && slices.Contains(h.controllers, cpuController) {
		if h.unified {
			list = append(list, setting{"cpu.max", quota + " " + period, false})
		} else {
			list = append(list, setting{"cpu.cfs_period_us", period, false}, setting{"cpu.cfs_quota_us", quota, false})
		}
	}
	return list
}

// make makes the cgroup of a process, in place of one that an agent left behind which has died: its counts are not those of this
// process.
func (h *hierarchy) make(r *Record) (err error) {
	dir := h.group(r)
	if err := endGroups([]string{dir}); err != nil {
		return err
	}
	if h.unified && len(h.controllers) > 0 {
		// The controllers of a group are those that its parent passes on; once is enough, and more often changes nothing.
		if err := writeGroup(h.dir, setting{"cgroup.subtree_control", "+" + strings.Join(h.controllers, " +"), false}); err != nil {
			return fmt.Errorf("let cgroups have limits (no process may be in %s itself): %w", h.dir, err)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	for _, s := range h.settings(r) {
		if err := writeGroup(dir, s); err != nil {
			return errors.Join(fmt.Errorf("limit a cgroup to %s: %w", s.value, err), removeGroup(dir))
		}
	}
	return nil
}

// writeGroup writes to a file of a cgroup. The kernel makes these; no other is made.
func writeGroup(dir string, s setting) error {
	f, err := os.OpenFile(filepath.Join(dir, s.file), os.O_WRONLY, 0)
	if s.may && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.value)
	return errors.Join(err, f.Close())
}

// makeGroups makes the cgroups of a process, all or none.
func (a *Agent) makeGroups(r *Record) error {
	for i := range a.hierarchies {
		if err := a.hierarchies[i].make(r); err != nil {
			return errors.Join(err, removeGroups(r.CGroups[:i]))
		}
	}
	return nil
}

// removeGroups removes cgroups.
func removeGroups(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, removeGroup(dir))
	}
	return errors.Join(errs...)
}

// removeGroup removes a cgroup, which takes a moment after its last process. One that is not there is no error.
func removeGroup(dir string) error {
	limit := time.NewTimer(emptyWithin)
	defer limit.Stop()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		err := syscall.Rmdir(dir) // not os.Remove: it first takes it for a file
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			return nil
		case !errors.Is(err, syscall.EBUSY):
			return fmt.Errorf("remove the cgroup %s: %w", dir, err)
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return fmt.Errorf("remove the cgroup %s: %w (which processes run in it is in its file cgroup.procs)", dir, err)
		}
	}
}

// endGroups kills what a process that has died left running in its cgroups, and removes them.
func endGroups(dirs []string) error {
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // it is gone, or removing it says why not
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
		}
	}
	return removeGroups(dirs)
}

// outOfMemory tells whether the kernel killed a process of some cgroups since their memory was all taken. Each group has only
// the counts of one process.
func outOfMemory(dirs []string) bool {
	for _, dir := range dirs {
		for _, name := range []string{"memory.events", "memory.oom_control"} { // of version 2, and of 1
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(text)) {
				if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok && n != "0" {
					return true
				}
			}
		}
	}
	return false
}

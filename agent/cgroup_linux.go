package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// cpuPeriod is over what time the kernel bounds a group's processor time, in microseconds; its own default.
const cpuPeriod = 100_000

// checkCGroup tells whether groups can be made in a folder.
func checkCGroup(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("--cgroup %s is no cgroup of version 2 that this user may change: %w", dir, err)
	}
	for _, name := range []string{"memory", "cpu"} {
		if !strings.Contains(" "+strings.TrimSpace(string(text))+" ", " "+name+" ") {
			return fmt.Errorf("--cgroup %s has no controller %s, only %q: have it delegated (systemd: Delegate=yes)", dir, name, strings.TrimSpace(string(text)))
		}
	}
	return nil
}

// joinCGroup makes the process to be started begin in a group of its own, with its limits.
func (a *Agent) joinCGroup(attr *syscall.SysProcAttr, r *Record) (leave func(), err error) {
	if a.cfg.CGroup == "" {
		return func() {}, nil
	}
	dir := filepath.Join(a.cfg.CGroup, fmt.Sprintf("weft-%s-%d-%d", r.Job, r.Version, r.Process))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	// The controllers of a group are those that its parent passes on; once is enough, and more often changes nothing.
	err = os.WriteFile(filepath.Join(a.cfg.CGroup, "cgroup.subtree_control"), []byte("+memory +cpu"), 0o644)
	if err == nil && r.MemoryBytes > 0 {
		err = os.WriteFile(filepath.Join(dir, "memory.max"), []byte(strconv.FormatInt(r.MemoryBytes, 10)), 0o644)
	}
	if err == nil && r.CPU > 0 {
		err = os.WriteFile(filepath.Join(dir, "cpu.max"), fmt.Appendf(nil, "%d %d", int64(r.CPU*cpuPeriod), cpuPeriod), 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("limit the cgroup %s: %w", dir, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	attr.UseCgroupFD, attr.CgroupFD = true, int(f.Fd())
	return func() { _ = f.Close() }, nil // it was only read
}

package backfill

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// cpuSeconds returns the processor time that this process has used, user and system.
func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// MachineBytes returns how much memory this process may use.
func MachineBytes() int64 { return memoryBytes() }

// memoryBytes returns how much memory this process may use: the cgroup's limit or the machine's memory; 4 GiB where
// neither can be read.
func memoryBytes() int64 {
	n := int64(4 << 30)
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		if _, rest, ok := bytes.Cut(text, []byte("MemTotal:")); ok {
			if f := strings.Fields(string(rest)); len(f) > 0 {
				if kib, err := strconv.ParseInt(f[0], 10, 64); err == nil {
					n = kib << 10
				}
			}
		}
	}
	if text, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
			n = min(n, limit)
		}
	}
	return n
}

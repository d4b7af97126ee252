package agent

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// startIn starts a program that is in its cgroups from its first instruction on.
//
// For a group of version 2 the kernel does that when it makes the process. Version 1 knows no such thing, but a process begins in
// the groups of the thread that starts it, and these may be others than those of the rest of the agent: so a thread joins them
// for that and is then used no more. To move the process after its start would be too late for what it has done by then.
func startIn(cmd *exec.Cmd, list []hierarchy, r *Record) error {
	var joined []string
	for i := range list {
		dir := list[i].group(r)
		if !list[i].unified {
			joined = append(joined, dir)
			continue
		}
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // only named to the kernel
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	}
	if len(joined) == 0 {
		return cmd.Start()
	}
	return onOwnThread(func() error {
		for _, dir := range joined {
			if err := writeGroup(dir, setting{"tasks", "0", false}); err != nil { // 0 is the thread that writes
				return err
			}
		}
		return cmd.Start()
	})
}

// onOwnThread calls f on a thread that ends after it.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() != os.Getpid() {
			done <- f()
			return // the thread ends with its goroutine, since that holds it still
		}
		// The first thread of a process cannot end. While this one holds it, there is another.
		done <- onOwnThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.temporal.io/api/serviceerror"

	"github.com/weftdata/weft/activities"
)

// child is a process that the agent looks after.
type child struct {
	folder Folder
	record Record
	done   chan struct{} // closed when it has ended

	mu     sync.Mutex
	status string // how it exited, where this agent started it
	killed string // why the agent killed it
}

// signal signals the process. Its number cannot belong to another one yet: it is asked first whether it lives.
func (c *child) signal(s syscall.Signal) {
	select {
	case <-c.done:
	default:
		_ = syscall.Kill(c.record.PID, s) // it may have ended just now
	}
}

// start starts a process in a folder.
func (a *Agent) start(f Folder, r Record, engine string) (c *child, err error) {
	for _, dir := range []string{"", tokensDir, logDir, workDir} {
		if err := os.MkdirAll(f.file(dir), 0o700); err != nil {
			return nil, err
		}
	}
	alive, err := lockFile(f.file(aliveFile))
	if err != nil {
		return nil, fmt.Errorf("a process lives in %s that the agent does not know: %w", f, err)
	}
	defer func() { err = errors.Join(err, alive.Close()) }() // the process has it open then
	for _, name := range []string{endedFile, settledFile} {
		if err := os.Remove(f.file(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if err := clearDir(f.file(tokensDir)); err != nil {
		return nil, err
	}
	if err := os.Rename(f.outputLog(), f.outputLog()+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	output, err := os.OpenFile(f.outputLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, output.Close()) }()
	if err := writeJSON(f.file(recordFile), r); err != nil { // before it starts: it reads this
		return nil, err
	}
	// Engines of other ages must understand these flags.
	cmd := exec.Command(engine, "worker", "--job", r.Job, "--version", strconv.Itoa(r.Version), "--slots", strconv.Itoa(r.Slots),
		"--process", string(f), "--work", f.Work())
	cmd.Dir, cmd.Env = string(f), slices.Concat(a.cfg.Env, limitsOf(&r))
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = []*os.File{alive}
	// A session of its own: what is typed at the agent's terminal is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := a.makeGroups(&r); err != nil {
		return nil, err
	}
	if err := startIn(cmd, a.hierarchies, &r); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", engine, err), removeGroups(r.CGroups))
	}
	r.PID = cmd.Process.Pid
	c = &child{folder: f, record: r, done: make(chan struct{})}
	err = writeJSON(f.file(recordFile), r)
	a.cfg.Log.Info("started", "process", r.name(), "pid", r.PID, "engine", r.Engine[:min(12, len(r.Engine))])
	a.supervise(c, func() error {
		err := cmd.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.status = "exit status 0"
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			c.status = exit.ProcessState.String()
		}
		return nil
	})
	return c, err
}

// limitsOf are the variables that keep a process within its limits.
func limitsOf(r *Record) (env []string) {
	if r.MemoryBytes > 0 {
		env = append(env, "GOMEMLIMIT="+strconv.FormatInt(r.MemoryBytes/100*heapShare, 10))
	}
	if r.CPU > 0 {
		env = append(env, "GOMAXPROCS="+strconv.Itoa(max(1, int(math.Ceil(r.CPU)))))
	}
	return env
}

// supervise looks after a process until it has ended, which wait waits for, and then tells Temporal.
func (a *Agent) supervise(c *child, wait func() error) {
	a.mu.Lock()
	a.children[string(c.folder)] = c
	a.mu.Unlock()
	a.slots.add(1)
	go func() { // not waited for: a process outlives its agent
		if err := wait(); err != nil {
			a.cfg.Log.Error("a process cannot be waited for", "process", c.record.name(), "error", err)
			return
		}
		close(c.done)
	}()
	a.work.Go(func() {
		shipping, stop := context.WithCancel(a.ctx)
		var shipped sync.WaitGroup
		shipped.Go(func() { a.ship(shipping, c) })
		ended := a.watch(c)
		stop()
		shipped.Wait()
		if !ended {
			return
		}
		a.settle(c)
		a.mu.Lock()
		delete(a.children, string(c.folder))
		a.mu.Unlock()
		a.slots.add(-1)
	})
}

// watch watches the memory of a process until it has ended, or until the agent ends.
func (a *Agent) watch(c *child) (ended bool) {
	tick := time.NewTicker(a.cfg.Timing.Memory)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return true
		case <-a.ctx.Done():
			return false
		case <-tick.C:
		}
		if held, limit := MemoryOf(c.record.PID), c.record.MemoryBytes; limit > 0 && held > limit {
			c.mu.Lock()
			c.killed = fmt.Sprintf("it held %d MiB of memory, and its limit is %d MiB (resources.memory in the spec)", held>>20, limit>>20)
			c.mu.Unlock()
			a.cfg.Log.Warn("killing a process", "process", c.record.name(), "pid", c.record.PID, "held_bytes", held, "limit_bytes", limit)
			c.signal(syscall.SIGKILL)
		}
	}
}

// MemoryOf returns the bytes that a process holds for itself, without files that are mapped; 0 where that cannot be known.
func MemoryOf(pid int) (bytes int64) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // only read
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name == "RssAnon" || name == "RssShmem" {
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64) // else it counts as none
			bytes += kib << 10
		}
	}
	return bytes
}

// settle tells Temporal how a process ended, and its shards that they have to start elsewhere.
func (a *Agent) settle(c *child) {
	var ended activities.Ended
	orderly := readJSON(c.folder.file(endedFile), &ended) == nil
	what := ""
	if !orderly {
		what = c.crash()
	}
	if err := endGroups(c.record.CGroups); err != nil {
		a.cfg.Log.Warn("a cgroup stays until the process starts again", "process", c.record.name(), "error", err)
	}
	a.cfg.Log.Info("ended", "process", c.record.name(), "pid", c.record.PID, "reason", ended.Reason, "crash", what)
	for _, file := range tokenFiles(c.folder) {
		var t shardToken
		if err := readJSON(file, &t); err != nil {
			a.cfg.Log.Warn("a run's token cannot be read", "error", err)
			continue
		}
		a.tell(t.Token, nil, activities.Crash("its process ended: "+what))
	}
	switch {
	case !orderly:
		a.tell(c.record.Token, nil, activities.Crash(what))
	case ended.Reason == activities.Stopped || ended.Reason == activities.WorkerStopped:
		a.tell(c.record.Token, ended, nil)
	}
	if err := os.WriteFile(c.folder.file(settledFile), nil, 0o600); err != nil {
		a.cfg.Log.Warn("a process that has ended will be looked at again", "process", c.record.name(), "error", err)
	}
}

func tokenFiles(f Folder) []string {
	files, _ := filepath.Glob(filepath.Join(f.file(tokensDir), "*.json")) // the pattern is well formed
	return files
}

// tell tells Temporal how an activity ended. Where Temporal is away it finds out by itself: nobody heartbeats any more.
func (a *Agent) tell(token []byte, result any, failure error) {
	ctx, cancel := context.WithTimeout(a.ctx, activities.HeartbeatTimeout)
	defer cancel()
	err := a.cfg.Temporal.CompleteActivity(ctx, token, result, failure)
	var gone *serviceerror.NotFound
	if err != nil && !errors.As(err, &gone) {
		a.cfg.Log.Warn("Temporal was not told how an activity ended; it will notice", "error", err)
	}
}

// crash says in words how a process died.
func (c *child) crash() string {
	c.mu.Lock()
	status, killed := c.status, c.killed
	c.mu.Unlock()
	if killed == "" && outOfMemory(c.record.CGroups) {
		killed = fmt.Sprintf("all memory of its cgroup was taken, and its limit is %d MiB (resources.memory in the spec)", c.record.MemoryBytes>>20)
	}
	text := fmt.Sprintf("process %d of version %d of %s died on %s", c.record.Process, c.record.Version, c.record.Job, c.record.Agent)
	switch last := lastWords(c.folder.outputLog()); {
	case killed != "":
		text += ": it was killed, since " + killed
	case last != "":
		text += ": " + last
	case strings.Contains(status, "killed"):
		text += ": it was killed from outside, by the kernel where memory was short, or by hand"
	}
	if status != "" && killed == "" {
		text += " (" + status + ")"
	}
	return text + fmt.Sprintf("; see weft job logs %s --version %d", c.record.Job, c.record.Version)
}

const (
	// wordsMax bounds what is quoted of a process's output, in bytes.
	wordsMax = 400
	// outputMax bounds what is read of it: a panic stands at its beginning, an error at its end.
	outputMax = 1 << 20
)

// lastWords returns the line with which a process died: that of a panic, or its last one.
func lastWords(file string) (words string) {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // only read
	lines := bufio.NewScanner(io.LimitReader(f, outputMax))
	lines.Buffer(nil, outputMax)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		words = line
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			break
		}
	}
	if len(words) > wordsMax {
		words = strings.ToValidUTF8(words[:wordsMax], "") + "…"
	}
	return words
}

func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

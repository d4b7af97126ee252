// Package agent runs the processes of job versions on a machine: each in a process of its own, with its own folder, log,
// environment and limits, and on the binary that its version was registered with.
//
// A process outlives its agent. It holds the activity that it is (activities.RunProcess) by its own heartbeats and hears from
// them when it should end; the agent only starts it, watches its memory, passes its log on, and tells Temporal at once when it
// has died. An agent that starts in the folder of one that is gone looks after what still runs there, so that an upgrade of
// the agent stops nothing.
//
//	<dir>/lock                                  held by the agent that works here
//	<dir>/engines/<sha256>                      binaries
//	<dir>/processes/<job>/<version>/<process>/  see Folder
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/registry"
)

const (
	// endWithin is how long a process may take that is told to end, before it is killed: its last checkpoints may take 30 s.
	endWithin = 40 * time.Second
	// replaceWithin is that of one in whose place another is to start: the other's shards fence it anyway.
	replaceWithin = 5 * time.Second
	// heapShare is how much of a process's memory limit its heap may have, in percent: about a tenth comes on top of it.
	heapShare = 85

	processesDefault = 16
)

// Versions are the registered versions and their engines.
type Versions interface {
	Get(ctx context.Context, job string, version int) (registry.Version, error)
	Engine(ctx context.Context, sha256 string) ([]byte, error)
}

// Temporal is told how activities ended whose process is gone; its client does.
type Temporal interface {
	CompleteActivity(ctx context.Context, token []byte, result any, err error) error
}

// Config says where and how an agent works.
type Config struct {
	Name      string   // of the agent; default the machine's
	Dir       string   // its folder; one agent at a time
	Processes int      // that run at once; default 16
	Engine    string   // file of the binary for versions that name none
	Env       []string // of the processes, beside what their limits need
	// CGroups are folders of cgroups in which it may make others, and no other agent: one of version 2, or two of version 1, for
	// memory and for processors. None: memory is watched, and processors are not bounded.
	CGroups []string

	Versions Versions
	Temporal Temporal
	Logs     Objects // where logs go; nil: nowhere
	Log      *slog.Logger
	Timing   Timing
}

// Timing says how often things are looked at. The zero value has the defaults.
type Timing struct {
	Memory time.Duration // how often the memory of processes is looked at; default 500 ms
	Ship   time.Duration // how often logs are passed on; default 3 s
	Keep   time.Duration // for which the folder of a process stays that has ended; default 7 days
}

// Validate fills in defaults and reports everything wrong at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			errs = append(errs, fmt.Errorf("the machine has no name: %w; give the agent one", err))
		}
		c.Name = name
	}
	if c.Processes == 0 {
		c.Processes = processesDefault
	}
	if c.Processes < 0 {
		errs = append(errs, fmt.Errorf("%d processes: expected 1 or more", c.Processes))
	}
	if c.Dir == "" || c.Engine == "" {
		errs = append(errs, errors.New("an agent needs a folder and a binary"))
	}
	if c.Timing.Memory == 0 {
		c.Timing.Memory = 500 * time.Millisecond
	}
	if c.Timing.Ship == 0 {
		c.Timing.Ship = 3 * time.Second
	}
	if c.Timing.Keep == 0 {
		c.Timing.Keep = 7 * 24 * time.Hour
	}
	_, err := openHierarchies(c.CGroups)
	return errors.Join(append(errs, err)...)
}

// Agent runs processes. It implements activities.Launcher.
type Agent struct {
	cfg    Config
	lock   *os.File
	engine string // digest of its own binary
	slots  *Slots

	hierarchies []hierarchy // of cgroups

	mu        sync.Mutex
	children  map[string]*child // by folder
	launching map[string]bool
	closed    bool
	work      sync.WaitGroup
	ctx       context.Context // of everything that it does for its processes
	cancel    context.CancelFunc
}

// ErrBusy says that another agent works in the folder.
var ErrBusy = errors.New("another agent works in this folder")

// Open takes the folder of an agent and looks after the processes that run in it.
func Open(cfg Config) (a *Agent, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "engines"), 0o700); err != nil {
		return nil, err
	}
	a = &Agent{cfg: cfg, children: map[string]*child{}, launching: map[string]bool{}, slots: newSlots(cfg.Processes)}
	if a.lock, err = lockFile(filepath.Join(cfg.Dir, "lock")); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%w: %s", ErrBusy, cfg.Dir)
		}
		return nil, err
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	if a.hierarchies, err = openHierarchies(cfg.CGroups); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	e, data, err := registry.ReadEngine(cfg.Engine)
	if err == nil {
		a.engine = e.SHA256
		err = a.keepEngine(e.SHA256, data) // a copy: the file may be replaced by a newer one
	}
	if err == nil {
		err = a.inherit()
	}
	if err == nil {
		err = a.tidy()
	}
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// inherit looks after the processes that an agent before this one started.
func (a *Agent) inherit() error {
	files, err := filepath.Glob(filepath.Join(a.cfg.Dir, "processes", "*", "*", "*", recordFile))
	if err != nil {
		return err
	}
	for _, file := range files {
		f := Folder(filepath.Dir(file))
		r, err := f.read()
		if err != nil {
			a.cfg.Log.Warn("a process left a record that cannot be read", "folder", string(f), "error", err)
			continue
		}
		if _, err := os.Stat(f.file(settledFile)); err == nil {
			continue // Temporal was told how it ended
		}
		a.cfg.Log.Info("looking after a process that was there before", "process", r.name(), "pid", r.PID)
		a.supervise(&child{folder: f, record: r, done: make(chan struct{})}, f.wait)
	}
	return nil
}

// tidy removes the folders of processes that ended long ago, and the engines that none of the others ran on: the registry has them.
func (a *Agent) tidy() error {
	files, err := filepath.Glob(filepath.Join(a.cfg.Dir, "processes", "*", "*", "*", recordFile))
	if err != nil {
		return err
	}
	needed := map[string]bool{a.engine: true}
	for _, file := range files {
		f := Folder(filepath.Dir(file))
		if r, err := f.read(); err == nil {
			settled, err := os.Stat(f.file(settledFile))
			if err != nil || time.Since(settled.ModTime()) < a.cfg.Timing.Keep {
				needed[r.Engine] = true
				continue
			}
			if err := os.RemoveAll(string(f)); err != nil {
				return err
			}
		}
	}
	engines, err := os.ReadDir(filepath.Join(a.cfg.Dir, "engines"))
	for _, e := range engines {
		if !needed[e.Name()] {
			err = errors.Join(err, os.Remove(a.engineFile(e.Name())))
		}
	}
	return err
}

// Launch starts a process. One of the same name that still runs here is ended first.
func (a *Agent) Launch(ctx context.Context, in activities.ProcessInput, token []byte) (s activities.Started, err error) {
	v, err := a.cfg.Versions.Get(ctx, in.Job, in.Version) // it refuses names that are none
	if err != nil {
		return s, err
	}
	f := Folder(filepath.Join(a.cfg.Dir, "processes", v.Job, strconv.Itoa(in.Version), strconv.Itoa(in.Process)))
	if err := a.enter(ctx, f); err != nil {
		return s, err
	}
	defer a.leave(f)
	spec, err := v.Parse()
	if err != nil {
		return s, err
	}
	engine, err := a.engineOf(ctx, v)
	if err != nil {
		return s, err
	}
	r := Record{Job: in.Job, Version: in.Version, Process: in.Process, Slots: in.Slots, Token: token, Agent: a.cfg.Name, Engine: filepath.Base(engine),
		Started: time.Now().UTC(), MemoryBytes: spec.Resources.MemoryBytes, CPU: spec.Resources.CPU}
	for i := range a.hierarchies {
		r.CGroups = append(r.CGroups, a.hierarchies[i].group(&r))
	}
	c, err := a.start(f, r, engine)
	if err != nil {
		return s, err
	}
	return activities.Started{Agent: a.cfg.Name, PID: c.record.PID}, nil
}

// enter ends the process of a folder, and keeps others from starting one there.
func (a *Agent) enter(ctx context.Context, f Folder) error {
	for {
		a.mu.Lock()
		c := a.children[string(f)]
		busy := a.closed || a.launching[string(f)]
		if c == nil && !busy {
			a.launching[string(f)] = true
			a.mu.Unlock()
			return nil
		}
		a.mu.Unlock()
		if busy {
			return errors.New("the agent is starting this process already, or it ends")
		}
		a.cfg.Log.Info("ending the process that another is to replace", "process", c.record.name(), "pid", c.record.PID)
		if err := a.end(ctx, c, replaceWithin); err != nil {
			return err
		}
	}
}

func (a *Agent) leave(f Folder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.launching, string(f))
}

// end tells a process to end, and kills it where it does not.
func (a *Agent) end(ctx context.Context, c *child, within time.Duration) error {
	c.signal(syscall.SIGTERM)
	limit := time.NewTimer(within)
	defer limit.Stop()
	select {
	case <-c.done:
		return nil
	case <-limit.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	c.signal(syscall.SIGKILL)
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Slots bounds how many processes the agent takes.
func (a *Agent) Slots() *Slots { return a.slots }

// Running returns how many processes run.
func (a *Agent) Running() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.children)
}

// EndAll ends all processes, with their last checkpoints, and waits for them.
func (a *Agent) EndAll(ctx context.Context) error {
	a.mu.Lock()
	var list []*child
	for _, c := range a.children {
		list = append(list, c)
	}
	a.mu.Unlock()
	errs := make([]error, len(list))
	var ending sync.WaitGroup
	for i, c := range list {
		ending.Go(func() { errs[i] = a.end(ctx, c, endWithin) })
	}
	ending.Wait()
	return errors.Join(errs...)
}

// Close ends the agent and leaves its processes running.
func (a *Agent) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	if a.cancel != nil {
		a.cancel()
	}
	a.work.Wait()
	return a.lock.Close()
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/registry"
)

// The binary of the tests is the engine, too: it is what childMode says where that is set.
const childMode = "WEFT_AGENT_TEST_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		os.Exit(beChild(mode))
	}
	os.Exit(m.Run())
}

// beChild is a process that an agent started.
func beChild(mode string) int {
	groups, err := os.ReadFile("/proc/self/cgroup") // before anything else
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	p, err := Attach(os.Args[slices.Index(os.Args, "--process")+1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := p.RunStarted("shard/payments/1/0", []byte("shard token")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.WriteFile(p.WorkerLog(), fmt.Appendf(nil, "{\"msg\":\"up\",\"limit\":\"%s %s\",\"groups\":%q}\n", os.Getenv("GOMEMLIMIT"), os.Getenv("GOMAXPROCS"), groups), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch mode {
	case "spin":
		for len(terminated) == 0 {
		}
	case "panic":
		panic("the rule divides by zero")
	case "fail":
		fmt.Fprintln(os.Stderr, "weft: connect to Kafka: refused")
		return 1
	case "eat":
		var held [][]byte
		for range time.Tick(5 * time.Millisecond) { // a leak, not a jump
			b := make([]byte, 8<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			held = append(held, b)
			if len(held) > 1000 {
				break
			}
		}
		return 1
	case "deaf": // it has to be killed
		for {
			<-terminated
		}
	}
	<-terminated
	if err := errors.Join(p.RunEnded("shard/payments/1/0"), p.End(activities.WorkerStopped, activities.Beat{Records: 7})); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// told records what Temporal is told.
type told struct {
	mu   sync.Mutex
	what []string // "token: result or failure"
}

func (t *told) CompleteActivity(_ context.Context, token []byte, result any, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := fmt.Sprintf("%s: %+v", token, result)
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		text = fmt.Sprintf("%s: failed, retryable %v: %s", token, !app.NonRetryable(), app.Message())
	}
	t.what = append(t.what, text)
	return nil
}

func (t *told) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.what)
}

type world struct {
	*testing.T
	resources string // of the versions
	cfg       Config
	objects   *objstore.Local
	told      *told
}

// newWorld registers a version of a job that may hold 64 MiB, and returns how an agent is to be opened.
func newWorld(t *testing.T, mode string) *world {
	t.Helper()
	return newWorldOf(t, mode, "cpu: 1.5, memory: 64MiB")
}

func newWorldOf(t *testing.T, mode, resources string) *world {
	t.Helper()
	objects, err := objstore.Folder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, resources: resources, objects: objects, told: &told{}}
	w.register(nil)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = Config{Name: "here", Dir: t.TempDir(), Engine: self, Env: []string{childMode + "=" + mode}, Versions: registry.New(objects), Temporal: w.told,
		Logs: objects, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Timing: Timing{Memory: 20 * time.Millisecond, Ship: 20 * time.Millisecond}}
	return w
}

// register adds a version.
func (w *world) register(e *registry.Engine) int {
	w.Helper()
	v, err := registry.New(w.objects).Add(w.Context(), registry.NewVersion{Engine: e, Spec: []byte(`version: weft/v1
job: payments
sources:
  orders: {topic: pay.orders, format: json, time: at, step: event, keys: {order: order}}
session: {gap: 30m}
resources: {` + w.resources + `}
# ` + fmt.Sprint(e))})
	if err != nil {
		w.Fatal(err)
	}
	return v.Number
}

func (w *world) open() *Agent {
	w.Helper()
	a, err := Open(w.cfg)
	if err != nil {
		w.Fatal(err)
	}
	return a
}

func (w *world) launch(a *Agent, token string) activities.Started {
	w.Helper()
	s, err := a.Launch(w.Context(), activities.ProcessInput{Job: "payments", Version: 1, Slots: 2}, []byte(token))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = syscall.Kill(s.PID, syscall.SIGKILL) })
	return s
}

// await waits until something is so.
func (w *world) await(what string, so func() bool) {
	w.Helper()
	limit := time.After(30 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); !so(); {
		select {
		case <-tick.C:
		case <-limit:
			w.Fatalf("not within 30 s: %s; Temporal was told %q", what, w.told.all())
		}
	}
}

// up tells whether a process has got so far that it waits.
func (w *world) up() bool {
	info, err := os.Stat(Folder(filepath.Join(w.cfg.Dir, "processes/payments/1/0")).WorkerLog())
	return err == nil && info.Size() > 0
}

func (w *world) logs() (text string) {
	w.Helper()
	for info, err := range w.objects.List(w.Context(), LogPrefix("payments", 1, 0), "") {
		if err != nil {
			w.Fatal(err)
		}
		data, _, err := w.objects.Get(w.Context(), info.Key)
		if err != nil {
			w.Fatal(err)
		}
		if _, ok := ParseSegment(info.Key); !ok {
			w.Errorf("the key %s cannot be read", info.Key)
		}
		text += string(data)
	}
	return text
}

func TestProcessEndsInOrder(t *testing.T) {
	w := newWorld(t, "wait")
	a := w.open()
	w.launch(a, "token")
	w.await("it is up", w.up)
	w.await("its log is passed on", func() bool { return strings.Contains(w.logs(), `"limit":"57042480 2"`) })
	if err := a.EndAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.await("Temporal knows", func() bool { return len(w.told.all()) == 1 })
	if got := w.told.all()[0]; !strings.Contains(got, "token: {Reason:worker_stopped") || !strings.Contains(got, "Records:7") {
		t.Errorf("Temporal was told %s", got)
	}
	w.await("its slot is free", func() bool { return a.Running() == 0 })
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if again := w.open(); again.Running() != 0 || len(w.told.all()) != 1 {
		t.Errorf("the next agent looks after %d processes, and told %q", again.Running(), w.told.all())
	}
}

func TestDeathIsToldAtOnce(t *testing.T) {
	for mode, want := range map[string]string{
		"panic": "panic: the rule divides by zero (exit status 2); see weft job logs payments --version 1",
		"fail":  "weft: connect to Kafka: refused (exit status 1)",
		"eat":   "it was killed, since it held ",
	} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, mode)
			a := w.open()
			defer a.Close()
			w.launch(a, "token")
			w.await("Temporal knows of the process and its shard", func() bool { return len(w.told.all()) == 2 })
			got := w.told.all()
			if !strings.HasPrefix(got[0], "shard token: failed, retryable true: its process ended: process 0 of version 1 of payments died on here: ") || !strings.Contains(got[0], want) {
				t.Errorf("of the shard Temporal was told %s", got[0])
			}
			if !strings.HasPrefix(got[1], "token: failed, retryable true: process 0") || !strings.Contains(got[1], want) {
				t.Errorf("of the process Temporal was told %s", got[1])
			}
			if mode == "eat" && !strings.Contains(got[1], "its limit is 64 MiB (resources.memory in the spec)") {
				t.Errorf("the limit is not told: %s", got[1])
			}
			w.await("the slot is free", func() bool { return a.Running() == 0 })
			if mode == "panic" && !strings.Contains(w.logs(), "panic: the rule divides by zero") {
				t.Errorf("the logs say %s", w.logs())
			}
		})
	}
}

// TestKill is about a process that is killed from outside, under its agent or under the one after it.
func TestKill(t *testing.T) {
	for _, later := range []bool{false, true} {
		w := newWorld(t, "wait")
		a := w.open()
		s := w.launch(a, "token")
		w.await("it is up", w.up)
		if later {
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			a = w.open()
			if a.Running() != 1 || len(w.told.all()) != 0 {
				t.Errorf("the next agent looks after %d processes, and told %q", a.Running(), w.told.all())
			}
		}
		if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.await("Temporal knows", func() bool { return len(w.told.all()) == 2 })
		for _, text := range w.told.all() {
			if !strings.Contains(text, "died on here") {
				t.Errorf("Temporal was told %s", text)
			}
		}
		w.await("it is gone", func() bool { return a.Running() == 0 })
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeadBetweenAgents is about a process that dies while no agent is there: the next one tells.
func TestDeadBetweenAgents(t *testing.T) {
	w := newWorld(t, "wait")
	a := w.open()
	s := w.launch(a, "token")
	w.await("it is up", w.up)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a = w.open()
	defer a.Close()
	w.await("Temporal knows", func() bool { return len(w.told.all()) == 2 })
	if got := w.logs(); !strings.Contains(got, `"msg":"up"`) || strings.Count(got, `"msg":"up"`) != 1 {
		t.Errorf("the logs say %q", got)
	}
}

// TestReplace starts a process again: the one before ends first, by force where it does not listen.
func TestReplace(t *testing.T) {
	w := newWorld(t, "deaf")
	a := w.open()
	defer a.Close()
	first := w.launch(a, "first")
	w.await("it is up", w.up)
	began := time.Now()
	second := w.launch(a, "second")
	if first.PID == second.PID || syscall.Kill(first.PID, 0) == nil {
		t.Errorf("process %d and process %d both live", first.PID, second.PID)
	}
	if took := time.Since(began); took < replaceWithin {
		t.Errorf("it was killed after %s: it had no time to end", took)
	}
	if a.Running() != 1 {
		t.Errorf("%d processes run", a.Running())
	}
}

func TestOneAgentInAFolder(t *testing.T) {
	w := newWorld(t, "wait")
	a := w.open()
	if _, err := Open(w.cfg); !errors.Is(err, ErrBusy) {
		t.Errorf("a second agent got %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.open().Close(); err != nil {
		t.Error(err)
	}
}

// TestSlots bounds what runs, also what the agent found running.
func TestSlots(t *testing.T) {
	w := newWorld(t, "wait")
	w.cfg.Processes = 2
	a := w.open()
	w.launch(a, "token")
	w.await("it is up", w.up)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = w.open()
	defer a.Close()
	if a.Slots().TryReserveSlot(nil) == nil || a.Slots().TryReserveSlot(nil) != nil {
		t.Error("of two slots one was free")
	}
	given := make(chan error, 1)
	go func() {
		_, err := a.Slots().ReserveSlot(t.Context(), nil)
		given <- err
	}()
	select {
	case <-given:
		t.Error("a slot was given that is not there")
	case <-time.After(50 * time.Millisecond): // nothing else can show that it waits
	}
	if err := a.EndAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-given; err != nil {
		t.Error(err)
	}
}

func TestEngines(t *testing.T) {
	w := newWorld(t, "wait")
	e, data, err := registry.ReadEngine(w.cfg.Engine)
	if err != nil {
		t.Fatal(err)
	}
	other := append(slices.Clone(data), "another build"...) // the kernel does not mind what follows a program
	file := filepath.Join(t.TempDir(), "engine")
	if err := os.WriteFile(file, other, 0o600); err != nil {
		t.Fatal(err)
	}
	pinned, body, err := registry.ReadEngine(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.New(w.objects).PutEngine(t.Context(), pinned, body); err != nil {
		t.Fatal(err)
	}
	number := w.register(&pinned)
	foreign := e
	foreign.OS = "plan9"
	strange := w.register(&foreign)
	missing := e
	missing.SHA256 = strings.Repeat("0", 64)
	gone := w.register(&missing)
	a := w.open()
	defer a.Close()
	start := func(version int) (activities.Started, error) {
		return a.Launch(t.Context(), activities.ProcessInput{Job: "payments", Version: version, Slots: 1}, []byte("token"))
	}
	s, err := start(number)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(s.PID, syscall.SIGKILL) })
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.PID))
	if err == nil && filepath.Base(exe) != pinned.SHA256 {
		t.Errorf("it runs %s, and is pinned to %s", exe, pinned.SHA256)
	}
	if _, err := start(strange); err == nil || !strings.Contains(err.Error(), "runs on an engine for plan9/") {
		t.Errorf("an engine of another system: %v", err)
	}
	if _, err := start(gone); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("an engine that is gone: %v", err)
	}
}

func TestConfigTellsEverything(t *testing.T) {
	err := (&Config{Processes: -1, CGroups: []string{t.TempDir()}}).Validate()
	for _, want := range []string{"-1 processes", "an agent needs a folder and a binary", "--cgroup"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

// TestRotatedLogs passes on what was written before and after a rotation, once.
func TestRotatedLogs(t *testing.T) {
	w := newWorld(t, "wait")
	a := w.open()
	defer a.Close()
	w.launch(a, "token")
	w.await("it is up", w.up)
	file := Folder(filepath.Join(w.cfg.Dir, "processes/payments/1/0")).WorkerLog()
	write := func(text string) {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	w.await("the first line is passed on", func() bool { return strings.Contains(w.logs(), "one\n") })
	write("two\nhal")
	if err := os.Rename(file, strings.TrimSuffix(file, ".log")+"-2026-11-26.log"); err != nil {
		t.Fatal(err)
	}
	write("three\n")
	w.await("all lines are passed on", func() bool {
		return strings.Contains(w.logs(), "one\ntwo\n") && strings.HasSuffix(w.logs(), "three\n") && strings.Count(w.logs(), "two") == 1
	})
}

// TestTidy removes what processes that ended left behind, and nothing of those that live.
func TestTidy(t *testing.T) {
	w := newWorld(t, "wait")
	w.cfg.Timing.Keep = time.Nanosecond
	a := w.open()
	w.launch(a, "token")
	w.await("it is up", w.up)
	folder := filepath.Join(w.cfg.Dir, "processes/payments/1/0")
	stale := filepath.Join(w.cfg.Dir, "engines", strings.Repeat("0", 64))
	again := func() *Agent {
		if err := errors.Join(a.Close(), os.WriteFile(stale, []byte("an engine of long ago"), 0o500)); err != nil {
			t.Fatal(err)
		}
		return w.open()
	}
	a = again()
	if _, err := os.Stat(folder); err != nil || a.Running() != 1 {
		t.Errorf("of a process that lives: %v, %d run", err, a.Running())
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of an engine that nothing runs on: %v", err)
	}
	if err := a.EndAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.await("it has ended", func() bool { return a.Running() == 0 })
	a = again()
	defer a.Close()
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a process that has ended: %v", err)
	}
	if own, err := os.ReadDir(filepath.Join(w.cfg.Dir, "engines")); err != nil || len(own) != 1 {
		t.Errorf("%d engines are left: %v", len(own), err)
	}
}

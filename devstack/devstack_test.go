package devstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/stack"
)

const testTimeout = time.Minute

// start runs a stack until the end of the test, or until it is stopped.
func start(t *testing.T, cfg Config) *Stack {
	t.Helper()
	s, err := Start(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

// stop stops a stack that may have been stopped before.
func stop(t *testing.T, s *Stack) {
	t.Helper()
	if s.servers == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	select {
	case err := <-s.Failed():
		t.Errorf("a server ended by itself: %v", err)
	default:
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func TestEverythingSurvivesARestart(t *testing.T) {
	ctx := testContext(t)
	home, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Data: filepath.Join(t.TempDir(), "a folder, 41%?#"), Partitions: 3}
	first := start(t, cfg)
	was := first.Addresses()

	waiting := dialTemporal(t, was)
	run := startGreeting(t, waiting, "restart")
	waiting.Close()
	produce(t, was, "orders", 2, 0, 5)
	putObject(t, was, "a/b", "text")
	stop(t, first)
	if now, err := os.Getwd(); err != nil || now != home {
		t.Errorf("the working folder is %s after Stop, it was %s: %v", now, home, err)
	}

	second := start(t, cfg)
	now := second.Addresses()
	if now != was {
		t.Errorf("the addresses were %+v\nand are %+v", was, now)
	}
	if got := fetch(t, now, "orders", 2, 1); got != "1 2 3 4" {
		t.Errorf("records from offset 1: %s", got)
	}
	produce(t, now, "orders", 2, 5, 6)
	if got := fetch(t, now, "orders", 2, 4); got != "4 5" {
		t.Errorf("records from offset 4: %s", got)
	}
	if got := getObject(t, now, "a/b"); got != "text" {
		t.Errorf("the object holds %q", got)
	}
	temporal := dialTemporal(t, now)
	defer temporal.Close()
	defer startWorker(t, temporal).Stop()
	if err := temporal.SignalWorkflow(ctx, "restart", run, greetingSignal, "weft"); err != nil {
		t.Fatal(err)
	}
	var greeting string
	if err := temporal.GetWorkflow(ctx, "restart", run).Get(ctx, &greeting); err != nil || greeting != "hello weft" {
		t.Errorf("the workflow that waited through the restart returned %q, %v", greeting, err)
	}
}

func TestSecondStartIsRefused(t *testing.T) {
	cfg := Config{Data: t.TempDir()}
	start(t, cfg)
	_, err := Start(testContext(t), cfg)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("a second start on the folder: %v", err)
	}
}

func TestKeysAreTheOwnersAlone(t *testing.T) {
	cfg := Config{Data: t.TempDir()}
	a := start(t, cfg).Addresses()
	if a.S3AccessKey != "" || a.S3SecretKey != "" {
		t.Error("the addresses hold keys")
	}
	for _, name := range []string{a.S3AccessKeyFile, a.S3SecretKeyFile} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
}

func TestUnusableConfig(t *testing.T) {
	_, err := Start(testContext(t), Config{Host: "0.0.0.0", KafkaPort: 70_000, Partitions: -1})
	for _, want := range []string{"no data folder", "0.0.0.0", "70000", "-1 partitions"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
	if _, err := Start(testContext(t), Config{Data: t.TempDir(), KafkaPort: 21000, S3Port: 21000}); err == nil {
		t.Error("two servers got one port")
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	first := start(t, Config{Data: t.TempDir()})
	cfg := Config{Data: t.TempDir(), KafkaPort: portOf(t, first.Addresses().Kafka)}
	_, err := Start(testContext(t), cfg)
	if err == nil || !strings.Contains(err.Error(), "port of Kafka") {
		t.Errorf("the port of another Kafka: %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Data, "addresses.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ports that could not be had are kept: %v", err)
	}
}

func TestCanceledStartLeavesNothingBehind(t *testing.T) {
	cfg := Config{Data: t.TempDir()}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Start(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled start: %v", err)
	}
	start(t, cfg) // neither the folder nor a port is taken
}

func TestUnfinishedDatabaseIsMadeAnew(t *testing.T) {
	cfg := Config{Data: t.TempDir()}
	dir := filepath.Join(cfg.Data, "temporal")
	if err := os.MkdirAll(dir, dirMode); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "temporal.db.new"), []byte("half a schema"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := start(t, cfg).Addresses()
	if a.Namespace != stack.DefaultNamespace {
		t.Errorf("namespace %q", a.Namespace)
	}
}

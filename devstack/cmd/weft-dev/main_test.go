package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftdata/weft/stack"
)

const testTimeout = time.Minute

// asCommand makes the test binary behave as the command, so that a test can kill it.
const asCommand = "WEFT_DEV_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// process is a running `weft-dev up --json`.
type process struct {
	cmd       *exec.Cmd
	stderr    bytes.Buffer
	line      string // what it printed
	addresses stack.Addresses
	rest      chan string // what it printed later
}

// upProcess runs the command until the end of the test, or until it is ended, and waits for its line.
func upProcess(t *testing.T, data, pointer string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self, "up", "--data", data, "--json"), rest: make(chan string, 1)}
	p.cmd.Env = append(os.Environ(), asCommand+"=1", "WEFT_STACK_FILE="+pointer)
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.end(t, syscall.SIGKILL)
		}
	})
	r := bufio.NewReader(out)
	if p.line, err = r.ReadString('\n'); err != nil {
		p.end(t, syscall.SIGKILL)
		t.Fatalf("no line: %v: %s", err, p.stderr.String())
	}
	if err := json.Unmarshal([]byte(p.line), &p.addresses); err != nil {
		t.Fatalf("%s: %v", p.line, err)
	}
	go func() {
		var b bytes.Buffer
		_, _ = b.ReadFrom(r) // it ends with the process
		p.rest <- b.String()
	}()
	return p
}

// end sends a signal and waits for the end of the process; it returns the exit code, -1 if the signal killed it.
func (p *process) end(t *testing.T, sig syscall.Signal) int {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	late := time.AfterFunc(testTimeout, func() { _ = p.cmd.Process.Kill() }) // the exit code tells
	defer late.Stop()
	_ = p.cmd.Wait() // so does it here
	return p.cmd.ProcessState.ExitCode()
}

func exists(t *testing.T, name string) bool {
	t.Helper()
	_, err := os.Stat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestUpSaysWhereItIsAndEndsCleanly(t *testing.T) {
	t.Chdir(t.TempDir())
	const data, pointer = "data", "user/stack.json" // relative ones must not follow the working folder of the gateway
	p := upProcess(t, data, pointer)

	var keys map[string]any
	if err := json.Unmarshal([]byte(p.line), &keys); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"temporal", "namespace", "kafka", "s3", "s3_bucket", "store", "s3_access_key_file"} {
		if text, ok := keys[key].(string); !ok || text == "" {
			t.Errorf("no %s in %s", key, p.line)
		}
	}
	for _, name := range []string{filepath.Join(data, "stack.json"), pointer} {
		if a, err := stack.Read(name); err != nil || a != p.addresses {
			t.Errorf("%s: %+v, %v; printed was %+v", name, a, err, p.addresses)
		}
	}
	for _, name := range []string{p.addresses.S3AccessKeyFile, p.addresses.S3SecretKeyFile} {
		key, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(p.line, strings.TrimSpace(string(key))) {
			t.Errorf("the key of %s is printed", name)
		}
	}
	t.Setenv("WEFT_STACK_FILE", pointer)
	if a, err := stack.Find(stack.Addresses{}); err != nil || a.Temporal != p.addresses.Temporal || a.S3SecretKey == "" {
		t.Errorf("the running stack is found as %+v, %v", a, err)
	}

	var stderr bytes.Buffer
	if code := run(testContext(t), []string{"up", "--data", data}, &bytes.Buffer{}, &stderr); code != exitFailed ||
		!strings.Contains(stderr.String(), "in use by a stack that runs already") {
		t.Errorf("a second up: code %d, %s", code, &stderr)
	}

	if code := p.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM: %s", code, p.stderr.String())
	}
	if rest := <-p.rest; rest != "" || p.stderr.Len() > 0 {
		t.Errorf("printed besides the line: %q, %q", rest, p.stderr.String())
	}
	for _, name := range []string{filepath.Join(data, "stack.json"), pointer} {
		if exists(t, name) {
			t.Errorf("%s is still there", name)
		}
	}
	if _, err := stack.Find(stack.Addresses{}); !errors.Is(err, stack.ErrNotFound) {
		t.Errorf("a stack is found after its end: %v", err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string // somewhere in what is printed
	}{
		{"--help", 0, "weft-dev [command]"},
		{"up --help", 0, "weft-dev up --data /tmp/weft --json"},
		{"", exitUsage, "weft-dev up --data DIR"},
		{"up", exitUsage, "no data folder"},
		{"up here", exitUsage, "here"},
		{"up --data x --temporal-port 70000", exitUsage, "70000"},
		{"up --dta x", exitUsage, "--dta"},
		{"down", exitUsage, "down"},
		{"up --data /dev/null/x", exitFailed, "/dev/null"},
	} {
		var out bytes.Buffer
		if code := run(testContext(t), strings.Fields(c.args), &out, &out); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("weft-dev %s: code %d, want %d with %q in: %s", c.args, code, c.code, c.want, &out)
		}
	}
}

func TestAddressesForPeople(t *testing.T) {
	var out bytes.Buffer
	a := stack.Addresses{Temporal: "t:1", Namespace: "n", Kafka: "k:2", S3: "http://s:3", S3Bucket: "b", Store: "sqlite:x", Data: "/d",
		S3AccessKeyFile: "/d/access", S3SecretKeyFile: "/d/secret"}
	if err := show(&out, a, false); err != nil {
		t.Fatal(err)
	}
	words := strings.FieldsFunc(out.String(), func(r rune) bool { return strings.ContainsRune(" ,\n", r) })
	for _, want := range []string{"t:1", "n", "k:2", "http://s:3", "b", "sqlite:x", "/d/logs", "/d/access", "/d/secret"} {
		if !slices.Contains(words, want) {
			t.Errorf("no %s in:\n%s", want, &out)
		}
	}
}

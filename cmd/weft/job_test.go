package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/weftdata/weft/workflows"
)

func TestJobAndWorkerUsage(t *testing.T) {
	for _, name := range []string{"WEFT_TEMPORAL", "WEFT_KAFKA", "WEFT_S3", "WEFT_STORE", "WEFT_STACK_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	const spec = "version: weft/v1\njob: small\nsources:\n  orders:\n    topic: small.orders\n    format: json\n" +
		"    time: {field: ts, layout: unix_ms}\n    step: event\n    keys: {order: id}\nsession: {gap: 30m}\n"
	good, bad := write("good.yaml", spec), write("bad.yaml", strings.Replace(spec, "gap: 30m", "gap: soon", 1))
	for _, c := range []struct {
		args string
		code int
		want string // in what it prints
	}{
		{"worker --only archiver", exitUsage, `"archiver": expected one of control, archive, publish`},
		{"worker --version 3", exitUsage, "name it with --job"},
		{"worker --max-memory 4GB", exitUsage, "--max-memory \"4GB\": expected a size such as 512MiB"},
		{"worker --max-shards -1", exitUsage, "at most -1 shards"},
		{"worker --job small --version 1 --max-cpu 2", exitUsage, "are for control workers"},
		{"worker --only archive --max-cpu 2", exitUsage, "are for control workers"},
		{"job rollback small --to 0 --dry-run", exitUsage, "--to names the version"},
		{"job compare small nonsense", exitUsage, "session id"},
		{"job compare small --version -1", exitUsage, "--version is the number"},
		{"worker --job small", exitUsage, "version 0 of small"},
		{"worker --job small --version 1 --only control", exitUsage, "exclude each other"},
		{"worker --job small --version 1 --slots 0", exitUsage, "--slots 0"},
		{"worker --log-level loud", exitUsage, `"loud"`},
		{"worker --log-format xml", exitUsage, `"xml": expected one of text, json`},
		{"worker", exitFailed, "weft-dev up"},
		{"setup", exitFailed, "weft-dev up"},
		{"setup --create-namespace --retention 1h", exitUsage, "--retention 1h0m0s: Temporal wants 24h0m0s at least"},
		{"ping", exitFailed, "weft-dev up"},
		{"ping --only temporal,nats", exitUsage, `"nats": expected some of temporal, kafka, s3, store`},
		{"ping --only kafka --polls weft", exitUsage, "add temporal to --only"},
		{"job status", exitUsage, "the name of one job"},
		{"job status small'OR'1'='1", exitUsage, "no name of a job"},
		{"job stop small", exitFailed, "weft-dev up"},
		{"job list --version 1", exitUsage, "unknown flag"},
		{"job runn", exitUsage, `did you mean "run"?`},
		{"job run --spec " + bad, exitUsage, "bad.yaml:10:"},
		{"job run --spec " + good + " --shards 2", exitUsage, "no shard_by"},
		{"job run --spec " + good + " --shards -1", exitUsage, "--shards -1"},
		{"job run --spec " + good, exitFailed, "weft-dev up"},
	} {
		var out bytes.Buffer
		code := run(t.Context(), strings.Fields(c.args), strings.NewReader(""), io.Discard, &out)
		if code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("weft %s: exit code %d, want %d; it printed %s; want %q in it", c.args, code, c.code, &out, c.want)
		}
	}
}

func TestStatusLineStaysBelow(t *testing.T) {
	var out bytes.Buffer
	l := &statusLine{w: &out, terminal: true}
	l.set("1 record")
	if _, err := io.WriteString(l, "a line\n"); err != nil {
		t.Fatal(err)
	}
	l.set("")
	if want := clearLine + "1 record" + clearLine + "a line\n1 record" + clearLine; out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}

	out.Reset()
	l = newStatusLine(&out) // no terminal
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() { l.set("x"); _, _ = io.WriteString(l, "line\n") }) // a buffer does not fail
	}
	group.Wait()
	if want := strings.Repeat("line\n", 10); out.String() != want {
		t.Errorf("to a file it writes %q", &out)
	}
}

func TestMessagesDoNotSteerTheTerminal(t *testing.T) {
	if got := strings.Map(printable, "a\x1b[2Jé\r\nb"); got != "a?[2Jé?\nb" {
		t.Errorf("got %q", got)
	}
}

func TestStatusSaysWhatNobodyRuns(t *testing.T) {
	waits, runs := []runState{{Workflow: "a", State: "waiting_for_worker"}}, []runState{{Workflow: "a", State: "running"}}
	for _, c := range []struct {
		name            string
		runs, processes []runState
		want            string
	}{
		{"nobody", waits, nil, "version/payments/3: no process takes its shards: start one (weft worker --job payments --version 3)"},
		{"no agent", waits, waits, "it waits for an agent that has room, start one on some machine (weft agent)"},
		{"one begins", waits, runs, ""},
		{"by hand", runs, waits, ""},
		{"runs", runs, runs, ""},
	} {
		var out strings.Builder
		if err := printStatus(&out, []jobState{{Workflow: "version/payments/3", Job: "payments", Version: 3, Runs: c.runs, Processes: c.processes}}); err != nil {
			t.Fatal(err)
		}
		if c.want == "" && strings.Contains(out.String(), "no process") || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: it says\n%s\nwant %q", c.name, &out, c.want)
		}
	}
	var out strings.Builder
	s := workflows.JobStatus{Job: "payments", Current: &workflows.Placed{Version: 1, Unmanned: "process 0: no agent has room for it"}}
	if err := printJob(&out, &s); err != nil || !strings.Contains(out.String(), "\n  nobody runs it: process 0: no agent") {
		t.Errorf("%v: %s", err, &out)
	}
}

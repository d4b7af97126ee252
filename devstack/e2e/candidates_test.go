package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

// planted is added to an engine: what a shard calls whenever it got on. From version 2 on, that of the job payments never lets go
// of a buffer that it took for a record, up to a bound that every machine has. That of refunds panics, in a goroutine of its own,
// since a panic in the loop of a shard ends only its run.
const planted = `package workers

import "github.com/weftdata/weft/streaming"

var held [][]byte

func planted(job string, version int, s streaming.Status) {
	for version > 1 && job == "payments" && len(held) < int(min(s.Records, 2000)) {
		buffer := make([]byte, 128<<10)
		for i := 0; i < len(buffer); i += 4096 {
			buffer[i] = 1
		}
		held = append(held, buffer)
	}
	if version > 1 && job == "refunds" && s.Records > 500 {
		go func() { held[len(held)+7][0]++ }()
	}
}
`

// faultyEngine builds weft with what is planted; nothing else differs.
func faultyEngine(t *testing.T) (file string) {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	of := filepath.Join(root, "workers/process.go")
	text, err := os.ReadFile(of)
	if err != nil {
		t.Fatal(err)
	}
	const here = "\t\t\tprogress(s)\n"
	if strings.Count(string(text), here) != 1 {
		t.Fatalf("%s does not tell of progress as it did: plant the fault elsewhere", of)
	}
	files := map[string]string{
		of: strings.Replace(string(text), here, here+"\t\t\tplanted(in.Job, in.Version, s)\n", 1),
		filepath.Join(root, "workers/planted.go"): planted,
	}
	overlay := map[string]map[string]string{"Replace": {}}
	for name, text := range files {
		in := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][name] = in
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "weft")
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", file, "./cmd/weft")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

// TestCandidatesThatDie streams two jobs and deploys an engine to each that leaks in the one and panics in the other. Both rollouts
// end by themselves and say why; the versions that are served notice nothing, and have the result of a replay.
func TestCandidatesThatDie(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	t.Parallel() // most of it is waiting
	engine := faultyEngine(t)
	l, want := newLifecycle(t, 300, 6*time.Minute)
	l.agent("machine")
	jobs := []string{"payments", "refunds"}
	var waits []func(code int) workflows.DeployResult
	for _, job := range jobs {
		waits = append(waits, l.deploying(job, "--spec", l.small(job, "served")))
	}
	served := map[string]int{} // process
	for i, job := range jobs {
		if r := waits[i](0); r.Version != 1 || r.Outcome != workflows.OutcomePromoted {
			t.Fatalf("the first version of %s: %+v", job, r)
		}
		served[job] = l.processOf(job, 1).PID
	}
	l.await("version 1 is read to its end", func() bool { return l.checkpointed("1") })
	before := l.digest()
	// Half a minute of records, of which the first half was there before.
	stream := l.launch("stream", l.env, l.weft, append([]string{"produce", "-q", "--partitions", "2", "--rate", "150"}, l.with(l.v1, l.inputs[2:])...)...)

	for i, job := range jobs {
		l.registerOn(engine, job, l.small(job, "candidate"))
		waits[i] = l.deploying(job, "--job", job, "--version", "2")
	}
	l.gaveUp("payments", waits[0](1), `it was killed, since it held [0-9]+ MiB of memory, and its limit is 128 MiB \(resources\.memory in the spec\)`)
	l.gaveUp("refunds", waits[1](1), `panic: runtime error: index out of range \[7\] with length 0 \(exit status 2\)`)
	if got := string(l.command("job", "logs", "refunds", "--version", "2", "--tail", "0")); !strings.Contains(got, "  panic: runtime error: index out of range [7] with length 0") ||
		!strings.Contains(got, "workers.planted.func1") {
		t.Errorf("the log does not tell where it panicked: %s", got)
	}
	if got := string(l.command("job", "logs", "payments", "--version", "2", "--tail", "0")); strings.Count(got, "  INFO  working  ") < 8 {
		t.Errorf("the log does not tell of eight processes: %s", got)
	}
	if l.digest() == before {
		t.Error("what is served got no further meanwhile")
	}

	select {
	case <-stream.done:
	case <-l.ctx.Done():
		t.Fatal(l.ctx.Err())
	}
	if stream.err != nil {
		t.Fatalf("the stream: %v: %s", stream.err, stream.tail())
	}
	for _, job := range jobs {
		l.await("version 1 of "+job+" has the digest of a replay", func() bool {
			d, err := l.store.Digest(l.ctx, store.Scope{Job: job}, 0, 0)
			l.must(err)
			return d.String() == want
		})
		if now := l.processOf(job, 1); now.PID != served[job] || now.State != workflows.Running {
			t.Errorf("version 1 of %s ran as process %d, and runs as %+v", job, served[job], now)
		}
		l.command("job", "stop", job)
	}
}

// gaveUp expects a rollout of version 2 to have ended by itself, for deaths whose reason has a pattern, and to be kept.
func (l *lifecycleTest) gaveUp(job string, r workflows.DeployResult, reason string) {
	l.Helper()
	reasons := strings.Join(r.Reasons, "; ")
	l.Logf("%s: %s", job, reasons)
	pattern := fmt.Sprintf("^version 2 has died ([0-9]+) times since its rollout began; the last time: (process 0|shard 0: its process ended): process 0 of version 2 of %s died on machine: %s; "+
		"see weft job logs %[1]s --version 2$", job, reason)
	if r.Version != 2 || r.Outcome != workflows.OutcomeFailed || !regexp.MustCompile(pattern).MatchString(reasons) {
		l.Errorf("version %d of %s is %s: %s; expected %s", r.Version, job, r.Outcome, reasons, pattern)
	}
	var s workflows.JobStatus
	l.must(json.Unmarshal(l.command("job", "show", job, "--json"), &s))
	if s.Phase != workflows.Serving || s.Current.Version != 1 || s.Candidate != nil || s.Failed == nil || s.Failed.Version != 2 ||
		strings.Join(s.Failed.Rollout.Reasons, "; ") != reasons {
		l.Errorf("%s is %+v", job, s)
	}
}

// deploying deploys a version in the background. What it returns waits for the outcome and an exit code.
func (l *lifecycleTest) deploying(name string, args ...string) (wait func(code int) workflows.DeployResult) {
	l.Helper()
	began := time.Now()
	p := l.launch("deploy-"+name, l.env, l.weft, append([]string{"deploy", "--watch", "--json"}, args...)...)
	return func(code int) (r workflows.DeployResult) {
		l.Helper()
		select {
		case <-p.done:
		case <-l.ctx.Done():
			l.Fatalf("deploy %q: %v", args, l.ctx.Err())
		}
		if err := json.Unmarshal([]byte(<-p.first), &r); err != nil || p.cmd.ProcessState.ExitCode() != code {
			l.Fatalf("deploy %q: %v, %v: %s", args, p.err, err, p.tail())
		}
		l.Logf("%s: version %d is %s after %s", name, r.Version, r.Outcome, time.Since(began).Round(100*time.Millisecond))
		return r
	}
}

// small writes the spec of version 1 for a job, with little memory. It publishes nothing.
func (l *lifecycleTest) small(job, name string) (file string) {
	l.Helper()
	text, err := os.ReadFile(l.v1)
	l.must(err)
	s := "# " + name + "\n" + string(text)
	for _, c := range [][2]string{{"job: payments", "job: " + job}, {"resources: {cpu: 1, memory: 1GiB}", "resources: {cpu: 1, memory: 128MiB}"},
		{"sinks: {topic: pay.sessions, parquet: true}", ""}} {
		if strings.Count(s, c[0]) != 1 {
			l.Fatalf("the spec of the environment has no %q any more", c[0])
		}
		s = strings.Replace(s, c[0], c[1], 1)
	}
	file = filepath.Join(l.dir, "pay", job+"-"+name+".yaml")
	l.must(os.WriteFile(file, []byte(s), 0o644))
	return file
}

// registerOn registers a spec as the next version of its job, which runs on an engine.
func (l *lifecycleTest) registerOn(engine, job, spec string) {
	l.Helper()
	env, err := workers.OpenEnv(l.ctx, withKeys(l.T, l.at), stack.S3)
	l.must(err)
	defer func() { _ = env.Close() }() // what was written is acknowledged
	r := registry.New(env.Objects)
	e, err := workers.KeepEngine(l.ctx, r, engine)
	l.must(err)
	text, err := os.ReadFile(spec)
	l.must(err)
	_, err = r.Add(l.ctx, registry.NewVersion{Job: job, Spec: text, Author: "ann", Engine: e})
	l.must(err)
}

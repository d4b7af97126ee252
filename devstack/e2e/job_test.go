package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftdata/weft/store"
)

// outage is longer than Temporal waits for a heartbeat: attempts that run meanwhile are given up.
const outage = 15 * time.Second

// TestJobRunsThroughKills runs a job with `weft job run` while its records are produced, kills first that process and then
// all servers for a while, and expects one attempt of the shard afterwards, and the result of a replay.
func TestJobRunsThroughKills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute and a half")
	}
	t.Parallel() // most of it is waiting
	j := newJobTest(t, 3000)
	j.runJob()
	produce := j.produce("--rate", "700") // for 50 s
	j.await("the shard is read", func() bool { return j.shard().Beat.Records > 0 })
	j.job.kill()
	j.runJob()
	j.await("the job goes on in another process", func() bool {
		s := j.shard()
		return s.State == "running" && s.Beat.Epoch == 2 && len(starts(t, j.job.log)) == 1 // it beats before it reads
	})

	j.stack.kill()
	produce.kill()
	select {
	case <-time.After(outage): // the outage itself
	case <-j.ctx.Done():
		t.Fatal(j.ctx.Err())
	}
	j.startServers()
	up := time.Now()
	j.produce()
	j.await("the shard runs again", func() bool { return len(starts(t, j.job.log)) == 2 })
	j.await("the digest is that of the replay", func() bool { return j.digest() == j.want })
	t.Logf("the digest was right %s after the servers were back", time.Since(up).Round(time.Second))

	if s := j.shard(); s.State != "running" || s.Attempt == 0 {
		t.Errorf("the shard is %+v", s)
	}
	if got := starts(t, j.job.log); len(got) != 2 {
		t.Errorf("this process ran the shard in the epochs %v: expected one at first, and one after the outage", got)
	}
	j.command("job", "stop", "payments", "--reason", "the test is over")
	if list := strings.TrimSpace(string(j.command("job", "list", "--json"))); list != "" {
		t.Errorf("after the stop these run: %s", list)
	}
	if err := j.job.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-j.job.done
	if j.job.err != nil {
		t.Errorf("the process ended with %v: %s", j.job.err, j.job.tail())
	}
	if got := j.digest(); got != j.want {
		t.Errorf("after the stop the digest is %s, want %s", got, j.want)
	}
}

// jobTest is a job over servers at ports of their own, which stay the same when they are killed.
type jobTest struct {
	*chaos
	job  *process
	want string // digests of sessions and reports
	st   *stream
}

func newJobTest(t *testing.T, orders int) *jobTest {
	j := &jobTest{chaos: newChaos(t, 1, 5*time.Minute)}
	j.prepare(orders)
	var want struct{ Digests map[string]string }
	inputs := append([]string{"replay", "--out", "result", "--json"}, j.inputs...)
	j.must(json.Unmarshal(run(t, j.dir, j.weft, inputs...), &want))
	j.want = want.Digests["sessions"] + " " + want.Digests["reports"]
	j.startServers()
	j.env = []string{"WEFT_STACK_FILE=" + j.file()}
	j.st = openStream(t, j.ctx, j.at, filepath.Join(j.dir, "pay/job.yaml"))
	t.Cleanup(func() { _ = j.st.store.Close() }) // only read
	return j
}

func (j *jobTest) runJob() {
	j.job = j.launch("job", j.env, j.weft, "job", "run", "--spec", j.inputs[1], "--create-topics", "3", "--log-format", "json")
}

// produce plays the files. What was played before is dropped by its identity.
func (j *jobTest) produce(pace ...string) *process {
	return j.launch("produce", j.env, j.weft, append(append([]string{"produce", "-q", "--partitions", "3"}, pace...), j.inputs...)...)
}

// await waits until something is so.
func (j *jobTest) await(what string, so func() bool) {
	j.Helper()
	began := time.Now()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(90 * time.Second); !so(); {
		select {
		case <-tick.C:
		case <-limit:
			log, _ := os.ReadFile(j.job.log)
			j.Fatalf("after 90 s not yet: %s; shard %+v; digest %s, want %s\n%s", what, j.shard(), j.digest(), j.want, log)
		}
	}
	j.Logf("%s after %s", what, time.Since(began).Round(100*time.Millisecond))
}

// shardState is what `weft job status --json` says of a shard.
type shardState struct {
	State   string
	Attempt int
	Beat    struct {
		Epoch        uint64 // of the run that sent it
		Records, Lag int64
	}
}

func (j *jobTest) shard() (s shardState) {
	var version struct {
		Version int
		Runs    []shardState
	}
	for line := range strings.Lines(string(j.command("job", "list", "--json"))) {
		j.must(json.Unmarshal([]byte(line), &version))
	}
	if version.Version == 0 {
		return s
	}
	for line := range strings.Lines(string(j.command("job", "status", "payments", "--json"))) {
		j.must(json.Unmarshal([]byte(line), &version))
		if version.Version > 0 && len(version.Runs) > 0 {
			s = version.Runs[0]
		}
	}
	return s
}

// digest returns the digests of sessions and reports in the store.
func (j *jobTest) digest() string {
	ctx, cancel := context.WithTimeout(j.ctx, 20*time.Second)
	defer cancel()
	scope := store.Scope{Job: "payments", Generation: j.st.generation}
	sessions, err := j.st.store.Digest(ctx, scope, 0, 0)
	j.must(err)
	reports, err := j.st.store.ReportDigest(ctx, scope, store.NewEncoder(&j.st.job.Config, j.st.meta), 0, 0)
	j.must(err)
	return sessions.String() + " " + reports.String()
}

// starts returns the epochs of the shard's runs that a process has logged.
func starts(t *testing.T, log string) (epochs []float64) {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) != nil { // what it prints for people
			continue
		}
		if shard, _ := m["shard"].(string); m["msg"] == "started" && strings.HasPrefix(shard, "checkpoints/") {
			epochs = append(epochs, m["epoch"].(float64))
		}
	}
	return epochs
}

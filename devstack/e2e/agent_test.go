package e2e

import (
	"encoding/json"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.temporal.io/api/serviceerror"

	"github.com/weftdata/weft/workflows"
)

// TestAgents runs a version on two machines: its process is killed, its agent is upgraded under it, and then its machine
// vanishes. Each time the process runs again, on what machine there is, and in the end the result is that of a replay.
func TestAgents(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	t.Parallel() // most of it is waiting
	l, want := newLifecycle(t, 600, 5*time.Minute)
	east := l.agent("east")
	if r := l.deploy(l.v1, 0); r.Outcome != workflows.OutcomePromoted {
		t.Fatalf("the first version: %+v", r)
	}
	l.await("version 1 is read to its end", func() bool { return l.checkpointed("1") })
	first := l.process(1)
	if first.Agent != "east" || first.State != workflows.Running {
		t.Fatalf("it runs as %+v", first)
	}

	// The process dies: its agent starts it again, and its shard does not wait for a heartbeat timeout.
	began := time.Now()
	l.must(syscall.Kill(first.PID, syscall.SIGKILL))
	l.await("another process runs", func() bool { return l.process(1).PID != first.PID })
	l.await("its shard runs in it", l.shardRuns)
	took := time.Since(began)
	t.Logf("from the death of the process until its shard ran again: %s", took.Round(time.Millisecond))
	if took > 9*time.Second {
		t.Errorf("that took %s: its shard waited for the heartbeat timeout", took)
	}

	// The agent is upgraded: the process does not notice.
	second := l.process(1)
	l.must(syscall.Kill(east.cmd.Process.Pid, syscall.SIGTERM))
	<-east.done
	if err := syscall.Kill(second.PID, 0); err != nil {
		t.Fatalf("the process ended with its agent: %v", err)
	}
	east = l.agent("east")
	l.await("the next agent looks after it", func() bool { return strings.Contains(east.tail(), "looking after a process that was there before") })
	if now := l.process(1); now.PID != second.PID {
		t.Errorf("an upgrade of the agent replaced process %d by %d", second.PID, now.PID)
	}

	// The machine vanishes: the process runs on the other one.
	l.agent("west")
	l.must(syscall.Kill(east.cmd.Process.Pid, syscall.SIGKILL))
	l.must(syscall.Kill(second.PID, syscall.SIGKILL))
	l.await("the other machine runs it", func() bool { return l.process(1).Agent == "west" })
	l.command(append([]string{"produce", "-q", "--partitions", "2"}, l.with(l.v1, l.inputs[2:])...)...)
	l.await("version 1 has the digest of a replay", func() bool { return l.digest() == want })
	l.await("the logs tell of all three processes", func() bool {
		return strings.Count(string(l.command("job", "logs", "payments", "--version", "1", "--tail", "0", "--json")), `"msg":"working"`) == 3
	})
	l.command("job", "stop", "payments")
}

// process asks the workflow of a version's process; it is empty where the version has none yet.
func (l *lifecycleTest) process(version int) workflows.ProcessStatus {
	l.Helper()
	return l.processOf("payments", version)
}

func (l *lifecycleTest) processOf(job string, version int) (s workflows.ProcessStatus) {
	l.Helper()
	v, err := queryWorkflow(l.ctx, l.client(), workflows.ProcessID(job, version, 0), workflows.QueryStatus)
	var none *serviceerror.NotFound
	if errors.As(err, &none) {
		return s
	}
	l.must(err)
	l.must(v.Get(&s))
	return s
}

// shardRuns tells whether the shard of version 1 runs, and not in a process that has died.
func (l *lifecycleTest) shardRuns() bool {
	l.Helper()
	for line := range strings.Lines(string(l.command("job", "status", "payments", "--json"))) {
		var s struct {
			Workflow string
			Runs     []struct {
				State string
				Beat  *struct{ Epoch int64 }
			}
		}
		l.must(json.Unmarshal([]byte(line), &s))
		if s.Workflow == "version/payments/1" && len(s.Runs) == 1 && s.Runs[0].State == "running" && s.Runs[0].Beat != nil && s.Runs[0].Beat.Epoch > 1 {
			return true
		}
	}
	return false
}

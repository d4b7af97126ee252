package activities

import (
	"context"
	"fmt"
	"time"

	"go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
)

const (
	// examineTimeout bounds each question to Temporal about the health of a version: what is not answered is not known.
	examineTimeout = 5 * time.Second
	// examineMax bounds the shards and processes of a version that are looked at: those of one version fail alike.
	examineMax = 16
	// pollersAge is how old the last poll of a process that lives may be: a poll lasts a minute.
	pollersAge = 90 * time.Second
)

// examine adds why a version does not run well. What Temporal does not answer in time is left out: it comes with the next look.
func (l *Lifecycle) examine(ctx context.Context, in StandingInput, s *Standing) {
	h, ok := l.askHealth(ctx, in)
	if !ok {
		return
	}
	if h.Error != nil {
		s.Error, s.ErrorType = h.Error.Message, h.Error.Type
	}
	var shards, processes []part
	for _, r := range h.Shards {
		shards = append(shards, part{r.State, r.Attempts, r.Error})
	}
	for _, r := range h.Processes {
		processes = append(processes, part{r.State, r.Attempts, r.Error})
	}
	// A process knows better than its shards why it died: they only do not answer. So it comes last, and what is last counts.
	s.fails("shard", shards)
	s.fails("process", processes)
	l.countDeaths(ctx, in, "shard", ShardID, shards, s)
	l.countDeaths(ctx, in, "process", ProcessID, processes, s)
	if s.Missing > 0 {
		l.findProcesses(ctx, in, h, s)
	}
}

// part is what a shard or a process of a version reported.
type part struct {
	state    string
	attempts int // that failed in rounds that are over, since it last ran steadily
	why      *Problem
}

// fails notes which parts are in a state in which they fail, and why; the worse state counts.
func (s *Standing) fails(kind string, parts []part) {
	for _, state := range []string{CrashLooping, Failed} {
		for i, p := range parts {
			if p.state != state {
				continue
			}
			if s.Phase != Failed {
				s.Phase = state
			}
			if p.why != nil {
				s.Error, s.ErrorType = fmt.Sprintf("%s %d: %s", kind, i, p.why.Message), p.why.Type
			}
		}
	}
}

func (l *Lifecycle) askHealth(ctx context.Context, in StandingInput) (h VersionHealth, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	v, err := l.Starter.QueryWorkflow(ctx, VersionID(in.Job, in.Version), "", QueryStatus)
	if err != nil || v.Get(&h) != nil {
		return VersionHealth{}, false
	}
	return h, true
}

// countDeaths counts the attempts of runs that failed: those that their workflows know of, and those of the round at hand, which
// they learn of only when it is over. Servers that are away are nobody's fault.
func (l *Lifecycle) countDeaths(ctx context.Context, in StandingInput, kind string, id func(job string, version, part int) string, parts []part, s *Standing) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	for i, p := range parts[:min(len(parts), examineMax)] {
		before := 0
		if p.why != nil && p.why.Type != External {
			before = p.attempts
		}
		s.Deaths = max(s.Deaths, before)
		r, err := l.Starter.DescribeWorkflowExecution(ctx, id(in.Job, in.Version, i), "")
		if err != nil {
			return
		}
		for _, a := range r.GetPendingActivities() {
			f := a.GetLastFailure()
			if a.GetAttempt() < 2 || f == nil || f.GetApplicationFailureInfo().GetType() == External {
				continue
			}
			s.Deaths = max(s.Deaths, before+int(a.GetAttempt())-1)
			if s.Phase != CrashLooping && s.Phase != Failed {
				s.Error, s.ErrorType = fmt.Sprintf("%s %d: %s", kind, i, failureText(f)), f.GetApplicationFailureInfo().GetType()
			}
		}
	}
}

func failureText(f *failurepb.Failure) string {
	if f.GetTimeoutFailureInfo() != nil {
		return "its process did not answer: it died, or its machine did"
	}
	return f.GetMessage()
}

// findProcesses looks for processes that take the shards of a version.
func (l *Lifecycle) findProcesses(ctx context.Context, in StandingInput, h VersionHealth, s *Standing) {
	for i, p := range h.Processes {
		if p.State == Waiting {
			s.Unmanned = true
			s.Waits = fmt.Sprintf("process %d waits for an agent that has room: start one on some machine (weft agent)", i)
			return
		}
	}
	if len(h.Processes) > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	queue := VersionQueue(in.Job, in.Version)
	r, err := l.Starter.DescribeTaskQueue(ctx, queue, enums.TASK_QUEUE_TYPE_ACTIVITY)
	if err != nil {
		return
	}
	for _, p := range r.GetPollers() {
		if t := p.GetLastAccessTime(); t == nil || time.Since(t.AsTime()) < pollersAge {
			return
		}
	}
	if s.Missing < max(in.Shards, 1) { // a process whose slots are all taken does not poll
		return
	}
	s.Unmanned = true
	s.Waits = fmt.Sprintf("no process takes its shards: nobody polls the task queue %s (weft worker --job %s --version %d)", queue, in.Job, in.Version)
}

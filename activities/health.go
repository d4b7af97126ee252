package activities

import (
	"context"
	"encoding/json"
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

// health is what the workflow of a version answers about itself, of which a standing needs this.
type health struct {
	Error     *ailment `json:"error"` // of preparing
	Shards    []part   `json:"shards"`
	Processes []part   `json:"processes"` // none where somebody starts them by hand
}

type part struct {
	State    string   `json:"state"`
	Attempts int      `json:"attempts"` // that failed in rounds that are over, since it last ran steadily
	Error    *ailment `json:"error"`
}

type ailment struct {
	Type    string    `json:"type"`
	Message string    `json:"message"`
	At      time.Time `json:"at"`
}

// The states of parts that have a problem, as workflows name them.
const (
	stateFailed   = "failed"
	stateCrashing = "crash_looping"
	stateWaiting  = "waiting_for_agent"
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
	worst := func(kind string, parts []part) {
		for _, state := range []string{stateCrashing, stateFailed} { // the last one that is found counts
			for i, p := range parts {
				if p.State != state {
					continue
				}
				if state == stateFailed || s.Phase != stateFailed {
					s.Phase = state
				}
				if p.Error != nil {
					s.Error, s.ErrorType = fmt.Sprintf("%s %d: %s", kind, i, p.Error.Message), p.Error.Type
				}
			}
		}
	}
	// A process knows better than its shards why it died: they only do not answer.
	worst("shard", h.Shards)
	worst("process", h.Processes)
	l.countDeaths(ctx, fmt.Sprintf("shard/%s/%d/", in.Job, in.Version), "shard", h.Shards, s)
	l.countDeaths(ctx, fmt.Sprintf("process/%s/%d/", in.Job, in.Version), "process", h.Processes, s)
	if s.Missing > 0 {
		l.findProcesses(ctx, in, h, s)
	}
}

func (l *Lifecycle) askHealth(ctx context.Context, in StandingInput) (h health, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	v, err := l.Starter.QueryWorkflow(ctx, fmt.Sprintf("version/%s/%d", in.Job, in.Version), "", "status")
	if err != nil {
		return h, false
	}
	var data json.RawMessage
	if v.Get(&data) != nil || json.Unmarshal(data, &h) != nil {
		return h, false
	}
	return h, true
}

// countDeaths counts the attempts of runs that failed: those that their workflows know of, and those of the round at hand, which
// they learn of only when it is over. Servers that are away are nobody's fault.
func (l *Lifecycle) countDeaths(ctx context.Context, prefix, kind string, parts []part, s *Standing) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	for i, p := range parts[:min(len(parts), examineMax)] {
		before := 0
		if p.Error != nil && p.Error.Type != External {
			before = p.Attempts
		}
		s.Deaths = max(s.Deaths, before)
		r, err := l.Starter.DescribeWorkflowExecution(ctx, fmt.Sprint(prefix, i), "")
		if err != nil {
			return
		}
		for _, a := range r.GetPendingActivities() {
			f := a.GetLastFailure()
			if a.GetAttempt() < 2 || f == nil || f.GetApplicationFailureInfo().GetType() == External {
				continue
			}
			s.Deaths = max(s.Deaths, before+int(a.GetAttempt())-1)
			if s.Phase != stateCrashing && s.Phase != stateFailed {
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
func (l *Lifecycle) findProcesses(ctx context.Context, in StandingInput, h health, s *Standing) {
	for i, p := range h.Processes {
		if p.State == stateWaiting {
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

package workflows

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// The types of the workflows of deployments.
const (
	JobType     = "Job"
	DeployType  = "Deploy"
	RolloutType = "Rollout"
)

// JobID is the workflow id of a job.
func JobID(job string) string { return "job/" + job }

// QueryHistory asks Job for its decisions, the latest last.
const QueryHistory = "history"

// Signals of Job, beside SignalPause, SignalResume and SignalStop. Each carries a Request.
const (
	SignalRollback = "rollback" // serve another version again
	SignalPromote  = "promote"  // serve the candidate now; to agree, where two must
	SignalAbort    = "abort"    // give the candidate up
	SignalScale    = "scale"    // the served version again, with another number of shards
	SignalRebuild  = "rebuild"  // the served version again, with what came too late
	SignalDeploy   = "deploy"   // from Deploy: a DeployRequest
	SignalRollout  = "rollout"  // from Rollout: a RolloutReport
	SignalUnmanned = "unmanned" // from Version: an UnmannedReport
)

// Phases of a job, beside Paused, Stopping and Stopped.
const (
	Empty       = "empty" // it serves nothing
	Serving     = "serving"
	RollingOut  = "rolling_out"
	Awaiting    = "awaiting_approval"
	Frozen      = "frozen" // a freeze window holds a promotion back
	Promoting   = "promoting"
	RollingBack = "rolling_back"
	Aborting    = "aborting"
)

const (
	historyMax = 100  // decisions that a job remembers; the store's audit log has all
	seenMax    = 1000 // request ids that are known again
	queueMax   = 1000 // requests that wait
	entriesMax = 100  // of the audit log that are written at once
	switchMax  = 20   // how often a switch is tried while others change the serving map
	// eventsMax is how many events of its history a job takes before it continues as new: any worker does its next step, and has
	// to replay them first.
	eventsMax = 400
	// lookEvery is how often a job looks after what runs beside the served version.
	lookEvery = time.Minute
)

// Request is what signals to Job carry. A request id makes it safe to send one again.
type Request struct {
	To        int    `json:"to,omitempty"`      // rollback: the version to serve
	Version   int    `json:"version,omitempty"` // promote and abort: the candidate that is meant; 0: whichever it is
	Shards    int    `json:"shards,omitempty"`  // scale
	Reason    string `json:"reason,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	Actor     string `json:"actor,omitempty"`
}

// DeployRequest asks Job to roll a registered version out.
type DeployRequest struct {
	Version    int    `json:"version"`
	Shards     int    `json:"shards,omitempty"`
	SkipCanary bool   `json:"skip_canary,omitempty"`
	Reason     string `json:"reason,omitempty"`
	RequestID  string `json:"request_id,omitempty"`
	Actor      string `json:"actor,omitempty"`
	Deploy     string `json:"deploy,omitempty"` // workflow that is told what comes of it
}

// JobInput is the input of Job.
type JobInput struct {
	Job   string   `json:"job"`
	State *keptJob `json:"state,omitempty"` // of the run before, by continue-as-new
}

const jobExample = `{"job":"payments"}`

// Placed is a version with a part in a job.
type Placed struct {
	Version int            `json:"version"`
	Since   time.Time      `json:"since"`   // that it has this part
	From    int64          `json:"from_us"` // the earliest session start that it serves all from
	Shards  int            `json:"shards,omitempty"`
	Rollout *RolloutReport `json:"rollout,omitempty"` // how it was tried
	By      string         `json:"by,omitempty"`      // who deployed it
	// Unmanned says why nobody runs it, and what to do; empty: somebody does, as far as is known.
	Unmanned string `json:"unmanned,omitempty"`
	Owned    bool   `json:"owned,omitempty"` // its workflow was told that the job owns it
}

// JobStatus is what the query "status" answers for Job.
type JobStatus struct {
	Job       string    `json:"job"`
	Phase     string    `json:"phase"`
	Since     time.Time `json:"since"` // of the phase
	Current   *Placed   `json:"current,omitempty"`
	Candidate *Placed   `json:"candidate,omitempty"`
	Previous  *Placed   `json:"previous,omitempty"` // it runs on until RollbackUntil
	Retiring  []Placed  `json:"retiring,omitempty"` // they run on for sessions of older ranges, which can still change
	Failed    *Placed   `json:"failed,omitempty"`   // the last candidate that was given up, with its reasons
	Discards  []Discard `json:"discards,omitempty"` // what is left of versions that are over, until it is dropped
	Epoch     uint64    `json:"epoch"`              // of the serving map, as it was last seen

	RollbackReady bool       `json:"rollback_ready"`
	RollbackUntil *time.Time `json:"rollback_until,omitempty"`
	RollbackLagMS int64      `json:"rollback_lag_ms"`         // of the previous version, as it was at the last look; -1: not known
	RollbackNote  string     `json:"rollback_note,omitempty"` // why a rollback would not be complete

	// Degraded says that what is served was rolled back from, until the version that is to come back has caught up; Why tells more.
	Degraded bool   `json:"degraded,omitempty"`
	Why      string `json:"degraded_reason,omitempty"`

	Paused      bool       `json:"paused,omitempty"`
	FrozenUntil *time.Time `json:"frozen_until,omitempty"`
	Approval    string     `json:"approval,omitempty"` // who agreed
	Waiting     int        `json:"requests_waiting,omitempty"`
	Rejections
}

// Decision is what a job decided about one request.
type Decision struct {
	At        time.Time `json:"at"`
	Kind      string    `json:"kind"` // the signal, or what happened by itself: promoted, failed, retired
	Version   int       `json:"version,omitempty"`
	Result    string    `json:"result"` // accepted, done or rejected
	Text      string    `json:"text,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	Actor     string    `json:"actor,omitempty"`
	RequestID string    `json:"request_id,omitempty"`
	TookMS    int64     `json:"took_ms,omitempty"` // of a switch: from the request until it was served
}

// Results of decisions.
const (
	Accepted     = "accepted" // what follows is told in later decisions
	Done         = "done"
	RejectedWhat = "rejected"
)

// ask is a request that waits for its decision.
type ask struct {
	Kind string    `json:"kind"`
	At   time.Time `json:"at"`
	Request
	SkipCanary bool   `json:"skip_canary,omitempty"`
	Deploy     string `json:"deploy,omitempty"`
}

// keptJob is what Job carries over when it continues as new.
type keptJob struct {
	JobStatus
	Surveyed bool               `json:"surveyed,omitempty"`
	Queue    []ask              `json:"queue,omitempty"`
	Seen     []string           `json:"seen,omitempty"` // request ids
	Serial   int                `json:"serial,omitempty"`
	Log      []Decision         `json:"log,omitempty"`
	Entries  []activities.Entry `json:"entries,omitempty"` // for the audit log
	Back     *back              `json:"back,omitempty"`
	Trial    *trial             `json:"trial,omitempty"`  // of the candidate
	Halted   bool               `json:"halted,omitempty"` // stop was asked for
	Return   *ask               `json:"return,omitempty"` // a rollback to a version that does not run, which waits for the candidate's end
	WindowMS int64              `json:"window_ms,omitempty"`
	NextLook time.Time          `json:"next_look"`
}

// back is how to undo the last switch.
type back struct {
	Epoch uint64 `json:"epoch"` // of the serving map before it
	From  int64  `json:"from_us"`
}

// trial is what Job knows about the candidate beside its place.
type trial struct {
	Run       string `json:"run"` // of Rollout, the first
	RequestID string `json:"request_id"`
	Deploy    string `json:"deploy,omitempty"`
	Reason    string `json:"reason,omitempty"`
	// Unsure says that a promotion was asked for and its answer was not awaited: it may take place yet.
	Unsure   bool      `json:"unsure,omitempty"`
	Aborting bool      `json:"aborting,omitempty"`
	Returns  bool      `json:"returns,omitempty"`  // a rollback brings it back: nobody has to agree, and no freeze window counts
	Retiring bool      `json:"retiring,omitempty"` // it ran on for older ranges before
	Outcome  string    `json:"outcome,omitempty"`  // once it is given up
	Why      string    `json:"why,omitempty"`
	Switches int       `json:"switches,omitempty"` // tried
	AskedAt  time.Time `json:"asked_at"`           // when a person asked for the promotion, or it was ready
}

// UnmarshalJSON passes over keys that it does not know: a newer engine may have written them before a rollback.
func (k *keptJob) UnmarshalJSON(data []byte) error {
	type plain keptJob
	return json.Unmarshal(data, (*plain)(k))
}

// job is a run of the workflow Job.
type job struct {
	in JobInput
	keptJob
	inbox inbox
	told  int // rejections of the inbox that were recorded

	bounded   bool              // its history
	sent      []workflow.Future // signals on their way
	recording workflow.Future   // entries of the audit log that are being written
	written   int               // of them
}

// Job owns what a job serves: it alone decides which version that is. Its id is JobID. Query QueryStatus returns a JobStatus,
// QueryHistory a list of Decisions, QueryRollbackPlan what a rollback would do. Handlers of signals only put requests into a queue; one loop decides, a rollback first.
func Job(ctx workflow.Context, raw converter.RawValue) error {
	var in JobInput
	err := decode(raw, &in)
	if err == nil && in.Job == "" {
		err = errors.New("job is missing")
	}
	if err != nil {
		return badInput(JobType, jobExample, err)
	}
	j := &job{in: in}
	if in.State != nil {
		j.keptJob = *in.State
	}
	j.Job = in.Job
	j.told = j.Count
	j.inbox.Rejections = &j.Rejections
	j.inbox.handlers = []handler{{SignalRollback, j.enqueue(ctx, SignalRollback)}}
	for _, signal := range []string{SignalStop, SignalAbort, SignalPause, SignalResume, SignalPromote, SignalScale, SignalRebuild} {
		j.inbox.handlers = append(j.inbox.handlers, handler{signal, j.enqueue(ctx, signal)})
	}
	j.inbox.handlers = append(j.inbox.handlers, handler{SignalDeploy, j.deployAsked(ctx)}, handler{SignalRollout, j.reported},
		handler{SignalUnmanned, j.unmanned})
	err = workflow.SetQueryHandler(ctx, QueryStatus, func() (JobStatus, error) {
		s := j.JobStatus
		s.Waiting = len(j.Queue)
		return s, nil
	})
	if err == nil {
		err = workflow.SetQueryHandler(ctx, QueryHistory, func() ([]Decision, error) { return j.Log, nil })
	}
	if err == nil {
		err = workflow.SetQueryHandler(ctx, QueryRollbackPlan, j.planRollback)
	}
	if err != nil {
		return err
	}
	if err = j.run(ctx); errors.Is(err, errContinue) {
		j.in.State = &j.keptJob
		return workflow.NewContinueAsNewError(ctx, JobType, j.in)
	}
	return err
}

// enqueue returns a handler that puts a request into the queue.
func (j *job) enqueue(ctx workflow.Context, kind string) func(converter.RawValue) error {
	return func(raw converter.RawValue) error {
		var r Request
		if raw.Payload() != nil || kind == SignalRollback {
			if err := decode(raw, &r); err != nil {
				return err
			}
		}
		switch {
		case kind == SignalRollback && r.To < 1:
			return errors.New(`to is missing: expected the version to serve, as in {"to":1,"reason":"…"}`)
		case kind != SignalRollback && r.To != 0:
			return errors.New("to belongs to rollback")
		case r.Version < 0 || r.Shards < 0:
			return errors.New("a number is negative")
		}
		return j.put(ctx, ask{Kind: kind, Request: r})
	}
}

func (j *job) deployAsked(ctx workflow.Context) func(converter.RawValue) error {
	return func(raw converter.RawValue) error {
		var d DeployRequest
		if err := decode(raw, &d); err != nil {
			return err
		}
		if d.Version < 1 || d.Shards < 0 || d.Shards > shardsMax {
			return fmt.Errorf("version is missing, or shards is not 1 to %d", shardsMax)
		}
		return j.put(ctx, ask{Kind: SignalDeploy, SkipCanary: d.SkipCanary, Deploy: d.Deploy,
			Request: Request{Version: d.Version, Shards: d.Shards, Reason: d.Reason, RequestID: d.RequestID, Actor: d.Actor}})
	}
}

// put checks what all requests have in common and queues one. One that has no id gets one.
func (j *job) put(ctx workflow.Context, a ask) error {
	for _, text := range []string{a.Reason, a.RequestID, a.Actor, a.Deploy} {
		if len(text) > 1000 {
			return errors.New("a text is longer than 1000 bytes")
		}
	}
	if len(j.Queue) >= queueMax {
		return fmt.Errorf("%d requests wait already", queueMax)
	}
	a.At = workflow.Now(ctx)
	if a.RequestID == "" {
		a.RequestID = j.serial(ctx, a.Kind)
	}
	j.Queue = append(j.Queue, a)
	return nil
}

// serial makes an id that no other run of the job makes.
func (j *job) serial(ctx workflow.Context, what string) string {
	j.Serial++
	return fmt.Sprintf("%s/%.8s/%d", what, workflow.GetInfo(ctx).FirstRunID, j.Serial)
}

// reported takes in what Rollout tells.
func (j *job) reported(raw converter.RawValue) error {
	var r RolloutReport
	if err := decode(raw, &r); err != nil {
		return err
	}
	if j.Candidate == nil || j.Candidate.Version != r.Version || j.Trial.Run != r.Run {
		return fmt.Errorf("no such rollout of version %d is in flight", r.Version)
	}
	j.Candidate.Rollout, j.Candidate.From = &r, r.From
	return nil
}

// drain takes in signals, and records those that could not be understood.
func (j *job) drain(ctx workflow.Context) {
	j.inbox.drain(ctx)
	fresh := j.Rejected[max(0, len(j.Rejected)-(j.Count-j.told)):]
	if lost := j.Count - j.told - len(fresh); lost > 0 {
		j.note(ctx, Decision{Kind: "signals", Result: RejectedWhat, Text: fmt.Sprintf("%d more signals could not be understood", lost)})
	}
	for _, r := range fresh {
		j.note(ctx, Decision{Kind: r.Signal, Result: RejectedWhat, Text: r.Reason + ", got " + r.Input})
	}
	j.told = j.Count
}

// note remembers a decision and puts it into the audit log.
func (j *job) note(ctx workflow.Context, d Decision) {
	d.At = workflow.Now(ctx)
	j.Log = append(j.Log, d)
	if len(j.Log) > historyMax {
		j.Log = slices.Delete(j.Log, 0, len(j.Log)-historyMax)
	}
	detail, err := json.Marshal(d)
	if err != nil { // it has nothing that cannot be encoded
		detail = []byte(err.Error())
	}
	if len(j.Entries) >= queueMax { // the store is away: what is decided counts more than what was rejected
		i := slices.IndexFunc(j.Entries[j.written:], func(e activities.Entry) bool { return strings.HasSuffix(e.Action, "."+RejectedWhat) })
		i = max(i, 0) + j.written
		j.Entries = slices.Delete(j.Entries, i, i+1)
	}
	j.Entries = append(j.Entries, activities.Entry{ID: j.serial(ctx, "decision"), Actor: d.Actor, Action: "job." + d.Kind + "." + d.Result, Reason: d.Reason, Detail: string(detail)})
	workflow.GetLogger(ctx).Info("decided", "kind", d.Kind, "version", d.Version, "result", d.Result, "text", d.Text)
}

// settle records what came of a request.
func (j *job) settle(ctx workflow.Context, a ask, version int, result, text string) {
	j.note(ctx, Decision{Kind: a.Kind, Version: version, Result: result, Text: text, Reason: a.Reason, Actor: a.Actor, RequestID: a.RequestID})
}

// record writes entries of the audit log while other things go on.
func (j *job) record(ctx workflow.Context) {
	if j.recording != nil && j.recording.IsReady() {
		if err := j.recording.Get(ctx, nil); err != nil {
			workflow.GetLogger(ctx).Error("decisions are not in the audit log", "error", err)
		}
		j.Entries, j.recording, j.written = slices.Delete(j.Entries, 0, j.written), nil, 0
	}
	if j.recording == nil && len(j.Entries) > 0 {
		j.written = min(len(j.Entries), entriesMax)
		var l *activities.Lifecycle
		j.recording = workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, shortOptions()), l.RecordDecisions,
			activities.RecordInput{Job: j.Job, Entries: slices.Clone(j.Entries[:j.written])})
	}
}

func (j *job) enter(ctx workflow.Context, phase string) error {
	if j.Phase == phase {
		return nil
	}
	j.Phase, j.Since = phase, workflow.Now(ctx)
	version := ""
	if j.Current != nil {
		version = strconv.Itoa(j.Current.Version)
	}
	return mark(ctx, j.Job, version, phase)
}

// phase is what the job does while nothing is being decided.
func (j *job) phase() string {
	switch {
	case j.Halted && j.Candidate == nil:
		return Stopped
	case j.Halted:
		return Stopping
	case j.Candidate != nil && j.Trial.Aborting:
		return Aborting
	case j.Candidate != nil && j.Trial.Returns:
		return RollingBack
	case j.Candidate != nil && j.FrozenUntil != nil:
		return Frozen
	case j.awaiting():
		return Awaiting
	case j.Candidate != nil:
		return RollingOut
	case j.Current == nil:
		return Empty
	case j.Paused:
		return Paused
	}
	return Serving
}

// ready tells whether the candidate has passed all there is to pass.
func (j *job) ready() bool {
	return j.Candidate != nil && !j.Trial.Aborting && j.Candidate.Rollout != nil && j.Candidate.Rollout.Phase == Ready
}

// awaiting tells whether the candidate waits for a second person.
func (j *job) awaiting() bool {
	return j.ready() && j.Candidate.Rollout.TwoMust && j.Approval == "" && !j.Trial.Returns
}

func (j *job) run(ctx workflow.Context) error {
	j.bounded = workflow.GetVersion(ctx, "bounded history", workflow.DefaultVersion, 1) > workflow.DefaultVersion
	for {
		j.drain(ctx)
		if !j.Surveyed {
			if err := j.survey(ctx); err != nil {
				return err
			}
		}
		j.record(ctx)
		a, asked := j.next()
		var err error
		switch {
		case asked:
			err = j.decide(ctx, a)
		case j.Candidate != nil && j.Candidate.Rollout != nil && j.Candidate.Rollout.Final:
			j.lose(ctx)
		case j.Return != nil && j.Candidate == nil:
			back := *j.Return
			j.Return = nil
			j.returns(ctx, back)
		case j.ready() && !j.awaiting() && (j.FrozenUntil == nil || !workflow.Now(ctx).Before(*j.FrozenUntil)):
			err = j.promote(ctx)
		case j.full(ctx): // entries of the audit log go along: writing one again changes nothing
			if err := j.deliver(ctx); err != nil {
				return err
			}
			if j.inbox.pending(ctx) {
				continue
			}
			return errContinue
		default:
			if err = j.enter(ctx, j.phase()); err == nil {
				err = j.rest(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
}

// full tells whether the history is long enough to continue as new.
func (j *job) full(ctx workflow.Context) bool {
	info := workflow.GetInfo(ctx)
	return info.GetContinueAsNewSuggested() || j.bounded && info.GetCurrentHistoryLength() >= eventsMax
}

// deliver waits for signals that are on their way: those of a run that has ended may not be sent.
func (j *job) deliver(ctx workflow.Context) error {
	for _, f := range j.sent {
		if err := f.Get(ctx, nil); err != nil && temporal.IsCanceledError(err) {
			return err
		}
	}
	j.sent = nil
	return nil
}

// next takes the most urgent request: a rollback, then a stop, then an abort, then whatever came first.
func (j *job) next() (a ask, ok bool) {
	for _, kind := range []string{SignalRollback, SignalStop, SignalAbort, ""} {
		i := slices.IndexFunc(j.Queue, func(a ask) bool { return kind == "" || a.Kind == kind })
		if i >= 0 {
			a = j.Queue[i]
			j.Queue = slices.Delete(j.Queue, i, i+1)
			return a, true
		}
	}
	return a, false
}

// urgent tells whether a request waits for which a promotion must not be waited for.
func (j *job) urgent() bool {
	return slices.ContainsFunc(j.Queue, func(a ask) bool { return a.Kind == SignalRollback || a.Kind == SignalStop || a.Kind == SignalAbort })
}

// rest waits for something to do.
func (j *job) rest(ctx workflow.Context) error {
	now := workflow.Now(ctx)
	var until time.Time // zero: whenever a signal comes
	soonest := func(t time.Time) {
		if until.IsZero() || t.Before(until) {
			until = t
		}
	}
	if j.Candidate != nil || j.Previous != nil || len(j.Retiring) > 0 {
		if j.NextLook.IsZero() {
			j.NextLook = now.Add(lookEvery)
		}
		soonest(j.NextLook)
	}
	if j.Previous != nil && j.RollbackUntil != nil && j.RollbackReady {
		soonest(*j.RollbackUntil)
	}
	if j.FrozenUntil != nil {
		soonest(*j.FrozenUntil)
	}
	for _, d := range j.Discards {
		soonest(d.Due)
	}
	timing, cancel := workflow.WithCancel(ctx)
	defer cancel()
	var timer workflow.Future
	if !until.IsZero() {
		timer = workflow.NewTimer(timing, max(until.Sub(now), 0))
	}
	recording := j.recording
	err := workflow.Await(ctx, func() bool {
		return j.inbox.pending(ctx) || timer != nil && timer.IsReady() || recording != nil && recording.IsReady() || j.full(ctx)
	})
	if err != nil || timer == nil || !timer.IsReady() {
		return err
	}
	now = workflow.Now(ctx)
	if j.FrozenUntil != nil && !now.Before(*j.FrozenUntil) {
		j.FrozenUntil = nil
	}
	if !j.NextLook.IsZero() && !now.Before(j.NextLook) || j.RollbackUntil != nil && j.RollbackReady && !now.Before(*j.RollbackUntil) {
		j.NextLook = time.Time{}
		return j.look(ctx)
	}
	return j.drop(ctx)
}

// perform waits for an activity; unless it is urgent to decide something else, which false says.
func (j *job) perform(ctx workflow.Context, f workflow.Future, into any, whatever bool) (done bool, err error) {
	for !f.IsReady() {
		if err := workflow.Await(ctx, func() bool { return f.IsReady() || j.inbox.pending(ctx) }); err != nil {
			return false, err
		}
		if j.drain(ctx); j.urgent() && !whatever && !f.IsReady() {
			return false, nil
		}
	}
	return true, f.Get(ctx, into)
}

// survey learns what is served when a job begins: it may have been started without this workflow.
func (j *job) survey(ctx workflow.Context) error {
	var l *activities.Lifecycle
	var s activities.Surveyed
	f := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, shortOptions()), l.Survey, activities.SurveyInput{Job: j.Job})
	if _, err := j.perform(ctx, f, &s, true); err != nil {
		if temporal.IsCanceledError(err) {
			return err
		}
		j.note(ctx, Decision{Kind: "survey", Result: RejectedWhat, Text: problemOf(ctx, err).Message})
	}
	j.Surveyed, j.Epoch = true, s.Epoch
	if s.Current > 0 && j.Current == nil {
		j.Current = &Placed{Version: s.Current, Since: workflow.Now(ctx), From: s.From, Shards: s.Shards}
		j.note(ctx, Decision{Kind: "survey", Version: s.Current, Result: Done, Text: fmt.Sprintf("version %d is served", s.Current)})
		j.own(ctx, j.Current)
	}
	return nil
}

// decide decides one request.
func (j *job) decide(ctx workflow.Context, a ask) error {
	if slices.Contains(j.Seen, a.RequestID) {
		j.settle(ctx, a, a.Version, RejectedWhat, "a request with this id was decided already: give each an id of its own")
		return nil
	}
	j.Seen = append(j.Seen, a.RequestID)
	if len(j.Seen) > seenMax {
		j.Seen = slices.Delete(j.Seen, 0, len(j.Seen)-seenMax)
	}
	if a.Kind == SignalRollback {
		return j.rollback(ctx, a)
	}
	result, text := RejectedWhat, ""
	version := a.Version
	switch a.Kind {
	case SignalDeploy:
		result, text = j.deploy(ctx, a)
		if result == RejectedWhat {
			j.tell(ctx, a.Deploy, DeployNews{Version: a.Version, Final: true, Outcome: Refused, Reasons: []string{text}})
		}
	case SignalPromote, SignalAbort:
		if c := j.Candidate; c == nil || a.Version != 0 && a.Version != c.Version {
			text = "no such version is being rolled out"
			break
		}
		version = j.Candidate.Version
		if a.Kind == SignalAbort {
			if err := j.fence(ctx, a); err != nil {
				return err
			}
			result, text = j.abort(ctx, OutcomeAborted, "aborted by request"+because(a.Request))
		} else {
			result, text = j.agree(ctx, a)
		}
	case SignalPause, SignalResume, SignalStop:
		if a.Kind == SignalStop {
			if err := j.fence(ctx, a); err != nil {
				return err
			}
		}
		result, text = j.order(ctx, a)
	default:
		var err error
		if version, result, text, err = j.renew(ctx, a); err != nil {
			return err
		}
	}
	j.settle(ctx, a, version, result, text)
	return nil
}

func because(r Request) string {
	text := ""
	if r.Actor != "" {
		text += " of " + r.Actor
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

// deploy begins a rollout.
func (j *job) deploy(ctx workflow.Context, a ask) (result, text string) {
	switch {
	case j.Halted:
		return RejectedWhat, "the job is stopped: resume it first (signal resume)"
	case j.Candidate != nil:
		return RejectedWhat, fmt.Sprintf("version %d is being rolled out: wait for its end, or abort it first", j.Candidate.Version)
	case j.Current != nil && j.Current.Version == a.Version:
		return RejectedWhat, fmt.Sprintf("version %d is served already", a.Version)
	case j.Previous != nil && j.Previous.Version == a.Version && j.RollbackReady:
		return RejectedWhat, fmt.Sprintf("version %d was served before and still runs: roll back to it", a.Version)
	}
	current := 0
	if j.Current != nil {
		current = j.Current.Version
	}
	child := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:            RolloutID(j.Job, a.Version),
		WorkflowIDReusePolicy: enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		ParentClosePolicy:     enums.PARENT_CLOSE_POLICY_ABANDON,
		TypedSearchAttributes: temporal.NewSearchAttributes(attribute("WeftJob").ValueSet(j.Job), attribute("WeftVersion").ValueSet(strconv.Itoa(a.Version))),
	})
	f := workflow.ExecuteChildWorkflow(child, RolloutType, RolloutInput{Job: j.Job, Version: a.Version, Current: current, Shards: a.Shards, SkipCanary: a.SkipCanary})
	var run workflow.Execution
	if err := f.GetChildWorkflowExecution().Get(ctx, &run); err != nil {
		return RejectedWhat, fmt.Sprintf("start %s: %v", RolloutID(j.Job, a.Version), err)
	}
	j.Candidate = &Placed{Version: a.Version, Since: workflow.Now(ctx), Shards: a.Shards, By: a.Actor}
	j.Trial = &trial{Run: run.RunID, RequestID: a.RequestID, Deploy: a.Deploy, Reason: a.Reason}
	n := len(j.Retiring)
	j.Retiring = slices.DeleteFunc(j.Retiring, func(p Placed) bool { return p.Version == a.Version })
	j.Discards = slices.DeleteFunc(j.Discards, func(d Discard) bool { return d.Version == a.Version })
	j.Trial.Retiring = len(j.Retiring) < n
	j.Approval = ""
	j.tell(ctx, a.Deploy, DeployNews{Version: a.Version})
	return Accepted, fmt.Sprintf("version %d is rolled out by %s", a.Version, RolloutID(j.Job, a.Version))
}

// renew rolls the served version out again, as another one: with what came too late for it, or with another number of
// shards, which is fixed when a version starts.
func (j *job) renew(ctx workflow.Context, a ask) (version int, result, text string, err error) {
	refuse := func(format string, args ...any) (int, string, string, error) {
		return 0, RejectedWhat, fmt.Sprintf(format, args...), nil
	}
	switch {
	case j.Halted:
		return refuse("the job is stopped: resume it first (signal resume)")
	case j.Candidate != nil:
		return refuse("version %d is being rolled out: wait for its end, or abort it first", j.Candidate.Version)
	case j.Current == nil:
		return refuse("nothing is served that could be computed anew")
	case a.Kind == SignalScale && (a.Shards < 1 || a.Shards > shardsMax):
		return refuse(`shards is not 1 to %d, as in {"shards":4}`, shardsMax)
	}
	var l *activities.Lifecycle
	short := workflow.WithActivityOptions(ctx, shortOptions())
	in := activities.RegisterInput{Job: j.Job, Version: j.Current.Version}
	var now, plan activities.Plan
	if _, err = j.perform(ctx, workflow.ExecuteActivity(short, l.RegisterVersion, in), &now, true); err == nil {
		shards := max(now.Shards, j.Current.Shards, 1)
		switch {
		case a.Kind == SignalScale && a.Shards == shards:
			return refuse("version %d has %d shards already", j.Current.Version, shards)
		case a.Shards > 1 && !now.Divisible:
			return refuse("its spec says nothing to divide it by: name a field in shard_by")
		case a.Shards == 0:
			a.Shards = shards
		}
		in.Rebuild, in.Message, in.Author, in.RequestID = true, a.Reason, a.Actor, a.RequestID
		in.Limit, in.Shards = true, a.Shards
		_, err = j.perform(ctx, workflow.ExecuteActivity(short, l.RegisterVersion, in), &plan, true)
	}
	if temporal.IsCanceledError(err) {
		return 0, "", "", err
	}
	if err != nil {
		return refuse("%s", problemOf(ctx, err).Message)
	}
	if len(plan.Refused) > 0 {
		return refuse("%s", strings.Join(plan.Refused, "; "))
	}
	a.Version, a.SkipCanary = plan.Version, true
	result, text = j.deploy(ctx, a)
	return plan.Version, result, text, nil
}

// tell tells a workflow Deploy, if there is one that waits.
func (j *job) tell(ctx workflow.Context, deploy string, news DeployNews) {
	if deploy != "" {
		j.send(ctx, deploy, SignalNews, news)
	}
}

// send sends a signal without waiting: whom it does not reach has ended.
func (j *job) send(ctx workflow.Context, id, signal string, arg any) {
	j.sent = slices.DeleteFunc(j.sent, func(f workflow.Future) bool { return f.IsReady() })
	j.sent = append(j.sent, workflow.SignalExternalWorkflow(ctx, id, "", signal, arg))
}

// abort tells the rollout to give up.
func (j *job) abort(ctx workflow.Context, outcome, why string) (result, text string) {
	t := j.Trial
	if t.Aborting {
		return RejectedWhat, "it is being aborted already"
	}
	t.Aborting, t.Outcome, t.Why, j.FrozenUntil = true, outcome, why, nil
	j.send(ctx, RolloutID(j.Job, j.Candidate.Version), SignalAbort, Order{Reason: why})
	return Accepted, fmt.Sprintf("version %d is given up", j.Candidate.Version)
}

// agree takes the signal promote: go on without the rest of the canary, or agree where two must.
func (j *job) agree(ctx workflow.Context, a ask) (result, text string) {
	r := j.Candidate.Rollout
	switch {
	case j.Trial.Aborting:
		return RejectedWhat, "it is being aborted"
	case r == nil || !r.Planned:
		return RejectedWhat, "the rollout is still being planned: try again in a moment"
	case j.FrozenUntil != nil:
		return RejectedWhat, "a freeze window holds it back until " + j.FrozenUntil.Format(time.RFC3339)
	case j.Trial.Returns:
		return RejectedWhat, "it comes back as soon as it has caught up"
	case r.TwoMust && a.Actor == "":
		return RejectedWhat, "two persons must agree, and the request names no actor"
	case r.TwoMust && a.Actor == j.Candidate.By:
		return RejectedWhat, fmt.Sprintf("two persons must agree, and %s deployed the version: somebody else must promote it", a.Actor)
	}
	j.Approval, j.Trial.AskedAt = a.Actor, a.At
	if r.Phase == Ready {
		return Accepted, "it is promoted"
	}
	j.send(ctx, RolloutID(j.Job, j.Candidate.Version), SignalPromote, Order{Reason: a.Reason, Actor: a.Actor})
	return Accepted, "it is promoted as soon as it has caught up"
}

// order takes the signals pause, resume and stop. While a version is rolled out, pause and resume are for the rollout.
func (j *job) order(ctx workflow.Context, a ask) (result, text string) {
	o := Order{Reason: a.Reason, Actor: a.Actor}
	switch {
	case a.Kind == SignalStop && j.Halted:
		return RejectedWhat, "it is stopped already"
	case a.Kind == SignalStop:
		j.Halted, j.Paused = true, false
		j.stay()
		if j.Candidate != nil {
			j.abort(ctx, OutcomeAborted, "the job was stopped"+because(a.Request))
		}
		for _, p := range j.Retiring {
			j.send(ctx, VersionID(j.Job, p.Version), SignalStop, o)
		}
		j.toAll(ctx, SignalStop, o)
		j.send(ctx, PublisherID(j.Job), SignalStop, o)
		for _, p := range append(slices.Clone(j.Retiring), maybe(j.Previous)...) {
			j.discard(ctx, p.Version, keepRetired, "the job was stopped")
		}
		j.Previous, j.Retiring, j.RollbackReady, j.RollbackUntil = nil, nil, false, nil
		return Done, "its versions and its publisher are told to stop; the results can be read on"
	case a.Kind == SignalResume && j.Halted:
		if j.Candidate != nil {
			return RejectedWhat, "it is still stopping: try again in a moment"
		}
		if j.Current != nil {
			if err := j.restart(ctx); err != nil {
				return RejectedWhat, "it could not be started: " + problemOf(ctx, err).Message
			}
		}
		j.Halted = false
		return Done, "it runs again"
	case j.Halted:
		return RejectedWhat, "the job is stopped"
	case j.Candidate != nil && !j.Trial.Aborting:
		j.send(ctx, RolloutID(j.Job, j.Candidate.Version), a.Kind, o)
		return Done, "the rollout is told"
	case j.Current == nil:
		return RejectedWhat, "nothing runs"
	}
	j.Paused = a.Kind == SignalPause
	j.toAll(ctx, a.Kind, o)
	if !j.Paused {
		j.Current.Owned = false // its workflow may be another one by now
		j.own(ctx, j.Current)
	}
	return Done, "its versions are told"
}

// toAll signals the versions that run.
func (j *job) toAll(ctx workflow.Context, signal string, o Order) {
	for _, p := range []*Placed{j.Current, j.Previous} {
		if p != nil {
			j.send(ctx, VersionID(j.Job, p.Version), signal, o)
		}
	}
}

// inputOf encodes the input of a workflow or signal.
func inputOf(in any) json.RawMessage {
	data, err := json.Marshal(in)
	if err != nil { // they are plain structs
		return nil
	}
	return data
}

package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/converter"
)

// QueryRollbackPlan asks Job what a rollback would do; it takes a Request and returns a RollbackPlan.
const QueryRollbackPlan = "rollback_plan"

// The ways of a rollback.
const (
	BySwitch  = "switch"   // the version runs: it is served at once
	ByCatchUp = "catch_up" // it does not: it is started, and served when it has caught up
	ByStaying = "stay"     // it is served: what is being rolled out is given up
)

// RollbackPlan is what a rollback would do, as the job stands.
type RollbackPlan struct {
	To      int      `json:"to"`
	Way     string   `json:"way,omitempty"`     // switch, catch_up or stay; empty: it would be rejected
	Refused string   `json:"refused,omitempty"` // why
	Current int      `json:"current,omitempty"`
	GivesUp int      `json:"gives_up,omitempty"` // the candidate
	Steps   []string `json:"steps"`              // for a person
	// From is the earliest session start, in microseconds, from which on another version would be served, with BySwitch.
	From  int64      `json:"from_us,omitempty"`
	LagMS int64      `json:"lag_ms"`         // of the version, as it was at the last look; -1: not known
	Note  string     `json:"note,omitempty"` // why it would lack something
	Until *time.Time `json:"until,omitempty"`
}

// wayBack tells how a rollback to a version goes; refused tells why it does not, instead.
func (j *job) wayBack(to int) (way, refused string) {
	switch {
	case j.Current == nil:
		return "", "nothing is served, so there is nothing to go back from"
	case j.Halted:
		return "", "the job is stopped: resume it first (signal resume)"
	case to == j.Current.Version && j.Candidate != nil:
		return ByStaying, ""
	case to == j.Current.Version:
		return "", fmt.Sprintf("version %d is served already", to)
	case j.Candidate != nil && to == j.Candidate.Version:
		return "", fmt.Sprintf("version %d is being rolled out: promote it instead", to)
	case j.Previous == nil || to != j.Previous.Version || !j.RollbackReady || j.Back == nil:
		return ByCatchUp, ""
	}
	return BySwitch, ""
}

// planRollback answers QueryRollbackPlan. It changes nothing.
func (j *job) planRollback(raw converter.RawValue) (p RollbackPlan, err error) {
	var r Request
	if err := decode(raw, &r); err != nil {
		return p, err
	}
	if r.To < 1 {
		return p, fmt.Errorf(`to is missing: expected the version to serve, as in {"to":1}`)
	}
	p = RollbackPlan{To: r.To, LagMS: -1, Steps: []string{}}
	if p.Way, p.Refused = j.wayBack(r.To); p.Way == "" {
		return p, nil
	}
	add := func(format string, args ...any) { p.Steps = append(p.Steps, fmt.Sprintf(format, args...)) }
	p.Current = j.Current.Version
	if j.Candidate != nil {
		p.GivesUp = j.Candidate.Version
	}
	givesUp := func() {
		if p.GivesUp > 0 {
			add("give up the rollout of version %d, and stop that version", p.GivesUp)
		}
	}
	switch p.Way {
	case ByStaying:
		givesUp()
		add("nothing more: version %d is served, and stays", r.To)
	case BySwitch:
		p.From, p.LagMS, p.Note, p.Until = j.Back.From, j.RollbackLagMS, j.RollbackNote, j.RollbackUntil
		if j.Candidate != nil && j.Trial.Unsure {
			p.From = min(p.From, j.Candidate.From)
		}
		since := "from the first one on"
		if p.From > 0 {
			since = "that start at " + time.UnixMicro(p.From).UTC().Format(time.RFC3339) + " or later"
		}
		add("serve version %d at once, by one switch of the serving map: it runs", r.To)
		add("bring back what was served before version %d (epoch %d of the map), for all sessions %s", p.Current, j.Back.Epoch, since)
		givesUp()
		add("let version %d run on for %s as the previous one, ready for a rollback of the rollback", p.Current, time.Duration(j.WindowMS)*time.Millisecond)
	case ByCatchUp:
		givesUp()
		add("start version %d, which does not run; it goes on where its last checkpoint is, or where there is none any more from the first record, and needs a process", r.To)
		add("serve version %d until version %d has caught up, marked as degraded", p.Current, r.To)
		add("serve version %d then, by one switch of the serving map; nobody has to agree, and no freeze window counts", r.To)
	}
	return p, nil
}

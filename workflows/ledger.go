package workflows

import (
	"encoding/json"
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// ledger is what a backfill tells the audit log: who asked for it, who steered it, and what came of it. Entries wait until they
// are written, and go along when the workflow continues as new; one that is written twice is there once.
type ledger struct {
	Entries []activities.Entry `json:"entries,omitempty"`
	Serial  int                `json:"serial,omitempty"` // of the last one

	closing, closed bool
}

// ledgerWait is how long an end waits for the audit log.
const ledgerWait = 5 * time.Minute

// audited is what the detail of an entry has.
type audited struct {
	Workflow string            `json:"workflow"`
	Range    *activities.Range `json:"range,omitempty"`
	Mode     string            `json:"mode,omitempty"`
	Version  int               `json:"version,omitempty"`
	Sessions int64             `json:"sessions,omitempty"`
	Text     string            `json:"text,omitempty"`
}

// note puts an entry into the ledger.
func (b *backfill) note(action string, o Order, detail audited) {
	if !b.audits { // a history from before there was a ledger
		return
	}
	detail.Workflow = b.workflow
	text, err := json.Marshal(detail)
	if err != nil { // it has nothing that cannot be encoded
		text = []byte(err.Error())
	}
	b.Ledger.Serial++
	b.Ledger.Entries = append(b.Ledger.Entries, activities.Entry{
		ID: fmt.Sprintf("%s/%d", b.ID, b.Ledger.Serial), Actor: o.Actor, Action: b.kind + "." + action, Reason: o.Reason, Detail: string(text)})
}

// record writes entries while other things go on.
func (b *backfill) record(ctx workflow.Context) {
	if !b.audits {
		return
	}
	l := &b.Ledger
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer func() { l.closed = true }()
		for {
			if err := workflow.Await(ctx, func() bool { return l.closing || len(l.Entries) > 0 }); err != nil || len(l.Entries) == 0 {
				return
			}
			n := min(len(l.Entries), entriesMax)
			options := shortOptions()
			options.ScheduleToCloseTimeout = ledgerWait
			var a *activities.Lifecycle
			err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, options), a.RecordDecisions,
				activities.RecordInput{Job: b.job, Entries: l.Entries[:n:n]}).Get(ctx, nil)
			if err != nil {
				workflow.GetLogger(ctx).Error("entries are not in the audit log", "entries", n, "error", err)
			}
			l.Entries = l.Entries[n:]
		}
	})
}

// settle waits until all is written.
func (b *backfill) settle(ctx workflow.Context) error {
	if !b.audits {
		return nil
	}
	b.Ledger.closing = true
	return workflow.Await(ctx, func() bool { return b.Ledger.closed })
}

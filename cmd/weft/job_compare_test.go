package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

// A person sees what differs between the versions, in lists and side by side, and nothing of a record reaches the terminal.
func TestDifferencesAreShownSideBySide(t *testing.T) {
	body := func(scenarios, user, events string) json.RawMessage {
		return json.RawMessage(`{"id":"06DZ","keys":{"order":["1","2"]},"fields":{"user":"` + user + `","amount":600},"scenarios":[` + scenarios + `],"decided":{},"events":[` + events + `]}`)
	}
	event := func(offset int, second, step string) string {
		return fmt.Sprintf(`{"source":"orders","topic":"pay.orders","partition":0,"offset":%d,"index":0,"time":"2026-11-20T12:00:%sZ","step":"%s"}`, offset, second, step)
	}
	d := workers.Differences{Job: "payments", Current: 1, Candidate: 2, Result: activities.Trial{Summary: "2 of 10 sessions that both versions have decided differ"},
		Sessions: []workers.Difference{
			{ID: "06DZ1V3TQG5M8X0Y2KQ9R4C7WB", Start: "2026-11-20T12:00:00.5Z", What: []string{"events", "fields", "revision", "scenarios"}, Current: []string{"delivered"},
				Candidate:        []string{"delivered", "paid"},
				CurrentSession:   body(`"delivered"`, "ann", event(7, "00.5", "ordered")+","+event(9, "02", "delivered")),
				CandidateSession: body(`"delivered","paid"`, "b\\u001b[31mob", event(7, "00.5", "ordered")+","+event(8, "01", "paid")+","+event(9, "03", "delivered"))},
			{ID: "06DZ1V3TQG5M8X0Y2KQ9R4C7WC", Start: "2026-11-20T12:00:00.4Z", What: []string{workers.OnlyCurrent}, Current: []string{"delivered"},
				CurrentSession: body(`"delivered"`, "ann", event(7, "00.5", "ordered"))},
			{ID: "06DZ1V3TQG5M8X0Y2KQ9R4C7WD", Start: "2026-11-20T12:00:00.3Z", What: []string{"keys"}},
		}}
	for _, width := range []int{80, 170} {
		t.Setenv("COLUMNS", fmt.Sprint(width))
		var all strings.Builder
		for i := -1; i < len(d.Sessions); i++ {
			s := newScreen(&all)
			if i < 0 {
				drawDifferences(s, &d)
			} else {
				ok(t, drawBoth(s, &d, &d.Sessions[i]))
			}
			all.WriteString(s.String() + "----\n")
		}
		for line := range strings.SplitSeq(all.String(), "\n") {
			if textWidth(line) > width && !strings.Contains(line, "weft ") {
				t.Errorf("a line of %d cells on a terminal of %d: %s", textWidth(line), width, line)
			}
			if strings.ContainsRune(line, 0x1b) {
				t.Errorf("a record reaches the terminal: %q", line)
			}
		}
		golden(t, fmt.Sprintf("compare%d.txt", width), all.String())
	}
}

func TestRollbackPlanInWords(t *testing.T) {
	until := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	p := workflows.RollbackPlan{To: 1, Way: workflows.BySwitch, Current: 2, Steps: []string{"serve version 1"}, LagMS: 1500, Until: &until, Note: "it lacks some"}
	if got, want := rollbackPlanText("payments", &p), "payments: a rollback from version 2 to version 1 would\n  1. serve version 1\nversion 1 is 1.5s behind version 2\nit is ready until 2026-11-21 12:00:00\nit lacks some\n"; got != want {
		t.Errorf("%q", got)
	}
	p = workflows.RollbackPlan{To: 9, Refused: "version 9 is served already", LagMS: -1}
	if got, want := rollbackPlanText("payments", &p), "payments: a rollback to version 9 would be rejected: version 9 is served already\n"; got != want {
		t.Errorf("%q", got)
	}
}

// busy is a worker that cannot rebuild a workflow some times.
type busy struct {
	times int
	text  string
}

func (b *busy) QueryWorkflow(context.Context, string, string, string, ...any) (converter.EncodedValue, error) {
	if b.times--; b.times >= 0 {
		return nil, serviceerror.NewQueryFailed(b.text)
	}
	p, err := converter.GetDefaultDataConverter().ToPayloads("answer")
	return client.NewValue(p), err
}

func TestQueriesAreAskedAgain(t *testing.T) {
	const passing = "[TMPRL1100] invalid state transition: attempt to handleInitiatedEvent"
	for _, c := range []struct {
		b    busy
		want bool
	}{{busy{0, ""}, true}, {busy{queryTries - 1, passing}, true}, {busy{queryTries, passing}, false}, {busy{1, "unknown query"}, false}} {
		var got string
		if err := query(t.Context(), &c.b, "job/payments", "status", &got); (err == nil) != c.want || c.want && got != "answer" {
			t.Errorf("%+v: %q, %v", c.b, got, err)
		}
	}
}

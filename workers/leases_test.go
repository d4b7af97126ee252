package workers

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/objstore"
)

// describer knows which workflows run; of those that it does not list it has never heard.
type describer map[string]bool

func (d describer) DescribeWorkflowExecution(_ context.Context, id, _ string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	runs, ok := d[id]
	if !ok {
		return nil, serviceerror.NewNotFound("no such workflow")
	}
	status := enums.WORKFLOW_EXECUTION_STATUS_TERMINATED
	if runs {
		status = enums.WORKFLOW_EXECUTION_STATUS_RUNNING
	}
	return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflow.WorkflowExecutionInfo{Status: status}}, nil
}

func newLeases(t *testing.T, d describer) (*Leases, *time.Time) {
	t.Helper()
	objects, err := objstore.Folder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 3, 0, 0, 0, 0, time.UTC)
	return &Leases{Objects: objects, Describer: d, Now: func() time.Time { return now }}, &now
}

// ask asks for hours of a day, for an hour.
func ask(t *testing.T, l *Leases, job, workflow string, from, to int) activities.Held {
	t.Helper()
	day := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	h, err := l.Hold(t.Context(), activities.HoldInput{
		Job: job, Workflow: workflow, For: time.Hour,
		Range: activities.Range{From: day.Add(time.Duration(from) * time.Hour), To: day.Add(time.Duration(to) * time.Hour)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestLeasesExcludeOverlaps(t *testing.T) {
	running := describer{"a": true, "b": true, "c": true}
	l, now := newLeases(t, running)
	granted := func(job, workflow string, from, to int, want string) {
		t.Helper()
		if h := ask(t, l, job, workflow, from, to); h.Granted != (want == "") || h.By != want {
			t.Errorf("%s asks for %d to %d: %+v, want it refused by %q", workflow, from, to, h, want)
		}
	}
	granted("payments", "a", 2, 4, "")
	granted("payments", "a", 2, 4, "") // again
	granted("payments", "b", 4, 6, "") // they touch
	granted("payments", "c", 1, 3, "a")
	granted("payments", "c", 3, 5, "a")
	granted("payments", "c", 5, 9, "b")
	granted("payments", "c", 0, 2, "")
	granted("refunds", "c", 0, 9, "") // another job
	if h := ask(t, l, "payments", "c", 3, 4); h.Theirs.From.Hour() != 2 || h.Theirs.To.Hour() != 4 || !h.Until.Equal(now.Add(time.Hour)) {
		t.Errorf("the refusal says %+v", h)
	}
	for range 2 { // the second time there is nothing to release
		if err := l.Release(t.Context(), activities.ReleaseInput{Job: "payments", Workflow: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	granted("payments", "c", 2, 4, "")
	granted("payments", "a", 0, 2, "") // c has another range now
	running["c"] = false               // it was terminated
	granted("payments", "a", 2, 4, "")
	granted("payments", "unknown", 0, 3, "a")
	*now = now.Add(time.Hour)
	granted("payments", "unknown", 0, 9, "") // all are over
	granted("payments", "a", 0, 2, "")       // of "unknown" nobody knows
}

// TestLeasesOfManyAtOnce: of workflows that ask for one range at the same time one gets it.
func TestLeasesOfManyAtOnce(t *testing.T) {
	const askers = 8
	running := describer{}
	for i := range askers {
		running[fmt.Sprint(i)] = true
	}
	l, _ := newLeases(t, running)
	var mu sync.Mutex
	var winners []string
	refused := map[string]int{}
	var work sync.WaitGroup
	for i := range askers {
		work.Go(func() {
			h := ask(t, l, "payments", fmt.Sprint(i), 0, 3)
			mu.Lock()
			defer mu.Unlock()
			if h.Granted {
				winners = append(winners, fmt.Sprint(i))
			} else {
				refused[h.By]++
			}
		})
	}
	work.Wait()
	if len(winners) != 1 || refused[winners[0]] != askers-1 {
		t.Errorf("%v have it, refused by %v", winners, refused)
	}
}

func TestDamagedLeasesAreNotOverwritten(t *testing.T) {
	l, _ := newLeases(t, nil)
	if _, err := l.Objects.PutIfAbsent(t.Context(), "leases/payments.json", []byte("{"), "n"); err != nil {
		t.Fatal(err)
	}
	_, err := l.Hold(t.Context(), activities.HoldInput{Job: "payments", Workflow: "a"})
	if err == nil || Classify(err).Type != activities.User || !strings.Contains(err.Error(), "leases/payments.json is damaged") {
		t.Errorf("got %v", err)
	}
}

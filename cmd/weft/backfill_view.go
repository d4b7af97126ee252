package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/workflows"
)

// backfillView is a backfill as `show` and `watch` have it; its keys are a contract.
type backfillView struct {
	Workflow string `json:"workflow"`
	Status   string `json:"status"` // Temporal's: Running, Completed, Failed, …
	workflows.Progress
	Runs    []sliceRun                `json:"runs"` // what Temporal has been asked to do for it
	Result  *workflows.BackfillResult `json:"result,omitempty"`
	Failure string                    `json:"failure,omitempty"` // why it failed
	// Unanswered says why the progress is not there.
	Unanswered string `json:"unanswered,omitempty"`
}

// over tells whether it has ended.
func (v *backfillView) over() bool {
	return v.Status != enums.WORKFLOW_EXECUTION_STATUS_RUNNING.String()
}

// lookAtBackfill asks Temporal and the workflow. Temporal answers without any worker.
func lookAtBackfill(ctx context.Context, t client.Client, id string, page int) (v backfillView, err error) {
	v.Workflow = id
	r, err := t.DescribeWorkflowExecution(ctx, id, "")
	var none *serviceerror.NotFound
	if errors.As(err, &none) {
		return v, fmt.Errorf("there is no backfill %s (weft backfill list)", id)
	}
	if err != nil {
		return v, fmt.Errorf("describe %s: %w", id, err)
	}
	v.Status = r.GetWorkflowExecutionInfo().GetStatus().String()
	v.Runs = runsOf(r)
	limited, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	answer, err := t.QueryWorkflow(limited, id, "", workflows.QueryProgress, workflows.ProgressPage{Page: page})
	if err == nil {
		err = answer.Get(&v.Progress)
	}
	if ctx.Err() != nil {
		return v, ctx.Err()
	}
	if err != nil {
		v.Unanswered = "no control worker answers: " + err.Error()
		v.State = stateOf(r.GetWorkflowExecutionInfo()).Phase
	}
	if v.over() {
		// The run that is named by its id alone is the latest.
		if err := t.GetWorkflow(ctx, id, "").Get(ctx, &v.Result); err != nil {
			v.Result, v.Failure = nil, causeOf(err)
		}
	}
	return v, nil
}

// causeOf is the message of what failed, without what the SDK puts around it.
func causeOf(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		err = inner
	}
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return app.Message()
	}
	return err.Error()
}

func runsOf(r *workflowservice.DescribeWorkflowExecutionResponse) []sliceRun {
	list := []sliceRun{}
	for _, a := range r.GetPendingActivities() {
		s := sliceRun{Activity: a.GetActivityId(), Attempt: a.GetAttempt(), Failure: a.GetLastFailure().GetMessage()}
		if !strings.HasPrefix(s.Activity, "slice-") {
			s.Activity = a.GetActivityType().GetName()
		}
		s.State, s.Worker, s.Beat = pendingState(a)
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b sliceRun) int { return strings.Compare(a.Activity, b.Activity) })
	return list
}

// failureCells bounds what is shown of a failure, which may take several lines.
const failureCells = 1000

const (
	barCells  = 30 // of the bar of the progress
	viewNames = 10 // before each line
	// differencesShown is how many differences are shown; the report has more.
	differencesShown = 5
)

// draw shows how it gets on, without the slices.
func (v *backfillView) draw(s *screen) {
	line := func(name, format string, args ...any) { // whole: what is to be done often stands at its end
		for _, text := range s.folded(fmt.Sprintf(format, args...), viewNames, failureCells) {
			s.printf("%s%s\n", s.paint(faint, pad(name, viewNames, false)), text)
			name = ""
		}
	}
	s.printf("%s  %s\n", s.paint(bold, safe(v.Workflow, s.room(20))), s.paint(phaseStyle(v.State), safe(v.State, 20)))
	if v.Unanswered != "" {
		line("", "%s", v.Unanswered)
	} else {
		v.drawNumbers(s, line)
	}
	for _, w := range v.Warnings {
		line("warning", "%s", w)
	}
	if p := v.Error; p != nil && v.Failure == "" {
		line("error", "%s (%s, %s)", p.Message, p.Type, p.At.UTC().Format(time.DateTime))
	}
	if v.Failure != "" {
		line("failed", "%s", v.Failure)
	}
	switch id := strings.TrimPrefix(v.Workflow, "backfill/"); {
	case v.over():
	case v.State == workflows.NeedsAttention:
		line("to do", "mend what failed, then weft backfill retry %s; or weft backfill cancel %s", id, id)
	case v.State == workflows.Paused:
		line("to do", "weft backfill resume %s", id)
	}
	if n := v.Count; n > 0 {
		last := v.Rejected[len(v.Rejected)-1]
		line("rejected", "%s, the last %s: %s", count(n, "signal"), last.Signal, last.Reason)
	}
}

func (v *backfillView) drawNumbers(s *screen, line func(string, string, ...any)) {
	version := ""
	if v.Version > 0 {
		version = fmt.Sprintf(", version %d", v.Version)
	}
	line("range", "%s to %s%s", v.Range.From.UTC().Format(time.RFC3339), v.Range.To.UTC().Format(time.RFC3339), version)
	if v.Clipped != "" {
		line("clipped", "%s", v.Clipped)
	}
	if v.Total > 0 {
		full := v.Done * barCells / v.Total
		bar := s.paint(green, strings.Repeat("█", full)) + s.paint(faint, strings.Repeat("░", barCells-full))
		text := fmt.Sprintf("%d of %s", v.Done, count(v.Total, "slice"))
		if v.Progress.Running > 0 {
			text += fmt.Sprintf(", %d running", v.Progress.Running)
		}
		if v.Failed > 0 {
			text += fmt.Sprintf(", %d failed", v.Failed)
		}
		s.printf("%s%s %s\n", pad("", 10, false), bar, safe(text, s.room(11+barCells)))
		line("read", "%s records, %s MiB, %s/s", thousands(v.Rows), thousands(v.Bytes>>20), thousands(int64(v.Rate)))
		line("found", "%s sessions, %s rejects", thousands(v.Sessions), thousands(v.Rejects))
		if v.ETA > 0 && !v.over() {
			line("left", "about %s, at most %s at once", (time.Duration(v.ETA) * time.Second).String(), count(v.Parallelism, "slice"))
		}
	}
	if p := v.Published; p != nil {
		line("published", "%s new sessions, %s kept, from %s to %s", thousands(p.Sessions), thousands(p.Copied),
			p.From.UTC().Format(time.RFC3339), p.To.UTC().Format(time.RFC3339))
	}
	if c := v.Compared; c != nil {
		line("compared", "%s the same, %s changed, %s missing, %s extra", thousands(c.Same), thousands(c.Changed), thousands(c.Missing), thousands(c.Extra))
		for _, cause := range slices.Sorted(maps.Keys(c.Causes)) {
			line("", "%s of them: %s", thousands(c.Causes[cause]), causeText(cause))
		}
		for i, d := range c.First {
			if i == differencesShown {
				break
			}
			line(d.Kind, "%s", differenceText(&d))
		}
		line("report", "%s", c.Report)
	}
	if v.Repair != "" {
		line("repair", "%s", v.Repair)
	}
	if v.Rebuild != "" {
		line("rebuild", "%s", v.Rebuild)
	}
	if d := v.Verified; d != nil {
		line("digest", "%s of %s in the range", d.Digest, count(int(d.Sessions), "session"))
	}
}

// causeText explains why sessions differ.
func causeText(cause string) string {
	text, ok := map[string]string{
		"late":    "late: events came too late for the live job",
		"reject":  "reject: a record was rejected by one of both",
		"version": "version: another version is served",
		"unknown": "unknown: neither late events nor rejects nor another version explain it",
	}[cause]
	if !ok {
		return cause
	}
	return text
}

// differenceText describes one session that differs.
func differenceText(d *activities.Difference) string {
	ids := d.Served
	if len(ids) == 0 {
		ids = d.Staged
	}
	text := d.Start.UTC().Format(time.RFC3339) + "  " + strings.Join(ids, " ")
	if len(d.Fields) > 0 {
		text += ": " + strings.Join(d.Fields, ", ")
	}
	return text + " (" + strings.Join(d.Causes, ", ") + ")"
}

// drawSlices shows the page of slices.
func (v *backfillView) drawSlices(s *screen) {
	if len(v.Slices) == 0 {
		return
	}
	beats := map[string]*sliceRun{}
	for i := range v.Runs {
		beats[v.Runs[i].Activity] = &v.Runs[i]
	}
	t := table{columns: []column{
		{name: "SLICE"}, {name: "STATE"}, {name: "FROM", drop: 1}, {name: "RECORDS", right: true}, {name: "SESSIONS", right: true, drop: 2},
		{name: "SECONDS", right: true, drop: 3}, {name: "TRIES", right: true, drop: 4}}}
	number := func(n int64) string {
		if n == 0 {
			return ""
		}
		return thousands(n)
	}
	var failed []string
	for _, x := range v.Slices {
		how := plain
		switch x.State {
		case workflows.SliceDone:
			how = green
		case workflows.SliceFailed:
			how = red
		case workflows.SliceWaiting, workflows.SliceNotNeeded:
			how = faint
		}
		rows, tries, state, under := x.Rows, int64(x.Attempts), x.State, cell{}
		if r := beats[workflows.SliceActivityID(x.Chunk, x.Slice)]; r != nil && x.State == workflows.SliceRunning {
			state, tries = r.State, int64(r.Attempt)
			if r.Beat != nil {
				rows = r.Beat.Records
			}
			under = cell{r.Failure, amber}
		}
		if x.Error != "" {
			failed = append(failed, fmt.Sprintf("%d/%d: %s", x.Chunk, x.Slice, x.Error))
		}
		seconds := ""
		if x.Seconds > 0 {
			seconds = fmt.Sprintf("%.1f", x.Seconds)
		}
		t.add(cell{text: fmt.Sprintf("%d/%d", x.Chunk, x.Slice)}, cell{state, how}, cell{text: x.From}, cell{text: number(rows)},
			cell{text: number(x.Sessions)}, cell{text: seconds}, cell{text: number(tries)})
		t.under = append(t.under, under)
	}
	s.printf("\n")
	t.draw(s, 0)
	for _, text := range failed { // whole: what is to be done stands at its end
		s.printf("%s\n", s.paint(red, safe(text, failureCells)))
	}
	if v.Pages > 1 {
		s.printf("%s\n", s.paint(faint, fmt.Sprintf("page %d of %d: --page picks another", v.Page, v.Pages)))
	}
}

// busy keeps the slices that a person watches: those that run or have failed, whatever page they are on.
func (v *backfillView) busy(most int) {
	list := v.Failures
	for _, r := range v.Runs {
		var chunk, slice int
		if _, err := fmt.Sscanf(r.Activity, "slice-%d-%d", &chunk, &slice); err != nil {
			continue
		}
		list = append(list, workflows.SliceState{Chunk: chunk, Slice: slice, State: workflows.SliceRunning})
	}
	v.Slices, v.Pages = list[:min(len(list), most)], 0
}

// watchEvery is how often a view is drawn.
const watchEvery = time.Second

// watchBackfill shows a backfill until it has ended. On a terminal the view is drawn over itself; elsewhere a line is
// written whenever something has changed.
func watchBackfill(ctx context.Context, t client.Client, w io.Writer, id string, asJSON bool) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var before string
	drawn := 0
	for {
		v, err := lookAtBackfill(ctx, t, id, 0)
		if err != nil {
			return err
		}
		s := newScreen(w)
		terminal := s.height > 0
		switch {
		case asJSON && v.over():
			err = json.NewEncoder(w).Encode(v)
		case asJSON:
		case terminal:
			v.draw(s)
			most := s.height - strings.Count(s.String(), "\n") - 4
			if v.busy(max(most, 1)); !v.over() {
				v.drawSlices(s)
			}
			text := s.String()
			_, err = io.WriteString(w, rise(drawn)+text)
			drawn = strings.Count(text, "\n")
		default:
			text := v.State + "\n"
			if v.Total > 0 {
				text = fmt.Sprintf("%s: %d of %d slices, %d failed, %s records, %s sessions\n", v.State, v.Done, v.Total, v.Failed, thousands(v.Rows), thousands(v.Sessions))
			}
			if text != before {
				_, err = io.WriteString(w, text)
				before = text
			}
			if err == nil && v.over() {
				v.draw(s)
				_, err = io.WriteString(w, s.String())
			}
		}
		if err != nil {
			return err
		}
		if v.over() {
			if v.Result == nil || v.Result.Outcome == workflows.Canceled {
				return &exitError{code: exitFailed}
			}
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// rise moves the cursor up over lines and clears them.
func rise(lines int) string {
	if lines == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\x1b[J", lines)
}

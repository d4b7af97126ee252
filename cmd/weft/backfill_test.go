package main

import (
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/workflows"
)

func TestBackfillUsage(t *testing.T) {
	for _, name := range []string{"WEFT_TEMPORAL", "WEFT_KAFKA", "WEFT_S3", "WEFT_STORE", "WEFT_STACK_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for _, c := range []struct {
		args string
		code int
		want string // in what it prints
	}{
		{"backfill", 0, "weft backfill start payments"},
		{"backfill stat", exitUsage, `did you mean "start"?`},
		{"backfill start", exitUsage, "the name of one job"},
		{"backfill start payments", exitUsage, `from is "": expected a time`},
		{"backfill start payments --from 2026-11-01 --to 2026-11-01", exitUsage, "is empty"},
		{"backfill start payments --window 24h --to 2026-11-01", exitUsage, "exclude window"},
		{"backfill start payments --window 24h --mode serve", exitUsage, "publish, dry_run or compare"},
		{"backfill start payments --window 24h --share 1", exitUsage, "share 1"},
		{"backfill start payments --from 2026-11-01 --to 2026-11-02", exitFailed, "weft-dev up"},
		{"backfill reconcile payments --day monday", exitUsage, `day "monday"`},
		{"backfill reconcile payments --day 2026-11-01 --window 24h", exitUsage, "day excludes"},
		{"backfill show", exitUsage, "the id of one backfill"},
		{"backfill show x --page -1", exitUsage, "--page -1"},
		{"backfill list --job a'b", exitUsage, "no name of a job"},
		{"backfill pause a b", exitUsage, "the id of one backfill"},
		{"backfill set-parallelism x", exitUsage, "and a number"},
		{"backfill set-parallelism x 0", exitUsage, "a number from 1 on"},
		{"backfill cancel x", exitFailed, "weft-dev up"},
		{"schedule create payments", exitUsage, "--window is missing"},
		{"schedule create payments --window 24h", exitUsage, "either --cron or --every"},
		{"schedule create payments --window 24h --cron x --every 1h", exitUsage, "either --cron or --every"},
		{"schedule create payments --window 24h --every 1h --offset 2h", exitUsage, "less than it"},
		{"schedule create payments --window 24h --every 1h --zone Mars", exitUsage, `"Mars"`},
		{"schedule create payments --window 24h --every 1h --kind audit", exitUsage, `"audit": expected reconcile or backfill`},
		{"schedule create payments --window 24h --every 1h --kind backfill --repair", exitUsage, "--repair is for"},
		{"schedule create payments --window 24h --every 1h --mode compare", exitUsage, "--mode is for"},
		{"schedule create payments --window 24h --every 1h --request-id r", exitUsage, "leave it out"},
		{"schedule create payments --window 24h --every 1h", exitFailed, "weft-dev up"},
		{"schedule delete", exitUsage, "the id of one schedule"},
	} {
		var out strings.Builder
		if code := run(t.Context(), strings.Fields(c.args), strings.NewReader(""), &out, &out); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("weft %s: exit code %d, %s; want %d, %q", c.args, code, out.String(), c.code, c.want)
		}
	}
}

func TestBackfillIDs(t *testing.T) {
	for text, want := range map[string]string{
		"payments/20261101T000000Z_20261102T000000Z": "backfill/payments/20261101T000000Z_20261102T000000Z",
		"payments/2026-11-01":                        "reconcile/payments/2026-11-01",
		"backfill/payments/x":                        "backfill/payments/x",
		"reconcile/payments/x":                       "reconcile/payments/x",
	} {
		if got := backfillID(text); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

// TestBackfillView draws one that has trouble, with texts from outside that would steer a terminal.
func TestBackfillView(t *testing.T) {
	at := time.Date(2026, 11, 2, 3, 4, 5, 0, time.UTC)
	v := backfillView{
		Workflow: "backfill/payments/x", Status: "Running",
		Progress: workflows.Progress{
			State: workflows.NeedsAttention, Version: 3, Range: activities.Range{From: at.Add(-24 * time.Hour), To: at}, Clipped: "a part\x1b[2J",
			Total: 4, Done: 2, Failed: 1, Running: 1, Rows: 1_234_567, Sessions: 890, Rejects: 7, Bytes: 5 << 20, Rate: 1000, ETA: 90, Parallelism: 2, Pages: 2,
			Slices: []workflows.SliceState{
				{Chunk: 0, Slice: 0, State: workflows.SliceDone, Attempts: 1, From: "2026-11-01T03:04:05Z", Rows: 1000, Sessions: 80, Seconds: 1.5},
				{Chunk: 0, Slice: 1, State: workflows.SliceFailed, Attempts: 5, Error: "no room\x1b[31m " + strings.Repeat("in the bucket ", 20) + "(make some)"},
				{Chunk: 1, Slice: 0, State: workflows.SliceRunning},
				{Chunk: 1, Slice: 1, State: workflows.SliceWaiting},
			},
			Rejections: workflows.Rejections{Count: 1, Rejected: []workflows.Rejected{{Signal: "pauze", Reason: "no such signal"}}},
		},
		Runs: []sliceRun{{Activity: "slice-1-0", State: "backing_off", Attempt: 3, Beat: &activities.Beat{Records: 4321}, Failure: "the store is away"}},
	}
	s := &screen{width: 100}
	v.draw(s)
	v.drawSlices(s)
	text := s.String()
	for _, want := range []string{
		"backfill/payments/x  needs_attention\n", "2026-11-01T03:04:05Z to 2026-11-02T03:04:05Z, version 3", `a part\x1b[2J`,
		"2 of 4 slices, 1 running, 1 failed", "1,234,567 records, 5 MiB, 1,000/s", "890 sessions, 7 rejects", "about 1m30s, at most 2 slices at once", "weft backfill retry payments/x; or weft backfill cancel payments/x",
		"1 signal, the last pauze: no such signal", "4,321", "backing_off", "the store is away", `0/1: no room\x1b[31m`, "(make some)\n", "page 0 of 2",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %q:\n%s", want, text)
		}
	}
	if strings.ContainsRune(text, '\x1b') {
		t.Errorf("it steers the terminal: %q", text)
	}
	v.Failure = "nothing is left: " + strings.Repeat("the end is moved ", 20) + "choose another range"
	v.Compared = &activities.BackfillCompared{Report: "reconcile/x.json", Same: 7, Changed: 1, Missing: 1, Causes: map[string]int64{"late": 2, "version": 1},
		First: []activities.Difference{{Kind: "changed", Start: at, Served: []string{"01A"}, Staged: []string{"01B"}, Fields: []string{"events", "end\x1b[2J"}, Causes: []string{"late", "version"}}}}
	s = &screen{width: 60}
	v.draw(s)
	for text := range strings.Lines(s.String()) {
		if textWidth(strings.TrimSuffix(text, "\n")) > 60 {
			t.Errorf("a line is too long: %q", text)
		}
	}
	text = strings.Join(strings.Fields(s.String()), " ")
	for _, want := range []string{"failed nothing is left", "choose another range", "2 of them: late: events came too late", "1 of them: version: another",
		`changed 2026-11-02T03:04:05Z 01A: events, end\x1b[2J (late, version)`, "report reconcile/x.json"} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %q:\n%s", want, s.String())
		}
	}
	v.Failures = v.Slices[1:2]
	if v.busy(10); len(v.Slices) != 2 || v.Slices[0].State != workflows.SliceFailed || v.Slices[1].Chunk != 1 {
		t.Errorf("a person watches %+v", v.Slices)
	}
}

// Text is folded at spaces; a word that has no room is broken.
func TestFolded(t *testing.T) {
	for _, c := range []struct {
		width int
		text  string
		want  string
	}{
		{20, "one two three four five", "one two|three four|five"},
		{20, "onetwothreefour five", "onetwothre|efour five"},
		{20, "", ""},
		{20, "支付成功 支付成功", "支付成功|支付成功"},
		{0, "one two three four five", "one two three four five"},
	} {
		s := &screen{width: c.width}
		if got := strings.Join(s.folded(c.text, 10, 1000), "|"); got != c.want {
			t.Errorf("%q is folded to %q, want %q", c.text, got, c.want)
		}
	}
	s := &screen{width: 20}
	if got := s.folded("one two three", 10, 6); len(got) != 1 || got[0] != "one t…" {
		t.Errorf("cut off it is %q", got)
	}
}

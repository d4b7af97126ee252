package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// Limits of a list of sessions.
const (
	listRowsDefault = 20
	listRowsMax     = 10_000
)

type sessionsFlags struct {
	queryFlags
	user, key, scenario    string
	open, decided, pending bool
	limit                  int
	after                  string
}

func newSessionsCommand() *cobra.Command {
	var f sessionsFlags
	c := &cobra.Command{
		Use:   "sessions [ID]",
		Short: "Show sessions: one with its timeline, or a list",
		Long: "Show the sessions that a job serves, newest first, or one with its whole timeline.\n\n" +
			"A scenario whose moment is not past the watermark is pending: it may still turn out otherwise. --open lists the\n" +
			"sessions in which more may happen.\n\n" +
			"With --json each session is an object with the keys of a replay's sessions.jsonl and open, pending (names of\n" +
			"scenarios), generation and shard. Where there is more, the last line is {\"next\": CURSOR}, for --after.",
		Example: "  weft sessions --scenario paid_not_delivered --decided --last 1h\n" +
			"  weft sessions --key order=20260301-1177 --json\n" +
			"  weft sessions 06DZ1V3TQG5M8X0Y2KQ9R4C7WB\n" +
			"  weft sessions --open --watch",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args) },
	}
	f.add(c, "sessions that start")
	c.Flags().StringVar(&f.user, "user", "", "sessions of this user")
	c.Flags().StringVar(&f.key, "key", "", "sessions with this link key, as KIND=VALUE")
	c.Flags().StringVar(&f.scenario, "scenario", "", "sessions for which this scenario holds")
	c.Flags().BoolVar(&f.decided, "decided", false, "with --scenario: only where it is decided")
	c.Flags().BoolVar(&f.pending, "pending", false, "with --scenario: only where it is not decided yet")
	c.Flags().BoolVar(&f.open, "open", false, "only sessions in which more may happen")
	c.Flags().IntVar(&f.limit, "limit", listRowsDefault, fmt.Sprintf("most sessions to list, up to %d", listRowsMax))
	c.Flags().StringVar(&f.after, "after", "", "go on behind a list that was longer than its limit")
	c.MarkFlagsMutuallyExclusive("decided", "pending")
	f.complete(c, "scenario", func(ctx context.Context, r *reader) ([]string, error) { return r.Scenarios(ctx, r.scope) })
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

func (f *sessionsFlags) run(c *cobra.Command, args []string) error {
	if len(args) == 1 {
		return f.runOne(c, args[0])
	}
	q, err := f.query(c)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	return f.queryFlags.run(c, func(ctx context.Context, r *reader) (*answer, error) {
		return f.list(ctx, r, q)
	})
}

// query reads what is asked for.
func (f *sessionsFlags) query(c *cobra.Command) (q store.SessionQuery, err error) {
	var errs []error
	q.Scenario, q.Open, q.After = f.scenario, f.open, store.Cursor(f.after)
	if q.From, q.To, err = f.span(); err != nil {
		errs = append(errs, err)
	}
	if c.Flags().Changed("user") {
		q.User = []byte(f.user)
	}
	if c.Flags().Changed("key") {
		kind, value, ok := strings.Cut(f.key, "=")
		if !ok || kind == "" {
			errs = append(errs, fmt.Errorf("--key %q: expected KIND=VALUE, such as order=1177", f.key))
		}
		q.Key = &store.Key{Kind: kind, Value: []byte(value)}
	}
	switch {
	case (f.decided || f.pending) && f.scenario == "":
		errs = append(errs, errors.New("--decided and --pending say more about a --scenario: name one"))
	case f.decided:
		q.Decision = store.Decided
	case f.pending:
		q.Decision = store.Pending
	}
	if f.limit < 1 || f.limit > listRowsMax {
		errs = append(errs, fmt.Errorf("--limit %d: expected 1 to %d", f.limit, listRowsMax))
	}
	return q, errors.Join(errs...)
}

// sessions reads up to so many sessions.
func sessions(ctx context.Context, r *reader, q store.SessionQuery, limit int) (rows []*session, next store.Cursor, err error) {
	q.Scope, next = r.scope, q.After
	for {
		q.Limit, q.After = min(limit-len(rows), store.PageRowsMax), next
		page, err := r.Sessions(ctx, q)
		if err != nil {
			return nil, "", err
		}
		r.canary = page.Canary
		for i := range page.Items {
			s, err := decodeSession(&page.Items[i])
			if err != nil {
				return nil, "", err
			}
			rows = append(rows, s)
		}
		if next = page.Next; next == "" || len(rows) >= limit {
			return rows, next, nil
		}
	}
}

func (f *sessionsFlags) list(ctx context.Context, r *reader, q store.SessionQuery) (*answer, error) {
	rows, next, err := sessions(ctx, r, q, f.limit)
	if err != nil {
		return nil, err
	}
	head, err := r.heading(ctx)
	if err != nil {
		return nil, err
	}
	a := &answer{draw: func(s *screen) {
		s.printf("%s\n", s.paint(faint, head))
		if len(rows) == 0 {
			s.printf("no sessions\n")
			return
		}
		drawSessions(s, rows, f.user == "")
		if next != "" {
			s.printf("there are more: --after %s\n", next)
		}
	}}
	for _, x := range rows {
		a.lines = append(a.lines, jsonLine{x.ID, x.json()})
	}
	if next != "" && f.json && !f.watch {
		return a, a.line("", map[string]any{"next": next})
	}
	return a, nil
}

// wideList is the width from which a session takes one line instead of two.
const wideList = 120

// drawSessions lists sessions.
func drawSessions(s *screen, rows []*session, users bool) {
	t := &table{columns: []column{{name: "SESSION"}, {name: "START"}, {name: "LASTS", right: true}, {name: "STATE", drop: 1},
		{name: "EVENTS", right: true, drop: 2}}}
	wide := s.width == 0 || s.width >= wideList
	if wide {
		t.columns = append(t.columns, column{name: "SCENARIOS", least: 18}, column{name: "KEYS", least: 16, drop: 3})
		if users {
			t.columns = slices.Insert(t.columns, 5, column{name: "USER", least: 8, drop: 4})
		}
	}
	for _, x := range rows {
		state, how := "closed", faint
		if x.row.Open() {
			state, how = "open", green
		}
		row := []cell{{x.ID, plain}, {moment(x.row.Start), plain}, {lasting(x.row.End - x.row.Start), plain}, {state, how}, {thousands(x.row.Events), plain}}
		scenarios, keys, user := x.scenarioCell(), x.keyText(), ""
		if users && x.User != "" {
			user = safe(x.User, cellWidthMax)
		}
		if wide {
			if users {
				row = append(row, cell{user, plain})
			}
			t.add(append(row, scenarios, cell{keys, plain})...)
			continue
		}
		if user != "" {
			user = "user " + safe(user, s.width/4)
		}
		t.add(row...)
		t.under = append(t.under, cell{strings.Join(slices.DeleteFunc([]string{scenarios.text, user, keys}, func(part string) bool { return part == "" }), "  "), scenarios.how})
	}
	t.draw(s, 0)
}

func (f *sessionsFlags) runOne(c *cobra.Command, text string) error {
	for _, flag := range []string{"user", "key", "scenario", "decided", "pending", "open", "limit", "after", "from", "to", "last"} {
		if c.Flags().Changed(flag) {
			return &exitError{exitUsage, fmt.Errorf("--%s is for lists: it means nothing with a session's id", flag)}
		}
	}
	id, err := correlate.ParseID(text)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	return f.queryFlags.run(c, func(ctx context.Context, r *reader) (*answer, error) {
		row, err := r.Session(ctx, r.scope, id)
		if errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("job %s has no session %s: it may have been merged into another since; look for one of its keys with --key", r.scope.Job, id)
		}
		if err != nil {
			return nil, err
		}
		x, err := decodeSession(&row)
		if err != nil {
			return nil, err
		}
		return &answer{[]jsonLine{{x.ID, x.json()}}, x.draw}, nil
	})
}

// session is a session with its body, whose keys are those of sessions.jsonl.
type session struct {
	row *store.Row

	ID        string
	Keys      map[string][]string
	Fields    map[string]any // string or json.Number
	User      string
	Scenarios []string
	Decided   map[string]time.Time
	Events    []sessionEvent
	Truncated bool
}

type sessionEvent struct {
	Source, Topic, Step string
	Partition           int32
	Offset              int64
	Index               int
	Time                time.Time
}

func decodeSession(row *store.Row) (*session, error) {
	x := &session{row: row}
	d := json.NewDecoder(bytes.NewReader(row.Body))
	d.UseNumber()
	if err := d.Decode(x); err != nil {
		return nil, fmt.Errorf("session %s of generation %d is damaged: %w", row.ID, row.Generation, err)
	}
	return x, nil
}

// isPending tells whether a scenario of the session may still turn out otherwise.
func (x *session) isPending(scenario string) bool {
	return event.Micros(x.Decided[scenario].UnixMicro()) > x.row.Watermark
}

// json is the session's body with what only the store knows.
func (x *session) json() []byte {
	pending := []string{}
	for _, name := range x.Scenarios {
		if x.isPending(name) {
			pending = append(pending, name)
		}
	}
	more, _ := json.Marshal(map[string]any{"open": x.row.Open(), "pending": pending, "generation": x.row.Generation, "shard": x.row.Shard}) // of plain values
	body := bytes.TrimRight(x.row.Body, " \n")
	return slices.Concat(bytes.TrimSuffix(body, []byte("}")), []byte(","), more[1:])
}

// scenarioCell lists the scenarios of a line, the pending ones last and marked.
func (x *session) scenarioCell() cell {
	var decided, pending []string
	for _, name := range x.Scenarios {
		if x.isPending(name) {
			pending = append(pending, name+"?")
		} else {
			decided = append(decided, name)
		}
	}
	how := plain
	switch {
	case len(decided) > 0:
		how = red
	case len(pending) > 0:
		how = amber
	}
	return cell{safe(strings.Join(append(decided, pending...), " "), cellWidthMax), how}
}

// valueTextMax is how much of a key or field is shown: an identifier is shorter.
const valueTextMax = 100

func (x *session) keyText() string {
	var list []string
	for _, kind := range slices.Sorted(maps.Keys(x.Keys)) {
		for _, value := range x.Keys[kind] {
			list = append(list, kind+"="+safe(value, valueTextMax))
		}
	}
	return strings.Join(list, " ")
}

// draw shows all that is known of the session.
func (x *session) draw(s *screen) {
	state := s.paint(faint, "closed")
	if x.row.Open() {
		state = s.paint(green, "open")
	}
	s.printf("%s  %s, %s\n\n", s.paint(bold, x.ID), state, seen(x.row.Watermark))
	line := func(name, text string) { s.printf("  %-10s%s\n", name, text) }
	line("start", moments(x.row.Start))
	line("end", fmt.Sprintf("%s  (%s, %s)", moments(x.row.End), lasting(x.row.End-x.row.Start), count(int(x.row.Events), "event")))
	line("output", fmt.Sprintf("generation %d, shard %d", x.row.Generation, x.row.Shard))
	if x.User != "" {
		line("user", safe(x.User, s.room(12)))
	}
	x.drawPairs(s)
	x.drawScenarios(s)
	x.drawTimeline(s)
}

func (x *session) drawPairs(s *screen) {
	name := "keys"
	for _, kind := range slices.Sorted(maps.Keys(x.Keys)) {
		for _, value := range x.Keys[kind] {
			s.printf("  %-10s%s\n", name, safe(kind, 40)+" "+safe(value, s.room(14+len(kind))))
			name = ""
		}
	}
	name = "fields"
	for _, field := range slices.Sorted(maps.Keys(x.Fields)) {
		s.printf("  %-10s%s\n", name, safe(field, 40)+" "+safe(fmt.Sprint(x.Fields[field]), s.room(14+len(field))))
		name = ""
	}
}

func (x *session) drawScenarios(s *screen) {
	if len(x.Scenarios) == 0 {
		return
	}
	t := &table{columns: []column{{name: "SCENARIO", least: 22}, {name: "DECIDED AT"}, {name: ""}}}
	for _, name := range x.Scenarios {
		how, note := red, ""
		if x.isPending(name) {
			how, note = amber, "not yet"
		}
		t.add(cell{safe(name, cellWidthMax), how}, cell{moment(event.Micros(x.Decided[name].UnixMicro())), plain}, cell{note, how})
	}
	s.printf("\n")
	t.draw(s, 2)
}

// Widths below which the records' places give way to sources and steps.
const (
	laneLeast = 12
	stepLeast = 18
)

// drawTimeline shows the events in a lane for each source: with the steps in the lanes where there is room, else with marks.
func (x *session) drawTimeline(s *screen) {
	if len(x.Events) == 0 {
		return
	}
	var lanes []string // in order of their first event
	day := false
	for _, e := range x.Events {
		if !slices.Contains(lanes, e.Source) {
			lanes = append(lanes, e.Source)
		}
		day = day || e.Time.UTC().YearDay() != x.Events[0].Time.UTC().YearDay()
	}
	layout := "15:04:05.000"
	if day {
		layout = "01-02 15:04:05.000"
	}
	t := &table{columns: []column{{name: "TIME"}, {name: "OFFSET", right: true}}}
	wide := len(layout) + 12
	for _, lane := range lanes {
		width := textWidth(safe(lane, cellWidthMax))
		for _, e := range x.Events {
			if e.Source == lane {
				width = max(width, textWidth(safe(e.Step, cellWidthMax)))
			}
		}
		wide += width + columnGap
	}
	inLanes := s.width > 0 && wide <= s.width
	for _, lane := range lanes {
		if inLanes {
			t.columns = append(t.columns, column{name: safe(lane, cellWidthMax)})
		}
	}
	if !inLanes {
		t.columns = append(t.columns, column{name: strings.Repeat(" ", len(lanes))}, column{name: "SOURCE", least: laneLeast},
			column{name: "STEP", least: stepLeast}, column{name: "RECORD", drop: 1})
	}
	first := x.Events[0].Time
	for _, e := range x.Events {
		row := []cell{{e.Time.UTC().Format(layout), plain}, {"+" + lasting(event.Micros(e.Time.Sub(first).Microseconds())), faint}}
		at := slices.Index(lanes, e.Source)
		step := cell{safe(e.Step, cellWidthMax), bold}
		if inLanes {
			for i := range lanes {
				row = append(row, cell{"·", faint})
				if i == at {
					row[len(row)-1] = step
				}
			}
		} else {
			marks := strings.Repeat("·", at) + "●" + strings.Repeat("·", len(lanes)-at-1)
			row = append(row, cell{marks, plain}, cell{safe(e.Source, cellWidthMax), plain}, step,
				cell{safe(fmt.Sprintf("%s/%d/%d", e.Topic, e.Partition, e.Offset), cellWidthMax), faint})
		}
		t.rows = append(t.rows, row)
	}
	s.printf("\n")
	t.draw(s, 2)
	if x.Truncated {
		s.printf("  %s more are counted and not kept: see limits.timeline_events of the spec\n", thousands(x.row.Events-int64(len(x.Events))))
	}
}

// scenarioNames are the scenarios of several sessions, the most frequent first.
func scenarioNames(counts map[string]int64) []string {
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
}

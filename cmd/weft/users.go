package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/store"
)

// userSessionsMax bounds what is added up of one user: whoever has more is no person.
const userSessionsMax = 100_000

type usersFlags struct {
	queryFlags
	limit int
}

func newUsersCommand() *cobra.Command {
	var f usersFlags
	c := &cobra.Command{
		Use:   "users USER",
		Short: "Show one user: totals and all sessions, newest first",
		Long: "Show what one user did: how many sessions, how many of them each scenario holds for, the sums of their integer\n" +
			"fields (amounts are in minor units), and the sessions themselves, newest first.\n\n" +
			"With --json the first object is {user, sessions, open, truncated, scenarios: {NAME: {sessions, pending, sums}}, none: {…},\n" +
			"sums: {FIELD: SUM}, canary}; canary is there where a candidate answers for the user: {generation, from, weight}; truncated says that the totals are those of the newest sessions alone. The objects of the sessions\n" +
			"follow, as `weft sessions --json` has them.",
		Example: "  weft users u0001177\n" +
			"  weft users u0001177 --last 30d --json\n" +
			"  weft users u0001177 --watch",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	f.add(c, "sessions that start")
	c.Flags().IntVar(&f.limit, "limit", listRowsDefault, fmt.Sprintf("most sessions to list, up to %d", listRowsMax))
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

// totals are counts of sessions and sums of their integer fields.
type totals struct {
	Sessions int64            `json:"sessions"`
	Pending  int64            `json:"pending"`
	Sums     map[string]int64 `json:"sums"`
}

func (t *totals) add(x *session, pending bool) {
	t.Sessions++
	if pending {
		t.Pending++
	}
	if t.Sums == nil {
		t.Sums = map[string]int64{}
	}
	for name, value := range x.Fields {
		if n, ok := value.(json.Number); ok {
			i, _ := n.Int64() // the engine writes nothing else
			t.Sums[name] += i
		}
	}
}

// userTotals is what all sessions of a user come to.
type userTotals struct {
	User      string             `json:"user"`
	Sessions  int64              `json:"sessions"`
	Open      int64              `json:"open"`
	Truncated bool               `json:"truncated"` // only the newest userSessionsMax are counted
	Scenarios map[string]*totals `json:"scenarios"`
	None      totals             `json:"none"`
	Sums      map[string]int64   `json:"sums"`
	Canary    *store.Canary      `json:"canary,omitempty"` // that answers for the user

	all totals
}

func (u *userTotals) add(x *session) {
	u.all.add(x, false)
	if x.row.Open() {
		u.Open++
	}
	if len(x.Scenarios) == 0 {
		u.None.add(x, false)
	}
	for _, name := range x.Scenarios {
		if u.Scenarios[name] == nil {
			u.Scenarios[name] = &totals{}
		}
		u.Scenarios[name].add(x, x.isPending(name))
	}
	u.Sessions, u.Sums = u.all.Sessions, u.all.Sums
}

func (f *usersFlags) run(c *cobra.Command, user string) error {
	from, to, err := f.span()
	if f.limit < 0 || f.limit > listRowsMax {
		err = errors.Join(err, fmt.Errorf("--limit %d: expected 0 to %d", f.limit, listRowsMax))
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	return f.queryFlags.run(c, func(ctx context.Context, r *reader) (*answer, error) {
		return f.ask(ctx, r, store.SessionQuery{User: []byte(user), From: from, To: to})
	})
}

func (f *usersFlags) ask(ctx context.Context, r *reader, q store.SessionQuery) (*answer, error) {
	u := &userTotals{User: string(q.User), Scenarios: map[string]*totals{}, None: totals{Sums: map[string]int64{}}, Sums: map[string]int64{}}
	var shown []*session
	for {
		rows, next, err := sessions(ctx, r, q, store.PageRowsMax)
		if err != nil {
			return nil, err
		}
		for _, x := range rows {
			u.add(x)
			if len(shown) < f.limit {
				shown = append(shown, x)
			}
		}
		if q.After = next; next == "" {
			break
		}
		if u.Truncated = u.Sessions >= userSessionsMax; u.Truncated {
			break
		}
	}
	head, err := r.heading(ctx)
	if err != nil {
		return nil, err
	}
	u.Canary = r.canary
	a := &answer{draw: func(s *screen) {
		s.printf("%s\n", s.paint(faint, head))
		u.draw(s, shown)
	}}
	if err := a.line("", u); err != nil {
		return nil, err
	}
	for _, x := range shown {
		a.lines = append(a.lines, jsonLine{x.ID, x.json()})
	}
	return a, nil
}

func (u *userTotals) draw(s *screen, shown []*session) {
	s.printf("user %s: %s, %s open\n", s.paint(bold, safe(u.User, s.room(40))), count(int(u.Sessions), "session"), thousands(u.Open))
	if u.Truncated {
		s.printf("NOTE: only the newest %s are added up: narrow with --from or --last\n", thousands(u.Sessions))
	}
	if u.Sessions == 0 {
		return
	}
	u.drawTotals(s)
	s.printf("\n")
	drawSessions(s, shown, false)
	if rest := u.Sessions - int64(len(shown)); rest > 0 && len(shown) > 0 {
		s.printf("%s older ones are not listed: raise --limit\n", thousands(rest))
	}
}

func (u *userTotals) drawTotals(s *screen) {
	sums := slices.Sorted(maps.Keys(u.Sums))
	t := &table{columns: []column{{name: "SCENARIO", least: 22}, {name: "SESSIONS", right: true}, {name: "PENDING", right: true}}}
	for i, name := range sums {
		t.columns = append(t.columns, column{name: safe(name, cellWidthMax), right: true, drop: i + 1})
	}
	add := func(name string, how style, part *totals) {
		row := []cell{{safe(name, cellWidthMax), how}, {thousands(part.Sessions), plain}, {thousands(part.Pending), plain}}
		for _, field := range sums {
			row = append(row, cell{thousands(part.Sums[field]), plain})
		}
		t.rows = append(t.rows, row)
	}
	counts := map[string]int64{}
	for name, part := range u.Scenarios {
		counts[name] = part.Sessions
	}
	for _, name := range scenarioNames(counts) {
		add(name, red, u.Scenarios[name])
	}
	add("(none)", plain, &u.None)
	add("all", bold, &u.all)
	s.printf("\n")
	t.draw(s, 0)
}

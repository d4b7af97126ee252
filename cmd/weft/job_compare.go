package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

func newJobCompareCommand() *cobra.Command {
	var at stack.Addresses
	var version int
	var asJSON bool
	c := &cobra.Command{
		Use:   "compare JOB [SESSION]",
		Short: "Show the sessions in which a candidate differs from the served version, one of them side by side",
		Long: "List the sessions that the last comparison of a candidate found to differ, the newest first, or show one of them as each\n" +
			"version had it: keys, fields, scenarios and the timeline, with what differs marked. It is the candidate that is rolled out,\n" +
			"or else the one that failed last; --version names another one, and needs no control worker.\n\n" +
			"A comparison keeps a hundred sessions, as they were then. With --json each is one object: id, start, what,\n" +
			"current_scenarios, candidate_scenarios, current_session and candidate_session.",
		Example: "  weft job compare payments\n  weft job compare payments 06DZ1V3TQG5M8X0Y2KQ9R4C7WB\n  weft job compare payments --version 7 --json | jq .what",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				_, err := correlate.ParseID(args[1])
				return errors.Join(jobArgument(c, args[:1]), err)
			}
			return jobArgument(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if version < 0 {
				return &exitError{exitUsage, errors.New("--version is the number of a version: 1 or more")}
			}
			d, err := differencesOf(c, at, args[0], version)
			if err != nil {
				return err
			}
			list := d.Sessions
			if len(args) == 2 {
				id, err := correlate.ParseID(args[1])
				if err != nil {
					return &exitError{exitUsage, err}
				}
				i := slices.IndexFunc(list, func(x workers.Difference) bool { return x.ID == id.String() })
				if i < 0 {
					return fmt.Errorf("session %s is not among the %d that the comparison of version %d kept (weft job compare %s)", id, len(list), d.Candidate, args[0])
				}
				list = list[i : i+1]
			}
			if asJSON {
				return printLines(c.OutOrStdout(), list)
			}
			s := newScreen(c.OutOrStdout())
			if len(args) == 2 {
				err = drawBoth(s, &d, &list[0])
			} else {
				drawDifferences(s, &d)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(c.OutOrStdout(), s.String())
			return err
		},
	}
	c.Flags().IntVar(&version, "version", 0, "a version that was a candidate (default the one that is, or that failed last)")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	c.Flags().StringVar(&at.S3, "s3", "", "object store, as http://host:port (default $WEFT_S3, or the running stack's)")
	temporalFlags(c, &at)
	return c
}

// differencesOf reads what the last comparison of a version kept; version 0 is the candidate, or the last one that failed.
func differencesOf(c *cobra.Command, at stack.Addresses, job string, version int) (d workers.Differences, err error) {
	if version == 0 {
		err := asTemporal(c, at, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
			var s workflows.JobStatus
			if err := jobAnswer(ctx, t, job, workflows.QueryStatus, &s); err != nil {
				return err
			}
			switch {
			case s.Candidate != nil:
				version = s.Candidate.Version
			case s.Failed != nil:
				version = s.Failed.Version
			default:
				return fmt.Errorf("%s has no candidate, and none has failed: name a version with --version", job)
			}
			return nil
		})
		if err != nil {
			return d, err
		}
	}
	env, err := openObjects(c.Context(), at)
	if err != nil {
		return d, err
	}
	defer func() { _ = env.Close() }() // only read
	key, err := workers.FindDifferences(c.Context(), env.Objects, job, version)
	if err != nil {
		return d, err
	}
	if key == "" {
		return d, fmt.Errorf("no comparison of version %d of %s has found a session that differs", version, job)
	}
	return workers.ReadDifferences(c.Context(), env.Objects, key)
}

// partsText says what differs, for a person.
func partsText(what []string, d *workers.Differences) string {
	switch {
	case slices.Contains(what, workers.OnlyCurrent):
		return fmt.Sprintf("only in version %d", d.Current)
	case slices.Contains(what, workers.OnlyCandidate):
		return fmt.Sprintf("only in version %d", d.Candidate)
	}
	return safe(strings.Join(slices.DeleteFunc(slices.Clone(what), func(part string) bool { return part == "revision" && len(what) > 1 }), ", "), cellWidthMax)
}

func drawDifferences(s *screen, d *workers.Differences) {
	s.printf("%s: version %d against version %d, which was served\n", d.Job, d.Candidate, d.Current)
	if d.Result.Summary != "" {
		s.printf("%s\n", safe(d.Result.Summary, s.room(0)*4))
	}
	s.printf("\n")
	t := &table{columns: []column{{name: "SESSION"}, {name: "START", drop: 3}, {name: "DIFFERS IN", least: 16},
		{name: fmt.Sprintf("SCENARIOS OF %d", d.Current), least: 16, drop: 1}, {name: fmt.Sprintf("OF %d", d.Candidate), least: 16, drop: 2}}}
	for _, x := range d.Sessions {
		start, err := time.Parse(time.RFC3339Nano, x.Start)
		text := x.Start
		if err == nil {
			text = start.UTC().Format("2006-01-02 15:04:05Z")
		}
		t.add(cell{safe(x.ID, cellWidthMax), plain}, cell{safe(text, cellWidthMax), plain}, cell{partsText(x.What, d), amber},
			cell{safe(strings.Join(x.Current, " "), cellWidthMax), plain}, cell{safe(strings.Join(x.Candidate, " "), cellWidthMax), plain})
	}
	t.draw(s, 0)
	s.printf("\none side by side: weft job compare %s SESSION --version %d\n", d.Job, d.Candidate)
}

// pairing is a session of both versions, put into lines of which some differ.
type pairing struct {
	d     *workers.Differences
	sides [2]*session // nil: it had none
	t     *table
}

// drawBoth shows a session as both versions had it.
func drawBoth(s *screen, d *workers.Differences, x *workers.Difference) error {
	p := pairing{d: d}
	for i, body := range [][]byte{x.CurrentSession, x.CandidateSession} {
		if len(body) == 0 {
			continue
		}
		one, err := decodeSession(&store.Row{Body: body})
		if err != nil {
			return err
		}
		p.sides[i] = one
	}
	s.printf("%s  starts %s\n%s\n\n", s.paint(bold, safe(x.ID, cellWidthMax)), safe(x.Start, 40), s.paint(amber, "differs: "+partsText(x.What, d)))
	if p.sides[0] == nil && p.sides[1] == nil {
		s.printf("the object that keeps the differences was full before it came to this session; the stores may still have it: weft sessions %s --version %d\n", x.ID, d.Candidate)
		return nil
	}
	p.t = &table{columns: []column{{name: ""}, {name: ""}, {name: p.title(0, d.Current), least: 24}, {name: p.title(1, d.Candidate), least: 24}}}
	p.pairs("key", func(x *session) map[string]string {
		m := map[string]string{}
		for kind, values := range x.Keys {
			m[kind] = strings.Join(values, " ")
		}
		return m
	})
	p.pairs("field", func(x *session) map[string]string {
		m := map[string]string{}
		for name, value := range x.Fields {
			m[name] = fmt.Sprint(value)
		}
		return m
	})
	p.pairs("scenario", func(x *session) map[string]string {
		m := map[string]string{}
		for _, name := range x.Scenarios {
			m[name] = "holds"
		}
		return m
	})
	p.events()
	p.t.draw(s, 0)
	for i, one := range p.sides {
		if one != nil && one.Truncated {
			s.printf("version %d keeps fewer events than the session has: see limits.timeline_events of its spec\n", []int{d.Current, d.Candidate}[i])
		}
	}
	return nil
}

func (p *pairing) title(side, version int) string {
	if p.sides[side] == nil {
		return fmt.Sprintf("VERSION %d (HAS NONE)", version)
	}
	return fmt.Sprintf("VERSION %d", version)
}

// line adds a line, marked where the sides differ.
func (p *pairing) line(what string, values [2]string) {
	how, mark := plain, ""
	if values[0] != values[1] {
		how, mark = amber, "≠"
	}
	row := []cell{{mark, amber}, {safe(what, cellWidthMax), faint}}
	for _, v := range values {
		if v == "" {
			v = "-"
		}
		row = append(row, cell{safe(v, cellWidthMax), how})
	}
	p.t.add(row...)
}

// pairs adds what both sides have by name.
func (p *pairing) pairs(kind string, of func(*session) map[string]string) {
	var both [2]map[string]string
	names := map[string]bool{}
	for i, x := range p.sides {
		if x != nil {
			both[i] = of(x)
		}
		for name := range both[i] {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		p.line(kind+" "+name, [2]string{both[0][name], both[1][name]})
	}
}

// events adds both timelines as one, in the order of time. An event is the same where it comes from the same place.
func (p *pairing) events() {
	type place struct {
		topic     string
		partition int32
		offset    int64
		index     int
	}
	lines, at := map[place]*[2]string{}, map[place]time.Time{}
	for i, x := range p.sides {
		if x == nil {
			continue
		}
		for _, e := range x.Events {
			k := place{e.Topic, e.Partition, e.Offset, e.Index}
			if lines[k] == nil {
				lines[k], at[k] = &[2]string{}, e.Time
			}
			lines[k][i] = e.Source + " " + e.Step
			if !e.Time.Equal(at[k]) {
				lines[k][i] += " at " + e.Time.UTC().Format("15:04:05.000")
			}
		}
	}
	order := slices.SortedFunc(maps.Keys(lines), func(a, b place) int {
		if c := at[a].Compare(at[b]); c != 0 {
			return c
		}
		return strings.Compare(fmt.Sprintf("%s %06d %020d %06d", a.topic, a.partition, a.offset, a.index), fmt.Sprintf("%s %06d %020d %06d", b.topic, b.partition, b.offset, b.index))
	})
	for _, k := range order {
		p.line(at[k].UTC().Format("01-02 15:04:05.000"), *lines[k])
	}
}

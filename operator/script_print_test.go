package operator_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weftdata/weft/event"
)

// scriptTime is how scripts write times; seconds are left out where they are 0.
const scriptTime = "2006-01-02T15:04:05"

func parseTime(text string) (event.Micros, error) {
	if text == "end" {
		return event.MaxTime, nil
	}
	if len(text) == len("2006-01-02T15:04") {
		text += ":00"
	}
	t, err := time.Parse(scriptTime, text)
	return event.Micros(t.UnixMicro()), err
}

func formatTime(text string) string {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return text
	}
	if t.Second() == 0 && t.Nanosecond() == 0 {
		return t.UTC().Format("2006-01-02T15:04")
	}
	return t.UTC().Format("2006-01-02T15:04:05.999999")
}

// sessionLine is a line of sessions.jsonl.
type sessionLine struct {
	ID, User, Start, End string
	Revision             int
	Keys                 map[string][]string
	Fields               map[string]any
	Scenarios            []string
	Decided              map[string]string
	Truncated            bool
	Events               []struct {
		Source           string
		Partition, Index int
		Offset           int64
		Time, Step       string
	}
}

// name returns the name of a session in a script: #1, #2 … in order of appearance.
func (r *run) name(id string) string {
	if r.names[id] == "" {
		r.names[id] = fmt.Sprintf("#%d", len(r.names)+1)
	}
	return r.names[id]
}

// printSessions prints the sessions that a reader has, in order of start.
func (r *run) printSessions() (out []string) {
	for _, id := range slices.Sorted(maps.Keys(r.sessions)) {
		var s sessionLine
		mustJSON(r.sessions[id], &s)
		out = append(out, r.name(id)+" "+s.head())
		for _, e := range s.Events {
			line := fmt.Sprintf("   %s %s@%d/%d", formatTime(e.Time), e.Source, e.Partition, e.Offset)
			if e.Index > 0 {
				line += fmt.Sprintf(".%d", e.Index)
			}
			out = append(out, line+" "+e.Step)
		}
		if s.Truncated {
			out = append(out, fmt.Sprintf("   and %d more", s.Revision-len(s.Events)))
		}
	}
	return out
}

// head describes a session without its timeline.
func (s *sessionLine) head() string {
	parts := []string{fmt.Sprintf("%s to %s, %d events", formatTime(s.Start), formatTime(s.End), s.Revision)}
	if s.Revision == 1 {
		parts[0] = formatTime(s.Start) + ", 1 event"
	}
	var pairs []string
	for _, kind := range slices.Sorted(maps.Keys(s.Keys)) {
		pairs = append(pairs, kind+"="+strings.Join(s.Keys[kind], "+"))
	}
	for _, field := range slices.Sorted(maps.Keys(s.Fields)) {
		pairs = append(pairs, fmt.Sprintf("%s:%v", field, s.Fields[field]))
	}
	if len(pairs) > 0 {
		parts = append(parts, strings.Join(pairs, " "))
	}
	if s.User != "" {
		parts = append(parts, "user "+s.User)
	}
	for _, name := range s.Scenarios {
		parts = append(parts, fmt.Sprintf("%s at %s", name, formatTime(s.Decided[name])))
	}
	return strings.Join(parts, ", ")
}

// cellLine is a line of reports.jsonl.
type cellLine struct {
	Report, Window string
	By             map[string]string
	Measures       map[string]int64
}

func (c *cellLine) String() string {
	line := c.Report + " " + formatTime(c.Window)
	for _, field := range slices.Sorted(maps.Keys(c.By)) {
		line += fmt.Sprintf(" %s:%s", field, c.By[field])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Measures)) {
		line += fmt.Sprintf(" %s=%d", name, c.Measures[name])
	}
	return line
}

func printCells(texts []string) (out []string) {
	for _, text := range texts {
		var c cellLine
		mustJSON(text, &c)
		out = append(out, c.String())
	}
	slices.Sort(out)
	return out
}

// zeros tells whether a cell counts nothing any more: readers drop it.
func zeros(text string) bool {
	var c cellLine
	mustJSON(text, &c)
	for _, n := range c.Measures {
		if n != 0 {
			return false
		}
	}
	return true
}

// printChanges prints the changes that were not printed yet, in order.
func (r *run) printChanges() (out []string) {
	for _, c := range r.pending {
		switch c.kind {
		case upsert:
			var s sessionLine
			mustJSON(c.text, &s)
			out = append(out, "upsert "+r.name(c.id)+" "+s.head())
		case tombstone:
			out = append(out, "tombstone "+r.name(c.id))
		case cell:
			out = append(out, "cell "+printCells([]string{c.text})[0])
		case late:
			out = append(out, "late "+c.text)
		case reject:
			out = append(out, "reject "+c.text)
		}
	}
	r.pending = nil
	return out
}

func mustJSON(text string, to any) {
	if err := json.Unmarshal([]byte(text), to); err != nil {
		panic(fmt.Sprintf("a result is no JSON: %v: %s", err, text))
	}
}

func timeText(t event.Micros) string {
	return formatTime(time.UnixMicro(int64(t)).UTC().Format(time.RFC3339Nano))
}

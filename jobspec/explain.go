package jobspec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// explainWidth is the width of Explain's text in characters.
const explainWidth = 100

// Explain draws a job as text of at most 100 columns: its sources, the keys that tie them together, sessions,
// scenarios, reports and sinks, and at the end what looks wrong although it is valid.
func Explain(s *Spec) string {
	d := &drawing{spec: s}
	head := "job " + s.Job
	if s.ShardBy != "" {
		head += ", sharded by " + s.ShardBy
	} else {
		head += ", one shard"
	}
	d.line(head)
	d.sources()
	d.keys()
	d.sessions()
	d.scenarios()
	d.reports()
	d.sinks()
	d.warnings()
	return d.String()
}

// drawing is the text drawn so far.
type drawing struct {
	strings.Builder
	spec *Spec
}

func (d *drawing) line(text string) {
	d.WriteString(clip(strings.TrimRight(text, " "), explainWidth) + "\n")
}

// stage starts one stage of the flow, below an arrow from the one before.
func (d *drawing) stage(title, what string) {
	d.line("    │")
	d.line("    ▼")
	d.line(strings.ToUpper(title) + "  " + what)
}

// wrapped draws words behind a label, broken into lines that hang below the first word.
func (d *drawing) wrapped(label string, words []string, separator string) {
	indent := strings.Repeat(" ", utf8.RuneCountInString(label))
	row := label
	for i, word := range words {
		if i < len(words)-1 {
			word += separator
		}
		if row != label && row != indent && utf8.RuneCountInString(strings.TrimRight(row+word, " ")) > explainWidth {
			d.line(row)
			row = indent
		}
		row += word
	}
	d.line(row)
}

// table draws rows of cells in columns, narrowing the widest column until a row fits.
func (d *drawing) table(rows [][]string) {
	const indent, between = "  ", "  "
	widths := make([]int, len(rows[0]))
	total := len(indent) + len(between)*(len(widths)-1)
	for i := range widths {
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
		total += widths[i]
	}
	for ; total > explainWidth; total-- {
		widths[slices.Index(widths, slices.Max(widths))]--
	}
	for _, row := range rows {
		line := indent
		for i, cell := range row {
			cell = clip(cell, widths[i])
			line += cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)) + between
		}
		d.line(line)
	}
}

// clip shortens a text to one line of a width.
func clip(text string, width int) string {
	r := []rune(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r == '\r' {
			return ' '
		}
		return r
	}, text))
	if len(r) <= width {
		return string(r)
	}
	return string(r[:width-1]) + "…"
}

func (d *drawing) sources() {
	d.line("")
	d.line("SOURCES  records become events")
	rows := [][]string{{"source", "topic", "format", "time", "step"}}
	for i := range d.spec.Sources {
		s := &d.spec.Sources[i]
		format, when, step := s.Format.Name, s.Time.Field, s.Step.Field
		if s.Each != "" {
			format += " (each)"
		}
		if s.Time.Layout != "" && s.Time.Layout != "rfc3339" {
			when += " (" + s.Time.Layout + ")"
		}
		switch {
		case s.Step.Value != "":
			step = fmt.Sprintf("always %q", s.Step.Value)
		case len(s.Step.Map) > 0:
			step += fmt.Sprintf(" (%d mapped)", len(s.Step.Map))
		}
		rows = append(rows, []string{s.Name, s.Topic, format, when, step})
	}
	d.table(rows)
	for i := range d.spec.Sources {
		if s := &d.spec.Sources[i]; s.Parquet != nil && s.Parquet.Path != "" {
			d.line(fmt.Sprintf("  history of %s: Parquet in %s", s.Name, s.Parquet.Path))
		}
	}
}

func (d *drawing) keys() {
	d.stage("keys", "events that share a value within the gap are linked")
	for kind, k := range d.spec.Kinds {
		label := fmt.Sprintf("  %-14s gap %-6s ", clip(k.Name, 24), FormatDuration(k.Gap))
		d.wrapped(label, d.spec.sourcesOf(kind), " ── ")
	}
}

// sourcesOf returns the names of the sources that have keys of a kind.
func (s *Spec) sourcesOf(kind int) (names []string) {
	for i := range s.Sources {
		if slices.ContainsFunc(s.Sources[i].Keys, func(k Key) bool { return k.Kind == kind }) {
			names = append(names, s.Sources[i].Name)
		}
	}
	return names
}

func (d *drawing) sessions() {
	s := &d.spec.Session
	d.stage("sessions", "what is linked, directly or through others, is one session")
	d.line(fmt.Sprintf("  an endless chain is cut at multiples of %s; an event %s behind the watermark is late",
		FormatDuration(s.MaxSpan), FormatDuration(s.Retention)))
	if d.spec.User != "" {
		d.line("  grouped by " + d.spec.User + " in the user view")
	}
}

func (d *drawing) scenarios() {
	if len(d.spec.Scenarios) == 0 {
		return
	}
	d.stage("scenarios", "what a session is recognised as")
	for i := range d.spec.Scenarios {
		s := &d.spec.Scenarios[i]
		decided := "decided " + FormatDuration(d.spec.Session.Settle) + " after the session's end"
		if s.After != nil {
			decided = "decided " + FormatDuration(s.After.Within) + " after " + oneLine(s.After.From.Text)
		}
		d.line(fmt.Sprintf("  %-28s %-8s  %s", clip(s.Name, 40), s.Severity, decided))
		d.wrapped("    when ", strings.SplitAfter(oneLine(s.When.Text), " "), "")
	}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func (d *drawing) reports() {
	if len(d.spec.Reports) == 0 {
		return
	}
	d.stage("reports", "counts by window of session start")
	for i := range d.spec.Reports {
		r := &d.spec.Reports[i]
		head := fmt.Sprintf("  %s  every %s", r.Name, FormatDuration(r.Every))
		if len(r.By) > 0 {
			var by []string
			for _, field := range r.By {
				by = append(by, d.spec.Fields[field].Name)
			}
			head += " by " + strings.Join(by, ", ")
		}
		d.line(head)
		var measures []string
		for _, m := range r.Measures {
			measures = append(measures, m.Name+" = "+d.spec.measureText(m))
		}
		d.wrapped("    ", measures, ",  ")
	}
}

func (s *Spec) measureText(m Measure) string {
	switch m.Op {
	case CountScenario:
		return "count(" + s.Scenarios[m.Scenario].Name + ")"
	case SumField:
		return "sum(" + s.Fields[m.Field].Name + ")"
	case SumDuration:
		return "sum(duration)"
	case SumEvents:
		return "sum(events)"
	}
	return "count()"
}

func (d *drawing) sinks() {
	d.stage("sinks", "where results go")
	sinks := []string{"the store"}
	if d.spec.Sinks.Topic != "" {
		sinks = append(sinks, "Kafka topic "+d.spec.Sinks.Topic)
	}
	if d.spec.Sinks.Parquet {
		sinks = append(sinks, "Parquet")
	}
	d.wrapped("  ", sinks, ", ")
}

func (d *drawing) warnings() {
	all := slices.Concat(d.spec.linkWarnings(), d.spec.stepWarnings())
	if len(all) == 0 {
		return
	}
	d.line("")
	d.line("WARNINGS")
	for _, w := range all {
		d.wrapped("  ! ", strings.SplitAfter(w, " "), "")
	}
}

// linkWarnings names the sources whose events never link with those of another source.
func (s *Spec) linkWarnings() (warnings []string) {
	if len(s.Sources) == 1 {
		return nil
	}
	linked := map[string]bool{}
	for kind := range s.Kinds {
		if names := s.sourcesOf(kind); len(names) > 1 {
			for _, name := range names {
				linked[name] = true
			}
		}
	}
	for i := range s.Sources {
		source := &s.Sources[i]
		switch {
		case len(source.Keys) == 0:
			warnings = append(warnings, fmt.Sprintf("source %s has no keys: each of its events is a session of its own", source.Name))
		case !linked[source.Name]:
			warnings = append(warnings, fmt.Sprintf("source %s shares no key kind with another source: its events link only among themselves", source.Name))
		}
	}
	return warnings
}

// stepCall finds the steps that an expression names.
var stepCall = regexp.MustCompile(`\bstep\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)`)

// stepWarnings names the scenarios that ask for steps no source seems to have.
func (s *Spec) stepWarnings() (warnings []string) {
	known, closed := s.steps()
	for i := range s.Scenarios {
		sc := &s.Scenarios[i]
		text := sc.When.Text
		if sc.After != nil {
			text += " " + sc.After.From.Text
		}
		var seen []string
		for _, call := range stepCall.FindAllStringSubmatch(text, -1) {
			step := call[1] + call[2]
			if slices.Contains(known, step) || slices.Contains(seen, step) {
				continue
			}
			seen = append(seen, step)
			near := Nearest(step, known)
			switch {
			case near != "":
				warnings = append(warnings, fmt.Sprintf("scenario %s asks for step %q, which no source names; did you mean %q?", sc.Name, step, near))
			case closed:
				warnings = append(warnings, fmt.Sprintf("scenario %s asks for step %q, which no source can have", sc.Name, step))
			}
		}
	}
	return warnings
}

// steps returns the steps that sources name, sorted; closed tells that there can be no others.
func (s *Spec) steps() (known []string, closed bool) {
	closed = true
	for i := range s.Sources {
		step := &s.Sources[i].Step
		if step.Value != "" {
			known = append(known, step.Value)
		} else {
			closed = false // the data may hold any value
		}
		for _, m := range step.Map {
			known = append(known, m.To)
		}
	}
	slices.Sort(known)
	return slices.Compact(known), closed
}

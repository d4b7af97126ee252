package operator_test

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
)

// Scripts tell the semantics of correlation as stories. testdata/*.txt hold directives: a line with its name and arguments,
// its input, a line "----", and what it must print, up to an empty line. A line that starts with # between directives is a
// comment. go test ./operator -rewrite writes what the directives print into the scripts.
//
//	job                the job spec; comes first
//	records SOURCE     one raw record a line, applied as one batch. "@partition/offset " before a record is its position;
//	                   without it the record follows the last one of partition 0
//	watermark TIME     moves the watermark
//	flush              hands out what changed
//	snapshot           takes a snapshot, and goes on with what is restored from it
//
//	changes            prints what was handed out since changes or sessions were last printed, in order
//	sessions           prints the sessions as a reader of all changes has them; #1, #2 … stand for their ids
//	reports, late, rejects
//
// After its last directive a script's input ends and everything is final. Then the script runs again in other ways, which
// must all give the same sessions and reports: see runScript.

var rewrite = flag.Bool("rewrite", false, "write what the scripts print into them")

// engine is what a script drives. The streaming driver can implement it as the core and the backfill driver do here.
type engine interface {
	// Apply takes in a batch of raw records in order of arrival.
	Apply(records []record) error
	// Advance moves the watermark; event.MaxTime is the end of the input.
	Advance(watermark event.Micros) error
	// Flush hands out every change so far.
	Flush() error
	// Restart goes on from a snapshot.
	Restart() error
	// Changes returns what was handed out since the last call, in order.
	Changes() []change
}

// newEngine starts an engine for a job.
type newEngine func(t *testing.T, job *operator.Job) engine

// record is one raw record of a source.
type record struct {
	source    string
	partition int32
	offset    int64
	raw       string
}

func (r record) identity() string { return fmt.Sprintf("%s@%d/%d", r.source, r.partition, r.offset) }

// change is one thing that an engine handed out.
type change struct {
	kind changeKind
	id   string // of a session; what a cell, a late event or a reject is about
	text string // sessions: the line of sessions.jsonl; cells: of reports.jsonl; late events and rejects: for the reader
}

type changeKind uint8

const (
	upsert changeKind = iota
	tombstone
	cell
	late
	reject
)

// directive is one command of a script.
type directive struct {
	comment string // lines before it
	line    string // the command as written
	number  int    // of that line
	input   []string
	want    []string
}

func (d *directive) name() string {
	name, _, _ := strings.Cut(d.line, " ")
	return name
}

func (d *directive) argument() string {
	_, argument, _ := strings.Cut(d.line, " ")
	return strings.TrimSpace(argument)
}

// parseScript reads the directives of a script; the rest is what follows the last one.
func parseScript(text string) (list []*directive, rest string) {
	var comment strings.Builder
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		if lines[i] == "" || strings.HasPrefix(lines[i], "#") {
			comment.WriteString(lines[i] + "\n")
			continue
		}
		d := &directive{comment: comment.String(), line: lines[i], number: i + 1}
		comment.Reset()
		for i++; i < len(lines) && lines[i] != "----"; i++ {
			d.input = append(d.input, lines[i])
		}
		for i++; i < len(lines) && lines[i] != ""; i++ {
			d.want = append(d.want, lines[i])
		}
		if i < len(lines) {
			comment.WriteString("\n")
		}
		list = append(list, d)
	}
	return list, strings.TrimSuffix(comment.String(), "\n")
}

func formatScript(list []*directive, rest string) string {
	var b strings.Builder
	for _, d := range list {
		b.WriteString(d.comment)
		for _, line := range slices.Concat([]string{d.line}, d.input, []string{"----"}, d.want) {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString(rest)
	return b.String()
}

// TestScripts runs every script as written, and then in ways that must not matter.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScript(t, file) })
	}
}

func runScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	script, rest := parseScript(string(text))
	if got := formatScript(script, rest); got != string(text) {
		t.Fatalf("%s does not read back as it was written:\n%s", file, got)
	}
	main := newRun(t, newCoreEngine)
	for _, d := range script {
		got := main.do(d)
		if *rewrite {
			d.want = got
		} else if !slices.Equal(got, d.want) {
			t.Errorf("%s:%d: %s\n--- got\n%s\n--- want\n%s", file, d.number, d.line, strings.Join(got, "\n"), strings.Join(d.want, "\n"))
		}
	}
	main.finish()
	if *rewrite {
		if err := os.WriteFile(file, []byte(formatScript(script, rest)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if len(main.sessions) == 0 {
		t.Errorf("%s: no session is left at the end", file)
	}

	for _, v := range []struct {
		name string
		run  func(*run)
	}{
		{"every record in a batch of its own", func(r *run) { r.single = true; r.all(script) }},
		{"a flush after every record", func(r *run) { r.single, r.flushing = true, true; r.all(script) }},
		{"a snapshot after every record", func(r *run) { r.single, r.restarting = true, true; r.all(script) }},
	} {
		r := newRun(t, newCoreEngine)
		v.run(r)
		r.compare(v.name, main)
	}
	// The final stream is a backfill over the archive less what was late.
	intime := main.intime()
	for _, v := range []struct {
		name    string
		engine  newEngine
		records []record
	}{
		{"all in one batch", newCoreEngine, intime},
		{"all in one batch, in reverse", newCoreEngine, reversed(intime)},
		{"all twice", newCoreEngine, append(slices.Clone(intime), intime...)},
		{"a backfill over the archive", newBackfillEngine, intime},
	} {
		r := newRun(t, v.engine)
		r.late = main.late
		r.do(script[0])
		r.apply(v.records)
		r.finish()
		r.compare(v.name, main)
	}
}

func reversed(records []record) []record {
	records = slices.Clone(records)
	slices.Reverse(records)
	return records
}

// run is one run of a script and what a reader of its changes has.
type run struct {
	t          *testing.T
	start      newEngine
	engine     engine
	single     bool // every record is a batch of its own
	flushing   bool // with a flush after it
	restarting bool // and a restart

	records  []record
	accepted map[string]bool   // by identity: not late
	next     map[string]int64  // offset by source, of partition 0
	sessions map[string]string // by id
	cells    map[string]string // by report, window and fields
	late     []string
	rejects  map[string]string // by identity: a record that comes again is rejected again
	pending  []change          // not printed yet
	names    map[string]string // of sessions, in order of appearance
}

func newRun(t *testing.T, start newEngine) *run {
	return &run{t: t, start: start, next: map[string]int64{}, sessions: map[string]string{}, cells: map[string]string{},
		accepted: map[string]bool{}, rejects: map[string]string{}, names: map[string]string{}}
}

func (r *run) all(script []*directive) {
	for _, d := range script {
		r.do(d)
	}
	r.finish()
}

// do runs a directive and returns what it prints.
func (r *run) do(d *directive) []string {
	lines, err := r.directive(d)
	if err != nil {
		r.t.Fatalf("line %d: %s: %v", d.number, d.line, err)
	}
	return lines
}

func (r *run) directive(d *directive) ([]string, error) {
	if r.engine == nil && d.name() != "job" {
		return nil, errors.New("the first directive must be job")
	}
	switch d.name() {
	case "job":
		return nil, r.job(strings.Join(d.input, "\n") + "\n")
	case "records":
		records, err := r.parse(d.argument(), d.input)
		if err != nil {
			return nil, err
		}
		r.apply(records)
		return nil, nil
	case "watermark":
		t, err := parseTime(d.argument())
		if err != nil {
			return nil, err
		}
		return nil, r.step(r.engine.Advance(t))
	case "flush":
		return nil, r.step(r.engine.Flush())
	case "snapshot":
		return nil, r.step(r.engine.Restart())
	case "changes":
		return r.printChanges(), nil
	case "sessions":
		r.pending = nil
		return r.printSessions(), nil
	case "reports":
		return printCells(slices.Collect(maps.Values(r.cells))), nil
	case "late":
		return r.late, nil
	case "rejects":
		return slices.Sorted(maps.Values(r.rejects)), nil
	}
	return nil, fmt.Errorf("expected job, records, watermark, flush, snapshot, changes, sessions, reports, late or rejects")
}

func (r *run) job(text string) error {
	spec, err := jobspec.Parse([]byte(text))
	if err != nil {
		return err
	}
	job, err := operator.Compile(spec, uint64(time.Now().UnixNano()), nil) // results must not depend on the seed
	if err != nil {
		return err
	}
	r.engine = r.start(r.t, job)
	return nil
}

// parse reads the records of a directive.
func (r *run) parse(source string, lines []string) (list []record, err error) {
	for _, line := range lines {
		rec := record{source: source, offset: r.next[source], raw: line}
		if at, ok := strings.CutPrefix(line, "@"); ok {
			position, raw, _ := strings.Cut(at, " ")
			partition, offset, _ := strings.Cut(position, "/")
			p, err := strconv.ParseInt(partition, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("partition of %s: %w", line, err)
			}
			if rec.offset, err = strconv.ParseInt(offset, 10, 64); err != nil {
				return nil, fmt.Errorf("offset of %s: %w", line, err)
			}
			rec.partition, rec.raw = int32(p), raw
		}
		if rec.partition == 0 {
			r.next[source] = max(r.next[source], rec.offset+1)
		}
		list = append(list, rec)
	}
	return list, nil
}

func (r *run) apply(records []record) {
	r.records = append(r.records, records...)
	size := len(records)
	if r.single {
		size = 1
	}
	for batch := range slices.Chunk(records, max(size, 1)) {
		before := len(r.late)
		err := r.step(r.engine.Apply(batch))
		for _, rec := range batch {
			if !slices.ContainsFunc(r.late[before:], func(text string) bool { return strings.HasPrefix(text, rec.identity()+" ") }) {
				r.accepted[rec.identity()] = true
			}
		}
		if err == nil && r.flushing {
			err = r.step(r.engine.Flush())
		}
		if err == nil && r.restarting {
			err = r.step(r.engine.Restart())
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// step takes in what a call of the engine handed out, as a reader does: the last change of a session or a cell holds.
func (r *run) step(err error) error {
	for _, c := range r.engine.Changes() {
		switch c.kind {
		case upsert:
			r.sessions[c.id] = c.text
		case tombstone:
			if _, ok := r.sessions[c.id]; !ok {
				r.t.Errorf("a tombstone for session %s, which nobody has", c.id)
			}
			delete(r.sessions, c.id)
		case cell:
			r.cells[c.id] = c.text
			if zeros(c.text) {
				delete(r.cells, c.id)
			}
		case late:
			r.late = append(r.late, c.text)
		case reject:
			r.rejects[c.id] = c.text
		}
		r.pending = append(r.pending, c)
	}
	return err
}

// finish ends the input.
func (r *run) finish() {
	for _, call := range []func() error{func() error { return r.engine.Advance(event.MaxTime) }, r.engine.Flush} {
		if err := r.step(call()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// intime returns the records that were taken in. One that was, and comes again much later, may be listed as late then, for
// identities are not remembered for ever: that does not take it out again.
func (r *run) intime() (list []record) {
	for _, rec := range r.records {
		if r.accepted[rec.identity()] {
			list = append(list, rec)
		}
	}
	return list
}

// compare holds the outcome of a run against that of the script as written.
func (r *run) compare(how string, want *run) {
	r.t.Helper()
	for _, x := range []struct {
		what      string
		got, want []string
	}{
		{"sessions", slices.Sorted(maps.Values(r.sessions)), slices.Sorted(maps.Values(want.sessions))},
		{"reports", printCells(slices.Collect(maps.Values(r.cells))), printCells(slices.Collect(maps.Values(want.cells)))},
		{"late events", slices.Sorted(slices.Values(r.late)), slices.Sorted(slices.Values(want.late))},
		{"rejects", slices.Sorted(maps.Values(r.rejects)), slices.Sorted(maps.Values(want.rejects))},
	} {
		if !slices.Equal(x.got, x.want) {
			r.t.Errorf("with %s the final %s differ:\n%s", how, x.what, difference(x.got, x.want))
		}
	}
}

// difference lists the lines that are only in one of two sorted lists.
func difference(got, want []string) string {
	var b strings.Builder
	for _, line := range got {
		if _, found := slices.BinarySearch(want, line); !found {
			fmt.Fprintf(&b, "got  %s\n", line)
		}
	}
	for _, line := range want {
		if _, found := slices.BinarySearch(got, line); !found {
			fmt.Fprintf(&b, "want %s\n", line)
		}
	}
	return b.String()
}

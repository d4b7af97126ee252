package paygen

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// lines returns the lines of a file.
func (m memory) lines(name string) []string {
	return strings.Split(strings.TrimSuffix(m[name].String(), "\n"), "\n")
}

func (m memory) chains(t *testing.T) (list []*Chain) {
	t.Helper()
	if err := ReadTruth(bytes.NewReader(m[TruthFile].Bytes()), func(c *Chain) error {
		list = append(list, c)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

type rejected struct {
	Source string
	Offset int64
	Reason string
}

func (m memory) rejects(t *testing.T) map[string]map[int64]string {
	t.Helper()
	bySource := map[string]map[int64]string{}
	for _, f := range files {
		bySource[f.name] = map[int64]string{}
	}
	for _, line := range m.lines(RejectsFile) {
		var r rejected
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		bySource[r.Source][r.Offset] = r.Reason
	}
	return bySource
}

// TestLinesAreOfTheirFormat reads every line with a reader that is not ours: those that are not broken must parse,
// those that are rejected for their syntax must not.
func TestLinesAreOfTheirFormat(t *testing.T) {
	matches := func(pattern string) func(string) error {
		re := regexp.MustCompile(pattern)
		return func(line string) error {
			if !re.MatchString(line) {
				return fmt.Errorf("does not match %s", pattern)
			}
			return nil
		}
	}
	readers := map[string]func(string) error{
		"billing":  matches(`^ts=\S+Z( [a-z_]+=([^" ]+|"(\\.|[^"\\])*"))+$`),
		"gateway":  matches(`^[0-9.]+ - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "(GET|POST) /\S+ HTTP/1\.1" \d{3} \d+ "[^"]+" rt=0\.\d{3} rid=[0-9a-f]{16}$`),
		"store":    matches(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[iap-verify-\d+\] INFO  \S+ -( [a-z]+=\S+){10}$`),
		"risk":     matches(`^<134>1 \S+Z risk-\d\d decision \d+ - \[[^\]]+\] verdict=[A-Z]+ latency=\d+ms$`),
		"delivery": csvLine,
	}
	m, _ := generate(t, config(3000, 3))
	rejects := m.rejects(t)
	for _, f := range files {
		read := readers[f.name]
		if read == nil {
			read = jsonLine
		}
		for offset, line := range m.lines(f.file) {
			err := read(line)
			switch reason := rejects[f.name][int64(offset)]; {
			case reason == "" && err != nil:
				t.Errorf("%s:%d: %v\n%s", f.file, offset, err, line)
			case reason == "syntax" && err == nil:
				t.Errorf("%s:%d: parses, though it must be rejected\n%s", f.file, offset, line)
			case reason == "" && (len(line) < 90 || len(line) > 2000 && f.name != "billing_db"):
				t.Errorf("%s:%d: has %d bytes\n%s", f.file, offset, len(line), line)
			}
		}
		for offset := range rejects[f.name] {
			if offset < 0 || offset >= int64(len(m.lines(f.file))) {
				t.Errorf("%s: rejected line %d is not in the file", f.name, offset)
			}
		}
	}
}

func jsonLine(line string) error {
	var v map[string]any
	return json.Unmarshal([]byte(line), &v)
}

func csvLine(line string) error {
	r := csv.NewReader(strings.NewReader(line))
	r.FieldsPerRecord = 12
	_, err := r.ReadAll()
	return err
}

// TestTruthIsConsistent checks the truth against the lines alone.
func TestTruthIsConsistent(t *testing.T) {
	m, sum := generate(t, config(2500, 11))
	rejects := m.rejects(t)
	lines := map[string][]string{}
	for _, f := range files {
		lines[f.name] = m.lines(f.file)
	}
	identifier := regexp.MustCompile(`\b260[34]\d{14}\b|MIIT[\w-]{44}|dlv-[0-9a-f]{16}|\b\d{28}\b|GPA\.[\d-]{19}|ch_[0-9a-f]{16}`)
	taken, owner := map[Event]bool{}, map[string]int64{}
	events, folded, recognizable := int64(0), int64(0), int64(0)
	for _, c := range m.chains(t) {
		events += int64(len(c.Events))
		folded += int64(len(c.Folded))
		for _, e := range append(slices.Clone(c.Events), c.Folded...) {
			switch {
			case taken[e]:
				t.Errorf("chain %d: %v is in the truth twice", c.Number, e)
			case e.Offset < 0 || e.Offset >= int64(len(lines[e.Source])):
				t.Fatalf("chain %d: %v is not in the file", c.Number, e)
			case rejects[e.Source][e.Offset] != "":
				t.Errorf("chain %d: %v is rejected", c.Number, e)
			}
			taken[e] = true
			line := lines[e.Source][e.Offset]
			if !strings.Contains(line, c.Game) {
				t.Errorf("chain %d: %v does not name %s\n%s", c.Number, e, c.Game, line)
			}
			if strings.Count(line, `"CHANNEL_TXN"`) > 1 {
				continue // bills of several chains
			}
			found := identifier.FindAllString(line, -1)
			if len(found) == 0 {
				t.Errorf("chain %d: %v has no identifier\n%s", c.Number, e, line)
			}
			for _, id := range found {
				if n, ok := owner[id]; ok && n != c.Number {
					t.Errorf("chains %d and %d share %s", n, c.Number, id)
				}
				owner[id] = c.Number
			}
		}
		for _, e := range c.Folded {
			if !slices.ContainsFunc(c.Events, func(first Event) bool {
				return first.Source == e.Source && first.Index == e.Index && first.Offset < e.Offset && lines[e.Source][first.Offset] == lines[e.Source][e.Offset]
			}) {
				t.Errorf("chain %d: %v repeats no line of the chain", c.Number, e)
			}
		}
		checkParts(t, c)
		if c.Recognizable {
			recognizable++
		}
	}
	if events != sum.Events || folded != sum.Folded || recognizable != sum.Recognizable {
		t.Errorf("%d events, %d folded, %d recognizable; the summary has %+v", events, folded, recognizable, sum)
	}
	if share := float64(recognizable) / float64(sum.Chains); share < 0.95 || share > 0.999 {
		t.Errorf("%.4f of the chains are recognizable", share)
	}
}

func checkParts(t *testing.T, c *Chain) {
	t.Helper()
	if !slices.IsSorted(c.Scenarios) {
		t.Errorf("chain %d: scenarios %v are not sorted", c.Number, c.Scenarios)
	}
	switch {
	case c.Recognizable != (c.Reason == ""), (c.Reason == ReasonSplit) != (len(c.Parts) > 1):
		t.Errorf("chain %d: recognizable %v, reason %q, %d parts", c.Number, c.Recognizable, c.Reason, len(c.Parts))
	case c.Reason == ReasonEvidence && slices.Equal(c.Scenarios, c.Planned):
		t.Errorf("chain %d lost evidence, and yet %v", c.Number, c.Planned)
	}
	var all []int
	for _, p := range c.Parts {
		all = append(all, p.Events...)
	}
	slices.Sort(all)
	for i, n := range all {
		if i != n || len(all) != len(c.Events) {
			t.Errorf("chain %d: its parts do not divide its events", c.Number)
			return
		}
	}
}

func TestEveryScenarioOccurs(t *testing.T) {
	for seed := range uint64(3) {
		sum, err := Generate(config(20_000, seed), discard)
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range scenarios() {
			if sum.Scenarios[rule.name] < 5 {
				t.Errorf("seed %d: %s holds %d times", seed, rule.name, sum.Scenarios[rule.name])
			}
		}
		if len(sum.Scenarios) < 30 {
			t.Errorf("seed %d: %d scenarios", seed, len(sum.Scenarios))
		}
	}
}

func TestLateness(t *testing.T) {
	m, _ := generate(t, config(20_000, 5))
	rejects := m.rejects(t)["orders"]
	var behind []time.Duration
	latest := int64(0)
	for offset, line := range m.lines("orders.jsonl") {
		if rejects[int64(offset)] != "" {
			continue
		}
		var r struct{ TS int64 }
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		latest = max(latest, r.TS)
		behind = append(behind, time.Duration(latest-r.TS)*time.Millisecond)
	}
	slices.Sort(behind)
	at := func(perMille int) time.Duration { return behind[len(behind)*perMille/1000] }
	for _, check := range []struct {
		perMille    int
		least, most time.Duration
	}{
		{500, 0, time.Second},
		{970, 0, time.Minute},
		{995, 10 * time.Minute, 6 * time.Hour},
		{999, time.Hour, 9 * time.Hour},
	} {
		if d := at(check.perMille); d < check.least || d > check.most {
			t.Errorf("%d per mille of the orders are at most %s behind the latest before them; expected %s to %s", check.perMille, d, check.least, check.most)
		}
	}
	if worst := behind[len(behind)-1]; worst > 23*time.Hour {
		t.Errorf("an order is %s late, which the job's retention of 24h would not keep", worst)
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	err := Config{}.Validate()
	for _, word := range []string{"orders", "start", "span"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not mention %s", err, word)
		}
	}
	if err := config(1, 0).Validate(); err != nil {
		t.Error(err)
	}
}

// TestSmallSpans runs the corners of the calendar.
func TestSmallSpans(t *testing.T) {
	for _, span := range []time.Duration{time.Minute, time.Hour, time.Hour + 37*time.Minute, 25 * time.Hour} {
		for _, n := range []int{1, 2, 100} {
			cfg := config(n, 1)
			cfg.Span = span
			cfg.Start = cfg.Start.Add(17 * time.Minute)
			last, c := int64(0), newCalendar(cfg)
			for i := range int64(n) {
				at := c.next(i)
				if at < max(last, cfg.Start.UnixMicro()) || at >= cfg.Start.Add(span).UnixMicro() {
					t.Errorf("span %s: checkout %d of %d at %s", span, i, n, time.UnixMicro(at).UTC())
				}
				last = at
			}
		}
	}
}

func BenchmarkGenerate(b *testing.B) {
	cfg := config(b.N, 1)
	sum, err := Generate(cfg, discard)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(sum.Bytes / int64(b.N))
	b.ReportMetric(float64(sum.Lines)/b.Elapsed().Seconds(), "records/s")
}

package rules

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/jobspec"
)

// gatesSpec is a spec with gates, one a line.
func gatesSpec(t *testing.T, gates ...string) *jobspec.Spec {
	t.Helper()
	text := `version: weft/v1
job: payments
sources:
  orders: {topic: o, format: json, time: ts, step: {value: paid}, keys: {order: id}, fields: {user: user}}
session: {gap: 30m}
user: user
`
	if len(gates) > 0 {
		text += "canary:\n  steps: [{weight: 5, hold: 1m}]\n  gates:\n    " + strings.Join(gates, "\n    ") + "\n"
	}
	spec, err := jobspec.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestGatesJudge(t *testing.T) {
	good := Metrics{Sessions: 100, Matched: 99, MatchRate: 0.99, ScenarioShift: 0.02, Records: 1000, Rejects: 1, RejectRate: 0.001, Lag: 5 * time.Second}
	with := func(change func(*Metrics)) Metrics { m := good; change(&m); return m }
	for _, c := range []struct {
		gates []string
		m     Metrics
		want  Verdict
	}{
		{nil, Metrics{}, Pass},
		{[]string{`match_rate: ">= 0.99"`}, good, Pass},
		{[]string{`match_rate: "> 0.99"`}, good, Fail},
		{[]string{`reject_rate: "<= 0.001"`}, good, Pass},
		{[]string{`reject_rate: "< 0.001"`}, good, Fail},
		{[]string{`scenario_shift: "<= 0.01"`}, good, Fail},
		{[]string{`match_rate: ">= 0.999"`, `min_sessions: 100`}, good, Fail},
		{[]string{`match_rate: ">= 0.999"`, `min_sessions: 101`}, good, Inconclusive},
		{[]string{`min_sessions: 101`}, good, Inconclusive},
		{[]string{`min_sessions: 100`}, good, Pass},
		{[]string{`match_rate: ">= 0"`}, Metrics{}, Inconclusive}, // nothing was compared
		{[]string{`min_sessions: 0`}, Metrics{}, Inconclusive},
		{[]string{`lag: "<= 5s"`}, good, Pass},
		{[]string{`lag: "< 5s"`}, good, Inconclusive}, // it may pass
		{[]string{`lag: "<= 1m"`}, Metrics{Sessions: 1, Lag: 1 << 62}, Inconclusive},
		{[]string{`own: matched > 98 && lag < duration("6s") && records >= 1000 && rejects == 1`}, good, Pass},
		{[]string{`own: matched > 98 && scenario_shift < 0.01`}, good, Fail},
		{[]string{`own: matched / rejects > 1`}, with(func(m *Metrics) { m.Rejects = 0 }), Fail}, // an error is no consent
		{[]string{`own: match_rate > 0.9`}, Metrics{}, Inconclusive},
		{[]string{`own: "true"`, `lag: "<= 1s"`, `match_rate: ">= 0.999"`}, good, Fail}, // the worst counts
	} {
		g, err := CompileGates(gatesSpec(t, c.gates...))
		if err != nil {
			t.Fatal(err)
		}
		list, got := g.Judge(c.m)
		if got != c.want {
			t.Errorf("%q judge %+v: %s, want %s: %+v", c.gates, c.m, got, c.want, list)
		}
	}
}

func TestGatesThatDoNotCompile(t *testing.T) {
	for gate, want := range map[string]string{
		`own: match_ratee > 0.9`:                  "undefined name 'match_ratee'; nearest: match_rate",
		`own: sessions + 1`:                       "must be of type bool, and is of type int",
		`own: sessions > "x"`:                     "operator > is not defined for (int, string)",
		`own: "sessions >"`:                       "the end of the expression",
		`own: fields.amount > 3`:                  "undefined name 'fields'",
		`own: "` + strings.Repeat("(", 100) + `"`: "",
	} {
		_, err := CompileGates(gatesSpec(t, gate))
		var problems jobspec.Problems
		if !errors.As(err, &problems) {
			t.Errorf("%s: %v", gate, err)
			continue
		}
		p := problems[0]
		if got := p.Message + "; " + p.Hint; !strings.Contains(got, want) || p.Pos.Line != 10 || p.Path != "canary.gates.own" {
			t.Errorf("%s: %s at %v, %s; want %s", gate, got, p.Pos, p.Path, want)
		}
	}
	if g, err := CompileGates(gatesSpec(t)); err != nil || g.LagMax != 30*time.Second {
		t.Errorf("without a canary: %+v, %v", g, err)
	}
	if g, err := CompileGates(gatesSpec(t, `lag: "<= 7s"`)); err != nil || fmt.Sprint(g.LagMax) != "7s" {
		t.Errorf("a lag of its own: %+v, %v", g, err)
	}
}

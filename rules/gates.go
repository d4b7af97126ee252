package rules

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/weftdata/weft/jobspec"
)

// Metrics are what the gates of a canary judge a candidate by: how it compares with the version that is served.
type Metrics struct {
	Sessions      int64         `json:"sessions"` // compared: decided in both versions
	Matched       int64         `json:"matched"`  // of them, those that agree but for what the spec expects
	MatchRate     float64       `json:"match_rate"`
	ScenarioShift float64       `json:"scenario_shift"` // largest change of a scenario's share of the sessions
	Records       int64         `json:"records"`        // that the candidate has read
	Rejects       int64         `json:"rejects"`        // of them
	RejectRate    float64       `json:"reject_rate"`
	Lag           time.Duration `json:"lag_ns"` // of the candidate behind the served version, in event time
}

// Verdict is what a gate says.
type Verdict string

// The verdicts. Too few samples never pass.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive"
)

// Judged is the verdict of one gate.
type Judged struct {
	Gate    string  `json:"gate"`
	Want    string  `json:"want"`
	Got     string  `json:"got"`
	Verdict Verdict `json:"verdict"`
}

// Gates are the compiled gates of a spec's canary.
type Gates struct {
	// MinSessions is how many sessions must be compared before anything but the lag is judged; at least 1.
	MinSessions int64
	// LagMax is the bound of the gate on lag, or the default where there is none.
	LagMax time.Duration
	asked  bool // min_sessions is one of the gates
	list   []gate
}

// lagDefault is how far a version that counts as caught up may be behind, where no gate says it.
const lagDefault = 30 * time.Second

type gate struct {
	name, want string
	got        func(*Metrics) string
	holds      func(*Metrics) bool
	always     bool // judged whatever the number of sessions
}

// gateVariables are what a CEL gate sees.
func gateVariables() map[string]*cel.Type {
	return map[string]*cel.Type{
		"match_rate": cel.DoubleType, "reject_rate": cel.DoubleType, "scenario_shift": cel.DoubleType, "lag": cel.DurationType,
		"sessions": cel.IntType, "matched": cel.IntType, "records": cel.IntType, "rejects": cel.IntType,
	}
}

func (m *Metrics) variables() map[string]any {
	return map[string]any{
		"match_rate": m.MatchRate, "reject_rate": m.RejectRate, "scenario_shift": m.ScenarioShift,
		"lag": types.Duration{Duration: m.Lag}, "sessions": m.Sessions, "matched": m.Matched, "records": m.Records, "rejects": m.Rejects,
	}
}

// CompileGates compiles the gates of a spec. An error is of type jobspec.Problems. A spec without a canary has none.
func CompileGates(spec *jobspec.Spec) (*Gates, error) {
	g := &Gates{MinSessions: 1, LagMax: lagDefault}
	if spec.Canary == nil {
		return g, nil
	}
	var problems jobspec.Problems
	for _, x := range spec.Canary.Gates {
		switch x.Name {
		case "match_rate":
			g.share(x, func(m *Metrics) float64 { return m.MatchRate })
		case "reject_rate":
			g.share(x, func(m *Metrics) float64 { return m.RejectRate })
		case "scenario_shift":
			g.share(x, func(m *Metrics) float64 { return m.ScenarioShift })
		case "lag":
			op, bound := comparison(x.Text)
			d, err := jobspec.ParseDuration(bound)
			if err != nil { // the form was checked with the spec
				problems = append(problems, &jobspec.Problem{Pos: x.Pos, Path: gatePath(x.Name), Message: err.Error()})
				continue
			}
			g.LagMax = d
			g.list = append(g.list, gate{x.Name, x.Text, func(m *Metrics) string { return m.Lag.String() },
				func(m *Metrics) bool { return m.Lag < d || op == "<=" && m.Lag == d }, true})
		case "min_sessions":
			n, err := strconv.ParseInt(x.Text, 10, 64)
			if err != nil {
				problems = append(problems, &jobspec.Problem{Pos: x.Pos, Path: gatePath(x.Name), Message: err.Error()})
				continue
			}
			g.MinSessions, g.asked = max(1, n), true
		default:
			problems = append(problems, g.expression(spec, x)...)
		}
	}
	if len(problems) > 0 {
		return nil, inOrder(problems)
	}
	return g, nil
}

func gatePath(name string) string { return "canary.gates." + name }

// comparison splits a text such as ">= 0.999".
func comparison(text string) (op, bound string) {
	bound = strings.TrimLeft(text, "<>=")
	return text[:len(text)-len(bound)], strings.TrimSpace(bound)
}

// share adds a gate that compares a share. The form of its text was checked with the spec.
func (g *Gates) share(x jobspec.Gate, of func(*Metrics) float64) {
	op, text := comparison(x.Text)
	bound, err := strconv.ParseFloat(text, 64)
	g.list = append(g.list, gate{name: x.Name, want: x.Text,
		got: func(m *Metrics) string { return strconv.FormatFloat(of(m), 'g', 6, 64) },
		holds: func(m *Metrics) bool {
			v := of(m)
			switch op {
			case ">=":
				return err == nil && v >= bound
			case ">":
				return err == nil && v > bound
			case "<=":
				return err == nil && v <= bound
			}
			return err == nil && op == "<" && v < bound
		}})
}

// expression adds a gate of a CEL expression over the metrics.
func (g *Gates) expression(spec *jobspec.Spec, x jobspec.Gate) jobspec.Problems {
	d := &diagnosis{lang: &language{spec: spec}, path: gatePath(x.Name), expr: jobspec.Expr{Text: x.Text, Pos: x.Pos}}
	if len(x.Text) > TextBytesMax {
		d.at(1, 0, fmt.Sprintf("the expression has %d bytes; at most %d are allowed", len(x.Text), TextBytesMax), "")
		return d.problems
	}
	var options []cel.EnvOption
	names := slices.Sorted(maps.Keys(gateVariables()))
	for _, name := range names {
		options = append(options, cel.Variable(name, gateVariables()[name]))
	}
	options = append(options, cel.CrossTypeNumericComparisons(true), cel.ParserRecursionLimit(DepthMax), cel.ParserExpressionSizeLimit(TextBytesMax))
	env, err := cel.NewEnv(options...)
	if err != nil {
		d.at(1, 0, err.Error(), "")
		return d.problems
	}
	checked, issues := env.Compile(x.Text)
	if issues.Err() != nil {
		d.gateIssues(issues, names)
		return d.problems
	}
	if !checked.OutputType().IsExactType(cel.BoolType) {
		d.at(1, 0, fmt.Sprintf("the expression must be of type bool, and is of type %s", typeName(checked.OutputType())), "such as match_rate >= 0.999")
		return d.problems
	}
	program, err := env.Program(checked, cel.CostLimit(InterpretedCostMax))
	if err != nil {
		d.at(1, 0, err.Error(), "")
		return d.problems
	}
	decide := func(m *Metrics) (bool, error) {
		v, _, err := program.Eval(m.variables())
		if err != nil {
			return false, err
		}
		return v == types.True, nil
	}
	g.list = append(g.list, gate{name: x.Name, want: x.Text,
		got: func(m *Metrics) string {
			ok, err := decide(m)
			if err != nil {
				return "error: " + err.Error()
			}
			return strconv.FormatBool(ok)
		},
		holds: func(m *Metrics) bool { ok, err := decide(m); return err == nil && ok }})
	return nil
}

// gateIssues adds what cel-go found in a gate.
func (d *diagnosis) gateIssues(issues *cel.Issues, names []string) {
	for _, e := range issues.Errors() {
		message, hint := syntaxMessage(e.Message), ""
		if m := undeclaredReference.FindStringSubmatch(e.Message); m != nil {
			name, _, _ := strings.Cut(m[1], ".")
			message, hint = fmt.Sprintf("undefined name '%s'", name), nearest(name, names)
		} else if m := noOverload.FindStringSubmatch(e.Message); m != nil {
			message = fmt.Sprintf("%s is not defined for (%s)", operatorName(m[1]), strings.Trim(plain(m[2]), "()"))
		}
		d.at(max(e.Location.Line(), 1), max(e.Location.Column(), 0), message, hint)
	}
}

// Judge returns what every gate says, and the worst of it. Below MinSessions all but the lag is inconclusive. A lag that is
// too large is inconclusive too: it may pass.
func (g *Gates) Judge(m Metrics) (list []Judged, all Verdict) {
	few := m.Sessions < g.MinSessions
	list, all = []Judged{}, Pass
	if few && (g.asked || len(g.list) > 0) {
		list = append(list, Judged{"min_sessions", ">= " + strconv.FormatInt(g.MinSessions, 10), strconv.FormatInt(m.Sessions, 10), Inconclusive})
	}
	for _, x := range g.list {
		j := Judged{x.name, x.want, x.got(&m), Pass}
		switch holds := x.holds(&m); {
		case few && !x.always, !holds && x.always:
			j.Verdict = Inconclusive
		case !holds:
			j.Verdict = Fail
		}
		list = append(list, j)
	}
	for _, j := range list {
		if j.Verdict == Fail || j.Verdict == Inconclusive && all == Pass {
			all = j.Verdict
		}
	}
	return list, all
}

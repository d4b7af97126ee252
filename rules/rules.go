// Package rules compiles the CEL expressions of a job's scenarios into plain Go functions over correlate.Facts.
//
// A rule is type-checked by cel-go against the job's own key kinds and fields, so that a misspelt member is an error of
// the spec. The checked expression then becomes a tree of closures, each specialised by its static type: evaluation
// boxes nothing and allocates nothing. The few expressions that have no native form (docs on Set.Interpreted) run on
// cel-go's own interpreter with the same result, only slower.
//
// What a rule sees:
//
//	step("paid")     count int; first, last timestamp (1970-01-01 while count is 0)
//	start, end       timestamp of the first and the last event
//	duration         end - start
//	events           list of {source string, step string, time timestamp}: the timeline, in order
//	keys.order       list(string): the distinct values of a key kind, sorted
//	fields.amount    int or string; 0 or "" where absent, has(fields.amount) tells
//
// size(events) is the exact number of events, also where the timeline was cut to its limit; everything else that reads
// events reads the timeline. Step names must be literals. Times and durations count in microseconds.
//
// An expression that ends in an error (division by zero, overflow, an index out of range) decides false; as everywhere
// in CEL, && and || absorb an error when the other side alone decides.
package rules

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// Limits on one expression. They bound the time that compiling and deciding may take.
const (
	// TextBytesMax bounds the text of an expression.
	TextBytesMax = 4 << 10
	// DepthMax bounds the nesting of an expression.
	DepthMax = 64
	// LoopDepthMax bounds how deep macros such as exists nest: a session lists up to 2048 events, so two levels are
	// already millions of steps.
	LoopDepthMax = 2
	// PatternBytesMax bounds the text of a regular expression.
	PatternBytesMax = 1 << 10
	// PatternProgramMax bounds the instructions of a compiled regular expression: x{1000} is short, and slow.
	PatternProgramMax = 2000
	// InterpretedCostMax bounds the cost, in cel-go's units, of deciding an expression that has no native form.
	// Past it the expression ends in an error.
	InterpretedCostMax = 1_000_000
)

// Set holds the compiled rules of a job. It is immutable and safe for concurrent use.
type Set struct {
	Steps     []string // the steps that rules mention, sorted: correlate's Config.Steps
	Scenarios []correlate.Scenario
	// Interpreted lists the places (such as "scenarios[2].when") whose expression has no native form and runs about
	// a hundred times slower, each with the reason: doubles, bytes, maps, conversions between numbers and strings,
	// joining strings or lists, empty lists, lists of lists, a choice between or a comparison of lists or objects,
	// has() of an indexed element, times finer than a microsecond.
	Interpreted []string
}

// Compile compiles every rule of a spec. An error is of type jobspec.Problems and lists every problem of every rule.
func Compile(spec *jobspec.Spec) (*Set, error) {
	lang, err := newLanguage(spec)
	if err != nil {
		return nil, fmt.Errorf("build the rule language: %w", err)
	}
	var problems jobspec.Problems
	check := func(path string, x jobspec.Expr, want *cel.Type) *rule {
		r, ps := lang.check(path, x, want)
		problems = append(problems, ps...)
		return r
	}
	whens := make([]*rule, len(spec.Scenarios))
	froms := make([]*rule, len(spec.Scenarios))
	for i, s := range spec.Scenarios {
		whens[i] = check(fmt.Sprintf("scenarios[%d].when", i), s.When, cel.BoolType)
		if s.After != nil {
			froms[i] = check(fmt.Sprintf("scenarios[%d].after.from", i), s.After.From, cel.TimestampType)
		}
	}
	if len(problems) > 0 {
		return nil, inOrder(problems)
	}

	set := &Set{Steps: stepsOf(append(slices.Clone(whens), froms...))}
	for i, s := range spec.Scenarios {
		scenario := correlate.Scenario{Name: s.Name, Text: s.When.Text}
		if scenario.When, err = set.when(lang, whens[i]); err != nil {
			problems = append(problems, whens[i].problem(err))
		}
		if from := froms[i]; from != nil {
			if scenario.From, err = set.moment(lang, from); err != nil {
				problems = append(problems, from.problem(err))
			}
			scenario.FromText = from.text
			scenario.Within = event.Micros(s.After.Within.Microseconds())
		}
		set.Scenarios = append(set.Scenarios, scenario)
	}
	if len(problems) > 0 {
		return nil, inOrder(problems)
	}
	return set, nil
}

// rule is one checked expression.
type rule struct {
	path  string
	at    jobspec.Pos
	ast   *cel.Ast
	text  string   // normalised
	steps []string // that it mentions
}

func (r *rule) problem(err error) *jobspec.Problem {
	return &jobspec.Problem{Pos: r.at, Path: r.path, Message: err.Error()}
}

func (s *Set) when(lang *language, r *rule) (correlate.Rule, error) {
	x, err := compile(lang, s.Steps, r.ast, false)
	if err == nil {
		decide := x.boolean
		return func(f *correlate.Facts) bool { return decide(f, cursor{}) == yes }, nil
	}
	s.Interpreted = append(s.Interpreted, r.path+": "+err.Error())
	p, err := lang.interpret(s.Steps, r.ast)
	if err != nil {
		return nil, err
	}
	return p.decide, nil
}

func (s *Set) moment(lang *language, r *rule) (correlate.Moment, error) {
	x, err := compile(lang, s.Steps, r.ast, true)
	if err == nil {
		at := x.integer
		return func(f *correlate.Facts) (event.Micros, bool) {
			v, ok := at(f, cursor{})
			return event.Micros(v), ok
		}, nil
	}
	s.Interpreted = append(s.Interpreted, r.path+": "+err.Error())
	p, err := lang.interpret(s.Steps, r.ast)
	if err != nil {
		return nil, err
	}
	return p.moment, nil
}

// stepsOf returns the steps that rules mention, sorted, each once.
func stepsOf(rs []*rule) []string {
	steps := []string{}
	for _, r := range rs {
		if r != nil {
			steps = append(steps, r.steps...)
		}
	}
	slices.Sort(steps)
	return slices.Compact(steps)
}

func inOrder(ps jobspec.Problems) jobspec.Problems {
	sort.SliceStable(ps, func(i, j int) bool {
		a, b := ps[i].Pos, ps[j].Pos
		return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
	})
	return ps
}

// check parses and type-checks one expression and holds it against the limits.
func (l *language) check(path string, x jobspec.Expr, want *cel.Type) (*rule, jobspec.Problems) {
	d := &diagnosis{lang: l, path: path, expr: x}
	switch {
	case strings.TrimSpace(x.Text) == "":
		d.at(1, 0, fmt.Sprintf("expected an expression of type %s", want), "")
		return nil, d.problems
	case len(x.Text) > TextBytesMax:
		d.at(1, 0, fmt.Sprintf("the expression has %d bytes; at most %d are allowed", len(x.Text), TextBytesMax), "")
		return nil, d.problems
	}
	parsed, issues := l.env.Parse(x.Text)
	if issues.Err() != nil {
		d.issues(nil, issues)
		return nil, d.problems
	}
	checked, issues := l.env.Check(parsed)
	if issues.Err() != nil {
		d.issues(parsed.NativeRep(), issues)
		return nil, d.problems
	}
	r := &rule{path: path, at: d.place(1, 0), ast: checked}
	root := checked.NativeRep()
	i := &inspection{lang: l, info: root.SourceInfo(), found: d.at, steps: map[string]bool{}}
	i.visit(root.Expr(), 1, 0)
	if out := checked.OutputType(); !out.IsExactType(want) {
		d.at(1, 0, fmt.Sprintf("the expression must be of type %s, and is of type %s", typeName(want), typeName(out)), typeHint(want, out))
	}
	if len(d.problems) > 0 {
		return nil, d.problems
	}
	for s := range i.steps {
		r.steps = append(r.steps, s)
	}
	text, err := cel.AstToString(checked)
	if err != nil { // an expression that cannot be printed shares its moment with none that is spelled otherwise
		text = x.Text
	}
	r.text = text
	return r, nil
}

// inspection looks for what the type checker lets pass and a rule may not hold.
type inspection struct {
	lang  *language
	info  *ast.SourceInfo
	found func(line, column int, message, hint string)
	steps map[string]bool
}

func (i *inspection) report(e ast.Expr, message, hint string) {
	at := i.info.GetStartLocation(e.ID())
	i.found(at.Line(), at.Column(), message, hint)
}

// visit walks an expression; depth counts its nesting, loops the bodies of macros around it.
func (i *inspection) visit(e ast.Expr, depth, loops int) {
	if depth > 4*DepthMax { // the parser bounds what the user wrote; macros add a few levels each
		i.report(e, fmt.Sprintf("the expression nests deeper than %d", DepthMax), "")
		return
	}
	switch e.Kind() {
	case ast.CallKind:
		i.call(e)
		call := e.AsCall()
		if call.IsMemberFunction() {
			i.visit(call.Target(), depth+1, loops)
		}
		for _, a := range call.Args() {
			i.visit(a, depth+1, loops)
		}
	case ast.SelectKind:
		i.visit(e.AsSelect().Operand(), depth+1, loops)
	case ast.ListKind:
		for _, x := range e.AsList().Elements() {
			i.visit(x, depth+1, loops)
		}
	case ast.MapKind:
		for _, x := range e.AsMap().Entries() {
			i.visit(x.AsMapEntry().Key(), depth+1, loops)
			i.visit(x.AsMapEntry().Value(), depth+1, loops)
		}
	case ast.StructKind:
		i.report(e, "a rule cannot make objects of type "+e.AsStruct().TypeName(), "")
	case ast.ComprehensionKind:
		loop := e.AsComprehension()
		if loops == LoopDepthMax {
			i.report(e, fmt.Sprintf("macros such as exists nest deeper than %d", LoopDepthMax), "")
			return
		}
		i.visit(loop.IterRange(), depth+1, loops)
		i.visit(loop.LoopStep(), depth+1, loops+1)
	}
}

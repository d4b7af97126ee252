package rules

import (
	"unsafe"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// truth is a Boolean or an error. Every value above yes is an error, so that x|y is an error where one of them is.
type truth uint8

const (
	no    truth = 0
	yes   truth = 1
	fault truth = 2
)

func is(b bool) truth {
	if b {
		return yes
	}
	return no
}

// cursor holds the positions of the loops around an expression, outermost first. It travels by value: a closure
// allocates nothing, keeps nothing between calls, and inner loops cannot disturb outer ones.
type cursor struct{ a, b, c int32 }

// loopSlots is the number of positions in a cursor: two nested loops, and a list indexed within the inner one.
const loopSlots = LoopDepthMax + 1

func (c cursor) at(slot int) int32 {
	switch slot {
	case 0:
		return c.a
	case 1:
		return c.b
	}
	return c.c
}

func (c cursor) with(slot int, position int32) cursor {
	switch slot {
	case 0:
		c.a = position
	case 1:
		c.b = position
	default:
		c.c = position
	}
	return c
}

// kind is the static type of a compiled expression.
type kind uint8

const (
	boolKind kind = iota
	intKind
	timeKind     // microseconds since 1970
	durationKind // microseconds
	textKind
	listKind
	stepKind
	eventKind
)

type (
	facts    = correlate.Facts
	boolFunc = func(*facts, cursor) truth
	intFunc  = func(*facts, cursor) (v int64, ok bool)
	textFunc = func(*facts, cursor) (v string, ok bool)
)

// expr is a compiled expression: the one function of its kind is set. Functions return ok = false, or a truth above
// yes, for an error. Texts may be views of the session's memory: they live as long as the call.
type expr struct {
	kind     kind
	boolean  boolFunc
	integer  intFunc // ints, times and durations
	text     textFunc
	list     *list
	step     func(*facts, cursor) *correlate.StepFact
	event    func(*facts, cursor) *correlate.RowEvent // nil for an error
	leaf     leaf
	fixed    bool // the same for every session; the function accepts nil facts
	fallible bool // may end in an error
}

// leaf names what a simple expression reads, so that a comparison can read it without a call of its own.
type leaf struct {
	of leafKind
	id int
}

type leafKind uint8

const (
	noLeaf leafKind = iota
	stepCountLeaf
	sessionCountLeaf
	durationLeaf
	keyCountLeaf
	intFieldLeaf
	textFieldLeaf
)

// notNative is the panic value by which the compiler gives an expression up; compile recovers it.
type notNative string

// Error says what has no native form.
func (n notNative) Error() string { return string(n) + " has no native form" }

// compiler turns one checked expression into closures.
type compiler struct {
	lang   *language
	steps  map[string]int
	ast    *ast.AST
	scope  map[string]expr // variables of the loops around
	depth  int             // number of those loops
	moment bool            // first and last of a step that did not happen are errors
}

// compile returns the native form of a checked expression, or a notNative error.
func compile(lang *language, steps []string, checked *cel.Ast, moment bool) (x expr, err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case notNative:
			err = r
		default:
			panic(r)
		}
	}()
	c := &compiler{lang: lang, steps: map[string]int{}, ast: checked.NativeRep(), scope: map[string]expr{}, moment: moment}
	for i, s := range steps {
		c.steps[s] = i
	}
	return c.expr(c.ast.Expr()), nil
}

func (c *compiler) expr(e ast.Expr) expr {
	switch e.Kind() {
	case ast.LiteralKind:
		return literal(e.AsLiteral())
	case ast.IdentKind:
		return c.variable(e.AsIdent())
	case ast.SelectKind:
		return c.member(e.AsSelect())
	case ast.CallKind:
		return c.call(e.AsCall())
	case ast.ListKind:
		return c.literalList(e.AsList().Elements())
	case ast.ComprehensionKind:
		return c.loop(e.AsComprehension())
	}
	panic(notNative("a map"))
}

func literal(v ref.Val) expr {
	switch v := v.(type) {
	case types.Bool:
		return fixedBool(is(bool(v)))
	case types.Int:
		return fixedInt(intKind, int64(v), true)
	case types.String:
		return fixedText(string(v), true)
	}
	panic(notNative("a " + v.Type().TypeName()))
}

func fixedBool(v truth) expr {
	return expr{kind: boolKind, fixed: true, fallible: v > yes, boolean: func(*facts, cursor) truth { return v }}
}

func fixedInt(k kind, v int64, ok bool) expr {
	return expr{kind: k, fixed: true, fallible: !ok, integer: func(*facts, cursor) (int64, bool) { return v, ok }}
}

func fixedText(v string, ok bool) expr {
	return expr{kind: textKind, fixed: true, fallible: !ok, text: func(*facts, cursor) (string, bool) { return v, ok }}
}

// fold marks what an expression inherits from its operands, and computes it now where all of them are fixed.
func fold(x expr, operands ...expr) expr {
	fixed := true
	for _, o := range operands {
		fixed = fixed && o.fixed
		x.fallible = x.fallible || o.fallible
	}
	if !fixed {
		return x
	}
	switch {
	case x.boolean != nil:
		return fixedBool(x.boolean(nil, cursor{}))
	case x.integer != nil:
		v, ok := x.integer(nil, cursor{})
		return fixedInt(x.kind, v, ok)
	case x.text != nil:
		v, ok := x.text(nil, cursor{})
		return fixedText(v, ok)
	}
	return x
}

func integer(k kind, f intFunc) expr { return expr{kind: k, integer: f} }
func boolean(f boolFunc) expr        { return expr{kind: boolKind, boolean: f} }
func text(f textFunc) expr           { return expr{kind: textKind, text: f} }

// view returns the bytes as a string without copying them.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// span returns end - start, at most the longest duration that CEL has.
func span(f *facts) int64 { return min(int64(f.End-f.Start), durationMax) }

func sourceName(sources []string, e *correlate.RowEvent) string {
	if int(e.Source) < len(sources) {
		return sources[e.Source]
	}
	return ""
}

func stepName(f *facts, e *correlate.RowEvent) string { return f.Row.StepNames[e.Step] }

func isInt(f jobspec.FieldDef) bool { return f.Type == jobspec.IntField }

func (c *compiler) variable(name string) expr {
	if x, ok := c.scope[name]; ok {
		return x
	}
	switch name {
	case varStart:
		return integer(timeKind, func(f *facts, _ cursor) (int64, bool) { return int64(f.Start), true })
	case varEnd:
		return integer(timeKind, func(f *facts, _ cursor) (int64, bool) { return int64(f.End), true })
	case varDuration:
		x := integer(durationKind, func(f *facts, _ cursor) (int64, bool) { return span(f), true })
		x.leaf = leaf{of: durationLeaf}
		return x
	case varEvents:
		return c.events()
	}
	panic(notNative("the name " + name))
}

// member compiles x.name and has(x.name).
func (c *compiler) member(s ast.SelectExpr) expr {
	operand, name, test := s.Operand(), s.FieldName(), s.IsTestOnly()
	if operand.Kind() == ast.IdentKind {
		of := operand.AsIdent()
		if _, shadowed := c.scope[of]; !shadowed && of == varKeys {
			return c.keyKind(c.lang.kinds[name], test)
		} else if !shadowed && of == varFields {
			return c.field(c.lang.fields[name], test)
		}
	}
	x := c.expr(operand)
	switch x.kind {
	case stepKind:
		return c.stepMember(x, name, test)
	case eventKind:
		return c.eventMember(x, name, test)
	}
	panic(notNative("." + name))
}

func (c *compiler) keyKind(kind int, test bool) expr {
	if test {
		return boolean(func(f *facts, _ cursor) truth { return is(f.KeyCount(kind) > 0) })
	}
	return c.keys(kind)
}

func (c *compiler) field(id int, test bool) expr {
	var x expr
	switch {
	case test:
		return boolean(func(f *facts, _ cursor) truth { return is(f.Has(id)) })
	case isInt(c.lang.spec.Fields[id]):
		x = integer(intKind, func(f *facts, _ cursor) (int64, bool) { return f.Int(id), true })
		x.leaf = leaf{intFieldLeaf, id}
	default:
		x = text(func(f *facts, _ cursor) (string, bool) { return view(f.Text(id)), true })
		x.leaf = leaf{textFieldLeaf, id}
	}
	return x
}

func (c *compiler) stepMember(x expr, name string, test bool) expr {
	step := x.step
	switch {
	case test:
		return boolean(func(f *facts, c cursor) truth { return is(step(f, c).Count != 0) })
	case name == "count":
		n := integer(intKind, func(f *facts, c cursor) (int64, bool) { return step(f, c).Count, true })
		n.leaf = x.leaf
		return n
	}
	last, moment := name == "last", c.moment
	t := integer(timeKind, func(f *facts, c cursor) (int64, bool) {
		s := step(f, c)
		if last {
			return int64(s.Last), !moment || s.Count != 0
		}
		return int64(s.First), !moment || s.Count != 0
	})
	t.fallible = moment
	return t
}

func (c *compiler) eventMember(x expr, name string, test bool) expr {
	if test && x.fallible { // has() takes an element that is not there for false, but an error within its index for an error
		panic(notNative("has() of an indexed element"))
	}
	if test && name == "time" {
		return fixedBool(yes)
	}
	at, sources := x.event, c.lang.sources
	if name == "time" {
		return fold(integer(timeKind, func(f *facts, c cursor) (int64, bool) {
			if e := at(f, c); e != nil {
				return int64(e.Time), true
			}
			return 0, false
		}), x)
	}
	t := text(func(f *facts, c cursor) (string, bool) {
		if e := at(f, c); e != nil {
			return stepName(f, e), true
		}
		return "", false
	})
	if name == "source" {
		t = text(func(f *facts, c cursor) (string, bool) {
			if e := at(f, c); e != nil {
				return sourceName(sources, e), true
			}
			return "", false
		})
	}
	t = fold(t, x)
	if test {
		return textCompare(operators.NotEquals, t, fixedText("", true))
	}
	return t
}

// call compiles operators and functions.
func (c *compiler) call(call ast.CallExpr) expr {
	name := call.FunctionName()
	operands := call.Args()
	if call.IsMemberFunction() {
		operands = append([]ast.Expr{call.Target()}, operands...)
	}
	switch name {
	case hiddenStep:
		return c.stepNamed(string(operands[1].AsLiteral().(types.String)))
	case overloads.Matches:
		return matches(c.expr(operands[0]), operands[1])
	}
	xs := make([]expr, len(operands))
	for i, o := range operands {
		xs[i] = c.expr(o)
	}
	switch name {
	case operators.LogicalAnd:
		return logical(no, xs)
	case operators.LogicalOr:
		return logical(yes, xs)
	case operators.LogicalNot:
		return not(xs[0])
	case operators.Conditional:
		return conditional(xs[0], xs[1], xs[2])
	case operators.Equals, operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals:
		return compare(name, xs[0], xs[1])
	case operators.In:
		return contained(xs[0], xs[1])
	case operators.Index:
		return c.index(xs[0], xs[1])
	case operators.Negate, operators.Add, operators.Subtract, operators.Multiply, operators.Divide, operators.Modulo:
		return arithmetic(name, xs)
	case overloads.Size:
		return size(xs[0])
	case overloads.Contains, overloads.StartsWith, overloads.EndsWith:
		return textTest(name, xs[0], xs[1])
	case overloads.TypeConvertInt, overloads.TypeConvertString, overloads.TypeConvertDuration, overloads.TypeConvertTimestamp:
		return convert(name, xs[0])
	}
	if isGetter(name) {
		return getter(name, xs)
	}
	panic(notNative("the function " + name))
}

func (c *compiler) stepNamed(name string) expr {
	id := c.steps[name]
	return expr{
		kind: stepKind,
		leaf: leaf{stepCountLeaf, id},
		step: func(f *facts, _ cursor) *correlate.StepFact { return &f.Steps[id] },
	}
}

// The ranges of CEL's times and durations, in microseconds: the years 1 to 9999, and what 64 bits of nanoseconds hold.
const (
	timeMin     = -62135596800 * 1_000_000
	timeMax     = 253402300800*1_000_000 - 1
	durationMax = int64(event.MaxTime) / 1000
)

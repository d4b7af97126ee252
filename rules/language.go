package rules

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// The names that rules use.
const (
	varStart    = "start"
	varEnd      = "end"
	varDuration = "duration"
	varEvents   = "events"
	varKeys     = "keys"
	varFields   = "fields"
	funStep     = "step"

	// step("x") expands to @step(@session, "x"): names that no user can write, so that the interpreter finds the session.
	hiddenStep    = "@step"
	hiddenSession = "@session"
)

// The object types of the language. They have no constructors.
const (
	typeStep    = "weft.step"
	typeEvent   = "weft.event"
	typeKeys    = "weft.keys"
	typeFields  = "weft.fields"
	typeSession = "weft.session"
)

// language is CEL with the key kinds, fields and sources of one job.
type language struct {
	env     *cel.Env
	spec    *jobspec.Spec
	kinds   map[string]int  // numbers of key kinds
	fields  map[string]int  // numbers of fields
	sources []string        // names of sources by number
	steps   map[string]bool // every step there can be; nil where records name their own
	types   *objectTypes
}

func newLanguage(spec *jobspec.Spec) (*language, error) {
	l := &language{spec: spec, kinds: map[string]int{}, fields: map[string]int{}, steps: knownSteps(spec)}
	for i, k := range spec.Kinds {
		l.kinds[k.Name] = i
	}
	for i, f := range spec.Fields {
		l.fields[f.Name] = i
	}
	for _, s := range spec.Sources {
		l.sources = append(l.sources, s.Name)
	}
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	l.types = &objectTypes{Registry: registry, members: l.members()}
	l.env, err = cel.NewEnv(
		cel.CustomTypeAdapter(registry),
		cel.CustomTypeProvider(l.types),
		cel.Variable(varStart, cel.TimestampType),
		cel.Variable(varEnd, cel.TimestampType),
		cel.Variable(varDuration, cel.DurationType),
		cel.Variable(varEvents, cel.ListType(cel.ObjectType(typeEvent))),
		cel.Variable(varKeys, cel.ObjectType(typeKeys)),
		cel.Variable(varFields, cel.ObjectType(typeFields)),
		cel.Variable(hiddenSession, cel.ObjectType(typeSession)),
		cel.Function(hiddenStep, cel.Overload("weft_step",
			[]*cel.Type{cel.ObjectType(typeSession), cel.StringType}, cel.ObjectType(typeStep),
			cel.BinaryBinding(stepOfSession))),
		cel.Macros(append([]cel.Macro{cel.GlobalMacro(funStep, 1, expandStep)}, cel.StandardMacros...)...),
		cel.EnableMacroCallTracking(),
		cel.EnableIdentifierEscapeSyntax(),
		cel.DefaultUTCTimeZone(true),
		cel.ParserRecursionLimit(DepthMax),
		cel.ParserExpressionSizeLimit(TextBytesMax),
	)
	return l, err
}

// knownSteps returns every step that the sources can produce, or nil where some source reads it from its records.
func knownSteps(spec *jobspec.Spec) map[string]bool {
	known := map[string]bool{}
	for _, s := range spec.Sources {
		if s.Step.Value == "" {
			return nil
		}
		known[s.Step.Value] = true
	}
	if len(known) == 0 {
		return nil
	}
	return known
}

// expandStep makes the session an argument of step("x") and insists on a literal name: the core counts only the steps
// that it knows rules to mention.
func expandStep(h cel.MacroExprFactory, _ ast.Expr, args []ast.Expr) (ast.Expr, *common.Error) {
	name := args[0]
	if name.Kind() == ast.LiteralKind {
		if s, ok := name.AsLiteral().(types.String); ok {
			if s == "" || len(s) > event.StepBytesMax {
				return nil, h.NewError(name.ID(), fmt.Sprintf("the name of a step has 1 to %d bytes", event.StepBytesMax))
			}
			return h.NewCall(hiddenStep, h.NewIdent(hiddenSession), name), nil
		}
	}
	return nil, h.NewError(name.ID(), `step takes the literal name of a step, as in step("paid")`)
}

// objectTypes tells the type checker, and the interpreter, which members the objects of the language have.
type objectTypes struct {
	*types.Registry
	members map[string]map[string]*types.FieldType
}

var _ types.Provider = (*objectTypes)(nil)

// FindStructType finds a type by name.
func (o *objectTypes) FindStructType(name string) (*types.Type, bool) {
	if _, ok := o.members[name]; ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return o.Registry.FindStructType(name)
}

// FindStructFieldType finds a member of a type.
func (o *objectTypes) FindStructFieldType(name, member string) (*types.FieldType, bool) {
	if m, ok := o.members[name]; ok {
		t, ok := m[member]
		return t, ok
	}
	return o.Registry.FindStructFieldType(name, member)
}

// call checks the arguments that must be literals, because they are compiled once.
func (i *inspection) call(e ast.Expr) {
	call := e.AsCall()
	args := call.Args()
	switch name := call.FunctionName(); name {
	case hiddenStep:
		step := string(args[1].AsLiteral().(types.String))
		i.steps[step] = true
		if known := i.lang.steps; known != nil && !known[step] {
			i.report(args[1], fmt.Sprintf("no source has the step %q", step), nearest(step, names(known)))
		}
	case overloads.Matches:
		pattern := args[len(args)-1]
		if text, ok := literalText(pattern); !ok {
			i.report(pattern, "the pattern of matches must be a literal", "")
		} else if _, err := compilePattern(text); err != nil {
			i.report(pattern, err.Error(), "")
		}
	case overloads.TypeConvertDuration, overloads.TypeConvertTimestamp:
		if text, ok := literalText(args[0]); ok {
			if _, err := parseTime(name, text); err != nil {
				i.report(args[0], fmt.Sprintf("%q is no %s", text, name), timeHint(name))
			}
		}
	default:
		if call.IsMemberFunction() && len(args) == 1 && isGetter(name) {
			if zone, ok := literalText(args[0]); !ok {
				i.report(args[0], "the time zone must be a literal", "")
			} else if _, err := loadZone(zone); err != nil {
				i.report(args[0], fmt.Sprintf("unknown time zone %q", zone), `expected a name such as "Asia/Shanghai" or an offset such as "+08:00"`)
			}
		}
	}
}

func literalText(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

func compilePattern(text string) (*regexp.Regexp, error) {
	if len(text) > PatternBytesMax {
		return nil, fmt.Errorf("the pattern has %d bytes; at most %d are allowed", len(text), PatternBytesMax)
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, err
	}
	if len(program.Inst) > PatternProgramMax {
		return nil, errors.New("the pattern is too large once its repetitions are unrolled")
	}
	return regexp.Compile(text)
}

// parseTime converts a literal as cel-go does: to the Go type time.Duration or time.Time.
func parseTime(function, text string) (any, error) {
	want := types.DurationType
	if function == overloads.TypeConvertTimestamp {
		want = types.TimestampType
	}
	v := types.String(text).ConvertToType(want)
	if err, ok := v.(*types.Err); ok {
		return nil, err
	}
	return v.Value(), nil
}

// loadZone reads a time zone as CEL writes it: an IANA name or an offset such as -02:30.
func loadZone(text string) (*time.Location, error) {
	hours, minutes, offset := strings.Cut(text, ":")
	if text == "Local" {
		return nil, errors.New("a rule must not depend on the machine's own zone")
	}
	if !offset {
		return time.LoadLocation(text)
	}
	h, err := strconv.Atoi(hours)
	if err != nil {
		return nil, err
	}
	m, err := strconv.Atoi(minutes)
	if err != nil {
		return nil, err
	}
	if h < -23 || h > 23 || m < 0 || m > 59 {
		return nil, fmt.Errorf("offset %s out of range", text)
	}
	if strings.HasPrefix(hours, "-") {
		m = -m
	}
	return time.FixedZone("", (h*60+m)*60), nil
}

func isGetter(name string) bool {
	switch name {
	case overloads.TimeGetFullYear, overloads.TimeGetMonth, overloads.TimeGetDayOfYear, overloads.TimeGetDate,
		overloads.TimeGetDayOfMonth, overloads.TimeGetDayOfWeek, overloads.TimeGetHours, overloads.TimeGetMinutes,
		overloads.TimeGetSeconds, overloads.TimeGetMilliseconds:
		return true
	}
	return false
}

// operatorName spells CEL's internal name of a function as users write it.
func operatorName(function string) string {
	if symbol, ok := operators.FindReverse(function); ok && symbol != "" {
		return "operator " + symbol
	}
	if function == operators.Index {
		return "operator []"
	}
	if function == operators.Conditional {
		return "operator ?:"
	}
	return function
}

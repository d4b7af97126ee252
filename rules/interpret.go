package rules

import (
	"errors"
	"reflect"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// program decides an expression on cel-go's interpreter: the same answers as the compiled form, only slower.
type program struct {
	lang    *language
	steps   []string
	program cel.Program
}

func (l *language) interpret(steps []string, checked *cel.Ast) (*program, error) {
	p, err := l.env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(InterpretedCostMax))
	if err != nil {
		return nil, err
	}
	return &program{l, steps, p}, nil
}

func (p *program) decide(f *correlate.Facts) bool {
	v, err := p.eval(f, false)
	return err == nil && v == types.True
}

func (p *program) moment(f *correlate.Facts) (event.Micros, bool) {
	v, err := p.eval(f, true)
	if err != nil {
		return 0, false
	}
	t, ok := v.(types.Timestamp)
	if !ok {
		return 0, false
	}
	return event.Micros(t.UnixMicro()), true
}

func (p *program) eval(f *correlate.Facts, moment bool) (ref.Val, error) {
	v, _, err := p.program.Eval(&session{p.lang, p.steps, f, moment})
	return v, err
}

// session answers for the variables of a rule.
type session struct {
	lang   *language
	steps  []string
	facts  *correlate.Facts
	moment bool // a step that did not happen has no first and last
}

// ResolveName finds a variable by name.
func (s *session) ResolveName(name string) (any, bool) {
	switch name {
	case varStart:
		return timestamp(s.facts.Start), true
	case varEnd:
		return timestamp(s.facts.End), true
	case varDuration:
		return types.Duration{Duration: time.Duration(span(s.facts)) * time.Microsecond}, true
	case varEvents:
		list := make([]ref.Val, len(s.facts.Events()))
		for i := range list {
			list[i] = &object{typeEvent, eventView{s, i}}
		}
		return &timeline{types.NewRefValList(s.lang.types, list), s.facts.Count}, true
	case varKeys:
		return &object{typeKeys, s}, true
	case varFields:
		return &object{typeFields, s}, true
	case hiddenSession:
		return &object{typeSession, s}, true
	}
	return nil, false
}

// Parent says that there are no other variables.
func (s *session) Parent() cel.Activation { return nil }

func timestamp(t event.Micros) types.Timestamp {
	return types.Timestamp{Time: time.UnixMicro(int64(t)).UTC()}
}

// timeline is the list of events with the session's exact size.
type timeline struct {
	traits.Lister
	count int64
}

// Size returns the number of events of the session, listed or not.
func (t *timeline) Size() ref.Val { return types.Int(t.count) }

// Fold loops over the events that are listed.
func (t *timeline) Fold(f traits.Folder) { types.ToFoldableList(t.Lister).Fold(f) }

// stepView and eventView are what the members of a step and an event read.
type (
	stepView struct {
		fact   *correlate.StepFact
		moment bool
	}
	eventView struct {
		session *session
		at      int
	}
)

func (e eventView) row() *correlate.RowEvent { return &e.session.facts.Row.Events[e.at] }

// stepOfSession implements step("x").
func stepOfSession(s, name ref.Val) ref.Val {
	of, ok := s.Value().(*session)
	if !ok {
		return types.MaybeNoSuchOverloadErr(s)
	}
	for i, step := range of.steps {
		if types.String(step) == name {
			return &object{typeStep, stepView{&of.facts.Steps[i], of.moment}}
		}
	}
	return types.NewErr("unknown step %v", name)
}

// members declares the members of every object type, and how the interpreter reads them.
func (l *language) members() map[string]map[string]*types.FieldType {
	keys := map[string]*types.FieldType{}
	for i, k := range l.spec.Kinds {
		keys[k.Name] = &types.FieldType{
			Type: cel.ListType(cel.StringType),
			IsSet: func(v any) bool {
				s, ok := v.(*session)
				return ok && s.facts.KeyCount(i) > 0
			},
			GetFrom: reading(func(s *session) (any, error) {
				values := []ref.Val{}
				s.facts.Keys(i, func(v []byte) bool {
					values = append(values, types.String(v))
					return true
				})
				return types.NewRefValList(s.lang.types, values), nil
			}),
		}
	}
	fields := map[string]*types.FieldType{}
	for i, f := range l.spec.Fields {
		t := cel.StringType
		if isInt(f) {
			t = cel.IntType
		}
		fields[f.Name] = &types.FieldType{
			Type: t,
			IsSet: func(v any) bool {
				s, ok := v.(*session)
				return ok && s.facts.Has(i)
			},
			GetFrom: reading(func(s *session) (any, error) {
				if isInt(f) {
					return types.Int(s.facts.Int(i)), nil
				}
				return types.String(s.facts.Text(i)), nil
			}),
		}
	}
	happened := func(v any) bool {
		s, ok := v.(stepView)
		return ok && s.fact.Count != 0
	}
	edge := func(of func(*correlate.StepFact) event.Micros) *types.FieldType {
		return &types.FieldType{Type: cel.TimestampType, IsSet: happened, GetFrom: reading(func(s stepView) (any, error) {
			if s.moment && s.fact.Count == 0 {
				return nil, errors.New("the step did not happen")
			}
			return timestamp(of(s.fact)), nil
		})}
	}
	text := func(of func(eventView) string) *types.FieldType {
		return &types.FieldType{
			Type: cel.StringType,
			IsSet: func(v any) bool {
				e, ok := v.(eventView)
				return ok && of(e) != ""
			},
			GetFrom: reading(func(e eventView) (any, error) { return types.String(of(e)), nil }),
		}
	}
	return map[string]map[string]*types.FieldType{
		typeSession: {},
		typeKeys:    keys,
		typeFields:  fields,
		typeStep: {
			"count": {Type: cel.IntType, IsSet: happened, GetFrom: reading(func(s stepView) (any, error) {
				return types.Int(s.fact.Count), nil
			})},
			"first": edge(func(s *correlate.StepFact) event.Micros { return s.First }),
			"last":  edge(func(s *correlate.StepFact) event.Micros { return s.Last }),
		},
		typeEvent: {
			"time": {Type: cel.TimestampType, IsSet: func(any) bool { return true }, GetFrom: reading(func(e eventView) (any, error) {
				return timestamp(e.row().Time), nil
			})},
			"source": text(func(e eventView) string { return sourceName(l.sources, e.row()) }),
			"step":   text(func(e eventView) string { return stepName(e.session.facts, e.row()) }),
		},
	}
}

// reading makes a getter of one kind of object from a function.
func reading[T any](get func(T) (any, error)) ref.FieldGetter {
	return func(v any) (any, error) {
		t, ok := v.(T)
		if !ok {
			return nil, errors.New("no such member")
		}
		return get(t)
	}
}

// object is a step, an event, the keys or the fields as the interpreter handles them.
type object struct {
	kind string
	view any
}

var _ ref.Val = (*object)(nil)

// ConvertToNative refuses: objects stay in the language.
func (o *object) ConvertToNative(t reflect.Type) (any, error) {
	return nil, errors.New("no conversion from " + o.kind + " to " + t.String())
}

// ConvertToType converts to the type itself, or tells it.
func (o *object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.TypeType:
		return types.NewObjectType(o.kind)
	case o.Type():
		return o
	}
	return types.NewErr("no conversion from %s to %s", o.kind, t.TypeName())
}

// Equal tells whether two objects are the same step or event of the same session.
func (o *object) Equal(other ref.Val) ref.Val {
	p, ok := other.(*object)
	return types.Bool(ok && p.view == o.view)
}

// Type returns the object's type.
func (o *object) Type() ref.Type { return types.NewObjectType(o.kind) }

// Value returns what the members read.
func (o *object) Value() any { return o.view }

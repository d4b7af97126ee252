package rules

import (
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/overloads"
)

// textTest compiles contains, startsWith and endsWith.
func textTest(function string, x, y expr) expr {
	if x.kind != textKind || y.kind != textKind {
		panic(notNative(function + " on what is no text"))
	}
	var test func(s, part string) bool
	switch function {
	case overloads.Contains:
		test = strings.Contains
	case overloads.StartsWith:
		test = strings.HasPrefix
	default:
		test = strings.HasSuffix
	}
	return fold(boolean(tested(test, x.text, y.text)), x, y)
}

func tested(test func(s, part string) bool, a, b textFunc) boolFunc {
	return func(f *facts, c cursor) truth {
		v, ok1 := a(f, c)
		w, ok2 := b(f, c)
		if !ok1 || !ok2 {
			return fault
		}
		return is(test(v, w))
	}
}

// matches compiles matches with its literal pattern, which need not match the whole text.
func matches(x expr, pattern ast.Expr) expr {
	literal, _ := literalText(pattern)
	re, err := compilePattern(literal)
	if err != nil {
		panic(notNative("the pattern"))
	}
	a := x.text
	return fold(boolean(func(f *facts, c cursor) truth {
		v, ok := a(f, c)
		if !ok {
			return fault
		}
		return is(re.MatchString(v))
	}), x)
}

// contained compiles x in list.
func contained(x, in expr) expr {
	if in.kind != listKind {
		panic(notNative("in on what is no list"))
	}
	l := in.list
	switch x.kind {
	case textKind:
		if l.fixed && !l.fallible {
			return textInSet(x, l)
		}
		a, element := x.text, l.element.text
		return fold(boolean(func(f *facts, c cursor) truth {
			v, ok := a(f, c)
			if !ok || !l.sound(f, c) {
				return fault
			}
			for i := l.first(f, c); i >= 0; i = l.after(f, c, i) {
				if w, _ := element(f, c.with(l.slot, i)); w == v {
					return yes
				}
			}
			return no
		}), x, in)
	case intKind, timeKind, durationKind:
		if l.fixed && !l.fallible {
			return intInSet(x, l)
		}
		a, element := x.integer, l.element.integer
		return fold(boolean(func(f *facts, c cursor) truth {
			v, ok := a(f, c)
			if !ok || !l.sound(f, c) {
				return fault
			}
			for i := l.first(f, c); i >= 0; i = l.after(f, c, i) {
				if w, _ := element(f, c.with(l.slot, i)); w == v {
					return yes
				}
			}
			return no
		}), x, in)
	}
	panic(notNative("in for bools, lists or objects"))
}

// scanMax is the size up to which a set is searched in line.
const scanMax = 8

func textInSet(x expr, l *list) expr {
	a, set := x.text, []string{}
	for i := l.first(nil, cursor{}); i >= 0; i = l.after(nil, cursor{}, i) {
		v, _ := l.element.text(nil, cursor{}.with(l.slot, i))
		set = append(set, v)
	}
	if len(set) <= scanMax {
		return fold(boolean(func(f *facts, c cursor) truth {
			v, ok := a(f, c)
			if !ok {
				return fault
			}
			for _, w := range set {
				if v == w {
					return yes
				}
			}
			return no
		}), x)
	}
	return fold(boolean(inTable(a, table(set))), x)
}

func intInSet(x expr, l *list) expr {
	a, set := x.integer, []int64{}
	for i := l.first(nil, cursor{}); i >= 0; i = l.after(nil, cursor{}, i) {
		v, _ := l.element.integer(nil, cursor{}.with(l.slot, i))
		set = append(set, v)
	}
	return fold(boolean(inSorted(a, sorted(set))), x)
}

func table(set []string) map[string]struct{} {
	t := make(map[string]struct{}, len(set))
	for _, s := range set {
		t[s] = struct{}{}
	}
	return t
}

func inTable(a textFunc, set map[string]struct{}) boolFunc {
	return func(f *facts, c cursor) truth {
		v, ok := a(f, c)
		if !ok {
			return fault
		}
		_, in := set[v]
		return is(in)
	}
}

func sorted(set []int64) []int64 {
	slices.Sort(set)
	return set
}

func inSorted(a intFunc, set []int64) boolFunc {
	return func(f *facts, c cursor) truth {
		v, ok := a(f, c)
		if !ok {
			return fault
		}
		_, in := slices.BinarySearch(set, v)
		return is(in)
	}
}

package rules

import (
	"math"
	"strings"

	"cel.dev/cel-go/common/operators"
)

// logical compiles && (decided by no) and || (decided by yes). An operand that decides outweighs an error of another,
// so the order of the operands does not matter and nested ones of the same operator can be taken together.
func logical(decider truth, xs []expr) expr {
	var fs []boolFunc
	fallible := false
	for _, x := range xs {
		if x.fixed {
			switch v := x.boolean(nil, cursor{}); {
			case v == decider:
				return x
			case v <= yes: // the neutral element
				continue
			}
		}
		fs = append(fs, x.boolean)
		fallible = fallible || x.fallible
	}
	var f boolFunc
	switch len(fs) {
	case 0:
		return fixedBool(decider ^ 1)
	case 1:
		f = fs[0]
	default:
		f = junction(decider, fs)
	}
	return expr{kind: boolKind, boolean: f, fallible: fallible}
}

func junction(decider truth, fs []boolFunc) boolFunc {
	a, b := fs[0], fs[1]
	if decider == no {
		return func(f *facts, c cursor) truth {
			x := a(f, c)
			if x == no {
				return no
			}
			if y := b(f, c); y != no {
				return x | y
			}
			return no
		}
	}
	return func(f *facts, c cursor) truth {
		x := a(f, c)
		if x == yes {
			return yes
		}
		if y := b(f, c); y != yes {
			return x | y
		}
		return yes
	}
}

func not(x expr) expr {
	a := x.boolean
	return fold(boolean(func(f *facts, c cursor) truth {
		v := a(f, c)
		if v > yes {
			return v
		}
		return v ^ 1
	}), x)
}

// conditional compiles cond ? x : y.
func conditional(cond, x, y expr) expr {
	if cond.fixed {
		switch cond.boolean(nil, cursor{}) {
		case yes:
			return x
		case no:
			return y
		}
	}
	choose := cond.boolean
	out := expr{kind: x.kind}
	switch x.kind {
	case boolKind:
		a, b := x.boolean, y.boolean
		out.boolean = func(f *facts, c cursor) truth {
			switch v := choose(f, c); v {
			case yes:
				return a(f, c)
			case no:
				return b(f, c)
			default:
				return v
			}
		}
	case intKind, timeKind, durationKind:
		a, b := x.integer, y.integer
		out.integer = func(f *facts, c cursor) (int64, bool) {
			switch choose(f, c) {
			case yes:
				return a(f, c)
			case no:
				return b(f, c)
			}
			return 0, false
		}
	case textKind:
		a, b := x.text, y.text
		out.text = func(f *facts, c cursor) (string, bool) {
			switch choose(f, c) {
			case yes:
				return a(f, c)
			case no:
				return b(f, c)
			}
			return "", false
		}
	default:
		panic(notNative("a choice between lists or objects"))
	}
	return fold(out, cond, x, y)
}

// compare compiles the six comparisons of two operands of one kind.
func compare(op string, x, y expr) expr {
	if x.fixed && !y.fixed {
		op, x, y = mirrored(op), y, x
	}
	switch x.kind {
	case boolKind:
		return boolCompare(op, x, y)
	case intKind, timeKind, durationKind:
		return intCompare(op, x, y)
	case textKind:
		return textCompare(op, x, y)
	}
	panic(notNative("comparing lists or objects"))
}

// mirrored returns the comparison that holds when the operands change sides.
func mirrored(op string) string {
	switch op {
	case operators.Less:
		return operators.Greater
	case operators.LessEquals:
		return operators.GreaterEquals
	case operators.Greater:
		return operators.Less
	case operators.GreaterEquals:
		return operators.LessEquals
	}
	return op
}

func boolCompare(op string, x, y expr) expr {
	if op != operators.Equals && op != operators.NotEquals {
		panic(notNative("an order of bools"))
	}
	a, b, flip := x.boolean, y.boolean, is(op == operators.Equals)
	return fold(boolean(func(f *facts, c cursor) truth {
		v, w := a(f, c), b(f, c)
		if v|w > yes {
			return fault
		}
		return v ^ w ^ flip
	}), x, y)
}

func intCompare(op string, x, y expr) expr {
	if y.fixed && !y.fallible && !x.fixed {
		v, _ := y.integer(nil, cursor{})
		if lo, hi, flip, ok := asRange(op, v); ok {
			return fold(boolean(inRange(x, lo, hi, flip)), x, y)
		}
	}
	a, b := x.integer, y.integer
	var f boolFunc
	switch op {
	case operators.Equals:
		f = intsEqual(a, b, 0)
	case operators.NotEquals:
		f = intsEqual(a, b, 1)
	case operators.Less:
		f = intsOrdered(a, b, 0)
	case operators.LessEquals: // x <= y where not y < x
		f = intsOrdered(b, a, 1)
	case operators.Greater:
		f = intsOrdered(b, a, 0)
	default:
		f = intsOrdered(a, b, 1)
	}
	return fold(boolean(f), x, y)
}

func intsEqual(a, b intFunc, flip truth) boolFunc {
	return func(f *facts, c cursor) truth {
		v, ok1 := a(f, c)
		w, ok2 := b(f, c)
		if !ok1 || !ok2 {
			return fault
		}
		return is(v == w) ^ flip
	}
}

func intsOrdered(a, b intFunc, flip truth) boolFunc {
	return func(f *facts, c cursor) truth {
		v, ok1 := a(f, c)
		w, ok2 := b(f, c)
		if !ok1 || !ok2 {
			return fault
		}
		return is(v < w) ^ flip
	}
}

// asRange words a comparison with a constant as lo <= x <= hi, or its opposite where flip is 1. It is not ok where the
// range is empty.
func asRange(op string, v int64) (lo, hi int64, flip truth, ok bool) {
	switch op {
	case operators.Equals:
		return v, v, 0, true
	case operators.NotEquals:
		return v, v, 1, true
	case operators.Less:
		return math.MinInt64, v - 1, 0, v > math.MinInt64
	case operators.LessEquals:
		return math.MinInt64, v, 0, true
	case operators.Greater:
		return v + 1, math.MaxInt64, 0, v < math.MaxInt64
	}
	return v, math.MaxInt64, 0, true // >=
}

// inRange tests lo <= x <= hi with one comparison; the leaves that rules use most are read in place.
func inRange(x expr, lo, hi int64, flip truth) boolFunc {
	low, width, id := uint64(lo), uint64(hi)-uint64(lo), x.leaf.id
	switch x.leaf.of {
	case stepCountLeaf:
		return func(f *facts, _ cursor) truth { return is(uint64(f.Steps[id].Count)-low <= width) ^ flip }
	case sessionCountLeaf:
		return func(f *facts, _ cursor) truth { return is(uint64(f.Count)-low <= width) ^ flip }
	case durationLeaf:
		return func(f *facts, _ cursor) truth { return is(uint64(span(f))-low <= width) ^ flip }
	case keyCountLeaf:
		return func(f *facts, _ cursor) truth { return is(uint64(f.KeyCount(id))-low <= width) ^ flip }
	case intFieldLeaf:
		return func(f *facts, _ cursor) truth { return is(uint64(f.Int(id))-low <= width) ^ flip }
	}
	a := x.integer
	return func(f *facts, c cursor) truth {
		v, ok := a(f, c)
		if !ok {
			return fault
		}
		return is(uint64(v)-low <= width) ^ flip
	}
}

func textCompare(op string, x, y expr) expr {
	if op != operators.Equals && op != operators.NotEquals {
		return textOrder(op, x, y)
	}
	a, b, flip := x.text, y.text, is(op == operators.NotEquals)
	if x.leaf.of == textFieldLeaf && y.fixed && !y.fallible {
		id := x.leaf.id
		want, _ := b(nil, cursor{})
		return boolean(func(f *facts, _ cursor) truth { return is(view(f.Text(id)) == want) ^ flip })
	}
	return fold(boolean(func(f *facts, c cursor) truth {
		v, ok1 := a(f, c)
		w, ok2 := b(f, c)
		if !ok1 || !ok2 {
			return fault
		}
		return is(v == w) ^ flip
	}), x, y)
}

// textOrder orders texts by their bytes, which is the order of their code points.
func textOrder(op string, x, y expr) expr {
	a, b := x.text, y.text
	lo, hi, _, _ := asRange(op, 0)
	low, width := uint64(lo), uint64(hi)-uint64(lo)
	return fold(boolean(func(f *facts, c cursor) truth {
		v, ok1 := a(f, c)
		w, ok2 := b(f, c)
		if !ok1 || !ok2 {
			return fault
		}
		return is(uint64(strings.Compare(v, w))-low <= width)
	}), x, y)
}

package rules

import (
	"math"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"github.com/weftdata/weft/correlate"
)

// list is a compiled list. It is never built: a list is the positions of its base (the events, the keys, the elements
// of a literal) that its filters keep, and what its element makes of each. Filters and maps on top of each other
// therefore cost no memory, and every position is visited once.
type list struct {
	slot int // of the cursor, for the position
	// next returns the least position from i on that the list keeps, -1 where there is none; ok is false where a filter
	// ended in an error.
	next     func(f *facts, c cursor, i int32) (position int32, ok bool)
	element  expr // read with the cursor at a position
	count    expr // the length, where it is known without a walk; else empty
	dense    bool // the list keeps every position, so that position n is element n
	fixed    bool // a literal of constants
	fallible bool // a filter or an element may end in an error
}

// sound tells whether no filter and no element ends in an error. In CEL a list with an error in it is an error, also
// where the loop over it would stop earlier; so a loop asks first. Nearly no list can fail, and then asking is free.
func (l *list) sound(f *facts, c cursor) bool {
	if !l.fallible {
		return true
	}
	i, ok := l.next(f, c, 0)
	for ; ok && i >= 0; i, ok = l.next(f, c, i+1) {
		if l.element.fallible && !l.element.holds(f, c.with(l.slot, i)) {
			return false
		}
	}
	return ok
}

// holds tells whether an expression ends without an error.
func (x *expr) holds(f *facts, c cursor) (ok bool) {
	switch {
	case x.boolean != nil:
		return x.boolean(f, c) <= yes
	case x.integer != nil:
		_, ok = x.integer(f, c)
	case x.text != nil:
		_, ok = x.text(f, c)
	case x.event != nil:
		ok = x.event(f, c) != nil
	}
	return ok
}

// first and after walk a list that is sound.
func (l *list) first(f *facts, c cursor) int32 {
	i, _ := l.next(f, c, 0)
	return i
}

func (l *list) after(f *facts, c cursor, i int32) int32 {
	i, _ = l.next(f, c, i+1)
	return i
}

// length compiles size(list).
func (l *list) length() expr {
	if l.count.integer != nil {
		return l.count
	}
	n := integer(intKind, func(f *facts, c cursor) (n int64, ok bool) {
		if !l.sound(f, c) {
			return 0, false
		}
		for i := l.first(f, c); i >= 0; i = l.after(f, c, i) {
			n++
		}
		return n, true
	})
	n.fallible = l.fallible
	return n
}

// slot returns the place in the cursor for a list at the current depth.
func (c *compiler) slot() int {
	if c.depth >= loopSlots {
		panic(notNative("loops this deep"))
	}
	return c.depth
}

// events compiles the timeline. Its length is the session's, also where the timeline was cut.
func (c *compiler) events() expr {
	slot := c.slot()
	count := integer(intKind, func(f *facts, _ cursor) (int64, bool) { return f.Count, true })
	count.leaf = leaf{of: sessionCountLeaf}
	return expr{kind: listKind, list: &list{
		slot:  slot,
		count: count,
		dense: true,
		next: func(f *facts, _ cursor, i int32) (int32, bool) {
			if all := f.Row.Events; int(i) < len(all) && all[i].Time <= f.Until {
				return i, true
			}
			return -1, true
		},
		element: expr{kind: eventKind, event: func(f *facts, c cursor) *correlate.RowEvent {
			return &f.Row.Events[c.at(slot)]
		}},
	}}
}

// keys compiles the values of a key kind.
func (c *compiler) keys(kind int) expr {
	slot := c.slot()
	count := integer(intKind, func(f *facts, _ cursor) (int64, bool) { return f.KeyCount(kind), true })
	count.leaf = leaf{keyCountLeaf, kind}
	return expr{kind: listKind, list: &list{
		slot:  slot,
		count: count,
		next: func(f *facts, _ cursor, i int32) (int32, bool) {
			for all := f.Row.Keys; int(i) < len(all); i++ {
				if k := &all[i]; k.Kind == kind && k.First <= f.Until {
					return i, true
				}
			}
			return -1, true
		},
		element: text(func(f *facts, c cursor) (string, bool) { return view(f.Row.Keys[c.at(slot)].Value), true }),
	}}
}

// literalList compiles [a, b, c] of one kind.
func (c *compiler) literalList(elements []ast.Expr) expr {
	slot, n := c.slot(), int32(len(elements))
	l := &list{slot: slot, count: fixedInt(intKind, int64(n), true), dense: true, fixed: true}
	xs := make([]expr, n)
	for i, e := range elements {
		x := c.expr(e)
		if i > 0 && x.kind != xs[0].kind {
			panic(notNative("a list of several types"))
		}
		xs[i] = x
		l.fixed = l.fixed && x.fixed
		l.fallible = l.fallible || x.fallible
	}
	if l.fallible {
		l.count = expr{}
	}
	l.next = func(_ *facts, _ cursor, i int32) (int32, bool) {
		if i < n {
			return i, true
		}
		return -1, true
	}
	l.element = oneOf(xs, slot)
	l.element.fallible = l.fallible
	return expr{kind: listKind, list: l, fallible: l.fallible, fixed: l.fixed}
}

// oneOf is the element of a literal list at the cursor's position.
func oneOf(xs []expr, slot int) expr {
	if len(xs) == 0 {
		panic(notNative("an empty list"))
	}
	x := expr{kind: xs[0].kind}
	switch x.kind {
	case boolKind:
		x.boolean = func(f *facts, c cursor) truth { return xs[c.at(slot)].boolean(f, c) }
	case intKind, timeKind, durationKind:
		x.integer = func(f *facts, c cursor) (int64, bool) { return xs[c.at(slot)].integer(f, c) }
	case textKind:
		x.text = func(f *facts, c cursor) (string, bool) { return xs[c.at(slot)].text(f, c) }
	case stepKind:
		x.step = func(f *facts, c cursor) *correlate.StepFact { return xs[c.at(slot)].step(f, c) }
	case eventKind:
		x.event = func(f *facts, c cursor) *correlate.RowEvent { return xs[c.at(slot)].event(f, c) }
	default:
		panic(notNative("a list of lists"))
	}
	return x
}

// index compiles list[i].
func (c *compiler) index(in, at expr) expr {
	if in.kind != listKind || at.kind != intKind {
		panic(notNative("an index of what is no list"))
	}
	l, index := in.list, at.integer
	find := func(f *facts, c cursor) (cursor, bool) {
		n, ok := index(f, c)
		if !ok || n < 0 || n > math.MaxInt32 || !l.sound(f, c) {
			return c, false
		}
		if l.dense {
			i, _ := l.next(f, c, int32(n))
			return c.with(l.slot, i), i >= 0
		}
		i := l.first(f, c)
		for ; n > 0 && i >= 0; n-- {
			i = l.after(f, c, i)
		}
		return c.with(l.slot, i), i >= 0
	}
	x := expr{kind: l.element.kind, fallible: true}
	switch e := l.element; e.kind {
	case boolKind:
		x.boolean = func(f *facts, c cursor) truth {
			if at, ok := find(f, c); ok {
				return e.boolean(f, at)
			}
			return fault
		}
	case intKind, timeKind, durationKind:
		x.integer = func(f *facts, c cursor) (int64, bool) {
			if at, ok := find(f, c); ok {
				return e.integer(f, at)
			}
			return 0, false
		}
	case textKind:
		x.text = func(f *facts, c cursor) (string, bool) {
			if at, ok := find(f, c); ok {
				return e.text(f, at)
			}
			return "", false
		}
	case eventKind:
		x.event = func(f *facts, c cursor) *correlate.RowEvent {
			if at, ok := find(f, c); ok {
				return e.event(f, at)
			}
			return nil
		}
	default:
		panic(notNative("a step or list taken from a list"))
	}
	return x
}

// loop compiles the macros all, exists, exists_one, filter and map from the comprehension that cel-go expands each to.
func (c *compiler) loop(e ast.ComprehensionExpr) expr {
	over := c.expr(e.IterRange())
	if over.kind != listKind || e.HasIterVar2() {
		panic(notNative("a loop over a map"))
	}
	l, step := over.list, e.LoopStep()
	if step.Kind() != ast.CallKind {
		panic(notNative("this loop"))
	}
	name, args := step.AsCall().FunctionName(), step.AsCall().Args()
	switch name {
	case operators.LogicalOr:
		return l.exists(c.body(e, l, args[1]))
	case operators.LogicalAnd:
		return l.all(c.body(e, l, args[1]))
	case operators.Add:
		return l.mapped(c.body(e, l, args[1].AsList().Elements()[0]))
	}
	keep := c.body(e, l, args[0]) // exists_one, filter and map with a filter: cond ? accumulated + … : accumulated
	if e.AccuInit().Kind() == ast.LiteralKind {
		return l.existsOne(keep)
	}
	element := args[1].AsCall().Args()[1].AsList().Elements()[0]
	return l.filtered(keep).list.mapped(c.body(e, l, element))
}

// body compiles an expression within a loop over a list.
func (c *compiler) body(e ast.ComprehensionExpr, l *list, x ast.Expr) expr {
	name := e.IterVar()
	outer, shadows := c.scope[name]
	c.scope[name] = l.element
	c.depth++
	out := c.expr(x)
	c.depth--
	delete(c.scope, name)
	if shadows {
		c.scope[name] = outer
	}
	return out
}

func (l *list) exists(body expr) expr {
	test := body.boolean
	x := boolean(func(f *facts, c cursor) truth {
		if !l.sound(f, c) {
			return fault
		}
		result := no
		for i := l.first(f, c); i >= 0; i = l.after(f, c, i) {
			v := test(f, c.with(l.slot, i))
			if v == yes {
				return yes
			}
			result |= v
		}
		return result
	})
	x.fallible = l.fallible || body.fallible
	return x
}

func (l *list) all(body expr) expr {
	test := body.boolean
	x := boolean(func(f *facts, c cursor) truth {
		if !l.sound(f, c) {
			return fault
		}
		result := yes
		for i := l.first(f, c); i >= 0; i = l.after(f, c, i) {
			v := test(f, c.with(l.slot, i))
			if v == no {
				return no
			}
			result |= v
		}
		return result
	})
	x.fallible = l.fallible || body.fallible
	return x
}

// existsOne visits every element: unlike exists, it absorbs no error.
func (l *list) existsOne(body expr) expr {
	test := body.boolean
	x := boolean(func(f *facts, c cursor) truth {
		if !l.sound(f, c) {
			return fault
		}
		n := 0
		for i := l.first(f, c); i >= 0; i = l.after(f, c, i) {
			switch test(f, c.with(l.slot, i)) {
			case yes:
				n++
			case no:
			default:
				return fault
			}
		}
		return is(n == 1)
	})
	x.fallible = l.fallible || body.fallible
	return x
}

// strict returns a function like l.next that also ends in an error where the element does. What is built on a list uses
// it, since CEL computes every element, also those that a later filter drops or a later map does not read.
func (l *list) strict() func(*facts, cursor, int32) (int32, bool) {
	if !l.element.fallible {
		return l.next
	}
	next, element, slot := l.next, l.element, l.slot
	return func(f *facts, c cursor, i int32) (int32, bool) {
		i, ok := next(f, c, i)
		if ok && i >= 0 && !element.holds(f, c.with(slot, i)) {
			return -1, false
		}
		return i, ok
	}
}

// filtered returns the list of the elements for which keep holds.
func (l *list) filtered(keep expr) expr {
	test, next, slot := keep.boolean, l.strict(), l.slot
	out := &list{slot: slot, element: l.element, fallible: l.fallible || keep.fallible}
	out.next = func(f *facts, c cursor, i int32) (int32, bool) {
		i, ok := next(f, c, i)
		for ; ok && i >= 0; i, ok = next(f, c, i+1) {
			if v := test(f, c.with(slot, i)); v != no {
				return i, v == yes
			}
		}
		return -1, ok
	}
	return expr{kind: listKind, list: out, fallible: out.fallible}
}

// mapped returns the list of what element makes of each element.
func (l *list) mapped(element expr) expr {
	if element.kind == listKind || element.kind == stepKind {
		panic(notNative("a list of lists or steps"))
	}
	out := &list{slot: l.slot, next: l.strict(), element: element, dense: l.dense, fallible: l.fallible || element.fallible}
	return expr{kind: listKind, list: out, fallible: out.fallible}
}

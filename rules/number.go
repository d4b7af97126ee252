package rules

import (
	"math"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
)

// arithmetic compiles + - * / % and the unary minus on ints, times and durations. Each operation is checked as CEL
// demands: what leaves the range of its type is an error.
func arithmetic(op string, xs []expr) expr {
	if op == operators.Negate {
		return checked(intKind, subtract, fixedInt(intKind, 0, true), xs[0])
	}
	x, y := xs[0], xs[1]
	switch {
	case x.kind == intKind && y.kind == intKind:
		return checked(intKind, intOperation(op), x, y)
	case x.kind == textKind && x.fixed && y.fixed:
		a, ok1 := x.text(nil, cursor{})
		b, ok2 := y.text(nil, cursor{})
		return fixedText(a+b, ok1 && ok2)
	case x.integer == nil || y.integer == nil:
		panic(notNative("joining texts or lists"))
	}
	k := timeKind
	if x.kind == y.kind { // two times or two durations
		k = durationKind
	}
	if op == operators.Subtract {
		return checked(k, subtract, x, y)
	}
	return checked(k, add, x, y)
}

// operation computes with int64; ok is false on overflow or a division by zero.
type operation func(a, b int64) (v int64, ok bool)

func intOperation(name string) operation {
	switch name {
	case operators.Add:
		return add
	case operators.Subtract:
		return subtract
	case operators.Multiply:
		return multiply
	case operators.Divide:
		return divide
	}
	return modulo
}

func add(a, b int64) (int64, bool) {
	v := a + b
	return v, (a^v)&(b^v) >= 0
}

func subtract(a, b int64) (int64, bool) {
	v := a - b
	return v, (a^b)&(a^v) >= 0
}

func multiply(a, b int64) (int64, bool) {
	if a == -1 {
		return -b, b != math.MinInt64
	}
	v := a * b
	return v, a == 0 || v/a == b
}

func divide(a, b int64) (int64, bool) {
	if b == 0 || a == math.MinInt64 && b == -1 {
		return 0, false
	}
	return a / b, true
}

func modulo(a, b int64) (int64, bool) {
	if b == 0 || a == math.MinInt64 && b == -1 {
		return 0, false
	}
	return a % b, true
}

// checked applies an operation and holds the result against the range of its kind.
func checked(k kind, op operation, x, y expr) expr {
	a, b := x.integer, y.integer
	lo, hi := bounds(k)
	out := integer(k, func(f *facts, c cursor) (int64, bool) {
		v, ok1 := a(f, c)
		w, ok2 := b(f, c)
		r, ok3 := op(v, w)
		return r, ok1 && ok2 && ok3 && lo <= r && r <= hi
	})
	out.fallible = true
	out = fold(out, x, y)
	if out.fixed {
		_, ok := out.integer(nil, cursor{})
		out.fallible = !ok
	}
	return out
}

func bounds(k kind) (lo, hi int64) {
	switch k {
	case timeKind:
		return timeMin, timeMax
	case durationKind:
		return -durationMax, durationMax
	}
	return math.MinInt64, math.MaxInt64
}

// size compiles size(text), in code points, and size(list).
func size(x expr) expr {
	switch x.kind {
	case textKind:
		a := x.text
		return fold(integer(intKind, func(f *facts, c cursor) (int64, bool) {
			v, ok := a(f, c)
			return int64(utf8.RuneCountInString(v)), ok
		}), x)
	case listKind:
		return x.list.length()
	}
	panic(notNative("the size of this"))
}

// convert compiles int(), string(), duration() and timestamp() where no text has to be read or made per session.
func convert(function string, x expr) expr {
	a := x.integer
	switch {
	case function == overloads.TypeConvertString && x.kind == textKind,
		function == overloads.TypeConvertInt && x.kind == intKind,
		function == overloads.TypeConvertDuration && x.kind == durationKind,
		function == overloads.TypeConvertTimestamp && x.kind == timeKind:
		return x
	case x.kind == textKind && x.fixed && !x.fallible && (function == overloads.TypeConvertDuration || function == overloads.TypeConvertTimestamp):
		literal, _ := x.text(nil, cursor{})
		return fixedTime(function, literal)
	case function == overloads.TypeConvertInt && x.kind == timeKind: // seconds
		return fold(integer(intKind, func(f *facts, c cursor) (int64, bool) {
			v, ok := a(f, c)
			return time.UnixMicro(v).Unix(), ok
		}), x)
	case function == overloads.TypeConvertInt && x.kind == durationKind: // nanoseconds
		return fold(integer(intKind, func(f *facts, c cursor) (int64, bool) {
			v, ok := a(f, c)
			return v * 1000, ok
		}), x)
	case function == overloads.TypeConvertTimestamp && x.kind == intKind: // seconds
		out := integer(timeKind, func(f *facts, c cursor) (int64, bool) {
			v, ok := a(f, c)
			return v * 1_000_000, ok && timeMin/1_000_000 <= v && v <= timeMax/1_000_000
		})
		out.fallible = true
		return fold(out, x)
	}
	panic(notNative("this use of " + function + "()"))
}

func fixedTime(function, literal string) expr {
	v, err := parseTime(function, literal)
	switch v := v.(type) {
	case time.Duration:
		if v%time.Microsecond == 0 {
			return fixedInt(durationKind, v.Microseconds(), true)
		}
	case time.Time:
		if v.Nanosecond()%1000 == 0 {
			return fixedInt(timeKind, v.UnixMicro(), true)
		}
	}
	if err != nil { // a joined literal, which the inspection did not see
		return fixedInt(intKind, 0, false)
	}
	panic(notNative("a time finer than a microsecond"))
}

// getter compiles the accessors of durations, and those of times in UTC or a given zone.
func getter(name string, xs []expr) expr {
	a := xs[0].integer
	if xs[0].kind == durationKind {
		part := durationPart(name)
		return fold(integer(intKind, func(f *facts, c cursor) (int64, bool) {
			v, ok := a(f, c)
			return part(time.Duration(v) * time.Microsecond), ok
		}), xs[0])
	}
	zone := "UTC"
	if len(xs) == 2 {
		zone, _ = xs[1].text(nil, cursor{})
	}
	location, err := loadZone(zone)
	if err != nil {
		panic(notNative("the time zone " + zone))
	}
	return fold(partOf(a, timePart(name), location), xs[0])
}

func partOf(a intFunc, part func(time.Time) int, zone *time.Location) expr {
	return integer(intKind, func(f *facts, c cursor) (int64, bool) {
		v, ok := a(f, c)
		return int64(part(time.UnixMicro(v).In(zone))), ok
	})
}

// durationPart returns an accessor of durations: the whole duration in one unit, through a float as in cel-go.
func durationPart(name string) func(time.Duration) int64 {
	switch name {
	case overloads.TimeGetHours:
		return func(d time.Duration) int64 { return int64(d.Hours()) }
	case overloads.TimeGetMinutes:
		return func(d time.Duration) int64 { return int64(d.Minutes()) }
	case overloads.TimeGetSeconds:
		return func(d time.Duration) int64 { return int64(d.Seconds()) }
	}
	return time.Duration.Milliseconds
}

// timePart returns an accessor of times; months, days of the year and getDayOfMonth count from 0.
func timePart(name string) func(time.Time) int {
	switch name {
	case overloads.TimeGetFullYear:
		return time.Time.Year
	case overloads.TimeGetMonth:
		return func(t time.Time) int { return int(t.Month()) - 1 }
	case overloads.TimeGetDayOfYear:
		return func(t time.Time) int { return t.YearDay() - 1 }
	case overloads.TimeGetDate:
		return time.Time.Day
	case overloads.TimeGetDayOfMonth:
		return func(t time.Time) int { return t.Day() - 1 }
	case overloads.TimeGetDayOfWeek:
		return func(t time.Time) int { return int(t.Weekday()) }
	case overloads.TimeGetHours:
		return time.Time.Hour
	case overloads.TimeGetMinutes:
		return time.Time.Minute
	case overloads.TimeGetSeconds:
		return time.Time.Second
	}
	return func(t time.Time) int { return t.Nanosecond() / 1_000_000 }
}

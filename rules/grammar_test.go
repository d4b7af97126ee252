package rules

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// grammar writes random well-typed expressions.
type grammar struct {
	r     *rand.Rand
	loops int
	vars  map[string][]string // variables of the loops around, by type
}

func (g *grammar) pick(choices ...string) string { return choices[g.r.IntN(len(choices))] }

// any returns the result of one of the makers; a leaf where the depth is used up.
func (g *grammar) any(depth int, leaf func() string, makers ...func() string) string {
	if depth <= 0 || g.r.IntN(6) == 0 {
		return leaf()
	}
	return makers[g.r.IntN(len(makers))]()
}

// variable returns a loop variable of a type, or fallback's result.
func (g *grammar) variable(kind string, fallback func() string) string {
	if vs := g.vars[kind]; len(vs) > 0 && g.r.IntN(2) == 0 {
		return vs[g.r.IntN(len(vs))]
	}
	return fallback()
}

func (g *grammar) boolean(d int) string {
	pair := func(of func(int) string, ops ...string) func() string {
		return func() string { return fmt.Sprintf("(%s %s %s)", of(d-1), g.pick(ops...), of(d-1)) }
	}
	order := []string{"==", "!=", "<", "<=", ">", ">="}
	return g.any(d,
		func() string {
			return g.pick("true", "false", "has(fields.user)", "has(keys.txn)", `has(step("paid").first)`, `(step("paid").count > 0)`,
				`(step("delivered").count == 0)`, "(1 / fields.level == 1)", "(size(keys.order) > 1)", `(fields.channel == "alipay")`)
		},
		pair(g.boolean, "&&", "||", "&&", "||", "==", "!="),
		pair(g.integer, order...),
		pair(g.time, order...),
		pair(g.duration, order...),
		pair(g.text, order...),
		func() string { return "!" + g.boolean(d-1) },
		func() string { return fmt.Sprintf("(%s ? %s : %s)", g.boolean(d-1), g.boolean(d-1), g.boolean(d-1)) },
		func() string {
			return fmt.Sprintf("%s.%s(%s)", g.text(d-1), g.pick("contains", "startsWith", "endsWith"), g.text(d-1))
		},
		func() string {
			return fmt.Sprintf("%s.matches(%s)", g.text(d-1), g.pick(`"^A"`, `"a.*e"`, `"[0-9]$"`, `""`))
		},
		func() string { return g.quantified(d) },
		func() string { return g.quantified(d) },
		func() string {
			kind := g.pick("text", "int", "time", "duration")
			return fmt.Sprintf("(%s in %s)", g.of(kind, d-1), g.list(kind, d-1))
		},
	)
}

// quantified loops over a list; two loops nest at most.
func (g *grammar) quantified(d int) string {
	if g.loops >= LoopDepthMax {
		return g.boolean(0)
	}
	kind := g.pick("text", "int", "time", "duration", "event", "event", "bool")
	list := g.list(kind, d-1)
	return fmt.Sprintf("%s.%s(%s)", list, g.pick("exists", "all", "exists_one"), g.within(kind, func() string { return g.boolean(d - 1) }))
}

// within writes "variable, body" with the variable in scope.
func (g *grammar) within(kind string, body func() string) string {
	name := fmt.Sprintf("v%d", g.loops)
	if g.vars == nil {
		g.vars = map[string][]string{}
	}
	g.loops++
	saved := g.vars[kind]
	g.vars[kind] = append(saved[:len(saved):len(saved)], name)
	text := name + ", " + body()
	g.vars[kind] = saved
	g.loops--
	return text
}

func (g *grammar) of(kind string, d int) string {
	switch kind {
	case "int":
		return g.integer(d)
	case "time":
		return g.time(d)
	case "duration":
		return g.duration(d)
	case "bool":
		return g.boolean(d)
	}
	return g.text(d)
}

func (g *grammar) list(kind string, d int) string {
	base := func() string {
		switch {
		case kind == "event":
			return "events"
		case kind == "text" && g.r.IntN(2) == 0:
			return g.pick("keys.order", "keys.txn", "keys.receipt")
		}
		var xs []string
		for range 1 + g.r.IntN(3) {
			xs = append(xs, g.of(kind, d-1))
		}
		return "[" + strings.Join(xs, ", ") + "]"
	}
	if g.loops >= LoopDepthMax {
		return base()
	}
	makers := []func() string{
		base,
		func() string {
			list := g.list(kind, d-1)
			return fmt.Sprintf("%s.filter(%s)", list, g.within(kind, func() string { return g.boolean(d - 1) }))
		},
	}
	if kind != "event" {
		makers = append(makers, func() string {
			from := g.pick("event", "text", "int")
			list := g.list(from, d-1)
			return fmt.Sprintf("%s.map(%s)", list, g.within(from, func() string {
				if g.r.IntN(3) == 0 {
					return g.boolean(d-1) + ", " + g.of(kind, d-1)
				}
				return g.of(kind, d-1)
			}))
		})
	}
	return g.any(d, base, makers...)
}

func (g *grammar) event(d int) string {
	return g.variable("event", func() string { return fmt.Sprintf("%s[%s]", g.list("event", d-1), g.integer(d-2)) })
}

func (g *grammar) integer(d int) string {
	leaf := func() string {
		return g.variable("int", func() string {
			return g.pick("0", "1", "2", "-1", "600", "9223372036854775807", "fields.amount", "fields.level", "size(events)",
				`step("paid").count`, `step("ordered").count`, "size(keys.order)", "keys.txn.size()")
		})
	}
	return g.any(d, leaf,
		leaf,
		func() string {
			return fmt.Sprintf("(%s %s %s)", g.integer(d-1), g.pick("+", "-", "*", "/", "%"), g.integer(d-1))
		},
		func() string { return fmt.Sprintf("(-%s)", g.integer(d-1)) },
		func() string { return fmt.Sprintf("(%s ? %s : %s)", g.boolean(d-1), g.integer(d-1), g.integer(d-1)) },
		func() string { return fmt.Sprintf("size(%s)", g.text(d-1)) },
		func() string { return fmt.Sprintf("size(%s)", g.list(g.pick("text", "int", "event", "time"), d-1)) },
		func() string { return fmt.Sprintf("int(%s)", g.time(d-1)) },
		func() string { return fmt.Sprintf("int(%s)", g.duration(d-1)) },
		func() string {
			return fmt.Sprintf("%s.%s()", g.duration(d-1), g.pick("getHours", "getMinutes", "getSeconds", "getMilliseconds"))
		},
		func() string {
			return fmt.Sprintf("%s.%s(%s)", g.time(d-1), g.pick("getHours", "getMinutes", "getDate", "getDayOfWeek", "getDayOfYear", "getFullYear", "getMonth"),
				g.pick("", `"Asia/Shanghai"`, `"-03:30"`))
		},
		func() string { return fmt.Sprintf("%s[%s]", g.list("int", d-1), g.integer(d-2)) },
	)
}

func (g *grammar) time(d int) string {
	leaf := func() string {
		return g.variable("time", func() string {
			return g.pick("start", "end", `step("paid").first`, `step("delivered").last`, `timestamp("2026-09-22T00:00:00Z")`)
		})
	}
	return g.any(d, leaf,
		leaf,
		func() string { return fmt.Sprintf("(%s %s %s)", g.time(d-1), g.pick("+", "-"), g.duration(d-1)) },
		func() string { return fmt.Sprintf("(%s + %s)", g.duration(d-1), g.time(d-1)) },
		func() string { return fmt.Sprintf("(%s ? %s : %s)", g.boolean(d-1), g.time(d-1), g.time(d-1)) },
		func() string { return g.event(d) + ".time" },
		func() string { return fmt.Sprintf("timestamp(%s)", g.integer(d-1)) },
		func() string { return fmt.Sprintf("%s[%s]", g.list("time", d-1), g.integer(d-2)) },
	)
}

func (g *grammar) duration(d int) string {
	leaf := func() string {
		return g.variable("duration", func() string {
			return g.pick("duration", `duration("5m")`, `duration("0s")`, `duration("-90s")`, `duration("2562047h")`)
		})
	}
	return g.any(d, leaf,
		leaf,
		func() string { return fmt.Sprintf("(%s - %s)", g.time(d-1), g.time(d-1)) },
		func() string { return fmt.Sprintf("(%s %s %s)", g.duration(d-1), g.pick("+", "-"), g.duration(d-1)) },
		func() string { return fmt.Sprintf("(%s ? %s : %s)", g.boolean(d-1), g.duration(d-1), g.duration(d-1)) },
	)
}

func (g *grammar) text(d int) string {
	leaf := func() string {
		return g.variable("text", func() string {
			return g.pick(`""`, `"A1"`, `"paid"`, `"a"`, `"游戏"`, "fields.channel", "fields.user")
		})
	}
	return g.any(d, leaf,
		leaf,
		func() string { return fmt.Sprintf("(%s ? %s : %s)", g.boolean(d-1), g.text(d-1), g.text(d-1)) },
		func() string { return g.event(d) + "." + g.pick("step", "source") },
		func() string { return fmt.Sprintf("%s[%s]", g.list("text", d-1), g.integer(d-2)) },
	)
}

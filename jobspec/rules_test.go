package jobspec

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// valid is the spec that the rules below break, one at a time.
const valid = `version: weft/v1
job: payments
shard_by: game
sources:
  orders:
    topic: pay.orders
    format: json
    time: {field: ts, layout: unix_ms}
    step: event
    keys: {order: order.id}
    fields: {user: user.id, game: app, amount: order.amount}
  gateway:
    format: nginx
    log_format: '$time_local $request'
    step: {value: seen}
    keys: {order: arg_order}
    shard: all
session: {gap: 30m, gaps: {order: 7d}}
user: user
scenarios:
  - name: lost
    when: step("paid").count > 0
reports:
  - name: funnel
    every: 1m
    by: [game]
    measures: {n: count(), sum: sum(amount), lost: count(lost)}
canary:
  steps: [{weight: 5, hold: 10m}, {weight: 50, hold: 30m}]
  gates: {lag: "<= 30s"}
`

func TestRules(t *testing.T) {
	if _, err := Parse([]byte(valid)); err != nil {
		t.Fatalf("the spec that all rules start from is not valid:\n%v", err)
	}
	for _, c := range []struct {
		rule     string
		old, new string // what is replaced in the valid spec; an empty old appends
		want     string // all problems, one a line
	}{
		{"unknown field, near", "user: user\n", "usr: user\n", `19:1: usr: unknown field "usr" (did you mean "user"?)`},
		{"unknown field, nothing near", "", "colour: blue\n", `31:1: colour: unknown field "colour"`},
		{"unknown field, few valid", "{weight: 5, hold: 10m}", "{weight: 5, hold: 10m, x: 1}",
			`29:34: canary.steps[0].x: unknown field "x" (valid names are weight, hold)`},
		{"misspelt required field is not missing too", "version: weft/v1", "verzion: weft/v1",
			`1:1: verzion: unknown field "verzion" (did you mean "version"?)`},
		{"field twice", "user: user\n", "user: user\nuser: game\n", `20:1: user: "user" is given twice; the first is on line 19`},
		{"source twice", "  gateway:", "  orders:", `12:3: sources.orders: "orders" is given twice; the first is on line 5`},
		{"name that is no scalar", "user: user\n", "user: user\n? [a]\n: b\n", `20:3: expected a name, got a list`},
		{"merge key", "user: user\n", "user: user\n<<: {approval: none}\n",
			`20:1: merge keys are not supported (repeat the fields, or alias whole values)`},
		{"required field", "    step: event\n", "", `5:3: sources.orders: the field "step" is missing (expected text or a mapping)`},
		{"required at the top", "job: payments\n", "",
			`1:1: the field "job" is missing (expected lower-case letters, digits and '-', at most 63, not starting with '-')`},
		{"wrong type", "keys: {order: order.id}", "keys: order.id", `10:11: sources.orders.keys: expected a mapping, got "order.id"`},
		{"nothing", "step: event", "step:", `9:10: sources.orders.step: expected text or a mapping, got nothing`},
		{"number for text", "job: payments", "job: 7",
			`2:6: job: expected lower-case letters, digits and '-', at most 63, not starting with '-', got "7" (YAML does not read this as text; write '7')`},
		{"custom tag", "job: payments", "job: !name payments",
			`2:6: job: expected lower-case letters, digits and '-', at most 63, not starting with '-', got "payments" (YAML does not read this as text; write 'payments')`},
		{"version", "weft/v1", "weft/v2", `1:10: version: unknown value "weft/v2" (did you mean "weft/v1"?)`},
		{"job name", "job: payments", "job: Payments",
			`2:6: job: expected lower-case letters, digits and '-', at most 63, not starting with '-', got "Payments"`},
		{"source name", "  gateway:", "  gate-way:",
			`12:3: sources.gate-way: "gate-way" is not a valid name: expected lower-case letters, digits and '_', at most 63, starting with a letter`},
		{"no sources", "sources:\n  orders:", "sources: {}\nx:\n  orders:", `4:1: sources: expected at least 1 entry
5:1: x: unknown field "x"`},
		{"topic form", "topic: pay.orders", "topic: pay/orders",
			`6:12: sources.orders.topic: expected a Kafka topic: letters, digits, '.', '_' and '-', at most 249, got "pay/orders"`},
		{"topic twice", "topic: pay.orders", "topic: gateway",
			`12:3: sources.gateway: the source orders reads the topic "gateway" already (a topic belongs to one source; tell its records apart with where and step.map)`},
		{"sink topic is a source's", "", "sinks: {topic: pay.orders}\n",
			`31:16: sinks.topic: the source orders reads this topic; results need one of their own`},
		{"unknown format", "format: json", "format: jsn", `7:13: sources.orders.format: unknown value "jsn" (did you mean "json"?)`},
		{"option of another format", "format: json", "format: json\n    delimiter: ;",
			`8:5: sources.orders.delimiter: the format json has no option "delimiter" (it belongs to csv)`},
		{"option of another format, mapping", "format: json", "format: {name: json, schema: a}",
			`7:26: sources.orders.format.schema: the format json has no option "schema" (it belongs to avro, protobuf)`},
		{"each of a format without", "    shard: all", "    shard: all\n    each: items",
			`18:5: sources.gateway.each: the format nginx has no option "each" (it belongs to json, avro, protobuf)`},
		{"option missing", "format: json", "format: regex",
			`7:13: sources.orders.format: the format regex needs the option "pattern" (regex: an RE2 expression with named groups, such as (?P<order>[0-9]+).)`},
		{"option twice", "format: json", "format: {name: csv, columns: [a]}\n    columns: [a]",
			`8:5: sources.orders.columns: "columns" is given in the format too`},
		{"column twice", "format: json", "format: {name: csv, columns: [a, b, a]}",
			`7:41: sources.orders.format.columns[2]: "a" is given twice`},
		{"delimiter of two bytes", "format: json", "format: {name: csv, columns: [a], delimiter: ü}",
			`7:50: sources.orders.format.delimiter: expected one byte other than a quote or a line break, got "ü"`},
		{"time missing", "    time: {field: ts, layout: unix_ms}\n", "",
			`5:3: sources.orders: the field "time" is missing (expected a path, or {field, layout, zone})`},
		{"time missing, nginx", "$time_local $request", "$request",
			`12:3: sources.gateway: the field "time" is missing (log $msec, $time_iso8601 or $time_local)`},
		{"time layout, near", "layout: unix_ms", "layout: unix_msec",
			`8:31: sources.orders.time.layout: "unix_msec" is neither a named layout nor a Go layout with a date, such as '2006-01-02 15:04:05' (did you mean "unix_ms"?)`},
		{"time layout without a date", "layout: unix_ms", "layout: '15:04:05'",
			`8:31: sources.orders.time.layout: "15:04:05" is neither a named layout nor a Go layout with a date, such as '2006-01-02 15:04:05' (valid names are unix_s, unix_ms, unix_us, unix_ns, rfc3339)`},
		{"zone form", "layout: unix_ms}", "layout: unix_ms, zone: '+8'}",
			`8:46: sources.orders.time.zone: expected an IANA zone such as Asia/Shanghai, got "+8"`},
		{"step neither", "step: event", "step: {}", `9:5: sources.orders.step: expected exactly one of the fields field, value`},
		{"step both", "step: event", "step: {field: a, value: b}", `9:5: sources.orders.step: expected exactly one of the fields field, value`},
		{"step map without field", "step: event", "step: {value: b, map: {x: y}}",
			`9:22: sources.orders.step.map: "map" goes only together with "field"`},
		{"path empty", "order: order.id", "order: ''", `10:19: sources.orders.keys.order: expected text, got nothing`},
		{"path twice", "order: order.id", "order: [a, a]", `10:23: sources.orders.keys.order[1]: "a" is given twice`},
		{"value of where twice", "step: event", "step: event\n    where: {a: [x, y, x]}",
			`10:23: sources.orders.where.a[2]: "x" is given twice`},
		{"dedupe twice", "step: event", "step: event\n    dedupe: [x, x]", `10:17: sources.orders.dedupe[1]: "x" is given twice`},
		{"field neither", "amount: order.amount", "amount: {type: int}",
			`11:40: sources.orders.fields.amount: expected exactly one of the fields path, value`},
		{"scale of a constant", "amount: order.amount", "amount: {value: 5, scale: 2}",
			`11:59: sources.orders.fields.amount.scale: "scale" goes only together with "path"`},
		{"scale too large", "amount: order.amount", "amount: {path: a, scale: 19}",
			`11:65: sources.orders.fields.amount.scale: expected 0 to 18, got "19"`},
		{"field type", "amount: order.amount", "amount: {path: a, type: float}",
			`11:64: sources.orders.fields.amount.type: unknown value "float" (valid names are string, int)`},
		{"summed field declared string", "amount: order.amount", "amount: {path: a, type: string}",
			`11:64: sources.orders.fields.amount.type: the field "amount" is int, because a report sums it`},
		{"types disagree", "    shard: all", "    fields: {game: {value: g, type: int}}\n    shard: all\n  other: {format: canal, time: t, step: s, shard: x, fields: {game: {path: g, type: string}}}",
			`17:28: sources.gateway.fields.game.value: the field "game" is int, got "g"
19:85: sources.other.fields.game.type: the field "game" is int, because source gateway says so`},
		{"scale of a string", "user: user.id", "user: {path: u, type: string, scale: 2}",
			`11:51: sources.orders.fields.user.scale: only integers have a scale, and the field "user" is string, because source orders says so (declare type: int)`},
		{"constant of an integer field", "    shard: all", "    fields: {amount: {value: free}}\n    shard: all",
			`17:30: sources.gateway.fields.amount.value: the field "amount" is int, got "free"`},
		{"map of an integer field", "amount: order.amount", "amount: {path: a, map: {free: none}}",
			`11:70: sources.orders.fields.amount.map.free: the field "amount" is int, got "none"`},
		{"shard field undeclared", "shard_by: game", "shard_by: gmae", `3:11: shard_by: no source declares the field "gmae" (did you mean "game"?)`},
		{"shard field not filled", "    shard: all\n", "",
			`12:3: sources.gateway: the source does not fill the shard field "game" (add it to fields, or set shard to a constant)`},
		{"shard without shard_by", "shard_by: game\n", "", `16:5: sources.gateway.shard: the job is not sharded (set shard_by too, or leave it out)`},
		{"user undeclared", "user: user\n", "user: usr\n", `19:7: user: no source declares the field "usr" (did you mean "user"?)`},
		{"gap missing", "gap: 30m, ", "", `18:1: session: the field "gap" is missing (expected a duration such as 30m)`},
		{"duration without unit", "gap: 30m", "gap: 30",
			`18:16: session.gap: expected a duration such as 30m, got "30" (write the unit too, such as 30s)`},
		{"duration form", "gap: 30m", "gap: 30 minutes", `18:16: session.gap: expected a duration such as 30m, 1h30m or 7d, got "30 minutes"`},
		{"duration too long", "gap: 30m", "gap: 900000000w", `18:16: session.gap: a duration is at most 3650d, got "900000000w"`},
		{"duration outside", "gap: 30m", "gap: 0s", `18:16: session.gap: expected 1µs to 366d, got "0s"`},
		{"gap of an unknown kind", "gaps: {order: 7d}", "gaps: {ordr: 7d}",
			`18:28: session.gaps.ordr: no source has keys of the kind "ordr" (did you mean "order"?)`},
		{"max_span below the largest gap", "gaps: {order: 7d}", "gaps: {order: 7d}, max_span: 6d",
			`18:50: session.max_span: max_span must be at least the largest gap, 7d, got "6d" (leave it out for twice the largest gap)`},
		{"scenario without expression", "    when: step(\"paid\").count > 0\n", "",
			`21:5: scenarios[0]: the field "when" is missing (expected an expression)`},
		{"blank expression", "when: step(\"paid\").count > 0", "when: '  '",
			`22:11: scenarios[0].when: expected an expression, got nothing`},
		{"scenario twice", "reports:", "  - {name: lost, when: 'true'}\nreports:", `23:12: scenarios[1].name: a scenario named "lost" exists already`},
		{"severity", "when: step", "severity: fatal\n    when: step",
			`22:15: scenarios[0].severity: unknown value "fatal" (valid names are info, warning, critical)`},
		{"after without within", "when: step", "after: {from: x}\n    when: step",
			`22:5: scenarios[0].after: the field "within" is missing (expected a duration such as 30m)`},
		{"report twice", "canary:", "  - {name: funnel, every: 1h, measures: {n: count()}}\ncanary:",
			`28:12: reports[1].name: a report named "funnel" exists already`},
		{"report by an unknown field", "by: [game]", "by: [gme]", `26:10: reports[0].by[0]: no source declares the field "gme" (did you mean "game"?)`},
		{"report by twice", "by: [game]", "by: [game, game]", `26:16: reports[0].by[1]: "game" is given twice`},
		{"measure named as a field of by", "{n: count(),", "{game: count(),",
			"27:16: reports[0].measures.game: \"game\" is a field of `by` already; a measure needs a name of its own"},
		{"measure form", "n: count()", "n: avg(amount)",
			`27:19: reports[0].measures.n: expected count(), count(scenario), sum(field), sum(duration) or sum(events), got "avg(amount)"`},
		{"measure of an unknown scenario", "count(lost)", "count(lots)", `27:52: reports[0].measures.lost: unknown scenario "lots" (did you mean "lost"?)`},
		{"measure of an unknown field", "sum(amount)", "sum(amuont)", `27:33: reports[0].measures.sum: unknown field "amuont" (did you mean "amount"?)`},
		{"sum of nothing", "sum(amount)", "sum()", `27:33: reports[0].measures.sum: sum needs a field, duration or events (count() counts sessions)`},
		{"freeze form", "", "freeze: [weekend]\n", `31:10: freeze[0]: expected a range such as 'Fri 18:00-Mon 08:00 Asia/Shanghai', got "weekend"`},
		{"freeze of nothing", "", "freeze: ['Fri 18:00-Fri 18:00 UTC']\n", `31:10: freeze[0]: a range from a moment to the same moment is empty`},
		{"approval", "", "approval: three\n", `31:11: approval: unknown value "three" (valid names are none, two_person)`},
		{"canary without a field", "user: user\n", "", `27:1: canary: a canary needs a field to divide by (set by, or the job's user field)`},
		{"canary by another field than the user", "canary:\n", "canary:\n  by: game\n", `29:7: canary.by: questions are about users: they cannot be divided by game (leave it out, or make it the job's user field)`},
		{"canary by an unknown field", "canary:\n", "canary:\n  by: usr\n", `29:7: canary.by: no source declares the field "usr" (did you mean "user"?)`},
		{"weights must increase", "weight: 50", "weight: 5", `29:44: canary.steps[1].weight: weights must increase: expected more than 5, got 5`},
		{"weight outside", "weight: 50", "weight: 101", `29:44: canary.steps[1].weight: expected 1 to 100, got "101"`},
		{"no steps", "[{weight: 5, hold: 10m}, {weight: 50, hold: 30m}]", "[]", `29:3: canary.steps: expected at least 1 element`},
		{"gate of an unknown metric", "lag:", "lga:", `30:11: canary.gates.lga: unknown metric "lga", and "<= 30s" is no CEL expression (did you mean "lag"?)`},
		{"gate form", `"<= 30s"`, `"30s"`, `30:16: canary.gates.lag: expected a comparison with a duration, such as '<= 30s', got "30s"`},
		{"gate share", `lag: "<= 30s"`, `match_rate: ">= 99"`,
			`30:23: canary.gates.match_rate: expected a comparison with a share, such as '>= 0.999', got ">= 99"`},
		{"gate count", `lag: "<= 30s"`, `min_sessions: many`, `30:25: canary.gates.min_sessions: expected an integer, got "many"`},
		{"cpu", "", "resources: {cpu: .nan}\n", `31:18: resources.cpu: expected more than 0 and at most 1024, got ".nan"`},
		{"memory form", "", "resources: {memory: 1GB}\n", `31:21: resources.memory: expected a size such as 512MiB or 2GiB, got "1GB"`},
		{"memory outside", "", "resources: {memory: 1KiB}\n", `31:21: resources.memory: expected 64MiB to 1024TiB, got "1KiB"`},
		{"timeline limit", "", "limits: {timeline_events: 4096}\n", `31:27: limits.timeline_events: expected 1 to 2048, got "4096"`},
		{"ignore null", "", "ignore: [null]\n", `31:10: ignore[0]: expected a value, got nothing (YAML does not read this as text; write 'null')`},
		{"expect twice", "", "expect: [sessions, sessions]\n", `31:20: expect[1]: "sessions" is given twice`},
		{"unreadable source hides nothing else", "    keys: {order: order.id}\n", "    keys: 5\n",
			`10:11: sources.orders.keys: expected a mapping, got "5"`},
		{"unreadable fields are not called undeclared", "fields: {user: user.id, game: app, amount: order.amount}", "fields: 5",
			`11:13: sources.orders.fields: expected a mapping, got "5"`},
		{"misspelt fields are not called undeclared", "fields: {user", "feilds: {user",
			`11:5: sources.orders.feilds: unknown field "feilds" (did you mean "fields"?)`},
	} {
		t.Run(c.rule, func(t *testing.T) {
			text := valid + c.new
			if c.old != "" {
				if !strings.Contains(valid, c.old) {
					t.Fatalf("the valid spec does not hold %q", c.old)
				}
				text = strings.Replace(valid, c.old, c.new, 1)
			}
			expectProblems(t, text, c.want)
		})
	}
}

func expectProblems(t *testing.T, text, want string) {
	t.Helper()
	got := ""
	if _, err := Parse([]byte(text)); err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s\nspec:\n%s", got, want, text)
	}
}

func TestAmbiguousSum(t *testing.T) {
	text := strings.Replace(strings.Replace(valid, "amount: order.amount", "events: e", 1), "sum(amount)", "sum(events)", 1)
	expectProblems(t, text,
		`27:33: reports[0].measures.sum: sum(events) could mean the field events or the session's own events (rename the field)`)
}

func TestNoKeys(t *testing.T) {
	expectProblems(t, "version: weft/v1\njob: a\nsources: {a: {format: canal, time: t, step: s}}\nsession: {gap: 1h}\n",
		`3:1: sources: no source has keys, so nothing would link (give at least one source keys: {order: path})`)
}

// manySources writes a spec with n sources that have the keys and fields given by number.
func manySources(n int, keys, fields func(i int) string) string {
	var b strings.Builder
	b.WriteString("version: weft/v1\njob: a\nsession: {gap: 1h}\nsources:\n")
	for i := range n {
		fmt.Fprintf(&b, "  s%d: {format: canal, time: t, step: s, keys: {%s: k}, fields: {%s: f}}\n", i, keys(i), fields(i))
	}
	return b.String()
}

func TestLimits(t *testing.T) {
	same := func(int) string { return "order" }
	numbered := func(i int) string { return fmt.Sprintf("n%d", i%201) }
	for _, c := range []struct{ rule, text, want string }{
		{"200 of all", manySources(200, numbered, numbered), ``},
		{"sources", manySources(201, same, same), `4:1: sources: expected at most 200 entries, got 201`},
		{"text", "version: weft/v1 #" + strings.Repeat("x", TextBytesMax), `1:1: a spec has at most 1048576 bytes, got 1048594`},
		{"encoding", "version: \xff", `1:1: a spec is UTF-8 text, got other bytes`},
		{"empty", "", `1:1: the spec is empty (a spec starts with version: weft/v1)`},
		{"comment only", "# nothing\n", `1:1: the spec is empty (a spec starts with version: weft/v1)`},
		{"scalar", "hello", `1:1: expected a mapping, got "hello"`},
		{"name of 64", "version: weft/v1\n" + strings.Repeat("x", 64) + ": 1",
			`1:1: the field "job" is missing (expected lower-case letters, digits and '-', at most 63, not starting with '-')
1:1: the field "sources" is missing (expected a mapping)
1:1: the field "session" is missing (expected a mapping)
2:1: ` + strings.Repeat("x", 64) + `: unknown field "` + strings.Repeat("x", 60) + `…"`},
	} {
		t.Run(c.rule, func(t *testing.T) { expectProblems(t, c.text, c.want) })
	}
	two := func(i int) string { return fmt.Sprintf("n%d: x, m%d", i, i) }
	expectProblems(t, manySources(150, two, same), `105:43: sources.s100.keys: a job has at most 200 key kinds`)
}

// TestBounded feeds texts that grow when they are read; each must end soon, with a bounded number of problems.
func TestBounded(t *testing.T) {
	var wide strings.Builder
	wide.WriteString("version: weft/v1\njob: a\nsession: {gap: 1h}\nsources:\n  a: &a {format: json, time: t, step: s, keys: {order: id}, where: &w {")
	for i := range 100 {
		fmt.Fprintf(&wide, "p%d: [", i)
		for j := range 990 {
			fmt.Fprintf(&wide, "%d,", j)
		}
		wide.WriteString("], ")
	}
	wide.WriteString("}}\n")
	for i := range 190 {
		fmt.Fprintf(&wide, "  s%d: {topic: t%d, format: json, time: t, step: s, where: *w}\n", i, i)
	}
	for name, text := range map[string]string{
		"aliases":   wide.String(),
		"cycle":     "version: weft/v1\njob: a\nsession: &s {gap: 1h, gaps: *s}\nsources: &x {a: *x}\n",
		"nesting":   strings.Repeat("[", TextBytesMax),
		"blocks":    strings.Repeat("- ", TextBytesMax/2),
		"keys":      "a: 1\n" + strings.Repeat("b: 1\n", 100_000),
		"long name": strings.Repeat("x", TextBytesMax-10) + ": 1",
		"questions": strings.Repeat("? ", TextBytesMax/2),
		"comments":  strings.Repeat("#\n", TextBytesMax/2),
		"flow keys": "{" + strings.Repeat("a,", TextBytesMax/2-2) + "}",
		"anchors":   strings.Repeat("&a ", TextBytesMax/3),
		"quotes":    `"` + strings.Repeat(`\`, TextBytesMax-2) + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Parse([]byte(text))
			if err == nil {
				t.Fatal("a hostile spec parsed")
			}
			problems := err.(Problems)
			if name == "aliases" && !strings.Contains(err.Error(), "more than 100000 values") {
				t.Errorf("aliases are not counted: %v", err)
			}
			if len(problems) > problemsMax+1 || len(err.Error()) > 1<<17 {
				t.Errorf("%d problems in %d bytes", len(problems), len(err.Error()))
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

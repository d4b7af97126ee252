package rules

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/jobspec"
)

// TestProblems pins what a user reads who typed something wrong: where, what, and the nearest valid choice.
func TestProblems(t *testing.T) {
	for _, c := range []struct{ when, want string }{
		{`fields.amuont > 1`, `1:8: scenarios[0].when: undefined field 'amuont' (nearest: amount)`},
		{`step("paid").count > 0 && size(keys.ordr) > 1`, `1:37: scenarios[0].when: undefined key kind 'ordr' (nearest: order)`},
		{`keys.zzzzz == keys.order`, `1:6: scenarios[0].when: undefined key kind 'zzzzz' (expected one of: order, receipt, txn)`},
		{`step("paid").cuont > 0`, `1:14: scenarios[0].when: undefined member of a step 'cuont' (nearest: count)`},
		{`events.exists(e, e.stpe == "paid")`, `1:20: scenarios[0].when: undefined member of an event 'stpe' (nearest: step)`},
		{`durration > duration("5m")`, `1:1: scenarios[0].when: undefined name 'durration' (nearest: duration)`},
		{`amount > 5`, `1:1: scenarios[0].when: undefined name 'amount' (did you mean fields.amount?)`},
		{`size(order) > 1`, `1:6: scenarios[0].when: undefined name 'order' (did you mean keys.order?)`},
		{`s0 && true`, `1:1: scenarios[0].when: undefined name 's0' (a rule cannot name another scenario)`},
		{`stp("paid").count > 0`, `1:4: scenarios[0].when: undefined function 'stp' (nearest: step)`},
		{`fields.user.startWith("a")`, `1:22: scenarios[0].when: undefined function 'startWith' (nearest: startsWith)`},
		{`step("paid", "x").count > 0`, `1:5: scenarios[0].when: step takes exactly one name (as in step("paid").count)`},
		{`step(fields.user).count > 0`, `1:12: scenarios[0].when: step takes the literal name of a step, as in step("paid")`},
		{`step("").count > 0`, `1:6: scenarios[0].when: the name of a step has 1 to 256 bytes`},
		{`step("paid") > 0`, `1:14: scenarios[0].when: operator > is not defined for (step, int) (a step has the members count, first and last)`},
		{`fields.user == 5`, `1:13: scenarios[0].when: operator == is not defined for (string, int) (a text needs quotes; a field that counts needs type int)`},
		{`duration > 5`, `1:10: scenarios[0].when: operator > is not defined for (duration, int) (write a duration as duration("5m"))`},
		{`fields.amount > 1.5`, `1:15: scenarios[0].when: operator > is not defined for (int, double) (numbers are integers; write 2 for 2.0)`},
		{`duration > duration("5 minutes")`, `1:21: scenarios[0].when: "5 minutes" is no duration (expected for example "90s", "5m" or "1h30m")`},
		{`start > timestamp("yesterday")`, `1:19: scenarios[0].when: "yesterday" is no timestamp (expected for example "2026-11-02T03:04:05Z")`},
		{`start.getHours("Asia/Shangai") > 1`, `1:16: scenarios[0].when: unknown time zone "Asia/Shangai" (expected a name such as "Asia/Shanghai" or an offset such as "+08:00")`},
		{`start.getHours("Local") > 1`, `1:16: scenarios[0].when: unknown time zone "Local" (expected a name such as "Asia/Shanghai" or an offset such as "+08:00")`},
		{`start.getHours(fields.user) > 1`, `1:22: scenarios[0].when: the time zone must be a literal`},
		{`fields.user.matches("(")`, "1:21: scenarios[0].when: error parsing regexp: missing closing ): `(`"},
		{`fields.user.matches(fields.channel)`, `1:27: scenarios[0].when: the pattern of matches must be a literal`},
		{`fields.user.matches("(x{100}){100}")`, "1:21: scenarios[0].when: error parsing regexp: invalid repeat count: `{100}`"},
		{`fields.user.matches("x{1000}x{1000}x{1000}")`, `1:21: scenarios[0].when: the pattern is too large once its repetitions are unrolled`},
		{`fields.user.matches("` + strings.Repeat("x", PatternBytesMax+1) + `")`, `1:21: scenarios[0].when: the pattern has 1025 bytes; at most 1024 are allowed`},
		{`step("paid").count`, `1:1: scenarios[0].when: the expression must be of type bool, and is of type int (compare it, as in … > 0)`},
		{`step("paid").count > `, `1:21: scenarios[0].when: mismatched input the end of the expression`},
		{` `, `1:1: scenarios[0].when: expected an expression of type bool`},
		{strings.Repeat(" ", TextBytesMax) + "true", `1:1: scenarios[0].when: the expression has 4100 bytes; at most 4096 are allowed`},
		{strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100), `the expression nests deeper than 64`},
		{`keys.order.all(a, keys.order.all(b, keys.order.all(c, a == b && b == c)))`, `1:51: scenarios[0].when: macros such as exists nest deeper than 2`},
		{`google.protobuf.Timestamp{} == start`, `a rule cannot make objects of type google.protobuf.Timestamp`},
		{`weft.step{} == step("paid")`, `a rule cannot make objects of type weft.step`},
	} {
		spec := testSpec(c.when)
		spec.Text = []byte(c.when)
		spec.Scenarios[0].When.Pos = jobspec.Pos{Line: 1, Column: 1}
		_, err := Compile(spec)
		var ps jobspec.Problems
		if !errors.As(err, &ps) || len(ps) != 1 || !strings.Contains(ps[0].Error(), c.want) {
			t.Errorf("%.80s:\n got %v\nwant %s", c.when, err, c.want)
		}
	}
}

func TestProblemsOfAllRulesAtOnce(t *testing.T) {
	spec := testSpec(`fields.amuont > 1 && keys.ordr == keys.order`, `true`)
	spec.Scenarios[1].After = &jobspec.After{From: jobspec.Expr{Text: `duration`}, Within: time.Minute}
	set, err := Compile(spec)
	var ps jobspec.Problems
	if set != nil || !errors.As(err, &ps) || len(ps) != 3 {
		t.Fatalf("got %v, %v", set, err)
	}
	if got, want := ps[2].Error(), "scenarios[1].after.from: the expression must be of type timestamp, and is of type duration (the time span belongs into within)"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestUnknownStepOfConstantSources(t *testing.T) {
	spec := testSpec(`step("pai").count > 0`)
	for i := range spec.Sources {
		spec.Sources[i].Step = jobspec.Step{Value: []string{"paid", "ordered"}[i]}
	}
	_, err := Compile(spec)
	if err == nil || !strings.Contains(err.Error(), `no source has the step "pai" (nearest: paid)`) {
		t.Errorf("got %v", err)
	}
	spec.Sources[0].Step = jobspec.Step{Field: "event"} // then any step can come
	if _, err := Compile(spec); err != nil {
		t.Error(err)
	}
}

// TestPlaceInYAML finds the misspelt member wherever YAML puts the expression; the mark ^ is not part of the text.
func TestPlaceInYAML(t *testing.T) {
	for _, c := range []struct {
		name, yaml, text string
		pos              jobspec.Pos // of the scalar
	}{
		{"plain", "- when: true && fields.^amuont > 1\n", `true && fields.amuont > 1`, jobspec.Pos{Line: 1, Column: 9}},
		{"plain over two lines", "- when: true &&\n    fields.^amuont > 1\n", `true && fields.amuont > 1`, jobspec.Pos{Line: 1, Column: 9}},
		{"double quoted", "- when: \"step(\\\"paid\\\").count > 0 && fields.^amuont > 1\"\n", `step("paid").count > 0 && fields.amuont > 1`, jobspec.Pos{Line: 1, Column: 9}},
		{"single quoted", "- when: 'fields.user == ''x'' && fields.^amuont > 1'\n", `fields.user == 'x' && fields.amuont > 1`, jobspec.Pos{Line: 1, Column: 9}},
		{"block", "- name: 游戏\n  when: |\n    true &&\n      fields.^amuont > 1\n", "true &&\n  fields.amuont > 1\n", jobspec.Pos{Line: 2, Column: 9}},
		{"block, position at the text", "- name: x\n  when: |-\n    true &&\n      fields.^amuont > 1\n", "true &&\n  fields.amuont > 1", jobspec.Pos{Line: 3, Column: 5}},
		{"folded", "- name: x\n  when: >-\n    true &&\n    \"游戏\" != fields.user &&\n    fields.^amuont > 1\n", `true && "游戏" != fields.user && fields.amuont > 1`, jobspec.Pos{Line: 2, Column: 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mark := strings.Index(c.yaml, "^")
			before := c.yaml[:mark]
			want := jobspec.Pos{Line: 1 + strings.Count(before, "\n"), Column: 1 + len([]rune(before[strings.LastIndex(before, "\n")+1:]))}
			spec := testSpec(c.text)
			spec.Text = []byte(strings.Replace(c.yaml, "^", "", 1))
			spec.Scenarios[0].When.Pos = c.pos
			_, err := Compile(spec)
			var ps jobspec.Problems
			if !errors.As(err, &ps) || len(ps) != 1 || ps[0].Pos != want {
				t.Errorf("got %v, want %d:%d", err, want.Line, want.Column)
			}
		})
	}
}

func TestPlaceWithoutYAML(t *testing.T) {
	spec := testSpec("true &&\nfields.amuont > 1")
	spec.Scenarios[0].When.Pos = jobspec.Pos{Line: 7, Column: 3}
	_, err := Compile(spec)
	if err == nil || !strings.HasPrefix(err.Error(), "8:8: ") {
		t.Errorf("got %v", err)
	}
}

// TestPlaceAsParsed holds the same against the positions that jobspec's own parser gives.
func TestPlaceAsParsed(t *testing.T) {
	const job = `version: weft/v1
job: payments
sources:
  orders:
    topic: pay.orders
    format: json
    time: {field: ts, layout: unix_ms}
    step: event
    keys: {order: order.id}
    fields: {user: user.id}
session: {gap: 30m}
scenarios:
  - name: plain
    when: step("paid").count > 0 && fields.usr == "x"
  - name: block
    when: |
      step("paid").count > 0 &&
        fields.usr == "x"
  - name: folded
    when: >-
      step("paid").count > 0 &&
      fields.usr == "x"
  - name: quoted
    when: 'step(''paid'').count > 0 && fields.usr == "x"'
  - {name: flow, when: "true", after: {from: "step(\"paid\").frist", within: 5m}}
`
	spec, err := jobspec.Parse([]byte(job))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Compile(spec)
	var ps jobspec.Problems
	if !errors.As(err, &ps) || len(ps) != 5 {
		t.Fatalf("got %v", err)
	}
	lines := strings.Split(job, "\n")
	for _, p := range ps {
		if rest := lines[p.Pos.Line-1][p.Pos.Column-1:]; !strings.HasPrefix(rest, "usr") && !strings.HasPrefix(rest, "frist") {
			t.Errorf("%v points at %q", p, rest)
		}
	}
}

package rules

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// testSpec returns a payment job with the given rules as scenarios.
func testSpec(whens ...string) *jobspec.Spec {
	s := &jobspec.Spec{
		Sources: []jobspec.Source{
			{Name: "billing", Step: jobspec.Step{Field: "event"}},
			{Name: "orders", Step: jobspec.Step{Field: "event"}},
		},
		Kinds:  []jobspec.Kind{{Name: "order"}, {Name: "receipt"}, {Name: "txn"}},
		Fields: []jobspec.FieldDef{{Name: "amount", Type: jobspec.IntField}, {Name: "channel", Type: jobspec.StringField}, {Name: "level", Type: jobspec.IntField}, {Name: "user", Type: jobspec.StringField}},
	}
	for i, w := range whens {
		s.Scenarios = append(s.Scenarios, jobspec.Scenario{Name: fmt.Sprintf("s%d", i), When: jobspec.Expr{Text: w}})
	}
	return s
}

var testSteps = []string{"delivered", "ordered", "paid", "refunded"}

// at is a time of the test sessions, in microseconds after their first event.
const at = event.Micros(1_790_000_000_000_000)

// randomFacts makes a session, consistent in itself, within small ranges so that comparisons go both ways.
func randomFacts(r *rand.Rand) *correlate.Facts {
	row := &correlate.Row{StepNames: []string{"paid", "ordered", "", "delivered", "refunded"}}
	for range r.IntN(8) {
		row.Events = append(row.Events, correlate.RowEvent{
			Time:   at + event.Micros(r.Int64N(20))*event.Micros(time.Minute.Microseconds())/2 + event.Micros(r.Int64N(3)),
			Source: uint16(r.IntN(3)), // one more than there are
			Step:   uint32(r.IntN(len(row.StepNames))),
		})
	}
	slices.SortFunc(row.Events, func(a, b correlate.RowEvent) int { return int(a.Time - b.Time) })
	row.Count = int64(len(row.Events))
	if len(row.Events) > 0 && r.IntN(4) == 0 {
		row.Count += r.Int64N(3) // the timeline was cut
	}
	f := &correlate.Facts{Row: row, Until: event.MaxTime, Count: row.Count, Steps: make([]correlate.StepFact, len(testSteps))}
	if len(row.Events) > 0 {
		f.Start, f.End = row.Events[0].Time, row.Events[len(row.Events)-1].Time
		if r.IntN(4) == 0 {
			f.Until = f.Start + (f.End-f.Start)/2
			f.End = f.Until
		}
	}
	for i, step := range testSteps {
		s := &f.Steps[i]
		for _, e := range f.Events() {
			if row.StepNames[e.Step] == step {
				if s.Count == 0 {
					s.First = e.Time
				}
				s.Count, s.Last = s.Count+1, e.Time
			}
		}
	}
	words := []string{"", "A1", "A2", "B1", "alipay", "apple", "游戏", "\xff\xfe"}
	for kind := range 3 {
		for _, w := range words {
			if r.IntN(5) == 0 {
				row.Keys = append(row.Keys, correlate.RowKey{Kind: kind, Value: []byte(w), First: f.Start + event.Micros(r.IntN(2))*(f.End-f.Start+1)})
			}
		}
	}
	ints := []int64{0, 1, 2, 3, -1, 600, 1 << 62, -1 << 63, 1<<63 - 1}
	for range 4 {
		v := correlate.RowField{Present: r.IntN(4) > 0, First: f.Start}
		if v.Present {
			v.Int = ints[r.IntN(len(ints))]
			v.Text = []byte(words[r.IntN(len(words))])
		}
		row.Fields = append(row.Fields, v)
	}
	return f
}

func mustLanguage(t testing.TB, spec *jobspec.Spec) *language {
	t.Helper()
	l, err := newLanguage(spec)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// pair is one expression in both forms.
type pair struct {
	text      string
	native    expr
	reference cel.Program
	lang      *language
	moment    bool
}

// newPair compiles an expression natively and for the interpreter; reason says why there is no native form.
func newPair(t testing.TB, l *language, text string, want *cel.Type) (p *pair, reason error) {
	t.Helper()
	r, problems := l.check("test", jobspec.Expr{Text: text}, want)
	if len(problems) > 0 {
		t.Fatalf("%s: %v", text, problems)
	}
	reference, err := l.env.Program(r.ast) // without optimisations or a cost limit: as plain as it gets
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	p = &pair{text: text, reference: reference, lang: l, moment: want == cel.TimestampType}
	p.native, reason = compile(l, testSteps, r.ast, p.moment)
	return p, reason
}

// compare fails the test where both forms do not agree: on true, false and error, or on the moment.
func (p *pair) compare(t *testing.T, f *correlate.Facts, seed uint64) {
	t.Helper()
	v, _, err := p.reference.Eval(&session{p.lang, testSteps, f, p.moment})
	want, got := "error", "error"
	if err == nil {
		want = fmt.Sprint(v.Value())
		if p.moment {
			want = fmt.Sprint(v.Value().(time.Time).UnixMicro())
		}
	}
	switch {
	case p.moment:
		if at, ok := p.native.integer(f, cursor{}); ok {
			got = fmt.Sprint(at)
		}
	default:
		if d := p.native.boolean(f, cursor{}); d <= yes {
			got = fmt.Sprint(d == yes)
		}
	}
	if got != want {
		t.Fatalf("seed %d: %s: compiled %s, interpreted %s (%v)\nfacts %+v\nrow %+v", seed, p.text, got, want, err, *f, *f.Row)
	}
	if got == "error" && !p.native.fallible {
		t.Fatalf("seed %d: %s ends in an error and is not marked fallible", seed, p.text)
	}
}

// wideFacts is a session from the year 1 to the year 9999, longer than the longest duration that CEL has.
func wideFacts(r *rand.Rand) *correlate.Facts {
	f := randomFacts(r)
	f.Start, f.End, f.Until = timeMin, timeMax, event.MaxTime
	return f
}

func newSeed() uint64 { return uint64(time.Now().UnixNano()) }

func TestCompiledAgreesWithInterpreter(t *testing.T) {
	l := mustLanguage(t, testSpec())
	seed := newSeed()
	r := rand.New(rand.NewPCG(seed, 1))
	var sessions []*correlate.Facts
	for range 400 {
		sessions = append(sessions, randomFacts(r))
	}
	sessions = append(sessions, wideFacts(r))
	for _, text := range expressions {
		p, reason := newPair(t, l, text, cel.BoolType)
		if reason != nil {
			t.Errorf("%s: %v", text, reason)
			continue
		}
		for _, f := range sessions {
			p.compare(t, f, seed)
		}
	}
	for _, text := range moments {
		p, reason := newPair(t, l, text, cel.TimestampType)
		if reason != nil {
			t.Errorf("%s: %v", text, reason)
			continue
		}
		for _, f := range sessions {
			p.compare(t, f, seed)
		}
	}
}

// TestRandomExpressionsAgree makes well-typed expressions by the grammar of grammar_test.go.
func TestRandomExpressionsAgree(t *testing.T) {
	l := mustLanguage(t, testSpec())
	seed := newSeed()
	r := rand.New(rand.NewPCG(seed, 2))
	var sessions []*correlate.Facts
	for range 60 {
		sessions = append(sessions, randomFacts(r))
	}
	n := 3000
	if testing.Short() {
		n = 300
	}
	native := 0
	for range n {
		g := &grammar{r: r}
		text := g.boolean(4)
		if len(text) > TextBytesMax {
			continue
		}
		p, reason := newPair(t, l, text, cel.BoolType)
		if reason != nil {
			t.Fatalf("seed %d: %s: %v", seed, text, reason)
		}
		native++
		for _, f := range sessions {
			p.compare(t, f, seed)
		}
	}
	if native < n/2 {
		t.Fatalf("seed %d: only %d of %d expressions were tried", seed, native, n)
	}
}

func TestInterpretedExpressionsDecide(t *testing.T) {
	f := sampleFacts()
	for text, want := range map[string]bool{
		`fields.channel + "!" == "alipay!"`:                                                         true,
		`double(fields.amount) / 100.0 == 6.0`:                                                      true,
		`string(fields.amount) == "600"`:                                                            true,
		`keys.order == ["A1", "A2"]`:                                                                true,
		`(keys.order + keys.txn).size() == 2`:                                                       true,
		`{"alipay": 1, "apple": 2}[fields.channel] == 1`:                                            true,
		`duration > duration("1500ns")`:                                                             true,
		`[[1], [2]].exists(x, x[0] == 2)`:                                                           true,
		`has(events[1].step)`:                                                                       true,
		`int(fields.channel) == 1`:                                                                  false, // an error
		`events[0] == events[0] && events[0] != events[1]`:                                          true,
		`size(fields.user + "x") == 2 || events[9].step == "paid"`:                                  false, // false || error
		`fields.channel + "" == "alipay" || events[9].step == "paid"`:                               true,
		`size([]) == 0 && events.map(e, e.step + "!").exists(s, s == "paid!") && size(events) == 5`: true,
	} {
		set, err := Compile(testSpec(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if len(set.Interpreted) != 1 || !strings.HasPrefix(set.Interpreted[0], "scenarios[0].when: ") {
			t.Errorf("%s: Interpreted is %q", text, set.Interpreted)
		}
		if got := set.Scenarios[0].When(f); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}

func TestInterpretedCostIsBounded(t *testing.T) {
	f := sampleFacts()
	f.Row.Events = slices.Repeat(f.Row.Events, 400)
	loop := `events.all(a, events.all(b, a.step + b.step != "x"))`
	set, err := Compile(testSpec(loop, "!("+loop+")"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if set.Scenarios[0].When(f) || set.Scenarios[1].When(f) {
		t.Error("a loop past the cost bound decided true; it must end in an error")
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

// sampleFacts is a session by hand: ordered, paid twice, delivered; one event more than its timeline lists.
func sampleFacts() *correlate.Facts {
	minute := event.Micros(time.Minute.Microseconds())
	row := &correlate.Row{
		StepNames: []string{"ordered", "paid", "delivered"},
		Events: []correlate.RowEvent{
			{Time: at, Step: 0, Source: 1}, {Time: at + minute, Step: 1}, {Time: at + 2*minute, Step: 1}, {Time: at + 8*minute, Step: 2},
		},
		Keys: []correlate.RowKey{{Kind: 0, Value: []byte("A1"), First: at}, {Kind: 0, Value: []byte("A2"), First: at + minute}},
		Fields: []correlate.RowField{
			{Present: true, Int: 600, First: at}, {Present: true, Text: []byte("alipay"), First: at}, {}, {},
		},
	}
	return &correlate.Facts{
		Start: at, End: at + 8*minute, Count: 5, Until: event.MaxTime, Row: row,
		Steps: []correlate.StepFact{
			{Count: 1, First: at + 8*minute, Last: at + 8*minute},
			{Count: 1, First: at, Last: at},
			{Count: 2, First: at + minute, Last: at + 2*minute},
			{},
		},
	}
}

func TestDecisions(t *testing.T) {
	for text, want := range map[string]bool{
		`step("paid").count == 2`:                                         true,
		`step("paid").count > 0 && step("refunded").count == 0`:           true,
		`step("delivered").first - step("paid").first > duration("5m")`:   true,
		`step("refunded").first == timestamp(0)`:                          true,
		`has(step("refunded").first)`:                                     false,
		`duration == duration("8m")`:                                      true,
		`size(events) == 5`:                                               true, // the session's count, not the timeline's
		`size(events.filter(e, true)) == 4`:                               true,
		`size(keys.order) == 2 && keys.order[1] == "A2"`:                  true,
		`events.exists(e, e.source == "orders" && e.step == "ordered")`:   true,
		`events.exists_one(e, e.step == "paid")`:                          false,
		`fields.amount == 600 && !has(fields.level) && fields.level == 0`: true,
		`fields.user == ""`:                                               true,
		`fields.channel in ["apple", "alipay"]`:                           true,
		`fields.channel.matches("^ali(pay)?$")`:                           true,
		`1 / fields.level == 1`:                                           false, // an error
		`!(1 / fields.level == 1)`:                                        false, // still an error
		`1 / fields.level == 1 || fields.amount == 600`:                   true,  // absorbed
		`[step("paid"), step("delivered")].all(s, s.count > 0)`:           true,
		`start.getHours("Asia/Shanghai") == (start.getHours() + 8) % 24`:  true,
		`events.map(e, e.time).exists(t, t - start == duration("8m"))`:    true,
	} {
		set, err := Compile(testSpec(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		f := sampleFacts()
		facts := []correlate.StepFact{}
		for _, s := range set.Steps {
			facts = append(facts, f.Steps[slices.Index(testSteps, s)])
		}
		f.Steps = facts
		if got := set.Scenarios[0].When(f); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}

func TestMoments(t *testing.T) {
	spec := testSpec(`true`, `true`, `true`, `true`)
	for i, from := range []string{`step("paid").first`, `step( "paid" ).first`, `step("refunded").last`, `has(step("refunded").first) ? step("refunded").first : end`} {
		spec.Scenarios[i].After = &jobspec.After{From: jobspec.Expr{Text: from}, Within: 5 * time.Minute}
	}
	set, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(set.Steps, []string{"paid", "refunded"}) {
		t.Fatalf("Steps = %q", set.Steps)
	}
	f := sampleFacts()
	f.Steps = f.Steps[2:]
	for i, want := range []struct {
		at event.Micros
		ok bool
	}{{f.Steps[0].First, true}, {f.Steps[0].First, true}, {0, false}, {f.End, true}} {
		got, ok := set.Scenarios[i].From(f)
		if ok != want.ok || ok && got != want.at {
			t.Errorf("moment %d: got %d %v, want %d %v", i, got, ok, want.at, want.ok)
		}
	}
	if a, b := set.Scenarios[0], set.Scenarios[1]; a.FromText != b.FromText || a.FromText == "" || a.Within != 300_000_000 {
		t.Errorf("texts %q and %q, within %d", a.FromText, b.FromText, a.Within)
	}
}

func TestInterpretedMoments(t *testing.T) {
	spec := testSpec(`true`, `true`)
	for i, step := range []string{"paid", "refunded"} {
		from := fmt.Sprintf(`{"x": step(%q).first}["x"]`, step)
		spec.Scenarios[i].After = &jobspec.After{From: jobspec.Expr{Text: from}}
	}
	set, err := Compile(spec)
	if err != nil || len(set.Interpreted) != 2 {
		t.Fatal(err, set)
	}
	f := sampleFacts()
	f.Steps = f.Steps[2:]
	if got, ok := set.Scenarios[0].From(f); !ok || got != f.Steps[0].First {
		t.Errorf("got %d %v", got, ok)
	}
	if _, ok := set.Scenarios[1].From(f); ok {
		t.Error("a step that did not happen gave a moment")
	}
}

func TestCompileIsDeterministic(t *testing.T) {
	spec := testSpec(`step("b").count > step("a").count`, `step("c").count == 0`)
	first, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(first.Steps, []string{"a", "b", "c"}) || !slices.Equal(first.Steps, again.Steps) {
		t.Errorf("steps %q, then %q", first.Steps, again.Steps)
	}
}

func TestDecidingAllocatesNothing(t *testing.T) {
	f := sampleFacts()
	l := mustLanguage(t, testSpec())
	for _, text := range expressions {
		p, reason := newPair(t, l, text, cel.BoolType)
		if reason != nil {
			continue // reported elsewhere
		}
		decide := p.native.boolean
		if n := testing.AllocsPerRun(20, func() { decide(f, cursor{}) }); n != 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
}

// FuzzCompile holds the compiler against any text: no panic, and what compiles decides without one.
func FuzzCompile(f *testing.F) {
	for _, text := range slices.Concat(expressions, moments) {
		f.Add(text)
	}
	facts := randomFacts(rand.New(rand.NewPCG(1, 1)))
	f.Fuzz(func(t *testing.T, text string) {
		spec := testSpec(text)
		spec.Text = []byte("when: " + text)
		spec.Scenarios[0].When.Pos = jobspec.Pos{Line: 1, Column: 7}
		set, err := Compile(spec)
		if err != nil {
			for _, p := range err.(jobspec.Problems) {
				if p.Pos.Line < 1 || p.Pos.Column < 1 || p.Pos.Line > 1+bytes.Count(spec.Text, []byte("\n")) {
					t.Fatalf("%q: problem at %v", text, p.Pos)
				}
			}
			return
		}
		facts := *facts
		facts.Steps = make([]correlate.StepFact, len(set.Steps))
		got := set.Scenarios[0].When(&facts)
		lang := mustLanguage(t, spec)
		r, _ := lang.check("", spec.Scenarios[0].When, cel.BoolType)
		p, err := lang.interpret(set.Steps, r.ast)
		if err != nil {
			t.Fatal(err)
		}
		v, err := p.eval(&facts, false)
		if err != nil && strings.Contains(err.Error(), "cost limit") {
			return // the compiled form has no such limit
		}
		if want := err == nil && v == types.True; got != want {
			t.Fatalf("%q: compiled %v, interpreted %v", text, got, want)
		}
	})
}

func exprOf(text string) jobspec.Expr { return jobspec.Expr{Text: text} }

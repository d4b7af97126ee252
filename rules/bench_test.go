package rules

import (
	"math/rand/v2"
	"testing"

	"cel.dev/cel-go/cel"

	"github.com/weftdata/weft/correlate"
)

// typical are rules as users write them; one of each shape.
var typical = []struct{ name, text string }{
	{"count", `step("paid").count > 0`},
	{"two_counts", `step("paid").count > 0 && step("delivered").count == 0`},
	{"four_counts", `step("ordered").count > 0 && step("paid").count > 0 && step("delivered").count == 0 && step("refunded").count == 0`},
	{"duration", `step("paid").count > 0 && duration > duration("5m")`},
	{"delay", `step("delivered").first - step("paid").first > duration("5m")`},
	{"field", `fields.channel == "alipay" && fields.amount >= 600`},
	{"keys", `size(keys.order) > 1`},
	{"exists", `events.exists(e, e.step == "delivered" && e.source == "orders")`},
	{"matches", `fields.channel.matches("^ali")`},
}

func BenchmarkRule(b *testing.B) {
	f := sampleFacts()
	l := mustLanguage(b, testSpec())
	for _, c := range typical {
		r, problems := l.check("bench", exprOf(c.text), cel.BoolType)
		if problems != nil {
			b.Fatal(problems)
		}
		set := &Set{Steps: testSteps}
		when, err := set.when(l, r)
		if err != nil || set.Interpreted != nil {
			b.Fatal(err, set.Interpreted)
		}
		p, err := l.interpret(testSteps, r.ast)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(c.name+"/compiled", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				when(f)
			}
		})
		b.Run(c.name+"/interpreted", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.decide(f)
			}
		})
	}
}

// BenchmarkThirtyScenarios decides 30 scenarios of one session after the other, over sessions that differ.
func BenchmarkThirtyScenarios(b *testing.B) {
	var whens []string
	for i := range 30 {
		whens = append(whens, typical[i%7].text) // without exists and matches, whose cost is that of their data
	}
	set, err := Compile(testSpec(whens...))
	if err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	var sessions []*correlate.Facts
	for range 64 {
		sessions = append(sessions, randomFacts(r))
	}
	hits, i := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		f := sessions[i&63]
		for k := range set.Scenarios {
			if set.Scenarios[k].When(f) {
				hits++
			}
		}
		i++
	}
	b.ReportMetric(float64(hits)/float64(i), "hits/op")
}

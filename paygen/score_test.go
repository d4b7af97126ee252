package paygen

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

const smallTruth = `{"chain":1,"scenarios":["delivered"],"recognizable":true,"events":[{"source":"orders","offset":0,"index":0},{"source":"client","offset":0,"index":1}]}
{"chain":2,"scenarios":["refunded"],"recognizable":true,"events":[{"source":"orders","offset":1,"index":0},{"source":"client","offset":0,"index":2}]}
{"chain":3,"scenarios":["delivered"],"recognizable":false,"reason":"split","planned":["delivered"],"events":[{"source":"orders","offset":3,"index":0},{"source":"risk","offset":3,"index":0}],"parts":[{"events":[0],"scenarios":[]},{"events":[1],"scenarios":["delivered"]}]}
`

func TestScore(t *testing.T) {
	one := `{"id":"a","revision":2,"scenarios":["delivered"],"events":[{"source":"client","topic":"t","partition":0,"offset":0,"index":1,"time":1,"step":"x"},{"source":"orders","offset":0,"index":0}]}` + "\n"
	two := `{"id":"b","scenarios":["refunded"],"events":[{"source":"orders","offset":1,"index":0},{"source":"client","offset":0,"index":2}]}` + "\n"
	three := `{"id":"c","scenarios":[],"events":[{"source":"orders","offset":3,"index":0}]}` + "\n" +
		`{"id":"d","scenarios":["delivered"],"events":[{"source":"risk","offset":3,"index":0}]}` + "\n"
	for _, test := range []struct {
		name, sessions                string
		chains, recognizable, exactly Match
		delivered                     Match
		exact                         bool
		difference                    string
	}{
		{"right", one + two + three, Match{3, 4, 2}, Match{2, 2, 2}, Match{4, 4, 4}, Match{2, 2, 1}, true, ""},
		{"a missing session", one + three, Match{3, 3, 1}, Match{2, 1, 1}, Match{4, 3, 3}, Match{2, 2, 1}, false,
			"chain 2: its session of 2 events was not found: 2 are in no wrong session"},
		{"a session twice", one + one + two + three, Match{3, 5, 2}, Match{2, 3, 2}, Match{4, 5, 4}, Match{2, 3, 1}, false,
			"session a: 2 of its 2 events are of no chain, or of one found elsewhere"},
		{"a wrong scenario", one + strings.Replace(two, "refunded", "delivered", 1) + three,
			Match{3, 4, 2}, Match{2, 2, 2}, Match{4, 4, 3}, Match{2, 3, 1}, false,
			"chain 2, session b: scenarios missing [refunded], too many [delivered]"},
		{"two chains as one", `{"id":"x","scenarios":["delivered"],"events":[{"source":"client","offset":0,"index":1},{"source":"orders","offset":0,"index":0},{"source":"orders","offset":1,"index":0},{"source":"client","offset":0,"index":2}]}` + "\n" + three,
			Match{3, 3, 0}, Match{2, 1, 0}, Match{4, 3, 2}, Match{2, 2, 0}, false,
			"chain 1: its session of 2 events was not found: session x has 2 of them and 2 others"},
		{"a split chain as one", one + two + `{"id":"y","scenarios":["delivered"],"events":[{"source":"orders","offset":3,"index":0},{"source":"risk","offset":3,"index":0}]}`,
			Match{3, 3, 3}, Match{2, 2, 2}, Match{4, 3, 2}, Match{2, 2, 2}, false,
			"chain 3 is one session, y, though lost records split it"},
		{"nothing", "", Match{3, 0, 0}, Match{2, 0, 0}, Match{4, 0, 0}, Match{2, 0, 0}, false,
			"chain 1: its session of 2 events was not found: 2 are in no wrong session"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := score(t, smallTruth, test.sessions)
			if s.Chains != test.chains || s.Recognizable != test.recognizable || s.Sessions != test.exactly {
				t.Errorf("chains %v, recognizable %v, sessions %v", s.Chains, s.Recognizable, s.Sessions)
			}
			if i := slices.IndexFunc(s.Scenarios, func(n ScenarioScore) bool { return n.Name == "delivered" }); s.Scenarios[i].All != test.delivered {
				t.Errorf("delivered %v", s.Scenarios[i].All)
			}
			if s.Exact() != test.exact {
				t.Errorf("exact is %v", s.Exact())
			}
			if all := strings.Join(s.Differences, "\n"); !strings.Contains(all, test.difference) || (all == "") != test.exact {
				t.Errorf("differences %q", all)
			}
		})
	}
}

func score(t *testing.T, truth, sessions string) *Scores {
	t.Helper()
	s, err := Score(strings.NewReader(truth), func(yield func(*Session) error) error {
		return ReadSessions(strings.NewReader(sessions), yield)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestScorePrints(t *testing.T) {
	var b bytes.Buffer
	if _, err := score(t, smallTruth, "").WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"recognizable chains", "delivered", "0.000000", "difference: chain 2"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestBrokenFilesAreErrors(t *testing.T) {
	for _, test := range []struct{ name, truth, sessions, want string }{
		{"truth", "{}\n{", "", "read truth, line 2"},
		{"sessions", smallTruth, "[]", "read sessions, line 1"},
		{"part", `{"chain":9,"events":[],"parts":[{"events":[4]}]}`, "", "chain 9"},
		{"same events", smallTruth + smallTruth, "", "chain 1"},
	} {
		_, err := Score(strings.NewReader(test.truth), func(yield func(*Session) error) error {
			return ReadSessions(strings.NewReader(test.sessions), yield)
		})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func FuzzScore(f *testing.F) {
	f.Add(smallTruth, `{"id":"a","events":[{"source":"orders","offset":0}]}`)
	f.Fuzz(func(t *testing.T, truth, sessions string) {
		s, err := Score(strings.NewReader(truth), func(yield func(*Session) error) error {
			return ReadSessions(strings.NewReader(sessions), yield)
		})
		if err == nil && (s.Chains.Right > s.Chains.Found || s.Chains.Right > s.Chains.Truth || s.Exact() != (len(s.Differences) == 0)) {
			t.Errorf("%+v", s)
		}
	})
}

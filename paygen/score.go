package paygen

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

const (
	// DifferencesMax bounds the differences that are explained.
	DifferencesMax = 10
	// ScenarioNamesMax bounds the distinct scenarios that a score tells apart.
	ScenarioNamesMax = 256
)

// Match compares what was found with the truth. The units are chains and sessions, or mentions of one scenario.
type Match struct {
	Truth int64 // there are
	Found int64 // the engine says there are
	Right int64 // in both
}

// Precision is the share of what was found that is right; 1 where nothing was found.
func (m Match) Precision() float64 { return share(m.Right, m.Found) }

// Recall is the share of the truth that was found; 1 where there is none.
func (m Match) Recall() float64 { return share(m.Right, m.Truth) }

func share(part, whole int64) float64 {
	if whole == 0 {
		return 1
	}
	return float64(part) / float64(whole)
}

func (m Match) exact() bool { return m.Right == m.Truth && m.Right == m.Found }

// Scores is the outcome of comparing sessions with the truth.
//
// Chains and Recognizable say how well purchases are recognized as what they were: a session is right where its events
// are exactly a chain's. A split chain is never right, for its links are lost; Recognizable leaves those and the ones
// without evidence out. Sessions says whether the engine did what it should with what was written, where a split chain
// must become exactly its parts: a session is right where both its events and its scenarios are.
type Scores struct {
	Chains       Match
	Recognizable Match
	Sessions     Match
	Scenarios    []ScenarioScore // sorted by name
	Differences  []string        // the first few between Sessions' truth and what was found
}

// ScenarioScore compares the mentions of one scenario. A mention is right on a session whose events are the chain's.
type ScenarioScore struct {
	Name              string
	All, Recognizable Match
}

// Exact tells whether every session is as it must be, and no other was found.
func (s *Scores) Exact() bool { return s.Sessions.exact() }

// WriteTo prints the scores as a table.
func (s *Scores) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\ttruth\tfound\tright\tprecision\trecall\t")
	row := func(name string, m Match) {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%.6f\t%.6f\t\n", name, m.Truth, m.Found, m.Right, m.Precision(), m.Recall())
	}
	row("chains", s.Chains)
	row("recognizable chains", s.Recognizable)
	row("sessions and scenarios", s.Sessions)
	for _, name := range s.Scenarios {
		row(name.Name, name.All)
	}
	_ = t.Flush() // a strings.Builder does not fail
	for _, d := range s.Differences {
		fmt.Fprintln(&b, "difference:", d)
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// Score compares sessions with a truth file. sessions calls its argument for every session and stops at its error:
// ReadSessions with its reader bound. Memory grows with the truth, by 8 bytes an event and
// some 100 a chain, and with what is wrong.
func Score(truth io.Reader, sessions func(yield func(*Session) error) error) (*Scores, error) {
	k := &scorer{units: map[fingerprint]int32{}, names: map[string]int{}, scores: map[string]*ScenarioScore{}}
	if err := ReadTruth(truth, k.addTruth); err != nil {
		return nil, err
	}
	if err := sessions(k.addSession); err != nil {
		return nil, err
	}
	k.conclude()
	return &k.result, nil
}

// fingerprint identifies a set of events: two independent sums of hashes.
type fingerprint [2]uint64

func (e *Event) hash() uint64 {
	h := mix(uint64(e.Offset)<<16 ^ uint64(e.Index))
	for i := range len(e.Source) {
		h = mix(h ^ uint64(e.Source[i])<<(i&7*8))
	}
	return h
}

func (f *fingerprint) add(hash uint64) {
	f[0] += hash
	f[1] += mix(hash ^ 0x5bd1e995)
}

// names is a set of scenarios by number.
type names [ScenarioNamesMax / 64]uint64

func (n *names) set(i int)      { n[i/64] |= 1 << (i % 64) }
func (n *names) has(i int) bool { return n[i/64]>>(i%64)&1 > 0 }

// unit is a chain, or a part of a split one.
type unit struct {
	chain        int64 // its number
	first, n     int   // range of scorer.events
	scenarios    names
	part         bool // not a chain of its own
	expected     bool // must come out as a session
	recognizable bool
	found        bool
}

// stray is a session that is no unit.
type stray struct {
	id        string
	events    []uint64
	scenarios names
}

type scorer struct {
	units  map[fingerprint]int32 // positions in list
	list   []unit
	events []uint64 // hashes of the units' events
	strays []stray
	names  map[string]int
	scores map[string]*ScenarioScore
	result Scores
	wrong  []string // differences of sessions with the right events
}

func (k *scorer) numbers(list []string) (set names, err error) {
	for _, name := range list {
		i, ok := k.names[name]
		if !ok {
			i = len(k.names)
			if i == ScenarioNamesMax {
				return set, fmt.Errorf("more than %d distinct scenarios", ScenarioNamesMax)
			}
			k.names[name] = i
			k.scores[name] = &ScenarioScore{Name: name}
		}
		set.set(i)
	}
	return set, nil
}

// mention counts scenarios on one side of the comparison.
func (k *scorer) mention(set names, recognizable bool, count func(*Match)) {
	for name, i := range k.names {
		if set.has(i) {
			s := k.scores[name]
			count(&s.All)
			if recognizable {
				count(&s.Recognizable)
			}
		}
	}
}

func inTruth(m *Match) { m.Truth++ }
func inFound(m *Match) { m.Found++ }
func inBoth(m *Match)  { m.Right++ }

func (k *scorer) addTruth(c *Chain) error {
	whole := unit{chain: c.Number, recognizable: c.Recognizable, expected: len(c.Parts) == 0}
	all := make([]int, len(c.Events))
	for i := range all {
		all[i] = i
	}
	k.result.Chains.Truth++
	if c.Recognizable {
		k.result.Recognizable.Truth++
	}
	if err := k.addUnit(c, whole, all, c.Scenarios); err != nil {
		return err
	}
	for _, p := range c.Parts {
		part := unit{chain: c.Number, part: true, expected: true}
		if err := k.addUnit(c, part, p.Events, p.Scenarios); err != nil {
			return err
		}
	}
	return nil
}

func (k *scorer) addUnit(c *Chain, u unit, members []int, scenarios []string) error {
	var f fingerprint
	u.first, u.n = len(k.events), len(members)
	for _, i := range members {
		if i < 0 || i >= len(c.Events) {
			return fmt.Errorf("truth of chain %d: part names event %d of %d", c.Number, i, len(c.Events))
		}
		h := c.Events[i].hash()
		f.add(h)
		k.events = append(k.events, h)
	}
	var err error
	if u.scenarios, err = k.numbers(scenarios); err != nil {
		return err
	}
	if _, ok := k.units[f]; ok {
		return fmt.Errorf("truth of chain %d: its events are those of another", c.Number)
	}
	if u.expected {
		k.result.Sessions.Truth++
	}
	if !u.part {
		k.mention(u.scenarios, u.recognizable, inTruth)
	}
	k.units[f] = int32(len(k.list))
	k.list = append(k.list, u)
	return nil
}

func (k *scorer) addSession(s *Session) error {
	set, err := k.numbers(s.Scenarios)
	if err != nil {
		return err
	}
	var f fingerprint
	for i := range s.Events {
		f.add(s.Events[i].hash())
	}
	k.result.Sessions.Found++
	k.result.Chains.Found++
	i, ok := k.units[f]
	if !ok || k.list[i].found {
		t := stray{id: s.ID, scenarios: set}
		for i := range s.Events {
			t.events = append(t.events, s.Events[i].hash())
		}
		k.strays = append(k.strays, t)
		return nil
	}
	u := &k.list[i]
	u.found = true
	if u.expected && set == u.scenarios {
		k.result.Sessions.Right++
	} else if len(k.wrong) < DifferencesMax {
		k.wrong = append(k.wrong, k.compare(u, s.ID, set))
	}
	k.mention(set, u.recognizable, inFound)
	if u.part {
		return nil
	}
	k.result.Chains.Right++
	if u.recognizable {
		k.result.Recognizable.Found++
		k.result.Recognizable.Right++
	}
	for n := range set {
		set[n] &= u.scenarios[n]
	}
	k.mention(set, u.recognizable, inBoth)
	return nil
}

// compare says in which scenarios a session with the right events differs.
func (k *scorer) compare(u *unit, id string, found names) string {
	if !u.expected {
		return fmt.Sprintf("chain %d is one session, %s, though lost records split it", u.chain, id)
	}
	var missing, extra []string
	for _, name := range slices.Sorted(maps.Keys(k.names)) {
		switch i := k.names[name]; {
		case u.scenarios.has(i) && !found.has(i):
			missing = append(missing, name)
		case !u.scenarios.has(i) && found.has(i):
			extra = append(extra, name)
		}
	}
	return fmt.Sprintf("chain %d, session %s: scenarios missing %v, too many %v", u.chain, id, missing, extra)
}

// conclude counts the strays and explains what is missing.
func (k *scorer) conclude() {
	owners := map[uint64]int32{} // of the events of units not found: their position in list
	for i := range k.list {
		if u := &k.list[i]; !u.found && !u.part {
			for _, h := range k.events[u.first : u.first+u.n] {
				owners[h] = int32(i)
			}
		}
	}
	inStray := map[uint64]int{} // positions in strays
	for i, s := range k.strays {
		recognizable := false
		for _, h := range s.events {
			inStray[h] = i
			owner, known := owners[h]
			recognizable = recognizable || !known || k.list[owner].recognizable
		}
		if recognizable {
			k.result.Recognizable.Found++
		}
		k.mention(s.scenarios, recognizable, inFound)
	}
	for _, name := range slices.Sorted(maps.Keys(k.names)) {
		k.result.Scenarios = append(k.result.Scenarios, *k.scores[name])
	}

	k.result.Differences = k.wrong
	differ := func(format string, args ...any) bool {
		k.result.Differences = append(k.result.Differences, fmt.Sprintf(format, args...))
		return len(k.result.Differences) < 2*DifferencesMax
	}
	for i := range k.list {
		u := &k.list[i]
		if !u.found && u.expected && !differ("chain %d: its session of %d events was not found: %s", u.chain, u.n, k.whereabouts(u, inStray)) {
			return
		}
	}
	for _, s := range k.strays {
		unknown := 0
		for _, h := range s.events {
			if _, ok := owners[h]; !ok {
				unknown++
			}
		}
		if (unknown > 0 || len(s.events) == 0) && !differ("session %s: %d of its %d events are of no chain, or of one found elsewhere", s.id, unknown, len(s.events)) {
			return
		}
	}
}

// whereabouts says which sessions hold the events of a unit.
func (k *scorer) whereabouts(u *unit, inStray map[uint64]int) string {
	counts, missing := map[int]int{}, 0
	for _, h := range k.events[u.first : u.first+u.n] {
		if i, ok := inStray[h]; ok {
			counts[i]++
		} else {
			missing++
		}
	}
	var parts []string
	for _, i := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("session %s has %d of them and %d others", k.strays[i].id, counts[i], len(k.strays[i].events)-counts[i]))
		if len(parts) == 4 {
			parts = append(parts, "and so on")
			break
		}
	}
	if missing > 0 {
		parts = append(parts, fmt.Sprintf("%d are in no wrong session", missing))
	}
	return strings.Join(parts, ", ")
}

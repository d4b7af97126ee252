package paygen

// Why a chain cannot be recognized as what it was.
const (
	// ReasonSplit: lost records break the chain into parts that share no identifier in time.
	ReasonSplit = "split"
	// ReasonEvidence: the chain is whole, but lost records change which scenarios hold.
	ReasonEvidence = "evidence"
)

// finish writes a chain's truth. All of its lines are written; the chain is reused.
func (g *generator) finish(c *chain) error {
	defer func() { g.free = append(g.free, c) }()
	written := g.written[:0]
	for i := range c.events {
		if c.events[i].written {
			written = append(written, c.events[i])
		}
	}
	g.written = written
	if len(written) == 0 {
		return nil
	}
	held := judge(g.rules, c, written)
	planned := judge(g.rules, c, c.events)
	g.groups = append(g.groups[:0], make([]int, len(written))...)
	parts := components(written, g.groups)

	reason := ""
	switch {
	case parts > 1:
		reason = ReasonSplit
	case held != planned:
		reason = ReasonEvidence
	}
	g.sum.Chains++
	if reason == "" {
		g.sum.Recognizable++
	}
	for i := range g.rules {
		g.held[i] += int64(held >> i & 1)
	}

	t := &g.text
	t.b = t.b[:0]
	t.str(`{"chain":`).int(c.number).str(`,"game":"`).str(c.game.id).str(`","channel":"`).str(c.channel.id).str(`","user":"`).user(c.user)
	t.str(`","scenarios":`).scenarios(g.rules, held).str(`,"recognizable":`)
	if reason == "" {
		t.str(`true`)
	} else {
		t.str(`false,"reason":"`).str(reason).str(`","planned":`).scenarios(g.rules, planned)
	}
	t.str(`,"events":[`)
	for i := range written {
		t.separate(i).place(place{written[i].src, written[i].index, written[i].offset})
	}
	t.str(`]`)
	if len(c.folded) > 0 {
		t.str(`,"folded":[`)
		for i, p := range c.folded {
			t.separate(i).place(p)
		}
		t.str(`]`)
	}
	if parts > 1 {
		t.str(`,"parts":[`)
		for n := range parts {
			t.separate(n).part(g, c, n)
		}
		t.str(`]`)
	}
	t.str(`}`)
	return g.truth.line(t.b)
}

// part writes group n of the chain in hand: positions in the list of events, and its own scenarios.
func (t *text) part(g *generator, c *chain, n int) {
	t.str(`{"events":[`)
	var members []occurrence
	for i, group := range g.groups {
		if group == n {
			t.separate(len(members)).int(int64(i))
			members = append(members, g.written[i])
		}
	}
	t.str(`],"scenarios":`).scenarios(g.rules, judge(g.rules, c, members)).str(`}`)
}

// separate writes a comma before every element but the first.
func (t *text) separate(i int) *text {
	if i > 0 {
		t.str(",")
	}
	return t
}

func (t *text) place(p place) *text {
	return t.str(`{"source":"`).str(files[p.src].name).str(`","offset":`).int(p.offset).str(`,"index":`).int(int64(p.index)).str(`}`)
}

func (t *text) scenarios(rules []scenario, held uint64) *text {
	t.str(`[`)
	n := 0
	for i := range rules {
		if held>>i&1 > 0 {
			t.separate(n).str(`"`).str(rules[i].name).str(`"`)
			n++
		}
	}
	return t.str(`]`)
}

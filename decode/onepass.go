package decode

import (
	"regexp/syntax"
	"slices"
	"unicode"
	"unicode/utf8"
)

// onePass matches a whole line against a regular expression in which the next character always decides how to go on:
// no two ways through the expression can begin alike. Such an expression needs one table look-up a byte and no memory.
type onePass struct {
	arcs   []uint32 // by state·128 + ASCII byte: state to go to, and the number in sets of what to note before, shifted by 16
	wide   [][]wideArc
	accept []uint16 // by state: number in sets of what to note at the end of the line; noAccept where it must not end
	sets   [][]int  // sets of capture slots; number 0 is the empty one
	groups int      // capture slots
	fast   []fastPart
}

// fastPart is how a state gets on by more than one byte at a time. Where look-ups in arcs wait for one another, these
// do not.
type fastPart struct {
	loop    *[256]bool // ASCII bytes on which the state stays and notes nothing; nil: none
	literal string     // the only way on, where it is one of two bytes or more that notes nothing
	to      uint32     // state after the literal
}

// wideArc is what a state does with some characters beyond ASCII.
type wideArc struct {
	inst *syntax.Inst
	arc  uint32
}

const (
	onePassStatesMax = 1024 // 512 KiB of table
	deadArc          = 0xffff
	noAccept         = 0xffff
)

// compileOnePass returns nil where the expression is not one-pass, looks at word or line boundaries, or is too large.
// wanted tells which capture slots matter.
func compileOnePass(re *syntax.Regexp, wanted func(slot int) bool) *onePass {
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil
	}
	c := onePassCompiler{
		prog:   prog,
		wanted: wanted,
		states: map[uint32]int{},
		out:    &onePass{sets: [][]int{nil}, groups: prog.NumCap},
	}
	c.state(uint32(prog.Start))
	for i := 0; i < len(c.entries); i++ {
		if !c.compileState(i) {
			return nil
		}
	}
	c.out.speedUp()
	return c.out
}

// speedUp finds the loops and literals of all states.
func (m *onePass) speedUp() {
	m.fast = make([]fastPart, len(m.accept))
	for s := range m.fast {
		var loop [256]bool
		loops := false
		for c, arc := range m.arcs[s<<7 : (s+1)<<7] {
			if arc == uint32(s) {
				loop[c], loops = true, true
			}
		}
		if loops {
			m.fast[s].loop = &loop
			continue
		}
		text, at := []byte(nil), uint32(s)
		for len(text) < len(m.fast) {
			c, to, ok := m.only(at)
			if !ok {
				break
			}
			text, at = append(text, c), to
		}
		if len(text) > 1 {
			m.fast[s].literal, m.fast[s].to = string(text), at
		}
	}
}

// only returns the one byte with which a state goes on, noting nothing, if there is just one.
func (m *onePass) only(s uint32) (c byte, to uint32, ok bool) {
	if m.accept[s] != noAccept {
		return 0, 0, false
	}
	for b, arc := range m.arcs[s<<7 : (s+1)<<7] {
		if arc == deadArc {
			continue
		}
		if ok || arc >= 1<<16 {
			return 0, 0, false
		}
		c, to, ok = byte(b), arc, true
	}
	for _, w := range m.wide[s] {
		if slices.Max(runesOf(w.inst)) >= utf8.RuneSelf {
			return 0, 0, false
		}
	}
	return c, to, ok
}

type onePassCompiler struct {
	prog    *syntax.Prog
	wanted  func(slot int) bool
	entries []uint32       // by state: the instruction at which it begins
	states  map[uint32]int // and back
	out     *onePass
}

// state returns the number of the state that begins at an instruction.
func (c *onePassCompiler) state(pc uint32) int {
	n, ok := c.states[pc]
	if !ok {
		n = len(c.entries)
		c.states[pc] = n
		c.entries = append(c.entries, pc)
	}
	return n
}

// way is one way on from a state without reading: to an instruction that reads, or to the end.
type way struct {
	inst *syntax.Inst // nil: the end
	set  []int        // capture slots passed
}

func (c *onePassCompiler) compileState(n int) bool {
	w := waysFrom{c: c, start: n == 0, seen: map[uint32]bool{}}
	if !w.follow(c.entries[n], nil, false) {
		return false
	}
	out := c.out
	out.accept = append(out.accept, noAccept)
	row := make([]uint32, 128)
	for i := range row {
		row[i] = deadArc
	}
	var wide []wideArc
	for i, way := range w.ways {
		if way.inst == nil {
			out.accept[n] = c.set(way.set)
			continue
		}
		for _, other := range w.ways[:i] {
			if other.inst != nil && overlap(runesOf(other.inst), runesOf(way.inst)) {
				return false
			}
		}
		to := c.state(way.inst.Out)
		if to >= onePassStatesMax {
			return false
		}
		arc := uint32(to) | uint32(c.set(way.set))<<16
		for b := range row {
			if way.inst.MatchRune(rune(b)) {
				row[b] = arc
			}
		}
		wide = append(wide, wideArc{way.inst, arc})
	}
	out.arcs = append(out.arcs, row...)
	out.wide = append(out.wide, wide)
	return true
}

// set returns the number of a set of capture slots.
func (c *onePassCompiler) set(slots []int) uint16 {
	if len(slots) == 0 {
		return 0
	}
	c.out.sets = append(c.out.sets, slots)
	return uint16(len(c.out.sets) - 1)
}

// waysFrom collects the ways on from one state.
type waysFrom struct {
	c     *onePassCompiler
	start bool // the state is the start of the line
	seen  map[uint32]bool
	ways  []way
}

// follow adds the ways on from an instruction. It returns false where two ways lead to the same one, or where the way
// depends on what was read before.
func (w *waysFrom) follow(pc uint32, set []int, ended bool) bool {
	const setsMax = 0xfffe
	if w.seen[pc] || len(w.c.out.sets)+len(w.ways) > setsMax {
		return false
	}
	w.seen[pc] = true
	inst := &w.c.prog.Inst[pc]
	switch inst.Op {
	case syntax.InstFail:
		return true
	case syntax.InstAlt, syntax.InstAltMatch:
		return w.follow(inst.Out, set, ended) && w.follow(inst.Arg, set, ended)
	case syntax.InstNop:
		return w.follow(inst.Out, set, ended)
	case syntax.InstCapture:
		if w.c.wanted(int(inst.Arg)) {
			set = append(set[:len(set):len(set)], int(inst.Arg))
		}
		return w.follow(inst.Out, set, ended)
	case syntax.InstEmptyWidth:
		switch syntax.EmptyOp(inst.Arg) {
		case syntax.EmptyBeginText:
			return !w.start || w.follow(inst.Out, set, ended)
		case syntax.EmptyEndText:
			return w.follow(inst.Out, set, true)
		}
		return false
	case syntax.InstMatch:
		w.ways = append(w.ways, way{nil, set})
		return true
	default: // the instructions that read a character
		if !ended {
			w.ways = append(w.ways, way{inst, set})
		}
		return true
	}
}

// runesOf returns the characters that an instruction reads, as pairs of first and last.
func runesOf(inst *syntax.Inst) []rune {
	switch inst.Op {
	case syntax.InstRuneAny:
		return []rune{0, unicode.MaxRune}
	case syntax.InstRuneAnyNotNL:
		return []rune{0, '\n' - 1, '\n' + 1, unicode.MaxRune}
	}
	if len(inst.Rune) != 1 {
		return inst.Rune
	}
	r := inst.Rune[0]
	pairs := []rune{r, r}
	if syntax.Flags(inst.Arg)&syntax.FoldCase != 0 {
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			pairs = append(pairs, f, f)
		}
	}
	return pairs
}

func overlap(a, b []rune) bool {
	for i := 0; i < len(a); i += 2 {
		for j := 0; j < len(b); j += 2 {
			if a[i] <= b[j+1] && b[j] <= a[i+1] {
				return true
			}
		}
	}
	return false
}

// match tells whether the whole line matches, and fills caps (one for each capture slot) with positions, -1 where a
// group took no part.
func (m *onePass) match(line []byte, caps []int) bool {
	for i := range caps {
		caps[i] = -1
	}
	state := uint32(0)
	for at := 0; at < len(line); {
		switch fast := &m.fast[state]; {
		case fast.loop != nil:
			for at < len(line) && fast.loop[line[at]] {
				at++
			}
		case fast.literal != "":
			n := len(fast.literal)
			if len(line)-at < n || string(line[at:at+n]) != fast.literal {
				return false
			}
			at += n
			state = fast.to
			continue
		}
		if at == len(line) {
			break
		}
		c, width := line[at], 1
		arc := uint32(deadArc)
		if c < utf8.RuneSelf {
			arc = m.arcs[state<<7|uint32(c)]
		} else {
			arc, width = m.wideArc(state, line[at:])
		}
		if arc >= 1<<16 {
			for _, slot := range m.sets[arc>>16] {
				caps[slot] = at
			}
		}
		if state = arc & 0xffff; state == deadArc {
			return false
		}
		at += width
	}
	set := m.accept[state]
	if set == noAccept {
		return false
	}
	for _, slot := range m.sets[set] {
		caps[slot] = len(line)
	}
	return true
}

// wideArc returns where a state goes with the character that p starts with, and its length. As in package regexp, a
// byte that is not UTF-8 reads as U+FFFD.
func (m *onePass) wideArc(state uint32, p []byte) (arc uint32, width int) {
	r, width := utf8.DecodeRune(p)
	for _, w := range m.wide[state] {
		if w.inst.MatchRune(r) {
			return w.arc, width
		}
	}
	return deadArc, width
}

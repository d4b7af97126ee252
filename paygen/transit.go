package paygen

import (
	"math/bits"
	"slices"
)

// mulDiv is a*b/c without overflow in between.
func mulDiv(a, b, c uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	q, _ := bits.Div64(hi, lo, c)
	return q
}

// How often things go wrong, in 10,000 lines.
const (
	lostRate      = 30  // never arrive
	breaksRate    = 8   // arrive broken
	tearsRate     = 15  // arrive broken, then whole
	againRate     = 60  // arrive twice
	straggleRate  = 100 // arrive minutes to hours late
	noiseRate     = 500 // come after a line that means nothing to the job
	straggleLimit = 6 * hour
	againLimit    = 3 * hour
)

// latencies are typical delays from event to arrival, in microseconds.
var latencies = [sources]int64{
	account: 150 * millisecond, billing: 80 * millisecond, billingDB: 200 * millisecond, client: 2 * second,
	delivery: second, gateway: 30 * millisecond, orders: 20 * millisecond, refunds: 300 * millisecond,
	risk: 15 * millisecond, store: 60 * millisecond, wallet: 100 * millisecond,
}

// launch plans a chain and sends its lines on their way.
func (g *generator) launch(n, at int64) {
	c := g.newChain(n, at)
	events := c.events
	for i := 0; i < len(events); {
		n := 1
		if events[i].src == client {
			n = batchLength(events[i:])
		}
		g.send(c, i, n)
		i += n
	}
	if c.pending == 0 { // nothing of it is left
		g.free = append(g.free, c)
	}
}

// newChain draws who buys what, how it goes, and tells it.
func (g *generator) newChain(n, at int64) *chain {
	c := &chain{}
	if last := len(g.free) - 1; last >= 0 {
		c, g.free = g.free[last], g.free[:last]
		c.reset()
	}
	p := planner{r: rng(mix(g.cfg.Seed) ^ mix(uint64(n)+1)), c: c, now: at}
	told := &g.plots[g.byPlot.draw(&p.r)]
	gameNumber := g.market.byGame.draw(&p.r)
	c.number, c.start, c.game = n, at, &g.market.games[gameNumber]

	players := g.users[gameNumber]
	c.user = players[0] + min(p.r.below(players[1]), p.r.below(players[1])) // some players buy a lot
	c.other = players[0] + p.r.below(players[1])
	habits := rng(mix(uint64(c.user)))
	if p.r.chance(1500) {
		habits = p.r // an unusual purchase: another channel, the other device
	}
	offered := &g.market.byRegion[c.game.region]
	for c.channel == nil || told.family == walletOnly && c.channel.store || told.family == storeOnly && !c.channel.store {
		c.channel = &g.market.channels[offered.draw(&habits)]
	}
	c.device = uint8(habits.below(3))
	c.item = uint8(min(p.r.below(6), p.r.below(6)))
	c.currency = c.channel.currency[c.game.region]
	p.amount = prices(c.currency)[c.item]

	told.tell(&p)
	slices.SortStableFunc(c.events, func(a, b occurrence) int { return int(a.src) - int(b.src) })
	return c
}

// batchLength says how many of the client's occurrences go into one batch: those close in time, often.
func batchLength(events []occurrence) int {
	n := 1
	for n < len(events) && events[n].src == client && events[n].time-events[n-1].time < 30*second && events[n].seed>>40&3 > 0 {
		n++
	}
	return n
}

// send decides when, how and how often one line arrives.
func (g *generator) send(c *chain, first, n int) {
	last := &c.events[first+n-1]
	p := parcel{chain: c, first: uint16(first), n: uint16(n)}
	switch luck := g.r.below(10_000); {
	case luck < lostRate:
		return
	case last.step == billSettled: // its fate is drawn with that of the whole statement
	case luck < lostRate+breaksRate:
		p.fate = breaks
	case luck < lostRate+breaksRate+tearsRate:
		p.fate = tears
	}
	p.arrival = last.time + g.r.delay(latencies[last.src])
	if g.r.chance(straggleRate) {
		p.arrival += min(g.r.between(minute, straggleLimit), g.r.between(minute, straggleLimit))
	}
	if last.src == delivery && g.live == nil { // files of a minute each
		p.arrival += minute - p.arrival%minute
	}
	g.post(p)
	if p.fate != breaks && last.step != billSettled && g.r.chance(againRate) {
		p.arrival += g.r.between(1, againLimit)
		p.again, p.fate = true, arrives
		g.post(p)
	}
}

func (g *generator) post(p parcel) {
	if g.live != nil && p.arrival > g.live.horizon {
		return
	}
	if p.chain != nil {
		p.chain.pending++
	}
	for _, row := range p.rows {
		row.chain.pending++
	}
	g.queue.push(p)
}

// arrive writes a line, or keeps a settled bill until its statement is complete.
func (g *generator) arrive(p parcel) error {
	if p.rows == nil && p.chain.events[p.first].step == billSettled {
		g.settled = append(g.settled, entry{p.chain, int(p.first)})
		if int64(len(g.settled)) <= int64(g.settled[0].occurrence().seed%6) {
			return nil
		}
		return g.settle(p.arrival)
	}
	if err := g.write(p); err != nil {
		return err
	}
	return g.release(p)
}

// settle writes the waiting bills as one statement.
func (g *generator) settle(at int64) error {
	p := parcel{arrival: at, rows: slices.Clone(g.settled)}
	g.settled = g.settled[:0]
	switch luck := g.r.below(10_000); {
	case luck < breaksRate:
		p.fate = breaks
	case luck < breaksRate+tearsRate:
		p.fate = tears
	}
	if err := g.write(p); err != nil {
		return err
	}
	if p.fate != breaks && g.r.chance(againRate) {
		p.arrival += g.r.between(1, againLimit)
		p.again, p.fate = true, arrives
		g.post(p)
	}
	return g.release(p)
}

// rowsOf returns the occurrences that a line holds; the result is valid until the next call.
func (g *generator) rowsOf(p parcel) []entry {
	if p.rows != nil {
		return p.rows
	}
	g.rows = g.rows[:0]
	for i := range int(p.n) {
		g.rows = append(g.rows, entry{p.chain, int(p.first) + i})
	}
	return g.rows
}

// write renders a line and writes it to its source's file, with what goes before it.
func (g *generator) write(p parcel) error {
	rows := g.rowsOf(p)
	c, o := rows[0].chain, rows[0].occurrence()
	out := &g.out[o.src]
	if g.r.chance(noiseRate) {
		if g.line.b = g.line.b[:0]; g.line.noise(c, o) {
			if err := g.put(out, g.line.b); err != nil {
				return err
			}
		}
	}
	g.line.b = g.line.b[:0]
	switch o.src {
	case client:
		g.line.telemetry(c, c.events[p.first:p.first+p.n])
	case billingDB:
		g.line.billRows(rows)
	default:
		g.line.record(g.market, c, o)
	}
	if p.fate != arrives {
		if err := g.reject(o.src, g.line.b); err != nil {
			return err
		}
	}
	if p.fate == breaks {
		return nil
	}
	for _, row := range rows {
		g.note(row, out.lines, p.again)
	}
	return g.put(out, g.line.b)
}

// note keeps where an occurrence was written.
func (g *generator) note(row entry, offset int64, again bool) {
	o := row.occurrence()
	if again {
		row.chain.folded = append(row.chain.folded, place{o.src, o.index, offset})
		g.sum.Folded++
		return
	}
	o.written, o.offset = true, offset
	g.sum.Events++
}

// put writes one line of a source.
func (g *generator) put(out *output, line []byte) error {
	out.lines++
	g.sum.Lines++
	g.sum.Bytes += int64(len(line)) + 1
	return out.line(line)
}

// reject writes a broken copy of a line and says why it will not decode.
func (g *generator) reject(src source, line []byte) error {
	kinds := g.defects[src]
	d := &kinds[g.r.below(int64(len(kinds)))]
	g.broken = d.apply(g.broken[:0], line, &g.r)
	offset := g.out[src].lines
	if err := g.put(&g.out[src], g.broken); err != nil {
		return err
	}
	g.sum.Rejects++
	t := &g.text
	t.b = t.b[:0]
	t.str(`{"source":"`).str(files[src].name).str(`","offset":`).int(offset).str(`,"reason":"`).str(d.reason).str(`"}`)
	return g.rejects.line(t.b)
}

// release lets go of a line; a chain without lines under way is finished.
func (g *generator) release(p parcel) error {
	for i, row := range g.rowsOf(p) {
		if p.rows == nil && i > 0 {
			break // one line, one count
		}
		row.chain.pending--
		if row.chain.pending == 0 && g.live != nil {
			g.free = append(g.free, row.chain)
		} else if row.chain.pending == 0 {
			if err := g.finish(row.chain); err != nil {
				return err
			}
		}
	}
	return nil
}

package paygen

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of live traffic.
const (
	LiveRateMax = 10_000_000 // records a second

	liveHorizon = 5 * minute // of a purchase: what follows later is left out, and so is the memory for it
	livePreroll = 2 * minute // of purchases that have begun when the first record comes, so that the rate is there at once
	liveSample  = 2000       // purchases that are drawn to find how many records one has
)

// LiveConfig says what traffic to make.
type LiveConfig struct {
	Rate  float64   // records a second, in the mean
	Start time.Time // of the first record; 2000 to 2200
	Seed  uint64
	First int64 // number of the first purchase; identifiers come from numbers, so traffic that meets must not share any
}

// Validate reports every problem at once.
func (c LiveConfig) Validate() error {
	var errs []error
	if !(c.Rate > 0 && c.Rate <= LiveRateMax) {
		errs = append(errs, fmt.Errorf("rate is %v records a second; expected more than 0, to %d", c.Rate, LiveRateMax))
	}
	if y := c.Start.UTC().Year(); y < 2000 || y > 2200 {
		errs = append(errs, fmt.Errorf("start is in the year %d; expected 2000 to 2200", y))
	}
	if c.First < 0 || c.First > 1<<58 {
		errs = append(errs, fmt.Errorf("the first purchase has number %d; expected 0 to %d", c.First, int64(1)<<58))
	}
	return errors.Join(errs...)
}

// Live makes the records of purchases in the order of their arrival, without end and at an even rate: broken, repeated and
// senseless ones too, as Generate does. Of a purchase come the records of its first minutes; settlements, refunds and other
// stragglers would keep every purchase in memory for days. It writes no truth.
type Live struct {
	g       *generator
	first   int64 // number of the first purchase
	started int64 // purchases
	origin  int64 // when the first one starts
	every   float64
	begin   int64 // arrival of the first record
	last    int64 // arrival of the last one
	horizon int64 // of the purchase in hand

	lines []LiveRecord
	next  int
	text  []byte // of lines
}

// LiveRecord is one record. Its bytes are valid until the next call.
type LiveRecord struct {
	Source  int   // number in Sources
	Arrival int64 // microseconds since 1970; times within the record are before it
	Game    string
	Text    []byte
	// Order is an order id that the record carries, where its event is one that a session must show: it is whole, and no
	// repetition. Otherwise it is empty.
	Order []byte

	from, to int // of its text
}

// NewLive returns traffic from cfg.Start on.
func NewLive(cfg LiveConfig) (*Live, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	perOrder := newLive(cfg, 1).recordsOf(liveSample)
	l := newLive(cfg, perOrder)
	l.skip()
	return l, nil
}

func newLive(cfg LiveConfig, perOrder float64) *Live {
	perSecond := cfg.Rate / perOrder
	population := min(max(int(perSecond*3600), 1000), OrdersMax)
	l := &Live{
		g:     newGenerator(Config{Orders: population, Seed: cfg.Seed, Start: cfg.Start}),
		first: cfg.First, begin: cfg.Start.UnixMicro(), every: float64(second) / perSecond,
	}
	l.origin, l.last = l.begin-livePreroll, l.begin
	l.g.live = l
	none := func([]byte) error { return nil }
	l.g.rejects.take, l.g.truth.take = none, none
	for i := range l.g.out {
		l.g.out[i].take = func(line []byte) error {
			from := len(l.text)
			l.text = append(l.text, line...)
			l.lines = append(l.lines, LiveRecord{Source: i, from: from, to: len(l.text)})
			return nil
		}
	}
	return l
}

// recordsOf returns the mean number of records of n purchases.
func (l *Live) recordsOf(n int64) float64 {
	for l.started < n {
		l.launch()
	}
	records := 0
	for l.g.queue.len() > 0 {
		l.arrive()
		records += len(l.lines)
	}
	return float64(records) / float64(n)
}

// start returns when the next purchase starts.
func (l *Live) start() int64 { return l.origin + int64(float64(l.started)*l.every) }

func (l *Live) launch() {
	at := l.start()
	l.horizon = at + liveHorizon
	l.g.launch(l.first+l.started, at)
	l.started++
}

// skip passes over the records from before the beginning, without writing them.
func (l *Live) skip() {
	for l.start() < l.begin || l.g.queue.len() > 0 && l.g.queue.least() < l.begin {
		if l.g.queue.len() > 0 && l.g.queue.least() < min(l.start(), l.begin) {
			_ = l.g.release(l.g.queue.pop()) // without files it cannot fail
			continue
		}
		l.launch()
	}
}

// arrive makes the lines of the next parcel: the record, and before it noise or a broken copy.
func (l *Live) arrive() {
	p := l.g.queue.pop()
	l.last = max(l.last, p.arrival) // a coarse clock can put a record before its purchase
	l.lines, l.text, l.next = l.lines[:0], l.text[:0], 0
	_ = l.g.write(p) // as in skip
	var order []byte
	if o := &p.chain.events[p.first]; o.src != client && o.keys[orderKey] > 0 && !p.again && p.fate != breaks {
		from := len(l.text)
		l.g.line.b = l.g.line.b[:0]
		l.text = append(l.text, l.g.line.order(p.chain, o.keys[orderKey]).b...)
		order = l.text[from:]
	}
	for i := range l.lines {
		r := &l.lines[i]
		r.Arrival, r.Game, r.Text = l.last, p.chain.game.id, l.text[r.from:r.to:r.to]
	}
	if n := len(l.lines); n > 0 {
		l.lines[n-1].Order = order // the record itself comes last
	}
	_ = l.g.release(p) // as in skip
}

// Next returns the next record.
func (l *Live) Next() *LiveRecord {
	for l.next == len(l.lines) {
		for l.g.queue.len() == 0 || l.g.queue.least() >= l.start() {
			l.launch()
		}
		l.arrive()
	}
	l.next++
	return &l.lines[l.next-1]
}

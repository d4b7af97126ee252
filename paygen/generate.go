// Package paygen writes a payment environment as it really looks: the records of in-game purchases, scattered over
// eleven systems in eight text formats, late, out of order, repeated, lost and broken, and beside them the truth: which
// records belong together and which business scenarios hold. It also scores an engine's sessions against that truth.
//
// Everything is a function of the Config: the same one gives the same bytes on every machine.
package paygen

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/weftdata/weft/examples"
)

// Names of the files that are not sources.
const (
	TruthFile   = "truth.jsonl"
	RejectsFile = "rejects.jsonl"
	JobFile     = "job.yaml"
	ReadmeFile  = "README.txt"
)

// OrdersMax bounds the chains of one run, so that every identifier has room.
const OrdersMax = 1_000_000_000

// Config says what to write.
type Config struct {
	Orders int           // chains, 1 to OrdersMax
	Seed   uint64        // any
	Start  time.Time     // of the first checkout; 2000 to 2200
	Span   time.Duration // of the checkouts; refunds and the like follow up to a week later. 1 minute to 366 days
}

// Validate reports every problem at once.
func (c Config) Validate() error {
	var errs []error
	if c.Orders < 1 || c.Orders > OrdersMax {
		errs = append(errs, fmt.Errorf("orders is %d; expected 1 to %d", c.Orders, OrdersMax))
	}
	if y := c.Start.UTC().Year(); y < 2000 || y > 2200 {
		errs = append(errs, fmt.Errorf("start is in the year %d; expected 2000 to 2200", y))
	}
	if c.Span < time.Minute || c.Span > 366*24*time.Hour {
		errs = append(errs, fmt.Errorf("span is %s; expected 1m to 8784h", c.Span))
	}
	return errors.Join(errs...)
}

// Summary counts what was written.
type Summary struct {
	Chains, Recognizable int64
	Lines                int64 // of all sources, rejects and noise included
	Events               int64 // that count: folded repetitions are left out
	Folded, Rejects      int64
	Bytes                int64            // of all sources
	Scenarios            map[string]int64 // chains in which each holds
}

// Sources returns the name of every source in the job spec and the name of its file, in order of topic.
func Sources() (list [][2]string) {
	for _, f := range files {
		list = append(list, [2]string{f.name, f.file})
	}
	return list
}

// Create opens a file for writing, by its name within the output folder.
type Create func(name string) (io.WriteCloser, error)

// Generate writes all files. Memory is bounded by what is on its way: the chains whose records are not all written.
func Generate(cfg Config, create Create) (Summary, error) {
	if err := cfg.Validate(); err != nil {
		return Summary{}, err
	}
	g := newGenerator(cfg)
	err := g.open(create)
	if err == nil {
		err = g.run()
	}
	for i := range g.out {
		err = errors.Join(err, g.out[i].close())
	}
	for i, rule := range g.rules {
		g.sum.Scenarios[rule.name] = g.held[i]
	}
	return g.sum, errors.Join(err, g.truth.close(), g.rejects.close())
}

// output is one file. Its first error stays: bufio repeats it.
type output struct {
	name   string
	closer io.Closer
	w      *bufio.Writer
	take   func(line []byte) error // in place of w; the line is valid during the call
	lines  int64
}

func (o *output) open(create Create, name string) error {
	w, err := create(name)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	*o = output{name: name, closer: w, w: bufio.NewWriterSize(w, 64<<10)}
	return nil
}

func (o *output) line(text []byte) error {
	if o.take != nil {
		return o.take(text)
	}
	_, err := o.w.Write(text)
	if err == nil {
		err = o.w.WriteByte('\n')
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", o.name, err)
	}
	return nil
}

func (o *output) close() error {
	if o.closer == nil {
		return nil
	}
	if err := errors.Join(o.w.Flush(), o.closer.Close()); err != nil {
		return fmt.Errorf("write %s: %w", o.name, err)
	}
	return nil
}

// entry names one occurrence.
type entry struct {
	chain *chain
	n     int
}

func (e entry) occurrence() *occurrence { return &e.chain.events[e.n] }

// generator drives a run: chains are planned in order of their start, their lines wait in a queue by arrival.
type generator struct {
	cfg     Config
	market  *market
	plots   []plot
	byPlot  lottery
	rules   []scenario
	defects [sources][]defect
	users   [][2]int64 // per game: number of the first user, number of users

	r       rng
	queue   queue
	free    []*chain
	settled []entry // bills waiting for the next statement that settles several at once
	rows    []entry // of the line in hand
	line    text
	text    text // of truth and rejects
	broken  []byte
	written []occurrence // of the chain in hand
	groups  []int

	out            [sources]output
	truth, rejects output
	held           []int64
	sum            Summary

	live *Live // nil: files and their truth are written
}

func newGenerator(cfg Config) *generator {
	g := &generator{cfg: cfg, market: newMarket(), plots: plots(), rules: scenarios(), defects: defects(), r: rng(mix(cfg.Seed))}
	for _, p := range g.plots {
		g.byPlot.add(p.weight)
	}
	total := g.market.byGame.upTo[len(g.market.games)-1]
	for i, game := range g.market.games {
		players := max(5, int64(cfg.Orders)*game.weight/total/4)
		g.users = append(g.users, [2]int64{int64(i+1) * 300_000_000, players})
	}
	g.held = make([]int64, len(g.rules))
	g.sum.Scenarios = map[string]int64{}
	return g
}

func (g *generator) open(create Create) error {
	for i := range g.out {
		if err := g.out[i].open(create, files[i].file); err != nil {
			return err
		}
	}
	if err := g.truth.open(create, TruthFile); err != nil {
		return err
	}
	if err := g.rejects.open(create, RejectsFile); err != nil {
		return err
	}
	for name, content := range map[string]string{JobFile: examples.Payments(), ReadmeFile: readme(g.cfg)} {
		var o output
		if err := o.open(create, name); err != nil {
			return err
		}
		_, err := o.w.WriteString(content)
		if err = errors.Join(err, o.close()); err != nil {
			return err
		}
	}
	return nil
}

// run plans chain after chain; before each, it writes the lines that arrive earlier.
func (g *generator) run() error {
	starts := newCalendar(g.cfg)
	last := int64(0) // arrival of the last line
	for n := range int64(g.cfg.Orders) {
		at := starts.next(n)
		for g.queue.len() > 0 && g.queue.least() < at {
			if err := g.arrive(g.queue.pop()); err != nil {
				return err
			}
		}
		g.launch(n, at)
	}
	for g.queue.len() > 0 || len(g.settled) > 0 {
		err := error(nil)
		if g.queue.len() > 0 {
			last = g.queue.least()
			err = g.arrive(g.queue.pop())
		} else {
			err = g.settle(last)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// calendar spreads the checkouts over the span with the rhythm of a day.
type calendar struct {
	cfg   Config
	start int64
	hours int64 // started in the span
	total int64 // weight of the span
	hour  int64 // of the last checkout
	upTo  int64 // weight of the hours before it
}

func newCalendar(cfg Config) *calendar {
	c := &calendar{cfg: cfg, start: cfg.Start.UnixMicro()}
	c.hours = (cfg.Span.Microseconds() + hour - 1) / hour
	for h := range c.hours {
		c.total += c.weight(h)
	}
	return c
}

// weight is the traffic of an hour of the span: quiet nights, busy evenings, in UTC for players mostly east of it.
func (c *calendar) weight(h int64) int64 {
	byHour := [24]int64{5, 5, 6, 7, 8, 7, 6, 6, 7, 8, 10, 12, 14, 15, 14, 11, 8, 5, 3, 2, 2, 3, 3, 4}
	length := min(hour, c.cfg.Span.Microseconds()-h*hour)
	return byHour[(c.start/hour+h)%24] * (length / millisecond)
}

// next returns the time of checkout n; n never falls.
func (c *calendar) next(n int64) int64 {
	at := int64(mulDiv(uint64(c.total), uint64(n), uint64(c.cfg.Orders)))
	for at >= c.upTo+c.weight(c.hour) {
		c.upTo += c.weight(c.hour)
		c.hour++
	}
	length := min(hour, c.cfg.Span.Microseconds()-c.hour*hour)
	return c.start + c.hour*hour + int64(mulDiv(uint64(at-c.upTo), uint64(length), uint64(c.weight(c.hour))))
}

func readme(cfg Config) string {
	s := fmt.Sprintf("A payment environment of %d purchases from %s over %s, seed %d.\n\n"+
		"One file a source, one record a line, in order of arrival. %s lists the records that belong together and\n"+
		"the scenarios that hold, %s the lines that cannot be decoded, %s is the job.\n\nReplay it:\n\n  weft replay --spec %s --out results --format jsonl",
		cfg.Orders, cfg.Start.UTC().Format(time.RFC3339), cfg.Span, cfg.Seed, TruthFile, RejectsFile, JobFile, JobFile)
	for _, f := range files {
		s += " \\\n    --input " + f.name + "=" + f.file
	}
	return s + "\n\nThen compare:\n\n  weft gen score --truth " + TruthFile + " --sessions results/sessions.jsonl\n"
}

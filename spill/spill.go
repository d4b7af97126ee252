// Package spill keeps components of a correlate.Core on local disk while memory is short, and puts them back before an event can
// link to them, or before they have to be handed out. docs/formats/spill.md describes the files.
package spill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"syscall"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// ErrMemory says that state does not fit Config.MemoryBytes whatever is spilled.
var ErrMemory = errors.New("the state does not fit its memory")

const dueAtOnce = 1024 // components that are put back before some of them are handed out

// Config says how to spill.
type Config struct {
	Dir         string // for files; they have no name there, so that nothing is left of a process that dies
	MemoryBytes int64  // bound of the core and the indexes; it holds within a half. 0: none
	Prefix      string // begins the names of objects that are saved
	Final       bool   // the core is never flushed: what it hands out is final, and comes from Advance
	Seed        uint64 // of hashes, which all files of a store share; 0: another one each time. Restore sets it
	Log         Log    // nil: none
	// Wait runs f until it succeeds or fails for a reason that does not pass; nil: once.
	Wait func(ctx context.Context, what string, passes func(error) bool, f func() error) error
}

// Log takes warnings.
type Log interface {
	Warn(message string, args ...any)
}

// Status describes what left memory.
type Status struct {
	Files       int
	Components  int64 // on disk and not in memory again; some may have expired
	Events      int64 // in their timelines
	Bytes       int64 // on disk
	MemoryBytes int64 // of the indexes
	Lookups     int64 // key values that were looked up, since the run started; so are all below
	Misled      int64 // reads of an index for nothing, since a filter was wrong
	Loads       int64 // components that went back into memory
	Spills      int64 // components that left it
	Merges      int64
}

// Store holds what left the memory of one core. One goroutine owns it; a merge of files runs beside it, unless results are final:
// then nobody waits for them, and that equal input gives equal bytes is worth more. A nil Store holds nothing and spills nothing.
//
// Files are immutable, so a checkpoint saves each once, and names it for as long as it is part of the state. Which components
// are in memory again is a bit each.
type Store struct {
	cfg    Config
	files  []*file
	made   uint64
	out    builder
	hits   []hit
	blocks blockReader
	page   [pageBytes]byte
	pause  int64 // memory below which it is of no use to try again

	merging  []*mergeInput
	merged   chan mergeResult
	oldest   event.Micros
	unmerged int // files when a merge failed: it is of no use to try again with the same ones

	saving bool    // a checkpoint that is on its way reads files
	graves []*file // files that are part of the state no more, but of that checkpoint

	status Status
}

type hit struct {
	file   *file
	place  int // of file, to sort by
	number uint32
}

// New returns a store that is empty.
func New(cfg Config) *Store {
	if cfg.Wait == nil {
		cfg.Wait = func(_ context.Context, _ string, _ func(error) bool, f func() error) error { return f() }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
	}
	return &Store{cfg: cfg, oldest: event.MinTime}
}

// Close ends a merge that is under way and frees the disk.
func (p *Store) Close() {
	if p == nil {
		return
	}
	if p.merging != nil {
		if r := <-p.merged; r.file != nil {
			p.graves = append(p.graves, r.file)
		}
	}
	for _, f := range slices.Concat(p.files, p.graves) {
		f.f.Close()
	}
	p.files, p.graves = nil, nil
}

// Load puts back what the events of a batch could link to. Call it before Apply.
func (p *Store) Load(core *correlate.Core, b *event.Batch) error {
	if p == nil || len(p.files) == 0 {
		return nil
	}
	needs := core.Needs(b, p.cfg.Seed)
	p.status.Lookups += int64(len(needs))
	for place, f := range p.files { // all needs of one file after another: its filter stays in the cache
		if err := p.search(place, f, needs); err != nil {
			return err
		}
	}
	return p.loadHits(core)
}

func (p *Store) search(place int, f *file, needs []correlate.Need) error {
	for i := range needs {
		n := &needs[i]
		if !f.filter.has(n.Hash) {
			continue
		}
		found, err := f.find(n, &p.page, func(number uint32) { p.hits = append(p.hits, hit{f, place, number}) })
		if err != nil {
			return err
		}
		if !found {
			p.status.Misled++
		}
	}
	return nil
}

// loadHits puts back the components that were found, neighbours together.
func (p *Store) loadHits(core *correlate.Core) error {
	slices.SortFunc(p.hits, func(a, b hit) int { return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.number, b.number)) })
	for _, h := range p.hits {
		if h.file.gone.has(h.number) {
			continue // found by several keys
		}
		b, err := p.blocks.component(h.file, h.number)
		if err != nil {
			return err
		}
		events, err := core.Load(b)
		if err != nil {
			return fmt.Errorf("load spilled state of %s: %w", h.file.f.Name(), err)
		}
		h.file.gone.set(h.number)
		h.file.goneCount++
		h.file.goneEvents += uint64(events)
		p.status.Loads++
	}
	p.hits = p.hits[:0]
	return nil
}

// LoadIDs puts back the components that have handed out sessions, so that Repair finds them.
func (p *Store) LoadIDs(core *correlate.Core, ids []correlate.ID) error {
	if p == nil || len(ids) == 0 {
		return nil
	}
	wanted := make(map[uint64]bool, len(ids))
	for i := range ids {
		wanted[idHash(&ids[i])] = true
	}
	for place, f := range p.files {
		err := f.ids(func(hash uint64, number uint32) {
			if wanted[hash] && !f.gone.has(number) {
				p.hits = append(p.hits, hit{f, place, number})
			}
		})
		if err != nil {
			return err
		}
	}
	return p.loadHits(core)
}

// Advance moves the watermark of a core that hands out what is final, and puts back what is to be handed out before it is: some at
// a time, so that there is room for it.
func (p *Store) Advance(core *correlate.Core, watermark event.Micros, out correlate.Output) error {
	if p == nil {
		core.Advance(watermark, out)
		return nil
	}
	for {
		until := min(watermark, p.nextDue())
		for place, f := range p.files {
			for f.due < len(f.dues) && f.dues[f.due].expiry < until {
				if n := f.dues[f.due].number; !f.gone.has(n) {
					p.hits = append(p.hits, hit{f, place, n})
				}
				f.due++
			}
		}
		if err := p.loadHits(core); err != nil {
			return err
		}
		core.Advance(until, out)
		if until == watermark {
			return nil
		}
	}
}

// nextDue returns the time before which about dueAtOnce components are due.
func (p *Store) nextDue() event.Micros {
	next := event.MaxTime
	for _, f := range p.files {
		if at := f.due + dueAtOnce/len(p.files); at < len(f.dues) {
			next = min(next, f.dues[at].expiry+1)
		}
	}
	return next
}

// Owning tells whether a session of the core's range is open, in memory or on disk.
func (p *Store) Owning(core *correlate.Core) (owning bool, err error) {
	owning = core.Owning()
	if p == nil {
		return owning, nil
	}
	for _, f := range p.files {
		for n := uint32(0); n < f.Components && !owning; n++ {
			if f.gone.has(n) {
				continue
			}
			b, err := p.blocks.component(f, n)
			if err == nil {
				owning, err = core.OwnsSpilled(b)
			}
			if err != nil {
				return false, err
			}
		}
	}
	return owning, nil
}

// memory is what the core and the indexes use.
func (p *Store) memory(core *correlate.Core) int64 {
	n := core.UsedBytes()
	for _, f := range p.files {
		n += f.memory()
	}
	return n
}

// Relieve spills what is needed to keep to the bound, and tidies up. Call it after each Apply. flush hands out what changed: only
// that can be spilled, unless what is handed out is final. It returns ErrMemory where that does not help.
func (p *Store) Relieve(ctx context.Context, core *correlate.Core, flush func()) error {
	if p == nil {
		return nil
	}
	if err := p.tidy(ctx, core.Oldest()); err != nil || p.cfg.MemoryBytes == 0 {
		return err
	}
	bound, used := p.cfg.MemoryBytes, p.memory(core)
	if used <= max(bound, p.pause) {
		return nil
	}
	step := min(bound/32, 16<<20)
	goal := max(used-bound, step)
	freed := core.Spill(p.cfg.Seed, goal, correlate.Which{Unsaid: p.cfg.Final}, p.out.add)
	p.pause = 0
	if freed < goal/2 {
		p.pause = used - freed + step // most is not handed out yet: it is of no use to try again with every batch
	}
	if used-freed > bound+bound/4 {
		p.pause = 0
		if !p.cfg.Final {
			flush()
		}
		core.Spill(p.cfg.Seed, used-freed-bound, correlate.Which{Recent: true, Unsaid: p.cfg.Final}, p.out.add)
	}
	if err := p.writeOut(ctx); err != nil {
		return err
	}
	if used := p.memory(core); used > bound+bound/2 {
		return fmt.Errorf("%w: %d bytes are in use that cannot be spilled, the bound is %d", ErrMemory, used, bound)
	}
	return nil
}

// Spill takes about so many bytes out of memory, whatever the bound.
func (p *Store) Spill(ctx context.Context, core *correlate.Core, goal int64) error {
	core.Spill(p.cfg.Seed, goal, correlate.Which{Recent: true, Unsaid: p.cfg.Final}, p.out.add)
	return p.writeOut(ctx)
}

// writeOut makes a file of what left the core. A disk that is full holds up the input, for a while.
func (p *Store) writeOut(ctx context.Context) error {
	if len(p.out.parts) == 0 {
		return nil
	}
	var f *file
	err := p.cfg.Wait(ctx, "spill to disk", diskFull, func() (err error) {
		f, err = p.out.build(p.cfg.Dir, p.cfg.Seed, p.cfg.Final)
		return err
	})
	if err != nil {
		if diskFull(err) {
			err = fmt.Errorf("%w: free disk below %s, or allow more memory or use more shards", err, p.cfg.Dir)
		}
		return err
	}
	f.key = p.nextKey()
	p.files = append(p.files, f)
	p.status.Spills += int64(len(p.out.parts))
	p.out.reset()
	return nil
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// nextKey names a file among the objects.
func (p *Store) nextKey() string {
	p.made++
	return fmt.Sprintf("%s-%016x", p.cfg.Prefix, p.made)
}

// Status describes what left memory.
func (p *Store) Status() Status {
	if p == nil {
		return Status{}
	}
	s := p.status
	s.Files = len(p.files)
	for _, f := range p.files {
		s.Components += int64(f.live())
		s.Events += max(0, int64(f.Events)-int64(f.goneEvents))
		s.Bytes += f.bytes
		s.MemoryBytes += f.memory()
	}
	return s
}

package spill

import (
	"context"
	"math/bits"
	"slices"
	"time"

	"github.com/weftdata/weft/event"
)

const (
	filesMax   = 48          // where there are more, input waits for a merge
	mergeCount = 4           // of one size: so many become one
	mergeWait  = time.Second // for which it waits, with every batch
)

type mergeResult struct {
	file *file
	err  error
}

// tidy drops files that nobody can need any more, and merges.
func (p *Store) tidy(ctx context.Context, oldest event.Micros) error {
	p.oldest = oldest
	if p.merging != nil {
		select {
		case r := <-p.merged:
			p.endMerge(r)
		default:
			if len(p.files) > filesMax { // files come faster than they can be merged
				select {
				case r := <-p.merged:
					p.endMerge(r)
				case <-time.After(mergeWait): // the shard has to show that it is alive
				case <-ctx.Done():
					return nil
				}
			}
		}
	}
	p.files = slices.DeleteFunc(p.files, func(f *file) bool {
		if f.live() > 0 && f.Late >= int64(oldest) || p.isMerging(f) {
			return false
		}
		p.bury(f)
		return true
	})
	if p.merging == nil && len(p.files) != p.unmerged {
		if files := p.mergeable(); files != nil {
			p.startMerge(files)
		}
	}
	return nil
}

func (p *Store) isMerging(f *file) bool {
	return slices.ContainsFunc(p.merging, func(m *mergeInput) bool { return m.file == f })
}

// bury deletes a file, once no checkpoint reads it.
func (p *Store) bury(f *file) {
	if p.saving {
		p.graves = append(p.graves, f)
		return
	}
	if p.blocks.file == f {
		p.blocks.file = nil
	}
	f.f.Close() // which deletes it: it has no name
}

// mergeable returns files that are to become one: several of about one size, by what is still wanted of them, or one of which
// most is not.
func (p *Store) mergeable() []*file {
	tiers := map[int][]*file{}
	for _, f := range p.files {
		tier := 0
		for n := f.liveBytes() >> 20; n > 0; n /= mergeCount {
			tier++
		}
		tiers[tier] = append(tiers[tier], f)
		if len(tiers[tier]) == mergeCount {
			return tiers[tier]
		}
	}
	for _, f := range p.files {
		if f.live() < f.Components/2 {
			return []*file{f}
		}
	}
	return nil
}

func (p *Store) startMerge(files []*file) {
	for _, f := range files {
		p.merging = append(p.merging, newMergeInput(f))
	}
	if p.cfg.Final {
		f, err := mergeFiles(p.cfg.Dir, p.merging, p.oldest)
		p.endMerge(mergeResult{f, err})
		return
	}
	p.merged = make(chan mergeResult, 1)
	inputs, oldest, done := p.merging, p.oldest, p.merged
	go func() {
		f, err := mergeFiles(p.cfg.Dir, inputs, oldest)
		done <- mergeResult{f, err}
	}()
}

// endMerge puts a merged file in place of those that it was made of. What has gone back into memory meanwhile is gone there
// too.
func (p *Store) endMerge(r mergeResult) {
	inputs := p.merging
	p.merging, p.merged = nil, nil
	if r.err != nil { // what there is stays as good as it was
		p.cfg.Log.Warn("spilled state was not merged", "error", r.err)
		p.unmerged = len(p.files)
		return
	}
	p.status.Merges++
	r.file.key = p.nextKey()
	p.unmerged = 0
	for _, in := range inputs {
		for k, word := range in.file.gone {
			for late := word &^ in.gone[k] & in.live[k]; late != 0; late &= late - 1 {
				r.file.gone.set(in.number(uint32(k*64 + bits.TrailingZeros64(late))))
				r.file.goneCount++
			}
		}
		r.file.goneEvents += in.file.goneEvents - in.events
	}
	p.files = slices.DeleteFunc(p.files, func(f *file) bool {
		for _, in := range inputs {
			if in.file == f {
				p.bury(f)
				return true
			}
		}
		return false
	})
	if r.file.live() == 0 {
		p.bury(r.file)
		return
	}
	p.files = append(p.files, r.file)
}

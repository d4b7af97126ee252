package correlate

import (
	"cmp"
	"slices"

	"github.com/weftdata/weft/event"
)

// wheel lists components by the time after which they may be sealed. A component stands in one bucket; when its bucket
// comes up it is looked at, and put into a later one if it has been extended since.
type wheel struct {
	unit    event.Micros
	buckets []wheelBucket // sorted
}

type wheelBucket struct {
	number int64 // holds components that expire before (number+1)*unit
	head   uint32
}

func compareBucket(b wheelBucket, number int64) int { return cmp.Compare(b.number, number) }

// add puts a component into the bucket of its expiry.
func (w *wheel) add(p *comp, number uint32, expiry event.Micros) {
	n := int64(floor(expiry, w.unit) / w.unit)
	p.inWheel, p.due = true, n
	i, found := slices.BinarySearchFunc(w.buckets, n, compareBucket)
	if found {
		p.wheel = w.buckets[i].head
		w.buckets[i].head = number
		return
	}
	p.wheel = 0
	w.buckets = slices.Insert(w.buckets, i, wheelBucket{n, number})
}

// Advance moves the watermark, which never falls, and hands out and forgets every session that no event which can
// still be accepted could change.
func (c *Core) Advance(watermark event.Micros, out Output) {
	if watermark <= c.watermark {
		return
	}
	c.watermark = watermark
	if watermark == event.MaxTime {
		c.finish(out)
		return
	}
	oldest := watermark - c.retention
	done := 0
	for done < len(c.wheel.buckets) && event.Micros(c.wheel.buckets[done].number+1)*c.wheel.unit <= oldest {
		done++
	}
	due := slices.Clone(c.wheel.buckets[:done])
	c.wheel.buckets = slices.Delete(c.wheel.buckets, 0, done)
	for _, b := range due {
		for i := b.head; i != 0; {
			p := c.comps.at(i)
			next := p.wheel
			p.inWheel = false
			c.expire(i, p, oldest, out)
			i = next
		}
	}
	if done > 0 {
		c.tidyDirty()
	}
	if oldest-c.forgot > max(c.retention/8, c.wheel.unit) || c.forgot == event.MinTime {
		c.forgot = oldest
		c.seen.forget(oldest)
		// A live session starts at most its reach, and one bucket, before the oldest event that can still come.
		c.reports.forget(c, oldest-c.gapMax-c.cfg.Session.MaxSpan-2*c.wheel.unit, out)
		c.forgetSteps()
	}
}

// tidyDirty forgets what has nothing left to hand out.
func (c *Core) tidyDirty() {
	c.dirty = slices.DeleteFunc(c.dirty, func(i uint32) bool {
		p := c.comps.at(i)
		if p.n > 0 {
			return false
		}
		p.inDirty = false
		c.releaseComp(i)
		return true
	})
}

// expire hands out and forgets what is sealed of a component, and puts the rest back into the wheel.
func (c *Core) expire(i uint32, p *comp, oldest event.Micros, out Output) {
	first, expiry := event.MaxTime, event.MinTime
	for k := p.frags; k != 0; {
		f := c.frags.at(k)
		next := f.next
		end := c.expiry(f)
		if p.over && end < oldest {
			if f.dirty {
				c.emit(out, true, k)
			}
			c.forgetFrag(k, f)
		} else {
			first, expiry = min(first, end), max(expiry, end)
		}
		k = next
	}
	switch {
	case p.n == 0:
		c.releaseComp(i)
	case expiry < oldest:
		if p.inDirty {
			c.emit(out, true, c.fragsOf(p)...)
		}
		for p.n > 0 {
			c.forgetFrag(p.frags, c.frags.at(p.frags))
		}
		c.releaseComp(i)
	case p.over:
		c.wheel.add(p, i, first)
	default:
		c.wheel.add(p, i, expiry)
	}
}

// expiry is the last time at which an event could link to a fragment.
func (c *Core) expiry(f *frag) event.Micros {
	t := f.max
	for r := f.runs; r != 0; {
		run := c.keys.runs.at(r)
		t = max(t, run.max+c.cfg.Kinds[run.kind].Gap)
		r = run.fragNext
	}
	return t
}

// fragsOf lists a component's fragments, in memory that the next call reuses.
func (c *Core) fragsOf(p *comp) []uint32 {
	c.list = c.list[:0]
	for k := p.frags; k != 0; k = c.frags.at(k).next {
		c.list = append(c.list, k)
	}
	return c.list
}

// forgetFrag frees a fragment and everything it holds.
func (c *Core) forgetFrag(i uint32, f *frag) {
	for r := f.runs; r != 0; {
		run := c.keys.runs.at(r)
		next := run.fragNext
		if !run.dead {
			c.keys.remove(&c.texts, r)
		}
		c.texts.drop(run.text, int(run.len))
		c.keys.runs.put(r)
		r = next
	}
	if f.fields != 0 {
		fields := c.fieldBlock(f.fields)
		for i := range fields.n {
			c.dropField(fields, i)
		}
		c.fields.put(f.fields)
	}
	for e := f.emitted; e != 0; {
		next := c.emitted.at(e).next
		c.contribs.put(c.emitted.at(e).contrib)
		c.emitted.put(e)
		e = next
	}
	c.stats.OpenEvents -= int64(f.n)
	c.freeFrag(i)
}

// finish hands out everything: no event can come after the end of time. The state is given back whole.
func (c *Core) finish(out Output) {
	c.comps.each(func(_ uint32, p *comp) {
		switch {
		case p.n == 0 || !p.inDirty:
		case !p.over:
			c.emit(out, true, c.fragsOf(p)...)
		default:
			for k := p.frags; k != 0; k = c.frags.at(k).next {
				if c.frags.at(k).dirty {
					c.emit(out, true, k)
				}
			}
		}
	})
	c.seen = newSeen(len(c.cfg.Topics))
	c.keys = keyTable{}
	c.frags, c.comps, c.blocks = pool[frag]{}, pool[comp]{}, blocks{}
	c.fields = strides[uint64]{stride: c.fields.stride}
	c.texts = texts{}
	c.texts.init()
	c.over = map[uint32]*overflow{}
	c.wheel.buckets, c.dirty, c.hand = nil, nil, hand{}
	c.emitted, c.contribs = pool[emitted]{}, strides[int64]{stride: c.contribs.stride}
	c.stats.OpenEvents = 0
}

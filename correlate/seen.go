package correlate

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/weftdata/weft/event"
)

// seen remembers which identities were accepted: a bit for the first event of each record, a small table for the rest.
// Offsets of a partition come nearly in order, so the chunk of the event before is nearly always the right one.
type seen struct {
	chunks map[seenKey]*seenChunk
	last   []seenLast // by source
	// Chunks that changed, or went, since the last snapshot; a chunk's own flag keeps it from being listed twice.
	changed []seenKey
}

type seenKey struct {
	source    uint16
	partition int32
	chunk     int64
}

type seenLast struct {
	key   seenKey
	chunk *seenChunk
}

const seenSpan = 1 << 12 // offsets in a chunk

// seenChunk holds the identities of 4096 offsets. More is a set, open addressing, of offset<<16|index with index > 0.
type seenChunk struct {
	maxTime event.Micros
	changed bool
	first   [seenSpan / 64]uint64
	more    []uint32
	n       int // entries of more
}

func newSeen(sources int) seen {
	return seen{chunks: map[seenKey]*seenChunk{}, last: make([]seenLast, sources)}
}

// chunk returns the chunk of an identity; nil where there is none, unless it is to be made.
func (s *seen) chunk(e *event.Event, make bool) *seenChunk {
	key := seenKey{e.Source, e.Partition, e.Offset >> 12}
	l := &s.last[e.Source]
	if l.chunk == nil || l.key != key {
		c := s.chunks[key]
		if c == nil {
			if !make {
				return nil
			}
			c = &seenChunk{maxTime: event.MinTime}
			s.chunks[key] = c
		}
		*l = seenLast{key, c}
	}
	return l.chunk
}

// has tells whether an identity was accepted.
func (s *seen) has(e *event.Event) bool {
	c := s.chunk(e, false)
	if c == nil {
		return false
	}
	at := uint32(e.Offset) & (seenSpan - 1)
	if e.Index == 0 {
		return c.first[at/64]&(1<<(at%64)) != 0
	}
	return c.find(at<<16|uint32(e.Index)) < 0
}

// add records an identity that has said is new.
func (s *seen) add(e *event.Event) {
	c := s.chunk(e, true)
	c.maxTime = max(c.maxTime, e.Time)
	if !c.changed {
		c.changed = true
		s.changed = append(s.changed, s.last[e.Source].key)
	}
	at := uint32(e.Offset) & (seenSpan - 1)
	if e.Index == 0 {
		c.first[at/64] |= 1 << (at % 64)
		return
	}
	c.insert(at<<16 | uint32(e.Index))
}

func (c *seenChunk) insert(v uint32) {
	if 2*(c.n+1) > len(c.more) {
		old := c.more
		c.more = make([]uint32, max(16, 2*len(old)))
		for _, v := range old {
			if v != 0 {
				c.more[c.find(v)] = v
			}
		}
	}
	c.more[c.find(v)] = v
	c.n++
}

// find returns the free slot for v, or -1 when the set has it. (An empty set has no free slot: see insert.)
func (c *seenChunk) find(v uint32) int {
	if len(c.more) == 0 {
		return 0
	}
	mask := uint32(len(c.more) - 1)
	for i := (v * 0x9e3779b1) >> 8 & mask; ; i = (i + 1) & mask {
		switch c.more[i] {
		case 0:
			return int(i)
		case v:
			return -1
		}
	}
}

// forget drops what is older than any event that can still be accepted.
func (s *seen) forget(before event.Micros) {
	var gone []seenKey
	for key, c := range s.chunks {
		if c.maxTime < before {
			delete(s.chunks, key)
			if !c.changed {
				gone = append(gone, key)
			}
		}
	}
	slices.SortFunc(gone, compareSeen) // the order of a map must not show
	s.changed = append(s.changed, gone...)
	clear(s.last)
}

// keys returns the chunks' keys in a fixed order.
func (s *seen) keys() []seenKey {
	keys := make([]seenKey, 0, len(s.chunks))
	for k := range s.chunks {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareSeen)
	return keys
}

func compareSeen(a, b seenKey) int {
	return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.partition, b.partition), cmp.Compare(a.chunk, b.chunk))
}

// count is the number of identities of a chunk that are the first of their record.
func (c *seenChunk) count() (n int) {
	for _, w := range c.first {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s *seen) bytes() (n int64) {
	for _, c := range s.chunks {
		n += seenSpan/8 + 96 + int64(len(c.more))*4
	}
	return n
}

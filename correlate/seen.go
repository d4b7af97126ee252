package correlate

import (
	"math/bits"

	"github.com/weftdata/weft/event"
)

// seen remembers which identities were accepted: a bit for the first event of each record, a small table for the rest.
// Offsets of a partition come nearly in order, so the chunk of the event before is nearly always the right one.
type seen struct {
	chunks  map[seenKey]*seenChunk
	numbers pool[*seenChunk] // by number, which a chunk has in snapshots
	more    int64            // slots of all chunks' more
	last    []seenLast       // by source
	// Numbers of chunks that changed, or went, since the last snapshot; a chunk's own flag keeps it from being listed twice.
	changed []uint32
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
	key     seenKey
	number  uint32
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
			number, place := s.numbers.get()
			c = &seenChunk{key: key, number: number, maxTime: event.MinTime}
			*place, s.chunks[key] = c, c
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
		s.changed = append(s.changed, c.number)
	}
	at := uint32(e.Offset) & (seenSpan - 1)
	if e.Index == 0 {
		c.first[at/64] |= 1 << (at % 64)
		return
	}
	slots := len(c.more)
	c.insert(at<<16 | uint32(e.Index))
	s.more += int64(len(c.more) - slots)
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
	s.numbers.each(func(i uint32, place **seenChunk) {
		c := *place
		if c == nil || c.maxTime >= before {
			return
		}
		if !c.changed {
			s.changed = append(s.changed, i)
		}
		delete(s.chunks, c.key)
		s.more -= int64(len(c.more))
		*place = nil
		s.numbers.put(i)
	})
	clear(s.last)
}

// count is the number of identities of a chunk that are the first of their record.
func (c *seenChunk) count() (n int) {
	for _, w := range c.first {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s *seen) bytes() int64 {
	return int64(len(s.chunks))*(seenSpan/8+128) + s.more*4 + s.numbers.bytes()
}

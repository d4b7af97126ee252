package correlate

import (
	"bytes"

	"github.com/weftdata/weft/event"
)

// keyRun is a run of events that share a key value and follow each other within its gap, all in one cell (the time
// between two multiples of max_span). Any later event in reach of a run belongs to its fragment.
type keyRun struct {
	hash     uint64
	min, max event.Micros // times of its first and last event
	frag     uint32
	text     uint32 // the value
	next     uint32 // the run of the same value before this one in time
	fragNext uint32 // another run of the fragment
	len      uint16
	kind     uint8
	group    uint8 // values of different key groups never link: another shard may hold the other
	dead     bool  // absorbed by another run of the same fragment
}

const keyParts = 64 // the table grows by parts, so that no one batch pays for a whole rehash

// keyTable finds the newest run of a key value. Open addressing, linear probing; a slot holds the upper half of the
// hash and the number of the run.
type keyTable struct {
	parts [keyParts]keyPart
	runs  pool[keyRun]
}

type keyPart struct {
	slots []uint64
	n     int
}

// keyHash tells apart equal values of different kinds and key groups.
func keyHash(bits uint64, kind uint8, group uint16) uint64 {
	return bits ^ (uint64(kind)<<16|uint64(group)+1)*0x9e3779b97f4a7c15
}

// find returns the newest run of a key value, or 0.
func (t *keyTable) find(tx *texts, h uint64, kind, group uint8, value []byte) uint32 {
	if _, i := t.slot(tx, h, kind, group, value); i >= 0 {
		return uint32(t.parts[h>>58].slots[i])
	}
	return 0
}

func (t *keyTable) slot(tx *texts, h uint64, kind, group uint8, value []byte) (*keyPart, int) {
	p := &t.parts[h>>58]
	if len(p.slots) == 0 {
		return p, -1
	}
	mask := uint64(len(p.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		s := p.slots[i]
		if s == 0 {
			return p, -1
		}
		if s>>32 == h>>32 {
			r := t.runs.at(uint32(s))
			if r.hash == h && r.kind == kind && r.group == group && bytes.Equal(tx.get(r.text, int(r.len)), value) {
				return p, int(i)
			}
		}
	}
}

// add puts a run into the table. head is the newest run of its value, 0 where there is none; runs of one value are
// chained from the newest to the oldest.
func (t *keyTable) add(tx *texts, head, run uint32) {
	r := t.runs.at(run)
	if head == 0 {
		p := &t.parts[r.hash>>58]
		if 4*(p.n+1) > 3*len(p.slots) {
			t.grow(p)
		}
		mask := uint64(len(p.slots) - 1)
		i := r.hash & mask
		for p.slots[i] != 0 {
			i = (i + 1) & mask
		}
		p.slots[i] = r.hash>>32<<32 | uint64(run)
		p.n++
		return
	}
	if h := t.runs.at(head); h.min < r.min {
		p, i := t.slot(tx, r.hash, r.kind, r.group, tx.get(r.text, int(r.len)))
		r.next = head
		p.slots[i] = r.hash>>32<<32 | uint64(run)
		return
	}
	at := t.runs.at(head)
	for at.next != 0 && t.runs.at(at.next).min > r.min {
		at = t.runs.at(at.next)
	}
	r.next, at.next = at.next, run
}

// remove takes a run out of its value's chain, and the value out of the table with its last run.
func (t *keyTable) remove(tx *texts, run uint32) {
	r := t.runs.at(run)
	p, i := t.slot(tx, r.hash, r.kind, r.group, tx.get(r.text, int(r.len)))
	head := uint32(p.slots[i])
	switch {
	case head != run:
		at := t.runs.at(head)
		for at.next != run {
			at = t.runs.at(at.next)
		}
		at.next = r.next
	case r.next != 0:
		p.slots[i] = r.hash>>32<<32 | uint64(r.next)
	default:
		t.clear(p, uint64(i))
	}
	r.next = 0
}

// clear empties a slot and moves back the slots that were displaced by it.
func (t *keyTable) clear(p *keyPart, i uint64) {
	mask := uint64(len(p.slots) - 1)
	for j := i; ; {
		j = (j + 1) & mask
		s := p.slots[j]
		if s == 0 {
			break
		}
		home := t.runs.at(uint32(s)).hash & mask
		if (j-home)&mask >= (j-i)&mask {
			p.slots[i] = s
			i = j
		}
	}
	p.slots[i] = 0
	p.n--
}

func (t *keyTable) grow(p *keyPart) {
	old := p.slots
	p.slots = make([]uint64, max(16, 2*len(old)))
	mask := uint64(len(p.slots) - 1)
	for _, s := range old {
		if s == 0 {
			continue
		}
		i := t.runs.at(uint32(s)).hash & mask
		for p.slots[i] != 0 {
			i = (i + 1) & mask
		}
		p.slots[i] = s
	}
}

func (t *keyTable) used() int64 {
	return t.bytes() - t.runs.bytes() + t.runs.used()
}

func (t *keyTable) bytes() int64 {
	n := t.runs.bytes()
	for i := range t.parts {
		n += int64(len(t.parts[i].slots)) * 8
	}
	return n
}

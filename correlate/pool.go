package correlate

import "unsafe"

// The state lives in pools of fixed chunks without pointers: nothing moves when they grow, the garbage collector has
// nothing to follow, and a 32-bit number names an item. Number 0 names nothing.

const chunkItems = 1 << 10

// pool holds items of one type.
type pool[T any] struct {
	chunks []*[chunkItems]T // nil where a restore found nothing to put
	free   []uint32
	holes  []uint32 // numbers of the nil chunks
	next   uint32   // the least number never used
}

// get returns a zeroed item.
func (p *pool[T]) get() (uint32, *T) {
	if n := len(p.free); n > 0 {
		i := p.free[n-1]
		p.free = p.free[:n-1]
		t := p.at(i)
		var zero T
		*t = zero
		return i, t
	}
	if n := len(p.holes); n > 0 {
		k := p.holes[n-1]
		p.holes = p.holes[:n-1]
		p.chunks[k] = new([chunkItems]T)
		for i := range uint32(chunkItems) {
			p.free = append(p.free, k*chunkItems+i)
		}
		return p.get()
	}
	if p.next == 0 {
		p.next = 1
	}
	if p.next>>10 == uint32(len(p.chunks)) {
		p.chunks = append(p.chunks, new([chunkItems]T))
	}
	i := p.next
	p.next++
	return i, p.at(i)
}

// reserve returns the zeroed item of a number that get has not given away. Once all are reserved, gaps must be called.
func (p *pool[T]) reserve(i uint32) *T {
	k := int(i >> 10)
	for len(p.chunks) <= k {
		p.chunks = append(p.chunks, nil)
	}
	if p.chunks[k] == nil {
		p.chunks[k] = new([chunkItems]T)
	}
	p.next = max(p.next, i+1)
	return p.at(i)
}

// gaps makes the unused items below the greatest reserved one free.
func (p *pool[T]) gaps(unused func(*T) bool) {
	for k, chunk := range p.chunks {
		// Number 0 names nothing, so its chunk cannot be a hole.
		if chunk == nil && k == 0 {
			p.chunks[0] = new([chunkItems]T)
		} else if chunk == nil {
			p.holes = append(p.holes, uint32(k))
		}
	}
	p.each(func(i uint32, t *T) {
		if unused(t) {
			p.free = append(p.free, i)
		}
	})
}

// each calls yield for every item that get or reserve has ever given away, and for those beside them, in order of number.
func (p *pool[T]) each(yield func(i uint32, t *T)) {
	for k, chunk := range p.chunks {
		if chunk == nil {
			continue
		}
		for j := range chunk {
			if i := uint32(k*chunkItems + j); i > 0 && i < p.next {
				yield(i, &chunk[j])
			}
		}
	}
}

func (p *pool[T]) at(i uint32) *T { return &p.chunks[i>>10][i&(chunkItems-1)] }
func (p *pool[T]) put(i uint32)   { p.free = append(p.free, i) }

func (p *pool[T]) bytes() int64 {
	var t T
	return int64(len(p.chunks)-len(p.holes))*chunkItems*int64(unsafe.Sizeof(t)) + int64(cap(p.free))*4
}

// used is the memory of the items in use.
func (p *pool[T]) used() int64 {
	var t T
	return p.live() * int64(unsafe.Sizeof(t))
}

// live is the number of items in use.
func (p *pool[T]) live() int64 {
	return int64(p.next) - int64(min(p.next, 1)) - int64(len(p.free)) - int64(len(p.holes))*chunkItems
}

// strides holds blocks of a fixed number of items.
type strides[T any] struct {
	stride int
	chunks [][]T
	free   []uint32
	next   uint32
}

const strideBlocks = 256

func (p *strides[T]) get() (uint32, []T) {
	if n := len(p.free); n > 0 {
		i := p.free[n-1]
		p.free = p.free[:n-1]
		b := p.at(i)
		clear(b)
		return i, b
	}
	if p.next == 0 {
		p.next = 1
	}
	if int(p.next/strideBlocks) == len(p.chunks) {
		p.chunks = append(p.chunks, make([]T, strideBlocks*p.stride))
	}
	i := p.next
	p.next++
	return i, p.at(i)
}

func (p *strides[T]) at(i uint32) []T {
	k := int(i%strideBlocks) * p.stride
	return p.chunks[i/strideBlocks][k : k+p.stride : k+p.stride]
}

func (p *strides[T]) put(i uint32) { p.free = append(p.free, i) }

func (p *strides[T]) used() int64 {
	var t T
	return (int64(p.next) - int64(len(p.free))) * int64(p.stride) * int64(unsafe.Sizeof(t))
}

func (p *strides[T]) bytes() int64 {
	var t T
	return int64(len(p.chunks))*strideBlocks*int64(p.stride)*int64(unsafe.Sizeof(t)) + int64(cap(p.free))*4
}

// blockCaps are the capacities of timeline blocks, in events. Steps of about 1.4 waste a sixth on average.
var blockCaps = [...]uint16{1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, TimelineEventsMax}

const blockChunk = 1 << 12 // events in a chunk; a block lies within one

// blocks holds timelines: contiguous events in one of the capacities. A block is named by its class and a number,
// which is the chunk and the place within it.
type blocks struct{ classes [len(blockCaps)]blockClass }

type blockClass struct {
	chunks []*[blockChunk]RowEvent
	free   []uint32
	used   uint32 // events used of the last chunk
}

func (p *blocks) get(class uint8) uint32 {
	c := &p.classes[class]
	if n := len(c.free); n > 0 {
		i := c.free[n-1]
		c.free = c.free[:n-1]
		return i
	}
	size := uint32(blockCaps[class])
	if len(c.chunks) == 0 || c.used+size > blockChunk {
		c.chunks = append(c.chunks, new([blockChunk]RowEvent))
		c.used = 0
	}
	i := uint32(len(c.chunks)-1)*blockChunk + c.used
	c.used += size
	return i
}

// at returns the whole block, as long as its capacity.
func (p *blocks) at(class uint8, i uint32) []RowEvent {
	k, size := i%blockChunk, uint32(blockCaps[class])
	return p.classes[class].chunks[i/blockChunk][k : k+size : k+size]
}

func (p *blocks) put(class uint8, i uint32) {
	c := &p.classes[class]
	c.free = append(c.free, i)
}

func (p *blocks) used() (n int64) {
	for i := range p.classes {
		c := &p.classes[i]
		if len(c.chunks) > 0 {
			n += int64(len(c.chunks)-1)*blockChunk + int64(c.used) - int64(len(c.free))*int64(blockCaps[i])
		}
	}
	return n * int64(unsafe.Sizeof(RowEvent{}))
}

func (p *blocks) bytes() (n int64) {
	for i := range p.classes {
		n += int64(len(p.classes[i].chunks))*int64(unsafe.Sizeof([blockChunk]RowEvent{})) + int64(cap(p.classes[i].free))*4
	}
	return n
}

// textCaps are the sizes in which key and field values are stored.
var textCaps = [...]uint16{8, 16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096}

const textChunk = 64 << 10

// texts stores short byte strings. A string is named by a number (its chunk and its place in units of 8 bytes), its
// length is kept by who holds the number.
type texts struct {
	chunks  [][]byte
	classes [len(textCaps)]textClass
	byUnits [4096/8 + 1]uint8 // class by size in units of 8 bytes, rounded up
}

type textClass struct {
	free       []uint32
	at, remain uint32 // the rest of the class's last chunk: place, and number of strings left
}

func (p *texts) init() {
	class := uint8(0)
	for u := range p.byUnits {
		if 8*u > int(textCaps[class]) {
			class++
		}
		p.byUnits[u] = class
	}
}

func (p *texts) add(s []byte) uint32 {
	if len(s) == 0 {
		return 0
	}
	class := p.byUnits[(len(s)+7)/8]
	c := &p.classes[class]
	var i uint32
	if n := len(c.free); n > 0 {
		i = c.free[n-1]
		c.free = c.free[:n-1]
	} else {
		size := uint32(textCaps[class])
		if c.remain == 0 {
			c.at = uint32(len(p.chunks)) * (textChunk / 8)
			p.chunks = append(p.chunks, make([]byte, textChunk))
			c.remain = textChunk / size
		}
		i = c.at
		c.at += size / 8
		c.remain--
	}
	copy(p.chunks[i/(textChunk/8)][i%(textChunk/8)*8:], s)
	return i
}

func (p *texts) get(i uint32, n int) []byte {
	if n == 0 {
		return nil
	}
	k := int(i%(textChunk/8)) * 8
	return p.chunks[i/(textChunk/8)][k : k+n : k+n]
}

func (p *texts) drop(i uint32, n int) {
	if n > 0 {
		c := &p.classes[p.byUnits[(n+7)/8]]
		c.free = append(c.free, i)
	}
}

func (p *texts) used() int64 {
	n := int64(len(p.chunks)) * textChunk
	for i := range p.classes {
		c := &p.classes[i]
		n -= (int64(len(c.free)) + int64(c.remain)) * int64(textCaps[i])
	}
	return n
}

func (p *texts) bytes() int64 {
	n := int64(len(p.chunks)) * textChunk
	for i := range p.classes {
		n += int64(cap(p.classes[i].free)) * 4
	}
	return n
}

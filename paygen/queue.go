package paygen

// parcel is a line on its way to its file: occurrences first to first+n-1 of a chain, or the rows of several chains.
type parcel struct {
	arrival int64
	number  uint64 // orders parcels of one arrival
	chain   *chain
	rows    []entry // in place of chain
	first   uint16
	n       uint16
	again   bool // repeats a line that was written
	fate    fate
}

// fate is what happens to a line on its way.
type fate uint8

const (
	arrives fate = iota
	tears        // a broken copy comes first
	breaks       // only a broken copy comes
)

// queue is a heap of parcels by arrival, then number.
type queue struct {
	heap []parcel
	sent uint64
}

func (q *queue) len() int { return len(q.heap) }

// least returns the earliest arrival of a queue that is not empty.
func (q *queue) least() int64 { return q.heap[0].arrival }

func (p *parcel) before(q *parcel) bool {
	return p.arrival < q.arrival || p.arrival == q.arrival && p.number < q.number
}

func (q *queue) push(p parcel) {
	q.sent++
	p.number = q.sent
	q.heap = append(q.heap, p)
	i := len(q.heap) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !p.before(&q.heap[up]) {
			break
		}
		q.heap[i] = q.heap[up]
		i = up
	}
	q.heap[i] = p
}

func (q *queue) pop() parcel {
	top := q.heap[0]
	last := len(q.heap) - 1
	p := q.heap[last]
	q.heap[last] = parcel{}
	q.heap = q.heap[:last]
	if last == 0 {
		return top
	}
	i := 0
	for {
		first := 4*i + 1
		if first >= last {
			break
		}
		down := first
		for k := first + 1; k < min(first+4, last); k++ {
			if q.heap[k].before(&q.heap[down]) {
				down = k
			}
		}
		if !q.heap[down].before(&p) {
			break
		}
		q.heap[i] = q.heap[down]
		i = down
	}
	q.heap[i] = p
	return top
}

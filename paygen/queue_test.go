package paygen

import "testing"

func TestQueueIsInOrder(t *testing.T) {
	var q queue
	r := rng(3)
	last := parcel{}
	for range 20_000 {
		if q.len() > 0 && r.chance(4800) {
			p := q.pop()
			if p.before(&last) {
				t.Fatalf("%d/%d comes after %d/%d", p.arrival, p.number, last.arrival, last.number)
			}
			last = p
			continue
		}
		q.push(parcel{arrival: last.arrival + r.below(1000)})
	}
	for n := q.len(); n > 0; n-- {
		p := q.pop()
		if p.before(&last) || q.len() != n-1 {
			t.Fatalf("%d/%d comes after %d/%d, %d left", p.arrival, p.number, last.arrival, last.number, q.len())
		}
		last = p
	}
}

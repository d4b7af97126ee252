package paygen

import "math/bits"

// rng is a small seeded generator (splitmix64). It uses integers only, so that every machine draws the same numbers.
type rng uint64

func (r *rng) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	return mix(uint64(*r))
}

// below returns a number from 0 to n-1.
func (r *rng) below(n int64) int64 {
	hi, _ := bits.Mul64(r.next(), uint64(n))
	return int64(hi)
}

// between returns a number from lo to hi-1.
func (r *rng) between(lo, hi int64) int64 { return lo + r.below(hi-lo) }

// chance is true n times in 10,000.
func (r *rng) chance(n int64) bool { return r.below(10_000) < n }

// delay returns a latency around typical with a long tail: every doubling is half as likely, ten at most.
func (r *rng) delay(typical int64) int64 {
	return r.below(typical) << bits.TrailingZeros64(r.next()|1<<10)
}

// mix spreads the bits of x; it maps distinct numbers to distinct numbers, which keeps identifiers unique.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

package backfill

import (
	"math/rand/v2"
	"testing"

	"github.com/weftdata/weft/event"
)

// rounds gives seeds for tests of random worlds; one more is drawn in every run.
func rounds(n int) []uint64 {
	if *long {
		n *= 20
	}
	list := []uint64{rand.Uint64()}
	for i := range n {
		list = append(list, uint64(i+1))
	}
	return list
}

// TestSlicesAreAReplay computes random worlds with chunks and slices at random places: together they give what linking
// everything at once gives.
func TestSlicesAreAReplay(t *testing.T) {
	var slices, chunks int
	for _, seed := range rounds(14) {
		w := newWorld(t, seed)
		want := compute(t, w.new, w.records)
		var cuts []event.Micros
		for range w.r.IntN(5) {
			cuts = append(cuts, second(w.r.Int64N(w.span)))
		}
		p, err := w.plan(func(in *PlanInput) {
			in.From, in.To = second(-100), second(w.span+100)
			in.Slice = event.Micros(1+w.r.IntN(90)) * 1_000_000
		}, cuts...)
		if err == nil {
			err = w.runAll(p, nil)
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got, err := Total(t.Context(), w.objects, p.Ref, w.new, TimeRange{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		digest, _ := digestOf(want.digest)
		if got.Digest != digest || got.Sessions != int64(len(want.rows)) {
			t.Errorf("seed %d: %d sessions, want %d; %s\n%+v", seed, got.Sessions, len(want.rows), p, p.Chunks)
		}
		if b := decodeRecords(t, w.new, w.records); got.Rejects["syntax"] != int64(len(b.Rejects)) {
			t.Errorf("seed %d: rejects %v, want %d", seed, got.Rejects, len(b.Rejects))
		}
		slices += p.Totals.Slices
		chunks += len(p.Chunks)
	}
	if slices < 200 || chunks < 30 {
		t.Errorf("%d slices of %d chunks prove little", slices, chunks)
	}
}

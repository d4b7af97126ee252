package correlate

import (
	"testing"

	"github.com/weftdata/weft/event"
)

func TestWatermark(t *testing.T) {
	const none = event.MinTime
	w := NewWatermark(WatermarkConfig{Delay: 10, MaxAhead: 100}, 3)
	expect := func(what string, want event.Micros) {
		t.Helper()
		if got := w.Value(); got != want {
			t.Fatalf("%s: watermark %d, want %d", what, got, want)
		}
	}
	expect("at the start", none)
	w.Observe(0, 1000, none)
	w.Observe(1, 900, none)
	expect("a partition that was never seen holds it", none)
	w.Idle(2)
	expect("one that is empty does not", 890)
	w.Observe(1, 1100, none)
	expect("the least active partition", 990)
	w.Observe(1, 99_000_000, 1150)
	expect("partition 0 is behind", 990)
	w.Idle(0)
	expect("a record from 2099 advances it only to its broker time and max_ahead", 1240)
	w.Idle(1)
	expect("all idle: it holds", 1240)
	w.Observe(0, 1050, none)
	expect("it never falls", 1240)
	w.Observe(0, 1300, none)
	expect("partition 1 is still idle", 1290)

	value, parts := w.State()
	again := NewWatermark(WatermarkConfig{Delay: 10, MaxAhead: 100}, 3)
	if err := again.SetState(value, parts); err != nil {
		t.Fatal(err)
	}
	w.Observe(2, 1295, none)
	again.Observe(2, 1295, none)
	w.Observe(0, 1400, none)
	again.Observe(0, 1400, none)
	if a, b := w.Value(), again.Value(); a != b {
		t.Errorf("after a restore the watermark is %d, without %d", b, a)
	}
	if err := again.SetState(value, parts[:2]); err == nil {
		t.Error("a state of two partitions was restored onto three")
	}
}

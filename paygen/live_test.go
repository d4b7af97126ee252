package paygen

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func live(t *testing.T, cfg LiveConfig) *Live {
	t.Helper()
	l, err := NewLive(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLiveIsEvenAndInOrder(t *testing.T) {
	begin := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	l := live(t, LiveConfig{Rate: 2000, Start: begin, Seed: 3, First: 1 << 40})
	last, orders := begin.UnixMicro(), 0
	bySecond, bySource := map[int64]int{}, map[int]int{}
	for range 60_000 { // about half a minute
		r := l.Next()
		if r.Arrival < last || len(r.Text) == 0 || bytes.ContainsRune(r.Text, '\n') || r.Game == "" {
			t.Fatalf("at %d after %d: %s", r.Arrival, last, r.Text)
		}
		last = r.Arrival
		bySecond[(last-begin.UnixMicro())/second]++
		bySource[r.Source]++
		if len(r.Order) > 0 {
			orders++
			if !bytes.Contains(r.Text, r.Order) || !strings.HasPrefix(string(r.Order), "2605") && !strings.HasPrefix(string(r.Order), "2604") {
				t.Fatalf("order %s is not in %s", r.Order, r.Text)
			}
		}
	}
	if took := last - begin.UnixMicro(); took < 27*second || took > 33*second {
		t.Errorf("60,000 records take %d µs, not about 30 s", took)
	}
	for s := int64(0); s < (last-begin.UnixMicro())/second; s++ {
		if n := bySecond[s]; math.Abs(float64(n)-2000) > 350 {
			t.Errorf("second %d has %d records, not about 2000", s, n)
		}
	}
	if len(bySource) != len(Sources()) || orders < 20_000 {
		t.Errorf("records by source: %v; %d with an order", bySource, orders)
	}
}

func TestLiveTimesAreThoseOfNow(t *testing.T) {
	begin := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	l := live(t, LiveConfig{Rate: 500, Start: begin, Seed: 1})
	number := slices.IndexFunc(Sources(), func(s [2]string) bool { return s[0] == "billing" })
	seen := 0
	for range 5000 {
		r := l.Next()
		text, found := strings.CutPrefix(string(r.Text), "ts=")
		if r.Source != number || !found || len(r.Order) == 0 {
			continue
		}
		at, err := time.Parse(time.RFC3339, text[:strings.IndexByte(text, ' ')])
		if err != nil {
			t.Fatal(err)
		}
		seen++
		if age := time.UnixMicro(r.Arrival).Sub(at); age < 0 || age > time.Duration(liveHorizon)*time.Microsecond {
			t.Errorf("a record is %v old when it arrives", age)
		}
	}
	if seen < 100 {
		t.Errorf("only %d records of billing", seen)
	}
}

// Memory stays bounded: what a purchase brings days later is not kept.
func TestLiveForgets(t *testing.T) {
	l := live(t, LiveConfig{Rate: 1000, Start: time.Unix(1_800_000_000, 0), Seed: 1})
	for range 300_000 {
		l.Next()
	}
	waiting := l.g.queue.len()
	for range 600_000 {
		l.Next()
	}
	if n := l.g.queue.len(); n > waiting*5/4 || n > 100_000 {
		t.Errorf("%d lines wait after 5 minutes, %d after 15", waiting, n)
	}
	if len(l.g.settled) > 0 {
		t.Errorf("%d bills wait for their settlement", len(l.g.settled))
	}
}

func TestLiveNumbersDoNotMeet(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	a, b := live(t, LiveConfig{Rate: 1000, Start: begin, Seed: 1}), live(t, LiveConfig{Rate: 1000, Start: begin, Seed: 1, First: 1_000_000})
	seen := map[string]bool{}
	for range 20_000 {
		if r := a.Next(); len(r.Order) > 0 {
			seen[string(r.Order)] = true
		}
	}
	for range 20_000 {
		if r := b.Next(); seen[string(r.Order)] {
			t.Fatalf("order %s is in both", r.Order)
		}
	}
}

func TestLiveRefuses(t *testing.T) {
	good := LiveConfig{Rate: 1, Start: time.Unix(1_800_000_000, 0)}
	for name, change := range map[string]func(*LiveConfig){
		"no rate":    func(c *LiveConfig) { c.Rate = 0 },
		"a NaN rate": func(c *LiveConfig) { c.Rate = math.NaN() },
		"wild rate":  func(c *LiveConfig) { c.Rate = 1e9 },
		"no start":   func(c *LiveConfig) { c.Start = time.Time{} },
		"negative":   func(c *LiveConfig) { c.First = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := NewLive(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/examples"
)

func TestLoadRefuses(t *testing.T) {
	file := func(name, old, by string) string {
		text := strings.ReplaceAll(examples.Payments(), old, by)
		if text == examples.Payments() {
			t.Fatalf("the example has no %q", old)
		}
		name = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"flags", []string{"--rate", "fast", "--for", "0s", "--samples", "0", "--max-lag", "0s", "--partitions", "0", "--settle", "-1s", "--wait", "-1s", "--version", "-1"},
			[]string{`--rate "fast"`, "--for 0s", "--samples 0", "--max-lag 0s", "--partitions 0", "--settle -1s", "--wait -1s", "--version -1"}},
		{"other sources", []string{"--spec", file("a.yaml", "  risk:\n    topic", "  riskier:\n    topic")}, []string{`no source "risk"`}},
		{"other shards", []string{"--spec", file("b.yaml", "game", "title")}, []string{"shard_by: title"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := weft("", append([]string{"load"}, c.args...)...)
			if code != exitUsage || stdout != "" {
				t.Errorf("exit code %d, %s", code, stdout)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("no %q in %s", want, stderr)
				}
			}
		})
	}
}

func TestQuantiles(t *testing.T) {
	if q := quantilesOf(nil); q != (quantiles{}) {
		t.Errorf("of nothing: %+v", q)
	}
	var list []time.Duration
	for i := range 1000 {
		list = append(list, time.Duration(999-i)*time.Millisecond)
	}
	if q := quantilesOf(list); q != (quantiles{0.5, 0.9, 0.99, 0.999}) {
		t.Errorf("of 0 to 999 ms: %+v", q)
	}
	if q := quantilesOf([]time.Duration{time.Second}); q != (quantiles{1, 1, 1, 1}) {
		t.Errorf("of one: %+v", q)
	}
}

func TestProbeKnowsTheOldest(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	p := &probe{}
	p.expect(at(0))
	p.expect(at(10))
	if lag := p.lag(at(30)); lag != 30*time.Millisecond {
		t.Errorf("two wait: lag %v", lag)
	}
	p.done(&sample{sent: at(0), acked: at(5)}, at(40))
	if lag := p.lag(at(41)); lag != 31*time.Millisecond {
		t.Errorf("the second waits: lag %v", lag)
	}
	var s loadStep
	p.fill(&s)
	if s.Samples != 2 || s.Missing != 1 || s.LagMax != 0.04 || s.Ack.Max != 0.005 || s.Queryable.Max != 0.035 || s.EndToEnd.Max != 0.04 {
		t.Errorf("got %+v", s)
	}
	if err := (&loaded{Steps: []loadStep{s}}).verdict(); err == nil || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("one is missing: %v", err)
	}
	if err := (&loaded{Steps: []loadStep{{}}}).verdict(); err == nil {
		t.Error("nothing was watched, and that is right")
	}
	p.reset()
	if p.lag(at(50)) != 0 || !slices.Equal(p.ends, nil) {
		t.Error("a reset keeps samples")
	}
}

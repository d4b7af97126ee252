package jobspec

import (
	"strings"
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for _, c := range []struct {
		text string
		want time.Duration
		back string // what FormatDuration makes of it
	}{
		{"0s", 0, "0s"},
		{"30m", 30 * time.Minute, "30m"},
		{"90m", 90 * time.Minute, "1h30m"},
		{"168h", 168 * time.Hour, "7d"},
		{"1w", 7 * day, "7d"},
		{"1.5d", 36 * time.Hour, "1d12h"},
		{"1d30s", day + 30*time.Second, "1d30s"},
		{"1h0m5s", time.Hour + 5*time.Second, "1h0m5s"},
		{"250ms", 250 * time.Millisecond, "250ms"},
		{"7us", 7 * time.Microsecond, "7µs"},
		{"3650d", durationMax, "3650d"},
	} {
		got, err := ParseDuration(c.text)
		if err != nil || got != c.want {
			t.Errorf("%s is %v, %v; want %v", c.text, got, err, c.want)
		}
		if back := FormatDuration(got); back != c.back {
			t.Errorf("%s is written as %s, want %s", c.text, back, c.back)
		}
		if again, err := ParseDuration(c.back); err != nil || again != c.want {
			t.Errorf("%s reads back as %v, %v; want %v", c.back, again, err, c.want)
		}
	}
	for _, text := range []string{"", "0", "5", "-1h", "1 h", "h", "1.h", "1.2.3s", "1y", "5ns", "1.5us", "3651d", "3650d1us",
		strings.Repeat("999999999w", 50)} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q is %v, want an error", text, got)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{"1B": 1, "1KiB": 1 << 10, "1.5GiB": 3 << 29, "2TiB": 2 << 40, "1024TiB": 1 << 50} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", text, got, err, want)
		}
		if again, err := ParseSize(FormatSize(got)); err != nil || again != got {
			t.Errorf("%s is written as %s", text, FormatSize(got))
		}
	}
	for _, text := range []string{"", "1", "1GB", "GiB", "-1GiB", "1 GiB", "1025TiB", "999999999TiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is %d, want an error", text, got)
		}
	}
}

func TestNearest(t *testing.T) {
	valid := []string{"amount", "channel", "game", "user"}
	for text, want := range map[string]string{
		"amuont": "amount", "Amount": "amount", "chanel": "channel", "usr": "user", "gmae": "game", "colour": "", "": "",
		strings.Repeat("amount", 20): "",
	} {
		if got := Nearest(text, valid); got != want {
			t.Errorf("nearest to %q is %q, want %q", text, got, want)
		}
	}
}

func TestExcerpt(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, c := range []struct {
		name, text string
		at         Pos
		want       string
	}{
		{"middle", "a: 1\nb: 2\n", Pos{2, 4}, "b: 2\n   ^"},
		{"tab", "\tb: 2", Pos{1, 5}, "\tb: 2\n\t   ^"},
		{"wide letters", "支付: 2", Pos{1, 5}, "支付: 2\n      ^"},
		{"past the end", "ab", Pos{1, 9}, "ab\n  ^"},
		{"carriage return", "a\r\nb\r\n", Pos{2, 1}, "b\n^"},
		{"long line", long, Pos{1, 200}, strings.Repeat("x", 120) + "\n" + strings.Repeat(" ", 79) + "^"},
		{"end of a long line", long, Pos{1, 300}, strings.Repeat("x", 80) + "\n" + strings.Repeat(" ", 79) + "^"},
		{"no such line", "a", Pos{2, 1}, ""},
		{"unknown place", "a", Pos{}, ""},
	} {
		if got := Excerpt([]byte(c.text), c.at); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestExplainWarnsOfImpossibleSteps(t *testing.T) {
	spec, err := Parse([]byte(`
version: weft/v1
job: a
sources: {s: {format: canal, time: t, step: {value: paid}, keys: {order: id}}}
session: {gap: 1h}
scenarios:
  - {name: fine, when: 'step("paid").count > 0'}
  - {name: never, when: "step('refunded').count > 0 && step('refunded').first > 0"}
`))
	if err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(Explain(spec), "WARNINGS\n")
	if want := "  ! scenario never asks for step \"refunded\", which no source can have\n"; got != want {
		t.Errorf("got warnings\n%s\nwant\n%s", got, want)
	}
}

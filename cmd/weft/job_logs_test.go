package main

import (
	"strings"
	"testing"

	"github.com/weftdata/weft/agent"
)

func TestLogLines(t *testing.T) {
	segment := agent.Segment{Version: 3, Process: 1}
	for text, want := range map[string][2]string{ // for a person, as JSON
		`{"time":"2026-11-26T23:22:44.0260001Z","level":"WARN","msg":"slow","job":"payments","watermark":-9223372036854775808,"why":"a b"}`: {
			`2026-11-26 23:22:44.026Z  WARN  slow  job=payments watermark=-9223372036854775808 why="a b"`,
			`{"job":"payments","level":"WARN","msg":"slow","process":1,"time":"2026-11-26T23:22:44.0260001Z","version":3,"watermark":-9223372036854775808,"why":"a b"}`},
		"panic: boom": {"panic: boom", `{"output":"panic: boom","process":1,"version":3}`},
		`{"msg":`:     {`{"msg":`, `{"output":"{\"msg\":","process":1,"version":3}`},
		"":            {"", `{"output":"","process":1,"version":3}`},
	} {
		l := logLine{segment, []byte(text)}
		var b strings.Builder
		if err := l.json(&b); err != nil {
			t.Fatal(err)
		}
		if got := [2]string{l.words(), strings.TrimSpace(b.String())}; got != want {
			t.Errorf("%q is shown as\n%q\nwant\n%q", text, got, want)
		}
	}
}

package jobspec

import (
	"regexp"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// lineBreak is what YAML counts as the end of a line.
var lineBreak = regexp.MustCompile("\r\n|[\n\r\u0085\u2028\u2029]")

func splitLines(text []byte) []string { return lineBreak.Split(string(text), -1) }

// Excerpt returns the line of a spec at a place, and below it a caret under the column. It is empty where the text has
// no such line.
func Excerpt(text []byte, at Pos) string {
	lines := splitLines(text)
	if at.Line < 1 || at.Line > len(lines) {
		return ""
	}
	line := []rune(strings.TrimRight(lines[at.Line-1], " \t"))
	column := min(max(at.Column, 1), len(line)+1)
	const before, after = 80, 40 // a spec may be one long line of JSON
	from, to := 0, len(line)
	if to > before+after {
		from, to = max(0, column-before), min(to, column+after)
	}
	var caret strings.Builder
	for _, r := range line[from:max(from, column-1)] {
		switch {
		case r == '\t':
			caret.WriteByte('\t')
		case unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul):
			caret.WriteString("  ") // twice as wide as a Latin letter
		default:
			caret.WriteByte(' ')
		}
	}
	return string(line[from:to]) + "\n" + caret.String() + "^"
}

// scalarPlace returns the place of the first character of a scalar's text that is not white space: YAML gives the place
// of what stands before it (an anchor, a tag, a quote, the sign of a block).
func scalarPlace(lines []string, n *yaml.Node) Pos {
	at := Pos{n.Line, n.Column}
	rest := func() []rune {
		if at.Line < 1 || at.Line > len(lines) {
			return nil
		}
		line := []rune(lines[at.Line-1])
		return line[min(max(at.Column-1, 0), len(line)):]
	}
	skipSpace := func() {
		for at.Line <= len(lines) {
			line := rest()
			for i, r := range line {
				if r != ' ' && r != '\t' {
					at.Column += i
					return
				}
			}
			at = Pos{at.Line + 1, 1}
		}
	}
	for line := rest(); len(line) > 0 && (line[0] == '&' || line[0] == '!'); line = rest() {
		for len(line) > 0 && line[0] != ' ' && line[0] != '\t' {
			line = line[1:]
			at.Column++
		}
		skipSpace()
	}
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		at = Pos{at.Line + 1, 1}
	case n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		at.Column++
	}
	skipSpace()
	if at.Line > len(lines) {
		return Pos{n.Line, n.Column}
	}
	return at
}

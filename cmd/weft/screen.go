package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// screen gathers what a person reads. Whatever comes from records goes through safe before it gets here.
type screen struct {
	strings.Builder
	width  int // cells of a line; 0: not bounded
	height int // lines of a terminal; 0: it is none
	color  bool
}

// style is how a terminal shows a text; see paint.
type style string

const (
	plain style = ""
	bold  style = "1"
	faint style = "2"
	red   style = "31"
	green style = "32"
	amber style = "33"
)

const (
	// cellWidthMax bounds one value where lines are not bounded.
	cellWidthMax = 120
	// markMax is how many combining marks one character may carry: more would cover the lines around it.
	markMax = 2
)

// newScreen returns a screen as wide as the terminal behind w. Elsewhere $COLUMNS bounds it, if that is set. Colours are
// for terminals, unless NO_COLOR is set.
func newScreen(w io.Writer) *screen {
	s := &screen{}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		s.width = n
	}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return s
	}
	s.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		s.width, s.height = width, max(height, 2)
	}
	return s
}

// paint puts a style around a text that is safe.
func (s *screen) paint(how style, text string) string {
	if !s.color || how == plain || text == "" {
		return text
	}
	return "\x1b[" + string(how) + "m" + text + "\x1b[0m"
}

// printf appends to the screen; its arguments must be safe.
func (s *screen) printf(format string, args ...any) { fmt.Fprintf(s, format, args...) }

// room is what is left of a line behind so many cells.
func (s *screen) room(used int) int {
	if s.width == 0 {
		return cellWidthMax
	}
	return max(s.width-used, 8)
}

// safe makes any text one line that does nothing to a terminal, of at most so many cells: what is no printable character is
// written as an escape, and what is cut off ends in "…".
func safe[T string | []byte](text T, most int) string {
	var b strings.Builder
	cells, marks := 0, 0
	at := 0 // end of the longest part that leaves room for the dots
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(string(text[i:min(len(text), i+utf8.UTFMax)]))
		shown := string(text[i : i+n])
		w := runeWidth(r)
		if w == 0 {
			marks++
		} else {
			marks = 0
		}
		if r == utf8.RuneError && n == 1 || !strconv.IsPrint(r) || marks > markMax {
			shown = escape(r, text[i])
			w = len(shown)
		}
		if cells+w > most {
			return b.String()[:at] + "…"
		}
		b.WriteString(shown)
		cells += w
		i += n
		if cells <= most-1 {
			at = b.Len()
		}
	}
	return b.String()
}

// folded makes any text lines that do nothing to a terminal, broken at spaces, with so many cells used before each. What is beyond
// so many cells in all is cut off. Where lines are not bounded it is one.
func (s *screen) folded(text string, used, most int) (lines []string) {
	text = safe(text, most)
	if s.width == 0 {
		return []string{text}
	}
	room, line := s.room(used), ""
	for _, word := range strings.Split(text, " ") {
		if line != "" && textWidth(line)+1+textWidth(word) <= room {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		for line = ""; textWidth(word) > room; {
			n := 0
			for i, r := range word {
				if n += runeWidth(r); n > room {
					lines, word = append(lines, word[:i]), word[i:]
					break
				}
			}
		}
		line = word
	}
	return append(lines, line)
}

// escape writes what is not printed as Go would in a string.
func escape(r rune, first byte) string {
	if r == utf8.RuneError {
		return fmt.Sprintf(`\x%02x`, first)
	}
	q := strconv.QuoteRuneToASCII(r)
	return q[1 : len(q)-1]
}

// safeJSON escapes what a terminal could take for a command, or for a change of direction. JSON has such characters in
// strings alone.
func safeJSON(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		switch {
		case r >= ' ' && r < 0x7f, strconv.IsPrint(r) && r != utf8.RuneError:
			out = append(out, text[i:i+n]...)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += n
	}
	return out
}

// runeWidth is how many cells of a terminal a printable character takes.
func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0x303e, r >= 0x3041 && r <= 0x4dbf, r >= 0x4e00 && r <= 0xa4cf,
		r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
		r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

func textWidth(text string) (n int) {
	for _, r := range text {
		n += runeWidth(r)
	}
	return n
}

// pad fills a text to a width, on its left for numbers.
func pad(text string, width int, right bool) string {
	space := strings.Repeat(" ", max(0, width-textWidth(text)))
	if right {
		return space + text
	}
	return text + space
}

// column is one of a table. Where lines are too short, columns with a least width shrink to it; then those with the highest
// drop go, down to those without; then what can shrink does so further.
type column struct {
	name  string
	right bool
	least int // 0: does not shrink
	drop  int // 0: stays
}

type cell struct {
	text string
	how  style
}

// table is rows of cells under columns. Every row has a cell for each column.
type table struct {
	columns []column
	rows    [][]cell
	under   []cell // by row: a line of its own below it, where its text is not empty
}

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

const (
	columnGap = 2
	shrunkMin = 6 // of a column that shrinks for want of others to go
)

// draw fits the table to the screen.
func (t *table) draw(s *screen, indent int) {
	widths := make([]int, len(t.columns))
	for i, c := range t.columns {
		widths[i] = textWidth(c.name)
		for _, row := range t.rows {
			widths[i] = max(widths[i], textWidth(row[i].text))
		}
		switch {
		case c.least > 0 && s.width > 0 && i < len(t.columns)-1: // one long value must not push the columns apart
			widths[i] = min(widths[i], max(c.least, s.width/3))
		case c.least > 0:
			widths[i] = min(widths[i], cellWidthMax)
		}
		if widths[i] == 0 {
			widths[i] = -1
		}
	}
	var gone []string
	if s.width > 0 {
		gone = t.fit(widths, s.width-indent)
	}
	line := func(cell func(i int) (string, style)) {
		text := strings.Repeat(" ", indent)
		gap := ""
		for i, c := range t.columns {
			if widths[i] < 0 {
				continue
			}
			value, how := cell(i)
			value = pad(safe(value, widths[i]), widths[i], c.right)
			if i == len(t.columns)-1 && !c.right {
				value = strings.TrimRight(value, " ")
			}
			text += gap + s.paint(how, value)
			gap = strings.Repeat(" ", columnGap)
		}
		s.printf("%s\n", strings.TrimRight(text, " "))
	}
	line(func(i int) (string, style) { return t.columns[i].name, faint })
	for n, row := range t.rows {
		line(func(i int) (string, style) { return row[i].text, row[i].how })
		if n < len(t.under) && t.under[n].text != "" {
			const more = 4
			s.printf("%s%s\n", strings.Repeat(" ", indent+more), s.paint(t.under[n].how, safe(t.under[n].text, s.room(indent+more))))
		}
	}
	if len(gone) > 0 {
		note := "no room for " + strings.Join(gone, ", ") + ": see --json"
		s.printf("%s%s\n", strings.Repeat(" ", indent), s.paint(faint, safe(note, s.room(indent))))
	}
}

// fit narrows widths to a line, and returns the names of the columns that it drops: these have the width -1.
func (t *table) fit(widths []int, line int) (gone []string) {
	whole := slices.Clone(widths)
	for shrunk := false; ; {
		sum, widest, drop := -columnGap, -1, -1
		for i, c := range t.columns {
			if widths[i] < 0 {
				continue
			}
			sum += widths[i] + columnGap
			least := c.least
			if shrunk {
				least = shrunkMin
			}
			if c.least > 0 && widths[i] > max(least, textWidth(c.name)) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
			if c.drop > 0 && (drop < 0 || c.drop > t.columns[drop].drop) {
				drop = i
			}
		}
		switch {
		case sum <= line:
			return gone
		case widest >= 0:
			widths[widest]--
		case drop >= 0:
			whole[drop] = -1
			copy(widths, whole) // what was shrunk may have room now
			gone = append(gone, t.columns[drop].name)
		case !shrunk:
			shrunk = true
		default:
			return gone
		}
	}
}

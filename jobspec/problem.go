package jobspec

import (
	"fmt"
	"strings"
)

// Problem is one thing wrong with a spec: where, what, and what to do about it.
type Problem struct {
	Pos     Pos
	Path    string // for example "scenarios[3].when"
	Message string // what is wrong and what was expected
	Hint    string // the nearest valid name or a remedy; may be empty
}

// Error formats the problem as "line:column: path: message (hint)".
func (p *Problem) Error() string {
	var b strings.Builder
	if p.Pos.Line > 0 {
		fmt.Fprintf(&b, "%d:%d: ", p.Pos.Line, p.Pos.Column)
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems is everything wrong with a spec, in order of the text.
type Problems []*Problem

// Error lists the problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

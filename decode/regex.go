package decode

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// regex decodes lines by an RE2 expression that must match the whole line (less its line end). A path is the name of a
// group; a group that took no part, or took nothing, is absent.
//
// An expression whose next character always decides how to go on, such as one of \S+ and [^"]* between literals, runs
// as a table at one look-up a byte. Others (.* before a literal that it could swallow) run in package regexp, which
// costs about ten times as much and one allocation a record.
type regex struct {
	*frame
	fast  *onePass       // nil: slow is used
	slow  *regexp.Regexp // anchored at both ends
	caps  []int          // of the line at hand
	group []int          // by slot: number of its group
}

func newRegex(src *jobspec.Source, f *frame, _ Options) (Decoder, error) {
	if src.Format.Pattern == "" {
		return nil, f.problem(src.Format.Pos, "format.pattern", "the format needs an RE2 expression with named groups", "")
	}
	if _, err := regexp.Compile(src.Format.Pattern); err != nil {
		return nil, f.problem(src.Format.Pos, "format.pattern", err.Error(), "")
	}
	whole := `\A(?:` + src.Format.Pattern + `)\z`
	parsed, err := syntax.Parse(whole, syntax.Perl)
	if err != nil {
		return nil, f.problem(src.Format.Pos, "format.pattern", err.Error(), "")
	}
	slow, err := regexp.Compile(whole)
	if err != nil {
		return nil, f.problem(src.Format.Pos, "format.pattern", err.Error(), "")
	}
	d := &regex{frame: f, slow: slow, group: make([]int, len(f.slots))}
	wanted := make([]bool, 2*slow.NumSubexp()+2)
	for slot := range f.slots {
		n := slow.SubexpIndex(f.slots[slot].path)
		if n < 0 {
			return nil, f.badPath(slot, fmt.Sprintf("the expression has no group %q", f.slots[slot].path), "its groups are "+groupNames(slow))
		}
		d.group[slot] = n
		wanted[2*n], wanted[2*n+1] = true, true
	}
	if d.fast = compileOnePass(parsed, func(slot int) bool { return wanted[slot] }); d.fast != nil {
		d.caps = make([]int, d.fast.groups)
	}
	return d, nil
}

func groupNames(re *regexp.Regexp) string {
	var names []string
	for _, name := range re.SubexpNames() {
		if name != "" {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// Decode implements Decoder.
func (d *regex) Decode(b *event.Batch, r event.Record) {
	if !d.begin(b, r) {
		return
	}
	line := trimLineEnd(b.Raw(r))
	caps := d.caps
	if d.fast != nil {
		if !d.fast.match(line, caps) {
			d.reject(b, event.ReasonSyntax, "the line does not match the expression")
			return
		}
	} else if caps = d.slow.FindSubmatchIndex(line); caps == nil {
		d.reject(b, event.ReasonSyntax, "the line does not match the expression")
		return
	}
	for slot, n := range d.group {
		if from, to := caps[2*n], caps[2*n+1]; from < to {
			d.set(slot, r.Off+uint32(from), uint32(to-from), kindString)
		}
	}
	d.emit(b, 0)
}

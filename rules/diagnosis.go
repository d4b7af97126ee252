package rules

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"

	"github.com/weftdata/weft/jobspec"
)

// timeHint says how the literals of durations and timestamps are written.
func timeHint(function string) string {
	if function == overloads.TypeConvertDuration {
		return `expected for example "90s", "5m" or "1h30m"`
	}
	return `expected for example "2026-11-02T03:04:05Z"`
}

// diagnosis turns what is wrong with one expression into problems of the spec: at the place in the YAML text, in the
// words of the job.
type diagnosis struct {
	lang     *language
	path     string
	expr     jobspec.Expr
	problems jobspec.Problems
}

// Bounds on what is said about one expression: past them nobody reads on.
const (
	problemsMax     = 10
	messageRunesMax = 300
)

// at adds a problem; line (from 1) and column (from 0) count within the expression.
func (d *diagnosis) at(line, column int, message, hint string) {
	if len(d.problems) == problemsMax {
		return
	}
	if r := []rune(message); len(r) > messageRunesMax {
		message = string(r[:messageRunesMax]) + "…"
	}
	d.problems = append(d.problems, &jobspec.Problem{Pos: d.place(line, column), Path: d.path, Message: message, Hint: hint})
}

// issues adds what cel-go found. root is the parsed expression; nil where the text does not parse.
func (d *diagnosis) issues(root *ast.AST, issues *cel.Issues) {
	for _, e := range issues.Errors() {
		line, column := e.Location.Line(), e.Location.Column()
		if line < 1 { // unknown to cel-go: the whole expression
			line, column = 1, 0
		}
		if root == nil {
			d.at(line, column, syntaxMessage(e.Message), "")
			continue
		}
		if d.charAt(line, column) == '.' { // a member is to blame, not the dot before it
			column++
		}
		message, hint := d.explain(root, e)
		d.at(line, column, message, hint)
	}
}

var (
	undefinedField      = regexp.MustCompile(`^undefined field '([^']*)'`)
	undeclaredReference = regexp.MustCompile(`^undeclared reference to '([^']*)'`)
	noOverload          = regexp.MustCompile(`^found no matching overload for '([^']*)' applied to '(.*)'$`)
	expecting           = regexp.MustCompile(` expecting \{.*\}$`)
)

func syntaxMessage(message string) string {
	message = strings.TrimPrefix(message, "Syntax error: ")
	message = strings.ReplaceAll(message, "'<EOF>'", "the end of the expression")
	message = expecting.ReplaceAllString(message, "")
	if strings.HasPrefix(message, "expression recursion limit exceeded") {
		return fmt.Sprintf("the expression nests deeper than %d", DepthMax)
	}
	return message
}

// explain words an error of the type checker and adds the nearest valid choice.
func (d *diagnosis) explain(root *ast.AST, e *common.Error) (message, hint string) {
	if m := undefinedField.FindStringSubmatch(e.Message); m != nil {
		what, choices := d.membersAround(root, e.ExprID)
		return fmt.Sprintf("undefined %s '%s'", what, m[1]), nearest(m[1], choices)
	}
	if m := undeclaredReference.FindStringSubmatch(e.Message); m != nil {
		name, _, _ := strings.Cut(m[1], ".")
		if n := find(root, e.ExprID); n != nil && n.Kind() == ast.CallKind {
			if m[1] == funStep {
				return "step takes exactly one name", `as in step("paid").count`
			}
			return fmt.Sprintf("undefined function '%s'", m[1]), nearest(m[1], d.functions())
		}
		return fmt.Sprintf("undefined name '%s'", name), d.nameHint(name)
	}
	if m := noOverload.FindStringSubmatch(e.Message); m != nil {
		message = fmt.Sprintf("%s is not defined for (%s)", operatorName(m[1]), strings.Trim(plain(m[2]), "()"))
		switch {
		case strings.Contains(m[2], typeStep):
			hint = "a step has the members count, first and last"
		case m[2] == "(string, int)" || m[2] == "(int, string)":
			hint = "a text needs quotes; a field that counts needs type int"
		case strings.Contains(m[2], "duration") && strings.Contains(m[2], "int"):
			hint = `write a duration as duration("5m")`
		case strings.Contains(m[2], "int") && strings.Contains(m[2], "double"):
			hint = "numbers are integers; write 2 for 2.0"
		}
		return message, hint
	}
	return plain(e.Message), ""
}

// membersAround says what the member of an expression would be, and which there are.
func (d *diagnosis) membersAround(root *ast.AST, id int64) (what string, choices []string) {
	n := find(root, id)
	if n == nil || n.Kind() != ast.SelectKind {
		return "member", nil
	}
	switch operand := n.AsSelect().Operand(); {
	case operand.Kind() == ast.IdentKind && operand.AsIdent() == varKeys:
		return "key kind", names(d.lang.kinds)
	case operand.Kind() == ast.IdentKind && operand.AsIdent() == varFields:
		return "field", names(d.lang.fields)
	case operand.Kind() == ast.CallKind && operand.AsCall().FunctionName() == hiddenStep:
		return "member of a step", names(d.lang.types.members[typeStep])
	}
	return "member of an event", names(d.lang.types.members[typeEvent])
}

func (d *diagnosis) nameHint(name string) string {
	if _, ok := d.lang.fields[name]; ok {
		return "did you mean fields." + name + "?"
	}
	if _, ok := d.lang.kinds[name]; ok {
		return "did you mean keys." + name + "?"
	}
	for _, s := range d.lang.spec.Scenarios {
		if s.Name == name {
			return "a rule cannot name another scenario"
		}
	}
	if d.lang.steps[name] {
		return fmt.Sprintf("did you mean step(%q)?", name)
	}
	return nearest(name, []string{varStart, varEnd, varDuration, varEvents, varKeys, varFields})
}

// functions lists what a rule can call.
func (d *diagnosis) functions() []string {
	list := []string{funStep}
	for name := range d.lang.env.Functions() {
		if name[0] >= 'a' && name[0] <= 'z' {
			list = append(list, name)
		}
	}
	for _, m := range d.lang.env.Macros() {
		list = append(list, m.Function())
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func find(root *ast.AST, id int64) (found ast.Expr) {
	ast.PreOrderVisit(root.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.ID() == id {
			found = e
		}
	}))
	return found
}

// plain drops the prefix of our own types from a message of cel-go.
func plain(message string) string { return strings.ReplaceAll(message, "weft.", "") }

func typeName(t *cel.Type) string { return plain(cel.FormatCELType(t)) }

func typeHint(want, got *cel.Type) string {
	switch {
	case want.Kind() == types.TimestampKind && got.Kind() == types.StructKind:
		return `for example step("paid").first`
	case want.Kind() == types.TimestampKind && got.Kind() == types.DurationKind:
		return "the time span belongs into within"
	case want.Kind() == types.BoolKind && got.Kind() == types.IntKind:
		return "compare it, as in … > 0"
	}
	return ""
}

// nearest words the choice closest to what was typed, or all of them where none is close and they are few.
func nearest(typed string, choices []string) string {
	slices.Sort(choices)
	if near := jobspec.Nearest(typed, choices); near != "" {
		return "nearest: " + near
	}
	if len(choices) == 0 || len(choices) > 12 {
		return ""
	}
	return "expected one of: " + strings.Join(choices, ", ")
}

func names[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// charAt returns the character of the expression at a line (from 1) and column (from 0); 0 past the end.
func (d *diagnosis) charAt(line, column int) rune {
	text := []rune(d.expr.Text)
	if i := offset(text, line, column); i < len(text) {
		return text[i]
	}
	return 0
}

// offset counts the characters before a line (from 1) and column (from 0).
func offset(text []rune, line, column int) int {
	i := 0
	for ; line > 1 && i < len(text); i++ {
		if text[i] == '\n' {
			line--
		}
	}
	return min(i+column, len(text))
}

// place finds a position of the expression in the YAML text. YAML indents block scalars, folds lines and quotes, so
// the two texts are walked side by side, without regard to white space.
func (d *diagnosis) place(line, column int) jobspec.Pos {
	start := d.expr.Pos
	if start.Line == 0 {
		return start
	}
	text, raw := []rune(d.expr.Text), []rune(string(d.lang.spec.Text))
	n := offset(text, line, column)
	from := offset(raw, start.Line, start.Column-1)
	for _, skip := range []int{0, 1, blockHeader(raw, from)} {
		if from+skip > len(raw) {
			continue
		}
		if i, ok := align(text, raw[from+skip:], n); ok {
			return position(raw, from+skip+i)
		}
	}
	if line == 1 { // the YAML text is not at hand, or writes the expression with escapes
		return jobspec.Pos{Line: start.Line, Column: start.Column + column}
	}
	return jobspec.Pos{Line: start.Line + line - 1, Column: column + 1}
}

// blockHeader returns the length of the "|" or ">" line at which the position of a block scalar may point.
func blockHeader(raw []rune, from int) int {
	if from < len(raw) && (raw[from] == '|' || raw[from] == '>') {
		if n := slices.Index(raw[from:], '\n'); n >= 0 {
			return n
		}
	}
	return 0
}

// align returns where text[n] stands in raw; ok is false where raw does not hold the text.
func align(text, raw []rune, n int) (at int, ok bool) {
	i, at := 0, 0
	for k, c := range text {
		if unicode.IsSpace(c) {
			continue
		}
		for i < len(raw) && raw[i] != c && (unicode.IsSpace(raw[i]) || raw[i] == '\\' || raw[i] == '\'') {
			i++ // white space, or the first half of an escaped or doubled quote
		}
		if i == len(raw) || raw[i] != c {
			return 0, false
		}
		if k <= n {
			at = i
		}
		i++
		if k < n {
			at = i
		}
	}
	return at, true
}

// position counts lines and columns, both from 1.
func position(text []rune, at int) jobspec.Pos {
	p := jobspec.Pos{Line: 1, Column: 1}
	for _, c := range text[:at] {
		p.Column++
		if c == '\n' {
			p.Line, p.Column = p.Line+1, 1
		}
	}
	return p
}

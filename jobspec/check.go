package jobspec

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	// problemsMax bounds what one reading reports; a person mends no more at once.
	problemsMax = 100
	// nodesMax bounds the places visited, since aliases can repeat one part of the text many times.
	nodesMax = 100_000
)

// value is one checked place of a spec. What was wrong or absent is nil, and every method of a nil value returns
// nothing, so that reading on after a problem is safe and raises no second one.
type value struct {
	pos   Pos    // where it stands
	at    Pos    // where its name stands; of an element, where it stands
	path  string // for example "scenarios[3].when"
	text  string // of a scalar
	num   int64  // integer, nanoseconds, bytes, or 1 for true
	float float64
	props map[string]*value
	names []string // of a mapping, in order of the text; those with a problem have no props
	items []*value
	shape *shape // what it was checked as: tells the alternatives of a place apart
}

func (v *value) get(name string) *value {
	if v == nil {
		return nil
	}
	return v.props[name]
}

func (v *value) string() string {
	if v == nil {
		return ""
	}
	return v.text
}

func (v *value) int() int64 {
	if v == nil {
		return 0
	}
	return v.num
}

// place returns where v's name stands.
func (v *value) place() Pos {
	if v == nil {
		return Pos{}
	}
	return v.at
}

// each calls f for the values of a mapping in order of the text, leaving out those with a problem.
func (v *value) each(f func(name string, v *value)) {
	if v == nil {
		return
	}
	for _, name := range v.names {
		if child := v.props[name]; child != nil {
			f(name, child)
		}
	}
}

// fieldNames returns the names of a mapping in order of the text, with those that have a problem.
func (v *value) fieldNames() []string {
	if v == nil {
		return nil
	}
	return v.names
}

// broken tells whether a field was given and has a problem already.
func (v *value) broken(name string) bool {
	return v != nil && v.props[name] == nil && slices.Contains(v.names, name)
}

func (v *value) list() []*value {
	if v == nil {
		return nil
	}
	return v.items
}

// oneOrMore returns the elements of a list, or v itself where it stands for a list of one.
func (v *value) oneOrMore() []*value {
	if v == nil || v.shape.kind == listShape {
		return v.list()
	}
	return []*value{v}
}

func (v *value) strings() []string {
	var all []string
	for _, item := range v.oneOrMore() {
		all = append(all, item.text)
	}
	return all
}

func (v *value) isObject() bool { return v != nil && v.shape.kind == objectShape }

// problemList collects problems, bounded.
type problemList struct {
	all  Problems
	more int
}

func (l *problemList) add(at Pos, path, hint, format string, args ...any) {
	if len(l.all) == problemsMax {
		l.more++
		return
	}
	l.all = append(l.all, &Problem{Pos: at, Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// sorted returns the problems in order of the text.
func (l *problemList) sorted() Problems {
	slices.SortStableFunc(l.all, func(a, b *Problem) int {
		if a.Pos.Line != b.Pos.Line {
			return a.Pos.Line - b.Pos.Line
		}
		return a.Pos.Column - b.Pos.Column
	})
	if l.more > 0 {
		l.all = append(l.all, &Problem{Message: fmt.Sprintf("%d more problems are not shown", l.more)})
		l.more = 0
	}
	return l.all
}

// checker compares YAML with shapes. Its recursion is as deep as the shapes are, whatever the text.
type checker struct {
	problemList
	lines []string
	nodes int
}

// check reads a place. It returns nil after a problem that leaves no value.
func (c *checker) check(n *yaml.Node, s *shape, path string, at Pos) *value {
	if c.nodes++; c.nodes > nodesMax {
		if c.nodes == nodesMax+1 {
			c.add(at, path, "", "the spec holds more than %d values, counting aliases each time", nodesMax)
		}
		return nil
	}
	v := &value{pos: Pos{n.Line, n.Column}, at: at, path: path}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	v.shape = s.choose(n)
	if v.shape == nil {
		c.add(v.pos, path, quoteHint(n, s), "expected %s, got %s", s.want(), got(n))
		return nil
	}
	ok := true
	switch v.shape.kind {
	case objectShape:
		ok = c.object(v, n)
	case dictShape:
		ok = c.dict(v, n)
	case listShape:
		ok = c.list(v, n)
	default:
		ok = c.scalar(v, n)
	}
	if !ok {
		return nil
	}
	return v
}

// choose returns the shape that fits the node's kind; nil where none does.
func (s *shape) choose(n *yaml.Node) *shape {
	if s.kind == eitherShape {
		for _, a := range s.alts {
			if a.choose(n) != nil {
				return a
			}
		}
		return nil
	}
	tag := n.ShortTag()
	var fits bool
	switch s.kind {
	case objectShape, dictShape:
		fits = n.Kind == yaml.MappingNode && tag == "!!map"
	case listShape:
		fits = n.Kind == yaml.SequenceNode && tag == "!!seq"
	case scalarShape:
		fits = n.Kind == yaml.ScalarNode && slices.Contains([]string{"!!str", "!!int", "!!float", "!!bool"}, tag)
	case integerShape:
		fits = n.Kind == yaml.ScalarNode && tag == "!!int"
	case numberShape:
		fits = n.Kind == yaml.ScalarNode && (tag == "!!int" || tag == "!!float")
	case booleanShape:
		fits = n.Kind == yaml.ScalarNode && tag == "!!bool"
	default:
		fits = n.Kind == yaml.ScalarNode && tag == "!!str"
	}
	if fits {
		return s
	}
	return nil
}

// got says in words what stands at a place.
func got(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.ShortTag() == "!!null" {
		return "nothing"
	}
	return quote(n.Value)
}

// quoteHint helps where YAML reads a word as something else than text.
func quoteHint(n *yaml.Node, s *shape) string {
	if n.Kind != yaml.ScalarNode || n.Value == "" || n.ShortTag() == "!!str" {
		return ""
	}
	for _, a := range append([]*shape{s}, s.alts...) {
		switch a.kind {
		case textShape, exprShape, scalarShape:
			if a.enum == nil {
				return fmt.Sprintf("YAML does not read this as text; write '%s'", n.Value)
			}
		case durationShape:
			return "write the unit too, such as 30s"
		case sizeShape:
			return "write the unit too, such as 1GiB"
		}
	}
	return ""
}

// pairs calls f for the entries of a mapping, once for each name. It reports names that are no text or that repeat.
func (c *checker) pairs(v *value, n *yaml.Node, f func(name string, key, node *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		at := Pos{key.Line, key.Column}
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		switch {
		case key.Kind != yaml.ScalarNode:
			c.add(at, v.path, "", "expected a name, got %s", got(key))
		case key.ShortTag() == "!!merge":
			c.add(at, v.path, "repeat the fields, or alias whole values", "merge keys are not supported")
		case seen[key.Value] > 0:
			c.add(at, join(v.path, key.Value), "", "%s is given twice; the first is on line %d", quote(key.Value), seen[key.Value])
		default:
			seen[key.Value] = at.Line
			f(key.Value, n.Content[i], n.Content[i+1])
		}
	}
}

func join(path, name string) string {
	if utf8.RuneCountInString(name) > nameHintMax {
		name = string([]rune(name)[:nameHintMax]) + "…"
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

func (c *checker) object(v *value, n *yaml.Node) bool {
	v.props = map[string]*value{}
	given := map[string]bool{}
	var meant []string // by misspelt names
	c.pairs(v, n, func(name string, key, node *yaml.Node) {
		p, ok := v.shape.prop(name)
		at := Pos{key.Line, key.Column}
		if !ok {
			c.add(at, join(v.path, name), nearestHint(name, v.shape.propNames()), "unknown field %s", quote(name))
			meant = append(meant, Nearest(name, v.shape.propNames()))
			return
		}
		given[name] = true
		v.names = append(v.names, name)
		v.props[name] = c.check(node, p.shape, join(v.path, name), at)
	})
	for _, name := range meant { // a misspelt field is not missing too
		if name != "" && !given[name] {
			given[name] = true
			v.names = append(v.names, name)
		}
	}
	for _, p := range v.shape.props {
		switch {
		case given[p.name]:
		case p.required:
			c.add(v.at, v.path, "expected "+p.shape.want(), "the field %q is missing", p.name)
		case p.def != "":
			v.props[p.name] = c.defaultOf(p, v)
		}
	}
	return c.together(v, given)
}

// together checks which fields of an object go with which.
func (c *checker) together(v *value, given map[string]bool) bool {
	if v.shape.one != nil {
		count := 0
		for _, name := range v.shape.one {
			if given[name] {
				count++
			}
		}
		if count != 1 {
			c.add(v.at, v.path, "", "expected exactly one of the fields %s", strings.Join(v.shape.one, ", "))
			return false
		}
	}
	ok := true
	for _, name := range v.names { // in order of the text
		if other := v.shape.needs[name]; other != "" && !given[other] {
			c.add(v.props[name].place(), join(v.path, name), "", "%q goes only together with %q", name, other)
			ok = false
		}
	}
	return ok
}

// defaultOf returns the value of an absent field.
func (c *checker) defaultOf(p prop, in *value) *value {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(p.def), &doc); err != nil {
		panic(err) // the defaults are constants of table.go
	}
	return c.check(doc.Content[0], p.shape, join(in.path, p.name), in.at)
}

func (c *checker) dict(v *value, n *yaml.Node) bool {
	v.props = map[string]*value{}
	if !c.count(v, int64(len(n.Content)/2), "entry", "entries") {
		return false
	}
	c.pairs(v, n, func(name string, key, node *yaml.Node) {
		at := Pos{key.Line, key.Column}
		if !v.shape.names.re.MatchString(name) {
			c.add(at, join(v.path, name), "", "%s is not a valid name: expected %s", quote(name), v.shape.names.want)
		}
		elem := v.shape.elem
		if p, ok := v.shape.prop(name); ok {
			elem = p.shape
		}
		v.names = append(v.names, name)
		v.props[name] = c.check(node, elem, join(v.path, name), at)
	})
	return true
}

func (c *checker) list(v *value, n *yaml.Node) bool {
	if !c.count(v, int64(len(n.Content)), "element", "elements") {
		return false
	}
	for i, item := range n.Content {
		at := Pos{item.Line, item.Column}
		if child := c.check(item, v.shape.elem, fmt.Sprintf("%s[%d]", v.path, i), at); child != nil {
			v.items = append(v.items, child)
		}
	}
	if v.shape.once {
		c.once(v)
	}
	return true
}

// once reports the elements of a list that repeat.
func (c *checker) once(v *value) {
	seen := map[string]bool{}
	for _, item := range v.items {
		if seen[item.text] {
			c.add(item.pos, item.path, "", "%s is given twice", quote(item.text))
		}
		seen[item.text] = true
	}
}

func (c *checker) count(v *value, n int64, one, many string) bool {
	switch {
	case n < v.shape.least:
		word := many
		if v.shape.least == 1 {
			word = one
		}
		c.add(v.at, v.path, "", "expected at least %d %s", v.shape.least, word)
	case n > v.shape.most:
		c.add(v.at, v.path, "", "expected at most %d %s, got %d", v.shape.most, many, n)
	default:
		return true
	}
	return false
}

func (c *checker) scalar(v *value, n *yaml.Node) bool {
	v.text = n.Value
	s := v.shape
	fail := func(format string, args ...any) bool {
		c.add(v.pos, v.path, "", format, args...)
		return false
	}
	outside := func(format func(int64) string) bool {
		if v.num >= s.least && v.num <= s.most {
			return true
		}
		return fail("expected %s to %s, got %s", format(s.least), format(s.most), quote(n.Value))
	}
	switch s.kind {
	case booleanShape:
		var b bool
		if n.Decode(&b) != nil {
			return fail("expected true or false, got %s", quote(n.Value))
		}
		if b {
			v.num = 1
		}
	case integerShape:
		if n.Decode(&v.num) != nil {
			return fail("expected an integer, got %s", quote(n.Value))
		}
		return outside(func(i int64) string { return fmt.Sprint(i) })
	case numberShape:
		if n.Decode(&v.float) != nil || math.IsNaN(v.float) || v.float <= float64(s.least) || v.float > float64(s.most) {
			return fail("expected more than %d and at most %d, got %s", s.least, s.most, quote(n.Value))
		}
	case durationShape:
		d, err := ParseDuration(n.Value)
		if err != nil {
			return fail("%v, got %s", err, quote(n.Value))
		}
		v.num = int64(d)
		return outside(func(ns int64) string { return FormatDuration(time.Duration(ns)) })
	case sizeShape:
		bytes, err := ParseSize(n.Value)
		if err != nil {
			return fail("%v, got %s", err, quote(n.Value))
		}
		v.num = bytes
		return outside(FormatSize)
	case exprShape:
		if v.text = strings.TrimSpace(n.Value); v.text != "" {
			v.pos = scalarPlace(c.lines, n)
		}
		return c.text(v)
	default:
		return c.text(v)
	}
	return true
}

// text checks a text's length, values and form.
func (c *checker) text(v *value) bool {
	s := v.shape
	runes := int64(utf8.RuneCountInString(v.text))
	switch {
	case s.enum != nil && !slices.Contains(s.enum, v.text):
		c.add(v.pos, v.path, nearestHint(v.text, s.enum), "unknown value %s", quote(v.text))
	case s.enum != nil:
		return true
	case runes < s.least:
		c.add(v.pos, v.path, "", "expected %s, got nothing", s.want())
	case runes > s.most:
		c.add(v.pos, v.path, "", "expected at most %d characters, got %d", s.most, runes)
	case s.form != nil && !s.form.re.MatchString(v.text):
		c.add(v.pos, v.path, "", "expected %s, got %s", s.form.want, quote(v.text))
	default:
		return true
	}
	return false
}

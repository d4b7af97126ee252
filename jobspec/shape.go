package jobspec

import (
	"regexp"
	"strings"
	"time"
)

// A shape describes what may stand at one place of a spec. The parser checks YAML against shapes and the JSON Schema
// is written from them, so that the two cannot differ. Table.go holds the shapes of the whole spec.
type shape struct {
	kind  shapeKind
	doc   string
	props []prop            // object: its fields; dict: names with a shape of their own
	one   []string          // object: exactly one of these fields is given
	needs map[string]string // object: a field that makes sense only together with another
	extra func() []any      // object: further conditions of the JSON Schema, which the parser checks in code
	elem  *shape            // dict, list: of every value
	names *form             // dict: of every name
	form  *form             // text
	once  bool              // list: no element repeats
	enum  []string          // text: the values allowed
	alts  []*shape          // either: at most one for scalars, one for mappings, one for lists

	// Bounds, both included: runes of a text, number of elements, value of an integer, nanoseconds, bytes. A number is
	// greater than least.
	least, most int64
}

type shapeKind uint8

const (
	objectShape   shapeKind = iota // a mapping with fixed fields
	dictShape                      // a mapping whose names are the user's
	listShape                      // a sequence
	textShape                      // a YAML string
	scalarShape                    // a string, number or boolean, taken as it is written
	exprShape                      // a YAML string that holds an expression; its exact place is kept
	integerShape                   // an integer
	numberShape                    // an integer or a decimal number
	booleanShape                   // true or false
	durationShape                  // a string such as 30m
	sizeShape                      // a string such as 512MiB
	eitherShape                    // one of several shapes
)

// form is a regular expression in the syntax that RE2 and ECMAScript share, and what it wants in words.
type form struct {
	re   *regexp.Regexp
	want string
}

func newForm(pattern, want string) *form { return &form{regexp.MustCompile(`^` + pattern + `$`), want} }

// prop is one field of an object.
type prop struct {
	name     string
	shape    *shape
	required bool
	def      string // YAML of the value that an absent field has; empty: none
}

func must(name string, s *shape) prop { return prop{name: name, shape: s, required: true} }

func may(name string, s *shape) prop { return prop{name: name, shape: s} }

func (p prop) or(def string) prop {
	p.def = def
	return p
}

func object(doc string, props ...prop) *shape {
	return &shape{kind: objectShape, doc: doc, props: props}
}

func (s *shape) exactlyOne(names ...string) *shape {
	s.one = names
	return s
}

func (s *shape) with(field, other string) *shape {
	if s.needs == nil {
		s.needs = map[string]string{}
	}
	s.needs[field] = other
	return s
}

func dict(doc string, least, most int64, names *form, elem *shape, known ...prop) *shape {
	return &shape{kind: dictShape, doc: doc, least: least, most: most, names: names, elem: elem, props: known}
}

func list(doc string, least, most int64, elem *shape) *shape {
	return &shape{kind: listShape, doc: doc, least: least, most: most, elem: elem}
}

// distinct says that no element of a list repeats.
func (s *shape) distinct() *shape {
	s.once = true
	return s
}

func text(doc string, most int64) *shape {
	return &shape{kind: textShape, doc: doc, least: 1, most: most}
}

func formed(doc string, f *form) *shape {
	return &shape{kind: textShape, doc: doc, least: 1, most: 1024, form: f}
}

func enum(doc string, values ...string) *shape {
	return &shape{kind: textShape, doc: doc, least: 1, most: 1024, enum: values}
}

func scalar(doc string) *shape { return &shape{kind: scalarShape, doc: doc, most: 1024} }

func expr(doc string) *shape { return &shape{kind: exprShape, doc: doc, least: 1, most: 16 << 10} }

func integer(doc string, least, most int64) *shape {
	return &shape{kind: integerShape, doc: doc, least: least, most: most}
}

func number(doc string, above, most int64) *shape {
	return &shape{kind: numberShape, doc: doc, least: above, most: most}
}

func boolean(doc string) *shape { return &shape{kind: booleanShape, doc: doc} }

func duration(doc string, least, most time.Duration) *shape {
	return &shape{kind: durationShape, doc: doc, least: int64(least), most: int64(most)}
}

func size(doc string, least, most int64) *shape {
	return &shape{kind: sizeShape, doc: doc, least: least, most: most}
}

func either(doc string, alts ...*shape) *shape {
	return &shape{kind: eitherShape, doc: doc, alts: alts}
}

// prop returns the field of that name.
func (s *shape) prop(name string) (prop, bool) {
	for _, p := range s.props {
		if p.name == name {
			return p, true
		}
	}
	return prop{}, false
}

func (s *shape) propNames() []string {
	names := make([]string, len(s.props))
	for i, p := range s.props {
		names[i] = p.name
	}
	return names
}

// want says in words what is expected at a place.
func (s *shape) want() string {
	switch s.kind {
	case objectShape, dictShape:
		return "a mapping"
	case listShape:
		return "a list"
	case scalarShape:
		return "a value"
	case exprShape:
		return "an expression"
	case integerShape:
		return "an integer"
	case numberShape:
		return "a number"
	case booleanShape:
		return "true or false"
	case durationShape:
		return "a duration such as 30m"
	case sizeShape:
		return "a size such as 512MiB"
	case eitherShape:
		words := make([]string, len(s.alts))
		for i, a := range s.alts {
			words[i] = a.want()
		}
		return strings.Join(words, " or ")
	}
	switch {
	case len(s.enum) == 1:
		return s.enum[0]
	case len(s.enum) > 0:
		return "one of " + strings.Join(s.enum, ", ")
	case s.form != nil:
		return s.form.want
	}
	return "text"
}

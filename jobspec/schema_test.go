package jobspec

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// TestSchemaAgrees changes every part of the valid specs in every way of a list, and expects that the JSON Schema
// accepts exactly what the parser finds well formed.
func TestSchemaAgrees(t *testing.T) {
	schema := decodedSchema(t)
	checks := &validator{t, map[string]*regexp.Regexp{}}
	variants := 0
	for _, file := range specFiles(t, "valid") {
		var doc yaml.Node
		if err := yaml.Unmarshal(readFile(t, file), &doc); err != nil {
			t.Fatal(err)
		}
		root := doc.Content[0]
		compare := func(change string) {
			variants++
			formed, accepted := wellFormed(root), schemaErrors(checks, schema, root)
			if (len(formed) == 0) != (len(accepted) == 0) {
				t.Errorf("%s, %s: the parser says %v, the schema says %v", file, change, formed, accepted)
			}
		}
		compare("unchanged")
		changeAll(root, "", compare)
	}
	if variants < 3000 {
		t.Errorf("only %d variants were compared", variants)
	}
}

// TestSchemaCoverage checks that the valid specs use every field, so that TestSchemaAgrees misses none.
func TestSchemaCoverage(t *testing.T) {
	used := map[string]bool{}
	for _, file := range specFiles(t, "valid") {
		root, problem := parseYAML(readFile(t, file))
		if problem != nil {
			t.Fatal(problem)
		}
		c := &checker{}
		noteFields(c.check(root, specShape(), "", Pos{}), used)
	}
	for _, field := range fieldsOf(specShape(), "") {
		if !used[field] {
			t.Errorf("no valid spec uses %s", field)
		}
	}
}

func TestSchemaDescribesEverything(t *testing.T) {
	var walk func(path string, s *shape)
	walk = func(path string, s *shape) {
		if s.doc == "" {
			t.Errorf("%s has no description", path)
		}
		for _, p := range s.props {
			walk(path+"."+p.name, p.shape)
		}
		for _, a := range s.alts {
			walk(path+"|", a)
		}
		if s.elem != nil {
			walk(path+"[]", s.elem)
		}
	}
	walk("", specShape())
	if got := decodedSchema(t)["$schema"]; got != "https://json-schema.org/draft/2020-12/schema" {
		t.Errorf("$schema is %v", got)
	}
}

// wellFormed returns the problems that a schema can see: of the form, and of the options of formats.
func wellFormed(root *yaml.Node) Problems {
	c := &checker{}
	v := c.check(root, specShape(), "", Pos{})
	b := &builder{problemList: &problemList{}}
	v.get("sources").each(func(_ string, source *value) { b.format(source) })
	return slices.Concat(c.sorted(), b.sorted())
}

// intruders stand in turn for every value. None is a duration or a size, whose bounds the schema does not tell.
func intruders() []string {
	return []string{`null`, `5`, `-1`, `2.5`, `true`, `""`, `Bad Name!`, `[]`, `[x, x]`, `{}`, `{path: x, value: y}`, `{field: x}`,
		`{name: json}`, `{name: avro, schema: x}`, `avro`, `"` + strings.Repeat("x", 1100) + `"`}
}

// changeAll changes one part of a document at a time, calls compare, and restores the part.
func changeAll(n *yaml.Node, path string, compare func(change string)) {
	if n.Kind == yaml.MappingNode {
		content := n.Content
		for i := 0; i < len(content); i += 2 {
			name := content[i].Value
			n.Content = slices.Concat(content[:i], content[i+2:])
			compare(path + " without " + name)
			n.Content = content
			content[i].Value = name + "X"
			compare(path + " with " + name + " misspelt")
			content[i].Value = name
			changeAll(content[i+1], path+"."+name, compare)
		}
		var extra yaml.Node
		if err := yaml.Unmarshal([]byte("unheard_of: 1"), &extra); err != nil {
			panic(err)
		}
		n.Content = slices.Concat(content, extra.Content[0].Content)
		compare(path + " with an unknown field")
		n.Content = content
	}
	if n.Kind == yaml.SequenceNode {
		for i, item := range n.Content {
			changeAll(item, fmt.Sprintf("%s[%d]", path, i), compare)
		}
	}
	before := *n
	for _, text := range intruders() {
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
			panic(err)
		}
		*n = *doc.Content[0]
		compare(path + " replaced by " + text)
	}
	*n = before
}

// noteFields notes the path of every field of a spec in terms of its shapes.
func noteFields(v *value, used map[string]bool) {
	var walk func(v *value, path string)
	walk = func(v *value, path string) {
		switch v.shape.kind {
		case objectShape:
			v.each(func(name string, child *value) {
				used[path+"."+name] = true
				walk(child, path+"."+name)
			})
		case dictShape:
			v.each(func(name string, child *value) {
				if _, known := v.shape.prop(name); known {
					used[path+"."+name] = true
				}
				walk(child, path+".*")
			})
		case listShape:
			for _, item := range v.items {
				walk(item, path+"[]")
			}
		}
	}
	walk(v, "")
}

// fieldsOf returns the paths of all fields of a shape.
func fieldsOf(s *shape, path string) (all []string) {
	for _, p := range s.props {
		all = append(all, path+"."+p.name)
		if s.kind == objectShape {
			all = append(all, fieldsOf(p.shape, path+"."+p.name)...)
		}
	}
	for _, a := range s.alts {
		all = append(all, fieldsOf(a, path)...)
	}
	switch {
	case s.kind == dictShape:
		all = append(all, fieldsOf(s.elem, path+".*")...)
	case s.kind == listShape:
		all = append(all, fieldsOf(s.elem, path+"[]")...)
	}
	return all
}

func decodedSchema(t *testing.T) map[string]any {
	t.Helper()
	var schema map[string]any
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

func schemaErrors(v *validator, schema map[string]any, n *yaml.Node) []string {
	return v.validate(schema, plain(v.t, n), "")
}

// plain returns a node as editors see it: all names are strings.
func plain(t *testing.T, n *yaml.Node) any {
	t.Helper()
	switch n.Kind {
	case yaml.AliasNode:
		return plain(t, n.Alias)
	case yaml.MappingNode:
		object := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			object[n.Content[i].Value] = plain(t, n.Content[i+1])
		}
		return object
	case yaml.SequenceNode:
		array := make([]any, len(n.Content))
		for i, item := range n.Content {
			array[i] = plain(t, item)
		}
		return array
	}
	var v any
	if err := n.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// validator checks values against a JSON Schema by the keywords that Schema uses; it fails the test on any other.
type validator struct {
	t        *testing.T
	patterns map[string]*regexp.Regexp
}

func (c *validator) validate(schema any, v any, path string) (errs []string) {
	if schema == false {
		return []string{path + " is not allowed"}
	}
	s := schema.(map[string]any)
	fail := func(keyword string) { errs = append(errs, path+": "+keyword) }
	object, isObject := v.(map[string]any)
	array, isArray := v.([]any)
	text, isText := v.(string)
	number, isNumber := toNumber(v)
	passes := func(sub any) bool { return len(c.validate(sub, v, path)) == 0 }
	for keyword, want := range s {
		switch keyword {
		case "$schema", "title", "description", "default", "then":
		case "type":
			if !slices.ContainsFunc(toStrings(want), func(name string) bool { return isType(v, name) }) {
				fail("type")
			}
		case "properties":
			for name, sub := range want.(map[string]any) {
				if child, ok := object[name]; ok {
					errs = append(errs, c.validate(sub, child, path+"."+name)...)
				}
			}
		case "additionalProperties":
			known, _ := s["properties"].(map[string]any)
			for name, child := range object {
				if _, ok := known[name]; !ok {
					errs = append(errs, c.validate(want, child, path+"."+name)...)
				}
			}
		case "propertyNames":
			for name := range object {
				errs = append(errs, c.validate(want, name, path+" name "+name)...)
			}
		case "required":
			for _, name := range toStrings(want) {
				if _, ok := object[name]; isObject && !ok {
					fail("required " + name)
				}
			}
		case "dependentRequired":
			for name, others := range want.(map[string]any) {
				if _, ok := object[name]; !ok {
					continue
				}
				for _, other := range toStrings(others) {
					if _, ok := object[other]; !ok {
						fail("dependentRequired " + name)
					}
				}
			}
		case "minProperties", "maxProperties":
			if isObject && beyond(keyword, float64(len(object)), want.(float64)) {
				fail(keyword)
			}
		case "minItems", "maxItems":
			if isArray && beyond(keyword, float64(len(array)), want.(float64)) {
				fail(keyword)
			}
		case "uniqueItems":
			for i := range array {
				if slices.ContainsFunc(array[:i], func(e any) bool { return reflect.DeepEqual(e, array[i]) }) {
					fail(keyword)
				}
			}
		case "not":
			if passes(want) {
				fail(keyword)
			}
		case "items":
			for i, item := range array {
				errs = append(errs, c.validate(want, item, fmt.Sprintf("%s[%d]", path, i))...)
			}
		case "minLength", "maxLength":
			if isText && beyond(keyword, float64(utf8.RuneCountInString(text)), want.(float64)) {
				fail(keyword)
			}
		case "pattern":
			if isText && !c.pattern(want.(string)).MatchString(text) {
				fail("pattern")
			}
		case "enum":
			if !slices.ContainsFunc(want.([]any), func(e any) bool { return reflect.DeepEqual(e, v) }) {
				fail("enum")
			}
		case "minimum", "maximum":
			if isNumber && beyond(keyword, number, want.(float64)) {
				fail(keyword)
			}
		case "exclusiveMinimum":
			if isNumber && number <= want.(float64) {
				fail(keyword)
			}
		case "anyOf":
			if !slices.ContainsFunc(want.([]any), passes) {
				fail("anyOf")
			}
		case "oneOf":
			if count := len(slices.DeleteFunc(slices.Clone(want.([]any)), func(sub any) bool { return !passes(sub) })); count != 1 {
				fail("oneOf")
			}
		case "allOf":
			for _, sub := range want.([]any) {
				errs = append(errs, c.validate(sub, v, path)...)
			}
		case "if":
			if passes(want) {
				errs = append(errs, c.validate(s["then"], v, path)...)
			}
		default:
			c.t.Fatalf("the schema uses the keyword %s, which this validator does not know", keyword)
		}
	}
	return errs
}

func (c *validator) pattern(text string) *regexp.Regexp {
	if c.patterns[text] == nil {
		c.patterns[text] = regexp.MustCompile(text)
	}
	return c.patterns[text]
}

// beyond tells whether a number breaks a bound whose keyword starts with min or max.
func beyond(keyword string, got, bound float64) bool {
	if strings.HasPrefix(keyword, "min") {
		return got < bound
	}
	return got > bound
}

func toStrings(v any) (all []string) {
	if one, ok := v.(string); ok {
		return []string{one}
	}
	for _, e := range v.([]any) {
		all = append(all, e.(string))
	}
	return all
}

func toNumber(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

func isType(v any, name string) bool {
	switch name {
	case "object":
		_, ok := v.(map[string]any)
		return ok
	case "array":
		_, ok := v.([]any)
		return ok
	case "string":
		_, ok := v.(string)
		return ok
	case "boolean":
		_, ok := v.(bool)
		return ok
	case "integer":
		_, ok := v.(int)
		return ok
	}
	_, ok := toNumber(v)
	return ok && name == "number"
}

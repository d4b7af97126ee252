package jobspec

import (
	"cmp"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"unicode/utf8"
)

// FuzzParse checks that no text makes Parse panic, that a problem always has a place within the text, and that a spec
// that parses is one that the schema accepts, is sorted and can be drawn.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/valid/*.yaml", "testdata/invalid/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatal("no specs to start from")
		}
		for _, file := range files {
			f.Add(readFile(f, file))
		}
	}
	f.Add([]byte(valid))
	f.Fuzz(func(t *testing.T, text []byte) {
		spec, err := Parse(text)
		if err != nil {
			lines := len(splitLines(text))
			for _, p := range err.(Problems) {
				if p.Pos.Line > lines || p.Pos.Line < 1 && p.Path != "" {
					t.Errorf("%v is at %v of %d lines", p, p.Pos, lines)
				}
				if !utf8.ValidString(p.Error()) {
					t.Errorf("%q is not UTF-8", p.Error())
				}
				Excerpt(text, p.Pos)
			}
			return
		}
		for i := range spec.Sources[1:] {
			if spec.Sources[i].Topic >= spec.Sources[i+1].Topic {
				t.Errorf("the sources are not in order of topic: %q, %q", spec.Sources[i].Topic, spec.Sources[i+1].Topic)
			}
		}
		if !slices.IsSortedFunc(spec.Fields, func(a, b FieldDef) int { return cmp.Compare(a.Name, b.Name) }) {
			t.Errorf("the fields are not sorted: %v", spec.Fields)
		}
		if Explain(spec) == "" {
			t.Error("a valid spec has no drawing")
		}
		root, problem := parseYAML(text)
		if problem != nil {
			t.Fatal(problem)
		}
		checks := &validator{t, map[string]*regexp.Regexp{}}
		if wrong := schemaErrors(checks, decodedSchema(t), root); len(wrong) > 0 {
			t.Errorf("parsed, but the schema says %v", wrong)
		}
	})
}

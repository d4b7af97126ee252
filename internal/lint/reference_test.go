package lint

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the generated part of docs/spec.md")

// What is between the marks is written from the schema.
const (
	referenceFile  = "docs/spec.md"
	referenceBegin = "<!-- written by: go test ./internal/lint -run Reference -rewrite -->\n"
	referenceEnd   = "<!-- end of what is written -->\n"
)

// TestReference holds the reference of the job spec against the schema that the parser obeys.
func TestReference(t *testing.T) {
	name := filepath.Join(root, referenceFile)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, begins := strings.Cut(string(text), referenceBegin)
	got, tail, ends := strings.Cut(rest, referenceEnd)
	if !begins || !ends {
		t.Fatalf("%s has no marks around its generated part", referenceFile)
	}
	var schema jsonSchema
	if err := json.Unmarshal(jobspec.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	schema.tables(&b, "")
	want := "\n" + b.String()
	if got == want {
		return
	}
	if !*rewrite {
		t.Fatalf("%s differs from the schema; go test ./internal/lint -run Reference -rewrite writes it", referenceFile)
	}
	if err := os.WriteFile(name, []byte(head+referenceBegin+want+referenceEnd+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// jsonSchema is the part of a JSON Schema that the reference shows.
type jsonSchema struct {
	Type        any                   `json:"type"` // a name or several
	Description string                `json:"description"`
	Default     any                   `json:"default"`
	Enum        []string              `json:"enum"`
	Pattern     string                `json:"pattern"`
	Minimum     *float64              `json:"minimum"`
	Maximum     *float64              `json:"maximum"`
	AnyOf       []jsonSchema          `json:"anyOf"`
	Items       *jsonSchema           `json:"items"`
	Properties  map[string]jsonSchema `json:"properties"`
	Additional  json.RawMessage       `json:"additionalProperties"` // false or a schema
	Required    []string              `json:"required"`
}

// elements returns the schema of a mapping's values where their names are the user's.
func (s *jsonSchema) elements() *jsonSchema {
	var e jsonSchema
	if len(s.Additional) == 0 || json.Unmarshal(s.Additional, &e) != nil {
		return nil
	}
	return &e
}

// tables writes a table for an object and for every object below it.
func (s *jsonSchema) tables(b *strings.Builder, path string) {
	names := make([]string, 0, len(s.Properties))
	for name := range s.Properties {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int {
		if rx, ry := slices.Contains(s.Required, x), slices.Contains(s.Required, y); rx != ry {
			if rx {
				return -1
			}
			return 1
		}
		return cmp.Compare(x, y)
	})
	if len(names) > 0 {
		heading := "The spec"
		if path != "" {
			heading = "`" + path + "`"
		}
		fmt.Fprintf(b, "### %s\n\n%s\n\n| field | value | default | |\n| --- | --- | --- | --- |\n", heading, s.Description)
		for _, name := range names {
			p := s.Properties[name]
			def := "**required**"
			if !slices.Contains(s.Required, name) {
				def = p.defaultText()
			}
			fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", name, p.kind(), def, strings.ReplaceAll(p.Description, "|", `\|`))
		}
		b.WriteByte('\n')
	}
	for _, name := range names {
		p := s.Properties[name]
		p.tables(b, strings.TrimPrefix(path+"."+name, "."))
	}
	if s.Items != nil {
		s.Items.tables(b, path+"[]")
	}
	if e := s.elements(); e != nil {
		e.tables(b, path+".NAME")
	}
	for i := range s.AnyOf {
		s.AnyOf[i].tables(b, path)
	}
}

func (s *jsonSchema) defaultText() string {
	switch d := s.Default.(type) {
	case nil, map[string]any:
		return ""
	default:
		text, err := json.Marshal(d)
		if err != nil {
			panic(err) // it was read from JSON
		}
		return "`" + strings.Trim(string(text), `"`) + "`"
	}
}

// kind says in words what may stand at a place.
func (s *jsonSchema) kind() string {
	switch {
	case len(s.AnyOf) > 0:
		var all []string
		for i := range s.AnyOf {
			all = append(all, s.AnyOf[i].kind())
		}
		return strings.Join(all, ", or ")
	case len(s.Enum) > 0:
		return "`" + strings.Join(s.Enum, "` `") + "`"
	case s.Items != nil:
		return "list of " + s.Items.kind()
	case s.Type == "object":
		if e := s.elements(); e != nil {
			return "names, each with " + e.kind()
		}
		return "mapping"
	case s.Type == "string" && strings.Contains(s.Pattern, "us|µs|ms"):
		if strings.HasPrefix(s.Pattern, "^(<") {
			return "comparison with a duration"
		}
		return "duration"
	case s.Type == "string" && strings.Contains(s.Pattern, "KiB|MiB"):
		return "size"
	case s.Type == "string" && s.Pattern == `\S`:
		return "expression"
	case s.Type == "string":
		return "text"
	case s.Type == "integer" && s.Minimum != nil && s.Maximum != nil:
		return fmt.Sprintf("integer, %.0f to %.0f", *s.Minimum, *s.Maximum)
	case s.Type == "number" || s.Type == "integer" || s.Type == "boolean":
		return fmt.Sprint(s.Type)
	}
	return "scalar"
}

// documents calls f with every Markdown file of the module, its name relative to it.
func documents(t *testing.T, f func(name, text string)) {
	t.Helper()
	found := 0
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found++
			f(strings.TrimPrefix(filepath.ToSlash(file), root+"/"), string(text))
		}
	}
	if found < 5 {
		t.Errorf("found %d documents", found)
	}
}

// TestDocumentedSpecs compiles every whole spec that a document shows.
func TestDocumentedSpecs(t *testing.T) {
	found := 0
	documents(t, func(name, text string) {
		for _, block := range strings.Split(text, "```yaml\n")[1:] {
			block, _, _ = strings.Cut(block, "```")
			if !strings.HasPrefix(block, "version: "+jobspec.Version) {
				continue
			}
			found++
			spec, err := jobspec.Parse([]byte(block))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if _, problems := operator.Compile(spec, 0, nil); problems != nil {
				t.Errorf("%s: %v", name, problems)
			}
		}
	})
	if found == 0 {
		t.Error("no document shows a spec")
	}
}

// TestLinks checks that what documents point to in this module is there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:\s]+)(#[^)]*)?\)`)
	documents(t, func(name, text string) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s points to %s, which is not there", name, m[1])
			}
		}
	})
}

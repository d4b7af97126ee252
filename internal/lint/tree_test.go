// Package lint holds the house rules that a machine can check: which package imports which, what keeps the core pure,
// and style. They run with the other tests.
package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/weftdata/weft"
)

// pkg is one folder of Go files, tests included.
type pkg struct {
	dir   string // relative to the module, with slashes
	files []*file
}

type file struct {
	name  string // relative to the module
	test  bool
	lines int
	ast   *ast.File
	fset  *token.FileSet
}

// at names a place in the file.
func (f *file) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.name, f.fset.Position(n.Pos()).Line)
}

// imports calls yield for every import with its path.
func (f *file) imports(yield func(spec *ast.ImportSpec, path string)) {
	for _, s := range f.ast.Imports {
		if p, err := strconv.Unquote(s.Path.Value); err == nil {
			yield(s, p)
		}
	}
}

// code returns the files that are not tests.
func (p *pkg) code() (out []*file) {
	for _, f := range p.files {
		if !f.test {
			out = append(out, f)
		}
	}
	return out
}

func parse(name, src string) (*file, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, name, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	return &file{name, strings.HasSuffix(name, "_test.go"), strings.Count(src, "\n"), tree, fset}, nil
}

// tree parses the whole module. Nested modules have rules of their own.
func tree(t *testing.T) []*pkg {
	t.Helper()
	byDir := map[string]*pkg{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && (strings.ContainsAny(d.Name()[:1], "._") || d.Name() == "testdata" || isModule(name)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parse(rel, string(src))
		if err != nil {
			return err
		}
		dir := path.Dir(rel)
		if byDir[dir] == nil {
			byDir[dir] = &pkg{dir: dir}
		}
		byDir[dir].files = append(byDir[dir].files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []*pkg
	for _, p := range byDir {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pkg) int { return strings.Compare(a.dir, b.dir) })
	if len(all) < 10 {
		t.Fatalf("found %d packages: is %s the root of the module?", len(all), root)
	}
	return all
}

func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// sample is a package of one file, to show that a rule can fail.
func sample(t *testing.T, name, src string) *pkg {
	t.Helper()
	f, err := parse(name, src)
	if err != nil {
		t.Fatal(err)
	}
	return &pkg{dir: path.Dir(name), files: []*file{f}}
}

// report fails the test with every problem.
func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

// expect checks that a rule finds exactly one problem in a sample and says what it must; an empty want expects none.
func expect(t *testing.T, problems []string, want string) {
	t.Helper()
	switch {
	case want == "" && len(problems) > 0:
		t.Errorf("found %q in what is allowed", problems)
	case want != "" && (len(problems) != 1 || !strings.Contains(problems[0], want)):
		t.Errorf("found %q, want one problem with %q", problems, want)
	}
}

package lint

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const fileLinesMax = 900 // what a reader still finds his way in

// vague are the names of packages that say nothing of what is inside.
func vague() []string {
	return []string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "base", "lib"}
}

func styleProblems(p *pkg) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if name := path.Base(p.dir); slices.Contains(vague(), name) {
		bad("%s: a package is named for what it holds, not %s", p.dir, name)
	}
	described := false
	for _, f := range p.files {
		described = described || f.ast.Doc != nil
		if f.lines > fileLinesMax {
			bad("%s: %d lines; at most %d", f.name, f.lines, fileLinesMax)
		}
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if word := unfinished.FindString(c.Text); word != "" {
					bad("%s: %s: finish it, or write an issue", f.at(c), word)
				}
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" && !imports(f.ast, "testing/synctest") {
				if id, ok := s.X.(*ast.Ident); ok && id.Obj == nil && id.Name == "time" {
					bad("%s: wait for what must happen, not for time to pass", f.at(s))
				}
			}
			return true
		})
	}
	if !described {
		bad("%s: no file has a package comment", p.dir)
	}
	for _, f := range p.code() {
		for _, d := range f.ast.Decls {
			for _, name := range undocumented(d) {
				bad("%s: exported %s has no comment", f.at(name), name.Name)
			}
		}
	}
	return problems
}

var unfinished = regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)

// undocumented returns the exported names of a declaration that no comment describes. A comment above a group is one
// for each member.
func undocumented(d ast.Decl) (names []*ast.Ident) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && (d.Recv == nil || receiverExported(d.Recv)) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		if d.Doc != nil || d.Tok == token.IMPORT {
			return nil
		}
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Doc == nil && s.Comment == nil && s.Name.IsExported() {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				for _, name := range s.Names {
					if s.Doc == nil && s.Comment == nil && name.IsExported() {
						names = append(names, name)
					}
				}
			}
		}
	}
	return names
}

// receiverExported tells whether a method belongs to an exported type: others are read where their interface is.
func receiverExported(r *ast.FieldList) bool {
	exported := false
	ast.Inspect(r.List[0].Type, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			exported = exported || id.IsExported()
			return false
		}
		return true
	})
	return exported
}

func TestStyle(t *testing.T) {
	for _, p := range tree(t) {
		report(t, styleProblems(p))
	}
}

// imports tells whether a file imports a package. In a file that imports testing/synctest, time is virtual, and to sleep
// is to wait until nothing else can happen before.
func imports(f *ast.File, path string) bool {
	for _, i := range f.Imports {
		if i.Path.Value == strconv.Quote(path) {
			return true
		}
	}
	return false
}

func TestStyleCanFail(t *testing.T) {
	const doc = "// Package x is a sample.\npackage x\n"
	for _, c := range []struct{ name, src, want string }{
		{"x/a.go", doc, ""},
		{"x/a.go", "package x\n", "no file has a package comment"},
		{"x/util/a.go", doc, "not util"},
		{"x/a.go", doc + strings.Repeat("\n", fileLinesMax), "at most 900"},
		{"x/a.go", doc + "// TODO: more\n", "TODO: finish it"},
		{"x/a.go", doc + "const a = `TODO`\n", ""},
		{"x/a_test.go", doc + "import \"time\"\nfunc f() { time.Sleep(1) }\n", "not for time to pass"},
		{"x/a_test.go", doc + "import (\n\"testing/synctest\"\n\"time\"\n)\nfunc f() { time.Sleep(1) }\n", ""},
		{"x/a.go", doc + "func F() {}\n", "exported F has no comment"},
		{"x/a_test.go", doc + "func F() {}\n", ""},
		{"x/a.go", doc + "// F is a sample.\nfunc F() {}\n", ""},
		{"x/a.go", doc + "type T int\n", "exported T has no comment"},
		{"x/a.go", doc + "// T is a sample.\ntype T int\nfunc (T) M() {}\n", "exported M has no comment"},
		{"x/a.go", doc + "type t int\nfunc (*t) M() {}\n", ""},
		{"x/a.go", doc + "const C = 1\n", "exported C has no comment"},
		{"x/a.go", doc + "// The samples.\nconst (\n\tC = 1\n\tD = 2\n)\n", ""},
		{"x/a.go", doc + "var (\n\tV = 1 // is a sample\n)\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, styleProblems(sample(t, c.name, c.src)), c.want) })
	}
}

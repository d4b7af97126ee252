package lint

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// computing is what every package of the core may use: packages that only compute.
//
// What is missing is missing on purpose. os, net, io/fs and log reach outside. context carries a clock. sync would say
// that two goroutines share a core: its caller owns it, and a lock or a sync.Pool in it would make results depend on
// the scheduler or the collector. math/rand makes two runs differ. fmt is here for errors; printing is refused below.
func computing() []string {
	return []string{"bytes", "cmp", "encoding/binary", "encoding/hex", "errors", "fmt", "iter", "maps", "math", "math/bits", "slices",
		"sort", "strconv", "strings", "unicode", "unicode/utf16", "unicode/utf8"}
}

// pure lists the packages of the core with what else each may import; a path that ends in /... stands for what is below
// it. Only correlate and event have no time at all: elsewhere it parses and prints (durations of a spec, layouts of a
// source, zones), and purityProblems refuses the clock.
func pure() map[string][]string {
	return map[string][]string{
		"event":     {},
		"correlate": {"crypto/sha256", "hash/crc32", "unsafe"},
		"jobspec":   {"encoding/json", "io", "regexp", "time", "go.yaml.in/yaml/v3"},
		"decode":    {"regexp", "regexp/syntax", "time", "github.com/hamba/avro/v2", "google.golang.org/protobuf/..."},
		"rules":     {"reflect", "regexp", "regexp/syntax", "time", "unsafe", "cel.dev/cel-go/..."},
		"operator":  {"time"},
	}
}

// outside lists the functions and variables that reach outside although their package is allowed.
func outside() map[string][]string {
	return map[string][]string{
		"time": {"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTimer", "NewTicker", "Local"},
		"fmt":  {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
	}
}

func isAllowed(name string, lists ...[]string) bool {
	for _, list := range lists {
		for _, a := range list {
			if below, ok := strings.CutSuffix(a, "..."); ok && strings.HasPrefix(name, below) || a == name {
				return true
			}
		}
	}
	return false
}

// purityProblems finds what would let the core depend on more than its input.
func purityProblems(p *pkg) (problems []string) {
	extra, ok := pure()[p.dir]
	if !ok {
		return nil
	}
	for _, f := range p.code() {
		bad := func(n ast.Node, format string, args ...any) {
			problems = append(problems, f.at(n)+": "+fmt.Sprintf(format, args...))
		}
		names := map[string]string{} // import paths by the name they have in this file
		f.imports(func(s *ast.ImportSpec, path string) {
			name := path[strings.LastIndexByte(path, '/')+1:]
			if s.Name != nil {
				name = s.Name.Name
			}
			names[name] = path
			switch {
			case name == ".":
				bad(s, "a dot import hides what is used")
			case strings.HasPrefix(path, module+"/"): // the import table decides
			case !isAllowed(path, computing(), extra):
				bad(s, "the core package %s may not import %s", p.dir, path)
			}
		})
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if strings.HasPrefix(c.Text, "//go:linkname") {
					bad(c, "linkname reaches around the imports")
				}
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				bad(n, "the core starts no goroutine")
			case *ast.ChanType, *ast.SendStmt, *ast.SelectStmt:
				bad(n, "the core has no channels")
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					bad(n, "nothing is wired in init")
				}
			case *ast.SelectorExpr:
				// The parser resolves names within the file: one without an object is an import, or of another file.
				if id, ok := n.X.(*ast.Ident); ok && id.Obj == nil && slices.Contains(outside()[names[id.Name]], n.Sel.Name) {
					bad(n, "the core does not use %s.%s", names[id.Name], n.Sel.Name)
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && id.Obj == nil && (id.Name == "print" || id.Name == "println") {
					bad(n, "the core prints nothing")
				}
			}
			return true
		})
	}
	return append(problems, variableProblems(p)...)
}

// variableProblems finds package-level variables that are no constants in all but name: each must be given a value that
// is an error, a compiled pattern, a table or made by a constructor (new..., Make...), and nothing may write to it.
func variableProblems(p *pkg) (problems []string) {
	variables := map[string]*ast.ValueSpec{}
	for _, f := range p.code() {
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, name := range v.Names {
					if name.Name == "_" {
						continue
					}
					variables[name.Name] = v
					if i >= len(v.Values) || !isConstant(v.Values[i]) {
						problems = append(problems, fmt.Sprintf("%s: the variable %s is neither an error nor a table", f.at(name), name.Name))
					}
				}
			}
		}
	}
	for _, f := range p.code() {
		for _, w := range writes(f) {
			id := base(w)
			if id == nil {
				continue
			}
			v := variables[id.Name]
			if v == nil || id.Obj != nil && id.Obj.Decl != v { // a local of that name
				continue
			}
			problems = append(problems, fmt.Sprintf("%s: the variable %s of the package is written to", f.at(w), id.Name))
		}
	}
	return problems
}

// isConstant tells whether a value is one that tables and errors have.
func isConstant(value ast.Expr) bool {
	switch v := value.(type) {
	case *ast.CompositeLit, *ast.BasicLit:
		return true
	case *ast.UnaryExpr:
		return v.Op == token.AND && isConstant(v.X)
	case *ast.CallExpr:
		name := ""
		switch f := v.Fun.(type) {
		case *ast.Ident:
			name = f.Name
		case *ast.SelectorExpr:
			name = f.Sel.Name
		}
		for _, start := range []string{"new", "New", "Make", "MustCompile", "Errorf"} {
			if strings.HasPrefix(name, start) && name != "new" {
				return true
			}
		}
	}
	return false
}

// writes returns the expressions that statements write to or take the address of.
func writes(f *file) (targets []ast.Expr) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				targets = append(targets, n.Lhs...)
			}
		case *ast.IncDecStmt:
			targets = append(targets, n.X)
		case *ast.RangeStmt:
			if n.Tok == token.ASSIGN {
				targets = append(targets, n.Key, n.Value)
			}
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				targets = append(targets, n.X)
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && id.Obj == nil && slices.Contains([]string{"clear", "delete", "copy"}, id.Name) {
				targets = append(targets, n.Args[0])
			}
		}
		return true
	})
	return targets
}

// base returns the variable that an expression is a part of, or nil.
func base(x ast.Expr) *ast.Ident {
	for {
		switch e := x.(type) {
		case *ast.Ident:
			return e
		case *ast.IndexExpr:
			x = e.X
		case *ast.SliceExpr:
			x = e.X
		case *ast.SelectorExpr:
			x = e.X
		case *ast.StarExpr:
			x = e.X
		case *ast.ParenExpr:
			x = e.X
		default:
			return nil
		}
	}
}

func TestPurity(t *testing.T) {
	found := 0
	for _, p := range tree(t) {
		if _, ok := pure()[p.dir]; ok {
			found++
			report(t, purityProblems(p))
		}
	}
	if found != len(pure()) {
		t.Errorf("found %d of the %d packages of the core", found, len(pure()))
	}
}

func TestPurityCanFail(t *testing.T) {
	for _, c := range []struct{ name, src, want string }{
		{"nothing", `const a = 1`, ""},
		{"time in correlate", `import "time"; var _ time.Duration`, "may not import time"},
		{"files", `import "os"`, "may not import os"},
		{"locks", `import "sync"`, "may not import sync"},
		{"random", `import "math/rand/v2"`, "may not import math/rand/v2"},
		{"third party", `import "github.com/x/y"`, "may not import github.com/x/y"},
		{"dot import", `import . "strings"`, "dot import"},
		{"printing", `import "fmt"; func f() { fmt.Println() }`, "does not use fmt.Println"},
		{"renamed", `import x "fmt"; func f() { x.Printf("") }`, "does not use fmt.Printf"},
		{"errors are made", `import "fmt"; func f() error { return fmt.Errorf("") }`, ""},
		{"a local named fmt", `import "fmt"; type a struct { Print int }; var _ = fmt.Errorf; func f(fmt a) int { return fmt.Print }`, ""},
		{"builtin print", `func f() { println() }`, "prints nothing"},
		{"goroutine", `func f() { go f() }`, "no goroutine"},
		{"channel", `func f(c chan int) {}`, "no channels"},
		{"send", `func f[T any](c T) { c <- 1 }`, "no channels"},
		{"select", `func f() { select {} }`, "no channels"},
		{"init", `func init() {}`, "nothing is wired in init"},
		{"method init", `type a int; func (a) init() {}`, ""},
		{"linkname", "//go:linkname f runtime.f\nfunc f()", "linkname"},
		{"error", `import "errors"; var ErrX = errors.New("x")`, ""},
		{"table", `var a = [...]int{1}; func f() int { return a[0] }`, ""},
		{"zero variable", `var a int`, "neither an error nor a table"},
		{"computed", `var a = f(); func f() int { return 1 }`, "neither an error nor a table"},
		{"allocated", `var a = new(int)`, "neither an error nor a table"},
		{"assigned", `var a = []int{1}; func f() { a = nil }`, "a of the package is written to"},
		{"element", `var a = []int{1}; func f() { a[0]++ }`, "a of the package is written to"},
		{"member", `var a = s{}; type s struct { b []int }; func f() { a.b[0] = 1 }`, "a of the package is written to"},
		{"address", `var a = s{}; type s struct{}; func f() *s { return &a }`, "a of the package is written to"},
		{"emptied", `var a = map[int]int{}; func f() { clear(a) }`, "a of the package is written to"},
		{"range", `var a = []int{1}; func f() { for a[0] = range 3 {} }`, "a of the package is written to"},
		{"a local of that name", `var a = []int{1}; func f() { a := 1; a = 2; _ = a }`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			expect(t, purityProblems(sample(t, "correlate/a.go", "package x\n"+c.src+"\n")), c.want)
		})
	}
	for _, name := range outside()["time"] {
		src := "package x\nimport \"time\"\nvar _ = time." + name + "\n"
		expect(t, purityProblems(sample(t, "operator/a.go", src)), "does not use time."+name)
		expect(t, purityProblems(sample(t, "operator/a_test.go", src)), "")
		expect(t, purityProblems(sample(t, "backfill/a.go", src)), "")
	}
}

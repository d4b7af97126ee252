package lint

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// may says which packages of the module a package imports.
type may struct {
	code []string
	test []string // its tests, beside code and the package itself
}

// anything is for the one place that puts everything together.
const anything = "*"

// core is what decides results. It knows no file, no network and no clock.
func core(more ...string) []string {
	return append([]string{"event", "jobspec", "decode", "rules", "correlate", "operator"}, more...)
}

// table lists every package; one that is not in it does not pass. Those that do not exist yet are here because what
// they may import is decided: workflows are replayed, so they must reach nothing but their activities; streaming and
// backfill drive one core and must not lean on each other; nodes of the API keep nothing, so they see no driver.
func table() map[string]may {
	return map[string]may{
		"event":     {},
		"jobspec":   {},
		"decode":    {code: []string{"event", "jobspec"}},
		"correlate": {code: []string{"event"}},
		"rules":     {code: []string{"event", "jobspec", "correlate"}},
		"operator": {code: []string{"event", "jobspec", "decode", "rules", "correlate"}, // its tests measure the whole engine
			test: []string{"lines", "archive", "results", "backfill", "examples", "paygen"}},

		"lines":          {code: []string{"event"}},
		"archive":        {code: []string{"event", "archive/pqfile"}},
		"archive/pqfile": {},
		"columns":        {code: []string{"event", "jobspec", "archive/pqfile"}, test: []string{"operator", "decode"}},
		"spill":          {code: []string{"event", "correlate"}},
		"results":        {code: []string{"event", "jobspec", "correlate", "archive/pqfile"}},
		"backfill":       {code: core("lines", "archive", "archive/pqfile", "columns", "spill", "results", "store", "objstore"), test: []string{"paygen", "examples", "objstore/objtest"}},

		"examples": {},
		"paygen":   {code: []string{"event", "examples"}, test: core("backfill", "lines", "results")},

		"streaming":        {code: core("spill"), test: []string{"paygen"}},               // a benchmark
		"archiver":         {code: core("archive"), test: []string{"paygen", "backfill"}}, // what it writes is replayed
		"publisher":        {code: []string{"event", "jobspec", "correlate", "results", "store", "objstore", "archive/pqfile"}, test: []string{"objstore/objtest"}},
		"registry":         {code: []string{"jobspec", "objstore"}, test: []string{"objstore/objtest"}},
		"metrics":          {code: core("streaming", "archiver", "publisher"), test: []string{"spill"}},
		"stack":            {},
		"store":            {code: []string{"event", "jobspec", "correlate", "results"}},
		"kafka":            {code: []string{"event", "jobspec", "correlate"}},
		"objstore":         {code: []string{"event", "jobspec", "correlate"}, test: []string{"objstore/objtest"}},
		"objstore/objtest": {code: []string{"objstore"}},
		"activities":       {code: []string{"streaming", "archiver", "publisher", "backfill", "registry", "store"}},
		"workflows":        {code: []string{"activities"}},
		"agent":            {code: []string{"activities", "registry", "objstore"}, test: []string{"objstore/objtest"}},
		"workers": {code: core("lines", "archive", "results", "backfill", "streaming", "archiver", "publisher", "registry", "stack", "store",
			"kafka", "objstore", "activities", "workflows"), test: []string{"paygen", "examples"}}, // gates judge versions of an environment
		"api": {code: []string{"registry", "store", "web"}},
		"web": {code: []string{"registry", "store"}},

		"cmd/weft":      {code: []string{anything}},
		"internal/lint": {test: core()}, // to hold the documents against the code
	}
}

func importProblems(p *pkg, allowed map[string]may) (problems []string) {
	m, ok := allowed[p.dir]
	if !ok {
		return []string{fmt.Sprintf("%s: the package is not in the import table of internal/lint: say there what it may import", p.dir)}
	}
	for _, f := range p.files {
		list := m.code
		if f.test {
			list = slices.Concat(m.code, m.test, []string{p.dir})
		}
		for _, spec := range f.ast.Imports {
			name := strings.Trim(spec.Path.Value, `"`)
			ours, found := strings.CutPrefix(name, module+"/")
			if !found || slices.Contains(list, anything) || slices.Contains(list, ours) {
				continue
			}
			problems = append(problems, fmt.Sprintf("%s: %s may not import %s", f.at(spec), p.dir, ours))
		}
	}
	return problems
}

func TestImports(t *testing.T) {
	allowed := table()
	for _, p := range tree(t) {
		report(t, importProblems(p, allowed))
	}
}

func TestImportsCanFail(t *testing.T) {
	source := func(name, imported string) *pkg {
		return sample(t, name, "package x\n\nimport _ \""+module+"/"+imported+"\"\n")
	}
	for _, c := range []struct{ name, imported, want string }{
		{"correlate/a.go", "event", ""},
		{"correlate/a.go", "jobspec", "correlate may not import jobspec"},
		{"correlate/a_test.go", "correlate", ""},
		{"backfill/a.go", "streaming", "backfill may not import streaming"},
		{"streaming/a.go", "backfill", "streaming may not import backfill"},
		{"workflows/a.go", "activities", ""},
		{"workflows/a.go", "store", "workflows may not import store"},
		{"paygen/a.go", "decode", "paygen may not import decode"},
		{"paygen/a_test.go", "decode", ""},
		{"newcomer/a.go", "event", "newcomer: the package is not in the import table"},
		{"cmd/weft/a.go", "results", ""},
	} {
		t.Run(c.name+" "+c.imported, func(t *testing.T) { expect(t, importProblems(source(c.name, c.imported), table()), c.want) })
	}
}

// TestTableIsClosed finds names in the table that are misspelt: whatever may be imported is in the table too.
func TestTableIsClosed(t *testing.T) {
	all := table()
	for name, m := range all {
		for _, other := range slices.Concat(m.code, m.test) {
			if _, ok := all[other]; !ok && other != anything {
				t.Errorf("%s may import %s, which is not in the table", name, other)
			}
		}
	}
}

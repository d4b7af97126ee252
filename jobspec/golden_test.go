package jobspec

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// TestValid compares every spec of testdata/valid with the values read from it (*.spec) and its drawing (*.explain).
func TestValid(t *testing.T) {
	for _, file := range specFiles(t, "valid") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			spec, err := Parse(readFile(t, file))
			if err != nil {
				t.Fatalf("%s is not valid:\n%v", file, err)
			}
			base := strings.TrimSuffix(file, ".yaml")
			golden(t, base+".spec", dump(spec))
			explained := Explain(spec)
			for _, line := range strings.Split(explained, "\n") {
				if n := len([]rune(line)); n > explainWidth {
					t.Errorf("a line of the drawing has %d columns: %s", n, line)
				}
			}
			golden(t, base+".explain", explained)
		})
	}
}

// TestInvalid compares the problems of every spec of testdata/invalid, each with its line, with *.problems.
func TestInvalid(t *testing.T) {
	for _, file := range specFiles(t, "invalid") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text := readFile(t, file)
			_, err := Parse(text)
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("%s has no problems: %v", file, err)
			}
			var b strings.Builder
			for _, p := range problems {
				fmt.Fprintf(&b, "%v\n%s\n\n", p, Excerpt(text, p.Pos))
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".problems", b.String())
		})
	}
}

func specFiles(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", folder, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no specs in testdata/%s: %v", folder, err)
	}
	return files
}

func readFile(t testing.TB, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := string(readFile(t, file)); got != want {
		t.Errorf("%s differs; -rewrite updates it. got:\n%s\nwant:\n%s", file, got, want)
	}
}

// dump writes a spec's values, one part a line.
func dump(s *Spec) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version=%s job=%s shard_by=%q user=%q ignore=%q expect=%q\n", s.Version, s.Job, s.ShardBy, s.User, s.Ignore, s.Expect)
	for i, source := range s.Sources {
		fmt.Fprintf(&b, "\nsource %d %s at %v topic=%s each=%q dedupe=%q shard=%q\n", i, source.Name, source.Pos, source.Topic,
			source.Each, source.Dedupe, source.Shard)
		fmt.Fprintf(&b, "  format %+v\n", source.Format)
		for _, c := range source.Where {
			fmt.Fprintf(&b, "  where %s is %q at %v\n", c.Path, c.Values, c.Pos)
		}
		fmt.Fprintf(&b, "  time %+v\n", source.Time)
		fmt.Fprintf(&b, "  step %+v\n", source.Step)
		for _, k := range source.Keys {
			fmt.Fprintf(&b, "  key %s %+v\n", s.Kinds[k.Kind].Name, k)
		}
		for _, f := range source.Fields {
			fmt.Fprintf(&b, "  field %s %+v\n", s.Fields[f.Field].Name, f)
		}
	}
	fmt.Fprintf(&b, "\nkinds %v\nfields %v\nsession %+v\nwatermark %+v\n", s.Kinds, s.Fields, s.Session, s.Watermark)
	for _, sc := range s.Scenarios {
		fmt.Fprintf(&b, "scenario %s %s at %v\n  when %v %q\n", sc.Name, sc.Severity, sc.Pos, sc.When.Pos, sc.When.Text)
		if sc.After != nil {
			fmt.Fprintf(&b, "  %v after %v %q\n", sc.After.Within, sc.After.From.Pos, sc.After.From.Text)
		}
	}
	for _, r := range s.Reports {
		fmt.Fprintf(&b, "report %+v\n", r)
	}
	fmt.Fprintf(&b, "sinks %+v\nrollback_window=%v approval=%s freeze=%q\n", s.Sinks, s.RollbackWindow, s.Approval, s.Freeze)
	if s.Canary != nil {
		fmt.Fprintf(&b, "canary by %s steps %v", s.Canary.By, s.Canary.Steps)
		if s.Canary.WarmUp > 0 {
			fmt.Fprintf(&b, " warm up %s", s.Canary.WarmUp)
		}
		b.WriteString("\n")
		for _, g := range s.Canary.Gates {
			fmt.Fprintf(&b, "  gate %+v\n", g)
		}
	}
	fmt.Fprintf(&b, "resources %+v\nlimits %+v\n", s.Resources, s.Limits)
	return b.String()
}

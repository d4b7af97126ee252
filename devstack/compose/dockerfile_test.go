package compose

import (
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestImageOfWeft checks the Dockerfile without a container engine: what it copies from the repository is there, and what
// .dockerignore leaves is enough to build weft and no more than that.
func TestImageOfWeft(t *testing.T) {
	dir := root(t)
	text, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	recipe := string(text)
	for _, want := range []string{"\nUSER 65532:65532\n", "\nENTRYPOINT [\"/weft\"]\n", "\nFROM scratch\n", "CGO_ENABLED=0 go build -trimpath ", " /state/ /var/lib/\n", "mkdir -p /state/weft\n"} {
		if !strings.Contains(recipe, want) {
			t.Errorf("the Dockerfile has no %q", want)
		}
	}
	context := filepath.Join(t.TempDir(), "context")
	size := copyContext(t, dir, context)
	for _, m := range regexp.MustCompile(`(?m)^COPY ([^-].*) \S+$`).FindAllStringSubmatch(recipe, -1) {
		for _, name := range strings.Fields(m[1]) {
			if _, err := os.Stat(filepath.Join(context, name)); err != nil {
				t.Errorf("COPY %s: %v", name, err)
			}
		}
	}
	t.Logf("the context has %d KiB", size>>10)
	if size > 8<<20 {
		t.Errorf("the context has %d bytes: add what the build does not need to .dockerignore", size)
	}
	for _, name := range []string{".git", "devstack", "bin", ".env"} {
		if _, err := os.Stat(filepath.Join(context, name)); err == nil {
			t.Errorf("%s is in the context", name)
		}
	}
	// Every package and every file that is embedded must be there.
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Error}}{{.}}{{end}}", "./cmd/weft")
	list.Dir = context
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := list.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "" {
		t.Errorf("what .dockerignore leaves does not build: %v\n%s", err, out)
	}
}

// copyContext copies what .dockerignore leaves, and returns its size.
func copyContext(t *testing.T, from, to string) (size int64) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(from, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	var patterns []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			if strings.ContainsAny(strings.TrimPrefix(line, "**/"), "/!?[") {
				t.Fatalf(".dockerignore: this test knows names in the root and **/patterns of names, not %s", line)
			}
			patterns = append(patterns, line)
		}
	}
	ignored := func(name string) bool {
		for _, p := range patterns {
			base, anywhere := strings.CutPrefix(p, "**/")
			if ok, _ := path.Match(base, path.Base(name)); ok && (anywhere || name == path.Base(name)) {
				return true
			}
		}
		return false
	}
	err = fs.WalkDir(os.DirFS(from), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name != "." && ignored(name) && d.IsDir():
			return fs.SkipDir
		case name != "." && ignored(name):
			return nil
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		size += int64(len(data))
		return os.WriteFile(filepath.Join(to, name), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}

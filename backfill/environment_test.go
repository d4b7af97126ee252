package backfill

import (
	"bufio"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/results"
)

// long makes these tests draw more seeds and cuts: go test ./backfill -long
var long = flag.Bool("long", false, "draw more seeds and cuts")

// environment is a folder with the records of a generated payment environment, its job and its truth.
type environment struct {
	dir    string
	job    *operator.Job
	inputs []Input
}

func generate(t *testing.T, seed uint64, orders int, span time.Duration) *environment {
	t.Helper()
	e := &environment{dir: t.TempDir()}
	_, err := paygen.Generate(paygen.Config{
		Orders: orders, Seed: seed, Start: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), Span: span,
	}, func(name string) (io.WriteCloser, error) { return os.Create(e.path(name)) })
	if err != nil {
		t.Fatal(err)
	}
	e.job = compile(t, string(readFile(t, e.path(paygen.JobFile))))
	for _, s := range paygen.Sources() {
		e.inputs = append(e.inputs, Input{Source: s[0], Path: e.path(s[1])})
	}
	return e
}

func (e *environment) path(name string) string { return filepath.Join(e.dir, name) }

// unsharded is the same environment, with a job that has one shard.
func (e *environment) unsharded(t *testing.T) *environment {
	t.Helper()
	text := strings.Replace(string(e.job.Spec.Text), "\nshard_by: game\n", "\n", 1)
	if text == string(e.job.Spec.Text) {
		t.Fatal("the generated job has no shard_by to take out")
	}
	return &environment{e.dir, compile(t, text), e.inputs}
}

func compile(t *testing.T, text string) *operator.Job {
	t.Helper()
	spec, err := jobspec.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	job, err := operator.Compile(spec, uint64(time.Now().UnixNano()), nil) // results must not depend on the seed
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// replay replays the environment with a changed configuration, and returns the summary and the folder of the results.
func (e *environment) replay(t *testing.T, change func(*ReplayConfig)) (*Summary, string) {
	t.Helper()
	cfg := ReplayConfig{Job: e.job, Inputs: e.inputs, Out: t.TempDir(), Format: results.JSONL, TempDir: t.TempDir(), MemoryBytes: 1 << 30}
	if change != nil {
		change(&cfg)
	}
	s, err := Replay(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if left := names(t, cfg.TempDir); len(left) > 0 {
		t.Errorf("left in the folder for what does not fit in memory: %v", left)
	}
	return s, cfg.Out
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// names returns the names of the files in a folder, in order.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// sortedLines returns the lines of files, sorted.
func sortedLines(t *testing.T, paths ...string) (list []string) {
	t.Helper()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		scan := bufio.NewScanner(f)
		scan.Buffer(nil, 1<<26)
		for scan.Scan() {
			list = append(list, scan.Text())
		}
		if err := scan.Err(); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	slices.Sort(list)
	return list
}

// sameLines compares sorted lists of lines and shows the first that differ.
func sameLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	i, j, shown := 0, 0, 0
	for (i < len(got) || j < len(want)) && shown < 5 {
		switch {
		case j == len(want) || i < len(got) && got[i] < want[j]:
			t.Errorf("%s: not expected: %.500s", what, got[i])
			i, shown = i+1, shown+1
		case i == len(got) || want[j] < got[i]:
			t.Errorf("%s: missing: %.500s", what, want[j])
			j, shown = j+1, shown+1
		default:
			i, j = i+1, j+1
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d lines, want %d", what, len(got), len(want))
	}
}

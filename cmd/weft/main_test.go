package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/jobspec"
)

const validSpec = `version: weft/v1
job: payments
sources:
  orders: {format: json, time: at, step: event, keys: {order: order_id}}
session: {gap: 1h}
scenarios:
  - {name: lost, when: 'step("paid").count > 0'}
`

// weft runs a command line and returns its exit code and output.
func weft(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// specFolder returns a folder with a valid spec and with files that are no specs.
func specFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"good.yaml":    validSpec,
		"bad.yaml":     strings.Replace(validSpec, "gap: 1h", "gap: 1 hour", 1) + "usr: x\n",
		"empty.yaml":   " \n",
		"binary.yaml":  "\x7fELF\x00\x01",
		"large.yaml":   strings.Repeat("#\n", jobspec.TextBytesMax),
		"folder/x.txt": "",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCommandLines(t *testing.T) {
	t.Chdir(specFolder(t))
	for _, c := range []struct {
		name           string
		args           string
		stdin          string
		code           int
		stdout, stderr string // text that they hold; empty: they are empty
	}{
		{"help", "", "", 0, "Usage:", ""},
		{"version", "--version", "", 0, "weft version ", ""},
		{"unknown command", "sepc", "", 2, "", `weft: unknown command "sepc" for "weft" (did you mean "spec"?)` + "\nRun 'weft --help' for usage.\n"},
		{"unknown subcommand", "spec chek", "", 2, "", `weft: unknown command "chek" for "weft spec" (did you mean "check"?)`},
		{"unknown flag", "spec check --jsno x", "", 2, "", "weft: unknown flag: --jsno\nRun 'weft spec check --help' for usage.\n"},
		{"missing argument", "spec check", "", 2, "", "requires at least 1 arg"},
		{"group alone", "spec", "", 0, "Available Commands:", ""},
		{"valid", "spec check good.yaml", "", 0, "good.yaml: ok: job payments, 1 source, 1 scenario, 0 reports\n", ""},
		{"standard input", "spec check -", validSpec, 0, "-: ok: job payments", ""},
		{"invalid", "spec check bad.yaml", "", 2, "",
			"bad.yaml:5:16: session.gap: expected a duration such as 30m, 1h30m or 7d, got \"1 hour\"\n" +
				"    session: {gap: 1 hour}\n                   ^\n" +
				"bad.yaml:8:1: usr: unknown field \"usr\" (did you mean \"user\"?)\n    usr: x\n    ^\n"},
		{"valid and invalid", "spec check good.yaml empty.yaml", "", 2, "good.yaml: ok", "empty.yaml: is empty"},
		{"missing file", "spec check none.yaml", "", 2, "", "none.yaml: no such file or directory\n"},
		{"folder", "spec check folder", "", 2, "", "folder: is a directory, expected a YAML file\n"},
		{"binary", "spec check binary.yaml", "", 2, "", "binary.yaml: is no UTF-8 text, expected a YAML file\n"},
		{"large", "spec check large.yaml", "", 2, "", "large.yaml: is larger than a spec may be (1048576 bytes)\n"},
		{"explain", "spec explain good.yaml", "", 0, "job payments, one shard\n", ""},
		{"explain an invalid one", "spec explain bad.yaml", "", 2, "", "bad.yaml:5:16: session.gap:"},
		{"schema", "spec schema", "", 0, `"$schema": "https://json-schema.org/draft/2020-12/schema"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := weft(c.stdin, strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, stream := range []struct{ name, got, want string }{{"stdout", stdout, c.stdout}, {"stderr", stderr, c.stderr}} {
				if !strings.Contains(stream.got, stream.want) || stream.want == "" && stream.got != "" {
					t.Errorf("%s is\n%s\nwant\n%s", stream.name, stream.got, stream.want)
				}
			}
		})
	}
}

func TestCheckJSON(t *testing.T) {
	t.Chdir(specFolder(t))
	code, stdout, stderr := weft("", "spec", "check", "--json", "good.yaml", "bad.yaml", "none.yaml")
	if code != exitUsage || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	var results []checkResult
	if err := json.Unmarshal([]byte(stdout), &results); err != nil {
		t.Fatal(err)
	}
	if len(results) != 3 || !results[0].Valid || results[0].Job != "payments" || len(results[0].Problems) != 0 {
		t.Fatalf("results are %+v", results)
	}
	want := checkProblem{Line: 8, Column: 1, Path: "usr", Message: `unknown field "usr"`, Hint: `did you mean "user"?`}
	if got := results[1].Problems; len(got) != 2 || got[1] != want {
		t.Errorf("problems are %+v, want %+v last", got, want)
	}
	if got := results[2].Problems; len(got) != 1 || got[0] != (checkProblem{Message: "no such file or directory"}) {
		t.Errorf("problems are %+v", got)
	}
}

func TestEveryCommandIsDocumented(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%q has no short text or no example", c.CommandPath())
		}
		if c.RunE == nil {
			t.Errorf("%q has no RunE, so its errors would count as wrong usage", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand())
}

func TestAssetsStayBesideTheSpec(t *testing.T) {
	dir := specFolder(t)
	outside := filepath.Join(t.TempDir(), "secret")
	for file, data := range map[string][]byte{
		outside:                              []byte("secret"),
		filepath.Join(dir, "folder", "s.pb"): []byte("schema"),
		filepath.Join(dir, "most.pb"):        make([]byte, assetBytesMax),
		filepath.Join(dir, "more.pb"):        make([]byte, assetBytesMax+1),
	} {
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link.pb")); err != nil {
		t.Fatal(err)
	}
	read := assetsBeside(filepath.Join(dir, "good.yaml"))
	if data, err := read("folder/s.pb"); err != nil || string(data) != "schema" {
		t.Errorf("folder/s.pb is %q, %v", data, err)
	}
	if data, err := read("most.pb"); err != nil || len(data) != assetBytesMax {
		t.Errorf("most.pb has %d bytes, %v", len(data), err)
	}
	for name, want := range map[string]string{
		outside:        "path escapes from parent",
		"../secret":    "path escapes from parent",
		"folder/../..": "path escapes from parent",
		"link.pb":      "path escapes from parent",
		"none.pb":      "none.pb: no such file or directory",
		"folder":       "folder: not a regular file",
		"more.pb":      "more.pb: larger than 16777216 bytes",
	} {
		if data, err := read(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is %d bytes, %v; want %s", name, len(data), err, want)
		}
	}
}

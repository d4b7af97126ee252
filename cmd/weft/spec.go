package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/decode"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
)

// assetBytesMax bounds one file that a spec names.
const assetBytesMax = 16 << 20

func newSpecCommand() *cobra.Command {
	return newGroup("spec", "Check, explain and describe job specs",
		"  weft spec check payments.yaml\n  weft spec schema > weft.schema.json",
		newSpecCheckCommand(), newSpecSchemaCommand(), newSpecExplainCommand(),
	)
}

func newSpecCheckCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check FILE...",
		Short: "Check job specs and say where and how to mend them",
		Long: "Check job specs: their form, names, CEL expressions and decoders.\n" +
			"Every problem is printed with its place, its line and a hint. FILE may be - for standard input.\n" +
			"The exit code is 0 where all specs are valid and 2 where one is not.",
		Example: "  weft spec check payments.yaml\n  weft spec check --json jobs/*.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, files []string) error {
			show := showText
			if asJSON {
				show = showJSON
			}
			valid := true
			var results []checkResult
			for _, file := range files {
				result := checkFile(file, c.InOrStdin())
				valid = valid && result.Valid
				results = append(results, result)
			}
			if err := show(c, results); err != nil {
				return err
			}
			if !valid {
				return &exitError{code: exitUsage}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON array of results to standard output")
	return c
}

func newSpecSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of job specs, for editors to complete and check",
		Long: "Print the JSON Schema (draft 2020-12) of job specs. An editor with a YAML language server uses it\n" +
			"where the spec starts with the line: # yaml-language-server: $schema=weft.schema.json",
		Example: "  weft spec schema > weft.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(jobspec.Schema())
			return err
		},
	}
}

func newSpecExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "explain FILE",
		Short:   "Draw what a job spec does, from sources to sinks, with warnings",
		Example: "  weft spec explain payments.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, files []string) error {
			result := checkFile(files[0], c.InOrStdin())
			if !result.Valid {
				if err := showText(c, []checkResult{result}); err != nil {
					return err
				}
				return &exitError{code: exitUsage}
			}
			_, err := io.WriteString(c.OutOrStdout(), jobspec.Explain(result.spec))
			return err
		},
	}
}

// checkResult is what a check found in one file.
type checkResult struct {
	File      string         `json:"file"`
	Valid     bool           `json:"valid"`
	Job       string         `json:"job,omitempty"`
	Sources   int            `json:"sources"`
	Scenarios int            `json:"scenarios"`
	Reports   int            `json:"reports"`
	Problems  []checkProblem `json:"problems"`
	// Interpreted lists rules that work but run many times slower than others.
	Interpreted []string `json:"interpreted,omitempty"`

	spec *jobspec.Spec
	job  *operator.Job // nil where the spec is not valid
	text []byte
}

// checkProblem is one problem; line and column count from 1 and are 0 where the file as a whole is meant.
type checkProblem struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// checkFile reads and checks one spec.
func checkFile(file string, stdin io.Reader) checkResult {
	result := checkResult{File: file, Problems: []checkProblem{}}
	text, err := readSpec(file, stdin)
	if err == nil {
		result.text = text
		result.spec, err = jobspec.Parse(text)
	}
	if err == nil {
		var seed [8]byte
		rand.Read(seed[:]) // never fails
		result.job, err = operator.Compile(result.spec, binary.LittleEndian.Uint64(seed[:]), assetsBeside(file))
	}
	var problems jobspec.Problems
	switch {
	case err == nil:
		result.Valid, result.Job, result.Interpreted = true, result.spec.Job, result.job.Interpreted
		result.Sources, result.Scenarios, result.Reports = len(result.spec.Sources), len(result.spec.Scenarios), len(result.spec.Reports)
	case errors.As(err, &problems):
		for _, p := range problems {
			result.Problems = append(result.Problems, checkProblem{p.Pos.Line, p.Pos.Column, p.Path, p.Message, p.Hint})
		}
	default:
		result.Problems = append(result.Problems, checkProblem{Message: err.Error()})
	}
	return result
}

// readSpec reads a spec's text; "-" is standard input. Its errors do not repeat the name of the file.
func readSpec(file string, stdin io.Reader) ([]byte, error) {
	if file != "-" {
		info, err := os.Stat(file)
		if err != nil {
			return nil, bareError(err)
		}
		if info.IsDir() {
			return nil, errors.New("is a directory, expected a YAML file")
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, bareError(err)
		}
		defer f.Close() // only read
		stdin = f
	}
	text, err := io.ReadAll(io.LimitReader(stdin, jobspec.TextBytesMax+1))
	switch {
	case err != nil:
		return nil, bareError(err)
	case len(text) > jobspec.TextBytesMax:
		return nil, fmt.Errorf("is larger than a spec may be (%d bytes)", jobspec.TextBytesMax)
	case !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0:
		return nil, errors.New("is no UTF-8 text, expected a YAML file")
	case len(bytes.TrimSpace(text)) == 0:
		return nil, errors.New("is empty, expected a spec that starts with version: " + jobspec.Version)
	}
	return text, nil
}

// bareError is an error of the file system without the operation and the path.
func bareError(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// assetsBeside reads the files that a spec names: regular ones in the folder of the spec or below it.
func assetsBeside(spec string) decode.Assets {
	return func(name string) ([]byte, error) {
		root, err := os.OpenRoot(filepath.Dir(spec))
		if err != nil {
			return nil, err
		}
		defer root.Close() // only read
		info, err := root.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, bareError(err))
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: not a regular file", name)
		}
		f, err := root.Open(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, bareError(err))
		}
		defer f.Close() // only read
		data, err := io.ReadAll(io.LimitReader(f, assetBytesMax+1))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, bareError(err))
		}
		if len(data) > assetBytesMax {
			return nil, fmt.Errorf("%s: larger than %d bytes", name, assetBytesMax)
		}
		return data, nil
	}
}

// showText prints a line for every valid spec to standard output, and every problem with its line to standard error.
func showText(c *cobra.Command, results []checkResult) error {
	for _, r := range results {
		var err error
		if r.Valid {
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: ok: job %s, %s, %s, %s\n", r.File, r.Job,
				count(r.Sources, "source"), count(r.Scenarios, "scenario"), count(r.Reports, "report"))
		}
		for _, rule := range r.Interpreted {
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: note: slow rule: %s\n", r.File, rule)
		}
		for _, p := range r.Problems {
			_, err = io.WriteString(c.ErrOrStderr(), p.text(r))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// text formats a problem for a person.
func (p checkProblem) text(r checkResult) string {
	var b strings.Builder
	b.WriteString(r.File + ":")
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
	}
	b.WriteString(" ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	b.WriteString("\n")
	if excerpt := jobspec.Excerpt(r.text, jobspec.Pos{Line: p.Line, Column: p.Column}); excerpt != "" {
		b.WriteString("    " + strings.ReplaceAll(excerpt, "\n", "\n    ") + "\n")
	}
	return b.String()
}

func showJSON(c *cobra.Command, results []checkResult) error {
	e := json.NewEncoder(c.OutOrStdout())
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(results)
}

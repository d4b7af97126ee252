package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workflows"
)

// versionInfo is where a version comes from and what it does; its keys are a contract.
type versionInfo struct {
	registry.Version
	Checksum string   `json:"checksum"`        // SHA-256 of the version as it is stored
	Parts    []string `json:"parts,omitempty"` // that it has in its job: serves, candidate, previous, retiring, failed
}

func newJobVersionsCommand() *cobra.Command {
	var asJSON bool
	var at stack.Addresses
	c := &cobra.Command{
		Use:   "versions JOB [VERSION]",
		Short: "List the registered versions of a job, or show where one comes from",
		Long: "List the registered versions of a job: who registered which when and why, on what engine each runs, and what part it has\n" +
			"now. With a number it shows that version: its files, checksums, engine and spec. Versions never change.",
		Example: "  weft job versions payments\n  weft job versions payments 3\n  weft job versions payments 3 --json | jq -r .spec > payments.yaml",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				if n, err := strconv.Atoi(args[1]); err != nil || n < 1 {
					return fmt.Errorf("version %q: expected a number from 1 on", args[1])
				}
				args = args[:1]
			}
			return jobArgument(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error { return showVersions(c, at, args, asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line, one for each version")
	c.Flags().StringVar(&at.S3, "s3", "", "object store, as http://host:port (default $WEFT_S3, or the running stack's)")
	temporalFlags(c, &at)
	return c
}

func showVersions(c *cobra.Command, flags stack.Addresses, args []string, asJSON bool) error {
	ctx := c.Context()
	env, err := openObjects(ctx, flags)
	if err != nil {
		return err
	}
	defer func() { _ = env.Close() }() // only read
	job := args[0]
	list, err := registry.New(env.Objects).List(ctx, job)
	if err != nil {
		return err
	}
	if len(args) == 2 {
		list = slices.DeleteFunc(list, func(v registry.Version) bool { return strconv.Itoa(v.Number) != args[1] })
	}
	if len(list) == 0 {
		return fmt.Errorf("there is no such version of %s in the registry (weft deploy registers one; weft jobs lists jobs)", job)
	}
	parts, err := partsOf(c, flags, job)
	if err != nil && !errors.Is(err, stack.ErrNotFound) {
		fmt.Fprintf(c.ErrOrStderr(), "weft: what part each has is not known: %v\n", err)
	}
	infos := make([]versionInfo, len(list))
	for i, v := range list {
		infos[i] = versionInfo{v, v.Checksum, parts[v.Number]}
	}
	switch {
	case asJSON:
		return printLines(c.OutOrStdout(), infos)
	case len(args) == 2:
		return printVersion(c.OutOrStdout(), &infos[0])
	}
	return printVersions(c.OutOrStdout(), infos)
}

// partsOf asks the workflow of a job what part each version has.
func partsOf(c *cobra.Command, flags stack.Addresses, job string) (map[int][]string, error) {
	var s workflows.JobStatus
	err := asTemporal(c, flags, func(ctx context.Context, t client.Client, _ stack.Addresses) error {
		return jobAnswer(ctx, t, job, workflows.QueryStatus, &s)
	})
	if err != nil {
		return nil, err
	}
	parts := map[int][]string{}
	add := func(what string, p *workflows.Placed) {
		if p != nil {
			parts[p.Version] = append(parts[p.Version], what)
		}
	}
	add("serves", s.Current)
	add("candidate", s.Candidate)
	add("previous", s.Previous)
	for i := range s.Retiring {
		add("retiring", &s.Retiring[i])
	}
	add("failed", s.Failed)
	return parts, nil
}

func printVersions(w io.Writer, list []versionInfo) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VERSION\tREGISTERED\tBY\tENGINE\tIS\tMESSAGE")
	for _, v := range list {
		engine := "any"
		if v.Engine != nil {
			engine = v.Engine.SHA256[:12]
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", v.Number, v.Created.UTC().Format(time.DateTime), orDash(v.Author), engine,
			orDash(strings.Join(v.Parts, ", ")), strings.Map(printable, v.Message))
	}
	return t.Flush()
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return strings.Map(printable, text)
}

func printVersion(w io.Writer, v *versionInfo) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", name, strings.Map(printable, fmt.Sprintf(format, args...)))
	}
	line("version", "%d of %s", v.Number, v.Job)
	line("registered", "%s by %s", v.Created.UTC().Format(time.DateTime), orDash(v.Author))
	line("message", "%s", orDash(v.Message))
	line("is", "%s", orDash(strings.Join(v.Parts, ", ")))
	if v.Repeats > 0 {
		line("repeats", "version %d, computed anew", v.Repeats)
	}
	line("checksum", "%s", v.Checksum)
	if e := v.Engine; e != nil {
		line("engine", "%s, %s, %s bytes", e.SHA256, e.Platform(), thousands(e.Bytes))
	} else {
		line("engine", "whatever its agent is")
	}
	names := make([]string, 0, len(v.Assets))
	for name := range v.Assets {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		line("file", "%s, %s, %s bytes", name, v.Assets[name].SHA256, thousands(v.Assets[name].Bytes))
	}
	b.WriteString("\n")
	for text := range strings.Lines(v.Spec) {
		b.WriteString(strings.Map(printable, strings.TrimSuffix(text, "\n")) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

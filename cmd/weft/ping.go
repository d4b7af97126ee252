package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

// pingServers are the servers by the names that --only takes.
func pingServers() ([]string, map[string]stack.Server) {
	return []string{"temporal", "kafka", "s3", "store"},
		map[string]stack.Server{"temporal": stack.Temporal, "kafka": stack.Kafka, "s3": stack.S3, "store": stack.Store}
}

type pingFlags struct {
	only  []string
	polls string
	json  bool
	at    stack.Addresses
}

func newPingCommand() *cobra.Command {
	var f pingFlags
	names, _ := pingServers()
	c := &cobra.Command{
		Use:   "ping",
		Short: "Ask every server whether Weft can use it from this machine",
		Long: "Ask every server whether Weft can use it from this machine: Temporal for its namespace and the search attributes, every\n" +
			"broker of Kafka at the address under which it wants to be reached, the object store for conditional writes, and the\n" +
			"serving store for its schema. It changes nothing but an object under weft-probe/, which it deletes. The exit code is 1\n" +
			"where something is wrong. Health checks of containers use it, since it needs no shell.",
		Example: "  weft ping\n  weft ping --only temporal --polls weft    # and a worker of this machine asks for work",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	c.Flags().StringSliceVar(&f.only, "only", nil, "ask only these: "+strings.Join(names, ", "))
	c.Flags().StringVar(&f.polls, "polls", "", "a process of this machine must poll this task queue of Temporal")
	c.Flags().BoolVar(&f.json, "json", false, "print one JSON object a server")
	serverFlags(c, &f.at)
	_ = errors.Join( // they exist
		c.RegisterFlagCompletionFunc("only", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)),
		c.RegisterFlagCompletionFunc("polls", cobra.FixedCompletions([]string{activities.Queue, activities.ArchiveQueue, activities.PublishQueue, activities.BackfillQueue}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

func (f *pingFlags) run(c *cobra.Command) error {
	names, known := pingServers()
	only := f.only
	if len(only) == 0 {
		only = names
	}
	var servers []stack.Server
	for _, name := range only {
		s, ok := known[name]
		if !ok {
			return &exitError{exitUsage, fmt.Errorf("--only %q: expected some of %s", name, strings.Join(names, ", "))}
		}
		if !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	if f.polls != "" && !slices.Contains(servers, stack.Temporal) {
		return &exitError{exitUsage, errors.New("--polls asks Temporal: add temporal to --only")}
	}
	at, err := stack.Find(f.at, servers...)
	if err != nil {
		return err
	}
	answers := workers.Ping(c.Context(), at, f.polls, servers...)
	if f.json {
		err = printLines(c.OutOrStdout(), answers)
	} else {
		err = printAnswers(c, answers)
	}
	if err == nil && slices.ContainsFunc(answers, func(a workers.Answer) bool { return !a.OK }) {
		return &exitError{code: exitFailed}
	}
	return err
}

func printAnswers(c *cobra.Command, answers []workers.Answer) error {
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	for _, a := range answers {
		verdict := "ok      " + a.Text
		if !a.OK {
			verdict = "FAILED  " + strings.ReplaceAll(a.Error, "\n", "; ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", a.Server, a.At, strings.Map(printable, verdict))
	}
	return w.Flush()
}

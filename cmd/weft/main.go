// Command weft checks, runs and operates correlation jobs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	_ "time/tzdata" // zones of specs must not depend on the machine

	"github.com/spf13/cobra"
)

// Exit codes of the command.
const (
	exitFailed = 1 // what was asked for failed
	exitUsage  = 2 // wrong usage, or an invalid spec
)

// exitError ends the command with a code. A nil err was reported already and prints nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes the command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	started := false
	noteStart(root, &started)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := exitFailed
	var exit *exitError
	if errors.As(err, &exit) {
		if code, err = exit.code, exit.err; err == nil {
			return code
		}
	}
	fmt.Fprintln(stderr, "weft:", strings.TrimSpace(err.Error()))
	if !started {
		fmt.Fprintf(stderr, "Run '%s --help' for usage.\n", command.CommandPath())
		return exitUsage
	}
	return code
}

// noteStart makes every command note that it started, since an error before that is one of usage: of a flag, an
// argument or a name.
func noteStart(command *cobra.Command, started *bool) {
	if f := command.RunE; f != nil {
		command.RunE = func(c *cobra.Command, args []string) error {
			*started = true
			return f(c, args)
		}
	}
	for _, sub := range command.Commands() {
		noteStart(sub, started)
	}
}

// newRootCommand returns the command `weft` with all commands below it.
func newRootCommand() *cobra.Command {
	root := newGroup("weft", "Correlate scattered records into business sessions, live and for the past",
		"  weft spec check payments.yaml\n  weft spec explain payments.yaml",
		newAgentCommand(),
		newBackfillCommand(),
		newDeployCommand(),
		newLoadCommand(),
		newJobCommand(),
		newJobsCommand(),
		newPingCommand(),
		newProduceCommand(),
		newRejectsCommand(),
		newReplayCommand(),
		newReportsCommand(),
		newScheduleCommand(),
		newSessionsCommand(),
		newSetupCommand(),
		newSpecCommand(),
		newUsersCommand(),
		newVerifyCommand(),
		newWorkerCommand(),
		newGenCommand(),
	)
	root.Version = version()
	root.SilenceUsage, root.SilenceErrors = true, true
	return root
}

// newGroup returns a command that only holds others; alone it prints its help.
func newGroup(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use:     use,
		Short:   short,
		Example: example,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			c.SuggestionsMinimumDistance = 2
			problem := fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath())
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				problem += fmt.Sprintf(" (did you mean %q?)", near[0])
			}
			return errors.New(problem)
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	group.AddCommand(commands...)
	return group
}

// version returns the version that the Go toolchain stamped into the binary.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" {
		v = "(devel)"
	}
	return v + " " + info.GoVersion
}

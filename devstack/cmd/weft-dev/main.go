// Command weft-dev runs the servers that Weft needs, so that a newcomer needs only Go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/devstack"
	"github.com/weftdata/weft/stack"
)

// Exit codes of the command.
const (
	exitFailed = 1 // what was asked for failed
	exitUsage  = 2 // wrong usage
)

// stopTimeout bounds a graceful end. What is left undone then is what a killed process leaves undone: nothing is lost.
const stopTimeout = 30 * time.Second

// usageError is an error of whoever typed the command.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes the command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := newCommand()
	c.SetArgs(args)
	c.SetOut(stdout)
	c.SetErr(stderr)
	err := c.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, "weft-dev:", err) // nobody is left to tell
	if usage := (usageError{}); errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

func newCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "weft-dev",
		Short: "Run Temporal, Kafka and an object store in one process, for development",
		Long: "weft-dev runs the servers that Weft needs in one process: Temporal on SQLite, Kafka, and S3 over a folder.\n" +
			"They are for development and tests: everything listens on 127.0.0.1, and only the object store asks for a key.",
		Args:          usage(cobra.NoArgs),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(c *cobra.Command, _ []string) error {
			return usageError{errors.New("what to do is missing; weft-dev up --data DIR starts the stack (weft-dev --help)")}
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	c.CompletionOptions.DisableDefaultCmd = true
	c.AddCommand(newUpCommand())
	return c
}

// usage marks the errors of an argument check as those of the user.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

func newUpCommand() *cobra.Command {
	cfg := devstack.Config{UsualPorts: true}
	var asJSON bool
	c := &cobra.Command{
		Use:   "up --data DIR",
		Short: "Start the stack and run it until SIGINT or SIGTERM",
		Long: "Start every server, print where they are once all of them answer, and run until SIGINT (ctrl-C) or SIGTERM.\n\n" +
			"Everything is kept in DIR: another `up` on it finds topics, objects and running workflows as they were, at the\n" +
			"same ports, even if the process was killed. DIR/stack.json says where a running stack is; a copy of it in the\n" +
			"user's cache folder (or the file $WEFT_STACK_FILE) lets weft commands find it by themselves. Logs are in\n" +
			"DIR/logs. The keys of the object store are in files of their own and are never printed.\n\n" +
			"Ports that are not given are those of the last start, or 7233, 9092 and 9000 if free, or others.",
		Example: "  weft-dev up --data ~/weft\n" +
			"  weft-dev up --data /tmp/weft --json | jq -r .temporal\n" +
			"  weft-dev up --data ~/weft --temporal-port 17233 --no-auto-topics",
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			return up(c.Context(), cfg, asJSON, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Data, "data", "", "folder that keeps everything; made if missing")
	f.BoolVar(&asJSON, "json", false, "print the addresses as one line of JSON")
	f.StringVar(&cfg.Bucket, "bucket", stack.DefaultBucket, "bucket to make in the object store")
	f.IntVar(&cfg.TemporalPort, "temporal-port", 0, "port of Temporal")
	f.IntVar(&cfg.KafkaPort, "kafka-port", 0, "port of Kafka")
	f.IntVar(&cfg.S3Port, "s3-port", 0, "port of the object store")
	f.IntVar(&cfg.Partitions, "partitions", 0, "partitions of a topic that is made without a number (default 4)")
	f.BoolVar(&cfg.NoAutoTopics, "no-auto-topics", false, "refuse topics that nobody made")
	return c
}

// up runs a stack until ctx ends or a server fails.
func up(ctx context.Context, cfg devstack.Config, asJSON bool, stdout, stderr io.Writer) (err error) {
	pointer, noPointer := stack.RunningFile() // before the start, which changes the folder that its name may be relative to
	s, err := devstack.Start(ctx, cfg)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil // told to stop before it was up
		}
		return err
	}
	a := s.Addresses()
	files := []string{filepath.Join(a.Data, "stack.json")}
	if noPointer == nil {
		files = append(files, pointer)
	} else {
		_, _ = fmt.Fprintln(stderr, "weft-dev: commands will not find the stack by themselves:", noPointer) // it runs all the same
	}
	defer func() {
		for _, name := range files {
			err = errors.Join(err, stack.Remove(name, a.PID))
		}
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, s.Stop(ending))
	}()
	for _, name := range files {
		if err := stack.Write(name, a); err != nil {
			return err
		}
	}
	if err := show(stdout, a, asJSON); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.Failed():
		return err
	}
}

// show prints the addresses.
func show(w io.Writer, a stack.Addresses, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(a)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"Temporal", a.Temporal + ", namespace " + a.Namespace},
		{"Kafka", a.Kafka},
		{"S3", a.S3 + ", bucket " + a.S3Bucket},
		{"keys of S3", strings.Join([]string{a.S3AccessKeyFile, a.S3SecretKeyFile}, ", ")},
		{"store", a.Store},
		{"logs", filepath.Join(a.Data, "logs")},
	} {
		if _, err := fmt.Fprintf(t, "%s\t%s\n", row[0], row[1]); err != nil {
			return err
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "weft commands find this stack by themselves. Stop it with ctrl-C; the next `up` finds everything again.")
	return err
}

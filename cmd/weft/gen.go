package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/paygen"
)

// newGenCommand writes a payment environment with its truth, to try things out and to measure.
func newGenCommand() *cobra.Command {
	var cfg paygen.Config
	var dir, start string
	c := &cobra.Command{
		Use:   "gen --out DIR",
		Short: "Write a payment environment: the records of eleven systems, and the truth about them",
		Long: "Write the records of in-game purchases as eleven systems in eight formats would: late, out of order,\n" +
			"repeated, lost and broken. Beside them are the job that correlates them (job.yaml), the truth to compare\n" +
			"with (truth.jsonl, rejects.jsonl) and how to replay it (README.txt). Equal flags give equal bytes.",
		Example: "  weft gen --out demo --orders 10000 --seed 1",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if cfg.Start, err = time.Parse(time.RFC3339, start); err != nil {
				return fmt.Errorf("--start %q is no time such as 2026-03-01T00:00:00Z", start)
			}
			if err := cfg.Validate(); err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			began := time.Now()
			sum, err := paygen.Generate(cfg, func(name string) (io.WriteCloser, error) {
				return os.Create(filepath.Join(dir, name))
			})
			if err != nil {
				return err
			}
			took := time.Since(began).Seconds()
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %d records (%d MB) of %d purchases, %d of them recognizable, %d rejects; %.0f records/s\n",
				dir, sum.Lines, sum.Bytes/1e6, sum.Chains, sum.Recognizable, sum.Rejects, float64(sum.Lines)/took)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "out", "", "folder to write to; files in it are replaced")
	f.IntVar(&cfg.Orders, "orders", 10_000, "number of purchases")
	f.Uint64Var(&cfg.Seed, "seed", 1, "what to draw; equal seeds give equal bytes")
	f.StringVar(&start, "start", "2026-03-01T00:00:00Z", "time of the first purchase")
	f.DurationVar(&cfg.Span, "span", 72*time.Hour, "time between the first purchase and the last")
	_ = c.MarkFlagRequired("out") // fails only where there is no such flag
	c.AddCommand(newGenScoreCommand())
	return c
}

// newGenScoreCommand compares the sessions of a replay with the truth.
func newGenScoreCommand() *cobra.Command {
	var truthFile, sessionsFile string
	c := &cobra.Command{
		Use:     "score --truth FILE --sessions FILE",
		Short:   "Compare sessions with the truth that gen wrote",
		Example: "  weft gen score --truth demo/truth.jsonl --sessions results/sessions.jsonl",
		Args:    cobra.NoArgs,
		Hidden:  true,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			truth, err := os.Open(truthFile)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, truth.Close()) }()
			sessions, err := os.Open(sessionsFile)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, sessions.Close()) }()
			scores, err := paygen.Score(truth, func(yield func(*paygen.Session) error) error {
				return paygen.ReadSessions(sessions, yield)
			})
			if err != nil {
				return err
			}
			if _, err := scores.WriteTo(c.OutOrStdout()); err != nil {
				return err
			}
			if !scores.Exact() {
				return errors.New("the sessions are not what they must be")
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&truthFile, "truth", "", "truth.jsonl of the environment")
	f.StringVar(&sessionsFile, "sessions", "", "sessions.jsonl of the replay")
	_ = errors.Join(c.MarkFlagRequired("truth"), c.MarkFlagRequired("sessions")) // as above
	return c
}

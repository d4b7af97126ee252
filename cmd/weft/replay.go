package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
)

func newReplayCommand() *cobra.Command {
	var f replayFlags
	c := &cobra.Command{
		Use:   "replay --spec FILE --input SOURCE=PATH... --out DIR",
		Short: "Correlate files of records into sessions",
		Long: "Correlate files of records into sessions, rejects, reports and a summary.json.\n\n" +
			"PATH is a file with one record a line, plain or compressed with gzip or zstd (- is standard input), or an archive:\n" +
			"a Parquet file or a folder of them. What does not fit in memory is sorted on disk; nothing is ever late.\n" +
			"--from and --to publish the sessions that start in that range, linked with the records around it.",
		Example: "  weft replay --spec payments.yaml --input orders=orders.jsonl --input gateway=access.log.gz --out result\n" +
			"  weft replay --spec payments.yaml --input orders=archive/pay.orders --out result --format jsonl \\\n" +
			"    --from 2026-03-01T00:00:00Z --to 2026-03-02T00:00:00Z",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	c.Flags().StringVar(&f.spec, "spec", "", "job spec")
	c.Flags().StringArrayVar(&f.inputs, "input", nil, "records of a source, as SOURCE=PATH; once for each source")
	c.Flags().StringVar(&f.out, "out", "", "folder for the results")
	c.Flags().StringVar(&f.format, "format", "parquet", "parquet or jsonl")
	c.Flags().StringVar(&f.from, "from", "", "publish sessions that start at this time (RFC 3339) or later")
	c.Flags().StringVar(&f.to, "to", "", "publish sessions that start before this time (RFC 3339)")
	c.Flags().StringVar(&f.memory, "memory", "", "memory for open sessions, such as 2GiB (default half of the machine's)")
	c.Flags().BoolVar(&f.json, "json", false, "print the summary as JSON")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print nothing but errors")
	c.Flags().StringVar(&f.profile, "cpuprofile", "", "write a CPU profile for go tool pprof to this file")
	_ = errors.Join(c.MarkFlagRequired("spec"), c.MarkFlagRequired("input"), c.MarkFlagRequired("out")) // they exist
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"parquet", "jsonl"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

type replayFlags struct {
	spec, out, format, from, to, memory string
	profile                             string
	inputs                              []string
	json, quiet                         bool
}

func (f *replayFlags) run(c *cobra.Command) error {
	cfg := backfill.ReplayConfig{Out: f.out, Format: results.Format(f.format)}
	var errs []error
	for _, in := range f.inputs {
		name, path, ok := strings.Cut(in, "=")
		if !ok || name == "" || path == "" {
			errs = append(errs, fmt.Errorf("--input %q: expected SOURCE=PATH, such as orders=orders.jsonl", in))
			continue
		}
		if path == "-" && f.spec == "-" {
			errs = append(errs, fmt.Errorf("--input %q: standard input is the spec already", in))
		}
		cfg.Inputs = append(cfg.Inputs, backfill.Input{Source: name, Path: path})
	}
	if f.out == "" {
		errs = append(errs, errors.New("--out is empty: expected a folder"))
	}
	if f.format != string(results.Parquet) && f.format != string(results.JSONL) {
		errs = append(errs, fmt.Errorf("--format %q: expected parquet or jsonl", f.format))
	}
	var err error
	if cfg.Range, err = parseRange(f.from, f.to); err != nil {
		errs = append(errs, err)
	}
	if f.memory != "" {
		if cfg.MemoryBytes, err = jobspec.ParseSize(f.memory); err != nil {
			errs = append(errs, fmt.Errorf("--memory: %w", err))
		} else if cfg.MemoryBytes < backfill.MemoryBytesMin {
			errs = append(errs, fmt.Errorf("--memory %s: at least %d MiB are needed", f.memory, backfill.MemoryBytesMin>>20))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return &exitError{exitUsage, err}
	}
	if cfg.Job, err = compileFile(c, f.spec); err != nil {
		return err
	}
	if f.profile != "" {
		stop, err := startProfile(f.profile)
		if err != nil {
			return err
		}
		defer stop()
	}
	bar := newProgressBar(c.ErrOrStderr(), f.quiet)
	cfg.Progress = bar.show
	summary, err := backfill.Replay(c.Context(), cfg)
	bar.clear()
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted: no results were written")
	case errors.Is(err, backfill.ErrUsage):
		return &exitError{exitUsage, err}
	case err != nil:
		return err
	case f.quiet:
		return nil
	case f.json:
		text, err := json.MarshalIndent(summary, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", text)
		return err
	}
	return printSummary(c.OutOrStdout(), summary, f.out, f.format)
}

// startProfile profiles the process until stop is called.
func startProfile(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close() // a profile cut short is of no use, and pprof says so
	}, nil
}

// compileFile reads and compiles a spec; problems are printed with their places.
func compileFile(c *cobra.Command, file string) (*operator.Job, error) {
	result := checkFile(file, c.InOrStdin())
	if !result.Valid {
		if err := showText(c, []checkResult{result}); err != nil {
			return nil, err
		}
		return nil, &exitError{code: exitUsage}
	}
	return result.job, nil
}

// parseRange reads --from and --to; an end that is not given lies further out than any record.
func parseRange(from, to string) (r correlate.Range, err error) {
	if from == "" && to == "" {
		return r, nil
	}
	r = correlate.Range{From: -rangeEnd, To: rangeEnd}
	for _, end := range []struct {
		flag, text string
		at         *event.Micros
	}{{"--from", from, &r.From}, {"--to", to, &r.To}} {
		if end.text == "" {
			continue
		}
		t, parseErr := time.Parse(time.RFC3339, end.text)
		if parseErr != nil {
			err = errors.Join(err, fmt.Errorf("%s %q: expected a time such as 2026-03-01T00:00:00Z", end.flag, end.text))
			continue
		}
		*end.at = event.Micros(t.UnixMicro())
	}
	if err == nil && r.From >= r.To {
		err = fmt.Errorf("--from %s is not before --to %s", from, to)
	}
	return r, err
}

const rangeEnd = event.Micros(1) << 60

func printSummary(w io.Writer, s *backfill.Summary, dir, format string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s records from %s → %s sessions in %s/sessions.%s\n",
		thousands(s.Records), count(len(s.Inputs), "source"), thousands(s.Sessions), dir, format)
	rejected := total(s.Rejects)
	if rejected > 0 {
		fmt.Fprintf(&b, "rejected %s records, kept in rejects.%s: %s\n", thousands(rejected), format, list(s.Rejects))
	}
	none := rejected > 0 && rejected >= s.Records // lines that are too long are rejected before they are records
	if none {
		fmt.Fprintln(&b, "WARNING: every record was rejected. Is this the right spec for these files?")
	}
	for _, name := range sortedNames(s.Inputs) {
		in := s.Inputs[name]
		switch {
		case in.Records == 0 && in.Bytes == 0:
			fmt.Fprintf(&b, "WARNING: input %s is empty: %s\n", name, in.Path)
		case in.Records == 0 && len(in.Rejects) == 0:
			fmt.Fprintf(&b, "WARNING: input %s has no records, only empty lines or an archive of other topics: %s\n", name, in.Path)
		case in.Events == 0 && in.Skipped > 0:
			fmt.Fprintf(&b, "WARNING: no record of input %s became an event (where left out %s)\n", name, thousands(in.Skipped))
		case in.Events == 0 && !none:
			fmt.Fprintf(&b, "WARNING: all records of input %s were rejected: %s\n", name, list(in.Rejects))
		}
	}
	if len(s.NoInput) > 0 {
		fmt.Fprintf(&b, "NOTE: these sources of the job had no input, so their steps are missing: %s\n", strings.Join(s.NoInput, ", "))
	}
	if s.Duplicates+s.Folded+s.Skipped > 0 {
		fmt.Fprintf(&b, "events: %s (left out by where: %s; same identity: %s; folded by dedupe: %s)\n",
			thousands(s.Events), thousands(s.Skipped), thousands(s.Duplicates), thousands(s.Folded))
	} else {
		fmt.Fprintf(&b, "events: %s\n", thousands(s.Events))
	}
	printScenarios(&b, s)
	fmt.Fprintf(&b, "state: at most %s events in %s MiB", thousands(s.OpenEvents), thousands(s.StateBytes>>20))
	if s.OpenEvents >= 100_000 { // of fewer, what is set aside for growth is the most
		fmt.Fprintf(&b, ", %.0f bytes each", s.StateBytesPerEvent)
	}
	if s.SpilledBytes > 0 {
		fmt.Fprintf(&b, "; %d MiB sorted on disk", s.SpilledBytes>>20)
	}
	fmt.Fprintf(&b, "\nspeed: %.2f s, %s records/s, %s records per CPU-second\n",
		s.Seconds, thousands(int64(s.RecordsPerSecond)), thousands(int64(s.RecordsPerCPUSecond)))
	fmt.Fprintf(&b, "digest: %s\n", s.Digest)
	_, err := io.WriteString(w, b.String())
	return err
}

// printScenarios lists the scenarios that hold for any session, the most frequent first.
func printScenarios(b *strings.Builder, s *backfill.Summary) {
	var names []string
	for _, name := range sortedNames(s.Scenarios) {
		if s.Scenarios[name] > 0 {
			names = append(names, name)
		}
	}
	if s.Sessions == 0 || len(s.Scenarios) == 0 {
		return
	}
	slices.SortStableFunc(names, func(x, y string) int { return cmp.Compare(s.Scenarios[y], s.Scenarios[x]) })
	fmt.Fprintln(b, "sessions by scenario:")
	for _, name := range names {
		fmt.Fprintf(b, "  %-32s %12s\n", name, thousands(s.Scenarios[name]))
	}
	fmt.Fprintf(b, "  %-32s %12s\n", "(none)", thousands(s.None))
	if absent := len(s.Scenarios) - len(names); absent > 0 {
		fmt.Fprintf(b, "  %d scenarios hold for no session\n", absent)
	}
}

// thousands formats a number with separators of thousands.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func total(m map[string]int64) (n int64) {
	for _, v := range m {
		n += v
	}
	return n
}

func list(m map[string]int64) string {
	var parts []string
	for _, name := range sortedNames(m) {
		parts = append(parts, fmt.Sprintf("%s %s", name, thousands(m[name])))
	}
	return strings.Join(parts, ", ")
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// progressBar shows progress on a terminal, and nothing anywhere else.
type progressBar struct {
	w     io.Writer
	began time.Time
	shown bool
}

func newProgressBar(w io.Writer, quiet bool) *progressBar {
	f, ok := w.(*os.File)
	if quiet || !ok || !term.IsTerminal(int(f.Fd())) {
		return &progressBar{}
	}
	return &progressBar{w: w, began: time.Now()}
}

const barWidth = 24

func (p *progressBar) show(at backfill.Progress) {
	if p.w == nil {
		return
	}
	p.shown = true
	took := time.Since(p.began).Seconds()
	rate := thousands(int64(float64(at.Records) / max(took, 0.001)))
	if at.BytesAll == 0 {
		fmt.Fprintf(p.w, "\r\x1b[K%-8s %s records, %s/s", at.Phase, thousands(at.Records), rate)
		return
	}
	part := min(1, float64(at.BytesRead)/float64(at.BytesAll))
	full := int(part * barWidth)
	fmt.Fprintf(p.w, "\r\x1b[K%-8s [%s%s] %3.0f %%  %s records, %s/s", at.Phase,
		strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*part, thousands(at.Records), rate)
}

func (p *progressBar) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

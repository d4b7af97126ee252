package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

type verifyFlags struct {
	queryFlags
	spec, memory string
	inputs       []string
	wait         time.Duration
	filesOnly    bool

	servers stack.Addresses
}

func newVerifyCommand() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify",
		Short: "Prove that a stream gave what a replay of its records gives",
		Long: "Compare what a version has streamed into the store with a replay of the archive, and of files with --input: sessions\n" +
			"and reports by digest, rejected records by source and reason. Events that came late for the stream are left out of the\n" +
			"replays by their identity. What differs is listed, and the exit code is 1.\n\n" +
			"First it waits until the stream has read what its topics hold now and has saved it, and until the archive holds the same:\n" +
			"only then do both sides know the same records. So the topics must rest. --files-only waits for nothing and reads no\n" +
			"archive: it is for a stream that has read the files and nothing else.\n\n" +
			"With --json the result is one object: job, version, generation, equal, compared [{what, sessions, digest, reports, rejects,\n" +
			"records, equal}], late {events, left_out, counted}, differences [{id, what, against}], notes.",
		Example: "  weft verify --job payments\n" +
			"  weft verify --job payments --version 3 --wait 5m --json\n" +
			"  weft verify --spec demo/job.yaml --files-only --input orders=demo/orders.jsonl --input wallet=demo/wallet.jsonl",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.now = time.Now
	c.Flags().StringVar(&f.job, "job", "", "job (default: the only one of the store)")
	c.Flags().StringVar(&f.version, "version", "", "version (default: the one that is served)")
	c.Flags().Int64Var(&f.generation, "generation", 0, "generation (default: the version's live one)")
	c.Flags().StringVar(&f.store, "store", "", "sqlite:FOLDER or postgres://… (default $WEFT_STORE, or the running stack's)")
	c.Flags().StringVar(&f.spec, "spec", "", "job spec (default: the version's, from the registry)")
	c.Flags().StringArrayVar(&f.inputs, "input", nil, "also replay this file of a source, as SOURCE=PATH; once for each source")
	c.Flags().BoolVar(&f.filesOnly, "files-only", false, "compare with --input alone, as things are now")
	c.Flags().DurationVar(&f.wait, "wait", 2*time.Minute, "longest wait for the stream and the archive")
	c.Flags().StringVar(&f.memory, "memory", "", "memory for open sessions of a replay, such as 2GiB (default half of the machine's)")
	c.Flags().BoolVar(&f.json, "json", false, "print the result as JSON")
	addKafkaFlags(c.Flags(), &f.servers)
	c.MarkFlagsMutuallyExclusive("version", "generation")
	f.complete(c, "job", func(ctx context.Context, r *reader) ([]string, error) { return r.Jobs(ctx) })
	return c
}

func (f *verifyFlags) run(c *cobra.Command) (err error) {
	v := &verification{wait: f.wait, poll: verifyPoll, bar: newWaitLine(c.ErrOrStderr())}
	if v.files, err = f.files(); err != nil {
		return &exitError{exitUsage, err}
	}
	if f.memory != "" {
		if v.memory, err = jobspec.ParseSize(f.memory); err != nil {
			return &exitError{exitUsage, fmt.Errorf("--memory: %w", err)}
		}
	}
	ctx := c.Context()
	r, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.resolve(ctx, &f.queryFlags); err != nil {
		return err
	}
	v.reader = r
	if v.version, err = r.pin(ctx); err != nil {
		return err
	}
	close, err := f.connect(c, v)
	if close != nil {
		defer func() { err = errors.Join(err, close()) }()
	}
	if err != nil {
		return err
	}
	result, err := v.run(ctx)
	v.bar.clear()
	if err != nil {
		return err
	}
	if err := f.print(c, result); err != nil || result.Equal {
		return err
	}
	return &exitError{code: exitFailed}
}

// files reads --input.
func (f *verifyFlags) files() (list []backfill.Input, err error) {
	var errs []error
	for _, in := range f.inputs {
		name, path, ok := strings.Cut(in, "=")
		if !ok || name == "" || path == "" || path == "-" {
			errs = append(errs, fmt.Errorf("--input %q: expected SOURCE=PATH of a file, such as orders=orders.jsonl", in))
		}
		list = append(list, backfill.Input{Source: name, Path: path})
	}
	if f.filesOnly && (len(list) == 0 || f.spec == "") {
		errs = append(errs, errors.New("--files-only needs --spec and at least one --input"))
	}
	if f.wait < 0 {
		errs = append(errs, fmt.Errorf("--wait %s is negative", f.wait))
	}
	return list, errors.Join(errs...)
}

// connect compiles the job and connects to the servers that hold the records.
func (f *verifyFlags) connect(c *cobra.Command, v *verification) (close func() error, err error) {
	ctx := c.Context()
	if f.spec != "" {
		if v.job, err = compileFile(c, f.spec); err != nil || f.filesOnly {
			return nil, err
		}
	}
	f.servers.Store = f.store
	at, err := stack.Find(f.servers, stack.Kafka, stack.S3)
	if err != nil {
		return nil, fmt.Errorf("%w; to compare with files alone, use --files-only", err)
	}
	env, err := workers.OpenEnv(ctx, at, stack.Kafka, stack.S3)
	if err != nil {
		return nil, err
	}
	v.objects = env.Objects
	v.ends = func(ctx context.Context, topic string) (map[int32]int64, error) {
		t, err := env.Kafka.Topic(ctx, topic)
		if err != nil {
			return nil, err
		}
		ends := map[int32]int64{}
		for id := range t.Partitions {
			if _, ends[id], err = env.Kafka.Offsets(ctx, t, id); err != nil {
				return nil, err
			}
		}
		return ends, nil
	}
	if v.job == nil {
		v.job, err = v.registered(ctx)
	}
	return env.Close, err
}

// registered compiles the version that is compared, as it was registered.
func (v *verification) registered(ctx context.Context) (*operator.Job, error) {
	number, err := strconv.Atoi(v.version)
	if err != nil {
		return nil, fmt.Errorf("the output is of version %q, which is no number of the registry: give its spec with --spec", v.version)
	}
	return workers.CompileVersion(ctx, v.objects, v.scope.Job, number)
}

// pin narrows the scope to one generation, the newest that is served, and returns its version.
func (r *reader) pin(ctx context.Context) (version string, err error) {
	if r.scope.Generation == 0 {
		m, err := r.ServingMap(ctx, r.scope.Job)
		if err != nil {
			return "", err
		}
		r.scope.Generation = m.Ranges[len(m.Ranges)-1].Generation
	}
	list, err := r.Generations(ctx, r.scope.Job)
	for _, g := range list {
		if g.ID == r.scope.Generation {
			version = g.Version
		}
	}
	return version, err
}

func (f *verifyFlags) print(c *cobra.Command, result *verifyResult) error {
	out := c.OutOrStdout()
	if f.json {
		text, err := json.Marshal(result)
		if err == nil {
			_, err = fmt.Fprintf(out, "%s\n", safeJSON(text))
		}
		return err
	}
	s := newScreen(out)
	result.draw(s)
	_, err := out.Write([]byte(s.String()))
	return err
}

// draw shows the result.
func (r *verifyResult) draw(s *screen) {
	s.printf("job %s, version %s, generation %d\n", safe(r.Job, 80), safe(r.Version, 40), r.Generation)
	t := &table{columns: []column{{name: ""}, {name: "RECORDS", right: true, drop: 1}, {name: "SESSIONS", right: true}, {name: "DIGEST", least: 14},
		{name: "REPORTS", least: 14}, {name: "REJECTS", right: true}, {name: ""}}}
	for _, row := range r.Compared {
		text, how := "", plain
		switch {
		case row.Equal == nil:
		case *row.Equal:
			text, how = "equal", green
		default:
			text, how = "DIFFERENT", red
		}
		records := ""
		if row.Records != nil {
			records = thousands(*row.Records)
		}
		t.add(cell{row.What, bold}, cell{records, plain}, cell{thousands(row.Sessions), plain}, cell{row.Digest, plain}, cell{row.Reports, plain},
			cell{thousands(total(row.Rejects)), plain}, cell{text, how})
	}
	t.draw(s, 0)
	if r.Late.Events > 0 {
		s.printf("late: %s, of which the replays leave out %s; %s repeat what counts in a session\n",
			count(int(r.Late.Events), "event"), thousands(r.Late.LeftOut), thousands(r.Late.Counted))
	}
	for _, d := range r.Differences {
		s.printf("%s  %s\n", d.ID, s.paint(red, d.What+" "+d.Against))
	}
	for _, note := range r.Notes {
		s.printf("%s\n", safe(note, cmp.Or(s.width, 400)))
	}
}

// waitLine shows on a terminal what is waited for, and nothing anywhere else.
type waitLine struct{ bar *progressBar }

func newWaitLine(w interface{ Write([]byte) (int, error) }) *waitLine {
	return &waitLine{newProgressBar(w, false)}
}

func (l *waitLine) show(text string) {
	if l.bar.w == nil {
		return
	}
	l.bar.shown = true
	width := 80
	if f, ok := l.bar.w.(*os.File); ok {
		width = cmp.Or(newScreen(f).width, width)
	}
	fmt.Fprintf(l.bar.w, "\r\x1b[K%s", safe(text, width-1))
}

func (l *waitLine) clear() { l.bar.clear(); l.bar.shown = false }

// sortedRejects names rejects by source and reason.
func sortedRejects(m map[string]int64) string {
	var list []string
	for _, name := range sortedNames(m) {
		list = append(list, fmt.Sprintf("%s: %s", name, thousands(m[name])))
	}
	return cmp.Or(strings.Join(slices.Clip(list), ", "), "none")
}

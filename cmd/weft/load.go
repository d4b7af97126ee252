package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/examples"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/workers"
)

func newLoadCommand() *cobra.Command {
	var f loadFlags
	c := &cobra.Command{
		Use:   "load",
		Short: "Produce live payment traffic and measure how soon a running job shows it",
		Long: "Produce the records of generated purchases into the topics of a job of payments, as they happen: their event times\n" +
			"are those of now. A few records a second are watched: load asks the serving store for the session of the record's\n" +
			"order until it holds that very event. The job runs elsewhere, by `weft job run` or a worker.\n\n" +
			"With --max the rate grows until the job does not follow any more: until a watched record is older than --max-lag when\n" +
			"it can be read, or records cannot be produced in time. Then the greatest rate that it follows is narrowed down.",
		Example: "  weft load --rate 2000/s --for 1m\n" +
			"  weft load --wait 1m --rate 2000/s & weft job run --spec payments.yaml\n" +
			"  weft load --max --rate 5000/s --step 30s --json\n" +
			"  weft load --spec job.yaml --version 3 --rate 500 --for 10m",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	fs := c.Flags()
	fs.StringVar(&f.spec, "spec", "", "job spec; its sources have the names of the example's (default: the example)")
	fs.IntVar(&f.version, "version", 0, "version whose own output is read (default: what the job serves, or its newest version)")
	fs.StringVar(&f.rate, "rate", "1000/s", "records per second of all sources together; with --max the first rate that is tried")
	fs.DurationVar(&f.length, "for", time.Minute, "how long, without --max")
	fs.BoolVar(&f.max, "max", false, "find the greatest rate that the job follows")
	fs.DurationVar(&f.step, "step", 20*time.Second, "with --max, how long each rate is tried")
	fs.DurationVar(&f.lag, "max-lag", 2*time.Second, "with --max, the age up to which a record that cannot be read yet is no lag")
	fs.Float64Var(&f.samples, "samples", 20, "records to watch per second")
	fs.DurationVar(&f.settle, "settle", 30*time.Second, "how long to wait at the end for what is not there yet")
	fs.DurationVar(&f.wait, "wait", 0, "how long to wait for a job that has not started; its topics are there by then")
	fs.Int32Var(&f.partitions, "partitions", 4, "partitions of topics that do not exist yet")
	fs.Uint64Var(&f.seed, "seed", 1, "what to draw")
	fs.BoolVar(&f.json, "json", false, "print the result as JSON")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
	addKafkaFlags(fs, &f.at)
	fs.StringVar(&f.at.Store, "store", "", "serving store (default $WEFT_STORE, or the running stack's)")
	return c
}

type loadFlags struct {
	at                   stack.Addresses
	spec, rate           string
	version              int
	length, step, settle time.Duration
	lag, wait            time.Duration
	samples, perSecond   float64
	partitions           int32
	seed                 uint64
	max, json, quiet     bool
}

func (f *loadFlags) validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var err error
	f.perSecond, err = strconv.ParseFloat(strings.TrimSuffix(f.rate, "/s"), 64)
	need(err == nil && f.perSecond > 0 && f.perSecond <= paygen.LiveRateMax,
		"--rate %q: expected records per second, such as 5000 or 5000/s, at most %d", f.rate, paygen.LiveRateMax)
	need(f.length >= time.Second, "--for %v: expected at least 1s", f.length)
	need(f.step >= time.Second, "--step %v: expected at least 1s", f.step)
	need(f.lag > 0, "--max-lag %v: expected more than 0", f.lag)
	need(f.settle >= 0, "--settle %v: expected 0 or more", f.settle)
	need(f.wait >= 0, "--wait %v: expected 0 or more", f.wait)
	need(f.samples > 0 && f.samples <= 1000, "--samples %v: expected more than 0, to 1000", f.samples)
	need(f.version >= 0, "--version %d: expected a number from 1 on", f.version)
	need(f.partitions >= 1 && f.partitions <= event.KeyGroups, "--partitions %d: expected 1 to %d", f.partitions, event.KeyGroups)
	return errors.Join(errs...)
}

func (f *loadFlags) run(c *cobra.Command) (err error) {
	if err := f.validate(); err != nil {
		return &exitError{exitUsage, err}
	}
	job, err := f.job(c)
	if err != nil {
		return err
	}
	at, err := stack.Find(f.at, stack.Kafka, stack.Store)
	if err != nil {
		return err
	}
	env, err := workers.OpenEnv(c.Context(), at, stack.Kafka, stack.Store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, env.Close()) }()
	l, err := openLoad(c.Context(), env, job, f) // first of all: a job does not start before its topics are there
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	scope, err := f.await(c.Context(), env.Store, job.Spec.Job)
	if err != nil {
		return err
	}
	l.probe.scope = scope
	if w, ok := c.ErrOrStderr().(*os.File); ok && !f.quiet && term.IsTerminal(int(w.Fd())) {
		l.progress = w
	}
	result := &loaded{Job: job.Spec.Job, Generation: scope.Generation, Steps: []loadStep{}}
	if f.max {
		err = f.search(c.Context(), l, result)
	} else {
		var step loadStep
		step, err = l.step(c.Context(), f.perSecond, f.length)
		result.Steps = append(result.Steps, step)
	}
	if err != nil {
		return err
	}
	if err := f.print(c.OutOrStdout(), result); err != nil {
		return err
	}
	return result.verdict()
}

// job compiles the spec and checks that it is one of payments.
func (f *loadFlags) job(c *cobra.Command) (*operator.Job, error) {
	var job *operator.Job
	var err error
	if f.spec != "" {
		job, err = compileFile(c, f.spec)
	} else {
		var spec *jobspec.Spec
		if spec, err = jobspec.Parse([]byte(examples.Payments())); err == nil {
			job, err = operator.Compile(spec, 0, nil)
		}
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, s := range paygen.Sources() {
		if !slices.ContainsFunc(job.Spec.Sources, func(one jobspec.Source) bool { return one.Name == s[0] }) {
			errs = append(errs, fmt.Errorf("job %s has no source %q: load makes the traffic of the example of payments", job.Spec.Job, s[0]))
		}
	}
	if by := job.Spec.ShardBy; by != "" && by != "game" {
		errs = append(errs, fmt.Errorf("job %s has shard_by: %s; load partitions its records by game", job.Spec.Job, by))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return job, nil
}

// errNotStarted says that there is no output to read yet.
var errNotStarted = errors.New("start it first, as with `weft job run`, or wait for it with --wait")

// await waits until the job has started.
func (f *loadFlags) await(ctx context.Context, s *store.Store, job string) (store.Scope, error) {
	for began := time.Now(); ; {
		scope, err := f.scope(ctx, s, job)
		if err == nil || !errors.Is(err, errNotStarted) || time.Since(began) > f.wait {
			return scope, err
		}
		if err := sleep(ctx, awaitEvery); err != nil {
			return scope, err
		}
	}
}

const awaitEvery = 200 * time.Millisecond

// scope says which output is read.
func (f *loadFlags) scope(ctx context.Context, s *store.Store, job string) (scope store.Scope, err error) {
	scope.Job = job
	if f.version == 0 {
		served, err := s.ServingMap(ctx, job)
		if err != nil {
			return scope, err
		}
		now := event.Micros(time.Now().UnixMicro())
		for _, a := range served.Ranges {
			if a.From <= now && now < a.To && a.Generation != 0 {
				return scope, nil
			}
		}
	}
	list, err := s.Generations(ctx, job)
	if err != nil {
		return scope, err
	}
	var found []string
	for _, g := range list {
		if g.Kind == "live" && g.State == store.Ready {
			found = append(found, g.Version)
			if f.version == 0 || g.Version == strconv.Itoa(f.version) {
				scope.Generation = max(scope.Generation, g.ID)
			}
		}
	}
	switch {
	case scope.Generation != 0:
		return scope, nil
	case len(found) > 0:
		return scope, fmt.Errorf("version %d of job %s has no live output in the store; there are versions %s: %w", f.version, job, strings.Join(found, ", "), errNotStarted)
	}
	return scope, fmt.Errorf("job %s has no live output in the store: %w", job, errNotStarted)
}

// The search for the greatest rate: grow until it fails, then halve what is between.
const (
	searchGrowth = 1.5
	searchEnough = 1.1  // ratio of a rate that fails and one that does not
	searchFloor  = 0.02 // share of the first rate below which nothing is tried
	searchSteps  = 30
)

func (f *loadFlags) search(ctx context.Context, l *load, result *loaded) error {
	rate, good, bad := f.perSecond, 0.0, 0.0
	for range searchSteps {
		step, err := l.step(ctx, rate, f.step)
		if err != nil {
			return err
		}
		result.Steps = append(result.Steps, step)
		if step.Sustained {
			good, result.MaxRate = rate, step.RecordsPerSecond
		} else {
			bad = rate
			if step.Missing > 0 {
				return nil // it does not even catch up; another step would measure this one's rest
			}
		}
		switch {
		case bad == 0:
			rate *= searchGrowth
		case good == 0:
			if rate /= 2; rate < searchFloor*f.perSecond {
				return nil
			}
		case bad/good < searchEnough:
			return nil
		default:
			rate = (good + bad) / 2
		}
	}
	return nil
}

// loaded is the result; its JSON form is a contract. Rates are records per second, times are seconds.
type loaded struct {
	Job        string     `json:"job"`
	Generation int64      `json:"generation"` // that was read; 0: what is served
	Steps      []loadStep `json:"steps"`
	MaxRate    float64    `json:"max_rate,omitempty"` // of the greatest step that was sustained, as produced
}

type loadStep struct {
	Rate             float64   `json:"rate"` // that was asked for
	Records          int64     `json:"records"`
	Bytes            int64     `json:"bytes"`
	Seconds          float64   `json:"seconds"`
	RecordsPerSecond float64   `json:"records_per_second"`
	Behind           float64   `json:"behind_seconds"` // of the last record, when it was produced
	Samples          int       `json:"samples"`
	Missing          int       `json:"missing"` // samples that never came
	Ack              quantiles `json:"ack_seconds"`
	Queryable        quantiles `json:"queryable_seconds"` // from the acknowledgement on
	EndToEnd         quantiles `json:"end_to_end_seconds"`
	LagMax           float64   `json:"lag_seconds_max"` // age of the oldest sample that could not be read yet
	Sustained        bool      `json:"sustained"`
}

type quantiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// quantilesOf sorts durations and picks the smallest that at least the share of them does not exceed.
func quantilesOf(list []time.Duration) (q quantiles) {
	if len(list) == 0 {
		return q
	}
	slices.Sort(list)
	at := func(share float64) float64 {
		return list[min(int(share*float64(len(list))), len(list)-1)].Seconds()
	}
	return quantiles{at(0.5), at(0.9), at(0.99), list[len(list)-1].Seconds()}
}

// verdict is an error where records were lost, or nothing was measured.
func (r *loaded) verdict() error {
	missing, samples := 0, 0
	for _, s := range r.Steps {
		missing, samples = missing+s.Missing, samples+s.Samples
	}
	switch {
	case samples == 0:
		return errors.New("no record was watched: give it more --rate, --samples or time")
	case missing > 0:
		return fmt.Errorf("%d of %d watched records cannot be read: does the job run, and does it read these topics?", missing, samples)
	}
	return nil
}

func (f *loadFlags) print(w io.Writer, r *loaded) error {
	if f.json {
		text, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			_, err = fmt.Fprintf(w, "%s\n", text)
		}
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "asked/s\tproduced/s\tMB/s\tbehind\tsamples\tmissing\tack p50\tp99\tqueryable p50\tp90\tp99\tmax\tlag max\tsustained\t")
	for _, s := range r.Steps {
		sustained := "no"
		if s.Sustained {
			sustained = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", thousands(int64(s.Rate)), thousands(int64(s.RecordsPerSecond)),
			float64(s.Bytes)/1e6/max(s.Seconds, 1e-9), inSeconds(s.Behind), s.Samples, s.Missing, inSeconds(s.Ack.P50), inSeconds(s.Ack.P99),
			inSeconds(s.EndToEnd.P50), inSeconds(s.EndToEnd.P90), inSeconds(s.EndToEnd.P99), inSeconds(s.EndToEnd.Max), inSeconds(s.LagMax), sustained)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	text := "queryable: from the moment a record is handed to the producer until the store shows its event\n"
	switch {
	case f.max && r.MaxRate > 0:
		text += fmt.Sprintf("the job follows %s records/s\n", thousands(int64(r.MaxRate)))
	case f.max:
		text += "the job followed none of these rates\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

// inSeconds writes a time as a person reads it.
func inSeconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

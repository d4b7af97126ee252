package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
)

// queryFlags are what all questions to the serving store have in common.
type queryFlags struct {
	job, store     string
	version        string
	generation     int64
	json, watch    bool
	interval       time.Duration
	from, to, last string

	now func() time.Time
}

const (
	watchIntervalMin = 100 * time.Millisecond
	// completionTimeout bounds what a press of the Tab key may take.
	completionTimeout = 2 * time.Second
)

// add declares the flags; what says what --from and --to compare, empty where they mean nothing.
func (f *queryFlags) add(c *cobra.Command, what string) {
	f.now = time.Now
	c.Flags().StringVar(&f.job, "job", "", "job (default: the only one of the store)")
	c.Flags().StringVar(&f.version, "version", "", "output of this version (default: what is served)")
	c.Flags().Int64Var(&f.generation, "generation", 0, "output of this generation (default: what is served)")
	c.Flags().StringVar(&f.store, "store", "", "sqlite:FOLDER or postgres://… (default $WEFT_STORE, or the running stack's)")
	c.Flags().BoolVar(&f.json, "json", false, "print one JSON object a line")
	c.Flags().BoolVar(&f.watch, "watch", false, "ask again and again until interrupted; with --json print what is new or has changed")
	c.Flags().DurationVar(&f.interval, "interval", 2*time.Second, "time between two questions of --watch")
	if what != "" {
		c.Flags().StringVar(&f.from, "from", "", what+" at this time (2026-03-01 or RFC 3339) or later")
		c.Flags().StringVar(&f.to, "to", "", what+" before this time")
		c.Flags().StringVar(&f.last, "last", "", what+" in the last 30m, 2h, 7d")
		c.MarkFlagsMutuallyExclusive("last", "from")
		c.MarkFlagsMutuallyExclusive("last", "to")
	}
	c.MarkFlagsMutuallyExclusive("version", "generation")
	f.complete(c, "job", func(ctx context.Context, r *reader) ([]string, error) { return r.Jobs(ctx) })
}

// complete offers names of the store for a flag.
func (f *queryFlags) complete(c *cobra.Command, flag string, names func(context.Context, *reader) ([]string, error)) {
	_ = c.RegisterFlagCompletionFunc(flag, f.completion(flag != "job", names)) // the flag exists
}

func (f *queryFlags) completion(ofJob bool, names func(context.Context, *reader) ([]string, error)) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmp.Or(c.Context(), context.Background())), completionTimeout)
		defer cancel()
		r, err := f.open(ctx)
		if err == nil {
			defer r.Close() // only read
			if ofJob {
				err = r.resolve(ctx, f)
			}
		}
		var list []string
		if err == nil {
			list, err = names(ctx, r)
		}
		if err != nil { // a shell has no place for the reason
			return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveError
		}
		return list, cobra.ShellCompDirectiveNoFileComp
	}
}

// reader is a store and what is asked of it.
type reader struct {
	*store.Store
	scope  store.Scope
	canary *store.Canary // that answered the last question about sessions; nil: none did
}

// open connects to the store. A folder that holds none is not made into one by a question.
func (f *queryFlags) open(ctx context.Context) (*reader, error) {
	at, err := stack.Find(stack.Addresses{Store: f.store}, stack.Store)
	if err != nil {
		return nil, err
	}
	if dir, ok := strings.CutPrefix(at.Store, "sqlite:"); ok {
		if _, err := os.Stat(filepath.Join(dir, "catalog.db")); err != nil {
			return nil, fmt.Errorf("no serving store in %s: %w; a worker makes it", dir, bareError(err))
		}
	}
	s, err := store.Open(ctx, at.Store, store.Options{})
	if err != nil {
		return nil, err
	}
	return &reader{Store: s}, nil
}

// resolve finds the job and the generation that are meant.
func (r *reader) resolve(ctx context.Context, f *queryFlags) error {
	jobs, err := r.Jobs(ctx)
	if err != nil {
		return err
	}
	names := safe(strings.Join(jobs, ", "), 400)
	switch {
	case len(jobs) == 0:
		return errors.New("the store holds no job yet")
	case f.job == "" && len(jobs) > 1:
		return fmt.Errorf("the store holds several jobs: name one with --job (%s)", names)
	case f.job == "":
		r.scope.Job = jobs[0]
	case !slices.Contains(jobs, f.job):
		hint := ""
		if near := jobspec.Nearest(f.job, jobs); near != "" {
			hint = fmt.Sprintf("; did you mean %s?", safe(near, 80))
		}
		return fmt.Errorf("the store holds no job %q%s (its jobs are %s)", f.job, hint, names)
	default:
		r.scope.Job = f.job
	}
	return r.resolveGeneration(ctx, f)
}

func (r *reader) resolveGeneration(ctx context.Context, f *queryFlags) error {
	list, err := r.Generations(ctx, r.scope.Job)
	if err != nil {
		return err
	}
	var known []string
	for _, g := range list {
		if g.State != store.Ready {
			continue
		}
		if f.generation == g.ID || f.version != "" && g.Version == f.version && g.Kind == "live" {
			r.scope.Generation = g.ID
			return nil
		}
		known = append(known, fmt.Sprintf("%d (version %s, %s)", g.ID, safe(g.Version, 40), safe(g.Kind, 40)))
	}
	text := strings.Join(known, ", ")
	switch {
	case f.generation != 0:
		return fmt.Errorf("job %s has no generation %d; it has %s", r.scope.Job, f.generation, text)
	case f.version != "":
		return fmt.Errorf("job %s has no output of version %q; its generations are %s", r.scope.Job, f.version, text)
	}
	m, err := r.ServingMap(ctx, r.scope.Job)
	if err == nil && len(m.Ranges) == 0 {
		err = fmt.Errorf("job %s serves nothing yet; name a version with --version or a generation with --generation: %s", r.scope.Job, text)
	}
	return err
}

// span returns the range of time that is asked for; both 0: all.
func (f *queryFlags) span() (from, to event.Micros, err error) {
	if f.last != "" {
		d, err := jobspec.ParseDuration(f.last)
		if err != nil || d <= 0 {
			return 0, 0, fmt.Errorf("--last %q: expected a duration such as 30m, 2h or 7d", f.last)
		}
		return event.Micros(f.now().Add(-d).UnixMicro()), event.MaxTime, nil
	}
	if f.from == "" && f.to == "" {
		return 0, 0, nil
	}
	from, to = event.MinTime, event.MaxTime
	for _, end := range []struct {
		flag, text string
		at         *event.Micros
	}{{"--from", f.from, &from}, {"--to", f.to, &to}} {
		if end.text == "" {
			continue
		}
		t, parseErr := parseMoment(end.text)
		if parseErr != nil {
			err = errors.Join(err, fmt.Errorf("%s %q: expected a day (2026-03-01, in UTC) or a time such as 2026-03-01T08:30:00Z", end.flag, end.text))
		}
		*end.at = event.Micros(t.UnixMicro())
	}
	if err == nil && from >= to {
		err = fmt.Errorf("--from %s is not before --to %s", f.from, f.to)
	}
	return from, to, err
}

func parseMoment(text string) (time.Time, error) {
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	return time.Parse(time.RFC3339, text)
}

// answer is what the store says at one moment.
type answer struct {
	lines []jsonLine
	draw  func(*screen)
}

// jsonLine is one object of --json; key tells what it is about from one moment to the next.
type jsonLine struct {
	key   string
	value []byte
}

func (a *answer) line(key string, value any) error {
	text, err := json.Marshal(value)
	a.lines = append(a.lines, jsonLine{key, text})
	return err
}

// run asks once, or again and again.
func (f *queryFlags) run(c *cobra.Command, ask func(context.Context, *reader) (*answer, error)) (err error) {
	if f.interval < watchIntervalMin {
		return &exitError{exitUsage, fmt.Errorf("--interval %s: at least %s", f.interval, watchIntervalMin)}
	}
	ctx := c.Context()
	r, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.resolve(ctx, f); err != nil {
		return err
	}
	out := &watcher{w: c.OutOrStdout(), json: f.json, watch: f.watch, every: f.interval, told: map[string]string{}}
	tick := time.NewTicker(f.interval)
	defer tick.Stop()
	for {
		a, err := ask(ctx, r)
		switch {
		case err != nil && f.watch && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := out.show(a); err != nil || !f.watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// watcher shows one answer after another.
type watcher struct {
	w           io.Writer
	json, watch bool
	every       time.Duration
	told        map[string]string // by key: the last line
	shown       string            // the last picture
}

func (o *watcher) show(a *answer) error {
	var b bytes.Buffer
	if o.json {
		now := make(map[string]string, len(a.lines))
		for _, l := range a.lines {
			if now[l.key] = string(l.value); !o.watch || o.told[l.key] != string(l.value) {
				b.Write(safeJSON(l.value))
				b.WriteByte('\n')
			}
		}
		o.told = now
		_, err := o.w.Write(b.Bytes())
		return err
	}
	s := newScreen(o.w)
	a.draw(s)
	text := s.String()
	switch {
	case o.watch && s.height > 0:
		text = o.redraw(s, text)
	case o.watch && text == o.shown:
		return nil
	case o.shown != "":
		_, err := io.WriteString(o.w, "\n")
		if err != nil {
			return err
		}
	}
	o.shown = s.String()
	_, err := io.WriteString(o.w, text)
	return err
}

// redraw puts a picture over the one before, cut to what the terminal shows.
func (o *watcher) redraw(s *screen, text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	foot := fmt.Sprintf("every %s, Ctrl-C ends", o.every)
	if most := s.height - 1; len(lines) > most {
		foot = fmt.Sprintf("%d more lines; %s", len(lines)-most, foot)
		lines = lines[:most]
	}
	start := "\x1b[H"
	if o.shown == "" {
		start = "\x1b[2J\x1b[H"
	}
	return start + strings.Join(lines, "\x1b[K\n") + "\x1b[K\n" + s.paint(faint, safe(foot, s.width-1)) + "\x1b[K\x1b[J"
}

// heading says what is shown and how far the job has seen time.
func (r *reader) heading(ctx context.Context) (text string, err error) {
	p, err := r.Progress(ctx, r.scope)
	if err != nil {
		return "", err
	}
	text = "job " + safe(r.scope.Job, 80)
	if r.scope.Generation != 0 {
		text += fmt.Sprintf(", generation %d", r.scope.Generation)
	}
	text += ", " + seen(p.Watermark)
	if c := r.canary; c != nil {
		text += fmt.Sprintf("; a candidate answers for this user, as for %d %% of all: generation %d", c.Weight, c.Generation)
		if c.From > event.MinTime {
			text += ", from " + moment(c.From) + " on"
		}
	}
	return text, nil
}

// seen says how far time was seen.
func seen(watermark event.Micros) string {
	switch watermark {
	case event.MinTime:
		return "watermark not known"
	case event.MaxTime:
		return "complete"
	}
	return "seen up to " + moment(watermark)
}

// moment is a time in UTC for people: to the second in lists.
func moment(t event.Micros) string {
	return time.UnixMicro(int64(t)).UTC().Format("2006-01-02 15:04:05Z")
}

// moments is a time as JSON has it.
func moments(t event.Micros) string {
	return time.UnixMicro(int64(t)).UTC().Format("2006-01-02T15:04:05.000000Z")
}

// lasting is a duration in at most six characters or so.
func lasting(d event.Micros) string {
	t := time.Duration(d) * time.Microsecond
	switch {
	case t == 0:
		return "0s"
	case t < time.Millisecond:
		return fmt.Sprintf("%dus", d)
	case t < time.Second:
		return fmt.Sprintf("%dms", t.Milliseconds())
	case t < time.Minute:
		return fmt.Sprintf("%.1fs", t.Seconds())
	case t < time.Hour:
		return fmt.Sprintf("%dm%02ds", t/time.Minute, t%time.Minute/time.Second)
	case t < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", t/time.Hour, t%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", t/(24*time.Hour), t%(24*time.Hour)/time.Hour)
}

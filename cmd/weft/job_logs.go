package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/agent"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/stack"
)

// logsEvery is how often a log that is followed is looked at; agents pass logs on about as often.
const logsEvery = 2 * time.Second

type logsFlags struct {
	version, process, tail int
	since                  time.Duration
	follow, json           bool
	at                     stack.Addresses
}

func newJobLogsCommand() *cobra.Command {
	var f logsFlags
	c := &cobra.Command{
		Use:   "logs JOB",
		Short: "Show what the processes of a job's versions have logged",
		Long: "Show what the processes of a job's versions have logged, those that have died included: agents pass their logs on to the\n" +
			"object store every few seconds. Processes that were started by hand (weft worker, weft job run) log where they run.",
		Example: "  weft job logs payments\n  weft job logs payments --version 3 --follow\n  weft job logs payments --since 1h --tail 0 --json | jq 'select(.level==\"ERROR\")'",
		Args:    jobArgument,
		RunE:    func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	c.Flags().IntVar(&f.version, "version", 0, "only this version")
	c.Flags().IntVar(&f.process, "process", -1, "only this process of the version, from 0")
	c.Flags().DurationVar(&f.since, "since", 0, "only what was passed on within this time (default all there is)")
	c.Flags().IntVar(&f.tail, "tail", 200, "lines at the end; 0: all")
	c.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on until Ctrl-C")
	c.Flags().BoolVar(&f.json, "json", false, "print one JSON object a line, with version, process and what was logged")
	c.Flags().StringVar(&f.at.S3, "s3", "", "object store, as http://host:port (default $WEFT_S3, or the running stack's)")
	return c
}

func (f *logsFlags) run(c *cobra.Command, job string) error {
	var err error
	switch {
	case f.version < 0 || f.tail < 0 || f.since < 0:
		err = errors.New("--version, --tail and --since are not negative")
	case f.process >= 0 && f.version == 0:
		err = errors.New("--process is one of a version: name it with --version")
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ctx := c.Context()
	env, err := openObjects(ctx, f.at)
	if err != nil {
		return err
	}
	defer func() { _ = env.Close() }() // only read
	l := &logReader{objects: env.Objects, prefix: agent.LogPrefix(job, f.version, f.process), seen: map[string]bool{}}
	var from time.Time
	if f.since > 0 {
		from = time.Now().Add(-f.since)
	}
	lines, err := l.next(ctx, from)
	if err != nil {
		return err
	}
	if len(lines) == 0 && !f.follow {
		return fmt.Errorf("%s has no logs%s: processes that agents start have (weft agent; weft job status %[1]s says what runs)", job, ofVersion(f.version))
	}
	if f.tail > 0 {
		lines = lines[max(0, len(lines)-f.tail):]
	}
	for {
		if err := f.print(c.OutOrStdout(), lines); err != nil || !f.follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(logsEvery):
		}
		if lines, err = l.next(ctx, from); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func ofVersion(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" of version %d", n)
}

// logLine is a line of a log.
type logLine struct {
	agent.Segment
	text []byte
}

// logReader reads the objects of logs.
type logReader struct {
	objects objstore.Store
	prefix  string
	seen    map[string]bool
}

// next returns the lines of objects that were not read yet, in the order of their time.
func (l *logReader) next(ctx context.Context, from time.Time) (lines []logLine, err error) {
	var fresh []agent.Segment
	for info, err := range l.objects.List(ctx, l.prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list logs: %w", err)
		}
		if s, ok := agent.ParseSegment(info.Key); ok && !l.seen[s.Key] && !s.At.Before(from) {
			fresh = append(fresh, s)
		}
	}
	slices.SortFunc(fresh, func(a, b agent.Segment) int { return cmp.Or(a.At.Compare(b.At), strings.Compare(a.Key, b.Key)) })
	for _, s := range fresh {
		data, _, err := l.objects.Get(ctx, s.Key)
		if errors.Is(err, objstore.ErrNotFound) {
			continue // it was among the oldest
		}
		if err != nil {
			return nil, fmt.Errorf("read logs: %w", err)
		}
		l.seen[s.Key] = true
		scan := bufio.NewScanner(bytes.NewReader(data))
		scan.Buffer(nil, len(data)+1)
		for scan.Scan() {
			lines = append(lines, logLine{s, slices.Clone(scan.Bytes())})
		}
	}
	return lines, nil
}

func (f *logsFlags) print(w io.Writer, lines []logLine) error {
	var b strings.Builder
	for _, l := range lines {
		if f.json {
			if err := l.json(&b); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(&b, "%d/%d  %s\n", l.Version, l.Process, strings.Map(printable, l.words()))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (l *logLine) json(b *strings.Builder) error {
	out := map[string]any{}
	d := json.NewDecoder(bytes.NewReader(l.text))
	d.UseNumber() // 64-bit numbers stay what they are
	if err := d.Decode(&out); err != nil || d.More() {
		out = map[string]any{"output": string(l.text)}
	}
	out["version"], out["process"] = l.Version, l.Process
	text, err := json.Marshal(out)
	if err != nil {
		return err
	}
	b.Write(text)
	b.WriteByte('\n')
	return nil
}

// words turns a line of JSON into one for a person; any other stays what it is.
func (l *logLine) words() string {
	d := json.NewDecoder(bytes.NewReader(l.text))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return string(l.text)
	}
	var when, level, msg string
	var rest []string
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return string(l.text)
		}
		var value any
		if err := d.Decode(&value); err != nil {
			return string(l.text)
		}
		switch text, _ := value.(string); key {
		case "time":
			if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
				when = at.UTC().Format("2006-01-02 15:04:05.000Z")
			}
		case "level":
			level = text
		case "msg":
			msg = text
		default:
			if text == "" || strings.ContainsAny(text, " \"=") {
				encoded, err := json.Marshal(value)
				if err != nil {
					return string(l.text)
				}
				text = string(encoded)
			}
			rest = append(rest, fmt.Sprintf("%v=%s", key, text))
		}
	}
	line := when + "  " + level + strings.Repeat(" ", max(1, 6-len(level))) + msg
	if len(rest) > 0 {
		line += "  " + strings.Join(rest, " ")
	}
	return line
}

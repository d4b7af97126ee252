package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// rawBytesMax bounds what an export into one Parquet file holds in memory: its records must be sorted.
const rawBytesMax = 1 << 30

type rejectsFlags struct {
	queryFlags
	list, late     bool
	source, reason string
	limit          int
	after, raw     string
}

func newRejectsCommand() *cobra.Command {
	var f rejectsFlags
	c := &cobra.Command{
		Use:   "rejects",
		Short: "Count and show records that were rejected, or events that came late",
		Long: "Count the records that could not be decoded, by source and reason; --list shows them with their bytes, newest first.\n" +
			"--late does so for events that came after their time had been settled; they count in no session.\n\n" +
			"--raw writes the records themselves, to be mended and replayed. FILE.parquet is an archive: each record keeps its topic,\n" +
			"partition and offset, and so its identity. Any other FILE, and - for standard output, gets one record a line.\n\n" +
			"With --json a count is {source, reason, count} and a listed one {kind, source, topic, partition, offset, index, time, reason,\n" +
			"detail, raw or raw_base64}; index is that of a late event in its record. Where there is more, the last line is {\"next\": CURSOR}.",
		Example: "  weft rejects\n" +
			"  weft rejects --list --source wallet --reason bad_time\n" +
			"  weft rejects --late --list --json\n" +
			"  weft rejects --source wallet --raw wallet.jsonl && weft replay --spec job.yaml --input wallet=wallet.jsonl --out mended",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.add(c, "with --list or --raw: records of a time")
	c.Flags().BoolVar(&f.list, "list", false, "show the records")
	c.Flags().BoolVar(&f.late, "late", false, "late events instead of rejected records")
	c.Flags().StringVar(&f.source, "source", "", "only of this source")
	c.Flags().StringVar(&f.reason, "reason", "", "only rejected for this reason")
	c.Flags().IntVar(&f.limit, "limit", listRowsDefault, fmt.Sprintf("most records to list, up to %d", listRowsMax))
	c.Flags().StringVar(&f.after, "after", "", "go on behind a list that was longer than its limit")
	c.Flags().StringVar(&f.raw, "raw", "", "write the raw records to this file; - is standard output")
	c.MarkFlagsMutuallyExclusive("raw", "watch")
	c.MarkFlagsMutuallyExclusive("raw", "list")
	c.MarkFlagsMutuallyExclusive("late", "reason")
	counts := func(name func(store.ExceptionCount) string) func(context.Context, *reader) ([]string, error) {
		return func(ctx context.Context, r *reader) (list []string, err error) {
			all, err := r.CountExceptions(ctx, r.scope.Job, r.scope.Generation, f.kind())
			for _, n := range all {
				list = append(list, name(n))
			}
			slices.Sort(list)
			return slices.Compact(list), err
		}
	}
	f.complete(c, "source", counts(func(n store.ExceptionCount) string { return n.Source }))
	f.complete(c, "reason", counts(func(n store.ExceptionCount) string { return n.Reason }))
	return c
}

func (f *rejectsFlags) kind() store.ExceptionKind {
	if f.late {
		return store.Late
	}
	return store.Rejected
}

func (f *rejectsFlags) run(c *cobra.Command) error {
	from, to, err := f.span()
	q := store.ExceptionQuery{Kind: f.kind(), From: from, To: to, Source: f.source, Reason: f.reason, Page: store.Page{After: store.Cursor(f.after)}}
	if f.limit < 1 || f.limit > listRowsMax {
		err = errors.Join(err, fmt.Errorf("--limit %d: expected 1 to %d", f.limit, listRowsMax))
	}
	if (from != 0 || to != 0) && !f.list && f.raw == "" {
		err = errors.Join(err, errors.New("counts are of all time: --from, --to and --last go with --list or --raw"))
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ask := f.counts
	switch {
	case f.raw != "":
		ask = func(ctx context.Context, r *reader) (*answer, error) { return f.export(ctx, c, r, q) }
	case f.list:
		ask = func(ctx context.Context, r *reader) (*answer, error) { return f.page(ctx, r, q) }
	}
	return f.queryFlags.run(c, ask)
}

// counts answers how many there are.
func (f *rejectsFlags) counts(ctx context.Context, r *reader) (*answer, error) {
	all, err := r.CountExceptions(ctx, r.scope.Job, r.scope.Generation, f.kind())
	if err != nil {
		return nil, err
	}
	head, err := r.heading(ctx)
	if err != nil {
		return nil, err
	}
	a := &answer{}
	t := &table{columns: []column{{name: "SOURCE", least: 12}, {name: "REASON", least: 10}, {name: "COUNT", right: true}}}
	var sum int64
	for _, n := range all {
		if f.source != "" && n.Source != f.source || f.reason != "" && n.Reason != f.reason {
			continue
		}
		sum += n.Count
		if err := a.line(n.Source+" "+n.Reason, map[string]any{"source": n.Source, "reason": n.Reason, "count": n.Count}); err != nil {
			return nil, err
		}
		t.add(cell{safe(n.Source, cellWidthMax), plain}, cell{safe(n.Reason, cellWidthMax), amber}, cell{thousands(n.Count), plain})
	}
	if f.late {
		t.columns[1].name = ""
	}
	a.draw = func(s *screen) {
		s.printf("%s\n", s.paint(faint, head))
		if len(t.rows) == 0 {
			s.printf("no %s\n", f.what())
			return
		}
		t.add(cell{"total", bold}, cell{}, cell{thousands(sum), bold})
		t.draw(s, 0)
	}
	return a, nil
}

func (f *rejectsFlags) what() string {
	if f.late {
		return "late events"
	}
	return "rejected records"
}

// exceptionLine is a rejected record or late event in JSON.
type exceptionLine struct {
	Kind      string  `json:"kind"` // rejected or late
	Source    string  `json:"source"`
	Topic     string  `json:"topic"`
	Partition int32   `json:"partition"`
	Offset    int64   `json:"offset"`
	Index     int     `json:"index"`
	Time      *string `json:"time"` // null: it has none
	Reason    string  `json:"reason"`
	Detail    string  `json:"detail"`
	Raw       *string `json:"raw,omitempty"`
	RawBase64 *string `json:"raw_base64,omitempty"` // of what is not UTF-8
}

func lineOf(e *store.ExceptionRow) exceptionLine {
	l := exceptionLine{Kind: "rejected", Source: e.Source, Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, Index: e.Index,
		Reason: e.Reason, Detail: string(e.Detail)}
	if e.Kind == store.Late {
		l.Kind = "late"
	}
	if e.Time != event.MinTime {
		t := moments(e.Time)
		l.Time = &t
	}
	raw := string(e.Raw)
	if utf8.Valid(e.Raw) {
		l.Raw = &raw
	} else {
		raw = base64.StdEncoding.EncodeToString(e.Raw)
		l.RawBase64 = &raw
	}
	return l
}

// page answers with the records themselves.
func (f *rejectsFlags) page(ctx context.Context, r *reader, q store.ExceptionQuery) (*answer, error) {
	q.Scope = r.scope
	var rows []store.ExceptionRow
	for {
		q.Limit = min(f.limit-len(rows), store.PageRowsMax)
		page, err := r.Exceptions(ctx, q)
		if err != nil {
			return nil, err
		}
		rows = append(rows, page.Items...)
		if q.After = page.Next; q.After == "" || len(rows) >= f.limit {
			break
		}
	}
	a := &answer{draw: func(s *screen) { f.draw(s, rows, q.After) }}
	for i := range rows {
		e := &rows[i]
		if err := a.line(fmt.Sprintf("%s/%d/%d/%d", e.Topic, e.Partition, e.Offset, e.Index), lineOf(e)); err != nil {
			return nil, err
		}
	}
	if q.After != "" && f.json && !f.watch {
		return a, a.line("", map[string]any{"next": q.After})
	}
	return a, nil
}

func (f *rejectsFlags) draw(s *screen, rows []store.ExceptionRow, next store.Cursor) {
	for i := range rows {
		e := &rows[i]
		at := "no time"
		if e.Time != event.MinTime {
			at = moment(e.Time)
		}
		place := fmt.Sprintf("%s/%d/%d", safe(e.Topic, 80), e.Partition, e.Offset)
		if f.late {
			place += fmt.Sprintf("#%d", e.Index)
		}
		head := safe(fmt.Sprintf("%s  %s  %s", at, e.Source, place), s.room(0))
		s.printf("%s  %s\n", head, s.paint(amber, safe(cmp.Or(e.Reason, "late"), 40)))
		if len(e.Detail) > 0 {
			s.printf("    %s\n", safe(e.Detail, s.room(4)))
		}
		size := fmt.Sprintf("%s B", thousands(int64(len(e.Raw))))
		s.printf("    %s  %s\n", s.paint(faint, size), safe(e.Raw, s.room(6+len(size))))
	}
	switch {
	case len(rows) == 0:
		s.printf("no %s\n", f.what())
	case next != "":
		s.printf("there are more: --after %s\n", next)
	}
}

// each calls yield with every record that is asked for, once.
func (r *reader) each(ctx context.Context, q store.ExceptionQuery, yield func(*store.ExceptionRow) error) error {
	q.Scope, q.Limit = r.scope, store.PageRowsMax
	type identity struct {
		topic     string
		partition int32
		offset    int64
	}
	seen := map[identity]bool{} // several late events may be of one record
	for {
		page, err := r.Exceptions(ctx, q)
		if err != nil {
			return err
		}
		for i := range page.Items {
			e := &page.Items[i]
			id := identity{e.Topic, e.Partition, e.Offset}
			if q.Kind == store.Late && seen[id] {
				continue
			}
			if q.Kind == store.Late {
				seen[id] = true
			}
			if err := yield(e); err != nil {
				return err
			}
		}
		if q.After = page.Next; q.After == "" {
			return nil
		}
	}
}

// export writes the records to a file, which is complete or not there.
func (f *rejectsFlags) export(ctx context.Context, c *cobra.Command, r *reader, q store.ExceptionQuery) (*answer, error) {
	var n int64
	write := func(w io.Writer) (err error) {
		if strings.HasSuffix(f.raw, ".parquet") {
			n, err = r.exportArchive(ctx, w, q)
		} else {
			n, err = r.exportLines(ctx, w, q)
		}
		return err
	}
	if f.raw == "-" {
		return &answer{draw: func(*screen) {}}, write(c.OutOrStdout())
	}
	if err := writeWhole(f.raw, write); err != nil {
		return nil, err
	}
	a := &answer{draw: func(s *screen) { s.printf("%s: %s records\n", f.raw, thousands(n)) }}
	return a, a.line("", map[string]any{"file": f.raw, "records": n})
}

// writeWhole writes a file under another name and gives it its own when it is complete.
func writeWhole(name string, write func(io.Writer) error) (err error) {
	part, err := os.OpenFile(name+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, bareError(err))
	}
	w := bufio.NewWriterSize(part, 1<<20)
	err = write(w)
	if err = errors.Join(err, w.Flush(), part.Close()); err != nil {
		return errors.Join(err, os.Remove(part.Name()))
	}
	return os.Rename(part.Name(), name)
}

func (r *reader) exportLines(ctx context.Context, w io.Writer, q store.ExceptionQuery) (n int64, err error) {
	source := ""
	err = r.each(ctx, q, func(e *store.ExceptionRow) error {
		if bytes.ContainsAny(e.Raw, "\n\r") || len(e.Raw) == 0 {
			return fmt.Errorf("record %s/%d/%d holds a line break or is empty, so it is no line: write --raw FILE.parquet", safe(e.Topic, 80), e.Partition, e.Offset)
		}
		if source = cmp.Or(source, e.Source); e.Source != source {
			return fmt.Errorf("there are records of several sources (%s, %s), and lines do not say of which: name one with --source, or write --raw FILE.parquet",
				safe(source, 40), safe(e.Source, 40))
		}
		n++
		_, err := w.Write(append(slices.Clip(e.Raw), '\n'))
		return err
	})
	return n, err
}

func (r *reader) exportArchive(ctx context.Context, w io.Writer, q store.ExceptionQuery) (n int64, err error) {
	var list []archive.Record
	size := 0
	err = r.each(ctx, q, func(e *store.ExceptionRow) error {
		if size += len(e.Raw); size > rawBytesMax {
			return fmt.Errorf("the records have more than %d MiB: narrow with --source, --reason, --from or --to", rawBytesMax>>20)
		}
		at := e.Time
		if e.Kind == store.Late {
			at = event.MinTime // that is the event's, not the record's
		}
		list = append(list, archive.Record{Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, Timestamp: at, Value: e.Raw})
		return nil
	})
	if err != nil {
		return 0, err
	}
	slices.SortFunc(list, func(a, b archive.Record) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	out := archive.NewWriter(w)
	for i := range list {
		if err := out.Write(&list[i]); err != nil {
			return 0, err
		}
	}
	return int64(len(list)), out.Close()
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/store"
)

const (
	// reportLinesMax bounds the groups that a report is added up to.
	reportLinesMax = 200_000
	// windowName stands for the window in --by.
	windowName = "window"
)

type reportsFlags struct {
	queryFlags
	by    string
	where []string
	limit int
}

func newReportsCommand() *cobra.Command {
	var f reportsFlags
	c := &cobra.Command{
		Use:   "reports [NAME]",
		Short: "List reports, or show the lines of one with their totals",
		Long: "List the reports of a job, or show one: a line for each window and each combination of its fields, then the totals.\n\n" +
			"--by adds lines up to fewer fields; `window` among them keeps the windows apart, and --by \"\" leaves only the totals.\n\n" +
			"With --json a report of the list is {report, first, last, by, measures} and a line {report, window, by: {FIELD: VALUE},\n" +
			"measures: {NAME: NUMBER}}; a line without window is a sum over all of them. The totals are a last line {report, total: true,\n" +
			"lines, measures}, where lines is how many there were before --limit.",
		Example: "  weft reports\n" +
			"  weft reports funnel --last 1h --where channel=alipay\n" +
			"  weft reports funnel --from 2026-03-01 --to 2026-03-02 --by game,channel\n" +
			"  weft reports funnel --last 10m --by window --watch",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args) },
	}
	f.add(c, "windows that start")
	c.Flags().StringVar(&f.by, "by", "", "fields to keep apart, such as window,channel (default: the window and all fields)")
	c.Flags().StringArrayVar(&f.where, "where", nil, "only lines with this value, as FIELD=VALUE; all of several must hold")
	c.Flags().IntVar(&f.limit, "limit", 200, "most lines to show: the last ones")
	c.ValidArgsFunction = f.completion(true, func(ctx context.Context, r *reader) ([]string, error) { return r.Reports(ctx, r.scope) })
	return c
}

func (f *reportsFlags) run(c *cobra.Command, args []string) error {
	from, to, err := f.span()
	q := store.CellQuery{From: from, To: to, Page: store.Page{Limit: store.PageRowsMax}}
	for _, w := range f.where {
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			err = errors.Join(err, fmt.Errorf("--where %q: expected FIELD=VALUE, such as channel=alipay", w))
		}
		q.Where = append(q.Where, store.Dimension{Name: name, Value: []byte(value)})
	}
	if f.limit < 0 {
		err = errors.Join(err, fmt.Errorf("--limit %d: expected a number of lines", f.limit))
	}
	if len(args) == 0 && (c.Flags().Changed("by") || len(f.where) > 0) {
		err = errors.Join(err, errors.New("--by and --where ask for lines of a report: name one"))
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if len(args) == 0 {
		return f.queryFlags.run(c, listReports)
	}
	q.Report = args[0]
	sum := newReportSum(f.by, c.Flags().Changed("by"))
	return f.queryFlags.run(c, func(ctx context.Context, r *reader) (*answer, error) {
		q.Scope = r.scope
		return f.ask(ctx, r, q, sum)
	})
}

// reportLine is a report of the list.
type reportLine struct {
	Report   string   `json:"report"`
	First    string   `json:"first"` // start of the first window with lines
	Last     string   `json:"last"`
	By       []string `json:"by"`
	Measures []string `json:"measures"`
}

func listReports(ctx context.Context, r *reader) (*answer, error) {
	names, err := r.Reports(ctx, r.scope)
	if err != nil {
		return nil, err
	}
	a := &answer{}
	t := &table{columns: []column{{name: "REPORT", least: 12}, {name: "FIRST WINDOW", drop: 1}, {name: "LAST WINDOW"}, {name: "BY", least: 12}, {name: "MEASURES", least: 20}}}
	for _, name := range names {
		first, last, ok, err := r.ReportSpan(ctx, r.scope, name)
		if err != nil {
			return nil, err
		}
		page, err := r.Cells(ctx, store.CellQuery{Scope: r.scope, Report: name, Page: store.Page{Limit: 1}})
		if err != nil {
			return nil, err
		}
		if !ok || len(page.Items) == 0 { // all its lines were taken back
			continue
		}
		line := reportLine{Report: name, First: moments(first), Last: moments(last)}
		for _, d := range page.Items[0].By {
			line.By = append(line.By, d.Name)
		}
		for _, m := range page.Items[0].Measures {
			line.Measures = append(line.Measures, m.Name)
		}
		if err := a.line(name, line); err != nil {
			return nil, err
		}
		t.add(cell{safe(name, cellWidthMax), bold}, cell{moment(first), plain}, cell{moment(last), plain},
			cell{safe(strings.Join(line.By, ", "), cellWidthMax), plain}, cell{safe(strings.Join(line.Measures, ", "), cellWidthMax), plain})
	}
	a.draw = func(s *screen) {
		if len(t.rows) == 0 {
			s.printf("no report has any lines\n")
			return
		}
		t.draw(s, 0)
	}
	return a, nil
}

// reportSum adds up the lines of a report by some of its fields.
type reportSum struct {
	fields []string // nil: all
	window bool
}

func newReportSum(by string, given bool) *reportSum {
	if !given {
		return &reportSum{window: true}
	}
	s := &reportSum{fields: []string{}}
	for name := range strings.SplitSeq(by, ",") {
		switch name = strings.TrimSpace(name); name {
		case "":
		case windowName:
			s.window = true
		default:
			s.fields = append(s.fields, name)
		}
	}
	return s
}

// reportGroup is a line that is shown.
type reportGroup struct {
	window   event.Micros
	by       []string
	measures []int64
}

// reportTable is a report as it is shown.
type reportTable struct {
	fields, measures []string
	groups           map[string]*reportGroup
	total            []int64
}

// add counts a cell in its group.
func (s *reportSum) add(t *reportTable, c *store.Cell) error {
	if t.fields == nil {
		if err := s.begin(t, c); err != nil {
			return err
		}
	}
	g := &reportGroup{}
	key := ""
	if s.window {
		g.window = c.Window
		key = fmt.Sprint(int64(c.Window))
	}
	for _, name := range t.fields {
		value := ""
		for _, d := range c.By {
			if d.Name == name {
				value = string(d.Value)
			}
		}
		g.by = append(g.by, value)
		key += fmt.Sprintf(" %d:%s", len(value), value)
	}
	if there := t.groups[key]; there != nil {
		g = there
	} else {
		if len(t.groups) == reportLinesMax {
			return fmt.Errorf("report %s has more than %d lines here: narrow with --from, --to, --where or --by", c.Report, reportLinesMax)
		}
		t.groups[key] = g
	}
	for _, m := range c.Measures {
		i := slices.Index(t.measures, m.Name)
		if i < 0 { // of another version of the report
			i = len(t.measures)
			t.measures, t.total = append(t.measures, m.Name), append(t.total, 0)
		}
		for len(g.measures) <= i {
			g.measures = append(g.measures, 0)
		}
		g.measures[i] += m.Value
		t.total[i] += m.Value
	}
	return nil
}

// begin takes the names of the columns from the first cell.
func (s *reportSum) begin(t *reportTable, c *store.Cell) error {
	var all []string
	for _, d := range c.By {
		all = append(all, d.Name)
	}
	t.fields = append([]string{}, s.fields...)
	if s.fields == nil {
		t.fields = append(t.fields, all...)
	}
	for _, name := range t.fields {
		if !slices.Contains(all, name) {
			hint := ""
			if near := jobspec.Nearest(name, all); near != "" {
				hint = fmt.Sprintf(" (did you mean %s?)", near)
			}
			return &exitError{exitUsage, fmt.Errorf("--by: report %s has no field %q%s; it has %s and %s", c.Report, name, hint,
				safe(strings.Join(all, ", "), 400), windowName)}
		}
	}
	return nil
}

// lines returns the groups in order of window, then of fields.
func (t *reportTable) lines() []*reportGroup {
	list := make([]*reportGroup, 0, len(t.groups))
	for _, g := range t.groups {
		for len(g.measures) < len(t.measures) {
			g.measures = append(g.measures, 0)
		}
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b *reportGroup) int {
		return cmp.Or(cmp.Compare(a.window, b.window), slices.Compare(a.by, b.by))
	})
	return list
}

func (f *reportsFlags) ask(ctx context.Context, r *reader, q store.CellQuery, sum *reportSum) (*answer, error) {
	t := &reportTable{groups: map[string]*reportGroup{}}
	for q.After = ""; ; {
		page, err := r.Cells(ctx, q)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			if err := sum.add(t, &page.Items[i]); err != nil {
				return nil, err
			}
		}
		if q.After = page.Next; q.After == "" {
			break
		}
	}
	if len(t.groups) == 0 {
		if err := r.reportExists(ctx, q.Report); err != nil {
			return nil, err
		}
	}
	head, err := r.heading(ctx)
	if err != nil {
		return nil, err
	}
	return f.answer(q.Report, head, sum, t)
}

// reportExists tells an unknown name from a report without lines.
func (r *reader) reportExists(ctx context.Context, name string) error {
	names, err := r.Reports(ctx, r.scope)
	if err != nil || slices.Contains(names, name) {
		return err
	}
	hint := ""
	if near := jobspec.Nearest(name, names); near != "" {
		hint = fmt.Sprintf("; did you mean %s?", safe(near, 80))
	}
	return fmt.Errorf("job %s has no lines of a report %q%s (it has lines of %s)", r.scope.Job, name, hint,
		cmp.Or(safe(strings.Join(names, ", "), 400), "none"))
}

func (f *reportsFlags) answer(report, head string, sum *reportSum, t *reportTable) (*answer, error) {
	lines := t.lines()
	shown := lines[max(0, len(lines)-f.limit):]
	if len(t.fields) == 0 && !sum.window {
		shown = nil // it is the total
	}
	a := &answer{draw: func(s *screen) {
		s.printf("%s\n", s.paint(faint, head))
		if hidden := len(lines) - len(shown); hidden > 0 && len(shown) > 0 {
			s.printf("the last %s of %s lines: raise --limit, or narrow with --from, --to, --where or --by\n", thousands(int64(len(shown))), thousands(int64(len(lines))))
		}
		t.draw(s, shown, sum.window)
	}}
	numbers := func(values []int64) map[string]int64 {
		m := map[string]int64{}
		for i, value := range values {
			m[t.measures[i]] = value
		}
		return m
	}
	for _, g := range shown {
		by := map[string]string{}
		for i, value := range g.by {
			by[t.fields[i]] = value
		}
		line := map[string]any{"report": report, "by": by, "measures": numbers(g.measures)}
		key := fmt.Sprintf("%d %q", g.window, g.by)
		if sum.window {
			line["window"] = moments(g.window)
		}
		if err := a.line(key, line); err != nil {
			return nil, err
		}
	}
	return a, a.line("", map[string]any{"report": report, "total": true, "lines": len(lines), "measures": numbers(t.total)})
}

func (t *reportTable) draw(s *screen, lines []*reportGroup, window bool) {
	if len(t.groups) == 0 {
		s.printf("no lines\n")
		return
	}
	out := &table{}
	if window {
		out.columns = append(out.columns, column{name: "WINDOW"})
	}
	for _, name := range t.fields {
		out.columns = append(out.columns, column{name: safe(name, cellWidthMax), least: 12})
	}
	for i, name := range t.measures {
		out.columns = append(out.columns, column{name: safe(name, cellWidthMax), right: true, drop: i})
	}
	row := func(head []string, how style, measures []int64) {
		var cells []cell
		for _, text := range head {
			cells = append(cells, cell{safe(text, cellWidthMax), how})
		}
		for _, n := range measures {
			cells = append(cells, cell{thousands(n), how})
		}
		out.rows = append(out.rows, cells)
	}
	for _, g := range lines {
		head := g.by
		if window {
			head = append([]string{moment(g.window)}, g.by...)
		}
		row(head, plain, g.measures)
	}
	total := make([]string, len(out.columns)-len(t.measures))
	if len(total) == 0 {
		out.columns = append([]column{{name: ""}}, out.columns...)
		total = []string{""}
	}
	total[0] = "total"
	row(total, bold, t.total)
	out.draw(s, 0)
}

package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/weftdata/weft/event"
)

// CellQuery asks for the lines of a report.
type CellQuery struct {
	Scope
	Page
	Report   string
	From, To event.Micros // windows that start from From to before To; both 0: all
	// Where narrows to cells that have these values, at most dimensionsMax.
	Where []Dimension
}

// dimensionsMax bounds the fields of a report that a query names.
const dimensionsMax = 32

// Cells returns the lines of a report, summed over shards, in order of window and then of an order of its own.
func (s *Store) Cells(ctx context.Context, q CellQuery) (Result[Cell], error) {
	r, err := s.cells(ctx, q)
	return r, failed("read report "+q.Report+" of "+q.Job, err)
}

// ReportSpan returns the first and the last window of a report that have lines; false: none has.
func (s *Store) ReportSpan(ctx context.Context, scope Scope, report string) (first, last event.Micros, ok bool, err error) {
	end := func(v *view, ranges iter.Seq2[int, Assignment], order string, to *event.Micros) error {
		for _, a := range ranges {
			t, err := v.generation(ctx, a.Generation)
			if err != nil {
				return err
			}
			err = t.QueryRowContext(ctx, t.text(`SELECT window_us FROM cell{g} WHERE report = $1 AND deleted = 0
				AND window_us >= $2 AND window_us < $3 ORDER BY window_us `+order+` LIMIT 1`), report, a.From, a.To).Scan(to)
			if err == nil {
				ok = true
			}
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		return nil
	}
	err = s.read(ctx, scope, func(v *view) error {
		ok = false
		return errors.Join(end(v, slices.All(v.Ranges), "ASC", &first), end(v, slices.Backward(v.Ranges), "DESC", &last))
	})
	return first, last, ok, failed("read the span of report "+report+" of "+scope.Job, err)
}

// cellPlace is where a cell stands in a report.
type cellPlace struct {
	window event.Micros
	by     []byte
}

func (p cellPlace) cursor() Cursor {
	return cursorOf(append(binary.BigEndian.AppendUint64(nil, uint64(p.window)), p.by...))
}

func (c Cursor) cell() (p cellPlace, err error) {
	if c == "" {
		return cellPlace{event.MinTime, []byte{}}, nil
	}
	b, err := c.bytes(-1)
	if err == nil && (len(b) < 8 || len(b) > 8+indexedBytesMax) {
		_, err = c.bytes(8)
	}
	if err != nil {
		return p, err
	}
	return cellPlace{event.Micros(binary.BigEndian.Uint64(b)), b[8:]}, nil
}

func (s *Store) cells(ctx context.Context, q CellQuery) (r Result[Cell], err error) {
	err = s.read(ctx, q.Scope, func(v *view) error {
		r, err = s.cellPage(ctx, v, q)
		return err
	})
	return r, err
}

// cellPage reads a page within a snapshot.
func (s *Store) cellPage(ctx context.Context, v *view, q CellQuery) (r Result[Cell], err error) {
	limit, err := q.limit()
	if err != nil {
		return r, err
	}
	if err := checkName(q.Report); err != nil {
		return r, err
	}
	if len(q.Where) > dimensionsMax {
		return r, userError("", "%d dimensions: at most %d", len(q.Where), dimensionsMax)
	}
	after, err := q.After.cell()
	if err != nil {
		return r, err
	}
	where, args := s.whereBy(q.Where)
	// Shards of one cell are read together: the limit counts cells.
	query := `SELECT c.window_us, c.by_key, c.by_values, c.measures FROM cell{g} c JOIN (
			SELECT DISTINCT window_us, by_key FROM cell{g} WHERE report = $1 AND deleted = 0 AND window_us >= $2 AND window_us < $3
			AND (window_us, by_key) > ($4, $5)` + where + ` ORDER BY window_us, by_key LIMIT $6
		) p ON c.window_us = p.window_us AND c.by_key = p.by_key
		WHERE c.report = $1 AND c.deleted = 0 ORDER BY c.window_us, c.by_key, c.shard`
	from, to := span(q.From, q.To)
	sum := &cellSum{report: q.Report, where: q.Where}
	for _, a := range v.Ranges {
		a.From, a.To = max(a.From, from), min(a.To, to)
		if a.From >= a.To || a.To <= after.window || len(sum.places) > limit {
			continue
		}
		t, err := v.generation(ctx, a.Generation)
		if err != nil {
			return r, err
		}
		bind := append([]any{q.Report, a.From, a.To, after.window, after.by, limit + 1 - len(sum.places)}, args...)
		if err := each(ctx, t.Tx, sum.add, t.text(query), bind...); err != nil {
			return r, err
		}
	}
	return sum.page(limit), nil
}

// whereBy narrows in SQL by a cell's encoded dimensions. The code may be met at another place by chance, so that
// cellSum looks again.
func (s *Store) whereBy(list []Dimension) (where string, args []any) {
	for i, d := range list {
		where += ` AND ` + s.db.indexOf("by_values", fmt.Sprint("$", 7+i)) + ` > 0`
		args = append(args, appendDimension(nil, d))
	}
	return where, args
}

// cellSum adds up the shards of each cell.
type cellSum struct {
	report string
	where  []Dimension
	cells  []Cell
	places []cellPlace
}

func (c *cellSum) add(rows *sql.Rows) error {
	var p cellPlace
	var by, measures []byte
	if err := rows.Scan(&p.window, &p.by, &by, &measures); err != nil {
		return err
	}
	list, err := decodeMeasures(measures)
	if err != nil {
		return err
	}
	if n := len(c.places); n > 0 && c.places[n-1].window == p.window && bytes.Equal(c.places[n-1].by, p.by) {
		addMeasures(&c.cells[n-1].Measures, list)
		return nil
	}
	cell := Cell{Report: c.report, Window: p.window, Measures: list}
	if cell.By, err = decodeBy(by); err != nil {
		return err
	}
	c.cells, c.places = append(c.cells, cell), append(c.places, p)
	return nil
}

func addMeasures(sum *[]Measure, more []Measure) {
	for _, m := range more {
		i := slices.IndexFunc(*sum, func(o Measure) bool { return o.Name == m.Name })
		if i < 0 {
			*sum = append(*sum, m)
			continue
		}
		(*sum)[i].Value += m.Value
	}
}

func (c *cellSum) page(limit int) (r Result[Cell]) {
	for i, cell := range c.cells[:min(limit, len(c.cells))] {
		if c.matches(cell.By) {
			r.Items = append(r.Items, cell)
		}
		if i == limit-1 && len(c.cells) > limit {
			r.Next = c.places[i].cursor()
		}
	}
	return r
}

func (c *cellSum) matches(by []Dimension) bool {
	for _, want := range c.where {
		same := func(d Dimension) bool { return d.Name == want.Name && bytes.Equal(d.Value, want.Value) }
		if !slices.ContainsFunc(by, same) {
			return false
		}
	}
	return true
}

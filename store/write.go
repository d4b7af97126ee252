package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/weftdata/weft/event"
)

// Write applies a batch in one transaction, all of it or nothing. A batch may come again, as after a lost answer: what
// is in it already changes nothing. It fails with ErrFenced where the owner has a successor.
func (s *Store) Write(ctx context.Context, o Owner, b *Batch) error {
	return failed(fmt.Sprintf("write %d rows to generation %d shard %d", b.Rows(), o.Generation, o.Shard), s.write(ctx, o, b))
}

func (s *Store) write(ctx context.Context, o Owner, b *Batch) error {
	rows, err := stage(b)
	if err != nil {
		return &Error{Class: Internal, Err: err}
	}
	rows.sort()
	return s.db.change(ctx, o.Generation, func(c *changeTx) error { return s.apply(ctx, c, o, rows) })
}

// apply stages the rows, then takes the lock of the epoch, then merges: a writer that is paused while it sends rows keeps
// its successor waiting for nothing.
func (s *Store) apply(ctx context.Context, c *changeTx, o Owner, rows *staged) error {
	var scripts []string
	for _, part := range rows.parts() {
		if len(part.tables[0].rows) == 0 {
			continue
		}
		for _, t := range part.tables {
			if err := c.stage(ctx, t.name, t.columns, t.rows); err != nil {
				return err
			}
		}
		scripts = append(scripts, schemaText(part.merge, "{g}", c.suffix, "{generation}", fmt.Sprint(o.Generation),
			"{shard}", fmt.Sprint(o.Shard), "{epoch}", fmt.Sprint(o.Epoch)))
	}
	if m := rows.mark; m != nil {
		scripts = append(scripts, schemaText("merge_progress", "{generation}", fmt.Sprint(o.Generation), "{shard}", fmt.Sprint(o.Shard),
			"{epoch}", fmt.Sprint(o.Epoch), "{seq}", fmt.Sprint(m.Seq), "{watermark}", number(m.Watermark),
			"{settle}", number(m.Settle), "{span}", number(m.MaxSpan), "{written}", fmt.Sprint(s.now().UnixMicro())))
	}
	if err := s.hold(ctx, c.tables, o); err != nil {
		return err
	}
	return c.script(ctx, strings.Join(scripts, "\n"))
}

// number is a literal of SQL. The least one has none: its digits are parsed before its sign.
func number(n event.Micros) string {
	if n == event.MinTime {
		return fmt.Sprintf("(%d - 1)", n+1)
	}
	return fmt.Sprint(int64(n))
}

// stagedPart is what one script of the schema merges.
type stagedPart struct {
	merge  string
	tables []stagedTable // without rows of the first there are none of the others
}

type stagedTable struct {
	name    string
	columns []string
	rows    [][]any
}

func (s *staged) parts() []stagedPart {
	return []stagedPart{
		{"merge_session", []stagedTable{
			{"stage_session", []string{"id", "seq", "deleted", "start_us", "end_us", "events", "user_key", "digest", "body"}, s.sessions},
			{"stage_key", []string{"id", "kind", "value_key"}, s.keys},
			{"stage_hit", []string{"id", "scenario", "start_us", "decided_us"}, s.hits},
		}},
		{"merge_cell", []stagedTable{
			{"stage_cell", []string{"report", "window_us", "by_key", "seq", "deleted", "by_values", "measures"}, s.cells},
		}},
		{"merge_exception", []stagedTable{
			{"stage_exception", []string{"id", "kind", "seq", "time_us", "source", "topic", "partition", "record", "idx", "reason",
				"detail", "raw"}, s.exceptions},
		}},
	}
}

// Compact removes tombstones and empty cells of the owner's shard before a position and returns how many. No restore may go
// back, and no reader of changes be behind, to before that position.
func (s *Store) Compact(ctx context.Context, o Owner, before Position) (n int64, err error) {
	err = s.db.change(ctx, o.Generation, func(c *changeTx) error {
		n = 0
		if err := s.hold(ctx, c.tables, o); err != nil {
			return err
		}
		for _, table := range []string{"session", "cell"} {
			result, err := c.ExecContext(ctx, c.text(`DELETE FROM `+table+`{g} WHERE deleted = 1 AND shard = $1 AND (epoch, seq) < ($2, $3)`),
				o.Shard, int64(before.Epoch), int64(before.Seq))
			if err != nil {
				return err
			}
			removed, err := result.RowsAffected()
			if err != nil {
				return err
			}
			n += removed
		}
		return nil
	})
	return n, failed(fmt.Sprintf("compact generation %d shard %d", o.Generation, o.Shard), err)
}

package store

import (
	"context"
	"database/sql"
	"encoding/binary"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// Digest is the engine's fingerprint of a set of sessions or cells, whatever its order.
type Digest = correlate.Digest

// digestBytes is the digest of one session as it is stored: a little-endian number.
func digestBytes(d Digest) []byte {
	b := make([]byte, 0, 8*len(d.Sum))
	for _, word := range d.Sum {
		b = binary.LittleEndian.AppendUint64(b, word)
	}
	return b
}

func addDigest(d *Digest, stored []byte) {
	one := Digest{Count: 1}
	for i := range one.Sum {
		one.Sum[i] = binary.LittleEndian.Uint64(stored[8*i:])
	}
	d.Add(one)
}

// Digest adds up the sessions that start from from to before to; both 0: all. It equals what correlate.Digester gives for
// them.
func (s *Store) Digest(ctx context.Context, scope Scope, from, to event.Micros) (d Digest, err error) {
	from, to = span(from, to)
	err = s.read(ctx, scope, func(v *view) error {
		d = Digest{}
		return v.newestFirst(from, to, func(a Assignment) (bool, error) {
			t, err := v.generation(ctx, a.Generation)
			if err != nil {
				return false, err
			}
			var one sql.RawBytes
			return true, each(ctx, t.Tx, func(rows *sql.Rows) error {
				if err := rows.Scan(&one); err != nil {
					return err
				}
				addDigest(&d, one)
				return nil
			}, t.text(`SELECT digest FROM session{g} WHERE deleted = 0 AND start_us >= $1 AND start_us < $2`), a.From, a.To)
		})
	})
	return d, failed("compute the digest of "+scope.Job, err)
}

// ReportDigest does for the cells of all reports, summed over shards, what Digest does for sessions.
func (s *Store) ReportDigest(ctx context.Context, scope Scope, e *Encoder, from, to event.Micros) (d Digest, err error) {
	err = s.read(ctx, scope, func(v *view) error {
		digester := correlate.NewDigester(e.cfg)
		for _, report := range e.cfg.Reports {
			q := CellQuery{Report: report.Name, From: from, To: to, Page: Page{Limit: PageRowsMax}}
			for {
				r, err := s.cellPage(ctx, v, q)
				if err != nil {
					return err
				}
				for _, c := range r.Items {
					if cell, ok := e.CellOf(c); ok {
						digester.Cell(&cell)
					}
				}
				if q.After = r.Next; q.After == "" {
					break
				}
			}
		}
		d = digester.Reports
		return nil
	})
	return d, failed("compute the report digest of "+scope.Job, err)
}

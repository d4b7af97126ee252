package backfill

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"iter"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/store"
)

// Totals are the results of a backfill as a whole.
type Totals struct {
	Sessions int64            `json:"sessions"`
	Rejects  map[string]int64 `json:"rejects"` // by reason
	Cells    int64            `json:"cells"`
	Records  int64            `json:"records"` // read, those that several slices read as often
	Bytes    int64            `json:"bytes"`
	Seconds  float64          `json:"seconds"` // of all slices, one after another
	// Digest is that of a replay with the same sessions and reports; Parts has those of sessions and of reports.
	Digest string            `json:"digest"`
	Parts  map[string]string `json:"digests"`
}

// Total sums up the staged sessions that start in a range; the zero range is all of them. Then its digest equals that of a
// replay of the same records.
func Total(ctx context.Context, objects ObjectStore, ref PlanRef, job *operator.Job, r TimeRange) (*Totals, error) {
	p, err := LoadPlan(ctx, objects, ref)
	if err != nil {
		return nil, err
	}
	staged, err := stagedSlices(ctx, objects, p)
	if err != nil {
		return nil, err
	}
	if r == (TimeRange{}) {
		r = TimeRange{event.MinTime, event.MaxTime}
	}
	t := &Totals{Rejects: map[string]int64{}}
	d, tally := correlate.NewDigester(&job.Config), correlate.NewTally(&job.Config)
	for _, m := range staged {
		t.Records, t.Bytes, t.Seconds = t.Records+m.Records, t.Bytes+m.Bytes, t.Seconds+m.Seconds
		for reason, n := range m.Rejects {
			t.Rejects[reason] += n
		}
		for row, err := range readRows(ctx, objects, m.Rows, &job.Config) {
			if err != nil {
				return nil, err
			}
			if row.session == nil || !r.contains(row.session.Start) {
				continue
			}
			t.Sessions++
			d.Row(row.session)
			tally.Add(row.session)
		}
	}
	tally.Each(func(c *correlate.Cell) {
		t.Cells++
		d.Cell(c)
	})
	t.Digest, t.Parts = digestOf(d)
	return t, nil
}

// digestOf returns the digest of sessions and reports, as a summary has it.
func digestOf(d *correlate.Digester) (digest string, parts map[string]string) {
	parts = map[string]string{"sessions": d.Sessions.String(), "reports": d.Reports.String()}
	sum := sha256.Sum256([]byte(parts["sessions"] + parts["reports"]))
	return hex.EncodeToString(sum[:]), parts
}

// exceptionsOf yields the served exceptions of a time.
func exceptionsOf(ctx context.Context, s Serving, job string, kind store.ExceptionKind, r TimeRange) iter.Seq2[*store.Exception, error] {
	return func(yield func(*store.Exception, error) bool) {
		q := store.ExceptionQuery{Scope: store.Scope{Job: job}, Page: store.Page{Limit: store.PageRowsMax}, Kind: kind, From: r.From, To: r.To}
		for {
			page, err := s.Exceptions(ctx, q)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Items {
				if !yield(&page.Items[i].Exception, nil) {
					return
				}
			}
			if q.After = page.Next; q.After == "" {
				return
			}
		}
	}
}

package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"math"

	"github.com/weftdata/weft/event"
)

// AuditEntry says who did what, and why.
type AuditEntry struct {
	ID        int64        // in order of time; given by the store
	At        event.Micros // given by the store
	Actor     string
	Job       string // may be empty
	Action    string
	Reason    string
	RequestID string // an action of a job with one request id is logged once
	Detail    string
}

// auditTextBytesMax bounds each text of an entry; what is longer is cut.
const auditTextBytesMax = 64 << 10

// Audit appends an entry. The database refuses to change or remove one.
func (s *Store) Audit(ctx context.Context, e AuditEntry) error {
	return failed("write the audit log", s.db.catalog(ctx, func(tx *sql.Tx) error { return s.audit(ctx, tx, e) }))
}

func (s *Store) audit(ctx context.Context, tx *sql.Tx, e AuditEntry) error {
	id, err := s.next(ctx, tx, "audit")
	if err != nil {
		return err
	}
	cut := func(s string) string { return text(s[:min(len(s), auditTextBytesMax)]) }
	_, err = tx.ExecContext(ctx, `INSERT INTO audit (id, at_us, actor, job, action, reason, request_id, detail)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (job, action, request_id) WHERE request_id <> '' DO NOTHING`,
		id, s.now().UnixMicro(), cut(e.Actor), cut(e.Job), cut(e.Action), cut(e.Reason), cut(e.RequestID), cut(e.Detail))
	return err
}

// AuditLog returns entries, newest first: of one job, or of all where job is empty.
func (s *Store) AuditLog(ctx context.Context, job string, p Page) (Result[AuditEntry], error) {
	r, err := s.auditLog(ctx, job, p)
	return r, failed("read the audit log", err)
}

func (s *Store) auditLog(ctx context.Context, job string, p Page) (r Result[AuditEntry], err error) {
	limit, err := p.limit()
	if err != nil {
		return r, err
	}
	before := int64(math.MaxInt64)
	if p.After != "" {
		b, err := p.After.bytes(8)
		if err != nil {
			return r, err
		}
		before = int64(binary.BigEndian.Uint64(b))
	}
	snap, err := s.db.snapshot(ctx)
	if err != nil {
		return r, err
	}
	defer snap.close()
	err = each(ctx, snap.catalog(), func(rows *sql.Rows) error {
		var e AuditEntry
		err := rows.Scan(&e.ID, &e.At, &e.Actor, &e.Job, &e.Action, &e.Reason, &e.RequestID, &e.Detail)
		r.Items = append(r.Items, e)
		return err
	}, `SELECT id, at_us, actor, job, action, reason, request_id, detail FROM audit
		WHERE ($1 = '' OR job = $1) AND id < $2 ORDER BY id DESC LIMIT $3`, job, before, limit+1)
	if len(r.Items) > limit {
		r.Items = r.Items[:limit]
		r.Next = cursorOf(binary.BigEndian.AppendUint64(nil, uint64(r.Items[limit-1].ID)))
	}
	return r, err
}

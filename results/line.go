package results

import "github.com/weftdata/weft/correlate"

// SessionText makes the JSON of sessions one by one: lines of sessions.jsonl without the line's end. It is not safe for
// concurrent use.
type SessionText struct{ s *jsonSessions }

// NewSessionText returns a SessionText for rows with these names.
func NewSessionText(m Meta) *SessionText { return &SessionText{newJSONSessions(nil, m)} }

// Append appends one session to dst.
func (t *SessionText) Append(dst []byte, r *correlate.Row) []byte {
	return append(t.s.appendOpen(dst, r), '}')
}

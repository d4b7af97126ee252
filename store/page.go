package store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/weftdata/weft/event"
)

// Limits of what one read returns.
const (
	PageRowsDefault = 100
	PageRowsMax     = 1000
	// PageBytesMax ends a page early: bodies of sessions may be large.
	PageBytesMax = 32 << 20
)

// Page asks for a part of a list.
type Page struct {
	Limit int    // 1 to PageRowsMax; 0: PageRowsDefault
	After Cursor // Next of the page before; empty: from the start
}

func (p Page) limit() (int, error) {
	switch {
	case p.Limit == 0:
		return PageRowsDefault, nil
	case p.Limit < 0 || p.Limit > PageRowsMax:
		return 0, userError("", "a page of %d rows: expected 1 to %d", p.Limit, PageRowsMax)
	}
	return p.Limit, nil
}

// Cursor is a place in a list. It is text for a URL and means nothing elsewhere. It stays good when the list changes.
type Cursor string

// Result is a page of a list.
type Result[T any] struct {
	Items []T
	Next  Cursor // empty: there is no more
	// Canary answered, beside what is served; nil: none did.
	Canary *Canary
}

func cursorOf(b []byte) Cursor { return Cursor(base64.RawURLEncoding.EncodeToString(b)) }

func (c Cursor) bytes(n int) ([]byte, error) {
	b, err := base64.RawURLEncoding.DecodeString(string(c))
	if err != nil || n >= 0 && len(b) != n {
		return nil, userError("start from the first page", "the cursor is not one of this list")
	}
	return b, nil
}

// place is where a row stands in a list that is ordered by time, then id.
type place struct {
	time event.Micros
	id   []byte
}

// newestPlace is before every row of a list that shows the newest first.
func newestPlace() place { return place{event.MaxTime, slices.Repeat([]byte{0xff}, 17)} }

func (p place) cursor() Cursor {
	return cursorOf(append(binary.BigEndian.AppendUint64(nil, uint64(p.time)), p.id...))
}

func (c Cursor) place() (place, error) {
	if c == "" {
		return newestPlace(), nil
	}
	b, err := c.bytes(8 + len(ID{}))
	if err != nil {
		return place{}, err
	}
	return place{event.Micros(binary.BigEndian.Uint64(b)), b[8:]}, nil
}

// Scope says what is read: what a job serves, or one generation of it, as for a shadow.
type Scope struct {
	Job        string
	Generation int64 // 0: what the serving map serves
}

// readAttempts is how often a read starts again because a generation was dropped between its map and its rows.
const readAttempts = 4

// view is what a scope covers in one snapshot.
type view struct {
	snapshot
	Map
}

// read runs fn over a scope in one snapshot. fn may run again, and must start from nothing.
func (s *Store) read(ctx context.Context, scope Scope, fn func(*view) error) error {
	var err error
	for range readAttempts {
		err = s.readOnce(ctx, scope, fn)
		if !errors.Is(err, ErrNoGeneration) || scope.Generation != 0 {
			break
		}
	}
	return err
}

func (s *Store) readOnce(ctx context.Context, scope Scope, fn func(*view) error) error {
	if err := checkName(scope.Job); err != nil {
		return err
	}
	snap, err := s.db.snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.close()
	v := &view{snapshot: snap}
	if v.Map, err = readMap(ctx, snap.catalog(), scope.Job); err != nil {
		return err
	}
	if scope.Generation != 0 {
		if err := s.readyIn(ctx, snap.catalog(), scope.Job, scope.Generation); err != nil {
			return err
		}
		v.Ranges = []Assignment{{event.MinTime, event.MaxTime, scope.Generation}}
	}
	return gone(fn(v))
}

// newestFirst calls yield for the ranges that meet a range of time, clipped to it, the newest first, while it wants more.
func (v *view) newestFirst(from, to event.Micros, yield func(Assignment) (more bool, err error)) error {
	for _, a := range slices.Backward(v.Ranges) {
		a.From, a.To = max(a.From, from), min(a.To, to)
		if a.From >= a.To {
			continue
		}
		if more, err := yield(a); err != nil || !more {
			return err
		}
	}
	return nil
}

// span is a query's range of time; the zero value is all of it.
func span(from, to event.Micros) (event.Micros, event.Micros) {
	if from == 0 && to == 0 {
		return event.MinTime, event.MaxTime
	}
	return from, to
}

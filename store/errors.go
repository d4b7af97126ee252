package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlitecode "modernc.org/sqlite/lib"
)

// Class says whose fault an error is.
type Class string

// The classes.
const (
	User     Class = "user"     // the request cannot be done as it is
	External Class = "external" // the database, its disk or the way to it
	Internal Class = "internal" // a defect of this program
)

// Error is every error that the store returns.
type Error struct {
	Class     Class
	Retryable bool   // the same call may succeed later
	Op        string // what was being done
	Hint      string // what a person can do; may be empty
	Err       error
}

// Error says what was being done, what failed and what to do.
func (e *Error) Error() string {
	text := "store: " + e.Op + ": " + e.Err.Error()
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errors that callers tell apart with errors.Is.
var (
	ErrFenced       = errors.New("a newer epoch owns the shard")
	ErrStale        = errors.New("the serving map has changed")
	ErrNoGeneration = errors.New("no such generation")
	ErrNotFound     = errors.New("not found")
	ErrServed       = errors.New("the generation is served")
)

// errTaken says that a request id stands for another request.
var errTaken = errors.New("the request id was used for another switch")

func userError(hint, format string, args ...any) error {
	return &Error{Class: User, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// failed names what was being done and classifies the error.
func failed(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		e := *known
		if e.Op == "" {
			e.Op = op
		}
		return &e
	}
	e := classify(err)
	e.Op, e.Err = op, err
	return e
}

func classify(err error) *Error {
	var pg *pgconn.PgError
	var lite *sqlite.Error
	switch {
	case errors.Is(err, ErrFenced):
		return &Error{Class: External, Hint: "stop: a successor of this writer has started"}
	case errors.Is(err, ErrStale):
		return &Error{Class: User, Hint: "read the map again and decide anew"}
	case errors.Is(err, errTaken):
		return &Error{Class: User, Hint: "give each switch a request id of its own"}
	case errors.Is(err, ErrNoGeneration), errors.Is(err, ErrNotFound):
		return &Error{Class: User}
	case errors.Is(err, ErrServed):
		return &Error{Class: User, Hint: "assign its ranges to another generation first"}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &Error{Class: External, Retryable: true}
	case errors.As(err, &pg):
		return classifyPostgres(pg)
	case errors.As(err, &lite):
		return classifySQLite(lite)
	case errors.Is(err, fs.ErrPermission):
		return &Error{Class: User, Hint: "the process may not use that folder"}
	}
	// What is left is the connection: refused, reset, closed.
	return &Error{Class: External, Retryable: true}
}

func classifyPostgres(err *pgconn.PgError) *Error {
	switch {
	case strings.HasPrefix(err.Code, "28"), err.Code == "3D000", err.Code == "42501":
		return &Error{Class: User, Hint: "check user, password, database and privileges of the connection string"}
	case err.Code == "53100":
		return &Error{Class: External, Retryable: true, Hint: "the database's disk is full"}
	}
	for _, class := range []string{"08", "25P03", "40", "53", "55", "57", "58"} {
		if strings.HasPrefix(err.Code, class) {
			return &Error{Class: External, Retryable: true}
		}
	}
	return &Error{Class: Internal}
}

func classifySQLite(err *sqlite.Error) *Error {
	switch err.Code() & 0xff {
	case sqlitecode.SQLITE_BUSY, sqlitecode.SQLITE_LOCKED:
		return &Error{Class: External, Retryable: true, Hint: "another process holds the file"}
	case sqlitecode.SQLITE_FULL:
		return &Error{Class: External, Retryable: true, Hint: "the disk is full"}
	case sqlitecode.SQLITE_IOERR, sqlitecode.SQLITE_CANTOPEN, sqlitecode.SQLITE_INTERRUPT:
		return &Error{Class: External, Retryable: true}
	case sqlitecode.SQLITE_CORRUPT, sqlitecode.SQLITE_NOTADB:
		return &Error{Class: External, Hint: "the file is damaged: restore it, or rebuild the generation from the archive"}
	case sqlitecode.SQLITE_READONLY, sqlitecode.SQLITE_PERM, sqlitecode.SQLITE_AUTH:
		return &Error{Class: User, Hint: "the process may not write the store's folder"}
	}
	return &Error{Class: Internal}
}

// Package objstore is what Weft needs of an object store: whole objects, ranges, listings, and two writes with a condition
// on which everything else stands: put if absent (manifests, versions) and put if match (pointers, checkpoints).
//
// Open talks to any S3 store, Folder keeps objects as files of a local folder. Both give the same guarantees, which
// objtest.Conformance checks: a write is atomic and visible to all once it is acknowledged, and of several writers with one
// condition exactly one succeeds.
//
// A reply can be lost after the write took place. A conditional write therefore carries a nonce of the caller's, which is
// kept with the object: repeating the call with the same nonce succeeds if the first one did, for as long as nobody else
// has written the object since.
package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits.
const (
	KeyBytesMax     = 800     // S3 allows 1024, prefix included
	SegmentBytesMax = 250     // between slashes: names of files have at most 255
	GetBytesMax     = 1 << 30 // of a whole object; larger ones are read by ranges
	NonceBytesMax   = 128
)

// Info describes an object.
type Info struct {
	Key      string
	Size     int64
	ETag     string    // names the content; may be empty in a listing
	Modified time.Time // may be zero after a write
}

// Store is an object store.
type Store interface {
	// Get returns an object of at most GetBytesMax, or ErrNotFound.
	Get(ctx context.Context, key string) ([]byte, Info, error)
	// GetRange returns n bytes from an offset on, fewer where the object ends before.
	GetRange(ctx context.Context, key string, from, n int64) ([]byte, error)
	// Stat describes an object, or returns ErrNotFound.
	Stat(ctx context.Context, key string) (Info, error)
	// Put writes an object, whatever is there. body has size bytes from its start; it is read again where a try fails.
	Put(ctx context.Context, key string, body io.ReadSeeker, size int64) (Info, error)
	// PutIfAbsent writes an object that is not there yet; ErrPrecondition where it is, and is not the caller's own.
	PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (Info, error)
	// PutIfMatch replaces an object that still has the etag; ErrPrecondition where it has not, and is not the caller's own.
	PutIfMatch(ctx context.Context, key string, data []byte, etag, nonce string) (Info, error)
	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// List yields the objects whose keys start with the prefix and are greater than after, in order of bytes. An error ends
	// it.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
}

// What an Error can be, for errors.Is.
var (
	ErrNotFound     = errors.New("there is no such object")
	ErrPrecondition = errors.New("the object is not what the condition says")
	ErrCredentials  = errors.New("the store refuses the credentials")
	ErrNoBucket     = errors.New("there is no such bucket")
	ErrUnsupported  = errors.New("the store does not honour conditional writes")
	ErrKey          = errors.New("invalid key")
)

// Class says whose an error is.
type Class string

// The classes of errors.
const (
	User     Class = "user"     // wrong configuration, or an object that is not as expected: a retry does not help
	External Class = "external" // the store or the network: the same call may succeed later
	Internal Class = "internal" // a wrong call
)

// Error is an error of this package. It holds no secret.
type Error struct {
	Op    string // what was being done: put jobs/payments/3
	Class Class
	Hint  string // what to do about it; may be empty
	Err   error
}

// Error says what was being done, what went wrong and what to do about it.
func (e *Error) Error() string {
	text := e.Op + ": " + e.Err.Error()
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Unwrap returns what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// Retryable tells whether the same call may succeed later. A write that failed so may have taken place.
func (e *Error) Retryable() bool { return e.Class == External }

// CheckKey checks that a key can be one of every store: segments between slashes that are names of files, of which none
// starts with a dot.
func CheckKey(key string) error {
	bad := func(why string) error {
		return &Error{Op: fmt.Sprintf("check key %.100q", key), Class: Internal, Err: fmt.Errorf("%w: %s", ErrKey, why)}
	}
	switch {
	case key == "":
		return bad("it is empty")
	case len(key) > KeyBytesMax:
		return bad(fmt.Sprintf("it has %d bytes; at most %d are allowed", len(key), KeyBytesMax))
	case !utf8.ValidString(key):
		return bad("it is no UTF-8")
	}
	for _, r := range key {
		if r < ' ' || r == 0x7f || r == '\\' {
			return bad(fmt.Sprintf("it has the character %q", r))
		}
	}
	for segment := range strings.SplitSeq(key, "/") {
		switch {
		case segment == "":
			return bad("it has an empty segment")
		case segment[0] == '.':
			return bad("a segment starts with a dot")
		case len(segment) > SegmentBytesMax:
			return bad(fmt.Sprintf("a segment has %d bytes; at most %d are allowed", len(segment), SegmentBytesMax))
		}
	}
	return nil
}

// checkNonce checks that a nonce can be kept with an object.
func checkNonce(op, nonce string) error {
	ok := nonce != "" && len(nonce) <= NonceBytesMax
	for _, r := range nonce {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r))
	}
	if !ok {
		return &Error{Op: op, Class: Internal, Err: fmt.Errorf("nonce %.50q: expected 1 to %d letters, digits and -_.", nonce, NonceBytesMax)}
	}
	return nil
}

// ReaderAt reads an object by ranges. It must not change meanwhile.
func ReaderAt(ctx context.Context, s Store, info Info) io.ReaderAt { return readerAt{ctx, s, info} }

type readerAt struct {
	ctx   context.Context // of the read: io.ReaderAt has none
	store Store
	info  Info
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &Error{Op: "read " + r.info.Key, Class: Internal, Err: fmt.Errorf("offset %d", off)}
	}
	if off >= r.info.Size || len(p) == 0 {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	data, err := r.store.GetRange(r.ctx, r.info.Key, off, int64(len(p)))
	n := copy(p, data)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

package objstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
)

// Probe checks that a store honours conditional writes, with racing ones on an object of its own, which it deletes. Some
// stores take the conditions and ignore them: two owners of one shard would both believe that they are alone. Programs
// call it when they start.
func Probe(ctx context.Context, s Store) (err error) {
	key := "weft-probe/" + rand.Text()
	defer func() {
		if gone := s.Delete(ctx, key); gone != nil && err == nil {
			err = gone
		}
	}()
	absent := func(nonce string) (Info, error) { return s.PutIfAbsent(ctx, key, []byte(nonce), nonce) }
	first, err := race("If-None-Match", absent)
	if err != nil {
		return err
	}
	if _, err := absent(rand.Text()); !errors.Is(err, ErrPrecondition) {
		return unsupported("If-None-Match", "an object that was there was replaced", err)
	}
	match := func(nonce string) (Info, error) { return s.PutIfMatch(ctx, key, []byte(nonce), first.ETag, nonce) }
	second, err := race("If-Match", match)
	if err != nil {
		return err
	}
	if second.ETag == first.ETag {
		return unsupported("If-Match", fmt.Sprintf("two contents have the etag %q", first.ETag), nil)
	}
	if _, err := match(rand.Text()); !errors.Is(err, ErrPrecondition) {
		return unsupported("If-Match", "an object with another etag was replaced", err)
	}
	return nil
}

// race runs a write twice at once: one must succeed, the other must be refused.
func race(header string, write func(nonce string) (Info, error)) (won Info, err error) {
	type result struct {
		info Info
		err  error
	}
	results := make(chan result, 2)
	for range cap(results) {
		nonce := rand.Text()
		go func() {
			info, err := write(nonce)
			results <- result{info, err}
		}()
	}
	wins := 0
	for range cap(results) {
		r := <-results
		switch {
		case r.err == nil:
			won = r.info
			wins++
		case !errors.Is(r.err, ErrPrecondition):
			err = r.err
		}
	}
	switch {
	case wins == 2:
		return won, unsupported(header, "two racing writes both succeeded", nil)
	case err != nil:
		return won, unsupported(header, "a write failed", err)
	case wins == 0:
		return won, unsupported(header, "of two racing writes none succeeded", nil)
	}
	return won, nil
}

// unsupported says what a store does in place of what it should. An error of another kind is not the store's fault.
func unsupported(header, what string, err error) error {
	var e *Error
	if errors.As(err, &e) && (e.Retryable() || !errors.Is(err, ErrUnsupported)) {
		return &Error{Op: "probe the object store", Class: e.Class, Hint: e.Hint, Err: fmt.Errorf("%s: %w", what, e.Err)}
	}
	if err != nil {
		what += ": " + err.Error()
	}
	return &Error{Op: "probe the object store", Class: User, Err: fmt.Errorf("%w (%s): %s", ErrUnsupported, header, what),
		Hint: "use one that does, such as AWS S3, MinIO, Cloudflare R2, Ceph RGW or Versity S3 Gateway in a recent version"}
}

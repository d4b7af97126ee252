// Package objtest holds the tests that every object store must pass, and a store that fails as told, for the tests of
// what uses one.
package objtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weftdata/weft/objstore"
)

// Conformance runs the tests on a store, below a prefix of their own.
func Conformance(t *testing.T, s objstore.Store) {
	prefix := "conformance-" + strings.ToLower(rand.Text()) + "/"
	for _, c := range []struct {
		name string
		run  func(*suite)
	}{
		{"objects", testObjects}, {"ranges", testRanges}, {"listings", testListings}, {"keys", testKeys},
		{"if absent", testIfAbsent}, {"if match", testIfMatch}, {"races", testRaces}, {"canceled", testCanceled},
		{"probe", func(s *suite) { s.must(objstore.Probe(s.Context(), s.store)) }},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(&suite{t, s, prefix + strings.ReplaceAll(c.name, " ", "-") + "/"}) })
	}
}

type suite struct {
	*testing.T
	store  objstore.Store
	prefix string
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// is checks an error's kind.
func (s *suite) is(err, want error) {
	s.Helper()
	var e *objstore.Error
	if !errors.Is(err, want) || !errors.As(err, &e) || e.Retryable() || e.Op == "" {
		s.Errorf("got %v, want %v", err, want)
	}
}

func (s *suite) put(key, data string) objstore.Info {
	s.Helper()
	info, err := s.store.Put(s.Context(), s.prefix+key, strings.NewReader(data), int64(len(data)))
	s.must(err)
	return info
}

// holds checks an object's content and returns what describes it.
func (s *suite) holds(key, want string) objstore.Info {
	s.Helper()
	data, info, err := s.store.Get(s.Context(), s.prefix+key)
	s.must(err)
	if string(data) != want || info.Key != s.prefix+key || info.Size != int64(len(want)) || info.ETag == "" || info.Modified.IsZero() {
		s.Errorf("%s holds %.100q, %+v; want %.100q", key, data, info, want)
	}
	stat, err := s.store.Stat(s.Context(), s.prefix+key)
	s.must(err)
	if stat.Key != info.Key || stat.Size != info.Size || stat.ETag != info.ETag {
		s.Errorf("stat says %+v, get says %+v", stat, info)
	}
	return info
}

func testObjects(s *suite) {
	ctx := s.Context()
	_, _, err := s.store.Get(ctx, s.prefix+"a")
	s.is(err, objstore.ErrNotFound)
	_, err = s.store.Stat(ctx, s.prefix+"a")
	s.is(err, objstore.ErrNotFound)
	s.must(s.store.Delete(ctx, s.prefix+"a"))

	first := s.put("a", "one")
	if got := s.holds("a", "one"); got.ETag != first.ETag {
		s.Errorf("put says %+v, get says %+v", first, got)
	}
	if second := s.put("a", "two"); second.ETag == first.ETag {
		s.Errorf("two contents have the etag %s", first.ETag)
	}
	s.holds("a", "two")
	s.put("empty", "")
	s.holds("empty", "")
	large := strings.Repeat("0123456789abcdef", 20<<20/16+1) // in parts, where the store has them
	s.put("large", large)
	s.holds("large", large)

	_, _, err = s.store.Get(ctx, s.prefix+"a/below")
	s.is(err, objstore.ErrNotFound)
	s.must(s.store.Delete(ctx, s.prefix+"a"))
	s.must(s.store.Delete(ctx, s.prefix+"a"))
	_, _, err = s.store.Get(ctx, s.prefix+"a")
	s.is(err, objstore.ErrNotFound)
	s.put("a/below", "x") // the name is free again, for a folder too
	_, _, err = s.store.Get(ctx, s.prefix+"a")
	s.is(err, objstore.ErrNotFound)
}

func testRanges(s *suite) {
	info := s.put("r", "0123456789")
	for _, c := range []struct {
		from, n int64
		want    string
	}{{0, 10, "0123456789"}, {0, 1, "0"}, {3, 4, "3456"}, {9, 1, "9"}, {8, 100, "89"}, {10, 1, ""}, {100, 1, ""}, {4, 0, ""}} {
		got, err := s.store.GetRange(s.Context(), s.prefix+"r", c.from, c.n)
		if err != nil || string(got) != c.want {
			s.Errorf("%d bytes from %d: %q, %v", c.n, c.from, got, err)
		}
	}
	_, err := s.store.GetRange(s.Context(), s.prefix+"absent", 0, 1)
	s.is(err, objstore.ErrNotFound)
	if _, err := s.store.GetRange(s.Context(), s.prefix+"r", -1, 1); err == nil {
		s.Error("a negative offset is accepted")
	}
	all, err := io.ReadAll(io.NewSectionReader(objstore.ReaderAt(s.Context(), s.store, info), 0, info.Size))
	if err != nil || string(all) != "0123456789" {
		s.Errorf("read %q, %v", all, err)
	}
}

func testListings(s *suite) {
	want := []string{"a", "a.b", "a/b/c", "a/b/d", "a/c", "a0", "b/x", "ä", "日本"}
	slices.Sort(want)
	for i, key := range want {
		if key == "a" {
			key = "a!" // a folder cannot hold both a and a/b
			want[i] = key
		}
		s.put(key, key)
	}
	slices.Sort(want)
	for _, c := range []struct{ prefix, after string }{{"", ""}, {"a", ""}, {"a/", ""}, {"a/b", ""}, {"a/b/", "a/b/c"}, {"", "a/b"}, {"", "a/b/c"},
		{"", "a/"}, {"", "a.zzz"}, {"b", "a"}, {"a", "b"}, {"zz", ""}, {"日", ""}} {
		var keys []string
		for _, k := range want {
			if strings.HasPrefix(k, c.prefix) && k > c.after {
				keys = append(keys, k)
			}
		}
		after := ""
		if c.after != "" {
			after = s.prefix + c.after
		}
		if got := s.list(c.prefix, after); !slices.Equal(got, keys) {
			s.Errorf("prefix %q after %q: got %q, want %q", c.prefix, c.after, got, keys)
		}
	}
	for range s.store.List(s.Context(), s.prefix, "") {
		break // a caller may stop
	}
	var many []string
	for i := range 1100 { // more than a page
		many = append(many, fmt.Sprintf("many/%05d", i))
	}
	var writers sync.WaitGroup
	for part := range slices.Chunk(many, 100) {
		writers.Go(func() {
			for _, key := range part {
				if _, err := s.store.Put(s.Context(), s.prefix+key, strings.NewReader("x"), 1); err != nil {
					s.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if got := s.list("many/", ""); !slices.Equal(got, many) {
		s.Errorf("got %d of %d keys", len(got), len(many))
	}
	if got := s.list("many/", s.prefix+many[1000]); !slices.Equal(got, many[1001:]) {
		s.Errorf("got %d keys behind the first page", len(got))
	}
}

func (s *suite) list(prefix, after string) (keys []string) {
	s.Helper()
	for info, err := range s.store.List(s.Context(), s.prefix+prefix, after) {
		s.must(err)
		if info.Modified.IsZero() {
			s.Errorf("%+v has no time", info)
		}
		keys = append(keys, strings.TrimPrefix(info.Key, s.prefix))
	}
	return keys
}

func testKeys(s *suite) {
	for _, key := range []string{"a b", "a+b&c=d?e#f%20", "~!@$^*()[]{}|;',<>`", "ünïcode/日本語/😀", "A/a", strings.Repeat("k", 250) + "/" + strings.Repeat("l", 250)} {
		s.put(key, key)
		s.holds(key, key)
		if got := s.list(key, ""); !slices.Equal(got, []string{key}) {
			s.Errorf("%q is listed as %q", key, got)
		}
		s.must(s.store.Delete(s.Context(), s.prefix+key))
	}
	for _, key := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".weft/lock", "a/.b", "a\\b", "a\x00", "a\nb", "\xff",
		strings.Repeat("k", 251), strings.Repeat("k/", 401)} {
		_, err := s.store.Put(s.Context(), key, strings.NewReader("x"), 1)
		s.is(err, objstore.ErrKey)
		_, _, err = s.store.Get(s.Context(), key)
		s.is(err, objstore.ErrKey)
		_, err = s.store.PutIfAbsent(s.Context(), key, nil, "n")
		s.is(err, objstore.ErrKey)
		s.is(s.store.Delete(s.Context(), key), objstore.ErrKey)
	}
}

func testIfAbsent(s *suite) {
	ctx, key := s.Context(), s.prefix+"m"
	info, err := s.store.PutIfAbsent(ctx, key, []byte("one"), "nonce-1")
	s.must(err)
	if got := s.holds("m", "one"); got.ETag != info.ETag || info.Size != 3 || info.Key != key {
		s.Errorf("put says %+v, get says %+v", info, got)
	}
	again, err := s.store.PutIfAbsent(ctx, key, []byte("one"), "nonce-1") // as after a reply that was lost
	if err != nil || again.ETag != info.ETag {
		s.Errorf("again: %+v, %v", again, err)
	}
	_, err = s.store.PutIfAbsent(ctx, key, []byte("one"), "nonce-2") // the same content is not the same writer
	s.is(err, objstore.ErrPrecondition)
	_, err = s.store.PutIfAbsent(ctx, key, []byte("two"), "nonce-2")
	s.is(err, objstore.ErrPrecondition)
	s.holds("m", "one")

	s.put("m", "three") // by somebody else
	_, err = s.store.PutIfAbsent(ctx, key, []byte("one"), "nonce-1")
	s.is(err, objstore.ErrPrecondition)
	s.must(s.store.Delete(ctx, key))
	_, err = s.store.PutIfAbsent(ctx, key, []byte("four"), "nonce-3")
	s.must(err)
	s.holds("m", "four")
	for _, nonce := range []string{"", "a b", "ä", strings.Repeat("n", 129), "a\r\nb"} {
		if _, err := s.store.PutIfAbsent(ctx, s.prefix+"n", nil, nonce); err == nil {
			s.Errorf("the nonce %q is accepted", nonce)
		}
	}
}

func testIfMatch(s *suite) {
	ctx, key := s.Context(), s.prefix+"m"
	_, err := s.store.PutIfMatch(ctx, key, []byte("x"), "0123", "nonce-0")
	s.is(err, objstore.ErrPrecondition) // of what is not there
	if _, err = s.store.PutIfMatch(ctx, key, []byte("x"), "", "nonce-0"); err == nil {
		s.Error("no etag is accepted")
	}
	first := s.put("m", "one")
	second, err := s.store.PutIfMatch(ctx, key, []byte("two"), first.ETag, "nonce-1")
	s.must(err)
	if got := s.holds("m", "two"); got.ETag != second.ETag || second.ETag == first.ETag {
		s.Errorf("put says %+v, get says %+v", second, got)
	}
	again, err := s.store.PutIfMatch(ctx, key, []byte("two"), first.ETag, "nonce-1")
	if err != nil || again.ETag != second.ETag {
		s.Errorf("again: %+v, %v", again, err)
	}
	_, err = s.store.PutIfMatch(ctx, key, []byte("two"), first.ETag, "nonce-2")
	s.is(err, objstore.ErrPrecondition)
	third, err := s.store.PutIfMatch(ctx, key, []byte("three"), second.ETag, "nonce-2")
	s.must(err)
	_, err = s.store.PutIfMatch(ctx, key, []byte("two"), first.ETag, "nonce-1") // its write was overtaken
	s.is(err, objstore.ErrPrecondition)
	if got := s.holds("m", "three"); got.ETag != third.ETag {
		s.Errorf("got %+v", got)
	}
}

// testRaces lets writers count in one object: every success must be seen, by nobody twice.
func testRaces(s *suite) {
	const writers, rounds = 8, 10
	var group sync.WaitGroup
	wins := make(chan string, writers*rounds)
	_, err := s.store.PutIfAbsent(s.Context(), s.prefix+"count", nil, "start")
	s.must(err)
	for w := range writers {
		group.Go(func() {
			if _, err := s.store.PutIfAbsent(s.Context(), s.prefix+"one", []byte{'0' + byte(w)}, fmt.Sprint("w", w)); err == nil {
				wins <- fmt.Sprint("absent by ", w)
			} else if !errors.Is(err, objstore.ErrPrecondition) {
				s.Error(err)
			}
			for done := 0; done < rounds; {
				data, info, err := s.store.Get(s.Context(), s.prefix+"count")
				if err != nil {
					s.Error(err)
					return
				}
				_, err = s.store.PutIfMatch(s.Context(), s.prefix+"count", append(data, '0'+byte(w)), info.ETag, fmt.Sprintf("%d-%d-%d", w, done, len(data)))
				if err == nil {
					done++
				} else if !errors.Is(err, objstore.ErrPrecondition) {
					s.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	close(wins)
	if len(wins) != 1 {
		s.Errorf("%d of %d writers wrote what was absent", len(wins), writers)
	}
	data, _, err := s.store.Get(s.Context(), s.prefix+"count")
	s.must(err)
	for w := range writers {
		if n := bytes.Count(data, []byte{'0' + byte(w)}); n != rounds {
			s.Errorf("%d of %d writes of writer %d are there", n, rounds, w)
		}
	}
}

func testCanceled(s *suite) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	_, _, err := s.store.Get(ctx, s.prefix+"a")
	_, err2 := s.store.PutIfAbsent(ctx, s.prefix+"a", nil, "n")
	var err3 error
	for _, err3 = range s.store.List(ctx, s.prefix, "") {
	}
	for i, err := range []error{err, err2, err3} {
		if !errors.Is(err, context.Canceled) {
			s.Errorf("call %d: %v", i, err)
		}
	}
}

package objstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/objstore/objtest"
)

func folder(t *testing.T) (*objstore.Local, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := objstore.Folder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func TestFolder(t *testing.T) {
	s, _ := folder(t)
	objtest.Conformance(t, s)
}

func TestWithoutFaultsFaultyIsTheStore(t *testing.T) {
	s, _ := folder(t)
	objtest.Conformance(t, objtest.NewFaulty(s, objtest.Plan{Slow: 0.05, Delay: time.Microsecond}))
}

// Crashed writers leave files behind, and a crash between nonce and object leaves a nonce that must not count.
func TestFolderAfterCrashes(t *testing.T) {
	s, dir := folder(t)
	old, fresh := filepath.Join(dir, ".weft/new/OLD"), filepath.Join(dir, ".weft/new/FRESH")
	for _, name := range []string{old, fresh} {
		if err := os.WriteFile(name, []byte("half"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".weft/nonce/m"), []byte("mine 0123"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := objstore.Folder(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old file is there: %v", err)
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Error(err)
	}
	for info, err := range s.List(t.Context(), "", "") {
		t.Errorf("listed %+v, %v", info, err)
	}
	if _, err := s.PutIfMatch(t.Context(), "m", nil, "0123", "mine"); !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("an object that is not there: %v", err)
	}
	if _, err := s.PutIfAbsent(t.Context(), "m", []byte("x"), "mine"); err != nil {
		t.Error(err)
	}
}

func TestFolderErrors(t *testing.T) {
	s, dir := folder(t)
	if _, err := s.Put(t.Context(), "a", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	var e *objstore.Error
	if _, err := s.Put(t.Context(), "a/b", strings.NewReader("x"), 1); !errors.As(err, &e) || e.Retryable() || !strings.Contains(e.Hint, "slash") {
		t.Errorf("below an object: %v", err)
	}
	for _, size := range []int64{1, 3} {
		if _, err := s.Put(t.Context(), "b", strings.NewReader("xx"), size); !errors.As(err, &e) || e.Class != objstore.Internal {
			t.Errorf("2 bytes announced as %d: %v", size, err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, ".weft/new"))
	if err != nil || len(left) > 0 {
		t.Errorf("failed writes left %v, %v", left, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := objstore.Folder(file); err == nil {
		t.Error("a file is accepted as a folder")
	}
}

// A caller that repeats what failed, with the same nonces, counts exactly, whatever replies are lost.
func TestLostRepliesCountOnce(t *testing.T) {
	for seed := range uint64(5) {
		s, _ := folder(t)
		f := objtest.NewFaulty(s, objtest.Plan{Seed: seed, Before: 0.2, After: 0.3, Down: []objtest.Outage{{From: 10, Calls: 5}}})
		retry := func(call func() (objstore.Info, error)) (info objstore.Info) {
			t.Helper()
			for {
				info, err := call()
				var e *objstore.Error
				if err == nil {
					return info
				}
				if !errors.Is(err, objtest.ErrInjected) || !errors.As(err, &e) || !e.Retryable() {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
		}
		info := retry(func() (objstore.Info, error) { return f.PutIfAbsent(t.Context(), "count", nil, "n") })
		for i := range 20 {
			nonce, data := "n"+strings.Repeat("x", i), []byte(strings.Repeat("1", i+1))
			etag := info.ETag
			info = retry(func() (objstore.Info, error) { return f.PutIfMatch(t.Context(), "count", data, etag, nonce) })
		}
		data, _, err := s.Get(t.Context(), "count")
		if err != nil || len(data) != 20 {
			t.Errorf("seed %d: counted %d, %v", seed, len(data), err)
		}
		if f.Calls() < 30 {
			t.Errorf("seed %d: only %d calls", seed, f.Calls())
		}
	}
}

func TestFaultyIsRepeatable(t *testing.T) {
	run := func(seed uint64) (out []bool) {
		s, _ := folder(t)
		f := objtest.NewFaulty(s, objtest.Plan{Seed: seed, Before: 0.3, After: 0.3})
		for range 40 {
			out = append(out, f.Delete(t.Context(), "a") == nil)
		}
		f.SetDown(true)
		if _, _, err := f.Get(t.Context(), "a"); !errors.Is(err, objtest.ErrInjected) {
			t.Errorf("down: %v", err)
		}
		return out
	}
	a, b, c := run(1), run(1), run(2)
	same := func(x, y []bool) bool {
		for i := range x {
			if x[i] != y[i] {
				return false
			}
		}
		return true
	}
	if !same(a, b) || same(a, c) {
		t.Errorf("seeds 1, 1, 2 give %v, %v, %v", a, b, c)
	}
}

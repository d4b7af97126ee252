package objstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Local keeps objects as files of a folder on a local file system, for tests and small set-ups. Any number of processes of
// one machine may share it; a network file system will not do.
//
// A write makes a whole file beside the objects and moves it into place, so nobody sees half of one. Writers take turns by
// a lock on a file, and so have an order. The etag is a hash of the content. What is behind the folder's .weft:
//
//	lock         taken by every writer while it looks and moves
//	new/…        files that are being written; what a crash left behind goes a day later
//	nonce/KEY    nonce and etag of the last conditional write of KEY; it counts while the object has that etag
type Local struct{ root string }

const (
	ownFolder  = ".weft"
	staleAfter = 24 * time.Hour
	folderMode = 0o755
	fileMode   = 0o644
	etagBytes  = 16
)

// Folder returns the store in a folder, which is made if missing.
func Folder(path string) (*Local, error) {
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, explainFile("open folder "+path, err)
	}
	s := &Local{root}
	op := "open folder " + root
	for _, name := range []string{"new", "nonce"} {
		if err := os.MkdirAll(s.own(name), folderMode); err != nil {
			return nil, explainFile(op, err)
		}
	}
	return s, explainFile(op, s.sweep())
}

func (s *Local) own(name ...string) string {
	return filepath.Join(append([]string{s.root, ownFolder}, name...)...)
}

func (s *Local) path(key string) string { return filepath.Join(s.root, filepath.FromSlash(key)) }

// sweep removes what writers left behind that crashed long ago.
func (s *Local) sweep() error {
	entries, err := os.ReadDir(s.own("new"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && time.Since(info.ModTime()) > staleAfter {
			err = os.Remove(s.own("new", e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// explainFile makes an Error of an error of the file system.
func explainFile(op string, err error) error {
	var done *Error
	if err == nil || errors.As(err, &done) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	e := &Error{Op: op, Class: User, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Err = ErrNotFound
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EIO), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.EDQUOT):
		e.Class = External
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		e.Hint = "in a folder, a key cannot be the start of another one at a slash"
	}
	return e
}

// Get returns an object.
func (s *Local) Get(ctx context.Context, key string) ([]byte, Info, error) {
	op := "get " + key
	if err := errors.Join(ctx.Err(), CheckKey(key)); err != nil {
		return nil, Info{}, err
	}
	data, info, err := s.read(key)
	return data, info, explainFile(op, err)
}

func (s *Local) read(key string) (data []byte, info Info, err error) {
	f, size, err := s.open(key)
	if err != nil {
		return nil, info, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size.Size() > GetBytesMax {
		return nil, info, fmt.Errorf("it has %d bytes; at most %d are read at once", size.Size(), GetBytesMax)
	}
	data = make([]byte, size.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, info, err
	}
	return data, Info{key, size.Size(), etagOf(data), size.ModTime()}, nil
}

// open opens an object, which a folder is not.
func (s *Local) open(key string) (*os.File, fs.FileInfo, error) {
	f, err := os.Open(s.path(key))
	if errors.Is(err, syscall.ENOTDIR) { // below an object
		return nil, nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

func etagOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:etagBytes])
}

// GetRange returns a part of an object.
func (s *Local) GetRange(ctx context.Context, key string, from, n int64) (data []byte, err error) {
	if err := errors.Join(ctx.Err(), checkRange(key, from, n)); err != nil || n == 0 {
		return nil, err
	}
	op := fmt.Sprintf("get %s from byte %d", key, from)
	f, info, err := s.open(key)
	if err != nil {
		return nil, explainFile(op, err)
	}
	defer func() { err = explainFile(op, errors.Join(err, f.Close())) }()
	data = make([]byte, min(n, max(info.Size()-from, 0)))
	_, err = io.ReadFull(io.NewSectionReader(f, from, n), data)
	return data, err
}

// Stat describes an object. It reads it whole, for its etag.
func (s *Local) Stat(ctx context.Context, key string) (Info, error) {
	if err := errors.Join(ctx.Err(), CheckKey(key)); err != nil {
		return Info{}, err
	}
	info, err := s.stat(key)
	return info, explainFile("stat "+key, err)
}

func (s *Local) stat(key string) (info Info, err error) {
	f, size, err := s.open(key)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	return Info{key, n, hex.EncodeToString(sum.Sum(nil)[:etagBytes]), size.ModTime()}, err
}

// Put writes an object.
func (s *Local) Put(ctx context.Context, key string, body io.ReadSeeker, size int64) (Info, error) {
	if err := errors.Join(ctx.Err(), CheckKey(key)); err != nil {
		return Info{}, err
	}
	op := "put " + key
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return Info{}, explainFile(op, err)
	}
	name, etag, err := s.stage(body, size)
	if err != nil {
		return Info{}, explainFile(op, err)
	}
	err = s.locked(func() error { return s.publish(name, key) })
	if err != nil {
		return Info{}, explainFile(op, errors.Join(err, os.Remove(name)))
	}
	return s.written(op, key, size, etag)
}

func (s *Local) written(op, key string, size int64, etag string) (Info, error) {
	info := Info{Key: key, Size: size, ETag: etag, Modified: time.Now()}
	if file, err := os.Stat(s.path(key)); err == nil {
		info.Modified = file.ModTime()
	} else if !errors.Is(err, fs.ErrNotExist) { // another writer may have deleted it
		return info, explainFile(op, err)
	}
	return info, nil
}

// stage writes a file that is to become an object, down to the disk.
func (s *Local) stage(body io.Reader, size int64) (name, etag string, err error) {
	name = s.own("new", rand.Text())
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return "", "", err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(body, size+1))
	if err == nil && n != size {
		err = &Error{Op: "put", Class: Internal, Err: fmt.Errorf("the body has not the %d bytes that were announced", size)}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", "", errors.Join(err, os.Remove(name))
	}
	return name, hex.EncodeToString(sum.Sum(nil)[:etagBytes]), nil
}

// locked runs what looks and then moves. Open file descriptions hold the lock, so goroutines exclude each other too, and a
// process that dies gives it back.
func (s *Local) locked(run func() error) (err error) {
	f, err := os.OpenFile(s.own("lock"), os.O_CREATE|os.O_RDWR, fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err == nil {
			return run()
		}
		if err != syscall.EINTR {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// publish moves a staged file to its place. The lock is held.
func (s *Local) publish(name, key string) error {
	to := s.path(key)
	if err := os.MkdirAll(filepath.Dir(to), folderMode); err != nil {
		return err
	}
	if err := os.Rename(name, to); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(to))
}

func syncFolder(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// PutIfAbsent writes an object that is not there yet.
func (s *Local) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (Info, error) {
	return s.putIf(ctx, fmt.Sprintf("put %s if absent", key), key, data, "", nonce)
}

// PutIfMatch replaces an object.
func (s *Local) PutIfMatch(ctx context.Context, key string, data []byte, etag, nonce string) (Info, error) {
	op := fmt.Sprintf("put %s if it matches %s", key, etag)
	if etag == "" {
		return Info{}, &Error{Op: op, Class: Internal, Err: fmt.Errorf("etag %q", etag)}
	}
	return s.putIf(ctx, op, key, data, etag, nonce)
}

// putIf writes where the object has the etag; "" stands for no object.
func (s *Local) putIf(ctx context.Context, op, key string, data []byte, etag, nonce string) (Info, error) {
	if err := errors.Join(ctx.Err(), CheckKey(key), checkNonce(op, nonce)); err != nil {
		return Info{}, err
	}
	info := Info{Key: key, Size: int64(len(data)), ETag: etagOf(data)}
	err := s.locked(func() error {
		now, err := s.stat(key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		mine, err := s.isMine(key, nonce, now.ETag)
		if err != nil || mine {
			info.Size, info.ETag = now.Size, now.ETag
			return err
		}
		if now.ETag != etag {
			return precondition(op)
		}
		return s.replace(key, data, nonce, info.ETag)
	})
	if err != nil {
		return Info{}, explainFile(op, err)
	}
	return s.written(op, key, info.Size, info.ETag)
}

// replace writes an object and the nonce with which it was written. The nonce comes first: without the object it counts
// for nothing, since the object has another etag.
func (s *Local) replace(key string, data []byte, nonce, etag string) error {
	note := nonce + " " + etag
	name, _, err := s.stage(strings.NewReader(note), int64(len(note)))
	if err != nil {
		return err
	}
	if err := s.publish(name, ownFolder+"/nonce/"+key); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	if name, _, err = s.stage(strings.NewReader(string(data)), int64(len(data))); err != nil {
		return err
	}
	if err := s.publish(name, key); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// isMine tells whether the object with that etag was written with the nonce.
func (s *Local) isMine(key, nonce, etag string) (bool, error) {
	note, err := os.ReadFile(s.own("nonce", filepath.FromSlash(key)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR) {
		return false, nil
	}
	return err == nil && etag != "" && string(note) == nonce+" "+etag, err
}

// Delete removes an object.
func (s *Local) Delete(ctx context.Context, key string) error {
	if err := errors.Join(ctx.Err(), CheckKey(key)); err != nil {
		return err
	}
	return explainFile("delete "+key, s.locked(func() error {
		f, _, err := s.open(key)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Close(), os.Remove(s.path(key))); err != nil {
			return err
		}
		if err := os.Remove(s.own("nonce", filepath.FromSlash(key))); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
		s.prune(filepath.Dir(s.path(key)), s.root)
		s.prune(filepath.Dir(s.own("nonce", filepath.FromSlash(key))), s.own("nonce"))
		return nil
	}))
}

// prune removes folders that are empty, up to one that stays: an object may want the name.
func (s *Local) prune(dir, stay string) {
	for dir != stay && os.Remove(dir) == nil { // fails where something is in it
		dir = filepath.Dir(dir)
	}
}

// List yields objects in order of their keys.
func (s *Local) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := s.walk(ctx, "", prefix, after, func(i Info) bool { return yield(i, nil) }); err != nil && err != errStop {
			yield(Info{}, explainFile("list "+prefix, err))
		}
	}
}

var errStop = errors.New("the caller has seen enough")

// walk visits the objects below a folder, whose name ends in a slash or is empty.
func (s *Local) walk(ctx context.Context, dir, prefix, after string, yield func(Info) bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.path(dir))
	if errors.Is(err, fs.ErrNotExist) && dir != "" {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	name := func(e fs.DirEntry) string { // a folder's keys start with its name and a slash
		if e.IsDir() {
			return dir + e.Name() + "/"
		}
		return dir + e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(name(a), name(b)) })
	for _, e := range entries {
		key := name(e)
		if e.Name()[0] == '.' {
			continue
		}
		if e.IsDir() {
			overlap := min(len(key), len(prefix))
			if key[:overlap] != prefix[:overlap] || key < after && !strings.HasPrefix(after, key) {
				continue
			}
			if err := s.walk(ctx, key, prefix, after, yield); err != nil {
				return err
			}
			continue
		}
		if !strings.HasPrefix(key, prefix) || key <= after {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !yield(Info{Key: key, Size: info.Size(), Modified: info.ModTime()}) {
			return errStop
		}
	}
	return nil
}

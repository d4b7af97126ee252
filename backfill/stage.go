package backfill

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"time"

	"github.com/weftdata/weft/objstore"
)

// ObjectStore is where archives are read and where a backfill keeps its plan, its staged results and its state, in the shapes
// of objstore.Store.
type ObjectStore interface {
	Get(ctx context.Context, key string) ([]byte, objstore.Info, error)
	GetRange(ctx context.Context, key string, from, n int64) ([]byte, error)
	Put(ctx context.Context, key string, body io.ReadSeeker, size int64) (objstore.Info, error)
	PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (objstore.Info, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error]
}

// How long a call to an object store may take: callTime, and a second more for each callBytes, which the slowest one that is of use
// manages.
const (
	callTime  = 2 * time.Minute
	callBytes = 1 << 20
)

// Timed bounds how long each call to an object store may take, but for lists. One that has gone silent without closing its
// connections would hold whatever reads it for as long as that: heartbeats tell that the process is there, and no more.
func Timed(objects ObjectStore) ObjectStore { return timed{objects} }

type timed struct{ ObjectStore }

// within runs a call that moves so many bytes.
func within[T any](ctx context.Context, key string, bytes int64, call func(context.Context) (T, error)) (T, error) {
	limit := callTime + time.Duration(bytes/callBytes)*time.Second
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := call(bounded)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		err = fmt.Errorf("%s: the object store has not answered within %s: %w", key, limit, context.DeadlineExceeded)
	}
	return out, err
}

func (o timed) Get(ctx context.Context, key string) (data []byte, info objstore.Info, err error) {
	data, err = within(ctx, key, objstore.GetBytesMax, func(ctx context.Context) (data []byte, err error) {
		data, info, err = o.ObjectStore.Get(ctx, key)
		return data, err
	})
	return data, info, err
}

func (o timed) GetRange(ctx context.Context, key string, from, n int64) ([]byte, error) {
	return within(ctx, key, n, func(ctx context.Context) ([]byte, error) { return o.ObjectStore.GetRange(ctx, key, from, n) })
}

func (o timed) Put(ctx context.Context, key string, body io.ReadSeeker, size int64) (objstore.Info, error) {
	return within(ctx, key, size, func(ctx context.Context) (objstore.Info, error) { return o.ObjectStore.Put(ctx, key, body, size) })
}

func (o timed) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (objstore.Info, error) {
	return within(ctx, key, int64(len(data)), func(ctx context.Context) (objstore.Info, error) {
		return o.ObjectStore.PutIfAbsent(ctx, key, data, nonce)
	})
}

func (o timed) Delete(ctx context.Context, key string) error {
	_, err := within(ctx, key, 0, func(ctx context.Context) (struct{}, error) { return struct{}{}, o.ObjectStore.Delete(ctx, key) })
	return err
}

// archiveOf reads an archive in an ObjectStore.
type archiveOf struct{ ObjectStore }

func (o archiveOf) Get(ctx context.Context, key string) ([]byte, error) {
	data, _, err := o.ObjectStore.Get(ctx, key)
	return data, err
}

func (o archiveOf) Keys(ctx context.Context, prefix, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for info, err := range o.List(ctx, prefix, after) {
			if !yield(info.Key, err) || err != nil {
				return
			}
		}
	}
}

// Everything that a backfill keeps, below one prefix. What a manifest or the plan does not name is garbage.
//
//	backfill/<job>/<id>/plan.json                                   the plan
//	backfill/<job>/<id>/plan/<nonce>-<part>.json                    the files of some of its slices
//	backfill/<job>/<id>/slices/<chunk>/<slice>.json                 the manifest of a slice that is done
//	backfill/<job>/<id>/slices/<chunk>/<slice>-<nonce>.<what>       what it lists
//	backfill/<job>/<id>/publish/<request>/<attempt>.json            a switch that was decided
const (
	stageRoot     = "backfill/"
	stageFormat   = 1
	sliceFormat   = 2 // of the manifests of slices
	chunkDigits   = 5
	sliceDigits   = 6
	attemptDigits = 4
	idBytesMax    = 100
)

// PlanRef names a plan: what workflows and activities carry.
type PlanRef struct {
	Job string `json:"job"`
	ID  string `json:"id"` // of the backfill: letters, digits and -_.
}

// String returns the prefix of all objects of the backfill, without its last slash.
func (r PlanRef) String() string { return stageRoot + r.Job + "/" + r.ID }

func (r PlanRef) planKey() string { return r.String() + "/plan.json" }

func (r PlanRef) partKey(nonce string, n int) string {
	return fmt.Sprintf("%s/plan/%s-%0*d.json", r, nonce, chunkDigits, n)
}

func (r PlanRef) slicePrefix(chunk, slice int) string {
	return fmt.Sprintf("%s/slices/%0*d/%0*d", r, chunkDigits, chunk, sliceDigits, slice)
}

func (r PlanRef) sliceKey(chunk, slice int) string { return r.slicePrefix(chunk, slice) + ".json" }

func (r PlanRef) requestPrefix(request string) string {
	sum := sha256.Sum256([]byte(request)) // a request id may be any text
	return fmt.Sprintf("%s/publish/%s/", r, hex.EncodeToString(sum[:8]))
}

func (r PlanRef) attemptKey(request string, n int) string {
	return fmt.Sprintf("%s%0*d.json", r.requestPrefix(request), attemptDigits, n)
}

// check keeps strange names out of keys.
func (r PlanRef) check() error {
	ok := r.ID != "" && len(r.ID) <= idBytesMax && r.ID[0] != '.'
	for _, c := range r.ID {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return usage("backfill id %.120q: expected 1 to %d letters, digits and -_. that do not start with a dot", r.ID, idBytesMax)
	}
	if r.Job == "" {
		return usage("a backfill without a job")
	}
	return nil
}

// usage is an error that lies in what was asked for: trying again does not help.
func usage(format string, args ...any) error {
	return fmt.Errorf("%w%w", ErrUsage, fmt.Errorf(format, args...))
}

// Errors that callers tell apart.
var (
	// ErrNotPlanned: there is no plan of this name, or no such slice in it.
	ErrNotPlanned = errors.New("it is not planned")
	// ErrOrder: the slice before this one is not done.
	ErrOrder = errors.New("the slice before it is not done")
	// ErrOpenState: what is open at once does not fit in memory. A retry does not help.
	ErrOpenState = errMemory
	// ErrStaged is in the error of a staged object that is missing or not what its manifest says.
	ErrStaged = errors.New("the staged result is damaged")
)

// FileRef is an object that a manifest lists.
type FileRef struct {
	Key    string `json:"key"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // 64 hexadecimal digits
}

// stagedFile collects an object on local disk, in a file without a name, so that nothing is left of a process that dies.
type stagedFile struct {
	f    *os.File
	w    *bufio.Writer
	sum  hash.Hash
	size int64
}

func newStagedFile(dir string) (*stagedFile, error) {
	f, err := os.CreateTemp(dir, "weft-staged-")
	if err != nil {
		return nil, fmt.Errorf("stage results: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("stage results: %w", err)
	}
	s := &stagedFile{f: f, sum: sha256.New()}
	s.w = bufio.NewWriterSize(s, 1<<18)
	return s, nil
}

// Write takes what the buffer gives on.
func (s *stagedFile) Write(p []byte) (int, error) {
	s.sum.Write(p)
	n, err := s.f.Write(p)
	s.size += int64(n)
	return n, err
}

// put writes the object. The file stays until it is removed.
func (s *stagedFile) put(ctx context.Context, objects ObjectStore, key string) (FileRef, error) {
	if err := s.w.Flush(); err != nil {
		return FileRef{}, fmt.Errorf("stage %s: %w", key, err)
	}
	if _, err := objects.Put(ctx, key, s.f, s.size); err != nil {
		return FileRef{}, fmt.Errorf("write %s: %w", key, err)
	}
	return FileRef{key, s.size, hex.EncodeToString(s.sum.Sum(nil))}, nil
}

func (s *stagedFile) remove() { s.f.Close() }

// putBytes writes an object of which no other has the name.
func putBytes(ctx context.Context, objects ObjectStore, key string, data []byte) (FileRef, error) {
	sum := sha256.Sum256(data)
	if _, err := objects.Put(ctx, key, bytes.NewReader(data), int64(len(data))); err != nil {
		return FileRef{}, fmt.Errorf("write %s: %w", key, err)
	}
	return FileRef{key, int64(len(data)), hex.EncodeToString(sum[:])}, nil
}

// get reads an object that a manifest lists, and checks it.
func (f *FileRef) get(ctx context.Context, objects ObjectStore) ([]byte, error) {
	data, _, err := objects.Get(ctx, f.Key)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s is missing", ErrStaged, f.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Key, err)
	}
	if sum := sha256.Sum256(data); int64(len(data)) != f.Bytes || hex.EncodeToString(sum[:]) != f.SHA256 {
		return nil, fmt.Errorf("%w: %s has %d bytes and another SHA-256; its manifest says %d", ErrStaged, f.Key, len(data), f.Bytes)
	}
	return data, nil
}

// getJSON reads a JSON object; found is false where there is none.
func getJSON(ctx context.Context, objects ObjectStore, key string, to any) (found bool, err error) {
	data, _, err := objects.Get(ctx, key)
	if errors.Is(err, objstore.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", key, err)
	}
	return true, decodeJSON(key, data, to)
}

func decodeJSON(key string, data []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrStaged, key, err)
	}
	return nil
}

func encodeJSON(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", " ")
	return append(text, '\n'), err
}

// commit puts a JSON object if it is absent; mine is false where another was faster.
func commit(ctx context.Context, objects ObjectStore, key string, v any, nonce string) (mine bool, err error) {
	text, err := encodeJSON(v)
	if err != nil {
		return false, err
	}
	_, err = objects.PutIfAbsent(ctx, key, text, nonce)
	if errors.Is(err, objstore.ErrPrecondition) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write %s: %w", key, err)
	}
	return true, nil
}

package registry

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/weftdata/weft/objstore"
)

const enginesRoot = root + "engines/"

// EngineBytesMax bounds an engine: it is in memory while it is put and got.
const EngineBytesMax = 512 << 20

// Engine names a binary of weft by its content, and what machines run it.
type Engine struct {
	SHA256 string `json:"sha256"` // 64 hexadecimal digits
	Bytes  int64  `json:"bytes"`
	OS     string `json:"os"`   // as GOOS says it
	Arch   string `json:"arch"` // as GOARCH says it
}

// Platform is what machines run the engine, such as linux/amd64.
func (e *Engine) Platform() string { return e.OS + "/" + e.Arch }

// ReadEngine reads a binary of this machine's platform, and names it.
func ReadEngine(file string) (e Engine, data []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return e, nil, fmt.Errorf("read the engine: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	if data, err = io.ReadAll(io.LimitReader(f, EngineBytesMax+1)); err != nil {
		return e, nil, fmt.Errorf("read the engine %s: %w", file, err)
	}
	if len(data) > EngineBytesMax {
		return e, nil, userError("read the engine "+file, fmt.Errorf("it is larger than %d bytes", EngineBytesMax), "")
	}
	return Engine{SHA256: hexSum(data), Bytes: int64(len(data)), OS: runtime.GOOS, Arch: runtime.GOARCH}, data, nil
}

// PutEngine keeps a binary, unless it is there already.
func (r *Registry) PutEngine(ctx context.Context, e Engine, data []byte) error {
	key := enginesRoot + e.SHA256
	for info, err := range r.objects.List(ctx, key, "") {
		if err != nil {
			return fmt.Errorf("look for the engine %.12s: %w", e.SHA256, err)
		}
		if info.Key == key {
			return nil
		}
	}
	_, err := r.objects.PutIfAbsent(ctx, key, data, e.SHA256)
	if err != nil && !errors.Is(err, objstore.ErrPrecondition) { // there already: the name says what it holds
		return fmt.Errorf("put the engine %.12s: %w", e.SHA256, err)
	}
	return nil
}

// Engine returns a binary by its hash, which is checked.
func (r *Registry) Engine(ctx context.Context, sha256 string) ([]byte, error) {
	if b, err := hex.DecodeString(sha256); err != nil || len(b) != 32 || strings.ToLower(sha256) != sha256 {
		return nil, userError(fmt.Sprintf("read engine %.80q", sha256), errors.New("that is no SHA-256"), "64 lower case hexadecimal digits")
	}
	return r.hashed(ctx, "read engine "+sha256, enginesRoot+sha256, sha256)
}

// hashed returns an object whose name says what it holds.
func (r *Registry) hashed(ctx context.Context, op, key, sha256 string) ([]byte, error) {
	data, _, err := r.objects.Get(ctx, key)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return nil, userError(op, ErrNotFound, "")
	case err != nil:
		return nil, fmt.Errorf("%s: %w", op, err)
	case hexSum(data) != sha256:
		return nil, damaged(op, key, fmt.Errorf("its content has the hash %s", hexSum(data)))
	}
	return data, nil
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/weftdata/weft/registry"
)

// engineOf returns the file of the binary that a version runs on, which is fetched where it is not here.
func (a *Agent) engineOf(ctx context.Context, v registry.Version) (file string, err error) {
	digest := a.engine
	if e := v.Engine; e != nil {
		if here := runtime.GOOS + "/" + runtime.GOARCH; e.Platform() != here {
			return "", fmt.Errorf("version %d of %s runs on an engine for %s, and this machine is %s: deploy it from a control worker on %[4]s",
				v.Number, v.Job, e.Platform(), here)
		}
		digest = e.SHA256
	}
	file = a.engineFile(digest)
	if _, err := os.Stat(file); err == nil || !errors.Is(err, os.ErrNotExist) {
		return file, err
	}
	data, err := a.cfg.Versions.Engine(ctx, digest)
	if err != nil {
		return "", fmt.Errorf("fetch the engine of version %d of %s: %w", v.Number, v.Job, err)
	}
	return file, a.keepEngine(digest, data)
}

func (a *Agent) engineFile(digest string) string { return filepath.Join(a.cfg.Dir, "engines", digest) }

// keepEngine keeps a binary in the agent's folder.
func (a *Agent) keepEngine(digest string, data []byte) error {
	file := a.engineFile(digest)
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(file), "new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o500), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep the engine %.12s: %w", digest, err), os.Remove(f.Name()))
	}
	return nil
}

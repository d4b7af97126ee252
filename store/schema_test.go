package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSchemaChangesNothing(t *testing.T) {
	backends(t, func(t *testing.T, dsn string) {
		dir, lite := strings.CutPrefix(dsn, "sqlite:")
		if lite {
			dir = filepath.Join(dir, "none")
			dsn = "sqlite:" + dir
		}
		for range 2 {
			version, known, err := Schema(t.Context(), dsn)
			if err != nil || version != 0 || known == 0 {
				t.Fatalf("of an empty database: schema %d of %d, %v", version, known, err)
			}
		}
		if _, err := os.Stat(dir); lite && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the folder was made: %v", err)
		}
		open(t, dsn)
		if version, known, err := Schema(t.Context(), dsn); err != nil || version != known {
			t.Errorf("once it was opened: schema %d of %d, %v", version, known, err)
		}
	})
	_, _, err := Schema(t.Context(), "mysql://x")
	fails(t, err, nil, User)
}

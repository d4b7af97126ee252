// Package compose reads the repository's docker-compose.yml as `docker compose` does: with its library, and with the variables of
// an env file. Tests use it to check the file, and to run what it says without containers.
package compose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// FileName is the file in the repository's root.
const FileName = "docker-compose.yml"

// Root finds the repository's root, which is the first folder upwards that has the file.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, FileName)); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no " + FileName + " in this folder nor above it")
		}
	}
}

// Load reads the file with the variables of an env file and no others, with every service, whatever its profile.
func Load(ctx context.Context, root, envFile string) (*types.Project, error) {
	o, err := cli.NewProjectOptions([]string{filepath.Join(root, FileName)},
		cli.WithWorkingDirectory(root), cli.WithEnvFiles(envFile), cli.WithDotEnv, cli.WithInterpolation(true),
		cli.WithResolvedPaths(true), cli.WithProfiles([]string{"*"}))
	if err != nil {
		return nil, err
	}
	p, err := o.LoadProject(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileName, err)
	}
	return p, nil
}

package agent

import (
	"errors"
	"os"
	"syscall"
)

// fileNumber returns the number that tells a file from the one that takes its name.
func fileNumber(f *os.File) (uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("files have no numbers here")
	}
	return s.Ino, nil
}

package streaming

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/weftdata/weft/spill"
)

// openSpill makes ready to spill, and fetches what the last checkpoint spilled.
func (s *shard) openSpill(ctx context.Context, before *spill.State) error {
	if s.cfg.MemoryBytes == 0 && before == nil {
		return nil
	}
	if s.cfg.SpillDir == "" {
		return errors.New("the last checkpoint has state that was spilled to disk, and the shard has no folder for it")
	}
	if err := os.MkdirAll(s.cfg.SpillDir, 0o700); err != nil {
		return fmt.Errorf("make a folder for spilled state: %w", err)
	}
	s.spill = spill.New(spill.Config{
		Dir: s.cfg.SpillDir, MemoryBytes: s.cfg.MemoryBytes, Prefix: fmt.Sprintf("%s/spill-%016x", s.cfg.Name, s.epoch), Log: s.log, Wait: s.retryIf,
	})
	get := func(ctx context.Context, key string) ([]byte, error) {
		data, _, err := s.cfg.Objects.Get(ctx, key)
		return data, err
	}
	return s.retry(ctx, "fetch spilled state", func() error { return s.spill.Restore(ctx, get, before) })
}

// relieve keeps to the bound of memory.
func (s *shard) relieve(ctx context.Context) error {
	err := s.spill.Relieve(ctx, s.core, s.gather)
	if errors.Is(err, spill.ErrMemory) {
		err = fmt.Errorf("%w: raise the memory of the job, or use more shards", err)
	}
	return err
}

// saveSpilled stores what a checkpoint has spilled, each object with a try of its own.
func (s *shard) saveSpilled(save *spill.Save, try func(what string, f func(context.Context) error) error) error {
	return save.Upload(func(key string, data []byte) error {
		return try("save spilled state", func(ctx context.Context) error {
			// A try whose reply was lost has written just these bytes under this name.
			if _, err := s.cfg.Objects.Put(ctx, key, data, ""); err != nil && !errors.Is(err, ErrChanged) {
				return fmt.Errorf("write the spilled state %s: %w", key, err)
			}
			return nil
		})
	})
}

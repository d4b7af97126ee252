package spill

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
)

const (
	partBytes    = 8 << 20 // a file becomes objects of this size
	partsAtOnce  = 4       // objects that are read at a time
	goneBytesMax = 1 << 30
)

// State is what a manifest says of spilled components.
type State struct {
	Seed  uint64   `json:"seed,string"`
	Files []Object `json:"files"`
	Gone  *Gone    `json:"gone,omitempty"` // which components are in memory again; none: of no file any is
}

// Gone is the object that tells which components are in memory again.
type Gone struct {
	Key   string `json:"key"`
	Bytes int    `json:"bytes"`
	CRC   uint32 `json:"crc32c"`
}

// Object is a file, in parts of partBytes.
type Object struct {
	Key   string   `json:"key"` // without "-" and the number of a part, 4 digits
	Bytes int64    `json:"bytes"`
	CRC   []uint32 `json:"crc32c"` // of each part
}

func (o *Object) part(i int) string { return fmt.Sprintf("%s-%04d", o.Key, i) }

// Keys lists all objects that it names.
func (s *State) Keys() (keys []string) {
	if s == nil {
		return nil
	}
	for i := range s.Files {
		for k := range s.Files[i].CRC {
			keys = append(keys, s.Files[i].part(k))
		}
	}
	if s.Gone != nil {
		keys = append(keys, s.Gone.Key)
	}
	return keys
}

// Save is what a checkpoint has to upload.
type Save struct {
	files []*file // those that were not saved yet
	gone  []byte
	state *State
}

// Checkpoint describes the spilled state as it is now; nil where nothing is spilled. Its files stay until Saved is called. number is
// another one for each call.
func (p *Store) Checkpoint(number uint64) *Save {
	if p == nil || len(p.files) == 0 {
		return nil
	}
	p.saving = true
	save := &Save{state: &State{Seed: p.cfg.Seed}}
	any := false
	var gone []byte
	for _, f := range p.files {
		save.state.Files = append(save.state.Files, Object{f.key, f.bytes, f.crc})
		if !f.saved {
			save.files = append(save.files, f)
		}
		any = any || f.goneCount > 0
		gone = binary.AppendUvarint(gone, f.goneEvents)
		for _, word := range f.gone {
			gone = binary.LittleEndian.AppendUint64(gone, word)
		}
	}
	if any {
		save.gone = s2.Encode(nil, gone)
		save.state.Gone = &Gone{
			Key:   fmt.Sprintf("%s-gone-%016x", p.cfg.Prefix, number),
			Bytes: len(save.gone), CRC: crc32.Checksum(save.gone, castagnoli),
		}
	}
	return save
}

// Saved notes that no checkpoint is on its way any more.
func (p *Store) Saved() {
	if p == nil {
		return
	}
	p.saving = false
	for _, f := range p.graves {
		p.bury(f)
	}
	p.graves = nil
}

// State is what the checkpoint's manifest is to say; nil where nothing is spilled.
func (s *Save) State() *State {
	if s == nil {
		return nil
	}
	return s.state
}

// Upload stores what was not stored yet. It may run beside what else is done with the store. put keeps no data.
func (s *Save) Upload(put func(key string, data []byte) error) error {
	if s == nil {
		return nil
	}
	var part []byte
	for _, f := range s.files {
		o := Object{f.key, f.bytes, f.crc}
		for i := range f.crc {
			at := int64(i) * partBytes
			part = slices.Grow(part[:0], partBytes)[:min(partBytes, f.bytes-at)]
			if _, err := f.f.ReadAt(part, at); err != nil {
				return fmt.Errorf("read spilled state: %w", err)
			}
			if crc32.Checksum(part, castagnoli) != f.crc[i] { // better no checkpoint than one that cannot be restored
				return fmt.Errorf("%w: %s changed on disk", ErrCorrupt, f.f.Name())
			}
			if err := put(o.part(i), part); err != nil {
				return err
			}
		}
		f.saved = true
	}
	if s.gone == nil {
		return nil
	}
	return put(s.state.Gone.Key, s.gone)
}

// Get reads an object.
type Get func(ctx context.Context, key string) ([]byte, error)

// Restore fetches the files that a manifest names. It may be tried again.
func (p *Store) Restore(ctx context.Context, get Get, state *State) error {
	if state == nil {
		return nil
	}
	p.cfg.Seed = state.Seed
	for _, f := range p.files { // of a try before
		p.bury(f)
	}
	p.files = nil
	for i := range state.Files {
		o := &state.Files[i]
		f, err := createFile(p.cfg.Dir, func(f *os.File) (*file, error) {
			if err := o.fetch(ctx, get, f); err != nil {
				return nil, err
			}
			return openFile(f)
		})
		if err != nil {
			return err
		}
		f.key, f.crc, f.saved = o.Key, o.CRC, true
		p.files = append(p.files, f)
	}
	if p.cfg.Final {
		for _, f := range p.files {
			if err := f.listDues(&p.blocks); err != nil {
				return err
			}
		}
	}
	if state.Gone == nil {
		return nil
	}
	packed, err := fetchObject(ctx, get, state.Gone.Key, int64(state.Gone.Bytes), state.Gone.CRC)
	if err != nil {
		return err
	}
	if n, err := s2.DecodedLen(packed); err != nil || n > goneBytesMax {
		return fmt.Errorf("%w: %s does not say what is gone", ErrCorrupt, state.Gone.Key)
	}
	gone, err := s2.Decode(nil, packed)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, state.Gone.Key, err)
	}
	for _, f := range p.files {
		events, n := binary.Uvarint(gone)
		if n <= 0 || len(gone)-n < len(f.gone)*8 {
			return fmt.Errorf("%w: %s is cut short", ErrCorrupt, state.Gone.Key)
		}
		f.goneEvents, gone = events, gone[n:]
		for k := range f.gone {
			f.gone[k] = binary.LittleEndian.Uint64(gone[8*k:])
		}
		gone = gone[8*len(f.gone):]
		f.goneCount = uint32(f.gone.count())
	}
	return nil
}

// fetch writes the parts of a file to disk, some at a time.
func (o *Object) fetch(ctx context.Context, get Get, f *os.File) error {
	if int64(len(o.CRC)) != (o.Bytes+partBytes-1)/partBytes {
		return fmt.Errorf("%w: %s: %d bytes in %d parts", ErrCorrupt, o.Key, o.Bytes, len(o.CRC))
	}
	errs := make([]error, len(o.CRC))
	var readers sync.WaitGroup
	turns := make(chan struct{}, partsAtOnce)
	for i := range o.CRC {
		turns <- struct{}{}
		readers.Go(func() {
			defer func() { <-turns }()
			at := int64(i) * partBytes
			data, err := fetchObject(ctx, get, o.part(i), min(partBytes, o.Bytes-at), o.CRC[i])
			if err == nil {
				_, err = f.WriteAt(data, at)
			}
			errs[i] = err
		})
	}
	readers.Wait()
	return errors.Join(errs...)
}

// fetchObject reads an object of a size and checksum.
func fetchObject(ctx context.Context, get Get, key string, size int64, crc uint32) ([]byte, error) {
	data, err := get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read the spilled state %s: %w", key, err)
	}
	if sum := crc32.Checksum(data, castagnoli); int64(len(data)) != size || sum != crc {
		return nil, fmt.Errorf("%w: %s: %d bytes with checksum %08x, expected %d with %08x", ErrCorrupt, key, len(data), sum, size, crc)
	}
	return data, nil
}

package streaming

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/spill"
)

// A checkpoint is a manifest that names files of state. The manifest is replaced as a whole, and only by who read or wrote
// it last; docs/formats/checkpoint.md describes it.

const manifestVersion = 2

// manifest is the truth about a shard.
type manifest struct {
	Version    int              `json:"version"`
	Shard      string           `json:"shard"`
	Epoch      uint64           `json:"epoch"`             // of the run that wrote it
	Nonce      string           `json:"nonce"`             // of this write: who reads back its own has written
	Number     uint64           `json:"number"`            // of the checkpoint; 0 before the first
	Sequence   uint64           `json:"sequence"`          // of the last change in the state
	StateEpoch uint64           `json:"stateEpoch"`        // of the run that the state is of
	Pending    int              `json:"pending,omitempty"` // changed sessions and cells in the state that were not handed out yet
	Watermark  int64            `json:"watermark"`
	Partitions []partitionState `json:"partitions"`
	Groups     *groupsState     `json:"groups,omitempty"` // of one of several shards
	Files      []stateFile      `json:"files"`            // parts of the state, in order, that restore it
	Spill      *spill.State     `json:"spill,omitempty"`  // components that are not in memory
}

type partitionState struct {
	Topic    string `json:"topic"`
	ID       int32  `json:"partition"`
	Identity string `json:"identity,omitempty"` // of the topic
	Next     int64  `json:"next"`               // offset of the first record that is not in the state
	MaxTime  int64  `json:"maxTime"`            // of the watermark
	State    uint8  `json:"state"`

	Past *pastState `json:"past,omitempty"` // while it is being read
}

// stateFile is a part of the core's state.
type stateFile struct {
	Part  uint64 `json:"part"` // its number
	Key   string `json:"key"`
	Bytes int    `json:"bytes"`
	CRC   uint32 `json:"crc32c"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkpoints keeps the checkpoints of one shard.
type checkpoints struct {
	objects Objects
	prefix  string
	retry   func(ctx context.Context, what string, f func() error) error // what may pass; nil: never
	current manifest
	etag    string

	overtaken uint64 // after ErrFenced: the epoch that wrote the manifest
}

func (c *checkpoints) try(ctx context.Context, what string, f func() error) error {
	if c.retry == nil {
		return f()
	}
	return c.retry(ctx, what, f)
}

func (c *checkpoints) key() string { return c.prefix + "manifest.json" }

// load reads the last checkpoint and its state. found is false where the shard never had one.
func (c *checkpoints) load(ctx context.Context, cfg correlate.Config) (core *correlate.Core, found bool, err error) {
	found, err = c.read(ctx)
	if err != nil {
		return nil, false, err
	}
	if len(c.current.Files) == 0 {
		core, err = correlate.New(cfg)
		return core, found, err
	}
	chain, err := c.chain(ctx, c.current.Files)
	for errors.Is(err, ErrNoObject) {
		// A run that has not ended may have saved another checkpoint meanwhile, and deleted what it supersedes.
		was := c.current.Nonce
		if _, err := c.read(ctx); err != nil {
			return nil, false, err
		}
		if c.current.Nonce == was {
			break
		}
		chain, err = c.chain(ctx, c.current.Files)
	}
	if err != nil {
		return nil, false, err
	}
	core, err = correlate.Restore(cfg, chain...)
	if err != nil {
		return nil, false, fmt.Errorf("restore checkpoint %d: %w", c.current.Number, err)
	}
	return core, true, nil
}

// read reads the manifest. found is false where there is none yet.
func (c *checkpoints) read(ctx context.Context) (found bool, err error) {
	data, etag, err := c.objects.Get(ctx, c.key())
	if errors.Is(err, ErrNoObject) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the manifest %s: %w", c.key(), err)
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return false, fmt.Errorf("read the manifest %s: %w", c.key(), err)
	}
	if m.Version != manifestVersion {
		return false, fmt.Errorf("the manifest %s has version %d, this engine reads %d", c.key(), m.Version, manifestVersion)
	}
	c.current, c.etag = m, etag
	return true, nil
}

const readsMax = 8 // files of state that are read at a time

// chain reads files of state, in their order.
func (c *checkpoints) chain(ctx context.Context, files []stateFile) (list [][]byte, err error) {
	list, errs := make([][]byte, len(files)), make([]error, len(files))
	var readers sync.WaitGroup
	turns := make(chan struct{}, readsMax)
	for i, f := range files {
		turns <- struct{}{}
		readers.Go(func() {
			defer func() { <-turns }()
			var data []byte
			// Each by itself: a chain is long, and all of its reads at once would hardly ever succeed where some fail.
			err := c.try(ctx, "read "+f.Key, func() (err error) {
				data, _, err = c.objects.Get(ctx, f.Key)
				return err
			})
			if err != nil {
				errs[i] = fmt.Errorf("read the state %s: %w", f.Key, err)
			} else if len(data) != f.Bytes || crc32.Checksum(data, castagnoli) != f.CRC {
				errs[i] = fmt.Errorf("the state %s is damaged: %d bytes with checksum %08x, expected %d with %08x",
					f.Key, len(data), crc32.Checksum(data, castagnoli), f.Bytes, f.CRC)
			}
			list[i] = data
		})
	}
	readers.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// newNonce returns what tells one write of a manifest from all others, its own repetitions excepted.
func newNonce() string {
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails
	return hex.EncodeToString(nonce[:])
}

// put replaces the manifest. It may be tried again with the same manifest. ErrFenced says that somebody else did so since.
func (c *checkpoints) put(ctx context.Context, m manifest) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	etag, err := c.objects.Put(ctx, c.key(), data, c.etag)
	if errors.Is(err, ErrChanged) {
		// The reply to an earlier try may have been lost: then what is there is ours.
		var there manifest
		data, now, readErr := c.objects.Get(ctx, c.key())
		if readErr != nil {
			return fmt.Errorf("read back the checkpoint's manifest: %w", readErr)
		}
		if json.Unmarshal(data, &there) != nil || there.Nonce != m.Nonce {
			c.overtaken = there.Epoch
			return fmt.Errorf("%w: the manifest of epoch %d is there, not that of epoch %d", ErrFenced, there.Epoch, m.Epoch)
		}
		etag, err = now, nil
	}
	if err != nil {
		return fmt.Errorf("write the checkpoint's manifest: %w", err)
	}
	c.current, c.etag = m, etag
	return nil
}

// files lists what restores a core, whose last part is state: of the files that the manifest names now those that are
// needed, and state under a name that no other checkpoint has.
func (c *checkpoints) files(core *correlate.Core, m *manifest, state []byte) (files []stateFile) {
	for _, f := range c.current.Files {
		if f.Part >= core.NeededPart() {
			files = append(files, f)
		}
	}
	return append(files, stateFile{
		Part: core.PartNumber(), Key: fmt.Sprintf("%sstate-%016x-%016x", c.prefix, m.Epoch, m.Number),
		Bytes: len(state), CRC: crc32.Checksum(state, castagnoli),
	})
}

// upload stores the last of m's files. It may be tried again.
func (c *checkpoints) upload(ctx context.Context, m manifest, state []byte) error {
	key := m.Files[len(m.Files)-1].Key
	// A try whose reply was lost has written just these bytes under this name.
	if _, err := c.objects.Put(ctx, key, state, ""); err != nil && !errors.Is(err, ErrChanged) {
		return fmt.Errorf("write the state %s: %w", key, err)
	}
	return nil
}

// superseded lists the files that the manifest names now and m does not.
func (c *checkpoints) superseded(m manifest) (keys []string) {
	for _, f := range c.current.Files {
		if f.Part < m.Files[0].Part {
			keys = append(keys, f.Key)
		}
	}
	named := m.Spill.Keys()
	return append(keys, slices.DeleteFunc(c.current.Spill.Keys(), func(key string) bool { return slices.Contains(named, key) })...)
}

func (c *checkpoints) delete(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if err := c.objects.Delete(ctx, key); err != nil {
			return fmt.Errorf("delete the old state %s: %w", key, err)
		}
	}
	return nil
}

// sweep deletes state that the manifest does not name. Only who has claimed the manifest may do that, and saves nothing
// meanwhile.
//
// A run that does not know yet that it is fenced may sweep late. So it leaves what is of a later epoch; and the run after it
// started from the same manifest, so it names nothing older that this one does not.
func (c *checkpoints) sweep(ctx context.Context) error {
	named := map[string]bool{}
	for _, f := range c.current.Files {
		named[f.Key] = true
	}
	for _, key := range c.current.Spill.Keys() {
		named[key] = true
	}
	for _, kind := range []string{"state-", "spill-"} {
		later := fmt.Sprintf("%s%s%016x-", c.prefix, kind, c.current.Epoch+1)
		keys, err := c.objects.List(ctx, c.prefix+kind)
		if err != nil {
			return fmt.Errorf("list the state: %w", err)
		}
		if err := c.delete(ctx, slices.DeleteFunc(keys, func(key string) bool { return named[key] || key >= later })); err != nil {
			return err
		}
	}
	return nil
}

// restoreWatermark continues a watermark over the partitions, in their order.
func (m *manifest) restoreWatermark(w *correlate.Watermark, partitions []Partition) error {
	states := make([]correlate.PartitionState, len(partitions))
	for i, p := range partitions {
		states[i] = correlate.PartitionState{Max: event.MinTime}
		if s := m.partition(p); s != nil {
			states[i] = correlate.PartitionState{Max: event.Micros(s.MaxTime), State: s.State}
		}
	}
	return w.SetState(event.Micros(m.Watermark), states)
}

func (m *manifest) partition(p Partition) *partitionState {
	for i := range m.Partitions {
		if s := &m.Partitions[i]; s.Topic == p.Topic && s.ID == p.ID {
			return s
		}
	}
	return nil
}

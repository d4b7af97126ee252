package streaming

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// A checkpoint is a manifest that names files of state. The manifest is replaced as a whole, and only by who read or wrote
// it last; docs/formats/checkpoint.md describes it.

const manifestVersion = 1

// manifest is the truth about a shard.
type manifest struct {
	Version    int              `json:"version"`
	Shard      string           `json:"shard"`
	Epoch      uint64           `json:"epoch"`      // of the run that wrote it
	Nonce      string           `json:"nonce"`      // of this write: who reads back its own has written
	Number     uint64           `json:"number"`     // of the checkpoint; 0 before the first
	Sequence   uint64           `json:"sequence"`   // of the last change in the state
	StateEpoch uint64           `json:"stateEpoch"` // of the run that the state is of
	Watermark  int64            `json:"watermark"`
	Partitions []partitionState `json:"partitions"`
	Files      []stateFile      `json:"files"` // a snapshot and the deltas after it
}

type partitionState struct {
	Topic    string `json:"topic"`
	ID       int32  `json:"partition"`
	Identity string `json:"identity,omitempty"` // of the topic
	Next     int64  `json:"next"`               // offset of the first record that is not in the state
	MaxTime  int64  `json:"maxTime"`            // of the watermark
	State    uint8  `json:"state"`
}

// stateFile is a snapshot or delta of the core.
type stateFile struct {
	Key   string `json:"key"`
	Bytes int    `json:"bytes"`
	CRC   uint32 `json:"crc32c"`
}

const (
	deltasMax = 32 // restoring reads them all
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkpoints keeps the checkpoints of one shard.
type checkpoints struct {
	objects Objects
	prefix  string
	current manifest
	etag    string

	overtaken uint64 // after ErrFenced: the epoch that wrote the manifest
}

func (c *checkpoints) key() string { return c.prefix + "manifest.json" }

// load reads the last checkpoint and its state. found is false where the shard never had one.
func (c *checkpoints) load(ctx context.Context, cfg correlate.Config) (core *correlate.Core, found bool, err error) {
	data, etag, err := c.objects.Get(ctx, c.key())
	if errors.Is(err, ErrNoObject) {
		core, err = correlate.New(cfg)
		return core, false, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("read the checkpoint's manifest: %w", err)
	}
	c.current = manifest{}
	if err := json.Unmarshal(data, &c.current); err != nil {
		return nil, false, fmt.Errorf("read the checkpoint's manifest %s: %w", c.key(), err)
	}
	if c.current.Version != manifestVersion {
		return nil, false, fmt.Errorf("the checkpoint's manifest has version %d, this engine reads %d", c.current.Version, manifestVersion)
	}
	c.etag = etag
	var chain [][]byte
	for _, f := range c.current.Files {
		data, _, err := c.objects.Get(ctx, f.Key)
		if err != nil {
			return nil, false, fmt.Errorf("read the state %s: %w", f.Key, err)
		}
		if len(data) != f.Bytes || crc32.Checksum(data, castagnoli) != f.CRC {
			return nil, false, fmt.Errorf("the state %s is damaged: %d bytes with checksum %08x, expected %d with %08x",
				f.Key, len(data), crc32.Checksum(data, castagnoli), f.Bytes, f.CRC)
		}
		chain = append(chain, data)
	}
	if len(chain) == 0 {
		core, err = correlate.New(cfg)
		return core, true, err
	}
	core, err = correlate.Restore(cfg, chain[0], chain[1:]...)
	if err != nil {
		return nil, false, fmt.Errorf("restore checkpoint %d: %w", c.current.Number, err)
	}
	return core, true, nil
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

// file describes state, under a name that no other checkpoint has.
func (c *checkpoints) file(m *manifest, state []byte) stateFile {
	return stateFile{
		Key:   fmt.Sprintf("%sstate-%016x-%016x", c.prefix, m.Epoch, m.Number),
		Bytes: len(state), CRC: crc32.Checksum(state, castagnoli),
	}
}

// save stores the last of m's files and makes m the checkpoint. It may be tried again.
func (c *checkpoints) save(ctx context.Context, m manifest, state []byte) error {
	key := m.Files[len(m.Files)-1].Key
	// A try whose reply was lost has written just these bytes under this name.
	if _, err := c.objects.Put(ctx, key, state, ""); err != nil && !errors.Is(err, ErrChanged) {
		return fmt.Errorf("write the state %s: %w", key, err)
	}
	return c.put(ctx, m)
}

// sweep deletes state that the manifest does not name. Only who has claimed the manifest may do that, and saves nothing
// meanwhile.
//
// A run that does not know yet that it is fenced may sweep late. So it leaves what is of a later epoch; and the run after it
// started from the same manifest, so it names nothing older that this one does not.
func (c *checkpoints) sweep(ctx context.Context) error {
	later := fmt.Sprintf("%sstate-%016x-", c.prefix, c.current.Epoch+1)
	named := map[string]bool{}
	for _, f := range c.current.Files {
		named[f.Key] = true
	}
	keys, err := c.objects.List(ctx, c.prefix+"state-")
	if err != nil {
		return fmt.Errorf("list the state: %w", err)
	}
	for _, key := range keys {
		if named[key] || key >= later {
			continue
		}
		if err := c.objects.Delete(ctx, key); err != nil {
			return fmt.Errorf("delete the old state %s: %w", key, err)
		}
	}
	return nil
}

// wholeIsDue tells whether the next checkpoint should be a snapshot: when the deltas are many, or as large as it.
func (c *checkpoints) wholeIsDue() bool {
	files := c.current.Files
	if len(files) == 0 || len(files) > deltasMax {
		return true
	}
	deltas := 0
	for _, f := range files[1:] {
		deltas += f.Bytes
	}
	return deltas > files[0].Bytes+1<<20
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

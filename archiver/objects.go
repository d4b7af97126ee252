package archiver

import (
	"context"
	"fmt"
	"time"

	"github.com/weftdata/weft/archive"
)

func readManifest(ctx context.Context, objects Objects, key string) (*archive.Manifest, error) {
	data, err := objects.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return archive.DecodeManifest(key, data)
}

// lastManifest returns the last manifest of a partition; nil: it has none. It asks for a few listings only, however long the
// archive is: sequences have no holes, so the last one is found by halving.
func (a *archiver) lastManifest(ctx context.Context, partition int32) (m *archive.Manifest, err error) {
	from := func(sequence int64) (first int64, ok bool, err error) {
		err = a.retry(ctx, "look for the last manifest", func() (err error) {
			first, ok, err = firstFrom(ctx, a.cfg.Objects, a.cfg.Topic, partition, sequence)
			return err
		})
		return first, ok, err
	}
	known, ok, err := from(0) // there is one with this number or a later one …
	if err != nil || !ok {
		return nil, err
	}
	past := int64(0) // … and none from this one on; 0: not known yet
	for step := int64(1); past == 0 || known+1 < past; step *= 2 {
		probe := known + step
		if past > 0 {
			probe = known + (past-known)/2
		}
		found, ok, err := from(probe)
		if err != nil {
			return nil, err
		}
		if ok {
			known = found
		} else {
			past = probe
		}
	}
	err = a.retry(ctx, "read the last manifest", func() (err error) {
		m, err = readManifest(ctx, a.cfg.Objects, archive.ManifestKey(a.cfg.Topic, partition, known))
		return err
	})
	return m, err
}

// firstFrom returns the first sequence from a number on that has a manifest.
func firstFrom(ctx context.Context, objects Objects, topic string, partition int32, from int64) (int64, bool, error) {
	prefix := archive.Prefix(topic, partition)
	for o, err := range objects.List(ctx, prefix, archive.SequenceStart(topic, partition, from)) {
		if err != nil {
			return 0, false, fmt.Errorf("list %s: %w", prefix, err)
		}
		if sequence, nonce, ok := archive.ParseKey(topic, partition, o.Key); ok && nonce == "" {
			return sequence, true, nil
		}
	}
	return 0, false, nil
}

// sweepAll deletes, from time to time, what runs that crashed have left.
func (a *archiver) sweepAll(ctx context.Context) {
	tick := time.NewTicker(a.cfg.SweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		a.mu.Lock()
		all := a.all[:len(a.all):len(a.all)]
		a.mu.Unlock()
		for _, p := range all {
			n, err := a.sweep(ctx, p.id)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				a.log.Warn("files of no manifest are left", "partition", p.id, "error", err)
			} else if n > 0 {
				a.log.Info("deleted files of no manifest", "partition", p.id, "files", n)
			}
		}
	}
}

// sweep deletes old data files that the manifest of their number does not list. Nobody can still be about to list them: the
// number is taken, so a slow archiver that tries to put it is refused. Where there is no manifest yet the files may be of
// one that is about to be put, and stay. Where all files of a number are of one attempt, they are the manifest's.
func (a *archiver) sweep(ctx context.Context, partition int32) (deleted int, err error) {
	topic := a.cfg.Topic
	prefix := archive.Prefix(topic, partition)
	var group []Object // data files of one sequence
	var attempts map[string]bool
	current := int64(-1)
	for o, err := range a.cfg.Objects.List(ctx, prefix, "") {
		if err != nil {
			return deleted, fmt.Errorf("list %s: %w", prefix, err)
		}
		sequence, nonce, ok := archive.ParseKey(topic, partition, o.Key)
		if !ok {
			continue // not ours
		}
		if sequence != current {
			current, group, attempts = sequence, group[:0], map[string]bool{}
		}
		if nonce != "" {
			group, attempts[nonce] = append(group, o), true
			continue
		}
		if len(attempts) < 2 {
			continue
		}
		m, err := readManifest(ctx, a.cfg.Objects, o.Key)
		if err != nil {
			return deleted, err
		}
		for _, file := range group {
			_, nonce, _ := archive.ParseKey(topic, partition, file.Key)
			if nonce == m.Nonce || file.Modified.IsZero() || time.Since(file.Modified) < a.cfg.SweepAge {
				continue
			}
			if err := a.cfg.Objects.Delete(ctx, file.Key); err != nil {
				return deleted, fmt.Errorf("delete %s: %w", file.Key, err)
			}
			deleted++
		}
	}
	return deleted, nil
}

package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"sync"
)

// Objects is where an archive is kept.
type Objects interface {
	Get(ctx context.Context, key string) ([]byte, error)
	// GetRange returns n bytes from an offset on, fewer where the object ends before.
	GetRange(ctx context.Context, key string, from, n int64) ([]byte, error)
	// Keys yields the keys that start with the prefix and are greater than after, in order.
	Keys(ctx context.Context, prefix, after string) iter.Seq2[string, error]
}

// Limits of reading an archive.
const (
	manifestReaders = 16      // manifests that are asked for at once
	partBytes       = 8 << 20 // of a data file that are asked for at once
	partReaders     = 4       // parts that are
)

// Manifests yields the manifests of a partition from the first on, until it is told to stop. One that is missing, or does not
// go on where the one before ended, is an error and the last that it yields.
func Manifests(ctx context.Context, objects Objects, topic string, partition int32) iter.Seq2[*Manifest, error] {
	return func(yield func(*Manifest, error) bool) {
		keys, err := manifestKeys(ctx, objects, topic, partition)
		var last *Manifest
		for err == nil && len(keys) > 0 {
			n := min(len(keys), manifestReaders)
			var list []*Manifest
			list, err = readManifests(ctx, objects, keys[:n])
			keys = keys[n:]
			for i := 0; i < len(list) && err == nil; i++ {
				m := list[i]
				if last != nil {
					if err = m.Follows(last); err != nil {
						break
					}
				}
				if last = m; !yield(m, nil) {
					return
				}
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// manifestKeys lists the manifests of a partition, of which none may be missing.
func manifestKeys(ctx context.Context, objects Objects, topic string, partition int32) (keys []string, err error) {
	prefix := Prefix(topic, partition)
	for key, err := range objects.Keys(ctx, prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		if _, nonce, ok := ParseKey(topic, partition, key); !ok || nonce != "" {
			continue
		}
		if want := ManifestKey(topic, partition, int64(len(keys))); key != want {
			return nil, fmt.Errorf("%w: %s is missing, and %s is there", ErrManifest, want, key)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// readManifests reads some manifests at once.
func readManifests(ctx context.Context, objects Objects, keys []string) ([]*Manifest, error) {
	list, errs := make([]*Manifest, len(keys)), make([]error, len(keys))
	var readers sync.WaitGroup
	for i, key := range keys {
		readers.Go(func() {
			data, err := objects.Get(ctx, key)
			if err != nil {
				errs[i] = fmt.Errorf("read %s: %w", key, err)
				return
			}
			list[i], errs[i] = DecodeManifest(key, data)
		})
	}
	readers.Wait()
	return list, errors.Join(errs...)
}

// ReadFile reads a data file whole, by parts at once, and checks that it is what its manifest says.
func ReadFile(ctx context.Context, objects Objects, f *DataFile) ([]byte, error) {
	data := make([]byte, f.Bytes)
	errs := make([]error, (f.Bytes+partBytes-1)/partBytes)
	slots := make(chan struct{}, partReaders)
	var readers sync.WaitGroup
	for i := range errs {
		slots <- struct{}{}
		readers.Go(func() {
			defer func() { <-slots }()
			at := int64(i) * partBytes
			part := data[at:min(at+partBytes, f.Bytes)]
			got, err := objects.GetRange(ctx, f.Key, at, int64(len(part)))
			if err == nil && copy(part, got) < len(part) {
				err = fmt.Errorf("it ends at byte %d of %d", at+int64(len(got)), f.Bytes)
			}
			errs[i] = err
		})
	}
	readers.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != f.SHA256 {
		return nil, errors.New("it is damaged: its SHA-256 is another one")
	}
	return data, nil
}

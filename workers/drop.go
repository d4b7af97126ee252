package workers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/store"
)

// DropVersion removes what a version that does not run has left: its generation, checkpoints, groups topic and comparisons. What is
// served stays, and what a rollback would bring back. Doing it again finishes what was cut short.
//
// The manifests of checkpoints go first. With them and without its generation the version would go on in the middle; without them
// it begins anew, whatever else is there.
func (s *Stage) DropVersion(ctx context.Context, in activities.DropVersionInput) (d activities.DroppedVersion, err error) {
	env := s.Versions.Env
	m, err := env.Store.ServingMap(ctx, in.Job)
	if err != nil {
		return d, err
	}
	maps := []store.Map{m}
	if in.Back > 0 && in.Back != m.Epoch {
		back, err := s.keptMap(ctx, in.Job, in.Back)
		if err != nil {
			return d, err
		}
		maps = append(maps, back)
	}
	all, err := env.Store.Generations(ctx, in.Job)
	if err != nil {
		return d, err
	}
	all = slices.DeleteFunc(all, func(g store.Generation) bool { return g.Kind != liveKind || g.Version != strconv.Itoa(in.Version) })
	for i, m := range maps {
		for _, g := range all {
			if !slices.ContainsFunc(m.Ranges, func(a store.Assignment) bool { return a.Generation == g.ID }) {
				continue
			}
			d.Kept = []string{"it serves some sessions", fmt.Sprintf("a rollback would bring back what epoch %d of the serving map says, in which it is", in.Back)}[i]
			return d, nil
		}
	}
	checkpoints := fmt.Sprintf("checkpoints/%s/%d/", in.Job, in.Version)
	manifest := func(key string) bool { return strings.HasSuffix(key, "/manifest.json") }
	if err := s.deleteAll(ctx, checkpoints, manifest, &d); err != nil {
		return d, err
	}
	for _, g := range all {
		if err := env.Store.DropGeneration(ctx, in.Job, g.ID); err != nil {
			if errors.Is(err, store.ErrServed) { // by now
				return activities.DroppedVersion{Kept: "it serves some sessions"}, nil
			}
			return d, err
		}
	}
	any := func(string) bool { return true }
	for _, prefix := range []string{checkpoints, fmt.Sprintf("rollouts/%s/%d/", in.Job, in.Version)} {
		if err := s.deleteAll(ctx, prefix, any, &d); err != nil {
			return d, err
		}
	}
	log := s.topics()
	return d, errors.Join(log.Delete(ctx, GroupsTopic(in.Job, in.Version)), log.Close())
}

// deleteAll deletes objects below a prefix.
func (s *Stage) deleteAll(ctx context.Context, prefix string, which func(key string) bool, d *activities.DroppedVersion) error {
	var keys []string
	for info, err := range s.Versions.Env.Objects.List(ctx, prefix, "") {
		if err != nil {
			return err
		}
		if which(info.Key) {
			keys = append(keys, info.Key)
		}
	}
	for _, key := range keys {
		if err := s.Versions.Env.Objects.Delete(ctx, key); err != nil && !errors.Is(err, objstore.ErrNotFound) {
			return err
		}
		d.Objects++
	}
	return nil
}

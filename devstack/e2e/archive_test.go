package e2e

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/archiver"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

// TestArchiveEqualsFiles plays a payment environment into Kafka, archives its topics in runs of different sizes into the
// object store, and replays the archive: the result has the digest of a replay of the files.
func TestArchiveEqualsFiles(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	at, file, want := playEnvironment(t, ctx, 3000, 5, "48h", 3)
	env, err := workers.OpenEnv(ctx, at, stack.Kafka, stack.S3)
	if err != nil {
		t.Fatal(err)
	}
	defer env.Close()

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	version, err := registry.New(env.Objects).Add(ctx, registry.NewVersion{Job: "payments", Spec: text, Message: "first", Author: "test"})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := version.Parse()
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{64 << 10, 1 << 20} { // the first run ends early
		archiveAll(t, ctx, env, spec, size, size == 64<<10)
	}

	job, err := operator.Compile(spec, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := backfill.ReplayConfig{Job: job, TempDir: t.TempDir()}
	for _, source := range spec.Sources {
		cfg.Archives = append(cfg.Archives, backfill.ArchiveInput{Source: source.Name, Objects: workers.ArchiveObjects{Store: env.Objects}})
	}
	got, err := backfill.Replay(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != want.Digest || got.Records != want.Records {
		t.Errorf("%d records, digest %s; want %d, %s", got.Records, got.Digest, want.Records, want.Digest)
	}
}

// archiveAll archives all topics of a job until nothing is left, or until each has some.
func archiveAll(t *testing.T, ctx context.Context, env *workers.Env, spec *jobspec.Spec, fileBytes int64, early bool) {
	t.Helper()
	archiveAllOf(t, ctx, env, spec, fileBytes, early, 3)
}

// archiveAllOf archives topics of so many partitions.
func archiveAllOf(t *testing.T, ctx context.Context, env *workers.Env, spec *jobspec.Spec, fileBytes int64, early bool, partitions int) {
	t.Helper()
	var runs sync.WaitGroup
	for _, source := range spec.Sources {
		runs.Go(func() {
			ctx, stop := context.WithCancel(ctx)
			defer stop()
			a := &workers.Archives{Env: env, Log: slog.New(slog.DiscardHandler),
				Configure: func(c *archiver.Config) {
					c.FileBytes, c.FetchBytes, c.FileAge = fileBytes, int(min(fileBytes, 16<<10)), 2*time.Second
				},
				Observe: func(s archiver.Status) {
					unseen := slices.ContainsFunc(s.Partitions, func(p archiver.PartitionStatus) bool { return p.End == 0 })
					if s.Lag() == 0 && len(s.Partitions) == partitions && !unseen || early && s.Partitions[0].Manifests > 0 {
						stop()
					}
				}}
			in := activities.ArchiveInput{Topic: source.Topic, Jobs: []activities.JobVersion{{Job: spec.Job, Version: 1}, {Job: spec.Job, Version: 9}}}
			if err := a.RunArchiver(ctx, in, func(activities.Beat) {}); err != nil {
				t.Errorf("archive %s: %v", source.Topic, err)
			}
		})
	}
	runs.Wait()
}

package e2e

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/archiver"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/devstack"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/paygen"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

// TestArchiveEqualsFiles plays a payment environment into Kafka, archives its topics in runs of different sizes into the
// object store, and replays the archive: the result has the digest of a replay of the files.
func TestArchiveEqualsFiles(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dir := t.TempDir()
	weft := filepath.Join(dir, "weft")
	run(t, "../..", "go", "build", "-o", weft, "./cmd/weft")
	run(t, dir, weft, "gen", "--out", "pay", "--orders", "3000", "--seed", "5", "--span", "48h")
	inputs := []string{"--spec", "pay/job.yaml"}
	for _, s := range paygen.Sources() {
		inputs = append(inputs, "--input", s[0]+"=pay/"+s[1])
	}
	var want backfill.Summary
	if err := json.Unmarshal(run(t, dir, weft, append([]string{"replay", "--out", "result", "--json"}, inputs...)...), &want); err != nil {
		t.Fatal(err)
	}
	s, err := devstack.Start(ctx, devstack.Config{Data: filepath.Join(dir, "stack")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop(context.WithoutCancel(ctx))
	run(t, dir, weft, append([]string{"produce", "--kafka", s.Addresses().Kafka, "--partitions", "3", "-q"}, inputs...)...)
	at := s.Addresses()
	access, err := os.ReadFile(at.S3AccessKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := os.ReadFile(at.S3SecretKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	at.S3AccessKey, at.S3SecretKey = strings.TrimSpace(string(access)), stack.Secret(strings.TrimSpace(string(secret)))
	env, err := workers.OpenEnv(ctx, at, stack.Kafka, stack.S3)
	if err != nil {
		t.Fatal(err)
	}
	defer env.Close()

	text, err := os.ReadFile(filepath.Join(dir, "pay/job.yaml"))
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
	cfg := backfill.ReplayConfig{Job: job, TempDir: dir}
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
	var runs sync.WaitGroup
	for _, source := range spec.Sources {
		runs.Go(func() {
			ctx, stop := context.WithCancel(ctx)
			defer stop()
			a := &workers.Archives{Env: env, Log: slog.New(slog.DiscardHandler),
				Configure: func(c *archiver.Config) { c.FileBytes, c.FetchBytes, c.FileAge = fileBytes, 16<<10, 2*time.Second },
				Observe: func(s archiver.Status) {
					if s.Lag() == 0 && len(s.Partitions) == 3 && s.Partitions[2].End > 0 || early && s.Partitions[0].Manifests > 0 {
						stop()
					}
				}}
			in := activities.ArchiveInput{Topic: source.Topic, Jobs: []activities.JobVersion{{Job: "payments", Version: 1}, {Job: "payments", Version: 9}}}
			if err := a.RunArchiver(ctx, in, func(activities.Beat) {}); err != nil {
				t.Errorf("archive %s: %v", source.Topic, err)
			}
		})
	}
	runs.Wait()
}

package workflows

import (
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

// TestHistoriesReplay runs today's code against what the workflows of earlier engines did.
func TestHistoriesReplay(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no histories: %v", err)
	}
	r := worker.NewWorkflowReplayer()
	for name, f := range map[string]any{VersionType: Version, ShardType: Shard, ArchiveType: Archive, PublisherType: Publisher, BackfillType: Backfill, ReconcileType: Reconcile,
		JobType: Job, DeployType: Deploy, RolloutType: Rollout, ProcessType: Process} {
		r.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	quiet := log.NewStructuredLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			if err := r.ReplayWorkflowHistoryFromJSONFile(quiet, file); err != nil {
				t.Error(err)
			}
		})
	}
}

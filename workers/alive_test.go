package workers

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/activities"
)

// A short activity is kept alive without doing anything for it; one that tells of its progress is not.
func TestShortActivitiesAreKeptAlive(t *testing.T) {
	for timeout, want := range map[time.Duration]bool{activities.HeartbeatTimeout: true, time.Minute: false, 0: false} {
		var suite testsuite.WorkflowTestSuite
		suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
		env := suite.NewTestWorkflowEnvironment()
		env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{&alive{}}})
		beat := make(chan struct{}, 100)
		env.SetOnActivityHeartbeatListener(func(*activity.Info, converter.EncodedValues) { beat <- struct{}{} })
		env.RegisterActivityWithOptions(func(context.Context) (kept bool, err error) {
			limit := 20 * aliveEvery
			if !want {
				limit = 2 * aliveEvery
			}
			select {
			case <-beat:
				return true, nil
			case <-time.After(limit):
				return false, nil
			}
		}, activity.RegisterOptions{Name: "Wait"})
		env.ExecuteWorkflow(func(ctx workflow.Context) (kept bool, err error) {
			ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute, HeartbeatTimeout: timeout})
			err = workflow.ExecuteActivity(ctx, "Wait").Get(ctx, &kept)
			return kept, err
		})
		var kept bool
		if err := env.GetWorkflowResult(&kept); err != nil || kept != want {
			t.Errorf("with a heartbeat timeout of %s: kept alive %t, %v", timeout, kept, err)
		}
	}
}

package workers

import (
	"context"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"

	"github.com/weftdata/weft/activities"
)

// aliveEvery is how often a short activity tells that it is still there: several times within the least heartbeat timeout.
const aliveEvery = 500 * time.Millisecond

// alive sends heartbeats of the short activities of a control worker while its process lives. Where it was killed they are tried
// elsewhere as soon as Temporal misses these, and not only when all the time is over that they may take. Activities that wait longer
// for a heartbeat tell of their progress themselves.
type alive struct {
	interceptor.WorkerInterceptorBase
}

func (*alive) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	a := &aliveActivity{}
	a.Next = next
	return a
}

type aliveActivity struct {
	interceptor.ActivityInboundInterceptorBase
}

// ExecuteActivity runs an activity and sends its heartbeats.
func (a *aliveActivity) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	if timeout := activity.GetInfo(ctx).HeartbeatTimeout; timeout == 0 || timeout > activities.HeartbeatTimeout {
		return a.Next.ExecuteActivity(ctx, in)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(aliveEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				activity.RecordHeartbeat(ctx)
			case <-done:
				return
			}
		}
	}()
	defer func() { close(done); <-ended }()
	return a.Next.ExecuteActivity(ctx, in)
}

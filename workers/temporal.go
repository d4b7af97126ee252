package workers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"go.temporal.io/api/command/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workflows"
)

// dialTimeout bounds the first answer of Temporal's frontend.
const dialTimeout = 10 * time.Second

// ErrNotSetUp says that Temporal lacks what Weft's workflows need.
var ErrNotSetUp = errors.New("Temporal is not set up for Weft")

// searchAttributes are those that workflows set; without them a workflow hangs at its first step.
func searchAttributes() []string { return []string{"WeftJob", "WeftPhase", "WeftVersion"} }

// Identity names a process for people who look at Temporal: what it is for, and where.
func Identity(role string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("weft %s@%s:%d", role, host, os.Getpid())
}

// DialTemporal connects to Temporal. The SDK's own messages go to the logger.
func DialTemporal(ctx context.Context, at stack.Addresses, identity string, logger *slog.Logger) (client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	options := client.Options{HostPort: at.Temporal, Namespace: at.Namespace, Identity: identity, Logger: log.NewStructuredLogger(logger)}
	if err := secureTemporal(at, &options); err != nil {
		return nil, fmt.Errorf("connect to Temporal at %s: %w", at.Temporal, err)
	}
	options.ConnectionOptions.DialOptions = append(options.ConnectionOptions.DialOptions, append(reconnectSoon(), grpc.WithChainUnaryInterceptor(toAnyWorker))...)
	c, err := client.DialContext(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("connect to Temporal at %s: %w (is it running? the address comes from a flag, WEFT_TEMPORAL, or a running stack)", at.Temporal, err)
	}
	return c, nil
}

// reconnectSoon makes workers take up their work soon after an outage of Temporal. By the SDK's own settings they wait up to
// 10 s between two tries to connect, and then up to 10 s more until they poll: a poll waits for the connection here instead.
func reconnectSoon() []grpc.DialOption {
	slow := backoff.DefaultConfig
	slow.BaseDelay, slow.MaxDelay = 200*time.Millisecond, time.Second
	return []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: slow, MinConnectTimeout: 5 * time.Second}),
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, o ...grpc.CallOption) error {
			if strings.HasPrefix(path.Base(method), "Poll") {
				o = append(o, grpc.WaitForReady(true))
			}
			return call(ctx, method, req, reply, cc, o...)
		}),
	}
}

// toAnyWorker lets any control worker do the next step of a Job that rests. Otherwise Temporal waits for the worker that has the
// workflow in its memory, and where that one was killed, for stickyTimeout and up to a second more, since its timers are that
// coarse (history.timerProcessorMaxTimeShift). A rollback must not wait for that: its first step costs a replay of the history
// instead, which Job keeps short. While an activity is on its way the next step is near, and stays where it is.
//
// The next step must not come with the answer: it would have the whole history, and the SDK goes on where the workflow is.
func toAnyWorker(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, o ...grpc.CallOption) error {
	if r, ok := req.(*workflowservice.RespondWorkflowTaskCompletedRequest); ok && strings.HasPrefix(r.GetResourceId(), "workflow:"+workflows.JobID("")) {
		begins := func(c *command.Command) bool { return c.GetCommandType() == enums.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK }
		if !slices.ContainsFunc(r.GetCommands(), begins) {
			r.StickyAttributes, r.ReturnNewWorkflowTask = nil, false
		}
	}
	return call(ctx, method, req, reply, cc, o...)
}

// missingAttributes returns the search attributes that are not registered.
func missingAttributes(ctx context.Context, c client.Client, namespace string) (missing []string, err error) {
	have, err := c.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	var none *serviceerror.NamespaceNotFound
	switch {
	case errors.As(err, &none):
		return nil, noNamespace(namespace)
	case err != nil:
		return nil, fmt.Errorf("list Temporal's search attributes: %w", err)
	}
	for _, name := range searchAttributes() {
		if have.GetCustomAttributes()[name] != enums.INDEXED_VALUE_TYPE_KEYWORD {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

func noNamespace(name string) error {
	return fmt.Errorf("%w: it has no namespace %s (`weft setup --create-namespace` makes it)", ErrNotSetUp, name)
}

// CheckSetUp fails with ErrNotSetUp where search attributes are missing.
func CheckSetUp(ctx context.Context, c client.Client, namespace string) error {
	missing, err := missingAttributes(ctx, c, namespace)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%w: namespace %s lacks the search attributes %s (register them with `weft setup`)",
			ErrNotSetUp, namespace, strings.Join(missing, ", "))
	}
	return err
}

// SetUp registers the search attributes that are missing and returns them. They can take a moment to be known everywhere.
func SetUp(ctx context.Context, c client.Client, namespace string) (added []string, err error) {
	if added, err = missingAttributes(ctx, c, namespace); err != nil || len(added) == 0 {
		return nil, err
	}
	r := &operatorservice.AddSearchAttributesRequest{Namespace: namespace, SearchAttributes: map[string]enums.IndexedValueType{}}
	for _, name := range added {
		r.SearchAttributes[name] = enums.INDEXED_VALUE_TYPE_KEYWORD
	}
	if _, err := c.OperatorService().AddSearchAttributes(ctx, r); err != nil {
		return nil, fmt.Errorf("register the search attributes %s: %w", strings.Join(added, ", "), err)
	}
	return added, nil
}

// LogFormats are those of NewLogger.
func LogFormats() []string { return []string{"text", "json"} }

// NewLogger returns a structured logger.
func NewLogger(w io.Writer, format string, level slog.Level) (*slog.Logger, error) {
	if !slices.Contains(LogFormats(), format) {
		return nil, fmt.Errorf("log format %q: expected one of %s", format, strings.Join(LogFormats(), ", "))
	}
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

package workers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
)

const (
	// pingTimeout bounds the questions to one server.
	pingTimeout = 15 * time.Second
	// polledWithin is how long ago a living worker asked for work at most: one poll waits for a minute.
	polledWithin = 2 * time.Minute
	// namespaceTimeout bounds the wait for a server that has just started to make a namespace and to know it in all its parts.
	namespaceTimeout = time.Minute
	namespaceTry     = 200 * time.Millisecond
)

// Answer says whether a server can be used from here. Its JSON form is a contract.
type Answer struct {
	Server stack.Server `json:"server"`
	At     string       `json:"at"`              // its address, without a password
	OK     bool         `json:"ok"`              // it can be used as it is
	Text   string       `json:"text,omitempty"`  // what it is
	Error  string       `json:"error,omitempty"` // why it cannot be used, and what to do
}

// Ping asks each of the servers something that only a working one can answer, all at once, and returns the answers in the order
// of the servers. It changes nothing but an object of its own, which it deletes. Where a queue is named, a process of this
// machine must poll it.
func Ping(ctx context.Context, at stack.Addresses, polls string, servers ...stack.Server) []Answer {
	answers := make([]Answer, len(servers))
	var all sync.WaitGroup
	for i, s := range servers {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, pingTimeout)
			defer cancel()
			a := Answer{Server: s}
			var err error
			switch s {
			case stack.Temporal:
				a.At = at.Temporal
				a.Text, err = pingTemporal(ctx, at, polls)
			case stack.Kafka:
				a.At = at.Kafka
				a.Text, err = pingKafka(ctx, at)
			case stack.S3:
				a.At = at.S3
				a.Text, err = pingObjects(ctx, at)
			case stack.Store:
				a.At = withoutPassword(at.Store)
				a.Text, err = pingStore(ctx, at)
			}
			if a.OK = err == nil; err != nil {
				a.Text, a.Error = "", err.Error()
			}
			answers[i] = a
		})
	}
	all.Wait()
	return answers
}

func withoutPassword(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "an address that is not a URL"
	}
	if q := u.Query(); q.Has("password") {
		q.Set("password", "xxxxx")
		u.RawQuery = q.Encode()
	}
	return u.Redacted()
}

func pingTemporal(ctx context.Context, at stack.Addresses, polls string) (string, error) {
	t, err := DialTemporal(ctx, at, Identity("ping"), slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer t.Close()
	info, err := t.WorkflowService().GetSystemInfo(ctx, &workflowservice.GetSystemInfoRequest{})
	if err != nil {
		return "", fmt.Errorf("ask Temporal what it is: %w", err)
	}
	if err := namespaceThere(ctx, t, at.Namespace); err != nil {
		return "", err
	}
	if err := CheckSetUp(ctx, t, at.Namespace); err != nil {
		return "", err
	}
	text := fmt.Sprintf("server %s, namespace %s is set up", info.GetServerVersion(), at.Namespace)
	if polls == "" {
		return text, nil
	}
	return text + ", queue " + polls + " is polled from here", polledHere(ctx, t, polls)
}

// namespaceThere fails where the namespace is missing, and says what makes it.
func namespaceThere(ctx context.Context, t client.Client, namespace string) error {
	_, err := t.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: namespace})
	var none *serviceerror.NamespaceNotFound
	if errors.As(err, &none) {
		return noNamespace(namespace)
	}
	if err != nil {
		return fmt.Errorf("ask Temporal for the namespace %s: %w", namespace, err)
	}
	return nil
}

// polledHere fails unless a process of this machine, or container, polls a queue.
func polledHere(ctx context.Context, t client.Client, queue string) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("the name of this machine: %w", err)
	}
	for _, kind := range []enums.TaskQueueType{enums.TASK_QUEUE_TYPE_ACTIVITY, enums.TASK_QUEUE_TYPE_WORKFLOW} {
		r, err := t.DescribeTaskQueue(ctx, queue, kind)
		if err != nil {
			return fmt.Errorf("ask Temporal who polls %s: %w", queue, err)
		}
		for _, p := range r.GetPollers() {
			if strings.Contains(p.GetIdentity(), "@"+host+":") && time.Since(p.GetLastAccessTime().AsTime()) < polledWithin {
				return nil
			}
		}
	}
	return fmt.Errorf("no process of this machine (%s) has polled the queue %s in the last %s", host, queue, polledWithin)
}

func pingKafka(ctx context.Context, at stack.Addresses) (string, error) {
	k, err := OpenKafka(at, kafka.Config{})
	if err != nil {
		return "", err
	}
	brokers, err := k.Reach(ctx)
	if err = errors.Join(err, k.Close()); err != nil {
		return "", err
	}
	return "brokers reached: " + strings.Join(brokers, ", "), nil
}

func pingObjects(ctx context.Context, at stack.Addresses) (string, error) {
	e, err := OpenEnv(ctx, at, stack.S3)
	if err != nil {
		return "", err
	}
	return "bucket " + at.S3Bucket + " honours conditional writes", e.Close()
}

func pingStore(ctx context.Context, at stack.Addresses) (string, error) {
	version, known, err := store.Schema(ctx, at.Store)
	switch {
	case err != nil:
		return "", err
	case version > known:
		return "", fmt.Errorf("the store has schema %d and this release knows up to %d (run the newer release)", version, known)
	case version == 0:
		return "nothing is in it yet", nil
	case version < known:
		return fmt.Sprintf("schema %d, which the next worker brings to %d", version, known), nil
	}
	return fmt.Sprintf("schema %d", version), nil
}

// AwaitTemporal connects as DialTemporal does, and tries again for a while: a server that starts listens before it answers.
func AwaitTemporal(ctx context.Context, at stack.Addresses, identity string, logger *slog.Logger, wait time.Duration) (client.Client, error) {
	limit, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	again := time.NewTicker(namespaceTry)
	defer again.Stop()
	for {
		c, err := DialTemporal(ctx, at, identity, logger)
		if err == nil {
			return c, nil
		}
		select {
		case <-again.C:
		case <-limit.Done():
			return nil, err
		}
	}
}

// CreateNamespace makes a namespace where there is none, and returns once it can be used. Finished workflows are kept for the
// retention, at least a day. A server that has just started refuses some questions, so it is asked for a minute.
func CreateNamespace(ctx context.Context, c client.Client, namespace string, retention time.Duration) (created bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, namespaceTimeout)
	defer cancel()
	again := time.NewTicker(namespaceTry)
	defer again.Stop()
	for {
		err := namespaceThere(ctx, c, namespace)
		if errors.Is(err, ErrNotSetUp) && !created {
			created, err = register(ctx, c, namespace, retention)
		}
		if err == nil { // it answers, but its parts may not all know the namespace
			_, err = missingAttributes(ctx, c, namespace)
		}
		var denied *serviceerror.PermissionDenied
		var wrong *serviceerror.InvalidArgument
		if err == nil || errors.As(err, &denied) || errors.As(err, &wrong) {
			return created, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return created, err
		}
	}
}

func register(ctx context.Context, c client.Client, namespace string, retention time.Duration) (created bool, err error) {
	_, err = c.WorkflowService().RegisterNamespace(ctx, &workflowservice.RegisterNamespaceRequest{
		Namespace: namespace, WorkflowExecutionRetentionPeriod: durationpb.New(retention), Description: "Weft",
	})
	var there *serviceerror.NamespaceAlreadyExists
	switch {
	case errors.As(err, &there): // another process was faster
		return false, nil
	case err != nil:
		return false, fmt.Errorf("make the namespace %s: %w", namespace, err)
	}
	return true, nil
}

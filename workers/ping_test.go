package workers

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/taskqueue/v1"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weftdata/weft/stack"
)

// frontend answers what Weft asks a Temporal that starts: it knows namespaces and search attributes, and is not ready for a
// while.
type frontend struct {
	workflowservice.UnimplementedWorkflowServiceServer
	operatorservice.UnimplementedOperatorServiceServer
	namespace, attributes atomic.Bool  // are there
	starting, unready     atomic.Int64 // calls that are refused at first
	registered            atomic.Int64
	retention             atomic.Int64
	pollers               []*taskqueue.PollerInfo
}

func (f *frontend) GetSystemInfo(context.Context, *workflowservice.GetSystemInfoRequest) (*workflowservice.GetSystemInfoResponse, error) {
	if f.starting.Add(-1) >= 0 {
		return nil, serviceerror.ToStatus(serviceerror.NewUnavailable("Frontend is not healthy yet")).Err()
	}
	return &workflowservice.GetSystemInfoResponse{ServerVersion: "1.2.3"}, nil
}

func (f *frontend) DescribeNamespace(_ context.Context, r *workflowservice.DescribeNamespaceRequest) (*workflowservice.DescribeNamespaceResponse, error) {
	if !f.namespace.Load() {
		return nil, serviceerror.ToStatus(serviceerror.NewNamespaceNotFound(r.GetNamespace())).Err()
	}
	return &workflowservice.DescribeNamespaceResponse{}, nil
}

func (f *frontend) RegisterNamespace(_ context.Context, r *workflowservice.RegisterNamespaceRequest) (*workflowservice.RegisterNamespaceResponse, error) {
	if f.unready.Add(-1) >= 0 {
		return nil, serviceerror.ToStatus(serviceerror.NewUnavailable("shard status unknown")).Err()
	}
	f.registered.Add(1)
	f.retention.Store(int64(r.GetWorkflowExecutionRetentionPeriod().AsDuration()))
	if f.namespace.Swap(true) {
		return nil, serviceerror.ToStatus(serviceerror.NewNamespaceAlreadyExists("there")).Err()
	}
	return &workflowservice.RegisterNamespaceResponse{}, nil
}

func (f *frontend) ListSearchAttributes(_ context.Context, in *operatorservice.ListSearchAttributesRequest) (*operatorservice.ListSearchAttributesResponse, error) {
	if !f.namespace.Load() {
		return nil, serviceerror.ToStatus(serviceerror.NewNamespaceNotFound(in.GetNamespace())).Err()
	}
	r := &operatorservice.ListSearchAttributesResponse{CustomAttributes: map[string]enums.IndexedValueType{}}
	for _, name := range searchAttributes() {
		if f.attributes.Load() {
			r.CustomAttributes[name] = enums.INDEXED_VALUE_TYPE_KEYWORD
		}
	}
	return r, nil
}

func (f *frontend) AddSearchAttributes(context.Context, *operatorservice.AddSearchAttributesRequest) (*operatorservice.AddSearchAttributesResponse, error) {
	f.attributes.Store(true)
	return &operatorservice.AddSearchAttributesResponse{}, nil
}

func (f *frontend) DescribeTaskQueue(_ context.Context, r *workflowservice.DescribeTaskQueueRequest) (*workflowservice.DescribeTaskQueueResponse, error) {
	if r.GetTaskQueueType() == enums.TASK_QUEUE_TYPE_WORKFLOW {
		return &workflowservice.DescribeTaskQueueResponse{Pollers: f.pollers}, nil
	}
	return &workflowservice.DescribeTaskQueueResponse{}, nil
}

func (f *frontend) start(t *testing.T) stack.Addresses {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	workflowservice.RegisterWorkflowServiceServer(s, f)
	operatorservice.RegisterOperatorServiceServer(s, f)
	go func() { _ = s.Serve(l) }() // until it is stopped
	t.Cleanup(s.Stop)
	return stack.Addresses{Temporal: l.Addr().String(), Namespace: "pay"}
}

func TestPingTemporal(t *testing.T) {
	f := &frontend{}
	at := f.start(t)
	expect := func(polls string, ok bool, words ...string) {
		t.Helper()
		a := Ping(t.Context(), at, polls, stack.Temporal)
		if len(a) != 1 || a[0].OK != ok || a[0].Server != stack.Temporal || a[0].At != at.Temporal {
			t.Fatalf("got %+v, want OK %v", a, ok)
		}
		for _, w := range words {
			if !strings.Contains(a[0].Text+a[0].Error, w) {
				t.Errorf("%+v does not say %q", a[0], w)
			}
		}
	}
	expect("", false, "no namespace pay", "weft setup --create-namespace")
	f.namespace.Store(true)
	expect("", false, "WeftJob", "weft setup")
	f.attributes.Store(true)
	expect("", true, "server 1.2.3", "namespace pay is set up")

	expect("weft", false, "has polled the queue weft")
	f.pollers = []*taskqueue.PollerInfo{{Identity: "weft control@elsewhere:7", LastAccessTime: timestamppb.Now()},
		{Identity: Identity("control"), LastAccessTime: timestamppb.New(time.Now().Add(-polledWithin - time.Second))}}
	expect("weft", false, "has polled the queue weft")
	f.pollers = append(f.pollers, &taskqueue.PollerInfo{Identity: Identity("control"), LastAccessTime: timestamppb.Now()})
	expect("weft", true, "queue weft is polled from here")
}

func TestPingNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	const secret = "hunter2"
	servers := []stack.Server{stack.Temporal, stack.Kafka, stack.Store}
	got := Ping(t.Context(), stack.Addresses{Temporal: gone, Namespace: "pay", Kafka: gone,
		Store: "postgres://weft:" + secret + "@" + gone + "/weft?sslmode=disable&password=" + secret}, "", servers...)
	for i, a := range got {
		if a.Server != servers[i] || a.OK || a.Error == "" || a.Text != "" || !strings.Contains(a.At, gone) || strings.Contains(a.At+a.Error, secret) {
			t.Errorf("%+v", a)
		}
	}
	if got := Ping(t.Context(), stack.Addresses{Store: "sqlite:" + t.TempDir() + "/none"}, "", stack.Store); !got[0].OK || got[0].Text != "nothing is in it yet" {
		t.Errorf("%+v", got)
	}
}

// TestAwaitTemporal calls a server that listens and does not answer yet, and one that never does.
func TestAwaitTemporal(t *testing.T) {
	f := &frontend{}
	f.starting.Store(2)
	c, err := AwaitTemporal(t.Context(), f.start(t), "test", slog.New(slog.DiscardHandler), time.Minute)
	if err != nil || f.starting.Load() >= 0 {
		t.Fatalf("%v, after %d calls", err, 2-f.starting.Load())
	}
	c.Close()
	f.starting.Store(1 << 40)
	if _, err := AwaitTemporal(t.Context(), f.start(t), "test", slog.New(slog.DiscardHandler), time.Millisecond); err == nil || !strings.Contains(err.Error(), "not healthy yet") {
		t.Errorf("a server that never answers: %v", err)
	}
}

// TestCreateNamespace makes a namespace at a server that is not ready at first, and again.
func TestCreateNamespace(t *testing.T) {
	f := &frontend{}
	at := f.start(t)
	c, err := DialTemporal(t.Context(), at, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := SetUp(t.Context(), c, "pay"); !errors.Is(err, ErrNotSetUp) || !strings.Contains(err.Error(), "--create-namespace") {
		t.Errorf("without a namespace: %v", err)
	}
	f.unready.Store(2)
	for _, want := range []bool{true, false} {
		if created, err := CreateNamespace(t.Context(), c, "pay", 48*time.Hour); err != nil || created != want {
			t.Fatalf("created %v, %v; want %v", created, err, want)
		}
	}
	if n, kept := f.registered.Load(), time.Duration(f.retention.Load()); n != 1 || kept != 48*time.Hour {
		t.Errorf("registered %d times, retention %s", n, kept)
	}
	if added, err := SetUp(t.Context(), c, "pay"); err != nil || !slices.Equal(added, searchAttributes()) {
		t.Errorf("set up %q, %v", added, err)
	}
	f.namespace.Store(false)
	f.unready.Store(1 << 40)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := CreateNamespace(ctx, c, "pay", 48*time.Hour); err == nil || errors.Is(err, ErrNotSetUp) {
		t.Errorf("at a server that is never ready: %v", err)
	}
}

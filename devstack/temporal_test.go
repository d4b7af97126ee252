package devstack

import (
	"fmt"
	"testing"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/stack"
)

const (
	queue          = "greetings"
	greetingSignal = "name"
)

// Greeting waits for a name and greets it.
func Greeting(ctx workflow.Context) (string, error) {
	var name string
	workflow.GetSignalChannel(ctx, greetingSignal).Receive(ctx, &name)
	return "hello " + name, nil
}

func dialTemporal(t *testing.T, a stack.Addresses) client.Client {
	t.Helper()
	c, err := client.DialContext(testContext(t), client.Options{HostPort: a.Temporal, Namespace: a.Namespace, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// startGreeting starts a workflow with Weft's search attributes and returns its run.
func startGreeting(t *testing.T, c client.Client, id string) (run string) {
	t.Helper()
	w, err := c.ExecuteWorkflow(testContext(t), client.StartWorkflowOptions{
		ID: id, TaskQueue: queue, TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword("WeftJob").ValueSet("payments"),
			temporal.NewSearchAttributeKeyKeyword("WeftPhase").ValueSet("live"),
			temporal.NewSearchAttributeKeyKeyword("WeftVersion").ValueSet("v1")),
	}, Greeting)
	if err != nil {
		t.Fatal(err)
	}
	return w.GetRunID()
}

func startWorker(t *testing.T, c client.Client) worker.Worker {
	t.Helper()
	w := worker.New(c, queue, worker.Options{})
	w.RegisterWorkflow(Greeting)
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWorkflowIsFoundBySearchAttributes(t *testing.T) {
	ctx := testContext(t)
	c := dialTemporal(t, start(t, Config{Data: t.TempDir()}).Addresses())
	defer c.Close()
	defer startWorker(t, c).Stop()
	began := time.Now()
	run := startGreeting(t, c, "found")
	if err := c.SignalWorkflow(ctx, "found", run, greetingSignal, "weft"); err != nil {
		t.Fatal(err)
	}
	var greeting string
	if err := c.GetWorkflow(ctx, "found", run).Get(ctx, &greeting); err != nil || greeting != "hello weft" {
		t.Fatalf("got %q, %v", greeting, err)
	}
	t.Logf("start, signal and result took %v", time.Since(began))
	found := func(query string) int {
		list, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: query})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.GetExecutions())
	}
	const query = `WeftJob = "payments" AND WeftVersion = "v1" AND WeftPhase = "%s" AND ExecutionStatus = "Completed"`
	for found(fmt.Sprintf(query, "live")) == 0 { // the list follows a moment later
		if ctx.Err() != nil {
			t.Fatal("the workflow is in no list")
		}
	}
	if n := found(fmt.Sprintf(query, "shadow")); n != 0 {
		t.Errorf("%d workflows in a phase that none is in", n)
	}
}

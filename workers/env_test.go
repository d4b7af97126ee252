package workers

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.temporal.io/api/command/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/taskqueue/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/grpc"

	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workflows"
)

func TestOpenKafkaRefuses(t *testing.T) {
	for _, c := range []struct {
		at   stack.Addresses
		want string
	}{
		{stack.Addresses{Kafka: "k:1", KafkaTLS: stack.TLS{CAFile: "/nowhere.pem"}}, "/nowhere.pem"},
		{stack.Addresses{Kafka: "k:1", KafkaUser: "ann", KafkaPassword: "hunter2"}, "without a SASL mechanism"},
		{stack.Addresses{Kafka: "k:1", KafkaSASL: "gssapi", KafkaUser: "ann", KafkaPassword: "hunter2"}, `SASL mechanism "gssapi"`},
		{stack.Addresses{Kafka: "k"}, "expected host:port"},
	} {
		_, err := OpenKafka(c.at, kafka.Config{})
		var e *kafka.Error
		if !errors.As(err, &e) || e.Retryable() || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v", c.at, err)
		}
	}
	good, err := OpenKafka(stack.Addresses{Kafka: "k:1,l:2", KafkaSASL: "SCRAM-SHA-512", KafkaUser: "ann", KafkaPassword: "x", KafkaTLS: stack.TLS{On: true}}, kafka.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := good.Close(); err != nil {
		t.Error(err)
	}
}

func TestTemporalIsSecured(t *testing.T) {
	var plain, key client.Options
	if err := secureTemporal(stack.Addresses{}, &plain); err != nil || plain.ConnectionOptions.TLS != nil || plain.Credentials != nil {
		t.Errorf("nothing is said: %+v, %v", plain, err)
	}
	if err := secureTemporal(stack.Addresses{TemporalAPIKey: "hunter2"}, &key); err != nil || key.ConnectionOptions.TLS == nil || key.Credentials == nil {
		t.Errorf("a key without TLS: %+v, %v", key.ConnectionOptions, err)
	}
	if err := secureTemporal(stack.Addresses{TemporalTLS: stack.TLS{CAFile: "/nowhere.pem"}}, &plain); err == nil || !strings.Contains(err.Error(), "/nowhere.pem") {
		t.Errorf("a CA file that is not there: %v", err)
	}
}

// The next step of a Job that rests is for any worker, that of other workflows, or while an activity is on its way, for the one that
// has them in memory.
func TestStepsOfJobsAreForAnyWorker(t *testing.T) {
	began := []*command.Command{{CommandType: enums.COMMAND_TYPE_START_TIMER}, {CommandType: enums.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK}}
	for _, c := range []struct {
		id       string
		commands []*command.Command
		sticky   bool
	}{
		{workflows.JobID("payments"), nil, false}, {workflows.JobID("payments"), began[:1], false}, {workflows.JobID("payments"), began, true},
		{workflows.RolloutID("payments", 2), nil, true}, {workflows.ShardID("job", 1, 0), nil, true},
	} {
		r := &workflowservice.RespondWorkflowTaskCompletedRequest{ResourceId: "workflow:" + c.id, Commands: c.commands,
			StickyAttributes: &taskqueue.StickyExecutionAttributes{}, ReturnNewWorkflowTask: true}
		called := false
		err := toAnyWorker(t.Context(), "", r, nil, nil, func(_ context.Context, _ string, req, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			called = req == any(r)
			return nil
		})
		if err != nil || !called || (r.StickyAttributes != nil) != c.sticky || r.ReturnNewWorkflowTask != c.sticky {
			t.Errorf("%s with %d commands: %v, called %t, %+v", c.id, len(c.commands), err, called, r)
		}
	}
}

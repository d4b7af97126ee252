package devstack

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"github.com/weftdata/weft/stack"
)

// benchStack runs a stack for a benchmark. The clients' time is in what is measured: they share the machine.
func benchStack(b *testing.B) stack.Addresses {
	b.Helper()
	s, err := Start(context.Background(), Config{Data: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return s.Addresses()
}

// BenchmarkProduce sends batches of records of 300 bytes, each acknowledged before the next.
func BenchmarkProduce(b *testing.B) {
	for _, records := range []int{1, 1000} {
		b.Run(fmt.Sprint(records), func(b *testing.B) {
			w := &kafka.Writer{
				Addr: kafka.TCP(benchStack(b).Kafka), Topic: "bench", RequiredAcks: kafka.RequireAll, Compression: kafka.Zstd,
				BatchSize: records, BatchTimeout: time.Millisecond, Balancer: fixed(0), AllowAutoTopicCreation: true,
				Transport: &kafka.Transport{MetadataTTL: 100 * time.Millisecond},
			}
			list := make([]kafka.Message, records)
			for i := range list {
				list[i].Value = bytes.Repeat([]byte{byte(i), byte(i >> 8), 'x'}, 100)
			}
			for w.WriteMessages(b.Context(), list...) != nil && b.Context().Err() == nil { // makes the topic
			}
			b.SetBytes(int64(records * len(list[0].Value)))
			for b.Loop() {
				if err := w.WriteMessages(b.Context(), list...); err != nil {
					b.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkWorkflow starts, signals and awaits one workflow at a time.
func BenchmarkWorkflow(b *testing.B) {
	a := benchStack(b)
	c, err := client.DialContext(b.Context(), client.Options{HostPort: a.Temporal, Logger: quiet{}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	w := worker.New(c, queue, worker.Options{})
	w.RegisterWorkflow(Greeting)
	if err := w.Start(); err != nil {
		b.Fatal(err)
	}
	defer w.Stop()
	for b.Loop() {
		run, err := c.ExecuteWorkflow(b.Context(), client.StartWorkflowOptions{TaskQueue: queue}, Greeting)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.SignalWorkflow(b.Context(), run.GetID(), run.GetRunID(), greetingSignal, "x"); err != nil {
			b.Fatal(err)
		}
		if err := run.Get(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/segmentio/kafka-go"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/weftdata/weft/stack"
)

const (
	topic      = "orders"
	queue      = "steps"
	killRounds = 2
	killAfter  = 20 // acknowledged writes to each server
)

// Steps asks an activity for a number as often as it is told, and returns the sum.
func Steps(ctx workflow.Context, steps int) (sum int, err error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 5 * time.Second})
	for n := range steps {
		var got int
		if err := workflow.ExecuteActivity(ctx, Echo, n).Get(ctx, &got); err != nil {
			return 0, err
		}
		sum += got
	}
	return sum, nil
}

// Echo returns its argument.
func Echo(_ context.Context, n int) (int, error) { return n, nil }

// writes are what a server acknowledged. The writer ends at the first write that is not.
type writes struct {
	mu     sync.Mutex
	acked  []string
	enough chan struct{} // closed after killAfter of them
}

// run writes names that begin with a prefix until a write fails after enough of them.
func (w *writes) run(ctx context.Context, prefix string, write func(ctx context.Context, name string) error) {
	for n := 0; ; n++ {
		name := prefix + "-" + strconv.Itoa(n)
		if err := write(ctx, name); err != nil {
			if ctx.Err() != nil || len(w.acked) > killAfter {
				return
			}
			continue // a busy machine may be too slow for one write
		}
		w.mu.Lock()
		w.acked = append(w.acked, name)
		w.mu.Unlock()
		if len(w.acked) == killAfter+1 {
			close(w.enough)
		}
	}
}

// clients are those of one stack.
type clients struct {
	writer   *kafka.Writer
	objects  *minio.Client
	bucket   string
	temporal client.Client
	worker   worker.Worker
}

func dial(t *testing.T, a stack.Addresses) *clients {
	t.Helper()
	key := func(name string) string {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	objects, err := minio.New(strings.TrimPrefix(a.S3, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(key(a.S3AccessKeyFile), key(a.S3SecretKeyFile), ""), MaxRetries: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.DialContext(testContext(t), client.Options{HostPort: a.Temporal, Namespace: a.Namespace, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	w := worker.New(c, queue, worker.Options{WorkerStopTimeout: time.Second})
	w.RegisterWorkflow(Steps)
	w.RegisterActivity(Echo)
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	return &clients{
		writer: &kafka.Writer{
			Addr: kafka.TCP(a.Kafka), Topic: topic, RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, MaxAttempts: 1,
			Compression: kafka.Zstd, AllowAutoTopicCreation: true, Transport: &kafka.Transport{MetadataTTL: 100 * time.Millisecond},
		},
		objects: objects, bucket: a.S3Bucket, temporal: c, worker: w,
	}
}

func (c *clients) close(t *testing.T) {
	t.Helper()
	if err := c.writer.Close(); err != nil {
		t.Error(err)
	}
	c.worker.Stop()
	c.temporal.Close()
}

func (c *clients) send(ctx context.Context, name string) error {
	return c.writer.WriteMessages(ctx, kafka.Message{Value: []byte(name)})
}

func (c *clients) put(ctx context.Context, name string) error {
	o := minio.PutObjectOptions{}
	o.SetMatchETagExcept("*")
	_, err := c.objects.PutObject(ctx, c.bucket, name, strings.NewReader(name), int64(len(name)), o)
	return err
}

func (c *clients) start(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // a client retries much longer than a test can wait
	defer cancel()
	_, err := c.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: name, TaskQueue: queue}, Steps, 4)
	return err
}

// read returns every message of the topic and checks that the offsets have no gap.
func (c *clients) read(t *testing.T, a stack.Addresses) map[string]int {
	t.Helper()
	ctx := testContext(t)
	conn, err := kafka.DialContext(ctx, "tcp", a.Kafka)
	if err != nil {
		t.Fatal(err)
	}
	partitions, err := conn.ReadPartitions(topic)
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, p := range partitions {
		c.readPartition(ctx, t, a, p.ID, got)
	}
	return got
}

func (c *clients) readPartition(ctx context.Context, t *testing.T, a stack.Addresses, partition int, got map[string]int) {
	t.Helper()
	conn, err := kafka.DialLeader(ctx, "tcp", a.Kafka, topic, partition)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // only read from
	first, end, err := conn.ReadOffsets()
	if err != nil || first != 0 {
		t.Fatalf("partition %d begins at %d: %v", partition, first, err)
	}
	if end == 0 {
		return
	}
	batch := conn.ReadBatch(1, 64<<20)
	for offset := range end {
		m, err := batch.ReadMessage()
		if errors.Is(err, io.EOF) { // the next fetch goes on
			if err := batch.Close(); err != nil {
				t.Fatal(err)
			}
			batch = conn.ReadBatch(1, 64<<20)
			m, err = batch.ReadMessage()
		}
		if err != nil || m.Offset != offset {
			t.Fatalf("partition %d: offset %d, want %d: %v", partition, m.Offset, offset, err)
		}
		got[string(m.Value)]++
	}
	_ = batch.Close() // all that was asked for was read
}

// TestNothingIsLostByAKill kills the stack while it is written to, and looks for all that it had acknowledged.
func TestNothingIsLostByAKill(t *testing.T) {
	data, pointer := t.TempDir(), filepath.Join(t.TempDir(), "stack.json")
	p := upProcess(t, data, pointer)
	c := dial(t, p.addresses)
	defer c.close(t)
	// The first message makes the topic; the client has to see it before the load begins.
	for ctx := testContext(t); c.send(ctx, "first") != nil; {
		if ctx.Err() != nil {
			t.Fatal("the topic cannot be written to")
		}
	}
	var messages, objects, workflows []string
	for round := range killRounds {
		var m, o, w writes
		var group sync.WaitGroup
		ctx, cancel := context.WithCancel(testContext(t))
		for _, server := range []struct {
			writes *writes
			prefix string
			write  func(context.Context, string) error
		}{{&m, "message", c.send}, {&o, "object", c.put}, {&w, "workflow", c.start}} {
			server.writes.enough = make(chan struct{})
			group.Go(func() { server.writes.run(ctx, fmt.Sprint(server.prefix, round), server.write) })
		}
		for _, w := range []*writes{&m, &o, &w} {
			select {
			case <-w.enough:
			case <-ctx.Done():
				t.Fatal("a server stopped taking writes before it was killed")
			}
		}
		if code := p.end(t, syscall.SIGKILL); code != -1 {
			t.Fatalf("the process ended with code %d before it was killed", code)
		}
		group.Wait()
		cancel()
		messages, objects, workflows = append(messages, m.acked...), append(objects, o.acked...), append(workflows, w.acked...)

		was := p.addresses
		p = upProcess(t, data, pointer)
		if was.PID = p.addresses.PID; p.addresses != was {
			t.Fatalf("the addresses were %+v\nand are %+v", was, p.addresses)
		}
	}
	t.Logf("acknowledged: %d messages, %d objects, %d workflows", len(messages), len(objects), len(workflows))
	checkAll(t, c, p.addresses, messages, objects, workflows)
	if code := p.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM: %s", code, p.stderr.String())
	}
}

func checkAll(t *testing.T, c *clients, a stack.Addresses, messages, objects, workflows []string) {
	t.Helper()
	ctx := testContext(t)
	got := c.read(t, a)
	for _, name := range messages {
		if got[name] != 1 {
			t.Errorf("message %s is there %d times", name, got[name])
		}
	}
	for _, name := range objects {
		o, err := c.objects.GetObject(ctx, c.bucket, name, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if _, err := text.ReadFrom(o); err != nil || text.String() != name {
			t.Errorf("object %s holds %q, %v", name, &text, err)
		}
	}
	for _, name := range workflows {
		var sum int
		if err := c.temporal.GetWorkflow(ctx, name, "").Get(ctx, &sum); err != nil || sum != 6 {
			t.Errorf("workflow %s returned %d, %v", name, sum, err)
		}
	}
}

// quiet drops what clients say while their server is gone.
type quiet struct{}

var _ log.Logger = quiet{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}

package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weftdata/weft/stack"
)

func portOf(t *testing.T, address string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// fixed sends every message to one partition.
type fixed int

func (f fixed) Balance(kafka.Message, ...int) int { return int(f) }

// produce writes the numbers from..to-1 to a partition, compressed with zstd, and waits until they are acknowledged.
func produce(t *testing.T, a stack.Addresses, topic string, partition, from, to int) {
	t.Helper()
	w := &kafka.Writer{
		Addr: kafka.TCP(a.Kafka), Topic: topic, Balancer: fixed(partition), Compression: kafka.Zstd,
		RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, AllowAutoTopicCreation: true,
		Transport: &kafka.Transport{MetadataTTL: 100 * time.Millisecond}, // it keeps no connection for other tests
	}
	var list []kafka.Message
	for n := from; n < to; n++ {
		list = append(list, kafka.Message{
			Value: []byte(strconv.Itoa(n)), Headers: []kafka.Header{{Key: "weft-origin", Value: []byte{byte(n)}}},
		})
	}
	// The first attempt makes the topic; the client then has to see it.
	ctx := testContext(t)
	err := w.WriteMessages(ctx, list...)
	for errors.Is(err, kafka.UnknownTopicOrPartition) && ctx.Err() == nil {
		err = w.WriteMessages(ctx, list...)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
}

// fetch reads a partition from an offset to its end.
func fetch(t *testing.T, a stack.Addresses, topic string, partition int, offset int64) string {
	t.Helper()
	ctx := testContext(t)
	conn, err := kafka.DialLeader(ctx, "tcp", a.Kafka, topic, partition)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // only read from
	end, err := conn.ReadLastOffset()
	if err != nil {
		t.Fatal(err)
	}
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{a.Kafka}, Topic: topic, Partition: partition,
		MaxWait: 100 * time.Millisecond, // Close waits for the fetch under way
	})
	defer func() { _ = r.Close() }() // only read from
	if err := r.SetOffset(offset); err != nil {
		t.Fatal(err)
	}
	var got []string
	for ; offset < end; offset++ {
		m, err := r.ReadMessage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if m.Offset != offset {
			t.Fatalf("offset %d after %d", m.Offset, offset-1)
		}
		if n, err := strconv.Atoi(string(m.Value)); err != nil || len(m.Headers) != 1 || m.Headers[0].Value[0] != byte(n) {
			t.Fatalf("message %q has headers %v", m.Value, m.Headers)
		}
		got = append(got, string(m.Value))
	}
	return strings.Join(got, " ")
}

func newClient(a stack.Addresses) *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(a.Kafka), Transport: &kafka.Transport{}}
}

func createTopic(t *testing.T, a stack.Addresses, topic string, partitions int) {
	t.Helper()
	r, err := newClient(a).CreateTopics(testContext(t), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{
		{Topic: topic, NumPartitions: partitions, ReplicationFactor: 1},
	}})
	if err == nil {
		err = r.Errors[topic]
	}
	if err != nil {
		t.Fatal(err)
	}
}

// offsets returns the first and the next offset of a partition.
func offsets(t *testing.T, a stack.Addresses, topic string, partition int) (first, next int64) {
	t.Helper()
	r, err := newClient(a).ListOffsets(testContext(t), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
		topic: {kafka.FirstOffsetOf(partition), kafka.LastOffsetOf(partition)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	p := r.Topics[topic][0]
	if p.Error != nil {
		t.Fatal(p.Error)
	}
	return p.FirstOffset, p.LastOffset
}

// fetchError asks for a batch at an offset and returns what the broker says.
func fetchError(t *testing.T, a stack.Addresses, topic string, offset int64) error {
	t.Helper()
	r, err := newClient(a).Fetch(testContext(t), &kafka.FetchRequest{Topic: topic, Offset: offset, MinBytes: 1, MaxBytes: 1 << 20,
		MaxWait: 100 * time.Millisecond})
	if err != nil {
		return err
	}
	return r.Error
}

// raw sends a request that kafka-go does not know.
func raw(t *testing.T, a stack.Addresses, req kmsg.Request) kmsg.Response {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(a.Kafka))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	resp, err := c.Request(testContext(t), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// deleteBefore is what retention does: it deletes the records of partition 0 below an offset.
func deleteBefore(t *testing.T, a stack.Addresses, topic string, offset int64) {
	t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 1000
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Offset: offset}}}}
	resp := raw(t, a, req).(*kmsg.DeleteRecordsResponse)
	if code := resp.Topics[0].Partitions[0].ErrorCode; code != 0 {
		t.Fatal(kafka.Error(code))
	}
}

func topicID(t *testing.T, a stack.Addresses, topic string) [16]byte {
	t.Helper()
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr(topic)}}
	resp := raw(t, a, req).(*kmsg.MetadataResponse)
	if code := resp.Topics[0].ErrorCode; code != 0 {
		t.Fatal(kafka.Error(code))
	}
	return resp.Topics[0].TopicID
}

func TestDeletedRecordsAreNamed(t *testing.T) {
	cfg := Config{Data: t.TempDir()}
	s := start(t, cfg)
	a := s.Addresses()
	createTopic(t, a, "orders", 1)
	for n := range 10 {
		produce(t, a, "orders", 0, n, n+1) // a batch each
	}
	deleteBefore(t, a, "orders", 4)
	check := func(when string) {
		t.Helper()
		if first, next := offsets(t, a, "orders", 0); first != 4 || next != 10 {
			t.Errorf("%s: offsets from %d to %d, want 4 to 10", when, first, next)
		}
		for _, offset := range []int64{3, 11} {
			if err := fetchError(t, a, "orders", offset); !errors.Is(err, kafka.OffsetOutOfRange) {
				t.Errorf("%s: fetch at %d: %v", when, offset, err)
			}
		}
		if err := fetchError(t, a, "orders", 10); err != nil {
			t.Errorf("%s: fetch at the end: %v", when, err)
		}
		if got := fetch(t, a, "orders", 0, 4); got != "4 5 6 7 8 9" {
			t.Errorf("%s: %s", when, got)
		}
	}
	check("at once")
	stop(t, s)
	a = start(t, cfg).Addresses()
	check("after a restart")
}

func TestRecreatedTopicIsAnother(t *testing.T) {
	cfg := Config{Data: t.TempDir()}
	s := start(t, cfg)
	a := s.Addresses()
	createTopic(t, a, "orders", 1)
	produce(t, a, "orders", 0, 0, 3)
	first := topicID(t, a, "orders")
	r, err := newClient(a).DeleteTopics(testContext(t), &kafka.DeleteTopicsRequest{Topics: []string{"orders"}})
	if err != nil || r.Errors["orders"] != nil {
		t.Fatal(err, r)
	}
	createTopic(t, a, "orders", 1)
	second := topicID(t, a, "orders")
	if first == second || second == [16]byte{} {
		t.Errorf("topic ids %x and %x", first, second)
	}
	if _, next := offsets(t, a, "orders", 0); next != 0 {
		t.Errorf("the new topic begins at %d", next)
	}
	if err := fetchError(t, a, "orders", 3); !errors.Is(err, kafka.OffsetOutOfRange) {
		t.Errorf("fetch at an offset of the old topic: %v", err)
	}
	stop(t, s)
	a = start(t, cfg).Addresses()
	if id := topicID(t, a, "orders"); id != second {
		t.Errorf("the topic id changed from %x to %x in a restart", second, id)
	}
}

func TestOffsetsByTime(t *testing.T) {
	a := start(t, Config{Data: t.TempDir()}).Addresses()
	createTopic(t, a, "orders", 1)
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC) // far in the past: nothing expires
	w := &kafka.Writer{Addr: kafka.TCP(a.Kafka), Topic: "orders", RequiredAcks: kafka.RequireAll, BatchSize: 1, Transport: &kafka.Transport{}}
	for n := range 5 {
		if err := w.WriteMessages(testContext(t), kafka.Message{Value: []byte{1}, Time: at.Add(time.Duration(n) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := newClient(a).ListOffsets(testContext(t), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
		"orders": {kafka.TimeOffsetOf(0, at.Add(150*time.Minute))},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for offset := range r.Topics["orders"][0].Offsets {
		if offset != 3 {
			t.Errorf("the first record of 02:30 or later has offset %d, want 3", offset)
		}
	}
	if len(r.Topics["orders"][0].Offsets) != 1 {
		t.Errorf("got %v", r.Topics)
	}
}

func TestTopicsOfNobodyAreRefused(t *testing.T) {
	a := start(t, Config{Data: t.TempDir(), NoAutoTopics: true}).Addresses()
	w := &kafka.Writer{Addr: kafka.TCP(a.Kafka), Topic: "typo", AllowAutoTopicCreation: true, MaxAttempts: 1, Transport: &kafka.Transport{}}
	ctx, cancel := context.WithTimeout(testContext(t), 10*time.Second)
	defer cancel()
	if err := w.WriteMessages(ctx, kafka.Message{Value: []byte("1")}); !errors.Is(err, kafka.UnknownTopicOrPartition) {
		t.Errorf("a topic that nobody made: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestGroupOffsetsSurviveARestart(t *testing.T) {
	cfg := Config{Data: t.TempDir()}
	s := start(t, cfg)
	a := s.Addresses()
	createTopic(t, a, "orders", 2)
	commit, err := newClient(a).OffsetCommit(testContext(t), &kafka.OffsetCommitRequest{
		GroupID: "lag", GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{"orders": {{Partition: 1, Offset: 7}}},
	})
	if err != nil || commit.Topics["orders"][0].Error != nil {
		t.Fatal(err, commit)
	}
	stop(t, s)
	a = start(t, cfg).Addresses()
	r, err := newClient(a).OffsetFetch(testContext(t), &kafka.OffsetFetchRequest{GroupID: "lag", Topics: map[string][]int{"orders": {1}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(r.Topics["orders"][0].CommittedOffset); got != "7" {
		t.Errorf("committed offset %s, want 7", got)
	}
}

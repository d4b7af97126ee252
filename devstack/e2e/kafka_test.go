package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/kafka"
)

// kafkaTest is a cluster with a client: a kfake of its own, or the real one that WEFT_TEST_KAFKA names.
type kafkaTest struct {
	*testing.T
	ctx     context.Context
	brokers []string
	fake    *kfake.Cluster // nil: a real one
	client  *kafka.Client
}

func startKafka(t *testing.T, opts ...kfake.Opt) *kafkaTest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	t.Cleanup(cancel)
	k := &kafkaTest{T: t, ctx: ctx}
	if real := os.Getenv("WEFT_TEST_KAFKA"); real != "" && len(opts) == 0 {
		k.brokers = kafka.ParseBrokers(real)
	} else {
		k.startFake(opts...)
	}
	k.client = k.connect(kafka.Config{})
	return k
}

func (k *kafkaTest) startFake(opts ...kfake.Opt) {
	k.Helper()
	fake, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(2)}, opts...)...)
	k.must(err)
	k.Cleanup(fake.Close)
	k.fake, k.brokers = fake, fake.ListenAddrs()
}

func (k *kafkaTest) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

func (k *kafkaTest) connect(cfg kafka.Config) *kafka.Client {
	k.Helper()
	if cfg.Brokers == nil {
		cfg.Brokers = k.brokers
	}
	cfg.MaxWait = 100 * time.Millisecond
	c, err := kafka.New(cfg)
	k.must(err)
	k.Cleanup(func() { k.must(c.Close()) })
	return c
}

// topic creates a topic of a name that no other run has.
func (k *kafkaTest) topic(partitions int32, configs map[string]string) kafka.Topic {
	k.Helper()
	topic, created, err := k.client.CreateTopic(k.ctx, "weft-test-"+strings.ToLower(rand.Text()), partitions, configs)
	k.must(err)
	if !created || topic.Partitions != partitions {
		k.Fatalf("created %v: %+v", created, topic)
	}
	return topic
}

// produce writes values in order to a partition.
func (k *kafkaTest) produce(topic kafka.Topic, partition int32, values ...string) {
	k.Helper()
	p, err := k.client.Producer(topic, kafka.ProducerConfig{})
	k.must(err)
	for _, v := range values {
		k.must(p.Add(k.ctx, partition, &kafka.Record{Timestamp: 1_700_000_000_000_000, Value: []byte(v)}))
	}
	k.must(p.Flush(k.ctx))
	k.must(p.Close())
}

// fetchAll reads up to the end that the broker confirms, by small steps.
func (k *kafkaTest) fetchAll(f *kafka.Fetcher, source uint16) (b event.Batch, nulls int, last kafka.Fetched) {
	k.Helper()
	for !last.AtEnd {
		var err error
		last, err = f.Fetch(k.ctx, &b, source, 1)
		k.must(err)
		nulls += last.Nulls
	}
	return b, nulls, last
}

func values(b *event.Batch) (out []string) {
	for _, r := range b.Records {
		out = append(out, string(b.Raw(r)))
	}
	return out
}

func numbers(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("value %d", i))
	}
	return out
}

func (k *kafkaTest) fetcher(topic kafka.Topic, partition int32, offset int64) *kafka.Fetcher {
	f := k.client.Fetcher(topic, partition, offset)
	k.Cleanup(func() { k.must(f.Close()) })
	return f
}

func TestKafkaFetchesWhatWasProduced(t *testing.T) {
	k := startKafka(t)
	topic := k.topic(3, nil)
	if topic.ID == (kafka.TopicID{}) {
		t.Error("the topic has no identity")
	}
	for p := range topic.Partitions {
		k.produce(topic, p, numbers(int(p)*1000, int(p)*1000+500)...)
	}
	for p := range topic.Partitions {
		start, end, err := k.client.Offsets(k.ctx, topic, p)
		if err != nil || start != 0 || end != 500 {
			t.Fatalf("partition %d holds %d to %d: %v", p, start, end, err)
		}
		b, _, last := k.fetchAll(k.fetcher(topic, p, 123), 7)
		if got, want := values(&b), numbers(int(p)*1000+123, int(p)*1000+500); !slices.Equal(got, want) {
			t.Errorf("partition %d: got %d values %.100q…, want %d", p, len(got), got, len(want))
		}
		if last.Next != 500 || last.HighWater != 500 {
			t.Errorf("partition %d ended with %+v", p, last)
		}
		if r := b.Records[0]; r.Source != 7 || r.Partition != p || r.Offset != 123 || r.Timestamp != 1_700_000_000_000_000 {
			t.Errorf("first record is %+v", r)
		}
	}
}

func TestKafkaOldBrokers(t *testing.T) {
	for _, v := range []*kversion.Versions{kversion.V0_11_0(), kversion.V2_4_0(), kversion.V3_0_0()} {
		t.Run(v.VersionGuess(), func(t *testing.T) {
			k := startKafka(t, kfake.MaxVersions(v), kfake.SeedTopics(1, "pay"))
			topic, err := k.client.Topic(k.ctx, "pay")
			k.must(err)
			k.produce(topic, 0, numbers(0, 100)...)
			b, _, _ := k.fetchAll(k.fetcher(topic, 0, 0), 0)
			if got := values(&b); !slices.Equal(got, numbers(0, 100)) {
				t.Errorf("got %q", got)
			}
		})
	}
}

// What other producers write: every compression, nulls, headers, keys, and a topic whose timestamps are the broker's.
func TestKafkaFetchesWhatOthersProduce(t *testing.T) {
	k := startKafka(t)
	topic := k.topic(1, nil)
	want := 0
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(),
		kgo.Lz4Compression(), kgo.ZstdCompression()} {
		other := k.other(kgo.ProducerBatchCompression(codec))
		for j := range 50 {
			text := fmt.Sprintf("%d/%d %s", i, j, strings.Repeat("x", j*10))
			other.Produce(k.ctx, &kgo.Record{Topic: topic.Name, Key: []byte("k"), Value: []byte(text)}, nil)
		}
		want += 50
		k.must(other.Flush(k.ctx))
	}
	other := k.other()
	for _, r := range []kgo.Record{
		{Value: nil},
		{Value: []byte("with origin"), Headers: []kgo.RecordHeader{{Key: "a"}, {Key: event.OriginHeader, Value: []byte("x/0/1")},
			{Key: event.OriginHeader, Value: []byte("pay/6/77")}}},
		{Value: []byte("bad origin"), Headers: []kgo.RecordHeader{{Key: event.OriginHeader, Value: []byte("pay/6")}}},
	} {
		r.Topic = topic.Name
		k.must(other.ProduceSync(k.ctx, &r).FirstErr())
	}
	b, nulls, _ := k.fetchAll(k.fetcher(topic, 0, 0), 3)
	if len(b.Records) != want+1 || nulls != 1 || len(b.Rejects) != 1 {
		t.Fatalf("got %d records, %d nulls and %d rejects", len(b.Records), nulls, len(b.Rejects))
	}
	for i, r := range b.Records[:want] {
		if text := string(b.Raw(r)); !strings.HasPrefix(text, fmt.Sprintf("%d/%d ", i/50, i%50)) || r.Offset != int64(i) || r.Timestamp == event.MinTime {
			t.Fatalf("record %d is %+v %.30q", i, r, text)
		}
	}
	if r := b.Records[want]; r.Partition != 6 || r.Offset != 77 {
		t.Errorf("the record with an origin is %+v", r)
	}
	if r := b.Rejects[0]; r.Reason != event.ReasonSyntax || string(b.Raw(r.Record)) != "bad origin" || r.Record.Offset != int64(want)+2 {
		t.Errorf("the reject is %+v", r)
	}

	if k.fake != nil {
		return // it leaves timestamps alone
	}
	appended := k.topic(1, map[string]string{"message.timestamp.type": "LogAppendTime"})
	k.produce(appended, 0, "a")
	b, _, _ = k.fetchAll(k.fetcher(appended, 0, 0), 0)
	if now := event.Micros(time.Now().UnixMicro()); len(b.Records) != 1 || b.Records[0].Timestamp < now-1e9 {
		t.Errorf("the broker's timestamp is %+v", b.Records)
	}
}

// other returns a client of another library.
func (k *kafkaTest) other(opts ...kgo.Opt) *kgo.Client {
	k.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(k.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner())}, opts...)...)
	k.must(err)
	k.Cleanup(c.Close)
	return c
}

// TestKafkaCancellationIsOnesOwn cancels calls at random moments, which closes the connection that all calls share. Calls that are
// not canceled succeed all the same.
func TestKafkaCancellationIsOnesOwn(t *testing.T) {
	k := startKafka(t)
	topic := k.topic(1, nil)
	ctx, stop := context.WithCancel(k.ctx)
	var hasty sync.WaitGroup
	canceled := 0
	hasty.Go(func() {
		r := mathrand.New(mathrand.NewPCG(1, 1))
		for ctx.Err() == nil {
			short, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(400))*time.Microsecond)
			if _, _, err := k.client.Offsets(short, topic, 0); err != nil {
				canceled++
			}
			cancel()
		}
	})
	var patient sync.WaitGroup
	for range 4 {
		patient.Go(func() {
			for range 250 {
				if _, _, err := k.client.Offsets(ctx, topic, 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	patient.Wait()
	stop()
	if hasty.Wait(); canceled < 10 {
		t.Errorf("%d calls were canceled: that proves nothing", canceled)
	}
}

func TestKafkaTransactions(t *testing.T) {
	k := startKafka(t)
	topic := k.topic(1, nil)
	other := k.other(kgo.TransactionalID(topic.Name))
	write := func(text string) {
		k.must(other.ProduceSync(k.ctx, &kgo.Record{Topic: topic.Name, Value: []byte(text)}).FirstErr())
	}
	for _, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryAbort, kgo.TryCommit} {
		k.must(other.BeginTransaction())
		write(fmt.Sprintf("transaction %v", end))
		k.must(other.EndTransaction(k.ctx, end))
	}
	f := k.fetcher(topic, 0, 0)
	b, _, last := k.fetchAll(f, 0)
	if got := values(&b); len(got) != 2 || b.Records[0].Offset != 0 || b.Records[1].Offset != 6 || last.Next != 8 {
		t.Fatalf("got %q, %+v", got, last)
	}
	k.must(other.BeginTransaction())
	write("open")
	got, err := f.Fetch(k.ctx, &b, 0, 1)
	if err != nil || got.Records != 0 || got.AtEnd || got.HighWater != 9 {
		t.Errorf("within a transaction: %+v, %v; it is not the end", got, err)
	}
	k.must(other.EndTransaction(k.ctx, kgo.TryCommit))
	b.Reset()
	for len(b.Records) == 0 {
		_, err = f.Fetch(k.ctx, &b, 0, 1)
		k.must(err)
	}
	if got := values(&b); !slices.Equal(got, []string{"open"}) {
		t.Errorf("after the commit: %q", got)
	}
}

func TestKafkaDeletedOffsetsAreNeverSkipped(t *testing.T) {
	k := startKafka(t)
	topic := k.topic(1, nil)
	k.produce(topic, 0, numbers(0, 100)...)
	k.deleteRecords(topic.Name, 40)

	for _, c := range []struct {
		from, start, end int64
		text             string
	}{
		{7, 40, 100, "offsets 7 to 39 are gone"},
		{39, 40, 100, "offsets 39 to 39 are gone"},
		{101, 40, 100, "ends at offset 100, before the wanted 101"},
	} {
		var b event.Batch
		_, err := k.fetcher(topic, 0, c.from).Fetch(k.ctx, &b, 0, 1)
		var gone *kafka.OffsetGoneError
		if !errors.Is(err, kafka.ErrOffsetGone) || !errors.As(err, &gone) {
			t.Fatalf("from %d: %v", c.from, err)
		}
		if gone.Start != c.start || gone.End != c.end || !strings.Contains(err.Error(), c.text) || retryable(err) {
			t.Errorf("from %d: %v", c.from, err)
		}
	}
	b, _, _ := k.fetchAll(k.fetcher(topic, 0, 40), 0)
	if got := values(&b); !slices.Equal(got, numbers(40, 100)) {
		t.Errorf("got %q", got)
	}
}

func TestKafkaRecreatedTopic(t *testing.T) {
	t.Run("by identity", func(t *testing.T) { testRecreatedTopic(startKafka(t)) })
	t.Run("by name", func(t *testing.T) { testRecreatedTopic(startKafka(t, kfake.MaxVersions(kversion.V3_0_0()))) })
}

func testRecreatedTopic(k *kafkaTest) {
	topic := k.topic(1, nil)
	k.produce(topic, 0, numbers(0, 10)...)
	f := k.fetcher(topic, 0, 0)
	k.fetchAll(f, 0)
	for range 2 { // one that is not there is no error
		k.must(k.client.DeleteTopic(k.ctx, topic.Name))
	}
	var b event.Batch
	// A broker may serve the old log for a moment.
	if err := k.untilError(func() error { _, err := f.Fetch(k.ctx, &b, 0, 1); return err }); !errors.Is(err, kafka.ErrNoTopic) || retryable(err) {
		k.Errorf("deleted: %v", err)
	}
	again, _, err := k.client.CreateTopic(k.ctx, topic.Name, 1, nil)
	k.must(err)
	k.produce(again, 0, numbers(0, 20)...)
	if _, err := f.Fetch(k.ctx, &b, 0, 1); !errors.Is(err, kafka.ErrTopicRecreated) || retryable(err) {
		k.Errorf("created again: %v, %q", err, values(&b))
	}
}

// untilError calls until there is an error that no second try mends.
func (k *kafkaTest) untilError(call func() error) error {
	for k.ctx.Err() == nil {
		if err := call(); err != nil && !retryable(err) {
			return err
		}
	}
	return k.ctx.Err()
}

// persist calls until there is no error, or one that no second try mends.
func (k *kafkaTest) persist(call func() error) {
	k.Helper()
	err := call()
	for retryable(err) && k.ctx.Err() == nil {
		err = call()
	}
	k.must(err)
}

func (k *kafkaTest) deleteTopic(name string) {
	k.Helper()
	req := kmsg.NewPtrDeleteTopicsRequest()
	one := kmsg.NewDeleteTopicsRequestTopic()
	one.Topic = &name
	req.Topics, req.TopicNames = append(req.Topics, one), []string{name}
	res, err := req.RequestWith(k.ctx, k.other())
	k.must(err)
	k.must(kerr.ErrorForCode(res.Topics[0].ErrorCode))
}

// deleteRecords deletes the records of partition 0 up to an offset.
func (k *kafkaTest) deleteRecords(topic string, before int64) {
	k.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	one, partition := kmsg.NewDeleteRecordsRequestTopic(), kmsg.NewDeleteRecordsRequestTopicPartition()
	partition.Offset = before
	one.Topic, one.Partitions = topic, append(one.Partitions, partition)
	req.Topics = append(req.Topics, one)
	res, err := req.RequestWith(k.ctx, k.other())
	k.must(err)
	k.must(kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode))
}

func retryable(err error) bool {
	var e *kafka.Error
	return errors.As(err, &e) && e.Retryable()
}

// A leader that moves is a retryable error at most; nothing is lost, doubled or reordered.
func TestKafkaLeaderMoves(t *testing.T) {
	k := startKafka(t, kfake.SeedTopics(1, "pay"), kfake.NumBrokers(3))
	topic, err := k.client.Topic(k.ctx, "pay")
	k.must(err)
	p, err := k.client.Producer(topic, kafka.ProducerConfig{BatchBytes: 100})
	k.must(err)
	f := k.fetcher(topic, 0, 0)
	var b event.Batch
	for i, v := range numbers(0, 60) {
		if i%10 == 0 {
			k.must(p.Flush(k.ctx))
			k.must(k.fake.MoveTopicPartition("pay", 0, int32(i/10%3)))
		}
		k.must(p.Add(k.ctx, 0, &kafka.Record{Value: []byte(v)}))
		if _, err := f.Fetch(k.ctx, &b, 0, 1); err != nil && !retryable(err) {
			t.Fatal(err)
		}
	}
	k.must(p.Flush(k.ctx))
	if got := p.Acked(0); got != 60 {
		t.Errorf("acknowledged up to %d", got)
	}
	k.must(p.Close())
	for len(b.Records) < 60 {
		if _, err := f.Fetch(k.ctx, &b, 0, 1); err != nil && !retryable(err) {
			t.Fatal(err)
		}
	}
	if got := values(&b); !slices.Equal(got, numbers(0, 60)) {
		t.Errorf("got %q", got)
	}
}

// Answers that are lost, batches that are refused, answers that come too late: order holds, and only copies are extra.
func TestKafkaProducerSurvivesFaults(t *testing.T) {
	var cut atomic.Int64
	k := startKafka(t, kfake.SeedTopics(1, "pay"), kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return cuttingListener{l, &cut}, err
	}))
	topic, err := k.client.Topic(k.ctx, "pay")
	k.must(err)
	n := 0
	every := func(rest int) func(kmsg.Request) bool {
		return func(kmsg.Request) bool { n++; return n%7 == rest }
	}
	k.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 5, When: every(2)}, // it was written
		kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 5, When: every(4)})
	p, err := k.client.Producer(topic, kafka.ProducerConfig{BatchBytes: 200})
	k.must(err)
	for i, v := range numbers(0, 300) {
		if i%100 == 50 {
			k.must(p.Flush(k.ctx))
			cut.Store(1) // lose the answer to the next request
		}
		k.must(p.Add(k.ctx, 0, &kafka.Record{Value: []byte(v)}))
	}
	k.must(p.Flush(k.ctx))
	k.must(p.Close())
	b, _, _ := k.fetchAll(k.fetcher(topic, 0, 0), 0)
	seen := map[string]bool{}
	var first []string
	for _, v := range values(&b) {
		if !seen[v] {
			first = append(first, v)
		}
		seen[v] = true
	}
	if !slices.Equal(first, numbers(0, 300)) {
		t.Errorf("in order of their first copy: %q", first)
	}
	if len(b.Records) == 300 {
		t.Error("nothing was written twice: no answer was lost")
	}
}

// cuttingListener accepts connections that close in place of an answer while cut is above zero.
type cuttingListener struct {
	net.Listener
	cut *atomic.Int64
}

func (l cuttingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return cuttingConn{c, l.cut}, err
}

type cuttingConn struct {
	net.Conn
	cut *atomic.Int64
}

func (c cuttingConn) Write(p []byte) (int, error) {
	if c.cut.Load() > 0 && c.cut.Add(-1) >= 0 {
		return 0, errors.Join(net.ErrClosed, c.Close())
	}
	return c.Conn.Write(p)
}

func TestKafkaErrors(t *testing.T) {
	k := startKafka(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "10000"}), kfake.SeedTopics(1, "pay"))
	topic, err := k.client.Topic(k.ctx, "pay")
	k.must(err)

	_, err = k.client.Topic(k.ctx, "absent")
	expectError(t, "no topic", err, kafka.ErrNoTopic, false, "create it")
	var b event.Batch
	_, err = k.fetcher(kafka.Topic{Name: "absent"}, 0, 0).Fetch(k.ctx, &b, 0, 1)
	expectError(t, "fetch from no topic", err, kafka.ErrNoTopic, false, "fetch absent/0 at offset 0")
	_, err = k.fetcher(topic, 5, 0).Fetch(k.ctx, &b, 0, 1)
	expectError(t, "no partition", err, kafka.ErrNoTopic, false, "it has no partition 5")

	p, err := k.client.Producer(topic, kafka.ProducerConfig{Compression: "none"})
	k.must(err)
	k.must(p.Add(k.ctx, 0, &kafka.Record{Value: make([]byte, 20_000)}))
	expectError(t, "large record", p.Flush(k.ctx), kafka.ErrTooLarge, false, "max.message.bytes")
	expectError(t, "behind it", p.Add(k.ctx, 0, &kafka.Record{}), kafka.ErrTooLarge, false, "pay/0")
	k.must(p.Close())

	free, err := net.Listen("tcp", "127.0.0.1:0")
	k.must(err)
	k.must(free.Close())
	_, err = k.connect(kafka.Config{Brokers: []string{free.Addr().String()}}).Topic(k.ctx, "pay")
	expectError(t, "unreachable", err, kafka.ErrUnreachable, true, "is Kafka running")
	_, err = k.connect(kafka.Config{TLS: &tls.Config{}, Brokers: k.brokers[:1], DialTimeout: time.Second}).Topic(k.ctx, "pay")
	expectError(t, "TLS to a plain port", err, kafka.ErrUnreachable, true, "does the broker speak TLS")

	ctx, cancel := context.WithCancel(k.ctx)
	f := k.fetcher(topic, 0, 0)
	time.AfterFunc(20*time.Millisecond, cancel)
	for err = nil; err == nil; {
		_, err = f.Fetch(ctx, &b, 0, 1)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	_, err = f.Fetch(k.ctx, &b, 0, 1)
	k.must(err) // it can go on
}

func expectError(t *testing.T, what string, err, is error, retry bool, text string) {
	t.Helper()
	var e *kafka.Error
	if !errors.As(err, &e) || is != nil && !errors.Is(err, is) || e.Retryable() != retry || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v (retryable %v)", what, err, retryable(err))
	}
}

func TestKafkaCredentials(t *testing.T) {
	certificate, roots := selfSigned(t)
	k := &kafkaTest{T: t, ctx: t.Context()}
	k.startFake(kfake.TLS(&tls.Config{Certificates: []tls.Certificate{certificate}}), kfake.EnableSASL(), kfake.SeedTopics(1, "pay"),
		kfake.Superuser("PLAIN", "ann", "plain-secret"), kfake.Superuser("SCRAM-SHA-256", "bob", "scram-secret"),
		kfake.Superuser("SCRAM-SHA-512", "cid", "scram-secret"))
	trust := &tls.Config{RootCAs: roots}
	for _, c := range []struct {
		name string
		tls  *tls.Config
		sasl kafka.SASL
		is   error
		text string
	}{
		{"plain", trust, kafka.SASL{Mechanism: "plain", User: "ann", Password: "plain-secret"}, nil, ""},
		{"scram-sha-256", trust, kafka.SASL{Mechanism: "scram-sha-256", User: "bob", Password: "scram-secret"}, nil, ""},
		{"scram-sha-512", trust, kafka.SASL{Mechanism: "scram-sha-512", User: "cid", Password: "scram-secret"}, nil, ""},
		{"wrong plain", trust, kafka.SASL{Mechanism: "plain", User: "ann", Password: "plain-secreT"}, errAny, "check the user, the password"},
		{"wrong scram", trust, kafka.SASL{Mechanism: "scram-sha-256", User: "bob", Password: "scram-secreT"}, errAny, "check the user, the password"},
		{"nobody", trust, kafka.SASL{}, errAny, ""},
		{"not trusted", &tls.Config{}, kafka.SASL{Mechanism: "plain", User: "ann", Password: "plain-secret"}, errAny, "CA file"},
		{"no TLS", nil, kafka.SASL{Mechanism: "plain", User: "ann", Password: "plain-secret"}, errAny, "does it want TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := k.connect(kafka.Config{TLS: c.tls, SASL: c.sasl, DialTimeout: 2 * time.Second, RequestTimeout: 2 * time.Second}).Topic(k.ctx, "pay")
			if c.is == nil && err != nil || c.is != nil && err == nil {
				t.Fatal(err)
			}
			if err == nil {
				return
			}
			t.Log(err)
			if c.is != errAny && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "secre") {
				t.Errorf("got %v", err)
			}
		})
	}
}

var errAny = errors.New("any")

// selfSigned makes a certificate for this machine.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kafka"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func TestKafkaCommit(t *testing.T) {
	k := startKafka(t)
	topic := k.topic(2, nil)
	group := topic.Name + "-group"
	k.persist(func() error { // the first commit of all makes the cluster's own topic
		return k.client.Commit(k.ctx, group, topic.Name, map[int32]int64{0: 17, 1: 23})
	})
	k.must(k.client.Commit(k.ctx, group, topic.Name, map[int32]int64{0: 18}))
	got := k.committed(group, topic.Name)
	if got[0] != 18 || got[1] != 23 {
		t.Errorf("committed %v", got)
	}
}

// committed asks for the offsets of a group.
func (k *kafkaTest) committed(group, topic string) map[int32]int64 {
	k.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = group
	one := kmsg.NewOffsetFetchRequestTopic()
	one.Topic, one.Partitions = topic, []int32{0, 1}
	req.Topics = append(req.Topics, one)
	res, err := req.RequestWith(k.ctx, k.other())
	k.must(err)
	out := map[int32]int64{}
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			out[p.Partition] = p.Offset
		}
	}
	return out
}

// Files that are played into Kafka and read back into an archive replay to the very result of the files.
func TestProduceAgreesWithReplay(t *testing.T) {
	k := startKafka(t)
	dir := t.TempDir()
	weft := built(t, weftProgram)
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(k.ctx, weft, args...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("weft %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	run("gen", "--out", dir, "--orders", "300", "--seed", "7")
	job := ownTopics(k.T, dir+"/job.yaml")
	inputs := inputsOf(t, dir)
	var produced struct {
		Records int64
		Sources []struct {
			Source, Topic       string
			Records, Partitions int64
			Created             bool
		}
	}
	out := run(append([]string{"produce", "--spec", job, "--kafka", strings.Join(k.brokers, ","), "--partitions", "3", "--json"}, inputs...)...)
	k.must(json.Unmarshal(out, &produced))
	if produced.Records == 0 || len(produced.Sources) != len(inputs)/2 {
		t.Fatalf("produced %s", out)
	}
	archives := []string{}
	total := int64(0)
	for _, s := range produced.Sources {
		if s.Partitions != 3 || !s.Created {
			t.Errorf("%+v", s)
		}
		name := filepath.Join(dir, s.Source+".parquet")
		total += k.archive(s.Topic, name)
		archives = append(archives, "--input", s.Source+"="+name)
	}
	if total != produced.Records {
		t.Errorf("%d records are in Kafka, %d were produced", total, produced.Records)
	}
	digest := func(name string, inputs []string) string {
		var summary struct{ Digest string }
		k.must(json.Unmarshal(run(append([]string{"replay", "--json", "--spec", job, "--out", filepath.Join(dir, name)}, inputs...)...), &summary))
		return summary.Digest
	}
	text, stream := digest("text", inputs), digest("stream", archives)
	if text == "" || text != stream {
		t.Errorf("the files give %s, the stream gives %s", text, stream)
	}
}

// ownTopics gives a spec topics that no other run has.
func ownTopics(t *testing.T, spec string) string {
	t.Helper()
	text, err := os.ReadFile(spec)
	if err != nil {
		t.Fatal(err)
	}
	own := "weft-test-" + strings.ToLower(rand.Text()) + "."
	if err := os.WriteFile(spec, regexp.MustCompile(`topic: +`).ReplaceAll(text, []byte("topic: "+own)), 0o600); err != nil {
		t.Fatal(err)
	}
	return spec
}

// inputsOf names a file for every source of a generated environment.
func inputsOf(t *testing.T, dir string) (args []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name, kind, _ := strings.Cut(f.Name(), ".")
		if slices.Contains([]string{"jsonl", "log", "csv"}, kind) && name != "truth" && name != "rejects" {
			args = append(args, "--input", name+"="+filepath.Join(dir, f.Name()))
		}
	}
	return args
}

// archive writes all that a topic holds to a file, and returns the number of records.
func (k *kafkaTest) archive(name, path string) (n int64) {
	k.Helper()
	topic, err := k.client.Topic(k.ctx, name)
	k.must(err)
	file, err := os.Create(path)
	k.must(err)
	w := archive.NewWriter(file)
	keys := map[string]int32{}
	for p := range topic.Partitions {
		f := k.fetcher(topic, p, 0)
		for end := false; !end; {
			got, err := f.Records(k.ctx, 1<<20, func(r *kafka.Record) {
				n++
				if other, ok := keys[string(r.Key)]; r.Key != nil && ok && other != p {
					k.Errorf("key %q is in partitions %d and %d", r.Key, other, p)
				}
				keys[string(r.Key)] = p
				one := archive.Record{Topic: name, Partition: p, Offset: r.Offset, Timestamp: r.Timestamp, Key: r.Key, Value: r.Value}
				for _, h := range r.Headers {
					one.Headers = append(one.Headers, archive.Header{Key: string(h.Key), Value: h.Value})
				}
				k.must(w.Write(&one))
			})
			k.must(err)
			end = got.AtEnd
		}
	}
	k.must(errors.Join(w.Close(), file.Close()))
	return n
}

// The broker answers from one canned batch of 300-byte records, so this is the client's speed and little else. Run it with
// -cpu 1: the fake's share is in it.
func BenchmarkKafkaFetch(b *testing.B) {
	for name, codec := range map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "zstd": kgo.ZstdCompression()} {
		b.Run(name, func(b *testing.B) {
			client := benchClient(b, kfake.SyntheticFetch(kfake.SyntheticBatch{RecordBytes: 300, RandomFrac: 0.3, Compression: codec}))
			topic, err := client.Topic(b.Context(), "pay")
			if err != nil {
				b.Fatal(err)
			}
			f := client.Fetcher(topic, 0, 0)
			defer f.Close()
			var batch event.Batch
			records, bytes := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				batch.Reset()
				got, err := f.Fetch(b.Context(), &batch, 0, 1<<20)
				if err != nil {
					b.Fatal(err)
				}
				records, bytes = records+got.Records, bytes+got.Bytes
			}
			b.ReportMetric(float64(records)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(bytes)/1e6/b.Elapsed().Seconds(), "MB/s")
		})
	}
}

// BenchmarkKafkaProduce sends 300-byte records with an origin to 4 partitions of a broker that stores nothing.
func BenchmarkKafkaProduce(b *testing.B) {
	for _, codec := range []string{"none", "zstd"} {
		b.Run(codec, func(b *testing.B) {
			client := benchClient(b, kfake.BlackholeProduce())
			topic, err := client.Topic(b.Context(), "pay")
			if err != nil {
				b.Fatal(err)
			}
			p, err := client.Producer(topic, kafka.ProducerConfig{Compression: codec})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			r := kafka.Record{Value: []byte(strings.Repeat(`{"ts":1700000000,"order":"8271"}`, 10)[:300]),
				Headers: []kafka.Header{{Key: []byte(event.OriginHeader)}}}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				r.Headers[0].Value = event.AppendOrigin(r.Headers[0].Value[:0], "pay", 0, int64(n))
				if err := p.Add(b.Context(), int32(n&3), &r); err != nil {
					b.Fatal(err)
				}
			}
			if err := p.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func benchClient(b *testing.B, opt kfake.Opt) *kafka.Client {
	b.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "pay"), opt)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(fake.Close)
	client, err := kafka.New(kafka.Config{Brokers: fake.ListenAddrs()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	return client
}

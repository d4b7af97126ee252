package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/store"
	"github.com/weftdata/weft/streaming"
	"github.com/weftdata/weft/workers"
)

// faultTest is a job of one source over a topic of its own.
type faultTest struct {
	*kafkaTest
	name    string
	job     *operator.Job
	store   *store.Store
	gen     int64
	objects workers.Objects
}

// onEveryKafka runs a test on the fake and, where WEFT_TEST_KAFKA names one, on a real broker.
func onEveryKafka(t *testing.T, test func(t *testing.T, k *kafkaTest), opts ...kfake.Opt) {
	t.Run("kfake", func(t *testing.T) {
		t.Setenv("WEFT_TEST_KAFKA", "")
		test(t, startKafka(t, opts...))
	})
	t.Run("apache", func(t *testing.T) {
		if os.Getenv("WEFT_TEST_KAFKA") == "" {
			t.Skip("WEFT_TEST_KAFKA names no broker; scripts/with-kafka.sh starts one")
		}
		test(t, startKafka(t))
	})
}

func newFaultTest(k *kafkaTest) *faultTest {
	k.Helper()
	f := &faultTest{kafkaTest: k}
	f.name = k.topic(1, nil).Name
	f.job = k.compile(f.name)
	dir := k.TempDir()
	var err error
	f.store, err = store.Open(k.ctx, "sqlite:"+filepath.Join(dir, "store"), store.Options{})
	k.must(err)
	k.Cleanup(func() { k.must(f.store.Close()) })
	g, err := f.store.CreateGeneration(k.ctx, "faults", "1", "live")
	k.must(err)
	f.gen = g.ID
	folder, err := objstore.Folder(filepath.Join(dir, "objects"))
	k.must(err)
	f.objects = workers.Objects{Store: folder}
	return f
}

func (k *kafkaTest) compile(topic string) *operator.Job {
	k.Helper()
	spec, err := jobspec.Parse([]byte("version: weft/v1\njob: faults\nsession: {gap: 1h}\nsources:\n" +
		"  orders: {topic: " + topic + ", format: json, time: {field: at, layout: unix_ms}, step: event, keys: {order: id}}\n"))
	k.must(err)
	job, err := operator.Compile(spec, 99, nil)
	k.must(err)
	return job
}

// orders makes records of orders from to before to.
func orders(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf(`{"at":1700000000000,"event":"paid","id":"o%d"}`, i))
	}
	return out
}

// put writes values, each batch uncompressed so that a test can find them.
func (f *faultTest) put(values ...string) {
	f.Helper()
	topic, err := f.client.Topic(f.ctx, f.name)
	f.must(err)
	p, err := f.client.Producer(topic, kafka.ProducerConfig{Compression: "none"})
	f.must(err)
	for _, v := range values {
		f.must(p.Add(f.ctx, 0, &kafka.Record{Timestamp: event.Micros(time.Now().UnixMicro()), Value: []byte(v)}))
	}
	f.must(p.Flush(f.ctx))
	f.must(p.Close())
}

// run runs the shard until it has read a number of records and rejects, or fails.
func (f *faultTest) run(until int64) (last streaming.Status, err error) {
	f.Helper()
	log := workers.NewLog(f.connect(kafka.Config{}))
	defer func() { err = errors.Join(err, log.Close()) }()
	partitions, err := log.Partitions(f.ctx, f.job)
	if err != nil {
		return last, err
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	return last, streaming.Run(ctx, streaming.Config{
		Job: f.job, Name: "checkpoints/faults/1/0", Partitions: partitions, Log: log,
		Sink: workers.NewSink(f.store, f.job, f.gen, 0), Objects: f.objects,
		FlushEvery: 5 * time.Millisecond, CheckpointEvery: 10 * time.Millisecond, RetryFor: 200 * time.Millisecond, Retryable: workers.Retryable,
		Progress: func(s streaming.Status) {
			if last = s; s.Records >= until && s.Lag == 0 {
				cancel()
			}
		},
	})
}

// sessions counts what the store has.
func (f *faultTest) sessions() int {
	f.Helper()
	r, err := f.store.Sessions(f.ctx, store.SessionQuery{Scope: store.Scope{Job: "faults", Generation: f.gen}, Page: store.Page{Limit: 1000}})
	f.must(err)
	return len(r.Items)
}

// fails checks an error that a person must act on.
func (f *faultTest) fails(err, is error, texts ...string) {
	f.Helper()
	if !errors.Is(err, is) || workers.Retryable(err) {
		f.Fatalf("got %v (may pass: %v), want %q", err, workers.Retryable(err), is)
	}
	for _, text := range append(texts, f.name) {
		if !strings.Contains(err.Error(), text) {
			f.Errorf("%q lacks %q", err, text)
		}
	}
}

func TestFaultDeletedRecords(t *testing.T) {
	onEveryKafka(t, func(t *testing.T, k *kafkaTest) {
		f := newFaultTest(k)
		f.put(orders(0, 50)...)
		_, err := f.run(50)
		f.must(err)
		f.put(orders(50, 100)...)
		f.deleteRecords(f.name, 80)
		_, err = f.run(50)
		f.fails(err, streaming.ErrOffsetGone, "offsets 50 to 79", "retention")
		if n := f.sessions(); n != 50 {
			t.Errorf("%d sessions, of 50 orders that were read", n)
		}
	})
}

func TestFaultRecreatedTopic(t *testing.T) {
	onEveryKafka(t, func(t *testing.T, k *kafkaTest) {
		f := newFaultTest(k)
		f.put(orders(0, 10)...)
		_, err := f.run(10)
		f.must(err)
		f.deleteTopic(f.name)
		f.must(f.untilGone())
		_, _, err = f.client.CreateTopic(f.ctx, f.name, 1, nil)
		f.must(err)
		f.put(orders(0, 20)...)
		_, err = f.run(20)
		f.fails(err, streaming.ErrRecreated, "new version")
	})
}

// untilGone waits until the brokers know that a topic was deleted.
func (f *faultTest) untilGone() error {
	err := f.untilError(func() error { _, err := f.client.Topic(f.ctx, f.name); return err })
	if errors.Is(err, kafka.ErrNoTopic) {
		return nil
	}
	return err
}

func TestFaultMissingTopic(t *testing.T) {
	onEveryKafka(t, func(t *testing.T, k *kafkaTest) {
		f := newFaultTest(k)
		f.name = "weft-test-missing"
		f.job = f.compile(f.name)
		_, err := f.run(1)
		f.fails(err, kafka.ErrNoTopic, "source orders", "create it, or check the name in the spec")
	})
}

func TestFaultUnreachableBroker(t *testing.T) {
	onEveryKafka(t, func(t *testing.T, k *kafkaTest) {
		f := newFaultTest(k)
		free, err := net.Listen("tcp", "127.0.0.1:0")
		k.must(err)
		k.must(free.Close())
		here := f.brokers
		f.brokers = []string{free.Addr().String()}
		_, err = f.run(1)
		if !errors.Is(err, kafka.ErrUnreachable) || !workers.Retryable(err) || !strings.Contains(err.Error(), f.brokers[0]) ||
			!strings.Contains(err.Error(), "is Kafka running") {
			t.Errorf("got %v (may pass: %v)", err, workers.Retryable(err))
		}
		f.brokers = here
		f.put(orders(0, 5)...)
		_, err = f.run(5)
		f.must(err) // once it is there the shard goes on
	})
}

// Records that cannot be decoded are kept as rejects; whatever they are, the shard goes on.
func TestFaultPoisonedRecords(t *testing.T) {
	onEveryKafka(t, func(t *testing.T, k *kafkaTest) {
		f := newFaultTest(k)
		poison := []string{"", "\x00\xff\xfe", "{", `{"at":`, "[]", `{"at":"x","event":"paid","id":"p"}`, strings.Repeat("[", 10_000), strings.Repeat("\n", 1000)}
		var values []string
		for i, p := range poison {
			values = append(append(values, orders(i, i+1)...), p)
		}
		f.put(values...)
		_, err := f.run(int64(len(values)))
		f.must(err)
		if n := f.sessions(); n != len(poison) {
			t.Errorf("%d sessions between %d poisoned records", n, len(poison))
		}
		r, err := f.store.Exceptions(f.ctx, store.ExceptionQuery{Scope: store.Scope{Job: "faults", Generation: f.gen}, Kind: store.Rejected})
		f.must(err)
		kept := map[string]bool{}
		for _, x := range r.Items {
			if x.Topic != f.name || x.Offset%2 != 1 || x.Reason == "" {
				t.Errorf("reject %+v", x)
			}
			kept[string(x.Raw)] = true
		}
		for _, p := range poison {
			if !kept[p] {
				t.Errorf("%.20q is not kept: %d rejects", p, len(r.Items))
			}
		}
	})
}

// A batch whose bytes are damaged stops the shard: what it held is unknown. What stands before it is read and saved.
func TestFaultDamagedBatch(t *testing.T) {
	var damage atomic.Bool
	onEveryKafka(t, func(t *testing.T, k *kafkaTest) {
		f := newFaultTest(k)
		f.put(orders(0, 10)...)
		_, err := f.run(10)
		f.must(err)
		f.put(orders(10, 20)...)
		f.put(`{"at":1700000000000,"event":"paid","id":"` + marker + `"}`)
		damage.Store(true)
		if k.fake == nil {
			damageLog(k, f.name)
		}
		_, err = f.run(1000)
		f.fails(err, kafka.ErrCorrupt, "checksum", f.name+"/0 at offset 20", "start from the offset behind it")
		damage.Store(false)
		if k.fake == nil {
			return
		}
		_, err = f.run(1) // the disk was repaired
		f.must(err)
		if n := f.sessions(); n != 21 {
			t.Errorf("%d sessions of 21 orders", n)
		}
	}, kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return damagingListener{l, &damage}, err
	}))
}

const marker, damaged = "the-damaged-one", "the-damagEd-one"

// damagingListener accepts connections whose answers are damaged where they hold the marker.
type damagingListener struct {
	net.Listener
	damage *atomic.Bool
}

func (l damagingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return damagingConn{c, l.damage}, err
}

type damagingConn struct {
	net.Conn
	damage *atomic.Bool
}

func (c damagingConn) Write(p []byte) (int, error) {
	if c.damage.Load() {
		p = bytes.ReplaceAll(p, []byte(marker), []byte(damaged))
	}
	return c.Conn.Write(p)
}

// damageLog changes a byte in the files of a real broker, which sends them as they are.
func damageLog(k *kafkaTest, topic string) {
	k.Helper()
	dir := os.Getenv("WEFT_TEST_KAFKA_LOG")
	if dir == "" {
		k.Skip("WEFT_TEST_KAFKA_LOG names no folder of the broker")
	}
	name := filepath.Join(dir, topic+"-0", "00000000000000000000.log")
	text, err := os.ReadFile(name)
	k.must(err)
	at := bytes.Index(text, []byte(marker))
	if at < 0 {
		k.Fatalf("%s does not hold the record", name)
	}
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	k.must(err)
	_, err = file.WriteAt([]byte(damaged), int64(at))
	k.must(errors.Join(err, file.Close()))
}

// Credentials and TLS as commands and workers get them: from the addresses of a stack.
func TestFaultCredentials(t *testing.T) {
	t.Run("kfake", func(t *testing.T) {
		certificate, _ := selfSigned(t)
		k := &kafkaTest{T: t, ctx: t.Context()}
		k.startFake(kfake.TLS(&tls.Config{Certificates: []tls.Certificate{certificate}}), kfake.EnableSASL(), kfake.SeedTopics(1, "pay"),
			kfake.Superuser("PLAIN", secureUser, securePassword), kfake.Superuser("SCRAM-SHA-256", secureUser, securePassword),
			kfake.Superuser("SCRAM-SHA-512", secureUser, securePassword))
		ca := filepath.Join(t.TempDir(), "ca.pem")
		k.must(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}), 0o600))
		testCredentials(k, k.brokers[0], ca, errAny) // it hangs up, as brokers may
	})
	t.Run("apache", func(t *testing.T) {
		broker, ca := os.Getenv("WEFT_TEST_KAFKA_SECURE"), os.Getenv("WEFT_TEST_KAFKA_CA_FILE")
		if broker == "" || ca == "" {
			t.Skip("WEFT_TEST_KAFKA_SECURE names no broker; scripts/with-kafka.sh starts one")
		}
		testCredentials(&kafkaTest{T: t, ctx: t.Context()}, broker, ca, kafka.ErrCredentials)
	})
}

// The credentials of scripts/kafka.sh.
const secureUser, securePassword = "weft", "weft-secret"

// testCredentials expects refused for credentials that are wrong.
func testCredentials(k *kafkaTest, broker, ca string, refused error) {
	good := stack.Addresses{Kafka: broker, KafkaTLS: stack.TLS{CAFile: ca}, KafkaSASL: "scram-sha-512", KafkaUser: secureUser, KafkaPassword: securePassword}
	for _, c := range []struct {
		name   string
		change func(*stack.Addresses)
		is     error // nil: it works
		text   string
	}{
		{"scram-sha-512", func(*stack.Addresses) {}, nil, ""},
		{"scram-sha-256", func(a *stack.Addresses) { a.KafkaSASL = "SCRAM-SHA-256" }, nil, ""},
		{"plain", func(a *stack.Addresses) { a.KafkaSASL = "plain" }, nil, ""},
		{"wrong password", func(a *stack.Addresses) { a.KafkaPassword += "x" }, refused, "check the user, the password and the mechanism"},
		{"wrong plain password", func(a *stack.Addresses) { a.KafkaSASL, a.KafkaPassword = "plain", "x"+a.KafkaPassword }, refused, "check the user, the password"},
		{"unknown user", func(a *stack.Addresses) { a.KafkaUser = "nobody" }, refused, "check the user"},
		{"no CA file", func(a *stack.Addresses) { a.KafkaTLS = stack.TLS{On: true} }, errAny, "name its CA file"},
		{"other host", func(a *stack.Addresses) { a.KafkaTLS.ServerName = "elsewhere" }, errAny, "not for that name"},
		{"no credentials", func(a *stack.Addresses) { a.KafkaSASL, a.KafkaUser, a.KafkaPassword = "", "", "" }, errAny, ""},
		{"no TLS", func(a *stack.Addresses) { a.KafkaTLS = stack.TLS{} }, errAny, "TLS"},
	} {
		k.Run(c.name, func(t *testing.T) {
			at := good
			c.change(&at)
			client, err := workers.OpenKafka(at, kafka.Config{DialTimeout: 2 * time.Second, RequestTimeout: 2 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			_, created, err := client.CreateTopic(k.ctx, "weft-test-credentials-"+strings.ToLower(strings.ReplaceAll(c.name, " ", "-")), 1, nil)
			if c.is == nil {
				if err != nil || !created && os.Getenv("WEFT_TEST_KAFKA_SECURE") == "" {
					t.Fatal(created, err)
				}
				return
			}
			t.Log(err)
			if err == nil || c.is != errAny && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), securePassword) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestGroupOffsets commits what a shard tells, for tools that show lag.
func TestGroupOffsets(t *testing.T) {
	onEveryKafka(t, func(t *testing.T, k *kafkaTest) {
		topic := k.topic(2, nil)
		group := topic.Name + "-group"
		k.persist(func() error { return k.client.Commit(k.ctx, group, topic.Name, map[int32]int64{0: 0}) }) // the first of all takes a while
		ctx, stop := context.WithCancel(k.ctx)
		defer stop()
		tell := workers.CommitOffsets(ctx, k.client, group, 5*time.Millisecond, slog.New(slog.DiscardHandler))
		at := func(id int32, next int64) streaming.PartitionStatus {
			return streaming.PartitionStatus{Partition: streaming.Partition{Topic: topic.Name, ID: id}, Next: next}
		}
		for next := int64(1); next < 4; next++ {
			want := map[int32]int64{0: 10 * next, 1: 7}
			for got := k.committed(group, topic.Name); got[0] != want[0] || got[1] != want[1]; got = k.committed(group, topic.Name) {
				if k.ctx.Err() != nil {
					t.Fatalf("committed %v, want %v", got, want)
				}
				tell(streaming.Status{Partitions: []streaming.PartitionStatus{at(0, 10*next), at(1, 7)}})
			}
		}
	})
}

// TestProducerWaits waits for one record while others keep coming, which Flush would not end.
func TestProducerWaits(t *testing.T) {
	onEveryKafka(t, func(t *testing.T, k *kafkaTest) {
		topic := k.topic(1, nil)
		p, err := k.client.Producer(topic, kafka.ProducerConfig{})
		k.must(err)
		for range 3 {
			k.must(p.Add(k.ctx, 0, &kafka.Record{Value: []byte("x")}))
			n := p.Added(0)
			k.must(p.Wait(k.ctx, 0, n))
			if got := p.Acked(0); got != n {
				t.Errorf("%d records are acknowledged after the wait for %d", got, n)
			}
		}
		ctx, cancel := context.WithCancel(k.ctx)
		cancel()
		if err := p.Wait(ctx, 0, 4); !errors.Is(err, context.Canceled) {
			t.Errorf("a record that was never added: %v", err)
		}
		k.must(p.Close())
	})
}

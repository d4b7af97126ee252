package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// ProducerConfig has defaults for all members.
type ProducerConfig struct {
	// BatchBytes is the raw size at which a batch goes out although the one before is still under way, as soon as it is
	// back. Default 512 KiB: half of what brokers accept unless configured otherwise.
	BatchBytes int
	// Compression is zstd (the default) or none.
	Compression string
	// RetryFor bounds how long one batch is tried; default 2 minutes.
	RetryFor time.Duration
}

// Validate fills in defaults and reports everything wrong at once.
func (c *ProducerConfig) Validate() error {
	var errs []error
	if c.BatchBytes == 0 {
		c.BatchBytes = 512 << 10
	}
	if c.Compression == "" {
		c.Compression = "zstd"
	}
	if c.RetryFor == 0 {
		c.RetryFor = 2 * time.Minute
	}
	if c.BatchBytes < 0 || c.BatchBytes > 1<<30 {
		errs = append(errs, fmt.Errorf("batches of %d bytes: expected 1 to %d", c.BatchBytes, 1<<30))
	}
	if c.Compression != "zstd" && c.Compression != "none" {
		errs = append(errs, fmt.Errorf("compression %q: expected zstd or none", c.Compression))
	}
	if c.RetryFor < 0 {
		errs = append(errs, fmt.Errorf("retry for %v: expected more than 0", c.RetryFor))
	}
	return errors.Join(errs...)
}

// Producer writes records to the partitions of a topic, each in the order of its Adds. One batch per partition is under way
// at a time, acknowledged by all replicas in sync; what is added meanwhile makes the next one, so there is no linger to tune.
//
// A retry may write a batch twice, never out of order: the next batch waits. Readers drop the second copy by identity, so
// records carry an origin (event.AppendOrigin) or an identity of their own.
type Producer struct {
	client *Client
	topic  Topic
	cfg    ProducerConfig
	lanes  []*lane
	stop   context.CancelFunc
	work   sync.WaitGroup
}

// Producer starts a producer. Its Close must be called.
func (c *Client) Producer(topic Topic, cfg ProducerConfig) (*Producer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, &Error{Op: "produce to " + topic.Name, Class: User, Err: err}
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Producer{client: c, topic: topic, cfg: cfg, stop: stop}
	for i := range topic.Partitions {
		l := &lane{producer: p, partition: i}
		l.changed.L = &l.mu
		if cfg.Compression == "zstd" {
			var err error // only wrong options make one
			if l.batch.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1)); err != nil {
				stop()
				return nil, &Error{Op: "produce to " + topic.Name, Class: Internal, Err: err}
			}
		}
		p.lanes = append(p.lanes, l)
	}
	for _, l := range p.lanes {
		p.work.Go(func() { l.run(ctx) })
	}
	return p, nil
}

// Add queues a record for a partition; its bytes are copied. It blocks while the partition's queue is full. An error of an
// earlier record is returned by every later call: nothing is written behind a record that was not.
func (p *Producer) Add(ctx context.Context, partition int32, r *Record) error {
	if partition < 0 || partition >= int32(len(p.lanes)) {
		return &Error{Op: "produce to " + p.topic.Name, Class: Internal, Err: fmt.Errorf("no partition %d of %d", partition, len(p.lanes))}
	}
	l := p.lanes[partition]
	l.mu.Lock()
	defer l.mu.Unlock()
	full := func() bool { return len(l.open.records) >= p.cfg.BatchBytes }
	if full() {
		if err := l.wait(ctx, func() bool { return !full() }); err != nil {
			return err
		}
	}
	if l.err != nil {
		return l.err
	}
	l.open.add(r)
	l.added++
	if l.open.count == 1 {
		l.changed.Broadcast()
	}
	return nil
}

// Flush waits until everything that was added is acknowledged.
func (p *Producer) Flush(ctx context.Context) error {
	for _, l := range p.lanes {
		l.mu.Lock()
		err := l.wait(ctx, func() bool { return l.open.count == 0 && !l.busy })
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Acked returns the offset behind the last acknowledged record of a partition; 0 where there is none yet.
func (p *Producer) Acked(partition int32) int64 {
	l := p.lanes[partition]
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// Added returns how many records were added for a partition.
func (p *Producer) Added(partition int32) int64 {
	l := p.lanes[partition]
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.added
}

// Wait waits until the first n records that were added for a partition are acknowledged. Unlike Flush it does not wait for
// those that are added meanwhile.
func (p *Producer) Wait(ctx context.Context, partition int32, n int64) error {
	l := p.lanes[partition]
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wait(ctx, func() bool { return l.written >= n })
}

// Close ends the producer. What was not flushed is lost.
func (p *Producer) Close() error {
	p.stop()
	for _, l := range p.lanes {
		l.fail(&Error{Op: l.op(), Class: Internal, Err: errors.New("the producer is closed")})
	}
	p.work.Wait()
	var errs []error
	for _, l := range p.lanes {
		if l.conn != nil {
			errs = append(errs, l.conn.close())
		}
		if l.batch.zstd != nil {
			errs = append(errs, l.batch.zstd.Close())
		}
	}
	return errors.Join(errs...)
}

// lane writes one partition.
type lane struct {
	producer  *Producer
	partition int32
	conn      *conn
	batch     packer // under way; of the lane's goroutine alone

	mu      sync.Mutex
	changed sync.Cond
	open    packer // takes records
	busy    bool   // a batch is under way
	acked   int64
	added   int64 // records that were taken
	written int64 // of those, acknowledged
	err     error // how the lane ended
}

func (l *lane) op() string {
	return fmt.Sprintf("produce to %s/%d", l.producer.topic.Name, l.partition)
}

// wait blocks until the condition holds, the lane has failed or the context ends. l.mu is held.
func (l *lane) wait(ctx context.Context, ready func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})
	defer stop()
	for l.err == nil && ctx.Err() == nil && !ready() {
		l.changed.Wait()
	}
	if l.err != nil {
		return l.err
	}
	return ctx.Err()
}

func (l *lane) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.changed.Broadcast()
}

func (l *lane) run(ctx context.Context) {
	for l.take() {
		offset, err := l.send(ctx)
		if err != nil {
			l.fail(explain(l.op(), err))
			return
		}
		l.mu.Lock()
		l.busy, l.acked = false, offset+int64(l.batch.count)
		l.written += int64(l.batch.count)
		l.changed.Broadcast()
		l.mu.Unlock()
	}
}

// take waits for records and moves them from the open batch to the one that is sent. It returns false when the lane ended.
func (l *lane) take() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open.count == 0 && l.err == nil {
		l.changed.Wait()
	}
	if l.err != nil {
		return false
	}
	l.batch.records, l.open.records = l.open.records, l.batch.records
	l.batch.count, l.batch.first, l.batch.last = l.open.count, l.open.first, l.open.last
	l.open.reset()
	l.busy = true
	l.changed.Broadcast()
	return true
}

// send writes the batch until it is acknowledged, and returns its first offset. Every attempt sends the same bytes.
func (l *lane) send(ctx context.Context) (int64, error) {
	batch := l.batch.pack()
	ctx, cancel := context.WithTimeoutCause(ctx, l.producer.cfg.RetryFor, errTimeUp)
	defer cancel()
	var last error
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		offset, err := l.attempt(ctx, batch)
		if err == nil {
			return offset, nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		var e *Error
		if isMoved(err) {
			l.dropConn()
		} else if errors.As(explain(l.op(), err), &e) && !e.Retryable() {
			return 0, e
		}
		if pause(ctx, wait) != nil {
			if context.Cause(ctx) == errTimeUp {
				return 0, fmt.Errorf("%w: gave up after %v", last, l.producer.cfg.RetryFor)
			}
			return 0, ctx.Err()
		}
	}
}

var errTimeUp = errors.New("time is up")

// dropConn makes the next attempt look for the leader.
func (l *lane) dropConn() {
	if l.conn != nil {
		l.conn.close() // it is of no use either way
		l.conn = nil
	}
}

// attempt sends the batch to the leader once.
func (l *lane) attempt(ctx context.Context, batch []byte) (offset int64, err error) {
	p := l.producer
	if l.conn == nil || l.conn.broken.Load() {
		addr, err := p.client.leader(ctx, p.topic, l.partition)
		if err != nil {
			return 0, err
		}
		if l.conn, err = p.client.dial(ctx, addr); err != nil {
			return 0, err
		}
	}
	version, ok := l.conn.version(protocol.Produce, 3, 4, 5, 6, 7, 8)
	if !ok {
		return 0, codeError{kafka.UnsupportedVersion, "the broker is older than Kafka 0.11, or newer than any known"}
	}
	timeout := int32(p.client.cfg.RequestTimeout.Milliseconds())
	r, err := l.conn.exchange(ctx, protocol.Produce, version, false, 0, func(w *writer) {
		w.i16(-1) // no transaction
		w.i16(-1) // acknowledged by all replicas in sync
		w.i32(timeout)
		w.array(1)
		w.text(p.topic.Name)
		w.array(1)
		w.i32(l.partition)
		w.i32(int32(len(batch)))
		w.b = append(w.b, batch...)
	})
	if err != nil {
		return 0, err
	}
	if r.array() != 1 {
		return 0, errShort
	}
	r.text()
	if r.array() != 1 {
		return 0, errShort
	}
	r.i32() // partition
	code := r.i16()
	offset = r.i64()
	r.i64() // time of the append
	if version >= 5 {
		r.i64() // start of the log
	}
	text := ""
	if version >= 8 {
		for range r.array() {
			r.i32()
			text = r.text()
		}
		if whole := r.text(); whole != "" {
			text = whole
		}
	}
	if r.err != nil {
		return 0, r.err
	}
	return offset, codeErr(code, text)
}

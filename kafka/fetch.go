package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/weftdata/weft/event"
)

const (
	// RejectBytes is how much of a value over event.RecordBytesMax is kept.
	RejectBytes = event.RejectBytes

	// askBytesMin is what a fetch asks for at least: small answers cost more than the memory they save.
	askBytesMin = 1 << 20
	askBytesMax = 64 << 20
)

// Fetcher reads one partition, over a connection of its own: a fetch that waits at the end holds up nobody else. It is not
// safe for concurrent use.
//
// It reads committed records only. Records of transactions that are open hold it up, those of aborted ones are left out.
type Fetcher struct {
	client    *Client
	topic     Topic
	partition int32
	next      int64

	conn    *conn
	ask     int    // bytes; grows where a batch is larger
	answer  []byte // batches that came and were not handed out yet
	aborted []abortedTransaction
	active  map[int64]bool // producers whose aborted transaction has started and not ended
	end     Fetched        // offsets as the last answer told them
	unpack  unpacker
}

type abortedTransaction struct{ producer, first int64 }

// Fetched says what a fetch brought.
type Fetched struct {
	Next      int64 // offset that comes next
	HighWater int64 // offset that the next record to be produced will get, when the broker answered
	Start     int64 // first offset that the partition holds
	Records   int   // handed out, or rejected
	Nulls     int   // records without a value, left out by Fetch: deletions in a compacted topic, not events
	Bytes     int   // of values
	// AtEnd says that nothing is left up to HighWater and that the broker confirmed it in this call. Where it is false and
	// Records is 0, the partition may hold more: the broker is slow, or a transaction is open.
	AtEnd bool
}

// Fetcher returns a reader of a partition from an offset on. Nothing is asked before the first Fetch.
func (c *Client) Fetcher(topic Topic, partition int32, offset int64) *Fetcher {
	return &Fetcher{client: c, topic: topic, partition: partition, next: offset, ask: askBytesMin, active: map[int64]bool{}}
}

// Next returns the offset that the next Fetch starts at.
func (f *Fetcher) Next() int64 { return f.next }

// Close closes the connection. The Fetcher may be used again.
func (f *Fetcher) Close() error {
	one := f.conn
	f.conn, f.answer = nil, nil
	if one == nil {
		return nil
	}
	return one.close()
}

// Fetch appends records to the batch, as records of the given source, until about maxBytes of values were added or what the
// broker sent is used up. At the end of the partition it waits for up to Config.MaxWait. A record has the partition and
// offset of its weft-origin header where it has one. A malformed header, and a value longer than event.RecordBytesMax,
// make a reject.
//
// After an error the batch still holds the records before it, Fetched counts them, and Fetch may be called again: it goes
// on behind them.
func (f *Fetcher) Fetch(ctx context.Context, b *event.Batch, source uint16, maxBytes int) (Fetched, error) {
	maxBytes = max(maxBytes, 1)
	if math.MaxUint32-len(b.Data) < maxBytes+plainBytesMax {
		return Fetched{Next: f.next}, &Error{Op: f.op(), Class: Internal, Err: fmt.Errorf("the batch is full: it holds %d bytes", len(b.Data))}
	}
	nulls := 0
	got, err := f.Records(ctx, maxBytes, func(r *Record) {
		if r.Value == nil {
			nulls++
			return
		}
		f.add(b, source, r)
	})
	got.Nulls = nulls
	got.Records -= nulls
	return got, err
}

// add adds a record or, where something is wrong with it, a reject.
func (f *Fetcher) add(b *event.Batch, source uint16, r *Record) {
	at := event.Record{Source: source, Partition: f.partition, Offset: r.Offset, Timestamp: r.Timestamp}
	b.AddLogged(at, r.Value, len(r.Value), r.Origin())
}

// Origin returns the value of the last weft-origin header, empty where that is null; nil: there is none.
func (r *Record) Origin() []byte {
	for i := len(r.Headers) - 1; i >= 0; i-- { // the last one counts
		switch h := &r.Headers[i]; {
		case string(h.Key) != event.OriginHeader:
		case h.Value == nil:
			return []byte{}
		default:
			return h.Value
		}
	}
	return nil
}

// Records hands out records as Kafka holds them, nulls included, with the bounds and errors of Fetch.
func (f *Fetcher) Records(ctx context.Context, maxBytes int, yield func(*Record)) (Fetched, error) {
	asks := len(f.answer) == 0
	got, err := f.records(ctx, maxBytes, yield)
	got.Next, got.HighWater, got.Start = f.next, f.end.HighWater, f.end.Start
	if err != nil {
		f.answer = nil // ask again
		var code codeError
		if isMoved(err) || !errors.As(err, &code) {
			if closed := f.Close(); closed != nil { // the leader may be another one now
				err = errors.Join(err, closed)
			}
		}
		return got, explain(f.op(), err)
	}
	got.AtEnd = asks && got.Records == 0 && f.next >= f.end.HighWater
	return got, nil
}

func (f *Fetcher) op() string {
	return fmt.Sprintf("fetch %s/%d at offset %d", f.topic.Name, f.partition, f.next)
}

// isMoved tells whether the broker says that it is not, or no longer, the one to ask.
func isMoved(err error) bool {
	for _, code := range []kafka.Error{kafka.NotLeaderForPartition, kafka.LeaderNotAvailable, kafka.ReplicaNotAvailable,
		kafka.UnknownTopicOrPartition, kafka.UnknownTopicID, kafka.InconsistentTopicID, kafka.FencedLeaderEpoch,
		kafka.UnknownLeaderEpoch, kafka.KafkaStorageError, kafka.BrokerNotAvailable, kafka.OffsetNotAvailable} {
		if isCode(err, code) {
			return true
		}
	}
	return false
}

func (f *Fetcher) records(ctx context.Context, maxBytes int, yield func(*Record)) (got Fetched, err error) {
	if len(f.answer) == 0 {
		if err := f.fetch(ctx, maxBytes); err != nil {
			return got, err
		}
	}
	for got.Bytes < maxBytes && len(f.answer) > 0 {
		b, rest, err := nextBatch(f.answer)
		if errors.Is(err, errPartial) {
			return got, f.partial(got.Records)
		}
		if err != nil {
			return got, err
		}
		if b.last >= f.next && f.isVisible(&b) {
			err := f.unpack.each(&b, f.next, func(r *Record) {
				got.Records++
				got.Bytes += len(r.Value)
				yield(r)
				f.next = r.Offset + 1 // a batch that breaks off goes on behind what was handed out
			})
			if err != nil {
				return got, err
			}
		}
		f.answer = rest
		f.next = max(f.next, b.last+1)
	}
	return got, nil
}

// partial handles an answer that ends within a batch. Brokers send the first one whole, unless they are old.
func (f *Fetcher) partial(records int) error {
	cut := len(f.answer)
	f.answer = nil
	if records > 0 || cut < f.ask/2 {
		return nil
	}
	if f.ask >= askBytesMax {
		return fmt.Errorf("%w: it is larger than %d bytes", ErrCorrupt, askBytesMax)
	}
	f.ask *= 2
	return nil
}

// isVisible follows transactions: it tells whether a batch holds records that count.
func (f *Fetcher) isVisible(b *recordBatch) bool {
	for len(f.aborted) > 0 && f.aborted[0].first <= b.last {
		f.active[f.aborted[0].producer] = true
		f.aborted = f.aborted[1:]
	}
	if b.attributes&control != 0 {
		delete(f.active, b.producer) // a marker ends the producer's transaction, whichever way
		return false
	}
	return b.attributes&transactional == 0 || !f.active[b.producer]
}

// fetch asks the partition's leader.
func (f *Fetcher) fetch(ctx context.Context, maxBytes int) error {
	if f.conn == nil || f.conn.broken.Load() {
		addr, err := f.client.leader(ctx, f.topic, f.partition)
		if err != nil {
			return err
		}
		if f.conn, err = f.client.dial(ctx, addr); err != nil {
			return err
		}
	}
	ask := int32(max(f.ask, min(maxBytes, askBytesMax)))
	// From version 13 on a topic goes by its identity, so that the broker itself refuses one that was recreated.
	version, ok := int16(13), false
	if f.topic.ID != (TopicID{}) {
		version, ok = f.conn.version(protocol.Fetch, 13)
	}
	if !ok {
		if version, ok = f.conn.version(protocol.Fetch, 4, 5, 6, 7, 8, 9, 10, 11); !ok {
			return codeError{kafka.UnsupportedVersion, "the broker is older than Kafka 0.11"}
		}
	}
	wait := f.client.cfg.MaxWait
	r, err := f.conn.exchange(ctx, protocol.Fetch, version, version >= 12, wait, func(w *writer) {
		f.request(w, version, int32(wait.Milliseconds()), ask)
	})
	if err != nil {
		return err
	}
	err = f.response(&r, version)
	switch {
	case isCode(err, kafka.OffsetOutOfRange):
		return f.gone(ctx)
	case isCode(err, kafka.UnknownTopicOrPartition), isCode(err, kafka.UnknownTopicID), isCode(err, kafka.InconsistentTopicID):
		if _, err := f.client.leader(ctx, f.topic, f.partition); err != nil {
			return err // deleted, or created again
		}
		return codeError{kafka.NotLeaderForPartition, "the broker does not know the topic yet"}
	}
	return err
}

func (f *Fetcher) request(w *writer, version int16, wait, bytes int32) {
	w.i32(-1) // no replica
	w.i32(wait)
	w.i32(1) // answer as soon as there is anything
	w.i32(bytes)
	w.i8(1) // committed records only
	if version >= 7 {
		w.i32(0)
		w.i32(-1) // no session: each fetch stands alone
	}
	w.array(1)
	if version >= 13 {
		w.b = append(w.b, f.topic.ID[:]...)
	} else {
		w.text(f.topic.Name)
	}
	w.array(1)
	w.i32(f.partition)
	if version >= 9 {
		w.i32(-1) // whatever the leader's epoch
	}
	w.i64(f.next)
	if version >= 12 {
		w.i32(-1) // nothing fetched from an earlier epoch
	}
	if version >= 5 {
		w.i64(-1) // no log of our own
	}
	w.i32(bytes)
	w.tags()
	w.tags()
	if version >= 7 {
		w.array(0) // forgotten topics
	}
	if version >= 11 {
		w.text("") // rack
	}
	w.tags()
}

func (f *Fetcher) response(r *reader, version int16) error {
	r.i32() // throttled for
	if version >= 7 {
		if err := codeErr(r.i16(), ""); err != nil {
			return err
		}
		r.i32()
	}
	if r.array() != 1 {
		return errShort
	}
	if version >= 13 {
		r.take(len(TopicID{}))
	} else {
		r.text()
	}
	if r.array() != 1 {
		return errShort
	}
	partition, code := r.i32(), r.i16()
	end := Fetched{HighWater: r.i64()}
	r.i64() // last stable offset: the broker stops there by itself
	if version >= 5 {
		end.Start = r.i64()
	}
	var aborted []abortedTransaction
	for range r.array() {
		aborted = append(aborted, abortedTransaction{r.i64(), r.i64()})
		r.tags()
	}
	if version >= 11 {
		r.i32() // preferred replica
	}
	records := r.bytes()
	switch {
	case r.err != nil:
		return r.err
	case code != 0:
		return codeErr(code, "")
	case partition != f.partition:
		return fmt.Errorf("the broker answers for partition %d", partition)
	case end.Start > f.next: // the log was cut while the broker read it
		return &OffsetGoneError{f.topic.Name, f.partition, f.next, end.Start, end.HighWater}
	}
	slices.SortFunc(aborted, func(a, b abortedTransaction) int { return int(min(1, max(-1, a.first-b.first))) })
	f.end, f.answer, f.aborted = end, records, aborted
	clear(f.active)
	return nil
}

// gone finds out which offsets are there.
func (f *Fetcher) gone(ctx context.Context) error {
	start, end, err := f.client.Offsets(ctx, f.topic, f.partition)
	if err != nil {
		return err
	}
	if start <= f.next && f.next <= end {
		return codeError{kafka.OffsetNotAvailable, "the leader is behind"} // a new leader that catches up
	}
	return &OffsetGoneError{f.topic.Name, f.partition, f.next, start, end}
}

package publisher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/weftdata/weft/correlate"
)

// Topic is the output topic. Writes to a partition stay in order; one that is tried again may be there twice.
type Topic interface {
	// Identity names the topic, and tells it from another of the same name made after it was deleted.
	Identity() string
	Partitions() int32
	// Bounds returns the first offset of a partition and the one after its last record.
	Bounds(ctx context.Context, partition int32) (first, end int64, err error)
	// Read yields the records at offsets from next to before end; some may be missing. The record is the caller's only
	// during the call.
	Read(ctx context.Context, partition int32, next, end int64, yield func(*Record) error) error
	// Add queues a record and copies it.
	Add(ctx context.Context, partition int32, r *Record) error
	// Flush waits until everything added is acknowledged.
	Flush(ctx context.Context) error
	// Acked returns the offset behind the last acknowledged record of a partition.
	Acked(partition int32) int64
	Close() error
}

// topicMark is where the topic stood at a checkpoint. All that stands before Next was right, and nothing of it is to be
// read again.
type topicMark struct {
	Topic     string  `json:"topic"`
	Publisher uint64  `json:"publisher"` // number of the start that wrote last
	Next      []int64 `json:"next"`      // by partition. Their number is that of the partitions in use
}

// topicOutlet feeds a topic. It counts what it adds, so that records of others, such as a late write of an earlier
// publisher, show by the offsets: behind such a record, compaction would keep the wrong one.
type topicOutlet struct {
	*Config
	status  *Status
	topic   Topic
	epoch   uint64
	next    []int64 // offsets that were accounted for
	added   []int64 // records since then
	written map[correlate.ID]Position
	strays  map[correlate.ID]Row
	scratch [correlate.IDTextBytes]byte
}

func newTopicOutlet(cfg *Config, status *Status, t Topic) *topicOutlet {
	return &topicOutlet{Config: cfg, status: status, topic: t, written: map[correlate.ID]Position{}, strays: map[correlate.ID]Row{}}
}

func (o *topicOutlet) close() error { return o.topic.Close() }

// open reads what came after the checkpoint. A row that stands there as its session's last one need not be written again.
func (o *topicOutlet) open(ctx context.Context, s *state) (known bool, err error) {
	o.epoch = s.Epoch
	var mark topicMark
	if len(s.Mark) > 0 {
		if err := json.Unmarshal(s.Mark, &mark); err != nil {
			return false, fmt.Errorf("read the checkpoint's mark of the topic: %w", err)
		}
	}
	known = mark.Topic == o.topic.Identity() && int32(len(mark.Next)) <= o.topic.Partitions()
	if !known {
		s.reset()
		mark.Next = make([]int64, o.topic.Partitions())
		known = true
		for i := range mark.Next {
			first, end, err := o.topic.Bounds(ctx, int32(i))
			if err != nil {
				return false, err
			}
			known = known && first == end
			mark.Next[i] = end
		}
	}
	o.next, o.added = mark.Next, make([]int64, len(mark.Next))
	for i := range o.next {
		if err := o.tail(ctx, int32(i), s, mark.Publisher); err != nil {
			return false, err
		}
	}
	return known, nil
}

// tail reads a partition from the checkpoint on.
func (o *topicOutlet) tail(ctx context.Context, partition int32, s *state, latest uint64) error {
	first, end, err := o.topic.Bounds(ctx, partition)
	if err != nil {
		return err
	}
	if end < o.next[partition] {
		return fmt.Errorf("partition %d of the output topic ends at offset %d, before the checkpoint's %d: records were lost (remove the checkpoint %s to compare everything)",
			partition, end, o.next[partition], stateKey(o.Job, TopicOutlet))
	}
	err = o.topic.Read(ctx, partition, max(first, o.next[partition]), end, func(r *Record) error {
		row, publisher, err := o.parse(r)
		if row == nil || err != nil {
			return err
		}
		last, ok := o.written[row.ID]
		latest = max(latest, publisher)
		// Behind a later publisher, behind a later row, or from before the checkpoint: it may have come late.
		old := row.At.Map < s.Map.Epoch || s.Switch == nil && s.covers(row.At)
		if publisher < latest || old || ok && row.At.Less(last) {
			o.stray(row)
			row.At = Position{} // is written again in any case
		}
		o.written[row.ID] = row.At
		return nil
	})
	o.next[partition] = end
	return err
}

// parse reads a record; row is nil where it is none of a session.
func (o *topicOutlet) parse(r *Record) (row *Row, publisher uint64, err error) {
	row, _, publisher, err = ParseRecord(r)
	if errors.Is(err, ErrForeign) {
		o.status.Foreign++
		return nil, 0, nil
	}
	if publisher > o.epoch {
		return nil, 0, fmt.Errorf("%w: the topic has records of start %d, this one is %d", ErrFenced, publisher, o.epoch)
	}
	return row, publisher, err
}

// partitionOf returns the partition of a session: FNV-1a, 32 bits, of the id's text, modulo the number of partitions.
func partitionOf(id []byte, partitions int) int32 {
	h := fnv.New32a()
	h.Write(id) // never fails
	return int32(h.Sum32() % uint32(partitions))
}

func (o *topicOutlet) put(ctx context.Context, r *Row) error {
	if last, ok := o.written[r.ID]; ok {
		delete(o.written, r.ID)
		if last == r.At && r.At != (Position{}) {
			o.status.Repeats++
			return nil
		}
	}
	record := recordOf(o.Job, o.epoch, r)
	return o.add(ctx, partitionOf(r.ID.Append(o.scratch[:0]), len(o.next)), &record)
}

func (o *topicOutlet) add(ctx context.Context, partition int32, r *Record) error {
	if err := o.topic.Add(ctx, partition, r); err != nil {
		return err
	}
	o.added[partition]++
	return nil
}

func (o *topicOutlet) full() bool { return false }

func (o *topicOutlet) switched(ctx context.Context, m Switched) error {
	value, err := json.Marshal(m)
	if err != nil {
		return err
	}
	for i := range o.next {
		r := Record{Key: []byte(SwitchKey), Value: value, Headers: headersOf(o.Job, o.epoch)}
		if err := o.add(ctx, int32(i), &r); err != nil {
			return err
		}
	}
	return nil
}

// flush waits for the acknowledgements and looks for records that are not from here.
func (o *topicOutlet) flush(ctx context.Context, _ *state) (mark []byte, strays []Row, err error) {
	if err := o.topic.Flush(ctx); err != nil {
		return nil, nil, err
	}
	for i := range o.next {
		partition := int32(i)
		_, end, err := o.topic.Bounds(ctx, partition)
		if err != nil {
			return nil, nil, err
		}
		if o.added[i] > 0 { // the high-water mark may lag
			end = max(end, o.topic.Acked(partition))
		}
		end = max(end, o.next[i])
		if end != o.next[i]+o.added[i] {
			if err := o.scan(ctx, partition, end); err != nil {
				return nil, nil, err
			}
		}
		o.next[i], o.added[i] = end, 0
	}
	for _, row := range o.strays {
		strays = append(strays, row)
	}
	clear(o.strays)
	mark, err = json.Marshal(topicMark{o.topic.Identity(), o.epoch, o.next})
	return mark, strays, err
}

// scan notes every session of a part of a partition where something stands that was not added now: a late write of an
// earlier publisher, or one of this run that was tried again.
func (o *topicOutlet) scan(ctx context.Context, partition int32, end int64) error {
	return o.topic.Read(ctx, partition, o.next[partition], end, func(r *Record) error {
		row, _, err := o.parse(r)
		if row == nil || err != nil {
			return err
		}
		o.stray(row)
		return nil
	})
}

// stray notes a session that is to be written again, at the highest position that stands in the topic: if it is gone, that
// must count.
func (o *topicOutlet) stray(row *Row) {
	if old, ok := o.strays[row.ID]; !ok || old.At.Less(row.At) {
		o.strays[row.ID] = Row{ID: row.ID, At: row.At, Start: row.Start}
	}
}

func (o *topicOutlet) view(ctx context.Context, yield func(*Row) error) error {
	for i := range o.next {
		first, end, err := o.topic.Bounds(ctx, int32(i))
		if err != nil {
			return err
		}
		err = o.topic.Read(ctx, int32(i), first, end, func(r *Record) error {
			row, _, err := o.parse(r)
			if row == nil || err != nil {
				return err
			}
			return yield(row)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

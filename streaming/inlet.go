package streaming

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/weftdata/weft/event"
)

// inlet reads the partition of the groups topic that is a shard's own. Of each source partition it takes every record once
// and in order, and drops what it has had: a producer that tries again, a repartitioner that starts again and two that are
// there at once only ever repeat what stands further ahead in the partition.
//
// It belongs to the goroutine that reads; next and end belong to the shard's.
type inlet struct {
	g       *Groups
	parts   []Partition              // of the sources
	numbers map[string]map[int32]int // of the source partitions, by topic and id
	taken   []int64                  // by source partition: what is before this offset was taken
	decoder recordDecoder
	groups  struct{ first, end uint16 } // the shard's own

	identity  string            // of the groups topic
	next, end int64             // offset to go on at, end of the partition when it was last read
	idle      map[int]time.Time // source partitions that are idle, with when that was last told
}

// arrived is what the inlet adds to a message: what a shard needs beside the records.
type arrived struct {
	taken []int64 // by source partition, once the message is applied
	marks []arrivedMark
	err   error
}

// arrivedMark is a mark of a source partition, by its number.
type arrivedMark struct {
	partition int
	groupMark
}

func newInlet(s *shard) *inlet {
	in := &inlet{g: s.cfg.Groups, parts: s.cfg.Partitions, numbers: map[string]map[int32]int{}, idle: map[int]time.Time{}}
	in.groups.first, in.groups.end = in.g.bounds()
	for i, p := range in.parts {
		if in.numbers[p.Topic] == nil {
			in.numbers[p.Topic] = map[int32]int{}
		}
		in.numbers[p.Topic][p.ID] = i
	}
	return in
}

// placeGroups sets the offsets to go on at, of the groups topic and of each source partition, and makes sure that they still mean
// what they did.
func (s *shard) placeGroups(ctx context.Context) error {
	in, p := s.inlet, s.cfg.Groups.partition()
	identity, err := s.cfg.Log.Identity(ctx, p.Topic)
	if err != nil {
		return fmt.Errorf("look up topic %s: %w", p.Topic, err)
	}
	first, end, err := s.cfg.Log.Bounds(ctx, p)
	if err != nil {
		return fmt.Errorf("look up the offsets of %s: %w", p, err)
	}
	was := partitionState{Topic: p.Topic, ID: p.ID, Identity: identity} // a shard's first run needs all that was ever written
	if g := s.saved.current.Groups; g != nil {
		was.Next = g.Next
		if err := s.cfg.Groups.same(g, identity); err != nil {
			return err
		}
	} else if s.saved.current.Version != 0 {
		return errors.New("the checkpoint is of the only shard of the job, and the run is one of several: run the job as a new version")
	}
	in.identity, in.end = identity, end
	if in.next, err = placed(p, &was, identity, first, end); err != nil {
		return err
	}
	for i := range s.saved.current.Partitions {
		if was := &s.saved.current.Partitions[i]; !has(s.cfg.Partitions, was) {
			return fmt.Errorf("partition %s/%d is in the checkpoint and not in the job: its records would be lost", was.Topic, was.ID)
		}
	}
	for i, one := range s.cfg.Partitions {
		s.next[i] = 0
		if state := s.saved.current.partition(one); state != nil {
			s.next[i] = state.Next
		}
	}
	in.taken = append(in.taken[:0], s.next...)
	return s.doubtIdle(func(int) bool { return true })
}

// doubtIdle lets idle source partitions hold the watermark again until a mark says that they are idle.
func (s *shard) doubtIdle(which func(partition int) bool) error {
	value, states := s.mark.State()
	for i := range states {
		if (groupMark{state: states[i].State}).idle() && which(i) {
			delete(s.inlet.idle, i)
			if states[i].State = markActive; states[i].Max == event.MinTime {
				states[i].State = markUnseen
			}
		}
	}
	return s.mark.SetState(value, states)
}

// expireIdle doubts what was not told for too long.
func (s *shard) expireIdle(now time.Time) error {
	if s.inlet == nil {
		return nil
	}
	expired := func(i int) bool { return now.Sub(s.inlet.idle[i]) > idleFor }
	for i := range s.inlet.idle {
		if expired(i) {
			return s.doubtIdle(expired)
		}
	}
	return nil
}

// readGroups starts to repartition, and a reader of what was repartitioned for this shard, as read does.
func (s *shard) readGroups(ctx context.Context, cancel func(error)) (out chan *message, done chan struct{}, err error) {
	out, done = make(chan *message), make(chan struct{})
	in, p := s.inlet, s.cfg.Groups.partition()
	if in.decoder, err = s.cfg.Job.NewDecoder(); err != nil {
		return nil, nil, err
	}
	r := s.newReader(p, in.next, out, func(free chan *message) *message { return &message{free: free, arrived: &arrived{}} })
	r.idleAfter = -1 // only sources can be idle; marks tell so
	r.fetch, r.decode = in.fetch(s, p), in.take
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.run(ctx); err != nil {
			cancel(fmt.Errorf("read %s: %w", p, err))
		}
	})
	running.Go(func() {
		if err := s.repartition.run(ctx); err != nil {
			cancel(err)
		}
	})
	go func() { running.Wait(); close(done) }()
	return out, done, nil
}

// fetch reads records and marks into a message.
func (in *inlet) fetch(s *shard, p Partition) func(context.Context, int64, *message) (int64, int64, error) {
	return func(ctx context.Context, next int64, m *message) (after, end int64, err error) {
		a := m.arrived
		a.taken, a.marks, a.err = append(a.taken[:0], in.taken...), a.marks[:0], nil
		after, end, err = in.g.Log.Records(ctx, p, next, s.cfg.FetchBytes, s.cfg.FetchWait, func(r *Raw) {
			if err := in.record(m, r); err != nil && a.err == nil {
				a.err = fmt.Errorf("record %d: %w", r.Offset, err)
			}
		})
		return after, end, errors.Join(err, a.err)
	}
}

// record takes in one record, unless it was taken before, or what a mark says, unless more is known.
func (in *inlet) record(m *message, r *Raw) error {
	a := m.arrived
	for i := range r.Headers {
		h := &r.Headers[i]
		if string(h.Key) != MarkHeader {
			continue
		}
		topic, id, mark, ok := parseMark(h.Value)
		if !ok {
			return fmt.Errorf("the header %s is %q; only the shards of this version may write to the topic", MarkHeader, h.Value)
		}
		n, err := in.number(topic, id)
		if err != nil {
			return err
		}
		if mark.position >= a.taken[n] {
			a.taken[n] = mark.position
			a.marks = append(a.marks, arrivedMark{n, mark})
		}
	}
	from := r.header(FromHeader)
	if from == nil && r.header(MarkHeader) != nil {
		return nil
	}
	topic, id, offset, timestamp, ok := parseFrom(from)
	if !ok {
		return fmt.Errorf("the header %s is %q; only the shards of this version may write to the topic", FromHeader, from)
	}
	n, err := in.number(topic, id)
	if err != nil || offset < a.taken[n] {
		return err
	}
	a.taken[n] = offset + 1
	size := len(r.Value)
	if text := r.header(SizeHeader); text != nil {
		if size, err = strconv.Atoi(string(text)); err != nil {
			return fmt.Errorf("the header %s: %w", SizeHeader, err)
		}
	}
	at := event.Record{Source: uint16(in.parts[n].Source), Partition: id, Offset: offset, Timestamp: timestamp}
	m.batch.AddLogged(at, r.Value, size, r.header(event.OriginHeader))
	return nil
}

func (in *inlet) number(topic []byte, id int32) (int, error) {
	n, ok := in.numbers[string(topic)][id]
	if !ok {
		return 0, fmt.Errorf("source partition %s/%d is not one that the run knows: partitions were added to the topic; it must start again", topic, id)
	}
	return n, nil
}

// take decodes the records of a message and keeps the events of the shard's own groups.
func (in *inlet) take(m *message) {
	in.taken = append(in.taken[:0], m.arrived.taken...)
	b := &m.batch
	for _, r := range b.Records {
		events := len(b.Events)
		in.decoder.DecodeRecord(b, r)
		keepGroups(b, events, in.groups.first, in.groups.end)
	}
}

// keepGroups drops the events from number i on whose group is not from first to before end.
func keepGroups(b *event.Batch, i int, first, end uint16) {
	start := uint32(0)
	if i > 0 {
		start = b.Events[i-1].Vals
	}
	keep, vals := i, start
	for ; i < len(b.Events); i++ {
		e := b.Events[i]
		values := b.Values[start:e.Vals]
		start = e.Vals
		if e.Group < first || e.Group >= end {
			continue
		}
		vals += uint32(copy(b.Values[vals:], values))
		e.Vals = vals
		b.Events[keep] = e
		keep++
	}
	b.Events, b.Values = b.Events[:keep], b.Values[:vals]
}

// applied notes that a message of the inlet is in the core; late is the number of late events before it. Marks come after
// the records: the watermark only moves when changes are gathered, so no record of the message is late because of them.
func (s *shard) applied(m *message, late int) {
	for _, mark := range m.arrived.marks {
		if mark.max != event.MinTime {
			s.mark.Observe(mark.partition, mark.max, event.MinTime) // it is bounded already
		}
		delete(s.inlet.idle, mark.partition)
		if mark.idle() {
			s.mark.Idle(mark.partition)
			s.inlet.idle[mark.partition] = time.Now()
		}
	}
	copy(s.next, m.arrived.taken)
	s.inlet.next, s.inlet.end = m.next, m.end
	s.changes.ages = append(s.changes.ages, m.ages...)

	b := &m.batch
	s.status.Rejects += int64(len(b.Rejects))
	for i := range b.Events {
		s.sources[b.Events[i].Source].Events++
	}
	for _, x := range s.changes.LateEvents[late:] {
		s.sources[x.Source].Late++
	}
	for i := range b.Rejects {
		s.changes.reject(b, &b.Rejects[i])
		of := &s.sources[b.Rejects[i].Record.Source]
		if of.Rejects == nil {
			of.Rejects = map[event.Reason]int64{}
		}
		of.Rejects[b.Rejects[i].Reason]++
	}
}

// reportGroups makes a status one of this shard and of its part in repartitioning.
func (s *shard) reportGroups(to *Status) {
	in := s.inlet
	to.Partitions = append(to.Partitions[:0:0], PartitionStatus{in.g.partition(), in.next, in.end})
	to.Lag = max(0, in.end-in.next)
	s.repartition.report(to)
}

package streaming

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// repartitioner reads some of a job's source partitions, and writes each record to the partition of every shard that has
// events of it: in order, from where everything before has been acknowledged. One goroutine owns it; readers and the upload
// of its manifest talk to it by channels.
//
// Nothing depends on its being alone. One that was overtaken and does not know it may write beside its successor: for each
// source partition, each of them writes a run of records without gaps that starts behind, or within, what is there already.
// So whoever reads on in the groups topic meets every record for the first time behind all that come before it in the
// source, and drops what it has had (inlet.go). Nor do marks lie that come late: what they say of the records before an
// offset stays true. The manifest is written on condition all the same, so that one that was overtaken ends.
type repartitioner struct {
	s      *shard // of which it uses what does not change
	g      *Groups
	parts  []Partition
	saved  checkpoints
	owner  [event.KeyGroups]uint8
	mark   *correlate.Watermark // of which only the states of the partitions are used
	topics map[string]string    // identities

	next, ends []int64 // by partition: offset to go on at, end when it was last read
	empty      []bool  // by partition: it held nothing when the run started
	past       []*past
	marked     []groupMark
	reminded   time.Time                                 // when all that is idle was last told
	names      struct{ from, origin, size, mark []byte } // of headers
	raw        Raw                                       // scratch
	text       []byte

	saving chan error // result of the upload that is under way; nil: none is

	mu     sync.Mutex // of what report reads
	counts []SourceStatus
	status []PartitionStatus // empty until it is known where the run starts
}

// routed is what a reader adds to a message for the repartitioner: where to the records go.
type routed struct {
	routes []route
	text   []byte // origins
}

// route is one record of a source partition.
type route struct {
	offset    int64
	timestamp event.Micros
	off, len  uint32 // of the value, in the batch's data
	size      int    // of the value before it was cut
	origin    [2]int // range of the text, where it has one
	hasOrigin bool
	rejected  bool // before it was decoded
	to        shardSet
}

func newRepartitioner(s *shard) *repartitioner {
	g := s.cfg.Groups
	p := &repartitioner{
		s: s, g: g, owner: g.owners(), topics: map[string]string{},
		saved:  checkpoints{objects: s.cfg.Objects, prefix: s.cfg.Name + "/sources/"},
		counts: make([]SourceStatus, len(s.cfg.Job.Spec.Sources)),
	}
	p.names.from, p.names.origin = []byte(FromHeader), []byte(event.OriginHeader)
	p.names.size, p.names.mark = []byte(SizeHeader), []byte(MarkHeader)
	for _, one := range s.cfg.Partitions {
		if g.repartitions(one) {
			p.parts = append(p.parts, one)
		}
	}
	n := len(p.parts)
	p.next, p.ends, p.empty, p.marked = make([]int64, n), make([]int64, n), make([]bool, n), make([]groupMark, n)
	p.past = make([]*past, n)
	return p
}

// run repartitions until ctx is done or something fails.
func (p *repartitioner) run(outer context.Context) error {
	if err := p.start(outer); err != nil {
		return fmt.Errorf("start to repartition: %w", err)
	}
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	in, done, err := p.read(ctx, cancel)
	if err != nil {
		return err
	}
	p.mu.Lock()
	for i, one := range p.parts {
		p.status = append(p.status, PartitionStatus{one, p.next[i], p.ends[i]})
	}
	p.mu.Unlock()
	err = p.loop(ctx, in)
	cancel(err)
	<-done
	stop, end := context.WithTimeout(context.WithoutCancel(outer), p.s.cfg.StopWithin/4)
	defer end()
	if p.saving != nil {
		<-p.saving // its context has ended with ctx
	}
	if outer.Err() == nil {
		return fmt.Errorf("repartition: %w", err)
	}
	// What is saved now need not be written again. It is no loss if that fails.
	if err := p.g.Out.Flush(stop); err != nil {
		p.s.log.Warn("the last records were not acknowledged and will be repartitioned again", "error", err)
		return nil
	}
	if err := p.saved.put(stop, p.manifest()); err != nil {
		p.s.log.Warn("the last offsets were not saved and will be repartitioned again", "error", err)
	}
	return nil
}

// start finds where to go on, and makes the manifest this run's.
func (p *repartitioner) start(ctx context.Context) error {
	return p.s.retry(ctx, "take over the repartitioning", func() error {
		err := p.claim(ctx)
		for errors.Is(err, ErrFenced) && p.saved.overtaken < p.s.epoch {
			err = p.claim(ctx) // an earlier run saved just now: go on from there
		}
		return err
	})
}

func (p *repartitioner) claim(ctx context.Context) error {
	if _, err := p.saved.read(ctx); err != nil {
		return err
	}
	if there := p.saved.current.Epoch; there > p.s.epoch {
		p.saved.overtaken = there
		return fmt.Errorf("%w: the manifest is of epoch %d, this run of %d", ErrFenced, there, p.s.epoch)
	}
	if err := p.place(ctx); err != nil {
		return err
	}
	// Where a run starts must be written down before it writes the first record: one that starts after it must not start at
	// a later offset because retention has deleted some meanwhile.
	return p.saved.put(ctx, p.manifest())
}

// place sets the offsets to go on at, and makes sure that they still mean what they did.
func (p *repartitioner) place(ctx context.Context) error {
	var errs []error
	p.mark = correlate.NewWatermark(correlate.WatermarkConfig{}, len(p.parts))
	for i, one := range p.parts {
		identity, err := p.identity(ctx, one.Topic)
		if err != nil {
			return err
		}
		state := p.saved.current.partition(one)
		first, end, err := p.s.cfg.bounds(ctx, one, state)
		if err != nil {
			return err
		}
		if p.next[i], err = placed(one, state, identity, first, end); err != nil {
			errs = append(errs, err)
			continue
		}
		if p.past[i], err = p.s.cfg.openPast(ctx, one, state, p.next[i]); err != nil {
			return err
		}
		p.ends[i], p.empty[i], p.marked[i] = end, first == end, groupMark{}
		// What was idle may have got records since: until it is seen to be idle again, it counts.
		if state != nil && state.MaxTime != int64(event.MinTime) {
			p.mark.Observe(i, event.Micros(state.MaxTime), event.MinTime)
		}
	}
	for i := range p.saved.current.Partitions {
		if was := &p.saved.current.Partitions[i]; !has(p.parts, was) {
			errs = append(errs, fmt.Errorf("partition %s/%d was repartitioned by this shard and is gone: its records would be lost", was.Topic, was.ID))
		}
	}
	return errors.Join(errs...)
}

func (p *repartitioner) identity(ctx context.Context, topic string) (string, error) {
	if identity, ok := p.topics[topic]; ok {
		return identity, nil
	}
	identity, err := p.s.cfg.Log.Identity(ctx, topic)
	if err != nil {
		return "", fmt.Errorf("look up topic %s: %w", topic, err)
	}
	p.topics[topic] = identity
	return identity, nil
}

// manifest describes where the repartitioning is. It is true once everything that was added is acknowledged.
func (p *repartitioner) manifest() manifest {
	_, states := p.mark.State()
	m := manifest{
		Version: manifestVersion, Shard: p.s.cfg.Name, Epoch: p.s.epoch, Nonce: newNonce(), Number: p.saved.current.Number + 1,
	}
	for i, one := range p.parts {
		m.Partitions = append(m.Partitions, partitionState{
			Topic: one.Topic, ID: one.ID, Identity: p.topics[one.Topic], Next: p.next[i], MaxTime: int64(states[i].Max), State: states[i].State,
			Past: p.past[i].state(p.next[i]),
		})
	}
	return m
}

// read starts a reader for each partition.
func (p *repartitioner) read(ctx context.Context, cancel func(error)) (in chan *message, done chan struct{}, err error) {
	in, done = make(chan *message), make(chan struct{})
	var running sync.WaitGroup
	var readers []*reader
	for i, one := range p.parts {
		d, err := p.s.cfg.Job.NewDecoder()
		if err != nil {
			return nil, nil, err
		}
		r := p.s.newReader(one, p.next[i], in, func(free chan *message) *message {
			return &message{partition: i, free: free, routed: &routed{}}
		})
		r.empty = p.empty[i]
		r.fetch = func(ctx context.Context, next int64, m *message) (int64, int64, error) {
			return p.fetch(ctx, one, next, m)
		}
		r.decode = func(m *message) { p.route(d, one, m) }
		readers = append(readers, r)
	}
	for _, r := range readers {
		running.Go(func() {
			if err := r.run(ctx); err != nil {
				cancel(fmt.Errorf("read %s: %w", r.p, err))
			}
		})
	}
	go func() { running.Wait(); close(done) }()
	return in, done, nil
}

// fetch reads records of a source partition, with where each of them stands.
func (p *repartitioner) fetch(ctx context.Context, one Partition, next int64, m *message) (after, end int64, err error) {
	b, to := &m.batch, m.routed
	to.routes, to.text = to.routes[:0], to.text[:0]
	return p.g.Log.Records(ctx, one, next, p.s.cfg.FetchBytes, p.s.cfg.FetchWait, func(r *Raw) {
		if r.Value == nil { // a deletion in a compacted topic is no event
			return
		}
		off, records := uint32(len(b.Data)), len(b.Records)
		origin := r.header(event.OriginHeader)
		at := event.Record{Source: uint16(one.Source), Partition: one.ID, Offset: r.Offset, Timestamp: r.Timestamp}
		b.AddLogged(at, r.Value, len(r.Value), origin)
		text := len(to.text)
		to.text = append(to.text, origin...)
		to.routes = append(to.routes, route{
			offset: r.Offset, timestamp: r.Timestamp, off: off, len: uint32(len(b.Data)) - off, size: len(r.Value),
			origin: [2]int{text, len(to.text)}, hasOrigin: origin != nil, rejected: len(b.Records) == records,
		})
	})
}

// route decodes records to learn whose they are. A reject goes to one shard, by its identity, so that its repetitions go
// there too, and is rejected again there. What a source's filter leaves nothing of goes nowhere.
func (p *repartitioner) route(d recordDecoder, one Partition, m *message) {
	b, to := &m.batch, m.routed
	k := 0 // next record
	for i := range to.routes {
		r := &to.routes[i]
		at := event.Record{Source: uint16(one.Source), Partition: one.ID, Offset: r.offset}
		rejects, events := len(b.Rejects), len(b.Events)
		if !r.rejected {
			at = b.Records[k]
			k++
			d.DecodeRecord(b, at)
		}
		if r.rejected || len(b.Rejects) > rejects {
			r.to.add(p.owner[groupOfRecord(at)])
			continue
		}
		for _, e := range b.Events[events:] {
			r.to.add(p.owner[e.Group])
		}
	}
}

// recordDecoder decodes one record of a batch; an operator.Decoder does.
type recordDecoder interface {
	DecodeRecord(b *event.Batch, r event.Record)
}

// groupOfRecord spreads what has no key group.
func groupOfRecord(r event.Record) uint16 {
	var id [14]byte
	binary.LittleEndian.PutUint64(id[:], uint64(r.Offset))
	binary.LittleEndian.PutUint32(id[8:], uint32(r.Partition))
	binary.LittleEndian.PutUint16(id[12:], r.Source)
	return event.Group(id[:])
}

// loop writes what the readers bring, and marks, until ctx is done.
func (p *repartitioner) loop(ctx context.Context, in chan *message) error {
	mark := time.NewTicker(p.g.MarkEvery)
	defer mark.Stop()
	save := time.NewTicker(p.g.SaveEvery)
	defer save.Stop()
	for {
		var err error
		select {
		case m := <-in:
			err = p.forward(ctx, m)
		case <-mark.C:
			err = p.writeMarks(ctx)
		case <-save.C:
			if p.saving == nil {
				err = p.save(ctx)
			}
		case err = <-p.saving:
			p.saving = nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// forward writes the records of a message.
func (p *repartitioner) forward(ctx context.Context, m *message) error {
	defer func() { m.free <- m }()
	if m.idle {
		p.mark.Idle(m.partition)
		return nil
	}
	b := &m.batch
	// The groups topic is to keep the records for some days from now on, whenever the source got them.
	p.raw.Timestamp = event.Micros(time.Now().UnixMicro())
	for i := range m.routed.routes {
		if err := p.write(ctx, p.parts[m.partition], m, &m.routed.routes[i]); err != nil {
			return err
		}
	}
	if to := p.past[m.partition].hold(m.next, m.newest); to != event.MinTime {
		p.mark.Observe(m.partition, to, event.MinTime) // it is bounded already
	}
	p.next[m.partition], p.ends[m.partition] = m.next, m.end

	p.mu.Lock()
	defer p.mu.Unlock()
	p.status[m.partition].Next, p.status[m.partition].End = m.next, m.end
	c := &p.counts[p.parts[m.partition].Source]
	c.Records += int64(len(b.Records))
	c.Bytes += m.bytes
	c.Skipped += b.Skipped
	return nil
}

// write writes one record to all shards that have events of it.
func (p *repartitioner) write(ctx context.Context, one Partition, m *message, r *route) error {
	if r.to == (shardSet{}) {
		return nil
	}
	raw := &p.raw
	raw.Value, raw.Headers = m.batch.Data[r.off:r.off+r.len], raw.Headers[:0]
	p.text = appendFrom(p.text[:0], one, r.offset, r.timestamp)
	raw.Headers = append(raw.Headers, Header{Key: p.names.from, Value: p.text})
	if r.hasOrigin {
		raw.Headers = append(raw.Headers, Header{Key: p.names.origin, Value: m.routed.text[r.origin[0]:r.origin[1]]})
	}
	if r.size > int(r.len) {
		raw.Headers = append(raw.Headers, Header{Key: p.names.size, Value: strconv.AppendInt(nil, int64(r.size), 10)})
	}
	return r.to.each(func(shard int32) error { return p.g.Out.Add(ctx, shard, raw) })
}

// writeMarks tells all shards how far the source partitions are whose state has changed, or that are idle. What was written for a mark's
// offset stands before it in every partition.
func (p *repartitioner) writeMarks(ctx context.Context) error {
	_, states := p.mark.State()
	raw := &p.raw
	raw.Timestamp, raw.Value, raw.Headers = event.Micros(time.Now().UnixMicro()), nil, raw.Headers[:0]
	p.text = p.text[:0]
	remind := time.Since(p.reminded) >= idleAgain
	if remind {
		p.reminded = time.Now()
	}
	var ends []int
	for i, one := range p.parts {
		m := groupMark{p.next[i], states[i].Max, states[i].State}
		if m.state == markUnseen || m == p.marked[i] && !(remind && m.idle()) {
			continue
		}
		p.marked[i] = m
		p.text = appendMark(p.text, one, m)
		ends = append(ends, len(p.text))
	}
	start := 0
	for _, end := range ends {
		raw.Headers = append(raw.Headers, Header{Key: p.names.mark, Value: p.text[start:end]})
		start = end
	}
	if len(ends) == 0 {
		return nil
	}
	for shard := range int32(p.g.Shards) {
		if err := p.g.Out.Add(ctx, shard, raw); err != nil {
			return err
		}
	}
	return nil
}

// save waits until everything is acknowledged and starts to save how far that is. Waiting takes one exchange with the
// brokers; the upload goes on beside the input.
func (p *repartitioner) save(ctx context.Context) error {
	if err := p.g.Out.Flush(ctx); err != nil {
		return fmt.Errorf("write to %s: %w", p.g.Topic, err)
	}
	m, done := p.manifest(), make(chan error, 1)
	p.saving = done
	go func() {
		done <- p.s.retry(ctx, "save offsets", func() error { return p.saved.put(ctx, m) })
	}()
	return nil
}

// report adds to a shard's status what this part of it has read of the sources. A record counts once, here, however many
// shards have events of it.
func (p *repartitioner) report(to *Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	to.Records = 0
	for i := range p.counts {
		c := &p.counts[i]
		to.Records += c.Records
		if i < len(to.Sources) {
			to.Sources[i].Records, to.Sources[i].Bytes, to.Sources[i].Skipped = c.Records, c.Bytes, c.Skipped
		}
	}
	for _, one := range p.status {
		to.Lag += max(0, one.End-one.Next)
	}
	to.Partitions = append(to.Partitions, p.status...)
}

package backfill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/store"
)

// memory implements ObjectStore. It can die at a call: before or after that took effect.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	nonces  map[string]string
	calls   int
	dieAt   int // number of the call; 0: never
	after   bool
	dead    bool
	read    map[string]int64 // bytes of ranges that were read, by key
	called  func()           // with each call; may be nil
}

var errDied = errors.New("the process died")

func newMemory() *memory {
	return &memory{objects: map[string][]byte{}, nonces: map[string]string{}, read: map[string]int64{}}
}

// call runs one call, or dies.
func (m *memory) call(do func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.called != nil {
		m.called()
	}
	if m.dead || m.dieAt == m.calls && !m.after {
		m.dead = true
		return errDied
	}
	err := do()
	if m.dieAt == m.calls {
		m.dead = true
		return errDied
	}
	return err
}

func (m *memory) Get(_ context.Context, key string) (data []byte, info objstore.Info, err error) {
	err = m.call(func() error {
		stored, ok := m.objects[key]
		if !ok {
			return fmt.Errorf("get %s: %w", key, objstore.ErrNotFound)
		}
		data, info = slices.Clone(stored), objstore.Info{Key: key, Size: int64(len(stored))}
		return nil
	})
	return data, info, err
}

func (m *memory) GetRange(_ context.Context, key string, from, n int64) (data []byte, err error) {
	err = m.call(func() error {
		stored, ok := m.objects[key]
		if !ok {
			return fmt.Errorf("get %s: %w", key, objstore.ErrNotFound)
		}
		data = slices.Clone(stored[min(from, int64(len(stored))):min(from+n, int64(len(stored)))])
		m.read[key] += int64(len(data))
		return nil
	})
	return data, err
}

func (m *memory) Put(_ context.Context, key string, body io.ReadSeeker, size int64) (objstore.Info, error) {
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return objstore.Info{}, err
	}
	data, err := io.ReadAll(body)
	if err == nil && int64(len(data)) != size {
		err = fmt.Errorf("put %s: %d bytes of %d", key, len(data), size)
	}
	if err != nil {
		return objstore.Info{}, err
	}
	return objstore.Info{Key: key}, m.call(func() error { m.objects[key] = data; return nil })
}

func (m *memory) PutIfAbsent(_ context.Context, key string, data []byte, nonce string) (objstore.Info, error) {
	return objstore.Info{Key: key}, m.call(func() error {
		if _, ok := m.objects[key]; ok && m.nonces[key] != nonce {
			return fmt.Errorf("put %s: %w", key, objstore.ErrPrecondition)
		}
		m.objects[key], m.nonces[key] = slices.Clone(data), nonce
		return nil
	})
}

func (m *memory) Delete(_ context.Context, key string) error {
	return m.call(func() error { delete(m.objects, key); return nil })
}

func (m *memory) List(_ context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		var list []objstore.Info
		err := m.call(func() error {
			for _, key := range m.keys(prefix) {
				if key > after {
					data := m.objects[key]
					list = append(list, objstore.Info{Key: key, Size: int64(len(data)), ETag: fmt.Sprint(crc32.ChecksumIEEE(data))})
				}
			}
			return nil
		})
		if err != nil {
			yield(objstore.Info{}, err)
			return
		}
		for _, info := range list {
			if !yield(info, nil) {
				return
			}
		}
	}
}

// revive lets a store answer again, and die at another call.
func (m *memory) revive(dieAt int, after bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls, m.dieAt, m.after, m.dead = 0, dieAt, after, false
}

// keys lists the objects below a prefix.
func (m *memory) keys(prefix string) (list []string) {
	for _, key := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(key, prefix) {
			list = append(list, key)
		}
	}
	return list
}

// world is a small random archive, and jobs that link it in different ways.
type world struct {
	t       *testing.T
	seed    uint64
	r       *rand.Rand
	objects *memory
	old     *operator.Job // what is served
	new     *operator.Job // what is backfilled
	records []archive.Record
	span    int64 // seconds of event time
}

const worldStart = 1_767_225_600 // seconds

func second(n int64) event.Micros { return event.Micros(worldStart+n) * 1_000_000 }

func worldJob(gap, orderGap, maxSpan int, more string) string {
	return fmt.Sprintf(`version: weft/v1
job: shop
sources:
  a:
    topic: ta
    format: json
    time: {field: t, layout: unix_s}
    step: e
    keys: {order: o, txn: x}
    fields: {user: u, game: g, amount: m}
    %s
  b:
    topic: tb
    format: json
    time: {field: t, layout: unix_s}
    step: e
    keys: {order: o, txn: x}
    fields: {game: g}
session: {gap: %ds, gaps: {order: %ds}, settle: 5s, max_span: %ds, retention: 60s}
user: user
scenarios:
  - {name: stuck, when: 'step("paid").count > 0 && step("done").count == 0'}
  - {name: slow, when: 'duration > duration("20s")'}
reports:
  - {name: funnel, every: 20s, by: [game], measures: {n: count(), money: sum(amount), stuck: count(stuck)}}
  - {name: total, every: 1m, measures: {n: count(), events: sum(events)}}
limits: {timeline_events: %d}
`, more, gap, orderGap, maxSpan, 1000)
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 9)), objects: newMemory(), span: 600}
	r := w.r
	spans := []int{30, 60, 90}
	pick := func() string {
		span := spans[r.IntN(len(spans))]
		return worldJob(1+r.IntN(12), 1+r.IntN(30), span, "")
	}
	w.new = compile(t, pick())
	w.old = w.new
	if r.IntN(3) > 0 {
		w.old = compile(t, pick())
	}
	w.generate(150 + r.IntN(250))
	w.archive(r.IntN(3) == 0)
	return w
}

// generate makes records of two topics with two partitions each.
func (w *world) generate(n int) {
	r := w.r
	orders, txns := 5+r.IntN(60), 5+r.IntN(60)
	if r.IntN(4) == 0 { // chains that hardly end
		orders, txns = 1+r.IntN(3), 1+r.IntN(3)
	}
	next := map[string]int64{}
	quiet := r.Int64N(w.span) // a time without events, so that chains end somewhere
	for range n {
		at := r.Int64N(w.span)
		if at > quiet && at < quiet+40 {
			continue
		}
		topic, partition := []string{"ta", "tb"}[r.IntN(2)], int32(r.IntN(2))
		text := fmt.Sprintf(`{"t":%d,"e":"%s","g":"g%d","m":%d`, worldStart+at, []string{"made", "paid", "done"}[r.IntN(3)], r.IntN(2), r.IntN(100))
		if r.IntN(5) > 0 {
			text += fmt.Sprintf(`,"o":"o%d"`, (int(at)/8+r.IntN(6))%orders)
		}
		if r.IntN(3) == 0 {
			text += fmt.Sprintf(`,"x":"x%d"`, (int(at)/12+r.IntN(4))%txns)
		}
		if r.IntN(2) == 0 {
			text += fmt.Sprintf(`,"u":"u%d"`, r.IntN(4))
		}
		text += "}"
		if r.IntN(25) == 0 {
			text = `{"t":`
		}
		key := fmt.Sprint(topic, partition)
		stamp := second(at + r.Int64N(30))
		if r.IntN(40) == 0 {
			stamp = second(at + r.Int64N(5000)) // archived much later
		}
		w.records = append(w.records, archive.Record{Topic: topic, Partition: partition, Offset: next[key], Timestamp: stamp, Value: []byte(text)})
		next[key]++
	}
}

// archive writes the records as an archiver would, with files of random length; bare: some have no statistics.
func (w *world) archive(bare bool) {
	for _, topic := range []string{"ta", "tb"} {
		for partition := range int32(2) {
			var mine []archive.Record
			for _, x := range w.records {
				if x.Topic == topic && x.Partition == partition {
					mine = append(mine, x)
				}
			}
			// About in order of time, as they would come.
			slices.SortStableFunc(mine, func(a, b archive.Record) int { return int(a.Timestamp - b.Timestamp) })
			for i := range mine {
				mine[i].Offset = int64(i)
			}
			w.renumber(topic, partition, mine)
			for from, sequence := 0, int64(0); from < len(mine); sequence++ {
				to := min(len(mine), from+1+w.r.IntN(20))
				w.file(topic, partition, sequence, mine[from:to], !bare || w.r.IntN(2) == 0)
				from = to
			}
		}
	}
}

// renumber keeps what was archived as the records of the world.
func (w *world) renumber(topic string, partition int32, mine []archive.Record) {
	w.records = slices.DeleteFunc(w.records, func(x archive.Record) bool { return x.Topic == topic && x.Partition == partition })
	w.records = append(w.records, mine...)
}

func (w *world) file(topic string, partition int32, sequence int64, records []archive.Record, measured bool) {
	putArchive(w.t, w.objects, topic, partition, sequence, records, func(records []archive.Record) []archive.Times {
		if !measured {
			return nil
		}
		return timesOf(w.t, w.new, records)
	})
}

// putArchive writes a data file and its manifest.
func putArchive(t *testing.T, m *memory, topic string, partition int32, sequence int64, records []archive.Record, times func([]archive.Record) []archive.Times) {
	t.Helper()
	var b bytes.Buffer
	out := archive.NewWriter(&b)
	if err := errors.Join(out.WriteAll(records), out.Close()); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	first, last := records[0], records[len(records)-1]
	stamps := &archive.Span{Least: event.MaxTime, Greatest: event.MinTime}
	timeless := int64(0)
	for _, x := range records {
		if x.Timestamp == event.MinTime {
			timeless++
			continue
		}
		stamps.Least, stamps.Greatest = min(stamps.Least, x.Timestamp), max(stamps.Greatest, x.Timestamp)
	}
	manifest := &archive.Manifest{Topic: topic, Partition: partition, Sequence: sequence, Nonce: "n", From: first.Offset, To: last.Offset + 1,
		Records: int64(len(records)), Files: []archive.DataFile{{Key: archive.DataKey(topic, partition, sequence, "n", 0), Bytes: int64(b.Len()),
			SHA256: hex.EncodeToString(sum[:]), Records: int64(len(records)), LeastOffset: first.Offset, GreatestOffset: last.Offset,
			Timestamps: stamps, Timeless: timeless, Times: times(records)}}}
	if timeless == int64(len(records)) {
		manifest.Files[0].Timestamps = nil
	}
	text, err := manifest.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m.objects[manifest.Files[0].Key] = slices.Clone(b.Bytes())
	m.objects[archive.ManifestKey(topic, partition, sequence)] = text
}

// timesOf measures records as an archiver does.
func timesOf(t *testing.T, job *operator.Job, records []archive.Record) []archive.Times {
	t.Helper()
	number := slices.Index(job.Config.Topics, records[0].Topic)
	b := decodeRecords(t, job, records)
	x := archive.Times{Job: job.Spec.Job, Source: job.Spec.Sources[number].Name, Fingerprint: job.Fingerprint(number),
		Events: int64(len(b.Events)), Rejects: int64(len(b.Rejects))}
	for _, e := range b.Events {
		if x.Event == nil {
			x.Event = &archive.Span{Least: e.Time, Greatest: e.Time}
		}
		x.Event.Least, x.Event.Greatest = min(x.Event.Least, e.Time), max(x.Event.Greatest, e.Time)
	}
	return []archive.Times{x}
}

func decodeRecords(t *testing.T, job *operator.Job, records []archive.Record) *event.Batch {
	t.Helper()
	d, err := job.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	b := new(event.Batch)
	for _, x := range records {
		number := slices.Index(job.Config.Topics, x.Topic)
		b.AddLogged(event.Record{Source: uint16(number), Partition: x.Partition, Offset: x.Offset, Timestamp: x.Timestamp}, x.Value, len(x.Value), nil)
	}
	d.Decode(b)
	return b
}

// result is what a core gives for the records: rows of the store, and what events each has.
type result struct {
	t      *testing.T
	job    *operator.Job
	batch  store.Batch
	events map[store.ID]map[identity]bool
	tally  *correlate.Tally
	rows   map[store.ID]*correlate.Row
	digest *correlate.Digester
	enc    *store.Encoder
}

func (x *result) Upsert(seq uint64, r *correlate.Row) {
	x.enc.Upsert(&x.batch, seq, r)
	x.events[r.ID] = map[identity]bool{}
	for _, e := range r.Events {
		x.events[r.ID][identityOf(topicHash(x.job.Config.Topics[e.Source]), e.Partition, e.Offset, e.Index)] = true
	}
	x.digest.Row(r)
	row := *r
	row.Fields, row.Hits = slices.Clone(r.Fields), slices.Clone(r.Hits)
	for i := range row.Fields {
		row.Fields[i].Text = slices.Clone(row.Fields[i].Text)
	}
	row.Keys, row.Events = nil, nil
	x.rows[r.ID] = &row
}
func (x *result) Tombstone(uint64, correlate.ID) { x.t.Error("a tombstone") }
func (x *result) Cell(seq uint64, c *correlate.Cell) {
	x.enc.Cell(&x.batch, seq, c)
	x.digest.Cell(c)
}
func (x *result) Late(*event.Batch, int) { x.t.Error("a late event") }

// compute links records at once: the definition of what a backfill gives.
func compute(t *testing.T, job *operator.Job, records []archive.Record) *result {
	t.Helper()
	x := &result{t: t, job: job, events: map[store.ID]map[identity]bool{}, rows: map[store.ID]*correlate.Row{},
		digest: correlate.NewDigester(&job.Config), enc: store.NewEncoder(&job.Config, results.MetaOf(job.Spec))}
	core, err := correlate.New(job.Config)
	if err == nil {
		err = core.Apply(decodeRecords(t, job, records), x)
	}
	if err != nil {
		t.Fatal(err)
	}
	core.Advance(event.MaxTime, x)
	core.Flush(x)
	return x
}

// plan makes a plan; cuts, where there are some, are where chunks begin, which the plan itself would choose.
func (w *world) plan(change func(*PlanInput), cuts ...event.Micros) (*Plan, error) {
	in := PlanInput{Ref: PlanRef{"shop", "b1"}, Job: w.new, Version: 2, Checksum: "sum", Objects: w.objects, From: second(0), To: second(w.span),
		Slice: SliceDefault}
	if change != nil {
		change(&in)
	}
	if len(cuts) == 0 {
		return MakePlan(w.t.Context(), in)
	}
	if err := in.validate(); err != nil {
		return nil, err
	}
	a, err := readArchive(w.t.Context(), &in)
	if err != nil {
		return nil, err
	}
	p := &Plan{Format: stageFormat, Ref: in.Ref, Version: in.Version, Checksum: in.Checksum, Asked: TimeRange{in.From, in.To}}
	d := drawing{in: &in, plan: p, archive: a}
	if err := d.clip(); err != nil {
		return nil, err
	}
	if _, err := d.draw(); err != nil {
		return nil, err
	}
	var list []TimeRange
	from := p.Owned.From
	slices.Sort(cuts)
	for _, at := range append(cuts, p.Owned.To) {
		if at > from && at <= p.Owned.To {
			list = append(list, TimeRange{from, at})
			from = at
		}
	}
	chunks, _ := d.slices(list)
	if err := d.store(w.t.Context(), "n", chunks); err != nil {
		return nil, err
	}
	_, err = commit(w.t.Context(), in.Objects, in.Ref.planKey(), p, "n")
	return p, err
}

// runAll runs all slices of a plan, chunks in random order.
func (w *world) runAll(p *Plan, change func(*SliceInput)) error {
	for _, chunk := range w.r.Perm(len(p.Chunks)) {
		for slice := range p.Chunks[chunk].Slices {
			in := SliceInput{Plan: p.Ref, Chunk: chunk, Slice: slice, Job: w.new, Objects: w.objects, Decoders: 2, TempDir: w.t.TempDir()}
			if change != nil {
				change(&in)
			}
			r, err := RunSlice(w.t.Context(), in, nil)
			if err != nil {
				return err
			}
			if r.Done {
				break
			}
		}
	}
	return nil
}

// newStore opens a serving store of its own.
func newStore(t *testing.T) *store.Store {
	t.Helper()
	now := time.Unix(worldStart, 0)
	s, err := store.Open(t.Context(), "sqlite:"+t.TempDir(), store.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// serve writes a result as the live generation of a version, and serves it.
func serve(t *testing.T, s *store.Store, x *result) int64 {
	t.Helper()
	ctx := t.Context()
	g, err := s.CreateGeneration(ctx, "shop", "1", "live")
	if err != nil {
		t.Fatal(err)
	}
	epoch, err := s.TakeEpoch(ctx, "shop", g.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	x.batch.Progress = &store.Mark{Seq: 1 << 40, Watermark: event.MaxTime, Settle: x.job.Config.Session.Settle, MaxSpan: x.job.Config.Session.MaxSpan}
	if err := s.Write(ctx, store.Owner{Generation: g.ID, Epoch: epoch}, &x.batch); err != nil {
		t.Fatal(err)
	}
	_, err = s.Switch(ctx, store.SwitchRequest{Job: "shop", RequestID: "live", Assignments: []store.Assignment{{From: event.MinTime, To: event.MaxTime, Generation: g.ID}}})
	if err != nil {
		t.Fatal(err)
	}
	return g.ID
}

package publisher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/store"
)

const job = "payments"

var errKilled = errors.New("killed")

// faults lets a run die at a chosen call: before the call does anything, or when it has done it. From then on every call of
// that run fails.
type faults struct {
	mu    sync.Mutex
	calls int
	at    int  // call that dies; -1: none
	after bool // it did what it should
	dead  bool
}

func (f *faults) call(do func() error) error {
	f.mu.Lock()
	n := f.calls
	f.calls++
	dies := n == f.at
	dead := f.dead
	f.dead = dead || dies
	f.mu.Unlock()
	if dead || dies && !f.after {
		return errKilled
	}
	if err := do(); err != nil {
		return err
	}
	if dies {
		return errKilled
	}
	return nil
}

func (f *faults) isDead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// fakeLog is a topic as a broker keeps it.
type fakeLog struct {
	mu         sync.Mutex
	id         string
	partitions [][]Record
	late       []lateWrite // of writers that died: under way until arrive is called
}

type lateWrite struct {
	partition int32
	records   []Record
}

func newLog(partitions int) *fakeLog {
	return &fakeLog{id: "1", partitions: make([][]Record, partitions)}
}

func (l *fakeLog) append(p int32, records []Record) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partitions[p] = append(l.partitions[p], records...)
	return int64(len(l.partitions[p]))
}

// arrive lets what is under way from dead writers arrive.
func (l *fakeLog) arrive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.late {
		l.partitions[w.partition] = append(l.partitions[w.partition], w.records...)
	}
	l.late = nil
}

// compacted returns what compaction leaves: the last record of each key of each partition.
func (l *fakeLog) compacted() (list []Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.partitions {
		last := map[string]int{}
		for i, r := range p {
			last[string(r.Key)] = i
		}
		for i, r := range p {
			if last[string(r.Key)] == i {
				list = append(list, r)
			}
		}
	}
	return list
}

// fakeTopic writes a fakeLog.
type fakeTopic struct {
	log     *fakeLog
	faults  *faults
	twice   int // every so many flushes of a partition, a batch is written twice; 0: never
	queue   [][]Record
	acked   []int64
	flushes int
	reads   int
}

func (l *fakeLog) open(f *faults, twice int) *fakeTopic {
	return &fakeTopic{log: l, faults: f, twice: twice, queue: make([][]Record, len(l.partitions)), acked: make([]int64, len(l.partitions))}
}

func (t *fakeTopic) Identity() string  { return t.log.id }
func (t *fakeTopic) Partitions() int32 { return int32(len(t.log.partitions)) }

func (t *fakeTopic) Bounds(_ context.Context, p int32) (first, end int64, err error) {
	err = t.faults.call(func() error {
		t.log.mu.Lock()
		defer t.log.mu.Unlock()
		end = int64(len(t.log.partitions[p]))
		return nil
	})
	return 0, end, err
}

func (t *fakeTopic) Read(_ context.Context, p int32, next, end int64, yield func(*Record) error) error {
	t.reads++
	return t.faults.call(func() error {
		t.log.mu.Lock()
		list := slices.Clone(t.log.partitions[p][next:end])
		t.log.mu.Unlock()
		for i := range list {
			if err := yield(&list[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *fakeTopic) Add(_ context.Context, p int32, r *Record) error {
	t.queue[p] = append(t.queue[p], Record{slices.Clone(r.Key), slices.Clone(r.Value), slices.Clone(r.Headers)})
	return nil
}

// Flush writes a batch to each partition. What a dying writer has under way arrives late.
func (t *fakeTopic) Flush(context.Context) error {
	for i, records := range t.queue {
		if len(records) == 0 {
			continue
		}
		t.flushes++
		dead := t.faults.isDead()
		err := t.faults.call(func() error {
			t.acked[i] = t.log.append(int32(i), records)
			if t.twice > 0 && t.flushes%t.twice == 0 {
				t.acked[i] = t.log.append(int32(i), records)
			}
			return nil
		})
		if err != nil && !dead {
			t.log.mu.Lock()
			t.log.late = append(t.log.late, lateWrite{int32(i), records})
			t.log.mu.Unlock()
		}
		if err != nil {
			return err
		}
		t.queue[i] = nil
	}
	return nil
}

func (t *fakeTopic) Acked(p int32) int64 { return t.acked[p] }
func (t *fakeTopic) Close() error        { return nil }

// dyingObjects and dyingSource die with their run.
type dyingObjects struct {
	Objects
	faults *faults
}

func (d dyingObjects) Get(ctx context.Context, key string) (data []byte, info objstore.Info, err error) {
	err = d.faults.call(func() (err error) { data, info, err = d.Objects.Get(ctx, key); return err })
	return data, info, err
}

func (d dyingObjects) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (info objstore.Info, err error) {
	err = d.faults.call(func() (err error) { info, err = d.Objects.PutIfAbsent(ctx, key, data, nonce); return err })
	return info, err
}

func (d dyingObjects) PutIfMatch(ctx context.Context, key string, data []byte, etag, nonce string) (info objstore.Info, err error) {
	err = d.faults.call(func() (err error) { info, err = d.Objects.PutIfMatch(ctx, key, data, etag, nonce); return err })
	return info, err
}

type dyingSource struct {
	Source
	faults *faults
	before func() // of each call; may be nil: changes the world while a run looks at it
}

func (d dyingSource) call(do func() error) error {
	if d.before != nil {
		d.before()
	}
	return d.faults.call(do)
}

func (d dyingSource) Changes(ctx context.Context, scope store.Scope, shard int, after store.Position, limit int) (c store.Changes, err error) {
	err = d.call(func() (err error) { c, err = d.Source.Changes(ctx, scope, shard, after, min(limit, 5)); return err })
	return c, err
}

func (d dyingSource) Sessions(ctx context.Context, q store.SessionQuery) (r store.Result[store.Row], err error) {
	q.Limit = 4
	err = d.call(func() (err error) { r, err = d.Source.Sessions(ctx, q); return err })
	return r, err
}

func (d dyingSource) Session(ctx context.Context, scope store.Scope, id store.ID) (r store.Row, err error) {
	err = d.call(func() (err error) { r, err = d.Source.Session(ctx, scope, id); return err })
	return r, err
}

func (d dyingSource) Shards(ctx context.Context, scope store.Scope) (list []store.ShardHead, err error) {
	err = d.call(func() (err error) { list, err = d.Source.Shards(ctx, scope); return err })
	return list, err
}

// memory is an object store in memory: a folder syncs every write.
type memory struct {
	mu      sync.Mutex
	objects map[string]memoryObject
	writes  int
}

type memoryObject struct {
	data        []byte
	etag, nonce string
}

func (m *memory) Get(_ context.Context, key string) ([]byte, objstore.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return nil, objstore.Info{}, objstore.ErrNotFound
	}
	return slices.Clone(o.data), objstore.Info{Key: key, ETag: o.etag}, nil
}

func (m *memory) put(key string, data []byte, nonce string, may func(memoryObject, bool) bool) (objstore.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.objects[key]
	if ok && nonce != "" && old.nonce == nonce {
		return objstore.Info{Key: key, ETag: old.etag}, nil
	}
	if !may(old, ok) {
		return objstore.Info{}, objstore.ErrPrecondition
	}
	m.writes++
	m.objects[key] = memoryObject{slices.Clone(data), fmt.Sprint(m.writes), nonce}
	return objstore.Info{Key: key, ETag: m.objects[key].etag}, nil
}

func (m *memory) Put(_ context.Context, key string, body io.ReadSeeker, _ int64) (objstore.Info, error) {
	data, err := io.ReadAll(body)
	if err != nil {
		return objstore.Info{}, err
	}
	return m.put(key, data, "", func(memoryObject, bool) bool { return true })
}

func (m *memory) PutIfAbsent(_ context.Context, key string, data []byte, nonce string) (objstore.Info, error) {
	return m.put(key, data, nonce, func(_ memoryObject, ok bool) bool { return !ok })
}

func (m *memory) PutIfMatch(_ context.Context, key string, data []byte, etag, nonce string) (objstore.Info, error) {
	return m.put(key, data, nonce, func(o memoryObject, ok bool) bool { return ok && o.etag == etag })
}

func (m *memory) List(_ context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	m.mu.Lock()
	keys := slices.Sorted(maps.Keys(m.objects))
	m.mu.Unlock()
	return func(yield func(objstore.Info, error) bool) {
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) && key > after && !yield(objstore.Info{Key: key}, nil) {
				return
			}
		}
	}
}

// world is a serving store, an output topic and a folder for files.
type world struct {
	*testing.T
	store   *store.Store
	objects *memory
	log     *fakeLog
	seqs    map[store.Owner]uint64
	maps    int
	during  func() // runs before each call of a run to the store; nil: nothing
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := store.Open(t.Context(), "sqlite:"+t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &world{T: t, store: s, objects: &memory{objects: map[string]memoryObject{}}, log: newLog(3), seqs: map[store.Owner]uint64{}}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// shard starts a shard of a version's generation.
func (w *world) shard(version string, shard int) store.Owner {
	w.Helper()
	g, err := w.store.CreateGeneration(w.Context(), job, version, "live")
	w.must(err)
	epoch, err := w.store.TakeEpoch(w.Context(), job, g.ID, shard)
	w.must(err)
	return store.Owner{Generation: g.ID, Shard: shard, Epoch: epoch}
}

// idOf makes the id of a test's session.
func idOf(n int) (id correlate.ID) {
	id[0], id[1], id[15] = byte(n>>8), byte(n), 7
	return id
}

// startOf gives two sessions each the same start.
func startOf(n int) event.Micros { return event.Micros(n/2) * 1_000_000_000 }

// write changes sessions: those below 0 are gone.
func (w *world) write(o store.Owner, text string, numbers ...int) {
	w.Helper()
	var b store.Batch
	for _, n := range numbers {
		w.seqs[o]++
		if n < 0 {
			b.Tombstones = append(b.Tombstones, store.Tombstone{Seq: w.seqs[o], ID: idOf(-n)})
			continue
		}
		b.Sessions = append(b.Sessions, store.Session{Seq: w.seqs[o], ID: idOf(n), Start: startOf(n), End: startOf(n) + 1, Events: 1,
			Body: fmt.Appendf(nil, `{"id":"%s","user":"u%d","scenarios":["late"],"text":%q}`, idOf(n), n, text)})
	}
	w.must(w.store.Write(w.Context(), o, &b))
}

// serve switches the serving map: all of time, or what starts from a session's on.
func (w *world) serve(generation int64, from int) {
	w.Helper()
	m, err := w.store.ServingMap(w.Context(), job)
	w.must(err)
	a := store.Assignment{From: event.MinTime, To: event.MaxTime, Generation: generation}
	if from > 0 {
		a.From = startOf(from)
	}
	w.maps++
	_, err = w.store.Switch(w.Context(), store.SwitchRequest{Job: job, RequestID: fmt.Sprint(w.maps), ExpectedEpoch: m.Epoch, Assignments: []store.Assignment{a}, Actor: "test"})
	w.must(err)
}

func (w *world) config(outlet Outlet, f *faults) Config {
	c := Config{Job: job, Source: dyingSource{w.store, f, w.during}, Objects: dyingObjects{w.objects, f},
		Poll: time.Millisecond, CheckpointEvery: 4 * time.Millisecond, FileBytes: 100}
	if outlet == TopicOutlet {
		c.OpenTopic = func(context.Context) (Topic, error) { return w.log.open(f, 3), nil }
	}
	return c
}

// publish runs until everything is published and safe, or until the run dies.
func (w *world) publish(outlet Outlet, f *faults) (last Status, err error) {
	w.Helper()
	return w.publishWith(w.config(outlet, f))
}

func (w *world) publishWith(c Config) (last Status, err error) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 40*time.Second)
	defer cancel()
	looks := 0
	c.Progress = func(s Status) {
		if s.CaughtUp.IsZero() || s.Switching {
			looks = 0
		} else if looks++; looks > 3 && w.isCurrent(s) {
			cancel()
		}
		last = s
	}
	err = Run(ctx, c)
	if err == nil && ctx.Err() == context.DeadlineExceeded {
		w.Fatalf("nothing ends: %+v", last)
	}
	return last, err
}

// isCurrent tells whether the run follows the present map and has read every shard to its end.
func (w *world) isCurrent(s Status) bool {
	m, err := w.store.ServingMap(w.Context(), job)
	w.must(err)
	if m.Epoch != s.MapEpoch {
		return false
	}
	for _, a := range m.Ranges {
		heads, err := w.store.Shards(w.Context(), store.Scope{Job: job, Generation: a.Generation})
		w.must(err)
		for _, h := range heads {
			if !slices.ContainsFunc(s.Cursors, func(c Cursor) bool {
				return c.Generation == a.Generation && c.Shard == h.Shard && !c.position().Less(h.Last)
			}) {
				return false
			}
		}
	}
	return true
}

// served returns the bodies of what is served.
func (w *world) served() map[string]string {
	w.Helper()
	want := map[string]string{}
	q := store.SessionQuery{Scope: store.Scope{Job: job}, Page: store.Page{Limit: 1000}}
	r, err := w.store.Sessions(w.Context(), q)
	w.must(err)
	for _, row := range r.Items {
		want[row.ID.String()] = string(row.Body)
	}
	return want
}

// check compares what consumers have with what is served.
func (w *world) check(what string, outlet Outlet) {
	w.Helper()
	want := w.served()
	if outlet == ParquetOutlet {
		var l Latest
		w.must(ReadFiles(w.Context(), w.objects, job, func(r *Row) error { l.Add(*r); return nil }))
		w.compare(what+": files", want, viewOf(&l))
		return
	}
	var all, rest Latest
	for _, p := range w.log.partitions {
		for i := range p {
			w.add(&all, &p[i])
		}
	}
	w.compare(what+": topic", want, viewOf(&all))
	plain := map[string]string{} // a table that a consumer without any care keeps of the compacted topic
	for _, r := range w.log.compacted() {
		w.add(&rest, &r)
		if string(r.Key) != SwitchKey && r.Value != nil {
			plain[string(r.Key)] = string(r.Value)
		}
	}
	w.compare(what+": compacted topic", want, viewOf(&rest))
	w.compare(what+": last values of the compacted topic", want, plain)
}

func (w *world) add(l *Latest, r *Record) {
	w.Helper()
	row, _, _, err := ParseRecord(r)
	w.must(err)
	if row != nil {
		l.Add(*row)
	}
}

func viewOf(l *Latest) map[string]string {
	view := map[string]string{}
	for r := range l.Sessions {
		view[r.ID.String()] = string(r.Body)
	}
	return view
}

func (w *world) compare(what string, want, got map[string]string) {
	w.Helper()
	for id, body := range want {
		if got[id] != body {
			w.Errorf("%s: session %s is %s, served is %s", what, id, got[id], body)
		}
	}
	for id, body := range got {
		if _, ok := want[id]; !ok {
			w.Errorf("%s: session %s is %s, and is not served", what, id, body)
		}
	}
}

package archiver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
)

const topic = "pay.orders"

var (
	errDead  = errors.New("the process is dead")
	errFault = errors.New("connection reset")
)

// world holds what outlives a run: the log and the objects. Every call goes through a run's handle, which can be killed, and
// may fail as a network does: before it took place, or after.
type world struct {
	mu       sync.Mutex
	faults   *rand.Rand // nil: none
	identity string
	logs     map[int32][]*archive.Record // by partition and offset; nil: an offset that no reader gets
	firsts   map[int32]int64
	objects  map[string]stored
}

type stored struct {
	data     []byte
	nonce    string
	modified time.Time
}

func newWorld() *world {
	return &world{identity: "id-1", logs: map[int32][]*archive.Record{}, firsts: map[int32]int64{}, objects: map[string]stored{}}
}

// add appends a record to a partition; its value says where it is from.
func (w *world) add(partition int32, at event.Micros) {
	w.mu.Lock()
	defer w.mu.Unlock()
	offset := int64(len(w.logs[partition]))
	r := &archive.Record{Topic: topic, Partition: partition, Offset: offset, Timestamp: at,
		Value: fmt.Appendf(nil, `{"event":"ordered","ts":%d,"order":"o%d-%d"}`, at/1000, partition, offset)}
	switch offset % 7 {
	case 1:
		r.Key = fmt.Appendf(nil, "k%d", offset)
	case 2:
		r.Headers = []archive.Header{{Key: "trace", Value: []byte("t")}, {Key: "empty"}}
	case 3:
		r.Timestamp = event.MinTime
	}
	w.logs[partition] = append(w.logs[partition], r)
}

// addNothing appends an offset that no reader gets.
func (w *world) addNothing(partition int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs[partition] = append(w.logs[partition], nil)
}

func (w *world) retain(partition int32, first int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.firsts[partition] = max(w.firsts[partition], first)
}

// handle is what one run holds of the world.
type handle struct {
	w      *world
	dead   bool // under w.mu
	calls  int  // that write objects
	killAt int  // number of the writing call that kills the run; 0: none
	after  bool // it dies after that call took place
}

func (w *world) open() *handle { return &handle{w: w} }

// do runs one remote call.
func (h *handle) do(ctx context.Context, writes bool, call func() error) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if writes {
		h.calls++
	}
	kills := writes && h.calls == h.killAt
	if h.dead = h.dead || kills && !h.after; h.dead {
		return errDead
	}
	fault := 1.0
	if h.w.faults != nil {
		fault = h.w.faults.Float64()
	}
	if fault < 0.05 {
		return errFault
	}
	err := call()
	if h.dead = kills; h.dead {
		return errDead
	}
	if fault < 0.1 { // it took place and its reply is lost
		return errFault
	}
	return err
}

func (h *handle) Topic(ctx context.Context, _ string) (identity string, ids []int32, err error) {
	err = h.do(ctx, false, func() error {
		identity, ids = h.w.identity, slices.Collect(maps.Keys(h.w.logs))
		return nil
	})
	return identity, ids, err
}

func (h *handle) Bounds(ctx context.Context, _ string, partition int32) (first, end int64, err error) {
	err = h.do(ctx, false, func() error {
		first, end = h.w.firsts[partition], int64(len(h.w.logs[partition]))
		return nil
	})
	return first, end, err
}

func (h *handle) Fetch(ctx context.Context, _ string, partition int32, next int64, maxBytes int, wait time.Duration,
	yield func(*archive.Record)) (after, end int64, err error) {
	for deadline := time.Now().Add(wait); ; {
		var records []*archive.Record
		err = h.do(ctx, false, func() error {
			after, end = next, int64(len(h.w.logs[partition]))
			if next < h.w.firsts[partition] || next > end {
				return fmt.Errorf("%w: offset %d", ErrOffsetGone, next)
			}
			for left := maxBytes; after < end && left > 0; after++ {
				if r := h.w.logs[partition][after]; r != nil {
					records = append(records, r)
					left -= len(r.Value)
				}
			}
			return nil
		})
		if err != nil || after > next || !time.Now().Before(deadline) {
			if err != nil {
				return 0, 0, err
			}
			for _, r := range records {
				scratch := *r // a reader that keeps what it was given keeps garbage
				scratch.Value = slices.Clone(r.Value)
				yield(&scratch)
				clear(scratch.Value)
			}
			return after, end, nil
		}
		select {
		case <-time.After(wait/10 + 1):
		case <-ctx.Done():
		}
	}
}

func (h *handle) Get(ctx context.Context, key string) (data []byte, err error) {
	err = h.do(ctx, false, func() error {
		o, ok := h.w.objects[key]
		if !ok {
			return ErrNoObject
		}
		data = slices.Clone(o.data)
		return nil
	})
	return data, err
}

func (h *handle) Put(ctx context.Context, key string, data []byte) error {
	return h.do(ctx, true, func() error {
		h.w.objects[key] = stored{slices.Clone(data), "", time.Now()}
		return nil
	})
}

func (h *handle) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) error {
	return h.do(ctx, true, func() error {
		if _, ok := h.w.objects[key]; ok { // even if it was this writer's
			return ErrExists
		}
		h.w.objects[key] = stored{slices.Clone(data), nonce, time.Now()}
		return nil
	})
}

func (h *handle) Delete(ctx context.Context, key string) error {
	return h.do(ctx, true, func() error { delete(h.w.objects, key); return nil })
}

func (h *handle) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		var list []Object
		err := h.do(ctx, false, func() error {
			for key, o := range h.w.objects {
				if strings.HasPrefix(key, prefix) && key > after {
					list = append(list, Object{key, o.modified})
				}
			}
			return nil
		})
		if err != nil {
			yield(Object{}, err)
			return
		}
		slices.SortFunc(list, func(a, b Object) int { return strings.Compare(a.Key, b.Key) })
		for _, o := range list {
			if !yield(o, nil) {
				return
			}
		}
	}
}

// manifests returns the manifests of a partition, which must follow one another from number 0 on.
func (w *world) manifests(t *testing.T, partition int32) (list []*archive.Manifest) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		key := archive.ManifestKey(topic, partition, int64(len(list)))
		o, ok := w.objects[key]
		if !ok {
			return list
		}
		m, err := archive.DecodeManifest(key, o.data)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(list); n > 0 {
			if err := m.Follows(list[n-1]); err != nil {
				t.Fatal(err)
			}
		}
		list = append(list, m)
	}
}

// garbage returns the data files that no manifest lists.
func (w *world) garbage(t *testing.T) (keys []string) {
	listed := map[string]bool{}
	for partition := range w.logs {
		for _, m := range w.manifests(t, partition) {
			for _, f := range m.Files {
				listed[f.Key] = true
			}
		}
	}
	for key := range w.objects {
		if strings.HasSuffix(key, ".parquet") && !listed[key] {
			keys = append(keys, key)
		}
	}
	return keys
}

// check checks that every offset of a partition is in the archive exactly once, with its record, and that what the
// manifests say of gaps and files is true. lost are the offsets that may be missing because they were deleted.
func (w *world) check(t *testing.T, partition int32, lost func(offset int64) bool) {
	t.Helper()
	list := w.manifests(t, partition)
	log := w.logs[partition]
	if len(list) == 0 {
		t.Fatalf("partition %d has no archive", partition)
	}
	if from, to := list[0].From, list[len(list)-1].To; from != 0 || to != int64(len(log)) {
		t.Errorf("partition %d: the archive is [%d, %d), the log [0, %d)", partition, from, to, len(log))
	}
	for _, m := range list {
		found := map[int64]bool{}
		for _, f := range m.Files {
			w.checkFile(t, m, &f, found)
		}
		for offset := m.From; offset < m.To; offset++ {
			switch r := log[offset]; {
			case found[offset] && r == nil:
				t.Errorf("partition %d has offset %d, which was never there", partition, offset)
			case !found[offset] && r != nil && !lost(offset):
				t.Errorf("partition %d lacks offset %d", partition, offset)
			}
		}
		w.checkGaps(t, m, found)
	}
}

func (w *world) checkFile(t *testing.T, m *archive.Manifest, f *archive.DataFile, found map[int64]bool) {
	t.Helper()
	o, ok := w.objects[f.Key]
	if !ok {
		t.Errorf("%s is not there", f.Key)
		return
	}
	if sum := sha256.Sum256(o.data); hex.EncodeToString(sum[:]) != f.SHA256 || int64(len(o.data)) != f.Bytes {
		t.Errorf("%s is not what its manifest says", f.Key)
	}
	records := readRecords(t, o.data)
	if int64(len(records)) != f.Records {
		t.Errorf("%s has %d records, its manifest says %d", f.Key, len(records), f.Records)
	}
	last := int64(-1)
	for _, r := range records {
		if found[r.Offset] || r.Offset <= last || r.Offset < f.LeastOffset || r.Offset > f.GreatestOffset {
			t.Errorf("%s: offset %d comes twice, or out of order, or out of range", f.Key, r.Offset)
		}
		found[r.Offset], last = true, r.Offset
		want := w.logs[m.Partition][r.Offset]
		if got := fmt.Sprintf("%+v", r); want == nil || got != fmt.Sprintf("%+v", *want) {
			t.Errorf("%s: archived %s, want %+v", f.Key, got, want)
		}
		if r.Timestamp != event.MinTime && (f.Timestamps == nil || r.Timestamp < f.Timestamps.Least || r.Timestamp > f.Timestamps.Greatest) {
			t.Errorf("%s: timestamp %d is outside %v", f.Key, r.Timestamp, f.Timestamps)
		}
	}
}

func (w *world) checkGaps(t *testing.T, m *archive.Manifest, found map[int64]bool) {
	t.Helper()
	covered := map[int64]bool{}
	for _, g := range m.Gaps {
		missing := int64(0)
		for offset := g.From; offset < g.To; offset++ {
			covered[offset] = true
			if !found[offset] {
				missing++
			}
		}
		if missing != g.Missing {
			t.Errorf("gap [%d, %d) says %d are missing; %d are", g.From, g.To, g.Missing, missing)
		}
	}
	for offset := m.From; offset < m.To; offset++ {
		if !found[offset] && !covered[offset] {
			t.Errorf("offset %d is missing and in no gap", offset)
		}
	}
}

// readRecords reads a data file with the library alone.
func readRecords(t *testing.T, data []byte) []archive.Record {
	t.Helper()
	type header struct {
		Key   string `parquet:"key"`
		Value []byte `parquet:"value,optional"`
	}
	type row struct {
		Topic     string   `parquet:"topic"`
		Partition int32    `parquet:"partition"`
		Offset    int64    `parquet:"offset"`
		Timestamp *int64   `parquet:"timestamp,optional"`
		Key       []byte   `parquet:"key,optional"`
		Value     []byte   `parquet:"value,optional"`
		Headers   []header `parquet:"headers,list"`
	}
	rows, err := readParquet[row](bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	var out []archive.Record
	for _, r := range rows {
		rec := archive.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: event.MinTime, Key: r.Key, Value: r.Value}
		if r.Timestamp != nil {
			rec.Timestamp = event.Micros(*r.Timestamp)
		}
		for _, h := range r.Headers {
			rec.Headers = append(rec.Headers, archive.Header{Key: h.Key, Value: h.Value})
		}
		out = append(out, rec)
	}
	return out
}

var (
	_ Log     = (*handle)(nil)
	_ Objects = (*handle)(nil)
)

package streaming

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// world holds what outlives a run: the log, the sink's rows and the objects. Every call goes through a run's handle, which
// can be killed, and may fail as a network does: before it took place, or after.
type world struct {
	mu     sync.Mutex
	t      *testing.T
	faults *rand.Rand // nil: none
	until  time.Time  // faults happen before this

	topics  map[Partition][]logRecord
	firsts  map[Partition]int64
	made    map[string]string // identity by topic
	objects map[string]object
	etags   int

	slow  func() time.Duration // how long the sink takes before it writes, and then to answer; nil: no time
	busy  int                  // writes that are under way
	marks int                  // writes of nothing but a watermark
	mark  event.Micros         // of the last write

	epoch uint64
	rows  map[correlate.ID]storedRow
	cells map[string]storedCell
	late  map[string]lateRow
	bad   map[string]Exception
}

type logRecord struct {
	record event.Record // identity and broker timestamp
	value  []byte
}

type object struct {
	data []byte
	etag string
}

type storedRow struct {
	epoch, seq uint64
	gone       bool
	row        correlate.Row
}

type storedCell struct {
	epoch, seq uint64
	cell       correlate.Cell
}

type lateRow struct {
	epoch, seq uint64
	x          Exception
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, topics: map[Partition][]logRecord{}, firsts: map[Partition]int64{}, made: map[string]string{},
		objects: map[string]object{}, rows: map[correlate.ID]storedRow{}, cells: map[string]storedCell{},
		late: map[string]lateRow{}, bad: map[string]Exception{},
	}
}

var (
	errDead  = errors.New("the process is dead")
	errFault = errors.New("connection reset")
)

// handle is what one run holds of the world.
type handle struct {
	w    *world
	dead bool // under w.mu
}

func (h *handle) kill() {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.dead = true
}

// do runs one remote call.
func (h *handle) do(ctx context.Context, call func() error) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.dead {
		return errDead
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fault := 1.0
	if h.w.faults != nil && time.Now().Before(h.w.until) {
		fault = h.w.faults.Float64()
	}
	if fault < 0.05 {
		return errFault
	}
	err := call()
	if fault < 0.1 { // it took place and its reply is lost
		return errFault
	}
	return err
}

func (h *handle) Identity(ctx context.Context, topic string) (id string, err error) {
	err = h.do(ctx, func() error { id = h.w.made[topic]; return nil })
	return id, err
}

func (h *handle) Bounds(ctx context.Context, p Partition) (first, end int64, err error) {
	p.Source = 0
	err = h.do(ctx, func() error {
		first, end = h.w.firsts[p], int64(len(h.w.topics[p]))
		return nil
	})
	return first, end, err
}

func (h *handle) Fetch(ctx context.Context, p Partition, next int64, b *event.Batch, maxBytes int, wait time.Duration) (after, end int64, err error) {
	source := p.Source
	p.Source = 0
	for deadline := time.Now().Add(wait); ; {
		err = h.do(ctx, func() error {
			after, end = next, int64(len(h.w.topics[p]))
			if next < h.w.firsts[p] {
				return fmt.Errorf("%w: offset %d", ErrOffsetGone, next)
			}
			for after < end && len(b.Data) < maxBytes {
				r := h.w.topics[p][after]
				r.record.Source = uint16(source)
				b.Add(r.record, r.value)
				after++
			}
			return nil
		})
		if err != nil || after > next || !time.Now().Before(deadline) {
			return after, end, err
		}
		select {
		case <-time.After(wait / 10):
		case <-ctx.Done():
		}
	}
}

func (h *handle) TakeEpoch(ctx context.Context) (epoch uint64, err error) {
	err = h.do(ctx, func() error { h.w.epoch++; epoch = h.w.epoch; return nil })
	return epoch, err
}

func (w *world) under(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy += n
}

// wait lets virtual time pass.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Write stores copies: what it is given is used again.
func (h *handle) Write(ctx context.Context, epoch uint64, c *Changes) error {
	h.w.under(1)
	defer h.w.under(-1)
	if h.w.slow != nil {
		wait(ctx, h.w.slow())
		defer func() { wait(ctx, h.w.slow()) }()
	}
	return h.do(ctx, func() error {
		w := h.w
		if epoch != w.epoch {
			return ErrFenced
		}
		if c.empty() {
			w.marks++
		}
		w.mark = c.Watermark
		newer := func(e, s, seq uint64) bool { return epoch > e || epoch == e && seq >= s }
		for _, s := range c.Sessions {
			if was, ok := w.rows[s.Row.ID]; !ok || newer(was.epoch, was.seq, s.Seq) {
				w.rows[s.Row.ID] = storedRow{epoch, s.Seq, false, cloneRow(s.Row)}
			}
		}
		for _, g := range c.Gone {
			if was, ok := w.rows[g.ID]; !ok || newer(was.epoch, was.seq, g.Seq) {
				w.rows[g.ID] = storedRow{epoch: epoch, seq: g.Seq, gone: true}
			}
		}
		for _, c := range c.Cells {
			k := cellKey(&c.Cell)
			if was, ok := w.cells[k]; !ok || newer(was.epoch, was.seq, c.Seq) {
				w.cells[k] = storedCell{epoch, c.Seq, cloneCell(c.Cell)}
			}
		}
		for _, x := range c.LateEvents {
			x.Raw = slices.Clone(x.Raw)
			w.late[fmt.Sprintf("%d/%d/%d/%d", x.Source, x.Partition, x.Offset, x.Index)] = lateRow{epoch, c.Last, x}
		}
		for _, x := range c.Rejects {
			x.Raw = slices.Clone(x.Raw)
			w.bad[fmt.Sprintf("%d/%d/%d", x.Source, x.Partition, x.Offset)] = x
		}
		return nil
	})
}

func cloneRow(r correlate.Row) correlate.Row {
	r.Keys, r.Fields = slices.Clone(r.Keys), slices.Clone(r.Fields)
	for i := range r.Keys {
		r.Keys[i].Value = slices.Clone(r.Keys[i].Value)
	}
	for i := range r.Fields {
		r.Fields[i].Text = slices.Clone(r.Fields[i].Text)
	}
	r.Hits, r.Events, r.StepNames = slices.Clone(r.Hits), slices.Clone(r.Events), slices.Clone(r.StepNames)
	return r
}

func cloneCell(c correlate.Cell) correlate.Cell {
	c.By, c.Measures = slices.Clone(c.By), slices.Clone(c.Measures)
	for i := range c.By {
		c.By[i] = slices.Clone(c.By[i])
	}
	return c
}

func cellKey(c *correlate.Cell) string {
	return fmt.Sprintf("%d %d %q", c.Report, c.Window, c.By)
}

func (h *handle) After(ctx context.Context, epoch uint64, at Point) (ids []correlate.ID, cells []correlate.Cell, err error) {
	err = h.do(ctx, func() error {
		if epoch != h.w.epoch {
			return ErrFenced
		}
		after := func(e, s uint64) bool { return e > at.Epoch || e == at.Epoch && s > at.Sequence }
		for id, r := range h.w.rows {
			if after(r.epoch, r.seq) {
				ids = append(ids, id)
			}
		}
		for _, c := range h.w.cells {
			if after(c.epoch, c.seq) {
				cells = append(cells, c.cell)
			}
		}
		maps.DeleteFunc(h.w.late, func(_ string, l lateRow) bool { return after(l.epoch, l.seq) })
		return nil
	})
	slices.SortFunc(ids, func(a, b correlate.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids, cells, err
}

func (h *handle) Get(ctx context.Context, key string) (data []byte, etag string, err error) {
	err = h.do(ctx, func() error {
		o, ok := h.w.objects[key]
		if !ok {
			return ErrNoObject
		}
		data, etag = slices.Clone(o.data), o.etag
		return nil
	})
	return data, etag, err
}

func (h *handle) Put(ctx context.Context, key string, data []byte, match string) (etag string, err error) {
	err = h.do(ctx, func() error {
		if h.w.objects[key].etag != match {
			return ErrChanged
		}
		h.w.etags++
		etag = fmt.Sprint(h.w.etags)
		h.w.objects[key] = object{slices.Clone(data), etag}
		return nil
	})
	return etag, err
}

func (h *handle) Delete(ctx context.Context, key string) error {
	return h.do(ctx, func() error { delete(h.w.objects, key); return nil })
}

func (h *handle) List(ctx context.Context, prefix string) (keys []string, err error) {
	err = h.do(ctx, func() error {
		for k := range h.w.objects {
			if strings.HasPrefix(k, prefix) {
				keys = append(keys, k)
			}
		}
		return nil
	})
	slices.Sort(keys)
	return keys, err
}

var (
	_ Log     = (*handle)(nil)
	_ Sink    = (*handle)(nil)
	_ Objects = (*handle)(nil)
)

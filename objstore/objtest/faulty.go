package objtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weftdata/weft/objstore"
)

// ErrInjected is in every error that a Faulty made up.
var ErrInjected = errors.New("injected fault")

// Plan says how a Faulty fails. The same seed and the same calls fail in the same way.
type Plan struct {
	Seed   uint64
	Before float64 // part of the calls that fail and do nothing
	After  float64 // part of the calls that do what they should and fail all the same: the reply is lost
	Slow   float64 // part of the calls that wait for Delay first
	Delay  time.Duration
	Down   []Outage
}

// Outage is a run of calls that all fail: the store is unavailable for a while.
type Outage struct{ From, Calls int } // calls count from 0

// Faulty is a store that fails as planned. Its errors are retryable, as those of a network are.
type Faulty struct {
	store objstore.Store

	mu     sync.Mutex
	plan   Plan
	random *rand.Rand
	calls  int
	down   bool
}

// NewFaulty makes a store fail.
func NewFaulty(s objstore.Store, plan Plan) *Faulty {
	return &Faulty{store: s, plan: plan, random: rand.New(rand.NewPCG(plan.Seed, 0))}
}

// Calls returns how many calls were made.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// SetDown makes every call fail until it is set back.
func (f *Faulty) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// begin decides about a call. It returns the error to fail with at once, and the one to fail with at the end.
func (f *Faulty) begin(ctx context.Context, op string) (before, after error) {
	f.mu.Lock()
	call := f.calls
	f.calls++
	a, b, c := f.random.Float64(), f.random.Float64(), f.random.Float64() // always three, so that plans differ in one thing only
	fault := func(what string) error {
		return &objstore.Error{Op: op, Class: objstore.External, Err: fmt.Errorf("%w: %s (call %d, seed %d)", ErrInjected, what, call, f.plan.Seed)}
	}
	if a < f.plan.Before {
		before = fault("nothing was done")
	}
	if b < f.plan.After {
		after = fault("the reply was lost")
	}
	down := f.down
	for _, o := range f.plan.Down {
		down = down || o.From <= call && call < o.From+o.Calls
	}
	if down {
		before = fault("the store is unavailable")
	}
	wait := time.Duration(0)
	if c < f.plan.Slow {
		wait = f.plan.Delay
	}
	f.mu.Unlock()
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err(), nil
		}
	}
	return before, after
}

// through runs a call between its faults.
func through[T any](ctx context.Context, f *Faulty, op string, call func() (T, error)) (T, error) {
	var none T
	before, after := f.begin(ctx, op)
	if before != nil {
		return none, before
	}
	out, err := call()
	if err == nil && after != nil {
		return none, after
	}
	return out, err
}

// Get returns an object.
func (f *Faulty) Get(ctx context.Context, key string) ([]byte, objstore.Info, error) {
	var info objstore.Info
	data, err := through(ctx, f, "get "+key, func() (data []byte, err error) {
		data, info, err = f.store.Get(ctx, key)
		return data, err
	})
	return data, info, err
}

// GetRange returns a part of an object.
func (f *Faulty) GetRange(ctx context.Context, key string, from, n int64) ([]byte, error) {
	return through(ctx, f, "get "+key, func() ([]byte, error) { return f.store.GetRange(ctx, key, from, n) })
}

// Stat describes an object.
func (f *Faulty) Stat(ctx context.Context, key string) (objstore.Info, error) {
	return through(ctx, f, "stat "+key, func() (objstore.Info, error) { return f.store.Stat(ctx, key) })
}

// Put writes an object.
func (f *Faulty) Put(ctx context.Context, key string, body io.ReadSeeker, size int64) (objstore.Info, error) {
	return through(ctx, f, "put "+key, func() (objstore.Info, error) { return f.store.Put(ctx, key, body, size) })
}

// PutIfAbsent writes an object that is not there yet.
func (f *Faulty) PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (objstore.Info, error) {
	return through(ctx, f, "put "+key, func() (objstore.Info, error) { return f.store.PutIfAbsent(ctx, key, data, nonce) })
}

// PutIfMatch replaces an object.
func (f *Faulty) PutIfMatch(ctx context.Context, key string, data []byte, etag, nonce string) (objstore.Info, error) {
	return through(ctx, f, "put "+key, func() (objstore.Info, error) { return f.store.PutIfMatch(ctx, key, data, etag, nonce) })
}

// Delete removes an object.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	_, err := through(ctx, f, "delete "+key, func() (struct{}, error) { return struct{}{}, f.store.Delete(ctx, key) })
	return err
}

// List yields objects; a lost reply is one that breaks off.
func (f *Faulty) List(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		before, lost := f.begin(ctx, "list "+prefix)
		if before != nil {
			yield(objstore.Info{}, before)
			return
		}
		n := 0
		for info, err := range f.store.List(ctx, prefix, after) {
			if n++; lost != nil && n == 2 {
				break
			}
			if !yield(info, err) {
				return
			}
		}
		if lost != nil {
			yield(objstore.Info{}, lost)
		}
	}
}

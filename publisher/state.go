package publisher

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/store"
)

// Objects is what publishers need of an object store, as objstore.Store has it.
type Objects interface {
	Get(ctx context.Context, key string) ([]byte, objstore.Info, error)
	Put(ctx context.Context, key string, body io.ReadSeeker, size int64) (objstore.Info, error)
	PutIfAbsent(ctx context.Context, key string, data []byte, nonce string) (objstore.Info, error)
	PutIfMatch(ctx context.Context, key string, data []byte, etag, nonce string) (objstore.Info, error)
	List(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error]
}

// Errors of this package.
var (
	ErrFenced  = errors.New("another publisher of this job has started")
	ErrDamaged = errors.New("it is damaged in the object store")
)

const (
	stateFormat = 1
	claimsMax   = 20 // starts that may come between reading a checkpoint and claiming it
)

// state is the checkpoint of an outlet: what it has been given.
type state struct {
	Format  int             `json:"format"`
	Job     string          `json:"job"`
	Outlet  Outlet          `json:"outlet"`
	Epoch   uint64          `json:"epoch"`   // number of the start that wrote it
	Number  uint64          `json:"number"`  // of the checkpoint
	Map     store.Map       `json:"map"`     // that what is published follows
	Cursors []Cursor        `json:"cursors"` // sorted by generation and shard
	Switch  *switching      `json:"switch,omitempty"`
	Mark    json.RawMessage `json:"mark,omitempty"` // of the outlet
}

// Cursor is how far the changes of a shard are published.
type Cursor struct {
	Generation int64  `json:"generation"`
	Shard      int    `json:"shard"`
	Epoch      uint64 `json:"epoch"`
	Seq        uint64 `json:"seq"`
}

func (c *Cursor) position() store.Position { return store.Position{Epoch: c.Epoch, Seq: c.Seq} }

// switching is a switch that is under way.
type switching struct {
	To store.Map `json:"to"`
	// Unknown says that what was published is to be learnt from the outlet itself: it has no checkpoint, or a generation is
	// gone.
	Unknown bool `json:"unknown,omitempty"`
	// Below is the start of the sessions that are still to be compared: the newest come first.
	Below event.Micros `json:"below"`
}

// reset forgets what was published.
func (s *state) reset() {
	s.Map, s.Cursors, s.Switch, s.Mark = store.Map{}, nil, nil, nil
}

// find returns where the cursor of a shard is in the list, or would be: it is sorted by generation and shard.
func (s *state) find(generation int64, shard int) (int, bool) {
	return slices.BinarySearchFunc(s.Cursors, Cursor{Generation: generation, Shard: shard}, func(a, b Cursor) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Shard, b.Shard))
	})
}

// cursor returns the cursor of a shard, which is made where it is missing. It is good until another one is made.
func (s *state) cursor(generation int64, shard int) *Cursor {
	i, found := s.find(generation, shard)
	if !found {
		s.Cursors = slices.Insert(s.Cursors, i, Cursor{Generation: generation, Shard: shard})
	}
	return &s.Cursors[i]
}

// published returns how far the changes of a shard are published; the zero position where that is not known.
func (s *state) published(generation int64, shard int) store.Position {
	if i, found := s.find(generation, shard); found {
		return s.Cursors[i].position()
	}
	return store.Position{}
}

// covers tells whether a change was published before the checkpoint.
func (s *state) covers(p Position) bool {
	return !s.published(p.Generation, p.Shard).Less(store.Position{Epoch: p.Epoch, Seq: p.Seq})
}

// generationAt returns the generation to which a map gives a start; 0: none.
func generationAt(m *store.Map, start event.Micros) int64 {
	i, found := slices.BinarySearchFunc(m.Ranges, start, func(a store.Assignment, t event.Micros) int {
		switch {
		case a.To <= t:
			return -1
		case a.From > t:
			return 1
		}
		return 0
	})
	if !found {
		return 0
	}
	return m.Ranges[i].Generation
}

func folder(job string) string { return "published/" + job + "/" }

func stateKey(job string, outlet Outlet) string { return folder(job) + string(outlet) + ".json" }

// checkpoints keeps the state of one outlet.
type checkpoints struct {
	objects Objects
	key     string
	etag    string
}

func (c *checkpoints) load(ctx context.Context) (s state, found bool, err error) {
	data, info, err := c.objects.Get(ctx, c.key)
	if errors.Is(err, objstore.ErrNotFound) {
		c.etag = ""
		return s, false, nil
	}
	if err != nil {
		return s, false, fmt.Errorf("read the checkpoint: %w", err)
	}
	c.etag = info.ETag
	if err := json.Unmarshal(data, &s); err != nil {
		return s, false, fmt.Errorf("read the checkpoint %s: %w: %w (remove it: everything is then compared with what was published)", c.key, ErrDamaged, err)
	}
	if s.Format != stateFormat {
		return s, false, fmt.Errorf("the checkpoint %s has format %d; this engine reads %d", c.key, s.Format, stateFormat)
	}
	return s, true, nil
}

// claim takes over from whoever published before: from then on none of its checkpoints is accepted.
func (c *checkpoints) claim(ctx context.Context, job string, outlet Outlet) (s state, err error) {
	for range claimsMax {
		if s, _, err = c.load(ctx); err != nil {
			return s, err
		}
		s.Format, s.Job, s.Outlet = stateFormat, job, outlet
		s.Epoch++
		if err = c.save(ctx, &s); !errors.Is(err, ErrFenced) {
			return s, err
		}
	}
	return s, err
}

// save replaces the checkpoint. It fails with ErrFenced where another start has claimed it.
func (c *checkpoints) save(ctx context.Context, s *state) error {
	s.Number++
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	var info objstore.Info
	nonce := rand.Text()
	if c.etag == "" {
		info, err = c.objects.PutIfAbsent(ctx, c.key, data, nonce)
	} else {
		info, err = c.objects.PutIfMatch(ctx, c.key, data, c.etag, nonce)
	}
	if errors.Is(err, objstore.ErrPrecondition) {
		return fmt.Errorf("%w (write the checkpoint %s)", ErrFenced, c.key)
	}
	if err != nil {
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	c.etag = info.ETag
	return nil
}

// own checks that nobody has claimed the checkpoint since.
func (c *checkpoints) own(ctx context.Context, epoch uint64) error {
	other := *c
	s, found, err := other.load(ctx)
	if err == nil && (!found || s.Epoch != epoch) {
		err = fmt.Errorf("%w: it is start %d, this one is %d", ErrFenced, s.Epoch, epoch)
	}
	return err
}

// Needs is what the publishers of a job still read in the store.
type Needs struct {
	// Cursors are the positions up to which each shard's changes are published everywhere: Store.Compact must not go past
	// them. A generation without one is not read.
	Cursors []Cursor
	// Generations must not be dropped yet. One that is dropped all the same costs a comparison with all that was published.
	Generations []int64
}

// ReadNeeds returns what the publishers of a job need, as far as their checkpoints say.
func ReadNeeds(ctx context.Context, objects Objects, job string) (n Needs, err error) {
	for _, outlet := range []Outlet{TopicOutlet, ParquetOutlet} {
		c := checkpoints{objects: objects, key: stateKey(job, outlet)}
		s, _, err := c.load(ctx)
		if err != nil {
			return n, err
		}
		for _, x := range s.Cursors {
			if i := slices.IndexFunc(n.Cursors, func(o Cursor) bool { return o.Generation == x.Generation && o.Shard == x.Shard }); i < 0 {
				n.Cursors = append(n.Cursors, x)
			} else if x.position().Less(n.Cursors[i].position()) {
				n.Cursors[i] = x
			}
		}
		maps := []store.Map{s.Map}
		if s.Switch != nil {
			maps = append(maps, s.Switch.To)
		}
		for _, m := range maps {
			for _, a := range m.Ranges {
				n.Generations = append(n.Generations, a.Generation)
			}
		}
	}
	slices.Sort(n.Generations)
	n.Generations = slices.Compact(n.Generations)
	return n, nil
}

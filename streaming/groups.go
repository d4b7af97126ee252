package streaming

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"time"

	"github.com/weftdata/weft/event"
)

// Groups divides the key groups of a job over several shards. Sources are not partitioned by them, so records go through a
// topic between: each shard reads some of the source partitions and writes what it reads to the partitions of the groups
// topic whose shards have events of it (repartition.go), and takes its results from its own partition there (inlet.go).
// docs/formats/groups.md describes the topic.
type Groups struct {
	Shard, Shards int    // this one, from 0, of so many, at most event.KeyGroups
	Topic         string // with as many partitions as there are shards; nobody else may write to it

	Log RawLog
	Out Outlet

	MarkEvery time.Duration // between two marks of a source partition; default 100 ms and 1.5 ms for each shard
	SaveEvery time.Duration // of the offsets that were repartitioned; default 5 s
}

// RawLog reads records as the log holds them.
type RawLog interface {
	// Records hands out the records from offset next on, with the bounds and errors of Log.Fetch.
	Records(ctx context.Context, p Partition, next int64, maxBytes int, wait time.Duration, yield func(*Raw)) (after, end int64, err error)
}

// Outlet writes to the partitions of the groups topic, one batch of a partition at a time: a batch is tried until it is
// acknowledged or the outlet has failed, and the next one waits. So a partition may get a batch twice, but none before the
// one that was added before it.
type Outlet interface {
	// Add queues a record, whose bytes are copied. It blocks while the partition's queue is full.
	Add(ctx context.Context, partition int32, r *Raw) error
	// Flush waits until all that was added is acknowledged.
	Flush(ctx context.Context) error
}

// Raw is a record as a log holds it. Its bytes are valid during the call only.
type Raw struct {
	Offset    int64
	Timestamp event.Micros // the broker's; event.MinTime: none
	Value     []byte       // nil: null
	Headers   []Header
}

// Header is a header of a record. Names may repeat.
type Header struct {
	Key   []byte
	Value []byte // nil: null
}

// Headers of the groups topic, beside event.OriginHeader.
const (
	// FromHeader is the place of a record in its source, "topic/partition/offset/timestamp", in microseconds or "-".
	FromHeader = "weft-from"
	// SizeHeader is the size of a value of which only the first bytes are here, because it is over the limit.
	SizeHeader = "weft-size"
	// MarkHeader makes a record a mark: "topic/partition/offset/time/state" says that of this source partition all records
	// before the offset stand before the mark, as far as they belong here, the greatest time of their events, in
	// microseconds or "-", and whether it is active, idle or empty. A mark has one for each partition that it tells of.
	MarkHeader = "weft-mark"
)

// header returns the value of the last header of a name, empty where that is null; nil: there is none.
func (r *Raw) header(name string) []byte {
	for i := len(r.Headers) - 1; i >= 0; i-- {
		switch h := &r.Headers[i]; {
		case string(h.Key) != name:
		case h.Value == nil:
			return []byte{}
		default:
			return h.Value
		}
	}
	return nil
}

// idleAgain is how often a mark says again that a source partition is idle, and idleFor how long that is believed without
// being said again: nobody may be reading the partition any more, and records may come that the watermark must not pass.
const (
	idleAgain = 5 * time.Second
	idleFor   = 4 * idleAgain
)

func (g *Groups) validate(c *Config) error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(g.Shards >= 1 && g.Shards <= event.KeyGroups, fmt.Sprintf("%d shards: expected 1 to %d", g.Shards, event.KeyGroups))
	need(g.Shard >= 0 && g.Shard < max(g.Shards, 1), fmt.Sprintf("shard %d of %d", g.Shard, g.Shards))
	need(g.Topic != "", "no groups topic")
	need(g.Log != nil && g.Out != nil, "no raw log or outlet for the groups")
	need(c.Job == nil || c.Job.Spec.ShardBy != "", "a job without shard_by has one shard: name a field that all events of a session share")
	if g.MarkEvery == 0 {
		g.MarkEvery = 100*time.Millisecond + time.Duration(g.Shards)*1500*time.Microsecond
	}
	if g.SaveEvery == 0 {
		g.SaveEvery = 5 * time.Second
	}
	need(g.MarkEvery > 0 && g.SaveEvery > 0, "a duration of the groups is negative")
	return errors.Join(errs...)
}

// partition is the one that the shard takes its results from. It is of no source.
func (g *Groups) partition() Partition {
	return Partition{Source: -1, Topic: g.Topic, ID: int32(g.Shard)}
}

// repartitions tells whether a source partition is this shard's to read. That partitions are added to another topic must
// not change it.
func (g *Groups) repartitions(p Partition) bool { return (p.Source+int(p.ID))%g.Shards == g.Shard }

// bounds returns the key groups of the shard: from first to before end.
func (g *Groups) bounds() (first, end uint16) {
	return uint16(event.KeyGroups * g.Shard / g.Shards), uint16(event.KeyGroups * (g.Shard + 1) / g.Shards)
}

// owners returns the shard of each key group.
func (g *Groups) owners() (owner [event.KeyGroups]uint8) {
	for n := range g.Shards {
		one := Groups{Shard: n, Shards: g.Shards}
		for first, end := one.bounds(); first < end; first++ {
			owner[first] = uint8(n)
		}
	}
	return owner
}

// shardSet is a set of shards.
type shardSet [event.KeyGroups / 64]uint64

func (s *shardSet) add(n uint8) { s[n/64] |= 1 << (n % 64) }

// each calls yield with every shard of the set, in order, until it fails.
func (s *shardSet) each(yield func(shard int32) error) error {
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			if err := yield(int32(64*i + bits.TrailingZeros64(word))); err != nil {
				return err
			}
		}
	}
	return nil
}

// groupMark is what a mark says of one source partition.
type groupMark struct {
	position int64
	max      event.Micros
	state    uint8 // of a correlate.PartitionState
}

// markStates names the states of a correlate.PartitionState, in their order.
var markStates = [...]string{"unseen", "active", "idle", "empty"}

const (
	markUnseen = 0 // a partition of which there is nothing to say
	markActive = 1
	markIdle   = 2 // from here on it does not hold the watermark back
)

func (m groupMark) idle() bool { return m.state >= markIdle }

func appendTime(to []byte, t event.Micros) []byte {
	if t == event.MinTime {
		return append(to, '-')
	}
	return strconv.AppendInt(to, int64(t), 10)
}

func parseTime(text []byte) (event.Micros, bool) {
	if string(text) == "-" {
		return event.MinTime, true
	}
	t, err := strconv.ParseInt(string(text), 10, 64)
	return event.Micros(t), err == nil
}

func appendMark(to []byte, p Partition, m groupMark) []byte {
	to = append(event.AppendOrigin(to, p.Topic, p.ID, m.position), '/')
	to = append(appendTime(to, m.max), '/')
	return append(to, markStates[m.state]...)
}

func appendFrom(to []byte, p Partition, offset int64, timestamp event.Micros) []byte {
	return appendTime(append(event.AppendOrigin(to, p.Topic, p.ID, offset), '/'), timestamp)
}

// cutLast splits text at its last slash.
func cutLast(text []byte) (before, after []byte) {
	i := bytes.LastIndexByte(text, '/')
	return text[:max(i, 0)], text[i+1:]
}

// parsePlace reads the topic, partition and offset that a header of the groups topic starts with.
func parsePlace(text []byte) (topic []byte, id int32, offset int64, ok bool) {
	topic, _, _ = bytes.Cut(text, []byte{'/'})
	id, offset, ok = event.ParseOrigin(text)
	return topic, id, offset, ok
}

func parseMark(text []byte) (topic []byte, id int32, m groupMark, ok bool) {
	rest, state := cutLast(text)
	rest, max := cutLast(rest)
	for i, name := range markStates {
		if string(state) == name {
			m.state = uint8(i)
		}
	}
	var timed, placed bool
	m.max, timed = parseTime(max)
	topic, id, m.position, placed = parsePlace(rest)
	return topic, id, m, placed && timed && m.state != markUnseen
}

func parseFrom(text []byte) (topic []byte, id int32, offset int64, timestamp event.Micros, ok bool) {
	rest, time := cutLast(text)
	timestamp, timed := parseTime(time)
	topic, id, offset, placed := parsePlace(rest)
	return topic, id, offset, timestamp, placed && timed
}

// groupsState is what a manifest says of the groups topic.
type groupsState struct {
	Shard    int    `json:"shard"`
	Shards   int    `json:"shards"`
	Topic    string `json:"topic"`
	Identity string `json:"identity,omitempty"`
	Next     int64  `json:"next"` // offset of the first record that is not in the state
}

func (g *Groups) state(identity string, next int64) *groupsState {
	return &groupsState{g.Shard, g.Shards, g.Topic, identity, next}
}

// same makes sure that a manifest is of these groups. A manifest without any is of a shard's first run, or of a job that
// had one shard.
func (g *Groups) same(was *groupsState, identity string) error {
	switch {
	case was == nil:
		return nil
	case was.Shard != g.Shard || was.Shards != g.Shards || was.Topic != g.Topic:
		return fmt.Errorf("the checkpoint is of shard %d of %d with topic %s, and the run is shard %d of %d with topic %s: their key groups differ; run the job as a new version",
			was.Shard, was.Shards, was.Topic, g.Shard, g.Shards, g.Topic)
	case was.Identity != identity:
		return fmt.Errorf("%s: %w (it was %q and is %q): what was written to it is lost; run the job as a new version that starts from the archive",
			g.Topic, ErrRecreated, was.Identity, identity)
	}
	return nil
}

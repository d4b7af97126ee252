package correlate

import (
	"fmt"

	"github.com/weftdata/weft/event"
)

// WatermarkConfig holds the bounds of a watermark, in microseconds.
type WatermarkConfig struct {
	Delay    event.Micros // how far the watermark stays behind the largest event time of a partition
	MaxAhead event.Micros // how far one record may advance it past its broker timestamp
}

// Watermark estimates up to which event time a set of partitions is complete: the minimum over the active ones. The
// caller names its partitions by number at the start, tells what it sees, and reads Value, which never falls.
type Watermark struct {
	cfg   WatermarkConfig
	parts []partitionMark
	value event.Micros
}

type partitionMark struct {
	max   event.Micros // largest accepted event time; MinTime before the first record
	state markState
}

type markState uint8

const (
	unseen markState = iota // holds the watermark back
	active
	idle  // does not count, unless all are idle: then the watermark stays
	empty // confirmed empty; as idle
)

// NewWatermark returns a watermark over partitions numbered from 0, none of which has been seen yet.
func NewWatermark(cfg WatermarkConfig, partitions int) *Watermark {
	w := &Watermark{cfg: cfg, parts: make([]partitionMark, partitions), value: event.MinTime}
	for i := range w.parts {
		w.parts[i].max = event.MinTime
	}
	return w
}

// Observe takes in the time of an event and the broker timestamp of its record (MinTime where there is none, which
// leaves the time unbounded).
func (w *Watermark) Observe(partition int, time, broker event.Micros) {
	if broker != event.MinTime {
		time = min(time, broker+w.cfg.MaxAhead)
	}
	p := &w.parts[partition]
	p.max = max(p.max, time)
	p.state = active
}

// Idle says that a partition had nothing to read, at its end, for long enough. Only the caller has a clock. A partition
// that was never seen and is empty counts as idle: call Idle for a confirmed empty partition too.
func (w *Watermark) Idle(partition int) {
	if p := &w.parts[partition]; p.max == event.MinTime {
		p.state = empty
	} else {
		p.state = idle
	}
}

// Value returns the watermark: MinTime until every partition was seen.
func (w *Watermark) Value() event.Micros {
	least := event.MaxTime
	for i := range w.parts {
		switch p := &w.parts[i]; p.state {
		case unseen:
			return w.value
		case active:
			least = min(least, p.max)
		}
	}
	if least != event.MaxTime {
		w.value = max(w.value, least-w.cfg.Delay)
	}
	return w.value
}

// PartitionState is what a caller saves of one partition to restore it later.
type PartitionState struct {
	Max   event.Micros
	State uint8
}

// State returns the watermark and its partitions, for a checkpoint.
func (w *Watermark) State() (event.Micros, []PartitionState) {
	s := make([]PartitionState, len(w.parts))
	for i, p := range w.parts {
		s[i] = PartitionState{p.max, uint8(p.state)}
	}
	return w.value, s
}

// SetState restores what State returned.
func (w *Watermark) SetState(value event.Micros, parts []PartitionState) error {
	if len(parts) != len(w.parts) {
		return fmt.Errorf("watermark of %d partitions restored onto %d", len(parts), len(w.parts))
	}
	for i, p := range parts {
		if p.State > uint8(empty) {
			return fmt.Errorf("watermark partition %d: state %d is unknown", i, p.State)
		}
		w.parts[i] = partitionMark{p.Max, markState(p.State)}
	}
	w.value = value
	return nil
}

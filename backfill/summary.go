package backfill

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/weftdata/weft/correlate"
)

// Summary describes a finished replay; it is written as summary.json.
type Summary struct {
	Job     string                 `json:"job"`
	Digest  string                 `json:"digest"` // of sessions and reports; equal results have equal digests
	Parts   map[string]string      `json:"digests"`
	Inputs  map[string]SourceStats `json:"inputs"`
	NoInput []string               `json:"sources_without_input,omitempty"`

	Records    int64            `json:"records"`
	Events     int64            `json:"events"`             // that count: not duplicates, not outside the range
	Duplicates int64            `json:"duplicates"`         // events whose identity had been seen
	Folded     int64            `json:"folded"`             // events that repeat another by their source's dedupe fields
	Outside    int64            `json:"outside"`            // events too far from the range to matter
	Skipped    int64            `json:"skipped"`            // events left out by a source's where
	Excluded   int64            `json:"excluded,omitempty"` // events that ReplayConfig.Exclude left out
	Late       int64            `json:"late"`               // always 0: a replay makes nothing late
	Rejects    map[string]int64 `json:"rejects"`            // by reason
	Sessions   int64            `json:"sessions"`
	Scenarios  map[string]int64 `json:"scenarios"` // sessions by scenario
	None       int64            `json:"sessions_without_scenario"`
	Cells      int64            `json:"report_cells"`

	OpenEvents         int64   `json:"open_events_max"` // largest number of events held at once
	StateBytes         int64   `json:"state_bytes_max"`
	StateBytesPerEvent float64 `json:"state_bytes_per_open_event"`
	SpilledBytes       int64   `json:"spilled_bytes"` // 0: all fitted in memory

	Seconds             float64 `json:"seconds"`
	CPUSeconds          float64 `json:"cpu_seconds"` // of the whole process
	RecordsPerSecond    float64 `json:"records_per_second"`
	EventsPerSecond     float64 `json:"events_per_second"`
	RecordsPerCPUSecond float64 `json:"records_per_cpu_second"`
}

// SourceStats counts one input.
type SourceStats struct {
	Path    string           `json:"path"`
	Records int64            `json:"records"`
	Bytes   int64            `json:"bytes"`
	Events  int64            `json:"events"`
	Skipped int64            `json:"skipped"`
	Lost    int64            `json:"lost,omitempty"` // of an archive: offsets that were deleted before they were archived
	Rejects map[string]int64 `json:"rejects,omitempty"`
}

// state takes note of the size of a core's state.
func (s *Summary) state(c *correlate.Core) {
	n := c.Stats()
	s.StateBytes = max(s.StateBytes, n.StateBytes)
	if n.OpenEvents > s.OpenEvents {
		s.OpenEvents = n.OpenEvents
		s.StateBytesPerEvent = float64(n.StateBytes) / float64(n.OpenEvents)
	}
}

// add counts what a core saw.
func (s *Summary) add(n correlate.Stats) {
	s.Events += n.Events
	s.Duplicates += n.Duplicates
	s.Folded += n.Folded
	s.Outside += n.Outside
	s.Late += n.Late
}

func (s *Summary) rates() {
	if s.Seconds > 0 {
		s.RecordsPerSecond = float64(s.Records) / s.Seconds
		s.EventsPerSecond = float64(s.Events) / s.Seconds
	}
	if s.CPUSeconds > 0 {
		s.RecordsPerCPUSecond = float64(s.Records) / s.CPUSeconds
	}
}

func (s *Summary) write(path string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	temp := path + ".part"
	if err := os.WriteFile(temp, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(temp, path)
}

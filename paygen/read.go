package paygen

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
)

// LineBytesMax bounds one line of a truth or a sessions file.
const LineBytesMax = 64 << 20

// Event is the identity of one event: partition 0 of its source's topic is left out.
type Event struct {
	Source string `json:"source"`
	Offset int64  `json:"offset"`
	Index  uint16 `json:"index"`
}

// Chain is the truth of one purchase: one line of truth.jsonl.
type Chain struct {
	Number       int64    `json:"chain"`
	Game         string   `json:"game"`
	Channel      string   `json:"channel"`
	User         string   `json:"user"`
	Scenarios    []string `json:"scenarios"` // hold for all that was written, taken together; sorted
	Recognizable bool     `json:"recognizable"`
	Reason       string   `json:"reason"`  // why not: ReasonSplit or ReasonEvidence
	Planned      []string `json:"planned"` // of a chain that is not recognizable: what would hold had nothing been lost
	Events       []Event  `json:"events"`  // that count, by time
	Folded       []Event  `json:"folded"`  // repetitions that do not count
	Parts        []Part   `json:"parts"`   // of a chain that is split: the sessions it must become
}

// Part is what is left together of a split chain.
type Part struct {
	Events    []int    `json:"events"` // positions in the chain's events
	Scenarios []string `json:"scenarios"`
}

// Session is one result of an engine.
type Session struct {
	ID        string   `json:"id"`
	Events    []Event  `json:"events"`
	Scenarios []string `json:"scenarios"`
}

// ReadTruth calls yield for every line of a truth file until yield returns an error. The Chain is yield's to keep.
func ReadTruth(r io.Reader, yield func(*Chain) error) error { return readLines(r, "truth", yield) }

// ReadSessions calls yield for every line of a sessions file until yield returns an error. The Session is yield's to keep.
// Fields that Session lacks are ignored.
func ReadSessions(r io.Reader, yield func(*Session) error) error {
	return readLines(r, "sessions", yield)
}

func readLines[T any](r io.Reader, what string, yield func(*T) error) error {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, 64<<10), LineBytesMax)
	for line := 1; scan.Scan(); line++ {
		var item T
		if err := json.Unmarshal(scan.Bytes(), &item); err != nil {
			return fmt.Errorf("read %s, line %d: %w", what, line, err)
		}
		if err := yield(&item); err != nil {
			return err
		}
	}
	if err := scan.Err(); err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

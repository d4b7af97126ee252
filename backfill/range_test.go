package backfill

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/results"
)

// TestPiecesOfTime cuts time at random points. The sessions of the pieces must be those of the whole, each exactly once.
func TestPiecesOfTime(t *testing.T) {
	const span = 72 * time.Hour
	e := generate(t, 4, 5000, span)
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	pieces := cutAndCompare(t, e, start.Add(-time.Hour), span+48*time.Hour, 5)
	if pieces.outside > 0 {
		t.Log("events too far from a piece to matter:", pieces.outside)
	}
}

// TestPiecesOfEndlessChains cuts chains that go on for months, and chains about as long as max_span: how they are cut into
// sessions must not depend on the piece of time that is looked at.
func TestPiecesOfEndlessChains(t *testing.T) {
	const job = `version: weft/v1
job: devices
sources:
  pings:
    format: logfmt
    time: {field: at, layout: unix_s}
    step: {value: ping}
    keys: {device: device, trip: trip}
session: {gap: 1h, max_span: 24h}
reports:
  - {name: trips, every: 6h, measures: {trips: count(), pings: sum(events)}}
`
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 5))
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	const span = 40 * 24 * time.Hour
	var lines []string
	for device := range 60 {
		// Each pauses around the gap, some never for long: from short sessions to one that fills all of the time.
		for at := start.Unix(); at < start.Add(span).Unix(); at += 300 + r.Int64N(int64(1000+device*60)) {
			line := fmt.Sprintf("at=%d device=d%d", at, device)
			if r.IntN(40) == 0 { // ties two devices for a while
				line += fmt.Sprintf(" trip=t%d", r.IntN(60))
			}
			lines = append(lines, line)
		}
	}
	r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	path := filepath.Join(t.TempDir(), "pings.log")
	writeFile(t, path, []byte(strings.Join(lines, "\n")))
	e := &environment{job: compile(t, job), inputs: []Input{{"pings", path}}}
	t.Logf("seed %d, %d events", seed, len(lines))
	pieces := cutAndCompare(t, e, start, span, 7)
	if pieces.outside == 0 {
		t.Error("no event was too far from a piece: the pieces prove little")
	}
}

type pieceSums struct{ outside int64 }

// cutAndCompare replays the whole and then every piece between random cuts.
func cutAndCompare(t *testing.T, e *environment, start time.Time, span time.Duration, cuts int) (sums pieceSums) {
	t.Helper()
	whole, out := e.replay(t, nil)
	wantCells := cellSums(t, filepath.Join(out, "reports.jsonl"))
	wantLines := sortedLines(t, filepath.Join(out, "sessions.jsonl"))
	if whole.Sessions < 50 {
		t.Fatalf("%d sessions prove little", whole.Sessions)
	}
	rounds := 1
	if *long {
		rounds = 10
	}
	for range rounds {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 1))
		at := []event.Micros{-1 << 60, 1 << 60}
		for range cuts {
			at = append(at, event.Micros(start.Add(time.Duration(r.Int64N(int64(span)))).UnixMicro()))
		}
		at = append(at, startOf(t, wantLines[r.IntN(len(wantLines))])) // a cut exactly at a start
		slices.Sort(at)

		var files []string
		digest, cells, sessions := new(big.Int), map[string]int64{}, int64(0)
		for i := range at[:len(at)-1] {
			s, out := e.replay(t, func(c *ReplayConfig) {
				c.Range = correlate.Range{From: at[i], To: at[i+1]}
				if i%2 == 1 {
					c.MemoryBytes = MemoryBytesMin
				}
			})
			files = append(files, filepath.Join(out, "sessions.jsonl"))
			digest.Add(digest, number(t, s.Parts["sessions"]))
			for cell, n := range cellSums(t, filepath.Join(out, "reports.jsonl")) {
				cells[cell] += n
			}
			sessions += s.Sessions
			sums.outside += s.Outside
			if fmt.Sprint(s.Rejects) != fmt.Sprint(whole.Rejects) {
				t.Errorf("piece %d has rejects %v, the whole %v", i, s.Rejects, whole.Rejects)
			}
		}
		sameLines(t, fmt.Sprintf("sessions of pieces (seed %d)", seed), sortedLines(t, files...), wantLines)
		digest.Mod(digest, new(big.Int).Lsh(big.NewInt(1), 256))
		if want := number(t, whole.Parts["sessions"]); digest.Cmp(want) != 0 {
			t.Errorf("seed %d: the digests of the pieces' sessions add up to %x, want %x", seed, digest, want)
		}
		if sessions != whole.Sessions {
			t.Errorf("seed %d: the pieces have %d sessions, want %d", seed, sessions, whole.Sessions)
		}
		for cell, n := range wantCells {
			if cells[cell] != n {
				t.Errorf("seed %d: the pieces' cells %s add up to %d, want %d", seed, cell, cells[cell], n)
			}
		}
		if len(cells) != len(wantCells) {
			t.Errorf("seed %d: the pieces have %d measures in cells, want %d", seed, len(cells), len(wantCells))
		}
	}
	return sums
}

// number reads a digest as the sum that it is.
func number(t *testing.T, digest string) *big.Int {
	t.Helper()
	n, ok := new(big.Int).SetString(digest, 16)
	if !ok {
		t.Fatalf("digest %q is no number", digest)
	}
	return n
}

// cellSums returns every measure of every cell.
func cellSums(t *testing.T, path string) map[string]int64 {
	t.Helper()
	sums := map[string]int64{}
	for c, err := range results.ReadReports(path) {
		if err != nil {
			t.Fatal(err)
		}
		for name, n := range c.Measures {
			sums[fmt.Sprint(c.Report, c.Window, c.By, name)] += n
		}
	}
	return sums
}

// startOf reads the start from a line of sessions.jsonl.
func startOf(t *testing.T, line string) event.Micros {
	t.Helper()
	_, rest, _ := strings.Cut(line, `"start":"`)
	text, _, _ := strings.Cut(rest, `"`)
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return event.Micros(at.UnixMicro())
}

package backfill

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/results"
)

// sink writes the files of a result. It implements correlate.Output; an error is kept until finish. Files get their
// names only when all are complete.
type sink struct {
	cfg      *ReplayConfig
	s        Summary
	files    []*resultFile
	sessions *results.Sessions
	rejects  *results.Rejects
	reports  *results.Reports
	digester *correlate.Digester
	hits     []int64
	cells    cells
	err      error
}

// cells collects report cells. Shards hand out parts of a cell; the cell is their sum.
type cells struct {
	list     []cellRef
	keys     []byte // of all cells: the values of the fields, each with its length before it
	measures []int64
}

type cellRef struct {
	report   int
	window   event.Micros
	key      [2]int // range of keys
	measures int    // start in measures: the number of sessions, then the measures
}

type resultFile struct {
	f    *os.File
	w    *bufio.Writer
	name string // final name
}

func (r *replay) newSink() (*sink, error) {
	k := &sink{
		cfg:      r.cfg,
		digester: correlate.NewDigester(&r.job.Config),
		hits:     make([]int64, len(r.job.Config.Scenarios)),
	}
	k.s = Summary{Job: r.job.Spec.Job, Inputs: map[string]SourceStats{}, Rejects: map[string]int64{}, Scenarios: map[string]int64{}}
	if r.cfg.Out == "" {
		return k, nil
	}
	if err := os.MkdirAll(r.cfg.Out, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder for the results: %w", err)
	}
	meta := results.MetaOf(r.job.Spec)
	var errs [3]error
	k.sessions, errs[0] = openResult(k, "sessions", results.NewSessions, meta)
	k.rejects, errs[1] = openResult(k, "rejects", results.NewRejects, meta)
	k.reports, errs[2] = openResult(k, "reports", results.NewReports, meta)
	if err := errors.Join(errs[:]...); err != nil {
		k.abort()
		return nil, err
	}
	return k, nil
}

func openResult[W any](k *sink, kind string, start func(io.Writer, results.Format, results.Meta) (W, error), meta results.Meta) (w W, err error) {
	name := filepath.Join(k.cfg.Out, kind+"."+string(k.cfg.Format))
	f, err := os.Create(name + ".part")
	if err != nil {
		return w, fmt.Errorf("write %s: %w", kind, err)
	}
	file := &resultFile{f, bufio.NewWriterSize(f, 1<<20), name}
	k.files = append(k.files, file)
	return start(file.w, k.cfg.Format, meta)
}

// batch counts a decoded batch and writes its rejects.
func (k *sink) batch(b *pipelineBatch) error {
	in := &b.input.stats
	in.Records += int64(len(b.Records) + b.unread)
	in.Events += int64(len(b.Events))
	in.Skipped += b.Skipped
	k.s.Excluded += int64(b.excluded)
	for i := range b.Rejects {
		reject := &b.Rejects[i]
		if in.Rejects == nil {
			in.Rejects = map[string]int64{}
		}
		in.Rejects[string(reject.Reason)]++
		if k.rejects == nil {
			continue
		}
		if err := k.rejects.Write(&b.Batch, reject); err != nil {
			return fmt.Errorf("write rejects: %w", err)
		}
	}
	return k.err
}

// Upsert writes a session. In a replay every session is handed out once, when it can no longer change.
func (k *sink) Upsert(_ uint64, row *correlate.Row) {
	k.s.Sessions++
	for _, h := range row.Hits {
		k.hits[h.Scenario]++
	}
	if len(row.Hits) == 0 {
		k.s.None++
	}
	k.digester.Row(row)
	if k.sessions == nil {
		return
	}
	if err := k.sessions.Write(row); err != nil && k.err == nil {
		k.err = fmt.Errorf("write sessions: %w", err)
	}
}

// Tombstone cannot happen: nothing is handed out before it is final.
func (k *sink) Tombstone(_ uint64, id correlate.ID) {
	k.err = fmt.Errorf("session %s was taken back after it was final: this is a defect of the engine", id)
}

// Cell takes in a part of a report cell.
func (k *sink) Cell(_ uint64, c *correlate.Cell) {
	k.cells.add(c)
}

func (s *cells) add(c *correlate.Cell) {
	start := len(s.keys)
	for _, v := range c.By {
		s.keys = append(binary.AppendUvarint(s.keys, uint64(len(v))), v...)
	}
	s.list = append(s.list, cellRef{c.Report, c.Window, [2]int{start, len(s.keys)}, len(s.measures)})
	s.measures = append(append(s.measures, c.Sessions), c.Measures...)
}

func (s *cells) key(r cellRef) []byte { return s.keys[r.key[0]:r.key[1]] }

// each calls yield for every cell in order of report, window and fields, and returns their number.
func (s *cells) each(measures func(report int) int, yield func(*correlate.Cell)) (n int64) {
	compare := func(a, b cellRef) int {
		if a.report != b.report {
			return a.report - b.report
		}
		if a.window != b.window {
			return cmp.Compare(a.window, b.window)
		}
		return bytes.Compare(s.key(a), s.key(b))
	}
	slices.SortFunc(s.list, compare)
	var c correlate.Cell
	for i := 0; i < len(s.list); {
		r := s.list[i]
		c.Report, c.Window, c.By = r.report, r.window, c.By[:0]
		for rest := s.key(r); len(rest) > 0; {
			size, used := binary.Uvarint(rest)
			c.By = append(c.By, rest[used:used+int(size)])
			rest = rest[used+int(size):]
		}
		sums := s.measures[r.measures : r.measures+1+measures(r.report)]
		for i++; i < len(s.list) && compare(s.list[i], r) == 0; i++ {
			for j := range sums {
				sums[j] += s.measures[s.list[i].measures+j]
			}
		}
		if c.Sessions, c.Measures = sums[0], sums[1:]; c.Sessions == 0 {
			continue
		}
		yield(&c)
		n++
	}
	return n
}

// Late cannot happen: a replay moves the watermark only over what it has read in order.
func (k *sink) Late(b *event.Batch, i int) {
	k.err = fmt.Errorf("event %d of record %d was late: this is a defect of the engine", b.Events[i].Index, b.Events[i].Offset)
}

// finish writes the reports, completes all files and gives them their names.
func (k *sink) finish(p *pipeline, stats correlate.Stats) (*Summary, error) {
	measures := func(report int) int { return len(k.cfg.Job.Config.Reports[report].Measures) }
	k.s.Cells = k.cells.each(measures, func(c *correlate.Cell) {
		k.digester.Cell(c)
		if k.reports == nil {
			return
		}
		if err := k.reports.Write(c); err != nil && k.err == nil {
			k.err = fmt.Errorf("write reports: %w", err)
		}
	})
	if err := k.complete(); err != nil {
		return nil, fmt.Errorf("write results: %w", err)
	}
	s := &k.s
	s.add(stats)
	for i, n := range k.hits {
		s.Scenarios[k.cfg.Job.Config.Scenarios[i].Name] = n
	}
	for _, in := range p.inputs {
		in.stats.Path, in.stats.Bytes = in.Path, in.reader.BytesRead()
		if a, ok := in.reader.(*archiveRecords); ok {
			in.stats.Lost = a.lost
		}
		s.Records += in.stats.Records
		s.Skipped += in.stats.Skipped
		for reason, n := range in.stats.Rejects {
			s.Rejects[reason] += n
		}
		s.Inputs[in.Source] = in.stats
	}
	for _, source := range k.cfg.Job.Spec.Sources {
		if _, ok := s.Inputs[source.Name]; !ok {
			s.NoInput = append(s.NoInput, source.Name)
		}
	}
	s.Parts = map[string]string{"sessions": k.digester.Sessions.String(), "reports": k.digester.Reports.String()}
	sum := sha256.Sum256([]byte(s.Parts["sessions"] + s.Parts["reports"]))
	s.Digest = hex.EncodeToString(sum[:])
	return s, nil
}

// complete writes what is left of the files, and gives them their names.
func (k *sink) complete() error {
	if k.cfg.Out == "" {
		return k.err
	}
	err := errors.Join(k.err, k.sessions.Close(), k.rejects.Close(), k.reports.Close())
	for _, f := range k.files {
		err = errors.Join(err, f.w.Flush(), f.f.Close())
	}
	if err != nil {
		return err
	}
	for _, f := range k.files {
		if err := os.Rename(f.f.Name(), f.name); err != nil {
			return err
		}
	}
	k.files = nil
	k.removeOther()
	return nil
}

// removeOther removes the results of an earlier replay in the other format: two files of one name would disagree.
func (k *sink) removeOther() {
	other := results.JSONL
	if k.cfg.Format == results.JSONL {
		other = results.Parquet
	}
	for _, kind := range []string{"sessions", "rejects", "reports"} {
		os.Remove(filepath.Join(k.cfg.Out, kind+"."+string(other)))
	}
}

// abort removes what finish has not completed.
func (k *sink) abort() {
	for _, f := range k.files {
		f.f.Close()
		if strings.HasSuffix(f.f.Name(), ".part") {
			os.Remove(f.f.Name())
		}
	}
	k.files = nil
}

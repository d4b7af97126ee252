package backfill

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
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
	cells    map[string]*correlate.Cell // shards hand out parts of a cell; the cell is their sum
	key      []byte
	err      error
}

type resultFile struct {
	f    *os.File
	w    *bufio.Writer
	name string // final name
}

func (r *replay) newSink() (*sink, error) {
	if err := os.MkdirAll(r.cfg.Out, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder for the results: %w", err)
	}
	k := &sink{
		cfg:      r.cfg,
		digester: correlate.NewDigester(&r.job.Config),
		hits:     make([]int64, len(r.job.Config.Scenarios)),
		cells:    map[string]*correlate.Cell{},
	}
	k.s = Summary{Job: r.job.Spec.Job, Inputs: map[string]SourceStats{}, Rejects: map[string]int64{}, Scenarios: map[string]int64{}}
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
	in.Records += int64(len(b.Records))
	in.Events += int64(len(b.Events))
	in.Skipped += b.Skipped
	for i := range b.Rejects {
		reject := &b.Rejects[i]
		if in.Rejects == nil {
			in.Rejects = map[string]int64{}
		}
		in.Rejects[string(reject.Reason)]++
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
	key := binary.BigEndian.AppendUint32(k.key[:0], uint32(c.Report))
	key = binary.BigEndian.AppendUint64(key, uint64(c.Window)^1<<63) // sorts as the time does
	for _, v := range c.By {
		key = append(binary.BigEndian.AppendUint32(key, uint32(len(v))), v...)
	}
	k.key = key
	if cell, ok := k.cells[string(key)]; ok {
		for i, m := range c.Measures {
			cell.Measures[i] += m
		}
		return
	}
	cell := &correlate.Cell{Report: c.Report, Window: c.Window, Measures: slices.Clone(c.Measures)}
	for _, v := range c.By {
		cell.By = append(cell.By, slices.Clone(v))
	}
	k.cells[string(key)] = cell
}

// Late cannot happen: a replay moves the watermark only over what it has read in order.
func (k *sink) Late(b *event.Batch, i int) {
	k.err = fmt.Errorf("event %d of record %d was late: this is a defect of the engine", b.Events[i].Index, b.Events[i].Offset)
}

// finish writes the reports, completes all files and gives them their names.
func (k *sink) finish(p *pipeline, stats correlate.Stats) (*Summary, error) {
	for _, key := range slices.Sorted(maps.Keys(k.cells)) {
		cell := k.cells[key]
		k.digester.Cell(cell)
		if err := k.reports.Write(cell); err != nil && k.err == nil {
			k.err = fmt.Errorf("write reports: %w", err)
		}
	}
	err := errors.Join(k.err, k.sessions.Close(), k.rejects.Close(), k.reports.Close())
	for _, f := range k.files {
		err = errors.Join(err, f.w.Flush(), f.f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("write results: %w", err)
	}
	for _, f := range k.files {
		if err := os.Rename(f.f.Name(), f.name); err != nil {
			return nil, fmt.Errorf("write results: %w", err)
		}
	}
	k.files = nil
	k.removeOther()

	s := &k.s
	s.add(stats)
	s.Cells = int64(len(k.cells))
	for i, n := range k.hits {
		s.Scenarios[k.cfg.Job.Config.Scenarios[i].Name] = n
	}
	for _, in := range p.inputs {
		in.stats.Path, in.stats.Bytes = in.Path, in.reader.BytesRead()
		s.Records += in.stats.Records
		s.Skipped += in.stats.Skipped
		for reason, n := range in.stats.Rejects {
			s.Rejects[reason] += n
		}
		s.Inputs[in.Source] = in.stats
	}
	s.Parts = map[string]string{"sessions": k.digester.Sessions.String(), "reports": k.digester.Reports.String()}
	sum := sha256.Sum256([]byte(s.Parts["sessions"] + s.Parts["reports"]))
	s.Digest = hex.EncodeToString(sum[:])
	return s, nil
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

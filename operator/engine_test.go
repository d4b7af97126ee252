package operator_test

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
)

// coreEngine drives the core itself.
type coreEngine struct {
	job     *operator.Job
	meta    results.Meta
	core    *correlate.Core
	decoder *operator.Decoder
	batch   event.Batch
	changes []change
	err     error
	seq     uint64
}

func newCoreEngine(t *testing.T, job *operator.Job) engine {
	t.Helper()
	core, err := correlate.New(job.Config)
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := job.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	return &coreEngine{job: job, meta: results.MetaOf(job.Spec), core: core, decoder: decoder}
}

func (e *coreEngine) Apply(records []record) error {
	e.batch.Reset()
	for _, r := range records {
		n := slices.IndexFunc(e.meta.Sources, func(s results.Source) bool { return s.Name == r.source })
		if n < 0 {
			return fmt.Errorf("the job has no source %q", r.source)
		}
		e.batch.Add(event.Record{Source: uint16(n), Partition: r.partition, Offset: r.offset, Timestamp: event.MinTime}, []byte(r.raw))
	}
	e.decoder.Decode(&e.batch)
	for i := range e.batch.Rejects {
		r := &e.batch.Rejects[i]
		id := record{source: e.meta.Sources[r.Record.Source].Name, partition: r.Record.Partition, offset: r.Record.Offset}.identity()
		e.changes = append(e.changes, change{reject, id, rejectText(id, string(r.Reason), r.Detail)})
	}
	if err := e.core.Apply(&e.batch, e); err != nil {
		return err
	}
	return e.err
}

func rejectText(id, reason, detail string) string {
	return strings.TrimSpace(id + " " + reason + " " + detail)
}

func (e *coreEngine) Advance(watermark event.Micros) error {
	e.core.Advance(watermark, e)
	return e.err
}

func (e *coreEngine) Flush() error {
	e.core.Flush(e)
	return e.err
}

// Restart also holds the restored core against the one that it came from: the next snapshots of both must be equal.
func (e *coreEngine) Restart() error {
	core, err := correlate.Restore(e.job.Config, e.core.AppendSnapshot(nil))
	if err != nil {
		return err
	}
	if restored, left := core.AppendSnapshot(nil), e.core.AppendSnapshot(nil); !bytes.Equal(restored, left) {
		return fmt.Errorf("the restored core has a snapshot of %d bytes, which differs from that of %d bytes of the core before", len(restored), len(left))
	}
	e.core = core
	return nil
}

func (e *coreEngine) Changes() []change {
	list := e.changes
	e.changes = nil
	return list
}

// sequence checks that every change has the next number.
func (e *coreEngine) sequence(seq uint64) {
	if e.seq++; seq != e.seq && e.err == nil {
		e.err = fmt.Errorf("a change has number %d, want %d", seq, e.seq)
	}
}

func (e *coreEngine) Upsert(seq uint64, r *correlate.Row) {
	e.sequence(seq)
	line := e.line(func(b *bytes.Buffer) (closer, error) {
		w, err := results.NewSessions(b, results.JSONL, e.meta)
		return w, cmp.Or(err, w.Write(r))
	})
	e.changes = append(e.changes, change{upsert, r.ID.String(), line})
}

func (e *coreEngine) Tombstone(seq uint64, id correlate.ID) {
	e.sequence(seq)
	e.changes = append(e.changes, change{kind: tombstone, id: id.String()})
}

func (e *coreEngine) Cell(seq uint64, c *correlate.Cell) {
	e.sequence(seq)
	line := e.line(func(b *bytes.Buffer) (closer, error) {
		w, err := results.NewReports(b, results.JSONL, e.meta)
		return w, cmp.Or(err, w.Write(c))
	})
	e.changes = append(e.changes, change{cell, cellID(line), line})
}

// cellID is what tells cells apart: all but the measures.
func cellID(line string) string {
	id, _, _ := strings.Cut(line, `"measures":`)
	return id
}

func (e *coreEngine) Late(b *event.Batch, i int) {
	x := &b.Events[i]
	id := record{source: e.meta.Sources[x.Source].Name, partition: x.Partition, offset: x.Offset}.identity()
	e.changes = append(e.changes, change{late, id, fmt.Sprintf("%s %s %s", id, timeText(x.Time), b.Steps[x.Step])})
}

type closer interface{ Close() error }

// line returns what a writer writes, without the line's end.
func (e *coreEngine) line(write func(*bytes.Buffer) (closer, error)) string {
	var b bytes.Buffer
	w, err := write(&b)
	e.err = cmp.Or(e.err, err, w.Close())
	return strings.TrimSuffix(b.String(), "\n")
}

// backfillEngine writes all records into archives and replays them at the end: it has no watermark and no changes before.
type backfillEngine struct {
	t       *testing.T
	job     *operator.Job
	records []record
	done    bool
	changes []change
}

func newBackfillEngine(t *testing.T, job *operator.Job) engine {
	return &backfillEngine{t: t, job: job}
}

func (e *backfillEngine) Apply(records []record) error {
	e.records = append(e.records, records...)
	return nil
}

func (e *backfillEngine) Advance(watermark event.Micros) error {
	if watermark != event.MaxTime || e.done {
		return nil
	}
	e.done = true
	return e.replay()
}

func (e *backfillEngine) Flush() error   { return nil }
func (e *backfillEngine) Restart() error { return nil }

func (e *backfillEngine) Changes() []change {
	list := e.changes
	e.changes = nil
	return list
}

func (e *backfillEngine) replay() error {
	cfg := backfill.ReplayConfig{Job: e.job, Out: e.t.TempDir(), Format: results.JSONL}
	for _, s := range e.job.Spec.Sources {
		path := filepath.Join(e.t.TempDir(), s.Name+".parquet")
		if err := e.archive(s.Name, s.Topic, path); err != nil {
			return err
		}
		cfg.Inputs = append(cfg.Inputs, backfill.Input{Source: s.Name, Path: path})
	}
	if _, err := backfill.Replay(e.t.Context(), cfg); err != nil {
		return err
	}
	for _, file := range []struct {
		kind changeKind
		name string
	}{{upsert, "sessions.jsonl"}, {cell, "reports.jsonl"}} {
		text, err := os.ReadFile(filepath.Join(cfg.Out, file.name))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSuffix(line, "\n")
			id := cellID(line)
			if file.kind == upsert {
				var s sessionLine
				mustJSON(line, &s)
				id = s.ID
			}
			e.changes = append(e.changes, change{file.kind, id, line})
		}
	}
	for r, err := range results.ReadRejects(filepath.Join(cfg.Out, "rejects.jsonl")) {
		if err != nil {
			return err
		}
		id := record{source: r.Source, partition: r.Partition, offset: r.Offset}.identity()
		e.changes = append(e.changes, change{reject, id, rejectText(id, r.Reason, r.Detail)})
	}
	return nil
}

// archive writes the records of a source in order of position, each once, as the archive holds them.
func (e *backfillEngine) archive(source, topic, path string) error {
	var list []archive.Record
	for _, r := range e.records {
		if r.source == source {
			list = append(list, archive.Record{Topic: topic, Partition: r.partition, Offset: r.offset, Timestamp: event.MinTime, Value: []byte(r.raw)})
		}
	}
	slices.SortStableFunc(list, func(a, b archive.Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	list = slices.CompactFunc(list, func(a, b archive.Record) bool { return a.Partition == b.Partition && a.Offset == b.Offset })
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := archive.NewWriter(f)
	for i := range list {
		if err := w.Write(&list[i]); err != nil {
			return err
		}
	}
	return cmp.Or(w.Close(), f.Close())
}

// Package results writes what a replay gives — sessions, rejects and reports — as JSON lines or Parquet, and reads it back.
// Equal input gives equal bytes. Text is always valid UTF-8: each byte that is not part of a character becomes U+FFFD.
package results

import (
	"fmt"
	"io"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// Format is how results are written; it is also the extension of the file's name.
type Format string

// The formats.
const (
	JSONL   Format = "jsonl"
	Parquet Format = "parquet"
)

// Meta names what rows and cells give as numbers.
type Meta struct {
	Job       string
	Sources   []Source           // by RowEvent.Source and Record.Source
	Kinds     []string           // by RowKey.Kind
	Fields    []jobspec.FieldDef // of Row.Fields
	User      int                // number of the field of the user view; -1: none
	Scenarios []string           // by Hit.Scenario
	Reports   []Report           // by Cell.Report
}

// Source names a source and its topic.
type Source struct{ Name, Topic string }

// Report names a report, its fields in the order of Cell.By and its measures in the order of Cell.Measures.
type Report struct {
	Name     string
	By       []string
	Measures []string
}

// MetaOf takes the names from a spec.
func MetaOf(spec *jobspec.Spec) Meta {
	m := Meta{Job: spec.Job, Fields: spec.Fields, User: -1}
	for _, s := range spec.Sources {
		m.Sources = append(m.Sources, Source{s.Name, s.Topic})
	}
	for _, k := range spec.Kinds {
		m.Kinds = append(m.Kinds, k.Name)
	}
	for i, f := range spec.Fields {
		if spec.User != "" && f.Name == spec.User {
			m.User = i
		}
	}
	for _, s := range spec.Scenarios {
		m.Scenarios = append(m.Scenarios, s.Name)
	}
	for _, r := range spec.Reports {
		report := Report{Name: r.Name}
		for _, field := range r.By {
			report.By = append(report.By, spec.Fields[field].Name)
		}
		for _, measure := range r.Measures {
			report.Measures = append(report.Measures, measure.Name)
		}
		m.Reports = append(m.Reports, report)
	}
	return m
}

// Sessions writes sessions. It keeps nothing of a row.
type Sessions struct {
	w interface {
		write(*correlate.Row) error
		close() error
	}
}

// NewSessions starts a file of sessions.
func NewSessions(w io.Writer, format Format, m Meta) (*Sessions, error) {
	switch format {
	case JSONL:
		return &Sessions{newJSONSessions(w, m)}, nil
	case Parquet:
		return &Sessions{newParquetSessions(w, m)}, nil
	}
	return nil, unknown(format)
}

// Write appends one session. After an error the file is of no use.
func (s *Sessions) Write(r *correlate.Row) error { return s.w.write(r) }

// Close writes what is buffered and, in Parquet, the footer without which the file cannot be read. It does not close the
// io.Writer.
func (s *Sessions) Close() error { return s.w.close() }

// Rejects writes rejected records.
type Rejects struct {
	w interface {
		write(raw []byte, r *event.Reject) error
		close() error
	}
}

// NewRejects starts a file of rejects.
func NewRejects(w io.Writer, format Format, m Meta) (*Rejects, error) {
	switch format {
	case JSONL:
		return &Rejects{newJSONRejects(w, m)}, nil
	case Parquet:
		return &Rejects{newParquetRejects(w, m)}, nil
	}
	return nil, unknown(format)
}

// Write appends one reject; its raw bytes are in the batch.
func (s *Rejects) Write(b *event.Batch, r *event.Reject) error { return s.w.write(b.Raw(r.Record), r) }

// Close ends the file as Sessions.Close does.
func (s *Rejects) Close() error { return s.w.close() }

// Reports writes the cells of reports.
type Reports struct {
	w interface {
		write(*correlate.Cell) error
		close() error
	}
}

// NewReports starts a file of report cells.
func NewReports(w io.Writer, format Format, m Meta) (*Reports, error) {
	switch format {
	case JSONL:
		return &Reports{newJSONReports(w, m)}, nil
	case Parquet:
		return &Reports{newParquetReports(w, m)}, nil
	}
	return nil, unknown(format)
}

// Write appends one cell.
func (s *Reports) Write(c *correlate.Cell) error { return s.w.write(c) }

// Close ends the file as Sessions.Close does.
func (s *Reports) Close() error { return s.w.close() }

func unknown(f Format) error {
	return fmt.Errorf("results cannot be written as %q: expected %s or %s", string(f), JSONL, Parquet)
}

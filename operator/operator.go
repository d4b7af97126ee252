// Package operator compiles a job spec into the one operator core that streaming, backfill and replay all drive: the
// decoders of its sources, and the configuration of a correlation core with its rules.
package operator

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/decode"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/rules"
)

// Job is a compiled spec.
type Job struct {
	Spec   *jobspec.Spec
	Config correlate.Config // of a core; a driver sets Range where it owns a part of time
	// Interpreted lists the rules that have no native form and so run many times slower, such as "scenarios[2].when: …".
	Interpreted []string

	options decode.Options
}

// Compile compiles a spec. seed should be chosen at random by the process, so that nobody can prepare key values that
// collide; results do not depend on it. Everything that is wrong with the spec is returned at once as jobspec.Problems,
// in order of the text.
func Compile(spec *jobspec.Spec, seed uint64, assets decode.Assets) (*Job, error) {
	j := &Job{Spec: spec, options: decode.Options{Seed: seed, Assets: assets}}
	var problems jobspec.Problems
	for i := range spec.Sources {
		if _, err := decode.New(spec, i, j.options); err != nil {
			problems = append(problems, asProblems(err)...)
		}
	}
	set, err := rules.Compile(spec)
	if err != nil {
		problems = append(problems, asProblems(err)...)
	}
	if _, err := rules.CompileGates(spec); err != nil {
		problems = append(problems, asProblems(err)...)
	}
	if len(problems) > 0 {
		slices.SortStableFunc(problems, func(x, y *jobspec.Problem) int {
			return cmp.Or(cmp.Compare(x.Pos.Line, y.Pos.Line), cmp.Compare(x.Pos.Column, y.Pos.Column))
		})
		return nil, problems
	}
	j.Interpreted = set.Interpreted
	j.Config = config(spec, set)
	j.Config.Seed = seed
	if err := j.Config.Validate(); err != nil {
		return nil, fmt.Errorf("compile job %s: %w", spec.Job, err)
	}
	return j, nil
}

func asProblems(err error) jobspec.Problems {
	var ps jobspec.Problems
	if errors.As(err, &ps) {
		return ps
	}
	var p *jobspec.Problem
	if errors.As(err, &p) {
		return jobspec.Problems{p}
	}
	return jobspec.Problems{{Message: err.Error()}}
}

func config(spec *jobspec.Spec, set *rules.Set) correlate.Config {
	c := correlate.Config{
		Steps: set.Steps,
		Session: correlate.Session{
			MaxSpan:   micros(spec.Session.MaxSpan),
			Settle:    micros(spec.Session.Settle),
			Retention: micros(spec.Session.Retention),
		},
		TimelineEvents: spec.Limits.TimelineEvents,
		Scenarios:      set.Scenarios,
	}
	for _, s := range spec.Sources {
		c.Topics = append(c.Topics, s.Topic)
	}
	for _, k := range spec.Kinds {
		c.Kinds = append(c.Kinds, correlate.Kind{Name: k.Name, Gap: micros(k.Gap)})
	}
	for _, f := range spec.Fields {
		c.Fields = append(c.Fields, correlate.Field{Name: f.Name, Int: f.Type == jobspec.IntField})
	}
	ops := map[jobspec.MeasureOp]correlate.Op{
		jobspec.CountSessions: correlate.CountSessions,
		jobspec.CountScenario: correlate.CountScenario,
		jobspec.SumField:      correlate.SumField,
		jobspec.SumDuration:   correlate.SumDuration,
		jobspec.SumEvents:     correlate.SumEvents,
	}
	for _, r := range spec.Reports {
		report := correlate.Report{Name: r.Name, Every: micros(r.Every), By: r.By}
		for _, m := range r.Measures {
			measure := correlate.Measure{Name: m.Name, Op: ops[m.Op]}
			switch m.Op {
			case jobspec.CountScenario:
				measure.Arg = m.Scenario
			case jobspec.SumField:
				measure.Arg = m.Field
			}
			report.Measures = append(report.Measures, measure)
		}
		c.Reports = append(c.Reports, report)
	}
	return c
}

func micros(d time.Duration) event.Micros { return event.Micros(d.Microseconds()) }

// Decoder decodes batches of all sources of a job. It keeps scratch memory: use one per goroutine.
type Decoder struct {
	bySource []decode.Decoder
	rows     []decode.Decoder // of rows, by source; nil: not needed yet
	job      *Job
}

// NewDecoder returns a decoder for the job's records.
func (j *Job) NewDecoder() (*Decoder, error) {
	d := &Decoder{job: j, rows: make([]decode.Decoder, len(j.Spec.Sources))}
	for i := range j.Spec.Sources {
		one, err := decode.New(j.Spec, i, j.options)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", j.Spec.Sources[i].Name, err)
		}
		d.bySource = append(d.bySource, one)
	}
	return d, nil
}

// Decode appends the events and rejects of the batch's records to the batch.
func (d *Decoder) Decode(b *event.Batch) {
	for _, r := range b.Records {
		d.DecodeRecord(b, r)
	}
}

// DecodeRecord appends the events of one of the batch's records to the batch, or one reject and no event.
func (d *Decoder) DecodeRecord(b *event.Batch, r event.Record) { d.bySource[r.Source].Decode(b, r) }

// DecodeRows appends the events and rejects of a batch's records to the batch, all of one source, which were rows of Parquet files
// of others. Those that the source's archive has anyway, from parquet.before on, are left out.
func (d *Decoder) DecodeRows(b *event.Batch) error {
	if len(b.Records) == 0 {
		return nil
	}
	n := int(b.Records[0].Source)
	parquet := d.job.Spec.Sources[n].Parquet
	if parquet != nil && parquet.Value != "" { // the column has records as the topic has them
		d.Decode(b)
	} else {
		if d.rows[n] == nil {
			var err error
			if d.rows[n], err = decode.NewRows(d.job.Spec, n, d.job.options); err != nil {
				return fmt.Errorf("source %s: %w", d.job.Spec.Sources[n].Name, err)
			}
		}
		for _, r := range b.Records {
			d.rows[n].Decode(b, r)
		}
	}
	if parquet != nil && !parquet.Before.IsZero() {
		before := event.Micros(parquet.Before.UnixMicro())
		b.Keep(func(e *event.Event) bool { return e.Time < before })
	}
	return nil
}

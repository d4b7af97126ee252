// Package backfill runs the operator core over bounded input: files of records, and archives in an object store.
package backfill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/lines"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
)

// Input is a file of records of one source, or a folder of Parquet files.
type Input struct {
	Source string
	Path   string // "-" is standard input
}

// ReplayConfig says what to replay. The zero values of the optional members have defaults.
type ReplayConfig struct {
	Job      *operator.Job
	Inputs   []Input
	Archives []ArchiveInput
	Out      string          // folder for the results; empty: none are written, and the summary is all there is
	Format   results.Format  // default parquet
	Range    correlate.Range // sessions to publish, by start; zero: all

	// Until ends topics at offsets, by topic and partition: what has that offset or a later one is not read, and of a topic
	// that is named nothing is read of a partition that is not. Offsets are those of the log, whatever a record's
	// weft-origin header says; a line of text has partition 0. Topics that are not named are read to their end.
	Until map[string]map[int32]int64
	// Exclude tells events to leave out, such as those that were late for a stream; it is called from several goroutines.
	// nil: none.
	Exclude func(source uint16, partition int32, offset int64, index uint16) bool

	MemoryBytes int64  // bound of the state and of what is sorted; default half of the machine's memory
	Decoders    int    // default one per processor
	TempDir     string // for what does not fit in memory; default os.TempDir
	BatchBytes  int    // raw bytes decoded at a time; default 64 KiB

	Progress func(Progress) // called a few times a second, from one goroutine; may be nil
}

// Progress is how far a replay is.
type Progress struct {
	Phase     string // reading, sorting, linking, writing
	BytesRead int64
	BytesAll  int64 // 0 where it is not known
	Records   int64
}

// Validate fills in defaults and reports everything wrong at once.
func (c *ReplayConfig) Validate() error {
	var errs []error
	if c.Out == "" && c.Format != "" {
		errs = append(errs, fmt.Errorf("format %q for results, and no folder for them", c.Format))
	}
	if c.Format == "" {
		c.Format = results.Parquet
	}
	if c.Format != results.Parquet && c.Format != results.JSONL {
		errs = append(errs, fmt.Errorf("format %q: expected parquet or jsonl", c.Format))
	}
	if len(c.Inputs)+len(c.Archives) == 0 {
		errs = append(errs, errors.New("no input"))
	}
	errs = append(errs, c.checkUntil()...)
	if c.MemoryBytes == 0 {
		c.MemoryBytes = memoryBytes() / 2
	}
	if c.MemoryBytes < MemoryBytesMin {
		errs = append(errs, fmt.Errorf("memory of %d bytes: at least %d are needed", c.MemoryBytes, int64(MemoryBytesMin)))
	}
	if c.Decoders == 0 {
		c.Decoders = runtime.GOMAXPROCS(0)
	}
	if c.BatchBytes == 0 {
		c.BatchBytes = 64 << 10
	}
	if c.TempDir == "" {
		c.TempDir = os.TempDir()
	}
	return errors.Join(errs...)
}

// checkUntil checks that Until names what is read.
func (c *ReplayConfig) checkUntil() (errs []error) {
	for _, topic := range slices.Sorted(maps.Keys(c.Until)) {
		known := c.Job == nil // which is told elsewhere
		for i := 0; !known && i < len(c.Job.Spec.Sources); i++ {
			s := &c.Job.Spec.Sources[i]
			known = s.Topic == topic && (slices.ContainsFunc(c.Inputs, func(in Input) bool { return in.Source == s.Name }) ||
				slices.ContainsFunc(c.Archives, func(in ArchiveInput) bool { return in.Source == s.Name }))
		}
		if !known {
			errs = append(errs, fmt.Errorf("until: no input has topic %q", topic))
		}
		for _, id := range slices.Sorted(maps.Keys(c.Until[topic])) {
			if offset := c.Until[topic][id]; id < 0 || offset < 0 {
				errs = append(errs, fmt.Errorf("until: partition %d of %s, offset %d", id, topic, offset))
			}
		}
	}
	return errs
}

// MemoryBytesMin is the least bound of memory that a replay accepts.
const MemoryBytesMin = 16 << 20

// errMemory says that the state outgrew its bound.
var errMemory = errors.New("the open sessions outgrew the memory bound")

// Replay correlates all input and writes sessions, rejects, reports and summary.json into the output folder. What does
// not fit in memory is sorted on disk, so nothing is ever late and the result does not depend on the bound.
func Replay(ctx context.Context, cfg ReplayConfig) (*Summary, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	started, cpu := time.Now(), cpuSeconds()
	r := &replay{cfg: &cfg, job: cfg.Job}
	sources, err := r.resolve()
	if err != nil {
		return nil, err
	}
	// Try in memory: the state of a purchase's events is smaller than their text, so most inputs fit. What does not is
	// found out early, and the work done until then is small beside sorting.
	s, err := r.inMemory(ctx, sources)
	if errors.Is(err, errMemory) {
		s, err = r.onDisk(ctx, sources)
	}
	if err != nil {
		return nil, err
	}
	s.Seconds = time.Since(started).Seconds()
	s.CPUSeconds = cpuSeconds() - cpu
	s.rates()
	if cfg.Out == "" {
		return s, nil
	}
	return s, s.write(filepath.Join(cfg.Out, "summary.json"))
}

type replay struct {
	cfg *ReplayConfig
	job *operator.Job
}

// source is an input with the number of its source. Of an archive the path is where its objects are.
type source struct {
	Input
	archive *ArchiveInput // nil: a file or a folder
	number  uint16
	topic   string
}

// resolve finds the sources that the inputs name.
func (r *replay) resolve() ([]source, error) {
	var out []source
	var errs []error
	all := make([]source, 0, len(r.cfg.Inputs)+len(r.cfg.Archives))
	for _, in := range r.cfg.Inputs {
		all = append(all, source{Input: in})
	}
	for i := range r.cfg.Archives {
		in := &r.cfg.Archives[i]
		all = append(all, source{Input: Input{Source: in.Source}, archive: in})
		if in.Objects == nil {
			errs = append(errs, fmt.Errorf("input %s: no objects to read its archive from", in.Source))
		}
	}
	for _, in := range all {
		found := false
		for i, s := range r.job.Spec.Sources {
			if s.Name != in.Source {
				continue
			}
			if in.number, in.topic = uint16(i), s.Topic; in.archive != nil {
				in.Path = archive.TopicPrefix(s.Topic)
			}
			out = append(out, in)
			found = true
		}
		if !found {
			var names []string
			for _, s := range r.job.Spec.Sources {
				names = append(names, s.Name)
			}
			hint := ""
			if near := jobspec.Nearest(in.Source, names); near != "" {
				hint = fmt.Sprintf("; did you mean %s?", near)
			}
			errs = append(errs, fmt.Errorf("input %s=%s: job %s has no source %q%s (its sources are %s)",
				in.Source, in.Path, r.job.Spec.Job, in.Source, hint, strings.Join(names, ", ")))
		}
	}
	seen := map[uint16]string{}
	stdin := 0
	for _, s := range out {
		if s.Path == "-" {
			stdin++
		}
		if other, ok := seen[s.number]; ok {
			errs = append(errs, fmt.Errorf("source %s has two inputs, %s and %s: lines of both would have the same offsets; concatenate the files, or replay an archive folder", s.Source, other, s.Path))
		}
		seen[s.number] = s.Path
	}
	if stdin > 1 {
		errs = append(errs, fmt.Errorf("%d inputs are standard input (-): only one can be", stdin))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%w%w", ErrUsage, err)
	}
	return out, nil
}

// ErrUsage marks an error of Replay that lies in what was asked for and not in the data.
var ErrUsage = errors.New("")

// records is an open input.
type records interface {
	Fill(b *event.Batch, maxBytes int) (more bool, err error)
	BytesRead() int64
	Size() int64
	Close() error
}

type textRecords struct {
	*lines.Reader
	source uint16
	until  int64 // line to end before
}

func (t textRecords) Fill(b *event.Batch, maxBytes int) (bool, error) {
	more, err := t.Reader.Fill(b, t.source, maxBytes)
	records := len(b.Records)
	b.Records = slices.DeleteFunc(b.Records, func(r event.Record) bool { return r.Offset >= t.until })
	b.Rejects = slices.DeleteFunc(b.Rejects, func(r event.Reject) bool { return r.Record.Offset >= t.until })
	return more && len(b.Records) == records, err // lines come in order
}

type parquetRecords struct {
	*archive.Reader
	source uint16
	topic  string
}

func (p parquetRecords) Fill(b *event.Batch, maxBytes int) (bool, error) {
	return p.Reader.Fill(b, p.source, p.topic, maxBytes)
}

// open opens an input: a folder or a file that starts as Parquet does is an archive, or a table of others; anything else is text.
func (r *replay) open(ctx context.Context, s source) (records, error) {
	if s.archive != nil {
		return r.openArchive(ctx, s)
	}
	until, bounded := r.cfg.Until[s.topic]
	parquet, err := isParquet(s.Path)
	if err != nil {
		return nil, err
	}
	if parquet {
		if files, table, err := tables(s.Path); err != nil || table {
			if err != nil {
				return nil, err
			}
			return r.openTables(s, files)
		}
		a, err := archive.Open(s.Path)
		if err != nil {
			return nil, err
		}
		if bounded {
			a.Until(until)
		}
		return parquetRecords{a, s.number, s.topic}, nil
	}
	l, err := lines.Open(s.Path)
	if err != nil {
		return nil, err
	}
	end := int64(math.MaxInt64)
	if bounded {
		end = until[0]
	}
	return textRecords{l, s.number, end}, nil
}

func isParquet(path string) (bool, error) {
	if path == "-" {
		return false, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, errors.Unwrap(err))
	}
	if info.Mode()&os.ModeType != 0 && !info.IsDir() {
		return false, nil // what is read from a pipe is gone
	}
	if info.IsDir() {
		return true, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, errors.Unwrap(err))
	}
	defer f.Close()
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && string(magic[:]) == "PAR1", nil
}

// decode decodes a batch of the input.
func (in *pipelineInput) decode(d *operator.Decoder, b *event.Batch) error {
	if _, rows := in.reader.(*tableRecords); rows {
		return d.DecodeRows(b)
	}
	d.Decode(b)
	return nil
}

// pipeline reads, decodes and hands over batches. Reading follows event time: the input that is furthest behind is read
// next, so that the records of one session come close together and the state that they touch is warm.
type pipeline struct {
	cfg     *ReplayConfig
	job     *operator.Job
	inputs  []*pipelineInput
	records atomic.Int64
}

type pipelineInput struct {
	source
	reader   records
	size     int64
	frontier atomic.Int64 // largest event time decoded
	flying   atomic.Int32 // batches read and not yet decoded
	stats    SourceStats
}

type pipelineBatch struct {
	event.Batch
	input    *pipelineInput
	unread   int // lines that were rejected without being read whole
	excluded int // events that were left out
}

func (r *replay) pipeline(ctx context.Context, sources []source) (*pipeline, error) {
	p := &pipeline{cfg: r.cfg, job: r.job}
	var errs []error
	for _, s := range sources {
		reader, err := r.open(ctx, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("input %s: %w", s.Source, err))
			continue
		}
		in := &pipelineInput{source: s, reader: reader, size: reader.Size()}
		in.frontier.Store(int64(event.MinTime))
		p.inputs = append(p.inputs, in)
	}
	if len(errs) > 0 {
		p.close()
		return nil, errors.Join(errs...)
	}
	return p, nil
}

func (p *pipeline) close() {
	for _, in := range p.inputs {
		in.reader.Close()
	}
}

// run calls take with every decoded batch, in no particular order, from one goroutine; an error of take or of a read
// ends it.
func (p *pipeline) run(outer context.Context, take func(*pipelineBatch) error) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	pool := make(chan *pipelineBatch, 2*p.cfg.Decoders+len(p.inputs)+2)
	for range cap(pool) {
		pool <- &pipelineBatch{}
	}
	raw := make(chan *pipelineBatch)
	decoded := make(chan *pipelineBatch, p.cfg.Decoders)

	var workers []*operator.Decoder
	for range p.cfg.Decoders {
		d, err := p.job.NewDecoder()
		if err != nil {
			return err
		}
		workers = append(workers, d)
	}
	var decoders sync.WaitGroup
	for _, d := range workers {
		decoders.Go(func() {
			for b := range raw {
				if err := b.input.decode(d, &b.Batch); err != nil {
					cancel(err)
					return
				}
				b.excluded = exclude(&b.Batch, p.cfg.Exclude)
				p.note(b)
				select {
				case decoded <- b:
				case <-ctx.Done():
				}
			}
		})
	}
	go func() {
		if err := p.read(ctx, pool, raw); err != nil {
			cancel(err)
		}
		close(raw)
		decoders.Wait()
		close(decoded)
	}()
	for {
		select {
		case b, ok := <-decoded:
			if !ok {
				return context.Cause(ctx)
			}
			if context.Cause(ctx) == nil {
				if err := take(b); err != nil {
					cancel(err)
				}
			}
			b.Reset()
			pool <- b
		case <-outer.Done(): // a read that waits for a terminal or a pipe would not notice
			return context.Cause(outer)
		}
	}
}

// exclude takes events and their values out of a batch, and returns how many.
func exclude(b *event.Batch, isOut func(source uint16, partition int32, offset int64, index uint16) bool) int {
	if isOut == nil {
		return 0
	}
	before := len(b.Events)
	b.Keep(func(e *event.Event) bool { return !isOut(e.Source, e.Partition, e.Offset, e.Index) })
	return before - len(b.Events)
}

// note counts a decoded batch.
func (p *pipeline) note(b *pipelineBatch) {
	last := int64(event.MinTime)
	for i := range b.Events {
		last = max(last, int64(b.Events[i].Time))
	}
	for {
		old := b.input.frontier.Load()
		if old >= last || b.input.frontier.CompareAndSwap(old, last) {
			break
		}
	}
	b.input.flying.Add(-1)
}

// read fills batches, from the input that is furthest behind in event time, until all are at their end.
func (p *pipeline) read(ctx context.Context, pool, raw chan *pipelineBatch) error {
	left := append([]*pipelineInput(nil), p.inputs...)
	for len(left) > 0 {
		next := 0
		for i, in := range left[1:] {
			if in.before(left[next]) {
				next = i + 1
			}
		}
		in := left[next]
		var b *pipelineBatch
		select {
		case b = <-pool:
		case <-ctx.Done():
			return nil
		}
		b.input = in
		more, err := in.reader.Fill(&b.Batch, p.cfg.BatchBytes)
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Source, err)
		}
		if !more {
			left = append(left[:next], left[next+1:]...)
		}
		b.unread = len(b.Rejects)
		p.records.Add(int64(len(b.Records) + b.unread))
		in.flying.Add(1)
		select {
		case raw <- b:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// before tells which of two inputs to read next. What is in flight has no known time yet, so an input with less of it
// goes first.
func (in *pipelineInput) before(other *pipelineInput) bool {
	if a, b := in.flying.Load(), other.flying.Load(); a != b {
		return a < b
	}
	return in.frontier.Load() < other.frontier.Load()
}

// progress reports how much was read.
func (p *pipeline) progress(phase string) Progress {
	out := Progress{Phase: phase, Records: p.records.Load()}
	for _, in := range p.inputs {
		out.BytesRead += in.reader.BytesRead()
		out.BytesAll += max(in.size, 0)
	}
	return out
}

// watch reports progress until stop is called.
func (r *replay) watch(progress func() Progress) (stop func()) {
	if r.cfg.Progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.cfg.Progress(progress())
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// inMemory links everything as it comes and hands out sessions at the end.
func (r *replay) inMemory(ctx context.Context, sources []source) (*Summary, error) {
	p, err := r.pipeline(ctx, sources)
	if err != nil {
		return nil, err
	}
	defer p.close()
	out, err := r.newSink()
	if err != nil {
		return nil, err
	}
	defer out.abort()
	cfg := r.job.Config
	cfg.Range = r.cfg.Range
	core, err := correlate.New(cfg)
	if err != nil {
		return nil, err
	}
	var phase atomic.Value
	phase.Store("reading")
	stop := r.watch(func() Progress { return p.progress(phase.Load().(string)) })
	defer stop()
	err = p.run(ctx, func(b *pipelineBatch) error {
		if err := out.batch(b); err != nil {
			return err
		}
		if err := core.Apply(&b.Batch, out); err != nil {
			return err
		}
		if core.StateBytes() > r.cfg.MemoryBytes {
			return errMemory
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	phase.Store("writing")
	out.s.state(core)
	core.Advance(event.MaxTime, out)
	core.Flush(out)
	return out.finish(p, core.Stats())
}

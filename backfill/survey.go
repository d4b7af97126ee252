package backfill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

// survey is what the archive holds of a job's topics.
type survey struct {
	files      []*archivedFile // in order of their least event times
	partitions []archivedPartition
	least      event.Micros // of all events; MaxTime where there are none
	greatest   event.Micros
	unbounded  bool // there are files of whose events nothing is known
	totals     PlanTotals
}

// archivedFile is a data file with the times for which it must be read.
type archivedFile struct {
	PlannedFile
	stamps *archive.Span // of the broker; nil: no record has one
	// timeless tells that records have none.
	timeless bool
	stamp    *event.Micros // of all its rejects, if there are any; nil: they have times of their own
	rejects  int64
}

type archivedPartition struct {
	topic    string
	id       int32
	to       int64        // offset up to which it is archived
	greatest event.Micros // of its events; MinTime: none
	first    int          // range of its files until they are sorted
}

func (p *archivedPartition) String() string { return fmt.Sprintf("%s/%d", p.topic, p.id) }

// hasEvents tells whether some of a file's events are in a range.
func (f *archivedFile) hasEvents(r TimeRange) bool { return f.Least < r.To && f.Greatest >= r.From }

// hasRejects tells whether some of a file's rejects may be in a range of timestamps.
func (f *archivedFile) hasRejects(r TimeRange) bool {
	if !f.Rejects || r.empty() {
		return false
	}
	if f.stamp != nil {
		return r.contains(*f.stamp)
	}
	if f.timeless && r.From == event.MinTime { // records without a time belong to the beginning of time
		return true
	}
	return f.stamps != nil && f.stamps.Least < r.To && f.stamps.Greatest >= r.From
}

// readArchive reads the manifests of all topics of a job.
func readArchive(ctx context.Context, in *PlanInput) (*survey, error) {
	s := &survey{least: event.MaxTime, greatest: event.MinTime}
	var unmeasured []*archivedFile
	for number := range in.Job.Spec.Sources {
		a := &archiveRecords{source: archivedSource(in.Job, number, in.Objects)}
		tables := 0
		if p := in.Job.Spec.Sources[number].Parquet; p != nil && p.Path != "" {
			list, err := s.tables(ctx, in, number)
			if err != nil {
				return nil, err
			}
			if tables = len(list); tables > 0 {
				for _, f := range list {
					if f.Least == always.From {
						unmeasured = append(unmeasured, f)
					}
				}
			}
		}
		partitions, err := a.partitions(ctx)
		if errors.Is(err, errNoTopic) && tables > 0 {
			continue // its whole history is of others
		}
		if err != nil {
			return nil, err
		}
		for _, id := range partitions {
			list, err := s.partition(ctx, in, a, id)
			if err != nil {
				return nil, err
			}
			for _, f := range list {
				if f.Least == always.From {
					unmeasured = append(unmeasured, f)
				}
			}
		}
	}
	s.totals.Unmeasured = int64(len(unmeasured))
	if len(unmeasured) > 0 && !in.KeepUnmeasured {
		s.totals.Measured = true
		if err := s.measure(ctx, in, unmeasured); err != nil {
			return nil, err
		}
	}
	s.settle()
	return s, nil
}

// archivedSource is a job's source in an archive.
func archivedSource(job *operator.Job, number int, objects ObjectStore) source {
	x := job.Spec.Sources[number]
	return source{Input: Input{Source: x.Name, Path: archive.TopicPrefix(x.Topic)}, number: uint16(number), topic: x.Topic,
		archive: &ArchiveInput{Source: x.Name, Objects: archiveOf{objects}}}
}

// partition reads the manifests of one partition.
func (s *survey) partition(ctx context.Context, in *PlanInput, a *archiveRecords, id int32) (list []*archivedFile, err error) {
	job, fingerprint := in.Job.Spec.Job, in.Job.Fingerprint(int(a.source.number))
	p := archivedPartition{topic: a.source.topic, id: id, greatest: event.MinTime, first: len(s.files)}
	for m, err := range archive.Manifests(ctx, a.source.archive.Objects, a.source.topic, id) {
		if err != nil {
			return nil, err
		}
		p.to = m.To
		s.totals.Lost += m.Lost()
		for i := range m.Files {
			list = append(list, fileOf(&m.Files[i], m, int(a.source.number), m.Files[i].TimesOf(job, a.source.Source, fingerprint)))
		}
		s.totals.Manifests++
		in.Progress(PlanProgress{Manifests: s.totals.Manifests})
	}
	s.files = append(s.files, list...)
	s.partitions = append(s.partitions, p)
	return list, nil
}

func fileOf(f *archive.DataFile, m *archive.Manifest, source int, times *archive.Times) *archivedFile {
	x := &archivedFile{stamps: f.Timestamps, timeless: f.Timeless > 0 || f.Timestamps == nil, PlannedFile: PlannedFile{
		Key: f.Key, Manifest: archive.ManifestKey(m.Topic, m.Partition, m.Sequence), Source: source, Bytes: f.Bytes, SHA256: f.SHA256,
		Records: f.Records, LeastOffset: f.LeastOffset, GreatestOffset: f.GreatestOffset, Least: always.From, Greatest: always.To, Rejects: true}}
	if times != nil {
		x.know(times.Event, times.Rejects)
	}
	return x
}

// know takes note of a file's event times.
func (f *archivedFile) know(span *archive.Span, rejects int64) {
	f.Rejects, f.rejects = rejects > 0, rejects
	f.Least, f.Greatest = event.MaxTime, event.MinTime // no events
	if span != nil {
		f.Least, f.Greatest = span.Least, span.Greatest
	}
}

// measure reads files to find out the times of their events.
func (s *survey) measure(ctx context.Context, in *PlanInput, files []*archivedFile) error {
	workers := in.Decoders
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan *archivedFile)
	var mu sync.Mutex // of done and in.Progress
	done := PlanProgress{Manifests: s.totals.Manifests}
	var work sync.WaitGroup
	for range min(workers, len(files)) {
		work.Go(func() {
			for f := range next {
				if err := f.measure(ctx, in); err != nil {
					cancel(err)
					return
				}
				mu.Lock()
				done.Measured++
				done.Records += f.Records
				in.Progress(done)
				mu.Unlock()
			}
		})
	}
	for _, f := range files {
		select {
		case next <- f:
		case <-ctx.Done():
		}
	}
	close(next)
	work.Wait()
	return context.Cause(ctx)
}

func (f *archivedFile) measure(ctx context.Context, in *PlanInput) error {
	d, err := in.Job.NewDecoder()
	if err != nil {
		return err
	}
	r := newFileReader(ctx, in.Job, in.Objects, []PlannedFile{f.PlannedFile})
	defer r.close()
	span := &archive.Span{Least: event.MaxTime, Greatest: event.MinTime}
	rejects := int64(0)
	var b event.Batch
	for more := true; more; {
		b.Reset()
		if more, err = r.fill(&b, sliceBatchBytes); err != nil {
			return err
		}
		if f.Table != nil {
			err = d.DecodeRows(&b)
		} else {
			d.Decode(&b)
		}
		if err != nil {
			return err
		}
		rejects += int64(len(b.Rejects))
		for i := range b.Events {
			span.Least, span.Greatest = min(span.Least, b.Events[i].Time), max(span.Greatest, b.Events[i].Time)
		}
	}
	if span.Least > span.Greatest {
		span = nil
	}
	f.know(span, rejects)
	return nil
}

// settle sums up what is known once all files are.
func (s *survey) settle() {
	for i := range s.partitions {
		p := &s.partitions[i]
		end := len(s.files)
		if i+1 < len(s.partitions) {
			end = s.partitions[i+1].first
		}
		for _, f := range s.files[p.first:end] {
			if f.Least == always.From {
				s.unbounded = true
				continue
			}
			p.greatest = max(p.greatest, f.Greatest)
			s.least, s.greatest = min(s.least, f.Least), max(s.greatest, f.Greatest)
		}
	}
	s.files = slices.DeleteFunc(s.files, func(f *archivedFile) bool { return f.Least > f.Greatest && !f.Rejects })
	slices.SortFunc(s.files, compareSpans)
	slices.SortFunc(s.partitions, func(a, b archivedPartition) int {
		return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.id, b.id))
	})
}

// bytesIn counts what holds events of a range.
func (s *survey) bytesIn(r TimeRange) (bytes, rows int64) {
	for _, f := range s.files {
		if f.Least >= r.To {
			break
		}
		if f.hasEvents(r) {
			bytes, rows = bytes+f.Bytes, rows+f.Records
		}
	}
	return bytes, rows
}

var errNoArchive = errors.New("the archive holds no event of the job's topics")

package backfill

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// Objects is where an archive is kept.
type Objects = archive.Objects

// ArchiveInput is what an archiver wrote of a source's topic. Only what its manifests list is read, and all of it: a missing
// manifest, a hole between two of them, and a file that is not what its manifest says end the replay with an error.
//
// With a ReplayConfig.Range, files none of whose events can matter to it are left out, where the manifest knows the event
// times of this very source. A file with records that did not decode is read all the same, since they are results too.
type ArchiveInput struct {
	Source  string
	Objects Objects
	// SkipRejects leaves out files without an event that matters even if some of their records did not decode.
	SkipRejects bool
}

// filesAhead is how many data files wait in memory for the one that is decoded; another one is being read.
const filesAhead = 1

// archiveRecords reads a source from an archive. Files are read ahead, in order of their event times over all partitions.
type archiveRecords struct {
	source source
	until  map[int32]int64
	files  []archiveFile
	size   int64
	lost   int64 // records that were deleted before they were archived

	loaded chan loadedFile
	stop   context.CancelFunc
	done   sync.WaitGroup
	now    *archive.Reader // nil: between two files
	file   archiveFile
	read   atomic.Int64
}

// archiveFile is a data file and the manifest that lists it.
type archiveFile struct {
	archive.DataFile
	manifest string
	start    event.Micros // about where its events begin
}

type loadedFile struct {
	archiveFile
	data []byte
	err  error
}

// openArchive reads the manifests and starts to read ahead.
func (r *replay) openArchive(ctx context.Context, s source) (_ records, err error) {
	a := &archiveRecords{source: s, loaded: make(chan loadedFile, filesAhead)}
	if until, ok := r.cfg.Until[s.topic]; ok {
		a.until = until
	}
	partitions, err := a.partitions(ctx)
	if err != nil {
		return nil, err
	}
	wanted := r.wanted(s)
	for _, id := range partitions {
		if err := a.list(ctx, id, wanted); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(a.files, func(x, y archiveFile) int { return cmp.Compare(x.start, y.start) })
	for _, f := range a.files {
		a.size += f.Bytes
	}
	ctx, a.stop = context.WithCancel(ctx)
	a.done.Go(func() { a.load(ctx) })
	return a, nil
}

var errNoTopic = errors.New("there is no archive")

// partitions finds the partitions that the archive has and that are asked for.
func (a *archiveRecords) partitions(ctx context.Context) (list []int32, err error) {
	root := archive.TopicPrefix(a.source.topic)
	for after := ""; ; {
		found := ""
		for key, err := range a.source.archive.Objects.Keys(ctx, root, after) {
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", root, err)
			}
			found = key
			break
		}
		if found == "" {
			break
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(found, root), "/")
		after = root + name + "/\x7f" // the first key behind the partition's
		id, err := strconv.ParseInt(name, 10, 32)
		if err != nil || !strings.HasPrefix(found, archive.Prefix(a.source.topic, int32(id))) {
			continue // not of an archiver
		}
		if _, ok := a.until[int32(id)]; ok || a.until == nil {
			list = append(list, int32(id))
		}
	}
	if len(list) == 0 && a.until == nil {
		return nil, fmt.Errorf("%w of topic %s under %s: start its archiver first", errNoTopic, a.source.topic, root)
	}
	for _, id := range slices.Sorted(maps.Keys(a.until)) {
		if !slices.Contains(list, id) && a.until[id] > 0 {
			return nil, fmt.Errorf("the archive has nothing of %s/%d, and offsets up to %d are asked for: start its archiver, or wait for it", a.source.topic, id, a.until[id])
		}
	}
	return list, nil
}

// wanted tells which data files a replay reads.
func (r *replay) wanted(s source) func(*archive.DataFile) bool {
	cfg := r.job.Config
	cfg.Range = r.cfg.Range
	near := cfg.Near()
	job, fingerprint := r.job.Spec.Job, r.job.Fingerprint(int(s.number))
	return func(f *archive.DataFile) bool {
		times := f.TimesOf(job, s.Source, fingerprint)
		if near == (correlate.Range{}) || times == nil || times.Rejects > 0 && !s.archive.SkipRejects {
			return true
		}
		return times.Event != nil && times.Event.Least < near.To && times.Event.Greatest >= near.From
	}
}

// list reads the manifests of a partition and notes the files that are wanted.
func (a *archiveRecords) list(ctx context.Context, partition int32, wanted func(*archive.DataFile) bool) error {
	end, bounded := a.until[partition]
	reached := int64(0)
	for m, err := range archive.Manifests(ctx, a.source.archive.Objects, a.source.topic, partition) {
		if err != nil {
			return err
		}
		if bounded && m.From >= end {
			break
		}
		reached = m.To
		a.lost += m.Lost()
		for _, f := range m.Files {
			if (!bounded || f.LeastOffset < end) && wanted(&f) {
				a.files = append(a.files, archiveFile{f, archive.ManifestKey(m.Topic, m.Partition, m.Sequence), startsAt(&f)})
			}
		}
		if bounded && reached >= end {
			break
		}
	}
	if bounded && reached < end {
		return fmt.Errorf("the archive of %s/%d ends at offset %d, and offsets up to %d are asked for: wait for its archiver", a.source.topic, partition, reached, end)
	}
	return nil
}

// startsAt tells about where the events of a file begin, which decides nothing but the order of reading.
func startsAt(f *archive.DataFile) event.Micros {
	for i := range f.Times {
		if f.Times[i].Event != nil {
			return f.Times[i].Event.Least
		}
	}
	if f.Timestamps != nil {
		return f.Timestamps.Least
	}
	return math.MinInt64
}

// load reads data files ahead of Fill.
func (a *archiveRecords) load(ctx context.Context) {
	defer close(a.loaded)
	for _, f := range a.files {
		data, err := archive.ReadFile(ctx, a.source.archive.Objects, &f.DataFile)
		if err != nil {
			err = f.problem(err)
		}
		select {
		case a.loaded <- loadedFile{f, data, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func (f *archiveFile) problem(err error) error {
	return fmt.Errorf("read %s, which %s lists: %w", f.Key, f.manifest, err)
}

// Fill implements records.
func (a *archiveRecords) Fill(b *event.Batch, maxBytes int) (more bool, err error) {
	for {
		if a.now == nil {
			f, ok := <-a.loaded
			if !ok {
				return false, nil
			}
			if f.err != nil {
				return false, f.err
			}
			a.file = f.archiveFile
			if a.now, err = archive.OpenAt(f.Key, bytes.NewReader(f.data), int64(len(f.data))); err != nil {
				return false, f.problem(err)
			}
			a.now.Until(a.until)
		}
		before := len(b.Records) + len(b.Rejects)
		more, err := a.now.Fill(b, a.source.number, a.source.topic, maxBytes)
		if err != nil {
			return false, a.file.problem(err)
		}
		if !more {
			if err := a.closeFile(); err != nil {
				return false, err
			}
		}
		if more || len(b.Records)+len(b.Rejects) > before {
			return true, nil
		}
	}
}

// closeFile ends a file, which must have had the rows that its manifest counts.
func (a *archiveRecords) closeFile() error {
	n := a.now.Stats()
	err := a.now.Close()
	a.now = nil
	a.read.Add(a.file.Bytes)
	if rows := n.Records + n.NullValues + n.Past; err == nil && (rows != a.file.Records || n.OtherTopics > 0) {
		err = fmt.Errorf("it has %d rows of the topic and %d of others, the manifest says %d", rows, n.OtherTopics, a.file.Records)
	}
	if err != nil {
		return a.file.problem(err)
	}
	return nil
}

// BytesRead implements records.
func (a *archiveRecords) BytesRead() int64 { return a.read.Load() }

// Size implements records.
func (a *archiveRecords) Size() int64 { return a.size }

// Close implements records.
func (a *archiveRecords) Close() error {
	a.stop()
	for range a.loaded { // until the loader has seen it
	}
	a.done.Wait()
	if a.now == nil {
		return nil
	}
	return a.now.Close()
}

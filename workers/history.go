package workers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/streaming"
)

// History lets a Log go back behind what Kafka still has: to the archive of its topics, which has the same records at the
// same offsets. It implements streaming.Past.
type History struct {
	job     *operator.Job
	objects archive.Objects
	dir     string // for data files while they are read
	logger  *slog.Logger
	log     *Log

	mu    sync.Mutex
	parts map[streaming.Partition]*chronicle
	turn  sync.Mutex // one data file is in memory at a time
}

// chronicle is the archive of one partition. Whoever reads the partition owns it.
type chronicle struct {
	from, to int64 // offsets; from == to: there is none that continues in Kafka's topic
	chapters []chapter
	lost     event.Micros // the latest time of a record that was deleted before it was archived, about; event.MinTime: none was

	next    int64 // offset that reading goes on at; -1: nobody reads
	chapter int   // number of the open one
	end     int64 // of the partition in Kafka, when it was last asked
	pages   []*pages
}

// chapter is what one manifest lists.
type chapter struct {
	manifest string
	to       int64 // offset
	files    []archive.DataFile
	least    event.Micros // of the event times, as far as it is known; event.MaxTime: there are none
}

// pages are the rows of an open data file that come next. The files of a manifest divide its rows by event time, so those of
// all of them are merged.
type pages struct {
	file   *archive.DataFile
	reader *archive.Reader
	rows   []archive.Row
	data   []byte // of the rows
	more   bool
}

// pageBytes is how much is read of a data file at once.
const pageBytes = 128 << 10

// GoBack makes a log read from the archive what Kafka does not have any more, for a job. Data files are kept in dir while they
// are read; empty is the system's folder for such files. The logger may be nil.
func (l *Log) GoBack(job *operator.Job, objects archive.Objects, dir string, logger *slog.Logger) *History {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	l.history = &History{job: job, objects: objects, dir: dir, logger: logger, log: l, parts: map[streaming.Partition]*chronicle{}}
	return l.history
}

// part returns the archive of a partition; again reads it anew, since it grows.
func (h *History) part(ctx context.Context, p streaming.Partition, again bool) (*chronicle, error) {
	h.mu.Lock()
	c, ok := h.parts[p]
	h.mu.Unlock()
	if ok && !again {
		return c, nil
	}
	if c != nil {
		if err := c.close(); err != nil {
			return nil, err
		}
	}
	c, err := h.load(ctx, p)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.parts[p] = c
	h.mu.Unlock()
	return c, nil
}

// load reads the manifests of a partition.
func (h *History) load(ctx context.Context, p streaming.Partition) (*chronicle, error) {
	identity, err := h.log.Identity(ctx, p.Topic)
	if err != nil {
		return nil, err
	}
	c := &chronicle{lost: event.MinTime, next: -1}
	gap := false // behind which no record stands yet
	for m, err := range archive.Manifests(ctx, h.objects, p.Topic, p.ID) {
		if err != nil {
			return nil, fmt.Errorf("the archive of %s: %w", p, err)
		}
		if m.Identity != "" && identity != "" && m.Identity != identity {
			h.logger.Warn("the archive is of another topic of that name, which was deleted; it is not read", "partition", p.String())
			return &chronicle{lost: event.MinTime, next: -1}, nil
		}
		if m.Sequence == 0 {
			c.from, gap = m.From, m.From > 0
		}
		c.to = m.To
		one := chapter{archive.ManifestKey(m.Topic, m.Partition, m.Sequence), m.To, m.Files, event.MaxTime}
		latest := event.MinTime
		for i := range m.Files {
			f := &m.Files[i]
			one.least = min(one.least, h.leastOf(p, f))
			f.Times = nil
			if latest = event.MaxTime; f.Timestamps != nil {
				latest = max(latest, f.Timestamps.Greatest)
			}
		}
		if lost := m.Lost() > 0; len(m.Files) > 0 && (gap || lost) {
			c.lost, gap = max(c.lost, latest), lost
		} else {
			gap = gap || lost
		}
		c.chapters = append(c.chapters, one)
	}
	if gap {
		c.lost = event.MaxTime
	}
	return c, nil
}

// leastOf returns how early the events of a data file can be. Exactly that is known where the archiver decoded it as the job
// does. Otherwise what it found for another version of the job is taken, since a version that reads other fields hardly
// finds other times; and of records that it could not decode, that they are no earlier than the retention before the broker
// got them. An event that is earlier still may be late.
func (h *History) leastOf(p streaming.Partition, f *archive.DataFile) event.Micros {
	source := h.job.Spec.Sources[p.Source].Name
	if t := f.TimesOf(h.job.Spec.Job, source, h.job.Fingerprint(p.Source)); t != nil {
		return earliest(t.Event)
	}
	least, known := event.MaxTime, false
	for i := range f.Times {
		if t := &f.Times[i]; t.Job == h.job.Spec.Job && t.Source == source {
			least, known = min(least, earliest(t.Event)), known || t.Rejects == 0
		}
	}
	if known {
		return least
	}
	if f.Timestamps == nil || f.Timeless > 0 {
		return event.MinTime
	}
	return min(least, f.Timestamps.Least-event.Micros(h.job.Spec.Session.Retention.Microseconds()))
}

func earliest(s *archive.Span) event.Micros {
	if s == nil {
		return event.MaxTime
	}
	return s.Least
}

// reaches tells whether the archive has all records from before an offset on, up to it.
func (c *chronicle) reaches(first int64) bool { return c.from < first && first <= c.to }

// First implements streaming.Past.
func (h *History) First(ctx context.Context, p streaming.Partition, first int64) (int64, error) {
	if p.Source < 0 {
		return first, nil
	}
	c, err := h.part(ctx, p, false)
	if err != nil {
		return 0, err
	}
	if !c.reaches(first) {
		if c.to > 0 && c.to < first {
			h.logger.Warn("the archive ends before what Kafka still has; reading begins there", "partition", p.String(), "archive ends", c.to, "Kafka begins", first)
		}
		return first, nil
	}
	h.logger.Info("reading begins in the archive", "partition", p.String(), "from", c.from, "archive ends", c.to, "Kafka begins", first)
	return c.from, nil
}

// End implements streaming.Past.
func (h *History) End(ctx context.Context, p streaming.Partition) (int64, error) {
	c, err := h.part(ctx, p, false)
	if err != nil {
		return 0, err
	}
	return c.to, nil
}

// Floors implements streaming.Past.
func (h *History) Floors(ctx context.Context, p streaming.Partition, next, end int64) ([]streaming.Floor, error) {
	c, err := h.part(ctx, p, false)
	if err != nil {
		return nil, err
	}
	least := event.MaxTime
	var list []streaming.Floor
	for i := len(c.chapters) - 1; i >= 0 && c.chapters[i].to > next; i-- {
		if x := &c.chapters[i]; x.to <= end {
			least = min(least, x.least)
			list = append(list, streaming.Floor{Before: x.to, Time: least})
		}
	}
	slices.Reverse(list)
	return list, nil
}

// lostBefore returns the latest time of records of a partition that a version which starts now can get from nowhere, about, where
// Kafka begins at first; event.MinTime: there are none, event.MaxTime: nothing says when they were.
func (h *History) lostBefore(ctx context.Context, p streaming.Partition, first int64) (event.Micros, error) {
	c, err := h.part(ctx, p, false)
	switch {
	case err != nil:
		return 0, err
	case first == 0:
		return event.MinTime, nil
	case !c.reaches(first):
		return event.MaxTime, nil
	}
	return c.lost, nil
}

// read reads on in the archive where the log is there already, or has just learned that Kafka does not have the offset any
// more; ok is false where the archive has not got it either.
func (h *History) read(ctx context.Context, p streaming.Partition, next int64, maxBytes int, gone bool, yield func(*archive.Row)) (after, end int64, ok bool, err error) {
	if p.Source < 0 {
		return 0, 0, false, nil
	}
	h.mu.Lock()
	c := h.parts[p]
	h.mu.Unlock()
	switch {
	case c != nil && c.next == next:
	case !gone:
		return 0, 0, false, nil
	default:
		if c, err = h.part(ctx, p, c == nil || next >= c.to); err != nil {
			return next, next, false, err
		}
		if next < c.from || next >= c.to {
			return next, next, false, nil
		}
		if err := h.open(ctx, p, c, next); err != nil {
			return next, next, true, err
		}
	}
	if after, err = h.fill(ctx, p, c, maxBytes, yield); err != nil {
		return next, next, true, errors.Join(err, c.close())
	}
	return after, max(c.end, after), true, nil
}

// open places a chronicle at an offset that it has.
func (h *History) open(ctx context.Context, p streaming.Partition, c *chronicle, next int64) error {
	err := c.close()
	if err == nil {
		_, c.end, err = h.log.Bounds(ctx, p)
	}
	c.chapter, _ = slices.BinarySearchFunc(c.chapters, next+1, func(x chapter, at int64) int { return cmp.Compare(x.to, at) })
	c.next = next
	return err
}

// fill reads from the open chapter and returns the offset to go on at. At its end it looks whether Kafka has what follows.
func (h *History) fill(ctx context.Context, p streaming.Partition, c *chronicle, maxBytes int, yield func(*archive.Row)) (after int64, err error) {
	x := &c.chapters[c.chapter]
	fail := func(f *archive.DataFile, err error) (int64, error) {
		return 0, fmt.Errorf("read %s, which %s lists: %w", f.Key, x.manifest, err)
	}
	if c.pages == nil {
		for i := range x.files {
			f := &x.files[i]
			if f.GreatestOffset < c.next {
				continue
			}
			r, err := h.openFile(ctx, f)
			if err != nil {
				return fail(f, err)
			}
			r.From(c.next)
			c.pages = append(c.pages, &pages{file: f, reader: r, more: true})
		}
	}
	for bytes := 0; bytes < maxBytes; {
		var first *pages
		for _, one := range c.pages {
			if err := one.turn(p.Topic); err != nil {
				return fail(one.file, err)
			}
			if len(one.rows) > 0 && (first == nil || one.rows[0].Offset < first.rows[0].Offset) {
				first = one
			}
		}
		if first == nil {
			return h.endChapter(ctx, p, c)
		}
		row := &first.rows[0]
		yield(row)
		bytes += len(row.Value)
		c.next = row.Offset + 1
		first.rows = first.rows[1:]
	}
	return c.next, nil
}

// endChapter goes on in the next chapter, or leaves the archive.
func (h *History) endChapter(ctx context.Context, p streaming.Partition, c *chronicle) (after int64, err error) {
	after = c.chapters[c.chapter].to
	if err := c.close(); err != nil {
		return 0, err
	}
	first, end, err := h.log.Bounds(ctx, p)
	if err != nil {
		return 0, err
	}
	c.end = end
	if c.chapter++; first > after && c.chapter < len(c.chapters) {
		c.next = after
	}
	return after, nil
}

// turn reads the next rows of a file where none are left.
func (g *pages) turn(topic string) error {
	for len(g.rows) == 0 && g.more {
		var err error
		g.rows, g.data = g.rows[:0], g.data[:0]
		g.more, err = g.reader.Rows(topic, pageBytes, func(r *archive.Row) {
			keep := func(text []byte) []byte {
				from := len(g.data)
				g.data = append(g.data, text...)
				return g.data[from:len(g.data):len(g.data)]
			}
			row := *r
			row.Value = keep(r.Value)
			if r.Origin != nil {
				row.Origin = keep(r.Origin)
			}
			g.rows = append(g.rows, row)
		})
		if err != nil {
			return err
		}
		n := g.reader.Stats()
		if rows := n.Records + n.NullValues + n.Before; !g.more && (rows != g.file.Records || n.OtherTopics > 0) {
			return fmt.Errorf("it has %d rows of the topic and %d of others, the manifest says %d", rows, n.OtherTopics, g.file.Records)
		}
	}
	return nil
}

// openFile fetches a data file. It is checked in memory and read from a file that nobody else sees, so that reading many
// partitions takes the memory of one.
func (h *History) openFile(ctx context.Context, f *archive.DataFile) (*archive.Reader, error) {
	h.turn.Lock()
	defer h.turn.Unlock()
	data, err := archive.ReadFile(ctx, h.objects, f)
	if err != nil {
		return nil, err
	}
	kept, err := os.CreateTemp(h.dir, "history-*.parquet")
	if err != nil {
		return nil, err
	}
	_, err = kept.Write(data)
	if err = errors.Join(err, os.Remove(kept.Name())); err != nil { // it goes when it is closed, or with the process
		return nil, errors.Join(err, kept.Close())
	}
	r, err := archive.OpenAt(f.Key, kept, f.Bytes)
	if err != nil {
		return nil, errors.Join(err, kept.Close())
	}
	return r, nil
}

// close gives up the place in the archive.
func (c *chronicle) close() error {
	var errs []error
	for _, one := range c.pages {
		errs = append(errs, one.reader.Close())
	}
	c.next, c.pages = -1, nil
	return errors.Join(errs...)
}

func (h *History) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, c := range h.parts {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

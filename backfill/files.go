package backfill

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/columns"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

// sliceBatchBytes is how many raw bytes are decoded at a time.
const sliceBatchBytes = 256 << 10

// fileReader reads data files of an archive one after another, in the order given; the next one is loaded meanwhile. What it
// reads is checked against the manifests.
type fileReader struct {
	job    *operator.Job
	loaded chan loadedPlanned
	stop   context.CancelFunc
	done   sync.WaitGroup
	bytes  atomic.Int64 // of files that are read to their end

	now  *archive.Reader // nil: between two files, or within a table
	rows *columns.Rows   // nil: not within a table
	file PlannedFile
}

type loadedPlanned struct {
	PlannedFile
	data  []byte
	table *columns.File // of one of others
	err   error
}

func newFileReader(ctx context.Context, job *operator.Job, objects ObjectStore, files []PlannedFile) *fileReader {
	r := &fileReader{job: job, loaded: make(chan loadedPlanned, filesAhead)}
	ctx, r.stop = context.WithCancel(ctx)
	r.done.Go(func() {
		defer close(r.loaded)
		tables := mappings{job: job}
		for _, f := range files {
			x := loadedPlanned{PlannedFile: f}
			if f.Table == nil {
				if x.data, x.err = archive.ReadFile(ctx, archiveOf{objects}, &f.archived().DataFile); x.err != nil {
					x.err = f.archived().problem(x.err)
				}
			} else {
				var m *columns.Mapping
				if m, x.err = tables.of(f.Source); x.err == nil {
					x.table, x.err = loadTable(ctx, objects, m, &f)
				}
			}
			select {
			case r.loaded <- x:
			case <-ctx.Done():
				return
			}
			if x.err != nil {
				return
			}
		}
	})
	return r
}

func (f *PlannedFile) archived() *archiveFile {
	return &archiveFile{DataFile: archive.DataFile{Key: f.Key, Bytes: f.Bytes, SHA256: f.SHA256, Records: f.Records}, manifest: f.Manifest}
}

func (r *fileReader) close() {
	r.stop()
	for range r.loaded { // until the loader has seen it
	}
	r.done.Wait()
	if r.now != nil {
		r.now.Close()
	}
}

// fill appends about maxBytes of records to the batch, all of one source; more is false at the end.
func (r *fileReader) fill(b *event.Batch, maxBytes int) (more bool, err error) {
	for {
		if r.rows != nil {
			more, err := r.rows.Fill(b, maxBytes)
			if err != nil {
				return false, err
			}
			if !more {
				r.rows = nil
				r.bytes.Add(r.file.Bytes)
			}
			if len(b.Records)+len(b.Rejects) > 0 {
				return true, nil
			}
			continue
		}
		if r.now == nil {
			f, ok := <-r.loaded
			if !ok {
				return false, nil
			}
			if f.err != nil {
				return false, f.err
			}
			r.file = f.PlannedFile
			if f.table != nil {
				if r.rows, err = f.table.Rows(f.Table.Group, stampOf(&f.table.Groups()[f.Table.Group])); err != nil {
					return false, err
				}
				continue
			}
			if r.now, err = archive.OpenAt(f.Key, bytes.NewReader(f.data), int64(len(f.data))); err != nil {
				return false, r.file.archived().problem(err)
			}
		}
		topic := r.job.Spec.Sources[r.file.Source].Topic
		more, err := r.now.Fill(b, uint16(r.file.Source), topic, maxBytes)
		if err != nil {
			return false, r.file.archived().problem(err)
		}
		if !more {
			if err := r.closeFile(); err != nil {
				return false, err
			}
		}
		if more || len(b.Records)+len(b.Rejects) > 0 {
			return true, nil
		}
	}
}

// closeFile ends a file, which must have had the rows that its manifest counts.
func (r *fileReader) closeFile() error {
	n := r.now.Stats()
	err := r.now.Close()
	r.now = nil
	r.bytes.Add(r.file.Bytes)
	if rows := n.Records + n.NullValues; err == nil && (rows != r.file.Records || n.OtherTopics > 0) {
		err = fmt.Errorf("it has %d rows of the topic and %d of others, the manifest says %d", rows, n.OtherTopics, r.file.Records)
	}
	if err != nil {
		return r.file.archived().problem(err)
	}
	return nil
}

// decoding is a batch on its way through a decoder. Batches come out in the order in which they were read, whichever decoder
// was faster: then equal slices stage equal bytes.
type decoding struct {
	event.Batch
	err  error // of reading what would follow
	rows bool  // of a table
	done chan struct{}
}

// decodeFiles reads and decodes files, and hands each batch to take, in order. perSecond bounds the records; 0: it does not.
func decodeFiles(outer context.Context, r *fileReader, decoders []*operator.Decoder, perSecond int, take func(*event.Batch) error) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	pool := make(chan *decoding, 2*len(decoders)+2)
	for range cap(pool) {
		pool <- &decoding{}
	}
	raw, order := make(chan *decoding), make(chan *decoding, cap(pool))
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel(nil)
	for _, d := range decoders {
		work.Go(func() {
			for b := range raw {
				if b.rows {
					b.err = cmp.Or(b.err, d.DecodeRows(&b.Batch))
				} else {
					d.Decode(&b.Batch)
				}
				close(b.done)
			}
		})
	}
	work.Go(func() {
		defer close(order)
		defer close(raw)
		pace := pace{perSecond: perSecond}
		for more := true; more; {
			var b *decoding
			select {
			case b = <-pool:
			case <-ctx.Done():
				return
			}
			b.Reset()
			b.done = make(chan struct{})
			more, b.err = r.fill(&b.Batch, sliceBatchBytes)
			b.rows = r.file.Table != nil
			order <- b // there is room for all
			if b.err != nil {
				close(b.done)
				return
			}
			select {
			case raw <- b:
			case <-ctx.Done():
				close(b.done)
				return
			}
			if !pace.wait(ctx, len(b.Records)) {
				return
			}
		}
	})
	for b := range order {
		<-b.done
		err := b.err
		if err == nil && ctx.Err() == nil {
			err = take(&b.Batch)
		}
		if err != nil {
			cancel(err)
		}
		pool <- b
	}
	return context.Cause(ctx)
}

// pace spreads records over time.
type pace struct {
	perSecond int
	started   time.Time
	records   int
}

// wait waits until that many more records may be read; false: the context ended.
func (p *pace) wait(ctx context.Context, records int) bool {
	if p.perSecond <= 0 {
		return true
	}
	if p.started.IsZero() {
		p.started = time.Now()
	}
	p.records += records
	due := p.started.Add(time.Duration(float64(p.records) / float64(p.perSecond) * float64(time.Second)))
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

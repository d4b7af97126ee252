package archiver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
)

// partition archives one partition. One goroutine owns it; the status is shared.
type partition struct {
	a        *archiver
	id       int32
	identity string

	sequence   int64 // of the next manifest
	from, next int64 // what waits for its file is [from, next)
	rows       *rows
	gaps       gaps
	since      time.Time // when something began to wait

	status PartitionStatus // guarded by archiver.mu
}

func (p *partition) run(ctx context.Context) error {
	if err := p.start(ctx); err != nil {
		return p.ended(ctx, fmt.Errorf("start: %w", err))
	}
	for ctx.Err() == nil {
		p.turn(nil)
		makeRoom, err := p.a.room.wait(ctx, p.id)
		if err != nil {
			break
		}
		if makeRoom || p.isDue() {
			if err := p.commit(ctx); err != nil {
				return p.ended(ctx, err)
			}
			continue
		}
		if err := p.fetch(ctx); err != nil {
			return p.ended(ctx, err)
		}
	}
	return p.stop(ctx)
}

// ended returns the error, unless the run was asked to end and it is but a consequence.
func (p *partition) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, ErrFenced) {
		return p.stop(ctx)
	}
	return err
}

// stop writes what waits. If that fails nothing is lost: the next run reads it again.
func (p *partition) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.a.cfg.StopWithin)
	defer cancel()
	if err := p.commit(ctx); err != nil {
		p.a.log.Warn("the last records are left to the next run", "partition", p.id, "error", err)
	}
	return nil
}

// turn notes a step of the partition.
func (p *partition) turn(change func(*PartitionStatus)) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	s := &p.status
	s.Turned = time.Now()
	s.Next, s.Read, s.Sequence, s.Waiting = p.from, p.next, p.sequence, p.rows.bytes
	if change != nil {
		change(s)
	}
}

// start finds out where the archive ends.
func (p *partition) start(ctx context.Context) error {
	cfg := &p.a.cfg
	last, err := p.a.lastManifest(ctx, p.id)
	if err != nil {
		return err
	}
	first, end, err := p.bounds(ctx)
	if err != nil {
		return err
	}
	if last == nil {
		p.from, p.next = first, first
	} else {
		if last.Identity != p.identity && last.Identity != "" && p.identity != "" {
			return fmt.Errorf("%w: the archive is of topic %s, which is %s now: move %s away, or give the new topic another name",
				ErrRecreated, last.Identity, p.identity, archive.Prefix(cfg.Topic, p.id))
		}
		p.sequence, p.from, p.next = last.Sequence+1, last.To, last.To
		if p.next < first {
			if err := p.deleted(ctx, first); err != nil {
				return err
			}
		}
	}
	if err := p.inside(end); err != nil {
		return err
	}
	p.turn(func(s *PartitionStatus) { s.End = end })
	return nil
}

func (p *partition) bounds(ctx context.Context) (first, end int64, err error) {
	err = p.a.retry(ctx, "look up the offsets", func() (err error) {
		first, end, err = p.a.cfg.Log.Bounds(ctx, p.a.cfg.Topic, p.id)
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("look up the offsets: %w", err)
	}
	return first, end, nil
}

// inside checks that the partition reaches as far as the archive.
func (p *partition) inside(end int64) error {
	if p.next <= end {
		return nil
	}
	return fmt.Errorf("%w, or lost records in an unclean election: the archive is at offset %d and the partition ends at %d: move %s away, or give the topic another name",
		ErrRecreated, p.next, end, archive.Prefix(p.a.cfg.Topic, p.id))
}

// deleted handles records that are gone: it notes the gap where the configuration allows it.
func (p *partition) deleted(ctx context.Context, first int64) error {
	n := first - p.next
	if !p.a.cfg.SkipDeleted {
		// What was read before is still safe: once the run has ended it might be deleted too.
		return errors.Join(fmt.Errorf("%w: %d of them, offsets %d to %d: raise retention.ms of the topic, and let the archiver run all the time; to go on without them, start it with skip_deleted",
			ErrOffsetGone, n, p.next, first-1), p.commit(ctx))
	}
	p.a.log.Warn("records were deleted before they were archived", "partition", p.id, "from", p.next, "to", first)
	if err := p.commit(ctx); err != nil { // so that a manifest has one such gap at most
		return err
	}
	p.begin()
	p.gaps.add(p.next, first, archive.Deleted)
	p.next = first
	p.turn(func(s *PartitionStatus) { s.Deleted += n })
	return nil
}

// begin notes when something began to wait.
func (p *partition) begin() {
	if p.next == p.from {
		p.since = time.Now()
	}
}

// isDue tells whether what waits is to be written.
func (p *partition) isDue() bool {
	return p.next > p.from && (p.rows.raw >= p.a.cfg.FileBytes || time.Since(p.since) >= p.a.cfg.FileAge || len(p.rows.records) >= rowsMax)
}

// rowsMax bounds the rows of a file: their numbers have 32 bits, and times are sorted.
const rowsMax = 4 << 20

// fetch reads on.
func (p *partition) fetch(ctx context.Context) error {
	cfg := &p.a.cfg
	wait := cfg.FetchWait
	if p.next > p.from {
		wait = min(wait, max(cfg.FileAge-time.Since(p.since), time.Millisecond))
	}
	before, held := len(p.rows.records), p.rows.bytes
	var after, end int64
	err := p.a.retry(ctx, fmt.Sprintf("read partition %d", p.id), func() (err error) {
		after, end, err = cfg.Log.Fetch(ctx, cfg.Topic, p.id, p.next, cfg.FetchBytes, wait, p.rows.add)
		return err
	})
	if errors.Is(err, ErrOffsetGone) {
		first, end, boundsErr := p.bounds(ctx)
		switch {
		case boundsErr != nil:
			return boundsErr
		case p.inside(end) != nil:
			return p.inside(end)
		case first > p.next:
			return p.deleted(ctx, first)
		}
	}
	if err != nil {
		return fmt.Errorf("read at offset %d: %w", p.next, err)
	}
	if after == p.next && len(p.rows.records) == before {
		p.turn(func(s *PartitionStatus) { s.End = max(end, p.next) })
		return nil
	}
	p.begin()
	if err := p.take(before, after); err != nil {
		return err
	}
	p.a.times.note(p.rows, before)
	p.a.room.take(p.id, p.rows.bytes-held)
	p.turn(func(s *PartitionStatus) { s.End = max(end, p.next) })
	return nil
}

// take checks the offsets of what came, and notes those that did not.
func (p *partition) take(before int, after int64) error {
	for i := before; i < len(p.rows.records); i++ {
		offset := p.rows.records[i].Offset
		if offset < p.next || offset >= after {
			return fmt.Errorf("the log returned offset %d where [%d, %d) was read: this is a defect", offset, p.next, after)
		}
		p.gaps.add(p.next, offset, archive.Absent)
		p.next = offset + 1
	}
	p.gaps.add(p.next, after, archive.Absent)
	p.next = after
	return nil
}

// commit writes what waits: data files first, then the manifest that makes them part of the archive.
func (p *partition) commit(ctx context.Context) error {
	if p.next == p.from {
		return nil
	}
	select {
	case p.a.commits <- struct{}{}:
		defer func() { <-p.a.commits }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	m, data, err := p.encode()
	if err != nil {
		return err
	}
	for i, f := range m.Files {
		p.turn(nil)
		err := p.a.retry(ctx, "write "+f.Key, func() error { return p.a.cfg.Objects.Put(ctx, f.Key, data[i]) })
		if err != nil {
			return fmt.Errorf("write a data file: %w", err)
		}
	}
	p.turn(nil)
	if err := p.put(ctx, m); err != nil {
		return err
	}
	p.sequence, p.from = m.Sequence+1, m.To
	p.rows, p.gaps = p.a.newRows(), gaps{}
	p.a.room.giveAll(p.id)
	p.turn(func(s *PartitionStatus) {
		s.Manifests++
		s.Files += int64(len(m.Files))
		s.Records += m.Records
		for _, f := range m.Files {
			s.Bytes += f.Bytes
		}
		s.Committed = s.Turned
	})
	return nil
}

// encode makes the manifest and the bytes of its files.
func (p *partition) encode() (*archive.Manifest, [][]byte, error) {
	topic := p.a.cfg.Topic
	m := &archive.Manifest{
		Topic: topic, Partition: p.id, Identity: p.identity, Sequence: p.sequence, Nonce: strings.ToLower(rand.Text()),
		From: p.from, To: p.next, Records: int64(len(p.rows.records)), Gaps: p.gaps.list,
	}
	if len(p.rows.records) == 0 {
		return m, nil, nil
	}
	var files [][]byte
	for i, piece := range p.rows.cut(event.Micros(p.a.cfg.FarApart.Microseconds())) {
		data, err := pack(p.rows.records, piece)
		if err != nil {
			return nil, nil, err
		}
		sum := sha256.Sum256(data)
		f := archive.DataFile{Key: archive.DataKey(topic, p.id, p.sequence, m.Nonce, i), Bytes: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
		p.a.times.statistics(&f, p.rows, piece)
		m.Files, files = append(m.Files, f), append(files, data)
	}
	return m, files, nil
}

// pack writes some of the records as a file.
func pack(records []archive.Record, piece []int32) ([]byte, error) {
	var b bytes.Buffer
	w := archive.NewWriter(&b)
	some := records
	if len(piece) < len(records) {
		some = make([]archive.Record, len(piece))
		for i, row := range piece {
			some[i] = records[row]
		}
	}
	if err := w.WriteAll(some); err != nil {
		return nil, err
	}
	err := w.Close() // writes too, so the bytes are taken after it
	return b.Bytes(), err
}

// put commits a manifest. Who is told that the number is taken looks whether it was by itself: the answer to its own write
// may have been lost.
func (p *partition) put(ctx context.Context, m *archive.Manifest) error {
	text, err := m.Encode()
	if err != nil {
		return fmt.Errorf("make a manifest: %w: this is a defect", err)
	}
	key := archive.ManifestKey(m.Topic, m.Partition, m.Sequence)
	err = p.a.retry(ctx, "write "+key, func() error {
		err := p.a.cfg.Objects.PutIfAbsent(ctx, key, text, m.Nonce)
		if !errors.Is(err, ErrExists) {
			return err
		}
		there, err := readManifest(ctx, p.a.cfg.Objects, key)
		if err != nil || there.Nonce == m.Nonce {
			return err
		}
		return fmt.Errorf("%w: %s has offsets [%d, %d) of another run", ErrFenced, key, there.From, there.To)
	})
	if errors.Is(err, ErrFenced) {
		for _, f := range m.Files { // if that fails they are swept one day
			if err := p.a.cfg.Objects.Delete(ctx, f.Key); err != nil {
				p.a.log.Warn("a file of no manifest is left", "key", f.Key, "error", err)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("write a manifest: %w", err)
	}
	return nil
}

// gaps are the missing offsets of a manifest, of which at most archive.GapsMax are listed.
type gaps struct {
	list  []archive.Gap
	least int64 // distance below which neighbours are listed as one
}

// add notes that the offsets [from, to) are missing.
func (g *gaps) add(from, to int64, reason archive.GapReason) {
	if from == to {
		return
	}
	if n := len(g.list); n > 0 && g.list[n-1].To == from && g.list[n-1].Reason == reason {
		g.list[n-1].To, g.list[n-1].Missing = to, g.list[n-1].Missing+to-from
		return
	}
	g.list = append(g.list, archive.Gap{From: from, To: to, Missing: to - from, Reason: reason})
	for len(g.list) > archive.GapsMax {
		g.merge()
	}
}

// merge lists absent offsets that are close together as one gap. It keeps what is deleted apart.
func (g *gaps) merge() {
	g.least = max(1, 2*g.least)
	kept := g.list[:1]
	for _, gap := range g.list[1:] {
		last := &kept[len(kept)-1]
		if last.Reason == archive.Absent && gap.Reason == archive.Absent && gap.From-last.To <= g.least {
			last.To, last.Missing = gap.To, last.Missing+gap.Missing
			continue
		}
		kept = append(kept, gap)
	}
	g.list = kept
}

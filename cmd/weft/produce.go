package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/lines"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
)

func newProduceCommand() *cobra.Command {
	var f produceFlags
	c := &cobra.Command{
		Use:   "produce --spec FILE --input SOURCE=PATH...",
		Short: "Play files of records into the topics of a job's sources",
		Long: "Play files of records into the topics of a job's sources, in the files' order and merged by event time.\n\n" +
			"PATH is what replay reads: a file with one record a line, plain or compressed, or an archive of Parquet files.\n" +
			"A record's key is its value of the spec's shard_by field, so that a shard's records are in one partition. Its\n" +
			"weft-origin header holds its line, so that a stream and a replay of the same files agree. For the same reason it does\n" +
			"no harm to play a file again, after an interrupt or otherwise: a record that Weft has seen is dropped.\n\n" +
			"Without --rate and --speed records are played as fast as Kafka takes them.",
		Example: "  weft produce --spec demo/job.yaml --input orders=demo/orders.jsonl --input wallet=demo/wallet.jsonl --speed 3600\n" +
			"  weft produce --spec shop.yaml --input orders=orders.jsonl --kafka localhost:9092 --partitions 8 --rate 5000/s",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	c.Flags().StringVar(&f.spec, "spec", "", "job spec")
	c.Flags().StringArrayVar(&f.inputs, "input", nil, "records of a source, as SOURCE=PATH; once for each source")
	addKafkaFlags(c.Flags(), &f.at)
	c.Flags().Int32Var(&f.partitions, "partitions", 4, "partitions of topics that do not exist yet")
	c.Flags().StringVar(&f.rate, "rate", "", "records per second of all sources together, such as 5000/s")
	c.Flags().StringVar(&f.speed, "speed", "", "times real time by event time: 1 is live, 3600 plays an hour a second")
	c.Flags().BoolVar(&f.json, "json", false, "print the summary as JSON")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print nothing but errors")
	_ = errors.Join(c.MarkFlagRequired("spec"), c.MarkFlagRequired("input")) // they exist
	return c
}

type produceFlags struct {
	at                stack.Addresses
	spec, rate, speed string
	inputs            []string
	partitions        int32
	json, quiet       bool
}

// finishTimeout bounds the wait for acknowledgements after an interrupt.
const finishTimeout = 10 * time.Second

func (f *produceFlags) run(c *cobra.Command) (err error) {
	pace, err := f.pace()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	job, err := compileFile(c, f.spec)
	if err != nil {
		return err
	}
	tracks, err := openTracks(job, f.inputs)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	p := &play{tracks: tracks, pace: pace, bar: newProgressBar(c.ErrOrStderr(), f.quiet)}
	defer func() { err = errors.Join(err, p.close()) }()
	found, err := stack.Find(f.at, stack.Kafka)
	if err != nil {
		return err
	}
	client, err := workers.OpenKafka(found, kafka.Config{})
	if err != nil {
		return &exitError{exitUsage, err}
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if err := p.connect(c.Context(), client, f.partitions); err != nil {
		return err
	}
	began := time.Now()
	err = p.run(c.Context())
	p.bar.clear()
	interrupted := errors.Is(err, context.Canceled)
	if err != nil && !interrupted {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), finishTimeout)
	defer cancel()
	if err := p.flush(ctx); err != nil {
		return err
	}
	summary := p.summary(time.Since(began), interrupted)
	if err := f.print(c.OutOrStdout(), summary); err != nil || !interrupted {
		return err
	}
	return errors.New("interrupted; play the files again to go on: what Weft has seen is dropped")
}

// pace reads --rate and --speed.
func (f *produceFlags) pace() (p pace, err error) {
	if f.rate != "" && f.speed != "" {
		return p, errors.New("--rate and --speed exclude each other")
	}
	if f.rate != "" {
		p.perSecond, err = strconv.ParseFloat(strings.TrimSuffix(f.rate, "/s"), 64)
		if err != nil || !(p.perSecond > 0) {
			return p, fmt.Errorf("--rate %q: expected records per second, such as 5000 or 5000/s", f.rate)
		}
	}
	if f.speed != "" {
		p.speed, err = strconv.ParseFloat(strings.Trim(f.speed, "x×"), 64)
		if err != nil || !(p.speed > 0) {
			return p, fmt.Errorf("--speed %q: expected how many times real time, such as 1, 60 or 3600", f.speed)
		}
	}
	if f.partitions < 1 || f.partitions > event.KeyGroups {
		return p, fmt.Errorf("--partitions %d: expected 1 to %d", f.partitions, event.KeyGroups)
	}
	return p, nil
}

// records is an open file or archive.
type records interface {
	BytesRead() int64
	Size() int64
	Close() error
}

// track is one input on its way into its topic.
type track struct {
	name   string
	source uint16
	spec   *jobspec.Source
	reader records
	fill   func(b *event.Batch, maxBytes int) (bool, error)
	decode *operator.Decoder
	shard  int // number of the shard field; -1: none

	batch  event.Batch
	marks  []mark // one a record of the batch
	next   int    // the record that is played next
	more   bool
	record kafka.Record
	origin []byte

	topic    kafka.Topic
	created  bool
	producer *kafka.Producer

	played, bytes, left, mixed int64
}

// mark is what the decoder found in a record.
type mark struct {
	at    event.Micros // where it is in the order of all inputs
	group int          // its key group; -1: none
	key   []byte
}

// openTracks opens the inputs and reports everything wrong at once.
func openTracks(job *operator.Job, inputs []string) (tracks []*track, err error) {
	var errs []error
	seen := map[string]bool{}
	for _, in := range inputs {
		name, path, ok := strings.Cut(in, "=")
		i := slices.IndexFunc(job.Spec.Sources, func(s jobspec.Source) bool { return s.Name == name })
		switch {
		case !ok || name == "" || path == "":
			errs = append(errs, fmt.Errorf("--input %q: expected SOURCE=PATH, such as orders=orders.jsonl", in))
		case i < 0:
			errs = append(errs, fmt.Errorf("--input %s: job %s has no source %q (its sources are %s)", in, job.Spec.Job, name, sourceNames(job.Spec)))
		case seen[name]:
			errs = append(errs, fmt.Errorf("--input %s: the source %s has an input already", in, name))
		default:
			t := &track{name: name, source: uint16(i), spec: &job.Spec.Sources[i], shard: -1, more: true}
			if err := t.open(job, path); err != nil {
				errs = append(errs, fmt.Errorf("input %s: %w", name, err))
				continue
			}
			tracks = append(tracks, t)
		}
		seen[name] = true
	}
	if len(errs) > 0 {
		errs = append(errs, (&play{tracks: tracks}).close())
		return nil, errors.Join(errs...)
	}
	return tracks, nil
}

func sourceNames(spec *jobspec.Spec) string {
	var names []string
	for _, s := range spec.Sources {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

func (t *track) open(job *operator.Job, path string) (err error) {
	if t.decode, err = job.NewDecoder(); err != nil {
		return err
	}
	if job.Spec.ShardBy != "" {
		t.shard = slices.IndexFunc(job.Spec.Fields, func(f jobspec.FieldDef) bool { return f.Name == job.Spec.ShardBy })
	}
	isArchive, err := startsAsParquet(path)
	if err != nil {
		return err
	}
	if isArchive {
		r, err := archive.Open(path)
		if err != nil {
			return err
		}
		t.reader = r
		t.fill = func(b *event.Batch, n int) (bool, error) { return r.Fill(b, t.source, t.spec.Topic, n) }
		return nil
	}
	r, err := lines.Open(path)
	if err != nil {
		return err
	}
	t.reader = r
	t.fill = func(b *event.Batch, n int) (bool, error) { return r.Fill(b, t.source, n) }
	return nil
}

// startsAsParquet tells whether a path is an archive: a folder, or a file with Parquet's first bytes.
func startsAsParquet(path string) (bool, error) {
	if path == "-" {
		return false, nil
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() { // the bytes of a pipe can be read once
		return err == nil && info.IsDir(), err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	magic := make([]byte, 4)
	_, err = io.ReadFull(f, magic)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return string(magic) == "PAR1", errors.Join(err, f.Close())
}

const readBytes = 256 << 10 // at a time, of each input

// ready tells whether there is a record to play, and reads on where the batch is used up.
func (t *track) ready() (bool, error) {
	for t.next == len(t.batch.Records) {
		if !t.more {
			return false, nil
		}
		t.batch.Reset()
		t.next = 0
		var err error
		if t.more, err = t.fill(&t.batch, readBytes); err != nil {
			return false, fmt.Errorf("input %s: %w", t.name, err)
		}
		t.left += int64(len(t.batch.Rejects)) // records that are too long to be any
		t.mark()
	}
	return true, nil
}

// mark decodes the batch and marks its records.
func (t *track) mark() {
	before := event.MinTime // of the batch before, so that the order has no step back
	if n := len(t.marks); n > 0 {
		before = t.marks[n-1].at
	}
	t.marks = slices.Grow(t.marks[:0], len(t.batch.Records))
	t.decode.Decode(&t.batch)
	e := 0
	for _, r := range t.batch.Records {
		m := mark{at: event.MinTime, group: -1}
		for first := e; e < len(t.batch.Events) && t.batch.Events[e].Offset == r.Offset && t.batch.Events[e].Partition == r.Partition; e++ {
			one := &t.batch.Events[e]
			m.at = max(m.at, one.Time)
			if e == first {
				m.group, m.key = int(one.Group), t.key(e)
			} else if m.group != int(one.Group) {
				t.mixed++
				break
			}
		}
		for e < len(t.batch.Events) && t.batch.Events[e].Offset == r.Offset && t.batch.Events[e].Partition == r.Partition {
			e++
		}
		t.marks = append(t.marks, m)
	}
	t.order(before)
}

// order makes the marks' times grow, in the order of the file: the times of a batch are dealt out anew, the least one first.
// A record without a time is played with the one before it, and so is one whose time is wild, since a broken clock must not
// hold an input up or push it ahead. Wild is what lies further from the middle eight tenths of a batch than these are wide.
func (t *track) order(before event.Micros) {
	var times []event.Micros
	for _, m := range t.marks {
		if m.at != event.MinTime {
			times = append(times, m.at)
		}
	}
	slices.Sort(times)
	if len(times) > 0 {
		low, high := times[len(times)/10], times[len(times)-1-len(times)/10]
		wild := func(at event.Micros) bool { return at < low-(high-low) || at > high+(high-low) }
		times = slices.DeleteFunc(times, wild)
		for i := range t.marks {
			if t.marks[i].at != event.MinTime && wild(t.marks[i].at) {
				t.marks[i].at = event.MinTime
			}
		}
	}
	for i := range t.marks {
		if t.marks[i].at != event.MinTime {
			before = max(before, times[0])
			times = times[1:]
		}
		t.marks[i].at = before
	}
}

// key returns the value of the shard field of an event of the batch; nil where there is none.
func (t *track) key(e int) []byte {
	if t.shard < 0 {
		return nil
	}
	if t.spec.Shard != "" {
		return []byte(t.spec.Shard)
	}
	for _, v := range t.batch.ValuesOf(e) {
		switch {
		case int(v.ID) != t.shard:
		case v.Kind == event.StringValue:
			return bytes.Clone(t.batch.Bytes(&v))
		case v.Kind == event.IntValue:
			return strconv.AppendInt(nil, int64(v.Bits), 10)
		}
	}
	return nil
}

// partition returns where a record goes: key groups are dealt out in runs, as shards divide them. What has no key, since it
// cannot be decoded or the job is not sharded, goes round.
func (t *track) partition(r *event.Record, m *mark) int32 {
	n := int64(t.topic.Partitions)
	if t.shard < 0 || m.group < 0 {
		return int32(r.Offset % n)
	}
	return int32(int64(m.group) * n / event.KeyGroups)
}

// send produces the next record.
func (t *track) send(ctx context.Context) error {
	r, m := &t.batch.Records[t.next], &t.marks[t.next]
	t.origin = event.AppendOrigin(t.origin[:0], t.topic.Name, r.Partition, r.Offset)
	t.record.Timestamp = event.Micros(time.Now().UnixMicro())
	t.record.Key, t.record.Value = m.key, t.batch.Raw(*r)
	t.record.Headers = append(t.record.Headers[:0], kafka.Header{Key: originHeader, Value: t.origin})
	if err := t.producer.Add(ctx, t.partition(r, m), &t.record); err != nil {
		return err
	}
	t.next++
	t.played++
	t.bytes += int64(r.Len)
	return nil
}

var originHeader = []byte(event.OriginHeader)

// pace says when a record is due; the zero value plays as fast as possible.
type pace struct {
	perSecond float64
	speed     float64

	began time.Time
	first event.Micros
	n     float64
}

// due returns how long to wait before a record of a time is played.
func (p *pace) due(at event.Micros, now time.Time) time.Duration {
	if p.began.IsZero() {
		p.began, p.first = now, at
	}
	var after time.Duration
	switch {
	case p.perSecond > 0:
		after = time.Duration(p.n / p.perSecond * float64(time.Second))
		p.n++
	case p.speed > 0:
		after = time.Duration(float64(at-p.first) / p.speed * float64(time.Microsecond))
	default:
		return 0
	}
	return p.began.Add(after).Sub(now)
}

// play merges tracks.
type play struct {
	tracks []*track
	pace   pace
	bar    *progressBar
	played int64
}

// connect finds or creates the topics.
func (p *play) connect(ctx context.Context, client *kafka.Client, partitions int32) (err error) {
	for _, t := range p.tracks {
		if t.topic, t.created, err = client.CreateTopic(ctx, t.spec.Topic, partitions, nil); err != nil {
			return err
		}
		if t.producer, err = client.Producer(t.topic, kafka.ProducerConfig{}); err != nil {
			return err
		}
	}
	return nil
}

func (p *play) close() error {
	var errs []error
	for _, t := range p.tracks {
		errs = append(errs, t.reader.Close())
		if t.producer != nil {
			errs = append(errs, t.producer.Close())
		}
	}
	return errors.Join(errs...)
}

// run plays to the end, or until the context ends.
func (p *play) run(ctx context.Context) error {
	shown := time.Now()
	for {
		next, err := p.next()
		if err != nil || next == nil {
			return err
		}
		now := time.Now()
		if wait := p.pace.due(next.marks[next.next].at, now); wait > time.Millisecond { // timers are not finer
			if err := p.wait(ctx, wait); err != nil {
				return err
			}
		}
		if err := next.send(ctx); err != nil {
			return err
		}
		p.played++
		if now.Sub(shown) > showEvery {
			p.show()
			shown = now
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

const showEvery = 200 * time.Millisecond

// wait waits, and shows that it does.
func (p *play) wait(ctx context.Context, d time.Duration) error {
	due := time.NewTimer(d)
	defer due.Stop()
	tick := time.NewTicker(showEvery)
	defer tick.Stop()
	for {
		select {
		case <-due.C:
			return nil
		case <-tick.C:
			p.show()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// next returns the track whose next record is the earliest; nil at the end.
func (p *play) next() (first *track, err error) {
	for _, t := range p.tracks {
		ok, err := t.ready()
		if err != nil {
			return nil, err
		}
		if ok && (first == nil || t.marks[t.next].at < first.marks[first.next].at) {
			first = t
		}
	}
	return first, nil
}

func (p *play) show() {
	at := backfill.Progress{Phase: "playing", Records: p.played}
	for _, t := range p.tracks {
		at.BytesRead += t.reader.BytesRead()
		at.BytesAll += max(t.reader.Size(), 0)
	}
	p.bar.show(at)
}

func (p *play) flush(ctx context.Context) error {
	for _, t := range p.tracks {
		if err := t.producer.Flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// produced is the summary; its JSON form is a contract.
type produced struct {
	Records          int64            `json:"records"`
	Bytes            int64            `json:"bytes"`
	Seconds          float64          `json:"seconds"`
	RecordsPerSecond float64          `json:"records_per_second"`
	Interrupted      bool             `json:"interrupted"`
	Sources          []producedSource `json:"sources"`
}

type producedSource struct {
	Source     string `json:"source"`
	Topic      string `json:"topic"`
	Partitions int32  `json:"partitions"`
	Created    bool   `json:"created"`
	Records    int64  `json:"records"`
	Bytes      int64  `json:"bytes"`
	LeftOut    int64  `json:"left_out"` // longer than a record may be
	Mixed      int64  `json:"mixed"`    // records with events of several key groups
}

func (p *play) summary(took time.Duration, interrupted bool) *produced {
	s := &produced{Seconds: took.Seconds(), Interrupted: interrupted, Sources: []producedSource{}}
	for _, t := range p.tracks {
		s.Records += t.played
		s.Bytes += t.bytes
		s.Sources = append(s.Sources, producedSource{t.name, t.topic.Name, t.topic.Partitions, t.created, t.played, t.bytes, t.left, t.mixed})
	}
	slices.SortFunc(s.Sources, func(a, b producedSource) int { return cmp.Compare(a.Source, b.Source) })
	s.RecordsPerSecond = float64(s.Records) / max(s.Seconds, 1e-6)
	return s
}

func (f *produceFlags) print(w io.Writer, s *produced) error {
	if f.quiet {
		return nil
	}
	if f.json {
		text, err := json.MarshalIndent(s, "", "  ")
		if err == nil {
			_, err = fmt.Fprintf(w, "%s\n", text)
		}
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s records (%d MB) in %.2f s, %s records/s\n", thousands(s.Records), s.Bytes/1e6, s.Seconds, thousands(int64(s.RecordsPerSecond)))
	for _, one := range s.Sources {
		fmt.Fprintf(&b, "  %-16s %12s  → %s, %s", one.Source, thousands(one.Records), one.Topic, count(int(one.Partitions), "partition"))
		if one.Created {
			fmt.Fprint(&b, ", created")
		}
		fmt.Fprintln(&b)
		if one.LeftOut > 0 {
			fmt.Fprintf(&b, "WARNING: %s records of %s are longer than a record may be and were left out\n", thousands(one.LeftOut), one.Source)
		}
		if one.Mixed > 0 {
			fmt.Fprintf(&b, "WARNING: %s records of %s hold events of several shards; they went with their first event\n", thousands(one.Mixed), one.Source)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

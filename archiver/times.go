package archiver

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sort"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

// tracked is a source of a job whose event times are noted.
type tracked struct {
	job, source, fingerprint string
	number                   int // of the source in the spec
	spec                     *operator.Job
}

// tracker finds out event times. Its decoders are shared by the partitions.
type tracker struct {
	sources  []tracked // in order of job, source and fingerprint, each once
	decoders chan *timeDecoder
}

// timeDecoder has a decoder for each tracked source.
type timeDecoder struct {
	decoders []*operator.Decoder
	batch    event.Batch
}

// rowTimes are the event times of one record for one source.
type rowTimes struct {
	least, greatest event.Micros
	events          int32
	reject          bool
}

func noTimes() rowTimes { return rowTimes{least: event.MaxTime, greatest: event.MinTime} }

// sourcesOf returns the numbers of a job's sources that read a topic.
func sourcesOf(j *operator.Job, topic string) (numbers []int) {
	for i, s := range j.Spec.Sources {
		if s.Topic == topic {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

func newTracker(jobs []*operator.Job, topic string) (*tracker, error) {
	t := &tracker{}
	for _, j := range jobs {
		for _, i := range sourcesOf(j, topic) {
			t.sources = append(t.sources, tracked{j.Spec.Job, j.Spec.Sources[i].Name, j.Fingerprint(i), i, j})
		}
	}
	slices.SortFunc(t.sources, func(a, b tracked) int {
		return cmp.Or(cmp.Compare(a.job, b.job), cmp.Compare(a.source, b.source), cmp.Compare(a.fingerprint, b.fingerprint))
	})
	t.sources = slices.CompactFunc(t.sources, func(a, b tracked) bool { // versions of a job mostly read their topics alike
		return a.job == b.job && a.source == b.source && a.fingerprint == b.fingerprint
	})
	t.decoders = make(chan *timeDecoder, runtime.GOMAXPROCS(0))
	for range cap(t.decoders) {
		d := &timeDecoder{}
		for _, s := range t.sources {
			one, err := s.spec.NewDecoder()
			if err != nil {
				return nil, fmt.Errorf("job %s: %w", s.job, err)
			}
			d.decoders = append(d.decoders, one)
		}
		t.decoders <- d
	}
	return t, nil
}

// note finds out the event times of the rows from a place on.
func (t *tracker) note(r *rows, from int) {
	if len(t.sources) == 0 || from == len(r.records) {
		return
	}
	d := <-t.decoders
	defer func() { t.decoders <- d }()
	for from < len(r.records) {
		from = t.batch(d, r, from)
	}
}

// decodeBytes is how many bytes are decoded at a time.
const decodeBytes = 256 << 10

// batch decodes some rows for every source and returns the row to go on at. A record's offset in the batch is the number of
// its row, so that events find their row again.
func (t *tracker) batch(d *timeDecoder, r *rows, from int) (next int) {
	b := &d.batch
	b.Reset()
	for next = from; next < len(r.records) && len(b.Data) < decodeBytes; next++ {
		rec := &r.records[next]
		switch {
		case rec.Value == nil: // a deletion, and no event
		case len(rec.Value) > event.RecordBytesMax || !isOriginValid(rec.Headers): // as the readers of both drivers have it
			for k := range t.sources {
				r.timesOf(next)[k].reject = true
			}
		default:
			b.Add(event.Record{Offset: int64(next), Timestamp: rec.Timestamp}, rec.Value)
		}
	}
	raw := len(b.Data)
	for k, s := range t.sources {
		b.ResetDecoded()
		b.Data = b.Data[:raw]
		for i := range b.Records {
			b.Records[i].Source = uint16(s.number)
		}
		d.decoders[k].Decode(b)
		for i := range b.Events {
			e := &b.Events[i]
			at := &r.timesOf(int(e.Offset))[k]
			at.least, at.greatest = min(at.least, e.Time), max(at.greatest, e.Time)
			at.events++
		}
		for i := range b.Rejects {
			r.timesOf(int(b.Rejects[i].Record.Offset))[k].reject = true
		}
	}
	return next
}

// isOriginValid tells whether the last weft-origin header, if there is one, can be read.
func isOriginValid(headers []archive.Header) bool {
	for i := len(headers) - 1; i >= 0; i-- {
		if headers[i].Key == event.OriginHeader {
			_, _, ok := event.ParseOrigin(headers[i].Value)
			return ok
		}
	}
	return true
}

// least returns the first event time of a row for any source; false: it has none.
func (r *rows) least(row int) (event.Micros, bool) {
	least := event.MaxTime
	found := false
	for _, t := range r.timesOf(row) {
		if t.events > 0 {
			least, found = min(least, t.least), true
		}
	}
	return least, found
}

// piecesMax is how many data files a manifest gets at most.
const piecesMax = 3

// cut divides rows into pieces that become files of their own, so that few records whose event times lie far from the
// others' do not make a plan read the others. Each piece has its rows in order.
//
// What a plan reads for a window of time is, on average, the sum over the files of their rows times the range of their
// times. So rows are cut where that sum gets least, at a hole of more than far in their times, if it falls to a half.
func (r *rows) cut(far event.Micros) (pieces [][]int32) {
	var times []event.Micros
	for i := range r.records {
		if t, ok := r.least(i); ok {
			times = append(times, t)
		}
	}
	slices.Sort(times)
	bounds := cuts(times, far)
	pieces = make([][]int32, len(bounds)+1)
	counts := make([]int, len(bounds)+1)
	for _, t := range times {
		counts[pieceOf(bounds, t)]++
	}
	most := 0 // rows without a time go to the largest piece
	for i, n := range counts {
		if n > counts[most] {
			most = i
		}
	}
	for i := range r.records {
		piece := most
		if t, ok := r.least(i); ok {
			piece = pieceOf(bounds, t)
		}
		pieces[piece] = append(pieces[piece], int32(i))
	}
	return pieces
}

// pieceOf returns which piece a time belongs to: bounds are the first times of all pieces but the first.
func pieceOf(bounds []event.Micros, t event.Micros) int {
	return sort.Search(len(bounds), func(i int) bool { return bounds[i] > t })
}

// cuts returns the first time of each piece but the first, in order.
func cuts(times []event.Micros, far event.Micros) (bounds []event.Micros) {
	type segment struct{ from, to int }
	segments := []segment{{0, len(times)}}
	cost := func(s segment) float64 {
		return float64(s.to-s.from) * (float64(times[s.to-1]) - float64(times[s.from]) + float64(far))
	}
	for len(segments) < piecesMax && len(times) > 1 {
		best, at, saved := -1, 0, 0.0
		total := 0.0
		for i, s := range segments {
			total += cost(s)
			for k := s.from + 1; k < s.to; k++ {
				if float64(times[k])-float64(times[k-1]) <= float64(far) {
					continue
				}
				if gain := cost(s) - cost(segment{s.from, k}) - cost(segment{k, s.to}); gain > saved {
					best, at, saved = i, k, gain
				}
			}
		}
		if best < 0 || saved < total/2 {
			break
		}
		s := segments[best]
		segments[best] = segment{s.from, at}
		segments = append(segments, segment{at, s.to})
		bounds = append(bounds, times[at])
	}
	slices.Sort(bounds)
	return bounds
}

// statistics fills in what a data file knows of its rows.
func (t *tracker) statistics(f *archive.DataFile, r *rows, piece []int32) {
	f.Records = int64(len(piece))
	f.LeastOffset, f.GreatestOffset = math.MaxInt64, math.MinInt64
	totals := make([]rowTimes, len(t.sources))
	counts := make([]archive.Times, len(t.sources))
	for k := range totals {
		totals[k] = noTimes()
	}
	for _, i := range piece {
		rec := &r.records[i]
		f.LeastOffset, f.GreatestOffset = min(f.LeastOffset, rec.Offset), max(f.GreatestOffset, rec.Offset)
		if rec.Timestamp != event.MinTime {
			if f.Timestamps == nil {
				f.Timestamps = &archive.Span{Least: rec.Timestamp, Greatest: rec.Timestamp}
			}
			f.Timestamps.Least, f.Timestamps.Greatest = min(f.Timestamps.Least, rec.Timestamp), max(f.Timestamps.Greatest, rec.Timestamp)
		} else {
			f.Timeless++
		}
		for k, row := range r.timesOf(int(i)) {
			totals[k].least, totals[k].greatest = min(totals[k].least, row.least), max(totals[k].greatest, row.greatest)
			counts[k].Events += int64(row.events)
			if row.reject {
				counts[k].Rejects++
			}
		}
	}
	for k, s := range t.sources {
		c := &counts[k]
		c.Job, c.Source, c.Fingerprint = s.job, s.source, s.fingerprint
		if c.Events > 0 {
			c.Event = &archive.Span{Least: totals[k].least, Greatest: totals[k].greatest}
		}
	}
	f.Times = counts
}

package backfill

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
)

// drawing makes a plan of a survey.
type drawing struct {
	in      *PlanInput
	plan    *Plan
	archive *survey
	behind  bool // the archive of a partition has not come to the end of its log
}

// drawnSlice is a slice with the places of its files in the survey.
type drawnSlice struct {
	PlannedSlice
	rejects TimeRange
	files   []int32
}

// clip takes off the range what cannot be computed, and works out what is to be staged.
func (d *drawing) clip() error {
	in, p, a := d.in, d.plan, d.archive
	if len(a.files) == 0 || a.least > a.greatest && !a.unbounded {
		return usage("%w", errNoArchive)
	}
	whole := correlate.Range{From: 0, To: 1}
	cfg := in.Job.Config
	cfg.Range = whole
	p.Span, p.Reach = cfg.Session.MaxSpan, cfg.Near().To-whole.To

	p.Range = p.Asked
	end := func(to event.Micros, why string, args ...any) {
		if to < p.Range.To {
			p.clip("the end is moved from %s to %s: "+why, append([]any{timeText(p.Range.To), timeText(to)}, args...)...)
			p.Range.To = to
		}
	}
	if in.Now != 0 {
		end(in.Now, "what is later is the future")
	}
	if in.Sealed != 0 {
		end(in.Sealed, "later sessions can still change in the live job%s", in.SealedText)
	}
	for i := range a.partitions {
		if to, ok := in.Through[a.partitions[i].topic][a.partitions[i].id]; ok && a.partitions[i].to < to {
			x := &a.partitions[i]
			d.behind = true
			end(max(x.greatest, -farthest), "the archive of %s ends at offset %d of %d", x, x.to, to)
		}
	}
	if !a.unbounded {
		end(a.greatest+1, "the archive has no later event")
		if a.least > p.Range.From {
			p.clip("the start is moved from %s to %s: the archive has no earlier event", timeText(p.Range.From), timeText(a.least))
			p.Range.From = a.least
		}
	}
	if p.Range.empty() {
		return usage("nothing is left of %s: %s", p.Asked, strings.Join(p.Clips, "; "))
	}

	p.Owned = TimeRange{p.Range.From - max(in.Before, p.Span), p.Range.To + in.After}
	p.Known, p.Rejects = p.Owned, p.Range
	if a.unbounded {
		return nil
	}
	if p.Owned.From <= a.least { // no event is earlier
		p.Owned.From, p.Known.From = a.least, event.MinTime
	}
	if p.Owned.To > a.greatest {
		p.Owned.To = a.greatest + 1
		if !d.behind {
			p.Known.To = event.MaxTime
		}
	}
	if p.Range.From <= a.least {
		p.Rejects.From = event.MinTime
	}
	if p.Range.To > a.greatest {
		p.Rejects.To = event.MaxTime
	}
	return nil
}

// draw chooses chunks and slices.
func (d *drawing) draw() ([][]drawnSlice, error) {
	p, a := d.plan, d.archive
	bytes := func(r TimeRange) int64 { n, _ := a.bytesIn(r); return n }
	p.Totals = a.totals
	p.Totals.RangeBytes, p.Totals.RangeRows = a.bytesIn(p.Range)
	p.Totals.WithinBytes = p.Totals.RangeBytes*readNumerator/readDenominator +
		bytes(TimeRange{p.Range.From - p.Reach, p.Range.From}) + bytes(TimeRange{p.Range.To, p.Range.To + p.Reach})

	p.Slice = max(d.in.Slice, -d.in.Slice)
	var list []TimeRange
	for n := d.in.Parallelism; ; n-- {
		list = d.cut(n)
		total := int64(0)
		for _, r := range list {
			total += bytes(d.near(r))
		}
		if len(list) == 1 || total <= p.Totals.WithinBytes {
			break
		}
	}
	if len(list) < d.in.Parallelism {
		p.note("%d chunks instead of %d, so as many slices at once: more would read the reach around each of them again, over the bound of %s",
			len(list), d.in.Parallelism, mebibytes(p.Totals.WithinBytes))
	}
	for {
		chunks, straddling := d.slices(list)
		if d.in.Slice < 0 && straddling && p.Slice < p.Range.To-p.Range.From+2*p.Reach {
			p.Slice *= 2
			continue
		}
		if d.in.Slice < 0 && p.Slice > -d.in.Slice {
			p.note("slices are %v long instead of %v: data files span more than that", duration(p.Slice), duration(-d.in.Slice))
		}
		if p.Totals.Slices > slicesMax {
			return nil, usage("%d slices: at most %d; choose slices longer than %v", p.Totals.Slices, slicesMax, duration(p.Slice))
		}
		return chunks, nil
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func duration(t event.Micros) time.Duration { return time.Duration(t) * time.Microsecond }

// near are the times of the events that matter to a chunk.
func (d *drawing) near(r TimeRange) TimeRange {
	return TimeRange{r.From - d.plan.Reach, r.To + d.plan.Reach}
}

// cut divides Owned into up to n chunks of about equal bytes, at multiples of the slice length.
func (d *drawing) cut(n int) (list []TimeRange) {
	owned, total := d.plan.Owned, int64(0)
	starts := func(f *archivedFile) bool { return owned.contains(f.Least) }
	for _, f := range d.archive.files {
		if starts(f) {
			total += f.Bytes
		}
	}
	from, sum := owned.From, int64(0)
	for _, f := range d.archive.files {
		if !starts(f) {
			continue
		}
		// The files before this one fill a chunk.
		if at := floorTo(f.Least, d.plan.Slice); len(list) < n-1 && sum*int64(n) >= total*int64(len(list)+1) && at > from {
			list = append(list, TimeRange{from, at})
			from = at
		}
		sum += f.Bytes
	}
	return append(list, TimeRange{from, owned.To})
}

// slices divides the chunks. straddling tells that files stand in so many slices that they had better be longer.
func (d *drawing) slices(list []TimeRange) (chunks [][]drawnSlice, straddling bool) {
	p := d.plan
	p.Chunks = p.Chunks[:0]
	p.Totals.Slices, p.Totals.ReadBytes, p.Totals.ReadRows = 0, 0, 0
	used := map[int32]bool{}
	for _, r := range list {
		drawn := d.chain(r)
		distinct, own := int64(0), map[int32]bool{}
		c := Chunk{Range: r, Slices: len(drawn)}
		for _, s := range drawn {
			if s.Range.From >= r.To {
				c.Tail++
			}
			for _, f := range s.files {
				file := d.archive.files[f]
				c.Bytes, c.Rows = c.Bytes+file.Bytes, c.Rows+file.Records
				if !own[f] {
					own[f], used[f] = true, true
					distinct += file.Bytes
				}
			}
		}
		straddling = straddling || c.Bytes*straddleDenominator > distinct*straddleNumerator
		p.Chunks = append(p.Chunks, c)
		p.Totals.Slices += c.Slices
		p.Totals.ReadBytes, p.Totals.ReadRows = p.Totals.ReadBytes+c.Bytes, p.Totals.ReadRows+c.Rows
		chunks = append(chunks, drawn)
	}
	p.Totals.Files = int64(len(used))
	return chunks, straddling
}

// chain divides what a chunk reads into slices, and gives them their files.
func (d *drawing) chain(chunk TimeRange) []drawnSlice {
	all := d.near(chunk)
	if a := d.archive; !a.unbounded {
		all.From, all.To = max(all.From, min(a.least, chunk.From)), min(all.To, max(a.greatest+1, chunk.To))
	}
	var list []drawnSlice
	for at := all.From; at < all.To; {
		next := min(floorTo(at, d.plan.Slice)+d.plan.Slice, all.To)
		if at < chunk.To {
			next = min(next, chunk.To)
		}
		list = append(list, drawnSlice{PlannedSlice: PlannedSlice{Range: TimeRange{at, next}}, rejects: d.rejects(chunk, TimeRange{at, next})})
		at = next
	}
	d.fill(list)
	// A time without files needs no slice of its own; the end of the chunk stays one.
	merged := list[:1]
	for _, s := range list[1:] {
		last := &merged[len(merged)-1]
		if len(s.files) > 0 || s.Range.From == chunk.To {
			merged = append(merged, s)
			continue
		}
		last.Range.To = s.Range.To
		if !s.rejects.empty() {
			if last.rejects.empty() {
				last.rejects = s.rejects
			}
			last.rejects.To = s.rejects.To
		}
	}
	return merged
}

// rejects are the timestamps whose rejects a slice stages: slices tile them as they tile the range, and the outermost take
// what is beyond where nothing else would.
func (d *drawing) rejects(chunk, slice TimeRange) TimeRange {
	p := d.plan
	r := TimeRange{max(slice.From, chunk.From, p.Range.From), min(slice.To, chunk.To, p.Range.To)}
	if r.empty() {
		return TimeRange{}
	}
	if r.From == p.Range.From {
		r.From = p.Rejects.From
	}
	if r.To == p.Range.To {
		r.To = p.Rejects.To
	}
	return r
}

// fill gives slices the files that have events or rejects of them.
func (d *drawing) fill(list []drawnSlice) {
	for n, f := range d.archive.files {
		first, _ := slices.BinarySearchFunc(list, f.Least, func(s drawnSlice, t event.Micros) int {
			if s.Range.To <= t {
				return -1
			}
			return 1
		})
		for i := first; i < len(list) && f.hasEvents(list[i].Range); i++ {
			list[i].files = append(list[i].files, int32(n))
		}
		if !f.Rejects {
			continue
		}
		for i := range list {
			if has := len(list[i].files); f.hasRejects(list[i].rejects) && (has == 0 || list[i].files[has-1] != int32(n)) {
				list[i].files = append(list[i].files, int32(n))
			}
		}
	}
}

// warn tells what may be missing: records that were lost, and hours without data between hours with some.
func (d *drawing) warn() {
	p, a := d.plan, d.archive
	if a.totals.Lost > 0 {
		p.warning("%d records were deleted before they were archived", a.totals.Lost)
	}
	if a.totals.Unmeasured > 0 && !a.totals.Measured {
		p.warning("%d files have no statistics for this version's sources: every slice reads them", a.totals.Unmeasured)
	}
	if over := p.Totals.ReadBytes - p.Totals.WithinBytes; over > 0 {
		p.warning("the plan reads up to %s, %s more than one and a half times its range and a reach on either side", mebibytes(p.Totals.ReadBytes), mebibytes(over))
	}
	const hour = SliceDefault
	for number := range d.in.Job.Spec.Sources {
		at := event.MinTime // up to here there is data
		for _, f := range a.files {
			if f.Source != number || f.Least > f.Greatest || f.Least == always.From {
				continue
			}
			from, to := ceilTo(at, hour), floorTo(f.Least, hour)
			if at != event.MinTime && to > from && from < p.Range.To && to > p.Range.From {
				p.warning("source %s has no data from %s to %s", d.in.Job.Spec.Sources[number].Name, timeText(from), timeText(to))
			}
			at = max(at, f.Greatest)
		}
	}
	if d.in.Through != nil || a.unbounded {
		return
	}
	for i := range a.partitions {
		x := &a.partitions[i]
		if x.greatest < p.Range.To-hour {
			p.warning("the archive of %s has nothing from %s on: %s", x, timeText(x.greatest), "if the partition is not idle, wait for its archiver")
		}
	}
}

// String describes a plan in a line.
func (p *Plan) String() string {
	return fmt.Sprintf("%s: version %d, %s in %d chunks of %d slices", p.Ref, p.Version, p.Range, len(p.Chunks), p.Totals.Slices)
}

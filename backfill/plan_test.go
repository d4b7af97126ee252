package backfill

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/operator"
)

const hourlyJob = `version: weft/v1
job: shop
sources:
  orders:
    topic: pay.orders
    format: json
    time: {field: t, layout: unix_s}
    step: {value: ordered}
    keys: {order: order}
session: {gap: 30m, gaps: {order: 168h}, max_span: 240h}
`

// hours archives one record an hour and partition, and says that each file has the bytes of its true size.
func hours(t *testing.T, m *memory, job *operator.Job, partition int32, from, to int, skip func(hour int) bool) {
	t.Helper()
	sequence, offset := int64(0), int64(0)
	for hour := from; hour < to; hour++ {
		if skip != nil && skip(hour) {
			continue
		}
		r := []archive.Record{{Topic: "pay.orders", Partition: partition, Offset: offset, Timestamp: at(int64(hour)),
			Value: fmt.Appendf(nil, `{"t":%d,"order":"%d-%d"}`, firstTime+3600*hour+60, partition, hour)}}
		putArchive(t, m, "pay.orders", partition, sequence, r, func(r []archive.Record) []archive.Times { return timesOf(t, job, r) })
		sequence, offset = sequence+1, offset+1
	}
}

func hourly(job *operator.Job, m *memory, from, to int) PlanInput {
	return PlanInput{Ref: PlanRef{"shop", "b"}, Job: job, Version: 3, Checksum: "c", Objects: m, From: at(int64(from)), To: at(int64(to))}
}

// TestPlanReadsLittle plans thirty days of a job whose sessions reach over seventeen: what is read is at most one and a half
// times the range and a reach on either side, by the plan's account and by that of the store.
func TestPlanReadsLittle(t *testing.T) {
	job := compile(t, hourlyJob)
	m := newMemory()
	hours(t, m, job, 0, 10*24, 100*24, nil)
	in := hourly(job, m, 40*24, 70*24)
	in.Parallelism, in.Slice = 8, 6*SliceDefault
	p, err := MakePlan(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if p.Totals.ReadBytes > p.Totals.WithinBytes || len(p.Chunks) != 1 || len(p.Notes) != 1 || !strings.Contains(p.Notes[0], "1 chunks instead of 8") {
		t.Errorf("%+v, %d chunks, %q", p.Totals, len(p.Chunks), p.Notes)
	}
	for slice := range p.Chunks[0].Slices {
		r, err := RunSlice(t.Context(), SliceInput{Plan: p.Ref, Slice: slice, Job: job, Objects: m, Decoders: 1, TempDir: t.TempDir()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Done {
			break
		}
		m, err := loadSliceManifest(t.Context(), m, p.Ref, 0, slice)
		if err != nil || len(m.State) > 65 || int(m.State[len(m.State)-1].Number) != slice+1 {
			t.Fatalf("slice %d needs %d parts of state, %v", slice, len(m.State), err)
		}
	}
	read, inRange := int64(0), int64(0)
	for key, n := range m.read {
		if strings.HasPrefix(key, "archive/") {
			read += n
		}
	}
	inRange = p.Totals.RangeBytes
	reach := int64(float64(inRange) * float64(p.Reach) / float64(p.Range.To-p.Range.From))
	t.Logf("read %d bytes: %.2f of the range, which has %d; the bound is %.2f", read, float64(read)/float64(inRange), inRange,
		float64(p.Totals.WithinBytes)/float64(inRange))
	if read > inRange*3/2+2*reach || read > p.Totals.ReadBytes || read < inRange {
		t.Errorf("read %d bytes; the range has %d, the plan says %d, the bound is %d", read, inRange, p.Totals.ReadBytes, p.Totals.WithinBytes)
	}
}

// TestPlanOfAYear has 8,760 slices and more; each slice is found without reading the rest of the plan.
func TestPlanOfAYear(t *testing.T) {
	job := compile(t, archivedJob)
	m := newMemory()
	hours(t, m, job, 0, 0, 8760, nil)
	in := hourly(job, m, 0, 8760)
	in.Parallelism, in.Order = 12, NewestFirst
	p, err := MakePlan(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Chunks) != 12 || p.Totals.Slices < 8760 || p.ChunkOrder()[0] != 11 || len(p.Parts) < 8760/partSlicesMax {
		t.Errorf("%s; %d parts, order %v", p, len(p.Parts), p.ChunkOrder())
	}
	if n := len(m.objects[p.Ref.planKey()]); n > 64<<10 {
		t.Errorf("the plan has %d bytes", n)
	}
	from := p.Owned.From
	for i, c := range p.Chunks {
		if c.Range.From != from || c.Range.empty() {
			t.Errorf("chunk %d is %s, expected from %s", i, c.Range, timeText(from))
		}
		from = c.Range.To
		s, err := LoadSlice(t.Context(), m, p, i, c.Slices-1)
		if err != nil || s.Range.To < c.Range.To {
			t.Errorf("chunk %d ends with %+v, %v", i, s, err)
		}
	}
	if from != p.Owned.To {
		t.Errorf("the chunks end at %s", timeText(from))
	}
	again, err := MakePlan(t.Context(), in)
	if err != nil || !reflect.DeepEqual(again, p) {
		t.Errorf("planning again: %v", err)
	}
	in.To--
	if _, err := MakePlan(t.Context(), in); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "another backfill") {
		t.Errorf("another range under the same name: %v", err)
	}
}

// TestPlanClips asks for more than there is.
func TestPlanClips(t *testing.T) {
	job := compile(t, archivedJob)
	minute := event.Micros(60_000_000)
	for name, c := range map[string]struct {
		change   func(*PlanInput)
		from, to event.Micros
		note     string
	}{
		"all of it":    {func(*PlanInput) {}, at(10), at(20), ""},
		"too early":    {func(in *PlanInput) { in.From = at(-50) }, at(0) + minute, at(20), "the archive has no earlier event"},
		"too late":     {func(in *PlanInput) { in.To = at(500) }, at(10), at(99) + minute + 1, "the archive has no later event"},
		"the future":   {func(in *PlanInput) { in.Now = at(15) }, at(10), at(15), "is the future"},
		"not sealed":   {func(in *PlanInput) { in.Sealed, in.SealedText = at(13), ", since" }, at(10), at(13), "can still change in the live job, since"},
		"not archived": {func(in *PlanInput) { in.To = at(90); in.Through = ends(100, 81) }, at(10), at(79) + minute, "pay.orders/1 ends at offset 80 of 81"},
		"archived":     {func(in *PlanInput) { in.To = at(90); in.Through = ends(100, 80) }, at(10), at(90), ""},
	} {
		m := newMemory()
		hours(t, m, job, 0, 0, 100, nil)
		hours(t, m, job, 1, 0, 80, nil)
		in := hourly(job, m, 10, 20)
		c.change(&in)
		p, err := MakePlan(t.Context(), in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Range != (TimeRange{c.from, c.to}) || c.note == "" != (len(p.Clips) == 0) || c.note != "" && !strings.Contains(p.Clips[0], c.note) {
			t.Errorf("%s: %s, %q; want %s", name, p.Range, p.Clips, TimeRange{c.from, c.to})
		}
	}
}

func ends(a, b int64) map[string]map[int32]int64 {
	return map[string]map[int32]int64{"pay.orders": {0: a, 1: b}}
}

// TestPlanRefuses finds what cannot be planned.
func TestPlanRefuses(t *testing.T) {
	job := compile(t, archivedJob)
	for want, c := range map[string]struct {
		change func(*PlanInput)
		damage func(*memory)
		usage  bool
	}{
		"nothing is left":          {func(in *PlanInput) { in.From, in.To = at(500), at(600) }, nil, true},
		"is empty":                 {func(in *PlanInput) { in.To = in.From }, nil, true},
		"at least a second":        {func(in *PlanInput) { in.Slice = 5 }, nil, true},
		"parallelism 100000":       {func(in *PlanInput) { in.Parallelism = 100000 }, nil, true},
		"order \"sideways\"":       {func(in *PlanInput) { in.Order = "sideways" }, nil, true},
		"numbered from 1":          {func(in *PlanInput) { in.Version = 0 }, nil, true},
		"backfill id":              {func(in *PlanInput) { in.Ref.ID = "../x" }, nil, true},
		"of another job":           {func(in *PlanInput) { in.Ref.Job = "other" }, nil, true},
		"beyond the year 5000":     {func(in *PlanInput) { in.To = event.MaxTime }, nil, true},
		"must not be negative":     {func(in *PlanInput) { in.Before = -1 }, nil, true},
		"is missing":               {nil, func(m *memory) { delete(m.objects, archive.ManifestKey("pay.orders", 0, 3)) }, false},
		"no archive of topic":      {nil, func(m *memory) { clear(m.objects) }, false},
		"slices: at most 200000":   {func(in *PlanInput) { in.Slice = SliceMin }, nil, true},
		"the manifest is damaged:": {nil, func(m *memory) { m.objects[archive.ManifestKey("pay.orders", 0, 3)][40] ^= 1 }, false},
	} {
		m := newMemory()
		hours(t, m, job, 0, 0, 100, nil)
		in := hourly(job, m, 10, 90)
		if strings.Contains(want, "slices: at most") {
			hours(t, m, job, 1, 0, 100, nil)
			long := []archive.Record{{Topic: "pay.orders", Partition: 2, Value: fmt.Appendf(nil, `{"t":%d}`, firstTime)},
				{Topic: "pay.orders", Partition: 2, Offset: 1, Value: fmt.Appendf(nil, `{"t":%d}`, firstTime+90*3600)}}
			putArchive(t, m, "pay.orders", 2, 0, long, func(r []archive.Record) []archive.Times { return timesOf(t, job, r) })
		}
		if c.change != nil {
			c.change(&in)
		}
		if c.damage != nil {
			c.damage(m)
		}
		_, err := MakePlan(t.Context(), in)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrUsage) != c.usage {
			t.Errorf("got %v, want %q, usage %v", err, want, c.usage)
		}
		if left := m.keys("backfill/"); len(left) > 0 {
			t.Errorf("%q: %v are left", want, left)
		}
	}
}

// TestPlanWarns tells what may be missing, and finds the times of files that have none.
func TestPlanWarns(t *testing.T) {
	job := compile(t, archivedJob)
	m := newMemory()
	hours(t, m, job, 0, 0, 100, func(hour int) bool { return hour >= 30 && hour < 33 || hour == 95 })
	for i := range int64(3) { // their statistics are of another spec
		r := []archive.Record{{Topic: "pay.orders", Partition: 1, Offset: i, Timestamp: at(50), Value: fmt.Appendf(nil, `{"t":%d,"order":"x"}`, firstTime+3600*(40+i))}}
		putArchive(t, m, "pay.orders", 1, i, r, func([]archive.Record) []archive.Times { return nil })
	}
	for _, keep := range []bool{false, true} {
		in := hourly(job, m, 10, 90)
		in.Ref.ID, in.KeepUnmeasured = fmt.Sprint("keep-", keep), keep
		p, err := MakePlan(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		all := strings.Join(p.Warnings, "\n")
		if !strings.Contains(all, "source orders has no data from 2026-01-02T06:00:00Z to 2026-01-02T09:00:00Z") || strings.Contains(all, "2026-01-04T23") {
			t.Errorf("keep %v: %q", keep, p.Warnings)
		}
		first, err := LoadSlice(t.Context(), m, p, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		told := strings.Contains(all, "3 files have no statistics")
		if p.Totals.Unmeasured != 3 || p.Totals.Measured == keep || told != keep || keep != (len(first.Files) > 3) {
			t.Errorf("keep %v: %+v, %q, %d files in the first slice", keep, p.Totals, p.Warnings, len(first.Files))
		}
	}
}

// TestLongFiles makes slices longer where the files span more than a slice.
func TestLongFiles(t *testing.T) {
	job := compile(t, archivedJob)
	m := newMemory()
	for i := range int64(10) {
		var r []archive.Record
		for k := range int64(20) {
			n := 20*i + k
			r = append(r, archive.Record{Topic: "pay.orders", Offset: n, Timestamp: at(n), Value: fmt.Appendf(nil, `{"t":%d,"order":"%d"}`, firstTime+3600*n, n)})
		}
		putArchive(t, m, "pay.orders", 0, i, r, func(r []archive.Record) []archive.Times { return timesOf(t, job, r) })
	}
	in := hourly(job, m, 0, 200)
	p, err := MakePlan(t.Context(), in)
	if err != nil || p.Slice < 16*SliceDefault || p.Totals.ReadBytes > p.Totals.RangeBytes*3/2 || !strings.Contains(strings.Join(p.Notes, ""), "data files span more") {
		t.Errorf("slices of %v, %+v, %q, %v", duration(p.Slice), p.Totals, p.Notes, err)
	}
	in.Ref.ID, in.Slice = "asked", SliceDefault
	if p, err = MakePlan(t.Context(), in); err != nil || p.Slice != SliceDefault || !strings.Contains(strings.Join(p.Warnings, ""), "the plan reads up to") {
		t.Errorf("slices of %v, %q, %v", duration(p.Slice), p.Warnings, err)
	}
}

// TestThrottle spreads records over time.
func TestThrottle(t *testing.T) {
	job := compile(t, archivedJob)
	m := newMemory()
	hours(t, m, job, 0, 0, 30, nil)
	in := hourly(job, m, 0, 30)
	in.Slice = 100 * SliceDefault
	if _, err := MakePlan(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	calls, records := 0, int64(0)
	for slice := 0; ; slice++ {
		r, err := RunSlice(t.Context(), SliceInput{Plan: in.Ref, Slice: slice, Job: job, Objects: m, RecordsPerSecond: 60, TempDir: t.TempDir()},
			func(SliceProgress) { calls++ })
		if err != nil {
			t.Fatal(err)
		}
		if records += r.Records; r.Done {
			break
		}
	}
	if took := time.Since(started); records != 30 || took < 480*time.Millisecond || calls < 2 {
		t.Errorf("%d records in %v, %d calls of progress", records, took, calls)
	}
}

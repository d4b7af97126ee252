package backfill

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/store"
)

// TestCompareCounts compares random worlds with what another version served, of other records: what is the same, missing and
// extra is counted by definition.
func TestCompareCounts(t *testing.T) {
	var sum Comparison
	for _, seed := range rounds(5) {
		w := newWorld(t, seed)
		fresh, served := compute(t, w.new, w.records), w.live()
		s := newStore(t)
		serve(t, s, served)
		p, err := w.plan(func(in *PlanInput) { in.From, in.To, in.Slice = second(200), second(400), 60_000_000 })
		if err == nil {
			err = w.runAll(p, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := Compare(t.Context(), CompareInput{Plan: p.Ref, Job: w.new, Objects: w.objects, Store: s, Report: "report.json"})
		if err != nil {
			t.Fatal(err)
		}
		want := wantedComparison(p.Range, fresh, served)
		if c.Same != want.Same || c.Changed != want.Changed || c.Missing != want.Missing || c.Extra != want.Extra {
			t.Errorf("seed %d: %d same, %d changed, %d missing, %d extra; want %+v", seed, c.Same, c.Changed, c.Missing, c.Extra, want)
		}
		var report Comparison
		if err := json.Unmarshal(w.objects.objects["report.json"], &report); err != nil || report.Changed != c.Changed || len(report.First) < len(c.First) {
			t.Errorf("seed %d: the report says %+v, %v", seed, report, err)
		}
		sum.Same, sum.Changed, sum.Missing, sum.Extra = sum.Same+c.Same, sum.Changed+c.Changed, sum.Missing+c.Missing, sum.Extra+c.Extra
	}
	if sum.Same < 50 || sum.Changed < 20 || sum.Missing < 2 {
		t.Errorf("%d same, %d changed and %d missing sessions prove little", sum.Same, sum.Changed, sum.Missing)
	}
}

// wantedComparison puts sessions that share events together by looking at all pairs.
func wantedComparison(r TimeRange, fresh, served *result) (c Comparison) {
	type node struct {
		side int
		id   store.ID
	}
	sides := [2]*result{fresh, served}
	digests := map[node]any{}
	for side, x := range sides {
		for _, b := range x.batch.Sessions {
			digests[node{side, b.ID}] = b.Digest
		}
	}
	done := map[node]bool{}
	for _, start := range slices.Collect(maps.Keys(digests)) {
		if done[start] {
			continue
		}
		done[start] = true
		group := []node{start}
		for i := 0; i < len(group); i++ {
			for other := range digests {
				if done[other] || other.side == group[i].side {
					continue
				}
				for e := range sides[other.side].events[other.id] {
					if sides[group[i].side].events[group[i].id][e] {
						done[other] = true
						group = append(group, other)
						break
					}
				}
			}
		}
		var own, all [2]int64
		for _, n := range group {
			all[n.side]++
			if r.contains(sides[n.side].rows[n.id].Start) {
				own[n.side]++
			}
		}
		n := own[0]
		if n == 0 {
			n = own[1]
		}
		switch {
		case all[0] == 1 && all[1] == 1 && digests[group[0]] == digests[group[1]]:
			c.Same += n
		case all[1] == 0:
			c.Missing += n
		case all[0] == 0:
			c.Extra += n
		default:
			c.Changed += n
		}
	}
	return c
}

// TestCompareExplains finds the cause of each kind of difference.
func TestCompareExplains(t *testing.T) {
	spec := worldJob(5, 10, 60, "")
	records := func(lines ...string) (list []archive.Record) {
		for i, text := range lines {
			list = append(list, archive.Record{Topic: "ta", Offset: int64(i), Timestamp: second(10), Value: []byte(text)})
		}
		return list
	}
	all := records(
		fmt.Sprintf(`{"t":%d,"e":"made","o":"same"}`, worldStart+10),
		fmt.Sprintf(`{"t":%d,"e":"made","o":"late","m":1}`, worldStart+20),
		fmt.Sprintf(`{"t":%d,"e":"paid","o":"late","u":"x"}`, worldStart+21), // late for the live job
		fmt.Sprintf(`{"t":%d,"e":"made","o":"gone"}`, worldStart+40),         // rejected by the live job
		`{"t":`,
		fmt.Sprintf(`{"t":%d,"e":"paid","o":"same2","m":7}`, worldStart+50))
	late := store.Exception{Seq: 1, Kind: store.Late, Source: "a", Topic: "ta", Offset: 2, Time: second(21)}
	reject := store.Exception{Seq: 2, Kind: store.Rejected, Source: "a", Topic: "ta", Offset: 3, Time: second(40), Reason: "syntax"}
	extra := archive.Record{Topic: "tb", Offset: 5, Timestamp: second(10), Value: fmt.Appendf(nil, `{"t":%d,"e":"made","o":"extra"}`, worldStart+30)}
	for version, causes := range map[int]map[Cause]int64{1: {LateCause: 1, RejectCause: 1, UnknownCause: 1}, 2: {LateCause: 1, RejectCause: 1, VersionCause: 3}} {
		w := &world{t: t, new: compile(t, spec), old: compile(t, spec), objects: newMemory(), records: all, span: 100}
		w.file("ta", 0, 0, all, true)
		w.file("tb", 0, 0, []archive.Record{{Topic: "tb", Timestamp: second(10), Value: []byte("null")}}, true)
		served := compute(t, w.old, append(slices.Concat(all[:2], all[5:]), extra))
		served.batch.Exceptions = []store.Exception{late, reject}
		s := newStore(t)
		serve(t, s, served)
		p, err := MakePlan(t.Context(), PlanInput{Ref: PlanRef{"shop", "b"}, Job: w.new, Version: version, Objects: w.objects, From: second(0), To: second(100)})
		if err != nil {
			t.Fatal(err)
		}
		w.r = newWorld(t, 1).r
		if err := w.runAll(p, nil); err != nil {
			t.Fatal(err)
		}
		c, err := Compare(t.Context(), CompareInput{Plan: p.Ref, Job: w.new, Objects: w.objects, Store: s})
		if err != nil {
			t.Fatal(err)
		}
		if c.Same != 2 || c.Changed != 1 || c.Missing != 1 || c.Extra != 1 || !maps.Equal(c.Causes, causes) {
			t.Errorf("version %d: %+v", version, c)
		}
		var got []string
		for _, d := range c.First {
			got = append(got, fmt.Sprintf("%s %d %v", d.Kind, (d.Start-second(0))/1_000_000, d.Fields))
		}
		if text := strings.Join(got, ", "); text != "changed 20 [events end user scenarios fields.user revision], extra 30 [], missing 40 []" {
			t.Errorf("version %d: %s", version, text)
		}
	}
}

// TestExceptionsOfAClosure: rejects of the range are those of the backfill, late events that are in a session now are no more, and
// what lies around the range stays.
func TestExceptionsOfAClosure(t *testing.T) {
	for seed := uint64(1); ; seed++ {
		w := newWorld(t, seed)
		served := w.live()
		s := newStore(t)
		for i := range int64(600) {
			served.batch.Exceptions = append(served.batch.Exceptions, store.Exception{Seq: uint64(i + 1), Kind: store.Late, Source: "a", Topic: "ta",
				Partition: 9, Offset: i, Time: second(i), Reason: "late"})
		}
		serve(t, s, served)
		out, _, err := w.backfill(s, TimeRange{second(200), second(300)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if out.Served.From == out.Range.From || out.Served.To == out.Range.To {
			continue // nothing around the range
		}
		seen := map[event.Micros]bool{}
		for e, err := range exceptionsOf(t.Context(), s, "shop", store.Late, TimeRange{second(0), second(600)}) {
			if err != nil {
				t.Fatal(err)
			}
			seen[e.Time] = true
		}
		for i := range int64(600) {
			if want := !out.Range.contains(second(i)); seen[second(i)] != want {
				t.Errorf("a late event of second %d: %v, want %v", i, seen[second(i)], want)
			}
		}
		rejects := 0
		for _, x := range decodeRecords(t, w.new, w.records).Rejects {
			if out.Range.contains(x.Record.Timestamp) {
				rejects++
			}
		}
		got := 0
		for _, err := range exceptionsOf(t.Context(), s, "shop", store.Rejected, out.Range) {
			if err != nil {
				t.Fatal(err)
			}
			got++
		}
		if got != rejects || rejects == 0 {
			t.Errorf("seed %d: %d rejects are served, want %d", seed, got, rejects)
		}
		return
	}
}

// TestPublishOnlyWhatIsSealed clips the end of what is published, until its closure is older than what can still change.
func TestPublishOnlyWhatIsSealed(t *testing.T) {
	clipped := 0
	for _, seed := range rounds(4) {
		w := newWorld(t, seed)
		fresh, served := compute(t, w.new, w.records), w.live()
		s := newStore(t)
		serve(t, s, served)
		old := viewOf(t, s)
		out, _, err := w.backfill(s, TimeRange{second(50), second(450)}, func(in *PublishInput) { in.Sealed = second(400) })
		if errors.Is(err, ErrUnsealed) { // chains that hardly end reach from every part of the range to what is not sealed
			viewOf(t, s).compare(t, fmt.Sprint("seed ", seed), old)
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if out.Served.To > second(400) || len(out.Notes) == 0 {
			t.Errorf("seed %d: %+v", seed, out)
		}
		if out.Range.To < second(390) {
			clipped++
		}
		viewOf(t, s).compare(t, fmt.Sprint("seed ", seed), wanted(w, fresh, served, out.Range, out.Served))
	}
	if clipped == 0 {
		t.Error("no closure reached beyond what is sealed: that proves little")
	}
}

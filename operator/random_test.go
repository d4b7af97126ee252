package operator_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weftdata/weft/event"
)

var long = flag.Bool("long", false, "run many more random streams")

const randomJob = `version: weft/v1
job: random
sources:
  a:
    format: logfmt
    time: {field: at, layout: unix_s}
    step: event
    keys: {x: x, y: y}
    fields: {amount: {path: amount, type: int}, user: user}
  b:
    format: logfmt
    time: {field: at, layout: unix_s}
    step: event
    keys: {x: [x, x2]}
    fields: {user: user}
    dedupe: [id]
session: {gap: 40s, gaps: {y: 100s}, max_span: 200s, settle: 10s, retention: 60s}
limits: {timeline_events: 4}
scenarios:
  - {name: many, when: 'step("e1").count > 2'}
  - {name: rich, when: 'fields.amount > 50 && size(keys.x) > 1'}
  - {name: e2_without_e3, when: 'step("e2").count > 0 && step("e3").count == 0', after: {from: step("e2").first, within: 20s}}
reports:
  - {name: all, every: 50s, by: [user], measures: {sessions: count(), events: sum(events), amount: sum(amount), many: count(many), duration: sum(duration)}}
`

// TestRandomStreams feeds random records in random batches, with random watermarks, flushes and restarts: what is left at the
// end must be what one batch, and a backfill over the archive less what was late, make of the same records.
func TestRandomStreams(t *testing.T) {
	rounds := 150
	if *long {
		rounds = 4000
	}
	first := rand.Uint64()
	late, merged := 0, 0
	for seed := first; seed < first+uint64(rounds); seed++ {
		r := rand.New(rand.NewPCG(seed, 7))
		stream := newRun(t, newCoreEngine)
		if err := stream.job(randomJob); err != nil {
			t.Fatal(err)
		}
		records := randomRecords(r)
		for at := 0; at < len(records); {
			n := min(1+r.IntN(12), len(records)-at)
			stream.apply(records[at : at+n])
			if r.IntN(8) == 0 {
				stream.apply(records[max(0, at-r.IntN(30)) : at+n]) // some come again
			}
			at += n
			now := event.Micros(at) * 1_000_000 * 1000 / event.Micros(len(records)) // as randomRecords spreads them
			var err error
			switch r.IntN(6) {
			case 0:
				err = stream.step(stream.engine.Advance(now - event.Micros(r.IntN(80))*1_000_000))
			case 1:
				err = stream.step(stream.engine.Restart())
			case 2, 3:
				err = stream.step(stream.engine.Flush())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		stream.finish()
		late += len(stream.late)
		for _, c := range stream.pending {
			if c.kind == tombstone {
				merged++
			}
		}
		batch := newRun(t, newCoreEngine)
		if seed%10 == 0 {
			batch = newRun(t, newBackfillEngine)
		}
		if err := batch.job(randomJob); err != nil {
			t.Fatal(err)
		}
		intime := stream.intime()
		r.Shuffle(len(intime), func(i, j int) { intime[i], intime[j] = intime[j], intime[i] })
		batch.apply(intime)
		batch.finish()
		slices.Sort(stream.late)
		stream.late = slices.Compact(stream.late) // a late record may come again, and is late again
		batch.late = stream.late
		batch.compare(fmt.Sprintf("one batch (seed %d)", seed), stream)
		if t.Failed() {
			return
		}
	}
	t.Logf("seeds from %d: %d late events, %d tombstones", first, late, merged)
	if late == 0 || merged == 0 {
		t.Error("nothing was late, or nothing was taken back: the streams prove little")
	}
}

// randomRecords spreads records over 1000 seconds, roughly in order of time; few keys, so that sessions meet and some never end.
func randomRecords(r *rand.Rand) []record {
	list := make([]record, 100+r.IntN(150))
	offsets := map[string]int64{}
	keys := 3 + r.IntN(20)
	for i := range list {
		rec := record{source: "a", partition: int32(r.IntN(2))}
		at := max(0, i*1000/len(list)-r.IntN(1+r.IntN(150)))
		if r.IntN(3) == 0 {
			rec.source = "b"
		}
		position := fmt.Sprint(rec.source, rec.partition)
		rec.offset = offsets[position]
		offsets[position]++
		rec.raw = fmt.Sprintf("at=%d event=e%d x=k%d user=u%d id=%d", at, r.IntN(5), r.IntN(keys), r.IntN(3), r.IntN(20))
		if r.IntN(6) == 0 {
			rec.raw += fmt.Sprintf(" y=k%d x2=k%d amount=%d", r.IntN(keys), r.IntN(keys), r.IntN(100))
		}
		list[i] = rec
	}
	return list
}

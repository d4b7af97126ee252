package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	taskqueuepb "go.temporal.io/api/taskqueue/v1"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/kafka"
	"github.com/weftdata/weft/registry"
	"github.com/weftdata/weft/stack"
	"github.com/weftdata/weft/workers"
	"github.com/weftdata/weft/workflows"
)

// visits is a job with little to compute: one source, and sessions that end within an hour.
const visits = `version: weft/v1
job: visits
sources:
  visits:
    topic: visits
    format: json
    time: {field: at, layout: unix_ms}
    step: event
    keys: {visit: visit}
session: {gap: 30m, settle: 10m, max_span: 1h, retention: 1h}
`

// visitsMade are as many as there are in a week of one every twenty minutes.
const visitsMade = 7 * 24 * 3

// divided computes a week with one worker process, and then with three, whose slices must run at the same time and be done much
// earlier. The object store takes its time for each request, as one across a network does, so that a slice waits for it and hardly
// computes: then the processors of this machine, which all workers and servers share, do not decide how long it takes.
func (b *backfillTest) divided() {
	b.visit()
	const latency = 30 * time.Millisecond
	env := append(slices.Clone(b.env), "WEFT_S3="+b.countReads(latency).url, "GOMAXPROCS=1") // so that each runs one slice at a time
	var took, ran []time.Duration
	var digests []string
	for _, processes := range []int{1, 3} {
		var started []*process
		for range processes {
			started = append(started, b.launch("backfills", env, b.weft, "worker", "--only", "backfill", "--log-format", "json", "--work", b.T.TempDir()))
		}
		b.worker = started[0]
		b.await(fmt.Sprintf("%d workers ask for slices", processes), func() bool { return b.polled(started) })
		id := fmt.Sprint("backfill/visits/by-", processes)
		began := time.Now()
		r := b.result(b.start(workflows.BackfillType, id, `{"job":"visits","from":"2026-03-01T00:00:00Z","to":"2026-03-08T00:00:00Z","slice":"12h","mode":"dry_run","parallelism":3}`))
		took = append(took, time.Since(began))
		if r.Outcome != workflows.Checked || r.Verified.Sessions != visitsMade {
			b.Errorf("with %d workers it ended as %+v, want %d sessions", processes, r, visitsMade)
		}
		digests = append(digests, r.Verified.Sums["sessions"])
		runs := b.sliceRuns(id)
		if most := atOnce(runs); most != processes || len(runs) != r.Slices {
			b.Errorf("%d of %d workers ran slices at the same time, %d of %d slices in all:\n%+v", most, processes, len(runs), r.Slices, runs)
		}
		ran = append(ran, slices.MaxFunc(runs, func(x, y sliceRun) int { return cmp.Compare(x.Ended, y.Ended) }).Ended)
		b.Logf("%d workers: %d slices in %s, the backfill in %s", processes, len(runs), ran[len(ran)-1], took[len(took)-1].Round(time.Millisecond))
		for _, w := range started {
			w.kill()
		}
	}
	if digests[0] != digests[1] {
		b.Errorf("three workers computed %s, one %s", digests[1], digests[0])
	}
	// Three chunks of about equal length are behind one another or beside one another. Planning and verifying are not divided.
	if ran[1] > ran[0]*7/10 || took[1] > took[0]*85/100 {
		b.Errorf("three workers took %s for the slices and %s in all, one %s and %s", ran[1], took[1], ran[0], took[0])
	}
}

// visit archives the records of the job visits, in files of a few hours each.
func (b *backfillTest) visit() {
	b.Helper()
	env, err := workers.OpenEnv(b.ctx, withKeys(b.T, b.at), stack.Kafka, stack.S3)
	b.must(err)
	defer env.Close()
	_, err = registry.New(env.Objects).Add(b.ctx, registry.NewVersion{Job: "visits", Spec: []byte(visits)})
	b.must(err)
	topic, _, err := env.Kafka.CreateTopic(b.ctx, "visits", 1, nil)
	b.must(err)
	p, err := env.Kafka.Producer(topic, kafka.ProducerConfig{Compression: "none"})
	b.must(err)
	defer func() { b.must(p.Close()) }()
	for n := range visitsMade {
		for i, step := range []string{"came", "left"} {
			at := b.first.Add(time.Duration(20*n+5*i) * time.Minute).UnixMilli()
			text := fmt.Sprintf(`{"at":%d,"event":%q,"visit":"v%d"}`, at, step, n)
			b.must(p.Add(b.ctx, 0, &kafka.Record{Timestamp: event.Micros(at * 1000), Value: []byte(text)}))
		}
		if n%12 == 11 { // a batch, which is read as a whole, and larger than a file
			b.must(p.Flush(b.ctx))
		}
	}
	b.must(p.Flush(b.ctx))
	spec, err := jobspec.Parse([]byte(visits))
	b.must(err)
	archiveAllOf(b.T, b.ctx, env, spec, 1<<10, false, 1)
}

// polled tells whether all of some processes ask for slices.
func (b *backfillTest) polled(all []*process) bool {
	b.Helper()
	r, err := b.temporal.DescribeTaskQueue(b.ctx, activities.BackfillQueue, enums.TASK_QUEUE_TYPE_ACTIVITY)
	b.must(err)
	for _, p := range all {
		if p.ended() {
			b.Fatal(p.tail())
		}
		id := fmt.Sprint(":", p.cmd.Process.Pid)
		if !slices.ContainsFunc(r.GetPollers(), func(x *taskqueuepb.PollerInfo) bool { return strings.HasSuffix(x.GetIdentity(), id) }) {
			return false
		}
	}
	return true
}

// sliceRun is the run of one slice by some worker process; times count from when the first could begin.
type sliceRun struct {
	Chunk, Slice int
	Worker       string // identity
	Began, Ended time.Duration
}

// sliceRuns lists the slices of a backfill as its history tells of them.
func (b *backfillTest) sliceRuns(id string) (list []sliceRun) {
	b.Helper()
	scheduled, started := map[int64]activities.SliceInput{}, map[int64]*historypb.HistoryEvent{}
	var first time.Time
	for h := b.temporal.GetWorkflowHistory(b.ctx, id, "", false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); h.HasNext(); {
		e, err := h.Next()
		b.must(err)
		if a := e.GetActivityTaskScheduledEventAttributes(); a.GetActivityType().GetName() == "RunSlice" {
			var in activities.SliceInput
			b.must(json.Unmarshal(a.GetInput().GetPayloads()[0].GetData(), &in))
			if len(scheduled) == 0 {
				first = e.GetEventTime().AsTime()
			}
			scheduled[e.GetEventId()] = in
		}
		if e.GetActivityTaskStartedEventAttributes() != nil {
			started[e.GetEventId()] = e
		}
		a := e.GetActivityTaskCompletedEventAttributes()
		if in, ok := scheduled[a.GetScheduledEventId()]; ok {
			s := started[a.GetStartedEventId()]
			list = append(list, sliceRun{in.Chunk, in.Slice, s.GetActivityTaskStartedEventAttributes().GetIdentity(), s.GetEventTime().AsTime().Sub(first), e.GetEventTime().AsTime().Sub(first)})
		}
	}
	return list
}

// atOnce counts the workers that ran slices at the same time, at most.
func atOnce(runs []sliceRun) (most int) {
	for _, at := range runs { // the most run at the beginning of some slice
		busy := map[string]bool{}
		for _, r := range runs {
			if r.Began <= at.Began && at.Began < r.Ended {
				busy[r.Worker] = true
			}
		}
		most = max(most, len(busy))
	}
	return most
}

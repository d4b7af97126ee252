package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/weftdata/weft/activities"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/workflows"
)

// TestBackfillOutcomes has a backfill run by one worker and by three, kills what another one needs at random, and then asks for what
// cannot be done: each ends as its document says, nothing is lost, and nothing half published. WEFT_BACKFILL_SEED repeats a run, WEFT_BACKFILL_KILLS makes it longer.
func TestBackfillOutcomes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	seed := fromEnv(t, "WEFT_BACKFILL_SEED", int(time.Now().UnixNano()%1e6))
	t.Logf("seed %d", seed)
	b := newBackfillTest(t)
	b.r = rand.New(rand.NewPCG(uint64(seed), 11))
	served := b.digest(0)
	b.divided()
	b.killed(fromEnv(t, "WEFT_BACKFILL_KILLS", 5))
	if got := b.digest(0); got != served {
		t.Errorf("after the kills the digest served is %s, was %s", got, served)
	}
	b.expectClean()

	b.startBackfills()
	b.refused(served)
	b.damaged(served)
}

// killed publishes ten days while workers, servers and the object store go away at random.
func (b *backfillTest) killed(kills int) {
	workers := []*process{nil, nil}
	reads := b.countReads(0)
	env := append(slices.Clone(b.env), "WEFT_S3="+reads.url, "GOMAXPROCS=1") // so that each runs one slice at a time
	start := func() *process {
		return b.launch("backfills", env, b.weft, "worker", "--only", "backfill", "--log-format", "json", "--work", b.T.TempDir())
	}
	for i := range workers {
		workers[i] = start()
	}
	b.worker = workers[0]
	pause := func(atMost time.Duration) {
		select {
		case <-time.After(time.Duration(b.r.Int64N(int64(atMost)))):
		case <-b.ctx.Done():
			b.Fatal("out of time")
		}
	}
	id := "backfill/payments/killed"
	run := b.start(workflows.BackfillType, id, `{"job":"payments","from":"2026-02-28T00:00:00Z","to":"2026-03-20T00:00:00Z","slice":"6h","parallelism":2,"throttle":20000}`)
	pieces := 0 // that were under way when something was killed
	for n := range kills {
		pause(1500 * time.Millisecond)
		switch kind := b.r.IntN(6); {
		case kind < 3:
			i := b.r.IntN(len(workers))
			b.Logf("kill %d: worker %d", n+1, i)
			workers[i].kill()
			pause(2 * time.Second)
			workers[i] = start()
			pieces++
		case kind < 5:
			b.Logf("kill %d: the servers", n+1)
			b.stack.kill()
			pause(4 * time.Second)
			b.startStack()
			pieces += len(workers)
		default:
			b.Logf("kill %d: the object store is away for 3 s", n+1)
			b.s3.cut(3 * time.Second)
			pieces += len(workers)
		}
	}
	b.worker = workers[1]
	var r workflows.BackfillResult
	last := ""
	largest := int64(0) // slice, in bytes of the archive
	b.await("it has ended", func() bool {
		p, err := queryWorkflow(b.ctx, b.temporal, id, workflows.QueryProgress)
		var progress workflows.Progress
		if err != nil || p.Get(&progress) != nil {
			return false // the servers come back
		}
		if progress.State == workflows.NeedsAttention { // five attempts did not outlast what was away
			b.signal(id, workflows.SignalRetryFailed, `{"actor":"ann"}`)
		}
		if progress.Plan != "" && largest == 0 {
			largest = b.largestSlice(progress.Plan)
		}
		if text := fmt.Sprintf("%s, %d of %d done, %d run", progress.State, progress.Done, progress.Total, progress.Running); text != last {
			last = text
			b.Log(text)
		}
		return progress.State == workflows.Published
	})
	b.must(run.Get(b.ctx, &r))
	if r.Outcome != workflows.Published || r.Verified.Sums["sessions"] != b.want["sessions"] && r.Clipped == "" {
		b.Errorf("it ended as %+v", r)
	}
	// What is read more than the slices have is what was read in vain: a slice that is done is never read again.
	again := reads.bytes.Load() - r.Bytes
	b.Logf("%d kills, %d pieces under way; %d slices of at most %d bytes read %d bytes, and %d more were read in vain: %.1f slices", kills, pieces, r.Slices,
		largest, r.Bytes, again, float64(again)/float64(largest))
	if again < 0 || again > int64(pieces)*largest {
		b.Errorf("%d bytes were read in vain: at most %d slices of %d bytes were under way when something was killed", again, pieces, largest)
	}
	for _, w := range workers {
		w.kill()
	}
}

// largestSlice returns how much of the archive the largest slice of a plan reads.
func (b *backfillTest) largestSlice(plan string) (bytes int64) {
	b.Helper()
	parts := strings.Split(plan, "/") // backfill/<job>/<id>/plan.json
	p, err := backfill.LoadPlan(b.ctx, b.st.objects, backfill.PlanRef{Job: parts[1], ID: parts[2]})
	b.must(err)
	for chunk := range p.Chunks {
		for slice := range p.Chunks[chunk].Slices {
			s, err := backfill.LoadSlice(b.ctx, b.st.objects, p, chunk, slice)
			b.must(err)
			bytes = max(bytes, s.Bytes)
		}
	}
	return bytes
}

// readCounter stands between workers and the object store, and counts what they read of the archive's data files. Each request
// takes as much longer as was asked for.
type readCounter struct {
	url   string
	bytes atomic.Int64
}

func (b *backfillTest) countReads(latency time.Duration) *readCounter {
	to, err := url.Parse("http://" + b.s3.address())
	b.must(err)
	c := &readCounter{}
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }, // the host is signed
		ErrorLog: log.New(io.Discard, "", 0),
		ModifyResponse: func(r *http.Response) error {
			path := r.Request.URL.Path
			if r.Request.Method == http.MethodGet && r.StatusCode < 300 && strings.Contains(path, "/archive/") && strings.HasSuffix(path, ".parquet") {
				r.Body = &countedBody{r.Body, &c.bytes}
			}
			return nil
		},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(latency):
		case <-r.Context().Done():
		}
		proxy.ServeHTTP(w, r)
	}))
	b.Cleanup(s.Close)
	c.url = s.URL
	return c
}

type countedBody struct {
	io.ReadCloser
	bytes *atomic.Int64
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}

// failing starts a backfill that cannot be, and returns why.
func (b *backfillTest) failing(id, input string) string {
	b.Helper()
	err := b.start(workflows.BackfillType, id, input).Get(b.ctx, nil)
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || app.Type() != activities.User {
		b.Fatalf("%s ended with %v", id, err)
	}
	return app.Error()
}

// refused asks for what cannot be done: the answer says why.
func (b *backfillTest) refused(served string) {
	for name, c := range map[string]struct{ input, want string }{
		"unknown version":      {`{"job":"payments","from":"2026-03-01T00:00:00Z","to":"2026-03-02T00:00:00Z","version":99}`, "version 99"},
		"unknown job":          {`{"job":"payment","from":"2026-03-01T00:00:00Z","to":"2026-03-02T00:00:00Z"}`, "payment"},
		"future":               {`{"job":"payments","from":"2090-01-01T00:00:00Z","to":"2090-01-02T00:00:00Z"}`, "what is later is the future"},
		"before everything":    {`{"job":"payments","from":"2020-01-01T00:00:00Z","to":"2020-01-02T00:00:00Z"}`, "the archive has no earlier event"},
		"not sealed":           {`{"job":"payments","from":"2026-03-10T20:00:00Z","to":"2026-03-12T00:00:00Z"}`, "can still change in the live job"},
		"an empty range":       {`{"job":"payments","from":"2026-03-02T00:00:00Z","to":"2026-03-02T00:00:00Z"}`, "is empty"},
		"a key that is no key": {`{"job":"payments","from":"2026-03-01T00:00:00Z","to":"2026-03-02T00:00:00Z","paralelism":2}`, `unknown field "paralelism"`},
	} {
		got := b.failing("backfill/payments/"+strings.ReplaceAll(name, " ", "-"), c.input)
		if !strings.Contains(got, c.want) {
			b.Errorf("%s: %s\nwant %s", name, got, c.want)
		}
		b.Logf("%s: %s", name, got)
	}
	if got := b.digest(0); got != served {
		b.Errorf("the digest served is %s, was %s", got, served)
	}
	b.expectClean()
}

// damaged takes objects of the archive away, or bytes out of them. What can be mended goes on when it is; what cannot is canceled.
func (b *backfillTest) damaged(served string) {
	var data, manifest string
	for _, key := range b.keys("archive/pay.orders/") {
		if strings.HasSuffix(key, ".parquet") && data == "" {
			data = key
		}
		if strings.HasSuffix(key, "0000000001.json") && manifest == "" {
			manifest = strings.TrimSuffix(key, "1.json") + "0.json" // the one before
		}
	}
	if data == "" || manifest == "" {
		b.Fatalf("the archive of pay.orders has no data file (%q) or second manifest (%q)", data, manifest)
	}
	whole, _, err := b.st.objects.Get(b.ctx, data)
	b.must(err)
	put := func(key string, content []byte) {
		_, err := b.st.objects.Put(b.ctx, key, bytes.NewReader(content), int64(len(content)))
		b.must(err)
	}
	input := `{"job":"payments","from":"2026-02-28T00:00:00Z","to":"2026-03-20T00:00:00Z","slice":"24h","actor":"ann"}`
	attention := func(id, want string) client.WorkflowRun {
		run := b.start(workflows.BackfillType, id, input)
		b.await(id+" needs attention", func() bool { return b.progress(id).State == workflows.NeedsAttention })
		var reasons []string
		for _, s := range b.progress(id).Slices {
			if s.State == workflows.Failed {
				reasons = append(reasons, s.Error)
			}
		}
		if text := strings.Join(reasons, "\n"); !strings.Contains(text, want) || !strings.Contains(text, data) {
			b.Errorf("%s: %s\nwant %s", id, text, want)
		}
		b.Logf("%s: %.300s", id, reasons)
		if got := b.digest(0); got != served {
			b.Errorf("%s: the digest served is %s, was %s", id, got, served)
		}
		return run
	}

	// A file of the archive is gone, and comes back.
	b.must(b.st.objects.Delete(b.ctx, data))
	run := attention("backfill/payments/missing", "which archive/pay.orders/")
	put(data, whole)
	b.signal(run.GetID(), workflows.SignalRetryFailed, `{"actor":"ann"}`)
	if r := b.result(run); r.Outcome != workflows.Published {
		b.Errorf("it ended as %+v", r)
	}

	// A file is damaged, and nobody has it whole.
	broken := bytes.Clone(whole)
	broken[len(broken)/2] ^= 0x40
	put(data, broken)
	run = attention("backfill/payments/damaged", "it is damaged: its SHA-256 is another one")
	b.signal(run.GetID(), workflows.SignalCancel, `{"actor":"ann","reason":"a damaged file"}`)
	if r := b.result(run); r.Outcome != workflows.Canceled {
		b.Errorf("it ended as %+v", r)
	}
	put(data, whole)

	// A manifest is gone: the plan does not work around the hole.
	kept, _, err := b.st.objects.Get(b.ctx, manifest)
	b.must(err)
	b.must(b.st.objects.Delete(b.ctx, manifest))
	run = b.start(workflows.BackfillType, "backfill/payments/hole", input)
	var progress workflows.Progress
	b.await("the plan has failed", func() bool {
		progress = b.progress(run.GetID())
		return progress.Error != nil || progress.State == workflows.Published
	})
	if progress.Error == nil || !strings.Contains(progress.Error.Message, manifest+" is missing") {
		b.Fatalf("it is %s: %+v", progress.State, progress.Error)
	}
	b.Logf("hole: %+v", progress.Error)
	put(manifest, kept)
	if progress.State == workflows.NeedsAttention {
		b.signal(run.GetID(), workflows.SignalRetryFailed, `{"actor":"ann"}`)
		if r := b.result(run); r.Outcome != workflows.Published {
			b.Errorf("it ended as %+v", r)
		}
	}
	if got := b.digest(0); got != served {
		b.Errorf("in the end the digest served is %s, was %s", got, served)
	}
	b.expectClean()
}

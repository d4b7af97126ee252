package backfill

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/weftdata/weft/results"
)

// hit is one request as the reference reads it.
type hit struct {
	client, status, method string
	line                   int64
	at                     time.Time
}

// visit is a session as text: everything but its id.
type visit struct {
	client string
	hits   []hit
}

func (v visit) String() string {
	var b strings.Builder
	first, last := v.hits[0], v.hits[len(v.hits)-1]
	fmt.Fprintf(&b, "%s from %s to %s, %s, not_found %t:", v.client, first.at.UTC().Format(time.RFC3339), last.at.UTC().Format(time.RFC3339), first.method,
		slices.ContainsFunc(v.hits, func(h hit) bool { return h.status == "404" }))
	for _, h := range v.hits {
		fmt.Fprintf(&b, " %d@%s=%s", h.line, h.at.UTC().Format(time.RFC3339), h.status)
	}
	return b.String()
}

// TestWebLog makes visits of a real access log and compares them with a reference that knows nothing of correlation: the
// requests sorted by address and time, cut where the pause is longer than half an hour.
func TestWebLog(t *testing.T) {
	e := &environment{
		job:    compile(t, string(readFile(t, "testdata/web_access.yaml"))),
		inputs: []Input{{"access", "testdata/web_access.log.gz"}},
	}
	s, out := e.replay(t, nil)
	if s.Records != 10_000 {
		t.Errorf("%d records, want 10000", s.Records)
	}
	var rejects, got []string
	for r, err := range results.ReadRejects(filepath.Join(out, "rejects.jsonl")) {
		if err != nil {
			t.Fatal(err)
		}
		rejects = append(rejects, fmt.Sprintf("%d %s: %s", r.Offset, r.Reason, r.Detail))
	}
	t.Logf("rejected %d of %d lines: %q", len(rejects), s.Records, rejects)
	// Line 8898 ends within the user agent, which the job does not want.
	if len(rejects) > 0 {
		t.Errorf("rejects are %q, want none", rejects)
	}
	for session, err := range results.ReadSessions(filepath.Join(out, "sessions.jsonl")) {
		if err != nil {
			t.Fatal(err)
		}
		v := visit{client: strings.Join(session.Keys["client"], " and ")}
		for _, e := range session.Events {
			v.hits = append(v.hits, hit{v.client, e.Step, fmt.Sprint(session.Fields["method"]), e.Offset, time.UnixMicro(int64(e.Time))})
		}
		if session.Start != session.Events[0].Time || session.End != session.Events[len(session.Events)-1].Time ||
			int(session.Revision) != len(session.Events) || slices.Contains(session.Scenarios, "not_found") != strings.Contains(v.String(), "not_found true") {
			t.Errorf("session %s does not agree with its own events: %+v", session.ID, session)
		}
		got = append(got, v.String())
	}
	want := referenceVisits(t, "testdata/web_access.log.gz")
	t.Logf("%d visits", len(want))
	slices.Sort(got)
	slices.Sort(want)
	sameLines(t, "visits", got, want)
}

// combined is the combined log format; what stands between escaped quotes does not matter here.
var combined = regexp.MustCompile(`^(\S+) \S+ \S+ \[([^\]]+)\] "([A-Z]+) [^"]*" (\d{3}) (?:\d+|-) "`)

func referenceVisits(t *testing.T, path string) (list []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var hits []hit
	scan := bufio.NewScanner(z)
	for n := int64(0); scan.Scan(); n++ {
		m := combined.FindStringSubmatch(scan.Text())
		if m == nil {
			t.Fatalf("the reference cannot read line %d: %s", n, scan.Text())
		}
		at, err := time.Parse("02/Jan/2006:15:04:05 -0700", m[2])
		if err != nil {
			t.Fatal(err)
		}
		hits = append(hits, hit{client: m[1], status: m[4], method: m[3], line: n, at: at})
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(hits, func(a, b hit) int {
		return cmp.Or(strings.Compare(a.client, b.client), a.at.Compare(b.at), cmp.Compare(a.line, b.line))
	})
	for i := 0; i < len(hits); {
		j := i + 1
		for j < len(hits) && hits[j].client == hits[i].client && hits[j].at.Sub(hits[j-1].at) <= 30*time.Minute {
			j++
		}
		list = append(list, visit{hits[i].client, hits[i:j]}.String())
		i = j
	}
	return list
}

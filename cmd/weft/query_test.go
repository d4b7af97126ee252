package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/correlate"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/results"
	"github.com/weftdata/weft/store"
)

var rewriteQueries = flag.Bool("rewrite", false, "write the answers into testdata/query")

const shopSpec = `version: weft/v1
job: shop
sources:
  orders: {topic: shop.orders, format: json, time: {field: at, layout: rfc3339}, step: event, keys: {order: order}, fields: {user: user, amount: {path: amount, type: int}, channel: channel}}
  channel: {topic: shop.channel, format: json, time: {field: at, layout: rfc3339}, step: event, keys: {order: order, txn: txn}}
  game: {topic: shop.game, format: json, time: {field: at, layout: rfc3339}, step: event, keys: {order: order}}
session: {gap: 30m, settle: 10m, max_span: 24h, retention: 2h}
user: user
scenarios:
  - {name: paid_not_delivered, when: 'step("paid").count > 0 && step("delivered").count == 0', after: {from: step("paid").first, within: 5m}}
  - {name: delivered, when: 'step("delivered").count > 0'}
reports:
  - {name: funnel, every: 1h, by: [channel, user], measures: {sessions: count(), revenue: sum(amount), stuck: count(paid_not_delivered)}}
  - {name: volume, every: 1h, by: [channel], measures: {events: sum(events)}}
`

// evil is a value that tries to take over a terminal.
const evil = "\x1b[31mred\x1b]0;title\x07\nnew line\u202eback"

type shopRecord struct {
	source int // in the order of topics: channel, game, orders
	text   string
}

func shopRecords() []shopRecord {
	record := func(source int, at, step, order string, more ...string) shopRecord {
		m := map[string]any{"at": "2026-03-01T" + at + "Z", "event": step, "order": order}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
			if more[i] == "amount" {
				m["amount"] = json.Number(more[i+1])
			}
		}
		text, _ := json.Marshal(m) // of strings and numbers
		return shopRecord{source, string(text)}
	}
	const channel, game, orders = 0, 1, 2
	list := []shopRecord{
		record(orders, "10:00:00", "ordered", "1001", "user", "ann", "amount", "600", "channel", "alipay"),
		record(channel, "10:00:01.25", "paid", "1001", "txn", "T-77"),
		record(game, "10:00:03.5", "delivered", "1001"),
		record(orders, "11:30:00", "ordered", "1002", "user", "ann", "amount", "1250", "channel", "apple"),
		record(channel, "11:30:20", "paid", "1002", "txn", "T-78"),
		record(orders, "12:10:00", "ordered", evil, "user", "王小明", "amount", "99", "channel", "al\x1b[1mipay"),
		record(orders, "12:20:00", "ordered", "huge-"+strings.Repeat("9", 4000), "user", strings.Repeat("u", 300), "channel", "alipay"),
		record(orders, "12:29:00", "ordered", "1005", "user", "ann", "amount", "30", "channel", "alipay"),
		record(channel, "12:29:30", "paid", "1005", "txn", "T-79"),
		{channel, "{\"at\": \"\x1b[2Jno JSON\n"},
		{channel, `{"at": "yesterday", "event": "paid"}`},
		{game, `{"event": "delivered"}`},
		record(game, "09:00:00", "delivered", "1000"), // late
	}
	return list
}

// shop streams the records of a small job into a store and returns its address.
func shop(t *testing.T) string {
	t.Helper()
	dsn := "sqlite:" + filepath.Join(t.TempDir(), "store")
	fillShop(t, dsn, shopSpec)
	return dsn
}

func fillShop(t *testing.T, dsn, text string) store.Generation {
	t.Helper()
	ctx := t.Context()
	spec, err := jobspec.Parse([]byte(text))
	ok(t, err)
	job, err := operator.Compile(spec, 1, nil)
	ok(t, err)
	s, err := store.Open(ctx, dsn, store.Options{})
	ok(t, err)
	defer s.Close()
	g, err := s.CreateGeneration(ctx, spec.Job, "1", "live")
	ok(t, err)
	epoch, err := s.TakeEpoch(ctx, spec.Job, g.ID, 0)
	ok(t, err)
	owner := store.Owner{Generation: g.ID, Epoch: epoch}
	core, err := correlate.New(job.Config)
	ok(t, err)
	decoder, err := job.NewDecoder()
	ok(t, err)
	out := &shopSink{Encoder: store.NewEncoder(&job.Config, results.MetaOf(spec))}
	offsets := map[int]int64{}
	for _, r := range shopRecords() {
		if r.source == 1 && strings.Contains(r.text, "09:00") {
			core.Advance(event.Micros(time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC).UnixMicro()), out)
		}
		var b event.Batch
		b.Add(event.Record{Source: uint16(r.source), Offset: offsets[r.source], Timestamp: 1}, []byte(r.text))
		offsets[r.source]++
		decoder.Decode(&b)
		ok(t, core.Apply(&b, out))
		for i := range b.Rejects {
			out.Reject(&out.Batch, core.Sequence(), &b, &b.Rejects[i])
		}
	}
	core.Flush(out)
	out.Progress = &store.Mark{Seq: core.Sequence(), Watermark: core.Watermark(), Settle: job.Config.Session.Settle, MaxSpan: job.Config.Session.MaxSpan}
	ok(t, s.Write(ctx, owner, &out.Batch))
	m, err := s.ServingMap(ctx, spec.Job)
	ok(t, err)
	if m.Epoch == 0 {
		_, err = s.Switch(ctx, store.SwitchRequest{Job: spec.Job, RequestID: "1", Assignments: []store.Assignment{{From: event.MinTime, To: event.MaxTime, Generation: g.ID}}})
		ok(t, err)
	}
	return g
}

type shopSink struct {
	*store.Encoder
	store.Batch
}

func (s *shopSink) Upsert(seq uint64, r *correlate.Row)   { s.Encoder.Upsert(&s.Batch, seq, r) }
func (s *shopSink) Tombstone(seq uint64, id correlate.ID) { s.Encoder.Tombstone(&s.Batch, seq, id) }
func (s *shopSink) Cell(seq uint64, c *correlate.Cell)    { s.Encoder.Cell(&s.Batch, seq, c) }
func (s *shopSink) Late(b *event.Batch, i int)            { s.Encoder.Late(&s.Batch, 1, b, i) }

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ask runs a command that must succeed and say nothing on standard error.
func ask(t *testing.T, dsn string, args ...string) string {
	t.Helper()
	code, stdout, stderr := weft("", append(args, "--store", dsn)...)
	if code != 0 || stderr != "" {
		t.Fatalf("weft %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// TestQueries compares what the commands print with files, at the width of a small terminal and of a wide one.
func TestQueries(t *testing.T) {
	dsn := shop(t)
	ids := map[string]string{}
	for _, order := range []string{"1001", "1005", evil} {
		var x struct{ ID string }
		ok(t, json.Unmarshal([]byte(ask(t, dsn, "sessions", "--json", "--key", "order="+order)), &x))
		ids[order] = x.ID
	}
	cases := map[string][]string{
		"sessions":      {"sessions"},
		"pending":       {"sessions", "--scenario", "paid_not_delivered", "--pending"},
		"session":       {"sessions", ids["1001"]},
		"session_open":  {"sessions", ids["1005"]},
		"session_evil":  {"sessions", ids[evil]},
		"user":          {"users", "ann"},
		"user_unknown":  {"users", "nobody"},
		"reports":       {"reports"},
		"report":        {"reports", "funnel"},
		"report_by":     {"reports", "funnel", "--by", "channel"},
		"report_total":  {"reports", "funnel", "--by", "", "--where", "user=ann"},
		"rejects":       {"rejects"},
		"rejects_list":  {"rejects", "--list"},
		"late":          {"rejects", "--late"},
		"late_list":     {"rejects", "--late", "--list"},
		"sessions_json": {"sessions", "--json"},
		"user_json":     {"users", "ann", "--json", "--limit", "1"},
		"report_json":   {"reports", "funnel", "--json", "--by", "window,channel"},
		"reports_json":  {"reports", "--json"},
		"rejects_json":  {"rejects", "--json"},
		"list_json":     {"rejects", "--list", "--json"},
		"late_json":     {"rejects", "--late", "--list", "--json"},
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		widths := []int{80, 170}
		if strings.HasSuffix(name, "json") {
			widths = []int{0}
		}
		for _, width := range widths {
			t.Run(fmt.Sprint(name, width), func(t *testing.T) {
				t.Setenv("COLUMNS", fmt.Sprint(width))
				got := ask(t, dsn, cases[name]...)
				for i, r := range got {
					if r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x202e) {
						t.Errorf("%U at %d could reach a terminal", r, i)
					}
				}
				for line := range strings.SplitSeq(got, "\n") {
					if width > 0 && textWidth(line) > width {
						t.Errorf("a line of %d cells on a terminal of %d: %s", textWidth(line), width, line)
					}
					if width == 0 && line != "" && !json.Valid([]byte(line)) {
						t.Errorf("no JSON: %s", line)
					}
				}
				golden(t, fmt.Sprintf("%s%d.txt", name, width), got)
			})
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "query", name)
	if *rewriteQueries {
		ok(t, os.MkdirAll(filepath.Dir(file), 0o755))
		ok(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	ok(t, err)
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestSessionFilters(t *testing.T) {
	dsn := shop(t)
	orders := func(args ...string) (list []string) {
		for line := range strings.Lines(ask(t, dsn, append([]string{"sessions", "--json"}, args...)...)) {
			var x struct {
				Keys map[string][]string
				Next string
			}
			ok(t, json.Unmarshal([]byte(line), &x))
			if x.Next != "" {
				list = append(list, "next")
				continue
			}
			list = append(list, x.Keys["order"][0][:min(4, len(x.Keys["order"][0]))])
		}
		return list
	}
	for _, c := range []struct {
		args string
		want string
	}{
		{"", "1005 huge \x1b[31 1002 1001"},
		{"--user ann", "1005 1002 1001"},
		{"--user nobody", ""},
		{"--key txn=T-78", "1002"},
		{"--key order=T-78", ""},
		{"--scenario paid_not_delivered", "1005 1002"},
		{"--scenario paid_not_delivered --decided", "1002"},
		{"--scenario paid_not_delivered --pending", "1005"},
		{"--scenario paid_not_delivered --user ann --key order=1002", "1002"},
		{"--open", "1005"},
		{"--from 2026-03-01T11:30:00Z --to 2026-03-01T12:20:00Z", "\x1b[31 1002"},
		{"--from 2026-03-02", ""},
		{"--limit 2", "1005 huge next"},
		{"--generation 1 --user ann --limit 1", "1005 next"},
		{"--version 1 --job shop --to 2026-03-01T11:00:00Z", "1001"},
	} {
		if got := strings.Join(orders(strings.Fields(c.args)...), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
	}
	var all []string
	var next string
	for range 10 {
		args := []string{"sessions", "--json", "--limit", "2"}
		if next != "" {
			args = append(args, "--after", next)
		}
		next = ""
		for line := range strings.Lines(ask(t, dsn, args...)) {
			var x struct{ ID, Next string }
			ok(t, json.Unmarshal([]byte(line), &x))
			if next = x.Next; x.ID != "" {
				all = append(all, x.ID)
			}
		}
		if next == "" {
			break
		}
	}
	if slices.Sort(all); len(slices.Compact(all)) != 5 {
		t.Errorf("paging found %v, want 5 sessions", all)
	}
}

func TestQueryErrors(t *testing.T) {
	dsn := shop(t)
	two := "sqlite:" + filepath.Join(t.TempDir(), "two")
	fillShop(t, two, shopSpec)
	fillShop(t, two, strings.Replace(shopSpec, "job: shop", "job: mall", 1))
	empty := t.TempDir()
	for _, c := range []struct {
		dsn, args string
		code      int
		stderr    string
	}{
		{dsn, "sessions --job shup", 1, `the store holds no job "shup"; did you mean shop? (its jobs are shop)`},
		{two, "sessions", 1, "the store holds several jobs: name one with --job (mall, shop)"},
		{dsn, "sessions --version 9", 1, `job shop has no output of version "9"; its generations are 1 (version 1, live)`},
		{dsn, "sessions --generation 9", 1, "job shop has no generation 9; it has 1 (version 1, live)"},
		{"sqlite:" + empty, "users x", 1, "no serving store in " + empty},
		{dsn, "sessions 123", 2, `session id "123": has 3 characters; expected 26`},
		{dsn, "sessions 00000000000000000000000000", 1, "has no session 00000000000000000000000000"},
		{dsn, "sessions 00000000000000000000000000 --user x", 2, "--user is for lists"},
		{dsn, "sessions --key order", 2, `--key "order": expected KIND=VALUE`},
		{dsn, "sessions --decided", 2, "name one"},
		{dsn, "sessions --scenario a --decided --pending", 2, "none of the others can be"},
		{dsn, "sessions --limit 0", 2, "--limit 0: expected 1 to 10000"},
		{dsn, "sessions --from yesterday", 2, `--from "yesterday": expected a day`},
		{dsn, "sessions --from 2026-03-02 --to 2026-03-01", 2, "--from 2026-03-02 is not before --to 2026-03-01"},
		{dsn, "sessions --last soon", 2, `--last "soon": expected a duration`},
		{dsn, "sessions --last 1h --from 2026-03-01", 2, "none of the others can be"},
		{dsn, "sessions --after x", 1, "the cursor is not one of this list (start from the first page)"},
		{dsn, "sessions --watch --interval 1ms", 2, "--interval 1ms: at least 100ms"},
		{dsn, "users", 2, "accepts 1 arg(s)"},
		{dsn, "reports funel", 1, `job shop has no lines of a report "funel"; did you mean funnel? (it has lines of funnel, volume)`},
		{dsn, "reports funnel --by chanel", 2, `--by: report funnel has no field "chanel" (did you mean channel?); it has channel, user and window`},
		{dsn, "reports --by window", 2, "name one"},
		{dsn, "reports funnel --where x", 2, `--where "x": expected FIELD=VALUE`},
		{dsn, "rejects --last 1h", 2, "go with --list or --raw"},
		{dsn, "rejects --late --reason syntax", 2, "none of the others can be"},
		{dsn, "rejects --raw -", 1, "there are records of several sources"},
		{dsn, "rejects --raw - --source channel", 1, "holds a line break"},
	} {
		code, stdout, stderr := weft("", append(strings.Fields(c.args), "--store", c.dsn)...)
		if code != c.code || !strings.Contains(stderr, c.stderr) || stdout != "" && !strings.Contains(c.args, "--raw") {
			t.Errorf("%s: exit code %d, stdout %q, stderr\n%s\nwant %d and\n%s", c.args, code, stdout, stderr, c.code, c.stderr)
		}
	}
	if list, err := os.ReadDir(empty); err != nil || len(list) > 0 {
		t.Errorf("a question made %v in an empty folder", list)
	}
}

func TestUnservedJob(t *testing.T) {
	dsn := shop(t)
	s, err := store.Open(t.Context(), dsn, store.Options{})
	ok(t, err)
	_, err = s.Switch(t.Context(), store.SwitchRequest{Job: "shop", RequestID: "2", ExpectedEpoch: 1,
		Assignments: []store.Assignment{{From: event.MinTime, To: event.MaxTime}}})
	ok(t, err)
	ok(t, s.Close())
	code, _, stderr := weft("", "sessions", "--store", dsn)
	if want := "serves nothing yet; name a version with --version or a generation with --generation: 1 (version 1, live)"; code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d: %s; want %s", code, stderr, want)
	}
	if out := ask(t, dsn, "sessions", "--version", "1", "--user", "ann"); strings.Count(out, "\n") != 5 {
		t.Errorf("a version that is not served shows\n%s", out)
	}
}

func TestReportTotalsAreWhole(t *testing.T) {
	dsn := shop(t)
	lines := strings.Split(strings.TrimSpace(ask(t, dsn, "reports", "funnel", "--json", "--limit", "1")), "\n")
	if len(lines) != 2 {
		t.Fatalf("got %d lines, want the last and the totals", len(lines))
	}
	var total struct {
		Total    bool
		Lines    int
		Measures map[string]int64
	}
	ok(t, json.Unmarshal([]byte(lines[1]), &total))
	if want := map[string]int64{"sessions": 5, "revenue": 1979, "stuck": 2}; !total.Total || total.Lines != 5 || !maps.Equal(total.Measures, want) {
		t.Errorf("got %+v, want 5 lines with %v", total, want)
	}
}

func TestRawRecords(t *testing.T) {
	dsn := shop(t)
	dir := t.TempDir()
	if got := ask(t, dsn, "rejects", "--raw", "-", "--source", "game"); got != "{\"event\": \"delivered\"}\n" {
		t.Errorf("got %q", got)
	}
	file := filepath.Join(dir, "rejects.parquet")
	if got := ask(t, dsn, "rejects", "--raw", file); got != file+": 3 records\n" {
		t.Errorf("got %q", got)
	}
	a, err := archive.Open(file)
	ok(t, err)
	defer a.Close()
	var b event.Batch
	_, err = a.Fill(&b, 0, "shop.channel", 1<<20)
	ok(t, err)
	var got []string
	for _, r := range b.Records {
		got = append(got, fmt.Sprintf("%d/%d %s", r.Partition, r.Offset, b.Raw(r)))
	}
	if want := []string{"0/3 {\"at\": \"\x1b[2Jno JSON\n", `0/4 {"at": "yesterday", "event": "paid"}`}; !slices.Equal(got, want) {
		t.Errorf("the archive holds %q, want %q", got, want)
	}

	// A record that was mended can be replayed; one that came late, too, once for all its events.
	s, err := store.Open(t.Context(), dsn, store.Options{})
	ok(t, err)
	page, err := s.Exceptions(t.Context(), store.ExceptionQuery{Scope: store.Scope{Job: "shop"}, Kind: store.Late})
	ok(t, err)
	another := page.Items[0].Exception
	another.Index = 1
	ok(t, s.Write(t.Context(), store.Owner{Generation: 1, Epoch: 1}, &store.Batch{Exceptions: []store.Exception{another}}))
	ok(t, s.Close())
	late := filepath.Join(dir, "late.jsonl")
	ask(t, dsn, "rejects", "--late", "--raw", late)
	ok(t, os.WriteFile(filepath.Join(dir, "job.yaml"), []byte(shopSpec), 0o600))
	code, stdout, stderr := weft("", "replay", "--spec", filepath.Join(dir, "job.yaml"), "--input", "game="+late, "--out", filepath.Join(dir, "out"))
	if code != 0 || !strings.Contains(stdout, "1 records from 1 source → 1 sessions") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	code, _, stderr = weft("", "rejects", "--store", dsn, "--raw", filepath.Join(dir, "none", "x.parquet"))
	if code != 1 || !strings.Contains(stderr, "no such file or directory") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	code, _, _ = weft("", "rejects", "--store", dsn, "--raw", filepath.Join(dir, "lines.jsonl"))
	if list, err := filepath.Glob(filepath.Join(dir, "lines*")); code != 1 || err != nil || len(list) > 0 {
		t.Errorf("exit code %d, and a failed export left %v", code, list)
	}
}

func TestCompletion(t *testing.T) {
	dsn := shop(t)
	for _, c := range []struct{ args, want string }{
		{"sessions --scenario ", "delivered paid_not_delivered :4"},
		{"sessions --job ", "shop :4"},
		{"reports ", "funnel volume :4"},
		{"rejects --reason ", "bad_time no_time syntax :4"},
		{"rejects --late --source ", "game :4"},
	} {
		args := append([]string{"__complete"}, strings.Fields(c.args)...)
		args = slices.Insert(args, 2, "--store", dsn)
		code, stdout, _ := weft("", append(args, "")...)
		if got := strings.Join(strings.Fields(stdout), " "); code != 0 || got != c.want {
			t.Errorf("%s: %d %q, want %q", c.args, code, got, c.want)
		}
	}
	t.Setenv("WEFT_STORE", "sqlite:"+t.TempDir())
	if _, stdout, _ := weft("", "__complete", "sessions", "--job", ""); strings.TrimSpace(stdout) != ":5" {
		t.Errorf("without a store: %q", stdout)
	}
}

func TestSpanOfLast(t *testing.T) {
	f := queryFlags{last: "1d", now: func() time.Time { return time.UnixMicro(90_000_000_000).UTC() }}
	from, to, err := f.span()
	if from != 3_600_000_000 || to != event.MaxTime || err != nil {
		t.Errorf("got %d to %d, %v", from, to, err)
	}
}

func TestWatchTellsChanges(t *testing.T) {
	var b bytes.Buffer
	o := &watcher{w: &b, json: true, watch: true, told: map[string]string{}}
	show := func(lines ...jsonLine) string {
		b.Reset()
		ok(t, o.show(&answer{lines: lines}))
		return b.String()
	}
	if got := show(jsonLine{"a", []byte("1")}, jsonLine{"b", []byte("2")}); got != "1\n2\n" {
		t.Errorf("first: %q", got)
	}
	if got := show(jsonLine{"a", []byte("1")}, jsonLine{"b", []byte("3")}, jsonLine{"c", []byte("\"\u009b\"")}); got != "3\n\"\\u009b\"\n" {
		t.Errorf("then: %q", got)
	}

	b.Reset()
	o = &watcher{w: &b, watch: true}
	for _, text := range []string{"x\n", "x\n", "y\n"} {
		ok(t, o.show(&answer{draw: func(s *screen) { s.printf("%s", text) }}))
	}
	if b.String() != "x\n\ny\n" {
		t.Errorf("as text: %q", b.String())
	}
}

func TestRedrawFitsTheTerminal(t *testing.T) {
	o := &watcher{every: time.Second}
	s := &screen{width: 60, height: 3}
	if got, want := o.redraw(s, "1\n2\n3\n4\n"), "\x1b[2J\x1b[H1\x1b[K\n2\x1b[K\n2 more lines; every 1s, Ctrl-C ends\x1b[K\x1b[J"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestManySessions adds up more sessions than a page has.
func TestManySessions(t *testing.T) {
	dsn := shop(t)
	s, err := store.Open(t.Context(), dsn, store.Options{})
	ok(t, err)
	var b store.Batch
	for i := range 2*store.PageRowsMax + 500 {
		id := store.ID{1, byte(i >> 8), byte(i)}
		b.Sessions = append(b.Sessions, store.Session{Seq: 1000, ID: id, Start: 1, End: 2, Events: 1, User: []byte("bot"),
			Body: fmt.Appendf(nil, `{"id":"%s","fields":{"amount":7,"channel":"x"},"scenarios":["delivered"],"decided":{"delivered":"2027-01-01T00:00:00Z"},"events":[]}`, id)})
	}
	ok(t, s.Write(t.Context(), store.Owner{Generation: 1, Epoch: 1}, &b))
	ok(t, s.Close())
	var u userTotals
	ok(t, json.Unmarshal([]byte(ask(t, dsn, "users", "bot", "--json", "--limit", "0")), &u))
	if one := u.Scenarios["delivered"]; u.Sessions != 2500 || u.Open != 0 || u.Truncated || u.Sums["amount"] != 17500 || one.Sessions != 2500 || one.Pending != 2500 {
		t.Errorf("got %+v with %+v", u, u.Scenarios["delivered"])
	}
	if n := strings.Count(ask(t, dsn, "sessions", "--user", "bot", "--limit", "1700", "--json"), "\n"); n != 1701 {
		t.Errorf("%d lines, want 1700 sessions and where to go on", n)
	}
}

func TestSafeText(t *testing.T) {
	for _, c := range []struct {
		text string
		most int
		want string
	}{
		{"plain", 9, "plain"},
		{"plain", 5, "plain"},
		{"plain", 4, "pla…"},
		{"a\nb\x1b[0m\x7f\u009b\u202e\xff", 99, `a\nb\x1b[0m\x7f\u009b\u202e\xff`},
		{"\x1b\x1b\x1b", 6, `\x1b…`},
		{"王小明", 6, "王小明"},
		{"王小明", 5, "王小…"},
		{"e" + strings.Repeat("\u0301", 4), 9, "e\u0301\u0301\\u0301…"},
		{"\U000e0041", 99, `\U000e0041`},
		{"", 3, ""},
	} {
		if got := safe(c.text, c.most); got != c.want {
			t.Errorf("%q in %d: %q, want %q", c.text, c.most, got, c.want)
		}
	}
}

func FuzzSafe(f *testing.F) {
	f.Add("a\x1b[2J\u0301王", 7)
	f.Fuzz(func(t *testing.T, text string, most int) {
		most = 1 + most&63
		got := safe(text, most)
		if textWidth(got) > most {
			t.Errorf("%q has %d cells, more than %d", got, textWidth(got), most)
		}
		for _, r := range got {
			if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x202e {
				t.Errorf("%q holds %U", got, r)
			}
		}
		if safe(got, most) != got {
			t.Errorf("%q is not safe yet", got)
		}
		var back string
		encoded, err := json.Marshal(text)
		ok(t, err)
		var want string
		ok(t, json.Unmarshal(encoded, &want))
		if err := json.Unmarshal(safeJSON(encoded), &back); err != nil || back != want {
			t.Errorf("%s became %s: %v", encoded, safeJSON(encoded), err)
		}
	})
}

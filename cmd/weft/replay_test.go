package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/backfill"
	"github.com/weftdata/weft/event"
)

const replaySpec = `version: weft/v1
job: payments
sources:
  orders: {topic: pay.orders, format: json, time: at, step: event, keys: {order: order_id}}
  wallet: {topic: pay.wallet, format: logfmt, time: at, step: event, keys: {order: order_id}}
session: {gap: 1h}
scenarios:
  - {name: paid, when: 'step("paid").count > 0'}
`

const (
	orderLines = `{"at":"2026-03-01T10:00:00Z","event":"ordered","order_id":"7"}
{"at":"2026-03-01T10:01:00Z","event":"paid","order_id":"7"}
{"at":"2026-03-01T10:02:00Z","event":"ordered","order_id":"8"}
`
	walletLines = "at=2026-03-01T10:00:30Z event=callback order_id=7\n"
)

// replayFolder makes a folder of good and bad inputs the working directory.
func replayFolder(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	var many strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&many, `{"at":"2026-03-01T10:00:00Z","event":"ordered","order_id":"%d"}`+"\n", i)
	}
	zipped := gzipped(t, []byte(many.String()))
	parquet := archiveOf(t, "pay.orders", strings.Split(strings.TrimSpace(orderLines), "\n"))
	noise := make([]byte, 5000)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	for name, data := range map[string][]byte{
		"job.yaml":           []byte(replaySpec),
		"bad.yaml":           []byte(strings.Replace(replaySpec, "gap: 1h", "gap: 1 hour", 1)),
		"orders.jsonl":       []byte(orderLines),
		"wallet.log":         []byte(walletLines),
		"orders.gz":          gzipped(t, []byte(orderLines)),
		"cut.gz":             zipped[:len(zipped)/2],
		"header.gz":          zipped[:5],
		"rotten.gz":          append(slices.Clone(zipped[:len(zipped)/2]), noise...),
		"binary":             noise,
		"empty":              nil,
		"blank":              []byte("\n\r\n\n"),
		"orders.parquet":     parquet,
		"cut.parquet":        parquet[:len(parquet)*2/3],
		"short.parquet":      []byte("PAR1"),
		"other.parquet":      archiveOf(t, "pay.refunds", []string{"{}"}),
		"many/1.parquet":     parquet,
		"many/2.parquet":     parquet[:len(parquet)-1],
		"no_parquet/a.jsonl": []byte(orderLines),
		"taken":              []byte("a file"),
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func archiveOf(t *testing.T, topic string, lines []string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := archive.NewWriter(&b)
	for i, line := range lines {
		if err := w.Write(&archive.Record{Topic: topic, Offset: int64(i), Timestamp: event.MinTime, Value: []byte(line)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// resultsIn returns the names of the files in a folder; none where there is no folder.
func resultsIn(dir string) (list []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

var allResults = []string{"rejects.jsonl", "reports.jsonl", "sessions.jsonl", "summary.json"}

// TestReplayInput gives the command what people give it by mistake. Each has one outcome that says what is wrong: results
// with a warning and exit code 0, or no results, one message and another code.
func TestReplayInput(t *testing.T) {
	replayFolder(t)
	usage := "Run 'weft replay --help' for usage.\n"
	for _, c := range []struct {
		name   string
		args   string // after replay --out out --format jsonl; without --spec there: --spec job.yaml
		code   int
		stdout []string // lines that it has, as patterns
		stderr string   // all of it, as a pattern
	}{
		{"good", "--input orders=orders.jsonl --input wallet=wallet.log", 0, []string{
			"4 records from 2 sources → 2 sessions in out/sessions.jsonl", "events: 4", "  paid +1", `  \(none\) +1`, "digest: [0-9a-f]{64}"}, ""},
		{"good gzip", "--input orders=orders.gz", 0, []string{"3 records from 1 source → 2 sessions in out/sessions.jsonl"}, ""},
		{"good parquet", "--input orders=orders.parquet", 0, []string{"3 records from 1 source → 2 sessions in out/sessions.jsonl"}, ""},
		{"quiet", "--quiet --input orders=orders.jsonl", 0, nil, ""},

		{"missing file", "--input orders=none.jsonl", 1, nil, "weft: input orders: read none.jsonl: no such file or directory\n"},
		{"two missing files", "--input orders=none.jsonl --input wallet=nothing", 1, nil,
			"weft: input orders: read none.jsonl: no such file or directory\ninput wallet: read nothing: no such file or directory\n"},
		{"folder of text", "--input orders=no_parquet", 1, nil,
			"weft: input orders: read no_parquet: it is a folder without .parquet files; name a file\n"},
		{"truncated gzip", "--input orders=cut.gz", 1, nil,
			`weft: input orders: read cut.gz: compressed data ends early after line \d+: unexpected EOF` + "\n"},
		{"gzip cut in its header", "--input orders=header.gz", 1, nil,
			"weft: input orders: read header.gz: compressed data ends early before the first line ended: unexpected EOF\n"},
		{"damaged gzip", "--input orders=rotten.gz", 1, nil,
			`weft: input orders: read rotten.gz: cannot decompress after line \d+: .+` + "\n"},
		{"binary file", "--input orders=binary", 0, []string{`(\d+) records from 1 source → 0 sessions in out/sessions.jsonl`,
			`rejected \d+ records, kept in rejects.jsonl: syntax \d+`, `WARNING: every record was rejected. Is this the right spec for these files\?`}, ""},
		{"empty file", "--input orders=empty", 0, []string{"0 records from 1 source → 0 sessions in out/sessions.jsonl",
			"WARNING: input orders is empty: empty"}, ""},
		{"empty lines", "--input orders=blank --input wallet=wallet.log", 0, []string{"WARNING: input orders has no records, only empty lines or an archive of other topics: blank"}, ""},
		{"wrong source", "--input wallet=orders.jsonl", 0, []string{"rejected 3 records, kept in rejects.jsonl: syntax 3",
			`WARNING: every record was rejected. Is this the right spec for these files\?`}, ""},
		{"wrong source among others", "--input wallet=orders.jsonl --input orders=orders.jsonl", 0, []string{
			"rejected 3 records, kept in rejects.jsonl: syntax 3", "WARNING: all records of input wallet were rejected: syntax 3"}, ""},
		{"parquet of another topic", "--input orders=other.parquet", 0, []string{"0 records from 1 source → 0 sessions in out/sessions.jsonl",
			"WARNING: input orders has no records, only empty lines or an archive of other topics: other.parquet"}, ""},
		{"parquet cut short", "--input orders=cut.parquet", 1, nil, "weft: input orders: read cut.parquet: .*cut off.*\n"},
		{"parquet of four bytes", "--input orders=short.parquet", 1, nil, "weft: input orders: read short.parquet: is cut off: it has 4 bytes\n"},
		{"one of several parquet files cut short", "--input orders=many", 1, nil, "weft: input orders: read many/2.parquet: .*cut off.*\n"},

		{"unknown source", "--input ordres=orders.jsonl", 2, nil,
			`weft: input ordres=orders.jsonl: job payments has no source "ordres"; did you mean orders\? \(its sources are orders, wallet\)` + "\n"},
		{"source given twice", "--input orders=orders.jsonl --input orders=orders.gz", 2, nil,
			"weft: source orders has two inputs, orders.jsonl and orders.gz: .+\n"},
		{"input without source", "--input orders.jsonl", 2, nil, `weft: --input "orders.jsonl": expected SOURCE=PATH, such as orders=orders.jsonl` + "\n"},
		{"input without path", "--input orders=", 2, nil, `weft: --input "orders=": expected SOURCE=PATH, such as orders=orders.jsonl` + "\n"},
		{"several mistakes", "--input =x --from yesterday --memory lots --format csv", 2, nil,
			`weft: --input "=x": expected SOURCE=PATH, such as orders=orders.jsonl\n` +
				`--format "csv": expected parquet or jsonl\n` +
				`--from "yesterday": expected a time such as 2026-03-01T00:00:00Z\n` +
				`--memory: expected a size such as 512MiB or 2GiB` + "\n"},
		{"empty range", "--input orders=orders.jsonl --from 2026-03-02T00:00:00Z --to 2026-03-01T00:00:00Z", 2, nil,
			"weft: --from 2026-03-02T00:00:00Z is not before --to 2026-03-01T00:00:00Z\n"},
		{"range without sessions", "--input orders=orders.jsonl --from 2027-03-02T00:00:00Z", 0,
			[]string{"3 records from 1 source → 0 sessions in out/sessions.jsonl"}, ""},
		{"little memory", "--input orders=orders.jsonl --memory 1KiB", 2, nil, "weft: --memory 1KiB: at least 16 MiB are needed\n"},
		{"no input", "", 2, nil, `weft: required flag\(s\) "input" not set` + "\n" + usage},
		{"argument", "orders.jsonl --input orders=orders.jsonl", 2, nil, `weft: unknown command "orders.jsonl" for "weft replay"` + "\n" + usage},
		{"missing spec", "--spec none.yaml --input orders=orders.jsonl", 2, nil, "none.yaml: no such file or directory\n"},
		{"bad spec", "--spec bad.yaml --input orders=orders.jsonl", 2, nil, `bad.yaml:6:16: session.gap: expected a duration such as 30m, .+` + "\n(?s:.*)"},
		{"data as spec", "--spec orders.jsonl --input orders=orders.jsonl", 2, nil, "orders.jsonl:(?s:.+)"},
		{"file in the way of the results", "--out taken --input orders=orders.jsonl", 1, nil, "weft: make the folder for the results: mkdir taken: not a directory\n"},
		{"results below a file", "--out taken/out --input orders=orders.jsonl", 1, nil, "weft: make the folder for the results: mkdir taken: not a directory\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.RemoveAll("out"); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"replay", "--out", "out"}, strings.Fields(c.args)...)
			if !strings.Contains(c.args, "--spec") {
				args = append(args, "--spec", "job.yaml")
			}
			if !strings.Contains(c.args, "--format") {
				args = append(args, "--format", "jsonl")
			}
			code, stdout, stderr := weft("", args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, line := range c.stdout {
				if !regexp.MustCompile("(?m)^" + line + "$").MatchString(stdout) {
					t.Errorf("stdout lacks %q:\n%s", line, stdout)
				}
			}
			if c.stdout == nil && stdout != "" {
				t.Errorf("stdout is %q", stdout)
			}
			if !regexp.MustCompile("^" + c.stderr + "$").MatchString(stderr) {
				t.Errorf("stderr is\n%s\nwant\n%s", stderr, c.stderr)
			}
			want := allResults
			if c.code != 0 {
				want = nil
			}
			if got := resultsIn("out"); !slices.Equal(got, want) {
				t.Errorf("the folder of the results holds %v, want %v", got, want)
			}
		})
	}
}

// TestReplayZipBomb replays a gigabyte of zeros: one line that is far too long, in bounded memory.
func TestReplayZipBomb(t *testing.T) {
	t.Chdir(t.TempDir())
	var bomb bytes.Buffer
	w, err := gzip.NewWriterLevel(&bomb, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range 1 << 10 {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"job.yaml": []byte(replaySpec), "bomb.gz": bomb.Bytes()} {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	code, stdout, stderr := weft("", "replay", "--spec", "job.yaml", "--input", "orders=bomb.gz", "--out", "out", "--format", "jsonl")
	runtime.ReadMemStats(&after)
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	for _, line := range []string{
		"rejected 1 records, kept in rejects.jsonl: too_long 1\n",
		"WARNING: every record was rejected. Is this the right spec for these files?\n",
	} {
		if !strings.Contains(stdout, line) {
			t.Errorf("stdout lacks %q:\n%s", line, stdout)
		}
	}
	// All that was ever allocated, not only what was held at once.
	if used := after.TotalAlloc - before.TotalAlloc; used > 128<<20 {
		t.Errorf("%d MiB were allocated", used>>20)
	}
	info, err := os.Stat("out/rejects.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 16<<10 {
		t.Errorf("rejects.jsonl has %d bytes", info.Size())
	}
	text, err := os.ReadFile("out/rejects.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("the line has %d bytes; at most %d are allowed", 1<<30, event.RecordBytesMax); !strings.Contains(string(text), want) {
		t.Errorf("rejects.jsonl does not say %q: %s", want, text[:min(len(text), 300)])
	}
}

// useStdin makes a pipe the standard input of the process until the test ends, and returns the end to write to.
func useStdin(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stdin
	os.Stdin = r
	t.Cleanup(func() {
		os.Stdin = old
		r.Close()
		w.Close()
	})
	return w
}

func TestReplayStandardInput(t *testing.T) {
	replayFolder(t)
	stdin := useStdin(t)
	if _, err := stdin.WriteString(orderLines); err != nil { // fits into the pipe
		t.Fatal(err)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	code, piped, stderr := weft("", "replay", "--spec", "job.yaml", "--input", "orders=-", "--out", "piped", "--json")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, stderr %q", code, stderr)
	}
	code, read, stderr := weft("", "replay", "--spec", "job.yaml", "--input", "orders=orders.jsonl", "--out", "read", "--json")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, stderr %q", code, stderr)
	}
	var a, b backfill.Summary
	if err := json.Unmarshal([]byte(piped), &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(read), &b); err != nil {
		t.Fatal(err)
	}
	if a.Digest != b.Digest || a.Sessions != 2 || a.Inputs["orders"].Path != "-" {
		t.Errorf("from standard input %+v, from the file %+v", a, b)
	}
}

// TestReplayInterrupted cancels a replay while its input keeps coming. What an earlier replay left stays whole.
func TestReplayInterrupted(t *testing.T) {
	replayFolder(t)
	stdin := useStdin(t)
	ctx, interrupt := context.WithCancel(t.Context())
	fed := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			if i == 20_000 {
				interrupt()
			}
			if _, err := fmt.Fprintf(stdin, `{"at":"2026-03-01T10:00:00Z","event":"ordered","order_id":"%d"}`+"\n", i); err != nil {
				fed <- err
				return
			}
		}
	}()
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{"replay", "--spec", "job.yaml", "--input", "orders=-", "--out", "out"}, strings.NewReader(""), &stdout, &stderr)
	if code != exitFailed || stdout.Len() > 0 || stderr.String() != "weft: interrupted: no results were written\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
	}
	if got := resultsIn("out"); len(got) > 0 {
		t.Errorf("the folder of the results holds %v", got)
	}
	os.Stdin.Close() // ends the feeding
	<-fed
}

// TestReplayCancelledAtOnce needs no luck with timing: nothing may be written when the context ends before the start.
func TestReplayCancelledAtOnce(t *testing.T) {
	replayFolder(t)
	if code, _, stderr := weft("", "replay", "--spec", "job.yaml", "--input", "orders=orders.jsonl", "--out", "out", "--quiet"); code != 0 {
		t.Fatal(stderr)
	}
	before, err := os.ReadFile("out/summary.json")
	if err != nil {
		t.Fatal(err)
	}
	files := resultsIn("out")
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{"replay", "--spec", "job.yaml", "--input", "orders=orders.gz", "--out", "out"}, strings.NewReader(""), &stdout, &stderr)
	if code != exitFailed || stderr.String() != "weft: interrupted: no results were written\n" {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
	after, err := os.ReadFile("out/summary.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) || !slices.Equal(files, resultsIn("out")) {
		t.Errorf("the earlier results are not as they were: %v", resultsIn("out"))
	}
}

// TestReplayOverEarlierResults replaces the results of an earlier replay, also where they have the other format, and keeps
// them where it fails.
func TestReplayOverEarlierResults(t *testing.T) {
	replayFolder(t)
	replay := func(args ...string) (int, string) {
		code, _, stderr := weft("", append([]string{"replay", "--spec", "job.yaml", "--out", "out"}, args...)...)
		return code, stderr
	}
	if code, stderr := replay("--input", "orders=orders.jsonl"); code != 0 {
		t.Fatal(stderr)
	}
	if got, want := resultsIn("out"), []string{"rejects.parquet", "reports.parquet", "sessions.parquet", "summary.json"}; !slices.Equal(got, want) {
		t.Errorf("results are %v, want %v", got, want)
	}
	if err := os.WriteFile("out/notes.txt", []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, stderr := replay("--input", "orders=orders.jsonl", "--format", "jsonl"); code != 0 {
		t.Fatal(stderr)
	}
	want := append([]string{"notes.txt"}, allResults...)
	if got := resultsIn("out"); !slices.Equal(got, want) {
		t.Errorf("results are %v, want %v", got, want)
	}
	before, err := os.ReadFile("out/sessions.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if code, _ := replay("--input", "orders=cut.gz", "--format", "jsonl"); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	after, err := os.ReadFile("out/sessions.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if got := resultsIn("out"); !bytes.Equal(before, after) || !slices.Equal(got, want) {
		t.Errorf("a failed replay changed the earlier results: %v", got)
	}
}

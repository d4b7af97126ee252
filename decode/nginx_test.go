package decode

import (
	"bytes"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

const combined = `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"`

func combinedSpec() formatSpec {
	return formatSpec{
		format: jobspec.Format{Name: "nginx", LogFormat: combined},
		time:   jobspec.Time{Field: "$time_local"},
		step:   jobspec.Step{Field: "request_method"},
		paths: []string{"key order=arg_order", "field ip=remote_addr", "field path=$request_path", "field agent=${http_user_agent}",
			"field referer=http_referer", "int bytes=body_bytes_sent"},
	}
}

const combinedLine = `192.0.2.1 - alice [17/May/2015:10:05:03 +0000] "GET /pay?order=A7&x=1 HTTP/1.1" 200 203023 "https://shop.example/" "Mozilla/5.0 (X11)"`

func TestNginx(t *testing.T) {
	for name, c := range map[string]struct{ line, want string }{
		"usual": {combinedLine, `0.0 2015-05-17T10:05:03 GET order:"A7" agent="Mozilla/5.0 (X11)" bytes=203023 ip="192.0.2.1" path="/pay" referer="https://shop.example/"`},
		"dashes are absent": {`::1 - - [17/May/2015:12:05:03 +0200] "HEAD / HTTP/1.0" 304 - "-" "-"` + "\r\n",
			`0.0 2015-05-17T10:05:03 HEAD ip="::1" path="/"`},
		"user with spaces": {strings.Replace(combinedLine, "alice", "alice [x] b", 1),
			`0 bad_time: $time_local: "x] b [17/May/2015:10:05:03 +0000"`},
		"nginx escapes": {strings.Replace(combinedLine, "Mozilla/5.0 (X11)", `a\x22b\x5Cc\xE4\xB8\xAD`, 1),
			`0.0 2015-05-17T10:05:03 GET order:"A7" agent="a\"b\\c中" bytes=203023 ip="192.0.2.1" path="/pay" referer="https://shop.example/"`},
		"Apache escapes": {strings.Replace(combinedLine, "Mozilla/5.0 (X11)", `say \"hi\" \\`, 1),
			`0.0 2015-05-17T10:05:03 GET order:"A7" agent="say \"hi\" \\" bytes=203023 ip="192.0.2.1" path="/pay" referer="https://shop.example/"`},
		"argument": {strings.Replace(combinedLine, "order=A7&x=1", `xorder=1&ORDER=A%207+8%2&order=2`, 1),
			`0.0 2015-05-17T10:05:03 GET order:"A 7 8%2" agent="Mozilla/5.0 (X11)" bytes=203023 ip="192.0.2.1" path="/pay" referer="https://shop.example/"`},
		"no protocol": {strings.Replace(combinedLine, "GET /pay?order=A7&x=1 HTTP/1.1", `GET /a b`, 1),
			`0.0 2015-05-17T10:05:03 GET agent="Mozilla/5.0 (X11)" bytes=203023 ip="192.0.2.1" path="/a b" referer="https://shop.example/"`},
		"no request": {strings.Replace(combinedLine, "GET /pay?order=A7&x=1 HTTP/1.1", `\x16\x03\x01`, 1), `0 no_step: request_method`},
		"cut":        {combinedLine[:len(combinedLine)-1], `0 syntax: no "\"" after $http_user_agent`},
		"longer":     {combinedLine + " 0.003", `0 syntax: the line goes on after its last variable`},
		"empty":      {"", `0 syntax: no " - " after $remote_addr`},
	} {
		t.Run(name, func(t *testing.T) { equalText(t, combinedSpec().decode(t, c.line), c.want) })
	}
}

// A line may be cut off behind what the job wants of it, not before.
func TestNginxCut(t *testing.T) {
	s := combinedSpec()
	s.paths = []string{"field ip=remote_addr", "int bytes=body_bytes_sent"}
	for line, want := range map[string]string{
		combinedLine[:len(combinedLine)-1]:                  `0.0 2015-05-17T10:05:03 GET bytes=203023 ip="192.0.2.1"`,
		combinedLine[:strings.Index(combinedLine, "shop")]:  `0.0 2015-05-17T10:05:03 GET bytes=203023 ip="192.0.2.1"`,
		combinedLine[:strings.Index(combinedLine, "203")+2]: `0 syntax: no " \"" after $body_bytes_sent`,
		combinedLine + " 0.003":                             `0 syntax: the line goes on after its last variable`,
		combinedLine[:strings.Index(combinedLine, " [17/")]: `0 syntax: no " [" after $remote_user`,
	} {
		equalText(t, s.decode(t, line), want)
	}
}

func TestNginxFormats(t *testing.T) {
	for name, c := range map[string]struct{ format, time, line, want string }{
		"milliseconds": {`$msec|$status`, "msec", `1431857103.123|200`, `0.0 2015-05-17T10:05:03.123 s status="200"`},
		"iso":          {`<${time_iso8601}> $status`, "time_iso8601", `<2015-05-17T12:05:03+02:00> 200`, `0.0 2015-05-17T10:05:03 s status="200"`},
		"prefix":       {`<${time_iso8601}> $status`, "time_iso8601", `2015-05-17T12:05:03+02:00> 200`, `0 syntax: the line does not begin with "<"`},
		"directive": {"log_format main escape=default '$msec '\n    '\"$status\"';", "msec", `1431857103.123 "2\x2200"`,
			`0.0 2015-05-17T10:05:03.123 s status="2\"00"`},
		"json": {`escape=json '{"t":"$msec","s":"$status"}'`, "msec", `{"t":"1431857103.123","s":"a\"\u4e2d\ud83d\ude00\n"}`,
			`0.0 2015-05-17T10:05:03.123 s status="a\"中😀\n"`},
		"none": {`escape=none '$msec "$status"'`, "msec", `1431857103.123 "a\x22"`, `0.0 2015-05-17T10:05:03.123 s status="a\\x22"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := formatSpec{format: jobspec.Format{Name: "nginx", LogFormat: c.format}, time: jobspec.Time{Field: c.time},
				step: jobspec.Step{Value: "s"}, paths: []string{"field status=status"}}
			equalText(t, s.decode(t, c.line), c.want)
		})
	}
}

// The parts of a request may come from any variable that holds them.
func TestNginxRequestParts(t *testing.T) {
	for variable, value := range map[string]string{
		"request":      "GET /p?a=1&b=2 HTTP/1.1",
		"request_uri":  "/p?a=1&b=2",
		"args":         "a=1&b=2",
		"query_string": "a=1&b=2",
		"arg_b":        "2",
	} {
		s := formatSpec{format: jobspec.Format{Name: "nginx", LogFormat: "$msec $" + variable}, time: jobspec.Time{Field: "msec"},
			step: jobspec.Step{Value: "s"}, paths: []string{"field b=arg_b"}}
		want := `0.0 2015-05-17T10:05:03 s b="2"`
		if variable != "arg_b" {
			s.paths = append(s.paths, "field a=args")
			want = `0.0 2015-05-17T10:05:03 s a="a=1&b=2" b="2"`
		}
		equalText(t, s.decode(t, "1431857103 "+value), want)
	}
}

func TestNginxProblems(t *testing.T) {
	for name, c := range map[string]struct{ format, path, want string }{
		"adjacent":   {`$msec$status`, "status", "$status follows $msec without a separator"},
		"no name":    {`$msec $ x`, "msec", "a name must follow the dollar sign"},
		"brace":      {`${msec`, "msec", "no closing brace"},
		"quote":      {`log_format x '$msec`, "msec", "an opening ' without a closing one"},
		"escape":     {`escape=xml '$msec'`, "msec", "expected default, json or none"},
		"no path":    {`$msec $status`, "stats", "the log format has no $stats (it has $msec $status)"},
		"no request": {`$msec $status`, "request_path", "the log format has no $request_path"},
		"empty":      {`hello`, "x", "the log format has no $variable"},
	} {
		t.Run(name, func(t *testing.T) {
			s := formatSpec{format: jobspec.Format{Name: "nginx", LogFormat: c.format}, time: jobspec.Time{Field: "msec"},
				step: jobspec.Step{Value: "s"}, paths: []string{"field x=" + c.path}}
			if got := s.compileError(t); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Real lines of a web server, among them one that is cut off, and escaped bytes that are no UTF-8.
func TestNginxRealLines(t *testing.T) {
	text, err := os.ReadFile("testdata/access.log")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	s := combinedSpec()
	d, b := s.compile(t), &event.Batch{}
	for i, line := range lines {
		b.Add(event.Record{Offset: int64(i)}, []byte(line))
	}
	for _, r := range b.Records {
		d.Decode(b, r)
	}
	checkBatch(t, b)
	if len(b.Rejects) != 1 || b.Rejects[0].Detail != `no "\"" after $http_user_agent` {
		t.Fatalf("rejects: %+v; want the one line that is cut off", b.Rejects)
	}
	// An independent reading of the same lines.
	reference := regexp.MustCompile(`^(\S+) - \S+ \[[^]]*\] "(\S+) ([^? ]*)\S* HTTP/1\.\d" \d+ (\d+|-) "([^"]*)" "([^"]*)"$`)
	n := 0
	for _, line := range lines {
		m := reference.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		var want []string
		for _, part := range []string{m[6], m[4], m[1], m[3], m[5]} { // fields are sorted by name
			if part != "-" {
				want = append(want, string(appendUnescaped(nil, []byte(part))))
			}
		}
		var got []string
		for _, v := range b.ValuesOf(n) {
			if v.Kind == event.IntValue {
				got = append(got, strconv.FormatInt(int64(v.Bits), 10))
			} else if v.Kind == event.StringValue {
				got = append(got, string(b.Bytes(&v)))
			}
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Fatalf("line %q\ngot  %q\nwant %q", line, got, want)
		}
		n++
	}
	if n != len(b.Events) {
		t.Errorf("%d events, the reference has %d", len(b.Events), n)
	}
}

func FuzzNginx(f *testing.F) {
	for _, line := range []string{combinedLine, "", `- - - [] "\" `, strings.Replace(combinedLine, "order=A7", `order=%41%\x22+`, 1)} {
		f.Add([]byte(line), combined)
		f.Add([]byte(line), "escape=json '"+combined+"'")
	}
	f.Fuzz(func(t *testing.T, line []byte, format string) {
		s := combinedSpec()
		s.format.LogFormat = format
		d, err := New(s.spec(), 0, Options{})
		if err != nil {
			return
		}
		good := []byte(combinedLine)
		fuzzRecord(t, s, d, good, line)
	})
}

func FuzzUnescape(f *testing.F) {
	f.Add([]byte(`a\x2`), []byte("%4"))
	f.Add([]byte(`\ud83d\ude00\ud83d\u0041\`), []byte("%41+%zz"))
	f.Fuzz(func(t *testing.T, escaped, percent []byte) {
		if got := appendUnescaped(nil, escaped); len(got) > len(escaped) || bytes.IndexByte(escaped, '\\') < 0 && !bytes.Equal(got, escaped) {
			t.Errorf("%q became %q", escaped, got)
		}
		if got := appendPercentDecoded(nil, percent); len(got) > len(percent) {
			t.Errorf("%q became %q", percent, got)
		}
	})
}

func BenchmarkNginx(b *testing.B) {
	text, err := os.ReadFile("testdata/access.log")
	if err != nil {
		b.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasSuffix(line, "\"\n") { // the other one is cut off
			lines = append(lines, line)
		}
	}
	benchmark(b, combinedSpec(), lines...)
}

package decode

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	"github.com/weftdata/weft/jobspec"
)

const accessPattern = `(?P<ip>\S+) - \S+ \[(?P<t>[^\]]+)\] "(?P<method>[A-Z]+) (?P<path>[^? "]*)(?:\?(?P<query>[^ "]*))? HTTP/1\.[01]" (?P<status>\d{3}) (?P<bytes>\d+|-) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)"`

func regexSpec(pattern string) formatSpec {
	return formatSpec{
		format: jobspec.Format{Name: "regex", Pattern: pattern},
		time:   jobspec.Time{Field: "t", Layout: "02/Jan/2006:15:04:05 -0700"},
		step:   jobspec.Step{Field: "method"},
		paths:  []string{"key query=query", "field ip=ip", "field path=path", "field agent=agent"},
	}
}

// Each pattern reads the same lines: as a table, and, being ambiguous, by package regexp.
func TestRegex(t *testing.T) {
	ambiguous := strings.Replace(accessPattern, `\S+ \[`, `.* \[`, 1)
	for pattern, fast := range map[string]bool{accessPattern: true, "^" + accessPattern + "$": true, ambiguous: false} {
		s := regexSpec(pattern)
		if d := s.compile(t).(*regex); (d.fast != nil) != fast {
			t.Errorf("%s: one-pass is %v, want %v", pattern, d.fast != nil, fast)
		}
		for name, c := range map[string]struct{ line, want string }{
			"usual":         {combinedLine + "\r\n", `0.0 2015-05-17T10:05:03 GET query:"order=A7&x=1" agent="Mozilla/5.0 (X11)" ip="192.0.2.1" path="/pay"`},
			"absent groups": {strings.NewReplacer("?order=A7&x=1", "", "Mozilla/5.0 (X11)", "").Replace(combinedLine), `0.0 2015-05-17T10:05:03 GET ip="192.0.2.1" path="/pay"`},
			"wide":          {strings.Replace(combinedLine, "Mozilla", "中\xff", 1), `0.0 2015-05-17T10:05:03 GET query:"order=A7&x=1" agent="中\xff/5.0 (X11)" ip="192.0.2.1" path="/pay"`},
			"longer":        {combinedLine + " ", "0 syntax: the line does not match the expression"},
			"shorter":       {combinedLine[1:][:40], "0 syntax: the line does not match the expression"},
			"empty":         {"", "0 syntax: the line does not match the expression"},
		} {
			t.Run(name, func(t *testing.T) { equalText(t, s.decode(t, c.line), c.want) })
		}
	}
}

func TestRegexProblems(t *testing.T) {
	for pattern, want := range map[string]string{
		`(?P<t>`:            "missing closing )",
		`(?P<t>.)(?!x)`:     "invalid or unsupported Perl syntax",
		`(?P<t>a)(?P<u>.*)`: `the expression has no group "method" (its groups are t u)`,
		`a)(b`:              "unexpected )",
		``:                  "needs an RE2 expression",
	} {
		if got := regexSpec(pattern).compileError(t); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestOnePass(t *testing.T) {
	for pattern, want := range map[string]bool{
		`(a+)(b*)c`:             true,
		`(?:a|b)*c`:             true,
		`(a|b|[0-9é])?x`:        true,
		`(?i)k(s)`:              true,
		`(\S+) (\S+)`:           true,
		`a{2,5}b`:               true,
		`(.*)x`:                 false,
		`a|ab`:                  true, // the common head is taken out
		`abc|a.d`:               false,
		`(a*)*`:                 false,
		`\bfoo`:                 false,
		`(?m)a$`:                false,
		`(?i)[k][\x{212a}k]*kx`: false,
		`(?:\d{900}){1}\d{300}`: false, // too large a table
	} {
		parsed, err := syntax.Parse(`\A(?:`+pattern+`)\z`, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		if got := compileOnePass(parsed, func(int) bool { return true }) != nil; got != want {
			t.Errorf("%s: one-pass is %v, want %v", pattern, got, want)
		}
	}
}

// FuzzOnePass compares with package regexp: same matches, same groups.
func FuzzOnePass(f *testing.F) {
	for _, pattern := range []string{accessPattern, `(a+)(b*)c`, `((a)|b|[^ab\n])*`, `(?i)(k|s)*x?`, `(?s)(.)(.)`, `(^a|b)(c|$)`, `(\pL*)([^\pL]*)`, `a??b`, `(?:(a)|(b))*c`} {
		f.Add(pattern, combinedLine)
		f.Add(pattern, "aabc")
		f.Add(pattern, "K\u212as\xff\ufffd")
	}
	f.Fuzz(func(t *testing.T, pattern, line string) {
		whole := `\A(?:` + pattern + `)\z`
		reference, err := regexp.Compile(whole)
		if _, alone := regexp.Compile(pattern); alone != nil || err != nil || len(pattern) > 200 || len(line) > 1000 {
			return
		}
		parsed, err := syntax.Parse(whole, syntax.Perl)
		if err != nil {
			return
		}
		m := compileOnePass(parsed, func(int) bool { return true })
		if m == nil {
			return
		}
		caps := make([]int, m.groups)
		ok := m.match([]byte(line), caps)
		want := reference.FindStringSubmatchIndex(line)
		if ok != (want != nil) {
			t.Fatalf("%s on %q: match is %v", pattern, line, ok)
		}
		if ok && !slices.Equal(caps[2:], want[2:]) { // the first two stand for the whole line
			t.Fatalf("%s on %q: groups %v, want %v", pattern, line, caps, want)
		}
	})
}

func FuzzRegex(f *testing.F) {
	for _, line := range []string{combinedLine, "", "\xff", combinedLine[:100]} {
		f.Add([]byte(line))
	}
	s := regexSpec(accessPattern)
	d := s.compile(f)
	f.Fuzz(func(t *testing.T, line []byte) { fuzzRecord(t, s, d, []byte(combinedLine), line) })
}

func BenchmarkRegex(b *testing.B) {
	b.Run("onepass", func(b *testing.B) { benchmark(b, regexSpec(accessPattern), combinedLine) })
	b.Run("ambiguous", func(b *testing.B) {
		benchmark(b, regexSpec(strings.Replace(accessPattern, `\S+ \[`, `.* \[`, 1)), combinedLine)
	})
}

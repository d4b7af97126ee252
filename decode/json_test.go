package decode

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

func jsonSpec(paths ...string) formatSpec {
	return formatSpec{
		format: jobspec.Format{Name: "json"},
		time:   jobspec.Time{Field: "t", Layout: "unix_s"},
		step:   jobspec.Step{Value: "s"},
		paths:  paths,
	}
}

// values returns the values of a described event without its place, time and step.
func values(described string) string {
	if _, rest, ok := strings.Cut(strings.TrimSpace(described), "Z"); ok {
		return rest
	}
	fields := strings.SplitN(strings.TrimSpace(described), " ", 4)
	if len(fields) == 4 && fields[2] == "s" {
		return fields[3]
	}
	return strings.TrimSpace(described)
}

func TestJSON(t *testing.T) {
	for _, c := range []struct{ name, path, record, want string }{
		{"member", "a", `{"t":1,"a":"x"}`, `f="x"`},
		{"nested", "a.b.c", `{"a":{"z":{"c":0},"b":{"c":"x"}},"t":1}`, `f="x"`},
		{"number", "a", `{"t":1,"a":-1.50e+3}`, `f="-1.50e+3"`},
		{"bool", "a", `{"t":1,"a":false}`, `f="false"`},
		{"null", "a", `{"t":1,"a":null}`, ``},
		{"empty string", "a", `{"t":1,"a":""}`, ``},
		{"missing", "a", `{"t":1}`, ``},
		{"object where a scalar is wanted", "a", `{"t":1,"a":{"b":1}}`, ``},
		{"scalar where an object is wanted", "a.b", `{"t":1,"a":"b"}`, ``},
		{"white space", "a.b", " \t\r\n{ \"t\" : 1 , \"a\" : { \"b\" : \"x\" } } \n", `f="x"`},
		{"white space in arrays", "a[].b", `{"t":1,"a": [ { "b" : 1 } , { "b" : 2 } ] }`, `f="1"`},
		{"dots in a name", `a."b.c"`, `{"t":1,"a":{"b":{"c":1},"b.c":"x"}}`, `f="x"`},
		{"element", "a.1", `{"t":1,"a":["x","y","z"]}`, `f="y"`},
		{"number as a member", "a.1", `{"t":1,"a":{"1":"y"}}`, `f="y"`},
		{"quoted number is a member only", `a."1"`, `{"t":1,"a":["x","y"]}`, ``},
		{"element of an element", "a.0.1.b", `{"t":1,"a":[[0,{"b":"x"}],0]}`, `f="x"`},
		{"first of all elements", "a[].b", `{"t":1,"a":[{"c":0},{"b":"x"},{"b":"y"}]}`, `f="x"`},
		{"first of all elements that has a value", "a[]", `{"t":1,"a":[null,"x"]}`, `f="x"`},
		{"elements of an object", "a[]", `{"t":1,"a":{"0":"x"}}`, ``},
		{"root of the record", "$.a", `{"t":1,"a":"x"}`, `f="x"`},
		{"first of equal members", "a", `{"t":1,"a":"x","a":"y"}`, `f="x"`},
		{"first of equal members, null", "a", `{"t":1,"a":null,"a":"y"}`, ``},
		{"first of equal members, other shape", "a.b", `{"t":1,"a":{"c":1},"a":{"b":"y"}}`, ``},
		{"first of equal members, escaped", "a", `{"t":1,"\u0061":"x","a":"y"}`, `f="x"`},
		{"names of eight bytes", "abcdefgh", `{"t":1,"abcdefg":0,"abcdefghi":0,"abcdefgh":"x"}`, `f="x"`},
		{"long names", "abcdefghijklmnopq", `{"t":1,"abcdefghijklmnopx":0,"abcdefghijklmnopq":"x"}`, `f="x"`},
		{"short name at the end", "a", `{"t":1,"a":2}`, `f="2"`},
		{"escapes", "a", `{"t":1,"a":"q\" b\\ s\/ \b\f\n\r\t \u00e9 \u4E2d \ud83d\ude00"}`, `f="q\" b\\ s/ \b\f\n\r\t é 中 😀"`},
		{"escape at the start and end", "a", `{"t":1,"a":"\n1234567\n"}`, `f="\n1234567\n"`},
		{"half surrogates", "a", `{"t":1,"a":"\ud83d \ude00 \ud83dx \ud83d\u0041"}`, `f="� � �x �A"`},
		{"escaped name", "a.b", `{"t":1,"\u0061":{"\u0062":"x"}}`, `f="x"`},
		{"raw control character", "a", "{\"t\":1,\"a\":\"x\ty\"}", `f="x\ty"`},
		{"depth", strings.TrimPrefix(strings.Repeat(".a", 16), "."), `{"t":1,"a":` + strings.Repeat(`{"a":`, 15) + `"x"` + strings.Repeat("}", 16), `f="x"`},

		{"empty", "a", ``, `0 syntax: ends early`},
		{"truncated", "a", `{"t":1,"a":"x"`, `0 syntax: ends early`},
		{"truncated string", "a", `{"t":1,"a":"x`, `0 syntax: ends early`},
		{"truncated escape", "a", `{"t":1,"a":"x\`, `0 syntax: ends early`},
		{"trailing data", "a", `{"t":1} {`, `0 syntax: byte 8: unexpected "{"`},
		{"trailing comma", "a", `{"t":1,}`, `0 syntax: byte 7: unexpected "}"`},
		{"trailing comma in an array", "a", `{"t":1,"b":[1,]}`, `0 syntax: byte 14: unexpected "]"`},
		{"missing comma", "a", `{"t":1 "a":2}`, `0 syntax: byte 7: unexpected "\""`},
		{"missing colon", "a", `{"t" 1}`, `0 syntax: byte 5: unexpected "1"`},
		{"unbalanced", "a", `{"t":1,"b":[1}}`, `0 syntax: byte 13: unexpected "}"`},
		{"wrong literal", "a", `{"t":1,"b":nul}`, `0 syntax: byte 11: unexpected "n"`},
		{"wrong number", "a", `{"t":1,"b":01}`, `0 syntax: byte 12: unexpected "1"`},
		{"wrong number, no digits", "a", `{"t":1,"b":1.}`, `0 syntax: byte 13: unexpected "}"`},
		{"wrong escape", "a", `{"t":1,"a":"\x41"}`, `0 syntax: byte 13: unexpected "x"`},
		{"wrong escape in what is not wanted", "a", `{"t":1,"b":"\x41"}`, `0 syntax: byte 13: unexpected "x"`},
		{"wrong escape in a name", "a", `{"t":1,"\u12":1}`, `0 syntax: byte 9: unexpected "u"`},
		{"garbage", "a", "\xff\xfe", `0 syntax: byte 0: unexpected "\xff"`},
		{"scalar", "a", `12`, `0 no_time: t`},
		{"too deep", "a", `{"t":1,"b":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, `0 too_deep: nested deeper than 64`},
		{"deepest", "a", `{"t":1,"b":` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `}`, ``},
		{"too deep and cut", "a", strings.Repeat(`{"a":`, 100_000), `0 too_deep: nested deeper than 64`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := values(jsonSpec("field f="+c.path).decode(t, c.record))
			if got == "0.0 1970-01-01T00:00:01 s" {
				got = ""
			}
			equalText(t, got, c.want)
		})
	}
}

func TestJSONKeys(t *testing.T) {
	s := jsonSpec("key order=items[].id", "key order=order", "key receipt=items.0.receipt", "field first=items[].id")
	equalText(t, s.decode(t,
		`{"t":1,"order":"B","items":[{"id":"A","receipt":"r0"},{"id":"B","receipt":"r1"},{"id":null},{"id":0},{"id":"C"}]}`,
		`{"t":1,"order":"-","items":[]}`,
		`{"t":1,"items":[{"id":7},{"id":"7"}]}`,
	), `
0.0 1970-01-01T00:00:01 s order:"A" order:"B" order:"C" receipt:"r0" first="A"
1.0 1970-01-01T00:00:01 s
2.0 1970-01-01T00:00:01 s order:"7" first="7"`)
}

func TestJSONEach(t *testing.T) {
	s := jsonSpec("key order=id", "field region=$.region", "field tag=$.tags[]")
	s.each = "data.orders"
	s.time.Field = "at"
	equalText(t, s.decode(t,
		`{"region":"eu","tags":["x"],"data":{"orders":[{"at":1,"id":"A"},{"id":"B","at":2,"region":"no"}]}}`,
		`{"data":{"orders":[{"at":1,"id":"A\n"},{"id":"B","at":2}]},"region":"e\nu"}`,
		`{"region":"eu","data":{"orders":[{"at":1,"id":"A"}]}}`,
		`{"region":"eu","data":{"orders":[]}}`,
		`{"region":"eu","data":{"orders":null}}`,
		`{"region":"eu","data":{}}`,
		`{"region":"eu","data":{"orders":{"at":1}}}`,
		`{"region":"eu","data":{"orders":[{"at":1,"id":"A"},{"id":"B"}]}}`,
		`{"region":"eu","data":{"orders":[{"at":1,"id":"A"},{"at":2,"id":"B"}`,
		`{"region":"eu","data":{"orders":[{"at":1}],"orders":[{"at":2}]}}`,
	), `
0.0 1970-01-01T00:00:01 s order:"A" region="eu" tag="x"
0.1 1970-01-01T00:00:02 s order:"B" region="eu" tag="x"
1.0 1970-01-01T00:00:01 s order:"A\n" region="e\nu"
1.1 1970-01-01T00:00:02 s order:"B" region="e\nu"
2.0 1970-01-01T00:00:01 s order:"A" region="eu"
9.0 1970-01-01T00:00:01 s region="eu"
6 schema: the value of each is not an array
7 no_time: at
8 syntax: ends early`)

	root := jsonSpec("key order=ids[]")
	root.each = "$"
	equalText(t, root.decode(t, `[{"t":1,"ids":["A","B"]},{"t":2,"ids":["C"]},{"t":3}]`, `[]`), `
0.0 1970-01-01T00:00:01 s order:"A" order:"B"
0.1 1970-01-01T00:00:02 s order:"C"
0.2 1970-01-01T00:00:03 s`)
}

// TestJSONEachOrder checks that the order of members, which decides between one pass and two, changes nothing.
func TestJSONEachOrder(t *testing.T) {
	s := jsonSpec("key order=id", "field region=$.region")
	s.each = "orders"
	const region, orders = `"region":"e\u0075"`, `"orders":[{"t":1,"id":"A"},{"t":2,"id":"B\t"}]`
	first, last := s.decode(t, "{"+region+","+orders+"}"), s.decode(t, "{"+orders+","+region+"}")
	if first != last || strings.Count(first, "\n") != 2 {
		t.Errorf("region first:\n%s\nregion last:\n%s", first, last)
	}
}

func TestJSONManyEvents(t *testing.T) {
	s := jsonSpec()
	s.each = "$"
	full := "[" + strings.Repeat(`{"t":1},`, event.RecordEventsMax-1) + `{"t":1}`
	if got := strings.Count(s.decode(t, full+"]"), "\n"); got != event.RecordEventsMax {
		t.Errorf("%d events", got)
	}
	equalText(t, s.decode(t, full+`,{"t":1}]`), "0 too_many_events: more than 65536")
}

// TestJSONBounds feeds small records that would expand into large batches.
func TestJSONBounds(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat(`"k%d",`, 1026), ",")
	args := make([]any, 1026)
	for i := range args {
		args[i] = i
	}
	many = fmt.Sprintf(many, args...)
	equalText(t, jsonSpec("key order=ids[]").decode(t, `{"t":1,"ids":[`+many+`]}`), `0 too_long: an event of more than 1024 values`)

	equalText(t, jsonSpec("key order=ids[]").decode(t, `{"t":1,"ids":[1`+strings.Repeat(",1", 1024)+`]}`), `0.0 1970-01-01T00:00:01 s order:"1"`)
	equalText(t, jsonSpec("key order=ids[]").decode(t, `{"t":1,"ids":[1`+strings.Repeat(",1", 1<<20)+`]}`), `0 too_long: an event of more than 1024 values`)

	s := jsonSpec("key order=$.ids[]", "field x=id")
	s.each = "rows"
	ids, _, _ := strings.Cut(many, `,"k1000"`)
	rows := strings.TrimSuffix(strings.Repeat(`{"t":1},`, 3000), ",")
	equalText(t, s.decode(t, `{"ids":[`+ids+`],"rows":[`+rows+`]}`), `0 too_long: the record expands into more than 2097152 values or 16777216 bytes of text`)
}

func TestJSONProblems(t *testing.T) {
	for _, c := range []struct{ path, each, want string }{
		{"a..b", "", `sources.src.fields.f: path "a..b": expected a name`},
		{"", "", `` /* a constant, no path */},
		{"a.", "", "expected a name"},
		{".a", "", "expected a name"},
		{"a[0]", "", "items.0.id for the first"},
		{`a."b`, "", "the quote is not closed"},
		{`a."b"c`, "", "expected a dot"},
		{"$", "", "the path names the whole record"},
		{strings.Repeat("a.", 16) + "a", "", "more than 16 segments"},
		{"a", "b[]", "sources.src.each: the path of the array may hold member names only"},
		{"$.b[].c", "b", "leads through the array of each"},
	} {
		s := jsonSpec("field f=" + c.path)
		s.each = c.each
		if c.want == "" {
			s.compile(t)
			continue
		}
		if got := s.compileError(t); !strings.Contains(got, c.want) {
			t.Errorf("%s: got %s, want %s", c.path, got, c.want)
		}
	}
}

func TestJSONWideObject(t *testing.T) {
	record, paths := `{"t":1`, []string(nil)
	for i := range 255 {
		record += fmt.Sprintf(`,"member-%d":"%d"`, i, i)
		paths = append(paths, fmt.Sprintf("key k=member-%d", i))
	}
	got := jsonSpec(paths...).decode(t, record+"}")
	if n := strings.Count(got, "k:"); n != 254 || !strings.Contains(got, `k:"254"`) { // "0" is ignored
		t.Errorf("%d keys: %s", n, got)
	}
	wide := jsonSpec(append(paths, "key k=one-more")...)
	if got := wide.compileError(t); !strings.Contains(got, "more than 256 members of one object") {
		t.Error(got)
	}
	full := jsonSpec("field f=id")
	full.time.Field, full.each = "$.t", "rows"
	for _, p := range paths {
		full.paths = append(full.paths, strings.Replace(p, "=", "=$.", 1))
	}
	if got := full.compileError(t); !strings.Contains(got, "sources.src.each: more than 256 members") {
		t.Error(got)
	}
}

// generate writes a random JSON value.
func generate(r *rand.Rand, b *strings.Builder, depth int) {
	space := func() {
		if r.IntN(8) == 0 {
			b.WriteString([]string{" ", "\n", "\t ", "\r\n"}[r.IntN(4)])
		}
	}
	text := func() {
		parts := []string{"a", "b", "longer-text", "é", `\"`, `\\`, `\u0041`, `\ud83d\ude00`, `\ud800`, `\n`, "0", "-", "中"}
		b.WriteByte('"')
		for range r.IntN(5) {
			b.WriteString(parts[r.IntN(len(parts))])
		}
		b.WriteByte('"')
	}
	space()
	defer space()
	kind := r.IntN(9)
	if depth == 6 {
		kind = 0
	}
	switch {
	case kind < 3 && depth > 0:
		b.WriteByte('{')
		space()
		names := []string{"a", "a", "a", "b", "b", "c", "0", "1", "longer-name", `\u0061`, "a.b", "abcdefgh"}
		for i := range 1 + r.IntN(6) {
			if i > 0 {
				b.WriteByte(',')
				space()
			}
			b.WriteString(`"` + names[r.IntN(len(names))] + `"`)
			space()
			b.WriteByte(':')
			generate(r, b, depth-1)
		}
		b.WriteByte('}')
	case kind < 5 && depth > 0:
		b.WriteByte('[')
		space()
		for i := range r.IntN(4) {
			if i > 0 {
				b.WriteByte(',')
			}
			generate(r, b, depth-1)
		}
		b.WriteByte(']')
	case kind < 7:
		text()
	default:
		b.WriteString([]string{"0", "-1.5e3", "123456789012", "true", "false", "null", "1E-2", "0.25"}[r.IntN(8)])
	}
}

var referencePaths = []string{
	"a", "b.c", "a.a.a", "a.0", "a.1.b", "c[]", "a[].b", "a[][].c", "b.a[].c.1", `"a.b"`, `a."0"`, "longer-name.abcdefgh",
	"abcdefgh", "a.longer-name", "b[].a", "b.0.a", "b.1.a",
}

// reference finds the values at a path by way of encoding/json. Where a member repeats, the first counts.
func reference(raw json.RawMessage, path []segment) (found []string) {
	raw = bytes.TrimSpace(raw)
	if len(path) == 0 {
		switch raw[0] {
		case '{', '[', 'n':
			return nil
		case '"':
			var s string
			if json.Unmarshal(raw, &s) != nil {
				panic("no string")
			}
			return []string{s}
		}
		return []string{string(raw)}
	}
	s := path[0]
	switch raw[0] {
	case '[':
		var elems []json.RawMessage
		if err := json.Unmarshal(raw, &elems); err != nil {
			panic(err)
		}
		for i, e := range elems {
			if s.every || i == s.index {
				found = append(found, reference(e, path[1:])...)
			}
		}
	case '{':
		dec := json.NewDecoder(bytes.NewReader(raw))
		if _, err := dec.Token(); err != nil {
			panic(err)
		}
		for dec.More() {
			member, err := dec.Token()
			var v json.RawMessage
			if err != nil || dec.Decode(&v) != nil {
				panic(err)
			}
			if !s.every && member == s.name {
				return reference(v, path[1:])
			}
		}
	}
	return found
}

// TestJSONAgainstReference compares with encoding/json on generated documents, whole and damaged.
func TestJSONAgainstReference(t *testing.T) {
	f := &frame{}
	var wants []want
	for i, p := range referencePaths {
		segs, _, err := parsePath(p)
		if err != nil {
			t.Fatal(err)
		}
		f.slot(p, jobspec.Pos{}, "")
		wants = append(wants, want{segs, i})
	}
	root, err := buildNode(wants)
	if err != nil {
		t.Fatal(err)
	}
	s := scanner{f: f}
	seed := uint64(20261122)
	r := rand.New(rand.NewPCG(seed, 0))
	valid, invalid, compared := 0, 0, 0
	for n := range 60_000 {
		var doc strings.Builder
		generate(r, &doc, 6)
		raw := []byte(doc.String())
		if n%2 == 1 {
			for range 1 + r.IntN(2) {
				at := r.IntN(max(1, len(raw)))
				if len(raw) == 0 {
					break
				}
				switch r.IntN(3) {
				case 0:
					raw = append(raw[:at:at], raw[min(at+1, len(raw)):]...)
				case 1:
					raw[at] = `{}[]",:\ 01-.eutnf`[r.IntN(18)]
				default:
					raw = raw[:at+1]
				}
			}
		}
		b := &event.Batch{}
		b.Add(event.Record{}, raw)
		f.begin(b, b.Records[0])
		s.start(b, b.Records[0])
		got := s.document(root)
		if want := json.Valid(raw); got != want {
			if !want && json.Valid(bytes.Map(controlToSpace, raw)) {
				continue // a raw control character in a string, which is let through
			}
			t.Fatalf("%q: accepted %v, encoding/json %v: %v", raw, got, want, b.Rejects)
		}
		if !got {
			invalid++
			continue
		}
		valid++
		if !utf8.Valid(raw) {
			continue // encoding/json replaces what is not UTF-8; here bytes stay as they are
		}
		for i := range referencePaths {
			var have []string
			if f.vals[i].kind != kindAbsent {
				have = append(have, string(f.vals[i].text(b)))
			}
			for _, m := range f.more {
				if m.slot == i {
					have = append(have, string(m.ref.text(b)))
				}
			}
			want := reference(raw, wants[i].path)
			compared += len(want)
			if fmt.Sprintf("%q", have) != fmt.Sprintf("%q", want) {
				t.Fatalf("seed %d: %s of %s: got %q, want %q", seed, referencePaths[i], raw, have, want)
			}
		}
	}
	if valid < 10_000 || invalid < 5_000 || compared < 10_000 {
		t.Fatalf("too little was compared: %d valid, %d invalid, %d values", valid, invalid, compared)
	}
}

func controlToSpace(r rune) rune {
	if r < ' ' {
		return ' '
	}
	return r
}

func FuzzJSON(f *testing.F) {
	one := jsonSpec("key order=items[].id", "key order=o.id", "int amount/2=o.amount", "field u=o.0.u", "field f=items.0.f")
	each := jsonSpec("key order=id", "key order=$.ids[]", "field r=$.region")
	each.each = "o.rows"
	d1, d2 := one.compile(f), each.compile(f)
	good1 := []byte(`{"t":1,"o":{"id":"A\n","amount":"6.00"},"items":[{"id":"x","f":"y"}]}`)
	good2 := []byte(`{"o":{"rows":[{"t":1,"id":"A"},{"t":2,"id":"\u0042"}]},"region":"e\nu","ids":[1,2]}`)
	for _, s := range [][]byte{good1, good2, []byte(`{"t":1e0,"o":{"amount":12e-2}}`), []byte(`{"\u006f":[{"u":"\ud800\udc00"}]}`), []byte(`[[[`), nil} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		fuzzRecord(t, one, d1, good1, raw)
		fuzzRecord(t, each, d2, good2, raw)
	})
}

// FuzzJSONValid compares what is accepted with encoding/json.
func FuzzJSONValid(f *testing.F) {
	f.Add([]byte(benchRecord(1)))
	f.Add([]byte(`[1,-0.5e+7,{"a":"\u00e9\ud83d\ude00"},[],{},null,true,false,""]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b := &event.Batch{}
		b.Add(event.Record{}, raw)
		s := scanner{f: &frame{}}
		s.f.begin(b, b.Records[0])
		s.start(b, b.Records[0])
		got, want := s.document(nil), json.Valid(raw)
		if got == want {
			return
		}
		if got && bytes.ContainsFunc(raw, func(r rune) bool { return r < ' ' }) || !got && b.Rejects[0].Reason == event.ReasonTooDeep {
			return
		}
		t.Fatalf("%s: accepted %v, encoding/json %v", strconv.Quote(string(raw)), got, want)
	})
}

package decode

import (
	"encoding/json"
	"testing"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

func logfmtSpec() formatSpec {
	return formatSpec{
		format: jobspec.Format{Name: "logfmt"},
		time:   jobspec.Time{Field: "ts", Layout: "rfc3339"},
		step:   jobspec.Step{Field: "msg"},
		paths:  []string{"key order=order.id", "field user=user", "field test=test", "int amount/2=amount"},
	}
}

func TestLogfmt(t *testing.T) {
	const head, at = "ts=2023-11-14T22:13:20Z msg=paid ", "0.0 2023-11-14T22:13:20 paid"
	for name, c := range map[string]struct{ line, want string }{
		"plain":                {head + "order.id=A7 user=bob amount=6.50\n", at + ` order:"A7" amount=650 user="bob"`},
		"any white space":      {"\t" + head + "\torder.id=A7  \x00 user=bob", at + ` order:"A7" user="bob"`},
		"quoted":               {head + `user="b \"o\" \\ \u4e2d\n" order.id="A 7"`, at + ` order:"A 7" user="b \"o\" \\ 中\n"`},
		"bare key":             {head + `test user=bob`, at + ` test="true" user="bob"`},
		"bare key at the end":  {head + `test`, at + ` test="true"`},
		"empty is absent":      {head + `user= order.id="" amount= test=`, at},
		"first one wins":       {head + `user=bob user=eve test test=false order.id= order.id=1`, at + ` order:"1" test="true" user="bob"`},
		"signs in a value":     {head + `user=/a?b=c"d`, at + ` user="/a?b=c\"d"`},
		"unwanted":             {head + `usen=1 "x"=2 user=bob`, `0 syntax: a value without a key`},
		"no key":               {head + `=2`, `0 syntax: a value without a key`},
		"quote in a key":       {head + `us"er"=2`, `0 syntax: a quote in a key`},
		"no end":               {head + `user="bob`, `0 syntax: a quoted value has no end`},
		"escaped end":          {head + `user="bob\"`, `0 syntax: a quoted value has no end`},
		"no space after quote": {head + `user="bob"x=1`, `0 syntax: no space after a quoted value`},
		"empty line":           {"", `0 no_time: ts`},
	} {
		t.Run(name, func(t *testing.T) { equalText(t, logfmtSpec().decode(t, c.line), c.want) })
	}
}

// FuzzLogfmt also checks that any text comes back whole when it is written as a quoted value.
func FuzzLogfmt(f *testing.F) {
	for _, line := range []string{`a=1 user="x" test`, `user="`, `user="\"`, `= "`, `user=1 user=2`} {
		f.Add([]byte(line))
	}
	s := logfmtSpec()
	d := s.compile(f)
	const head = "ts=2023-11-14T22:13:20Z msg=paid user="
	f.Fuzz(func(t *testing.T, text []byte) {
		fuzzRecord(t, s, d, []byte(head+"bob"), text)
		quoted, err := json.Marshal(string(text))
		if err != nil {
			t.Fatal(err)
		}
		var want string // with what is no UTF-8 replaced
		if err := json.Unmarshal(quoted, &want); err != nil || want == "" || len(want) > event.ValueBytesMax {
			return
		}
		b := &event.Batch{}
		b.Add(event.Record{}, append([]byte(head), quoted...))
		d.Decode(b, b.Records[0])
		if len(b.Values) != 1 || string(b.Bytes(&b.Values[0])) != want {
			t.Fatalf("%s became %+v, rejects %+v", quoted, b.Values, b.Rejects)
		}
	})
}

func BenchmarkLogfmt(b *testing.B) {
	s := logfmtSpec()
	s.paths = []string{"key order=order", "key receipt=receipt", "field user=user", "field game=app", "int amount/2=amount"}
	line := `ts=2023-11-14T22:13:20.123Z level=info caller=pay/handler.go:214 msg=paid order=A7-2023-1114-000001 receipt=GPA.3345-1234-5678-90123 user=u-10023456 app=com.example.game amount=6.50 currency=USD channel=google country=SE device="Pixel 7 Pro" os="Android 14" duration=12.3ms`
	benchmark(b, s, line)
}

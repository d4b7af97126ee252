package decode

import (
	stdcsv "encoding/csv"
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

func csvSpec() formatSpec {
	return formatSpec{
		format: jobspec.Format{Name: "csv", Columns: []string{"ts", "order", "user", "amount"}},
		time:   jobspec.Time{Field: "ts", Layout: "unix_s"},
		step:   jobspec.Step{Value: "paid"},
		paths:  []string{"key order=order", "field user=user", "int amount/2=amount"},
	}
}

func TestCSV(t *testing.T) {
	for name, c := range map[string]struct{ line, want string }{
		"plain":            {`1700000000,A7,bob,6.50`, `0.0 2023-11-14T22:13:20 paid order:"A7" amount=650 user="bob"`},
		"line end":         {"1700000000,A7,bob,6.50\r\n", `0.0 2023-11-14T22:13:20 paid order:"A7" amount=650 user="bob"`},
		"quoted":           {`"1700000000","A,7","b""o""b","6.50"`, `0.0 2023-11-14T22:13:20 paid order:"A,7" amount=650 user="b\"o\"b"`},
		"line end inside":  {"1700000000,A7,\"b\nob\",6.50", `0.0 2023-11-14T22:13:20 paid order:"A7" amount=650 user="b\nob"`},
		"empty is absent":  {`1700000000,,"",`, `0.0 2023-11-14T22:13:20 paid`},
		"only quotes":      {`1700000000,"""","""""",1`, `0.0 2023-11-14T22:13:20 paid order:"\"" amount=100 user="\"\""`},
		"header":           {"ts,order,user,amount\n", ``},
		"header in quotes": {"\xef\xbb\xbf\"ts\",\"order\",\"user\",\"amount\"", ``},
		"too few":          {`1700000000,A7,bob`, `0 syntax: 3 columns where the spec names 4`},
		"too many":         {`1700000000,A7,bob,1,2,`, `0 syntax: 6 columns where the spec names 4`},
		"no end":           {`1700000000,A7,"bob,1`, `0 syntax: a quoted value has no end, column 3`},
		"after the quote":  {`1700000000,A7,"bob" ,1`, `0 syntax: a quoted value has no end, column 3`},
		"bare quote":       {`1700000000,A7,b"ob",1`, `0 syntax: a quote or line end in a value without quotes, column 3`},
		"two lines":        {"1700000000,A7,bob\n1700000000,A7,bob,1", `0 syntax: a quote or line end in a value without quotes, column 3`},
		"empty":            {"", `0 syntax: 1 columns where the spec names 4`},
		"bad number":       {`1700000000,A7,bob,6.505`, `0 bad_field: amount: "6.505"`},
	} {
		t.Run(name, func(t *testing.T) { equalText(t, csvSpec().decode(t, c.line), c.want) })
	}
	semicolons := csvSpec()
	semicolons.format.Delimiter = ";"
	equalText(t, semicolons.decode(t, `1700000000;A,7;bob;6.50`), `0.0 2023-11-14T22:13:20 paid order:"A,7" amount=650 user="bob"`)
}

func TestCSVProblems(t *testing.T) {
	for want, edit := range map[string]func(*formatSpec){
		`there is no column "usr" (the columns are ts order user amount)`: func(s *formatSpec) { s.paths = []string{"field user=usr"} },
		`"\"" is no delimiter`:                      func(s *formatSpec) { s.format.Delimiter = `"` },
		`the format needs the names of the columns`: func(s *formatSpec) { s.format.Columns = nil },
	} {
		s := csvSpec()
		edit(&s)
		if got := s.compileError(t); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// FuzzCSV compares with the standard library's reader.
func FuzzCSV(f *testing.F) {
	for _, line := range []string{`1,A7,bob,6.50`, `1,"A,7","b""ob",`, `1,"`, `1,,"",""""`, "1,a\"b,c,d", "\"1\"\n,2,3,4"} {
		f.Add([]byte(line))
	}
	s := csvSpec()
	s.paths = []string{"field a=order", "field b=user", "field c=amount"}
	d := s.compile(f)
	f.Fuzz(func(t *testing.T, line []byte) {
		fuzzRecord(t, s, d, []byte("1,x,y,z"), line)
		if strings.ContainsAny(string(line), "\r\n\ufeff") || len(line) == 0 || len(line) > event.ValueBytesMax {
			return // the library reads several lines, and changes line ends
		}
		b := &event.Batch{}
		b.Add(event.Record{}, append([]byte("1,"), line...))
		d.Decode(b, b.Records[0])
		r := stdcsv.NewReader(strings.NewReader("1," + string(line)))
		want, err := r.Read()
		if err != nil || len(want) != 4 {
			if len(b.Rejects) != 1 || b.Rejects[0].Reason != event.ReasonSyntax {
				t.Fatalf("%q: the library finds %q, %v; no syntax reject here", line, want, err)
			}
			return
		}
		if len(b.Events) != 1 {
			t.Fatalf("%q: %+v; the library finds %q", line, b.Rejects, want)
		}
		got := make([]string, 3)
		for _, v := range b.ValuesOf(0) {
			got[v.ID] = string(b.Bytes(&v))
		}
		if strings.Join(got, "\n") != strings.Join(want[1:], "\n") {
			t.Fatalf("%q: got %q, the library finds %q", line, got, want)
		}
	})
}

func BenchmarkCSV(b *testing.B) {
	s := csvSpec()
	s.format.Columns = []string{"ts", "event", "order", "receipt", "user", "app", "amount", "currency", "channel", "country", "device", "os", "version", "ip", "note"}
	s.step = jobspec.Step{Field: "event"}
	s.paths = []string{"key order=order", "key receipt=receipt", "field user=user", "field game=app", "int amount/2=amount"}
	b.Run("plain", func(b *testing.B) {
		benchmark(b, s, `1700000000,paid,A7-2023-1114-000001,GPA.3345-1234-5678-90123,u-10023456,com.example.game,6.50,USD,google,SE,Pixel 7 Pro,Android 14,1.22.333,192.0.2.17,first purchase of the season`)
	})
	b.Run("quoted", func(b *testing.B) {
		benchmark(b, s, `"1700000000","paid","A7-2023-1114-000001","GPA.3345-1234-5678-90123","u-10023456","com.example.game","6.50","USD","google","SE","Pixel 7 Pro","Android 14","1.22.333","192.0.2.17","first ""purchase"" of the season"`)
	})
}

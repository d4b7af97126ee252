package decode

import (
	"fmt"
	"math/big"
	"math/rand"
	"os"
	"strings"
	"testing"
	"time"

	avrolib "github.com/hamba/avro/v2"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

func paymentSchema(t testing.TB) avrolib.Schema {
	t.Helper()
	text, err := os.ReadFile("testdata/payment.avsc")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := avrolib.ParseBytesWithCache(text, "", &avrolib.SchemaCache{})
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

type avroObject = map[string]any

// payment returns a datum of testdata/payment.avsc, changed by edit.
func payment(edit func(p avroObject)) avroObject {
	p := avroObject{
		"ts": time.UnixMilli(1700000000123).UTC(), "step": "paid", "note": nil, "flags": []any{}, "score": 1.5, "ratio": float32(0.1), "test": true,
		"amount": big.NewRat(650, 100), "fee": big.NewRat(-5, 1000), "digest": [4]byte{'a', 'b', 'c', 'd'},
		"order":   avroObject{"id": "A7", "count": 2, "parent": nil},
		"method":  avroObject{"pay.Card": avroObject{"number": "4111"}},
		"items":   []any{avroObject{"sku": "s1", "price": int64(100)}, avroObject{"sku": "s2", "price": int64(-3)}},
		"labels":  avroObject{"game": "chess"},
		"nothing": []any{}, "nested": []any{},
	}
	if edit != nil {
		edit(p)
	}
	return p
}

func encodeAvro(t testing.TB, datum any) string {
	t.Helper()
	raw, err := avrolib.Marshal(paymentSchema(t), datum)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func avroSpec(paths ...string) formatSpec {
	return formatSpec{
		format: jobspec.Format{Name: "avro", Schema: "payment.avsc"},
		time:   jobspec.Time{Field: "ts"},
		step:   jobspec.Step{Field: "step"},
		paths:  paths,
	}
}

func TestAvro(t *testing.T) {
	const head = "0.0 2023-11-14T22:13:20.123 paid"
	record := encodeAvro(t, payment(nil))
	for path, want := range map[string]string{
		"key order=order.id":            ` order:"A7"`,
		"int n=order.count":             ` n=2`,
		"field absent=order.parent.id":  ``,
		"field absent=note":             ``,
		"field score=score":             ` score="1.5"`,
		"field ratio=ratio":             ` ratio="0.1"`,
		"field test=test":               ` test="true"`,
		"field amount=amount":           ` amount="6.50"`,
		"int amount/2=amount":           ` amount=650`,
		"field fee=fee":                 ` fee="-0.0050"`,
		"field digest=digest":           ` digest="abcd"`,
		"field card=method.number":      ` card="4111"`,
		"field iban=method.iban":        ``,
		"key sku=items[].sku":           ` sku:"s1" sku:"s2"`,
		"field sku=items[].sku":         ` sku="s1"`,
		"int second=items.1.price":      ` second=-3`,
		"int third=items.2.price":       ``,
		"field game=labels.game":        ` game="chess"`,
		`field game=labels."game.name"`: ``,
		"int ts=ts":                     ` ts=1700000000123`,
	} {
		t.Run(path, func(t *testing.T) { equalText(t, avroSpec(path).decode(t, record), head+want) })
	}
	all := avroSpec("key order=order.id", "key order=order.parent.id", "key order=order.parent.parent.id", "key sku=items[].sku", "int first=items.0.price")
	equalText(t, all.decode(t, encodeAvro(t, payment(func(p avroObject) {
		grand := avroObject{"id": "A5", "count": 0, "parent": nil}
		parent := avroObject{"id": "A6", "count": 1, "parent": avroObject{"pay.Order": grand}}
		p["order"] = avroObject{"id": "A7", "count": 2, "parent": avroObject{"pay.Order": parent}}
	}))), head+` order:"A7" order:"A6" order:"A5" sku:"s1" sku:"s2" first=100`)
}

func TestAvroEach(t *testing.T) {
	s := avroSpec("key sku=sku", "key order=$.order.id", "int price=price", "field game=$.labels.game")
	s.each, s.time.Field, s.step.Field = "items", "$.ts", "$.step"
	equalText(t, s.decode(t, encodeAvro(t, payment(nil))), `
0.0 2023-11-14T22:13:20.123 paid order:"A7" sku:"s1" game="chess" price=100
0.1 2023-11-14T22:13:20.123 paid order:"A7" sku:"s2" game="chess" price=-3`)

	d, b := s.compile(t), &event.Batch{}
	b.Add(event.Record{}, []byte(encodeAvro(t, payment(func(p avroObject) { p["items"] = []any{} }))))
	d.Decode(b, b.Records[0])
	if len(b.Events) != 0 || len(b.Rejects) != 0 || b.Skipped != 1 {
		t.Errorf("an empty array: %d events, rejects %v, %d skipped; want one skipped", len(b.Events), b.Rejects, b.Skipped)
	}
}

func TestAvroConfluent(t *testing.T) {
	record := encodeAvro(t, payment(nil))
	s := avroSpec("key order=order.id")
	equalText(t, s.decode(t, "\x00\x00\x00\x00\x07"+record),
		`0 syntax: the record ends early; if it starts with a schema id, set confluent: true`)
	s.format.Confluent = true
	equalText(t, s.decode(t, "\x00\x00\x00\x00\x07"+record, "\x02x"+record, "\x00"), `
0.0 2023-11-14T22:13:20.123 paid order:"A7"
1 schema: the record has no Confluent header
2 schema: the record has no Confluent header`)
}

// inlineAvro reads records of a time and a field x.
func inlineAvro(typ string, paths ...string) formatSpec {
	s := avroSpec(paths...)
	s.format.Schema = `{"type":"record","name":"R","fields":[{"name":"ts","type":{"type":"long","logicalType":"timestamp-micros"}},{"name":"x","type":` + typ + `}]}`
	s.step = jobspec.Step{Value: "s"}
	return s
}

func TestAvroHostile(t *testing.T) {
	const ok, nodes = "0.0 1970-01-01T00:00:00.000001 s", `{"type":"record","name":"N","fields":[{"name":"next","type":["null","N"]}]}`
	for name, c := range map[string]struct{ typ, path, x, want string }{
		"cut":                    {`"string"`, "field x=x", "\x08ab", "0 syntax: the record ends early"},
		"longer":                 {`"string"`, "field x=x", "\x02ab", "0 syntax: 1 bytes after the end of the datum"},
		"negative length":        {`"string"`, "field x=x", "\x01ab", "0 syntax: the record ends early"},
		"endless number":         {`"long"`, "int x=x", strings.Repeat("\xff", 20), "0 syntax: a number of more than 64 bits"},
		"least number":           {`"long"`, "int x=x", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", ok + " x=-9223372036854775808"},
		"int of 64 bits":         {`"int"`, "int x=x", "\xff\xff\xff\xff\x7f", "0 syntax: an int of more than 32 bits"},
		"boolean of 2":           {`"boolean"`, "field x=x", "\x02", "0 syntax: a boolean that is neither 0 nor 1"},
		"enum":                   {`{"type":"enum","name":"E","symbols":["a","b"]}`, "field x=x", "\x04", "0 syntax: symbol 2 of an enum of 2"},
		"union":                  {`["null","string"]`, "field x=x", "\x03", "0 syntax: branch -2 of a union of 2"},
		"count beyond the bytes": {`{"type":"array","items":"int"}`, "field x=x[]", "\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00", "0 syntax: the record ends early"},
		"endless nulls":          {`{"type":"array","items":"null"}`, "", "\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00", ok},
		"least count":            {`{"type":"array","items":"int"}`, "field x=x[]", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02", "0 syntax: the record ends early"},
		"block size":             {`{"type":"array","items":"int"}`, "key x=x[]", "\x03\x04\x02\x04\x00", ok + ` x:"1" x:"2"`},
		"wrong block size":       {`{"type":"array","items":"int"}`, "key x=x[]", "\x03\x06\x02\x04\x00", "0 syntax: a block does not end where it says"},
		"block size skipped":     {`{"type":"array","items":"int"}`, "", "\x03\x04\xff\xff\x00", ok},
		"block beyond":           {`{"type":"array","items":"int"}`, "", "\x03\x7e\x02\x04\x00", "0 syntax: the record ends early"},
		"map key twice":          {`{"type":"map","values":"string"}`, "field x=x.a", "\x04\x02a\x02b\x02a\x02c\x00", ok + ` x="b"`},
		"deep":                   {nodes, "", strings.Repeat("\x02", 200) + "\x00", "0 too_deep:"},
		"deep enough":            {nodes, "", strings.Repeat("\x02", 62) + "\x00", ok},
		"large decimal":          {`{"type":"bytes","logicalType":"decimal","precision":30,"scale":2}`, "int x/2=x", "\x12\x01\x00\x00\x00\x00\x00\x00\x00\x00", "0 bad_field: a decimal of more than 64 bits"},
		"padded decimal":         {`{"type":"bytes","logicalType":"decimal","precision":30,"scale":2}`, "int x/2=x", "\x12\xff\xff\xff\xff\xff\xff\xff\xff\x00", ok + " x=-256"},
		"empty decimal":          {`{"type":"bytes","logicalType":"decimal","precision":30,"scale":2}`, "int x/2=x", "\x00", ok + " x=0"},
		"many values":            {`{"type":"array","items":"int"}`, "key x=x[]", "\xc0\x9a\x0c" + strings.Repeat("\x00", 100000) + "\x00", "0 too_long: an event of more than 1024 values"},
	} {
		t.Run(name, func(t *testing.T) {
			s := inlineAvro(c.typ, c.path)
			if c.path == "" {
				s.paths = nil
			}
			equalText(t, s.decode(t, "\x02"+c.x), c.want)
		})
	}
	empty := inlineAvro(`{"type":"array","items":{"type":"record","name":"E","fields":[]}}`)
	empty.time.Field, empty.each = "$.ts", "x"
	equalText(t, empty.decode(t, "\x02\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00"), "0 too_many_events: more than 65536")
}

func TestAvroProblems(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*formatSpec)
		want string
	}{
		"no field":        {func(s *formatSpec) { s.paths = []string{"field x=order.idd"} }, "the record Order has no such field (it has id count parent)"},
		"no nested field": {func(s *formatSpec) { s.paths = []string{"field x=method.nbr"} }, "the record Card has no such field (it has number)"},
		"record":          {func(s *formatSpec) { s.paths = []string{"field x=order"} }, "the path ends at the record Order"},
		"array":           {func(s *formatSpec) { s.paths = []string{"field x=items"} }, "the path ends at an array (add []"},
		"name in array":   {func(s *formatSpec) { s.paths = []string{"field x=items.sku"} }, `"sku" stands where an array is`},
		"map":             {func(s *formatSpec) { s.paths = []string{"field x=labels"} }, "the path ends at a map"},
		"map elements":    {func(s *formatSpec) { s.paths = []string{"field x=labels[]"} }, "[] stands where a map is"},
		"into an enum":    {func(s *formatSpec) { s.paths = []string{"field x=step.x"} }, "the path leads into a value of type enum"},
		"no array":        {func(s *formatSpec) { s.each = "item" }, `the schema has no array "item"`},
		"each record":     {func(s *formatSpec) { s.each = "order" }, `the schema has no array "order"`},
		"each scalar":     {func(s *formatSpec) { s.each = "step" }, `the schema has no array "step"`},
		"each element":    {func(s *formatSpec) { s.each = "items[]" }, `the path of the array may hold names only`},
		"through each":    {func(s *formatSpec) { s.each, s.paths = "items", []string{"field x=$.items[].sku"} }, "leads through the array of each"},
		"no time":         {func(s *formatSpec) { s.time.Field = "order.count" }, "the time needs a layout"},
		"no file":         {func(s *formatSpec) { s.format.Schema = "none.avsc" }, "read the schema: open"},
		"no schema":       {func(s *formatSpec) { s.format.Schema = " " }, "the format needs a schema"},
		"bad schema":      {func(s *formatSpec) { s.format.Schema = `{"type":"record"}` }, "parse the schema: avro:"},
	} {
		t.Run(name, func(t *testing.T) {
			s := avroSpec("key order=order.id")
			c.edit(&s)
			if got := s.compileError(t); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Random data, encoded by the library, come back as the values that were put in.
func TestAvroRandom(t *testing.T) {
	s := avroSpec("key order=order.id", "key sku=items[].sku", "int price=items.1.price", "field note=note", "field card=method.number",
		"field iban=method.iban", "field game=labels.game", "int count=order.count")
	rng := rand.New(rand.NewSource(1))
	text := func() string { return fmt.Sprintf("t%x", rng.Int63())[:1+rng.Intn(12)] }
	for range 300 {
		id, count, at := text(), rng.Int31()-1<<30, time.UnixMilli(rng.Int63n(4e12)).UTC()
		want := map[string]string{"count": fmt.Sprint(count)}
		var skus, distinct []string
		record := encodeAvro(t, payment(func(p avroObject) {
			p["ts"] = at
			p["order"] = avroObject{"id": id, "count": int(count), "parent": nil}
			var items []any
			for i := range rng.Intn(5) {
				sku, price := text(), rng.Int63()-1<<62
				items = append(items, avroObject{"sku": sku, "price": price})
				skus = append(skus, sku)
				if i == 1 {
					want["price"] = fmt.Sprint(price)
				}
			}
			p["items"] = items
			labels := avroObject{}
			for range rng.Intn(4) {
				labels[text()] = text()
			}
			if rng.Intn(2) == 0 {
				want["game"] = text()
				labels["game"] = want["game"]
			}
			p["labels"] = labels
			if rng.Intn(2) == 0 {
				want["note"] = text()
				p["note"] = want["note"]
			}
			if rng.Intn(2) == 0 {
				want["iban"] = text()
				p["method"] = avroObject{"pay.Wire": avroObject{"iban": want["iban"], "bank": text()}}
			} else {
				want["card"] = text()
				p["method"] = avroObject{"pay.Card": avroObject{"number": want["card"]}}
			}
			p["nested"] = []any{[]any{1, 2}, []any{}, []any{rng.Int()}}
		}))
		var line strings.Builder
		fmt.Fprintf(&line, "0.0 %s paid order:%q", at.Format("2006-01-02T15:04:05.999999"), id)
		for _, sku := range skus {
			if !strings.Contains(strings.Join(distinct, " ")+" ", sku+" ") {
				distinct = append(distinct, sku)
				fmt.Fprintf(&line, " sku:%q", sku)
			}
		}
		for _, name := range []string{"card", "count", "game", "iban", "note", "price"} {
			if v, ok := want[name]; ok && (name == "count" || name == "price") {
				fmt.Fprintf(&line, " %s=%s", name, v)
			} else if ok {
				fmt.Fprintf(&line, " %s=%q", name, v)
			}
		}
		equalText(t, s.decode(t, record), line.String())
	}
}

// FuzzAvro also checks that what the library reads and writes back is of the schema here, too.
func FuzzAvro(f *testing.F) {
	good := encodeAvro(f, payment(nil))
	f.Add([]byte(good))
	f.Add([]byte(good[:len(good)/2]))
	f.Add([]byte(encodeAvro(f, payment(func(p avroObject) { p["items"] = []any{} }))))
	s := avroSpec("key order=order.id", "key sku=items[].sku", "int price=items.1.price", "field note=note", "field card=method.number",
		"field fee=fee", "field game=labels.game", "field test=test", "field score=score")
	schema := paymentSchema(f)
	library := avrolib.Config{MaxSliceAllocSize: 1 << 16}.Freeze() // without, it trusts any count
	d := s.compile(f)
	each := avroSpec("key sku=sku", "key order=$.order.id")
	each.each, each.time.Field, each.step.Field = "items", "$.ts", "$.step"
	de := each.compile(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		fuzzRecord(t, s, d, []byte(good), raw)
		fuzzRecord(t, each, de, []byte(good), raw)
		b := &event.Batch{}
		b.Add(event.Record{}, raw)
		d.Decode(b, b.Records[0])
		var datum any
		if library.Unmarshal(schema, raw, &datum) != nil {
			return
		}
		if again, err := avrolib.Marshal(schema, datum); err == nil && string(again) == string(raw) {
			if len(b.Rejects) > 0 && b.Rejects[0].Reason == event.ReasonSyntax {
				t.Fatalf("the library reads %v; here: %s", datum, b.Rejects[0].Detail)
			}
		}
	})
}

func BenchmarkAvro(b *testing.B) {
	record := encodeAvro(b, payment(func(p avroObject) {
		p["order"] = avroObject{"id": "A7-2023-1114-000001", "count": 2, "parent": nil}
		p["note"] = "first purchase of the season"
		p["labels"] = avroObject{"game": "com.example.game", "channel": "google", "country": "SE", "device": "Pixel 7 Pro", "user": "u-10023456"}
	}))
	b.Run("fields", func(b *testing.B) {
		benchmark(b, avroSpec("key order=order.id", "field user=labels.user", "field game=labels.game", "int amount/2=amount", "field card=method.number"), record)
	})
	b.Run("each", func(b *testing.B) {
		s := avroSpec("key sku=sku", "key order=$.order.id", "int price=price")
		s.each, s.time.Field, s.step.Field = "items", "$.ts", "$.step"
		benchmark(b, s, record)
	})
}

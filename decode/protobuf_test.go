package decode

import (
	"fmt"
	"math/rand"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// paymentFile compiles testdata/payment.proto.
func paymentFile(t testing.TB) protoreflect.FileDescriptor {
	t.Helper()
	c := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{"testdata"}})}
	files, err := c.Compile(t.Context(), "payment.proto")
	if err != nil {
		t.Fatal(err)
	}
	return files[0]
}

// The descriptor set that the tests read is the one of the proto file.
func TestProtobufDescriptorSet(t *testing.T) {
	file := paymentFile(t)
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{
		protodesc.ToFileDescriptorProto(timestamppb.File_google_protobuf_timestamp_proto), protodesc.ToFileDescriptorProto(file),
	}}
	want, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("testdata/payment.pb")
	if err != nil || !slices.Equal(got, want) {
		if os.Getenv("REWRITE") != "" {
			if err := os.WriteFile("testdata/payment.pb", want, 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Fatalf("testdata/payment.pb is not of testdata/payment.proto (%v); run this test with REWRITE=1", err)
	}
}

// encodeProto encodes a message of testdata/payment.proto that is given as text.
func encodeProto(t testing.TB, name, text string) string {
	t.Helper()
	m := dynamicpb.NewMessage(paymentFile(t).Messages().ByName(protoreflect.Name(name)))
	if err := (prototext.UnmarshalOptions{}).Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

const paymentText = `ts {seconds: 1700000000 nanos: 123456789} step: PAID order {id: "A7" parent {id: "A6"}}
	amount: -650 ratio: 0.25 weight: 1e30 test: true items {sku: "s1" price: 100} items {sku: "s2" price: -3}
	labels {key: "game" value: "chess"} labels {key: "app" value: "x"} by_number {key: -7 value {sku: "n"}} by_flag {key: true value: 9}
	numbers: [3, -4, 5] words: ["a", "b"] steps: [PAID, ORDERED] s32: -5 s64: -6 f32: 7 f64: 8 sf32: -9 sf64: -10 u32: 4294967295 u64: 18446744073709551615
	digest: "abcd" card: "4111" old {x: "g"}`

func protoSpec(paths ...string) formatSpec {
	return formatSpec{
		format: jobspec.Format{Name: "protobuf", Schema: "payment.pb", Message: "pay.Payment"},
		time:   jobspec.Time{Field: "ts"},
		step:   jobspec.Step{Field: "step"},
		paths:  paths,
	}
}

func TestProtobuf(t *testing.T) {
	const head = "0.0 2023-11-14T22:13:20.123456 PAID"
	record := encodeProto(t, "Payment", paymentText)
	for path, want := range map[string]string{
		"key order=order.id":               ` order:"A7"`,
		"key order=order.parent.id":        ` order:"A6"`,
		"key order=order.parent.parent.id": ``,
		"int amount=amount":                ` amount=-650`,
		"field ratio=ratio":                ` ratio="0.25"`,
		"field weight=weight":              ` weight="1e+30"`,
		"field test=test":                  ` test="true"`,
		"key sku=items[].sku":              ` sku:"s1" sku:"s2"`,
		"field sku=items[].sku":            ` sku="s1"`,
		"int price=items.1.price":          ` price=-3`,
		"int price=items.2.price":          ``,
		"field game=labels.game":           ` game="chess"`,
		"field none=labels.none":           ``,
		"field n=by_number.-7.sku":         ` n="n"`,
		"int flag=by_flag.true":            ` flag=9`,
		"int flag=by_flag.false":           ``,
		"key n=numbers[]":                  ` n:"3" n:"-4" n:"5"`,
		"int n=numbers.1":                  ` n=-4`,
		"key w=words[]":                    ` w:"a" w:"b"`,
		"key s=steps[]":                    ` s:"PAID" s:"ORDERED"`,
		"int x=s32":                        ` x=-5`,
		"int x=s64":                        ` x=-6`,
		"int x=f32":                        ` x=7`,
		"int x=f64":                        ` x=8`,
		"int x=sf32":                       ` x=-9`,
		"int x=sf64":                       ` x=-10`,
		"int x=u32":                        ` x=4294967295`,
		"field x=u64":                      ` x="18446744073709551615"`,
		"field x=digest":                   ` x="abcd"`,
		"field x=card":                     ` x="4111"`,
		"field x=iban":                     ``,
		"int x=zero":                       ` x=0`,
		"field x=off":                      ` x="false"`,
		"field x=first":                    ` x="ORDERED"`,
		"int x=maybe":                      ``,
		"field x=empty":                    ``,
		"int x=order.count":                ` x=0`,
		"int x=order.parent.parent.count":  ``,
		"int x=ts":                         ` x=1700000000123456`,
		"int x=created.seconds":            ``,
	} {
		t.Run(path, func(t *testing.T) { equalText(t, protoSpec(path).decode(t, record), head+want) })
	}
}

func TestProtobufEach(t *testing.T) {
	s := protoSpec("key sku=sku", "key order=$.order.id", "int price=price", "field game=$.labels.game")
	s.each, s.time.Field, s.step.Field = "items", "$.ts", "$.step"
	equalText(t, s.decode(t, encodeProto(t, "Payment", paymentText)), `
0.0 2023-11-14T22:13:20.123456 PAID order:"A7" sku:"s1" game="chess" price=100
0.1 2023-11-14T22:13:20.123456 PAID order:"A7" sku:"s2" game="chess" price=-3`)

	d, b := s.compile(t), &event.Batch{}
	b.Add(event.Record{}, []byte(encodeProto(t, "Payment", `ts {seconds: 1}`)))
	d.Decode(b, b.Records[0])
	if len(b.Events) != 0 || len(b.Rejects) != 0 || b.Skipped != 1 {
		t.Errorf("an empty array: %d events, rejects %v, %d skipped; want one skipped", len(b.Events), b.Rejects, b.Skipped)
	}
}

func TestProtobufConfluent(t *testing.T) {
	record := encodeProto(t, "Payment", paymentText)
	s := protoSpec("key order=order.id")
	s.format.Confluent = true
	const id = "\x00\x00\x00\x00\x07"
	equalText(t, s.decode(t, id+"\x00"+record, id+"\x02\x00"+record, id+"\x02\x02"+record, id+"\x04\x00\x00"+record, id, record), `
0.0 2023-11-14T22:13:20.123456 PAID order:"A7"
1.0 2023-11-14T22:13:20.123456 PAID order:"A7"
2 schema: the record is another message of the file
3 schema: the record is another message of the file
4 schema: the record ends early
5 schema: the record has no Confluent header`)
	s.format.Message, s.time = "pay.Order.Inner", jobspec.Time{Field: "at", Layout: "unix_s"}
	s.step, s.paths = jobspec.Step{Value: "s"}, []string{"field x=at"}
	equalText(t, s.decode(t, id+"\x04\x02\x00\x08\x05"), `0.0 1970-01-01T00:00:05 s x="5"`)
}

func TestProtobufWire(t *testing.T) {
	tag := func(number, typ int) string {
		return string(protowire.AppendTag(nil, protowire.Number(number), protowire.Type(typ)))
	}
	field := func(number int, p string) string {
		return tag(number, wireBytes) + string(protowire.AppendBytes(nil, []byte(p)))
	}
	head, at := field(1, "\x08\x01")+tag(2, 0)+"\x01", "0.0 1970-01-01T00:00:01 PAID"
	order := func(p string) string { return field(3, p) }
	for name, c := range map[string]struct{ path, x, want string }{
		"last one wins":          {"key x=order.id", order(field(1, "a")) + order(field(1, "b")), at + ` x:"b"`},
		"in pieces":              {"int x=order.count", order(tag(2, 0)+"\x05") + order(field(1, "b")), at + ` x=5`},
		"unpacked":               {"key x=numbers[]", tag(20, 0) + "\x03" + field(20, "\x04\x05") + tag(20, 0) + "\x06", at + ` x:"3" x:"4" x:"5" x:"6"`},
		"unknown enum":           {"key x=steps[]", field(22, "\x01\x63"), at + ` x:"PAID" x:"99"`},
		"negative enum":          {"key x=steps[]", field(22, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), at + ` x:"LOST"`},
		"another wire type":      {"int x=amount", tag(4, wireBytes) + "\x01a" + tag(4, wire64) + "12345678", at + ` x=0`},
		"value before key":       {"field x=labels.a", field(10, field(2, "v")+field(1, "a")), at + ` x="v"`},
		"map key twice":          {"field x=labels.a", field(10, field(1, "a")+field(2, "v")) + field(10, field(1, "a")+field(2, "w")), at + ` x="w"`},
		"map entry of zeros":     {"field x=by_flag.false", field(12, ""), at + ` x="0"`},
		"map key of zero":        {"field x=by_number.0.sku", field(11, field(2, field(1, "v"))), at + ` x="v"`},
		"unknown fields":         {"int x=amount", tag(4, 0) + "\x05" + tag(99999, 0) + "\x05" + tag(536870911, wire32) + "1234", at + ` x=5`},
		"group skipped":          {"int x=amount", tag(70, wireStart) + tag(71, wireStart) + field(1, "x") + tag(71, wireEnd) + tag(70, wireEnd), at + ` x=0`},
		"group without end":      {"int x=amount", tag(70, wireStart) + field(1, "x"), "0 syntax: the record ends early"},
		"end without group":      {"int x=amount", tag(70, wireEnd), "0 syntax: wire type 4"},
		"group ends as another":  {"int x=amount", tag(70, wireStart) + tag(71, wireEnd), "0 syntax: a group ends as another"},
		"deep groups":            {"int x=amount", strings.Repeat(tag(70, wireStart), 100), "0 too_deep:"},
		"field 0":                {"int x=amount", "\x00\x01", "0 syntax: field number 0"},
		"field too large":        {"int x=amount", string(protowire.AppendVarint(nil, 1<<32)) + "\x01", "0 syntax: field number 536870912"},
		"wire type 6":            {"int x=amount", "\x26\x01", "0 syntax: wire type 6"},
		"endless number":         {"int x=amount", tag(4, 0) + strings.Repeat("\xff", 20), "0 syntax: a number of more than 64 bits"},
		"length beyond":          {"key x=order.id", tag(3, 2) + "\x7f" + field(1, "a"), "0 syntax: the record ends early"},
		"huge length":            {"key x=order.id", tag(3, 2) + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "0 syntax: the record ends early"},
		"inner beyond its outer": {"key x=order.id", order("\x0a\x05ab") + field(99, "abcdef"), "0 syntax: the record ends early"},
		"inner skips beyond":     {"key x=order.id", order("\x7a\x05ab") + field(99, "abcdef"), "0 syntax: a field ends after its message"},
		"number beyond":          {"key x=numbers[]", field(20, "\x80") + "\x01", "0 syntax: a packed number ends after its array"},
		"bad timestamp":          {"int x=amount", field(1, "\x10\xff\xff\xff\xff\x0f"), "0 syntax: a timestamp out of range"},
		"cut timestamp":          {"int x=amount", field(1, "\x08"), "0 syntax: the record ends early"},
	} {
		t.Run(name, func(t *testing.T) { equalText(t, protoSpec(c.path).decode(t, head+c.x), c.want) })
	}
	var deep string
	for range 15 {
		deep = field(3, deep)
	}
	equalText(t, protoSpec("key x="+strings.Repeat("order.", 1)+strings.Repeat("parent.", 13)+"id").decode(t, head+deep), at)
}

func TestProtobufProblems(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*formatSpec)
		want string
	}{
		"no field":      {func(s *formatSpec) { s.paths = []string{"field x=order.idd"} }, "the message Order has no such field (it has id count parent)"},
		"message":       {func(s *formatSpec) { s.paths = []string{"field x=order"} }, "the path ends at the message Order"},
		"record":        {func(s *formatSpec) { s.paths = []string{"field x=$"} }, "the path ends at a message"},
		"array":         {func(s *formatSpec) { s.paths = []string{"field x=items"} }, "the path ends at a repeated field (add []"},
		"name in array": {func(s *formatSpec) { s.paths = []string{"field x=items.sku"} }, `"sku" stands where a repeated field is`},
		"map":           {func(s *formatSpec) { s.paths = []string{"field x=labels"} }, "the path ends at a map"},
		"map elements":  {func(s *formatSpec) { s.paths = []string{"field x=labels[]"} }, "[] stands where a map is"},
		"into a string": {func(s *formatSpec) { s.paths = []string{"field x=card.x"} }, "the path leads into a value of type string"},
		"into a time":   {func(s *formatSpec) { s.paths = []string{"field x=ts.seconds"} }, "leads into a value of type message"},
		"group":         {func(s *formatSpec) { s.paths = []string{"field x=old.x"} }, "groups are not supported"},
		"no array":      {func(s *formatSpec) { s.each = "item" }, `the message has no repeated message "item"`},
		"each scalars":  {func(s *formatSpec) { s.each = "numbers" }, `the message has no repeated message "numbers"`},
		"each record":   {func(s *formatSpec) { s.each = "$" }, `the message has no repeated message "$"`},
		"each element":  {func(s *formatSpec) { s.each, s.paths = "items", []string{"field x=skew"} }, `the message Item has no such field`},
		"layout":        {func(s *formatSpec) { s.time.Layout = "rfc3339" }, "a google.protobuf.Timestamp has no layout"},
		"no layout":     {func(s *formatSpec) { s.time.Field = "amount" }, "the time needs a layout"},
		"no file":       {func(s *formatSpec) { s.format.Schema = "none.pb" }, "read the descriptor set: open"},
		"no set":        {func(s *formatSpec) { s.format.Schema = "access.log" }, "the file is no FileDescriptorSet"},
		"no message":    {func(s *formatSpec) { s.format.Message = "pay.Paiment" }, `the descriptor set has no message "pay.Paiment"; it has google.protobuf.Timestamp pay.Payment pay.Order`},
		"an enum":       {func(s *formatSpec) { s.format.Message = "pay.Step" }, `the descriptor set has no message "pay.Step"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := protoSpec("key order=order.id")
			c.edit(&s)
			if got := s.compileError(t); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Random messages, encoded by the library, come back as the values that were put in.
func TestProtobufRandom(t *testing.T) {
	s := protoSpec("key order=order.id", "key sku=items[].sku", "int price=items.1.price", "field game=labels.game", "int count=order.count", "key n=numbers[]")
	rng := rand.New(rand.NewSource(1))
	for i := range 200 {
		var text, skus, numbers strings.Builder
		at := time.UnixMicro(rng.Int63n(4e15)).UTC()
		count, price := rng.Int31()-1<<30, rng.Int63()-1<<62
		fmt.Fprintf(&text, "ts {seconds: %d nanos: %d} step: DELIVERED order {id: \"o%d\" count: %d}", at.Unix(), at.Nanosecond(), i, count)
		items := rng.Intn(4)
		for k := range items {
			fmt.Fprintf(&text, " items {sku: \"s%d\" price: %d}", k, price)
			fmt.Fprintf(&skus, " sku:\"s%d\"", k)
		}
		seen := map[int32]bool{0: true} // a key "0" is ignored, and one that repeats counts once
		for range rng.Intn(4) {
			n := rng.Int31n(5) - 2
			fmt.Fprintf(&text, " numbers: %d", n)
			if !seen[n] {
				fmt.Fprintf(&numbers, " n:\"%d\"", n)
			}
			seen[n] = true
		}
		want := fmt.Sprintf("0.0 %s DELIVERED%s order:\"o%d\"%s count=%d", at.Format("2006-01-02T15:04:05.999999"), numbers.String(), i, skus.String(), count)
		if rng.Intn(2) == 0 {
			fmt.Fprintf(&text, ` labels {key: "game" value: "g%d"} labels {key: "x" value: "y"}`, i)
			want += fmt.Sprintf(` game="g%d"`, i)
		}
		if items > 1 {
			want += fmt.Sprintf(" price=%d", price)
		}
		equalText(t, s.decode(t, encodeProto(t, "Payment", text.String())), want)
	}
}

// FuzzProtobuf also checks that what the library reads is not rejected as malformed here.
func FuzzProtobuf(f *testing.F) {
	good := encodeProto(f, "Payment", paymentText)
	f.Add([]byte(good))
	f.Add([]byte(good[:len(good)/2]))
	f.Add([]byte(good + good))
	md := paymentFile(f).Messages().ByName("Payment")
	s := protoSpec("key order=order.id", "key sku=items[].sku", "int price=items.1.price", "field game=labels.game", "key n=numbers[]", "field x=by_number.-7.sku",
		"field test=test", "field score=ratio", "int z=zero")
	d := s.compile(f)
	each := protoSpec("key sku=sku", "key order=$.order.id")
	each.each, each.time.Field, each.step.Field = "items", "$.ts", "$.step"
	de := each.compile(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		fuzzRecord(t, s, d, []byte(good), raw)
		fuzzRecord(t, each, de, []byte(good), raw)
		b := &event.Batch{}
		b.Add(event.Record{}, raw)
		d.Decode(b, b.Records[0])
		if len(b.Rejects) == 0 || b.Rejects[0].Reason != event.ReasonSyntax || strings.Contains(b.Rejects[0].Detail, "timestamp") {
			return
		}
		if readable(md, raw) {
			t.Fatalf("the library reads it; here: %s", b.Rejects[0].Detail)
		}
	})
}

// readable tells whether the library reads a record. It panics on a map's entry without a key.
func readable(md protoreflect.MessageDescriptor, raw []byte) (ok bool) {
	defer func() { _ = recover() }()
	return proto.Unmarshal(raw, dynamicpb.NewMessage(md)) == nil
}

func BenchmarkProtobuf(b *testing.B) {
	record := encodeProto(b, "Payment", `ts {seconds: 1700000000 nanos: 123456789} step: PAID order {id: "A7-2023-1114-000001" count: 2}
	amount: 650 ratio: 0.25 weight: 1e30 test: true items {sku: "s1" price: 100} items {sku: "s2" price: 3}
	labels {key: "game" value: "com.example.game"} labels {key: "channel" value: "google"} labels {key: "user" value: "u-10023456"}
	numbers: [3, 4, 5] words: ["first", "purchase of the season"] digest: "abcd" card: "4111-1111-1111-1111" u64: 12345678901`)
	b.Run("fields", func(b *testing.B) {
		benchmark(b, protoSpec("key order=order.id", "field user=labels.user", "field game=labels.game", "int amount/2=amount", "field card=card"), record)
	})
	b.Run("each", func(b *testing.B) {
		s := protoSpec("key sku=sku", "key order=$.order.id", "int price=price")
		s.each, s.time.Field, s.step.Field = "items", "$.ts", "$.step"
		benchmark(b, s, record)
	})
}

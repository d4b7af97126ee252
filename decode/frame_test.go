package decode

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// frameSpec is a JSON source that uses everything a frame does.
func frameSpec() *jobspec.Spec {
	return &jobspec.Spec{
		Ignore:  []string{"", "null", "0", "-"},
		ShardBy: "game",
		Kinds:   []jobspec.Kind{{Name: "order"}, {Name: "txn"}},
		Fields: []jobspec.FieldDef{
			{Name: "amount", Type: jobspec.IntField},
			{Name: "channel", Type: jobspec.StringField},
			{Name: "game", Type: jobspec.StringField},
			{Name: "source", Type: jobspec.StringField},
			{Name: "weight", Type: jobspec.IntField},
		},
		Sources: []jobspec.Source{{Name: "zero"}, {
			Name:   "src",
			Format: jobspec.Format{Name: "json"},
			Where:  []jobspec.Condition{{Path: "kind", Values: []string{"", "pay", "1"}}},
			Time:   jobspec.Time{Field: "t", Layout: "unix_s"},
			Step:   jobspec.Step{Field: "e", Map: []jobspec.Mapping{{From: "P", To: "paid"}, {From: "D", To: "delivered"}}},
			Keys:   []jobspec.Key{{Kind: 0, Path: "id"}, {Kind: 0, Path: "id2"}, {Kind: 1, Path: "id"}},
			Fields: []jobspec.Field{
				{Field: 0, Path: "amount", Scale: 2},
				{Field: 0, Path: "cents"},
				{Field: 1, Path: "ch", Map: []jobspec.Mapping{{From: "1", To: "alipay"}, {From: "2", To: ""}}},
				{Field: 2, Path: "app"},
				{Field: 3, Value: "client"},
				{Field: 4, Value: "1.5", Scale: 1},
			},
			Dedupe: []string{"nonce", "id"},
		}},
	}
}

// decodeSpec returns what records of the source numbered 1 become, with groups, dedupe values and skips.
func decodeSpec(t *testing.T, spec *jobspec.Spec, records ...string) string {
	t.Helper()
	d, err := New(spec, 1, Options{Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	b := &event.Batch{}
	for i, r := range records {
		b.Add(event.Record{Offset: int64(i), Source: 1}, []byte(r))
	}
	for _, r := range b.Records {
		d.Decode(b, r)
	}
	checkBatch(t, b)
	var out strings.Builder
	lines := strings.SplitAfter(describe(spec, b), "\n")
	for i, e := range b.Events {
		fmt.Fprintf(&out, "%s group %d", strings.TrimSpace(lines[i]), e.Group)
		for _, v := range b.ValuesOf(i) {
			if v.Kind == event.DedupeValue {
				fmt.Fprintf(&out, " dedupe %q", b.Bytes(&v))
			}
			if v.Kind != event.IntValue && v.Kind != event.StringValue && v.Bits != event.Hash(7, b.Bytes(&v)) {
				t.Errorf("wrong hash of %q", b.Bytes(&v))
			}
		}
		out.WriteString("\n")
	}
	out.WriteString(strings.Join(lines[len(b.Events):], ""))
	fmt.Fprintf(&out, "skipped %d", b.Skipped)
	return out.String()
}

func TestFrame(t *testing.T) {
	g1 := fmt.Sprint("group ", event.Group([]byte("g1")))
	g7 := fmt.Sprint("group ", event.Group([]byte("7")))
	for _, c := range []struct{ name, record, want string }{
		{"everything", `{"t":1,"e":"P","id":"A","id2":"B","amount":"6.00","ch":1,"app":"g1","nonce":"n"}`,
			`0.0 1970-01-01T00:00:01 paid order:"A" order:"B" txn:"A" amount=600 channel="alipay" game="g1" source="client" weight=15 ` + g1 +
				` dedupe "\x00\x01\x04paid\x02n\x02A"`},
		{"equal keys of one kind once", `{"t":1,"e":"P","id":"A","id2":"A","app":"g1"}`,
			`0.0 1970-01-01T00:00:01 paid order:"A" txn:"A" game="g1" source="client" weight=15 ` + g1 + ` dedupe "\x00\x01\x04paid\x00\x02A"`},
		{"ignored keys; dedupe of an empty value", `{"t":1,"e":"D","id":"","id2":0,"app":7}`,
			`0.0 1970-01-01T00:00:01 delivered game="7" source="client" weight=15 ` + g7 + ` dedupe "\x00\x01\tdelivered\x00\x01"`},
		{"no dedupe values", `{"t":1,"e":"D","id2":"-","app":7}`,
			`0.0 1970-01-01T00:00:01 delivered game="7" source="client" weight=15 ` + g7},
		{"step without mapping", `{"t":1,"e":"other","app":"g1"}`, `0.0 1970-01-01T00:00:01 other game="g1" source="client" weight=15 ` + g1},
		{"second path of a field", `{"t":1,"e":"P","cents":6e2,"app":"g1"}`, `0.0 1970-01-01T00:00:01 paid amount=600 game="g1" source="client" weight=15 ` + g1},
		{"first path of a field wins", `{"t":1,"e":"P","cents":1,"amount":2,"app":"g1"}`, `0.0 1970-01-01T00:00:01 paid amount=200 game="g1" source="client" weight=15 ` + g1},
		{"mapped to nothing", `{"t":1,"e":"P","ch":"2","app":"g1"}`, `0.0 1970-01-01T00:00:01 paid game="g1" source="client" weight=15 ` + g1},
		{"where holds", `{"t":1,"e":"P","kind":1,"app":"g1"}`, `0.0 1970-01-01T00:00:01 paid game="g1" source="client" weight=15 ` + g1},
		{"where does not hold", `{"t":"garbage","kind":"refund"}`, ``},
		{"no time", `{"e":"P","app":"g1"}`, `0 no_time: t`},
		{"null time", `{"t":null,"e":"P","app":"g1"}`, `0 no_time: t`},
		{"bad time", `{"t":"soon","e":"P","app":"g1"}`, `0 bad_time: t: "soon"`},
		{"no step", `{"t":1,"e":"","app":"g1"}`, `0 no_step: e`},
		{"long step", `{"t":1,"e":"` + strings.Repeat("x", 257) + `","app":"g1"}`, `0 too_long: e: "` + strings.Repeat("x", 120) + `"…`},
		{"no shard", `{"t":1,"e":"P","app":null}`, `0 no_shard: game`},
		{"bad field", `{"t":1,"e":"P","amount":"6.005","app":"g1"}`, `0 bad_field: amount: "6.005"`},
		{"bool for an integer", `{"t":1,"e":"P","amount":true,"app":"g1"}`, `0 bad_field: amount: "true"`},
		{"longest key", `{"t":1,"e":"P","id2":"` + strings.Repeat("x", 4096) + `","app":"g1"}`,
			`0.0 1970-01-01T00:00:01 paid order:"` + strings.Repeat("x", 4096) + `" game="g1" source="client" weight=15 ` + g1},
		{"long key", `{"t":1,"e":"P","id":"` + strings.Repeat("x", 4097) + `","app":"g1"}`, `0 too_long: id: "` + strings.Repeat("x", 120) + `"…`},
		{"long field", `{"t":1,"e":"P","app":"` + strings.Repeat("x", 4097) + `"}`, `0 too_long: app: "` + strings.Repeat("x", 120) + `"…`},
		{"dedupe too long together", `{"t":1,"e":"P","id":"` + strings.Repeat("x", 4000) + `","nonce":"` + strings.Repeat("y", 4000) + `","app":"g1"}`,
			`0 too_long: nonce id: too long together`},
	} {
		t.Run(c.name, func(t *testing.T) {
			skipped := 0
			if c.want == "" {
				skipped = 1
			}
			equalText(t, decodeSpec(t, frameSpec(), c.record), fmt.Sprintf("%s\nskipped %d", c.want, skipped))
		})
	}
}

func TestFrameShard(t *testing.T) {
	spec := frameSpec()
	spec.Sources[1].Shard = "g1"
	spec.Sources[1].Fields = spec.Sources[1].Fields[:3] // without the shard field
	equalText(t, decodeSpec(t, spec, `{"t":1,"e":"P"}`),
		fmt.Sprintf("0.0 1970-01-01T00:00:01 paid group %d\nskipped 0", event.Group([]byte("g1"))))

	spec.Sources[1].Shard, spec.ShardBy = "", ""
	equalText(t, decodeSpec(t, spec, `{"t":1,"e":"P"}`), "0.0 1970-01-01T00:00:01 paid group 0\nskipped 0")

	spec = frameSpec()
	spec.ShardBy = "amount" // an integer groups by its value, however it is written
	equalText(t, decodeSpec(t, spec, `{"t":1,"e":"P","amount":"6.00"}`, `{"t":1,"e":"P","cents":600}`), fmt.Sprintf(`
0.0 1970-01-01T00:00:01 paid amount=600 source="client" weight=15 group %[1]d
1.0 1970-01-01T00:00:01 paid amount=600 source="client" weight=15 group %[1]d
skipped 0`, event.Group([]byte("600"))))
}

// TestFrameBatches checks that what a decoder remembers of one batch does no harm in the next.
func TestFrameBatches(t *testing.T) {
	spec := frameSpec()
	d, err := New(spec, 1, Options{})
	if err != nil {
		t.Fatal(err)
	}
	record := []byte(`{"t":1,"e":"P","ch":1,"app":"g1"}`)
	b := &event.Batch{}
	want := ""
	for n := range 20 {
		b.Reset()
		for range n % 3 {
			b.Add(event.Record{}, []byte(`{"noise":"clientalipay"}`))
			b.Step([]byte("noise"))
		}
		b.Add(event.Record{Source: 1}, record)
		d.Decode(b, b.Records[len(b.Records)-1])
		got := describe(spec, b)
		if want == "" {
			want = got
		}
		if got != want || !strings.Contains(got, `paid channel="alipay" game="g1" source="client"`) {
			t.Fatalf("batch %d: got %s, want %s", n, got, want)
		}
	}
}

func TestFrameLongRecord(t *testing.T) {
	s := jsonSpec()
	fits := `{"t":1}` + strings.Repeat(" ", event.RecordBytesMax-7)
	equalText(t, s.decode(t, fits, fits+" "), "0.0 1970-01-01T00:00:01 s\n1 too_long: the record has 16777217 bytes")
}

func TestNewProblems(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*jobspec.Spec)
		want   string
	}{
		{"format", func(s *jobspec.Spec) { s.Sources[1].Format.Name = "jsonl" }, `sources.src.format: there is no format "jsonl" (one of json,`},
		{"no layout", func(s *jobspec.Spec) { s.Sources[1].Time.Layout = "" }, "sources.src.time: the time needs a layout"},
		{"zone", func(s *jobspec.Spec) { s.Sources[1].Time.Zone = "Mars" }, `3:4: sources.src.time: there is no time zone "Mars"`},
		{"no shard field", func(s *jobspec.Spec) { s.ShardBy = "region" }, `the job is sharded by "region", and this source has no such field`},
		{"constant", func(s *jobspec.Spec) { s.Sources[1].Fields[5].Value = "1.55" }, `sources.src.fields.weight: "1.55" is not an integer`},
		{"scale", func(s *jobspec.Spec) { s.Sources[1].Fields[0].Scale = 19 }, "sources.src.fields.amount: scale is 19; it must be 0 to 18"},
	} {
		spec := frameSpec()
		spec.Sources[1].Time.Pos = jobspec.Pos{Line: 3, Column: 4}
		c.change(spec)
		_, err := New(spec, 1, Options{})
		if _, ok := err.(*jobspec.Problem); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
	if _, err := New(frameSpec(), 2, Options{}); err == nil {
		t.Error("a source that does not exist compiles")
	}
}

// TestDecodeAllocations decodes into a batch that has been filled before.
func TestDecodeAllocations(t *testing.T) {
	each := jsonSpec("key order=id", "field r=$.r")
	each.each = "rows"
	for _, c := range []struct {
		name   string
		spec   formatSpec
		record string
	}{
		{"json", jsonSpec("key order=ids[]", "field a=a", "int b/2=b"), `{"a":"\u0061","b":"6.00","ids":["A","B"],"t":1}`},
		{"each", each, `{"rows":[{"t":1,"id":"A"},{"t":2,"id":"B"}],"r":"x"}`},
		{"canal", rowSpec("canal"), goodRows["canal"]},
		{"maxwell", rowSpec("maxwell"), goodRows["maxwell"]},
		{"debezium", rowSpec("debezium"), goodRows["debezium"]},
	} {
		d, b := c.spec.compile(t), &event.Batch{}
		for range 10 {
			b.Add(event.Record{}, []byte(c.record))
		}
		raw := len(b.Data)
		allocs := testing.AllocsPerRun(10, func() {
			b.Data = b.Data[:raw]
			b.ResetDecoded()
			for _, r := range b.Records {
				d.Decode(b, r)
			}
		})
		if allocs != 0 || len(b.Events) < 10 || len(b.Rejects) > 0 {
			t.Errorf("%s: %v allocations, %d events, %v", c.name, allocs, len(b.Events), b.Rejects)
		}
	}
}

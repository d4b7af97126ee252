package decode

import (
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// rowSpec describes a source of row changes; its time is the format's own.
func rowSpec(format string) formatSpec {
	return formatSpec{
		format: jobspec.Format{Name: format},
		step:   jobspec.Step{Field: "operation"},
		paths: []string{
			"key order=row.order_id", "field was=old.status", "field status=row.status", "field table=table", "field database=database",
			"int amount/2=row.amount",
		},
	}
}

func TestCanal(t *testing.T) {
	equalText(t, rowSpec("canal").decode(t,
		`{"data":[{"order_id":"A","status":"0","amount":"6.00"}],"database":"pay","es":1790000000000,"id":7,"isDdl":false,`+
			`"mysqlType":{"order_id":"varchar(32)"},"old":null,"pkNames":["order_id"],"sql":"","sqlType":{"order_id":12},"table":"orders","ts":1790000000500,"type":"INSERT"}`,
		`{"data":[{"order_id":"A","status":"1","amount":"6.00"},{"order_id":"B","status":"2\n","amount":null},{"order_id":"C","status":"3"}],`+
			`"database":"pay","es":1790000001000,"isDdl":false,"old":[{"status":"0"},{"status":null},{"amount":"1"}],"table":"orders","ts":1,"type":"UPDATE"}`,
		`{"type":"UPDATE","ts":1790000002500,"old":[{"status":"0"}],"table":"orders","data":[{"order_id":"A","status":"1"},{"order_id":"B","status":"2"}]}`,
		`{"data":[{"order_id":"A","status":"9"}],"es":1790000003000,"type":"DELETE","old":null}`,
		`{"data":null,"es":1790000004000,"isDdl":true,"sql":"ALTER TABLE orders ADD x INT","type":"ALTER"}`,
		`{"data":[],"es":1790000004000,"type":"INSERT"}`,
		`{"data":[{"order_id":"A"}],"es":1790000004000,"isDdl":true,"type":"INSERT"}`,
		`{"data":[{"order_id":"A"}],"es":1790000004000}`,
		`{"data":[{"order_id":"A"}],"type":"INSERT"}`,
		`{"data":[{"order_id":"A"},{"order_id":"B","amount":"x"}],"es":1790000004000,"type":"INSERT"}`,
		`{"data":[{"order_id":"A"},{"order_id":"B"],"es":1790000004000,"type":"INSERT"}`,
		`{"data":[null,{"order_id":"B"} , 3 ],"es":1790000004000,"type":"INSERT"}`,
	), `
0.0 2026-09-21T14:13:20 insert order:"A" amount=600 database="pay" status="0" table="orders"
1.0 2026-09-21T14:13:21 update order:"A" amount=600 database="pay" status="1" table="orders" was="0"
1.1 2026-09-21T14:13:21 update order:"B" database="pay" status="2\n" table="orders"
1.2 2026-09-21T14:13:21 update order:"C" database="pay" status="3" table="orders"
2.0 2026-09-21T14:13:22.5 update order:"A" status="1" table="orders" was="0"
2.1 2026-09-21T14:13:22.5 update order:"B" status="2" table="orders"
3.0 2026-09-21T14:13:23 delete order:"A" status="9"
11.0 2026-09-21T14:13:24 insert
11.1 2026-09-21T14:13:24 insert order:"B"
11.2 2026-09-21T14:13:24 insert
7 schema: no type
8 no_time: ts
9 bad_field: row.amount: "x"
10 syntax: byte 41: unexpected "]"`)
}

func TestMaxwell(t *testing.T) {
	equalText(t, rowSpec("maxwell").decode(t,
		`{"database":"pay","table":"orders","type":"insert","ts":1790000000,"xid":1,"commit":true,"data":{"order_id":"A","status":0,"amount":6}}`,
		`{"old":{"status":0},"data":{"order_id":"A","status":1,"amount":6.5},"ts":1790000001,"type":"update","table":"orders"}`,
		`{"type":"delete","ts":1790000002,"data":{"order_id":"A","status":1}}`,
		`{"type":"bootstrap-start","ts":1790000003,"data":{}}`,
		`{"type":"bootstrap-insert","ts":1790000003,"data":{"order_id":"B"}}`,
		`{"type":"bootstrap-complete","ts":1790000003,"data":{}}`,
		`{"type":"table-alter","ts":1790000003000,"sql":"ALTER TABLE orders ADD x INT"}`,
		`{"ts":1790000003,"data":{"order_id":"B"}}`,
	), `
0.0 2026-09-21T14:13:20 insert order:"A" amount=600 database="pay" status="0" table="orders"
1.0 2026-09-21T14:13:21 update order:"A" amount=650 status="1" table="orders" was="0"
2.0 2026-09-21T14:13:22 delete order:"A" status="1"
4.0 2026-09-21T14:13:23 snapshot order:"B"
7 schema: no type`)
}

func TestDebezium(t *testing.T) {
	const source = `"source":{"connector":"mysql","ts_ms":1790000000000,"db":"pay","table":"orders"}`
	equalText(t, rowSpec("debezium").decode(t,
		`{"before":null,"after":{"order_id":"A","status":0,"amount":"6.00"},`+source+`,"op":"c","ts_ms":1790000009000}`,
		`{"before":{"order_id":"A","status":"0","amount":"6.00"},"after":{"order_id":"A","status":"1","amount":"6.00"},`+source+`,"op":"u"}`,
		`{"op":"u",`+source+`,"after":{"status":"\u0031","order_id":"A"},"before":{"status":"1","order_id":"A"}}`,
		`{"op":"u",`+source+`,"after":{"status":null,"order_id":"A"},"before":{"status":"1","order_id":"A"}}`,
		`{"op":"u",`+source+`,"after":{"status":1,"order_id":"A"},"before":null}`,
		`{"before":{"order_id":"A","status":"1"},"after":null,`+source+`,"op":"d"}`,
		`{"after":{"order_id":"X","status":"X"},`+source+`,"op":"d","before":{"order_id":"A"}}`,
		`{"schema":{"type":"struct","fields":[{"field":"op","type":"string"}]},"payload":{"before":null,"after":{"order_id":"B"},`+source+`,"op":"r"}}`,
		`{"payload":{"op":"d","before":{"order_id":"B"},`+source+`},"schema":null}`,
		``,
		`null`,
		`{"schema":null,"payload":null}`,
		`{`+source+`,"op":"t"}`,
		`{`+source+`,"op":"m","message":{"prefix":"x"}}`,
		`{"status":"BEGIN","id":"1"}`,
		`{"after":{"order_id":"A"},"op":"c"}`,
		`{"after":{"order_id":"A"},"op":"c"`,
	), `
0.0 2026-09-21T14:13:20 insert order:"A" amount=600 database="pay" status="0" table="orders"
1.0 2026-09-21T14:13:20 update order:"A" amount=600 database="pay" status="1" table="orders" was="0"
2.0 2026-09-21T14:13:20 update order:"A" database="pay" status="1" table="orders"
3.0 2026-09-21T14:13:20 update order:"A" database="pay" table="orders" was="1"
4.0 2026-09-21T14:13:20 update order:"A" database="pay" status="1" table="orders"
5.0 2026-09-21T14:13:20 delete order:"A" database="pay" status="1" table="orders"
6.0 2026-09-21T14:13:20 delete order:"A" database="pay" table="orders"
7.0 2026-09-21T14:13:20 snapshot order:"B" database="pay" table="orders"
8.0 2026-09-21T14:13:20 delete order:"B" database="pay" table="orders"
14 schema: no op
15 no_time: ts
16 syntax: ends early`)
}

// TestRowsOldAlone takes an old value whose new one is not wanted.
func TestRowsOldAlone(t *testing.T) {
	s := rowSpec("debezium")
	s.paths = []string{"field was=old.a.b"}
	equalText(t, s.decode(t,
		`{"op":"u","source":{"ts_ms":0},"before":{"a":{"b":1}},"after":{"a":{"b":2}}}`,
		`{"op":"u","source":{"ts_ms":0},"before":{"a":{"b":1}},"after":{"a":{"b":1}}}`,
	), `
0.0 1970-01-01T00:00:00 update was="1"
1.0 1970-01-01T00:00:00 update`)
}

func TestRowsTimeOfColumn(t *testing.T) {
	for _, format := range []string{"canal", "maxwell", "debezium"} {
		s := rowSpec(format)
		s.time = jobspec.Time{Field: "row.at", Layout: "2006-01-02 15:04:05", Zone: "Asia/Shanghai"}
		s.paths = nil
		record := map[string]string{
			"canal":    `{"type":"INSERT","data":[{"at":"2026-09-21 22:13:20"}]}`,
			"maxwell":  `{"type":"insert","data":{"at":"2026-09-21 22:13:20"}}`,
			"debezium": `{"op":"c","after":{"at":"2026-09-21 22:13:20"}}`,
		}[format]
		equalText(t, s.decode(t, record), "0.0 2026-09-21T14:13:20 insert")
	}
}

func TestRowsProblems(t *testing.T) {
	for _, format := range []string{"canal", "maxwell", "debezium"} {
		for _, c := range []struct{ path, want string }{
			{"order_id", `sources.src.fields.f: format ` + format + ` has no path "order_id" (a column is row.order_id or old.order_id;`},
			{"row", "has no path"},
			{"$.row.x", "has no path"},
			{"operation.x", "has no path"},
			{"row.tags[]", "a column holds one value"},
			{"row..x", "expected a name"},
		} {
			s := rowSpec(format)
			s.paths = []string{"field f=" + c.path}
			if got := s.compileError(t); !strings.Contains(got, c.want) {
				t.Errorf("%s: got %s, want %s", c.path, got, c.want)
			}
		}
		s := rowSpec(format)
		s.time.Field = "row.at"
		if got := s.compileError(t); !strings.Contains(got, "the time needs a layout") {
			t.Error(got)
		}
	}
}

// TestRowsSkipped checks that changes without rows are counted and are no rejects.
func TestRowsSkipped(t *testing.T) {
	for format, records := range map[string][]string{
		"canal":    {`{"data":null,"isDdl":true,"type":"ALTER"}`, `{"data":[{"a":1}],"type":"TRUNCATE"}`, `{"data":[],"type":"INSERT"}`},
		"maxwell":  {`{"type":"bootstrap-start"}`, `{"type":"bootstrap-complete"}`, `{"type":"table-create"}`},
		"debezium": {``, "null\n", `{"op":"t"}`, `{"op":"m"}`, `{"schema":{},"payload":null}`},
	} {
		d, b := rowSpec(format).compile(t), &event.Batch{}
		for _, raw := range records {
			b.Add(event.Record{}, []byte(raw))
		}
		for _, r := range b.Records {
			d.Decode(b, r)
		}
		if b.Skipped != int64(len(records)) || len(b.Events) > 0 || len(b.Rejects) > 0 {
			t.Errorf("%s: %d skipped, %d events, %v", format, b.Skipped, len(b.Events), b.Rejects)
		}
	}
}

func FuzzRows(f *testing.F) {
	decoders := map[string]Decoder{}
	for format, record := range goodRows {
		decoders[format] = rowSpec(format).compile(f)
		f.Add([]byte(record))
	}
	f.Add([]byte(`{"op":"d","before":{"order_id":"A"},"after":[{}],"source":{"ts_ms":1}}`))
	f.Add([]byte(`{"type":"DELETE","data":[[],{}],"old":[1,2,3],"es":1}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for format, d := range decoders {
			fuzzRecord(t, rowSpec(format), d, []byte(goodRows[format]), raw)
		}
	})
}

// goodRows holds one change in each format of row changes.
var goodRows = map[string]string{
	"canal": `{"data":[{"order_id":"A","status":"1"},{"order_id":"B","amount":"1"}],"old":[{"status":"\u0030"},{}],` +
		`"database":"pay","es":1790000000000,"isDdl":false,"table":"orders","type":"UPDATE"}`,
	"maxwell": `{"database":"pay","table":"orders","type":"update","ts":1790000000,"data":{"order_id":"A","status":1},"old":{"status":0}}`,
	"debezium": `{"schema":{},"payload":{"before":{"status":"0"},"after":{"order_id":"A","status":"1"},` +
		`"source":{"ts_ms":1790000000000,"db":"pay","table":"orders"},"op":"u"}}`,
}

func BenchmarkCanal(b *testing.B)    { benchmark(b, rowSpec("canal"), goodRows["canal"]) }
func BenchmarkMaxwell(b *testing.B)  { benchmark(b, rowSpec("maxwell"), goodRows["maxwell"]) }
func BenchmarkDebezium(b *testing.B) { benchmark(b, rowSpec("debezium"), goodRows["debezium"]) }

package decode

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
)

// formatSpec describes a source in short. Each of paths is "key kind=path", "field name=path" or "int name=path".
type formatSpec struct {
	format jobspec.Format
	time   jobspec.Time
	step   jobspec.Step
	each   string
	paths  []string
}

func (s formatSpec) spec() *jobspec.Spec {
	spec := &jobspec.Spec{Version: jobspec.Version, Job: "test", Ignore: []string{"", "null", "0", "-"}}
	src := jobspec.Source{Name: "src", Topic: "t", Format: s.format, Time: s.time, Step: s.step, Each: s.each}
	slices.SortFunc(s.paths, func(a, b string) int { // by name
		return strings.Compare(a[strings.IndexByte(a, ' '):], b[strings.IndexByte(b, ' '):])
	})
	for _, p := range s.paths {
		what, path, _ := strings.Cut(p, "=")
		kind, name, _ := strings.Cut(what, " ")
		if kind == "key" {
			k := slices.IndexFunc(spec.Kinds, func(k jobspec.Kind) bool { return k.Name == name })
			if k < 0 {
				k = len(spec.Kinds)
				spec.Kinds = append(spec.Kinds, jobspec.Kind{Name: name})
			}
			src.Keys = append(src.Keys, jobspec.Key{Kind: k, Path: path})
			continue
		}
		def := jobspec.FieldDef{Name: name, Type: jobspec.StringField}
		field := jobspec.Field{Field: len(spec.Fields), Path: path}
		if kind == "int" {
			def.Type = jobspec.IntField
			name, scale, _ := strings.Cut(name, "/") // "int amount/2" shifts by two digits
			def.Name = name
			fmt.Sscan(scale, &field.Scale)
		}
		spec.Fields = append(spec.Fields, def)
		src.Fields = append(src.Fields, field)
	}
	spec.Sources = []jobspec.Source{src}
	return spec
}

func testAssets(name string) ([]byte, error) { return os.ReadFile(filepath.Join("testdata", name)) }

func (s formatSpec) compile(t testing.TB) Decoder {
	t.Helper()
	d, err := New(s.spec(), 0, Options{Assets: testAssets})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// compileError returns the problem with a spec that must not compile.
func (s formatSpec) compileError(t *testing.T) string {
	t.Helper()
	_, err := New(s.spec(), 0, Options{Assets: testAssets})
	if err == nil {
		t.Fatal("the spec compiles")
	}
	if _, ok := err.(*jobspec.Problem); !ok {
		t.Fatalf("%T is not a *jobspec.Problem", err)
	}
	return err.Error()
}

// decode returns what records become, one line an event or reject.
func (s formatSpec) decode(t testing.TB, records ...string) string {
	t.Helper()
	d, b := s.compile(t), &event.Batch{}
	for i, r := range records {
		b.Add(event.Record{Offset: int64(i), Timestamp: event.MinTime}, []byte(r))
	}
	for _, r := range b.Records {
		d.Decode(b, r)
	}
	checkBatch(t, b)
	return describe(s.spec(), b)
}

func describe(spec *jobspec.Spec, b *event.Batch) string {
	var out strings.Builder
	for i, e := range b.Events {
		at := time.UnixMicro(int64(e.Time)).UTC().Format("2006-01-02T15:04:05.999999")
		fmt.Fprintf(&out, "%d.%d %s %s", e.Offset, e.Index, at, b.Steps[e.Step])
		for _, v := range b.ValuesOf(i) {
			switch v.Kind {
			case event.KeyValue:
				fmt.Fprintf(&out, " %s:%q", spec.Kinds[v.ID].Name, b.Bytes(&v))
			case event.StringValue:
				fmt.Fprintf(&out, " %s=%q", spec.Fields[v.ID].Name, b.Bytes(&v))
			case event.IntValue:
				fmt.Fprintf(&out, " %s=%d", spec.Fields[v.ID].Name, int64(v.Bits))
			}
		}
		out.WriteString("\n")
	}
	for _, r := range b.Rejects {
		fmt.Fprintf(&out, "%d %s: %s\n", r.Record.Offset, r.Reason, r.Detail)
	}
	return out.String()
}

// checkBatch checks what must hold after any record: ranges inside the data, and no event of a rejected record.
func checkBatch(t testing.TB, b *event.Batch) {
	t.Helper()
	start := uint32(0)
	for _, e := range b.Events {
		if e.Vals < start || int(e.Vals) > len(b.Values) || int(e.Step) >= len(b.Steps) {
			t.Fatalf("event %+v does not fit its batch", e)
		}
		start = e.Vals
	}
	if int(start) != len(b.Values) {
		t.Fatalf("%d values belong to no event", len(b.Values)-int(start))
	}
	for _, v := range b.Values {
		if uint64(v.Off)+uint64(v.Len) > uint64(len(b.Data)) {
			t.Fatalf("value %+v ends after the data", v)
		}
	}
	rejected := map[int64]bool{}
	for _, r := range b.Rejects {
		if rejected[r.Record.Offset] || len(r.Detail) > 700 {
			t.Fatalf("reject %+v is a second one, or long", r)
		}
		rejected[r.Record.Offset] = true
	}
	for _, e := range b.Events {
		if rejected[e.Offset] {
			t.Fatalf("record %d is rejected and has an event", e.Offset)
		}
	}
}

// fuzzRecord decodes one hostile record between two copies of a good one, and checks that it disturbs neither.
func fuzzRecord(t *testing.T, s formatSpec, d Decoder, good, hostile []byte) {
	b := &event.Batch{}
	for i, raw := range [][]byte{good, hostile, good} {
		b.Add(event.Record{Offset: int64(i)}, raw)
	}
	before := string(b.Data)
	for _, r := range b.Records {
		d.Decode(b, r)
	}
	checkBatch(t, b)
	if string(b.Data[:len(before)]) != before {
		t.Fatal("decoding changed the records")
	}
	var around []string
	for _, line := range strings.Split(describe(s.spec(), b), "\n") {
		if rest, ok := strings.CutPrefix(line, "0."); ok {
			around = append(around, rest)
		} else if rest, ok := strings.CutPrefix(line, "2."); ok {
			if len(around) == 0 || around[0] != rest {
				t.Fatalf("the record after the hostile one became %q", rest)
			}
			around = around[1:]
		}
	}
	if len(around) > 0 {
		t.Fatalf("the record after the hostile one is lost")
	}
}

// benchmark decodes the records over and over, a thousand to a batch.
func benchmark(b *testing.B, s formatSpec, records ...string) {
	d, batch := s.compile(b), &event.Batch{}
	bytes := 0
	for i := range 1000 {
		raw := records[i%len(records)]
		bytes += len(raw)
		batch.Add(event.Record{Offset: int64(i)}, []byte(raw))
	}
	raw := len(batch.Data)
	b.SetBytes(int64(bytes / 1000))
	b.ReportAllocs()
	for n := 0; n < b.N; n += len(batch.Records) {
		batch.Data = batch.Data[:raw]
		batch.ResetDecoded()
		for _, r := range batch.Records {
			d.Decode(batch, r)
		}
	}
	if len(batch.Rejects) > 0 {
		b.Fatal(batch.Rejects[0].Detail)
	}
}

func equalText(t *testing.T, got, want string) {
	t.Helper()
	if got, want := strings.TrimSpace(got), strings.TrimSpace(want); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

package paygen

import (
	"testing"

	"github.com/weftdata/weft/decode"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/examples"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/rules"
)

// TestDecodesAsPlanned decodes every line by the example job: the events must be those of the truth, the rejects those
// foretold.
func TestDecodesAsPlanned(t *testing.T) {
	m, _ := generate(t, config(5000, 7))
	spec, err := jobspec.Parse([]byte(examples.Payments()))
	if err != nil {
		t.Fatal(err)
	}
	truth, rejects := map[Event]bool{}, m.rejects(t)
	for _, c := range m.chains(t) {
		for _, e := range append(c.Events, c.Folded...) {
			truth[e] = true
		}
	}

	for i := range spec.Sources {
		name := spec.Sources[i].Name
		if name != files[i].name {
			t.Fatalf("source %d is %s in the job and %s here", i, name, files[i].name)
		}
		d, err := decode.New(spec, i, decode.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var b event.Batch
		for offset, line := range m.lines(files[i].file) {
			b.Reset()
			b.Add(event.Record{Offset: int64(offset), Source: uint16(i)}, []byte(line))
			d.Decode(&b, b.Records[0])
			want, broken := rejects[name][int64(offset)]
			if (len(b.Rejects) > 0) != broken || broken && string(b.Rejects[0].Reason) != want {
				t.Errorf("%s:%d: rejects %v, want reason %q\n%s", name, offset, b.Rejects, want, line)
				continue
			}
			for _, e := range b.Events {
				at := Event{name, int64(offset), e.Index}
				if !truth[at] {
					t.Errorf("%s:%d: event %d is not in the truth\n%s", name, offset, e.Index, line)
				}
				delete(truth, at)
			}
		}
	}
	for at := range truth {
		t.Errorf("%v was not decoded", at)
	}
}

// TestDefectsAreRejected breaks lines in every way there is.
func TestDefectsAreRejected(t *testing.T) {
	m, _ := generate(t, config(1000, 1))
	rejects := m.rejects(t)
	spec, err := jobspec.Parse([]byte(examples.Payments()))
	if err != nil {
		t.Fatal(err)
	}
	r := rng(1)
	for i, kinds := range defects() {
		d, err := decode.New(spec, i, decode.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for offset, line := range m.lines(files[i].file)[:10] {
			if rejects[files[i].name][int64(offset)] != "" {
				continue
			}
			for _, kind := range kinds {
				var b event.Batch
				b.Add(event.Record{Source: uint16(i)}, []byte(line))
				d.Decode(&b, b.Records[0])
				if b.Skipped > 0 && len(b.Events) == 0 {
					continue // nothing that the job reads
				}
				b.Reset()
				broken := kind.apply(nil, []byte(line), &r)
				b.Add(event.Record{Source: uint16(i)}, broken)
				d.Decode(&b, b.Records[0])
				if len(b.Rejects) != 1 || string(b.Rejects[0].Reason) != kind.reason {
					t.Errorf("%s: rejects %v, want %s\n%s", files[i].name, b.Rejects, kind.reason, broken)
				}
			}
		}
	}
}

// TestJobHasTheScenarios compiles the rules of the example job and compares their names with those told in Go.
func TestJobHasTheScenarios(t *testing.T) {
	spec, err := jobspec.Parse([]byte(examples.Payments()))
	if err != nil {
		t.Fatal(err)
	}
	set, err := rules.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	if len(set.Interpreted) > 0 {
		t.Errorf("rules without a native form: %v", set.Interpreted)
	}
	inJob := map[string]bool{}
	for _, s := range set.Scenarios {
		inJob[s.Name] = true
	}
	for _, s := range scenarios() {
		if !inJob[s.name] {
			t.Errorf("the job lacks %s", s.name)
		}
		delete(inJob, s.name)
	}
	for name := range inJob {
		t.Errorf("the truth lacks %s", name)
	}
}

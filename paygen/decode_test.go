package paygen

import (
	"bufio"
	"bytes"
	"encoding/json"
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
	truth := map[place]bool{}
	if err := ReadTruth(bytes.NewReader(m[TruthFile].Bytes()), func(c *Chain) error {
		for _, e := range append(c.Events, c.Folded...) {
			truth[placeOf(t, e)] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	reasons := map[place]string{}
	for scan := bufio.NewScanner(m[RejectsFile]); scan.Scan(); {
		var r struct {
			Source string
			Offset int64
			Reason string
		}
		if err := json.Unmarshal(scan.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		reasons[placeOf(t, Event{Source: r.Source, Offset: r.Offset})] = r.Reason
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
		for offset, line := range bytes.Split(bytes.TrimSuffix(m[files[i].file].Bytes(), []byte("\n")), []byte("\n")) {
			b.Reset()
			b.Add(event.Record{Offset: int64(offset), Source: uint16(i)}, line)
			d.Decode(&b, b.Records[0])
			at := place{src: source(i), offset: int64(offset)}
			want, broken := reasons[at]
			if (len(b.Rejects) > 0) != broken || broken && string(b.Rejects[0].Reason) != want {
				t.Errorf("%s:%d: rejects %v, want reason %q\n%s", name, offset, b.Rejects, want, line)
				continue
			}
			for _, e := range b.Events {
				at.index = e.Index
				if !truth[at] {
					t.Errorf("%s:%d: event %d is not in the truth\n%s", name, offset, e.Index, line)
				}
				delete(truth, at)
			}
		}
	}
	for at := range truth {
		t.Errorf("%s:%d: event %d was not decoded", files[at.src].name, at.offset, at.index)
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

func placeOf(t *testing.T, e Event) place {
	t.Helper()
	for i, f := range files {
		if f.name == e.Source {
			return place{source(i), e.Index, e.Offset}
		}
	}
	t.Fatalf("unknown source %q", e.Source)
	return place{}
}

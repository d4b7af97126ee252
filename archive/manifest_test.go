package archive

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func sampleManifest() *Manifest {
	sum := strings.Repeat("0a", 32)
	return &Manifest{
		Topic: "pay.orders", Partition: 3, Identity: "id", Sequence: 17, Nonce: "abc2", From: 100, To: 120, Records: 15,
		Gaps: []Gap{{From: 100, To: 102, Missing: 2, Reason: Deleted}, {From: 104, To: 110, Missing: 3, Reason: Absent}},
		Files: []DataFile{
			{Key: "archive/pay.orders/00003/0000000017-abc2-0.parquet", Bytes: 1000, SHA256: sum, Records: 1, LeastOffset: 105, GreatestOffset: 105,
				Times: []Times{{Job: "a", Source: "s", Fingerprint: "1", Rejects: 1}, {Job: "a", Source: "s", Fingerprint: "2", Events: 3, Event: &Span{-5, 7}}}},
			{Key: "archive/pay.orders/00003/0000000017-abc2-1.parquet", Bytes: 2000, SHA256: sum, Records: 14, LeastOffset: 102, GreatestOffset: 119,
				Timestamps: &Span{Least: 5, Greatest: 6}},
		},
	}
}

const sampleKey = "archive/pay.orders/00003/0000000017.json"

func TestManifestRoundTrip(t *testing.T) {
	m := sampleManifest()
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeManifest(sampleKey, text)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("got %+v, %v; want %+v", got, err, m)
	}
	if m.Lost() != 2 {
		t.Errorf("%d are lost, want 2", m.Lost())
	}
	if f := got.Files[0]; f.TimesOf("a", "s", "2").Events != 3 || f.TimesOf("a", "s", "3") != nil || f.TimesOf("b", "s", "2") != nil {
		t.Error("TimesOf finds the times of another source")
	}
}

// Each change makes the manifest one that no archiver writes.
func TestManifestRefused(t *testing.T) {
	for want, change := range map[string]func(*Manifest){
		`topic ""`:                              func(m *Manifest) { m.Topic = "" },
		`topic "a/b"`:                           func(m *Manifest) { m.Topic = "a/b" },
		"partition -1":                          func(m *Manifest) { m.Partition = -1 },
		"sequence 10000000000":                  func(m *Manifest) { m.Sequence = 10_000_000_000 },
		`nonce "A"`:                             func(m *Manifest) { m.Nonce = "A" },
		"offsets [100, 100)":                    func(m *Manifest) { m.To = 100 },
		"offsets [-1, 120)":                     func(m *Manifest) { m.From = -1 },
		"gap 0: [99, 102)":                      func(m *Manifest) { m.Gaps[0].From = 99 },
		"gap 1: [101, 110)":                     func(m *Manifest) { m.Gaps[1].From = 101 },
		"gap 1: [104, 121)":                     func(m *Manifest) { m.Gaps[1].To = 121 },
		"gap 1: [104, 104)":                     func(m *Manifest) { m.Gaps[1].To = 104 },
		"gap 1: [104, 110), 7 absent":           func(m *Manifest) { m.Gaps[1].Missing = 7 },
		"gap 1: [104, 110), 0 absent":           func(m *Manifest) { m.Gaps[1].Missing = 0 },
		"gap 1: [104, 110), 3 deleted":          func(m *Manifest) { m.Gaps[1].Reason = Deleted },
		"gap 1: [104, 110), 3 lost":             func(m *Manifest) { m.Gaps[1].Reason = "lost" },
		`file 0 is "x"`:                         func(m *Manifest) { m.Files[0].Key = "x" },
		"file 1 holds 15 records; at most 14":   func(m *Manifest) { m.Files[1].Records = 15 },
		"13 records and 5 missing":              func(m *Manifest) { m.Records = 13 },
		"1 of neither":                          func(m *Manifest) { m.Files[1].Records = 13 },
		"file 0: 0 bytes":                       func(m *Manifest) { m.Files[0].Bytes = 0 },
		"file 0: 536870913 bytes":               func(m *Manifest) { m.Files[0].Bytes = FileBytesMax + 1 },
		`file 0: sha256 "0A`:                    func(m *Manifest) { m.Files[0].SHA256 = strings.ToUpper(m.Files[0].SHA256) },
		"file 0: offsets 99 to 105":             func(m *Manifest) { m.Files[0].LeastOffset = 99 },
		"file 1: offsets 102 to 120":            func(m *Manifest) { m.Files[1].GreatestOffset = 120 },
		"file 1: 14 records with offsets":       func(m *Manifest) { m.Files[1].LeastOffset = 107 },
		"file 1: timestamps 7 to 6":             func(m *Manifest) { m.Files[1].Timestamps.Least = 7 },
		"the times of a/s are out of order":     func(m *Manifest) { m.Files[0].Times[0].Fingerprint = "2" },
		`times of "a"/"s": 3 events, 0 rejects`: func(m *Manifest) { m.Files[0].Times[1].Event = nil },
		`times of "a"/"s": 0 events, 2 rejects`: func(m *Manifest) { m.Files[0].Times[0].Rejects = 2 },
		"1025 gaps":                             func(m *Manifest) { m.Gaps = make([]Gap, GapsMax+1) },
		"9 files":                               func(m *Manifest) { m.Files = make([]DataFile, FilesMax+1) },
	} {
		m := sampleManifest()
		change(m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: it is written all the same", want)
		}
	}
}

func TestDecodeManifestRefused(t *testing.T) {
	text, err := sampleManifest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := string(text)
	for name, c := range map[string]struct{ key, text, want string }{
		"empty":         {sampleKey, "", "end of JSON"},
		"cut off":       {sampleKey, good[:len(good)/2], "end of JSON"},
		"other version": {sampleKey, strings.Replace(good, `"version": 1`, `"version": 2`, 1), "it has version 2"},
		"unknown field": {sampleKey, strings.Replace(good, `"topic"`, `"colour": 1, "topic"`, 1), `unknown field "colour"`},
		"something on":  {sampleKey, good + "{}", "invalid character"},
		"other number":  {ManifestKey("pay.orders", 3, 18), good, "it belongs at " + sampleKey},
		"other topic":   {ManifestKey("pay", 3, 17), good, "it belongs at " + sampleKey},
	} {
		_, err := DecodeManifest(c.key, []byte(c.text))
		if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.key) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestFollows(t *testing.T) {
	for want, change := range map[string]func(*Manifest){
		"":                    func(*Manifest) {},
		"does not follow":     func(m *Manifest) { m.Partition++ },
		"another topic":       func(m *Manifest) { m.Identity = "other" },
		"starts at offset 21": func(m *Manifest) { m.From++ },
		"is number 0 and":     func(m *Manifest) { m.Sequence++ },
	} {
		before := &Manifest{Topic: "t", Identity: "id", From: 10, To: 20}
		m := &Manifest{Topic: "t", Identity: "id", Sequence: 1, From: 20, To: 21}
		change(m)
		err := m.Follows(before)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// Keys sort as sequences do, and what was written can be read; nothing else can.
func TestKeys(t *testing.T) {
	start, data, manifest, next := SequenceStart("t", 3, 9), DataKey("t", 3, 9, "z9", 7), ManifestKey("t", 3, 9), SequenceStart("t", 3, 10)
	if !(start < data && data < manifest && manifest < next) {
		t.Errorf("%s, %s, %s, %s are out of order", start, data, manifest, next)
	}
	for key, want := range map[string]string{
		manifest: "9  true", data: "9 z9 true",
		"archive/t/00004/0000000009.json":            "0  false",
		"archive/t/00003/9.json":                     "0  false",
		"archive/t/00003/0000000009.json.bak":        "0  false",
		"archive/t/00003/-000000009.json":            "0  false",
		"archive/t/00003/+000000009.json":            "9  false",
		"archive/t/00003/0000000009-Z-0.parquet":     "0  false",
		"archive/t/00003/0000000009-z-00.parquet":    "9 z false",
		"archive/t/00003/0000000009-z.parquet":       "0  false",
		"archive/t/00003/0000000009--0.parquet":      "0  false",
		"archive/t/00003/0000000009-z-0-1.parquet":   "0  false",
		"archive/t/00003/00000000010-z-0.parquet":    "0  false",
		"archive/t/00003/x0000000009-z-0-1.parquet":  "0  false",
		"archive/t/00003/0000000009-z-0.parquet.tmp": "0  false",
	} {
		sequence, nonce, ok := ParseKey("t", 3, key)
		if got := fmt.Sprint(sequence, " ", nonce, " ", ok); got != want && (ok || strings.HasSuffix(want, "true")) {
			t.Errorf("%s: got %s, want %s", key, got, want)
		}
	}
}

func FuzzDecodeManifest(f *testing.F) {
	text, err := sampleManifest().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(sampleKey, data)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatalf("what was read is not written: %v", err)
		}
		if same, err := DecodeManifest(sampleKey, again); err != nil || !reflect.DeepEqual(same, m) {
			t.Fatalf("got %+v, %v; want %+v", same, err, m)
		}
	})
}

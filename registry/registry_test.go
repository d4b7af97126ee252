package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/objstore/objtest"
)

const specText = `version: weft/v1
job: payments
sources:
  orders:
    topic: pay.orders
    format: json
    time: {field: ts, layout: unix_ms}
    step: event
    keys: {order: order.id}
    fields: {user: user.id, amount: order.amount}
  bills:
    topic: pay.bills
    format: {name: avro, schema: bill.avsc}
    time: {field: ts, layout: unix_ms}
    step: {value: billed}
    keys: {order: order}
session: {gap: 30m}
user: user
scenarios:
  - {name: unpaid, when: 'step("paid").count == 0'}
reports:
  - {name: day, every: 1h, by: [user], measures: {sessions: count()}}
`

func folder(t *testing.T) *objstore.Local {
	t.Helper()
	s, err := objstore.Folder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func version(change ...string) NewVersion {
	return NewVersion{Spec: []byte(strings.NewReplacer(change...).Replace(specText)), Assets: map[string][]byte{"bill.avsc": []byte(`"schema"`)}}
}

func mustAdd(t *testing.T, r *Registry, n NewVersion) Version {
	t.Helper()
	v, err := r.Add(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVersions(t *testing.T) {
	r := New(folder(t))
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	r.Now = func() time.Time { return now }
	first := version()
	first.Message, first.Author = "the first <one>", "Zoë"
	v1 := mustAdd(t, r, first)
	if v1.Number != 1 || v1.Existed || v1.Job != "payments" || v1.Author != "Zoë" || !v1.Created.Equal(now) || len(v1.Checksum) != 64 {
		t.Fatalf("the first version is %+v", v1)
	}
	if again := mustAdd(t, r, version()); !again.Existed || again.Number != 1 || again.Message != "the first <one>" {
		t.Errorf("the same again is %+v", again)
	}
	v2 := mustAdd(t, r, version("gap: 30m", "gap: 31m"))
	back := mustAdd(t, r, version()) // what is not the latest is a version of its own: a way back
	if v2.Number != 2 || back.Number != 3 || back.Existed {
		t.Errorf("got versions %d and %d", v2.Number, back.Number)
	}
	other := version()
	other.Assets["bill.avsc"] = []byte(`"another schema"`)
	if v := mustAdd(t, r, other); v.Number != 4 {
		t.Errorf("another file makes version %d", v.Number)
	}
	got, err := r.Get(t.Context(), "payments", 1)
	if err != nil || got.Spec != specText || got.Checksum != v1.Checksum || got.Message != v1.Message {
		t.Errorf("read back %+v: %v", got, err)
	}
	list, err := r.List(t.Context(), "payments")
	if err != nil || len(list) != 4 || list[1].Number != 2 || list[3].Assets["bill.avsc"] == list[0].Assets["bill.avsc"] {
		t.Errorf("list: %v %v", list, err)
	}
	data, err := r.Assets(t.Context(), list[3])("bill.avsc")
	if err != nil || string(data) != `"another schema"` {
		t.Errorf("asset: %q %v", data, err)
	}
	if _, err := r.Assets(t.Context(), list[3])("other.avsc"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a file that is not there: %v", err)
	}
	for _, number := range []int{0, 5, -1} {
		if _, err := r.Get(t.Context(), "payments", number); !errors.Is(err, ErrNotFound) {
			t.Errorf("version %d: %v", number, err)
		}
	}
	if list, err := r.List(t.Context(), "nothing"); err != nil || len(list) != 0 {
		t.Errorf("a job that is not there: %v %v", list, err)
	}
}

func TestJobs(t *testing.T) {
	r := New(folder(t))
	if jobs, err := r.Jobs(t.Context()); err != nil || len(jobs) != 0 {
		t.Errorf("an empty registry has %q: %v", jobs, err)
	}
	names := []string{"pay", "pay-b", "pay0", "a"}
	for _, name := range names {
		mustAdd(t, r, version("job: payments", "job: "+name))
		mustAdd(t, r, version("job: payments", "job: "+name, "30m", "40m"))
	}
	slices.Sort(names)
	if jobs, err := r.Jobs(t.Context()); err != nil || !slices.Equal(jobs, names) { // the folder of files is no job
		t.Errorf("got jobs %q: %v", jobs, err)
	}
	mustAdd(t, r, version("job: payments", "job: assets"))
	if jobs, err := r.Jobs(t.Context()); err != nil || len(jobs) != 5 || jobs[1] != "assets" {
		t.Errorf("got jobs %q: %v", jobs, err)
	}
}

func TestRacingAdders(t *testing.T) {
	store := folder(t)
	const adders = 8
	numbers := make([]int, adders)
	var work sync.WaitGroup
	for i := range adders {
		work.Go(func() {
			v, err := New(store).Add(t.Context(), version("30m", fmt.Sprintf("%dm", 31+i)))
			if err != nil {
				t.Error(err)
			}
			numbers[i] = v.Number
		})
	}
	work.Wait()
	slices.Sort(numbers)
	for i, n := range numbers {
		if n != i+1 {
			t.Fatalf("adders at once got %v", numbers)
		}
	}
}

// TestRetries adds versions over a store that loses calls and replies. Who retries a request gets one version of it.
func TestRetries(t *testing.T) {
	store := folder(t)
	for seed := range uint64(20) {
		job := fmt.Sprintf("job%d", seed)
		r := New(objtest.NewFaulty(store, objtest.Plan{Seed: seed, Before: 0.15, After: 0.25}))
		const versions = 4
		for i := range versions {
			n := version("payments", job, "30m", fmt.Sprintf("%dm", 31+i%2)) // every other one has a text that was there before
			n.RequestID = fmt.Sprint("request ", i)
			for tries := 0; ; tries++ {
				v, err := r.Add(t.Context(), n)
				if err == nil {
					if v.Number != i+1 {
						t.Fatalf("seed %d: request %d made version %d", seed, i, v.Number)
					}
					break
				}
				if !errors.Is(err, objtest.ErrInjected) || tries == 100 {
					t.Fatal(err)
				}
			}
		}
	}
	r := New(store)
	early := version("payments", "job3", "30m", "31m")
	early.RequestID = "request 0"
	if v := mustAdd(t, r, early); v.Number != 1 || !v.Existed { // although it is not the latest
		t.Errorf("an early request again is version %d", v.Number)
	}
	early = version("payments", "job3", "30m", "99m")
	early.RequestID = "request 0"
	if _, err := r.Add(t.Context(), early); err == nil || !strings.Contains(err.Error(), "made version 1") {
		t.Errorf("a request id for another spec: %v", err)
	}
}

func TestDamage(t *testing.T) {
	store := folder(t)
	r := New(store)
	v := mustAdd(t, r, version())
	put := func(key string, change func([]byte) []byte) {
		t.Helper()
		data, _, err := store.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		data = change(bytes.Clone(data))
		if _, err := store.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	key := "registry/payments/00000001.json"
	for _, change := range []func([]byte) []byte{
		func(b []byte) []byte { return bytes.Replace(b, []byte("30m"), []byte("31m"), 1) },
		func(b []byte) []byte { return b[:len(b)/2] },
		func(b []byte) []byte { return nil },
		func(b []byte) []byte { return bytes.Replace(b, []byte(`"format":1`), []byte(`"format":2`), 1) },
	} {
		before, _, err := store.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		put(key, change)
		_, err = r.Get(t.Context(), "payments", 1)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), key) {
			t.Errorf("a damaged version: %v", err)
		}
		put(key, func([]byte) []byte { return before })
	}
	data, _, err := store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutIfAbsent(t.Context(), "registry/payments/00000002.json", data, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get(t.Context(), "payments", 2); !errors.Is(err, ErrDamaged) { // right in itself, in the wrong place
		t.Errorf("a version in another's place: %v", err)
	}
	if v := mustAdd(t, r, version("30m", "50m")); v.Number != 3 {
		t.Errorf("behind a damaged version comes %d", v.Number)
	}
	sum := v.Assets["bill.avsc"].SHA256
	put("registry/assets/"+sum, func(b []byte) []byte { return append(b, ' ') })
	if _, err := r.Asset(t.Context(), sum); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged file: %v", err)
	}
	if _, err := r.Asset(t.Context(), "../../x"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("a hash that is none: %v", err)
	}
}

func TestRefused(t *testing.T) {
	store := folder(t)
	r := New(store)
	for _, c := range []struct {
		change func(*NewVersion)
		want   string
	}{
		{func(n *NewVersion) { n.Job = "other" }, "the spec is of the job payments"},
		{func(n *NewVersion) { n.Assets = nil }, "names the file bill.avsc, which is not given"},
		{func(n *NewVersion) { n.Assets["x"] = nil }, `names no file "x"`},
		{func(n *NewVersion) { n.Assets["bill.avsc"] = make([]byte, AssetBytesMax+1) }, "has 16777217 bytes"},
		{func(n *NewVersion) { n.Message = strings.Repeat("x", MessageBytesMax+1) }, "message: expected at most 4096 bytes"},
		{func(n *NewVersion) { n.Author = "\xff" }, "author: expected"},
		{func(n *NewVersion) { n.RequestID = strings.Repeat("x", RequestBytesMax+1) }, "request id: expected"},
		{func(n *NewVersion) {
			n.Spec = bytes.ReplaceAll(n.Spec, []byte("bill.avsc"), []byte("../bill.avsc"))
			n.Assets = map[string][]byte{"../bill.avsc": nil}
		}, "expected a name below the spec's folder"},
	} {
		n := version()
		c.change(&n)
		_, err := r.Add(t.Context(), n)
		var e *Error
		if !errors.As(err, &e) || e.Retryable() || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	n := version("gap: 30m", "gap: soon")
	_, err := r.Add(t.Context(), n)
	var problems jobspec.Problems
	if !errors.As(err, &problems) || problems[0].Pos.Line == 0 {
		t.Errorf("an invalid spec: %v", err)
	}
	if _, err := r.Get(t.Context(), "../x", 1); err == nil || !strings.Contains(err.Error(), "no name of a job") {
		t.Errorf("a name that is none: %v", err)
	}
	for info, err := range store.List(context.Background(), "", "") {
		t.Errorf("what was refused left %s %v", info.Key, err)
	}
}

func TestDiff(t *testing.T) {
	base := Version{Number: 1, Spec: specText, Assets: map[string]AssetRef{"bill.avsc": {SHA256: strings.Repeat("a", 64)}}}
	for _, c := range []struct {
		change []string
		want   string // effect path kind, of all differences
		text   string
	}{
		{[]string{"job: payments", "job: payments # a comment"}, "", ""},
		{[]string{"gap: 30m", "gap: 30m, settle: 10m0s"}, "", ""}, // what is the default anyway
		{[]string{"{order: order.id}", "{order: order.no}"}, "links sources.orders.keys.order changed", "source orders: key order: order.id becomes order.no"},
		{[]string{"{order: order.id}", "{order: order.id, txn: t}"}, "links session.gaps.txn added; links sources.orders.keys.txn added", ""},
		{[]string{"gap: 30m", "gap: 30m, gaps: {order: 90m}"}, "links session.gaps.order changed", "gap of keys of kind order: 30m becomes 1h30m"},
		{[]string{"topic: pay.orders", "topic: pay.orders2"}, "links sources.orders changed", "source orders: topic pay.orders becomes topic pay.orders2"},
		{[]string{"step: event", "step: kind"}, "decodes sources.orders.step changed", ""},
		{[]string{"amount: order.amount", "amount: order.price"}, "fields sources.orders.fields.amount changed", ""},
		{[]string{"user: user\n", "user: user\nwatermark: {delay: 45s}\n"}, "late watermark.delay changed", ""},
		{[]string{".count == 0", ".count == 1"}, "scenarios scenarios.unpaid changed", `scenario unpaid: step("paid").count == 0 becomes step("paid").count == 1`},
		{[]string{"name: unpaid,", "name: unpaid, severity: critical,"}, "operation scenarios.unpaid.severity changed", ""},
		{[]string{"name: unpaid", "name: stuck"}, "scenarios scenarios.stuck added; scenarios scenarios.unpaid removed", ""},
		{[]string{"every: 1h", "every: 2h"}, "reports reports.day changed", ""},
		{[]string{"name: day", "name: hour"}, "reports reports.day removed; reports reports.hour added", "report day is removed: it was every 1h user"},
		{[]string{"sessions: count()", "sessions: count(unpaid)"}, "reports reports.day.sessions changed", ""},
		{[]string{"user: user\n", "user: user\nsinks: {topic: out, parquet: true}\n"}, "operation sinks.parquet added; operation sinks.topic added", "topic of published sessions is added: out"},
		{[]string{"user: user\n", "user: user\ncanary: {steps: [{weight: 5, hold: 10m}]}\n"}, "operation canary added", "canary is added: by user: 5% for 10m"},
		{[]string{"user: user\n", "user: user\nshard_by: user\n", "topic: pay.bills", "topic: pay.bills\n    shard: x"},
			"links shard_by added; links sources.bills.shard added", ""},
		{[]string{"job: payments", "job: ["}, "links  changed", "version 2 cannot be compared"},
	} {
		after := base
		after.Number, after.Spec = 2, strings.NewReplacer(c.change...).Replace(specText)
		var got []string
		text := ""
		for _, d := range Diff(base, after) {
			got = append(got, fmt.Sprintf("%s %s %s", d.Effect, d.Path, d.Kind))
			text += d.Text + "\n"
			if d.Effect.Meaning() == "" {
				t.Errorf("%s means nothing", d.Effect)
			}
		}
		if strings.Join(got, "; ") != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%q: got %q\n%swant %q\n%s", c.change, strings.Join(got, "; "), text, c.want, c.text)
		}
	}
	gone := base
	gone.Spec = specText[:strings.Index(specText, "  bills:")] + specText[strings.Index(specText, "session:"):]
	if list := Diff(base, gone); len(list) != 1 || list[0].Text != "source bills is removed: it was topic pay.bills" {
		t.Errorf("a removed source is told as %+v", list)
	}
	other := base
	other.Assets = map[string]AssetRef{"bill.avsc": {SHA256: strings.Repeat("b", 64)}}
	if list := Diff(base, other); len(list) != 1 || list[0].Effect != Decodes || !strings.Contains(list[0].After, "bbbbbbbbbbbb") {
		t.Errorf("another schema is told as %+v", list)
	}
}

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/archive"
	"github.com/weftdata/weft/event"
	"github.com/weftdata/weft/jobspec"
	"github.com/weftdata/weft/objstore"
	"github.com/weftdata/weft/operator"
	"github.com/weftdata/weft/store"
)

// verified is a shop whose records are in a store, in an archive and in checkpoints.
type verified struct {
	*verification
	t       *testing.T
	dsn     string
	objects *objstore.Local
	records map[string][]archive.Record // by topic
	pending int                         // changes that the next checkpoint has and the store has not
}

var shopTopics = []string{"shop.channel", "shop.game", "shop.orders"}

func newVerified(t *testing.T) *verified {
	t.Helper()
	v := &verified{t: t, dsn: shop(t), records: map[string][]archive.Record{}}
	for _, r := range shopRecords() {
		topic := shopTopics[r.source]
		v.records[topic] = append(v.records[topic], archive.Record{Topic: topic, Offset: int64(len(v.records[topic])), Timestamp: 1, Value: []byte(r.text)})
	}
	var err error
	v.objects, err = objstore.Folder(t.TempDir())
	ok(t, err)
	spec, err := jobspec.Parse([]byte(shopSpec))
	ok(t, err)
	job, err := operator.Compile(spec, 1, nil)
	ok(t, err)
	s, err := store.Open(t.Context(), v.dsn, store.Options{})
	ok(t, err)
	t.Cleanup(func() { s.Close() })
	v.verification = &verification{reader: &reader{Store: s, scope: store.Scope{Job: "shop", Generation: 1}}, version: "1", job: job, objects: v.objects,
		poll: time.Millisecond, bar: newWaitLine(&bytes.Buffer{})}
	v.ends = func(_ context.Context, topic string) (map[int32]int64, error) {
		return map[int32]int64{0: int64(len(v.records[topic]))}, nil
	}
	return v
}

// put writes an object, whatever is there.
func (v *verified) put(key string, data []byte) {
	v.t.Helper()
	_, err := v.objects.Put(v.t.Context(), key, bytes.NewReader(data), int64(len(data)))
	ok(v.t, err)
}

// archive writes a manifest of the records of a topic.
func (v *verified) archive(topic string, sequence, from, to int64) {
	v.t.Helper()
	var b bytes.Buffer
	w := archive.NewWriter(&b)
	ok(v.t, w.WriteAll(v.records[topic][from:to]))
	ok(v.t, w.Close())
	sum := sha256.Sum256(b.Bytes())
	key := archive.DataKey(topic, 0, sequence, "n", 0)
	m := archive.Manifest{Topic: topic, Sequence: sequence, Nonce: "n", From: from, To: to, Records: to - from, Files: []archive.DataFile{{
		Key: key, Bytes: int64(b.Len()), SHA256: hex.EncodeToString(sum[:]), Records: to - from, LeastOffset: from, GreatestOffset: to - 1,
		Timestamps: &archive.Span{Least: 1, Greatest: 1}}}}
	text, err := m.Encode()
	ok(v.t, err)
	v.put(key, b.Bytes())
	v.put(archive.ManifestKey(topic, 0, sequence), text)
}

// checkpoint writes the manifest of a shard that has read so many records less than there are.
func (v *verified) checkpoint(epoch, sequence uint64, behind int64) {
	v.t.Helper()
	var list []map[string]any
	for topic, records := range v.records {
		list = append(list, map[string]any{"topic": topic, "partition": 0, "next": int64(len(records)) - behind})
	}
	text, err := json.Marshal(map[string]any{"stateEpoch": epoch, "sequence": sequence, "pending": v.pending, "partitions": list})
	ok(v.t, err)
	v.put("checkpoints/shop/1/0/manifest.json", text)
	v.put("checkpoints/shop/1/0/state-1", []byte("state"))
	v.put("checkpoints/shop/1/0/sources/manifest.json", []byte("of the repartitioner"))
}

// settled archives all and saves a checkpoint of what the store holds.
func (v *verified) settled() {
	v.t.Helper()
	for topic, records := range v.records {
		v.archive(topic, 0, 0, 2)
		v.archive(topic, 1, 2, int64(len(records)))
	}
	p, err := v.Progress(v.t.Context(), v.scope)
	ok(v.t, err)
	v.checkpoint(p.Shards[0].Position.Epoch, p.Shards[0].Position.Seq, 0)
}

func (v *verified) verify() *verifyResult {
	v.t.Helper()
	r, err := v.run(v.t.Context())
	ok(v.t, err)
	return r
}

func (v *verified) change(b store.Batch) {
	v.t.Helper()
	p, err := v.Progress(v.t.Context(), v.scope)
	ok(v.t, err)
	ok(v.t, v.Write(v.t.Context(), store.Owner{Generation: 1, Epoch: p.Shards[0].Position.Epoch}, &b))
}

func TestVerifyEqual(t *testing.T) {
	v := newVerified(t)
	v.settled()
	r := v.verify()
	if len(r.Compared) != 2 || !r.Equal || r.Compared[1].What != "archive" || r.Compared[1].Sessions != 5 || *r.Compared[1].Records != 13 {
		t.Errorf("got %+v", r)
	}
	if want := (verifyLate{1, 1, 0}); r.Late != want {
		t.Errorf("late %+v, want %+v", r.Late, want)
	}
}

// TestVerifyRepeats proves equality where records were produced again under their own identities.
func TestVerifyRepeats(t *testing.T) {
	v := newVerified(t)
	again := func(topic string, offset int64) {
		r := v.records[topic][offset]
		r.Headers = []archive.Header{{Key: event.OriginHeader, Value: event.AppendOrigin(nil, topic, 0, offset)}}
		r.Offset = int64(len(v.records[topic]))
		v.records[topic] = append(v.records[topic], r)
	}
	again("shop.channel", 3) // a reject: the store has it once
	again("shop.game", 0)    // an event that the stream had forgotten: it came late, and counts
	v.change(store.Batch{Exceptions: []store.Exception{{Seq: 1000, Kind: store.Late, Source: "game", Topic: "shop.game", Time: 1}}})
	v.settled()
	r := v.verify()
	if !r.Equal || len(r.Differences) > 0 {
		t.Errorf("got %+v", r)
	}
	if want := (verifyLate{2, 1, 1}); r.Late != want {
		t.Errorf("late %+v, want %+v", r.Late, want)
	}
}

func TestVerifyDifferences(t *testing.T) {
	v := newVerified(t)
	v.settled()
	page, err := v.Sessions(t.Context(), store.SessionQuery{Scope: v.scope})
	ok(t, err)
	gone, changed := page.Items[0], page.Items[1]
	v.change(store.Batch{
		Tombstones: []store.Tombstone{{Seq: 1000, ID: gone.ID}},
		Sessions: []store.Session{
			{Seq: 1001, ID: changed.ID, Start: changed.Start, End: changed.End, Events: 1, Digest: store.Digest{Sum: [4]uint64{1}}, Body: []byte(`{"id":"x"}`)},
			{Seq: 1002, ID: store.ID{1}, Start: 1, End: 1, Events: 1, Body: []byte(`{"id":"y"}`)},
		},
		Exceptions: []store.Exception{{Seq: 1003, Kind: store.Rejected, Source: "game", Topic: "shop.game", Offset: 99, Reason: "syntax"}},
	})
	r := v.verify()
	if r.Equal || *r.Compared[1].Equal {
		t.Fatalf("got %+v, want a difference", r)
	}
	got := map[string]string{}
	for _, d := range r.Differences {
		got[d.ID] = d.What
	}
	want := map[string]string{gone.ID.String(): "is not in the stream, but in the", changed.ID.String(): "differs from the",
		store.ID{1}.String(): "is in the stream and not in the"}
	if !maps.Equal(got, want) {
		t.Errorf("differences %v, want %v", got, want)
	}
	notes := strings.Join(r.Notes, "\n")
	for _, part := range []string{"rejects of the stream: channel/bad_time: 1, channel/syntax: 1, game/no_time: 1, game/syntax: 1", "weft sessions ID"} {
		if !strings.Contains(notes, part) {
			t.Errorf("no %q in\n%s", part, notes)
		}
	}
	s := &screen{width: 80}
	r.draw(s)
	for _, part := range []string{"DIFFERENT", gone.ID.String() + "  is not in the stream, but in the archive"} {
		if !strings.Contains(s.String(), part) {
			t.Errorf("no %q in\n%s", part, s.String())
		}
	}
}

func TestVerifyTellsWhatLags(t *testing.T) {
	v := newVerified(t)
	lags := func(want string) {
		t.Helper()
		_, err := v.run(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--wait") {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	lags("no shard has saved a checkpoint")
	p, err := v.Progress(t.Context(), v.scope)
	ok(t, err)
	at := p.Shards[0].Position
	v.checkpoint(at.Epoch, at.Seq, 1)
	lags("the stream has saved shop.channel/0 up to 4 of 5; the stream has saved shop.game/0 up to 2 of 3; the stream has saved shop.orders/0 up to 4 of 5")
	v.checkpoint(at.Epoch, at.Seq-1, 0)
	lags("shard 0 has written more than its last checkpoint")
	v.pending = 3
	v.checkpoint(at.Epoch, at.Seq, 0)
	lags("shard 0 has 3 changes to write")
	v.pending = 0
	v.checkpoint(at.Epoch, at.Seq, 0)
	lags("the archive has shop.channel/0 up to 0 of 5")
	v.archive("shop.channel", 0, 0, 5)
	v.archive("shop.orders", 0, 0, 5)
	v.archive("shop.game", 0, 0, 2)
	lags("not comparable after 0s: the archive has shop.game/0 up to 2 of 3; see")

	// It goes on when that has come.
	v.wait = time.Minute
	v.archive("shop.game", 1, 2, 3)
	v.ends = func(_ context.Context, topic string) (map[int32]int64, error) {
		return map[int32]int64{0: int64(len(v.records[topic])), 1: 0}, nil // an empty partition holds nothing up
	}
	if r := v.verify(); !r.Equal {
		t.Errorf("got %+v", r)
	}
	// A run that has written nothing since its start leaves the store as the run before left it.
	v.checkpoint(at.Epoch+1, at.Seq, 0)
	if r := v.verify(); !r.Equal {
		t.Errorf("after a restart: %+v", r)
	}
	_, err = v.TakeEpoch(t.Context(), "shop", 1, 1)
	ok(t, err)
	v.wait = 0
	lags("shard 1 has no checkpoint")
}

func TestVerifyFiles(t *testing.T) {
	v := newVerified(t)
	dir := t.TempDir()
	spec := filepath.Join(dir, "job.yaml")
	ok(t, os.WriteFile(spec, []byte(shopSpec), 0o600))
	args := []string{"verify", "--files-only", "--spec", spec, "--store", v.dsn}
	for i, topic := range shopTopics {
		var b bytes.Buffer
		w := archive.NewWriter(&b)
		ok(t, w.WriteAll(v.records[topic]))
		ok(t, w.Close())
		file := filepath.Join(dir, fmt.Sprint(i, ".parquet"))
		ok(t, os.WriteFile(file, b.Bytes(), 0o600))
		args = append(args, "--input", strings.TrimPrefix(topic, "shop.")+"="+file)
	}
	code, stdout, stderr := weft("", args...)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "equal") || !strings.Contains(stdout, "late: 1 event, of which the replays leave out 1") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	code, stdout, _ = weft("", append(args[:len(args)-2], "--json")...) // without the orders
	var r verifyResult
	ok(t, json.Unmarshal([]byte(stdout), &r))
	if code != 1 || r.Equal || len(r.Compared) != 2 || r.Compared[1].What != "files" || !strings.Contains(strings.Join(r.Notes, " "), "the files have nothing of the sources orders") {
		t.Errorf("exit code %d: %+v", code, r)
	}
	for args, want := range map[string]string{
		"--files-only":        "needs --spec and at least one --input",
		"--input orders":      "expected SOURCE=PATH",
		"--wait -1s":          "is negative",
		"--memory lots":       "--memory",
		"--version 1 --gen 2": "unknown flag",
	} {
		code, _, stderr := weft("", append([]string{"verify", "--store", v.dsn}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %s", args, code, stderr)
		}
	}
}

func TestVerifyReportsAlone(t *testing.T) {
	v := newVerified(t)
	v.settled()
	v.change(store.Batch{Cells: []store.Cell{{Seq: 1000, Report: "volume", Window: 3_600_000_000, By: []store.Dimension{{Name: "channel"}},
		Measures: []store.Measure{{Name: "events", Value: 1}}}}})
	r := v.verify()
	if r.Equal || len(r.Differences) > 0 || !strings.Contains(strings.Join(r.Notes, " "), "the sessions are equal and the reports are not") {
		t.Errorf("got %+v", r)
	}
}

// busyObjects calls a function when a file of the archive is read.
type busyObjects struct {
	objstore.Store
	read func()
}

func (o busyObjects) GetRange(ctx context.Context, key string, from, n int64) ([]byte, error) {
	o.read()
	return o.Store.GetRange(ctx, key, from, n)
}

func TestVerifyOfBusyStream(t *testing.T) {
	v := newVerified(t)
	v.settled()
	v.verification.objects = busyObjects{v.objects, func() { v.change(store.Batch{Tombstones: []store.Tombstone{{Seq: 1000, ID: store.ID{1}}}}) }}
	if r := v.verify(); !r.Equal { // nothing that counts
		t.Errorf("got %+v", r)
	}
	gone := false
	v.verification.objects = busyObjects{v.objects, func() {
		if !gone {
			gone = true
			page, err := v.Sessions(t.Context(), store.SessionQuery{Scope: v.scope})
			ok(t, err)
			v.change(store.Batch{Tombstones: []store.Tombstone{{Seq: 1001, ID: page.Items[0].ID}}})
		}
	}}
	if r, err := v.run(t.Context()); err == nil || !strings.Contains(err.Error(), "the stream went on while it was compared") {
		t.Errorf("got %+v, %v", r, err)
	}
}

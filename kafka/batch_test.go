package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"

	"github.com/weftdata/weft/event"
)

func samples() []Record {
	return []Record{
		{Timestamp: 1_700_000_000_123_000, Key: []byte("k"), Value: []byte("v")},
		{Timestamp: 1_600_000_000_000_000, Value: []byte{}}, // earlier than the first; empty, not null
		{Timestamp: 1_700_000_000_124_000, Key: []byte{}, Value: nil},
		{Timestamp: 1_700_000_000_125_000, Value: []byte(strings.Repeat("long ", 500)), Headers: []Header{
			{Key: []byte("a"), Value: nil}, {Key: []byte("a"), Value: []byte{}}, {Key: []byte{}, Value: []byte("x")}}},
	}
}

func packed(t testing.TB, compressed bool, records ...Record) []byte {
	t.Helper()
	k := packer{}
	if compressed {
		var err error
		if k.zstd, err = zstd.NewWriter(nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range records {
		k.add(&records[i])
	}
	return k.pack()
}

// at moves a batch to a base offset, which the checksum does not cover.
func at(batch []byte, base int64) []byte {
	batch = bytes.Clone(batch)
	binary.BigEndian.PutUint64(batch, uint64(base))
	return batch
}

func clone(r *Record) Record {
	out := *r
	out.Key, out.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
	out.Headers = nil
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, Header{bytes.Clone(h.Key), bytes.Clone(h.Value)})
	}
	return out
}

func unpacked(t testing.TB, batch []byte, from int64) (out []Record) {
	t.Helper()
	b, rest, err := nextBatch(batch)
	if err != nil || len(rest) != 0 {
		t.Fatalf("%d bytes are left: %v", len(rest), err)
	}
	var u unpacker
	if err := u.each(&b, from, func(r *Record) { out = append(out, clone(r)) }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBatchRoundTrip(t *testing.T) {
	for _, compressed := range []bool{false, true} {
		want := samples()
		for i := range want {
			want[i].Offset = int64(1000 + i)
		}
		batch := at(packed(t, compressed, samples()...), 1000)
		if got := unpacked(t, batch, 0); !reflect.DeepEqual(got, want) {
			t.Errorf("compressed %v: got\n%+v\nwant\n%+v", compressed, got, want)
		}
		if got := unpacked(t, batch, 1002); !reflect.DeepEqual(got, want[2:]) {
			t.Errorf("compressed %v: from offset 1002 got %+v", compressed, got)
		}
	}
}

// changed returns a batch with a part replaced and the checksum made right.
func changed(batch []byte, at int, part ...byte) []byte {
	batch = bytes.Clone(batch)
	copy(batch[at:], part)
	binary.BigEndian.PutUint32(batch[crcAt:], crc32.Checksum(batch[attributesAt:], castagnoli))
	return batch
}

func TestBrokerTimestamps(t *testing.T) {
	batch := changed(packed(t, false, samples()...), attributesAt, 0, appendTime)
	for _, r := range unpacked(t, batch, 0) {
		if r.Timestamp != 1_700_000_000_125_000 {
			t.Errorf("timestamp %d is not the batch's greatest", r.Timestamp)
		}
	}
	none := packed(t, false, Record{Timestamp: event.MinTime, Value: []byte("x")})
	if got := unpacked(t, none, 0); got[0].Timestamp != event.MinTime {
		t.Errorf("no timestamp is read as %d", got[0].Timestamp)
	}
}

func TestDamagedBatches(t *testing.T) {
	good := at(packed(t, false, samples()...), 5)
	for name, c := range map[string]struct {
		batch []byte
		text  string
	}{
		"flipped bit":      {slices.Concat(good[:90], []byte{good[90] ^ 4}, good[91:]), "checksum"},
		"old format":       {changed(good, magicAt, 1), "before Kafka 0.11"},
		"length":           {changed(good, lengthAt, 0, 0, 0, 1), "its length is 1"},
		"negative length":  {changed(good, lengthAt, 0xff), "its length is -"},
		"negative offset":  {at(good, -1), "claims offsets"},
		"offsets overflow": {at(good, math.MaxInt64-1), "claims offsets"},
		"last delta":       {changed(good, lastDeltaAt, 0xff), "claims offsets"},
		"fewer offsets":    {changed(good, lastDeltaAt, 0, 0, 0, 0), "record 1 of 4 claims offset 6"},
		"more records":     {changed(good, countAt, 0x7f), "cut off"},
		"compression":      {changed(good, attributesAt, 0, 7), "unknown compression 7"},
		"not zstd":         {changed(good, attributesAt, 0, 4), "cannot decompress zstd"},
		"not gzip":         {changed(good, attributesAt, 0, 1), "cannot decompress gzip"},
		"record length":    {changed(good, headerBytes, 0x01), "record 0 of 4 is cut off"},
		"field length":     {changed(good, headerBytes+4, 0x7f), "record 0 of 4 is malformed"},
	} {
		b, _, err := nextBatch(c.batch)
		if err == nil {
			var u unpacker
			err = u.each(&b, 0, func(*Record) {})
		}
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %s", name, err, c.text)
		}
	}
	for _, n := range []int{0, 1, headerBytes - 1, headerBytes, len(good) - 1} {
		if _, _, err := nextBatch(good[:n]); err != errPartial {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestSnappy(t *testing.T) {
	block := snappy.Encode(nil, []byte("some text, some text"))
	length := binary.BigEndian.AppendUint32(nil, uint32(len(block)))
	head := []byte(snappyFrame + "\x00\x00\x00\x01\x00\x00\x00\x01")
	huge := binary.AppendUvarint(nil, 1<<31)
	for name, c := range map[string]struct {
		p    []byte
		want string // empty: an error
	}{
		"bare":       {block, "some text, some text"},
		"framed":     {slices.Concat(head, length, block, length, block), "some text, some textsome text, some text"},
		"cut header": {head[:10], ""},
		"cut length": {slices.Concat(head, length[:3]), ""},
		"cut block":  {slices.Concat(head, length, block[:5]), ""},
		"huge block": {huge, ""},
		"huge frame": {slices.Concat(head, []byte{0xff, 0xff, 0xff, 0xff}), ""},
		"damaged":    {slices.Concat(block[:3], block), ""},
	} {
		got, err := unsnappy(nil, c.p)
		if c.want == "" && err == nil || c.want != "" && (err != nil || string(got) != c.want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

func FuzzBatch(f *testing.F) {
	f.Add(packed(f, false, samples()...), int64(0))
	f.Add(packed(f, true, samples()...), int64(2))
	f.Add(changed(packed(f, false, samples()...), attributesAt, 0, 2), int64(0))
	f.Fuzz(func(t *testing.T, p []byte, from int64) {
		if len(p) >= headerBytes { // or the fuzzer would search for checksums
			binary.BigEndian.PutUint32(p[crcAt:], crc32.Checksum(p[attributesAt:], castagnoli))
		}
		var u unpacker
		for {
			b, rest, err := nextBatch(p)
			if err != nil {
				return
			}
			_ = u.each(&b, from, func(r *Record) {
				if r.Offset < from || r.Offset < b.base || r.Offset > b.last {
					t.Errorf("offset %d of batch %d to %d from %d", r.Offset, b.base, b.last, from)
				}
			})
			p = rest
		}
	})
}

// answered returns a fetcher that got these batches as one answer.
func answered(next, highWater int64, batches ...[]byte) *Fetcher {
	c, err := New(Config{Brokers: []string{"127.0.0.1:1"}})
	if err != nil {
		panic(err)
	}
	f := c.Fetcher(Topic{Name: "pay", Partitions: 8}, 7, next)
	f.answer, f.end.HighWater = slices.Concat(batches...), highWater
	return f
}

func texts(n int) (out []Record) {
	for i := range n {
		out = append(out, Record{Timestamp: 1, Value: fmt.Appendf(nil, "value %d", i)})
	}
	return out
}

func TestFetchHandsOutByBytes(t *testing.T) {
	f := answered(12, 30, at(packed(t, true, texts(10)...), 10), at(packed(t, false, texts(10)...), 20))
	var b event.Batch
	got, err := f.Fetch(t.Context(), &b, 3, 1)
	if err != nil || got != (Fetched{Next: 20, HighWater: 30, Records: 8, Bytes: 56}) {
		t.Fatalf("first: %+v, %v", got, err)
	}
	got, err = f.Fetch(t.Context(), &b, 3, 1)
	if err != nil || got.Next != 30 || got.Records != 10 || got.AtEnd {
		t.Fatalf("second: %+v, %v", got, err)
	}
	for i, r := range b.Records {
		if r.Offset != int64(12+i) || r.Partition != 7 || r.Source != 3 || string(b.Raw(r)) != fmt.Sprintf("value %d", (12+i)%10) {
			t.Errorf("record %d is %+v %q", i, r, b.Raw(r))
		}
	}
}

func TestFetchStopsAtDamage(t *testing.T) {
	bad := at(packed(t, false, texts(10)...), 20)
	bad[100] ^= 1
	f := answered(10, 30, at(packed(t, false, texts(10)...), 10), bad)
	var b event.Batch
	got, err := f.Fetch(t.Context(), &b, 0, 1<<20)
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, ErrCorrupt) || e.Retryable() || e.Hint == "" || e.Op != "fetch pay/7 at offset 20" {
		t.Fatalf("got %v", err)
	}
	if got.Next != 20 || len(b.Records) != 10 || f.answer != nil {
		t.Errorf("got %+v, %d records", got, len(b.Records))
	}
}

func TestFetchRejects(t *testing.T) {
	long := make([]byte, event.RecordBytesMax+1)
	f := answered(0, 4, packed(t, true, Record{Value: long}, Record{Value: []byte("x"), Headers: []Header{{Key: []byte(event.OriginHeader)}}},
		Record{Value: long[:event.RecordBytesMax]}, Record{}))
	var b event.Batch
	got, err := f.Fetch(t.Context(), &b, 0, 1<<30)
	if err != nil || got.Records != 3 || got.Nulls != 1 || len(b.Records) != 1 || len(b.Rejects) != 2 {
		t.Fatalf("got %+v, %d records, %d rejects, %v", got, len(b.Records), len(b.Rejects), err)
	}
	if r := b.Rejects[0]; r.Reason != event.ReasonTooLong || r.Record.Len != RejectBytes {
		t.Errorf("long: %+v", r)
	}
	if r := b.Rejects[1]; r.Reason != event.ReasonSyntax || string(b.Raw(r.Record)) != "x" || r.Record.Offset != 1 {
		t.Errorf("null origin: %+v", r)
	}
}

// A transaction that was aborted hides its producer's records up to the marker; another producer's are not touched.
func TestFetchLeavesAbortedOut(t *testing.T) {
	of := func(base, producer int64, attributes byte) []byte {
		p := make([]byte, 8)
		binary.BigEndian.PutUint64(p, uint64(producer))
		return at(changed(changed(packed(t, false, texts(1)...), producerAt, p...), attributesAt, 0, attributes), base)
	}
	f := answered(0, 9, of(0, 5, transactional), of(1, 6, transactional), of(2, 5, transactional|control), of(3, 5, transactional),
		of(4, 5, transactional|control), of(5, 5, 0), of(6, 5, transactional), of(7, 5, transactional|control))
	f.aborted = []abortedTransaction{{5, 0}, {5, 6}}
	var offsets []int64
	if _, err := f.Records(t.Context(), 1<<20, func(r *Record) { offsets = append(offsets, r.Offset) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(offsets, []int64{1, 3, 5}) || f.Next() != 8 {
		t.Errorf("got offsets %v, next %d", offsets, f.Next())
	}
}

func BenchmarkUnpack(b *testing.B) {
	for _, compressed := range []bool{false, true} {
		records := make([]Record, 1000)
		for i := range records {
			records[i] = Record{Timestamp: event.Micros(i) * 1000, Value: fmt.Appendf(nil, `{"ts":%d,"order":"26030127434858%07d","user":"u12000%05d","note":"%s"}`, i, i*7919, i*31, strings.Repeat("abcdefgh", 25))}
		}
		batch := packed(b, compressed, records...)
		b.Run(fmt.Sprintf("zstd=%v", compressed), func(b *testing.B) {
			var u unpacker
			var to event.Batch
			f := answered(0, 0)
			b.ReportAllocs()
			for b.Loop() {
				to.Reset()
				one, _, err := nextBatch(batch)
				if err == nil {
					err = u.each(&one, 0, func(r *Record) { f.add(&to, 0, r) })
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*float64(len(records))/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func BenchmarkPack(b *testing.B) {
	records := texts(1000)
	var err error
	k := packer{}
	if k.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		k.reset()
		for i := range records {
			k.add(&records[i])
		}
		k.pack()
	}
	b.ReportMetric(float64(b.N)*float64(len(records))/b.Elapsed().Seconds(), "records/s")
}

package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/segmentio/kafka-go/compress"

	"github.com/weftdata/weft/event"
)

// Record is one record of a partition. Its bytes belong to whoever made it: they are valid during the call only.
type Record struct {
	Offset    int64        // not used when producing
	Timestamp event.Micros // the broker's or the producer's, as the topic is configured; event.MinTime: none. Kafka keeps milliseconds
	Key       []byte       // nil: null, unlike empty
	Value     []byte       // nil: null, unlike empty
	Headers   []Header     // in order; names may repeat
}

// Header is one header of a record.
type Header struct {
	Key   []byte
	Value []byte // nil: null
}

// The header of a record batch, version 2: places of its members.
const (
	lengthAt     = 8 // bytes of what follows the length
	magicAt      = 16
	crcAt        = 17 // of everything behind it
	attributesAt = 21
	lastDeltaAt  = 23
	baseTimeAt   = 27
	maxTimeAt    = 35
	producerAt   = 43
	countAt      = 57
	headerBytes  = 61

	compressionMask = 7
	appendTime      = 1 << 3 // the timestamp of all records is the greatest one: the broker's
	transactional   = 1 << 4
	control         = 1 << 5
)

// plainBytesMax bounds what a batch decompresses to: brokers refuse more than message.max.bytes compressed, which says
// little about what comes out.
const plainBytesMax = 256 << 20

// recordBatch is one batch as it stands in an answer.
type recordBatch struct {
	base       int64 // offset of the first record
	last       int64 // offset of the last one, which compaction may have removed
	attributes int16
	baseTime   int64
	maxTime    int64
	producer   int64
	count      int32
	records    []byte // compressed as the attributes say
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errPartial says that an answer ends within a batch, as brokers may end it.
var errPartial = errors.New("the batch is cut off")

// nextBatch takes the first batch off an answer.
func nextBatch(p []byte) (b recordBatch, rest []byte, err error) {
	if len(p) < headerBytes {
		return b, p, errPartial
	}
	length := int64(int32(binary.BigEndian.Uint32(p[lengthAt:])))
	if magic := p[magicAt]; magic != 2 {
		return b, p, fmt.Errorf("%w: it is in format %d, from before Kafka 0.11", ErrCorrupt, magic)
	}
	end := length + lengthAt + 4
	if length < headerBytes-lengthAt-4 {
		return b, p, fmt.Errorf("%w: its length is %d", ErrCorrupt, length)
	}
	if end > int64(len(p)) {
		return b, p, errPartial
	}
	whole := p[:end]
	if crc32.Checksum(whole[attributesAt:], castagnoli) != binary.BigEndian.Uint32(whole[crcAt:]) {
		return b, p, fmt.Errorf("%w: its checksum is wrong", ErrCorrupt)
	}
	b = recordBatch{
		base:       int64(binary.BigEndian.Uint64(whole)),
		attributes: int16(binary.BigEndian.Uint16(whole[attributesAt:])),
		baseTime:   int64(binary.BigEndian.Uint64(whole[baseTimeAt:])),
		maxTime:    int64(binary.BigEndian.Uint64(whole[maxTimeAt:])),
		producer:   int64(binary.BigEndian.Uint64(whole[producerAt:])),
		count:      int32(binary.BigEndian.Uint32(whole[countAt:])),
		records:    whole[headerBytes:],
	}
	delta := int32(binary.BigEndian.Uint32(whole[lastDeltaAt:]))
	if b.last = b.base + int64(delta); b.base < 0 || delta < 0 || b.last < b.base {
		return b, p, fmt.Errorf("%w: it claims offsets %d to %d", ErrCorrupt, b.base, b.last)
	}
	return b, p[end:], nil
}

// unpacker decompresses batches and reads their records into one reused Record.
type unpacker struct {
	zstd    *zstd.Decoder
	source  bytes.Reader
	plain   []byte
	record  Record
	headers []Header
}

// decompress returns the records of a batch; they are valid until the next call.
func (u *unpacker) decompress(b *recordBatch) (p []byte, err error) {
	codec := compress.Compression(b.attributes & compressionMask)
	switch codec {
	case compress.None:
		return b.records, nil
	case compress.Zstd:
		if u.zstd == nil {
			u.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(plainBytesMax))
		}
		if err == nil {
			u.plain, err = u.zstd.DecodeAll(b.records, u.plain[:0])
		}
	case compress.Snappy:
		u.plain, err = unsnappy(u.plain[:0], b.records)
	default:
		err = u.stream(codec, b.records)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: cannot decompress %v: %w", ErrCorrupt, codec, err)
	}
	return u.plain, nil
}

// snappyFrame starts what Java's producers write: a version and the least compatible one follow, then blocks with lengths.
// Others write one bare block.
const snappyFrame = "\x82SNAPPY\x00"

// unsnappy appends what blocks decompress to. The lengths in them are checked first: they are anybody's word, and kafka-go's
// codec would allocate what they say.
func unsnappy(to, p []byte) ([]byte, error) {
	rest, framed := bytes.CutPrefix(p, []byte(snappyFrame))
	if !framed {
		return unsnappyBlock(to, p)
	}
	if len(rest) < 8 {
		return to, io.ErrUnexpectedEOF
	}
	for rest = rest[8:]; len(rest) > 0; {
		if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return to, io.ErrUnexpectedEOF
		}
		n := 4 + int(binary.BigEndian.Uint32(rest))
		var err error
		if to, err = unsnappyBlock(to, rest[4:n]); err != nil {
			return to, err
		}
		rest = rest[n:]
	}
	return to, nil
}

func unsnappyBlock(to, block []byte) ([]byte, error) {
	n, err := snappy.DecodedLen(block)
	if err != nil {
		return to, err
	}
	if n > plainBytesMax-len(to) {
		return to, fmt.Errorf("more than %d bytes", plainBytesMax)
	}
	to = slices.Grow(to, n)
	_, err = snappy.Decode(to[len(to):len(to)+n], block)
	return to[:len(to)+n], err
}

// stream decompresses with kafka-go's codecs.
func (u *unpacker) stream(codec compress.Compression, p []byte) error {
	c := codec.Codec()
	if c == nil {
		return fmt.Errorf("unknown compression %d", codec)
	}
	u.source.Reset(p)
	r := c.NewReader(&u.source)
	u.plain = u.plain[:0]
	for {
		u.plain = slices.Grow(u.plain, 64<<10)
		n, err := r.Read(u.plain[len(u.plain):cap(u.plain)])
		u.plain = u.plain[:len(u.plain)+n]
		switch {
		case len(u.plain) > plainBytesMax:
			return errors.Join(fmt.Errorf("more than %d bytes", plainBytesMax), r.Close())
		case err == io.EOF:
			return r.Close()
		case err != nil:
			return errors.Join(err, r.Close())
		}
	}
}

// each calls yield with every record of a batch from an offset on.
func (u *unpacker) each(b *recordBatch, from int64, yield func(*Record)) error {
	p, err := u.decompress(b)
	if err != nil {
		return err
	}
	broker := event.MinTime
	if b.attributes&appendTime != 0 {
		broker = micros(b.maxTime)
	}
	s := cursor{p: p}
	for i := range b.count {
		length := s.varint()
		if s.bad || length < 0 || length > int64(len(s.p)) {
			return fmt.Errorf("%w: record %d of %d is cut off", ErrCorrupt, i, b.count)
		}
		one := cursor{p: s.p[:length]}
		s.p = s.p[length:]
		u.read(&one, b, broker)
		if one.bad {
			return fmt.Errorf("%w: record %d of %d is malformed", ErrCorrupt, i, b.count)
		}
		if u.record.Offset < b.base || u.record.Offset > b.last {
			return fmt.Errorf("%w: record %d of %d claims offset %d", ErrCorrupt, i, b.count, u.record.Offset)
		}
		if u.record.Offset >= from {
			yield(&u.record)
		}
	}
	return nil
}

func (u *unpacker) read(s *cursor, b *recordBatch, broker event.Micros) {
	s.skip(1) // attributes, none so far
	r := &u.record
	delta := s.varint()
	if r.Timestamp = broker; b.attributes&appendTime == 0 {
		r.Timestamp = micros(b.baseTime + delta)
	}
	r.Offset = b.base + s.varint()
	r.Key = s.field()
	r.Value = s.field()
	u.headers = u.headers[:0]
	n := s.varint()
	if n < 0 || n > int64(len(s.p)) {
		s.bad = true
	}
	for ; n > 0 && !s.bad; n-- {
		u.headers = append(u.headers, Header{Key: s.field(), Value: s.field()})
	}
	r.Headers = u.headers
}

// micros makes microseconds of a timestamp; Kafka writes -1 for none.
func micros(ms int64) event.Micros {
	if ms < 0 || ms > math.MaxInt64/1000 {
		return event.MinTime
	}
	return event.Micros(ms * 1000)
}

// cursor reads a record's members; bad says that they end early.
type cursor struct {
	p   []byte
	bad bool
}

func (c *cursor) varint() int64 {
	if len(c.p) > 0 && c.p[0] < 0x80 { // most are one byte
		u := uint64(c.p[0])
		c.p = c.p[1:]
		return int64(u>>1) ^ -int64(u&1)
	}
	v, n := binary.Varint(c.p)
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.p = c.p[n:]
	return v
}

func (c *cursor) skip(n int64) []byte {
	if c.bad || n < 0 || n > int64(len(c.p)) {
		c.bad = true
		return nil
	}
	out := c.p[:n:n]
	c.p = c.p[n:]
	return out
}

// field reads bytes with their length; -1 is null.
func (c *cursor) field() []byte {
	n := c.varint()
	if n == -1 {
		return nil
	}
	return c.skip(n)
}

// packer builds one batch.
type packer struct {
	zstd    *zstd.Encoder // nil: no compression
	records []byte
	count   int32
	first   int64 // timestamps in milliseconds
	last    int64 // the greatest
	out     []byte
}

func (k *packer) reset() { k.records, k.count = k.records[:0], 0 }

// add appends a record.
func (k *packer) add(r *Record) {
	ms := int64(-1)
	if r.Timestamp != event.MinTime {
		ms = int64(r.Timestamp) / 1000
	}
	if k.count == 0 {
		k.first, k.last = ms, ms
	}
	k.last = max(k.last, ms)
	size := 1 + varintLen(ms-k.first) + varintLen(int64(k.count)) + fieldLen(r.Key) + fieldLen(r.Value) + varintLen(int64(len(r.Headers)))
	for i := range r.Headers {
		size += fieldLen(r.Headers[i].Key) + fieldLen(r.Headers[i].Value)
	}
	p := binary.AppendVarint(k.records, int64(size))
	p = append(p, 0)
	p = binary.AppendVarint(p, ms-k.first)
	p = binary.AppendVarint(p, int64(k.count))
	p = appendField(appendField(p, r.Key), r.Value)
	p = binary.AppendVarint(p, int64(len(r.Headers)))
	for i := range r.Headers {
		p = appendField(appendField(p, r.Headers[i].Key), r.Headers[i].Value)
	}
	k.records = p
	k.count++
}

func varintLen(v int64) int {
	n := 1
	for u := uint64(v)<<1 ^ uint64(v>>63); u >= 0x80; u >>= 7 {
		n++
	}
	return n
}

func fieldLen(p []byte) int {
	if p == nil {
		return 1
	}
	return varintLen(int64(len(p))) + len(p)
}

func appendField(to, p []byte) []byte {
	if p == nil {
		return binary.AppendVarint(to, -1)
	}
	return append(binary.AppendVarint(to, int64(len(p))), p...)
}

// pack returns the batch; it is valid until the next call.
func (k *packer) pack() []byte {
	attributes := int16(0)
	w := writer{b: k.out[:0]}
	w.i64(0) // base offset: the broker's business
	w.i32(0) // length
	w.i32(-1)
	w.i8(2)
	w.i32(0) // checksum
	if k.zstd != nil {
		attributes = int16(compress.Zstd)
	}
	w.i16(attributes)
	w.i32(k.count - 1)
	w.i64(k.first)
	w.i64(k.last)
	w.i64(-1) // not idempotent: no producer
	w.i16(-1)
	w.i32(-1)
	w.i32(k.count)
	if k.zstd != nil {
		w.b = k.zstd.EncodeAll(k.records, w.b)
	} else {
		w.b = append(w.b, k.records...)
	}
	binary.BigEndian.PutUint32(w.b[lengthAt:], uint32(len(w.b)-lengthAt-4))
	binary.BigEndian.PutUint32(w.b[crcAt:], crc32.Checksum(w.b[attributesAt:], castagnoli))
	k.out = w.b
	return w.b
}

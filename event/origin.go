package event

import (
	"bytes"
	"fmt"
	"strconv"
)

// OriginHeader names the header that holds a record's identity from before it was produced again or repartitioned:
// "topic/partition/offset". Where a record has it, it replaces the position in Kafka.
const OriginHeader = "weft-origin"

// ParseOrigin reads the value of an OriginHeader. A topic has no slash.
func ParseOrigin(text []byte) (partition int32, offset int64, ok bool) {
	topic, rest, found := bytes.Cut(text, []byte{'/'})
	p, o, found2 := bytes.Cut(rest, []byte{'/'})
	if !found || !found2 || len(topic) == 0 {
		return 0, 0, false
	}
	n, err := strconv.ParseUint(string(p), 10, 31)
	m, err2 := strconv.ParseUint(string(o), 10, 63)
	return int32(n), int64(m), err == nil && err2 == nil
}

// AppendOrigin appends the value of an OriginHeader.
func AppendOrigin(to []byte, topic string, partition int32, offset int64) []byte {
	to = append(append(to, topic...), '/')
	to = append(strconv.AppendInt(to, int64(partition), 10), '/')
	return strconv.AppendInt(to, offset, 10)
}

// RejectBytes is how much of a value over RecordBytesMax is kept.
const RejectBytes = 1 << 10

// AddLogged adds a record as it came out of a log: r is its place there, size the bytes of its value before it was cut, and
// origin the value of its OriginHeader, which then is its identity; nil: it has none. A malformed origin, and a value longer
// than RecordBytesMax, make a reject under the place in the log.
func (b *Batch) AddLogged(r Record, value []byte, size int, origin []byte) {
	if size > RecordBytesMax {
		b.rejectLogged(r, value[:min(len(value), RejectBytes)], ReasonTooLong,
			fmt.Sprintf("the value has %d bytes; at most %d are allowed", size, RecordBytesMax))
		return
	}
	if origin != nil {
		partition, offset, ok := ParseOrigin(origin)
		if !ok {
			b.rejectLogged(r, value, ReasonSyntax,
				fmt.Sprintf("header %s is %q; expected topic/partition/offset", OriginHeader, origin[:min(len(origin), 100)]))
			return
		}
		r.Partition, r.Offset = partition, offset
	}
	b.Add(r, value)
}

func (b *Batch) rejectLogged(r Record, raw []byte, reason Reason, detail string) {
	r.Off, r.Len = uint32(len(b.Data)), uint32(len(raw))
	b.Data = append(b.Data, raw...)
	b.Rejects = append(b.Rejects, Reject{Record: r, Reason: reason, Detail: detail})
}

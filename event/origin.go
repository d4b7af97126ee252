package event

import (
	"bytes"
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

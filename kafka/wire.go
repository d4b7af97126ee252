package kafka

import (
	"encoding/binary"
	"errors"
	"math"
)

// writer builds a request. Flexible versions of the protocol write lengths as varints of length+1, and tags.
type writer struct {
	b        []byte
	flexible bool
}

func (w *writer) i8(v int8)   { w.b = append(w.b, byte(v)) }
func (w *writer) i16(v int16) { w.b = binary.BigEndian.AppendUint16(w.b, uint16(v)) }
func (w *writer) i32(v int32) { w.b = binary.BigEndian.AppendUint32(w.b, uint32(v)) }
func (w *writer) i64(v int64) { w.b = binary.BigEndian.AppendUint64(w.b, uint64(v)) }

func (w *writer) array(n int) {
	if w.flexible {
		w.b = binary.AppendUvarint(w.b, uint64(n)+1)
	} else {
		w.i32(int32(n))
	}
}

func (w *writer) text(s string) {
	if w.flexible {
		w.b = binary.AppendUvarint(w.b, uint64(len(s))+1)
	} else {
		w.i16(int16(len(s)))
	}
	w.b = append(w.b, s...)
}

func (w *writer) tags() {
	if w.flexible {
		w.b = append(w.b, 0)
	}
}

var errShort = errors.New("the answer of the broker ends early")

// reader takes an answer apart. After an error everything reads as zero.
type reader struct {
	b        []byte
	flexible bool
	err      error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.b = nil
		if r.err == nil {
			r.err = errShort
		}
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) i8() int8 {
	if p := r.take(1); p != nil {
		return int8(p[0])
	}
	return 0
}

func (r *reader) i16() int16 {
	if p := r.take(2); p != nil {
		return int16(binary.BigEndian.Uint16(p))
	}
	return 0
}

func (r *reader) i32() int32 {
	if p := r.take(4); p != nil {
		return int32(binary.BigEndian.Uint32(p))
	}
	return 0
}

func (r *reader) i64() int64 {
	if p := r.take(8); p != nil {
		return int64(binary.BigEndian.Uint64(p))
	}
	return 0
}

// size reads a length: bits wide where the version is not flexible. Null reads as 0.
func (r *reader) size(bits int) int {
	if !r.flexible {
		if bits == 16 {
			return max(int(r.i16()), 0)
		}
		return max(int(r.i32()), 0)
	}
	n, used := binary.Uvarint(r.b)
	if used <= 0 || n > math.MaxInt32 {
		r.take(-1)
		return 0
	}
	r.b = r.b[used:]
	return max(int(n)-1, 0)
}

// array reads the number of members, each of which has at least one byte.
func (r *reader) array() int {
	n := r.size(32)
	if n > len(r.b) {
		r.take(-1)
		return 0
	}
	return n
}

func (r *reader) text() string  { return string(r.take(r.size(16))) }
func (r *reader) bytes() []byte { return r.take(r.size(32)) }
func (r *reader) ints()         { r.take(4 * r.array()) }

func (r *reader) tags() {
	if !r.flexible {
		return
	}
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		r.uvarint()
		r.take(r.uvarint())
	}
}

func (r *reader) uvarint() int {
	n, used := binary.Uvarint(r.b)
	if used <= 0 || n > math.MaxInt32 {
		r.take(-1)
		return 0
	}
	r.b = r.b[used:]
	return int(n)
}

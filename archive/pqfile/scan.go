package pqfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Limits on a footer or page header. A footer has one struct a column of a row group.
const (
	structsMax = 1 << 18
	valuesMax  = 1 << 22
	depthMax   = 24
)

var errShort = errors.New("it ends early")

// scan walks a struct of Thrift's compact protocol and returns its length in bytes. It finds lists that claim more than there
// is, before a decoder allocates for them.
func scan(data []byte) (length int, err error) {
	s := &scanner{data: data}
	if err := s.structure(0); err != nil {
		return 0, err
	}
	return s.at, nil
}

type scanner struct {
	data            []byte
	at              int
	structs, values int
}

// The types of the compact protocol.
const (
	typeTrue   = 1
	typeFalse  = 2
	typeByte   = 3
	typeInt16  = 4
	typeInt32  = 5
	typeInt64  = 6
	typeDouble = 7
	typeBinary = 8
	typeList   = 9
	typeSet    = 10
	typeMap    = 11
	typeStruct = 12
)

func (s *scanner) structure(depth int) error {
	if depth > depthMax {
		return fmt.Errorf("it is nested deeper than %d", depthMax)
	}
	for {
		b, err := s.byte()
		if err != nil || b == 0 {
			return err
		}
		if b>>4 == 0 {
			if _, err := s.uvarint(); err != nil {
				return err
			}
		}
		if t := b & 15; t != typeTrue && t != typeFalse { // a field's type is its value
			if err := s.value(t, depth); err != nil {
				return err
			}
		}
	}
}

func (s *scanner) value(t byte, depth int) error {
	switch t {
	case typeTrue, typeFalse, typeByte:
		return s.skip(1)
	case typeInt16, typeInt32, typeInt64:
		_, err := s.uvarint()
		return err
	case typeDouble:
		return s.skip(8)
	case typeBinary:
		n, err := s.uvarint()
		if err != nil {
			return err
		}
		return s.skip(n)
	case typeList, typeSet:
		return s.list(depth)
	case typeMap:
		return errors.New("it has a map, which Parquet does not use")
	case typeStruct:
		return s.structure(depth + 1)
	}
	return fmt.Errorf("it has a value of unknown type %d", t)
}

func (s *scanner) list(depth int) error {
	b, err := s.byte()
	if err != nil {
		return err
	}
	n, t := uint64(b>>4), b&15
	if n == 15 {
		if n, err = s.uvarint(); err != nil {
			return err
		}
	}
	if n > uint64(len(s.data)-s.at) { // an element has at least one byte
		return errShort
	}
	s.values += int(n)
	if t == typeStruct {
		s.structs += int(n)
	}
	if s.values > valuesMax || s.structs > structsMax {
		return fmt.Errorf("it lists more than %d structures or %d values", structsMax, valuesMax)
	}
	for range n {
		if err := s.value(t, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) byte() (byte, error) {
	if s.at >= len(s.data) {
		return 0, errShort
	}
	s.at++
	return s.data[s.at-1], nil
}

func (s *scanner) uvarint() (uint64, error) {
	n, used := binary.Uvarint(s.data[s.at:])
	if used == 0 {
		return 0, errShort
	}
	if used < 0 {
		return 0, errors.New("it has a number of more than 64 bits")
	}
	s.at += used
	return n, nil
}

func (s *scanner) skip(n uint64) error {
	if n > uint64(len(s.data)-s.at) {
		return errShort
	}
	s.at += int(n)
	return nil
}

// zstdBlockBytes bounds what one block decompresses to.
const zstdBlockBytes = 128 << 10

// zstdMax walks the blocks of zstd frames and returns a bound of what they decompress to.
func zstdMax(r *io.SectionReader) (bound int64, err error) {
	buf := make([]byte, zstd.HeaderMaxSize)
	for at := int64(0); at < r.Size(); {
		n, err := r.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return 0, err
		}
		var h zstd.Header
		if err := h.Decode(buf[:n]); err != nil {
			return 0, err
		}
		at += int64(h.HeaderSize)
		if h.Skippable {
			at += int64(h.SkippableSize)
			continue
		}
		frame := int64(0)
		for last := false; !last; {
			if _, err := r.ReadAt(buf[:3], at); err != nil {
				return 0, fmt.Errorf("compressed data: %w", io.ErrUnexpectedEOF)
			}
			block := uint32(buf[0]) | uint32(buf[1])<<8 | uint32(buf[2])<<16
			last = block&1 == 1
			size := int64(block >> 3)
			at += 3
			if block>>1&3 == 1 { // one byte, repeated
				frame += size
				size = 1
			} else {
				frame += zstdBlockBytes
			}
			at += size
		}
		if h.HasCheckSum {
			at += 4
		}
		if h.HasFCS { // a decoder stops at a frame's declared size
			frame = min(frame, int64(min(h.FrameContentSize, 1<<62)))
		}
		bound += frame
	}
	return bound, nil
}

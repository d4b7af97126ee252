package archiver

import (
	"slices"

	"github.com/weftdata/weft/archive"
)

// rows holds the records of a partition that wait for their file, as copies of its own.
type rows struct {
	records []archive.Record
	times   []rowTimes // for each record, one for each tracked source
	tracked int
	block   []byte // the rest of the memory that new bytes go to
	blocks  int    // that were made
	bytes   int64  // that all of it takes
	raw     int64  // bytes of the records
}

// Blocks grow, so that a quiet partition holds little and a busy one makes few.
const (
	blockBytesMin = 8 << 10
	blockBytesMax = 1 << 20
	recordBytes   = 136 // of a record beside its bytes
	headerBytes   = 40
	timesBytes    = 24
)

func (a *archiver) newRows() *rows { return &rows{tracked: len(a.times.sources)} }

// add keeps a copy of a record.
func (r *rows) add(from *archive.Record) {
	to := *from
	to.Key, to.Value, to.Headers = r.copy(from.Key), r.copy(from.Value), slices.Clone(from.Headers)
	for i := range to.Headers {
		to.Headers[i].Value = r.copy(to.Headers[i].Value)
		r.raw += int64(len(to.Headers[i].Key) + len(to.Headers[i].Value))
		r.bytes += headerBytes + int64(len(to.Headers[i].Key))
	}
	r.raw += int64(len(to.Key) + len(to.Value))
	r.records = append(r.records, to)
	for range r.tracked {
		r.times = append(r.times, noTimes())
	}
	r.bytes += recordBytes + timesBytes*int64(r.tracked)
}

// copy copies bytes; nil stays nil, and empty stays empty.
func (r *rows) copy(p []byte) []byte {
	if p == nil {
		return nil
	}
	if len(p) > len(r.block) {
		n := max(len(p), min(blockBytesMin<<min(r.blocks, 10), blockBytesMax))
		r.block = make([]byte, n)
		r.blocks++
		r.bytes += int64(n)
	}
	to := r.block[:len(p):len(p)]
	r.block = r.block[len(p):]
	copy(to, p)
	return to
}

func (r *rows) timesOf(row int) []rowTimes { return r.times[row*r.tracked : (row+1)*r.tracked] }

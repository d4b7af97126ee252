package archive

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/weftdata/weft/event"
)

func benchRecords(n int) (records []Record, bytes int) {
	for i := range n {
		value := fmt.Appendf(nil, `{"event":"paid","ts":%d,"order":{"id":"ORD%015d","amount":%d,"receipt":"%016x"},"user":{"id":"u%07d"},"app":"g%d","padding":%q}`,
			1_767_225_600_000+i, i*7919, i%97*100, i*104729, i%1_000_003, i%5, strings.Repeat("pad ", 35))
		bytes += len(value)
		records = append(records, Record{Topic: "pay", Offset: int64(i), Timestamp: event.Micros(i * 1000), Key: fmt.Appendf(nil, "g%d", i%5), Value: value})
	}
	return records, bytes
}

func BenchmarkWrite(b *testing.B) {
	records, size := benchRecords(100_000)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		w := NewWriter(io.Discard)
		if err := w.WriteAll(records); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(records))*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

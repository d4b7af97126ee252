package jobspec

import "testing"

func BenchmarkParse(b *testing.B) {
	text := readFile(b, "testdata/valid/payments.yaml")
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

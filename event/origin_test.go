package event

import "testing"

func TestOrigin(t *testing.T) {
	tests := []struct {
		text      string
		partition int32
		offset    int64
		ok        bool
	}{
		{"pay/0/0", 0, 0, true},
		{"pay.orders-v2/2147483647/9223372036854775807", 2147483647, 9223372036854775807, true},
		{"pay/2147483648/0", 0, 0, false},
		{"pay/0/9223372036854775808", 0, 0, false},
		{"pay/-1/0", 0, 0, false},
		{"pay/0/-1", 0, 0, false},
		{"pay/0/+1", 0, 0, false},
		{"/0/1", 0, 0, false},
		{"pay/0", 0, 0, false},
		{"pay/0/1/2", 0, 0, false},
		{"", 0, 0, false},
	}
	for _, tt := range tests {
		partition, offset, ok := ParseOrigin([]byte(tt.text))
		if ok != tt.ok || ok && (partition != tt.partition || offset != tt.offset) {
			t.Errorf("%q: got %d, %d, %v", tt.text, partition, offset, ok)
		}
	}
}

func TestOriginRoundTrip(t *testing.T) {
	text := AppendOrigin([]byte("x"), "pay.orders", 7, 1<<62)
	if string(text) != "xpay.orders/7/4611686018427387904" {
		t.Errorf("appended %q", text)
	}
	if p, o, ok := ParseOrigin(text[1:]); p != 7 || o != 1<<62 || !ok {
		t.Errorf("read back %d, %d, %v", p, o, ok)
	}
}

package correlate

import (
	"bytes"
	"strings"
	"testing"
)

func TestIDText(t *testing.T) {
	ff := ID(bytes.Repeat([]byte{0xff}, 16))
	tests := []struct {
		id   ID
		text string
	}{
		{ID{}, "00000000000000000000000000"},
		{ID{15: 1}, "00000000000000000000000001"},
		{ID{15: 32}, "00000000000000000000000010"},
		{ID{0: 0x80}, "40000000000000000000000000"},
		{ID{7: 1}, "0000000000000G000000000000"},
		{ff, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"},
	}
	for _, tt := range tests {
		if got := tt.id.String(); got != tt.text {
			t.Errorf("%x: got %s, want %s", tt.id, got, tt.text)
		}
		for _, text := range []string{tt.text, strings.ToLower(tt.text), strings.NewReplacer("0", "o", "1", "l").Replace(tt.text)} {
			if id, err := ParseID(text); err != nil || id != tt.id {
				t.Errorf("parse %s: got %x, %v; want %x", text, id, err, tt.id)
			}
		}
	}
}

func TestParseIDErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                            `session id "": has 0 characters; expected 26`,
		"80000000000000000000000000":  `session id "80000000000000000000000000": '8' at character 1 is no digit of it`,
		"0000000000000000000000000U":  `session id "0000000000000000000000000U": 'U' at character 26 is no digit of it`,
		"000000000000000000000000000": `session id "000000000000000000000000000": has 27 characters; expected 26`,
	} {
		if _, err := ParseID(text); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func FuzzIDOrder(f *testing.F) {
	f.Add(make([]byte, 16), bytes.Repeat([]byte{0xff}, 16))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) != 16 || len(b) != 16 {
			return
		}
		x, y := ID(a), ID(b)
		if got, want := strings.Compare(x.String(), y.String()), bytes.Compare(a, b); got != want {
			t.Errorf("%x and %x compare as %d, their texts as %d", a, b, want, got)
		}
		if back, err := ParseID(x.String()); err != nil || back != x {
			t.Errorf("%x comes back as %x, %v", x, back, err)
		}
	})
}

package decode

import (
	"math/big"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

func TestParseScaled(t *testing.T) {
	for _, c := range []struct {
		text  string
		scale int
		want  string // empty: not an integer of 64 bits
	}{
		{"0", 0, "0"},
		{"-0", 2, "0"},
		{"6", 2, "600"},
		{"6.00", 2, "600"},
		{"6.0000", 2, "600"},
		{"-1.5", 1, "-15"},
		{"-1.5", 2, "-150"},
		{"+7", 0, "7"},
		{"0.01", 2, "1"},
		{"600e-2", 0, "6"},
		{"6e2", 0, "600"},
		{"6E+2", 2, "60000"},
		{"6.005", 2, ""},
		{"1e-1", 0, ""},
		{"12345678", 0, "12345678"},
		{"123456789012345678", 0, "123456789012345678"},
		{"9223372036854775807", 0, "9223372036854775807"},
		{"9223372036854775808", 0, ""},
		{"-9223372036854775808", 0, "-9223372036854775808"},
		{"-9223372036854775809", 0, ""},
		{"92233720368547758.07", 2, "9223372036854775807"},
		{"184467440737095516160", 0, ""},
		{"0.00000000000000000000000000000001e32", 0, "1"},
		{"100000000000000000000000000000000e-32", 0, "1"},
		{"0e999999999999999999999", 0, "0"},
		{"1e999999999999999999999", 0, ""},
		{"1e-999999999999999999999", 0, ""},
		{"", 0, ""}, {"-", 0, ""}, {".5", 0, ""}, {"5.", 0, ""}, {"1.2.3", 0, ""}, {"1 ", 0, ""}, {" 1", 0, ""},
		{"1e", 0, ""}, {"e1", 0, ""}, {"1e+", 0, ""}, {"1e1e1", 0, ""}, {"0x10", 0, ""}, {"1_000", 0, ""}, {"1,000", 0, ""},
		{"--1", 0, ""}, {"NaN", 0, ""}, {"true", 0, ""}, {"1234567a", 0, ""}, {"1234567:", 0, ""}, {"1234567/", 0, ""},
	} {
		got, ok := parseScaled([]byte(c.text), c.scale)
		if text := strconv.FormatInt(got, 10); ok != (c.want != "") || ok && text != c.want {
			t.Errorf("%q scale %d: got %s %v, want %q", c.text, c.scale, text, ok, c.want)
		}
	}
}

// TestParseScaledAgainstRationals compares with exact rational arithmetic.
func TestParseScaledAgainstRationals(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	randomDigits := func(n int) string {
		var b strings.Builder
		for range n {
			b.WriteByte("0000123456789"[r.IntN(13)])
		}
		return b.String()
	}
	integers := 0
	for range 200_000 {
		text := []string{"", "-"}[r.IntN(2)] + randomDigits(1+r.IntN(18))
		if r.IntN(2) == 0 {
			text += "." + randomDigits(1+r.IntN(8))
		}
		if r.IntN(3) == 0 {
			text += "e" + strconv.Itoa(r.IntN(25)-12)
		}
		scale := r.IntN(5)
		exact, ok := new(big.Rat).SetString(text)
		if !ok {
			t.Fatal(text)
		}
		exact.Mul(exact, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(scale)), nil)))
		want := exact.IsInt() && exact.Num().IsInt64()
		got, ok := parseScaled([]byte(text), scale)
		if want {
			integers++
		}
		// 27 digits need not fit the mantissa although their product does not matter here: they are no int64 either.
		if ok != want || ok && got != exact.Num().Int64() {
			t.Fatalf("%q scale %d: got %d %v, want %s", text, scale, got, ok, exact)
		}
	}
	if integers < 10_000 {
		t.Fatalf("only %d of the texts were integers", integers)
	}
}

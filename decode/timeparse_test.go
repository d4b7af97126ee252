package decode

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/weftdata/weft/event"
)

func TestTimeLayouts(t *testing.T) {
	const bad = ""
	for _, c := range []struct{ layout, zone, text, want string }{
		{"unix_s", "", "1790000000", "2026-09-21T14:13:20Z"},
		{"unix_s", "", "1790000000.25", "2026-09-21T14:13:20.25Z"},
		{"unix_s", "", "1790000000.1234569", "2026-09-21T14:13:20.123456Z"},
		{"unix_s", "", "1790000000.12345678901234567890123", "2026-09-21T14:13:20.123456Z"},
		{"unix_s", "", "1.79000000025e9", "2026-09-21T14:13:20.25Z"},
		{"unix_s", "", "0", "1970-01-01T00:00:00Z"},
		{"unix_s", "", "7289654399", "2200-12-31T23:59:59Z"},
		{"unix_s", "", "7289654400", bad},
		{"unix_s", "", "-1", bad},
		{"unix_s", "", "1790000000123", bad}, // milliseconds
		{"unix_s", "", "", bad},
		{"unix_s", "", "1790000000.", bad},
		{"unix_s", "", "1790000000x", bad},
		{"unix_s", "", "1790000000.5x", bad},
		{"unix_s", "", "true", bad},
		{"unix_s", "", "18446744073709551617", bad},
		{"unix_ms", "", "1790000000123", "2026-09-21T14:13:20.123Z"},
		{"unix_ms", "", "1790000000123.456", "2026-09-21T14:13:20.123456Z"},
		{"unix_ms", "", "1.790000000123E12", "2026-09-21T14:13:20.123Z"},
		{"unix_ms", "", "99999999999999999", bad},
		{"unix_us", "", "1790000000123456", "2026-09-21T14:13:20.123456Z"},
		{"unix_us", "", "1790000000123456.9", "2026-09-21T14:13:20.123456Z"},
		{"unix_ns", "", "1790000000123456789", "2026-09-21T14:13:20.123456Z"},
		{"unix_ns", "", "7289654399999999999", "2200-12-31T23:59:59.999999Z"},
		{"unix_ns", "", "7289654400000000000", bad},
		{"rfc3339", "", "2026-09-21T14:13:20Z", "2026-09-21T14:13:20Z"},
		{"rfc3339", "", "2026-09-21t14:13:20z", "2026-09-21T14:13:20Z"},
		{"rfc3339", "", "2026-09-21 14:13:20.5+08:00", "2026-09-21T06:13:20.5Z"},
		{"rfc3339", "", "2026-09-21T14:13:20,123456789-0330", "2026-09-21T17:43:20.123456Z"},
		{"rfc3339", "", "2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"},
		{"rfc3339", "", "2100-02-29T00:00:00Z", bad},
		{"rfc3339", "", "2025-02-29T00:00:00Z", bad},
		{"rfc3339", "", "2025-00-10T00:00:00Z", bad},
		{"rfc3339", "", "2025-13-10T00:00:00Z", bad},
		{"rfc3339", "", "2025-01-00T00:00:00Z", bad},
		{"rfc3339", "", "2025-01-01T24:00:00Z", bad},
		{"rfc3339", "", "2025-01-01T00:60:00Z", bad},
		{"rfc3339", "", "2025-01-01T00:00:60Z", bad},
		{"rfc3339", "", "2025-01-01T00:00:00", bad},
		{"rfc3339", "", "2025-01-01T00:00:00.Z", bad},
		{"rfc3339", "", "2025-01-01T00:00:00+8:00", bad},
		{"rfc3339", "", "2025-01-01T00:00:00+08:60", bad},
		{"rfc3339", "", "2025-01-01T00:00:00Zx", bad},
		{"rfc3339", "", "2025-01-01", bad},
		{"rfc3339", "", "0000-01-01T00:00:00Z", bad},
		{"rfc3339", "", "1969-12-31T23:59:59Z", bad},
		{"rfc3339", "", "1969-12-31T23:59:59-01:00", "1970-01-01T00:59:59Z"},
		{"rfc3339", "", "2200-12-31T23:59:59Z", "2200-12-31T23:59:59Z"},
		{"rfc3339", "", "2201-01-01T00:00:00Z", bad},
		{"2006-01-02 15:04:05", "", "2026-09-21 14:13:20", "2026-09-21T14:13:20Z"},
		{"2006-01-02 15:04:05.000", "", "2026-09-21 14:13:20.125", "2026-09-21T14:13:20.125Z"},
		{"2006-01-02 15:04:05", "Asia/Shanghai", "2026-09-21 14:13:20.125", "2026-09-21T06:13:20.125Z"},
		{"2006-01-02 15:04:05", "Europe/Berlin", "2026-07-21 14:13:20", "2026-07-21T12:13:20Z"},
		{"2006-01-02 15:04:05", "Europe/Berlin", "2026-12-21 14:13:20", "2026-12-21T13:13:20Z"},
		{"2006-01-02 15:04:05", "Europe/Berlin", "2026-12-21 14:13", bad},
		{"2006-01-02 15:04:05", "Europe/Berlin", "2026-12-21 14:13:20Z", bad},
		{"2006-01-02 15:04:05", "Europe/Berlin", "2026-12-32 14:13:20", bad},
		{"2006/01/02 15:04", "Asia/Shanghai", "2026/09/21 14:13", "2026-09-21T06:13:00Z"},
		{"2006/01/02 15:04", "", "2026/09/21", bad},
		{"2006/01/02 15:04", "", "2026/09/21 14:13" + strings.Repeat("x", 1000), bad},
		{"02/Jan/2006:15:04:05 -0700", "", "21/Sep/2026:22:13:20 +0800", "2026-09-21T14:13:20Z"},
		{"02/Jan/2006:15:04:05 -0700", "", "31/Sep/2026:22:13:20 +0800", bad},
		{"02/Jan/2006:15:04:05 -0700", "", "21/Sex/2026:22:13:20 +0800", bad},
		{"02/Jan/2006:15:04:05 -0700", "", "21/anF/2026:22:13:20 +0800", bad},
		{"02/Jan/2006:15:04:05 -0700", "", "21/Sep/2026:22:13:20", bad},
	} {
		l, err := newTimeLayout(c.layout, c.zone)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time from what the first left behind
			at, ok := l.parse([]byte(c.text))
			got := bad
			if ok {
				got = time.UnixMicro(int64(at)).UTC().Format(time.RFC3339Nano)
			}
			if got != c.want {
				t.Errorf("%s %s %q: got %q, want %q", c.layout, c.zone, c.text, got, c.want)
			}
		}
	}
}

func TestTimeLayoutProblems(t *testing.T) {
	for _, c := range []struct{ layout, zone, want string }{
		{"unix_s", "Asia/Shangai", `there is no time zone "Asia/Shangai"`},
		{"iso8601", "", "lacks the year"},
		{"Jan _2 15:04:05", "", "lacks the year"},
		{"2006-01-02", "", "lacks the hour"},
		{"2006-01-02 15:04:05 MST", "", "zone abbreviation"},
	} {
		if _, err := newTimeLayout(c.layout, c.zone); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: got %v, want %q", c.layout, c.zone, err, c.want)
		}
	}
}

// TestTimeAgainstStandardLibrary compares random moments, in neighbours that share a date or a second.
func TestTimeAgainstStandardLibrary(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct{ layout, format string }{
		{"rfc3339", "2006-01-02T15:04:05.999999Z07:00"},
		{"02/Jan/2006:15:04:05 -0700", "02/Jan/2006:15:04:05 -0700"},
		{"2006-01-02 15:04:05", "2006-01-02 15:04:05.000000"},
		{"02.01.2006 15:04:05.000", "02.01.2006 15:04:05.000"},
	} {
		l, err := newTimeLayout(c.layout, "Europe/Berlin")
		if err != nil {
			t.Fatal(err)
		}
		at := time.UnixMicro(0)
		for range 20_000 {
			switch r.IntN(3) {
			case 0:
				at = time.UnixMicro(r.Int64N(int64(timeEnd)))
			case 1:
				at = at.Add(time.Duration(r.Int64N(int64(time.Hour))))
			}
			text := at.In(zone).Format(c.format)
			exact, err := time.ParseInLocation(c.format, text, zone)
			if err != nil {
				t.Fatal(err)
			}
			want := event.Micros(exact.UnixMicro())
			if got, ok := l.parse([]byte(text)); got != want || !ok {
				t.Fatalf("%s %q: got %d %v, want %d", c.layout, text, got, ok, want)
			}
		}
	}
}

func FuzzTime(f *testing.F) {
	layouts := []string{"unix_s", "unix_ms", "unix_us", "unix_ns", "rfc3339", "2006-01-02 15:04:05", "02/Jan/2006:15:04:05 -0700", "2006/01/02 15"}
	for _, s := range []string{"1790000000.5", "1.79e12", "2026-09-21T14:13:20.5+08:00", "21/Sep/2026:22:13:20 +0800", "2026-09-21 14:13:20"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, layout := range layouts {
			l, err := newTimeLayout(layout, "Asia/Shanghai")
			if err != nil {
				t.Fatal(err)
			}
			at, ok := l.parse(p)
			if again, ok2 := l.parse(p); again != at || ok2 != ok {
				t.Fatalf("%s: %d %v, then %d %v", layout, at, ok, again, ok2)
			}
			if ok && (at < 0 || at >= timeEnd) {
				t.Fatalf("%s: %d is out of range", layout, at)
			}
		}
	})
}

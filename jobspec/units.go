package jobspec

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// durationMax bounds every duration of a spec, so that sums and products of a few never overflow.
const durationMax = 10 * 365 * day

const (
	day  = 24 * time.Hour
	week = 7 * day
)

const (
	durationText = `([0-9]{1,9}(\.[0-9]{1,6})?(us|µs|ms|s|m|h|d|w))+`
	sizeText     = `[0-9]{1,9}(\.[0-9]{1,6})?(B|KiB|MiB|GiB|TiB)`
)

var (
	durationForm = regexp.MustCompile(`^` + durationText + `$`)
	durationPart = regexp.MustCompile(`([0-9.]+)(us|µs|ms|s|m|h|d|w)`)
	sizeForm     = regexp.MustCompile(`^([0-9.]+)(B|KiB|MiB|GiB|TiB)$`)
)

// ParseDuration reads a duration as specs write it: Go's syntax, and also d (24 hours) and w (7 days). It is never
// negative, a whole number of microseconds, and at most ten years.
func ParseDuration(text string) (time.Duration, error) {
	if !durationForm.MatchString(text) {
		return 0, errors.New("expected a duration such as 30m, 1h30m or 7d")
	}
	var sum time.Duration
	for _, part := range durationPart.FindAllStringSubmatch(text, -1) {
		count, err := strconv.ParseFloat(part[1], 64)
		if err != nil {
			return 0, errors.New("expected a duration such as 30m, 1h30m or 7d")
		}
		nanos := math.Round(count * float64(durationUnit(part[2])))
		if nanos > float64(durationMax-sum) {
			return 0, fmt.Errorf("a duration is at most %s", FormatDuration(durationMax))
		}
		sum += time.Duration(nanos)
	}
	if sum%time.Microsecond != 0 {
		return 0, errors.New("a duration is a whole number of microseconds")
	}
	return sum, nil
}

func durationUnit(name string) time.Duration {
	switch name {
	case "ms":
		return time.Millisecond
	case "s":
		return time.Second
	case "m":
		return time.Minute
	case "h":
		return time.Hour
	case "d":
		return day
	case "w":
		return week
	}
	return time.Microsecond
}

// FormatDuration writes a duration in the shortest form that ParseDuration reads: 168h is "7d", 90m is "1h30m".
func FormatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	if days := d / day; days > 0 {
		fmt.Fprintf(&b, "%dd", days)
		d %= day
	}
	if d == 0 {
		return b.String()
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	b.WriteString(s)
	return b.String()
}

// ParseSize reads a size of memory such as 512MiB, in bytes.
func ParseSize(text string) (int64, error) {
	wrong := errors.New("expected a size such as 512MiB or 2GiB")
	part := sizeForm.FindStringSubmatch(text)
	if part == nil {
		return 0, wrong
	}
	count, err := strconv.ParseFloat(part[1], 64)
	if err != nil {
		return 0, wrong
	}
	shift := map[string]int{"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}[part[2]]
	if bytes := math.Round(count * float64(int64(1)<<shift)); bytes <= 1<<50 {
		return int64(bytes), nil
	}
	return 0, errors.New("a size is at most 1024TiB")
}

// FormatSize writes a size in the form that ParseSize reads.
func FormatSize(bytes int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for i := len(units) - 1; i > 0; i-- {
		if unit := int64(1) << (10 * i); bytes >= unit && bytes%unit == 0 {
			return strconv.FormatInt(bytes/unit, 10) + units[i]
		}
	}
	return strconv.FormatInt(bytes, 10) + "B"
}

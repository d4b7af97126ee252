package workers

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// week is the length of one; minutes into it count from Sunday at midnight.
const week = 7 * 24 * time.Hour

// frozenUntil returns when the freeze windows that now lies in are all over, and false where it lies in none. Windows are as a
// spec has them: "Fri 18:00-Mon 08:00 Asia/Shanghai".
func frozenUntil(windows []string, now time.Time) (until time.Time, frozen bool, err error) {
	until = now
	// The end of one may lie in another; each can end a freeze at most once before it is the same week again.
	for range len(windows) + 1 {
		extended := false
		for _, w := range windows {
			end, in, err := windowEnd(w, until)
			if err != nil {
				return now, false, err
			}
			if in {
				until, extended = end, true
			}
		}
		if !extended {
			break
		}
	}
	return until, until.After(now), nil
}

// windowEnd returns when a window ends that a time lies in: from its first minute to before its last.
func windowEnd(window string, at time.Time) (end time.Time, in bool, err error) {
	rest := strings.Fields(window)
	if len(rest) < 3 { // "Fri", "18:00-Mon", "08:00" and perhaps a zone
		return at, false, fmt.Errorf("freeze window %q: expected one such as 'Fri 18:00-Mon 08:00 Asia/Shanghai'", window)
	}
	zone := "UTC"
	if len(rest) > 3 {
		zone = rest[3]
	}
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return at, false, fmt.Errorf("freeze window %q: %w", window, err)
	}
	clock, day, _ := strings.Cut(rest[1], "-")
	from, err := minuteOfWeek(rest[0], clock)
	if err != nil {
		return at, false, fmt.Errorf("freeze window %q: %w", window, err)
	}
	to, err := minuteOfWeek(day, rest[2])
	if err != nil {
		return at, false, fmt.Errorf("freeze window %q: %w", window, err)
	}
	local := at.In(loc)
	now := int(local.Weekday())*24*60 + local.Hour()*60 + local.Minute()
	const minutes = int(week / time.Minute)
	into, length := (now-from+minutes)%minutes, (to-from+minutes)%minutes
	if into >= length {
		return at, false, nil
	}
	// By the wall clock of the zone, whatever daylight saving does meanwhile.
	left := length - into
	return time.Date(local.Year(), local.Month(), local.Day(), local.Hour(), local.Minute()+left, 0, 0, loc), true, nil
}

func minuteOfWeek(day, clock string) (int, error) {
	d := slices.Index([]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}, day)
	t, err := time.Parse("15:04", clock)
	if d < 0 || err != nil {
		return 0, fmt.Errorf("%s %s is no day and time", day, clock)
	}
	return d*24*60 + t.Hour()*60 + t.Minute(), nil
}

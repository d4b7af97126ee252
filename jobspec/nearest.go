package jobspec

import (
	"fmt"
	"strings"
)

// nameHintMax bounds the names that are compared, since the cost grows with the product of their lengths.
const nameHintMax = 64

// Nearest returns the valid name that is nearest to a misspelt one by edit distance, or "" where none is near. Equally
// near names are answered by the first.
func Nearest(name string, valid []string) string {
	if len(name) > nameHintMax {
		return ""
	}
	best, bestDistance := "", 1+max(1, len(name)/3)
	for _, v := range valid {
		if len(v) > nameHintMax {
			continue
		}
		if d := distance(strings.ToLower(name), strings.ToLower(v)); d < bestDistance {
			best, bestDistance = v, d
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of neighbours that turn a into b.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(last[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// nearestHint says which valid name was probably meant, or lists them where they are few.
func nearestHint(name string, valid []string) string {
	if near := Nearest(name, valid); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	switch list := strings.Join(valid, ", "); {
	case len(valid) == 0:
		return ""
	case len(valid) == 1:
		return "the only valid name is " + list
	case len(list) <= 160:
		return "valid names are " + list
	}
	return ""
}

// quote shows a piece of the user's text in a message, shortened.
func quote(text string) string {
	const most = 60
	if r := []rune(text); len(r) > most {
		text = string(r[:most]) + "…"
	}
	return fmt.Sprintf("%q", text)
}

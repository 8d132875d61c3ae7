// Package nearest finds the name that somebody meant who wrote another.
//
// It is for the mend of a mistake ("did you mean phase?"): it suggests nothing
// rather than something far-fetched, and never decides anything. Case, underscores
// and hyphens do not count. Start at [Name].
package nearest

import "strings"

// longest is the length beyond which a name is no slip of a known one.
const longest = 128

// Name returns the one of names that want is most likely a slip of, the first of
// equals, or "" if none is close.
func Name(want string, names []string) string {
	if len(want) > longest {
		return ""
	}
	best, least := "", (len(want)+2)/3+1
	folded := fold(want)
	for _, name := range names {
		if d := distance(folded, fold(name)); d < least {
			best, least = name, d
		}
	}
	return best
}

func fold(s string) string {
	return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s))
}

// distance is the number of insertions, deletions, substitutions and swaps of
// neighbours that make b of a (optimal string alignment).
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			substitute := last[j-1]
			if a[i-1] != b[j-1] {
				substitute++
			}
			row[j] = min(last[j]+1, row[j-1]+1, substitute)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

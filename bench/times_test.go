package bench

import (
	"slices"
	"time"
)

// times are how long each of several tries took.
type times []time.Duration

// quantile is the time that a share q of the tries did not exceed; 0 of none.
func (t times) quantile(q float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(t))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

func (t times) median() time.Duration { return t.quantile(0.5) }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

package control

import "time"

// How changes are gathered.
const (
	quiet   = 100 * time.Millisecond // without change ends a storm
	longest = time.Second            // that the first change of a storm waits
)

// gather decides when changes are published: at once if the last were a while
// ago, else when there was quiet, or after the longest wait. The zero value has
// published nothing.
type gather struct {
	published time.Time // the last that was published
	first     time.Time // since then; zero if there was none
}

// changed notes a change and returns when to publish.
func (g *gather) changed(now time.Time) time.Time {
	if g.first.IsZero() {
		g.first = now
	}
	if g.first.Sub(g.published) >= quiet {
		return g.first
	}
	if last := g.first.Add(longest); last.Before(now.Add(quiet)) {
		return last
	}
	return now.Add(quiet)
}

// publish notes that all changes were published.
func (g *gather) publish(now time.Time) { g.published, g.first = now, time.Time{} }

package envoy

import (
	"errors"
	"time"
)

const (
	restartMin  = 100 * time.Millisecond
	restartMax  = 10 * time.Second
	restartGood = 30 * time.Second // up for so long, it was not a failed start
	neverUpMax  = 5                // failed starts, before anything answered
)

// errNeverUp says that Envoy cannot be started as it is told to.
var errNeverUp = errors.New("exited at every start")

// A backoff says how long to wait before Envoy is started again. The zero value
// is ready.
type backoff struct {
	pause   time.Duration // the last one
	up      bool          // some process has answered
	neverUp int
}

// next is told of an Envoy that died: for how long it ran, and whether it ever
// answered. It returns [errNeverUp] when there is no use in going on.
func (b *backoff) next(ran time.Duration, answered bool) (time.Duration, error) {
	b.up = b.up || answered
	b.neverUp++
	if !b.up && b.neverUp >= neverUpMax {
		return 0, errNeverUp
	}
	if ran >= restartGood {
		b.pause = 0
	}
	b.pause = min(max(2*b.pause, restartMin), restartMax)
	return b.pause, nil
}

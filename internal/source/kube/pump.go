package kube

import (
	"context"
	"math"
	"time"

	"github.com/chandler-proxy/chandler/internal/source"
)

const (
	// lull is how long a change waits for others that belong to it.
	lull = 5 * time.Millisecond
	// interval is the shortest time between two snapshots.
	interval = 100 * time.Millisecond
)

// pump delivers a snapshot after every change, but not faster than interval,
// until ctx ends. compose may say instead that it should be asked again after a
// while, or when something changes.
func pump(ctx context.Context, changed <-chan struct{}, compose func(now time.Time) (source.Snapshot, time.Duration), deliver func(source.Snapshot)) {
	var p pace
	timer := time.NewTimer(math.MaxInt64)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			p.change(time.Now())
		case <-timer.C:
			snapshot, wait := compose(time.Now())
			if ctx.Err() != nil {
				return
			}
			if wait <= 0 {
				deliver(snapshot)
			}
			p.attempt(time.Now(), wait)
		}
		timer.Reset(p.wait(time.Now()))
	}
}

// pace says when to make a snapshot. The zero value has made none.
type pace struct {
	due      time.Time // when to make one; zero if nothing changed
	earliest time.Time // when one may be made again
}

// change notes that something changed.
func (p *pace) change(now time.Time) {
	due := now.Add(lull)
	if due.Before(p.earliest) {
		due = p.earliest
	}
	if p.due.IsZero() || due.Before(p.due) {
		p.due = due
	}
}

// attempt notes that a snapshot was delivered, if postponed is not positive, or
// that it is to be tried again after that time.
func (p *pace) attempt(now time.Time, postponed time.Duration) {
	p.due, p.earliest = time.Time{}, now.Add(interval)
	switch {
	case postponed == math.MaxInt64:
		p.earliest = now
	case postponed > 0:
		p.due, p.earliest = now.Add(postponed), now.Add(lull)
	}
}

// wait is how long until a snapshot is to be made.
func (p *pace) wait(now time.Time) time.Duration {
	if p.due.IsZero() {
		return math.MaxInt64
	}
	return max(p.due.Sub(now), 0)
}

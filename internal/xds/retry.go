package xds

import (
	"hash/fnv"
	"time"
)

// A client may refuse what is good, because of what is so where it runs: a port that
// another process has. It is never told anew of a resource that does not change, and a
// refusal holds for all of a response. So what was refused is sent again, when anything of
// its type changes, since that may be what it lacked, and now and then: the first time
// after retryFirst, then each time after twice as long, but no longer than retryMost.
const (
	retryFirst = 10 * time.Second
	retryMost  = 5 * time.Minute
)

// retried says that what is refused of the type is sent again. Extension configs are
// not: the agent tries those again itself.
func retried(typeURL string) bool {
	return typeURL == ListenerType || typeURL == ClusterType || typeURL == RouteType
}

// retryRefused has everything that is refused sent again at once.
func (w *watch) retryRefused() {
	if !w.refused {
		return
	}
	for _, d := range w.sent {
		d.again = d.state == Nacked
	}
}

// retryAt is when d, which is refused, is sent again by itself. The pause is up to a fifth
// more or less than it should be, so that not all clients are sent to at once.
func (d *delivery) retryAt() time.Time {
	pause := retryMost
	if d.tries < 5 { // 10 s << 5 is more
		pause = retryFirst << d.tries
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(d.nonce)) // never an error
	return d.since.Add(pause*4/5 + pause*time.Duration(h.Sum32()%1000)/2500)
}

// retry is the refused response that is to be sent again at now, if there is one, with
// what is still of interest in it; and when the next one is that is not due yet, if there
// is one.
func (w *watch) retry(s *set, now time.Time) (due *delivery, resources []*Resource, wake time.Time) {
	if !w.refused || !retried(w.typeURL) {
		return nil, nil, time.Time{}
	}
	w.refused = false
	for _, d := range w.sent {
		if d.state != Nacked {
			continue
		}
		w.refused = true
		at := d.retryAt()
		switch {
		case d.open:
		case !d.again && at.After(now):
			wake = earlier(wake, at)
		case due == nil || d.since.Before(due.since) || d.since.Equal(due.since) && d.nonce < due.nonce:
			if current := w.current(d, s); len(current) > 0 {
				due, resources = d, current
			}
		}
	}
	return due, resources, wake
}

// current are the resources of d that are the newest of the snapshot and were not
// sent again since.
func (w *watch) current(d *delivery, s *set) []*Resource {
	var current []*Resource
	for _, res := range d.resources {
		if now := s.resources[res.Name]; now != nil && now.Version == res.Version && w.have[res.Name].in == d {
			current = append(current, now)
		}
	}
	return current
}

// sendAgain is the response with resources of d, which is refused and goes on being so
// until the client answers.
func (s *session) sendAgain(w *watch, d *delivery, resources []*Resource, now time.Time) *response {
	timely := !d.retryAt().After(now)
	var r *response
	if s.delta {
		r = s.respond(w, s.snapshot.set(w.typeURL).version, resources, nil, now)
	} else {
		r = s.world(w, now)
	}
	next := w.last
	next.state, next.since, next.err, next.code = Nacked, d.since, d.err, d.code
	next.tries, next.open = d.tries, true
	if timely {
		next.tries++
	}
	return r
}

// earlier is the earlier of two times, of which a zero one does not count.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

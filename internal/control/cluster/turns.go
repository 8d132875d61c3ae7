package cluster

import (
	"net"
	"net/http"
	"sync"

	"golang.org/x/sync/semaphore"
)

// How many reviews the webhook has under way, of which each may hold a few times
// the bytes that one may be long. More wait, unread: an API server gives up by itself.
const (
	reviews     = 64
	peerReviews = 16 // of one address, so that who sends slowly holds up nobody else
)

// turns lets so many requests through to next at once.
type turns struct {
	next http.Handler
	all  *semaphore.Weighted

	mu    sync.Mutex
	peers map[string]*turn // by IP address, of those that have requests
}

// A turn is that of one peer.
type turn struct {
	*semaphore.Weighted
	requests int // that have or want it
}

func takeTurns(next http.Handler) *turns {
	return &turns{next: next, all: semaphore.NewWeighted(reviews), peers: make(map[string]*turn)}
}

// ServeHTTP passes r on when it is its turn. One that is given up before is not.
func (t *turns) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	own := t.enter(host)
	defer t.leave(host, own)
	for _, s := range []*semaphore.Weighted{own.Weighted, t.all} {
		if err := s.Acquire(r.Context(), 1); err != nil {
			http.Error(w, "too many reviews are under way", http.StatusServiceUnavailable)
			return
		}
		defer s.Release(1)
	}
	t.next.ServeHTTP(w, r)
}

func (t *turns) enter(host string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := t.peers[host]
	if own == nil {
		own = &turn{Weighted: semaphore.NewWeighted(peerReviews)}
		t.peers[host] = own
	}
	own.requests++
	return own
}

func (t *turns) leave(host string, own *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own.requests--; own.requests == 0 {
		delete(t.peers, host)
	}
}

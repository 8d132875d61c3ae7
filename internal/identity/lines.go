package identity

import (
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How many lines of a log callers can cause who have not proved who they are. What
// is more is counted, and told of with the next line.
const (
	peerLines = 5                // of one address, at once
	peerPause = 10 * time.Second // until it may cause another
	allLines  = 50               // of all addresses, at once
	allPause  = 100 * time.Millisecond
	maxPeers  = 1000 // addresses that are told apart
)

// Lines bounds the lines that the log has of callers, who may call as often as they
// please. Safe for concurrent use.
type Lines struct {
	mu     sync.Mutex
	all    *rate.Limiter
	peers  map[string]*rate.Limiter // by IP address
	unsaid int                      // since the last line
}

// NewLines returns Lines that have told nothing.
func NewLines() *Lines {
	return &Lines{all: rate.NewLimiter(rate.Every(allPause), allLines), peers: make(map[string]*rate.Limiter)}
}

// Tell reports whether a line is to be written now about the caller at address,
// host:port; unsaid is how many were not since the last that was.
func (l *Lines) Tell(address string) (unsaid int, ok bool) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.peer(host).Allow() || !l.all.Allow() {
		l.unsaid++
		return 0, false
	}
	unsaid, l.unsaid = l.unsaid, 0
	return unsaid, true
}

// peer is the bound of one address. Who has enough addresses for all to be forgotten
// meets the bound of all.
func (l *Lines) peer(host string) *rate.Limiter {
	limit := l.peers[host]
	if limit == nil {
		if len(l.peers) >= maxPeers {
			clear(l.peers)
		}
		limit = rate.NewLimiter(rate.Every(peerPause), peerLines)
		l.peers[host] = limit
	}
	return limit
}

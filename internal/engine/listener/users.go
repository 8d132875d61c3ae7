package listener

import "sync"

// users counts the connections that a filter chain has, and those that it may get:
// they were accepted, and it is not known yet which chain is for them. The zero value
// has none. It is safe for concurrent use.
type users struct {
	mu   sync.Mutex
	n    int
	gone chan struct{} // once the chain is drained: closed when there are none, and will be none
}

// enter counts one more. It returns false if there will be none any more.
func (u *users) enter() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone != nil && u.n == 0 {
		return false
	}
	u.n++
	return true
}

func (u *users) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n--; u.gone != nil && u.n == 0 {
		close(u.gone)
	}
}

// drain returns what is closed when the last one has left.
func (u *users) drain() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone == nil {
		if u.gone = make(chan struct{}); u.n == 0 {
			close(u.gone)
		}
	}
	return u.gone
}

// enter counts a connection as one that every chain may get. It returns false if the
// listener was replaced, or removed, and one of its chains is gone.
func (l *Listener) enter() bool {
	chains := l.all()
	for i, c := range chains {
		if !c.users.enter() {
			leave(chains[:i], nil)
			return false
		}
	}
	return true
}

// leave counts a connection off all chains but one, which may be there more than once.
func leave(chains []*Chain, but *Chain) {
	for _, c := range chains {
		if c == but {
			but = nil
			continue
		}
		c.users.leave()
	}
}

// enter returns the listener that a connection just accepted is for, which counts it:
// nil if the socket is stopped, and all that it had is gone.
func (s *Socket) enter() *Listener {
	for {
		l := s.current.Load()
		if l.enter() {
			return l
		}
		if l == s.current.Load() {
			return nil
		}
	}
}

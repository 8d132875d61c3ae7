package upstream

import (
	"context"
	"sync/atomic"

	"github.com/chandler-proxy/chandler/internal/engine/config"
)

// A Breaker is a limit of a cluster's circuit breakers: so many at once.
type Breaker struct {
	most int64
	n    atomic.Int64
}

// Take takes one, and returns false if there are as many as may be. What is taken
// is to be given back.
func (b *Breaker) Take() bool {
	if b.n.Add(1) > b.most {
		b.n.Add(-1)
		return false
	}
	return true
}

// Give gives one back.
func (b *Breaker) Give() { b.n.Add(-1) }

// Breakers are those of a cluster.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/circuit_breaking
type Breakers struct {
	connections, pending, requests Breaker
	Retries                        Breaker
}

func (b *Breakers) init(l config.Limits) {
	b.connections.most, b.pending.most, b.requests.most, b.Retries.most = l.Connections, l.Pending, l.Requests, l.Retries
}

// ErrOverflow is that a circuit breaker let no more through.
var ErrOverflow error = &ResetError{Reason: Overflow}

// connect returns a new connection. If there are as many as there may be it waits
// for one to be free, but for a host that has none: that may always have one.
func (h *Host) connect(ctx context.Context, sni string) (*conn, error) {
	b := &h.cluster.Breakers
	if !b.pending.Take() {
		h.cluster.Stats.pendingOverflow.Inc()
		return nil, ErrOverflow
	}
	defer b.pending.Give()
	for {
		h.mu.Lock()
		if list := h.idle[sni]; len(list) > 0 { // it has become free meanwhile
			c := list[len(list)-1]
			h.idle[sni] = list[:len(list)-1]
			h.mu.Unlock()
			if c.Conn.(*counted).alive() {
				return c, nil
			}
			c.Close()
			continue
		}
		if b.connections.Take() {
			h.open++
			h.mu.Unlock()
			return h.opened(ctx, sni)
		}
		if h.open == 0 {
			b.connections.n.Add(1)
			h.open++
			h.mu.Unlock()
			return h.opened(ctx, sni)
		}
		wake := make(chan struct{})
		h.waiting = append(h.waiting, wake)
		h.mu.Unlock()
		h.cluster.Stats.cxOverflow.Inc()
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, connectError(ctx.Err())
		}
	}
}

// opened dials, for which there is leave.
func (h *Host) opened(ctx context.Context, sni string) (*conn, error) {
	raw, err := h.dial(ctx, sni)
	if err != nil {
		h.left()
		return nil, err
	}
	return newConn(h, raw, sni), nil
}

// left notes that there is a connection less.
func (h *Host) left() {
	h.cluster.Breakers.connections.Give()
	h.mu.Lock()
	h.open--
	h.wake()
	h.mu.Unlock()
}

// wake lets those that wait for a connection look again: they may want different ones. h.mu is held.
func (h *Host) wake() {
	for _, w := range h.waiting {
		close(w)
	}
	h.waiting = nil
}

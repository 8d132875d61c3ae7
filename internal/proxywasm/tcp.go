package proxywasm

import (
	"github.com/chandler-proxy/chandler/internal/abi"
)

// A TCP is one connection, as a plugin sees it. The two directions may be used by two
// goroutines.
type TCP struct {
	c       Context
	host    TCPHost
	verdict Verdict
	down    flow
	up      flow

	failed               bool // and the connection was closed for it
	downClosed, upClosed bool
	closed               bool
}

// A flow is one direction of a connection. Guarded by the instance's lock.
type flow struct {
	body   body
	paused bool
}

// NewTCP returns a connection for the plugin, in one of its instances. The guest
// learns of it with OnNewConnection. It must be closed.
func (p *Plugin) NewTCP(host TCPHost) *TCP {
	s := &TCP{host: host}
	in, verdict := p.choose()
	s.verdict = verdict
	if verdict != Run {
		return s
	}
	in.lock()
	defer in.unlock()
	r := in.roots[p]
	if r == nil {
		s.verdict = p.afterFailure()
		return s
	}
	s.c.tcp, s.c.root = s, r
	in.enter(&s.c)
	p.streams.Add(1)
	return s
}

// OnNewConnection is proxy_on_new_connection. Until it continues nothing is read from
// the connection.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_new_connection
func (s *TCP) OnNewConnection() Action {
	act, ok := s.enter()
	if !ok {
		return act
	}
	s.c.create()
	if s.c.in.call(&s.c, onNewConnection, s.c.id) != 0 {
		s.down.paused = true
		return s.leave(Pause)
	}
	return s.leave(Continue)
}

// OnDownstreamData is proxy_on_downstream_data. It returns what goes on. What is held
// back is shown again with what comes next.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_downstream_data
func (s *TCP) OnDownstreamData(chunk []byte, end bool) ([]byte, Action) {
	return s.onData(&s.down, onDownstreamData, chunk, end)
}

// OnUpstreamData is proxy_on_upstream_data, likewise. In Envoy the end of upstream
// data is the upstream's close, of an unknown peer.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_upstream_data
func (s *TCP) OnUpstreamData(chunk []byte, end bool) ([]byte, Action) {
	out, act := s.onData(&s.up, onUpstreamData, chunk, end)
	if end {
		s.OnUpstreamClose(abi.PeerUnknown)
	}
	return out, act
}

func (s *TCP) onData(f *flow, cb callback, chunk []byte, end bool) ([]byte, Action) {
	act, ok := s.enter()
	if !ok {
		if held := f.body.take(); len(held) > 0 {
			chunk = append(held, chunk...)
		}
		return passed(chunk, act)
	}
	if !s.c.created {
		return goesOn(chunk, s.leave(Continue))
	}
	in := s.c.in
	f.body.add(chunk)
	status := in.call(&s.c, cb, s.c.id, uint32(len(f.body.visible)), asUint(end))
	if status == 0 {
		f.paused = false
		return goesOn(f.body.take(), s.leave(Continue))
	}
	f.body.hold(abi.DataStopAndBuffer)
	f.paused = true
	if f.body.size() > s.c.root.plugin.cfg.BufferLimit {
		return nil, s.leave(Overflow)
	}
	return nil, s.leave(Pause)
}

// Resume returns the downstream data that was held back, after the host was told to
// Continue.
func (s *TCP) Resume() []byte {
	if s.verdict != Run {
		return nil
	}
	s.c.in.lock()
	defer s.c.in.unlock()
	return s.down.body.take()
}

// OnDownstreamClose is proxy_on_downstream_connection_close, and the end of the
// connection.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_downstream_connection_close
func (s *TCP) OnDownstreamClose(by abi.Peer) {
	s.onClose(&s.downClosed, onDownstreamConnectionClose, by)
}

// OnUpstreamClose is proxy_on_upstream_connection_close.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_upstream_connection_close
func (s *TCP) OnUpstreamClose(by abi.Peer) {
	s.onClose(&s.upClosed, onUpstreamConnectionClose, by)
}

func (s *TCP) onClose(closed *bool, cb callback, by abi.Peer) {
	if s.verdict != Run {
		return
	}
	s.c.in.lock()
	defer s.c.in.unlock()
	if *closed || s.closed || !s.c.created {
		return
	}
	*closed = true
	s.c.in.call(&s.c, cb, s.c.id, uint32(by))
	if s.downClosed {
		s.end()
	}
}

// Close ends the connection for the plugin, if nothing else has. It may be called more
// than once.
func (s *TCP) Close() {
	if s.verdict != Run {
		return
	}
	s.c.in.lock()
	defer s.c.in.unlock()
	s.end()
}

// end is proxy_on_done, proxy_on_log and proxy_on_delete.
func (s *TCP) end() {
	if s.closed {
		return
	}
	s.closed = true
	if s.c.created {
		s.c.in.call(&s.c, onDone, s.c.id)
		s.c.in.call(&s.c, onLog, s.c.id)
	}
	s.c.remove()
	s.c.root.plugin.end()
}

// ID is the number by which the guest knows the connection, 0 if it does not see it.
func (s *TCP) ID() uint32 { return s.c.id }

// enter locks the instance for a callback. If it returns false the guest is not to be
// called, and the action is already known.
func (s *TCP) enter() (Action, bool) {
	switch s.verdict {
	case Skip:
		return Continue, false
	case Deny:
		first := !s.failed
		s.failed = true
		s.fail(first)
		return Stop, false
	}
	s.c.in.lock()
	if s.c.in.failed.Load() != nil || s.closed {
		return s.leave(Continue), false
	}
	return Continue, true
}

// leave unlocks the instance after a callback, whose action it was unless the guest
// failed.
func (s *TCP) leave(act Action) Action {
	first := false
	if s.c.in.failed.Load() != nil && s.c.root.plugin.cfg.Policy != FailIgnore {
		act, first = Stop, !s.failed
		s.failed = true
	}
	s.c.in.unlock()
	s.fail(first)
	return act
}

// fail closes both sides, once.
func (s *TCP) fail(first bool) {
	if first {
		s.host.Close(abi.Downstream)
		s.host.Close(abi.Upstream)
	}
}

package upstream

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"

	h2 "golang.org/x/net/http2"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/engine/http2"
)

// A shared is the HTTP/2 connections to a host with one server name. It is guarded by
// the host's mutex.
type shared struct {
	conns   []*conn2 // that go on taking requests
	dialing *dialing // nil if no connection is being made
}

// A conn2 is one of them.
type conn2 struct {
	*http2.Client
	used uint32 // requests
}

// A dialing is a connection that is being made, for all that wait for one.
type dialing struct {
	over chan struct{} // closed
	err  error         // then
}

// reserve returns a connection that takes another request, by its word of now.
func (h *Host) reserve(ctx context.Context, sni string) (*conn2, error) {
	for {
		h.mu.Lock()
		s := h.h2[sni]
		if s == nil {
			s = new(shared)
			h.h2[sni] = s
		}
		if c := s.pick(h.cluster.Config.MaxRequests); c != nil {
			h.mu.Unlock()
			return c, nil
		}
		d := s.dialing
		if d == nil {
			d = &dialing{over: make(chan struct{})}
			s.dialing = d
			h.mu.Unlock()
			return h.connect2(ctx, sni, d)
		}
		h.mu.Unlock()
		select {
		case <-d.over:
		case <-ctx.Done():
			return nil, connectError(ctx.Err())
		}
		if d.err != nil && !errors.Is(d.err, context.Canceled) { // which is that one's affair
			return nil, d.err
		}
	}
}

// pick returns a connection that has room, nil if there is none. One that has had limit
// requests takes no more.
func (s *shared) pick(limit uint32) *conn2 {
	var found *conn2
	s.conns = slices.DeleteFunc(s.conns, func(c *conn2) bool {
		usable, now := c.Usable()
		if usable && now && found == nil {
			found = c
			c.used++
			if limit > 0 && c.used >= limit {
				return true // the last; it leaves when that is sent
			}
		}
		return !usable
	})
	return found
}

// sweep2 forgets connections that take no more requests, and server names without any.
// h.mu is held.
func (h *Host) sweep2() {
	for sni, s := range h.h2 {
		s.conns = slices.DeleteFunc(s.conns, func(c *conn2) bool {
			usable, _ := c.Usable()
			return !usable
		})
		if len(s.conns) == 0 && s.dialing == nil {
			delete(h.h2, sni)
		}
	}
}

// connect2 makes a connection, which d waits for, and has it run.
func (h *Host) connect2(ctx context.Context, sni string, d *dialing) (*conn2, error) {
	raw, err := h.dialMore(ctx, sni)
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.h2[sni]
	if s != nil && s.dialing == d {
		s.dialing = nil
	}
	d.err = err
	close(d.over)
	if err != nil {
		return nil, err
	}
	c := &conn2{Client: http2.NewClient(raw, &h.buffers, h.cluster.Config.Idle), used: 1}
	go func() { _ = c.Run() }() // ends with the connection, at the latest when the host is retired and its requests are over
	if s != nil && !h.retired && c.used != h.cluster.Config.MaxRequests {
		s.conns = append(s.conns, c)
	}
	return c, nil
}

// keeps reports whether the connection is for other requests, too.
func (h *Host) keeps(sni string, c *conn2) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.h2[sni]
	return s != nil && slices.Contains(s.conns, c)
}

// startHTTP2 begins a request, for which the breaker gave leave.
func (h *Host) startHTTP2(ctx context.Context, r Request, sni string) (Exchange, error) {
	for {
		c, err := h.reserve(ctx, sni)
		if err != nil {
			h.cluster.Breakers.requests.Give()
			return nil, err
		}
		stream, err := c.Start(r.Fields, r.End)
		if !h.keeps(sni, c) {
			c.Leave()
		}
		if err != nil { // it is full, or ending, since it was asked
			continue
		}
		e := &exchange2{host: h, conn: c, stream: stream, left: -1}
		if v, ok := r.Fields.Get("content-length"); ok {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				e.left = n
			}
		}
		h.active.Add(1)
		h.cluster.Stats.RqActive.Inc()
		return e, nil
	}
}

// An exchange2 is one over HTTP/2.
type exchange2 struct {
	host   *Host
	conn   *conn2
	stream *http2.Stream
	left   int64 // of the length that the head tells; -1 if it tells none
	over   atomic.Bool
}

func (e *exchange2) Local() netip.AddrPort { return addrPort(e.conn.LocalAddr()) }

func (e *exchange2) Host() *Host { return e.host }

func (e *exchange2) Send(p []byte, _ bool) error {
	if e.left >= 0 {
		if e.left -= int64(len(p)); e.left < 0 { // a filter made the body longer than it says
			e.stream.Reset(h2.ErrCodeInternal)
			return &ResetError{Reason: Terminated, Err: http1.ErrSyntax}
		}
	}
	return reset2(e.stream.Write(p, false))
}

func (e *exchange2) SendEnd(trailers *http1.Fields) error {
	if trailers == nil || trailers.Len() == 0 {
		return reset2(e.stream.Write(nil, true))
	}
	return reset2(e.stream.WriteTrailers(trailers))
}

func (e *exchange2) Response() (*Response, error) {
	f, end, err := e.stream.Response()
	if err != nil {
		return nil, reset2(err)
	}
	return &Response{Fields: f, End: end, Body: body2{e.stream}}, nil
}

// reset2 puts a failure in Envoy's words.
func reset2(err error) error {
	var reset *http2.ResetError
	var fault *http2.ProtocolError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &reset) && reset.Code == h2.ErrCodeRefusedStream:
		return &ResetError{Reason: RemoteRefused, Err: err}
	case errors.As(err, &fault), errors.As(err, &reset) && reset.Local && reset.Code == h2.ErrCodeProtocol:
		return &ResetError{Reason: ProtocolError, Err: err}
	case errors.As(err, &reset) && !reset.Local:
		return &ResetError{Reason: RemoteReset, Err: err}
	}
	return &ResetError{Reason: Terminated, Err: err}
}

func (e *exchange2) Cancel() {
	if !e.over.CompareAndSwap(false, true) {
		return
	}
	e.stream.Close()
	e.host.active.Add(-1)
	e.host.cluster.Breakers.requests.Give()
	e.host.cluster.Stats.RqActive.Dec()
}

func (e *exchange2) Finish() { e.Cancel() }

// A body2 is that of a response over HTTP/2.
type body2 struct{ *http2.Stream }

func (b body2) Read(p []byte) (int, error) {
	n, err := b.Stream.Read(p)
	if err != nil && err != io.EOF {
		err = reset2(err)
	}
	return n, err
}

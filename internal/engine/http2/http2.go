// Package http2 speaks HTTP/2 with clients and with upstreams, as Envoy does: header
// fields in their order, trailers that no one announced, and nothing in memory that no
// one reads.
//
// It is here because package net/http keeps neither, and hands every frame from one
// goroutine to another. Frames are read, and their form is checked, by the Framer of
// golang.org/x/net/http2, and header blocks by its hpack; connections and streams are
// this package's. It refuses what is malformed as Envoy does: from a client by the end
// of the connection, where RFC 9113 would have the stream end. A peer cannot have it
// keep more than windows and limits say, or do more than it did itself: streams that a
// client reset count until their handlers are over, and so do frames that want an answer
// until that was taken. It dials nothing and knows no clusters.
//
// One goroutine reads a connection, one writes; every request to a server has one for
// its handler. All that a connection has is guarded by its mutex, which is held for no
// I/O.
//
// Start at [Server.Serve] or [Client.Start], then conn.frame and [Stream]. RFC 9113,
// RFC 7541.
package http2

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
)

// What peers are told or held to. Limits of frames are Envoy's.
const (
	streamWindow = 1 << 20  // bytes of a body that wait to be read
	connWindow   = 4 << 20  // of all bodies of a connection
	maxFrame     = 16 << 10 // bytes of a frame, both ways
	firstWindow  = 65535    // until SETTINGS or WINDOW_UPDATE say otherwise
	maxWindow    = 1<<31 - 1
	tableSize    = 4096 // of HPACK, both ways

	maxBlock    = 4 * http1.MaxHead // bytes of a header block
	maxString   = 64 << 10          // bytes of a name or value
	maxControl  = 1000              // frames that a peer wants and does not take
	maxEmpty    = 1                 // frames without content in a row
	maxGone     = 1024              // streams whose last frames may come after their end
	maxStreams  = 1024              // of a client
	maxResets   = 500               // streams of which half may be reset at once
	resetAtOnce = time.Second

	farewell = time.Second     // that a peer has to take the last word
	lastCall = 5 * time.Second // and a client to be heard after it was told to go
)

// A Server serves connections. Its fields are not changed while it does. It is safe
// for concurrent use.
type Server struct {
	// MaxStreams is how many streams of a connection there may be at once.
	MaxStreams int
	// Idle is how long a connection without streams is kept; for ever if it is 0.
	Idle time.Duration
	// Stall is how long a client may take nothing of what there is for it; for ever if
	// it is 0.
	Stall time.Duration

	workers workers
	buffers Buffers

	mu      sync.Mutex
	conns   map[*conn]struct{}
	drained bool
}

// Buffers are what connections share to read into and write from. The zero value is
// ready to use.
type Buffers struct {
	out    sync.Pool // of *[]byte
	blocks sync.Pool // of *[maxFrame]byte, of bodies
}

// A ProtocolError is why a connection was ended.
type ProtocolError struct {
	Code   h2.ErrCode
	Reason string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("connection error %s: %s", e.Code, e.Reason)
}

// Serve serves a connection, of which r reads, until it ends or is closed, and all
// handlers have returned. It closes it. Each request is answered by handle, in a
// goroutine of its own; when that returns before the response is complete, the stream
// is reset. The error is a [*ProtocolError], or nil for every end that is no fault of
// the client's.
func (s *Server) Serve(raw net.Conn, r *bufio.Reader, handle func(*Stream)) error {
	c := newConn(raw, r, &s.buffers)
	c.server, c.handle, c.idle, c.stall, c.most = s, handle, s.Idle, s.Stall, s.MaxStreams
	c.out.settings(
		h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: uint32(s.MaxStreams)},
		h2.Setting{ID: h2.SettingInitialWindowSize, Val: streamWindow},
	)
	c.out.windowUpdate(0, connWindow-firstWindow)
	s.enter(c)
	defer s.leave(c)
	err := c.run()
	c.handlers.Wait()
	return faultOf(err)
}

// faultOf is err if it is the peer's fault.
func faultOf(err error) error {
	var fault *ProtocolError
	if errors.As(err, &fault) {
		return fault
	}
	return nil
}

func (s *Server) enter(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[*conn]struct{}{}
	}
	s.conns[c] = struct{}{}
	c.leaving = s.drained
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Drain tells every client to send no more requests, and ends each connection when
// those are answered that were sent before. Connections that come later end after
// their first request. It does not wait.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drained = true
	for c := range s.conns {
		c.drain()
	}
}

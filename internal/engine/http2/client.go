package http2

import (
	"bufio"
	"errors"
	"net"
	"slices"
	"time"

	h2 "golang.org/x/net/http2"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
)

// Why a [Client] takes no request.
var (
	ErrBusy = errors.New("as many streams as the server allows")
	ErrGone = errors.New("connection is ending")
)

// A Client is a connection to a server, for many requests at once. It is safe for
// concurrent use.
type Client struct{ c *conn }

// NewClient makes a Client of a connection. It starts nothing. idle is how long it is
// kept without requests; 0 is for ever.
func NewClient(raw net.Conn, buffers *Buffers, idle time.Duration) *Client {
	const unknown = 100 // streams, until the server says how many
	c := newConn(raw, bufio.NewReaderSize(raw, maxFrame), buffers)
	c.client, c.idle, c.most = true, idle, unknown
	c.out.preface()
	c.out.settings(
		h2.Setting{ID: h2.SettingEnablePush, Val: 0},
		h2.Setting{ID: h2.SettingInitialWindowSize, Val: streamWindow},
	)
	c.out.windowUpdate(0, connWindow-firstWindow)
	return &Client{c}
}

// Run reads and writes until the connection ends, and closes it. The error is a
// [*ProtocolError], or nil for every end that is no fault of the server's.
func (c *Client) Run() error { return faultOf(c.c.run()) }

// Leave has the connection end when its requests are over. There are no others.
func (c *Client) Leave() {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	c.c.leave()
}

// Usable reports whether the connection goes on taking requests, and whether it takes
// another one now.
func (c *Client) Usable() (usable, now bool) {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	err := c.c.takes()
	return !errors.Is(err, ErrGone), err == nil
}

// LocalAddr is the address of this side.
func (c *Client) LocalAddr() net.Addr { return c.c.raw.LocalAddr() }

// takes reports whether there may be another stream. c.mu is held.
func (c *conn) takes() error {
	switch {
	case c.err != nil || c.leaving || c.last >= maxWindow-2:
		return ErrGone
	case len(c.streams) >= c.most:
		return ErrBusy
	}
	return nil
}

// Start sends the head of a request; end says that there is nothing else. The error is
// [ErrBusy] or [ErrGone]: nothing was sent then. The stream must be closed.
func (c *Client) Start(f *http1.Fields, end bool) (*Stream, error) { return c.c.start(f, end) }

func (c *conn) start(f *http1.Fields, end bool) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.takes(); err != nil {
		return nil, err
	}
	s := newStream(c, 0, nil, false, -1)
	for c.out.len() >= enough && c.err == nil {
		s.queue(&c.out.crowd)
	}
	if err := c.takes(); err != nil {
		s.yield()
		return nil, err
	}
	method, _ := f.Get(":method")
	s.bare = method == "HEAD"
	s.id = c.last + 2 - (c.last+1)%2
	s.send = c.first
	c.last = s.id
	c.opened++
	c.streams[s.id] = s
	c.encode(s.id, f, end)
	c.out.wake()
	c.admit()
	s.done = end
	return s, nil
}

// Response waits for the head of the response. end says that there is neither body nor
// trailers.
func (s *Stream) Response() (f *http1.Fields, end bool, err error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for !s.answered && s.err == nil {
		s.moved.Wait()
	}
	if !s.answered {
		return nil, false, s.err
	}
	return s.fields, s.whole, nil
}

// Close ends a stream that is not complete on both sides, and forgets what was not read
// of it.
func (s *Stream) Close() {
	s.Reset(h2.ErrCodeCancel)
	s.StopReading()
}

// respond takes the head of a response.
func (c *conn) respond(s *Stream, end bool) error {
	h := &c.head
	c.mu.Lock()
	defer c.mu.Unlock()
	status := h.pseudo[status]
	switch {
	case s.err != nil:
		return nil
	case h.fault != "" || h.large() || status[0] == '1' && end:
		s.fail(h2.ErrCodeProtocol)
		return nil
	case status[0] == '1': // the proxy has said so already
		return nil
	}
	if s.bare = s.bare || status == "304"; !s.bare {
		s.left = h.length
	}
	if end && s.left > 0 {
		s.fail(h2.ErrCodeProtocol)
		return nil
	}
	s.fields, s.answered, s.whole = h.fields(), true, end
	if end {
		s.end()
	}
	s.moved.Broadcast()
	return nil
}

// goneAway takes the server's word that it takes no more requests, nor those after the
// last one that it names.
func (c *conn) goneAway(f *h2.GoAwayFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var refused []*Stream
	for id, s := range c.streams {
		if id > f.LastStreamID {
			refused = append(refused, s)
		}
	}
	slices.SortFunc(refused, func(a, b *Stream) int { return int(a.id) - int(b.id) })
	for _, s := range refused {
		c.tell(s.over(&ResetError{Code: h2.ErrCodeRefusedStream}))
	}
	c.leave()
}

// leave takes no more streams. c.mu is held.
func (c *conn) leave() {
	c.leaving = true
	c.leaveIfDone()
}

func (c *conn) leaveIfDone() {
	if c.leaving && len(c.streams) == 0 {
		c.hangUp()
	}
}

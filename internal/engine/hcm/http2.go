package hcm

import (
	"context"
	"strconv"

	h2 "golang.org/x/net/http2"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/engine/http2"
)

// newHTTP2 makes a server for HTTP/2.
func (m *Manager) newHTTP2() *http2.Server {
	return &http2.Server{MaxStreams: maxStreams, Idle: connectionIdle, Stall: m.cfg.StreamIdle}
}

// serveHTTP2 serves one connection.
func (m *Manager) serveHTTP2(ctx context.Context, c *Conn) {
	ctx = WithConnection(ctx)
	err := m.h2.Serve(c.Conn, c.R, func(st *http2.Stream) { m.handle2(ctx, c, st) })
	if err != nil {
		m.stats.protocolError.Inc()
		m.env.Log.Debug("HTTP/2", "client", c.Remote, "error", err)
	}
}

// deepen has the stack of a new goroutine grow at once, while there is next to nothing
// on it, to what plugins take: growing time and again later copies more.
func (m *Manager) deepen() {
	if n := len(m.filters); n > 0 {
		use(n)
	}
}

//go:noinline
func use(i int) byte {
	var stack [9 << 10]byte
	return stack[i%len(stack)]
}

func (m *Manager) handle2(ctx context.Context, c *Conn, st *http2.Stream) {
	s := newStream(ctx, m, c, st.Fields(), &writer2{st: st, left: -1}, protocolHTTP2)
	s.end = st.End()
	st.OnReset(s.abort)
	s.run()
}

// A writer2 writes the response of one stream over HTTP/2.
type writer2 struct {
	st   *http2.Stream
	left int64 // of the length that the head tells; -1 if it tells none
}

func (d *writer2) multiplexed() bool { return true }

// request may say that some of the body is at hand: the head does not wait for it, see
// [upstream.Request].Late.
func (d *writer2) request() (requestBody, bool) { return d.st, true }

func (d *writer2) raw() {}

func (d *writer2) proceed() error { return d.st.Continue() }

func (d *writer2) interrupt() { d.st.StopReading() }

func (d *writer2) early() {}

func (d *writer2) headers(f *http1.Fields, end bool) error {
	if v, ok := f.Get("content-length"); ok {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			d.left = n
		}
	}
	return d.st.WriteHead(f, end)
}

func (d *writer2) flush(err error) error { return err } // all is sent as soon as it can be

// data ends the response with the last of the body, after which no trailers come.
func (d *writer2) data(p []byte, last bool) error {
	if d.left >= 0 {
		if d.left -= int64(len(p)); d.left < 0 { // a filter made the body longer than it says
			return http1.ErrSyntax
		}
	}
	return d.st.Write(p, last)
}

func (d *writer2) finish(trailers *http1.Fields) error {
	switch {
	case trailers == nil:
		return nil // data has
	case trailers.Len() == 0: // filters have removed them
		return d.st.Write(nil, true)
	}
	return d.st.WriteTrailers(trailers)
}

func (d *writer2) reset() { d.st.Reset(h2.ErrCodeInternal) }

package hcm

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// newHTTP2 makes a server for HTTP/2, of package net/http. It gets connections
// without TLS: that is taken off before.
func (m *Manager) newHTTP2() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Protocols: protocols,
		Handler:   http.HandlerFunc(m.handle2),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c.(*conn2))
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				c.(*conn2).over()
			}
		},
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: 1 << 20},
		ErrorLog: slog.NewLogLogger(m.env.Log.Handler(), slog.LevelDebug),
	}
}

type connKey struct{}

// serveHTTP2 serves one connection.
func (m *Manager) serveHTTP2(ctx context.Context, c *Conn) {
	c2 := newConn2(ctx, c, &m.buffers)
	l := &oneConn{conn: c2, addr: c.LocalAddr()}
	_ = m.h2.Serve(l)  // returns at once: the listener has one connection only
	if l.conn != nil { // the manager is drained, and yet it goes on taking connections
		_ = m.newHTTP2().Serve(l)
	}
	c2.flush()
	<-c2.done
}

// A oneConn is a listener with one connection.
type oneConn struct {
	conn net.Conn
	addr net.Addr
}

func (l *oneConn) Accept() (net.Conn, error) {
	c := l.conn
	l.conn = nil
	if c == nil {
		return nil, io.EOF
	}
	return c, nil
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.addr }

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

func (m *Manager) handle2(w http.ResponseWriter, r *http.Request) {
	m.deepen()
	c := r.Context().Value(connKey{}).(*conn2)
	f := requestFields(r, c.scheme())
	d := &writer2{w: w, r: r}
	s := newStream(c.ctx, m, c.Conn, f, d, protocolHTTP2)
	s.end = r.Body == http.NoBody || r.ContentLength == 0 && len(r.Trailer) == 0
	stop := context.AfterFunc(r.Context(), s.abort)
	defer stop()
	s.run()
	if d.failed {
		panic(http.ErrAbortHandler) // resets the stream
	}
}

// requestFields is the head of r. The order of its fields is lost: they are sorted. A host
// field, which package net/http leaves beside :authority, is dropped: an upstream must not
// be told two.
func requestFields(r *http.Request, scheme string) *http1.Fields {
	const pseudo = 4
	list := make([]abi.Pair, pseudo, pseudo+len(r.Header)+2)
	list[0] = abi.Pair{Key: ":authority", Value: r.Host}
	list[1] = abi.Pair{Key: ":path", Value: r.RequestURI}
	list[2] = abi.Pair{Key: ":method", Value: r.Method}
	list[3] = abi.Pair{Key: ":scheme", Value: scheme}
	for name, values := range r.Header {
		if name == "Host" {
			continue
		}
		for _, v := range values {
			list = append(list, abi.Pair{Key: strings.ToLower(name), Value: v})
		}
	}
	slices.SortStableFunc(list[pseudo:], func(a, b abi.Pair) int { return cmp.Compare(a.Key, b.Key) })
	if r.Host == "" {
		list = list[1:]
	}
	return proxywasm.NewRequestFields(list...)
}

// A writer2 writes the response of one stream over HTTP/2.
type writer2 struct {
	w      http.ResponseWriter
	r      *http.Request
	length int64 // that the head tells; 0 if it tells none
	failed bool
}

func (d *writer2) multiplexed() bool { return true }

// request may say that some of the body is at hand: the head does not wait for it, see
// [upstream.Request].Late.
func (d *writer2) request() (requestBody, bool) { return &body2{d.r}, true }

func (d *writer2) raw() {}

func (d *writer2) proceed() error { return nil } // package net/http says 100 when the body is read

func (d *writer2) interrupt() { _ = d.r.Body.Close() }

func (d *writer2) early() {}

func (d *writer2) headers(f *http1.Fields, end bool) error {
	h := d.w.Header()
	h["Content-Type"] = nil // do not guess
	status := 200
	pairs := f.Pairs()
	values := make([]string, len(pairs)) // of all that are there once
	for i, p := range pairs {
		if p.Key == ":status" {
			status = atoi(p.Value)
			continue
		}
		key := http.CanonicalHeaderKey(p.Key)
		if have := h[key]; have != nil {
			h[key] = append(have, p.Value)
			continue
		}
		values[i] = p.Value
		h[key] = values[i : i+1 : i+1]
	}
	switch n := h["Content-Length"]; {
	case end:
	case n == nil:
		h["Content-Length"] = nil // nor this
	default:
		d.length, _ = strconv.ParseInt(n[0], 10, 64) // none if it is none
	}
	d.w.WriteHeader(status)
	return nil
}

func (d *writer2) flush(err error) error {
	if err == nil {
		err = http.NewResponseController(d.w).Flush()
	}
	return err
}

func (d *writer2) data(p []byte, more bool) error {
	if d.length > 0 && int64(len(p)) > d.length { // a filter made the body longer than it says
		_ = d.flush(nil) // only then package net/http notes what it says
	}
	_, err := d.w.Write(p)
	if !more {
		return d.flush(err)
	}
	return err
}

func (d *writer2) finish(trailers *http1.Fields) error {
	if trailers != nil {
		for _, p := range trailers.Pairs() {
			d.w.Header().Add(http.TrailerPrefix+http.CanonicalHeaderKey(p.Key), p.Value)
		}
	}
	return nil
}

func (d *writer2) reset() { d.failed = true }

// A body2 is the body of a request over HTTP/2.
type body2 struct{ r *http.Request }

func (b *body2) Read(p []byte) (int, error) { return b.r.Body.Read(p) }

func (b *body2) Trailers() *http1.Fields {
	var f *http1.Fields
	for name, values := range b.r.Trailer {
		for _, v := range values {
			if f == nil {
				f = proxywasm.NewFields()
			}
			f.Add(strings.ToLower(name), v)
		}
	}
	return f
}

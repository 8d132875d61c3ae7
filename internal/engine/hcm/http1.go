package hcm

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// serveHTTP1 answers one request after the other.
func (m *Manager) serveHTTP1(ctx context.Context, c *Conn) {
	ctx = WithConnection(ctx)
	for {
		_ = c.SetReadDeadline(m.env.Now().Add(connectionIdle))
		if _, err := c.R.Peek(1); err != nil {
			return
		}
		c.speaks(protocolHTTP1)
		_ = c.SetReadDeadline(time.Time{})
		if !m.serveRequest(ctx, c) {
			return
		}
	}
}

// serveRequest answers one request. It returns false if the connection ends with it.
// A connection has room to write in only as long: most of those there are have no request.
func (m *Manager) serveRequest(ctx context.Context, c *Conn) bool {
	w := m.writers.Get().(*bufio.Writer)
	w.Reset(c.Conn)
	defer func() {
		w.Reset(nil)
		m.writers.Put(w)
	}()
	msg, err := http1.ReadRequest(c.R, c.scheme())
	if err != nil {
		m.refuse(w, c, err)
		return false
	}
	d := &writer1{m: m, c: c, w: w, body: msg.Body, closing: msg.Close, left: -1}
	d.method, _ = msg.Fields.Get(":method")
	s := newStream(ctx, m, c, msg.Fields, d, protocolHTTP1)
	s.end = msg.Body.Done()
	c.stream.Store(s)
	if ctx.Err() != nil {
		s.abort()
	}
	s.run()
	c.stream.Store(nil)
	return !d.closing && !d.broken
}

// refuse answers what is not a request, as Envoy does, and logs it. What ended before it was
// one is not answered.
func (m *Manager) refuse(w *bufio.Writer, c *Conn, err error) {
	var refusal *http1.Refusal
	if !errors.As(err, &refusal) {
		return
	}
	e := c.NewEntry(m.env.Now())
	m.stats.protocolError.Inc()
	m.stats.rqTotal.Inc()
	m.answered(refusal.Status)
	text := http.StatusText(refusal.Status)
	f := proxywasm.NewResponseFields(
		abi.Pair{Key: ":status", Value: strconv.Itoa(refusal.Status)},
		abi.Pair{Key: "content-length", Value: strconv.Itoa(len(text))},
		abi.Pair{Key: "content-type", Value: "text/plain"},
		abi.Pair{Key: "date", Value: m.now()},
		abi.Pair{Key: "server", Value: m.cfg.ServerName},
		abi.Pair{Key: "connection", Value: "close"},
	)
	_, _ = http1.WriteResponse(w, f, "GET", false)
	_, _ = w.WriteString(text)
	_ = w.Flush() // it ends anyway
	e.Protocol, e.Code, e.CodeDetails, e.Flags = protocolHTTP1, refusal.Status, refusal.Details, protocolError.name()
	e.Response, e.Chain, e.ServerName, e.Sent = f, m.chain, c.serverName(), int64(len(text))
	e.Duration = m.env.Now().Sub(e.Start)
	m.env.WriteLogs(m.cfg.AccessLogs, e)
}

func (m *Manager) answered(status int) {
	m.stats.rqCompleted.Inc()
	if class := status / 100; class >= 1 && class <= 5 {
		m.stats.classes[class].Inc()
	}
}

// A writer1 writes the response of one stream over HTTP/1.1.
type writer1 struct {
	m       *Manager
	c       *Conn
	w       *bufio.Writer
	body    *http1.Body // of the request
	method  string
	framing http1.Framing
	left    int64 // of the length that the head tells; -1 if it tells none
	closing bool  // the connection is closed after this
	broken  bool
}

func (d *writer1) multiplexed() bool { return false }

func (d *writer1) request() (requestBody, bool) { return d.body, d.c.R.Buffered() > 0 }

// arrived reports whether some of the request is at hand. Only who reads the body may ask.
func (d *writer1) arrived() bool { return d.c.R.Buffered() > 0 }

// raw makes the body of the request all that the client will send.
func (d *writer1) raw() { d.body = http1.Raw(d.c.R) }

func (d *writer1) proceed() error {
	_, _ = d.w.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
	return d.w.Flush()
}

// interrupt ends reading the request, which is not finished.
func (d *writer1) interrupt() {
	d.closing = true
	_ = d.c.SetReadDeadline(time.Unix(1, 0))
}

// early says that the response comes before the end of the request: the
// connection is closed after it.
func (d *writer1) early() { d.closing = true }

func (d *writer1) headers(f *http1.Fields, end bool) error {
	status, _ := f.Get(":status")
	d.closing = d.closing || d.m.draining.Load()
	if v, ok := f.Get("content-length"); ok && d.method != "HEAD" && status != "304" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err == nil {
			d.left = n
		}
	}
	if status == "101" {
		d.closing = true
	} else if d.closing {
		f.Add("connection", "close")
	}
	var err error
	d.framing, err = http1.WriteResponse(d.w, f, d.method, end)
	if end {
		return d.flush(err)
	}
	return d.check(err)
}

func (d *writer1) data(p []byte, more bool) error {
	if d.method == "HEAD" {
		return nil
	}
	if d.left >= 0 {
		if d.left -= int64(len(p)); d.left < 0 { // a filter made the body longer than it says
			return d.check(http1.ErrSyntax)
		}
	}
	err := http1.WriteBody(d.w, d.framing, p)
	if more {
		return d.check(err)
	}
	return d.flush(err)
}

func (d *writer1) finish(*http1.Fields) error {
	if d.left > 0 {
		d.broken = true
	}
	return d.flush(http1.WriteEnd(d.w, d.framing))
}

func (d *writer1) flush(err error) error {
	if err == nil {
		err = d.w.Flush()
	}
	return d.check(err)
}

func (d *writer1) check(err error) error {
	d.broken = d.broken || err != nil
	return err
}

// reset ends a response that cannot be completed.
func (d *writer1) reset() { d.broken = true }

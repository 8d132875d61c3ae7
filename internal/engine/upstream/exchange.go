package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
)

// A Request is the head of a request, with pseudo-headers.
type Request struct {
	Fields  *http1.Fields
	End     bool // there is neither body nor trailers
	Upgrade bool // it asks for another protocol
	Late    bool // the head may be sent as late as when the response is waited for
}

// A Response is the head of a response, and its body.
type Response struct {
	Fields   *http1.Fields
	End      bool // there is neither body nor trailers
	Body     Body
	Upgraded bool // the body is another protocol, both ways
}

// A Body is that of a response. Its end is [io.EOF], after which it may have trailers.
type Body interface {
	io.Reader
	Trailers() *http1.Fields
}

// An Exchange is one request to one endpoint and its response. One goroutine
// sends, another may receive. Every Exchange must be finished. Errors are *[ResetError].
type Exchange interface {
	// Send sends some of the body. more says that there will be more at once.
	Send(p []byte, more bool) error
	// SendEnd ends the body, with trailers if they are not nil.
	SendEnd(trailers *http1.Fields) error
	// Response waits for the head of the response.
	Response() (*Response, error)
	// Cancel ends everything, from any goroutine.
	Cancel()
	// Finish gives the connection back if both sides are complete, or else ends it.
	Finish()
	// Host is the endpoint.
	Host() *Host
	// Local is the address that the request is sent from; zero if there is none yet.
	Local() netip.AddrPort
}

// Start begins a request. ctx is for connecting only.
func (h *Host) Start(ctx context.Context, r Request) (Exchange, error) {
	authority, _ := r.Fields.Get(":authority")
	sni := h.cluster.sni(authority)
	h.cluster.Stats.RqTotal.Inc()
	if h.cluster.Config.HTTP2 {
		if !h.cluster.Breakers.requests.Take() {
			h.cluster.Stats.pendingOverflow.Inc()
			return nil, ErrOverflow
		}
		return h.startHTTP2(ctx, r, sni)
	}
	c, err := h.take(ctx, sni)
	if err != nil {
		return nil, err
	}
	if !h.cluster.Breakers.requests.Take() {
		h.cluster.Stats.pendingOverflow.Inc()
		c.give()
		return nil, ErrOverflow
	}
	c.used++
	h.active.Add(1)
	h.cluster.Stats.RqActive.Inc()
	e := &exchange{conn: c, late: r.Late}
	e.method, _ = r.Fields.Get(":method")
	e.left = -1
	if v, ok := r.Fields.Get("content-length"); ok {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			e.left = n
		}
	}
	e.framing, err = http1.WriteRequest(c.w, r.Fields, r.End, r.Upgrade)
	if err == nil && (r.End || r.Upgrade) {
		err = c.w.Flush()
	}
	e.sent.Store(r.End)
	if err != nil {
		e.broken.Store(true) // the response, if there is one, tells more
	}
	return e, nil
}

// sni is the server name for a request.
func (c *Cluster) sni(authority string) string {
	if c.tls == nil {
		return ""
	}
	if c.Config.AutoSNI && authority != "" {
		host, _, err := net.SplitHostPort(authority)
		if err != nil {
			host = strings.Trim(authority, "[]")
		}
		if net.ParseIP(host) == nil {
			return host
		}
	}
	return c.Config.TLS.SNI
}

// An exchange is one over HTTP/1.1.
type exchange struct {
	conn    *conn
	method  string
	framing http1.Framing
	message *http1.Message
	left    int64       // of the length that the head tells; -1 if it tells none
	late    bool        // Response sends what is not sent
	writing sync.Mutex  // of the request
	sent    atomic.Bool // the whole request
	broken  atomic.Bool
	over    atomic.Bool // finished or cancelled
}

func (e *exchange) Host() *Host { return e.conn.host }

func (e *exchange) Local() netip.AddrPort { return addrPort(e.conn.LocalAddr()) }

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

func (e *exchange) Send(p []byte, more bool) error {
	if e.left >= 0 {
		if e.left -= int64(len(p)); e.left < 0 { // a filter made the body longer than it says
			return e.failed(http1.ErrSyntax)
		}
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	err := http1.WriteBody(e.conn.w, e.framing, p)
	if err == nil && !more {
		err = e.conn.w.Flush()
	}
	return e.failed(err)
}

func (e *exchange) SendEnd(*http1.Fields) error {
	e.writing.Lock()
	defer e.writing.Unlock()
	err := http1.WriteEnd(e.conn.w, e.framing)
	if err == nil {
		err = e.conn.w.Flush()
	}
	if err == nil {
		e.sent.Store(e.left <= 0)
	}
	return e.failed(err)
}

func (e *exchange) failed(err error) error {
	if err == nil {
		return nil
	}
	e.broken.Store(true)
	return &ResetError{Reason: Terminated, Err: err}
}

// push sends the head, unless whoever sends is about to.
func (e *exchange) push() {
	runtime.Gosched() // to send it with what there is of the body
	if e.sent.Load() || !e.writing.TryLock() {
		return
	}
	defer e.writing.Unlock()
	_ = e.failed(e.conn.w.Flush()) // reading fails, too
}

func (e *exchange) Response() (*Response, error) {
	if e.late && !e.sent.Load() {
		e.push()
	}
	m, err := http1.ReadResponse(e.conn.r, e.method)
	if err != nil {
		e.broken.Store(true)
		reason := Terminated
		if refusal := new(http1.Refusal); errors.As(err, &refusal) {
			reason = ProtocolError
		}
		return nil, &ResetError{Reason: reason, Err: err}
	}
	e.message = m
	status, _ := m.Fields.Get(":status")
	return &Response{Fields: m.Fields, End: m.Body.Done(), Body: m.Body, Upgraded: status == "101"}, nil
}

func (e *exchange) Cancel() {
	if e.over.CompareAndSwap(false, true) {
		e.conn.Close()
		e.done()
	}
}

func (e *exchange) Finish() {
	if !e.over.CompareAndSwap(false, true) {
		return
	}
	m := e.message
	if e.sent.Load() && !e.broken.Load() && m != nil && m.Body.Done() && !m.Close {
		e.conn.give()
	} else {
		e.conn.Close()
	}
	e.done()
}

func (e *exchange) done() {
	e.conn.host.active.Add(-1)
	e.conn.host.cluster.Breakers.requests.Give()
	e.conn.host.cluster.Stats.RqActive.Dec()
}

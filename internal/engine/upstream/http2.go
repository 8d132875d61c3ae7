package upstream

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// transport returns the HTTP/2 connections to the host with that server name.
func (h *Host) transport(sni string) *http.Transport {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.h2[sni]
	if t != nil {
		return t
	}
	protocols := new(http.Protocols)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := h.dialMore(ctx, sni)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	t = &http.Transport{Protocols: protocols, DisableCompression: true, IdleConnTimeout: h.cluster.Config.Idle, DialContext: dial}
	// TLS, if any, is dial's: for the transport it is all plain HTTP/2.
	protocols.SetUnencryptedHTTP2(true)
	if !h.retired {
		h.h2[sni] = t
	}
	return t
}

func (h *Host) startHTTP2(ctx context.Context, r Request, sni string) Exchange {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // ended by Cancel or Finish
	e := &exchange2{host: h, cancel: cancel, transport: h.transport(sni)}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		local := addrPort(c.Conn.LocalAddr())
		e.local.Store(&local)
	}})
	e.request = request2(ctx, r)
	if !r.End {
		var body io.ReadCloser
		body, e.body = io.Pipe()
		e.request.Body = body
		e.request.ContentLength = -1
		if v, ok := r.Fields.Get("content-length"); ok {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil && n > 0 {
				e.request.ContentLength = n
			}
		}
		e.request.Trailer = announced(r)
	}
	h.active.Add(1)
	h.cluster.Stats.RqActive.Inc()
	return e
}

// request2 is r for package net/http.
func request2(ctx context.Context, r Request) *http.Request {
	q := (&http.Request{Method: "GET", URL: &url.URL{Scheme: "http"}, Header: http.Header{"User-Agent": nil}}).WithContext(ctx)
	for _, p := range r.Fields.Pairs() {
		switch p.Key {
		case ":method":
			q.Method = p.Value
		case ":authority":
			q.Host, q.URL.Host = p.Value, p.Value
		case ":path":
			q.URL.Opaque = p.Value
		case ":scheme", "content-length":
		default:
			key := http.CanonicalHeaderKey(p.Key)
			q.Header[key] = append(q.Header[key], p.Value)
		}
	}
	return q
}

// announced has a key for each trailer that a request will have, as far as is known. Package
// net/http sends no others.
func announced(r Request) http.Header {
	names := r.Trailers
	if list, ok := r.Fields.Get("trailer"); ok {
		names = append(slices.Clip(names), strings.Split(list, ",")...)
	}
	h := http.Header{}
	for _, name := range names {
		h[http.CanonicalHeaderKey(strings.TrimSpace(name))] = []string{}
	}
	return h
}

// An exchange2 is one over HTTP/2.
type exchange2 struct {
	host      *Host
	transport *http.Transport
	request   *http.Request
	body      *io.PipeWriter // nil if there is none
	cancel    context.CancelFunc
	response  *http.Response
	local     atomic.Pointer[netip.AddrPort]
	over      atomic.Bool
}

func (e *exchange2) Local() netip.AddrPort {
	if a := e.local.Load(); a != nil {
		return *a
	}
	return netip.AddrPort{}
}

func (e *exchange2) Host() *Host { return e.host }

func (e *exchange2) Send(p []byte, _ bool) error {
	if _, err := e.body.Write(p); err != nil {
		return reset2(err)
	}
	return nil
}

func (e *exchange2) SendEnd(trailers *http1.Fields) error {
	if trailers != nil {
		for _, p := range trailers.Pairs() {
			if key := http.CanonicalHeaderKey(p.Key); e.request.Trailer.Values(key) != nil {
				e.request.Trailer[key] = append(e.request.Trailer[key], p.Value)
			}
		}
	}
	return e.body.Close()
}

func (e *exchange2) Response() (*Response, error) {
	r, err := e.transport.RoundTrip(e.request)
	if err != nil {
		return nil, reset2(err)
	}
	e.response = r
	f := proxywasm.NewResponseFields(fields2(r.Header, abi.Pair{Key: ":status", Value: strconv.Itoa(r.StatusCode)}).Pairs()...)
	end := r.Body == http.NoBody || r.ContentLength == 0 && len(r.Trailer) == 0
	if _, ok := f.Get("content-length"); !ok && r.ContentLength > 0 {
		f.Add("content-length", strconv.FormatInt(r.ContentLength, 10))
	}
	return &Response{Fields: f, End: end, Body: &body2{r}}, nil
}

// fields2 is a header map of package net/http, sorted: its order is lost.
func fields2(h http.Header, first ...abi.Pair) *http1.Fields {
	list := first
	for name, values := range h {
		for _, v := range values {
			list = append(list, abi.Pair{Key: strings.ToLower(name), Value: v})
		}
	}
	slices.SortStableFunc(list[len(first):], func(a, b abi.Pair) int { return cmp.Compare(a.Key, b.Key) })
	return proxywasm.NewFields(list...)
}

// reset2 puts a failure in Envoy's words.
func reset2(err error) error {
	var known *ResetError
	switch text := err.Error(); {
	case errors.As(err, &known):
		return known
	case strings.Contains(text, "REFUSED_STREAM"):
		return &ResetError{Reason: RemoteRefused, Err: err}
	case strings.Contains(text, "stream error"):
		return &ResetError{Reason: RemoteReset, Err: err}
	case strings.Contains(text, "PROTOCOL_ERROR"):
		return &ResetError{Reason: ProtocolError, Err: err}
	}
	return &ResetError{Reason: Terminated, Err: err}
}

func (e *exchange2) Cancel() {
	if !e.over.CompareAndSwap(false, true) {
		return
	}
	if e.body != nil {
		e.body.CloseWithError(context.Canceled)
	}
	e.cancel()
	if e.host.gone() { // no one else has the connection, or will
		e.transport.CloseIdleConnections()
	}
	e.host.active.Add(-1)
	e.host.cluster.Breakers.requests.Give()
	e.host.cluster.Stats.RqActive.Dec()
}

func (e *exchange2) Finish() {
	if e.response != nil {
		e.response.Body.Close()
	}
	e.Cancel()
}

// A body2 is that of a response over HTTP/2.
type body2 struct{ r *http.Response }

func (b *body2) Read(p []byte) (int, error) {
	n, err := b.r.Body.Read(p)
	if err != nil && err != io.EOF {
		err = reset2(err)
	}
	return n, err
}

func (b *body2) Trailers() *http1.Fields {
	if len(b.r.Trailer) == 0 {
		return nil
	}
	return fields2(b.r.Trailer)
}

// Package hcm is the HTTP connection manager: it reads requests off connections,
// passes them through filters and to a cluster, and the answers back.
//
// A request is a stream. What is done to it, in what order, and how the proxy's
// own answers are worded, is Envoy's. HTTP/1.1 is read by package http1, HTTP/2 by
// package http2. Nothing is buffered that a filter does not hold back.
//
// One goroutine has a stream; a second one reads the body of the request, if there
// is one. Filters may go on at any time, from any goroutine (see direction).
//
// Start at [Manager.Serve], then stream.run.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/life_of_a_request
package hcm

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/extension"
	"github.com/chandler-proxy/chandler/internal/engine/http2"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
)

// Envoy's defaults.
const (
	connectionIdle = time.Hour // of a connection without requests
	maxStreams     = 1024      // of an HTTP/2 connection at once
)

// An Env is what managers need of the rest of the engine.
type Env struct {
	Cluster func(name string) *upstream.Cluster // nil if there is none
	Stats   *stats.Registry
	Facts   func(dst []byte, path string) ([]byte, bool) // properties of the node; path's segments are joined by zero bytes
	Address netip.Addr                                   // of this machine, for x-forwarded-for of a client on it
	Log     *slog.Logger
	Now     func() time.Time
	// Background runs what outlives a request; its context ends with the engine.
	Background func(func(context.Context))
	// AccessLog is where access logs of that path are written, a line at a time.
	AccessLog func(path string) io.Writer
	// Access, if set, is told of each request when it is over, by many goroutines.
	Access func(Access)
}

// A Filter is an HTTP filter of the chain.
type Filter struct {
	Name string
	Slot *extension.Slot
}

// A Conn is a connection from a client, and what is known of it.
type Conn struct {
	net.Conn
	R             *bufio.Reader // reads from Conn
	Remote, Local netip.AddrPort
	Dst           netip.AddrPort // where it was meant to go; Local unless it was redirected
	ID            uint64
	TLS           *tls.ConnectionState // nil for plain text
	Entry         *config.Entry        // what is logged of the connection itself; nil if nothing is

	stream atomic.Pointer[stream] // that is under way, of HTTP/1.1
}

// A Manager serves HTTP. It is safe for concurrent use.
type Manager struct {
	cfg       *config.HTTP
	env       *Env
	routes    func() *config.Routes // nil if there are none yet
	filters   []Filter
	limit     int // how many bytes of a body may be held
	direction int64
	chain     string
	metadata  *corev3.Metadata // of the listener

	stats    managerStats
	draining atomic.Bool
	buffers  sync.Pool // of *[16 << 10]byte, for bodies
	writers  sync.Pool // of *bufio.Writer, for HTTP/1.1
	date     atomic.Pointer[date]

	h2 *http2.Server
}

type managerStats struct {
	cxTotal, cxActive, cxHTTP1, cxHTTP2 *stats.Value
	rqTotal, rqActive, rqCompleted      *stats.Value
	protocolError, noRoute, noCluster   *stats.Value
	classes                             [6]*stats.Value
}

// A Chain is what a manager must know of the filter chain that it ends.
type Chain struct {
	Name        string
	Direction   int64 // of the listener
	BufferLimit int
	Metadata    *corev3.Metadata // of the listener; may be nil
}

// New makes a Manager. It starts nothing.
func New(cfg *config.HTTP, env *Env, routes func() *config.Routes, filters []Filter, chain Chain) *Manager {
	scope := stats.Scope{Family: "http", Name: cfg.StatPrefix}
	counter := func(name string) *stats.Value { return env.Stats.Counter(scope, name) }
	gauge := func(name string) *stats.Value { return env.Stats.Gauge(scope, name) }
	m := &Manager{
		cfg: cfg, env: env, routes: routes, filters: filters,
		limit: chain.BufferLimit, direction: chain.Direction, chain: chain.Name, metadata: chain.Metadata,
		stats: managerStats{
			cxTotal: counter("downstream_cx_total"), cxActive: gauge("downstream_cx_active"),
			cxHTTP1: counter("downstream_cx_http1_total"), cxHTTP2: counter("downstream_cx_http2_total"),
			rqTotal: counter("downstream_rq_total"), rqActive: gauge("downstream_rq_active"),
			rqCompleted: counter("downstream_rq_completed"), protocolError: counter("downstream_cx_protocol_error"),
			noRoute: counter("no_route"), noCluster: counter("no_cluster"),
		},
	}
	for class := 1; class <= 5; class++ {
		m.stats.classes[class] = counter("downstream_rq_" + strconv.Itoa(class) + "xx")
	}
	m.buffers.New = func() any { return new([16 << 10]byte) }
	m.writers.New = func() any { return bufio.NewWriterSize(nil, 16<<10) }
	m.h2 = m.newHTTP2()
	return m
}

// Drain has every connection closed after the answer to its next request, or,
// over HTTP/2, after those to the requests that it has.
func (m *Manager) Drain(ctx context.Context) {
	if m.draining.CompareAndSwap(false, true) {
		m.h2.Drain()
	}
}

// Serve serves a connection until it ends or ctx does. It closes it.
func (m *Manager) Serve(ctx context.Context, c *Conn) {
	m.stats.cxTotal.Inc()
	m.stats.cxActive.Inc()
	defer m.stats.cxActive.Dec()
	defer c.Close()
	stop := context.AfterFunc(ctx, func() {
		c.Close()
		if s := c.stream.Load(); s != nil {
			s.abort()
		}
	})
	defer stop()
	if m.isHTTP2(c) {
		m.stats.cxHTTP2.Inc()
		c.speaks(protocolHTTP2)
		m.serveHTTP2(ctx, c)
		return
	}
	m.stats.cxHTTP1.Inc()
	m.serveHTTP1(ctx, c)
}

// The versions of HTTP by Envoy's names.
const (
	protocolHTTP1 = "HTTP/1.1"
	protocolHTTP2 = "HTTP/2"
)

// speaks notes the protocol of the connection, if it is to be logged.
func (c *Conn) speaks(protocol string) {
	if c.Entry != nil {
		c.Entry.Protocol = protocol
	}
}

// preface is what an HTTP/2 connection starts with.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func (m *Manager) isHTTP2(c *Conn) bool {
	switch m.cfg.Codec {
	case config.HTTP1:
		return false
	case config.HTTP2:
		return true
	}
	if c.TLS != nil && c.TLS.NegotiatedProtocol != "" {
		return c.TLS.NegotiatedProtocol == "h2"
	}
	for n := 1; n <= 4; n++ { // a request that is not HTTP/2 may be short, and seldom starts with PRI
		b, err := c.R.Peek(n)
		if err != nil || string(b) != preface[:n] {
			return false
		}
	}
	b, err := c.R.Peek(len(preface))
	return err == nil && string(b) == preface
}

// scheme is that of the connection.
func (c *Conn) scheme() string {
	if c.TLS != nil {
		return "https"
	}
	return "http"
}

// A date is the text of one second.
type date struct {
	second int64
	text   string
}

func (m *Manager) now() string {
	now := m.env.Now()
	d := m.date.Load()
	if d == nil || d.second != now.Unix() {
		d = &date{now.Unix(), now.UTC().Format(http.TimeFormat)}
		m.date.Store(d)
	}
	return d.text
}

// Package listener takes connections and gives each to the filter chain that is
// for it: by where it was meant to go, by what the client says first, and by what
// TLS tells.
//
// A [Socket] is an address; the [Listener] on it may be replaced at any time. Filter
// chains that are the same in both go on with their connections; others are
// drained: their connections end, at the latest, when the drain time is over, and
// no request is lost.
//
// It does not decode configuration and does not speak HTTP. Start at [Build],
// [Socket.Run] and Listener.serve.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/listener/v3/listener_components.proto
package listener

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/extension"
	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
)

// handshakeTimeout is how long TLS may take: Envoy's transport_socket_connect_timeout
// has no limit by default; a client that never finishes is not worth one.
const handshakeTimeout = 30 * time.Second

// An Env is what listeners need of the rest of the engine.
type Env struct {
	HTTP    *hcm.Env
	Routes  func(name string) func() *config.Routes // where the route configuration of that name will be
	Slot    func(name string) *extension.Slot       // where the extension of that name will be
	Secret  func(name string) *Secret
	Open    func(config.Extension) (*extension.Extension, error) // for filters that are not discovered
	Find    func(dst netip.AddrPort) *Listener                   // the listener for an original destination, or nil
	Log     *slog.Logger
	NextID  func() uint64
	Workers *sync.WaitGroup // of the connections
}

// A Listener is what becomes of the connections to one address.
type Listener struct {
	Config *config.Listener

	env    *Env
	chains []*Chain
	rest   *Chain // when no other matches; may be nil
	stats  *listenerStats
	logged bool // something is logged of connections
}

type listenerStats struct {
	total, active, destroyed, unmatched *stats.Value
	tlsErrors                           *stats.Value
}

func newStats(r *stats.Registry, addr netip.AddrPort) *listenerStats {
	scope := stats.Scope{Family: "listener", Name: strings.ReplaceAll(addr.String(), ":", "_")}
	return &listenerStats{
		total: r.Counter(scope, "downstream_cx_total"), active: r.Gauge(scope, "downstream_cx_active"),
		destroyed: r.Counter(scope, "downstream_cx_destroy"), unmatched: r.Counter(scope, "no_filter_chain_match"),
		tlsErrors: r.Counter(scope, "ssl.connection_error"),
	}
}

// A Chain is a running filter chain.
type Chain struct {
	cfg     *config.FilterChain
	env     *Env
	network []hcm.Filter
	http    *hcm.Manager
	tcp     *tcpProxy
	tls     *downstreamTLS
	users   users

	ctx    context.Context // ends when its connections must
	cancel context.CancelFunc
	owned  []*extension.Slot // of filters that are not discovered

	direction int64            // of the listener
	metadata  *corev3.Metadata // likewise
}

// Build makes a listener. Filter chains that old has too are taken over. ctx is
// that of the connections.
func Build(ctx context.Context, cfg *config.Listener, old *Listener, env *Env) (*Listener, error) {
	l := &Listener{Config: cfg, env: env, stats: newStats(env.HTTP.Stats, cfg.Address)}
	have := map[string]*Chain{}
	if old != nil && old.Config.BufferLimit == cfg.BufferLimit && old.Config.Direction == cfg.Direction &&
		proto.Equal(old.Config.Message.GetMetadata(), cfg.Message.GetMetadata()) {
		for _, c := range old.all() {
			have[c.cfg.Identity] = c
		}
	}
	for _, c := range cfg.Chains {
		chain, err := buildChain(ctx, c, have, l)
		if err != nil {
			return nil, err
		}
		l.chains = append(l.chains, chain)
	}
	if cfg.Default != nil {
		chain, err := buildChain(ctx, cfg.Default, have, l)
		if err != nil {
			return nil, err
		}
		l.rest = chain
	}
	l.logged = len(cfg.AccessLogs) > 0 || slices.ContainsFunc(l.all(), func(c *Chain) bool { return c.cfg.TCP != nil && len(c.cfg.TCP.AccessLogs) > 0 })
	return l, nil
}

func (l *Listener) all() []*Chain {
	if l.rest == nil {
		return l.chains
	}
	return append(slices.Clip(l.chains), l.rest)
}

func buildChain(ctx context.Context, cfg *config.FilterChain, have map[string]*Chain, l *Listener) (*Chain, error) {
	if c := have[cfg.Identity]; c != nil {
		return c, nil
	}
	c := &Chain{cfg: cfg, env: l.env, direction: l.Config.Direction, metadata: l.Config.Message.GetMetadata()}
	var err error
	if c.network, err = c.filters(cfg.Network); err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		if c.tls, err = newDownstreamTLS(cfg.TLS, l.env.Secret); err != nil {
			return nil, fmt.Errorf("filter chain %q: %w", cfg.Name, err)
		}
	}
	switch {
	case cfg.TCP != nil:
		c.tcp = newTCP(cfg.TCP, l.env.HTTP)
	case cfg.HTTP != nil:
		filters, err := c.filters(cfg.HTTP.Filters)
		if err != nil {
			return nil, err
		}
		routes := func() *config.Routes { return cfg.HTTP.Routes }
		if cfg.HTTP.Routes == nil {
			routes = l.env.Routes(cfg.HTTP.RouteName)
		}
		c.http = hcm.New(cfg.HTTP, l.env.HTTP, routes, filters, hcm.Chain{
			Name: cfg.Name, Direction: l.Config.Direction, BufferLimit: l.Config.BufferLimit,
			Metadata: l.Config.Message.GetMetadata(),
		})
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c, nil
}

// filters finds or makes what the filters run.
func (c *Chain) filters(list []config.Filter) ([]hcm.Filter, error) {
	var filters []hcm.Filter
	for _, f := range list {
		slot := c.env.Slot(f.Name)
		if f.Extension != nil {
			e, err := c.env.Open(f.Extension)
			if err != nil {
				return nil, fmt.Errorf("filter %s: %w", f.Name, err)
			}
			slot = new(extension.Slot)
			slot.Put(e)
			c.owned = append(c.owned, slot)
		}
		filters = append(filters, hcm.Filter{Name: f.Name, Slot: slot})
	}
	return filters, nil
}

// Drain has the connections of chains that next does not have end, at once when
// they are idle between requests, and by force after grace. next may be nil. Chains
// without connections end at once.
func (l *Listener) Drain(ctx context.Context, next *Listener, grace time.Duration) {
	for _, c := range l.all() {
		if next != nil && slices.Contains(next.all(), c) {
			continue
		}
		l.env.Workers.Go(func() { c.drain(ctx, grace) })
	}
}

// Goodbye has every connection closed after the answer to its next request.
// Connections that are no requests go on.
func (l *Listener) Goodbye(ctx context.Context) {
	for _, c := range l.all() {
		if c.http != nil {
			l.env.Workers.Go(func() { c.http.Drain(ctx) })
		}
	}
}

func (c *Chain) drain(ctx context.Context, grace time.Duration) {
	graceful, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if c.http != nil {
		c.http.Drain(graceful)
	}
	select {
	case <-c.users.drain():
	case <-graceful.Done():
	}
	c.cancel()
	for _, slot := range c.owned {
		slot.Put(nil) // streams that still have it keep it
	}
}

// A Socket accepts connections for the listener of the time.
type Socket struct {
	net.Listener
	Addr    netip.AddrPort // as it is bound
	current atomic.Pointer[Listener]
	closed  atomic.Bool
}

// NewSocket wraps a bound socket.
func NewSocket(l net.Listener, first *Listener) *Socket {
	s := &Socket{Listener: l, Addr: addrPort(l.Addr())}
	s.current.Store(first)
	return s
}

// Replace has the connections that come next go to l.
func (s *Socket) Replace(l *Listener) { s.current.Store(l) }

// Stop closes the socket. Connections go on.
func (s *Socket) Stop() {
	if s.closed.CompareAndSwap(false, true) {
		s.Close()
	}
}

// Run accepts connections until the socket is stopped or ctx ends.
func (s *Socket) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	for {
		c, err := s.Accept()
		if err != nil {
			if s.closed.Load() {
				return nil
			}
			var temporary interface{ Timeout() bool }
			if errors.As(err, &temporary) && temporary.Timeout() {
				continue
			}
			// Too many open files, most likely: wait until some are closed.
			l := s.current.Load()
			l.env.Log.Warn("accept", "listener", l.Config.Name, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		l := s.enter()
		if l == nil {
			c.Close()
			continue
		}
		l.env.Workers.Go(func() { l.take(c) })
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// take serves a connection, which all chains count, to its end.
func (l *Listener) take(raw net.Conn) {
	c := &hcm.Conn{Conn: raw, Remote: addrPort(raw.RemoteAddr()), Local: addrPort(raw.LocalAddr()), ID: l.env.NextID()}
	c.Dst = c.Local
	l.serve(c, true)
}

// serve gives a connection, which all chains count, to its filter chain. hand says
// whether it may be given to another listener.
func (l *Listener) serve(c *hcm.Conn, hand bool) {
	if l.Config.OriginalDst {
		if dst, ok := originalDst(c.Conn); ok {
			c.Dst, c.Local = dst, dst
		}
	}
	if hand && l.Config.UseOriginalDst {
		if other := l.other(c.Dst); other != nil {
			leave(l.all(), nil)
			other.serve(c, false)
			return
		}
	}
	var chain *Chain // until it is known all count the connection
	defer func() {
		if chain == nil {
			leave(l.all(), nil)
		} else {
			chain.users.leave()
		}
	}()
	l.stats.total.Inc()
	l.stats.active.Inc()
	defer l.stats.active.Dec()
	defer l.stats.destroyed.Inc()
	defer c.Close()
	if l.logged {
		c.Entry = c.NewEntry(l.env.HTTP.Now())
		defer func() { l.env.HTTP.WriteLogs(l.Config.AccessLogs, l.ended(c)) }()
	}
	said, ok := l.inspect(c)
	if !ok {
		return
	}
	chain = l.match(c.Dst, said)
	if chain == nil {
		l.stats.unmatched.Inc()
		if c.Entry != nil {
			c.Entry.Flags, c.Entry.CodeDetails = "NR", "filter_chain_not_found"
		}
		return
	}
	if c.Entry != nil {
		c.Entry.Chain, c.Entry.ServerName = chain.cfg.Name, said.name
	}
	leave(l.all(), chain)
	chain.serve(c, l)
}

// other returns another listener, for an original destination, which counts the
// connection: nil if there is none.
func (l *Listener) other(dst netip.AddrPort) *Listener {
	for other := l.env.Find(dst); other != nil && other != l; {
		if other.enter() {
			return other
		}
		next := l.env.Find(dst)
		if next == other { // it is being removed
			return nil
		}
		other = next
	}
	return nil
}

// ended is what is logged of a connection that is over.
func (l *Listener) ended(c *hcm.Conn) *config.Entry {
	c.Entry.Duration = l.env.HTTP.Now().Sub(c.Entry.Start)
	return c.Entry
}

// serve takes a connection through TLS and the network filters.
func (ch *Chain) serve(c *hcm.Conn, l *Listener) {
	stop := context.AfterFunc(ch.ctx, func() { c.Close() })
	defer stop()
	ctx := hcm.WithConnection(ch.ctx)
	if ch.tls != nil {
		t := tls.Server(&peeked{Conn: c.Conn, r: c.R}, ch.tls.config())
		ctx, cancel := context.WithTimeout(ch.ctx, handshakeTimeout)
		err := t.HandshakeContext(ctx)
		cancel()
		if err != nil {
			l.stats.tlsErrors.Inc()
			return
		}
		state := t.ConnectionState()
		c.Conn, c.R, c.TLS = t, bufio.NewReader(t), &state
	}
	if len(ch.network) > 0 {
		f, ok := ch.filtered(ctx, c)
		if !ok {
			return
		}
		defer f.end()
		c.Conn, c.R = f, bufio.NewReader(f)
	}
	if ch.http != nil {
		if c.Entry != nil {
			m := &metered{peeked: peeked{Conn: c.Conn, r: c.R}}
			c.Conn, c.R = m, bufio.NewReader(m)
			defer m.tell(c.Entry)
		}
		ch.http.Serve(ctx, c)
		return
	}
	ch.tcp.serve(ch.ctx, c)
	if c.Entry != nil {
		l.env.HTTP.WriteLogs(ch.tcp.cfg.AccessLogs, l.ended(c))
	}
}

// A metered connection counts bytes for what is logged of it.
type metered struct {
	peeked
	read, written atomic.Int64
}

func (m *metered) Read(b []byte) (int, error) {
	n, err := m.peeked.Read(b)
	m.read.Add(int64(n))
	return n, err
}

func (m *metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.written.Add(int64(n))
	return n, err
}

func (m *metered) tell(e *config.Entry) { e.Received, e.Sent = m.read.Load(), m.written.Load() }

// A peeked connection starts with what was read of it already.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

// CloseWrite says that nothing more will be written.
func (p *peeked) CloseWrite() error {
	if w, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return p.Conn.Close()
}

package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chandler-proxy/chandler/internal/engine/certs"
	"github.com/chandler-proxy/chandler/internal/engine/http2"
)

// A ResetError says why a request got no answer, or not all of one.
type ResetError struct {
	Reason  Reason
	Failure string // of the transport; may be empty
	Err     error
}

// A Reason is why a request ended early, in Envoy's words.
type Reason string

// The reasons.
const (
	ConnectFailure Reason = "remote connection failure"
	ConnectTimeout Reason = "connection timeout"
	Terminated     Reason = "connection termination"
	RemoteReset    Reason = "remote reset"
	RemoteRefused  Reason = "remote refused stream reset"
	ProtocolError  Reason = "protocol error"
	Overflow       Reason = "overflow" // of a circuit breaker
)

func (e *ResetError) Error() string {
	s := string(e.Reason)
	if e.Failure != "" {
		s += ", transport failure reason: " + e.Failure
	}
	return s
}

func (e *ResetError) Unwrap() error { return e.Err }

// Details is why a request ended early as Envoy writes it into the details of a
// response: in one word, with what the transport said.
func Details(err error) string {
	var reset *ResetError
	if !errors.As(err, &reset) {
		return "connection_termination"
	}
	words := string(reset.Reason)
	if f := TransportFailure(err); f != "" {
		words += "|" + f
	}
	return strings.ReplaceAll(words, " ", "_")
}

// TransportFailure is what the transport said to it, in Envoy's words; it may be empty.
func TransportFailure(err error) string {
	var reset *ResetError
	var number syscall.Errno
	switch {
	case !errors.As(err, &reset):
		return ""
	case reset.Failure == "" && reset.Reason == ConnectFailure && errors.As(reset.Err, &number):
		text := number.Error()
		return "delayed connect error: " + strings.ToUpper(text[:1]) + text[1:]
	}
	return reset.Failure
}

// A Host is one endpoint.
type Host struct {
	Address string

	cluster *Cluster
	network string
	weight  atomic.Int64
	active  atomic.Int64 // requests

	health health

	mu      sync.Mutex
	retired bool
	open    int
	waiting []chan struct{}    // for a connection
	idle    map[string][]*conn // by server name, the last used last
	h2      map[string]*shared // likewise

	buffers http2.Buffers
}

func newHost(c *Cluster, network, address string) *Host {
	return &Host{Address: address, cluster: c, network: network, idle: map[string][]*conn{}, h2: map[string]*shared{}}
}

// Active is how many requests the host has.
func (h *Host) Active() int64 { return h.active.Load() }

// A conn is one HTTP/1.1 connection. It is used by one request at a time.
type conn struct {
	net.Conn
	host *Host
	sni  string
	r    *bufio.Reader
	w    *bufio.Writer
	used uint32    // requests
	free time.Time // when it became idle
}

// dial connects, with TLS if the cluster has it.
func (h *Host) dial(ctx context.Context, sni string) (net.Conn, error) {
	c := h.cluster
	ctx, cancel := context.WithTimeout(ctx, c.Config.Connect)
	defer cancel()
	var d net.Dialer
	if c.Config.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(c.Config.Source)
	}
	conn, err := d.DialContext(ctx, h.network, h.Address)
	if err != nil {
		c.Stats.ConnectFail.Inc()
		return nil, connectError(err)
	}
	if c.tls != nil {
		t := tls.Client(conn, certs.Named(c.tls, sni, c.Config.AutoSAN))
		if err := t.HandshakeContext(ctx); err != nil {
			conn.Close()
			c.Stats.ConnectFail.Inc()
			return nil, &ResetError{Reason: ConnectFailure, Failure: "TLS error: " + err.Error(), Err: err}
		}
		conn = t
	}
	c.Stats.CxTotal.Inc()
	c.Stats.CxActive.Inc()
	return &counted{Conn: conn, host: h}, nil
}

// connectError puts a failure in Envoy's words.
func connectError(err error) error {
	var timeout interface{ Timeout() bool }
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return &ResetError{Reason: ConnectTimeout, Err: err}
	}
	return &ResetError{Reason: ConnectFailure, Err: err}
}

// A counted connection is one that the statistics know.
type counted struct {
	net.Conn
	host   *Host
	closed atomic.Bool
}

func (c *counted) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.host.cluster.Stats.CxActive.Dec()
		c.host.left()
	}
	return c.Conn.Close()
}

// CloseWrite says that nothing more will be written.
func (c *counted) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

// alive reports whether an idle connection can be used: its peer has neither
// closed it nor said anything unasked.
func (c *counted) alive() bool {
	inner, encrypted := c.Conn, false
	if t, ok := inner.(*tls.Conn); ok {
		inner, encrypted = t.NetConn(), true
	}
	sc, ok := inner.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		alive = errors.Is(err, unix.EAGAIN) || encrypted && n > 0 // a session ticket, perhaps
		return true
	})
	return err == nil && alive
}

// Dial connects for a stream of bytes, or for HTTP/2, if there may be one connection more.
func (h *Host) Dial(ctx context.Context) (net.Conn, error) {
	return h.dialMore(ctx, h.cluster.sni(""))
}

func (h *Host) dialMore(ctx context.Context, sni string) (net.Conn, error) {
	if !h.cluster.Breakers.connections.Take() {
		h.cluster.Stats.cxOverflow.Inc()
		return nil, ErrOverflow
	}
	h.mu.Lock()
	h.open++
	h.mu.Unlock()
	c, err := h.dial(ctx, sni)
	if err != nil {
		h.left()
		return nil, err
	}
	return c, nil
}

// take returns a connection: the one that was used last, or a new one.
func (h *Host) take(ctx context.Context, sni string) (*conn, error) {
	for {
		h.mu.Lock()
		list := h.idle[sni]
		if len(list) == 0 {
			h.mu.Unlock()
			return h.connect(ctx, sni)
		}
		c := list[len(list)-1]
		h.idle[sni] = list[:len(list)-1]
		h.mu.Unlock()
		if c.Conn.(*counted).alive() {
			return c, nil
		}
		c.Close()
	}
}

// buffered is how many bytes of a message are read or written at once.
const buffered = 16 << 10

func newConn(h *Host, raw net.Conn, sni string) *conn {
	return &conn{Conn: raw, host: h, sni: sni, r: bufio.NewReaderSize(raw, buffered), w: bufio.NewWriterSize(raw, buffered)}
}

// give takes a connection back, to be used again.
func (c *conn) give() {
	h := c.host
	limit := h.cluster.Config.MaxRequests
	if limit > 0 && c.used >= limit || c.r.Buffered() > 0 {
		c.Close()
		return
	}
	c.free = time.Now()
	h.mu.Lock()
	keep := !h.retired
	if keep {
		h.idle[c.sni] = append(h.idle[c.sni], c)
		h.wake()
	}
	h.mu.Unlock()
	if !keep {
		c.Close()
	}
}

// retire closes what is idle, and has the rest closed after use.
func (h *Host) retire() {
	h.mu.Lock()
	h.retired = true
	idle, h2 := h.idle, h.h2
	h.idle, h.h2 = map[string][]*conn{}, map[string]*shared{}
	h.mu.Unlock()
	for _, list := range idle {
		for _, c := range list {
			c.Close()
		}
	}
	for _, s := range h2 {
		for _, c := range s.conns {
			c.Leave()
		}
	}
}

// sweep closes connections that were idle too long or that the peer has closed.
func (h *Host) sweep(now time.Time, idle time.Duration) {
	var closing []*conn
	h.mu.Lock()
	for sni, list := range h.idle {
		kept := list[:0]
		for _, c := range list {
			if idle > 0 && now.Sub(c.free) > idle || !c.Conn.(*counted).alive() {
				closing = append(closing, c)
			} else {
				kept = append(kept, c)
			}
		}
		clear(list[len(kept):])
		h.idle[sni] = kept
	}
	h.sweep2()
	h.mu.Unlock()
	for _, c := range closing {
		c.Close()
	}
}

func (h *Host) unused() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open == 0 && h.active.Load() == 0
}

// Weight is the host's share of the requests.
func (h *Host) Weight() int64 { return h.weight.Load() }

// Connections is how many connections there are to the host.
func (h *Host) Connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

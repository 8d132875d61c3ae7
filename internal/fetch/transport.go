package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

var errDowngrade = errors.New("redirect from https to http refused")

// Hosts is a list of registries or servers: HOST for all its ports, HOST:PORT,
// or * for all. Istio's WASM_INSECURE_REGISTRIES is one.
type Hosts []string

// Has says whether the list covers the host, which may have a port.
func (h Hosts) Has(host string) bool {
	if slices.Contains(h, "*") || slices.Contains(h, host) {
		return true
	}
	name, _, err := net.SplitHostPort(host)
	return err == nil && (slices.Contains(h, name) || slices.Contains(h, "["+name+"]"))
}

// TransportConfig says what a Transport may reach.
type TransportConfig struct {
	// Blocked is what not to dial besides the addresses that are never dialled;
	// Istio's BLOCKED_CIDRS_IN_WASM_FETCH.
	Blocked []netip.Prefix
	// Insecure lists hosts whose certificates are not verified.
	Insecure Hosts
	// RootCAs verifies the others; nil is the system's.
	RootCAs *x509.CertPool
	// Proxy is that of http.Transport. Nil is none: proxy variables of the
	// environment are not honoured by themselves, because what a proxy dials is
	// out of our sight. With one, only the proxy's address and addresses written
	// out in URLs are checked, and the proxy has to block the rest.
	Proxy func(*http.Request) (*url.URL, error)
}

// A Transport is an http.RoundTripper that does not dial blocked addresses:
// link-local and multicast ones, the unspecified one, those where clouds serve
// credentials to machines, and the configured. It checks the address that is
// really dialled, for every connection, so neither names, redirects nor a
// registry's bearer realm lead around it. It refuses redirects from https to
// http, and those from elsewhere to this machine, where the proxy's own
// administration may listen; it does not decompress. http.Client adds the rest: at most ten
// redirects, no Authorization for another domain.
type Transport struct {
	blocked  []netip.Prefix
	here     []netip.Prefix // this machine
	insecure Hosts
	near     pair // may go anywhere
	far      pair // may not go here; connections are not shared with the other
}

// A pair carries requests with certificates verified or not.
type pair struct{ verified, unverified *http.Transport }

// NewTransport makes a Transport. It keeps idle connections for 90 seconds; see
// [Transport.CloseIdleConnections].
func NewTransport(cfg TransportConfig) *Transport {
	t := &Transport{blocked: cfg.Blocked, here: loopback[:], insecure: cfg.Insecure}
	t.near = t.pair(cfg, t.control)
	t.far = t.pair(cfg, t.controlFar)
	if cfg.Proxy != nil { // which may well be here
		t.far = t.near
	}
	return t
}

// control is called with every address before it is dialled.
type control func(ctx context.Context, network, address string, _ syscall.RawConn) error

func (t *Transport) pair(cfg TransportConfig, c control) pair {
	return pair{
		verified:   over(&tls.Config{RootCAs: cfg.RootCAs}, cfg, c),
		unverified: over(&tls.Config{InsecureSkipVerify: true}, cfg, c),
	}
}

func over(tls *tls.Config, cfg TransportConfig, c control) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, ControlContext: c}
	return &http.Transport{
		Proxy:                  cfg.Proxy,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        tls,
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // digests are of what is sent
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConns:           16,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// CloseIdleConnections closes connections that nobody uses.
func (t *Transport) CloseIdleConnections() {
	for _, p := range []pair{t.near, t.far} {
		p.verified.CloseIdleConnections()
		p.unverified.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.permit(r); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	p := t.near
	if r.Response != nil && !t.isHere(peerOf(r.Response)) {
		p = t.far
	}
	way := p.verified
	if t.insecure.Has(r.URL.Host) {
		way = p.unverified
	}
	var peer atomic.Value // of string
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) { peer.Store(c.Conn.RemoteAddr().String()) },
	})
	resp, err := way.RoundTrip(r.WithContext(ctx))
	if resp != nil {
		resp.Request = r.WithContext(context.WithValue(r.Context(), peerKey{}, peer.Load()))
	}
	return resp, err
}

// peerKey is the key of the address that a request was sent to, in its context.
type peerKey struct{}

// peerOf is whom a response is from, or the zero Addr if that is not known.
func peerOf(resp *http.Response) netip.Addr {
	address, _ := resp.Request.Context().Value(peerKey{}).(string)
	ap, _ := netip.ParseAddrPort(address)
	return ap.Addr()
}

func (t *Transport) permit(r *http.Request) error {
	from := r.Response // set if r follows a redirect
	if from != nil && from.Request != nil && from.Request.URL.Scheme == "https" && r.URL.Scheme != "https" {
		return errDowngrade
	}
	if addr, err := netip.ParseAddr(r.URL.Hostname()); err == nil && t.blocks(addr) {
		return &BlockedError{addr}
	}
	return nil
}

func (t *Transport) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %q: not an address", address)
	}
	if t.blocks(ap.Addr()) {
		return &BlockedError{ap.Addr()}
	}
	return nil
}

// controlFar is control for those who are not to go here, either.
func (t *Transport) controlFar(ctx context.Context, network, address string, c syscall.RawConn) error {
	if ap, err := netip.ParseAddrPort(address); err == nil && t.isHere(ap.Addr()) {
		return &BlockedError{ap.Addr()}
	}
	return t.control(ctx, network, address, c)
}

func (t *Transport) isHere(addr netip.Addr) bool {
	addr = plain(addr)
	return slices.ContainsFunc(t.here, func(p netip.Prefix) bool { return p.Contains(addr) })
}

var loopback = [...]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// always is never dialled, besides what netip.Addr has a name for: where
// clouds serve metadata and credentials.
var always = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),          // this host, by another name
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle
	netip.MustParsePrefix("255.255.255.255/32"), // broadcast
	netip.MustParsePrefix("fd00:ec2::/32"),      // AWS
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// plain is addr without a zone, and an IPv4 address as that in all its IPv6 forms.
func plain(addr netip.Addr) netip.Addr {
	addr = addr.WithZone("").Unmap()
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr
}

// blocks says whether addr must not be dialled.
func (t *Transport) blocks(addr netip.Addr) bool {
	addr = plain(addr)
	if addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
		return true
	}
	has := func(p netip.Prefix) bool { return p.Contains(addr) }
	return slices.ContainsFunc(always[:], has) || slices.ContainsFunc(t.blocked, has)
}

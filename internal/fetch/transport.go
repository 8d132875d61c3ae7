package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
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
// http, and does not decompress. http.Client adds the rest: at most ten
// redirects, no Authorization for another domain.
type Transport struct {
	blocked    []netip.Prefix
	insecure   Hosts
	verified   *http.Transport
	unverified *http.Transport
}

// NewTransport makes a Transport. It keeps idle connections for 90 seconds; see
// [Transport.CloseIdleConnections].
func NewTransport(cfg TransportConfig) *Transport {
	t := &Transport{blocked: cfg.Blocked, insecure: cfg.Insecure}
	t.verified = t.over(&tls.Config{RootCAs: cfg.RootCAs}, cfg)
	t.unverified = t.over(&tls.Config{InsecureSkipVerify: true}, cfg)
	return t
}

func (t *Transport) over(tls *tls.Config, cfg TransportConfig) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, ControlContext: t.control}
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
	t.verified.CloseIdleConnections()
	t.unverified.CloseIdleConnections()
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.permit(r); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	if t.insecure.Has(r.URL.Host) {
		return t.unverified.RoundTrip(r)
	}
	return t.verified.RoundTrip(r)
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

// control is called with every address before it is dialled.
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

// blocks says whether addr must not be dialled. An IPv4 address counts in its
// IPv6 forms too, and a zone does not.
func (t *Transport) blocks(addr netip.Addr) bool {
	addr = addr.WithZone("").Unmap()
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	if addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
		return true
	}
	has := func(p netip.Prefix) bool { return p.Contains(addr) }
	return slices.ContainsFunc(always[:], has) || slices.ContainsFunc(t.blocked, has)
}

package hcm

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

type connectionKey struct{}

// WithConnection returns ctx for a connection: its streams share what plugins set for
// as long as it lives.
func WithConnection(ctx context.Context) context.Context {
	if ConnectionState(ctx) != nil {
		return ctx
	}
	return context.WithValue(ctx, connectionKey{}, new(proxywasm.FilterState))
}

// ConnectionState is what plugins have set for that long; nil in a context of no connection.
func ConnectionState(ctx context.Context) *proxywasm.FilterState {
	f, _ := ctx.Value(connectionKey{}).(*proxywasm.FilterState)
	return f
}

// FilterState is what plugins have set on the stream: [proxywasm.Stateful].
func (f *filter) FilterState() *proxywasm.FilterState { return f.s.set }

// SetProperty is not called: see [filter.FilterState].
func (f *filter) SetProperty(string, string) abi.Status { return abi.Unimplemented }

// AppendProperty answers with Envoy's attributes.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/advanced/attributes
func (f *filter) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	if out, ok := f.attribute(dst, path); ok {
		return out, abi.OK
	}
	if f.s.opaque(path) {
		return dst, abi.SerializationFailure
	}
	return dst, abi.NotFound
}

func (f *filter) attribute(dst []byte, path string) ([]byte, bool) {
	s := f.s
	root, rest := abi.CutPath(path)
	name, key := abi.CutPath(rest)
	switch root {
	case "request":
		return s.requestAttribute(dst, name, key, f.request.Load())
	case "connection_id":
		return abi.AppendUint(dst, s.conn.ID), true
	case "metadata": // which filters set on a stream: there is none that does
		return dst, true
	case "response":
		return s.responseAttribute(dst, name, key, f.response.Load())
	case "source", "destination":
		addr := s.conn.Remote
		if root == "destination" {
			addr = s.conn.Local
		}
		return address(dst, name, addr.String(), int64(addr.Port()))
	case "connection":
		return s.conn.attribute(dst, name)
	case "upstream":
		return s.upstreamAttribute(dst, name)
	case "xds":
		return s.xdsAttribute(dst, name, path)
	}
	return dst, false
}

// opaque reports whether there is something at the path that Envoy does not show.
func (s *stream) opaque(path string) bool {
	switch path {
	case "upstream_filter_state":
		a := s.router.try.Load()
		return a != nil && a.exchange != nil
	case "xds\x00upstream_host_metadata", "xds\x00upstream_host_locality_metadata":
		a := s.router.try.Load()
		return a != nil && a.host != nil
	}
	return OpaqueRoot(path)
}

func address(dst []byte, name, addr string, port int64) ([]byte, bool) {
	switch name {
	case "address":
		return append(dst, addr...), true
	case "port":
		return abi.AppendInt(dst, port), true
	}
	return dst, false
}

// requestAttribute is one of the request's. As in Envoy those that its headers
// tell are there only as long as the plugin has the headers, and at the end.
func (s *stream) requestAttribute(dst []byte, name, key string, seen bool) ([]byte, bool) {
	switch name {
	case "protocol":
		return append(dst, s.protocol...), true
	case "time":
		return abi.AppendTime(dst, s.start), true
	case "duration":
		return s.duration(dst)
	case "size":
		if n, err := strconv.ParseInt(fieldOf(s.fields, "content-length"), 10, 64); err == nil && seen {
			return abi.AppendInt(dst, n), true
		}
		return abi.AppendInt(dst, s.received.Load()), true
	case "total_size":
		return abi.AppendInt(dst, s.received.Load()+int64(byteSize(s.fields))), true
	case "headers":
		if !seen && key == "" {
			return abi.AppendMap(dst, nil), true
		}
	}
	if !seen {
		return dst, false
	}
	text := func(header string) ([]byte, bool) {
		v, ok := s.fields.Get(header)
		return append(dst, v...), ok
	}
	path, query := cutQuery(fieldOf(s.fields, ":path"))
	switch name {
	case "path":
		return text(":path")
	case "url_path":
		return append(dst, path...), true
	case "query":
		return append(dst, query...), true
	case "host":
		return text(":authority")
	case "scheme":
		return text(":scheme")
	case "method":
		return text(":method")
	case "referer":
		return text("referer")
	case "useragent":
		return text("user-agent")
	case "id":
		return text("x-request-id")
	case "headers":
		return headerAttribute(dst, s.fields, key)
	}
	return dst, false
}

// duration is known when the request is over.
func (s *stream) duration(dst []byte) ([]byte, bool) {
	s.signal.Lock()
	over := s.signal.finished
	s.signal.Unlock()
	if !over {
		return dst, false
	}
	return abi.AppendDuration(dst, time.Duration(s.m.env.Now().Sub(s.start))), true
}

func byteSize(f *http1.Fields) int {
	n := 0
	for _, p := range f.Pairs() {
		n += len(p.Key) + len(p.Value)
	}
	return n
}

// headerAttribute is one header, or all of them. Those of the same name are one, as in
// Envoy, which in a map of all has them in no order; and host is another name of the authority.
func headerAttribute(dst []byte, f *http1.Fields, key string) ([]byte, bool) {
	switch {
	case f == nil && key == "":
		return abi.AppendMap(dst, nil), true
	case f == nil:
		return dst, false
	case key == "":
		return abi.AppendMap(dst, joined(f)), true
	}
	key = strings.ToLower(key)
	if key == "host" {
		key = ":authority"
	}
	value, found := "", false
	for _, p := range f.Pairs() {
		switch {
		case p.Key != key:
		case found:
			value += "," + p.Value
		default:
			value, found = p.Value, true
		}
	}
	return append(dst, value...), found
}

// joined are the fields, each name once.
func joined(f *http1.Fields) []abi.Pair {
	var all []abi.Pair
	at := map[string]int{}
	for _, p := range f.Pairs() {
		if i, ok := at[p.Key]; ok {
			all[i].Value += "," + p.Value
			continue
		}
		at[p.Key] = len(all)
		all = append(all, p)
	}
	return all
}

func (s *stream) responseAttribute(dst []byte, name, key string, seen bool) ([]byte, bool) {
	head := s.head.Load()
	switch name {
	case "headers":
		if !seen {
			head = nil
		}
		return headerAttribute(dst, head, key)
	case "trailers":
		return headerAttribute(dst, s.trailers.Load(), key)
	case "size":
		return abi.AppendInt(dst, s.sent.Load()), true
	case "flags":
		return abi.AppendUint(dst, s.flags.number()), true
	case "total_size":
		n := s.sent.Load()
		if head != nil {
			n += int64(byteSize(head))
		}
		return abi.AppendInt(dst, n), true
	case "backend_latency":
		n := s.backend.Load()
		return abi.AppendInt(dst, n), n > 0
	}
	if head == nil {
		return dst, false
	}
	switch name {
	case "code":
		return abi.AppendInt(dst, int64(statusOf(head))), true
	case "code_details":
		if d := s.details.Load(); d != nil {
			return append(dst, *d...), true
		}
		return append(dst, "via_upstream"...), true
	case "grpc_status":
		f := head
		if t := s.trailers.Load(); t != nil {
			f = t
		}
		n, err := strconv.ParseInt(fieldOf(f, "grpc-status"), 10, 64)
		if err != nil {
			n = int64(grpcStatus(statusOf(head)))
		}
		return abi.AppendInt(dst, n), true
	}
	return dst, false
}

func (s *stream) upstreamAttribute(dst []byte, name string) ([]byte, bool) {
	a := s.router.try.Load()
	switch {
	case name == "request_attempt_count":
		return abi.AppendInt(dst, int64(s.attempts())), true
	case a == nil || a.host == nil:
		return dst, false
	}
	switch name {
	case "local_address":
		if a.exchange == nil || !a.exchange.Local().IsValid() {
			return dst, false
		}
		return append(dst, a.exchange.Local().String()...), true
	case "transport_failure_reason":
		return append(dst, upstream.TransportFailure(a.err)...), true
	case "cx_pool_ready_duration":
		return abi.AppendDuration(dst, a.ready), true
	case "locality":
		return dst, true
	}
	addr := a.host.Address
	_, port, err := net.SplitHostPort(addr)
	if err != nil && name == "port" {
		return dst, false
	}
	return address(dst, name, addr, int64(atoi(port)))
}

// attempts is how often an endpoint was looked for.
func (s *stream) attempts() int {
	if a := s.router.try.Load(); a != nil {
		return a.number
	}
	return 0
}

// cluster is the one that the request goes to, as far as it is known; nil if there is none.
func (s *stream) cluster() *upstream.Cluster {
	if s.router.try.Load() != nil {
		return s.router.cluster
	}
	w := s.router.choose().weighted
	if w == nil {
		return nil
	}
	return s.m.env.Cluster(w.Cluster)
}

func (s *stream) xdsAttribute(dst []byte, name, path string) ([]byte, bool) {
	at := s.router.choose()
	switch name {
	case "cluster_name":
		if c := s.cluster(); c != nil {
			return append(dst, c.Config.Name...), true
		}
		return dst, false
	case "route_name":
		if at.route == nil {
			return dst, false
		}
		return append(dst, at.route.Name...), true
	case "virtual_host_name":
		if at.host == nil {
			return dst, false
		}
		return append(dst, at.host.Name...), true
	case "filter_chain_name":
		return append(dst, s.m.chain...), true
	case "listener_direction":
		return abi.AppendInt(dst, s.m.direction), true
	case "listener_metadata", "virtual_host_metadata", "route_metadata", "cluster_metadata":
		_, key := abi.CutPath(strings.TrimPrefix(path, "xds\x00"))
		return s.metadata(dst, name, key)
	}
	return s.m.env.Facts(dst, path)
}

// attribute is one of the connection's.
func (c *Conn) attribute(dst []byte, name string) ([]byte, bool) {
	if name == "id" {
		return abi.AppendUint(dst, c.ID), true
	}
	if name == "mtls" {
		return abi.AppendBool(dst, c.TLS != nil && len(c.TLS.PeerCertificates) > 0), true
	}
	if name == "requested_server_name" {
		if c.TLS != nil {
			dst = append(dst, c.TLS.ServerName...)
		}
		return dst, true
	}
	if c.TLS == nil {
		return dst, false
	}
	switch name {
	case "tls_version":
		if c.TLS.Version == tls.VersionTLS13 {
			return append(dst, "TLSv1.3"...), true
		}
		return append(dst, "TLSv1.2"...), true
	}
	if len(c.TLS.PeerCertificates) == 0 {
		return dst, false
	}
	leaf := c.TLS.PeerCertificates[0]
	switch name {
	case "subject_peer_certificate":
		return append(dst, leaf.Subject.String()...), true
	case "dns_san_peer_certificate":
		if len(leaf.DNSNames) > 0 {
			return append(dst, leaf.DNSNames[0]...), true
		}
	case "uri_san_peer_certificate":
		if len(leaf.URIs) > 0 {
			return append(dst, leaf.URIs[0].String()...), true
		}
	case "sha256_peer_certificate_digest":
		sum := sha256.Sum256(leaf.Raw)
		return hex.AppendEncode(dst, sum[:]), true
	}
	return dst, false
}

// OpaqueRoot reports whether there is something at the path that Envoy does not show.
func OpaqueRoot(path string) bool {
	switch path {
	case "request", "response", "source", "destination", "connection", "upstream", "xds", "filter_state":
		return true
	}
	return false
}

// Attribute is [Conn]'s for streams of bytes: what is known without a request.
func (c *Conn) Attribute(dst []byte, path string) ([]byte, bool) {
	root, rest := abi.CutPath(path)
	name, _ := abi.CutPath(rest)
	switch root {
	case "source":
		return address(dst, name, c.Remote.String(), int64(c.Remote.Port()))
	case "destination":
		return address(dst, name, c.Local.String(), int64(c.Local.Port()))
	case "connection":
		return c.attribute(dst, name)
	case "connection_id":
		return abi.AppendUint(dst, c.ID), true
	case "metadata":
		return dst, true
	case "upstream":
		switch name { // as it is before there is one
		case "transport_failure_reason":
			return dst, true
		case "request_attempt_count":
			return abi.AppendInt(dst, 0), true
		}
	}
	return dst, false
}

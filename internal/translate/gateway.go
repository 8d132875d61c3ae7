package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// A server is one thing that a gateway listens for: a server of an Istio
// Gateway, or a listener of a Gateway API Gateway.
type server struct {
	owner    resource.Object
	field    string              // of owner, where the server is
	gateway  string              // NAMESPACE/NAME that VirtualServices bind to
	api      *gatewayv1.Gateway  // owner, if it is one
	listener *gatewayv1.Listener // of api
	name     string              // of its port
	called   string              // as the server itself is, in statistics
	bind     string
	port     uint32 // as its owner wrote it
	listen   uint32 // as the proxy listens at
	protocol mesh.Protocol
	hosts    []serverHost
	redirect bool // to HTTPS

	passthrough bool
	tls         *tlsv3.DownstreamTlsContext // terminates with it; nil for plain text and passthrough
	secrets     []*tlsv3.Secret             // that tls refers to
}

// A serverHost is a host pattern, for routes of one namespace, or of all ("*").
type serverHost struct{ namespace, host string }

// routeName is the name of the server's route configuration, as Istio's: plain
// text servers of a port share one. It is empty if the server has no requests.
func (s *server) routeName() string {
	bind := ""
	if s.bind != "" {
		bind = "." + s.bind
	}
	switch {
	case s.protocol.IsHTTP():
		return "http." + number(s.listen) + bind
	case s.protocol == mesh.HTTPS && !s.passthrough:
		return "https." + number(s.port) + "." + s.name + "." + s.owner.GetName() + "." + s.owner.GetNamespace() + bind
	}
	return ""
}

// sni are the server names by which a TLS server is chosen; none means all.
func (s *server) sni() []string {
	var out []string
	for _, h := range s.hosts {
		if h.host == "*" {
			return nil
		}
		if !slices.Contains(out, h.host) {
			out = append(out, h.host)
		}
	}
	slices.Sort(out)
	return out
}

// covers is the hosts that the server has in common with host of a route in
// namespace.
func (s *server) covers(host, namespace string) []string {
	var out []string
	for _, h := range s.hosts {
		if h.namespace != "*" && h.namespace != namespace {
			continue
		}
		if both, ok := mesh.HostIntersection(h.host, host); ok && !slices.Contains(out, both) {
			out = append(out, both)
		}
	}
	return out
}

// buildGateways makes one listener for each address and port at which a Gateway
// that chose the proxy has a server, and one route configuration for each that
// the listeners name.
func (b *builder) buildGateways() {
	type socket struct {
		bind string
		port uint32
	}
	bySocket := map[socket][]*server{}
	var sockets []socket
	servers := b.servers()
	b.tellUnserved(servers)
	for _, s := range servers {
		at := socket{cmp.Or(s.bind, b.wildcard()), s.listen}
		if b.joins(bySocket[at], s) {
			if bySocket[at] == nil {
				sockets = append(sockets, at)
			}
			bySocket[at] = append(bySocket[at], s)
		}
	}
	slices.SortFunc(sockets, func(a, b socket) int {
		return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.bind, b.bind))
	})
	for _, at := range sockets {
		b.addGatewayListener(at.bind, at.port, bySocket[at])
	}
}

func (b *builder) servers() []*server {
	var out []*server
	for _, g := range b.world.Gateways(b.proxy) {
		out = append(out, b.istioServers(g)...)
	}
	if g := b.world.KubernetesGateway(b.proxy); g != nil {
		out = append(out, b.kubernetesServers(g)...)
	}
	return slices.DeleteFunc(out, b.occupied)
}

// occupied refuses a server at a port that the proxy, or its agent, has: Envoy could
// not bind it, and would refuse whatever else comes with it.
func (b *builder) occupied(s *server) bool {
	bind, _ := netip.ParseAddr(s.bind)
	elsewhere := s.bind != "" && !bind.IsUnspecified() && !bind.IsLoopback()
	if s.listen != statusPort && s.listen != healthPort && (s.listen != adminPort || elsewhere) {
		return false
	}
	field := s.field + ".port"
	if s.api == nil {
		field += ".number"
	}
	b.refuse(s.owner, field, "the proxy itself has port "+number(s.listen)+"; the server is left out",
		"choose another port, or have the Service that leads to the proxy lead to another targetPort")
	return true
}

// tellUnserved tells of the routes that are bound to a Gateway of the proxy of
// which no server will have them.
func (b *builder) tellUnserved(servers []*server) {
	for _, g := range b.world.Gateways(b.proxy) {
		name := g.Namespace + "/" + g.Name
		for _, vs := range b.world.VirtualServices(name, b.proxy.Namespace) {
			served := func(s *server) bool {
				return s.gateway == name && slices.ContainsFunc(vs.Spec.Hosts, func(h string) bool {
					return len(s.covers(b.world.FQDN(h, vs.Namespace), vs.Namespace)) > 0
				})
			}
			if !slices.ContainsFunc(servers, served) {
				b.refuse(vs, "spec.hosts", "no server of Gateway "+name+" has any of them", "add a host to the Gateway, or correct the hosts")
			}
		}
	}
	g := b.world.KubernetesGateway(b.proxy)
	if g == nil {
		return
	}
	for _, route := range b.world.HTTPRoutes(g) {
		served := func(s *server) bool { return b.attaches(route, s) && len(s.hostsOf(route)) > 0 }
		if !slices.ContainsFunc(servers, served) {
			b.refuse(route, "spec.parentRefs", "no listener of Gateway "+g.Namespace+"/"+g.Name+" takes it",
				"compare sectionName, port and hostnames with the listeners, and its namespace with their allowedRoutes")
		}
	}
}

// joins says whether s can share a socket with others: plain HTTP with plain
// HTTP, TLS with TLS of other server names, anything else with nothing.
func (b *builder) joins(others []*server, s *server) bool {
	if len(others) == 0 {
		return true
	}
	if s.protocol.IsHTTP() && others[0].protocol.IsHTTP() {
		return b.newListenerHost(others, s)
	}
	if !s.protocol.IsTLS() || !others[0].protocol.IsTLS() {
		b.refuse(s.owner, s.field+".port", "port "+number(s.listen)+" is taken by an older server that speaks "+string(others[0].protocol),
			"choose another port, or one protocol")
		return false
	}
	for _, o := range others {
		if o.routeName() != "" && o.routeName() == s.routeName() {
			b.refuse(s.owner, s.field+".port.name", s.name+" is there twice", "give each server's port a name of its own")
			return false
		}
	}
	return true
}

// newListenerHost keeps two listeners of the Gateway API from claiming the same
// port and host name.
func (b *builder) newListenerHost(others []*server, s *server) bool {
	for _, o := range others {
		if s.api != nil && o.api == s.api && o.hosts[0] == s.hosts[0] {
			b.refuse(s.owner, s.field+".hostname", "listener "+o.name+" has the same port and host name", "remove one")
			return false
		}
	}
	return true
}

// istioServers reads the servers of an Istio Gateway. One that cannot be
// honoured is left out.
func (b *builder) istioServers(g *networkingv1.Gateway) []*server {
	var out []*server
	for i, in := range g.Spec.Servers {
		field := fmt.Sprintf("spec.servers[%d]", i)
		protocol := mesh.ParseProtocol(in.Port.GetProtocol())
		if !b.canServe(g, field, in, protocol) {
			continue
		}
		s := &server{
			owner: g, field: field, gateway: g.Namespace + "/" + g.Name,
			name: in.Port.GetName(), called: in.Name, bind: in.Bind, port: in.Port.GetNumber(), listen: b.listenAt(in.Port.GetNumber()),
			protocol: protocol, redirect: in.Tls.GetHttpsRedirect(),
			passthrough: protocol.IsTLS() && in.Tls.GetMode() == apinetworking.ServerTLSSettings_PASSTHROUGH,
		}
		for j, h := range in.Hosts {
			host := serverHostOf(h, g.Namespace)
			if !mesh.ValidHost(host.host) {
				b.refuse(g, fmt.Sprintf("%s.hosts[%d]", field, j), h+" is not a host name", "write [NAMESPACE/]HOST")
				continue
			}
			s.hosts = append(s.hosts, host)
		}
		if len(s.hosts) == 0 {
			continue // told above
		}
		b.tellUnheard(s, in)
		if protocol.IsHTTP() || protocol == mesh.TCP && in.Tls == nil || s.passthrough || b.terminate(s, in.Tls) {
			out = append(out, s)
		}
	}
	return out
}

// canServe refuses what no server of ours can be.
func (b *builder) canServe(g *networkingv1.Gateway, field string, in *apinetworking.Server, protocol mesh.Protocol) bool {
	switch {
	case protocol == mesh.Undeclared || protocol == mesh.UDP:
		b.refuse(g, field+".port.protocol", in.Port.GetProtocol()+" is not supported", "use HTTP, HTTPS, HTTP2, GRPC, TLS or TCP")
		return false
	case protocol.IsHTTP() && in.Tls != nil && !proto.Equal(in.Tls, &apinetworking.ServerTLSSettings{HttpsRedirect: in.Tls.HttpsRedirect}):
		b.refuse(g, field+".tls", "is set, but "+string(protocol)+" is plain text; the server is left out", "use protocol HTTPS; of tls only httpsRedirect goes with plain text")
		return false
	case in.DefaultEndpoint != "":
		b.refuse(g, field+".defaultEndpoint", "is not supported; the server is left out", "write a VirtualService")
		return false
	}
	if _, err := netip.ParseAddr(in.Bind); in.Bind != "" && err != nil {
		b.refuse(g, field+".bind", in.Bind+" is not an IP address; the server is left out", "give an IP address, or leave it out")
		return false
	}
	return true
}

// serverHostOf reads [NAMESPACE/]HOST, where NAMESPACE may be "." or "*".
func serverHostOf(s, namespace string) serverHost {
	ns, host, ok := strings.Cut(strings.ToLower(s), "/")
	switch {
	case !ok:
		return serverHost{"*", ns}
	case ns == ".":
		return serverHost{namespace, host}
	}
	return serverHost{ns, host}
}

// listenAt is the port that the proxy listens at for a Gateway's port: if a
// Service that leads to the proxy has that port, the one it leads to.
func (b *builder) listenAt(port uint32) uint32 {
	for _, s := range b.world.ServicesOf(b.proxy) {
		if p, ok := s.Port(port); ok {
			if target, ok := b.world.TargetPort(b.proxy, p); ok {
				return target
			}
		}
	}
	return port
}

// addGatewayListener makes the listener of one socket, with the routes its
// chains name. A listener of which no chain can be honoured is not made.
func (b *builder) addGatewayListener(bind string, port uint32, servers []*server) {
	l := &listenerv3.Listener{
		Name:             listenerName(bind, port),
		Address:          address(bind, port),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
	}
	c := chain{mode: mesh.Client, port: port, gateway: true, statPrefix: "outbound_" + l.Name}
	if servers[0].protocol.IsHTTP() {
		c.routes = servers[0].routeName()
		l.FilterChains = []*listenerv3.FilterChain{{Filters: b.httpFilters(c)}}
		b.addGatewayRoutes(c.routes, servers)
	} else {
		taken := map[string]bool{}
		for _, s := range servers {
			l.FilterChains = append(l.FilterChains, b.serverChains(c, s, taken)...)
		}
	}
	if len(l.FilterChains) == 0 {
		return
	}
	if servers[0].protocol.IsTLS() || servers[0].tls != nil {
		l.ListenerFilters = []*listenerv3.ListenerFilter{listenerFilter(tlsInspector, &tlsinspectorv3.TlsInspector{})}
	}
	b.addListener(l)
}

// serverChains are the filter chains of a server that is not plain HTTP. taken
// holds the server names that other chains of the listener have.
func (b *builder) serverChains(c chain, s *server, taken map[string]bool) []*listenerv3.FilterChain {
	if s.passthrough {
		return b.passthroughChains(c, s, taken)
	}
	match, ok := b.sniMatch(s.owner, s.field+".hosts", s.sni(), taken)
	if !ok {
		return nil
	}
	out := &listenerv3.FilterChain{FilterChainMatch: match}
	if s.protocol == mesh.HTTPS {
		c.routes = s.routeName()
		c.statPrefix = cmp.Or(s.called, c.statPrefix)
		out.Filters = b.httpFilters(c)
		b.addGatewayRoutes(c.routes, []*server{s})
	} else if out.Filters = b.tcpServerFilters(c, s); out.Filters == nil {
		return nil
	}
	if s.tls != nil {
		out.TransportSocket = tlsTransport(s.tls)
		for _, secret := range s.secrets {
			b.secrets[secret.Name] = secret
		}
	}
	return []*listenerv3.FilterChain{out}
}

// sniMatch matches connections to any of names, or to any at all. Envoy refuses
// a listener in which two chains match the same, so that is told here.
func (b *builder) sniMatch(o resource.Object, field string, names []string, taken map[string]bool) (*listenerv3.FilterChainMatch, bool) {
	keys := names
	if len(names) == 0 {
		keys = []string{"*"}
	}
	for _, k := range keys {
		if taken[k] {
			b.refuse(o, field, "host "+k+" belongs to an older server of this port", "remove it from one of them")
			return nil, false
		}
	}
	for _, k := range keys {
		taken[k] = true
	}
	if len(names) == 0 {
		return nil, true
	}
	return &listenerv3.FilterChainMatch{ServerNames: names}, true
}

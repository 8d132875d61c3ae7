package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// buildOutbound makes the listeners for requests of the workload. HTTP services
// of a port share a listener and tell requests apart by host, as do TLS services
// without an address, by server name; another service has a listener at its own
// address, or, without one, at the port of all. A port of no declared
// protocol is taken for TCP. Traffic to what is not known passes if it is
// redirected: the proxy then knows where it was going.
func (b *builder) buildOutbound() {
	b.forMesh = b.meshRoutes()
	requests, byName, connections := map[uint32][]*mesh.Service{}, map[uint32][]*mesh.Service{}, map[uint32][]*mesh.Service{}
	for _, s := range b.view.Services() {
		for _, p := range s.Ports {
			switch {
			case p.Protocol == mesh.UDP:
			case p.Protocol.IsHTTP():
				requests[p.Number] = append(requests[p.Number], s)
			case p.Protocol.IsTLS() && (!b.proxy.Redirected || !s.Headless && len(plainAddresses(s.Addresses)) == 0):
				byName[p.Number] = append(byName[p.Number], s)
			default:
				connections[p.Number] = append(connections[p.Number], s)
			}
		}
	}
	for _, port := range slices.Sorted(maps.Keys(requests)) {
		b.addRequestListener(port, requests[port])
	}
	for _, port := range slices.Sorted(maps.Keys(byName)) {
		b.addServerNameListener(port, byName[port])
	}
	for _, port := range slices.Sorted(maps.Keys(connections)) {
		for _, s := range connections[port] {
			b.addConnectionListeners(s, port)
		}
	}
	if b.proxy.Redirected {
		b.addVirtualOutbound()
	}
	slices.SortStableFunc(b.out.Listeners, func(x, y *listenerv3.Listener) int { return cmp.Compare(x.Name, y.Name) })
}

// addVirtualOutbound makes the listener that redirection leads to. It hands
// connections to the listener of the address they were going to, or lets them pass.
func (b *builder) addVirtualOutbound() {
	b.addListener(&listenerv3.Listener{
		Name:             "virtualOutbound",
		Address:          address(b.wildcard(), outboundListener),
		UseOriginalDst:   yes(),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		FilterChains: []*listenerv3.FilterChain{{
			Name:             "virtualOutbound-blackhole", // to the proxy's own port: it would send to itself for ever
			FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(outboundListener)},
			Filters:          []*listenerv3.Filter{networkFilter(tcpProxyFilter, tcpProxy(blackHole, blackHole))},
		}, {
			Name:    "virtualOutbound-catchall-tcp",
			Filters: []*listenerv3.Filter{networkFilter(tcpProxyFilter, tcpProxy(passthrough, passthrough))},
		}},
	})
}

// outboundListenerAt is a listener for what goes to ip, or to any address, at
// port. Without redirection it is at the loopback address, whatever ip. It is nil
// if something is there already.
func (b *builder) outboundListenerAt(s *mesh.Service, ip string, port uint32) *listenerv3.Listener {
	if !b.proxy.Redirected {
		ip = "127.0.0.1"
		if b.proxy.IPv6Only() {
			ip = "::1"
		}
		if b.isOwn(port) && slices.Contains(b.world.ServicesOf(b.proxy), s) {
			return nil // its own service: it is there
		}
		if b.isOwn(port) {
			b.refuse(s.Object, "", "a sidecar cannot listen at "+hostPort(ip, port)+" for service "+s.Host+": it, or its workload, has that port already",
				"redirect traffic to the sidecar, or have one of them use another port")
			return nil
		}
	}
	name := listenerName(ip, port)
	if b.listeners[name] {
		b.refuse(s.Object, "", "another service has "+hostPort(ip, port)+" for itself; service "+s.Host+" is not reachable there",
			"give it an address of its own, or another port")
		return nil
	}
	l := &listenerv3.Listener{Name: name, Address: address(ip, port), TrafficDirection: corev3.TrafficDirection_OUTBOUND}
	if b.proxy.Redirected {
		l.BindToPort = no()
	}
	return l
}

// isOwn says whether a port of the loopback address is the sidecar's or its
// workload's.
func (b *builder) isOwn(port uint32) bool {
	return slices.Contains([]uint32{adminPort, outboundListener, inboundListener, statusPort}, port) ||
		slices.ContainsFunc(b.ports, func(p inboundPort) bool { return p.number == port })
}

// addRequestListener makes the listener of the HTTP services of a port.
func (b *builder) addRequestListener(port uint32, services []*mesh.Service) {
	l := b.outboundListenerAt(services[0], b.wildcard(), port)
	if l == nil {
		return
	}
	c := chain{mode: mesh.Client, port: port, statPrefix: "outbound_" + l.Name, routes: number(port)}
	l.FilterChains = []*listenerv3.FilterChain{{Filters: b.httpFilters(c)}}
	b.addListener(l)
	b.addSidecarRoutes(port, services)
}

// addServerNameListener makes the listener of the TLS services of a port that
// have no address. Connections to other server names pass.
func (b *builder) addServerNameListener(port uint32, services []*mesh.Service) {
	l := b.outboundListenerAt(services[0], b.wildcard(), port)
	if l == nil {
		return
	}
	c := chain{mode: mesh.Client, port: port, statPrefix: "outbound_" + l.Name}
	for _, s := range services {
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{
			FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: []string{s.Host}},
			Filters:          b.tcpFilters(c, b.connectionTo(s, port)),
		})
	}
	if b.proxy.Redirected {
		l.DefaultFilterChain = &listenerv3.FilterChain{
			Name:    "PassthroughFilterChain",
			Filters: []*listenerv3.Filter{networkFilter(tcpProxyFilter, tcpProxy(passthrough, passthrough))},
		}
	}
	l.ListenerFilters = []*listenerv3.ListenerFilter{listenerFilter(tlsInspector, &tlsinspectorv3.TlsInspector{})}
	l.ContinueOnListenerFiltersTimeout = true
	b.addListener(l)
}

// addConnectionListeners makes the listeners of a port of s that is not HTTP: at
// each of its addresses, those of its endpoints if it is headless, or at all
// addresses if it has none.
func (b *builder) addConnectionListeners(s *mesh.Service, port uint32) {
	ips := plainAddresses(s.Addresses)
	if s.Headless {
		for _, e := range s.Endpoints(port) {
			ips = append(ips, e.Address)
		}
		slices.Sort(ips)
		if ips = slices.Compact(ips); len(ips) == 0 {
			return
		}
	}
	if len(ips) == 0 || !b.proxy.Redirected {
		ips = []string{b.wildcard()}
	}
	for _, ip := range ips {
		l := b.outboundListenerAt(s, ip, port)
		if l == nil {
			continue
		}
		c := chain{mode: mesh.Client, port: port, statPrefix: "outbound_" + l.Name}
		l.FilterChains = []*listenerv3.FilterChain{{Filters: b.tcpFilters(c, b.connectionTo(s, port))}}
		b.addListener(l)
	}
}

// plainAddresses drops ranges: no listener is at a range.
func plainAddresses(addresses []string) []string {
	var out []string
	for _, a := range addresses {
		if ip, err := netip.ParseAddr(a); err == nil && !ip.IsUnspecified() {
			out = append(out, a)
		}
	}
	return out
}

// connectionTo is where connections to a port of s go: as the VirtualService
// for the host says, else to the service.
func (b *builder) connectionTo(s *mesh.Service, port uint32) *tcpproxyv3.TcpProxy {
	if vs := b.forMesh.find(s.Host, func(vs *apinetworking.VirtualService) bool { return len(vs.Tcp)+len(vs.Tls) > 0 }); vs != nil {
		if len(vs.Spec.Tls) > 0 {
			b.refuse(vs, "spec.tls", "is not supported for sidecars; connections go where they were going", "use it at a gateway")
		}
		if proxy := b.tcpRoute(vs, "mesh", port); proxy != nil {
			return proxy
		}
	}
	cluster := clusterName("outbound", port, "", s.Host)
	return b.lead(tcpProxy(cluster, cluster), cluster)
}

// meshRoutes is the VirtualServices for sidecars, by host.
type meshRoutes struct {
	all   []*networkingv1.VirtualService
	exact map[string][]*networkingv1.VirtualService
	wild  []wildRoute // most specific first
}

type wildRoute struct {
	host string
	vs   *networkingv1.VirtualService
}

func (b *builder) meshRoutes() meshRoutes {
	m := meshRoutes{
		all:   b.world.VirtualServices("mesh", b.proxy.Namespace),
		exact: map[string][]*networkingv1.VirtualService{},
	}
	for _, vs := range m.all {
		for _, h := range vs.Spec.Hosts {
			if h = b.world.FQDN(h, vs.Namespace); strings.HasPrefix(h, "*") {
				m.wild = append(m.wild, wildRoute{h, vs})
			} else {
				m.exact[h] = append(m.exact[h], vs)
			}
		}
	}
	slices.SortStableFunc(m.wild, func(x, y wildRoute) int { return mesh.CompareHosts(x.host, y.host) })
	return m
}

// find is the VirtualService that has routes of a kind and whose hosts cover
// host most specifically; the oldest, if there are several.
func (m *meshRoutes) find(host string, has func(*apinetworking.VirtualService) bool) *networkingv1.VirtualService {
	for _, vs := range m.exact[host] {
		if has(&vs.Spec) {
			return vs
		}
	}
	for _, w := range m.wild {
		if mesh.HostMatches(w.host, host) && has(&w.vs.Spec) {
			return w.vs
		}
	}
	return nil
}

// addSidecarRoutes makes the route configuration of a port, named by its
// number: a virtual host for each service, and for hosts that VirtualServices
// alone know, which Istio serves at port 80 only.
func (b *builder) addSidecarRoutes(port uint32, services []*mesh.Service) {
	hosts := newVirtualHosts()
	for _, s := range services {
		vh := hosts.at(s.Host, port)
		if vh.Routes = b.virtualServiceRoutes(s.Host, port); len(vh.Routes) == 0 {
			cluster := clusterName("outbound", port, "", s.Host)
			route := toCluster("default", cluster, retries(nil, false))
			b.hash(route.GetRoute(), cluster)
			vh.Routes = []*routev3.Route{route}
		}
	}
	if port == 80 {
		b.addVirtualHosts(hosts, port)
	}
	for _, s := range services {
		vh := hosts.byHost[s.Host]
		hosts.alias(vh, b.world.ShortForms(s.Host, b.proxy.Namespace)...)
		for _, ip := range plainAddresses(s.Addresses) {
			hosts.alias(vh, authority(ip))
		}
		if s.Headless { // its Pods have names below its own
			hosts.alias(vh, "*."+s.Host)
		}
	}
	b.out.Routes = append(b.out.Routes, hosts.configuration(number(port), b.unknownHost()))
}

// virtualServiceRoutes are the routes that the VirtualService for host gives it.
func (b *builder) virtualServiceRoutes(host string, port uint32) []*routev3.Route {
	vs := b.forMesh.find(host, func(vs *apinetworking.VirtualService) bool { return len(vs.Http) > 0 })
	if vs == nil {
		return nil
	}
	r := virtualRoutes{builder: b, vs: vs, gateway: "mesh", port: port}
	return r.routes()
}

// addVirtualHosts adds the hosts of VirtualServices that no service has.
func (b *builder) addVirtualHosts(hosts *virtualHosts, port uint32) {
	for _, vs := range b.forMesh.all {
		for i, h := range vs.Spec.Hosts {
			h = b.world.FQDN(h, vs.Namespace)
			if hosts.claimed[h] || h == "*" || len(vs.Spec.Http) == 0 {
				continue
			}
			if !mesh.ValidHost(h) {
				b.refuse(vs, fmt.Sprintf("spec.hosts[%d]", i), h+" is not a host name", "")
				continue
			}
			if routes := b.virtualServiceRoutes(h, port); len(routes) > 0 {
				hosts.at(h, port).Routes = routes
			}
		}
	}
}

// unknownHost lets requests to hosts that are not known pass, or, where the
// proxy does not know where they were going, answers 502.
func (b *builder) unknownHost() *routev3.VirtualHost {
	if b.proxy.Redirected {
		return &routev3.VirtualHost{
			Name: "allow_any", Domains: []string{"*"}, IncludeRequestAttemptCount: true,
			Routes: []*routev3.Route{toCluster("allow_any", passthrough, nil)},
		}
	}
	return &routev3.VirtualHost{Name: "block_all", Domains: []string{"*"}, Routes: []*routev3.Route{{
		Name:   "block_all",
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: answer(502, nil),
	}}}
}

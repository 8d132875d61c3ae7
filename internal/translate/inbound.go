package translate

import (
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// An inboundPort is a port of the workload that some Service leads to.
type inboundPort struct {
	service  *mesh.Service
	protocol mesh.Protocol
	number   uint32 // of the workload
}

// inboundPorts are the ports of the sidecar's workload, each once: of two
// Services that lead to one port with different protocols, the older is heard.
func (b *builder) inboundPorts() []inboundPort {
	var out []inboundPort
	seen := map[uint32]inboundPort{}
	for _, s := range b.world.ServicesOf(b.proxy) {
		for _, p := range s.Ports {
			if p.Protocol == mesh.UDP {
				continue
			}
			target, ok := b.world.TargetPort(b.proxy, p)
			if !ok {
				b.refuse(s.Object, "spec.ports["+p.Name+"].targetPort", "no Pod of the workload has a port of that name", "give the Pod's containers the port")
				continue
			}
			if first, again := seen[target]; again {
				if first.protocol != p.Protocol {
					b.refuse(s.Object, "spec.ports["+p.Name+"]", "Service "+first.service.Name.String()+", which is older, has port "+number(target)+" with another protocol", "declare the same in both")
				}
				continue
			}
			in := inboundPort{s, p.Protocol, target}
			seen[target] = in
			out = append(out, in)
		}
	}
	return out
}

// buildInbound makes the listeners for requests to the workload: one for all
// that is redirected, or one at each of the workload's ports.
func (b *builder) buildInbound() {
	b.ports = b.inboundPorts()
	if b.proxy.Redirected {
		b.buildVirtualInbound()
		return
	}
	for _, p := range b.ports {
		if len(b.proxy.IPs) == 0 {
			b.refuse(p.service.Object, "", "its sidecar said no address to listen at; the workload is not served", "give the sidecar INSTANCE_IPS")
			continue
		}
		ip := b.proxy.IPs[0]
		if ip == loopback(ip) {
			b.refuse(p.service.Object, "", "its sidecar cannot listen at "+hostPort(ip.String(), p.number)+": there the workload listens",
				"give the sidecar another address, 127.0.0.2 say, or redirect traffic to it")
			continue
		}
		l := &listenerv3.Listener{
			Name:             listenerName(ip.String(), p.number),
			Address:          address(ip.String(), p.number),
			TrafficDirection: corev3.TrafficDirection_INBOUND,
			FilterChains:     b.inboundChains(p, false),
		}
		if p.protocol == mesh.Undeclared {
			sniff(l, nil)
		}
		b.addListener(l)
		b.addInboundCluster(p, loopback(ip).String())
	}
}

// loopback is where a workload listens that leaves its other addresses to its
// proxy.
func loopback(ip netip.Addr) netip.Addr {
	if ip.Unmap().Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// sniff has the listener look whether a connection speaks HTTP, but for
// connections to declared ports. It waits for the first bytes without limit:
// who sends them late must not get round the extensions for requests. A protocol
// in which the server speaks first has to be declared, therefore, as in Istio.
func sniff(l *listenerv3.Listener, declared []uint32) {
	inspector := listenerFilter(httpInspector, &httpinspectorv3.HttpInspector{})
	var ports []*listenerv3.ListenerFilterChainMatchPredicate
	for _, port := range declared {
		ports = append(ports, &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &typev3.Int32Range{Start: int32(port), End: int32(port) + 1},
			},
		})
	}
	switch len(ports) {
	case 0:
	case 1:
		inspector.FilterDisabled = ports[0]
	default:
		inspector.FilterDisabled = &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{
				OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: ports},
			},
		}
	}
	l.ListenerFilters = append(l.ListenerFilters, inspector)
	l.ListenerFiltersTimeout = durationpb.New(0)
}

// plaintext is how the HTTP inspector calls HTTP.
func plaintext() []string { return []string{"http/1.1", "h2c"} }

// buildVirtualInbound makes the one listener for all redirected requests to the
// workload. Ports that no Service leads to pass, with the extensions that match
// any port.
func (b *builder) buildVirtualInbound() {
	l := &listenerv3.Listener{
		Name:             "virtualInbound",
		Address:          address(b.wildcard(), inboundListener),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		ListenerFilters:  []*listenerv3.ListenerFilter{listenerFilter(originalDst, &originaldstv3.OriginalDst{})},
		FilterChains: []*listenerv3.FilterChain{{
			Name:             "virtualInbound-blackhole", // to the proxy's own port: it would send to itself for ever
			FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(inboundListener)},
			Filters:          []*listenerv3.Filter{networkFilter(tcpProxyFilter, tcpProxy(blackHole, blackHole))},
		}},
	}
	var declared []uint32
	for _, p := range b.ports {
		if p.protocol != mesh.Undeclared {
			declared = append(declared, p.number)
		}
		l.FilterChains = append(l.FilterChains, b.inboundChains(p, true)...)
		b.addInboundCluster(p, "")
	}
	c := chain{mode: mesh.Server, statPrefix: inboundPass}
	c.inline = inboundRoutes(inboundPass, 0, nil)
	l.FilterChains = append(l.FilterChains,
		&listenerv3.FilterChain{
			Name:             "virtualInbound-catchall-http",
			FilterChainMatch: &listenerv3.FilterChainMatch{ApplicationProtocols: plaintext()},
			Filters:          b.httpFilters(c),
		},
		&listenerv3.FilterChain{Name: "virtualInbound", Filters: b.tcpFilters(c, tcpProxy(inboundPass, inboundPass))},
	)
	sniff(l, declared)
	b.out.Clusters = append(b.out.Clusters, b.fromProxy(originalDestination(inboundPass)))
	b.addListener(l)
}

// inboundChains are the filter chains of one port of the workload. A port of no
// declared protocol has one for HTTP and one for the rest.
func (b *builder) inboundChains(p inboundPort, redirected bool) []*listenerv3.FilterChain {
	name := listenerName(b.wildcard(), p.number)
	match := func(protocols ...string) *listenerv3.FilterChainMatch {
		m := &listenerv3.FilterChainMatch{ApplicationProtocols: protocols}
		if redirected {
			m.DestinationPort = wrapperspb.UInt32(p.number)
		} else if len(protocols) == 0 {
			return nil
		}
		return m
	}
	cluster := clusterName("inbound", p.number, "", "")
	c := chain{mode: mesh.Server, port: p.number, statPrefix: "inbound_" + name, http2: p.protocol.IsHTTP2()}
	c.inline = inboundRoutes(cluster, p.number, inboundRetries(p.protocol))
	var out []*listenerv3.FilterChain
	switch {
	case p.protocol.IsHTTP():
		return append(out, &listenerv3.FilterChain{Name: name, FilterChainMatch: match(), Filters: b.httpFilters(c)})
	case p.protocol == mesh.Undeclared:
		out = append(out, &listenerv3.FilterChain{Name: name + "-http", FilterChainMatch: match(plaintext()...), Filters: b.httpFilters(c)})
	}
	return append(out, &listenerv3.FilterChain{Name: name, FilterChainMatch: match(), Filters: b.tcpFilters(c, tcpProxy(cluster, cluster))})
}

// inboundRoutes sends every request to the workload, without a time limit: that
// is the client's to set.
func inboundRoutes(cluster string, port uint32, retries *routev3.RetryPolicy) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:             cluster,
		ValidateClusters: no(),
		VirtualHosts: []*routev3.VirtualHost{{
			Name: "inbound|http|" + number(port), Domains: []string{"*"}, Routes: []*routev3.Route{toCluster("default", cluster, retries)},
		}},
	}
}

// inboundRetries tries again what a workload that was just closing the
// connection never saw. Streams of gRPC do not bear it.
func inboundRetries(p mesh.Protocol) *routev3.RetryPolicy {
	if p == mesh.GRPC {
		return nil
	}
	return &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: wrapperspb.UInt32(2)}
}

// toCluster is a route for every request.
func toCluster(name, cluster string, retries *routev3.RetryPolicy) *routev3.Route {
	return &routev3.Route{
		Name:  name,
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
			Timeout:          timeoutOf(nil),
			RetryPolicy:      retries,
		}},
	}
}

// addInboundCluster leads to the workload: at ip, or, if ip is empty, at the
// address the client asked for.
func (b *builder) addInboundCluster(p inboundPort, ip string) {
	name := clusterName("inbound", p.number, "", "")
	c := b.fromProxy(originalDestination(name))
	if ip != "" {
		c = &clusterv3.Cluster{
			Name:                 name,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			ConnectTimeout:       seconds(10),
			CircuitBreakers:      breakers(),
			LoadAssignment: &endpointv3.ClusterLoadAssignment{
				ClusterName: name, Endpoints: lbEndpoints([]mesh.Endpoint{{Address: ip, Port: p.number}}),
			},
		}
	}
	if p.protocol.IsHTTP2() {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: anyOf(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: explicitHTTP2(),
		})}
	}
	b.out.Clusters = append(b.out.Clusters, c)
}

// fromProxy marks connections as the proxy's own, so that redirection lets them
// pass: Istio's rules know them by this source address.
func (b *builder) fromProxy(c *clusterv3.Cluster) *clusterv3.Cluster {
	address := ownAddress4
	if b.proxy.IPv6Only() {
		address = ownAddress6
	}
	c.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: &corev3.SocketAddress{
		Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 0},
	}}
	return c
}

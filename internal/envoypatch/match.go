package envoypatch

import (
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	api "istio.io/api/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// matchesProxy compares the proxy's version and metadata with match.proxy. A
// proxy that does not tell its version matches no proxyVersion.
func (p *patch) matchesProxy(proxy mesh.Proxy) bool {
	if p.version != nil && (proxy.Version == "" || !p.version.MatchString(proxy.Version)) {
		return false
	}
	for key, want := range p.match.GetProxy().GetMetadata() {
		if got, ok := metadata(proxy, key); !ok || got != want {
			return false
		}
	}
	return true
}

// metadata is the value of a string in the proxy's node metadata, also of those
// that have a field of their own in [mesh.Proxy].
func metadata(proxy mesh.Proxy, key string) (string, bool) {
	if v, ok := proxy.Metadata[key]; ok {
		return v, true
	}
	v := map[string]string{
		"NAMESPACE":     proxy.Namespace,
		"CLUSTER_ID":    proxy.Cluster,
		"WORKLOAD_NAME": proxy.Workload,
		"ISTIO_VERSION": proxy.Version,
	}[key]
	if key == "INTERCEPTION_MODE" && proxy.Redirected {
		v = "REDIRECT"
	}
	return v, v != ""
}

// inContext reports whether p is for what a proxy of this role has, inbound or
// outbound in the case of a sidecar.
func (p *patch) inContext(role mesh.Role, inbound bool) bool {
	switch p.match.GetContext() {
	case api.EnvoyFilter_ANY:
		return true
	case api.EnvoyFilter_GATEWAY:
		return role == mesh.Router
	case api.EnvoyFilter_SIDECAR_INBOUND:
		return role != mesh.Router && inbound
	case api.EnvoyFilter_SIDECAR_OUTBOUND:
		return role != mesh.Router && !inbound
	}
	return false
}

// forRole reports whether p is for any of what a proxy of this role has: where
// something new goes that has no direction yet.
func (p *patch) forRole(role mesh.Role) bool {
	return p.inContext(role, true) || p.inContext(role, false)
}

func isInbound(l *listenerv3.Listener) bool {
	return l.GetTrafficDirection() == corev3.TrafficDirection_INBOUND
}

// isVirtual tells a sidecar's two catch-all listeners, whose ports are those of
// their filter chains.
func isVirtual(l *listenerv3.Listener) bool {
	return l.GetName() == "virtualInbound" || l.GetName() == "virtualOutbound"
}

// matchesListener compares name and port. The port of a catch-all listener is
// left to [patch.matchesChain], but for patches of the listener itself.
func (p *patch) matchesListener(l *listenerv3.Listener) bool {
	m := p.match.GetListener()
	if m.GetName() != "" && m.GetName() != l.GetName() {
		return false
	}
	if p.applyTo != api.EnvoyFilter_LISTENER && isVirtual(l) {
		return true
	}
	return m.GetPortNumber() == 0 || m.GetPortNumber() == l.GetAddress().GetSocketAddress().GetPortValue()
}

// matchesChain compares what match.listener says of filter chains; l is known to match.
func (p *patch) matchesChain(l *listenerv3.Listener, c *listenerv3.FilterChain) bool {
	lm := p.match.GetListener()
	has := c.GetFilterChainMatch()
	port := has.GetDestinationPort().GetValue()
	if isVirtual(l) && lm.GetPortNumber() != 0 && lm.GetPortNumber() != port {
		return false
	}
	m := lm.GetFilterChain()
	if m.GetApplicationProtocols() != "" {
		for proto := range strings.SplitSeq(m.GetApplicationProtocols(), ",") {
			if !slices.Contains(has.GetApplicationProtocols(), strings.TrimSpace(proto)) {
				return false
			}
		}
	}
	return (m.GetName() == "" || m.GetName() == c.GetName()) &&
		(m.GetSni() == "" || slices.Contains(has.GetServerNames(), m.GetSni())) &&
		(m.GetTransportProtocol() == "" || m.GetTransportProtocol() == has.GetTransportProtocol()) &&
		(m.GetDestinationPort() == 0 || m.GetDestinationPort() == port)
}

// Where a filter is in the way of a request; part of its canonical name.
const (
	listenerLayer = "listener"
	networkLayer  = "network"
	httpLayer     = "http"
)

// sameFilter reports whether two names of filters mean the same one.
func sameFilter(layer, a, b string) bool { return canonical(layer, a) == canonical(layer, b) }

// canonical is the name that Envoy 1.14 gave to what was envoy.NAME or
// envoy.listener.NAME; other names are their own.
func canonical(layer, name string) string {
	old := "envoy."
	if layer == listenerLayer {
		old = "envoy.listener."
	}
	short, ok := strings.CutPrefix(name, old)
	if !ok || short == "" || strings.Contains(short, ".") {
		return name
	}
	if layer == httpLayer {
		switch short {
		case "http_dynamo_filter":
			short = "dynamo"
		case "rate_limit":
			short = "ratelimit"
		}
	}
	return "envoy.filters." + layer + "." + short
}

// matchesRoute compares what match.routeConfiguration says of the whole. The
// name of a gateway's tells its port, and for HTTPS its server and gateway.
func (p *patch) matchesRoute(rc *routev3.RouteConfiguration, role mesh.Role) bool {
	m := p.match.GetRouteConfiguration()
	if m.GetName() != "" && m.GetName() != rc.GetName() {
		return false
	}
	if role != mesh.Router {
		return m.GetPortNumber() == 0 || m.GetPortNumber() == sidecarRoutePort(rc.GetName())
	}
	port, portName, gateway := gatewayRoute(rc.GetName())
	return (m.GetPortNumber() == 0 || m.GetPortNumber() == port) &&
		(m.GetPortName() == "" || m.GetPortName() == portName) &&
		(m.GetGateway() == "" || m.GetGateway() == gateway)
}

// sidecarRoutePort reads the port from 9080, HOST:9080 or inbound|9080||; 0 if
// the name has none.
func sidecarRoutePort(name string) uint32 {
	if isInboundName(name) {
		port, _, _ := subsetKey(name)
		return port
	}
	return number(name[strings.LastIndexByte(name, ':')+1:])
}

// gatewayRoute takes http.PORT or https.PORT.PORTNAME.GATEWAY.NAMESPACE apart.
func gatewayRoute(name string) (port uint32, portName, gateway string) {
	parts := strings.Split(name, ".")
	switch {
	case len(parts) == 2 && parts[0] == "http":
		return number(parts[1]), "", ""
	case len(parts) == 5 && parts[0] == "https":
		return number(parts[1]), parts[2], parts[4] + "/" + parts[3]
	}
	return 0, "", ""
}

func (p *patch) matchesVirtualHost(vh *routev3.VirtualHost) bool {
	m := p.match.GetRouteConfiguration().GetVhost()
	return (m.GetName() == "" || m.GetName() == vh.GetName()) &&
		(m.GetDomainName() == "" || slices.Contains(vh.GetDomains(), m.GetDomainName()))
}

func (p *patch) matchesHTTPRoute(r *routev3.Route) bool {
	m := p.match.GetRouteConfiguration().GetVhost().GetRoute()
	if m.GetName() != "" && m.GetName() != r.GetName() {
		return false
	}
	want := m.GetAction()
	if want == api.EnvoyFilter_RouteConfigurationMatch_RouteMatch_ANY {
		return true
	}
	switch r.GetAction().(type) {
	case *routev3.Route_Route:
		return want == api.EnvoyFilter_RouteConfigurationMatch_RouteMatch_ROUTE
	case *routev3.Route_Redirect:
		return want == api.EnvoyFilter_RouteConfigurationMatch_RouteMatch_REDIRECT
	case *routev3.Route_DirectResponse:
		return want == api.EnvoyFilter_RouteConfigurationMatch_RouteMatch_DIRECT_RESPONSE
	}
	return true // as Istio: other actions are outside the choice
}

// matchesCluster compares the parts of the name. An inbound cluster has no
// service in its name and matches any.
func (p *patch) matchesCluster(c *clusterv3.Cluster) bool {
	m := p.match.GetCluster()
	if m.GetName() != "" {
		return m.GetName() == c.GetName()
	}
	port, subset, host := subsetKey(c.GetName())
	return (m.GetPortNumber() == 0 || m.GetPortNumber() == port) &&
		(m.GetSubset() == "" || m.GetSubset() == subset) &&
		(m.GetService() == "" || m.GetService() == host || host == "" && isInboundName(c.GetName()))
}

// isInboundName tells the clusters and routes for what comes to the workload.
func isInboundName(name string) bool {
	return strings.HasPrefix(name, "inbound|") || strings.HasPrefix(name, "InboundPassthroughCluster")
}

// subsetKey takes DIRECTION|PORT|SUBSET|HOST apart; nothing of another form.
func subsetKey(name string) (port uint32, subset, host string) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 {
		return 0, "", ""
	}
	return number(parts[1]), parts[2], parts[3]
}

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint32(n)
}

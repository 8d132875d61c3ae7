package translate

import (
	"fmt"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// A connectionMatch is what the matches of tcp and tls routes have in common.
type connectionMatch interface {
	GetDestinationSubnets() []string
	GetPort() uint32
	GetSourceLabels() map[string]string
	GetGateways() []string
	GetSourceNamespace() string
}

// connectionApplies says whether m is for gateway and port; one that looks at
// addresses is refused.
func (b *builder) connectionApplies(vs *networkingv1.VirtualService, m connectionMatch, gateway string, port uint32, field string) bool {
	if len(m.GetDestinationSubnets()) > 0 {
		b.refuse(vs, field+".destinationSubnets", "is not supported; the match is left out", "match by port or sniHosts")
		return false
	}
	if m.GetPort() != 0 && m.GetPort() != port {
		return false
	}
	if gs := m.GetGateways(); len(gs) > 0 {
		return slices.ContainsFunc(gs, func(g string) bool { return mesh.GatewayName(g, vs.Namespace) == gateway })
	}
	return mesh.SubsetOf(m.GetSourceLabels(), b.proxy.Labels) &&
		(m.GetSourceNamespace() == "" || m.GetSourceNamespace() == b.proxy.Namespace)
}

// tcpServerFilters sends the connections of a TCP server, or of a TLS server
// that terminates, where the first VirtualService with a tcp route for it says.
// They are nil if there is none.
func (b *builder) tcpServerFilters(c chain, s *server) []*listenerv3.Filter {
	for _, vs := range b.world.VirtualServices(s.gateway, b.proxy.Namespace) {
		if !slices.ContainsFunc(vs.Spec.Hosts, func(h string) bool {
			return len(s.covers(b.world.FQDN(h, vs.Namespace), vs.Namespace)) > 0
		}) {
			continue
		}
		if proxy := b.tcpRoute(vs, s.gateway, s.port); proxy != nil {
			return b.tcpFilters(c, proxy)
		}
	}
	b.refuse(s.owner, s.field, "no VirtualService has a tcp route for it; it is not served", "write one that names gateway "+s.gateway)
	return nil
}

// tcpRoute is where the first tcp route of vs for gateway and port leads, or nil.
func (b *builder) tcpRoute(vs *networkingv1.VirtualService, gateway string, port uint32) *tcpproxyv3.TcpProxy {
	for i, in := range vs.Spec.Tcp {
		field := fmt.Sprintf("spec.tcp[%d]", i)
		applies := len(in.Match) == 0
		for j, m := range in.Match {
			if m.SourceSubnet != "" {
				b.refuse(vs, fmt.Sprintf("%s.match[%d].sourceSubnet", field, j), "is not supported; the match is left out", "remove it")
				continue
			}
			applies = applies || b.connectionApplies(vs, m, gateway, port, fmt.Sprintf("%s.match[%d]", field, j))
		}
		if applies {
			return b.connectionRoute(vs, in.Route, port, field)
		}
	}
	return nil
}

// connectionRoute sends connections to one cluster, or to several by weight.
func (b *builder) connectionRoute(vs *networkingv1.VirtualService, to []*apinetworking.RouteDestination, port uint32, field string) *tcpproxyv3.TcpProxy {
	if len(to) == 1 {
		cluster := b.destination(vs, to[0].Destination, port, field+".route[0].destination")
		return b.lead(tcpProxy(cluster, cluster), cluster)
	}
	var clusters []string
	weighted := &tcpproxyv3.TcpProxy_WeightedCluster{}
	for i, d := range to {
		if d.Weight > 0 {
			cluster := b.destination(vs, d.Destination, port, fmt.Sprintf("%s.route[%d].destination", field, i))
			clusters = append(clusters, cluster)
			weighted.Clusters = append(weighted.Clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{
				Name: cluster, Weight: uint32(d.Weight),
			})
		}
	}
	if len(weighted.Clusters) == 0 {
		b.refuse(vs, field+".route", "no destination has a weight; connections are closed", "give one a weight")
		return tcpProxy(blackHole, blackHole)
	}
	return b.lead(&tcpproxyv3.TcpProxy{
		StatPrefix:       vs.Name + "." + vs.Namespace,
		ClusterSpecifier: &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: weighted},
	}, clusters...)
}

// passthroughChains send TLS connections on by their server name, as the tls
// routes of VirtualServices say.
func (b *builder) passthroughChains(c chain, s *server, taken map[string]bool) []*listenerv3.FilterChain {
	var out []*listenerv3.FilterChain
	for _, vs := range b.world.VirtualServices(s.gateway, b.proxy.Namespace) {
		for i, in := range vs.Spec.Tls {
			field := fmt.Sprintf("spec.tls[%d]", i)
			for j, m := range in.Match {
				matchField := fmt.Sprintf("%s.match[%d]", field, j)
				if !b.connectionApplies(vs, m, s.gateway, s.port, matchField) {
					continue
				}
				names := servedNames(s, m.SniHosts, vs.Namespace)
				if len(names) == 0 {
					continue
				}
				match, ok := b.sniMatch(vs, matchField+".sniHosts", names, taken)
				if !ok {
					continue
				}
				out = append(out, &listenerv3.FilterChain{
					FilterChainMatch: match,
					Filters:          b.tcpFilters(c, b.connectionRoute(vs, in.Route, s.port, field)),
				})
			}
		}
	}
	if len(out) == 0 {
		b.refuse(s.owner, s.field, "no VirtualService has a tls route for it; it is not served", "write one that names gateway "+s.gateway)
	}
	return out
}

func servedNames(s *server, sniHosts []string, namespace string) []string {
	var out []string
	for _, h := range sniHosts {
		for _, both := range s.covers(h, namespace) {
			if both != "*" && !slices.Contains(out, both) {
				out = append(out, both)
			}
		}
	}
	return out
}

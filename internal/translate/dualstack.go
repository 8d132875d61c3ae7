package translate

import (
	"cmp"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// The addresses that a redirected sidecar's connections to its workload come from, so
// that redirection lets them pass. They are Istio's.
const (
	ownAddress4 = "127.0.0.6"
	ownAddress6 = "::6"
)

// addIPv6 gives a proxy with addresses of both families, whose listeners so far take
// connections to any IPv4 address, the like for IPv6: redirection leads connections of
// either family here, and a cluster that connects from an IPv4 address reaches none of
// the other. Istio has one listener with two addresses and one cluster with two
// sources, which the engine has not; what comes of it is the same. It happens after
// EnvoyFilters have been applied, which see one of each, as in Istio.
func (b *builder) addIPv6() {
	if !b.proxy.DualStack() {
		return
	}
	twins := map[string]string{} // of clusters
	for _, c := range b.out.Clusters {
		if c.GetUpstreamBindConfig().GetSourceAddress().GetAddress() == ownAddress4 {
			twin := proto.Clone(c).(*clusterv3.Cluster)
			twin.Name = clusterTwin(c.Name)
			twin.UpstreamBindConfig.SourceAddress.Address = ownAddress6
			twins[c.Name] = twin.Name
			b.out.Clusters = append(b.out.Clusters, twin)
		}
	}
	taken := map[uint32]bool{} // ports of all IPv6 addresses
	for _, l := range b.out.Listeners {
		if at := l.GetAddress().GetSocketAddress(); at.GetAddress() == "::" {
			taken[at.GetPortValue()] = true
		}
	}
	for _, l := range b.out.Listeners {
		at := l.GetAddress().GetSocketAddress()
		if at.GetAddress() != "0.0.0.0" || taken[at.GetPortValue()] {
			continue
		}
		twin := proto.Clone(l).(*listenerv3.Listener)
		twin.Name = listenerTwin(l.Name)
		twin.Address.GetSocketAddress().Address = "::"
		rename(twin.ProtoReflect(), twins)
		b.out.Listeners = append(b.out.Listeners, twin)
	}
}

// clusterTwin is the name of the cluster that is for IPv6 what the one named is for
// IPv4.
func clusterTwin(name string) string {
	if part := strings.Split(name, "|"); len(part) == 4 && part[2] == "" {
		return strings.Join([]string{part[0], part[1], "ipv6", part[3]}, "|")
	}
	return name + "Ipv6" // as older versions of Istio call it
}

func listenerTwin(name string) string {
	if at, ok := strings.CutPrefix(name, "0.0.0.0_"); ok {
		return "::_" + at
	}
	return name + "Ipv6"
}

// rename has all in m, packed or not, that leads to a cluster lead to its twin.
func rename(m protoreflect.Message, twins map[string]string) {
	switch m := m.Interface().(type) {
	case *anypb.Any:
		if inner, err := m.UnmarshalNew(); err == nil { // else of a type unknown to us
			rename(inner.ProtoReflect(), twins)
			*m = *anyOf(inner)
		}
		return
	case *tcpproxyv3.TcpProxy:
		if twin := twins[m.GetCluster()]; twin != "" {
			m.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: twin}
		}
	case *tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight:
		m.Name = cmp.Or(twins[m.Name], m.Name)
	case *routev3.RouteAction:
		if twin := twins[m.GetCluster()]; twin != "" {
			m.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: twin}
		}
	case *routev3.WeightedCluster_ClusterWeight:
		m.Name = cmp.Or(twins[m.Name], m.Name)
	}
	inside(m, func(m protoreflect.Message) { rename(m, twins) })
}

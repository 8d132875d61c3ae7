package translate

import (
	"math/big"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	apinetworking "istio.io/api/networking/v1alpha3"
)

// Envoy's limits of the tables that consistent hashing looks up.
const (
	defaultRing = 1024
	maxRing     = 8 << 20
	maxMaglev   = 5_000_011
)

// applyHash has the cluster choose endpoints by a hash, in a ring unless the rule says
// maglev. By what of a request it is made is for the routes to say: without that,
// Envoy would choose at random.
func (t *traffic) applyHash(in *apinetworking.LoadBalancerSettings_ConsistentHashLB, field string) {
	key := hashPolicy(in)
	if key == nil {
		t.refuse(field, "does not say by what; the endpoint with the fewest requests is chosen",
			"give httpHeaderName, httpCookie, useSourceIp: true or httpQueryParameterName")
		return
	}
	if err := key.ValidateAll(); err != nil {
		t.refuse(field, "Envoy would refuse it: "+err.Error(), "correct it")
		return
	}
	if !t.setTable(in, field) {
		return
	}
	t.leading.hash = key
}

// setTable sets what the hash is looked up in, or reports false.
func (t *traffic) setTable(in *apinetworking.LoadBalancerSettings_ConsistentHashLB, field string) bool {
	//lint:ignore SA1019 users still write it
	size := in.MinimumRingSize
	if in.HashAlgorithm != nil && size != 0 {
		t.refuse(field+".minimumRingSize", "is not heard beside ringHash or maglev", "remove it; ringHash has one of its own")
	}
	switch algorithm := in.HashAlgorithm.(type) {
	case *apinetworking.LoadBalancerSettings_ConsistentHashLB_Maglev:
		return t.hashByMaglev(algorithm.Maglev.GetTableSize(), field)
	case *apinetworking.LoadBalancerSettings_ConsistentHashLB_RingHash_:
		size = algorithm.RingHash.GetMinimumRingSize()
	}
	return t.hashByRing(size, field)
}

// hashByRing is for a ring of at least size entries; 0 is Envoy's default.
func (t *traffic) hashByRing(size uint64, field string) bool {
	if size > maxRing {
		t.refuse(field, "a ring cannot have more than 8388608 entries", "write a smaller minimumRingSize")
		return false
	}
	if size == 0 {
		size = defaultRing
	}
	t.cluster.LbPolicy = clusterv3.Cluster_RING_HASH
	t.cluster.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{
		RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(size)},
	}
	return true
}

// hashByMaglev is for a table of size entries; 0 is Envoy's default.
func (t *traffic) hashByMaglev(size uint64, field string) bool {
	if size > maxMaglev || size != 0 && !new(big.Int).SetUint64(size).ProbablyPrime(0) { // is sure of 64 bits
		t.refuse(field+".maglev.tableSize", "must be a prime number up to 5000011", "write 65537, which is the default, or leave it out")
		return false
	}
	t.cluster.LbPolicy = clusterv3.Cluster_MAGLEV
	if size != 0 {
		t.cluster.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{
			MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(size)},
		}
	}
	return true
}

// hashPolicy is by what of a request a route hashes; nil for nothing. A client without
// the cookie is given one only if the cookie has a ttl, be it 0.
func hashPolicy(in *apinetworking.LoadBalancerSettings_ConsistentHashLB) *routev3.RouteAction_HashPolicy {
	switch key := in.HashKey.(type) {
	case *apinetworking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: key.HttpHeaderName},
		}}
	case *apinetworking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		cookie := &routev3.RouteAction_HashPolicy_Cookie{
			Name: key.HttpCookie.GetName(), Path: key.HttpCookie.GetPath(), Ttl: key.HttpCookie.GetTtl(),
		}
		for _, a := range key.HttpCookie.GetAttributes() {
			cookie.Attributes = append(cookie.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}}
	case *apinetworking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		if key.UseSourceIp {
			return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
				ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
			}}
		}
	case *apinetworking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: key.HttpQueryParameterName},
		}}
	}
	return nil
}

// leadTo is what a route to the cluster has to say for its DestinationRule.
func (b *builder) leadTo(cluster string) leading {
	l := b.services().leading[cluster]
	if l.unredirected != nil && !b.proxy.Redirected {
		b.tell(*l.unredirected)
	}
	return l
}

// hash has the route choose the cluster's endpoint by a hash, if the cluster does, and
// reports whether. A route to several clusters hashes by what any of them asks for.
func (b *builder) hash(action *routev3.RouteAction, cluster string) bool {
	key := b.leadTo(cluster).hash
	if key != nil {
		action.HashPolicy = append(action.HashPolicy, proto.Clone(key).(*routev3.RouteAction_HashPolicy))
	}
	return key != nil
}

// lead has connections to the clusters that proxy leads to do as their
// DestinationRules say: of hash keys a connection has its source address alone.
func (b *builder) lead(proxy *tcpproxyv3.TcpProxy, clusters ...string) *tcpproxyv3.TcpProxy {
	for _, cluster := range clusters {
		l := b.leadTo(cluster)
		if l.hash.GetConnectionProperties() != nil {
			proxy.HashPolicy = []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
		}
		if proxy.IdleTimeout == nil {
			proxy.IdleTimeout = l.idle
		}
	}
	return proxy
}

package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	apinetworking "istio.io/api/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// services is the clusters and endpoints of all services that one View has, for
// proxies with addresses of the same families. They are made once for a View and
// shared by every class of such proxies.
type services struct {
	families  families
	clusters  []*clusterv3.Cluster
	endpoints []*endpointv3.ClusterLoadAssignment
	leading   map[string]leading // by cluster: all there are
	problems  []resource.Problem

	// redirected are, by name, the clusters that proxies have in place of clusters
	// that traffic is redirected to.
	redirected map[string]*clusterv3.Cluster
}

type servicesKey struct {
	scope    string
	families families
}

// families are the address families that a proxy has addresses of, and reaches.
type families int

const (
	untold families = iota // the proxy did not say
	onlyIPv4
	onlyIPv6
	dualStack
)

func familiesOf(p mesh.Proxy) families {
	switch {
	case p.DualStack():
		return dualStack
	case p.IPv4Only():
		return onlyIPv4
	case p.IPv6Only():
		return onlyIPv6
	}
	return untold
}

// reach drops the endpoints of the other family, unless there are no others: a Pod of
// a service of both families is an endpoint of each. Names count as either.
func (f families) reach(endpoints []mesh.Endpoint) []mesh.Endpoint {
	if f != onlyIPv4 && f != onlyIPv6 {
		return endpoints
	}
	var out []mesh.Endpoint
	for _, e := range endpoints {
		if ip, err := netip.ParseAddr(e.Address); err != nil || ip.Unmap().Is4() == (f == onlyIPv4) {
			out = append(out, e)
		}
	}
	if len(out) == 0 {
		return endpoints
	}
	return out
}

func (b *builder) services() *services {
	return servicesOf(b.world, b.view, familiesOf(b.proxy))
}

func servicesOf(w *mesh.World, v *mesh.View, f families) *services {
	return mesh.Derive(w, servicesKey{v.Scope, f}, func() *services {
		out := &services{families: f, leading: map[string]leading{}, redirected: map[string]*clusterv3.Cluster{}}
		for _, s := range v.Services() {
			out.add(w, s, v.DestinationRule(s))
		}
		return out
	})
}

// addClusters gives every proxy the clusters of all services it sees, used by a
// route or not: extensions call them by name.
func (b *builder) addClusters() {
	s := b.services()
	b.out.Clusters = slices.Clone(s.clusters)
	b.out.Endpoints = slices.Clone(s.endpoints)
	if b.proxy.Redirected {
		b.replaceClusters(s.redirected)
	}
	b.tell(s.problems...)
	b.out.Clusters = append(b.out.Clusters, &clusterv3.Cluster{
		Name:                 blackHole,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       seconds(10),
	})
	if b.proxy.Role == mesh.Sidecar && b.proxy.Redirected {
		b.out.Clusters = append(b.out.Clusters, originalDestination(passthrough))
	}
}

// originalDestination is a cluster of wherever a redirected connection was
// going.
func originalDestination(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       seconds(10),
		CircuitBreakers:      breakers(),
	}
}

// replaceClusters puts clusters in the place of those of their names, which need no
// endpoints then.
func (b *builder) replaceClusters(by map[string]*clusterv3.Cluster) {
	for i, c := range b.out.Clusters {
		if other := by[c.Name]; other != nil {
			b.out.Clusters[i] = other
		}
	}
	b.out.Endpoints = slices.DeleteFunc(b.out.Endpoints, func(a *endpointv3.ClusterLoadAssignment) bool {
		return by[a.ClusterName] != nil
	})
}

// hasCluster says whether proxies of this class have the cluster of a service.
func (b *builder) hasCluster(name string) bool {
	_, ok := b.services().leading[name]
	return ok
}

func (out *services) add(w *mesh.World, s *mesh.Service, rule *mesh.DestinationRule) {
	for _, port := range s.Ports {
		if port.Protocol == mesh.UDP {
			continue
		}
		out.addCluster(w, s, port, rule, nil)
		for _, subset := range subsets(rule) {
			out.addCluster(w, s, port, rule, subset)
		}
	}
	if rule != nil && !strings.HasPrefix(rule.Host, "*") {
		out.tellPorts(s, rule, rule.Spec.TrafficPolicy, "spec.trafficPolicy")
		for _, subset := range rule.Spec.Subsets {
			out.tellPorts(s, rule, subset.TrafficPolicy, fmt.Sprintf("spec.subsets[%s].trafficPolicy", subset.Name))
		}
	}
}

// tellPorts tells of settings for ports that s does not have.
func (out *services) tellPorts(s *mesh.Service, rule *mesh.DestinationRule, policy *apinetworking.TrafficPolicy, field string) {
	for i, p := range policy.GetPortLevelSettings() {
		if _, ok := s.Port(p.GetPort().GetNumber()); !ok {
			out.tell(mesh.Refuse(rule, fmt.Sprintf("%s.portLevelSettings[%d].port.number", field, i),
				"service "+s.Host+" has no port "+number(p.GetPort().GetNumber()), "name one that it has"))
		}
	}
}

func (out *services) tell(problems ...resource.Problem) {
	for _, p := range problems {
		if !slices.Contains(out.problems, p) {
			out.problems = append(out.problems, p)
		}
	}
}

func subsets(rule *mesh.DestinationRule) []*apinetworking.Subset {
	if rule == nil {
		return nil
	}
	return rule.Spec.Subsets
}

// addCluster adds the cluster of port, or of a subset of it. One whose TLS
// settings cannot be honoured is left out, lest requests go in plain text.
func (out *services) addCluster(w *mesh.World, s *mesh.Service, port mesh.Port, rule *mesh.DestinationRule, subset *apinetworking.Subset) {
	name := clusterName("outbound", port.Number, subset.GetName(), s.Host)
	endpoints := s.Endpoints(port.Number)
	if subset != nil {
		endpoints = inSubset(endpoints, subset.Labels)
	}
	endpoints = out.families.reach(endpoints)
	assignment := &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: lbEndpoints(endpoints)}
	c := &clusterv3.Cluster{
		Name:            name,
		ConnectTimeout:  seconds(10),
		LbPolicy:        clusterv3.Cluster_LEAST_REQUEST,
		CircuitBreakers: breakers(),
	}
	switch s.Resolution {
	case mesh.Static:
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: name}
	case mesh.DNS:
		resolve(c, clusterv3.Cluster_STRICT_DNS, assignment)
	case mesh.DNSRoundRobin:
		resolve(c, clusterv3.Cluster_LOGICAL_DNS, assignment)
	}
	t := traffic{world: w, service: s, port: port, cluster: c, rule: rule, subset: subset}
	ok := t.apply()
	out.tell(t.problems...)
	if !ok {
		return
	}
	out.clusters = append(out.clusters, c)
	out.leading[name] = t.leading
	if t.leading.unredirected != nil {
		out.redirected[name] = passing(c)
	}
	if s.Resolution == mesh.Static {
		out.endpoints = append(out.endpoints, assignment)
	}
}

// passing is c with the address that a connection was going to as its endpoint.
func passing(c *clusterv3.Cluster) *clusterv3.Cluster {
	out := proto.Clone(c).(*clusterv3.Cluster)
	out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	out.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	out.EdsClusterConfig, out.LoadAssignment = nil, nil
	//lint:ignore SA1019 resolve has set them
	out.DnsLookupFamily, out.DnsRefreshRate, out.RespectDnsTtl = 0, nil, false
	return out
}

func resolve(c *clusterv3.Cluster, kind clusterv3.Cluster_DiscoveryType, a *endpointv3.ClusterLoadAssignment) {
	if kind == clusterv3.Cluster_LOGICAL_DNS && len(a.Endpoints) > 0 {
		a.Endpoints[0].LbEndpoints = a.Endpoints[0].LbEndpoints[:1] // it takes one host name only
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: kind}
	c.LoadAssignment = a
	c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
	//lint:ignore SA1019 its successor is a cluster type of its own, which EnvoyFilters for STRICT_DNS would miss
	c.DnsRefreshRate, c.RespectDnsTtl = seconds(60), true
}

func inSubset(endpoints []mesh.Endpoint, labels map[string]string) []mesh.Endpoint {
	var out []mesh.Endpoint
	for _, e := range endpoints {
		if mesh.SubsetOf(labels, e.Labels) {
			out = append(out, e)
		}
	}
	return out
}

func lbEndpoints(endpoints []mesh.Endpoint) []*endpointv3.LocalityLbEndpoints {
	if len(endpoints) == 0 {
		return nil
	}
	locality := &endpointv3.LocalityLbEndpoints{}
	for _, e := range endpoints {
		lb := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: address(e.Address, e.Port)},
		}}
		if e.Weight > 0 {
			lb.LoadBalancingWeight = wrapperspb.UInt32(e.Weight)
		}
		locality.LbEndpoints = append(locality.LbEndpoints, lb)
	}
	return []*endpointv3.LocalityLbEndpoints{locality}
}

// breakers sets no limits: Envoy's default of 1024 connections surprises.
func breakers() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		Priority:           corev3.RoutingPriority_DEFAULT,
		MaxConnections:     unlimited(),
		MaxPendingRequests: unlimited(),
		MaxRequests:        unlimited(),
		MaxRetries:         unlimited(),
	}}}
}

package translate

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	apinetworking "istio.io/api/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// services is the clusters and endpoints of all services that one View has.
// They are made once for a View and shared by every class of proxies.
type services struct {
	clusters  []*clusterv3.Cluster
	endpoints []*endpointv3.ClusterLoadAssignment
	ports     map[string]bool // names of clusters
	problems  []resource.Problem
}

type servicesKey struct{ scope string }

func servicesOf(w *mesh.World, v *mesh.View) *services {
	return mesh.Derive(w, servicesKey{v.Scope}, func() *services {
		out := &services{ports: map[string]bool{}}
		for _, s := range v.Services() {
			out.add(w, s, v.DestinationRule(s))
		}
		return out
	})
}

// addClusters gives every proxy the clusters of all services it sees, used by a
// route or not: extensions call them by name.
func (b *builder) addClusters() {
	s := servicesOf(b.world, b.view)
	b.out.Clusters = slices.Clone(s.clusters)
	b.out.Endpoints = slices.Clone(s.endpoints)
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

// hasCluster says whether proxies of this class have the cluster of a service.
func (b *builder) hasCluster(name string) bool {
	return servicesOf(b.world, b.view).ports[name]
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
	for _, p := range t.problems {
		if !slices.Contains(out.problems, p) {
			out.problems = append(out.problems, p)
		}
	}
	if !ok {
		return
	}
	out.clusters = append(out.clusters, c)
	out.ports[name] = true
	if s.Resolution == mesh.Static {
		out.endpoints = append(out.endpoints, assignment)
	}
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

package translate

import (
	"cmp"
	"fmt"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// virtualHosts is the making of one route configuration. Every domain belongs
// to the first virtual host that claims it: Envoy refuses a configuration in
// which it is twice.
type virtualHosts struct {
	byHost  map[string]*routev3.VirtualHost
	claimed map[string]bool
}

func newVirtualHosts() *virtualHosts {
	return &virtualHosts{byHost: map[string]*routev3.VirtualHost{}, claimed: map[string]bool{}}
}

// at returns the virtual host of host, which it makes if there is none.
func (v *virtualHosts) at(host string, port uint32) *routev3.VirtualHost {
	vh := v.byHost[host]
	if vh == nil {
		vh = &routev3.VirtualHost{
			Name:                       hostPort(host, port),
			Domains:                    []string{host},
			IncludeRequestAttemptCount: true,
		}
		v.byHost[host] = vh
		v.claimed[host] = true
	}
	return vh
}

// alias has vh answer to more domains, those that nobody has claimed.
func (v *virtualHosts) alias(vh *routev3.VirtualHost, domains ...string) {
	for _, d := range domains {
		if !v.claimed[d] {
			v.claimed[d] = true
			vh.Domains = append(vh.Domains, d)
		}
	}
}

// configuration has the virtual hosts by name, and then rest.
func (v *virtualHosts) configuration(name string, rest ...*routev3.VirtualHost) *routev3.RouteConfiguration {
	c := &routev3.RouteConfiguration{
		Name:                           name,
		ValidateClusters:               no(), // a route to what is not there must not refuse the others
		IgnorePortInHostMatching:       true,
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(maxDirectAnswer),
	}
	for _, vh := range v.byHost {
		c.VirtualHosts = append(c.VirtualHosts, vh)
	}
	slices.SortFunc(c.VirtualHosts, func(a, b *routev3.VirtualHost) int { return cmp.Compare(a.Name, b.Name) })
	c.VirtualHosts = append(c.VirtualHosts, rest...)
	return c
}

// addGatewayRoutes makes the route configuration that servers share.
func (b *builder) addGatewayRoutes(name string, servers []*server) {
	hosts := newVirtualHosts()
	for _, s := range servers {
		if s.api == nil {
			b.addVirtualServices(hosts, s)
		}
	}
	for _, vh := range hosts.byHost {
		vh.Routes = catchAllLast(vh.Routes)
	}
	b.addHTTPRoutes(hosts, servers)
	if len(hosts.byHost) == 0 { // answers 404
		vh := hosts.at("*", servers[0].port)
		vh.Name = hostPort("blackhole", servers[0].port)
	}
	b.out.Routes = append(b.out.Routes, hosts.configuration(name))
}

// catchAllLast moves routes that match every request behind the others, so that
// several VirtualServices for one host do not hide each other.
func catchAllLast(routes []*routev3.Route) []*routev3.Route {
	routes = slices.Clone(routes)
	slices.SortStableFunc(routes, func(a, b *routev3.Route) int {
		switch all := catchesAll(a); {
		case all == catchesAll(b):
			return 0
		case all:
			return 1
		}
		return -1
	})
	return routes
}

func catchesAll(r *routev3.Route) bool {
	m := r.Match
	return m.GetPrefix() == "/" && len(m.Headers) == 0 && len(m.QueryParameters) == 0
}

// addVirtualServices adds the routes of the VirtualServices that are bound to
// the server's Gateway, at the hosts that both have.
func (b *builder) addVirtualServices(hosts *virtualHosts, s *server) {
	for _, vs := range b.world.VirtualServices(s.gateway, b.proxy.Namespace) {
		var routes []*routev3.Route
		for i, host := range vs.Spec.Hosts {
			for _, both := range s.covers(b.world.FQDN(host, vs.Namespace), vs.Namespace) {
				if routes == nil {
					r := virtualRoutes{builder: b, vs: vs, gateway: s.gateway, port: s.port, tls: s.tls != nil}
					routes = r.routes()
				}
				if len(routes) == 0 {
					continue
				}
				if !mesh.ValidHost(both) {
					b.refuse(vs, fmt.Sprintf("spec.hosts[%d]", i), both+" is not a host name", "")
					continue
				}
				vh := hosts.at(both, s.port)
				vh.Routes = append(vh.Routes, routes...)
			}
		}
	}
	if s.redirect {
		b.redirectAll(hosts, s)
	}
}

// redirectAll has every request for the server's hosts redirected to HTTPS.
func (b *builder) redirectAll(hosts *virtualHosts, s *server) {
	for _, h := range s.hosts {
		hosts.at(h.host, s.port)
	}
	for host, vh := range hosts.byHost {
		if slices.ContainsFunc(s.hosts, func(h serverHost) bool { return mesh.HostMatches(h.host, host) }) {
			vh.RequireTls = routev3.VirtualHost_ALL
		}
	}
}

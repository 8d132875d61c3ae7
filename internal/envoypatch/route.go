package envoypatch

import (
	"fmt"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	api "istio.io/api/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// isForRoutes reports whether p changes route configurations, wherever they are.
func (p *patch) isForRoutes() bool {
	switch p.applyTo {
	case api.EnvoyFilter_ROUTE_CONFIGURATION, api.EnvoyFilter_VIRTUAL_HOST, api.EnvoyFilter_HTTP_ROUTE:
		return true
	}
	return false
}

// routes returns list with p applied to the route configurations it matches.
func (p *patch) routes(list []*routev3.RouteConfiguration, role mesh.Role) ([]*routev3.RouteConfiguration, error) {
	return each(list, func(rc *routev3.RouteConfiguration) (*routev3.RouteConfiguration, error) {
		return p.routeConfiguration(rc, isInboundName(rc.GetName()), role)
	})
}

// editInlineRoutes applies p to the route configuration that hcm itself holds, if any.
func (p *patch) editInlineRoutes(hcm *hcmv3.HttpConnectionManager, inbound bool, role mesh.Role) (bool, error) {
	before := hcm.GetRouteConfig()
	if before == nil {
		return false, nil
	}
	after, err := p.routeConfiguration(before, inbound, role)
	if err != nil || after == before {
		return false, err
	}
	hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: after}
	return true, nil
}

func (p *patch) routeConfiguration(rc *routev3.RouteConfiguration, inbound bool, role mesh.Role) (*routev3.RouteConfiguration, error) {
	if !p.inContext(role, inbound) || !p.matchesRoute(rc, role) {
		return rc, nil
	}
	next, err := changed(rc, p.editRouteConfiguration)
	if err != nil || next == rc {
		return rc, err
	}
	if twice := repeated(next); twice != "" && repeated(rc) == "" {
		return nil, refuse("%s would have %s twice", describe(rc), twice).or("a name and a domain may be in one virtual host only")
	}
	return next, nil
}

// repeated names a domain that rc has more than once, which Envoy rejects, or a
// virtual host, which later patches could not tell apart; empty if there is none.
func repeated(rc *routev3.RouteConfiguration) string {
	seen := map[string]bool{}
	for _, vh := range rc.GetVirtualHosts() {
		keys := []string{describe(vh)}
		for _, domain := range vh.GetDomains() {
			keys = append(keys, fmt.Sprintf("domain %q", domain))
		}
		for _, key := range keys {
			if seen[key] {
				return key
			}
			seen[key] = true
		}
	}
	return ""
}

// editRouteConfiguration changes rc, which matches, and reports whether it did.
func (p *patch) editRouteConfiguration(rc *routev3.RouteConfiguration) (bool, error) {
	switch p.applyTo {
	case api.EnvoyFilter_ROUTE_CONFIGURATION:
		merge(rc.ProtoReflect(), p.value.ProtoReflect(), p.replaceLists())
		return true, nil
	case api.EnvoyFilter_VIRTUAL_HOST:
		return p.editVirtualHosts(rc), nil
	}
	ok := false
	for _, vh := range rc.GetVirtualHosts() {
		if p.matchesVirtualHost(vh) {
			changed := p.editRoutes(vh)
			ok = ok || changed
		}
	}
	return ok, nil
}

func (p *patch) editVirtualHosts(rc *routev3.RouteConfiguration) bool {
	if p.op == api.EnvoyFilter_Patch_ADD {
		rc.VirtualHosts = append(rc.VirtualHosts, proto.Clone(p.value).(*routev3.VirtualHost))
		return true
	}
	if !slices.ContainsFunc(rc.VirtualHosts, p.matchesVirtualHost) {
		return false
	}
	if p.op == api.EnvoyFilter_Patch_REMOVE {
		rc.VirtualHosts = slices.DeleteFunc(rc.VirtualHosts, p.matchesVirtualHost)
		return true
	}
	for i, vh := range rc.VirtualHosts {
		switch {
		case !p.matchesVirtualHost(vh):
		case p.op == api.EnvoyFilter_Patch_REPLACE:
			rc.VirtualHosts[i] = proto.Clone(p.value).(*routev3.VirtualHost)
		default:
			merge(vh.ProtoReflect(), p.value.ProtoReflect(), p.replaceLists())
		}
	}
	return true
}

// editRoutes applies p to the routes of a virtual host that matches. An insert
// next to a route that is not there does nothing, and so does INSERT_FIRST.
func (p *patch) editRoutes(vh *routev3.VirtualHost) bool {
	selects := p.match.GetRouteConfiguration().GetVhost().GetRoute() != nil
	at := slices.IndexFunc(vh.Routes, p.matchesHTTPRoute)
	switch p.op {
	case api.EnvoyFilter_Patch_ADD:
		return p.insertRoute(vh, len(vh.Routes))
	case api.EnvoyFilter_Patch_INSERT_AFTER:
		if !selects {
			return p.insertRoute(vh, len(vh.Routes))
		}
		return at >= 0 && p.insertRoute(vh, at+1)
	case api.EnvoyFilter_Patch_INSERT_BEFORE:
		if !selects {
			at = 0
		}
		return at >= 0 && p.insertRoute(vh, at)
	case api.EnvoyFilter_Patch_INSERT_FIRST:
		return (!selects || at >= 0) && p.insertRoute(vh, 0)
	case api.EnvoyFilter_Patch_REMOVE:
		vh.Routes = slices.DeleteFunc(vh.Routes, p.matchesHTTPRoute)
		return at >= 0
	}
	for _, r := range vh.Routes {
		if p.matchesHTTPRoute(r) {
			merge(r.ProtoReflect(), p.value.ProtoReflect(), p.replaceLists())
		}
	}
	return at >= 0
}

func (p *patch) insertRoute(vh *routev3.VirtualHost, at int) bool {
	vh.Routes = slices.Insert(vh.Routes, at, proto.Clone(p.value).(*routev3.Route))
	return true
}

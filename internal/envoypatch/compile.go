package envoypatch

import (
	"regexp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	api "istio.io/api/networking/v1alpha3"
)

// maxVersion bounds the expression for a proxy's version, as Istio does: long
// ones are dear to compile.
const maxVersion = 1024

// compile fills p in from cp and tells all that cannot be honoured, with paths
// below p's own.
func (p *patch) compile(cp *api.EnvoyFilter_EnvoyConfigObjectPatch) []*refusal {
	p.applyTo, p.match, p.op = cp.GetApplyTo(), cp.GetMatch(), cp.GetPatch().GetOperation()
	if r := p.checkTarget(); r != nil {
		return []*refusal{r}
	}
	p.op = p.effective()
	found := append(p.checkMatch(), p.compileProxy()...)
	if r := p.checkSelection(); r != nil {
		found = append(found, r)
	}
	return append(found, p.compileValue(cp.GetPatch().GetValue())...)
}

func at(field, format string, args ...any) *refusal {
	r := refuse(format, args...)
	r.field = field
	return r
}

// newValue is an empty object of the kind that applyTo names; nil if we cannot patch it.
func newValue(applyTo api.EnvoyFilter_ApplyTo) proto.Message {
	switch applyTo {
	case api.EnvoyFilter_LISTENER:
		return new(listenerv3.Listener)
	case api.EnvoyFilter_LISTENER_FILTER:
		return new(listenerv3.ListenerFilter)
	case api.EnvoyFilter_FILTER_CHAIN:
		return new(listenerv3.FilterChain)
	case api.EnvoyFilter_NETWORK_FILTER:
		return new(listenerv3.Filter)
	case api.EnvoyFilter_HTTP_FILTER:
		return new(hcmv3.HttpFilter)
	case api.EnvoyFilter_ROUTE_CONFIGURATION:
		return new(routev3.RouteConfiguration)
	case api.EnvoyFilter_VIRTUAL_HOST:
		return new(routev3.VirtualHost)
	case api.EnvoyFilter_HTTP_ROUTE:
		return new(routev3.Route)
	case api.EnvoyFilter_CLUSTER:
		return new(clusterv3.Cluster)
	case api.EnvoyFilter_EXTENSION_CONFIG:
		return new(corev3.TypedExtensionConfig)
	}
	return nil
}

// operations lists what can be done to the kind of object that applyTo names.
// Where order does not matter an insert is an ADD.
func operations(applyTo api.EnvoyFilter_ApplyTo) []api.EnvoyFilter_Patch_Operation {
	const (
		add     = api.EnvoyFilter_Patch_ADD
		remove  = api.EnvoyFilter_Patch_REMOVE
		merge   = api.EnvoyFilter_Patch_MERGE
		lists   = api.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST
		replace = api.EnvoyFilter_Patch_REPLACE
		before  = api.EnvoyFilter_Patch_INSERT_BEFORE
		after   = api.EnvoyFilter_Patch_INSERT_AFTER
		first   = api.EnvoyFilter_Patch_INSERT_FIRST
	)
	switch applyTo {
	case api.EnvoyFilter_LISTENER, api.EnvoyFilter_FILTER_CHAIN, api.EnvoyFilter_CLUSTER, api.EnvoyFilter_HTTP_ROUTE:
		return []api.EnvoyFilter_Patch_Operation{add, remove, merge, lists, before, after, first}
	case api.EnvoyFilter_VIRTUAL_HOST:
		return []api.EnvoyFilter_Patch_Operation{add, remove, merge, lists, replace, before, after, first}
	case api.EnvoyFilter_ROUTE_CONFIGURATION:
		return []api.EnvoyFilter_Patch_Operation{merge, lists}
	}
	return []api.EnvoyFilter_Patch_Operation{add, remove, merge, replace, before, after, first}
}

// effective is p's operation, with ADD for an insert into what has no order.
func (p *patch) effective() api.EnvoyFilter_Patch_Operation {
	switch p.applyTo {
	case api.EnvoyFilter_LISTENER_FILTER, api.EnvoyFilter_NETWORK_FILTER, api.EnvoyFilter_HTTP_FILTER, api.EnvoyFilter_HTTP_ROUTE:
		return p.op
	}
	switch p.op {
	case api.EnvoyFilter_Patch_INSERT_BEFORE, api.EnvoyFilter_Patch_INSERT_AFTER, api.EnvoyFilter_Patch_INSERT_FIRST:
		return api.EnvoyFilter_Patch_ADD
	}
	return p.op
}

// checkTarget refuses what we cannot patch at all, or not in that way.
func (p *patch) checkTarget() *refusal {
	if newValue(p.applyTo) == nil {
		r := at(".applyTo", "%s cannot be patched", p.applyTo)
		switch p.applyTo {
		case api.EnvoyFilter_INVALID:
			r.message = "is missing"
		case api.EnvoyFilter_BOOTSTRAP:
			r.or("a proxy's bootstrap is the agent's to write: give it one of your own")
		}
		return r
	}
	if p.match.GetContext() == api.EnvoyFilter_WAYPOINT || p.match.GetWaypoint() != nil {
		return at(".match", "there are no waypoints here").or("use context GATEWAY, SIDECAR_INBOUND or SIDECAR_OUTBOUND")
	}
	if p.op == api.EnvoyFilter_Patch_INVALID {
		return at(".patch.operation", "is missing")
	}
	if ops := operations(p.applyTo); !slices.Contains(ops, p.op) {
		var names []string
		for _, op := range ops {
			names = append(names, op.String())
		}
		return at(".patch.operation", "%s does nothing to %s", p.op, p.applyTo).or("use one of %s", strings.Join(names, ", "))
	}
	return nil
}

// checkMatch refuses conditions that would not be looked at. To ADD, only what
// holds the new object matters; conditions further down are let be, as many
// published EnvoyFilters have them.
func (p *patch) checkMatch() []*refusal {
	if p.match.GetObjectTypes() == nil {
		return nil
	}
	add := p.op == api.EnvoyFilter_Patch_ADD
	wrong := func(kind string) []*refusal {
		return []*refusal{at(".match", "%s is matched by %s only", p.applyTo, kind)}
	}
	switch p.applyTo {
	case api.EnvoyFilter_EXTENSION_CONFIG:
		return wrong("context and proxy")
	case api.EnvoyFilter_CLUSTER:
		if p.match.GetCluster() == nil {
			return wrong("cluster")
		}
		return p.checkClusterMatch(add)
	case api.EnvoyFilter_ROUTE_CONFIGURATION, api.EnvoyFilter_VIRTUAL_HOST, api.EnvoyFilter_HTTP_ROUTE:
		if p.match.GetRouteConfiguration() == nil {
			return wrong("routeConfiguration")
		}
		return p.checkRouteMatch(add)
	}
	if p.match.GetListener() == nil {
		return wrong("listener")
	}
	return p.checkListenerMatch(add)
}

func (p *patch) checkClusterMatch(add bool) []*refusal {
	m := p.match.GetCluster()
	if !add && m.GetName() != "" && (m.GetPortNumber() != 0 || m.GetService() != "" || m.GetSubset() != "") {
		return []*refusal{at(".match.cluster", "name goes with no other condition").or("leave out portNumber, service and subset")}
	}
	return nil
}

func (p *patch) checkRouteMatch(add bool) (found []*refusal) {
	const path = ".match.routeConfiguration"
	m := p.match.GetRouteConfiguration()
	switch p.match.GetContext() {
	case api.EnvoyFilter_SIDECAR_INBOUND, api.EnvoyFilter_SIDECAR_OUTBOUND:
		if m.GetPortName() != "" {
			found = append(found, at(path+".portName", "only a gateway's routes have one").or("use portNumber"))
		}
		if m.GetGateway() != "" {
			found = append(found, at(path+".gateway", "only a gateway's routes have one"))
		}
	}
	if !add && p.applyTo == api.EnvoyFilter_ROUTE_CONFIGURATION && m.GetVhost() != nil {
		found = append(found, at(path+".vhost", "has no effect on ROUTE_CONFIGURATION").or("use applyTo VIRTUAL_HOST"))
	}
	if !add && p.applyTo == api.EnvoyFilter_VIRTUAL_HOST && m.GetVhost().GetRoute() != nil {
		found = append(found, at(path+".vhost.route", "has no effect on VIRTUAL_HOST").or("use applyTo HTTP_ROUTE"))
	}
	return found
}

func (p *patch) checkListenerMatch(add bool) (found []*refusal) {
	const path = ".match.listener"
	m := p.match.GetListener()
	if m.GetPortName() != "" {
		found = append(found, at(path+".portName", "cannot be matched, in Istio either").or("use portNumber"))
	}
	filters := p.applyTo == api.EnvoyFilter_NETWORK_FILTER || p.applyTo == api.EnvoyFilter_HTTP_FILTER
	if m.GetListenerFilter() != "" && p.applyTo != api.EnvoyFilter_LISTENER_FILTER {
		found = append(found, at(path+".listenerFilter", "has no effect on %s", p.applyTo).or("use applyTo LISTENER_FILTER"))
	}
	if !add && m.GetFilterChain() != nil && !filters && p.applyTo != api.EnvoyFilter_FILTER_CHAIN {
		return append(found, at(path+".filterChain", "has no effect on %s", p.applyTo).or("match by name or portNumber, or use applyTo FILTER_CHAIN"))
	}
	f := m.GetFilterChain().GetFilter()
	if f == nil || add && !filters {
		return found
	}
	if !filters {
		return append(found, at(path+".filterChain.filter", "has no effect on %s", p.applyTo).or("use applyTo NETWORK_FILTER"))
	}
	return append(found, p.checkFilterMatch(f)...)
}

func (p *patch) checkFilterMatch(f *api.EnvoyFilter_ListenerMatch_FilterMatch) (found []*refusal) {
	const path = ".match.listener.filterChain.filter"
	if f.GetName() == "" {
		found = append(found, at(path+".name", "is missing"))
	}
	if p.applyTo == api.EnvoyFilter_NETWORK_FILTER {
		if f.GetSubFilter() != nil {
			found = append(found, at(path+".subFilter", "has no effect on NETWORK_FILTER").or("use applyTo HTTP_FILTER"))
		}
		return found
	}
	if f.GetName() != "" && !sameFilter(networkLayer, f.GetName(), hcmName) {
		found = append(found, at(path+".name", "no HTTP filters are in %q", f.GetName()).or("use %s", hcmName))
	}
	if f.GetSubFilter() != nil && f.GetSubFilter().GetName() == "" {
		found = append(found, at(path+".subFilter.name", "is missing"))
	}
	return found
}

// checkSelection refuses to remove a filter without saying which.
func (p *patch) checkSelection() *refusal {
	if p.op != api.EnvoyFilter_Patch_REMOVE || p.selectsFilter() {
		return nil
	}
	field := ".match.listener.listenerFilter"
	switch p.applyTo {
	case api.EnvoyFilter_NETWORK_FILTER:
		field = ".match.listener.filterChain.filter"
	case api.EnvoyFilter_HTTP_FILTER:
		field = ".match.listener.filterChain.filter.subFilter"
	}
	return at(field, "is missing: it says which filter to remove")
}

func (p *patch) compileProxy() []*refusal {
	const path = ".match.proxy.proxyVersion"
	version := p.match.GetProxy().GetProxyVersion()
	if version == "" {
		return nil
	}
	if len(version) > maxVersion {
		return []*refusal{at(path, "is longer than %d bytes", maxVersion)}
	}
	re, err := regexp.Compile(version)
	if err != nil {
		return []*refusal{at(path, "is not a regular expression: %v", err)}
	}
	p.version = re
	return nil
}

// compileValue decodes the patch's value and refuses one that Envoy would reject
// whatever it is put into. What remote module an extension config names may lack
// what Envoy wants of it: the agent fetches it, and Envoy never sees that.
func (p *patch) compileValue(v *structpb.Struct) []*refusal {
	const path = ".patch.value"
	if p.op == api.EnvoyFilter_Patch_REMOVE && p.applyTo != api.EnvoyFilter_EXTENSION_CONFIG {
		return nil
	}
	if v == nil {
		return []*refusal{at(path, "is missing")}
	}
	value := newValue(p.applyTo)
	if found := decode(v, value, path); len(found) > 0 {
		return found
	}
	p.value = value
	if p.isWhole() {
		return p.checkWhole()
	}
	if named, ok := value.(*corev3.TypedExtensionConfig); ok && named.GetName() == "" {
		return []*refusal{at(path+".name", "is missing: it says which extension config is meant")}
	}
	if f, ok := value.(filterConfig); ok && p.op == api.EnvoyFilter_Patch_MERGE && !p.selectsFilter() && f.GetTypedConfig().GetTypeUrl() == "" {
		return []*refusal{at(".match", "names no filter, and the value has no typed_config that would tell").or("match the filter by name")}
	}
	return nil
}

// isWhole reports whether p's value is a whole object, not a part to be merged.
func (p *patch) isWhole() bool {
	return !slices.Contains([]api.EnvoyFilter_Patch_Operation{
		api.EnvoyFilter_Patch_MERGE, api.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST, api.EnvoyFilter_Patch_REMOVE,
	}, p.op)
}

// selectsFilter reports whether the one object that p is for is named.
func (p *patch) selectsFilter() bool {
	m := p.match.GetListener()
	switch p.applyTo {
	case api.EnvoyFilter_LISTENER_FILTER:
		return m.GetListenerFilter() != ""
	case api.EnvoyFilter_NETWORK_FILTER:
		return m.GetFilterChain().GetFilter() != nil
	case api.EnvoyFilter_HTTP_FILTER:
		return m.GetFilterChain().GetFilter().GetSubFilter() != nil
	}
	return true
}

// checkWhole refuses a whole object that lacks what Envoy wants of any such.
func (p *patch) checkWhole() []*refusal {
	const path = ".patch.value"
	if r := invalid(p.value); r != nil {
		r.field = path + r.field
		return []*refusal{r}
	}
	switch v := p.value.(type) {
	case *listenerv3.Listener:
		if v.GetName() == "" {
			return []*refusal{at(path+".name", "is missing")}
		}
	case filterConfig:
		discovery, ok := p.value.(interface {
			GetConfigDiscovery() *corev3.ExtensionConfigSource
		})
		if v.GetTypedConfig().GetTypeUrl() == "" && (!ok || discovery.GetConfigDiscovery() == nil) {
			return []*refusal{at(path+".typed_config", "is missing").or("give typed_config with an @type, or config_discovery")}
		}
	}
	return nil
}

package translate

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// extensionTypes are what an extension's filter may turn out to be: itself, or
// the deny-all or allow-all that stands in for it.
func extensionTypes(layer string) []string {
	prefix := "type.googleapis.com/envoy.extensions.filters." + layer
	return []string{prefix + ".wasm.v3.Wasm", prefix + ".rbac.v3.RBAC"}
}

// A chain is one filter chain: what its filters and its extensions need to know.
type chain struct {
	mode       mesh.Mode
	port       uint32 // that extensions match: of the listener, or inbound of the workload; 0 is none
	statPrefix string
	routes     string                      // name of the route configuration, from ADS
	inline     *routev3.RouteConfiguration // instead of routes
	gateway    bool
	http2      bool
}

// httpFilters are the network filters of a chain of requests: network
// extensions, then the connection manager.
func (b *builder) httpFilters(c chain) []*listenerv3.Filter {
	return append(b.networkExtensions(c), networkFilter(hcmFilter, b.connectionManager(c)))
}

// tcpFilters are the network filters of a chain of connections.
func (b *builder) tcpFilters(c chain, terminal *tcpproxyv3.TcpProxy) []*listenerv3.Filter {
	return append(b.networkExtensions(c), networkFilter(tcpProxyFilter, terminal))
}

func (b *builder) networkExtensions(c chain) []*listenerv3.Filter {
	var out []*listenerv3.Filter
	for _, e := range b.chosen(c, true) {
		out = append(out, &listenerv3.Filter{Name: e.Resource, ConfigType: &listenerv3.Filter_ConfigDiscovery{
			ConfigDiscovery: discovered("network"),
		}})
	}
	return out
}

// chosen are the extensions of a kind that want this chain, in order.
func (b *builder) chosen(c chain, network bool) []*mesh.Extension {
	var out []*mesh.Extension
	for _, e := range b.extensions {
		if e.Network == network && e.Matches(c.mode, c.port) {
			b.used[e] = true
			out = append(out, e)
		}
	}
	return out
}

// discovered has Envoy ask for the filter's configuration over ADS, and hold a
// new listener back, without limit, until it is there.
func discovered(layer string) *corev3.ExtensionConfigSource {
	return &corev3.ExtensionConfigSource{ConfigSource: ads(), TypeUrls: extensionTypes(layer)}
}

func (b *builder) connectionManager(c chain) *hcmv3.HttpConnectionManager {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix:        c.statPrefix,
		HttpFilters:       b.requestFilters(c),
		NormalizePath:     yes(),
		UseRemoteAddress:  no(),
		StreamIdleTimeout: seconds(0), // long streams are the application's business
		UpgradeConfigs:    []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
	if c.gateway {
		m.UseRemoteAddress = yes()
		m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
		m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: yes(), Cert: true, Dns: true, Uri: true,
		}
	}
	if c.http2 {
		m.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	}
	if c.inline != nil {
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: c.inline}
	} else {
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: c.routes}}
	}
	return m
}

// requestFilters are the extensions, in their order, then fault and CORS, which
// do nothing unless a route says so, then the router.
func (b *builder) requestFilters(c chain) []*hcmv3.HttpFilter {
	var out []*hcmv3.HttpFilter
	for _, e := range b.chosen(c, false) {
		if e.Config == nil {
			out = append(out, b.script(e))
			continue
		}
		out = append(out, &hcmv3.HttpFilter{Name: e.Resource, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{
			ConfigDiscovery: discovered("http"),
		}})
	}
	return append(out,
		requestFilter(faultFilter, &faultv3.HTTPFault{}),
		requestFilter(corsFilter, &corsv3.Cors{}),
		requestFilter(routerFilter, &routerv3.Router{}),
	)
}

// script is the filter of a Lua extension. In the place of one that cannot run all
// requests are denied, as in that of a Wasm extension without a module.
func (b *builder) script(e *mesh.Extension) *hcmv3.HttpFilter {
	if b.proxy.Engine {
		b.refuse(e.Object, "spec.lua", "the embedded engine, which some of the proxies are, has no Lua: requests to them are answered 403",
			"run the proxies with Envoy, write the extension as Wasm, or choose other proxies")
		return requestFilter(e.Resource, &httprbacv3.RBAC{Rules: new(rbacv3.RBAC)})
	}
	return requestFilter(e.Resource, &luav3.Lua{DefaultSourceCode: &corev3.DataSource{
		Specifier: &corev3.DataSource_InlineString{InlineString: e.Lua},
	}})
}

func requestFilter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(config)}}
}

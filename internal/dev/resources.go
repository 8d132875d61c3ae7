package dev

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chandler-proxy/chandler/internal/ecds"
)

const (
	upstreamCluster = "upstream"
	extensionName   = "plugin"
	routesName      = "routes"
)

// notYet is what requests are answered before there is a module.
const notYet = "chandler plugin dev has no module that works yet: see where it runs\n"

// A route is the way of requests: what the engine is configured to, but for the plugin.
type route struct {
	listen   netip.AddrPort
	network  bool // the plugin is a network filter
	clusters []*clusterv3.Cluster
	open     bool // requests go on to the upstream
}

// url is where clients are served.
func (r route) url() string {
	if r.network {
		return r.listen.String()
	}
	return "http://" + r.listen.String()
}

// meanwhile is what becomes of clients while there is no plugin.
func (r route) meanwhile() string {
	if r.network {
		return "connections are closed"
	}
	return "requests are answered with 503"
}

// resources are all but the extension.
func (r route) resources() []proto.Message {
	list := []proto.Message{r.listener()}
	for _, c := range r.clusters {
		list = append(list, c)
	}
	if !r.network {
		list = append(list, r.routes())
	}
	return list
}

func (r route) listener() *listenerv3.Listener {
	filters := []*listenerv3.Filter{networkFilter("envoy.filters.network.http_connection_manager", r.manager())}
	if r.network {
		filters = []*listenerv3.Filter{
			{Name: extensionName, ConfigType: &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: discovered("network")}},
			networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
				StatPrefix: "dev", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: upstreamCluster},
			}),
		}
	}
	return &listenerv3.Listener{
		Name: "dev", Address: address(r.listen.Addr().String(), uint32(r.listen.Port())),
		FilterChains: []*listenerv3.FilterChain{{Filters: filters}},
	}
}

// manager is that of a gateway: it believes no client who it is.
func (r route) manager() *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:        "dev",
		UseRemoteAddress:  wrapperspb.Bool(true),
		NormalizePath:     wrapperspb.Bool(true),
		StreamIdleTimeout: durationpb.New(0),
		UpgradeConfigs:    []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: ads(), RouteConfigName: routesName,
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			{Name: extensionName, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered("http")}},
			{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(&routerv3.Router{})}},
		},
	}
}

func (r route) routes() *routev3.RouteConfiguration {
	all := &routev3.Route{
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 503, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: notYet}},
		}},
	}
	if r.open {
		all.Action = &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: upstreamCluster}, Timeout: durationpb.New(0),
		}}
	}
	return &routev3.RouteConfiguration{
		Name:         routesName,
		VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{all}}},
	}
}

// standIn is the extension before there is a module: none lets no connection through,
// and requests, which are answered, all.
func (r route) standIn() *corev3.TypedExtensionConfig {
	var filter proto.Message = &httprbacv3.RBAC{}
	if r.network {
		filter = &netrbacv3.RBAC{StatPrefix: "dev_", Rules: &rbacv3.RBAC{}}
	}
	return &corev3.TypedExtensionConfig{Name: extensionName, TypedConfig: anyOf(filter)}
}

// clusters are where the engine may connect to: the upstream and those that plugins call.
func clusters(upstream string, more map[string]string) ([]*clusterv3.Cluster, error) {
	c, err := cluster(upstreamCluster, upstream)
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	list := []*clusterv3.Cluster{c}
	for _, name := range slices.Sorted(maps.Keys(more)) {
		c, err := cluster(name, more[name])
		if err != nil {
			return nil, fmt.Errorf("cluster %s: %w", name, err)
		}
		if name == upstreamCluster {
			return nil, fmt.Errorf("cluster %s: the name is that of the upstream", name)
		}
		list = append(list, c)
	}
	return list, nil
}

// cluster is one of a single address, given as HOST:PORT or http://HOST:PORT.
func cluster(name, at string) (*clusterv3.Cluster, error) {
	if strings.Contains(at, "://") {
		u, err := url.Parse(at)
		if err != nil || u.Scheme != "http" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			return nil, fmt.Errorf("%q: %w", at, ErrUpstream)
		}
		if at = u.Host; u.Port() == "" {
			at = net.JoinHostPort(u.Hostname(), "80")
		}
	}
	host, text, err := net.SplitHostPort(at)
	port, wrong := strconv.ParseUint(text, 10, 16)
	if err != nil || wrong != nil || port == 0 || host == "" {
		return nil, fmt.Errorf("%q: %w", at, ErrUpstream)
	}
	kind := clusterv3.Cluster_STRICT_DNS
	if _, err := netip.ParseAddr(host); err == nil {
		kind = clusterv3.Cluster_STATIC
	}
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: kind},
		ConnectTimeout:       durationpb.New(10 * time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(host, uint32(port))}},
			}}}},
		},
	}, nil
}

// settings are what a plugin is told, and what kind it is.
type settings struct {
	plugin  *wasmv3.PluginConfig // without the module
	network bool                 // the resource says that it is a network filter
}

// extension is the plugin with its module. One that fails is started anew for the next
// request, unless its resource lets requests pass then.
func (s settings) extension(module string, network bool) *corev3.TypedExtensionConfig {
	p := proto.CloneOf(s.plugin)
	vm := p.GetVmConfig()
	if vm == nil {
		vm = new(wasmv3.VmConfig)
	}
	vm.Runtime, vm.VmId = "envoy.wasm.runtime.v8", ""
	vm.Code = &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{
		Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: module}},
	}}
	maps.DeleteFunc(vm.GetEnvironmentVariables().GetKeyValues(), func(key, _ string) bool { return strings.HasPrefix(key, ecds.MetaPrefix) })
	p.Vm = &wasmv3.PluginConfig_VmConfig{VmConfig: vm}
	if p.FailurePolicy != wasmv3.FailurePolicy_FAIL_OPEN {
		p.FailurePolicy = wasmv3.FailurePolicy_FAIL_RELOAD
		p.ReloadConfig = &wasmv3.ReloadConfig{Backoff: &corev3.BackoffStrategy{BaseInterval: durationpb.New(time.Millisecond)}}
	}
	var filter proto.Message = &httpwasmv3.Wasm{Config: p}
	if network {
		filter = &netwasmv3.Wasm{Config: p}
	}
	return &corev3.TypedExtensionConfig{Name: extensionName, TypedConfig: anyOf(filter)}
}

func networkFilter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(config)}}
}

// discovered is the place of the extension: a plugin or what stands in for it.
func discovered(layer string) *corev3.ExtensionConfigSource {
	prefix := "type.googleapis.com/envoy.extensions.filters." + layer
	return &corev3.ExtensionConfigSource{ConfigSource: ads(), TypeUrls: []string{prefix + ".wasm.v3.Wasm", prefix + ".rbac.v3.RBAC"}}
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(0),
	}
}

func address(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// anyOf packs m, deterministically: equal resources have equal versions. That fails for
// invalid UTF-8 only, which settings and addresses are checked for.
func anyOf(m proto.Message) *anypb.Any {
	out := new(anypb.Any)
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err)
	}
	return out
}

package envoy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	internallistenerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// XDSCluster is the name of the static cluster that leads to the agent, as in
// Istio's bootstrap.
const XDSCluster = "xds-grpc"

// maxSocketPath is the longest path of a Unix socket, in bytes. The kernel takes
// 107; what is left is for a suffix, should Envoy or a tool add one.
const maxSocketPath = 99

// How soon Envoy comes back to an agent that was restarted. Its own default, 500
// ms growing to 30 s, would leave a proxy half a minute behind.
const (
	reconnectBase = 100 * time.Millisecond
	reconnectMax  = 2 * time.Second
)

// A Bootstrap is what Envoy must know to ask an agent for everything else.
// Proxy and Socket are required.
type Bootstrap struct {
	Proxy           mesh.Proxy     // who the proxy is; see [Node]
	Service         string         // node cluster; default WORKLOAD.NAMESPACE
	Socket          string         // absolute path of the agent's Unix socket
	StateOfTheWorld bool           // ask for whole sets instead of changes
	Admin           netip.AddrPort // default 127.0.0.1:15000; port 0 lets the kernel choose
	MaxConnections  int64          // downstream connections held at once; default 50,000
}

func (b Bootstrap) withDefaults() (Bootstrap, error) {
	if err := CheckSocket(b.Socket); err != nil {
		return b, err
	}
	if b.MaxConnections < 0 {
		return b, errors.New("max connections: negative")
	}
	if !b.Admin.IsValid() {
		b.Admin = netip.MustParseAddrPort("127.0.0.1:15000")
	}
	b.MaxConnections = cmp.Or(b.MaxConnections, 50_000)
	return b, nil
}

// CheckSocket returns an error if path cannot be a Unix socket's that Envoy
// connects to.
func CheckSocket(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("xDS socket %q: not an absolute path", path)
	}
	if len(path) > maxSocketPath {
		return fmt.Errorf("xDS socket %s: path is %d bytes long, at most %d are possible: choose a shorter data directory",
			path, len(path), maxSocketPath)
	}
	return nil
}

// Encode returns the bootstrap as indented JSON. Equal values give equal bytes.
func (b Bootstrap) Encode() ([]byte, error) {
	b, err := b.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	msg, err := b.message()
	if err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	// protojson varies its white space on purpose; written anew it does not.
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func (b Bootstrap) message() (*bootstrapv3.Bootstrap, error) {
	node, err := Node(b.Proxy, b.Service)
	if err != nil {
		return nil, err
	}
	cluster, err := xdsCluster(b.Socket)
	if err != nil {
		return nil, err
	}
	overload, err := overload(b.MaxConnections)
	if err != nil {
		return nil, err
	}
	extensions, err := bootstrapExtensions()
	if err != nil {
		return nil, err
	}
	return &bootstrapv3.Bootstrap{
		Node:                node,
		Admin:               admin(b.Admin),
		DynamicResources:    dynamicResources(b.StateOfTheWorld),
		StaticResources:     &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{cluster}},
		BootstrapExtensions: extensions,
		StatsConfig:         statsConfig(),
		LayeredRuntime:      runtimeLayers(),
		OverloadManager:     overload,
	}, nil
}

func admin(addr netip.AddrPort) *bootstrapv3.Admin {
	return &bootstrapv3.Admin{
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address:       addr.Addr().String(),
			PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(addr.Port())},
		}}},
		// Health must be known also when the proxy is full.
		IgnoreGlobalConnLimit: true,
	}
}

// dynamicResources asks for listeners and clusters over one ADS stream. Neither
// has a fetch timeout: a proxy that has not been told its listeners is not
// ready, however long it takes.
func dynamicResources(sotw bool) *bootstrapv3.Bootstrap_DynamicResources {
	ads := func() *corev3.ConfigSource {
		return &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: new(corev3.AggregatedConfigSource)},
			InitialFetchTimeout:   new(durationpb.Duration),
			ResourceApiVersion:    corev3.ApiVersion_V3,
		}
	}
	api := corev3.ApiConfigSource_DELTA_GRPC
	if sotw {
		api = corev3.ApiConfigSource_GRPC
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		LdsConfig: ads(),
		CdsConfig: ads(),
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   api,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices:              []*corev3.GrpcService{xdsService()},
		},
	}
}

func xdsService() *corev3.GrpcService {
	return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: XDSCluster,
			RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
				BaseInterval: durationpb.New(reconnectBase),
				MaxInterval:  durationpb.New(reconnectMax),
			}},
		},
	}}
}

func xdsCluster(socket string) (*clusterv3.Cluster, error) {
	http2, err := anypb.New(&upstreamhttpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: new(corev3.Http2ProtocolOptions),
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return &clusterv3.Cluster{
		Name:                 XDSCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(time.Second),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
		},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: XDSCluster,
			Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{pipe(socket)}}},
		},
	}, nil
}

func pipe(path string) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
		Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}},
	}}}
}

// bootstrapExtensions lets a control plane send internal listeners, as istiod does.
func bootstrapExtensions() ([]*corev3.TypedExtensionConfig, error) {
	internal, err := anypb.New(new(internallistenerv3.InternalListener))
	if err != nil {
		return nil, err
	}
	return []*corev3.TypedExtensionConfig{{Name: "envoy.bootstrap.internal_listener", TypedConfig: internal}}, nil
}

// statsConfig adds to Envoy's own tags those that Istio's bootstrap gives to
// plugins: a metric wasm_filter.NAME.cache.hit.count is printed as
// count{wasm_filter="NAME",cache="hit"}. Istio's expressions are not anchored
// and would also cut up the names of Envoy's caches; these see plugins' metrics
// only. Nothing else is needed for a plugin's metric to be printed under its very
// name at /stats/prometheus: Envoy registers wasmcustom as a custom stat
// namespace and leaves it, and the usual prefix envoy_, away.
func statsConfig() *metricsv3.StatsConfig {
	tag := func(name, end string) *metricsv3.TagSpecifier {
		return &metricsv3.TagSpecifier{
			TagName: name,
			TagValue: &metricsv3.TagSpecifier_Regex{
				Regex: `^wasmcustom\.(?:.*?\.)?(` + name + `\.(.+?)` + end + `)`,
			},
		}
	}
	return &metricsv3.StatsConfig{StatsTags: []*metricsv3.TagSpecifier{
		tag("cache", `\.`),
		tag("component", `\.`),
		tag("tag", `;\.`),
		tag("wasm_filter", `\.`),
	}}
}

// runtimeLayers allows the size of regular expression that Istio allows; Envoy's
// default of 100 refuses many that are in use. The admin layer makes
// /runtime_modify work.
func runtimeLayers() *bootstrapv3.LayeredRuntime {
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{
		{
			Name: "static",
			LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{Fields: map[string]*structpb.Value{
				"re2.max_program_size.error_level": structpb.NewNumberValue(32768),
			}}},
		},
		{
			Name:           "admin",
			LayerSpecifier: &bootstrapv3.RuntimeLayer_AdminLayer_{AdminLayer: new(bootstrapv3.RuntimeLayer_AdminLayer)},
		},
	}}
}

func overload(maxConnections int64) (*overloadv3.OverloadManager, error) {
	typed, err := anypb.New(&downstreamv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: maxConnections})
	if err != nil {
		return nil, err
	}
	return &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
		Name:       "envoy.resource_monitors.global_downstream_max_connections",
		ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: typed},
	}}}, nil
}

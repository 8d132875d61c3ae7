package translate

import (
	"math"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Well-known names of Envoy's extensions.
const (
	hcmFilter       = "envoy.filters.network.http_connection_manager"
	tcpProxyFilter  = "envoy.filters.network.tcp_proxy"
	routerFilter    = "envoy.filters.http.router"
	corsFilter      = "envoy.filters.http.cors"
	faultFilter     = "envoy.filters.http.fault"
	tlsInspector    = "envoy.filters.listener.tls_inspector"
	httpInspector   = "envoy.filters.listener.http_inspector"
	originalDst     = "envoy.filters.listener.original_dst"
	tlsSocket       = "envoy.transport_sockets.tls"
	httpOptions     = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	previousHosts   = "envoy.retry_host_predicates.previous_hosts"
	passthrough     = "PassthroughCluster"
	blackHole       = "BlackHoleCluster"
	inboundPass     = "InboundPassthroughCluster"
	unknownCluster  = "UnknownService" // is in no snapshot: routes to it answer what they say for a missing cluster
	maxDirectAnswer = 1 << 20          // bytes of a direct response's body
)

// Ports that redirection leads to.
const (
	outboundListener = 15001
	inboundListener  = 15006
)

// adminPort is that of the proxy's administration, at the loopback address.
const adminPort = 15000

// Ports that the agent has at all addresses: for metrics and health, and, beside a
// gateway, for health alone.
const (
	statusPort = 15020
	healthPort = 15021
)

// internalServerError is what a route answers that cannot be honoured. This
// package does not know net/http.
const internalServerError = 500

// anyOf packs m deterministically. Marshalling fails for invalid UTF-8 only, and
// what users write is checked for that where it is read.
func anyOf(m proto.Message) *anypb.Any {
	out := new(anypb.Any)
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true, AllowPartial: true}); err != nil {
		panic(err)
	}
	return out
}

// ads is where everything comes from. Envoy waits without limit for what it
// was promised: the control plane promises only what it has.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(0),
	}
}

func address(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       ip,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

func tcpProxy(statPrefix, cluster string) *tcpproxyv3.TcpProxy {
	return &tcpproxyv3.TcpProxy{
		StatPrefix:       statPrefix,
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
	}
}

func networkFilter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(config)}}
}

func listenerFilter(name string, config proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: anyOf(config)},
	}
}

// clusterName is DIRECTION|PORT|SUBSET|HOST.
func clusterName(direction string, port uint32, subset, host string) string {
	return direction + "|" + number(port) + "|" + subset + "|" + host
}

func listenerName(ip string, port uint32) string { return ip + "_" + number(port) }

// authority is a host, or an address, as a request has it.
func authority(host string) string {
	if strings.Contains(host, ":") { // IPv6
		return "[" + host + "]"
	}
	return host
}

func hostPort(host string, port uint32) string {
	return authority(host) + ":" + number(port)
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func seconds(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Second) }

func yes() *wrapperspb.BoolValue { return wrapperspb.Bool(true) }
func no() *wrapperspb.BoolValue  { return wrapperspb.Bool(false) }

func unlimited() *wrapperspb.UInt32Value { return wrapperspb.UInt32(math.MaxUint32) }

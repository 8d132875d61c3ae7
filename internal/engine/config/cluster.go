package config

import (
	"net/netip"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	defaultConnectTimeout = 5 * time.Second
	defaultDNSRefresh     = 5 * time.Second
	defaultUpstreamIdle   = time.Hour
	httpOptions           = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	defaultLimit          = 1024 // of a circuit breaker
	defaultRetryLimit     = 3
	defaultPanic          = 50 // percent
)

// Discovery is how a cluster finds its endpoints.
type Discovery uint8

const (
	Static Discovery = iota
	EDS
	DNS
	OriginalDst
)

// A Cluster is a set of endpoints and how to reach them.
type Cluster struct {
	Name        string
	StatName    string
	Discovery   Discovery
	Service     string        // name of its endpoints, of EDS
	Timeout     time.Duration // how long to wait for them at first; 0 is forever
	Connect     time.Duration
	Balance     clusterv3.Cluster_LbPolicy
	Hashing     Hashing    // of RING_HASH and MAGLEV
	Endpoints   []Endpoint // of Static and DNS
	DNSRefresh  time.Duration
	FirstOnly   bool // of the addresses of a name, of DNS, the first is used
	Family      clusterv3.Cluster_DnsLookupFamily
	Source      netip.AddrPort // to connect from; zero for any
	TLS         *TLS
	HTTP2       bool
	AutoSNI     bool
	AutoSAN     bool
	MaxRequests uint32        // on one connection; 0 for no limit
	Idle        time.Duration // of a connection; 0 for no limit
	Limits      Limits
	Outliers    *Outliers // nil: no endpoint is ejected
	Panic       float64   // below this share of good endpoints, in percent, all are used
	Identity    string    // equal for clusters of equal meaning
	Message     *clusterv3.Cluster
}

// Limits are a cluster's circuit breakers.
type Limits struct {
	Connections, Pending, Requests, Retries int64
}

// An Endpoint is where a cluster's requests go.
type Endpoint struct {
	Host   string // an IP address, or a name, of DNS
	Port   uint16
	Pipe   string // path of a Unix socket, in place of Host and Port
	Weight uint32 // 1 at least
}

// DecodeCluster decodes a cluster.
func DecodeCluster(m *clusterv3.Cluster) (*Cluster, error) {
	d := new(decoder)
	if !d.start("", m) {
		return nil, d.err
	}
	c := &Cluster{
		Name: m.GetName(), StatName: m.GetName(), Message: m,
		Connect: duration(m.GetConnectTimeout(), defaultConnectTimeout),
		Balance: m.GetLbPolicy(),
		//lint:ignore SA1019 control planes write it, ours too
		DNSRefresh: duration(m.GetDnsRefreshRate(), defaultDNSRefresh),
		Family:     m.GetDnsLookupFamily(),
		TLS:        d.upstreamTLS("transport_socket", m.GetTransportSocket()),
		Idle:       defaultUpstreamIdle,
	}
	if m.GetAltStatName() != "" {
		c.StatName = m.GetAltStatName()
	}
	//lint:ignore SA1019 control planes write it, ours too
	if m.GetRespectDnsTtl() {
		// Go's resolver does not tell the TTL: ask often enough for short ones.
		c.DNSRefresh = min(c.DNSRefresh, defaultDNSRefresh)
	}
	d.discovery(m, c)
	d.balance(c)
	c.Hashing = d.hashing(m)
	c.Limits = limits(m.GetCircuitBreakers())
	c.Outliers = d.outliers("outlier_detection", m.GetOutlierDetection())
	c.Panic = defaultPanic
	if p := m.GetCommonLbConfig().GetHealthyPanicThreshold(); p != nil {
		c.Panic = p.GetValue()
	}
	d.protocol(m, c)
	if s := m.GetUpstreamBindConfig().GetSourceAddress(); s != nil {
		c.Source = d.address("upstream_bind_config.source_address", &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: s}})
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		d.fail("", "%v", err)
	}
	c.Identity = string(raw)
	if d.err != nil {
		return nil, d.err
	}
	return c, nil
}

func (d *decoder) discovery(m *clusterv3.Cluster, c *Cluster) {
	switch m.GetType() {
	case clusterv3.Cluster_STATIC:
		c.Discovery = Static
	case clusterv3.Cluster_STRICT_DNS:
		c.Discovery = DNS
	case clusterv3.Cluster_LOGICAL_DNS:
		c.Discovery, c.FirstOnly = DNS, true
	case clusterv3.Cluster_ORIGINAL_DST:
		c.Discovery = OriginalDst
	case clusterv3.Cluster_EDS:
		c.Discovery, c.Service = EDS, m.GetEdsClusterConfig().GetServiceName()
		if c.Service == "" {
			c.Service = c.Name
		}
		c.Timeout = d.ads("eds_cluster_config.eds_config", m.GetEdsClusterConfig().GetEdsConfig())
	default:
		d.fail("type", "%s is not supported by the engine", m.GetType())
	}
	if a := m.GetLoadAssignment(); a != nil {
		if c.Discovery != Static && c.Discovery != DNS {
			d.fail("load_assignment", "a cluster of type %s has none", m.GetType())
		}
		c.Endpoints = d.endpoints("load_assignment", a, c.Discovery == DNS)
		if c.FirstOnly && len(c.Endpoints) != 1 {
			d.fail("load_assignment", "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint") // Envoy's words
		}
	}
}

func (d *decoder) balance(c *Cluster) {
	switch c.Balance {
	case clusterv3.Cluster_ROUND_ROBIN, clusterv3.Cluster_LEAST_REQUEST, clusterv3.Cluster_RANDOM, clusterv3.Cluster_RING_HASH, clusterv3.Cluster_MAGLEV:
		if c.Discovery == OriginalDst {
			d.fail("lb_policy", "%s does not go with ORIGINAL_DST", c.Balance)
		}
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		if c.Discovery != OriginalDst {
			d.fail("lb_policy", "CLUSTER_PROVIDED goes with ORIGINAL_DST only")
		}
	default:
		d.fail("lb_policy", "%s is not supported by the engine", c.Balance)
	}
}

// limits are those of the default priority, which all requests have.
func limits(m *clusterv3.CircuitBreakers) Limits {
	l := Limits{Connections: defaultLimit, Pending: defaultLimit, Requests: defaultLimit, Retries: defaultRetryLimit}
	for _, t := range m.GetThresholds() {
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue
		}
		set := func(to *int64, v *wrapperspb.UInt32Value) {
			if v != nil {
				*to = int64(v.GetValue())
			}
		}
		set(&l.Connections, t.GetMaxConnections())
		set(&l.Pending, t.GetMaxPendingRequests())
		set(&l.Requests, t.GetMaxRequests())
		set(&l.Retries, t.GetMaxRetries())
	}
	return l
}

func (d *decoder) protocol(m *clusterv3.Cluster, c *Cluster) {
	for name, a := range m.GetTypedExtensionProtocolOptions() {
		path := "typed_extension_protocol_options[" + name + "]"
		if name != httpOptions {
			d.fail(path, "not supported by the engine")
			return
		}
		o := new(upstreamhttpv3.HttpProtocolOptions)
		if !d.unpack(path, a, o) {
			return
		}
		c.HTTP2 = o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil
		c.AutoSNI = o.GetUpstreamHttpProtocolOptions().GetAutoSni()
		c.AutoSAN = o.GetUpstreamHttpProtocolOptions().GetAutoSanValidation()
		c.MaxRequests = o.GetCommonHttpProtocolOptions().GetMaxRequestsPerConnection().GetValue()
		c.Idle = duration(o.GetCommonHttpProtocolOptions().GetIdleTimeout(), defaultUpstreamIdle)
	}
	if c.TLS != nil && len(c.TLS.ALPN) > 0 && !(c.HTTP2 && slices.Equal(c.TLS.ALPN, []string{"h2"})) {
		d.fail("transport_socket.typed_config.common_tls_context.alpn_protocols", "not supported by the engine for an upstream: its protocol is what explicit_http_config says")
	}
}

// DecodeEndpoints decodes the endpoints of an EDS cluster.
func DecodeEndpoints(m *endpointv3.ClusterLoadAssignment) ([]Endpoint, error) {
	d := new(decoder)
	var list []Endpoint
	if d.start("", m) {
		list = d.endpoints("", m, false)
	}
	return list, d.err
}

func (d *decoder) endpoints(path string, m *endpointv3.ClusterLoadAssignment, names bool) []Endpoint {
	var list []Endpoint
	for i, l := range m.GetEndpoints() {
		for j, e := range l.GetLbEndpoints() {
			p := at(in(at(in(path, "endpoints"), i), "lb_endpoints"), j)
			switch e.GetHealthStatus() {
			case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
				list = append(list, d.endpoint(in(p, "endpoint.address"), e, names))
			case corev3.HealthStatus_DEGRADED:
				d.fail(in(p, "health_status"), "DEGRADED is not supported by the engine")
			}
		}
	}
	return list
}

func (d *decoder) endpoint(path string, m *endpointv3.LbEndpoint, names bool) Endpoint {
	e := Endpoint{Weight: 1}
	if m.GetLoadBalancingWeight() != nil {
		e.Weight = m.GetLoadBalancingWeight().GetValue()
	}
	a := m.GetEndpoint().GetAddress()
	switch {
	case a.GetPipe() != nil:
		e.Pipe = a.GetPipe().GetPath()
	case names && a.GetSocketAddress() != nil:
		e.Host, e.Port = a.GetSocketAddress().GetAddress(), uint16(a.GetSocketAddress().GetPortValue())
	default:
		addr := d.address(path, a)
		e.Host, e.Port = addr.Addr().String(), addr.Port()
	}
	return e
}

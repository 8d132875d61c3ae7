package config

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
)

// maxFilters is how many filters a chain may have.
const maxFilters = 64

// Envoy's defaults.
const (
	defaultInspectTimeout = 15 * time.Second
	defaultBufferLimit    = 1 << 20
	defaultTCPIdle        = time.Hour
)

// A Listener is an address, and what becomes of the connections to it.
type Listener struct {
	Name    string
	Address netip.AddrPort // port 0 lets the kernel choose
	Bind    bool           // whether it has a socket; otherwise another listener hands it connections

	Inbound          bool          // traffic_direction
	Direction        int64         // its number
	UseOriginalDst   bool          // hands connections to the listener of their original destination, if there is one
	OriginalDst      bool          // finds out the original destination
	InspectTLS       *Inspector    // reads the server name and the protocols that a TLS client offers
	InspectHTTP      *Inspector    // finds out whether plain text is HTTP, and which
	InspectTimeout   time.Duration // how long a client may take to say enough; 0 is forever
	ContinueOnSilent bool          // takes a client that said nothing in that time
	BufferLimit      int

	Chains  []*FilterChain
	Default *FilterChain // when no other matches; may be nil

	AccessLogs []*AccessLog // of connections

	Message *listenerv3.Listener
}

// An Inspector looks at the first bytes of connections. nil looks at none.
type Inspector struct {
	off func(port uint16) bool
}

// On reports whether it looks at connections to that port.
func (i *Inspector) On(port uint16) bool { return i != nil && !i.off(port) }

// A FilterChain says what becomes of a connection. Of its network filters the last,
// and only the last, is HTTP or TCP.
type FilterChain struct {
	Name     string
	Match    Match
	TLS      *TLS // nil for plain text
	Network  []Filter
	HTTP     *HTTP
	TCP      *TCP
	Identity string // equal for chains of equal meaning
}

// A Match says which connections a filter chain is for; what is empty is for all.
type Match struct {
	Port         uint32 // 0 for any
	Prefixes     []netip.Prefix
	ServerNames  []string // in lower case; may start with *.
	Transport    string   // raw_buffer or tls
	Applications []string
}

// A TCP proxies bytes to one of several clusters.
type TCP struct {
	StatPrefix string
	Clusters   []Weighted
	Idle       time.Duration // 0 for no limit
	Hash       HashRules
	AccessLogs []*AccessLog
}

// A Weighted is a cluster with a share of the traffic.
type Weighted struct {
	Cluster string
	Weight  uint32

	// Of HTTP only.
	Request, Response Mutations
	HostRewrite       string
	PerFilter         map[string]*PerRoute // by name of the filter
}

// DecodeListener decodes a listener.
func DecodeListener(m *listenerv3.Listener) (*Listener, error) {
	d := new(decoder)
	if !d.start("", m) {
		return nil, d.err
	}
	l := &Listener{
		Name:             m.GetName(),
		Address:          d.address("address", m.GetAddress()),
		Bind:             bound(m),
		Inbound:          m.GetTrafficDirection() == corev3.TrafficDirection_INBOUND,
		Direction:        int64(m.GetTrafficDirection()),
		UseOriginalDst:   m.GetUseOriginalDst().GetValue(),
		OriginalDst:      m.GetUseOriginalDst().GetValue(),
		InspectTimeout:   duration(m.GetListenerFiltersTimeout(), defaultInspectTimeout),
		ContinueOnSilent: m.GetContinueOnListenerFiltersTimeout(),
		BufferLimit:      defaultBufferLimit,
		Message:          m,
	}
	if m.GetPerConnectionBufferLimitBytes() != nil {
		l.BufferLimit = int(m.GetPerConnectionBufferLimitBytes().GetValue())
	}
	for i, f := range m.GetListenerFilters() {
		d.listenerFilter(in(at("listener_filters", i), "typed_config"), f, l)
	}
	for i, c := range m.GetFilterChains() {
		l.Chains = append(l.Chains, d.chain(at("filter_chains", i), c))
	}
	if m.GetDefaultFilterChain() != nil {
		l.Default = d.chain("default_filter_chain", m.GetDefaultFilterChain())
	}
	if l.Default == nil && len(l.Chains) == 0 {
		d.fail("filter_chains", "there are none")
	}
	l.AccessLogs = d.accessLogs("access_log", m.GetAccessLog())
	d.distinct(l.Chains)
	if d.err != nil {
		return nil, d.err
	}
	return l, nil
}

func bound(m *listenerv3.Listener) bool {
	if m.GetBindToPort() != nil {
		return m.GetBindToPort().GetValue()
	}
	//lint:ignore SA1019 istiod writes it still
	if b := m.GetDeprecatedV1().GetBindToPort(); b != nil {
		return b.GetValue()
	}
	return true
}

// distinct refuses chains that match the same connections, as Envoy does.
func (d *decoder) distinct(chains []*FilterChain) {
	if d.err != nil {
		return
	}
	for i, a := range chains {
		for _, b := range chains[:i] {
			if a.Match.equal(b.Match) {
				d.fail(in(at("filter_chains", i), "filter_chain_match"), "another filter chain has the same")
			}
		}
	}
}

func (m Match) equal(o Match) bool {
	return m.Port == o.Port && m.Transport == o.Transport && slices.Equal(m.Prefixes, o.Prefixes) &&
		slices.Equal(m.ServerNames, o.ServerNames) && slices.Equal(m.Applications, o.Applications)
}

func (d *decoder) address(path string, a *corev3.Address) netip.AddrPort {
	s := a.GetSocketAddress()
	switch {
	case d.err != nil:
	case s == nil:
		d.fail(path, "only a socket_address is supported")
	case s.GetProtocol() != corev3.SocketAddress_TCP:
		d.fail(in(path, "socket_address.protocol"), "only TCP is supported")
	case s.GetPortValue() > 65535:
		d.fail(in(path, "socket_address.port_value"), "%d is no port", s.GetPortValue())
	default:
		ip, err := netip.ParseAddr(s.GetAddress())
		if err != nil {
			d.fail(in(path, "socket_address.address"), "malformed IP address: %s", s.GetAddress())
		}
		return netip.AddrPortFrom(ip, uint16(s.GetPortValue()))
	}
	return netip.AddrPort{}
}

func (d *decoder) listenerFilter(path string, f *listenerv3.ListenerFilter, l *Listener) {
	a := f.GetTypedConfig()
	switch typeOf(a) {
	case "envoy.extensions.filters.listener.original_dst.v3.OriginalDst":
		l.OriginalDst = d.unpack(path, a, new(originaldstv3.OriginalDst)) || l.OriginalDst
		if f.GetFilterDisabled() != nil {
			d.fail(path, "filter_disabled is not supported for it")
		}
	case "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":
		d.unpack(path, a, new(tlsinspectorv3.TlsInspector))
		l.InspectTLS = &Inspector{d.disabled(f.GetFilterDisabled())}
	case "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector":
		d.unpack(path, a, new(httpinspectorv3.HttpInspector))
		l.InspectHTTP = &Inspector{d.disabled(f.GetFilterDisabled())}
	default:
		d.fail(path, "listener filter %s is not supported by the engine", orName(typeOf(a), f.GetName()))
	}
}

// disabled is for which ports a listener filter is left out.
func (d *decoder) disabled(m *listenerv3.ListenerFilterChainMatchPredicate) func(uint16) bool {
	each := func(set *listenerv3.ListenerFilterChainMatchPredicate_MatchSet) (tests []func(uint16) bool) {
		for _, rule := range set.GetRules() {
			tests = append(tests, d.disabled(rule))
		}
		return tests
	}
	switch r := m.GetRule().(type) {
	case *listenerv3.ListenerFilterChainMatchPredicate_OrMatch:
		tests := each(r.OrMatch)
		return func(port uint16) bool {
			return slices.ContainsFunc(tests, func(t func(uint16) bool) bool { return t(port) })
		}
	case *listenerv3.ListenerFilterChainMatchPredicate_AndMatch:
		tests := each(r.AndMatch)
		return func(port uint16) bool {
			return !slices.ContainsFunc(tests, func(t func(uint16) bool) bool { return !t(port) })
		}
	case *listenerv3.ListenerFilterChainMatchPredicate_NotMatch:
		test := d.disabled(r.NotMatch)
		return func(port uint16) bool { return !test(port) }
	case *listenerv3.ListenerFilterChainMatchPredicate_AnyMatch:
		return func(uint16) bool { return r.AnyMatch }
	case *listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange:
		from, to := r.DestinationPortRange.GetStart(), r.DestinationPortRange.GetEnd()
		return func(port uint16) bool { return int32(port) >= from && int32(port) < to }
	}
	return func(uint16) bool { return false }
}

func orName(typ, name string) string {
	if typ == "" {
		return name
	}
	return typ
}

func (d *decoder) chain(path string, m *listenerv3.FilterChain) *FilterChain {
	c := &FilterChain{
		Name:  m.GetName(),
		Match: d.match(in(path, "filter_chain_match"), m.GetFilterChainMatch()),
		TLS:   d.downstreamTLS(in(path, "transport_socket"), m.GetTransportSocket()),
	}
	if len(m.GetFilters()) == 0 {
		d.fail(in(path, "filters"), "there are none")
	}
	if len(m.GetFilters()) > maxFilters {
		d.fail(in(path, "filters"), "more than %d", maxFilters)
	}
	for i, f := range m.GetFilters() {
		d.networkFilter(at(in(path, "filters"), i), f, i == len(m.GetFilters())-1, c)
	}
	if raw, err := (proto.MarshalOptions{Deterministic: true}).Marshal(m); err == nil {
		c.Identity = string(raw)
	} else {
		d.fail(path, "%v", err)
	}
	return c
}

func (d *decoder) match(path string, m *listenerv3.FilterChainMatch) Match {
	match := Match{
		Port:         m.GetDestinationPort().GetValue(),
		Transport:    m.GetTransportProtocol(),
		Applications: m.GetApplicationProtocols(),
	}
	for i, p := range m.GetPrefixRanges() {
		match.Prefixes = append(match.Prefixes, d.prefix(at(in(path, "prefix_ranges"), i), p))
	}
	for i, name := range m.GetServerNames() {
		name = strings.ToLower(name)
		if strings.Contains(strings.TrimPrefix(name, "*."), "*") {
			d.fail(at(in(path, "server_names"), i), "%s: partial wildcards are not supported", name)
		}
		match.ServerNames = append(match.ServerNames, name)
	}
	switch match.Transport {
	case "", "tls", "raw_buffer":
	default:
		d.fail(in(path, "transport_protocol"), "%s is not supported", match.Transport)
	}
	return match
}

func (d *decoder) prefix(path string, m *corev3.CidrRange) netip.Prefix {
	ip, err := netip.ParseAddr(m.GetAddressPrefix())
	if err == nil {
		var p netip.Prefix
		if p, err = ip.Prefix(int(m.GetPrefixLen().GetValue())); err == nil {
			return p
		}
	}
	d.fail(path, "%v", err)
	return netip.Prefix{}
}

func (d *decoder) networkFilter(path string, f *listenerv3.Filter, last bool, c *FilterChain) {
	terminal := false
	config := in(path, "typed_config")
	switch typeOf(f.GetTypedConfig()) {
	case "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager":
		m := new(hcmv3.HttpConnectionManager)
		if d.unpack(config, f.GetTypedConfig(), m) {
			c.HTTP = d.http(config, m)
		}
		terminal = true
	case "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":
		m := new(tcpproxyv3.TcpProxy)
		if d.unpack(config, f.GetTypedConfig(), m) {
			c.TCP = d.tcp(config, m)
		}
		terminal = true
	default:
		c.Network = append(c.Network, d.filter(path, f.GetName(), f.GetTypedConfig(), f.GetConfigDiscovery(), Network))
	}
	switch {
	case terminal && !last:
		d.fail(path, "%s must be the last network filter", f.GetName())
	case last && !terminal:
		d.fail(path, "the last network filter must be the HTTP connection manager or the TCP proxy")
	}
}

func (d *decoder) tcp(path string, m *tcpproxyv3.TcpProxy) *TCP {
	t := &TCP{
		StatPrefix: m.GetStatPrefix(), Idle: duration(m.GetIdleTimeout(), defaultTCPIdle),
		Hash:       d.connectionHash(in(path, "hash_policy"), m.GetHashPolicy()),
		AccessLogs: d.accessLogs(in(path, "access_log"), m.GetAccessLog()),
	}
	if m.GetCluster() != "" {
		t.Clusters = []Weighted{{Cluster: m.GetCluster(), Weight: 1}}
	}
	for _, w := range m.GetWeightedClusters().GetClusters() {
		t.Clusters = append(t.Clusters, Weighted{Cluster: w.GetName(), Weight: w.GetWeight()})
	}
	return t
}

// Dependencies returns the names of what the listener needs before it can serve.
func (l *Listener) Dependencies() (routes, extensions, secrets map[string]time.Duration) {
	routes, extensions, secrets = map[string]time.Duration{}, map[string]time.Duration{}, map[string]time.Duration{}
	chains := l.Chains
	if l.Default != nil {
		chains = append(slices.Clip(chains), l.Default)
	}
	for _, c := range chains {
		for _, s := range c.TLS.secrets() {
			secrets[s.Name] = s.Timeout
		}
		filters := c.Network
		if c.HTTP != nil {
			filters = append(slices.Clip(filters), c.HTTP.Filters...)
			if c.HTTP.Routes == nil {
				routes[c.HTTP.RouteName] = c.HTTP.RouteTimeout
			}
		}
		for _, f := range filters {
			if f.Extension == nil {
				extensions[f.Name] = f.Timeout
			}
		}
	}
	return routes, extensions, secrets
}

// Takes checks that an extension config of that name is what the listener's
// filters of the name take: of a type that they say, and of their kind.
func (l *Listener) Takes(name string, m *corev3.TypedExtensionConfig, e Extension) error {
	d := new(decoder)
	typeURL := "type.googleapis.com/" + typeOf(d.fromStruct("", m.GetTypedConfig()))
	check := func(filters []Filter, kind Kind) {
		for _, f := range filters {
			switch {
			case f.Name != name || f.Extension != nil:
			case !slices.Contains(f.Types, typeURL):
				d.fail("typed_config", "type %s is not among the type_urls of the filter in listener %s", typeURL, l.Name)
			case !Fits(e, kind):
				d.fail("typed_config", "%s cannot be used in listener %s: it is of the other kind", typeURL, l.Name)
			}
		}
	}
	chains := l.Chains
	if l.Default != nil {
		chains = append(slices.Clip(chains), l.Default)
	}
	for _, c := range chains {
		check(c.Network, Network)
		if c.HTTP != nil {
			check(c.HTTP.Filters, HTTPStream)
		}
	}
	return d.err
}

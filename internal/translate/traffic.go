package translate

import (
	"fmt"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	apinetworking "istio.io/api/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// traffic is the making of one cluster's settings from a DestinationRule.
type traffic struct {
	world    *mesh.World
	service  *mesh.Service
	port     mesh.Port
	cluster  *clusterv3.Cluster
	rule     *mesh.DestinationRule // may be nil
	subset   *apinetworking.Subset // may be nil
	http2    bool                  // requests are sent as HTTP/2
	leading  leading
	problems []resource.Problem
}

// leading is what of a cluster's DestinationRule is for the routes that lead to the
// cluster to say.
type leading struct {
	hash         *routev3.RouteAction_HashPolicy // by what of a request its endpoint is chosen
	idle         *durationpb.Duration            // how long a connection may be silent
	unredirected *resource.Problem               // why a proxy that is not redirected to cannot do as the rule says
}

func (t *traffic) refuse(field, message, mend string) {
	t.problems = append(t.problems, mesh.Refuse(t.rule, field, message, mend))
}

// apply sets what the rule says and reports whether the cluster may be used.
func (t *traffic) apply() bool {
	p := t.policy()
	options := &httpv3.HttpProtocolOptions{}
	t.http2 = t.port.Protocol.IsHTTP2() ||
		p.ConnectionPool.GetHttp().GetH2UpgradePolicy() == apinetworking.ConnectionPoolSettings_HTTPSettings_UPGRADE
	secure := t.applyTLS(p.Tls, p.at["tls"], options)
	t.applyLoadBalancer(p.LoadBalancer, p.at["load_balancer"])
	t.applyPool(p.ConnectionPool, p.at["connection_pool"], options)
	t.applyOutliers(p.OutlierDetection, p.at["outlier_detection"])
	t.setProtocol(options)
	return secure
}

// A policy is the traffic policy that holds for one cluster.
type policy struct {
	*apinetworking.TrafficPolicy
	at map[protoreflect.Name]string // where in the rule each setting is
}

// policy is made as Istio makes it: what a subset says goes before what its rule says,
// setting by setting; at either place what is said for the port stands for all of it.
func (t *traffic) policy() *policy {
	p := &policy{new(apinetworking.TrafficPolicy), map[protoreflect.Name]string{}}
	if t.rule != nil {
		t.lay(p, t.rule.Spec.TrafficPolicy, "spec.trafficPolicy")
	}
	if t.subset != nil {
		t.lay(p, t.subset.TrafficPolicy, fmt.Sprintf("spec.subsets[%s].trafficPolicy", t.subset.Name))
	}
	return p
}

// lay lays over, which is at field, over p.
func (t *traffic) lay(p *policy, over *apinetworking.TrafficPolicy, field string) {
	if over == nil {
		return
	}
	t.refusePolicy(over, field)
	settings := over.ProtoReflect()
	i := slices.IndexFunc(over.PortLevelSettings, func(s *apinetworking.TrafficPolicy_PortTrafficPolicy) bool {
		return s.GetPort().GetNumber() == t.port.Number
	})
	if i >= 0 {
		settings = over.PortLevelSettings[i].ProtoReflect()
		field = fmt.Sprintf("%s.portLevelSettings[%d]", field, i)
	}
	to := p.ProtoReflect()
	for _, name := range []protoreflect.Name{"load_balancer", "connection_pool", "outlier_detection", "tls"} {
		from := settings.Descriptor().Fields().ByName(name)
		if !settings.Has(from) && i < 0 {
			continue
		}
		p.at[name] = field + "." + from.JSONName()
		if at := to.Descriptor().Fields().ByName(name); settings.Has(from) {
			to.Set(at, settings.Get(from))
		} else {
			to.Clear(at)
		}
	}
}

func (t *traffic) refusePolicy(p *apinetworking.TrafficPolicy, field string) {
	for _, setting := range []struct {
		name string
		set  bool
	}{
		{"tunnel", p.GetTunnel() != nil},
		{"proxyProtocol", p.GetProxyProtocol() != nil},
		{"retryBudget", p.GetRetryBudget() != nil},
	} {
		if setting.set {
			t.refuse(field+"."+setting.name, "is not supported", "remove it")
		}
	}
}

// applyTLS reports false if the settings cannot be honoured.
func (t *traffic) applyTLS(tls *apinetworking.ClientTLSSettings, field string, options *httpv3.HttpProtocolOptions) bool {
	switch {
	case tls.GetMode() == apinetworking.ClientTLSSettings_DISABLE:
		if proto.Size(tls) > 0 {
			t.refuse(field, "has no mode, or DISABLE; its other settings mean nothing", "give mode: SIMPLE or MUTUAL, or remove them")
		}
		return true
	case tls.Mode == apinetworking.ClientTLSSettings_ISTIO_MUTUAL:
		t.refuse(field+".mode", "ISTIO_MUTUAL needs workload certificates, which there are none of; the destination is not reachable",
			"use SIMPLE or MUTUAL, or remove it")
		return false
	case tls.CredentialName != "":
		t.refuse(field+".credentialName", "is not supported; the destination is not reachable",
			"give files on the proxy's machine: caCertificates, clientCertificate, privateKey")
		return false
	case tls.CaCrl != "":
		t.refuse(field+".caCrl", "is not supported; the destination is not reachable", "remove it")
		return false
	}
	if tls.Mode == apinetworking.ClientTLSSettings_SIMPLE && tls.ClientCertificate+tls.PrivateKey != "" {
		t.refuse(field, "clientCertificate and privateKey are not sent in mode SIMPLE", "use MUTUAL, or remove them")
	}
	context := &tlsv3.UpstreamTlsContext{Sni: tls.Sni, CommonTlsContext: t.tlsContext(tls)}
	if tls.Mode == apinetworking.ClientTLSSettings_MUTUAL {
		context.CommonTlsContext.TlsCertificates = []*tlsv3.TlsCertificate{{
			CertificateChain: fileSource(tls.ClientCertificate), PrivateKey: fileSource(tls.PrivateKey),
		}}
	}
	if t.http2 {
		context.CommonTlsContext.AlpnProtocols = []string{"h2"}
	}
	if tls.Sni == "" {
		t.nameServer(tls, context, options)
	}
	t.cluster.TransportSocket = tlsTransport(context)
	return true
}

// nameServer has the server's name sent, and expected, without its being
// written: that of the request, or, where there are no requests, the service's.
func (t *traffic) nameServer(tls *apinetworking.ClientTLSSettings, context *tlsv3.UpstreamTlsContext, options *httpv3.HttpProtocolOptions) {
	if !t.port.Protocol.IsHTTP() && !t.port.Protocol.IsTLS() {
		if !strings.HasPrefix(t.service.Host, "*") {
			context.Sni = t.service.Host
		}
		return
	}
	options.UpstreamHttpProtocolOptions = &corev3.UpstreamHttpProtocolOptions{
		AutoSni:           true,
		AutoSanValidation: len(tls.SubjectAltNames) == 0 && !tls.GetInsecureSkipVerify().GetValue(),
	}
}

func (t *traffic) tlsContext(tls *apinetworking.ClientTLSSettings) *tlsv3.CommonTlsContext {
	validation := &tlsv3.CertificateValidationContext{}
	switch {
	case tls.CaCertificates != "":
		validation.TrustedCa = fileSource(tls.CaCertificates)
	case !tls.GetInsecureSkipVerify().GetValue():
		validation.TrustedCa = fileSource(t.world.Options().TrustedCA)
	}
	if tls.GetInsecureSkipVerify().GetValue() {
		validation.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	}
	for _, san := range tls.SubjectAltNames {
		for _, kind := range []tlsv3.SubjectAltNameMatcher_SanType{tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI} {
			validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
				SanType: kind,
				Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: san}},
			})
		}
	}
	return &tlsv3.CommonTlsContext{
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation},
	}
}

func fileSource(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

func tlsTransport(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       tlsSocket,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: anyOf(context)},
	}
}

// applyLoadBalancer falls back to Istio's default, least request, for what it
// refuses.
func (t *traffic) applyLoadBalancer(lb *apinetworking.LoadBalancerSettings, field string) {
	if lb == nil {
		return
	}
	//lint:ignore SA1019 they are refused
	warmup, seconds := lb.Warmup, lb.WarmupDurationSecs
	for _, setting := range []struct {
		name, mend string
		set        bool
	}{
		{"localityLbSetting", "remove it, or write enabled: false: nothing is known here of localities", asks(lb.LocalityLbSetting, lb.LocalityLbSetting.GetEnabled())},
		{"zoneAwareLbSetting", "remove it, or write enabled: false: nothing is known here of zones", asks(lb.ZoneAwareLbSetting, lb.ZoneAwareLbSetting.GetEnabled())},
		{"warmupDurationSecs", "remove it", seconds != nil},
		{"warmup", "remove it", warmup != nil},
	} {
		if setting.set {
			t.refuse(field+"."+setting.name, "is not supported", setting.mend)
		}
	}
	switch policy := lb.LbPolicy.(type) {
	case *apinetworking.LoadBalancerSettings_ConsistentHash:
		t.applyHash(policy.ConsistentHash, field+".consistentHash")
	case *apinetworking.LoadBalancerSettings_Simple:
		switch policy.Simple {
		case apinetworking.LoadBalancerSettings_ROUND_ROBIN:
			t.cluster.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		case apinetworking.LoadBalancerSettings_RANDOM:
			t.cluster.LbPolicy = clusterv3.Cluster_RANDOM
		case apinetworking.LoadBalancerSettings_PASSTHROUGH:
			p := mesh.Refuse(t.rule, field+".simple", "PASSTHROUGH is for sidecars that traffic is redirected to; others do not know where it was going",
				"use LEAST_REQUEST, ROUND_ROBIN or RANDOM")
			t.leading.unredirected = &p
		}
	}
}

// asks says whether a setting that can be switched off is there and is not.
func asks[T any](setting *T, enabled *wrapperspb.BoolValue) bool {
	return setting != nil && (enabled == nil || enabled.Value)
}

func (t *traffic) applyPool(pool *apinetworking.ConnectionPoolSettings, field string, options *httpv3.HttpProtocolOptions) {
	limits := t.cluster.CircuitBreakers.Thresholds[0]
	limit := func(to **wrapperspb.UInt32Value, n int32) {
		if n > 0 {
			*to = wrapperspb.UInt32(uint32(n))
		}
	}
	tcp, http := pool.GetTcp(), pool.GetHttp()
	limit(&limits.MaxConnections, tcp.GetMaxConnections())
	limit(&limits.MaxPendingRequests, http.GetHttp1MaxPendingRequests())
	limit(&limits.MaxRequests, http.GetHttp2MaxRequests())
	limit(&limits.MaxRetries, http.GetMaxRetries())
	if tcp.GetConnectTimeout() != nil {
		t.cluster.ConnectTimeout = tcp.ConnectTimeout
	}
	t.leading.idle = tcp.GetIdleTimeout()
	idle := http.GetIdleTimeout()
	if idle == nil {
		idle = tcp.GetIdleTimeout()
	}
	if idle != nil || http.GetMaxRequestsPerConnection() > 0 {
		options.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: idle}
		limit(&options.CommonHttpProtocolOptions.MaxRequestsPerConnection, http.GetMaxRequestsPerConnection())
	}
	for _, setting := range []struct {
		name, mend string
		set        bool
	}{
		{"tcp.tcpKeepalive", "remove it", tcp.GetTcpKeepalive() != nil},
		{"tcp.maxConnectionDuration", "remove it; maxRequestsPerConnection has connections end, too", tcp.GetMaxConnectionDuration() != nil},
		{"http.useClientProtocol", "remove it; declare HTTP/2 by the port's name or appProtocol", http.GetUseClientProtocol()},
		{"http.maxConcurrentStreams", "remove it; http2MaxRequests limits the requests to all endpoints", http.GetMaxConcurrentStreams() != 0},
		{"http.http2KeepAlive", "remove it", http.GetHttp2KeepAlive() != nil},
	} {
		if setting.set {
			t.refuse(field+"."+setting.name, "is not supported", setting.mend)
		}
	}
}

// applyOutliers ejects endpoints for the errors that the rule counts alone. Unless
// it says so, a cluster with few healthy endpoints does not go back to the others.
func (t *traffic) applyOutliers(o *apinetworking.OutlierDetection, field string) {
	if o == nil {
		return
	}
	//lint:ignore SA1019 it is refused
	consecutive := o.ConsecutiveErrors
	for _, setting := range []struct {
		name, mend string
		set        bool
	}{
		{"consecutiveErrors", "use consecutive5xxErrors", consecutive != 0},
		{"splitExternalLocalOriginErrors", "remove it", o.SplitExternalLocalOriginErrors},
		{"consecutiveLocalOriginFailures", "remove it; consecutiveGatewayErrors counts them, too", o.ConsecutiveLocalOriginFailures != nil},
		{"outlierDetectionHttpErrorCodes", "use consecutive5xxErrors or consecutiveGatewayErrors", len(o.OutlierDetectionHttpErrorCodes) > 0},
	} {
		if setting.set {
			t.refuse(field+"."+setting.name, "is not supported", setting.mend)
		}
	}
	out := &clusterv3.OutlierDetection{
		Interval:                           o.Interval,
		BaseEjectionTime:                   o.BaseEjectionTime,
		Consecutive_5Xx:                    o.Consecutive_5XxErrors,
		EnforcingConsecutive_5Xx:           enforced(o.Consecutive_5XxErrors),
		ConsecutiveGatewayFailure:          o.ConsecutiveGatewayErrors,
		EnforcingConsecutiveGatewayFailure: enforced(o.ConsecutiveGatewayErrors),
		EnforcingSuccessRate:               wrapperspb.UInt32(0),
	}
	if o.MaxEjectionPercent > 0 {
		out.MaxEjectionPercent = wrapperspb.UInt32(uint32(o.MaxEjectionPercent))
	}
	if o.MinHealthPercent > 100 || out.Validate() != nil {
		t.refuse(field, "has a share of more than 100 percent, or an interval of nothing; no endpoint is ejected", "correct it")
		return
	}
	t.cluster.OutlierDetection = out
	if o.MinHealthPercent >= 0 {
		t.cluster.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{
			HealthyPanicThreshold: &typev3.Percent{Value: float64(o.MinHealthPercent)},
		}
	}
}

// enforced is how many percent of the ejections for n errors take place; 0 errors are
// never enough, and none written is Envoy's default.
func enforced(n *wrapperspb.UInt32Value) *wrapperspb.UInt32Value {
	switch {
	case n == nil:
		return nil
	case n.Value == 0:
		return wrapperspb.UInt32(0)
	}
	return wrapperspb.UInt32(100)
}

// setProtocol has requests sent as HTTP/2 where the port speaks it or the rule asks
// for it, and HTTP/1.1 else.
func (t *traffic) setProtocol(options *httpv3.HttpProtocolOptions) {
	switch {
	case t.http2:
		options.UpstreamProtocolOptions = explicitHTTP2()
	case proto.Size(options) == 0:
		return // Envoy's default
	default:
		options.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
					HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}}}
	}
	t.cluster.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: anyOf(options)}
}

func explicitHTTP2() *httpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}}}
}

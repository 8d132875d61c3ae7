package translate

import (
	"fmt"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
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
	problems []resource.Problem
}

func (t *traffic) refuse(field, message, mend string) {
	t.problems = append(t.problems, mesh.Refuse(t.rule, field, message, mend))
}

// apply sets what the rule says and reports whether the cluster may be used.
func (t *traffic) apply() bool {
	policy, field := t.policy()
	options := &httpv3.HttpProtocolOptions{}
	secure := t.applyTLS(policy.GetTls(), field+".tls", options)
	t.applyLoadBalancer(policy.GetLoadBalancer(), field+".loadBalancer")
	t.applyPool(policy.GetConnectionPool(), field+".connectionPool", options)
	t.applyOutliers(policy.GetOutlierDetection(), field+".outlierDetection")
	t.setProtocol(options)
	return secure
}

// policy is the traffic policy that holds for the port: settings of the subset
// win over those of the rule, those of a port over both. field is where in the
// rule a problem with them is told.
func (t *traffic) policy() (policy *apinetworking.TrafficPolicy, field string) {
	if t.rule == nil {
		return nil, ""
	}
	policy, field = overlay(&apinetworking.TrafficPolicy{}, t.rule.Spec.TrafficPolicy), "spec.trafficPolicy"
	t.refusePolicy(t.rule.Spec.TrafficPolicy, field)
	if t.subset.GetTrafficPolicy() != nil {
		policy, field = overlay(policy, t.subset.TrafficPolicy), fmt.Sprintf("spec.subsets[%s].trafficPolicy", t.subset.Name)
		t.refusePolicy(t.subset.TrafficPolicy, field)
	}
	for _, p := range policy.PortLevelSettings {
		if p.Port.GetNumber() == t.port.Number { // settings for a port stand alone
			return &apinetworking.TrafficPolicy{LoadBalancer: p.LoadBalancer, ConnectionPool: p.ConnectionPool,
				OutlierDetection: p.OutlierDetection, Tls: p.Tls}, field + ".portLevelSettings"
		}
	}
	return policy, field
}

// overlay is base with the settings that over has.
func overlay(base, over *apinetworking.TrafficPolicy) *apinetworking.TrafficPolicy {
	if over == nil {
		return base
	}
	out := proto.Clone(base).(*apinetworking.TrafficPolicy)
	over.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out.ProtoReflect().Set(f, v)
		return true
	})
	return out
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
	context := &tlsv3.UpstreamTlsContext{Sni: tls.Sni, CommonTlsContext: t.tlsContext(tls)}
	if tls.Mode == apinetworking.ClientTLSSettings_MUTUAL {
		context.CommonTlsContext.TlsCertificates = []*tlsv3.TlsCertificate{{
			CertificateChain: fileSource(tls.ClientCertificate), PrivateKey: fileSource(tls.PrivateKey),
		}}
	}
	if t.port.Protocol.IsHTTP2() {
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
	//lint:ignore SA1019 it is refused
	if lb.LocalityLbSetting != nil || lb.ZoneAwareLbSetting != nil || lb.WarmupDurationSecs != nil || lb.Warmup != nil {
		t.refuse(field, "locality and warm-up settings are not supported", "remove them")
	}
	switch policy := lb.LbPolicy.(type) {
	case *apinetworking.LoadBalancerSettings_ConsistentHash:
		t.refuse(field+".consistentHash", "is not supported", "use simple: LEAST_REQUEST, ROUND_ROBIN or RANDOM")
	case *apinetworking.LoadBalancerSettings_Simple:
		switch policy.Simple {
		case apinetworking.LoadBalancerSettings_ROUND_ROBIN:
			t.cluster.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		case apinetworking.LoadBalancerSettings_RANDOM:
			t.cluster.LbPolicy = clusterv3.Cluster_RANDOM
		case apinetworking.LoadBalancerSettings_PASSTHROUGH:
			t.refuse(field+".simple", "PASSTHROUGH is not supported", "use LEAST_REQUEST, ROUND_ROBIN or RANDOM")
		}
	}
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
	if http.GetIdleTimeout() != nil || http.GetMaxRequestsPerConnection() > 0 {
		options.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: http.GetIdleTimeout()}
		limit(&options.CommonHttpProtocolOptions.MaxRequestsPerConnection, http.GetMaxRequestsPerConnection())
	}
	if tcp.GetTcpKeepalive() != nil || tcp.GetMaxConnectionDuration() != nil || tcp.GetIdleTimeout() != nil {
		t.refuse(field+".tcp", "only maxConnections and connectTimeout are supported", "remove the others")
	}
	if http.GetUseClientProtocol() || http.GetMaxConcurrentStreams() != 0 || http.GetHttp2KeepAlive() != nil ||
		http.GetH2UpgradePolicy() == apinetworking.ConnectionPoolSettings_HTTPSettings_UPGRADE {
		t.refuse(field+".http", "useClientProtocol, maxConcurrentStreams, http2KeepAlive and h2UpgradePolicy are not supported",
			"remove them; declare HTTP/2 by the port's name or appProtocol")
	}
}

func (t *traffic) applyOutliers(o *apinetworking.OutlierDetection, field string) {
	if o == nil {
		return
	}
	//lint:ignore SA1019 it is refused
	if o.MinHealthPercent != 0 || o.SplitExternalLocalOriginErrors || len(o.OutlierDetectionHttpErrorCodes) > 0 || o.ConsecutiveErrors != 0 {
		t.refuse(field, "minHealthPercent, splitExternalLocalOriginErrors and consecutiveErrors are not supported",
			"use consecutive5xxErrors and consecutiveGatewayErrors")
	}
	out := &clusterv3.OutlierDetection{
		Interval:         o.Interval,
		BaseEjectionTime: o.BaseEjectionTime,
		Consecutive_5Xx:  o.Consecutive_5XxErrors,
	}
	if o.MaxEjectionPercent > 0 {
		out.MaxEjectionPercent = wrapperspb.UInt32(uint32(o.MaxEjectionPercent))
	}
	if n := o.ConsecutiveGatewayErrors; n.GetValue() > 0 {
		out.ConsecutiveGatewayFailure = n
		out.EnforcingConsecutiveGatewayFailure = wrapperspb.UInt32(100)
	}
	t.cluster.OutlierDetection = out
}

// setProtocol has requests sent as HTTP/2 where the port speaks it, and HTTP/1.1
// else.
func (t *traffic) setProtocol(options *httpv3.HttpProtocolOptions) {
	switch {
	case t.port.Protocol.IsHTTP2():
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

package config

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

const (
	defaultStreamIdle   = 5 * time.Minute
	defaultFetchTimeout = 15 * time.Second
)

// A Codec is the version of HTTP that clients speak.
type Codec uint8

const (
	Auto Codec = iota // by ALPN, or by the first bytes
	HTTP1
	HTTP2
)

// An HTTP is an HTTP connection manager.
type HTTP struct {
	StatPrefix   string
	Codec        Codec
	Routes       *Routes // nil if they are discovered
	RouteName    string
	RouteTimeout time.Duration // how long to wait for them at first; 0 is forever
	Filters      []Filter      // the router, which is the last, excepted

	RemoteAddress bool // the client is the peer, and not who x-forwarded-for tells of
	TrustedHops   int
	SkipAppendXFF bool
	ServerName    string
	NormalizePath bool
	MergeSlashes  bool
	ClientCert    hcmv3.HttpConnectionManager_ForwardClientCertDetails
	CertDetails   CertDetails
	StreamIdle    time.Duration // 0 for no limit
	WebSocket     bool
	RequestID     bool // make one where there is none
	KeepRequestID bool // also that of a client at the edge
	EchoRequestID bool
	AccessLogs    []*AccessLog
}

// CertDetails says what x-forwarded-client-cert tells of a client's certificate.
type CertDetails struct {
	Subject, Cert, Chain, DNS, URI bool
}

func (d *decoder) http(path string, m *hcmv3.HttpConnectionManager) *HTTP {
	details := m.GetSetCurrentClientCertDetails()
	h := &HTTP{
		StatPrefix:    m.GetStatPrefix(),
		RemoteAddress: m.GetUseRemoteAddress().GetValue(),
		TrustedHops:   int(m.GetXffNumTrustedHops()),
		SkipAppendXFF: m.GetSkipXffAppend(),
		ServerName:    "envoy",
		NormalizePath: m.GetNormalizePath().GetValue(),
		MergeSlashes:  m.GetMergeSlashes(),
		ClientCert:    m.GetForwardClientCertDetails(),
		CertDetails: CertDetails{
			Subject: details.GetSubject().GetValue(), Cert: details.GetCert(), Chain: details.GetChain(),
			DNS: details.GetDns(), URI: details.GetUri(),
		},
		StreamIdle:    duration(m.GetStreamIdleTimeout(), defaultStreamIdle),
		RequestID:     m.GetGenerateRequestId() == nil || m.GetGenerateRequestId().GetValue(),
		KeepRequestID: m.GetPreserveExternalRequestId(),
		EchoRequestID: m.GetAlwaysSetRequestIdInResponse(),
	}
	if m.GetServerName() != "" {
		h.ServerName = m.GetServerName()
	}
	switch m.GetCodecType() {
	case hcmv3.HttpConnectionManager_AUTO:
	case hcmv3.HttpConnectionManager_HTTP1:
		h.Codec = HTTP1
	case hcmv3.HttpConnectionManager_HTTP2:
		h.Codec = HTTP2
	default:
		d.fail(in(path, "codec_type"), "%s is not supported by the engine", m.GetCodecType())
	}
	d.clientCert(path, h)
	d.routeSource(path, m, h)
	d.upgrades(path, m, h)
	d.httpFilters(in(path, "http_filters"), m, h)
	h.AccessLogs = d.accessLogs(in(path, "access_log"), m.GetAccessLog())
	return h
}

func (d *decoder) clientCert(path string, h *HTTP) {
	switch h.ClientCert {
	case hcmv3.HttpConnectionManager_SANITIZE, hcmv3.HttpConnectionManager_SANITIZE_SET,
		hcmv3.HttpConnectionManager_FORWARD_ONLY, hcmv3.HttpConnectionManager_APPEND_FORWARD,
		hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
	default:
		d.fail(in(path, "forward_client_cert_details"), "%s is not supported", h.ClientCert)
	}
}

func (d *decoder) routeSource(path string, m *hcmv3.HttpConnectionManager, h *HTTP) {
	switch r := m.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_RouteConfig:
		h.Routes = d.routes(in(path, "route_config"), r.RouteConfig)
	case *hcmv3.HttpConnectionManager_Rds:
		h.RouteName = r.Rds.GetRouteConfigName()
		h.RouteTimeout = d.ads(in(path, "rds.config_source"), r.Rds.GetConfigSource())
		if h.RouteName == "" {
			d.fail(in(path, "rds.route_config_name"), "required")
		}
	default:
		d.fail(path, "only rds and route_config are supported")
	}
}

// ads checks that a resource comes over ADS and returns how long to wait for it.
func (d *decoder) ads(path string, s *corev3.ConfigSource) time.Duration {
	if s.GetAds() == nil {
		d.fail(path, "the engine has no source of configuration but ads")
	}
	return duration(s.GetInitialFetchTimeout(), defaultFetchTimeout)
}

func (d *decoder) upgrades(path string, m *hcmv3.HttpConnectionManager, h *HTTP) {
	for i, u := range m.GetUpgradeConfigs() {
		if !strings.EqualFold(u.GetUpgradeType(), "websocket") {
			d.fail(in(at(in(path, "upgrade_configs"), i), "upgrade_type"), "%s is not supported, only websocket", u.GetUpgradeType())
		}
		h.WebSocket = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
}

func (d *decoder) httpFilters(path string, m *hcmv3.HttpConnectionManager, h *HTTP) {
	list := m.GetHttpFilters()
	for i, f := range list {
		filter := d.filter(at(path, i), f.GetName(), f.GetTypedConfig(), f.GetConfigDiscovery(), HTTPStream)
		_, router := filter.Extension.(Router)
		switch last := i == len(list)-1; {
		case router && !last:
			d.fail(at(path, i), "the router must be the last HTTP filter")
		case !router && last:
			d.fail(at(path, i), "the last HTTP filter must be the router")
		case !router:
			h.Filters = append(h.Filters, filter)
		}
	}
	if len(list) > maxFilters {
		d.fail(path, "more than %d", maxFilters)
	}
	if len(list) == 0 {
		d.fail(path, "there is no router")
	}
}

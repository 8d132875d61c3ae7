package config

import (
	"crypto/tls"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
)

// Data is bytes, or the file that has them.
type Data struct {
	File  string
	Bytes []byte
}

// A Certificate is a chain with its private key, in PEM.
type Certificate struct {
	Chain, Key Data
}

// A SecretRef names a secret that is discovered.
type SecretRef struct {
	Name    string
	Timeout time.Duration // how long to wait for it at first; 0 is forever
}

// A SAN is a subject alternative name that a peer's certificate must have one of.
type SAN struct {
	Type  tlsv3.SubjectAltNameMatcher_SanType
	Match StringMatch
}

// A Validation says which peers' certificates are good. Without CA all are.
type Validation struct {
	CA   *Data // PEM
	SANs []SAN
}

// TLS is one side of TLS.
type TLS struct {
	Min, Max     uint16
	ALPN         []string
	Certificates []Certificate
	Discovered   []SecretRef // certificates
	Validation   *Validation
	Trust        *SecretRef // the CA of Validation, discovered
	Require      bool       // a downstream's certificate is required
	SNI          string     // for an upstream
}

func (t *TLS) secrets() []SecretRef {
	if t == nil {
		return nil
	}
	all := t.Discovered
	if t.Trust != nil {
		all = append(all[:len(all):len(all)], *t.Trust)
	}
	return all
}

// A Secret is what SDS tells: one of the two is not nil.
type Secret struct {
	Name        string
	Certificate *Certificate
	Validation  *Validation
}

// DecodeSecret decodes a secret. Its errors never have any of it.
func DecodeSecret(m *tlsv3.Secret) (*Secret, error) {
	d := new(decoder)
	if !d.start("", m) {
		return nil, d.err
	}
	s := &Secret{Name: m.GetName()}
	switch {
	case m.GetTlsCertificate() != nil:
		c := d.certificate("tls_certificate", m.GetTlsCertificate())
		s.Certificate = &c
	case m.GetValidationContext() != nil:
		s.Validation = d.validation("validation_context", m.GetValidationContext())
	default:
		d.fail("", "only tls_certificate and validation_context are supported")
	}
	if d.err != nil {
		return nil, d.err
	}
	return s, nil
}

// tlsSocket decodes the TLS that s has into m, at the path that it returns. ok is
// false if it has none, or another than m.
func (d *decoder) tlsSocket(path string, s *corev3.TransportSocket, m proto.Message) (at string, ok bool) {
	a := s.GetTypedConfig()
	at = in(path, "typed_config")
	switch {
	case s == nil:
		return at, false
	case typeOf(a) == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" && len(a.GetValue()) == 0:
		return at, false
	case typeOf(a) != string(m.ProtoReflect().Descriptor().FullName()):
		d.fail(at, "transport socket %s is not supported by the engine", orName(typeOf(a), s.GetName()))
		return at, false
	}
	return at, d.unpack(at, a, m)
}

func (d *decoder) downstreamTLS(path string, s *corev3.TransportSocket) *TLS {
	m := new(tlsv3.DownstreamTlsContext)
	path, ok := d.tlsSocket(path, s, m)
	if !ok {
		return nil
	}
	t := d.common(in(path, "common_tls_context"), m.GetCommonTlsContext())
	t.Require = m.GetRequireClientCertificate().GetValue()
	if len(t.Certificates)+len(t.Discovered) == 0 {
		d.fail(in(path, "common_tls_context"), "there is no certificate")
	}
	return t
}

func (d *decoder) upstreamTLS(path string, s *corev3.TransportSocket) *TLS {
	m := new(tlsv3.UpstreamTlsContext)
	path, ok := d.tlsSocket(path, s, m)
	if !ok {
		return nil
	}
	t := d.common(in(path, "common_tls_context"), m.GetCommonTlsContext())
	if len(t.secrets()) > 0 {
		d.fail(in(path, "common_tls_context"), "secrets of a cluster cannot be discovered: give them inline or by file")
	}
	t.SNI = m.GetSni()
	return t
}

func (d *decoder) common(path string, m *tlsv3.CommonTlsContext) *TLS {
	t := &TLS{ALPN: m.GetAlpnProtocols()}
	t.Min = d.version(in(path, "tls_params.tls_minimum_protocol_version"), m.GetTlsParams().GetTlsMinimumProtocolVersion(), tls.VersionTLS12)
	t.Max = d.version(in(path, "tls_params.tls_maximum_protocol_version"), m.GetTlsParams().GetTlsMaximumProtocolVersion(), 0)
	for i, c := range m.GetTlsCertificates() {
		t.Certificates = append(t.Certificates, d.certificate(at(in(path, "tls_certificates"), i), c))
	}
	for i, s := range m.GetTlsCertificateSdsSecretConfigs() {
		t.Discovered = append(t.Discovered, d.secretRef(at(in(path, "tls_certificate_sds_secret_configs"), i), s))
	}
	switch v := m.GetValidationContextType().(type) {
	case *tlsv3.CommonTlsContext_ValidationContext:
		t.Validation = d.validation(in(path, "validation_context"), v.ValidationContext)
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		ref := d.secretRef(in(path, "validation_context_sds_secret_config"), v.ValidationContextSdsSecretConfig)
		t.Trust, t.Validation = &ref, new(Validation)
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		p, c := in(path, "combined_validation_context"), v.CombinedValidationContext
		t.Validation = d.validation(in(p, "default_validation_context"), c.GetDefaultValidationContext())
		ref := d.secretRef(in(p, "validation_context_sds_secret_config"), c.GetValidationContextSdsSecretConfig())
		t.Trust = &ref
	}
	return t
}

func (d *decoder) version(path string, v tlsv3.TlsParameters_TlsProtocol, auto uint16) uint16 {
	switch v {
	case tlsv3.TlsParameters_TLS_AUTO:
		return auto
	case tlsv3.TlsParameters_TLSv1_2:
		return tls.VersionTLS12
	case tlsv3.TlsParameters_TLSv1_3:
		return tls.VersionTLS13
	}
	d.fail(path, "%s is not supported: it is not secure", v)
	return 0
}

func (d *decoder) certificate(path string, m *tlsv3.TlsCertificate) Certificate {
	return Certificate{
		Chain: d.data(in(path, "certificate_chain"), m.GetCertificateChain()),
		Key:   d.data(in(path, "private_key"), m.GetPrivateKey()),
	}
}

func (d *decoder) data(path string, s *corev3.DataSource) Data {
	switch v := s.GetSpecifier().(type) {
	case *corev3.DataSource_Filename:
		return Data{File: v.Filename}
	case *corev3.DataSource_InlineBytes:
		return Data{Bytes: v.InlineBytes}
	case *corev3.DataSource_InlineString:
		return Data{Bytes: []byte(v.InlineString)}
	}
	d.fail(path, "required: a filename, inline_bytes or inline_string")
	return Data{}
}

func (d *decoder) secretRef(path string, m *tlsv3.SdsSecretConfig) SecretRef {
	if m.GetSdsConfig() == nil {
		d.fail(in(path, "sds_config"), "required: the engine has no static secrets")
	}
	return SecretRef{Name: m.GetName(), Timeout: d.ads(in(path, "sds_config"), m.GetSdsConfig())}
}

func (d *decoder) validation(path string, m *tlsv3.CertificateValidationContext) *Validation {
	v := new(Validation)
	if m.GetTrustedCa() != nil {
		ca := d.data(in(path, "trusted_ca"), m.GetTrustedCa())
		v.CA = &ca
	}
	if m.GetTrustChainVerification() == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED {
		return new(Validation) // whoever it is
	}
	for i, s := range m.GetMatchTypedSubjectAltNames() {
		p := at(in(path, "match_typed_subject_alt_names"), i)
		switch s.GetSanType() {
		case tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI,
			tlsv3.SubjectAltNameMatcher_EMAIL, tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
		default:
			d.fail(in(p, "san_type"), "%s is not supported", s.GetSanType())
		}
		v.SANs = append(v.SANs, SAN{Type: s.GetSanType(), Match: d.stringMatch(in(p, "matcher"), s.GetMatcher())})
	}
	return v
}

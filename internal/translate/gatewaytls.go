package translate

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	apinetworking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// terminate sets how s terminates TLS. It reports false, and why, if that cannot
// be done; a listener that waited for a Secret would never serve.
func (b *builder) terminate(s *server, in *apinetworking.ServerTLSSettings) bool {
	field := s.field + ".tls"
	mutual := in.GetMode() == apinetworking.ServerTLSSettings_MUTUAL
	switch {
	case in == nil:
		b.refuse(s.owner, field, "is missing", "give a mode and a credentialName")
		return false
	case in.Mode == apinetworking.ServerTLSSettings_ISTIO_MUTUAL || in.Mode == apinetworking.ServerTLSSettings_AUTO_PASSTHROUGH:
		b.refuse(s.owner, field+".mode", in.Mode.String()+" is not supported", "use SIMPLE, MUTUAL or PASSTHROUGH")
		return false
	case in.CaCrl != "":
		b.refuse(s.owner, field+".caCrl", "is not supported; the server is left out", "remove it")
		return false
	case in.InsecureSkipVerify.GetValue():
		b.refuse(s.owner, field+".insecureSkipVerify", "is not supported; the server is left out", "use mode SIMPLE or OPTIONAL_MUTUAL")
		return false
	}
	common := &tlsv3.CommonTlsContext{TlsParams: tlsParameters(in)}
	if s.protocol == mesh.HTTPS {
		common.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	s.tls = &tlsv3.DownstreamTlsContext{CommonTlsContext: common}
	if !b.serverCertificates(s, in) {
		return false
	}
	if mutual || in.Mode == apinetworking.ServerTLSSettings_OPTIONAL_MUTUAL {
		if mutual {
			s.tls.RequireClientCertificate = yes()
		}
		return b.clientValidation(s, in)
	}
	return true
}

// tellUnheard tells of settings of a server that do nothing.
func (b *builder) tellUnheard(s *server, in *apinetworking.Server) {
	//lint:ignore SA1019 it is refused
	if in.Port.GetTargetPort() != 0 {
		b.refuse(s.owner, s.field+".port.targetPort", "means nothing at a Gateway", "give the Service that leads to the proxy the targetPort")
	}
	if in.Tls == nil || s.protocol.IsHTTP() {
		return
	}
	heard := heardTLS(in.Tls, s.protocol == mesh.HTTPS)
	for _, name := range written(in.Tls) {
		if !slices.Contains(heard, name) {
			b.refuse(s.owner, s.field+".tls."+name, "means nothing here in mode "+in.Tls.Mode.String(), "remove it")
		}
	}
	for i, c := range in.Tls.TlsCertificates {
		if c.CaCertificates != "" {
			b.refuse(s.owner, fmt.Sprintf("%s.tls.tlsCertificates[%d].caCertificates", s.field, i), "is not supported", "use tls.caCertificates")
		}
	}
}

// heardTLS are the settings that do something in the mode. What terminate refuses
// counts among them.
func heardTLS(in *apinetworking.ServerTLSSettings, requests bool) []string {
	heard := []string{"mode"}
	if requests {
		heard = append(heard, "httpsRedirect")
	}
	if in.Mode == apinetworking.ServerTLSSettings_PASSTHROUGH {
		return heard
	}
	heard = append(heard, "minProtocolVersion", "maxProtocolVersion", "cipherSuites", "credentialName", "credentialNames", "caCrl", "insecureSkipVerify")
	if in.CredentialName == "" && len(in.CredentialNames) == 0 {
		heard = append(heard, "tlsCertificates", "serverCertificate", "privateKey")
	}
	if in.Mode == apinetworking.ServerTLSSettings_MUTUAL || in.Mode == apinetworking.ServerTLSSettings_OPTIONAL_MUTUAL {
		heard = append(heard, "caCertificates", "caCertCredentialName", "subjectAltNames", "verifyCertificateSpki", "verifyCertificateHash")
	}
	return heard
}

func tlsParameters(in *apinetworking.ServerTLSSettings) *tlsv3.TlsParameters {
	if in.MinProtocolVersion == 0 && in.MaxProtocolVersion == 0 && len(in.CipherSuites) == 0 {
		return nil
	}
	return &tlsv3.TlsParameters{ // Istio numbers versions as Envoy does
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TlsProtocol(in.MinProtocolVersion),
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TlsProtocol(in.MaxProtocolVersion),
		CipherSuites:              in.CipherSuites,
	}
}

// serverCertificates are Secrets of the proxy's namespace, or files on its
// machine.
func (b *builder) serverCertificates(s *server, in *apinetworking.ServerTLSSettings) bool {
	names := in.CredentialNames
	if len(names) == 0 && in.CredentialName != "" {
		names = []string{in.CredentialName}
	}
	for _, name := range names {
		if !b.certificate(s, s.field+".tls.credentialName", b.proxy.Namespace, name) {
			return false
		}
	}
	if len(names) > 0 {
		return true
	}
	files := in.TlsCertificates
	if len(files) == 0 {
		files = []*apinetworking.ServerTLSSettings_TLSCertificate{{ServerCertificate: in.ServerCertificate, PrivateKey: in.PrivateKey}}
	}
	for _, f := range files {
		if f.ServerCertificate == "" || f.PrivateKey == "" {
			b.refuse(s.owner, s.field+".tls.credentialName", "is missing, which mode "+in.Mode.String()+" needs", "name a Secret with tls.crt and tls.key")
			return false
		}
		s.tls.CommonTlsContext.TlsCertificates = append(s.tls.CommonTlsContext.TlsCertificates, &tlsv3.TlsCertificate{
			CertificateChain: fileSource(f.ServerCertificate), PrivateKey: fileSource(f.PrivateKey),
		})
	}
	return true
}

// certificate adds a Secret's certificate to s, as kubernetes://NAME.
func (b *builder) certificate(s *server, field, namespace, name string) bool {
	secret := b.secret(s, field, namespace, &name)
	if secret == nil {
		return false
	}
	chain, key := secretKeys(secret, corev1.TLSCertKey, "cert"), secretKeys(secret, corev1.TLSPrivateKeyKey, "key")
	if _, err := tls.X509KeyPair(chain, key); err != nil {
		// The error is of the key pair's form; it holds none of its bytes.
		b.refuse(s.owner, field, "Secret "+namespace+"/"+name+" has no usable tls.crt and tls.key: "+err.Error(), "correct the Secret")
		return false
	}
	out := &tlsv3.Secret{Name: "kubernetes://" + name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inlineBytes(chain), PrivateKey: inlineBytes(key),
	}}}
	s.secrets = append(s.secrets, out)
	common := s.tls.CommonTlsContext
	common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs, sds(out.Name))
	return true
}

// secret finds a Secret that name, [kubernetes://][NAMESPACE/]NAME, means for a
// proxy of namespace, and leaves NAME in name.
func (b *builder) secret(s *server, field, namespace string, name *string) *corev1.Secret {
	*name = strings.TrimPrefix(*name, "kubernetes://")
	if ns, n, ok := strings.Cut(*name, "/"); ok {
		if ns != namespace {
			b.refuse(s.owner, field, "Secret "+*name+" is not in the proxy's namespace", "copy it to namespace "+namespace)
			return nil
		}
		*name = n
	}
	secret := b.world.Secret(namespace, *name)
	if secret == nil {
		b.refuse(s.owner, field, "there is no Secret "+namespace+"/"+*name, "create it with kubectl create secret tls")
	}
	return secret
}

func secretKeys(s *corev1.Secret, keys ...string) []byte {
	for _, k := range keys {
		if len(s.Data[k]) > 0 {
			return s.Data[k]
		}
	}
	return nil
}

func inlineBytes(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

func sds(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()}
}

// clientValidation has clients' certificates verified by a Secret's ca.crt, as
// kubernetes://NAME-cacert, or by a file.
func (b *builder) clientValidation(s *server, in *apinetworking.ServerTLSSettings) bool {
	validation := &tlsv3.CertificateValidationContext{
		VerifyCertificateSpki: in.VerifyCertificateSpki,
		VerifyCertificateHash: in.VerifyCertificateHash,
	}
	for _, san := range in.SubjectAltNames {
		for _, kind := range []tlsv3.SubjectAltNameMatcher_SanType{tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI} {
			validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
				SanType: kind, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: san}},
			})
		}
	}
	common := s.tls.CommonTlsContext
	if in.CaCertificates != "" {
		validation.TrustedCa = fileSource(in.CaCertificates)
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
		return true
	}
	name, ok := b.authorities(s, in)
	common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         validation,
			ValidationContextSdsSecretConfig: sds(name),
		},
	}
	return ok
}

// authorities adds the Secret of the authorities that sign clients'
// certificates: caCertCredentialName, else NAME-cacert, else credentialName itself.
func (b *builder) authorities(s *server, in *apinetworking.ServerTLSSettings) (name string, ok bool) {
	field := s.field + ".tls.credentialName"
	if in.CaCertCredentialName != "" {
		field = s.field + ".tls.caCertCredentialName"
	}
	name = cmp.Or(in.CaCertCredentialName, in.CredentialName)
	if own := strings.TrimPrefix(name, "kubernetes://") + "-cacert"; b.world.Secret(b.proxy.Namespace, own) != nil {
		name = own
	}
	secret := b.secret(s, field, b.proxy.Namespace, &name)
	if secret == nil {
		return "", false
	}
	ca := secretKeys(secret, corev1.ServiceAccountRootCAKey, "cacert")
	if !x509.NewCertPool().AppendCertsFromPEM(ca) {
		b.refuse(s.owner, field, "Secret "+b.proxy.Namespace+"/"+name+" has no usable ca.crt", "add the certificates of the authorities, PEM")
		return "", false
	}
	out := &tlsv3.Secret{
		Name: "kubernetes://" + strings.TrimSuffix(name, "-cacert") + "-cacert",
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inlineBytes(ca)}},
	}
	s.secrets = append(s.secrets, out)
	return out.Name, true
}

package engine

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// certificate makes a certificate for the name, that signs itself, in PEM.
func certificate(t *testing.T, name string) (chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func certificateSecret(name string, chain, key []byte) *tlsv3.Secret {
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}}
}

// A listener waits for its certificate, chooses the chain by server name, and
// takes a new certificate at once. Clients are asked for theirs.
func TestTLS(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	l := httpListener(t, "main", port, "", "forward_client_cert_details: SANITIZE_SET\nset_current_client_cert_details: {dns: true}")
	secured := parse(t, `
listener_filters:
- name: inspector
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
filter_chains:
- filter_chain_match: {server_names: [a.example]}
  transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: true
      common_tls_context:
        alpn_protocols: [h2, http/1.1]
        tls_certificate_sds_secret_configs: [{name: cert, sds_config: `+adsSource+`}]
        combined_validation_context:
          default_validation_context: {match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: client.example}}]}
          validation_context_sds_secret_config: {name: ca, sds_config: `+adsSource+`}`, new(listenerv3.Listener))
	secured.FilterChains[0].Filters = l.FilterChains[0].Filters
	l.FilterChains, l.ListenerFilters = secured.FilterChains, secured.ListenerFilters
	c.set(staticCluster(t, "backend", backend(t, echo)), l, routeConfig(t, toBackend))
	h := run(t, c)
	c.taken(routeType, 1)
	if h.engine.Live() {
		t.Fatal("live without certificate")
	}
	chain, key := certificate(t, "a.example")
	clientChain, clientKey := certificate(t, "client.example")
	otherChain, otherKey := certificate(t, "other.example")
	ca := &tlsv3.Secret{Name: "ca", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: append(clientChain, otherChain...)}},
	}}}
	c.set(certificateSecret("cert", chain, key), ca)
	<-h.engine.Ready()

	ask := func(name string, cert, key []byte, protocol string) (*http.Response, error) {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		protocols := new(http.Protocols)
		protocols.SetHTTP1(protocol == "HTTP/1.1")
		protocols.SetHTTP2(protocol == "HTTP/2.0")
		transport := &http.Transport{
			Protocols:         protocols,
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{ServerName: name, InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
			},
		}
		resp, err := (&http.Client{Transport: transport}).Get("https://" + name + "/")
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		resp, err := ask("a.example", clientChain, clientKey, protocol)
		if err != nil || resp.StatusCode != 200 || resp.Proto != protocol {
			t.Errorf("%s: %v %v", protocol, resp, err)
		}
	}
	if _, err := ask("b.example", clientChain, clientKey, "HTTP/1.1"); err == nil {
		t.Error("a name without a filter chain was served")
	}
	if _, err := ask("a.example", otherChain, otherKey, "HTTP/1.1"); err == nil {
		t.Error("a client with another name was served")
	}
	newChain, newKey := certificate(t, "a.example")
	c.set(certificateSecret("cert", newChain, newKey))
	c.taken(secretType, 2)
	resp, err := ask("a.example", clientChain, clientKey, "HTTP/1.1")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(newChain)
	if !resp.TLS.PeerCertificates[0].Equal(mustParse(t, block.Bytes)) {
		t.Error("the old certificate is still in use")
	}
	c.set(certificateSecret("cert", newChain, []byte("secret!")))
	if reason := c.nack(1); reason == "" || strings.Contains(reason, "secret!") {
		t.Errorf("nack: %s", reason)
	}
}

func mustParse(t *testing.T, der []byte) *x509.Certificate {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

package listener

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/chandler-proxy/chandler/internal/engine/certs"
	"github.com/chandler-proxy/chandler/internal/engine/config"
)

// A Secret is where a secret is, or will be.
type Secret struct {
	Certificate atomic.Pointer[tls.Certificate]
	Trust       atomic.Pointer[Trust]
}

// A Trust is which peers' certificates are good.
type Trust struct {
	CA   *x509.CertPool // nil for any
	SANs []config.SAN
}

// A downstreamTLS makes the configuration for a chain from the secrets of now.
type downstreamTLS struct {
	cfg     *config.TLS
	fixed   []tls.Certificate
	ca      *x509.CertPool // that is not discovered
	secrets []*Secret
	trust   *Secret

	mu   sync.Mutex
	key  []any // what made is made of
	made *tls.Config
}

func newDownstreamTLS(cfg *config.TLS, secret func(string) *Secret) (*downstreamTLS, error) {
	d := &downstreamTLS{cfg: cfg}
	for _, c := range cfg.Certificates {
		pair, err := certs.Load(c)
		if err != nil {
			return nil, err
		}
		d.fixed = append(d.fixed, *pair)
	}
	if cfg.Validation != nil && cfg.Validation.CA != nil {
		ca, err := certs.LoadCA(*cfg.Validation.CA)
		if err != nil {
			return nil, err
		}
		d.ca = ca
	}
	for _, ref := range cfg.Discovered {
		d.secrets = append(d.secrets, secret(ref.Name))
	}
	if cfg.Trust != nil {
		d.trust = secret(cfg.Trust.Name)
	}
	return d, nil
}

// config returns the configuration; the same one as long as the secrets are the same.
func (d *downstreamTLS) config() *tls.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	var key []any
	for _, s := range d.secrets {
		key = append(key, s.Certificate.Load())
	}
	if d.trust != nil {
		key = append(key, d.trust.Trust.Load())
	}
	if d.made == nil || !same(key, d.key) {
		d.key, d.made = key, d.build()
	}
	return d.made
}

func same(a, b []any) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return len(a) == len(b)
}

func (d *downstreamTLS) build() *tls.Config {
	c := &tls.Config{
		MinVersion: d.cfg.Min, MaxVersion: d.cfg.Max, NextProtos: d.cfg.ALPN,
		Certificates: append([]tls.Certificate(nil), d.fixed...),
	}
	for _, s := range d.secrets {
		if cert := s.Certificate.Load(); cert != nil {
			c.Certificates = append(c.Certificates, *cert)
		}
	}
	if len(d.cfg.ALPN) > 0 {
		c.GetConfigForClient = tolerant(c)
	}
	d.verify(c)
	return c
}

// tolerant lets in clients that offer only protocols which are not spoken here, as
// Envoy does: crypto/tls would refuse them.
func tolerant(c *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		for _, offered := range h.SupportedProtos {
			for _, spoken := range c.NextProtos {
				if offered == spoken {
					return nil, nil
				}
			}
		}
		plain := c.Clone()
		plain.NextProtos, plain.GetConfigForClient = nil, nil
		return plain, nil
	}
}

var errNoTrust = errors.New("the CA for clients' certificates is not known yet")

// verify has clients' certificates asked for and checked.
func (d *downstreamTLS) verify(c *tls.Config) {
	if d.cfg.Validation == nil && !d.cfg.Require {
		return
	}
	c.ClientAuth = tls.RequestClientCert
	if d.cfg.Require {
		c.ClientAuth = tls.RequireAnyClientCert
	}
	ca, sans, known := d.ca, []config.SAN(nil), true
	if d.cfg.Validation != nil {
		sans = d.cfg.Validation.SANs
	}
	if d.trust != nil {
		t := d.trust.Trust.Load()
		if known = t != nil; known {
			ca = t.CA
			sans = append(sans[:len(sans):len(sans)], t.SANs...)
		}
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		switch {
		case len(s.PeerCertificates) == 0:
			return nil // it would have been refused if it were required
		case !known:
			return errNoTrust
		}
		return certs.Verify(s.PeerCertificates, ca, sans, x509.ExtKeyUsageClientAuth)
	}
}

// Package certs turns certificates and rules for them, as configured, into what
// crypto/tls takes, for both sides of the proxy.
//
// It reads files, once, when asked to. It refuses keys that do not belong to their
// certificate and CAs without one. Its errors never have any of a key in them.
//
// Without a CA a peer's certificate is taken as it is, as Envoy does.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/chandler-proxy/chandler/internal/engine/config"
)

// Why a peer is refused.
var (
	ErrNoCertificate = errors.New("peer has no certificate")
	ErrSAN           = errors.New("no subject alternative name of the peer's certificate is allowed")
)

// read returns the bytes of d, from its file if it is in one.
func read(d config.Data) ([]byte, error) {
	if d.File != "" {
		return os.ReadFile(d.File)
	}
	return d.Bytes, nil
}

// Load makes a certificate.
func Load(c config.Certificate) (*tls.Certificate, error) {
	chain, err := read(c.Chain)
	if err != nil {
		return nil, fmt.Errorf("read certificate chain: %w", err)
	}
	key, err := read(c.Key)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	return &pair, nil
}

// LoadCA makes a pool of CAs.
func LoadCA(d config.Data) (*x509.CertPool, error) {
	pem, err := read(d)
	if err != nil {
		return nil, fmt.Errorf("read trusted CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("load trusted CA: no certificate in it")
	}
	return pool, nil
}

// Verify checks a peer's certificates: that ca, if there is one, signed them for
// that usage, and that one of sans, if there are any, is in the first.
func Verify(peers []*x509.Certificate, ca *x509.CertPool, sans []config.SAN, usage x509.ExtKeyUsage) error {
	if len(peers) == 0 {
		return ErrNoCertificate
	}
	if ca != nil {
		middle := x509.NewCertPool()
		for _, c := range peers[1:] {
			middle.AddCert(c)
		}
		if _, err := peers[0].Verify(x509.VerifyOptions{Roots: ca, Intermediates: middle, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return err
		}
	}
	if len(sans) > 0 && !anySAN(peers[0], sans) {
		return ErrSAN
	}
	return nil
}

func anySAN(c *x509.Certificate, sans []config.SAN) bool {
	for i := range sans {
		for _, name := range names(c, sans[i].Type) {
			if sans[i].Match.Match(name) {
				return true
			}
		}
	}
	return false
}

func names(c *x509.Certificate, t tlsv3.SubjectAltNameMatcher_SanType) []string {
	var list []string
	switch t {
	case tlsv3.SubjectAltNameMatcher_DNS:
		return c.DNSNames
	case tlsv3.SubjectAltNameMatcher_EMAIL:
		return c.EmailAddresses
	case tlsv3.SubjectAltNameMatcher_URI:
		for _, u := range c.URIs {
			list = append(list, u.String())
		}
	case tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
		for _, ip := range c.IPAddresses {
			list = append(list, ip.String())
		}
	}
	return list
}

// Client makes the configuration of a cluster's TLS. host, given for each connection
// to [Named], is what the certificate must be for if autoSAN is set.
func Client(t *config.TLS) (*tls.Config, error) {
	c := &tls.Config{MinVersion: t.Min, MaxVersion: t.Max, ServerName: t.SNI, InsecureSkipVerify: true} // verified below
	for _, cert := range t.Certificates {
		pair, err := Load(cert)
		if err != nil {
			return nil, err
		}
		c.Certificates = append(c.Certificates, *pair)
	}
	if t.Validation == nil {
		return c, nil
	}
	var ca *x509.CertPool
	if t.Validation.CA != nil {
		pool, err := LoadCA(*t.Validation.CA)
		if err != nil {
			return nil, err
		}
		ca = pool
	}
	sans := t.Validation.SANs
	c.VerifyConnection = func(s tls.ConnectionState) error {
		return Verify(s.PeerCertificates, ca, sans, x509.ExtKeyUsageServerAuth)
	}
	return c, nil
}

// Named returns c for a connection to the server of that name; verify has the
// certificate checked for it, too.
func Named(c *tls.Config, name string, verify bool) *tls.Config {
	named := c.Clone()
	named.ServerName = name
	if next := c.VerifyConnection; verify && next != nil {
		named.VerifyConnection = func(s tls.ConnectionState) error {
			if err := next(s); err != nil {
				return err
			}
			return s.PeerCertificates[0].VerifyHostname(name)
		}
	}
	return named
}

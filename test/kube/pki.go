package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// An authority signs the cluster's certificates. Keys and certificates are
// throw-away; they are valid for a day.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// A subject is who a certificate is for: as a client its name and group are the
// user's, as a server it has names and addresses.
type subject struct {
	file, name, group string
	dns               []string
	ips               []net.IP
}

// newAuthority makes the authority and writes ca.crt into dir.
func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate(subject{name: "test-ca"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if template, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	a := &authority{dir: dir, cert: template, key: key}
	return a, a.write("ca.crt", "CERTIFICATE", der)
}

func certificate(s subject) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: s.name},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:     s.dns,
		IPAddresses:  s.ips,
	}
	if s.group != "" {
		c.Subject.Organization = []string{s.group}
	}
	return c
}

// issue writes FILE.crt and FILE.key for s.
func (a *authority) issue(s subject) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate(s), a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("certificate for %s: %w", s.name, err)
	}
	if err := a.write(s.file+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return a.writeKey(s.file+".key", key)
}

// serviceAccountKeys writes sa.key and sa.pub, with which tokens are signed and checked.
func (a *authority) serviceAccountKeys() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := a.write("sa.pub", "PUBLIC KEY", der); err != nil {
		return err
	}
	return a.writeKey("sa.key", key)
}

func (a *authority) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return a.write(name, "EC PRIVATE KEY", der)
}

func (a *authority) write(name, kind string, der []byte) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	return os.WriteFile(filepath.Join(a.dir, name), text, 0o600)
}

// credentials writes all that the cluster's programs need into dir.
func credentials(dir string) error {
	a, err := newAuthority(dir)
	if err != nil {
		return err
	}
	node, service := net.ParseIP(nodeIP), net.ParseIP(apiServiceIP)
	for _, s := range []subject{
		{file: "apiserver", name: "kube-apiserver", ips: []net.IP{node, service, net.IPv4(127, 0, 0, 1)}, dns: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}},
		{file: "kubelet-client", name: "kube-apiserver-kubelet-client", group: "system:masters"},
		{file: "node", name: "system:node:" + nodeName, group: "system:nodes", ips: []net.IP{node}, dns: []string{nodeName}},
		{file: "admin", name: "admin", group: "system:masters"},
		{file: "controllers", name: "system:kube-controller-manager"},
		{file: "scheduler", name: "system:kube-scheduler"},
		{file: "proxy", name: "system:kube-proxy"},
	} {
		if err := a.issue(s); err != nil {
			return err
		}
	}
	return a.serviceAccountKeys()
}

// kubeconfig writes one for the user whose certificate is in pki, itself
// complete: it needs no other file.
func kubeconfig(path, pki, user string) error {
	var parts [3]string
	for i, name := range []string{"ca.crt", user + ".crt", user + ".key"} {
		text, err := os.ReadFile(filepath.Join(pki, name))
		if err != nil {
			return err
		}
		parts[i] = base64.StdEncoding.EncodeToString(text)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://%s", certificate-authority-data: %s}}]
users: [{name: %s, user: {client-certificate-data: %s, client-key-data: %s}}]
contexts: [{name: test, context: {cluster: test, user: %s}}]
current-context: test
`, apiAddr, parts[0], user, parts[1], parts[2], user)
	return os.WriteFile(path, []byte(text), 0o600)
}

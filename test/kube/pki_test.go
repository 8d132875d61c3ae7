package kube

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestCredentials checks what the programs will: that the certificates are of the
// authority, and for the names that they will be asked for.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	if err := credentials(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("ca.crt has no certificate")
	}
	for _, tt := range []struct {
		file, user, group, server string
	}{
		{file: "apiserver", user: "kube-apiserver", server: "kubernetes.default.svc"},
		{file: "apiserver", user: "kube-apiserver", server: apiServiceIP},
		{file: "node", user: "system:node:node1", group: "system:nodes", server: nodeIP},
		{file: "admin", user: "admin", group: "system:masters"},
		{file: "proxy", user: "system:kube-proxy"},
	} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, tt.file+".crt"), filepath.Join(dir, tt.file+".key"))
		if err != nil {
			t.Error(err)
			continue
		}
		usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: tt.server, KeyUsages: usage}); err != nil {
			t.Errorf("%s at %q: %v", tt.file, tt.server, err)
		}
		name := pair.Leaf.Subject
		if name.CommonName != tt.user || tt.group != "" && (len(name.Organization) != 1 || name.Organization[0] != tt.group) {
			t.Errorf("%s is for %v, want %s of %q", tt.file, name, tt.user, tt.group)
		}
	}
	path := filepath.Join(dir, "admin.kubeconfig")
	if err := kubeconfig(path, dir, "admin"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     []byte `json:"certificate-authority-data"`
			}
		}
	}
	if err := yaml.Unmarshal(text, &config); err != nil || len(config.Clusters) != 1 || string(config.Clusters[0].Cluster.CA) != string(ca) {
		t.Errorf("kubeconfig (%v):\n%s", err, text)
	}
}

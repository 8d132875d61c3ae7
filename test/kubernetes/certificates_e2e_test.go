//go:build e2e

package kubernetes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/inject/trust"
)

const (
	injector = "mutatingwebhookconfiguration/chandler-sidecar-injector"
	control  = "chandler." + root + ".svc"
)

// webhookUntrusted: who applies the manifests again takes the caBundle away.
func webhookUntrusted(t *testing.T, f *fleet) {
	bundles := func() []string {
		return strings.Fields(f.c.Kubectl(t, "get", injector, "-o", "jsonpath={.webhooks[*].clientConfig.caBundle}"))
	}
	want := bundles()
	if len(want) != 4 {
		t.Fatalf("%d webhooks have a caBundle, want 4", len(want))
	}
	var ops []string
	for i := range want {
		ops = append(ops, fmt.Sprintf(`{"op":"replace","path":"/webhooks/%d/clientConfig/caBundle","value":""}`, i))
	}
	f.c.Kubectl(t, "patch", injector, "--type=json", "-p", "["+strings.Join(ops, ",")+"]")
	eventually(t, "caBundle", func() error {
		if got := bundles(); strings.Join(got, " ") != strings.Join(want, " ") {
			return fmt.Errorf("%d of %d webhooks have it", len(got), len(want))
		}
		return nil
	})
	// The next pod is injected. The API server may still hold the configuration without.
	eventually(t, "injection", func() error {
		out, err := f.c.TryKubectl(t.Context(), pausing("trusted"), "create", "-n", "faults", "--dry-run=server", "-o", "yaml", "-f", "-")
		if err != nil {
			return err
		}
		return contains(out, "name: istio-proxy")
	})
}

// pausing is a pod that does nothing.
func pausing(name string) string {
	return "{apiVersion: v1, kind: Pod, metadata: {name: " + name + "}, spec: {containers: [{name: app, image: docker.io/kennethreitz/httpbin, imagePullPolicy: IfNotPresent}]}}"
}

// published is the bundle of root certificates that a namespace has.
func published(t *testing.T, f *fleet, namespace string) string {
	t.Helper()
	out, _ := f.c.TryKubectl(t.Context(), "", "get", "configmap", "-n", namespace, "chandler-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
	return out
}

// rootCertificatesGone: somebody deletes the ConfigMap, or puts his own root there.
func rootCertificatesGone(t *testing.T, f *fleet) {
	want := published(t, f, "faults")
	if !strings.Contains(want, "BEGIN CERTIFICATE") {
		t.Fatalf("root certificates are %q", want)
	}
	back := func(what string) {
		t.Helper()
		eventually(t, what, func() error {
			if got := published(t, f, "faults"); got != want {
				return fmt.Errorf("root certificates are %q", got)
			}
			return nil
		})
	}
	f.c.Kubectl(t, "delete", "configmap", "-n", "faults", "chandler-ca-root-cert")
	back("deleted root certificates")
	f.c.Kubectl(t, "patch", "configmap", "-n", "faults", "chandler-ca-root-cert", "--type=merge", "-p", `{"data":{"root-cert.pem":"mallory"}}`)
	back("changed root certificates")
}

// authorityGone: the Secret with the CA is deleted. What proxies trust is put back.
func authorityGone(t *testing.T, f *fleet) {
	get := func() string {
		out, _ := f.c.TryKubectl(t.Context(), "", "get", "secret", "-n", root, "chandler-ca", "-o", `jsonpath={.data.ca\.json}`)
		return out
	}
	want := get()
	f.c.Kubectl(t, "delete", "secret", "-n", root, "chandler-ca")
	eventually(t, "the CA's Secret", func() error {
		if got := get(); got == "" || got != want {
			return fmt.Errorf("it has %d bytes, %d before, the same: %v", len(got), len(want), got == want)
		}
		return nil
	})
}

// rotation replaces the CA's root, as it happens after nine years: another replica,
// whose policy lets it do so now, takes the steps.
func rotation(t *testing.T, f *fleet) {
	before := published(t, f, "faults")
	step(t, f, identity.Policy{Life: 30 * year, Overlap: 25 * year, Publish: year})
	var both string
	eventually(t, "both roots", func() error {
		if both = published(t, f, "faults"); strings.Count(both, "BEGIN CERTIFICATE") != 2 || !strings.HasPrefix(both, before) {
			return fmt.Errorf("root certificates are\n%s", both)
		}
		return nil
	})
	first, second := roots(t, both)
	if issuer := served(t, f, both); !issuer.Equal(first) {
		t.Error("the new root signs before it is known everywhere")
	}
	// The kubelet brings the new bundle to the pods, at its own time or when they change.
	f.c.Kubectl(t, "annotate", "pods", "-n", "faults", "--all", "look=again")
	f.c.Kubectl(t, "annotate", "pods", "-n", root, "-l", "app=istio-ingressgateway", "look=again")
	for _, pod := range pods(t, f.c, "faults", "app=envoy") {
		eventually(t, "both roots in a pod", func() error {
			out, err := f.c.TryKubectl(t.Context(), "", "exec", "-n", "faults", pod, "-c", "istio-proxy", "--", "cat", "/var/run/secrets/chandler/ca/root-cert.pem")
			if err != nil {
				return err
			}
			if out != both {
				return fmt.Errorf("it has\n%s", out)
			}
			return nil
		})
	}
	f.change(t)
	step(t, f, identity.Policy{Life: 30 * year, Overlap: 25 * year, Publish: time.Nanosecond})
	eventually(t, "certificate by the new root", func() error {
		if !served(t, f, both).Equal(second) {
			return fmt.Errorf("it is by the old one")
		}
		return nil
	})
	if got := published(t, f, "faults"); got != both {
		t.Errorf("the old root is gone though certificates of it may be in use:\n%s", got)
	}
	// Who knows both, and who connects anew, goes on; and injection does.
	f.c.Kubectl(t, "delete", "pod", "-n", root, leader(t, f.c))
	f.c.Kubectl(t, "rollout", "status", "-n", root, "deployment/chandler", "--timeout=60s")
	f.restart(t)
}

const year = 365 * 24 * time.Hour

// step takes the steps that are due by a policy.
func step(t *testing.T, f *fleet, policy identity.Policy) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", f.c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.Dial = f.c.Dial
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Open(t.Context(), identity.AuthorityConfig{
		Keeper: trust.NewSecretKeeper(client, root, nil), Names: []string{control}, Policy: policy,
	}); err != nil {
		t.Fatal(err)
	}
}

// roots are the two of a bundle.
func roots(t *testing.T, bundle string) (first, second *x509.Certificate) {
	t.Helper()
	var all []*x509.Certificate
	for rest := []byte(bundle); ; {
		block, more := pem.Decode(rest)
		if block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		all, rest = append(all, certificate), more
	}
	if len(all) != 2 {
		t.Fatalf("%d roots, want 2", len(all))
	}
	return all[0], all[1]
}

// served is the root of the certificate that the control plane shows now, and the
// webhook with it.
func served(t *testing.T, f *fleet, bundle string) *x509.Certificate {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(bundle))
	root := func(port string) *x509.Certificate {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		raw, err := f.c.Dial(ctx, "tcp", control+".cluster.local:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		conn := tls.Client(raw, &tls.Config{RootCAs: pool, ServerName: control, NextProtos: []string{"h2"}})
		if err := conn.HandshakeContext(ctx); err != nil {
			t.Fatal(err)
		}
		chain := conn.ConnectionState().VerifiedChains[0]
		return chain[len(chain)-1]
	}
	xds, webhook := root("15012"), root("443")
	if !xds.Equal(webhook) {
		return new(x509.Certificate) // of two replicas, or just being replaced
	}
	return xds
}

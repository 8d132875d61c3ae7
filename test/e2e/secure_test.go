//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecure: control plane and agent on machines without Kubernetes, over TLS. The
// agent has a certificate that "control issue" made; one for another namespace, and
// none, get nothing.
func TestSecure(t *testing.T) {
	bin, ca, secure := tool(t, "CHANDLER_BIN"), filepath.Join(t.TempDir(), "ca"), loopback(freePort(t))
	certificate := func(namespace string) []string {
		cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
		if out, err := exec.Command(bin, "control", "issue", "--ca-dir", ca, "--namespace", namespace, "--cert", cert, "--key", key).CombinedOutput(); err != nil {
			t.Fatalf("control issue: %v: %s", err, out)
		}
		return []string{"--control", secure, "--ca", filepath.Join(ca, "root-cert.pem"), "--cert", cert, "--key", key}
	}
	m := prepare(t, func(m *mesh) { m.AgentArgs = certificate("istio-system") })
	m.Control = spawn(t, nil, bin, "control", "--source", "dir:"+m.Dir, "--xds", m.ControlXDS, "--monitoring", m.Monitoring,
		"--secure-xds", secure, "--ca-dir", ca)
	m.startAgent()
	m.serving()

	stranger := func(args []string, reason string) {
		t.Helper()
		other := *m
		other.Data, other.Admin, other.AgentHTTP, other.AgentArgs = shortTempDir(t), loopback(freePort(t)), loopback(freePort(t)), args
		other.startAgent()
		t.Cleanup(other.reap)
		eventually(t, "refusal", func() error {
			if log := other.Agent.Output(t); !strings.Contains(log, reason) {
				return fmt.Errorf("the agent does not tell %q", reason)
			}
			return nil
		})
		if a, err := get(direct(nil, ""), "http://"+other.AgentHTTP+"/healthz/ready"); err != nil || a.status != 503 {
			t.Errorf("an agent that was refused is ready: %+v, %v", a, err)
		}
	}
	stranger(certificate("default"), `asks for configuration of namespace \"istio-system\"`)
	stranger([]string{"--control", secure, "--ca", filepath.Join(ca, "root-cert.pem")}, "a service account's token or a client certificate is needed")
}

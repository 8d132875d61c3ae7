//go:build e2e

package deploy_test

import (
	"bytes"
	"cmp"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/deploy"
)

// TestApply applies what is installed to a real API server, as users do, and asks
// that server what it thinks of it.
func TestApply(t *testing.T) {
	kubeconfig := os.Getenv("CHANDLER_KUBECONFIG")
	if kubeconfig == "" {
		t.Skip("CHANDLER_KUBECONFIG names no API server")
	}
	kubectl := func(stdin io.Reader, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), cmp.Or(os.Getenv("CHANDLER_KUBECTL"), "kubectl"), args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
		cmd.Stdin = stdin
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("kubectl %v: %v\n%s%s", args, err, out, &stderr)
		}
		return string(out)
	}
	var text bytes.Buffer
	if err := deploy.Write(&text, objects(t, deploy.Defaults())); err != nil {
		t.Fatal(err)
	}
	manifests := func() io.Reader { return bytes.NewReader(text.Bytes()) }
	versions := func() string {
		return kubectl(manifests(), "get", "-f", "-", "-o", "custom-columns=:kind,:metadata.namespace,:metadata.name,:metadata.resourceVersion")
	}
	base, err := filepath.Abs("base")
	if err != nil {
		t.Fatal(err)
	}

	// one apply does, by a client that knows nothing of the kinds before
	kubectl(manifests(), "apply", "-f", "-")
	// nobody serves it: other tests' pods would be refused
	defer kubectl(nil, "delete", "mutatingwebhookconfiguration", "chandler-sidecar-injector")
	before := versions()
	if n := strings.Count(before, "\n"); n < 26 {
		t.Errorf("there are %d objects:\n%s", n, before)
	}
	// a control plane at work, whose caBundle an apply must leave
	kubectl(nil, "patch", "mutatingwebhookconfiguration", "chandler-sidecar-injector", "--type=json",
		`--patch=[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"`+caBundle+`"}]`)
	before = versions()
	kubectl(manifests(), "apply", "-f", "-")
	kubectl(nil, "apply", "-k", base)
	if after := versions(); after != before {
		t.Errorf("a second apply changed something:\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if got := kubectl(nil, "get", "mutatingwebhookconfiguration", "chandler-sidecar-injector", "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"); got != caBundle {
		t.Errorf("caBundle is %q after an apply", got)
	}
	kubectl(manifests(), "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
	kubectl(nil, "apply", "--dry-run=server", "-k", base)
	kubectl(nil, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k", base)

	// rights that are left out are not had
	const as = "--as=system:serviceaccount:istio-system:chandler"
	for _, tt := range []struct{ verb, resource, namespace, want string }{
		{"get", "secrets", "default", "yes"},
		{"update", "secrets/chandler-ca", "istio-system", "yes"},
		{"update", "secrets/other", "istio-system", "no"},
		{"patch", "wasmplugins.extensions.istio.io/status", "default", "yes"},
		{"patch", "wasmplugins.extensions.istio.io", "default", "no"},
		{"patch", "mutatingwebhookconfigurations/chandler-sidecar-injector", "", "yes"},
		{"patch", "mutatingwebhookconfigurations/other", "", "no"},
		{"create", "configmaps/chandler-ca-root-cert", "default", "yes"},
		{"create", "configmaps", "default", "no"},
		{"delete", "pods", "default", "no"},
		{"create", "clusterrolebindings", "", "no"},
	} {
		resource, sub, _ := strings.Cut(tt.resource, "/")
		args := []string{"auth", "can-i", tt.verb, tt.resource, as, "-n", tt.namespace}
		if sub == "status" {
			args = []string{"auth", "can-i", tt.verb, resource, "--subresource=status", as, "-n", tt.namespace}
		}
		cmd := exec.CommandContext(t.Context(), cmp.Or(os.Getenv("CHANDLER_KUBECTL"), "kubectl"), args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
		out, _ := cmd.Output() // it fails if the answer is no
		if got := strings.TrimSpace(string(out)); got != tt.want {
			t.Errorf("may it %s %s in %q? %q, want %q", tt.verb, tt.resource, tt.namespace, got, tt.want)
		}
	}
}

// caBundle is a certificate, in base64.
const caBundle = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJkVENDQVJ1Z0F3SUJBZ0lVYTFhMXZYMXZnVmw3R0syK1pURmp4Q3IxNUI0d0NnWUlLb1pJemowRUF3SXcKRHpFTk1Bc0dBMVVFQXd3RWRHVnpkREFnRncweU5qRXhNakV4TVRBek5URmFHQTh5TVRJMk1UQXlPREV4TURNMQpNVm93RHpFTk1Bc0dBMVVFQXd3RWRHVnpkREJaTUJNR0J5cUdTTTQ5QWdFR0NDcUdTTTQ5QXdFSEEwSUFCS2tIClEvZDExd1dtSSs3RHRrTGh6UFRoVGtDTEIvcjlpMlArSnRSWTBybkJkSGZYZWl1Mm5oSktVeVNWcllaeGtqaEMKVHNJM3cxSGN5Uyt2MCtudndKeWpVekJSTUIwR0ExVWREZ1FXQkJRS0dZRm1xUzhTcVd5V0ExKzFsQzRSc0ozegprekFmQmdOVkhTTUVHREFXZ0JRS0dZRm1xUzhTcVd5V0ExKzFsQzRSc0ozemt6QVBCZ05WSFJNQkFmOEVCVEFECkFRSC9NQW9HQ0NxR1NNNDlCQU1DQTBnQU1FVUNJQ25EOVM4M2VSaEUwYnFVWU1tSnpPNFlJdVp2TFJpMDdXVUYKeXl0cklOQWJBaUVBa0FnYXhpdXQrMDlwaTVZMWhwYjg2SS96ZHBjeU5wMjlpc1RpNVVFUjR1VT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo="

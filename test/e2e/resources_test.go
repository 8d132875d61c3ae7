//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// gateway is a gateway that passes everything to one backend.
func gateway(listen, backend string) string {
	_, port, _ := net.SplitHostPort(listen)
	host, backendPort, _ := net.SplitHostPort(backend)
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: %s, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: backend, namespace: default}
spec:
  hosts: ["*"]
  gateways: [istio-system/gateway]
  http:
  - route:
    - destination: {host: backend, port: {number: 80}}
---
apiVersion: v1
kind: Service
metadata: {name: backend, namespace: default}
spec:
  ports: [{name: http, port: 80, targetPort: %s}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: backend-1, namespace: default, labels: {kubernetes.io/service-name: backend}}
addressType: IPv4
ports: [{name: http, port: %s}]
endpoints: [{addresses: [%s]}]
`, port, backendPort, backendPort, host)
}

// plugin is a WasmPlugin of the gateway's. config is what its x-wasm header
// says; more are further lines of its spec.
func plugin(name, url, config string, more ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: %s, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  url: %s
  pluginConfig: {name: %q}
`, name, url, config)
	for _, line := range more {
		b.WriteString("  " + line + "\n")
	}
	return b.String()
}

func TestPluginText(t *testing.T) {
	if got := plugin("a", "oci://r/a:1", "v1", "phase: AUTHN"); !strings.HasSuffix(got, "\n  phase: AUTHN\n") {
		t.Errorf("plugin = %s", got)
	}
}

package envoytest

import (
	"fmt"
	"net"
	"strings"
)

// Gateway is a gateway, by the label istio: ingressgateway, that listens at one address
// and passes everything to a backend at another.
func Gateway(listen, backend string) string {
	_, port, _ := net.SplitHostPort(listen)
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: %s, name: http, protocol: HTTP}
    hosts: ["*"]
---%s`, port, Backend(backend, "gateway"))
}

// Backend is a service, default/backend, at an address, and that gateways of namespace
// istio-system pass everything to it.
func Backend(address string, gateways ...string) string {
	host, port, _ := net.SplitHostPort(address)
	var names []string
	for _, name := range gateways {
		names = append(names, "istio-system/"+name)
	}
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: backend, namespace: default}
spec:
  hosts: ["*"]
  gateways: [%s]
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
`, strings.Join(names, ", "), port, port, host)
}

// Plugin is a WasmPlugin of those that [Gateway] is for. config is what the header x-wasm
// says that test modules add; more are further lines of its spec.
func Plugin(name, url, config string, more ...string) string {
	text := fmt.Sprintf(`
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: %s, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  url: %s
  pluginConfig: {name: %q}
`, name, url, config)
	for _, line := range more {
		text += "  " + line + "\n"
	}
	return text
}

//go:build e2e

package kubernetes

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/test/kube"
)

// TestGatewayAPI: a Gateway of our class gets proxies, an address and conditions; its
// route is served; a plugin that targets it is enforced there; and when it goes, all
// that it had goes.
func TestGatewayAPI(t *testing.T) {
	c := installed(t)
	push(t, c, "header-counter.wasm", "headers:v1")
	t.Parallel()
	ownNamespace(t, c, "gateways")
	apply(t, c, "gateways", httpbin("httpbin", 1, "")+`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, annotations: {networking.istio.io/service-type: ClusterIP}}
spec:
  gatewayClassName: chandler
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: httpbin}
spec:
  parentRefs: [{name: edge}]
  hostnames: [edge.example]
  rules:
  - backendRefs: [{name: httpbin, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: lost}
spec:
  parentRefs: [{name: edge}]
  hostnames: [lost.example]
  rules:
  - backendRefs: [{name: nobody, port: 80}]
`, "httpbin")
	is := func(what, path, want string) {
		t.Helper()
		eventually(t, what+" "+path, func() error {
			if got := c.Kubectl(t, "get", "-n", "gateways", what, "-o", "jsonpath="+path); got != want {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
	is("gatewayclass/chandler", `{.spec.controllerName} {.status.conditions[?(@.type=="Accepted")].status}`, "chandler.io/gateway-controller True")
	is("gateway/edge", `{.status.conditions[?(@.type=="Accepted")].status} {.status.conditions[?(@.type=="Programmed")].status} {.status.listeners[0].attachedRoutes}`, "True True 2")
	ip := serviceIP(t, c, "gateways", "edge-chandler")
	is("gateway/edge", `{.status.addresses[*].value}`, ip)
	parent := `{.status.parents[0].controllerName} {.status.parents[0].conditions[?(@.type=="Accepted")].status} {.status.parents[0].conditions[?(@.type=="ResolvedRefs")].status} {.status.parents[0].conditions[?(@.type=="ResolvedRefs")].reason}`
	is("httproute/httpbin", parent, "chandler.io/gateway-controller True True ResolvedRefs")
	is("httproute/lost", parent, "chandler.io/gateway-controller True False BackendNotFound")
	url := "http://" + ip + "/get "
	answers(t, c, url+"edge.example", 200, "Via-Gateway", "")
	answers(t, c, url+"other.example", 404, "Via-Gateway", "")
	answers(t, c, url+"lost.example", 500, "Via-Gateway", "")

	load := startLoad(t, c, url+"edge.example")
	apply(t, c, "gateways", `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: headers}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  url: oci://`+kube.Registry+`/headers:v1
  pluginConfig: {Via-Gateway: edge}
`)
	answers(t, c, url+"edge.example", 200, "Via-Gateway", "edge")
	current(t, c, "gateways", "headers", 1)
	load.end(t)

	c.Kubectl(t, "delete", "gateway", "-n", "gateways", "edge")
	eventually(t, "what the Gateway had is gone", func() error {
		left := c.Kubectl(t, "get", "deployments,services,serviceaccounts,pods", "-n", "gateways", "-o", "name")
		if strings.Contains(left, "edge-chandler") {
			return fmt.Errorf("%s", left)
		}
		return nil
	})
	is("httproute/httpbin", `{.status.parents[*].controllerName}`, "")
}

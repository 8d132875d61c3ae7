//go:build e2e

package kubernetes

import (
	"strconv"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/test/kube"
)

// cycles is how often a plugin comes, changes and goes.
const cycles = 3

// TestUpdates: a plugin comes, changes its configuration, then its module, and goes,
// while requests are on their way. None fails, at a sidecar of either kind and at the
// ingress gateway.
func TestUpdates(t *testing.T) {
	c := installed(t)
	push(t, c, "header-counter.wasm", "headers:v1")
	push(t, c, "header-counter.wasm", "headers:v2")
	for _, proxy := range []string{"engine", "envoy"} {
		t.Run(proxy, func(t *testing.T) {
			t.Parallel()
			annotations := ""
			if proxy == "envoy" {
				annotations = envoyPod
			}
			namespace := "updates-" + proxy
			ownNamespace(t, c, namespace, "istio-injection=enabled")
			apply(t, c, namespace, httpbin("httpbin", 1, annotations), "httpbin")
			updates(t, c, namespace, "httpbin", "http://"+serviceIP(t, c, namespace, "httpbin")+"/get")
		})
	}
	t.Run("gateway", func(t *testing.T) {
		t.Parallel()
		ownNamespace(t, c, "updates")
		apply(t, c, "updates", httpbin("httpbin", 1, "")+route("updates.example", "httpbin.updates.svc.cluster.local"), "httpbin")
		gateway := "http://" + gatewayIP(t, c) + "/get updates.example"
		updates(t, c, root, "istio-ingressgateway", gateway)
	})
}

// updates is about the plugin headers of a namespace, in front of what has that
// label app; target leads there.
func updates(t *testing.T, c *kube.Cluster, namespace, app, target string) {
	patch := func(spec string) {
		t.Helper()
		c.Kubectl(t, "patch", "wasmplugin", "-n", namespace, "headers", "--type=merge", "-p", `{"spec":`+spec+`}`)
	}
	answers(t, c, target, 200, "", "") // a pod is ready before its application listens
	load := startLoad(t, c, target)
	load.flows(t)
	for i := range cycles {
		value := strconv.Itoa(i)
		apply(t, c, namespace, headers("headers", app, "Cycle", value+".1"))
		answers(t, c, target, 200, "Cycle", value+".1")
		current(t, c, namespace, "headers", 1)
		patch(`{"pluginConfig":{"Cycle":"` + value + `.2"}}`)
		answers(t, c, target, 200, "Cycle", value+".2")
		patch(`{"url":"oci://` + kube.Registry + `/headers:v2","pluginConfig":{"Cycle":"` + value + `.3"}}`)
		answers(t, c, target, 200, "Cycle", value+".3")
		patch(`{"url":"oci://` + kube.Registry + `/not/there:1"}`)
		condition(t, c, namespace, "headers", "Resolved", "False NotFound")
		answers(t, c, target, 200, "Cycle", value+".3")
		c.Kubectl(t, "delete", "wasmplugin", "-n", namespace, "headers")
		answers(t, c, target, 200, "Cycle", "")
	}
	load.flows(t)
	load.end(t)
}

// TestRelabelledPod: a plugin comes to a running pod with the label that it selects, and
// goes with it. No request fails.
func TestRelabelledPod(t *testing.T) {
	c := installed(t)
	push(t, c, "header-counter.wasm", "headers:v1")
	for proxy, annotations := range map[string]string{"engine": "", "envoy": envoyPod} {
		t.Run(proxy, func(t *testing.T) {
			t.Parallel()
			namespace := "relabelled-" + proxy
			ownNamespace(t, c, namespace, "istio-injection=enabled")
			apply(t, c, namespace, httpbin("httpbin", 1, annotations), "httpbin")
			apply(t, c, namespace, strings.Replace(headers("headers", "httpbin", "Labels", "followed"), "app: httpbin", "extra: wanted", 1))
			target := "http://" + serviceIP(t, c, namespace, "httpbin") + "/get"
			answers(t, c, target, 200, "Labels", "")
			load := startLoad(t, c, target)
			load.flows(t)
			for range cycles {
				c.Kubectl(t, "label", "pod", "-n", namespace, "-l", "app=httpbin", "extra=wanted")
				answers(t, c, target, 200, "Labels", "followed")
				programmed(t, c, namespace, "headers", "1/1")
				c.Kubectl(t, "label", "pod", "-n", namespace, "-l", "app=httpbin", "extra-")
				answers(t, c, target, 200, "Labels", "")
			}
			load.flows(t)
			load.end(t)
		})
	}
}

//go:build e2e

package kubernetes

import (
	"strconv"
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
			updates(t, c, namespace, "http://"+serviceIP(t, c, namespace, "httpbin")+"/get", "")
		})
	}
}

// updates is about the plugin headers of a namespace, at what a URL leads to.
func updates(t *testing.T, c *kube.Cluster, namespace, url, host string) {
	target := url
	if host != "" {
		target += " " + host
	}
	load := startLoad(t, c, target)
	load.flows(t)
	for i := range cycles {
		value := strconv.Itoa(i)
		apply(t, c, namespace, headers("headers", "httpbin", "Cycle", value+".1"))
		answers(t, c, url, 200, "Cycle", value+".1")
		current(t, c, namespace, "headers", 1)
		c.Kubectl(t, "patch", "wasmplugin", "-n", namespace, "headers", "--type=merge", "-p", `{"spec":{"pluginConfig":{"Cycle":"`+value+`.2"}}}`)
		answers(t, c, url, 200, "Cycle", value+".2")
		c.Kubectl(t, "patch", "wasmplugin", "-n", namespace, "headers", "--type=merge", "-p",
			`{"spec":{"url":"oci://`+kube.Registry+`/headers:v2","pluginConfig":{"Cycle":"`+value+`.3"}}}`)
		answers(t, c, url, 200, "Cycle", value+".3")
		c.Kubectl(t, "patch", "wasmplugin", "-n", namespace, "headers", "--type=merge", "-p", `{"spec":{"url":"oci://`+kube.Registry+`/not/there:1"}}`)
		condition(t, c, namespace, "headers", "Resolved", "False NotFound")
		answers(t, c, url, 200, "Cycle", value+".3")
		c.Kubectl(t, "delete", "wasmplugin", "-n", namespace, "headers")
		answers(t, c, url, 200, "Cycle", "")
	}
	load.flows(t)
	load.end(t)
}

//go:build e2e

package kubernetes

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/test/kube"
)

// TestLab is the third seed: a labelled namespace, httpbin with a sidecar, a
// plugin, a request through both sidecars, the plugin's counter, and all of it
// deleted; with the engine in the pods, and with Envoy.
func TestLab(t *testing.T) {
	c := installed(t)
	push(t, c, "header-counter.wasm", "wasm:v1")
	c.Kubectl(t, "label", "namespace", "default", "istio-injection=enabled", "--overwrite")
	afterwards(t, c, "label", "namespace", "default", "istio-injection-")
	for _, proxy := range []string{"engine", "envoy"} {
		t.Run(proxy, func(t *testing.T) { lab(t, c, proxy) })
	}
}

func lab(t *testing.T, c *kube.Cluster, proxy string) {
	c.Kubectl(t, "apply", "-f", "../kube/testdata/httpbin.yaml")
	var run []string
	if proxy == "envoy" {
		annotations := `{"sidecar.chandler.io/proxy":"envoy","sidecar.istio.io/proxyImage":"chandler-proxy"}`
		c.Kubectl(t, "patch", "deployment", "httpbin", "-p", `{"spec":{"template":{"metadata":{"annotations":`+annotations+`}}}}`)
		run = append(run, "--annotations=sidecar.chandler.io/proxy=envoy", "--annotations=sidecar.istio.io/proxyImage=chandler-proxy")
	}
	c.Kubectl(t, "rollout", "status", "deployment/httpbin", "--timeout=120s")
	var pods string
	eventually(t, "one pod", func() error {
		pods = c.Kubectl(t, "get", "po", "-l", "app=httpbin", "--no-headers")
		if !regexp.MustCompile(`^httpbin-\S+ +2/2 +Running +0 [^\n]*\n$`).MatchString(pods) {
			return fmt.Errorf("kubectl get po: %q", pods)
		}
		return nil
	})
	pod, _, _ := strings.Cut(pods, " ")

	c.Kubectl(t, "apply", "-f", "testdata/plugin.yaml")
	programmed(t, c, "default", "wasm-example", "1/1")
	args := append([]string{"run", "curl", "--image=curlimages/curl", "-it", "--rm"}, run...)
	out := c.Terminal(t, "$ ", []string{`curl -v -H "hello: something" http://httpbin:8000/headers`, "exit"},
		"kubectl", append(args, "--", "/bin/sh")...)
	if err := contains(out, "curl, istio-init (init), istio-proxy (init)", "HTTP/1.1 200 OK", `"Hello"`, "header_1: some_value_1", "header_2: another_value", "server: envoy"); err != nil {
		t.Errorf("curl from a pod: %v", err)
	}
	c.Kubectl(t, "wait", "--for=delete", "pod/curl", "--timeout=60s")
	stats := c.Run(t, "sh", "-c", "kubectl exec -i "+pod+" -c istio-proxy -- curl localhost:15000/stats/prometheus | grep hello")
	if want := "# TYPE hello_header_counter counter\nhello_header_counter{} 1\n"; stats != want {
		t.Errorf("stats | grep hello = %q, want %q", stats, want)
	}
	wide := c.Kubectl(t, "get", "wasmplugin", "-o", "wide")
	if err := contains(wide, "wasm-example", "True", "1/1", "sha256:"); err != nil {
		t.Errorf("kubectl get wasmplugin -o wide: %v", err)
	}
	t.Logf("\n%s", wide)

	c.Kubectl(t, "delete", "wasmplugin", "wasm-example")
	ip := c.Kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.podIP}")
	eventually(t, "without the plugin", func() error {
		return without(c.Run(t, "curl", "-si", "http://"+ip+"/headers"), "header_1")
	})
	c.Kubectl(t, "delete", "deployment", "httpbin")
	c.Kubectl(t, "delete", "svc", "httpbin")
	c.Kubectl(t, "delete", "sa", "httpbin")
	c.Kubectl(t, "wait", "--for=delete", "pod/"+pod, "--timeout=60s")
}

func without(text, part string) error {
	if strings.Contains(text, part) {
		return fmt.Errorf("it has %q", part)
	}
	return nil
}

// TestTask is the first seed: basic authentication at the ingress gateway.
func TestTask(t *testing.T) {
	c := installed(t)
	push(t, c, "basic-auth.wasm", "istio-ecosystem/wasm-extensions/basic_auth:1.12.0")
	c.Kubectl(t, "apply", "-f", "testdata/bookinfo.yaml")
	afterwards(t, c, "delete", "-f", "testdata/bookinfo.yaml")
	c.Kubectl(t, "rollout", "status", "deployment/productpage-v1", "--timeout=90s")
	const page = "http://istio-ingressgateway.istio-system.svc.cluster.local/productpage"
	code := func(args ...string) string {
		return c.Run(t, "curl", append([]string{"-s", "-o", "/dev/null", "-w", "%{http_code}", "--resolve", "istio-ingressgateway.istio-system.svc.cluster.local:80:" + gatewayIP(t, c)}, append(args, page)...)...)
	}
	is := func(want string, args ...string) {
		t.Helper()
		eventually(t, "productpage", func() error {
			if got := code(args...); got != want {
				return fmt.Errorf("status %s, want %s", got, want)
			}
			return nil
		})
	}
	is("200")
	c.Kubectl(t, "apply", "-f", "testdata/basic-auth.yaml")
	is("401")
	is("200", "-H", "Authorization: Basic YWRtaW4zOmFkbWluMw==")
	programmed(t, c, "istio-system", "basic-auth", "1/1")

	metrics := func() string {
		return c.Kubectl(t, "exec", "-n", "istio-system", "deploy/istio-ingressgateway", "--", "curl", "-s", "localhost:15020/metrics")
	}
	if err := contains(metrics(), "istio_agent_wasm_cache_entries 1", `istio_agent_wasm_remote_fetch_count{result="success"} 1`, "istio_agent_wasm_cache_lookup_count", "istio_agent_wasm_config_conversion_duration_bucket"); err != nil {
		t.Errorf("agent's metrics: %v", err)
	}

	// An image that is not there: refused, told, and what ran goes on.
	c.Kubectl(t, "patch", "wasmplugin", "-n", "istio-system", "basic-auth", "--type=merge", "-p", `{"spec":{"url":"oci://172.18.0.1:5000/not/there:1"}}`)
	eventually(t, "refusal in status", func() error {
		got := field(t.Context(), c, "istio-system", "basic-auth", `{.status.conditions[?(@.type=="Resolved")].reason} {.status.conditions[?(@.type=="Programmed")].status} {.status.conditions[?(@.type=="Programmed")].message}`)
		return contains(got, "NotFound False", "0 of 1 proxy runs it, 1 refuses it: istio-ingressgateway-", "not/there:1")
	})
	is("401")
	// The replica that the gateway is connected to has counted it.
	rejected := false
	for pod := range strings.FieldsSeq(c.Kubectl(t, "get", "pods", "-n", "istio-system", "-l", "app=chandler", "-o", "jsonpath={.items[*].metadata.name}")) {
		metrics := c.Kubectl(t, "get", "--raw", "/api/v1/namespaces/istio-system/pods/"+pod+":15014/proxy/metrics")
		rejected = rejected || strings.Contains(metrics, `pilot_total_xds_rejects{type="type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"}`)
	}
	if !rejected {
		t.Error("no replica counts a reject: pilot_total_xds_rejects")
	}
	if events := c.Kubectl(t, "events", "-n", "istio-system", "--for", "wasmplugin/basic-auth"); !strings.Contains(events, "Warning") {
		t.Errorf("events of the refusal: %s", events)
	}

	c.Kubectl(t, "delete", "wasmplugins.extensions.istio.io", "-n", "istio-system", "basic-auth")
	is("200")
}

func gatewayIP(t *testing.T, c *kube.Cluster) string {
	return strings.TrimSpace(c.Kubectl(t, "get", "service", "-n", "istio-system", "istio-ingressgateway", "-o", "jsonpath={.spec.clusterIP}"))
}

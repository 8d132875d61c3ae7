//go:build e2e

package kubernetes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/test/kube"
)

// closed is a WasmPlugin that answers 401 to everybody, in front of pods with that
// label app.
func closed(app string) string {
	return `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: closed}
spec:
  selector: {matchLabels: {app: ` + app + `}}
  url: oci://` + kube.Registry + `/closed:v1
  phase: AUTHN
  pluginConfig: {basic_auth_rules: [{prefix: "/", request_methods: [GET, HEAD, POST], credentials: ["ok:test"]}]}
---
`
}

// inContainer puts more YAML into the container of what httpbin makes.
func inContainer(workload, more string) string {
	return strings.Replace(workload, "        ports: [{containerPort: 80}]\n", "        ports: [{containerPort: 80}]\n"+more, 1)
}

// containersOf are the names of a pod's init containers and containers.
func containersOf(t *testing.T, c *kube.Cluster, namespace, selector string) string {
	t.Helper()
	return c.Kubectl(t, "get", "pods", "-n", namespace, "-l", selector, "-o", "jsonpath={.items[0].spec.initContainers[*].name} / {.items[0].spec.containers[*].name}")
}

const both = "istio-init istio-proxy / httpbin"

// TestInjection is what may be special about pods that get a sidecar, or do not.
func TestInjection(t *testing.T) {
	c := installed(t)
	push(t, c, "header-counter.wasm", "headers:v1")
	push(t, c, "basic-auth.wasm", "closed:v1")
	t.Parallel()
	ownNamespace(t, c, "injected", "istio-injection=enabled")
	ownNamespace(t, c, "plain")
	for name, test := range map[string]func(t *testing.T, c *kube.Cluster){
		"job": job, "probes": probes, "left alone": leftAlone, "pod asks": podAsks, "by hand": byHand,
		"excluded port": excludedPort, "pod security": podSecurity,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
}

// job: a Job is complete when its own container is, and it reached a service through
// its sidecar.
func job(t *testing.T, c *kube.Cluster) {
	apply(t, c, "injected", `
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app: job}}
    spec:
      restartPolicy: Never
      containers:
      - name: httpbin
        image: curlimages/curl
        imagePullPolicy: IfNotPresent
        command: [curl, -sS, --fail, -o, /dev/null, -D, "-", "http://chandler.istio-system:15014/ready"]
`)
	c.Kubectl(t, "wait", "-n", "injected", "--for=condition=Complete", "job/job", "--timeout=60s")
	if got := containersOf(t, c, "injected", "app=job"); got != both {
		t.Errorf("containers are %s, want %s", got, both)
	}
	log := c.Kubectl(t, "logs", "-n", "injected", "job/job", "-c", "httpbin")
	if err := contains(log, "200", "server: envoy"); err != nil {
		t.Errorf("what it saw of its request: %v", err)
	}
	eventually(t, "the pod's end", func() error {
		phase := c.Kubectl(t, "get", "pods", "-n", "injected", "-l", "app=job", "-o", "jsonpath={.items[0].status.phase}")
		if phase != "Succeeded" {
			return fmt.Errorf("phase is %s", phase)
		}
		return nil
	})
}

// probes: the kubelet's probes succeed though every request at the door is answered
// with 401.
func probes(t *testing.T, c *kube.Cluster) {
	probe := func(kind, path string) string {
		return "        " + kind + ": {httpGet: {path: " + path + ", port: 80}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5}\n"
	}
	apply(t, c, "injected", closed("probes")+inContainer(httpbin("probes", 1, ""),
		probe("livenessProbe", "/get")+probe("readinessProbe", "/headers")+strings.Replace(probe("startupProbe", "/get"), "failureThreshold: 1", "failureThreshold: 30", 1)), "probes")
	url := "http://" + serviceIP(t, c, "injected", "probes") + "/get"
	answers(t, c, url, 401, "", "")
	current(t, c, "injected", "closed", 1)
	pod := pods(t, c, "injected", "app=probes")[0]
	if got := c.Kubectl(t, "get", "pod", "-n", "injected", pod, "-o", `jsonpath={.spec.containers[0].livenessProbe.httpGet.port} {.status.containerStatuses[0].restartCount} {.status.conditions[?(@.type=="Ready")].status}`); got != "15020 0 True" {
		t.Errorf("port of the probe, restarts, ready are %s", got)
	}
	// A probe that does not succeed is not made to: the application's own answer counts.
	apply(t, c, "injected", inContainer(httpbin("sick", 1, ""), probe("readinessProbe", "/status/503")))
	eventually(t, "refused probe", func() error {
		return contains(c.Kubectl(t, "events", "-n", "injected"), "Readiness probe failed: HTTP probe failed with statuscode: 503")
	})
	c.Kubectl(t, "delete", "deployment", "-n", "injected", "sick")
}

// leftAlone: who says no, and who uses the node's network.
func leftAlone(t *testing.T, c *kube.Cluster) {
	declines := strings.Replace(httpbin("declines", 1, ""), "labels: {app: declines}", `labels: {app: declines, sidecar.istio.io/inject: "false"}`, 1)
	host := strings.Replace(httpbin("host", 1, ""), "      containers:\n", "      hostNetwork: true\n      containers:\n", 1)
	host = strings.Replace(host, "        ports: [{containerPort: 80}]\n", "        args: [httpbin, \"172.18.0.1:18080\"]\n        ports: [{containerPort: 18080}]\n", 1)
	apply(t, c, "injected", declines+host, "declines", "host")
	for _, app := range []string{"declines", "host"} {
		if got := containersOf(t, c, "injected", "app="+app); got != " / httpbin" {
			t.Errorf("%s has containers %s", app, got)
		}
	}
	answers(t, c, "http://"+serviceIP(t, c, "injected", "declines")+"/get", 200, "Server", "")
	answers(t, c, "http://172.18.0.1:18080/get", 200, "Server", "")
}

// podAsks: a pod in a namespace that says nothing.
func podAsks(t *testing.T, c *kube.Cluster) {
	asks := strings.Replace(httpbin("asks", 1, ""), "labels: {app: asks}", `labels: {app: asks, sidecar.istio.io/inject: "true"}`, 1)
	apply(t, c, "plain", headers("asks", "asks", "Asked", "yes")+asks+httpbin("silent", 1, ""), "asks", "silent")
	if got := containersOf(t, c, "plain", "app=asks"); got != both {
		t.Errorf("the pod that asks has containers %s", got)
	}
	if got := containersOf(t, c, "plain", "app=silent"); got != " / httpbin" {
		t.Errorf("the pod that does not ask has containers %s", got)
	}
	answers(t, c, "http://"+serviceIP(t, c, "plain", "asks")+"/get", 200, "Asked", "yes")
}

// byHand: chandler inject, for who does without the webhook, makes what the webhook
// makes.
func byHand(t *testing.T, c *kube.Cluster) {
	dir := t.TempDir()
	app, options := filepath.Join(dir, "app.yaml"), filepath.Join(dir, "options.yaml")
	if err := errors.Join(
		os.WriteFile(app, []byte(httpbin("hand", 1, "")), 0o600),
		os.WriteFile(options, []byte(`{image: chandler, env: {WASM_INSECURE_REGISTRIES: "`+kube.Registry+`"}}`), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	out := c.Run(t, binary(t), "inject", "-f", app, "--options", options)
	apply(t, c, "plain", headers("hand", "hand", "Hand", "made")+out, "hand")
	if got := containersOf(t, c, "plain", "app=hand"); got != both {
		t.Errorf("containers are %s", got)
	}
	answers(t, c, "http://"+serviceIP(t, c, "plain", "hand")+"/get", 200, "Hand", "made")
	current(t, c, "plain", "hand", 1)
}

// excludedPort: who connects to it meets the application, not the sidecar.
func excludedPort(t *testing.T, c *kube.Cluster) {
	two := strings.Replace(httpbin("two", 1, `{traffic.sidecar.istio.io/excludeInboundPorts: "8081"}`), "      containers:\n", `      containers:
      - name: other
        image: docker.io/kennethreitz/httpbin
        imagePullPolicy: IfNotPresent
        args: [httpbin, ":8081"]
`, 1)
	two = strings.Replace(two, "ports: [{name: http, port: 80}]", "ports: [{name: http, port: 80}, {name: http-other, port: 8081}]", 1)
	apply(t, c, "injected", headers("two", "two", "Met", "sidecar")+two, "two")
	ip := serviceIP(t, c, "injected", "two")
	answers(t, c, "http://"+ip+"/get", 200, "Met", "sidecar")
	answers(t, c, "http://"+ip+":8081/get", 200, "Met", "")
	answers(t, c, "http://"+ip+":8081/get", 200, "Server", "")
}

// podSecurity: a namespace of the level privileged takes a redirected pod. One of the
// level baseline takes no NET_ADMIN, hence one that does without redirection; a pod
// that would be redirected is refused there, not run without its sidecar.
func podSecurity(t *testing.T, c *kube.Cluster) {
	ownNamespace(t, c, "privileged", "istio-injection=enabled", "pod-security.kubernetes.io/enforce=privileged")
	ownNamespace(t, c, "baseline", "istio-injection=enabled", "pod-security.kubernetes.io/enforce=baseline")
	apply(t, c, "privileged", headers("app", "app", "Level", "privileged")+httpbin("app", 1, ""), "app")
	answers(t, c, "http://"+serviceIP(t, c, "privileged", "app")+"/get", 200, "Level", "privileged")
	apply(t, c, "baseline", httpbin("app", 1, `{sidecar.istio.io/interceptionMode: NONE}`), "app")
	if got := containersOf(t, c, "baseline", "app=app"); got != "istio-proxy / httpbin" {
		t.Errorf("containers are %s", got)
	}
	_, err := c.TryKubectl(t.Context(), pausing("redirected"), "create", "-n", "baseline", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("a pod with redirection where the level is baseline: %v", err)
	}
}

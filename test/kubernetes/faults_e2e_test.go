//go:build e2e

package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/test/kube"
)

// outage is how long the API server is away: short, unless CHANDLER_E2E_OUTAGE is
// longer, as in 1m.
func outage(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(cmp.Or(os.Getenv("CHANDLER_E2E_OUTAGE"), "10s"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A fleet is what the faults are tried on: sidecars of either kind and the ingress
// gateway, under load, some idle sidecars, and a plugin at all of the sidecars.
type fleet struct {
	c    *kube.Cluster
	urls []string // of the sidecars under load
	load *load
	step int
}

// proxies is how many run the fleet's plugin.
const proxies = 4

// TestFaults is what may go wrong with the control plane and what it stands on. No
// request fails meanwhile, and afterwards all is as before.
func TestFaults(t *testing.T) {
	c := installed(t)
	push(t, c, "header-counter.wasm", "headers:v1")
	ownNamespace(t, c, "faults", "istio-injection=enabled")
	apply(t, c, "faults", httpbin("engine", 1, "")+httpbin("envoy", 1, envoyPod)+httpbin("idle", proxies-2, "")+route("faults.example", "engine.faults.svc.cluster.local")+
		`
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: step}
spec:
  url: oci://`+kube.Registry+`/headers:v1
  pluginConfig: {step: "0"}
`, "engine", "envoy", "idle")
	f := &fleet{c: c, urls: []string{"http://" + serviceIP(t, c, "faults", "engine") + "/get", "http://" + serviceIP(t, c, "faults", "envoy") + "/get"}}
	current(t, c, "faults", "step", proxies)
	gateway := "http://" + gatewayIP(t, c) + "/get faults.example"
	for _, url := range append([]string{gateway}, f.urls...) {
		answers(t, c, url, 200, "", "") // a pod is ready before its application listens
	}
	run := func(name string, fault func(t *testing.T, f *fleet)) {
		t.Run(name, func(t *testing.T) {
			f.load = startLoad(t, c, append([]string{gateway}, f.urls...)...)
			f.load.flows(t)
			fault(t, f)
			f.change(t)
			f.load.end(t)
		})
	}
	run("replicas", twoReplicas)
	run("api server", apiServerAway)
	run("leader deleted", leaderDeleted)
	run("leader killed", leaderKilled)
	run("leader stopped", leaderStopped)
	run("webhook", webhookUntrusted)
	run("root certificates", rootCertificatesGone)
	run("authority", authorityGone)
	run("rotation", rotation)
}

// route is a Gateway and a VirtualService that lead a host at the ingress gateway to
// a service.
func route(host, service string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: [%[1]q]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: route}
spec:
  hosts: [%[1]q]
  gateways: [gateway]
  http:
  - route:
    - destination: {host: %[2]s, port: {number: 80}}
---
`, host, service)
}

// change gives the plugin another configuration, and sees that it is served and told.
func (f *fleet) change(t *testing.T) {
	t.Helper()
	f.step++
	value := strconv.Itoa(f.step)
	began := time.Now()
	f.c.Kubectl(t, "patch", "wasmplugin", "-n", "faults", "step", "--type=merge", "-p", `{"spec":{"pluginConfig":{"step":"`+value+`"}}}`)
	for _, url := range f.urls {
		answers(t, f.c, url, 200, "Step", value)
	}
	served := time.Since(began)
	current(t, f.c, "faults", "step", proxies)
	t.Logf("a change is served after %v and told after %v", served.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

// connected is how many proxies each replica has.
func connected(ctx context.Context, t *testing.T, c *kube.Cluster) (counts []int) {
	t.Helper()
	for _, r := range replicas(t, c) {
		out, err := c.TryKubectl(ctx, "", "get", "--raw", "/api/v1/namespaces/"+root+"/pods/"+r.name+":15014/proxy/metrics")
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`(?m)^pilot_xds (\d+)$`).FindStringSubmatch(out)
		if found == nil {
			t.Fatalf("%s tells no pilot_xds", r.name)
		}
		n, _ := strconv.Atoi(found[1]) // digits
		counts = append(counts, n)
	}
	return counts
}

// twoReplicas: each has some of the proxies, all are counted.
func twoReplicas(t *testing.T, f *fleet) {
	for range 10 { // proxies choose by chance
		counts := connected(t.Context(), t, f.c)
		if len(counts) == 2 && min(counts[0], counts[1]) > 0 {
			t.Logf("the replicas have %v proxies", counts)
			current(t, f.c, "faults", "step", proxies)
			return
		}
		f.restart(t)
	}
	t.Errorf("the replicas have %v proxies", connected(t.Context(), t, f.c))
}

// restart replaces the idle pods.
func (f *fleet) restart(t *testing.T) {
	t.Helper()
	f.c.Kubectl(t, "rollout", "restart", "-n", "faults", "deployment/idle")
	f.c.Kubectl(t, "rollout", "status", "-n", "faults", "deployment/idle", "--timeout=60s")
}

// apiServerAway: what runs goes on running. An API server that is away for longer than
// the node's grace period has Kubernetes itself take all pods for lost when it is back.
func apiServerAway(t *testing.T, f *fleet) {
	before := restarts(t, f.c)
	if err := f.c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(outage(t)):
	case <-t.Context().Done():
	}
	f.load.flows(t)
	if err := f.c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.change(t)
	if after := restarts(t, f.c); after != before {
		t.Errorf("containers of the control plane were started again: %s, before %s", after, before)
	}
}

// restarts tells of the control plane's pods how often they were started again.
func restarts(t *testing.T, c *kube.Cluster) string {
	t.Helper()
	return c.Kubectl(t, "get", "pods", "-n", root, "-l", "app=chandler", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
}

// leader is the pod that holds the lease.
func leader(t *testing.T, c *kube.Cluster) string {
	t.Helper()
	return c.Kubectl(t, "get", "lease", "-n", root, "chandler-leader", "-o", "jsonpath={.spec.holderIdentity}")
}

func leaderDeleted(t *testing.T, f *fleet) {
	was := leader(t, f.c)
	began := time.Now()
	f.c.Kubectl(t, "delete", "pod", "-n", root, was, "--force", "--grace-period=0")
	eventually(t, "another leader", func() error {
		if leader(t, f.c) == was {
			return fmt.Errorf("%s leads, though it was deleted", was)
		}
		return nil
	})
	f.change(t)
	t.Logf("%s leads after %s; status is written after %v", leader(t, f.c), was, time.Since(began).Round(time.Millisecond))
	f.c.Kubectl(t, "rollout", "status", "-n", root, "deployment/chandler", "--timeout=60s")
}

// leaderKilled: kill -9. The lease may be its again when the kubelet has started it anew.
func leaderKilled(t *testing.T, f *fleet) {
	was, before := leader(t, f.c), restarts(t, f.c)
	began := time.Now()
	signal(t, f.c, syscall.SIGKILL, root, was, "chandler")
	f.change(t)
	t.Logf("%s leads after %s; status is written after %v", leader(t, f.c), was, time.Since(began).Round(time.Millisecond))
	f.c.Kubectl(t, "rollout", "status", "-n", root, "deployment/chandler", "--timeout=60s")
	if after := restarts(t, f.c); after == before {
		t.Errorf("no container was started again: %s", after)
	}
}

// leaderStopped: the leader's process stands still, with its connections. When it goes
// on, another has its place.
func leaderStopped(t *testing.T, f *fleet) {
	was := leader(t, f.c)
	began := time.Now()
	signal(t, f.c, syscall.SIGSTOP, root, was, "chandler")
	eventually(t, "another leader", func() error {
		if leader(t, f.c) == was {
			return fmt.Errorf("%s leads, though it stands still", was)
		}
		return nil
	})
	t.Logf("%s leads after %s; it does after %v", leader(t, f.c), was, time.Since(began).Round(time.Millisecond))
	signal(t, f.c, syscall.SIGCONT, root, was, "chandler")
	f.change(t)
	if now := leader(t, f.c); now == was {
		t.Errorf("%s leads again", now)
	}
	f.c.Kubectl(t, "rollout", "status", "-n", root, "deployment/chandler", "--timeout=60s")
}

// signal sends a signal to the first process of a container. The cluster's processes
// are this machine's: their control groups name the container.
func signal(t *testing.T, c *kube.Cluster, what syscall.Signal, namespace, pod, container string) {
	t.Helper()
	id := c.Kubectl(t, "get", "pod", "-n", namespace, pod, "-o", `jsonpath={.status.containerStatuses[?(@.name=="`+container+`")].containerID}`)
	_, id, _ = strings.Cut(id, "://")
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range groups {
		text, err := os.ReadFile(group)
		if err != nil || id == "" || !strings.Contains(string(text), id) {
			continue // it may have ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(group)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, what); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no process of container %q", id)
}

//go:build e2e

package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/test/kube"
)

// root is the namespace of the control plane.
const root = "istio-system"

// envoyPod are the annotations of a pod whose proxy is Envoy.
const envoyPod = `{sidecar.chandler.io/proxy: envoy, sidecar.istio.io/proxyImage: chandler-proxy}`

// ownNamespace makes a namespace with those labels, which goes with the test. At the
// end of every such test nothing may have been forbidden to the control plane.
func ownNamespace(t testing.TB, c *kube.Cluster, name string, labels ...string) {
	t.Helper()
	c.Kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := c.TryKubectl(ctx, "", "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
		sufficient(ctx, t, c)
	})
	if len(labels) > 0 {
		c.Kubectl(t, append([]string{"label", "namespace", name}, labels...)...)
	}
}

// sufficient fails the test if the API server has forbidden the control plane
// anything. One that has just started forbids what it has not yet read to be allowed,
// and namespaces that are being deleted take nothing from anybody.
func sufficient(ctx context.Context, t testing.TB, c *kube.Cluster) {
	t.Helper()
	metrics, err := c.TryKubectl(ctx, "", "get", "--raw", "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	var start float64
	if found := regexp.MustCompile(`(?m)^process_start_time_seconds (\S+)$`).FindStringSubmatch(metrics); found != nil {
		start, err = strconv.ParseFloat(found[1], 64)
	}
	if start == 0 || err != nil {
		t.Fatalf("the API server does not tell when it started: %v", err)
	}
	starts := time.Unix(int64(start), 0)
	for _, pod := range replicas(t, c) {
		log, err := c.TryKubectl(ctx, "", "logs", "-n", root, pod.name)
		if err != nil && !strings.Contains(err.Error(), "NotFound") {
			t.Error(err)
		}
		for line := range strings.Lines(log) {
			if !strings.Contains(strings.ToLower(line), "forbidden") || strings.Contains(line, "because it is being terminated") {
				continue
			}
			text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			at, err := time.Parse(time.RFC3339, text)
			if err != nil || at.Before(starts) || at.After(starts.Add(20*time.Second)) {
				t.Errorf("%s: %s", pod.name, line)
			}
		}
	}
}

// A replica is one pod of the control plane.
type replica struct{ name, ip string }

// replicas are those that run now.
func replicas(t testing.TB, c *kube.Cluster) []replica {
	t.Helper()
	out, err := c.TryKubectl(context.WithoutCancel(t.Context()), "", "get", "pods", "-n", root, "-l", "app=chandler", "--field-selector=status.phase=Running",
		"-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.status.podIP}{"\n"}{end}`)
	if err != nil {
		t.Fatal(err)
	}
	var all []replica
	for line := range strings.Lines(out) {
		name, ip, _ := strings.Cut(strings.TrimSpace(line), " ")
		all = append(all, replica{name, ip})
	}
	return all
}

// httpbin is a Deployment and a Service, at port 80, with that name and label app.
func httpbin(name string, replicas int, annotations string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  ports: [{name: http, port: 80}]
  selector: {app: %[1]s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata:
      labels: {app: %[1]s}
      annotations: %[3]s
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: httpbin
        image: docker.io/kennethreitz/httpbin
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 80}]
---
`, name, replicas, cmp.Or(annotations, "{}"))
}

// apply applies YAML in a namespace, and waits for the Deployments that are named.
func apply(t testing.TB, c *kube.Cluster, namespace, yaml string, deployments ...string) {
	t.Helper()
	c.KubectlInput(t, yaml, "apply", "-n", namespace, "-f", "-")
	for _, name := range deployments {
		c.Kubectl(t, "rollout", "status", "-n", namespace, "deployment/"+name, "--timeout=60s")
	}
}

// headers is a WasmPlugin of the module header-counter, which adds a header to the
// answers of the pods with that label app.
func headers(name, app, header, value string) string {
	return fmt.Sprintf(`
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: %s}}
  url: oci://%s/headers:v1
  pluginConfig: {%s: %q}
---
`, name, app, kube.Registry, header, value)
}

// serviceIP is the address of a Service in the cluster.
func serviceIP(t testing.TB, c *kube.Cluster, namespace, name string) string {
	t.Helper()
	return c.Kubectl(t, "get", "service", "-n", namespace, name, "-o", "jsonpath={.spec.clusterIP}")
}

// get is the answer to a GET request, without its body.
func get(ctx context.Context, client *http.Client, url, host string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	r.Host = host
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp, err
}

// answers waits until a GET request has an answer of that status and, if header is
// not empty, with that value of it. A host may follow the URL after a space.
func answers(t testing.TB, c *kube.Cluster, target string, status int, header, value string) {
	t.Helper()
	client := c.HTTPClient()
	url, host, _ := strings.Cut(target, " ")
	eventually(t, target, func() error {
		resp, err := get(t.Context(), client, url, host)
		if err != nil {
			return err
		}
		if resp.StatusCode != status || header != "" && resp.Header.Get(header) != value {
			return fmt.Errorf("%s, %s: %q; want %d and %q", resp.Status, header, resp.Header.Get(header), status, value)
		}
		return nil
	})
}

// A load is GET requests all the time, all of which are to be answered with 200: of
// each URL on a new connection each time, and on one that is kept.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	answered map[string]int // by URL and kind of connection
	failures []string
}

// pace is between two requests of one kind.
const pace = 20 * time.Millisecond

// startLoad sends requests until the load or the test ends. A host may follow a URL
// after a space.
func startLoad(t testing.TB, c *kube.Cluster, urls ...string) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel, answered: make(map[string]int)}
	for _, target := range urls {
		l.wg.Go(func() { l.send(ctx, c.HTTPClient(), target, "new connections") })
		kept := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: c.Dial, MaxIdleConnsPerHost: 1}}
		l.wg.Go(func() {
			defer kept.CloseIdleConnections()
			l.send(ctx, kept, target, "one connection")
		})
	}
	t.Cleanup(func() { l.cancel(); l.wg.Wait() })
	return l
}

func (l *load) send(ctx context.Context, client *http.Client, target, kind string) {
	url, host, _ := strings.Cut(target, " ")
	key := url + " on " + kind
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ctx.Err() == nil {
		resp, err := get(ctx, client, url, host)
		l.note(ctx, key, resp, err)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (l *load) note(ctx context.Context, key string, resp *http.Response, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now().Format("15:04:05.000")
	switch {
	case ctx.Err() != nil:
	case err != nil:
		l.failures = append(l.failures, fmt.Sprintf("%s %s: %v", at, key, err))
	case resp.StatusCode != http.StatusOK:
		l.failures = append(l.failures, fmt.Sprintf("%s %s: %s %v", at, key, resp.Status, resp.Header))
	}
	l.answered[key]++
}

// flows waits until each kind of request was made a few times from now on: it ends
// by that, not by failures.
func (l *load) flows(t testing.TB) {
	t.Helper()
	l.mu.Lock()
	before := make(map[string]int)
	for key, n := range l.answered {
		before[key] = n
	}
	l.mu.Unlock()
	eventually(t, "requests go on", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for key, n := range before {
			if l.answered[key] < n+5 {
				return fmt.Errorf("%s: %d", key, l.answered[key]-n)
			}
		}
		return nil
	})
}

// end ends the load and tells how it went.
func (l *load) end(t testing.TB) {
	t.Helper()
	l.cancel()
	l.wg.Wait()
	total := 0
	for key, n := range l.answered {
		if total += n; n < 5 {
			t.Errorf("only %d requests of %s", n, key)
		}
	}
	if len(l.failures) > 0 {
		t.Errorf("%d of %d requests failed, the first:\n%s", len(l.failures), total, strings.Join(l.failures[:min(10, len(l.failures))], "\n"))
	}
	t.Logf("%d requests, %d failed", total, len(l.failures))
}

// current waits until the status of a plugin is about what the plugin is now, and
// that all of that many proxies run it.
func current(t testing.TB, c *kube.Cluster, namespace, name string, proxies int) {
	t.Helper()
	want := fmt.Sprintf("True %d/%d", proxies, proxies)
	eventually(t, "status of "+namespace+"/"+name, func() error {
		got := strings.Fields(field(t.Context(), c, namespace, name,
			`{.metadata.generation} {.status.observedGeneration} {.status.conditions[?(@.type=="Programmed")].status} {.status.chandler.proxies}`))
		if len(got) != 4 || got[0] != got[1] || strings.Join(got[2:], " ") != want {
			return fmt.Errorf("generation, observed, programmed, proxies are %v; want %s", got, want)
		}
		return nil
	})
}

// condition waits until a condition of a plugin has that status and reason, and
// returns its message.
func condition(t testing.TB, c *kube.Cluster, namespace, name, kind, want string) string {
	t.Helper()
	var message string
	eventually(t, kind+" of "+namespace+"/"+name, func() error {
		at := `.status.conditions[?(@.type=="` + kind + `")]`
		got := strings.SplitN(field(t.Context(), c, namespace, name, `{`+at+`.status} {`+at+`.reason} {`+at+`.message}`), " ", 3)
		if len(got) != 3 || got[0]+" "+got[1] != want {
			return fmt.Errorf("it is %q, want %s", got, want)
		}
		message = got[2]
		return nil
	})
	return message
}

// pods are the names of those with a label.
func pods(t testing.TB, c *kube.Cluster, namespace, selector string) []string {
	t.Helper()
	names := strings.Fields(c.Kubectl(t, "get", "pods", "-n", namespace, "-l", selector, "-o", "jsonpath={.items[*].metadata.name}"))
	slices.Sort(names)
	return names
}

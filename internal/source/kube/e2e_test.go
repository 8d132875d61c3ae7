//go:build e2e

package kube_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/source/kube"
	"github.com/chandler-proxy/chandler/internal/source/sourcetest"
)

// These tests need an API server that is theirs alone: they define and undefine
// CRDs, and delete what they find in their namespaces.

// A real is an API server of CHANDLER_KUBECONFIG. It implements sourcetest.Harness.
type real struct {
	config *rest.Config
	client *dynamic.DynamicClient
}

var (
	definitions     = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	namespaces      = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
)

// realCluster returns the API server with all CRDs and empty namespaces.
func realCluster(t testing.TB) *real {
	path := os.Getenv("CHANDLER_KUBECONFIG")
	if path == "" {
		t.Skip("CHANDLER_KUBECONFIG is not set: it must name the kubeconfig of a cluster that may be changed at will")
	}
	config, err := kube.Connect(path, "chandler-e2e")
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	r := &real{config, client}
	files, err := filepath.Glob("../../resource/crds/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs: %v", err)
	}
	for _, f := range files {
		r.define(t, strings.TrimSuffix(filepath.Base(f), ".json"))
	}
	for _, name := range []string{"sourcetest", "apps"} {
		create(t, client.Resource(namespaces), object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": name}})
		// Without a controller manager nobody else makes it, and no Pod is taken.
		create(t, client.Resource(serviceAccounts).Namespace(name), object{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": object{"name": "default"}})
		for gvr := range resources() {
			now := int64(0)
			err := client.Resource(gvr).Namespace(name).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
			if apierrors.IsMethodNotSupported(err) { // as for Services
				r.deleteEach(t, gvr, name)
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

// create creates o unless it is there.
func create(t testing.TB, client dynamic.ResourceInterface, o object) {
	t.Helper()
	_, err := client.Create(t.Context(), &unstructured.Unstructured{Object: o}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

func (r *real) deleteEach(t testing.TB, gvr schema.GroupVersionResource, namespace string) {
	list, err := r.client.Resource(gvr).Namespace(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Items {
		if err := r.client.Resource(gvr).Namespace(namespace).Delete(t.Context(), o.GetName(), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// resources are those that the tests make, with their kinds.
func resources() map[schema.GroupVersionResource]string {
	return map[schema.GroupVersionResource]string{
		{Version: "v1", Resource: "pods"}: "Pod", {Version: "v1", Resource: "services"}: "Service", {Version: "v1", Resource: "secrets"}: "Secret",
		{Group: "extensions.istio.io", Version: "v1alpha1", Resource: "wasmplugins"}:       "WasmPlugin",
		{Group: "extensions.istio.io", Version: "v1alpha1", Resource: "trafficextensions"}: "TrafficExtension",
	}
}

// define makes the CRD of that name from the schema that files are checked by.
func (r *real) define(t testing.TB, name string) {
	t.Helper()
	data, err := os.ReadFile("../../resource/crds/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var schema object
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	plural, group, _ := strings.Cut(name, ".")
	kind, ok := map[string]string{
		"wasmplugins": "WasmPlugin", "trafficextensions": "TrafficExtension", "envoyfilters": "EnvoyFilter", "gateways": "Gateway",
		"virtualservices": "VirtualService", "serviceentries": "ServiceEntry", "destinationrules": "DestinationRule",
		"gatewayclasses": "GatewayClass", "httproutes": "HTTPRoute",
	}[plural]
	if !ok {
		t.Fatalf("kind of %s is not known", name)
	}
	version, scope := "v1", "Namespaced"
	switch {
	case group == "extensions.istio.io":
		version = "v1alpha1"
	case plural == "envoyfilters":
		version = "v1alpha3"
	case plural == "gatewayclasses":
		scope = "Cluster"
	}
	o := object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": object{"name": name, "annotations": object{"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api"}},
		"spec": object{
			"group": group, "scope": scope, "names": object{"kind": kind, "plural": plural, "singular": strings.ToLower(kind), "listKind": kind + "List"},
			"versions": []any{object{
				"name": version, "served": true, "storage": true, "schema": object{"openAPIV3Schema": schema}, "subresources": object{"status": object{}},
			}},
		},
	}
	create(t, r.client.Resource(definitions), o)
	r.untilDefined(t, name)
}

func (r *real) untilDefined(t testing.TB, name string) {
	t.Helper()
	w, err := r.client.Resource(definitions).Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		o, _ := e.Object.(*unstructured.Unstructured)
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		if slices.ContainsFunc(conditions, func(c any) bool { return c.(object)["type"] == "Established" && c.(object)["status"] == "True" }) {
			return
		}
	}
	t.Fatalf("%s is not established", name)
}

// undefine deletes a CRD and waits until it is gone.
func (r *real) undefine(t *testing.T, name string) {
	t.Helper()
	w, err := r.client.Resource(definitions).Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if err := r.client.Resource(definitions).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for e := range w.ResultChan() {
		if e.Type == watch.Deleted {
			return
		}
	}
}

func (r *real) Source() source.Source { return kube.New(kube.Config{Cluster: r.config}) }

func (r *real) at(t testing.TB, manifest string) (*unstructured.Unstructured, dynamic.ResourceInterface) {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &o.Object); err != nil {
		t.Fatal(err)
	}
	for gvr, kind := range resources() {
		if kind == o.GetKind() {
			return o, r.client.Resource(gvr).Namespace(o.GetNamespace())
		}
	}
	t.Fatalf("no resource for %s", o.GetKind())
	panic("unreachable")
}

func (r *real) Put(t *testing.T, manifest string) {
	t.Helper()
	r.put(t, manifest)
}

func (r *real) put(t testing.TB, manifest string) {
	t.Helper()
	o, client := r.at(t, manifest)
	status, hasStatus := o.Object["status"]
	stored, err := client.Create(t.Context(), o, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		stored, err = client.Get(t.Context(), o.GetName(), metav1.GetOptions{})
		if err == nil && !hasStatus { // else it is a Pod, of which nothing else changes
			o.SetResourceVersion(stored.GetResourceVersion())
			stored, err = client.Update(t.Context(), o, metav1.UpdateOptions{})
		}
	}
	if err == nil && hasStatus {
		stored.Object["status"] = status
		_, err = client.UpdateStatus(t.Context(), stored, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (r *real) Delete(t *testing.T, manifest string) {
	t.Helper()
	o, client := r.at(t, manifest)
	now := int64(0)
	if err := client.Delete(t.Context(), o.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
}

func TestE2EContract(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Harness { return realCluster(t) })
}

// realPod is a Pod that a real API server takes: it has to be on a node to have a status.
func realPod(name, app, status string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: apps, labels: {app: %s}}, spec: {nodeName: none,
  automountServiceAccountToken: false, containers: [{name: app, image: app, ports: [{name: http, containerPort: 8080}]}]}, status: {%s}}`, name, app, status)
}

func TestE2EPodsAndPlugins(t *testing.T) {
	r := realCluster(t)
	s := run(t, r.Source())
	s.next()
	r.Put(t, realPod("a", "web", `phase: Running, podIP: 10.9.0.1, podIPs: [{ip: 10.9.0.1}], conditions: [{type: Ready, status: "True"}]`))
	with := s.until(func(s source.Snapshot) bool {
		pod, _ := find(s, "Pod", "a").(*corev1.Pod)
		return pod != nil && pod.Status.PodIP != ""
	})
	pod := find(with, "Pod", "a").(*corev1.Pod)
	if len(pod.ManagedFields) > 0 || pod.Spec.Containers[0].Image != "" || pod.Spec.Containers[0].Ports[0].Name != "http" {
		t.Errorf("Pod = %v, want it trimmed", pod)
	}
	r.Put(t, plugin("p"))
	p := find(s.until(has("WasmPlugin", "p")), "WasmPlugin", "p").(*extensionsv1alpha1.WasmPlugin)
	if p.Generation != 1 || p.UID == "" || p.CreationTimestamp.IsZero() {
		t.Errorf("WasmPlugin = %v", p.ObjectMeta)
	}
	// A status changes nothing; what comes after it does.
	o, client := r.at(t, plugin("p"))
	stored, err := client.Get(t.Context(), o.GetName(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stored.Object["status"] = object{"observedGeneration": "1"}
	if _, err := client.UpdateStatus(t.Context(), stored, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.Put(t, service("after"))
	if after := s.until(has("Service", "after")); find(after, "WasmPlugin", "p") != p {
		t.Error("a plugin was decoded again because of its status")
	}
	r.Put(t, plugin("p", "priority: 3"))
	s.until(func(s source.Snapshot) bool {
		p := find(s, "WasmPlugin", "p").(*extensionsv1alpha1.WasmPlugin)
		return p.Spec.Priority.GetValue() == 3 && p.Generation == 2
	})
	r.Delete(t, plugin("p"))
	s.until(hasNot("WasmPlugin", "p"))
	r.Put(t, realPod("a", "web", "phase: Succeeded"))
	s.until(hasNot("Pod", "a"))
}

func TestE2EKindAppearsAndGoes(t *testing.T) {
	r := realCluster(t)
	r.undefine(t, "trafficextensions.extensions.istio.io")
	r.Put(t, service("a"))
	s := run(t, r.Source())
	first := s.next()
	if find(first, "Service", "a") == nil || len(first.Problems) > 0 || first.Unread {
		t.Errorf("without one kind: %d objects, problems %v, Unread %v; want the rest", len(first.Objects), first.Problems, first.Unread)
	}
	r.define(t, "trafficextensions.extensions.istio.io")
	extension := "apiVersion: extensions.istio.io/v1alpha1\nkind: TrafficExtension\nmetadata: {name: e, namespace: apps}\nspec: {wasm: {url: 'oci://registry.example/e:v1'}}\n"
	r.Put(t, extension)
	s.until(has("TrafficExtension", "e"))
	r.undefine(t, "trafficextensions.extensions.istio.io")
	after := s.until(hasNot("TrafficExtension", "e"))
	if find(after, "Service", "a") == nil || len(after.Problems) > 0 {
		t.Errorf("after one kind is gone: problems %v, want the rest", after.Problems)
	}
	r.define(t, "trafficextensions.extensions.istio.io")
	r.Put(t, extension)
	s.until(has("TrafficExtension", "e"))
}

// A source does with the least: kinds that it may list and watch, and one Secret
// by its name. What it may not is told.
func TestE2ELeastPrivilege(t *testing.T) {
	r := realCluster(t)
	rules := []any{
		object{"apiGroups": []any{""}, "resources": []any{"pods", "services", "namespaces"}, "verbs": []any{"list", "watch"}},
		object{"apiGroups": []any{"discovery.k8s.io"}, "resources": []any{"endpointslices"}, "verbs": []any{"list", "watch"}},
		object{"apiGroups": []any{"extensions.istio.io"}, "resources": []any{"wasmplugins", "trafficextensions"}, "verbs": []any{"list", "watch"}},
		object{"apiGroups": []any{"networking.istio.io", "gateway.networking.k8s.io"}, "resources": []any{"*"}, "verbs": []any{"list", "watch"}},
		object{"apiGroups": []any{""}, "resources": []any{"secrets"}, "resourceNames": []any{"login"}, "verbs": []any{"list", "watch"}},
	}
	r.allow(t, rules)
	config := rest.CopyConfig(r.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "chandler-e2e"}
	r.Put(t, secret("apps", "login", "a"))
	r.Put(t, secret("apps", "denied", "b"))
	r.Put(t, plugin("p", "imagePullSecret: login"))
	r.Put(t, plugin("q", "imagePullSecret: denied"))
	s := run(t, kube.New(kube.Config{Cluster: config}))
	first := s.next()
	if first.Unread || find(first, "WasmPlugin", "p") == nil || find(first, "Secret", "login") == nil || find(first, "Secret", "denied") != nil {
		t.Errorf("first snapshot: Unread %v, problems %v", first.Unread, first.Problems)
	}
	if p := told(first, "Secret apps/denied: cannot be read"); p == nil || len(first.Problems) != 1 {
		t.Errorf("problems = %v, want one about the Secret", first.Problems)
	}
	r.Put(t, secret("apps", "login", "changed"))
	s.until(func(s source.Snapshot) bool {
		return string(find(s, "Secret", "login").(*corev1.Secret).Data["key"]) == "changed"
	})

	r.allow(t, rules[:2])
	fresh := run(t, kube.New(kube.Config{Cluster: config}))
	without := fresh.next()
	if p := told(without, "wasmplugins.extensions.istio.io is forbidden"); !without.Unread || p == nil || p.Kind != "WasmPlugin" {
		t.Errorf("without permission: Unread %v, problems %v", without.Unread, without.Problems)
	}
	r.allow(t, rules)
	fresh.until(func(s source.Snapshot) bool { return !s.Unread && find(s, "Secret", "login") != nil })
}

// allow gives user chandler-e2e these permissions and no others.
func (r *real) allow(t *testing.T, rules []any) {
	t.Helper()
	group := schema.GroupVersion{Group: "rbac.authorization.k8s.io", Version: "v1"}
	meta := object{"name": "chandler-e2e"}
	for resource, o := range map[string]object{
		"clusterroles": {"kind": "ClusterRole", "rules": rules},
		"clusterrolebindings": {
			"kind": "ClusterRoleBinding", "roleRef": object{"apiGroup": group.Group, "kind": "ClusterRole", "name": "chandler-e2e"},
			"subjects": []any{object{"apiGroup": group.Group, "kind": "User", "name": "chandler-e2e"}},
		},
	} {
		o["apiVersion"], o["metadata"] = group.String(), meta
		_, err := r.client.Resource(group.WithResource(resource)).Apply(t.Context(), "chandler-e2e", &unstructured.Unstructured{Object: o}, metav1.ApplyOptions{FieldManager: "e2e", Force: true})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestE2EServerLost(t *testing.T) {
	r := realCluster(t)
	line := newLine(t, r.config)
	config := rest.CopyConfig(r.config)
	config.Host = "https://" + line.address
	for _, name := range []string{"stays", "goes"} {
		r.Put(t, plugin(name))
	}
	s := run(t, kube.New(kube.Config{Cluster: config}))
	before := s.until(has("WasmPlugin", "stays"))
	line.cut()
	r.Delete(t, plugin("goes"))
	r.Put(t, service("new"))
	line.mend()
	after := s.until(func(after source.Snapshot) bool {
		if find(after, "WasmPlugin", "stays") != find(before, "WasmPlugin", "stays") || len(after.Problems) > 0 {
			t.Error("what did not change was removed or decoded again")
		}
		return find(after, "Service", "new") != nil && find(after, "WasmPlugin", "goes") == nil
	})
	if after.Unread {
		t.Error("Unread after all was read")
	}
}

// A line is a TCP proxy in front of the API server that can be cut.
type line struct {
	t       *testing.T
	address string
	to      string
	mu      sync.Mutex
	open    []net.Conn
	l       net.Listener
	wg      sync.WaitGroup
}

func newLine(t *testing.T, config *rest.Config) *line {
	u, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	l := &line{t: t, to: u.Host, address: "127.0.0.1:0"}
	l.mend()
	t.Cleanup(l.cut)
	return l
}

func (l *line) mend() {
	listener, err := net.Listen("tcp", l.address)
	if err != nil {
		l.t.Fatal(err)
	}
	l.l, l.address = listener, listener.Addr().String()
	l.wg.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", l.to)
			if err != nil {
				in.Close()
				continue
			}
			l.mu.Lock()
			l.open = append(l.open, in, out)
			l.mu.Unlock()
			l.wg.Go(func() { _, _ = io.Copy(out, in); out.Close() })
			l.wg.Go(func() { _, _ = io.Copy(in, out); in.Close() })
		}
	})
}

func (l *line) cut() {
	l.l.Close()
	l.mu.Lock()
	for _, c := range l.open {
		c.Close()
	}
	l.open = nil
	l.mu.Unlock()
	l.wg.Wait()
}

// BenchmarkE2ELoaded reads 5,000 Pods of usual size and 1,000 WasmPlugins, and
// reports what is kept of them.
func BenchmarkE2ELoaded(b *testing.B) {
	r := realCluster(b)
	const pods, plugins = 5000, 1000
	var wg sync.WaitGroup
	work := make(chan string)
	for range 8 {
		wg.Go(func() {
			for manifest := range work {
				r.put(b, manifest)
			}
		})
	}
	for i := range pods {
		work <- largePod(i)
	}
	for i := range plugins {
		work <- plugin("p"+strconv.Itoa(i), "pluginConfig: {rules: [{prefix: /a, realm: r, credentials: [a, b]}, {prefix: /b, realm: r, credentials: [a, b]}]}", "selector: {matchLabels: {app: web}}")
	}
	close(work)
	wg.Wait()
	for b.Loop() {
		before := heap()
		ctx, cancel := context.WithCancel(b.Context())
		snapshots, done := make(chan source.Snapshot), make(chan error)
		began := time.Now()
		go func() {
			done <- r.Source().Run(ctx, func(s source.Snapshot) {
				select {
				case snapshots <- s:
				case <-ctx.Done():
				}
			})
		}()
		s := <-snapshots
		first, peak := time.Since(began), memory().HeapSys
		if n := len(s.Objects); n < pods+plugins {
			b.Fatalf("%d objects", n)
		}
		s = source.Snapshot{}
		b.ReportMetric(float64(first.Milliseconds()), "ms/first")
		b.ReportMetric(float64(heap()-before)/1e6, "MB-kept")
		b.ReportMetric(float64(peak)/1e6, "MB-peak")
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		runtime.KeepAlive(s)
	}
}

func memory() runtime.MemStats {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m
}

// heap is how many bytes are in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	return memory().HeapAlloc
}

// largePod is as large as one with a sidecar.
func largePod(i int) string {
	env := strings.Repeat("{name: AN_ENVIRONMENT_VARIABLE, value: with a value of some length}, ", 40)
	containers := fmt.Sprintf("[{name: app, image: app, env: [%s], ports: [{name: http, containerPort: 8080}]}, {name: istio-proxy, image: proxy, env: [%s]}]", env, env)
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: pod-%d, namespace: apps, labels: {app: app-%d, version: v1, pod-template-hash: "%d", app.kubernetes.io/name: app-%d},
  annotations: {sidecar.istio.io/status: "%s"}}, spec: {nodeName: none, automountServiceAccountToken: false, containers: %s},
  status: {phase: Running, podIP: 10.9.%d.%d, podIPs: [{ip: 10.9.%d.%d}], conditions: [{type: Ready, status: "True"}]}}`,
		i, i/10, i/10, i/10, strings.Repeat("some text ", 60), containers, i/250, i%250+1, i/250, i%250+1)
}

package kube_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/source/kube"
	"github.com/chandler-proxy/chandler/internal/source/sourcetest"
)

func TestContract(t *testing.T) {
	t.Run("Streams", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T) sourcetest.Harness { return start(t) })
	})
	t.Run("Lists", func(t *testing.T) {
		sourcetest.Run(t, func(t *testing.T) sourcetest.Harness {
			c := start(t)
			c.streams = false
			return c
		})
	})
}

// plugin is the manifest of a WasmPlugin in namespace apps; more are lines of its spec.
func plugin(name string, more ...string) string {
	spec := append([]string{"url: oci://registry.example/" + name + ":v1"}, more...)
	return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata:\n  name: " + name +
		"\n  namespace: apps\nspec:\n  " + strings.Join(spec, "\n  ") + "\n"
}

func service(name string) string {
	return "apiVersion: v1\nkind: Service\nmetadata:\n  name: " + name + "\n  namespace: apps\nspec:\n  ports:\n  - port: 80\n"
}

func secret(namespace, name, value string) string {
	return "apiVersion: v1\nkind: Secret\nmetadata:\n  name: " + name + "\n  namespace: " + namespace + "\nstringData:\n  key: " + value + "\n"
}

func pod(name, labels, status string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\n  namespace: apps\n  labels: {" + labels +
		"}\nspec:\n  containers:\n  - name: app\n    image: app\nstatus: {" + status + "}\n"
}

func has(kind, name string) func(source.Snapshot) bool {
	return func(s source.Snapshot) bool { return find(s, kind, name) != nil }
}

func hasNot(kind, name string) func(source.Snapshot) bool {
	return func(s source.Snapshot) bool { return find(s, kind, name) == nil }
}

// told is the problem that says text, or none.
func told(s source.Snapshot, text string) *resource.Problem {
	i := slices.IndexFunc(s.Problems, func(p resource.Problem) bool { return strings.Contains(p.String(), text) })
	if i < 0 {
		return nil
	}
	return &s.Problems[i]
}

func TestKindAppearsAndGoes(t *testing.T) {
	c := start(t)
	wasmPlugins := c.undefine("wasmplugins.extensions.istio.io")
	c.undefine("gateways.gateway.networking.k8s.io") // one that never comes
	c.Put(t, service("a"))
	s := run(t, c.Source())
	first := s.next()
	if find(first, "Service", "a") == nil || len(first.Problems) > 0 || first.Unread {
		t.Errorf("without one kind: %v, want the rest and no problem", first)
	}
	c.define("wasmplugins.extensions.istio.io", wasmPlugins)
	c.Put(t, plugin("p"))
	s.until(has("WasmPlugin", "p"))

	c.undefine("wasmplugins.extensions.istio.io")
	after := s.until(hasNot("WasmPlugin", "p"))
	if find(after, "Service", "a") == nil || len(after.Problems) > 0 || after.Unread {
		t.Errorf("after one kind is gone: %v, want the rest and no problem", after)
	}
	c.define("wasmplugins.extensions.istio.io", wasmPlugins)
	c.Put(t, plugin("again"))
	s.until(has("WasmPlugin", "again"))
}

// A kind that appears and cannot be read keeps nothing else back.
func TestKindAppearsBroken(t *testing.T) {
	c := start(t)
	wasmPlugins := c.undefine("wasmplugins.extensions.istio.io")
	s := run(t, c.Source())
	s.next()
	c.deny("list", "wasmplugins.extensions.istio.io", 500)
	c.deny("watch", "wasmplugins.extensions.istio.io", 500)
	c.define("wasmplugins.extensions.istio.io", wasmPlugins)
	for c.requests()["watch wasmplugins.extensions.istio.io  "]+c.requests()["list wasmplugins.extensions.istio.io  "] == 0 {
		runtime.Gosched()
	}
	c.Put(t, service("a"))
	if after := s.until(has("Service", "a")); !after.Unread {
		t.Error("not Unread, though one kind could not be read")
	}
	c.Put(t, plugin("p"))
	c.deny("list", "wasmplugins.extensions.istio.io", 0)
	c.deny("watch", "wasmplugins.extensions.istio.io", 0)
	if after := s.until(has("WasmPlugin", "p")); after.Unread {
		t.Error("Unread, though all was read")
	}
}

func TestNoCluster(t *testing.T) {
	err := kube.New(kube.Config{}).Run(t.Context(), func(source.Snapshot) { t.Error("deliver was called") })
	if !errors.Is(err, kube.ErrNoCluster) {
		t.Errorf("Run = %v, want ErrNoCluster", err)
	}
}

// A cluster with older CRDs has the same kinds in older versions.
func TestOlderVersion(t *testing.T) {
	c := start(t)
	c.define("serviceentries.networking.istio.io", served{"ServiceEntry", []string{"v1alpha3", "v1beta1"}})
	c.Put(t, "apiVersion: networking.istio.io/v1beta1\nkind: ServiceEntry\nmetadata: {name: e, namespace: apps}\n"+
		"spec:\n  hosts: [a.example]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  resolution: DNS\n")
	s := run(t, c.Source())
	first := s.next()
	entry, ok := find(first, "ServiceEntry", "e").(*networkingv1.ServiceEntry)
	if !ok || entry.APIVersion != "networking.istio.io/v1" {
		t.Errorf("ServiceEntry = %v, problems %v; want it in version v1", entry, first.Problems)
	}
	// A newer one that replaces all older ones is read from then on.
	c.define("serviceentries.networking.istio.io", served{"ServiceEntry", []string{"v1"}})
	c.forget()
	c.Put(t, "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: f, namespace: apps}\n"+
		"spec:\n  hosts: [b.example]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  resolution: DNS\n")
	if after := s.until(has("ServiceEntry", "f")); find(after, "ServiceEntry", "e") != entry {
		t.Error("an object that did not change is another one in another version")
	}
}

func TestForbiddenKind(t *testing.T) {
	for _, status := range []int{403, 401} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			c := start(t)
			c.Put(t, service("a"))
			c.Put(t, plugin("p"))
			c.deny("list", "wasmplugins.extensions.istio.io", status)
			c.deny("watch", "wasmplugins.extensions.istio.io", status)
			s := run(t, c.Source())
			first := s.next()
			if !first.Unread || find(first, "Service", "a") == nil {
				t.Errorf("Unread = %v, objects %v; want Unread, and the rest", first.Unread, first.Objects)
			}
			p := told(first, `cannot list resource "wasmplugins"`)
			if p == nil || p.Kind != "WasmPlugin" || status == 403 && !strings.Contains(p.Mend, "allow to list and watch wasmplugins.extensions.istio.io") {
				t.Errorf("problems = %v, want one that says what is forbidden and what to allow", first.Problems)
			}
			c.deny("list", "wasmplugins.extensions.istio.io", 0)
			c.deny("watch", "wasmplugins.extensions.istio.io", 0)
			s.until(func(s source.Snapshot) bool {
				return find(s, "WasmPlugin", "p") != nil && !s.Unread && len(s.Problems) == 0
			})
		})
	}
}

// A permission that is taken away takes nothing else.
func TestForbiddenLater(t *testing.T) {
	c := start(t)
	c.Put(t, plugin("p"))
	s := run(t, c.Source())
	s.until(has("WasmPlugin", "p"))
	c.deny("list", "wasmplugins.extensions.istio.io", 403)
	c.deny("watch", "wasmplugins.extensions.istio.io", 403)
	after := s.until(func(s source.Snapshot) bool { return told(s, "is forbidden") != nil })
	if find(after, "WasmPlugin", "p") == nil || after.Unread {
		t.Errorf("after: %v, want what was read before", after)
	}
}

// If not even the kinds are told, what is no CRD is delivered.
func TestForbiddenDiscovery(t *testing.T) {
	c := start(t)
	c.Put(t, service("a"))
	c.Put(t, plugin("p"))
	c.deny("get", "/apis", 403)
	s := run(t, c.Source())
	first := s.next()
	if !first.Unread || find(first, "Service", "a") == nil || told(first, "system:discovery") == nil {
		t.Errorf("first snapshot: %v, want Unread, a Service, and what to mend", first)
	}
	c.deny("get", "/apis", 0)
	if after := s.until(has("WasmPlugin", "p")); after.Unread || len(after.Problems) > 0 {
		t.Errorf("after: %v, want no problem", after)
	}
}

func TestServerLost(t *testing.T) {
	c := start(t)
	for _, name := range []string{"stays", "goes", "changes"} {
		c.Put(t, plugin(name, "imagePullSecret: login"))
	}
	c.Put(t, secret("apps", "login", "a"))
	s := run(t, c.Source())
	before := s.until(has("WasmPlugin", "stays"))

	c.stop()
	c.Put(t, service("new"))
	c.Put(t, plugin("changes", "priority: 7"))
	c.Delete(t, plugin("goes"))
	c.restart()
	after := s.until(func(after source.Snapshot) bool {
		if find(after, "WasmPlugin", "stays") == nil || find(after, "Secret", "login") == nil || len(after.Problems) > 0 || after.Unread {
			t.Errorf("on the way: %v, want nothing removed", after)
		}
		p, _ := find(after, "WasmPlugin", "changes").(*extensionsv1alpha1.WasmPlugin)
		return find(after, "Service", "new") != nil && find(after, "WasmPlugin", "goes") == nil && p.Spec.Priority.GetValue() == 7
	})
	if find(before, "WasmPlugin", "stays") != find(after, "WasmPlugin", "stays") {
		t.Error("an object that did not change was decoded again")
	}
}

// That something is not found does not mean that its kind is gone.
func TestNotFoundThoughServed(t *testing.T) {
	c := start(t)
	c.Put(t, plugin("p"))
	s := run(t, c.Source())
	s.until(has("WasmPlugin", "p"))
	c.deny("list", "wasmplugins.extensions.istio.io", 404)
	c.deny("watch", "wasmplugins.extensions.istio.io", 404)
	for asked := c.requests()["get /apis"]; c.requests()["get /apis"] < asked+2; {
		runtime.Gosched()
	}
	c.Put(t, service("new"))
	after := s.until(has("Service", "new"))
	if find(after, "WasmPlugin", "p") == nil {
		t.Error("a plugin is gone though its kind is still served")
	}
}

// A watch that cannot go on where it was is begun anew.
func TestHistoryLost(t *testing.T) {
	for _, streams := range []bool{true, false} {
		c := start(t)
		c.streams = streams
		c.Put(t, plugin("stays"))
		c.Put(t, plugin("goes"))
		s := run(t, c.Source())
		before := s.until(has("WasmPlugin", "goes"))
		c.Delete(t, plugin("goes"))
		c.forget()
		c.Put(t, plugin("new"))
		after := s.until(func(s source.Snapshot) bool {
			return find(s, "WasmPlugin", "new") != nil && find(s, "WasmPlugin", "goes") == nil
		})
		if find(before, "WasmPlugin", "stays") != find(after, "WasmPlugin", "stays") {
			t.Error("an object that did not change was decoded again")
		}
	}
}

func TestServerNotThereYet(t *testing.T) {
	c := start(t)
	c.Put(t, plugin("p"))
	c.stop()
	s := run(t, c.Source())
	c.restart()
	if first := s.next(); find(first, "WasmPlugin", "p") == nil || first.Unread {
		t.Errorf("first snapshot: %v, want it whole", first)
	}
}

func TestSecrets(t *testing.T) {
	c := start(t)
	c.Put(t, secret("apps", "login", "a"))
	c.Put(t, secret("apps", "other", "b"))
	c.Put(t, secret("elsewhere", "login", "c"))
	c.Put(t, plugin("p", "imagePullSecret: login"))
	s := run(t, c.Source())
	first := s.next()
	if got, _ := find(first, "Secret", "login").(*corev1.Secret); got == nil || got.Namespace != "apps" || string(got.Data["key"]) != "a" {
		t.Errorf("Secret = %v, want apps/login with the first snapshot", got)
	}
	if find(first, "Secret", "other") != nil {
		t.Error("a Secret that nobody names was read")
	}

	c.Put(t, secret("apps", "login", "changed"))
	s.until(func(s source.Snapshot) bool {
		return string(find(s, "Secret", "login").(*corev1.Secret).Data["key"]) == "changed"
	})

	c.Put(t, plugin("q", "imagePullSecret: later"))
	s.until(has("WasmPlugin", "q"))
	c.Put(t, secret("apps", "later", "d"))
	s.until(has("Secret", "later"))

	c.Delete(t, plugin("q"))
	s.until(hasNot("Secret", "later"))
	c.watched("watch secrets apps later", false)
	c.watched("watch secrets apps login", true)
	want := []string{"watch secrets apps later", "watch secrets apps login"}
	if got := slices.Sorted(maps.Keys(only(c.requests(), " secrets "))); !slices.Equal(got, want) {
		t.Errorf("requests for Secrets = %v, want %v only", got, want)
	}
}

func only(requests map[string]int, text string) map[string]int {
	maps.DeleteFunc(requests, func(r string, _ int) bool { return !strings.Contains(r, text) })
	return requests
}

// A plugin that names a new Secret comes together with it.
func TestSecretComesWithItsPlugin(t *testing.T) {
	c := start(t)
	c.Put(t, secret("apps", "login", "a"))
	s := run(t, c.Source())
	s.next()
	c.Put(t, plugin("p", "imagePullSecret: login"))
	if with := s.until(has("WasmPlugin", "p")); find(with, "Secret", "login") == nil {
		t.Error("a plugin was delivered before its Secret")
	}
}

func TestForbiddenSecret(t *testing.T) {
	c := start(t)
	c.deny("list", "secrets", 403)
	c.deny("watch", "secrets", 403)
	c.Put(t, secret("apps", "login", "a"))
	c.Put(t, plugin("p", "imagePullSecret: login"))
	s := run(t, c.Source())
	first := s.next()
	if find(first, "WasmPlugin", "p") == nil || first.Unread {
		t.Errorf("first snapshot: %v, want the plugin all the same", first)
	}
	if p := told(first, "Secret apps/login: cannot be read"); p == nil || len(first.Problems) != 1 {
		t.Errorf("problems = %v, want one about the Secret", first.Problems)
	}
	c.deny("list", "secrets", 0)
	c.deny("watch", "secrets", 0)
	s.until(func(s source.Snapshot) bool { return find(s, "Secret", "login") != nil && len(s.Problems) == 0 })
}

func TestInvalidObject(t *testing.T) {
	c := start(t)
	c.Put(t, plugin("p"))
	c.Put(t, plugin("never", "phase: NEVER"))
	s := run(t, c.Source())
	first := s.next()
	if find(first, "WasmPlugin", "never") != nil || told(first, "WasmPlugin apps/never: spec.phase: Unsupported value") == nil {
		t.Errorf("problems = %v, want one about spec.phase and no object", first.Problems)
	}
	for _, p := range first.Problems {
		if p.File != "" || p.Line != 0 {
			t.Errorf("problem of %s:%d, want no place", p.File, p.Line)
		}
	}
	never := source.Refused{
		Key: resource.Key{Group: "extensions.istio.io", Kind: "WasmPlugin", Namespace: "apps", Name: "never"},
		UID: first.Refused[0].UID, Generation: 1,
	}
	if len(first.Refused) != 1 || first.Refused[0] != never || never.UID == "" {
		t.Errorf("refused = %v, want %v", first.Refused, never)
	}
	c.Put(t, plugin("p", "phase: LATE"))
	broken := s.until(func(s source.Snapshot) bool { return told(s, "apps/p") != nil })
	if find(broken, "WasmPlugin", "p") != find(first, "WasmPlugin", "p") {
		t.Error("the last valid form is not in force")
	}
	if p := told(broken, "apps/p"); !strings.Contains(p.Mend, "stays in force") {
		t.Errorf("problem = %v, want it to say what is in force", p)
	}
	if i := slices.IndexFunc(broken.Refused, func(r source.Refused) bool { return r.Key.Name == "p" }); i < 0 || broken.Refused[i].Generation != 2 {
		t.Errorf("refused = %v, want generation 2 of p among them", broken.Refused)
	}
	c.Put(t, plugin("p", "phase: LATE", "priority: 7")) // wrong in the same way: a status is about the newest
	s.until(func(s source.Snapshot) bool {
		return slices.ContainsFunc(s.Refused, func(r source.Refused) bool { return r.Key.Name == "p" && r.Generation == 3 })
	})
	c.Put(t, plugin("p", "phase: AUTHN"))
	s.until(func(s source.Snapshot) bool { return told(s, "apps/p") == nil && len(s.Refused) == 1 })
	c.Delete(t, plugin("never"))
	s.until(func(s source.Snapshot) bool { return len(s.Problems) == 0 && len(s.Refused) == 0 })
}

// What status is written about is the resource that was read.
func TestGenerationAndUID(t *testing.T) {
	c := start(t)
	c.Put(t, plugin("p"))
	s := run(t, c.Source())
	p := find(s.next(), "WasmPlugin", "p")
	if p.GetGeneration() != 1 || p.GetUID() == "" {
		t.Errorf("generation %d, UID %q", p.GetGeneration(), p.GetUID())
	}
	c.Put(t, plugin("p", "phase: AUTHN"))
	s.until(func(s source.Snapshot) bool {
		q := find(s, "WasmPlugin", "p")
		return q.GetGeneration() == 2 && q.GetUID() == p.GetUID()
	})
}

func TestPodsThatEnded(t *testing.T) {
	c := start(t)
	c.Put(t, pod("runs", "app: a", "phase: Running, podIP: 10.0.0.1"))
	c.Put(t, pod("pends", "app: a", "phase: Pending"))
	c.Put(t, pod("done", "app: a", "phase: Succeeded, podIP: 10.0.0.1"))
	c.Put(t, pod("failed", "app: a", "phase: Failed, podIP: 10.0.0.2"))
	s := run(t, c.Source())
	first := s.next()
	for name, want := range map[string]bool{"runs": true, "pends": true, "done": false, "failed": false} {
		if got := find(first, "Pod", name) != nil; got != want {
			t.Errorf("Pod %s is there: %v, want %v", name, got, want)
		}
	}
	c.Put(t, pod("runs", "app: a", "phase: Succeeded, podIP: 10.0.0.1"))
	s.until(hasNot("Pod", "runs"))
}

func TestMetrics(t *testing.T) {
	c := start(t)
	c.Put(t, plugin("p"))
	c.deny("watch", "services", 403)
	c.deny("list", "services", 403)
	registry := prometheus.NewRegistry()
	config := c.config()
	config.Registerer = registry
	s := run(t, kube.New(config))
	s.next()
	c.Put(t, plugin("q"))
	s.until(has("WasmPlugin", "q"))
	got, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range got {
		for _, m := range family.Metric {
			values[family.GetName()+labels(m)] = m.Counter.GetValue()
		}
	}
	for name, atLeast := range map[string]float64{
		"chandler_source_kube_events_total{wasmplugins.extensions.istio.io}": 2,
		"chandler_source_kube_snapshots_total":                               2,
		"chandler_source_kube_errors_total{services}":                        1,
	} {
		if values[name] < atLeast {
			t.Errorf("%s = %v, want at least %v; all: %v", name, values[name], atLeast, values)
		}
	}
}

func labels(m *dto.Metric) string {
	if len(m.Label) == 0 {
		return ""
	}
	return "{" + m.Label[0].GetValue() + "}"
}

// Nothing that a source started outlives it, even while it waits for an API
// server that is gone.
func TestNothingIsLeft(t *testing.T) {
	for _, lost := range []bool{false, true} {
		c := start(t)
		c.Put(t, plugin("p", "imagePullSecret: login"))
		c.undefine("httproutes.gateway.networking.k8s.io")
		ctx, cancel := context.WithCancel(t.Context())
		snapshots, done := make(chan source.Snapshot, 100), make(chan error)
		src := c.Source()
		go func() { done <- src.Run(ctx, func(s source.Snapshot) { snapshots <- s }) }()
		<-snapshots
		if lost {
			c.stop()
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		c.stop()
		for stacks := goroutines(); strings.Contains(stacks, "source/kube.(") || strings.Contains(stacks, "client-go"); stacks = goroutines() {
			runtime.Gosched()
		}
		if !lost {
			c.restart()
		}
	}
}

func goroutines() string {
	stacks := make([]byte, 1<<20)
	return string(stacks[:runtime.Stack(stacks, true)])
}

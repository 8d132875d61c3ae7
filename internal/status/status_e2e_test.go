//go:build e2e

package status

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// A cluster is a real API server, with a namespace of the test's own.
type cluster struct {
	dynamic.Interface
	t          *testing.T
	kubeconfig string
	namespace  string
	config     *rest.Config
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	kubeconfig := os.Getenv("CHANDLER_KUBECONFIG")
	if kubeconfig == "" {
		t.Skip("CHANDLER_KUBECONFIG names no cluster to test with")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	c := &cluster{t: t, kubeconfig: kubeconfig, config: config, Interface: objects(t, config)}
	c.definitions()
	namespace := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"generateName": "status-"},
	}}
	namespace, err = c.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Create(t.Context(), namespace, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.namespace = namespace.GetName()
	t.Cleanup(func() { // nothing else takes the namespace's content away where no controllers run
		ctx := context.WithoutCancel(t.Context())
		if err := c.plugins().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		if err := c.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Delete(ctx, c.namespace, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return c
}

// definitions puts Istio's into the cluster, with our columns.
func (c *cluster) definitions() {
	c.t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		c.t.Fatal(err)
	}
	file, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "kubernetes", "customresourcedefinitions.gen.yaml"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer file.Close()
	crds := c.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for docs := utilyaml.NewYAMLReader(bufio.NewReader(file)); ; {
		doc, err := docs.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			c.t.Fatal(err)
		}
		crd := new(apiextensionsv1.CustomResourceDefinition)
		if err := yaml.UnmarshalStrict(doc, crd); err != nil {
			c.t.Fatal(err)
		}
		if crd.Name == "" {
			continue
		}
		Columns(crd)
		crd.SetGroupVersionKind(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(crd)
		if err != nil {
			c.t.Fatal(err)
		}
		unstructured.RemoveNestedField(object, "status")
		_, err = crds.Apply(c.t.Context(), crd.Name, &unstructured.Unstructured{Object: object}, metav1.ApplyOptions{FieldManager: "test", Force: true})
		if err != nil {
			c.t.Fatal(err)
		}
		c.eventually(time.Minute, crd.Name+" is established", func() bool {
			u, err := crds.Get(c.t.Context(), crd.Name, metav1.GetOptions{})
			if err != nil {
				c.t.Fatal(err)
			}
			return slices.Contains(conditionsOf(u), "Established=True/0")
		})
	}
}

// eventually fails unless what is so within limit.
func (c *cluster) eventually(limit time.Duration, what string, so func() bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		if time.Since(began) > limit {
			c.t.Fatalf("not so after %s: %s", limit, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

// conditionsOf are TYPE=STATUS/GENERATION.
func conditionsOf(u *unstructured.Unstructured) []string {
	written, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	var all []string
	for _, w := range written {
		c := readCondition(w)
		all = append(all, fmt.Sprintf("%s=%s/%d", c.Type, c.Status, c.ObservedGeneration))
	}
	return all
}

func (c *cluster) plugins() dynamic.ResourceInterface {
	kind, _ := resourceOf(pluginKey(""))
	return c.Resource(kind).Namespace(c.namespace)
}

// plugin creates one and returns it as the API server has it.
func (c *cluster) plugin(name string) *unstructured.Unstructured {
	c.t.Helper()
	var u *unstructured.Unstructured
	c.eventually(10*time.Second, "plugins can be created", func() bool { // the API server serves new kinds with a delay
		var err error
		u, err = c.plugins().Create(c.t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin",
			"metadata": map[string]any{"name": name}, "spec": map[string]any{"url": reference},
		}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			c.t.Fatal(err)
		}
		return err == nil
	})
	return u
}

func (c *cluster) fact(u *unstructured.Unstructured, n, m int) Fact {
	f := fact(u.GetName(), n, m)
	f.Key.Namespace, f.UID, f.Generation = c.namespace, u.GetUID(), u.GetGeneration()
	return f
}

func (c *cluster) get(name string) (*unstructured.Unstructured, object) {
	c.t.Helper()
	u, err := c.plugins().Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return u, newObject(u, true)
}

// shown are the proxies that the status of a plugin tells of.
func (c *cluster) shown(name, want string) func() bool {
	return func() bool {
		_, o := c.get(name)
		return o.proxies == want
	}
}

// start runs a writer until the test ends.
func (c *cluster) start(config *rest.Config) *Writer {
	c.t.Helper()
	w, err := New(Config{
		Objects: objects(c.t, config), Events: eventsOf(c.t, config), Instance: "chandler-1",
		Log: slog.New(slog.NewTextHandler(c.t.Output(), nil)),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			c.t.Errorf("Run: %v", err)
		}
	})
	c.t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

// TestClusterStatus: on a real API server conditions and events come, stay beside
// those of others, and kubectl shows them.
func TestClusterStatus(t *testing.T) {
	c := newCluster(t)
	u := c.plugin("hello")
	others := `{"status":{"conditions":[{"type":"Others","status":"True","observedGeneration":"1"}]}}`
	if _, err := c.plugins().Patch(t.Context(), "hello", types.MergePatchType, []byte(others), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	route, err := c.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}).Namespace(c.namespace).
		Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
			"metadata": map[string]any{"name": "route"}, "spec": map[string]any{"hosts": []any{"example.com"}},
		}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wrong := Fact{
		Key:        resource.Key{Group: "networking.istio.io", Kind: "VirtualService", Namespace: c.namespace, Name: "route"},
		Generation: route.GetGeneration(), Problems: []resource.Problem{{Field: "spec.http", Message: "no route"}},
	}

	w := c.start(c.config)
	w.Update([]Fact{c.fact(u, 3, 3).refusedBy("no such image"), wrong})
	c.eventually(10*time.Second, "the status is written", c.shown("hello", "2/3"))
	w.Update([]Fact{c.fact(u, 3, 3), wrong})
	c.eventually(10*time.Second, "the status is written", c.shown("hello", "3/3"))

	u, _ = c.get("hello")
	if u.GetGeneration() != 1 {
		t.Errorf("generation %d after writes of the status", u.GetGeneration())
	}
	want := []string{"Others=True/1", "Accepted=True/1", "Resolved=True/1", "Programmed=True/1"}
	if diff := cmp.Diff(want, conditionsOf(u)); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
	for _, f := range u.GetManagedFields() {
		if f.Manager == fieldManager && f.Subresource != "status" {
			t.Errorf("more than the status was written: %v", f)
		}
	}
	c.eventually(10*time.Second, "events are made", func() bool {
		events, err := c.Resource(schema.GroupVersionResource{Group: "events.k8s.io", Version: "v1", Resource: "events"}).Namespace(c.namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(events.Items) == 3 // refused, programmed, invalid
	})
	c.kubectl()
}

// kubectl looks at plugin hello as users do.
func (c *cluster) kubectl() {
	c.t.Helper()
	if _, err := exec.LookPath("kubectl"); err != nil {
		c.t.Log("no kubectl on PATH: columns are not looked at")
		return
	}
	run := func(args ...string) string {
		c.t.Helper()
		cmd := exec.Command("kubectl", append([]string{"--kubeconfig", c.kubeconfig, "-n", c.namespace}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			c.t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		c.t.Logf("%s\n%s", strings.Join(cmd.Args[5:], " "), out)
		return string(out)
	}
	described := run("describe", "wasmplugin", "hello")
	for _, tt := range []struct{ out, want string }{
		{run("get", "wasmplugin"), `(?s)^NAME +PROGRAMMED +PROXIES +REASON +AGE\nhello +True +3/3 +Programmed +\S+\n$`},
		{run("get", "wasmplugin", "-o", "wide"), `(?s)^NAME .* ACCEPTED +RESOLVED +DIGEST +MESSAGE\nhello .* True +True +sha256:0123456789ab +3 of 3 proxies run it\n$`},
		{run("wait", "wasmplugin/hello", "--for=condition=Programmed", "--timeout=5s"), "condition met"},
		{described, `Warning +Refused .*chandler.io/status.*httpbin-0.default: no such image`},
		{described, `Normal +Programmed .*chandler.io/status.*3 of 3 proxies run it`},
		{run("wait", "virtualservice/route", "--for=condition=Accepted=false", "--timeout=5s"), "condition met"},
	} {
		if !regexp.MustCompile(tt.want).MatchString(tt.out) {
			c.t.Errorf("kubectl prints\n%s\nwant %s", tt.out, tt.want)
		}
	}
}

// A counter counts the calls of a client.
type counter struct {
	next http.RoundTripper
	mu   sync.Mutex
	n    map[string]int // by method
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.n[r.Method]++
	c.mu.Unlock()
	return c.next.RoundTrip(r)
}

func (c *counter) counts() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return map[string]int{"GET": c.n["GET"], "PATCH": c.n["PATCH"], "POST": c.n["POST"]}
}

// TestClusterThousand: the proxies of 1,000 plugins change all the time; writes are
// bounded, the last word is written, and then no more is.
func TestClusterThousand(t *testing.T) {
	c := newCluster(t)
	const resources, proxies = 1000, 20
	all := make([]*unstructured.Unstructured, resources)
	for i := range all {
		all[i] = c.plugin(fmt.Sprintf("p-%04d", i))
	}
	calls := &counter{n: make(map[string]int)}
	counted := rest.CopyConfig(c.config)
	counted.Wrap(func(next http.RoundTripper) http.RoundTripper {
		calls.next = next
		return calls
	})
	// The counter has one next: events go uncounted through a client of their own.
	w, err := New(Config{Objects: objects(t, counted), Events: eventsOf(t, c.config)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	defer wg.Wait()
	defer cancel()
	tell := func(n int) {
		facts := make([]Fact, resources)
		for i, u := range all {
			facts[i] = c.fact(u, n, proxies)
		}
		w.Update(facts)
	}

	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := range 10 * proxies { // 20 s in which each changes ten times a second
		tell(n % proxies)
		<-tick.C
	}
	storm, stormed := calls.counts(), time.Since(began)
	if most := w.cfg.Burst + int(float64(w.cfg.Rate)*stormed.Seconds()) + 1; storm["PATCH"] > most {
		t.Errorf("%d writes in %s, want at most %d", storm["PATCH"], stormed, most)
	}
	tell(proxies)
	took := c.eventually(time.Minute, "all have the last word", func() bool {
		list, err := c.plugins().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			if newObject(&list.Items[i], true).proxies != fmt.Sprintf("%d/%d", proxies, proxies) {
				return false
			}
		}
		return true
	})
	done := calls.counts()
	for range 20 {
		tell(proxies)
		<-tick.C
	}
	if after := calls.counts(); after["PATCH"] != done["PATCH"] || after["GET"] != done["GET"] {
		t.Errorf("calls %v, and %v after nothing has changed", done, after)
	}
	t.Logf("%d changes of %d plugins in %s: %v; all had the last word %s later: %v in all", 10*proxies, resources, stormed, storm, took, done)
}

// TestReplica is not a test but a replica of TestClusterFailover, which kills it. It
// tells of plugin hello that CHANDLER_REPLICA of 9 proxies run it.
func TestReplica(t *testing.T) {
	number := os.Getenv("CHANDLER_REPLICA")
	if number == "" {
		t.Skip("not a replica")
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("CHANDLER_KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(Config{Objects: objects(t, config)})
	if err != nil {
		t.Fatal(err)
	}
	f := fact("hello", int(number[0]-'0'), 9)
	f.Key.Namespace = os.Getenv("CHANDLER_REPLICA_NAMESPACE")
	w.Update([]Fact{f})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // until standard input ends; nothing but the end of the process waits for it
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	err = Lead(ctx, leases(t, config), LeadConfig{
		Namespace: f.Key.Namespace, Identity: number, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}, w.Run)
	if err != nil {
		t.Fatal(err)
	}
}

// TestClusterFailover: of two processes one writes; when it is killed, or stops, the other does.
func TestClusterFailover(t *testing.T) {
	c := newCluster(t)
	c.plugin("hello")
	type replica struct {
		*exec.Cmd
		stdin io.Closer
	}
	start := func(number string) replica {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestReplica$")
		cmd.Env = append(os.Environ(), "CHANDLER_REPLICA="+number, "CHANDLER_REPLICA_NAMESPACE="+c.namespace)
		cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return replica{cmd, stdin}
	}
	one := start("1")
	c.eventually(10*time.Second, "the first writes", c.shown("hello", "1/9"))
	two := start("2")
	looks := 0
	c.eventually(time.Minute, "the second waits for three seconds", func() bool {
		looks++
		if _, o := c.get("hello"); o.proxies != "1/9" {
			t.Fatalf("status of %s proxies while the first leads", o.proxies)
		}
		return looks == 30
	})
	if err := one.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := c.eventually(30*time.Second, "the second takes over", c.shown("hello", "2/9"))
	if err := one.Wait(); err == nil {
		t.Error("the first was not killed")
	}

	three := start("3")
	two.stdin.Close()
	if err := two.Wait(); err != nil {
		t.Errorf("the second ends with %v", err)
	}
	stopped := c.eventually(30*time.Second, "the third takes over", c.shown("hello", "3/9"))
	three.stdin.Close()
	if err := three.Wait(); err != nil {
		t.Errorf("the third ends with %v", err)
	}
	t.Logf("taken over %s after a kill, %s after a stop", killed, stopped)
}

//go:build e2e

package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/chandler-proxy/chandler/internal/control"
	"github.com/chandler-proxy/chandler/internal/control/cluster"
	"github.com/chandler-proxy/chandler/internal/envoy/envoytest"
	"github.com/chandler-proxy/chandler/internal/inject"
	"github.com/chandler-proxy/chandler/internal/inject/trust"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// The definitions that a cluster may have by somebody else's hand.
var (
	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	plugins     = schema.GroupVersionResource{Group: "extensions.istio.io", Version: "v1alpha1", Resource: "wasmplugins"}
	extensions  = schema.GroupVersionResource{Group: "extensions.istio.io", Version: "v1alpha1", Resource: "trafficextensions"}
)

// A site is a real API server, without anybody else who acts on its objects.
type site struct {
	t       *testing.T
	config  *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
}

func newSite(t *testing.T) *site {
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
	s := &site{t: t, config: config}
	if s.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if s.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	s.undefine(plugins)
	s.undefine(extensions)
	return s
}

// namespace makes one of a name like that.
func (s *site) namespace(like string, labels map[string]string) string {
	s.t.Helper()
	n, err := s.client.CoreV1().Namespaces().Create(s.t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: like + "-", Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.remove(n.Name) })
	return n.Name
}

// remove takes a namespace away, which nobody else does where no controllers run.
func (s *site) remove(namespace string) {
	ctx := context.WithoutCancel(s.t.Context())
	err := s.client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})
	if err == nil {
		var n *corev1.Namespace
		if n, err = s.client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err == nil {
			n.Spec.Finalizers = nil
			_, err = s.client.CoreV1().Namespaces().Finalize(ctx, n, metav1.UpdateOptions{})
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		s.t.Error(err)
	}
}

// undefine takes away the definition of a kind that other packages' tests have left on the
// API server, and puts it back when the test ends.
func (s *site) undefine(gvr schema.GroupVersionResource) {
	s.t.Helper()
	name := gvr.GroupResource().String()
	left, err := s.dynamic.Resource(definitions).Get(s.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return
	}
	if err == nil {
		err = s.dynamic.Resource(definitions).Delete(s.t.Context(), name, metav1.DeleteOptions{})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.eventually(name+" is gone", func() error { return s.undefined(s.t.Context(), gvr) })
	s.t.Cleanup(func() {
		back := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": left.GetAPIVersion(), "kind": left.GetKind(), "metadata": map[string]any{"name": name}, "spec": left.Object["spec"],
		}}
		back.SetAnnotations(left.GetAnnotations())
		back.SetLabels(left.GetLabels())
		if _, err := s.dynamic.Resource(definitions).Create(context.WithoutCancel(s.t.Context()), back, metav1.CreateOptions{}); err != nil {
			s.t.Error(err)
		}
	})
}

// undefined is nil if there is no definition of a kind.
func (s *site) undefined(ctx context.Context, gvr schema.GroupVersionResource) error {
	_, err := s.dynamic.Resource(definitions).Get(ctx, gvr.GroupResource().String(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("still there: %v", err)
}

// define makes the definition of a kind as somebody might who checks nothing.
func (s *site) define(gvr schema.GroupVersionResource, kind string) {
	s.t.Helper()
	_, err := s.dynamic.Resource(definitions).Create(s.t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": gvr.GroupResource().String()},
		"spec": map[string]any{
			"group": gvr.Group, "scope": "Namespaced",
			"names": map[string]any{"kind": kind, "listKind": kind + "List", "plural": gvr.Resource, "singular": strings.ToLower(kind)},
			"versions": []any{map[string]any{
				"name": gvr.Version, "served": true, "storage": true, "subresources": map[string]any{"status": map[string]any{}},
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
			}},
		},
	}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx := context.WithoutCancel(s.t.Context())
		if err := s.dynamic.Resource(definitions).Delete(ctx, gvr.GroupResource().String(), metav1.DeleteOptions{}); err != nil {
			s.t.Error(err)
		}
		s.eventually(gvr.Resource+" are gone", func() error { return s.undefined(ctx, gvr) })
	})
	s.eventually(gvr.Resource+" are served", func() error {
		_, err := s.dynamic.Resource(gvr).List(s.t.Context(), metav1.ListOptions{})
		return err
	})
}

// create makes an extension of one of the kinds.
func (s *site) create(gvr schema.GroupVersionResource, kind, namespace, name string, spec map[string]any) {
	s.t.Helper()
	s.eventually(name+" is made", func() error { // a definition may not be everywhere yet
		_, err := s.dynamic.Resource(gvr).Namespace(namespace).Create(s.t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": gvr.GroupVersion().String(), "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec,
		}}, metav1.CreateOptions{})
		return err
	})
}

// eventually fails unless check returns nil within a minute.
func (s *site) eventually(what string, check func() error) {
	s.t.Helper()
	envoytest.Wait{Patience: time.Minute, Every: 100 * time.Millisecond}.Until(s.t, what, check)
}

// condition is nil when a condition of an extension is as wanted, "STATUS REASON",
// with a message that has the text.
func (s *site) condition(gvr schema.GroupVersionResource, namespace, name, kind, want, text string) func() error {
	return func() error {
		u, err := s.dynamic.Resource(gvr).Namespace(namespace).Get(s.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, c := range conditions {
			c := c.(map[string]any)
			if c["type"] != kind {
				continue
			}
			if got := fmt.Sprint(c["status"], " ", c["reason"]); got != want {
				return fmt.Errorf("%s is %s: %v", kind, got, c["message"])
			}
			if message, _ := c["message"].(string); !strings.Contains(message, text) {
				return fmt.Errorf("%s: message %q lacks %q", kind, message, text)
			}
			if n := c["observedGeneration"]; n != u.GetGeneration() {
				return fmt.Errorf("%s is of generation %v, not %d", kind, n, u.GetGeneration())
			}
			return nil
		}
		return fmt.Errorf("no condition %s", kind)
	}
}

// A wire is the way to the API server, which may be cut.
type wire struct {
	mu   sync.Mutex
	open map[net.Conn]bool
	down bool
}

var errCut = errors.New("the wire is cut")

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return nil, errCut
	}
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		w.open[c] = true
	}
	return c, err
}

func (w *wire) cut(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
	for c := range w.open {
		c.Close()
		delete(w.open, c)
	}
}

// A replica is a control plane at work.
type replica struct {
	*site
	name            string
	wire            *wire
	xds, monitoring string
	stop            func()

	mu  sync.Mutex
	log bytes.Buffer
}

func (r *replica) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

func (r *replica) logged(text string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !strings.Contains(r.log.String(), text) {
		return fmt.Errorf("log of %s lacks %q", r.name, text)
	}
	return nil
}

// start runs a replica until the test ends or stop is called.
func (s *site) start(name, root, revision string) *replica {
	s.t.Helper()
	r := &replica{site: s, name: name, wire: &wire{open: make(map[net.Conn]bool)}, xds: s.port(), monitoring: s.port()}
	config := rest.CopyConfig(s.config)
	config.Dial = r.wire.dial
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	var wg sync.WaitGroup
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	wg.Go(func() {
		err := cluster.Run(ctx, cluster.Config{
			API: config, Instance: name,
			Inject: inject.Options{Revision: revision},
			Control: control.Config{
				XDS: r.xds, Monitoring: r.monitoring, Mesh: mesh.Options{RootNamespace: root},
				Log: slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelInfo})),
			},
		})
		if err != nil {
			s.t.Errorf("%s: %v", name, err)
		}
	})
	s.t.Cleanup(func() {
		r.stop()
		if s.t.Failed() {
			r.mu.Lock()
			defer r.mu.Unlock()
			s.t.Logf("log of %s:\n%s", name, &r.log)
		}
	})
	s.eventually(name+" is ready", func() error { return r.page("/ready", "") })
	return r
}

// port is one that was free a moment ago.
func (s *site) port() string {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// page is nil if the page of the monitoring port is there and has the text.
func (r *replica) page(path, text string) error {
	res, err := http.Get("http://" + r.monitoring + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || !strings.Contains(string(body), text) {
		return fmt.Errorf("%s: status %d, without %q", path, res.StatusCode, text)
	}
	return nil
}

// served is nil if a new proxy gets its clusters.
func (r *replica) served() error {
	conn, err := grpc.NewClient(r.xds, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	node := &corev3.Node{Id: "sidecar~10.0.0.1~p.default~default.svc.cluster.local"}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: xds.ClusterType}); err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func (s *site) roots(namespace string) (*corev1.ConfigMap, error) {
	return s.client.CoreV1().ConfigMaps(namespace).Get(s.t.Context(), trust.ConfigMapName, metav1.GetOptions{})
}

// published is nil if a namespace has roots that the control plane of that namespace
// has published.
func (s *site) published(namespace, by string) func() error {
	return func() error {
		m, err := s.roots(namespace)
		if err != nil {
			return err
		}
		if owner := m.Labels["chandler.io/control-plane"]; owner != by || m.Data[trust.ConfigMapKey] == "" {
			return fmt.Errorf("it is that of %q", owner)
		}
		return nil
	}
}

// TestE2EForeignDefinitions: a control plane serves while no kind of extension is
// defined. When they are, by somebody whose definitions check nothing, the user of an
// object that is wrong reads so in its status.
func TestE2EForeignDefinitions(t *testing.T) {
	s := newSite(t)
	root, apps := s.namespace("root", nil), s.namespace("apps", nil)
	r := s.start("one", root, "")
	if err := r.served(); err != nil {
		t.Fatalf("without definitions: %v", err)
	}
	s.eventually("roots are published", s.published(apps, root))

	s.define(plugins, "WasmPlugin")
	s.define(extensions, "TrafficExtension")
	good := map[string]any{"url": "oci://registry.test/auth:1"}
	s.create(plugins, "WasmPlugin", apps, "good", good)
	s.create(plugins, "WasmPlugin", apps, "bad", map[string]any{"url": "oci://registry.test/auth:1", "phase": "NEVER"})
	s.create(plugins, "WasmPlugin", apps, "both", map[string]any{ // refused by a rule in CEL
		"url": "oci://registry.test/auth:1", "selector": map[string]any{"matchLabels": map[string]any{"a": "b"}},
		"targetRefs": []any{map[string]any{"kind": "Service", "name": "x"}},
	})
	s.create(plugins, "WasmPlugin", apps, "odd", map[string]any{"url": []any{"not", "a", "string"}})
	s.create(extensions, "TrafficExtension", apps, "neither", map[string]any{"phase": "AUTHN"})
	s.eventually("the good one is accepted", s.condition(plugins, apps, "good", "Accepted", "True Accepted", ""))
	for _, tt := range []struct {
		gvr        schema.GroupVersionResource
		name, text string
	}{
		{plugins, "bad", "spec.phase"}, {plugins, "both", "only one of"}, {plugins, "odd", "spec.url"}, {extensions, "neither", ""},
	} {
		s.eventually(tt.name+" is refused", s.condition(tt.gvr, apps, tt.name, "Accepted", "False Invalid", tt.text))
		s.eventually(tt.name+" is not delivered", s.condition(tt.gvr, apps, tt.name, "Programmed", "False Invalid", ""))
	}

	patch := func(name, body string) {
		t.Helper()
		if _, err := s.dynamic.Resource(plugins).Namespace(apps).Patch(t.Context(), name, "application/merge-patch+json", []byte(body), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch("good", `{"spec":{"phase":"NEVER"}}`)
	s.eventually("a change for the worse is refused", s.condition(plugins, apps, "good", "Accepted", "False Invalid", "stays in force"))
	patch("good", `{"spec":{"phase":"AUTHN"}}`)
	patch("bad", `{"spec":{"phase":"AUTHN"}}`)
	s.eventually("it is mended", s.condition(plugins, apps, "good", "Accepted", "True Accepted", ""))
	s.eventually("and so is the other", s.condition(plugins, apps, "bad", "Accepted", "True Accepted", ""))
}

// TestE2ELeaders: of two replicas one writes; when it goes, or cannot reach the API
// server, the other does, and what runs is served all the while.
func TestE2ELeaders(t *testing.T) {
	s := newSite(t)
	root, apps := s.namespace("root", nil), s.namespace("apps", nil)
	s.define(plugins, "WasmPlugin")
	one := s.start("one", root, "")
	s.eventually("one leads", func() error { return one.logged("msg=leads") })
	two := s.start("two", root, "")
	s.create(plugins, "WasmPlugin", apps, "first", map[string]any{"url": "oci://registry.test/auth:1"})
	s.eventually("its status is written", s.condition(plugins, apps, "first", "Accepted", "True Accepted", ""))
	if err := two.logged("msg=leads"); err == nil {
		t.Fatal("both lead")
	}

	one.wire.cut(true)
	s.eventually("two leads", func() error { return two.logged("msg=leads") })
	s.eventually("one knows", func() error { return one.logged("lease lost") })
	s.create(plugins, "WasmPlugin", apps, "second", map[string]any{"url": "oci://registry.test/auth:2"})
	s.eventually("two writes", s.condition(plugins, apps, "second", "Accepted", "True Accepted", ""))
	if err := one.served(); err != nil {
		t.Errorf("while the API server is lost: %v", err)
	}
	if err := one.page("/ready", ""); err != nil {
		t.Errorf("while the API server is lost: %v", err)
	}

	one.wire.cut(false)
	s.eventually("one sees what it has missed", func() error { return one.page("/debug/extensionz", `"second"`) })
	two.stop()
	s.create(plugins, "WasmPlugin", apps, "third", map[string]any{"url": "oci://registry.test/auth:3"})
	s.eventually("one writes again", s.condition(plugins, apps, "third", "Accepted", "True Accepted", ""))
	late := s.namespace("late", nil)
	s.eventually("and publishes roots", s.published(late, root))
}

// TestE2ETwoControlPlanes: two in one cluster do not write over each other; each has
// the namespaces of its revision, and the one that comes second says what it leaves.
func TestE2ETwoControlPlanes(t *testing.T) {
	s := newSite(t)
	s.define(plugins, "WasmPlugin")
	rootA, rootB := s.namespace("root-a", nil), s.namespace("root-b", nil)
	plain := s.namespace("plain", nil)
	canary := s.namespace("canary", map[string]string{"istio.io/rev": "canary"})
	spec := map[string]any{"url": "oci://registry.test/auth:1"}
	s.create(plugins, "WasmPlugin", plain, "p", spec)
	s.create(plugins, "WasmPlugin", canary, "p", spec)
	a := s.start("a", rootA, "")
	s.eventually("a publishes", s.published(canary, rootA))
	s.eventually("a writes", s.condition(plugins, canary, "p", "Accepted", "True Accepted", ""))
	b := s.start("b", rootB, "canary")
	s.eventually("b publishes to its revision", s.published(canary, rootB))
	s.eventually("and to itself", s.published(rootB, rootB))
	owner := func(namespace, want string) func() error {
		return func() error {
			u, err := s.dynamic.Resource(plugins).Namespace(namespace).Get(t.Context(), "p", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if got, _, _ := unstructured.NestedString(u.Object, "status", "chandler", "controlPlane"); got != want {
				return fmt.Errorf("status is that of %q", got)
			}
			return nil
		}
	}
	s.eventually("b writes for its revision", owner(canary, rootB+"/canary"))
	s.eventually("a still writes for the rest", owner(plain, rootA+"/default"))
	s.eventually("b leaves what is a's", func() error { return b.logged("left to another control plane") })
	s.eventually("a leaves what is b's", func() error { return a.logged("left to another control plane") })
	s.eventually("b counts it", func() error { return b.page("/metrics", `chandler_foreign_objects{resource="wasmplugins"} 1`) })
	s.eventually("b makes an event of it", func() error {
		events, err := s.client.EventsV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "OtherControlPlane" && e.ReportingInstance == "b" {
				return nil
			}
		}
		return errors.New("none is there")
	})

	versions := func() (all []string) {
		for _, namespace := range []string{plain, canary, rootA, rootB} {
			m, err := s.roots(namespace)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m.ResourceVersion)
		}
		for _, namespace := range []string{plain, canary} {
			u, err := s.dynamic.Resource(plugins).Namespace(namespace).Get(t.Context(), "p", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, u.GetResourceVersion())
		}
		return all
	}
	before := versions()
	// Both look at all of it again when there is something new, and write nothing.
	late := s.namespace("late", map[string]string{"istio.io/rev": "canary"})
	s.create(plugins, "WasmPlugin", late, "p", spec)
	s.eventually("b has what is new of its revision", owner(late, rootB+"/canary"))
	s.eventually("roots and all", s.published(late, rootB))
	if after := versions(); !slices.Equal(before, after) {
		t.Errorf("resource versions %v, and then %v: they fight", before, after)
	}

	b.stop()
	s.remove(rootB)
	s.eventually("a has the roots when b is gone", s.published(canary, rootA))
	if _, err := s.dynamic.Resource(plugins).Namespace(canary).Patch(t.Context(), "p", "application/merge-patch+json", []byte(`{"spec":{"phase":"AUTHN"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	s.eventually("and the status, when there is something to tell", owner(canary, rootA+"/default"))
}

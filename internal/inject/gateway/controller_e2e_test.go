//go:build e2e

package gateway

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	manifests "github.com/chandler-proxy/chandler/deploy"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// patience is how long a test waits before it says that nothing will come.
const patience = time.Minute

var (
	gatewaysAPI    = api("gateways")
	routesAPI      = api("httproutes")
	classesAPI     = api("gatewayclasses")
	deploymentsAPI = appsv1.SchemeGroupVersion.WithResource("deployments")
	servicesAPI    = corev1.SchemeGroupVersion.WithResource("services")
	accountsAPI    = corev1.SchemeGroupVersion.WithResource("serviceaccounts")
	namespacesAPI  = corev1.SchemeGroupVersion.WithResource("namespaces")
)

// A cluster is a real API server, with Chandler's manifests applied and a
// namespace of the test's own. No controller of Kubernetes needs to run there.
type cluster struct {
	t         *testing.T
	ctx       context.Context
	admin     dynamic.Interface
	namespace string
}

// TestController runs the Controller at a real API server, with the rights that
// it is installed with.
func TestController(t *testing.T) {
	kubeconfig := os.Getenv("CHANDLER_KUBECONFIG")
	if kubeconfig == "" {
		t.Skip("CHANDLER_KUBECONFIG names no API server")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, kubeconfig, dynamic.NewForConfigOrDie(config))
	config.Impersonate.UserName = "system:serviceaccount:istio-system:chandler"
	config.Impersonate.Groups = []string{"system:serviceaccounts", "system:authenticated"}
	controller := New(Config{
		Client: dynamic.NewForConfigOrDie(config), Options: options,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, stop := context.WithCancel(t.Context())
	running, ctx := errgroup.WithContext(ctx)
	running.Go(func() error { return controller.Run(ctx) })
	t.Cleanup(func() {
		stop()
		if err := running.Wait(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	deliver := func(objects ...resource.Object) {
		world, _ := mesh.New(objects, mesh.Options{})
		controller.Deliver(world, nil)
	}
	deliver()

	c.await(classesAPI, "", ClassName, "is accepted", func(o *unstructured.Unstructured) bool {
		return condition(o, "Accepted") == "True"
	})

	c.create(gatewaysAPI, c.gateway("web", 80))
	c.await(accountsAPI, c.namespace, "web-chandler", "is there", present)
	c.await(servicesAPI, c.namespace, "web-chandler", "has the listener's port", func(o *unstructured.Unstructured) bool {
		return portOf(o) == 80
	})
	c.await(deploymentsAPI, c.namespace, "web-chandler", "is there", present)
	c.await(gatewaysAPI, c.namespace, "web", "is accepted and waits for a pod", func(o *unstructured.Unstructured) bool {
		return condition(o, "Accepted") == "True" && condition(o, "Programmed") == "False"
	})
	c.patchStatus(deploymentsAPI, "web-chandler", `{"status":{"replicas":1,"readyReplicas":1,"availableReplicas":1}}`)
	c.await(gatewaysAPI, c.namespace, "web", "is programmed and has an address", func(o *unstructured.Unstructured) bool {
		addresses, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
		return condition(o, "Programmed") == "True" && len(addresses) == 1
	})

	c.create(routesAPI, c.route("cart", "web"))
	c.await(routesAPI, c.namespace, "cart", "misses its backend", func(o *unstructured.Unstructured) bool {
		return parentCondition(o, "Accepted") == "True" && parentCondition(o, "ResolvedRefs") == "False"
	})
	deliver(&corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: "cart", Namespace: c.namespace},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.7.7", Ports: []corev1.ServicePort{{Port: 9080}}},
	})
	c.await(routesAPI, c.namespace, "cart", "has its backend", func(o *unstructured.Unstructured) bool {
		return parentCondition(o, "ResolvedRefs") == "True"
	})
	c.await(gatewaysAPI, c.namespace, "web", "has a route", func(o *unstructured.Unstructured) bool {
		listeners, _, _ := unstructured.NestedSlice(o.Object, "status", "listeners")
		return len(listeners) == 1 && listeners[0].(map[string]any)["attachedRoutes"] == int64(1)
	})

	// What is as it should be is not written again: a Gateway that comes later is
	// looked after later.
	before := c.versions("web")
	deliver()
	deliver(&corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: "cart", Namespace: c.namespace},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.7.7", Ports: []corev1.ServicePort{{Port: 9080}}},
	})
	c.create(servicesAPI, foreignService(c.namespace, "taken-chandler"))
	c.create(gatewaysAPI, c.gateway("taken", 8080))
	c.await(gatewaysAPI, c.namespace, "taken", "says that its Service is another's", func(o *unstructured.Unstructured) bool {
		return condition(o, "Programmed") == "False" && strings.Contains(messageOf(o, "Programmed"), "does not belong to Gateway taken")
	})
	if after := c.versions("web"); after != before {
		t.Errorf("versions of a Gateway's objects were %s and are %s without need", before, after)
	}
	if labels := c.get(servicesAPI, "taken-chandler").GetLabels(); len(labels) > 0 {
		t.Errorf("another's Service has labels %v now", labels)
	}

	c.patch(gatewaysAPI, "web", `{"spec":{"listeners":[{"name":"http","port":8081,"protocol":"HTTP"}]}}`)
	c.await(servicesAPI, c.namespace, "web-chandler", "follows the listener", func(o *unstructured.Unstructured) bool {
		return portOf(o) == 8081
	})
	// someone else's change is taken back
	c.patch(servicesAPI, "web-chandler", `{"spec":{"selector":{"gateway.networking.k8s.io/gateway-name":"wrong"}}}`)
	c.await(servicesAPI, c.namespace, "web-chandler", "chooses its pods again", func(o *unstructured.Unstructured) bool {
		selector, _, _ := unstructured.NestedStringMap(o.Object, "spec", "selector")
		return selector[mesh.GatewayNameLabel] == "web"
	})

	c.patch(gatewaysAPI, "web", `{"spec":{"addresses":[{"type":"Hostname","value":"mine"}]}}`)
	for _, api := range []schema.GroupVersionResource{deploymentsAPI, servicesAPI, accountsAPI} {
		c.awaitGone(api, "web-chandler")
	}
}

func newCluster(t *testing.T, kubeconfig string, admin dynamic.Interface) *cluster {
	objects, err := manifests.Objects(manifests.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := manifests.Write(&text, objects); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), cmp.Or(os.Getenv("CHANDLER_KUBECTL"), "kubectl"), append([]string{"--kubeconfig", kubeconfig}, args...)...)
		cmd.Stdin = &text
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kubectl %v: %v\n%s", args, err, out)
		}
	}
	kubectl("apply", "--server-side", "--force-conflicts", "-f", "-")
	// nobody serves it: other tests' pods would be refused
	kubectl("delete", "mutatingwebhookconfiguration", "chandler-sidecar-injector")
	kubectl("wait", "--for", "condition=established", "--timeout", "60s", "crd", "--all")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	ns, err := admin.Resource(namespacesAPI).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"generateName": "gateways-"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{t: t, ctx: ctx, admin: admin, namespace: ns.GetName()}
}

func (c *cluster) gateway(name string, port int64) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
		"metadata": map[string]any{"name": name, "namespace": c.namespace},
		"spec": map[string]any{
			"gatewayClassName": ClassName,
			"listeners":        []any{map[string]any{"name": "http", "port": port, "protocol": "HTTP"}},
		},
	}}
}

func (c *cluster) route(name, gateway string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
		"metadata": map[string]any{"name": name, "namespace": c.namespace},
		"spec": map[string]any{
			"parentRefs": []any{map[string]any{"name": gateway}},
			"rules":      []any{map[string]any{"backendRefs": []any{map[string]any{"name": "cart", "port": int64(9080)}}}},
		},
	}}
}

func foreignService(namespace, name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"name": name, "namespace": namespace},
		"spec":     map[string]any{"ports": []any{map[string]any{"port": int64(1)}}},
	}}
}

func (c *cluster) create(api schema.GroupVersionResource, o *unstructured.Unstructured) {
	c.t.Helper()
	if _, err := c.admin.Resource(api).Namespace(o.GetNamespace()).Create(c.ctx, o, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) get(api schema.GroupVersionResource, name string) *unstructured.Unstructured {
	c.t.Helper()
	o, err := c.admin.Resource(api).Namespace(c.namespace).Get(c.ctx, name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return o
}

func (c *cluster) patch(api schema.GroupVersionResource, name, patch string, below ...string) {
	c.t.Helper()
	if _, err := c.admin.Resource(api).Namespace(c.namespace).Patch(c.ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, below...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) patchStatus(api schema.GroupVersionResource, name, patch string) {
	c.t.Helper()
	c.patch(api, name, patch, "status")
}

// versions are those of a Gateway and its objects.
func (c *cluster) versions(name string) string {
	c.t.Helper()
	out := c.get(gatewaysAPI, name).GetResourceVersion()
	for _, api := range []schema.GroupVersionResource{deploymentsAPI, servicesAPI, accountsAPI} {
		out += " " + c.get(api, name+"-"+ClassName).GetResourceVersion()
	}
	return out
}

func present(*unstructured.Unstructured) bool { return true }

// await waits until the object is there and as ok wants it.
func (c *cluster) await(api schema.GroupVersionResource, namespace, name, what string, ok func(*unstructured.Unstructured) bool) {
	c.t.Helper()
	var last *unstructured.Unstructured
	c.follow(api, namespace, name, "", what, func(e watch.Event) bool {
		o, isObject := e.Object.(*unstructured.Unstructured)
		if !isObject || e.Type == watch.Deleted {
			return false
		}
		last = o
		return ok(o)
	}, func() any { return last })
}

func (c *cluster) awaitGone(api schema.GroupVersionResource, name string) {
	c.t.Helper()
	o, err := c.admin.Resource(api).Namespace(c.namespace).Get(c.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.follow(api, c.namespace, name, o.GetResourceVersion(), "is gone", func(e watch.Event) bool {
		o, isObject := e.Object.(*unstructured.Unstructured)
		return e.Type == watch.Deleted || isObject && o.GetDeletionTimestamp() != nil
	}, func() any { return "still there" })
}

// follow waits for an event of the object that is ok, from a version on; if none is
// given, from what is there.
func (c *cluster) follow(api schema.GroupVersionResource, namespace, name, version, what string, ok func(watch.Event) bool, last func() any) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	events, err := c.admin.Resource(api).Namespace(namespace).Watch(ctx, metav1.ListOptions{
		FieldSelector: "metadata.name=" + name, ResourceVersion: version,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	defer events.Stop()
	for e := range events.ResultChan() {
		if ok(e) {
			return
		}
	}
	c.t.Fatalf("waited in vain until %s %s %s; it is %v", api.Resource, name, what, last())
}

// portOf is the port of the one listener; beside it a Service has that for health.
func portOf(service *unstructured.Unstructured) int64 {
	ports, _, _ := unstructured.NestedSlice(service.Object, "spec", "ports")
	if len(ports) != 2 {
		return 0
	}
	return ports[0].(map[string]any)["port"].(int64)
}

func ofCondition(list []any, kind, name string) string {
	for _, c := range list {
		if c := c.(map[string]any); c["type"] == kind {
			v, _ := c[name].(string)
			return v
		}
	}
	return ""
}

func condition(o *unstructured.Unstructured, kind string) string {
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	return ofCondition(list, kind, "status")
}

func messageOf(o *unstructured.Unstructured, kind string) string {
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	return ofCondition(list, kind, "message")
}

func parentCondition(o *unstructured.Unstructured, kind string) string {
	parents, _, _ := unstructured.NestedSlice(o.Object, "status", "parents")
	if len(parents) != 1 {
		return ""
	}
	list, _, _ := unstructured.NestedSlice(parents[0].(map[string]any), "conditions")
	return ofCondition(list, kind, "status")
}

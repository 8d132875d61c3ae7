package gateway

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/inject"
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// TestOptionsOf: proxies of Gateways are as sidecars are.
func TestOptionsOf(t *testing.T) {
	for name, tt := range map[string]struct {
		in   inject.Options
		want Options
	}{
		"defaults": {inject.Options{Image: "i"}, Options{Image: "i", Proxy: "engine", Control: "chandler.istio-system.svc:15012", Domain: "cluster.local"}},
		"everything": {
			inject.Options{Image: "i", EnvoyImage: "e", Proxy: inject.Envoy, RootNamespace: "mesh", Domain: "x.example", Env: map[string]string{"A": "b"}},
			Options{Image: "e", Proxy: "envoy", Control: "chandler.mesh.svc:15012", Domain: "x.example", Env: map[string]string{"A": "b"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := tt.in.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, OptionsOf(in)); diff != "" {
				t.Errorf("OptionsOf (-want +got):\n%s", diff)
			}
		})
	}
}

// TestCauses: a change brings the tasks that can come to something else by it, and
// a change of status alone, as the Controller makes, no deployment.
func TestCauses(t *testing.T) {
	meta := func(name string, generation int64) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: "shop", Generation: generation, Labels: map[string]string{mesh.GatewayNameLabel: "web"}}
	}
	gateway := func(generation int64, serviceType string) *gatewayv1.Gateway {
		g := &gatewayv1.Gateway{ObjectMeta: meta("web", generation)}
		g.Annotations = map[string]string{ServiceTypeAnnotation: serviceType}
		return g
	}
	route := func(generation int64, parent string) *gatewayv1.HTTPRoute {
		r := &gatewayv1.HTTPRoute{ObjectMeta: meta("cart", generation)}
		r.Spec.ParentRefs = []gatewayv1.ParentReference{{Name: gatewayv1.ObjectName(parent)}}
		return r
	}
	deployment := func(generation int64) *appsv1.Deployment {
		return &appsv1.Deployment{ObjectMeta: meta("web-chandler", generation)}
	}
	class := func(generation int64) *gatewayv1.GatewayClass {
		return &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: "chandler", Generation: generation}}
	}

	var got []string
	names := map[work]string{classStatus: "class", deploy: "deploy", gatewayStatus: "gateway", routeStatus: "route"}
	c := newCaches(dynamicfake.NewSimpleDynamicClient(runtime.NewScheme()), func(w task) { got = append(got, names[w.work]+" "+w.name.Name) })
	for r, o := range map[*reader]resource.Object{c.gateways: gateway(1, ""), c.routes: route(1, "web")} {
		if err := r.informer.GetStore().Add(o); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		at      *reader
		was, is resource.Object
		want    []string
	}{
		{"new Gateway", c.gateways, nil, gateway(1, ""), []string{"deploy web", "gateway web", "route cart"}},
		{"changed Gateway", c.gateways, gateway(1, ""), gateway(2, ""), []string{"deploy web", "gateway web", "route cart"}},
		{"annotated Gateway", c.gateways, gateway(1, ""), gateway(1, "ClusterIP"), []string{"deploy web", "gateway web", "route cart"}},
		{"Gateway's status", c.gateways, gateway(1, ""), gateway(1, ""), []string{"gateway web"}},
		{"Gateway gone", c.gateways, gateway(1, ""), nil, []string{"deploy web", "gateway web", "route cart"}},
		{"new route", c.routes, nil, route(1, "web"), []string{"gateway web", "route cart"}},
		{"route's status", c.routes, route(1, "web"), route(1, "web"), []string{"route cart"}},
		{"route moved", c.routes, route(1, "web"), route(2, "other"), []string{"gateway other", "gateway web", "route cart"}},
		{"route gone", c.routes, route(1, "web"), nil, []string{"gateway web", "route cart"}},
		{"Deployment's status", c.deployments, deployment(1), deployment(1), []string{"gateway web"}},
		{"changed Deployment", c.deployments, deployment(1), deployment(2), []string{"deploy web"}},
		{"Deployment gone", c.deployments, deployment(1), nil, []string{"deploy web"}},
		{"Service", c.services, &corev1.Service{ObjectMeta: meta("web-chandler", 0)}, &corev1.Service{ObjectMeta: meta("web-chandler", 0)}, []string{"deploy web"}},
		{"class's status", c.classes, class(1), class(1), []string{"class chandler"}},
		{"new class", c.classes, nil, class(1), []string{"class chandler", "deploy web", "gateway web", "route cart"}},
	} {
		got = nil
		tt.at.changed(tt.was, tt.is)
		slices.Sort(got)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestYields: of two control planes of one revision the one whose mark is on the class
// goes on alone, until its namespace is gone; another revision has names of its own.
func TestYields(t *testing.T) {
	there := true
	var found []string
	c := New(Config{
		Client: dynamicfake.NewSimpleDynamicClient(runtime.NewScheme()), Plane: identity.Plane{Namespace: "two", Revision: "default"},
		There: func(string) bool { return there },
		Found: func(f identity.Foreign) { found = append(found, f.Owner.String()) },
	})
	class := func(owner identity.Plane) {
		t.Helper()
		o := new(gatewayv1.GatewayClass)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(ownClass(owner).Object, o); err != nil {
			t.Fatal(err)
		}
		o.Name = "chandler"
		if err := c.cache.classes.informer.GetStore().Add(o); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, want bool) {
		t.Helper()
		if got := c.yields(); got != want {
			t.Errorf("%s: yields = %v, want %v", what, got, want)
		}
	}
	expect("no class", false)
	class(identity.Plane{})
	expect("a class that nobody has marked", false)
	class(identity.Plane{Namespace: "two", Revision: "default"})
	expect("its own", false)
	class(identity.Plane{Namespace: "one", Revision: "default"})
	expect("another's", true)
	for _, w := range []work{classStatus, deploy, gatewayStatus, routeStatus} {
		if err := c.do(t.Context(), task{w, types.NamespacedName{Name: "chandler"}}); err != nil {
			t.Errorf("work %d: %v", w, err)
		}
	}
	if n := len(c.client.(*dynamicfake.FakeDynamicClient).Actions()); n != 0 {
		t.Errorf("%d calls to the API server, want none", n)
	}
	there = false
	expect("one that is gone", false)
	if got := strings.Join(found, ","); got != ",,,one/default,one/default,one/default,one/default,one/default," {
		t.Errorf("found %q", got)
	}
	if ClassOf("canary") != "chandler-canary" || ControllerOf("canary") != "chandler.io/gateway-controller-canary" || ClassOf("") != ClassName || ControllerOf("default") != ControllerName {
		t.Errorf("names: %s, %s, %s, %s", ClassOf("canary"), ControllerOf("canary"), ClassOf(""), ControllerOf("default"))
	}
}

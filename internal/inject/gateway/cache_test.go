package gateway

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

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

//go:build e2e

package gateway

import (
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// A meddler lets something happen at the API server right after a controller has looked
// for a Service.
type meddler struct {
	http.RoundTripper
	meddle func() // once; may be nil
}

func (m *meddler) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := m.RoundTripper.RoundTrip(r)
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "-chandler") && m.meddle != nil {
		meddle := m.meddle
		m.meddle = nil
		meddle()
	}
	return res, err
}

// TestApplyRace: what happens between the look at an object and the change of it is not
// undone, and whose the object is then, it stays.
func TestApplyRace(t *testing.T) {
	kubeconfig := os.Getenv("CHANDLER_KUBECONFIG")
	if kubeconfig == "" {
		t.Skip("CHANDLER_KUBECONFIG names no API server")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, kubeconfig, dynamic.NewForConfigOrDie(config))
	between := new(meddler)
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		between.RoundTripper = rt
		return between
	})
	controller := New(Config{Client: dynamic.NewForConfigOrDie(config), Options: options, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	// gateway is a Gateway as the controller knows it; it need not be there any more
	gateway := func(name, uid string) *gatewayv1.Gateway {
		g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.namespace, UID: types.UID(uid)}}
		g.Spec.Listeners = []gatewayv1.Listener{{Name: "http", Port: 80, Protocol: gatewayv1.HTTPProtocolType}}
		return g
	}
	apply := func(g *gatewayv1.Gateway) error {
		return controller.apply(t.Context(), g, service(g, servicePorts(g)))
	}
	owner := func(name string) string {
		owners := c.get(servicesAPI, name+"-chandler").GetOwnerReferences()
		if len(owners) != 1 {
			t.Errorf("Service of %s has owners %v, want one", name, owners)
			return ""
		}
		return string(owners[0].UID)
	}

	t.Run("nobody meddles", func(t *testing.T) {
		g := gateway("calm", "first")
		g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{Annotations: map[gatewayv1.AnnotationKey]gatewayv1.AnnotationValue{"example.com/a": "b"}}
		for range 2 {
			if err := apply(g); err != nil {
				t.Fatal(err)
			}
		}
		s := c.get(servicesAPI, "calm-chandler")
		if s.GetAnnotations()["example.com/a"] != "b" || owner("calm") != "first" {
			t.Errorf("the Service is %v", s)
		}
		if policy, _, _ := unstructured.NestedString(s.Object, "spec", "ipFamilyPolicy"); policy != string(corev1.IPFamilyPolicyPreferDualStack) {
			t.Errorf("ipFamilyPolicy %s", policy)
		}
		// what is left out goes, though the object was created with it
		g.Spec.Infrastructure = nil
		g.Spec.Listeners[0].Port = 8080
		if err := apply(g); err != nil {
			t.Fatal(err)
		}
		if s = c.get(servicesAPI, "calm-chandler"); len(s.GetAnnotations()) != 0 || portOf(s) != 8080 {
			t.Errorf("the Service has annotations %v, port %d", s.GetAnnotations(), portOf(s))
		}
	})

	t.Run("another makes one of the name", func(t *testing.T) {
		between.meddle = func() { c.create(servicesAPI, foreignService(c.namespace, "slow-chandler")) }
		if err := apply(gateway("slow", "first")); !isStale(err) {
			t.Errorf("apply: %v, want a conflict", err)
		}
		if s := c.get(servicesAPI, "slow-chandler"); len(s.GetOwnerReferences())+len(s.GetLabels()) != 0 {
			t.Errorf("another's Service is now %v", s)
		}
	})

	t.Run("the Gateway is made anew", func(t *testing.T) {
		old, anew := gateway("again", "first"), gateway("again", "second")
		if err := apply(old); err != nil {
			t.Fatal(err)
		}
		between.meddle = func() { // as the garbage collector and another replica do
			if err := c.admin.Resource(servicesAPI).Namespace(c.namespace).Delete(t.Context(), "again-chandler", metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
			if err := apply(anew); err != nil {
				t.Error(err)
			}
		}
		if err := apply(old); !isStale(err) {
			t.Errorf("apply: %v, want a conflict", err)
		}
		if got := owner("again"); got != "second" {
			t.Errorf("the Service belongs to the %s Gateway", got)
		}
		// and so if there was nothing when the old one was looked after
		if err := c.admin.Resource(servicesAPI).Namespace(c.namespace).Delete(t.Context(), "again-chandler", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		between.meddle = func() {
			if err := apply(anew); err != nil {
				t.Error(err)
			}
		}
		if err := apply(old); !isStale(err) {
			t.Errorf("apply: %v, want a conflict", err)
		}
		if got := owner("again"); got != "second" {
			t.Errorf("the Service belongs to the %s Gateway", got)
		}
	})
}

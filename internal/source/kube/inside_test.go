package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apinetworking "istio.io/api/networking/v1alpha3"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

// What is read is what the decoder knows, in all versions that it knows.
func TestKindsAreTheDecoders(t *testing.T) {
	decoder := resource.NewDecoder()
	problem := func(apiVersion, kind string) resource.Problem {
		_, problems := decoder.Decode("", fmt.Appendf(nil, "apiVersion: %s\nkind: %s\nmetadata: {name: a}", apiVersion, kind))
		if len(problems) == 0 {
			return resource.Problem{}
		}
		return problems[0]
	}
	names := map[string]bool{}
	for _, k := range append(kinds(), secretKind()) {
		names[k.name] = true
		for _, version := range k.versions {
			gv := k.gvk(version).GroupVersion().String()
			if p := problem(gv, k.name); p.Field == "kind" || p.Field == "apiVersion" {
				t.Errorf("%s %s is not known to the decoder: %v", gv, k.name, p)
			}
		}
		for _, version := range []string{"v1", "v1beta1", "v1alpha3", "v1alpha1"} {
			gv := k.gvk(version).GroupVersion().String()
			if p := problem(gv, k.name); !slices.Contains(k.versions, version) && p.Field != "apiVersion" {
				t.Errorf("%s %s is known to the decoder, and not read", gv, k.name)
			}
		}
		if !k.builtIn() {
			if _, err := os.Stat("../../resource/crds/" + k.GroupResource.String() + ".json"); err != nil {
				t.Errorf("resource of %s: %v", k.name, err)
			}
		}
	}
	known := problem("v1", "Xyzzyxyzzyxyzzy").Mend
	list, ok := strings.CutPrefix(known, "known are ")
	if !ok {
		t.Fatalf("the decoder does not say which kinds it knows: %q", known)
	}
	if diff := cmp.Diff(strings.Split(list, ", "), slices.Sorted(maps.Keys(names))); diff != "" {
		t.Errorf("kinds (-decoder +read):\n%s", diff)
	}
}

func TestPump(t *testing.T) {
	t.Run("a lone change is delivered at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := startPump(t, ready)
			for range 3 {
				time.Sleep(time.Second)
				p.change(1)
				if got := p.deliveredWithin(lull); got != 1 {
					t.Errorf("%d snapshots, want 1", got)
				}
			}
		})
	})
	t.Run("a storm gives few snapshots, and one after the last change", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := startPump(t, ready)
			for range 1000 {
				p.change(1)
				time.Sleep(time.Millisecond)
			}
			if got := p.deliveredWithin(interval); got < 10 || got > 12 {
				t.Errorf("%d snapshots in a second, want 10 to 12", got)
			}
			if p.last != 1000 {
				t.Errorf("last snapshot has %d changes, want all 1000", p.last)
			}
			if got := p.deliveredWithin(time.Hour); got != 0 {
				t.Errorf("%d snapshots without a change", got)
			}
		})
	})
	t.Run("what is not ready waits for changes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := startPump(t, func(changes int, _ time.Duration) time.Duration {
				if changes < 3 {
					return math.MaxInt64
				}
				return 0
			})
			p.change(2)
			if got := p.deliveredWithin(time.Hour); got != 0 {
				t.Errorf("%d snapshots before it was ready", got)
			}
			p.change(1)
			if got := p.deliveredWithin(lull); got != 1 {
				t.Errorf("%d snapshots when it was ready, want 1", got)
			}
		})
	})
	t.Run("what waits comes in the end, even in a storm", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := startPump(t, func(_ int, elapsed time.Duration) time.Duration { return max(hold-elapsed, 0) })
			for range 2000 {
				p.change(1)
				time.Sleep(time.Millisecond)
			}
			if got := p.deliveredWithin(0); got < 9 || got > 11 {
				t.Errorf("%d snapshots in the second after the wait, want 9 to 11", got)
			}
		})
	})
	t.Run("what waits comes without a change", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := startPump(t, func(_ int, elapsed time.Duration) time.Duration { return max(hold-elapsed, 0) })
			p.change(1)
			if got := p.deliveredWithin(hold / 2); got != 0 {
				t.Errorf("%d snapshots too early", got)
			}
			if got := p.deliveredWithin(hold); got != 1 {
				t.Errorf("%d snapshots, want 1", got)
			}
		})
	})
}

func ready(int, time.Duration) time.Duration { return 0 }

// pumped is a pump that runs in a bubble of synctest.
type pumped struct {
	changed chan struct{}

	mu         sync.Mutex
	changes    int
	composed   int // changes in what was composed last
	deliveries int
	last       int // changes in what was delivered last
}

func startPump(t *testing.T, wait func(changes int, elapsed time.Duration) time.Duration) *pumped {
	p, began, done := &pumped{changed: make(chan struct{}, 1)}, time.Now(), make(chan struct{})
	go func() {
		defer close(done)
		pump(t.Context(), p.changed, func(now time.Time) (source.Snapshot, time.Duration) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.composed = p.changes
			return source.Snapshot{}, wait(p.changes, now.Sub(began))
		}, func(source.Snapshot) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.deliveries, p.last = p.deliveries+1, p.composed
		})
	}()
	t.Cleanup(func() { <-done })
	return p
}

// change makes changes while the pump is idle.
func (p *pumped) change(n int) {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for range n {
		p.changes++
		signal(p.changed)
	}
}

// deliveredWithin is how many snapshots were delivered since it was last called, until d has passed.
func (p *pumped) deliveredWithin(d time.Duration) int {
	time.Sleep(d)
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.deliveries
	p.deliveries = 0
	return n
}

func TestAccess(t *testing.T) {
	forbidden := apierrors.NewForbidden(corev1.Resource("pods"), "", errors.New("no"))
	broken := apierrors.NewInternalError(errors.New("conversion webhook failed"))
	now := time.Now()
	var a access
	for _, step := range []struct {
		what    string
		verb    string
		err     error
		after   time.Duration
		changed bool
		told    bool
	}{
		{"no connection", "list", errors.New("connection refused"), 0, false, false},
		{"no connection for long", "list", errors.New("connection refused"), time.Hour, false, false},
		{"an error", "list", broken, time.Hour, false, false},
		{"the same a little later", "list", broken, time.Hour + patience/2, false, false},
		{"and when patience is at its end", "list", broken, time.Hour + patience, true, true},
		{"and after", "list", broken, 2 * time.Hour, false, true},
		{"another error", "list", forbidden, 2 * time.Hour, true, true},
		{"no connection any more", "list", errors.New("connection refused"), 2 * time.Hour, false, true},
		{"a watch besides", "watch", forbidden, 2 * time.Hour, true, true},
		{"list allowed", "list", nil, 2 * time.Hour, true, true},
		{"watch allowed", "watch", nil, 2 * time.Hour, true, false},
		{"and again", "watch", nil, 2 * time.Hour, false, false},
		{"forbidden is told at once", "watch", forbidden, 3 * time.Hour, true, true},
	} {
		if got := a.record(step.verb, step.err, now.Add(step.after)); got != step.changed {
			t.Errorf("%s: changed = %v, want %v", step.what, got, step.changed)
		}
		if got := a.refusal() != nil; got != step.told {
			t.Errorf("%s: told = %v, want %v", step.what, got, step.told)
		}
	}
}

// newSet is a set that nobody follows.
func newSet(t testing.TB, name string) *set {
	for _, k := range append(kinds(), secretKind()) {
		if k.GroupResource.String() == name {
			return &set{kind: k, items: map[types.NamespacedName]item{}, held: &held{
				decoder: resource.NewDecoder(), log: slog.New(slog.DiscardHandler), metrics: newMetrics(nil),
				changed: make(chan struct{}, 1), sets: map[*set]bool{},
			}}
		}
	}
	t.Fatalf("no kind %s", name)
	return nil
}

// isChanged says whether there was something to deliver since it was last called.
func (s *set) isChanged() bool {
	select {
	case <-s.changed:
		return true
	default:
		return false
	}
}

func wasmPlugin(version string, generation int64, edit ...func(map[string]any)) *unstructured.Unstructured {
	o := map[string]any{
		"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin",
		"metadata": map[string]any{
			"name": "p", "namespace": "apps", "uid": "u", "resourceVersion": version, "generation": generation,
			"annotations":   map[string]any{corev1.LastAppliedConfigAnnotation: "version " + version},
			"managedFields": []any{map[string]any{"manager": "kubectl"}},
		},
		"spec": map[string]any{"url": "oci://registry.example/p:v1"},
	}
	for _, e := range edit {
		e(o)
	}
	return &unstructured.Unstructured{Object: o}
}

func at(path ...string) func(value any) func(map[string]any) {
	return func(value any) func(map[string]any) {
		return func(o map[string]any) {
			if err := unstructured.SetNestedField(o, value, path...); err != nil {
				panic(err)
			}
		}
	}
}

func TestChangesThatNobodyReads(t *testing.T) {
	label := at("metadata", "labels", "app")
	status := at("status", "observedGeneration")
	for _, tt := range []struct {
		name    string
		next    *unstructured.Unstructured
		changed bool
	}{
		{"the same", wasmPlugin("1", 1), false},
		{"status", wasmPlugin("2", 1, status(int64(1))), false},
		{"status, of a kind without generations", wasmPlugin("2", 0, status(int64(1))), true},
		{"finalizers", wasmPlugin("2", 1, at("metadata", "finalizers")([]any{"a"})), false},
		{"a label", wasmPlugin("2", 1, label("a")), true},
		{"an annotation", wasmPlugin("2", 1, at("metadata", "annotations", "a")("b")), true},
		{"the spec", wasmPlugin("2", 2, at("spec", "priority")(int64(1))), true},
		{"the generation alone", wasmPlugin("2", 2), true},
		{"another of the same name", wasmPlugin("2", 1, at("metadata", "uid")("v")), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSet(t, "wasmplugins.extensions.istio.io")
			if err := s.Replace([]any{wasmPlugin("1", 1)}, "1"); err != nil || !s.isChanged() {
				t.Fatal("nothing came", err)
			}
			name := types.NamespacedName{Namespace: "apps", Name: "p"}
			before := s.items[name].object
			if err := s.Update(tt.next); err != nil {
				t.Fatal(err)
			}
			if got := s.isChanged(); got != tt.changed {
				t.Errorf("changed = %v, want %v", got, tt.changed)
			}
			if got := s.items[name].object != before; got != tt.changed {
				t.Errorf("decoded to another object = %v, want %v", got, tt.changed)
			}
		})
	}
}

// A decoded object keeps nothing of what the API server and kubectl keep for themselves.
func TestCustomObject(t *testing.T) {
	s := newSet(t, "wasmplugins.extensions.istio.io")
	o := wasmPlugin("7", 3, at("status", "a")("b"))
	if err := s.Add(o); err != nil {
		t.Fatal(err)
	}
	got := s.items[types.NamespacedName{Namespace: "apps", Name: "p"}].object.(*extensionsv1alpha1.WasmPlugin)
	if len(got.ManagedFields) > 0 || len(got.Annotations) > 0 || got.Generation != 3 || got.UID != "u" || got.ResourceVersion == "7" || got.Spec.Url == "" {
		t.Errorf("object = %v", got)
	}
	if err := s.Delete(o); err != nil || len(s.items) > 0 || !s.isChanged() {
		t.Errorf("after Delete: %v %v", err, s.items)
	}
}

func TestPodIsTrimmed(t *testing.T) {
	full := func(version string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: "a", Namespace: "apps", UID: "u", ResourceVersion: version, Labels: map[string]string{"app": "a"},
				Annotations: map[string]string{"big": "one"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}},
			},
			Spec: corev1.PodSpec{
				NodeName: "n", HostNetwork: true, Volumes: []corev1.Volume{{Name: "v"}},
				Containers: []corev1.Container{
					{Name: "app", Image: "i", Env: []corev1.EnvVar{{Name: "E"}}, Ports: []corev1.ContainerPort{{ContainerPort: 1}, {Name: "http", ContainerPort: 80, Protocol: "TCP"}}},
					{Name: "other", Image: "i"},
				},
			},
			Status: corev1.PodStatus{
				Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}, HostIP: "10.1.0.1",
				Conditions: []corev1.PodCondition{
					{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
					{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(int64(len(version)), 0))},
				},
				ContainerStatuses: []corev1.ContainerStatus{{Name: "app"}},
			},
		}
	}
	want := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "apps", UID: "u", ResourceVersion: "1", Labels: map[string]string{"app": "a"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: "TCP"}}},
		}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	s, name := newSet(t, "pods"), types.NamespacedName{Namespace: "apps", Name: "a"}
	if err := s.Add(full("1")); err != nil || !s.isChanged() {
		t.Fatal("nothing came", err)
	}
	first := s.items[name].object
	if diff := cmp.Diff(want, first); diff != "" {
		t.Errorf("Pod (-want +got):\n%s", diff)
	}
	if err := s.Update(full("22")); err != nil || s.isChanged() || s.items[name].object != first {
		t.Error("a change of what nobody reads is a change")
	}
	unready := full("333")
	unready.Status.Conditions[1].Status = corev1.ConditionFalse
	if err := s.Update(unready); err != nil || !s.isChanged() || s.items[name].object.GetResourceVersion() != "333" {
		t.Error("a Pod that is not ready any more is no change")
	}
}

func TestEndpointSliceIsTrimmed(t *testing.T) {
	slice := func(version, pod string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Name: "a", Namespace: "apps", ResourceVersion: version, Labels: map[string]string{discoveryv1.LabelServiceName: "a"},
				Annotations: map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": version},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "apps", Name: pod, ResourceVersion: version},
				Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: version}}},
			}},
		}
	}
	s := newSet(t, "endpointslices.discovery.k8s.io")
	if err := s.Replace([]any{slice("1", "p")}, "1"); err != nil || !s.isChanged() {
		t.Fatal("nothing came", err)
	}
	if err := s.Update(slice("2", "p")); err != nil || s.isChanged() {
		t.Error("a change of what nobody reads is a change")
	}
	if err := s.Update(slice("3", "q")); err != nil || !s.isChanged() {
		t.Error("another Pod behind an address is no change")
	}
}

func TestSecretsOf(t *testing.T) {
	meta := func(namespace string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: "o", Namespace: namespace} }
	pullWith := func(namespace, name string) resource.Object {
		p := &extensionsv1alpha1.WasmPlugin{ObjectMeta: meta(namespace)}
		p.Spec.ImagePullSecret = name
		return p
	}
	gateway := func(selector map[string]string, tls *apinetworking.ServerTLSSettings) resource.Object {
		g := &networkingv1.Gateway{ObjectMeta: meta("gw")}
		g.Spec.Selector = selector
		g.Spec.Servers = []*apinetworking.Server{{}, {Tls: tls}}
		return g
	}
	pod := func(namespace, app string) resource.Object {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Labels: map[string]string{"app": app, "more": "x"}}}
	}
	edge := map[string]string{"app": "edge"}
	simple := &apinetworking.ServerTLSSettings{Mode: apinetworking.ServerTLSSettings_SIMPLE, CredentialName: "cert"}
	other, kind := gatewayv1.Namespace("other"), gatewayv1.Kind("ConfigMap")
	for _, tt := range []struct {
		name    string
		objects []resource.Object
		want    []string
	}{
		{"nothing", []resource.Object{pullWith("apps", ""), gateway(edge, nil)}, nil},
		{"plugin", []resource.Object{pullWith("apps", "login")}, []string{"apps/login"}},
		{"plugin with scheme", []resource.Object{pullWith("apps", "kubernetes://login")}, []string{"apps/login"}},
		{"own namespace", []resource.Object{pullWith("apps", "apps/login")}, []string{"apps/login"}},
		{"another namespace", []resource.Object{pullWith("apps", "istio-system/login")}, nil},
		{"no name", []resource.Object{pullWith("apps", "a,b=c"), pullWith("apps", "../x"), pullWith("apps", "kubernetes://")}, nil},
		{"pods of a gateway", []resource.Object{gateway(edge, simple), pod("a", "edge"), pod("b", "edge"), pod("c", "app")}, []string{"a/cert", "b/cert"}},
		{"gateway without pods", []resource.Object{gateway(edge, simple), pod("c", "app")}, []string{"gw/cert", "root/cert"}},
		{"several", []resource.Object{gateway(edge, &apinetworking.ServerTLSSettings{CredentialNames: []string{"one", "two"}}), pod("a", "edge")}, []string{"a/one", "a/two"}},
		{"authorities", []resource.Object{gateway(edge, &apinetworking.ServerTLSSettings{
			Mode: apinetworking.ServerTLSSettings_MUTUAL, CredentialName: "cert",
		}), pod("a", "edge")}, []string{"a/cert", "a/cert-cacert"}},
		{"authorities by name", []resource.Object{gateway(edge, &apinetworking.ServerTLSSettings{
			Mode: apinetworking.ServerTLSSettings_OPTIONAL_MUTUAL, CredentialName: "cert", CaCertCredentialName: "ca",
		}), pod("a", "edge")}, []string{"a/ca", "a/ca-cacert", "a/cert"}},
		{"Gateway API", []resource.Object{&gatewayv1.Gateway{ObjectMeta: meta("apps"), Spec: gatewayv1.GatewaySpec{Listeners: []gatewayv1.Listener{
			{}, {TLS: &gatewayv1.ListenerTLSConfig{CertificateRefs: []gatewayv1.SecretObjectReference{
				{Name: "cert"}, {Name: "theirs", Namespace: &other}, {Name: "map", Kind: &kind},
			}}},
		}}}}, []string{"apps/cert"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for name := range secretsOf(tt.objects, "root") {
				got = append(got, name.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Secrets (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever an API server sends as a custom resource is an object or a problem,
// and leaves what was there in force if it is none.
func FuzzCustomObject(f *testing.F) {
	valid, err := json.Marshal(wasmPlugin("1", 1).Object)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid)
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[]}`))
	f.Add([]byte(`{"metadata":{"name":"p","namespace":"apps","labels":[1],"annotations":{"a":{}}}}`))
	f.Add([]byte(`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"p"},"spec":{"url":7}}`))
	s := newSet(f, "wasmplugins.extensions.istio.io")
	f.Fuzz(func(t *testing.T, data []byte) {
		var o map[string]any
		if json.Unmarshal(data, &o) != nil || o == nil {
			return
		}
		u := &unstructured.Unstructured{Object: o}
		s.items = map[types.NamespacedName]item{}
		old := s.make(wasmPlugin("1", 1))
		s.items[nameOf(u)] = old
		next := s.make(u)
		if next.object == nil || next.object != old.object && len(next.problems) > 0 {
			t.Errorf("item = %v", next)
		}
	})
}

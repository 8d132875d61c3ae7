package trust

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// A press is a Publisher at work on a fake cluster.
type press struct {
	t       *testing.T
	client  *fake.Clientset
	bundles chan string
}

func startPress(t *testing.T, objects ...runtime.Object) press {
	t.Helper()
	return startPressOf(t, fake.NewClientset(objects...), identity.Plane{}, nil)
}

// startPressOf is a press of one of several control planes.
func startPressOf(t *testing.T, client *fake.Clientset, plane identity.Plane, found func(identity.Foreign)) press {
	t.Helper()
	p := press{t, client, make(chan string)}
	publisher, err := NewPublisher(PublisherConfig{Client: p.client, Plane: plane, Found: found, Follow: func(ctx context.Context, deliver func([]byte)) error {
		for {
			select {
			case b := <-p.bundles:
				deliver([]byte(b))
			case <-ctx.Done():
				return nil
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- publisher.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	p.settle()
	return p
}

// settle waits until nothing is left to do, retries of a second included.
func (p press) settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func (p press) publish(bundle string) {
	p.bundles <- bundle
	p.settle()
}

// published is the bundle in the ConfigMap of a namespace, "none" if there is none.
func (p press) published(namespace string) string {
	p.t.Helper()
	m, err := p.client.CoreV1().ConfigMaps(namespace).Get(p.t.Context(), ConfigMapName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "none"
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return m.Data[ConfigMapKey]
}

func (p press) expect(namespace, want string) {
	p.t.Helper()
	if got := p.published(namespace); got != want {
		p.t.Errorf("namespace %s has %q, want %q", namespace, got, want)
	}
}

// writes is how many there were.
func (p press) writes() (n int) {
	for _, a := range p.client.Actions() {
		if a.GetVerb() == "patch" {
			n++
		}
	}
	return n
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func TestPublisher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		going := namespace("going")
		going.DeletionTimestamp, going.Finalizers = new(metav1.Now()), []string{"x"}
		p := startPress(t, namespace("a"), namespace("b"), going,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: ConfigMapName, Annotations: map[string]string{"mine": "x"}}, Data: map[string]string{"other": "y"}})
		ctx := t.Context()
		if n := p.writes(); n != 0 {
			t.Errorf("%d writes before there is a bundle", n)
		}
		p.publish("one")
		p.expect("a", "one")
		p.expect("b", "one")
		p.expect("going", "none")
		b, err := p.client.CoreV1().ConfigMaps("b").Get(ctx, ConfigMapName, metav1.GetOptions{})
		if err != nil || b.Data["other"] != "y" || b.Annotations["mine"] != "x" {
			t.Errorf("what else was in the ConfigMap is gone: %+v, %v", b, err)
		}
		if n := p.writes(); n != 2 {
			t.Errorf("%d writes, want 2", n)
		}

		// The same bundle again is no news.
		p.publish("one")
		if n := p.writes(); n != 2 {
			t.Errorf("%d writes after the same bundle, want 2", n)
		}
		p.publish("two")
		p.expect("a", "two")
		p.expect("b", "two")

		if _, err := p.client.CoreV1().Namespaces().Create(ctx, namespace("c"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		p.settle()
		p.expect("c", "two")

		edited, err := p.client.CoreV1().ConfigMaps("a").Get(ctx, ConfigMapName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		edited.Data[ConfigMapKey] = "mallory"
		if _, err := p.client.CoreV1().ConfigMaps("a").Update(ctx, edited, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := p.client.CoreV1().ConfigMaps("c").Delete(ctx, ConfigMapName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		p.settle()
		p.expect("a", "two")
		p.expect("c", "two")
	})
}

// TestPublisherRetries: an error is met by another try, and a namespace that is
// going by none.
func TestPublisherRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPress(t)
		var mu sync.Mutex
		tries := map[string]int{}
		p.client.PrependReactor("patch", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			tries[a.GetNamespace()]++
			if a.GetNamespace() == "going" {
				err := apierrors.NewForbidden(corev1.Resource("configmaps"), ConfigMapName, errors.New("namespace is being terminated"))
				err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
				return true, nil, err
			}
			return tries[a.GetNamespace()] < 3, nil, apierrors.NewInternalError(errors.New("no"))
		})
		for _, name := range []string{"a", "going"} {
			if _, err := p.client.CoreV1().Namespaces().Create(t.Context(), namespace(name), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		p.publish("one")
		p.expect("a", "one")
		if tries["a"] != 3 || tries["going"] != 1 {
			t.Errorf("tries = %v, want 3 and 1", tries)
		}
	})
}

// TestPublisherRate: whoever puts a ConfigMap wrong again and again does not make
// us flood the API server.
func TestPublisherRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPress(t, namespace("a"))
		p.publish("one")
		p.client.PrependReactor("patch", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
			// As if it had been written and at once put wrong, which the watch tells.
			m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: ConfigMapName}}
			return true, m, p.client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("configmaps"), m, "a")
		})
		before := p.writes()
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: ConfigMapName}}
		if _, err := p.client.CoreV1().ConfigMaps("a").Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := p.writes() - before; n < 2 || n > 10*writeRate+writeBurst+writers {
			t.Errorf("%d writes in 10 s", n)
		}
	})
}

func TestPublisherConfig(t *testing.T) {
	if _, err := NewPublisher(PublisherConfig{}); err == nil {
		t.Error("a publisher without client is made")
	}
}

// TestTwoPlanes: each namespace has the roots of one control plane, whoever was there
// first, or of the revision that it chooses; nobody writes over the other's.
func TestTwoPlanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		labelled := func(name, key, value string) *corev1.Namespace {
			n := namespace(name)
			n.Labels = map[string]string{key: value}
			return n
		}
		client := fake.NewClientset(namespace("one"), namespace("two"), namespace("plain"),
			labelled("asks", "istio-injection", "enabled"), labelled("canaries", "istio.io/rev", "canary"))
		var mu sync.Mutex
		found := map[string]string{} // owners, by namespace
		one := startPressOf(t, client, identity.Plane{Namespace: "one", Revision: "default"}, nil)
		one.publish("roots of one")
		two := startPressOf(t, client, identity.Plane{Namespace: "two", Revision: "canary"}, func(f identity.Foreign) {
			mu.Lock()
			defer mu.Unlock()
			found[f.Namespace] = f.Owner.String()
		})
		two.publish("roots of two")
		one.expect("plain", "roots of one")
		one.expect("asks", "roots of one")
		one.expect("two", "roots of two")
		one.expect("canaries", "roots of two")
		mu.Lock()
		if diff := cmp.Diff(map[string]string{"one": "one/default", "plain": "one/default", "asks": "one/default"}, found); diff != "" {
			t.Errorf("found (-want +got):\n%s", diff)
		}
		mu.Unlock()

		before := one.writes()
		time.Sleep(time.Hour)
		if n := one.writes() - before; n != 0 {
			t.Errorf("%d writes in an hour in which nothing has changed", n)
		}
		ctx := t.Context()
		asks := labelled("asks", "istio.io/rev", "canary")
		if _, err := client.CoreV1().Namespaces().Update(ctx, asks, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		one.settle()
		one.expect("asks", "roots of two")

		one.publish("newer of one")
		one.expect("plain", "newer of one")
		one.expect("asks", "roots of two")

		// The first is taken away with its namespace, and the other comes into what is left.
		if err := client.CoreV1().Namespaces().Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		one.settle()
		one.expect("plain", "roots of two")
		mu.Lock()
		defer mu.Unlock()
		if owner := found["plain"]; owner != "" {
			t.Errorf("plain is still told to be of %s", owner)
		}
	})
}

// TestUnmarked: what was written before control planes marked what they write is
// marked, once.
func TestUnmarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(namespace("a"), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: ConfigMapName, Labels: labels()}, Data: map[string]string{ConfigMapKey: "roots"},
		})
		plane := identity.Plane{Namespace: "root", Revision: "default"}
		p := startPressOf(t, client, plane, nil)
		p.publish("roots")
		m, err := client.CoreV1().ConfigMaps("a").Get(t.Context(), ConfigMapName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := identity.PlaneOf(m.Labels); got != plane || p.writes() != 1 {
			t.Errorf("it is marked as that of %v, with %d writes; want %v with 1", got, p.writes(), plane)
		}
	})
}
